/*
 * apus/logits.h: what is read off a row of float32 logits: the largest, and the sum of exponentials. Loops that compilers make lanes
 * of; every sum in double, in an order that the row's length alone decides.
 */
#ifndef APUS_LOGITS_H
#define APUS_LOGITS_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { APUS_LOGITS_LANES = 16 };

/* exp(x) for x <= 0, within 2e-7 of it; 0 from -87 on down. Cephes' expf: x = n ln 2 + r, a polynomial in r, n into the exponent.
 * Magnitudes are compared by their bits: of a choice between floats compilers make no lanes. */
static inline float apus_logits_exp(float x)
{
    const int32_t most = 0x42ae0000; /* 87 */
    int32_t bits, there;
    float c, shifted, n, r, p = 1.98756915e-4f;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffff;
    there = bits < most ? -1 : 0;
    bits = bits < most ? bits : most;
    memcpy(&c, &bits, sizeof c);
    shifted = c * -1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to whole numbers */
    n = shifted - 12582912.0f;
    r = (-c - n * 0.693359375f) + n * 2.12194440e-4f;
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666665e-1f;
    p = p * r + 5.00000012e-1f;
    p = p * (r * r) + r + 1.0f;
    memcpy(&bits, &p, sizeof bits);
    bits = (bits + (int32_t)n * (1 << 23)) & there;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* The largest of x[n], n > 0. None of them is NaN. */
static inline float apus_logits_largest(const float *x, int64_t n)
{
    const int64_t whole = n - n % APUS_LOGITS_LANES;
    float most[APUS_LOGITS_LANES], top = x[0];
    int64_t i;
    int k;
    for (k = 0; k < APUS_LOGITS_LANES; k++)
        most[k] = x[0];
    for (i = 0; i < whole; i += APUS_LOGITS_LANES)
        for (k = 0; k < APUS_LOGITS_LANES; k++)
            most[k] = x[i + k] > most[k] ? x[i + k] : most[k];
    for (k = 0; k < APUS_LOGITS_LANES; k++)
        top = most[k] > top ? most[k] : top;
    for (i = whole; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

/* The sum of exp(x[i] - top) over x[n]; top: the largest. log of it, plus top, is the row's log-sum-exp. */
static inline double apus_logits_sum(const float *x, int64_t n, float top)
{
    const int64_t whole = n - n % APUS_LOGITS_LANES;
    double sums[APUS_LOGITS_LANES], sum = 0.0;
    int64_t i;
    int k;
    for (k = 0; k < APUS_LOGITS_LANES; k++)
        sums[k] = 0.0;
    for (i = 0; i < whole; i += APUS_LOGITS_LANES)
        for (k = 0; k < APUS_LOGITS_LANES; k++)
            sums[k] += (double)apus_logits_exp(x[i + k] - top);
    for (k = 0; k < APUS_LOGITS_LANES; k++)
        sum += sums[k];
    for (i = whole; i < n; i++)
        sum += (double)apus_logits_exp(x[i] - top);
    return sum;
}

#ifdef __cplusplus
}
#endif
#endif
