/*
 * core/graph/plan: from a graph to an order of kernels: what is needed, which kernel computes it. Owns the plan's life; the other
 * passes are named in plan.h.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

void *apus_list_add(void **at, size_t *n, size_t *cap, size_t item)
{
    void *p = apus_grow(*at, cap, *n, item);
    if (p == NULL)
        return NULL;
    *at = p;
    char *q = (char *)p + *n * item;
    memset(q, 0, item);
    (*n)++;
    return q;
}

static apus_status out_of_memory(apus_error *err)
{
    return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
}

/* ---------------------------------------------------------------- parts */

int32_t apus_plan_add_tensor(apus_plan *p, const apus_shape *shape)
{
    apus_plan_tensor *t = APUS_LIST_ADD(p->tensors);
    if (t == NULL)
        return -1;
    t->shape = *shape;
    if (t->shape.dtype == APUS_REAL)
        t->shape.dtype = p->device->real;
    t->node = t->variable = t->place = t->slot = t->step = t->last = -1;
    t->elements = 1;
    for (int32_t i = 0; i < shape->ndim; i++) {
        const int64_t d = shape->dims[i] >= 0 ? shape->dims[i] : p->capacity[-1 - shape->dims[i]];
        if (d != 0 && t->elements > ((int64_t)1 << 56) / d)
            t->elements = (int64_t)1 << 56;
        else
            t->elements *= d;
    }
    return (int32_t)p->tensors.n - 1;
}

int32_t apus_plan_add_node(apus_plan *p, const apus_plan_node *node)
{
    apus_plan_node *n = APUS_LIST_ADD(p->nodes);
    if (n == NULL)
        return -1;
    *n = *node;
    n->step = -1;
    for (uint32_t k = 0; k < n->n_out; k++)
        p->tensors.at[n->out[k]].node = (int32_t)p->nodes.n - 1;
    return (int32_t)p->nodes.n - 1;
}

int32_t apus_plan_make(apus_plan *p, const char *op, const int32_t *in, uint32_t n_in, const double *attrs, int32_t like, apus_error *err)
{
    apus_plan_node n = {.op = apus_op_find(op), .n_in = n_in, .n_out = 1};
    n.kernel = apus_device_choose(p->device, n.op, NULL, NULL, APUS_REAL);
    if (n.kernel == NULL) {
        (void)apus_fail(err, APUS_E_UNSUPPORTED, "backend %s has no kernel for %s", p->device->name, op);
        return -1;
    }
    for (uint32_t i = 0; i < n_in; i++)
        n.in[i] = in[i];
    if (attrs != NULL)
        memcpy(n.attrs, attrs, ((const apus_op_entry *)n.op)->n_attrs * sizeof attrs[0]);
    const apus_shape shape = p->tensors.at[like].shape;
    n.out[0] = apus_plan_add_tensor(p, &shape);
    n.backward = 1;
    const int32_t k = n.out[0] < 0 ? -1 : apus_plan_add_node(p, &n);
    if (k < 0)
        (void)out_of_memory(err);
    return k;
}

size_t apus_plan_bytes(const apus_plan_tensor *t)
{
    const int64_t row = t->shape.dims[t->shape.ndim - 1];
    if (row <= 0 || apus_dtype_size(t->shape.dtype) != 0)
        return (size_t)t->elements * apus_dtype_size(t->shape.dtype);
    return (size_t)(t->elements / row) * apus_dtype_row_bytes(t->shape.dtype, row);
}

apus_kernel_call apus_plan_capacity(const apus_plan *p, const apus_plan_node *n, apus_view *views)
{
    for (uint32_t i = 0; i < n->n_in + n->n_out; i++) {
        const apus_shape *s = &p->tensors.at[i < n->n_in ? n->in[i] : n->out[i - n->n_in]].shape;
        views[i] = (apus_view){.dtype = s->dtype, .ndim = s->ndim};
        for (int32_t d = 0; d < s->ndim; d++)
            views[i].dims[d] = s->dims[d] >= 0 ? s->dims[d] : p->capacity[-1 - s->dims[d]];
    }
    return apus_plan_call(p, n, views, NULL);
}

uint32_t apus_plan_attrs(const apus_plan_node *n)
{
    const apus_op_entry *op = (const apus_op_entry *)n->op, *then = (const apus_op_entry *)n->kernel->then;
    return op->n_attrs + (then != NULL ? then->n_attrs : 0);
}

int apus_plan_is_elementwise(const apus_plan_node *n)
{
    return (n->op->flags & APUS_OP_ELEMENTWISE) != 0 && n->kernel->then == NULL;
}

