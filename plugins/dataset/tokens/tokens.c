/* Dataset tokens: `input_ids`, and `labels` (-100: not trained; left out: all are). Needs no tokenizer. */
#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    return node->kind(node->get(row, "input_ids")) == APUS_NODE_LIST ? 100 : 0;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    (void)dataset;
    const apus_node *ids = node->get(row, "input_ids"), *labels = node->get(row, "labels");
    if (node->kind(ids) != APUS_NODE_LIST || node->length(ids) == 0)
        return apus_bad_row(node, row, "input_ids", "a list of token ids", err);
    if (labels != NULL && node->kind(labels) != APUS_NODE_LIST)
        return apus_bad_row(node, row, "labels", "a list as long as input_ids", err);
    *out = node->make_map();
    (void)node->set(*out, "input_ids", node->copy(ids));
    return labels != NULL ? node->set(*out, "labels", node->copy(labels)) : APUS_OK;
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
                                             .name = "tokens",
                                             .doc = "Ready-made token ids, with labels as in Hugging Face.",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "tokens",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Ready-made token ids, with labels as in Hugging Face.",
                                   .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
