/*
 * core/model/generate: answers: prompt -> tokens, one by one, over a paged key/value cache. Log-probabilities and scores of a text.
 */
#ifndef APUS_CORE_GENERATE_H
#define APUS_CORE_GENERATE_H

#include <apus/session.h>

#include "model/model.h"

/* Takes the model. parse_special: special-token strings inside message content become tokens. */
apus_generator *apus_generator_new(apus_model *m, int parse_special, apus_error *err);
void apus_generator_free(apus_generator *g);
apus_model *apus_generator_model(apus_generator *g);

/* See apus_session_api.generate. request->sampling: {sampler: component spec, max_tokens, stop: [strings]}. */
apus_status apus_generator_answer(apus_generator *g, const apus_generate_request *request, apus_node **answer, apus_error *err);

/* Log-probabilities of each next token of ids: logprobs [n-1] is log p(ids[i+1] | ids[0..i]). logits: float32 [n, vocab] when not
 * NULL (owner: caller). By the training path: segments, no cache. */
apus_status apus_model_score(apus_model *m, const int32_t *ids, size_t n, double *logprobs, float *logits, apus_error *err);

#endif
