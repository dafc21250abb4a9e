/* Tracker jsonl: every event of the run to one file, each line with its stage, for log collectors (a stage's own are in events.jsonl). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/session.h>

typedef struct jsonl {
    const apus_host *host;
    FILE *file;
    char stage[128];
} jsonl;

static apus_status open_tracker(const apus_host *host, const apus_node *params, const apus_tracker_run *run, void **tracker, apus_error *err)
{
    char path[4400];
    const char *given = host->node->as_string(host->node->get(params, "path"), NULL);
    jsonl *t = host->alloc(sizeof *t);
    if (t == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    t->host = host;
    snprintf(t->stage, sizeof t->stage, "%s", run->stage);
    if (given != NULL)
        snprintf(path, sizeof path, "%s", given);
    else
        snprintf(path, sizeof path, "%s/logging.jsonl", run->run_dir);
    t->file = fopen(path, run->stage_index == 0 ? "w" : "a");
    if (t->file == NULL) {
        apus_fail(err, APUS_E_IO, "tracker jsonl: %s: %s", path, strerror(errno));
        host->free(t);
        return APUS_E_IO;
    }
    *tracker = t;
    return APUS_OK;
}

static apus_status event(void *tracker, const apus_node *e, int replayed, apus_error *err)
{
    (void)replayed;
    jsonl *t = tracker;
    const apus_node_api *node = t->host->node;
    apus_node *line = node->copy(e);
    size_t n;
    (void)node->set(line, "stage", node->make_string(t->stage, (size_t)-1));
    char *text = node->write_json(line, 0, &n);
    node->release(line);
    const int good = text != NULL && fwrite(text, 1, n, t->file) == n && fputc('\n', t->file) != EOF && fflush(t->file) == 0;
    t->host->free(text);
    return good ? APUS_OK : apus_fail(err, APUS_E_IO, "tracker jsonl: %s", strerror(errno));
}

static void close_tracker(void *tracker, apus_status status)
{
    (void)status;
    jsonl *t = tracker;
    (void)fclose(t->file);
    t->host->free(t);
}

static const apus_tracker_ops ops = {.size = sizeof ops, .open = open_tracker, .event = event, .close = close_tracker};

static const apus_param params[] = {{.size = sizeof(apus_param),
                                     .name = "path",
                                     .type = APUS_PARAM_PATH,
                                     .flags = APUS_PARAM_NULLABLE | APUS_PARAM_WRITTEN,
                                     .min = 1,
                                     .max = 0,
                                     .doc = "File; default RUN/logging.jsonl."}};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "tracker",
                                             .name = "jsonl",
                                             .doc = "All events of the run in one file.",
                                             .params = params,
                                             .n_params = 1,
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,         .name = "jsonl",          .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "JSON Lines log.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
