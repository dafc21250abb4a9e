/*
 * core/graph/memory: who needs memory when, and where: tile slots for what a step keeps to itself, reuse of an operand's
 * memory where that is safe, one arena with offsets by best fit over lifetimes at capacity, from which those of a run follow.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, TILE_BYTES = 8 * 1024 /* a quarter of a first cache: operands pass through the rest */, TILE_MAX = 2048, TILE_MIN = 64 };

static apus_status out_of_memory(apus_error *err)
{
    return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
}

static apus_plan_node *node_at(const apus_plan *p, const apus_plan_step *s, int32_t i)
{
    return &p->nodes.at[p->order.at[s->first + i]];
}

/* ---------------------------------------------------------------- lifetimes */

static void lifetimes(apus_plan *p)
{
    for (size_t i = 0; i < p->tensors.n; i++)
        p->tensors.at[i].step = p->tensors.at[i].last = p->tensors.at[i].leaf == APUS_NODE_INPUT ? 0 : -1;
    for (size_t s = 0; s < p->steps.n; s++) {
        for (int32_t i = 0; i < p->steps.at[s].count; i++) {
            apus_plan_node *n = node_at(p, &p->steps.at[s], i);
            n->step = (int32_t)s;
            for (uint32_t k = 0; k < n->n_out; k++)
                p->tensors.at[n->out[k]].step = p->tensors.at[n->out[k]].last = (int32_t)s;
            for (uint32_t k = 0; k < n->n_in; k++)
                if (apus_plan_reads(n, k))
                    p->tensors.at[n->in[k]].last = (int32_t)s;
        }
    }
    for (size_t i = 0; i < p->tensors.n; i++)
        if (p->tensors.at[i].keep)
            p->tensors.at[i].last = (int32_t)p->steps.n;
}

/* ---------------------------------------------------------------- tiles */

static int32_t last_member(const apus_plan *p, const apus_plan_step *s, int32_t tensor, int32_t from)
{
    int32_t last = from;
    for (int32_t b = from; b < s->count; b++)
        for (uint32_t k = 0; k < node_at(p, s, b)->n_in; k++)
            if (node_at(p, s, b)->in[k] == tensor)
                last = b;
    return last;
}

