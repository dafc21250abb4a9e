/*
 * apus/ops.h: the built-in ops: what each computes, its inputs, attributes and outputs; and a function per op that emits it.
 * T tokens, N scored positions, R rows, V vocabulary. "[*]": any shape. Included by apus/graph.h.
 *
 * op (version 1, "apus." before, "/1" after)   inputs -> outputs; attributes
 *
 * elementwise (fused by the executor; an input of one element is broadcast):
 *   add sub mul div maximum minimum            a[*], b[*] -> [*]
 *   greater                                    a[*], b[*] -> 1 where a > b else 0 (no gradient)
 *   where                                      c[*], a[*], b[*] -> a where c != 0 else b (gradient to a, b)
 *   affine                                     x[*] -> scale*x + shift; scale=1 shift=0
 *   exp log log1p expm1 sqrt abs square tanh sigmoid log_sigmoid softplus relu silu   x[*] -> [*]
 *   sign                                       x[*] -> -1, 0, 1 (no gradient)
 *   gelu                                       x[*] -> [*]; tanh=0 (0: erf form, 1: tanh approximation, Hendrycks & Gimpel 2016)
 *   gelu_grad silu_grad                        dy[*], x[*] -> dx; as above
 *   swiglu                                     gate[*], up[*] -> silu(gate)*up (Shazeer 2020)
 *   swiglu_grad                                dy, gate, up -> dgate, dup
 *   stop_gradient                              x -> x
 * reductions and indexing (all sums in at least float64 accumulation or pairwise; fixed order):
 *   sum                                        x[*] -> [1]
 *   sum_squares                                x[*] -> [1] (no gradient)
 *   sum_rows                                   x[T,H] -> [H]
 *   fill                                       s[1], like[*] -> [*] every element s (gradient to s)
 *   add_row                                    x[T,H], b[H] -> x + b for each row
 *   scale_rows                                 x[T,H], s[T] -> s[t] * x[t,:] (no gradient)
 *   gather                                     x[R] or x[R,H], index i32[N] -> [N] or [N,H]
 *   scatter_add                                dy[N] or [N,H], index i32[N], like x -> shape of x
 *   columns                                    x[T,H] -> x[:, begin:begin+count]; begin=0 count=0
 *   columns_grad                               dy[T,count], x[T,H] -> [T,H], zero outside; begin=0
 * matrix:
 *   linear                                     x[M,I], W[O,I], (bias[O]) -> x Wᵀ + b [M,O]
 *   linear_dx                                  dy[M,O], W[O,I] -> dy W [M,I]
 *   linear_dw                                  dy[M,O], x[M,I] -> dyᵀ x [O,I]
 *   embedding                                  W[V,H], ids i32[T] -> [T,H]
 *   embedding_dw                               dy[T,H], ids i32[T], W[V,H] -> [V,H]
 * norms, over groups of `width` elements of the last dimension (0: all of it); w has width elements:
 *   rms_norm                                   x[T,H], w -> x / sqrt(mean x² + eps) * (offset + w); eps=1e-6 width=0 offset=0 (Zhang & Sennrich 2019)
 *   rms_norm_grad                              dy, x, w -> dx, dw; same
 *   layer_norm                                 x[T,H], w, (b) -> (x-mean)/sqrt(var+eps)*w + b; eps=1e-5 (Ba et al. 2016)
 *   layer_norm_grad                            dy, x, w -> dx, dw, db; same
 * rope (Su et al. 2021), half-split as in Hugging Face; rotates the first rotary_dim of each head_dim:
 *   rope                                       x[T,heads*head_dim], positions i32[T], lengths i32[T], freqs -> [T,heads*head_dim];
 *        head_dim rotary_dim scale=1 inverse=0 mode=0 limit=0 factor=1 base=10000
 *        freqs: [rotary_dim/2] (mode 0), or [2, rotary_dim/2] (mode 2). scale multiplies cos and sin (yarn, longrope).
 *        lengths[t]: how many tokens token t's sequence has in all. mode 1 "dynamic": where lengths > limit the base is
 *        base*(factor*length/limit-(factor-1))^(d/(d-2)); mode 2 "longrope": freqs row 1 where lengths > limit, else row 0.
 * attention, causal within segments: segments i32[S,4] = {begin, count, parent, 0}: queries begin…begin+count see the keys of the
 * parent segment (and its parents; -1: none), then their own up to themselves. Parents come earlier. Every token is in one segment.
 *   attention                                  q[T,heads*D], k[T,kv*D], v[T,kv*D], segments -> out[T,heads*D], lse[T,heads];
 *        heads kv_heads head_dim scale window=0 softcap=0
 *   attention_grad                             dout, q, k, v, out, lse, segments -> dq, dk, dv; same
 *   kv_write (in place)                        cache[slots,kv*D], new[T,kv*D], slot i32[T] -> cache
 *   attention_cached                           q[T,heads*D], kcache, vcache, table i32[S,4+pages] -> out[T,heads*D];
 *        heads kv_heads head_dim scale window=0 softcap=0 page=0
 *        table row: {begin, count, length, 0, page ids…}: queries begin…begin+count are the last `count` of `length` positions;
 *        position p lies in slot pages[p/page]*page + p%page. No gradient. A query's bits depend on its own row alone.
 * vocabulary head, streamed: the [N,V] logits are never stored. logits = softcap(scale * (x Wᵀ + b)):
 *   token_logprob                              x[N,H], W[V,H], targets i32[N] -> logp[N], lse[N], slope[N,H] = d logp/dx; scale=1 softcap=0
 *   token_logprob_dw                           dlogp[N], x, W, targets, lse -> dW; same
 * random:
 *   dropout                                    x[T,H], token i64[T], seed i64[2] = {seed, step} -> x*keep/(1-p); p=0 purpose=0
 *        keep(t,h) from Philox4x32-10 (Salmon et al. 2011), key seed, counter {token[t], h/4, step, purpose}, word h%4, u >= p.
 *   dropout_grad                               dy, token, seed -> dx; same
 */
