/*
 * core/graph/autodiff: reverse-mode differentiation: builds, from each op's gradient, the nodes that give d y / d wrt.
 * First order only. Knows no op by name but the sum of contributions.
 */
#include "graph/internal.h"

#include <stdlib.h>
#include <string.h>

static int same_kind(const apus_graph *g, apus_tensor a, apus_tensor b)
{
    return apus_shape_equal(&g->tensors[a.id].shape, &g->tensors[b.id].shape);
}

/* d[t] += c */
static void contribute(apus_graph *g, int32_t *d, int32_t t, apus_tensor c, const char *who)
{
    if (apus_is_none(c) || g->status != APUS_OK)
        return;
    if (!same_kind(g, c, (apus_tensor){t})) {
        apus_error e;
        char a[96], b[96];
        (void)apus_graph_shape_text(&g->tensors[c.id].shape, a, sizeof a);
        (void)apus_graph_shape_text(&g->tensors[t].shape, b, sizeof b);
        (void)apus_graph_fail(g, apus_fail(&e, APUS_E_INTERNAL, "%s: a gradient of %s for an input of %s", who, a, b), &e);
        return;
    }
    d[t] = d[t] < 0 ? c.id : apus_add(g, (apus_tensor){d[t]}, c).id;
}

static void backward(apus_graph *g, const apus_tensor *y, const apus_tensor *dy, size_t n_y, const apus_tensor *wrt, size_t n_wrt,
                     unsigned char *depends, int32_t *d, size_t n_nodes)
{
    for (size_t k = 0; k < n_wrt; k++)
        if (wrt[k].id >= 0)
            depends[wrt[k].id] = 1;
    for (size_t i = 0; i < n_nodes; i++) {
        const apus_graph_node *n = &g->nodes[i];
        if (n->kind != APUS_NODE_OP || n->op->gradient == NULL)
            continue;
        int any = 0;
        for (uint32_t k = 0; k < n->n_in; k++)
            any |= depends[n->in[k]];
        for (uint32_t k = 0; k < n->n_out && any; k++)
            depends[n->first + (int32_t)k] |= g->tensors[n->first + (int32_t)k].shape.dtype == APUS_REAL;
    }
    for (size_t k = 0; k < n_y; k++)
        if (!apus_is_none(y[k]) && depends[y[k].id])
            contribute(g, d, y[k].id, dy[k], "the given gradient");
    for (size_t i = n_nodes; i-- > 0 && g->status == APUS_OK;) {
        const apus_graph_node n = g->nodes[i]; /* a copy: building moves the nodes */
        if (n.kind != APUS_NODE_OP || n.op->gradient == NULL)
            continue;
        apus_tensor in[APUS_MAX_INPUTS], d_in[APUS_MAX_INPUTS], out[APUS_MAX_OUTPUTS], d_out[APUS_MAX_OUTPUTS];
        uint32_t need = 0, flows = 0;
        for (uint32_t k = 0; k < n.n_in; k++) {
            in[k] = (apus_tensor){n.in[k]};
            d_in[k] = apus_none();
            need |= depends[n.in[k]] ? 1u << k : 0u;
        }
        for (uint32_t k = 0; k < n.n_out; k++) {
            out[k] = (apus_tensor){n.first + (int32_t)k};
            d_out[k] = (apus_tensor){d[n.first + (int32_t)k]};
            flows |= (uint32_t)(d[n.first + (int32_t)k] >= 0);
        }
        if (need == 0 || !flows)
            continue;
        n.op->gradient(g, in, n.n_in, out, d_out, n.attrs, need, d_in);
        for (uint32_t k = 0; k < n.n_in; k++)
            if (need >> k & 1)
                contribute(g, d, n.in[k], d_in[k], n.op->name);
    }
}

void apus_graph_gradients(apus_graph *g, const apus_tensor *y, const apus_tensor *dy, size_t n_y, const apus_tensor *wrt, size_t n_wrt,
                          apus_tensor *dwrt)
{
    for (size_t k = 0; k < n_wrt; k++)
        dwrt[k] = apus_none();
    if (g->status != APUS_OK)
        return;
    const size_t n_tensors = g->n_tensors;
    unsigned char *depends = calloc(n_tensors + 1, 1);
    int32_t *d = malloc((n_tensors + 1) * sizeof *d);
    apus_error e;
    if (depends == NULL || d == NULL) {
        (void)apus_graph_fail(g, apus_fail(&e, APUS_E_MEMORY, "out of memory while differentiating"), &e);
    } else {
        int known = 1;
        for (size_t k = 0; k < n_y; k++)
            known &= y[k].id < (int32_t)n_tensors && dy[k].id < (int32_t)n_tensors && (y[k].id < 0) == (dy[k].id < 0);
        for (size_t k = 0; k < n_wrt; k++)
            known &= wrt[k].id < (int32_t)n_tensors;
        memset(d, 0xff, (n_tensors + 1) * sizeof *d);
        const int outer = g->backward;
        g->backward = 1;
        if (!known)
            (void)apus_graph_fail(g, apus_fail(&e, APUS_E_INVALID, "gradients: not a tensor of this graph"), &e);
        else
            backward(g, y, dy, n_y, wrt, n_wrt, depends, d, g->n_nodes);
        g->backward = outer;
        for (size_t k = 0; k < n_wrt && g->status == APUS_OK; k++)
            if (wrt[k].id >= 0)
                dwrt[k] = (apus_tensor){d[wrt[k].id]};
    }
    free(depends);
    free(d);
}
