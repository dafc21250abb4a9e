/*
 * Times the kernels of backend cpu at the shapes of SmolLM2-135M, one line each: milliseconds (best of several), GFLOP/s or
 * GB/s. Not built by default:
 *
 *   cc -O2 -D_GNU_SOURCE -Iabi -Icore tools/bench/kernels.c BUILD/libapus_core.a -o kernels -lyaml -ljansson -larchive \
 *      -lcrypto -lltdl -ldl -lm && ./kernels BUILD/plugins/apus_backend_cpu.so [threads] [part of a name, or all] [dtype] \
 *      [activations]
 */
#include "module/module.h"

#include <apus/blocks.h>
#include <apus/kernel.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const apus_kernels_ops *kernels;
static const apus_backend_ops *backend;
static void *cpu;
static const char *only;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static apus_view real(int64_t rows, int64_t columns)
{
    apus_view v = {.dtype = APUS_F32, .ndim = 2, .dims = {rows, columns}};
    float *p = backend->alloc(cpu, (size_t)(rows * columns) * 4 + 64);
    for (int64_t i = 0; i < rows * columns; i++)
        p[i] = (float)((i * 2654435761u >> 7 & 1023) - 511) * 1e-3f;
    v.data = p;
    return v;
}

static apus_view encoded(apus_dtype t, int64_t rows, int64_t columns)
{
    apus_view v = {.dtype = t, .ndim = 2, .dims = {rows, columns}};
    const size_t bytes = (size_t)rows * apus_row_bytes(t, columns);
    v.data = backend->alloc(cpu, bytes + 64);
    memset(v.data, 17, bytes); /* untouched pages would all be the same one, and cached */
    return v;
}

static apus_view ints(int64_t rows, int64_t columns, const int32_t *values)
{
    apus_view v = {.dtype = APUS_I32, .ndim = columns > 0 ? 2 : 1, .dims = {rows, columns}};
    const size_t n = (size_t)(rows * (columns > 0 ? columns : 1));
    int32_t *p = backend->alloc(cpu, n * 4 + 64);
    for (size_t i = 0; i < n; i++)
        p[i] = values != NULL ? values[i] : (int32_t)(i * 37 % 509);
    v.data = p;
    return v;
}

/* work: floating-point operations, or with unit "GB/s" bytes. */
static void bench(const char *label, const char *op, const apus_view *in, uint32_t n_in, const apus_view *out, uint32_t n_out, const double *attrs,
                  double work, const char *unit)
{
    if (only != NULL && strstr(label, only) == NULL)
        return;
    for (uint32_t k = 0; k < kernels->n_kernels; k++) {
        const apus_kernel *kernel = &kernels->kernels[k];
        if (kernel->then != NULL || strncmp(kernel->op + 5, op, strlen(op)) != 0 || strcmp(kernel->op + 5 + strlen(op), "/1") != 0)
            continue;
        apus_kernel_call c = {.in = in, .out = out, .attrs = attrs, .backend = cpu, .n_in = n_in, .n_out = n_out};
        const size_t bytes = kernel->scratch != NULL ? kernel->scratch(&c) : 0;
        c.scratch = backend->alloc(cpu, bytes + 64);
        apus_error err = {.message = ""};
        double best = 1e9;
        const double begin = now();
        for (int run = 0; run < 40 && (run < 5 || now() - begin < 0.8); run++) {
            const double t = now();
            if (kernel->run(&c, &err) != APUS_OK)
                printf("%s: %s\n", label, err.message);
            best = fmin(best, now() - t);
        }
        printf("%-28s %9.3f ms %8.1f %s  scratch %.1f MB\n", label, best * 1e3, work / best * 1e-9, unit, (double)bytes * 1e-6);
        backend->free(cpu, c.scratch, bytes + 64);
    }
}

static void bench_linear(const char *name, int64_t m, int64_t n, int64_t k, apus_dtype t)
{
    char label[64];
    const apus_view in[2] = {real(m, k), t == APUS_F32 ? real(n, k) : encoded(t, n, k)}, out = real(m, n);
    snprintf(label, sizeof label, "%s %lldx%lldx%lld", name, (long long)m, (long long)n, (long long)k);
    if (m <= 8)
        bench(label, "linear", in, 2, &out, 1, NULL, (double)n * (double)apus_row_bytes(t, k), "GB/s");
    else
        bench(label, "linear", in, 2, &out, 1, NULL, 2.0 * (double)m * (double)n * (double)k, "GFLOP/s");
    if (m <= 8 || t != APUS_F32)
        return;
    const apus_view dx[2] = {out, in[1]}, dw[2] = {out, in[0]};
    snprintf(label, sizeof label, "%s_dx %lldx%lldx%lld", name, (long long)m, (long long)n, (long long)k);
    bench(label, "linear_dx", dx, 2, &in[0], 1, NULL, 2.0 * (double)m * (double)n * (double)k, "GFLOP/s");
    snprintf(label, sizeof label, "%s_dw %lldx%lldx%lld", name, (long long)m, (long long)n, (long long)k);
    bench(label, "linear_dw", dw, 2, &in[1], 1, NULL, 2.0 * (double)m * (double)n * (double)k, "GFLOP/s");
}

