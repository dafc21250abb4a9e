/* core/data/encode: an example -> token rows, cut to max_length by the policy; counted where something is lost. */
#ifndef APUS_CORE_ENCODE_H
#define APUS_CORE_ENCODE_H

#include "data/spec.h"
#include "data/store.h"

enum { APUS_LOSS_PROMPT_FILLS, APUS_LOSS_TOO_LONG, APUS_LOSS_NOTHING_TRAINED, APUS_LOSS_CUT, APUS_N_LOSSES };
enum { APUS_LOSSES_LISTED = 20 };
extern const char *const apus_loss_reasons[APUS_N_LOSSES];

/* What was lost, by reason: how many rows, and the first of them. */
typedef struct apus_losses {
    uint64_t count[APUS_N_LOSSES];
    uint64_t first[APUS_N_LOSSES][APUS_LOSSES_LISTED];
} apus_losses;

void apus_losses_add(apus_losses *l, int reason, uint64_t row);

typedef struct apus_encoder {
    const apus_text *text; /* NULL: ready-made ids only */
    int pairs, apart;      /* as in apus_dataset_options */
    int64_t max_length;
    const char *overlong; /* NULL: the default of the example's shape */
    int train_last;
    const apus_node *variables; /* of the template */
    int threads;                /* that one long text may take: apus_ingest sets it. It changes no token */
} apus_encoder;

/* Encode one example into rows. A document that is to be split goes to `documents` whole: apus_packer makes rows of it. */
apus_status apus_encode_example(const apus_encoder *e, const apus_node *example, uint64_t source, apus_row_store *out, apus_row_store *documents,
                                apus_losses *losses, apus_error *err);

/* Documents, one behind the other, cut into rows of max_length; each is a segment of the rows it lies in. */
typedef struct apus_packer {
    int32_t *ids; /* of the row that is not full yet: [most] each */
    uint8_t *trained;
    apus_row_segment *segments;
    size_t most;
    uint32_t n_tokens, n_segments;
    uint64_t source;
} apus_packer;

apus_status apus_packer_open(apus_packer *p, int64_t max_length, apus_error *err);
apus_status apus_packer_add(apus_packer *p, const apus_row *document, apus_row_sink *out, apus_error *err);
apus_status apus_packer_end(apus_packer *p, apus_row_sink *out, apus_error *err); /* the last short row is kept */
void apus_packer_close(apus_packer *p);

#endif
