/*
 * core/graph/fuse: patterns of two or three nodes that one kernel computes: an op and what alone reads its result (apus_kernel.then),
 * with the op of that one's other input (apus_kernel.with). Which there are, kernels say.
 *
 * Before narrow, and again after recompute, where what is computed twice has lost readers. What narrow keeps in fewer bits stays a tensor:
 * a plan that has nobody else to read it, a reference's, must round as the training's does.
 *
 * Last, when all is decided: an op whose result only what one call computes reads becomes part of that call (apus_kernel.prologues), which
 * rounds what lies between as the tensor was.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

typedef struct fusion {
    apus_plan *p;
    int32_t *reader; /* by tensor: the last reading node; -1: none, or an effect */
    int narrow;
} fusion;

static apus_dtype encoding_of(const apus_plan *p, const apus_plan_node *n)
{
    for (uint32_t i = 0; i < n->n_in; i++) {
        const apus_dtype t = p->tensors.at[n->in[i]].shape.dtype;
        if (p->tensors.at[n->in[i]].node < 0 && t != p->device->real && t != APUS_I32 && t != APUS_I64 && t != APUS_U8 && apus_plan_reads(n, i))
            return t;
    }
    return APUS_REAL;
}

/* Whether the node is its op and no more. */
static int is_plain(const apus_plan_node *n)
{
    return n->kernel->then == NULL && !apus_plan_is_twice(n);
}

/* Whether the op's result goes to one node alone, and nobody wants what else it gives. */
static int is_lone(const fusion *f, const apus_plan_node *a)
{
    const apus_plan_tensor *t = &f->p->tensors.at[a->out[0]];
    int lone = !a->dead && is_plain(a) && t->used == 1 && !t->keep && !t->block_point && f->reader[a->out[0]] >= 0;
    for (uint32_t k = 1; k < a->n_out; k++)
        lone &= !f->p->tensors.at[a->out[k]].used;
    return lone;
}

/* Whether narrow will keep a's result, which b reads, in fewer bits. */
static int is_narrowed(const fusion *f, const apus_plan_node *a, const apus_plan_node *b)
{
    const uint32_t k = b->in[0] == a->out[0] ? 0 : 1; /* of b's inputs */
    return f->narrow && f->p->device->kept != f->p->device->real && (a->kernel->kernel.narrow_out & 1u) != 0 &&
           (b->kernel->kernel.narrow_in >> k & 1) != 0;
}

/* As apus_kernel.with has it. */
static int are_alike(const fusion *f, const apus_plan_node *a, const apus_plan_node *w)
{
    int alike = a->n_in == w->n_in && a->n_in > 0 && a->in[0] == w->in[0] && ((const apus_op_entry *)w->op)->n_attrs == 0;
    for (uint32_t k = 1; k < a->n_in && alike; k++) {
        const apus_shape *x = &f->p->tensors.at[a->in[k]].shape, *y = &f->p->tensors.at[w->in[k]].shape;
        alike = x->dtype == y->dtype && apus_shape_equal(x, y);
    }
    return alike;
}

/* Whether the kernel takes what narrow has done already. */
static int takes_narrowed(const apus_plan *p, const apus_plan_node *n)
{
    const apus_dtype kept = p->device->kept;
    int takes = p->tensors.at[n->out[0]].shape.dtype != kept || (n->kernel->kernel.narrow_out & 1u) != 0;
    for (uint32_t k = 0; k < n->n_in; k++) {
        const apus_plan_tensor *t = &p->tensors.at[n->in[k]];
        takes &= t->node < 0 || t->shape.dtype != kept || (k < 32 && (n->kernel->kernel.narrow_in >> k & 1) != 0);
    }
    return takes || kept == p->device->real;
}

