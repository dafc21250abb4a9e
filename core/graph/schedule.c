/*
 * core/graph/schedule: the order cut into steps: a step is one kernel, or a run of elementwise nodes of one shape that is
 * worked tile by tile, so that an update of fifteen small ops is one pass over memory.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

enum { MEMBERS_MAX = 64 };

typedef struct group {
    apus_plan *p;
    int32_t members[MEMBERS_MAX];
    size_t n;
    const apus_shape *shape;
} group;

static int computed_in(const group *g, int32_t tensor)
{
    const int32_t node = g->p->tensors.at[tensor].node;
    for (size_t i = 0; i < g->n; i++)
        if (g->members[i] == node)
            return 1;
    return 0;
}

/* May m, of one element, run before the group that stands before it? */
static int may_precede(const group *g, const apus_plan_node *m)
{
    const apus_plan_tensor *tensors = g->p->tensors.at;
    for (uint32_t k = 0; k < m->n_in; k++) {
        if (apus_plan_reads(m, k) && computed_in(g, m->in[k]))
            return 0;
        for (size_t i = 0; i < g->n && tensors[m->in[k]].variable >= 0; i++) {
            const apus_plan_node *n = &g->p->nodes.at[g->members[i]];
            for (uint32_t o = 0; o < n->n_out; o++)
                if (tensors[n->out[o]].variable == tensors[m->in[k]].variable)
                    return 0;
        }
    }
    for (uint32_t o = 0; o < m->n_out; o++) {
        const int32_t v = tensors[m->out[o]].variable;
        for (size_t i = 0; i < g->n && v >= 0; i++) {
            const apus_plan_node *n = &g->p->nodes.at[g->members[i]];
            for (uint32_t k = 0; k < n->n_in; k++)
                if (tensors[n->in[k]].variable == v)
                    return 0;
        }
    }
    return 1;
}

static apus_status add_step(apus_plan *p, int32_t first, int32_t count, int elementwise, apus_error *err)
{
    apus_plan_step *s = APUS_LIST_ADD(p->steps);
    if (s == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    s->first = first;
    s->count = count;
    s->elementwise = elementwise;
    s->scratch = -1;
    return APUS_OK;
}

apus_status apus_plan_group(apus_plan *p, apus_error *err)
{
    const size_t n = p->order.n;
    const int fused = p->device->ops.parallel != NULL;
    int32_t *order = malloc((n + 1) * sizeof *order);
    int32_t *hoisted = malloc((n + 1) * sizeof *hoisted);
    size_t k = 0;
    apus_status st = order != NULL && hoisted != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    for (size_t i = 0; i < n && st == APUS_OK;) {
        const apus_plan_node *first = &p->nodes.at[p->order.at[i]];
        group g = {.p = p, .n = 1, .shape = &p->tensors.at[first->out[0]].shape};
        g.members[0] = p->order.at[i++];
        size_t n_hoisted = 0;
        const int elementwise = apus_plan_is_elementwise(first);
        const int single = apus_shape_single(g.shape);
        while (elementwise && fused && i < n && g.n < MEMBERS_MAX) {
            const apus_plan_node *m = &p->nodes.at[p->order.at[i]];
            const apus_shape *shape = &p->tensors.at[m->out[0]].shape;
            if (!apus_plan_is_elementwise(m))
                break;
            if (apus_shape_equal(shape, g.shape))
                g.members[g.n++] = p->order.at[i];
            else if (!single && apus_shape_single(shape) && may_precede(&g, m))
                hoisted[n_hoisted++] = p->order.at[i];
            else
                break;
            i++;
        }
        for (size_t j = 0; j < n_hoisted && st == APUS_OK; j++) {
            order[k] = hoisted[j];
            st = add_step(p, (int32_t)k++, 1, 1, err);
        }
        for (size_t j = 0; j < g.n; j++)
            order[k + j] = g.members[j];
        if (st == APUS_OK)
            st = add_step(p, (int32_t)k, (int32_t)g.n, elementwise, err);
        k += g.n;
    }
    free(hoisted);
    if (order != NULL) {
        free(p->order.at);
        p->order.at = order;
        p->order.n = k;
        p->order.cap = n + 1;
    }
    return st;
}
