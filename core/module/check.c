/*
 * core/module/check: a foreign descriptor, checked once and copied to our own sizes. After it, every component,
 * parameter and vtable of the registry can be indexed as ours and holds every function its kind requires.
 */
#include "module/internal.h"

#include "config/config.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

enum {
    STRUCT_BYTES_MAX = 1 << 16, /* a size beyond this is no size */
    ARRAY_MAX = 1 << 16,
    LABEL = 1024 /* bytes for what messages call a thing; longer ones are cut */
};

/* What 1.0 defined; a struct may only be longer. */
#define PLUGIN_BYTES_LEAST    (offsetof(apus_plugin, n_components) + sizeof(uint32_t))
#define COMPONENT_BYTES_LEAST (offsetof(apus_component, ops) + sizeof(void *))
#define PARAM_BYTES_LEAST     (offsetof(apus_param, aliases) + sizeof(char *))

void *apus_keep_alloc(apus_keep *k, size_t bytes)
{
    void **wider = realloc(k->blocks, (k->n + 1) * sizeof *wider);
    if (wider == NULL) {
        return NULL;
    }
    k->blocks = wider;
    void *p = calloc(1, bytes != 0 ? bytes : 1);
    if (p != NULL) {
        k->blocks[k->n++] = p;
    }
    return p;
}

void apus_keep_free(apus_keep *k)
{
    for (size_t i = 0; i < k->n; i++) {
        free(k->blocks[i]);
    }
    free(k->blocks);
    *k = (apus_keep){0};
}

void apus_take(void *ours, size_t our_size, const void *theirs)
{
    uint32_t size;
    memcpy(&size, theirs, sizeof size);
    memset(ours, 0, our_size);
    memcpy(ours, theirs, size < our_size ? size : our_size);
    size = (uint32_t)our_size;
    memcpy(ours, &size, sizeof size);
}

static APUS_PRINTF(3, 4) void label(char *out, size_t capacity, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(out, capacity, fmt, args);
    va_end(args);
}

static uint32_t size_of(const void *p)
{
    uint32_t size;
    memcpy(&size, p, sizeof size);
    return size;
}

static const void *pointer_at(const void *p, size_t offset)
{
    const void *value;
    memcpy(&value, (const char *)p + offset, sizeof value);
    return value;
}

static int is_name(const char *s)
{
    return s != NULL && s[0] != '\0' && s[strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_")] == '\0';
}

static int is_text(const char *s)
{
    return s != NULL && s[0] != '\0';
}

/* Copy n structs whose stride is the first one's size. NULL with the error filled. `what` names them in messages. */
static void *take_array(const char *what, const void *theirs, size_t n, size_t least, size_t our_size, apus_keep *keep, apus_error *err)
{
    if (theirs == NULL) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: %zu announced, but the array is NULL", what, n);
        return NULL;
    }
    size_t stride = size_of(theirs);
    if (stride < least || stride > STRUCT_BYTES_MAX || stride % sizeof(void *) != 0) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: size %zu of the first one is wrong, expected at least %zu", what, stride, least);
        (void)apus_hint(err, APUS_E_INVALID, "set .size = sizeof the struct in every entry");
        return NULL;
    }
    char *ours = apus_keep_alloc(keep, n * our_size);
    if (ours == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "%s: no memory for %zu", what, n);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        const char *one = (const char *)theirs + i * stride;
        if (size_of(one) != stride) {
            (void)apus_fail(err, APUS_E_INVALID, "%s: number %zu has size %u, the first one %zu", what, i + 1, size_of(one), stride);
            (void)apus_hint(err, APUS_E_INVALID, "set .size = sizeof the struct in every entry");
            return NULL;
        }
        apus_take(ours + i * our_size, our_size, one);
    }
    return ours;
}

/* ---------------------------------------------------------------- parameters */

static int is_item_type(apus_param_type t)
{
    return (t >= APUS_PARAM_BOOL && t <= APUS_PARAM_BYTES) || (t >= APUS_PARAM_COMPONENT && t <= APUS_PARAM_DATASET && t != APUS_PARAM_MAP);
}