static const apus_kernel *kernel_of(const char *op)
{
    for (uint32_t k = 0; k < kernels->n_kernels; k++)
        if (kernels->kernels[k].then == NULL && strcmp(kernels->kernels[k].op, op) == 0)
            return &kernels->kernels[k];
    return NULL;
}

/* As in a model: each call meets a weight that no cache holds. */
static void bench_cold(int64_t m, int64_t n, int64_t k)
{
    enum { WEIGHTS = 64 };
    static const char *const ops[] = {"apus.linear/1", "apus.linear_dx/1", "apus.linear_dw/1"};
    if (only != NULL && strstr("cold", only) == NULL)
        return;
    apus_view x = real(m, k), y = real(m, n), w[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++)
        w[i] = real(n, k);
    for (int op = 0; op < 3; op++) {
        const apus_kernel *kernel = kernel_of(ops[op]);
        double best = 1e9;
        void *scratch = NULL;
        for (int run = 0; run < 5; run++) {
            for (int i = 0; i < WEIGHTS; i++) {
                const double t = now();
                const apus_view in[2] = {op == 0 ? x : y, op == 2 ? x : w[i]}, out = op == 0 ? y : op == 1 ? x : w[i];
                apus_kernel_call c = {.in = in, .out = &out, .backend = cpu, .n_in = 2, .n_out = 1};
                if (scratch == NULL)
                    scratch = backend->alloc(cpu, kernel->scratch(&c) + 64);
                c.scratch = scratch;
                (void)kernel->run(&c, NULL);
                best = fmin(best, now() - t);
            }
        }
        printf("cold %-16s %lldx%lldx%lld %9.3f ms %8.1f GFLOP/s\n", ops[op], (long long)m, (long long)n, (long long)k, best * 1e3,
               2.0 * (double)m * (double)n * (double)k / best * 1e-9);
    }
}

/* Nine heads of 64 over three of keys, causal, one sequence; cached: over pages too, for one query and for all. */
static void bench_attention(int64_t t, int cached)
{
    enum { HEADS = 9, KV_HEADS = 3, DIM = 64, PAGE = 16, MOST = 4096 };
    const double attrs[7] = {HEADS, KV_HEADS, DIM, 0.125, 0, 0, PAGE}, product = (double)t * (double)(t + 1) * HEADS * DIM;
    const apus_view q = real(t, HEADS * DIM), k = real(t, KV_HEADS * DIM), v = real(t, KV_HEADS * DIM), y = real(t, HEADS * DIM);
    const apus_view dy = real(t, HEADS * DIM), dq = real(t, HEADS * DIM), dk = real(t, KV_HEADS * DIM), dv = real(t, KV_HEADS * DIM);
    const apus_view lse = real(t, HEADS), segment = ints(1, 4, (int32_t[]){0, (int32_t)t, -1, 0});
    int32_t table[4 + MOST / PAGE] = {0, 1, (int32_t)t, 0};
    char label[64];
    for (int32_t i = 0; i < t / PAGE; i++)
        table[4 + i] = i;
    snprintf(label, sizeof label, "attention %lld", (long long)t);
    bench(label, "attention", (apus_view[]){q, k, v, segment}, 4, (apus_view[]){y, lse}, 2, attrs, 2 * product, "GFLOP/s");
    snprintf(label, sizeof label, "attention_grad %lld", (long long)t);
    bench(label, "attention_grad", (apus_view[]){dy, q, k, v, y, lse, segment}, 7, (apus_view[]){dq, dk, dv}, 3, attrs, 5 * product, "GFLOP/s");
    if (!cached)
        return;
    const apus_view one = real(1, HEADS * DIM), out = real(1, HEADS * DIM);
    snprintf(label, sizeof label, "attention_cached 1 of %lld", (long long)t);
    bench(label, "attention_cached", (apus_view[]){one, k, v, ints(1, 4 + t / PAGE, table)}, 4, &out, 1, attrs, 8.0 * (double)t * KV_HEADS * DIM,
          "GB/s");
    table[1] = (int32_t)t;
    snprintf(label, sizeof label, "attention_cached %lld", (long long)t);
    bench(label, "attention_cached", (apus_view[]){q, k, v, ints(1, 4 + t / PAGE, table)}, 4, &y, 1, attrs, 2 * product, "GFLOP/s");
}

