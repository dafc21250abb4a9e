/* core/data: rows out of files of every kind, and datasets made of them: the same bytes whatever the number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
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

static char folder[256];
static apus_text *text; /* a token for each byte; 256 ends a text */
static apus_node *tokenizer, *tokenizer_config;

static int setup(void **state)
{
    static const char source[] = "{\"added_tokens\": [{\"id\": 256, \"content\": \"<eos>\", \"special\": true}], \"model\": {\"type\": \"Byte\"}}";
    static const char config[] = "{\"eos_token\": \"<eos>\"}";
    static const char *const folders[] = {APUS_TEST_PLUGINS};
    apus_error err = {0};
    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/data-%ld", APUS_TEST_TMP, (long)getpid());
    if (apus_start(folders, 1, &err) != APUS_OK || apus_mkdirs(folder, &err) != APUS_OK)
        return -1;
    tokenizer = NODE->parse_json(source, sizeof source - 1, "tokenizer", &err);
    tokenizer_config = NODE->parse_json(config, sizeof config - 1, "config", &err);
    const apus_model_card card = {.size = sizeof card, .tokenizer = tokenizer, .tokenizer_config = tokenizer_config};
    text = apus_text_open(&card, NULL, 0, &err);
    return text != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    apus_error err;
    (void)state;
    apus_text_free(text);
    NODE->release(tokenizer);
    NODE->release(tokenizer_config);
    return apus_remove_tree(folder, &err) == APUS_OK ? 0 : -1;
}

static const char *at(const char *name)
{
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const char *bytes)
{
    apus_error err = {0};
    if (apus_file_write(path, bytes, strlen(bytes), &err) != APUS_OK)
        fail_msg("%s", err.message);
}

/* ---------------------------------------------------------------- rows */

/* All rows as JSON, one a line; or the error behind those that came before it. */
static char *rows_of(const char *path)
{
    size_t length = 0;
    char *all = calloc(1, 1), *more;
    apus_error err = {0};
    apus_node *row = NULL;
    apus_rows *r = NULL;
    apus_status st = apus_rows_open(path, &r, &err);
    while (st == APUS_OK && (st = apus_rows_next(r, &row, &err)) == APUS_OK && row != NULL) {
        char *json = NODE->write_json(row, 0, NULL);
        NODE->release(row);
        more = realloc(all, length + strlen(json) + 2);
        assert_non_null(more);
        all = more;
        length += (size_t)sprintf(all + length, "%s\n", json);
        apus_host_table()->free(json);
    }
    apus_rows_close(r);
    if (st != APUS_OK) {
        const char *message = strncmp(err.message, folder, strlen(folder)) == 0 ? err.message + strlen(folder) + 1 : err.message;
        more = realloc(all, length + strlen(message) + 1);
        assert_non_null(more);
        all = more;
        (void)sprintf(all + length, "%s", message);
    }
    return all;
}

static void check_rows(const char *name, const char *bytes, const char *expected)
{
    write_file(at(name), bytes);
    char *rows = rows_of(at(name));
    assert_string_equal(rows, expected);
    free(rows);
}

