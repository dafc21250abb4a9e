/*
 * Packed weights: W of a linear laid out in groups of columns one after the other, each the panel that tiles read (gemm.h); and their
 * products with a few rows. What decoding one token costs is the reading of the weights: packed ones are read in one stream, at the
 * speed of memory, where rows as files have them must be turned in registers (few.h).
 *
 * Units are floats; or pairs of bfloat16 as kind PAIRS has them, on every instruction set, which are multiplied as such or as floats; or
 * bytes or nibbles, where products are integers. Each element is summed in the order that gemm.h has, bit for bit.
 */
#ifndef APUS_CPU_PACKED_H
#define APUS_CPU_PACKED_H

#include "gemm.h"

enum {
    PACKED_ROWS = 8,     /* of the left factor, at most */
    PACKED_AHEAD = 4096, /* bytes: what is read next is fetched from memory so far ahead, but nibbles: their loads are so far apart that the
                            processor's own fetching keeps up, and does better undisturbed */
    PACKED_PIECE = 128   /* pairs of a row laid out at once */
};

/* ---------------------------------------------------------------- laying out */

/* n pairs from element e on of a row of k elements, float32 or bfloat16. */
static void row_pairs(const apus_view *w, int64_t row, int64_t e, int64_t n, uint32_t *pairs)
{
    const int64_t k = apus_cpu_width(w), left = apus_cpu_min(k - e, 2 * n);
    uint16_t *halves = (uint16_t *)(void *)pairs;
    pairs[n - 1] = 0;
    if (w->dtype == APUS_BF16) {
        memcpy(halves, (const uint16_t *)w->data + row * k + e, (size_t)left * sizeof *halves);
        return;
    }
    const float *from = (const float *)w->data + row * k + e;
    for (int64_t i = 0; i < left; i += WIDE * (BFLOAT16 == PAIRS ? 2 : 1)) {
        const vn rounded = along(BFLOAT16, 0, from + i, left - i);
#if defined(__AVX512BF16__)
        n_store_part((float *)(void *)pairs + i / 2, rounded, n - i / 2);
#else
        for (int64_t j = 0; j < apus_cpu_min(WIDE, left - i); j++) {
            halves[i + j] = (uint16_t)((uint32_t)((ni)rounded)[j] >> 16);
        }
#endif
    }
}

/* Panel of the group of columns from `first` on. */
static void pack_pairs(const apus_view *w, int64_t first, int64_t columns, float *panel)
{
    const int64_t n = units(PAIRS, apus_cpu_width(w)), width = panel_width(columns);
    uint32_t rows[GROUP][PACKED_PIECE], *to = (uint32_t *)(void *)panel;
    memset(rows, 0, sizeof rows);
    for (int64_t u = 0; u < n; u += PACKED_PIECE) {
        const int64_t now = apus_cpu_min(PACKED_PIECE, n - u);
        for (int64_t c = 0; c < columns; c++) {
            row_pairs(w, first + c, 2 * u, now, rows[c]);
        }
        for (int64_t i = 0; i < now; i++) {
            for (int64_t c = 0; c < width; c++) {
                to[(u + i) * width + c] = rows[c][i];
            }
        }
    }
}

/* apus_kernel.pack of linear. */
static size_t pack_weight(void *backend, const apus_view *w, apus_dtype *packed, void *to)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
    const int64_t n = apus_cpu_rows(w), k = apus_cpu_width(w), all = (n + STRIP - 1) / STRIP * STRIP;
    const int quads = cpu->integers && (w->dtype == APUS_Q8_0 || w->dtype == APUS_Q4_0);
    const apus_dtype type = w->dtype == APUS_F32 && cpu->bfloat16 ? APUS_BF16 : w->dtype;
    if (w->ndim != 2 || (type != APUS_F32 && type != APUS_BF16 && !quads)) {
        return 0;
    }
    *packed = APUS_PACKED | type;
    const int64_t column = packed_column(type, k);
