/*
 * Backend cpu's kernels for adapters of a low rank, on each instruction set of this machine, in float32 and in bfloat16, over sizes with and
 * without tails: the sum of two products (APUS_KERNEL_TWICE) has the bits that the kernels of its parts give one after the other, in every
 * mixture of types; and products with a thin side those that the same columns have among many.
 */
#include "bench.h"

static int setup(void **state)
{
    (void)state;
    return bench_open();
}

/* The kernel of a sum of two. */
static const apus_kernel *twice_kernel(const char *op, int added)
{
    for (size_t i = 0; i < apus_component_count("kernels"); i++) {
        const apus_kernels_ops *t = apus_component_at("kernels", i)->ops;
        for (uint32_t k = 0; strcmp(t->backend, "cpu") == 0 && k < t->n_kernels; k++)
            if ((t->kernels[k].flags & APUS_KERNEL_TWICE) != 0 && strstr(t->kernels[k].op, op) != NULL &&
                strlen(t->kernels[k].op) == strlen(op) + 7 && (t->kernels[k].then != NULL) == added)
                return &t->kernels[k];
    }
    fail_msg("no kernel for two of %s", op);
    return NULL;
}

/* Scratch is as long as the kernel asks for, NaN, and fenced. */
static void run_kernel(const apus_kernel *kernel, apus_kernel_call c)
{
    uint8_t *memory = NULL;
    apus_error err = {0};
    const size_t bytes = kernel->scratch(&c);
    assert_int_equal(posix_memalign((void **)&memory, 64, bytes + FENCE), 0);
    memset(memory, 0xff, bytes + FENCE);
    c.scratch = memory;
    if (kernel->run(&c, &err) != APUS_OK)
        fail_msg("%s: %s", kernel->op, err.message);
    for (size_t i = 0; i < FENCE; i++)
        if (memory[bytes + i] != 0xff)
            fail_msg("%s writes beyond its scratch", kernel->op);
    free(memory);
}

/* A matrix of numbers that bfloat16 has, as floats and as those. owner: caller frees both */
typedef struct matrix {
    float *real;
    uint16_t *brief;
    int64_t dims[2];
} matrix;

static matrix matrix_of(int64_t rows, int64_t columns)
{
    matrix m = {malloc((size_t)(rows * columns + 1) * 4), malloc((size_t)(rows * columns + 1) * 2), {rows, columns}};
    for (int64_t i = 0; i < rows * columns; i++) {
        m.brief[i] = apus_f32_to_bf16((float)bench_random(-1, 1));
        m.real[i] = apus_bf16_to_f32(m.brief[i]);
    }
    return m;
}

/* In bfloat16 products, numbers that it has not: those are rounded where a kernel says. */
static void unround(matrix *m)
{
    for (int64_t i = 0; i < m->dims[0] * m->dims[1]; i++)
        m->real[i] = (float)bench_random(-1, 1);
}

static apus_view view_of(const matrix *m, int narrow)
{
    return (apus_view){
        .data = narrow ? (void *)m->brief : (void *)m->real, .dtype = narrow ? APUS_BF16 : APUS_F32, .ndim = 2, .dims = {m->dims[0], m->dims[1]}};
}

static void matrix_free(const matrix *m)
{
    free(m->real);
    free(m->brief);
}

/* w as linear's kernel packs it; its memory: *owned. */
static apus_view packed_view(const matrix *w, void *instance, void **owned)
{
    apus_view v = view_of(w, 0), to = v;
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    const size_t bytes = kernel->pack(instance, &v, &to.dtype, NULL);
    assert_int_equal(posix_memalign(owned, 64, bytes), 0);
    memset(*owned, 0, bytes);
    assert_int_equal(kernel->pack(instance, &v, &to.dtype, *owned), bytes);
    to.data = *owned;
    return to;
}

