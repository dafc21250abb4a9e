/*
 * Backend cpu's products of rows that they normalise themselves: the bits of the norm and the product one after the other, whatever follows
 * the product, over sizes with and without tails, few rows and many, every kind of weight as files have it and packed, with what lies between
 * in float32 and bfloat16, on each instruction set, on threads and alone; and products of one left factor at once, with and without a norm.
 */
#include "bench.h"

typedef struct pattern {
    const char *then;
    int attrs, gate;
} pattern;

static const pattern patterns[] = {{NULL, 0, 0}, {"add", 0, 0}, {"silu", 0, 0}, {"gelu", 1, 0}, {"swiglu", 0, 1}};
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

/* rms_norm, or layer_norm with or without a bias, of groups of `width`. */
static void put_norm(call *c, int attrs, int layer, int bias, int64_t width)
{
    const double rms[3] = {1e-5, width != c->in[0].dims[1] ? (double)width : 0, 0.5};
    memcpy(c->attrs + attrs, rms, (layer ? 1 : 3) * sizeof *rms);
    c->prologue = (uint8_t)(1 + layer);
    c->prologue_inputs = (uint8_t)(1 + bias);
    for (int i = 0; i <= bias; i++)
        input_real(c, -1, 1, 1, &width);
}

static call pattern_call(const pattern *p, apus_dtype type, int64_t m, int64_t n, int64_t k, int bias)
{
    call c = call_of("linear", (double[]){1}, p->attrs);
    c.then = p->then;
    for (int i = 0; i <= p->gate; i++) {
        if (i == 0)
            input_real(&c, -2, 3, 2, (int64_t[]){m, k});
        else
            input_copy(&c, c.in[0].real, 2, (int64_t[]){m, k});
        input_encoded(&c, type, n, k);
        if (bias)
            input_real(&c, -1, 1, 1, &n);
    }
    if (p->then != NULL && strcmp(p->then, "add") == 0)
        input_real(&c, -1, 1, 2, (int64_t[]){m, n});
    output(&c, 2, (int64_t[]){m, n});
    return c;
}

/* The norm by its own kernel, then the product without it: owner: caller */
static float *one_by_one(const call *c, const pattern *p, void *instance)
{
    const uint32_t own = c->n_in - c->prologue_inputs;
    const int64_t elements = operand_count(&c->in[0]);
    call norm = call_of(c->prologue == 1 ? "rms_norm" : "layer_norm", c->attrs + p->attrs, 3), product = *c;
    norm.in[norm.n_in++] = c->in[0];
    for (uint32_t i = own; i < c->n_in; i++)
        norm.in[norm.n_in++] = c->in[i];
    output(&norm, 2, c->in[0].dims);
    norm.out[0].dtype = c->prologue_kept ? APUS_BF16 : APUS_REAL;
    float *y = run_cpu(&norm, instance, 0);
    double *real = malloc((size_t)elements * sizeof *real + 1);
    for (int64_t i = 0; i < elements && !c->prologue_kept; i++)
        real[i] = (double)y[i];
    product.n_in = own;
    product.prologue = product.prologue_inputs = product.prologue_kept = 0;
    product.in[0].dtype = norm.out[0].dtype;
    product.in[0].raw = y;
    product.in[0].real = real;
    if (p->gate)
        product.in[own / 2] = product.in[0];
    float *result = run_cpu(&product, instance, 0);
    free(y);
    free(real);
    return result;
}

static void same(const call *c, const pattern *p, void *instance, const char *isa)
{
    float *want = one_by_one(c, p, instance), *got = run_cpu(c, instance, 0);
    if (memcmp(want, got, (size_t)operand_count(&c->out[0]) * 4) != 0)
        fail_msg("norm %d + linear + %s on %s (%lld x %lld by %lld, W in type %d, rounded: %d): other bits than one by one", c->prologue,
                 p->then != NULL ? p->then : "nothing", isa, (long long)c->in[0].dims[0], (long long)c->in[0].dims[1], (long long)c->out[0].dims[1],
                 (int)c->in[1].dtype, c->prologue_kept);
    free(want);
    free(got);
}

