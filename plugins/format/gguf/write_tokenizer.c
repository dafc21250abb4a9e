/*
 * plugins/format/gguf/write_tokenizer: tokenizer.json's shape as tokenizer.* keys: tokens, their types, merges or
 * scores, special ids. A tokenizer that GGUF cannot say is left out, with a warning: llama.cpp then takes ids only.
 */
#include "gguf.h"

/* token id -> text and type */
typedef struct entry {
    const char *text;
    int32_t type;
    float score;
} entry;

static int text_is(const apus_node_api *node, const apus_node *n, const char *key, const char *value)
{
    const char *s = node->as_string(node->get(n, key), NULL);
    return s != NULL && strcmp(s, value) == 0;
}

/* Does a normalizer or pre_tokenizer put a ▁ before the text? */
static int adds_prefix(const apus_node_api *node, const apus_node *n)
{
    static const char *const lists[] = {"normalizers", "pretokenizers"};
    if (text_is(node, n, "type", "Prepend"))
        return 1;
    if (text_is(node, n, "type", "Metaspace")) {
        const apus_node *scheme = node->get(n, "prepend_scheme");
        return scheme != NULL ? !text_is(node, n, "prepend_scheme", "never") : node->as_bool(node->get(n, "add_prefix_space"), 1);
    }
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < node->length(node->get(n, lists[k])); i++)
            if (adds_prefix(node, node->at(node->get(n, lists[k]), i)))
                return 1;
    return 0;
}

static int is_byte_token(const char *s)
{
    unsigned v;
    char end;
    return strlen(s) == 6 && sscanf(s, "<0x%2X%c", &v, &end) == 2 && end == '>';
}

static void put_special(gguf_writer *w, const char *key, int64_t id, int64_t n)
{
    if (id >= 0 && id < n)
        gguf_key_u32(w, key, (uint32_t)id);
}

/* Id of a special token: its text in tokenizer_config ("x" or {content: "x"}), else the number in config.json. */
static int64_t special_id(const apus_node_api *node, const apus_model_card *card, const apus_node *vocab, const apus_names *added, const char *name)
{
    char key[32];
    const apus_node *n = node->get(card->tokenizer_config, name);
    const char *text = node->as_string(node->kind(n) == APUS_NODE_MAP ? node->get(n, "content") : n, NULL);
    if (text != NULL) {
        const uint32_t at = apus_names_find(added, text, strlen(text));
        return at != APUS_NAMES_NONE ? (int64_t)at : node->as_int(node->get(vocab, text), -1);
    }
    snprintf(key, sizeof key, "%s_id", name);
    n = node->get(card->config, key);
    return node->as_int(node->kind(n) == APUS_NODE_LIST ? node->at(n, 0) : n, -1);
}

/* Does the post-processor put a special token before (first) or after the text? */
static int template_adds(const apus_node_api *node, const apus_node *processor, int first)
{
    if (text_is(node, processor, "type", "Sequence")) {
        const apus_node *list = node->get(processor, "processors");
        for (size_t i = 0; i < node->length(list); i++)
            if (template_adds(node, node->at(list, i), first))
                return 1;
        return 0;
    }
    const apus_node *single = node->get(processor, "single");
    const size_t n = node->length(single);
    return n > 1 && node->get(node->at(single, first ? 0 : n - 1), "SpecialToken") != NULL;
}

