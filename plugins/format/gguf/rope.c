/*
 * plugins/format/gguf/rope: rotary scalings between GGUF and config.json. llama.cpp keeps llama3's as a tensor of
 * divisors (rope_freqs.weight), longrope's as two, linear and yarn as metadata.
 */
#include "gguf.h"

static double wavelength(int64_t i, int64_t rotary_dim, double theta)
{
    return 2.0 * 3.14159265358979323846 * pow(theta, 2.0 * (double)i / (double)rotary_dim);
}

void gguf_llama3_factors(int64_t rotary_dim, double theta, double factor, double low, double high, double original, float *out)
{
    for (int64_t i = 0; i < rotary_dim / 2; i++) {
        const double turns = original / wavelength(i, rotary_dim, theta);
        const double smooth = (turns - low) / (high - low);
        const double f = turns > high ? 1.0 : turns < low ? factor : 1.0 / ((1.0 - smooth) / factor + smooth);
        out[i] = (float)f;
    }
}

/* Parameters of llama3's scaling that give these divisors, with low_freq_factor 1 (only ratios show in the divisors, so
 * every such tensor has one). 0: none gives them. */
static int fit_llama3(const float *factors, int64_t rotary_dim, double theta, double *factor, double *high, double *original)
{
    const int64_t n = rotary_dim / 2;
    int64_t first = -1, last = -1;
    double s[2], t[2];
    float again[1024];
    *factor = (double)factors[n - 1];
    if (!(*factor > 1.0) || n > 1024)
        return 0;
    for (int64_t i = 0; i < n; i++) /* those between: smooth = (original / wavelength - 1) / (high - 1) */
        if ((double)factors[i] > 1.0 + 1e-6 && (double)factors[i] < *factor * (1.0 - 1e-6)) {
            first = first < 0 ? i : first;
            last = i;
        }
    if (first < 0)
        return 0;
    for (int k = 0; k < 2; k++) {
        const int64_t i = k == 0 ? first : last;
        s[k] = (1.0 / (double)factors[i] - 1.0 / *factor) / (1.0 - 1.0 / *factor);
        t[k] = 1.0 / wavelength(i, rotary_dim, theta);
    }
    if (first == last) { /* one point leaves a choice: high_freq_factor as every published model has it */
        *high = 4.0;
        *original = round((s[0] * 3.0 + 1.0) / t[0]);
    } else {
        const double a = (s[0] - s[1]) / (t[0] - t[1]), b = s[0] - a * t[0];
        *high = round((1.0 - 1.0 / b) * 1000.0) / 1000.0;
        *original = round(a * (*high - 1.0));
    }
    if (!(*high > 1.0 && *high < 1e6 && *original >= 1.0 && *original < 1e9))
        return 0;
    gguf_llama3_factors(rotary_dim, theta, *factor, 1.0, *high, *original, again);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)again[i] - (double)factors[i]) <= 1e-5 * (double)factors[i]))
            return 0;
    return 1;
}

static apus_status read_factors(const gguf_file *f, const char *name, int64_t rotary_dim, const apus_tensor_info **t, apus_error *err)
{
    *t = gguf_tensor(f, name);
    if (*t != NULL && ((*t)->dtype != APUS_F32 || (*t)->ndim != 1 || (*t)->dims[0] != rotary_dim / 2))
        return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%s' is not F32 [%lld]", f->path, name, (long long)(rotary_dim / 2));
    return APUS_OK;
}

static apus_node *factor_list(const apus_node_api *node, const apus_tensor_info *t)
{
    apus_node *list = node->make_list();
    for (int64_t i = 0; i < t->dims[0]; i++) {
        float v;
        memcpy(&v, (const unsigned char *)t->data + 4 * i, 4);
        node->append(list, node->make_float((double)v));
    }
    return list;
}

static apus_node *scaling(const apus_node_api *node, const char *type)
{
    apus_node *n = node->make_map();
    node->set(n, "rope_type", node->make_string(type, (size_t)-1));
    return n;
}

/* longrope with one list for both lengths says any divisors in a way that transformers reads. */
static apus_node *longrope(const gguf_file *f, const apus_tensor_info *small, const apus_tensor_info *large, double attention)
{
    const apus_node_api *node = f->host->node;
    apus_node *n = scaling(node, "longrope");
    const int64_t context = gguf_int(gguf_arch_get(f, "context_length"), 0);
    node->set(n, "short_factor", factor_list(node, small));
    node->set(n, "long_factor", factor_list(node, large));
    node->set(n, "attention_factor", node->make_float(attention));
    node->set(n, "original_max_position_embeddings", node->make_int(gguf_int(gguf_arch_get(f, "rope.scaling.original_context_length"), context)));
    return n;
}

