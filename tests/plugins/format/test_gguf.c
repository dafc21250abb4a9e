/* Format gguf: reads llama.cpp's files in Hugging Face's order, writes what it reads back, refuses damaged files in one
 * line. */
#include "models.h"

static apus_format_ops hf, ops;

static int setup(void **state)
{
    (void)state;
    apus_graph_announce();
    load_plugin("format_safetensors");
    load_plugin("format_gguf");
    load_plugin("arch_decoder");
    load_plugin("arch_gpt2");
    apus_error err = {0};
    assert_int_equal(apus_ops_load(&err), APUS_OK);
    hf = format("safetensors");
    ops = format("gguf");
    return 0;
}

/* Bytes of files that this process has in memory. */
static long file_pages(void)
{
    char line[256];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL)
        (void)sscanf(line, "RssFile: %ld", &kib);
    (void)fclose(f);
    return kib * 1024;
}

static void *golden(const char *model)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/models/%s", APUS_TEST_GOLDEN, model);
    return open_file(&hf, path);
}

static const char *write_golden(const char *model, apus_dtype dtype, char *out, size_t capacity, source *s, void **file)
{
    apus_error err = {0};
    *file = golden(model);
    *s = source_open(&hf, *file);
    const apus_model_export export = source_export(s, dtype);
    fresh(out, capacity, "model.gguf");
    if (ops.write(apus_host_table(), NULL, out, &export, &err) != APUS_OK)
        fail_msg("%s: %s", model, err.message);
    return out;
}

static double relative_error(const float *x, const float *y, int64_t n)
{
    double a = 0, b = 0;
    for (int64_t i = 0; i < n; i++) {
        a += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        b += (double)y[i] * (double)y[i];
    }
    return sqrt(a / (b + 1e-30));
}

/* Every weight comes back, whatever the file did to it; norms exactly. */
static void round_trip(const char *model, apus_dtype dtype, double most)
{
    char path[1024];
    source s;
    void *file;
    write_golden(model, dtype, path, sizeof path, &s, &file);
    assert_int_equal(ops.claims(path), 95);
    void *again = open_file(&ops, path);
    for (size_t i = 0; i < s.n; i++) {
        float *x = weight_values(&ops, again, &s.specs[i]);
        const int64_t n = s.specs[i].dims[0] * (s.specs[i].ndim > 1 ? s.specs[i].dims[1] : 1);
        const double e = relative_error(x, s.values[i], n);
        if (!(e <= (s.specs[i].ndim == 1 ? 0.0 : most)))
            fail_msg("%s: %s: relative error %g", model, s.specs[i].name, e);
        free(x);
    }
    assert_int_equal(ops.unused(again, 0), ops.count(again));
    ops.close(again);
    source_close(&s);
    hf.close(file);
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    static const char *const models[] = {"llama",          "llama-bias", "llama-tied", "llama-headdim", "llama-llama3", "llama-yarn",
                                         "llama-longrope", "qwen2",      "qwen3",      "mistral",       "gpt2",         "llama-linear"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        round_trip(models[i], APUS_F32, 0.0);
    round_trip("llama", APUS_F16, 1e-3);
    round_trip("qwen3", APUS_BF16, 1e-2);
    round_trip("llama", APUS_Q8_0, 1e-2);
    round_trip("llama", APUS_Q4_0, 0.12);
    round_trip("gpt2", APUS_Q8_0, 1e-2);
}

/* Keys whose values must survive config.json -> GGUF -> config.json's shape. */
static void keeps_the_configuration(void **state)
{
    (void)state;
    static const char *const models[] = {"llama",          "llama-bias", "llama-tied", "llama-headdim", "llama-llama3", "llama-linear",
                                         "llama-longrope", "qwen2",      "qwen3",      "mistral",       "gpt2"};
    static const char *const keys[] = {"model_type",
                                       "vocab_size",
                                       "hidden_size",
                                       "intermediate_size",
                                       "num_hidden_layers",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "max_position_embeddings",
                                       "rms_norm_eps",
                                       "rope_theta",
                                       "tie_word_embeddings",
                                       "attention_bias",
                                       "n_embd",
                                       "n_layer",
                                       "n_head",
                                       "n_positions",
                                       "layer_norm_epsilon"};
    static const char *const scaling[] = {"rope_type",       "factor",           "original_max_position_embeddings",
                                          "low_freq_factor", "high_freq_factor", "beta_fast",
                                          "beta_slow",       "short_factor",     "long_factor"};
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        char path[1024];
        source s;
        void *file;
        write_golden(models[m], APUS_F32, path, sizeof path, &s, &file);
        void *again = open_file(&ops, path);
        const apus_node *was = s.card.config, *is = card_of(&ops, again).config;
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            const apus_node *a = NODE->get(was, keys[k]), *b = NODE->get(is, keys[k]);
            if (a != NULL && b != NULL && !NODE->equal(a, b) && !(fabs(NODE->as_float(a, 1e9) - NODE->as_float(b, -1e9)) < 1e-9))
                fail_msg("%s: %s differs", models[m], keys[k]);
            if (a != NULL && NODE->kind(a) != APUS_NODE_NULL && b == NULL && strcmp(keys[k], "attention_bias") != 0)
                fail_msg("%s: %s is lost", models[m], keys[k]);
        }
        const apus_node *p = NODE->get(was, "rope_parameters"), *q = NODE->get(is, "rope_scaling");
        if (NODE->kind(NODE->get(was, "rope_scaling")) != APUS_NODE_NULL)
            p = NODE->get(was, "rope_scaling");
        for (size_t k = 0; NODE->kind(q) != APUS_NODE_NULL && k < sizeof scaling / sizeof scaling[0]; k++) {
            const apus_node *a = NODE->get(p, scaling[k]), *b = NODE->get(q, scaling[k]);
            if (a == NULL || (strcmp(scaling[k], "factor") == 0 && NODE->get(q, "attention_factor") != NULL))
                continue; /* longrope's factor only makes the attention factor, which GGUF keeps instead */
            for (size_t i = 0; i < (NODE->length(a) ? NODE->length(a) : 1); i++) {
                const apus_node *x = NODE->length(a) ? NODE->at(a, i) : a, *y = NODE->length(a) ? NODE->at(b, i) : b;
                if (!NODE->equal(x, y) && !(fabs(NODE->as_float(x, 1e9) - NODE->as_float(y, -1e9)) < 1e-5 * NODE->as_float(x, 0)))
                    fail_msg("%s: %s differs", models[m], scaling[k]);
            }
        }
        const char *type = NODE->as_string(NODE->get(p, "rope_type"), NULL);
        if (type != NULL && strcmp(type, "default") != 0 && NODE->kind(q) == APUS_NODE_NULL)
            fail_msg("%s: the rope scaling is lost", models[m]);
        ops.close(again);
        source_close(&s);
        hf.close(file);
    }
}

