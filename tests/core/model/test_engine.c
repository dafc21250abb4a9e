/*
 * The engine: a request's answer is the same bits alone and among others, however prompts are cut, prefixes shared, pages given up, in
 * whatever order requests come and go; pages are counted; text that comes token by token is the text of all tokens at once.
 */
#include "core/model/bench.h"
#include "plugins/tokenizer/tokenizers.h"

#include <apus/random.h>

#include "model/engine.h"
#include "model/pages.h"
#include "model/reply.h"

static apus_device *devices[2], *plain; /* ref, cpu; cpu with one thread, where threads only cost time */

static int setup(void **state)
{
    (void)state;
    bench_start();
    devices[0] = bench_device("\"ref\"");
    devices[1] = bench_device("{\"type\": \"cpu\", \"threads\": 2}");
    plain = bench_device("{\"type\": \"cpu\", \"threads\": 1}");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(devices[0]);
    apus_device_close(devices[1]);
    apus_device_close(plain);
    return 0;
}

static uint64_t draws;
static size_t below(size_t n)
{
    return (size_t)apus_random_below(11, 5, 0, draws++, n);
}

/* ---------------------------------------------------------------- requests and what came of them */

enum { PROMPT = 80, ANSWER = 40, VOCAB = 96 };

typedef struct wish {
    int32_t prompt[PROMPT];
    size_t n;
    int most;
    double temperature;
    uint64_t seed;
    uint32_t index;
    /* what came of it */
    int32_t ids[ANSWER];
    double logprobs[ANSWER];
    size_t n_ids, n_cached;
    int done;
    apus_status status;
    char finish[16];
    uint64_t ticket;
} wish;

static void keep(void *context, const apus_answer *a)
{
    wish *w = context;
    assert_false(w->done);
    w->done = 1;
    w->status = a->status;
    if (a->status != APUS_OK)
        return;
    w->n_ids = a->n_ids;
    w->n_cached = a->n_cached;
    assert_true(a->n_ids <= ANSWER && a->n_prompt == w->n && memcmp(a->prompt_ids, w->prompt, w->n * sizeof *w->prompt) == 0);
    memcpy(w->ids, a->ids, a->n_ids * sizeof *w->ids);
    memcpy(w->logprobs, a->logprobs, a->n_ids * sizeof *w->logprobs);
    snprintf(w->finish, sizeof w->finish, "%s", a->finish_reason);
}

static void forget(wish *w, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        w[i].done = 0;
        w[i].n_ids = w[i].n_cached = 0;
    }
}

static apus_node *sampling_of(int most, double temperature)
{
    char json[160];
    snprintf(json, sizeof json, "{\"sampler\": {\"type\": \"standard\", \"temperature\": %g}, \"max_tokens\": %d}", temperature, most);
    return bench_parse(json);
}

static apus_status try_submit(apus_generator *g, wish *w, void (*done)(void *, const apus_answer *), apus_error *err)
{
    apus_node *sampling = sampling_of(w->most, w->temperature);
    const apus_generate_request q = {.size = sizeof q,
                                     .ids = w->prompt,
                                     .n_ids = w->n,
                                     .sampling = sampling,
                                     .seed = w->seed,
                                     .index = w->index,
                                     .logprobs = 1,
                                     .done = done,
                                     .context = w};
    const apus_status st = apus_generator_submit(g, &q, &w->ticket, err);
    NODE->release(sampling);
    return st;
}

static void submit(apus_generator *g, wish *w)
{
    apus_error err = {0};
    OK(try_submit(g, w, keep, &err));
}

static size_t step(apus_generator *g)
{
    apus_error err = {0};
    size_t pending = 0;
    OK(apus_generator_step(g, &pending, &err));
    return pending;
}

static void finish_all(apus_generator *g)
{
    while (step(g) > 0)
        ;
    assert_int_equal(apus_generator_get_counts(g).pages_held, 0);
}

static apus_generator *open_golden(apus_device *d, const char *name, apus_generator_options options)
{
    char json[1100];
    apus_error err = {0};
    const apus_model_options how = {.device = d, .keep_encoded = 1};
    snprintf(json, sizeof json, "\"%s/models/%s\"", APUS_TEST_GOLDEN, name);
    apus_generator *g;
    OK(apus_generator_new(bench_model(json, &how), &options, &g, &err));
    return g;
}

