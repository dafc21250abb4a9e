/*
 * core/model/score: log-probabilities and logits of a text that is there, by the training path: segments, no cache. And the vocabulary
 * head as logits, for whoever needs them all.
 */
#ifndef APUS_CORE_SCORE_H
#define APUS_CORE_SCORE_H

#include "model/model.h"

/* Logits [N, vocab] of the rows of the hidden states that the i32 input `pick` [N] names; N: APUS_DIM_SCORED. */
apus_tensor apus_model_logits(apus_graph *g, const apus_forward *f, const char *pick);

/* Log-probabilities of each next token of ids: logprobs [n-1] is log p(ids[i+1] | ids[0..i]). logits: float32 [n, vocab] when not
 * NULL (owner: caller). */
apus_status apus_model_score(apus_model *m, const int32_t *ids, size_t n, double *logprobs, float *logits, apus_error *err);

#endif
