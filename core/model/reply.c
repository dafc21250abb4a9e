/* core/model/reply.c: see reply.h. */
#include "model/reply.h"

#include <stdlib.h>
#include <string.h>

#include <apus/random.h>

#include "model/internal.h"
#include "model/sampling.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

/* ---------------------------------------------------------------- text */

static int ends_with_replacement(const char *text, size_t n)
{
    return n >= 3 && memcmp(text + n - 3, "\xEF\xBF\xBD", 3) == 0;
}

/* "<0xHH>": decoders that fall back to bytes judge a run of them as one. */
static int is_byte(const char *token, size_t n)
{
    return n == 6 && memcmp(token, "<0x", 3) == 0 && token[5] == '>';
}

static apus_status set_tail(apus_detokenizer *d, const char *tail, size_t n, apus_error *err)
{
    const size_t need = d->sure + n + 1;
    if (need > d->capacity) {
        const size_t capacity = need < 128 ? 256 : 2 * need;
        char *grown = realloc(d->bytes, capacity);
        if (grown == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
        d->bytes = grown;
        d->capacity = capacity;
    }
    memcpy(d->bytes + d->sure, tail, n);
    d->n = d->sure + n;
    d->bytes[d->n] = '\0';
    return APUS_OK;
}

apus_status apus_detokenize(apus_detokenizer *d, const apus_text *text, const int32_t *ids, size_t n, apus_error *err)
{
    size_t length = 0;
    const char *token = apus_text_token(text, ids[n - 1], &length);
    if (token == NULL || apus_text_is_special(text, ids[n - 1]))
        return APUS_OK; /* leaves no text */
    const int whole = !is_byte(token, length);
    char *tail = NULL;
    apus_status st = apus_text_decode(text, ids + d->context, n - d->context, 1, &tail, &length, err);
    if (st == APUS_OK && d->overlap > 0 && (length < d->overlap || memcmp(tail, d->bytes + d->sure - d->overlap, d->overlap) != 0)) {
        /* A decoder that looks further back than the context does. */
        d->sure = d->known = d->context = d->overlap = 0;
        HOST->free(tail);
        tail = NULL;
        st = apus_text_decode(text, ids, n, 1, &tail, &length, err);
    }
    if (st == APUS_OK)
        st = set_tail(d, tail + d->overlap, length - d->overlap, err);
    HOST->free(tail);
    if (st != APUS_OK || !whole || ends_with_replacement(d->bytes, d->n)) /* the rest of a character may still come */
        return st;
    tail = NULL;
    const size_t from = d->known, all = length;
    st = apus_text_decode(text, ids + from, n - from, 1, &tail, &length, err);
    HOST->free(tail);
    if (st != APUS_OK)
        return st;
    d->sure = d->n;
    d->known = n;
    d->context = length > 0 ? from : d->context;
    d->overlap = length > 0 ? length : all;
    return APUS_OK;
}

void apus_detokenizer_free(apus_detokenizer *d)
{
    free(d->bytes);
    *d = (apus_detokenizer){0};
}

/* ---------------------------------------------------------------- the request */

static apus_status prompt_ids(const apus_model *m, int parse_special, const apus_generate_request *q, apus_tokens *out, apus_error *err)
{
    const apus_text *text = m->text;
    if (q->ids != NULL) {
        out->ids = HOST->alloc((q->n_ids + 1) * sizeof *out->ids);
        if (out->ids == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
        memcpy(out->ids, q->ids, q->n_ids * sizeof *out->ids);
        out->n = q->n_ids;
        return APUS_OK;
    }
    if (q->messages == NULL && q->prompt == NULL)
        return apus_fail(err, APUS_E_INVALID, "there are neither messages nor a prompt to answer");
    if (text == NULL || !apus_text_has_tokenizer(text)) {
        apus_fail(err, APUS_E_INVALID, "%s: the model has no tokenizer", m->path ? m->path : "model");
        return apus_hint(err, APUS_E_INVALID, "give token ids, or put tokenizer.json beside the weights");
    }
    if (q->messages != NULL)
        return apus_text_conversation(text, q->messages, q->tools, NULL, 1, 0, parse_special, out, NULL, err);
    return apus_text_encode(text, q->prompt, strlen(q->prompt), APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, out, err);
}

static apus_status check_prompt(const apus_model *m, const apus_tokens *prompt, apus_error *err)
{
    const int32_t most = m->facts.max_positions;
    if (prompt->n == 0) {
        apus_fail(err, APUS_E_INVALID, "the prompt is empty");
        return apus_hint(err, APUS_E_INVALID, "give at least one token; this model has no token that begins a text");
    }
    if (most > 0 && prompt->n >= (size_t)most)
        return apus_fail(err, APUS_E_INVALID, "the prompt has %zu tokens; the model takes %d", prompt->n, most);
    for (size_t i = 0; i < prompt->n; i++)
        if (prompt->ids[i] < 0 || prompt->ids[i] >= m->facts.vocab)
            return apus_fail(err, APUS_E_INVALID, "prompt token %zu: id %d is outside the vocabulary of %d", i, prompt->ids[i], m->facts.vocab);
    return APUS_OK;
}

static apus_status open_sampler(apus_reply *r, const apus_node *sampling, apus_error *err)
{
    const apus_component *c;
    const char *whose = NODE->as_string(NODE->get(sampling, "sampling"), NULL);
    apus_node *params = NULL, *models = whose != NULL && strcmp(whose, "model") == 0 ? apus_model_sampler(r->model) : NULL;
    apus_status st = apus_component_resolve("sampler", models != NULL ? models : NODE->get(sampling, "sampler"), "standard", &c, &params, err);
    NODE->release(models);
    if (st != APUS_OK)
        return st;
    apus_take(&r->ops, sizeof r->ops, c->ops);
    st = r->ops.open(HOST, params, &r->sampler, err);
    if (st != APUS_OK)
        r->sampler = NULL;
    NODE->release(params);
    return st;
}

static apus_status copy_stops(apus_reply *r, const apus_node *stops, apus_error *err)
{
    r->stops = NODE->make_list();
    if (r->stops == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < NODE->length(stops); i++) {
        size_t n = 0;
        const char *stop = NODE->as_string(NODE->at(stops, i), &n);
        if (stop == NULL || n == 0)
            continue;
        if (NODE->append(r->stops, NODE->make_string(stop, n)) != APUS_OK)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
        r->longest_stop = n > r->longest_stop ? n : r->longest_stop;
    }
    return APUS_OK;
}

static apus_status reserve(apus_reply *r, size_t n, apus_error *err)
{
    if (n <= r->capacity)
        return APUS_OK;
    size_t capacity = r->n_prompt + 64;
    while (capacity < n)
        capacity *= 2;
    int32_t *ids = realloc(r->ids, capacity * sizeof *ids);
    if (ids != NULL)
        r->ids = ids;
    double *logprobs = ids != NULL && r->wants_logprobs ? realloc(r->logprobs, (capacity - r->n_prompt) * sizeof *logprobs) : NULL;
    if (logprobs != NULL)
        r->logprobs = logprobs;
    if (ids == NULL || (r->wants_logprobs && logprobs == NULL))
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    r->capacity = capacity;
    return APUS_OK;
}

apus_status apus_reply_open(apus_reply *r, apus_model *m, int parse_special, const apus_generate_request *request, apus_error *err)
{
    apus_generate_request q;
    apus_tokens prompt = {0};
    apus_take(&q, sizeof q, request);
    *r = (apus_reply){
        .model = m, .seed = q.seed, .index = q.index, .wants_logprobs = q.logprobs, .piece = q.piece, .done = q.done, .context = q.context};
    apus_status st = prompt_ids(m, parse_special, &q, &prompt, err);
    if (st == APUS_OK)
        st = check_prompt(m, &prompt, err);
    if (st == APUS_OK)
        st = open_sampler(r, q.sampling, err);
    if (st == APUS_OK)
        st = copy_stops(r, NODE->get(q.sampling, "stop"), err);
    if (st == APUS_OK) {
        r->n = r->n_prompt = prompt.n;
        const int64_t wanted = NODE->as_int(NODE->get(q.sampling, "max_tokens"), 512);
        r->most = prompt.n + (size_t)(wanted > 0 ? wanted : 1);
        if (m->facts.max_positions > 0 && r->most > (size_t)m->facts.max_positions)
            r->most = (size_t)m->facts.max_positions;
        st = reserve(r, prompt.n + 1, err);
    }
    if (st == APUS_OK)
        memcpy(r->ids, prompt.ids, prompt.n * sizeof *r->ids);
    else
        apus_reply_close(r);
    HOST->free(prompt.ids);
    HOST->free(prompt.begin);
    return st;
}

void apus_reply_close(apus_reply *r)
{
    if (r->sampler != NULL)
        r->ops.close(r->sampler);
    r->sampler = NULL;
    NODE->release(r->stops);
    r->stops = NULL;
    apus_detokenizer_free(&r->text);
    free(r->ids);
    free(r->logprobs);
    r->ids = NULL;
    r->logprobs = NULL;
}

/* ---------------------------------------------------------------- stops and pieces */

/* Where in the text, from byte `from` on, a stop string begins first; SIZE_MAX: nowhere. */
static size_t find_stop(const apus_reply *r, size_t from)
{
    const char *text = r->text.bytes;
    const size_t n = r->text.n;
    for (size_t at = from; at < n && r->longest_stop > 0; at++)
        for (size_t i = 0; i < NODE->length(r->stops); i++) {
            size_t length;
            const char *stop = NODE->as_string(NODE->at(r->stops, i), &length);
            if (length <= n - at && memcmp(text + at, stop, length) == 0)
                return at;
        }
    return SIZE_MAX;
}

/* Longest tail of the first n bytes that could still become a stop string: held back from the caller. */
static size_t held_back(const apus_reply *r, size_t n)
{
    size_t held = 0;
    for (size_t i = 0; i < NODE->length(r->stops); i++) {
        size_t length;
        const char *stop = NODE->as_string(NODE->at(r->stops, i), &length);
        for (size_t k = length > n ? n : length; k > held; k--)
            if (memcmp(r->text.bytes + n - k, stop, k) == 0)
                held = k;
    }
    return held;
}

static void tell(apus_reply *r, size_t sure)
{
    if (r->piece == NULL || sure <= r->told)
        return;
    const size_t from = r->told;
    r->told = sure;
    if (r->piece(r->context, r->text.bytes + from, sure - from) && r->finish == NULL)
        r->finish = "stop";
}

/* ---------------------------------------------------------------- tokens */

apus_status apus_reply_choose(apus_reply *r, float *logits, int32_t *id, apus_error *err)
{
    const int32_t vocab = r->model->facts.vocab;
    int bad = 0;
    for (int32_t v = 0; v < vocab; v++)
        bad |= logits[v] != logits[v];
    if (bad)
        return apus_fail(err, APUS_E_NUMERIC, "token %zu of the answer: a logit is not a number", r->n - r->n_prompt + 1);
    const double u = apus_random_uniform(r->seed, apus_random_purpose("sample"), r->index, r->n - r->n_prompt);
    const apus_status st = r->ops.sample(r->sampler, logits, vocab, r->ids, r->n, r->n_prompt, u, id, err);
    if (st == APUS_OK && (*id < 0 || *id >= vocab))
        return apus_fail(err, APUS_E_INTERNAL, "the sampler chose token %d of %d", *id, vocab);
    return st;
}

static int is_stop(const apus_text *text, int32_t id)
{
    const int32_t *ids = NULL;
    const size_t n = text != NULL ? apus_text_stops(text, &ids) : 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] == id)
            return 1;
    return 0;
}

