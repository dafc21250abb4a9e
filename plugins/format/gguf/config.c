/*
 * plugins/format/gguf/config: GGUF's hyperparameters in the shape of Hugging Face's config.json, and the stop ids in
 * that of generation_config.json. Key names: gguf-py/gguf/constants.py.
 */
#include "gguf.h"

static const struct {
    const char *architecture, *model_type, *class_name;
} types[] = {
    {"llama", "llama", "LlamaForCausalLM"}, /* Mistral's files say llama too */
    {"qwen2", "qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "qwen3", "Qwen3ForCausalLM"},
    {"gpt2", "gpt2", "GPT2LMHeadModel"},
};

const char *gguf_architecture_of(const char *model_type)
{
    if (strcmp(model_type, "mistral") == 0)
        return "llama";
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].model_type, model_type) == 0)
            return types[i].architecture;
    return NULL;
}

/* A hyperparameter that may be one number, or one per layer as long as they are equal. */
static apus_status layer_int(const gguf_file *f, const char *key, int64_t fallback, int64_t *out, apus_error *err)
{
    const gguf_value *v = gguf_arch_get(f, key);
    *out = fallback;
    if (!gguf_is_numbers(v)) {
        *out = gguf_int(v, fallback);
        return APUS_OK;
    }
    for (uint64_t i = 0; i < v->count; i++) {
        const double x = gguf_item(v, i);
        if (!(x >= 0 && x <= INT32_MAX) || (i > 0 && x != (double)*out))
            return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: %s.%s differs between layers, which is not read", f->path, f->architecture, key);
        *out = (int64_t)x;
    }
    return APUS_OK;
}

static apus_status need(const gguf_file *f, const char *key, int64_t *out, apus_error *err)
{
    const apus_status st = layer_int(f, key, -1, out, err);
    if (st == APUS_OK && (*out < 0 || *out > INT32_MAX))
        return apus_fail_line(err, APUS_E_INVALID, "%s: %s.%s is missing or no size", f->path, f->architecture, key);
    return st;
}

static void set_int(gguf_file *f, const char *key, int64_t v)
{
    f->host->node->set(f->config, key, f->host->node->make_int(v));
}

static void set_float(gguf_file *f, const char *key, double v)
{
    /* the shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06 */
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)strtod(text, NULL) == (float)v)
            break;
    }
    f->host->node->set(f->config, key, f->host->node->make_float(strtod(text, NULL)));
}

static void set_text(gguf_file *f, const char *key, const char *s)
{
    f->host->node->set(f->config, key, f->host->node->make_string(s, (size_t)-1));
}

static void set_class(gguf_file *f, const char *name)
{
    const apus_node_api *node = f->host->node;
    apus_node *list = node->make_list();
    node->append(list, node->make_string(name, (size_t)-1));
    node->set(f->config, "architectures", list);
}

static apus_status gpt2_config(gguf_file *f, apus_error *err)
{
    int64_t positions, width, layers, heads, inner;
    apus_status st = need(f, "context_length", &positions, err);
    if (st == APUS_OK)
        st = need(f, "embedding_length", &width, err);
    if (st == APUS_OK)
        st = need(f, "block_count", &layers, err);
    if (st == APUS_OK)
        st = need(f, "attention.head_count", &heads, err);
    if (st == APUS_OK)
        st = layer_int(f, "feed_forward_length", 4 * width, &inner, err);
    if (st != APUS_OK)
        return st;
    set_int(f, "n_positions", positions);
    set_int(f, "n_embd", width);
    set_int(f, "n_layer", layers);
    set_int(f, "n_head", heads);
    set_int(f, "n_inner", inner);
    set_float(f, "layer_norm_epsilon", gguf_float(gguf_arch_get(f, "attention.layer_norm_epsilon"), 1e-5));
    set_text(f, "activation_function", "gelu_new");
    return APUS_OK;
}

