/*
 * What attention is made of, forward and backward: products of small tiles that stay in the nearer caches, powers of two, and
 * factors made of rows.
 *
 * Scores are kept transposed, [key, row]: a row (one query of one head) is a lane of a vector, so maxima, sums and masks need
 * nothing across lanes, and the rows of keys and values are factors as they lie in memory. Every element is summed in the
 * order of its factors, one after the other (panels.h: a unit at a time), whatever tile it falls into.
 */
#ifndef APUS_CPU_ATTENTION_TILES_H
#define APUS_CPU_ATTENTION_TILES_H

#include "functions.h"

enum { ATT_ROWS = 64, ATT_KEYS = 64, ATT_VECTORS = ATT_ROWS / WIDE };

#define ATT_FLOOR (-1e30f) /* less than any score; twice that minus it is still a number */

/* The largest lane; NaN lanes may be passed over. */
LANES_INLINE float n_most(vn x)
{
#if defined(__AVX512BF16__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    return v_most(x);
#endif
}

/* The nearest bfloat16, ties to even. */
LANES_INLINE vn n_round(vn x)
{
    const ni bits = (ni)x;
    return n_select(x != x, x, (vn)((bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000u));
}

/* 2^x for x <= 0, with 0 at the end of the range; NaN stays. 2^x = 2^n 2^r, of which the second is 1 + r times a polynomial
 * fitted to the least relative error, 1e-7. */
LANES_INLINE vn n_exp2(vn x)
{
#if defined(__AVX512BF16__)
    const vn r = (vn)_mm512_reduce_ps((__m512)x, 0x9); /* [0, 1) */
    vn p = n_all(1.8671380821615458e-3f);
    p = n_product(PLAIN, p, r, n_all(9.017013013362885e-3f));
    p = n_product(PLAIN, p, r, n_all(5.5799923837184906e-2f));
    p = n_product(PLAIN, p, r, n_all(2.4016444385051727e-1f));
    p = n_product(PLAIN, p, r, n_all(6.931512951850891e-1f));
    return (vn)_mm512_scalef_ps((__m512)n_product(PLAIN, p, r, n_all(1.0f)), (__m512)x); /* it takes the floor itself */
#else
    x = n_max(n_all(-127.0f), x);
    const vn magic = n_all(12582912.0f), t = x + magic, n = t - magic, r = x - n; /* 1.5 * 2^23: adding it rounds to whole numbers */
    vn p = n_all(1.32647342979908e-3f);
    p = n_product(PLAIN, p, r, n_all(9.67151578515768e-3f));
    p = n_product(PLAIN, p, r, n_all(5.550733581185341e-2f));
    p = n_product(PLAIN, p, r, n_all(2.4022242426872253e-1f));
    p = n_product(PLAIN, p, r, n_all(6.931470036506653e-1f));
    return n_product(PLAIN, p, r, n_all(1.0f)) * v_power((vi)t - (vi)magic);
#endif
}

/* ---------------------------------------------------------------- products */

/* A factor whose element (i, u) lies at p[i * across + u * along]. */
typedef struct strided {
    const float *p;
    int64_t across, along;
} strided;

/* c [mr, nr vectors], ldc apart, = (c +) the sum over n units of a and b [n, nr vectors], ldb apart. */
LANES_INLINE void small_tile(kind t, int mr, int nr, int64_t n, strided a, const float *b, int64_t ldb, float *c, int64_t ldc, int add)
{
    vn acc[16];
    const float *row[8];
    for (int i = 0; i < mr; i++) {
        row[i] = a.p + i * a.across;
        for (int j = 0; j < nr; j++) {
            acc[i * nr + j] = add ? n_load(c + i * ldc + j * WIDE) : n_all(0.0f);
        }
    }
    for (int64_t u = 0, at = 0; u < n; u++, at += a.along, b += ldb) {
        vn bv[4];
        for (int j = 0; j < nr; j++) {
            bv[j] = n_hold(n_load(b + j * WIDE));
        }
        for (int i = 0; i < mr; i++) {
            const vn av = n_all(row[i][at]);
            for (int j = 0; j < nr; j++) {
                acc[i * nr + j] = n_product(t, av, bv[j], acc[i * nr + j]);
            }
        }
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nr; j++) {
            n_store(c + i * ldc + j * WIDE, acc[i * nr + j]);
        }
    }
}

LANES_INLINE void small_columns(kind t, int mr, int nr, int64_t m, int64_t n, strided a, const float *b, int64_t ldb, float *c, int64_t ldc, int add)
{
    int64_t i = 0;
    for (; i + mr <= m; i += mr) {
        small_tile(t, mr, nr, n, (strided){a.p + i * a.across, a.across, a.along}, b, ldb, c + i * ldc, ldc, add);
    }
    for (; mr > 4 && i + 4 <= m; i += 4) {
        small_tile(t, 4, nr, n, (strided){a.p + i * a.across, a.across, a.along}, b, ldb, c + i * ldc, ldc, add);
    }
    const strided rest = {a.p + i * a.across, a.across, a.along};
    if (m - i == 3) {
        small_tile(t, 3, nr, n, rest, b, ldb, c + i * ldc, ldc, add);
    } else if (m - i == 2) {
        small_tile(t, 2, nr, n, rest, b, ldb, c + i * ldc, ldc, add);
    } else if (m - i == 1) {
        small_tile(t, 1, nr, n, rest, b, ldb, c + i * ldc, ldc, add);
    }
}

/* c [m, vectors] (+)= a b. 4 x 4 vectors of 512 bits, 4 x 3 of 256: as many sums as hide the latency, the rest of the registers
 * for what is read. */
