/*
 * plugins/format/gguf/tokenizer: the vocabulary in the shape of tokenizer.json, so that one reader serves all.
 * Byte-level vocabularies ("gpt2") and SentencePiece ones ("llama": BPE whose merges follow from the pieces' scores, as
 * transformers' converter derives them). A vocabulary of another kind leaves the model without a tokenizer, and says
 * so.
 */
#include "gguf.h"

#define METASPACE "\xE2\x96\x81" /* ▁ U+2581 */

/* A vocabulary being read: token i is text[i], length[i] bytes. */
typedef struct vocabulary {
    const gguf_file *f;
    const char **text;
    uint32_t *length;
    const gguf_value *types, *scores;
    size_t n;
    int64_t bos, eos, unk, pad;
} vocabulary;

static void say(const gguf_file *f, const char *fmt, const char *detail, size_t n)
{
    char line[4608], what[160];
    n = n < 80 ? n : 80;
    for (size_t i = 0; i < n; i++)
        what[i] = detail[i] >= ' ' && detail[i] <= '~' ? detail[i] : '?';
    what[n] = '\0';
    snprintf(line, sizeof line, fmt, f->path, what);
    f->host->log(APUS_LOG_WARN, "gguf", line);
}

static int type_of(const vocabulary *v, size_t i)
{
    return v->types != NULL ? (int)gguf_item(v->types, i) : TOKEN_NORMAL;
}

/* UTF-8 without NUL: what a key of a node may be. */
static int is_text(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    for (size_t i = 0; i < n;) {
        const unsigned c = p[i];
        const size_t more = c < 0x80 ? 0 : c < 0xc2 ? 9 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 9;
        if (c == 0 || more == 9 || i + more >= n)
            return 0;
        for (size_t k = 1; k <= more; k++)
            if ((p[i + k] & 0xc0) != 0x80)
                return 0;
        if ((c == 0xe0 && p[i + 1] < 0xa0) || (c == 0xed && p[i + 1] > 0x9f) || (c == 0xf0 && p[i + 1] < 0x90) || (c == 0xf4 && p[i + 1] > 0x8f))
            return 0;
        i += more + 1;
    }
    return 1;
}

static apus_status read_vocabulary(gguf_file *f, vocabulary *v, apus_error *err)
{
    const gguf_value *tokens = gguf_get(f, "tokenizer.ggml.tokens");
    *v = (vocabulary){.f = f, .types = gguf_get(f, "tokenizer.ggml.token_type"), .scores = gguf_get(f, "tokenizer.ggml.scores")};
    if (tokens == NULL || tokens->type != GGUF_ARRAY || tokens->item != GGUF_STRING || tokens->count == 0 || tokens->count > GGUF_MAX_TOKENS)
        return apus_fail_line(err, APUS_E_INVALID, "%s: tokenizer.ggml.tokens is missing or no list of texts", f->path);
    v->n = (size_t)tokens->count;
    if ((v->types != NULL && (!gguf_is_numbers(v->types) || v->types->count < v->n)) ||
        (v->scores != NULL && (!gguf_is_numbers(v->scores) || v->scores->count < v->n)))
        return apus_fail_line(err, APUS_E_INVALID, "%s: tokenizer.ggml.token_type or scores is shorter than the vocabulary", f->path);
    v->text = f->host->alloc(v->n * sizeof *v->text);
    v->length = f->host->alloc(v->n * sizeof *v->length);
    if (v->text == NULL || v->length == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    const unsigned char *p = tokens->data;
    for (size_t i = 0; i < v->n; i++) {
        size_t n;
        v->text[i] = gguf_next_string(&p, &n);
        v->length[i] = (uint32_t)n;
        if (n > 65535 || !is_text(v->text[i], n))
            return apus_fail_line(err, APUS_E_INVALID, "%s: token %zu is not UTF-8", f->path, i);
    }
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id",
                                       "tokenizer.ggml.padding_token_id"};
    int64_t *const ids[] = {&v->bos, &v->eos, &v->unk, &v->pad};
    for (size_t i = 0; i < 4; i++) {
        *ids[i] = gguf_int(gguf_get(f, keys[i]), -1);
        if (*ids[i] >= (int64_t)v->n)
            *ids[i] = -1;
    }
    return APUS_OK;
}

