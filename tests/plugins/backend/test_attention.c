/*
 * Attention of backend cpu, its gradient, that over a paged cache, and rope with it, for each instruction set of this machine: against backend ref,
 * and its promise on bits: a query's depend on neither company, pages, threads nor how many keys were taken at once.
 */
#include "attention_bound.h"
#include "attention_shapes.h"
#include "bench.h"

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* With products in bfloat16: within what its rounding of every factor comes to. g: the call of attention_grad. */
static void compare_bounded(call *c, call *g, const shape *s, const double *out, const double *lse)
{
    const int64_t t = tokens_of(s), wide = t * s->heads * s->dim, narrow = t * s->kv_heads * s->dim;
    const attention_sizes sizes = {s->heads, s->kv_heads, s->dim, s->window, 1.0 / sqrt(s->dim), s->softcap, &s->segments[0][0], s->n_segments, t};
    const attention_values x = {c->in[0].real, c->in[1].real, c->in[2].real, out, lse, g->in[0].real};
    const attention_bounds b = {calloc((size_t)wide, 8), calloc((size_t)(t * s->heads), 8), calloc((size_t)wide, 8), calloc((size_t)narrow, 8),
                                calloc((size_t)narrow, 8)};
    attention_bound(&sizes, &x, &b);
    memcpy(c->bound, (const double *[]){b.out, b.lse}, 2 * sizeof *c->bound);
    memcpy(g->bound, (const double *[]){b.dq, b.dk, b.dv}, 3 * sizeof *g->bound);
    compare_on(c, 0, brief_cpu, brief_one);
    compare_on(g, 0, brief_cpu, brief_one);
    memset(c->bound, 0, sizeof c->bound);
    memset(g->bound, 0, sizeof g->bound);
    free(b.out);
    free(b.lse);
    free(b.dq);
    free(b.dk);
    free(b.dv);
}

static void test_attention(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const shape *s = &shapes[i];
        call c, g;
        double *out, *lse;
        attention_calls(s, &c, &g, &out, &lse);
        compare(&c, 4e-6);
        compare(&g, 2e-5);
        compare_bounded(&c, &g, s, out, lse);
        g.skip = 1;
        compare(&g, 2e-5);
        g.skip = 6;
        compare(&g, 2e-5);
        free(out);
        free(lse);
        call_free(&c);
        call_free(&g);
    }
    static const int32_t wrong[][4] = {{-1, 2, -1, 0}, {0, -1, -1, 0}, {0, 7, -1, 0}, {0, 2, 0, 0}, {0, 2, -2, 0}, {INT32_MAX, INT32_MAX, -1, 0}};
    for (int w = 0; w < 6; w++) {
        call c = attention_call("attention", &shapes[0], 0);
        input_real(&c, -2, 2, 2, (int64_t[]){6, 16});
        input_real(&c, -2, 2, 2, (int64_t[]){6, 8});
        input_real(&c, -1, 1, 2, (int64_t[]){6, 8});
        input_int(&c, 2, (int64_t[]){1, 4}, wrong[w]);
        output(&c, 2, (int64_t[]){6, 16});
        output(&c, 2, (int64_t[]){6, 2});
        expect_refused(&c, "attention: segment 0 is {");
        call_free(&c);
    }
}

