/*
 * Panels: both factors of a product, laid out as the tiles of gemm.h read them; vectors as wide as the instruction set has.
 *
 * A panel holds `width` rows (of the left factor) or columns (of the right one), one unit after the other along the sum:
 * unit u of column c lies at [u * width + c]. A unit is four bytes, by kind:
 *
 *   PLAIN    one float
 *   ROUNDED  one float, rounded to bfloat16: products in bfloat16 where the instruction set has none
 *   PAIRS    elements 2u and 2u+1 of the sum as bfloat16, for vdpbf16ps
 *   QUADS    four elements as bytes, and what belongs to each block of 32 (integers.h)
 *   NIBBLES  the same; of the right factor eight elements
 */
#ifndef APUS_CPU_PANELS_H
#define APUS_CPU_PANELS_H

#include "encodings.h"

typedef int kind;

#if defined(__AVX512BF16__)
enum { WIDE = 16, HIGH = 8 };
typedef float vn __attribute__((vector_size(64)));
typedef float vn_at __attribute__((vector_size(64), aligned(2), may_alias)); /* pairs of bfloat16 lie at two bytes */
#else
typedef vf vn;
typedef vf_at vn_at;
#if defined(__AVX2__) || defined(__aarch64__)
enum { WIDE = LANES, HIGH = 6 };
#else
enum { WIDE = LANES, HIGH = 2 };
#endif
#endif

typedef int32_t ni __attribute__((vector_size(sizeof(vn))));

/* BFLOAT16: the kind that stands for it here; SUMMED: how its units are multiplied. */
enum { PLAIN, ROUNDED, PAIRS, QUADS, NIBBLES, BFLOAT16 = WIDE == 16 ? PAIRS : ROUNDED, SUMMED = WIDE == 16 ? PAIRS : PLAIN };

/* Columns of a group: what a tile of 512-bit registers spans, and a whole number of 256-bit ones. */
enum { GROUP = 48, STRIP = 16 };

/* Units that a row of the left factor has in each block of QUADS or NIBBLES. */
enum { LEFT_QUADS = 10 };

LANES_INLINE int in_integers(kind t)
{
    return t >= QUADS;
}

LANES_INLINE vn n_load(const float *p)
{
    return *(const vn_at *)p;
}

LANES_INLINE void n_store(float *p, vn x)
{
    *(vn_at *)p = x;
}

LANES_INLINE vn n_all(float x)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_set1_ps(x);
#else
    return v_all(x);
#endif
}

/* Keep x in a register: the compiler would read it from memory again for each use, and loads are what limits. */
LANES_INLINE vn n_hold(vn x)
{
#if defined(__AVX512BF16__)
    __asm__("" : "+v"(x));
#elif defined(__AVX2__)
    __asm__("" : "+x"(x));
#endif
    return x;
}

/* The first n elements (all where n is WIDE or more), zeros after them. */
LANES_INLINE vn n_load_part(const float *p, int64_t n)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_maskz_loadu_ps(n >= WIDE ? 0xffff : (__mmask16)((1u << (n > 0 ? n : 0)) - 1), p);
#else
    return n >= WIDE ? v_load(p) : v_load_part(p, n);
#endif
}

LANES_INLINE void n_store_part(float *p, vn x, int64_t n)
{
#if defined(__AVX512BF16__)
    _mm512_mask_storeu_ps(p, n >= WIDE ? 0xffff : (__mmask16)((1u << (n > 0 ? n : 0)) - 1), (__m512)x);
#else
    if (n >= WIDE) {
        v_store(p, x);
    } else {
        v_store_part(p, x, n);
    }
#endif
}

/* The first n elements (all where n is WIDE or more), zeros after them, of floats or of bfloat16. */
LANES_INLINE vn n_take(int halves, const void *p, int64_t n)
{
#if defined(__AVX512BF16__)
    if (!halves) {
        return n_load_part((const float *)p, n);
    }
    const __mmask16 some = n >= WIDE ? 0xffff : (__mmask16)((1u << (n > 0 ? n : 0)) - 1);
    return (vn)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)), 16);
#else
    return v_take(halves, p, n);
#endif
}