static void random_prompt(wish *w, size_t n)
{
    w->n = n;
    for (size_t i = 0; i < n; i++)
        w->prompt[i] = (int32_t)below(VOCAB);
}

/* Of many lengths; every third begins like the one before it. */
static void random_wishes(wish *w, size_t n, size_t longest)
{
    memset(w, 0, n * sizeof *w);
    for (size_t i = 0; i < n; i++) {
        random_prompt(&w[i], 1 + below(longest));
        if (i % 3 == 2) {
            const size_t common = w[i - 1].n < w[i].n ? w[i - 1].n : w[i].n;
            memcpy(w[i].prompt, w[i - 1].prompt, (common - common / 4) * sizeof w[i].prompt[0]);
        }
        w[i].most = 1 + (int)below(ANSWER / 2);
        w[i].temperature = i % 2 == 0 ? 0.0 : 1.0;
        w[i].seed = 7 + i / 4;
        w[i].index = (uint32_t)(i % 4);
    }
}

/* Each by itself, in a generator that has seen nothing else. */
static void alone(apus_device *d, const char *name, const wish *w, wish *answers, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        apus_generator *g = open_golden(d, name, (apus_generator_options){0});
        answers[i] = w[i];
        submit(g, &answers[i]);
        finish_all(g);
        assert_true(answers[i].done && answers[i].status == APUS_OK && answers[i].n_ids > 0 && answers[i].n_cached == 0);
        apus_generator_free(g);
    }
}

static void same(const char *what, const wish *got, const wish *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_true(got[i].done && got[i].status == APUS_OK);
        if (got[i].n_ids != want[i].n_ids || memcmp(got[i].ids, want[i].ids, want[i].n_ids * sizeof want[i].ids[0]) != 0)
            fail_msg("%s: request %zu: other ids than alone", what, i);
        if (memcmp(got[i].logprobs, want[i].logprobs, want[i].n_ids * sizeof want[i].logprobs[0]) != 0)
            fail_msg("%s: request %zu: other bits of its log-probabilities than alone", what, i);
        assert_string_equal(got[i].finish, want[i].finish);
    }
}

/* ---------------------------------------------------------------- the same bits */

static const char *const models[] = {"llama", "mistral", "qwen3", "gpt2", "llama-dynamic", "llama-longrope"};

static void row_invariant(void **state)
{
    (void)state;
    enum { N = 20 };
    static wish w[N], want[N];
    static const apus_generator_options ways[] = {{.parallel = 16},
                                                  {.parallel = 16, .batch_tokens = 33},
                                                  {.parallel = 5, .batch_tokens = 7},
                                                  {.parallel = 1, .batch_tokens = 1},
                                                  {.parallel = 16, .batch_tokens = 64, .cache_tokens = 128}};
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++)
        for (size_t d = 0; d < 2; d++) {
            random_wishes(w, N, strcmp(models[m], "gpt2") == 0 ? 40 : PROMPT);
            alone(devices[d], models[m], w, want, N);
            for (size_t k = 0; k < sizeof ways / sizeof ways[0]; k++) {
                char what[100];
                snprintf(what, sizeof what, "%s on %s, way %zu", models[m], d == 0 ? "ref" : "cpu", k);
                apus_generator *g = open_golden(devices[d], models[m], ways[k]);
                forget(w, N);
                for (size_t i = 0; i < N; i++)
                    submit(g, &w[i]);
                finish_all(g);
                same(what, w, want, N);

                forget(w, N); /* again, the last first, one more each step, over what the first round left in the cache */
                for (size_t i = N; i-- > 0;) {
                    submit(g, &w[i]);
                    (void)step(g);
                }
                finish_all(g);
                same(what, w, want, N);
                apus_generator_free(g);
            }
        }
}

/* ---------------------------------------------------------------- prefixes */

