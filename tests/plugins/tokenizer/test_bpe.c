/*
 * The tokenizer bpe against Hugging Face's tokenizers (tests/golden/tokenizers, made by tools/golden/tokenizer_ids.py) and
 * llama.cpp's vectors. Synthetic tokenizers are in the golden files whole; the vocabularies of real ones are read from the
 * data folder and skipped by name where it is missing.
 */
#include "tokenizers.h"

static const apus_tokenizer_ops *ops;
static const apus_node_api *api;
static apus_node *texts;

static int setup(void **state)
{
    (void)state;
    api = apus_nodes();
    ops = find_ops("tokenizer", "bpe");
    texts = read_node(APUS_TEST_GOLDEN "/tokenizers/texts.json.gz");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    api->release(texts);
    return 0;
}

static void encode(void *t, const char *s, size_t n, int flags, apus_tokens *out)
{
    apus_error err = {0};
    out->n = 0;
    if (ops->encode(t, s, n, flags, out, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

/* 4096 code points from `first` on, as the golden script's plane(). */
static size_t plane(uint32_t first, char *out)
{
    size_t n = 0;
    for (uint32_t c = first; c < first + 4096; c++) {
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        if (c < 0x80) {
            out[n++] = (char)c;
        } else if (c < 0x800) {
            out[n++] = (char)(0xC0 | c >> 6);
            out[n++] = (char)(0x80 | (c & 0x3F));
        } else {
            if (c < 0x10000) {
                out[n++] = (char)(0xE0 | c >> 12);
            } else {
                out[n++] = (char)(0xF0 | c >> 18);
                out[n++] = (char)(0x80 | (c >> 12 & 0x3F));
            }
            out[n++] = (char)(0x80 | (c >> 6 & 0x3F));
            out[n++] = (char)(0x80 | (c & 0x3F));
        }
        if (c % 3 == 0)
            out[n++] = ' ';
        if (c % 7 == 0)
            out[n++] = 'a';
    }
    return n;
}

static size_t from_hex(const char *hex, char *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        out[i] = (char)byte;
    }
    return n;
}

/* Everything a golden tokenizer says, of ours. */
static void check(const char *name, void *t, const apus_node *golden)
{
    apus_tokens out = {0};
    apus_error err = {0};
    char what[160];
    const apus_node *list = api->get(texts, "texts");
    for (size_t i = 0; i < api->length(api->get(golden, "encode")); i++) {
        size_t n;
        const char *s = api->as_string(api->at(list, i), &n);
        const apus_node *plain = api->at(api->get(golden, "encode"), i), *ordinary = api->at(api->get(golden, "ordinary"), i),
                        *special = api->at(api->get(golden, "special"), i), *begin = api->at(api->get(golden, "begin"), i);
        encode(t, s, n, APUS_ENCODE_SPECIAL_TEXT, &out);
        snprintf(what, sizeof what, "%s, text", name);
        assert_ids(what, i, &out, plain);
        for (size_t k = 0; k < out.n; k++) { /* Hugging Face counts characters: so do we for once */
            assert_true(out.begin[k] < n);
            while (((unsigned char)s[out.begin[k]] & 0xC0) == 0x80)
                out.begin[k]--;
        }
        snprintf(what, sizeof what, "%s, beginnings of text", name);
        if (begin != NULL)
            assert_hash(what, i, out.begin, out.n, begin);
        encode(t, s, n, 0, &out);
        snprintf(what, sizeof what, "%s, ordinary text", name);
        assert_ids(what, i, &out, api->kind(ordinary) == APUS_NODE_NULL ? plain : ordinary);
        encode(t, s, n, APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, &out);
        snprintf(what, sizeof what, "%s, text with specials", name);
        if (api->kind(special) == APUS_NODE_NULL)
            assert_ids(what, i, &out, plain);
        else
            assert_hash(what, i, out.ids, out.n, special);
    }
    list = api->get(texts, "bytes");
    for (size_t i = 0; i < api->length(api->get(golden, "bytes")); i++) {
        char bytes[256];
        size_t n = from_hex(api->as_string(api->at(list, i), NULL), bytes);
        encode(t, bytes, n, APUS_ENCODE_SPECIAL_TEXT, &out);
        snprintf(what, sizeof what, "%s, bytes", name);
        assert_hash(what, i, out.ids, out.n, api->at(api->get(golden, "bytes"), i));
    }
    char *points = malloc(4096 * 6);
    for (size_t i = 0; i < api->length(api->get(golden, "planes")); i++) {
        encode(t, points, plane((uint32_t)i * 4096, points), APUS_ENCODE_SPECIAL_TEXT, &out);
        snprintf(what, sizeof what, "%s, 4096 code points", name);
        assert_hash(what, i, out.ids, out.n, api->at(api->get(golden, "planes"), i));
    }
    free(points);
    list = api->get(golden, "decode");
    for (size_t i = 0; i < api->length(list); i++) {
        const apus_node *ids = api->at(api->at(list, i), 0);
        int32_t values[32];
        size_t n = api->length(ids), length, want_length;
        char *text;
        assert_true(n <= 32);
        for (size_t k = 0; k < n; k++)
            values[k] = (int32_t)api->as_int(api->at(ids, k), -1);
        if (ops->decode(t, values, n, (int)api->as_int(api->at(api->at(list, i), 1), 0), &text, &length, &err) != APUS_OK)
            fail_msg("%s", err.message);
        const char *want = api->as_string(api->at(api->at(list, i), 2), &want_length);
        if (length != want_length || memcmp(text, want, length) != 0)
            fail_msg("%s, decode %zu: '%s', expected '%s'", name, i, text, want);
        apus_host_table()->free(text);
    }
    tokens_free(&out);
}

static void synthetic(void **state)
{
    (void)state;
    apus_node *cases = read_node(APUS_TEST_GOLDEN "/tokenizers/synthetic.json.gz");
    assert_true(api->length(cases) > 40);
    for (size_t i = 0; i < api->length(cases); i++) {
        const apus_node *c = api->at(cases, i), *source = api->get(c, "tokenizer");
        assert_int_equal(ops->claims(source), 100);
        void *t = open_tokenizer(ops, source);
        check(api->as_string(api->get(c, "name"), NULL), t, c);
        ops->close(t);
    }
    api->release(cases);
}

/* ---------------------------------------------------------------- real vocabularies */

static void real(void **state)
{
    char path[300];
    snprintf(path, sizeof path, APUS_TEST_GOLDEN "/tokenizers/%s.json.gz", (const char *)*state);
    apus_node *golden = read_node(path), *source = real_source(*state, golden);
    if (source == NULL) {
        api->release(golden);
        skip();
    }
    void *t = open_tokenizer(ops, source);
    check(*state, t, golden);
    ops->close(t);
    api->release(source);
    api->release(golden);
}

/* llama.cpp's vectors: texts, and a line of ids for each. */
static void vectors(void **state)
{
    static const char *const names[][2] = {{"gpt2", "gpt-2"}, {"llama-spm", "llama-spm"}, {"qwen3", "qwen2"}};
    static const char mark[] = "\n__ggml_vocab_test__\n";
    (void)state;
    size_t checked = 0;
    for (size_t k = 0; k < 3; k++) {
        char path[300];
        apus_error err = {0};
        snprintf(path, sizeof path, APUS_TEST_GOLDEN "/tokenizers/%s.json.gz", names[k][0]);
        apus_node *golden = read_node(path), *source = real_source(__func__, golden);
        if (source == NULL) {
            api->release(golden);
            continue;
        }
        size_t n, n_ids;
        snprintf(path, sizeof path, "%s/tokenizers/vectors/ggml-vocab-%s.gguf.inp", APUS_TEST_DATA, names[k][1]);
        char *in = apus_file_read(path, 0, &n, &err);
        strcpy(strrchr(path, '.'), ".out");
        char *ids = apus_file_read(path, 0, &n_ids, &err), *line = ids;
        if (in == NULL || ids == NULL)
            fail_msg("%s", err.message);
        void *t = open_tokenizer(ops, source);
        apus_tokens out = {0};
        for (char *s = in, *end; s != NULL; s = end != NULL ? end + sizeof mark - 1 : NULL, checked++) {
            end = strstr(s, mark);
            encode(t, s, end != NULL ? (size_t)(end - s) : strlen(s), APUS_ENCODE_SPECIAL_TEXT, &out);
            char *stop = line + strcspn(line, "\n");
            for (size_t i = 0;; i++) {
                char *next;
                long want = strtol(line, &next, 10);
                if (next == line || next > stop) {
                    assert_int_equal(i, out.n);
                    break;
                }
                if (i >= out.n || out.ids[i] != want)
                    fail_msg("%s: id %zu of '%.40s' is %d, expected %ld", path, i, s, i < out.n ? out.ids[i] : -1, want);
                line = next;
            }
            line = *stop != '\0' ? stop + 1 : stop;
        }
        tokens_free(&out);
        ops->close(t);
        apus_host_table()->free(in);
        apus_host_table()->free(ids);
        api->release(source);
        api->release(golden);
    }
    if (checked == 0)
        skip();
    assert_true(checked > 40);
}

/* ---------------------------------------------------------------- by hand */

static apus_node *parse(const char *json)
{
    apus_error err = {0};
    apus_node *n = apus_nodes()->parse_json(json, strlen(json), "tokenizer.json", &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    return n;
}

#define ABC                                                                                                                                          \
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"<unk>\": 3}, \"merges\": [\"a b\"], \"unk_token\": \"<unk>\"}"

static void names_and_ids(void **state)
{
    (void)state;
    apus_node *source = parse("{" ABC ", \"added_tokens\": [{\"id\": 7, \"content\": \"<s>\", \"special\": true}]}");
    void *t = open_tokenizer(ops, source);
    size_t n;
    assert_int_equal(ops->vocab_size(t), 8);
    assert_string_equal(ops->token(t, 2, &n), "ab");
    assert_int_equal(n, 2);
    assert_string_equal(ops->token(t, 7, NULL), "<s>");
    assert_null(ops->token(t, 5, &n));
    assert_null(ops->token(t, -1, &n));
    assert_null(ops->token(t, 1 << 30, &n));
    assert_int_equal(ops->id(t, "<s>"), 7);
    assert_int_equal(ops->id(t, "ab"), 2);
    assert_int_equal(ops->id(t, "abc"), -1);
    assert_true(ops->is_special(t, 7));
    assert_false(ops->is_special(t, 2));
    apus_tokens out = {0}; /* appended to */
    apus_error err;
    assert_int_equal(ops->encode(t, "ab<s>", 5, 0, &out, &err), APUS_OK);
    assert_int_equal(ops->encode(t, "ab<s>b", 6, APUS_ENCODE_SPECIAL_TEXT, &out, &err), APUS_OK);
    static const int32_t want[] = {2, 3, 3, 3, 2, 7, 1};
    assert_int_equal(out.n, 7);
    assert_memory_equal(out.ids, want, sizeof want);
    assert_int_equal(out.begin[5], 2);
    tokens_free(&out);
    ops->close(t);
    api->release(source);
}

static void refuses(void **state)
{
    static const struct {
        const char *json, *says;
    } bad[] = {
        {"[]", "must be a map"},
        {"{}", "model"},
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}", "tokenizer.json:1:11: model 'Unigram' is not supported"},
        {"{" ABC ", \"extra\": 1}", "unknown key 'extra'"},
        {"{" ABC ", \"version\": \"2.0\"}", "version"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}, \"merges\": []}}", "the id of 'a'"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 99999999999}, \"merges\": []}}", "the id of 'a'"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]}}", "merge 0 ('a' and 'b')"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}}", "merge 0 must be"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [], \"dropout\": 0.1}}", "dropout is not supported"},
        {"{" ABC ", \"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"\"}}", "'Precompiled' is not supported"},
        {"{" ABC ", \"normalizer\": {\"type\": \"NFC\", \"form\": 1}}", "unknown key 'form'"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"UnicodeScripts\"}}", "'UnicodeScripts' is not supported"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a\"}, \"behavior\": \"Isolated\"}}",
         "a group without its )"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a\"}, \"behavior\": \"Isolated\"}}",
         "a class without its ]"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{Klingon}\"}, \"behavior\": \"Isolated\"}}", "property"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?~a)\"}, \"behavior\": \"Isolated\"}}", "group (?"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": \"a\", \"behavior\": \"Isolated\"}}", "pattern must be"},
        {"{" ABC ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Odd\"}}", "behavior must be"},
        {"{" ABC
         ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}], \"special_tokens\": {}}}",
         "no ids of 'x'"},
        {"{" ABC ", \"decoder\": {\"type\": \"CTC\"}}", "decoder 'CTC' is not supported"},
        {"{" ABC ", \"added_tokens\": [{\"id\": 1, \"content\": \"<s>\"}]}", "id 1 of '<s>' is 'b' in the vocabulary"},
        {"{" ABC ", \"added_tokens\": [{\"id\": 9, \"content\": \"<s>\"}, {\"id\": 9, \"content\": \"</s>\"}]}", "the same id 9"},
        {"{" ABC ", \"added_tokens\": [{\"id\": 9, \"content\": \"\"}]}", "not empty"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        apus_node *source = parse(bad[i].json);
        apus_error err = {0};
        void *t = NULL;
        if (ops->open(apus_host_table(), NULL, source, &t, &err) == APUS_OK)
            fail_msg("taken: %s", bad[i].json);
        assert_null(t);
        if (strstr(err.message, bad[i].says) == NULL || strchr(err.message, '\n') != NULL)
            fail_msg("'%s' lacks '%s'", err.message, bad[i].says);
        api->release(source);
    }
}

