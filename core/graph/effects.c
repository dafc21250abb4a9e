/*
 * core/graph/effects: accumulations and assignments become stores into variables' memory.
 *
 * A variable that is only added to, and that nothing in the plan reads, takes each contribution as it is computed: by the
 * kernel itself where it can add, else by an elementwise add in place. So a weight used twice never needs a second
 * gradient. Any other variable is written once, when nothing later in the plan reads its old value.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

static apus_status out_of_memory(apus_error *err)
{
    return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
}

/* 1 for each variable (by leaf index) that the plan only adds to. NULL: out of memory. */
static unsigned char *only_added(const apus_plan *p)
{
    unsigned char *only = calloc(p->variables.n + 1, 1);
    if (only == NULL)
        return NULL;
    for (size_t i = 0; i < p->effects.n; i++)
        only[p->tensors.at[p->effects.at[i].variable].leaf_index] = 1;
    for (size_t i = 0; i < p->effects.n; i++)
        if (!p->effects.at[i].accumulate)
            only[p->tensors.at[p->effects.at[i].variable].leaf_index] = 0;
    for (size_t i = 0; i < p->tensors.n; i++) {
        const apus_plan_tensor *t = &p->tensors.at[i];
        if (t->variable >= 0 && (t->used || t->keep))
            only[t->variable] = 0;
    }
    return only;
}

apus_status apus_plan_flatten_effects(apus_plan *p, apus_error *err)
{
    apus_plan_prune(p);
    unsigned char *only = only_added(p);
    if (only == NULL)
        return out_of_memory(err);
    const apus_op *add = apus_op_find("apus.add/1");
    apus_status st = APUS_OK;
    for (size_t i = 0; i < p->effects.n && st == APUS_OK; i++) {
        for (;;) { /* v += a + b where nobody else wants the sum: v += a, v += b */
            const apus_plan_effect e = p->effects.at[i];
            const apus_plan_tensor *t = &p->tensors.at[e.value];
            apus_plan_node *n = t->node >= 0 ? &p->nodes.at[t->node] : NULL;
            if (!only[p->tensors.at[e.variable].leaf_index] || n == NULL || n->op != add || t->used != 1 || t->keep ||
                !apus_shape_equal(&p->tensors.at[n->in[0]].shape, &t->shape) || !apus_shape_equal(&p->tensors.at[n->in[1]].shape, &t->shape))
                break;
            n->dead = 1;
            p->effects.at[i].value = n->in[0];
            const apus_plan_effect second = {1, e.variable, n->in[1]};
            apus_plan_effect *s = APUS_LIST_ADD(p->effects);
            if (s == NULL) {
                st = out_of_memory(err);
                break;
            }
            *s = second;
        }
    }
    free(only);
    apus_plan_prune(p);
    return st;
}

/* ---------------------------------------------------------------- lowering */

typedef struct insertion {
    int32_t after; /* position in the order; -1: before everything */
    int32_t node;
} insertion;

typedef struct lowering {
    apus_plan *p;
    int32_t *position; /* by node; those inserted: of the node they follow */
    size_t n_positions;
    APUS_LIST(insertion) insertions;
    apus_error *err;
} lowering;

static int32_t position_of(const lowering *l, int32_t tensor)
{
    const int32_t node = l->p->tensors.at[tensor].node;
    return node < 0 ? -1 : l->position[node];
}

static apus_status insert(lowering *l, int32_t after, int32_t node)
{
    insertion *i = APUS_LIST_ADD(l->insertions);
    int32_t *position = realloc(l->position, (l->p->nodes.n + 1) * sizeof *position);
    if (position != NULL)
        l->position = position;
    if (i == NULL || position == NULL)
        return out_of_memory(l->err);
    *i = (insertion){after, node};
    l->position[node] = after;
    return APUS_OK;
}

static int by_place(const void *a, const void *b)
{
    const insertion *x = a, *y = b;
    if (x->after != y->after)
        return x->after < y->after ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node; /* nodes are numbered as they are made */
}