/* Writes as many, rounding where they are bfloat16. */
LANES_INLINE void n_give(int halves, void *p, vn x, int64_t n)
{
#if defined(__AVX512BF16__)
    if (!halves) {
        n_store_part((float *)p, x, n);
        return;
    }
    const __mmask16 some = n >= WIDE ? 0xffff : (__mmask16)((1u << (n > 0 ? n : 0)) - 1);
    _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    v_give(halves, p, x, n);
#endif
}

/* c + a b, or over pairs c + a0 b0 + a1 b1. */
LANES_INLINE vn n_product(kind t, vn a, vn b, vn c)
{
#if defined(__AVX512BF16__)
    if (t == PAIRS) {
        return (vn)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
    }
    return (vn)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    (void)t;
    return v_fma(a, b, c);
#endif
}

/* The elements of pairs, as floats. */
LANES_INLINE vn n_even(vn pairs)
{
    return (vn)((ni)pairs << 16);
}

LANES_INLINE vn n_odd(vn pairs)
{
    return (vn)(((ni)pairs >> 16) << 16);
}

static int64_t units(kind t, int64_t k)
{
    return in_integers(t) ? k / 32 * LEFT_QUADS : t == PAIRS ? (k + 1) / 2 : k;
}

#if defined(__AVX512BF16__)

/* r[i][j] becomes r[j][i]. */
LANES_INLINE void n_transpose(vn r[WIDE])
{
    __m512 s[16], t[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* t[i + c]: column c of each quarter, of rows i … i+3 */
        for (int c = 0; c < 2; c++) {
            const __m512d low = _mm512_castps_pd(s[i + c]), high = _mm512_castps_pd(s[i + c + 2]);
            t[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            t[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int c = 0; c < 4; c++) {
        const __m512 a = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88), b = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd), e = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
        r[c] = (vn)_mm512_shuffle_f32x4(a, b, 0x88);
        r[c + 4] = (vn)_mm512_shuffle_f32x4(d, e, 0x88);
        r[c + 8] = (vn)_mm512_shuffle_f32x4(a, b, 0xdd);
        r[c + 12] = (vn)_mm512_shuffle_f32x4(d, e, 0xdd);
    }
}

/* r[i]: pairs i of sixteen rows; becomes r[v]: sixteen pairs of elements, of which row 2v has the first and row 2v + 1 the second. */
LANES_INLINE void n_turn_pairs(vn r[8])
{
    const __m512i halves = _mm512_set4_epi32(0x0f0e0b0a, 0x0d0c0908, 0x07060302, 0x05040100); /* a0 a1 b0 b1 -> a0 b0 a1 b1 */
    __m512d s[8];
    for (int i = 0; i < 8; i++) {
        r[i] = (vn)_mm512_shuffle_epi8((__m512i)r[i], halves);
    }
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm512_unpacklo_pd((__m512d)r[i], (__m512d)r[i + 1]);
        s[i + 1] = _mm512_unpackhi_pd((__m512d)r[i], (__m512d)r[i + 1]);
    }
    for (int i = 0; i < 2; i++) { /* quarters of s[i], s[i + 2], s[i + 4], s[i + 6] */
        const __m512d a = _mm512_shuffle_f64x2(s[i], s[i + 2], 0x88), b = _mm512_shuffle_f64x2(s[i + 4], s[i + 6], 0x88);
        const __m512d c = _mm512_shuffle_f64x2(s[i], s[i + 2], 0xdd), d = _mm512_shuffle_f64x2(s[i + 4], s[i + 6], 0xdd);
        r[i] = (vn)_mm512_shuffle_f64x2(a, b, 0x88);
        r[i + 2] = (vn)_mm512_shuffle_f64x2(c, d, 0x88);
        r[i + 4] = (vn)_mm512_shuffle_f64x2(a, b, 0xdd);
        r[i + 6] = (vn)_mm512_shuffle_f64x2(c, d, 0xdd);
    }
}

