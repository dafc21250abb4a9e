/*
 * Backend cpu's operands in bfloat16: every kernel that takes them, with each mixture of those that it says it takes, gives the bits
 * that it gives in float32 for the same numbers; what it writes in bfloat16 is that, rounded. On each instruction set, over shapes and
 * tails, on threads and alone.
 */
#include "attention_shapes.h"
#include "bench.h"

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* Bytes of output k as the kernel writes it; of want, in float32, what they should be. */
static void same_output(const call *c, uint32_t k, const float *want, const void *got, const char *isa, uint32_t in, uint32_t out)
{
    const operand *o = &c->out[k];
    for (int64_t i = 0; i < operand_count(o); i++) {
        const uint16_t rounded = apus_f32_to_bf16(want[i]);
        const int same =
            o->dtype == APUS_BF16 ? memcmp((const uint16_t *)got + i, &rounded, 2) == 0 : memcmp((const float *)got + i, want + i, 4) == 0;
        if (!same)
            fail_msg("%s %s on %s (in0 %lld x %lld), inputs %x and outputs %x in bfloat16: output %u, element %lld of %lld is another", c->op,
                     c->then != NULL ? c->then : "", isa, (long long)c->in[0].dims[0], (long long)c->in[0].dims[1], in, out, k, (long long)i,
                     (long long)operand_count(o));
    }
}

static void run_both(const call *c, const call *narrow, void *instance, const char *isa, uint32_t in, uint32_t out)
{
    double *start[3] = {0};
    void *want[3] = {0}, *got[3] = {0};
    apus_error err = {0};
    for (uint32_t k = 0; k < c->n_out; k++)
        start[k] = calloc((size_t)operand_count(&c->out[k]) + 1, sizeof(double));
    assert_int_equal(bench_run(c, "cpu", c->then, instance, 4, 0, start, want, &err), APUS_OK);
    assert_int_equal(bench_run(narrow, "cpu", c->then, instance, 4, 0, start, got, &err), APUS_OK);
    for (uint32_t k = 0; k < c->n_out; k++) {
        if ((c->skip >> k & 1) == 0)
            same_output(narrow, k, want[k], got[k], isa, in, out);
        free(want[k]);
        free(got[k]);
        free(start[k]);
    }
}

/* All mixtures; the call's inputs that may be narrow become bfloat16's values. Frees the call. */
static void same_narrow(call *c)
{
    const apus_kernel *kernel = bench_kernel("cpu", c->op, c->then);
    const uint32_t all_in = kernel->narrow_in & ((1u << c->n_in) - 1), all_out = kernel->narrow_out & ((1u << c->n_out) - 1);
    uint16_t *brief[8] = {0};
    assert_true((all_in | all_out) != 0);
    for (uint32_t k = 0; k < c->n_in; k++) {
        const size_t n = (size_t)operand_count(&c->in[k]);
        if ((all_in >> k & 1) == 0)
            continue;
        brief[k] = malloc(n * 2 + 1);
        for (size_t i = 0; i < n; i++) {
            brief[k][i] = apus_f32_to_bf16((float)c->in[k].real[i]);
            c->in[k].real[i] = (double)apus_bf16_to_f32(brief[k][i]);
        }
    }
    for (uint32_t in = 0; in <= all_in; in++) {
        for (uint32_t out = 0; out <= all_out; out++) {
            call narrow = *c;
            if ((in & ~all_in) != 0 || (out & ~all_out) != 0)
                continue;
            for (uint32_t k = 0; k < c->n_in; k++)
                if (in >> k & 1) {
                    narrow.in[k].dtype = APUS_BF16;
                    narrow.in[k].raw = brief[k];
                }
            for (uint32_t k = 0; k < c->n_out; k++)
                if (out >> k & 1)
                    narrow.out[k].dtype = APUS_BF16;
            for (int isa = 0; isa < bench_isas; isa++) {
                run_both(c, &narrow, brief_cpu[isa], bench_names[isa], in, out);
                run_both(c, &narrow, brief_one[isa], bench_names[isa], in, out);
            }
        }
    }
    for (uint32_t k = 0; k < c->n_in; k++)
        free(brief[k]);
    call_free(c);
}

