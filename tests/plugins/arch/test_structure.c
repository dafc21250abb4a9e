/*
 * What each configuration asks for, without computing: weights with their names, roles, shapes and kinds; windows per layer;
 * defaults as transformers has them; wrong values refused by key and place.
 */
#include "plugins/format/models.h"

static apus_attention_spec seen[16]; /* of the last built graph, by layer */
static size_t n_seen, n_points;

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_graph_announce();
    load_plugin("arch_decoder");
    load_plugin("arch_gpt2");
    assert_int_equal(apus_ops_load(&err), APUS_OK);
    return 0;
}

static apus_tensor keep_attention(void *context, apus_graph *g, apus_tensor q, apus_tensor k, apus_tensor v, const apus_attention_spec *s)
{
    (void)context;
    (void)g;
    (void)k;
    (void)v;
    assert_int_equal(s->layer, n_seen);
    seen[n_seen++] = *s;
    return q;
}

static apus_tensor keep_point(void *context, apus_graph *g, const char *name, int32_t layer, apus_tensor t)
{
    (void)context;
    (void)g;
    assert_string_equal(name, "block");
    assert_int_equal(layer, (int32_t)n_points - 1); /* -1: after the embedding */
    n_points++;
    return t;
}

/* Opens `config` with the named architecture (NULL: the one that claims it). */
static void *open_text(const char *name, const char *config, apus_arch_ops *ops, apus_node **node, apus_error *err)
{
    void *arch = NULL;
    *node = NODE->parse_json(config, strlen(config), "config.json", err);
    assert_non_null(*node);
    if (name == NULL)
        return open_arch(*node, ops, err);
    const apus_component *c = apus_component_find("arch", name, err);
    apus_take(ops, sizeof *ops, c->ops);
    return ops->open(apus_host_table(), NULL, *node, &arch, err) == APUS_OK ? arch : NULL;
}

typedef struct built {
    apus_graph *g;
    apus_node *node;
    apus_model_facts facts;
    apus_weight_spec head; /* strings are the architecture's, which is closed: not to be read */
    int head_is_tied;
} built;