#pragma omp parallel for num_threads(cpu->threads) schedule(static) if (to != NULL)
    for (int64_t j = 0; j < (to != NULL ? n : 0); j += GROUP) {
        const int64_t columns = apus_cpu_min(GROUP, n - j);
        float *panel = (float *)(void *)((char *)to + j * column);
        if (type == APUS_BF16) {
            pack_pairs(w, j, columns, panel);
        } else {
            const factor f = {w->data, k, 1, type};
            pack_right(type == APUS_Q8_0 ? QUADS : type == APUS_Q4_0 ? NIBBLES : PLAIN, &f, j, columns, k, panel);
        }
    }
    return (size_t)(all * column);
}

/* Column c of a panel of bytes or nibbles. */
static void packed_quads(kind t, const float *panel, int64_t width, int64_t c, int64_t k, float *y)
{
    const uint8_t *p = (const uint8_t *)(const void *)panel;
    const int64_t stored = t == NIBBLES ? 4 : 8;
    for (int64_t b = 0; b < k / 32; b++, p += quads_block(t) * (size_t)width) {
        const float scale = half(p + (stored * 4 * width + 2 * c));
        for (int64_t e = 0; e < 32; e++) {
            const uint8_t byte = p[(e / 4 % stored * width + c) * 4 + e % 4];
            const int q = t == NIBBLES ? (e < 16 ? byte & 15 : byte >> 4) - 8 : (int8_t)(WIDE == 16 ? byte ^ 0x80 : byte);
            y[32 * b + e] = (float)q * scale;
        }
    }
}

/* Row r of a packed weight. */
static void packed_row(const apus_view *w, int64_t r, float *y)
{
    const int64_t n = apus_cpu_rows(w), k = apus_cpu_width(w), first = r / GROUP * GROUP;
    const factor f = {w->data, k, 1, w->dtype};
    const float *at = packed_panel(&f, first, k) + (r - first);
    const int64_t width = panel_width(apus_cpu_min(GROUP, n - first));
    const apus_dtype type = w->dtype & ~APUS_PACKED;
    if (type == APUS_Q8_0 || type == APUS_Q4_0) {
        packed_quads(type == APUS_Q4_0 ? NIBBLES : QUADS, at - (r - first), width, r - first, k, y);
        return;
    }
    for (int64_t e = 0; e < k; e++) {
        if (has_pairs(&f)) {
            uint32_t pair;
            memcpy(&pair, at + e / 2 * width, sizeof pair);
            pair = e % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
            memcpy(y + e, &pair, sizeof pair);
        } else {
            y[e] = at[e * width];
        }
    }
}

/* ---------------------------------------------------------------- a few rows */

/* Vectors of a group whose sums are made side by side. */
LANES_INLINE int packed_vectors(kind t, int m)
{
    if (in_integers(t)) { /* each is two */
        return WIDE == 16 ? 3 : m > 2 ? 1 : 2;
    }
    return (int)WIDE == (int)LANES && m > 2 ? (m > 4 ? 1 : 2) : GROUP / WIDE;
}

/* Sums of m rows by nr vectors of a panel of units. */
LANES_INLINE void packed_sums(kind t, int m, int nr, const float *a, int64_t lda, const float *b, int64_t width, int64_t k, vn *acc)
{
    const int64_t n = units(t, k);
    for (int64_t u = 0; u < n; u++, b += width) {
        vn w[GROUP / WIDE];
        for (int j = 0; j < nr; j++) {
            __builtin_prefetch((const char *)(b + j * WIDE) + PACKED_AHEAD, 0, 2);
            w[j] = n_hold(n_load(b + j * WIDE));
        }
        for (int i = 0; i < m; i++) {
            const vn x = n_hold(n_all(a[i * lda + u]));
            for (int j = 0; j < nr; j++) {
                acc[i * nr + j] = n_product(t, x, w[j], acc[i * nr + j]);
            }
        }
    }
}

