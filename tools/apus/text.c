/* tools/apus/text.c: apus tokenize and render: the tokenizer alone, the template alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "apus.h"
#include "module/module.h"
#include "value/node.h"

static int decode(const apus_model *m, const char *text, size_t length)
{
    const apus_node_api *node = apus_nodes();
    apus_error err = {0};
    apus_node *n = node->parse_json(text, length, "standard input", &err);
    if (n == NULL)
        return apus_exit(APUS_E_INVALID, &err);
    const apus_node *list = node->kind(n) == APUS_NODE_MAP ? node->get(n, "ids") : n;
    const size_t count = node->length(list);
    int32_t *ids = malloc((count + 1) * sizeof *ids);
    for (size_t i = 0; ids != NULL && i < count; i++)
        ids[i] = (int32_t)node->as_int(node->at(list, i), -1);
    char *out = NULL;
    size_t n_out = 0;
    const apus_status st =
        ids != NULL ? apus_text_decode(apus_model_text(m), ids, count, 0, &out, &n_out, &err) : apus_fail(&err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        fwrite(out, 1, n_out, stdout);
    apus_host_table()->free(out);
    free(ids);
    node->release(n);
    return apus_exit(st, &err);
}

static int encode(const apus_model *m, const char *text, size_t length, int flags)
{
    apus_error err = {0};
    apus_tokens ids = {0};
    const apus_status st = apus_text_encode_parallel(apus_model_text(m), text, length, flags, 0, &ids, &err);
    if (st == APUS_OK) { /* printed as it goes: a book has millions of ids */
        printf("{\"ids\": [");
        for (size_t i = 0; i < ids.n; i++)
            printf("%s%d", i ? ", " : "", ids.ids[i]);
        printf("]}\n");
    }
    apus_host_table()->free(ids.ids);
    apus_host_table()->free(ids.begin);
    return apus_exit(st, &err);
}

static int do_tokenize(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int special = 0, back = 0, json = 0, plain = 0;
    const apus_option options[] = {{"special", NULL, &special}, {"decode", NULL, &back}, {"json", NULL, &json}, {"no-parse-special", NULL, &plain}};
    const int n = apus_options(&apus_verb_tokenize, argc, argv, options, 4, rest);
    int code = apus_one_model(&apus_verb_tokenize, n);
    apus_model_arguments a = {.model = n == 1 ? rest[0] : NULL};
    free(rest);
    if (code >= 0)
        return code;
    code = apus_bring_up();
    apus_model *m = NULL;
    if (code == 0)
        code = apus_open_model(&a, 0, 0, NULL, &m);
    if (code == 0 && (apus_model_text(m) == NULL || !apus_text_has_tokenizer(apus_model_text(m)))) {
        fprintf(stderr, "apus: %s: there is no tokenizer\n", a.model);
        code = 1;
    }
    size_t length;
    char *text = code == 0 ? apus_read_all(NULL, &length) : NULL;
    if (code == 0 && text == NULL)
        code = 3;
    if (code == 0)
        code = back ? decode(m, text, length)
                    : encode(m, text, length, (plain ? 0 : APUS_ENCODE_SPECIAL_TEXT) | (special ? APUS_ENCODE_ADD_SPECIAL : 0));
    free(text);
    apus_model_close(m);
    return code;
}

/* name=JSON into a map. */
static int set_variable(apus_node *map, const char *text)
{
    const apus_node_api *node = apus_nodes();
    apus_error err = {0};
    const char *equals = strchr(text, '=');
    char name[128];
    if (equals == NULL || (size_t)(equals - text) >= sizeof name)
        return apus_usage(&apus_verb_render, "--var takes name=JSON");
    snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
    apus_node *value = node->parse_json(equals + 1, strlen(equals + 1), name, &err);
    if (value == NULL)
        return apus_exit(APUS_E_INVALID, &err);
    (void)node->set(map, name, value);
    return 0;
}

static int do_render(int argc, char **argv)
{
    const apus_node_api *node = apus_nodes();
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *messages_path = NULL, *tools_path = NULL, *var = NULL;
    apus_model_arguments a = {0};
    apus_node *variables = node->make_map();
    int bare = 0, code = 0;
    /* --var may come more than once: read here, before the others. */
    int kept = 1;
    for (int i = 1; i < argc && code == 0; i++) {
        if (strcmp(argv[i], "--var") == 0 && i + 1 < argc)
            code = set_variable(variables, argv[++i]);
        else
            argv[kept++] = argv[i];
    }
    const apus_option options[] = {{"messages", &messages_path, NULL},
                                   {"tools", &tools_path, NULL},
                                   {"template", &a.template_file, NULL},
                                   {"no-generation-prompt", NULL, &bare},
                                   {"var", &var, NULL}};
    const int n = code == 0 ? apus_options(&apus_verb_render, kept, argv, options, 5, rest) : 0;
    if (code == 0) {
        code = apus_one_model(&apus_verb_render, n);
        if (code < 0 && messages_path == NULL)
            code = apus_usage(&apus_verb_render, "--messages FILE is missing");
    }
    a.model = n == 1 ? rest[0] : NULL;
    free(rest);
    if (code >= 0) {
        node->release(variables);
        return code;
    }
    code = apus_bring_up();
    apus_model *m = NULL;
    apus_node *messages = NULL, *tools = NULL;
    if (code == 0)
        code = apus_open_model(&a, 0, 0, NULL, &m);
    if (code == 0 && (messages = apus_read_json(messages_path)) == NULL)
        code = 1;
    if (code == 0 && tools_path != NULL && (tools = apus_read_json(tools_path)) == NULL)
        code = 1;
    if (code == 0) {
        apus_error err = {0};
        apus_template_output out = {0};
        apus_status st = apus_model_text(m) != NULL ? apus_text_render(apus_model_text(m), messages, tools, variables, !bare, &out, &err)
                                                    : apus_fail(&err, APUS_E_INVALID, "%s: there is no chat template", a.model);
        if (st == APUS_OK)
            fwrite(out.text, 1, out.length, stdout);
        apus_template_output_free(&out);
        code = apus_exit(st, &err);
    }
    node->release(messages);
    node->release(tools);
    node->release(variables);
    apus_model_close(m);
    return code;
}

const apus_verb apus_verb_tokenize = {"tokenize", "the tokenizer alone: text to ids, and back",
                                      "tokenize MODEL [--special] [--no-parse-special] [--decode] < TEXT\n\nAll of standard input, its final line "
                                      "break included -> {\"ids\": […]}, as transformers'\n"
                                      "encode(add_special_tokens=False).\n\n"
                                      "  --special           add what the post-processor adds (BOS, …)\n"
                                      "  --no-parse-special  strings of special tokens are ordinary text\n"
                                      "  --decode            the other way: a JSON list of ids (or {\"ids\": […]}) to text\n",
                                      do_tokenize};
const apus_verb apus_verb_render = {"render", "the chat template alone: messages to text",
                                    "render MODEL --messages F.json [--tools F.json] [--template F] [--var name=JSON …] [--no-generation-prompt]\n",
                                    do_render};
