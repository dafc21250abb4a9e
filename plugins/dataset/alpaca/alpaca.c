/*
 * Dataset alpaca: instruction, input, output, system, history [[query, answer], …]. The user's turn is the instruction and, after
 * a line break, the input, as LLaMA-Factory joins them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    return node->get(row, "instruction") != NULL && node->get(row, "output") != NULL ? 90 : 0;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    (void)dataset;
    const char *instruction = node->as_string(node->get(row, "instruction"), NULL), *input = apus_row_text(node, row, "input");
    const char *output = node->as_string(node->get(row, "output"), NULL);
    const apus_node *history = node->get(row, "history");
    if (instruction == NULL)
        return apus_bad_row(node, row, "instruction", "a string", err);
    if (output == NULL)
        return apus_bad_row(node, row, "output", "a string", err);
    const size_t n = strlen(instruction) + (input != NULL ? strlen(input) : 0) + 2;
    char *query = malloc(n);
    if (query == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    const char *join = input != NULL && instruction[0] != '\0' ? "\n" : "";
    (void)snprintf(query, n, "%s%s%s", instruction, join, input != NULL ? input : "");
    apus_node *messages = node->make_list();
    apus_add_message(node, messages, "system", apus_row_text(node, row, "system"));
    for (size_t i = 0; i < node->length(history); i++) {
        apus_add_message(node, messages, "user", node->as_string(node->at(node->at(history, i), 0), NULL));
        apus_add_message(node, messages, "assistant", node->as_string(node->at(node->at(history, i), 1), NULL));
    }
    apus_add_message(node, messages, "user", query);
    apus_add_message(node, messages, "assistant", output);
    free(query);
    *out = node->make_map();
    return node->set(*out, "messages", messages);
}

static apus_status open_dataset(const apus_host *h, const apus_node *params, void **dataset, apus_error *err)
{
    (void)params;
    (void)err;
    *dataset = (void *)(uintptr_t)h; /* nothing to keep; never read */
    return APUS_OK;
}

static void close_dataset(void *dataset)
{
    (void)dataset;
}

static const apus_dataset_ops ops = {.size = sizeof ops, .claims = claims, .open = open_dataset, .close = close_dataset, .example = example};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "dataset",
                                             .name = "alpaca",
                                             .doc = "Instruction, input, output rows (Stanford Alpaca, LLaMA-Factory).",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "alpaca",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Instruction, input, output rows (Stanford Alpaca, LLaMA-Factory).",
                                   .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