/* attention_cached: against ref; then bits: whole prompts, single queries, other pages and neighbours, and plain attention. */
static void test_cached(void **state)
{
    (void)state;
    static const shape specs[] = {{9, 3, 64, 0, 0, 1, {{0, 150, -1, 0}}}, {4, 1, 12, 33, 4.0, 1, {{0, 150, -1, 0}}}};
    enum { T = 150, PAGES = 20 };
    for (int i = 0; i < 2; i++) {
        const shape *s = &specs[i];
        const int64_t wide = s->heads * s->dim, narrow = s->kv_heads * s->dim;
        call plain = attention_call("attention", s, 0);
        input_real(&plain, -2, 2, 2, (int64_t[]){T, wide});
        input_real(&plain, -2, 2, 2, (int64_t[]){T, narrow});
        input_real(&plain, -1, 1, 2, (int64_t[]){T, narrow});
        input_int(&plain, 2, (int64_t[]){1, 4}, s->segments[0]);
        output(&plain, 2, (int64_t[]){T, wide});
        output(&plain, 2, (int64_t[]){T, s->heads});
        for (int which = 0; which < 2 * bench_isas; which++) {
            void *cpu = which % 2 == 0 ? bench_cpu[which / 2] : brief_cpu[which / 2];
            float *want = run_cpu(&plain, cpu, 0);
            static const int64_t pages[] = {8, 16, 200};
            for (int p = 0; p < 3; p++) {
                const int64_t page = pages[p], used = (T + page - 1) / page, slots = 2 * used * page;
                int32_t table[2][4 + PAGES] = {{0}};
                double *k = calloc((size_t)(slots * narrow), sizeof *k), *v = calloc((size_t)(slots * narrow), sizeof *v);
                for (int64_t j = 0; j < slots * narrow; j++)
                    k[j] = v[j] = (double)(float)bench_random(-1, 1);
                for (int64_t j = 0; j < used; j++) {
                    table[0][4 + j] = (int32_t)(2 * used - 1 - j);
                    table[1][4 + j] = (int32_t)j;
                }
                for (int64_t j = 0; j < T; j++) {
                    const int64_t slot = table[0][4 + j / page] * page + j % page;
                    memcpy(k + slot * narrow, plain.in[1].real + j * narrow, (size_t)narrow * sizeof *k);
                    memcpy(v + slot * narrow, plain.in[2].real + j * narrow, (size_t)narrow * sizeof *v);
                }
                static const int64_t counts[] = {1, 2, 7, 63, 64, T};
                for (int n = 0; n < 6; n++) {
                    for (int64_t length = counts[n]; length <= T; length += counts[n] == T ? 1 : 41) {
                        const int64_t count = counts[n], other = 3; /* a neighbour stands first */
                        table[1][0] = 0;
                        table[1][1] = (int32_t)other;
                        table[1][2] = 77;
                        table[0][0] = (int32_t)other;
                        table[0][1] = (int32_t)count;
                        table[0][2] = (int32_t)length;
                        call c = attention_call("attention_cached", s, page);
                        input_real(&c, -1, 1, 2, (int64_t[]){count + other, wide});
                        memcpy(c.in[0].real + other * wide, plain.in[0].real + (length - count) * wide, (size_t)(count * wide) * sizeof(double));
                        input_copy(&c, k, 2, (int64_t[]){slots, narrow});
                        input_copy(&c, v, 2, (int64_t[]){slots, narrow});
                        input_int(&c, 2, (int64_t[]){2, 4 + PAGES}, &table[0][0]);
                        output(&c, 2, (int64_t[]){count + other, wide});
                        if (which == 0 && length < 60)
                            compare(&c, 4e-6);
                        float *got = run_cpu(&c, cpu, 0);
                        assert_memory_equal(got + other * wide, want + (length - count) * wide, (size_t)(count * wide) * 4);
                        free(got);
                        call_free(&c);
                    }
                }
                free(k);
                free(v);
            }
            free(want);
        }
        call_free(&plain);
    }
    static const int32_t wrong[][6] = {{0, 1, 9, 0, 0, 1}, {0, 3, 2, 0, 0, 1}, {-1, 1, 1, 0, 0, 0}, {0, 1, 5, 0, 0, 2}, {0, 1, 5, 0, -1, 0}};
    for (int w = 0; w < 5; w++) {
        call c = attention_call("attention_cached", &shapes[0], 4);
        input_real(&c, -2, 2, 2, (int64_t[]){2, 16});
        input_real(&c, -2, 2, 2, (int64_t[]){8, 8});
        input_real(&c, -1, 1, 2, (int64_t[]){8, 8});
        input_int(&c, 2, (int64_t[]){1, 6}, wrong[w]);
        output(&c, 2, (int64_t[]){2, 16});
        expect_refused(&c, "attention_cached: ");
        call_free(&c);
    }
}

/* Contexts of several spans: against ref; a query has the same bits among all others and alone, when threads share its spans and
 * when they do not, in float32 and in bfloat16. */
