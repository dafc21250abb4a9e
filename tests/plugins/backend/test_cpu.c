/*
 * Backend cpu: its kernels but those of attention and of the vocabulary head (test_attention.c, test_head.c), for each instruction set of
 * this machine, against backend ref over sizes with and without tails; the accuracy of its functions in units in the last place; and its
 * promises on bits: which results depend on neither range, row, threads nor encoding.
 */
#include "bench.h"
#include "rounding.h"

#include <apus/blocks.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* ---------------------------------------------------------------- elementwise */

typedef struct each {
    const char *op;
    int n_in, n_out, n_attrs, positive;
    double attrs[2];
} each;

static const each elementwise[] = {
    {"add", 2, 1, 0, 0, {0}},         {"sub", 2, 1, 0, 0, {0}},         {"mul", 2, 1, 0, 0, {0}},           {"div", 2, 1, 0, 1, {0}},
    {"maximum", 2, 1, 0, 0, {0}},     {"minimum", 2, 1, 0, 0, {0}},     {"greater", 2, 1, 0, 0, {0}},       {"where", 3, 1, 0, 0, {0}},
    {"affine", 1, 1, 2, 0, {0.3, 7}}, {"exp", 1, 1, 0, 0, {0}},         {"log", 1, 1, 0, 1, {0}},           {"log1p", 1, 1, 0, 1, {0}},
    {"expm1", 1, 1, 0, 0, {0}},       {"sqrt", 1, 1, 0, 1, {0}},        {"abs", 1, 1, 0, 0, {0}},           {"square", 1, 1, 0, 0, {0}},
    {"tanh", 1, 1, 0, 0, {0}},        {"sigmoid", 1, 1, 0, 0, {0}},     {"softplus", 1, 1, 0, 0, {0}},      {"log_sigmoid", 1, 1, 0, 0, {0}},
    {"relu", 1, 1, 0, 0, {0}},        {"silu", 1, 1, 0, 0, {0}},        {"sign", 1, 1, 0, 0, {0}},          {"gelu", 1, 1, 1, 0, {0}},
    {"gelu", 1, 1, 1, 0, {1}},        {"gelu_grad", 2, 1, 1, 0, {0}},   {"gelu_grad", 2, 1, 1, 0, {1}},     {"silu_grad", 2, 1, 0, 0, {0}},
    {"swiglu", 2, 1, 0, 0, {0}},      {"swiglu_grad", 3, 2, 0, 0, {0}}, {"stop_gradient", 1, 1, 0, 0, {0}}, {"fill", 2, 1, 0, 0, {0}},
};

static void test_elementwise(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 5, 8, 13, 64, 1003};
    for (size_t e = 0; e < sizeof elementwise / sizeof elementwise[0]; e++) {
        const each *op = &elementwise[e];
        const int binary = op->n_in > 1 && op->n_out == 1 && strcmp(op->op, "fill") != 0;
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            for (int one = -1; one < (binary ? op->n_in : 0); one++) { /* which input has one element */
                call c = call_of(op->op, op->attrs, op->n_attrs);
                for (int k = 0; k < op->n_in; k++) {
                    const int single = k == one || (k == 0 && strcmp(op->op, "fill") == 0);
                    input_real(&c, op->positive ? 0.1 : -3.0, 3.0, 1, (int64_t[]){single ? 1 : sizes[s]});
                }
                for (int k = 0; k < op->n_out; k++)
                    output(&c, 1, (int64_t[]){sizes[s]});
                compare(&c, 2e-6);
                if (op->n_out == 2) {
                    c.skip = 1;
                    compare(&c, 2e-6);
                }
                call_free(&c);
            }
        }
    }
}

