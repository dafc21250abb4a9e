/* core/run/log: what a run writes about itself: the event log of a stage and who is told of it, JSON files. Stages write through
 * core/run/stage.h. */
#ifndef APUS_CORE_LOG_H
#define APUS_CORE_LOG_H

#include <apus/session.h>

struct apus_stage_log;

/* specs: list of trackers. Events that are in events.jsonl already stay until they are rewound. */
apus_status apus_stage_log_open(const apus_node *specs, const apus_tracker_run *run, struct apus_stage_log **log, apus_error *err);
void apus_stage_log_close(struct apus_stage_log *log, apus_status status);
/* A line for people ({note: line}): to the trackers, not to events.jsonl. */
void apus_stage_log_note(struct apus_stage_log *log, const char *line);

/* A JSON file of a run's folder; NULL: not there, or none. owner: caller. */
apus_node *apus_run_json(const char *path);
apus_status apus_run_json_write(const char *path, const apus_node *node, apus_error *err);

#endif