#ifndef APUS_OPS_H
#define APUS_OPS_H

#include <apus/graph.h>

#ifdef __cplusplus
extern "C" {
#endif

#define APUS_G apus_graph_functions

static inline apus_tensor apus_emit1(apus_graph *g, const char *op, apus_tensor a, const double *at, uint32_t n)
{
    return APUS_G->emit(g, op, &a, 1, at, n);
}
static inline apus_tensor apus_emit2(apus_graph *g, const char *op, apus_tensor a, apus_tensor b, const double *at, uint32_t n)
{
    const apus_tensor in[2] = {a, b};
    return APUS_G->emit(g, op, in, 2, at, n);
}
static inline apus_tensor apus_emit3(apus_graph *g, const char *op, apus_tensor a, apus_tensor b, apus_tensor c, const double *at,
                                     uint32_t n)
{
    const apus_tensor in[3] = {a, b, c};
    return APUS_G->emit(g, op, in, 3, at, n);
}

#define APUS_UNARY_(name)                                                   \
    static inline apus_tensor apus_##name(apus_graph *g, apus_tensor x)     \
    {                                                                       \
        return apus_emit1(g, "apus." #name "/1", x, NULL, 0);               \
    }
#define APUS_BINARY_(name)                                                              \
    static inline apus_tensor apus_##name(apus_graph *g, apus_tensor a, apus_tensor b)  \
    {                                                                                   \
        return apus_emit2(g, "apus." #name "/1", a, b, NULL, 0);                        \
    }
APUS_BINARY_(add)
APUS_BINARY_(sub)
APUS_BINARY_(mul)
APUS_BINARY_(div)
APUS_BINARY_(maximum)
APUS_BINARY_(minimum)
APUS_BINARY_(greater)
APUS_BINARY_(swiglu)
APUS_BINARY_(fill)
APUS_BINARY_(gather)
APUS_BINARY_(add_row)
APUS_UNARY_(exp)
APUS_UNARY_(log)
APUS_UNARY_(log1p)
APUS_UNARY_(expm1)
APUS_UNARY_(sqrt)
APUS_UNARY_(abs)
APUS_UNARY_(square)
APUS_UNARY_(tanh)
APUS_UNARY_(sigmoid)
APUS_UNARY_(log_sigmoid)
APUS_UNARY_(softplus)
APUS_UNARY_(relu)
APUS_UNARY_(silu)
APUS_UNARY_(sign)
APUS_UNARY_(stop_gradient)
APUS_UNARY_(sum)
APUS_UNARY_(sum_rows)
#undef APUS_UNARY_
#undef APUS_BINARY_

static inline apus_tensor apus_affine(apus_graph *g, apus_tensor x, double scale, double shift)
{
    const double at[2] = {scale, shift};
    return apus_emit1(g, "apus.affine/1", x, at, 2);
}
static inline apus_tensor apus_scale(apus_graph *g, apus_tensor x, double scale)
{
    return apus_affine(g, x, scale, 0.0);
}
static inline apus_tensor apus_neg(apus_graph *g, apus_tensor x)
{
    return apus_affine(g, x, -1.0, 0.0);
}
static inline apus_tensor apus_where(apus_graph *g, apus_tensor c, apus_tensor a, apus_tensor b)
{
    return apus_emit3(g, "apus.where/1", c, a, b, NULL, 0);
}
static inline apus_tensor apus_gelu(apus_graph *g, apus_tensor x, int tanh_form)
{
    const double at[1] = {(double)tanh_form};
    return apus_emit1(g, "apus.gelu/1", x, at, 1);
}
static inline apus_tensor apus_columns(apus_graph *g, apus_tensor x, int64_t begin, int64_t count)
{
    const double at[2] = {(double)begin, (double)count};
    return apus_emit1(g, "apus.columns/1", x, at, 2);
}
static inline apus_tensor apus_scatter_add(apus_graph *g, apus_tensor dy, apus_tensor index, apus_tensor like)
{
    return apus_emit3(g, "apus.scatter_add/1", dy, index, like, NULL, 0);
}
static inline apus_tensor apus_scalar(apus_graph *g, double v)
{
    return APUS_G->constant(g, &v, 0, NULL);
}
/* x [M, in] times a weight that is already a tensor [out, in]: tuners' own matrices. */
static inline apus_tensor apus_matmul(apus_graph *g, apus_tensor x, apus_tensor w)
{
    return apus_emit2(g, "apus.linear/1", x, w, NULL, 0);
}
static inline apus_tensor apus_rms_norm(apus_graph *g, apus_tensor x, apus_tensor w, double eps, int64_t width, double offset)
{
    const double at[3] = {eps, (double)width, offset};
    return apus_emit2(g, "apus.rms_norm/1", x, w, at, 3);
}
static inline apus_tensor apus_layer_norm(apus_graph *g, apus_tensor x, apus_tensor w, apus_tensor b, double eps)
{
    return apus_emit3(g, "apus.layer_norm/1", x, w, b, &eps, 1);
}

/* Attributes of rope, in order. */
typedef struct apus_rope_spec {
    int32_t head_dim, rotary_dim;
    double scale;
    int32_t mode; /* 0 fixed, 1 dynamic, 2 longrope */
    double limit, factor, base;
} apus_rope_spec;

static inline apus_tensor apus_rope(apus_graph *g, apus_tensor x, apus_tensor positions, apus_tensor lengths, apus_tensor freqs,
                                    const apus_rope_spec *s)
{
    const apus_tensor in[4] = {x, positions, lengths, freqs};
    const double at[8] = {(double)s->head_dim, (double)s->rotary_dim, s->scale, 0.0, (double)s->mode, s->limit, s->factor, s->base};
    return APUS_G->emit(g, "apus.rope/1", in, 4, at, 8);
}
static inline apus_tensor apus_dropout(apus_graph *g, apus_tensor x, apus_tensor token, apus_tensor seed, double p, int64_t purpose)
{
    const double at[2] = {p, (double)purpose};
    return apus_emit3(g, "apus.dropout/1", x, token, seed, at, 2);
}

#ifdef __cplusplus
}
#endif
#endif