int apus_plan_is_twice(const apus_plan_node *n)
{
    return (n->kernel->kernel.flags & APUS_KERNEL_TWICE) != 0;
}

int apus_plan_reads(const apus_plan_node *n, uint32_t k)
{
    return k >= 32 || (n->shape_only >> k & 1) == 0;
}

void apus_plan_prune(apus_plan *p)
{
    for (size_t i = 0; i < p->tensors.n; i++)
        p->tensors.at[i].used = p->tensors.at[i].keep;
    for (size_t i = 0; i < p->effects.n; i++)
        p->tensors.at[p->effects.at[i].value].used++;
    for (size_t i = p->order.n; i-- > 0;) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        int live = 0;
        for (uint32_t k = 0; k < n->n_out; k++)
            live |= p->tensors.at[n->out[k]].used != 0 || p->tensors.at[n->out[k]].variable >= 0;
        n->dead |= !live;
        for (uint32_t k = 0; k < n->n_in && !n->dead; k++)
            if (apus_plan_reads(n, k))
                p->tensors.at[n->in[k]].used++;
    }
    size_t kept = 0;
    for (size_t i = 0; i < p->order.n; i++)
        if (!p->nodes.at[p->order.at[i]].dead)
            p->order.at[kept++] = p->order.at[i];
    p->order.n = kept;
}

/* ---------------------------------------------------------------- collect */

typedef struct collector {
    apus_plan *p;
    apus_graph *g;
    int32_t *needed;  /* by graph node: 1 needed, 2 placed */
    int32_t *prio;    /* order key: a decomposition's nodes stand where the original stood */
    int32_t *remap;   /* graph tensor -> the tensor that replaces it */
    int32_t *planned; /* graph tensor -> plan tensor; -1 */
    const apus_kernel_entry **kernel;
    size_t cap_nodes, cap_tensors;
    apus_error *err;
} collector;

/* Room for nodes that decompositions added. */
static int collector_room(collector *c)
{
    const apus_graph *g = c->g;
    if (c->cap_nodes < g->n_nodes) {
        const size_t wanted = g->n_nodes * 2;
        int32_t *needed = realloc(c->needed, wanted * sizeof *needed);
        c->needed = needed != NULL ? needed : c->needed;
        int32_t *prio = realloc(c->prio, wanted * sizeof *prio);
        c->prio = prio != NULL ? prio : c->prio;
        const apus_kernel_entry **kernel = realloc(c->kernel, wanted * sizeof *kernel);
        c->kernel = kernel != NULL ? kernel : c->kernel;
        if (needed == NULL || prio == NULL || kernel == NULL)
            return 0;
        for (size_t i = c->cap_nodes; i < wanted; i++) {
            needed[i] = 0;
            prio[i] = (int32_t)i;
            kernel[i] = NULL;
        }
        c->cap_nodes = wanted;
    }
    if (c->cap_tensors < g->n_tensors) {
        const size_t wanted = g->n_tensors * 2;
        int32_t *remap = realloc(c->remap, wanted * sizeof *remap);
        c->remap = remap != NULL ? remap : c->remap;
        int32_t *planned = realloc(c->planned, wanted * sizeof *planned);
        c->planned = planned != NULL ? planned : c->planned;
        if (remap == NULL || planned == NULL)
            return 0;
        for (size_t i = c->cap_tensors; i < wanted; i++) {
            remap[i] = (int32_t)i;
            planned[i] = -1;
        }
        c->cap_tensors = wanted;
    }
    return 1;
}

static int32_t resolve(const collector *c, int32_t t)
{
    while (c->remap[t] != t)
        t = c->remap[t];
    return t;
}

/* Encoding of the node's weight operand; APUS_REAL when all its numbers are plain. */
static apus_dtype encoding_of(const collector *c, const apus_graph_node *n)
{
    for (uint32_t i = 0; i < n->n_in; i++) {
        const apus_dtype t = c->g->tensors[n->in[i]].shape.dtype;
        const int number = t != APUS_REAL && t != APUS_I32 && t != APUS_I64 && t != APUS_U8;
        if (number && t != c->p->device->real && (n->op->shape_only >> i & 1) == 0)
            return t;
    }
    return APUS_REAL;
}

