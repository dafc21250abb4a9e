/* tools/apus/answer.h: what the verbs that answer share. */
#ifndef APUS_TOOLS_ANSWER_H
#define APUS_TOOLS_ANSWER_H

#include "apus.h"
#include "model/engine.h"

enum { APUS_N_SAMPLING = 5 };
extern const char *const apus_sampling_names[APUS_N_SAMPLING]; /* parameters of the standard sampler, as options and as keys */

typedef struct apus_answer_arguments {
    apus_model_arguments model;
    const char *prompt, *messages, *prompts, *out, *tools, *max_tokens, *seed, *stop, *parallel, *cache_tokens, *whose;
    const char *sampling[APUS_N_SAMPLING];
    int json, parse_special;
    int64_t most, seed_number, together, room; /* max_tokens, seed, parallel, cache_tokens as numbers, or their defaults */
} apus_answer_arguments;

/* {sampler: {type: standard, …}, max_tokens, stop}. owner: caller. */
apus_node *apus_answer_sampling(const apus_answer_arguments *a, const apus_model *m);
/* 0, or an exit code (said). */
int apus_answer_open(const apus_answer_arguments *a, int64_t parallel, apus_device **device, apus_generator **g);
/* Answer the requests of the file a->prompts, a line each. The exit code. */
int apus_answer_prompts(const apus_answer_arguments *a);

#endif
