/*
 * The tokenizer "byte": a text's bytes are its ids, 0 … 255, and added tokens stand from 256 on. For models that have no
 * vocabulary. Source: {"model": {"type": "Byte"}, "added_tokens": [{"content": "<eos>", "special": true}, …]} in the shape
 * of tokenizer.json. Knows no normaliser, no pre-tokeniser: a byte is a byte.
 */
#include <apus/plugin.h>
#include <apus/tokenizer.h>

#include <stdlib.h>
#include <string.h>

#define ID_MAX (1 << 24)

typedef struct {
    const char *content; /* in the source's node */
    size_t n;
    int32_t id;
    int special;
} added_token;

typedef struct {
    const apus_host *host;
    added_token *tokens; /* longest first */
    size_t n;
    unsigned char first[256]; /* a token begins with this byte */
    int32_t size;
} byte_tokenizer;

static const apus_host *the_host; /* set once at entry */

static apus_status bad(const apus_node *n, apus_error *err, const char *what, const char *detail)
{
    char where[512] = "";
    if (n != NULL)
        the_host->node->where(n, where, sizeof where);
    (void)apus_fail(err, APUS_E_INVALID, "%s%s%s%.100s", where, where[0] != '\0' ? ": " : "tokenizer: ", what, detail);
    for (char *p = err != NULL ? err->message : NULL; p != NULL && *p != '\0'; p++) { /* one line, whatever it quotes */
        if ((unsigned char)*p < 0x20)
            *p = ' ';
    }
    return APUS_E_INVALID;
}

static apus_status memory(apus_error *err)
{
    return apus_fail(err, APUS_E_MEMORY, "tokenizer: out of memory");
}

/* Bytes of the character, or of the maximal ill-formed subpart, that s[0..n) opens with (Unicode 15, table 3-7). */
static size_t step(const unsigned char *s, size_t n, int *valid)
{
    unsigned char c = s[0];
    unsigned char low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    size_t need = c < 0x80 ? 0 : c >= 0xC2 && c <= 0xDF ? 1 : c >= 0xE0 && c <= 0xEF ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : SIZE_MAX;
    *valid = need != SIZE_MAX;
    for (size_t i = 1; *valid && i <= need; i++, low = 0x80, high = 0xBF) {
        if (i >= n || s[i] < low || s[i] > high) {
            *valid = 0;
            return i;
        }
    }
    return *valid ? need + 1 : 1;
}

/* ---------------------------------------------------------------- open */

static int claims(const apus_node *source)
{
    const apus_node_api *api = the_host->node;
    const char *type = api->as_string(api->get(api->get(source, "model"), "type"), NULL);
    return type != NULL && strcmp(type, "Byte") == 0 ? 100 : 0;
}

static int by_length(const void *a, const void *b)
{
    const added_token *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : (x->id > y->id) - (x->id < y->id);
}

static apus_status read_token(byte_tokenizer *t, const apus_node *node, apus_error *err)
{
    static const char *const known[] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"};
    const apus_node_api *api = the_host->node;
    if (api->kind(node) != APUS_NODE_MAP)
        return bad(node, err, "an added token must be a map with its content", "");
    for (size_t i = 0; i < api->length(node); i++) {
        size_t k = 0;
        while (k < 7 && strcmp(known[k], api->key_at(node, i)) != 0)
            k++;
        if (k == 7)
            return bad(api->at(node, i), err, "added_tokens: unknown key ", api->key_at(node, i));
        if (k >= 2 && k <= 4 && api->as_bool(api->at(node, i), 1))
            return bad(api->at(node, i), err, "added_tokens: a byte tokenizer does not support ", known[k]);
    }
    added_token *token = &t->tokens[t->n];
    token->content = api->as_string(api->get(node, "content"), &token->n);
    if (token->content == NULL || token->n == 0)
        return bad(node, err, "added_tokens: content must be a string that is not empty", "");
    const apus_node *id = api->get(node, "id");
    int64_t value = id == NULL ? t->size : api->as_int(id, -1);
    if (value < 256 || value >= ID_MAX)
        return bad(id != NULL ? id : node, err, "added_tokens: an id must be at least 256: bytes have those below", "");
    token->id = (int32_t)value;
    token->special = api->as_bool(api->get(node, "special"), 0);
    for (size_t i = 0; i < t->n; i++) {
        if (t->tokens[i].id == token->id || (t->tokens[i].n == token->n && memcmp(t->tokens[i].content, token->content, token->n) == 0))
            return bad(node, err, "added_tokens: an id or content is there twice: ", token->content);
    }
    t->first[(unsigned char)token->content[0]] = 1;
    if (token->id >= t->size)
        t->size = token->id + 1;
    t->n++;
    return APUS_OK;
}

