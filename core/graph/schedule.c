/*
 * core/graph/schedule: the order cut into steps: a step is one kernel, several calls of one kernel that have their first operand
 * in common, or a run of elementwise nodes of one shape that is worked tile by tile, so that an update of fifteen small ops is one
 * pass over memory.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

enum { MEMBERS_MAX = 64 };

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

/* Whether nodes of one kernel, with the same first input, have the same prologue. */
static int same_prologue(const apus_plan_node *a, const apus_plan_node *b)
{
    int same = a->prologue == b->prologue && a->n_prologue == b->n_prologue && a->prologue_kept == b->prologue_kept;
    for (uint32_t k = 1; k <= a->n_prologue && same; k++)
        same = a->in[a->n_in - k] == b->in[b->n_in - k];
    for (uint32_t k = apus_plan_attrs(a); k < APUS_MAX_ATTRS && same && a->prologue > 0; k++)
        same = a->attrs[k] == b->attrs[k];
    return same;
}

/* Whether node b, behind the n members from `members` on, is a sibling of theirs (apus_kernel.run_siblings). */
static int is_sibling(const apus_plan *p, const int32_t *members, size_t n, const apus_plan_node *b)
{
    const apus_plan_node *a = &p->nodes.at[members[0]];
    if (n == APUS_SIBLINGS_MAX || a->kernel->kernel.run_siblings == NULL || b->kernel != a->kernel || b->n_in == 0 || b->in[0] != a->in[0] ||
        a->accumulate != 0 || b->accumulate != 0 || !same_prologue(a, b))
        return 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t o = 0; o < p->nodes.at[members[i]].n_out; o++)
            for (uint32_t k = 0; k < b->n_in; k++)
                if (b->in[k] == p->nodes.at[members[i]].out[o])
                    return 0;
    return 1;
}

size_t apus_plan_siblings(const apus_plan *p, size_t i)
{
    size_t n = 1;
    while (i + n < p->order.n && is_sibling(p, p->order.at + i, n, &p->nodes.at[p->order.at[i + n]]))
        n++;
    return n;
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
        const apus_shape *shape = &p->tensors.at[first->out[0]].shape;
        const int elementwise = apus_plan_is_elementwise(first), single = apus_shape_single(shape);
        int32_t members[MEMBERS_MAX];
        size_t n_members = elementwise ? 1 : apus_plan_siblings(p, i), n_hoisted = 0, n_operands = first->n_in + first->n_out;
        memcpy(members, p->order.at + i, n_members * sizeof *members);
        i += n_members;
        while (elementwise && fused && i < n && n_members < MEMBERS_MAX) {
            const apus_plan_node *m = &p->nodes.at[p->order.at[i]];
            const apus_shape *its = &p->tensors.at[m->out[0]].shape;
            if (apus_plan_is_elementwise(m) && apus_shape_equal(its, shape) && n_operands + m->n_in + m->n_out <= APUS_PLAN_OPERANDS) {
                members[n_members++] = p->order.at[i++];
                n_operands += m->n_in + m->n_out;
            } else if (apus_plan_is_elementwise(m) && apus_shape_single(its) && !single) {
                hoisted[n_hoisted++] = p->order.at[i++]; /* one element from one-element operands: none is the group's */
            } else {
                break;
            }
        }
        for (size_t j = 0; j < n_hoisted && st == APUS_OK; j++) {
            order[k] = hoisted[j];
            st = add_step(p, (int32_t)k++, 1, 1, err);
        }
        for (size_t j = 0; j < n_members; j++)
            order[k + j] = members[j];
        if (st == APUS_OK)
            st = add_step(p, (int32_t)k, (int32_t)n_members, elementwise, err);
        k += n_members;
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
