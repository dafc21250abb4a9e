/* core/run/pipeline.c: see pipeline.h. */
#include "run/pipeline.h"

#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "data/dataset.h"
#include "io/io.h"
#include "model/schedule.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()

static const apus_param top_params[] = {
    {.size = sizeof(apus_param),
     .name = "run",
     .type = APUS_PARAM_PATH,
     .flags = APUS_PARAM_NULLABLE | APUS_PARAM_WRITTEN,
     .min = 1,
     .max = 0,
     .doc = "Run folder; default runs/<file name>.",
     .aliases = "output_dir"},
    {.size = sizeof(apus_param),
     .name = "seed",
     .type = APUS_PARAM_INT,
     .fallback = "42",
     .min = 0,
     .max = 9e18,
     .doc = "The one seed of the run.",
     .aliases = "data_seed"},
    {.size = sizeof(apus_param),
     .name = "backend",
     .type = APUS_PARAM_COMPONENT,
     .of_kind = "backend",
     .fallback = "cpu",
     .min = 1,
     .max = 0,
     .doc = "The device that computes.",
     .aliases = "device memory threads dtype"},
    {.size = sizeof(apus_param),
     .name = "profile",
     .type = APUS_PARAM_BOOL,
     .fallback = "false",
     .min = 1,
     .max = 0,
     .doc = "Where a training's time goes, by operation: RUN/STAGE/trace.json for Perfetto, of steps 2 to 4, and a table in the report."},
    {.size = sizeof(apus_param),
     .name = "trackers",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_COMPONENT,
     .of_kind = "tracker",
     .fallback = "[console, html]",
     .min = 1,
     .max = 0,
     .doc = "Who is told of events, beside events.jsonl.",
     .aliases = "report_to"},
    {.size = sizeof(apus_param),
     .name = "cache",
     .type = APUS_PARAM_PATH,
     .flags = APUS_PARAM_NULLABLE | APUS_PARAM_WRITTEN,
     .min = 1,
     .max = 0,
     .doc = "Folder of tokenised data; default $APUS_CACHE, else ~/.cache/apus."},
    {.size = sizeof(apus_param),
     .name = "stages",
     .type = APUS_PARAM_NODE,
     .flags = APUS_PARAM_REQUIRED,
     .min = 1,
     .max = 0,
     .doc = "What is done, in order."},
};

static const apus_param stage_params[] = {
    {.size = sizeof(apus_param),
     .name = "name",
     .type = APUS_PARAM_STRING,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "Name of the stage: its folder, and what later stages call it."},
    {.size = sizeof(apus_param),
     .name = "stage",
     .type = APUS_PARAM_STRING,
     .flags = APUS_PARAM_REQUIRED,
     .min = 1,
     .max = 0,
     .doc = "Type of the stage."},
    {.size = sizeof(apus_param),
     .name = "seed",
     .type = APUS_PARAM_INT,
     .flags = APUS_PARAM_NULLABLE,
     .min = 0,
     .max = 9e18,
     .doc = "The stage's own seed; default the run's."},
};

const apus_param *apus_pipeline_params(uint32_t *n)
{
    *n = sizeof top_params / sizeof top_params[0];
    return top_params;
}

const apus_param *apus_pipeline_stage_params(uint32_t *n)
{
    *n = sizeof stage_params / sizeof stage_params[0];
    return stage_params;
}

/* ---------------------------------------------------------------- names and models */

static const char *where(const apus_node *n, char *buffer, size_t capacity)
{
    return NODE->where(n, buffer, capacity);
}

