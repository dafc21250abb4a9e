/* core/data/rows: the rows of data files as nodes, one after another: JSON Lines, JSON, CSV, plain text; plain, compressed, in archives. */
#ifndef APUS_CORE_ROWS_H
#define APUS_CORE_ROWS_H

#include <apus/base.h>

/* The rows of `path`: a file, an archive or a folder. By extension: .jsonl .ndjson: one object a line; .json: a list of objects
 * (or {data: [...]}); .csv .tsv: with a header line; .txt .md: {text: whole file}. No more of a file is in memory than a row.
 * Errors name file:line. One thread at a time. */
typedef struct apus_rows apus_rows;
apus_status apus_rows_open(const char *path, apus_rows **rows, apus_error *err);
apus_status apus_rows_next(apus_rows *r, apus_node **row, apus_error *err); /* owner: caller; NULL: the end */
void apus_rows_close(apus_rows *r);                                         /* NULL is fine */

#endif
