/* Format safetensors: reads what transformers writes, writes what it reads back, refuses damaged files in one line. */
#include "models.h"

static apus_format_ops ops;

static int setup(void **state)
{
    (void)state;
    apus_graph_announce();
    load_plugin("format_safetensors");
    load_plugin("arch_decoder");
    load_plugin("arch_gpt2");
    apus_error err = {0};
    assert_int_equal(apus_ops_load(&err), APUS_OK);
    ops = format("safetensors");
    return 0;
}

static void reads_what_transformers_wrote(void **state)
{
    (void)state;
    static const char *const models[] = {"llama", "llama-bias", "llama-tied", "qwen2", "qwen3", "mistral", "gpt2"};
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/models/%s", APUS_TEST_GOLDEN, models[m]);
        assert_int_equal(ops.claims(path), 70);
        void *file = open_file(&ops, path);
        const uint64_t n = ops.count(file);
        assert_true(n > 10);
        assert_int_equal(ops.unused(file, 0), 0);
        source s = source_open(&ops, file); /* finds every weight, of the right size */
        assert_int_equal(ops.unused(file, 0), n);
        source_close(&s);
        ops.close(file);
    }
}

static void gives_rows_transposed_and_without_prefix(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/models/gpt2", APUS_TEST_GOLDEN);
    void *file = open_file(&ops, path);
    apus_tensor_info t = {.size = sizeof t};
    apus_weight_spec w = {.size = sizeof w, .name = "transformer.h.0.attn.c_attn.weight", .flags = APUS_WEIGHT_TRANSPOSED, .ndim = 2};
    assert_int_equal(ops.find(file, &w, &t, &err), APUS_OK);
    assert_int_equal(t.transposed, 1);
    assert_int_equal(t.dims[1], 3 * t.dims[0]);
    w.name = "transformer.nothing";
    assert_int_equal(ops.find(file, &w, &t, &err), APUS_E_NOT_FOUND);
    ops.close(file);
}

/* Write as `dtype`, read again: the same values within its rounding, the same configuration and text. */
static void round_trip(const char *model, apus_dtype dtype, uint64_t shard_bytes, double rounding)
{
    char path[1024], out[1024];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/models/%s", APUS_TEST_GOLDEN, model);
    void *file = open_file(&ops, path);
    source s = source_open(&ops, file);
    const char *tokenizer_text = "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}}";
    apus_node *tokenizer = NODE->parse_json(tokenizer_text, strlen(tokenizer_text), "t", &err);
    apus_node *templates = NODE->make_map();
    NODE->set(templates, "tool_use", NODE->make_string("{{ tools }}", (size_t)-1));
    s.card.tokenizer = tokenizer;
    s.card.chat_template = "{{ messages }}";
    s.card.chat_templates = templates;
    apus_model_export export = source_export(&s, dtype);
    export.shard_bytes = shard_bytes;
    fresh(out, sizeof out, "safetensors_round_trip");
    if (ops.write(apus_host_table(), NULL, out, &export, &err) != APUS_OK)
        fail_msg("%s", err.message);
    void *again = open_file(&ops, out);
    apus_model_card card = card_of(&ops, again);
    assert_string_equal(card.chat_template, "{{ messages }}");
    assert_true(NODE->equal(card.tokenizer, tokenizer));
    assert_true(NODE->equal(card.chat_templates, templates));
    assert_non_null(NODE->as_string(NODE->get(card.config, "torch_dtype"), NULL));
    assert_int_equal(ops.count(again), s.n);
    for (size_t i = 0; i < s.n; i++) {
        float *x = weight_values(&ops, again, &s.specs[i]);
        const int64_t n = s.specs[i].dims[0] * (s.specs[i].ndim > 1 ? s.specs[i].dims[1] : 1);
        for (int64_t k = 0; k < n; k++)
            if (fabs((double)x[k] - (double)s.values[i][k]) > rounding * fabs((double)s.values[i][k]) + rounding * 1e-3)
                fail_msg("%s[%lld]: %g, expected %g", s.specs[i].name, (long long)k, (double)x[k], (double)s.values[i][k]);
        free(x);
    }
    char index[1200];
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", out);
    assert_int_equal(apus_path_exists(index), shard_bytes != 0);
    ops.close(again);
    NODE->release(tokenizer);
    NODE->release(templates);
    source_close(&s);
    ops.close(file);
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    round_trip("llama", APUS_F32, 0, 0);
    round_trip("llama-tied", APUS_F16, 0, 1.0 / 1024);
    round_trip("qwen3", APUS_BF16, 20000, 1.0 / 128);
    round_trip("gpt2", APUS_F32, 30000, 0);
}

