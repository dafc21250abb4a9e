/*
 * core/model/export: writing a model in a format's files: whole (the adapter merged in float32) or the adapter alone.
 */
#ifndef APUS_CORE_EXPORT_H
#define APUS_CORE_EXPORT_H

#include "model/model.h"
#include "run/stage.h"

typedef struct apus_write_options {
    const char *format; /* component of kind "format" */
    const char *path;
    int adapter;      /* 1: the tuner's parameters alone; 0: the whole model, merged */
    apus_dtype dtype; /* APUS_REAL: as the base was stored (float32 if it was quantised) */
    int replace;      /* 1: what stands at path was written by us and may go */
} apus_write_options;

/* Written beside and renamed. A non-empty path that we did not write is refused. [main] */
apus_status apus_model_write(apus_model *m, const apus_write_options *options, apus_error *err);

/* The stage `export`: model, format, merge, path, dtype. */
apus_status apus_export_stage(apus_stage_context *s, const apus_node *params, apus_error *err);

#endif