typedef struct mixture {
    int gradient;           /* linear_dx, else linear */
    int64_t m, n, k, r;     /* rows; columns of the sum; length of the two products' sums */
    int thin_last;          /* which of the two comes last */
    int bias, added, place; /* place: in the addend's memory */
    int packed_w, packed_b, narrow_x, narrow_h, narrow_y;
} mixture;

/* y as the sum's kernel gives it and as its parts do. */
static void same_twice(const mixture *s, void *instance, const char *isa, int brief)
{
    const int64_t m = s->m, n = s->n;
    matrix x = matrix_of(m, s->k), h = matrix_of(m, s->r), w = s->gradient ? matrix_of(s->k, n) : matrix_of(n, s->k);
    matrix b = s->gradient ? matrix_of(s->r, n) : matrix_of(n, s->r), bias = matrix_of(1, n), add = matrix_of(m, n);
    matrix first = matrix_of(m, n), second = matrix_of(m, n), y = matrix_of(m, n);
    void *owned[2] = {NULL, NULL};
    if (!s->narrow_x)
        unround(&x);
    if (!s->narrow_h)
        unround(&h);
    unround(&w);
    unround(&b);
    const apus_view wide[2] = {view_of(&x, s->narrow_x), s->packed_w ? packed_view(&w, instance, &owned[0]) : view_of(&w, 0)};
    const apus_view thin[2] = {view_of(&h, s->narrow_h), s->packed_b ? packed_view(&b, instance, &owned[1]) : view_of(&b, 0)};
    const apus_view one_row = {.data = bias.real, .dtype = APUS_F32, .ndim = 1, .dims = {n}};
    const char *op = s->gradient ? "linear_dx" : "linear";

    apus_view in[6] = {wide[0], wide[1], one_row}, out = view_of(&first, 0);
    apus_kernel_call c = {.in = in, .out = &out, .backend = instance, .n_in = s->bias ? 3 : 2, .n_out = 1};
    run_kernel(bench_kernel("cpu", op, NULL), c);
    memcpy(in, thin, sizeof thin);
    in[2] = view_of(&first, 0);
    out = view_of(&second, 0);
    c.n_in = 3;
    run_kernel(bench_kernel("cpu", op, "add"), c);
    for (int64_t i = 0; i < m * n && s->added; i++)
        second.real[i] += add.real[i];

    memcpy(in, s->thin_last ? wide : thin, sizeof thin);
    memcpy(in + 2, s->thin_last ? thin : wide, sizeof thin);
    c.n_in = 4;
    if (s->bias)
        in[c.n_in++] = one_row;
    if (s->added)
        in[c.n_in++] = view_of(&add, 0);
    out = view_of(s->place ? &add : &y, s->narrow_y);
    const apus_kernel *kernel = twice_kernel(op, s->added);
    assert_true(kernel->suits(&c));
    run_kernel(kernel, c);
    for (int64_t i = 0; i < m * n; i++) {
        const uint16_t rounded = apus_f32_to_bf16(second.real[i]);
        const int same = s->narrow_y ? memcmp((uint16_t *)out.data + i, &rounded, 2) == 0 : memcmp((float *)out.data + i, second.real + i, 4) == 0;
        if (!same)
            fail_msg("%s twice on %s%s, %lld x %lld of %lld and %lld (last %s; bias %d, added %d, packed %d %d, narrow %d %d %d): element %lld is "
                     "another",
                     op, isa, brief ? " in bfloat16" : "", (long long)m, (long long)n, (long long)s->k, (long long)s->r,
                     s->thin_last ? "thin" : "wide", s->bias, s->added, s->packed_w, s->packed_b, s->narrow_x, s->narrow_h, s->narrow_y,
                     (long long)i);
    }
    const matrix *all[] = {&x, &h, &w, &b, &bias, &add, &first, &second, &y};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        matrix_free(all[i]);
    free(owned[0]);
    free(owned[1]);
}

