/*
 * Weights as they are stored, read 32 at a time: the values, bit for bit, that apus/blocks.h gives.
 */
#ifndef APUS_CPU_ENCODINGS_H
#define APUS_CPU_ENCODINGS_H

#include "tiles.h"

#include <apus/blocks.h>

typedef uint8_t v8u __attribute__((vector_size(8)));
typedef int8_t v8s __attribute__((vector_size(8)));

/* GCC takes convertvector of narrow integers apart lane by lane: hence the intrinsics. */
LANES_INLINE vi bytes8(const uint8_t *p)
{
#if defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
#else
    v8u b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vi);
#endif
}

LANES_INLINE vi signed8(const uint8_t *p)
{
#if defined(__AVX2__)
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
#else
    v8s b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vi);
#endif
}

LANES_INLINE float half(const uint8_t *p)
{
#if defined(__F16C__)
    return _cvtsh_ss(apus_load_u16_(p));
#else
    return apus_f16_to_f32(apus_load_u16_(p));
#endif
}

/* Eight of them. */
LANES_INLINE vf halves(const uint8_t *p)
{
#if defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
    vh x;
    memcpy(&x, p, sizeof x);
    const vi h = __builtin_convertvector(x, vi), magnitude = h & v_alli(0x7fff), special = (magnitude > v_alli(0x7bff)) & v_alli(0x7f800000);
    const vf v = (vf)(magnitude << 13) * v_all(0x1p112f); /* exact, of subnormals too */
    return (vf)((vi)v | special | ((h & v_alli(0x8000)) << 16));
#endif
}

LANES_INLINE vf whole(vi q)
{
    return __builtin_convertvector(q, vf);
}

/* 16 bytes of nibbles: the low ones first. */
LANES_INLINE void nibbles(const uint8_t *p, vi q[4])
{
    for (int j = 0; j < 2; j++) {
        const vi b = bytes8(p + 8 * j);
        q[j] = b & v_alli(15);
        q[j + 2] = b >> 4;
    }
}

LANES_INLINE vf table_iq4_nl(vi q)
{
    static const float table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#if defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)q);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)q);
    return (vf)_mm256_blendv_ps(low, high, (__m256)(q << 28));
#else
    vf v;
    for (int l = 0; l < LANES; l++) {
        v[l] = table[q[l]];
    }
    return v;
#endif
}

/* The fifth bits: bit i belongs to element i. */
LANES_INLINE void fifth_bits(const uint8_t *p, vi q[4])
{
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int j = 0; j < 4; j++) {
        q[j] |= ((v_alli(p[j]) >> lane) & v_alli(1)) << 4;
    }
}

/* Bytes of `elements` elements of a row, for the arithmetic below. */
LANES_INLINE size_t span(apus_dtype t, int64_t elements)
{
    const size_t n = (size_t)elements;
    switch (t) {
    case APUS_F16:
    case APUS_BF16:
        return n * 2;
    case APUS_Q4_0:
    case APUS_IQ4_NL:
        return n / 32 * 18;
    case APUS_Q4_1:
        return n / 32 * 20;
    case APUS_Q5_0:
        return n / 32 * 22;
    case APUS_Q5_1:
        return n / 32 * 24;
    case APUS_Q8_0:
        return n / 32 * 34;
    case APUS_Q2_K:
        return n / 256 * 84;
    case APUS_Q3_K:
        return n / 256 * 110;
    case APUS_Q4_K:
        return n / 256 * 144;
    case APUS_Q5_K:
        return n / 256 * 176;
    default:
        return n / 256 * 210; /* Q6_K */
    }
}

