/*
 * core/graph/narrow: results that are kept in the type that the device keeps activations in: half the memory between the passes, and half
 * the traffic. One is narrowed where the kernel that makes it can write that type and every kernel that
 * reads it takes it, and where it has as many rows as the data: never a weight, a block point or an output of the plan.
 *
 * Before recompute, which then counts with the bytes there are; a clone's result has the type of what it is a clone of.
 */
#include "graph/plan.h"

static int takes(uint32_t narrow, uint32_t k)
{
    return k < 32 && (narrow >> k & 1) != 0;
}

void apus_plan_narrow(apus_plan *p)
{
    const apus_dtype real = p->device->real, kept = p->device->kept;
    if (kept == real)
        return;
    apus_plan_prune(p);
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_out; k++) {
            apus_plan_tensor *t = &p->tensors.at[n->out[k]];
            if (takes(n->kernel->kernel.narrow_out, k) && t->shape.dtype == real && t->shape.ndim > 0 && t->shape.dims[0] < 0 && t->variable < 0 &&
                !t->keep && !t->block_point)
                t->shape.dtype = kept;
        }
    }
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_in; k++) {
            apus_plan_tensor *t = &p->tensors.at[n->in[k]];
            if (t->node >= 0 && t->shape.dtype == kept && apus_plan_reads(n, k) && !takes(n->kernel->kernel.narrow_in, k))
                t->shape.dtype = real;
        }
    }
    for (size_t i = 0; i < p->effects.n; i++)
        if (p->tensors.at[p->effects.at[i].value].node >= 0)
            p->tensors.at[p->effects.at[i].value].shape.dtype = real;
}