/* Put the inserted nodes into the order and number the positions anew. */
static apus_status settle(lowering *l)
{
    apus_plan *p = l->p;
    const size_t n = p->order.n, m = l->insertions.n;
    int32_t *order = malloc((n + m + 1) * sizeof *order);
    int32_t *position = malloc((p->nodes.n + 1) * sizeof *position);
    if (order == NULL || position == NULL) {
        free(order);
        free(position);
        return out_of_memory(l->err);
    }
    if (m > 0)
        qsort(l->insertions.at, m, sizeof *l->insertions.at, by_place);
    size_t k = 0, j = 0;
    for (size_t i = 0; i <= n; i++) {
        while (j < m && (size_t)l->insertions.at[j].after + 1 == i)
            order[k++] = l->insertions.at[j++].node;
        if (i < n)
            order[k++] = p->order.at[i];
    }
    free(p->order.at);
    p->order.at = order;
    p->order.n = k;
    p->order.cap = n + m + 1;
    memset(position, 0xff, (p->nodes.n + 1) * sizeof *position);
    for (size_t i = 0; i < k; i++)
        position[order[i]] = (int32_t)i;
    free(l->position);
    l->position = position;
    l->insertions.n = 0;
    return APUS_OK;
}

/* v += value by an elementwise add in place, right after `after`; gives the variable's new version. */
static apus_status add_in_place(lowering *l, int32_t version, int32_t value, int32_t after, int32_t variable, int32_t *out)
{
    const int32_t in[2] = {version, value};
    const int32_t node = apus_plan_make(l->p, "apus.add/1", in, 2, NULL, value, l->err);
    if (node < 0)
        return APUS_E_UNSUPPORTED;
    *out = l->p->nodes.at[node].out[0];
    l->p->tensors.at[*out].variable = variable;
    return insert(l, after, node);
}

typedef struct contribution {
    int32_t position, output, value;
} contribution;

static int by_time(const void *a, const void *b)
{
    const contribution *x = a, *y = b;
    if (x->position != y->position)
        return x->position < y->position ? -1 : 1;
    return x->output < y->output ? -1 : x->output > y->output;
}

static uint32_t output_index(const apus_plan_node *n, int32_t tensor)
{
    uint32_t k = 0;
    while (n->out[k] != tensor)
        k++;
    return k;
}

/* The contributions to a variable that is only added to, in the order in which they are computed. */
static apus_status lower_sums(lowering *l, int32_t variable_tensor)
{
    apus_plan *p = l->p;
    const int32_t variable = p->tensors.at[variable_tensor].variable;
    contribution *c = malloc((p->effects.n + 1) * sizeof *c);
    if (c == NULL)
        return out_of_memory(l->err);
    size_t n = 0;
    for (size_t i = 0; i < p->effects.n; i++)
        if (p->effects.at[i].variable == variable_tensor)
            c[n++] = (contribution){position_of(l, p->effects.at[i].value), p->effects.at[i].value, p->effects.at[i].value};
    qsort(c, n, sizeof *c, by_time);
    apus_status st = APUS_OK;
    int32_t version = variable_tensor;
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        apus_plan_tensor *t = &p->tensors.at[c[i].value];
        apus_plan_node *node = t->node >= 0 ? &p->nodes.at[t->node] : NULL;
        if (node != NULL && !apus_plan_is_elementwise(node) && (node->kernel->kernel.flags & APUS_KERNEL_ACCUMULATES) != 0 && t->used == 1 &&
            !t->keep && t->variable < 0) {
            node->accumulate |= 1u << output_index(node, c[i].value);
            t->variable = variable;
            version = c[i].value;
        } else {
            st = add_in_place(l, version, c[i].value, c[i].position, variable, &version);
        }
    }
    free(c);
    return st;
}

