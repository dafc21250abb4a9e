/*
 * linear and its gradients.
 *
 * linear sums every element in the order of dots, for any number of rows and any encoding of W (an encoded W gives the bits
 * of the same W in float32): generation may cut and batch prompts as it likes. The gradients are OpenBLAS's sgemm.
 */
#ifndef APUS_CPU_MATRIX_H
#define APUS_CPU_MATRIX_H

#include "encodings.h"

#include <cblas.h>

enum {
    PANEL = 48 /* rows of W worked at once: they stay in the second cache */,
    DX_PANEL = 256 /* decoded rows of W per sgemm */
};

static size_t scratch_linear(const apus_kernel_call *c)
{
    if (c->in[1].dtype == APUS_F32) {
        return 0;
    }
    return (size_t)threads_of(c) * apus_cpu_lines((size_t)PANEL * (size_t)apus_cpu_width(&c->in[1]) * sizeof(float));
}

static apus_status linear(const apus_kernel_call *c, const float *bias, const float *add)
{
    const apus_view *w = &c->in[1];
    const float *x = (const float *)c->in[0].data;
    float *y = (float *)c->out[0].data;
    const int64_t m = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(w), n = apus_cpu_rows(w);
    const int threads = threads_of(c);
    /* A row or two of x: the decoded panel should stay in the first cache. */
    const int64_t width = m <= 4 && w->dtype != APUS_F32 ? DOT_MAX : PANEL;
    const int64_t blocks = (n + width - 1) / width, wanted = (4 * threads + blocks - 1) / (blocks > 0 ? blocks : 1);
    int64_t height = ((m + wanted - 1) / (wanted > 0 ? wanted : 1) + 15) / 16 * 16;
    height = height > 0 ? height : 16;
    const int64_t parts = (m + height - 1) / height, items = parts * blocks;
    const size_t bytes = apus_row_bytes(w->dtype, k);
    const size_t panel_bytes = apus_cpu_lines((size_t)PANEL * (size_t)k * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n * k > 32768)
    for (int64_t item = 0; item < items; item++) {
        const int64_t j = item / parts * width, i = item % parts * height;
        const int64_t columns = apus_cpu_min(width, n - j), rows = apus_cpu_min(height, m - i);
        float *panel = (float *)(void *)((char *)c->scratch + (size_t)omp_get_thread_num() * panel_bytes);
        const float *b[PANEL];
        const epilogue e = {bias, add, n};
        if (m == 1 && stream(w->dtype, x, (const uint8_t *)w->data + (size_t)j * bytes, bytes, columns, k, y + j, &e, j)) {
            continue;
        }
        weight_rows(w, j, columns, k, panel, b);
        dots(x + i * k, k, rows, b, columns, k, y + i * n + j, n, &e, i, j);
    }
    return APUS_OK;
}

static apus_status run_linear(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return linear(c, c->n_in > 2 ? (const float *)c->in[2].data : NULL, c->accumulate & 1u ? (const float *)c->out[0].data : NULL);
}

/* The last input is add's other operand, of the shape of the result. */
static apus_status run_linear_add(const apus_kernel_call *c, apus_error *err)
{
    if (apus_cpu_elements(&c->in[c->n_in - 1]) != apus_cpu_rows(&c->in[0]) * apus_cpu_rows(&c->in[1])) {
        return apus_fail(err, APUS_E_INTERNAL, "linear + add: the shapes differ");
    }
    return linear(c, c->n_in > 3 ? (const float *)c->in[2].data : NULL, (const float *)c->in[c->n_in - 1].data);
}

/* y [m, n] = (beta) y + a b: a [m, k] or, transposed, [k, m]; b [k, n]. */
static void sgemm(int transposed, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, float beta, float *y)
{
    if (m == 0 || n == 0) {
        return;
    }
    if (k == 0) {
        if (beta == 0.0f) {
            memset(y, 0, (size_t)(m * n) * sizeof *y);
        }
        return;
    }
    cblas_sgemm(CblasRowMajor, transposed ? CblasTrans : CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1.0f, a, (int)lda, b, (int)n, beta, y,
                (int)n);
}

static size_t scratch_linear_dx(const apus_kernel_call *c)
{
    return c->in[1].dtype == APUS_F32 ? 0 : (size_t)DX_PANEL * (size_t)apus_cpu_width(&c->in[1]) * sizeof(float);
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

static apus_status run_linear_dx(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *dy = (const float *)c->in[0].data;
    const apus_view *w = &c->in[1];
    float *dx = (float *)c->out[0].data;
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_rows(w), k = apus_cpu_width(w);
    const int threads = blas_threads(c);
    const float beta = c->accumulate & 1u ? 1.0f : 0.0f;
    if (w->dtype == APUS_F32 || n == 0) {
        sgemm(0, m, k, n, dy, n, (const float *)w->data, beta, dx);
        return APUS_OK;
    }
    for (int64_t j = 0; j < n; j += DX_PANEL) {
        const int64_t rows = apus_cpu_min(DX_PANEL, n - j);
        decode_rows(w, j, rows, k, (float *)c->scratch, threads);
        sgemm(0, m, k, rows, dy + j, n, (const float *)c->scratch, j == 0 ? beta : 1.0f, dx);
    }
    return APUS_OK;
}

static size_t scratch_linear_dw(const apus_kernel_call *c)
{
    (void)c;
    return 0;
}

static apus_status run_linear_dw(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const int64_t m = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]), k = apus_cpu_width(&c->in[1]);
    (void)blas_threads(c);
    sgemm(1, n, k, m, (const float *)c->in[0].data, n, (const float *)c->in[1].data, c->accumulate & 1u ? 1.0f : 0.0f, (float *)c->out[0].data);
    return APUS_OK;
}

#endif