static apus_status read_source(byte_tokenizer *t, const apus_node *source, apus_error *err)
{
    static const char *const unused[] = {"version", "truncation", "padding", "model", "added_tokens"};
    const apus_node_api *api = the_host->node;
    if (api->kind(source) != APUS_NODE_MAP || api->kind(api->get(source, "model")) != APUS_NODE_MAP)
        return bad(source, err, "the source of a byte tokenizer must be a map with its model", "");
    for (size_t i = 0; i < api->length(source); i++) {
        size_t k = 0;
        while (k < 5 && strcmp(unused[k], api->key_at(source, i)) != 0)
            k++;
        if (k == 5 && api->kind(api->at(source, i)) != APUS_NODE_NULL)
            return bad(api->at(source, i), err, "a byte tokenizer takes no ", api->key_at(source, i));
    }
    const apus_node *model = api->get(source, "model"), *list = api->get(source, "added_tokens");
    for (size_t i = 0; i < api->length(model); i++) {
        if (strcmp(api->key_at(model, i), "type") != 0)
            return bad(api->at(model, i), err, "model 'Byte': unknown key ", api->key_at(model, i));
    }
    if (api->kind(list) != APUS_NODE_NULL && api->kind(list) != APUS_NODE_LIST)
        return bad(list, err, "added_tokens must be a list", "");
    t->size = 256;
    t->tokens = calloc(api->length(list) + 1, sizeof *t->tokens);
    if (t->tokens == NULL)
        return memory(err);
    apus_status s = APUS_OK;
    for (size_t i = 0; i < api->length(list) && s == APUS_OK; i++)
        s = read_token(t, api->at(list, i), err);
    if (s == APUS_OK && t->n > 0)
        qsort(t->tokens, t->n, sizeof *t->tokens, by_length);
    return s;
}

static void close_tokenizer(void *tokenizer)
{
    byte_tokenizer *t = tokenizer;
    if (t != NULL)
        free(t->tokens);
    free(t);
}

static apus_status open_tokenizer(const apus_host *host, const apus_node *params, const apus_node *source, void **tokenizer, apus_error *err)
{
    (void)params; /* the component has none */
    byte_tokenizer *t = calloc(1, sizeof *t);
    *tokenizer = NULL;
    if (t == NULL)
        return memory(err);
    t->host = host;
    apus_status s = read_source(t, source, err);
    if (s != APUS_OK) {
        close_tokenizer(t);
        return s;
    }
    *tokenizer = t;
    return APUS_OK;
}

/* ---------------------------------------------------------------- text and ids */

static apus_status room(const byte_tokenizer *t, apus_tokens *out, size_t more, apus_error *err)
{
    if (more <= out->capacity - out->n)
        return APUS_OK;
    size_t capacity = out->capacity < 64 ? 64 : out->capacity;
    while (capacity - out->n < more) {
        if (capacity > SIZE_MAX / 16)
            return memory(err);
        capacity *= 2;
    }
    int32_t *ids = t->host->realloc(out->ids, out->capacity * sizeof *ids, capacity * sizeof *ids);
    if (ids != NULL)
        out->ids = ids;
    uint32_t *begin = ids == NULL ? NULL : t->host->realloc(out->begin, out->capacity * sizeof *begin, capacity * sizeof *begin);
    if (begin == NULL)
        return memory(err);
    out->begin = begin;
    out->capacity = capacity;
    return APUS_OK;
}

static apus_status encode(void *tokenizer, const char *text, size_t length, int flags, apus_tokens *out, apus_error *err)
{
    const byte_tokenizer *t = tokenizer;
    const unsigned char *s = (const unsigned char *)text;
    if (length >= UINT32_MAX)
        return apus_fail(err, APUS_E_INVALID, "a text of %zu bytes is too long to tokenize at once: the limit is 4 GiB", length);
    size_t from = out->n;
    for (size_t i = 0; i < length;) {
        apus_status status = room(t, out, 4, err);
        if (status != APUS_OK) {
            out->n = from;
            return status;
        }
        const added_token *found = NULL;
        for (size_t k = 0; t->first[s[i]] && k < t->n && found == NULL; k++) {
            const added_token *token = &t->tokens[k];
            if (token->n <= length - i && memcmp(token->content, s + i, token->n) == 0)
                found = token;
        }
        if (found != NULL && (!found->special || (flags & APUS_ENCODE_SPECIAL_TEXT))) {
            out->ids[out->n] = found->id;
            out->begin[out->n++] = (uint32_t)i;
            i += found->n;
            continue;
        }
        /* Text of a special token that is to stay text is taken whole, as tokenizers does: nothing in it is looked for. */
        for (size_t end = found != NULL ? i + found->n : i + 1; i < end;) {
            int valid;
            size_t n = step(s + i, length - i, &valid);
            const unsigned char *bytes = valid ? s + i : (const unsigned char *)"\xEF\xBF\xBD";
            if ((status = room(t, out, 4, err)) != APUS_OK) {
                out->n = from;
                return status;
            }
            for (size_t k = 0; k < (valid ? n : 3); k++) {
                out->ids[out->n] = bytes[k];
                out->begin[out->n++] = (uint32_t)(valid ? i + k : i);
            }
            i += n;
        }
    }
    return APUS_OK;
}

