/*
 * Sampler standard: greedy, temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024) and repetition penalty
 * (Keskar et al. 2019), in the order of transformers' logits processors. Temperature 0 is greedy.
 */
#include <stdlib.h>
#include <string.h>

#include <apus/logits.h>
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
    candidate *sorted; /* [n] the likeliest tokens, likely first; more as they are asked for */
    size_t n, capacity;
    float low, width;    /* logits above `low` are among them; how far the next band reaches below */
    uint32_t *seen, now; /* [vocab] when a token was last met; NULL until a penalty asks */
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
    s->host->free(s->sorted);
    s->host->free(s->seen);
    s->host->free(s);
}

/* Each token that was there once is made less likely, however often it was. */
static apus_status penalise(sampler *s, float *logits, int32_t vocab, const int32_t *history, size_t n, apus_error *err)
{
    const float penalty = (float)s->repetition_penalty;
    if (s->seen == NULL)
        s->seen = s->host->alloc((size_t)vocab * sizeof *s->seen);
    if (s->seen == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    s->now++;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = history[i];
        if (id < 0 || id >= vocab || s->seen[id] == s->now)
            continue;
        s->seen[id] = s->now;
        logits[id] = logits[id] > 0.0f ? logits[id] / penalty : logits[id] * penalty;
    }
    return APUS_OK;
}

/* The first of the largest. */
static int32_t most_likely(const float *logits, int32_t vocab)
{
    const float top = apus_logits_largest(logits, vocab);
    int32_t v = 0;
    while (v + 1 < vocab && logits[v] != top)
        v++;
    return v;
}

/* ---------------------------------------------------------------- likely first */

/* Likely first; equal ones by id, so that the order is a function of the numbers alone. */
static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The next band of logits is sorted too. Few ask for more than the first: almost all of the probability is near the top. Nothing lies
 * below top - 87, where exp is 0. 1; 0: there is no more; -1: no memory. */