static void prefixes_are_computed_once(void **state)
{
    (void)state;
    enum { N = 8, LENGTH = 50, SHARED = LENGTH / APUS_PAGE * APUS_PAGE };
    static wish w[N], want[N];
    memset(w, 0, sizeof w);
    random_prompt(&w[0], LENGTH);
    for (size_t i = 0; i < N; i++) {
        w[i] = w[0];
        w[i].most = 5;
        w[i].temperature = 1.0;
        w[i].index = (uint32_t)i;
    }
    alone(plain, "llama", w, want, N);
    apus_generator *g = open_golden(plain, "llama", (apus_generator_options){.parallel = N, .batch_tokens = 20});
    for (size_t i = 0; i < N; i++) /* asked at once: the first computes the pages while the others wait for them */
        submit(g, &w[i]);
    finish_all(g);
    same("samples of one prompt", w, want, N);
    apus_generator_counts c = apus_generator_get_counts(g);
    assert_int_equal(c.computed, LENGTH + (N - 1) * (LENGTH - SHARED) + N * 4);
    assert_int_equal(c.cached, (N - 1) * SHARED);
    assert_int_equal(w[0].n_cached, 0);
    assert_int_equal(w[1].n_cached, SHARED);

    forget(w, N); /* kept after all have left */
    submit(g, &w[3]);
    finish_all(g);
    same("a cached prompt", &w[3], &want[3], 1);
    assert_int_equal(w[3].n_cached, SHARED);

    /* A conversation goes on: what was answered is a prefix too. */
    wish more = w[3];
    memcpy(more.prompt + LENGTH, w[3].ids, 5 * sizeof more.prompt[0]);
    random_prompt(&w[4], 20);
    memcpy(more.prompt + LENGTH + 5, w[4].prompt, 20 * sizeof more.prompt[0]);
    more.n = LENGTH + 25;
    more.done = 0;
    wish answer;
    alone(plain, "llama", &more, &answer, 1);
    submit(g, &more);
    finish_all(g);
    same("the next turn", &more, &answer, 1);
    assert_int_equal(more.n_cached, SHARED);

    /* A prompt that fills its pages: the last token is computed, or there were no logits. */
    random_prompt(&more, 2 * APUS_PAGE);
    for (int k = 0; k < 2; k++) {
        more.done = 0;
        submit(g, &more);
        finish_all(g);
        assert_int_equal(more.n_cached, k * APUS_PAGE);
    }
    /* A prefix that differs in its first token alone shares nothing. */
    more.prompt[0] ^= 1;
    more.done = 0;
    submit(g, &more);
    finish_all(g);
    assert_int_equal(more.n_cached, 0);
    apus_generator_free(g);
}

/* Keys that depend on how long the text is are not those of a longer text. */
static void lengths_divide_prefixes(void **state)
{
    (void)state;
    wish w[2];
    memset(w, 0, sizeof w);
    random_prompt(&w[0], 40);
    w[0].most = 4;
    w[1] = w[0];
    random_prompt(&w[1], 70);
    memcpy(w[1].prompt, w[0].prompt, w[0].n * sizeof w[0].prompt[0]);
    static const struct {
        const char *model;
        size_t cached;
    } cases[] = {{"llama-dynamic", 0}, {"llama-longrope", 0}, {"llama-yarn", 32}, {"llama", 32}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wish want[2];
        forget(w, 2);
        alone(plain, cases[i].model, w, want, 2);
        apus_generator *g = open_golden(plain, cases[i].model, (apus_generator_options){0});
        submit(g, &w[0]);
        submit(g, &w[1]);
        finish_all(g);
        same(cases[i].model, w, want, 2);
        assert_int_equal(w[1].n_cached, cases[i].cached);
        apus_generator_free(g);
    }
}

/* ---------------------------------------------------------------- when pages run out */

