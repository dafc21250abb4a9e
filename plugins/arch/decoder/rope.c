/*
 * plugins/arch/decoder/rope: rotary frequencies for every scaling that transformers knows for these models: default,
 * linear, dynamic, yarn, llama3, longrope. Formulas: transformers, modeling_rope_utils.py. Frequencies are rounded to
 * float32, as there: at position 10,000 the rounding is visible in the angles.
 */
#include "decoder.h"

#define PI 3.14159265358979323846

/* rope_parameters of transformers 5, or rope_scaling of 4, with the top-level keys behind them. */
typedef struct source {
    const decoder *d;
    const apus_node *config, *scaling;
    double theta, factor, original;
    int64_t dim;
    apus_error *err;
} source;

static apus_status number(const source *s, const char *key, double fallback, double min, double max, double *out)
{
    return decoder_number(s->d, s->scaling, key, fallback, min, max, out, s->err);
}

static double plain(const source *s, int64_t i)
{
    return 1.0 / pow(s->theta, 2.0 * (double)i / (double)s->dim);
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* Dimension at which a pair turns `rotations` times within the original length. */
static double yarn_dim(const source *s, double rotations)
{
    return (double)s->dim * log(s->original / (rotations * 2.0 * PI)) / (2.0 * log(s->theta));
}

static apus_status yarn(const source *s, double *freqs, double *scale)
{
    double fast, slow, mscale, all, attention;
    apus_status st = number(s, "beta_fast", 32, 0, 1e9, &fast);
    if (st == APUS_OK)
        st = number(s, "beta_slow", 1, 0, 1e9, &slow);
    if (st == APUS_OK)
        st = number(s, "mscale", 0, -1e9, 1e9, &mscale);
    if (st == APUS_OK)
        st = number(s, "mscale_all_dim", 0, -1e9, 1e9, &all);
    if (st == APUS_OK)
        st = number(s, "attention_factor", -1, 0, 1e9, &attention);
    if (st != APUS_OK)
        return st;
    fast = fast == 0 ? 32 : fast;
    slow = slow == 0 ? 1 : slow;
    *scale = attention >= 0                ? attention
             : mscale != 0.0 && all != 0.0 ? yarn_scale(s->factor, mscale) / yarn_scale(s->factor, all)
                                           : yarn_scale(s->factor, 1.0);
    double low = yarn_dim(s, fast), high = yarn_dim(s, slow);
    if (s->d->host->node->as_bool(s->d->host->node->get(s->scaling, "truncate"), 1)) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, (double)s->dim - 1.0);
    if (low == high)
        high += 0.001;
    for (int64_t i = 0; i < s->dim / 2; i++) {
        const double ramp = fmin(fmax(((double)i - low) / (high - low), 0.0), 1.0);
        freqs[i] = plain(s, i) / s->factor * ramp + plain(s, i) * (1.0 - ramp);
    }
    return APUS_OK;
}

static apus_status llama3(const source *s, double *freqs)
{
    double low, high;
    apus_status st = number(s, "low_freq_factor", NAN, 1e-9, 1e9, &low);
    if (st == APUS_OK)
        st = number(s, "high_freq_factor", NAN, 1e-9, 1e9, &high);
    if (st == APUS_OK && high <= low)
        st = decoder_refuse(s->d, s->err, s->scaling, "high_freq_factor", "must exceed low_freq_factor");
    for (int64_t i = 0; i < s->dim / 2 && st == APUS_OK; i++) {
        const double f = plain(s, i), turns = s->original * f / (2.0 * PI); /* original length / wavelength */
        const double smooth = (turns - low) / (high - low);
        freqs[i] = turns > high ? f : turns < low ? f / s->factor : (1.0 - smooth) * f / s->factor + smooth * f;
    }
    return st;
}