/* As in a model that generates: each layer's cache lies in memory. */
static void bench_cached_cold(int64_t t, int64_t sequences)
{
    enum { LAYERS = 16, HEADS = 9, KV_HEADS = 3, DIM = 64, PAGE = 16 };
    const double attrs[7] = {HEADS, KV_HEADS, DIM, 0.125, 0, 0, PAGE};
    const int64_t pages = t / PAGE, columns = 4 + pages;
    int32_t *table = calloc((size_t)(sequences * columns), sizeof *table);
    char label[64];
    snprintf(label, sizeof label, "attention_cached %lld x 1 of %lld, cold", (long long)sequences, (long long)t);
    if (table == NULL || (only != NULL && strstr(label, only) == NULL)) {
        free(table);
        return;
    }
    for (int32_t i = 0; i < sequences; i++) {
        memcpy(table + i * columns, (int32_t[]){i, 1, (int32_t)t, 0}, 4 * sizeof *table);
        for (int32_t p = 0; p < pages; p++)
            table[i * columns + 4 + p] = i + (int32_t)sequences * p; /* as they grow beside each other */
    }
    apus_view k[LAYERS], v[LAYERS];
    for (int i = 0; i < LAYERS; i++) {
        k[i] = real(sequences * t, KV_HEADS * DIM);
        v[i] = real(sequences * t, KV_HEADS * DIM);
    }
    const apus_view q = real(sequences, HEADS * DIM), y = real(sequences, HEADS * DIM), rows = ints(sequences, columns, table);
    const apus_kernel *kernel = kernel_of("apus.attention_cached/1");
    void *scratch = NULL;
    double best = 1e9;
    for (int run = 0; run < 5; run++) {
        const double begin = now();
        for (int i = 0; i < LAYERS; i++) {
            const apus_view in[4] = {q, k[i], v[i], rows};
            apus_kernel_call c = {.in = in, .out = &y, .attrs = attrs, .backend = cpu, .n_in = 4, .n_out = 1};
            if (scratch == NULL)
                scratch = backend->alloc(cpu, kernel->scratch(&c) + 64);
            c.scratch = scratch;
            (void)kernel->run(&c, NULL);
        }
        best = fmin(best, (now() - begin) / LAYERS);
    }
    printf("%-38s %9.3f ms %8.1f GB/s\n", label, best * 1e3, 8.0 * (double)(sequences * t) * KV_HEADS * DIM / best * 1e-9);
    for (int i = 0; i < LAYERS; i++) {
        backend->free(cpu, k[i].data, (size_t)(sequences * t * KV_HEADS * DIM) * 4 + 64);
        backend->free(cpu, v[i].data, (size_t)(sequences * t * KV_HEADS * DIM) * 4 + 64);
    }
    free(table);
}

