/* core/data/spec: one dataset mapping, resolved: its type's plugin, its rows, its validated parameters. Shared by the files of core/data. */
#ifndef APUS_CORE_DATA_SPEC_H
#define APUS_CORE_DATA_SPEC_H

#include <apus/data.h>
#include <apus/plugin.h>

#include "data/dataset.h"

typedef struct apus_data_part {
    apus_node *params;              /* validated: ours and the type's */
    const apus_component *component;
    apus_dataset_ops ops;
    void *instance;
    apus_node *rows;                /* list; NULL for a generator */
    int64_t count;
    uint64_t seed;
    char *path;                     /* without #N; NULL: a generator */
    int recognised;                 /* the type was not named */
} apus_data_part;

/* spec -> parts (one, or one for each item of a list). read: 0 only validates. owner: caller. */
apus_status apus_data_parts_open(const apus_node *spec, uint64_t seed, int read, apus_data_part **parts, size_t *n, apus_error *err);
void apus_data_parts_close(apus_data_part *parts, size_t n);
/* Row i as the file has it, columns renamed; and its example, system default put in. owner: caller. */
apus_status apus_data_part_row(const apus_data_part *p, int64_t i, apus_node **row, apus_error *err);
apus_status apus_data_part_example(const apus_data_part *p, const apus_node *row, apus_node **example, apus_error *err);

#endif
