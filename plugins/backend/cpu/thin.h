/*
 * Products with a thin side, of STRIP at most: what adapters of a low rank and their gradients are. They cost the reading of the other,
 * wide factor, so it is read once and as it lies in memory; only the thin one is laid out as a panel first.
 *
 * Each element is summed in the order that gemm.h has, bit for bit.
 */
#ifndef APUS_CPU_THIN_H
#define APUS_CPU_THIN_H

#include "gemm.h"

enum {
    THIN_PIECE = 64,                   /* units of a wide row at once */
    THIN_SUMS = 8,                     /* columns of the thin factor whose sums are made side by side */
    THIN_VECTORS = WIDE == 16 ? 2 : 1, /* of the wide one: with 32 registers, or with 16 */
    THIN_LEAST = 32768                 /* operations that are worth a second thread */
};

/* c + a b over eight lanes, or over pairs. */
LANES_INLINE vf v_product(kind t, vf a, vf b, vf c)
{
#if defined(__AVX512BF16__)
    if (t == PAIRS) {
        return (vf)_mm256_dpbf16_ps((__m256)c, (__m256bh)a, (__m256bh)b);
    }
#endif
    (void)t;
    return v_fma(a, b, c);
}

/* ---------------------------------------------------------------- the wide factor's rows run along the sum */

/* mr rows of y from `first` on, nv vectors wide. thin: units of STRIP columns. */
LANES_INLINE void thin_rows(kind t, int mr, int nv, const product *p, const float *thin, int64_t first)
{
    const int64_t n = units(t, p->k), per = t == PAIRS ? 2 : 1;
    const int halves = p->a.dtype == APUS_BF16;
    const kind how = t == BFLOAT16 ? SUMMED : PLAIN;
    float rows[HIGH][THIN_PIECE];
    vf acc[HIGH * 2];
    for (int i = 0; i < mr * nv; i++) {
        acc[i] = v_all(0.0f);
    }
    for (int64_t u = 0; u < n; u += THIN_PIECE) {
        const int64_t now = apus_cpu_min(THIN_PIECE, n - u);
        for (int i = 0; i < mr; i++) {
            for (int64_t x = 0; x < now; x += WIDE) {
                const int64_t e = (u + x) * per;
                n_store(rows[i] + x, along(t, halves, element(p->a.p, halves, (first + i) * p->a.ld + e), p->k - e));
            }
        }
        for (int64_t x = 0; x < now; x++, thin += STRIP) {
            for (int j = 0; j < nv; j++) {
                const vf b = v_load(thin + j * LANES);
                for (int i = 0; i < mr; i++) {
                    acc[i * nv + j] = v_product(how, v_all(rows[i][x]), b, acc[i * nv + j]);
                }
            }
        }
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nv; j++) {
            const int64_t c = (int64_t)j * LANES, left = p->n - c;
            vf s = acc[i * nv + j];
            if (p->e.bias != NULL) {
                s += v_take(0, p->e.bias + c, left);
            }
            if (p->e.add != NULL) {
                s += v_take(0, p->e.add + (first + i) * p->e.ld_add + c, left);
            }
            v_give(p->e.halves, element_to(p->y, p->e.halves, (first + i) * p->ld + c), s, left);
        }
    }
}

/* Rows [first, end). */
LANES_INLINE void thin_band(kind t, int nv, const product *p, const float *thin, int64_t first, int64_t end)
{
    for (; first + HIGH <= end; first += HIGH) {
        thin_rows(t, HIGH, nv, p, thin, first);
    }
    for (; first < end; first++) {
        thin_rows(t, 1, nv, p, thin, first);
    }
}

static void thin_along(const product *p, int threads, float *room)
{
    const float *thin = right_panel(p->t, &p->b, 0, p->n, p->k, room);
#pragma omp parallel num_threads(threads) if (p->m * p->n * p->k > THIN_LEAST)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), each = ((p->m + all - 1) / all + HIGH - 1) / HIGH * HIGH;
        const int64_t first = me * each, end = apus_cpu_min(p->m, first + each);
        if (p->t == BFLOAT16) {
            p->n <= LANES ? thin_band(BFLOAT16, 1, p, thin, first, end) : thin_band(BFLOAT16, 2, p, thin, first, end);
        } else {
            p->n <= LANES ? thin_band(PLAIN, 1, p, thin, first, end) : thin_band(PLAIN, 2, p, thin, first, end);
        }
    }
}

/* ---------------------------------------------------------------- both factors' rows run across it */

/* Sums of nv vectors of the wide factor's columns from j on by THIN_SUMS of the thin one's; whole: all those columns exist (known when
 * compiled). What the next columns need is fetched: rows are too far apart for the hardware to see it. */