static void test_linear(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 2, 3, 8, 9, 23, 140, 300}, ns[] = {1, 15, 48, 149}, ks[] = {1, 7, 31, 64, 161};
    static const apus_dtype types[] = {APUS_F32, APUS_BF16, APUS_Q8_0};
    for (int e = 0; e < 8 * 4 * 5 * 3; e++) {
        const apus_dtype type = types[e / 160];
        const int64_t m = ms[e % 8], n = ns[e / 8 % 4], k = type == APUS_Q8_0 ? 32 * (1 + e / 32 % 5) : ks[e / 32 % 5];
        call c = linear_call(type, m, n, k, e % 3 == 0, e % 2);
        same_narrow(&c);
    }
    for (int e = 0; e < 8 * 4 * 5; e++) {
        const int64_t m = ms[e % 8], n = ns[e / 8 % 4], k = ks[e / 32 % 5];
        for (int fused = 0; fused < 2; fused++) {
            call d = call_of("linear_dx", NULL, 0);
            d.then = fused ? "add" : NULL;
            input_real(&d, -1, 1, 2, (int64_t[]){m, n});
            input_encoded(&d, e % 2 == 0 ? APUS_F32 : APUS_BF16, n, k);
            if (fused)
                input_real(&d, -1, 1, 2, (int64_t[]){m, k});
            output(&d, 2, (int64_t[]){m, k});
            same_narrow(&d);
        }
        call c = call_of("linear_dw", NULL, 0);
        input_real(&c, -1, 1, 2, (int64_t[]){m, n});
        input_real(&c, -1, 1, 2, (int64_t[]){m, k});
        output(&c, 2, (int64_t[]){n, k});
        same_narrow(&c);
    }
}

/* Siblings that write different types. */
static void test_siblings(void **state)
{
    (void)state;
    enum { M = 37, K = 70, N = 65 };
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    uint16_t x[M * K], brief[M * N];
    float w[2][N * K], y[M * N], want[M * N];
    for (int i = 0; i < M * K; i++)
        x[i] = apus_f32_to_bf16((float)bench_random(-1, 1));
    for (int i = 0; i < 2 * N * K; i++)
        (&w[0][0])[i] = (float)bench_random(-1, 1);
    for (int isa = 0; isa < bench_isas; isa++) {
        apus_view in[2][2], out[2];
        apus_kernel_call calls[2];
        void *scratch = NULL;
        apus_error err = {0};
        for (int k = 0; k < 2; k++) {
            in[k][0] = (apus_view){.data = x, .dtype = APUS_BF16, .ndim = 2, .dims = {M, K}};
            in[k][1] = (apus_view){.data = w[k], .dtype = APUS_F32, .ndim = 2, .dims = {N, K}};
            out[k] = (apus_view){.data = k == 0 ? (void *)brief : y, .dtype = k == 0 ? APUS_BF16 : APUS_F32, .ndim = 2, .dims = {M, N}};
            calls[k] = (apus_kernel_call){.in = in[k], .out = &out[k], .backend = brief_cpu[isa], .n_in = 2, .n_out = 1};
        }
        assert_int_equal(posix_memalign(&scratch, 64, kernel->scratch(&calls[0])), 0);
        calls[0].scratch = calls[1].scratch = scratch;
        assert_int_equal(kernel->run_siblings(calls, 2, &err), APUS_OK);
        out[0] = (apus_view){.data = want, .dtype = APUS_F32, .ndim = 2, .dims = {M, N}};
        assert_int_equal(kernel->run(&calls[0], &err), APUS_OK);
        for (int i = 0; i < M * N; i++)
            assert_int_equal(brief[i], apus_f32_to_bf16(want[i]));
        out[1].data = want;
        assert_int_equal(kernel->run(&calls[1], &err), APUS_OK);
        assert_memory_equal(y, want, sizeof y);
        free(scratch);
    }
}

static void test_elementwise(void **state)
{
    (void)state;
    static const struct {
        const char *op;
        int n_in, n_out;
        double attr;
    } ops[] = {{"mul", 2, 1, 0},    {"silu", 1, 1, 0},      {"silu_grad", 2, 1, 0}, {"gelu", 1, 1, 0},       {"gelu", 1, 1, 1},
               {"swiglu", 2, 1, 0}, {"gelu_grad", 2, 1, 0}, {"gelu_grad", 2, 1, 1}, {"swiglu_grad", 3, 2, 0}};
    for (size_t e = 0; e < sizeof ops / sizeof ops[0]; e++) {
        for (int64_t n = 1; n <= 1003; n += n < 70 ? 1 : 311) {
            for (int skip = 0; skip < (ops[e].n_out == 2 ? 3 : 1); skip++) {
                call c = call_of(ops[e].op, &ops[e].attr, 1);
                for (int k = 0; k < ops[e].n_in; k++)
                    input_real(&c, -3, 3, 1, &n);
                for (int k = 0; k < ops[e].n_out; k++)
                    output(&c, 1, &n);
                c.skip = skip;
                same_narrow(&c);
            }
        }
    }
}

