/*
 * core/graph/graph: building: nodes and tensors, shapes checked as they are emitted, equal nodes built once, the first
 * error kept. Knows no op by name but those that the builders of apus.graph/1 stand for.
 */
#include "graph/internal.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- errors and shapes */

apus_tensor apus_graph_fail(apus_graph *g, apus_status status, const apus_error *error)
{
    if (g->status == APUS_OK) {
        g->status = status;
        g->error = *error;
        const size_t n = strlen(g->error.message);
        if (g->near[0] != '\0')
            (void)snprintf(g->error.message + n, sizeof g->error.message - n, " (near %s)", g->near);
    }
    return apus_none();
}

static apus_tensor out_of_memory(apus_graph *g)
{
    apus_error e;
    return apus_graph_fail(g, apus_fail(&e, APUS_E_MEMORY, "out of memory while building a graph"), &e);
}

static APUS_PRINTF(2, 3) apus_tensor failf(apus_graph *g, const char *fmt, ...)
{
    apus_error e = {.hint = ""};
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(e.message, sizeof e.message, fmt, args);
    va_end(args);
    return apus_graph_fail(g, APUS_E_INVALID, &e);
}

int apus_graph_shape_text(const apus_shape *s, char *buffer, size_t capacity)
{
    static const char *const symbols[APUS_N_DIM_SYMBOLS] = {"T", "S", "N", "R", "P"};
    int n = s->dtype != APUS_REAL ? snprintf(buffer, capacity, "%s", apus_dtype_name(s->dtype)) : 0;
    for (int32_t i = 0; i < s->ndim && (size_t)n < capacity; i++) {
        const int64_t d = s->dims[i];
        const char *before = i == 0 ? "[" : ",", *after = i + 1 == s->ndim ? "]" : "";
        if (d < 0 && d >= -APUS_N_DIM_SYMBOLS)
            n += snprintf(buffer + n, capacity - (size_t)n, "%s%s%s", before, symbols[-1 - d], after);
        else
            n += snprintf(buffer + n, capacity - (size_t)n, "%s%lld%s", before, (long long)d, after);
    }
    return n;
}

int apus_shape_equal(const apus_shape *a, const apus_shape *b)
{
    if (a->ndim != b->ndim)
        return 0;
    for (int32_t i = 0; i < a->ndim; i++)
        if (a->dims[i] != b->dims[i])
            return 0;
    return 1;
}

int apus_shape_single(const apus_shape *s)
{
    for (int32_t i = 0; i < s->ndim; i++)
        if (s->dims[i] != 1)
            return 0;
    return 1;
}

/* ---------------------------------------------------------------- nodes */