/* An element's bits depend on neither where the range begins nor how long it is; outputs may be an input's memory. */
static void test_ranges(void **state)
{
    (void)state;
    enum { N = 203 };
    for (size_t e = 0; e < sizeof elementwise / sizeof elementwise[0]; e++) {
        const each *op = &elementwise[e];
        if (strcmp(op->op, "fill") == 0)
            continue;
        for (int isa = 0; isa < bench_isas; isa++) {
            float x[3][N], whole[2][N], piece[2][N], saved[N];
            const apus_kernel *kernel = bench_kernel("cpu", op->op, NULL);
            for (int k = 0; k < 3; k++)
                for (int i = 0; i < N; i++)
                    x[k][i] = (float)bench_random(op->positive ? 0.1 : -4.0, 4.0);
            for (int pass = 0; pass < 2; pass++) {
                for (int begin = 0, n; begin < N; begin += n) {
                    n = pass == 0 ? N : begin % 7 + 1;
                    n = n < N - begin ? n : N - begin;
                    apus_view in[3], out[2];
                    for (int k = 0; k < 3; k++)
                        in[k] = (apus_view){.data = x[k] + begin, .dtype = APUS_F32, .ndim = 1, .dims = {n}};
                    for (int k = 0; k < 2; k++)
                        out[k] = (apus_view){.data = (pass == 0 ? whole[k] : piece[k]) + begin, .dtype = APUS_F32, .ndim = 1, .dims = {n}};
                    if (n == 1) /* a lone element may not be told from a broadcast one, nor need it be */
                        out[0].dims[0] = 1;
                    const apus_kernel_call c = {.in = in,
                                                .out = out,
                                                .attrs = op->attrs,
                                                .backend = bench_cpu[isa],
                                                .n_in = (uint32_t)op->n_in,
                                                .n_out = (uint32_t)op->n_out};
                    assert_int_equal(kernel->run(&c, NULL), APUS_OK);
                }
            }
            for (int k = 0; k < op->n_out; k++)
                if (memcmp(whole[k], piece[k], sizeof whole[k]) != 0)
                    fail_msg("%s: bits depend on the range", op->op);
            memcpy(saved, x[0], sizeof saved);
            if (op->n_out == 1) {
                apus_view in[3], out = {.data = x[0], .dtype = APUS_F32, .ndim = 1, .dims = {N}};
                for (int k = 0; k < 3; k++)
                    in[k] = (apus_view){.data = x[k], .dtype = APUS_F32, .ndim = 1, .dims = {N}};
                const apus_kernel_call c = {
                    .in = in, .out = &out, .attrs = op->attrs, .backend = bench_cpu[isa], .n_in = (uint32_t)op->n_in, .n_out = 1};
                assert_int_equal(kernel->run(&c, NULL), APUS_OK);
                assert_memory_equal(x[0], whole[0], sizeof saved);
            }
        }
    }
}

static double exact(const char *op, double x)
{
    return strcmp(op, "exp") == 0           ? exp(x)
           : strcmp(op, "expm1") == 0       ? expm1(x)
           : strcmp(op, "log") == 0         ? log(x)
           : strcmp(op, "log1p") == 0       ? log1p(x)
           : strcmp(op, "tanh") == 0        ? tanh(x)
           : strcmp(op, "sigmoid") == 0     ? 1.0 / (1.0 + exp(-x))
           : strcmp(op, "softplus") == 0    ? (x > 0 ? x : 0.0) + log1p(exp(-fabs(x)))
           : strcmp(op, "log_sigmoid") == 0 ? (x < 0 ? x : 0.0) - log1p(exp(-fabs(x)))
           : strcmp(op, "silu") == 0        ? x / (1.0 + exp(-x))
                                            : sqrt(x);
}