/* b becomes the node of a, w (NULL: none) and itself, which `kernel` computes. */
static void claim(const fusion *f, apus_plan_node *a, apus_plan_node *w, apus_plan_node *b, const apus_kernel_entry *kernel)
{
    const uint32_t first = ((const apus_op_entry *)a->op)->n_attrs, then = ((const apus_op_entry *)b->op)->n_attrs;
    apus_plan_node n = *b;
    n.op = a->op;
    n.kernel = kernel;
    n.shape_only = a->shape_only;
    n.n_in = a->n_in;
    memcpy(n.in, a->in, a->n_in * sizeof a->in[0]);
    for (uint32_t k = 0; w != NULL && k < w->n_in; k++)
        n.in[n.n_in++] = w->in[k];
    for (uint32_t k = 0; w == NULL && k < b->n_in; k++)
        if (b->in[k] != a->out[0])
            n.in[n.n_in++] = b->in[k];
    if (first + then > APUS_MAX_ATTRS || !takes_narrowed(f->p, &n))
        return;
    memcpy(n.attrs, a->attrs, first * sizeof n.attrs[0]);
    memcpy(n.attrs + first, b->attrs, then * sizeof n.attrs[0]);
    *b = n;
    a->dead = 1;
    if (w != NULL)
        w->dead = 1;
    for (uint32_t k = 0; k < b->n_in; k++)
        f->reader[b->in[k]] = (int32_t)(b - f->p->nodes.at);
}

/* b of two inputs, which two lone nodes make. */
static int fuse_three(const fusion *f, apus_plan_node *b)
{
    apus_plan *p = f->p;
    const int32_t ia = p->tensors.at[b->in[0]].node, iw = p->tensors.at[b->in[1]].node;
    if (ia < 0 || iw < 0 || ia == iw || b->in[0] == b->in[1])
        return 0;
    apus_plan_node *a = &p->nodes.at[ia], *w = &p->nodes.at[iw];
    if (!is_lone(f, a) || !is_lone(f, w) || !are_alike(f, a, w) || is_narrowed(f, a, b) || is_narrowed(f, w, b) ||
        a->n_in + w->n_in > APUS_PLAN_INPUTS || !apus_shape_equal(&p->tensors.at[b->in[0]].shape, &p->tensors.at[b->in[1]].shape))
        return 0;
    const apus_kernel_entry *kernel = apus_device_choose(p->device, a->op, b->op, w->op, encoding_of(p, a));
    if (kernel != NULL)
        claim(f, a, w, b, kernel);
    return a->dead;
}

/* a, whose result only b reads, once: of several inputs the first, of two either one. */
static void fuse_two(const fusion *f, apus_plan_node *a, apus_plan_node *b)
{
    apus_plan *p = f->p;
    if (is_narrowed(f, a, b) || a->n_in + b->n_in - 1 > APUS_PLAN_INPUTS || b->shape_only != 0)
        return;
    if (b->n_in > 2 ? b->in[0] != a->out[0] : b->n_in == 2 && !apus_shape_equal(&p->tensors.at[b->in[0]].shape, &p->tensors.at[b->in[1]].shape))
        return;
    const apus_kernel_entry *kernel = apus_device_choose(p->device, a->op, b->op, NULL, encoding_of(p, a));
    if (kernel != NULL)
        claim(f, a, NULL, b, kernel);
}

/* From the end, so that of two candidates for one reader the later, whose operands live shorter, is taken. */
static void fuse_all(const fusion *f)
{
    apus_plan *p = f->p;
    for (size_t i = p->order.n; i-- > 0;) {
        apus_plan_node *a = &p->nodes.at[p->order.at[i]];
        if (!is_lone(f, a))
            continue;
        apus_plan_node *b = &p->nodes.at[f->reader[a->out[0]]];
        if (b->dead || b->n_in < 1 || b->n_out != 1 || !is_plain(b) || b->op == a->op ||
            !apus_shape_equal(&p->tensors.at[b->out[0]].shape, &p->tensors.at[a->out[0]].shape))
            continue;
        if (b->n_in != 2 || !fuse_three(f, b))
            fuse_two(f, a, b);
    }
}

