/*
 * Optimizer sgd: stochastic gradient descent as torch.optim.SGD computes it, with
 *   g <- g + wd p;  b <- momentum b + g;  p <- p - lr b      (nesterov: p <- p - lr (g + momentum b))
 */
#include <math.h>

#include <apus/plugin.h>
#include <apus/train.h>

typedef struct sgd {
    const apus_host *host;
    double learning_rate, momentum, weight_decay;
    int nesterov;
} sgd;

static apus_status open_optimizer(const apus_host *host, const apus_node *params, void **optimizer, apus_error *err)
{
    const apus_node_api *node = host->node;
    sgd *o = host->alloc(sizeof *o);
    if (o == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    o->host = host;
    o->learning_rate = node->as_float(node->get(params, "learning_rate"), NAN);
    o->momentum = node->as_float(node->get(params, "momentum"), 0.0);
    o->weight_decay = node->as_float(node->get(params, "weight_decay"), 0.0);
    o->nesterov = node->as_bool(node->get(params, "nesterov"), 0);
    if (o->nesterov && !(o->momentum > 0.0)) {
        host->free(o);
        apus_fail(err, APUS_E_INVALID, "optimizer sgd: nesterov needs a momentum above 0");
        return apus_hint(err, APUS_E_INVALID, "momentum: 0.9");
    }
    *optimizer = o;
    return APUS_OK;
}

static void close_optimizer(void *optimizer)
{
    sgd *o = optimizer;
    o->host->free(o);
}

static uint32_t flags(void *optimizer)
{
    (void)optimizer;
    return APUS_OPTIMIZER_ELEMENTWISE;
}

static uint32_t states(void *optimizer)
{
    return ((const sgd *)optimizer)->momentum > 0.0 ? 1 : 0;
}

static const char *state_name(void *optimizer, uint32_t k)
{
    (void)optimizer;
    (void)k;
    return "momentum_buffer";
}

static double learning_rate(void *optimizer)
{
    return ((const sgd *)optimizer)->learning_rate;
}

static void build(void *optimizer, apus_graph *g, apus_optimizer_step *s)
{
    const sgd *o = optimizer;
    apus_tensor grad = s->grad, direction;
    if (o->weight_decay > 0.0)
        grad = apus_add(g, grad, apus_mul(g, s->param, apus_scale(g, s->decay, o->weight_decay)));
    direction = grad;
    if (o->momentum > 0.0) {
        s->new_state[0] = apus_add(g, apus_scale(g, s->state[0], o->momentum), grad);
        direction = o->nesterov ? apus_add(g, grad, apus_scale(g, s->new_state[0], o->momentum)) : s->new_state[0];
    }
    s->new_param = apus_sub(g, s->param, apus_mul(g, direction, s->learning_rate));
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
     .max = 1e3,
     .doc = "Peak rate. Left out: 1e-4 for an adapter, 1e-5 for a whole model.",
     .aliases = "lr"},
    {.size = sizeof(apus_param),
     .name = "momentum",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 0.9999,
     .doc = "Share of the running direction that is kept."},
    {.size = sizeof(apus_param),
     .name = "weight_decay",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 10.0,
     .doc = "L2 penalty added to the gradient; norms and biases get none.",
     .aliases = "wd"},
    {.size = sizeof(apus_param),
     .name = "nesterov",
     .type = APUS_PARAM_BOOL,
     .fallback = "false",
     .min = 1,
     .max = 0,
     .doc = "Nesterov's form of momentum.",
     .needs = "momentum"},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "optimizer",
                                             .name = "sgd",
                                             .doc = "Stochastic gradient descent, with momentum.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "sgd",    .version = "1.0.0", .license = "Apache-2.0", .doc = "Stochastic gradient descent.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
