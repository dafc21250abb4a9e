/* What the tests of tokenizers share: plugins through the module loader, golden files, comparing ids and saying where. */
#ifndef APUS_TEST_TOKENIZERS_H
#define APUS_TEST_TOKENIZERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <apus/model.h>
#include <apus/tokenizer.h>
#include <io/io.h>
#include <module/module.h>
#include <value/node.h>

static inline const void *find_ops(const char *kind, const char *name)
{
    char path[512];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/apus_%s_%s.so", APUS_TEST_PLUGINS, kind, name);
    if (apus_module_load_file(path, &err) != APUS_OK)
        fail_msg("%s", err.message);
    const apus_component *c = apus_component_find(kind, name, &err);
    if (c == NULL)
        fail_msg("%s", err.message);
    return c->ops;
}

/* A file, .gz or not, as a node. */
static inline apus_node *read_node(const char *path)
{
    apus_error err = {0};
    apus_source *s;
    const char *name;
    char *text = NULL;
    size_t n = 0, capacity = 0;
    if (apus_source_open(path, &s, &err) != APUS_OK || apus_source_next(s, &name, &err) != 1)
        fail_msg("%s", err.message);
    for (int64_t got = 1; got > 0; n += (size_t)got) {
        if (capacity - n < 1 << 16)
            text = realloc(text, capacity = capacity * 2 + (1 << 17));
        assert_non_null(text);
        got = apus_source_read(s, text + n, capacity - n, &err);
        if (got < 0)
            fail_msg("%s", err.message);
    }
    apus_source_close(s);
    apus_node *node = apus_nodes()->parse_json(text, n, path, &err);
    if (node == NULL)
        fail_msg("%s", err.message);
    free(text);
    return node;
}

static inline void *open_tokenizer(const apus_tokenizer_ops *ops, const apus_node *source)
{
    apus_error err = {0};
    void *t = NULL;
    if (ops->open(apus_host_table(), NULL, source, &t, &err) != APUS_OK)
        fail_msg("%s | %s", err.message, err.hint);
    return t;
}

static inline void tokens_free(apus_tokens *t)
{
    apus_host_table()->free(t->ids);
    apus_host_table()->free(t->begin);
    *t = (apus_tokens){0};
}

static inline uint64_t fnv(const void *numbers, size_t n)
{
    const uint32_t *p = numbers;
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < 32; k += 8)
            h = (h ^ (p[i] >> k & 0xFF)) * 0x100000001B3u;
    }
    return h;
}

static inline void assert_hash(const char *what, size_t i, const void *numbers, size_t n, const apus_node *expected)
{
    char hex[20];
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)fnv(numbers, n));
    const char *want = apus_nodes()->as_string(expected, NULL);
    if (want == NULL || strcmp(hex, want) != 0)
        fail_msg("%s %zu: the hash of %zu numbers is %s, expected %s", what, i, n, hex, want != NULL ? want : "null");
}

static inline void assert_ids(const char *what, size_t i, const apus_tokens *got, const apus_node *expected)
{
    const apus_node_api *api = apus_nodes();
    size_t n = api->length(expected);
    for (size_t k = 0; k < n || k < got->n; k++) {
        int64_t want = k < n ? api->as_int(api->at(expected, k), -1) : -1, have = k < got->n ? got->ids[k] : -1;
        if (want != have)
            fail_msg("%s %zu: id %zu is %lld, expected %lld", what, i, k, (long long)have, (long long)want);
    }
}

/* ---------------------------------------------------------------- real vocabularies */

/* GPT-2's encoder.json and vocab.bpe in a tokenizer.json; NULL when missing. */
static inline apus_node *gpt2_source(const char *folder, const apus_node *pipeline)
{
    char path[800];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/encoder.json", folder);
    if (!apus_path_exists(path))
        return NULL;
    apus_node *source = apus_nodes()->copy(pipeline), *model = apus_nodes()->copy(apus_nodes()->get(pipeline, "model")),
              *merges = apus_nodes()->make_list();
    apus_nodes()->set(model, "vocab", read_node(path));
    snprintf(path, sizeof path, "%s/vocab.bpe", folder);
    size_t n;
    char *text = apus_file_read(path, 0, &n, &err);
    assert_non_null(text);
    for (char *line = strchr(text, '\n') + 1, *end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        apus_nodes()->append(merges, apus_nodes()->make_string(line, (size_t)(end - line)));
    apus_host_table()->free(text);
    apus_nodes()->set(model, "merges", merges);
    apus_nodes()->set(source, "model", model);
    return source;
}

/* The tokenizer of a GGUF file as the format gguf reads it, with `pipeline` (may be NULL) for all but the vocabulary. */
static inline apus_node *gguf_source(const char *path, const apus_node *pipeline)
{
    const apus_format_ops *gguf = find_ops("format", "gguf");
    apus_error err = {0};
    apus_model_card card = {.size = sizeof card};
    void *file;
    apus_node *params = NULL;
    if (gguf->open(apus_host_table(), params, path, &file, &err) != APUS_OK || gguf->card(file, &card, &err) != APUS_OK)
        fail_msg("%s", err.message);
    apus_node *source = apus_nodes()->copy(card.tokenizer);
    gguf->close(file);
    static const char *const keys[] = {"normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"};
    for (size_t i = 0; pipeline != NULL && i < sizeof keys / sizeof *keys; i++)
        apus_nodes()->set(source, keys[i], apus_nodes()->copy(apus_nodes()->get(pipeline, keys[i])));
    return source;
}

static inline apus_node *real_source(const char *test, const apus_node *golden)
{
    const char *vocabulary = apus_nodes()->as_string(apus_nodes()->get(golden, "vocabulary"), NULL);
    const apus_node *pipeline = apus_nodes()->get(golden, "pipeline");
    char path[600];
    snprintf(path, sizeof path, "%s/%s", APUS_TEST_DATA, vocabulary);
    if (!apus_path_exists(path)) {
        print_message("skipped: %s: %s is missing\n", test, path);
        return NULL;
    }
    const char *dot = strrchr(vocabulary, '.');
    if (dot != NULL && strcmp(dot, ".json") == 0)
        return read_node(path);
    return dot != NULL && strcmp(dot, ".gguf") == 0 ? gguf_source(path, pipeline) : gpt2_source(path, pipeline);
}

#endif