/* Position of the last node that reads the variable as it was. */
static int32_t last_reader(const lowering *l, int32_t variable)
{
    const apus_plan *p = l->p;
    for (size_t i = p->order.n; i-- > 0;) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_in; k++)
            if (apus_plan_reads(n, k) && p->tensors.at[n->in[k]].variable == variable)
                return (int32_t)i;
    }
    return -1;
}

static int32_t later(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* The last value of a variable that is also read, or assigned: computed aside, stored when its old value is done with. */
static apus_status lower_value(lowering *l, int32_t variable_tensor)
{
    apus_plan *p = l->p;
    const int32_t variable = p->tensors.at[variable_tensor].variable;
    const int32_t readers = last_reader(l, variable);
    int32_t current = variable_tensor;
    for (size_t i = 0; i < p->effects.n; i++) {
        const apus_plan_effect e = p->effects.at[i];
        if (e.variable != variable_tensor)
            continue;
        if (e.accumulate) {
            const int32_t in[2] = {current, e.value};
            const int32_t after = later(readers, later(position_of(l, current), position_of(l, e.value)));
            const int32_t node = apus_plan_make(p, "apus.add/1", in, 2, NULL, e.value, l->err);
            if (node < 0 || insert(l, after, node) != APUS_OK)
                return APUS_E_UNSUPPORTED;
            current = p->nodes.at[node].out[0];
        } else {
            current = e.value;
        }
    }
    apus_plan_tensor *t = &p->tensors.at[current];
    if (t->node >= 0 && apus_plan_is_elementwise(&p->nodes.at[t->node]) && t->variable < 0 && readers <= position_of(l, current)) {
        t->variable = variable;
        return APUS_OK;
    }
    const int32_t after = later(readers, position_of(l, current));
    const double as_it_is[2] = {1.0, 0.0};
    const int32_t node = apus_plan_make(p, "apus.affine/1", &current, 1, as_it_is, current, l->err);
    if (node < 0)
        return APUS_E_UNSUPPORTED;
    p->tensors.at[p->nodes.at[node].out[0]].variable = variable;
    return insert(l, after, node);
}

/* A value that is itself a variable's memory is copied first: that variable may change too. */
static apus_status copy_variables(lowering *l)
{
    apus_plan *p = l->p;
    for (size_t i = 0; i < p->effects.n; i++) {
        const int32_t value = p->effects.at[i].value;
        if (p->tensors.at[value].variable < 0)
            continue;
        const double as_it_is[2] = {1.0, 0.0};
        const int32_t node = apus_plan_make(p, "apus.affine/1", &value, 1, as_it_is, value, l->err);
        if (node < 0 || insert(l, position_of(l, value), node) != APUS_OK)
            return APUS_E_UNSUPPORTED;
        p->effects.at[i].value = p->nodes.at[node].out[0];
    }
    return settle(l);
}

static apus_status lower(lowering *l, const unsigned char *only)
{
    apus_plan *p = l->p;
    apus_status st = copy_variables(l);
    apus_plan_prune(p);
    for (size_t v = 0; v < p->variables.n && st == APUS_OK; v++) {
        const int32_t tensor = p->variables.at[v].tensor;
        int changed = 0;
        for (size_t i = 0; i < p->effects.n; i++)
            changed |= p->effects.at[i].variable == tensor;
        if (!changed)
            continue;
        st = only[v] ? lower_sums(l, tensor) : lower_value(l, tensor);
        if (st == APUS_OK && l->insertions.n > 0)
            st = settle(l);
    }
    p->effects.n = 0;
    apus_plan_prune(p);
    return st;
}

apus_status apus_plan_lower_effects(apus_plan *p, apus_error *err)
{
    if (p->effects.n == 0)
        return APUS_OK;
    lowering l = {.p = p, .err = err};
    apus_plan_prune(p);
    unsigned char *only = only_added(p);
    apus_status st = only == NULL ? out_of_memory(err) : settle(&l);
    if (st == APUS_OK)
        st = lower(&l, only);
    free(only);
    free(l.position);
    free(l.insertions.at);
    return st;
}