static apus_node *token_text(const vocabulary *v, int64_t id)
{
    return v->f->host->node->make_string(v->text[id], v->length[id]);
}

static apus_node *make_vocab(const vocabulary *v, apus_error *err)
{
    const apus_node_api *node = v->f->host->node;
    apus_node *map = node->make_map();
    char *key = v->f->host->alloc(65536);
    apus_status st = map != NULL && key != NULL ? APUS_OK : apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", v->f->path);
    for (size_t i = 0; i < v->n && st == APUS_OK; i++) {
        memcpy(key, v->text[i], v->length[i]);
        key[v->length[i]] = '\0';
        st = node->set(map, key, node->make_int((int64_t)i));
    }
    v->f->host->free(key);
    if (st == APUS_OK && node->length(map) != v->n)
        st = apus_fail_line(err, APUS_E_INVALID, "%s: a token is in the vocabulary twice", v->f->path);
    if (st == APUS_OK)
        return map;
    node->release(map);
    return NULL;
}

static apus_node *make_added(const vocabulary *v)
{
    const apus_node_api *node = v->f->host->node;
    apus_node *list = node->make_list();
    for (size_t i = 0; i < v->n; i++) {
        const int type = type_of(v, i);
        const int named = (int64_t)i == v->bos || (int64_t)i == v->eos || (int64_t)i == v->unk;
        if (v->length[i] == 0 || !(type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER || (named && type != TOKEN_NORMAL)))
            continue;
        apus_node *a = node->make_map();
        node->set(a, "id", node->make_int((int64_t)i));
        node->set(a, "content", token_text(v, (int64_t)i));
        node->set(a, "single_word", node->make_bool(0));
        node->set(a, "lstrip", node->make_bool(0));
        node->set(a, "rstrip", node->make_bool(0));
        node->set(a, "normalized", node->make_bool(0));
        node->set(a, "special", node->make_bool(type != TOKEN_USER));
        node->append(list, a);
    }
    return list;
}

/* ---------------------------------------------------------------- merges */

typedef struct merge {
    uint32_t left, right; /* ids */
    float score;          /* of what they make */
    uint32_t left_chars, right_chars, order;
} merge;

/* transformers' generate_merges: by score, then by the lengths of the halves (in characters), all descending; equal
 * ones as found. */
