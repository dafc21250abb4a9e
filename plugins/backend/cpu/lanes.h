/*
 * Vectors of eight floats, and the functions of mathematics on them. Compiled once per instruction set (cpu.h).
 *
 * Results never depend on an element's lane or on the length of the range it lies in: tails run through the same code.
 * Polynomials: Cephes (Moshier), single precision; errors below 3 ulp unless a function says otherwise.
 */
#ifndef APUS_CPU_LANES_H
#define APUS_CPU_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { LANES = 8 };

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef float vf_at __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t vi_at __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(16))); /* as many bfloat16 */
typedef float v4 __attribute__((vector_size(16)));
typedef float v4_at __attribute__((vector_size(16), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(32))); /* half of a vf's lanes: wider ones would live in memory */
typedef double vd_at __attribute__((vector_size(32), aligned(8), may_alias));

/* Throughout these files "halves" says that numbers in memory are bfloat16, not float. */
#define LANES_INLINE static inline __attribute__((always_inline, unused))

/* Element i of what lies at p. */
LANES_INLINE const void *element(const void *p, int halves, int64_t i)
{
    return (const char *)p + i * (int64_t)(halves ? sizeof(uint16_t) : sizeof(float));
}

LANES_INLINE void *element_to(void *p, int halves, int64_t i)
{
    return (char *)p + i * (int64_t)(halves ? sizeof(uint16_t) : sizeof(float));
}

LANES_INLINE vf v_load(const float *p)
{
    return *(const vf_at *)p;
}

LANES_INLINE void v_store(float *p, vf x)
{
    *(vf_at *)p = x;
}

LANES_INLINE vf v_join(v4 low, v4 high)
{
#if defined(__AVX2__)
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    vf x;
    memcpy(&x, &low, sizeof low);
    memcpy((float *)&x + 4, &high, sizeof high);
    return x;
#endif
}

LANES_INLINE vf v_all(float x)
{
    const v4 half = {x, x, x, x};
    return v_join(half, half);
}

LANES_INLINE vi v_alli(int32_t x)
{
    return (vi){x, x, x, x, x, x, x, x};
}

/* The first n < 8 elements, zeros after them. */
LANES_INLINE vf v_load_part(const float *p, int64_t n)
{
    float t[LANES] = {0};
    for (int64_t i = 0; i < n && i < LANES; i++) {
        t[i] = p[i];
    }
    return v_load(t);
}

LANES_INLINE void v_store_part(float *p, vf x, int64_t n)
{
    float t[LANES];
    v_store(t, x);
    for (int64_t i = 0; i < n && i < LANES; i++) {
        p[i] = t[i];
    }
}

