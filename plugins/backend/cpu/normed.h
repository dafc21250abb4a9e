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

LANES_INLINE void norm_groups_as(int layer, int halves, norm n, int64_t begin, int64_t end, void *y)
{
    for (int64_t g = begin; g < end; g++, y = element_to(y, halves, n.width)) {
        const float *x = n.x + g * n.width;
        float mean = 0.0f, r;
        if (layer) {
            moments(x, n.width, n.eps, &mean, &r);
        } else {
            r = (float)(1.0 / sqrt((double)dot_row(x, x, n.width) / (double)n.width + n.eps));
        }
        for (int64_t i = 0; i < n.width; i += LANES) {
            const int64_t left = n.width - i;
            const vf a = get(x + i, left), w = get(n.w + i, left);
            vf v = layer ? (a - v_all(mean)) * v_all(r) * w : a * v_all(r) * (v_all(n.offset) + w);
            if (layer && n.b != NULL) {
                v += get(n.b + i, left);
            }
            v_give(halves, element_to(y, halves, i), v, left);
        }
    }
}

/* Groups [begin, end) of n, to y. */
static void norm_groups(const norm *n, int64_t begin, int64_t end, void *y)
{
    if (n->layer) {
        n->halves ? norm_groups_as(1, 1, *n, begin, end, y) : norm_groups_as(1, 0, *n, begin, end, y);
    } else {
        n->halves ? norm_groups_as(0, 1, *n, begin, end, y) : norm_groups_as(0, 0, *n, begin, end, y);
    }
}

#endif