static void unknown_words(void **state)
{
    (void)state;
    apus_node *source = parse("{\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0}, \"unk_token\": \"<unk>\"}}");
    void *t = open_tokenizer(ops, source);
    apus_tokens out = {0};
    apus_error err = {0};
    assert_int_equal(ops->encode(t, "b", 1, 0, &out, &err), APUS_E_INVALID);
    assert_non_null(strstr(err.message, "'b' is not in the tokenizer's vocabulary"));
    assert_int_equal(out.n, 0);
    tokens_free(&out);
    ops->close(t);
    api->release(source);
}

/* Long runs of one character: no more than n log n, which takes seconds; what is quadratic takes hours, and ctest ends it. */
static void long_runs(void **state)
{
    (void)state;
    apus_node *cases = read_node(APUS_TEST_GOLDEN "/tokenizers/synthetic.json.gz");
    static const char *const runs[] = {"a", " ", "\n", "=", "\xE2\x96\x81", "\xE5\xAD\x97", "\xCC\x81", "\xFF", "ab", " \n"};
    size_t n = 1 << 20;
    char *text = malloc(n + 8);
    apus_tokens out = {0};
    for (size_t i = 0; i < 2; i++) { /* "llama-2", and the first after the variants of it: "llama-3" */
        const apus_node *c = api->at(cases, i == 0 ? 0 : 8);
        assert_string_equal(api->as_string(api->get(c, "name"), NULL), i == 0 ? "llama-2" : "llama-3");
        void *t = open_tokenizer(ops, api->get(c, "tokenizer"));
        for (size_t k = 0; k < sizeof runs / sizeof *runs; k++) {
            size_t length = strlen(runs[k]);
            for (size_t at = 0; at < n; at += length)
                memcpy(text + at, runs[k], length);
            encode(t, text, n / length * length, 0, &out);
            assert_true(out.n > 0);
        }
        ops->close(t);
    }
    tokens_free(&out);
    free(text);
    api->release(cases);
}

/* One tokenizer, many threads: the cache fills under them and the ids stay. */
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(synthetic),
        {"qwen3", real, NULL, NULL, "qwen3"},
        {"gpt2", real, NULL, NULL, "gpt2"},
        {"smollm2 as transformers reads its GGUF", real, NULL, NULL, "smollm2-transformers"},
        {"smollm2", real, NULL, NULL, "smollm2"},
        {"llama-spm", real, NULL, NULL, "llama-spm"},
        cmocka_unit_test(vectors),
        cmocka_unit_test(names_and_ids),
        cmocka_unit_test(refuses),
        cmocka_unit_test(unknown_words),
        cmocka_unit_test(long_runs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
