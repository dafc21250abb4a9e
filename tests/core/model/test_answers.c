/*
 * Real models' answers: stories260K against llama.cpp's logits and text in each of its encodings, SmolLM2's answer through its own
 * template. Skips itself by name where the data is missing.
 */
#include "core/model/bench.h"

#include "model/engine.h"
#include "model/score.h"

#define STORIES APUS_TEST_DATA "/models/stories260K/"
#define SMOLLM2 APUS_TEST_DATA "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"

static apus_device *devices[2]; /* ref, cpu */
static const apus_generator_options one = {.parallel = 1};

static int setup(void **state)
{
    (void)state;
    bench_start();
    devices[0] = bench_device("\"ref\"");
    devices[1] = bench_device("{\"type\": \"cpu\", \"threads\": 2}");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(devices[0]);
    apus_device_close(devices[1]);
    return 0;
}

static int missing(const char *test, const char *path)
{
    if (apus_path_exists(path))
        return 0;
    print_message("skipped: %s: %s is missing\n", test, path);
    return 1;
}

static apus_model *open_file(apus_device *d, const char *path, int keep_encoded)
{
    char json[1200];
    const apus_model_options options = {.device = d, .keep_encoded = keep_encoded};
    snprintf(json, sizeof json, "\"%s\"", path);
    return bench_model(json, &options);
}

/* ---------------------------------------------------------------- stories260K */

/* What llama.cpp computed: its activations are rounded to 8 bits for the encoded weights, ours are not. */
static const struct {
    const char *file, *logits;
    double nll, nll_bound, logit_bound;
} stories[] = {{"stories260K.gguf", "golden_logits_F32.bin", 0.324057, 1e-4, 0.02},
               {"stories260K-Q8_0.gguf", "golden_logits_Q8_0.bin", 0.324530, 2e-3, 0.5},
               {"stories260K-Q4_0.gguf", "golden_logits_Q4_0.bin", 0.423809, 2e-3, 0.5}};

static void story_scores(void **state)
{
    (void)state;
    if (missing(__func__, STORIES "stories260K.gguf"))
        skip();
    for (size_t i = 0; i < 3; i++)
        for (size_t d = 0; d < 2; d++)
            for (int keep = 0; keep < 2; keep++) {
                char path[1024];
                size_t length;
                apus_error err = {0};
                snprintf(path, sizeof path, STORIES "%s", stories[i].logits);
                char *bytes = apus_file_read(path, 0, &length, &err);
                assert_non_null(bytes);
                int32_t head[2];
                memcpy(head, bytes, sizeof head);
                const size_t n = (size_t)head[0], vocab = (size_t)head[1];
                assert_int_equal(length, 8 + 4 * n + 4 * n * vocab);
                int32_t *ids = malloc(n * sizeof *ids);
                float *want = malloc(n * vocab * sizeof *want), *logits = malloc(n * vocab * sizeof *logits);
                double *logprobs = malloc(n * sizeof *logprobs), worst = 0.0, nll = 0.0;
                memcpy(ids, bytes + 8, 4 * n);
                memcpy(want, bytes + 8 + 4 * n, 4 * n * vocab);
                HOST->free(bytes);
                snprintf(path, sizeof path, STORIES "%s", stories[i].file);
                apus_model *m = open_file(devices[d], path, keep);
                assert_int_equal(m->facts.vocab, vocab);
                OK(apus_model_score(m, ids, n, logprobs, logits, &err));
                for (size_t k = 0; k + 1 < n; k++)
                    nll -= logprobs[k] / (double)(n - 1);
                for (size_t k = 0; k < n * vocab; k++)
                    worst = fmax(worst, fabs((double)logits[k] - (double)want[k]));
                print_message("%s on %s%s: nll %.6f (%.6f), logits within %.2g\n", stories[i].file, d == 0 ? "ref" : "cpu", keep ? ", encoded" : "",
                              nll, stories[i].nll, worst);
                assert_true(fabs(nll - stories[i].nll) < stories[i].nll_bound);
                assert_true(worst < stories[i].logit_bound);
                apus_model_close(m);
                free(ids);
                free(want);
                free(logits);
                free(logprobs);
            }
}

