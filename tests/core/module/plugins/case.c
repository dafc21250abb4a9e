/*
 * Plugins for test_module.c, one per CASE_… define: a sound one, and one for each way in which a plugin can be wrong.
 */
#include <apus/plugin.h>
#include <apus/session.h>

#define SIZED(type) .size = sizeof(type)

static apus_status sampler_open(const apus_host *host, const apus_node *params, void **sampler, apus_error *err)
{
    (void)params;
    (void)err;
    *sampler = host->alloc(1);
    return *sampler != NULL ? APUS_OK : APUS_E_MEMORY;
}

static void sampler_close(void *sampler)
{
    (void)sampler;
}

static apus_status sample(void *sampler, float *logits, int32_t vocab, const int32_t *history, size_t n, size_t n_prompt, double u, int32_t *id,
                          apus_error *err)
{
    (void)sampler, (void)logits, (void)history, (void)n, (void)n_prompt, (void)u, (void)err;
    *id = vocab - 1;
    return APUS_OK;
}

#ifdef CASE_LATER
/* As a later minor might have it: longer structs all over, and a kind that nobody knows yet. */
struct later_ops {
    apus_sampler_ops known;
    void *news[3];
};
struct later_component {
    apus_component known;
    const char *news;
};
struct later_plugin {
    apus_plugin known;
    const char *news[2];
};
static const struct later_ops ops = {.known = {.size = sizeof(struct later_ops), .open = sampler_open, .close = sampler_close, .sample = sample},
                                     .news = {(void *)"a", (void *)"b", (void *)"c"}};
static const struct later_component components[] = {
    {.known = {.size = sizeof(struct later_component), .kind = "hologram", .name = "later", .doc = "A kind to come.", .ops = &ops}, .news = "x"},
    {.known = {.size = sizeof(struct later_component), .kind = "sampler", .name = "later", .doc = "Longer structs.", .ops = &ops}, .news = "x"}};
static const struct later_plugin later = {.known = {.size = sizeof later,
                                                    .layout = APUS_LAYOUT_TAG,
                                                    .minor = 99,
                                                    .need_minor = 0,
                                                    .name = "later",
                                                    .version = "9",
                                                    .license = "Apache-2.0",
                                                    .doc = "Made for a later host.",
                                                    .components = &components[0].known,
                                                    .n_components = 2},
                                          .news = {"x", "y"}};
#define PLUGIN &later.known
#else

static const apus_sampler_ops ops = {
#ifdef CASE_SHORT_VTABLE
    .size = offsetof(apus_sampler_ops, sample), /* `sample` stands beyond it */
#else
    SIZED(apus_sampler_ops),
#endif
    .open = sampler_open,
#ifndef CASE_NULL_FUNCTION
    .close = sampler_close,
#endif
    .sample = sample};

static const char *const choices[] = {"low", "high", NULL};
static const apus_param params[] = {
    {SIZED(apus_param), .name = "heat", .type = APUS_PARAM_FLOAT, .min = 0, .max = 2, .doc = "How far it strays.",
#if defined(CASE_DEFAULT_RANGE)
     .fallback = "2.5"
#elif defined(CASE_DEFAULT_TYPE)
     .fallback = "warm"
#elif defined(CASE_DEFAULT_YAML)
     .fallback = "[1, 2"
#elif defined(CASE_DEFAULT_NONE)
     .fallback = NULL
#elif defined(CASE_DEFAULT_REQUIRED)
     .fallback = "1", .flags = APUS_PARAM_REQUIRED
#else
     .fallback = "1.0"
#endif
    },
    {SIZED(apus_param), .name = "mode", .type = APUS_PARAM_STRING, .choices = choices, .fallback = "low",
#ifdef CASE_PARAM_NO_DOC
     .doc = "",
#else
     .doc = "Which way.",
#endif
     .aliases = "style"},
#ifdef CASE_PARAM_TWICE
    {SIZED(apus_param), .name = "heat", .type = APUS_PARAM_INT, .fallback = "1", .doc = "Again."},
#endif
#ifdef CASE_PARAM_TYPE
    {SIZED(apus_param), .name = "odd", .type = 77, .fallback = "1", .doc = "Of no type."},
#endif
#ifdef CASE_PARAM_SIZE
    {.size = 8, .name = "small", .type = APUS_PARAM_INT, .fallback = "1", .doc = "Wrong size."},
#endif
#ifdef CASE_PARAM_NEEDS
    {SIZED(apus_param), .name = "fan", .type = APUS_PARAM_BOOL, .fallback = "false", .doc = "Needs.", .needs = "heat !cold=3"},
#endif
#ifdef CASE_PARAM_OF_KIND
    {SIZED(apus_param), .name = "part", .type = APUS_PARAM_COMPONENT, .of_kind = "part", .fallback = "a", .doc = "No such kind."},
#endif
    {SIZED(apus_param), .name = "limit", .type = APUS_PARAM_BYTES, .flags = APUS_PARAM_NULLABLE, .doc = "Bytes, or none."}};

static const apus_component components[] = {{SIZED(apus_component),
#ifdef CASE_KIND
                                             .kind = "samplr",
#else
                                             .kind = "sampler",
#endif
#ifdef CASE_NAME
                                             .name = "Bad-Name",
#else
                                             .name = NAME,
#endif
                                             .doc = "The last id.", .params = params, .n_params = sizeof params / sizeof params[0],
#ifdef CASE_NO_OPS
                                             .ops = NULL
#else
                                             .ops = &ops
#endif
}};

static const apus_plugin plugin = {
#if defined(CASE_SIZE)
    .size = 16,
    .layout = APUS_LAYOUT_TAG,
#elif defined(CASE_LAYOUT)
    .size = sizeof(apus_plugin),
    .layout = 0x41505530u,
#else
    .size = sizeof(apus_plugin),
    .layout = APUS_LAYOUT_TAG,
#endif
#ifdef CASE_MINOR
    .minor = 99,
    .need_minor = 99,
#else
    .minor = APUS_ABI_MINOR,
    .need_minor = 0,
#endif
    .name = "case",
    .version = "1.0.0",
#ifndef CASE_LICENSE
    .license = "Apache-2.0",
#endif
    .doc = "For a test.",
    .components = components,
#ifdef CASE_EMPTY
    .n_components = 0
#else
    .n_components = 1
#endif
};
#define PLUGIN &plugin
#endif

#ifdef CASE_UNDEFINED
int apus_test_nowhere(void);
#endif

#if defined(CASE_ENTRY)
APUS_EXPORT const apus_plugin *apus_plugin_other(const apus_host *host);
APUS_EXPORT const apus_plugin *apus_plugin_other(const apus_host *host)
#elif defined(CASE_MAJOR)
APUS_EXPORT const apus_plugin *apus_plugin_v2(const apus_host *host);
APUS_EXPORT const apus_plugin *apus_plugin_v2(const apus_host *host)
#else
const apus_plugin *apus_plugin_v1(const apus_host *host)
#endif
{
    (void)host, (void)ops, (void)sampler_close; /* some cases leave these out */
#ifdef CASE_UNDEFINED
    if (apus_test_nowhere()) {
        return NULL;
    }
#endif
#ifdef CASE_DECLINES
    return (void)(PLUGIN), NULL;
#else
    return PLUGIN;
#endif
}
