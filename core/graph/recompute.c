/*
 * core/graph/recompute: what the backward pass needs from the forward pass is either kept or computed again.
 *
 * CHEAP: an op flagged so is computed again where keeping its inputs costs less than keeping its result: inputs that are
 * kept anyway cost nothing. BLOCK: everything between two "block" points is computed again from the earlier one; or only so between
 * the first of them, whose results would be kept the longest.
 * A clone stands just before its first use; it runs the same kernel on the same inputs, so its bits are the same.
 */
#include "graph/plan.h"

#include <stdlib.h>
#include <string.h>

enum {
    SMALL = 512, /* bytes: not worth a kernel */
    DEEP = 32    /* nodes computed again for one result */
};

typedef struct recompute {
    apus_plan *p;
    size_t boundary;       /* position of the first backward node */
    int32_t *position;     /* by node */
    unsigned char *clone;  /* by node: 1 computed again, 0 kept */
    unsigned char *block;  /* by node: inside a block */
    unsigned char *direct; /* by tensor: read in the backward pass */
    unsigned char *saved;  /* by tensor: in memory then anyway */
    int32_t *stamp;        /* by node: last walk that saw it */
    int32_t walk;
    int32_t *copy;         /* by tensor: its clone; -1 */
    int32_t *cost_tensors; /* of the current walk */
    size_t n_cost;
    APUS_LIST(int32_t) order;
    apus_error *err;
} recompute;

static int clonable(const apus_plan *p, const apus_plan_node *n)
{
    if ((n->op->flags & APUS_OP_IN_PLACE) != 0)
        return 0;
    for (uint32_t k = 0; k < n->n_out; k++)
        if (p->tensors.at[n->out[k]].keep)
            return 0;
    return 1;
}

static int is_forward(const recompute *r, int32_t node)
{
    return node >= 0 && r->position[node] >= 0 && (size_t)r->position[node] < r->boundary;
}

/* Bytes that must stay in memory so that n can be computed again; stops at `limit` nodes. */
static size_t cost(recompute *r, const apus_plan_node *n, int *nodes)
{
    size_t bytes = 0;
    if (++*nodes > DEEP)
        return SIZE_MAX / 2;
    for (uint32_t k = 0; k < n->n_in; k++) {
        const int32_t t = n->in[k], m = r->p->tensors.at[t].node;
        if (!apus_plan_reads(n, k) || m < 0 || r->saved[t])
            continue;
        if (r->clone[m]) {
            if (r->stamp[m] == r->walk)
                continue;
            r->stamp[m] = r->walk;
            const size_t deeper = cost(r, &r->p->nodes.at[m], nodes);
            if (deeper >= SIZE_MAX / 2)
                return deeper;
            bytes += deeper;
            continue;
        }
        int known = 0;
        for (size_t i = 0; i < r->n_cost; i++)
            known |= r->cost_tensors[i] == t;
        if (!known) {
            r->cost_tensors[r->n_cost++] = t;
            bytes += apus_plan_bytes(&r->p->tensors.at[t]);
        }
    }
    return bytes;
}

/* Which forward nodes are computed again, decided in forward order. */
static void decide(recompute *r, int mode)
{
    apus_plan *p = r->p;
    int points = 0, seen = 0;
    for (size_t i = 0; i < r->boundary; i++)
        for (uint32_t k = 0; k < p->nodes.at[p->order.at[i]].n_out; k++)
            points += p->tensors.at[p->nodes.at[p->order.at[i]].out[k]].block_point != 0;
    const int blocks = mode < APUS_RECOMPUTE_BLOCK ? 0 : mode == APUS_RECOMPUTE_BLOCK ? points : mode - APUS_RECOMPUTE_BLOCK;
    for (size_t i = 0; i < r->boundary; i++) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        const int32_t id = p->order.at[i];
        const int can = clonable(p, n);
        int point = 0;
        n->segment = seen;
        for (uint32_t k = 0; k < n->n_out; k++)
            point |= p->tensors.at[n->out[k]].block_point;
        r->block[id] = seen > 0 && seen < points && seen <= blocks && can && !point;
        r->clone[id] =
            r->block[id] || ((n->op->flags & APUS_OP_CHEAP) != 0 && n->kernel->then == NULL && can && !(blocks > 0 && seen <= blocks && point));
        seen += point;
        for (uint32_t k = 0; k < n->n_out && !r->clone[id]; k++)
            r->saved[n->out[k]] = r->direct[n->out[k]] || p->tensors.at[n->out[k]].keep;
    }
    for (size_t i = 0; i < r->boundary; i++) {
        const int32_t id = p->order.at[i];
        const apus_plan_node *n = &p->nodes.at[id];
        size_t gain = 0;
        for (uint32_t k = 0; k < n->n_out; k++)
            if (r->direct[n->out[k]])
                gain += apus_plan_bytes(&p->tensors.at[n->out[k]]);
        if (!r->clone[id] || r->block[id] || gain == 0)
            continue;
        int nodes = 0;
        r->walk++;
        r->n_cost = 0;
        if (gain >= SMALL && cost(r, n, &nodes) < gain) {
            for (size_t j = 0; j < r->n_cost; j++)
                r->saved[r->cost_tensors[j]] = 1;
            continue;
        }
        r->clone[id] = 0;
        for (uint32_t k = 0; k < n->n_out; k++)
            r->saved[n->out[k]] = 1;
    }
}