static apus_status longrope_row(const source *s, const char *key, double *freqs)
{
    const apus_node_api *node = s->d->host->node;
    const apus_node *list = node->get(s->scaling, key);
    if (node->kind(list) != APUS_NODE_LIST || node->length(list) != (size_t)(s->dim / 2))
        return decoder_refuse(s->d, s->err, list != NULL ? list : s->scaling, key, "expected a list of %lld numbers", (long long)(s->dim / 2));
    for (int64_t i = 0; i < s->dim / 2; i++) {
        const double f = node->as_float(node->at(list, (size_t)i), 0.0);
        if (!(f > 0.0 && f < 1e9))
            return decoder_refuse(s->d, s->err, node->at(list, (size_t)i), key, "expected a positive number");
        freqs[i] = plain(s, i) / f;
    }
    return APUS_OK;
}

static apus_status longrope(const source *s, double *freqs, double *scale)
{
    double attention, factor;
    apus_status st = longrope_row(s, "short_factor", freqs);
    if (st == APUS_OK)
        st = longrope_row(s, "long_factor", freqs + s->dim / 2);
    if (st == APUS_OK)
        st = number(s, "attention_factor", -1, 0, 1e9, &attention);
    if (st == APUS_OK)
        st = number(s, "factor", (double)s->d->max_positions / s->original, 1e-9, 1e9, &factor);
    if (st != APUS_OK)
        return st;
    *scale = attention >= 0 ? attention : factor <= 1.0 ? 1.0 : sqrt(1.0 + log(factor) / log(s->original));
    return APUS_OK;
}

enum { DEFAULT = 0, LINEAR = 1, DYNAMIC = 2, YARN = 3, LLAMA3 = 4, LONGROPE = 5, N_TYPES = 6 };

static apus_status read_type(const source *s, int *type)
{
    static const char *const names[] = {"default", "linear", "dynamic", "yarn", "llama3", "longrope"};
    const apus_node_api *node = s->d->host->node;
    const apus_node *v = node->get(s->scaling, "rope_type");
    if (v == NULL)
        v = node->get(s->scaling, "type");
    const char *name = node->as_string(v, NULL);
    *type = DEFAULT;
    if (node->kind(v) == APUS_NODE_NULL)
        return APUS_OK;
    for (int i = 0; i < N_TYPES; i++)
        if (name != NULL && strcmp(name, names[i]) == 0) {
            *type = i;
            return APUS_OK;
        }
    decoder_refuse(s->d, s->err, v, "rope_type", "'%.60s' is not known", name != NULL ? name : "(no text)");
    return apus_hint(s->err, APUS_E_INVALID, "default, linear, dynamic, yarn, llama3 or longrope");
}

static apus_status check_parameters(const source *s)
{
    static const char *const known[] = {"rope_theta",
                                        "rope_type",
                                        "type",
                                        "partial_rotary_factor",
                                        "factor",
                                        "attention_factor",
                                        "beta_fast",
                                        "beta_slow",
                                        "short_factor",
                                        "long_factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "mscale",
                                        "mscale_all_dim",
                                        "truncate",
                                        "original_max_position_embeddings",
                                        "finetuned",
                                        "max_position_embeddings"};
    const apus_node_api *node = s->d->host->node;
    for (size_t i = 0; i < node->length(s->scaling); i++) {
        int is_known = 0;
        for (size_t k = 0; k < sizeof known / sizeof known[0] && !is_known; k++)
            is_known = strcmp(node->key_at(s->scaling, i), known[k]) == 0;
        if (is_known || node->kind(node->at(s->scaling, i)) == APUS_NODE_NULL)
            continue;
        if (node->kind(node->at(s->scaling, i)) == APUS_NODE_MAP)
            return decoder_refuse(s->d, s->err, node->at(s->scaling, i), node->key_at(s->scaling, i),
                                  "rotary parameters of their own for each type of layer are not built here");
        return decoder_refuse(s->d, s->err, node->at(s->scaling, i), node->key_at(s->scaling, i), "is no rotary parameter");
    }
    return APUS_OK;
}

