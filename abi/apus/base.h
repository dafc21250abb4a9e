/*
 * apus/base.h: the ground of the contract: status codes, the error buffer, value
 * trees ("nodes": YAML and JSON alike), the host table and typed parameters.
 *
 * A plugin includes <apus/plugin.h> (which includes this) and nothing else of apus.
 * C11 and C++17. Every struct that opens with `size` is append-only: the side that
 * makes it sets size = sizeof; the side that reads it reads no further than size.
 *
 * Tags used on functions:
 *   [main]    only on the thread that runs the pipeline
 *   [any]     from any thread, at the same time
 *   owner: who frees what a pointer names
 */
#ifndef APUS_BASE_H
#define APUS_BASE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define APUS_ABI_MAJOR 1
#define APUS_ABI_MINOR 0

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define APUS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define APUS_PRINTF(fmt, args)
#endif

/* Status of a call. Values are never reused. The command's exit codes follow from them (README). */
typedef int32_t apus_status;
enum {
    APUS_OK = 0,
    APUS_E_INVALID = 1,     /* the user's input is wrong: configuration, data, model files */
    APUS_E_IO = 2,          /* a file or device could not be read or written */
    APUS_E_MEMORY = 3,      /* no memory, or over the limit that was set */
    APUS_E_UNSUPPORTED = 4, /* well-formed, but nothing here can do it */
    APUS_E_NOT_FOUND = 5,   /* a name that nothing answers to */
    APUS_E_INTERNAL = 6,    /* a broken promise inside apus or a plugin: a bug */
    APUS_E_STOPPED = 7,     /* a clean stop was asked for (SIGINT, SIGTERM) */
    APUS_E_NUMERIC = 8      /* a number that is not finite where one must be */
};

/* The caller's error buffer. FROZEN: one side allocates it, the other fills it.
 * message: one line: where (file:line:column), what, what was expected. hint: the likely fix, or "". */
typedef struct apus_error {
    char message[1536];
    char hint[512];
} apus_error;

/* Fill `err` (may be NULL) and return `status`, so that `return apus_fail(...)` reads well. */
static inline APUS_PRINTF(3, 4) apus_status apus_fail(apus_error *err, apus_status status, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        err->hint[0] = '\0';
    }
    return status;
}

/* Add the likely fix to an error that is already filled; returns `status`. */
static inline APUS_PRINTF(3, 4) apus_status apus_hint(apus_error *err, apus_status status, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(err->hint, sizeof err->hint, fmt, args);
        va_end(args);
    }
    return status;
}

#ifdef __clang_analyzer__ /* it does not look into functions with `...`, and must know that these give their status */
#define apus_fail(err, status, ...) ((void)apus_fail(err, status, __VA_ARGS__), (status))
#define apus_hint(err, status, ...) ((void)apus_hint(err, status, __VA_ARGS__), (status))
#endif

/* ---------------------------------------------------------------- value trees */

/* A node is one value of YAML or JSON: configuration, a row of a dataset, a model's config.json, an event.
 * It remembers where it was read. Maps keep their order and hold each key once. A node that is a child
 * belongs to its parent; a root belongs to whoever made it (free with node->release). */
typedef struct apus_node apus_node;

typedef int32_t apus_node_kind;
enum {
    APUS_NODE_NULL = 0,
    APUS_NODE_BOOL = 1,
    APUS_NODE_INT = 2,   /* int64 */
    APUS_NODE_FLOAT = 3, /* double */
    APUS_NODE_STRING = 4,/* bytes with a length, NUL-terminated after them; UTF-8 unless a data file was not */
    APUS_NODE_LIST = 5,
    APUS_NODE_MAP = 6
};

/* Flags of write_json. */
enum {
    APUS_JSON_INDENT = 1, /* two spaces, for people; else one line */
    APUS_JSON_ASCII = 2   /* escape everything beyond ASCII */
};

/* Reading never fails: a NULL node reads as null, a wrong kind gives the fallback.
 * All reading functions: [any] as long as nobody changes the tree. */
