/*
 * core/graph/gradients: gradients of the built-in ops, built from ops, and their decompositions into simpler ones.
 */
#include "graph/internal.h"

#define GRADIENT(name)                                                                                                                               \
    void apus_gradient_##name(apus_graph *g, const apus_tensor *in, uint32_t n_in, const apus_tensor *out, const apus_tensor *d_out,                 \
                              const double *attrs, uint32_t need, apus_tensor *d_in)
#define UNUSED ((void)g, (void)in, (void)n_in, (void)out, (void)attrs, (void)need)

static apus_tensor one(apus_graph *g)
{
    return apus_scalar(g, 1.0);
}

static int single(apus_graph *g, apus_tensor t)
{
    int64_t dims[APUS_MAX_DIMS];
    const uint32_t n = APUS_G->shape(g, t, dims);
    for (uint32_t i = 0; i < n; i++)
        if (dims[i] != 1)
            return 0;
    return 1;
}

/* The gradient d of an elementwise result, for an input that may have been broadcast. */
static apus_tensor fit(apus_graph *g, apus_tensor d, apus_tensor like)
{
    int64_t dims[APUS_MAX_DIMS], d_dims[APUS_MAX_DIMS];
    if (!single(g, like))
        return single(g, d) ? apus_fill(g, d, like) : d;
    const uint32_t n = APUS_G->shape(g, like, dims);
    if (single(g, d) && APUS_G->shape(g, d, d_dims) == n)
        return d;
    const apus_tensor s = apus_sum(g, d);
    return n == 1 ? s : apus_fill(g, s, like);
}

/* ---------------------------------------------------------------- elementwise of two and three */

GRADIENT(add)
{
    UNUSED;
    for (int i = 0; i < 2; i++)
        if (need >> i & 1)
            d_in[i] = fit(g, d_out[0], in[i]);
}

GRADIENT(sub)
{
    UNUSED;
    if (need & 1)
        d_in[0] = fit(g, d_out[0], in[0]);
    if (need & 2)
        d_in[1] = fit(g, apus_neg(g, d_out[0]), in[1]);
}

GRADIENT(mul)
{
    UNUSED;
    for (int i = 0; i < 2; i++)
        if (need >> i & 1)
            d_in[i] = fit(g, apus_mul(g, d_out[0], in[1 - i]), in[i]);
}

GRADIENT(div)
{
    UNUSED;
    const apus_tensor q = apus_div(g, d_out[0], in[1]);
    if (need & 1)
        d_in[0] = fit(g, q, in[0]);
    if (need & 2)
        d_in[1] = fit(g, apus_neg(g, apus_mul(g, q, out[0])), in[1]);
}

/* Ties share the gradient equally, as in PyTorch. */
static void extremum(apus_graph *g, const apus_tensor *in, apus_tensor d, uint32_t need, double sign, apus_tensor *d_in)
{
    const apus_tensor more = apus_sub(g, apus_greater(g, in[0], in[1]), apus_greater(g, in[1], in[0]));
    for (int i = 0; i < 2; i++)
        if (need >> i & 1)
            d_in[i] = fit(g, apus_mul(g, d, apus_affine(g, more, i == 0 ? 0.5 * sign : -0.5 * sign, 0.5)), in[i]);
}

GRADIENT(maximum)
{
    UNUSED;
    extremum(g, in, d_out[0], need, 1.0, d_in);
}

GRADIENT(minimum)
{
    UNUSED;
    extremum(g, in, d_out[0], need, -1.0, d_in);
}

GRADIENT(where)
{
    UNUSED;
    const apus_tensor zero = apus_scalar(g, 0.0);
    if (need & 2)
        d_in[1] = fit(g, apus_where(g, in[0], d_out[0], zero), in[1]);
    if (need & 4)
        d_in[2] = fit(g, apus_where(g, in[0], zero, d_out[0]), in[2]);
}

GRADIENT(swiglu)
{
    UNUSED;
    const apus_tensor from[3] = {d_out[0], in[0], in[1]};
    const apus_tensor d = APUS_G->emit(g, "apus.swiglu_grad/1", from, 3, NULL, 0);
    for (uint32_t i = 0; i < 2; i++)
        if (need >> i & 1)
            d_in[i] = fit(g, APUS_G->output(g, d, i), in[i]);
}

/* ---------------------------------------------------------------- elementwise of one: d_in = d * f'(x) */

GRADIENT(affine)
{
    UNUSED;
    d_in[0] = apus_scale(g, d_out[0], attrs[0]);
}

GRADIENT(exp)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], out[0]);
}

GRADIENT(log)
{
    UNUSED;
    d_in[0] = apus_div(g, d_out[0], in[0]);
}

GRADIENT(log1p)
{
    UNUSED;
    d_in[0] = apus_div(g, d_out[0], apus_affine(g, in[0], 1.0, 1.0));
}

