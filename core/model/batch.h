/*
 * core/model/batch: rows of a global batch -> the arrays a plan is fed with, micro-batch by micro-batch. The cut is by tokens and
 * whole rows; it depends on the rows, the target and the capacity alone.
 */
#ifndef APUS_CORE_BATCH_H
#define APUS_CORE_BATCH_H

#include "data/dataset.h"
#include "graph/graph.h"

#define APUS_BATCH_FEEDS 16

typedef struct apus_batch {
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    int64_t target; /* tokens; only a row that is longer by itself goes beyond */
    int64_t extents[APUS_N_DIM_SYMBOLS];
    int32_t *tokens, *positions, *lengths;         /* [T] */
    int64_t *token_index;                          /* [T] in the global batch */
    int32_t *segments;                             /* [S,4] */
    int32_t *scored, *targets, *token_rows;        /* [N] hidden row, target id, loss row */
    double *ones;                                  /* [N] */
    double *row_tokens;                            /* [R] */
    int32_t *chosen_rows, *rejected_rows;          /* [P] */
    double *pair_ones;                             /* [P] */
    double *reference_chosen, *reference_rejected; /* [P] */
    int64_t random[2];                             /* {seed, step} */
    apus_feed feeds[APUS_BATCH_FEEDS];
    size_t n_feeds;
} apus_batch;

/* Capacities that hold `batch_size` rows of any of the datasets (NULL allowed), cut at about `target` tokens. */
void apus_batch_capacity(const apus_dataset *const *datasets, size_t n_datasets, size_t batch_size, int64_t target,
                         int64_t capacity[APUS_N_DIM_SYMBOLS]);
/* target: as many tokens as are filled in, unless one row alone has more. */
apus_status apus_batch_init(apus_batch *b, const int64_t capacity[APUS_N_DIM_SYMBOLS], int64_t target, apus_error *err);
void apus_batch_free(apus_batch *b);

/* Fill with rows order[begin …) as long as they fit; returns how many were taken (at least 1). index_base: token index of the
 * first token in the global batch. */
size_t apus_batch_fill(apus_batch *b, const apus_dataset *d, const apus_row_order *order, size_t begin, size_t end, int64_t index_base);

#endif