/* With every W packed as the instance does it. */
static void same_when_packed(const call *c, const pattern *p, void *instance, const char *isa)
{
    call its = packed(c, 1, instance);
    const uint32_t other = p->gate ? (c->n_in - c->prologue_inputs) / 2 + 1 : 1;
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
    static const int64_t ms[] = {1, 2, 3, 5, 8, 9, 17, 23, 140, 300}, ns[] = {17, 32, 48, 149}, ks[] = {1, 7, 64, 162};
    static const apus_dtype types[] = {APUS_F32, APUS_BF16, APUS_Q8_0, APUS_Q4_K};
    for (int e = 0; e < 10 * 4 * 4 * 4; e++) {
        const apus_dtype type = types[e / 160];
        const int64_t m = ms[e % 10], n = ns[e / 10 % 4], k = type == APUS_Q8_0 ? 32 * (1 + e / 40 % 4) : type == APUS_Q4_K ? 256 : ks[e / 40 % 4];
        for (int i = e % 2; i < PATTERNS; i += 2) {
            const pattern *p = &patterns[(e / 10 + i) % PATTERNS];
            const int layer = (e / 3 + i) % 3;
            call c = pattern_call(p, type, m, n, k, e % 3 == 0);
            put_norm(&c, p->attrs, layer > 0, layer == 2, layer == 0 && k % 2 == 0 && e % 4 == 0 ? k / 2 : k);
            for (int isa = 0; isa < bench_isas; isa++) {
                same(&c, p, bench_cpu[isa], bench_names[isa]);
                c.prologue_kept = e % 2 == 0;
                same(&c, p, brief_one[isa], bench_names[isa]);
                if (type == APUS_F32 || type == APUS_BF16)
                    same_when_packed(&c, p, brief_cpu[isa], bench_names[isa]);
                c.prologue_kept = 0;
                if (type == APUS_F32 || type == APUS_BF16)
                    same_when_packed(&c, p, bench_one[isa], bench_names[isa]);
            }
            call_free(&c);
        }
    }
}

static void test_integers(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 2, 4, 8, 9, 50, 130}, ns[] = {17, 31, 96, 150};
    for (int e = 0; e < 2 * 7 * 4 * 3; e++) {
        const apus_dtype type = e % 2 == 0 ? APUS_Q8_0 : APUS_Q4_0;
        const pattern *p = &patterns[e % PATTERNS];
        const int64_t k = 32 * (1 + e / 56 * 2);
        call c = pattern_call(p, type, ms[e / 2 % 7], ns[e / 14 % 4], k, e % 3 == 0);
        put_norm(&c, p->attrs, e % 4 == 0, 0, k);
        for (int isa = 0; isa < bench_isas; isa++) {
            same(&c, p, int8_cpu[isa], bench_names[isa]);
            same_when_packed(&c, p, int8_one[isa], bench_names[isa]);
        }
        call_free(&c);
    }
}