static int32_t add_node(apus_graph *g, const apus_graph_node *node, const apus_shape *shapes)
{
    void *p = apus_grow(g->nodes, &g->cap_nodes, g->n_nodes, sizeof *g->nodes);
    if (p == NULL) {
        (void)out_of_memory(g);
        return -1;
    }
    g->nodes = p;
    for (uint32_t k = 0; k < node->n_out; k++) {
        p = apus_grow(g->tensors, &g->cap_tensors, g->n_tensors + k, sizeof *g->tensors);
        if (p == NULL) {
            (void)out_of_memory(g);
            return -1;
        }
        g->tensors = p;
    }
    apus_graph_node *n = &g->nodes[g->n_nodes];
    *n = *node;
    n->first = (int32_t)g->n_tensors;
    n->backward = g->backward;
    for (uint32_t k = 0; k < node->n_out; k++)
        g->tensors[g->n_tensors++] = (apus_graph_tensor){.node = (int32_t)g->n_nodes, .shape = shapes[k]};
    return (int32_t)g->n_nodes++;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

static uint64_t node_hash(const apus_graph_node *n)
{
    uint64_t h = mix(n->kind == APUS_NODE_OP ? ((const apus_op_entry *)n->op)->index + 1u : 0u, n->n_in);
    for (uint32_t i = 0; i < n->n_in; i++)
        h = mix(h, (uint64_t)n->in[i]);
    for (int i = 0; i < APUS_MAX_ATTRS; i++) {
        uint64_t bits;
        memcpy(&bits, &n->attrs[i], sizeof bits);
        h = mix(h, bits);
    }
    return h;
}

static int node_same(const apus_graph_node *a, const apus_graph_node *b)
{
    return a->kind == b->kind && a->op == b->op && a->n_in == b->n_in && memcmp(a->in, b->in, a->n_in * sizeof a->in[0]) == 0 &&
           memcmp((const char *)a->attrs, (const char *)b->attrs, sizeof a->attrs) == 0 /* as bits: -0 is not 0 */;
}

/* The place of an equal node, or of the empty slot where it belongs. NULL: out of memory. */
static int32_t *seen_slot(apus_graph *g, const apus_graph_node *n)
{
    if (g->cap_seen < 2 * (g->n_nodes + 1)) {
        const size_t wanted = g->cap_seen != 0 ? g->cap_seen * 2 : 1024;
        int32_t *seen = malloc(wanted * sizeof *seen);
        if (seen == NULL)
            return NULL;
        memset(seen, 0xff, wanted * sizeof *seen);
        for (size_t k = 0; k < g->cap_seen; k++) {
            if (g->seen[k] < 0)
                continue;
            size_t i = node_hash(&g->nodes[g->seen[k]]) & (wanted - 1);
            while (seen[i] >= 0)
                i = (i + 1) & (wanted - 1);
            seen[i] = g->seen[k];
        }
        free(g->seen);
        g->seen = seen;
        g->cap_seen = wanted;
    }
    size_t i = node_hash(n) & (g->cap_seen - 1);
    while (g->seen[i] >= 0 && !node_same(&g->nodes[g->seen[i]], n))
        i = (i + 1) & (g->cap_seen - 1);
    return &g->seen[i];
}

/* "apus.linear/1([T,576], Q4_0[64,512])" */
static void call_text(const apus_graph *g, const apus_graph_node *n, char *buffer, size_t capacity)
{
    size_t at = (size_t)snprintf(buffer, capacity, "%s(", n->op->name);
    for (uint32_t i = 0; i < n->n_in && at < capacity; i++) {
        char shape[96];
        (void)apus_graph_shape_text(&g->tensors[n->in[i]].shape, shape, sizeof shape);
        at += (size_t)snprintf(buffer + at, capacity - at, "%s%s", i != 0 ? ", " : "", shape);
    }
    if (at < capacity)
        (void)snprintf(buffer + at, capacity - at, ")");
}

static apus_tensor emit(apus_graph *g, const char *name, const apus_tensor *in, uint32_t n_in, const double *attrs, uint32_t n_attrs)
{
    if (g->status != APUS_OK)
        return apus_none();
    const apus_op *op = apus_op_find(name);
    if (op == NULL)
        return failf(g, "no op named '%s'", name != NULL ? name : "");
    const apus_op_entry *e = (const apus_op_entry *)op;
    if (n_in < op->min_inputs || n_in > op->max_inputs)
        return failf(g, "%s: takes %u to %u inputs, not %u", name, op->min_inputs, op->max_inputs, n_in);
    if (n_attrs > e->n_attrs)
        return failf(g, "%s: takes %u attributes, not %u", name, e->n_attrs, n_attrs);
    if (n_attrs < APUS_MAX_ATTRS && (e->required >> n_attrs) != 0)
        return failf(g, "%s: attributes '%s' need values", name, op->attrs);
    apus_graph_node node = {.kind = APUS_NODE_OP, .op = op, .n_in = n_in, .n_out = op->n_outputs};
    apus_shape shapes[APUS_MAX_INPUTS], out[APUS_MAX_OUTPUTS];
    memset(out, 0, sizeof out);
    for (uint32_t i = 0; i < n_in; i++) {
        if (in[i].id < 0 || (size_t)in[i].id >= g->n_tensors)
            return failf(g, "%s: input %u is no tensor of this graph", name, i);
        node.in[i] = in[i].id;
        shapes[i] = g->tensors[in[i].id].shape;
    }
    for (uint32_t k = 0; k < e->n_attrs; k++)
        node.attrs[k] = k < n_attrs ? attrs[k] + 0.0 : e->defaults[k];
    int32_t *slot = NULL;
    if ((op->flags & APUS_OP_IN_PLACE) == 0) {
        slot = seen_slot(g, &node);
        if (slot == NULL)
            return out_of_memory(g);
        if (*slot >= 0)
            return (apus_tensor){g->nodes[*slot].first};
    }
    apus_error why = {.message = "", .hint = ""};
    const apus_status st = op->shapes(shapes, n_in, node.attrs, out, &why);
    if (st != APUS_OK) {
        apus_error e2 = {.hint = ""};
        char call[512];
        call_text(g, &node, call, sizeof call);
        (void)snprintf(e2.message, sizeof e2.message, "%s: %.900s", call, why.message);
        memcpy(e2.hint, why.hint, sizeof e2.hint);
        return apus_graph_fail(g, st, &e2);
    }
    const int32_t k = add_node(g, &node, out);
    if (k < 0)
        return apus_none();
    if (slot != NULL)
        *slot = k;
    return (apus_tensor){g->nodes[k].first};
}

static apus_tensor output(apus_graph *g, apus_tensor t, uint32_t k)
{
    if (g->status != APUS_OK)
        return apus_none();
    if (t.id < 0 || (size_t)t.id >= g->n_tensors)
        return failf(g, "output: no tensor of this graph");
    const apus_graph_node *n = &g->nodes[g->tensors[t.id].node];
    if (n->first != t.id || k >= n->n_out)
        return failf(g, "output %u of %s: no such output", k, n->op != NULL ? n->op->name : "a leaf");
    return (apus_tensor){t.id + (int32_t)k};
}

/* ---------------------------------------------------------------- leaves */

static apus_status check_dims(apus_graph *g, const char *what, uint32_t ndim, const int64_t *dims, int symbols)
{
    if (ndim == 0 || ndim > APUS_MAX_DIMS) {
        (void)failf(g, "%s: 1 to %d dimensions, not %u", what, APUS_MAX_DIMS, ndim);
        return APUS_E_INVALID;
    }
    for (uint32_t i = 0; i < ndim; i++) {
        if (dims[i] < (symbols ? -APUS_N_DIM_SYMBOLS : 0)) {
            (void)failf(g, "%s: dimension %u is %lld", what, i, (long long)dims[i]);
            return APUS_E_INVALID;
        }
    }
    return APUS_OK;
}

static apus_tensor constant(apus_graph *g, const double *values, uint32_t ndim, const int64_t *dims)
{
    static const int64_t one[1] = {1};
    if (g->status != APUS_OK)
        return apus_none();
    if (ndim == 0) {
        ndim = 1;
        dims = one;
    }
    if (check_dims(g, "a constant", ndim, dims, 0) != APUS_OK)
        return apus_none();
    apus_shape shape = {.dtype = APUS_REAL, .ndim = (int32_t)ndim};
    size_t n = 1;
    for (uint32_t i = 0; i < ndim; i++) {
        shape.dims[i] = dims[i];
        if (dims[i] != 0 && n > (size_t)1 << 32)
            return failf(g, "a constant of this size: use a variable");
        n *= (size_t)dims[i];
    }
    apus_graph_node node = {.kind = APUS_NODE_CONSTANT, .n_out = 1};
    int32_t *slot = NULL;
    if (n == 1 && ndim == 1) { /* equal scalars are one */
        node.attrs[0] = values[0];
        slot = seen_slot(g, &node);
        if (slot == NULL)
            return out_of_memory(g);
        if (*slot >= 0)
            return (apus_tensor){g->nodes[*slot].first};
    }
    node.values = malloc(n != 0 ? n * sizeof *node.values : 1);
    if (node.values == NULL)
        return out_of_memory(g);
    if (n != 0)
        memcpy(node.values, values, n * sizeof *node.values);
    const int32_t k = add_node(g, &node, &shape);
    if (k < 0) {
        free(node.values);
        return apus_none();
    }
    if (slot != NULL)
        *slot = k;
    return (apus_tensor){g->nodes[k].first};
}

/* An input or variable by name: the one there is, or a new one. */
static apus_tensor named(apus_graph *g, int32_t kind, const char *name, apus_dtype dtype, uint32_t ndim, const int64_t *dims)
{
    const char *what = kind == APUS_NODE_INPUT ? "input" : "variable";
    if (g->status != APUS_OK)
        return apus_none();
    if (name == NULL || name[0] == '\0')
        return failf(g, "an %s needs a name", what);
    if (check_dims(g, name, ndim, dims, kind == APUS_NODE_INPUT) != APUS_OK)
        return apus_none();
    apus_shape shape = {.dtype = dtype, .ndim = (int32_t)ndim};
    memcpy(shape.dims, dims, ndim * sizeof dims[0]);
    if (dtype < 0 || strcmp(apus_dtype_name(dtype), "unknown") == 0)
        return failf(g, "%s %s: unknown element type %d", what, name, (int)dtype);
    if (dtype != APUS_REAL && dims[ndim - 1] > 0 && apus_dtype_row_bytes(dtype, dims[ndim - 1]) == 0)
        return failf(g, "%s %s: rows of %lld elements do not divide into %s blocks", what, name, (long long)dims[ndim - 1], apus_dtype_name(dtype));
    for (size_t i = 0; i < g->n_nodes; i++) {
        const apus_graph_node *n = &g->nodes[i];
        if (n->kind != kind || strcmp(n->name, name) != 0)
            continue;
        const apus_shape *old = &g->tensors[n->first].shape;
        if (old->dtype != dtype || !apus_shape_equal(old, &shape)) {
            char a[96], b[96];
            (void)apus_graph_shape_text(old, a, sizeof a);
            (void)apus_graph_shape_text(&shape, b, sizeof b);
            return failf(g, "%s %s is declared as %s and as %s", what, name, a, b);
        }
        return (apus_tensor){n->first};
    }
    apus_graph_node node = {.kind = kind, .n_out = 1, .name = strdup(name)};
    if (node.name == NULL)
        return out_of_memory(g);
    const int32_t k = add_node(g, &node, &shape);
    if (k < 0) {
        free(node.name);
        return apus_none();
    }
    return (apus_tensor){g->nodes[k].first};
}

static apus_tensor input(apus_graph *g, const char *name, apus_dtype dtype, uint32_t ndim, const int64_t *dims)
{
    return named(g, APUS_NODE_INPUT, name, dtype, ndim, dims);
}

apus_tensor apus_graph_variable(apus_graph *g, const char *name, apus_dtype dtype, uint32_t ndim, const int64_t *dims)
{
    return named(g, APUS_NODE_VARIABLE, name, dtype, ndim, dims);
}

static apus_tensor weight(apus_graph *g, const apus_weight_spec *w)
{
    if (g->status != APUS_OK)
        return apus_none();
    if (w == NULL || w->name == NULL)
        return failf(g, "a weight needs a name");
    (void)snprintf(g->near, sizeof g->near, "%s", w->name);
    if (w->ndim < 1 || w->ndim > 2)
        return failf(g, "weight %s: 1 or 2 dimensions, not %d", w->name, (int)w->ndim);
    for (size_t i = 0; i < g->n_weights; i++) {
        const apus_graph_weight *old = &g->weights[i];
        if (strcmp(old->spec.name, w->name) != 0)
            continue;
        if (old->spec.ndim != w->ndim || memcmp(old->spec.dims, w->dims, (size_t)w->ndim * sizeof w->dims[0]) != 0)
            return failf(g, "weight %s is declared with two shapes", w->name);
        return (apus_tensor){old->tensor};
    }
    void *p = apus_grow(g->weights, &g->cap_weights, g->n_weights, sizeof *g->weights);
    if (p == NULL)
        return out_of_memory(g);
    g->weights = p;
    const apus_dtype dtype = g->hooks.stored != NULL ? g->hooks.stored(g->hooks.context, w) : APUS_REAL;
    const apus_tensor t = named(g, APUS_NODE_VARIABLE, w->name, dtype, (uint32_t)w->ndim, w->dims);
    if (apus_is_none(t))
        return t;
    apus_graph_weight *e = &g->weights[g->n_weights];
    e->spec = *w;
    e->spec.name = strdup(w->name);
    e->spec.role = strdup(w->role != NULL ? w->role : "");
    e->tensor = t.id;
    g->n_weights++;
    if (e->spec.name == NULL || e->spec.role == NULL)
        return out_of_memory(g);
    return t;
}

/* ---------------------------------------------------------------- the rewrite chain */

static apus_tensor linear(apus_graph *g, apus_tensor x, const apus_weight_spec *w, const apus_weight_spec *bias)
{
    apus_tensor in[3] = {x, weight(g, w), apus_none()};
    if (bias != NULL)
        in[2] = weight(g, bias);
    const apus_tensor y = emit(g, "apus.linear/1", in, bias != NULL ? 3 : 2, NULL, 0);
    if (g->hooks.linear == NULL || g->status != APUS_OK)
        return y;
    return g->hooks.linear(g->hooks.context, g, x, w, y);
}

static apus_tensor embedding(apus_graph *g, apus_tensor ids, const apus_weight_spec *w)
{
    apus_tensor in[2] = {weight(g, w), ids};
    if (g->status == APUS_OK && g->hooks.rows_apart != NULL && g->hooks.rows_apart(g->hooks.context, w)) {
        char name[512];
        (void)snprintf(name, sizeof name, "%s" APUS_GRAPH_ROWS, w->name);
        in[0] = named(g, APUS_NODE_VARIABLE, name, APUS_REAL, (uint32_t)w->ndim, w->dims);
    }
    const apus_tensor y = emit(g, "apus.embedding/1", in, 2, NULL, 0);
    if (g->hooks.embedding == NULL || g->status != APUS_OK)
        return y;
    return g->hooks.embedding(g->hooks.context, g, ids, w, y);
}

static apus_tensor attention(apus_graph *g, apus_tensor q, apus_tensor k, apus_tensor v, const apus_attention_spec *s)
{
    if (g->status != APUS_OK)
        return apus_none();
    (void)snprintf(g->near, sizeof g->near, "attention of layer %d", (int)s->layer);
    if (g->hooks.attention != NULL)
        return g->hooks.attention(g->hooks.context, g, q, k, v, s);
    static const int64_t dims[2] = {APUS_DIM_SEGMENTS, 4};
    const apus_tensor in[4] = {q, k, v, input(g, "segments", APUS_I32, 2, dims)};
    const double attrs[6] = {s->heads, s->kv_heads, s->head_dim, s->scale, s->window, s->softcap};
    return emit(g, "apus.attention/1", in, 4, attrs, 6);
}

static apus_tensor point(apus_graph *g, const char *name, int32_t layer, apus_tensor t)
{
    if (g->status != APUS_OK)
        return apus_none();
    (void)snprintf(g->near, sizeof g->near, "point %s %d", name, (int)layer);
    if (g->hooks.point != NULL)
        t = g->hooks.point(g->hooks.context, g, name, layer, t);
    if (g->status != APUS_OK)
        return apus_none();
    if (t.id < 0 || (size_t)t.id >= g->n_tensors)
        return failf(g, "point %s: no tensor of this graph", name);
    if (strcmp(name, "block") == 0)
        g->tensors[t.id].block_point = 1;
    return t;
}

static uint32_t shape(apus_graph *g, apus_tensor t, int64_t dims[APUS_MAX_DIMS])
{
    if (g->status != APUS_OK)
        return 0;
    if (t.id < 0 || (size_t)t.id >= g->n_tensors) {
        (void)failf(g, "shape: no tensor of this graph");
        return 0;
    }
    const apus_shape *s = &g->tensors[t.id].shape;
    for (int32_t i = 0; i < s->ndim; i++)
        dims[i] = s->dims[i];
    return (uint32_t)s->ndim;
}

static void fail(apus_graph *g, const char *message)
{
    (void)failf(g, "%s", message);
}

static const apus_graph_api api = {
    .size = sizeof api,
    .emit = emit,
    .output = output,
    .constant = constant,
    .input = input,
    .weight = weight,
    .linear = linear,
    .embedding = embedding,
    .attention = attention,
    .point = point,
    .shape = shape,
    .fail = fail,
};

const apus_graph_api *apus_graph_table(void)
{
    return &api;
}

/* ---------------------------------------------------------------- life, effects */

apus_graph *apus_graph_new(const apus_graph_hooks *hooks)
{
    apus_graph *g = calloc(1, sizeof *g);
    if (g == NULL)
        return NULL;
    if (hooks != NULL)
        g->hooks = *hooks;
    apus_graph_functions = &api; /* core's own gradients are built with the same inline functions as a plugin's */
    apus_error err;
    const apus_status st = apus_ops_builtin(&err);
    if (st != APUS_OK)
        (void)apus_graph_fail(g, st, &err);
    return g;
}

void apus_graph_free(apus_graph *g)
{
    if (g == NULL)
        return;
    for (size_t i = 0; i < g->n_nodes; i++) {
        free(g->nodes[i].name);
        free(g->nodes[i].values);
    }
    for (size_t i = 0; i < g->n_weights; i++) {
        free((char *)(uintptr_t)g->weights[i].spec.name);
        free((char *)(uintptr_t)g->weights[i].spec.role);
    }
    free(g->nodes);
    free(g->tensors);
    free(g->weights);
    free(g->effects);
    free(g->seen);
    free(g);
}

apus_status apus_graph_status(const apus_graph *g, apus_error *err)
{
    if (g->status != APUS_OK && err != NULL)
        *err = g->error;
    return g->status;
}

void apus_graph_narrow(apus_graph *g)
{
    g->narrow = 1;
}

void apus_graph_tune(apus_graph *g)
{
    g->tuned = 1;
}

size_t apus_graph_weight_count(const apus_graph *g)
{
    return g->n_weights;
}

const apus_weight_spec *apus_graph_weight_at(const apus_graph *g, size_t i)
{
    return i < g->n_weights ? &g->weights[i].spec : NULL;
}

size_t apus_graph_readers(const apus_graph *g, const char *weight, const apus_op **ops, size_t most)
{
    int32_t tensor = -1;
    size_t n = 0;
    for (size_t i = 0; i < g->n_weights; i++)
        if (strcmp(g->weights[i].spec.name, weight) == 0)
            tensor = g->weights[i].tensor;
    for (size_t i = 0; i < g->n_nodes && tensor >= 0; i++) {
        const apus_graph_node *node = &g->nodes[i];
        for (uint32_t k = 0; node->kind == APUS_NODE_OP && k < node->n_in; k++)
            if (node->in[k] == tensor && n++ < most)
                ops[n - 1] = node->op;
    }
    return n;
}

apus_tensor apus_graph_weight_tensor(apus_graph *g, size_t i)
{
    return i < g->n_weights ? (apus_tensor){g->weights[i].tensor} : apus_none();
}

static void effect(apus_graph *g, int accumulate, apus_tensor variable, apus_tensor value)
{
    const char *what = accumulate ? "accumulate" : "assign";
    if (g->status != APUS_OK)
        return;
    if (variable.id < 0 || (size_t)variable.id >= g->n_tensors || value.id < 0 || (size_t)value.id >= g->n_tensors) {
        (void)failf(g, "%s: no tensor of this graph", what);
        return;
    }
    const apus_graph_node *n = &g->nodes[g->tensors[variable.id].node];
    const apus_shape *a = &g->tensors[variable.id].shape, *b = &g->tensors[value.id].shape;
    if (n->kind != APUS_NODE_VARIABLE) {
        (void)failf(g, "%s: the target is not a variable", what);
        return;
    }
    if (a->dtype != APUS_REAL || b->dtype != APUS_REAL || !apus_shape_equal(a, b)) {
        char ta[96], tb[96];
        (void)apus_graph_shape_text(a, ta, sizeof ta);
        (void)apus_graph_shape_text(b, tb, sizeof tb);
        (void)failf(g, "%s: variable %s is %s, the value is %s", what, n->name, ta, tb);
        return;
    }
    void *p = apus_grow(g->effects, &g->cap_effects, g->n_effects, sizeof *g->effects);
    if (p == NULL) {
        (void)out_of_memory(g);
        return;
    }
    g->effects = p;
    g->effects[g->n_effects++] = (apus_graph_effect){accumulate, variable.id, value.id};
}

void apus_graph_accumulate(apus_graph *g, apus_tensor variable, apus_tensor value)
{
    effect(g, 1, variable, value);
}

void apus_graph_assign(apus_graph *g, apus_tensor variable, apus_tensor value)
{
    effect(g, 0, variable, value);
}