static apus_status decompose(collector *c, int32_t k)
{
    apus_graph *g = c->g;
    const apus_graph_node n = g->nodes[k];
    apus_tensor in[APUS_MAX_INPUTS], out[APUS_MAX_OUTPUTS];
    for (uint32_t i = 0; i < n.n_in; i++)
        in[i] = (apus_tensor){n.in[i]};
    for (uint32_t i = 0; i < APUS_MAX_OUTPUTS; i++)
        out[i] = apus_none();
    const int outer = g->backward;
    const size_t before = g->n_nodes;
    g->backward = n.backward;
    n.op->decompose(g, in, n.n_in, n.attrs, out);
    g->backward = outer;
    apus_status st = apus_graph_status(g, c->err);
    if (st != APUS_OK)
        return st;
    if (!collector_room(c))
        return out_of_memory(c->err);
    for (size_t i = before; i < g->n_nodes; i++)
        c->prio[i] = c->prio[k];
    for (uint32_t i = 0; i < n.n_out; i++) {
        if (out[i].id < 0 || resolve(c, out[i].id) == n.first + (int32_t)i ||
            !apus_shape_equal(&g->tensors[out[i].id].shape, &g->tensors[n.first + (int32_t)i].shape))
            return apus_fail(c->err, APUS_E_INTERNAL, "%s: its decomposition does not give output %u", n.op->name, i);
        c->remap[n.first + (int32_t)i] = out[i].id;
        if (g->tensors[n.first + (int32_t)i].block_point)
            g->tensors[out[i].id].block_point = 1;
    }
    return APUS_OK;
}

/* Mark what tensor t needs; decompose what has no kernel. An explicit stack: graphs are deep. */
static apus_status need(collector *c, int32_t root)
{
    APUS_LIST(int32_t) stack = {NULL, 0, 0};
    apus_status st = APUS_OK;
    int32_t *first = APUS_LIST_ADD(stack);
    if (first == NULL)
        return out_of_memory(c->err);
    *first = root;
    while (stack.n > 0 && st == APUS_OK) {
        const int32_t t = resolve(c, stack.at[--stack.n]);
        const int32_t k = c->g->tensors[t].node;
        const apus_graph_node *n = &c->g->nodes[k];
        if (c->needed[k])
            continue;
        c->needed[k] = 1;
        if (n->kind == APUS_NODE_OP) {
            const apus_dtype encoding = encoding_of(c, n);
            c->kernel[k] = apus_device_choose(c->p->device, n->op, NULL, NULL, encoding);
            if (c->kernel[k] == NULL && n->op->decompose != NULL) {
                c->needed[k] = 0;
                st = decompose(c, k);
                int32_t *again = st == APUS_OK ? APUS_LIST_ADD(stack) : NULL;
                if (again != NULL)
                    *again = t;
                else if (st == APUS_OK)
                    st = out_of_memory(c->err);
                continue;
            }
            if (c->kernel[k] == NULL) {
                st = encoding == APUS_REAL ? apus_fail(c->err, APUS_E_UNSUPPORTED, "backend %s has no kernel for %s", c->p->device->name, n->op->name)
                                           : apus_fail(c->err, APUS_E_UNSUPPORTED, "backend %s has no kernel for %s with %s weights",
                                                       c->p->device->name, n->op->name, apus_dtype_name(encoding));
                continue;
            }
        }
        for (uint32_t i = 0; i < n->n_in && st == APUS_OK; i++) {
            int32_t *next = APUS_LIST_ADD(stack);
            if (next == NULL)
                st = out_of_memory(c->err);
            else
                *next = n->in[i];
        }
    }
    free(stack.at);
    return st;
}

static apus_status place_leaf(collector *c, const apus_graph_node *n, int32_t tensor)
{
    apus_plan *p = c->p;
    apus_plan_tensor *t = &p->tensors.at[tensor];
    t->leaf = n->kind;
    apus_plan_leaf *l = n->kind == APUS_NODE_INPUT      ? APUS_LIST_ADD(p->inputs)
                        : n->kind == APUS_NODE_VARIABLE ? APUS_LIST_ADD(p->variables)
                                                        : APUS_LIST_ADD(p->constants);
    if (l == NULL)
        return out_of_memory(c->err);
    l->tensor = tensor;
    if (n->kind == APUS_NODE_INPUT) {
        t->leaf_index = (int32_t)p->inputs.n - 1;
    } else if (n->kind == APUS_NODE_VARIABLE) {
        t->leaf_index = t->variable = (int32_t)p->variables.n - 1;
    } else {
        t->leaf_index = (int32_t)p->constants.n - 1;
        l->values = malloc((size_t)(t->elements > 0 ? t->elements : 1) * sizeof *l->values);
        if (l->values == NULL)
            return out_of_memory(c->err);
        memcpy(l->values, n->values, (size_t)t->elements * sizeof *l->values);
    }
    if (n->name != NULL) {
        l->name = strdup(n->name);
        if (l->name == NULL)
            return out_of_memory(c->err);
    }
    return APUS_OK;
}

