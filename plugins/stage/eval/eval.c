/*
 * Stage eval: measures a model on a dataset: loss, perplexity, preference accuracy; with judge: true the model answers each row and
 * the dataset's own judge says how right the answers are (greedy, and sampled over several seeds).
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <apus/answer.h>
#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;
static const apus_node_api *node; /* both set at entry, the same for all */

/* ---- loss and metrics */

static apus_status measure(const apus_node *params, apus_stage_context *s, apus_node *result, apus_error *err)
{
    apus_node *metrics = NULL;
    apus_status st = session->evaluate(s, params, &metrics, err);
    if (st != APUS_OK)
        return st;
    apus_node *event = node->make_map();
    for (size_t i = 0; i < node->length(metrics); i++) {
        const char *key = node->key_at(metrics, i);
        (void)node->set(result, key, node->copy(node->at(metrics, i)));
        if (strcmp(key, "dataset") != 0)
            (void)node->set(event, key, node->copy(node->at(metrics, i)));
    }
    /* A sequence loss is a mean negative log-likelihood; its exponential is the perplexity. */
    if (node->get(metrics, "eval_rewards/accuracies") == NULL) {
        const double perplexity = exp(node->as_float(node->get(metrics, "eval_loss"), NAN));
        (void)node->set(event, "eval_perplexity", node->make_float(perplexity));
        (void)node->set(result, "eval_perplexity", node->make_float(perplexity));
    }
    node->release(metrics);
    return session->event(s, event, err);
}

/* ---- answers, judged */

#define MAX_VERDICTS 16
typedef struct tally {
    char names[MAX_VERDICTS][64];
    double sums[MAX_VERDICTS];
    size_t n;
    int64_t answers;
} tally;

static void count(tally *t, const apus_node *verdict)
{
    t->answers++;
    for (size_t i = 0; i < node->length(verdict); i++) {
        const apus_node *v = node->at(verdict, i);
        const char *name = node->key_at(verdict, i);
        if (node->kind(v) != APUS_NODE_INT && node->kind(v) != APUS_NODE_FLOAT && node->kind(v) != APUS_NODE_BOOL)
            continue;
        size_t k = 0;
        while (k < t->n && strcmp(t->names[k], name) != 0)
            k++;
        if (k == t->n) {
            if (k == MAX_VERDICTS)
                continue;
            snprintf(t->names[k], sizeof t->names[k], "%s", name);
            t->n++;
        }
        t->sums[k] += node->kind(v) == APUS_NODE_BOOL ? node->as_bool(v, 0) : node->as_float(v, 0.0);
    }
}

/* A sample of an answer for people: what was asked, said, judged. */
static void keep_sample(apus_node *samples, const apus_node *row, const apus_node *answer, const apus_node *verdict)
{
    apus_node *s = node->make_map();
    (void)node->set(s, "row", node->copy(row));
    (void)node->set(s, "text", node->copy(node->get(answer, "text")));
    (void)node->set(s, "verdict", node->copy(verdict));
    (void)node->append(samples, s);
}

typedef struct judging {
    void *rows;
    tally t;
    int64_t keep;
    apus_node *samples; /* NULL: none are kept */
} judging;

static apus_status judge_answer(void *context, int64_t i, const apus_node *row, const apus_node *answer, apus_error *err)
{
    judging *j = context;
    apus_node *verdict = NULL;
    const apus_status st = session->rows_judge(j->rows, row, node->as_string(node->get(answer, "text"), NULL), &verdict, err);
    if (st != APUS_OK)
        return st;
    count(&j->t, verdict);
    if (j->samples != NULL && i < j->keep)
        keep_sample(j->samples, row, answer, verdict);
    node->release(verdict);
    return APUS_OK;
}

static apus_status judge_pass(apus_row_questions *all, apus_stage_context *s, const apus_node *params, const apus_node *sampling, uint64_t seed,
                              const char *prefix, apus_node *result, apus_node *samples, apus_error *err)
{
    judging j = {.rows = all->rows, .keep = node->as_int(node->get(params, "samples"), 3), .samples = samples};
    char name[128];
    all->sampling = sampling;
    all->seed = seed;
    all->context = &j;
    all->answered = judge_answer;
    const apus_status st = apus_answer_rows(all, err);
    if (st != APUS_OK)
        return st;
    apus_node *event = node->make_map();
    (void)node->set(event, "answers", node->make_int(j.t.answers));
    for (size_t k = 0; k < j.t.n && j.t.answers > 0; k++) {
        snprintf(name, sizeof name, "%s%s", prefix, j.t.names[k]);
        const double share = j.t.sums[k] / (double)j.t.answers;
        (void)node->set(event, name, node->make_float(share));
        (void)node->set(result, name, node->make_float(node->as_float(node->get(result, name), 0.0) + share));
    }
    return session->event(s, event, err);
}

static apus_node *sampling_of(const apus_node *params, double temperature)
{
    apus_node *sampling = node->copy(params), *sampler = node->copy(node->get(params, "sampler"));
    if (node->kind(sampler) != APUS_NODE_MAP) {
        apus_node *map = node->make_map();
        (void)node->set(map, "type", sampler);
        sampler = map;
    }
    (void)node->set(sampler, "temperature", node->make_float(temperature));
    (void)node->set(sampling, "sampler", sampler);
    return sampling;
}

/* Passes at temperature 1, after the greedy one. */
static int64_t sampled_passes(const apus_node *params)
{
    return node->as_int(node->get(params, "seeds"), 3);
}

