/*
 * Sampler standard: greedy, temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024) and repetition penalty
 * (Keskar et al. 2019), in the order of transformers' logits processors. Temperature 0 is greedy.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/session.h>

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

typedef struct sampler {
    const apus_host *host;
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k;
    candidate *candidates;
    int32_t capacity;
} sampler;

static apus_status open_sampler(const apus_host *host, const apus_node *params, void **out, apus_error *err)
{
    const apus_node_api *node = host->node;
    sampler *s = host->alloc(sizeof *s);
    if (s == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    s->host = host;
    s->temperature = node->as_float(node->get(params, "temperature"), 0.0);
    s->top_k = node->as_int(node->get(params, "top_k"), 0);
    s->top_p = node->as_float(node->get(params, "top_p"), 1.0);
    s->min_p = node->as_float(node->get(params, "min_p"), 0.0);
    s->repetition_penalty = node->as_float(node->get(params, "repetition_penalty"), 1.0);
    *out = s;
    return APUS_OK;
}

static void close_sampler(void *instance)
{
    sampler *s = instance;
    s->host->free(s->candidates);
    s->host->free(s);
}

/* Each token that was there once is made less likely, however often it was. */
static void penalise(float *logits, int32_t vocab, const int32_t *history, size_t n, float penalty)
{
    for (size_t i = 0; i < n; i++) {
        const int32_t id = history[i];
        if (id < 0 || id >= vocab)
            continue;
        int seen = 0;
        for (size_t k = 0; k < i && !seen; k++)
            seen = history[k] == id;
        if (!seen)
            logits[id] = logits[id] > 0.0f ? logits[id] / penalty : logits[id] * penalty;
    }
}

static int32_t most_likely(const float *logits, int32_t vocab)
{
    int32_t best = 0;
    for (int32_t v = 1; v < vocab; v++)
        best = logits[v] > logits[best] ? v : best;
    return best;
}

/* Likely first; equal ones by id, so that the order is a function of the numbers alone. */
static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* How many of the n sorted candidates stay. */
static int32_t cut(const sampler *s, const candidate *c, int32_t n)
{
    if (s->top_k > 0 && s->top_k < n) {
        int32_t k = (int32_t)s->top_k;
        while (k < n && c[k].logit == c[k - 1].logit) /* as transformers: all that equal the k-th stay */
            k++;
        n = k;
    }
    double total = 0.0, before = 0.0;
    for (int32_t i = 0; i < n; i++)
        total += exp((double)c[i].logit - c[0].logit);
    if (s->top_p < 1.0) {
        int32_t k = 0;
        while (k < n && (k == 0 || before / total < s->top_p))
            before += exp((double)c[k++].logit - c[0].logit);
        n = k;
    }
    if (s->min_p > 0.0) {
        int32_t k = 1;
        while (k < n && exp((double)c[k].logit - c[0].logit) >= s->min_p)
            k++;
        n = k;
    }
    return n;
}

static apus_status sample(void *instance, float *logits, int32_t vocab, const int32_t *history, size_t n, size_t n_prompt, double u,
                          int32_t *id, apus_error *err)
{
    sampler *s = instance;
    (void)n_prompt;
    if (s->repetition_penalty != 1.0)
        penalise(logits, vocab, history, n, (float)s->repetition_penalty);
    if (s->temperature == 0.0) {
        *id = most_likely(logits, vocab);
        return APUS_OK;
    }
    if (s->capacity < vocab) {
        s->host->free(s->candidates);
        s->candidates = s->host->alloc((size_t)vocab * sizeof *s->candidates);
        s->capacity = s->candidates != NULL ? vocab : 0;
        if (s->candidates == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    for (int32_t v = 0; v < vocab; v++)
        s->candidates[v] = (candidate){(float)((double)logits[v] / s->temperature), v};
    qsort(s->candidates, (size_t)vocab, sizeof *s->candidates, by_logit);
    const int32_t kept = cut(s, s->candidates, vocab);
    double total = 0.0, upto = 0.0;
    for (int32_t i = 0; i < kept; i++)
        total += exp((double)s->candidates[i].logit - s->candidates[0].logit);
    *id = s->candidates[kept - 1].id; /* if rounding leaves the sum below u */
    for (int32_t i = 0; i < kept; i++) {
        upto += exp((double)s->candidates[i].logit - s->candidates[0].logit);
        if (u * total < upto) {
            *id = s->candidates[i].id;
            break;
        }
    }
    return APUS_OK;
}

static const apus_sampler_ops ops = {.size = sizeof ops, .open = open_sampler, .close = close_sampler, .sample = sample};

static const apus_param params[] = {
    {.size = sizeof(apus_param), .name = "temperature", .type = APUS_PARAM_FLOAT, .fallback = "0.0", .min = 0.0, .max = 100.0,
     .doc = "Divides the logits; 0: greedy."},
    {.size = sizeof(apus_param), .name = "top_k", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e9,
     .doc = "Only the k most likely tokens; 0: all."},
    {.size = sizeof(apus_param), .name = "top_p", .type = APUS_PARAM_FLOAT, .fallback = "1.0", .min = 0.0, .max = 1.0,
     .doc = "Only the most likely tokens whose probabilities together reach p."},
    {.size = sizeof(apus_param), .name = "min_p", .type = APUS_PARAM_FLOAT, .fallback = "0.0", .min = 0.0, .max = 1.0,
     .doc = "Only tokens at least min_p times as likely as the likeliest."},
    {.size = sizeof(apus_param), .name = "repetition_penalty", .type = APUS_PARAM_FLOAT, .fallback = "1.0", .min = 0.01, .max = 100.0,
     .doc = "Above 1: tokens of the prompt and the answer so far become less likely."},
};

static const apus_component components[] = {{.size = sizeof(apus_component), .kind = "sampler", .name = "standard",
                                             .doc = "Greedy, temperature, top-k, top-p, min-p, repetition penalty.", .params = params,
                                             .n_params = sizeof params / sizeof params[0], .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD, .name = "standard", .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "The usual samplers.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