/* Over floats of every exponent, against libm in double. */
static void test_accuracy(void **state)
{
    (void)state;
    static const char *const ops[] = {"exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "log_sigmoid", "silu", "sqrt"};
    enum { N = 1 << 18 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (size_t o = 0; o < sizeof ops / sizeof ops[0]; o++) {
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t bits = i << 14 | (i * 2654435761u >> 18);
            memcpy(&x[i], &bits, 4);
        }
        for (int isa = 0; isa < bench_isas; isa++) {
            apus_view in = {.data = x, .dtype = APUS_F32, .ndim = 1, .dims = {N}}, out = {.data = y, .dtype = APUS_F32, .ndim = 1, .dims = {N}};
            const apus_kernel_call c = {.in = &in, .out = &out, .backend = bench_cpu[isa], .n_in = 1, .n_out = 1};
            assert_int_equal(bench_kernel("cpu", ops[o], NULL)->run(&c, NULL), APUS_OK);
            double worst = 0, where = 0;
            for (int i = 0; i < N; i++) {
                const double want = exact(ops[o], (double)x[i]);
                const float nearest = (float)want;
                if (!isfinite(nearest) || !isfinite(x[i])) {
                    const int same = isnan(nearest) ? isnan(y[i]) : isinf(x[i]) && strcmp(ops[o], "silu") == 0 ? 1 : y[i] == nearest;
                    if (!same && !(isinf(nearest) && fabs(want) < 3.5e38))
                        fail_msg("%s(%g) is %g, expected %g", ops[o], (double)x[i], (double)y[i], want);
                    continue;
                }
                const double unit = fabs(want) < 1.2e-38 ? 0x1p-149 : ldexp(1.0, ilogb(want) - 23), error = fabs((double)y[i] - want) / unit;
                if (strcmp(ops[o], "silu") == 0 && x[i] < -87.0f)
                    continue; /* its sigmoid is subnormal */
                if (!(error <= worst)) {
                    worst = error;
                    where = (double)x[i];
                }
            }
            print_message("%-12s %-9s %.2f ulp at %g\n", ops[o], bench_names[isa], worst, where);
            if (!(worst <= 4.0))
                fail_msg("%s is off by %g ulp at %g", ops[o], worst, where);
        }
    }
    free(x);
    free(y);
}

/* ---------------------------------------------------------------- sums and indexing */

static void test_index(void **state)
{
    (void)state;
    static const int64_t rows[] = {1, 3, 17, 300}, widths[] = {1, 7, 64, 259};
    for (int r = 0; r < 4; r++) {
        for (int w = 0; w < 4; w++) {
            const int64_t shape[2] = {rows[r], widths[w]};
            static const char *const sums[] = {"sum", "sum_squares", "sum_rows"};
            for (int s = 0; s < 3; s++) {
                call c = call_of(sums[s], NULL, 0);
                input_real(&c, -1, 2, 2, shape);
                output(&c, 1, (int64_t[]){s == 2 ? widths[w] : 1});
                compare(&c, 1e-6);
                call_free(&c);
            }
            call c = call_of("add_row", NULL, 0);
            input_real(&c, -1, 1, 2, shape);
            input_real(&c, -1, 1, 1, shape + 1);
            output(&c, 2, shape);
            compare(&c, 1e-6);
            call_free(&c);

            c = call_of("scale_rows", NULL, 0);
            input_real(&c, -1, 1, 2, shape);
            input_real(&c, -1, 1, 1, shape);
            output(&c, 2, shape);
            compare(&c, 1e-6);
            call_free(&c);

            c = call_of("gather", NULL, 0);
            input_real(&c, -1, 1, 2, shape);
            input_index(&c, shape[0], 1, (int64_t[]){23});
            output(&c, 2, (int64_t[]){23, shape[1]});
            compare(&c, 0);
            call_free(&c);

            c = call_of("scatter_add", NULL, 0);
            input_real(&c, -1, 1, 2, (int64_t[]){90, shape[1]});
            input_index(&c, shape[0], 1, (int64_t[]){90});
            input_shape(&c, 2, shape);
            output(&c, 2, shape);
            compare(&c, 1e-6);
            call_free(&c);

            const int64_t begin = widths[w] / 3, count = widths[w] - begin;
            c = call_of("columns", (double[]){(double)begin, (double)count}, 2);
            input_real(&c, -1, 1, 2, shape);
            output(&c, 2, (int64_t[]){shape[0], count});
            compare(&c, 0);
            call_free(&c);

            c = call_of("columns_grad", (double[]){(double)begin}, 1);
            input_real(&c, -1, 1, 2, (int64_t[]){shape[0], count});
            input_shape(&c, 2, shape);
            output(&c, 2, shape);
            compare(&c, 1e-7);
            call_free(&c);

            c = call_of("kv_write", NULL, 0);
            input_real(&c, -1, 1, 2, (int64_t[]){400, shape[1]});
            input_real(&c, -1, 1, 2, shape);
            input_places(&c, 400, shape[0]);
            output(&c, 2, (int64_t[]){400, shape[1]});
            c.in_place = 1;
            compare(&c, 0);
            call_free(&c);

            c = call_of("dropout", (double[]){0.3, 77}, 2);
            input_real(&c, -1, 1, 2, shape);
            input_long(&c, shape[0], (int64_t)1 << 33);
            input_long(&c, 2, 1 << 20);
            output(&c, 2, shape);
            compare(&c, 1e-6);
            call_free(&c);
        }
    }
    call c = call_of("gather", NULL, 0); /* one dimension */
    input_real(&c, -1, 1, 1, (int64_t[]){9});
    input_index(&c, 9, 1, (int64_t[]){5});
    output(&c, 1, (int64_t[]){5});
    compare(&c, 0);
    call_free(&c);
    c = call_of("scatter_add", NULL, 0);
    input_real(&c, -1, 1, 1, (int64_t[]){50});
    input_index(&c, 9, 1, (int64_t[]){50});
    input_shape(&c, 1, (int64_t[]){9});
    output(&c, 1, (int64_t[]){9});
    compare(&c, 1e-6);
    call_free(&c);
}

static void test_bad_index(void **state)
{
    (void)state;
    for (int bad = 0; bad < 2; bad++) {
        for (int op = 0; op < 3; op++) {
            static const char *const ops[] = {"gather", "scatter_add", "embedding"};
            call c = call_of(ops[op], NULL, 0);
            if (op != 1)
                input_real(&c, -1, 1, 2, (int64_t[]){10, 8});
            else
                input_real(&c, -1, 1, 2, (int64_t[]){4, 8});
            input_index(&c, 10, 1, (int64_t[]){4});
            ((int32_t *)c.in[1].raw)[2] = bad ? 10 : -1;
            if (op == 1)
                input_shape(&c, 2, (int64_t[]){10, 8});
            output(&c, 2, (int64_t[]){op == 1 ? 10 : 4, 8});
            expect_refused(&c, "at place 2 is outside 0 … 9");
            call_free(&c);
        }
    }
}

/* ---------------------------------------------------------------- products */

static const apus_dtype encodings[] = {APUS_F32,  APUS_F16,    APUS_BF16, APUS_Q4_0, APUS_Q4_1, APUS_Q5_0, APUS_Q5_1,
                                       APUS_Q8_0, APUS_IQ4_NL, APUS_Q2_K, APUS_Q3_K, APUS_Q4_K, APUS_Q5_K, APUS_Q6_K};

static void test_linear(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 7, 5},     {2, 9, 64},     {3, 50, 33},    {4, 3, 8},     {5, 64, 72},
                                        {7, 97, 100}, {70, 61, 128}, {130, 200, 40}, {0, 5, 8},      {48, 16, 31},  {9, 49, 1},
                                        {16, 48, 32}, {17, 95, 66},  {8, 33, 257},   {400, 113, 63}, {1030, 9, 17}, {3, 1100, 2}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        for (int bias = 0; bias < 2; bias++) {
            for (int fused = 0; fused < 2; fused++) {
                call c = linear_call(APUS_F32, m, n, k, bias, fused);
                compare(&c, 2e-6);
                compare_brief(&c, 3, 2e-6);
                call_free(&c);
            }
        }
        for (int fused = 0; fused < 2; fused++) {
            call c = call_of("linear_dx", NULL, 0);
            c.then = fused ? "add" : NULL;
            input_real(&c, -1, 1, 2, (int64_t[]){m, n});
            input_real(&c, -1, 1, 2, (int64_t[]){n, k});
            if (fused)
                input_real(&c, -1, 1, 2, (int64_t[]){m, k});
            output(&c, 2, (int64_t[]){m, k});
            compare(&c, 2e-6);
            compare_brief(&c, 3, 2e-6);
            call_free(&c);
        }
        call c = call_of("linear_dw", NULL, 0);
        input_real(&c, -1, 1, 2, (int64_t[]){m, n});
        input_real(&c, -1, 1, 2, (int64_t[]){m, k});
        output(&c, 2, (int64_t[]){n, k});
        compare(&c, 2e-6);
        compare_brief(&c, 3, 2e-6);
        call_free(&c);
    }
}

