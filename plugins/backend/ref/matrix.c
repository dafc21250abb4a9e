/* Products, embeddings and the vocabulary head of the reference backend. Weights are decoded a row at a time. */
#include "ref.h"

#include <math.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double s = 0.0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* A decoded row of the weight `k`, and per_token numbers for each row of input `tokens`. */
static size_t row_scratch(const apus_view *w, int64_t tokens, int64_t per_token)
{
    return (size_t)w->dims[1] * (sizeof(double) + sizeof(float)) + (size_t)(tokens * per_token) * sizeof(double) + 64;
}

static size_t second_scratch(const apus_kernel_call *c)
{
    return row_scratch(&c->in[1], c->in[0].dims[0], 2);
}

static size_t third_scratch(const apus_kernel_call *c)
{
    return row_scratch(&c->in[2], 0, 0);
}

static apus_status run_linear(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *bias = c->n_in > 2 ? c->in[2].data : NULL;
    const int64_t m = c->in[0].dims[0], n = c->in[0].dims[1], o = c->in[1].dims[0];
    double *y = c->out[0].data, *row = c->scratch;
    for (int64_t j = 0; j < o; j++) {
        apus_ref_row(&c->in[1], j, row, (float *)(void *)(row + n));
        for (int64_t i = 0; i < m; i++)
            y[i * o + j] = dot(x + i * n, row, n) + (bias != NULL ? bias[j] : 0.0);
    }
    return APUS_OK;
}

static apus_status run_linear_dx(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *dy = c->in[0].data;
    const int64_t m = c->in[0].dims[0], o = c->in[0].dims[1], n = c->in[1].dims[1];
    double *dx = apus_ref_sum(c, 0), *row = c->scratch;
    for (int64_t j = 0; j < o; j++) {
        apus_ref_row(&c->in[1], j, row, (float *)(void *)(row + n));
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < n; k++)
                dx[i * n + k] += dy[i * o + j] * row[k];
    }
    return APUS_OK;
}

static apus_status run_linear_dw(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *dy = c->in[0].data, *x = c->in[1].data;
    const int64_t m = c->in[0].dims[0], o = c->in[0].dims[1], n = c->in[1].dims[1];
    double *dw = apus_ref_sum(c, 0);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < o; j++)
            for (int64_t k = 0; k < n; k++)
                dw[j * n + k] += dy[i * o + j] * x[i * n + k];
    return APUS_OK;
}

static apus_status inside(int64_t id, int64_t n, apus_error *err)
{
    return id >= 0 && id < n ? APUS_OK : apus_fail(err, APUS_E_INVALID, "id %lld of %lld rows", (long long)id, (long long)n);
}

static size_t first_scratch(const apus_kernel_call *c)
{
    return row_scratch(&c->in[0], 0, 0);
}

static apus_status run_embedding(const apus_kernel_call *c, apus_error *err)
{
    const int32_t *ids = c->in[1].data;
    const int64_t h = c->in[0].dims[1];
    double *y = c->out[0].data;
    for (int64_t t = 0; t < c->in[1].dims[0]; t++) {
        if (inside(ids[t], c->in[0].dims[0], err) != APUS_OK)
            return APUS_E_INVALID;
        apus_ref_row(&c->in[0], ids[t], y + t * h, c->scratch);
    }
    return APUS_OK;
}

static apus_status run_embedding_dw(const apus_kernel_call *c, apus_error *err)
{
    const double *dy = c->in[0].data;
    const int32_t *ids = c->in[1].data;
    const int64_t h = c->in[0].dims[1];
    double *dw = apus_ref_sum(c, 0);
    for (int64_t t = 0; t < c->in[1].dims[0]; t++) {
        if (inside(ids[t], c->out[0].dims[0], err) != APUS_OK)
            return APUS_E_INVALID;
        for (int64_t i = 0; i < h; i++)
            dw[ids[t] * h + i] += dy[t * h + i];
    }
    return APUS_OK;
}

/* softcap(scale * z) */
static double logit(double z, const double *attrs)
{
    z *= attrs[0];
    return attrs[1] > 0.0 ? attrs[1] * tanh(z / attrs[1]) : z;
}

