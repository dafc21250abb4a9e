/*
 * core/model/sampling: what a model's generation_config.json says of sampling. Nothing follows it unless asked to: an answer depends on
 * what its asker wrote, not on a file beside the weights.
 */
#ifndef APUS_CORE_SAMPLING_H
#define APUS_CORE_SAMPLING_H

#include "model/model.h"

/* A sampler by the model's generation_config.json, with transformers' defaults where it samples (temperature 1, top_k 50). owner: caller. */
apus_node *apus_model_sampler(const apus_model *m);

/* "generation_config.json also says temperature 0.6, top_p 0.95: ignored": what of it goes unused, when nothing asks for it; 0: nothing. */
int apus_model_sampling_ignored(const apus_model *m, char *line, size_t capacity);

#endif
