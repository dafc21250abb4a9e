/*
 * core/run/plan.c: what a run would do, stage by stage, before it does: each stage is asked what it would take, with the model that is
 * there, or one of the same shape in place of a model that an earlier stage will make.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/io.h"
#include "module/module.h"
#include "run/log.h"
#include "run/stage.h"
#include "run/state.h"
#include "value/node.h"

#define NODE apus_nodes()

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median tokens per second of the events that an earlier run of the same stage (equal key) on this machine left; 0: there are none. */
static double earlier_speed(const apus_run_state *r, size_t i)
{
    enum { MOST = 4096 };
    char dir[4400], path[4500];
    size_t length, n = 0;
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    snprintf(path, sizeof path, "%s/run.lock", r->pipeline.run_dir);
    apus_node *lock = apus_run_json(path);
    const char *machine = NODE->as_string(NODE->get(lock, "machine"), NULL);
    const int here = machine != NULL && strcmp(machine, apus_device_describe(r->device)) == 0;
    NODE->release(lock);
    snprintf(path, sizeof path, "%s/key", dir);
    char *key = here && apus_path_exists(path) ? apus_file_read(path, 4096, &length, NULL) : NULL;
    const int same = key != NULL && strncmp(key, r->keys[i], 64) == 0;
    apus_host_table()->free(key);
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *text = same && apus_path_exists(path) ? apus_file_read(path, 0, &length, NULL) : NULL;
    double *speeds = text != NULL ? malloc(MOST * sizeof *speeds) : NULL;
    for (char *line = text; line != NULL && speeds != NULL && n < MOST;) {
        char *end = strchr(line, '\n');
        apus_node *event = NODE->parse_json(line, end != NULL ? (size_t)(end - line) : strlen(line), path, NULL);
        const double speed = NODE->as_float(NODE->get(event, "tokens_per_second"), 0.0);
        if (speed > 0.0)
            speeds[n++] = speed;
        NODE->release(event);
        line = end != NULL && end[1] != '\0' ? end + 1 : NULL;
    }
    apus_host_table()->free(text);
    if (n > 0)
        qsort(speeds, n, sizeof *speeds, by_value);
    const double median = n > 0 ? speeds[n / 2] : 0.0;
    free(speeds);
    return median;
}

/* What the stage says of its costs, into `entry`. */
static apus_status describe(const apus_run_state *r, size_t i, int force, const apus_stage_ops *ops, const apus_node *params, apus_node *entry,
                            apus_error *err)
{
    char dir[4400], path[4400];
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    apus_stage_context context = apus_run_stage_context(r, i, dir);
    context.key = force ? NULL : r->keys[i]; /* without one, nothing is resumed */
    context.tokens_per_second = earlier_speed(r, i);
    return ops->plan(apus_host_table(), params, &context, entry, err);
}

/* The first stage not made before i that `params` has a model of; NULL: none. */
static const char *waits_for(const apus_run_state *r, size_t i, const unsigned char *made, const apus_node *params)
{
    const char *stage = NODE->kind(params) == APUS_NODE_MAP && NODE->length(params) == 1 ? NODE->as_string(NODE->get(params, "stage"), NULL) : NULL;
    for (size_t k = 0; stage != NULL && k < i; k++)
        if (!made[k] && strcmp(r->pipeline.stages[k].name, stage) == 0)
            return r->pipeline.stages[k].name;
    for (size_t k = 0; k < NODE->length(params); k++)
        if ((stage = waits_for(r, i, made, NODE->at(params, k))) != NULL)
            return stage;
    return NULL;
}

/* r->results: of stages that are not made (yet), a model of the shape that theirs will have. */
static apus_status plan_stage(apus_run_state *r, size_t i, int force, const unsigned char *made, apus_node *entry, apus_error *err)
{
    const apus_pipeline_stage *s = &r->pipeline.stages[i];
    (void)NODE->set(entry, "name", NODE->make_string(s->name, (size_t)-1));
    (void)NODE->set(entry, "stage", NODE->make_string(s->component->name, (size_t)-1));
    (void)NODE->set(entry, "key", NODE->make_string(r->keys[i], 64));
    (void)NODE->set(entry, "done", NODE->make_bool(made[i]));
    apus_stage_ops ops;
    apus_take(&ops, sizeof ops, s->component->ops);
    if (made[i] || ops.plan == NULL)
        return APUS_OK;
    apus_node *params = apus_pipeline_wire(s->params, &r->pipeline, r->results), *costs = NODE->make_map();
    const char *waits = waits_for(r, i, made, s->params);
    apus_error why = {0};
    apus_status st = waits_for(r, i, made, params) == NULL ? describe(r, i, force, &ops, params, costs, &why) : APUS_E_NOT_FOUND;
    if (waits != NULL)
        (void)NODE->set(entry, "waits_for", NODE->make_string(waits, (size_t)-1));
    for (size_t k = 0; k < NODE->length(costs) && st == APUS_OK; k++)
        if (strcmp(NODE->key_at(costs, k), "model") != 0)
            (void)NODE->set(entry, NODE->key_at(costs, k), NODE->copy(NODE->at(costs, k)));
    if (st == APUS_OK && NODE->get(costs, "model") != NULL) {
        r->results[i] = NODE->make_map();
        (void)NODE->set(r->results[i], "model", NODE->copy(NODE->get(costs, "model")));
    }
    if (st != APUS_OK && st != APUS_E_MEMORY && waits != NULL) { /* it may still be well with the real model */
        if (why.message[0] != '\0')
            (void)NODE->set(entry, "unknown", NODE->make_string(why.message, (size_t)-1));
        st = APUS_OK;
    }
    if (st != APUS_OK && err != NULL)
        *err = why;
    NODE->release(costs);
    NODE->release(params);
    return st;
}

