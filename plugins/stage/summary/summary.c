/*
 * Stage summary: a table of what earlier stages found, on standard output and in STAGE/summary.md: a row a stage, a column a figure,
 * and the last stage's samples with the facts they were made from.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;
static const apus_node_api *node; /* both set at entry, the same for all */

/* RUN/NAME/result.json of an earlier stage. owner: caller. */
static apus_node *read_result(apus_stage_context *s, const char *name, apus_error *err)
{
    char path[4400];
    const char *dir = session->stage_dir(s), *slash = strrchr(dir, '/');
    snprintf(path, sizeof path, "%.*s/%s/result.json", (int)(slash != NULL ? slash - dir : 0), dir, name);
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
static void put(FILE *f, const char *text)
{
    fputs(text, f);
    fputs(text, stdout);
}

static apus_status write_row(FILE *f, apus_stage_context *s, const char *name, const apus_node *columns, apus_node **samples, apus_error *err)
{
    char cell[160];
    apus_node *saved = read_result(s, name, err);
    const apus_node *result = node->get(saved, "result");
    if (saved == NULL)
        return APUS_E_IO;
    snprintf(cell, sizeof cell, "| %-16s |", name);
    put(f, cell);
    for (size_t i = 0; i < node->length(columns); i++) {
        const apus_node *v = node->get(result, node->as_string(node->at(columns, i), NULL));
        if (v != NULL)
            snprintf(cell, sizeof cell, " %16.4f |", node->as_float(v, 0.0));
        else
            snprintf(cell, sizeof cell, " %16s |", "-");
        put(f, cell);
    }
    put(f, "\n");
    if (node->length(node->get(result, "samples")) > 0) {
        node->release(*samples);
        *samples = node->copy(node->get(result, "samples"));
    }
    node->release(saved);
    return APUS_OK;
}

static void write_samples(const apus_host *host, FILE *f, const apus_node *samples, const char *text_key)
{
    for (size_t i = 0; i < node->length(samples); i++) {
        const apus_node *sample = node->at(samples, i), *row = node->get(sample, "row");
        const char *asked = node->as_string(node->get(row, text_key), NULL), *said = node->as_string(node->get(sample, "text"), NULL);
        char *verdict = node->write_json(node->get(sample, "verdict"), 0, NULL);
        put(f, "\n");
        if (asked != NULL)
            put(f, asked);
        put(f, "\n-> ");
        put(f, said != NULL ? said : "");
        put(f, "\n   ");
        put(f, verdict != NULL ? verdict : "");
        put(f, "\n");
        host->free(verdict);
    }
}

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    char path[4400], cell[160];
    const apus_node *stages = node->get(params, "stages"), *columns = node->get(params, "figures");
    snprintf(path, sizeof path, "%s/summary.md", session->stage_dir(s));
    FILE *f = fopen(path, "w");
    if (f == NULL)
        return apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    snprintf(cell, sizeof cell, "\n| %-16s |", "stage");
    put(f, cell);
    for (size_t i = 0; i < node->length(columns); i++) {
        snprintf(cell, sizeof cell, " %16s |", node->as_string(node->at(columns, i), NULL));
        put(f, cell);
    }
    put(f, "\n|------------------|");
    for (size_t i = 0; i < node->length(columns); i++)
        put(f, "-----------------:|");
    put(f, "\n");
    apus_status st = APUS_OK;
    apus_node *samples = NULL;
    for (size_t i = 0; i < node->length(stages) && st == APUS_OK; i++) {
        const char *name = node->as_string(node->get(node->at(stages, i), "stage"), NULL);
        st = name != NULL ? write_row(f, s, name, columns, &samples, err)
                          : apus_fail(err, APUS_E_INVALID, "summary: stages must name earlier stages of this pipeline");
    }
    if (st == APUS_OK)
        write_samples(host, f, samples, node->as_string(node->get(params, "asked"), NULL));
    node->release(samples);
    if (fclose(f) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    return st;
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run};

static const apus_param params[] = {
    {.size = sizeof(apus_param), .name = "stages", .type = APUS_PARAM_LIST, .item = APUS_PARAM_MODEL, .flags = APUS_PARAM_REQUIRED, .min = 1, .max = 0,
     .doc = "Names of earlier stages, a row each."},
    {.size = sizeof(apus_param), .name = "figures", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING, .fallback = "[eval_loss]", .min = 1, .max = 0,
     .doc = "Figures of their results, a column each: eval_loss, greedy/faithful, …"},
    {.size = sizeof(apus_param), .name = "asked", .type = APUS_PARAM_STRING, .fallback = "prompt", .min = 1, .max = 0,
     .doc = "Key of a sample's row that is shown above its answer."},
};

static const apus_component components[] = {{.size = sizeof(apus_component), .kind = "stage", .name = "summary",
                                             .doc = "A table of what earlier stages found, with samples.", .params = params,
                                             .n_params = sizeof params / sizeof params[0], .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD, .name = "summary", .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "The summary stage.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    node = host->node;
    return &plugin;
}
