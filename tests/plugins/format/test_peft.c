/* Format peft: reads what PEFT saved, writes what it reads back, refuses what is no adapter in one line. */
#include "models.h"

static apus_format_ops ops;

static int setup(void **state)
{
    (void)state;
    apus_graph_announce();
    load_plugin("format_peft");
    ops = format("peft");
    return 0;
}

#define A_NAME "model.layers.0.self_attn.q_proj.lora_A.weight"
#define B_NAME "model.layers.1.self_attn.v_proj.lora_B.weight"

static void reads_what_peft_wrote(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    apus_tensor_info t = {.size = sizeof t};
    snprintf(path, sizeof path, "%s/lora", APUS_TEST_GOLDEN);
    assert_int_equal(ops.claims(path), 90);
    void *file = open_file(&ops, path);
    const apus_model_card card = card_of(&ops, file);
    assert_string_equal(NODE->as_string(NODE->get(card.config, "peft_type"), NULL), "LORA");
    apus_weight_spec w = {.size = sizeof w, .name = A_NAME, .ndim = 2};
    assert_int_equal(ops.find(file, &w, &t, &err), APUS_OK);
    assert_int_equal(t.dims[0], NODE->as_int(NODE->get(card.config, "r"), 0));
    assert_string_equal(t.name, "base_model.model." A_NAME);
    const uint64_t first = ops.unused(file, 0);
    assert_true(first < ops.count(file)); /* the others are still asked of nobody */
    w.name = "model.layers.9.self_attn.q_proj.lora_A.weight";
    assert_int_equal(ops.find(file, &w, &t, &err), APUS_E_NOT_FOUND);
    ops.close(file);
}

static apus_status read_counting(void *context, size_t weight, int64_t row, int64_t rows, float *dst, apus_error *err)
{
    const int64_t columns = *(const int64_t *)context;
    (void)err;
    for (int64_t i = 0; i < rows * columns; i++)
        dst[i] = (float)(weight * 1000) + (float)(row * columns + i);
    return APUS_OK;
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    int64_t columns = 6;
    const apus_weight_spec specs[] = {{.size = sizeof specs[0], .name = A_NAME, .ndim = 2, .dims = {4, 6}},
                                      {.size = sizeof specs[0], .name = B_NAME, .ndim = 2, .dims = {10, 6}}};
    apus_node *config = NODE->make_map();
    NODE->set(config, "peft_type", NODE->make_string("LORA", 4));
    apus_model_card card = {.size = sizeof card, .config = config};
    const apus_model_export export = {
        .size = sizeof export, .card = &card, .weights = specs, .n_weights = 2, .read = read_counting, .context = &columns, .dtype = APUS_BF16};
    fresh(path, sizeof path, "adapter");
    if (ops.write(apus_host_table(), NULL, path, &export, &err) != APUS_OK)
        fail_msg("%s", err.message);
    void *file = open_file(&ops, path);
    for (size_t i = 0; i < 2; i++) {
        float *x = weight_values(&ops, file, &specs[i]); /* float32 whatever was asked for */
        for (int64_t k = 0; k < specs[i].dims[0] * columns; k++)
            assert_true(x[k] == (float)(i * 1000) + (float)k);
        free(x);
    }
    assert_int_equal(ops.unused(file, 0), 2);
    assert_true(NODE->equal(card_of(&ops, file).config, config));
    ops.close(file);
    NODE->remove(config, "peft_type");
    assert_int_equal(ops.write(apus_host_table(), NULL, path, &export, &err), APUS_E_INVALID);
    NODE->release(config);
}

static void refuses_what_is_no_adapter(void **state)
{
    (void)state;
    static const struct {
        const char *config, *weights, *name, *part;
        apus_status status;
    } cases[] = {
        {"{\"peft_type\": \"LORA\"}", "x", "adapter_model.bin", "pickle", APUS_E_UNSUPPORTED},
        {"{\"peft_type\": \"LORA\"}", "x", "README.md", "has adapter_config.json but no adapter_model.safetensors", APUS_E_NOT_FOUND},
        {"{\"r\": 4}", "x", "adapter_model.safetensors", "peft_type is missing", APUS_E_INVALID},
        {"{\"peft_type\": ", "x", "adapter_model.safetensors", "adapter_config.json", APUS_E_INVALID},
        {"{\"peft_type\": \"LORA\"}", "x", "adapter_model.safetensors", "too few", APUS_E_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[1024];
        fresh(path, sizeof path, "no_adapter");
        assert_int_equal(mkdir(path, 0755), 0);
        write_text_in(path, "adapter_config.json", cases[i].config);
        write_text_in(path, cases[i].name, cases[i].weights);
        assert_refused(&ops, path, cases[i].status, cases[i].part);
    }
    char path[1024];
    fresh(path, sizeof path, "no_adapter");
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(ops.claims(path), 0);
    assert_refused(&ops, path, APUS_E_NOT_FOUND, "has no adapter_config.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_peft_wrote),
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(refuses_what_is_no_adapter),
    };
    return cmocka_run_group_tests_name("format/peft", tests, setup, NULL);
}
