/*
 * The tokenizer "bpe": what its files share. A text runs one way:
 *
 *   text.c (ill-formed bytes) → added.c (added tokens) → normalize.c → added.c (normalised ones) → split.c (pre-tokenisers,
 *   depth first, piece by piece) → model.c (BPE or WordLevel) → ids.      ids → decode.c → text
 *
 * source.c reads the node, plugin.c is the kind's table, parallel.c deals a long text out to threads. A tokenizer never changes
 * after open, but for the cache in model.c, which only grows and takes no lock; what a call needs to work lives in its
 * apus_bpe_call.
 */
#ifndef APUS_BPE_H
#define APUS_BPE_H

#include <apus/plugin.h>
#include <apus/tokenizer.h>

#include "unicode.h"

typedef struct apus_bpe apus_bpe;
typedef struct apus_bpe_call apus_bpe_call;
typedef struct apus_bpe_team apus_bpe_team;

/* ---------------------------------------------------------------- text.c */

/* A piece of text and where its bytes come from: byte i began at input byte (at ? at[i] : base + i). Borrowed. */
typedef struct apus_bpe_view {
    const char *s;
    size_t n;
    const uint32_t *at;
    uint32_t base;
} apus_bpe_view;

static inline uint32_t apus_bpe_origin(const apus_bpe_view *v, size_t i)
{
    return v->at != NULL ? v->at[i] : v->base + (uint32_t)i;
}

static inline apus_bpe_view apus_bpe_slice(const apus_bpe_view *v, size_t begin, size_t end)
{
    return (apus_bpe_view){v->s + begin, end - begin, v->at != NULL ? v->at + begin : NULL, v->base + (uint32_t)begin};
}

/* A growing text with origins. */
typedef struct apus_bpe_buffer {
    char *s;
    uint32_t *at;
    size_t n, capacity;
} apus_bpe_buffer;

/* 0 when memory is out. */
int apus_bpe_reserve(apus_bpe_buffer *b, size_t more);
int apus_bpe_add(apus_bpe_buffer *b, const char *s, size_t n, uint32_t at); /* all n bytes from input byte `at` */
int apus_bpe_copy(apus_bpe_buffer *b, const apus_bpe_view *v, size_t begin, size_t end);
void apus_bpe_buffer_free(apus_bpe_buffer *b);
static inline apus_bpe_view apus_bpe_view_of(const apus_bpe_buffer *b)
{
    return (apus_bpe_view){b->s, b->n, b->at, 0};
}
/* b = v with one U+FFFD per ill-formed subpart. */
int apus_bpe_repair(apus_bpe_buffer *b, const apus_bpe_view *v);

/* First s[0..n) in text[from..length), or length. n > 0. */
size_t apus_bpe_find(const char *text, size_t length, size_t from, const char *s, size_t n);

uint64_t apus_bpe_hash(const void *bytes, size_t n);

/* Grow an array that realloc made: 0 when memory is out (the old one stays). */
int apus_bpe_grow(void *array, size_t *capacity, size_t need, size_t item);

/* ---------------------------------------------------------------- pattern.c */

/* An Oniguruma pattern as PCRE2 is to read it: 1 with *out (malloc'd, *n_out bytes). 0: *problem says what stands at byte
 * *at, or is NULL when memory is out. */
int apus_bpe_translate(const char *pattern, size_t n, char **out, size_t *n_out, const char **problem, size_t *at);

/* ---------------------------------------------------------------- regex.c */

typedef struct apus_bpe_regex apus_bpe_regex;

/* `pattern` as Oniguruma (Ruby's syntax) reads it, or a literal string. where: for errors. */
apus_status apus_bpe_regex_open(apus_bpe_regex **out, const char *pattern, size_t n, int literal, const char *where, apus_error *err);
void apus_bpe_regex_close(apus_bpe_regex *r);

/* Matches one after another, as the crate onig's find_iter gives them. Zero it, then set s and n. */
typedef struct apus_bpe_search {
    const char *s;
    size_t n;
    size_t position;
    size_t last; /* end of the last match + 1; 0: none */
} apus_bpe_search;

