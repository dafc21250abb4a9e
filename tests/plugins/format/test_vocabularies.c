/* Vocabularies out of GGUF files, through the tokenizer bpe, against llama.cpp's own conformance vectors. */
#include "models.h"

#include <apus/tokenizer.h>

static apus_format_ops gguf, hf;
static apus_tokenizer_ops bpe;

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_graph_announce();
    load_plugin("format_safetensors");
    load_plugin("format_gguf");
    load_plugin("tokenizer_bpe");
    hf = format("safetensors");
    gguf = format("gguf");
    const apus_component *c = apus_component_find("tokenizer", "bpe", &err);
    assert_non_null(c);
    apus_take(&bpe, sizeof bpe, c->ops);
    return 0;
}

static void *open_tokenizer(const apus_node *source)
{
    apus_error err = {0};
    void *t = NULL;
    assert_true(bpe.claims(source) > 0);
    if (bpe.open(apus_host_table(), NULL, source, &t, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return t;
}

/* Texts of NAME.inp, split by "\n__ggml_vocab_test__\n"; ids of each on a line of NAME.out. */
static void check_vectors(void *tokenizer, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[1024];
    apus_error err = {0};
    size_t n_in = 0, n_out = 0, count = 0;
    snprintf(path, sizeof path, "%s/tokenizers/vectors/ggml-vocab-%s.gguf.inp", APUS_TEST_DATA, name);
    char *in = apus_file_read(path, 0, &n_in, &err);
    snprintf(path, sizeof path, "%s/tokenizers/vectors/ggml-vocab-%s.gguf.out", APUS_TEST_DATA, name);
    char *out = apus_file_read(path, 0, &n_out, &err), *line = out;
    assert_non_null(in);
    assert_non_null(out);
    for (char *p = in; p < in + n_in; count++) {
        char *end = memmem(p, (size_t)(in + n_in - p), mark, sizeof mark - 1);
        const size_t n = (size_t)((end != NULL ? end : in + n_in) - p);
        apus_tokens tokens = {0};
        assert_int_equal(bpe.encode(tokenizer, p, n, 0, &tokens, &err), APUS_OK);
        for (size_t i = 0; i < tokens.n; i++) {
            char *after = line;
            const long id = strtol(line, &after, 10);
            if (after == line || id != tokens.ids[i])
                fail_msg("%s: text %zu '%.*s': token %zu is %d, expected %ld", name, count, (int)(n < 40 ? n : 40), p, i, tokens.ids[i], id);
            line = after;
        }
        line += strspn(line, " ");
        assert_true(*line == '\n' || *line == '\0'); /* no token is missing */
        line += *line == '\n';
        apus_host_table()->free(tokens.ids);
        apus_host_table()->free(tokens.begin);
        p = end != NULL ? end + sizeof mark - 1 : in + n_in;
    }
    assert_true(count > 40);
    apus_host_table()->free(in);
    apus_host_table()->free(out);
}

static void equal_llama_cpps_vectors(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-2", "llama-spm"};
    for (size_t i = 0; i < 2; i++) {
        char path[1024], name[128];
        snprintf(name, sizeof name, "tokenizers/vectors/ggml-vocab-%s.gguf", names[i]);
        shared_data(__func__, path, sizeof path, name);
        void *file = open_file(&gguf, path);
        void *tokenizer = open_tokenizer(card_of(&gguf, file).tokenizer);
        check_vectors(tokenizer, names[i]);
        bpe.close(tokenizer);
        gguf.close(file);
    }
}

static void equal_them_from_gpt2s_own_files(void **state)
{
    (void)state;
    char path[1024];
    shared_data(__func__, path, sizeof path, "tokenizers/gpt2");
    void *file = open_file(&hf, path);
    void *tokenizer = open_tokenizer(card_of(&hf, file).tokenizer);
    check_vectors(tokenizer, "gpt-2");
    bpe.close(tokenizer);
    hf.close(file);
}

/* A beginning-of-text token where the file asks for one; specials of the text only when allowed. */
static void special_tokens_follow_the_file(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    apus_tokens tokens = {0};
    shared_data(__func__, path, sizeof path, "models/stories260K/stories260K.gguf");
    void *file = open_file(&gguf, path);
    void *tokenizer = open_tokenizer(card_of(&gguf, file).tokenizer);
    assert_int_equal(bpe.encode(tokenizer, "Once", 4, APUS_ENCODE_ADD_SPECIAL, &tokens, &err), APUS_OK);
    assert_int_equal(tokens.ids[0], 1);
    tokens.n = 0;
    assert_int_equal(bpe.encode(tokenizer, "</s>", 4, 0, &tokens, &err), APUS_OK);
    for (size_t i = 0; i < tokens.n; i++)
        assert_int_not_equal(tokens.ids[i], 2);
    tokens.n = 0;
    assert_int_equal(bpe.encode(tokenizer, "</s>", 4, APUS_ENCODE_SPECIAL_TEXT, &tokens, &err), APUS_OK);
    assert_int_equal(tokens.n, 1);
    assert_int_equal(tokens.ids[0], 2);
    apus_host_table()->free(tokens.ids);
    apus_host_table()->free(tokens.begin);
    bpe.close(tokenizer);
    gguf.close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_llama_cpps_vectors),
        cmocka_unit_test(equal_them_from_gpt2s_own_files),
        cmocka_unit_test(special_tokens_follow_the_file),
    };
    return cmocka_run_group_tests_name("format/vocabularies", tests, setup, NULL);
}
