/* core/model/model.c: opening a model: file, configuration, architecture, weights, text. Tuners: tuner.c. */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#include <apus/random.h>

#include "io/io.h"

#define NODE apus_nodes()

/* ---------------------------------------------------------------- choosing plugins */

apus_status apus_format_open(const char *path, apus_format_file *f, apus_error *err)
{
    int best = 0;
    const apus_component *chosen = NULL;
    memset(f, 0, sizeof *f);
    if (!apus_path_exists(path)) {
        apus_fail(err, APUS_E_NOT_FOUND, "%s: no such file or folder", path);
        return apus_hint(err, APUS_E_NOT_FOUND, "a model is a folder or file that a loaded format reads, or a run's stage (runs/x:stage)");
    }
    for (size_t i = 0; i < apus_component_count("format") && (apus_path_is_dir(path) || apus_path_is_file(path)); i++) {
        const apus_component *c = apus_component_at("format", i);
        apus_format_ops ops;
        apus_take(&ops, sizeof ops, c->ops);
        int score = ops.claims(path);
        if (score > best) {
            best = score;
            chosen = c;
        }
    }
    if (chosen == NULL) {
        apus_fail(err, APUS_E_UNSUPPORTED, "%s: not a model file or folder that any loaded format reads", path);
        return apus_hint(err, APUS_E_UNSUPPORTED, "a folder needs config.json beside its weights; `apus plugins` lists the formats");
    }
    apus_take(&f->ops, sizeof f->ops, chosen->ops);
    f->component = chosen;
    apus_node *params = apus_params_validate(NULL, chosen->params, chosen->n_params, "", chosen->name, err);
    if (params == NULL)
        return APUS_E_INVALID;
    apus_status st = f->ops.open(apus_host_table(), params, path, &f->file, err);
    NODE->release(params);
    if (st != APUS_OK) {
        f->file = NULL;
        return st;
    }
    f->card.size = sizeof f->card;
    st = f->ops.card(f->file, &f->card, err);
    if (st != APUS_OK)
        apus_format_close(f);
    return st;
}

void apus_format_close(apus_format_file *f)
{
    if (f->file != NULL)
        f->ops.close(f->file);
    memset(f, 0, sizeof *f);
}

static apus_status open_arch(apus_model *m, const char *name, apus_error *err)
{
    const apus_component *chosen = NULL;
    if (name != NULL) {
        chosen = apus_component_find("arch", name, err);
        if (chosen == NULL)
            return APUS_E_NOT_FOUND;
    } else {
        int best = 0;
        for (size_t i = 0; i < apus_component_count("arch"); i++) {
            const apus_component *c = apus_component_at("arch", i);
            apus_arch_ops ops;
            apus_take(&ops, sizeof ops, c->ops);
            int score = ops.claims(m->config);
            if (score > best) {
                best = score;
                chosen = c;
            }
        }
        if (chosen == NULL) {
            const char *type = NODE->as_string(NODE->get(m->config, "model_type"), NULL);
            apus_fail(err, APUS_E_UNSUPPORTED, "%s: no architecture here builds model_type '%s'", m->path ? m->path : "model",
                      type ? type : "(missing)");
            return apus_hint(err, APUS_E_UNSUPPORTED, "`apus plugins` lists the architectures; another plugin may add this one");
        }
    }
    apus_take(&m->arch_ops, sizeof m->arch_ops, chosen->ops);
    apus_node *params = apus_params_validate(NULL, chosen->params, chosen->n_params, "", chosen->name, err);
    if (params == NULL)
        return APUS_E_INVALID;
    apus_status st = m->arch_ops.open(apus_host_table(), params, m->config, &m->arch, err);
    NODE->release(params);
    if (st != APUS_OK) {
        m->arch = NULL;
        return st;
    }
    m->facts.size = sizeof m->facts;
    return m->arch_ops.facts(m->arch, &m->facts);
}

/* ---------------------------------------------------------------- weights */

