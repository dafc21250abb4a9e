/*
 * A real model in training: SmolLM2 with the starting adapter of tools/golden, two steps beside PEFT's, and the first of a preference
 * training. tools/golden/compare.py does all twenty of both. Skips itself by name where the model is missing.
 */
#include "core/model/bench.h"

#include <unistd.h>

#include "model/export.h"
#include "model/trainer.h"
#include "run/log.h"

#define SMOLLM2 APUS_TEST_DATA "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
#define PAIRS   APUS_TEST_DATA "/preference/dpo_en_demo.json"
#define LORA    "\"type\": \"lora\", \"r\": 8, \"lora_alpha\": 16, \"lora_dropout\": 0.0, \"target_modules\": [\"q_proj\", \"v_proj\"]"
#define HOW     "\"optimizer\": {\"type\": \"adamw\", \"learning_rate\": 1e-4, \"weight_decay\": 0.0}, \"schedule\": \"constant\", \"max_grad_norm\": 1.0"

static apus_device *device;
static char folder[512], adapter[600];

/* tools/golden/common.py: layer by layer, q_proj then v_proj, A then B, one counter over all. */
static void fill_adapter(apus_model *m)
{
    static const char *const modules[2] = {"q_proj", "v_proj"};
    uint64_t k = 0;
    for (int32_t layer = 0; layer < m->facts.layers; layer++)
        for (int i = 0; i < 4; i++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%d.self_attn.%s.lora_%c.weight", layer, modules[i / 2], i % 2 ? 'B' : 'A');
            const apus_weight *w = apus_model_weight_named(m, name);
            assert_non_null(w);
            const size_t n = apus_weight_elements(&w->spec);
            double *x = malloc(n * sizeof *x);
            for (size_t e = 0; e < n; e++)
                x[e] = (i % 2 ? 0.02 : 0.03) * ((double)(uint32_t)(++k * 2654435761u) / 2147483648.0 - 1.0);
            bench_write(device, w->device, x, n);
            free(x);
        }
}

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    bench_start();
    device = bench_device("{\"type\": \"cpu\", \"threads\": 2}");
    snprintf(folder, sizeof folder, "%s/real.%ld", APUS_TEST_TMP, (long)getpid());
    snprintf(adapter, sizeof adapter, "%s/adapter", folder);
    OK(apus_remove_tree(folder, &err));
    OK(apus_mkdirs(folder, &err));
    if (!apus_path_exists(SMOLLM2))
        return 0;
    const apus_model_options options = {.device = device};
    apus_model *m = bench_model("\"" SMOLLM2 "\"", &options);
    apus_node *tuner = bench_parse("{" LORA "}");
    OK(apus_model_tune(m, tuner, NULL, 1, &err));
    fill_adapter(m);
    const apus_write_options write = {.format = "peft", .path = adapter, .adapter = 1};
    OK(apus_model_write(m, &write, &err));
    NODE->release(tuner);
    apus_model_close(m);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(device);
    return apus_remove_tree(folder, NULL) == APUS_OK ? 0 : -1;
}

static int missing(const char *test, const char *path)
{
    if (apus_path_exists(path))
        return 0;
    print_message("skipped: %s: %s is missing\n", test, path);
    return 1;
}

/* Events of a training's first steps. rest: its parameters beside model and tuner. owner: caller. */
static apus_node *train(const char *name, const char *rest, int64_t steps)
{
    apus_error err = {0};
    char dir[600], path[700], json[4096];
    size_t n;
    snprintf(dir, sizeof dir, "%s/%s", folder, name);
    OK(apus_mkdirs(dir, &err));
    snprintf(json, sizeof json, "{\"model\": {\"path\": \"%s\"}, \"tuner\": {" LORA ", \"adapter\": {\"path\": \"%s\"}}, " HOW ", %s}", SMOLLM2,
             adapter, rest);
    apus_node *params = bench_parse(json), *list = NODE->make_list();
    apus_stage_context stage = {.run_dir = folder, .stage_dir = dir, .name = name, .seed = 1, .device = device, .key = "k"};
    const apus_tracker_run run = {.size = sizeof run, .run_dir = folder, .stage_dir = dir, .stage = name, .stage_type = "train"};
    OK(apus_stage_log_open(NULL, &run, &stage.log, &err));
    apus_trainer *t = NULL;
    OK(apus_trainer_open(&stage, params, &t, &err));
    for (int64_t i = 0; i < steps; i++)
        OK(apus_trainer_step(t, &err));
    apus_trainer_close(t);
    apus_stage_log_close(stage.log, APUS_OK);
    NODE->release(params);
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *text = apus_file_read(path, 0, &n, &err);
    assert_non_null(text);
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        (void)NODE->append(list, NODE->parse_json(line, (size_t)(end - line), path, &err));
    HOST->free(text);
    assert_int_equal(NODE->length(list), steps);
    return list;
}

