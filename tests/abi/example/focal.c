/*
 * Loss focal: cross-entropy that leans on what the model does not know yet (Lin et al. 2017, "Focal Loss"):
 *   L = -(1/N) sum_t (1 - p_t)^gamma log p_t,   p_t the probability of the t-th trained token
 */
#include <apus/plugin.h>
#include <apus/train.h>

typedef struct focal {
    const apus_host *host;
    double gamma;
} focal;

/* params holds every parameter of the table below, checked and with its default filled in. */
static apus_status focal_open(const apus_host *host, const apus_node *params, void **loss, apus_error *err)
{
    focal *f = (focal *)host->alloc(sizeof *f);
    if (f == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "loss focal: no memory");
    }
    f->host = host;
    f->gamma = host->node->as_float(host->node->get(params, "gamma"), 2.0);
    *loss = f;
    return APUS_OK;
}

static void focal_close(void *loss)
{
    focal *f = (focal *)loss;
    f->host->free(f);
}

static uint32_t focal_needs(void *loss)
{
    (void)loss;
    return APUS_LOSS_SEQUENCES;
}

/* Builds the formula; the host differentiates it, plans it and runs it on whatever device there is. */
static void focal_build(void *loss, apus_graph *g, const apus_signals *s)
{
    const focal *f = (const focal *)loss;
    apus_tensor p = apus_exp(g, s->token_logps);                                         /* [N] */
    apus_tensor unsure = apus_maximum(g, apus_sub(g, s->ones, p), apus_scalar(g, 1e-7)); /* [N]; log needs > 0 */
    apus_tensor weight = apus_exp(g, apus_scale(g, apus_log(g, unsure), f->gamma));      /* [N] (1 - p)^gamma */
    apus_tensor sum = apus_neg(g, apus_sum(g, apus_mul(g, weight, s->token_logps)));     /* [1] */
    s->term(s->context, "focal", sum, apus_sum(g, s->ones), 1.0);
}

static const apus_loss_ops ops = {sizeof ops, focal_open, focal_close, focal_needs, focal_build};

static const apus_param params[] = {{.size = sizeof(apus_param),
                                     .name = "gamma",
                                     .type = APUS_PARAM_FLOAT,
                                     .fallback = "2.0",
                                     .min = 0.0,
                                     .max = 10.0,
                                     .doc = "How strongly sure tokens are set aside; 0 is cross-entropy."}};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "loss",
                                             .name = "focal",
                                             .doc = "Cross-entropy that leans on unsure tokens.",
                                             .params = params,
                                             .n_params = 1,
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "focal",  .version = "1.0.0", .license = "Apache-2.0", .doc = "Focal loss for language models.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = (const apus_graph_api *)host->extension("apus.graph/1");
    return apus_graph_functions != NULL ? &plugin : NULL;
}
