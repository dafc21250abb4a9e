/*
 * apus/tokenizer.h: the kind "tokenizer": text to ids and back.
 *
 * The source of a tokenizer is always one node in the shape of Hugging Face's tokenizer.json. Formats that
 * hold a vocabulary otherwise (GGUF, GPT-2's encoder.json + vocab.bpe) turn it into that shape, so there is one reader.
 */
#ifndef APUS_TOKENIZER_H
#define APUS_TOKENIZER_H

#include <apus/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens of a text. The tokenizer grows the arrays with host->realloc; the caller zeroes it first, may reuse it
 * (n = 0) and frees ids and begin with host->free. FROZEN. */
typedef struct apus_tokens {
    int32_t *ids;
    uint32_t *begin;   /* [n] byte of the input where the token's text begins; tokens added by the post-processor: the nearest */
    size_t n, capacity;
} apus_tokens;

enum {
    APUS_ENCODE_SPECIAL_TEXT = 1, /* strings of special tokens in the text become those tokens, else they are ordinary text;
                                     added tokens that are not special are found either way, as Hugging Face does */
    APUS_ENCODE_ADD_SPECIAL = 2   /* add what the post-processor adds (BOS, …) */
};

typedef struct apus_tokenizer_ops {
    uint32_t size;
    /* How sure this plugin is that it reads `source` (tokenizer.json's node): 0 not at all … 100. [any] */
    int (*claims)(const apus_node *source);
    /* Read-only after open. params: the component's. source stays valid while the tokenizer is open. [main] */
    apus_status (*open)(const apus_host *host, const apus_node *params, const apus_node *source, void **tokenizer, apus_error *err);
    void (*close)(void *tokenizer);
    /* Append the tokens of text[0..length). Invalid UTF-8 reads as U+FFFD, as Python's errors='replace'. [any] */
    apus_status (*encode)(void *tokenizer, const char *text, size_t length, int flags, apus_tokens *out, apus_error *err);
    /* Text of ids as the decoder writes it; *text owned by the caller (host->free), NUL-terminated. skip_special: leave
     * special tokens out. Equals transformers' decode(clean_up_tokenization_spaces=False). [any] */
    apus_status (*decode)(void *tokenizer, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length, apus_error *err);
    int32_t (*vocab_size)(void *tokenizer);                              /* ids are 0 … vocab_size-1 (added tokens included) */
    const char *(*token)(void *tokenizer, int32_t id, size_t *length);   /* as written in the vocabulary; NULL when none */
    int32_t (*id)(void *tokenizer, const char *token);                   /* exact vocabulary entry; -1 when none */
    int (*is_special)(void *tokenizer, int32_t id);
    /* As encode, token for token, on up to `threads` threads: the caller's and the tokenizer's own, which end before it returns.
     * Each is given about `part` bytes at a time (> 0): what that takes for each thread comes on top of the tokens. NULL: encode
     * does. [any] */
    apus_status (*encode_parallel)(void *tokenizer, const char *text, size_t length, int flags, int threads, size_t part, apus_tokens *out,
                                   apus_error *err);
} apus_tokenizer_ops;

#ifdef __cplusplus
}
#endif
#endif
