/* core/data: memory does not grow with the rows of a file, while they are read and when they are there. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/dataset.h"
#include "data/rows.h"
#include "io/io.h"
#include "module/module.h"
#include "run/run.h"
#include "value/node.h"

#define NODE apus_nodes()

enum { FEW = 20000, MANY = 300000 };

static char folder[256];

static int setup(void **state)
{
    static const char *const folders[] = {APUS_TEST_PLUGINS};
    apus_error err = {0};
    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/memory-%ld", APUS_TEST_TMP, (long)getpid());
    return apus_start(folders, 1, &err) == APUS_OK && apus_mkdirs(folder, &err) == APUS_OK ? 0 : -1;
}

static int teardown(void **state)
{
    apus_error err;
    (void)state;
    return apus_remove_tree(folder, &err) == APUS_OK ? 0 : -1;
}

/* Bytes that are allocated; core has no memory but malloc's and files'. What the process holds beside them (pages that are free in
 * part, threads' heaps) depends on how threads took turns. */
static size_t allocated(void)
{
    const struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

static void write_rows(char path[600], const char *name, int rows, int list)
{
    (void)snprintf(path, 600, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < rows; i++)
        fprintf(f, "%s{\"input_ids\": [%d, %d, %d]}\n", !list ? "" : i == 0 ? "[" : ",", i % 99, i % 98, i % 97);
    fprintf(f, "%s", list ? "]\n" : "");
    assert_int_equal(fclose(f), 0);
}

/* Memory while a dataset of this many rows is open, split, and has an order. */
static size_t opened(int rows)
{
    char path[600], json[700], cache[300];
    apus_error err = {0};
    apus_dataset *train, *eval;
    write_rows(path, "rows.jsonl", rows, 0);
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\"}", path);
    (void)snprintf(cache, sizeof cache, "%s/cache", folder);
    apus_node *spec = NODE->parse_json(json, strlen(json), "test", &err);
    const apus_dataset_options options = {.cache_dir = cache, .seed = 7, .threads = 2};
    apus_dataset *d;
    if (apus_dataset_open(spec, &options, &d, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(apus_dataset_split(d, 0.1, 3, &train, &eval, &err), APUS_OK);
    const size_t n = apus_dataset_rows(train);
    assert_int_equal(apus_dataset_rows(eval), rows / 10);
    for (size_t i = 0, k = 0; i + k < (size_t)rows;) { /* the parts, merged, are the dataset */
        const int held_out = k < (size_t)rows / 10 && apus_dataset_row(eval, k).source == i + k;
        assert_int_equal(held_out ? i + k : apus_dataset_row(train, i).source, i + k);
        *(held_out ? &k : &i) += 1;
    }
    const apus_row_order order = {.seed = 7, .n = n, .shuffle = 1};
    assert_int_equal(apus_dataset_row(train, apus_row_order_at(&order, n / 2)).n_tokens, 3);
    const size_t memory = allocated();
    apus_dataset_close(train);
    apus_dataset_close(eval);
    apus_dataset_close(d);
    NODE->release(spec);
    return memory;
}

static void test_datasets(void **state)
{
    (void)state;
    (void)opened(FEW); /* what is loaded once */
    const size_t few = opened(FEW), many = opened(MANY);
    if (many > few + MANY / 10) /* a byte for ten rows is too much */
        fail_msg("%zu bytes of memory with %d rows, %zu with %d", few, FEW, many, MANY);
}

/* A list of rows is no larger in memory than one of them. */
static void test_lists(void **state)
{
    char path[600];
    apus_error err = {0};
    apus_node *row;
    (void)state;
    write_rows(path, "rows.json", MANY, 1);
    const size_t before = allocated();
    size_t most = before;
    int n = 0;
    apus_rows *r;
    apus_status st;
    assert_int_equal(apus_rows_open(path, &r, &err), APUS_OK);
    for (; (st = apus_rows_next(r, &row, &err)) == APUS_OK && row != NULL; n++) {
        const size_t now = n % (MANY / 4) == MANY / 4 - 1 ? allocated() : most;
        most = now > most ? now : most;
        NODE->release(row);
    }
    assert_int_equal(st, APUS_OK);
    assert_int_equal(n, MANY);
    assert_true(most < before + ((size_t)4 << 20));
    apus_rows_close(r);
}

/* Row i of the part that begins at row `from` of all. */
static void expect_row(apus_examples *e, int64_t from, int64_t i)
{
    apus_node *row, *example;
    apus_error err = {0};
    assert_int_equal(apus_examples_get(e, from + i, &row, &example, &err), APUS_OK);
    for (int k = 0; k < 3; k++) {
        assert_int_equal(NODE->as_int(NODE->at(NODE->get(row, "input_ids"), (size_t)k), -1), i % (99 - k));
        assert_int_equal(NODE->as_int(NODE->at(NODE->get(example, "input_ids"), (size_t)k), -1), i % (99 - k));
    }
    NODE->release(row);
    NODE->release(example);
}

/* Examples, as an evaluation asks for them: all in order and each again some later, twice; and anywhere. */
static void test_examples(void **state)
{
    enum { LATER = 1000 };
    char path[600], json[1400];
    apus_error err = {0};
    apus_examples *e;
    int64_t count;
    (void)state;
    write_rows(path, "examples.jsonl", MANY, 0);
    (void)snprintf(json, sizeof json, "[\"%s#990\", \"%s\"]", path, path);
    apus_node *spec = NODE->parse_json(json, strlen(json), "test", &err);
    assert_int_equal(apus_examples_open(spec, 7, &e, &err), APUS_OK);
    const size_t before = allocated();
    size_t most = before;
    assert_int_equal(apus_examples_count(e, &count, &err), APUS_OK);
    assert_int_equal(count, 990 + MANY);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < MANY; i++) {
            expect_row(e, 990, i);
            if (i >= LATER)
                expect_row(e, 990, i - LATER);
            const size_t now = i % (MANY / 4) == 0 ? allocated() : most;
            most = now > most ? now : most;
        }
    }
    assert_true(most < before + ((size_t)4 << 20));
    for (int64_t i = 900; i >= 0; i -= 90)
        expect_row(e, 0, i);
    assert_int_equal(apus_examples_get(e, 990 + MANY, &(apus_node *){NULL}, &(apus_node *){NULL}, &err), APUS_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "there is no row 300990"));
    apus_examples_close(e);
    NODE->release(spec);
}

int main(int argc, char **argv)
{
#ifdef APUS_TEST_SANITIZED
    print_message("skipped: core/data/test_memory: sanitizers keep what is freed\n");
    return 0;
#endif
    /* What is freed and kept by a thread for itself would count as allocated: it keeps none. The C library reads this at its start. */
    if (argc == 1 && setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", 1) == 0)
        (void)execv("/proc/self/exe", (char *[]){argv[0], "again", NULL});
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_datasets), cmocka_unit_test(test_lists), cmocka_unit_test(test_examples)};
    return cmocka_run_group_tests_name("core/data/memory", tests, setup, teardown);
}
