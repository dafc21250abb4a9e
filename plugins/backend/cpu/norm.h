/* Norms over groups of the last dimension (normed.h has their rows), and rope. */
#ifndef APUS_CPU_NORM_H
#define APUS_CPU_NORM_H

#include "index.h"

#define NO_SCRATCH(id)                                                                                                                               \
    static size_t scratch_##id(const apus_kernel_call *c)                                                                                            \
    {                                                                                                                                                \
        (void)c;                                                                                                                                     \
        return 0;                                                                                                                                    \
    }
NO_SCRATCH(rms_norm)
NO_SCRATCH(layer_norm)
NO_SCRATCH(rope)
#undef NO_SCRATCH

enum { NORM_LEAST = 32768, ROPE_LEAST = 16384 }; /* elements: fewer are not worth a second thread */

static int64_t norm_width(const apus_kernel_call *c, int rms)
{
    return rms && c->attrs[1] != 0.0 ? (int64_t)c->attrs[1] : apus_cpu_width(&c->in[1]);
}

static void rms_norm_rows(const apus_kernel_call *c, int64_t begin, int64_t end)
{
    const norm n = norm_of(1, c->in, &c->in[1], NULL, c->attrs, c->out[0].dtype == APUS_BF16);
    norm_groups(&n, begin, end, element_to(c->out[0].data, n.halves, begin * n.width));
}

static apus_status run_rms_norm(const apus_kernel_call *c, apus_error *err)
{
    const int64_t elements = apus_cpu_elements(&c->in[0]);
    (void)err;
    over_rows(c, elements / norm_width(c, 1), elements, NORM_LEAST, rms_norm_rows);
    return APUS_OK;
}

static size_t scratch_rms_norm_grad(const apus_kernel_call *c)
{
    return (size_t)PARTS * (size_t)norm_width(c, 1) * sizeof(double);
}

static apus_status run_rms_norm_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *dy = (const float *)c->in[0].data, *x = (const float *)c->in[1].data, *w = (const float *)c->in[2].data;
    float *dx = (float *)c->out[0].data, *dw = (float *)c->out[1].data;
    double *part = (double *)c->scratch;
    const int64_t n = norm_width(c, 1), groups = apus_cpu_elements(&c->in[1]) / n, parts = parts_of(groups);
    const vf offset = v_all((float)c->attrs[2]);
    const int add = c->accumulate & 1u;
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (groups * n > 32768)
    for (int64_t p = 0; p < parts; p++) {
        double *sum = part + p * n;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t g = groups * p / parts; g < groups * (p + 1) / parts; g++) {
            const float *a = x + g * n, *d = dy + g * n;
            const double rd = 1.0 / sqrt((double)dot_row(a, a, n) / (double)n + c->attrs[0]);
            const vf r = v_all((float)rd);
            vf mixed = v_all(0.0f);
            for (int64_t i = 0; i < n; i += LANES) {
                const vf da = get(d + i, n - i) * get(a + i, n - i);
                mixed = v_fma(da, offset + get(w + i, n - i), mixed);
                if (dw != NULL) {
                    add_double(sum + i, da * r, n - i);
                }
            }
            if (dx == NULL) {
                continue;
            }
            const vf back = v_all((float)(rd * rd * (double)v_sum(mixed) / (double)n));
            for (int64_t i = 0; i < n; i += LANES) {
                const vf gw = get(d + i, n - i) * (offset + get(w + i, n - i));
                const vf v = r * (gw - get(a + i, n - i) * back);
                put(dx + g * n + i, add ? get(dx + g * n + i, n - i) + v : v, n - i);
            }
        }
    }
    if (dw != NULL) {
        sum_parts(part, parts, n, dw, c->accumulate & 2u);
    }
    return APUS_OK;
}

static void layer_norm_rows(const apus_kernel_call *c, int64_t begin, int64_t end)
{
    const norm n = norm_of(0, c->in, &c->in[1], c->n_in > 2 ? &c->in[2] : NULL, c->attrs, c->out[0].dtype == APUS_BF16);
    norm_groups(&n, begin, end, element_to(c->out[0].data, n.halves, begin * n.width));
}

static apus_status run_layer_norm(const apus_kernel_call *c, apus_error *err)
{
    const int64_t elements = apus_cpu_elements(&c->in[0]);
    (void)err;
    over_rows(c, elements / norm_width(c, 0), elements, NORM_LEAST, layer_norm_rows);
    return APUS_OK;
}

static size_t scratch_layer_norm_grad(const apus_kernel_call *c)
{
    return 2 * (size_t)PARTS * (size_t)apus_cpu_width(&c->in[2]) * sizeof(double);
}

