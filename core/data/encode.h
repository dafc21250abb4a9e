/* core/data/encode: an example -> token rows, cut to max_length by the policy; counted where something is lost. */
#ifndef APUS_CORE_ENCODE_H
#define APUS_CORE_ENCODE_H

#include "data/spec.h"

/* Growing token rows: the arrays that a cache file holds. */
typedef struct apus_row_record {
    uint64_t source, tokens, segments; /* first token and segment */
    uint32_t n_tokens, n_segments, n_answers, n_trained;
    int32_t has_reference, reserved;
    double reference[2];
} apus_row_record;

typedef struct apus_row_store {
    apus_row_record *rows;
    int32_t *ids;
    uint8_t *trained;
    apus_row_segment *segments;
    size_t n_rows, cap_rows, n_tokens, cap_ids, cap_trained, n_segments, cap_segments;
} apus_row_store;

void apus_row_store_free(apus_row_store *s);
/* r's arrays are copied. */
apus_status apus_row_store_add(apus_row_store *s, const apus_row *r);
apus_row apus_row_store_get(const apus_row_store *s, size_t i);
apus_status apus_row_store_append(apus_row_store *s, const apus_row_store *more);

enum { APUS_LOSS_PROMPT_FILLS, APUS_LOSS_TOO_LONG, APUS_LOSS_NOTHING_TRAINED, APUS_LOSS_CUT, APUS_N_LOSSES };
extern const char *const apus_loss_reasons[APUS_N_LOSSES];

/* What was lost, by reason: how many rows, and the first of them. */
typedef struct apus_losses {
    uint64_t count[APUS_N_LOSSES];
    uint64_t first[APUS_N_LOSSES][20];
} apus_losses;

void apus_losses_add(apus_losses *l, int reason, uint64_t row);

typedef struct apus_encoder {
    const apus_text *text;      /* NULL: ready-made ids only */
    int pairs, apart;           /* as in apus_dataset_options */
    int64_t max_length;
    const char *overlong;       /* NULL: the default of the example's shape */
    int train_last;
    const apus_node *variables; /* of the template */
} apus_encoder;

/* Encode one example. Documents ({text}) come out as one row each, uncut: apus_pack_documents makes rows of them. *document: 1. */
apus_status apus_encode_example(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_losses *losses,
                                int *document, apus_error *err);

/* Concatenate documents and cut into rows of max_length, each document a segment (or more); the last short row is kept.
 * overlong right/left/drop/error: documents are cut one by one instead of split. */
apus_status apus_pack_documents(const apus_encoder *e, const apus_row_store *documents, apus_row_store *out, apus_losses *losses, apus_error *err);

#endif
