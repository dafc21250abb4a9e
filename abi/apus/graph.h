/*
 * apus/graph.h: the extension "apus.graph/1": building tensor expressions; and the kind "op": a tensor operation.
 *
 * A builder never checks errors: the graph keeps the first one with its place and gives it back when it is finished.
 * After an error every function returns APUS_NONE and does nothing. Building is [main].
 *
 *     apus_tensor margin = apus_sub(g, chosen, rejected);             // reads like the paper
 *     apus_tensor loss = apus_neg(g, apus_log_sigmoid(g, apus_scale(g, margin, beta)));
 */
#ifndef APUS_GRAPH_H
#define APUS_GRAPH_H

#include <apus/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct apus_graph apus_graph;

typedef struct apus_tensor {
    int32_t id;
} apus_tensor;

#define APUS_NONE_ID (-1)
static inline apus_tensor apus_none(void)
{
    apus_tensor t = {APUS_NONE_ID};
    return t;
}
static inline int apus_is_none(apus_tensor t)
{
    return t.id < 0;
}

/* Attributes of the op attention, in order. */
typedef struct apus_attention_spec {
    uint32_t size;
    int32_t heads, kv_heads, head_dim;
    double scale;       /* of q·k; usually 1/sqrt(head_dim) */
    int32_t window;     /* a query sees keys less than `window` positions back; 0: all */
    double softcap;     /* 0: none */
    int32_t layer;      /* which layer's key/value cache, when generating */
} apus_attention_spec;

typedef struct apus_graph_api {
    uint32_t size;
    const void *reserved;
    /* Any op by name ("apus.add/1", "acme.x/1"): first output. attrs: in the op's declared order, missing ones default. */
    apus_tensor (*emit)(apus_graph *g, const char *op, const apus_tensor *in, uint32_t n_in, const double *attrs, uint32_t n_attrs);
    /* k-th output of the op whose first output is t. */
    apus_tensor (*output)(apus_graph *g, apus_tensor t, uint32_t k);
    /* Constants, copied. dims NULL (ndim 0): a scalar, shape [1]. */
    apus_tensor (*constant)(apus_graph *g, const double *values, uint32_t ndim, const int64_t *dims);
    /* A named tensor that the host feeds each run; the same name gives the same tensor. */
    apus_tensor (*input)(apus_graph *g, const char *name, apus_dtype dtype, uint32_t ndim, const int64_t *dims);
    /* A weight as a tensor (norms, biases, position tables). One handle however often it is asked for. */
    apus_tensor (*weight)(apus_graph *g, const apus_weight_spec *w);
    /* y = x Wᵀ + b through the rewrite chain (storage encoding, tuner, sharding). x [.., in], W [out, in]; bias NULL: none. */
    apus_tensor (*linear)(apus_graph *g, apus_tensor x, const apus_weight_spec *w, const apus_weight_spec *bias);
    /* rows of W by ids. W [rows, width], ids i32 [T] -> [T, width]; through the rewrite chain too. */
    apus_tensor (*embedding)(apus_graph *g, apus_tensor ids, const apus_weight_spec *w);
    /* Self-attention of the tokens being run, by their segments, or over the cache when generating: the caller need not know.
     * q [T, heads*head_dim], k, v [T, kv_heads*head_dim] -> [T, heads*head_dim]. Keys are already rotated. */
    apus_tensor (*attention)(apus_graph *g, apus_tensor q, apus_tensor k, apus_tensor v, const apus_attention_spec *spec);
    /* Mark a named point ("block": the residual stream between layers) for recompute, adapters, calibration. Returns t or its replacement. */
    apus_tensor (*point)(apus_graph *g, const char *name, int32_t layer, apus_tensor t);
    /* Shape: returns ndim (0 after an error). */
    uint32_t (*shape)(apus_graph *g, apus_tensor t, int64_t dims[APUS_MAX_DIMS]);
    /* Make the graph fail with this message (first failure wins). */
    void (*fail)(apus_graph *g, const char *message);
} apus_graph_api;

/* Set once at entry by a plugin that builds graphs: apus_graph_functions = host->extension("apus.graph/1"). One per shared object. */
#if defined(__GNUC__)
__attribute__((weak, visibility("hidden"))) const apus_graph_api *apus_graph_functions;
#endif

/* ------------------------------------------------------------ the kind "op" */

/* Shapes in, shapes out. FROZEN: it stands in arrays. */
typedef struct apus_shape {
    apus_dtype dtype;            /* APUS_REAL for numbers */
    int32_t ndim;
    int64_t dims[APUS_MAX_DIMS]; /* constants or symbols */
} apus_shape;

enum {
    APUS_OP_ELEMENTWISE = 1u, /* every output element depends on the same element of the inputs (inputs of one element: on it);
                                 outputs have the shape of the largest input; runs are executed tile by tile, fused */
    APUS_OP_CHEAP = 2u,       /* recomputing it in the backward pass costs less than keeping it */
    APUS_OP_IN_PLACE = 4u     /* output 0 is input 0, changed (caches, registered state) */
};

#define APUS_MAX_ATTRS 16
#define APUS_MAX_INPUTS 12
#define APUS_MAX_OUTPUTS 6

typedef struct apus_op {
    uint32_t size;
    const char *name;              /* "owner.name/version" */
    const char *doc;               /* formula and source */
    uint32_t min_inputs, max_inputs, n_outputs;
    const char *attrs;             /* "eps=1e-5 width=0": names and defaults, in order */
    uint32_t flags;
    /* Check the inputs and give the outputs' shapes. */
    apus_status (*shapes)(const apus_shape *in, uint32_t n_in, const double *attrs, apus_shape *out, apus_error *err);
    /* Build the gradients: d_out[k] is none where no gradient arrives. Fill d_in[i] for each i with bit i of `need`;
     * others stay none. NULL: not differentiable (inputs are constants to the gradient). */
    void (*gradient)(apus_graph *g, const apus_tensor *in, uint32_t n_in, const apus_tensor *out, const apus_tensor *d_out,
                     const double *attrs, uint32_t need, apus_tensor *d_in);
    /* Build the same from simpler ops, for backends without a kernel and for the conformance test. NULL: primitive. */
    void (*decompose)(apus_graph *g, const apus_tensor *in, uint32_t n_in, const double *attrs, apus_tensor *out);
    uint32_t shape_only;           /* bit i: of input i only the shape is read: kernels get its view with data NULL */
} apus_op;

/* vtable of a component of kind "op": a list of ops. */
typedef struct apus_ops_ops {
    uint32_t size;
    const apus_op *ops; /* stride: ops[0].size */
    uint32_t n_ops;
} apus_ops_ops;

#ifdef __cplusplus
}
#endif

#include <apus/ops.h>
#endif