/* 1: [*begin, *end) is the next match; 0: none; -1: error (filled in call). */
int apus_bpe_regex_next(apus_bpe_call *call, const apus_bpe_regex *r, apus_bpe_search *search, size_t *begin, size_t *end);

/* ---------------------------------------------------------------- source.c */

/* Reading a node of the tokenizer's file with errors that say where. */
apus_status apus_bpe_bad(const apus_node *n, apus_error *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Every key of map must be in the space-separated `known`. what: "normalizer 'Replace'". */
apus_status apus_bpe_keys(const apus_node *map, const char *what, const char *known, apus_error *err);
const char *apus_bpe_type(const apus_node *map); /* "" when none */
/* A boolean, `fallback` if absent or null. */
apus_status apus_bpe_bool(const apus_node *map, const char *what, const char *key, int fallback, int *out, apus_error *err);
/* A string that must be there. */
apus_status apus_bpe_string(const apus_node *map, const char *what, const char *key, const char **out, size_t *n, apus_error *err);
/* `pattern: {String: …}` or `{Regex: …}`. */
apus_status apus_bpe_pattern(const apus_node *map, const char *what, apus_bpe_regex **out, apus_error *err);
/* A string of one character. */
apus_status apus_bpe_one_char(const apus_node *map, const char *what, const char *key, uint32_t *c, apus_error *err);
/* An id; -1 with error. */
int32_t apus_bpe_id(const apus_node *n, const char *what, apus_error *err);

apus_status apus_bpe_open(apus_bpe *t, const apus_node *source, apus_error *err);

/* ---------------------------------------------------------------- normalize.c */

typedef enum {
    APUS_BPE_NFC,
    APUS_BPE_NFD,
    APUS_BPE_NFKC,
    APUS_BPE_NFKD,
    APUS_BPE_LOWERCASE,
    APUS_BPE_STRIP,
    APUS_BPE_STRIP_ACCENTS,
    APUS_BPE_REPLACE,
    APUS_BPE_PREPEND,
    APUS_BPE_NMT,
    APUS_BPE_BYTES
} apus_bpe_normal_kind;

typedef struct apus_bpe_normal {
    apus_bpe_normal_kind kind;
    int left, right;         /* STRIP */
    apus_bpe_regex *pattern; /* REPLACE */
    const char *text;        /* REPLACE's content, PREPEND's text */
    size_t n_text;
} apus_bpe_normal;

/* Appends to t's list. node: null, one normaliser or a Sequence. */
apus_status apus_bpe_normal_open(apus_bpe *t, const apus_node *node, apus_error *err);
/* *v becomes its normal form, held in call's buffers until the next call. */
apus_status apus_bpe_normalize(apus_bpe_call *call, apus_bpe_view *v);

/* ---------------------------------------------------------------- split.c */

typedef enum {
    APUS_BPE_SPLIT_REGEX,
    APUS_BPE_SPLIT_CLASS,
    APUS_BPE_SPLIT_WORDS,
    APUS_BPE_SPLIT_METASPACE,
    APUS_BPE_SPLIT_BYTELEVEL, /* add_prefix_space and the pattern */
    APUS_BPE_SPLIT_BYTES,     /* bytes to GPT-2's alphabet; left to the model when last */
    APUS_BPE_SPLIT_FIXED
} apus_bpe_split_kind;

typedef enum { APUS_BPE_REMOVED, APUS_BPE_ISOLATED, APUS_BPE_MERGED_WITH_PREVIOUS, APUS_BPE_MERGED_WITH_NEXT, APUS_BPE_CONTIGUOUS } apus_bpe_behavior;

typedef struct apus_bpe_split {
    apus_bpe_split_kind kind;
    apus_bpe_behavior behavior;
    int invert;
    apus_bpe_regex *pattern; /* REGEX; BYTELEVEL: NULL without use_regex, else ISOLATED */
    int (*member)(uint32_t); /* CLASS */
    uint32_t delimiter;      /* CLASS without member; METASPACE's replacement */
    int prepend;             /* METASPACE: 0 never, 1 first, 2 always; BYTELEVEL: add_prefix_space */
    int cut;                 /* METASPACE: split */
    size_t length;           /* FIXED: characters */
} apus_bpe_split;

apus_status apus_bpe_split_open(apus_bpe *t, const apus_node *node, apus_error *err);
/* Where pieces may go to threads: the last pattern, if what it makes of a text from the end of a match on depends on the text alone;
 * else the model (n_splits). */
size_t apus_bpe_split_dealt(const apus_bpe *t);
/* v cut by t's pre-tokenisers from `stage` on, each piece given to the model. */
apus_status apus_bpe_split_run(apus_bpe_call *call, size_t stage, const apus_bpe_view *v);

/* A stretch of a text that a pattern cuts, REMOVED or ISOLATED: from byte `from` on, as if a match had ended there, up to the first
 * match that ends at or behind `to`, or to what would be a piece that ends behind `limit`. */
typedef struct apus_bpe_part {
    size_t from, to, limit;
    struct apus_bpe_end {
        size_t at, n_tokens; /* byte; tokens of call->out before it */
    } * ends;                /* `from`, then where matches ended; freed by the caller */
    size_t n_ends, ends_capacity;
} apus_bpe_part;

/* v cut by the pattern of `stage`; part NULL: all of it. */
apus_status apus_bpe_split_pattern(apus_bpe_call *call, size_t stage, const apus_bpe_view *v, apus_bpe_part *part);

/* ---------------------------------------------------------------- model.c */

typedef struct apus_bpe_model apus_bpe_model;

apus_status apus_bpe_model_open(apus_bpe_model **out, const apus_node *node, apus_error *err);
void apus_bpe_model_close(apus_bpe_model *m);
/* Once the pipeline is known: bytes: pieces arrive raw, to be read through the byte alphabet. */
apus_status apus_bpe_model_ready(apus_bpe_model *m, int bytes, apus_error *err);
apus_status apus_bpe_model_encode(apus_bpe_call *call, const apus_bpe_view *piece);
/* The first place at or behind `from` where a piece may be cut in two with the same ids; its length when there is none. */
size_t apus_bpe_model_cut(const apus_bpe_model *m, const apus_bpe_view *piece, size_t from);
int32_t apus_bpe_model_id(const apus_bpe_model *m, const char *s, size_t n);      /* -1: none */
const char *apus_bpe_model_token(const apus_bpe_model *m, int32_t id, size_t *n); /* NULL: none */
int32_t apus_bpe_model_size(const apus_bpe_model *m);                             /* largest id + 1 */

/* ---------------------------------------------------------------- added.c */

typedef struct apus_bpe_token {
    const char *content; /* as written */
    size_t n;
    char *normal; /* as the normaliser leaves it, if that differs; else NULL */
    size_t n_normal;
    int32_t id;
    int single_word, lstrip, rstrip, normalized, special;
} apus_bpe_token;

/* Strings to find, as a trie: longest match from the leftmost start. */
typedef struct apus_bpe_trie {
    struct apus_bpe_trie_node {
        int32_t child, sibling, token; /* -1: none */
        unsigned char byte;
    } * nodes;
    size_t n, capacity;
    int32_t root[256]; /* nodes by first byte */
    int first;         /* the byte that all begin with; -1: there are several */
} apus_bpe_trie;

typedef struct apus_bpe_added {
    apus_bpe_token *tokens;
    size_t n;
    apus_bpe_trie plain, normal; /* found before, after normalising */
    int32_t *by_id;              /* [size]: index into tokens, or -1 */
    int32_t size;                /* largest id + 1 */
} apus_bpe_added;

apus_status apus_bpe_added_open(apus_bpe *t, const apus_node *list, apus_error *err);
void apus_bpe_added_close(apus_bpe_added *a);
/* The whole way from a well-formed text to ids. */
apus_status apus_bpe_added_run(apus_bpe_call *call, const apus_bpe_view *text);
const apus_bpe_token *apus_bpe_added_token(const apus_bpe_added *a, int32_t id);

/* ---------------------------------------------------------------- decode.c */

typedef enum {
    APUS_BPE_DECODE_BYTELEVEL,
    APUS_BPE_DECODE_REPLACE,
    APUS_BPE_DECODE_FALLBACK,
    APUS_BPE_DECODE_FUSE,
    APUS_BPE_DECODE_STRIP,
    APUS_BPE_DECODE_METASPACE,
    APUS_BPE_DECODE_WORDPIECE,
    APUS_BPE_DECODE_SUFFIX
} apus_bpe_decode_kind;

typedef struct apus_bpe_decode {
    apus_bpe_decode_kind kind;
    apus_bpe_regex *pattern; /* REPLACE */
    const char *text;        /* REPLACE's content, WORDPIECE's prefix, SUFFIX's suffix */
    size_t n_text;
    uint32_t c;         /* STRIP's content, METASPACE's replacement */
    size_t start, stop; /* STRIP */
    int flag;           /* METASPACE: the first token loses its marks; WORDPIECE: cleanup */
} apus_bpe_decode;

apus_status apus_bpe_decode_open(apus_bpe *t, const apus_node *node, apus_error *err);
apus_status apus_bpe_decode_run(apus_bpe_call *call, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length);

/* ---------------------------------------------------------------- parallel.c */

/* Until the end: what call emits from stage t->dealt on is made by `threads` threads, the caller's among them, from about `size`
 * bytes at a time. */
apus_status apus_bpe_team_open(apus_bpe_call *call, int threads, size_t size);
apus_status apus_bpe_team_end(apus_bpe_call *call); /* everything is in call->out; the first error, in the text's order */
/* v to stage t->dealt, an added token: to be emitted in their order. v is not kept. */
apus_status apus_bpe_deal(apus_bpe_call *call, const apus_bpe_view *v);
apus_status apus_bpe_deal_token(apus_bpe_call *call, int32_t id, uint32_t begin);

/* ---------------------------------------------------------------- the tokenizer */

struct apus_bpe {
    const apus_host *host;
    apus_bpe_normal *normals;
    size_t n_normals, normals_capacity;
    apus_bpe_split *splits;
    size_t n_splits, splits_capacity;
    size_t dealt; /* the stage whose pieces go to threads: the last pattern's, or n_splits: the model */
    apus_bpe_decode *decodes;
    size_t n_decodes, decodes_capacity;
    int no_decoder; /* tokens are joined with spaces */
    apus_bpe_model *model;
    apus_bpe_added added;
    int32_t *before, *after; /* ids the post-processor adds */
    size_t n_before, n_after;
    int32_t size;
};

typedef struct apus_bpe_symbol {
    int32_t id;     /* -1: merged away */
    uint32_t begin; /* byte of the piece */
    uint32_t prev, next;
} apus_bpe_symbol;

typedef struct apus_bpe_merge {
    uint64_t order; /* rank << 32 | position: least first */
    int32_t id;
} apus_bpe_merge;

/* One call's work space. */
struct apus_bpe_call {
    const apus_bpe *t;
    int flags;
    apus_tokens *out;
    apus_error *err;
    apus_bpe_team *team; /* NULL: this thread does it all */
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *match_context;
    struct pcre2_real_jit_stack_8 *match_stack;
    apus_bpe_buffer repaired, normal[2], word;
    apus_bpe_buffer *stages; /* [n_splits]: texts that a pre-tokeniser changed */
    uint32_t *chars;         /* normal forms: characters of a stretch and where they began */
    uint32_t *chars_at;
    size_t chars_capacity, chars_at_capacity;
    apus_bpe_symbol *symbols;
    size_t n_symbols, symbols_capacity;
    apus_bpe_merge *heap;
    size_t n_heap, heap_capacity;
};

extern const apus_host *apus_bpe_host; /* set once at entry */

apus_status apus_bpe_call_open(apus_bpe_call *call, const apus_bpe *t, apus_error *err);
void apus_bpe_call_close(apus_bpe_call *call);
apus_status apus_bpe_memory(apus_error *err);
/* Append one id. */
apus_status apus_bpe_emit(apus_bpe_call *call, int32_t id, uint32_t begin);
/* Room for `more` ids. */
apus_status apus_bpe_emit_reserve(apus_bpe_call *call, size_t more);

#endif