static void test_long_attention(void **state)
{
    (void)state;
    static const shape specs[] = {{3, 1, 16, 0, 0, 2, {{0, 530, -1, 0}, {530, 600, 0, 0}}},
                                  {2, 2, 20, 700, 0, 1, {{0, 1130, -1, 0}}},
                                  {16, 1, 8, 0, 30.0, 1, {{0, 1130, -1, 0}}}};
    enum { T = 1130, PAGE = 16, PAGES = 72 };
    for (int i = 0; i < 3; i++) {
        const shape *s = &specs[i];
        const int64_t wide = s->heads * s->dim, narrow = s->kv_heads * s->dim;
        call c = attention_call("attention", s, 0);
        input_real(&c, -2, 2, 2, (int64_t[]){T, wide});
        input_real(&c, -2, 2, 2, (int64_t[]){T, narrow});
        input_real(&c, -1, 1, 2, (int64_t[]){T, narrow});
        input_int(&c, 2, (int64_t[]){s->n_segments, 4}, &s->segments[0][0]);
        output(&c, 2, (int64_t[]){T, wide});
        output(&c, 2, (int64_t[]){T, s->heads});
        compare(&c, 1e-5); /* a query's values nearly cancel: the output's root mean square is small */
        double *k = calloc((size_t)(PAGES * PAGE * narrow), sizeof *k), *v = calloc((size_t)(PAGES * PAGE * narrow), sizeof *v);
        int32_t table[4 + PAGES];
        for (int32_t p = 0; p < PAGES; p++)
            table[4 + p] = p ^ 1;
        for (int64_t t = 0; t < T; t++) {
            const int64_t slot = table[4 + t / PAGE] * PAGE + t % PAGE;
            memcpy(k + slot * narrow, c.in[1].real + t * narrow, (size_t)narrow * sizeof *k);
            memcpy(v + slot * narrow, c.in[2].real + t * narrow, (size_t)narrow * sizeof *v);
        }
        for (int which = 0; which < 2 * bench_isas; which++) {
            void *many = which % 2 == 0 ? bench_cpu[which / 2] : brief_cpu[which / 2];
            void *one = which % 2 == 0 ? bench_one[which / 2] : brief_one[which / 2];
            float *want = run_cpu(&c, many, 0), *same = run_cpu(&c, one, 0);
            assert_memory_equal(want, same, (size_t)(T * wide) * 4);
            free(same);
            static const int64_t at[] = {0, 511, 512, 513, 1023, 1024, 1025, T - 1};
            for (int q = 0; q < 8; q++) {
                memcpy(table, (int32_t[]){0, 1, (int32_t)at[q] + 1, 0}, 4 * sizeof *table);
                call alone = attention_call("attention_cached", s, PAGE);
                input_copy(&alone, c.in[0].real + at[q] * wide, 2, (int64_t[]){1, wide});
                input_copy(&alone, k, 2, (int64_t[]){PAGES * PAGE, narrow});
                input_copy(&alone, v, 2, (int64_t[]){PAGES * PAGE, narrow});
                input_int(&alone, 2, (int64_t[]){1, 4 + PAGES}, table);
                output(&alone, 2, (int64_t[]){1, wide});
                for (int threads = 0; threads < 2; threads++) {
                    float *got = run_cpu(&alone, threads == 0 ? many : one, 0);
                    if (memcmp(got, want + at[q] * wide, (size_t)wide * 4) != 0)
                        fail_msg("%s, case %d: query %lld has other bits alone", bench_names[which / 2], i, (long long)at[q]);
                    free(got);
                }
                call_free(&alone);
            }
            free(want);
        }
        free(k);
        free(v);
        call_free(&c);
    }
}