/* Sixteen units from left elements that lie one after the other along the sum. */
LANES_INLINE vn along(kind t, int halves, const void *from, int64_t left)
{
    const float *p = (const float *)from;
    if (t != PAIRS) {
        return n_take(halves, p, left);
    }
    if (halves) {
        return (vn)_mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffff : (__mmask32)((1u << (left > 0 ? left : 0)) - 1), p);
    }
    if (left >= 32) {
        return (vn)_mm512_cvtne2ps_pbh((__m512)n_load(p + 16), (__m512)n_load(p));
    }
    return (vn)_mm512_cvtne2ps_pbh((__m512)n_load_part(p + (left > 16 ? 16 : 0), left - 16), (__m512)n_load_part(p, left));
}

/* The units of two rows along the columns, one of the sum after the other. */
LANES_INLINE vn across(kind t, vn first, vn second)
{
    if (t != PAIRS) {
        return first;
    }
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vn)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}

#else

LANES_INLINE void n_transpose(vn r[WIDE])
{
#if defined(__AVX2__)
    vf s[8], t[8];
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int c = 0; c < 2; c++) {
            t[i + 2 * c] = __builtin_shufflevector(s[i + c], s[i + c + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            t[i + 2 * c + 1] = __builtin_shufflevector(s[i + c], s[i + c + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int c = 0; c < 4; c++) {
        r[c] = __builtin_shufflevector(t[c], t[c + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[c + 4] = __builtin_shufflevector(t[c], t[c + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    v4_at *x = (v4_at *)(void *)r; /* the halves of the rows */
    for (int i = 0; i < 16; i += 8) {
        turn_quarter(x + i, x + i + 2, x + i + 4, x + i + 6);
        turn_quarter(x + i + 1, x + i + 3, x + i + 5, x + i + 7);
    }
    for (int i = 0; i < 8; i += 2) {
        const v4 high = x[i + 1];
        x[i + 1] = x[i + 8];
        x[i + 8] = high;
    }
#endif
}

LANES_INLINE vn along(kind t, int halves, const void *p, int64_t left)
{
    const vf x = n_take(halves, p, left);
    return t == ROUNDED && !halves ? v_round(x) : x;
}

LANES_INLINE vn across(kind t, vn first, vn second)
{
    (void)second;
    return t == ROUNDED ? v_round(first) : first;
}

#endif

/* The units of n columns of a row and of the next one, which lies `next` elements behind it; 0: there is none. */
LANES_INLINE vn across_rows(kind t, int halves, const void *p, int64_t next, int64_t n)
{
    const vn first = n_take(halves, p, n), second = t == PAIRS && next != 0 ? n_take(halves, element(p, halves, next), n) : n_all(0.0f);
#if defined(__AVX512BF16__)
    if (t == PAIRS && halves) {
        return (vn)_mm512_or_si512(_mm512_srli_epi32((__m512i)first, 16), (__m512i)second);
    }
#endif
    return across(t == ROUNDED && halves ? PLAIN : t, first, second);
}

/* The step in which columns are packed: vectors, or panels that do not divide one. */
LANES_INLINE int64_t pack_step(int64_t width)
{
    return WIDE % width == 0 || width % WIDE == 0 ? WIDE : width;
}

/* Columns at, at + 1, … of one unit into panels of this width, of which the first begins at column 0. */
LANES_INLINE void put_unit(float *panels, int64_t width, int64_t columns, int64_t n_units, int64_t unit, int64_t at, vn v)
{
    if (width % WIDE == 0) { /* the panel of a group: there is one */
        n_store(panels + unit * width + at, v);
        return;
    }
#if defined(__AVX512BF16__)
    if (width == 8) {
        float *low = panels + (at / 8 * n_units + unit) * 8;
        _mm256_storeu_ps(low, _mm512_castps512_ps256((__m512)v));
        if (at + 8 < columns) {
            _mm256_storeu_ps(low + n_units * 8, _mm512_extractf32x8_ps((__m512)v, 1));
        }
        return;
    }
#endif
    const int64_t step = WIDE % width == 0 ? WIDE : width;
    for (int64_t c = 0; c < step && at + c < columns; c += width) {
        memcpy(panels + ((at + c) / width * n_units + unit) * width, (const float *)&v + c, (size_t)width * sizeof(float));
    }
}

/* Units u … u + WIDE of WIDE columns from c on. whole: all of them exist (known when compiled). */
LANES_INLINE void pack_square(kind t, int halves, int whole, int64_t width, const void *p, int64_t ld, int64_t columns, int64_t k, int64_t n,
                              int64_t c, int64_t u, float *panels)
{
    const int64_t per = t == PAIRS ? 2 : 1, step = pack_step(width), left = whole ? WIDE * per : k - u * per;
    vn r[WIDE];
    for (int64_t i = 0; i < WIDE; i++) {
        r[i] = whole || (c + i < columns && i < step) ? along(t, halves, element(p, halves, (c + i) * ld + u * per), left) : n_all(0.0f);
    }
    n_transpose(r);
    for (int64_t i = 0; i < WIDE && (whole || u + i < n); i++) {
        put_unit(panels, width, whole ? INT64_MAX : columns, n, u + i, c, r[i]);
    }
}

/* Panels of a factor whose rows run along the sum: p has `columns` rows (columns of the panel) of k elements, ld apart.
 * all: columns to write, those that do not exist as zeros. */
LANES_INLINE void pack_rows(kind t, int halves, int64_t width, const void *p, int64_t ld, int64_t columns, int64_t all, int64_t k, float *panels)
{
    const int64_t n = units(t, k), per = t == PAIRS ? 2 : 1, step = pack_step(width);
    for (int64_t c = 0; c < all; c += step) {
        int64_t u = 0;
        for (; step == WIDE && c + WIDE <= columns && (u + WIDE) * per <= k; u += WIDE) {
            pack_square(t, halves, 1, width, p, ld, columns, k, n, c, u, panels);
        }
        for (; u < n; u += WIDE) {
            pack_square(t, halves, 0, width, p, ld, columns, k, n, c, u, panels);
        }
    }
}

LANES_INLINE void pack_along(kind t, int halves, int64_t width, const void *p, int64_t ld, int64_t columns, int64_t k, float *panels)
{
    pack_rows(t, halves, width, p, ld, columns, width % WIDE == 0 ? width : columns, k, panels);
}

#if defined(__AVX512BF16__)
/* pack_across for panels of eight, two units at a time: what each panel gets is a cache line, and the panels are far apart. Gives the
 * units done. */
LANES_INLINE int64_t pack_lines(kind t, int halves, const void *p, int64_t ld, int64_t columns, int64_t k, float *panels)
{
    const int64_t n = units(t, k), per = t == PAIRS ? 2 : 1;
    int64_t u = 0;
    for (; (u + 2) * per <= k; u += 2) {
        for (int64_t c = 0; c < columns; c += WIDE) {
            const int64_t left = columns - c, at = u * per * ld + c;
            float *low = panels + (c / 8 * n + u) * 8;
            const __m512 a = (__m512)across_rows(t, halves, element(p, halves, at), ld, left);
            const __m512 b = (__m512)across_rows(t, halves, element(p, halves, at + per * ld), ld, left);
            _mm512_storeu_ps(low, _mm512_shuffle_f32x4(a, b, 0x44));
            if (left > 8) {
                _mm512_storeu_ps(low + n * 8, _mm512_shuffle_f32x4(a, b, 0xee));
            }
        }
    }
    return u;
}
#endif

/* The same for one whose rows run along the columns: p has k rows of `columns` elements, ld apart. */
LANES_INLINE void pack_across(kind t, int halves, int64_t width, const void *p, int64_t ld, int64_t columns, int64_t k, float *panels)
{
    const int64_t n = units(t, k), step = pack_step(width), all = width % WIDE == 0 ? width : columns;
    int64_t u = 0;
#if defined(__AVX512BF16__)
    if (width == 8) {
        u = pack_lines(t, halves, p, ld, columns, k, panels);
    }
#endif
    for (; u < n; u++) {
        const void *row = element(p, halves, (t == PAIRS ? 2 * u : u) * ld);
        const int64_t next = t == PAIRS && 2 * u + 1 < k ? ld : 0;
        int64_t c = 0;
        for (; step == WIDE && c + WIDE <= columns; c += WIDE) {
            put_unit(panels, width, INT64_MAX, n, u, c, across_rows(t, halves, element(row, halves, c), next, WIDE));
        }
        for (; c < all; c += step) {
            put_unit(panels, width, columns, n, u, c, across_rows(t, halves, element(row, halves, c), next, apus_cpu_min(columns - c, step)));
        }
    }
}

#endif
