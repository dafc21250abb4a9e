/*
 * plugins/arch/gpt2: GPT-2 (Radford et al. 2019), as transformers' GPT2LMHeadModel computes it: learned positions,
 * LayerNorm with biases, fused q, k, v, tanh-gelu MLP, tied head. Its matrices lie transposed in Hugging Face's files
 * (Conv1D). Refuses to know where weights come from, how they are stored, or what is trained.
 */
#include <apus/model.h>
#include <apus/plugin.h>

#include <math.h>
#include <string.h>

#define G apus_graph_functions

enum { ACT_GELU_TANH = 0, ACT_GELU = 1, ACT_RELU = 2, ACT_SILU = 3, ACT_TANH = 4 };

static const apus_host *the_host; /* set once at entry */

typedef struct gpt2 {
    const apus_host *host;
    int64_t vocab, hidden, inner, layers, heads, positions;
    double eps, init_std;
    int act, tied, scale, scale_by_layer;
    apus_weight_spec head;
} gpt2;

/* ---------------------------------------------------------------- configuration */

static apus_status refuse(const gpt2 *m, apus_error *err, const apus_node *value, const char *key, const char *what)
{
    char where[1024];
    m->host->node->where(value, where, sizeof where);
    return apus_fail(err, APUS_E_INVALID, "%s: %s: %s", where[0] != '\0' ? where : "model configuration", key, what);
}

/* key, or the name other models have for it; fallback < 0: required. */
static apus_status number(const gpt2 *m, const apus_node *config, const char *key, const char *other, double fallback, double min, double max,
                          double *out, apus_error *err)
{
    const apus_node_api *node = m->host->node;
    const apus_node *v = node->get(config, key);
    char what[96];
    if (node->kind(v) == APUS_NODE_NULL && other != NULL)
        v = node->get(config, other);
    *out = node->as_float(v, fallback);
    if (node->kind(v) == APUS_NODE_NULL)
        return fallback < 0 ? refuse(m, err, config, key, "is missing") : APUS_OK;
    snprintf(what, sizeof what, "expected a number from %g to %g", min, max);
    if ((node->kind(v) != APUS_NODE_INT && node->kind(v) != APUS_NODE_FLOAT) || !(*out >= min && *out <= max))
        return refuse(m, err, v, key, what);
    return APUS_OK;
}

static apus_status integer(const gpt2 *m, const apus_node *config, const char *key, const char *other, double fallback, double max, int64_t *out,
                           apus_error *err)
{
    double v;
    const apus_status st = number(m, config, key, other, fallback, 1, max, &v, err);
    *out = (int64_t)v;
    return st == APUS_OK && v != floor(v) ? refuse(m, err, m->host->node->get(config, key), key, "expected a whole number") : st;
}

static apus_status flag(const gpt2 *m, const apus_node *config, const char *key, int fallback, int *out, apus_error *err)
{
    const apus_node *v = m->host->node->get(config, key);
    const apus_node_kind kind = m->host->node->kind(v);
    *out = m->host->node->as_bool(v, fallback);
    return kind == APUS_NODE_NULL || kind == APUS_NODE_BOOL ? APUS_OK : refuse(m, err, v, key, "expected true or false");
}

static apus_status read_act(gpt2 *m, const apus_node *config, apus_error *err)
{
    static const struct {
        const char *name;
        int act;
    } acts[] = {{"gelu_new", ACT_GELU_TANH}, {"gelu_pytorch_tanh", ACT_GELU_TANH},
                {"gelu", ACT_GELU},          {"relu", ACT_RELU},
                {"silu", ACT_SILU},          {"swish", ACT_SILU},
                {"tanh", ACT_TANH}};
    const apus_node *v = m->host->node->get(config, "activation_function");
    const char *name = m->host->node->as_string(v, NULL);
    m->act = ACT_GELU_TANH;
    if (m->host->node->kind(v) == APUS_NODE_NULL)
        return APUS_OK;
    for (size_t i = 0; name != NULL && i < sizeof acts / sizeof acts[0]; i++)
        if (strcmp(name, acts[i].name) == 0) {
            m->act = acts[i].act;
            return APUS_OK;
        }
    return refuse(m, err, v, "activation_function", "expected gelu_new, gelu, gelu_pytorch_tanh, relu, silu or tanh");
}

