/*
 * core/model/profile: where the time of a training goes (`profile: true`): every step of every plan in the first optimizer steps after
 * the first, as a trace and as a table; evaluations and checkpoints whenever they come. All functions take NULL and do nothing then.
 */
#ifndef APUS_CORE_PROFILE_H
#define APUS_CORE_PROFILE_H

#include "graph/graph.h"

enum { APUS_PROFILE_STEPS = 3 /* after the first, which finds memory and caches cold */ };

typedef struct apus_profile apus_profile;

/* Writes STAGE_DIR/trace.json, in the Trace Event Format (JSON object form, "X" events, microseconds), which Perfetto and
 * chrome://tracing open. At most some hundred thousand events. */
apus_profile *apus_profile_open(const char *stage_dir, apus_error *err);
void apus_profile_close(apus_profile *p);

/* Steps of this plan are told under `label` ("optimizer"; "": no prefix; static). The plan outlives the profile. */
apus_status apus_profile_plan(apus_profile *p, apus_plan *plan, const char *label, apus_error *err);
/* An optimizer step begins; ended, with its begin and end by apus_clock. */
void apus_profile_begin(apus_profile *p);
void apus_profile_end(apus_profile *p, double began, double ended);
/* The step waited for its rows. */
void apus_profile_wait(apus_profile *p, double began, double ended);
/* Something outside the steps, into the trace alone: "checkpoint", "evaluation". */
void apus_profile_span(apus_profile *p, const char *name, double began, double ended);

/* Once, when the last step to be profiled has ended, or at any time if `last` and some have: the trace is written, and *table is
 * {steps, seconds_per_step, trace, ops: [{op, calls, seconds_per_step, share, gflops (where operations are known)}], the most first}.
 * owner: caller. NULL: not now. */
apus_status apus_profile_table(apus_profile *p, int last, apus_node **table, apus_error *err);

#endif