static void test_rows(void **state)
{
    (void)state;
    check_rows("a.jsonl", "{\"a\":1}\n\n  \r\n{\"a\":2}", "{\"a\": 1}\n{\"a\": 2}\n");
    check_rows("b.jsonl", "{\"a\":1}\n[2]\n", "{\"a\": 1}\nb.jsonl:2: a row must be an object {…}");
    check_rows("a.json", "[{\"a\": 1},\n {\"a\": 2}]", "{\"a\": 1}\n{\"a\": 2}\n");
    check_rows("b.json", "{\"data\": [{\"a\": 1}]}", "{\"a\": 1}\n");
    check_rows("c.json", "{\"a\": 1}\n{\"a\": 2}\n", "{\"a\": 1}\n{\"a\": 2}\n"); /* JSON Lines under another name */
    check_rows("d.json", "{\"a\": 1}", "d.json:1: expected a list of objects");
    check_rows("e.json", "\xEF\xBB\xBF[]", "");
    check_rows("f.json", "{\"n\": [1], \"data\": [{\"a\": \"]}\\\"[\"},\n{\"a\": {\"b\": [\"{\"]}}], \"x\": {\"y\": []}}\n",
               "{\"a\": \"]}\\\"[\"}\n{\"a\": {\"b\": [\"{\"]}}\n");
    check_rows("g.json", "[{\"a\": 1} {\"a\": 2}]", "{\"a\": 1}\ng.json:1:11: expected ',' or ']' in the list of rows");
    check_rows("h.json", "[{\"a\": 1},\n]", "{\"a\": 1}\nh.json:2:1: expected a row: JSON wants one after each comma");
    check_rows("i.json", "[{\"a\": 1}] 2", "{\"a\": 1}\ni.json:1:12: expected the end of the file behind the list of rows");
    check_rows("j.json", "[{\"a\": 1},\n {\"é\": 2}, {\"b\": }]", "{\"a\": 1}\n{\"é\": 2}\nj.json:2:18: expected a value, found '}'");
    check_rows("k.json", "[{\"a\": 1},\n {\"a\": [2", "{\"a\": 1}\nk.json:2:10: expected ',' or ']' in a list, found the end of the text");
    check_rows("l.json", "[{\"a\": 1},\n 2]", "{\"a\": 1}\nl.json:2: a row must be an object {…}");
    check_rows("m.json", "{\"data\": [{\"a\": 1}], 3}", "{\"a\": 1}\nm.json:1:22: expected a key in quotes");
    check_rows("n.json", "{\"a\": 1}\n{\"a\": }\n", "{\"a\": 1}\nn.json:2: not a JSON object: 1:7: expected a value, found '}'");
    check_rows("o.json", "7", "o.json:1: expected a list of objects");
    check_rows("p.json", "", "p.json:1:1: expected a value, found the end of the text");
    check_rows("a.csv", "\xEF\xBB\xBFq,r\r\n\"one, \"\"two\"\"\nthree\",x\r\n\n4,5",
               "{\"q\": \"one, \\\"two\\\"\\nthree\", \"r\": \"x\"}\n{\"q\": \"4\", \"r\": \"5\"}\n");
    check_rows("b.csv", "q,r\n1,2\n3\n", "{\"q\": \"1\", \"r\": \"2\"}\nb.csv:3: 1 fields, but the header has 2 columns");
    check_rows("c.csv", "q,r\n1,\"2\n3\n", "c.csv:2: a quoted field that is never closed");
    check_rows("a.tsv", "q\tr\n1\t2\n", "{\"q\": \"1\", \"r\": \"2\"}\n");
    check_rows("a.txt", "one\ntwo\n", "{\"text\": \"one\\ntwo\\n\"}\n");
    check_rows("a.bin", "?", "a.bin: rows cannot be read from a file of this kind");
}

/* Rows longer than what is read at once. */
static void test_long_rows(void **state)
{
    enum { N = 3 << 20 };
    (void)state;
    char *bytes = malloc(2 * N + 64), *expected = malloc(2 * N + 64);
    assert_non_null(bytes);
    assert_non_null(expected);
    memset(expected, 'x', N);
    expected[N] = '\0';
    (void)sprintf(bytes, "{\"a\": \"%s\"}\n{\"a\": 1}\n", expected);
    (void)sprintf(expected, "%s", bytes);
    check_rows("long.jsonl", bytes, expected);
    check_rows("long.json", bytes, expected); /* JSON Lines */
    bytes[0] = '[';
    (void)sprintf(bytes + 1, "%s", expected);
    *strchr(bytes, '\n') = ',';
    *strrchr(bytes, '\n') = ']';
    check_rows("list.json", bytes, expected);
    char *xs = malloc(N + 1);
    assert_non_null(xs);
    memset(xs, 'x', N);
    xs[N] = '\0';
    (void)sprintf(bytes, "a\n\"%s\"\n1\n", xs);
    (void)sprintf(expected, "{\"a\": \"%s\"}\n{\"a\": \"1\"}\n", xs);
    check_rows("long.csv", bytes, expected);
    free(xs);
    free(bytes);
    free(expected);
}

