/* The tokenizer byte: ids are bytes, ill-formed ones U+FFFD as Python's errors='replace'; added tokens above. */
#include "tokenizers.h"

static const apus_tokenizer_ops *ops;

static int setup(void **state)
{
    (void)state;
    ops = find_ops("tokenizer", "byte");
    return 0;
}

static void *open_json(const char *json, apus_node **source)
{
    apus_error err = {0};
    *source = apus_nodes()->parse_json(json, strlen(json), "tokenizer.json", &err);
    assert_non_null(*source);
    assert_int_equal(ops->claims(*source), 100);
    return open_tokenizer(ops, *source);
}

static void there_and_back(void **state)
{
    (void)state;
    apus_node *source;
    void *t = open_json(
        "{\"model\": {\"type\": \"Byte\"}, \"added_tokens\": [{\"content\": \"<eos>\", \"special\": true}, {\"id\": 300, \"content\": \"<e\"}]}",
        &source);
    static const char text[] = "h\xC3\xA9\xF0\x90\x80<eos>\xED\xA0\x80<ex";
    /* 'h', é, one U+FFFD (a cut character), <eos>, three U+FFFD (a surrogate), <e, 'x' */
    static const int32_t want[] = {'h', 0xC3, 0xA9, 0xEF, 0xBF, 0xBD, 256, 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 300, 'x'};
    apus_tokens out = {0};
    apus_error err = {0};
    assert_int_equal(ops->encode(t, text, sizeof text - 1, APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, &out, &err), APUS_OK);
    assert_int_equal(out.n, sizeof want / sizeof *want);
    assert_memory_equal(out.ids, want, sizeof want);
    assert_int_equal(out.begin[6], 6);
    assert_int_equal(out.begin[17], sizeof text - 2);
    char *back;
    size_t n;
    assert_int_equal(ops->decode(t, out.ids, out.n, 0, &back, &n, &err), APUS_OK);
    assert_string_equal(back, "h\xC3\xA9\xEF\xBF\xBD<eos>\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD<ex");
    apus_host_table()->free(back);
    static const int32_t cut[] = {'a', 0xE2, 0x82, 256, 'b', 999, -1};
    assert_int_equal(ops->decode(t, cut, 7, 1, &back, &n, &err), APUS_OK);
    assert_string_equal(back, "a\xEF\xBF\xBD"
                              "b");
    apus_host_table()->free(back);
    out.n = 0; /* ordinary text: the special token's string is bytes, and nothing within it is looked for */
    assert_int_equal(ops->encode(t, "<eos>", 5, 0, &out, &err), APUS_OK);
    assert_int_equal(out.n, 5);
    assert_int_equal(out.ids[0], '<');
    tokens_free(&out);
    assert_int_equal(ops->vocab_size(t), 301);
    assert_int_equal(ops->id(t, "<eos>"), 256);
    assert_int_equal(ops->id(t, "A"), 'A');
    assert_int_equal(ops->id(t, "AB"), -1);
    assert_true(ops->is_special(t, 256));
    assert_false(ops->is_special(t, 300));
    assert_string_equal(ops->token(t, 'A', &n), "A");
    assert_int_equal((unsigned char)ops->token(t, 0xE9, &n)[0], 0xE9);
    assert_null(ops->token(t, 299, &n));
    ops->close(t);
    apus_nodes()->release(source);
}

static void refuses(void **state)
{
    static const char *const bad[][2] = {
        {"{\"model\": {\"type\": \"Byte\", \"vocab\": {}}}", "unknown key vocab"},
        {"{\"model\": {\"type\": \"Byte\"}, \"normalizer\": {\"type\": \"NFC\"}}", "takes no normalizer"},
        {"{\"model\": {\"type\": \"Byte\"}, \"added_tokens\": [{\"id\": 3, \"content\": \"x\"}]}", "at least 256"},
        {"{\"model\": {\"type\": \"Byte\"}, \"added_tokens\": [{\"content\": \"x\"}, {\"content\": \"x\"}]}", "there twice"},
        {"{\"model\": {\"type\": \"Byte\"}, \"added_tokens\": [{\"content\": \"\"}]}", "not empty"},
        {"{\"model\": {\"type\": \"Byte\"}, \"added_tokens\": [{\"content\": \"x\", \"lstrip\": true}]}", "does not support lstrip"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        apus_error err = {0};
        void *t = NULL;
        apus_node *source = apus_nodes()->parse_json(bad[i][0], strlen(bad[i][0]), "tokenizer.json", &err);
        assert_non_null(source);
        assert_int_not_equal(ops->open(apus_host_table(), NULL, source, &t, &err), APUS_OK);
        if (strstr(err.message, bad[i][1]) == NULL || strstr(err.message, "tokenizer.json:1:") == NULL)
            fail_msg("'%s' lacks '%s'", err.message, bad[i][1]);
        apus_nodes()->release(source);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_and_back), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
