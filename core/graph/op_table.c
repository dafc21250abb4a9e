/*
 * core/graph/op_table: the built-in ops: what apus/ops.h documents, as data: arity, attributes, flags, shape rules. The
 * formulas and sources stand in apus/ops.h; gradients and decompositions in gradients.c; numbers in kernels.
 */
#include "graph/internal.h"

#include <math.h>
#include <string.h>

#define CHECK(condition, ...)                                                                                                                        \
    do {                                                                                                                                             \
        if (!(condition))                                                                                                                            \
            return apus_fail(err, APUS_E_INVALID, __VA_ARGS__);                                                                                      \
    } while (0)

#define RULE(name) static apus_status name(const apus_shape *in, uint32_t n_in, const double *attrs, apus_shape *out, apus_error *err)
#define UNUSED     ((void)n_in, (void)attrs)

static int is_real(const apus_shape *s)
{
    return s->dtype == APUS_REAL;
}

static int is_weight(const apus_shape *s)
{
    return s->dtype != APUS_I32 && s->dtype != APUS_I64 && s->dtype != APUS_U8;
}

static int is_ids(const apus_shape *s, int64_t n)
{
    return s->dtype == APUS_I32 && s->ndim == 1 && s->dims[0] == n;
}

static apus_shape vector(int64_t n)
{
    return (apus_shape){.dtype = APUS_REAL, .ndim = 1, .dims = {n}};
}

static apus_shape matrix(int64_t rows, int64_t columns)
{
    return (apus_shape){.dtype = APUS_REAL, .ndim = 2, .dims = {rows, columns}};
}

static int64_t last(const apus_shape *s)
{
    return s->dims[s->ndim - 1];
}

static int whole(double v, double low)
{
    return v >= low && v <= 2147483647.0 && v == floor(v);
}

/* ---------------------------------------------------------------- elementwise */

RULE(elementwise)
{
    UNUSED;
    const apus_shape *largest = &in[0];
    for (uint32_t i = 0; i < n_in; i++) {
        CHECK(is_real(&in[i]), "input %u is not of numbers", i);
        if (apus_shape_single(largest) && (!apus_shape_single(&in[i]) || in[i].ndim > largest->ndim))
            largest = &in[i];
    }
    for (uint32_t i = 0; i < n_in; i++)
        CHECK(apus_shape_single(&in[i]) || apus_shape_equal(&in[i], largest), "shapes differ");
    out[0] = out[1] = *largest;
    return APUS_OK;
}

RULE(like_second)
{
    UNUSED;
    CHECK(is_real(&in[0]) && apus_shape_single(&in[0]), "the value must be one number");
    CHECK(is_real(&in[1]), "the shape to fill is not of numbers");
    out[0] = in[1];
    return APUS_OK;
}

/* ---------------------------------------------------------------- reductions and indexing */

RULE(to_one)
{
    UNUSED;
    CHECK(is_real(&in[0]), "input is not of numbers");
    out[0] = vector(1);
    return APUS_OK;
}

RULE(sum_rows)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2, "needs x [T,H]");
    out[0] = vector(in[0].dims[1]);
    return APUS_OK;
}

RULE(add_row)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_real(&in[1]) && in[1].ndim == 1 && in[1].dims[0] == in[0].dims[1], "needs x [T,H] and b [H]");
    out[0] = in[0];
    return APUS_OK;
}

RULE(scale_rows)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_real(&in[1]) && in[1].ndim == 1 && in[1].dims[0] == in[0].dims[0], "needs x [T,H] and s [T]");
    out[0] = in[0];
    return APUS_OK;
}

RULE(gather)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim <= 2, "needs x [R] or [R,H]");
    CHECK(in[1].dtype == APUS_I32 && in[1].ndim == 1, "needs index i32 [N]");
    out[0] = in[0];
    out[0].dims[0] = in[1].dims[0];
    return APUS_OK;
}

RULE(scatter_add)
{
    UNUSED;
    CHECK(is_real(&in[0]) && is_real(&in[2]) && in[0].ndim == in[2].ndim && in[0].ndim <= 2 && (in[0].ndim == 1 || in[0].dims[1] == in[2].dims[1]),
          "needs dy [N] or [N,H] and a target [R] or [R,H]");
    CHECK(is_ids(&in[1], in[0].dims[0]), "needs index i32 [N]");
    out[0] = in[2];
    return APUS_OK;
}

