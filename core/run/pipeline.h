/*
 * core/run/pipeline: a pipeline file, validated: its stages with every parameter typed and every name looked up. Shared by the files
 * of core/run.
 */
#ifndef APUS_CORE_PIPELINE_H
#define APUS_CORE_PIPELINE_H

#include <apus/plugin.h>
#include <apus/session.h>

#include "run/run.h"

typedef struct apus_pipeline_stage {
    char *name; /* "align"; default: the type, made unique */
    const apus_component *component;
    apus_node *params; /* validated; nested components complete; earlier stages as {stage: name} */
    uint64_t seed;
} apus_pipeline_stage;

typedef struct apus_pipeline {
    apus_node *config;   /* the file, merged and interpolated */
    apus_node *settings; /* run, seed, backend, …: validated */
    char *run_dir;
    apus_pipeline_stage *stages;
    size_t n_stages;
} apus_pipeline;

/* Read and validate all that can be without running. */
apus_status apus_pipeline_load(const char *file, const apus_run_options *options, apus_pipeline *p, apus_error *err);
void apus_pipeline_free(apus_pipeline *p);
/* Parameters of a pipeline's top level and of every stage. */
const apus_param *apus_pipeline_params(uint32_t *n);
const apus_param *apus_pipeline_stage_params(uint32_t *n);
/* Which places have this key (apus_key_places of config.h). */
void apus_pipeline_places(const char *key, char *text, size_t capacity);

/* Copy of params in which earlier stages' models stand for {stage: name}. results[i]: result of stage i. owner: caller. */
apus_node *apus_pipeline_wire(const apus_node *params, const apus_pipeline *p, apus_node *const *results);

/* Folder of token caches: the file's `cache`, $APUS_CACHE, or the user's. */
void apus_pipeline_cache(const apus_pipeline *p, char *path, size_t capacity);

/* Hash of what makes stage i: parameters, seed, backend, plugins, files; keys[] of earlier stages. */
apus_status apus_pipeline_key(const apus_pipeline *p, size_t i, const char (*keys)[65], const char *cache_dir, char hex[65], apus_error *err);

#endif
