/*
 * Backend cpu with activations in int8: products of weights in Q8_0 and Q4_0 against backend ref with x rounded as integers.h
 * says; what the rounding makes of edge values; and which bits depend on nothing but their row.
 */
#include "bench.h"

#include <float.h>

static void *int8_cpu[ISAS], *int8_one[ISAS]; /* per instruction set: three threads, and one */

static int setup(void **state)
{
    (void)state;
    const int bad = bench_open();
    for (int i = 0; i < bench_isas; i++) {
        int8_cpu[i] = bench_instance("cpu", bench_names[i], 3, "float32", "int8");
        int8_one[i] = bench_instance("cpu", bench_names[i], 1, "bfloat16", "int8"); /* dtype is for other weights */
    }
    return bad;
}

static int teardown(void **state)
{
    for (int i = 0; i < bench_isas; i++) {
        bench_backend("cpu")->close(int8_cpu[i]);
        bench_backend("cpu")->close(int8_one[i]);
    }
    return bench_close(state);
}

/* One block of x as integers.h rounds it, in place. */
static void round_block(double *x)
{
    float most = 0;
    for (int i = 0; i < 32; i++)
        most = fmaxf(most, fabsf((float)x[i]));
    const float d = most / 127.0f, inverse = d >= FLT_MIN ? 1.0f / d : 0.0f;
    for (int i = 0; i < 32; i++)
        x[i] = (double)rintf((float)x[i] * inverse) * (double)d;
}

/* The same of a whole input. owner: caller has the values as they were */
static double *round_input(call *c)
{
    const size_t n = (size_t)operand_count(&c->in[0]);
    double *kept = c->in[0].real;
    c->in[0].real = malloc(n * sizeof *kept + 1);
    memcpy(c->in[0].real, kept, n * sizeof *kept);
    for (size_t i = 0; i < n; i += 32)
        round_block(c->in[0].real + i);
    return kept;
}

/* The call against ref, of x rounded; and x as it is gives what x rounded gave. */
static void compare_int8(call *c, double tolerance)
{
    double *kept = round_input(c), *rounded = c->in[0].real;
    compare_on(c, tolerance, int8_cpu, int8_one);
    for (int isa = 0; isa < bench_isas; isa++) {
        c->in[0].real = rounded;
        float *want = run_cpu(c, int8_cpu[isa], 0);
        c->in[0].real = kept;
        float *got = run_cpu(c, int8_cpu[isa], 0);
        for (int64_t i = 0; i < operand_count(&c->out[0]); i++)
            if (!(fabsf(got[i] - want[i]) <= 1e-5f * (1.0f + fabsf(want[i]))))
                fail_msg("%s, %s: element %lld is %.9g, and %.9g of x rounded", c->op, bench_names[isa], (long long)i, (double)got[i],
                         (double)want[i]);
        free(got);
        free(want);
    }
    free(rounded);
}

static const apus_dtype types[] = {APUS_Q8_0, APUS_Q4_0};

static void test_products(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 32},   {1, 33, 64},   {2, 64, 96},   {3, 47, 576},  {4, 5, 32},  {4, 97, 160},
                                        {5, 100, 64}, {6, 32, 32},   {7, 65, 544},  {8, 48, 128},  {9, 49, 32}, {16, 16, 64},
                                        {17, 33, 96}, {40, 301, 64}, {70, 95, 576}, {300, 61, 32}, {0, 5, 32},  {64, 7, 1056}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        for (int what = 0; what < 8; what++) {
            call c = linear_call(types[what >> 2], m, n, k, what & 1, what >> 1 & 1);
            compare_int8(&c, 3e-6);
            call_free(&c);
        }
    }
}

/* A row has the same bits alone and in company, with any threads. */
static void test_rows(void **state)
{
    (void)state;
    enum { M = 300, N = 149, K = 576 };
    for (int t = 0; t < 2; t++) {
        call c = linear_call(types[t], M, N, K, 0, 0);
        for (int isa = 0; isa < bench_isas; isa++) {
            float *whole = run_cpu(&c, int8_cpu[isa], 0);
            same_alone(&c, whole, int8_cpu[isa], int8_one[isa], bench_names[isa]);
            free(whole);
        }
        call_free(&c);
    }
}

