/*
 * core/graph/twice: sums of two results of one op that one kernel computes (APUS_KERNEL_TWICE): a linear layer and its adapter, forward and
 * backward; then what is added to such a sum. After pairs are fused: the sum is then the one's pair, whose addend is the other's result.
 */
#include "graph/plan.h"

#include <string.h>

/* The node whose result t is, where one reader alone wants it; NULL. */
static apus_plan_node *only_for_one(const apus_plan *p, int32_t t)
{
    const apus_plan_tensor *x = &p->tensors.at[t];
    apus_plan_node *n = x->node >= 0 && x->used == 1 && !x->keep && !x->block_point ? &p->nodes.at[x->node] : NULL;
    return n != NULL && !n->dead && n->n_out == 1 ? n : NULL;
}

/* n becomes `as` if a kernel takes that; what gave its operand is dead then. */
static int becomes(apus_plan *p, apus_plan_node *n, const apus_plan_node *as, const apus_op *then, apus_plan_node *operand)
{
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS];
    const apus_kernel_call call = apus_plan_capacity(p, as, views);
    const apus_kernel_entry *kernel = apus_device_choose_twice(p->device, as->op, then, &call);
    if (kernel == NULL)
        return 0;
    *n = *as;
    n->kernel = kernel;
    operand->dead = 1;
    return 1;
}

/* n, op and an addition, whose addend is another result of op, perhaps with an addend of its own. */
static int sum_of_two(apus_plan *p, apus_plan_node *n)
{
    const apus_op_entry *op = (const apus_op_entry *)n->op;
    if (n->kernel->then == NULL || strcmp(n->kernel->then->name, "apus.add/1") != 0 || apus_plan_is_twice(n) || op->n_attrs > 0 || n->n_out != 1 ||
        n->shape_only != 0)
        return 0;
    apus_plan_node *m = only_for_one(p, n->in[n->n_in - 1]);
    if (m == NULL || m->op != n->op || apus_plan_is_twice(m) || (m->kernel->then != NULL && m->kernel->then != n->kernel->then))
        return 0;
    const int added = m->kernel->then != NULL;
    const uint32_t n_of = n->n_in - 1, m_of = m->n_in - (uint32_t)added;
    const apus_plan_node *one = n_of == 2 ? n : m, *other = one == n ? m : n;
    const uint32_t others = one == n ? m_of : n_of;
    if ((n_of != 2 && m_of != 2) || 2 + others + (uint32_t)added > APUS_PLAN_INPUTS)
        return 0;
    apus_plan_node as = *n;
    memcpy(as.in, one->in, 2 * sizeof as.in[0]);
    memcpy(as.in + 2, other->in, others * sizeof as.in[0]);
    if (added)
        as.in[2 + others] = m->in[m_of];
    as.n_in = 2 + others + (uint32_t)added;
    return becomes(p, n, &as, m->kernel->then, m);
}

/* n, an addition, one of whose operands is a sum of two. */
static int sum_and_more(apus_plan *p, apus_plan_node *n)
{
    if (n->kernel->then != NULL || strcmp(n->op->name, "apus.add/1") != 0 || n->in[0] == n->in[1])
        return 0;
    for (int k = 1; k >= 0; k--) { /* the later operand lives shorter */
        apus_plan_node *m = only_for_one(p, n->in[k]);
        if (m == NULL || !apus_plan_is_twice(m) || m->kernel->then != NULL || m->n_in == APUS_PLAN_INPUTS ||
            !apus_shape_equal(&p->tensors.at[n->in[0]].shape, &p->tensors.at[n->in[1]].shape))
            continue;
        apus_plan_node as = *n;
        as.op = m->op;
        as.shape_only = 0;
        memcpy(as.in, m->in, m->n_in * sizeof as.in[0]);
        as.in[m->n_in] = n->in[1 - k];
        as.n_in = m->n_in + 1;
        if (becomes(p, n, &as, n->op, m))
            return 1;
    }
    return 0;
}

void apus_plan_twice(apus_plan *p)
{
    for (size_t i = p->order.n; i-- > 0;) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        if (!n->dead)
            (void)sum_of_two(p, n);
    }
    apus_plan_prune(p);
    for (size_t i = p->order.n; i-- > 0;) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        if (!n->dead)
            (void)sum_and_more(p, n);
    }
    apus_plan_prune(p);
}