static void test_encoded(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 3, 40};
    for (size_t e = 0; e < sizeof encodings / sizeof encodings[0]; e++) {
        for (int i = 0; i < 3; i++) {
            const int64_t m = ms[i], n = 301, k = 512;
            call c = linear_call(encodings[e], m, n, k, 0, 0);
            double *w = encodings[e] != APUS_F32 ? decode_weight(&c.in[1]) : NULL, *bound = malloc((size_t)(m * n) * sizeof *bound);
            linear_bound(c.in[0].real, w != NULL ? w : c.in[1].real, m, n, k, bound);
            c.bound[0] = bound;
            compare(&c, 0);
            free(w);
            free(bound);
            call_free(&c);
            c = call_of("linear_dx", NULL, 0);
            input_real(&c, -1, 1, 2, (int64_t[]){m, n});
            input_encoded(&c, encodings[e], n, k);
            output(&c, 2, (int64_t[]){m, k});
            compare(&c, 2e-6);
            call_free(&c);
            c = call_of("embedding", NULL, 0);
            input_encoded(&c, encodings[e], n, k);
            input_index(&c, n, 1, (int64_t[]){m});
            output(&c, 2, (int64_t[]){m, k});
            compare(&c, 0);
            call_free(&c);
        }
    }
    call c = call_of("embedding_dw", NULL, 0);
    input_real(&c, -1, 1, 2, (int64_t[]){100, 37});
    input_index(&c, 20, 1, (int64_t[]){100});
    input_shape(&c, 2, (int64_t[]){20, 37});
    output(&c, 2, (int64_t[]){20, 37});
    compare(&c, 1e-6);
    call_free(&c);
}