/* ---------------------------------------------------------------- datasets */

static apus_dataset *open_data(const char *json, const char *cache, int threads, apus_error *err)
{
    apus_node *spec = NODE->parse_json(json, strlen(json), "test", err);
    const apus_dataset_options options = {.text = text, .cache_dir = cache, .seed = 7, .threads = threads};
    apus_dataset *d = NULL;
    (void)apus_dataset_open(spec, &options, &d, err);
    NODE->release(spec);
    return d;
}

/* The one cache file in a folder. */
static char *cache_bytes(const char *cache, const apus_dataset *d, size_t *length)
{
    apus_error err = {0};
    char path[600];
    (void)snprintf(path, sizeof path, "%s/tokens-%.32s.bin", cache, NODE->as_string(NODE->get(apus_dataset_report(d), "key"), NULL));
    char *bytes = apus_file_read(path, 0, length, &err);
    if (bytes == NULL)
        fail_msg("%s", err.message);
    return bytes;
}

static void same_rows(const apus_dataset *a, const apus_dataset *b)
{
    assert_int_equal(apus_dataset_rows(a), apus_dataset_rows(b));
    for (size_t i = 0; i < apus_dataset_rows(a); i++) {
        const apus_row x = apus_dataset_row(a, i), y = apus_dataset_row(b, i);
        assert_int_equal(x.source, y.source);
        assert_int_equal(x.n_tokens, y.n_tokens);
        assert_int_equal(x.n_segments, y.n_segments);
        assert_memory_equal(x.ids, y.ids, x.n_tokens * sizeof *x.ids);
        assert_memory_equal(x.trained, y.trained, x.n_tokens);
        assert_memory_equal(x.segments, y.segments, x.n_segments * sizeof *x.segments);
    }
}

/* Threads change nothing: neither the bytes of the cache nor what is counted; nor does having a cache. */
static void check_threads(const char *json)
{
    static const int counts[] = {1, 4, 7};
    apus_error err = {0};
    char cache[3][300];
    apus_dataset *d[3], *memory;
    char *first = NULL;
    size_t length = 0;
    for (int i = 0; i < 3; i++) {
        (void)snprintf(cache[i], sizeof cache[i], "%s/cache-%d", folder, counts[i]);
        d[i] = open_data(json, cache[i], counts[i], &err);
        if (d[i] == NULL)
            fail_msg("%s", err.message);
        size_t n;
        char *bytes = cache_bytes(cache[i], d[i], &n);
        if (i == 0) {
            first = bytes;
            length = n;
            continue;
        }
        assert_int_equal(n, length);
        assert_memory_equal(bytes, first, n);
        apus_host_table()->free(bytes);
    }
    memory = open_data(json, NULL, 3, &err);
    assert_non_null(memory);
    same_rows(d[0], memory);
    apus_dataset *again = open_data(json, cache[1], 2, &err);
    assert_non_null(again);
    same_rows(d[0], again);
    apus_dataset_close(again);
    apus_dataset_close(memory);
    for (int i = 0; i < 3; i++)
        apus_dataset_close(d[i]);
    apus_host_table()->free(first);
}

static void write_lines(const char *path, int n, const char *format)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        char words[600];
        const int length = i * 7919 % 500;
        memset(words, 'a' + i % 26, sizeof words);
        words[length] = '\0';
        fprintf(f, format, i, words);
    }
    assert_int_equal(fclose(f), 0);
}