static void test_twice(void **state)
{
    (void)state;
    static const int64_t ms[] = {1, 2, 3, 8, 9, 23, 140, 300, 0}, ns[] = {1, 15, 33, 48, 149}, ks[] = {64, 161, 577}, rs[] = {1, 7, 8, 16};
    for (int e = 0; e < 9 * 5 * 3 * 4 * 2; e++) {
        mixture s = {.gradient = e % 2, .m = ms[e / 2 % 9], .n = ns[e / 18 % 5], .k = ks[e / 90 % 3], .r = rs[e / 270]};
        const uint64_t bits = (uint64_t)e * 0x9e3779b97f4a7c15u >> 32;
        s.added = bits & 1;
        s.place = s.added && (bits & 2) != 0;
        s.bias = !s.gradient && (bits & 4) != 0;
        s.thin_last = !s.bias && (bits & 8) != 0;
        for (int which = 0; which < 4 * bench_isas; which++) {
            const int isa = which / 4, brief = which % 2;
            void *instance = which % 4 == 0 ? bench_cpu[isa] : which % 4 == 1 ? brief_cpu[isa] : which % 4 == 2 ? bench_one[isa] : brief_one[isa];
            s.packed_w = (!s.gradient || brief) && (bits & 16) != 0;
            s.packed_b = (!s.gradient || brief) && (bits & 32) != 0;
            s.narrow_x = (bits & 64) != 0;
            s.narrow_h = (bits & 128) != 0;
            s.narrow_y = !s.gradient && !s.place && (bits & 256) != 0;
            same_twice(&s, instance, bench_names[isa], brief);
        }
    }
}

/* What it leaves to the kernels of the parts: two long sums; a bias on the short one; weights that meet activations in int8. */
static void test_refused(void **state)
{
    (void)state;
    apus_view in[5] = {{.dtype = APUS_F32, .ndim = 2, .dims = {5, 8}},
                       {.dtype = APUS_F32, .ndim = 2, .dims = {20, 8}},
                       {.dtype = APUS_F32, .ndim = 2, .dims = {5, 64}},
                       {.dtype = APUS_F32, .ndim = 2, .dims = {20, 64}},
                       {.dtype = APUS_F32, .ndim = 1, .dims = {20}}};
    apus_view out = {.dtype = APUS_F32, .ndim = 2, .dims = {5, 20}};
    apus_kernel_call c = {.in = in, .out = &out, .backend = bench_cpu[0], .n_in = 5, .n_out = 1};
    const apus_kernel *kernel = twice_kernel("linear", 0);
    assert_true(kernel->suits(&c));
    in[0].dims[1] = in[1].dims[1] = 128;
    assert_false(kernel->suits(&c)); /* neither is thin */
    in[2].dims[1] = in[3].dims[1] = 8;
    assert_false(kernel->suits(&c)); /* the bias is the thin one's */
    c.n_in = 4;
    assert_true(kernel->suits(&c));
    in[1].dtype = APUS_Q8_0;
    assert_true(kernel->suits(&c));
    c.backend = bench_instance("cpu", bench_names[0], 1, "bfloat16", "int8");
    assert_false(kernel->suits(&c));
    bench_backend("cpu")->close(c.backend);
}

