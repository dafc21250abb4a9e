/*
 * Loss dpo: Direct Preference Optimization (Rafailov et al. 2023) and its variants. With r = lp - lp_ref of an answer,
 * D = r_chosen - r_rejected, ls = log sigmoid, e = label_smoothing:
 *   sigmoid  -(1-e) ls(beta D) - e ls(-beta D)                       (with e > 0: conservative DPO, Mitchell 2023)
 *   hinge    max(0, 1 - beta D)                                      (SLiC, Zhao et al. 2023)
 *   ipo      (D' - 1/(2 beta))^2, D' of log-probabilities per token  (Azar et al. 2023)
 *   robust   [-(1-e) ls(beta D) + e ls(-beta D)] / (1 - 2e)          (Chowdhury et al. 2024)
 * plus rpo_alpha times the mean negative log-likelihood of the chosen answers' tokens (Pang et al. 2024). Names as in TRL.
 */
#include <string.h>

#include <apus/plugin.h>
#include <apus/train.h>

enum { SIGMOID, HINGE, IPO, ROBUST };
static const char *const loss_types[] = {"sigmoid", "hinge", "ipo", "robust", NULL};

typedef struct dpo {
    const apus_host *host;
    int type;
    double beta, label_smoothing, rpo_alpha;
} dpo;

static apus_status open_loss(const apus_host *host, const apus_node *params, void **loss, apus_error *err)
{
    const apus_node_api *node = host->node;
    dpo *d = host->alloc(sizeof *d);
    if (d == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    const char *type = node->as_string(node->get(params, "loss_type"), NULL);
    d->host = host;
    while (strcmp(loss_types[d->type], type) != 0)
        d->type++;
    d->beta = node->as_float(node->get(params, "beta"), 0.1);
    d->label_smoothing = node->as_float(node->get(params, "label_smoothing"), 0.0);
    d->rpo_alpha = node->as_float(node->get(params, "rpo_alpha"), 0.0);
    if (d->label_smoothing > 0.0 && d->type != SIGMOID && d->type != ROBUST) {
        apus_fail(err, APUS_E_INVALID, "loss dpo: label_smoothing has no meaning with loss_type %s", type);
        host->free(d);
        return apus_hint(err, APUS_E_INVALID, "use loss_type sigmoid or robust, or leave label_smoothing out");
    }
    *loss = d;
    return APUS_OK;
}

static void close_loss(void *loss)
{
    dpo *d = loss;
    d->host->free(d);
}

static uint32_t needs(void *loss)
{
    (void)loss;
    return APUS_LOSS_PAIRS | APUS_LOSS_NEEDS_REFERENCE | APUS_LOSS_NO_DROPOUT;
}

/* [P] loss of each pair from margin D [P]. */
static apus_tensor pair_loss(const dpo *d, apus_graph *g, apus_tensor margin)
{
    const double e = d->label_smoothing;
    if (d->type == IPO)
        return apus_square(g, apus_affine(g, margin, 1.0, -1.0 / (2.0 * d->beta)));
    const apus_tensor logits = apus_scale(g, margin, d->beta);
    if (d->type == HINGE)
        return apus_relu(g, apus_affine(g, logits, -1.0, 1.0));
    const apus_tensor right = apus_log_sigmoid(g, logits);
    if (e == 0.0)
        return apus_neg(g, right);
    const apus_tensor wrong = apus_log_sigmoid(g, apus_neg(g, logits));
    if (d->type == ROBUST)
        return apus_scale(g, apus_add(g, apus_scale(g, right, -(1.0 - e)), apus_scale(g, wrong, e)), 1.0 / (1.0 - 2.0 * e));
    return apus_add(g, apus_scale(g, right, -(1.0 - e)), apus_scale(g, wrong, -e));
}

static void build(void *loss, apus_graph *g, const apus_signals *s)
{
    const dpo *d = loss;
    const apus_tensor pairs = apus_sum(g, s->pair_ones);
    apus_tensor chosen = apus_sub(g, s->chosen_logps, s->reference_chosen_logps);
    apus_tensor rejected = apus_sub(g, s->rejected_logps, s->reference_rejected_logps);
    apus_tensor margin = d->type == IPO ? apus_sub(g, apus_div(g, chosen, s->chosen_tokens), apus_div(g, rejected, s->rejected_tokens))
                                        : apus_sub(g, chosen, rejected);
    s->term(s->context, "preference", apus_sum(g, pair_loss(d, g, margin)), pairs, 1.0);
    if (d->rpo_alpha > 0.0)
        s->term(s->context, "nll", apus_neg(g, apus_sum(g, s->chosen_logps)), apus_sum(g, s->chosen_tokens), d->rpo_alpha);

    chosen = apus_scale(g, chosen, d->beta);
    rejected = apus_scale(g, rejected, d->beta);
    s->metric(s->context, "rewards/chosen", apus_sum(g, chosen), pairs);
    s->metric(s->context, "rewards/rejected", apus_sum(g, rejected), pairs);
    s->metric(s->context, "rewards/accuracies", apus_sum(g, apus_greater(g, chosen, rejected)), pairs);
    s->metric(s->context, "rewards/margins", apus_sum(g, apus_sub(g, chosen, rejected)), pairs);
    s->metric(s->context, "logps/chosen", apus_sum(g, s->chosen_logps), pairs);
    s->metric(s->context, "logps/rejected", apus_sum(g, s->rejected_logps), pairs);
}

static const apus_loss_ops ops = {.size = sizeof ops, .open = open_loss, .close = close_loss, .needs = needs, .build = build};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "beta",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.1",
     .min = 1e-6,
     .max = 1e3,
     .doc = "How strongly the policy is held to the reference.",
     .aliases = "pref_beta dpo_beta"},
    {.size = sizeof(apus_param),
     .name = "loss_type",
     .type = APUS_PARAM_STRING,
     .fallback = "sigmoid",
     .choices = loss_types,
     .min = 1,
     .max = 0,
     .doc = "Form of the loss over the reward margin.",
     .aliases = "pref_loss"},
    {.size = sizeof(apus_param),
     .name = "label_smoothing",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 0.499,
     .doc = "Assumed share of pairs whose label is wrong.",
     .needs = "loss_type=sigmoid loss_type=robust"},
    {.size = sizeof(apus_param),
     .name = "rpo_alpha",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 1e3,
     .doc = "Weight of the chosen answers' mean negative log-likelihood.",
     .aliases = "pref_ftx"},
    {.size = sizeof(apus_param),
     .name = "reference",
     .type = APUS_PARAM_MODEL,
     .flags = APUS_PARAM_NULLABLE,
     .fallback = "start",
     .min = 1,
     .max = 0,
     .doc = "start: the policy as it was at step 0 (adapter off if it is new, else a frozen copy); base: the adapter off; "
            "precomputed: chosen_logps and rejected_logps of the rows; or a model.",
     .aliases = "ref_model"},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "loss",
                                             .name = "dpo",
                                             .doc = "Direct Preference Optimization: pairs of a chosen and a rejected answer.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "dpo",    .version = "1.0.0", .license = "Apache-2.0", .doc = "Direct Preference Optimization.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
