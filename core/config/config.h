/*
 * core/config: a pipeline file as people write it. YAML -> nodes with file:line:column, include:, ${ENV} and ${key}
 * interpolation, key.path=value overrides, and validation of a mapping against a table of typed parameters.
 */
#ifndef APUS_CORE_CONFIG_H
#define APUS_CORE_CONFIG_H

#include <apus/base.h>
#include <apus/plugin.h>

/* Read YAML text or a file (JSON is YAML too; a name that ends in .json is read by the stricter JSON reader, NaN
 * included). Core schema of YAML 1.2 for scalars (1e-4 and 1.0e-4 are floats, 0x10 an int, yes/no are strings); anchors
 * and aliases allowed within a size bound; duplicate keys, tags other than core ones, depth over 100, several
 * documents, more than 16 MiB are errors; an empty text is null. "<<: *base" merges keys as YAML 1.1 did (written keys
 * win). Every message is "name:line:column: …". owner: caller. */
apus_node *apus_yaml_parse(const char *text, size_t length, const char *name, apus_error *err);
apus_node *apus_yaml_read(const char *path, apus_error *err);

/* Read a pipeline: the file, its `include:`s merged (relative to the including file; cycles are errors; the including
 * file's keys win, mappings merge key by key, lists replace; `stages` lists replace too), then the overrides, then
 * interpolation. An override is "a.b.c=VALUE": VALUE is YAML; a list item is named by its index or by its `name:`.
 * ${NAME} is the environment (an error when unset; ${NAME:-fallback}); ${a.b} a key of the file; $${ is a literal ${.
 * ${name} without a dot is a top-level key of the file when there is one. What is filled in counts as if it had been
 * written there: a plain `${LR}` becomes a number, a quoted one stays a string (params_validate still reads a number
 * out of it where one is wanted, because { } needs the quotes). A value that is one key's reference takes that key's
 * value, lists and mappings included. */
apus_node *apus_config_load(const char *path, const char *const *overrides, size_t n_overrides, apus_error *err);

/* Validate `given` (a map, NULL or null: empty) against params; returns a new map that holds every parameter: typed
 * (2GiB -> int), defaulted (null where nullable and unset), range- and choice-checked. An unknown key is an error with
 * "did you mean" or, for an alias, the name we use, and says where else the key is known. `ignore`: space-separated keys that belong to someone else
 * ("type"). `what` names the thing in messages ("loss NAME"). COMPONENT values come back as maps with `type:` (their own
 * parameters not yet validated; a map without `type:` passes: who resolves it may recognise the type). A FLOAT is a
 * float node, an INT or BYTES an int node whatever was written; given and min, max in the table: min == max == 0 is no
 * bound, as in a table that leaves both out. A value
 * that was read somewhere and has no effect (apus_param.needs) is an error. Validating a result again changes nothing. owner: caller. */
apus_node *apus_params_validate(const apus_node *given, const apus_param *params, uint32_t n_params, const char *ignore, const char *what,
                                apus_error *err);

/* Who knows keys of other places: writes "the top level of the file" or "optimizer (NAME, NAME)" for what has such a key to `places`, or leaves it
 * empty. An unknown key's message then has it as its hint. */
typedef void apus_key_places(const char *key, char *places, size_t capacity);
void apus_params_know_places(apus_key_places *of); /* [main] */

/* JSON Schema (draft 2020-12) of one parameter table: a node {type: object, properties: …}. owner: caller. */
apus_node *apus_params_schema(const apus_param *params, uint32_t n_params);

/* The nearest of `names` to `word` when near enough (Damerau-Levenshtein, at most a third of its length), else NULL. */
const char *apus_did_you_mean(const char *word, const char *const *names, size_t n);

#endif
