/*
 * The two inner products that everything with matrices is made of, over rows named by pointers; threads and scratch.
 *
 * dots   c[i][j] (+)= a_i · b_j, both rows contiguous: linear, attention's scores, the vocabulary head.
 * outer  c_i[n] += sum over k of a[i,k] * b_k[n]: attention's values and gradients.
 *
 * The order in which one element is summed is the same whatever tile it falls into, so its bits depend on neither how many
 * other rows there are nor where it stands. dots: lane l takes elements l, l+8, … in order, then v_sum. outer: k in order.
 */
#ifndef APUS_CPU_TILES_H
#define APUS_CPU_TILES_H

#include "cpu.h"
#include "lanes.h"

#include <omp.h>

enum { DOT_MAX = 8, FEW = 24 };

/* Where dots puts a sum: y = sum + bias[j] + add[i * ld_add + j]; either may be NULL. add may be y's memory. */
typedef struct epilogue {
    const float *bias, *add;
    int64_t ld_add;
} epilogue;

static int threads_of(const apus_kernel_call *call)
{
    return apus_cpu_of(call)->threads;
}

/* The sums over lanes of acc [mr, nr] into c, through the epilogue (NULL: none). nr is 1 or divisible by 4. */
LANES_INLINE void dot_store(int mr, int nr, const vf *acc, float *c, int64_t ldc, const epilogue *e, int64_t i0, int64_t j0)
{
    for (int i = 0; i < mr; i++) {
        const float *add = e != NULL && e->add != NULL ? e->add + (i0 + i) * e->ld_add + j0 : NULL;
        const float *bias = e != NULL && e->bias != NULL ? e->bias + j0 : NULL;
        if (nr == 1) {
            float s = v_sum(acc[i]);
            s = bias != NULL ? s + bias[0] : s;
            c[i * ldc] = add != NULL ? s + add[0] : s;
        }
        for (int j = 0; j + 4 <= nr; j += 4) {
            v4 s = v_sum4(acc[i * nr + j], acc[i * nr + j + 1], acc[i * nr + j + 2], acc[i * nr + j + 3]);
            s = bias != NULL ? s + *(const v4_at *)(bias + j) : s;
            *(v4_at *)(c + i * ldc + j) = add != NULL ? s + *(const v4_at *)(add + j) : s;
        }
    }
}

/* mr rows of a by nr rows of b: mr * nr <= 12 accumulators, mr rows of a and one of b make 16 registers. tail: k is not a
 * whole number of vectors (known when compiled, or the accumulators would live in memory).
 * fetch: few rows are bound by memory: fetch the rows of the next tile, which lie behind these. */
LANES_INLINE void dot_tile(int mr, int nr, int tail, int fetch, const float *a, int64_t lda, const float *const *b, int64_t k, float *c, int64_t ldc,
                           const epilogue *e, int64_t i0, int64_t j0)
{
    vf acc[12], av[3];
    const float *pb[DOT_MAX];
    for (int j = 0; j < nr; j++) {
        pb[j] = b[j];
    }
    for (int t = 0; t < mr * nr; t++) {
        acc[t] = v_all(0.0f);
    }
    int64_t x = 0;
    for (; x + LANES <= k; x += LANES) {
        for (int i = 0; i < mr; i++) {
            av[i] = v_hold(v_load(a + i * lda + x));
        }
        for (int j = 0; j < nr; j++) {
            const vf bv = v_hold(v_load(pb[j] + x));
            if (fetch) {
                __builtin_prefetch(pb[j] + nr * k + x);
            }
            for (int i = 0; i < mr; i++) {
                acc[i * nr + j] = v_fma(av[i], bv, acc[i * nr + j]);
            }
        }
    }
    if (tail) {
        for (int i = 0; i < mr; i++) {
            av[i] = v_load_part(a + i * lda + x, k - x);
        }
        for (int j = 0; j < nr; j++) {
            const vf bv = v_load_part(pb[j] + x, k - x);
            for (int i = 0; i < mr; i++) {
                acc[i * nr + j] = v_fma(av[i], bv, acc[i * nr + j]);
            }
        }
    }
    dot_store(mr, nr, acc, c, ldc, e, i0, j0);
}

LANES_INLINE void dot_rows(int mr, int nr, int tail, int fetch, const float *a, int64_t lda, const float *const *b, int64_t n, int64_t k, float *c,
                           int64_t ldc, const epilogue *e, int64_t i0, int64_t j0)
{
    int64_t j = 0;
    for (; j + nr <= n; j += nr) {
        dot_tile(mr, nr, tail, fetch, a, lda, b + j, k, c + j, ldc, e, i0, j0 + j);
    }
    for (; j < n; j++) {
        dot_tile(mr, 1, tail, 0, a, lda, b + j, k, c + j, ldc, e, i0, j0 + j);
    }
}

