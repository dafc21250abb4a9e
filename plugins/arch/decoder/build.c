/*
 * plugins/arch/decoder/build: the forward pass. x [T, hidden]; per layer
 *     x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)));  x += down(act(gate(norm x)) * up(norm x)).
 * Residual sums stand as add(linear(...), x), which a kernel may take as one.
 */
#include "decoder.h"

#define G apus_graph_functions

/* A weight's specification with room for its name. */
typedef struct named {
    apus_weight_spec spec;
    char name[128];
} named;

static const apus_weight_spec *make(named *n, int64_t layer, const char *name, const char *role, int32_t what, int64_t rows, int64_t columns,
                                    double std)
{
    if (layer >= 0)
        snprintf(n->name, sizeof n->name, "model.layers.%lld.%s", (long long)layer, name);
    else
        snprintf(n->name, sizeof n->name, "%s", name);
    n->spec = (apus_weight_spec){.size = sizeof n->spec,
                                 .name = n->name,
                                 .role = role,
                                 .layer = (int32_t)layer,
                                 .what = what,
                                 .ndim = columns > 0 ? 2 : 1,
                                 .dims = {rows, columns > 0 ? columns : 1},
                                 .init_std = std,
                                 .init_fill = what == APUS_WEIGHT_NORM ? 1.0 : 0.0};
    return &n->spec;
}

apus_weight_spec decoder_embedding_spec(const decoder *d)
{
    return (apus_weight_spec){.size = sizeof(apus_weight_spec),
                              .name = "model.embed_tokens.weight",
                              .role = "token_embd.weight",
                              .layer = -1,
                              .what = APUS_WEIGHT_EMBEDDING,
                              .ndim = 2,
                              .dims = {d->vocab, d->hidden},
                              .init_std = d->init_std};
}

apus_weight_spec decoder_head_spec(const decoder *d)
{
    return (apus_weight_spec){.size = sizeof(apus_weight_spec),
                              .name = "lm_head.weight",
                              .role = "output.weight",
                              .layer = -1,
                              .what = APUS_WEIGHT_MATRIX,
                              .flags = APUS_WEIGHT_HEAD,
                              .ndim = 2,
                              .dims = {d->vocab, d->hidden},
                              .init_std = d->init_std};
}

static apus_tensor norm(const decoder *d, apus_graph *g, apus_tensor x, int64_t layer, const char *name, const char *role, int64_t width)
{
    named n;
    const apus_tensor w = G->weight(g, make(&n, layer, name, role, APUS_WEIGHT_NORM, width, 0, 0));
    return apus_rms_norm(g, x, w, d->eps, width == d->hidden ? 0 : width, 0.0);
}

/* module: "self_attn.q_proj"; role: "attn_q" */
static apus_tensor linear(const decoder *d, apus_graph *g, apus_tensor x, int64_t layer, const char *module, const char *role, int64_t out,
                          int64_t in, int bias)
{
    named w, b;
    char name[64], weight_role[32], bias_role[32];
    snprintf(name, sizeof name, "%s.weight", module);
    snprintf(weight_role, sizeof weight_role, "%s.weight", role);
    make(&w, layer, name, weight_role, APUS_WEIGHT_MATRIX, out, in, d->init_std);
    if (!bias)
        return G->linear(g, x, &w.spec, NULL);
    snprintf(name, sizeof name, "%s.bias", module);
    snprintf(bias_role, sizeof bias_role, "%s.bias", role);
    make(&b, layer, name, bias_role, APUS_WEIGHT_BIAS, out, 0, 0);
    return G->linear(g, x, &w.spec, &b.spec);
}

static apus_tensor attention(const decoder *d, apus_graph *g, apus_tensor x, int64_t layer, const apus_model_inputs *in, apus_tensor freqs)
{
    const int64_t q_width = d->heads * d->head_dim, kv_width = d->groups * d->head_dim;
    apus_tensor q = linear(d, g, x, layer, "self_attn.q_proj", "attn_q", q_width, d->hidden, d->qkv_bias);
    apus_tensor k = linear(d, g, x, layer, "self_attn.k_proj", "attn_k", kv_width, d->hidden, d->qkv_bias);
    const apus_tensor v = linear(d, g, x, layer, "self_attn.v_proj", "attn_v", kv_width, d->hidden, d->qkv_bias);
    if (d->qk_norm) {
        q = norm(d, g, q, layer, "self_attn.q_norm.weight", "attn_q_norm.weight", d->head_dim);
        k = norm(d, g, k, layer, "self_attn.k_norm.weight", "attn_k_norm.weight", d->head_dim);
    }
    /* Where the scaling does not read lengths, the graph does not depend on them. */
    const apus_tensor lengths = d->rope.spec.mode == 0 ? in->positions : in->lengths;
    q = apus_rope(g, q, in->positions, lengths, freqs, &d->rope.spec);
    k = apus_rope(g, k, in->positions, lengths, freqs, &d->rope.spec);
    const apus_attention_spec spec = {.size = sizeof spec,
                                      .heads = (int32_t)d->heads,
                                      .kv_heads = (int32_t)d->groups,
                                      .head_dim = (int32_t)d->head_dim,
                                      .scale = 1.0 / sqrt((double)d->head_dim),
                                      .window = d->window[layer],
                                      .layer = (int32_t)layer};
    const apus_tensor a = G->attention(g, q, k, v, &spec);
    return linear(d, g, a, layer, "self_attn.o_proj", "attn_output", d->hidden, q_width, d->o_bias);
}

static apus_tensor mlp(const decoder *d, apus_graph *g, apus_tensor x, int64_t layer)
{
    const apus_tensor gate = linear(d, g, x, layer, "mlp.gate_proj", "ffn_gate", d->inner, d->hidden, d->mlp_bias);
    const apus_tensor up = linear(d, g, x, layer, "mlp.up_proj", "ffn_up", d->inner, d->hidden, d->mlp_bias);
    const apus_tensor h = d->act == ACT_SILU   ? apus_swiglu(g, gate, up)
                          : d->act == ACT_RELU ? apus_mul(g, apus_relu(g, gate), up)
                                               : apus_mul(g, apus_gelu(g, gate, d->act == ACT_GELU_TANH), up);
    return linear(d, g, h, layer, "mlp.down_proj", "ffn_down", d->hidden, d->inner, d->mlp_bias);
}

void decoder_build(void *arch, apus_graph *g, const apus_model_inputs *in, apus_model_outputs *out)
{
    const decoder *d = arch;
    const apus_weight_spec embedding = decoder_embedding_spec(d);
    const int64_t half = d->rope.spec.rotary_dim / 2, dims[2] = {2, half};
    const apus_tensor freqs = d->rope.rows == 2 ? G->constant(g, d->rope.freqs, 2, dims) : G->constant(g, d->rope.freqs, 1, dims + 1);
    apus_tensor x = G->point(g, "block", -1, G->embedding(g, in->tokens, &embedding));
    for (int64_t i = 0; i < d->layers; i++) {
        x = apus_add(g, attention(d, g, norm(d, g, x, i, "input_layernorm.weight", "attn_norm.weight", d->hidden), i, in, freqs), x);
        x = apus_add(g, mlp(d, g, norm(d, g, x, i, "post_attention_layernorm.weight", "ffn_norm.weight", d->hidden), i), x);
        x = G->point(g, "block", (int32_t)i, x);
    }
    out->hidden = norm(d, g, x, -1, "model.norm.weight", "output_norm.weight", d->hidden);
    out->head = d->head;
    out->logit_scale = 1.0;
    out->logit_softcap = 0.0;
}
