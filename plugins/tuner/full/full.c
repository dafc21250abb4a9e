/* Tuner full: every weight of the model is trained. */
#include <apus/plugin.h>
#include <apus/train.h>

static apus_status open_tuner(const apus_host *host, const apus_node *params, void **tuner, apus_error *err)
{
    (void)params;
    (void)err;
    *tuner = (void *)(uintptr_t)host; /* nothing to keep; never read */
    return APUS_OK;
}

static void close_tuner(void *tuner)
{
    (void)tuner;
}

static apus_status bind_weights(void *tuner, const apus_weight_spec *weights, size_t n, apus_error *err)
{
    (void)tuner;
    (void)weights;
    (void)n;
    (void)err;
    return APUS_OK;
}

static int trains(void *tuner, const apus_weight_spec *weight)
{
    (void)tuner;
    (void)weight;
    return 1;
}

static size_t parameters(void *tuner)
{
    (void)tuner;
    return 0;
}

static apus_status parameter(void *tuner, size_t i, apus_weight_spec *spec)
{
    (void)tuner;
    (void)i;
    (void)spec;
    return APUS_E_NOT_FOUND;
}

static const apus_tuner_ops ops = {.size = sizeof ops,
                                   .open = open_tuner,
                                   .close = close_tuner,
                                   .bind = bind_weights,
                                   .trains = trains,
                                   .parameters = parameters,
                                   .parameter = parameter};

static const apus_component components[] = {
    {.size = sizeof(apus_component), .kind = "tuner", .name = "full", .doc = "Trains every weight of the model.", .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "full",   .version = "1.0.0", .license = "Apache-2.0", .doc = "Full-parameter training.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
