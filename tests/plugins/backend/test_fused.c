/*
 * Backend cpu's kernels of a product and the activation that follows, and of the two products that a gate joins: the bits of the ops one
 * after the other, over sizes with and without tails, few rows and many, every kind of weight as files have it and packed, with operands
 * in float32 and bfloat16, on each instruction set, on threads and alone.
 */
#include "bench.h"

typedef struct pattern {
    const char *then;
    double attr;
    int gate;
} pattern;

static const pattern patterns[] = {{"relu", 0, 0}, {"silu", 0, 0}, {"tanh", 0, 0}, {"gelu", 0, 0}, {"gelu", 1, 0}, {"swiglu", 0, 1}};
enum { PATTERNS = sizeof patterns / sizeof patterns[0] };

static void *int8_cpu[ISAS], *int8_one[ISAS]; /* with activations in int8 */

static int setup(void **state)
{
    (void)state;
    const int failed = bench_open();
    for (int i = 0; i < bench_isas; i++) {
        int8_cpu[i] = bench_instance("cpu", bench_names[i], 3, "float32", "int8");
        int8_one[i] = bench_instance("cpu", bench_names[i], 1, "bfloat16", "int8");
    }
    return failed;
}

static int teardown(void **state)
{
    for (int i = 0; i < bench_isas; i++) {
        bench_backend("cpu")->close(int8_cpu[i]);
        bench_backend("cpu")->close(int8_one[i]);
    }
    return bench_close(state);
}

/* x, W and bias; of a gate, then x again, the other W and its bias. */
static call pattern_call(const pattern *p, apus_dtype type, int64_t m, int64_t n, int64_t k, int bias)
{
    call c = call_of("linear", &p->attr, 1);
    c.then = p->then;
    for (int i = 0; i <= p->gate; i++) {
        if (i == 0)
            input_real(&c, -2, 2, 2, (int64_t[]){m, k});
        else
            input_copy(&c, c.in[0].real, 2, (int64_t[]){m, k});
        input_encoded(&c, type, n, k);
        if (bias)
            input_real(&c, -1, 1, 1, &n);
    }
    output(&c, 2, (int64_t[]){m, n});
    return c;
}

/* The same by the kernels of each op. owner: caller */
static float *one_by_one(const call *c, const pattern *p, void *instance)
{
    const uint32_t each = c->n_in / (p->gate ? 2 : 1);
    const int64_t n = operand_count(&c->out[0]);
    apus_view in[2], out = {.dtype = APUS_F32, .ndim = 1, .dims = {n}};
    for (uint32_t i = 0; i <= (uint32_t)p->gate; i++) {
        call linear = *c;
        linear.then = NULL;
        linear.n_in = each;
        linear.out[0].dtype = APUS_REAL;
        memcpy(linear.in, c->in + i * each, each * sizeof linear.in[0]);
        in[i] = (apus_view){.data = run_cpu(&linear, instance, 0), .dtype = APUS_F32, .ndim = 1, .dims = {n}};
    }
    out.data = malloc((size_t)n * sizeof(float) + 1);
    const apus_kernel_call then = {.in = in, .out = &out, .attrs = &p->attr, .backend = instance, .n_in = p->gate ? 2 : 1, .n_out = 1};
    assert_int_equal(bench_kernel("cpu", p->then, NULL)->run(&then, NULL), APUS_OK);
    for (int i = 0; i <= p->gate; i++)
        free(in[i].data);
    return out.data;
}

static void same(const call *c, const pattern *p, void *instance, const char *isa)
{
    float *want = one_by_one(c, p, instance), *got = run_cpu(c, instance, 0);
    if (memcmp(want, got, (size_t)operand_count(&c->out[0]) * 4) != 0)
        fail_msg("linear + %s on %s (%lld x %lld by %lld, W in type %d): other bits than one by one", p->then, isa, (long long)c->in[0].dims[0],
                 (long long)c->in[0].dims[1], (long long)c->out[0].dims[1], (int)c->in[1].dtype);
    free(want);
    free(got);
}

/* With every W packed as the instance does it. */
static void same_when_packed(const call *c, const pattern *p, void *instance, const char *isa)
{
    call its = packed(c, 1, instance);
    const uint32_t other = p->gate ? c->n_in / 2 + 1 : 1;
    if (p->gate)
        its = packed(&its, other, instance);
    same(&its, p, instance, isa);
    free(its.in[1].raw);
    if (p->gate)
        free(its.in[other].raw);
}