static void refuses_to_write_blocks(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_model_card card = {.size = sizeof card};
    apus_model_export export = {.size = sizeof export, .card = &card, .dtype = APUS_Q8_0};
    assert_int_equal(ops.write(apus_host_table(), NULL, "unused", &export, &err), APUS_E_UNSUPPORTED);
    assert_non_null(strstr(err.hint, "gguf"));
}

/* A container: header text and so many bytes of data. length < 0: the header's own. */
static void container(const char *path, int64_t length, const char *header, size_t data)
{
    const size_t there = strlen(header);
    const uint64_t n = length >= 0 ? (uint64_t)length : there;
    unsigned char *bytes = calloc(1, 8 + there + data);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(n >> (8 * i));
    memcpy(bytes + 8, header, there);
    write_bytes(path, bytes, 8 + there + data);
    free(bytes);
}

static void refuses_damaged_files(void **state)
{
    (void)state;
#define T(dtype, shape, begin, end) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"
    static const struct {
        int64_t length;
        const char *header;
        size_t data;
        apus_status status;
        const char *part;
    } cases[] = {
        {1000, "{}", 0, APUS_E_INVALID, "said to be 1000 bytes long, but 2 follow"},
        {INT64_MAX, "{}", 0, APUS_E_INVALID, "bytes long"},
        {-1, "{\"a\":", 0, APUS_E_INVALID, ""},
        {-1, "[]", 0, APUS_E_INVALID, "not a JSON object"},
        {-1, "{\"a\":1}", 0, APUS_E_INVALID, "expected {dtype, shape, data_offsets"},
        {-1, "{\"a\":" T("F32", "[2]", "0", "8") "}", 7, APUS_E_INVALID, "ends at byte 8 of the data, but only 7"},
        {-1, "{\"a\":" T("F32", "[2]", "0", "4") "}", 4, APUS_E_INVALID, "need 8 bytes, data_offsets give 4"},
        {-1, "{\"a\":" T("F32", "[2]", "8", "0") "}", 8, APUS_E_INVALID, "data_offsets are not"},
        {-1, "{\"a\":" T("F32", "[2]", "-8", "0") "}", 8, APUS_E_INVALID, "data_offsets are not"},
        {-1, "{\"a\":" T("F32", "[-2]", "0", "8") "}", 8, APUS_E_INVALID, "not a size"},
        {-1, "{\"a\":" T("F32", "[1.5]", "0", "8") "}", 8, APUS_E_INVALID, "not a size"},
        {-1, "{\"a\":" T("F32", "[4611686018427387904,4]", "0", "8") "}", 8, APUS_E_INVALID, "overflows"},
        {-1, "{\"a\":" T("F32", "[1,1,1,1,2]", "0", "8") "}", 8, APUS_E_UNSUPPORTED, "5 dimensions"},
        {-1, "{\"a\":" T("F8_E4M3", "[8]", "0", "8") "}", 8, APUS_E_UNSUPPORTED, "element type 'F8_E4M3'"},
        {-1, "{\"a\":" T("F32", "[2]", "0", "8") ",\"b\":" T("F32", "[2]", "4", "12") "}", 12, APUS_E_INVALID, "overlap at byte 4"},
        {-1, "{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "8", "12") "}", 12, APUS_E_INVALID,
         "bytes 4 to 8 of the data belong to no tensor"},
        {-1, "{\"a\":" T("F32", "[1]", "0", "4") "}", 12, APUS_E_INVALID, "8 bytes after the last tensor"},
        {-1, "{\"a\":" T("F32", "[1]", "0", "4") ",\"a\":" T("F32", "[1]", "4", "8") "}", 8, APUS_E_INVALID, "twice"},
        {-1, "{\"__metadata__\":3}", 0, APUS_E_INVALID, "__metadata__"},
    };
#undef T
    char path[1024];
    fresh(path, sizeof path, "damaged.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        container(path, cases[i].length, cases[i].header, cases[i].data);
        assert_refused(&ops, path, cases[i].status, cases[i].part);
    }
    write_bytes(path, "abc", 3);
    assert_refused(&ops, path, APUS_E_INVALID, "too few");
    write_bytes(path, "", 0);
    assert_refused(&ops, path, APUS_E_INVALID, "too few");
    assert_refused(&ops, "/nonexistent/x.safetensors", APUS_E_NOT_FOUND, "cannot be opened");
}

