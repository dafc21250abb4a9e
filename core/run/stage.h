/*
 * core/run/stage: one running stage: where it writes, what it was given, who hears of its events. Made by the pipeline; the
 * session functions (core/model) work inside it.
 */
#ifndef APUS_CORE_STAGE_H
#define APUS_CORE_STAGE_H

#include <apus/session.h>

#include "graph/graph.h"

struct apus_stage_context {
    const char *run_dir, *stage_dir, *name;
    uint64_t seed;
    int64_t now; /* start of the run, seconds since the epoch: what strftime_now formats */
    apus_device *device;
    const char *cache_dir;                        /* token caches; NULL: none */
    int64_t memory_limit;                         /* bytes; 0: none */
    int profile;                                  /* trainings: STAGE/trace.json */
    double tokens_per_second;                     /* planning: of an earlier run of the same training here; 0: not known */
    const char *key;                              /* hash of what makes this stage's output: checkpoints carry it */
    struct apus_stage_log *log;                   /* events.jsonl and the trackers */
    apus_node *result;                            /* set by the stage */
    void (*say)(void *context, const char *line); /* a counted line for the report and the console */
    void *say_context;
};

/* What was decided for this stage (kernels, packing, cut, recompute), into RUN/run.lock under plans.NAME; takes it. Nothing while planning. */
apus_status apus_stage_chose(apus_stage_context *s, apus_node *chosen, apus_error *err);
/* Append one event (takes it) to events.jsonl and tell the trackers. */
apus_status apus_stage_event(apus_stage_context *s, apus_node *event, apus_error *err);
/* Bytes of events.jsonl so far, which are on disk when this returns: a checkpoint keeps the number. -1 with an error: they are not. */
int64_t apus_stage_events_sync(apus_stage_context *s, apus_error *err);
/* Cut events.jsonl back to a checkpoint's position and tell the trackers what is left (replayed). */
apus_status apus_stage_events_rewind(apus_stage_context *s, int64_t position, apus_error *err);

#endif