/* Slots of a tile by linear scan; busy_until: last member that needs the slot. A kernel may write over its operand. */
static apus_status assign_slots(apus_plan *p, int32_t step, apus_error *err)
{
    apus_plan_step *s = &p->steps.at[step];
    int32_t *busy_until = malloc(((size_t)s->count * APUS_MAX_OUTPUTS + 1) * sizeof *busy_until);
    if (busy_until == NULL)
        return out_of_memory(err);
    for (int32_t a = 0; a < s->count; a++) {
        const apus_plan_node *n = node_at(p, s, a);
        for (uint32_t k = 0; k < n->n_out; k++) {
            apus_plan_tensor *t = &p->tensors.at[n->out[k]];
            if (t->variable >= 0 || t->keep || !t->used || t->last != step)
                continue;
            int32_t slot = 0;
            while (slot < s->slots && !(n->n_out == 1 ? busy_until[slot] <= a : busy_until[slot] < a))
                slot++;
            if (slot == s->slots)
                s->slots++;
            busy_until[slot] = last_member(p, s, n->out[k], a);
            t->slot = slot;
        }
    }
    free(busy_until);
    s->tile = TILE_MAX;
    if (s->slots > 0) {
        const int64_t fits = (int64_t)(TILE_BYTES / ((size_t)s->slots * apus_dtype_size(p->device->real))) / TILE_MIN * TILE_MIN;
        s->tile = fits > TILE_MAX ? TILE_MAX : fits < TILE_MIN ? TILE_MIN : fits;
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- places */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN + (bytes == 0 ? ALIGN : 0);
}

static int32_t add_place(apus_plan *p, size_t bytes, int32_t tensor, int32_t first, int32_t last)
{
    apus_plan_place *place = APUS_LIST_ADD(p->places);
    if (place == NULL)
        return -1;
    *place = (apus_plan_place){.bytes = aligned(bytes), .tensor = tensor, .first = first, .last = last};
    return (int32_t)p->places.n - 1;
}

/* Memory that output `t` of member a may take over: an operand of the same shape whose last reader is this member. Siblings run at
 * once, so none of them is the last. */
static int32_t reusable(const apus_plan *p, int32_t step, int32_t a, const apus_plan_tensor *t)
{
    const apus_plan_step *s = &p->steps.at[step];
    const apus_plan_node *n = node_at(p, s, a);
    const int pair =
        n->kernel->then != NULL && n->kernel->with == NULL && n->kernel->then->max_inputs == 2; /* the last input of its own is `then`'s */
    if (n->n_out != 1 || !(s->elementwise || (pair && s->count == 1)))
        return -1;
    const uint32_t own = n->n_in - n->n_prologue;
    for (uint32_t k = pair ? own - 1 : 0; k < own; k++) {
        const apus_plan_tensor *x = &p->tensors.at[n->in[k]];
        if (x->place < 0 || x->keep || x->last != step || x->step == step || p->places.at[x->place].last != step || !apus_plan_reads(n, k) ||
            x->shape.dtype != t->shape.dtype || !apus_shape_equal(&x->shape, &t->shape) || last_member(p, s, n->in[k], a) != a)
            continue;
        int read_elsewhere = 0;
        for (uint32_t j = 0; j < n->n_in && pair; j++)
            read_elsewhere |= j != k && p->tensors.at[n->in[j]].place == x->place;
        if (!read_elsewhere)
            return x->place;
    }
    return -1;
}

static size_t scratch_bytes(const apus_plan *p, const apus_plan_node *n)
{
    if (n->kernel->kernel.scratch == NULL)
        return 0;
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS];
    const apus_kernel_call call = apus_plan_capacity(p, n, views);
    return n->kernel->kernel.scratch(&call);
}

static apus_status assign_places(apus_plan *p, apus_error *err)
{
    for (size_t i = 0; i < p->tensors.n; i++) {
        apus_plan_tensor *t = &p->tensors.at[i];
        if (t->elements >= (int64_t)1 << 48)
            return apus_fail(err, APUS_E_MEMORY, "plan: a tensor of more than 2^48 elements");
        if (t->leaf == APUS_NODE_INPUT && t->used) {
            t->place = add_place(p, apus_plan_bytes(t), (int32_t)i, 0, t->last);
            if (t->place < 0)
                return out_of_memory(err);
        }
    }
    for (size_t s = 0; s < p->steps.n; s++) {
        size_t scratch = 0;
        for (int32_t a = 0; a < p->steps.at[s].count; a++) {
            const apus_plan_node *n = node_at(p, &p->steps.at[s], a);
            for (uint32_t k = 0; k < n->n_out; k++) {
                apus_plan_tensor *t = &p->tensors.at[n->out[k]];
                if (t->variable >= 0 || t->slot >= 0 || (!t->used && !t->keep))
                    continue;
                t->place = reusable(p, (int32_t)s, a, t);
                if (t->place >= 0)
                    p->places.at[t->place].last = t->last;
                else
                    t->place = add_place(p, apus_plan_bytes(t), n->out[k], (int32_t)s, t->last);
                if (t->place < 0)
                    return out_of_memory(err);
            }
            const size_t its = p->steps.at[s].elementwise ? 0 : scratch_bytes(p, n);
            scratch = its > scratch ? its : scratch;
        }
        if (scratch > 0 && (p->steps.at[s].scratch = add_place(p, scratch, -1, (int32_t)s, (int32_t)s)) < 0)
            return out_of_memory(err);
    }
    return APUS_OK;
}

