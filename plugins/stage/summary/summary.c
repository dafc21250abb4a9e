/*
 * Stage summary: a table of what earlier stages found, on standard output and in STAGE/summary.md: a row a stage, a column a figure;
 * then the samples of the last stage that has some, each with what was asked, what was answered, the verdict and the trace: the chain
 * of stages that made the answer, with the keys that name their outputs and the data each was trained on.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;
static const apus_node_api *node; /* both set at entry, the same for all */

/* A JSON file of the run's folder: "config.json", "STAGE/result.json". owner: caller. */
static apus_node *read_file(apus_stage_context *s, const char *name, const char *file, apus_error *err)
{
    char path[4400];
    const char *dir = session->stage_dir(s), *slash = strrchr(dir, '/');
    snprintf(path, sizeof path, "%.*s/%s%s%s", (int)(slash != NULL ? slash - dir : 0), dir, name, name[0] != '\0' ? "/" : "", file);
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        (void)apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    char *text = NULL;
    size_t n = 0, capacity = 0;
    for (size_t got = 1; got > 0; n += got) {
        if (n + 65536 > capacity) {
            char *grown = realloc(text, capacity = n + 65536 + capacity);
            if (grown == NULL)
                break;
            text = grown;
        }
        got = fread(text + n, 1, capacity - n, f);
    }
    fclose(f);
    apus_node *result = text != NULL ? node->parse_json(text, n, path, err) : NULL;
    free(text);
    return result;
}

/* Both places at once. */
static void put(FILE *f, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    vfprintf(f, fmt, args);
    vfprintf(stdout, fmt, again);
    va_end(again);
    va_end(args);
}

/* ---- the table */

static void write_head(FILE *f, const apus_node *columns)
{
    put(f, "\n| %-16s |", "stage");
    for (size_t i = 0; i < node->length(columns); i++)
        put(f, " %16s |", node->as_string(node->at(columns, i), NULL));
    put(f, "\n|------------------|");
    for (size_t i = 0; i < node->length(columns); i++)
        put(f, "-----------------:|");
    put(f, "\n");
}

static void write_row(FILE *f, const char *name, const apus_node *result, const apus_node *columns)
{
    put(f, "| %-16s |", name);
    for (size_t i = 0; i < node->length(columns); i++) {
        const apus_node *v = node->get(result, node->as_string(node->at(columns, i), NULL));
        if (v != NULL)
            put(f, " %16.4f |", node->as_float(v, 0.0));
        else
            put(f, " %16s |", "-");
    }
    put(f, "\n");
}

/* ---- the samples and their trace */

/* The stage of this name in the resolved pipeline; NULL: none. */
static const apus_node *stage_named(const apus_node *config, const char *name)
{
    const apus_node *stages = node->get(config, "stages");
    for (size_t i = 0; name != NULL && i < node->length(stages); i++) {
        const char *its = node->as_string(node->get(node->at(stages, i), "name"), NULL);
        if (its != NULL && strcmp(its, name) == 0)
            return node->at(stages, i);
    }
    return NULL;
}

/* A line a stage, from the one that judged back to the weights it all began with. */
static void write_trace(FILE *f, apus_stage_context *s, const apus_node *config, const char *judged)
{
    for (const apus_node *stage = stage_named(config, judged); stage != NULL;) {
        const apus_node *model = node->get(stage, "model");
        const char *name = node->as_string(node->get(stage, "name"), NULL), *from = node->as_string(model, NULL);
        apus_node *saved = read_file(s, name, "result.json", NULL);
        const apus_node *result = node->get(saved, "result"), *data = node->get(result, "dataset");
        const char *key = node->as_string(node->get(saved, "key"), NULL), *data_key = node->as_string(node->get(data, "key"), NULL);
        put(f, "  %-14s %.12s", name, key != NULL ? key : "-");
        if (node->get(result, "steps") != NULL)
            put(f, "  %lld steps on %lld rows", (long long)node->as_int(node->get(result, "steps"), 0),
                (long long)node->as_int(node->get(data, "rows"), 0));
        else
            put(f, "  %lld answers", (long long)node->as_int(node->get(result, "answers"), 0));
        if (data_key != NULL)
            put(f, ", data %.12s", data_key);
        stage = stage_named(config, from);
        put(f, ", of %s%s\n", from != NULL ? "" : "new weights", from != NULL ? from : "");
        node->release(saved);
    }
}

