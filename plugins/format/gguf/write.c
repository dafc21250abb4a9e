/*
 * plugins/format/gguf/write: a GGUF v3 file that llama.cpp loads: hyperparameters, tokenizer, templates, tensors by
 * role. Matrices are stored as asked for; norms, biases and position tables stay F32; rows that do not fit blocks
 * become F16.
 */
#include "gguf.h"

#define ALIGNMENT 32u

/* ---------------------------------------------------------------- metadata */

void gguf_put(gguf_writer *w, const void *bytes, size_t n)
{
    if (w->failed || n == 0)
        return;
    if (w->capacity - w->length < n) {
        size_t capacity = w->capacity == 0 ? 65536 : w->capacity;
        while (capacity - w->length < n)
            capacity *= 2;
        unsigned char *more = w->host->realloc(w->bytes, w->capacity, capacity);
        if (more == NULL) {
            w->failed = 1;
            return;
        }
        w->bytes = more;
        w->capacity = capacity;
    }
    memcpy(w->bytes + w->length, bytes, n);
    w->length += n;
}

void gguf_put_u32(gguf_writer *w, uint32_t v)
{
    gguf_put(w, &v, sizeof v);
}

void gguf_put_u64(gguf_writer *w, uint64_t v)
{
    gguf_put(w, &v, sizeof v);
}

void gguf_put_text(gguf_writer *w, const char *s, size_t n)
{
    gguf_put_u64(w, n);
    gguf_put(w, s, n);
}

void gguf_key(gguf_writer *w, const char *key, uint32_t type)
{
    gguf_put_text(w, key, strlen(key));
    gguf_put_u32(w, type);
    w->count++;
}

void gguf_key_u32(gguf_writer *w, const char *key, uint32_t v)
{
    gguf_key(w, key, GGUF_U32);
    gguf_put_u32(w, v);
}

void gguf_key_f32(gguf_writer *w, const char *key, double v)
{
    const float f = (float)v;
    gguf_key(w, key, GGUF_F32);
    gguf_put(w, &f, sizeof f);
}

void gguf_key_bool(gguf_writer *w, const char *key, int v)
{
    const unsigned char b = v != 0;
    gguf_key(w, key, GGUF_BOOL);
    gguf_put(w, &b, 1);
}

void gguf_key_text(gguf_writer *w, const char *key, const char *s, size_t n)
{
    gguf_key(w, key, GGUF_STRING);
    gguf_put_text(w, s, n);
}

void gguf_key_array(gguf_writer *w, const char *key, uint32_t item, uint64_t count)
{
    gguf_key(w, key, GGUF_ARRAY);
    gguf_put_u32(w, item);
    gguf_put_u64(w, count);
}

/* A file being made. */
typedef struct maker {
    const apus_host *host;
    const apus_node_api *node;
    const char *path, *architecture;
    const apus_model_export *model;
    const apus_node *config;
    gguf_writer meta, list; /* metadata; tensor infos */
    int64_t heads, groups, head_dim, rotary_dim, layers, hidden, vocab, inner;
    double theta;
    float *freqs; /* [rotary_dim / 2] of rope_freqs.weight; NULL: none */
    float *long_factors, *short_factors;
    size_t fell_back; /* tensors stored as F16 because their rows do not fit blocks */
} maker;

static const apus_weight_spec *spec_at(const maker *m, size_t i)
{
    return (const apus_weight_spec *)((const char *)m->model->weights + i * (size_t)m->model->weights[0].size);
}

static void key_u32(maker *m, const char *key, int64_t v)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->architecture, key);
    gguf_key_u32(&m->meta, name, (uint32_t)v);
}

static void key_f32(maker *m, const char *key, double v)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->architecture, key);
    gguf_key_f32(&m->meta, name, v);
}

static void key_text(maker *m, const char *key, const char *s)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->architecture, key);
    gguf_key_text(&m->meta, name, s, strlen(s));
}

static const apus_node *config_get(const maker *m, const char *key)
{
    return m->node->get(m->config, key);
}

static void warn(const maker *m, const char *fmt, ...) APUS_PRINTF(2, 3);
static void warn(const maker *m, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    m->host->log(APUS_LOG_WARN, "gguf", line);
}

