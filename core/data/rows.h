/* core/data/rows: the rows of data files as nodes: JSON Lines, JSON, CSV, plain text; plain, compressed, in archives. */
#ifndef APUS_CORE_ROWS_H
#define APUS_CORE_ROWS_H

#include <apus/base.h>

/* All rows of `path` (a file, archive or folder; at most `limit` rows, 0: all), appended to list. By extension: .jsonl .ndjson:
 * one object a line; .json: a list of objects (or {data: [...]}); .csv .tsv: with a header line; .txt .md: {text: whole file}.
 * Errors name file:line. */
apus_status apus_rows_read(const char *path, size_t limit, apus_node *list, apus_error *err);

/* The same for bytes in memory; name says the kind. */
apus_status apus_rows_parse(const char *name, const char *bytes, size_t length, size_t limit, apus_node *list, apus_error *err);

#endif