/* The same call with W's values as float32. owner: caller frees in[1].real */
static call decoded(const call *c)
{
    call plain = *c;
    plain.in[1].real = decode_weight(&c->in[1]);
    plain.in[1].dtype = APUS_REAL;
    return plain;
}

/* A row of linear has the same bits alone and in company, with any threads, in float32 and in bfloat16; an encoded W those of
 * the same W in float32. */
static void test_linear_rows(void **state)
{
    (void)state;
    enum { M = 512, N = 149, MOST = 576, LONG = 4400 /* one thread cuts the rows into blocks */ };
    for (size_t e = 0; e < sizeof encodings / sizeof encodings[0]; e++) {
        const int64_t K = encodings[e] >= APUS_Q2_K ? 512 : encodings[e] == APUS_F32 ? LONG : MOST;
        call c = linear_call(encodings[e], M, N, K, 0, 0);
        for (int which = 0; which < 2 * bench_isas; which++) {
            void *many = which % 2 == 0 ? bench_cpu[which / 2] : brief_cpu[which / 2];
            void *one = which % 2 == 0 ? bench_one[which / 2] : brief_one[which / 2];
            float *whole = run_cpu(&c, many, 0), *by_one = run_cpu(&c, one, 0);
            assert_memory_equal(by_one, whole, M * N * 4);
            free(by_one);
            same_alone(&c, whole, many, one, bench_names[which / 2]);
            if (encodings[e] != APUS_F32) {
                call plain = decoded(&c);
                float *same = run_cpu(&plain, many, 0);
                assert_memory_equal(same, whole, M * N * 4);
                free(same);
                free(plain.in[1].real);
            }
            free(whole);
        }
        call_free(&c);
    }
}