static int extend(sampler *s, const float *logits, int32_t vocab, float top, apus_error *err)
{
    const size_t before = s->n;
    const float bottom = top - 87.0f;
    while (s->n == before && s->low > bottom) {
        const float high = s->low, low = high - s->width > bottom ? high - s->width : bottom;
        size_t count = 0;
        for (int32_t v = 0; v < vocab; v++)
            count += logits[v] > low && logits[v] <= high;
        if (s->n + count > s->capacity) {
            const size_t capacity = 2 * (s->n + count);
            candidate *grown = s->host->realloc(s->sorted, s->capacity * sizeof *grown, capacity * sizeof *grown);
            if (grown == NULL) {
                (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
                return -1;
            }
            s->sorted = grown;
            s->capacity = capacity;
        }
        for (int32_t v = 0; count > 0 && v < vocab; v++)
            if (logits[v] > low && logits[v] <= high)
                s->sorted[s->n++] = (candidate){logits[v], v};
        s->low = low;
        s->width *= 2.0f;
    }
    if (s->n == before)
        return 0;
    qsort(s->sorted + before, s->n - before, sizeof *s->sorted, by_logit);
    return 1;
}

/* A choice among a row's tokens, likely first. */
typedef struct choice {
    sampler *s;
    const float *logits;
    int32_t vocab;
    float top;
    size_t most;  /* so many stay */
    double total; /* their weights */
    int failed;
    apus_error *err;
} choice;

/* Is there an i-th candidate among those that stay? */
static int there_is(choice *c, size_t i)
{
    int more = 1;
    while (i < c->most && i >= c->s->n && more > 0)
        more = extend(c->s, c->logits, c->vocab, c->top, c->err);
    c->failed |= more < 0;
    return more > 0 && i < c->most;
}

static double weight(const choice *c, size_t i)
{
    return (double)apus_logits_exp(c->s->sorted[i].logit - c->top);
}

static void keep(choice *c, size_t n)
{
    c->most = n;
    c->total = 0.0;
    for (size_t i = 0; i < n; i++)
        c->total += weight(c, i);
}

/* top-k, then top-p of what is left, then min-p: transformers' order. */
static void cut(choice *c)
{
    const sampler *s = c->s;
    if (s->top_k > 0 && s->top_k < c->vocab) {
        size_t k = (size_t)s->top_k;
        (void)there_is(c, k - 1);
        k = k < s->n ? k : s->n;
        while (k > 0 && k < s->n && s->sorted[k].logit == s->sorted[k - 1].logit) /* as transformers: all that equal the k-th stay */
            k++;
        keep(c, k);
    }
    if (s->top_p < 1.0) {
        double before = 0.0;
        size_t n = 0;
        while (there_is(c, n) && (n == 0 || before / c->total < s->top_p))
            before += weight(c, n++);
        c->most = n;
        c->total = before;
    }
    if (s->min_p > 0.0) {
        size_t n = 1;
        while (there_is(c, n) && weight(c, n) >= s->min_p)
            n++;
        if (there_is(c, 0))
            keep(c, n);
    }
}

static apus_status sample(void *instance, float *logits, int32_t vocab, const int32_t *history, size_t n, size_t n_prompt, double u, int32_t *id,
                          apus_error *err)
{
    sampler *s = instance;
    (void)n_prompt;
    if (s->repetition_penalty != 1.0) {
        const apus_status st = penalise(s, logits, vocab, history, n, err);
        if (st != APUS_OK)
            return st;
    }
    *id = most_likely(logits, vocab);
    if (s->temperature == 0.0)
        return APUS_OK;
    const float temperature = (float)s->temperature;
    for (int32_t v = 0; v < vocab && temperature != 1.0f; v++)
        logits[v] /= temperature;
    choice c = {.s = s, .logits = logits, .vocab = vocab, .top = apus_logits_largest(logits, vocab), .most = (size_t)vocab, .err = err};
    s->n = 0;
    s->low = c.top;
    s->width = 4.0f;
    c.total = apus_logits_sum(logits, vocab, c.top);
    cut(&c);
    double upto = 0.0;
    for (size_t i = 0; there_is(&c, i); i++) {
        *id = s->sorted[i].id; /* the last one if rounding leaves the sum below u */
        upto += weight(&c, i);
        if (u * c.total < upto)
            break;
    }
    return c.failed ? APUS_E_MEMORY : APUS_OK;
}

static const apus_sampler_ops ops = {.size = sizeof ops, .open = open_sampler, .close = close_sampler, .sample = sample};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "temperature",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 100.0,
     .doc = "Divides the logits; 0: greedy."},
    {.size = sizeof(apus_param),
     .name = "top_k",
     .type = APUS_PARAM_INT,
     .fallback = "0",
     .min = 0,
     .max = 1e9,
     .doc = "Only the k most likely tokens; 0: all."},
    {.size = sizeof(apus_param),
     .name = "top_p",
     .type = APUS_PARAM_FLOAT,
     .fallback = "1.0",
     .min = 0.0,
     .max = 1.0,
     .doc = "Only the most likely tokens whose probabilities together reach p."},
    {.size = sizeof(apus_param),
     .name = "min_p",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0.0,
     .max = 1.0,
     .doc = "Only tokens at least min_p times as likely as the likeliest."},
    {.size = sizeof(apus_param),
     .name = "repetition_penalty",
     .type = APUS_PARAM_FLOAT,
     .fallback = "1.0",
     .min = 0.01,
     .max = 100.0,
     .doc = "Above 1: tokens of the prompt and the answer so far become less likely."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "sampler",
                                             .name = "standard",
                                             .doc = "Greedy, temperature, top-k, top-p, min-p, repetition penalty.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,        .name = "standard",           .version = "1.0.0",
                                   .license = "Apache-2.0", .doc = "The usual samplers.", .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
