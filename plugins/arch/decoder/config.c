/*
 * plugins/arch/decoder/config: config.json -> the decoder's sizes and options, with the defaults of transformers'
 * LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config. A value that is not understood is an error that names it; a
 * key that is not known is named in one line of the log.
 */
#include "decoder.h"

enum { LLAMA = 0, MISTRAL = 1, QWEN2 = 2, QWEN3 = 3 };

apus_status decoder_refuse(const decoder *d, apus_error *err, const apus_node *value, const char *key, const char *fmt, ...)
{
    char where[1024], text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++) /* a text out of the file stays on the message's line */
        if ((unsigned char)*p < ' ')
            *p = '?';
    d->host->node->where(value, where, sizeof where);
    return apus_fail(err, APUS_E_INVALID, "%s%s%s: %s", where[0] != '\0' ? where : "model configuration", ": ", key, text);
}

apus_status decoder_number(const decoder *d, const apus_node *map, const char *key, double fallback, double min, double max, double *out,
                           apus_error *err)
{
    const apus_node_api *node = d->host->node;
    const apus_node *v = node->get(map, key);
    const apus_node_kind kind = node->kind(v);
    *out = fallback;
    if (kind == APUS_NODE_NULL) {
        if (!isnan(fallback))
            return APUS_OK;
        return decoder_refuse(d, err, v != NULL ? v : map, key, "is missing");
    }
    *out = node->as_float(v, NAN);
    if ((kind != APUS_NODE_INT && kind != APUS_NODE_FLOAT) || !(*out >= min && *out <= max))
        return decoder_refuse(d, err, v, key, "expected a number from %g to %g", min, max);
    return APUS_OK;
}

static apus_status integer(const decoder *d, const apus_node *config, const char *key, double fallback, double max, int64_t *out, apus_error *err)
{
    double v;
    const apus_status st = decoder_number(d, config, key, fallback, 1, max, &v, err);
    if (st != APUS_OK)
        return st;
    *out = (int64_t)v;
    if (v != floor(v))
        return decoder_refuse(d, err, d->host->node->get(config, key), key, "expected a whole number");
    return st;
}

static apus_status flag(const decoder *d, const apus_node *config, const char *key, int fallback, int *out, apus_error *err)
{
    const apus_node *v = d->host->node->get(config, key);
    const apus_node_kind kind = d->host->node->kind(v);
    if (kind != APUS_NODE_NULL && kind != APUS_NODE_BOOL)
        return decoder_refuse(d, err, v, key, "expected true or false");
    *out = d->host->node->as_bool(v, fallback);
    return APUS_OK;
}

static apus_status read_family(const decoder *d, const apus_node *config, int *family, apus_error *err)
{
    static const char *const types[] = {"llama", "mistral", "qwen2", "qwen3"};
    const apus_node *v = d->host->node->get(config, "model_type");
    const char *type = d->host->node->as_string(v, NULL);
    *family = LLAMA;
    for (int i = 0; i < 4; i++)
        if (type != NULL && strcmp(type, types[i]) == 0) {
            *family = i;
            return APUS_OK;
        }
    if (d->host->node->kind(v) == APUS_NODE_NULL)
        return APUS_OK;
    decoder_refuse(d, err, v, "model_type", "'%.80s' is no decoder that is built here", type != NULL ? type : "(no text)");
    return apus_hint(err, APUS_E_INVALID, "llama, mistral, qwen2 or qwen3");
}

static apus_status read_sizes(decoder *d, const apus_node *config, int family, apus_error *err)
{
    /* heads that share keys, where the file does not say: the classes' own defaults */
    static const double groups[] = {0, 8, 32, 32};
    apus_status st = integer(d, config, "vocab_size", NAN, 1 << 24, &d->vocab, err);
    if (st == APUS_OK)
        st = integer(d, config, "hidden_size", NAN, 1 << 20, &d->hidden, err);
    if (st == APUS_OK)
        st = integer(d, config, "intermediate_size", NAN, 1 << 22, &d->inner, err);
    if (st == APUS_OK)
        st = integer(d, config, "num_hidden_layers", NAN, MAX_LAYERS, &d->layers, err);
    if (st == APUS_OK)
        st = integer(d, config, "num_attention_heads", NAN, 1 << 16, &d->heads, err);
    if (st == APUS_OK && family == LLAMA)
        st = integer(d, config, "num_key_value_heads", (double)d->heads, 1 << 16, &d->groups, err);
    else if (st == APUS_OK)
        st = integer(d, config, "num_key_value_heads", groups[family], 1 << 16, &d->groups, err);
    if (st == APUS_OK && d->heads % d->groups != 0)
        st = decoder_refuse(d, err, d->host->node->get(config, "num_key_value_heads"), "num_key_value_heads",
                            "%lld does not divide the %lld attention heads", (long long)d->groups, (long long)d->heads);
    if (st == APUS_OK)
        st = integer(d, config, "head_dim", family == QWEN3 ? 128 : floor((double)d->hidden / (double)d->heads), 1 << 16, &d->head_dim, err);
    if (st == APUS_OK && d->head_dim % 2 != 0)
        st = decoder_refuse(d, err, d->host->node->get(config, "head_dim"), "head_dim", "%lld is odd: rotary positions need pairs",
                            (long long)d->head_dim);
    if (st == APUS_OK)
        st = integer(d, config, "max_position_embeddings",
                     family == LLAMA     ? 2048
                     : family == MISTRAL ? 131072
                                         : 32768,
                     INT32_MAX, &d->max_positions, err);
    if (st == APUS_OK)
        st = decoder_number(d, config, "rms_norm_eps", 1e-6, 0, 1, &d->eps, err);
    if (st == APUS_OK)
        st = decoder_number(d, config, "initializer_range", 0.02, 0, 1000, &d->init_std, err);
    return st;
}

