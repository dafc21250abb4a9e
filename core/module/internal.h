/*
 * core/module/internal: what the parts of core/module share: the kinds this host knows, and the check that turns a
 * foreign descriptor into copies of our own sizes.
 */
#ifndef APUS_CORE_MODULE_INTERNAL_H
#define APUS_CORE_MODULE_INTERNAL_H

#include "module/module.h"

/* A pointer that may not be NULL. */
typedef struct apus_required {
    const char *field;
    size_t offset;
} apus_required;

/* An array of growing structs that a vtable points to (kernels, ops). */
typedef struct apus_kind_array {
    const char *field;     /* of the vtable: the pointer */
    size_t pointer, count; /* their offsets; count is uint32_t */
    size_t name;           /* of an element: its name's offset, for messages */
    uint32_t size;         /* of our element */
    const apus_required *required;
    size_t n_required;
} apus_kind_array;

typedef struct apus_kind {
    const char *name;
    uint32_t size; /* of our vtable */
    const apus_required *required;
    size_t n_required;
    const apus_kind_array *array; /* NULL: none */
} apus_kind;

const apus_kind *apus_kind_find(const char *name);
const apus_kind *apus_kind_at(size_t i); /* NULL past the last */

/* Memory of a module, freed together when its load fails. */
typedef struct apus_keep {
    void **blocks;
    size_t n;
} apus_keep;

void *apus_keep_alloc(apus_keep *k, size_t bytes); /* zeroed; NULL when out */
void apus_keep_free(apus_keep *k);

/* Check what a plugin's entry gave and copy it to our sizes: the copy's components, parameters, vtables and their
 * arrays are all indexed as ours; what a shorter struct does not reach is zero. Strings stay the plugin's. `file` opens
 * the messages. Components of a kind this host does not know, in a plugin of a later minor, are left out with a
 * warning. */
apus_status apus_plugin_check(const char *file, const apus_plugin *theirs, apus_keep *keep, apus_plugin *ours, apus_error *err);

/* Refuse a plugin file (regular, ELF, whole) or its folder unless only root or the user may change it. */
apus_status apus_module_trust(const char *path, apus_error *err);
apus_status apus_module_trust_dir(const char *path, apus_error *err);
/* Shared object of this machine whose segments lie inside the file: mapping a cut file would be a bus error. */
apus_status apus_module_elf(const char *path, apus_error *err);

#endif