/* A packed W gives the bits of W as it was, and an embedding's rows those of W in a file. */
static void test_packed(void **state)
{
    (void)state;
    static const int64_t ns[] = {1, 15, 16, 33, 49, 150}, ms[] = {1, 2, 3, 5, 6, 7, 8, 9, 140};
    for (int e = 0; e < 2 * 6 * 9; e++) {
        const int64_t n = ns[e / 2 % 6], k = 32 * (1 + e % 5), m = ms[e / 12];
        weight_readers r = readers_of(types[e % 2], m, n, k);
        for (int isa = 0; isa < bench_isas; isa++) {
            same_packed(&r.linear, 1, int8_cpu[isa], bench_names[isa]);
            same_packed(&r.sum, 1, int8_one[isa], bench_names[isa]);
            same_packed(&r.rows, 0, int8_one[isa], bench_names[isa]);
        }
        readers_free(&r);
    }
}

/* Calls that share x give what each gives alone, whatever each W is stored in; and other weights what they give without int8. */
static void test_siblings(void **state)
{
    (void)state;
    static const apus_dtype stored[APUS_SIBLINGS_MAX] = {APUS_Q8_0, APUS_Q8_0, APUS_F16, APUS_Q4_0};
    enum { SIBLINGS = APUS_SIBLINGS_MAX, N = 70, K = 96 };
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    static const int64_t ms[] = {1, 3, 20};
    for (int i = 0; i < 3 * bench_isas; i++) {
        const int64_t m = ms[i % 3];
        void *cpu = int8_cpu[i / 3];
        float *x = malloc((size_t)(m * K) * 4), *y[SIBLINGS], *alone[SIBLINGS];
        call weights = call_of("linear", NULL, 0);
        apus_view in[SIBLINGS][2], out[SIBLINGS];
        apus_kernel_call calls[SIBLINGS];
        size_t bytes = 0;
        for (int64_t e = 0; e < m * K; e++)
            x[e] = (float)bench_random(-1, 1);
        for (int s = 0; s < SIBLINGS; s++) {
            y[s] = malloc((size_t)(m * N) * 4);
            alone[s] = malloc((size_t)(m * N) * 4);
            input_encoded(&weights, stored[s], N, K);
            in[s][0] = (apus_view){.data = x, .dtype = APUS_F32, .ndim = 2, .dims = {m, K}};
            in[s][1] = (apus_view){.data = weights.in[s].raw, .dtype = stored[s], .ndim = 2, .dims = {N, K}};
            out[s] = (apus_view){.data = alone[s], .dtype = APUS_F32, .ndim = 2, .dims = {m, N}};
            calls[s] = (apus_kernel_call){.in = in[s], .out = &out[s], .backend = cpu, .n_in = 2, .n_out = 1};
            const size_t its = kernel->scratch(&calls[s]);
            bytes = its > bytes ? its : bytes;
        }
        void *scratch = NULL;
        assert_int_equal(posix_memalign(&scratch, 64, bytes + 64), 0);
        for (int s = 0; s < SIBLINGS; s++) {
            calls[s].scratch = scratch;
            assert_int_equal(kernel->run(&calls[s], NULL), APUS_OK);
            out[s].data = y[s];
        }
        assert_int_equal(kernel->run_siblings(calls, SIBLINGS, NULL), APUS_OK);
        for (int s = 0; s < SIBLINGS; s++) {
            assert_memory_equal(y[s], alone[s], (size_t)(m * N) * 4);
            if (stored[s] != APUS_Q8_0 && stored[s] != APUS_Q4_0) {
                calls[s].backend = bench_cpu[i / 3];
                assert_int_equal(kernel->run(&calls[s], NULL), APUS_OK);
                assert_memory_equal(y[s], alone[s], (size_t)(m * N) * 4);
            }
            free(y[s]);
            free(alone[s]);
        }
        call_free(&weights);
        free(scratch);
        free(x);
    }
}

