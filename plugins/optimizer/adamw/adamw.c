/*
 * Optimizer adamw: Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), as torch.optim.AdamW computes it:
 *   p <- p (1 - lr wd);  m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
 *   p <- p - lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)
 * with the fraction extended by sqrt(1-b2^t), which is one division less for each element.
 */
#include <math.h>

#include <apus/plugin.h>
#include <apus/train.h>

typedef struct adamw {
    const apus_host *host;
    double learning_rate, beta1, beta2, eps, weight_decay;
} adamw;

static apus_status open_optimizer(const apus_host *host, const apus_node *params, void **optimizer, apus_error *err)
{
    const apus_node_api *node = host->node;
    const apus_node *betas = node->get(params, "betas");
    adamw *a = host->alloc(sizeof *a);
    if (a == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    a->host = host;
    a->learning_rate = node->as_float(node->get(params, "learning_rate"), NAN);
    a->beta1 = node->as_float(node->at(betas, 0), NAN);
    a->beta2 = node->as_float(node->at(betas, 1), NAN);
    a->eps = node->as_float(node->get(params, "eps"), 1e-8);
    a->weight_decay = node->as_float(node->get(params, "weight_decay"), 0.1);
    if (node->length(betas) != 2 || !(a->beta1 >= 0.0 && a->beta1 < 1.0) || !(a->beta2 >= 0.0 && a->beta2 < 1.0)) {
        char where[256];
        apus_fail(err, APUS_E_INVALID, "%s: optimizer adamw: betas must be two numbers in [0, 1)", node->where(betas, where, sizeof where));
        host->free(a);
        return apus_hint(err, APUS_E_INVALID, "betas: [0.9, 0.95]");
    }
    *optimizer = a;
    return APUS_OK;
}

static void close_optimizer(void *optimizer)
{
    adamw *a = optimizer;
    a->host->free(a);
}

static uint32_t flags(void *optimizer)
{
    (void)optimizer;
    return APUS_OPTIMIZER_ELEMENTWISE;
}

static uint32_t states(void *optimizer)
{
    (void)optimizer;
    return 2;
}

static const char *state_name(void *optimizer, uint32_t k)
{
    (void)optimizer;
    return k == 0 ? "exp_avg" : "exp_avg_sq";
}

static double learning_rate(void *optimizer)
{
    return ((const adamw *)optimizer)->learning_rate;
}

/* 1 - beta^t, [1]: by expm1, since 1 - beta^t loses its digits for beta near 1. */
static apus_tensor bias_correction(apus_graph *g, apus_tensor step, double beta)
{
    return beta > 0.0 ? apus_neg(g, apus_expm1(g, apus_scale(g, step, log(beta)))) : apus_scalar(g, 1.0);
}

static void build(void *optimizer, apus_graph *g, apus_optimizer_step *s)
{
    const adamw *a = optimizer;
    const apus_tensor m = apus_add(g, apus_scale(g, s->state[0], a->beta1), apus_scale(g, s->grad, 1.0 - a->beta1));
    const apus_tensor v = apus_add(g, apus_scale(g, s->state[1], a->beta2), apus_scale(g, apus_square(g, s->grad), 1.0 - a->beta2));
    const apus_tensor root = apus_sqrt(g, bias_correction(g, s->step, a->beta2));                                     /* [1] */
    const apus_tensor rate = apus_mul(g, apus_div(g, s->learning_rate, bias_correction(g, s->step, a->beta1)), root); /* [1] */
    const apus_tensor keep = apus_affine(g, apus_mul(g, s->learning_rate, s->decay), -a->weight_decay, 1.0);          /* [1] */
    const apus_tensor denominator = apus_add(g, apus_sqrt(g, v), apus_scale(g, root, a->eps));
    s->new_param = apus_sub(g, apus_mul(g, s->param, keep), apus_mul(g, apus_div(g, m, denominator), rate));
    s->new_state[0] = m;
    s->new_state[1] = v;
}

static const apus_optimizer_ops ops = {.size = sizeof ops,
                                       .open = open_optimizer,
                                       .close = close_optimizer,
                                       .flags = flags,
                                       .states = states,
                                       .state_name = state_name,
                                       .learning_rate = learning_rate,
                                       .build = build};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "learning_rate",
     .type = APUS_PARAM_FLOAT,
     .flags = APUS_PARAM_NULLABLE,
     .min = 0.0,
     .max = 10.0,
     .doc = "Peak rate. Left out: 1e-4 for an adapter, 1e-5 for a whole model.",
     .aliases = "lr"},
    {.size = sizeof(apus_param),
     .name = "betas",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_FLOAT,
     .fallback = "[0.9, 0.95]",
     .min = 1,
     .max = 0,
     .doc = "Decay of the running means of the gradient and of its square.",
     .aliases = "adam_beta1 adam_beta2 adam_betas"},
    {.size = sizeof(apus_param),
     .name = "eps",
     .type = APUS_PARAM_FLOAT,
     .fallback = "1e-8",
     .min = 0.0,
     .max = 1.0,
     .doc = "Added to the root of the second moment.",
     .aliases = "adam_epsilon adam_eps epsilon"},
    {.size = sizeof(apus_param),
     .name = "weight_decay",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.1",
     .min = 0.0,
     .max = 10.0,
     .doc = "Decoupled decay; norms and biases get none.",
     .aliases = "wd"},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "optimizer",
                                             .name = "adamw",
                                             .doc = "Adam with decoupled weight decay.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "adamw",  .version = "1.0.0", .license = "Apache-2.0", .doc = "Adam with decoupled weight decay.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