int main(int argc, char **argv)
{
    apus_error err = {.message = ""};
    if (argc < 2 || apus_module_load_file(argv[1], &err) != APUS_OK) {
        fprintf(stderr, "kernels: %s\n", argc < 2 ? "give the plugin's file" : err.message);
        return 2;
    }
    only = argc > 3 && strcmp(argv[3], "all") != 0 ? argv[3] : NULL;
    backend = apus_component_find("backend", "cpu", &err)->ops;
    kernels = apus_component_find("kernels", "cpu", &err)->ops;
    const apus_node_api *node = apus_host_table()->node;
    apus_node *params = node->make_map();
    (void)node->set(params, "threads", node->make_int(argc > 2 ? atoi(argv[2]) : 0));
    (void)node->set(params, "dtype", node->make_string(argc > 4 ? argv[4] : "float32", (size_t)-1));
    (void)node->set(params, "activations", node->make_string(argc > 5 ? argv[5] : "float", (size_t)-1));
    if (backend->open(apus_host_table(), params, &cpu, &err) != APUS_OK) {
        fprintf(stderr, "kernels: %s\n", err.message);
        return 1;
    }
    printf("%s\n", backend->describe(cpu));
    enum { T = 512, H = 576, KV = 192, FFN = 1536, V = 49152 };
    bench_linear("q", T, H, H, APUS_F32);
    bench_linear("k", T, KV, H, APUS_F32);
    bench_linear("up", T, FFN, H, APUS_F32);
    bench_linear("down", T, H, FFN, APUS_F32);
    bench_cold(1, FFN, H);
    bench_cold(1, H, FFN);
    bench_cold(1, H, H);
    bench_cold(1, KV, H);
    bench_cold(T, FFN, H);
    bench_cold(T, H, FFN);
    bench_cold(T, H, H);
    bench_cold(T, KV, H);
    bench_linear("lora_a", T, 8, H, APUS_F32);
    bench_linear("lora_b", T, FFN, 8, APUS_F32);
    bench_linear("q8_0", T, FFN, H, APUS_Q8_0);
    bench_linear("q8_0", T, H, FFN, APUS_Q8_0);
    bench_linear("q4_0", T, FFN, H, APUS_Q4_0);
    bench_linear("gemv", 16, V, H, APUS_F32);
    for (int64_t m = 1; m <= 8; m *= 2)
        bench_linear("gemv", m, V, H, APUS_F32);
    bench_linear("gemv_up", 1, FFN, H, APUS_F32);
    bench_linear("gemv_f16", 1, V, H, APUS_F16);
    bench_linear("gemv_bf16", 1, V, H, APUS_BF16);
    bench_linear("gemv_q8_0", 1, V, H, APUS_Q8_0);
    bench_linear("gemv_q4_0", 1, V, H, APUS_Q4_0);
    bench_linear("gemv_q8_0", 4, V, H, APUS_Q8_0);
    bench_linear("gemv_q4_0", 4, V, H, APUS_Q4_0);
    bench_linear("gemv_q4_0", 8, V, H, APUS_Q4_0);
    bench_linear("gemv_q4_1", 1, V, H, APUS_Q4_1);
    bench_linear("gemv_q5_0", 1, V, H, APUS_Q5_0);
    bench_linear("gemv_iq4_nl", 1, V, H, APUS_IQ4_NL);
    bench_linear("gemv_q2_k", 1, V, 512, APUS_Q2_K);
    bench_linear("gemv_q3_k", 1, V, 512, APUS_Q3_K);
    bench_linear("gemv_q4_k", 1, V, 512, APUS_Q4_K);
    bench_linear("gemv_q5_k", 1, V, 512, APUS_Q5_K);
    bench_linear("gemv_q6_k", 1, V, 512, APUS_Q6_K);
    bench_linear("q4_1", T, FFN, H, APUS_Q4_1);

    const double norm[3] = {1e-5, 0, 0}, rope[8] = {64, 64, 1, 0, 0, 0, 1, 10000}, head[2] = {1, 0};
    const apus_view x = real(T, H), w = real(1, H), y = real(T, H), q = real(T, H);
    const apus_view freqs = real(1, 32), positions = ints(T, 0, NULL);
    bench("rms_norm", "rms_norm", (apus_view[]){x, w}, 2, &y, 1, norm, 8.0 * T * H, "GB/s");
    bench("rms_norm_grad", "rms_norm_grad", (apus_view[]){y, x, w}, 3, (apus_view[]){real(T, H), w}, 2, norm, 12.0 * T * H, "GB/s");
    bench("rope q", "rope", (apus_view[]){q, positions, positions, freqs}, 4, &y, 1, rope, 8.0 * T * H, "GB/s");
    apus_view flat[3] = {real(T, FFN), real(T, FFN), real(T, FFN)}, more[2] = {real(T, FFN), real(T, FFN)};
    for (int i = 0; i < 3; i++) {
        flat[i].ndim = 1;
        flat[i].dims[0] *= flat[i].dims[1];
    }
    for (int i = 0; i < 2; i++) {
        more[i].ndim = 1;
        more[i].dims[0] *= more[i].dims[1];
    }
    bench("swiglu (one thread)", "swiglu", flat, 2, more, 1, NULL, 12.0 * T * FFN, "GB/s");
    bench("swiglu_grad (one thread)", "swiglu_grad", flat, 3, more, 2, NULL, 20.0 * T * FFN, "GB/s");
    for (int64_t t = 128; t <= 4096; t *= 2)
        bench_attention(t, t == T || t == 4096);
    bench_cached_cold(4096, 1);
    bench_cached_cold(512, 8);
    const apus_view vocabulary = real(V, H), targets = ints(T, 0, NULL), logp = real(1, T);
    bench("token_logprob", "token_logprob", (apus_view[]){x, vocabulary, targets}, 3, (apus_view[]){logp, real(1, T)}, 2, head, 2.0 * T * H * V,
          "GFLOP/s");
    bench("token_logprob_grad", "token_logprob_grad", (apus_view[]){logp, x, vocabulary, targets, real(1, T)}, 5, (apus_view[]){y, real(V, H)}, 2,
          head, 6.0 * T * H * V, "GFLOP/s");
    backend->close(cpu);
    return 0;
}