GRADIENT(expm1)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_exp(g, in[0]));
}

GRADIENT(sqrt)
{
    UNUSED;
    d_in[0] = apus_div(g, apus_scale(g, d_out[0], 0.5), out[0]);
}

GRADIENT(abs)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_sign(g, in[0]));
}

GRADIENT(square)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_scale(g, in[0], 2.0));
}

GRADIENT(tanh)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_affine(g, apus_square(g, out[0]), -1.0, 1.0));
}

GRADIENT(sigmoid)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_mul(g, out[0], apus_affine(g, out[0], -1.0, 1.0)));
}

GRADIENT(log_sigmoid)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_sigmoid(g, apus_neg(g, in[0])));
}

GRADIENT(softplus)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_sigmoid(g, in[0]));
}

GRADIENT(relu)
{
    UNUSED;
    d_in[0] = apus_mul(g, d_out[0], apus_greater(g, in[0], apus_scalar(g, 0.0)));
}

GRADIENT(silu)
{
    UNUSED;
    d_in[0] = apus_emit2(g, "apus.silu_grad/1", d_out[0], in[0], NULL, 0);
}

GRADIENT(gelu)
{
    UNUSED;
    d_in[0] = apus_emit2(g, "apus.gelu_grad/1", d_out[0], in[0], attrs, 1);
}

/* ---------------------------------------------------------------- reductions and indexing */

GRADIENT(sum)
{
    UNUSED;
    d_in[0] = apus_fill(g, d_out[0], in[0]);
}

GRADIENT(sum_rows)
{
    UNUSED;
    d_in[0] = apus_add_row(g, apus_fill(g, apus_scalar(g, 0.0), in[0]), d_out[0]);
}

GRADIENT(fill)
{
    UNUSED;
    if (need & 1)
        d_in[0] = fit(g, d_out[0], in[0]);
}

GRADIENT(add_row)
{
    UNUSED;
    if (need & 1)
        d_in[0] = d_out[0];
    if (need & 2)
        d_in[1] = apus_sum_rows(g, d_out[0]);
}

GRADIENT(gather)
{
    UNUSED;
    if (need & 1)
        d_in[0] = apus_scatter_add(g, d_out[0], in[1], in[0]);
}

GRADIENT(scatter_add)
{
    UNUSED;
    if (need & 1)
        d_in[0] = apus_gather(g, d_out[0], in[1]);
}

GRADIENT(columns)
{
    UNUSED;
    d_in[0] = apus_emit2(g, "apus.columns_grad/1", d_out[0], in[0], attrs, 1);
}

GRADIENT(columns_grad)
{
    UNUSED;
    int64_t dims[APUS_MAX_DIMS];
    if ((need & 1) && APUS_G->shape(g, in[0], dims) == 2)
        d_in[0] = apus_columns(g, d_out[0], (int64_t)attrs[0], dims[1]);
}

/* ---------------------------------------------------------------- matrix, norms, attention */

GRADIENT(linear)
{
    UNUSED;
    if (need & 2)
        d_in[1] = apus_emit2(g, "apus.linear_dw/1", d_out[0], in[0], NULL, 0);
    if (n_in > 2 && (need & 4))
        d_in[2] = apus_sum_rows(g, d_out[0]);
    if (need & 1)
        d_in[0] = apus_emit2(g, "apus.linear_dx/1", d_out[0], in[1], NULL, 0);
}

GRADIENT(embedding)
{
    UNUSED;
    if (need & 1)
        d_in[0] = apus_emit3(g, "apus.embedding_dw/1", d_out[0], in[1], in[0], NULL, 0);
}

GRADIENT(rms_norm)
{
    UNUSED;
    const apus_tensor d = apus_emit3(g, "apus.rms_norm_grad/1", d_out[0], in[0], in[1], attrs, 3);
    for (uint32_t i = 0; i < 2; i++)
        if (need >> i & 1)
            d_in[i] = APUS_G->output(g, d, i);
}

GRADIENT(layer_norm)
{
    UNUSED;
    const apus_tensor d = apus_emit3(g, "apus.layer_norm_grad/1", d_out[0], in[0], in[1], attrs, 1);
    for (uint32_t i = 0; i < n_in; i++)
        if (need >> i & 1)
            d_in[i] = APUS_G->output(g, d, i);
}

/* The inverse rotation: a rotation is orthogonal, `scale` multiplies both. */
GRADIENT(rope)
{
    UNUSED;
    const apus_tensor from[4] = {d_out[0], in[1], in[2], in[3]};
    double at[8];
    for (int i = 0; i < 8; i++)
        at[i] = attrs[i];
    at[3] = attrs[3] != 0.0 ? 0.0 : 1.0;
    if (need & 8)
        APUS_G->fail(g, "apus.rope/1: no gradient to the frequencies");
    if (need & 1)
        d_in[0] = APUS_G->emit(g, "apus.rope/1", from, 4, at, 8);
}