/* Fill the table by the vocabulary and the added tokens. */
static apus_status fill(const apus_node_api *node, const apus_node *t, entry *table, size_t n, apus_names *added, int spm, apus_error *err)
{
    const apus_node *model = node->get(t, "model"), *vocab = node->get(model, "vocab"), *list = node->get(t, "added_tokens");
    const char *unknown = node->as_string(node->get(model, "unk_token"), NULL);
    for (size_t i = 0; i < node->length(vocab); i++) {
        const int64_t id = node->as_int(node->at(vocab, i), -1);
        const char *s = node->key_at(vocab, i);
        if (id < 0 || (uint64_t)id >= n)
            return apus_fail_line(err, APUS_E_INVALID, "token '%.100s' has the id %lld, but the embedding has %zu rows", s, (long long)id, n);
        table[id] = (entry){s, spm && is_byte_token(s) ? TOKEN_BYTE : unknown != NULL && strcmp(s, unknown) == 0 ? TOKEN_UNKNOWN : TOKEN_NORMAL, 0};
    }
    for (size_t i = 0; i < node->length(list); i++) {
        const apus_node *a = node->at(list, i);
        const int64_t id = node->as_int(node->get(a, "id"), -1);
        const char *s = node->as_string(node->get(a, "content"), NULL);
        if (id < 0 || (uint64_t)id >= n || s == NULL)
            return apus_fail_line(err, APUS_E_INVALID, "added token '%.100s' has the id %lld, but the embedding has %zu rows", s ? s : "",
                                  (long long)id, n);
        const int type = unknown != NULL && strcmp(s, unknown) == 0  ? TOKEN_UNKNOWN
                         : node->as_bool(node->get(a, "special"), 0) ? TOKEN_CONTROL
                                                                     : TOKEN_USER;
        table[id] = (entry){s, type, 0};
        apus_names_add(added, s, strlen(s), (uint32_t)id);
    }
    return APUS_OK;
}

/* The two pieces of a merge: "a b" or ["a", "b"], joined into `out`. 0: too long or no merge. */
static int joined(const apus_node_api *node, const apus_node *m, char *out, size_t capacity, size_t *space)
{
    const char *a = node->as_string(node->at(m, 0), NULL), *b = node->as_string(node->at(m, 1), NULL);
    const char *s = node->as_string(m, NULL);
    if (s != NULL) {
        const char *cut = strchr(s, ' ');
        if (cut == NULL || strlen(s) >= capacity)
            return 0;
        *space = (size_t)(cut - s);
        memcpy(out, s, *space);
        memcpy(out + *space, cut + 1, strlen(cut + 1) + 1);
        return 1;
    }
    if (a == NULL || b == NULL || strlen(a) + strlen(b) >= capacity)
        return 0;
    *space = strlen(a);
    memcpy(out, a, *space);
    memcpy(out + *space, b, strlen(b) + 1);
    return 1;
}

/* SentencePiece's scores: the earlier a piece is first made, the higher; what no merge makes comes last. */
static void score(const apus_node_api *node, const apus_node *model, entry *table, size_t n)
{
    const apus_node *vocab = node->get(model, "vocab"), *merges = node->get(model, "merges");
    char text[2048];
    size_t space;
    for (size_t i = 0; i < n; i++)
        table[i].score = table[i].type == TOKEN_NORMAL || table[i].type == TOKEN_USER ? -1e6f : 0;
    for (size_t i = 0; i < node->length(merges); i++) {
        if (!joined(node, node->at(merges, i), text, sizeof text, &space))
            continue;
        const int64_t id = node->as_int(node->get(vocab, text), -1);
        if (id >= 0 && (uint64_t)id < n && table[id].score == -1e6f)
            table[id].score = -(float)i;
    }
}

static apus_status put_merges(gguf_writer *w, const apus_node_api *node, const apus_node *merges, apus_error *err)
{
    char text[4096], line[4096];
    size_t space;
    gguf_key_array(w, "tokenizer.ggml.merges", GGUF_STRING, node->length(merges));
    for (size_t i = 0; i < node->length(merges); i++) {
        if (!joined(node, node->at(merges, i), text, sizeof text - 1, &space))
            return apus_fail_line(err, APUS_E_INVALID, "tokenizer.json: merge %zu is not two pieces", i);
        memcpy(line, text, space);
        line[space] = ' ';
        memcpy(line + space + 1, text + space, strlen(text + space) + 1);
        gguf_put_text(w, line, strlen(line));
    }
    return APUS_OK;
}

static void put_table(gguf_writer *w, const entry *table, size_t n, int spm)
{
    char unused[32];
    gguf_key_array(w, "tokenizer.ggml.tokens", GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) {
        snprintf(unused, sizeof unused, "[PAD%zu]", i); /* as llama.cpp's converter names rows without a token */
        const char *s = table[i].text != NULL ? table[i].text : unused;
        gguf_put_text(w, s, strlen(s));
    }
    if (spm) {
        gguf_key_array(w, "tokenizer.ggml.scores", GGUF_F32, n);
        for (size_t i = 0; i < n; i++)
            gguf_put(w, &table[i].score, sizeof table[i].score);
    }
    gguf_key_array(w, "tokenizer.ggml.token_type", GGUF_I32, n);
    for (size_t i = 0; i < n; i++)
        gguf_put_u32(w, (uint32_t)(table[i].text != NULL ? table[i].type : TOKEN_UNUSED));
}