/* Sizes that the weights themselves have: the configuration may leave its defaults out. */
static apus_status measure(maker *m, apus_error *err)
{
    int64_t q_rows = 0, k_rows = 0;
    for (size_t i = 0; i < m->model->n_weights; i++) {
        const apus_weight_spec *w = spec_at(m, i);
        if (w->role == NULL)
            return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: weight '%s' has no name in GGUF", m->path, w->name);
        if (w->layer >= m->layers)
            m->layers = w->layer + 1;
        if (strcmp(w->role, "attn_q.weight") == 0)
            q_rows = w->dims[0];
        else if (strcmp(w->role, "attn_k.weight") == 0)
            k_rows = w->dims[0];
        else if (strcmp(w->role, "ffn_up.weight") == 0)
            m->inner = w->dims[0];
        else if (strcmp(w->role, "token_embd.weight") == 0) {
            m->vocab = w->dims[0];
            m->hidden = w->dims[1];
        }
    }
    const apus_node *heads = config_get(m, "num_attention_heads");
    m->heads = m->node->as_int(heads != NULL ? heads : config_get(m, "n_head"), 0);
    if (m->heads <= 0 || m->hidden <= 0)
        return apus_fail_line(err, APUS_E_INVALID, "%s: the configuration has no num_attention_heads", m->path);
    m->head_dim = q_rows > 0 ? q_rows / m->heads : m->hidden / m->heads;
    m->groups = k_rows > 0 && m->head_dim > 0 ? k_rows / m->head_dim : m->heads;
    return APUS_OK;
}

/* ---------------------------------------------------------------- rotary scalings */

static const apus_node *rope_get(const maker *m, const char *key)
{
    const apus_node *n = m->node->get(config_get(m, "rope_parameters"), key);
    return n != NULL ? n : m->node->get(config_get(m, "rope_scaling"), key);
}

static double rope_float(const maker *m, const char *key, double fallback)
{
    return m->node->as_float(rope_get(m, key), fallback);
}

static double yarn_attention(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* Divisors that yarn comes to (transformers: _compute_yarn_parameters). */
static apus_status yarn_factors(maker *m, double factor, double original, double fast, double slow, apus_error *err)
{
    const double n = (double)m->rotary_dim, pi = 3.14159265358979323846;
    double low = n * log(original / (fast * 2.0 * pi)) / (2.0 * log(m->theta));
    double high = n * log(original / (slow * 2.0 * pi)) / (2.0 * log(m->theta));
    if (m->node->as_bool(rope_get(m, "truncate"), 1)) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, n - 1.0);
    if (low == high)
        high += 0.001;
    m->freqs = m->host->alloc((size_t)m->rotary_dim / 2 * sizeof(float) + 64);
    if (m->freqs == NULL)
        return apus_fail(err, APUS_E_MEMORY, "%s: out of memory", m->path);
    for (int64_t i = 0; i < m->rotary_dim / 2; i++) {
        const double ramp = fmin(fmax(((double)i - low) / (high - low), 0.0), 1.0);
        m->freqs[i] = (float)(1.0 / (ramp / factor + 1.0 - ramp));
    }
    return APUS_OK;
}

/* llama.cpp knows yarn with beta_fast 32 and beta_slow 1 (it reads no others for these models); what differs is written as
 * the divisors it comes to, which its llama takes too. */
static apus_status write_yarn(maker *m, double factor, double original, apus_error *err)
{
    const double attention = rope_float(m, "attention_factor", 0.0), own = yarn_attention(factor, 1.0);
    const double mscale = rope_float(m, "mscale", 0.0), all = rope_float(m, "mscale_all_dim", 0.0);
    const double fast = rope_float(m, "beta_fast", 0.0), slow = rope_float(m, "beta_slow", 0.0);
    const double wanted = attention > 0                 ? attention
                          : mscale != 0.0 && all != 0.0 ? yarn_attention(factor, mscale) / yarn_attention(factor, all)
                                                        : own;
    const int usual = (fast == 0 || fast == 32) && (slow == 0 || slow == 1) && m->node->as_bool(rope_get(m, "truncate"), 1);
    if (!usual && strcmp(m->architecture, "llama") == 0) {
        key_f32(m, "rope.scaling.attn_factor", wanted);
        return yarn_factors(m, factor, original, fast > 0 ? fast : 32.0, slow > 0 ? slow : 1.0, err);
    }
    key_text(m, "rope.scaling.type", "yarn");
    key_f32(m, "rope.scaling.factor", factor);
    key_u32(m, "rope.scaling.original_context_length", (int64_t)original);
    if (wanted != own) /* ggml multiplies it with yarn's own */
        key_f32(m, "rope.scaling.attn_factor", wanted / own);
    if (fast > 0)
        key_f32(m, "rope.scaling.yarn_beta_fast", fast);
    if (slow > 0)
        key_f32(m, "rope.scaling.yarn_beta_slow", slow);
    if (!usual)
        warn(m, "%s: llama.cpp ignores yarn's beta_fast, beta_slow and truncate for %s: it will compute with 32, 1, true", m->path, m->architecture);
    return APUS_OK;
}

