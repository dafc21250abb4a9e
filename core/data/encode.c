/* core/data/encode.c: see encode.h. */
#include "data/encode.h"

#include <stdlib.h>
#include <string.h>

#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

const char *const apus_loss_reasons[APUS_N_LOSSES] = {"the prompt fills max_length", "longer than max_length", "no token left to train on",
                                                      "cut to max_length"};

void apus_losses_add(apus_losses *l, int reason, uint64_t row)
{
    if (l->count[reason] < APUS_LOSSES_LISTED)
        l->first[reason][l->count[reason]] = row;
    l->count[reason]++;
}

/* ---------------------------------------------------------------- policies */

static int policy_is(const apus_encoder *e, const char *name, const char *fallback)
{
    return strcmp(e->overlong != NULL ? e->overlong : fallback, name) == 0;
}

static apus_status too_long(const apus_encoder *e, uint64_t source, size_t n, apus_error *err)
{
    apus_fail(err, APUS_E_INVALID, "row %llu has %zu tokens, over max_length %lld", (unsigned long long)source, n, (long long)e->max_length);
    return apus_hint(err, APUS_E_INVALID, "raise dataset.max_length, or set overlong: right, left or drop");
}

static apus_status add_single(const int32_t *ids, const uint8_t *trained, size_t n, uint64_t source, apus_row_store *out, apus_losses *losses)
{
    size_t targets = 0;
    for (size_t i = 1; i < n; i++)
        targets += trained[i] != 0;
    if (targets == 0) {
        apus_losses_add(losses, APUS_LOSS_NOTHING_TRAINED, source);
        return APUS_OK;
    }
    uint8_t *mask = malloc(n);
    if (mask == NULL)
        return APUS_E_MEMORY;
    memcpy(mask, trained, n);
    mask[0] = 0; /* nothing predicts the first token */
    const apus_row_segment segment = {.begin = 0, .count = (uint32_t)n, .parent = -1, .answer = 0};
    const apus_row row = {
        .source = source, .n_tokens = (uint32_t)n, .n_segments = 1, .n_answers = 1, .ids = ids, .trained = mask, .segments = &segment};
    const apus_status st = apus_row_store_add(out, &row);
    free(mask);
    return st;
}

/* A single sequence with its mask, cut by the policy. */
static apus_status add_sequence(const apus_encoder *e, const int32_t *ids, const uint8_t *trained, size_t n, uint64_t source, apus_row_store *out,
                                apus_losses *losses, apus_error *err)
{
    const size_t most = (size_t)e->max_length;
    if (n <= most)
        return add_single(ids, trained, n, source, out, losses);
    if (policy_is(e, "error", "right"))
        return too_long(e, source, n, err);
    if (policy_is(e, "drop", "right")) {
        apus_losses_add(losses, APUS_LOSS_TOO_LONG, source);
        return APUS_OK;
    }
    if (policy_is(e, "left", "right")) {
        apus_losses_add(losses, APUS_LOSS_CUT, source);
        return add_single(ids + (n - most), trained + (n - most), most, source, out, losses);
    }
    if (policy_is(e, "split", "right")) {
        apus_status st = APUS_OK;
        for (size_t at = 0; at < n && st == APUS_OK; at += most)
            st = add_single(ids + at, trained + at, n - at < most ? n - at : most, source, out, losses);
        return st;
    }
    size_t kept = 0;
    for (size_t i = 1; i < most; i++)
        kept += trained[i] != 0;
    if (kept == 0) {
        apus_losses_add(losses, APUS_LOSS_PROMPT_FILLS, source);
        return APUS_OK;
    }
    apus_losses_add(losses, APUS_LOSS_CUT, source);
    return add_single(ids, trained, most, source, out, losses);
}

/* ---------------------------------------------------------------- shapes of examples */

static void free_tokens(apus_tokens *t)
{
    HOST->free(t->ids);
    HOST->free(t->begin);
    memset(t, 0, sizeof *t);
}

static apus_status encode_conversation(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_losses *losses,
                                       apus_error *err)
{
    apus_tokens ids = {0};
    uint8_t *trained = NULL;
    apus_status st = apus_text_conversation(e->text, NODE->get(example, "messages"), NODE->get(example, "tools"), e->variables, 0, e->train_last, 0,
                                            &ids, &trained, err);
    if (st == APUS_OK)
        st = add_sequence(e, ids.ids, trained, ids.n, source, out, losses, err);
    free_tokens(&ids);
    HOST->free(trained);
    return st;
}