/* The same of a panel of pairs whose elements are multiplied as floats. */
LANES_INLINE void packed_halves(int m, int nr, const float *a, int64_t lda, const float *b, int64_t width, int64_t k, vn *acc)
{
    for (int64_t e = 0; e < k; e += 2, b += width) {
        vn w[GROUP / WIDE];
        for (int j = 0; j < nr; j++) {
            __builtin_prefetch((const char *)(b + j * WIDE) + PACKED_AHEAD, 0, 2);
            w[j] = n_hold(n_load(b + j * WIDE));
        }
        for (int64_t h = 0; h < 2 && e + h < k; h++) {
            vn its[GROUP / WIDE];
            for (int j = 0; j < nr; j++) {
                its[j] = h == 0 ? n_even(w[j]) : n_odd(w[j]);
            }
            for (int i = 0; i < m; i++) {
                const vn x = n_hold(n_all(a[i * lda + e + h]));
                for (int j = 0; j < nr; j++) {
                    acc[i * nr + j] = n_product(PLAIN, x, its[j], acc[i * nr + j]);
                }
            }
        }
    }
}

/* Columns [j, j + GROUP) of y. */
LANES_INLINE void packed_group(kind t, int pairs, int m, const product *p, const float *a, int64_t lda, int64_t j)
{
    const int nr = packed_vectors(t, m);
    const int64_t columns = apus_cpu_min(GROUP, p->n - j), width = panel_width(columns);
    const float *panel = packed_panel(&p->b, j, p->k);
    for (int64_t c = 0; c < columns;) {
        const int now = width - c >= nr * WIDE ? nr : 1;
        const epilogue e = {p->e.bias != NULL ? p->e.bias + j + c : NULL, p->e.add != NULL ? p->e.add + j + c : NULL, p->e.ld_add, p->e.halves};
        vn acc[PACKED_ROWS * GROUP / WIDE];
        for (int i = 0; i < m * nr; i++) {
            acc[i] = n_all(0.0f);
        }
#define PACKED_SUMS(nr)                                                                                                                              \
    do {                                                                                                                                             \
        if (in_integers(t)) {                                                                                                                        \
            quads_sums(t, m, nr, a, lda, 1, panel, c, width, p->k / 32, t == NIBBLES ? 0 : PACKED_AHEAD, acc);                                       \
        } else if (pairs && t != PAIRS) {                                                                                                            \
            packed_halves(m, nr, a, lda, panel + c, width, p->k, acc);                                                                               \
        } else {                                                                                                                                     \
            packed_sums(t == BFLOAT16 ? SUMMED : PLAIN, m, nr, a, lda, panel + c, width, p->k, acc);                                                 \
        }                                                                                                                                            \
        tile_store(m, nr, acc, element_to(p->y, p->e.halves, j - p->y_column + c), p->ld, &e, p->m, columns - c);                                    \
        c += (nr)*WIDE;                                                                                                                              \
    } while (0)
        if (now == nr) {
            PACKED_SUMS(nr);
        } else {
            PACKED_SUMS(1);
        }
#undef PACKED_SUMS
    }
}

/* The same, whatever the panels hold. */
LANES_INLINE void packed_strip(int m, const product *p, const float *a, int64_t lda, int64_t j)
{
    if (m <= 4 && p->t == QUADS) {
        packed_group(QUADS, 0, m, p, a, lda, j);
    } else if (m <= 4 && p->t == NIBBLES) {
        packed_group(NIBBLES, 0, m, p, a, lda, j);
    } else if (p->t == BFLOAT16) {
        packed_group(BFLOAT16, 1, m, p, a, lda, j);
    } else if (has_pairs(&p->b)) {
        packed_group(PLAIN, 1, m, p, a, lda, j);
    } else {
        packed_group(PLAIN, 0, m, p, a, lda, j);
    }
}

#endif
