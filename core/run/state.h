/* core/run/state: a pipeline with its device and run folder, open: what running and planning share. For the files of core/run only. */
#ifndef APUS_CORE_RUN_STATE_H
#define APUS_CORE_RUN_STATE_H

#include "graph/graph.h"
#include "run/pipeline.h"
#include "run/stage.h"

typedef struct apus_run_state {
    apus_pipeline pipeline;
    apus_device *device;
    apus_node **results; /* by stage; NULL: not done */
    char (*keys)[65];
    char cache_dir[4200];
    int64_t now; /* when the run began, kept over restarts */
    int lock_fd;
} apus_run_state;

/* Writes nothing to the run folder. Close also after a failure. */
apus_status apus_run_open(apus_run_state *r, const char *file, const apus_run_options *options, apus_error *err);
void apus_run_close(apus_run_state *r);

/* RUN/STAGE, RUN/STAGE/result.json. */
void apus_run_stage_paths(const apus_run_state *r, size_t i, char *dir, char *result, size_t capacity);
/* What stage i is given whether it runs or is planned. dir: RUN/STAGE, and outlives it. */
apus_stage_context apus_run_stage_context(const apus_run_state *r, size_t i, const char *dir);
/* The result of a stage that is done with its key; NULL otherwise. owner: caller. */
apus_node *apus_run_done(const apus_run_state *r, size_t i);

#endif
