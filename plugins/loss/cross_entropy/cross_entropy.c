/*
 * Loss cross_entropy: mean negative log-likelihood of the trained tokens, over the whole global batch:
 *   L = -(1/N) sum_t log p(token_t | tokens before it)
 */
#include <apus/plugin.h>
#include <apus/train.h>

static apus_status open_loss(const apus_host *host, const apus_node *params, void **loss, apus_error *err)
{
    (void)params;
    (void)err;
    *loss = (void *)(uintptr_t)host; /* nothing to keep; never read */
    return APUS_OK;
}

static void close_loss(void *loss)
{
    (void)loss;
}

static uint32_t needs(void *loss)
{
    (void)loss;
    return APUS_LOSS_SEQUENCES;
}

static void build(void *loss, apus_graph *g, const apus_signals *s)
{
    (void)loss;
    s->term(s->context, "cross_entropy", apus_neg(g, apus_sum(g, s->token_logps)), apus_sum(g, s->ones), 1.0);
}

static const apus_loss_ops ops = {.size = sizeof ops, .open = open_loss, .close = close_loss, .needs = needs, .build = build};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "loss",
                                             .name = "cross_entropy",
                                             .doc = "Mean negative log-likelihood of the trained tokens: pre-training and supervised fine-tuning.",
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "cross_entropy", .version = "1.0.0", .license = "Apache-2.0", .doc = "Next-token cross-entropy.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