static void test_patterns(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 2, 3, 8, 9, 23, 140, 300}, ns[] = {1, 15, 32, 48, 149}, ks[] = {1, 7, 64, 161};
    static const apus_dtype types[] = {APUS_F32, APUS_BF16, APUS_Q8_0, APUS_Q4_K};
    for (int e = 0; e < 8 * 5 * 4 * 4; e++) {
        const apus_dtype type = types[e / 160];
        const int64_t m = ms[e % 8], n = ns[e / 8 % 5], k = type == APUS_Q8_0 ? 32 * (1 + e / 40 % 4) : type == APUS_Q4_K ? 256 : ks[e / 40 % 4];
        for (int i = e % 2; i < PATTERNS; i += 2) {
            const pattern *p = &patterns[(e / 8 + i) % PATTERNS];
            call c = pattern_call(p, type, m, n, k, e % 3 == 0);
            for (int isa = 0; isa < bench_isas; isa++) {
                same(&c, p, bench_cpu[isa], bench_names[isa]);
                same(&c, p, brief_one[isa], bench_names[isa]);
                if (type == APUS_F32 || type == APUS_BF16) {
                    same_when_packed(&c, p, bench_one[isa], bench_names[isa]);
                    same_when_packed(&c, p, brief_cpu[isa], bench_names[isa]);
                }
            }
            call_free(&c);
        }
    }
}

static void test_integers(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 2, 4, 8, 9, 50}, ns[] = {1, 31, 96, 150};
    for (int e = 0; e < 2 * 6 * 4 * 3; e++) {
        const apus_dtype type = e % 2 == 0 ? APUS_Q8_0 : APUS_Q4_0;
        for (int i = 0; i < PATTERNS; i++) {
            call c = pattern_call(&patterns[i], type, ms[e / 2 % 6], ns[e / 12 % 4], 32 * (1 + e / 48 * 2), e % 3 == 0);
            for (int isa = 0; isa < bench_isas; isa++) {
                same(&c, &patterns[i], int8_cpu[isa], bench_names[isa]);
                same_when_packed(&c, &patterns[i], int8_one[isa], bench_names[isa]);
            }
            call_free(&c);
        }
    }
}

/* Rows by themselves have the bits that they have in company. */
static void test_rows(void **state)
{
    (void)state;
    for (int i = 0; i < PATTERNS; i++) {
        for (int isa = 0; isa < bench_isas; isa++) {
            call c = pattern_call(&patterns[i], APUS_F32, 150, 97, 70, 1);
            float *whole = run_cpu(&c, brief_cpu[isa], 0);
            for (int64_t m = 1; m <= 40; m++) {
                call part = c;
                for (uint32_t k = 0; k < c.n_in; k += 3) { /* each x */
                    part.in[k].real += (150 - m) * 70;
                    part.in[k].dims[0] = m;
                }
                part.out[0].dims[0] = m;
                float *some = run_cpu(&part, m % 2 == 0 ? brief_cpu[isa] : brief_one[isa], 0);
                assert_memory_equal(some, whole + (150 - m) * 97, (size_t)(m * 97) * 4);
                free(some);
            }
            free(whole);
            call_free(&c);
        }
    }
}

/* x in bfloat16, the result in it, or both: the bits of float32, rounded. */
static void test_narrow(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 5, 60};
    for (int e = 0; e < 3 * PATTERNS; e++) {
        const pattern *p = &patterns[e / 3];
        const int64_t m = ms[e % 3], n = 53, k = 66;
        call c = pattern_call(p, APUS_F32, m, n, k, e % 2);
        uint16_t *x = malloc((size_t)(m * k) * sizeof *x);
        for (int64_t i = 0; i < m * k; i++) {
            x[i] = apus_f32_to_bf16((float)c.in[0].real[i]);
            c.in[0].real[i] = (double)apus_bf16_to_f32(x[i]);
            if (p->gate)
                c.in[c.n_in / 2].real[i] = c.in[0].real[i];
        }
        for (int isa = 0; isa < bench_isas; isa++) {
            float *want = run_cpu(&c, brief_cpu[isa], 0);
            for (int which = 1; which < 4; which++) {
                call narrow = c;
                for (uint32_t i = 0; i < c.n_in && (which & 1) != 0; i += p->gate ? c.n_in / 2 : c.n_in) {
                    narrow.in[i].dtype = APUS_BF16;
                    narrow.in[i].raw = x;
                }
                if ((which & 2) != 0)
                    narrow.out[0].dtype = APUS_BF16;
                float *got = run_cpu(&narrow, brief_one[isa], 0);
                for (int64_t i = 0; i < m * n; i++) {
                    if ((which & 2) == 0)
                        assert_memory_equal(&got[i], &want[i], 4);
                    else if (fabsf(want[i]) >= 0x1p-126f) /* AVX512-BF16 takes smaller ones for zeros */
                        assert_int_equal(((uint16_t *)(void *)got)[i], apus_f32_to_bf16(want[i]));
                }
                free(got);
            }
            free(want);
        }
        free(x);
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_patterns), cmocka_unit_test(test_integers), cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_narrow)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
