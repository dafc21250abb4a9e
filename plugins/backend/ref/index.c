/* Sums, indexing and dropout of the reference backend. */
#include "ref.h"

#include <apus/random.h>

static apus_status run_sum(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data;
    double *y = apus_ref_sum(c, 0);
    for (int64_t i = 0; i < apus_ref_count(&c->in[0]); i++)
        y[0] += x[i];
    return APUS_OK;
}

static apus_status run_sum_squares(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data;
    double *y = apus_ref_sum(c, 0);
    for (int64_t i = 0; i < apus_ref_count(&c->in[0]); i++)
        y[0] += x[i] * x[i];
    return APUS_OK;
}

static apus_status run_sum_rows(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data; /* [T,H] */
    const int64_t rows = c->in[0].dims[0], h = c->in[0].dims[1];
    double *y = apus_ref_sum(c, 0);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < h; i++)
            y[i] += x[t * h + i];
    return APUS_OK;
}

static apus_status run_add_row(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *b = c->in[1].data;
    const int64_t rows = c->in[0].dims[0], h = c->in[0].dims[1];
    double *y = c->out[0].data;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < h; i++)
            y[t * h + i] = x[t * h + i] + b[i];
    return APUS_OK;
}

static apus_status run_scale_rows(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *s = c->in[1].data;
    const int64_t rows = c->in[0].dims[0], h = c->in[0].dims[1];
    double *y = c->out[0].data;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < h; i++)
            y[t * h + i] = s[t] * x[t * h + i];
    return APUS_OK;
}

static int64_t width(const apus_view *v)
{
    return v->ndim == 2 ? v->dims[1] : 1;
}

static apus_status inside(int64_t i, int64_t n, apus_error *err)
{
    return i >= 0 && i < n ? APUS_OK : apus_fail(err, APUS_E_INVALID, "index %lld of %lld rows", (long long)i, (long long)n);
}

static apus_status run_gather(const apus_kernel_call *c, apus_error *err)
{
    const double *x = c->in[0].data;
    const int32_t *index = c->in[1].data;
    const int64_t h = width(&c->in[0]);
    double *y = c->out[0].data;
    for (int64_t t = 0; t < c->in[1].dims[0]; t++) {
        if (inside(index[t], c->in[0].dims[0], err) != APUS_OK)
            return APUS_E_INVALID;
        memcpy(y + t * h, x + index[t] * h, (size_t)h * sizeof *y);
    }
    return APUS_OK;
}

static apus_status run_scatter_add(const apus_kernel_call *c, apus_error *err)
{
    const double *dy = c->in[0].data;
    const int32_t *index = c->in[1].data;
    const int64_t h = width(&c->in[0]);
    double *y = apus_ref_sum(c, 0);
    for (int64_t t = 0; t < c->in[1].dims[0]; t++) {
        if (inside(index[t], c->out[0].dims[0], err) != APUS_OK)
            return APUS_E_INVALID;
        for (int64_t i = 0; i < h; i++)
            y[index[t] * h + i] += dy[t * h + i];
    }
    return APUS_OK;
}

static apus_status run_columns(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data;
    const int64_t h = c->in[0].dims[1], begin = (int64_t)c->attrs[0], count = c->out[0].dims[1];
    double *y = c->out[0].data;
    for (int64_t t = 0; t < c->in[0].dims[0]; t++)
        memcpy(y + t * count, x + t * h + begin, (size_t)count * sizeof *y);
    return APUS_OK;
}

static apus_status run_columns_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *dy = c->in[0].data;
    const int64_t count = c->in[0].dims[1], h = c->out[0].dims[1], begin = (int64_t)c->attrs[0];
    double *dx = apus_ref_sum(c, 0);
    for (int64_t t = 0; t < c->in[0].dims[0]; t++)
        for (int64_t i = 0; i < count; i++)
            dx[t * h + begin + i] += dy[t * count + i];
    return APUS_OK;
}

static apus_status run_dropout(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, p = c->attrs[0];
    const int64_t *token = c->in[1].data, *seed = c->in[2].data;
    const int64_t h = c->in[0].dims[1];
    const uint64_t bound = apus_random_dropout_bound(p);
    double *y = c->out[0].data;
    for (int64_t t = 0; t < c->in[0].dims[0]; t++) {
        for (int64_t i = 0; i < h; i++) {
            uint32_t words[4];
            apus_random_dropout(seed[0], seed[1], (uint32_t)c->attrs[1], token[t], (uint32_t)(i / 4), words);
            y[t * h + i] = words[i % 4] >= bound ? x[t * h + i] / (1.0 - p) : 0.0;
        }
    }
    return APUS_OK;
}

#define KERNEL(name, f, fl)                                                                                                                          \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus." #name "/1", .flags = fl, .run = f                                                                 \
    }

static const apus_kernel kernels[] = {
    KERNEL(sum, run_sum, APUS_KERNEL_ACCUMULATES),
    KERNEL(sum_squares, run_sum_squares, APUS_KERNEL_ACCUMULATES),
    KERNEL(sum_rows, run_sum_rows, APUS_KERNEL_ACCUMULATES),
    KERNEL(add_row, run_add_row, 0),
    KERNEL(scale_rows, run_scale_rows, 0),
    KERNEL(gather, run_gather, 0),
    KERNEL(scatter_add, run_scatter_add, APUS_KERNEL_ACCUMULATES),
    KERNEL(columns, run_columns, 0),
    KERNEL(columns_grad, run_columns_grad, APUS_KERNEL_ACCUMULATES),
    KERNEL(dropout, run_dropout, 0),
    KERNEL(dropout_grad, run_dropout, 0),
};
APUS_REF_TABLE(apus_ref_index, kernels);