/* Place node k after what it needs. Only a decomposition's nodes can be out of order, so this never goes deep. */
static apus_status place(collector *c, int32_t k)
{
    apus_plan *p = c->p;
    const apus_graph_node *n = &c->g->nodes[k];
    if (c->needed[k] != 1)
        return APUS_OK;
    c->needed[k] = 2;
    for (uint32_t i = 0; i < n->n_in; i++) {
        const apus_status st = place(c, c->g->tensors[resolve(c, n->in[i])].node);
        if (st != APUS_OK)
            return st;
    }
    apus_plan_node pn = {.op = n->op, .kernel = c->kernel[k], .n_in = n->n_in, .n_out = n->n_out, .backward = n->backward};
    for (uint32_t i = 0; i < n->n_out; i++) {
        const apus_graph_tensor *gt = &c->g->tensors[n->first + (int32_t)i];
        pn.out[i] = c->planned[n->first + (int32_t)i] = apus_plan_add_tensor(p, &gt->shape);
        if (pn.out[i] < 0)
            return out_of_memory(c->err);
        p->tensors.at[pn.out[i]].block_point = gt->block_point;
    }
    if (n->kind != APUS_NODE_OP)
        return place_leaf(c, n, pn.out[0]);
    for (uint32_t i = 0; i < n->n_in; i++)
        pn.in[i] = c->planned[resolve(c, n->in[i])];
    memcpy(pn.attrs, n->attrs, sizeof pn.attrs);
    pn.shape_only = n->op->shape_only;
    if ((n->op->flags & APUS_OP_IN_PLACE) != 0) {
        const int32_t v = p->tensors.at[pn.in[0]].variable;
        if (v < 0)
            return apus_fail(c->err, APUS_E_INVALID, "%s: changes its first input, which must be a variable", n->op->name);
        p->tensors.at[pn.out[0]].variable = v;
    }
    const int32_t id = apus_plan_add_node(p, &pn);
    int32_t *o = id < 0 ? NULL : APUS_LIST_ADD(p->order);
    if (o == NULL)
        return out_of_memory(c->err);
    *o = id;
    return APUS_OK;
}

typedef struct keyed {
    int32_t prio, node;
} keyed;