static const added_token *by_id(const byte_tokenizer *t, int32_t id)
{
    for (size_t i = 0; id >= 256 && i < t->n; i++) {
        if (t->tokens[i].id == id)
            return &t->tokens[i];
    }
    return NULL;
}

static apus_status decode(void *tokenizer, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length, apus_error *err)
{
    const byte_tokenizer *t = tokenizer;
    size_t raw_n = 0, out_n = 0;
    for (size_t i = 0; i < n; i++) {
        const added_token *token = by_id(t, ids[i]);
        raw_n += token != NULL ? token->n : 1;
    }
    unsigned char *raw = malloc(raw_n + 1);
    char *out = raw == NULL ? NULL : t->host->realloc(NULL, 0, raw_n * 3 + 1);
    if (out == NULL) {
        free(raw);
        return memory(err);
    }
    raw_n = 0;
    for (size_t i = 0; i < n; i++) {
        const added_token *token = by_id(t, ids[i]);
        if (token == NULL && ids[i] >= 0 && ids[i] < 256)
            raw[raw_n++] = (unsigned char)ids[i];
        if (token == NULL || (token->special && skip_special))
            continue;
        memcpy(raw + raw_n, token->content, token->n);
        raw_n += token->n;
    }
    for (size_t i = 0; i < raw_n;) {
        int valid;
        size_t size = step(raw + i, raw_n - i, &valid);
        memcpy(out + out_n, valid ? (const char *)raw + i : "\xEF\xBF\xBD", valid ? size : 3);
        out_n += valid ? size : 3;
        i += size;
    }
    free(raw);
    out[out_n] = '\0';
    *text = out;
    *length = out_n;
    return APUS_OK;
}

static int32_t vocab_size(void *tokenizer)
{
    return ((const byte_tokenizer *)tokenizer)->size;
}

static const char *token(void *tokenizer, int32_t id, size_t *length)
{
    static const char bytes[][2] = {
#define ROW(h)  {h}, {h + 1}, {h + 2}, {h + 3}, {h + 4}, {h + 5}, {h + 6}, {h + 7}
#define ROWS(h) ROW(h), ROW(h + 8), ROW(h + 16), ROW(h + 24)
        ROWS(0),   ROWS(32),  ROWS(64), ROWS(96), ROWS(-128),
        ROWS(-96), ROWS(-64), ROWS(-32)
#undef ROWS
#undef ROW
    };
    const added_token *added = by_id(tokenizer, id);
    int is_byte = id >= 0 && id < 256;
    if (length != NULL)
        *length = added != NULL ? added->n : (size_t)is_byte;
    return added != NULL ? added->content : is_byte ? bytes[id] : NULL;
}

static int32_t id_of(void *tokenizer, const char *s)
{
    const byte_tokenizer *t = tokenizer;
    for (size_t i = 0; i < t->n; i++) {
        if (strcmp(t->tokens[i].content, s) == 0)
            return t->tokens[i].id;
    }
    return s[0] != '\0' && s[1] == '\0' ? (unsigned char)s[0] : -1;
}

static int is_special(void *tokenizer, int32_t id)
{
    const added_token *added = by_id(tokenizer, id);
    return added != NULL && added->special;
}

static const apus_tokenizer_ops ops = {.size = sizeof ops,
                                       .claims = claims,
                                       .open = open_tokenizer,
                                       .close = close_tokenizer,
                                       .encode = encode,
                                       .decode = decode,
                                       .vocab_size = vocab_size,
                                       .token = token,
                                       .id = id_of,
                                       .is_special = is_special};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "tokenizer",
                                             .name = "byte",
                                             .doc = "Bytes as ids 0 to 255, special tokens from 256 on: for models without a vocabulary.",
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "byte",   .version = "1.0.0", .license = "Apache-2.0", .doc = "A tokenizer whose ids are bytes",
    .components = components, .n_components = 1};

const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    the_host = host;
    return &plugin;
}
