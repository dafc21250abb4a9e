/* Norms and rope of the reference backend. */
#include "ref.h"

#include <math.h>

static int64_t group_width(const apus_view *x, double width)
{
    return width != 0.0 ? (int64_t)width : x->dims[x->ndim - 1];
}

static double mean_product(const double *a, const double *b, int64_t n)
{
    double s = 0.0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s / (double)n;
}

static apus_status run_rms_norm(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *w = c->in[1].data, eps = c->attrs[0], offset = c->attrs[2];
    const int64_t n = group_width(&c->in[0], c->attrs[1]), groups = apus_ref_count(&c->in[0]) / n;
    double *y = c->out[0].data;
    for (int64_t g = 0; g < groups; g++, x += n, y += n) {
        const double r = 1.0 / sqrt(mean_product(x, x, n) + eps);
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * r * (offset + w[i]);
    }
    return APUS_OK;
}

static apus_status run_rms_norm_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *dy = c->in[0].data, *x = c->in[1].data, *w = c->in[2].data, eps = c->attrs[0], offset = c->attrs[2];
    const int64_t n = group_width(&c->in[1], c->attrs[1]), groups = apus_ref_count(&c->in[1]) / n;
    double *dx = apus_ref_sum(c, 0), *dw = apus_ref_sum(c, 1);
    for (int64_t g = 0; g < groups; g++) {
        const double *xg = x + g * n, *dg = dy + g * n;
        const double r = 1.0 / sqrt(mean_product(xg, xg, n) + eps);
        double along = 0.0; /* mean of d(x̂)·x̂ */
        for (int64_t i = 0; i < n; i++)
            along += dg[i] * (offset + w[i]) * xg[i] * r / (double)n;
        for (int64_t i = 0; i < n; i++) {
            if (dx != NULL)
                dx[g * n + i] += r * (dg[i] * (offset + w[i]) - xg[i] * r * along);
            if (dw != NULL)
                dw[i] += dg[i] * xg[i] * r;
        }
    }
    return APUS_OK;
}

static void statistics(const double *x, int64_t n, double eps, double *mean, double *rstd)
{
    double m = 0.0, v = 0.0;
    for (int64_t i = 0; i < n; i++)
        m += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        v += (x[i] - m) * (x[i] - m) / (double)n;
    *mean = m;
    *rstd = 1.0 / sqrt(v + eps);
}

static apus_status run_layer_norm(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *w = c->in[1].data, *b = c->n_in > 2 ? c->in[2].data : NULL;
    const int64_t n = group_width(&c->in[0], 0.0), groups = apus_ref_count(&c->in[0]) / n;
    double *y = c->out[0].data;
    for (int64_t g = 0; g < groups; g++, x += n, y += n) {
        double mean, rstd;
        statistics(x, n, c->attrs[0], &mean, &rstd);
        for (int64_t i = 0; i < n; i++)
            y[i] = (x[i] - mean) * rstd * w[i] + (b != NULL ? b[i] : 0.0);
    }
    return APUS_OK;
}

static apus_status run_layer_norm_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *dy = c->in[0].data, *x = c->in[1].data, *w = c->in[2].data;
    const int64_t n = group_width(&c->in[1], 0.0), groups = apus_ref_count(&c->in[1]) / n;
    double *dx = apus_ref_sum(c, 0), *dw = apus_ref_sum(c, 1), *db = apus_ref_sum(c, 2);
    for (int64_t g = 0; g < groups; g++) {
        const double *xg = x + g * n, *dg = dy + g * n;
        double mean, rstd, level = 0.0, along = 0.0;
        statistics(xg, n, c->attrs[0], &mean, &rstd);
        for (int64_t i = 0; i < n; i++) {
            level += dg[i] * w[i] / (double)n;
            along += dg[i] * w[i] * (xg[i] - mean) * rstd / (double)n;
        }
        for (int64_t i = 0; i < n; i++) {
            const double normal = (xg[i] - mean) * rstd;
            if (dx != NULL)
                dx[g * n + i] += rstd * (dg[i] * w[i] - level - normal * along);
            if (dw != NULL)
                dw[i] += dg[i] * normal;
            if (db != NULL)
                db[i] += dg[i];
        }
    }
    return APUS_OK;
}

static apus_status run_rope(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const double *x = c->in[0].data, *freqs = c->in[3].data;
    const int32_t *positions = c->in[1].data, *lengths = c->in[2].data;
    const int64_t head = (int64_t)c->attrs[0], rotary = (int64_t)c->attrs[1], half = rotary / 2, w = c->in[0].dims[1];
    const double scale = c->attrs[2], limit = c->attrs[5], factor = c->attrs[6], base = c->attrs[7];
    const int inverse = c->attrs[3] != 0.0, mode = (int)c->attrs[4];
    double *y = c->out[0].data;
    for (int64_t t = 0; t < c->in[0].dims[0]; t++) {
        const int beyond = mode != 0 && (double)lengths[t] > limit;
        const double d = (double)rotary;
        const double stretched = beyond && mode == 1 ? base * pow(factor * (double)lengths[t] / limit - (factor - 1.0), d / (d - 2.0)) : base;
        for (int64_t h = 0; h < w; h += head) {
            const double *in = x + t * w + h;
            double *out = y + t * w + h;
            for (int64_t i = 0; i < half; i++) {
                double f = freqs[i];
                if (beyond)
                    f = mode == 1 ? pow(stretched, -2.0 * (double)i / d) : freqs[half + i];
                const double angle = (double)positions[t] * f;
                const double co = cos(angle) * scale, si = (inverse ? -sin(angle) : sin(angle)) * scale;
                out[i] = in[i] * co - in[half + i] * si;
                out[half + i] = in[half + i] * co + in[i] * si;
            }
            memcpy(out + rotary, in + rotary, (size_t)(head - rotary) * sizeof *out);
        }
    }
    return APUS_OK;
}

#define KERNEL(name, fl)                                                                                                                             \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus." #name "/1", .flags = fl, .run = run_##name                                                        \
    }

static const apus_kernel kernels[] = {
    KERNEL(rms_norm, 0), KERNEL(rms_norm_grad, APUS_KERNEL_ACCUMULATES), KERNEL(layer_norm, 0), KERNEL(layer_norm_grad, APUS_KERNEL_ACCUMULATES),
    KERNEL(rope, 0),
};
APUS_REF_TABLE(apus_ref_norm, kernels);