LANES_INLINE void dots_by(int tail, const float *a, int64_t lda, int64_t m, const float *const *b, int64_t n, int64_t k, float *c, int64_t ldc,
                          const epilogue *e, int64_t i0, int64_t j0)
{
    int64_t i = 0;
    if (m >= 3 && m <= FEW) {
        dot_rows(3, 4, tail, 1, a, lda, b, n, k, c, ldc, e, i0, j0);
        i = 3;
    }
    for (; i + 3 <= m; i += 3) {
        dot_rows(3, 4, tail, 0, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
    }
    if (m - i == 2) {
        dot_rows(2, 4, tail, m == 2, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
    } else if (m - i == 1) {
        dot_rows(1, DOT_MAX, tail, m == 1, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
    }
}

/* a [m, k] with lda; b: n rows of k; c [m, n] with ldc. i0, j0: where c's first element lies for the epilogue (NULL: none). */
static void dots(const float *a, int64_t lda, int64_t m, const float *const *b, int64_t n, int64_t k, float *c, int64_t ldc, const epilogue *e,
                 int64_t i0, int64_t j0)
{
    if (k % LANES == 0 && e == NULL) {
        dots_by(0, a, lda, m, b, n, k, c, ldc, NULL, 0, 0);
    } else if (k % LANES == 0) {
        dots_by(0, a, lda, m, b, n, k, c, ldc, e, i0, j0);
    } else {
        dots_by(1, a, lda, m, b, n, k, c, ldc, e, i0, j0);
    }
}

/* mr <= 6 rows of c by nr <= 2 vectors from column n; left: columns there (less than a vector where nr is 1). */
LANES_INLINE void outer_tile(int mr, int nr, int64_t k, const float *a, int64_t rs, int64_t cs, const float *const *b, float *const *c, int64_t n,
                             int64_t left)
{
    vf acc[12], bv[2];
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nr; j++) {
            acc[i * nr + j] = left < LANES ? v_load_part(c[i] + n, left) : v_load(c[i] + n + j * LANES);
        }
    }
    for (int64_t x = 0; x < k; x++) {
        for (int j = 0; j < nr; j++) {
            bv[j] = left < LANES ? v_load_part(b[x] + n, left) : v_load(b[x] + n + j * LANES);
        }
        for (int i = 0; i < mr; i++) {
            const vf av = v_all(a[i * rs + x * cs]);
            for (int j = 0; j < nr; j++) {
                acc[i * nr + j] = v_fma(av, bv[j], acc[i * nr + j]);
            }
        }
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nr; j++) {
            if (left < LANES) {
                v_store_part(c[i] + n, acc[i * nr + j], left);
            } else {
                v_store(c[i] + n + j * LANES, acc[i * nr + j]);
            }
        }
    }
}

LANES_INLINE void outer_rows(int mr, int64_t n, int64_t k, const float *a, int64_t rs, int64_t cs, const float *const *b, float *const *c)
{
    int64_t x = 0;
    for (; x + 2 * LANES <= n; x += 2 * LANES) {
        outer_tile(mr, 2, k, a, rs, cs, b, c, x, 2 * LANES);
    }
    for (; x + LANES <= n; x += LANES) {
        outer_tile(mr, 1, k, a, rs, cs, b, c, x, LANES);
    }
    if (x < n) {
        outer_tile(mr, 1, k, a, rs, cs, b, c, x, n - x);
    }
}

/* c: m rows of n; element a[i, x] lies at a[i * rs + x * cs]; b: k rows of n. */
static void outer(int64_t m, int64_t n, int64_t k, const float *a, int64_t rs, int64_t cs, const float *const *b, float *const *c)
{
    int64_t i = 0;
    for (; i + 6 <= m; i += 6) {
        outer_rows(6, n, k, a + i * rs, rs, cs, b, c + i);
    }
    switch (m - i) {
    case 5:
        outer_rows(5, n, k, a + i * rs, rs, cs, b, c + i);
        break;
    case 4:
        outer_rows(4, n, k, a + i * rs, rs, cs, b, c + i);
        break;
    case 3:
        outer_rows(3, n, k, a + i * rs, rs, cs, b, c + i);
        break;
    case 2:
        outer_rows(2, n, k, a + i * rs, rs, cs, b, c + i);
        break;
    case 1:
        outer_rows(1, n, k, a + i * rs, rs, cs, b, c + i);
        break;
    default:
        break;
    }
}

static apus_status check_index(const char *what, int64_t index, int64_t limit, int64_t at, apus_error *err)
{
    if (index >= 0 && index < limit) {
        return APUS_OK;
    }
    return apus_fail(err, APUS_E_INVALID, "%s %lld at place %lld is outside 0 … %lld", what, (long long)index, (long long)at, (long long)limit - 1);
}

#endif
