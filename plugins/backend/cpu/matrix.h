/*
 * linear and its gradients, by gemm.h, few.h and thin.h. An encoded W gives the bits of the same W in float32, unless x is rounded to 8 bits
 * (integers.h), which gradients know nothing of.
 */
#ifndef APUS_CPU_MATRIX_H
#define APUS_CPU_MATRIX_H

#include "few.h"
#include "thin.h"

enum { DX_PANEL = 256 /* decoded rows of W at once */ };

static size_t scratch_linear(const apus_kernel_call *c)
{
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(&c->in[1]);
    const kind t = kind_with(c, &c->in[1]);
    const size_t many = multiply_bytes(t, m, n, k, threads_of(c)), least = few_bytes(t, k, threads_of(c));
    return (many > least ? many : least) + (c->prologue != 0 ? (size_t)threads_of(c) * normed_bytes(k) : 0);
}

/* Inputs of the products themselves. */
static uint32_t own_inputs(const apus_kernel_call *c)
{
    return c->n_in - c->prologue_inputs;
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

/* Whether products of the same left factor are made together. */
static int are_together(const product *p, const product *q)
{
    return p->t == q->t && !is_thin_along(p) && !is_thin_along(q) && p->m > 0;
}

/* Products of the same left factor. */
static void products(const product *p, uint32_t n, int threads, char *scratch)
{
    if (suits_few(p, n)) {
        few(p, n, threads, scratch);
        return;
    }
    for (uint32_t i = 0, some; i < n; i += some) {
        some = 1;
        if (suits_few(&p[i], 1)) {
            few(&p[i], 1, threads, scratch);
            continue;
        }
        while (i + some < n && are_together(&p[i], &p[i + some]) && !suits_few(&p[i + some], 1)) {
            some++;
        }
        if (some > 1) {
            multiply(&p[i], some, threads, scratch);
        } else {
            run_product(&p[i], threads, scratch);
        }
    }
}

/* The same of calls that run at once; c: the first, whose prologue is all of them's and has attributes behind `attrs`. */
static apus_status linear(const apus_kernel_call *c, uint32_t attrs, product *p, uint32_t n)
{
    char *scratch = (char *)c->scratch;
    norm first = {.width = 0};
    if (c->prologue != 0) {
        const apus_view *w = &c->in[own_inputs(c)];
        first = norm_of(c->prologue == 1, c->in, w, c->prologue_inputs > 1 ? w + 1 : NULL, c->attrs + attrs, c->prologue_kept);
        for (uint32_t i = 0; i < n; i++) {
            p[i].norm = &first;
            p[i].normed = scratch;
        }
        scratch += (size_t)threads_of(c) * normed_bytes(p->k);
    }
    products(p, n, threads_of(c), scratch);
    return APUS_OK;
}

static apus_status run_siblings_linear(const apus_kernel_call *c, uint32_t n, apus_error *err)
{
    product p[APUS_SIBLINGS_MAX] = {{0}};
    (void)err;
    for (uint32_t i = 0; i < n; i++) {
        p[i] = linear_of(&c[i], own_inputs(&c[i]) > 2 ? (const float *)c[i].in[2].data : NULL,
                         c[i].accumulate & 1u ? (const float *)c[i].out[0].data : NULL);
    }
    return linear(c, 0, p, n);
}

static apus_status run_linear(const apus_kernel_call *c, apus_error *err)
{
    return run_siblings_linear(c, 1, err);
}

/* The last input of its own is add's other operand, of the shape of the result. */
static apus_status run_linear_add(const apus_kernel_call *c, apus_error *err)
{
    const uint32_t own = own_inputs(c);
    if (apus_cpu_elements(&c->in[own - 1]) != apus_cpu_rows(&c->in[0]) * apus_cpu_rows(&c->in[1])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear + add: the shapes differ");
    }
    product p = linear_of(c, own > 3 ? (const float *)c->in[2].data : NULL, (const float *)c->in[own - 1].data);
    return linear(c, 0, &p, 1);
}

static size_t scratch_linear_act(const apus_kernel_call *c)
{
    const int64_t n = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(&c->in[1]);
    return scratch_linear(c) + (size_t)threads_of(c) * activate_bytes(kind_with(c, &c->in[1]), n, k);
}

static apus_status linear_act(const apus_kernel_call *c, int act)
{
    product p = linear_of(c, own_inputs(c) > 2 ? (const float *)c->in[2].data : NULL, NULL);
    p.act = act;
    return linear(c, act == ACT_GELU_ERF || act == ACT_GELU_TANH ? 1 : 0, &p, 1);
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
    const uint32_t each = own_inputs(c) / 2;
    product gate = linear_of(c, each > 2 ? (const float *)c->in[2].data : NULL, NULL), up = gate;
    (void)err;
    up.b.p = c->in[each + 1].data;
    up.e.bias = each > 2 ? (const float *)c->in[each + 2].data : NULL;
    gate.act = ACT_SWIGLU;
    gate.other = &up;
    return linear(c, 0, &gate, 1);
}

/* The sum of two products. Inputs: x and W of one, then of the other, and its bias. The one of the shorter sum is worked into the tiles of
 * the other, unless that has the bias. added: the last input is what the sum is added to. */
static product linear_twice_of(const apus_kernel_call *c, uint32_t added)
{
    const apus_view *in = c->in;
    const float *add = added ? (const float *)in[c->n_in - 1].data : NULL;
    const int biased = c->n_in - added > 4, turned = !biased && apus_cpu_width(&in[1]) > apus_cpu_width(&in[3]);
    const apus_view *x = &in[turned ? 0 : 2], *more = &in[turned ? 2 : 0];
    const int64_t k = apus_cpu_width(&x[1]), k_more = apus_cpu_width(&more[1]), n = apus_cpu_rows(&x[1]);
    return (product){.t = kind_of(c),
                     .m = apus_cpu_rows(&x[0]),
                     .n = n,
                     .k = k,
                     .k_more = k_more,
                     .a = {x[0].data, k, 1, x[0].dtype},
                     .b = {x[1].data, k, 1, x[1].dtype},
                     .a_more = {more[0].data, k_more, 1, more[0].dtype},
                     .b_more = {more[1].data, k_more, 1, more[1].dtype},
                     .y = c->out[0].data,
                     .ld = n,
                     .e = {biased ? (const float *)in[4].data : NULL, add, n, c->out[0].dtype == APUS_BF16}};
}

/* Its second term alone, added to y. */
static product second_of(const product *p, float *y)
{
    product more = *p;
    more.k = p->k_more;
    more.k_more = 0;
    more.a = p->a_more;
    more.b = p->b_more;
    more.y = y;
    more.e = (epilogue){NULL, y, p->n, 0};
    return more;
}

static size_t twice_bytes(const apus_kernel_call *c, uint32_t added)
{
    const product p = linear_twice_of(c, added);
    const int threads = threads_of(c);
    const int64_t k = p.k > p.k_more ? p.k : p.k_more, few_rows = apus_cpu_min(p.m, FEW_MOST);
    const size_t many = multiply_bytes(p.t, p.m, p.n, p.k, threads) + more_bytes(p.t, p.m, p.n, p.k_more, threads);
    const size_t least = few_bytes(p.t, k, threads), alone = multiply_bytes(p.t, few_rows, p.n, k, threads);
    const size_t few_all = apus_cpu_lines((size_t)(few_rows * p.n) * sizeof(float)) + (least > alone ? least : alone);
    return many > few_all ? many : few_all;
}

static size_t scratch_linear_twice(const apus_kernel_call *c)
{
    return twice_bytes(c, 0);
}

static size_t scratch_linear_twice_add(const apus_kernel_call *c)
{
    return twice_bytes(c, 1);
}

/* Of a few rows: each by itself, as W is read; the same bits. */
static void few_twice(const product *p, int threads, char *scratch)
{
    float *sums = (float *)(void *)scratch;
    char *rest = scratch + apus_cpu_lines((size_t)(p->m * p->n) * sizeof(float));
    const product more = second_of(p, sums);
    product first = *p;
    first.k_more = 0;
    first.y = sums;
    first.e = (epilogue){p->e.bias, NULL, p->n, 0};
    products(&first, 1, threads, rest);
    products(&more, 1, threads, rest);
    for (int64_t i = 0; i < p->m * p->n; i += WIDE) {
        const int64_t left = p->m * p->n - i;
        vn s = n_load_part(sums + i, left);
        if (p->e.add != NULL) {
            s += n_load_part(p->e.add + i, left);
        }
        n_give(p->e.halves, element_to(p->y, p->e.halves, i), s, left);
    }
}

static apus_status linear_twice(const apus_kernel_call *c, uint32_t added)
{
    const product p = linear_twice_of(c, added);
    if (suits_few(&p, 1)) {
        few_twice(&p, threads_of(c), (char *)c->scratch);
    } else {
        multiply(&p, 1, threads_of(c), (char *)c->scratch);
    }
    return APUS_OK;
}

static apus_status run_linear_twice(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear_twice(c, 0);
}

static apus_status run_linear_twice_add(const apus_kernel_call *c, apus_error *err)
{
    if (apus_cpu_elements(&c->in[c->n_in - 1]) != apus_cpu_elements(&c->out[0])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear twice + add: the shapes differ");
    }
    return linear_twice(c, 1);
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
        run_product(&p, threads_of(c), (char *)c->scratch);
        return;
    }
    float *panel = (float *)c->scratch;
    p.b.dtype = APUS_F32;
    for (int64_t j = 0; j < n; j += DX_PANEL) {
        p.k = apus_cpu_min(DX_PANEL, n - j);
        decode_rows(w, j, p.k, k, panel, threads_of(c));
        p.a.p = element(c->in[0].data, c->in[0].dtype == APUS_BF16, j);
        p.b.p = panel;
        run_product(&p, threads_of(c), (char *)c->scratch + apus_cpu_lines((size_t)(DX_PANEL * k) * sizeof(float)));
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

/* The sum of two gradients by the same input, as linear_twice_of has it. */
static product linear_dx_twice_of(const apus_kernel_call *c, const float *add)
{
    const int turned = apus_cpu_rows(&c->in[1]) > apus_cpu_rows(&c->in[3]);
    const apus_view *dy = &c->in[turned ? 0 : 2], *more = &c->in[turned ? 2 : 0];
    const int64_t n = apus_cpu_rows(&dy[1]), n_more = apus_cpu_rows(&more[1]), k = apus_cpu_width(&dy[1]);
    return (product){.t = kind_of(c),
                     .m = apus_cpu_rows(&dy[0]),
                     .n = k,
                     .k = n,
                     .k_more = n_more,
                     .a = {dy[0].data, n, 1, dy[0].dtype},
                     .b = {dy[1].data, k, 0, dy[1].dtype},
                     .a_more = {more[0].data, n_more, 1, more[0].dtype},
                     .b_more = {more[1].data, k, 0, more[1].dtype},
                     .y = c->out[0].data,
                     .ld = k,
                     .e = {NULL, add, k, 0}};
}

static size_t scratch_linear_dx_twice(const apus_kernel_call *c)
{
    const product p = linear_dx_twice_of(c, NULL);
    return multiply_bytes(p.t, p.m, p.n, p.k, threads_of(c)) + more_bytes(p.t, p.m, p.n, p.k_more, threads_of(c));
}

static apus_status run_linear_dx_twice(const apus_kernel_call *c, apus_error *err)
{
    const product p = linear_dx_twice_of(c, NULL);
    (void)err;
    multiply(&p, 1, threads_of(c), (char *)c->scratch);
    return APUS_OK;
}

static apus_status run_linear_dx_twice_add(const apus_kernel_call *c, apus_error *err)
{
    if (apus_cpu_elements(&c->in[4]) != apus_cpu_elements(&c->out[0])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear_dx twice + add: the shapes differ");
    }
    const product p = linear_dx_twice_of(c, (const float *)c->in[4].data);
    multiply(&p, 1, threads_of(c), (char *)c->scratch);
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
    run_product(&p, threads_of(c), (char *)c->scratch);
    return APUS_OK;
}

#endif