static apus_status read_options(decoder *d, const apus_node *config, int family, apus_error *err)
{
    static const struct {
        const char *name;
        int act;
    } acts[] = {{"silu", ACT_SILU}, {"swish", ACT_SILU}, {"gelu", ACT_GELU}, {"gelu_new", ACT_GELU_TANH}, {"gelu_pytorch_tanh", ACT_GELU_TANH},
                {"relu", ACT_RELU}};
    const apus_node *act = d->host->node->get(config, "hidden_act");
    const char *name = d->host->node->as_string(act, NULL);
    int bias = 0;
    d->act = d->host->node->kind(act) == APUS_NODE_NULL ? ACT_SILU : -1;
    for (size_t i = 0; name != NULL && i < sizeof acts / sizeof acts[0]; i++)
        if (strcmp(name, acts[i].name) == 0)
            d->act = acts[i].act;
    if (d->act < 0)
        return decoder_refuse(d, err, act, "hidden_act", "expected silu, gelu, gelu_new, gelu_pytorch_tanh or relu");
    apus_status st = flag(d, config, "attention_bias", 0, &bias, err);
    if (st == APUS_OK)
        st = flag(d, config, "mlp_bias", 0, &d->mlp_bias, err);
    if (st == APUS_OK)
        st = flag(d, config, "tie_word_embeddings", 0, &d->tied, err);
    /* Qwen2 has biases on q, k, v alone, whatever the file says; Mistral never has any (modeling_qwen2.py,
     * modeling_mistral.py) */
    d->qkv_bias = family == QWEN2 || (family != MISTRAL && bias);
    d->o_bias = (family == LLAMA || family == QWEN3) && bias;
    d->mlp_bias = family == LLAMA && d->mlp_bias;
    d->qk_norm = family == QWEN3;
    return st;
}