/* ---------------------------------------------------------------- norms and rope */

static void test_norms(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 2, 0}, {3, 7, 0}, {17, 64, 16}, {50, 100, 0}, {600, 33, 11}, {9, 576, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t *shape = shapes[s], width = shape[2] > 0 ? shape[2] : shape[1];
        for (int offset = 0; offset < 2; offset++) {
            const double attrs[3] = {1e-6, (double)shape[2], (double)offset};
            call c = call_of("rms_norm", attrs, 3);
            input_real(&c, -2, 2, 2, shape);
            input_real(&c, 0.5, 1.5, 1, &width);
            output(&c, 2, shape);
            compare(&c, 2e-6);
            call_free(&c);
            for (int skip = 0; skip < 3; skip++) {
                c = call_of("rms_norm_grad", attrs, 3);
                input_real(&c, -1, 1, 2, shape);
                input_real(&c, 0.1, 2, 2, shape);
                input_real(&c, 0.5, 1.5, 1, &width);
                output(&c, 2, shape);
                output(&c, 1, &width);
                c.skip = skip;
                compare(&c, 4e-6);
                call_free(&c);
            }
        }
        const double eps = 1e-5;
        for (int bias = 0; bias < 2 && shape[1] > 2; bias++) {
            call c = call_of("layer_norm", &eps, 1);
            input_real(&c, -2, 2, 2, shape);
            input_real(&c, 0.5, 1.5, 1, shape + 1);
            if (bias)
                input_real(&c, 0.5, 1.5, 1, shape + 1);
            output(&c, 2, shape);
            compare(&c, 4e-6);
            call_free(&c);
            for (int skip = 0; skip < 5; skip++) {
                c = call_of("layer_norm_grad", &eps, 1);
                input_real(&c, -1, 1, 2, shape);
                input_real(&c, -2, 2, 2, shape);
                input_real(&c, 0.5, 1.5, 1, shape + 1);
                output(&c, 2, shape);
                output(&c, 1, shape + 1);
                output(&c, 1, shape + 1);
                c.skip = skip;
                compare(&c, 4e-6);
                call_free(&c);
            }
        }
    }
}

static void test_rope(void **state)
{
    (void)state;
    static const int64_t dims[][3] = {{64, 64, 9}, {20, 12, 3}, {10, 6, 1}, {128, 32, 2}};
    for (int d = 0; d < 4; d++) {
        for (int mode = 0; mode < 3; mode++) {
            for (int inverse = 0; inverse < 2; inverse++) {
                const int64_t head = dims[d][0], rotary = dims[d][1], tokens = 45, half = rotary / 2;
                const double attrs[8] = {(double)head, (double)rotary, 1.2, inverse, mode, 3000, 2.5, 10000};
                call c = call_of("rope", attrs, 8);
                input_real(&c, -1, 1, 2, (int64_t[]){tokens, head * dims[d][2]});
                input_index(&c, 6000, 1, &tokens);
                input_index(&c, 6000, 1, &tokens);
                input_real(&c, 0, 1, mode == 2 ? 2 : 1, mode == 2 ? (int64_t[]){2, half} : &half);
                output(&c, 2, (int64_t[]){tokens, head * dims[d][2]});
                compare(&c, 1e-6);
                call_free(&c);
            }
        }
    }
}

