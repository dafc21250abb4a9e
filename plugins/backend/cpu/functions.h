/*
 * The functions of mathematics on vectors as wide as the instruction set has (panels.h), and the activations that they make up: for
 * elementwise ops and for what a product does to its sums, which have the same bits. What is not worth two vectors' registers goes
 * through the functions of lanes.h, half a vector at a time.
 */
#ifndef APUS_CPU_FUNCTIONS_H
#define APUS_CPU_FUNCTIONS_H

#include "panels.h"

LANES_INLINE vn n_select(ni mask, vn a, vn b)
{
    return (vn)((mask & (ni)a) | (~mask & (ni)b));
}

/* a > b ? a : b, and a < b ? a : b; where either is NaN, b. */
LANES_INLINE vn n_max(vn a, vn b)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return v_larger(a, b);
#endif
}

LANES_INLINE vn n_min(vn a, vn b)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return v_smaller(a, b);
#endif
}

LANES_INLINE vn n_fma(vn a, vn b, vn c)
{
    return n_product(PLAIN, a, b, c);
}

LANES_INLINE vn n_abs(vn x)
{
    return (vn)((ni)x & 0x7fffffff);
}

#if defined(__AVX512BF16__)
#define BY_HALVES(name)                                                                                                                              \
    LANES_INLINE vn n_##name(vn x)                                                                                                                   \
    {                                                                                                                                                \
        const __m256 low = (__m256)v_##name((vf)_mm512_castps512_ps256((__m512)x));                                                                  \
        return (vn)_mm512_insertf32x8(_mm512_castps256_ps512(low), (__m256)v_##name((vf)_mm512_extractf32x8_ps((__m512)x, 1)), 1);                   \
    }
#else
#define BY_HALVES(name)                                                                                                                              \
    LANES_INLINE vn n_##name(vn x)                                                                                                                   \
    {                                                                                                                                                \
        return v_##name(x);                                                                                                                          \
    }
#endif
BY_HALVES(sqrt)
BY_HALVES(expm1)
BY_HALVES(log)
BY_HALVES(log1p)
BY_HALVES(tanh)
BY_HALVES(softplus)
BY_HALVES(normal)
#undef BY_HALVES

#if defined(__AVX512BF16__)
EXP_REDUCE(n_exp_reduce, vn, n_all, n_fma)
#endif

/* exp for x up to 89. */
LANES_INLINE vn n_exp_below(vn x)
{
#if defined(__AVX512BF16__)
    vn rounded;
    const vn y = n_exp_reduce(n_max(n_all(-104.0f), x), &rounded) + n_all(1.0f);
    return (vn)_mm512_scalef_ps((__m512)y, (__m512)(rounded - n_all(EXP_MAGIC)));
#else
    return v_exp_below(x);
#endif
}

LANES_INLINE vn n_exp(vn x)
{
    return n_exp_below(n_min(n_all(89.0f), x));
}

LANES_INLINE vn n_sigmoid(vn x)
{
    const vn e = n_exp_below(-n_abs(x));
#if defined(__AVX512BF16__)
    const vn part = (vn)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)x), _mm512_set1_ps(1.0f), (__m512)e); /* negative ones */
#else
    const vn part = v_select(x < v_all(0.0f), e, v_all(1.0f));
#endif
    return part / (n_all(1.0f) + e);
}

/* ---------------------------------------------------------------- activations */

LANES_INLINE vn n_relu(vn x)
{
    return n_select(x <= n_all(0.0f), n_all(0.0f), x);
}

LANES_INLINE vn n_silu(vn x)
{
    return x * n_sigmoid(x);
}

/* d/dx of x sigmoid(x). */
LANES_INLINE vn silu_slope(vn x, vn s)
{
    return s * n_fma(x, n_all(1.0f) - s, n_all(1.0f));
}

LANES_INLINE vn n_swiglu(vn gate, vn up)
{
    return n_silu(gate) * up;
}

/* Argument of the tanh form and its slope. Beyond 30 the gate is exactly 0 or 1. */
LANES_INLINE vn gelu_argument(vn x, vn *slope)
{
    x = n_min(n_all(30.0f), n_max(n_all(-30.0f), x));
    const vn z = x * x;
    *slope = n_all(0.79788456080286536f) * n_fma(z, n_all(0.134145f), n_all(1.0f));
    return n_all(0.79788456080286536f) * x * n_fma(z, n_all(0.044715f), n_all(1.0f));
}

/* (1 + tanh u) / 2 is sigmoid(2 u), which loses nothing where x is negative. */
LANES_INLINE vn n_gelu_tanh(vn x)
{
    vn slope;
    const vn u = gelu_argument(x, &slope);
    return x * n_sigmoid(u + u);
}

LANES_INLINE vn n_gelu_erf(vn x)
{
    return x * n_normal(x);
}

#endif
