/*
 * The tokenizer bpe on several threads: token for token what one thread gives, whatever the parts are: over every synthetic
 * tokenizer and the real ones, with texts that are hard to cut. Blocks of one byte upwards, so that every place is a guess.
 */
#include "tokenizers.h"

static const apus_tokenizer_ops *ops;

static int setup(void **state)
{
    (void)state;
    ops = find_ops("tokenizer", "bpe");
    return ops->encode_parallel != NULL ? 0 : -1;
}

/* What two threads do is what one does, the error included. */
static void same(const char *name, void *t, const char *text, size_t n, int flags, int threads, size_t part)
{
    apus_tokens one = {0}, many = {0};
    apus_error error_one = {0}, error_many = {0};
    const apus_status a = ops->encode(t, text, n, flags, &one, &error_one),
                      b = ops->encode_parallel(t, text, n, flags, threads, part, &many, &error_many);
    if (a != b || strcmp(error_one.message, error_many.message) != 0)
        fail_msg("%s, parts of %zu: status %d (%s), one thread's is %d (%s)", name, part, b, error_many.message, a, error_one.message);
    for (size_t i = 0; i < one.n || i < many.n; i++)
        if (i >= one.n || i >= many.n || one.ids[i] != many.ids[i] || one.begin[i] != many.begin[i])
            fail_msg("%s, %zu bytes in parts of %zu, flags %d: token %zu is %d at %u of %zu, with one thread %d at %u of %zu", name, n, part, flags,
                     i, i < many.n ? many.ids[i] : -1, i < many.n ? many.begin[i] : 0, many.n, i < one.n ? one.ids[i] : -1,
                     i < one.n ? one.begin[i] : 0, one.n);
    tokens_free(&one);
    tokens_free(&many);
}

/* ---------------------------------------------------------------- hostile texts */

#define FAMILY "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7\xE2\x80\x8D\xF0\x9F\x91\xA6" /* joined by ZWJ */
#define FLAGS  "\xF0\x9F\x87\xA9\xF0\x9F\x87\xAA\xF0\x9F\x87\xAB\xF0\x9F\x87\xB7"

static const char *const bits[] = {" ",
                                   "  ",
                                   "                                  ",
                                   "\n",
                                   "\r\n",
                                   "\r\n\r\n",
                                   "\t",
                                   "\n\n \n",
                                   "\xC2\xA0",
                                   "\xE3\x80\x80",
                                   "a",
                                   "word",
                                   "Words",
                                   "it's",
                                   "we'LL",
                                   "'s",
                                   "'",
                                   "1",
                                   "12",
                                   "31415926535897932384626433832795",
                                   "\xD9\xA1\xD9\xA2\xD9\xA3",
                                   ".",
                                   "...",
                                   "================",
                                   ")(*&^",
                                   FAMILY,
                                   FLAGS,
                                   "\xE2\x80\x8D",
                                   "\xEF\xB8\x8F",
                                   "e\xCC\x81",
                                   "\xCC\x81\xCC\x82\xCC\x83",
                                   "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8",
                                   "\xE4\xB8\xAD\xE6\x96\x87\xE5\xAD\x97",
                                   "\xE0\xB8\xAA\xE0\xB8\xA7\xE0\xB8\xB1",
                                   "\xE2\x96\x81",
                                   "\xE2\x96\x81\xE2\x96\x81",
                                   "\xFF",
                                   "\xE2\x96",
                                   "\xF0\x9F",
                                   "\x80\x80",
                                   "<s>",
                                   "</s>",
                                   "<s",
                                   "<|endoftext|>",
                                   "<|im_start|>",
                                   "<|im_end|>",
                                   "<|im_",
                                   "|>",
                                   "<think>",
                                   "<mask>",
                                   "[MASK]",
                                   "\xC3\x9F",
                                   "\xC4\xB0"};
enum { BITS = sizeof bits / sizeof *bits };

/* n bytes or a little more, of a generator's choice: `runs` repeats what it chose for a while. */
static size_t hostile(char *out, size_t n, uint64_t seed, unsigned runs)
{
    size_t at = 0;
    while (at < n) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const char *bit = bits[(seed >> 33) % BITS];
        for (uint64_t k = 0; k < 1 + (seed >> 20) % runs && at < n; k++) {
            memcpy(out + at, bit, strlen(bit));
            at += strlen(bit);
        }
    }
    return at;
}

static void hostile_texts(const char *name, void *t, size_t rounds)
{
    static const size_t sizes[] = {1, 2, 3, 4, 7, 16, 33, 100, 1000};
    char *text = malloc((1 << 16) + 64);
    for (size_t i = 0; i < rounds; i++) {
        const size_t n = hostile(text, 600 + 100 * i, i + 1, i % 3 == 2 ? 40 : 3);
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            same(name, t, text, n, (int)((i + k) % 4), 2 + (int)(i % 2), sizes[k]);
    }
    const size_t n = hostile(text, 1 << 16, 7, 3);
    same(name, t, text, n, APUS_ENCODE_SPECIAL_TEXT, 3, 4000);
    same(name, t, text, n, 0, 2, n);     /* not longer than a part: one thread */
    same(name, t, text, n, 0, 2, n - 1); /* two parts */
    same(name, t, text, 0, APUS_ENCODE_ADD_SPECIAL, 2, 1);
    free(text);
}

/* ---------------------------------------------------------------- tokenizers */