/* Everything but the frequencies. */
static apus_status read_source(source *s, int *type)
{
    const apus_node_api *node = s->d->host->node;
    double part, theta;
    const apus_node *v5 = node->get(s->config, "rope_parameters"), *v4 = node->get(s->config, "rope_scaling");
    s->scaling = node->kind(v4) != APUS_NODE_NULL ? v4 : v5; /* as transformers: an explicit rope_scaling wins */
    if (node->kind(s->scaling) != APUS_NODE_NULL && node->kind(s->scaling) != APUS_NODE_MAP)
        return decoder_refuse(s->d, s->err, s->scaling, "rope_scaling", "expected a mapping");
    apus_status st = check_parameters(s);
    if (st == APUS_OK)
        st = read_type(s, type);
    if (st == APUS_OK)
        st = decoder_number(s->d, s->config, "rope_theta", 10000.0, 1.0 + 1e-9, 1e15, &theta, s->err);
    if (st == APUS_OK)
        st = number(s, "rope_theta", theta, 1.0 + 1e-9, 1e15, &s->theta);
    if (st == APUS_OK)
        st = decoder_number(s->d, s->config, "partial_rotary_factor", 1.0, 1e-6, 1.0, &part, s->err);
    if (st == APUS_OK)
        st = number(s, "partial_rotary_factor", part, 1e-6, 1.0, &part);
    if (st == APUS_OK)
        st = number(s, "original_max_position_embeddings", (double)s->d->max_positions, 1, 1e12, &s->original);
    /* Phi-3's way of saying it, outside the rotary parameters, goes first */
    if (st == APUS_OK)
        st = decoder_number(s->d, s->config, "original_max_position_embeddings", s->original, 1, 1e12, &s->original, s->err);
    if (st == APUS_OK && (*type == LINEAR || *type == DYNAMIC || *type == LLAMA3))
        st = number(s, "factor", NAN, 1e-9, 1e9, &s->factor);
    else if (st == APUS_OK && *type == YARN)
        st = number(s, "factor", (double)s->d->max_positions / s->original, 1e-9, 1e9, &s->factor);
    if (st != APUS_OK)
        return st;
    s->dim = (int64_t)((double)s->d->head_dim * part);
    if (s->dim < 2 || s->dim % 2 != 0 || (*type == DYNAMIC && s->dim == 2))
        return decoder_refuse(s->d, s->err, s->config, "partial_rotary_factor", "%lld of %lld elements of a head cannot be rotated",
                              (long long)s->dim, (long long)s->d->head_dim);
    return APUS_OK;
}

apus_status decoder_rope_configure(decoder *d, const apus_node *config, apus_error *err)
{
    source s = {.d = d, .config = config, .factor = 1.0, .err = err};
    decoder_rope *r = &d->rope;
    int type = DEFAULT;
    apus_status st = read_source(&s, &type);
    if (st != APUS_OK)
        return st;
    r->rows = type == LONGROPE ? 2 : 1;
    r->freqs = d->host->alloc((size_t)s.dim * sizeof *r->freqs);
    if (r->freqs == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    r->spec = (apus_rope_spec){.head_dim = (int32_t)d->head_dim,
                               .rotary_dim = (int32_t)s.dim,
                               .scale = 1.0,
                               .mode = type == DYNAMIC    ? 1
                                       : type == LONGROPE ? 2
                                                          : 0,
                               .limit = type == LONGROPE ? s.original : (double)d->max_positions,
                               .factor = s.factor,
                               .base = s.theta};
    for (int64_t i = 0; i < s.dim / 2; i++)
        r->freqs[i] = plain(&s, i) / (type == LINEAR ? s.factor : 1.0);
    if (type == YARN)
        st = yarn(&s, r->freqs, &r->spec.scale);
    else if (type == LLAMA3)
        st = llama3(&s, r->freqs);
    else if (type == LONGROPE)
        st = longrope(&s, r->freqs, &r->spec.scale);
    for (int64_t i = 0; i < s.dim / 2 * r->rows; i++)
        r->freqs[i] = (double)(float)r->freqs[i];
    return st;
}