static int by_size(const void *a, const void *b)
{
    const apus_plan_place *x = *(apus_plan_place *const *)a, *y = *(apus_plan_place *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Largest first; each into the smallest gap between those placed already whose lifetimes meet its own. */
static apus_status assign_offsets(apus_plan *p, apus_error *err)
{
    const size_t n = p->places.n;
    apus_plan_place **queue = malloc((n + 1) * sizeof(void *)), **placed = malloc((n + 1) * sizeof(void *)); /* by offset */
    if (queue == NULL || placed == NULL) {
        free(queue);
        free(placed);
        return out_of_memory(err);
    }
    for (size_t i = 0; i < n; i++)
        queue[i] = &p->places.at[i];
    qsort(queue, n, sizeof *queue, by_size);
    for (size_t i = 0; i < n; i++) {
        apus_plan_place *x = queue[i];
        size_t end = 0, best = SIZE_MAX, offset = 0;
        for (size_t j = 0; j < i; j++) {
            const apus_plan_place *y = placed[j];
            if (y->last < x->first || y->first > x->last)
                continue;
            if (y->offset > end && y->offset - end >= x->bytes && y->offset - end < best) {
                best = y->offset - end;
                offset = end;
            }
            end = y->offset + y->bytes > end ? y->offset + y->bytes : end;
        }
        x->offset = best != SIZE_MAX ? offset : end;
        if (x->offset + x->bytes > p->arena_bytes)
            p->arena_bytes = x->offset + x->bytes;
        size_t at = i;
        while (at > 0 && placed[at - 1]->offset > x->offset) {
            placed[at] = placed[at - 1];
            at--;
        }
        placed[at] = x;
    }
    p->stacked = malloc((n + 1) * sizeof *p->stacked);
    p->tops = malloc((p->steps.n + 1) * sizeof *p->tops);
    for (size_t i = 0; i < n && p->stacked != NULL; i++)
        p->stacked[i] = (int32_t)(placed[i] - p->places.at);
    free(queue);
    free(placed);
    return p->stacked != NULL && p->tops != NULL ? APUS_OK : out_of_memory(err);
}

static size_t bytes_at(const apus_plan *p, const apus_plan_place *x, const int64_t *extents)
{
    const apus_shape *s = x->tensor >= 0 ? &p->tensors.at[x->tensor].shape : NULL;
    size_t bytes = s != NULL ? apus_dtype_size(s->dtype) : 0;
    if (bytes == 0)
        return x->bytes;
    for (int32_t d = 0; d < s->ndim; d++)
        bytes *= (size_t)(s->dims[d] >= 0 ? s->dims[d] : extents[-1 - s->dims[d]]);
    return aligned(bytes);
}

/* Each falls, in the order of the offsets at capacity, onto what lies below it while it lives: never higher than there. */
void apus_plan_settle_places(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS])
{
    memset(p->tops, 0, (p->steps.n + 1) * sizeof *p->tops);
    for (size_t i = 0; i < p->places.n; i++) {
        apus_plan_place *x = &p->places.at[p->stacked[i]];
        x->at = 0;
        for (int32_t s = x->first; s <= x->last; s++)
            x->at = p->tops[s] > x->at ? p->tops[s] : x->at;
        const size_t top = x->at + bytes_at(p, x, extents);
        for (int32_t s = x->first; s <= x->last; s++)
            p->tops[s] = top;
    }
}

apus_status apus_plan_memory(apus_plan *p, apus_error *err)
{
    apus_status st = APUS_OK;
    lifetimes(p);
    for (size_t s = 0; s < p->steps.n && st == APUS_OK; s++)
        if (p->steps.at[s].elementwise && p->device->ops.parallel != NULL)
            st = assign_slots(p, (int32_t)s, err);
    if (st == APUS_OK)
        st = assign_places(p, err);
    if (st == APUS_OK)
        st = assign_offsets(p, err);
    return st;
}