/* a b + c; one rounding where the instruction set has it. */
LANES_INLINE vf v_fma(vf a, vf b, vf c)
{
#if defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Where mask is all ones a, where it is zero b. */
LANES_INLINE vf v_select(vi mask, vf a, vf b)
{
#if defined(__AVX2__)
    return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
#endif
}

/* Eight bfloat16. */
LANES_INLINE vf v_halves(const void *p)
{
#if defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    vh x;
    memcpy(&x, p, sizeof x);
    return (vf)(__builtin_convertvector(x, vi) << 16);
#endif
}

LANES_INLINE vf v_halves_part(const void *p, int64_t n)
{
    uint16_t t[LANES] = {0};
    for (int64_t i = 0; i < n && i < LANES; i++) {
        t[i] = ((const uint16_t *)p)[i];
    }
    return v_halves(t);
}

/* The nearest bfloat16, ties to even; NaN stays NaN. */
LANES_INLINE vf v_round(vf x)
{
    const vi bits = (vi)x, even = (bits >> 16) & v_alli(1);
    const vf y = (vf)((bits + v_alli(0x7fff) + even) & v_alli((int32_t)0xffff0000u));
    return v_select(x != x, (vf)(bits | v_alli(0x400000)), y);
}

/* x rounded, as bfloat16. */
LANES_INLINE void v_put_halves(void *p, vf x)
{
#if defined(__AVX512BF16__)
    _mm_storeu_si128((__m128i *)p, (__m128i)_mm256_cvtneps_pbh((__m256)x));
#else
    const vh y = __builtin_convertvector(((vi)v_round(x) >> 16) & v_alli(0xffff), vh);
    memcpy(p, &y, sizeof y);
#endif
}

LANES_INLINE void v_put_halves_part(void *p, vf x, int64_t n)
{
    uint16_t t[LANES];
    v_put_halves(t, x);
    for (int64_t i = 0; i < n && i < LANES; i++) {
        ((uint16_t *)p)[i] = t[i];
    }
}

/* The first n elements (all where n is LANES or more), zeros after them. */
LANES_INLINE vf v_take(int halves, const void *p, int64_t n)
{
    if (halves) {
        return n >= LANES ? v_halves(p) : v_halves_part(p, n);
    }
    return n >= LANES ? v_load((const float *)p) : v_load_part((const float *)p, n);
}

/* Writes as many. */
LANES_INLINE void v_give(int halves, void *p, vf x, int64_t n)
{
    if (halves) {
        n >= LANES ? v_put_halves(p, x) : v_put_halves_part(p, x, n);
    } else {
        n >= LANES ? v_store((float *)p, x) : v_store_part((float *)p, x, n);
    }
}

/* The same of floats. */
LANES_INLINE vf get(const float *p, int64_t left)
{
    return v_take(0, p, left);
}

LANES_INLINE void put(float *p, vf x, int64_t left)
{
    v_give(0, p, x, left);
}

/* NaN wins. */
LANES_INLINE vf v_max(vf a, vf b)
{
    return v_select((a > b) | (a != a), a, b);
}

/* a > b ? a : b: one instruction; where either is NaN, b. */
LANES_INLINE vf v_larger(vf a, vf b)
{
#if defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return v_select(a > b, a, b);
#endif
}

LANES_INLINE vf v_abs(vf x)
{
    return (vf)((vi)x & v_alli(0x7fffffff));
}

LANES_INLINE vf v_sqrt(vf x)
{
#if defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < LANES; i++) {
        x[i] = sqrtf(x[i]);
    }
    return x;
#endif
}

/* ((0+1)+(2+3)) + ((4+5)+(6+7)): the order of every sum over lanes. */
LANES_INLINE float v_sum(vf x)
{
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* The largest lane; NaN lanes may be passed over. */
LANES_INLINE float v_most(vf x)
{
    const v4 low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]};
    float m = low[0] > high[0] ? low[0] : high[0];
    for (int i = 1; i < 4; i++) {
        const float s = low[i] > high[i] ? low[i] : high[i];
        m = s > m ? s : m;
    }
    return m;
}

LANES_INLINE double v_sumd(vd low, vd high)
{
    return ((low[0] + low[1]) + (low[2] + low[3])) + ((high[0] + high[1]) + (high[2] + high[3]));
}

/* Lanes 0 to 3, and 4 to 7. */
LANES_INLINE vd v_low(vf x)
{
    return __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1, 2, 3), vd);
}

LANES_INLINE vd v_high(vf x)
{
    return __builtin_convertvector(__builtin_shufflevector(x, x, 4, 5, 6, 7), vd);
}

/* Four rows of four become columns. Of vectors that the processor has: compilers move wider ones element by element. */
LANES_INLINE void turn_quarter(v4_at *a, v4_at *b, v4_at *c, v4_at *d)
{
    const v4 low = __builtin_shufflevector(*a, *b, 0, 4, 1, 5), high = __builtin_shufflevector(*a, *b, 2, 6, 3, 7);
    const v4 low2 = __builtin_shufflevector(*c, *d, 0, 4, 1, 5), high2 = __builtin_shufflevector(*c, *d, 2, 6, 3, 7);
    *a = __builtin_shufflevector(low, low2, 0, 1, 4, 5);
    *b = __builtin_shufflevector(low, low2, 2, 3, 6, 7);
    *c = __builtin_shufflevector(high, high2, 0, 1, 4, 5);
    *d = __builtin_shufflevector(high, high2, 2, 3, 6, 7);
}

/* 2^k for k in [-126, 127]; 0 for -127. */
LANES_INLINE vf v_power(vi k)
{
    return (vf)((k + v_alli(127)) << 23);
}

/* a < b ? a : b: one instruction; where either is NaN, b. */
LANES_INLINE vf v_smaller(vf a, vf b)
{
#if defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return v_select(a < b, a, b);
#endif
}

#define EXP_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers */

/* x = k ln 2 + r, |r| <= ln 2 / 2: gives exp(r) - 1. rounded: k + EXP_MAGIC. Of vectors of any length. */
#define EXP_REDUCE(name, vector, all, fma)                                                                                                           \
    LANES_INLINE vector name(vector x, vector *rounded)                                                                                              \
    {                                                                                                                                                \
        const vector magic = all(EXP_MAGIC);                                                                                                         \
        *rounded = fma(x, all(1.44269504088896341f), magic);                                                                                         \
        const vector n = *rounded - magic;                                                                                                           \
        vector r = fma(n, all(-0.693359375f), x);                                                                                                    \
        r = fma(n, all(2.12194440e-4f), r);                                                                                                          \
        vector p = all(1.9875691500e-4f);                                                                                                            \
        p = fma(p, r, all(1.3981999507e-3f));                                                                                                        \
        p = fma(p, r, all(8.3334519073e-3f));                                                                                                        \
        p = fma(p, r, all(4.1665795894e-2f));                                                                                                        \
        p = fma(p, r, all(1.6666665459e-1f));                                                                                                        \
        p = fma(p, r, all(5.0000001201e-1f));                                                                                                        \
        return fma(p, r * r, r);                                                                                                                     \
    }
EXP_REDUCE(v_exp_reduce, vf, v_all, v_fma)

LANES_INLINE vi v_exp_power(vf rounded)
{
    return (vi)rounded - (vi)v_all(EXP_MAGIC);
}

/* exp for x up to 89. */
LANES_INLINE vf v_exp_below(vf x)
{
    vf rounded;
    const vf y = v_exp_reduce(v_larger(v_all(-104.0f), x), &rounded) + v_all(1.0f);
#if defined(__AVX512BF16__)
    return (vf)_mm256_scalef_ps((__m256)y, (__m256)(rounded - v_all(EXP_MAGIC)));
#else
    const vi k = v_exp_power(rounded), half = k >> 1;
    return y * v_power(half) * v_power(k - half); /* two steps: 2^k alone may not be a float */
#endif
}

LANES_INLINE vf v_exp(vf x)
{
    return v_exp_below(v_smaller(v_all(89.0f), x));
}

/* exp for x up to 88, and 0 below -87.7: the softmax's. */
LANES_INLINE vf v_exp_fast(vf x)
{
    vf rounded; /* a power of -127 at least: there v_power gives 0 */
    const vf y = v_exp_reduce(v_larger(v_all(-88.0f), x), &rounded) + v_all(1.0f);
    return y * v_power(v_exp_power(rounded));
}

LANES_INLINE vf v_expm1(vf x)
{
    x = v_larger(v_all(-30.0f), v_smaller(v_all(89.0f), x));
    vf rounded;
    const vf e = v_exp_reduce(x, &rounded), half = v_power(v_exp_power(rounded) - v_alli(1));
    return v_all(2.0f) * v_fma(e, half, half - v_all(0.5f));
}

LANES_INLINE vf v_log(vf x)
{
    const vi tiny = x < v_all(1.17549435e-38f);
    const vi bits = (vi)v_select(tiny, x * v_all(8388608.0f), x);
    vi k = (bits >> 23) - v_alli(126) - (tiny & v_alli(23));
    vf m = (vf)((bits & v_alli(0x007fffff)) | v_alli(0x3f000000)); /* [0.5, 1) */
    const vi low = m < v_all(0.707106781186547524f);
    k += low;
    m = m - v_all(1.0f) + (vf)(low & (vi)m);
    const vf n = __builtin_convertvector(k, vf), z = m * m;
    vf p = v_all(7.0376836292e-2f);
    p = v_fma(p, m, v_all(-1.1514610310e-1f));
    p = v_fma(p, m, v_all(1.1676998740e-1f));
    p = v_fma(p, m, v_all(-1.2420140846e-1f));
    p = v_fma(p, m, v_all(1.4249322787e-1f));
    p = v_fma(p, m, v_all(-1.6668057665e-1f));
    p = v_fma(p, m, v_all(2.0000714765e-1f));
    p = v_fma(p, m, v_all(-2.4999993993e-1f));
    p = v_fma(p, m, v_all(3.3333331174e-1f));
    vf y = v_fma(n, v_all(-2.12194440e-4f), p * m * z);
    y = v_fma(z, v_all(-0.5f), y);
    y = v_fma(n, v_all(0.693359375f), m + y);
    y = v_select(x == v_all(0.0f), v_all(-INFINITY), y);
    y = v_select(x == v_all(INFINITY), x, y);
    return v_select((x < v_all(0.0f)) | (x != x), v_all(NAN), y);
}