static apus_node *answer_of(apus_generator *g, const char *prompt, const apus_node *messages, const char *sampling)
{
    apus_error err = {0};
    apus_node *how = bench_parse(sampling), *answer = NULL;
    const apus_generate_request request = {.size = sizeof request, .prompt = prompt, .messages = messages, .sampling = how, .seed = 3, .logprobs = 1};
    OK(apus_generator_answer(g, &request, &answer, &err));
    NODE->release(how);
    return answer;
}

#define GREEDY(n) "{\"sampler\": {\"type\": \"standard\", \"temperature\": 0}, \"max_tokens\": " #n "}"

static const char *const story = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
                                 "She wanted to play with it, but it was too high.";

static void story_text(void **state)
{
    (void)state;
    if (missing(__func__, STORIES "stories260K.gguf"))
        skip();
    for (size_t d = 0; d < 2; d++) {
        apus_error err = {0};
        apus_generator *g;
        OK(apus_generator_new(open_file(devices[d], STORIES "stories260K.gguf", 0), &one, &g, &err));
        apus_node *a = answer_of(g, "Once upon a time", NULL, GREEDY(100));
        const char *text = NODE->as_string(NODE->get(a, "text"), NULL);
        if (strncmp(text, story, strlen(story)) != 0)
            fail_msg("%s", text);

        /* The cache says what the training path says: each answered token's log-probability. */
        const apus_node *prompt = NODE->get(a, "prompt_ids"), *ids = NODE->get(a, "ids"), *logprobs = NODE->get(a, "logprobs");
        const size_t before = NODE->length(prompt), n = before + NODE->length(ids);
        int32_t *all = malloc(n * sizeof *all);
        double *scored = malloc(n * sizeof *scored);
        for (size_t i = 0; i < n; i++)
            all[i] = (int32_t)NODE->as_int(i < before ? NODE->at(prompt, i) : NODE->at(ids, i - before), -1);
        apus_model *plain = open_file(devices[d], STORIES "stories260K.gguf", 0); /* the generator's lies as decoding reads it */
        OK(apus_model_score(plain, all, n, scored, NULL, &err));
        apus_model_close(plain);
        for (size_t i = 0; i < NODE->length(ids); i++)
            assert_true(fabs(scored[before + i - 1] - NODE->as_float(NODE->at(logprobs, i), NAN)) < 1e-4);
        free(all);
        free(scored);

        apus_node *again = answer_of(g, "Once upon a time", NULL, GREEDY(100)); /* a used cache answers the same */
        assert_true(NODE->equal(a, again));
        NODE->release(again);
        NODE->release(a);

        apus_node *cut = answer_of(g, "Once upon a time", NULL,
                                   "{\"sampler\": {\"type\": \"standard\", \"temperature\": 0}, \"max_tokens\": 100, \"stop\": [\" One day\"]}");
        assert_string_equal(NODE->as_string(NODE->get(cut, "text"), NULL),
                            ", there was a little girl named Lily. She loved to play outside in the park.");
        assert_string_equal(NODE->as_string(NODE->get(cut, "finish_reason"), NULL), "stop");
        NODE->release(cut);

        static const char *const warm = "{\"sampler\": {\"type\": \"standard\", \"temperature\": 1}, \"max_tokens\": 40}";
        apus_node *first = answer_of(g, "Once upon a time", NULL, warm), *two = answer_of(g, "Once upon a time", NULL, warm);
        assert_true(NODE->equal(first, two)); /* the seed decides */
        NODE->release(first);
        NODE->release(two);
        apus_generator_free(g);
    }
}

/* ---------------------------------------------------------------- SmolLM2 */

static void chat_answer(void **state)
{
    (void)state;
    if (missing(__func__, SMOLLM2))
        skip();
    for (int keep = 0; keep < 2; keep++) {
        apus_error err = {0};
        apus_generator *g;
        OK(apus_generator_new(open_file(devices[1], SMOLLM2, keep), &one, &g, &err));
        apus_node *messages = bench_parse("[{\"role\": \"user\", \"content\": \"What is the capital of France?\"}]");
        apus_node *a = answer_of(g, NULL, messages, GREEDY(30));
        assert_string_equal(NODE->as_string(NODE->get(a, "text"), NULL), "The capital of France is Paris.");
        assert_string_equal(NODE->as_string(NODE->get(a, "finish_reason"), NULL), "stop");
        NODE->release(a);
        NODE->release(messages);
        apus_generator_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(story_scores), cmocka_unit_test(story_text), cmocka_unit_test(chat_answer)};
    return cmocka_run_group_tests_name("model/answers", tests, setup, teardown);
}