/* Keys of GPT2Config, and keys that say nothing about the numbers of the forward pass. */
static const char *const known[] = {"model_type",
                                    "vocab_size",
                                    "n_positions",
                                    "n_embd",
                                    "n_layer",
                                    "n_head",
                                    "n_inner",
                                    "activation_function",
                                    "layer_norm_epsilon",
                                    "initializer_range",
                                    "scale_attn_weights",
                                    "scale_attn_by_inverse_layer_idx",
                                    "reorder_and_upcast_attn",
                                    "tie_word_embeddings",
                                    "hidden_size",
                                    "max_position_embeddings",
                                    "num_attention_heads",
                                    "num_hidden_layers",
                                    "n_ctx",
                                    "resid_pdrop",
                                    "embd_pdrop",
                                    "attn_pdrop",
                                    "summary_type",
                                    "summary_use_proj",
                                    "summary_activation",
                                    "summary_proj_to_labels",
                                    "summary_first_dropout",
                                    "use_cache",
                                    "bos_token_id",
                                    "eos_token_id",
                                    "pad_token_id",
                                    "architectures",
                                    "torch_dtype",
                                    "dtype",
                                    "transformers_version",
                                    "task_specific_params",
                                    "_name_or_path",
                                    "_num_labels",
                                    "id2label",
                                    "label2id",
                                    "gradient_checkpointing",
                                    "add_cross_attention",
                                    "output_past",
                                    "predict_special_tokens",
                                    "quantization_config"};

static apus_status check_keys(const gpt2 *m, const apus_node *config, apus_error *err)
{
    const apus_node_api *node = m->host->node;
    char text[1200] = "config.json has keys that mean nothing here: ";
    const size_t start = strlen(text);
    size_t used = start;
    if (node->kind(node->get(config, "quantization_config")) != APUS_NODE_NULL)
        return refuse(m, err, node->get(config, "quantization_config"), "quantization_config", "quantised checkpoints are not read");
    if (node->as_bool(node->get(config, "add_cross_attention"), 0))
        return refuse(m, err, node->get(config, "add_cross_attention"), "add_cross_attention", "cross-attention is not built here");
    for (size_t i = 0; i < node->length(config); i++) {
        const char *key = node->key_at(config, i);
        int is_known = node->kind(node->at(config, i)) == APUS_NODE_NULL;
        for (size_t k = 0; k < sizeof known / sizeof known[0] && !is_known; k++)
            is_known = strcmp(key, known[k]) == 0;
        if (!is_known && used < sizeof text - 1)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%.60s", used > start ? ", " : "", key);
    }
    if (used > start)
        m->host->log(APUS_LOG_WARN, "gpt2", text);
    return APUS_OK;
}

static apus_weight_spec table_spec(const char *name, const char *role, int64_t rows, int64_t width, double std)
{
    return (apus_weight_spec){.size = sizeof(apus_weight_spec),
                              .name = name,
                              .role = role,
                              .layer = -1,
                              .what = APUS_WEIGHT_EMBEDDING,
                              .ndim = 2,
                              .dims = {rows, width},
                              .init_std = std};
}

static apus_weight_spec tokens_spec(const gpt2 *m)
{
    return table_spec("transformer.wte.weight", "token_embd.weight", m->vocab, m->hidden, m->init_std);
}

static apus_status configure(gpt2 *m, const apus_node *config, apus_error *err)
{
    if (m->host->node->kind(config) != APUS_NODE_MAP)
        return apus_fail(err, APUS_E_INVALID, "the model has no configuration (config.json)");
    apus_status st = integer(m, config, "vocab_size", NULL, 50257, 1 << 24, &m->vocab, err);
    if (st == APUS_OK)
        st = integer(m, config, "n_embd", "hidden_size", -1, 1 << 20, &m->hidden, err);
    if (st == APUS_OK)
        st = integer(m, config, "n_layer", "num_hidden_layers", -1, 4096, &m->layers, err);
    if (st == APUS_OK)
        st = integer(m, config, "n_head", "num_attention_heads", -1, 1 << 16, &m->heads, err);
    if (st == APUS_OK)
        st = integer(m, config, "n_positions", "max_position_embeddings", 1024, 1 << 24, &m->positions, err);
    if (st == APUS_OK)
        st = integer(m, config, "n_inner", NULL, 4.0 * (double)m->hidden, 1 << 22, &m->inner, err);
    if (st == APUS_OK)
        st = number(m, config, "layer_norm_epsilon", NULL, 1e-5, 0, 1, &m->eps, err);
    if (st == APUS_OK)
        st = number(m, config, "initializer_range", NULL, 0.02, 0, 1000, &m->init_std, err);
    if (st == APUS_OK)
        st = flag(m, config, "tie_word_embeddings", 1, &m->tied, err);
    if (st == APUS_OK)
        st = flag(m, config, "scale_attn_weights", 1, &m->scale, err);
    if (st == APUS_OK)
        st = flag(m, config, "scale_attn_by_inverse_layer_idx", 0, &m->scale_by_layer, err);
    if (st == APUS_OK)
        st = read_act(m, config, err);
    if (st == APUS_OK)
        st = check_keys(m, config, err);
    if (st == APUS_OK && m->hidden % m->heads != 0)
        st = refuse(m, err, m->host->node->get(config, "n_head"), "n_head", "does not divide n_embd");
    m->head = tokens_spec(m);
    if (!m->tied) {
        m->head.name = "lm_head.weight";
        m->head.role = "output.weight";
        m->head.what = APUS_WEIGHT_MATRIX;
        m->head.flags = APUS_WEIGHT_HEAD;
    }
    return st;
}