/* The default must be a value that a user could have written. */
static apus_status check_default(const char *what, const apus_param *p, apus_error *err)
{
    const apus_node_api *nodes = apus_nodes();
    apus_error cause;
    apus_param one = *p;
    one.flags &= ~(uint32_t)APUS_PARAM_REQUIRED;
    one.fallback = NULL;
    one.flags |= APUS_PARAM_NULLABLE;
    one.needs = NULL; /* what it needs is not in this table */
    apus_status status = APUS_E_MEMORY;
    (void)apus_fail(&cause, status, "no memory");
    apus_node *given = nodes->make_map();
    apus_node *value = given != NULL ? apus_yaml_parse(p->fallback, strlen(p->fallback), "default", &cause) : NULL;
    if (value != NULL && nodes->kind(value) == APUS_NODE_NULL && (p->flags & APUS_PARAM_NULLABLE) == 0) {
        nodes->release(value);
        value = NULL;
        (void)apus_fail(&cause, APUS_E_INVALID, "null is no value of a parameter that is not NULLABLE");
    }
    if (value != NULL && nodes->set(given, p->name, value) == APUS_OK) {
        apus_node *valid = apus_params_validate(given, &one, 1, NULL, "default", &cause);
        status = valid != NULL ? APUS_OK : APUS_E_INVALID;
        nodes->release(valid);
    }
    nodes->release(given);
    if (status != APUS_OK) {
        return apus_fail(err, APUS_E_INVALID, "%s: default '%s' is not valid: %s", what, p->fallback, cause.message);
    }
    return APUS_OK;
}

static apus_status check_param(const char *component, const apus_param *all, size_t i, apus_error *err)
{
    const apus_param *p = &all[i];
    if (!is_text(p->name)) {
        return apus_fail(err, APUS_E_INVALID, "%s: parameter %zu has no name", component, i + 1);
    }
    char what[LABEL];
    label(what, sizeof what, "%s: parameter %s", component, p->name);
    const int listy = p->type == APUS_PARAM_LIST || p->type == APUS_PARAM_MAP;
    const apus_param_type scalar = listy ? p->item : p->type;
    const int numeric = scalar == APUS_PARAM_INT || scalar == APUS_PARAM_FLOAT || scalar == APUS_PARAM_BYTES;
    for (size_t k = 0; k < i; k++) {
        if (strcmp(all[k].name, p->name) == 0) {
            return apus_fail(err, APUS_E_INVALID, "%s: described twice", what);
        }
    }
    if (strcmp(p->name, "type") == 0) {
        return apus_fail(err, APUS_E_INVALID, "%s: this name is taken: it selects the component", what);
    }
    if (p->type < APUS_PARAM_BOOL || p->type > APUS_PARAM_DATASET) {
        return apus_fail(err, APUS_E_INVALID, "%s: type %d is unknown", what, (int)p->type);
    }
    if (listy && !is_item_type(p->item)) {
        return apus_fail(err, APUS_E_INVALID, "%s: item type %d cannot stand in a list or mapping", what, (int)p->item);
    }
    if (!is_text(p->doc)) {
        return apus_fail(err, APUS_E_INVALID, "%s: has no doc", what);
    }
    if (p->choices != NULL && scalar != APUS_PARAM_STRING) {
        return apus_fail(err, APUS_E_INVALID, "%s: choices are for strings", what);
    }
    if (p->choices != NULL && p->choices[0] == NULL) {
        return apus_fail(err, APUS_E_INVALID, "%s: the list of choices is empty", what);
    }
    if (numeric && (p->min != p->min || p->max != p->max)) {
        return apus_fail(err, APUS_E_INVALID, "%s: the range is not a number", what);
    }
    if (scalar == APUS_PARAM_COMPONENT && (p->of_kind == NULL || apus_kind_find(p->of_kind) == NULL)) {
        return apus_fail(err, APUS_E_INVALID, "%s: of_kind '%s' is no kind of component", what, p->of_kind != NULL ? p->of_kind : "NULL");
    }
    if ((p->flags & APUS_PARAM_REQUIRED) != 0) {
        return p->fallback == NULL ? APUS_OK : apus_fail(err, APUS_E_INVALID, "%s: required, and yet has the default '%s'", what, p->fallback);
    }
    if (p->fallback == NULL) {
        return (p->flags & APUS_PARAM_NULLABLE) != 0 ? APUS_OK
                                                     : apus_fail(err, APUS_E_INVALID, "%s: needs a default, or the flag REQUIRED or NULLABLE", what);
    }
    return check_default(what, p, err);
}

