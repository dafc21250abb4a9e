/*
 * Products of quantised weights (Q8_0, Q4_0) with activations rounded to 8 bits: in integers.
 *
 * A row of x is cut into blocks of 32, as the weights are, and each becomes d q: d = the largest magnitude / 127 in float32,
 * q = x / d rounded to the nearest, ties to even. (llama.cpp's quantize_row_q8_0 does the same, and keeps d in half precision.)
 * The products of a block are summed in 32 bits, exactly; its sum is added as y = fma(sum, dx dw, y), the blocks in their
 * order: whichever tile or strip an element of y falls into, it has the same bits.
 *
 * Panels of these kinds (panels.h) have for each block of the left factor LEFT_QUADS rows of units: eight that hold its elements, d,
 * and -128 times the sum of q; of the right factor those that hold its elements, eight of QUADS and four of NIBBLES (the high ones are
 * the block's second half), then the scales in half precision: as many bytes as W has in a file.
 */
#ifndef APUS_CPU_INTEGERS_H
#define APUS_CPU_INTEGERS_H

#include "panels.h"

#include <float.h>

enum {
    QUADS_HIGH = WIDE == 16 ? 4 : 2 /* rows of a tile: each vector of it is two sums, of a block and of all */
};

LANES_INLINE ni n_alli(int32_t x)
{
    return (ni){0} + x;
}

LANES_INLINE vn n_whole(ni q)
{
    return __builtin_convertvector(q, vn);
}

/* ---------------------------------------------------------------- bytes across a strip */

/* p, computed where it is needed: compilers would rather keep the addresses of all rows, and have not the registers. */
LANES_INLINE const uint8_t *here(const uint8_t *p)
{
    __asm__("" : "+r"(p));
    return p;
}

/* 16 bytes of each of WIDE rows, `bytes` apart, as four vectors of four bytes. */
LANES_INLINE void n_bytes16(const uint8_t *p, size_t bytes, ni r[4])
{
#if defined(__AVX512BF16__)
    __m512i z[4];
    const uint8_t *p4 = here(p + 4 * bytes), *p8 = here(p4 + 4 * bytes), *p12 = here(p8 + 4 * bytes);
    for (size_t i = 0; i < 4; i++) {
        z[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(p + i * bytes)));
        z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(const void *)(p4 + i * bytes)), 1);
        z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(const void *)(p8 + i * bytes)), 2);
        z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(const void *)(p12 + i * bytes)), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    r[0] = (ni)_mm512_unpacklo_epi64(a, c);
    r[1] = (ni)_mm512_unpackhi_epi64(a, c);
    r[2] = (ni)_mm512_unpacklo_epi64(b, d);
    r[3] = (ni)_mm512_unpackhi_epi64(b, d);