RULE(columns)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && in[0].dims[1] >= 0, "needs x [T,H]");
    CHECK(whole(attrs[0], 0) && whole(attrs[1], 0) && attrs[0] + attrs[1] <= (double)in[0].dims[1], "columns %.0f to %.0f of %lld", attrs[0],
          attrs[0] + attrs[1], (long long)in[0].dims[1]);
    out[0] = matrix(in[0].dims[0], (int64_t)attrs[1]);
    return APUS_OK;
}

RULE(columns_grad)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_real(&in[1]) && in[1].ndim == 2 && in[0].dims[0] == in[1].dims[0],
          "needs dy [T,count] and x [T,H]");
    CHECK(whole(attrs[0], 0) && attrs[0] + (double)in[0].dims[1] <= (double)in[1].dims[1], "columns %.0f to %.0f of %lld", attrs[0],
          attrs[0] + (double)in[0].dims[1], (long long)in[1].dims[1]);
    out[0] = in[1];
    return APUS_OK;
}

/* ---------------------------------------------------------------- matrix */

RULE(linear)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_weight(&in[1]) && in[1].ndim == 2 && in[0].dims[1] == in[1].dims[1], "needs x [M,I] and W [O,I]");
    CHECK(n_in < 3 || (is_real(&in[2]) && in[2].ndim == 1 && in[2].dims[0] == in[1].dims[0]), "needs bias [O]");
    out[0] = matrix(in[0].dims[0], in[1].dims[0]);
    return APUS_OK;
}

RULE(linear_dx)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_weight(&in[1]) && in[1].ndim == 2 && in[0].dims[1] == in[1].dims[0], "needs dy [M,O] and W [O,I]");
    out[0] = matrix(in[0].dims[0], in[1].dims[1]);
    return APUS_OK;
}

RULE(linear_dw)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_real(&in[1]) && in[1].ndim == 2 && in[0].dims[0] == in[1].dims[0], "needs dy [M,O] and x [M,I]");
    out[0] = matrix(in[0].dims[1], in[1].dims[1]);
    return APUS_OK;
}

RULE(embedding)
{
    UNUSED;
    CHECK(is_weight(&in[0]) && in[0].ndim == 2 && in[1].dtype == APUS_I32 && in[1].ndim == 1, "needs W [V,H] and ids i32 [T]");
    out[0] = matrix(in[1].dims[0], in[0].dims[1]);
    return APUS_OK;
}

RULE(embedding_dw)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_ids(&in[1], in[0].dims[0]) && in[2].ndim == 2 && in[2].dims[1] == in[0].dims[1],
          "needs dy [T,H], ids i32 [T] and W [V,H]");
    out[0] = matrix(in[2].dims[0], in[2].dims[1]);
    return APUS_OK;
}

/* ---------------------------------------------------------------- norms */

static apus_status norm_width(const apus_shape *x, const apus_shape *w, double width, apus_error *err)
{
    const int64_t h = last(x);
    CHECK(is_real(x) && h >= 0, "needs x [T,H]");
    CHECK(whole(width, 0) && (width == 0.0 || h % (int64_t)width == 0), "groups of %.0f do not divide %lld", width, (long long)h);
    const int64_t wide = width != 0.0 ? (int64_t)width : h;
    CHECK(wide > 0 && is_real(w) && w->ndim == 1 && w->dims[0] == wide, "needs a weight [%lld]", (long long)wide);
    return APUS_OK;
}

RULE(rms_norm)
{
    UNUSED;
    out[0] = in[0];
    return norm_width(&in[0], &in[1], attrs[1], err);
}

RULE(rms_norm_grad)
{
    UNUSED;
    CHECK(is_real(&in[0]) && apus_shape_equal(&in[0], &in[1]), "dy and x differ in shape");
    out[0] = in[1];
    out[1] = in[2];
    return norm_width(&in[1], &in[2], attrs[1], err);
}

RULE(layer_norm)
{
    UNUSED;
    CHECK(n_in < 3 || (is_real(&in[2]) && apus_shape_equal(&in[1], &in[2])), "weight and bias differ in shape");
    out[0] = in[0];
    return norm_width(&in[0], &in[1], 0.0, err);
}

