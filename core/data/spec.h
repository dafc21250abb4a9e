/* core/data/spec: one dataset mapping, resolved: its type's plugin, its rows, its validated parameters. Shared by the files of core/data. */
#ifndef APUS_CORE_DATA_SPEC_H
#define APUS_CORE_DATA_SPEC_H

#include <apus/data.h>
#include <apus/plugin.h>

#include "data/dataset.h"
#include "data/rows.h"

typedef struct apus_data_part {
    apus_node *params; /* validated: ours and the type's */
    const apus_component *component;
    apus_dataset_ops ops;
    void *instance;
    apus_rows *rows;     /* NULL for a generator */
    apus_node *first;    /* read already, and not given yet */
    int64_t given, most; /* rows given so far, and at most */
    uint64_t seed;
    char *path; /* without #N; NULL: a generator */
} apus_data_part;

/* spec -> parts (one, or one for each item of a list). read: 0 only validates. owner: caller. */
apus_status apus_data_parts_open(const apus_node *spec, uint64_t seed, int read, apus_data_part **parts, size_t *n, apus_error *err);
void apus_data_parts_close(apus_data_part *parts, size_t n);
/* The next row as the file has it, columns renamed; owner: caller; NULL: the end. One thread at a time. */
apus_status apus_data_part_next(apus_data_part *p, apus_node **row, apus_error *err);
/* Its example, system default put in. owner: caller. [any] */
apus_status apus_data_part_example(const apus_data_part *p, const apus_node *row, apus_node **example, apus_error *err);

#endif
