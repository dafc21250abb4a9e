/*
 * core/model/reply: one answer on its way: its prompt's ids, what was said so far, how the next token is chosen, the text, when it
 * ends. Knows no batch and no cache.
 */
#ifndef APUS_CORE_REPLY_H
#define APUS_CORE_REPLY_H

#include <apus/session.h>

#include "model/model.h"

/* Text of ids that come one by one: only the tail that a new token can change is decoded again, behind a context of ids whose text is
 * known. The text always equals that of decoding all ids at once. */
typedef struct apus_detokenizer {
    char *bytes; /* [n], NUL after them: the text of all ids so far */
    size_t n, capacity;
    size_t sure;             /* leading bytes that no later token changes */
    size_t known;            /* leading ids whose text they are */
    size_t context, overlap; /* decoding from id `context` on begins with the last `overlap` bytes of the sure text */
} apus_detokenizer;

/* ids [n]: those of the calls before and one more. Errors: the tokenizer's. */
apus_status apus_detokenize(apus_detokenizer *d, const apus_text *text, const int32_t *ids, size_t n, apus_error *err);
void apus_detokenizer_free(apus_detokenizer *d);

typedef struct apus_reply {
    apus_model *model;
    uint64_t seed;
    uint32_t index;
    int wants_logprobs;
    int (*piece)(void *context, const char *text, size_t length);
    void (*done)(void *context, const apus_answer *answer);
    void *context;
    apus_node *stops; /* a list of strings */
    size_t longest_stop;
    apus_sampler_ops ops;
    void *sampler;
    size_t n_prompt, most; /* ids in all, at most */
    int32_t *ids;          /* [n], prompt first */
    double *logprobs;      /* [n - n_prompt]; NULL unless wanted */
    size_t n, capacity;
    apus_detokenizer text;
    size_t told;        /* bytes of the text given to `piece` */
    const char *finish; /* NULL while it goes on */
    apus_status status; /* not APUS_OK: it ended so, `error` says why */
    apus_error error;
} apus_reply;

/* Everything of the request is copied. On failure there is nothing to close. */
apus_status apus_reply_open(apus_reply *r, apus_model *m, int parse_special, const apus_generate_request *request, apus_error *err);
void apus_reply_close(apus_reply *r);
/* The next token from its logits [vocab], which may be changed. Its log-probability, if wanted, is `logits[id] - lse`. [any], for
 * different replies at the same time */
apus_status apus_reply_choose(apus_reply *r, float *logits, int32_t *id, apus_error *err);
/* The token was chosen: text, pieces, stops; sets finish where it ends, also by an error. */
void apus_reply_take(apus_reply *r, int32_t id, double logprob);
void apus_reply_fail(apus_reply *r, apus_status status, const apus_error *why);
/* owner: the reply, until it takes another token. */
apus_answer apus_reply_answer(const apus_reply *r);

#endif
