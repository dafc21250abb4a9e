/*
 * Backend cpu with weights in the order of its own that apus_kernel.pack lays out: every kernel that takes them gives the bits that the
 * weight as it was gives, over sizes with and without tails, on each instruction set of this machine.
 */
#include "bench.h"

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* A packed W gives the bits of W as it was, in float32 and in bfloat16, with few rows and many: its products, rows and gradients. */
static void test_packed(void **state)
{
    (void)state;
    static const int64_t ns[] = {1, 15, 16, 33, 48, 149}, ks[] = {1, 7, 64, 577}, ms[] = {1, 2, 3, 8, 9, 140};
    for (int e = 0; e < 2 * 6 * 4 * 6; e++) {
        const apus_dtype type = e % 2 == 0 ? APUS_F32 : APUS_BF16;
        const int64_t n = ns[e / 2 % 6], k = ks[e / 12 % 4], m = ms[e / 48];
        weight_readers r = readers_of(type, m, n, k);
        for (int isa = 0; isa < bench_isas; isa++) {
            same_packed(&r.linear, 1, bench_cpu[isa], bench_names[isa]);
            same_packed(&r.linear, 1, brief_one[isa], bench_names[isa]);
            same_packed(&r.sum, 1, brief_cpu[isa], bench_names[isa]);
            same_packed(&r.rows, 0, bench_one[isa], bench_names[isa]);
            same_packed(&r.dx, 1, brief_cpu[isa], bench_names[isa]);
            same_packed(&r.dx_sum, 1, brief_one[isa], bench_names[isa]);
            if (type == APUS_BF16) { /* of those packed as float32 there is no gradient */
                same_packed(&r.dx, 1, bench_one[isa], bench_names[isa]);
                same_packed(&r.dx_sum, 1, bench_cpu[isa], bench_names[isa]);
            }
        }
        readers_free(&r);
    }
    /* What it leaves as it is. */
    apus_dtype type;
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    const apus_view q = {.dtype = APUS_Q8_0, .ndim = 2, .dims = {64, 64}}, row = {.dtype = APUS_F32, .ndim = 1, .dims = {64}};
    assert_int_equal(kernel->pack(bench_cpu[0], &q, &type, NULL), 0);
    assert_int_equal(kernel->pack(bench_cpu[0], &row, &type, NULL), 0);
}

/* A packed W gives the bits of W as it was, with slopes and without: of bfloat16, or of float32 where products round it anyway. */
static void test_head_packed(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 5, 7}, {3, 513, 16}, {70, 1500, 32}, {300, 900, 71}, {2, 49, 577}};
    for (int s = 0; s < 4 * 5; s++) {
        const int64_t n = sizes[s / 4][0], v = sizes[s / 4][1], h = sizes[s / 4][2];
        const int wide = s / 2 % 2;
        call c = call_of("token_logprob", (double[]){1, s % 2 == 0 ? 0.0 : 4.0}, 2);
        input_real(&c, -1, 1, 2, (int64_t[]){n, h});
        if (wide)
            input_real(&c, -1, 1, 2, (int64_t[]){v, h});
        else
            input_encoded(&c, APUS_BF16, v, h);
        input_index(&c, v, 1, &n);
        output(&c, 1, &n);
        output(&c, 1, &n);
        output(&c, 2, (int64_t[]){n, h});
        call plain = c;
        plain.n_out = 2;
        for (int isa = 0; isa < bench_isas; isa++) {
            if (!wide) {
                same_packed(&c, 1, bench_cpu[isa], bench_names[isa]);
                same_packed(&plain, 1, bench_one[isa], bench_names[isa]);
            }
            same_packed(&c, 1, brief_one[isa], bench_names[isa]);
            same_packed(&plain, 1, brief_cpu[isa], bench_names[isa]);
        }
        call_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_packed), cmocka_unit_test(test_head_packed)};
    return cmocka_run_group_tests(tests, setup, bench_close);
}
