/*
 * core/value/node: value trees (apus_node): making, reading, JSON in and out. The one implementation
 * behind host->node; the rest of core calls it through apus_nodes().
 */
#ifndef APUS_CORE_NODE_H
#define APUS_CORE_NODE_H

#include <apus/base.h>

const apus_node_api *apus_nodes(void);

/* For parsers: say where a node was read. `file` is interned. */
void apus_node_place(apus_node *n, const char *file, int line, int column);

/* Change a scalar in place, or replace the value of `n` by `with`'s (takes `with`). For interpolation and overrides. */
void apus_node_replace(apus_node *n, apus_node *with);

#endif
