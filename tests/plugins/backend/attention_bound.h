/*
 * How far attention with products in bfloat16 may be from the exact one, element by element.
 *
 * Every factor of a product is rounded to eight bits: off by U of itself at most. So a score is off by e = ((1 + U)^2 - 1) scale sum |q||k|
 * (softcap's slope is at most 1), a softmax's numerator by A = e^e (1 + U) - 1 of itself, and what is summed from those by the sums of
 * magnitudes below. Sums in float32 and its exponentials add FLOATS of the same magnitudes.
 */
#ifndef APUS_ATTENTION_BOUND_H
#define APUS_ATTENTION_BOUND_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define U      0x1p-8
#define TWO    ((1 + U) * (1 + U) - 1) /* of a product of two factors */
#define FLOATS 1e-5

typedef struct attention_sizes {
    int64_t heads, kv_heads, dim, window;
    double scale, softcap;
    const int32_t *segments; /* [n_segments, 4] */
    int64_t n_segments, tokens;
} attention_sizes;

/* All [tokens, …] in the layout of the op. dout, dq, dk, dv: NULL for the forward pass. */
typedef struct attention_values {
    const double *q, *k, *v, *out, *lse, *dout;
} attention_values;

typedef struct attention_bounds {
    double *out, *lse, *dq, *dk, *dv; /* zeroed by the caller */
} attention_bounds;

/* One query of one head (t: its row; q, out, dout: their elements at `at`) and the keys rows[first … last]. */
static inline void attention_bound_query(const attention_sizes *s, const attention_values *x, const attention_bounds *b, int64_t t, int64_t h,
                                         const int64_t *rows, int64_t first, int64_t last)
{
    const int64_t n = s->dim, at = (t * s->heads + h) * n, kv = h / (s->heads / s->kv_heads) * n, narrow = s->kv_heads * n;
    double off = 0, mean = 0, mean_size = 0;
    for (int64_t d = 0; d < n && x->dout != NULL; d++) {
        mean += x->dout[at + d] * x->out[at + d];
        mean_size += fabs(x->dout[at + d] * x->out[at + d]);
    }
    for (int pass = 0; pass < 2; pass++) { /* the weights' errors first: they divide */
        for (int64_t j = first; j <= last; j++) {
            const int64_t row = rows[j] * narrow + kv;
            double z = 0, size = 0, dp = 0, dp_size = 0;
            for (int64_t d = 0; d < n; d++) {
                z += s->scale * x->q[at + d] * x->k[row + d];
                size += s->scale * fabs(x->q[at + d] * x->k[row + d]);
            }
            const double e = TWO * size + FLOATS * (1 + size), capped = s->softcap > 0 ? s->softcap * tanh(z / s->softcap) : z;
            const double p = exp(capped - x->lse[t * s->heads + h]), a = exp(e) * (1 + U) - 1;
            if (pass == 0) {
                off += p * a;
                continue;
            }
            for (int64_t d = 0; d < n && b->out != NULL; d++)
                b->out[at + d] += p * ((a + (1 + a) * U + FLOATS) * fabs(x->v[row + d]) + a * fabs(x->out[at + d])) / (1 - fmin(off, 0.5));
            if (x->dout == NULL)
                continue;
            for (int64_t d = 0; d < n; d++) {
                dp += x->dout[at + d] * x->v[row + d];
                dp_size += fabs(x->dout[at + d] * x->v[row + d]);
            }
            const double r = capped / (s->softcap > 0 ? s->softcap : 1), bend = s->softcap > 0 ? 1 - r * r : 1;
            const double bend_off = s->softcap > 0 ? (2 * fabs(r) + e / s->softcap) * e / s->softcap : 0;
            const double g = dp - mean, g_off = (TWO + FLOATS) * dp_size + (U + FLOATS) * mean_size;
            const double ds = s->scale * p * fabs(g) * bend;
            const double first_off = s->scale * p * (1 + expm1(e)) * ((fabs(g) + g_off) * (bend + bend_off)) - s->scale * p * fabs(g) * bend;
            const double ds_off = first_off + (U + FLOATS) * (ds + first_off);
            for (int64_t d = 0; d < n; d++) {
                b->dq[at + d] += ds_off * (1 + U) * fabs(x->k[row + d]) + ds * U * fabs(x->k[row + d]);
                b->dk[row + d] += ds_off * (1 + U) * fabs(x->q[at + d]) + ds * U * fabs(x->q[at + d]);
                b->dv[row + d] += p * (a * (1 + U) + U + FLOATS) * fabs(x->dout[at + d]);
            }
        }
    }
    if (b->lse != NULL)
        b->lse[t * s->heads + h] = log1p(off) + FLOATS * (1 + fabs(x->lse[t * s->heads + h]));
}

/* Adds to b's arrays. The segments are well-formed. */
static inline void attention_bound(const attention_sizes *s, const attention_values *x, const attention_bounds *b)
{
    int64_t *rows = malloc((size_t)(s->tokens + 1) * sizeof *rows);
    for (int64_t g = 0; g < s->n_segments; g++) {
        int64_t before = 0;
        for (int64_t k = s->segments[g * 4 + 2]; k >= 0; k = s->segments[k * 4 + 2])
            before += s->segments[k * 4 + 1];
        int64_t at = before + s->segments[g * 4 + 1];
        for (int64_t k = g; k >= 0; k = s->segments[k * 4 + 2])
            for (int64_t i = s->segments[k * 4 + 1]; i-- > 0;)
                rows[--at] = s->segments[k * 4] + i;
        for (int64_t i = 0; i < s->segments[g * 4 + 1]; i++) {
            const int64_t last = before + i, first = s->window > 0 && last + 1 > s->window ? last + 1 - s->window : 0;
            for (int64_t h = 0; h < s->heads; h++)
                attention_bound_query(s, x, b, s->segments[g * 4] + i, h, rows, first, last);
        }
    }
    free(rows);
}

#undef U
#undef TWO
#undef FLOATS

#endif