/* Golden rows as ready-made ids, the prompt not trained: this file's tokenizer splits otherwise than transformers' (tools/golden). */
static void write_rows(const apus_node *rows, const char *path)
{
    apus_error err = {0};
    char *text = malloc(1 << 20);
    size_t used = 0;
    for (size_t r = 0; r < NODE->length(rows); r++) {
        const apus_node *ids = NODE->get(NODE->at(rows, r), "ids");
        const double prompt = number(NODE->at(rows, r), "prompt_length");
        for (int labels = 0; labels < 2; labels++) {
            used += (size_t)snprintf(text + used, (1 << 20) - used, "%s", labels ? "], \"labels\": [" : "{\"input_ids\": [");
            for (size_t i = 0; i < NODE->length(ids); i++)
                used += (size_t)snprintf(text + used, (1 << 20) - used, "%s%lld", i ? ", " : "",
                                         labels && (double)i < prompt ? -100LL : (long long)NODE->as_int(NODE->at(ids, i), -1));
        }
        used += (size_t)snprintf(text + used, (1 << 20) - used, "]}\n");
    }
    OK(apus_file_write(path, text, used, &err));
    free(text);
}

static void fine_tuning(void **state)
{
    (void)state;
    if (missing(__func__, SMOLLM2))
        skip();
    apus_error err = {0};
    char rows[600], rest[1000];
    size_t n;
    char *text = apus_file_read(APUS_TEST_GOLDEN "/smollm2/sft.json", 0, &n, &err);
    assert_non_null(text);
    apus_node *golden = NODE->parse_json(text, n, "sft.json", &err);
    assert_non_null(golden);
    HOST->free(text);
    snprintf(rows, sizeof rows, "%s/rows.jsonl", folder);
    write_rows(NODE->get(golden, "first_rows"), rows);
    snprintf(rest, sizeof rest,
             "\"loss\": \"cross_entropy\", \"dataset\": {\"type\": \"tokens\", \"path\": \"%s\", \"shuffle\": false}, \"batch_size\": 2,"
             " \"max_steps\": 2",
             rows);
    apus_node *events = train("sft", rest, 2);
    for (size_t i = 0; i < 2; i++) {
        const apus_node *got = NODE->at(events, i), *want = NODE->at(NODE->get(golden, "steps"), i);
        print_message("step %zu: loss %.6f (%.6f), gradient norm %.6f (%.6f)\n", i + 1, number(got, "loss"), number(want, "loss"),
                      number(got, "grad_norm"), number(want, "grad_norm"));
        assert_true(number(got, "tokens") == number(want, "tokens"));
        assert_true(fabs(number(got, "loss") - number(want, "loss")) < 1e-4);
        assert_true(fabs(number(got, "grad_norm") / number(want, "grad_norm") - 1.0) < 1e-3);
    }
    NODE->release(events);
    NODE->release(golden);
}

/* The reference is the adapter as it was, not the base without it: the first loss is ln 2, the second is not. In bfloat16 too: both keep
 * activations alike. */
static void preference_in(const char *dtype, const char *name)
{
    if (missing(__func__, SMOLLM2) || missing(__func__, PAIRS))
        skip();
    char spec[100];
    apus_device *usual = device;
    snprintf(spec, sizeof spec, "{\"type\": \"cpu\", \"threads\": 2, \"dtype\": \"%s\"}", dtype);
    device = bench_device(spec);
    apus_node *events = train(name,
                              "\"loss\": {\"type\": \"dpo\", \"beta\": 0.1, \"reference\": \"start\"}, \"dataset\": {\"type\": \"preference\","
                              " \"path\": \"" PAIRS "#1\", \"max_length\": 1024, \"shuffle\": false}, \"batch_size\": 1, \"max_steps\": 2",
                              2);
    const apus_node *first = NODE->at(events, 0), *second = NODE->at(events, 1);
    apus_device_close(device);
    device = usual;
    print_message("%s: loss %.9f, then %.6f\n", dtype, number(first, "loss"), number(second, "loss"));
    assert_true(fabs(number(first, "loss") - 0.69314718055994531) < 1e-6);
    assert_true(number(first, "rewards/chosen") == 0.0 && number(first, "rewards/rejected") == 0.0);
    assert_true(number(first, "grad_norm") > 0.1);
    assert_true(number(second, "loss") < number(first, "loss")); /* the same pair again */
    assert_true(number(second, "rewards/margins") > 0.0);
    NODE->release(events);
}

static void preference(void **state)
{
    (void)state;
    preference_in("float32", "dpo");
    preference_in("bfloat16", "dpo-bfloat16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fine_tuning), cmocka_unit_test(preference)};
    return cmocka_run_group_tests_name("model/real", tests, setup, teardown);
}