static void test_threads(void **state)
{
    char json[1024];
    (void)state;
    write_lines(at("documents.jsonl"), 3000, "{\"text\": \"%d %s\"}\n");
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"max_length\": 64}", at("documents.jsonl"));
    check_threads(json);
    write_lines(at("pieces.jsonl"), 3000, "{\"prompt\": \"%d \", \"completion\": \"%s\"}\n"); /* some too long, some with no answer */
    (void)snprintf(json, sizeof json,
                   "[{\"path\": \"%s\", \"max_length\": 300, \"overlong\": \"drop\"}, {\"path\": \"%s#100\", \"max_length\": 200}]",
                   at("pieces.jsonl"), at("documents.jsonl"));
    check_threads(json);
}

/* One file of text, which is one document, and long documents that share a block of rows: several threads on each. */
static void test_long_documents(void **state)
{
    static const char source[] =
        "{\"added_tokens\": [{\"id\": 9, \"content\": \"<eos>\", \"special\": true}], \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, "
        "\"b\": 1, \"c\": 2, \" \": 3, \"?\": 4, \"ab\": 5, \"bc\": 6, \" ab\": 7}, \"merges\": [\"a b\", \"b c\", [\" \", \"ab\"]], \"unk_token\": "
        "\"?\"}, \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \" ?[a-d]+\"}, \"behavior\": \"Isolated\"}}";
    enum { BYTES = 1 << 20 };
    apus_error err = {0};
    apus_text *bytes = text;
    char json[1024];
    (void)state;
    apus_node *bpe = NODE->parse_json(source, sizeof source - 1, "tokenizer", &err);
    const apus_model_card card = {.size = sizeof card, .tokenizer = bpe, .tokenizer_config = tokenizer_config};
    text = apus_text_open(&card, NULL, 0, &err);
    if (text == NULL)
        fail_msg("%s", err.message);
    char *book = malloc(BYTES + 1);
    assert_non_null(book);
    for (uint32_t i = 0, h = 1; i < BYTES; i++, h = h * 1664525u + 1013904223u)
        book[i] = "abbcc  ad."[h >> 16 & 7];
    book[BYTES] = '\0';
    write_file(at("book.txt"), book);
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"max_length\": 64}", at("book.txt"));
    check_threads(json);
    FILE *f = fopen(at("books.jsonl"), "w");
    assert_non_null(f);
    for (int i = 0; i < 3; i++)
        fprintf(f, "{\"text\": \"%s\"}\n{\"text\": \"ab\"}\n", book + i);
    assert_int_equal(fclose(f), 0);
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"max_length\": 64}", at("books.jsonl"));
    check_threads(json);
    free(book);
    apus_text_free(text);
    text = bytes;
    NODE->release(bpe);
}

/* Documents are one stream of tokens, each ended, cut where max_length says. */
static void test_documents(void **state)
{
    apus_error err = {0};
    char json[600];
    (void)state;
    write_file(at("three.jsonl"), "{\"text\": \"abc\"}\n{\"text\": \"defgh\"}\n{\"text\": \"i\"}\n");
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"max_length\": 5}", at("three.jsonl"));
    apus_dataset *d = open_data(json, NULL, 1, &err);
    assert_non_null(d);
    static const int32_t ids[12] = {'a', 'b', 'c', 256, 'd', 'e', 'f', 'g', 'h', 256, 'i', 256};
    static const uint32_t tokens[3] = {5, 5, 2}, segments[3] = {2, 1, 1}, trained[3] = {3, 4, 1}, source[3] = {0, 1, 2};
    assert_int_equal(apus_dataset_rows(d), 3);
    for (size_t i = 0, at = 0; i < 3; i++) {
        const apus_row r = apus_dataset_row(d, i);
        assert_int_equal(r.n_tokens, tokens[i]);
        assert_int_equal(r.n_segments, segments[i]);
        assert_int_equal(r.n_trained, trained[i]);
        assert_int_equal(r.source, source[i]);
        assert_memory_equal(r.ids, ids + at, r.n_tokens * sizeof *ids);
        at += r.n_tokens;
    }
    const apus_dataset_bounds *b = apus_dataset_limits(d);
    assert_int_equal(b->rows, 3);
    assert_int_equal(b->tokens, 12);
    assert_int_equal(b->longest, 5);
    assert_int_equal(b->segments, 2);
    assert_int_equal(b->largest_id, 256);
    apus_dataset_close(d);
}

