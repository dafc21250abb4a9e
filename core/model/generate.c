/* core/model/generate.c: see generate.h. */
#include "model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <apus/random.h>

#include "model/internal.h"

#define NODE apus_nodes()

enum {
    PAGE = 64,         /* positions per page of the cache */
    CHUNK = 256,       /* prompt tokens per run */
    FIRST_SLOTS = 2048 /* positions of the first cache; doubled when an answer needs more */
};

struct apus_generator {
    apus_model *model;
    int parse_special;
    int64_t slots;
    apus_graph *graph;
    apus_plan *plan;
    void **cache;              /* device memory bound to the plan's cache variables */
    size_t *cache_bytes, n_cache;
    int32_t *table;            /* [4 + pages] */
    int32_t tokens[CHUNK], positions[CHUNK], lengths[CHUNK], slot[CHUNK];
    double *logits;            /* [vocab] */
    float *sampled;            /* [vocab], the sampler's copy */
};

/* ---------------------------------------------------------------- the plan */

static void drop_plan(apus_generator *g)
{
    apus_plan_free(g->plan);
    apus_graph_free(g->graph);
    for (size_t i = 0; i < g->n_cache; i++)
        apus_device_free(g->model->device, g->cache[i], g->cache_bytes[i]);
    free(g->cache);
    free(g->cache_bytes);
    free(g->table);
    g->plan = NULL;
    g->graph = NULL;
    g->cache = NULL;
    g->cache_bytes = NULL;
    g->table = NULL;
    g->n_cache = 0;
}

static apus_tensor head_logits(apus_graph *g, const apus_forward *f, const char *pick)
{
    const apus_graph_api *G = apus_graph_table();
    const int64_t n = APUS_DIM_SCORED;
    const apus_tensor rows[2] = {f->hidden, G->input(g, pick, APUS_I32, 1, &n)};
    const apus_tensor in[2] = {G->emit(g, "apus.gather/1", rows, 2, NULL, 0), f->head};
    apus_tensor logits = G->emit(g, "apus.linear/1", in, 2, NULL, 0);
    const double scale[2] = {f->outputs.logit_scale, 0.0};
    if (f->outputs.logit_scale != 1.0)
        logits = G->emit(g, "apus.affine/1", &logits, 1, scale, 2);
    if (f->outputs.logit_softcap > 0.0) {
        const double down[2] = {1.0 / f->outputs.logit_softcap, 0.0}, up[2] = {f->outputs.logit_softcap, 0.0};
        logits = G->emit(g, "apus.affine/1", &logits, 1, down, 2);
        logits = G->emit(g, "apus.tanh/1", &logits, 1, NULL, 0);
        logits = G->emit(g, "apus.affine/1", &logits, 1, up, 2);
    }
    return logits;
}

