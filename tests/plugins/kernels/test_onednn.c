/*
 * Kernels "onednn" by themselves, beside core/graph/test_conformance, which holds them against the reference: every number of rows up to a
 * capacity with the scratch that was asked for at it; bits that a second instance gives again; nothing compiled twice.
 */
#include "module/module.h"

#include <apus/kernel.h>
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { CAPACITY = 200, OUT = 70, IN = 50, FENCE = 64, LARGE = 4096 };

static const apus_kernels_ops *table;

/* ---------------------------------------------------------------- what a call allocates */

#if !defined(APUS_TEST_SANITIZED)
static atomic_int counting, large; /* blocks of LARGE bytes and more */

#define REAL(name, result, parameters, bytes)                                                                                                        \
    static result(*real) parameters;                                                                                                                 \
    if (real == NULL)                                                                                                                                \
        *(void **)&real = dlsym(RTLD_NEXT, name);                                                                                                    \
    large += counting && (bytes) >= LARGE

void *malloc(size_t n)
{
    REAL("malloc", void *, (size_t), n);
    return real(n);
}

int posix_memalign(void **p, size_t alignment, size_t n)
{
    REAL("posix_memalign", int, (void **, size_t, size_t), n);
    return real(p, alignment, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    REAL("aligned_alloc", void *, (size_t, size_t), n);
    return real(alignment, n);
}
#endif

/* ---------------------------------------------------------------- one call */

typedef struct kernel_case {
    const char *op, *then;
    int bias, accumulate, in_place;
} kernel_case;

static const kernel_case cases[] = {{"apus.linear/1", NULL, 0, 0, 0},
                                    {"apus.linear/1", NULL, 1, 1, 0},
                                    {"apus.linear/1", "apus.add/1", 1, 0, 0},
                                    {"apus.linear/1", "apus.add/1", 0, 0, 1},
                                    {"apus.linear_dx/1", NULL, 0, 1, 0},
                                    {"apus.linear_dx/1", "apus.add/1", 0, 0, 0},
                                    {"apus.linear_dx/1", "apus.add/1", 0, 0, 1},
                                    {"apus.linear_dw/1", NULL, 0, 0, 0},
                                    {"apus.linear_dw/1", NULL, 0, 1, 0}};
enum { N_CASES = sizeof cases / sizeof cases[0] };

static const apus_kernel *kernel_of(const kernel_case *k)
{
    for (uint32_t i = 0; i < table->n_kernels; i++)
        if (strcmp(table->kernels[i].op, k->op) == 0 && (table->kernels[i].then == NULL) == (k->then == NULL))
            return &table->kernels[i];
    fail_msg("no kernel for %s", k->op);
    return NULL;
}

static float number(size_t i)
{
    return (float)((int)(i * 2654435761u >> 8 & 0xffff) - 32768) * 3e-5f;
}

static void *open_table(uint32_t threads)
{
    const apus_backend_facts facts = {.size = sizeof facts, .threads = threads, .products = APUS_F32, .hardware = "here"};
    apus_error err = {0};
    void *instance = NULL;
    if (table->open(apus_host_table(), &facts, &instance, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return instance;
}

static apus_view view_of(float *data, int64_t rows, int64_t columns)
{
    return (apus_view){.data = data, .dtype = APUS_F32, .ndim = columns > 0 ? 2 : 1, .dims = {rows, columns}};
}

static float first[CAPACITY * OUT], second[CAPACITY * OUT], bias[OUT], other[CAPACITY * OUT], result[CAPACITY * OUT + FENCE];

/* The case with m rows: its views, with memory. Returns the elements of the result, and its dimensions and what is summed over. */
static size_t views_of(const kernel_case *k, int64_t m, apus_view in[4], apus_view *out, int64_t dims[3])
{
    const int forward = strcmp(k->op, "apus.linear/1") == 0, dw = strcmp(k->op, "apus.linear_dw/1") == 0;
    uint32_t n = 2;
    in[0] = view_of(first, m, forward ? IN : OUT);
    in[1] = dw ? view_of(second, m, IN) : view_of(second, OUT, IN);
    if (k->bias)
        in[n++] = view_of(bias, OUT, 0);
    dims[0] = dw ? OUT : m;
    dims[1] = forward ? OUT : IN;
    dims[2] = forward ? IN : dw ? m : OUT;
    *out = view_of(result, dims[0], dims[1]);
    if (k->then != NULL)
        in[n++] = view_of(k->in_place ? result : other, dims[0], dims[1]);
    return (size_t)(dims[0] * dims[1]);
}

static uint32_t inputs_of(const kernel_case *k)
{
    return 2u + (uint32_t)k->bias + (k->then != NULL);
}

static void start(void)
{
    for (size_t i = 0; i < CAPACITY * OUT; i++) {
        first[i] = number(i);
        second[i] = number(i + 77777);
        other[i] = result[i] = number(i + 999);
    }
    for (size_t i = 0; i < OUT; i++)
        bias[i] = number(i + 5);
    for (size_t i = 0; i < FENCE; i++)
        result[CAPACITY * OUT + i] = 3.5f;
}

static void run(const kernel_case *k, void *instance, int64_t m, char *scratch)
{
    apus_view in[4], out;
    int64_t dims[3];
    apus_error err = {0};
    const apus_kernel_call c = {
        .in = in, .out = &out, .scratch = scratch, .backend = instance, .n_in = inputs_of(k), .n_out = 1, .accumulate = (uint32_t)k->accumulate};
    (void)views_of(k, m, in, &out, dims);
    if (kernel_of(k)->run(&c, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

static size_t scratch_of(const kernel_case *k, void *instance)
{
    apus_view in[4], out;
    int64_t dims[3];
    (void)views_of(k, CAPACITY, in, &out, dims);
    for (uint32_t i = 0; i < inputs_of(k); i++)
        in[i].data = NULL;
    out.data = NULL;
    const apus_kernel_call c = {.in = in, .out = &out, .backend = instance, .n_in = inputs_of(k), .n_out = 1, .accumulate = (uint32_t)k->accumulate};
    return kernel_of(k)->scratch(&c);
}

static double expected(const kernel_case *k, const int64_t dims[3], int64_t i, int64_t j)
{
    const int forward = strcmp(k->op, "apus.linear/1") == 0, dw = strcmp(k->op, "apus.linear_dw/1") == 0;
    double sum = k->bias ? bias[j] : 0.0;
    for (int64_t s = 0; s < dims[2]; s++)
        sum += (double)first[dw ? s * OUT + i : i * dims[2] + s] * (double)second[forward ? j * IN + s : s * dims[1] + j];
    return sum + (k->then != NULL || k->accumulate ? other[i * dims[1] + j] : 0.0); /* result began as other */
}

/* ---------------------------------------------------------------- tests */

static void any_number_of_rows(void **state)
{
    (void)state;
    static const int64_t rows[] = {0, 1, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 192, 199, CAPACITY};
    static float once[CAPACITY * OUT];
    void *instance = open_table(2), *again = open_table(2);
    for (int c = 0; c < N_CASES; c++) {
        const kernel_case *k = &cases[c];
        const size_t bytes = scratch_of(k, instance);
        assert_true(bytes > 0);
        assert_int_equal(scratch_of(k, again), bytes);
        char *scratch = apus_host_table()->alloc(bytes + FENCE);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            apus_view in[4], out;
            int64_t dims[3];
            const size_t n = views_of(k, rows[r], in, &out, dims);
            memset(scratch, 0xff, bytes + FENCE);
            start();
            run(k, instance, rows[r], scratch);
            for (size_t i = 0; i < FENCE; i++)
                if ((unsigned char)scratch[bytes + i] != 0xff)
                    fail_msg("case %d, %lld rows: wrote behind its scratch", c, (long long)rows[r]);
            for (size_t i = n; i < CAPACITY * OUT; i++)
                if (result[i] != other[i])
                    fail_msg("case %d, %lld rows: wrote behind its result", c, (long long)rows[r]);
            for (size_t i = 0; i < n; i++) {
                const double e = expected(k, dims, (int64_t)i / dims[1], (int64_t)i % dims[1]);
                if (!(fabs((double)result[i] - e) <= 1e-4))
                    fail_msg("case %d, %lld rows, element %zu: %.7g, not %.7g", c, (long long)rows[r], i, (double)result[i], e);
            }
            memcpy(once, result, n * sizeof *once);
            start();
            run(k, again, rows[r], scratch);
            if (memcmp(once, result, n * sizeof *once) != 0)
                fail_msg("case %d, %lld rows: another instance gives other bits", c, (long long)rows[r]);
        }
        apus_host_table()->free(scratch);
    }
    table->close(instance);
    table->close(again);
}

/* oneDNN allocates some small blocks to run; what it compiles, and works in, is large. */
static void seen_once_is_compiled(void **state)
{
    (void)state;
#if defined(APUS_TEST_SANITIZED)
    print_message("skipped: seen_once_is_compiled: a sanitizer has the allocator\n");
#else
    void *instance = open_table(2);
    for (int c = 0; c < N_CASES; c++) {
        const size_t bytes = scratch_of(&cases[c], instance);
        char *scratch = apus_host_table()->alloc(bytes);
        start();
        run(&cases[c], instance, 150, scratch);
        counting = 1;
        run(&cases[c], instance, 150, scratch);
        run(&cases[c], instance, CAPACITY, scratch); /* the capacity's was compiled when scratch was asked for */
        counting = 0;
        if (large != 0)
            fail_msg("case %d: %d blocks of %d bytes and more", c, (int)large, LARGE);
        apus_host_table()->free(scratch);
    }
    table->close(instance);
#endif
}

static void float32_alone(void **state)
{
    (void)state;
    const apus_backend_facts facts = {.size = sizeof facts, .threads = 2, .products = APUS_BF16, .hardware = "here"};
    apus_error err = {0};
    void *instance = NULL;
    assert_int_equal(table->open(apus_host_table(), &facts, &instance, &err), APUS_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "float32"));
    for (uint32_t i = 0; i < table->n_kernels; i++)
        assert_true((table->kernels[i].flags & APUS_KERNEL_ROWS_VARY) != 0);
}

int main(void)
{
    static const char file[] = APUS_TEST_PLUGINS "/apus_kernels_onednn.so";
    apus_error err = {0};
    if (access(file, F_OK) != 0) {
        printf("skipped: plugins/kernels/onednn: it is not built\n");
        return 0;
    }
    if (apus_module_load_file(file, &err) != APUS_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    table = apus_component_find("kernels", "onednn", &err)->ops;
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_number_of_rows), cmocka_unit_test(seen_once_is_compiled),
                                       cmocka_unit_test(float32_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