/* Rope and attention_cached in one: the bits of one after the other, for single queries, for more of them and for both at once. */
static void test_rope(void **state)
{
    (void)state;
    static const shape specs[] = {
        {9, 3, 64, 0, 0, 1, {{0, 1, -1, 0}}}, {4, 1, 12, 33, 4.0, 1, {{0, 1, -1, 0}}}, {7, 7, 20, 0, 0, 1, {{0, 1, -1, 0}}}};
    static const int32_t counts[][3] = {{1, 0, 0}, {1, 1, 1}, {5, 1, 0}, {70, 1, 3}, {1, 1, 0}};
    enum { PAGE = 16, PAGES = 10, SLOTS = 3 * PAGES * PAGE };
    for (int i = 0; i < 3 * 5; i++) {
        const shape *s = &specs[i / 5];
        const int32_t *count = counts[i % 5], length[3] = {i % 2 == 0 ? 77 : 150, 1, 129};
        const int64_t tokens = count[0] + count[1] + count[2], wide = s->heads * s->dim, narrow = s->kv_heads * s->dim, rotary = s->dim - s->dim % 8;
        int32_t table[3][4 + PAGES] = {{0}};
        for (int32_t r = 0, at = 0; r < 3; at += count[r++]) {
            memcpy(table[r], (int32_t[]){at, count[r], count[r] > length[r] ? count[r] : length[r], 0}, 4 * sizeof **table);
            for (int32_t p = 0; p < PAGES; p++)
                table[r][4 + p] = 3 * p + r;
        }
        call rope = call_of("rope", (double[]){(double)s->dim, (double)rotary, 1.5, 0, 0, 0, 1, 1e4}, 8);
        input_real(&rope, -2, 2, 2, (int64_t[]){tokens, wide});
        input_index(&rope, 6000, 1, &tokens);
        input_index(&rope, 6000, 1, &tokens);
        input_real(&rope, 0, 1, 1, (int64_t[]){rotary / 2});
        output(&rope, 2, (int64_t[]){tokens, wide});
        call cached = attention_call("attention_cached", s, PAGE), both = rope;
        input_real(&cached, 0, 0, 2, (int64_t[]){tokens, wide});
        input_real(&cached, -2, 2, 2, (int64_t[]){SLOTS, narrow});
        input_real(&cached, -1, 1, 2, (int64_t[]){SLOTS, narrow});
        input_int(&cached, 2, (int64_t[]){3, 4 + PAGES}, &table[0][0]);
        output(&cached, 2, (int64_t[]){tokens, wide});
        both.then = "attention_cached";
        both.n_in = 7;
        memcpy(both.in + 4, cached.in + 1, 3 * sizeof *both.in);
        memcpy(both.attrs + 8, cached.attrs, 7 * sizeof *both.attrs);
        for (int which = 0; which < 4 * bench_isas; which++) {
            void *cpu = (void **[]){bench_cpu, bench_one, brief_cpu, brief_one}[which % 4][which / 4];
            float *rotated = run_cpu(&rope, cpu, 0), *got = run_cpu(&both, cpu, 0);
            for (int64_t j = 0; j < tokens * wide; j++)
                cached.in[0].real[j] = (double)rotated[j];
            float *want = run_cpu(&cached, cpu, 0);
            if (memcmp(want, got, (size_t)(tokens * wide) * 4) != 0)
                fail_msg("rope and attention_cached on %s, case %d: other bits than one by one", bench_names[which / 4], i);
            free(rotated);
            free(got);
            free(want);
        }
        call_free(&rope);
        call_free(&cached);
    }
}

/* A NaN is never lost on the way: the run must stop, not train on. */
static void test_nan(void **state)
{
    (void)state;
    static const shape s = {2, 1, 16, 0, 0, 1, {{0, 70, -1, 0}}};
    for (int where = 0; where < 3; where++) {
        call c = attention_call("attention", &s, 0);
        input_real(&c, -2, 2, 2, (int64_t[]){70, 32});
        input_real(&c, -2, 2, 2, (int64_t[]){70, 16});
        input_real(&c, -1, 1, 2, (int64_t[]){70, 16});
        input_int(&c, 2, (int64_t[]){1, 4}, s.segments[0]);
        output(&c, 2, (int64_t[]){70, 32});
        output(&c, 2, (int64_t[]){70, 2});
        c.in[where].real[0] = (double)NAN;
        for (int isa = 0; isa < bench_isas; isa++) {
            float *out = run_cpu(&c, bench_cpu[isa], 0);
            assert_true(isnan(out[0]));
            for (int t = 1; t < 70; t++)
                assert_int_equal(isnan(out[t * 32]), where > 0); /* later queries see the key, not the query */
            free(out);
        }
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention), cmocka_unit_test(test_cached), cmocka_unit_test(test_long_attention),
                                       cmocka_unit_test(test_rope), cmocka_unit_test(test_nan)};
    return cmocka_run_group_tests(tests, setup, bench_close);
}
