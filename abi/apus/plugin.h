/*
 * apus/plugin.h: the entry point of a plugin and what it describes. The header to include.
 *
 *   #include <apus/plugin.h>
 *   #include <apus/train.h>                        // the kind you write
 *
 *   static const apus_loss_ops ops = {.size = sizeof ops, .open = …};
 *   static const apus_component components[] = {
 *       {.size = sizeof(apus_component), .kind = "loss", .name = "my_loss", .doc = "…", .ops = &ops}};
 *   static const apus_plugin plugin = {APUS_PLUGIN_HEAD, .name = "my_loss", .version = "1.0.0",
 *       .license = "Apache-2.0", .doc = "…", .components = components, .n_components = 1};
 *   APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host) { (void)host; return &plugin; }
 *
 * The function is called once, on the main thread, and must be quick: no threads, no devices, no files.
 * Keep the host pointer if you need it; it outlives you. A plugin is never unloaded.
 */
#ifndef APUS_PLUGIN_H
#define APUS_PLUGIN_H

#include <apus/base.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define APUS_EXPORT __attribute__((visibility("default")))
#else
#define APUS_EXPORT
#endif

/* Changes only when a frozen struct does; checked before anything else is read. */
#define APUS_LAYOUT_TAG 0x41505531u /* "APU1" */

/* One thing that a pipeline can name. */
typedef struct apus_component {
    uint32_t size;
    const char *kind;          /* "backend", "kernels", "op", "arch", "format", "tokenizer", "dataset", "loss", "tuner",
                                  "optimizer", "sampler", "stage", "tracker" */
    const char *name;          /* unique within its kind; [a-z0-9_]+ */
    const char *doc;           /* one line */
    const apus_param *params;  /* NULL when n_params is 0 */
    uint32_t n_params;
    const void *ops;           /* the kind's vtable, e.g. const apus_loss_ops *; opens with its size */
} apus_component;

typedef struct apus_plugin {
    uint32_t size;
    uint32_t layout;           /* APUS_LAYOUT_TAG */
    uint32_t minor;            /* the minor it was compiled against */
    uint32_t need_minor;       /* the least minor of the host it can work with */
    const char *name;
    const char *version;
    const char *license;       /* SPDX */
    const char *doc;           /* one line */
    const apus_component *components; /* n_components of them, each sizeof as ITS size says: stride is components[0].size */
    uint32_t n_components;
} apus_plugin;

#define APUS_PLUGIN_HEAD \
    .size = sizeof(apus_plugin), .layout = APUS_LAYOUT_TAG, .minor = APUS_ABI_MINOR, .need_minor = 0

/* The one exported symbol. NULL means "not here" (say why with host->log). */
typedef const apus_plugin *(*apus_plugin_entry)(const apus_host *host);
APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host);

#ifdef __cplusplus
}
#endif
#endif
