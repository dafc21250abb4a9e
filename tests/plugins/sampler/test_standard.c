/* The standard sampler against the plain way: all tokens sorted, cut by transformers' rules one after the other, drawn from. */
#include "plugins/tokenizer/tokenizers.h"

#include <math.h>

#include <apus/logits.h>
#include <apus/random.h>
#include <apus/session.h>

static const apus_sampler_ops *ops;
static uint64_t draws;

static double uniform(void)
{
    return apus_random_uniform(3, 9, 0, draws++);
}

typedef struct way {
    double temperature, top_p, min_p, penalty;
    int top_k;
} way;

static void *open_way(const way *w)
{
    apus_error err = {0};
    char json[200];
    void *s = NULL;
    snprintf(json, sizeof json, "{\"temperature\": %g, \"top_p\": %g, \"min_p\": %g, \"repetition_penalty\": %g, \"top_k\": %d}", w->temperature,
             w->top_p, w->min_p, w->penalty, w->top_k);
    apus_node *params = apus_nodes()->parse_json(json, strlen(json), "test", &err);
    assert_int_equal(ops->open(apus_host_table(), params, &s, &err), APUS_OK);
    apus_nodes()->release(params);
    return s;
}

/* ---------------------------------------------------------------- the plain way */

typedef struct pair {
    double logit, p;
    int32_t id;
} pair;

static int by_logit(const void *a, const void *b)
{
    const pair *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The distribution that is drawn from, likely first; gives how many tokens have a part in it. */
static size_t plain(const way *w, const float *logits, int32_t vocab, const int32_t *history, size_t n_history, pair *out)
{
    size_t n = (size_t)vocab;
    for (int32_t v = 0; v < vocab; v++) {
        float x = logits[v];
        for (size_t i = 0; i < n_history && w->penalty != 1.0; i++)
            if (history[i] == v) {
                x = x > 0.0f ? x / (float)w->penalty : x * (float)w->penalty;
                break;
            }
        out[v] = (pair){w->temperature > 0.0 ? (double)(x / (float)w->temperature) : (double)x, 0.0, v};
    }
    qsort(out, n, sizeof *out, by_logit);
    if (w->temperature == 0.0) {
        out[0].p = 1.0;
        return 1;
    }
    if (w->top_k > 0 && (size_t)w->top_k < n) {
        size_t k = (size_t)w->top_k;
        while (k < n && out[k].logit == out[k - 1].logit)
            k++;
        n = k;
    }
    double total = 0.0, before = 0.0;
    for (size_t i = 0; i < n; i++)
        total += exp(out[i].logit - out[0].logit);
    for (size_t i = 0; i < n; before += exp(out[i++].logit - out[0].logit))
        if (w->top_p < 1.0 && i > 0 && before / total >= w->top_p)
            n = i;
    for (size_t i = 1; i < n; i++)
        if (w->min_p > 0.0 && exp(out[i].logit - out[0].logit) < w->min_p)
            n = i;
    total = 0.0;
    for (size_t i = 0; i < n; i++)
        total += exp(out[i].logit - out[0].logit);
    for (size_t i = 0; i < n; i++)
        out[i].p = exp(out[i].logit - out[0].logit) / total;
    return n;
}

static const way ways[] = {{0, 1, 0, 1, 0},           {1, 1, 0, 1, 0},     {0.3, 1, 0, 1, 0}, {4, 1, 0, 1, 0},     {1, 0.9, 0, 1, 0},
                           {1, 0.999, 0, 1, 0},       {1, 0.01, 0, 1, 0},  {1, 1, 0, 1, 1},   {1, 1, 0, 1, 40},    {2, 1, 0, 1, 5000},
                           {1, 1, 0.05, 1, 0},        {3, 1, 1, 1, 0},     {0, 1, 0, 1.3, 0}, {0.8, 1, 0, 1.3, 0}, {1, 0.8, 0.02, 1.1, 50},
                           {5, 0.5, 0.001, 0.7, 300}, {100, 0.99, 0, 1, 0}};

static void as_the_plain_way(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 7, 16, 97, 1031, 49152};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int32_t vocab = sizes[k];
        float *logits = malloc((size_t)vocab * sizeof *logits), *row = malloc((size_t)vocab * sizeof *row);
        pair *want = malloc((size_t)vocab * sizeof *want);
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            void *s = open_way(&ways[i]);
            for (int round = 0; round < 12; round++) {
                int32_t history[30], id = -1;
                apus_error err = {0};
                for (int32_t v = 0; v < vocab; v++) {
                    logits[v] = (float)(apus_random_normal(1, (uint32_t)round, 0, (uint64_t)v) * (round % 3 == 0 ? 1.0 : 5.0));
                    if (round % 4 == 1)
                        logits[v] = floorf(logits[v]); /* ties */
                    if (round % 4 == 2 && v % 2 == 1)
                        logits[v] = -INFINITY;
                }
                for (size_t h = 0; h < 30; h++)
                    history[h] = (int32_t)(uniform() * vocab);
                const double u = round == 11 ? 0x1.fffffffffffffp-1 : round == 10 ? 0.0 : uniform();
                const size_t n = plain(&ways[i], logits, vocab, history, 30, want);
                memcpy(row, logits, (size_t)vocab * sizeof *row);
                assert_int_equal(ops->sample(s, row, vocab, history, 30, 10, u, &id, &err), APUS_OK);
                double upto = 0.0;
                size_t at = 0;
                while (at < n && want[at].id != id)
                    upto += want[at++].p;
                if (at == n || want[at].p <= 0.0 || u < upto - 1e-5 || u > upto + want[at].p + 1e-5)
                    fail_msg("%d tokens, way %zu, round %d: token %d for u = %.9f: %zu of %zu, from %.9f to %.9f", vocab, i, round, id, u, at, n,
                             upto, at < n ? upto + want[at].p : 0.0);
            }
            ops->close(s);
        }
        free(logits);
        free(row);
        free(want);
    }
}

static void sums_of_rows(void **state)
{
    (void)state;
    for (float x = 0.0f; x > -87.0f; x -= 0.00371f)
        if (fabs((double)apus_logits_exp(x) / exp((double)x) - 1.0) > 2e-7)
            fail_msg("exp(%g): %g", (double)x, (double)apus_logits_exp(x));
    assert_true(apus_logits_exp(0.0f) == 1.0f && apus_logits_exp(-88.0f) == 0.0f && apus_logits_exp(-INFINITY) == 0.0f);
    float row[100];
    for (int64_t n = 1; n <= 100; n++) {
        double sum = 0.0;
        float top = -INFINITY;
        for (int64_t i = 0; i < n; i++) {
            row[i] = (float)apus_random_normal(2, 1, 0, (uint64_t)i) * 6.0f;
            top = fmaxf(top, row[i]);
        }
        for (int64_t i = 0; i < n; i++)
            sum += exp((double)row[i] - (double)top);
        assert_true(apus_logits_largest(row, n) == top);
        assert_true(fabs(apus_logits_sum(row, n, top) / sum - 1.0) < 3e-7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_the_plain_way), cmocka_unit_test(sums_of_rows)};
    ops = find_ops("sampler", "standard");
    return cmocka_run_group_tests_name("sampler/standard", tests, NULL, NULL);
}
