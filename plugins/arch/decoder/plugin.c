/*
 * plugins/arch/decoder: the dense decoder of Llama, Mistral, Qwen2, Qwen3 and their kin (SmolLM2, TinyLlama, …), by
 * options of config.json: pre-norm blocks of grouped-query attention with half-split rotary positions and a gated MLP.
 * Refuses to know where weights come from, how they are stored, or what is trained.
 */
#include "decoder.h"

static const apus_host *the_host; /* set once at entry */

static int claims(const apus_node *config)
{
    static const char *const types[] = {"llama", "mistral", "qwen2", "qwen3"};
    const char *type = the_host->node->as_string(the_host->node->get(config, "model_type"), NULL);
    for (size_t i = 0; type != NULL && i < sizeof types / sizeof types[0]; i++)
        if (strcmp(type, types[i]) == 0)
            return 90;
    return 0;
}

static void close_arch(void *arch)
{
    decoder *d = arch;
    if (d == NULL)
        return;
    d->host->free(d->window);
    d->host->free(d->rope.freqs);
    d->host->free(d);
}

static apus_status open_arch(const apus_host *host, const apus_node *params, const apus_node *config, void **arch, apus_error *err)
{
    (void)params;
    decoder *d = host->alloc(sizeof *d);
    if (d == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    d->host = host;
    apus_status st = decoder_configure(d, config, err);
    if (st == APUS_OK)
        st = decoder_rope_configure(d, config, err);
    if (st != APUS_OK) {
        close_arch(d);
        return st;
    }
    *arch = d;
    return APUS_OK;
}

static apus_status facts(void *arch, apus_model_facts *f)
{
    const decoder *d = arch;
    f->vocab = (int32_t)d->vocab;
    f->hidden = (int32_t)d->hidden;
    f->layers = (int32_t)d->layers;
    f->heads = (int32_t)d->heads;
    f->kv_heads = (int32_t)d->groups;
    f->head_dim = (int32_t)d->head_dim;
    f->max_positions = d->rope.spec.mode == 1 ? 0 : (int32_t)d->max_positions; /* dynamic scaling stretches with the text: no limit */
    f->tied = d->tied;
    f->length_dependent = d->rope.spec.mode != 0;
    return APUS_OK;
}

static const apus_arch_ops ops = {
    .size = sizeof ops,
    .claims = claims,
    .open = open_arch,
    .close = close_arch,
    .facts = facts,
    .build = decoder_build,
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "arch",
     .name = "decoder",
     .doc = "Dense decoders: Llama, Mistral, Qwen2, Qwen3, SmolLM2, by the options of config.json",
     .ops = &ops},
};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "decoder", .version = "1.0.0", .license = "Apache-2.0", .doc = "Dense decoder architectures",
    .components = components, .n_components = 1,
};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    the_host = host;
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