/* What a block of x becomes, seen through a W of ones on the diagonal; in the company of rows and in few.h. */
static void test_rounding(void **state)
{
    (void)state;
    enum { BLOCKS = 10, N = 32, K = 32 };
    static const struct {
        float x[4], y[4]; /* the rest of the block is zeros */
    } blocks[BLOCKS] = {
        {{0, 0, 0, 0}, {0, 0, 0, 0}},
        {{127, 0.5f, 1.5f, -2.5f}, {127, 0, 2, -2}}, /* ties to even */
        {{-127, 0.50001f, -0.5f, 126.6f}, {-127, 1, 0, 127}},
        {{1e-40f, -1e-42f, 0, 0}, {0, 0, 0, 0}}, /* no normal number */
        {{127 * FLT_MIN, FLT_MIN, 0, 0}, {127 * FLT_MIN, FLT_MIN, 0, 0}},
        {{1.27e38f, -1e36f, 1e30f, 0}, {1.27e38f, -1e36f, 0, 0}},
        {{3.4e38f, -3.4e38f, 0, 0}, {3.4e38f, -3.4e38f, 0, 0}},
        {{INFINITY, 1, 0, 0}, {NAN, NAN, NAN, NAN}},
        {{-INFINITY, NAN, 0, 0}, {NAN, NAN, NAN, NAN}},
        {{1, -NAN, 0, 0}, {NAN, NAN, NAN, NAN}},
    };
    uint8_t w[N * 34] = {0};
    for (int i = 0; i < N; i++) {
        const uint16_t one = apus_f32_to_f16(1.0f);
        memcpy(w + i * 34, &one, 2);
        w[i * 34 + 2 + i] = 1;
    }
    for (int isa = 0; isa < bench_isas; isa++) {
        for (int few = 0; few < 2; few++) {
            call c = call_of("linear", NULL, 0);
            input_real(&c, 0, 0, 2, (int64_t[]){BLOCKS, K});
            input_encoded(&c, APUS_Q8_0, N, K);
            memcpy(c.in[1].raw, w, sizeof w);
            output(&c, 2, (int64_t[]){BLOCKS, N});
            for (int b = 0; b < BLOCKS; b++)
                for (int i = 0; i < 4; i++)
                    c.in[0].real[b * K + i * 9] = (double)blocks[b].x[i];
            call one = c;
            one.in[0].dims[0] = one.out[0].dims[0] = 1;
            for (int b = 0; b < BLOCKS; b++) {
                one.in[0].real = c.in[0].real + b * K;
                float *got = run_cpu(few ? &one : &c, int8_cpu[isa], 0);
                for (int i = 0; i < 4; i++) {
                    const float want = blocks[b].y[i], is = got[(few ? 0 : b * N) + i * 9];
                    if (!(isnan(want) ? isnan(is) : fabsf(is - want) <= 2e-7f * fabsf(want)))
                        fail_msg("%s: of block %d, %g becomes %g, expected %g", bench_names[isa], b, (double)blocks[b].x[i], (double)is,
                                 (double)want);
                }
                free(got);
            }
            call_free(&c);
        }
    }
}

/* The vocabulary head: as linear gives logits, with slopes or without. */
static void test_head(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 40, 32}, {9, 700, 64}, {70, 500, 96}, {300, 900, 64}};
    for (int s = 0; s < 8; s++) {
        const int64_t n = sizes[s / 2][0], v = sizes[s / 2][1], h = sizes[s / 2][2];
        call c = call_of("token_logprob", (double[]){0.7, 4.0}, 2);
        input_real(&c, -1, 1, 2, (int64_t[]){n, h});
        input_encoded(&c, types[s % 2], v, h);
        input_index(&c, v, 1, &n);
        output(&c, 1, &n);
        output(&c, 1, &n);
        output(&c, 2, (int64_t[]){n, h});
        c.skip = 4;
        compare_int8(&c, 3e-6);
        c.skip = 0;
        for (int isa = 0; isa < bench_isas; isa++) {
            call plain = c;
            plain.skip = 4;
            float *with = run_cpu(&c, int8_cpu[isa], 0), *without = run_cpu(&plain, int8_one[isa], 0);
            assert_memory_equal(with, without, (size_t)n * sizeof *with);
            call one = plain;
            one.in[0].real += (n - 1) * h;
            one.in[2].raw = (int32_t *)c.in[2].raw + n - 1;
            one.in[0].dims[0] = one.in[2].dims[0] = one.out[0].dims[0] = one.out[1].dims[0] = one.out[2].dims[0] = 1;
            float *got = run_cpu(&one, int8_one[isa], 0);
            assert_memory_equal(got, with + n - 1, 4);
            free(got);
            free(with);
            free(without);
        }
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products), cmocka_unit_test(test_rows),     cmocka_unit_test(test_packed),
        cmocka_unit_test(test_siblings), cmocka_unit_test(test_rounding), cmocka_unit_test(test_head),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
