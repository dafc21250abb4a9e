/*
 * core/model/runner: the model run over a paged cache: its plan, the cache's memory on the device, and the batch being composed. Knows
 * rows of tokens and pages, not requests.
 */
#ifndef APUS_CORE_RUNNER_H
#define APUS_CORE_RUNNER_H

#include "model/model.h"

typedef struct apus_runner {
    apus_model *model;
    int64_t most_tokens, most_rows; /* of one run */
    int64_t pages;                  /* of the cache */
    int64_t columns;                /* of the page table: the longest row */
    int uses_lengths;               /* keys depend on how long their sequence is: some rope scalings */
    apus_graph *graph;
    apus_plan *plan; /* NULL until the cache has pages */
    void **cache;    /* [n_cache] device memory of the plan's cache variables, in their order */
    size_t *cache_bytes, n_cache;
    int32_t *tokens, *positions, *lengths, *slots; /* [most_tokens]: the batch */
    int32_t *scored;                               /* [most_rows] */
    int32_t *table;                                /* [most_rows, columns] */
    int64_t n_tokens, n_rows, n_scored;
} apus_runner;

/* On failure apus_runner_close has still to be called. */
apus_status apus_runner_open(apus_runner *r, apus_model *m, int64_t most_tokens, int64_t most_rows, apus_error *err);
void apus_runner_close(apus_runner *r);
/* A cache of more pages; what is in those there stays, and so does the batch being composed. On failure all is as it was. */
apus_status apus_runner_grow(apus_runner *r, int64_t pages, apus_error *err);

/* What it runs, as apus_plan_describe tells it: of the smallest cache, as the kernels are the same for any. plan: the caller's. */
apus_status apus_runner_describe(const apus_runner *r, apus_node **plan, apus_error *err);

/* The next batch is empty. */
void apus_runner_clear(apus_runner *r);
/* `count` tokens of a sequence from position `begin` on join the batch: ids and pages: of the whole sequence; n_prompt: ids of its
 * prompt. scored: the logits of its last token are wanted; gives their row, else -1. */
int32_t apus_runner_add(apus_runner *r, const int32_t *ids, size_t begin, size_t count, size_t n_prompt, const int32_t *pages, int scored);
apus_status apus_runner_run(apus_runner *r, apus_error *err);
/* Of the last run: [n_scored, vocab] on the device. */
apus_view apus_runner_logits(const apus_runner *r);

#endif
