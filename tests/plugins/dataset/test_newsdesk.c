/*
 * Dataset newsdesk: rows depend on (seed, i) alone, companies kept for evaluation are in no training row, the tokenizer gives every
 * row's bytes back without an unknown token, and the judge knows right briefs in each wording and every kind of flaw.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <apus/data.h>
#include <apus/tokenizer.h>

#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
enum { SEED = 42, ROWS = 1500 };

static const apus_dataset_ops *ops;

static const void *find_ops(const char *kind, const char *name)
{
    char path[512];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/apus_%s_%s.so", APUS_TEST_PLUGINS, kind, name);
    if (apus_module_load_file(path, &err) != APUS_OK)
        fail_msg("%s", err.message);
    const apus_component *c = apus_component_find(kind, name, &err);
    assert_non_null(c);
    return c->ops;
}

static int setup(void **state)
{
    (void)state;
    ops = find_ops("dataset", "newsdesk");
    return 0;
}

static void *open_task(const char *task, int unseen, double flawed)
{
    apus_error err = {0};
    apus_node *params = NODE->make_map();
    void *d = NULL;
    (void)NODE->set(params, "task", NODE->make_string(task, (size_t)-1));
    (void)NODE->set(params, "rows", NODE->make_int(ROWS));
    (void)NODE->set(params, "unseen", NODE->make_bool(unseen));
    (void)NODE->set(params, "flawed", NODE->make_float(flawed));
    assert_int_equal(ops->open(apus_host_table(), params, &d, &err), APUS_OK);
    NODE->release(params);
    assert_int_equal(ops->count(d), ROWS);
    return d;
}

static apus_node *row_of(void *d, int64_t i, uint64_t seed)
{
    apus_error err = {0};
    apus_node *row = NULL;
    if (ops->row(d, i, seed, &row, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return row;
}

static const char *text_of(const apus_node *row, const char *key)
{
    return NODE->as_string(NODE->get(row, key), NULL);
}

static apus_node *verdict_of(void *d, const apus_node *row, const char *answer)
{
    apus_error err = {0};
    apus_node *verdict = NULL;
    if (ops->judge(d, row, answer, &verdict, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return verdict;
}

/* What the judge finds wrong with an answer, by name: "" for a faithful one. */
static void assert_wrong(void *d, const apus_node *row, const char *answer, const char *wrong)
{
    apus_node *verdict = verdict_of(d, row, answer);
    if (strcmp(text_of(verdict, "wrong"), wrong) != 0)
        fail_msg("%s\n-> %s\n'%s' is wrong, '%s' expected", text_of(row, "sheet"), answer, text_of(verdict, "wrong"), wrong);
    assert_int_equal(NODE->as_int(NODE->get(verdict, "faithful"), -1), wrong[0] == '\0');
    NODE->release(verdict);
}

static void test_rows_repeat(void **state)
{
    (void)state;
    static const char *const given[] = {"text", "brief", "preference"};
    for (int k = 0; k < 3; k++) {
        void *d = open_task(given[k], 0, 0.4), *same = open_task(given[k], 0, 0.4);
        int differ = 0;
        for (int64_t i = ROWS - 1; i >= 0; i -= 100) {
            apus_node *a = row_of(d, i, SEED), *b = row_of(same, i, SEED), *c = row_of(d, i, SEED + 1);
            char *one = NODE->write_json(a, 0, NULL), *two = NODE->write_json(b, 0, NULL), *three = NODE->write_json(c, 0, NULL);
            assert_string_equal(one, two);
            differ += strcmp(one, three) != 0;
            apus_host_table()->free(one);
            apus_host_table()->free(two);
            apus_host_table()->free(three);
            NODE->release(a);
            NODE->release(b);
            NODE->release(c);
        }
        assert_int_equal(differ, ROWS / 100);
        ops->close(d);
        ops->close(same);
    }
}