static void put_ids(gguf_writer *w, const apus_model_card *card, const apus_names *added, int64_t n)
{
    static const char *const names[][2] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                           {"eos_token", "tokenizer.ggml.eos_token_id"},
                                           {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                           {"pad_token", "tokenizer.ggml.padding_token_id"}};
    const apus_node_api *node = w->host->node;
    const apus_node *processor = node->get(card->tokenizer, "post_processor"), *config = card->tokenizer_config;
    for (size_t i = 0; i < 4; i++)
        put_special(w, names[i][1], special_id(node, card, node->get(node->get(card->tokenizer, "model"), "vocab"), added, names[i][0]), n);
    const apus_node *bos = node->get(config, "add_bos_token"), *eos = node->get(config, "add_eos_token");
    gguf_key_bool(w, "tokenizer.ggml.add_bos_token", template_adds(node, processor, 1) || (processor == NULL && node->as_bool(bos, 0)));
    gguf_key_bool(w, "tokenizer.ggml.add_eos_token", template_adds(node, processor, 0) || (processor == NULL && node->as_bool(eos, 0)));
}

static apus_status put_tokenizer(gguf_writer *w, const apus_model_card *card, size_t n, int spm, const char *pre, entry *table, apus_names *added,
                                 apus_error *err)
{
    const apus_node_api *node = w->host->node;
    const apus_node *model = node->get(card->tokenizer, "model");
    apus_status st = fill(node, card->tokenizer, table, n, added, spm, err);
    if (st != APUS_OK)
        return st;
    gguf_key_text(w, "tokenizer.ggml.model", spm ? "llama" : "gpt2", spm ? 5 : 4);
    gguf_key_text(w, "tokenizer.ggml.pre", pre, strlen(pre));
    if (spm)
        score(node, model, table, n);
    put_table(w, table, n, spm);
    if (spm)
        gguf_key_bool(w, "tokenizer.ggml.add_space_prefix",
                      adds_prefix(node, node->get(card->tokenizer, "normalizer")) || adds_prefix(node, node->get(card->tokenizer, "pre_tokenizer")));
    else
        st = put_merges(w, node, node->get(model, "merges"), err);
    put_ids(w, card, added, (int64_t)n);
    return st;
}

apus_status gguf_write_tokenizer(gguf_writer *w, const apus_model_card *card, int64_t vocab_rows, apus_error *err)
{
    const apus_node_api *node = w->host->node;
    const apus_node *t = card->tokenizer, *model = node->get(t, "model");
    const int spm = node->as_bool(node->get(model, "byte_fallback"), 0);
    const char *pre = spm ? "default" : gguf_pre_tokenizer_name(node, node->get(t, "pre_tokenizer"));
    if (t == NULL || !text_is(node, model, "type", "BPE") || pre == NULL ||
        (!spm && node->kind(node->get(t, "normalizer")) != APUS_NODE_NULL && !text_is(node, node->get(t, "normalizer"), "type", "NFC"))) {
        if (t != NULL)
            w->host->log(APUS_LOG_WARN, "gguf", "GGUF has no name for how this tokenizer cuts text: it is left out, the file takes ids only");
        gguf_key_text(w, "tokenizer.ggml.model", "none", 4);
        return APUS_OK;
    }
    const size_t n = (size_t)vocab_rows, n_added = node->length(node->get(t, "added_tokens"));
    apus_names added = {NULL, 0};
    entry *table = w->host->alloc((n + 1) * sizeof *table);
    apus_status st = APUS_OK;
    if (table == NULL || !apus_names_open(w->host, &added, n_added + 1))
        st = apus_fail_line(err, APUS_E_MEMORY, "out of memory");
    else
        st = put_tokenizer(w, card, n, spm, pre, table, &added, err);
    apus_names_close(w->host, &added);
    w->host->free(table);
    return st;
}
