/*
 * core/value/node: value trees (apus_node): making, reading, JSON in and out. The one implementation
 * behind host->node; the rest of core calls it through apus_nodes().
 *
 * A node is 32 bytes; a string's bytes follow it in the same allocation. Maps keep their order; beyond eight keys they
 * carry a hash index, so get() is O(1). Memory comes from malloc: what write_json returns is freed by free().
 */
#ifndef APUS_CORE_NODE_H
#define APUS_CORE_NODE_H

#include <apus/base.h>

const apus_node_api *apus_nodes(void);

/* For parsers: say where a node was read. `file` is interned (kept for the life of the process): pass the path, never a
 * text made anew for each row. line and column count from 1, columns in characters; line 0: the file alone is known. */
void apus_node_place(apus_node *n, const char *file, int line, int column);

/* Set, and remember where the key stands (in the value's file). Takes value. */
apus_status apus_node_set_placed(apus_node *map, const char *key, apus_node *value, int line, int column);

/* Set to a float, for what is told: a lack of memory leaves it out. */
static inline void apus_node_set_float(apus_node *map, const char *key, double v)
{
    (void)apus_nodes()->set(map, key, apus_nodes()->make_float(v));
}

/* As node->where, of the i-th key of a map: the value's place where the key's is unknown. */
const char *apus_node_key_where(const apus_node *map, size_t i, char *buffer, size_t capacity);

void apus_node_key_place(const apus_node *map, size_t i, int *line, int *column); /* 0, 0: unknown */

/* Forget where n and all it holds were read. */
void apus_node_unplace(apus_node *n);

/* An empty node of n's kind at n's place. owner: caller */
apus_node *apus_node_like(const apus_node *n);

/* What a parser tells those who come after it about a string. QUOTED: written in quotes, so it stays a string whatever
 * interpolation makes of it. FILLED: such a string that interpolation made: a parameter that wants a number may read
 * one. */
enum { APUS_STRING_QUOTED = 2, APUS_STRING_FILLED = 4 };
void apus_node_mark(apus_node *n, int marks);
int apus_node_marks(const apus_node *n);

/* Change a scalar in place, or replace the value of `n` by `with`'s (takes `with`). For interpolation and overrides.
 * n keeps its own place when `with` has none. */
void apus_node_replace(apus_node *n, apus_node *with);

/* parse_json for a text that begins at this line and column (from 1) of `name`: a row of a .json file. */
apus_node *apus_json_parse_at(const char *text, size_t length, const char *name, size_t line, size_t column, apus_error *err);

/* Text as a message may show it: on one line, control characters escaped, cut (with "...") to what buffer holds, never
 * inside a character. length (size_t)-1: strlen. Returns buffer. [any] */
const char *apus_show(char *buffer, size_t capacity, const char *text, size_t length);

/* A double as Python's repr writes it: the shortest digits that read back as the same value, "1.0", "1e-05", "1e+16",
 * "nan" apart: NaN, Infinity, -Infinity, as its json module does. buffer holds at least 32 bytes; returns the length.
 * [any] */
size_t apus_format_double(char *buffer, double v);

/* The inverse, in the C locale whatever the process set: text[0..length) must be a whole JSON or YAML decimal number
 * ("-1.5e3", "1.", ".5"); 0 when it is not. [any] */
int apus_read_double(const char *text, size_t length, double *v);

#endif
