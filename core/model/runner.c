/* core/model/runner.c: see runner.h. */
#include "model/runner.h"

#include <stdlib.h>
#include <string.h>

#include "model/internal.h"
#include "model/pages.h"
#include "model/score.h"

enum { COPY_BYTES = 1 << 20, SMALLEST_COLUMNS = 5 /* of the page table, for one page */ };

void apus_runner_close(apus_runner *r)
{
    apus_plan_free(r->plan);
    apus_graph_free(r->graph);
    for (size_t i = 0; i < r->n_cache; i++)
        apus_device_free(apus_model_device(r->model), r->cache[i], r->cache_bytes[i]);
    free(r->cache);
    free(r->cache_bytes);
    free(r->table);
    free(r->tokens);
    *r = (apus_runner){0};
}

/* ---------------------------------------------------------------- the plan and the cache */

static int is_cache(const apus_plan *p, size_t i, size_t real, size_t *bytes)
{
    apus_shape shape;
    if (strncmp(apus_plan_variable_at(p, i, &shape), "cache.", 6) != 0)
        return 0;
    *bytes = (size_t)(shape.dims[0] * shape.dims[1]) * real;
    return 1;
}

/* The model over a cache of so many pages, and its logits. */
static apus_status cached_graph(apus_model *m, int64_t pages, int64_t columns, apus_graph **graph, apus_tensor *logits, apus_error *err)
{
    const apus_forward_options forward = {
        .mode = APUS_FORWARD_CACHED, .tuner = 1, .page = APUS_PAGE, .slots = pages * APUS_PAGE, .table_columns = columns};
    apus_forward f;
    apus_graph *g = apus_model_graph(m, &forward);
    const apus_status st = g != NULL ? apus_model_forward(m, g, &f, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st != APUS_OK) {
        apus_graph_free(g);
        return st;
    }
    *logits = apus_model_logits(g, &f, "scored");
    *graph = g;
    return APUS_OK;
}

static apus_status make_plan(const apus_runner *r, int64_t pages, int64_t columns, apus_graph **graph, apus_plan **plan, apus_error *err)
{
    apus_model *m = r->model;
    const int64_t capacity[APUS_N_DIM_SYMBOLS] = {r->most_tokens, r->most_rows, r->most_rows, 1, 1};
    apus_tensor logits;
    apus_graph *g = NULL;
    apus_plan *p = NULL;
    apus_status st = cached_graph(m, pages, columns, &g, &logits, err);
    if (st == APUS_OK)
        st = apus_plan_new(g, apus_model_device(m), &logits, 1, capacity, APUS_RECOMPUTE_NONE, &p, err);
    if (st == APUS_OK)
        st = apus_model_bind(m, p, err);
    if (st != APUS_OK) {
        apus_plan_free(p);
        apus_graph_free(g);
        return st;
    }
    *graph = g;
    *plan = p;
    return APUS_OK;
}