static apus_status judge(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_node *result, apus_error *err)
{
    apus_row_questions all;
    apus_status st = apus_open_rows(&all, host, session, params, s, err);
    const int64_t seeds = sampled_passes(params);
    apus_node *samples = node->make_list(), *greedy = sampling_of(params, 0.0), *sampled = sampling_of(params, 1.0);
    if (st == APUS_OK)
        st = judge_pass(&all, s, params, greedy, session->seed(s), "greedy/", result, samples, err);
    apus_node *sums = node->make_map();
    for (int64_t k = 0; k < seeds && st == APUS_OK; k++)
        st = judge_pass(&all, s, params, sampled, session->seed(s) + (uint64_t)k, "sampled/", sums, NULL, err);
    for (size_t i = 0; i < node->length(sums); i++)
        (void)node->set(result, node->key_at(sums, i), node->make_float(node->as_float(node->at(sums, i), 0.0) / (double)seeds));
    (void)node->set(result, "samples", samples);
    (void)node->set(result, "answers", node->make_int(all.count));
    node->release(sums);
    node->release(greedy);
    node->release(sampled);
    apus_close_rows(&all);
    return st;
}

static int is_judged(const apus_node *params)
{
    return node->as_bool(node->get(params, "judge"), 0);
}

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    apus_node *result = node->make_map();
    apus_status st = is_judged(params) ? judge(host, params, s, result, err) : measure(params, s, result, err);
    if (st != APUS_OK)
        node->release(result);
    else
        session->result(s, result);
    return st;
}

static apus_status plan(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_node *costs, apus_error *err)
{
    if (!is_judged(params))
        return session->evaluate_plan(s, params, costs, err);
    apus_row_questions all;
    apus_status st = apus_open_rows(&all, host, session, params, s, err);
    if (st == APUS_OK)
        st = apus_answer_plan(&all, 1 + sampled_passes(params), costs, err);
    apus_close_rows(&all);
    return st;
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run, .plan = plan};

#define PARAM .size = sizeof(apus_param)
#define ANY   .min = 1, .max = 0
static const apus_param params[] = {
    {PARAM, .name = "model", .type = APUS_PARAM_MODEL, .flags = APUS_PARAM_REQUIRED, ANY, .doc = "What is measured."},
    {PARAM, .name = "dataset", .type = APUS_PARAM_DATASET, .flags = APUS_PARAM_REQUIRED, ANY, .doc = "Rows it is measured on."},
    {PARAM, .name = "loss", .type = APUS_PARAM_COMPONENT, .of_kind = "loss", .flags = APUS_PARAM_NULLABLE, ANY,
     .doc = "Default: the one the model was trained with (against the same reference) where it fits the rows.", .needs = "!judge"},
    {PARAM, .name = "sequence_loss", .type = APUS_PARAM_STRING, .fallback = "cross_entropy", ANY,
     .doc = "Loss for single answers when nothing else says.", .needs = "!judge !loss"},
    {PARAM, .name = "preference_loss", .type = APUS_PARAM_STRING, .fallback = "dpo", ANY, .doc = "Loss for pairs when nothing else says.",
     .needs = "!judge !loss"},
    {PARAM, .name = "judge", .type = APUS_PARAM_BOOL, .fallback = "false", ANY,
     .doc = "Let the model answer each row, and the dataset's judge say how right the answers are."},
    {PARAM, .name = "seeds", .type = APUS_PARAM_INT, .fallback = "3", .min = 0, .max = 100, .doc = "Of the judge: sampled passes at temperature 1.",
     .needs = "judge"},
    {PARAM, .name = "samples", .type = APUS_PARAM_INT, .fallback = "3", .min = 0, .max = 1000, .doc = "Of the judge: answers kept to look at.",
     .needs = "judge"},
    {PARAM, .name = "sampler", .type = APUS_PARAM_COMPONENT, .of_kind = "sampler", .fallback = "standard", ANY,
     .doc = "Of the judge: how the next token is chosen ({type: standard, top_p: 0.9}). The temperature is the pass's: 0, then 1.",
     .aliases = "temperature top_p top_k min_p repetition_penalty do_sample", .needs = "judge"},
    {PARAM, .name = "max_tokens", .type = APUS_PARAM_INT, .fallback = "512", .min = 1, .max = 1e9, .unit = "tokens",
     .doc = "Of the judge: longest answer.", .aliases = "max_new_tokens max_length", .needs = "judge"},
    {PARAM, .name = "stop", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE, ANY,
     .doc = "Of the judge: strings that end an answer.", .needs = "judge"},
    {PARAM, .name = "parallel", .type = APUS_PARAM_INT, .fallback = "16", .min = 1, .max = 4096, .unit = "answers",
     .doc = "Of the judge: answers that are written at once. The answers are the same, whatever it is.", .needs = "judge"},
    {PARAM, .name = "cache_tokens", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e9, .unit = "tokens",
     .doc = "Of the judge: most tokens whose keys and values are kept in memory; 0: what the answers at work may need.", .needs = "judge"},
    {PARAM, .name = "limit", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e15, .unit = "rows", .doc = "Only the first rows; 0: all."},
    {PARAM, .name = "template", .type = APUS_PARAM_PATH, .flags = APUS_PARAM_NULLABLE, ANY, .doc = "Chat template instead of the model's."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "stage",
                                             .name = "eval",
                                             .doc = "Measures a model: loss, perplexity, preference accuracy, judged answers.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "eval",   .version = "1.0.0", .license = "Apache-2.0", .doc = "The evaluation stage.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    node = host->node;
    return &plugin;
}