static apus_status run_layer_norm_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *dy = (const float *)c->in[0].data, *x = (const float *)c->in[1].data, *w = (const float *)c->in[2].data;
    float *dx = (float *)c->out[0].data, *dw = (float *)c->out[1].data, *db = c->n_out > 2 ? (float *)c->out[2].data : NULL;
    const int64_t n = apus_cpu_width(&c->in[2]), groups = apus_cpu_elements(&c->in[1]) / n, parts = parts_of(groups);
    double *part_w = (double *)c->scratch, *part_b = part_w + PARTS * n;
    const int add = c->accumulate & 1u;
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (groups * n > 32768)
    for (int64_t p = 0; p < parts; p++) {
        double *sum_w = part_w + p * n, *sum_b = part_b + p * n;
        memset(sum_w, 0, (size_t)n * sizeof *sum_w);
        memset(sum_b, 0, (size_t)n * sizeof *sum_b);
        for (int64_t g = groups * p / parts; g < groups * (p + 1) / parts; g++) {
            const float *a = x + g * n, *d = dy + g * n;
            float mean, r;
            moments(a, n, c->attrs[0], &mean, &r);
            vf plain = v_all(0.0f), mixed = v_all(0.0f);
            for (int64_t i = 0; i < n; i += LANES) {
                const vf di = get(d + i, n - i), hat = (get(a + i, n - i) - v_all(mean)) * v_all(r), gw = di * get(w + i, n - i);
                plain += gw;
                mixed = v_fma(gw, hat, mixed);
                add_double(sum_w + i, di * hat, n - i);
                add_double(sum_b + i, di, n - i);
            }
            if (dx == NULL) {
                continue;
            }
            const vf shift = v_all(v_sum(plain) / (float)n), back = v_all(v_sum(mixed) / (float)n);
            for (int64_t i = 0; i < n; i += LANES) {
                const vf hat = (get(a + i, n - i) - v_all(mean)) * v_all(r), gw = get(d + i, n - i) * get(w + i, n - i);
                const vf v = v_all(r) * (gw - shift - hat * back);
                put(dx + g * n + i, add ? get(dx + g * n + i, n - i) + v : v, n - i);
            }
        }
    }
    if (dw != NULL) {
        sum_parts(part_w, parts, n, dw, c->accumulate & 2u);
    }
    if (db != NULL) {
        sum_parts(part_b, parts, n, db, c->accumulate & 4u);
    }
    return APUS_OK;
}

enum { ROPE_MAX = 512 }; /* angles of one token */

typedef struct rope {
    const float *freqs;
    int64_t half;
    double scale, limit, factor, base;
    int inverse, mode;
} rope;

/* cos and sin of the half angles of one token: [half] each, room for whole vectors. */
static void rope_angles(const rope *r, int32_t position, int32_t length, float *cosine, float *sine)
{
    const int beyond = r->mode != 0 && (double)length > r->limit, stretch = beyond && r->mode == 1;
    const float *freqs = r->freqs + (beyond && r->mode == 2 ? r->half : 0);
    const double d = 2.0 * (double)r->half;
    const double base = stretch ? r->base * pow(r->factor * (double)length / r->limit - (r->factor - 1.0), d / (d - 2.0)) : 0.0;
    const vf scale = v_all((float)r->scale), signed_scale = r->inverse ? -scale : scale;
    for (int64_t i = 0; i < r->half; i += LANES) {
        const vf f = get(freqs + i, r->half - i);
        vd low = v_low(f), high = v_high(f);
        const int64_t half = LANES / 2;
        for (int64_t j = 0; j < half && stretch; j++) {
            low[j] = pow(base, -2.0 * (double)(i + j) / d);
            high[j] = pow(base, -2.0 * (double)(i + j + half) / d);
        }
        vf s, c;
        v_sincos((double)position, low, high, &s, &c);
        v_store(cosine + i, c * scale);
        v_store(sine + i, s * signed_scale);
    }
}

/* Token t of the first input, rotated, to `to`. */
static void rope_token(const apus_kernel_call *c, int64_t t, int halves, void *to)
{
    const int64_t head = (int64_t)c->attrs[0], rotary = (int64_t)c->attrs[1], half = rotary / 2, width = apus_cpu_width(&c->in[0]);
    const float *x = (const float *)c->in[0].data + t * width;
    const int32_t *positions = (const int32_t *)c->in[1].data, *lengths = (const int32_t *)c->in[2].data;
    const rope r = {.freqs = (const float *)c->in[3].data,
                    .half = half,
                    .scale = c->attrs[2],
                    .inverse = c->attrs[3] != 0.0,
                    .mode = (int)c->attrs[4],
                    .limit = c->attrs[5],
                    .factor = c->attrs[6],
                    .base = c->attrs[7]};
    float cosine[ROPE_MAX], sine[ROPE_MAX];
    rope_angles(&r, positions[t], lengths != NULL ? lengths[t] : 0, cosine, sine);
    for (int64_t h = 0; h < width; h += head) {
        const float *in = x + h;
        void *out = element_to(to, halves, h);
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t left = half - i;
            const vf a = get(in + i, left), b = get(in + half + i, left), co = v_load(cosine + i), si = v_load(sine + i);
            v_give(halves, element_to(out, halves, i), a * co - b * si, left);
            v_give(halves, element_to(out, halves, half + i), v_fma(b, co, a * si), left);
        }
        for (int64_t i = rotary; i < head; i += LANES) {
            v_give(halves, element_to(out, halves, i), get(in + i, head - i), head - i);
        }
    }
}

static void rope_rows(const apus_kernel_call *c, int64_t begin, int64_t end)
{
    const int halves = c->out[0].dtype == APUS_BF16;
    const int64_t width = apus_cpu_width(&c->in[0]);
    for (int64_t t = begin; t < end; t++) {
        rope_token(c, t, halves, element_to(c->out[0].data, halves, t * width));
    }
}

static apus_status rope_check(const apus_kernel_call *c, apus_error *err)
{
    const int64_t rotary = (int64_t)c->attrs[1];
    return rotary / 2 <= ROPE_MAX - LANES ? APUS_OK
                                          : apus_fail(err, APUS_E_UNSUPPORTED, "rope: rotary_dim %lld is more than the cpu backend takes (%d)",
                                                      (long long)rotary, 2 * (ROPE_MAX - LANES));
}

static apus_status run_rope(const apus_kernel_call *c, apus_error *err)
{
    const int64_t rows = apus_cpu_rows(&c->in[0]);
    const apus_status st = rope_check(c, err);
    if (st == APUS_OK) {
        over_rows(c, rows, rows * apus_cpu_width(&c->in[0]), ROPE_LEAST, rope_rows);
    }
    return st;
}

#endif