static void test_rows(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 2, 0}, {3, 7, 0}, {17, 64, 16}, {50, 100, 0}, {600, 33, 11}, {9, 576, 0}};
    const double eps = 1e-5;
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t *shape = shapes[s], width = shape[2] > 0 ? shape[2] : shape[1], begin = shape[1] / 3, some = shape[1] / 2;
        call c = call_of("rms_norm", (double[]){1e-6, (double)shape[2], 1}, 3);
        input_real(&c, -2, 2, 2, shape);
        input_real(&c, 0.5, 1.5, 1, &width);
        output(&c, 2, shape);
        same_narrow(&c);
        for (int bias = 0; bias < 2; bias++) {
            c = call_of("layer_norm", &eps, 1);
            input_real(&c, -2, 2, 2, shape);
            for (int k = 0; k <= bias; k++)
                input_real(&c, 0.5, 1.5, 1, shape + 1);
            output(&c, 2, shape);
            same_narrow(&c);
        }
        c = call_of("columns", (double[]){(double)begin, (double)some}, 2);
        input_real(&c, -2, 2, 2, shape);
        output(&c, 2, (int64_t[]){shape[0], some});
        same_narrow(&c);
    }
    static const int64_t dims[][3] = {{64, 64, 9}, {20, 12, 3}, {10, 6, 1}, {128, 32, 2}};
    for (int d = 0; d < 4; d++) {
        const int64_t head = dims[d][0], half = dims[d][1] / 2, tokens = 45;
        call c = call_of("rope", (double[]){(double)head, (double)dims[d][1], 1.2, d % 2, 0, 3000, 2.5, 10000}, 8);
        input_real(&c, -1, 1, 2, (int64_t[]){tokens, head * dims[d][2]});
        input_index(&c, 6000, 1, &tokens);
        input_index(&c, 6000, 1, &tokens);
        input_real(&c, 0, 1, 1, &half);
        output(&c, 2, (int64_t[]){tokens, head * dims[d][2]});
        same_narrow(&c);
    }
}

static void test_attention(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const shape *s = &shapes[i];
        call c, g;
        double *out, *lse;
        attention_calls(s, &c, &g, &out, &lse);
        free(out);
        free(lse);
        same_narrow(&c);
        same_narrow(&g);
    }
}

/* Numbers that are none stay so, and the largest round to infinity. */
static void test_ends(void **state)
{
    (void)state;
    const uint32_t bits[] = {0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fc00000u, 0xffffffffu, 0x7f7fffffu, 0x80000000u, 0x3f808000u, 0x3f818000u};
    enum { N = sizeof bits / sizeof bits[0] };
    const apus_kernel *columns = bench_kernel("cpu", "columns", NULL);
    for (int isa = 0; isa < bench_isas; isa++) {
        float x[N];
        uint16_t y[N];
        apus_error err = {0};
        memcpy(x, bits, sizeof x);
        const apus_view in = {.data = x, .dtype = APUS_F32, .ndim = 2, .dims = {1, N}},
                        out = {.data = y, .dtype = APUS_BF16, .ndim = 2, .dims = {1, N}};
        const double attrs[2] = {0, N};
        const apus_kernel_call call = {.in = &in, .out = &out, .attrs = attrs, .backend = brief_cpu[isa], .n_in = 1, .n_out = 1};
        assert_int_equal(columns->run(&call, &err), APUS_OK);
        for (int i = 0; i < N; i++) {
            const float value = apus_bf16_to_f32(y[i]);
            assert_true(isnan(x[i]) ? isnan(value) : y[i] == apus_f32_to_bf16(x[i]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear), cmocka_unit_test(test_siblings),  cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_rows),   cmocka_unit_test(test_attention), cmocka_unit_test(test_ends),
    };
    return cmocka_run_group_tests(tests, setup, bench_close);
}
