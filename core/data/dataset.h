/*
 * core/data/dataset: rows of data files -> examples (dataset plugins) -> token rows in a memory-mapped cache, ready to train on.
 */
#ifndef APUS_CORE_DATASET_H
#define APUS_CORE_DATASET_H

#include "data/text.h"

/* Tokens that see each other: count tokens from begin; the keys of segment `parent` (earlier in the row; -1: none) come first. */
typedef struct apus_row_segment {
    uint32_t begin, count;
    int32_t parent;
    int32_t answer; /* which answer its trained tokens belong to; -1: none of it is trained */
} apus_row_segment;

/* One row as trained. Text: a segment per document. Conversation: one segment, one answer. Preference: prompt, chosen
 * (answer 0), rejected (answer 1): the prompt stands once; or both sequences whole. trained[t]: t is a target, predicted from its predecessor: the
 * token before it in its segment, or the parent's last. A segment's first token without a parent is never trained. */
typedef struct apus_row {
    uint64_t source; /* index of the row in its dataset, as the reports name it */
    uint32_t n_tokens, n_segments, n_answers, n_trained;
    const int32_t *ids;     /* [n_tokens] */
    const uint8_t *trained; /* [n_tokens] */
    const apus_row_segment *segments;
    const double *reference_logps; /* [n_answers] when the file had them; NULL: none */
} apus_row;

typedef struct apus_dataset apus_dataset;

/* What all rows of a dataset keep within, and their sums. */
typedef struct apus_dataset_bounds {
    uint64_t rows, tokens, trained;
    uint32_t longest, segments, answers; /* of one row */
    int32_t largest_id, reserved;        /* of a part that was split off: the whole's */
} apus_dataset_bounds;

void apus_dataset_bounds_add(apus_dataset_bounds *b, const apus_row *r); /* all but largest_id */

/* The parameters every dataset mapping takes beside its type's own: path, type, max_length, overlong, train_on, shuffle, columns,
 * system, split, samples… The single table that validation, schema and help use. */
const apus_param *apus_dataset_params(uint32_t *n);

typedef struct apus_dataset_options {
    const apus_text *text; /* NULL: only rows of ready-made ids */
    int pairs;             /* 1: preference pairs wanted; 0: single sequences */
    int apart;             /* 1: a pair's prompt stands before each answer: nothing may be shared (length_dependent) */
    const char *cache_dir; /* NULL: no cache on disk */
    uint64_t seed;
    int threads;                                  /* that tokenise; 0: as many as the cores this process may use. They change nothing else */
    void (*say)(void *context, const char *line); /* counted lines: recognised type, drops, cuts; may be NULL */
    void *context;
} apus_dataset_options;

/* Validate without reading rows (the file must exist): for `check`. spec: a path, a mapping or a list of them. */
apus_status apus_dataset_check(const apus_node *spec, apus_error *err);

/* Read, recognise, render, tokenise, cut; everything dropped or cut is counted. A dataset left with no row is an error. With a
 * cache the rows stay in its file, mapped, and memory does not grow with their number. */
apus_status apus_dataset_open(const apus_node *spec, const apus_dataset_options *options, apus_dataset **dataset, apus_error *err);
void apus_dataset_close(apus_dataset *d);
size_t apus_dataset_rows(const apus_dataset *d);
apus_row apus_dataset_row(const apus_dataset *d, size_t i); /* [any] */
const apus_dataset_bounds *apus_dataset_limits(const apus_dataset *d);
/* {rows, tokens, trained_tokens, type, dropped: {reason: {count, rows: [first 20]}}, cut: {…}, files: [{path, sha256}], key}. */
const apus_node *apus_dataset_report(const apus_dataset *d);
/* Split off: `fraction_or_rows` (a share below 1, or rows) for eval: of as many stretches of d, about equal, one row each, chosen by
 * seed. Both keep d's order and need d alive. For eval_split. */
apus_status apus_dataset_split(apus_dataset *d, double fraction_or_rows, uint64_t seed, apus_dataset **train, apus_dataset **eval, apus_error *err);

/* The order of n rows in an epoch: a permutation that is a function of (seed, epoch) alone; identity when !shuffle. Takes no memory,
 * and each place of it the same short time: a Feistel network over the next power of two, walked until inside (Black & Rogaway, "Ciphers
 * with arbitrary finite domains", 2002). */
typedef struct apus_row_order {
    uint64_t seed, epoch;
    size_t n;
    int shuffle;
} apus_row_order;
size_t apus_row_order_at(const apus_row_order *o, size_t i); /* i < n */
int apus_dataset_shuffles(const apus_dataset *d);            /* the spec's `shuffle` */

/* The rows before tokenising, for generation, judging and preview: row i (after samples/columns/system) and its example. Memory does not
 * grow with their number: asking in order, and back by some, is fast; going far back reads the file anew. */
typedef struct apus_examples apus_examples;
apus_status apus_examples_open(const apus_node *spec, uint64_t seed, apus_examples **examples, apus_error *err);
void apus_examples_close(apus_examples *e);
apus_status apus_examples_count(apus_examples *e, int64_t *count, apus_error *err);
apus_status apus_examples_get(apus_examples *e, int64_t i, apus_node **row, apus_node **example, apus_error *err); /* owner: caller */
apus_status apus_examples_judge(const apus_examples *e, const apus_node *row, const char *answer, apus_node **verdict, apus_error *err);
apus_node *apus_examples_tokenizer(const apus_examples *e); /* owner: caller; NULL: none */

#endif