/* All stages, into `plan`. */
static apus_status plan_stages(apus_run_state *r, int force, apus_node *plan, apus_error *err)
{
    unsigned char *made = calloc(r->pipeline.n_stages + 1, 1);
    if (made == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_node *stages = NODE->make_list(), *others = NODE->make_list();
    apus_status st = APUS_OK;
    double seconds = 0.0;
    r->now = (int64_t)time(NULL);
    (void)NODE->set(plan, "stages", stages);
    (void)NODE->set(plan, "run", NODE->make_string(r->pipeline.run_dir, (size_t)-1));
    (void)NODE->set(plan, "machine", NODE->make_string(apus_device_describe(r->device), (size_t)-1));
    for (size_t i = 0; i < r->pipeline.n_stages && st == APUS_OK; i++) {
        apus_node *entry = NODE->make_map();
        (void)NODE->append(stages, entry);
        r->results[i] = force ? NULL : apus_run_done(r, i);
        made[i] = r->results[i] != NULL;
        st = plan_stage(r, i, force, made, entry, err);
        seconds += NODE->as_float(NODE->get(entry, "seconds"), 0.0);
        if (!made[i] && NODE->get(entry, "seconds") == NULL)
            (void)NODE->append(others, NODE->copy(NODE->get(entry, "name")));
    }
    (void)NODE->set(plan, "seconds", NODE->make_float(seconds));
    (void)NODE->set(plan, "not_estimated", others);
    free(made);
    return st;
}

apus_status apus_plan_file(const char *file, const apus_run_options *options, apus_node **result, apus_error *err)
{
    apus_run_state r;
    apus_node *plan = NODE->make_map();
    apus_status st = apus_run_open(&r, file, options, err);
    if (st == APUS_OK)
        st = plan_stages(&r, options->force, plan, err);
    apus_run_close(&r);
    if (st == APUS_OK)
        *result = plan;
    else
        NODE->release(plan);
    return st;
}

static char *copy_text(const char *text)
{
    char *copy = apus_host_table()->alloc(strlen(text) + 1);
    return copy != NULL ? strcpy(copy, text) : NULL;
}

/* FILE.tuning.yaml of FILE.yaml */
static char *tuning_name(const char *file)
{
    const char *dot = strrchr(file, '.'), *slash = strrchr(file, '/');
    const int stem = (int)(dot != NULL && (slash == NULL || dot > slash) ? (size_t)(dot - file) : strlen(file));
    const size_t room = strlen(file) + sizeof ".tuning.yaml";
    char *name = apus_host_table()->alloc(room);
    if (name != NULL)
        (void)snprintf(name, room, "%.*s.tuning.yaml", stem, file);
    return name;
}

apus_status apus_tune_file(const char *file, const apus_run_options *options, const char *out, const apus_trial_found *found, char **written,
                           apus_error *err)
{
    enum { TRIAL_MS = 400 }; /* for one kind of product with all its kernels */
    apus_run_state r;
    const apus_run_options untuned = {.overrides = options->overrides, .n_overrides = options->n_overrides, .force = 1, .untuned = 1};
    apus_node *plan = NODE->make_map();
    char *name = NULL;
    apus_status st = apus_run_open(&r, file, &untuned, err);
    if (st == APUS_OK) {
        const char *named = out != NULL ? out : NODE->as_string(NODE->get(NODE->get(r.pipeline.settings, "backend"), "tuning"), NULL);
        name = named != NULL ? copy_text(named) : tuning_name(file);
        st = name != NULL ? apus_file_may_be(name, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    if (st == APUS_OK)
        st = apus_device_try(r.device, err);
    if (st == APUS_OK)
        st = plan_stages(&r, 1, plan, err);
    if (st == APUS_OK)
        st = apus_device_tune(r.device, name, TRIAL_MS * 1e-3, found, err);
    NODE->release(plan);
    apus_run_close(&r);
    if (st == APUS_OK)
        *written = name;
    else
        apus_host_table()->free(name);
    return st;
}