/* Every right brief is faithful; every rejected one has one thing wrong, and all kinds come. */
static void test_judge_rows(void **state)
{
    (void)state;
    static const char *const kinds[] = {"name", "numbers", "direction", "period", "currency", "unit", "neutral"};
    int found[7] = {0};
    void *d = open_task("preference", 0, 0.4);
    for (int64_t i = 0; i < ROWS; i++) {
        apus_node *row = row_of(d, i, SEED);
        assert_wrong(d, row, text_of(row, "chosen"), "");
        apus_node *verdict = verdict_of(d, row, text_of(row, "rejected"));
        int k = 0;
        while (k < 7 && strcmp(text_of(verdict, "wrong"), kinds[k]) != 0)
            k++;
        if (k == 7)
            fail_msg("%s\n-> %s\nwrong: %s", text_of(row, "sheet"), text_of(row, "rejected"), text_of(verdict, "wrong"));
        found[k]++;
        NODE->release(verdict);
        NODE->release(row);
    }
    for (int k = 0; k < 7; k++)
        if (found[k] < ROWS / 20)
            fail_msg("%d rows have a wrong %s", found[k], kinds[k]);
    ops->close(d);
}

/* text with the first `from` made `to`. */
static const char *edited(const char *text, const char *from, const char *to)
{
    static char out[2048];
    const char *at = strstr(text, from);
    if (at == NULL)
        fail_msg("'%s' has no '%s'", text, from);
    snprintf(out, sizeof out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

/* A row whose brief begins so. */
static apus_node *row_beginning(void *d, const char *begin)
{
    for (int64_t i = 0; i < ROWS; i++) {
        apus_node *row = row_of(d, i, SEED);
        if (strncmp(text_of(row, "brief"), begin, strlen(begin)) == 0)
            return row;
        NODE->release(row);
    }
    fail_msg("no brief begins with '%s'", begin);
    return NULL;
}

static void test_judge_edits(void **state)
{
    (void)state;
    void *d = open_task("brief", 0, 0.0);
    apus_node *row = row_beginning(d, "The company ");
    const char *brief = text_of(row, "brief");
    char number[32];
    assert_wrong(d, row, brief, "");
    assert_wrong(d, row, edited(brief, " a year before", " one year before"), "form, cause, outlook");
    assert_wrong(d, row, edited(brief, "outlook.", "outlook. "), "form");
    assert_wrong(d, row, edited(brief, "outlook.", "outlook. It was glorious."), "form, neutral");
    assert_wrong(d, row, edited(brief, "outlook.", "outlook"), "form");
    assert_wrong(d, row, edited(brief, " reported ", " reported stunning "), "neutral");
    /* another way to write the same number, or one digit more, is not the number */
    const char *of = strstr(brief, " of ");
    sscanf(of, " of %31[0-9.]", number);
    char longer[40], spaced[40];
    snprintf(longer, sizeof longer, "%s0", number);
    snprintf(spaced, sizeof spaced, "0%s", number);
    assert_wrong(d, row, edited(brief, number, longer), "numbers");
    assert_wrong(d, row, edited(brief, number, spaced), "numbers");
    assert_wrong(d, row, edited(brief, number, "."), "form, period, numbers, unit, currency, direction, cause, outlook");
    assert_wrong(d, row, "", "form, name, measure, period, numbers, unit, currency, direction, cause, outlook");
    assert_wrong(d, row, text_of(row, "sheet"), "form, name, measure, period, numbers, unit, currency, direction, cause, outlook");
    NODE->release(row);
    /* the other places of a fact that is told twice */
    row = row_beginning(d, "In the ");
    const char *second = strstr(text_of(row, "brief"), " percent from ");
    char currency[32], unit[32], other[2048];
    assert_non_null(second);
    sscanf(second, " percent from %*s %31s %31s", unit, currency);
    snprintf(other, sizeof other, "%.*s%s", (int)(second - text_of(row, "brief")), text_of(row, "brief"),
             edited(second, currency, strcmp(currency, "yen") == 0 ? "euros" : "yen"));
    assert_wrong(d, row, other, "currency");
    snprintf(other, sizeof other, "%.*s%s", (int)(second - text_of(row, "brief")), text_of(row, "brief"),
             edited(second, unit, strcmp(unit, "million") == 0 ? "billion" : "million"));
    assert_wrong(d, row, other, "unit");
    NODE->release(row);
    ops->close(d);
}

static void test_archive_share(void **state)
{
    (void)state;
    void *d = open_task("brief", 0, 0.4);
    int flawed = 0;
    for (int64_t i = 0; i < ROWS; i++) {
        apus_node *row = row_of(d, i, SEED), *verdict = verdict_of(d, row, text_of(row, "brief"));
        flawed += NODE->as_int(NODE->get(verdict, "faithful"), -1) == 0;
        NODE->release(verdict);
        NODE->release(row);
    }
    assert_in_range(flawed, ROWS * 36 / 100, ROWS * 44 / 100);
    ops->close(d);
}

/* Names of companies that evaluation asks about: "Alder Glass". */
static char names[ROWS][64];

static void test_unseen(void **state)
{
    (void)state;
    static const struct {
        const char *task, *keys[3];
    } training[] = {{"text", {"text", "sheet", NULL}}, {"brief", {"sheet", "brief", NULL}}, {"preference", {"sheet", "chosen", "rejected"}}};
    void *unseen = open_task("brief", 1, 0.0);
    for (int64_t i = 0; i < ROWS; i++) {
        apus_node *row = row_of(unseen, i, SEED);
        assert_int_equal(sscanf(text_of(row, "sheet"), "company: %63[^\n]", names[i]), 1);
        NODE->release(row);
    }
    for (int k = 0; k < 3; k++) {
        void *d = open_task(training[k].task, 0, 0.4);
        for (int64_t i = 0; i < ROWS; i++) {
            apus_node *row = row_of(d, i, SEED + (uint64_t)(i % 3)); /* whatever the seed */
            for (int t = 0; t < 3 && training[k].keys[t] != NULL; t++)
                for (int n = 0; n < ROWS / 5; n++)
                    if (strstr(text_of(row, training[k].keys[t]), names[n]) != NULL)
                        fail_msg("%s is in a row of task %s: %s", names[n], training[k].task, text_of(row, training[k].keys[t]));
            NODE->release(row);
        }
        ops->close(d);
    }
    ops->close(unseen);
}

static void round_trip(const apus_tokenizer_ops *t, void *tokenizer, const char *text)
{
    apus_error err = {0};
    apus_tokens tokens = {0};
    char *back = NULL;
    size_t n = 0;
    if (t->encode(tokenizer, text, strlen(text), 0, &tokens, &err) != APUS_OK)
        fail_msg("'%s': %s", text, err.message);
    for (size_t k = 0; k < tokens.n; k++)
        if (tokens.ids[k] == t->id(tokenizer, "<|unknown|>"))
            fail_msg("unknown token %zu of '%s'", k, text);
    assert_int_equal(t->decode(tokenizer, tokens.ids, tokens.n, 0, &back, &n, &err), APUS_OK);
    assert_string_equal(back, text);
    apus_host_table()->free(back);
    apus_host_table()->free(tokens.ids);
    apus_host_table()->free(tokens.begin);
}

static void test_tokenizer(void **state)
{
    (void)state;
    static const char *const given[] = {"text", "brief", "preference"}, *const keys[] = {"sheet", "text", "brief", "chosen", "rejected"};
    const apus_tokenizer_ops *t = find_ops("tokenizer", "bpe");
    apus_error err = {0};
    void *tokenizer = NULL;
    for (int k = 0; k < 3; k++) {
        void *d = open_task(given[k], 0, 0.4);
        apus_node *source = ops->tokenizer(d);
        (void)NODE->remove(source, "tokenizer_config"); /* what stands beside tokenizer.json */
        (void)NODE->remove(source, "chat_template");
        if (t->open(apus_host_table(), NULL, source, &tokenizer, &err) != APUS_OK)
            fail_msg("%s", err.message);
        for (int64_t i = 0; i < ROWS; i++) {
            apus_node *row = row_of(d, i, SEED);
            for (int c = 0; c < 5; c++)
                if (text_of(row, keys[c]) != NULL)
                    round_trip(t, tokenizer, text_of(row, keys[c]));
            NODE->release(row);
        }
        t->close(tokenizer);
        NODE->release(source);
        ops->close(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows_repeat),   cmocka_unit_test(test_judge_rows), cmocka_unit_test(test_judge_edits),
                                       cmocka_unit_test(test_archive_share), cmocka_unit_test(test_unseen),     cmocka_unit_test(test_tokenizer)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
