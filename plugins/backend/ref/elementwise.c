/* Elementwise kernels of the reference backend: the formulas of apus/ops.h, an element at a time. */
#include "ref.h"

#include <math.h>

/* Element i of operand k; operands of one element are broadcast. */
static double at(const apus_kernel_call *c, uint32_t k, int64_t i)
{
    return ((const double *)c->in[k].data)[c->in[k].dims[0] == 1 ? 0 : i];
}

#define UNARY(name, formula)                                                                                                                         \
    static apus_status run_##name(const apus_kernel_call *c, apus_error *err)                                                                        \
    {                                                                                                                                                \
        (void)err;                                                                                                                                   \
        double *y = c->out[0].data;                                                                                                                  \
        for (int64_t i = 0; i < c->out[0].dims[0]; i++) {                                                                                            \
            const double x = at(c, 0, i);                                                                                                            \
            y[i] = (formula);                                                                                                                        \
        }                                                                                                                                            \
        return APUS_OK;                                                                                                                              \
    }
#define BINARY(name, formula)                                                                                                                        \
    static apus_status run_##name(const apus_kernel_call *c, apus_error *err)                                                                        \
    {                                                                                                                                                \
        (void)err;                                                                                                                                   \
        double *y = c->out[0].data;                                                                                                                  \
        for (int64_t i = 0; i < c->out[0].dims[0]; i++) {                                                                                            \
            const double a = at(c, 0, i), b = at(c, 1, i);                                                                                           \
            y[i] = (formula);                                                                                                                        \
        }                                                                                                                                            \
        return APUS_OK;                                                                                                                              \
    }

static double sigmoid(double x)
{
    return x >= 0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x));
}

static double softplus(double x)
{
    return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}

static double silu_slope(double x)
{
    const double s = sigmoid(x);
    return s + x * s * (1.0 - s);
}

#define SQRT_2_OVER_PI 0.79788456080286535588
#define SQRT_HALF      0.70710678118654752440

static double gelu(double x, int tanh_form)
{
    if (tanh_form)
        return 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)));
    return 0.5 * x * (1.0 + erf(x * SQRT_HALF));
}

static double gelu_slope(double x, int tanh_form)
{
    if (tanh_form) {
        const double t = tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x));
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x * x);
    }
    return 0.5 * (1.0 + erf(x * SQRT_HALF)) + x * exp(-0.5 * x * x) * 0.39894228040143267794; /* x times the normal density */
}

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a *b)
BINARY(div, a / b)
BINARY(maximum, isnan(a) || a > b ? a : b)
BINARY(minimum, isnan(a) || a < b ? a : b)
BINARY(greater, a > b ? 1.0 : 0.0)
BINARY(swiglu, a *sigmoid(a) * b)
BINARY(silu_grad, a *silu_slope(b))
BINARY(gelu_grad, a *gelu_slope(b, c->attrs[0] != 0.0))
UNARY(affine, c->attrs[0] * x + c->attrs[1])
UNARY(exp, exp(x))
UNARY(log, log(x))
UNARY(log1p, log1p(x))
UNARY(expm1, expm1(x))
UNARY(sqrt, sqrt(x))
UNARY(abs, fabs(x))
UNARY(square, x *x)
UNARY(tanh, tanh(x))
UNARY(sigmoid, sigmoid(x))
UNARY(log_sigmoid, -softplus(-x))
UNARY(softplus, softplus(x))
UNARY(relu, x < 0.0 ? 0.0 : x)
UNARY(silu, x *sigmoid(x))
UNARY(sign, x > 0.0 ? 1.0 : (x < 0.0 ? -1.0 : x))
UNARY(gelu, gelu(x, c->attrs[0] != 0.0))
UNARY(stop_gradient, x)
UNARY(fill, x)

static apus_status run_where(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    double *y = c->out[0].data;
    for (int64_t i = 0; i < c->out[0].dims[0]; i++)
        y[i] = at(c, 0, i) != 0.0 ? at(c, 1, i) : at(c, 2, i);
    return APUS_OK;
}

static apus_status run_swiglu_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    double *dgate = c->out[0].data, *dup = c->out[1].data;
    const int64_t n = c->out[0].dims[0];
    for (int64_t i = 0; i < n; i++) {
        const double dy = at(c, 0, i), gate = at(c, 1, i), up = at(c, 2, i);
        if (dgate != NULL)
            dgate[i] = dy * up * silu_slope(gate);
        if (dup != NULL)
            dup[i] = dy * gate * sigmoid(gate);
    }
    return APUS_OK;
}

#define KERNEL(name)                                                                                                                                 \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus." #name "/1", .run = run_##name                                                                     \
    }

static const apus_kernel kernels[] = {
    KERNEL(add),         KERNEL(sub),       KERNEL(mul),    KERNEL(div),         KERNEL(maximum),       KERNEL(minimum),
    KERNEL(greater),     KERNEL(where),     KERNEL(affine), KERNEL(exp),         KERNEL(log),           KERNEL(log1p),
    KERNEL(expm1),       KERNEL(sqrt),      KERNEL(abs),    KERNEL(square),      KERNEL(tanh),          KERNEL(sigmoid),
    KERNEL(log_sigmoid), KERNEL(softplus),  KERNEL(relu),   KERNEL(silu),        KERNEL(sign),          KERNEL(gelu),
    KERNEL(gelu_grad),   KERNEL(silu_grad), KERNEL(swiglu), KERNEL(swiglu_grad), KERNEL(stop_gradient), KERNEL(fill),
};
APUS_REF_TABLE(apus_ref_elementwise, kernels);
