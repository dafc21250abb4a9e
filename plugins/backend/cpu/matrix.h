/*
 * linear and its gradients, by gemm.h and few.h. An encoded W gives the bits of the same W in float32, unless x is rounded to 8 bits
 * (integers.h), which gradients know nothing of.
 */
#ifndef APUS_CPU_MATRIX_H
#define APUS_CPU_MATRIX_H

#include "few.h"

enum { DX_PANEL = 256 /* decoded rows of W at once */ };

static size_t scratch_linear(const apus_kernel_call *c)
{
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(&c->in[1]);
    const kind t = kind_with(c, &c->in[1]);
    const size_t many = multiply_bytes(t, m, n, k, threads_of(c)), least = few_bytes(t, k, threads_of(c));
    return many > least ? many : least;
}

static product linear_of(const apus_kernel_call *c, const float *bias, const float *add)
{
    const apus_view *w = &c->in[1];
    const int64_t k = apus_cpu_width(w), n = apus_cpu_rows(w);
    return (product){.t = kind_with(c, w),
                     .m = apus_cpu_rows(&c->in[0]),
                     .n = n,
                     .k = k,
                     .a = {c->in[0].data, k, 1, c->in[0].dtype},
                     .b = {w->data, k, 1, w->dtype},
                     .y = c->out[0].data,
                     .ld = n,
                     .e = {bias, add, n, c->out[0].dtype == APUS_BF16}};
}

/* Products of the same left factor. */
static apus_status linear(const product *p, uint32_t n, int threads, char *scratch)
{
    if (suits_few(p, n)) {
        few(p, n, threads, scratch);
        return APUS_OK;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (suits_few(&p[i], 1)) {
            few(&p[i], 1, threads, scratch);
        } else {
            multiply(&p[i], threads, scratch);
        }
    }
    return APUS_OK;
}

static apus_status run_siblings_linear(const apus_kernel_call *c, uint32_t n, apus_error *err)
{
    product p[APUS_SIBLINGS_MAX] = {{0}};
    (void)err;
    for (uint32_t i = 0; i < n; i++) {
        p[i] = linear_of(&c[i], c[i].n_in > 2 ? (const float *)c[i].in[2].data : NULL, c[i].accumulate & 1u ? (const float *)c[i].out[0].data : NULL);
    }
    return linear(p, n, threads_of(c), (char *)c->scratch);
}

static apus_status run_linear(const apus_kernel_call *c, apus_error *err)
{
    return run_siblings_linear(c, 1, err);
}

/* The last input is add's other operand, of the shape of the result. */
static apus_status run_linear_add(const apus_kernel_call *c, apus_error *err)
{
    if (apus_cpu_elements(&c->in[c->n_in - 1]) != apus_cpu_rows(&c->in[0]) * apus_cpu_rows(&c->in[1])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear + add: the shapes differ");
    }
    const product p = linear_of(c, c->n_in > 3 ? (const float *)c->in[2].data : NULL, (const float *)c->in[c->n_in - 1].data);
    return linear(&p, 1, threads_of(c), (char *)c->scratch);
}

static size_t scratch_linear_act(const apus_kernel_call *c)
{
    const int64_t n = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(&c->in[1]);
    return scratch_linear(c) + (size_t)threads_of(c) * activate_bytes(kind_with(c, &c->in[1]), n, k);
}

static apus_status linear_act(const apus_kernel_call *c, int act)
{
    product p = linear_of(c, c->n_in > 2 ? (const float *)c->in[2].data : NULL, NULL);
    p.act = act;
    return linear(&p, 1, threads_of(c), (char *)c->scratch);
}

static apus_status run_linear_relu(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear_act(c, ACT_RELU);
}

static apus_status run_linear_silu(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear_act(c, ACT_SILU);
}

static apus_status run_linear_tanh(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear_act(c, ACT_TANH);
}

static apus_status run_linear_gelu(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear_act(c, c->attrs[0] != 0.0 ? ACT_GELU_TANH : ACT_GELU_ERF);
}