static void pages_run_out(void **state)
{
    (void)state;
    enum { N = 12 };
    static wish w[N], want[N];
    memset(w, 0, sizeof w);
    for (size_t i = 0; i < N; i++) {
        random_prompt(&w[i], 20 + i);
        w[i].most = ANSWER;
        w[i].temperature = 1.0;
        w[i].seed = i;
    }
    alone(plain, "llama", w, want, N);
    apus_generator *g = open_golden(plain, "llama", (apus_generator_options){.parallel = N, .cache_tokens = 160});
    for (size_t i = 0; i < N; i++)
        submit(g, &w[i]);
    finish_all(g);
    same("a small cache", w, want, N);
    apus_generator_counts c = apus_generator_get_counts(g);
    assert_true(c.preempted > 0);
    assert_int_equal(c.pages, 160 / APUS_PAGE);

    apus_generator_free(g);

    /* One that can never fit is told so; the others go on. */
    apus_error err = {0};
    wish large = w[1];
    large.n = 50;
    forget(w, 1);
    g = open_golden(plain, "llama", (apus_generator_options){.cache_tokens = 64});
    submit(g, &w[0]);
    assert_int_equal(try_submit(g, &large, keep, &err), APUS_E_MEMORY);
    assert_string_equal(err.message, "a prompt of 50 tokens and an answer of up to 40 need more than the 64 positions of the cache");
    assert_string_equal(err.hint, "raise cache_tokens or lower max_tokens");
    finish_all(g);
    same("beside one that does not fit", w, want, 1);
    apus_generator_free(g);
}

/* ---------------------------------------------------------------- coming and going */

static apus_generator *current;
static wish *next_wish;

static void ask_next(void *context, const apus_answer *a)
{
    keep(context, a);
    if (next_wish != NULL)
        submit(current, next_wish);
    next_wish = NULL;
}

static void cancellation(void **state)
{
    (void)state;
    enum { N = 6 };
    static wish w[N], want[N];
    random_wishes(w, N, 30);
    for (size_t i = 0; i < N; i++)
        w[i].most = 6 + (int)i;
    alone(plain, "qwen3", w, want, N);
    apus_error err = {0};
    current = open_golden(plain, "qwen3", (apus_generator_options){.parallel = 3});
    next_wish = &w[5];
    OK(try_submit(current, &w[0], ask_next, &err)); /* asks for another from its callback */
    for (size_t i = 1; i < 5; i++)
        submit(current, &w[i]);
    (void)step(current);
    (void)step(current);
    apus_generator_cancel(current, w[1].ticket); /* at work */
    apus_generator_cancel(current, w[3].ticket); /* waiting */
    apus_generator_cancel(current, w[3].ticket); /* gone */
    apus_generator_cancel(current, 12345);
    finish_all(current);
    assert_false(w[1].done || w[3].done);
    same("after a cancellation", &w[0], &want[0], 1);
    same("after a cancellation", &w[2], &want[2], 1);
    same("after a cancellation", &w[4], &want[4], 1);
    same("asked for from a callback", &w[5], &want[5], 1);
    forget(w, N);
    submit(current, &w[1]);
    submit(current, &w[2]);
    submit(current, &w[3]);
    submit(current, &w[4]);
    (void)step(current);
    apus_generator_free(current); /* with requests at work and waiting */
    assert_false(w[1].done || w[4].done);
}

/* Whoever was writing a page that others wait for leaves: one of them goes on writing it. */
static void a_writer_leaves(void **state)
{
    (void)state;
    enum { N = 4 };
    static wish w[N], want[N];
    memset(w, 0, sizeof w);
    random_prompt(&w[0], 70);
    for (size_t i = 0; i < N; i++) {
        w[i] = w[0];
        w[i].most = 4;
        w[i].index = (uint32_t)i;
        w[i].temperature = 1.0;
    }
    alone(plain, "llama", w, want, N);
    apus_generator *g = open_golden(plain, "llama", (apus_generator_options){.parallel = N, .batch_tokens = 10});
    for (size_t i = 0; i < N; i++)
        submit(g, &w[i]);
    (void)step(g); /* 10 of the first page's 16 positions are there */
    apus_generator_cancel(g, w[0].ticket);
    (void)step(g);
    (void)step(g);
    apus_generator_cancel(g, w[1].ticket);
    finish_all(g);
    same("a writer that left", &w[2], &want[2], 2);
    assert_int_equal(apus_generator_get_counts(g).computed, 70 + (70 - 64) + 2 * 3);
    apus_generator_free(g);
}