RULE(layer_norm_grad)
{
    UNUSED;
    CHECK(is_real(&in[0]) && apus_shape_equal(&in[0], &in[1]), "dy and x differ in shape");
    out[0] = in[1];
    out[1] = out[2] = in[2];
    return norm_width(&in[1], &in[2], 0.0, err);
}

/* ---------------------------------------------------------------- rope, attention */

RULE(rope)
{
    UNUSED;
    const double head = attrs[0], rotary = attrs[1];
    const int mode = (int)attrs[4];
    CHECK(is_real(&in[0]) && in[0].ndim == 2, "needs x [T,heads*head_dim]");
    CHECK(is_ids(&in[1], in[0].dims[0]) && is_ids(&in[2], in[0].dims[0]), "needs positions and lengths i32 [T]");
    CHECK(whole(head, 1) && in[0].dims[1] % (int64_t)head == 0, "head_dim %.0f does not divide %lld", head, (long long)in[0].dims[1]);
    CHECK(whole(rotary, 2) && rotary <= head && fmod(rotary, 2.0) == 0.0, "rotary_dim %.0f: even, at most head_dim %.0f", rotary, head);
    CHECK(mode >= 0 && mode <= 2 && attrs[4] == mode, "mode is 0, 1 or 2");
    const int64_t half = (int64_t)rotary / 2;
    const apus_shape *f = &in[3];
    if (mode == 2)
        CHECK(is_real(f) && f->ndim == 2 && f->dims[0] == 2 && f->dims[1] == half, "needs freqs [2,%lld]", (long long)half);
    else
        CHECK(is_real(f) && f->ndim == 1 && f->dims[0] == half, "needs freqs [%lld]", (long long)half);
    CHECK(mode != 1 || (attrs[5] > 0 && attrs[6] > 0 && attrs[7] > 0 && rotary > 2), "mode 1 needs limit, factor and base");
    out[0] = in[0];
    return APUS_OK;
}

static apus_status heads(const apus_shape *q, const apus_shape *k, const apus_shape *v, const double *attrs, apus_error *err)
{
    CHECK(whole(attrs[0], 1) && whole(attrs[1], 1) && whole(attrs[2], 1) && fmod(attrs[0], attrs[1]) == 0.0,
          "heads %.0f, kv_heads %.0f, head_dim %.0f: kv_heads must divide heads", attrs[0], attrs[1], attrs[2]);
    CHECK(whole(attrs[4], 0) && attrs[5] >= 0.0 && isfinite(attrs[3]), "window and softcap are 0 or more");
    CHECK(is_real(q) && q->ndim == 2 && q->dims[1] == (int64_t)(attrs[0] * attrs[2]), "needs q [T,%.0f]", attrs[0] * attrs[2]);
    CHECK(is_real(k) && k->ndim == 2 && k->dims[1] == (int64_t)(attrs[1] * attrs[2]) && is_real(v) && apus_shape_equal(k, v),
          "needs k and v [.,%.0f]", attrs[1] * attrs[2]);
    return APUS_OK;
}

static int is_table(const apus_shape *s, int64_t least, int exact)
{
    return s->dtype == APUS_I32 && s->ndim == 2 && (exact ? s->dims[1] == least : s->dims[1] > least);
}

RULE(attention)
{
    UNUSED;
    CHECK(in[0].dims[0] == in[1].dims[0], "queries and keys differ in number");
    CHECK(is_table(&in[3], 4, 1), "needs segments i32 [S,4]");
    out[0] = in[0];
    out[1] = matrix(in[0].dims[0], (int64_t)attrs[0]);
    return heads(&in[0], &in[1], &in[2], attrs, err);
}

RULE(attention_grad)
{
    UNUSED;
    const apus_shape lse = matrix(in[1].dims[0], (int64_t)attrs[0]);
    CHECK(apus_shape_equal(&in[0], &in[1]) && apus_shape_equal(&in[4], &in[1]) && apus_shape_equal(&in[5], &lse) && in[1].dims[0] == in[2].dims[0],
          "needs dout, q, k, v, out, lse of one attention");
    CHECK(is_table(&in[6], 4, 1), "needs segments i32 [S,4]");
    out[0] = in[1];
    out[1] = in[2];
    out[2] = in[3];
    return heads(&in[1], &in[2], &in[3], attrs, err);
}