/* log(u) for u = 1 + x as rounded, plus what the rounding lost. */
LANES_INLINE vf v_log1p(vf x)
{
    const vf u = v_all(1.0f) + x, lost = x - (u - v_all(1.0f));
    const vi plain = (u == v_all(INFINITY)) | (u == v_all(0.0f));
    return v_log(u) + v_select(plain, v_all(0.0f), lost / u);
}

LANES_INLINE vf v_tanh(vf x)
{
    vf a = v_abs(x);
    a = v_select(a > v_all(10.0f), v_all(10.0f), a);
    const vf t = v_expm1(a + a);
    return (vf)((vi)(t / (t + v_all(2.0f))) | ((vi)x & v_alli(INT32_MIN)));
}

LANES_INLINE vf v_softplus(vf x)
{
    return v_max(x, v_all(0.0f)) + v_log1p(v_exp_below(-v_abs(x)));
}

/* Distribution function of the standard normal: half of erfc(-x / sqrt 2), by the Chebyshev fit of Numerical Recipes
 * (relative error 1.2e-7 before the rounding of x²/2). */
LANES_INLINE vf v_normal(vf x)
{
    const vf z = v_abs(x) * v_all(0.70710678118654752f);
    const vf t = v_all(1.0f) / v_fma(z, v_all(0.5f), v_all(1.0f));
    vf p = v_all(0.17087277f);
    p = v_fma(p, t, v_all(-0.82215223f));
    p = v_fma(p, t, v_all(1.48851587f));
    p = v_fma(p, t, v_all(-1.13520398f));
    p = v_fma(p, t, v_all(0.27886807f));
    p = v_fma(p, t, v_all(-0.18628806f));
    p = v_fma(p, t, v_all(0.09678418f));
    p = v_fma(p, t, v_all(0.37409196f));
    p = v_fma(p, t, v_all(1.00002368f));
    p = v_fma(p, t, v_all(-1.26551223f));
    const vf h = v_all(0.5f) * t * v_exp(p - z * z);
    return v_select(x < v_all(0.0f), h, v_all(1.0f) - h);
}

/* angle less its nearest multiple of a quarter turn; turn: how many quarters, only its value mod 4 counts. */
LANES_INLINE v4 v_quarter(vd angle, v4 *turn)
{
    const vd magic = (vd){0} + 6755399441055744.0; /* 1.5 * 2^52 */
    const vd n = (angle * 0.63661977236758134308 + magic) - magic;
    *turn = __builtin_convertvector(n - ((n * 0.25 - 0.5 + magic) - magic) * 4.0, v4); /* -1 … 6 */
    return __builtin_convertvector(angle - n * 1.57079632679489661923, v4);
}

/* sin and cos of p * f, the product and its reduction in double: positions are large. low, high: f's lanes. */
LANES_INLINE void v_sincos(double p, vd low, vd high, vf *sine, vf *cosine)
{
    v4 turn_low, turn_high;
    const v4 r_low = v_quarter(low * p, &turn_low), r_high = v_quarter(high * p, &turn_high);
    const vf r = v_join(r_low, r_high);
    const vi q = __builtin_convertvector(v_join(turn_low, turn_high), vi);
    const vf z = r * r;
    vf s = v_fma(v_all(-1.9515295891e-4f), z, v_all(8.3321608736e-3f));
    s = v_fma(s, z, v_all(-1.6666654611e-1f));
    s = v_fma(s * z, r, r);
    vf c = v_fma(v_all(2.443315711809948e-5f), z, v_all(-1.388731625493765e-3f));
    c = v_fma(c, z, v_all(4.166664568298827e-2f));
    c = v_fma(c * z, z, v_fma(z, v_all(-0.5f), v_all(1.0f)));
    const vi odd = -(q & v_alli(1));
    *sine = (vf)((vi)v_select(odd, c, s) ^ ((q & v_alli(2)) << 30));
    *cosine = (vf)((vi)v_select(odd, s, c) ^ (((q + v_alli(1)) & v_alli(2)) << 30));
}

#endif
