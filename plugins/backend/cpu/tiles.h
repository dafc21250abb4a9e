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

/* OpenBLAS's OpenMP build takes the calling thread's setting. */
static int blas_threads(const apus_kernel_call *call)
{
    const int threads = threads_of(call);
    if (omp_get_max_threads() != threads) {
        omp_set_num_threads(threads);
    }
    return threads;
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

/* A lone row x [k] by eight rows of W as they are stored, decoded in registers: acc holds what dots would have. */
LANES_INLINE void stream_tile(apus_dtype t, const float *x, const uint8_t *w, size_t bytes, int64_t k, vf *acc)
{
    for (int r = 0; r < DOT_MAX; r++) {
        acc[r] = v_all(0.0f);
    }
#if defined(__AVX2__)
    const size_t block = t == APUS_Q8_0 ? 34 : t == APUS_Q4_0 ? 18 : 64;
    for (int64_t i = 0; i < k; i += 32, w += block) {
        for (int r = 0; r < DOT_MAX; r++) {
            const uint8_t *p = w + (size_t)r * bytes;
            vf d = v_all(0.0f);
            __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            __builtin_prefetch(p + DOT_MAX * bytes);
            if (t == APUS_Q8_0 || t == APUS_Q4_0) {
                d = v_all(_cvtsh_ss(apus_load_u16_(p)));
            }
            for (int j = 0; j < 4; j++) {
                vf v;
                if (t == APUS_F16) {
                    v = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * j)));
                } else if (t == APUS_BF16) {
                    const __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * j)));
                    v = (vf)_mm256_slli_epi32(h, 16);
                } else if (t == APUS_Q8_0) {
                    v = (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 2 + 8 * j)))) * d;
                } else {
                    if (j < 2) {
                        low[j] = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 2 + 8 * j)));
                    }
                    const __m256i q = j < 2 ? _mm256_and_si256(low[j], _mm256_set1_epi32(15)) : _mm256_srli_epi32(low[j - 2], 4);
                    v = (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(q, _mm256_set1_epi32(8))) * d;
                }
                acc[r] = v_fma(v_load(x + i + 8 * j), v, acc[r]);
            }
        }
    }
#else
    (void)t, (void)x, (void)w, (void)bytes, (void)k;
#endif
}

LANES_INLINE void stream_rows(apus_dtype t, const float *x, const uint8_t *w, size_t bytes, int64_t n, int64_t k, float *y, const epilogue *e,
                              int64_t j0)
{
    for (int64_t j = 0; j < n; j += DOT_MAX) {
        vf acc[DOT_MAX];
        stream_tile(t, x, w + (size_t)j * bytes, bytes, k, acc);
        dot_store(1, DOT_MAX, acc, y + j, 0, e, 0, j0 + j);
    }
}

/* y[n] of a lone row by n rows of an encoded W, n divisible by 8. 0: not for this encoding or width (nothing is done). */
static int stream(apus_dtype t, const float *x, const uint8_t *w, size_t bytes, int64_t n, int64_t k, float *y, const epilogue *e, int64_t j0)
{
#if defined(__AVX2__)
    if (k % 32 == 0) {
        switch (t) {
        case APUS_F16:
            stream_rows(APUS_F16, x, w, bytes, n, k, y, e, j0);
            return 1;
        case APUS_BF16:
            stream_rows(APUS_BF16, x, w, bytes, n, k, y, e, j0);
            return 1;
        case APUS_Q8_0:
            stream_rows(APUS_Q8_0, x, w, bytes, n, k, y, e, j0);
            return 1;
        case APUS_Q4_0:
            stream_rows(APUS_Q4_0, x, w, bytes, n, k, y, e, j0);
            return 1;
        default:
            break;
        }
    }
#endif
    (void)t, (void)x, (void)w, (void)bytes, (void)n, (void)k, (void)y, (void)e, (void)j0;
    return 0;
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