static apus_node *llama3(const gguf_file *f, const apus_tensor_info *t, int64_t rotary_dim, double theta)
{
    const apus_node_api *node = f->host->node;
    const double attention = gguf_float(gguf_arch_get(f, "rope.scaling.attn_factor"), 1.0);
    float factors[1024];
    double factor, high, original;
    if (rotary_dim > 2048 || attention != 1.0)
        return longrope(f, t, t, attention);
    memcpy(factors, t->data, (size_t)t->bytes);
    if (!fit_llama3(factors, rotary_dim, theta, &factor, &high, &original))
        return longrope(f, t, t, attention);
    apus_node *n = scaling(node, "llama3");
    node->set(n, "factor", node->make_float(factor));
    node->set(n, "low_freq_factor", node->make_float(1.0));
    node->set(n, "high_freq_factor", node->make_float(high));
    node->set(n, "original_max_position_embeddings", node->make_int((int64_t)original));
    return n;
}

static apus_node *yarn(const gguf_file *f, double factor)
{
    const apus_node_api *node = f->host->node;
    apus_node *n = scaling(node, "yarn");
    const int64_t context = gguf_int(gguf_arch_get(f, "context_length"), 0);
    const double attention = gguf_float(gguf_arch_get(f, "rope.scaling.attn_factor"), 1.0);
    const double fast = gguf_float(gguf_arch_get(f, "rope.scaling.yarn_beta_fast"), 0.0);
    const double slow = gguf_float(gguf_arch_get(f, "rope.scaling.yarn_beta_slow"), 0.0);
    node->set(n, "factor", node->make_float(factor));
    node->set(n, "original_max_position_embeddings", node->make_int(gguf_int(gguf_arch_get(f, "rope.scaling.original_context_length"), context)));
    const double given = gguf_float(gguf_arch_get(f, "rope.scaling.yarn_attn_factor"), 0.0);
    if (given > 0) /* as llama.cpp's converter writes config.json's own value */
        node->set(n, "attention_factor", node->make_float(given));
    else if (attention != 1.0) /* ggml multiplies it with yarn's own 1 + 0.1 ln(factor) */
        node->set(n, "attention_factor", node->make_float(attention * (1.0 + 0.1 * log(factor))));
    if (fast > 0)
        node->set(n, "beta_fast", node->make_float(fast));
    if (slow > 0)
        node->set(n, "beta_slow", node->make_float(slow));
    return n;
}

apus_status gguf_read_rope(gguf_file *f, apus_node *config, int64_t rotary_dim, double theta, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    const apus_tensor_info *freqs, *small, *large;
    apus_status st = read_factors(f, "rope_freqs.weight", rotary_dim, &freqs, err);
    if (st == APUS_OK)
        st = read_factors(f, "rope_factors_short.weight", rotary_dim, &small, err);
    if (st == APUS_OK)
        st = read_factors(f, "rope_factors_long.weight", rotary_dim, &large, err);
    if (st != APUS_OK)
        return st;
    size_t n = 0;
    const char *type = gguf_string(gguf_arch_get(f, "rope.scaling.type"), &n);
    const double old = gguf_float(gguf_arch_get(f, "rope.scale_linear"), 1.0); /* before rope.scaling.* existed */
    const double factor = gguf_float(gguf_arch_get(f, "rope.scaling.factor"), old);
    apus_node *s = NULL;
    if (!isfinite(factor) || factor <= 0)
        return apus_fail_line(err, APUS_E_INVALID, "%s: %s.rope.scaling.factor is %g", f->path, f->architecture, factor);
    if (small != NULL && large != NULL) {
        s = longrope(f, small, large, gguf_float(gguf_arch_get(f, "rope.scaling.attn_factor"), 1.0));
    } else if (freqs != NULL) {
        s = llama3(f, freqs, rotary_dim, theta);
    } else if (type != NULL && n == 4 && memcmp(type, "yarn", 4) == 0) {
        s = yarn(f, factor);
    } else if (type != NULL && !(n == 4 && memcmp(type, "none", 4) == 0) && !(n == 6 && memcmp(type, "linear", 6) == 0)) {
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: %s.rope.scaling.type '%.*s' is not read", f->path, f->architecture,
                              (int)(n < 40 ? n : 40), type);
    } else if (factor != 1.0 && !(type != NULL && n == 4)) {
        s = scaling(node, "linear");
        node->set(s, "factor", node->make_float(factor));
    }
    if (s == NULL)
        return APUS_OK;
    return node->set(config, "rope_scaling", s) == APUS_OK ? APUS_OK : apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
}
