/*
 * core/module: plugins. Finding, trusting and loading shared objects with libltdl, checking their descriptors once, and
 * the registry of components that the rest of core asks by (kind, name).
 */
#ifndef APUS_CORE_MODULE_H
#define APUS_CORE_MODULE_H

#include <apus/plugin.h>

/* The table every plugin gets. Extensions are announced by the parts of core that serve them. */
const apus_host *apus_host_table(void);
void apus_host_announce(const char *id, const void *table); /* before plugins load; id and table static */

/* host->log writes "apus: warning: component: text" to stderr, from level $APUS_LOG (debug, info, warn, error; default
 * warn) on. `before` runs, under the log's lock, before each line (to clear a progress line). NULL: none. [any] */
void apus_log_hook(void (*before)(void *user), void *user);

/* Ask for a clean stop (host->stopping turns 1). [any], also in a signal handler. */
void apus_stop_request(void);
/* From now on the first SIGINT or SIGTERM asks for a clean stop; a second one exits at once with 130. [main] */
void apus_stop_install(void);

/* Load all plugins: preloaded ones, then `dirs` in order, then $APUS_PLUGIN_PATH (":" between), then the program's own
 * folder (plugins/ beside it in a build tree, else the installed one). A file named like one that is already loaded
 * from an earlier place is left out. Only absolute folders; a file or folder that others may write, or that neither
 * root nor the user owns, is refused. A file that fails is an error (first one) unless `lenient`, then a warning.
 * Called once. [main] */
apus_status apus_modules_load(const char *const *dirs, size_t n_dirs, int lenient, apus_error *err);
/* Load one file (for `plugins FILE` and tests). */
apus_status apus_module_load_file(const char *path, apus_error *err);

typedef struct apus_module {
    const char *path;          /* real path, or "(built in)" */
    const char *sha256;        /* hex, of the file; "" when built in, or changed on disk since it was loaded */
    const apus_plugin *plugin; /* taken copy: fields its size does not reach are zero */
} apus_module;

size_t apus_module_count(void);
const apus_module *apus_module_at(size_t i);

/* A component, or NULL with the error filled: "no loss named 'x': did you mean 'y'?". */
const apus_component *apus_component_find(const char *kind, const char *name, apus_error *err);
size_t apus_component_count(const char *kind);                       /* kind NULL: all */
const apus_component *apus_component_at(const char *kind, size_t i); /* in name order */
const apus_module *apus_component_module(const apus_component *c);

/* Validate a component's parameters: `spec` is a name (string) or a map with `type:` (type may be missing when
 * fallback_name is not NULL). Gives the component and the complete parameter map (owner: caller). */
apus_status apus_component_resolve(const char *kind, const apus_node *spec, const char *fallback_name, const apus_component **component,
                                   apus_node **params, apus_error *err);

/* Copy of a foreign vtable: zeroes what its size does not reach. */
void apus_take(void *ours, size_t our_size, const void *theirs);

#endif
