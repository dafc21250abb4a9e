/* Dataset text: a document in key `text`; a .txt file is one document. */
#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    return node->kind(node->get(row, "text")) == APUS_NODE_STRING ? (node->length(row) == 1 ? 90 : 30) : 0;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    (void)dataset;
    const apus_node *text = node->get(row, "text");
    if (node->kind(text) != APUS_NODE_STRING)
        return apus_bad_row(node, row, "text", "a string", err);
    *out = node->make_map();
    return node->set(*out, "text", node->copy(text));
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

static const apus_component components[] = {
    {.size = sizeof(apus_component), .kind = "dataset", .name = "text", .doc = "Plain text: documents, all of it trained.", .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "text",   .version = "1.0.0", .license = "Apache-2.0", .doc = "Plain text: documents, all of it trained.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
