/* core/config/scalar: the core schema of YAML 1.2 for plain scalars. For the files of core/config only. */
#ifndef APUS_CORE_CONFIG_SCALAR_H
#define APUS_CORE_CONFIG_SCALAR_H

#include <apus/base.h>

/* What a plain (unquoted) scalar means: null, bool, int, float or string. NULL when memory is out. Whole numbers beyond
 * int64 become the nearest float. owner: caller */
apus_node *apus_scalar_plain(const char *text, size_t length);

/* A message's words for what a node is: "the string 'fast'", "the number 3", "a list", "nothing (null)". */
const char *apus_scalar_found(const apus_node *n, char *buffer, size_t capacity);

/* "file:line:column: ", or "" for a node made in memory. */
const char *apus_scalar_at(const apus_node *n, char *buffer, size_t capacity);

#endif
