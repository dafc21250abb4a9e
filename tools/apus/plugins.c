/* tools/apus/plugins.c: apus plugins and schema: what is there, from the parameter tables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apus.h"
#include "module/module.h"
#include "run/run.h"
#include "value/node.h"

static const char *type_name(apus_param_type t)
{
    static const char *const names[] = {"", "bool", "int", "float", "string", "path", "bytes", "list", "component", "any", "map", "model", "dataset"};
    return t > 0 && t < (int)(sizeof names / sizeof names[0]) ? names[t] : "?";
}

static void print_component(const apus_component *c)
{
    const apus_module *m = apus_component_module(c);
    printf("%s %s\n  %s\n  from %s %s (%s)\n", c->kind, c->name, c->doc, m->plugin->name, m->plugin->version, m->path);
    for (uint32_t i = 0; i < c->n_params; i++) {
        apus_param p;
        apus_take(&p, sizeof p, (const char *)c->params + (size_t)i * c->params[0].size);
        printf("\n  %s: %s", p.name, type_name(p.type));
        if (p.of_kind != NULL)
            printf(" (%s)", p.of_kind);
        if (p.item != 0)
            printf(" of %s", type_name(p.item));
        if (p.fallback != NULL)
            printf(", default %s", p.fallback);
        else
            printf(p.flags & APUS_PARAM_REQUIRED ? ", required" : ", may be left out");
        if (p.min <= p.max)
            printf(", %g to %g", p.min, p.max);
        if (p.unit != NULL)
            printf(" %s", p.unit);
        for (size_t k = 0; p.choices != NULL && p.choices[k] != NULL; k++)
            printf("%s%s", k == 0 ? ", one of " : " | ", p.choices[k]);
        printf("\n      %s\n", p.doc);
    }
}

static apus_node *describe(const apus_component *c)
{
    const apus_node_api *node = apus_nodes();
    const apus_module *m = apus_component_module(c);
    apus_node *n = node->make_map();
    (void)node->set(n, "kind", node->make_string(c->kind, (size_t)-1));
    (void)node->set(n, "name", node->make_string(c->name, (size_t)-1));
    (void)node->set(n, "doc", node->make_string(c->doc, (size_t)-1));
    (void)node->set(n, "plugin", node->make_string(m->plugin->name, (size_t)-1));
    (void)node->set(n, "version", node->make_string(m->plugin->version, (size_t)-1));
    (void)node->set(n, "path", node->make_string(m->path, (size_t)-1));
    (void)node->set(n, "sha256", node->make_string(m->sha256, (size_t)-1));
    return n;
}

static int do_plugins(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int json = 0;
    const apus_option options[] = {{"json", NULL, &json}};
    const int n = apus_options(&apus_verb_plugins, argc, argv, options, 1, rest);
    int code = n == -2 ? 0 : n < 0 ? APUS_EXIT_USAGE : n > 1 ? apus_usage(&apus_verb_plugins, "one NAME at most") : apus_bring_up();
    if (n < 0 || code != 0) {
        free(rest);
        return code;
    }
    apus_node *list = apus_nodes()->make_list();
    size_t found = 0;
    for (size_t i = 0; i < apus_component_count(NULL); i++) {
        const apus_component *c = apus_component_at(NULL, i);
        if (n == 1 && strcmp(c->name, rest[0]) != 0 && strcmp(c->kind, rest[0]) != 0)
            continue;
        if (json)
            (void)apus_nodes()->append(list, describe(c));
        else if (n == 1 && strcmp(c->name, rest[0]) == 0)
            printf("%s", found > 0 ? "\n" : ""), print_component(c);
        else
            printf("%-10s %-16s %s\n", c->kind, c->name, c->doc);
        found++;
    }
    if (json)
        apus_print_json(list, 1);
    else
        apus_nodes()->release(list);
    if (n == 1 && found == 0) {
        fprintf(stderr, "apus: no plugin has a component or kind '%s'\n  hint: `apus plugins` lists them all\n", rest[0]);
        code = 1;
    }
    free(rest);
    return code;
}

static int do_schema(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    apus_error err = {0};
    const int n = apus_options(&apus_verb_schema, argc, argv, NULL, 0, rest);
    free(rest);
    if (n != 0)
        return n == -2 ? 0 : n < 0 ? APUS_EXIT_USAGE : apus_usage(&apus_verb_schema, "takes no arguments");
    int code = apus_bring_up();
    if (code != 0)
        return code;
    apus_node *schema = apus_pipeline_schema(&err);
    if (schema == NULL)
        return apus_exit(APUS_E_INTERNAL, &err);
    apus_print_json(schema, 1);
    return 0;
}

const apus_verb apus_verb_plugins = {
    "plugins", "what is there, and each parameter",
    "plugins [NAME] [--json]\n\nLists every component, or those of a kind; NAME of a component: all its parameters.\n", do_plugins};
const apus_verb apus_verb_schema = {
    "schema", "JSON Schema of pipelines, for editors",
    "schema\n\nPrints the JSON Schema of pipeline files, made from the loaded plugins' parameter tables. In VS Code with the\n"
    "YAML extension: `# yaml-language-server: $schema=apus.schema.json` as the file's first line.\n",
    do_schema};
