/*
 * Rows of norms over groups of the last dimension: of the ops (norm.h), and of products whose left factor is normalised as it is packed.
 */
#ifndef APUS_CPU_NORMED_H
#define APUS_CPU_NORMED_H

#include "tiles.h"

/* y = x / rms(x) (offset + w), or with `layer` (x - mean) / deviation w + b, of groups of `width`. */
typedef struct norm {
    const float *x, *w, *b; /* b: NULL, there is none */
    int64_t width;
    double eps;
    float offset;
    int layer, halves;
} norm;

/* attrs: the op's. */
static norm norm_of(int rms, const apus_view *x, const apus_view *w, const apus_view *b, const double *attrs, int halves)
{
    return (norm){.x = (const float *)x->data,
                  .w = (const float *)w->data,
                  .b = b != NULL ? (const float *)b->data : NULL,
                  .width = rms && attrs[1] != 0.0 ? (int64_t)attrs[1] : apus_cpu_width(w),
                  .eps = attrs[0],
                  .offset = rms ? (float)attrs[2] : 0.0f,
                  .layer = !rms,
                  .halves = halves};
}

LANES_INLINE float dot_row(const float *a, const float *b, int64_t n)
{
    vf s[4] = {v_all(0.0f), v_all(0.0f), v_all(0.0f), v_all(0.0f)};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (int j = 0; j < 4; j++) {
            s[j] = v_fma(v_load(a + i + j * LANES), v_load(b + i + j * LANES), s[j]);
        }
    }
    for (int j = 0; i < n; i += LANES, j++) {
        s[j & 3] = v_fma(get(a + i, n - i), get(b + i, n - i), s[j & 3]);
    }
    return v_sum((s[0] + s[1]) + (s[2] + s[3]));
}

LANES_INLINE float sum_row(const float *a, int64_t n)
{
    vf s[2] = {v_all(0.0f), v_all(0.0f)};
    for (int64_t i = 0, j = 0; i < n; i += LANES, j ^= 1) {
        s[j] += get(a + i, n - i);
    }
    return v_sum(s[0] + s[1]);
}

/* Mean and 1 / sqrt(variance + eps) of a row. */
LANES_INLINE void moments(const float *a, int64_t n, double eps, float *mean, float *r)
{
    const float m = (float)((double)sum_row(a, n) / (double)n);
    vf s = v_all(0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t left = n - i;
        const vf d = left >= LANES ? v_load(a + i) - v_all(m) : v_load_part(a + i, left);
        if (left >= LANES) {
            s = v_fma(d, d, s);
        } else {
            for (int64_t j = 0; j < left; j++) {
                s[j] += (d[j] - m) * (d[j] - m);
            }
        }
    }
    *mean = m;
    *r = (float)(1.0 / sqrt((double)v_sum(s) / (double)n + eps));
}

/* Groups [begin, end) of n, to y. */
static void norm_groups(const norm *n, int64_t begin, int64_t end, void *y)
{
    const int64_t width = n->width;
    for (int64_t g = begin; g < end; g++, y = element_to(y, n->halves, width)) {
        const float *x = n->x + g * width;
        if (!n->layer) {
            const vf r = v_all((float)(1.0 / sqrt((double)dot_row(x, x, width) / (double)width + n->eps))), offset = v_all(n->offset);
            for (int64_t i = 0; i < width; i += LANES) {
                v_give(n->halves, element_to(y, n->halves, i), get(x + i, width - i) * r * (offset + get(n->w + i, width - i)), width - i);
            }
            continue;
        }
        float mean, r;
        moments(x, width, n->eps, &mean, &r);
        for (int64_t i = 0; i < width; i += LANES) {
            const vf v = (get(x + i, width - i) - v_all(mean)) * v_all(r) * get(n->w + i, width - i);
            v_give(n->halves, element_to(y, n->halves, i), n->b != NULL ? v + get(n->b + i, width - i) : v, width - i);
        }
    }
}

#endif