static apus_status put(recompute *r, int32_t node)
{
    int32_t *o = APUS_LIST_ADD(r->order);
    if (o == NULL)
        return apus_fail(r->err, APUS_E_MEMORY, "out of memory while planning");
    *o = node;
    return APUS_OK;
}

/* Replace what `n` reads by clones, making those that are not there yet. A clone inside a block reaches no further back
 * than its block. Recursion goes as deep as a block's chain of ops, or DEEP. */
static apus_status rewire(recompute *r, apus_plan_node *n, int is_clone)
{
    for (uint32_t k = 0; k < n->n_in; k++) {
        const int32_t t = n->in[k], m = r->p->tensors.at[t].node;
        if (!apus_plan_reads(n, k) || !is_forward(r, m) || !r->clone[m])
            continue;
        if (is_clone && r->block[m] && r->p->nodes.at[m].segment != n->segment)
            continue;
        if (r->copy[t] < 0) {
            apus_plan_node c = r->p->nodes.at[m];
            c.backward = 1;
            const apus_status st = rewire(r, &c, 1);
            if (st != APUS_OK)
                return st;
            for (uint32_t i = 0; i < c.n_out; i++) {
                const apus_shape shape = r->p->tensors.at[c.out[i]].shape;
                const int32_t copy = apus_plan_add_tensor(r->p, &shape);
                if (copy < 0)
                    return apus_fail(r->err, APUS_E_MEMORY, "out of memory while planning");
                r->copy[c.out[i]] = copy;
                c.out[i] = copy;
            }
            const int32_t id = apus_plan_add_node(r->p, &c);
            if (id < 0 || put(r, id) != APUS_OK)
                return apus_fail(r->err, APUS_E_MEMORY, "out of memory while planning");
        }
        n->in[k] = r->copy[t];
    }
    return APUS_OK;
}

static apus_status rebuild(recompute *r)
{
    apus_plan *p = r->p;
    const size_t n_tensors = p->tensors.n;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < p->order.n && st == APUS_OK; i++) {
        const int32_t id = p->order.at[i];
        if (i >= r->boundary) {
            apus_plan_node n = p->nodes.at[id]; /* a copy: cloning moves the nodes */
            for (uint32_t k = 0; k < n.n_in; k++)
                if ((size_t)n.in[k] >= n_tensors)
                    return apus_fail(r->err, APUS_E_INTERNAL, "plan: a node is rewired twice");
            st = rewire(r, &n, 0);
            p->nodes.at[id] = n;
        }
        if (st == APUS_OK)
            st = put(r, id);
    }
    if (st == APUS_OK) {
        free(p->order.at);
        p->order.at = r->order.at;
        p->order.n = r->order.n;
        p->order.cap = r->order.cap;
        r->order.at = NULL;
    }
    return st;
}

apus_status apus_plan_recompute(apus_plan *p, int mode, apus_error *err)
{
    apus_plan_prune(p);
    recompute r = {.p = p, .err = err, .boundary = p->order.n};
    for (size_t i = p->order.n; i-- > 0;)
        if (p->nodes.at[p->order.at[i]].backward)
            r.boundary = i;
    if (r.boundary == p->order.n)
        return APUS_OK;
    const size_t nodes = p->nodes.n + 1, tensors = p->tensors.n + 1;
    r.position = malloc(nodes * sizeof *r.position);
    r.stamp = calloc(nodes, sizeof *r.stamp);
    r.clone = calloc(nodes, 1);
    r.block = calloc(nodes, 1);
    r.direct = calloc(tensors, 1);
    r.saved = calloc(tensors, 1);
    r.copy = malloc(tensors * sizeof *r.copy);
    r.cost_tensors = malloc(tensors * sizeof *r.cost_tensors);
    apus_status st = APUS_OK;
    if (r.position == NULL || r.stamp == NULL || r.clone == NULL || r.block == NULL || r.direct == NULL || r.saved == NULL || r.copy == NULL ||
        r.cost_tensors == NULL) {
        st = apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    } else {
        memset(r.position, 0xff, nodes * sizeof *r.position);
        memset(r.copy, 0xff, tensors * sizeof *r.copy);
        for (size_t i = 0; i < p->order.n; i++) {
            const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
            r.position[p->order.at[i]] = (int32_t)i;
            for (uint32_t k = 0; k < n->n_in && i >= r.boundary; k++)
                r.direct[n->in[k]] |= (unsigned char)apus_plan_reads(n, k);
        }
        decide(&r, mode);
        st = rebuild(&r);
    }
    free(r.position);
    free(r.stamp);
    free(r.clone);
    free(r.block);
    free(r.direct);
    free(r.saved);
    free(r.copy);
    free(r.cost_tensors);
    free(r.order.at);
    apus_plan_prune(p);
    return st;
}