static apus_status decoder_config(gguf_file *f, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    int64_t positions, width, layers, heads, groups, inner, head_dim, value_dim;
    apus_status st = need(f, "context_length", &positions, err);
    if (st == APUS_OK)
        st = need(f, "embedding_length", &width, err);
    if (st == APUS_OK)
        st = need(f, "block_count", &layers, err);
    if (st == APUS_OK)
        st = need(f, "attention.head_count", &heads, err);
    if (st == APUS_OK)
        st = need(f, "feed_forward_length", &inner, err);
    if (st == APUS_OK)
        st = layer_int(f, "attention.head_count_kv", heads, &groups, err);
    if (st == APUS_OK && heads <= 0)
        st = apus_fail_line(err, APUS_E_INVALID, "%s: %s.attention.head_count is 0", f->path, f->architecture);
    if (st == APUS_OK)
        st = layer_int(f, "attention.key_length", width / heads, &head_dim, err);
    if (st == APUS_OK)
        st = layer_int(f, "attention.value_length", head_dim, &value_dim, err);
    if (st != APUS_OK)
        return st;
    if (value_dim != head_dim)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: keys of width %lld and values of width %lld", f->path, (long long)head_dim,
                              (long long)value_dim);
    if (gguf_int(gguf_arch_get(f, "expert_count"), 0) > 0)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: a mixture of experts (%s.expert_count), which is not read", f->path, f->architecture);
    const int64_t rotary = gguf_int(gguf_arch_get(f, "rope.dimension_count"), head_dim);
    if (rotary <= 0 || rotary > head_dim || rotary % 2 != 0)
        return apus_fail_line(err, APUS_E_INVALID, "%s: %s.rope.dimension_count is %lld of %lld", f->path, f->architecture, (long long)rotary,
                              (long long)head_dim);
    if (rotary != head_dim && strcmp(f->architecture, "llama") == 0)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: llama.rope.dimension_count %lld is less than the head's %lld", f->path, (long long)rotary,
                              (long long)head_dim);
    const double theta = gguf_float(gguf_arch_get(f, "rope.freq_base"), 10000.0);
    set_int(f, "hidden_size", width);
    set_int(f, "intermediate_size", inner);
    set_int(f, "num_hidden_layers", layers);
    set_int(f, "num_attention_heads", heads);
    set_int(f, "num_key_value_heads", groups);
    set_int(f, "head_dim", head_dim);
    set_int(f, "max_position_embeddings", positions);
    set_float(f, "rms_norm_eps", gguf_float(gguf_arch_get(f, "attention.layer_norm_rms_epsilon"), 1e-6));
    set_float(f, "rope_theta", theta);
    if (rotary != head_dim)
        node->set(f->config, "partial_rotary_factor", node->make_float((double)rotary / (double)head_dim));
    set_text(f, "hidden_act", "silu");
    if (strcmp(f->architecture, "qwen2") != 0)
        node->set(f->config, "attention_bias", node->make_bool(gguf_tensor(f, "blk.0.attn_q.bias") != NULL));
    if (strcmp(f->architecture, "llama") == 0)
        node->set(f->config, "mlp_bias", node->make_bool(gguf_tensor(f, "blk.0.ffn_up.bias") != NULL));
    const int64_t window = gguf_int(gguf_arch_get(f, "attention.sliding_window"), 0);
    if (window > 0 && strcmp(f->architecture, "llama") == 0) {
        set_text(f, "model_type", "mistral"); /* the model of this family whose layers all have a window */
        set_class(f, "MistralForCausalLM");
        node->remove(f->config, "attention_bias");
        node->remove(f->config, "mlp_bias");
        set_int(f, "sliding_window", window);
    }
    return gguf_read_rope(f, f->config, rotary, theta, err);
}

/* Ids that end an answer: eos, and eot and eom where the file names them. */
static void make_generation_config(gguf_file *f)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    const apus_node_api *node = f->host->node;
    int64_t seen[3];
    int n = 0;
    apus_node *list = node->make_list();
    for (size_t i = 0; i < 3; i++) {
        const int64_t id = gguf_int(gguf_get(f, keys[i]), -1);
        int fresh = id >= 0 && id < INT32_MAX;
        for (int k = 0; k < n; k++)
            fresh = fresh && seen[k] != id;
        if (fresh) {
            seen[n++] = id;
            node->append(list, node->make_int(id));
        }
    }
    if (n == 0) {
        node->release(list);
        return;
    }
    f->generation_config = node->make_map();
    const int64_t bos = gguf_int(gguf_get(f, "tokenizer.ggml.bos_token_id"), -1);
    if (bos >= 0 && bos < INT32_MAX)
        node->set(f->generation_config, "bos_token_id", node->make_int(bos));
    node->set(f->generation_config, "eos_token_id", list);
}

apus_status gguf_make_config(gguf_file *f, apus_error *err)
{
    static const char *const ids[][2] = {{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                         {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                         {"pad_token_id", "tokenizer.ggml.padding_token_id"}};
    const apus_node_api *node = f->host->node;
    const char *model_type = f->architecture; /* an architecture we do not know is the architecture plugins' to refuse */
    const char *class_name = NULL;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].architecture, f->architecture) == 0) {
            model_type = types[i].model_type;
            class_name = types[i].class_name;
        }
    node->release(f->config);
    f->config = node->make_map();
    if (f->config == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    if (class_name != NULL)
        set_class(f, class_name);
    set_text(f, "model_type", model_type);
    const gguf_value *tokens = gguf_get(f, "tokenizer.ggml.tokens");
    const apus_tensor_info *embedding = gguf_tensor(f, "token_embd.weight");
    const int64_t vocab = embedding != NULL && embedding->ndim == 2      ? embedding->dims[0]
                          : tokens != NULL && tokens->type == GGUF_ARRAY ? (int64_t)tokens->count
                                                                         : gguf_int(gguf_arch_get(f, "vocab_size"), 0);
    set_int(f, "vocab_size", vocab);
    node->set(f->config, "tie_word_embeddings", node->make_bool(gguf_tensor(f, "output.weight") == NULL));
    for (size_t i = 0; i < 3; i++) {
        const int64_t id = gguf_int(gguf_get(f, ids[i][1]), -1);
        if (id >= 0 && id < vocab)
            set_int(f, ids[i][0], id);
    }
    make_generation_config(f);
    if (class_name == NULL)
        return APUS_OK;
    return strcmp(model_type, "gpt2") == 0 ? gpt2_config(f, err) : decoder_config(f, err);
}

apus_status gguf_make_metadata(gguf_file *f)
{
    const apus_node_api *node = f->host->node;
    f->metadata = node->make_map();
    for (size_t i = 0; i < f->n_values; i++)
        node->set(f->metadata, f->values[i].key, gguf_node(f, &f->values[i], 16));
    return APUS_OK;
}