static int by_score(const void *a, const void *b)
{
    const merge *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->left_chars != y->left_chars)
        return x->left_chars > y->left_chars ? -1 : 1;
    if (x->right_chars != y->right_chars)
        return x->right_chars > y->right_chars ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static uint32_t characters(const char *s, size_t n)
{
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

/* Every way to cut a piece in two pieces. Control, unknown and byte tokens are never parts nor results: text does not
 * become a control token by merging (as in SentencePiece, whose pieces_ lacks them). */
static apus_status derive_merges(const vocabulary *v, merge **out, size_t *count, apus_error *err)
{
    const apus_host *host = v->f->host;
    apus_names names = {NULL, 0};
    size_t capacity = v->n * 4 + 64, n = 0;
    merge *list = host->alloc(capacity * sizeof *list);
    if (list == NULL || !apus_names_open(host, &names, v->n)) {
        host->free(list);
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", v->f->path);
    }
    for (size_t i = 0; i < v->n; i++) {
        const int type = type_of(v, i);
        if (type == TOKEN_NORMAL || type == TOKEN_USER)
            apus_names_add(&names, v->text[i], v->length[i], (uint32_t)i);
    }
    apus_status st = APUS_OK;
    for (size_t i = 0; i < v->n && st == APUS_OK; i++) {
        const char *s = v->text[i];
        const size_t length = v->length[i];
        if (length > 512 || apus_names_find(&names, s, length) != i)
            continue;
        for (size_t k = 1; k < length && st == APUS_OK; k++) {
            if (((unsigned char)s[k] & 0xc0) == 0x80)
                continue;
            const uint32_t left = apus_names_find(&names, s, k);
            const uint32_t right = left != APUS_NAMES_NONE ? apus_names_find(&names, s + k, length - k) : APUS_NAMES_NONE;
            if (right == APUS_NAMES_NONE)
                continue;
            if (n == capacity) {
                merge *more = host->realloc(list, capacity * sizeof *list, 2 * capacity * sizeof *list);
                if (more == NULL) {
                    st = apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", v->f->path);
                    break;
                }
                list = more;
                capacity *= 2;
            }
            list[n] = (merge){left, right, (float)gguf_item(v->scores, i), characters(s, k), characters(s + k, length - k), (uint32_t)n};
            n++;
        }
    }
    apus_names_close(host, &names);
    if (st != APUS_OK) {
        host->free(list);
        return st;
    }
    qsort(list, n, sizeof *list, by_score);
    *out = list;
    *count = n;
    return APUS_OK;
}

static apus_node *pair(const vocabulary *v, uint32_t left, uint32_t right)
{
    const apus_node_api *node = v->f->host->node;
    apus_node *p = node->make_list();
    node->append(p, token_text(v, left));
    node->append(p, token_text(v, right));
    return p;
}

static apus_node *merges_of_scores(const vocabulary *v, apus_error *err)
{
    const apus_node_api *node = v->f->host->node;
    merge *list = NULL;
    size_t n = 0;
    if (v->scores == NULL) {
        apus_fail_line(err, APUS_E_INVALID, "%s: tokenizer.ggml.scores is missing", v->f->path);
        return NULL;
    }
    if (derive_merges(v, &list, &n, err) != APUS_OK)
        return NULL;
    apus_node *out = node->make_list();
    for (size_t i = 0; i < n; i++)
        node->append(out, pair(v, list[i].left, list[i].right));
    v->f->host->free(list);
    return out;
}

/* tokenizer.ggml.merges: "a b"; pieces of byte-level vocabularies hold no space. */
static apus_node *merges_of_file(const vocabulary *v, apus_error *err)
{
    const apus_node_api *node = v->f->host->node;
    const gguf_value *m = gguf_get(v->f, "tokenizer.ggml.merges");
    if (m == NULL || m->type != GGUF_ARRAY || m->item != GGUF_STRING) {
        apus_fail_line(err, APUS_E_INVALID, "%s: tokenizer.ggml.merges is missing or no list of texts", v->f->path);
        return NULL;
    }
    apus_node *out = node->make_list();
    const unsigned char *p = m->data;
    for (uint64_t i = 0; i < m->count; i++) {
        size_t n;
        const char *s = gguf_next_string(&p, &n);
        const char *space = n > 2 ? memchr(s + 1, ' ', n - 2) : NULL;
        if (space == NULL || memchr(space + 1, ' ', (size_t)(s + n - space - 1)) != NULL || !is_text(s, n)) {
            apus_fail_line(err, APUS_E_INVALID, "%s: merge %llu is not two pieces with a space between", v->f->path, (unsigned long long)i);
            node->release(out);
            return NULL;
        }
        node->append(out, node->make_string(s, n));
    }
    return out;
}

/* ---------------------------------------------------------------- the rest of tokenizer.json */

static apus_node *typed(const apus_node_api *node, const char *type)
{
    apus_node *n = node->make_map();
    node->set(n, "type", node->make_string(type, (size_t)-1));
    return n;
}

static apus_node *replace(const apus_node_api *node, const char *what, const char *by)
{
    apus_node *n = typed(node, "Replace"), *pattern = node->make_map();
    node->set(pattern, "String", node->make_string(what, (size_t)-1));
    node->set(n, "pattern", pattern);
    node->set(n, "content", node->make_string(by, (size_t)-1));
    return n;
}

/* Spaces become ▁; a ▁ goes before each stretch of text, as llama.cpp does and Llama's own tokenizer.json. */
static apus_node *metaspace_normalizer(const apus_node_api *node, int prefix)
{
    if (!prefix)
        return replace(node, " ", METASPACE);
    apus_node *n = typed(node, "Sequence"), *list = node->make_list(), *prepend = typed(node, "Prepend");
    node->set(prepend, "prepend", node->make_string(METASPACE, (size_t)-1));
    node->append(list, prepend);
    node->append(list, replace(node, " ", METASPACE));
    node->set(n, "normalizers", list);
    return n;
}

static apus_node *metaspace_decoder(const apus_node_api *node, int prefix)
{
    apus_node *n = typed(node, "Sequence"), *list = node->make_list();
    node->append(list, replace(node, METASPACE, " "));
    node->append(list, typed(node, "ByteFallback"));
    node->append(list, typed(node, "Fuse"));
    if (prefix) {
        apus_node *strip = typed(node, "Strip");
        node->set(strip, "content", node->make_string(" ", 1));
        node->set(strip, "start", node->make_int(1));
        node->set(strip, "stop", node->make_int(0));
        node->append(list, strip);
    }
    node->set(n, "decoders", list);
    return n;
}

static apus_node *byte_level(const apus_node_api *node)
{
    apus_node *n = typed(node, "ByteLevel");
    node->set(n, "add_prefix_space", node->make_bool(1));
    node->set(n, "trim_offsets", node->make_bool(1));
    node->set(n, "use_regex", node->make_bool(1));
    return n;
}

/* {"SpecialToken": {id, type_id}} or {"Sequence": …} */
static void template_piece(const apus_node_api *node, apus_node *list, const char *kind, apus_node *id, int type_id)
{
    apus_node *outer = node->make_map(), *inner = node->make_map();
    node->set(inner, "id", id);
    node->set(inner, "type_id", node->make_int(type_id));
    node->set(outer, kind, inner);
    node->append(list, outer);
}

static void special_entry(const vocabulary *v, apus_node *map, int64_t id)
{
    const apus_node_api *node = v->f->host->node;
    apus_node *entry = node->make_map(), *ids = node->make_list(), *tokens = node->make_list(), *text = token_text(v, id);
    node->append(ids, node->make_int(id));
    node->append(tokens, token_text(v, id));
    node->set(entry, "id", token_text(v, id));
    node->set(entry, "ids", ids);
    node->set(entry, "tokens", tokens);
    node->set(map, node->as_string(text, NULL), entry);
    node->release(text);
}

/* TemplateProcessing with what the file says is added around a text; null when nothing is. */
static apus_node *post_processor(const vocabulary *v, int bos, int eos)
{
    const apus_node_api *node = v->f->host->node;
    bos = bos && v->bos >= 0;
    eos = eos && v->eos >= 0;
    if (!bos && !eos)
        return node->make_null();
    apus_node *n = typed(node, "TemplateProcessing"), *specials = node->make_map();
    for (int pairs = 0; pairs < 2; pairs++) {
        apus_node *list = node->make_list();
        for (int s = 0; s <= pairs; s++) {
            if (bos)
                template_piece(node, list, "SpecialToken", token_text(v, v->bos), s);
            template_piece(node, list, "Sequence", node->make_string(s ? "B" : "A", 1), s);
            if (eos)
                template_piece(node, list, "SpecialToken", token_text(v, v->eos), s);
        }
        node->set(n, pairs ? "pair" : "single", list);
    }
    if (bos)
        special_entry(v, specials, v->bos);
    if (eos && v->eos != v->bos)
        special_entry(v, specials, v->eos);
    node->set(n, "special_tokens", specials);
    return n;
}

static apus_node *tokenizer_config(const vocabulary *v, int add_bos, int add_eos)
{
    const apus_node_api *node = v->f->host->node;
    apus_node *c = node->make_map();
    const int64_t ids[] = {v->bos, v->eos, v->unk, v->pad};
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    node->set(c, "add_bos_token", node->make_bool(add_bos));
    node->set(c, "add_eos_token", node->make_bool(add_eos));
    for (size_t i = 0; i < 4; i++)
        if (ids[i] >= 0)
            node->set(c, names[i], token_text(v, ids[i]));
    node->set(c, "clean_up_tokenization_spaces", node->make_bool(0));
    node->set(c, "tokenizer_class", node->make_string("PreTrainedTokenizerFast", (size_t)-1));
    return c;
}

/* The node of a vocabulary; spm: SentencePiece. */
static apus_status make_tokenizer(gguf_file *f, const vocabulary *v, int spm, apus_node *pre, int ignore_merges, int add_bos, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    const int prefix = spm && gguf_bool(gguf_get(f, "tokenizer.ggml.add_space_prefix"), 1);
    const int bos = gguf_bool(gguf_get(f, "tokenizer.ggml.add_bos_token"), add_bos);
    const int eos = gguf_bool(gguf_get(f, "tokenizer.ggml.add_eos_token"), 0);
    apus_node *vocab = make_vocab(v, err);
    apus_node *merges = vocab == NULL ? NULL : spm ? merges_of_scores(v, err) : merges_of_file(v, err);
    if (merges == NULL) {
        node->release(vocab);
        node->release(pre);
        return APUS_E_INVALID;
    }
    apus_node *t = node->make_map(), *model = typed(node, "BPE");
    node->set(model, "dropout", node->make_null());
    node->set(model, "unk_token", spm && v->unk >= 0 ? token_text(v, v->unk) : node->make_null());
    node->set(model, "continuing_subword_prefix", spm ? node->make_null() : node->make_string("", 0));
    node->set(model, "end_of_word_suffix", spm ? node->make_null() : node->make_string("", 0));
    node->set(model, "fuse_unk", node->make_bool(spm));
    node->set(model, "byte_fallback", node->make_bool(spm));
    node->set(model, "ignore_merges", node->make_bool(ignore_merges));
    node->set(model, "vocab", vocab);
    node->set(model, "merges", merges);
    node->set(t, "version", node->make_string("1.0", (size_t)-1));
    node->set(t, "truncation", node->make_null());
    node->set(t, "padding", node->make_null());
    node->set(t, "added_tokens", make_added(v));
    node->set(t, "normalizer", spm ? metaspace_normalizer(node, prefix) : node->make_null());
    node->set(t, "pre_tokenizer", spm ? node->make_null() : pre);
    node->set(t, "post_processor", post_processor(v, bos, eos));
    node->set(t, "decoder", spm ? metaspace_decoder(node, prefix) : byte_level(node));
    if (node->set(t, "model", model) != APUS_OK) {
        node->release(t);
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    }
    f->tokenizer = t;
    f->tokenizer_config = tokenizer_config(v, bos, eos);
    return APUS_OK;
}

apus_status gguf_make_tokenizer(gguf_file *f, apus_error *err)
{
    size_t n = 0, length = 0;
    const char *model = gguf_string(gguf_get(f, "tokenizer.ggml.model"), &n);
    if (model == NULL || (n == 4 && memcmp(model, "none", 4) == 0) || (n == 8 && memcmp(model, "no_vocab", 8) == 0))
        return APUS_OK;
    const int spm = n == 5 && memcmp(model, "llama", 5) == 0;
    if (!spm && !(n == 4 && memcmp(model, "gpt2", 4) == 0)) {
        say(f, "%s: the tokenizer is of kind '%s', which is not read: ids only", model, n);
        return APUS_OK;
    }
    int ignore_merges = 0, add_bos = spm;
    apus_node *pre = NULL;
    if (!spm) {
        const char *name = gguf_string(gguf_get(f, "tokenizer.ggml.pre"), &length);
        if (name == NULL || (length == 7 && memcmp(name, "default", 7) == 0)) {
            say(f, "%s: tokenizer.ggml.pre does not say how text is cut: as in GPT-2%s", "", 0);
            name = "gpt-2";
            length = 5;
        }
        pre = gguf_pre_tokenizer(f->host->node, name, length, &ignore_merges, &add_bos);
        if (pre == NULL) {
            say(f, "%s: tokenizer.ggml.pre '%s' is not known: ids only", name, length);
            return APUS_OK;
        }
    }
    vocabulary v;
    apus_status st = read_vocabulary(f, &v, err);
    if (st == APUS_OK)
        st = make_tokenizer(f, &v, spm, pre, ignore_merges, add_bos, err);
    else
        f->host->node->release(pre);
    f->host->free((void *)v.text);
    f->host->free(v.length);
    return st;
}