/* Elements i … i+31 of a row, i divisible by 32. t is known when compiled. */
LANES_INLINE void piece(apus_dtype t, const uint8_t *row, int64_t i, vf v[4])
{
    const uint8_t *p = row + span(t, i);
    const int g = (int)(i / 32 % 8); /* which 32 of a super-block */
    vi q[4];
    switch (t) {
    case APUS_F16:
        for (int j = 0; j < 4; j++) {
            v[j] = halves(p + 16 * j);
        }
        return;
    case APUS_BF16:
        for (int j = 0; j < 4; j++) {
            uint16_t h __attribute__((vector_size(16)));
            memcpy(&h, p + 16 * j, sizeof h);
            v[j] = (vf)(__builtin_convertvector(h, vi) << 16);
        }
        return;
    case APUS_Q8_0:
        for (int j = 0; j < 4; j++) {
            v[j] = whole(signed8(p + 2 + 8 * j)) * v_all(half(p));
        }
        return;
    case APUS_Q4_0:
        nibbles(p + 2, q);
        for (int j = 0; j < 4; j++) {
            v[j] = whole(q[j] - v_alli(8)) * v_all(half(p));
        }
        return;
    case APUS_Q4_1:
        nibbles(p + 4, q);
        for (int j = 0; j < 4; j++) {
            v[j] = whole(q[j]) * v_all(half(p)) + v_all(half(p + 2));
        }
        return;
    case APUS_Q5_0:
        nibbles(p + 6, q);
        fifth_bits(p + 2, q);
        for (int j = 0; j < 4; j++) {
            v[j] = whole(q[j] - v_alli(16)) * v_all(half(p));
        }
        return;
    case APUS_Q5_1:
        nibbles(p + 8, q);
        fifth_bits(p + 4, q);
        for (int j = 0; j < 4; j++) {
            v[j] = whole(q[j]) * v_all(half(p)) + v_all(half(p + 2));
        }
        return;
    case APUS_IQ4_NL:
        nibbles(p + 2, q);
        for (int j = 0; j < 4; j++) {
            v[j] = v_all(half(p)) * table_iq4_nl(q[j]);
        }
        return;
    case APUS_Q2_K:
        for (int j = 0; j < 4; j++) {
            const uint8_t scale = p[2 * g + j / 2];
            const vi b = (bytes8(p + 16 + 32 * (g / 4) + 8 * j) >> (2 * (g % 4))) & v_alli(3);
            v[j] = v_all(half(p + 80) * (float)(scale & 15)) * whole(b) - v_all(half(p + 82) * (float)(scale >> 4));
        }
        return;
    case APUS_Q3_K:
        for (int j = 0; j < 4; j++) {
            const int k = 2 * g + j / 2, low = k < 8 ? p[96 + k] & 15 : p[88 + k] >> 4;
            const int scale = (low | ((p[104 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
            const vi b = (bytes8(p + 32 + 32 * (g / 4) + 8 * j) >> (2 * (g % 4))) & v_alli(3);
            const vi high = (bytes8(p + 8 * j) >> g) & v_alli(1);
            v[j] = v_all(half(p + 108) * (float)scale) * whole(b - v_alli(4) + (high << 2));
        }
        return;
    case APUS_Q4_K:
    case APUS_Q5_K: {
        int scale, minimum;
        apus_scale_min_(p + 4, g, &scale, &minimum);
        const vf dl = v_all(half(p) * (float)scale), ml = v_all(half(p + 2) * (float)minimum);
        for (int j = 0; j < 4; j++) {
            vi b = (bytes8(p + (t == APUS_Q4_K ? 16 : 48) + 32 * (g / 2) + 8 * j) >> (4 * (g % 2))) & v_alli(15);
            if (t == APUS_Q5_K) {
                b += ((bytes8(p + 16 + 8 * j) >> g) & v_alli(1)) << 4;
            }
            v[j] = dl * whole(b) - ml;
        }
        return;
    }
    default: /* Q6_K */
        for (int j = 0; j < 4; j++) {
            const vi low = (bytes8(p + 64 * (g / 4) + 32 * (g % 2) + 8 * j) >> (4 * (g % 4 / 2))) & v_alli(15);
            const vi high = (bytes8(p + 128 + 32 * (g / 4) + 8 * j) >> (2 * (g % 4))) & v_alli(3);
            v[j] = v_all(half(p + 208) * (float)(int8_t)p[192 + 2 * g + j / 2]) * whole((low | high << 4) - v_alli(32));
        }
        return;
    }
}

LANES_INLINE void decode_by(apus_dtype t, const uint8_t *row, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i += 32) {
        vf v[4];
        piece(t, row, i, v);
        for (int j = 0; j < 4; j++) {
            v_store(y + i + LANES * j, v[j]);
        }
    }
}

/* One case per encoding, so that each gets code of its own. */
#define EACH_ENCODING(X)                                                                                                                             \
    X(APUS_F16)                                                                                                                                      \
    X(APUS_BF16)                                                                                                                                     \
    X(APUS_Q4_0)                                                                                                                                     \
    X(APUS_Q4_1)                                                                                                                                     \
    X(APUS_Q5_0)                                                                                                                                     \
    X(APUS_Q5_1)                                                                                                                                     \
    X(APUS_Q8_0)                                                                                                                                     \
    X(APUS_IQ4_NL)                                                                                                                                   \
    X(APUS_Q2_K)                                                                                                                                     \
    X(APUS_Q3_K)                                                                                                                                     \
    X(APUS_Q4_K)                                                                                                                                     \
    X(APUS_Q5_K)                                                                                                                                     \
    X(APUS_Q6_K)

/* n elements of a row to float32. */
static void decode(apus_dtype t, const uint8_t *row, float *y, int64_t n)
{
    if (n % 32 == 0) {
        switch (t) {
#define X(type)                                                                                                                                      \
    case type:                                                                                                                                       \
        decode_by(type, row, y, n);                                                                                                                  \
        return;
            EACH_ENCODING(X)
#undef X
        default:
            break;
        }
    }
    (void)apus_row_to_f32(t, row, y, n);
}

#endif
