/*
 * The vocabulary head of backend cpu, token_logprob with its slopes and its gradient of W, for each instruction set of this machine:
 * against backend ref, each element within what rounding comes to; and its promises on bits.
 */
#include "bench.h"
#include "rounding.h"

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* Asking for slopes changes no bit of the log-probabilities: a policy at step 0 equals its reference. */
static void same_without_slopes(const call *c, int64_t n)
{
    for (int isa = 0; isa < bench_isas; isa++) {
        call plain = *c;
        plain.skip = 4;
        float *with = run_cpu(c, bench_cpu[isa], 0), *without = run_cpu(&plain, bench_cpu[isa], 0);
        assert_memory_equal(with, without, (size_t)n * sizeof *with);
        free(with);
        free(without);
    }
}

typedef struct head_case {
    call forward, dw;
    head_values values;
    head_bounds bounds;
    double *w, *lse; /* W decoded, where it is encoded; log of the sum of exponentials */
} head_case;

/* token_logprob of n rows, v words of k numbers. */
static head_case head_of(apus_dtype type, int64_t n, int64_t v, int64_t k, int cap)
{
    head_case h = {.values = {.rows = n, .vocabulary = v, .k = k, .scale = cap ? 0.7 : 1.0, .softcap = cap ? 4.0 : 0.0}};
    call *c = &h.forward;
    *c = call_of("token_logprob", (double[]){h.values.scale, h.values.softcap}, 2);
    input_real(c, -1, 1, 2, (int64_t[]){n, k});
    input_encoded(c, type, v, k);
    input_index(c, v, 1, &n);
    output(c, 1, &n);
    output(c, 1, &n);
    output(c, 2, (int64_t[]){n, k});
    return h;
}

/* Its gradient of W, and how far each element may be off. brief: products in bfloat16, of values that are so. */
static void head_bind(head_case *h, int brief)
{
    call *c = &h->forward, *g = &h->dw;
    const int64_t n = h->values.rows, v = h->values.vocabulary, k = h->values.k;
    h->lse = run_ref(c, 1);
    *g = call_of("token_logprob_dw", c->attrs, 2);
    input_real(g, -1, 1, 1, &n);
    for (uint32_t i = 0; i < 3; i++)
        g->in[g->n_in++] = c->in[i];
    input_copy(g, h->lse, 1, &n);
    output(g, 2, (int64_t[]){v, k});
    h->w = c->in[1].dtype == APUS_REAL ? NULL : decode_weight(&c->in[1]);
    h->bounds = (head_bounds){calloc((size_t)n + 1, 8), calloc((size_t)n + 1, 8), calloc((size_t)(n * k) + 1, 8), calloc((size_t)(v * k), 8)};
    h->values.x = c->in[0].real;
    h->values.w = h->w != NULL ? h->w : c->in[1].real;
    h->values.targets = c->in[2].raw;
    h->values.lse = h->lse;
    h->values.d = g->in[0].real;
    h->values.weights = brief ? 0x1p-8 : 0;
    head_bound(&h->values, &h->bounds);
    memcpy(c->bound, (const double *[]){h->bounds.logp, h->bounds.lse, h->bounds.slopes}, sizeof c->bound);
    g->bound[0] = h->bounds.dw;
}

static void head_close(head_case *h)
{
    call_free(&h->forward);
    free(h->dw.in[0].real);
    free(h->dw.in[4].real);
    free(h->w);
    free(h->lse);
    free(h->bounds.logp);
    free(h->bounds.lse);
    free(h->bounds.slopes);
    free(h->bounds.dw);
}