#elif defined(__AVX2__)
    vi z[4];
    for (size_t i = 0; i < 4; i++) {
        int32_t low __attribute__((vector_size(16))), high __attribute__((vector_size(16)));
        memcpy(&low, p + i * bytes, sizeof low);
        memcpy(&high, p + (i + 4) * bytes, sizeof high);
        z[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
    const vi a = __builtin_shufflevector(z[0], z[1], 0, 8, 1, 9, 4, 12, 5, 13), b = __builtin_shufflevector(z[0], z[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const vi c = __builtin_shufflevector(z[2], z[3], 0, 8, 1, 9, 4, 12, 5, 13), d = __builtin_shufflevector(z[2], z[3], 2, 10, 3, 11, 6, 14, 7, 15);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    r[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    r[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    r[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
#else
    v4_at *x = (v4_at *)(void *)r; /* the halves of the vectors */
    for (size_t i = 0; i < 4; i++) {
        memcpy(&x[2 * i], p + i * bytes, sizeof x[i]);
        memcpy(&x[2 * i + 1], p + (i + 4) * bytes, sizeof x[i]);
    }
    turn_quarter(&x[0], &x[2], &x[4], &x[6]);
    turn_quarter(&x[1], &x[3], &x[5], &x[7]);
#endif
}

/* Half-precision scales that begin the blocks of n rows (divisible by 4): [block][n]. Apart from the sums: the vector units have no
 * part in it. */
LANES_INLINE void half_scales(const uint8_t *w, size_t bytes, int64_t n, size_t block, int64_t blocks, uint16_t *scales)
{
    for (int64_t b = 0; b < blocks; b++, w += block) {
        const uint8_t *p = w;
        for (int64_t i = 0; i < n; i += 4, p = here(p + 4 * bytes), scales += 4) {
            for (size_t x = 0; x < 4; x++) {
                memcpy(scales + x, p + x * bytes, sizeof *scales);
            }
        }
    }
}

LANES_INLINE vn n_halves(const uint16_t *scales)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)scales));
#else
    return halves((const uint8_t *)scales);
#endif
}

/* ---------------------------------------------------------------- products */

/* Bytes of a block of one column. */
LANES_INLINE size_t quads_block(kind t)
{
    return t == NIBBLES ? 18 : 34;
}

/* Bytes as n_quads takes them: vpdpbusd wants those of W without a sign, hence with 128 added. */
LANES_INLINE ni quads_of(ni w)
{
    return WIDE == 16 ? w ^ n_alli((int32_t)0x80808080u) : w;
}

/* The same of half h of a block: 8 more than they stand for. */
LANES_INLINE ni nibbles_of(ni w, int h)
{
    return (w >> (4 * h)) & n_alli(0x0f0f0f0f);
}

/* What makes up for what is added. sum: -128 times the block's of the left factor. */
LANES_INLINE ni quads_begin(kind t, float sum)
{
    return t == NIBBLES ? (ni)n_all(sum) >> 4 : WIDE == 16 ? (ni)n_all(sum) : n_alli(0);
}

/* acc + the products of four bytes each, w as quads_of or nibbles_of gives it; x lies in -127 … 127. */
LANES_INLINE ni n_quads(kind t, ni w, ni x, ni acc)
{
    (void)t;
#if defined(__AVX512BF16__)
    return (ni)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    const __m256i pairs = t == NIBBLES
                              ? _mm256_maddubs_epi16((__m256i)w, (__m256i)x)
                              : _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w)); /* 2 * 128 * 127 fits */
    return acc + (ni)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    typedef int16_t pairs __attribute__((vector_size(sizeof(ni))));
    const ni sum = (ni)((((pairs)w << 8) >> 8) * (((pairs)x << 8) >> 8) + ((pairs)w >> 8) * ((pairs)x >> 8));
    return acc + ((sum << 16) >> 16) + (sum >> 16);
#endif
}

/* Sums of mr rows of a, `row` and `unit` apart, by nr vectors of a panel of b, from column c on. next: what lies so many bytes behind is
 * fetched; 0: nothing is. */
LANES_INLINE void quads_sums(kind t, int mr, int nr, const float *a, int64_t row, int64_t unit, const float *b, int64_t c, int64_t width,
                             int64_t blocks, size_t next, vn *acc)
{
    const int64_t stored = t == NIBBLES ? 4 : 8;
    for (int i = 0; i < mr * nr; i++) {
        acc[i] = n_all(0.0f);
    }
    for (; blocks > 0; blocks--, a += LEFT_QUADS * unit, b += stored * width + width / 2) {
        ni sums[24];
        for (int i = 0; i < mr * nr; i++) {
            sums[i] = quads_begin(t, a[9 * unit + i / nr * row]);
        }
        for (int64_t u = 0; u < stored; u++) {
            vn hold[6];
            for (int j = 0; j < nr; j++) {
                if (next > 0) {
                    __builtin_prefetch((const char *)(b + u * width + c + j * WIDE) + next, 0, 2);
                }
                hold[j] = n_hold(n_load(b + u * width + c + j * WIDE));
            }
            for (int h = 0; h < 8 / stored; h++) {
                ni w[6];
                for (int j = 0; j < nr; j++) {
                    w[j] = t == NIBBLES ? nibbles_of((ni)hold[j], h) : (ni)hold[j];
                }
                for (int i = 0; i < mr; i++) {
                    const vn x = n_all(a[(u + 4 * h) * unit + i * row]);
                    for (int j = 0; j < nr; j++) {
                        sums[i * nr + j] = n_quads(t, w[j], (ni)x, sums[i * nr + j]);
                    }
                }
            }
        }
        for (int j = 0; j < nr; j++) {
            const uint16_t *scales = (const uint16_t *)(const void *)(b + stored * width) + c + j * WIDE;
            const vn scale = n_halves(scales);
            if (next > 0) {
                __builtin_prefetch((const char *)scales + next, 0, 2);
            }
            for (int i = 0; i < mr; i++) {
                acc[i * nr + j] = n_product(PLAIN, n_whole(sums[i * nr + j]), n_all(a[8 * unit + i * row]) * scale, acc[i * nr + j]);
            }
        }
    }
}

/* ---------------------------------------------------------------- the left factor */

