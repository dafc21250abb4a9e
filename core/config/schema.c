/*
 * core/config/schema: a parameter table as JSON Schema (draft 2020-12), so that editors complete and check what
 * params.c will check.
 */
#include "config/config.h"
#include "value/node.h"

#include <math.h>
#include <string.h>

/* Building is sticky: a NULL anywhere (no memory) makes the whole NULL at the end. */
typedef struct builder {
    const apus_node_api *api;
    int failed;
} builder;

static apus_node *put(builder *b, apus_node *map, const char *key, apus_node *value)
{
    if (b->api->set(map, key, value) != APUS_OK)
        b->failed = 1;
    return map;
}

static apus_node *put_text(builder *b, apus_node *map, const char *key, const char *value)
{
    return put(b, map, key, b->api->make_string(value, (size_t)-1));
}

static apus_node *of_type(builder *b, const char *type)
{
    return put_text(b, b->api->make_map(), "type", type);
}

static void add(builder *b, apus_node *list, apus_node *item)
{
    if (b->api->append(list, item) != APUS_OK)
        b->failed = 1;
}

/* {anyOf: [a, c]} */
static apus_node *either(builder *b, apus_node *a, apus_node *c)
{
    apus_node *any = b->api->make_list();
    add(b, any, a);
    add(b, any, c);
    return put(b, b->api->make_map(), "anyOf", any);
}

static apus_node *pattern(builder *b, const char *regex)
{
    return put_text(b, of_type(b, "string"), "pattern", regex);
}

static apus_node *number(builder *b, double v)
{
    return v == floor(v) && fabs(v) < 9e15 ? b->api->make_int((int64_t)v) : b->api->make_float(v);
}

static apus_node *numeric(builder *b, const apus_param *p, const char *type)
{
    apus_node *s = of_type(b, type);
    if (p->min <= p->max && (p->min != 0 || p->max != 0)) {
        if (isfinite(p->min))
            (void)put(b, s, "minimum", number(b, p->min));
        if (isfinite(p->max))
            (void)put(b, s, "maximum", number(b, p->max));
    }
    return s;
}

/* What may be written for a value of `type`. Where a string would not do, one that holds ${…} does. */
static apus_node *value_schema(builder *b, const apus_param *p, apus_param_type type)
{
    static const char filled[] = "\\$\\{";
    apus_node *s;
    switch (type) {
    case APUS_PARAM_BOOL:
        return either(b, of_type(b, "boolean"), pattern(b, filled));
    case APUS_PARAM_INT:
        return either(b, numeric(b, p, "integer"), pattern(b, filled));
    case APUS_PARAM_FLOAT:
        return either(b, numeric(b, p, "number"), pattern(b, filled));
    case APUS_PARAM_BYTES:
        return either(b, numeric(b, p, "integer"), pattern(b, "^[0-9.]+ *([kKMGT]i?)?[Bb]$|\\$\\{"));
    case APUS_PARAM_STRING:
        if (p->choices == NULL || p->choices[0] == NULL)
            return of_type(b, "string");
        s = b->api->make_list();
        for (size_t i = 0; p->choices[i] != NULL; i++)
            add(b, s, b->api->make_string(p->choices[i], (size_t)-1));
        return either(b, put(b, b->api->make_map(), "enum", s), pattern(b, filled));
    case APUS_PARAM_PATH:
        return put(b, of_type(b, "string"), "minLength", b->api->make_int(1));
    case APUS_PARAM_COMPONENT:
        s = of_type(b, "object");
        (void)put(b, s, "properties", put(b, b->api->make_map(), "type", of_type(b, "string")));
        return either(b, of_type(b, "string"), s);
    case APUS_PARAM_LIST:
        s = put(b, of_type(b, "array"), "items", value_schema(b, p, p->item));
        return either(b, s, value_schema(b, p, p->item));
    case APUS_PARAM_MAP:
        return put(b, of_type(b, "object"), "additionalProperties", value_schema(b, p, p->item));
    default:
        return b->api->make_map(); /* anything */
    }
}

/* "doc (unit: tokens; a loss; default: 5e-5)" */
static apus_node *param_schema(builder *b, const apus_param *p)
{
    apus_node *s = value_schema(b, p, p->type);
    if (p->flags & APUS_PARAM_NULLABLE)
        s = either(b, s, of_type(b, "null"));
    char text[2048];
    size_t o = (size_t)snprintf(text, sizeof text, "%s", p->doc != NULL ? p->doc : "");
    if (p->unit != NULL && o < sizeof text)
        o += (size_t)snprintf(text + o, sizeof text - o, "%sUnit: %s.", o > 0 ? " " : "", p->unit);
    if (p->of_kind != NULL && o < sizeof text)
        o += (size_t)snprintf(text + o, sizeof text - o, "%sA %s.", o > 0 ? " " : "", p->of_kind);
    if (o > 0)
        (void)put_text(b, s, "description", text);
    if (p->of_kind != NULL)
        (void)put_text(b, s, "x-apus-kind", p->of_kind);
    if (p->fallback != NULL) {
        apus_node *value = apus_yaml_parse(p->fallback, strlen(p->fallback), "default", NULL);
        if (value != NULL) {
            apus_node_unplace(value);
            (void)put(b, s, "default", value);
        }
    }
    return s;
}

apus_node *apus_params_schema(const apus_param *params, uint32_t n_params)
{
    builder b = {.api = apus_nodes()};
    apus_node *schema = of_type(&b, "object"), *properties = b.api->make_map(), *required = b.api->make_list();
    for (uint32_t i = 0; i < n_params; i++) {
        (void)put(&b, properties, params[i].name, param_schema(&b, &params[i]));
        if (params[i].flags & APUS_PARAM_REQUIRED)
            add(&b, required, b.api->make_string(params[i].name, (size_t)-1));
    }
    (void)put(&b, schema, "properties", properties);
    if (b.api->length(required) > 0)
        (void)put(&b, schema, "required", required);
    else
        b.api->release(required);
    (void)put(&b, schema, "additionalProperties", b.api->make_bool(0));
    if (b.failed) {
        b.api->release(schema);
        return NULL;
    }
    return schema;
}