static int find_stage(const apus_pipeline *p, size_t upto, const char *name)
{
    for (size_t i = 0; i < upto; i++)
        if (strcmp(p->stages[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* A model's name -> {stage: name} when an earlier stage is called so, else what the name locates. Checks that a path is there.
 * words_too: the words for a state of the trained model itself are taken (parameters that have such a default). */
static apus_node *resolve_model(const apus_pipeline *p, size_t upto, const apus_node *given, int words_too, apus_status *st, apus_error *err)
{
    static const char *const words[] = {"start", "base", "precomputed"};
    const char *name = NODE->as_string(given, NULL);
    char at[256];
    if (name == NULL && NODE->kind(given) == APUS_NODE_MAP) {
        apus_node *copy = NODE->copy(given);
        static const char *const nested[] = {"path", "base", "adapter"};
        for (size_t i = 0; i < 3 && *st == APUS_OK; i++) {
            const apus_node *inner = NODE->get(given, nested[i]);
            if (NODE->kind(inner) != APUS_NODE_STRING)
                continue;
            const char *path = NODE->as_string(inner, NULL);
            if (!apus_path_exists(path)) {
                *st = apus_fail(err, APUS_E_NOT_FOUND, "%s: model: %s: no such file or folder", where(inner, at, sizeof at), path);
                apus_hint(err, *st, "paths are relative to the working directory");
            }
        }
        return copy;
    }
    if (name == NULL)
        return NODE->copy(given);
    if (find_stage(p, upto, name) >= 0) {
        apus_node *ref = NODE->make_map();
        (void)NODE->set(ref, "stage", NODE->copy(given));
        return ref;
    }
    for (size_t i = 0; words_too && i < sizeof words / sizeof words[0]; i++)
        if (strcmp(name, words[i]) == 0)
            return NODE->copy(given);
    apus_error why = {0};
    apus_node *located = apus_model_locate(name, &why);
    if (located == NULL) {
        const char *names[64];
        size_t n = 0;
        for (; n < upto && n < 64; n++)
            names[n] = p->stages[n].name;
        const char *near = apus_did_you_mean(name, names, n);
        *st = apus_fail(err, APUS_E_NOT_FOUND, "%s: model '%s' is neither an earlier stage nor a file or folder", where(given, at, sizeof at), name);
        if (near != NULL)
            apus_hint(err, *st, "did you mean the stage '%s'?", near);
        else
            apus_hint(err, *st, "paths are relative to the working directory; ./%s is a path even when a stage is called so", name);
    }
    return located;
}

static const apus_param *param_at(const apus_component *c, uint32_t i, apus_param *copy)
{
    apus_take(copy, sizeof *copy, (const char *)c->params + (size_t)i * c->params[0].size);
    return copy;
}

/* Complete the nested components and resolve the models in a validated map. */
static apus_status complete(const apus_pipeline *p, size_t upto, const apus_component *c, apus_node *params, apus_error *err)
{
    apus_status st = APUS_OK;
    for (uint32_t i = 0; i < c->n_params && st == APUS_OK; i++) {
        apus_param copy;
        const apus_param *param = param_at(c, i, &copy);
        const apus_node *value = NODE->get(params, param->name);
        if (NODE->kind(value) == APUS_NODE_NULL)
            continue;
        if (param->type == APUS_PARAM_MODEL) {
            apus_node *model = resolve_model(p, upto, value, param->fallback != NULL, &st, err);
            (void)NODE->set(params, param->name, model);
        } else if (param->type == APUS_PARAM_LIST && param->item == APUS_PARAM_MODEL) {
            apus_node *list = NODE->make_list();
            for (size_t k = 0; k < NODE->length(value) && st == APUS_OK; k++)
                (void)NODE->append(list, resolve_model(p, upto, NODE->at(value, k), 0, &st, err));
            (void)NODE->set(params, param->name, list);
        } else if (param->type == APUS_PARAM_DATASET) {
            st = apus_dataset_check(value, err);
        } else if (param->type == APUS_PARAM_COMPONENT) {
            const apus_component *inner;
            apus_node *inner_params;
            st = apus_component_resolve(param->of_kind, value, NULL, &inner, &inner_params, err);
            if (st != APUS_OK)
                return st;
            (void)NODE->set(inner_params, "type", NODE->make_string(inner->name, (size_t)-1));
            st = complete(p, upto, inner, inner_params, err);
            (void)NODE->set(params, param->name, inner_params);
        }
    }
    return st;
}

/* ---------------------------------------------------------------- loading */

static apus_status load_stage(apus_pipeline *p, const apus_node *given, apus_error *err)
{
    const size_t i = p->n_stages;
    apus_pipeline_stage *s = &p->stages[i];
    char at[256], name[128], what[160];
    if (NODE->kind(given) != APUS_NODE_MAP)
        return apus_fail(err, APUS_E_INVALID, "%s: a stage is a mapping with `stage: TYPE`", where(given, at, sizeof at));
    const char *type = NODE->as_string(NODE->get(given, "stage"), NULL), *own = NODE->as_string(NODE->get(given, "name"), NULL);
    if (type == NULL) {
        apus_fail(err, APUS_E_INVALID, "%s: the stage has no type", where(given, at, sizeof at));
        return apus_hint(err, APUS_E_INVALID, "stage: train, eval, generate or export");
    }
    s->component = apus_component_find("stage", type, err);
    if (s->component == NULL) {
        apus_error inner = *err;
        apus_fail(err, APUS_E_NOT_FOUND, "%s: %.1200s", where(NODE->get(given, "stage"), at, sizeof at), inner.message);
        return apus_hint(err, APUS_E_NOT_FOUND, "%.500s", inner.hint);
    }
    snprintf(name, sizeof name, "%s", own != NULL ? own : type);
    for (int k = 2; own == NULL && find_stage(p, i, name) >= 0; k++)
        snprintf(name, sizeof name, "%s-%d", type, k);
    /* .tmp and .previous: folders that are swept or replaced. */
    const char *tail = strrchr(name, '.');
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL || strchr(name, ':') != NULL || strstr(name, ".tmp") != NULL ||
        (tail != NULL && strcmp(tail, ".previous") == 0))
        return apus_fail(err, APUS_E_INVALID, "%s: '%s' cannot be a stage's name", where(NODE->get(given, "name"), at, sizeof at), name);
    if (find_stage(p, i, name) >= 0)
        return apus_fail(err, APUS_E_INVALID, "%s: two stages are called '%s'", where(NODE->get(given, "name"), at, sizeof at), name);
    s->name = strdup(name);
    if (s->name == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    snprintf(what, sizeof what, "stage %s", type);
    s->params = apus_params_validate(given, s->component->params, s->component->n_params, "name stage seed", what, err);
    if (s->params == NULL)
        return APUS_E_INVALID;
    const apus_node *seed = NODE->get(given, "seed");
    s->seed = (uint64_t)NODE->as_int(seed != NULL ? seed : NODE->get(p->settings, "seed"), 42);
    const apus_node *schedule = NODE->get(s->params, "schedule");
    apus_schedule checked;
    apus_status st = schedule != NULL ? apus_schedule_open(schedule, 1, &checked, err) : APUS_OK;
    if (st == APUS_OK)
        st = complete(p, i, s->component, s->params, err);
    p->n_stages++;
    return st;
}

static void default_run_dir(apus_pipeline *p, const char *file)
{
    const char *given = NODE->as_string(NODE->get(p->settings, "run"), NULL);
    char path[4200];
    if (given != NULL) {
        snprintf(path, sizeof path, "%s", given);
    } else {
        const char *base = strrchr(file, '/');
        snprintf(path, sizeof path, "runs/%s", base != NULL ? base + 1 : file);
        char *dot = strrchr(path, '.');
        if (dot != NULL && dot > strrchr(path, '/'))
            *dot = '\0';
    }
    p->run_dir = strdup(path);
}

apus_status apus_pipeline_load(const char *file, const apus_run_options *options, apus_pipeline *p, apus_error *err)
{
    memset(p, 0, sizeof *p);
    p->config = apus_config_load(file, options->overrides, options->n_overrides, err);
    if (p->config == NULL)
        return APUS_E_INVALID;
    p->settings = apus_params_validate(p->config, top_params, sizeof top_params / sizeof top_params[0], "include", "pipeline", err);
    apus_status st = p->settings != NULL ? APUS_OK : APUS_E_INVALID;
    const apus_node *stages = NODE->get(p->config, "stages");
    char at[256];
    if (st == APUS_OK && (NODE->kind(stages) != APUS_NODE_LIST || NODE->length(stages) == 0))
        st = apus_fail(err, APUS_E_INVALID, "%s: stages must be a list of at least one stage", where(stages, at, sizeof at));
    if (st == APUS_OK) {
        const apus_component *backend;
        apus_node *params;
        st = apus_component_resolve("backend", NODE->get(p->settings, "backend"), NULL, &backend, &params, err);
        if (st == APUS_OK) {
            (void)NODE->set(params, "type", NODE->make_string(backend->name, (size_t)-1));
            (void)NODE->set(p->settings, "backend", params);
        }
    }
    const apus_node *trackers = NODE->get(p->settings, "trackers");
    for (size_t i = 0; i < NODE->length(trackers) && st == APUS_OK; i++) {
        const apus_component *c;
        apus_node *params;
        st = apus_component_resolve("tracker", NODE->at(trackers, i), NULL, &c, &params, err);
        if (st == APUS_OK)
            NODE->release(params);
    }
    if (st == APUS_OK) {
        default_run_dir(p, file);
        p->stages = calloc(NODE->length(stages) + 1, sizeof *p->stages);
        if (p->run_dir == NULL || p->stages == NULL)
            st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < NODE->length(stages) && st == APUS_OK; i++)
        st = load_stage(p, NODE->at(stages, i), err);
    if (st != APUS_OK)
        apus_pipeline_free(p);
    return st;
}

void apus_pipeline_free(apus_pipeline *p)
{
    for (size_t i = 0; p->stages != NULL && p->stages[i].name != NULL; i++) {
        free(p->stages[i].name);
        NODE->release(p->stages[i].params);
    }
    free(p->stages);
    free(p->run_dir);
    NODE->release(p->config);
    NODE->release(p->settings);
    memset(p, 0, sizeof *p);
}

apus_status apus_check_file(const char *file, const apus_run_options *options, apus_error *err)
{
    apus_pipeline p;
    apus_device *device = NULL;
    apus_status st = apus_pipeline_load(file, options, &p, err);
    if (st != APUS_OK)
        return st;
    const apus_node *backend = NODE->get(p.settings, "backend");
    if (NODE->as_string(NODE->get(backend, "tuning"), NULL) != NULL) /* it is held against the device */
        st = apus_device_open(backend, &device, err);
    apus_device_close(device);
    apus_pipeline_free(&p);
    return st;
}

/* ---------------------------------------------------------------- wiring */

static apus_node *wire(const apus_node *n, const apus_pipeline *p, apus_node *const *results)
{
    if (NODE->kind(n) == APUS_NODE_MAP) {
        const char *stage = NODE->length(n) == 1 ? NODE->as_string(NODE->get(n, "stage"), NULL) : NULL;
        const int i = stage != NULL ? find_stage(p, p->n_stages, stage) : -1;
        if (i >= 0) {
            const apus_node *model = results[i] != NULL ? NODE->get(results[i], "model") : NULL;
            return model != NULL ? NODE->copy(model) : NODE->copy(n);
        }
        apus_node *map = NODE->make_map();
        for (size_t k = 0; k < NODE->length(n); k++)
            (void)NODE->set(map, NODE->key_at(n, k), wire(NODE->at(n, k), p, results));
        return map;
    }
    if (NODE->kind(n) == APUS_NODE_LIST) {
        apus_node *list = NODE->make_list();
        for (size_t k = 0; k < NODE->length(n); k++)
            (void)NODE->append(list, wire(NODE->at(n, k), p, results));
        return list;
    }
    return NODE->copy(n);
}

apus_node *apus_pipeline_wire(const apus_node *params, const apus_pipeline *p, apus_node *const *results)
{
    return wire(params, p, results);
}

apus_node *apus_model_locate(const char *name, apus_error *err)
{
    char path[4400];
    const char *colon = strrchr(name, ':');
    if (colon != NULL && !apus_path_exists(name))
        snprintf(path, sizeof path, "%.*s/%s", (int)(colon - name), name, colon + 1);
    else
        snprintf(path, sizeof path, "%s", name);
    char result[4500];
    snprintf(result, sizeof result, "%s/result.json", path);
    if (apus_path_exists(result)) { /* a stage's folder */
        size_t length;
        char *text = apus_file_read(result, 0, &length, err);
        apus_node *n = text != NULL ? NODE->parse_json(text, length, result, err) : NULL;
        apus_host_table()->free(text);
        apus_node *model = n != NULL ? NODE->copy(NODE->get(NODE->get(n, "result"), "model")) : NULL;
        if (n != NULL && model == NULL)
            (void)apus_fail(err, APUS_E_INVALID, "%s: this stage made no model", path);
        NODE->release(n);
        return model;
    }
    if (!apus_path_exists(path)) {
        (void)apus_fail(err, APUS_E_NOT_FOUND, "%s: no such file or folder%s", name, colon != NULL ? ", and no stage of a run" : "");
        (void)apus_hint(err, APUS_E_NOT_FOUND, "a model is a folder or file that a loaded format reads, or a run's stage (runs/x:stage)");
        return NULL;
    }
    apus_node *spec = NODE->make_map();
    (void)NODE->set(spec, "path", NODE->make_string(path, (size_t)-1));
    return spec;
}

void apus_pipeline_cache(const apus_pipeline *p, char *path, size_t capacity)
{
    const char *given = NODE->as_string(NODE->get(p->settings, "cache"), NULL), *env = getenv("APUS_CACHE");
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (given != NULL || env != NULL)
        snprintf(path, capacity, "%s", given != NULL ? given : env);
    else if (xdg != NULL && xdg[0] == '/')
        snprintf(path, capacity, "%s/apus", xdg);
    else
        snprintf(path, capacity, "%s/.cache/apus", home != NULL ? home : ".");
}
