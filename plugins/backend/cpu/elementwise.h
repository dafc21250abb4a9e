/* Elementwise ops: any range of a tensor, on any thread; outputs may be an input's memory. */
#ifndef APUS_CPU_ELEMENTWISE_H
#define APUS_CPU_ELEMENTWISE_H

#include "functions.h"

typedef void elementwise(const vn *x, const float *a, vn *y);

/* What one call works on: inputs of one element are spread over all. */
typedef struct mapped {
    const void *in[3];
    void *out[2];
    vn all[3];
    float a[2]; /* the first two attributes */
} mapped;

/* Which operands are what: bit k of each. */
typedef struct operands {
    unsigned spread, skip;   /* inputs of one element; outputs that are not needed */
    unsigned halves, halved; /* inputs, outputs of bfloat16 */
} operands;

enum { UNROLL = 4 };

/* Elements i … i + n * WIDE, or so many of one vector: part. */
LANES_INLINE void map_vectors(const mapped *m, int n_in, int n_out, operands o, elementwise *fn, int64_t i, int n, int64_t part)
{
    for (int u = 0; u < n; u++, i += WIDE) {
        vn x[3], y[2];
        for (int k = 0; k < n_in; k++) {
            x[k] = o.spread >> k & 1u ? m->all[k] : n_take(o.halves >> k & 1u, element(m->in[k], o.halves >> k & 1u, i), part);
        }
        fn(x, m->a, y);
        for (int k = 0; k < n_out; k++) {
            if ((o.skip >> k & 1u) == 0) {
                n_give(o.halved >> k & 1u, element_to(m->out[k], o.halved >> k & 1u, i), y[k], part);
            }
        }
    }
}

LANES_INLINE void map_range(const mapped *m, int n_in, int n_out, operands o, elementwise *fn, int64_t n)
{
    int64_t i = 0;
    for (; i + UNROLL * WIDE <= n; i += UNROLL * WIDE) {
        map_vectors(m, n_in, n_out, o, fn, i, UNROLL, WIDE);
    }
    for (; i + WIDE <= n; i += WIDE) {
        map_vectors(m, n_in, n_out, o, fn, i, 1, WIDE);
    }
    if (i < n) {
        map_vectors(m, n_in, n_out, o, fn, i, 1, n - i);
    }
}

/* fn over n_in inputs (those of one element are spread) and n_out outputs (NULL: not needed); narrow: what may be bfloat16. The usual
 * cases have loops of their own: a choice for each vector would cost as much as the cheap ops. */
LANES_INLINE apus_status map(const apus_kernel_call *call, int n_in, int n_out, int n_attrs, operands narrow, elementwise *fn)
{
    const int64_t n = call->out[0].dims[0]; /* views of these ops have one dimension */
    operands o = {0, 0, 0, 0};
    mapped m;
    for (int k = 0; k < n_in; k++) {
        m.in[k] = call->in[k].data;
        const int one = n != 1 && call->in[k].dims[0] == 1;
        m.all[k] = n_all(one ? *(const float *)m.in[k] : 0.0f);
        o.spread |= (unsigned)one << k;
        o.halves |= (unsigned)(call->in[k].dtype == APUS_BF16) << k;
    }
    for (int k = 0; k < n_out; k++) {
        m.out[k] = call->out[k].data;
        o.skip |= (unsigned)(m.out[k] == NULL) << k;
        o.halved |= (unsigned)(call->out[k].dtype == APUS_BF16) << k;
    }
    for (int k = 0; k < n_attrs; k++) {
        m.a[k] = (float)call->attrs[k];
    }
    const int narrowed = ((o.halves & narrow.halves) | (o.halved & narrow.halved)) != 0; /* 0 when compiled, of most */
    if (o.spread == 0 && o.skip == 0 && narrowed && o.halves == narrow.halves && o.halved == narrow.halved) {
        map_range(&m, n_in, n_out, (operands){0, 0, narrow.halves, narrow.halved}, fn, n);
    } else if (narrowed) {
        map_range(&m, n_in, n_out, o, fn, n);
    } else if (o.spread == 0 && o.skip == 0) {
        map_range(&m, n_in, n_out, (operands){0, 0, 0, 0}, fn, n);
    } else if (n_in == 2 && n_out == 1 && o.spread == 2 && o.skip == 0) {
        map_range(&m, n_in, n_out, (operands){2, 0, 0, 0}, fn, n);
    } else {
        map_range(&m, n_in, n_out, (operands){o.spread, o.skip, 0, 0}, fn, n);
    }
    return APUS_OK;
}