/* Raw text: as the tokenizer would begin it, ended with the end-of-text token. */
static apus_status encode_text(const apus_encoder *e, const char *a, const char *b, int end, apus_tokens *out, apus_error *err)
{
    const size_t n = strlen(a), m = b != NULL ? strlen(b) : 0;
    char *joined = m > 0 ? malloc(n + m + 1) : NULL;
    if (m > 0 && joined == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (m > 0)
        (void)snprintf(joined, n + m + 1, "%s%s", a, b);
    apus_status st = apus_text_encode_parallel(e->text, m > 0 ? joined : a, n + m, APUS_ENCODE_ADD_SPECIAL, e->threads, out, err);
    free(joined);
    const int32_t eos = apus_text_eos(e->text);
    if (st == APUS_OK && end && eos >= 0 && (out->n == 0 || out->ids[out->n - 1] != eos)) {
        int32_t *grown = HOST->realloc(out->ids, out->n * sizeof *grown, (out->n + 1) * sizeof *grown);
        if (grown == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
        out->ids = grown;
        out->ids[out->n++] = eos;
    }
    return st;
}

/* Ids of a prompt (messages or text), and of the prompt with an answer behind it. */
static apus_status encode_with_answer(const apus_encoder *e, const apus_node *example, const char *answer, apus_tokens *out, apus_error *err)
{
    const apus_node *messages = NODE->get(example, "messages"), *extra = answer != NULL ? NODE->get(example, answer) : NULL;
    if (NODE->kind(messages) == APUS_NODE_LIST && apus_text_has_template(e->text)) {
        apus_node *all = NODE->copy(messages);
        for (size_t i = 0; i < NODE->length(extra); i++)
            (void)NODE->append(all, NODE->copy(NODE->at(extra, i)));
        apus_status st = apus_text_conversation(e->text, all, NODE->get(example, "tools"), e->variables, answer == NULL, 0, 0, out, NULL, err);
        NODE->release(all);
        return st;
    }
    const char *prompt = NODE->as_string(NODE->get(example, "prompt"), NULL);
    if (prompt == NULL) {
        apus_fail(err, APUS_E_INVALID, "these rows are messages, and the model has no chat template");
        return apus_hint(err, APUS_E_INVALID, "name one with model: {path: …, template: FILE}");
    }
    const char *text = NODE->as_string(extra, NULL);
    if (text == NULL)
        text = NODE->as_string(NODE->get(NODE->at(extra, 0), "content"), NULL);
    return encode_text(e, prompt, text, answer != NULL, out, err);
}

static size_t common_prefix(const apus_tokens *a, const apus_tokens *b)
{
    size_t n = 0;
    while (n < a->n && n < b->n && a->ids[n] == b->ids[n])
        n++;
    return n;
}

static apus_status encode_completion(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_losses *losses,
                                     apus_error *err)
{
    apus_tokens prompt = {0}, whole = {0};
    apus_status st = encode_with_answer(e, example, NULL, &prompt, err);
    if (st == APUS_OK)
        st = encode_with_answer(e, example, "completion", &whole, err);
    uint8_t *trained = st == APUS_OK ? calloc(whole.n + 1, 1) : NULL;
    if (st == APUS_OK && trained == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK) {
        const size_t from = common_prefix(&prompt, &whole);
        memset(trained + from, 1, whole.n - from);
        st = add_sequence(e, whole.ids, trained, whole.n, source, out, losses, err);
    }
    free_tokens(&prompt);
    free_tokens(&whole);
    free(trained);
    return st;
}

/* The prompt once, then both answers; or apart, the prompt before each. */
static apus_status add_pair(const apus_encoder *e, const apus_tokens *whole, size_t prompt, const apus_node *example, uint64_t source,
                            apus_row_store *out, apus_losses *losses, apus_error *err)
{
    const size_t most = (size_t)e->max_length;
    size_t answer[2] = {whole[0].n - prompt, whole[1].n - prompt}, skip = 0;
    const size_t longest = answer[0] > answer[1] ? answer[0] : answer[1];
    if (prompt + longest > most) {
        if (policy_is(e, "error", "right"))
            return too_long(e, source, prompt + longest, err);
        if (policy_is(e, "split", "right")) {
            apus_fail(err, APUS_E_INVALID, "row %llu: a preference pair cannot be split", (unsigned long long)source);
            return apus_hint(err, APUS_E_INVALID, "overlong: right, left or drop");
        }
        if (policy_is(e, "drop", "right")) {
            apus_losses_add(losses, APUS_LOSS_TOO_LONG, source);
            return APUS_OK;
        }
        const int left = policy_is(e, "left", "right");
        if (left ? longest >= most : prompt >= most) {
            apus_losses_add(losses, left ? APUS_LOSS_TOO_LONG : APUS_LOSS_PROMPT_FILLS, source);
            return APUS_OK;
        }
        apus_losses_add(losses, APUS_LOSS_CUT, source);
        if (left)
            skip = prompt + longest - most;
        for (int i = 0; i < 2 && !left; i++)
            answer[i] = answer[i] < most - prompt ? answer[i] : most - prompt;
    }
    prompt -= skip;
    if (answer[0] == 0 || answer[1] == 0 || prompt == 0) {
        apus_losses_add(losses, APUS_LOSS_NOTHING_TRAINED, source);
        return APUS_OK;
    }
    const size_t again = e->apart ? prompt : 0, first = prompt + answer[0], second = again + answer[1], n = first + second;
    int32_t *ids = malloc(n * sizeof *ids);
    uint8_t *trained = calloc(n, 1);
    if (ids == NULL || trained == NULL) {
        free(ids);
        free(trained);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    memcpy(ids, whole[0].ids + skip, first * sizeof *ids);
    memcpy(ids + first, whole[1].ids + skip + prompt - again, second * sizeof *ids);
    memset(trained + prompt, 1, answer[0]);
    memset(trained + first + again, 1, answer[1]);
    const apus_row_segment shared[3] = {
        {0, (uint32_t)prompt, -1, -1}, {(uint32_t)prompt, (uint32_t)answer[0], 0, 0}, {(uint32_t)first, (uint32_t)answer[1], 0, 1}};
    const apus_row_segment apart[2] = {{0, (uint32_t)first, -1, 0}, {(uint32_t)first, (uint32_t)second, -1, 1}};
    const apus_node *chosen = NODE->get(example, "chosen_logps"), *rejected = NODE->get(example, "rejected_logps");
    const double reference[2] = {NODE->as_float(chosen, 0.0), NODE->as_float(rejected, 0.0)};
    const apus_row row = {.source = source,
                          .n_tokens = (uint32_t)n,
                          .n_segments = e->apart ? 2 : 3,
                          .n_answers = 2,
                          .ids = ids,
                          .trained = trained,
                          .segments = e->apart ? apart : shared,
                          .reference_logps = chosen != NULL && rejected != NULL ? reference : NULL};
    const apus_status st = apus_row_store_add(out, &row);
    free(ids);
    free(trained);
    return st;
}

static apus_status encode_pair(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_losses *losses,
                               apus_error *err)
{
    apus_tokens prompt = {0}, whole[2] = {{0}, {0}};
    apus_status st = encode_with_answer(e, example, NULL, &prompt, err);
    if (st == APUS_OK)
        st = encode_with_answer(e, example, "chosen", &whole[0], err);
    if (st == APUS_OK)
        st = encode_with_answer(e, example, "rejected", &whole[1], err);
    if (st == APUS_OK) {
        /* A tokenizer may merge across the border: what all three share is the prompt. */
        const size_t a = common_prefix(&prompt, &whole[0]), b = common_prefix(&prompt, &whole[1]);
        st = add_pair(e, whole, a < b ? a : b, example, source, out, losses, err);
    }
    free_tokens(&prompt);
    free_tokens(&whole[0]);
    free_tokens(&whole[1]);
    return st;
}

static apus_status encode_ready(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_losses *losses,
                                apus_error *err)
{
    const apus_node *list = NODE->get(example, "input_ids"), *labels = NODE->get(example, "labels");
    const size_t n = NODE->length(list);
    if (labels != NULL && NODE->length(labels) != n)
        return apus_fail(err, APUS_E_INVALID, "row %llu: labels has %zu entries, input_ids %zu", (unsigned long long)source, NODE->length(labels), n);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    uint8_t *trained = malloc(n + 1);
    apus_status st = ids != NULL && trained != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        const int64_t id = NODE->as_int(NODE->at(list, i), -1), label = labels != NULL ? NODE->as_int(NODE->at(labels, i), -100) : id;
        if (id < 0 || id > INT32_MAX)
            st = apus_fail(err, APUS_E_INVALID, "row %llu: input_ids[%zu] is not a token id", (unsigned long long)source, i);
        else if (label != -100 && label != id) {
            st = apus_fail(err, APUS_E_INVALID, "row %llu: labels[%zu] is %lld, neither -100 nor the token %lld", (unsigned long long)source, i,
                           (long long)label, (long long)id);
            apus_hint(err, st, "labels are the tokens themselves, not shifted, as in Hugging Face");
        }
        ids[i] = (int32_t)id;
        trained[i] = label != -100;
    }
    if (st == APUS_OK)
        st = add_sequence(e, ids, trained, n, source, out, losses, err);
    free(ids);
    free(trained);
    return st;
}

static apus_status encode_document(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_row_store *documents,
                                   apus_losses *losses, apus_error *err)
{
    const char *text = NODE->as_string(NODE->get(example, "text"), NULL);
    apus_tokens ids = {0};
    apus_status st = encode_text(e, text, NULL, 1, &ids, err);
    uint8_t *trained = st == APUS_OK ? malloc(ids.n + 1) : NULL;
    if (st == APUS_OK && trained == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK) {
        memset(trained, 1, ids.n);
        const apus_row_segment segment = {.begin = 0, .count = (uint32_t)ids.n, .parent = -1, .answer = 0};
        const apus_row row = {
            .source = source, .n_tokens = (uint32_t)ids.n, .n_segments = 1, .n_answers = 1, .ids = ids.ids, .trained = trained, .segments = &segment};
        st =
            policy_is(e, "split", "split") ? apus_row_store_add(documents, &row) : add_sequence(e, ids.ids, trained, ids.n, source, out, losses, err);
    }
    free_tokens(&ids);
    free(trained);
    return st;
}

apus_status apus_encode_example(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_row_store *documents,
                                apus_losses *losses, apus_error *err)
{
    const int pair = NODE->get(example, "chosen") != NULL;
    if (pair != (e->pairs != 0)) {
        apus_fail(err, APUS_E_INVALID,
                  pair ? "row %llu is a preference pair, but this loss trains on single answers"
                       : "row %llu is not a preference pair, which this loss needs",
                  (unsigned long long)source);
        return apus_hint(err, APUS_E_INVALID, pair ? "use a loss for preference pairs" : "give rows with chosen and rejected answers");
    }
    if (NODE->get(example, "input_ids") != NULL)
        return encode_ready(e, example, source, out, losses, err);
    if (e->text == NULL || !apus_text_has_tokenizer(e->text)) {
        apus_fail(err, APUS_E_INVALID, "row %llu is text, and the model has no tokenizer", (unsigned long long)source);
        return apus_hint(err, APUS_E_INVALID, "put tokenizer.json beside the weights, or use rows of ready-made input_ids");
    }
    if (pair)
        return encode_pair(e, example, source, out, losses, err);
    if (NODE->get(example, "text") != NULL)
        return encode_document(e, example, source, out, documents, losses, err);
    const apus_node *messages = NODE->get(example, "messages");
    if (NODE->kind(messages) == APUS_NODE_LIST && apus_text_has_template(e->text))
        return encode_conversation(e, example, source, out, losses, err);
    return encode_completion(e, example, source, out, losses, err);
}

/* ---------------------------------------------------------------- documents */

apus_status apus_packer_open(apus_packer *p, int64_t max_length, apus_error *err)
{
    const size_t most = (size_t)max_length;
    *p = (apus_packer){.ids = malloc(most * sizeof *p->ids), .trained = malloc(most), .segments = malloc(most * sizeof *p->segments), .most = most};
    return p->ids != NULL && p->trained != NULL && p->segments != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}

void apus_packer_close(apus_packer *p)
{
    free(p->ids);
    free(p->trained);
    free(p->segments);
}

static apus_status give_row(apus_packer *p, apus_row_sink *out, apus_error *err)
{
    const apus_row row = {.source = p->source,
                          .n_tokens = p->n_tokens,
                          .n_segments = p->n_segments,
                          .n_answers = 1,
                          .ids = p->ids,
                          .trained = p->trained,
                          .segments = p->segments};
    p->n_tokens = p->n_segments = 0;
    return apus_row_sink_add(out, &row, err);
}

apus_status apus_packer_add(apus_packer *p, const apus_row *document, apus_row_sink *out, apus_error *err)
{
    apus_status st = APUS_OK;
    for (uint32_t at = 0; at < document->n_tokens && st == APUS_OK;) {
        const size_t room = p->most - p->n_tokens, left = document->n_tokens - at, n = left < room ? left : room;
        if (p->n_tokens == 0)
            p->source = document->source;
        memcpy(p->ids + p->n_tokens, document->ids + at, n * sizeof *p->ids);
        memset(p->trained + p->n_tokens, 1, n);
        p->trained[p->n_tokens] = 0; /* a document's first token here has no predecessor */
        p->segments[p->n_segments++] = (apus_row_segment){.begin = p->n_tokens, .count = (uint32_t)n, .parent = -1, .answer = 0};
        p->n_tokens += (uint32_t)n;
        at += (uint32_t)n;
        if (p->n_tokens == p->most)
            st = give_row(p, out, err);
    }
    return st;
}

apus_status apus_packer_end(apus_packer *p, apus_row_sink *out, apus_error *err)
{
    return p->n_tokens > 1 ? give_row(p, out, err) : APUS_OK;
}