LANES_INLINE void thin_sums(kind t, int nv, int whole, const factor *wide, int64_t columns, int64_t j, const float *thin, int64_t k, vn *acc)
{
    const int64_t n = units(t, k), per = t == PAIRS ? 2 : 1;
    const int halves = wide->dtype == APUS_BF16;
    for (int i = 0; i < THIN_SUMS * nv; i++) {
        acc[i] = n_all(0.0f);
    }
    for (int64_t u = 0; u < n; u++, thin += STRIP) {
        const void *row = element(wide->p, halves, u * per * wide->ld + j);
        const int64_t next = t == PAIRS && 2 * u + 1 < k ? wide->ld : 0;
        vn v[THIN_VECTORS];
        for (int q = 0; q < nv; q++) {
            const void *at = element(row, halves, q * WIDE);
            v[q] = n_hold(across_rows(t, halves, at, next, whole ? WIDE : columns - j - q * WIDE));
        }
        for (int64_t x = 0; x < nv * WIDE; x += halves ? 32 : 16) {
            __builtin_prefetch(element(row, halves, nv * WIDE + x), 0, 2);
            __builtin_prefetch(element(row, halves, nv * WIDE + x + next), 0, 2);
        }
        for (int i = 0; i < THIN_SUMS; i++) {
            const vn x = n_all(thin[i]);
            for (int q = 0; q < nv; q++) {
                acc[i * nv + q] = n_product(t == BFLOAT16 ? SUMMED : PLAIN, v[q], x, acc[i * nv + q]);
            }
        }
    }
}

/* turned: the wide factor is the left one, and y's rows are its columns. */
LANES_INLINE void thin_store(int nv, const product *p, int turned, int64_t j, int64_t c, const vn *acc)
{
    const int64_t row = turned ? j : c, column = turned ? c : j;
    epilogue e = {NULL, p->e.add != NULL ? p->e.add + row * p->e.ld_add + column : NULL, p->e.ld_add, p->e.halves};
    void *y = element_to(p->y, e.halves, row * p->ld + column);
    if (!turned) {
        tile_store(THIN_SUMS, nv, acc, y, p->ld, &e, p->m - c, p->n - j);
        return;
    }
    for (int q = 0; q < nv; q++) {
        vn r[WIDE];
        for (int i = 0; i < WIDE; i++) {
            r[i] = i < THIN_SUMS ? acc[i * nv + q] : n_all(0.0f);
        }
        n_transpose(r);
        tile_store(WIDE, 1, r, element_to(y, e.halves, q * WIDE * p->ld), p->ld, &e, p->m - j - q * WIDE, apus_cpu_min(THIN_SUMS, p->n - c));
        if (e.add != NULL) {
            e.add += WIDE * p->e.ld_add;
        }
    }
}

/* Columns [j, end) of the wide factor, of which there are `columns`. */
LANES_INLINE void thin_columns(kind t, const product *p, const factor *wide, int64_t columns, int64_t n_thin, const float *thin, int turned,
                               int64_t j, int64_t end)
{
    for (; j < end; j += THIN_VECTORS * WIDE) {
        for (int64_t c = 0; c < n_thin; c += THIN_SUMS) {
            vn acc[THIN_SUMS * THIN_VECTORS];
            if (j + THIN_VECTORS * WIDE <= columns) {
                thin_sums(t, THIN_VECTORS, 1, wide, columns, j, thin + c, p->k, acc);
            } else {
                thin_sums(t, THIN_VECTORS, 0, wide, columns, j, thin + c, p->k, acc);
            }
            thin_store(THIN_VECTORS, p, turned, j, c, acc);
        }
    }
}

static void thin_across(const product *p, int threads, float *thin)
{
    enum { STEP = THIN_VECTORS * WIDE };
    const int turned = p->n <= STRIP;
    const factor *wide = turned ? &p->a : &p->b;
    const int64_t columns = turned ? p->m : p->n, few = turned ? p->n : p->m;
    pack_right(p->t, turned ? &p->b : &p->a, 0, few, p->k, thin);
#pragma omp parallel num_threads(threads) if (p->m * p->n * p->k > THIN_LEAST)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), each = ((columns + all - 1) / all + STEP - 1) / STEP * STEP;
        const int64_t first = me * each, end = apus_cpu_min(columns, first + each);
        if (p->t == BFLOAT16) {
            thin_columns(BFLOAT16, p, wide, columns, few, thin, turned, first, end);
        } else {
            thin_columns(PLAIN, p, wide, columns, few, thin, turned, first, end);
        }
    }
}

/* ---------------------------------------------------------------- any product */

static int is_thin_along(const product *p)
{
    return !in_integers(p->t) && p->a.along && p->n <= STRIP && p->act == ACT_NONE;
}

/* scratch: as multiply's. */
static void run_product(const product *p, int threads, char *scratch)
{
    float *thin = (float *)(void *)scratch;
    if (p->m == 0 || p->n == 0) {
        return;
    }
    const int across = !p->a.along && !p->b.along && !is_packed(&p->b) && p->e.bias == NULL;
    if (is_thin_along(p)) {
        thin_along(p, threads, thin);
    } else if (across && (p->n <= STRIP || p->m <= STRIP)) {
        thin_across(p, threads, thin);
    } else {
        multiply(p, 1, threads, scratch);
    }
}

#endif