/* A product with a thin side, and the same columns of one that is wider than any thin one. */
static void same_columns(const char *op, const matrix in[2], const matrix wider[2], int turned, uint32_t narrow, void *instance, const char *isa)
{
    apus_view few_in[2], many_in[2];
    for (int k = 0; k < 2; k++) {
        few_in[k] = view_of(&in[k], narrow >> k & 1);
        many_in[k] = view_of(&wider[k], narrow >> k & 1);
    }
    const int is_dw = strcmp(op, "linear_dw") == 0, is_dx = strcmp(op, "linear_dx") == 0;
    const int64_t rows = is_dw ? in[0].dims[1] : in[0].dims[0], columns = is_dw || is_dx ? in[1].dims[1] : in[1].dims[0];
    const int64_t all_rows = is_dw ? wider[0].dims[1] : rows, all_columns = is_dw || is_dx ? wider[1].dims[1] : wider[1].dims[0];
    matrix y = matrix_of(rows, columns), all = matrix_of(all_rows, all_columns);
    apus_view out = view_of(&y, 0), all_out = view_of(&all, 0);
    const apus_kernel *kernel = bench_kernel("cpu", op, NULL);
    for (uint32_t accumulate = 0; accumulate < 2; accumulate++) {
        const apus_kernel_call few = {.in = few_in, .out = &out, .backend = instance, .n_in = 2, .n_out = 1, .accumulate = accumulate};
        const apus_kernel_call many = {.in = many_in, .out = &all_out, .backend = instance, .n_in = 2, .n_out = 1, .accumulate = accumulate};
        run_kernel(kernel, few);
        run_kernel(kernel, many);
        for (int64_t i = 0; i < rows; i++)
            if (memcmp(y.real + i * columns, all.real + i * all_columns, (size_t)columns * 4) != 0)
                fail_msg("%s on %s, %lld x %lld (%s), narrow %u, accumulate %u: row %lld has other bits than among many", op, isa, (long long)rows,
                         (long long)columns, turned ? "thin left" : "thin right", narrow, accumulate, (long long)i);
    }
    matrix_free(&y);
    matrix_free(&all);
}

/* The first columns of a matrix. */
static matrix first_columns(const matrix *m, int64_t n)
{
    matrix to = matrix_of(m->dims[0], n);
    for (int64_t i = 0; i < m->dims[0]; i++) {
        memcpy(to.real + i * n, m->real + i * m->dims[1], (size_t)n * 4);
        memcpy(to.brief + i * n, m->brief + i * m->dims[1], (size_t)n * 2);
    }
    return to;
}

static void test_thin(void **state)
{
    (void)state;
    enum { WIDER = 40 };
    static const int64_t thins[] = {1, 3, 8, 9, 16}, ms[] = {1, 7, 8, 33, 200}, ks[] = {1, 16, 31, 65, 150, 321};
    for (int e = 0; e < 5 * 5 * 6; e++) {
        const int64_t r = thins[e % 5], m = ms[e / 5 % 5], k = ks[e / 25];
        const matrix x = matrix_of(m, k), along = matrix_of(WIDER, k), across = matrix_of(k, WIDER), h = matrix_of(m, WIDER);
        const matrix a = {along.real, along.brief, {r, k}}, b = first_columns(&across, r), few = first_columns(&h, r);
        for (int which = 0; which < 4 * bench_isas; which++) {
            const int isa = which / 4;
            void *instance = which % 4 == 0 ? bench_cpu[isa] : which % 4 == 1 ? brief_cpu[isa] : which % 4 == 2 ? bench_one[isa] : brief_one[isa];
            for (uint32_t narrow = 0; narrow < 4; narrow++) {
                if (narrow < 2) {
                    same_columns("linear", (matrix[]){x, a}, (matrix[]){x, along}, 0, narrow, instance, bench_names[isa]);
                    same_columns("linear_dx", (matrix[]){x, b}, (matrix[]){x, across}, 0, narrow, instance, bench_names[isa]);
                }
                same_columns("linear_dw", (matrix[]){x, few}, (matrix[]){x, h}, 0, narrow, instance, bench_names[isa]);
                same_columns("linear_dw", (matrix[]){few, x}, (matrix[]){h, x}, 1, narrow, instance, bench_names[isa]);
            }
        }
        const matrix *all[] = {&x, &along, &across, &h, &b, &few};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            matrix_free(all[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_twice), cmocka_unit_test(test_refused), cmocka_unit_test(test_thin)};
    return cmocka_run_group_tests(tests, setup, bench_close);
}
