/*
 * What this machine can do at most, as one JSON object: GFLOP/s of multiply-adds in float32 and in bfloat16 (0: the processor
 * has no such instruction), GB/s read from memory, and GFLOP/s of OpenBLAS's sgemm over the products of one training step of
 * SmolLM2-135M (forward, gradient of the input, gradient of the weight; 512 tokens). bench.py divides by these.
 *
 *   bench_peak [threads]
 */
#include <cblas.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile float sink; /* what was computed must have been wanted */

/* ---------------------------------------------------------------- arithmetic */

enum { CHAINS = 12, TURNS = 1 << 21 }; /* chains: more than latency times ports, fewer than registers */

typedef float (*spin)(void);

#if defined(__x86_64__)
#include <immintrin.h>

#define SPIN(name, isa, vector, start, step, lane0)                                                                                                  \
    __attribute__((target(isa))) static float name(void)                                                                                             \
    {                                                                                                                                                \
        vector a[CHAINS];                                                                                                                            \
        for (int i = 0; i < CHAINS; i++)                                                                                                             \
            a[i] = start(1e-3f * (float)i);                                                                                                          \
        for (int turn = 0; turn < TURNS; turn++)                                                                                                     \
            for (int i = 0; i < CHAINS; i++)                                                                                                         \
                a[i] = step;                                                                                                                         \
        for (int i = 1; i < CHAINS; i++)                                                                                                             \
            a[0] = a[0] + a[i];                                                                                                                      \
        return lane0(a[0]);                                                                                                                          \
    }

SPIN(fma_256, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps(a[i], _mm256_set1_ps(0.5f), _mm256_set1_ps(1e-3f)), _mm256_cvtss_f32)
SPIN(fma_512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps(a[i], _mm512_set1_ps(0.5f), _mm512_set1_ps(1e-3f)), _mm512_cvtss_f32)
SPIN(dot_bf16, "avx512f,avx512bf16", __m512, _mm512_set1_ps,
     _mm512_dpbf16_ps(a[i], (__m512bh)_mm512_set1_epi16(0x3a83), (__m512bh)_mm512_set1_epi16(0x3a83)), _mm512_cvtss_f32)
#endif

/* GFLOP/s of `flops` a step on every thread, the best of some. */
static double rate(spin f, double flops)
{
    double best = 0;
    for (int run = 0; run < 8; run++) {
        const double start = now();
#pragma omp parallel
        sink = f();
        const double g = flops * CHAINS * TURNS * omp_get_max_threads() / (now() - start) * 1e-9;
        best = g > best ? g : best;
    }
    return best;
}

static void arithmetic(double *f32, double *bf16)
{
    *f32 = *bf16 = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        *f32 = rate(fma_256, 16);
    if (__builtin_cpu_supports("avx512f")) {
        const double wide = rate(fma_512, 32);
        *f32 = wide > *f32 ? wide : *f32;
    }
    if (__builtin_cpu_supports("avx512bf16"))
        *bf16 = rate(dot_bf16, 64);
#endif
}

/* ---------------------------------------------------------------- memory */

static uint64_t sum_words(const uint64_t *p, size_t n)
{
    uint64_t s[8] = {0};
    for (size_t i = 0; i < n; i += 8) {
        __builtin_prefetch(p + i + 256);
        for (size_t k = 0; k < 8; k++)
            s[k] += p[i + k];
    }
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

/* GB/s read from memory that no cache holds. */
static double reading(void)
{
    const size_t bytes = (size_t)1 << 30, n = bytes / sizeof(uint64_t);
    uint64_t *p = aligned_alloc(1 << 21, bytes);
    if (p == NULL)
        return 0;
    memset(p, 1, bytes);
    double best = 0;
    for (int run = 0; run < 8; run++) {
        const double start = now();
#pragma omp parallel
        {
            const size_t k = (size_t)omp_get_thread_num(), share = n / (size_t)omp_get_num_threads() / 8 * 8;
            sink = (float)sum_words(p + k * share, share);
        }
        const double g = (double)bytes / (now() - start) * 1e-9;
        best = g > best ? g : best;
    }
    free(p);
    return best;
}

/* ---------------------------------------------------------------- sgemm */

/* y[m,n] = x[m,k] w[n,k]^T and its two gradients; seconds, the best of some. */
static double product(int m, int n, int k, float *x, float *w, float *y)
{
    double best = 1e9;
    for (int run = 0; run < 6; run++) {
        const double start = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x, k, w, k, 0, y, n);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1, y, n, w, k, 0, x, k);
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1e-9f, y, n, x, k, 0, w, k);
        const double t = now() - start;
        best = t < best ? t : best;
    }
    return best;
}

static double sgemm(void)
{
    /* per layer: q and o, k and v, gate and up, down; the head once */
    static const struct {
        int n, k, count;
    } shapes[] = {{576, 576, 60}, {192, 576, 60}, {1536, 576, 60}, {576, 1536, 30}, {49152, 576, 1}};
    enum { T = 512, LARGEST = 49152 * 576 };
    float *x = calloc(T * 1536, sizeof *x), *w = calloc(LARGEST, sizeof *w), *y = calloc((size_t)T * 49152, sizeof *y);
    double flops = 0, seconds = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && x != NULL && w != NULL && y != NULL; i++) {
        flops += 6.0 * T * shapes[i].n * shapes[i].k * shapes[i].count;
        seconds += product(T, shapes[i].n, shapes[i].k, x, w, y) * shapes[i].count;
    }
    free(x);
    free(w);
    free(y);
    return seconds > 0 ? flops / seconds * 1e-9 : 0;
}

int main(int argc, char **argv)
{
    double f32, bf16;
    if (argc > 1)
        omp_set_num_threads(atoi(argv[1]));
    arithmetic(&f32, &bf16);
    printf("{\"threads\": %d, \"float32\": %.1f, \"bfloat16\": %.1f, \"read\": %.2f, \"sgemm\": %.1f}\n", omp_get_max_threads(), f32, bf16, reading(),
           sgemm());
    return 0;
}