static void test_head(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 5, 7}, {3, 513, 16}, {70, 1500, 32}, {600, 1100, 9}, {0, 40, 8}, {1100, 30, 8}, {300, 900, 70}};
    for (int s = 0; s < 7 * 2 * 2; s++) {
        const int64_t *size = sizes[s / 4];
        head_case h = head_of(APUS_F32, size[0], size[1], size[2], s / 2 % 2);
        if (s % 2 == 1) {
            double *raw[8];
            rounds_itself(&h.forward, 3);
            round_inputs(&h.forward, 3, raw);
            free(raw[0]);
            free(raw[1]);
        }
        head_bind(&h, s % 2);
        void *const *many = s % 2 == 0 ? bench_cpu : brief_cpu, *const *one = s % 2 == 0 ? bench_one : brief_one;
        compare_on(&h.forward, 0, many, one);
        compare_on(&h.dw, 0, many, one);
        if (s % 2 == 0)
            rounds_itself(&h.dw, 6);
        same_without_slopes(&h.forward, size[0]);
        head_close(&h);
    }
    head_case h = head_of(APUS_Q8_0, 9, 700, 64, 0);
    head_bind(&h, 0);
    call *c = &h.forward;
    compare(c, 0);
    compare(&h.dw, 0);
    same_without_slopes(c, 9);
    for (int isa = 0; isa < bench_isas; isa++) { /* a row alone has the bits it has in company, with any threads */
        float *whole = run_cpu(c, bench_cpu[isa], 0);
        for (int r = 0; r < 9; r++) {
            call one = *c;
            one.in[0].real += r * 64;
            one.in[2].raw = (int32_t *)c->in[2].raw + r;
            one.in[0].dims[0] = one.in[2].dims[0] = one.out[0].dims[0] = one.out[1].dims[0] = one.out[2].dims[0] = 1;
            float *got = run_cpu(&one, bench_one[isa], 0);
            assert_memory_equal(got, whole + r, 4);
            free(got);
        }
        free(whole);
    }
    ((int32_t *)c->in[2].raw)[4] = 700;
    expect_refused(c, "target id 700 at place 4 is outside 0 … 699");
    head_close(&h);
}

/* How far output k of a call is from `want`, in bounds. */
static double worst_of(const call *c, int k, const double *want)
{
    float *got = run_cpu(c, bench_cpu[0], k);
    double worst = 0;
    for (int64_t i = 0; i < operand_count(&c->out[k]); i++)
        worst = fmax(worst, fabs((double)got[i] - want[i]) / c->bound[k][i]);
    free(got);
    return worst;
}

/* The bounds are worth something: a logit of 3 that is off by 1e-4 of itself is beyond them in logp, its slopes and dW. */
static void test_head_bounds(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{5, 7}, {12, 16}};
    for (int s = 0; s < 2; s++) {
        const int64_t v = sizes[s][0], k = sizes[s][1];
        head_case h = head_of(APUS_F32, 1, v, k, 0);
        double *x = h.forward.in[0].real, *w = h.forward.in[1].real + k * ((const int32_t *)h.forward.in[2].raw)[0], square = 0;
        for (int64_t i = 0; i < k; i++)
            square += x[i] * x[i];
        for (int64_t i = 0; i < k; i++)
            w[i] = (double)(float)(3 * x[i] / square);
        head_bind(&h, 0);
        double *want[4];
        for (int o = 0; o < 4; o++)
            want[o] = run_ref(o < 3 ? &h.forward : &h.dw, o % 3);
        for (int64_t i = 0; i < k; i++)
            w[i] = (double)(float)(w[i] * (1 + 1e-4));
        for (int o = 0; o < 4; o++) {
            const double beyond = worst_of(o < 3 ? &h.forward : &h.dw, o % 3, want[o]);
            if (o != 1 && !(beyond > 2))
                fail_msg("%lld words of %lld: output %d is off by %.2f of what is allowed", (long long)v, (long long)k, o, beyond);
            free(want[o]);
        }
        head_close(&h);
    }
}

/* A NaN is never lost on the way: the run must stop, not train on. */
static void test_nan(void **state)
{
    (void)state;
    for (int where = 0; where < 2; where++) {
        call c = call_of("token_logprob", (double[]){1, 0}, 2);
        input_real(&c, -1, 1, 2, (int64_t[]){1, 16});
        input_real(&c, -1, 1, 2, (int64_t[]){600, 16});
        input_index(&c, 600, 1, (int64_t[]){1});
        output(&c, 1, (int64_t[]){1});
        output(&c, 1, (int64_t[]){1});
        output(&c, 2, (int64_t[]){1, 16});
        c.in[where].real[0] = (double)NAN;
        for (int isa = 0; isa < bench_isas; isa++) {
            float *out = run_cpu(&c, bench_cpu[isa], 0);
            assert_true(isnan(out[0]));
            free(out);
        }
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_head), cmocka_unit_test(test_head_bounds), cmocka_unit_test(test_nan)};
    return cmocka_run_group_tests(tests, setup, bench_close);
}