LANES_INLINE void small_product_by(kind t, int64_t m, int64_t vectors, int64_t n, strided a, const float *b, int64_t ldb, float *c, int64_t ldc,
                                   int add)
{
#if defined(__AVX512BF16__)
    enum { MOST = 4, ROWS = 4 };
#elif defined(__AVX2__) || defined(__aarch64__)
    enum { MOST = 3, ROWS = 4 };
#else
    enum { MOST = 2, ROWS = 2 }; /* a vector takes two registers of sixteen */
#endif
    for (int64_t j = 0; j < vectors;) {
        const float *bj = b + j * WIDE;
        float *cj = c + j * WIDE;
        if (MOST >= 4 && vectors - j >= 4) {
            small_columns(t, ROWS, 4, m, n, a, bj, ldb, cj, ldc, add);
            j += 4;
        } else if (MOST >= 3 && vectors - j >= 3) {
            small_columns(t, ROWS, 3, m, n, a, bj, ldb, cj, ldc, add);
            j += 3;
        } else if (MOST >= 2 && vectors - j >= 2) {
            small_columns(t, ROWS, 2, m, n, a, bj, ldb, cj, ldc, add);
            j += 2;
        } else {
            small_columns(t, 2 * ROWS, 1, m, n, a, bj, ldb, cj, ldc, add);
            j += 1;
        }
    }
}

static void small_product(kind t, int64_t m, int64_t vectors, int64_t n, strided a, const float *b, int64_t ldb, float *c, int64_t ldc, int add)
{
    if (t == BFLOAT16) {
        small_product_by(SUMMED, m, vectors, n, a, b, ldb, c, ldc, add);
    } else {
        small_product_by(PLAIN, m, vectors, n, a, b, ldb, c, ldc, add);
    }
}

/* ---------------------------------------------------------------- rows of factors */

/* Numbers in memory: floats; or bfloat16, where products are of these. */
typedef struct reals {
    const void *p;
    int halves;
} reals;

static reals reals_of(const apus_view *v)
{
    return (reals){v->data, v->dtype == APUS_BF16};
}

static reals reals_at(reals x, int64_t i)
{
    return (reals){element(x.p, x.halves, i), x.halves};
}

LANES_INLINE void units_along(kind t, reals x, int64_t ld, int64_t n, int64_t dim, int64_t wide, float *copy)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t u = 0; u < wide; u += WIDE) {
            const int64_t e = t == PAIRS ? 2 * u : u;
            n_store(copy + i * wide + u, along(t, x.halves, element(x.p, x.halves, i * ld + e), dim - e));
        }
    }
}

/* Rows [n, dim] of x, ld apart, as units along them: x itself, or `copy`. */
static strided rows_along(kind t, reals x, int64_t ld, int64_t n, int64_t dim, float *copy)
{
    const int64_t wide = (units(t, dim) + WIDE - 1) / WIDE * WIDE;
    if (t == PLAIN) {
        return (strided){(const float *)x.p, ld, 1};
    }
    if (x.halves) {
        units_along(BFLOAT16, (reals){x.p, 1}, ld, n, dim, wide, copy);
    } else {
        units_along(BFLOAT16, (reals){x.p, 0}, ld, n, dim, wide, copy);
    }
    return (strided){copy, wide, 1};
}

/* The same as units along the columns, [units, padded dim]: of the factor, `along` is the width. direct: x itself will do where
 * units are floats. */
static strided rows_across(kind t, reals x, int64_t ld, int64_t n, int64_t dim, int direct, float *copy)
{
    if (t == PLAIN && direct) {
        return (strided){(const float *)x.p, 1, ld};
    }
    const int64_t wide = (dim + WIDE - 1) / WIDE * WIDE;
    if (x.halves) {
        pack_across(BFLOAT16, 1, wide, x.p, ld, dim, n, copy);
    } else if (t == BFLOAT16) {
        pack_across(BFLOAT16, 0, wide, x.p, ld, dim, n, copy);
    } else {
        pack_across(PLAIN, 0, wide, x.p, ld, dim, n, copy);
    }
    return (strided){copy, 1, wide};
}

/* Columns [dim] of `rows` rows that lie ld apart: [units, ATT_ROWS], as many vectors of lanes as there are rows. */
static void rows_transposed(kind t, const float *p, int64_t ld, int64_t rows, int64_t dim, float *panel)
{
    const int64_t all = (rows + WIDE - 1) / WIDE * WIDE;
    if (t == BFLOAT16) {
        pack_rows(BFLOAT16, 0, ATT_ROWS, p, ld, rows, all, dim, panel);
    } else {
        pack_rows(PLAIN, 0, ATT_ROWS, p, ld, rows, all, dim, panel);
    }
}

/* Lane r of x [dim, ATT_ROWS], times factor[r], to to[r] [dim]. */
LANES_INLINE void put_transposed(const float *x, int64_t rows, int64_t dim, const float *factor, int halves, void *const *to)
{
    for (int64_t r = 0; r < rows; r += WIDE) {
        const vn f = n_load(factor + r);
        for (int64_t d = 0; d < dim; d += WIDE) {
            vn v[WIDE];
            for (int64_t i = 0; i < WIDE; i++) {
                v[i] = d + i < dim ? n_load(x + (d + i) * ATT_ROWS + r) * f : n_all(0.0f);
            }
            n_transpose(v);
            for (int64_t i = 0; i < WIDE && r + i < rows; i++) {
                n_give(halves, element_to(to[r + i], halves, d), v[i], dim - d);
            }
        }
    }
}

#endif