/* Which layers see only the last `sliding_window` positions. */
static apus_status read_windows(decoder *d, const apus_node *config, int family, apus_error *err)
{
    const apus_node_api *node = d->host->node;
    const apus_node *types = node->get(config, "layer_types"), *given = node->get(config, "sliding_window");
    double window = 0, first = 0;
    int use = 0;
    d->window = d->host->alloc((size_t)d->layers * sizeof *d->window);
    if (d->window == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (family == LLAMA)
        return APUS_OK;
    /* null: no window; left out: the class's default */
    apus_status st = given != NULL && node->kind(given) == APUS_NODE_NULL
                         ? APUS_OK
                         : decoder_number(d, config, "sliding_window", 4096, 1, INT32_MAX, &window, err);
    if (st == APUS_OK)
        st = flag(d, config, "use_sliding_window", 0, &use, err);
    if (st == APUS_OK)
        st = decoder_number(d, config, "max_window_layers", 28, 0, MAX_LAYERS, &first, err);
    if (st != APUS_OK)
        return st;
    if (family != MISTRAL && !use)
        window = 0;
    if (family != MISTRAL && node->kind(types) != APUS_NODE_NULL && (node->kind(types) != APUS_NODE_LIST || node->length(types) != (size_t)d->layers))
        return decoder_refuse(d, err, types, "layer_types", "expected a list of %lld entries", (long long)d->layers);
    for (int64_t i = 0; i < d->layers; i++) {
        const apus_node *type = node->at(types, (size_t)i);
        const char *name = node->as_string(type, NULL);
        int slides = family == MISTRAL || (double)i >= first;
        if (family != MISTRAL && node->kind(types) == APUS_NODE_LIST) {
            slides = name != NULL && strcmp(name, "sliding_attention") == 0;
            if (!slides && (name == NULL || strcmp(name, "full_attention") != 0))
                return decoder_refuse(d, err, type, "layer_types", "expected full_attention or sliding_attention");
        }
        d->window[i] = slides ? (int32_t)window : 0;
    }
    return APUS_OK;
}

/* Keys that are read here or in rope.c, and keys that say nothing about the numbers of the forward pass. */
static const char *const known[] = {"model_type",
                                    "vocab_size",
                                    "hidden_size",
                                    "intermediate_size",
                                    "num_hidden_layers",
                                    "num_attention_heads",
                                    "num_key_value_heads",
                                    "head_dim",
                                    "max_position_embeddings",
                                    "rms_norm_eps",
                                    "initializer_range",
                                    "hidden_act",
                                    "attention_bias",
                                    "mlp_bias",
                                    "tie_word_embeddings",
                                    "sliding_window",
                                    "use_sliding_window",
                                    "max_window_layers",
                                    "layer_types",
                                    "rope_theta",
                                    "rope_scaling",
                                    "rope_parameters",
                                    "partial_rotary_factor",
                                    "original_max_position_embeddings", /* harmless: */
                                    "architectures",
                                    "torch_dtype",
                                    "dtype",
                                    "transformers_version",
                                    "use_cache",
                                    "bos_token_id",
                                    "eos_token_id",
                                    "pad_token_id",
                                    "unk_token_id",
                                    "sep_token_id",
                                    "cls_token_id",
                                    "mask_token_id",
                                    "attention_dropout",
                                    "pretraining_tp",
                                    "_name_or_path",
                                    "_commit_hash",
                                    "name_or_path",
                                    "auto_map",
                                    "is_decoder",
                                    "is_encoder_decoder",
                                    "output_attentions",
                                    "output_hidden_states",
                                    "return_dict",
                                    "id2label",
                                    "label2id",
                                    "problem_type",
                                    "task_specific_params",
                                    "finetuning_task",
                                    "tokenizer_class",
                                    "prefix",
                                    "chunk_size_feed_forward",
                                    "torchscript",
                                    "gradient_checkpointing",
                                    "is_llama_config",
                                    "rope_interleaved",
                                    "max_length",
                                    "min_length",
                                    "do_sample",
                                    "temperature",
                                    "top_k",
                                    "top_p",
                                    "_attn_implementation_autoset",
                                    "_attn_implementation",
                                    "transformers.js_config",
                                    "add_cross_attention",
                                    "cross_attention_hidden_size",
                                    "tie_encoder_decoder",
                                    "unsloth_version",
                                    "unsloth_fixed",
                                    "summary",
                                    "hidden_dropout",
                                    "attention_probs_dropout_prob",
                                    "quantization_config",
                                    "num_experts",
                                    "num_local_experts",
                                    "n_routed_experts"};

/* One line about keys nobody knows; errors for those that would change the model. */
static apus_status check_keys(const decoder *d, const apus_node *config, apus_error *err)
{
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    const apus_node_api *node = d->host->node;
    const apus_node *q = node->get(config, "quantization_config");
    char line[1024] = "";
    size_t used = 0, count = 0;
    if (node->kind(q) != APUS_NODE_NULL) {
        const char *method = node->as_string(node->get(q, "quant_method"), NULL);
        decoder_refuse(d, err, q, "quantization_config", "weights stored as '%.60s' are not read", method != NULL ? method : "quantised");
        return apus_hint(err, APUS_E_INVALID, "use the unquantised checkpoint, or a GGUF of the model");
    }
    for (size_t i = 0; i < 3; i++)
        if (node->as_int(node->get(config, experts[i]), 0) > 1)
            return decoder_refuse(d, err, node->get(config, experts[i]), experts[i], "a mixture of experts is not built here");
    if (node->as_bool(node->get(config, "rope_interleaved"), 0))
        return decoder_refuse(d, err, node->get(config, "rope_interleaved"), "rope_interleaved", "interleaved rotary positions are not built here");
    for (size_t i = 0; i < node->length(config); i++) {
        const char *key = node->key_at(config, i);
        int is_known = 0;
        for (size_t k = 0; k < sizeof known / sizeof known[0] && !is_known; k++)
            is_known = strcmp(key, known[k]) == 0;
        if (is_known || node->kind(node->at(config, i)) == APUS_NODE_NULL)
            continue;
        count++;
        if (used < sizeof line - 1)
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%.60s", used > 0 ? ", " : "", key);
    }
    if (count > 0) {
        char text[1200];
        snprintf(text, sizeof text, "config.json has %zu keys that mean nothing here: %s", count, line);
        d->host->log(APUS_LOG_WARN, "decoder", text);
    }
    return APUS_OK;
}

apus_status decoder_configure(decoder *d, const apus_node *config, apus_error *err)
{
    int family;
    if (d->host->node->kind(config) != APUS_NODE_MAP)
        return apus_fail(err, APUS_E_INVALID, "the model has no configuration (config.json)");
    apus_status st = read_family(d, config, &family, err);
    if (st == APUS_OK)
        st = read_sizes(d, config, family, err);
    if (st == APUS_OK)
        st = read_options(d, config, family, err);
    if (st == APUS_OK)
        st = read_windows(d, config, family, err);
    if (st == APUS_OK)
        st = check_keys(d, config, err);
    d->head = d->tied ? decoder_embedding_spec(d) : decoder_head_spec(d);
    return st;
}