static void many_in_any_order(void **state)
{
    (void)state;
    enum { N = 60 };
    static wish w[N], want[N];
    static int cancelled[N];
    random_wishes(w, N, 60);
    alone(plain, "mistral", w, want, N);
    for (int round = 0; round < 6; round++) {
        const apus_generator_options options = {.parallel = 1 + (int64_t)below(12),
                                                .batch_tokens = 1 + (int64_t)below(90),
                                                .cache_tokens = round % 2 == 0 ? 0 : 96 + 16 * (int64_t)below(20)};
        apus_generator *g = open_golden(plain, "mistral", options);
        size_t order[N], asked = 0;
        forget(w, N);
        memset(cancelled, 0, sizeof cancelled);
        for (size_t i = 0; i < N; i++)
            order[i] = i;
        for (size_t i = N - 1; i > 0; i--) {
            const size_t k = below(i + 1), t = order[i];
            order[i] = order[k];
            order[k] = t;
        }
        while (asked < N) {
            for (size_t k = below(6); k > 0 && asked < N; k--)
                submit(g, &w[order[asked++]]);
            for (size_t k = below(5); k > 0; k--)
                (void)step(g);
            if (asked > 0 && below(6) == 0) {
                const size_t k = order[below(asked)];
                cancelled[k] = !w[k].done;
                apus_generator_cancel(g, w[k].ticket);
            }
        }
        finish_all(g);
        for (size_t i = 0; i < N; i++) {
            assert_int_equal(w[i].done, !cancelled[i]);
            if (!cancelled[i])
                same("in any order", &w[i], &want[i], 1);
        }
        apus_generator_free(g);
    }
}

/* ---------------------------------------------------------------- errors of one */