static apus_status bind_cache(apus_generator *g, apus_error *err)
{
    const size_t n = apus_plan_variable_count(g->plan);
    g->cache = calloc(n + 1, sizeof *g->cache);
    g->cache_bytes = calloc(n + 1, sizeof *g->cache_bytes);
    if (g->cache == NULL || g->cache_bytes == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++) {
        apus_shape shape;
        const char *name = apus_plan_variable_at(g->plan, i, &shape);
        if (strncmp(name, "cache.", 6) != 0)
            continue;
        const size_t bytes = (size_t)(shape.dims[0] * shape.dims[1]) * apus_dtype_size(apus_device_real(g->model->device));
        g->cache[g->n_cache] = apus_device_alloc(g->model->device, bytes, err);
        if (g->cache[g->n_cache] == NULL)
            return APUS_E_MEMORY;
        g->cache_bytes[g->n_cache] = bytes;
        apus_status st = apus_plan_bind(g->plan, name, g->cache[g->n_cache++], err);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

static apus_status make_plan(apus_generator *g, int64_t slots, apus_error *err)
{
    drop_plan(g);
    const int64_t pages = slots / PAGE;
    const apus_forward_options forward = {.mode = APUS_FORWARD_CACHED, .tuner = 1, .page = PAGE, .slots = slots, .table_columns = 4 + pages};
    const int64_t capacity[APUS_N_DIM_SYMBOLS] = {CHUNK, 1, 1, 1, 1};
    g->slots = slots;
    g->table = malloc((size_t)(4 + pages) * sizeof *g->table);
    g->graph = apus_model_graph(g->model, &forward);
    if (g->table == NULL || g->graph == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_forward f;
    apus_status st = apus_model_forward(g->model, g->graph, &f, err);
    if (st != APUS_OK)
        return st;
    const apus_tensor logits = head_logits(g->graph, &f, "scored");
    g->plan = apus_plan_new(g->graph, g->model->device, &logits, 1, capacity, APUS_RECOMPUTE_NONE, err);
    if (g->plan == NULL)
        return APUS_E_UNSUPPORTED;
    st = apus_model_bind(g->model, g->plan, err);
    return st == APUS_OK ? bind_cache(g, err) : st;
}

apus_generator *apus_generator_new(apus_model *m, int parse_special, apus_error *err)
{
    apus_generator *g = calloc(1, sizeof *g);
    if (g != NULL) {
        g->logits = malloc((size_t)m->facts.vocab * sizeof *g->logits);
        g->sampled = malloc((size_t)m->facts.vocab * sizeof *g->sampled);
    }
    if (g == NULL || g->logits == NULL || g->sampled == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        if (g != NULL) {
            free(g->logits);
            free(g->sampled);
        }
        free(g);
        apus_model_close(m);
        return NULL;
    }
    g->model = m;
    g->parse_special = parse_special;
    return g;
}

void apus_generator_free(apus_generator *g)
{
    if (g == NULL)
        return;
    drop_plan(g);
    free(g->logits);
    free(g->sampled);
    apus_model_close(g->model);
    free(g);
}

apus_model *apus_generator_model(apus_generator *g)
{
    return g->model;
}

/* Run ids[0..n) at positions from `at`; leaves the last one's logits. total: length the sequence will then have. */
static apus_status feed(apus_generator *g, const int32_t *ids, size_t n, size_t at, apus_error *err)
{
    const int32_t last = (int32_t)n - 1;
    const int64_t extents[APUS_N_DIM_SYMBOLS] = {(int64_t)n, 1, 1, 0, 0};
    for (size_t i = 0; i < n; i++) {
        g->tokens[i] = ids[i];
        g->positions[i] = g->slot[i] = (int32_t)(at + i); /* one sequence: pages in order */
        g->lengths[i] = (int32_t)(at + n);
    }
    g->table[0] = 0;
    g->table[1] = (int32_t)n;
    g->table[2] = (int32_t)(at + n);
    g->table[3] = 0;
    for (int64_t p = 0; p < g->slots / PAGE; p++)
        g->table[4 + p] = (int32_t)p;
    const apus_feed feeds[] = {{"tokens", g->tokens}, {"positions", g->positions}, {"lengths", g->lengths},
                               {"slots", g->slot},    {"table", g->table},         {"scored", &last}};
    apus_status st = apus_plan_run(g->plan, extents, feeds, sizeof feeds / sizeof feeds[0], err);
    return st == APUS_OK ? apus_plan_output(g->plan, 0, g->logits, g->model->facts.vocab, err) : st;
}

/* ---------------------------------------------------------------- an answer */

typedef struct answer {
    apus_tokens prompt;
    int32_t *ids;              /* prompt, then the answer */
    size_t n_prompt, n;
    double *logprobs;          /* [answer] */
    char *text;                /* so far */
    size_t length, told;       /* bytes told to the caller */
    const char *finish;
} answer;

static apus_status prompt_ids(apus_generator *g, const apus_generate_request *r, apus_tokens *out, apus_error *err)
{
    const apus_text *text = g->model->text;
    if (r->ids != NULL) {
        out->ids = apus_host_table()->alloc((r->n_ids + 1) * sizeof *out->ids);
        if (out->ids == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
        memcpy(out->ids, r->ids, r->n_ids * sizeof *out->ids);
        out->n = r->n_ids;
        return APUS_OK;
    }
    if (text == NULL || !apus_text_has_tokenizer(text)) {
        apus_fail(err, APUS_E_INVALID, "%s: the model has no tokenizer", g->model->path ? g->model->path : "model");
        return apus_hint(err, APUS_E_INVALID, "give token ids, or put tokenizer.json beside the weights");
    }
    if (r->messages != NULL)
        return apus_text_conversation(text, r->messages, r->tools, NULL, 1, 0, g->parse_special, out, NULL, err);
    return apus_text_encode(text, r->prompt, strlen(r->prompt), APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, out, err);
}

/* Bytes of text that are whole UTF-8 characters. */
static size_t whole_utf8(const char *text, size_t n)
{
    for (size_t back = 1; back <= 4 && back <= n; back++) {
        const unsigned char c = (unsigned char)text[n - back];
        if (c < 0x80)
            return n;
        if (c >= 0xC0) {
            const size_t need = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            return need > back ? n - back : n;
        }
    }
    return n;
}

static int ends_with_replacement(const char *text, size_t n)
{
    return n >= 3 && memcmp(text + n - 3, "\xEF\xBF\xBD", 3) == 0;
}

/* Where a stop string begins in the text; SIZE_MAX: nowhere. */
static size_t find_stop(const apus_node *stops, const char *text)
{
    size_t first = SIZE_MAX;
    for (size_t i = 0; i < NODE->length(stops); i++) {
        const char *stop = NODE->as_string(NODE->at(stops, i), NULL);
        const char *at = stop != NULL && *stop != '\0' ? strstr(text, stop) : NULL;
        if (at != NULL && (size_t)(at - text) < first)
            first = (size_t)(at - text);
    }
    return first;
}

/* Longest tail of text that could still become a stop string: held back from the caller. */
static size_t held_back(const apus_node *stops, const char *text, size_t n)
{
    size_t held = 0;
    for (size_t i = 0; i < NODE->length(stops); i++) {
        size_t length;
        const char *stop = NODE->as_string(NODE->at(stops, i), &length);
        for (size_t k = length > n ? n : length; stop != NULL && k > held; k--)
            if (memcmp(text + n - k, stop, k) == 0)
                held = k;
    }
    return held;
}

/* Tell the caller what is sure; 1: it wants no more. */
static int tell(answer *a, const apus_generate_request *r, const apus_node *stops, int last)
{
    size_t sure = last ? a->length : whole_utf8(a->text, a->length);
    if (!last && ends_with_replacement(a->text, sure)) /* the rest of the character may still come */
        sure = a->told;
    if (!last)
        sure -= sure > a->told ? held_back(stops, a->text, sure) : 0;
    if (r->piece == NULL || sure <= a->told)
        return 0;
    const int stop = r->piece(r->context, a->text + a->told, sure - a->told);
    a->told = sure;
    return stop;
}

static double logprob_of(const double *logits, int32_t vocab, int32_t id)
{
    double most = logits[0], sum = 0.0;
    for (int32_t v = 1; v < vocab; v++)
        most = logits[v] > most ? logits[v] : most;
    for (int32_t v = 0; v < vocab; v++)
        sum += exp(logits[v] - most);
    return logits[id] - most - log(sum);
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

/* Decode the answer so far into a->text; a stop string cuts it. 1: a stop string was found. */
static int update_text(apus_generator *g, answer *a, const apus_node *stops)
{
    const apus_text *text = g->model->text;
    if (text == NULL || !apus_text_has_tokenizer(text))
        return 0;
    apus_host_table()->free(a->text);
    a->text = NULL;
    a->length = 0;
    if (apus_text_decode(text, a->ids + a->n_prompt, a->n - a->n_prompt, 1, &a->text, &a->length, NULL) != APUS_OK || a->text == NULL)
        return 0;
    const size_t at = find_stop(stops, a->text);
    if (at == SIZE_MAX)
        return 0;
    a->text[at] = '\0';
    a->length = at;
    return 1;
}

static apus_status next_token(apus_generator *g, const apus_generate_request *r, const apus_sampler_ops *ops, void *sampler, answer *a,
                              int32_t *id, apus_error *err)
{
    const int32_t vocab = g->model->facts.vocab;
    for (int32_t v = 0; v < vocab; v++) {
        if (isnan(g->logits[v]))
            return apus_fail(err, APUS_E_NUMERIC, "token %zu of the answer: a logit is not a number", a->n - a->n_prompt + 1);
        g->sampled[v] = (float)g->logits[v];
    }
    const double u = apus_random_uniform(r->seed, apus_random_purpose("sample"), (uint32_t)r->index, a->n - a->n_prompt);
    apus_status st = ops->sample(sampler, g->sampled, vocab, a->ids, a->n, a->n_prompt, u, id, err);
    if (st == APUS_OK && (*id < 0 || *id >= vocab))
        st = apus_fail(err, APUS_E_INTERNAL, "the sampler chose token %d of %d", *id, vocab);
    return st;
}

static apus_status run_answer(apus_generator *g, const apus_generate_request *r, answer *a, int64_t max_tokens, const apus_node *stops,
                              const apus_sampler_ops *ops, void *sampler, apus_error *err)
{
    apus_status st = APUS_OK;
    for (size_t at = 0; at < a->n && st == APUS_OK; at += CHUNK)
        st = feed(g, a->ids + at, a->n - at < CHUNK ? a->n - at : CHUNK, at, err);
    a->finish = "length";
    for (int64_t k = 0; k < max_tokens && st == APUS_OK; k++) {
        int32_t id = 0;
        if (k > 0)
            st = feed(g, a->ids + a->n - 1, 1, a->n - 1, err);
        if (st == APUS_OK)
            st = next_token(g, r, ops, sampler, a, &id, err);
        if (st != APUS_OK)
            break;
        a->logprobs[k] = logprob_of(g->logits, g->model->facts.vocab, id);
        a->ids[a->n++] = id;
        const int ended = is_stop(g->model->text, id);
        if (update_text(g, a, stops) || ended) {
            a->finish = "stop";
            break;
        }
        if (tell(a, r, stops, 0)) {
            a->finish = "stop";
            break;
        }
        if (apus_host_table()->stopping())
            st = apus_fail(err, APUS_E_STOPPED, "stopped while answering");
    }
    if (st == APUS_OK)
        (void)tell(a, r, stops, 1);
    return st;
}

static apus_node *id_list(const int32_t *ids, size_t n)
{
    apus_node *list = NODE->make_list();
    for (size_t i = 0; i < n; i++)
        (void)NODE->append(list, NODE->make_int(ids[i]));
    return list;
}

static apus_node *describe(const answer *a)
{
    apus_node *out = NODE->make_map(), *logprobs = NODE->make_list();
    for (size_t k = 0; k < a->n - a->n_prompt; k++)
        (void)NODE->append(logprobs, NODE->make_float(a->logprobs[k]));
    (void)NODE->set(out, "text", NODE->make_string(a->text ? a->text : "", a->text ? a->length : 0));
    (void)NODE->set(out, "prompt_ids", id_list(a->ids, a->n_prompt));
    (void)NODE->set(out, "ids", id_list(a->ids + a->n_prompt, a->n - a->n_prompt));
    (void)NODE->set(out, "logprobs", logprobs);
    (void)NODE->set(out, "finish_reason", NODE->make_string(a->finish, (size_t)-1));
    return out;
}

apus_status apus_generator_answer(apus_generator *g, const apus_generate_request *r, apus_node **out, apus_error *err)
{
    int64_t max_tokens = NODE->as_int(NODE->get(r->sampling, "max_tokens"), 512);
    const apus_node *stops = NODE->get(r->sampling, "stop");
    const int32_t most = g->model->facts.max_positions;
    const apus_component *c;
    apus_node *params = NULL;
    answer a = {0};
    apus_status st = prompt_ids(g, r, &a.prompt, err);
    if (st == APUS_OK && a.prompt.n == 0) {
        st = apus_fail(err, APUS_E_INVALID, "the prompt is empty");
        apus_hint(err, st, "give at least one token; this model has no token that begins a text");
    }
    if (st == APUS_OK && most > 0 && a.prompt.n >= (size_t)most)
        st = apus_fail(err, APUS_E_INVALID, "the prompt has %zu tokens; the model takes %d", a.prompt.n, most);
    if (st == APUS_OK && most > 0 && max_tokens > most - (int64_t)a.prompt.n)
        max_tokens = most - (int64_t)a.prompt.n;
    for (size_t i = 0; i < a.prompt.n && st == APUS_OK; i++)
        if (a.prompt.ids[i] < 0 || a.prompt.ids[i] >= g->model->facts.vocab)
            st = apus_fail(err, APUS_E_INVALID, "prompt token %zu: id %d is outside the vocabulary of %d", i, a.prompt.ids[i],
                           g->model->facts.vocab);
    const int64_t need = (int64_t)a.prompt.n + max_tokens;
    int64_t slots = g->slots > 0 ? g->slots : FIRST_SLOTS;
    while (slots < need)
        slots *= 2;
    if (st == APUS_OK && (g->plan == NULL || slots > g->slots))
        st = make_plan(g, slots, err);
    apus_sampler_ops ops = {0};
    void *sampler = NULL;
    if (st == APUS_OK)
        st = apus_component_resolve("sampler", NODE->get(r->sampling, "sampler"), NULL, &c, &params, err);
    if (st == APUS_OK) {
        apus_take(&ops, sizeof ops, c->ops);
        st = ops.open(apus_host_table(), params, &sampler, err);
    }
    if (st == APUS_OK) {
        a.ids = malloc(((size_t)need + 1) * sizeof *a.ids);
        a.logprobs = malloc(((size_t)max_tokens + 1) * sizeof *a.logprobs);
        if (a.ids == NULL || a.logprobs == NULL)
            st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    if (st == APUS_OK) {
        memcpy(a.ids, a.prompt.ids, a.prompt.n * sizeof *a.ids);
        a.n = a.n_prompt = a.prompt.n;
        st = run_answer(g, r, &a, max_tokens, stops, &ops, sampler, err);
    }
    if (st == APUS_OK)
        *out = describe(&a);
    if (sampler != NULL)
        ops.close(sampler);
    NODE->release(params);
    apus_host_table()->free(a.prompt.ids);
    apus_host_table()->free(a.prompt.begin);
    apus_host_table()->free(a.text);
    free(a.ids);
    free(a.logprobs);
    return st;
}

/* ---------------------------------------------------------------- scoring */

/* Logits of every position, once: whoever asks for the [n, vocab] matrix gets it. */
static apus_status score_logits(apus_model *m, apus_graph *g, const apus_forward *f, const apus_feed *feeds, size_t n_feeds,
                                const int64_t *extents, const int64_t *capacity, float *logits, apus_error *err)
{
    const apus_tensor out = head_logits(g, f, "scored");
    apus_plan *p = apus_plan_new(g, m->device, &out, 1, capacity, APUS_RECOMPUTE_NONE, err);
    apus_status st = p != NULL ? apus_model_bind(m, p, err) : APUS_E_UNSUPPORTED;
    if (st == APUS_OK)
        st = apus_plan_run(p, extents, feeds, n_feeds, err);
    const apus_view v = st == APUS_OK ? apus_plan_output_view(p, 0) : (apus_view){0};
    const size_t row = (size_t)m->facts.vocab, size = st == APUS_OK ? apus_dtype_size(v.dtype) : 0;
    double *wide = malloc(row * sizeof *wide);
    if (wide == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (int64_t i = 0; st == APUS_OK && i < v.dims[0]; i++) {
        const char *src = (const char *)v.data + (size_t)i * row * size;
        if (v.dtype == APUS_F32) {
            st = apus_device_download(m->device, logits + (size_t)i * row, src, row * size, err);
            continue;
        }
        st = apus_device_download(m->device, wide, src, row * size, err);
        for (size_t k = 0; k < row; k++)
            logits[(size_t)i * row + k] = (float)wide[k];
    }
    free(wide);
    apus_plan_free(p);
    return st;
}

apus_status apus_model_score(apus_model *m, const int32_t *ids, size_t n, double *logprobs, float *logits, apus_error *err)
{
    const apus_graph_api *G = apus_graph_table();
    const apus_forward_options forward = {.mode = APUS_FORWARD_PLAIN, .tuner = 1};
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->facts.vocab)
            return apus_fail(err, APUS_E_INVALID, "id %d at place %zu is outside the vocabulary of %d", ids[i], i, m->facts.vocab);
    if (n < 1)
        return apus_fail(err, APUS_E_INVALID, "there is no token to score");
    if (m->facts.max_positions > 0 && n > (size_t)m->facts.max_positions)
        return apus_fail(err, APUS_E_INVALID, "%zu tokens are more than the model's %d positions", n, m->facts.max_positions);
    int32_t *positions = malloc(4 * n * sizeof *positions), *lengths = positions + n, *scored = positions + 2 * n, *targets = positions + 3 * n;
    apus_graph *g = apus_model_graph(m, &forward);
    apus_forward f;
    apus_status st = positions != NULL && g != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = apus_model_forward(m, g, &f, err);
    if (st != APUS_OK) {
        apus_graph_free(g);
        free(positions);
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        positions[i] = scored[i] = (int32_t)i;
        lengths[i] = (int32_t)n;
        targets[i] = i + 1 < n ? ids[i + 1] : 0;
    }
    const int32_t segments[4] = {0, (int32_t)n, -1, 0};
    const apus_feed feeds[] = {{"tokens", ids}, {"positions", positions}, {"lengths", lengths}, {"segments", segments}, {"scored", scored}, {"targets", targets}};
    const int64_t extents[APUS_N_DIM_SYMBOLS] = {(int64_t)n, 1, (int64_t)n - 1, 0, 0}, capacity[APUS_N_DIM_SYMBOLS] = {(int64_t)n, 1, (int64_t)n, 1, 0};
    if (logprobs != NULL && n > 1) {
        const int64_t dim = APUS_DIM_SCORED;
        const apus_tensor pick[2] = {f.hidden, G->input(g, "scored", APUS_I32, 1, &dim)};
        const apus_tensor in[3] = {G->emit(g, "apus.gather/1", pick, 2, NULL, 0), f.head, G->input(g, "targets", APUS_I32, 1, &dim)};
        const double attrs[2] = {f.outputs.logit_scale, f.outputs.logit_softcap};
        const apus_tensor out = G->emit(g, "apus.token_logprob/1", in, 3, attrs, 2);
        apus_plan *p = apus_plan_new(g, m->device, &out, 1, capacity, APUS_RECOMPUTE_NONE, err);
        st = p != NULL ? apus_model_bind(m, p, err) : APUS_E_UNSUPPORTED;
        if (st == APUS_OK)
            st = apus_plan_run(p, extents, feeds, 6, err);
        if (st == APUS_OK)
            st = apus_plan_output(p, 0, logprobs, (int64_t)n - 1, err);
        apus_plan_free(p);
    }
    if (st == APUS_OK && logits != NULL) {
        int64_t all[APUS_N_DIM_SYMBOLS];
        memcpy(all, extents, sizeof all);
        all[-1 - APUS_DIM_SCORED] = (int64_t)n;
        st = score_logits(m, g, &f, feeds, 5, all, capacity, logits, err);
    }
    apus_graph_free(g);
    free(positions);
    return st;
}