/* Calls that share x, and its norm, give what each gives alone, whatever each W is stored in. */
static void siblings(const apus_dtype *types, int64_t m, int64_t k, int norm, void *instance)
{
    static const int64_t ns[APUS_SIBLINGS_MAX] = {200, 48, 70, 17};
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    apus_view in[APUS_SIBLINGS_MAX][4], out[APUS_SIBLINGS_MAX];
    apus_kernel_call calls[APUS_SIBLINGS_MAX];
    float *alone[APUS_SIBLINGS_MAX], *x = malloc((size_t)(m * k) * sizeof *x), *w = malloc((size_t)k * sizeof *w);
    call weights = call_of("linear", NULL, 0);
    size_t bytes = 0;
    void *scratch = NULL;
    for (int64_t i = 0; i < m * k; i++)
        x[i] = (float)bench_random(-2, 3);
    for (int64_t i = 0; i < k; i++)
        w[i] = (float)bench_random(-1, 1);
    for (int s = 0; s < APUS_SIBLINGS_MAX; s++) {
        static const double eps[3] = {1e-6, 0, 0};
        const operand *W = &weights.in[s];
        input_encoded(&weights, types[s], ns[s], k);
        float *values = W->raw != NULL ? W->raw : malloc((size_t)(ns[s] * k) * sizeof *values);
        for (int64_t i = 0; i < ns[s] * k && W->raw == NULL; i++)
            values[i] = (float)W->real[i];
        weights.in[s].raw = values;
        in[s][0] = (apus_view){.data = x, .dtype = APUS_F32, .ndim = 2, .dims = {m, k}};
        in[s][1] = (apus_view){.data = values, .dtype = types[s], .ndim = 2, .dims = {ns[s], k}};
        in[s][2] = (apus_view){.data = w, .dtype = APUS_F32, .ndim = 1, .dims = {k}};
        out[s] = (apus_view){.data = malloc((size_t)(m * ns[s]) * sizeof(float)), .dtype = APUS_F32, .ndim = 2, .dims = {m, ns[s]}};
        calls[s] = (apus_kernel_call){.in = in[s],
                                      .out = &out[s],
                                      .attrs = eps,
                                      .backend = instance,
                                      .n_in = norm ? 3 : 2,
                                      .n_out = 1,
                                      .prologue = (uint8_t)norm,
                                      .prologue_inputs = (uint8_t)(norm > 0)};
        const size_t its = kernel->scratch(&calls[s]);
        bytes = its > bytes ? its : bytes;
    }
    assert_int_equal(posix_memalign(&scratch, 64, bytes + FENCE), 0);
    memset(scratch, 0xff, bytes + FENCE);
    for (int s = 0; s < APUS_SIBLINGS_MAX; s++) {
        calls[s].scratch = scratch;
        assert_int_equal(kernel->run(&calls[s], NULL), APUS_OK);
        alone[s] = out[s].data;
        out[s].data = malloc((size_t)(m * ns[s]) * sizeof(float));
    }
    memset(scratch, 0xff, bytes + FENCE);
    assert_int_equal(kernel->run_siblings(calls, APUS_SIBLINGS_MAX, NULL), APUS_OK);
    for (size_t i = 0; i < FENCE; i++)
        assert_int_equal(((uint8_t *)scratch)[bytes + i], 0xff);
    for (int s = 0; s < APUS_SIBLINGS_MAX; s++) {
        assert_memory_equal(out[s].data, alone[s], (size_t)(m * ns[s]) * sizeof(float));
        free(out[s].data);
        free(alone[s]);
    }
    call_free(&weights);
    free(scratch);
    free(x);
    free(w);
}

static void test_siblings(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 5, 9, 40, 150, 300};
    static const apus_dtype types[][APUS_SIBLINGS_MAX] = {{APUS_F32, APUS_F32, APUS_F32, APUS_F32},
                                                          {APUS_BF16, APUS_BF16, APUS_F32, APUS_Q8_0},
                                                          {APUS_Q8_0, APUS_Q8_0, APUS_F16, APUS_Q4_0},
                                                          {APUS_Q4_0, APUS_Q4_0, APUS_Q4_0, APUS_F32}};
    for (int e = 0; e < 6 * 4 * 3; e++) {
        const int64_t m = ms[e % 6], k = e < 24 ? 64 : 96 + (e / 6 % 4 == 0 ? 5 : 0);
        for (int isa = 0; isa < bench_isas; isa++) {
            siblings(types[e / 6 % 4], m, k, e / 24, bench_cpu[isa]);
            siblings(types[e / 6 % 4], m, k, e / 24, brief_one[isa]);
            siblings(types[e / 6 % 4], m, k, e / 24, int8_cpu[isa]);
        }
    }
}

/* Rows by themselves have the bits that they have in company. */
static void test_rows(void **state)
{
    (void)state;
    for (int layer = 0; layer < 2; layer++) {
        call c = pattern_call(&patterns[0], APUS_F32, 150, 97, 70, 1);
        put_norm(&c, 0, layer, layer, 70);
        for (int isa = 0; isa < bench_isas; isa++) {
            float *whole = run_cpu(&c, brief_cpu[isa], 0);
            same_alone(&c, whole, brief_cpu[isa], brief_one[isa], bench_names[isa]);
            free(whole);
        }
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_patterns), cmocka_unit_test(test_integers), cmocka_unit_test(test_siblings),
                                       cmocka_unit_test(test_rows)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