RULE(kv_write)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2 && is_real(&in[1]) && in[1].ndim == 2 && in[0].dims[1] == in[1].dims[1] && is_ids(&in[2], in[1].dims[0]),
          "needs cache [slots,W], new [T,W] and slot i32 [T]");
    out[0] = in[0];
    return APUS_OK;
}

RULE(attention_cached)
{
    UNUSED;
    CHECK(is_table(&in[3], 4, 0) && whole(attrs[6], 1), "needs a table i32 [S,4+pages] and pages of at least one position");
    out[0] = in[0];
    return heads(&in[0], &in[1], &in[2], attrs, err);
}

/* ---------------------------------------------------------------- vocabulary head, dropout */

static apus_status head(const apus_shape *x, const apus_shape *w, const apus_shape *targets, const double *attrs, apus_error *err)
{
    CHECK(is_real(x) && x->ndim == 2 && is_weight(w) && w->ndim == 2 && x->dims[1] == w->dims[1] && is_ids(targets, x->dims[0]),
          "needs x [N,H], W [V,H] and targets i32 [N]");
    CHECK(isfinite(attrs[0]) && attrs[1] >= 0.0, "softcap is 0 or more");
    return APUS_OK;
}

RULE(token_logprob)
{
    UNUSED;
    out[0] = out[1] = vector(in[0].dims[0]);
    out[2] = in[0];
    return head(&in[0], &in[1], &in[2], attrs, err);
}

RULE(token_logprob_dw)
{
    UNUSED;
    const apus_shape per_token = vector(in[1].dims[0]);
    CHECK(is_real(&in[0]) && apus_shape_equal(&in[0], &per_token) && is_real(&in[4]) && apus_shape_equal(&in[4], &per_token),
          "needs dlogp and lse [N]");
    out[0] = matrix(in[2].dims[0], in[2].dims[1]);
    return head(&in[1], &in[2], &in[3], attrs, err);
}

RULE(dropout)
{
    UNUSED;
    CHECK(is_real(&in[0]) && in[0].ndim == 2, "needs x [T,H]");
    CHECK(in[1].dtype == APUS_I64 && in[1].ndim == 1 && in[1].dims[0] == in[0].dims[0], "needs token i64 [T]");
    CHECK(in[2].dtype == APUS_I64 && in[2].ndim == 1 && in[2].dims[0] == 2, "needs seed i64 [2]");
    CHECK(attrs[0] >= 0.0 && attrs[0] < 1.0, "p is at least 0 and below 1");
    CHECK(attrs[1] >= 0.0 && attrs[1] <= 4294967295.0 && attrs[1] == floor(attrs[1]), "purpose is 32 bits");
    out[0] = in[0];
    return APUS_OK;
}

/* ---------------------------------------------------------------- the table */

#define EW    (APUS_OP_ELEMENTWISE | APUS_OP_CHEAP)
#define CHEAP APUS_OP_CHEAP
#define G(f)  apus_gradient_##f
#define D(f)  apus_decompose_##f
#define OP(id, low, high, outs, at, fl, rule, grad, dec, only)                                                                                       \
    {                                                                                                                                                \
        .size = sizeof(apus_op), .name = "apus." #id "/1", .doc = "see apus/ops.h: " #id, .min_inputs = low, .max_inputs = high, .n_outputs = outs,  \
        .attrs = at, .flags = fl, .shapes = rule, .gradient = grad, .decompose = dec, .shape_only = only                                             \
    }

static const char rope_attrs[] = "head_dim rotary_dim scale=1 inverse=0 mode=0 limit=0 factor=1 base=10000";
static const char attention_attrs[] = "heads kv_heads head_dim scale window=0 softcap=0";