/* yarn as llama.cpp knows it stays yarn; with other betas it becomes the divisors it comes to. */
static void says_yarn_in_llama_cpps_words(void **state)
{
    (void)state;
    for (int usual = 0; usual < 2; usual++) {
        char path[1024];
        apus_error err = {0};
        void *file = golden("llama-yarn");
        source s = source_open(&hf, file);
        apus_node *config = NODE->copy(s.card.config), *scaling = NODE->copy(NODE->get(config, "rope_scaling"));
        if (usual) {
            NODE->remove(scaling, "beta_fast");
            NODE->remove(scaling, "beta_slow");
        }
        NODE->set(config, "rope_scaling", scaling);
        s.card.config = config;
        const apus_model_export export = source_export(&s, APUS_F32);
        fresh(path, sizeof path, "yarn.gguf");
        if (ops.write(apus_host_table(), NULL, path, &export, &err) != APUS_OK)
            fail_msg("%s", err.message);
        void *again = open_file(&ops, path);
        const apus_node *is = NODE->get(card_of(&ops, again).config, "rope_scaling");
        assert_string_equal(NODE->as_string(NODE->get(is, "rope_type"), NULL), usual ? "yarn" : "longrope");
        if (usual)
            assert_true(NODE->as_float(NODE->get(is, "factor"), 0) == 4.0);
        else
            assert_true(fabs(NODE->as_float(NODE->get(is, "attention_factor"), 0) - (1.0 + 0.1 * log(4.0))) < 1e-6);
        ops.close(again);
        source_close(&s);
        NODE->release(config);
        hf.close(file);
    }
}