/* x, W and bias of the gate, then of what it is multiplied with. */
static apus_status run_linear_swiglu(const apus_kernel_call *c, apus_error *err)
{
    const uint32_t each = c->n_in / 2;
    product gate = linear_of(c, each > 2 ? (const float *)c->in[2].data : NULL, NULL), up = gate;
    (void)err;
    up.b.p = c->in[each + 1].data;
    up.e.bias = each > 2 ? (const float *)c->in[each + 2].data : NULL;
    gate.act = ACT_SWIGLU;
    gate.other = &up;
    return linear(&gate, 1, threads_of(c), (char *)c->scratch);
}

/* Decode rows [first, first + n) of w into panel on all threads. */
static void decode_rows(const apus_view *w, int64_t first, int64_t n, int64_t k, float *panel, int threads)
{
    const size_t bytes = apus_row_bytes(w->dtype, k);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < n; j++) {
        decode(w->dtype, (const uint8_t *)w->data + (size_t)(first + j) * bytes, panel + j * k, k);
    }
}

/* Whether linear_dx decodes W a part at a time; of float32, bfloat16 and packed ones panels are made directly. */
static int decoded_first(const apus_view *w)
{
    return w->dtype != APUS_F32 && w->dtype != APUS_BF16 && (w->dtype & APUS_PACKED) == 0;
}

static size_t scratch_linear_dx(const apus_kernel_call *c)
{
    const int64_t m = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(&c->in[1]), n = apus_cpu_rows(&c->in[1]);
    if (!decoded_first(&c->in[1])) {
        return multiply_bytes(kind_of(c), m, k, n, threads_of(c));
    }
    return apus_cpu_lines((size_t)(DX_PANEL * k) * sizeof(float)) + multiply_bytes(kind_of(c), m, k, DX_PANEL, threads_of(c));
}

/* add: may be NULL, or the memory of the result. */
static void linear_dx(const apus_kernel_call *c, const float *add)
{
    const apus_view *w = &c->in[1];
    float *dx = (float *)c->out[0].data;
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_rows(w), k = apus_cpu_width(w);
    product p = {.t = kind_of(c),
                 .m = m,
                 .n = k,
                 .k = n,
                 .a = {c->in[0].data, n, 1, c->in[0].dtype},
                 .b = {w->data, k, 0, w->dtype},
                 .y = dx,
                 .ld = k,
                 .e = {NULL, add, k, 0}};
    if (!decoded_first(w) || n == 0) {
        multiply(&p, threads_of(c), (char *)c->scratch);
        return;
    }
    float *panel = (float *)c->scratch;
    p.b.dtype = APUS_F32;
    for (int64_t j = 0; j < n; j += DX_PANEL) {
        p.k = apus_cpu_min(DX_PANEL, n - j);
        decode_rows(w, j, p.k, k, panel, threads_of(c));
        p.a.p = element(c->in[0].data, c->in[0].dtype == APUS_BF16, j);
        p.b.p = panel;
        multiply(&p, threads_of(c), (char *)c->scratch + apus_cpu_lines((size_t)(DX_PANEL * k) * sizeof(float)));
        p.e.add = dx;
    }
}

static apus_status run_linear_dx(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    linear_dx(c, c->accumulate & 1u ? (const float *)c->out[0].data : NULL);
    return APUS_OK;
}

static apus_status run_linear_dx_add(const apus_kernel_call *c, apus_error *err)
{
    if (apus_cpu_elements(&c->in[2]) != apus_cpu_elements(&c->out[0])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear_dx + add: the shapes differ");
    }
    linear_dx(c, (const float *)c->in[2].data);
    return APUS_OK;
}

static size_t scratch_linear_dw(const apus_kernel_call *c)
{
    return multiply_bytes(kind_of(c), apus_cpu_width(&c->in[0]), apus_cpu_width(&c->in[1]), apus_cpu_rows(&c->in[0]), threads_of(c));
}

static apus_status run_linear_dw(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    float *dw = (float *)c->out[0].data;
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]), k = apus_cpu_width(&c->in[1]);
    const product p = {.t = kind_of(c),
                       .m = n,
                       .n = k,
                       .k = m,
                       .a = {c->in[0].data, n, 0, c->in[0].dtype},
                       .b = {c->in[1].data, k, 0, c->in[1].dtype},
                       .y = dw,
                       .ld = k,
                       .e = {NULL, c->accumulate & 1u ? dw : NULL, k, 0}};
    multiply(&p, threads_of(c), (char *)c->scratch);
    return APUS_OK;
}

#endif
