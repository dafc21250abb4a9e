/*
 * Decoders: ids to text. Tokens are kept as a list of strings, which each decoder turns into another, as in tokenizers;
 * the joined list is the text. Knows nothing of encoding.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

/* Strings end to end. */
typedef struct {
    apus_bpe_buffer bytes; /* origins are not used */
    size_t *end;           /* [n] */
    size_t n, capacity;
} strings;

static size_t begin_of(const strings *s, size_t i)
{
    return i == 0 ? 0 : s->end[i - 1];
}

static int add(strings *s, const char *text, size_t n)
{
    return apus_bpe_add(&s->bytes, text, n, 0);
}

/* What was added since the last end is a string. */
static int end_string(strings *s)
{
    if (!apus_bpe_grow(&s->end, &s->capacity, s->n + 1, sizeof *s->end))
        return 0;
    s->end[s->n++] = s->bytes.n;
    return 1;
}

static void strings_free(strings *s)
{
    apus_bpe_buffer_free(&s->bytes);
    free(s->end);
}

/* Well-formed UTF-8 with U+FFFD for the rest. */
static int add_repaired(strings *out, const char *s, size_t n)
{
    apus_bpe_view v = {s, n, NULL, 0};
    return apus_bpe_repair(&out->bytes, &v);
}