static void errors_of_one(void **state)
{
    (void)state;
    apus_error err = {0};
    wish w[2], want[1];
    memset(w, 0, sizeof w);
    random_prompt(&w[0], 10);
    w[0].most = 5;
    w[1] = w[0];
    alone(plain, "llama", w, want, 1);
    apus_generator *g = open_golden(plain, "llama", (apus_generator_options){.parallel = 2});
    submit(g, &w[0]);
    static const struct {
        const char *sampling, *message;
        size_t n;
        int32_t first;
    } cases[] = {{"{}", "the prompt is empty", 0, 1},
                 {"{}", "prompt token 0: id 96 is outside the vocabulary of 96", 5, 96},
                 {"{}", "prompt token 0: id -1 is outside the vocabulary of 96", 5, -1},
                 {"{}", "the prompt has 130 tokens; the model takes 128", 130, 1},
                 {"{\"sampler\": \"nobody\"}", "nobody", 5, 1},
                 {"{\"sampler\": {\"type\": \"standard\", \"temperature\": -1}}", "temperature", 5, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t ids[130] = {cases[i].first};
        apus_node *sampling = bench_parse(cases[i].sampling);
        const apus_generate_request q = {.size = sizeof q, .ids = ids, .n_ids = cases[i].n, .sampling = sampling};
        memset(&err, 0, sizeof err);
        assert_int_not_equal(apus_generator_submit(g, &q, NULL, &err), APUS_OK);
        if (strstr(err.message, cases[i].message) == NULL)
            fail_msg("%s", err.message);
        NODE->release(sampling);
    }
    const apus_generate_request nothing = {.size = sizeof nothing}, text = {.size = sizeof text, .prompt = "a"};
    assert_int_equal(apus_generator_submit(g, &nothing, NULL, &err), APUS_E_INVALID);
    assert_int_equal(apus_generator_submit(g, &text, NULL, &err), APUS_E_INVALID);
    assert_non_null(strstr(err.message, "no tokenizer"));
    finish_all(g);
    same("beside requests that are wrong", w, want, 1);
    apus_generator_free(g);
}

static void one_request(void **state)
{
    (void)state;
    apus_error err = {0};
    wish w, want;
    memset(&w, 0, sizeof w);
    random_prompt(&w, 10);
    w.most = 5;
    alone(plain, "llama", &w, &want, 1);
    apus_generator *g = open_golden(plain, "llama", (apus_generator_options){0});
    apus_node *sampling = sampling_of(5, 0.0), *answer = NULL;
    apus_generate_request q = {.size = sizeof q, .ids = w.prompt, .n_ids = w.n, .sampling = sampling};
    submit(g, &w); /* in flight meanwhile */
    OK(apus_generator_answer(g, &q, &answer, &err));
    assert_int_equal(NODE->length(NODE->get(answer, "ids")), want.n_ids);
    for (size_t i = 0; i < want.n_ids; i++)
        assert_int_equal(NODE->as_int(NODE->at(NODE->get(answer, "ids"), i), -1), want.ids[i]);
    assert_null(NODE->get(answer, "logprobs"));
    assert_string_equal(NODE->as_string(NODE->get(answer, "finish_reason"), NULL), "length");
    NODE->release(answer);
    answer = NULL;
    q.n_ids = 0;
    assert_int_equal(apus_generator_answer(g, &q, &answer, &err), APUS_E_INVALID);
    assert_null(answer);
    finish_all(g);
    same("beside one that is waited for", &w, &want, 1);
    NODE->release(sampling);
    apus_generator_free(g);
}

/* Before they answer, weights that linear reads are packed, if all ops that read them can be had for that: float32 as bfloat16 where
 * products are; an embedding then goes on reading the file. */
static void weights_are_packed(void **state)
{
    (void)state;
    apus_device *brief = bench_device("{\"type\": \"cpu\", \"threads\": 1, \"dtype\": \"bfloat16\"}");
    static const char *const names[] = {"llama", "llama-tied"};
    apus_device *const all[] = {devices[0], devices[1], brief};
    for (int i = 0; i < 6; i++) {
        apus_generator *g = open_golden(all[i / 2], names[i % 2], (apus_generator_options){0});
        apus_model *m = apus_generator_model(g);
        int found = 0;
        for (size_t k = 0; k < apus_model_weights(m); k++) {
            const apus_weight *w = apus_model_weight(m, k);
            const int embeds = w->spec.what == APUS_WEIGHT_EMBEDDING, multiplied = w->spec.what == APUS_WEIGHT_MATRIX || (embeds && i % 2 == 1);
            const apus_dtype type = i / 2 == 1 ? APUS_PACKED | APUS_F32 : i / 2 == 2 ? APUS_PACKED | APUS_BF16 : 0;
            found |= embeds ? 1 : 2;
            assert_int_equal((w->dtype & APUS_PACKED) != 0 ? w->dtype : 0, multiplied ? type : 0);
            assert_int_equal(w->rows != NULL, i == 5 && embeds);
        }
        assert_int_equal(found, 3);
        apus_generator_free(g);
    }
    apus_device_close(brief);
}

/* ---------------------------------------------------------------- pages */

static void pages(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_pages p = {0};
    int32_t a[APUS_PAGE] = {1, 2, 3}, b[APUS_PAGE] = {1, 2, 4};
    assert_int_equal(apus_pages_room(&p), 0);
    assert_int_equal(apus_pages_find(&p, APUS_PAGE_ROOT, a, 0), -1);
    assert_int_equal(apus_pages_take(&p, 1), -1);
    OK(apus_pages_grow(&p, 3, &err));
    const int32_t one = apus_pages_take(&p, 1), two = apus_pages_take(&p, 1);
    const uint64_t first = apus_pages_put(&p, one, APUS_PAGE_ROOT, a, 0), second = apus_pages_put(&p, two, first, b, 0);
    assert_int_equal(apus_pages_find(&p, APUS_PAGE_ROOT, b, 0), -1);
    assert_int_equal(apus_pages_find(&p, APUS_PAGE_ROOT, a, 9), -1);
    assert_int_equal(apus_pages_find(&p, first, b, 0), two);
    apus_pages_drop(&p, two, 2);
    const int32_t three = apus_pages_take(&p, 2);
    assert_int_equal(apus_pages_put(&p, three, APUS_PAGE_ROOT, a, 0), first); /* the same content: the first stays who answers */
    apus_pages_drop(&p, three, 2);
    assert_int_equal(apus_pages_room(&p), 1);
    p.at[one].written = p.at[two].written = APUS_PAGE;
    apus_pages_drop(&p, two, 1);
    apus_pages_drop(&p, one, 1);
    assert_int_equal(apus_pages_room(&p), 3);
    OK(apus_pages_grow(&p, 200, &err)); /* what was findable stays so */
    assert_int_equal(apus_pages_find(&p, APUS_PAGE_ROOT, a, 0), one);
    assert_int_equal(apus_pages_find(&p, first, b, 0), two);
    apus_pages_drop(&p, two, 3);
    for (int i = 0; i < 198; i++)
        assert_true(apus_pages_take(&p, 3) >= 0);
    assert_int_equal(apus_pages_take(&p, 3), two); /* the kept go last */
    assert_int_equal(apus_pages_take(&p, 3), -1);
    assert_int_equal(apus_pages_find(&p, first, b, 0), -1);
    assert_int_not_equal(apus_pages_put(&p, two, first, b, 0), second); /* whoever came after the old one does not come after this */
    apus_pages_free(&p);
}

/* ---------------------------------------------------------------- text */

static void compare_text(const char *name, const apus_text *text, int32_t vocab)
{
    int32_t ids[160];
    for (int round = 0; round < 12; round++) {
        apus_error err = {0};
        apus_detokenizer d = {0};
        size_t sure = 0;
        char before[8192] = "";
        const int kind = round % 4; /* anything; bytes mostly; the special ones among them; words mostly */
        for (size_t n = 1; n <= sizeof ids / sizeof ids[0]; n++) {
            const size_t low = kind == 1 && below(5) > 0 ? (size_t)vocab / 2 : (size_t)vocab;
            ids[n - 1] = (int32_t)(kind == 2 && below(3) == 0 ? below(4) : kind == 3 ? (size_t)vocab - 1 - below((size_t)vocab / 2) : below(low));
            char *whole = NULL;
            size_t length = 0;
            OK(apus_detokenize(&d, text, ids, n, &err));
            OK(apus_text_decode(text, ids, n, 1, &whole, &length, &err));
            if (d.n != length || (length > 0 && memcmp(d.bytes, whole, length) != 0))
                fail_msg("%s: token %zu (%d): '%s' instead of '%s'", name, n, ids[n - 1], d.bytes != NULL ? d.bytes : "", whole);
            if (d.sure < sure || (sure > 0 && memcmp(before, d.bytes, sure) != 0))
                fail_msg("%s: token %zu (%d) changes text that was sure", name, n, ids[n - 1]);
            sure = d.sure;
            assert_true(sure < sizeof before);
            if (sure > 0)
                memcpy(before, d.bytes, sure);
            HOST->free(whole);
        }
        apus_detokenizer_free(&d);
    }
}

static void text_is_that_of_all_ids(void **state)
{
    (void)state;
    apus_node *all = read_node(APUS_TEST_GOLDEN "/tokenizers/synthetic.json.gz");
    for (size_t i = 0; i < NODE->length(all); i++) {
        apus_error err = {0};
        const apus_model_card card = {.size = sizeof card, .tokenizer = NODE->get(NODE->at(all, i), "tokenizer")};
        apus_text *text = apus_text_open(&card, NULL, 0, &err);
        if (text == NULL)
            fail_msg("%s", err.message);
        compare_text(NODE->as_string(NODE->get(NODE->at(all, i), "name"), NULL), text, apus_text_vocab(text));
        apus_text_free(text);
    }
    NODE->release(all);
    apus_error err = {0};
    apus_node *bytes = bench_parse("{\"model\": {\"type\": \"Byte\"}}");
    const apus_model_card card = {.size = sizeof card, .tokenizer = bytes};
    apus_text *text = apus_text_open(&card, NULL, 0, &err);
    if (text == NULL)
        fail_msg("%s", err.message);
    compare_text("byte", text, 256);
    apus_text_free(text);
    NODE->release(bytes);
}

typedef struct told {
    char text[512];
    size_t n, pieces, most; /* most: pieces it takes */
} told;

static int hear(void *context, const char *text, size_t length)
{
    told *t = context;
    assert_true(length > 0 && t->n + length < sizeof t->text);
    memcpy(t->text + t->n, text, length);
    t->n += length;
    t->text[t->n] = '\0';
    return ++t->pieces == t->most;
}

static void stop_strings(void **state)
{
    (void)state;
    static const struct {
        const char *said, *stops, *text; /* every byte is a token */
        size_t taken;                    /* tokens until it ends; 0: it goes on */
    } cases[] = {{"one two three", "[\" two\"]", "one", 7},
                 {"one two three", "[\"three\", \"two t\"]", "one ", 9},
                 {"aaab", "[\"aab\"]", "a", 4},
                 {"abcabd", "[\"abd\", \"zzz\"]", "abc", 6},
                 {"plain", "[\"never\"]", "plain", 0},
                 {"plain", "[]", "plain", 0},
                 {"gr\xC3\xBC\xC3\x9F Gott", "[\"\xC3\x9F\"]", "gr\xC3\xBC", 6},
                 {"\xF0\x9F\x90\xA6!", "[\"!\"]", "\xF0\x9F\x90\xA6", 5},
                 {"x", "[\"x\"]", "", 1}};
    apus_node *bytes = bench_parse("{\"model\": {\"type\": \"Byte\"}}");
    const apus_model_options options = {.device = plain, .tokenizer = bytes};
    apus_model *m = bench_model("{\"arch\": \"decoder\", \"config\": {\"model_type\": \"llama\", \"hidden_size\": 16, \"intermediate_size\": 16, "
                                "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"max_position_embeddings\": 64}}",
                                &options);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char json[200];
        apus_error err = {0};
        apus_reply r;
        told t = {.most = SIZE_MAX};
        snprintf(json, sizeof json, "{\"stop\": %s, \"max_tokens\": 60}", cases[i].stops);
        apus_node *sampling = bench_parse(json);
        const apus_generate_request q = {.size = sizeof q, .prompt = "p", .sampling = sampling, .piece = hear, .context = &t};
        OK(apus_reply_open(&r, m, 0, &q, &err));
        size_t taken = 0;
        while (cases[i].said[taken] != '\0' && r.finish == NULL) {
            apus_reply_take(&r, (unsigned char)cases[i].said[taken++], 0.0);
            assert_true(r.text.n >= t.n && memcmp(r.text.bytes, t.text, t.n) == 0);
        }
        if (cases[i].taken > 0) {
            assert_int_equal(taken, cases[i].taken);
            assert_string_equal(r.finish, "stop");
            assert_string_equal(t.text, cases[i].text);
        } else {
            assert_null(r.finish);
        }
        const apus_answer a = apus_reply_answer(&r);
        assert_string_equal(a.text, cases[i].text);
        assert_int_equal(a.n_ids, taken);
        apus_reply_close(&r);
        NODE->release(sampling);
    }
    /* The caller has heard enough. */
    apus_error err = {0};
    apus_reply r;
    told t = {.most = 3};
    const apus_generate_request q = {.size = sizeof q, .prompt = "p", .piece = hear, .context = &t};
    OK(apus_reply_open(&r, m, 0, &q, &err));
    for (const char *c = "abcdef"; *c != '\0' && r.finish == NULL; c++)
        apus_reply_take(&r, *c, 0.0);
    assert_string_equal(t.text, "abc");
    assert_string_equal(r.finish, "stop");
    apus_reply_close(&r);
    apus_model_close(m);
    NODE->release(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(pages),
                                       cmocka_unit_test(row_invariant),
                                       cmocka_unit_test(prefixes_are_computed_once),
                                       cmocka_unit_test(lengths_divide_prefixes),
                                       cmocka_unit_test(pages_run_out),
                                       cmocka_unit_test(cancellation),
                                       cmocka_unit_test(a_writer_leaves),
                                       cmocka_unit_test(many_in_any_order),
                                       cmocka_unit_test(errors_of_one),
                                       cmocka_unit_test(one_request),
                                       cmocka_unit_test(weights_are_packed),
                                       cmocka_unit_test(text_is_that_of_all_ids),
                                       cmocka_unit_test(stop_strings)};
    return cmocka_run_group_tests_name("model/engine", tests, setup, teardown);
}