apus_status apus_plan_fuse(apus_plan *p, int narrow, apus_error *err)
{
    fusion f = {.p = p, .reader = malloc((p->tensors.n + 1) * sizeof *f.reader), .narrow = narrow};
    if (f.reader == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    memset(f.reader, 0xff, (p->tensors.n + 1) * sizeof *f.reader);
    apus_plan_prune(p);
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_in; k++)
            if (apus_plan_reads(n, k))
                f.reader[n->in[k]] = p->order.at[i];
    }
    for (size_t i = 0; i < p->effects.n; i++) /* an effect's value has a reader that cannot be fused */
        f.reader[p->effects.at[i].value] = -1;
    fuse_all(&f);
    free(f.reader);
    apus_plan_prune(p);
    return APUS_OK;
}

/* ---------------------------------------------------------------- prologues */

/* Whether a's result may stay within a kernel's call. */
static int is_inner(const apus_plan *p, const apus_plan_node *a)
{
    const apus_plan_tensor *t = &p->tensors.at[a->out[0]];
    int inner = !a->dead && is_plain(a) && a->prologue == 0 && a->shape_only == 0 && !t->keep && !t->block_point && t->variable < 0;
    for (uint32_t k = 1; k < a->n_out; k++)
        inner &= !p->tensors.at[a->out[k]].used;
    for (uint32_t k = 0; k < a->n_in; k++)
        inner &= p->tensors.at[a->in[k]].shape.dtype == p->device->real;
    return inner && a->n_in > 0 && apus_shape_equal(&t->shape, &p->tensors.at[a->in[0]].shape);
}

/* n takes a for its prologue. Gives how many of its inputs a's result is; 0: it cannot take it. */
static int take_prologue(const apus_plan *p, const apus_plan_node *a, apus_plan_node *n)
{
    const char *const *names = n->kernel->kernel.prologues;
    const uint32_t first = ((const apus_op_entry *)a->op)->n_attrs, own = apus_plan_attrs(n), n_own = n->n_in;
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS];
    int reads = 0;
    while (names != NULL && names[n->prologue] != NULL && strcmp(names[n->prologue], a->op->name) != 0)
        n->prologue++;
    if (names == NULL || names[n->prologue++] == NULL || n_own + a->n_in - 1 > APUS_PLAN_INPUTS || own + first > APUS_MAX_ATTRS)
        return 0;
    for (uint32_t k = 0; k < n_own; k++) {
        if (n->in[k] != a->out[0])
            continue;
        if (!apus_plan_reads(n, k) || (k > 0 && (n->kernel->with == NULL || k != n_own / 2)))
            return 0;
        n->in[k] = a->in[0];
        reads++;
    }
    n->n_prologue = a->n_in - 1;
    n->prologue_kept = p->tensors.at[a->out[0]].shape.dtype != p->device->real;
    memcpy(n->in + n_own, a->in + 1, n->n_prologue * sizeof a->in[0]);
    n->n_in += n->n_prologue;
    memcpy(n->attrs + own, a->attrs, first * sizeof n->attrs[0]);
    const apus_kernel_call call = apus_plan_capacity(p, n, views);
    return n->kernel->kernel.suits == NULL || n->kernel->kernel.suits(&call) ? reads : 0;
}

void apus_plan_prologues(apus_plan *p)
{
    for (size_t i = 0, n; i < p->order.n; i += n) {
        const int32_t *at = p->order.at + i, first = p->nodes.at[*at].n_in > 0 ? p->nodes.at[*at].in[0] : -1;
        apus_plan_node *a = first >= 0 && p->tensors.at[first].node >= 0 ? &p->nodes.at[p->tensors.at[first].node] : NULL;
        apus_plan_node with[APUS_SIBLINGS_MAX];
        int reads = 0, all = a != NULL && first == a->out[0] && is_inner(p, a);
        n = apus_plan_siblings(p, i);
        for (size_t k = 0; k < n && all; k++) {
            with[k] = p->nodes.at[at[k]];
            const int its = take_prologue(p, a, &with[k]);
            all = its > 0;
            reads += its;
        }
        if (!all || reads != p->tensors.at[first].used)
            continue;
        for (size_t k = 0; k < n; k++)
            p->nodes.at[at[k]] = with[k];
        a->dead = 1;
    }
    apus_plan_prune(p);
}