apus_status apus_runner_open(apus_runner *r, apus_model *m, int64_t most_tokens, int64_t most_rows, apus_error *err)
{
    *r = (apus_runner){.model = m, .most_tokens = most_tokens, .most_rows = most_rows};
    r->tokens = malloc((size_t)(4 * most_tokens + most_rows) * sizeof *r->tokens);
    if (r->tokens == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    r->positions = r->tokens + most_tokens;
    r->lengths = r->positions + most_tokens;
    r->slots = r->lengths + most_tokens;
    r->scored = r->slots + most_tokens;
    apus_graph *g;
    apus_tensor logits;
    const apus_status st = cached_graph(m, 1, SMALLEST_COLUMNS, &g, &logits, err);
    if (st != APUS_OK)
        return st;
    apus_model_settle(m, g, 1);
    apus_graph_free(g);
    return APUS_OK;
}

apus_status apus_runner_describe(const apus_runner *r, apus_node **plan, apus_error *err)
{
    apus_graph *g;
    apus_plan *p;
    const apus_status st = make_plan(r, 1, SMALLEST_COLUMNS, &g, &p, err);
    if (st != APUS_OK)
        return st;
    *plan = apus_plan_describe(p);
    apus_plan_free(p);
    apus_graph_free(g);
    return *plan != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}

/* Device memory with the first `kept` bytes of `from`. */
static void *larger(apus_device *d, const void *from, size_t kept, size_t bytes, apus_error *err)
{
    char *to = apus_device_alloc(d, bytes, err), *buffer = to != NULL && kept > 0 ? malloc(COPY_BYTES) : NULL;
    apus_status st = to == NULL ? APUS_E_MEMORY : kept > 0 && buffer == NULL ? apus_fail(err, APUS_E_MEMORY, "out of memory") : APUS_OK;
    for (size_t at = 0; at < kept && st == APUS_OK; at += COPY_BYTES) {
        const size_t n = kept - at < COPY_BYTES ? kept - at : COPY_BYTES;
        st = apus_device_download(d, buffer, (const char *)from + at, n, err);
        if (st == APUS_OK)
            st = apus_device_upload(d, to + at, buffer, n, err);
    }
    free(buffer);
    if (st == APUS_OK)
        return to;
    apus_device_free(d, to, bytes);
    return NULL;
}

/* Each variable of the cache in turn, so that old and new of one alone are there at once. One that is larger than the plan asks for
 * serves the old plan too. */
static apus_status grow_cache(apus_runner *r, const apus_plan *plan, apus_error *err)
{
    apus_device *d = apus_model_device(r->model);
    const size_t n = apus_plan_variable_count(plan);
    size_t bytes, k = 0;
    if (r->cache == NULL) {
        r->cache = calloc(n + 1, sizeof *r->cache);
        r->cache_bytes = calloc(n + 1, sizeof *r->cache_bytes);
        if (r->cache == NULL || r->cache_bytes == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        if (!is_cache(plan, i, apus_dtype_size(apus_device_real(d)), &bytes))
            continue;
        if (bytes > r->cache_bytes[k]) {
            void *grown = larger(d, r->cache[k], r->cache_bytes[k], bytes, err);
            if (grown == NULL)
                return APUS_E_MEMORY;
            apus_device_free(d, r->cache[k], r->cache_bytes[k]);
            r->cache[k] = grown;
            r->cache_bytes[k] = bytes;
        }
        r->n_cache = ++k > r->n_cache ? k : r->n_cache;
    }
    return APUS_OK;
}

static apus_status bind_cache(const apus_runner *r, apus_plan *plan, apus_error *err)
{
    size_t bytes, k = 0;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < apus_plan_variable_count(plan) && k < r->n_cache && st == APUS_OK; i++)
        if (is_cache(plan, i, 1, &bytes))
            st = apus_plan_bind(plan, apus_plan_variable_at(plan, i, NULL), r->cache[k++], err);
    return st;
}

apus_status apus_runner_grow(apus_runner *r, int64_t pages, apus_error *err)
{
    const int64_t most = apus_model_get_facts(r->model)->max_positions, longest = (most + APUS_PAGE - 1) / APUS_PAGE;
    const int64_t columns = 4 + (most > 0 && longest < pages ? longest : pages);
    apus_graph *graph = NULL;
    apus_plan *plan = NULL;
    int32_t *table = malloc((size_t)(r->most_rows * columns) * sizeof *table);
    apus_status st = table != NULL ? make_plan(r, pages, columns, &graph, &plan, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK) {
        st = grow_cache(r, plan, err);
        if (st != APUS_OK && r->plan != NULL)
            (void)bind_cache(r, r->plan, NULL);
    }
    if (st == APUS_OK)
        st = bind_cache(r, plan, err);
    if (st != APUS_OK) {
        free(table);
        apus_plan_free(plan);
        apus_graph_free(graph);
        return st;
    }
    for (int64_t i = 0; i < r->n_rows; i++) /* of a batch that is being composed */
        memcpy(table + i * columns, r->table + i * r->columns, (size_t)r->columns * sizeof *table);
    free(r->table);
    apus_plan_free(r->plan);
    apus_graph_free(r->graph);
    r->table = table;
    r->plan = plan;
    r->graph = graph;
    r->pages = pages;
    r->columns = columns;
    r->uses_lengths = apus_plan_uses_input(plan, "lengths");
    return APUS_OK;
}

/* ---------------------------------------------------------------- batches */

void apus_runner_clear(apus_runner *r)
{
    r->n_tokens = r->n_rows = r->n_scored = 0;
}

int32_t apus_runner_add(apus_runner *r, const int32_t *ids, size_t begin, size_t count, size_t n_prompt, const int32_t *pages, int scored)
{
    int32_t *row = r->table + r->n_rows++ * r->columns;
    const size_t length = begin + count;
    row[0] = (int32_t)r->n_tokens;
    row[1] = (int32_t)count;
    row[2] = (int32_t)length;
    row[3] = 0;
    memcpy(row + 4, pages, (length + APUS_PAGE - 1) / APUS_PAGE * sizeof *row);
    for (size_t p = begin; p < length; p++) {
        const int64_t t = r->n_tokens++;
        r->tokens[t] = ids[p];
        r->positions[t] = (int32_t)p;
        /* What a text of just this prompt, or one that ends here, would have: how the prompt is cut does not matter. */
        r->lengths[t] = (int32_t)(p < n_prompt ? n_prompt : p + 1);
        r->slots[t] = pages[p / APUS_PAGE] * APUS_PAGE + (int32_t)(p % APUS_PAGE);
    }
    if (!scored)
        return -1;
    r->scored[r->n_scored] = (int32_t)r->n_tokens - 1;
    return (int32_t)r->n_scored++;
}

apus_status apus_runner_run(apus_runner *r, apus_error *err)
{
    const int64_t extents[APUS_N_DIM_SYMBOLS] = {r->n_tokens, r->n_rows, r->n_scored, 0, 0};
    const apus_feed feeds[] = {{"tokens", r->tokens}, {"positions", r->positions}, {"lengths", r->lengths},
                               {"slots", r->slots},   {"table", r->table},         {"scored", r->scored}};
    return apus_model_run(r->model, r->plan, extents, feeds, sizeof feeds / sizeof feeds[0], err);
}

apus_view apus_runner_logits(const apus_runner *r)
{
    return apus_plan_output_view(r->plan, 0);
}