static float *factor_list(maker *m, const char *key)
{
    const apus_node *list = rope_get(m, key);
    const int64_t n = m->rotary_dim / 2;
    float *out = m->host->alloc((size_t)n * sizeof *out);
    for (int64_t i = 0; out != NULL && i < n; i++)
        out[i] = (float)m->node->as_float(m->node->at(list, (size_t)i), 1.0);
    return out;
}

static apus_status write_longrope(maker *m, double positions, double original, apus_error *err)
{
    const double factor = rope_float(m, "factor", positions / original);
    const double usual = factor <= 1.0 ? 1.0 : sqrt(1.0 + log(factor) / log(original));
    const double attention = rope_float(m, "attention_factor", usual);
    const size_t n = (size_t)m->rotary_dim / 2 * sizeof(float);
    m->short_factors = factor_list(m, "short_factor");
    m->long_factors = factor_list(m, "long_factor");
    if (m->short_factors == NULL || m->long_factors == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", m->path);
    if (attention == 1.0 && memcmp(m->short_factors, m->long_factors, n) == 0) {
        m->freqs = m->short_factors; /* one list for every length */
        m->short_factors = NULL;
        m->host->free(m->long_factors);
        m->long_factors = NULL;
        return APUS_OK;
    }
    key_text(m, "rope.scaling.type", "longrope");
    key_f32(m, "rope.scaling.attn_factor", attention);
    key_u32(m, "rope.scaling.original_context_length", (int64_t)original);
    return APUS_OK;
}

static apus_status write_rope(maker *m, apus_error *err)
{
    const apus_node *theta = rope_get(m, "rope_theta"), *part = rope_get(m, "partial_rotary_factor");
    const char *type = m->node->as_string(rope_get(m, "rope_type"), NULL);
    if (type == NULL)
        type = m->node->as_string(rope_get(m, "type"), NULL);
    m->theta = m->node->as_float(theta != NULL ? theta : config_get(m, "rope_theta"), 10000.0);
    m->rotary_dim = (int64_t)((double)m->head_dim * m->node->as_float(part != NULL ? part : config_get(m, "partial_rotary_factor"), 1.0));
    const double positions = m->node->as_float(config_get(m, "max_position_embeddings"), 2048.0);
    double original = m->node->as_float(config_get(m, "original_max_position_embeddings"), 0.0);
    if (original <= 0)
        original = rope_float(m, "original_max_position_embeddings", positions);
    const double factor = rope_float(m, "factor", positions / original);
    key_u32(m, "rope.dimension_count", m->rotary_dim);
    key_f32(m, "rope.freq_base", m->theta);
    if (type == NULL || strcmp(type, "default") == 0)
        return APUS_OK;
    if ((strcmp(type, "llama3") == 0 || strcmp(type, "longrope") == 0) && strcmp(m->architecture, "llama") != 0)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: llama.cpp's %s takes no rope type '%s'", m->path, m->architecture, type);
    if (strcmp(type, "linear") == 0) {
        key_text(m, "rope.scaling.type", "linear");
        key_f32(m, "rope.scaling.factor", factor);
    } else if (strcmp(type, "dynamic") == 0) {
        warn(m, "%s: GGUF has no dynamic rope scaling: llama.cpp will be right up to %g tokens", m->path, positions);
    } else if (strcmp(type, "yarn") == 0) {
        return write_yarn(m, factor, original, err);
    } else if (strcmp(type, "longrope") == 0) {
        return write_longrope(m, positions, original, err);
    } else if (strcmp(type, "llama3") == 0) {
        m->freqs = m->host->alloc((size_t)m->rotary_dim / 2 * sizeof(float) + 64);
        if (m->freqs == NULL)
            return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", m->path);
        gguf_llama3_factors(m->rotary_dim, m->theta, factor, rope_float(m, "low_freq_factor", 1.0), rope_float(m, "high_freq_factor", 4.0), original,
                            m->freqs);
    } else {
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: rope type '%s' cannot be written to GGUF", m->path, type);
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- hyperparameters */

static uint32_t file_type(apus_dtype t)
{
    return t == APUS_F16 ? 1 : t == APUS_BF16 ? 32 : t == APUS_Q8_0 ? 7 : t == APUS_Q4_0 ? 2 : 0;
}

/* What the model's own GGUF said of its origin goes on with it. */
static void write_origin(maker *m)
{
    static const char *const keys[] = {"general.name",         "general.author",      "general.organization", "general.basename",
                                       "general.finetune",     "general.size_label",  "general.license",      "general.license.name",
                                       "general.license.link", "general.description", "general.url",          "general.repo_url"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        size_t n = 0;
        const char *text = m->node->as_string(m->node->get(m->model->card->metadata, keys[i]), &n);
        if (text != NULL)
            gguf_key_text(&m->meta, keys[i], text, n);
    }
}

static apus_status write_config(maker *m, apus_error *err)
{
    const apus_node_api *node = m->node;
    gguf_key_text(&m->meta, "general.architecture", m->architecture, strlen(m->architecture));
    gguf_key_text(&m->meta, "general.type", "model", 5);
    write_origin(m);
    gguf_key_u32(&m->meta, "general.file_type", file_type(m->model->dtype));
    if (m->model->dtype >= APUS_Q4_0)
        gguf_key_u32(&m->meta, "general.quantization_version", 2);
    key_u32(m, "block_count", m->layers);
    key_u32(m, "embedding_length", m->hidden);
    key_u32(m, "feed_forward_length", m->inner);
    key_u32(m, "attention.head_count", m->heads);
    key_u32(m, "vocab_size", m->vocab);
    if (strcmp(m->architecture, "gpt2") == 0) {
        key_u32(m, "context_length", node->as_int(config_get(m, "n_positions"), 1024));
        key_f32(m, "attention.layer_norm_epsilon", node->as_float(config_get(m, "layer_norm_epsilon"), 1e-5));
        return APUS_OK;
    }
    const apus_node *act = config_get(m, "hidden_act");
    if (act != NULL && node->as_string(act, NULL) != NULL && strcmp(node->as_string(act, NULL), "silu") != 0)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: hidden_act '%s' cannot be written to GGUF, whose %s always has silu", m->path,
                              node->as_string(act, NULL), m->architecture);
    key_u32(m, "context_length", node->as_int(config_get(m, "max_position_embeddings"), 2048));
    key_u32(m, "attention.head_count_kv", m->groups);
    key_f32(m, "attention.layer_norm_rms_epsilon", node->as_float(config_get(m, "rms_norm_eps"), 1e-6));
    key_u32(m, "attention.key_length", m->head_dim);
    key_u32(m, "attention.value_length", m->head_dim);
    const int64_t window = node->as_int(config_get(m, "sliding_window"), 0);
    const char *type = node->as_string(config_get(m, "model_type"), NULL);
    if (window > 0 && ((type != NULL && strcmp(type, "mistral") == 0) || node->as_bool(config_get(m, "use_sliding_window"), 0))) {
        warn(m, "%s: llama.cpp ignores the sliding window of %lld: it will be right up to that many tokens", m->path, (long long)window);
        if (strcmp(m->architecture, "llama") == 0)
            key_u32(m, "attention.sliding_window", window);
    }
    return write_rope(m, err);
}

static void write_templates(maker *m)
{
    const apus_model_card *card = m->model->card;
    const apus_node *named = card->chat_templates;
    char key[512];
    if (card->chat_template != NULL)
        gguf_key_text(&m->meta, "tokenizer.chat_template", card->chat_template, strlen(card->chat_template));
    if (m->node->length(named) == 0)
        return;
    gguf_key_array(&m->meta, "tokenizer.chat_templates", GGUF_STRING, m->node->length(named));
    for (size_t i = 0; i < m->node->length(named); i++)
        gguf_put_text(&m->meta, m->node->key_at(named, i), strlen(m->node->key_at(named, i)));
    for (size_t i = 0; i < m->node->length(named); i++) {
        size_t n = 0;
        const char *text = m->node->as_string(m->node->at(named, i), &n);
        snprintf(key, sizeof key, "tokenizer.chat_template.%s", m->node->key_at(named, i));
        if (text != NULL)
            gguf_key_text(&m->meta, key, text, n);
    }
}

/* ---------------------------------------------------------------- tensors */

static uint32_t ggml_type(apus_dtype t)
{
    return t == APUS_F16 ? 1 : t == APUS_BF16 ? 30 : t == APUS_Q8_0 ? 8 : t == APUS_Q4_0 ? 2 : 0;
}

static int is_matrix(const apus_weight_spec *w)
{
    return w->ndim == 2 && (w->what == APUS_WEIGHT_MATRIX || w->what == APUS_WEIGHT_EMBEDDING) &&
           strcmp(w->role, "position_embd.weight") != 0; /* ggml adds it: F32, as llama.cpp's converter has it */
}

static apus_dtype stored_as(const maker *m, const apus_weight_spec *w)
{
    if (!is_matrix(w))
        return APUS_F32;
    return apus_row_bytes(m->model->dtype, w->dims[1]) == 0 ? APUS_F16 : m->model->dtype;
}

static uint64_t padded(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void list_tensor(maker *m, const char *name, int32_t ndim, const int64_t *dims, apus_dtype t, uint64_t *place)
{
    uint64_t rows = 1;
    gguf_put_text(&m->list, name, strlen(name));
    gguf_put_u32(&m->list, (uint32_t)ndim);
    for (int32_t k = ndim - 1; k >= 0; k--) {
        gguf_put_u64(&m->list, (uint64_t)dims[k]);
        rows = k + 1 < ndim ? rows * (uint64_t)dims[k] : rows;
    }
    gguf_put_u32(&m->list, ggml_type(t));
    gguf_put_u64(&m->list, *place);
    *place += padded(rows * apus_row_bytes(t, dims[ndim - 1]));
}

static size_t list_tensors(maker *m)
{
    uint64_t place = 0;
    size_t count = 0;
    const int64_t half = m->rotary_dim / 2;
    const float *const extra[] = {m->freqs, m->long_factors, m->short_factors};
    static const char *const names[] = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
    for (size_t i = 0; i < 3; i++)
        if (extra[i] != NULL) {
            list_tensor(m, names[i], 1, &half, APUS_F32, &place);
            count++;
        }
    for (size_t i = 0; i < m->model->n_weights; i++) {
        const apus_weight_spec *w = spec_at(m, i);
        char name[256];
        if (w->layer >= 0)
            snprintf(name, sizeof name, "blk.%d.%s", w->layer, w->role);
        else
            snprintf(name, sizeof name, "%s", w->role);
        const apus_dtype t = stored_as(m, w);
        m->fell_back += is_matrix(w) && t != m->model->dtype;
        list_tensor(m, name, w->ndim, w->dims, t, &place);
        count++;
    }
    return count;
}

static void encode_row(apus_dtype t, const float *x, void *out, int64_t n)
{
    if (t == APUS_Q8_0)
        apus_quantise_q8_0(x, out, n);
    else if (t == APUS_Q4_0)
        apus_quantise_q4_0(x, out, n);
    else if (t == APUS_F32)
        memcpy(out, x, (size_t)n * sizeof *x);
    else
        for (int64_t i = 0; i < n; i++) {
            const uint16_t half = t == APUS_F16 ? apus_f32_to_f16(x[i]) : apus_f32_to_bf16(x[i]);
            memcpy((unsigned char *)out + 2 * i, &half, 2);
        }
}

static apus_status pad(FILE *f, uint64_t bytes)
{
    for (uint64_t i = bytes; i < padded(bytes); i++)
        if (fputc(0, f) == EOF)
            return APUS_E_IO;
    return APUS_OK;
}

/* Row of Hugging Face's order that is row i of the file (see unpair in plugin.c); d: head_dim. */
static int64_t paired_row(int64_t i, int64_t d)
{
    const int64_t h = i / d, r = i % d;
    return h * d + (r % 2) * (d / 2) + r / 2;
}

static apus_status put_tensor(maker *m, FILE *f, size_t i, apus_error *err)
{
    const apus_weight_spec *w = spec_at(m, i);
    const apus_dtype t = stored_as(m, w);
    const int paired = gguf_rows_are_paired(m->architecture, w->role);
    const int64_t rows = w->dims[0], columns = w->ndim > 1 ? w->dims[1] : 1, d = m->head_dim;
    /* whole heads when rows change places */
    int64_t chunk = columns > 0 ? (int64_t)(1 << 20) / columns + 1 : rows;
    chunk = paired ? (chunk / d + 1) * d : chunk;
    chunk = chunk < rows ? chunk : rows;
    /* a vector is read, and lies in the file, as rows of one element */
    const size_t row_bytes = w->ndim > 1 ? apus_row_bytes(t, columns) : sizeof(float);
    float *x = m->host->alloc((size_t)chunk * (size_t)columns * sizeof *x + 64);
    unsigned char *out = m->host->alloc((size_t)chunk * row_bytes + 64);
    apus_status st = x == NULL || out == NULL ? apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", m->path) : APUS_OK;
    for (int64_t row = 0; row < rows && st == APUS_OK; row += chunk) {
        const int64_t n = rows - row < chunk ? rows - row : chunk;
        st = m->host->stopping() ? apus_fail_line(err, APUS_E_STOPPED, "stopped") : m->model->read(m->model->context, i, row, n, x, err);
        for (int64_t r = 0; r < n && st == APUS_OK; r++)
            encode_row(t, x + (paired ? paired_row(r, d) : r) * columns, out + (size_t)r * row_bytes, columns);
        if (st == APUS_OK && fwrite(out, 1, (size_t)n * row_bytes, f) != (size_t)n * row_bytes)
            st = apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", m->path, strerror(errno));
    }
    m->host->free(x);
    m->host->free(out);
    if (st == APUS_OK && pad(f, (uint64_t)rows * row_bytes) != APUS_OK)
        st = apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", m->path, strerror(errno));
    return st;
}

static apus_status put_file(maker *m, FILE *f, size_t tensors, apus_error *err)
{
    const uint32_t head[2] = {0x46554747u /* "GGUF" */, 3};
    const uint64_t counts[2] = {tensors, m->meta.count};
    int ok = fwrite(head, 1, 8, f) == 8 && fwrite(counts, 1, 16, f) == 16 && fwrite(m->meta.bytes, 1, m->meta.length, f) == m->meta.length &&
             fwrite(m->list.bytes, 1, m->list.length, f) == m->list.length && pad(f, 24 + m->meta.length + m->list.length) == APUS_OK;
    const float *const extra[] = {m->freqs, m->long_factors, m->short_factors};
    const size_t bytes = (size_t)m->rotary_dim / 2 * sizeof(float);
    for (size_t i = 0; i < 3; i++)
        if (extra[i] != NULL)
            ok = ok && fwrite(extra[i], 1, bytes, f) == bytes && pad(f, bytes) == APUS_OK;
    apus_status st = ok ? APUS_OK : apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", m->path, strerror(errno));
    for (size_t i = 0; i < m->model->n_weights && st == APUS_OK; i++)
        st = put_tensor(m, f, i, err);
    return st;
}

static apus_status make_file(maker *m, apus_error *err)
{
    const char *type = m->node->as_string(config_get(m, "model_type"), NULL);
    m->architecture = gguf_architecture_of(type != NULL ? type : "llama");
    if (m->architecture == NULL)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: model_type '%s' cannot be written to GGUF (llama, mistral, qwen2, qwen3, gpt2)", m->path,
                              type);
    apus_status st = measure(m, err);
    if (st == APUS_OK)
        st = write_config(m, err);
    if (st == APUS_OK)
        st = gguf_write_tokenizer(&m->meta, m->model->card, m->vocab, err);
    if (st != APUS_OK)
        return st;
    write_templates(m);
    const size_t tensors = list_tensors(m);
    if (m->meta.failed || m->list.failed)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", m->path);
    FILE *f = fopen(m->path, "wb");
    if (f == NULL)
        return apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", m->path, strerror(errno));
    st = apus_stdio_finish(f, m->path, put_file(m, f, tensors, err), err);
    if (st == APUS_OK && m->fell_back > 0)
        warn(m, "%s: %zu tensors have rows that do not fit blocks of 32 and are stored as F16", m->path, m->fell_back);
    return st;
}

apus_status gguf_write(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err)
{
    (void)params;
    apus_model_export wanted = {0};
    memcpy(&wanted, model, model->size < sizeof wanted && model->size > 0 ? model->size : sizeof wanted);
    if (wanted.dtype == APUS_REAL)
        wanted.dtype = APUS_F32;
    if (ggml_type(wanted.dtype) == 0 && wanted.dtype != APUS_F32)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: GGUF is written as F32, F16, BF16, Q8_0 or Q4_0", path);
    if (wanted.n_weights == 0 || wanted.card->config == NULL)
        return apus_fail_line(err, APUS_E_INVALID, "%s: there is no model to write", path);
    maker m = {.host = host,
               .node = host->node,
               .path = path,
               .model = &wanted,
               .config = wanted.card->config,
               .meta = {.host = host},
               .list = {.host = host}};
    const apus_status st = make_file(&m, err);
    host->free(m.meta.bytes);
    host->free(m.list.bytes);
    host->free(m.freqs);
    host->free(m.long_factors);
    host->free(m.short_factors);
    return st;
}