static const apus_op table[] = {
    OP(add, 2, 2, 1, "", EW, elementwise, G(add), NULL, 0),
    OP(sub, 2, 2, 1, "", EW, elementwise, G(sub), D(sub), 0),
    OP(mul, 2, 2, 1, "", EW, elementwise, G(mul), NULL, 0),
    OP(div, 2, 2, 1, "", EW, elementwise, G(div), NULL, 0),
    OP(maximum, 2, 2, 1, "", EW, elementwise, G(maximum), NULL, 0),
    OP(minimum, 2, 2, 1, "", EW, elementwise, G(minimum), NULL, 0),
    OP(greater, 2, 2, 1, "", EW, elementwise, NULL, NULL, 0),
    OP(where, 3, 3, 1, "", EW, elementwise, G(where), NULL, 0),
    OP(affine, 1, 1, 1, "scale=1 shift=0", EW, elementwise, G(affine), NULL, 0),
    OP(exp, 1, 1, 1, "", EW, elementwise, G(exp), NULL, 0),
    OP(log, 1, 1, 1, "", EW, elementwise, G(log), NULL, 0),
    OP(log1p, 1, 1, 1, "", EW, elementwise, G(log1p), NULL, 0),
    OP(expm1, 1, 1, 1, "", EW, elementwise, G(expm1), NULL, 0),
    OP(sqrt, 1, 1, 1, "", EW, elementwise, G(sqrt), NULL, 0),
    OP(abs, 1, 1, 1, "", EW, elementwise, G(abs), D(abs), 0),
    OP(square, 1, 1, 1, "", EW, elementwise, G(square), D(square), 0),
    OP(tanh, 1, 1, 1, "", EW, elementwise, G(tanh), NULL, 0),
    OP(sigmoid, 1, 1, 1, "", EW, elementwise, G(sigmoid), D(sigmoid), 0),
    OP(log_sigmoid, 1, 1, 1, "", EW, elementwise, G(log_sigmoid), D(log_sigmoid), 0),
    OP(softplus, 1, 1, 1, "", EW, elementwise, G(softplus), D(softplus), 0),
    OP(relu, 1, 1, 1, "", EW, elementwise, G(relu), D(relu), 0),
    OP(silu, 1, 1, 1, "", EW, elementwise, G(silu), D(silu), 0),
    OP(sign, 1, 1, 1, "", EW, elementwise, NULL, NULL, 0),
    OP(gelu, 1, 1, 1, "tanh=0", EW, elementwise, G(gelu), NULL, 0),
    OP(gelu_grad, 2, 2, 1, "tanh=0", EW, elementwise, NULL, NULL, 0),
    OP(silu_grad, 2, 2, 1, "", EW, elementwise, NULL, D(silu_grad), 0),
    OP(swiglu, 2, 2, 1, "", EW, elementwise, G(swiglu), D(swiglu), 0),
    OP(swiglu_grad, 3, 3, 2, "", EW, elementwise, NULL, D(swiglu_grad), 0),
    OP(stop_gradient, 1, 1, 1, "", EW, elementwise, NULL, D(stop_gradient), 0),
    OP(fill, 2, 2, 1, "", EW, like_second, G(fill), NULL, 2),
    OP(sum, 1, 1, 1, "", 0, to_one, G(sum), NULL, 0),
    OP(sum_squares, 1, 1, 1, "", 0, to_one, NULL, D(sum_squares), 0),
    OP(sum_rows, 1, 1, 1, "", 0, sum_rows, G(sum_rows), NULL, 0),
    OP(add_row, 2, 2, 1, "", CHEAP, add_row, G(add_row), NULL, 0),
    OP(scale_rows, 2, 2, 1, "", CHEAP, scale_rows, NULL, NULL, 0),
    OP(gather, 2, 2, 1, "", CHEAP, gather, G(gather), NULL, 0),
    OP(scatter_add, 3, 3, 1, "", CHEAP, scatter_add, G(scatter_add), NULL, 4),
    OP(columns, 1, 1, 1, "begin=0 count=0", CHEAP, columns, G(columns), NULL, 0),
    OP(columns_grad, 2, 2, 1, "begin=0", CHEAP, columns_grad, G(columns_grad), NULL, 2),
    OP(linear, 2, 3, 1, "", 0, linear, G(linear), NULL, 0),
    OP(linear_dx, 2, 2, 1, "", 0, linear_dx, NULL, NULL, 0),
    OP(linear_dw, 2, 2, 1, "", 0, linear_dw, NULL, NULL, 0),
    OP(embedding, 2, 2, 1, "", CHEAP, embedding, G(embedding), NULL, 0),
    OP(embedding_dw, 3, 3, 1, "", 0, embedding_dw, NULL, NULL, 4),
    OP(rms_norm, 2, 2, 1, "eps=1e-6 width=0 offset=0", CHEAP, rms_norm, G(rms_norm), NULL, 0),
    OP(rms_norm_grad, 3, 3, 2, "eps=1e-6 width=0 offset=0", 0, rms_norm_grad, NULL, NULL, 0),
    OP(layer_norm, 2, 3, 1, "eps=1e-5", CHEAP, layer_norm, G(layer_norm), NULL, 0),
    OP(layer_norm_grad, 3, 3, 3, "eps=1e-5", 0, layer_norm_grad, NULL, NULL, 0),
    OP(rope, 4, 4, 1, rope_attrs, CHEAP, rope, G(rope), NULL, 0),
    OP(attention, 4, 4, 2, attention_attrs, 0, attention, G(attention), NULL, 0),
    OP(attention_grad, 7, 7, 3, attention_attrs, 0, attention_grad, NULL, NULL, 0),
    OP(kv_write, 3, 3, 1, "", APUS_OP_IN_PLACE, kv_write, NULL, NULL, 0),
    OP(attention_cached, 4, 4, 1, "heads kv_heads head_dim scale window=0 softcap=0 page=0", 0, attention_cached, NULL, NULL, 0),
    OP(token_logprob, 3, 3, 3, "scale=1 softcap=0", 0, token_logprob, G(token_logprob), NULL, 0),
    OP(token_logprob_dw, 5, 5, 1, "scale=1 softcap=0", 0, token_logprob_dw, NULL, NULL, 0),
    OP(dropout, 3, 3, 1, "p=0 purpose=0", CHEAP, dropout, G(dropout), NULL, 0),
    OP(dropout_grad, 3, 3, 1, "p=0 purpose=0", CHEAP, dropout, NULL, D(dropout_grad), 0),
};

