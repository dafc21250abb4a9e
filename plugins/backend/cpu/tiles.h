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

#include <apus/blocks.h>
#include <omp.h>

enum { DOT_MAX = 8 };

/* Where dots puts a sum: y = sum + bias[j] + add[i * ld_add + j]; either may be NULL. add may be y's memory. */
typedef struct epilogue {
    const float *bias, *add;
    int64_t ld_add;
} epilogue;

static int threads_of(const apus_kernel_call *call)
{
    return apus_cpu_of(call)->threads;
}

/* OpenBLAS's OpenMP build takes the calling thread's setting. */
static int blas_threads(const apus_kernel_call *call)
{
    const int threads = threads_of(call);
    if (omp_get_max_threads() != threads) {
        omp_set_num_threads(threads);
    }
    return threads;
}

/* mr rows of a by nr rows of b, mr * nr <= 12: the accumulators stay in registers. */
LANES_INLINE void dot_tile(int mr, int nr, const float *a, int64_t lda, const float *const *b, int ahead, int64_t k, float *c, int64_t ldc,
                           const epilogue *e, int64_t i0, int64_t j0)
{
    vf acc[12], bv[DOT_MAX];
    const float *pb[DOT_MAX];
    for (int j = 0; j < nr; j++) {
        pb[j] = b[j];
    }
    for (int t = 0; t < mr * nr; t++) {
        acc[t] = v_all(0.0f);
    }
    int64_t x = 0;
    for (; x + LANES <= k; x += LANES) {
        for (int j = 0; j < nr; j++) {
            bv[j] = v_load(pb[j] + x);
            if (mr == 1 && nr > 1) { /* a lone row is bound by memory: fetch the rows of the next tile */
                __builtin_prefetch((const char *)(pb[j] + x) + ahead);
            }
        }
        for (int i = 0; i < mr; i++) {
            const vf av = v_hold(v_load(a + i * lda + x));
            for (int j = 0; j < nr; j++) {
                acc[i * nr + j] = v_fma(av, bv[j], acc[i * nr + j]);
            }
        }
    }
    if (x < k) {
        for (int j = 0; j < nr; j++) {
            bv[j] = v_load_part(pb[j] + x, k - x);
        }
        for (int i = 0; i < mr; i++) {
            const vf av = v_load_part(a + i * lda + x, k - x);
            for (int j = 0; j < nr; j++) {
                acc[i * nr + j] = v_fma(av, bv[j], acc[i * nr + j]);
            }
        }
    }
    float sum[12];
    int t = 0;
    for (; t + 4 <= mr * nr; t += 4) {
        v_sum4(acc[t], acc[t + 1], acc[t + 2], acc[t + 3], sum + t);
    }
    for (; t < mr * nr; t++) {
        sum[t] = v_sum(acc[t]);
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nr; j++) {
            float s = sum[i * nr + j];
            if (e->bias != NULL) {
                s += e->bias[j0 + j];
            }
            if (e->add != NULL) {
                s += e->add[(i0 + i) * e->ld_add + j0 + j];
            }
            c[i * ldc + j] = s;
        }
    }
}

LANES_INLINE void dot_rows(int mr, int nr, const float *a, int64_t lda, const float *const *b, int64_t n, int64_t k, float *c, int64_t ldc,
                           const epilogue *e, int64_t i0, int64_t j0)
{
    int64_t j = 0;
    for (; j + nr <= n; j += nr) {
        dot_tile(mr, nr, a, lda, b + j, nr * (int)k * 4, k, c + j, ldc, e, i0, j0 + j);
    }
    for (; j < n; j++) {
        dot_tile(mr, 1, a, lda, b + j, 0, k, c + j, ldc, e, i0, j0 + j);
    }
}

/* a [m, k] with lda; b: n rows of k; c [m, n] with ldc. i0, j0: where c's first element lies for the epilogue. */
static void dots(const float *a, int64_t lda, int64_t m, const float *const *b, int64_t n, int64_t k, float *c, int64_t ldc, const epilogue *e,
                 int64_t i0, int64_t j0)
{
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) {
        dot_rows(4, 3, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
    }
    switch (m - i) {
    case 3:
        dot_rows(3, 4, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
        break;
    case 2:
        dot_rows(2, 6, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
        break;
    case 1:
        dot_rows(1, DOT_MAX, a + i * lda, lda, b, n, k, c + i * ldc, ldc, e, i0 + i, j0);
        break;
    default:
        break;
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

/* ---------------------------------------------------------------- reading weights */

/* n elements of any encoding to float32: the bits of apus_row_to_f32. */
static void decode(apus_dtype t, const uint8_t *p, float *y, int64_t n)
{
#if defined(__AVX2__)
    if (t == APUS_Q8_0) {
        for (int64_t i = 0; i < n; i += 32, p += 34) {
            const vf d = v_all(_cvtsh_ss(apus_load_u16_(p)));
            for (int j = 0; j < 32; j += LANES) {
                const __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 2 + j)));
                v_store(y + i + j, (vf)_mm256_cvtepi32_ps(q) * d);
            }
        }
        return;
    }
    if (t == APUS_Q4_0) {
        for (int64_t i = 0; i < n; i += 32, p += 18) {
            const vf d = v_all(_cvtsh_ss(apus_load_u16_(p)));
            for (int j = 0; j < 16; j += LANES) {
                const __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 2 + j)));
                const __m256i low = _mm256_and_si256(q, _mm256_set1_epi32(15)), eight = _mm256_set1_epi32(8);
                v_store(y + i + j, (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(low, eight)) * d);
                v_store(y + i + j + 16, (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(q, 4), eight)) * d);
            }
        }
        return;
    }
    if (t == APUS_F16) {
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            v_store(y + i, (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
        }
        (void)apus_row_to_f32(t, p + 2 * i, y + i, n - i);
        return;
    }
#endif
    (void)apus_row_to_f32(t, p, y, n);
}

/* Rows [first, first + n) of w [.., k] as pointers: into w, or into panel [n, k] where they are decoded. */
static void weight_rows(const apus_view *w, int64_t first, int64_t n, int64_t k, float *panel, const float **rows)
{
    const size_t bytes = apus_row_bytes(w->dtype, k);
    for (int64_t j = 0; j < n; j++) {
        const uint8_t *p = (const uint8_t *)w->data + (size_t)(first + j) * bytes;
        if (w->dtype == APUS_F32) {
            rows[j] = (const float *)(const void *)p;
        } else {
            decode(w->dtype, p, panel + j * k, k);
            rows[j] = panel + j * k;
        }
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