LANES_INLINE vi v_maxi(vi a, vi b)
{
#if defined(__AVX2__)
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    const vi more = a > b;
    return (a & more) | (b & ~more);
#endif
}

/* One block of 32: units, d, -128 times their sum; ld apart. Where x is not finite, d is NaN, and so is every y; where d would be
 * no normal number (x below 1.5e-36), the block is zeros. */
LANES_INLINE void pack_quads(const float *x, float *units, int64_t ld)
{
    const vf shift = v_all(0x1.8p23f); /* adding it rounds to a whole number, which its lowest bits then hold */
    vi most = v_alli(0), q[4];
    int32_t largest = 0, sum = 0, quads[8] = {0};
    for (int j = 0; j < 4; j++) {
        most = v_maxi(most, (vi)v_load(x + LANES * j) & v_alli(0x7fffffff)); /* magnitudes are ordered as their bits are, NaN last */
    }
    most = v_maxi(most, __builtin_shufflevector(most, most, 4, 5, 6, 7, 0, 1, 2, 3));
    most = v_maxi(most, __builtin_shufflevector(most, most, 2, 3, 0, 1, 6, 7, 4, 5));
    largest = most[0] > most[1] ? most[0] : most[1];
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    float d = magnitude / 127.0f;
    if (d >= FLT_MIN && d <= FLT_MAX) {
        const vf inverse = v_all(1.0f / d);
        for (int j = 0; j < 4; j++) {
            q[j] = (vi)(v_load(x + LANES * j) * inverse + shift) - (vi)shift;
        }
        vi all = q[0] + q[1] + q[2] + q[3];
        all += __builtin_shufflevector(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
        all += __builtin_shufflevector(all, all, 2, 3, 0, 1, 6, 7, 4, 5);
        sum = all[0] + all[1];
#if defined(__AVX2__)
        const __m256i low = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]), high = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)(void *)quads, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
#else
        for (int j = 0; j < 4; j++) {
            const v8s bytes = __builtin_convertvector(q[j], v8s);
            memcpy(quads + 2 * j, &bytes, sizeof bytes);
        }
#endif
    } else {
        d = magnitude <= FLT_MAX ? 0.0f : NAN;
    }
    sum *= -128;
    for (int64_t u = 0; u < 8; u++) {
        memcpy(units + u * ld, quads + u, sizeof *units);
    }
    units[8 * ld] = d;
    memcpy(units + 9 * ld, &sum, sizeof sum);
}

/* `count` rows of k elements, ld apart, into panels of this height. */
LANES_INLINE void pack_quads_left(const float *p, int64_t ld, int64_t count, int64_t height, int64_t k, float *panels)
{
    const int64_t n = units(QUADS, k);
    if (count % height != 0) {
        memset(panels + count / height * height * n, 0, (size_t)(height * n) * sizeof *panels);
    }
    for (int64_t i = 0; i < count; i++) {
        float *to = panels + i / height * height * n + i % height;
        for (int64_t b = 0; b < k / 32; b++, to += LEFT_QUADS * height) {
            pack_quads(p + i * ld + 32 * b, to, height);
        }
    }
}

/* ---------------------------------------------------------------- the right factor */

/* `count` rows of W, `bytes` apart, into one panel; columns that do not exist are zeros. */
LANES_INLINE void pack_quads_right(kind t, int64_t width, const uint8_t *w, size_t bytes, int64_t count, int64_t k, float *panel)
{
    const size_t block = quads_block(t);
    const int64_t stored = t == NIBBLES ? 4 : 8;
    for (int64_t b = 0; b < k / 32; b++, w += block, panel += stored * width + width / 2) {
        for (int64_t c = 0; c < width; c += WIDE) {
            const uint8_t *p = w + (size_t)(c < count ? c : 0) * bytes;
            uint8_t part[WIDE * 34];
            size_t apart = bytes;
            ni r[8];
            if (count - c < WIDE) {
                memset(part, 0, sizeof part);
                for (int64_t i = 0; i < count - c; i++) {
                    memcpy(part + (size_t)i * block, p + (size_t)i * bytes, block);
                }
                p = part;
                apart = block;
            }
            half_scales(p, apart, WIDE, block, 1, (uint16_t *)(void *)(panel + stored * width) + c);
            n_bytes16(p + 2, apart, r);
            if (t == QUADS) {
                n_bytes16(p + 18, apart, r + 4);
            }
            for (int64_t u = 0; u < stored; u++) {
                n_store(panel + u * width + c, (vn)(t == QUADS ? quads_of(r[u]) : r[u]));
            }
        }
    }
}

#endif