/* ---------------------------------------------------------------- orders, parts */

/* Every row once, whatever their number; another order for another epoch or seed; each row in each place about as often. */
static void test_orders(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 300; n++) {
        unsigned char seen[300] = {0};
        const apus_row_order o = {.seed = n, .epoch = n % 3, .n = n, .shuffle = 1}, plain = {.n = n};
        for (size_t i = 0; i < n; i++) {
            const size_t row = apus_row_order_at(&o, i);
            assert_true(row < n && !seen[row]);
            seen[row] = 1;
            assert_int_equal(apus_row_order_at(&plain, i), i);
        }
    }
    enum { N = 7, ORDERS = 14000 };
    int at_place[N][N] = {{0}};
    for (uint64_t k = 0; k < ORDERS; k++) {
        const apus_row_order o = {.seed = k / 2, .epoch = k % 2, .n = N, .shuffle = 1};
        for (size_t i = 0; i < N; i++)
            at_place[i][apus_row_order_at(&o, i)]++;
    }
    for (int i = 0; i < N; i++)
        for (int row = 0; row < N; row++) /* 2000 expected; six standard deviations of the binomial distribution are 248 */
            assert_in_range(at_place[i][row], 2000 - 248, 2000 + 248);
    const apus_row_order most = {.seed = 1, .n = (size_t)1 << 40, .shuffle = 1};
    assert_true(apus_row_order_at(&most, 5) < most.n);
}

/* The parts share no row, lack none, and keep the file's order. */
static void test_parts(void **state)
{
    static const double takes[] = {1, 0.05, 0.5, 0.99, 299, 7};
    apus_error err = {0};
    char json[600];
    (void)state;
    write_lines(at("parts.jsonl"), 300, "{\"prompt\": \"%d\", \"completion\": \"%.9s.\"}\n");
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\"}", at("parts.jsonl"));
    apus_dataset *d = open_data(json, NULL, 1, &err);
    assert_non_null(d);
    assert_int_equal(apus_dataset_rows(d), 300);
    for (size_t k = 0; k < sizeof takes / sizeof takes[0]; k++) {
        apus_dataset *parts[2];
        unsigned char seen[300] = {0};
        size_t rows = 0;
        assert_int_equal(apus_dataset_split(d, takes[k], 9 + k, &parts[0], &parts[1], &err), APUS_OK);
        assert_int_equal(apus_dataset_rows(parts[1]), (size_t)(takes[k] < 1 ? takes[k] * 300 : takes[k]));
        for (int p = 0; p < 2; p++) {
            uint64_t tokens = 0;
            for (size_t i = 0, n = apus_dataset_rows(parts[p]); i < n; i++, rows++) {
                const apus_row r = apus_dataset_row(parts[p], i);
                assert_true(r.source < 300 && !seen[r.source]);
                assert_true(i == 0 || r.source > apus_dataset_row(parts[p], i - 1).source);
                seen[r.source] = 1;
                tokens += r.n_tokens;
            }
            assert_int_equal(apus_dataset_limits(parts[p])->tokens, tokens);
            apus_dataset_close(parts[p]);
        }
        assert_int_equal(rows, 300);
    }
    apus_dataset_close(d);
}