static void refuses_damaged_folders(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text, *part;
        apus_status status;
    } cases[] = {
        {"config.json", "{\"a\": ", "config.json", APUS_E_INVALID},
        {"config.json", "[]", "not a JSON object", APUS_E_INVALID},
        {"pytorch_model.bin", "x", "pickle", APUS_E_UNSUPPORTED},
        {"model.safetensors.index.json", "{}", "weight_map", APUS_E_INVALID},
        {"model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../x\"}}", "files of this folder", APUS_E_INVALID},
        {"model.safetensors.index.json", "{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "files of this folder", APUS_E_INVALID},
        {"model.safetensors.index.json", "{\"weight_map\": {\"a\": 3}}", "files of this folder", APUS_E_INVALID},
        {"model.safetensors.index.json", "{\"weight_map\": {\"a\": \"b.safetensors\"}}", "cannot be opened", APUS_E_NOT_FOUND},
        {"tokenizer_config.json", "{\"chat_template\": [{\"name\": 3}]}", "list of {name, template}", APUS_E_INVALID},
    };
    char path[1024];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fresh(path, sizeof path, "damaged_folder");
        assert_int_equal(mkdir(path, 0755), 0);
        write_text_in(path, cases[i].file, cases[i].text);
        assert_refused(&ops, path, cases[i].status, cases[i].part);
    }
    /* the index says one thing, the shard another */
    fresh(path, sizeof path, "damaged_folder");
    assert_int_equal(mkdir(path, 0755), 0);
    write_text_in(path, "model.safetensors.index.json", "{\"weight_map\": {\"a\": \"x.safetensors\"}}");
    char shard[2048];
    snprintf(shard, sizeof shard, "%s/x.safetensors", path);
    container(shard, -1, "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    assert_refused(&ops, path, APUS_E_INVALID, "'a' is not in x.safetensors as its index says");
}

static void reads_templates_and_special_tokens(void **state)
{
    (void)state;
    char path[1024];
    fresh(path, sizeof path, "templates");
    assert_int_equal(mkdir(path, 0755), 0);
    write_text_in(path, "tokenizer_config.json",
                  "{\"bos_token\": null, \"chat_template\": [{\"name\": \"default\", \"template\": \"A\"}, "
                  "{\"name\": \"rag\", \"template\": \"B\"}]}");
    write_text_in(path, "special_tokens_map.json", "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}");
    void *file = open_file(&ops, path);
    apus_model_card card = card_of(&ops, file);
    assert_string_equal(card.chat_template, "A");
    assert_string_equal(NODE->as_string(NODE->get(card.chat_templates, "rag"), NULL), "B");
    assert_string_equal(NODE->as_string(NODE->get(card.tokenizer_config, "bos_token"), NULL), "<s>");
    assert_null(NODE->get(card.tokenizer_config, "chat_template"));
    ops.close(file);
    write_text_in(path, "chat_template.jinja", "C"); /* the file goes first, as in transformers */
    file = open_file(&ops, path);
    card = card_of(&ops, file);
    assert_string_equal(card.chat_template, "C");
    ops.close(file);
}

static void reads_gpt2s_own_files(void **state)
{
    (void)state;
    char path[1024];
    shared_data(__func__, path, sizeof path, "tokenizers/gpt2");
    void *file = open_file(&ops, path);
    const apus_model_card card = card_of(&ops, file);
    const apus_node *model = NODE->get(card.tokenizer, "model");
    assert_int_equal(NODE->length(NODE->get(model, "vocab")), 50257);
    assert_int_equal(NODE->length(NODE->get(model, "merges")), 50000);
    const apus_node *added = NODE->at(NODE->get(card.tokenizer, "added_tokens"), 0);
    assert_int_equal(NODE->as_int(NODE->get(added, "id"), -1), 50256);
    assert_null(card.config);
    assert_int_equal(ops.count(file), 0);
    assert_int_equal(ops.unused(file, 0), 0);
    ops.close(file);
}

static void reads_a_tokenizer_alone(void **state)
{
    (void)state;
    char path[1024];
    shared_data(__func__, path, sizeof path, "tokenizers/qwen3/tokenizer.json");
    assert_true(ops.claims(path) > 0);
    void *file = open_file(&ops, path);
    assert_non_null(card_of(&ops, file).tokenizer);
    ops.close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_transformers_wrote),
        cmocka_unit_test(gives_rows_transposed_and_without_prefix),
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(refuses_to_write_blocks),
        cmocka_unit_test(refuses_damaged_files),
        cmocka_unit_test(refuses_damaged_folders),
        cmocka_unit_test(reads_templates_and_special_tokens),
        cmocka_unit_test(reads_gpt2s_own_files),
        cmocka_unit_test(reads_a_tokenizer_alone),
    };
    return cmocka_run_group_tests_name("format/safetensors", tests, setup, NULL);
}