static built build(const char *name, const char *config)
{
    apus_error err = {0};
    apus_arch_ops ops;
    built b = {.facts = {.size = sizeof b.facts}};
    void *arch = open_text(name, config, &ops, &b.node, &err);
    if (arch == NULL)
        fail_msg("%s", err.message);
    n_seen = n_points = 0;
    const apus_graph_hooks hooks = {.attention = keep_attention, .point = keep_point};
    b.g = apus_graph_new(&hooks);
    const apus_graph_api *api = apus_graph_table();
    const int64_t tokens = APUS_DIM_TOKENS;
    const apus_model_inputs in = {.size = sizeof in,
                                  .tokens = api->input(b.g, "tokens", APUS_I32, 1, &tokens),
                                  .positions = api->input(b.g, "positions", APUS_I32, 1, &tokens),
                                  .lengths = api->input(b.g, "lengths", APUS_I32, 1, &tokens)};
    apus_model_outputs out = {.size = sizeof out};
    ops.build(arch, b.g, &in, &out);
    const size_t before = apus_graph_weight_count(b.g);
    (void)api->weight(b.g, &out.head);
    b.head = out.head;
    b.head_is_tied = apus_graph_weight_count(b.g) == before;
    if (apus_graph_status(b.g, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(ops.facts(arch, &b.facts), APUS_OK);
    assert_int_equal(n_seen, b.facts.layers);
    assert_int_equal(n_points, b.facts.layers + 1);
    ops.close(arch);
    return b;
}

static void drop(built *b)
{
    apus_graph_free(b->g);
    NODE->release(b->node);
}

static const apus_weight_spec *weight(const built *b, const char *name)
{
    for (size_t i = 0; i < apus_graph_weight_count(b->g); i++)
        if (strcmp(apus_graph_weight_at(b->g, i)->name, name) == 0)
            return apus_graph_weight_at(b->g, i);
    return NULL;
}

#define SIZES "\"vocab_size\":50,\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,\"num_attention_heads\":4"

static void llama_from_scratch(void **state)
{
    (void)state;
    built b = build("decoder", "{" SIZES "}"); /* no model_type: llama */
    assert_int_equal(apus_graph_weight_count(b.g), 2 + 2 * 9 + 1);
    const apus_weight_spec *w = weight(&b, "model.layers.1.mlp.down_proj.weight");
    assert_string_equal(w->role, "ffn_down.weight");
    assert_int_equal(w->layer, 1);
    assert_int_equal(w->what, APUS_WEIGHT_MATRIX);
    assert_int_equal(w->dims[0], 16);
    assert_int_equal(w->dims[1], 24);
    assert_true(w->init_std == 0.02);
    w = weight(&b, "model.layers.0.post_attention_layernorm.weight");
    assert_string_equal(w->role, "ffn_norm.weight");
    assert_int_equal(w->what, APUS_WEIGHT_NORM);
    assert_true(w->init_std == 0 && w->init_fill == 1);
    w = weight(&b, "lm_head.weight");
    assert_string_equal(w->role, "output.weight");
    assert_int_equal(w->flags, APUS_WEIGHT_HEAD);
    w = weight(&b, "model.embed_tokens.weight");
    assert_string_equal(w->role, "token_embd.weight");
    assert_int_equal(w->what, APUS_WEIGHT_EMBEDDING);
    assert_string_equal(weight(&b, "model.norm.weight")->role, "output_norm.weight");
    assert_int_equal(b.facts.kv_heads, 4);
    assert_int_equal(b.facts.head_dim, 4);
    assert_int_equal(b.facts.tied, 0);
    assert_int_equal(seen[1].window, 0);
    assert_true(seen[1].scale == 0.5);
    drop(&b);
}

static void options_show_in_weights(void **state)
{
    (void)state;
    built b = build(NULL, "{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":2,\"attention_bias\":true,\"mlp_bias\":true,"
                          "\"tie_word_embeddings\":true,\"head_dim\":6}");
    assert_int_equal(weight(&b, "model.layers.0.self_attn.k_proj.weight")->dims[0], 12);
    assert_string_equal(weight(&b, "model.layers.0.self_attn.k_proj.bias")->role, "attn_k.bias");
    assert_int_equal(weight(&b, "model.layers.0.self_attn.o_proj.bias")->dims[0], 16);
    assert_int_equal(weight(&b, "model.layers.0.self_attn.o_proj.weight")->dims[1], 24);
    assert_int_equal(weight(&b, "model.layers.0.mlp.gate_proj.bias")->what, APUS_WEIGHT_BIAS);
    assert_null(weight(&b, "lm_head.weight"));
    assert_true(b.head_is_tied);
    drop(&b);
    b = build(NULL, "{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2}");
    assert_non_null(weight(&b, "model.layers.0.self_attn.q_proj.bias"));
    assert_null(weight(&b, "model.layers.0.self_attn.o_proj.bias"));
    drop(&b);
    b = build(NULL, "{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":2}");
    assert_int_equal(b.facts.head_dim, 128);
    assert_int_equal(weight(&b, "model.layers.1.self_attn.q_norm.weight")->dims[0], 128);
    assert_string_equal(weight(&b, "model.layers.1.self_attn.k_norm.weight")->role, "attn_k_norm.weight");
    drop(&b);
}

static void windows_follow_the_model(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        int32_t first, second;
    } cases[] = {
        {"{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":7}", 7, 7},
        {"{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":null}", 0, 0},
        {"{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2}", 4096, 4096},
        {"{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":7}", 0, 0},
        {"{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":7,\"use_sliding_window\":true,"
         "\"max_window_layers\":1}",
         0, 7},
        {"{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":7,\"use_sliding_window\":true,"
         "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
         7, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        built b = build(NULL, cases[i].config);
        assert_int_equal(seen[0].window, cases[i].first);
        assert_int_equal(seen[1].window, cases[i].second);
        drop(&b);
    }
}

static void gpt2_from_scratch(void **state)
{
    (void)state;
    built b = build(NULL, "{\"model_type\":\"gpt2\",\"vocab_size\":50,\"n_embd\":16,\"n_layer\":2,\"n_head\":4,\"n_positions\":32,"
                          "\"scale_attn_by_inverse_layer_idx\":true}");
    const apus_weight_spec *w = weight(&b, "transformer.h.1.attn.c_attn.weight");
    assert_string_equal(w->role, "attn_qkv.weight");
    assert_int_equal(w->flags, APUS_WEIGHT_TRANSPOSED);
    assert_int_equal(w->dims[0], 48);
    assert_int_equal(w->dims[1], 16);
    w = weight(&b, "transformer.h.0.mlp.c_proj.weight");
    assert_int_equal(w->dims[1], 64);
    assert_true(fabs(w->init_std - 0.01) < 1e-12); /* 0.02 / sqrt(2 layers twice) */
    assert_string_equal(weight(&b, "transformer.wpe.weight")->role, "position_embd.weight");
    assert_string_equal(weight(&b, "transformer.h.0.ln_2.bias")->role, "ffn_norm.bias");
    assert_true(b.head_is_tied);
    assert_int_equal(b.facts.max_positions, 32);
    assert_true(seen[1].scale == 0.25);
    drop(&b);
}

static void refuses_wrong_values(void **state)
{
    (void)state;
    static const struct {
        const char *config, *part;
    } cases[] = {
        {"{\"hidden_size\":16}", "vocab_size: is missing"},
        {"{\"model_type\":\"mamba\"}", "'mamba' is no decoder"},
        {"{" SIZES ",\"num_key_value_heads\":3}", "config.json:1:126: num_key_value_heads: 3 does not divide the 4"},
        {"{\"vocab_size\":-5}", "vocab_size: expected a number from 1"},
        {"{\"vocab_size\":\"big\"}", "vocab_size: expected a number"},
        {"{\"vocab_size\":1.5}", "vocab_size: expected a whole number"},
        {"{" SIZES ",\"head_dim\":5}", "5 is odd"},
        {"{" SIZES ",\"hidden_act\":\"mish\"}", "hidden_act: expected silu"},
        {"{" SIZES ",\"attention_bias\":1}", "attention_bias: expected true or false"},
        {"{" SIZES ",\"rms_norm_eps\":-1}", "rms_norm_eps"},
        {"{" SIZES ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "quantization_config: weights stored as 'gptq'"},
        {"{" SIZES ",\"num_local_experts\":8}", "mixture of experts"},
        {"{" SIZES ",\"rope_scaling\":{\"rope_type\":\"spiral\"}}", "rope_type: 'spiral' is not known"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"linear\"}}", "factor: is missing"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "factor: expected a number"},
        {"{" SIZES ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor: is missing"},
        {"{" SIZES ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"short_factor\":[1]}}", "short_factor: expected a list of 2"},
        {"{" SIZES ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"colour\":1}}", "colour: is no rotary parameter"},
        {"{" SIZES ",\"rope_parameters\":{\"full_attention\":{}}}", "for each type of layer"},
        {"{" SIZES ",\"rope_theta\":0}", "rope_theta"},
        {"{" SIZES ",\"partial_rotary_factor\":0.3}", "cannot be rotated"},
        {"{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
         "\"layer_types\":[\"full_attention\"]}",
         "layer_types: expected a list of 2"},
        {"{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2,\"layer_types\":[\"full_attention\",\"spiral\"]}",
         "layer_types: expected full_attention"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        apus_arch_ops ops;
        apus_node *node = NULL;
        void *arch = open_text("decoder", cases[i].config, &ops, &node, &err);
        if (arch != NULL || strstr(err.message, cases[i].part) == NULL || strstr(err.message, "config.json") == NULL)
            fail_msg("expected '%s', got '%s'", cases[i].part, arch != NULL ? "a model" : err.message);
        NODE->release(node);
    }
    apus_error err = {0};
    apus_arch_ops ops;
    apus_node *node = NULL;
    assert_null(open_text("gpt2", "{\"n_embd\":10,\"n_layer\":1,\"n_head\":3}", &ops, &node, &err));
    assert_non_null(strstr(err.message, "n_head: does not divide n_embd"));
    NODE->release(node);
    assert_null(open_text("gpt2", "{\"n_embd\":12,\"n_layer\":1,\"n_head\":3,\"activation_function\":\"x\"}", &ops, &node, &err));
    assert_non_null(strstr(err.message, "activation_function: expected"));
    NODE->release(node);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_from_scratch), cmocka_unit_test(options_show_in_weights), cmocka_unit_test(windows_follow_the_model),
        cmocka_unit_test(gpt2_from_scratch),  cmocka_unit_test(refuses_wrong_values),
    };
    return cmocka_run_group_tests_name("arch/structure", tests, setup, NULL);
}
