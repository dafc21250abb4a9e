/*
 * Stage generate: answers every row of a dataset; STAGE/answers.jsonl has one object a row: id, text, ids, finish_reason.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/answer.h>
#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;
static const apus_node_api *node; /* both set at entry, the same for all */

typedef struct writing {
    const apus_host *host;
    apus_stage_context *stage;
    FILE *f;
    int64_t count;
} writing;

static apus_status answered(void *context, int64_t i, const apus_node *row, const apus_node *answer, apus_error *err)
{
    static const char *const kept[] = {"text", "ids", "finish_reason"};
    const writing *w = context;
    (void)row;
    apus_node *line = node->make_map();
    (void)node->set(line, "id", node->make_int(i));
    for (size_t k = 0; k < sizeof kept / sizeof kept[0]; k++)
        (void)node->set(line, kept[k], node->copy(node->get(answer, kept[k])));
    size_t n;
    char *text = node->write_json(line, 0, &n);
    node->release(line);
    const int good = text != NULL && fwrite(text, 1, n, w->f) == n && fputc('\n', w->f) != EOF && fflush(w->f) == 0;
    w->host->free(text);
    if (!good)
        return apus_fail(err, APUS_E_IO, "answers.jsonl: %s", strerror(errno));
    apus_node *event = node->make_map();
    (void)node->set(event, "step", node->make_int(i + 1));
    (void)node->set(event, "max_steps", node->make_int(w->count));
    return session->event(w->stage, event, err);
}

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    apus_row_questions all;
    char path[4400], final[4400];
    snprintf(final, sizeof final, "%s/answers.jsonl", session->stage_dir(s));
    snprintf(path, sizeof path, "%s.tmp", final);
    FILE *f = NULL;
    apus_status st = apus_open_rows(&all, host, session, params, s, err);
    if (st == APUS_OK) {
        f = fopen(path, "w");
        st = f != NULL ? APUS_OK : apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    }
    writing w = {.host = host, .stage = s, .f = f, .count = all.count};
    all.context = &w;
    all.answered = answered;
    if (st == APUS_OK)
        st = apus_answer_rows(&all, err);
    if (f != NULL && fclose(f) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    if (st == APUS_OK && rename(path, final) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", final, strerror(errno));
    if (st == APUS_OK) {
        apus_node *result = node->make_map();
        (void)node->set(result, "answers", node->make_string(final, (size_t)-1));
        (void)node->set(result, "rows", node->make_int(all.count));
        session->result(s, result);
    }
    apus_close_rows(&all);
    return st;
}

static apus_status plan(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_node *costs, apus_error *err)
{
    apus_row_questions all;
    apus_status st = apus_open_rows(&all, host, session, params, s, err);
    if (st == APUS_OK)
        st = apus_answer_plan(&all, 1, costs, err);
    apus_close_rows(&all);
    return st;
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run, .plan = plan};

#define PARAM .size = sizeof(apus_param)
#define ANY   .min = 1, .max = 0
static const char *const samplings[] = {"given", "model", NULL};
static const apus_param params[] = {
    {PARAM, .name = "model", .type = APUS_PARAM_MODEL, .flags = APUS_PARAM_REQUIRED, ANY, .doc = "Who answers."},
    {PARAM, .name = "dataset", .type = APUS_PARAM_DATASET, .flags = APUS_PARAM_REQUIRED, ANY,
     .doc = "What is asked: each row's messages up to its answer, or its prompt."},
    {PARAM, .name = "sampler", .type = APUS_PARAM_COMPONENT, .of_kind = "sampler", .fallback = "standard", ANY,
     .doc = "How the next token is chosen: {type: standard, temperature: 0.7, top_p: 0.9}; temperature 0 is greedy.",
     .aliases = "temperature top_p top_k min_p repetition_penalty do_sample", .needs = "sampling=given"},
    {PARAM, .name = "sampling", .type = APUS_PARAM_STRING, .fallback = "given", .choices = samplings, ANY,
     .doc = "given: as `sampler` says. model: as the model's generation_config.json says."},
    {PARAM, .name = "max_tokens", .type = APUS_PARAM_INT, .fallback = "512", .min = 1, .max = 1e9, .unit = "tokens", .doc = "Longest answer.",
     .aliases = "max_new_tokens max_length"},
    {PARAM, .name = "stop", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE, ANY,
     .doc = "Strings that end an answer."},
    {PARAM, .name = "parallel", .type = APUS_PARAM_INT, .fallback = "16", .min = 1, .max = 4096, .unit = "answers",
     .doc = "Answers that are written at once. The answers are the same, whatever it is."},
    {PARAM, .name = "cache_tokens", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e9, .unit = "tokens",
     .doc = "Most tokens whose keys and values are kept in memory; 0: what the answers at work may need."},
    {PARAM, .name = "limit", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e15, .unit = "rows", .doc = "Only the first rows; 0: all."},
    {PARAM, .name = "parse_special", .type = APUS_PARAM_BOOL, .fallback = "false", ANY,
     .doc = "Special-token strings inside messages become tokens."},
    {PARAM, .name = "template", .type = APUS_PARAM_PATH, .flags = APUS_PARAM_NULLABLE, ANY, .doc = "Chat template instead of the model's."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "stage",
                                             .name = "generate",
                                             .doc = "Answers every row of a dataset.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "generate", .version = "1.0.0", .license = "Apache-2.0", .doc = "The generation stage.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    node = host->node;
    return &plugin;
}