typedef struct apus_node_api {
    uint32_t size;
    apus_node_kind (*kind)(const apus_node *n);
    int (*as_bool)(const apus_node *n, int fallback);
    int64_t (*as_int)(const apus_node *n, int64_t fallback);    /* a float with an integral value counts */
    double (*as_float)(const apus_node *n, double fallback);    /* an int counts */
    const char *(*as_string)(const apus_node *n, size_t *length); /* NULL unless a string; length may be NULL */
    size_t (*length)(const apus_node *n);                       /* items of a list or map, else 0 */
    const apus_node *(*at)(const apus_node *n, size_t i);       /* i-th item or value; NULL outside */
    const char *(*key_at)(const apus_node *n, size_t i);        /* i-th key of a map; NULL outside */
    const apus_node *(*get)(const apus_node *map, const char *key); /* NULL when absent */
    const char *(*where)(const apus_node *n, char *buffer, size_t capacity); /* "file:line:column", "" if made in memory; returns buffer */

    /* Making: the caller owns the result; NULL when memory is out. */
    apus_node *(*make_null)(void);
    apus_node *(*make_bool)(int v);
    apus_node *(*make_int)(int64_t v);
    apus_node *(*make_float)(double v);
    apus_node *(*make_string)(const char *bytes, size_t length); /* copies; length (size_t)-1: strlen */
    apus_node *(*make_list)(void);
    apus_node *(*make_map)(void);
    apus_node *(*copy)(const apus_node *n);                      /* deep, with the places */
    apus_status (*append)(apus_node *list, apus_node *item);     /* takes item, also on failure; item NULL: APUS_E_MEMORY */
    apus_status (*set)(apus_node *map, const char *key, apus_node *value); /* takes value, replaces an old one */
    int (*remove)(apus_node *map, const char *key);              /* 1 if it was there */
    void (*release)(apus_node *root);                            /* NULL is fine */

    /* JSON text <-> node. `name` is what errors call the text (a path). Duplicate keys, depth over 200,
     * NUL keys and trailing text are errors; NaN and Infinity (as Python writes them) are read as floats. */
    apus_node *(*parse_json)(const char *text, size_t length, const char *name, apus_error *err);
    char *(*write_json)(const apus_node *n, int flags, size_t *length); /* owner: caller, host->free */
    int (*equal)(const apus_node *a, const apus_node *b);        /* same values, map order aside */
} apus_node_api;

/* ---------------------------------------------------------------- host table */

enum { APUS_LOG_DEBUG = 0, APUS_LOG_INFO = 1, APUS_LOG_WARN = 2, APUS_LOG_ERROR = 3 };

/* What the host gives every plugin at entry; it outlives the plugin. All functions [any]. */
typedef struct apus_host {
    uint32_t size;
    uint32_t minor;                                 /* the minor the host was built with */
    const apus_node_api *node;
    const void *(*extension)(const char *id);       /* a table such as "apus.graph/1"; NULL when unknown */
    void *(*alloc)(size_t bytes);                   /* 64-byte aligned, zeroed; NULL when out */
    void *(*realloc)(void *p, size_t old_bytes, size_t bytes);
    void (*free)(void *p);
    void (*log)(int level, const char *component, const char *line);
    int (*stopping)(void);                          /* 1 once a clean stop was asked for: long loops return APUS_E_STOPPED */
} apus_host;

/* ---------------------------------------------------------------- typed parameters */

typedef int32_t apus_param_type;
enum {
    APUS_PARAM_BOOL = 1,
    APUS_PARAM_INT = 2,
    APUS_PARAM_FLOAT = 3,
    APUS_PARAM_STRING = 4,
    APUS_PARAM_PATH = 5,      /* a string; relative to the working directory. Read, unless its flags say otherwise */
    APUS_PARAM_BYTES = 6,     /* 2GiB, 500MB, or a number of bytes */
    APUS_PARAM_LIST = 7,      /* a list of `item` (one item alone is read as a list of one) */
    APUS_PARAM_COMPONENT = 8, /* a name, or a mapping with `type:`; `of_kind` says which kind */
    APUS_PARAM_NODE = 9,      /* any value; the plugin validates it and says where */
    APUS_PARAM_MAP = 10,      /* a mapping of strings to `item` */
    APUS_PARAM_MODEL = 11,    /* a model: HF folder, GGUF file, an earlier stage's name, "runs/x:stage", or {arch: …, config: {…}} */
    APUS_PARAM_DATASET = 12   /* one dataset (a mapping with path or type, or a path) or a list of them; the host validates it */
};

enum {
    APUS_PARAM_REQUIRED = 1u, /* no default: leaving it out is an error */
    APUS_PARAM_NULLABLE = 2u, /* null (or left out with no default) means "not set" */
    APUS_PARAM_WRITTEN = 4u   /* a PATH that is written: what stands there is no input, so a stage is not done again when it changes */
};

/* One parameter of a component. The table is the only source for validation, defaults, help, JSON Schema
 * and the reference; a key of a configuration that no table has is an error. */
typedef struct apus_param {
    uint32_t size;
    const char *name;           /* the field's standard name */
    apus_param_type type;
    apus_param_type item;       /* of a LIST or MAP; else 0 */
    uint32_t flags;
    const char *fallback;       /* default as YAML text; NULL: none */
    double min, max;            /* INT, FLOAT, BYTES: inclusive range; min > max, or both 0 (left out): unbounded */
    const char *const *choices; /* STRING (or LIST of it): NULL-terminated; NULL: any */
    const char *of_kind;        /* COMPONENT */
    const char *unit;           /* "tokens", "rows", "bytes", …; NULL: none */
    const char *doc;            /* one or two sentences */
    const char *aliases;        /* other tools' names for it, space-separated: used in the error's hint only */
    /* What it has an effect with: words for other parameters of the table, space-separated. "judge": one of such words must be set (not null,
     * false, 0 or empty); "type=ipo": or have this value; "!loss": none of such words may. A value that is set and written where it would have
     * no effect is an error. NULL: it always has one. */
    const char *needs;
} apus_param;

#ifdef __cplusplus
}
#endif
#endif