apus_status apus_decode_row(apus_dtype t, const void *src, int64_t n, float *dst)
{
    return apus_row_to_f32(t, src, dst, n) ? APUS_OK : APUS_E_UNSUPPORTED;
}

size_t apus_weight_elements(const apus_weight_spec *w)
{
    size_t n = 1;
    for (int32_t k = 0; k < w->ndim; k++)
        n *= (size_t)w->dims[k];
    return n;
}

/* float rows -> device memory of the real type, at element offset. */
apus_status apus_model_store(apus_model *m, void *device, size_t offset, const float *src, size_t n, apus_error *err)
{
    if (apus_device_real(m->device) == APUS_F32)
        return apus_device_upload(m->device, (float *)device + offset, src, n * sizeof(float), err);
    double chunk[512];
    for (size_t i = 0; i < n; i += 512) {
        size_t k = n - i < 512 ? n - i : 512;
        for (size_t j = 0; j < k; j++)
            chunk[j] = (double)src[i + j];
        apus_status st = apus_device_upload(m->device, (double *)device + offset + i, chunk, k * sizeof(double), err);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

/* Give a weight its own memory of the real type. */
apus_status apus_model_own(apus_model *m, apus_weight *w, apus_error *err)
{
    size_t n = apus_weight_elements(&w->spec);
    w->bytes = n * apus_dtype_size(apus_device_real(m->device));
    w->device = apus_device_alloc(m->device, w->bytes, err);
    if (w->device == NULL)
        return APUS_E_MEMORY;
    w->owned = 1;
    w->dtype = APUS_REAL;
    return APUS_OK;
}

/* Rows that are decoded one after the other by one thread. */
typedef struct decoding {
    const char *src;
    float *dst;
    apus_dtype type;
    size_t row_bytes;
    int64_t rows, columns, at_once;
} decoding;

static void decode_rows(void *context, int64_t i)
{
    const decoding *d = context;
    const int64_t end = (i + 1) * d->at_once < d->rows ? (i + 1) * d->at_once : d->rows;
    for (int64_t r = i * d->at_once; r < end; r++)
        (void)apus_decode_row(d->type, d->src + (size_t)r * d->row_bytes, d->columns, d->dst + r * d->columns);
}

/* Through buffers, for a device that takes no float where it is; whole: [columns, rows], turned round. */
static apus_status decode_aside(apus_model *m, apus_weight *w, decoding *d, float *whole, apus_error *err)
{
    const decoding all = *d;
    float *buffer = malloc((size_t)all.at_once * (size_t)all.columns * sizeof(float));
    apus_status st = buffer != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory while loading %s", w->spec.name);
    for (int64_t r = 0; r < all.rows && st == APUS_OK; r += all.at_once) {
        const int64_t n = all.rows - r < all.at_once ? all.rows - r : all.at_once;
        d->src = all.src + (size_t)r * all.row_bytes;
        d->dst = buffer;
        d->rows = n;
        decode_rows(d, 0);
        for (int64_t i = 0; i < n && whole != NULL; i++)
            for (int64_t c = 0; c < all.columns; c++)
                whole[c * all.rows + r + i] = buffer[i * all.columns + c];
        if (whole == NULL)
            st = apus_model_store(m, w->device, (size_t)(r * all.columns), buffer, (size_t)(n * all.columns), err);
    }
    if (st == APUS_OK && whole != NULL)
        st = apus_model_store(m, w->device, 0, whole, (size_t)(all.rows * all.columns), err);
    free(buffer);
    return st;
}

apus_status apus_model_load(apus_model *m, apus_weight *w, const apus_tensor_info *t, apus_error *err)
{
    apus_status st = apus_model_own(m, w, err);
    if (st != APUS_OK)
        return st;
    decoding d = {.src = t->data, .dst = w->device, .type = t->dtype, .rows = 1, .columns = t->dims[t->ndim - 1]};
    for (int32_t k = 0; k + 1 < t->ndim; k++)
        d.rows *= t->dims[k];
    d.row_bytes = apus_dtype_row_bytes(t->dtype, d.columns);
    d.at_once = d.columns > 0 ? 65536 / d.columns + 1 : 1;
    if (d.row_bytes == 0)
        return apus_fail(err, APUS_E_UNSUPPORTED, "%s: element type %s cannot be read", w->spec.name, apus_dtype_name(t->dtype));
    if (apus_device_host_memory(m->device) && apus_device_real(m->device) == APUS_F32 && !t->transposed) {
        apus_device_parallel(m->device, (d.rows + d.at_once - 1) / d.at_once, decode_rows, &d);
        return APUS_OK;
    }
    float *whole = t->transposed ? malloc((size_t)d.rows * (size_t)d.columns * sizeof(float)) : NULL;
    if (t->transposed && whole == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while loading %s", w->spec.name);
    st = decode_aside(m, w, &d, whole, err);
    free(whole);
    return st;
}

/* May the file's bytes serve as they are? */
static int usable_as_stored(const apus_model *m, const apus_weight *w, const apus_tensor_info *t, int keep_encoded)
{
    if (!apus_device_host_memory(m->device) || t->transposed)
        return 0;
    if (t->dtype == apus_device_real(m->device))
        return (uintptr_t)t->data % apus_dtype_size(t->dtype) == 0;
    if (!keep_encoded || (w->spec.what != APUS_WEIGHT_MATRIX && w->spec.what != APUS_WEIGHT_EMBEDDING))
        return 0;
    if ((uintptr_t)t->data % 2 != 0)
        return 0;
    if (w->spec.what == APUS_WEIGHT_EMBEDDING && apus_device_kernel(m->device, "apus.embedding/1", t->dtype) == NULL)
        return 0;
    return apus_device_kernel(m->device, "apus.linear/1", t->dtype) != NULL;
}

static int same_shape(const apus_weight_spec *w, const apus_tensor_info *t)
{
    if (t->transposed)
        return t->ndim == 2 && w->ndim == 2 && t->dims[0] == w->dims[1] && t->dims[1] == w->dims[0];
    if (t->ndim != w->ndim)
        return 0;
    for (int32_t k = 0; k < w->ndim; k++)
        if (t->dims[k] != w->dims[k])
            return 0;
    return 1;
}

static void init_weight_values(const apus_weight_spec *spec, uint64_t seed, float *dst)
{
    const uint32_t purpose = apus_random_purpose(spec->name);
    size_t n = apus_weight_elements(spec);
    for (size_t i = 0; i < n && spec->init_bound > 0; i++)
        dst[i] = (float)(spec->init_bound * (2.0 * apus_random_uniform(seed, purpose, 0, i) - 1.0));
    for (size_t i = 0; i < n && !(spec->init_bound > 0); i++)
        dst[i] = spec->init_std > 0 ? (float)(spec->init_std * apus_random_normal(seed, purpose, 0, i)) : (float)spec->init_fill;
}

apus_status apus_model_init_weight(apus_model *m, apus_weight *w, uint64_t seed, apus_error *err)
{
    size_t n = apus_weight_elements(&w->spec);
    float *values = malloc(n * sizeof(float));
    if (values == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while making %s", w->spec.name);
    init_weight_values(&w->spec, seed, values);
    apus_status st = apus_model_own(m, w, err);
    if (st == APUS_OK)
        st = apus_model_store(m, w->device, 0, values, n, err);
    free(values);
    return st;
}

/* Lines of a list error: "3 tensors missing (a, b, c, …)". */
typedef struct problem_list {
    char names[640];
    size_t used, count;
} problem_list;

static void problem_add(problem_list *p, const char *fmt, ...) APUS_PRINTF(2, 3);
static void problem_add(problem_list *p, const char *fmt, ...)
{
    p->count++;
    if (p->count > 8)
        return;
    if (p->used > 0 && p->used + 2 < sizeof p->names)
        p->used += (size_t)snprintf(p->names + p->used, sizeof p->names - p->used, ", ");
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(p->names + p->used, sizeof p->names - p->used, fmt, args);
    va_end(args);
    if (n > 0)
        p->used = p->used + (size_t)n < sizeof p->names ? p->used + (size_t)n : sizeof p->names - 1;
}

static void forget(apus_model *m)
{
    if (m->format.ops.forget != NULL && m->format.file != NULL)
        m->format.ops.forget(m->format.file);
}

void apus_model_forget_file(apus_model *m)
{
    for (size_t i = 0; i < m->n_weights; i++)
        if (!m->weights[i].owned)
            return;
    forget(m);
}

static apus_status load_weights(apus_model *m, const apus_model_options *o, apus_error *err)
{
    problem_list missing = {0}, wrong = {0}, unused = {0};
    for (size_t i = 0; i < m->n_weights; i++) {
        apus_weight *w = &m->weights[i];
        apus_tensor_info t = {.size = sizeof t};
        apus_status st = m->format.ops.find(m->format.file, &w->spec, &t, err);
        if (st == APUS_E_NOT_FOUND) {
            if ((w->spec.flags & APUS_WEIGHT_OPTIONAL) == 0) {
                problem_add(&missing, "%s", w->spec.name);
                continue;
            }
            st = apus_model_init_weight(m, w, o->seed, err);
            if (st != APUS_OK)
                return st;
            continue;
        }
        if (st != APUS_OK)
            return st;
        if (!same_shape(&w->spec, &t)) {
            problem_add(&wrong, "%s is [%lld%s%lld], expected [%lld%s%lld]", w->spec.name, (long long)t.dims[0], t.ndim > 1 ? ", " : "",
                        t.ndim > 1 ? (long long)t.dims[1] : 0LL, (long long)w->spec.dims[0], w->spec.ndim > 1 ? ", " : "",
                        w->spec.ndim > 1 ? (long long)w->spec.dims[1] : 0LL);
            continue;
        }
        if (usable_as_stored(m, w, &t, o->keep_encoded)) {
            w->device = (void *)(uintptr_t)t.data; /* never written: trained weights get their own memory */
            w->bytes = (size_t)t.bytes;
            w->dtype = t.dtype == apus_device_real(m->device) ? APUS_REAL : t.dtype;
            continue;
        }
        st = apus_model_load(m, w, &t, err);
        if (st != APUS_OK)
            return st;
    }
    uint64_t n = m->format.ops.count(m->format.file);
    for (uint64_t i = m->format.ops.unused(m->format.file, 0); i < n; i = m->format.ops.unused(m->format.file, i + 1)) {
        apus_tensor_info t = {.size = sizeof t};
        if (m->format.ops.tensor(m->format.file, i, &t, NULL) == APUS_OK)
            problem_add(&unused, "%s", t.name);
    }
    if (missing.count + wrong.count + unused.count == 0) {
        apus_model_forget_file(m);
        return APUS_OK;
    }
    apus_fail(err, APUS_E_INVALID, "%s: the weights do not fit the configuration: %zu missing%s%s%s, %zu of a wrong shape%s%s%s, %zu unused%s%s%s",
              m->path, missing.count, missing.count ? " (" : "", missing.names, missing.count ? ")" : "", wrong.count, wrong.count ? " (" : "",
              wrong.names, wrong.count ? ")" : "", unused.count, unused.count ? " (" : "", unused.names, unused.count ? ")" : "");
    return apus_hint(err, APUS_E_INVALID, "the file may be damaged, or its configuration may describe another model");
}

/* ---------------------------------------------------------------- graphs */

static apus_dtype hook_stored(void *context, const apus_weight_spec *spec)
{
    apus_model *m = ((apus_model_graph_context *)context)->model;
    const apus_weight *w = apus_model_weight_named(m, spec->name);
    return w != NULL ? w->dtype : APUS_REAL;
}

static int hook_rows_apart(void *context, const apus_weight_spec *spec)
{
    const apus_weight *w = apus_model_weight_named(((apus_model_graph_context *)context)->model, spec->name);
    return w != NULL && w->rows != NULL;
}

static apus_tensor hook_linear(void *context, apus_graph *g, apus_tensor x, const apus_weight_spec *spec, apus_tensor y)
{
    apus_model_graph_context *c = context;
    apus_model *m = c->model;
    if (!c->options.tuner || m->tuner == NULL || m->tuner_ops.linear == NULL)
        return y;
    return m->tuner_ops.linear(m->tuner, g, x, spec, y, c->options.dropout);
}

static apus_tensor hook_embedding(void *context, apus_graph *g, apus_tensor ids, const apus_weight_spec *spec, apus_tensor y)
{
    apus_model_graph_context *c = context;
    apus_model *m = c->model;
    if (!c->options.tuner || m->tuner == NULL || m->tuner_ops.embedding == NULL)
        return y;
    return m->tuner_ops.embedding(m->tuner, g, ids, spec, y, c->options.dropout);
}

static apus_tensor hook_attention(void *context, apus_graph *g, apus_tensor q, apus_tensor k, apus_tensor v, const apus_attention_spec *s)
{
    apus_model_graph_context *c = context;
    const apus_graph_api *api = apus_graph_table();
    char name[64];
    const int64_t tokens[1] = {APUS_DIM_TOKENS}, table_dims[2] = {APUS_DIM_SEGMENTS, c->options.table_columns};
    const int64_t cache_dims[2] = {c->options.slots, (int64_t)s->kv_heads * s->head_dim};
    apus_tensor slots = api->input(g, "slots", APUS_I32, 1, tokens);
    apus_tensor table = api->input(g, "table", APUS_I32, 2, table_dims);
    apus_tensor cache[2];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s.%d", i == 0 ? "cache.key" : "cache.value", s->layer);
        const apus_tensor in[3] = {apus_graph_variable(g, name, APUS_REAL, 2, cache_dims), i == 0 ? k : v, slots};
        cache[i] = api->emit(g, "apus.kv_write/1", in, 3, NULL, 0);
    }
    const apus_tensor in[4] = {q, cache[0], cache[1], table};
    const double attrs[7] = {s->heads, s->kv_heads, s->head_dim, s->scale, s->window, s->softcap, c->options.page};
    return api->emit(g, "apus.attention_cached/1", in, 4, attrs, 7);
}

apus_graph *apus_model_graph(apus_model *m, const apus_forward_options *options)
{
    apus_model_graph_context *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->model = m;
    c->options = *options;
    c->next = m->graphs;
    m->graphs = c;
    const apus_graph_hooks hooks = {.context = c,
                                    .stored = hook_stored,
                                    .rows_apart = hook_rows_apart,
                                    .linear = hook_linear,
                                    .embedding = hook_embedding,
                                    .attention = options->mode == APUS_FORWARD_CACHED ? hook_attention : NULL};
    apus_graph *g = apus_graph_new(&hooks);
    if (g != NULL && options->narrow)
        apus_graph_narrow(g);
    if (g != NULL && options->tuned)
        apus_graph_tune(g);
    return g;
}

apus_status apus_model_forward(apus_model *m, apus_graph *g, apus_forward *f, apus_error *err)
{
    const apus_graph_api *api = apus_graph_table();
    const int64_t tokens[1] = {APUS_DIM_TOKENS};
    const apus_model_inputs in = {.size = sizeof in,
                                  .tokens = api->input(g, "tokens", APUS_I32, 1, tokens),
                                  .positions = api->input(g, "positions", APUS_I32, 1, tokens),
                                  .lengths = api->input(g, "lengths", APUS_I32, 1, tokens)};
    memset(f, 0, sizeof *f);
    f->outputs.size = sizeof f->outputs;
    f->outputs.logit_scale = 1.0;
    m->arch_ops.build(m->arch, g, &in, &f->outputs);
    f->hidden = f->outputs.hidden;
    f->head = api->weight(g, &f->outputs.head);
    return apus_graph_status(g, err);
}

static int has_variable(const apus_plan *p, const char *name)
{
    const size_t n = apus_plan_variable_count(p);
    size_t i = 0;
    while (i < n && strcmp(apus_plan_variable_at(p, i, NULL), name) != 0)
        i++;
    return i < n;
}

apus_status apus_model_bind(apus_model *m, apus_plan *p, apus_error *err)
{
    apus_status st = APUS_OK;
    for (size_t i = 0; i < apus_plan_variable_count(p) && st == APUS_OK; i++) {
        const apus_weight *w = apus_model_weight_named(m, apus_plan_variable_at(p, i, NULL));
        if (w != NULL)
            st = apus_plan_bind(p, w->spec.name, w->device, err);
    }
    for (size_t i = 0; i < m->n_weights && st == APUS_OK; i++) {
        char name[512];
        if (m->weights[i].rows == NULL)
            continue;
        (void)snprintf(name, sizeof name, "%s" APUS_GRAPH_ROWS, m->weights[i].spec.name);
        if (has_variable(p, name))
            st = apus_plan_bind(p, name, m->weights[i].rows, err);
    }
    return st;
}

enum { ROWS = 512 }; /* looked up between two times that pages leave: at most so many times what a fault brings in */

apus_status apus_model_run(apus_model *m, apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds,
                           apus_error *err)
{
    const apus_status st = apus_plan_run(p, extents, feeds, n_feeds, err);
    m->rows_read += m->rows_left ? extents[-1 - APUS_DIM_TOKENS] : 0;
    if (m->rows_read >= ROWS) {
        forget(m);
        m->rows_read = 0;
    }
    return st;
}

/* ---------------------------------------------------------------- weight list */

apus_status apus_model_add_weight(apus_model *m, const apus_weight_spec *spec, apus_weight **out)
{
    if (m->n_weights == m->cap_weights) {
        size_t cap = m->cap_weights ? m->cap_weights * 2 : 256;
        apus_weight *grown = realloc(m->weights, cap * sizeof *grown);
        if (grown == NULL)
            return APUS_E_MEMORY;
        m->weights = grown;
        m->cap_weights = cap;
    }
    apus_weight *w = &m->weights[m->n_weights];
    memset(w, 0, sizeof *w);
    w->spec = *spec;
    w->spec.size = sizeof w->spec;
    w->spec.name = strdup(spec->name);
    w->spec.role = strdup(spec->role ? spec->role : "");
    if (w->spec.name == NULL || w->spec.role == NULL) {
        free((void *)(uintptr_t)w->spec.name);
        free((void *)(uintptr_t)w->spec.role);
        return APUS_E_MEMORY;
    }
    m->n_weights++;
    *out = w;
    return APUS_OK;
}

size_t apus_model_weights(const apus_model *m)
{
    return m->n_weights;
}

apus_weight *apus_model_weight(apus_model *m, size_t i)
{
    return &m->weights[i];
}

apus_weight *apus_model_weight_named(apus_model *m, const char *name)
{
    /* Graphs are built a few times per run and ask in order: start where the last search ended. */
    for (size_t k = 0; k < m->n_weights; k++) {
        size_t i = (m->last_found + k) % m->n_weights;
        if (strcmp(m->weights[i].spec.name, name) == 0) {
            m->last_found = i;
            return &m->weights[i];
        }
    }
    return NULL;
}

/* Build once without a tuner to learn which weights there are. */
static apus_status collect_weights(apus_model *m, apus_error *err)
{
    const apus_forward_options plain = {.mode = APUS_FORWARD_PLAIN};
    apus_graph *g = apus_model_graph(m, &plain);
    if (g == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_forward f;
    apus_status st = apus_model_forward(m, g, &f, err);
    for (size_t i = 0; i < apus_graph_weight_count(g) && st == APUS_OK; i++) {
        apus_weight *w;
        st = apus_model_add_weight(m, apus_graph_weight_at(g, i), &w);
    }
    apus_graph_free(g);
    return st;
}

/* ---------------------------------------------------------------- opening */

static apus_status open_text(apus_model *m, const apus_model_options *o, const char *template_file, apus_error *err)
{
    if (o->no_text || (m->format.card.tokenizer == NULL && m->format.card.chat_template == NULL && template_file == NULL))
        return APUS_OK;
    m->text = apus_text_open(&m->format.card, template_file, o->now, err);
    return m->text != NULL ? APUS_OK : APUS_E_INVALID;
}

static apus_status open_from_scratch(apus_model *m, const apus_node *spec, const apus_model_options *o, apus_error *err)
{
    const char *arch = NODE->as_string(NODE->get(spec, "arch"), NULL);
    m->own_config = NODE->copy(NODE->get(spec, "config"));
    if (m->own_config == NULL)
        m->own_config = NODE->make_map();
    m->config = m->own_config;
    m->format.card.size = sizeof m->format.card;
    m->format.card.config = m->config;
    const char *tokenizer = NODE->as_string(NODE->get(spec, "tokenizer"), NULL);
    const apus_node *brought = NODE->kind(NODE->get(spec, "tokenizer")) == APUS_NODE_MAP ? NODE->get(spec, "tokenizer") : o->tokenizer;
    if (tokenizer != NULL) {
        apus_status st = apus_format_open(tokenizer, &m->tokenizer_file, err);
        if (st != APUS_OK)
            return st;
        m->format.card.tokenizer = m->tokenizer_file.card.tokenizer;
        m->format.card.tokenizer_config = m->tokenizer_file.card.tokenizer_config;
        m->format.card.generation_config = NULL;
        m->format.card.chat_template = m->tokenizer_file.card.chat_template;
    } else if (brought != NULL) {
        /* A generated dataset's tokenizer may carry its tokenizer_config and template beside it; neither belongs in tokenizer.json. */
        m->own_tokenizer = NODE->copy(brought);
        m->own_extra = NODE->copy(brought);
        (void)NODE->remove(m->own_tokenizer, "tokenizer_config");
        (void)NODE->remove(m->own_tokenizer, "chat_template");
        m->format.card.tokenizer = m->own_tokenizer;
        m->format.card.tokenizer_config = NODE->get(m->own_extra, "tokenizer_config");
        m->format.card.chat_template = NODE->as_string(NODE->get(m->own_extra, "chat_template"), NULL);
    }
    apus_status st = open_text(m, o, NULL, err);
    if (st == APUS_OK && m->text != NULL && NODE->get(m->config, "vocab_size") == NULL)
        (void)NODE->set(m->own_config, "vocab_size", NODE->make_int(apus_text_vocab(m->text)));
    if (st == APUS_OK)
        st = open_arch(m, arch, err);
    if (st != APUS_OK || m->device == NULL)
        return st;
    st = collect_weights(m, err);
    for (size_t i = 0; i < m->n_weights && st == APUS_OK; i++)
        st = apus_model_init_weight(m, &m->weights[i], o->seed, err);
    return st;
}

static apus_status open_from_file(apus_model *m, const apus_model_options *o, apus_error *err)
{
    apus_status st = apus_format_open(m->path, &m->format, err);
    if (st != APUS_OK)
        return st;
    m->config = m->format.card.config;
    if (m->device == NULL)
        return APUS_OK;
    if (m->config == NULL || m->format.ops.count(m->format.file) == 0) {
        apus_fail(err, APUS_E_INVALID, "%s: there are no weights here with a configuration", m->path);
        return apus_hint(err, APUS_E_INVALID,
                         "a folder of tokenizer files serves `tokenize` and `render` only; a model needs config.json and weights");
    }
    st = open_arch(m, NULL, err);
    if (st == APUS_OK)
        st = collect_weights(m, err);
    if (st == APUS_OK)
        st = load_weights(m, o, err);
    return st;
}

/* {base, adapter}: with the adapter merged. */
static apus_status open_merged(const apus_node *spec, const apus_model_options *options, apus_model **model, apus_error *err)
{
    const char *adapter = NODE->as_string(NODE->get(spec, "adapter"), NULL);
    apus_model *m;
    apus_status st = apus_model_open(NODE->get(spec, "base"), options, &m, err);
    if (st != APUS_OK)
        return st;
    if (adapter != NULL) {
        NODE->release(m->spec);
        m->spec = NODE->copy(spec);
        st = m->device != NULL ? apus_model_merge_adapter(m, adapter, err) : APUS_OK;
    }
    if (st == APUS_OK)
        *model = m;
    else
        apus_model_close(m);
    return st;
}

apus_status apus_model_open(const apus_node *spec, const apus_model_options *options, apus_model **model, apus_error *err)
{
    const char *path = NODE->as_string(spec, NULL), *template_file = options->template_file;
    if (NODE->kind(spec) == APUS_NODE_MAP) {
        if (NODE->get(spec, "base") != NULL)
            return open_merged(spec, options, model, err);
        path = NODE->as_string(NODE->get(spec, "path"), NULL);
        if (template_file == NULL)
            template_file = NODE->as_string(NODE->get(spec, "template"), NULL);
    }
    apus_model *m = calloc(1, sizeof *m);
    if (m == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    m->device = options->device;
    m->spec = NODE->copy(spec);
    m->path = path != NULL ? strdup(path) : NULL;
    apus_status st;
    if (path != NULL) {
        st = open_from_file(m, options, err);
    } else if (NODE->get(spec, "arch") != NULL) {
        st = open_from_scratch(m, spec, options, err);
    } else {
        char where[256];
        st = apus_fail(err, APUS_E_INVALID, "%s: a model is a path, an earlier stage's name, or {arch: …, config: {…}}",
                       NODE->where(spec, where, sizeof where));
    }
    if (st == APUS_OK && m->text == NULL)
        st = open_text(m, options, template_file, err);
    if (st == APUS_OK)
        *model = m;
    else
        apus_model_close(m);
    return st;
}

void apus_model_close(apus_model *m)
{
    if (m == NULL)
        return;
    apus_model_drop_tuner(m);
    for (size_t i = 0; i < m->n_weights; i++) {
        if (m->weights[i].owned)
            apus_device_free(m->device, m->weights[i].device, m->weights[i].bytes);
        free((void *)(uintptr_t)m->weights[i].spec.name);
        free((void *)(uintptr_t)m->weights[i].spec.role);
    }
    free(m->weights);
    apus_device_free(m->device, m->resident, m->resident_bytes);
    while (m->graphs != NULL) {
        apus_model_graph_context *next = m->graphs->next;
        free(m->graphs);
        m->graphs = next;
    }
    apus_text_free(m->text);
    if (m->arch != NULL)
        m->arch_ops.close(m->arch);
    apus_format_close(&m->format);
    apus_format_close(&m->tokenizer_file);
    NODE->release(m->own_config);
    NODE->release(m->own_tokenizer);
    NODE->release(m->own_extra);
    NODE->release(m->spec);
    free(m->path);
    free(m);
}

const apus_model_card *apus_model_get_card(const apus_model *m)
{
    return &m->format.card;
}
const apus_model_facts *apus_model_get_facts(const apus_model *m)
{
    return &m->facts;
}
const apus_text *apus_model_text(const apus_model *m)
{
    return m->text;
}
const apus_node *apus_model_spec(const apus_model *m)
{
    return m->spec;
}
apus_device *apus_model_device(const apus_model *m)
{
    return m->device;
}