/* ---------------------------------------------------------------- the forward pass */

typedef struct named {
    apus_weight_spec spec;
    char name[96];
} named;

static const apus_weight_spec *vector(named *n, int64_t layer, const char *name, const char *role, int64_t size, int what, double fill)
{
    if (layer >= 0)
        snprintf(n->name, sizeof n->name, "transformer.h.%lld.%s", (long long)layer, name);
    else
        snprintf(n->name, sizeof n->name, "transformer.%s", name);
    n->spec = (apus_weight_spec){.size = sizeof n->spec,
                                 .name = n->name,
                                 .role = role,
                                 .layer = (int32_t)layer,
                                 .what = what,
                                 .ndim = 1,
                                 .dims = {size, 1},
                                 .init_fill = fill};
    return &n->spec;
}

/* name: "ln_1"; role: "attn_norm" */
static apus_tensor norm(const gpt2 *m, apus_graph *g, apus_tensor x, int64_t layer, const char *name, const char *role)
{
    named n;
    char full[32], full_role[32];
    snprintf(full, sizeof full, "%s.weight", name);
    snprintf(full_role, sizeof full_role, "%s.weight", role);
    const apus_tensor w = G->weight(g, vector(&n, layer, full, full_role, m->hidden, APUS_WEIGHT_NORM, 1.0));
    snprintf(full, sizeof full, "%s.bias", name);
    snprintf(full_role, sizeof full_role, "%s.bias", role);
    const apus_tensor b = G->weight(g, vector(&n, layer, full, full_role, m->hidden, APUS_WEIGHT_NORM, 0.0));
    return apus_layer_norm(g, x, w, b, m->eps);
}

/* module: "attn.c_attn"; role: "attn_qkv" */
static apus_tensor linear(apus_graph *g, apus_tensor x, int64_t layer, const char *module, const char *role, int64_t out, int64_t in, double std)
{
    named w, b;
    char name[32], weight_role[32], bias_role[32];
    snprintf(name, sizeof name, "%s.weight", module);
    snprintf(weight_role, sizeof weight_role, "%s.weight", role);
    vector(&w, layer, name, weight_role, out, APUS_WEIGHT_MATRIX, 0);
    w.spec.flags = APUS_WEIGHT_TRANSPOSED;
    w.spec.ndim = 2;
    w.spec.dims[1] = in;
    w.spec.init_std = std;
    snprintf(name, sizeof name, "%s.bias", module);
    snprintf(bias_role, sizeof bias_role, "%s.bias", role);
    vector(&b, layer, name, bias_role, out, APUS_WEIGHT_BIAS, 0);
    return G->linear(g, x, &w.spec, &b.spec);
}

static apus_tensor act(const gpt2 *m, apus_graph *g, apus_tensor x)
{
    switch (m->act) {
    case ACT_GELU:
        return apus_gelu(g, x, 0);
    case ACT_RELU:
        return apus_relu(g, x);
    case ACT_SILU:
        return apus_silu(g, x);
    case ACT_TANH:
        return apus_tanh(g, x);
    default:
        return apus_gelu(g, x, 1);
    }
}