void apus_reply_fail(apus_reply *r, apus_status status, const apus_error *why)
{
    r->status = status;
    r->error = *why;
    r->finish = "error";
}

void apus_reply_take(apus_reply *r, int32_t id, double logprob)
{
    const apus_text *text = r->model->text;
    apus_error err = {.message = "", .hint = ""};
    apus_status st = reserve(r, r->n + 1, &err);
    if (st == APUS_OK) {
        if (r->wants_logprobs)
            r->logprobs[r->n - r->n_prompt] = logprob;
        r->ids[r->n++] = id;
    }
    const size_t sure = r->text.sure;
    if (st == APUS_OK && text != NULL && apus_text_has_tokenizer(text))
        st = apus_detokenize(&r->text, text, r->ids + r->n_prompt, r->n - r->n_prompt, &err);
    if (st != APUS_OK) {
        apus_reply_fail(r, st, &err);
        return;
    }
    if (is_stop(text, id))
        r->finish = "stop";
    else if (r->n == r->most)
        r->finish = "length";
    const size_t stop = find_stop(r, sure < r->longest_stop ? 0 : sure - r->longest_stop + 1);
    if (stop != SIZE_MAX) {
        r->text.n = stop;
        r->text.bytes[stop] = '\0';
        r->finish = "stop";
    }
    if (r->finish != NULL)
        tell(r, r->text.n);
    else
        tell(r, r->text.sure - held_back(r, r->text.sure));
}

apus_answer apus_reply_answer(const apus_reply *r)
{
    return (apus_answer){.size = sizeof(apus_answer),
                         .status = r->status,
                         .error = r->status != APUS_OK ? &r->error : NULL,
                         .text = r->text.bytes != NULL ? r->text.bytes : "",
                         .length = r->text.n,
                         .prompt_ids = r->ids,
                         .n_prompt = r->n_prompt,
                         .ids = r->ids + r->n_prompt,
                         .n_ids = r->n - r->n_prompt,
                         .logprobs = r->logprobs,
                         .finish_reason = r->finish};
}