/* A token written in the byte alphabet gives its bytes; one with any other character stands as it is. */
static int byte_level(const strings *in, strings *out)
{
    apus_bpe_buffer raw = {0};
    int ok = apus_bpe_reserve(&raw, in->bytes.n);
    for (size_t i = 0; i < in->n && ok; i++) {
        size_t begin = begin_of(in, i), end = in->end[i], at = raw.n, length;
        for (size_t k = begin; k < end; k += length) {
            int byte = apus_bpe_char_byte(apus_bpe_char(in->bytes.s + k, &length));
            if (byte < 0) {
                raw.n = at;
                ok = apus_bpe_add(&raw, in->bytes.s + begin, end - begin, 0);
                break;
            }
            raw.s[raw.n++] = (char)byte;
        }
    }
    ok = ok && add_repaired(out, raw.s, raw.n) && end_string(out);
    apus_bpe_buffer_free(&raw);
    return ok;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Runs of <0xHH>: their text if it is well-formed, else one U+FFFD for each. */
static int fallback(const strings *in, strings *out)
{
    char *run = malloc(in->n + 1);
    size_t n = 0;
    int ok = run != NULL;
    for (size_t i = 0; i <= in->n && ok; i++) {
        const char *s = i < in->n ? in->bytes.s + begin_of(in, i) : NULL;
        size_t length = i < in->n ? in->end[i] - begin_of(in, i) : 0;
        if (length == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && hex(s[4]) >= 0 &&
            (hex(s[3]) >= 0 || s[3] == '+')) { /* Rust's from_str_radix takes a sign */
            run[n++] = (char)((s[3] == '+' ? 0 : hex(s[3]) << 4) | hex(s[4]));
            continue;
        }
        if (n > 0 && apus_bpe_valid_prefix(run, n) == n) {
            ok = add(out, run, n) && end_string(out);
        } else {
            for (size_t k = 0; k < n && ok; k++)
                ok = add(out, "\xEF\xBF\xBD", 3) && end_string(out);
        }
        n = 0;
        if (ok && i < in->n)
            ok = add(out, s, length) && end_string(out);
    }
    free(run);
    return ok;
}

static int strip(const apus_bpe_decode *op, const char *s, size_t n, strings *out)
{
    size_t begin = 0, end = n, length;
    char c[4];
    size_t n_c = apus_bpe_put(op->c, c);
    for (size_t k = 0; k < op->start && begin < end && apus_bpe_char(s + begin, &length) == op->c; k++)
        begin += length;
    for (size_t k = 0; k < op->stop && end >= begin + n_c && memcmp(s + end - n_c, c, n_c) == 0; k++)
        end -= n_c;
    return add(out, s + begin, end - begin);
}

/* Replace every `from` in s. */
static int replace_all(const char *s, size_t n, const char *from, size_t n_from, const char *to, strings *out)
{
    for (size_t i = 0; i < n;) {
        size_t at = n_from > 0 ? apus_bpe_find(s, n, i, from, n_from) : n;
        if (!add(out, s + i, at - i) || (at < n && !add(out, to, strlen(to))))
            return 0;
        i = at < n ? at + n_from : n;
    }
    return 1;
}

/* WordPiece's cleanup: the replacements one after another. */
static int word_piece(const apus_bpe_decode *op, const char *s, size_t n, int first, strings *out)
{
    static const char *const pairs[][2] = {{" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
                                           {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    strings a = {0}, b = {0};
    int joined = n >= op->n_text && memcmp(s, op->text, op->n_text) == 0, ok;
    if (first)
        ok = add(&a, s, n);
    else if (joined)
        ok = add(&a, s + op->n_text, n - op->n_text);
    else
        ok = add(&a, " ", 1) && add(&a, s, n);
    for (size_t i = 0; ok && op->flag && i < sizeof pairs / sizeof *pairs; i++) {
        b.bytes.n = 0;
        ok = replace_all(a.bytes.s, a.bytes.n, pairs[i][0], strlen(pairs[i][0]), pairs[i][1], &b);
        strings swap = a;
        a = b;
        b = swap;
    }
    ok = ok && add(out, a.bytes.s, a.bytes.n);
    strings_free(&a);
    strings_free(&b);
    return ok;
}

/* 1; 0: memory; -1: error already filled. */
static int step(apus_bpe_call *call, const apus_bpe_decode *op, const strings *in, strings *out)
{
    if (op->kind == APUS_BPE_DECODE_BYTELEVEL)
        return byte_level(in, out);
    if (op->kind == APUS_BPE_DECODE_FALLBACK)
        return fallback(in, out);
    if (op->kind == APUS_BPE_DECODE_FUSE)
        return add(out, in->bytes.s, in->bytes.n) && end_string(out);
    int ok = 1;
    for (size_t i = 0; i < in->n && ok; i++) {
        const char *s = in->bytes.s + begin_of(in, i);
        size_t n = in->end[i] - begin_of(in, i);
        if (op->kind == APUS_BPE_DECODE_STRIP) {
            ok = strip(op, s, n, out);
        } else if (op->kind == APUS_BPE_DECODE_METASPACE) {
            char mark[5] = {0};
            size_t n_mark = apus_bpe_put(op->c, mark);
            ok = replace_all(s, n, mark, n_mark, i == 0 && op->flag ? "" : " ", out);
        } else if (op->kind == APUS_BPE_DECODE_SUFFIX) {
            ok = replace_all(s, n, op->text, op->n_text, i + 1 == in->n ? "" : " ", out);
        } else if (op->kind == APUS_BPE_DECODE_WORDPIECE) {
            ok = word_piece(op, s, n, i == 0, out);
        } else {
            apus_bpe_search search = {.s = s, .n = n};
            size_t begin, end, done = 0;
            int found = 0;
            while (ok && (n > 0) && (found = apus_bpe_regex_next(call, op->pattern, &search, &begin, &end)) > 0) {
                ok = add(out, s + done, begin - done) && add(out, op->text, op->n_text);
                done = end;
            }
            if (found < 0)
                return -1;
            ok = ok && add(out, s + done, n - done);
        }
        ok = ok && end_string(out);
    }
    return ok;
}

apus_status apus_bpe_decode_run(apus_bpe_call *call, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length)
{
    const apus_bpe *t = call->t;
    strings a = {0}, b = {0};
    int ok = 1;
    for (size_t i = 0; i < n && ok > 0; i++) {
        const apus_bpe_token *token = apus_bpe_added_token(&t->added, ids[i]);
        size_t size = 0;
        const char *s = token == NULL ? apus_bpe_model_token(t->model, ids[i], &size) : token->normal != NULL ? token->normal : token->content;
        if (s == NULL) /* no token has this id: transformers leaves it out too */
            continue;
        if (token != NULL)
            size = token->normal != NULL ? token->n_normal : token->n;
        if (skip_special && token != NULL && token->special)
            continue;
        if (t->no_decoder && a.n > 0)
            ok = add(&a, " ", 1);
        ok = ok && add_repaired(&a, s, size) && end_string(&a);
    }
    for (size_t i = 0; i < t->n_decodes && ok > 0 && !(t->no_decoder); i++) {
        b.bytes.n = b.n = 0;
        ok = apus_bpe_reserve(&a.bytes, 0) ? step(call, &t->decodes[i], &a, &b) : 0;
        strings swap = a;
        a = b;
        b = swap;
    }
    apus_status s = ok > 0 ? APUS_OK : ok < 0 ? APUS_E_INVALID : apus_bpe_memory(call->err);
    *text = NULL;
    if (s == APUS_OK) {
        *text = t->host->realloc(NULL, 0, a.bytes.n + 1);
        if (*text == NULL)
            s = apus_bpe_memory(call->err);
    }
    if (s == APUS_OK) {
        if (a.bytes.n > 0)
            memcpy(*text, a.bytes.s, a.bytes.n);
        (*text)[a.bytes.n] = '\0';
        *length = a.bytes.n;
    }
    strings_free(&a);
    strings_free(&b);
    return s;
}

/* ---------------------------------------------------------------- reading */

static apus_status count(const apus_node *node, const char *what, const char *key, size_t *out, apus_error *err)
{
    const apus_node *n = apus_bpe_host->node->get(node, key);
    int64_t value = apus_bpe_host->node->as_int(n, -1);
    if (value < 0)
        return apus_bpe_bad(n != NULL ? n : node, err, "%s: %s must be a count", what, key);
    *out = (size_t)value;
    return APUS_OK;
}

apus_status apus_bpe_decode_open(apus_bpe *t, const apus_node *node, apus_error *err)
{
    static const struct {
        const char *type, *keys;
        apus_bpe_decode_kind kind;
    } kinds[] = {{"ByteLevel", "type add_prefix_space trim_offsets use_regex", APUS_BPE_DECODE_BYTELEVEL},
                 {"Replace", "type pattern content", APUS_BPE_DECODE_REPLACE},
                 {"ByteFallback", "type", APUS_BPE_DECODE_FALLBACK},
                 {"Fuse", "type", APUS_BPE_DECODE_FUSE},
                 {"Strip", "type content start stop", APUS_BPE_DECODE_STRIP},
                 {"Metaspace", "type replacement add_prefix_space prepend_scheme split str_rep", APUS_BPE_DECODE_METASPACE},
                 {"WordPiece", "type prefix cleanup", APUS_BPE_DECODE_WORDPIECE},
                 {"BPEDecoder", "type suffix", APUS_BPE_DECODE_SUFFIX}};
    const apus_node_api *api = apus_bpe_host->node;
    const char *type = apus_bpe_type(node);
    apus_status s;
    if (strcmp(type, "Sequence") == 0) {
        s = apus_bpe_keys(node, "decoder 'Sequence'", "type decoders", err);
        const apus_node *list = api->get(node, "decoders");
        for (size_t i = 0; s == APUS_OK && i < api->length(list); i++)
            s = apus_bpe_decode_open(t, api->at(list, i), err);
        return s;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].type, type) != 0)
            continue;
        char what[64];
        snprintf(what, sizeof what, "decoder '%s'", type);
        if ((s = apus_bpe_keys(node, what, kinds[i].keys, err)) != APUS_OK)
            return s;
        if (!apus_bpe_grow(&t->decodes, &t->decodes_capacity, t->n_decodes + 1, sizeof *t->decodes))
            return apus_bpe_memory(err);
        apus_bpe_decode *op = &t->decodes[t->n_decodes++];
        *op = (apus_bpe_decode){.kind = kinds[i].kind};
        switch (op->kind) {
        case APUS_BPE_DECODE_BYTELEVEL:
        case APUS_BPE_DECODE_FALLBACK:
        case APUS_BPE_DECODE_FUSE:
            return APUS_OK;
        case APUS_BPE_DECODE_REPLACE:
            if ((s = apus_bpe_pattern(node, what, &op->pattern, err)) != APUS_OK)
                return s;
            return apus_bpe_string(node, what, "content", &op->text, &op->n_text, err);
        case APUS_BPE_DECODE_STRIP:
            if ((s = apus_bpe_one_char(node, what, "content", &op->c, err)) != APUS_OK ||
                (s = count(node, what, "start", &op->start, err)) != APUS_OK)
                return s;
            return count(node, what, "stop", &op->stop, err);
        case APUS_BPE_DECODE_METASPACE: {
            const char *scheme = api->as_string(api->get(node, "prepend_scheme"), NULL);
            if ((s = apus_bpe_one_char(node, what, "replacement", &op->c, err)) != APUS_OK ||
                (s = apus_bpe_bool(node, what, "add_prefix_space", 1, &op->flag, err)) != APUS_OK)
                return s;
            op->flag = op->flag && (scheme == NULL || strcmp(scheme, "never") != 0);
            return APUS_OK;
        }
        case APUS_BPE_DECODE_WORDPIECE:
            if ((s = apus_bpe_bool(node, what, "cleanup", 1, &op->flag, err)) != APUS_OK)
                return s;
            return apus_bpe_string(node, what, "prefix", &op->text, &op->n_text, err);
        case APUS_BPE_DECODE_SUFFIX:
            return apus_bpe_string(node, what, "suffix", &op->text, &op->n_text, err);
        }
    }
    (void)apus_bpe_bad(node, err, "decoder '%s' is not supported", type);
    return apus_hint(err, APUS_E_UNSUPPORTED, "supported: Sequence ByteLevel Replace ByteFallback Fuse Strip Metaspace WordPiece BPEDecoder");
}