/* Its derivative, by its value l. */
static double logit_slope(double l, const double *attrs)
{
    return attrs[1] > 0.0 ? attrs[0] * (1.0 - l / attrs[1] * (l / attrs[1])) : attrs[0];
}

static apus_status run_token_logprob(const apus_kernel_call *c, apus_error *err)
{
    const double *x = c->in[0].data;
    const int32_t *targets = c->in[2].data;
    const int64_t n = c->in[0].dims[0], h = c->in[0].dims[1], v = c->in[1].dims[0];
    double *row = c->scratch, *most = row + h + (h + 1) / 2, *sum = most + n;
    double *logp = c->out[0].data, *lse = c->out[1].data, *slope = c->out[2].data;
    for (int64_t t = 0; t < n; t++) {
        most[t] = -INFINITY;
        sum[t] = 0.0;
        if (inside(targets[t], v, err) != APUS_OK)
            return APUS_E_INVALID;
    }
    for (int64_t i = 0; slope != NULL && i < n * h; i++)
        slope[i] = 0.0;
    for (int64_t j = 0; j < v; j++) { /* sums of exp, rescaled whenever a larger logit comes */
        apus_ref_row(&c->in[1], j, row, (float *)(void *)(row + h));
        for (int64_t t = 0; t < n; t++) {
            const double l = logit(dot(x + t * h, row, h), c->attrs);
            const double fade = l > most[t] ? exp(most[t] - l) : 1.0;
            most[t] = l > most[t] ? l : most[t];
            const double p = exp(l - most[t]);
            sum[t] = sum[t] * fade + p;
            for (int64_t i = 0; slope != NULL && i < h; i++)
                slope[t * h + i] = slope[t * h + i] * fade + p * logit_slope(l, c->attrs) * row[i];
            if (targets[t] == j && logp != NULL)
                logp[t] = l;
        }
    }
    for (int64_t t = 0; t < n; t++) {
        const double all = most[t] + log(sum[t]);
        if (logp != NULL)
            logp[t] -= all;
        if (lse != NULL)
            lse[t] = all;
        if (slope == NULL)
            continue;
        apus_ref_row(&c->in[1], targets[t], row, (float *)(void *)(row + h));
        const double s = logit_slope(logit(dot(x + t * h, row, h), c->attrs), c->attrs);
        for (int64_t i = 0; i < h; i++)
            slope[t * h + i] = s * row[i] - slope[t * h + i] / sum[t];
    }
    return APUS_OK;
}

static apus_status run_token_logprob_dw(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *d = c->in[0].data, *x = c->in[1].data, *lse = c->in[4].data;
    const int32_t *targets = c->in[3].data;
    const int64_t n = c->in[1].dims[0], h = c->in[1].dims[1], v = c->in[2].dims[0];
    double *dw = apus_ref_sum(c, 0), *row = c->scratch;
    for (int64_t j = 0; j < v; j++) {
        apus_ref_row(&c->in[2], j, row, (float *)(void *)(row + h));
        for (int64_t t = 0; t < n; t++) {
            const double l = logit(dot(x + t * h, row, h), c->attrs);
            const double dz = d[t] * ((targets[t] == j ? 1.0 : 0.0) - exp(l - lse[t])) * logit_slope(l, c->attrs);
            for (int64_t i = 0; i < h; i++)
                dw[j * h + i] += dz * x[t * h + i];
        }
    }
    return APUS_OK;
}

#define KERNEL(name, fl, sc, enc)                                                                                                                    \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus." #name "/1", .flags = fl, .encodings = enc, .scratch = sc, .run = run_##name                       \
    }
#define ACC APUS_KERNEL_ACCUMULATES

static const apus_kernel kernels[] = {
    KERNEL(linear, 0, second_scratch, apus_ref_encodings),
    KERNEL(linear_dx, ACC, second_scratch, apus_ref_encodings),
    KERNEL(linear_dw, ACC, NULL, NULL),
    KERNEL(embedding, 0, first_scratch, apus_ref_encodings),
    KERNEL(embedding_dw, ACC, NULL, NULL),
    KERNEL(token_logprob, 0, second_scratch, apus_ref_encodings),
    KERNEL(token_logprob_dw, ACC, third_scratch, apus_ref_encodings),
};
APUS_REF_TABLE(apus_ref_matrix, kernels);