GRADIENT(attention)
{
    UNUSED;
    if (!apus_is_none(d_out[1]))
        APUS_G->fail(g, "apus.attention/1: no gradient through lse");
    if (apus_is_none(d_out[0]))
        return;
    const apus_tensor from[7] = {d_out[0], in[0], in[1], in[2], out[0], out[1], in[3]};
    const apus_tensor d = APUS_G->emit(g, "apus.attention_grad/1", from, 7, attrs, 6);
    for (uint32_t i = 0; i < 3; i++)
        if (need >> i & 1)
            d_in[i] = APUS_G->output(g, d, i);
}

GRADIENT(token_logprob)
{
    UNUSED;
    if (!apus_is_none(d_out[1]) || !apus_is_none(d_out[2]))
        APUS_G->fail(g, "apus.token_logprob/1: no gradient through lse or slope");
    if (apus_is_none(d_out[0]))
        return;
    if (need & 1)
        d_in[0] = apus_emit2(g, "apus.scale_rows/1", out[2], d_out[0], NULL, 0);
    const apus_tensor from[5] = {d_out[0], in[0], in[1], in[2], out[1]};
    if (need & 2)
        d_in[1] = APUS_G->emit(g, "apus.token_logprob_dw/1", from, 5, attrs, 2);
}

GRADIENT(dropout)
{
    UNUSED;
    d_in[0] = apus_emit3(g, "apus.dropout_grad/1", d_out[0], in[1], in[2], attrs, 2);
}

/* ---------------------------------------------------------------- decompositions */

#define DECOMPOSE(name) void apus_decompose_##name(apus_graph *g, const apus_tensor *in, uint32_t n_in, const double *attrs, apus_tensor *out)
#define UNUSED_D        ((void)n_in, (void)attrs)

DECOMPOSE(sub)
{
    UNUSED_D;
    out[0] = apus_add(g, in[0], apus_neg(g, in[1]));
}

DECOMPOSE(abs)
{
    UNUSED_D;
    out[0] = apus_maximum(g, in[0], apus_neg(g, in[0]));
}

DECOMPOSE(square)
{
    UNUSED_D;
    out[0] = apus_mul(g, in[0], in[0]);
}

DECOMPOSE(sigmoid)
{
    UNUSED_D;
    out[0] = apus_affine(g, apus_tanh(g, apus_scale(g, in[0], 0.5)), 0.5, 0.5);
}

DECOMPOSE(log_sigmoid)
{
    UNUSED_D;
    out[0] = apus_neg(g, apus_softplus(g, apus_neg(g, in[0])));
}

DECOMPOSE(softplus)
{
    UNUSED_D;
    out[0] = apus_add(g, apus_maximum(g, in[0], apus_scalar(g, 0.0)), apus_log1p(g, apus_exp(g, apus_neg(g, apus_abs(g, in[0])))));
}

DECOMPOSE(relu)
{
    UNUSED_D;
    out[0] = apus_maximum(g, in[0], apus_scalar(g, 0.0));
}

DECOMPOSE(silu)
{
    UNUSED_D;
    out[0] = apus_mul(g, in[0], apus_sigmoid(g, in[0]));
}

/* silu'(x) = s + x s (1 - s), s = sigmoid(x) */
static apus_tensor silu_slope(apus_graph *g, apus_tensor x)
{
    const apus_tensor s = apus_sigmoid(g, x);
    return apus_add(g, s, apus_mul(g, apus_mul(g, x, s), apus_sub(g, one(g), s)));
}

DECOMPOSE(silu_grad)
{
    UNUSED_D;
    out[0] = apus_mul(g, in[0], silu_slope(g, in[1]));
}

DECOMPOSE(swiglu)
{
    UNUSED_D;
    out[0] = apus_mul(g, apus_silu(g, in[0]), in[1]);
}

DECOMPOSE(swiglu_grad)
{
    UNUSED_D;
    out[0] = apus_mul(g, apus_mul(g, in[0], in[2]), silu_slope(g, in[1]));
    out[1] = apus_mul(g, in[0], apus_silu(g, in[1]));
}

DECOMPOSE(sum_squares)
{
    UNUSED_D;
    out[0] = apus_sum(g, apus_square(g, in[0]));
}

DECOMPOSE(dropout_grad)
{
    UNUSED_D;
    out[0] = apus_emit3(g, "apus.dropout/1", in[0], in[1], in[2], attrs, 2);
}

DECOMPOSE(stop_gradient)
{
    UNUSED_D;
    out[0] = apus_affine(g, in[0], 1.0, 0.0);
}
