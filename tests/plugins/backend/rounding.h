/*
 * How far products in float32 may be from the exact ones, element by element: what rounding comes to.
 *
 * Each operation rounds: off by FLOAT of its result at most. A sum of k terms is then off by k FLOAT of the sum of their magnitudes; of
 * many terms by 6 sqrt(k) FLOAT, but for a chance below 2 exp(-18) a rounding (Higham and Mary 2019, "A new approach to probabilistic
 * rounding error analysis", theorem 3.1), in any order. The vocabulary head carries a logit's error through its softcap, whose slope is
 * at most 1, and through the softmax.
 */
#ifndef APUS_ROUNDING_H
#define APUS_ROUNDING_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define FLOAT 0x1p-24
#define EXP   (8 * FLOAT) /* exp and tanh: four units in the last place */
#define TILE  256.0       /* words of the vocabulary that are weighed together, at least */

static inline double sum_bound(double k)
{
    return FLOAT * fmin(k, 6 * sqrt(k));
}

/* bound [m, n] of y = x W': x [m, k], w [n, k] */
static inline void linear_bound(const double *x, const double *w, int64_t m, int64_t n, int64_t k, double *bound)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double size = 0;
            for (int64_t d = 0; d < k; d++)
                size += fabs(x[i * k + d] * w[j * k + d]);
            bound[i * n + j] = sum_bound((double)k) * size;
        }
    }
}

typedef struct head_values {
    int64_t rows, vocabulary, k;
    double scale, softcap;
    const double *x, *w; /* [rows, k], [vocabulary, k] */
    const int32_t *targets;
    const double *lse, *d; /* [rows]; d: what comes from above, for dw */
    double weights;        /* what a token's weight of a slope is rounded by: 0, or 2^-8 in bfloat16 */
} head_values;

/* owner: caller, zeroed */
typedef struct head_bounds {
    double *logp, *lse, *slopes, *dw; /* [rows], [rows], [rows, k], [vocabulary, k] */
} head_bounds;

typedef struct head_logit {
    double value, off, slope, slope_off;
} head_logit;

static inline head_logit head_logit_of(const head_values *h, const double *x, const double *w)
{
    double z = 0, size = 0;
    for (int64_t i = 0; i < h->k; i++) {
        z += x[i] * w[i];
        size += fabs(x[i] * w[i]);
    }
    z *= h->scale;
    head_logit l = {z, sum_bound((double)h->k) * fabs(h->scale) * size + FLOAT * fabs(z), h->scale, 0};
    if (h->softcap > 0) {
        l.value = h->softcap * tanh(z / h->softcap);
        l.off += FLOAT * fabs(z) + (EXP + FLOAT) * fabs(l.value);
        const double r = fabs(l.value) / h->softcap, off = l.off / h->softcap;
        l.slope = h->scale * (1 - r * r);
        l.slope_off = fabs(h->scale) * ((2 * r + off) * off + 4 * FLOAT);
    }
    return l;
}

/* One row's part in b. l [vocabulary]: its logits. */
static inline void head_bound_row(const head_values *h, int64_t t, const head_logit *l, const head_bounds *b)
{
    const head_logit *chosen = &l[h->targets[t]];
    const double sums = sum_bound((double)h->vocabulary), fades = ((double)h->vocabulary / TILE + 1) * (EXP + FLOAT);
    double most = 0, off = 0;
    for (int64_t v = 0; v < h->vocabulary; v++)
        most = fmax(most, fabs(l[v].value));
    for (int64_t v = 0; v < h->vocabulary; v++)
        off += exp(l[v].value - h->lse[t]) * (exp(l[v].off + 2 * FLOAT * most) * (1 + EXP + sums) - 1);
    off = -log1p(-off); /* of the sum's logarithm */
    b->lse[t] = off + FLOAT * fabs(h->lse[t]);
    b->logp[t] = chosen->off + off + FLOAT * fabs(chosen->value - h->lse[t]);
    for (int64_t i = 0; i < h->k; i++)
        b->slopes[t * h->k + i] = (chosen->slope_off + 3 * FLOAT * fabs(chosen->slope)) * fabs(h->w[h->targets[t] * h->k + i]);
    for (int64_t v = 0; v < h->vocabulary; v++) {
        const double p = exp(l[v].value - h->lse[t]);
        const double relative = exp(l[v].off + off + 8 * FLOAT * most) * (1 + EXP + fades + sums + 6 * FLOAT + h->weights) - 1;
        const double weight = p * (fabs(l[v].slope) * relative + l[v].slope_off * (1 + relative));
        for (int64_t i = 0; i < h->k; i++)
            b->slopes[t * h->k + i] += weight * fabs(h->w[v * h->k + i]);
        if (h->d == NULL)
            continue;
        const double g = (v == h->targets[t]) - p, dz = fabs(h->d[t] * g * l[v].slope);
        const double g_off = p * (exp(l[v].off + FLOAT * (most + fabs(h->lse[t]))) * (1 + EXP) - 1) + FLOAT * fabs(g);
        const double dz_off = fabs(h->d[t]) * (fabs(l[v].slope) * g_off + (fabs(g) + g_off) * l[v].slope_off) + 2 * FLOAT * dz;
        const double all = dz_off + (sum_bound((double)h->rows) + h->weights) * (dz + dz_off);
        for (int64_t i = 0; i < h->k; i++)
            b->dw[v * h->k + i] += all * fabs(h->x[t * h->k + i]);
    }
}

static inline void head_bound(const head_values *h, const head_bounds *b)
{
    head_logit *l = malloc((size_t)h->vocabulary * sizeof *l);
    for (int64_t t = 0; t < h->rows; t++) {
        for (int64_t v = 0; v < h->vocabulary; v++)
            l[v] = head_logit_of(h, h->x + t * h->k, h->w + v * h->k);
        head_bound_row(h, t, l, b);
    }
    free(l);
}

#undef FLOAT
#undef EXP
#undef TILE

#endif