/* Of two wrong rows the first in the file is told, whichever thread meets one first; nothing is left of a cache. */
static void test_first_fault(void **state)
{
    char json[600], cache[300];
    (void)state;
    FILE *f = fopen(at("faults.jsonl"), "w");
    assert_non_null(f);
    for (int i = 1; i <= 2000; i++)
        fprintf(f, i == 700 ? "{\"text\": 1}\n" : i > 1500 ? "{nonsense\n" : "{\"text\": \"row\"}\n");
    assert_int_equal(fclose(f), 0);
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"type\": \"text\"}", at("faults.jsonl"));
    (void)snprintf(cache, sizeof cache, "%s/cache-faults", folder);
    for (int threads = 1; threads <= 4; threads++) {
        apus_error err = {0};
        assert_null(open_data(json, cache, threads, &err));
        if (strstr(err.message, "faults.jsonl:700:") == NULL)
            fail_msg("%d threads: %s", threads, err.message);
    }
    assert_int_equal(rmdir(cache), 0);
}

/* A folder's files are part of the key. */
static void test_folder(void **state)
{
    apus_error err = {0};
    char json[600], cache[300], path[400];
    (void)state;
    (void)snprintf(path, sizeof path, "%s/many", folder);
    assert_int_equal(apus_mkdirs(path, &err), APUS_OK);
    write_file(at("many/1.txt"), "first");
    write_file(at("many/2.txt"), "second");
    (void)snprintf(json, sizeof json, "\"%s\"", path);
    (void)snprintf(cache, sizeof cache, "%s/cache-folder", folder);
    apus_dataset *d = open_data(json, cache, 2, &err);
    assert_non_null(d);
    assert_int_equal(apus_dataset_limits(d)->tokens, 13);
    apus_dataset_close(d);
    write_file(at("many/2.txt"), "another");
    d = open_data(json, cache, 2, &err);
    assert_non_null(d);
    assert_int_equal(apus_dataset_limits(d)->tokens, 14);
    apus_dataset_close(d);
}

/* A damaged cache is as good as none. */
static void test_damaged_cache(void **state)
{
    apus_error err = {0};
    char json[600], cache[300], path[700];
    (void)state;
    write_lines(at("some.jsonl"), 40, "{\"text\": \"%d %s\"}\n");
    (void)snprintf(json, sizeof json, "{\"path\": \"%s\", \"max_length\": 64}", at("some.jsonl"));
    (void)snprintf(cache, sizeof cache, "%s/cache-damaged", folder);
    apus_dataset *good = open_data(json, cache, 1, &err), *d;
    assert_non_null(good);
    size_t length;
    char *bytes = cache_bytes(cache, good, &length);
    (void)snprintf(path, sizeof path, "%s/tokens-%.32s.bin", cache, NODE->as_string(NODE->get(apus_dataset_report(good), "key"), NULL));
    for (size_t i = 0; i < 64; i++) {
        const size_t where = i < 32 ? i : length - length / 2 - i * 100;
        const char was = bytes[where];
        bytes[where] = (char)(was ^ 0x55);
        assert_int_equal(apus_file_write(path, bytes, i % 8 == 7 ? length / 2 : length, &err), APUS_OK);
        bytes[where] = was;
        d = open_data(json, cache, 1, &err); /* ids and masks are believed; sizes and places are not */
        assert_non_null(d);
        if (i < 32)
            same_rows(good, d);
        apus_dataset_close(d);
    }
    apus_host_table()->free(bytes);
    apus_dataset_close(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_long_rows),   cmocka_unit_test(test_threads), cmocka_unit_test(test_long_documents),
        cmocka_unit_test(test_documents), cmocka_unit_test(test_first_fault), cmocka_unit_test(test_folder),  cmocka_unit_test(test_damaged_cache),
        cmocka_unit_test(test_orders),    cmocka_unit_test(test_parts)};
    return cmocka_run_group_tests_name("core/data", tests, setup, teardown);
}