#define ELEMENTWISE(id, n_in, n_out, n_attrs, ...)                                                                                                   \
    LANES_INLINE void each_##id(const vn *x, const float *a, vn *y)                                                                                  \
    {                                                                                                                                                \
        (void)a;                                                                                                                                     \
        __VA_ARGS__                                                                                                                                  \
    }                                                                                                                                                \
    static apus_status run_##id(const apus_kernel_call *call, apus_error *err)                                                                       \
    {                                                                                                                                                \
        (void)err;                                                                                                                                   \
        return map(call, n_in, n_out, n_attrs, (operands){0, 0, APUS_CPU_IN_##id, APUS_CPU_OUT_##id}, each_##id);                                    \
    }

ELEMENTWISE(add, 2, 1, 0, y[0] = x[0] + x[1];)
ELEMENTWISE(sub, 2, 1, 0, y[0] = x[0] - x[1];)
ELEMENTWISE(mul, 2, 1, 0, y[0] = x[0] * x[1];)
ELEMENTWISE(div, 2, 1, 0, y[0] = x[0] / x[1];)
ELEMENTWISE(maximum, 2, 1, 0, y[0] = n_select((x[0] > x[1]) | (x[0] != x[0]), x[0], x[1]); /* NaN wins */)
ELEMENTWISE(minimum, 2, 1, 0, y[0] = n_select((x[0] < x[1]) | (x[0] != x[0]), x[0], x[1]);)
ELEMENTWISE(greater, 2, 1, 0, y[0] = n_select(x[0] > x[1], n_all(1.0f), n_all(0.0f));)
ELEMENTWISE(where, 3, 1, 0, y[0] = n_select(x[0] != n_all(0.0f), x[1], x[2]);)
ELEMENTWISE(affine, 1, 1, 2, y[0] = n_fma(x[0], n_all(a[0]), n_all(a[1]));)
ELEMENTWISE(exp, 1, 1, 0, y[0] = n_exp(x[0]);)
ELEMENTWISE(log, 1, 1, 0, y[0] = n_log(x[0]);)
ELEMENTWISE(log1p, 1, 1, 0, y[0] = n_log1p(x[0]);)
ELEMENTWISE(expm1, 1, 1, 0, y[0] = n_expm1(x[0]);)
ELEMENTWISE(sqrt, 1, 1, 0, y[0] = n_sqrt(x[0]);)
ELEMENTWISE(abs, 1, 1, 0, y[0] = n_abs(x[0]);)
ELEMENTWISE(square, 1, 1, 0, y[0] = x[0] * x[0];)
ELEMENTWISE(tanh, 1, 1, 0, y[0] = n_tanh(x[0]);)
ELEMENTWISE(sigmoid, 1, 1, 0, y[0] = n_sigmoid(x[0]);)
ELEMENTWISE(log_sigmoid, 1, 1, 0, y[0] = -n_softplus(-x[0]);)
ELEMENTWISE(softplus, 1, 1, 0, y[0] = n_softplus(x[0]);)
ELEMENTWISE(relu, 1, 1, 0, y[0] = n_relu(x[0]);)
ELEMENTWISE(silu, 1, 1, 0, y[0] = n_silu(x[0]);)
ELEMENTWISE(sign, 1, 1, 0, y[0] = n_select(x[0] > n_all(0.0f), n_all(1.0f), n_select(x[0] < n_all(0.0f), n_all(-1.0f), n_all(0.0f)));)
ELEMENTWISE(stop_gradient, 1, 1, 0, y[0] = x[0];)
ELEMENTWISE(fill, 1, 1, 0, y[0] = x[0];)
ELEMENTWISE(silu_grad, 2, 1, 0, y[0] = x[0] * silu_slope(x[1], n_sigmoid(x[1]));)
ELEMENTWISE(swiglu, 2, 1, 0, y[0] = n_swiglu(x[0], x[1]);)
ELEMENTWISE(swiglu_grad, 3, 2, 0, const vn s = n_sigmoid(x[1]); y[0] = x[0] * x[2] * silu_slope(x[1], s); y[1] = x[0] * (x[1] * s);)

LANES_INLINE void each_gelu_erf(const vn *x, const float *a, vn *y)
{
    (void)a;
    y[0] = n_gelu_erf(x[0]);
}

LANES_INLINE void each_gelu_tanh(const vn *x, const float *a, vn *y)
{
    (void)a;
    y[0] = n_gelu_tanh(x[0]);
}

static apus_status run_gelu(const apus_kernel_call *call, apus_error *err)
{
    const operands gelu_narrow = {0, 0, APUS_CPU_IN_gelu, APUS_CPU_OUT_gelu};
    (void)err;
    return call->attrs[0] != 0.0 ? map(call, 1, 1, 0, gelu_narrow, each_gelu_tanh) : map(call, 1, 1, 0, gelu_narrow, each_gelu_erf);
}

LANES_INLINE void each_gelu_erf_grad(const vn *x, const float *a, vn *y)
{
    (void)a;
    const vn density = n_all(0.39894228040143268f) * n_exp(x[1] * x[1] * n_all(-0.5f));
    y[0] = x[0] * n_fma(n_select(density == n_all(0.0f), n_all(0.0f), x[1]), density, n_normal(x[1]));
}

LANES_INLINE void each_gelu_tanh_grad(const vn *x, const float *a, vn *y)
{
    (void)a;
    vn slope;
    const vn u = gelu_argument(x[1], &slope), s = n_sigmoid(u + u);
    const vn bend = s * n_sigmoid(-(u + u)) * n_all(2.0f) * slope;
    y[0] = x[0] * n_fma(n_select(bend == n_all(0.0f), n_all(0.0f), x[1]), bend, s);
}

static apus_status run_gelu_grad(const apus_kernel_call *call, apus_error *err)
{
    const operands gelu_grad_narrow = {0, 0, APUS_CPU_IN_gelu_grad, APUS_CPU_OUT_gelu_grad};
    (void)err;
    return call->attrs[0] != 0.0 ? map(call, 2, 1, 0, gelu_grad_narrow, each_gelu_tanh_grad)
                                 : map(call, 2, 1, 0, gelu_grad_narrow, each_gelu_erf_grad);
}

#undef ELEMENTWISE

#endif
