/*
 * core/model/engine: many answers at once: continuous batching over a paged cache of keys and values. The functions behind the
 * generator of apus/session.h, where their rules are.
 *
 *   submit    reply.c    the request's prompt as ids, its sampler, its stops; it waits
 *   admit     engine.c   pages for all its tokens; those that hold the same prefix already are shared
 *   compose   engine.c   every answer at work adds its next token to the batch, prompts fill what is left of it
 *   run       runner.c   the model, over the cache; logits of the rows that choose a token
 *   choose    engine.c   on the backend's threads
 *   take      reply.c    text, stop strings, pieces; who is finished leaves, its pages are kept while room lasts
 *
 * A token's keys, values and logits have the same bits whatever else is in the batch, however its prompt was cut, whoever computed its
 * prefix: kernels promise it row by row, and no result here depends on which rows there are.
 */
#ifndef APUS_CORE_ENGINE_H
#define APUS_CORE_ENGINE_H

#include <apus/session.h>

#include "model/model.h"

typedef struct apus_generator_options {
    int parse_special;    /* special-token strings inside message content become tokens */
    int64_t parallel;     /* answers at work at once; 0: 1 */
    int64_t cache_tokens; /* positions the cache may hold; 0: what the requests at work may need */
    int64_t batch_tokens; /* tokens of one run; 0: 256; never fewer than parallel */
} apus_generator_options;

/* Takes the model, also on failure. */
apus_status apus_generator_new(apus_model *m, const apus_generator_options *options, apus_generator **generator, apus_error *err);
void apus_generator_free(apus_generator *g);
/* Its weights may lie packed, as only answering reads them: to score or export, open another. */
apus_model *apus_generator_model(apus_generator *g);
/* What it runs, as apus_plan_describe tells it. plan: the caller's. */
apus_status apus_generator_describe(apus_generator *g, apus_node **plan, apus_error *err);

apus_status apus_generator_submit(apus_generator *g, const apus_generate_request *request, uint64_t *ticket, apus_error *err);
void apus_generator_cancel(apus_generator *g, uint64_t ticket);
apus_status apus_generator_step(apus_generator *g, size_t *pending, apus_error *err);
apus_status apus_generator_answer(apus_generator *g, const apus_generate_request *request, apus_node **answer, apus_error *err);

/* What happened so far. */
typedef struct apus_generator_counts {
    int64_t steps;
    int64_t computed;          /* tokens run through the model */
    int64_t cached;            /* prompt tokens that another request's pages already held */
    int64_t preempted;         /* times an answer gave up its pages */
    int64_t pages, pages_held; /* now: in the cache; held by requests at work */
} apus_generator_counts;
apus_generator_counts apus_generator_get_counts(const apus_generator *g);

#endif
