/*
 * core/run: pipelines: a file of stages -> a run folder. Stages are wired by name; a stage's output is keyed by the hash of
 * what made it and is reused when nothing changed.
 */
#ifndef APUS_CORE_RUN_H
#define APUS_CORE_RUN_H

#include "graph/graph.h"

/* Announce the extensions, load the plugins (see apus_modules_load), register ops and kernels. Once, first. [main] */
apus_status apus_start(const char *const *plugin_dirs, size_t n, apus_error *err);

typedef struct apus_run_options {
    const char *const *overrides; /* "key.path=value" */
    size_t n_overrides;
    int force;   /* redo stages even when their outputs are there */
    int untuned; /* without backend.tuning */
} apus_run_options;

/* Run (or resume, or reuse) the pipeline in `file`. [main] */
apus_status apus_run_file(const char *file, const apus_run_options *options, apus_error *err);
/* Validate everything that can be without running: keys, types, names, files, references between stages. */
apus_status apus_check_file(const char *file, const apus_run_options *options, apus_error *err);
/* What `run` would do: {stages: [{name, stage, key, done, waits_for, unknown: why it is not known yet, and what the stage's `plan` tells}], seconds:
 * of the stages that have an estimate, not_estimated: [names of the others that are to do]}. owner: caller. */
apus_status apus_plan_file(const char *file, const apus_run_options *options, apus_node **plan, apus_error *err);
/* Time the kernels of every plugin for what the trainings in `file` compute, and write which are the fastest to the tuning file `out`; NULL:
 * the one that backend.tuning names, else FILE.tuning.yaml beside `file`. *written: its name; owner: caller (host->free). */
apus_status apus_tune_file(const char *file, const apus_run_options *options, const char *out, const apus_trial_found *found, char **written,
                           apus_error *err);
/* JSON Schema of pipeline files from all parameter tables. owner: caller. */
apus_node *apus_pipeline_schema(apus_error *err);

/* "runs/x:align" (or a stage's folder) -> the model spec it made; anything else -> a spec of the path. owner: caller. */
apus_node *apus_model_locate(const char *name, apus_error *err);

#endif