/* The words of `needs` name parameters of the table. */
static apus_status check_needs(const char *component, const apus_param *all, uint32_t n, const apus_param *p, apus_error *err)
{
    for (const char *w = p->needs == NULL ? "" : p->needs; *w != '\0'; w += strspn(w, " ")) {
        w += *w == '!';
        const size_t length = strcspn(w, " ="), rest = strcspn(w, " ");
        int known = 0;
        for (uint32_t i = 0; i < n && !known; i++) {
            known = strncmp(all[i].name, w, length) == 0 && all[i].name[length] == '\0';
        }
        if (!known) {
            return apus_fail(err, APUS_E_INVALID, "%s: parameter %s: needs '%.*s', which is no parameter of it", component, p->name, (int)length, w);
        }
        w += rest;
    }
    return APUS_OK;
}

static apus_status check_params(const char *what, apus_component *c, apus_keep *keep, apus_error *err)
{
    if (c->n_params == 0) {
        c->params = NULL;
        return APUS_OK;
    }
    if (c->n_params > ARRAY_MAX) {
        return apus_fail(err, APUS_E_INVALID, "%s: %u parameters cannot be", what, c->n_params);
    }
    char name[LABEL];
    label(name, sizeof name, "%s: parameters", what);
    apus_param *params = take_array(name, c->params, c->n_params, PARAM_BYTES_LEAST, sizeof(apus_param), keep, err);
    if (params == NULL) {
        return APUS_E_INVALID;
    }
    for (uint32_t i = 0; i < c->n_params; i++) {
        apus_status status = check_param(what, params, i, err);
        if (status == APUS_OK) {
            status = check_needs(what, params, c->n_params, &params[i], err);
        }
        if (status != APUS_OK) {
            return status;
        }
    }
    c->params = params;
    return APUS_OK;
}

/* ---------------------------------------------------------------- vtables */

static apus_status check_required(const char *what, const void *table, const apus_required *required, size_t n, apus_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (pointer_at(table, required[i].offset) == NULL) {
            return apus_fail(err, APUS_E_INVALID, "%s: '%s' is NULL, and required", what, required[i].field);
        }
    }
    return APUS_OK;
}

static apus_status check_array(const char *what, const apus_kind_array *a, char *ops, apus_keep *keep, apus_error *err)
{
    char name[LABEL];
    uint32_t n;
    memcpy(&n, ops + a->count, sizeof n);
    if (n == 0 || n > ARRAY_MAX) {
        return apus_fail(err, APUS_E_INVALID, "%s: %u %s cannot be", what, n, a->field);
    }
    label(name, sizeof name, "%s: %s", what, a->field);
    size_t least = 0; /* up to the last field that must be there */
    for (size_t i = 0; i < a->n_required; i++) {
        size_t end = a->required[i].offset + sizeof(void *);
        least = end > least ? end : least;
    }
    char *ours = take_array(name, pointer_at(ops, a->pointer), n, least, a->size, keep, err);
    if (ours == NULL) {
        return APUS_E_INVALID;
    }
    for (uint32_t i = 0; i < n; i++) {
        const char *element = pointer_at(ours + (size_t)i * a->size, a->name);
        label(name, sizeof name, "%s: %s %u (%s)", what, a->field, i + 1, element != NULL ? element : "no name");
        apus_status status = check_required(name, ours + (size_t)i * a->size, a->required, a->n_required, err);
        if (status != APUS_OK) {
            return status;
        }
    }
    memcpy(ops + a->pointer, &(const void *){ours}, sizeof(void *));
    return APUS_OK;
}

static apus_status check_ops(const char *what, const apus_kind *kind, apus_component *c, apus_keep *keep, apus_error *err)
{
    if (c->ops == NULL) {
        return apus_fail(err, APUS_E_INVALID, "%s: has no functions ('ops' is NULL)", what);
    }
    uint32_t size = size_of(c->ops);
    if (size < sizeof(void *) * 2 || size > STRUCT_BYTES_MAX) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: size %u of its functions is wrong, this host's is %u", what, size, kind->size);
        return apus_hint(err, APUS_E_INVALID, "set .size = sizeof the vtable");
    }
    char *ops = apus_keep_alloc(keep, kind->size);
    if (ops == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "%s: no memory", what);
    }
    apus_take(ops, kind->size, c->ops);
    apus_status status = check_required(what, ops, kind->required, kind->n_required, err);
    if (status == APUS_OK && kind->array != NULL) {
        status = check_array(what, kind->array, ops, keep, err);
    }
    c->ops = ops;
    return status;
}

/* ---------------------------------------------------------------- components and the plugin */