static void carries_the_tokenizer(void **state)
{
    (void)state;
    char data[1024], path[1024];
    apus_error err = {0};
    shared_data(__func__, data, sizeof data, "models/stories260K/stories260K.gguf");
    void *file = open_file(&ops, data);
    source s = source_open(&ops, file);
    apus_node *templates = NODE->make_map();
    NODE->set(templates, "tool_use", NODE->make_string("T", 1));
    s.card.chat_template = "C";
    s.card.chat_templates = templates;
    const apus_model_export export = source_export(&s, APUS_F32);
    fresh(path, sizeof path, "tokenizer.gguf");
    if (ops.write(apus_host_table(), NULL, path, &export, &err) != APUS_OK)
        fail_msg("%s", err.message);
    void *again = open_file(&ops, path);
    const apus_model_card was = card_of(&ops, file), is = card_of(&ops, again);
    assert_true(NODE->equal(was.tokenizer, is.tokenizer)); /* merges come back from scores in the same order */
    assert_true(NODE->equal(was.tokenizer_config, is.tokenizer_config));
    assert_string_equal(is.chat_template, "C");
    assert_true(NODE->equal(is.chat_templates, templates));
    ops.close(again);
    NODE->release(templates);
    source_close(&s);
    ops.close(file);
}

/* Opening reads what stands before the weights, 2 MB, and none of the 98 MB of these. */
static void opens_a_real_model_without_its_weights(void **state)
{
    (void)state;
    char path[1024];
    shared_data(__func__, path, sizeof path, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    const long before = file_pages();
    void *file = open_file(&ops, path);
    const apus_model_card card = card_of(&ops, file);
    assert_true(file_pages() - before < 16 << 20);
    const apus_node *model = NODE->get(card.tokenizer, "model");
    assert_int_equal(NODE->length(NODE->get(model, "vocab")), 49152);
    assert_int_equal(NODE->length(NODE->get(model, "merges")), 48900);
    assert_int_equal(NODE->length(NODE->get(card.tokenizer, "added_tokens")), 17);
    assert_string_equal(NODE->as_string(NODE->get(card.tokenizer_config, "eos_token"), NULL), "<|im_end|>");
    assert_non_null(card.chat_template);
    assert_int_equal(NODE->as_int(NODE->get(card.config, "num_key_value_heads"), 0), 3);
    assert_int_equal(ops.count(file), 272);
    source s = source_open(&ops, file);
    assert_int_equal(ops.unused(file, 0), 272);
    source_close(&s);
    ops.close(file);
}

static void gives_rows_in_hugging_faces_order(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    shared_data(__func__, path, sizeof path, "models/stories260K/stories260K.gguf");
    void *file = open_file(&ops, path);
    const apus_weight_spec w = {.size = sizeof w, .name = "k", .role = "attn_k.weight", .layer = 2, .ndim = 2, .dims = {32, 64}};
    apus_tensor_info t = {.size = sizeof t}, raw = {.size = sizeof raw};
    assert_int_equal(ops.find(file, &w, &t, &err), APUS_OK);
    uint64_t at = 0;
    while (ops.tensor(file, at, &raw, &err) == APUS_OK && strcmp(raw.name, "blk.2.attn_k.weight") != 0)
        at++;
    const float *to = t.data, *from = raw.data; /* 4 key heads of 8 rows: row s 4 + j of a head is the file's 2 j + s */
    for (int h = 0; h < 4; h++)
        for (int s = 0; s < 2; s++)
            for (int j = 0; j < 4; j++)
                assert_memory_equal(to + (h * 8 + s * 4 + j) * 64, from + (h * 8 + 2 * j + s) * 64, 64 * sizeof *to);
    ops.close(file);
}

/* ---------------------------------------------------------------- damaged files */

typedef struct bytes {
    unsigned char data[4096];
    size_t n;
} bytes;

static void put(bytes *b, const void *p, size_t n)
{
    memcpy(b->data + b->n, p, n);
    b->n += n;
}

static void u32(bytes *b, uint32_t v)
{
    put(b, &v, 4);
}

static void u64(bytes *b, uint64_t v)
{
    put(b, &v, 8);
}

static void text(bytes *b, const char *s)
{
    u64(b, strlen(s));
    put(b, s, strlen(s));
}

static bytes head(uint32_t version, uint64_t tensors, uint64_t values)
{
    bytes b = {.n = 0};
    put(&b, "GGUF", 4);
    u32(&b, version);
    u64(&b, tensors);
    u64(&b, values);
    return b;
}

static void architecture(bytes *b)
{
    text(b, "general.architecture");
    u32(b, 8);
    text(b, "llama");
}

static void tensor(bytes *b, const char *name, uint32_t ndim, uint64_t d, uint32_t type, uint64_t offset)
{
    text(b, name);
    u32(b, ndim);
    for (uint32_t k = 0; k < ndim && k < 8; k++)
        u64(b, d);
    u32(b, type);
    u64(b, offset);
}

static void finish(bytes *b, size_t data)
{
    b->n = (b->n + 31) / 32 * 32 + data;
}

static void refuse(const bytes *b, apus_status status, const char *part)
{
    char path[1024];
    fresh(path, sizeof path, "damaged.gguf");
    write_bytes(path, b->data, b->n);
    assert_refused(&ops, path, status, part);
}

static void refuses_damaged_files(void **state)
{
    (void)state;
    bytes b = {.n = 0};
    refuse(&b, APUS_E_INVALID, "does not begin with GGUF");
    put(&b, "GGML....", 8);
    refuse(&b, APUS_E_INVALID, "does not begin with GGUF");
    b = head(1, 0, 0);
    refuse(&b, APUS_E_UNSUPPORTED, "version 1");
    b = head(0x03000000, 0, 0);
    refuse(&b, APUS_E_UNSUPPORTED, "version");
    b = head(3, 0, 0);
    b.n -= 3;
    refuse(&b, APUS_E_INVALID, "ends inside the header");
    b = head(3, UINT64_MAX, 0);
    refuse(&b, APUS_E_INVALID, "do not fit");
    b = head(3, 0, UINT64_MAX / 13);
    refuse(&b, APUS_E_INVALID, "do not fit");
    b = head(3, 0, 1);
    u64(&b, UINT64_MAX);
    u64(&b, 0);
    refuse(&b, APUS_E_INVALID, "ends inside a key");
    b = head(3, 0, 1);
    text(&b, "k");
    u32(&b, 77);
    u64(&b, 0);
    refuse(&b, APUS_E_INVALID, "unknown type 77");
    b = head(3, 0, 1);
    text(&b, "k");
    u32(&b, 9);
    u32(&b, 9);
    u64(&b, 1);
    refuse(&b, APUS_E_INVALID, "array of type 9");
    b = head(3, 0, 1);
    text(&b, "k");
    u32(&b, 9);
    u32(&b, 12);
    u64(&b, UINT64_MAX / 4);
    refuse(&b, APUS_E_INVALID, "ends inside k");
    b = head(3, 0, 2);
    architecture(&b);
    architecture(&b);
    refuse(&b, APUS_E_INVALID, "'general.architecture' is there twice");
    b = head(3, 0, 1);
    text(&b, "general.name");
    u32(&b, 8);
    text(&b, "no architecture");
    refuse(&b, APUS_E_INVALID, "general.architecture is missing");
    static const struct {
        uint32_t ndim, type;
        uint64_t d, offset;
        size_t data;
        apus_status status;
        const char *part;
    } cases[] = {
        {0, 0, 4, 0, 64, APUS_E_INVALID, "0 dimensions"},
        {5, 0, 4, 0, 64, APUS_E_INVALID, "5 dimensions"},
        {1, 16, 256, 0, 64, APUS_E_UNSUPPORTED, "stored as IQ2_XXS"},
        {1, 99, 4, 0, 64, APUS_E_UNSUPPORTED, "unknown type"},
        {1, 4, 32, 0, 64, APUS_E_UNSUPPORTED, "unknown type"},
        {1, 2, 33, 0, 64, APUS_E_INVALID, "33 elements do not fit blocks of Q4_0"},
        {1, 0, 17, 0, 64, APUS_E_INVALID, "but only 64 are there"},
        {1, 0, 4, 64, 64, APUS_E_INVALID, "but only 64 are there"},
        {1, 0, 4, 4, 64, APUS_E_INVALID, "not a multiple of 32"},
        {1, 0, 4, 1ull << 63, 64, APUS_E_INVALID, "but only 64 are there"},
        {3, 0, 1ull << 40, 0, 64, APUS_E_INVALID, "overflows"},
        {1, 0, UINT64_MAX, 0, 64, APUS_E_INVALID, "overflows"},
        {2, 0, 1ull << 31, 0, 64, APUS_E_INVALID, "overflows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b = head(3, 1, 1);
        architecture(&b);
        tensor(&b, "t", cases[i].ndim, cases[i].d, cases[i].type, cases[i].offset);
        finish(&b, cases[i].data);
        if (i + 1 == sizeof cases / sizeof cases[0]) /* 2^62 elements of 4 bytes */
            refuse(&b, cases[i].status, "");
        else
            refuse(&b, cases[i].status, cases[i].part);
    }
    b = head(3, 2, 1);
    architecture(&b);
    tensor(&b, "a", 1, 16, 0, 0);
    tensor(&b, "b", 1, 16, 0, 32);
    finish(&b, 128);
    refuse(&b, APUS_E_INVALID, "'a' and 'b' overlap");
    b = head(3, 2, 1);
    architecture(&b);
    tensor(&b, "a", 1, 8, 0, 0);
    tensor(&b, "a", 1, 8, 0, 32);
    finish(&b, 128);
    refuse(&b, APUS_E_INVALID, "'a' is there twice");
    b = head(3, 0, 2);
    architecture(&b);
    text(&b, "general.alignment");
    u32(&b, 4);
    u32(&b, 3);
    refuse(&b, APUS_E_INVALID, "expected a power of two");
}

/* Use an opened file as a host would; it may be wrong in any way that open() does not see. */
static void use(void *file)
{
    apus_error err = {0};
    apus_model_card card = {.size = sizeof card};
    apus_tensor_info t = {.size = sizeof t};
    (void)ops.card(file, &card, &err);
    for (uint64_t i = 0; i < ops.count(file); i++)
        assert_int_equal(ops.tensor(file, i, &t, &err), APUS_OK);
    const apus_weight_spec w = {.size = sizeof w, .name = "q", .role = "attn_q.weight", .layer = 0, .ndim = 2};
    (void)ops.find(file, &w, &t, &err);
}

/* Cut anywhere, flipped anywhere in the header: an error or a model, never a crash. */
static void survives_every_cut_and_flip(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    source s;
    void *file;
    size_t n = 0;
    write_golden("llama-llama3", APUS_Q8_0, path, sizeof path, &s, &file);
    source_close(&s);
    hf.close(file);
    char *whole = apus_file_read(path, 0, &n, &err);
    assert_non_null(whole);
    const size_t header = 2600;
    for (size_t cut = 0; cut < n; cut += cut < header ? 7 : 997) {
        write_bytes(path, whole, cut);
        file = NULL;
        assert_int_not_equal(ops.open(apus_host_table(), NULL, path, &file, &err), APUS_OK);
    }
    for (size_t at = 4; at < header; at++) {
        const char was = whole[at];
        whole[at] = (char)(was ^ (at % 2 ? 0x81 : 0x7f));
        write_bytes(path, whole, n);
        file = NULL;
        if (ops.open(apus_host_table(), NULL, path, &file, &err) == APUS_OK) {
            use(file);
            ops.close(file);
        }
        whole[at] = was;
    }
    apus_host_table()->free(whole);
}

static void refuses_what_gguf_cannot_say(void **state)
{
    (void)state;
    apus_error err = {0};
    char path[1024];
    void *file = golden("llama");
    source s = source_open(&hf, file);
    apus_node *config = NODE->copy(s.card.config);
    s.card.config = config;
    apus_model_export export = source_export(&s, APUS_Q4_K);
    fresh(path, sizeof path, "refused.gguf");
    assert_int_equal(ops.write(apus_host_table(), NULL, path, &export, &err), APUS_E_UNSUPPORTED);
    export.dtype = APUS_F32;
    NODE->set(config, "hidden_act", NODE->make_string("relu", 4));
    assert_int_equal(ops.write(apus_host_table(), NULL, path, &export, &err), APUS_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "hidden_act"));
    NODE->set(config, "model_type", NODE->make_string("starcoder", (size_t)-1));
    assert_int_equal(ops.write(apus_host_table(), NULL, path, &export, &err), APUS_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "starcoder"));
    source_close(&s);
    NODE->release(config);
    hf.close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(keeps_the_configuration),
        cmocka_unit_test(carries_the_tokenizer),
        cmocka_unit_test(says_yarn_in_llama_cpps_words),
        cmocka_unit_test(opens_a_real_model_without_its_weights),
        cmocka_unit_test(gives_rows_in_hugging_faces_order),
        cmocka_unit_test(refuses_damaged_files),
        cmocka_unit_test(survives_every_cut_and_flip),
        cmocka_unit_test(refuses_what_gguf_cannot_say),
    };
    return cmocka_run_group_tests_name("format/gguf", tests, setup, NULL);
}
