/*
 * core/data/store: encoded rows as bytes: a growing memory of them, the cache file that is the same bytes, and the sink that
 * rows go to in their order, which is a file when there is a folder for one and memory when there is none.
 */
#ifndef APUS_CORE_STORE_H
#define APUS_CORE_STORE_H

#include "data/dataset.h"

/* One row: where its data stand, each part behind the other: segments, ids, trained. */
typedef struct apus_row_record {
    uint64_t source, at; /* at: bytes from the first row's data; a multiple of 4 */
    uint32_t n_tokens, n_segments, n_answers, n_trained;
    int32_t has_reference, reserved;
    double reference[2];
} apus_row_record;

typedef struct apus_row_store {
    apus_row_record *rows;
    char *data;
    size_t n_rows, cap_rows, n_bytes, cap_bytes;
} apus_row_store;

void apus_row_store_free(apus_row_store *s);
apus_status apus_row_store_add(apus_row_store *s, const apus_row *r); /* its arrays are copied */
apus_row apus_row_store_get(const apus_row_store *s, size_t i);

/* Rows are added by one thread at a time. */
typedef struct apus_row_sink apus_row_sink;
/* A cache file at `path` once it is closed well; path NULL: memory. */
apus_row_sink *apus_row_sink_open(const char *path, apus_error *err);
apus_status apus_row_sink_add(apus_row_sink *s, const apus_row *r, apus_error *err);
apus_status apus_row_sink_append(apus_row_sink *s, const apus_row_store *more, apus_error *err);
const apus_dataset_bounds *apus_row_sink_bounds(const apus_row_sink *s);
/* The rows as they can be read: `rows` refers to the file, mapped, or has the sink's memory. */
typedef struct apus_row_set {
    apus_row_store rows;
    apus_dataset_bounds bounds;
    apus_node *report;
    const void *map; /* NULL: rows is memory */
    size_t map_bytes;
} apus_row_set;
/* Ends the sink and frees it, whatever the status. report: taken. */
apus_status apus_row_sink_end(apus_row_sink *s, apus_node *report, apus_row_set *set, apus_error *err);
void apus_row_sink_abandon(apus_row_sink *s); /* NULL is fine */
/* 0: there is no such file, or it is damaged or foreign: as good as none. */
int apus_row_set_load(apus_row_set *set, const char *path);
void apus_row_set_close(apus_row_set *set);

#endif