/* *keep_it = 0: of a kind that only later hosts know. */
static apus_status check_component(const char *file, const apus_plugin *plugin, size_t i, apus_component *c, apus_keep *keep, int *keep_it,
                                   apus_error *err)
{
    *keep_it = 1;
    if (!is_name(c->kind) || !is_name(c->name)) {
        const char *kind = c->kind != NULL ? c->kind : "NULL", *name = c->name != NULL ? c->name : "NULL";
        return apus_fail(err, APUS_E_INVALID, "%s: component %zu: kind '%.80s' and name '%.80s' must both be of [a-z0-9_]", file, i + 1, kind, name);
    }
    char what[LABEL];
    label(what, sizeof what, "%s: %s %s", file, c->kind, c->name);
    const apus_kind *kind = apus_kind_find(c->kind);
    if (kind == NULL && plugin->minor > APUS_ABI_MINOR) {
        char line[LABEL + 80];
        label(line, sizeof line, "%s: left out: this host (1.%d) does not know its kind", what, APUS_ABI_MINOR);
        apus_host_table()->log(APUS_LOG_WARN, "module", line);
        *keep_it = 0;
        return APUS_OK;
    }
    if (kind == NULL) {
        return apus_fail(err, APUS_E_INVALID, "%s: '%s' is no kind of component", what, c->kind);
    }
    if (!is_text(c->doc)) {
        return apus_fail(err, APUS_E_INVALID, "%s: has no doc", what);
    }
    apus_status status = check_params(what, c, keep, err);
    return status == APUS_OK ? check_ops(what, kind, c, keep, err) : status;
}

apus_status apus_plugin_check(const char *file, const apus_plugin *theirs, apus_keep *keep, apus_plugin *ours, apus_error *err)
{
    uint32_t head[2]; /* size, layout: all that may be read before the tag is known to be ours */
    memcpy(head, theirs, sizeof head);
    if (head[1] != APUS_LAYOUT_TAG) {
        return apus_fail(err, APUS_E_INVALID, "%s: layout tag 0x%08x, expected 0x%08x: not a plugin of this ABI", file, head[1], APUS_LAYOUT_TAG);
    }
    if (head[0] < PLUGIN_BYTES_LEAST || head[0] > STRUCT_BYTES_MAX) {
        return apus_fail(err, APUS_E_INVALID, "%s: descriptor of %u bytes, expected at least %zu", file, head[0], (size_t)PLUGIN_BYTES_LEAST);
    }
    apus_take(ours, sizeof *ours, theirs);
    if (ours->need_minor > APUS_ABI_MINOR) {
        (void)apus_fail(err, APUS_E_UNSUPPORTED, "%s: needs ABI %d.%u, this host serves %d.%d", file, APUS_ABI_MAJOR, ours->need_minor,
                        APUS_ABI_MAJOR, APUS_ABI_MINOR);
        return apus_hint(err, APUS_E_UNSUPPORTED, "use a newer apus, or an older build of the plugin");
    }
    if (ours->need_minor > ours->minor) {
        return apus_fail(err, APUS_E_INVALID, "%s: says it needs minor %u, but was compiled against %u", file, ours->need_minor, ours->minor);
    }
    if (!is_text(ours->name) || !is_text(ours->version) || !is_text(ours->license) || !is_text(ours->doc)) {
        return apus_fail(err, APUS_E_INVALID, "%s: the descriptor's '%s' is missing", file,
                         !is_text(ours->name)      ? "name"
                         : !is_text(ours->version) ? "version"
                         : !is_text(ours->license) ? "license"
                                                   : "doc");
    }
    if (ours->n_components == 0 || ours->n_components > ARRAY_MAX) {
        return apus_fail(err, APUS_E_INVALID, "%s: describes %u components", file, ours->n_components);
    }
    char what[LABEL];
    label(what, sizeof what, "%s: components", file);
    apus_component *components = take_array(what, ours->components, ours->n_components, COMPONENT_BYTES_LEAST, sizeof(apus_component), keep, err);
    if (components == NULL) {
        return APUS_E_INVALID;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < ours->n_components; i++) {
        int keep_it;
        apus_component c = components[i];
        apus_status status = check_component(file, ours, i, &c, keep, &keep_it, err);
        if (status != APUS_OK) {
            return status;
        }
        for (uint32_t k = 0; k < n && keep_it; k++) {
            if (strcmp(components[k].kind, c.kind) == 0 && strcmp(components[k].name, c.name) == 0) {
                return apus_fail(err, APUS_E_INVALID, "%s: %s %s: described twice", file, c.kind, c.name);
            }
        }
        if (keep_it) {
            components[n++] = c;
        }
    }
    ours->components = components;
    ours->n_components = n;
    return APUS_OK;
}