static apus_tensor attention(const gpt2 *m, apus_graph *g, apus_tensor x, int64_t i)
{
    const int64_t e = m->hidden, d = e / m->heads;
    const double residual_std = m->init_std / sqrt(2.0 * (double)m->layers); /* as GPT-2 was made */
    const apus_tensor qkv = linear(g, x, i, "attn.c_attn", "attn_qkv", 3 * e, e, m->init_std);
    const apus_attention_spec spec = {.size = sizeof spec,
                                      .heads = (int32_t)m->heads,
                                      .kv_heads = (int32_t)m->heads,
                                      .head_dim = (int32_t)d,
                                      .scale = (m->scale ? 1.0 / sqrt((double)d) : 1.0) / (m->scale_by_layer ? (double)(i + 1) : 1.0),
                                      .layer = (int32_t)i};
    const apus_tensor a = G->attention(g, apus_columns(g, qkv, 0, e), apus_columns(g, qkv, e, e), apus_columns(g, qkv, 2 * e, e), &spec);
    return linear(g, a, i, "attn.c_proj", "attn_output", e, e, residual_std);
}

static apus_tensor mlp(const gpt2 *m, apus_graph *g, apus_tensor x, int64_t i)
{
    const double residual_std = m->init_std / sqrt(2.0 * (double)m->layers);
    const apus_tensor h = act(m, g, linear(g, x, i, "mlp.c_fc", "ffn_up", m->inner, m->hidden, m->init_std));
    return linear(g, h, i, "mlp.c_proj", "ffn_down", m->hidden, m->inner, residual_std);
}

static void build(void *arch, apus_graph *g, const apus_model_inputs *in, apus_model_outputs *out)
{
    const gpt2 *m = arch;
    const apus_weight_spec tokens = tokens_spec(m);
    const apus_weight_spec positions = table_spec("transformer.wpe.weight", "position_embd.weight", m->positions, m->hidden, m->init_std);
    apus_tensor x = apus_add(g, G->embedding(g, in->tokens, &tokens), G->embedding(g, in->positions, &positions));
    x = G->point(g, "block", -1, x);
    for (int64_t i = 0; i < m->layers; i++) {
        x = apus_add(g, attention(m, g, norm(m, g, x, i, "ln_1", "attn_norm"), i), x);
        x = apus_add(g, mlp(m, g, norm(m, g, x, i, "ln_2", "ffn_norm"), i), x);
        x = G->point(g, "block", (int32_t)i, x);
    }
    out->hidden = norm(m, g, x, -1, "ln_f", "output_norm");
    out->head = m->head;
    out->logit_scale = 1.0;
    out->logit_softcap = 0.0;
}

/* ---------------------------------------------------------------- the component */

static int claims(const apus_node *config)
{
    const char *type = the_host->node->as_string(the_host->node->get(config, "model_type"), NULL);
    return type != NULL && strcmp(type, "gpt2") == 0 ? 90 : 0;
}

static void close_arch(void *arch)
{
    gpt2 *m = arch;
    if (m != NULL)
        m->host->free(m);
}

static apus_status open_arch(const apus_host *host, const apus_node *params, const apus_node *config, void **arch, apus_error *err)
{
    (void)params;
    gpt2 *m = host->alloc(sizeof *m);
    if (m == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    m->host = host;
    const apus_status st = configure(m, config, err);
    if (st != APUS_OK) {
        close_arch(m);
        return st;
    }
    *arch = m;
    return APUS_OK;
}

static apus_status facts(void *arch, apus_model_facts *f)
{
    const gpt2 *m = arch;
    f->vocab = (int32_t)m->vocab;
    f->hidden = (int32_t)m->hidden;
    f->layers = (int32_t)m->layers;
    f->heads = f->kv_heads = (int32_t)m->heads;
    f->head_dim = (int32_t)(m->hidden / m->heads);
    f->max_positions = (int32_t)m->positions;
    f->tied = m->tied;
    return APUS_OK;
}

static const apus_arch_ops ops = {
    .size = sizeof ops,
    .claims = claims,
    .open = open_arch,
    .close = close_arch,
    .facts = facts,
    .build = build,
};

static const apus_component components[] = {
    {.size = sizeof(apus_component), .kind = "arch", .name = "gpt2", .doc = "GPT-2: learned positions, LayerNorm, tied head", .ops = &ops},
};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "gpt2",    .version = "1.0.0", .license = "Apache-2.0", .doc = "The GPT-2 architecture",
    .components = components, .n_components = 1,
};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    the_host = host;
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