static void synthetic(void **state)
{
    (void)state;
    apus_node *cases = read_node(APUS_TEST_GOLDEN "/tokenizers/synthetic.json.gz");
    for (size_t i = 0; i < apus_nodes()->length(cases); i++) {
        const apus_node *c = apus_nodes()->at(cases, i);
        void *t = open_tokenizer(ops, apus_nodes()->get(c, "tokenizer"));
        hostile_texts(apus_nodes()->as_string(apus_nodes()->get(c, "name"), NULL), t, 3);
        ops->close(t);
    }
    apus_nodes()->release(cases);
}

static void real(void **state)
{
    char path[300];
    snprintf(path, sizeof path, APUS_TEST_GOLDEN "/tokenizers/%s.json.gz", (const char *)*state);
    apus_node *golden = read_node(path), *source = real_source(*state, golden);
    if (source == NULL) {
        apus_nodes()->release(golden);
        skip();
    }
    void *t = open_tokenizer(ops, source);
    hostile_texts(*state, t, 40);
    static const char *const books[] = {"text/tinyshakespeare.txt", "text/wikitext2-valid.txt"};
    for (size_t i = 0; i < 2; i++) {
        apus_error err = {0};
        size_t n;
        snprintf(path, sizeof path, "%s/%s", APUS_TEST_DATA, books[i]);
        char *book = apus_file_read(path, 0, &n, &err);
        if (book == NULL)
            fail_msg("%s", err.message);
        same(*state, t, book, n, APUS_ENCODE_ADD_SPECIAL, 2, 100000);
        same(*state, t, book, n, APUS_ENCODE_SPECIAL_TEXT, 4, 777);
        apus_host_table()->free(book);
    }
    ops->close(t);
    apus_nodes()->release(source);
    apus_nodes()->release(golden);
}

/* Patterns that look back, that count, that match nothing or everything: nothing meets, or late, and all is as with one thread. */
static void patterns(void **state)
{
    static const char *const splits[] = {"{\"Regex\": \"(?<=a)b|a{2}|.\"}",
                                         "{\"Regex\": \"[ab]{3}\"}",
                                         "{\"Regex\": \"\\\\b\"}",
                                         "{\"Regex\": \"^.*$\"}",
                                         "{\"Regex\": \"\\\\Ga\"}",
                                         "{\"Regex\": \"b*\"}",
                                         "{\"Regex\": \"a*?\"}",
                                         "{\"Regex\": \"(?:.|\\n)+\"}",
                                         "{\"Regex\": \"(a|b)(?=(?:.|\\n)*\\\\1$)\"}",
                                         "{\"Regex\": \"x\"}",
                                         "{\"String\": \"ab\"}"};
    static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    (void)state;
    char text[501];
    for (size_t i = 0; i < sizeof text - 1; i++)
        text[i] = "ababbaaabb\nab"[i * i % 13];
    text[sizeof text - 1] = '\0';
    for (size_t i = 0; i < sizeof splits / sizeof *splits * 10; i++) {
        char json[600];
        apus_error err = {0};
        snprintf(json, sizeof json,
                 "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"?\": 3, \"aab\": 4}, \"merges\": [\"a b\", \"a ab\"], "
                 "\"unk_token\": \"?\"}, \"added_tokens\": [{\"id\": 7, \"content\": \"bbaa\", \"special\": true}], "
                 "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": %s, \"behavior\": \"%s\", \"invert\": %s}}",
                 splits[i / 10], behaviors[i % 5], i % 10 < 5 ? "false" : "true");
        apus_node *source = apus_nodes()->parse_json(json, strlen(json), "test", &err);
        void *t = open_tokenizer(ops, source);
        for (size_t part = 1; part < 40; part += part / 4 + 1)
            same(json, t, text, sizeof text - 1, i % 2 ? APUS_ENCODE_SPECIAL_TEXT : 0, 2, part);
        ops->close(t);
        apus_nodes()->release(source);
    }
}

/* The first thing that is wrong in the text is what is told; what a part comes to only because it began at a guess is not. */
static void errors(void **state)
{
    static const char json[] =
        "{\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"ab\": 0, \"cd\": 1}, \"unk_token\": \"?\"}, "
        "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a-z]+\"}, \"behavior\": \"Removed\", \"invert\": true}}";
    (void)state;
    apus_error err = {0};
    apus_node *source = apus_nodes()->parse_json(json, strlen(json), "test", &err);
    void *t = open_tokenizer(ops, source);
    char text[901] = "";
    for (size_t i = 0; i < 300; i++)
        memcpy(text + 3 * i, i % 2 ? "ab " : "cd ", 3);
    for (size_t part = 1; part < 20; part++)
        same("words", t, text, 900, 0, 3, part);
    memcpy(text + 450, "ax ", 3);
    memcpy(text + 480, "ay ", 3);
    for (size_t part = 1; part < 20; part++)
        same("an unknown word", t, text, 900, 0, 3, part);
    ops->close(t);
    apus_nodes()->release(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(synthetic),
        {"qwen3", real, NULL, NULL, "qwen3"},
        {"gpt2", real, NULL, NULL, "gpt2"},
        {"smollm2", real, NULL, NULL, "smollm2"},
        {"llama-spm", real, NULL, NULL, "llama-spm"},
        cmocka_unit_test(patterns),
        cmocka_unit_test(errors),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