const apus_ops_ops apus_builtin_ops = {.size = sizeof(apus_ops_ops), .ops = table, .n_ops = sizeof table / sizeof table[0]};

/* ---------------------------------------------------------------- cost */

static double elements(const apus_view *v)
{
    double n = 1;
    for (int32_t i = 0; i < v->ndim; i++)
        n *= (double)v->dims[i];
    return n;
}

double apus_op_product_flops(const apus_kernel_call *c, const char *op)
{
    static const struct {
        const char *op;
        int rows, matrix; /* inputs: 2 * elements(rows) * dims[matrix_dim] of the matrix */
        int dim;
        double factor;
    } products[] = {
        {"apus.linear/1", 0, 1, 0, 2},        {"apus.linear_dx/1", 0, 1, 1, 2},        {"apus.linear_dw/1", 0, 1, 1, 2},
        {"apus.token_logprob/1", 0, 1, 0, 2}, {"apus.token_logprob_dw/1", 1, 2, 0, 4},
    };
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        if (strcmp(op, products[i].op) != 0)
            continue;
        double f = products[i].factor * elements(&c->in[products[i].rows]) * (double)c->in[products[i].matrix].dims[products[i].dim];
        if (c->n_out > 2 && c->out[2].dims[0] > 0)
            f *= 2; /* token_logprob with slopes */
        return f;
    }
    return 0.0;
}

double apus_op_flops(const apus_kernel_call *c, const char *op)
{
    const double product = apus_op_product_flops(c, op);
    if (product > 0.0)
        return product;
    /* one segment as long as everything: an upper bound, halved by causality */
    if (strcmp(op, "apus.attention/1") == 0)
        return 2.0 * elements(&c->in[0]) * (double)c->in[0].dims[0];
    if (strcmp(op, "apus.attention_grad/1") == 0)
        return 5.0 * elements(&c->in[1]) * (double)c->in[1].dims[0];
    if (strcmp(op, "apus.attention_cached/1") == 0)
        return 4.0 * elements(&c->in[0]) * c->attrs[6] * (double)(c->in[3].dims[1] - 4);
    double most = 0;
    for (uint32_t i = 0; i < c->n_in; i++)
        most = fmax(most, elements(&c->in[i]));
    for (uint32_t i = 0; i < c->n_out; i++)
        most = fmax(most, elements(&c->out[i]));
    return most;
}