/* "faithful", or what is wrong with it; a verdict without such a list is shown whole. */
static void write_verdict(const apus_host *host, FILE *f, const apus_node *verdict)
{
    const char *wrong = node->as_string(node->get(verdict, "wrong"), NULL);
    if (wrong != NULL) {
        put(f, "verdict: %s%s\n", wrong[0] == '\0' ? "all right" : "wrong: ", wrong);
        return;
    }
    char *whole = node->write_json(verdict, 0, NULL);
    put(f, "verdict: %s\n", whole != NULL ? whole : "-");
    host->free(whole);
}

static void write_samples(const apus_host *host, FILE *f, apus_stage_context *s, const apus_node *config, const char *judged,
                          const apus_node *samples, const char *asked_key)
{
    for (size_t i = 0; i < node->length(samples); i++) {
        const apus_node *sample = node->at(samples, i), *row = node->get(sample, "row");
        const char *asked = node->as_string(node->get(row, asked_key), NULL), *said = node->as_string(node->get(sample, "text"), NULL);
        char *facts = node->write_json(node->get(row, "facts"), 0, NULL);
        put(f, "\n%s\n-> %s\n", asked != NULL ? asked : "", said != NULL ? said : "");
        write_verdict(host, f, node->get(sample, "verdict"));
        put(f, "trace: answer %zu of %s (greedy), row %s\n", i, judged, facts != NULL ? facts : "-");
        host->free(facts);
    }
    if (node->length(samples) > 0) {
        put(f, "\nwhat made them (stage, key of its output):\n");
        write_trace(f, s, config, judged);
    }
}

static apus_status write_all(const apus_host *host, const apus_node *params, apus_stage_context *s, FILE *f, const apus_node *config, apus_error *err)
{
    const apus_node *stages = node->get(params, "stages"), *columns = node->get(params, "figures");
    const char *judged = NULL;
    apus_node *samples = NULL;
    apus_status st = APUS_OK;
    write_head(f, columns);
    for (size_t i = 0; i < node->length(stages) && st == APUS_OK; i++) {
        const char *name = node->as_string(node->get(node->at(stages, i), "stage"), NULL);
        apus_node *saved = name != NULL ? read_file(s, name, "result.json", err) : NULL;
        const apus_node *result = node->get(saved, "result");
        if (name == NULL)
            st = apus_fail(err, APUS_E_INVALID, "summary: stages must name earlier stages of this pipeline");
        else if (saved == NULL)
            st = APUS_E_IO;
        else
            write_row(f, name, result, columns);
        if (node->length(node->get(result, "samples")) > 0) {
            node->release(samples);
            samples = node->copy(node->get(result, "samples"));
            judged = name;
        }
        node->release(saved);
    }
    if (st == APUS_OK && judged != NULL)
        write_samples(host, f, s, config, judged, samples, node->as_string(node->get(params, "asked"), NULL));
    node->release(samples);
    return st;
}

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    char path[4400];
    apus_node *config = read_file(s, "", "config.json", err);
    if (config == NULL)
        return APUS_E_IO;
    snprintf(path, sizeof path, "%s/summary.md", session->stage_dir(s));
    FILE *f = fopen(path, "w");
    apus_status st = f != NULL ? write_all(host, params, s, f, config, err) : apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    node->release(config);
    if (f != NULL && fclose(f) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    return st;
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "stages",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_MODEL,
     .flags = APUS_PARAM_REQUIRED,
     .min = 1,
     .max = 0,
     .doc = "Names of earlier stages, a row each."},
    {.size = sizeof(apus_param),
     .name = "figures",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_STRING,
     .fallback = "[eval_loss]",
     .min = 1,
     .max = 0,
     .doc = "Figures of their results, a column each: eval_loss, greedy/faithful, …"},
    {.size = sizeof(apus_param),
     .name = "asked",
     .type = APUS_PARAM_STRING,
     .fallback = "prompt",
     .min = 1,
     .max = 0,
     .doc = "Key of a sample's row that is shown above its answer."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "stage",
                                             .name = "summary",
                                             .doc = "A table of what earlier stages found, with samples and what made them.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,        .name = "summary",           .version = "1.0.0",
                                   .license = "Apache-2.0", .doc = "The summary stage.", .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    node = host->node;
    return &plugin;
}