static int by_key(const void *a, const void *b)
{
    const keyed *x = a, *y = b;
    if (x->prio != y->prio)
        return x->prio < y->prio ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

static apus_status collect_nodes(collector *c, const apus_tensor *outputs, size_t n_outputs)
{
    apus_graph *g = c->g;
    apus_plan *p = c->p;
    apus_status st = collector_room(c) ? APUS_OK : out_of_memory(c->err);
    for (size_t i = 0; i < n_outputs && st == APUS_OK; i++) {
        if (outputs[i].id < 0 || (size_t)outputs[i].id >= g->n_tensors)
            return apus_fail(c->err, APUS_E_INVALID, "plan: output %zu is no tensor of the graph", i);
        st = need(c, outputs[i].id);
    }
    for (size_t i = 0; i < g->n_effects && st == APUS_OK; i++) {
        st = need(c, g->effects[i].value);
        if (st == APUS_OK)
            st = need(c, g->effects[i].variable);
    }
    if (st != APUS_OK)
        return st;
    keyed *keys = malloc((g->n_nodes + 1) * sizeof *keys);
    if (keys == NULL)
        return out_of_memory(c->err);
    size_t n = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        if (c->needed[i])
            keys[n++] = (keyed){c->prio[i], (int32_t)i};
    qsort(keys, n, sizeof *keys, by_key);
    for (size_t i = 0; i < n && st == APUS_OK; i++)
        st = place(c, keys[i].node);
    free(keys);
    for (size_t i = 0; i < n_outputs && st == APUS_OK; i++) {
        p->outputs[i] = c->planned[resolve(c, outputs[i].id)];
        p->tensors.at[p->outputs[i]].keep = 1;
    }
    for (size_t i = 0; i < g->n_effects && st == APUS_OK; i++) {
        apus_plan_effect *e = APUS_LIST_ADD(p->effects);
        if (e == NULL)
            return out_of_memory(c->err);
        *e =
            (apus_plan_effect){g->effects[i].accumulate, c->planned[resolve(c, g->effects[i].variable)], c->planned[resolve(c, g->effects[i].value)]};
    }
    return st;
}

static apus_status collect(apus_plan *p, apus_graph *g, const apus_tensor *outputs, size_t n_outputs, apus_error *err)
{
    p->outputs = calloc(n_outputs + 1, sizeof *p->outputs);
    p->n_outputs = n_outputs;
    if (p->outputs == NULL)
        return out_of_memory(err);
    collector c = {.p = p, .g = g, .err = err};
    const apus_status st = collect_nodes(&c, outputs, n_outputs);
    free(c.needed);
    free(c.prio);
    free(c.remap);
    free(c.planned);
    free(c.kernel);
    return st;
}

/* ---------------------------------------------------------------- life */

static apus_status make(apus_plan *p, apus_graph *g, const apus_tensor *outputs, size_t n_outputs, int recompute, apus_error *err)
{
    apus_status st = collect(p, g, outputs, n_outputs, err);
    if (st == APUS_OK)
        st = apus_plan_flatten_effects(p, err);
    if (st == APUS_OK)
        st = apus_plan_fuse(p, g->narrow, err);
    if (st == APUS_OK)
        apus_plan_twice(p);
    if (st == APUS_OK && g->tuned)
        apus_plan_tune(p);
    if (st == APUS_OK && g->narrow)
        apus_plan_narrow(p);
    if (st == APUS_OK && recompute != APUS_RECOMPUTE_NONE)
        st = apus_plan_recompute(p, recompute, err);
    if (st == APUS_OK && recompute != APUS_RECOMPUTE_NONE) /* what is computed again has fewer readers the first time */
        st = apus_plan_fuse(p, g->narrow, err);
    if (st == APUS_OK)
        st = apus_plan_lower_effects(p, err);
    if (st == APUS_OK) {
        apus_plan_prologues(p);
        st = apus_plan_group(p, err);
    }
    if (st == APUS_OK)
        st = apus_plan_memory(p, err);
    if (st == APUS_OK)
        st = apus_plan_prepare(p, err);
    return st;
}

apus_status apus_plan_new(apus_graph *g, apus_device *d, const apus_tensor *outputs, size_t n_outputs, const int64_t capacity[APUS_N_DIM_SYMBOLS],
                          int recompute, apus_plan **plan, apus_error *err)
{
    apus_status st = apus_graph_status(g, err);
    if (st != APUS_OK)
        return st;
    apus_plan *p = calloc(1, sizeof *p);
    if (p == NULL)
        return out_of_memory(err);
    p->device = d;
    p->tuned = g->tuned;
    for (int i = 0; i < APUS_N_DIM_SYMBOLS; i++) {
        p->capacity[i] = capacity[i];
        if (capacity[i] < 0)
            st = apus_fail(err, APUS_E_INVALID, "plan: a capacity of %lld", (long long)capacity[i]);
    }
    const char *check = getenv("APUS_CHECK_NUMBERS");
    p->check_numbers = check != NULL && check[0] == '1';
    if (st == APUS_OK)
        st = make(p, g, outputs, n_outputs, recompute, err);
    if (st == APUS_OK)
        *plan = p;
    else
        apus_plan_free(p);
    return st;
}

static void free_leaves(apus_plan_leaf *at, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(at[i].name);
        free(at[i].values);
    }
    free(at);
}

void apus_plan_share(apus_plan *p, const apus_plan *other)
{
    if (p->shared || p->arena_bytes > other->arena_bytes || p->device != other->device)
        return;
    apus_device_free(p->device, p->arena, p->arena_bytes);
    p->arena = other->arena;
    p->shared = 1;
    p->ready = 0;
}

void apus_plan_free(apus_plan *p)
{
    if (p == NULL)
        return;
    if (p->arena != NULL && !p->shared)
        apus_device_free(p->device, p->arena, p->arena_bytes);
    if (p->constant_memory != NULL)
        apus_device_free(p->device, p->constant_memory, p->constant_bytes);
    free_leaves(p->inputs.at, p->inputs.n);
    free_leaves(p->variables.at, p->variables.n);
    free_leaves(p->constants.at, p->constants.n);
    free(p->tensors.at);
    free(p->nodes.at);
    free(p->order.at);
    free(p->steps.at);
    free(p->places.at);
    free(p->stacked);
    free(p->tops);
    free(p->effects.at);
    free(p->outputs);
    free(p->staging);
    free(p->views);
    free(p->call_views);
    free(p);
}