/* Scratch is asked for at capacity: fewer rows, which are cut otherwise, must not need more. */
static void test_scratch(void **state)
{
    (void)state;
    static const char *const ops[] = {"linear", "linear_dx", "token_logprob"};
    for (int isa = 0; isa < bench_isas; isa++) {
        for (int o = 0; o < 3; o++) {
            const int64_t k = 576, n = 1536;
            const double attrs[2] = {1, 0};
            const apus_kernel *kernel = bench_kernel("cpu", ops[o], NULL);
            size_t before = 0;
            assert_non_null(kernel);
            for (int64_t m = 1; m < 1100; m++) {
                const apus_view in[3] = {{NULL, APUS_F32, 2, {m, o == 1 ? n : k}}, {NULL, APUS_F32, 2, {n, k}}, {NULL, APUS_I32, 1, {m}}};
                const apus_view out[3] = {
                    {NULL, APUS_F32, o == 2 ? 1 : 2, {m, o == 1 ? k : n}}, {NULL, APUS_F32, 1, {m}}, {NULL, APUS_F32, 2, {m, k}}};
                const apus_kernel_call c = {
                    .in = in, .out = out, .attrs = attrs, .backend = bench_cpu[isa], .n_in = o == 2 ? 3 : 2, .n_out = o == 2 ? 3 : 1};
                const size_t bytes = kernel->scratch(&c);
                assert_true(bytes >= before);
                before = bytes;
            }
        }
    }
}

/* ---------------------------------------------------------------- the device */

static void test_device(void **state)
{
    (void)state;
    const apus_backend_ops *ops = bench_backend("cpu");
    static const size_t sizes[] = {0, 1, 100, 2u << 20, (5u << 20) + 1};
    for (int i = 0; i < 5; i++) {
        char *p = ops->alloc(bench_cpu[0], sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t b = 0; b < sizes[i]; b++)
            assert_int_equal(p[b], 0);
        memset(p, 7, sizes[i]);
        ops->free(bench_cpu[0], p, sizes[i]);
    }
    assert_null(ops->alloc(bench_cpu[0], SIZE_MAX));
    assert_non_null(strstr(ops->describe(bench_cpu[0]), "cpu: 3 threads, portable"));
    assert_non_null(strstr(ops->describe(brief_cpu[0]), "portable, products and kept activations in bfloat16"));
    assert_int_equal(ops->real(bench_cpu[0]), APUS_F32);
    assert_int_equal(setenv("APUS_CPU_ISA", "sse9", 1), 0);
    void *none = NULL;
    apus_error err;
    assert_int_equal(ops->open(apus_host_table(), NULL, &none, &err), APUS_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "APUS_CPU_ISA is 'sse9'"));
    assert_int_equal(unsetenv("APUS_CPU_ISA"), 0);
}

/* Where a process may use several memory nodes, large blocks are dealt out over them. */
static void test_nodes(void **state)
{
    (void)state;
    const apus_backend_ops *ops = bench_backend("cpu");
    if (strstr(ops->describe(bench_cpu[0]), " nodes") == NULL) {
        print_message("skipped: dealing memory out over nodes: this process has one\n");
        skip();
    }
    void *p = ops->alloc(bench_cpu[0], 8u << 20);
    int mode = -1;
    unsigned long mask = 0;
    assert_non_null(p);
    assert_int_equal(syscall(SYS_get_mempolicy, &mode, &mask, 8 * sizeof mask + 1, p, MPOL_F_ADDR), 0);
    assert_int_equal(mode, MPOL_INTERLEAVE);
    assert_true((mask & (mask - 1)) != 0);
    ops->free(bench_cpu[0], p, 8u << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_ranges), cmocka_unit_test(test_accuracy), cmocka_unit_test(test_index),
        cmocka_unit_test(test_bad_index),   cmocka_unit_test(test_linear), cmocka_unit_test(test_encoded),  cmocka_unit_test(test_linear_rows),
        cmocka_unit_test(test_norms),       cmocka_unit_test(test_rope),   cmocka_unit_test(test_scratch),  cmocka_unit_test(test_device),
        cmocka_unit_test(test_nodes),
    };
    return cmocka_run_group_tests(tests, setup, bench_close);
}
