/* core/run/schema.c: JSON Schema (draft 2020-12) of pipeline files, made from the parameter tables of what is loaded. */
#include <stdio.h>
#include <string.h>

#include "config/config.h"
#include "data/dataset.h"
#include "module/module.h"
#include "run/pipeline.h"
#include "value/node.h"

#define NODE apus_nodes()

static apus_node *text(const char *s)
{
    return NODE->make_string(s, (size_t)-1);
}

/* {const: name} */
static apus_node *constant(const char *name)
{
    apus_node *n = NODE->make_map();
    (void)NODE->set(n, "const", text(name));
    return n;
}

static apus_node *reference(const char *definition)
{
    char path[160];
    apus_node *n = NODE->make_map();
    snprintf(path, sizeof path, "#/$defs/%s", definition);
    (void)NODE->set(n, "$ref", text(path));
    return n;
}

/* Put the properties of a parameter table into an object's schema; parameters that name a kind point to its definition. */
static void add_properties(apus_node *object, const apus_param *params, uint32_t n, uint32_t stride)
{
    apus_node *properties = NODE->get(object, "properties") != NULL ? NODE->copy(NODE->get(object, "properties")) : NODE->make_map();
    apus_node *required = NODE->get(object, "required") != NULL ? NODE->copy(NODE->get(object, "required")) : NODE->make_list();
    for (uint32_t i = 0; i < n; i++) {
        apus_param p;
        apus_take(&p, sizeof p, (const char *)params + (size_t)i * stride);
        apus_node *one = apus_params_schema(&p, 1);
        apus_node *schema = NODE->copy(NODE->get(NODE->get(one, "properties"), p.name));
        if (p.type == APUS_PARAM_COMPONENT) {
            char definition[96];
            NODE->release(schema);
            snprintf(definition, sizeof definition, "kind-%s", p.of_kind);
            schema = reference(definition);
        } else if (p.type == APUS_PARAM_DATASET) {
            NODE->release(schema);
            schema = reference("dataset");
        }
        (void)NODE->set(schema, "description", text(p.doc));
        (void)NODE->set(properties, p.name, schema);
        if (p.flags & APUS_PARAM_REQUIRED)
            (void)NODE->append(required, text(p.name));
        NODE->release(one);
    }
    (void)NODE->set(object, "properties", properties);
    (void)NODE->set(object, "required", required);
}

static apus_node *new_object(const char *description)
{
    apus_node *o = NODE->make_map();
    (void)NODE->set(o, "type", text("object"));
    if (description != NULL)
        (void)NODE->set(o, "description", text(description));
    (void)NODE->set(o, "additionalProperties", NODE->make_bool(0));
    return o;
}

static void add_component(apus_node *object, const apus_component *c)
{
    if (c->n_params > 0)
        add_properties(object, c->params, c->n_params, c->params[0].size);
}

/* A kind: one of its names, or a mapping with `type:` and that component's parameters. */
static apus_node *kind_schema(const char *kind)
{
    apus_node *any = NODE->make_list(), *schema = NODE->make_map();
    for (size_t i = 0; i < apus_component_count(kind); i++) {
        const apus_component *c = apus_component_at(kind, i);
        apus_node *object = new_object(c->doc);
        add_component(object, c);
        apus_node *properties = NODE->copy(NODE->get(object, "properties") != NULL ? NODE->get(object, "properties") : NULL);
        if (properties == NULL || NODE->kind(properties) != APUS_NODE_MAP) {
            NODE->release(properties);
            properties = NODE->make_map();
        }
        (void)NODE->set(properties, "type", constant(c->name));
        (void)NODE->set(object, "properties", properties);
        (void)NODE->append(any, constant(c->name));
        (void)NODE->append(any, object);
    }
    (void)NODE->set(schema, "anyOf", any);
    return schema;
}

/* One dataset: the common parameters with those of every type. */
static apus_node *dataset_schema(void)
{
    uint32_t n;
    const apus_param *common = apus_dataset_params(&n);
    apus_node *object = new_object("Rows of a file, or made by a type."), *path = NODE->make_map(), *list = NODE->make_map(),
              *any = NODE->make_list();
    add_properties(object, common, n, sizeof *common);
    for (size_t i = 0; i < apus_component_count("dataset"); i++)
        add_component(object, apus_component_at("dataset", i));
    (void)NODE->remove(object, "required"); /* each type has its own */
    (void)NODE->set(path, "type", text("string"));
    (void)NODE->set(list, "type", text("array"));
    (void)NODE->set(list, "items", reference("dataset"));
    (void)NODE->append(any, path);
    (void)NODE->append(any, object);
    (void)NODE->append(any, list);
    apus_node *schema = NODE->make_map();
    (void)NODE->set(schema, "anyOf", any);
    return schema;
}

static apus_node *stages_schema(void)
{
    apus_node *any = NODE->make_list(), *items = NODE->make_map(), *schema = NODE->make_map();
    for (size_t i = 0; i < apus_component_count("stage"); i++) {
        const apus_component *c = apus_component_at("stage", i);
        uint32_t n;
        const apus_param *own = apus_pipeline_stage_params(&n);
        apus_node *object = new_object(c->doc);
        add_properties(object, own, n, sizeof *own);
        add_component(object, c);
        apus_node *properties = NODE->copy(NODE->get(object, "properties"));
        (void)NODE->set(properties, "stage", constant(c->name));
        (void)NODE->set(object, "properties", properties);
        (void)NODE->append(any, object);
    }
    (void)NODE->set(items, "anyOf", any);
    (void)NODE->set(schema, "type", text("array"));
    (void)NODE->set(schema, "minItems", NODE->make_int(1));
    (void)NODE->set(schema, "items", items);
    return schema;
}

apus_node *apus_pipeline_schema(apus_error *err)
{
    static const char *const kinds[] = {"backend", "tuner", "loss", "optimizer", "sampler", "tracker"};
    uint32_t n;
    const apus_param *top = apus_pipeline_params(&n);
    apus_node *schema = new_object("A pipeline of apus."), *defs = NODE->make_map(), *include = NODE->make_map();
    if (schema == NULL || defs == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        return NULL;
    }
    add_properties(schema, top, n, sizeof *top);
    apus_node *properties = NODE->copy(NODE->get(schema, "properties"));
    (void)NODE->set(include, "description", text("Files merged below this one, relative to it."));
    (void)NODE->set(properties, "include", include);
    (void)NODE->set(properties, "stages", stages_schema());
    apus_node *trackers = NODE->make_map();
    (void)NODE->set(trackers, "type", text("array"));
    (void)NODE->set(trackers, "items", reference("kind-tracker"));
    (void)NODE->set(properties, "trackers", trackers);
    (void)NODE->set(schema, "properties", properties);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "kind-%s", kinds[i]);
        (void)NODE->set(defs, name, kind_schema(kinds[i]));
    }
    (void)NODE->set(defs, "dataset", dataset_schema());
    (void)NODE->set(schema, "$defs", defs);
    (void)NODE->set(schema, "$schema", text("https://json-schema.org/draft/2020-12/schema"));
    return schema;
}
