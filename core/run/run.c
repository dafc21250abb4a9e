/*
 * core/run/run.c: running a pipeline in its folder:
 *   RUN/config.json       the file as it was resolved
 *   RUN/run.lock          what made it: version, plugins, machine, seed, keys of the stages, what each decided (kernels, packing, cut, recompute)
 *   RUN/STAGE/…           events.jsonl, checkpoints, model
 *   RUN/STAGE/result.json written last: the stage is done, and what later stages need of it
 */
#include "run/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "io/io.h"
#include "module/module.h"
#include "run/log.h"
#include "run/stage.h"
#include "run/state.h"
#include "value/node.h"

#define NODE apus_nodes()

/* ---------------------------------------------------------------- files of a run */

/* What a killed process had begun to write beside its final name; nobody else writes here while we hold the lock. */
static void sweep(const char *folder)
{
    char path[4700];
    DIR *d = opendir(folder);
    for (const struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
        const char *end = strstr(e->d_name, ".tmp");
        if (end == NULL || (end[4] != '\0' && end[4] != '-'))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        (void)apus_remove_tree(path, NULL);
    }
    if (d != NULL)
        closedir(d);
}

/* One process at a time works in a run folder. */
static apus_status lock_folder(apus_run_state *r, apus_error *err)
{
    char path[4300];
    apus_status st = apus_mkdirs(r->pipeline.run_dir, err);
    if (st != APUS_OK)
        return st;
    snprintf(path, sizeof path, "%s/.lock", r->pipeline.run_dir);
    r->lock_fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (r->lock_fd < 0)
        return apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        apus_fail(err, APUS_E_IO, "%s: another process is running in this folder", r->pipeline.run_dir);
        return apus_hint(err, APUS_E_IO, "wait for it, or name another folder with run=…");
    }
    sweep(r->pipeline.run_dir);
    return APUS_OK;
}

static apus_status write_lock(apus_run_state *r, apus_error *err)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/run.lock", r->pipeline.run_dir);
    apus_node *old = apus_run_json(path), *lock = NODE->make_map(), *plugins = NODE->make_map(), *stages = NODE->make_map(),
              *plans = NODE->make_map();
    r->now = NODE->as_int(NODE->get(old, "started"), (int64_t)time(NULL));
    (void)NODE->set(lock, "apus", NODE->make_string(APUS_VERSION, (size_t)-1));
    (void)NODE->set(lock, "started", NODE->make_int(r->now));
    (void)NODE->set(lock, "seed", NODE->copy(NODE->get(r->pipeline.settings, "seed")));
    (void)NODE->set(lock, "machine", NODE->make_string(apus_device_describe(r->device), (size_t)-1));
    if (apus_device_tuning(r->device) != NULL)
        (void)NODE->set(lock, "tuning", apus_device_tuning(r->device));
    for (size_t i = 0; i < apus_module_count(); i++) {
        const apus_module *m = apus_module_at(i);
        (void)NODE->set(plugins, m->plugin->name, NODE->make_string(m->sha256, (size_t)-1));
    }
    for (size_t i = 0; i < r->pipeline.n_stages; i++) {
        const char *name = r->pipeline.stages[i].name, *key = NODE->as_string(NODE->get(NODE->get(old, "stages"), name), NULL);
        const apus_node *plan = NODE->get(NODE->get(old, "plans"), name);
        (void)NODE->set(stages, name, NODE->make_string(r->keys[i], (size_t)-1));
        if (plan != NULL && key != NULL && strcmp(key, r->keys[i]) == 0)
            (void)NODE->set(plans, name, NODE->copy(plan));
    }
    NODE->release(old);
    (void)NODE->set(lock, "plugins", plugins);
    (void)NODE->set(lock, "stages", stages);
    (void)NODE->set(lock, "plans", plans);
    apus_status st = apus_run_json_write(path, lock, err);
    NODE->release(lock);
    if (st == APUS_OK) {
        snprintf(path, sizeof path, "%s/config.json", r->pipeline.run_dir);
        st = apus_run_json_write(path, r->pipeline.config, err);
    }
    return st;
}

/* ---------------------------------------------------------------- one stage */

static void say(void *context, const char *line)
{
    apus_stage_log_note(context, line);
}

void apus_run_stage_paths(const apus_run_state *r, size_t i, char *dir, char *result, size_t capacity)
{
    snprintf(dir, capacity, "%s/%s", r->pipeline.run_dir, r->pipeline.stages[i].name);
    snprintf(result, capacity, "%s/%s/result.json", r->pipeline.run_dir, r->pipeline.stages[i].name);
}

apus_stage_context apus_run_stage_context(const apus_run_state *r, size_t i, const char *dir)
{
    const apus_pipeline_stage *s = &r->pipeline.stages[i];
    return (apus_stage_context){.run_dir = r->pipeline.run_dir,
                                .stage_dir = dir,
                                .name = s->name,
                                .seed = s->seed,
                                .now = r->now,
                                .device = r->device,
                                .cache_dir = r->cache_dir,
                                .memory_limit = NODE->as_int(NODE->get(NODE->get(r->pipeline.settings, "backend"), "memory"), 0)};
}

apus_node *apus_run_done(const apus_run_state *r, size_t i)
{
    char dir[4400], path[4400];
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    apus_node *saved = apus_run_json(path), *result = NULL;
    const char *key = NODE->as_string(NODE->get(saved, "key"), NULL);
    if (key != NULL && strcmp(key, r->keys[i]) == 0)
        result = NODE->copy(NODE->get(saved, "result"));
    NODE->release(saved);
    return result;
}

/* A stage's folder with its key in it. One that another configuration filled is set aside, never written into: STAGE.previous. The
 * new one is made aside: a folder without its key would be set aside by the next start, over the previous that is worth keeping. */
static apus_status make_folder(const apus_run_state *r, size_t i, apus_error *err)
{
    char dir[4400], path[4500], beside[4500];
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    snprintf(path, sizeof path, "%s/key", dir);
    apus_status st = APUS_OK;
    if (apus_path_is_dir(dir)) {
        size_t n;
        char *key = apus_path_exists(path) ? apus_file_read(path, 4096, &n, NULL) : NULL;
        const int same = key != NULL && strncmp(key, r->keys[i], 64) == 0;
        apus_host_table()->free(key);
        if (same)
            return APUS_OK;
        fprintf(stderr, "%s: made by another configuration, input or version: set aside as %s.previous\n", dir, r->pipeline.stages[i].name);
        snprintf(beside, sizeof beside, "%s.previous", dir);
        st = apus_remove_tree(beside, err);
        if (st == APUS_OK && rename(dir, beside) != 0)
            st = apus_fail(err, APUS_E_IO, "%s: %s", dir, strerror(errno));
    }
    snprintf(beside, sizeof beside, "%s.tmp", dir);
    snprintf(path, sizeof path, "%s/key", beside);
    if (st == APUS_OK)
        st = apus_mkdirs(beside, err);
    if (st == APUS_OK)
        st = apus_file_write(path, r->keys[i], 64, err);
    if (st == APUS_OK && rename(beside, dir) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", dir, strerror(errno));
    return st == APUS_OK ? apus_sync_dir(r->pipeline.run_dir, err) : st;
}

static apus_status save_result(const apus_run_state *r, size_t i, const apus_node *result, apus_error *err)
{
    char dir[4400], path[4400];
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    apus_node *saved = NODE->make_map();
    (void)NODE->set(saved, "key", NODE->make_string(r->keys[i], 64));
    (void)NODE->set(saved, "result", NODE->copy(result));
    apus_status st = apus_run_json_write(path, saved, err);
    NODE->release(saved);
    return st;
}

static apus_status run_stage(apus_run_state *r, size_t i, apus_error *err)
{
    const apus_pipeline_stage *s = &r->pipeline.stages[i];
    char dir[4400], path[4400];
    apus_run_stage_paths(r, i, dir, path, sizeof dir);
    apus_status st = make_folder(r, i, err);
    if (st != APUS_OK)
        return st;
    sweep(dir);
    const apus_tracker_run run = {.size = sizeof run,
                                  .run_dir = r->pipeline.run_dir,
                                  .stage_dir = dir,
                                  .stage = s->name,
                                  .stage_type = s->component->name,
                                  .stage_index = (int32_t)i,
                                  .n_stages = (int32_t)r->pipeline.n_stages,
                                  .interactive = isatty(2),
                                  .config = r->pipeline.config};
    apus_stage_context context = apus_run_stage_context(r, i, dir);
    context.profile = NODE->as_bool(NODE->get(r->pipeline.settings, "profile"), 0);
    context.key = r->keys[i];
    context.say = say;
    st = apus_stage_log_open(NODE->get(r->pipeline.settings, "trackers"), &run, &context.log, err);
    if (st != APUS_OK)
        return st;
    context.say_context = context.log;
    apus_stage_ops ops;
    apus_take(&ops, sizeof ops, s->component->ops);
    apus_node *params = apus_pipeline_wire(s->params, &r->pipeline, r->results);
    st = ops.run(apus_host_table(), params, &context, err);
    if (st == APUS_OK) {
        if (context.result == NULL)
            context.result = NODE->make_map();
        st = save_result(r, i, context.result, err);
    }
    if (st == APUS_OK)
        r->results[i] = context.result;
    else
        NODE->release(context.result);
    NODE->release(params);
    apus_stage_log_close(context.log, st);
    if (st != APUS_OK && err != NULL) { /* which stage it was */
        char message[1400];
        snprintf(message, sizeof message, "%.1390s", err->message);
        snprintf(err->message, sizeof err->message, "stage %.100s: %s", s->name, message);
    }
    return st;
}

/* ---------------------------------------------------------------- a run */

apus_status apus_run_open(apus_run_state *r, const char *file, const apus_run_options *options, apus_error *err)
{
    memset(r, 0, sizeof *r);
    r->lock_fd = -1;
    apus_status st = apus_pipeline_load(file, options, &r->pipeline, err);
    if (st != APUS_OK)
        return st;
    apus_pipeline_cache(&r->pipeline, r->cache_dir, sizeof r->cache_dir);
    r->results = calloc(r->pipeline.n_stages + 1, sizeof(apus_node *));
    r->keys = calloc(r->pipeline.n_stages + 1, sizeof *r->keys);
    if (r->results == NULL || r->keys == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < r->pipeline.n_stages && st == APUS_OK; i++)
        st = apus_pipeline_key(&r->pipeline, i, (const char(*)[65])r->keys, r->cache_dir, r->keys[i], err);
    apus_node *backend = NODE->copy(NODE->get(r->pipeline.settings, "backend"));
    if (options->untuned && NODE->get(backend, "tuning") != NULL)
        (void)NODE->set(backend, "tuning", NODE->make_null());
    if (st == APUS_OK)
        st = apus_device_open(backend, &r->device, err);
    NODE->release(backend);
    return st;
}

void apus_run_close(apus_run_state *r)
{
    for (size_t i = 0; r->results != NULL && i < r->pipeline.n_stages; i++)
        NODE->release(r->results[i]);
    free(r->results);
    free(r->keys);
    if (r->device != NULL)
        apus_device_close(r->device);
    if (r->lock_fd >= 0)
        close(r->lock_fd);
    apus_pipeline_free(&r->pipeline);
}

apus_status apus_run_file(const char *file, const apus_run_options *options, apus_error *err)
{
    apus_run_state r;
    apus_status st = apus_run_open(&r, file, options, err);
    if (st == APUS_OK)
        st = lock_folder(&r, err);
    if (st == APUS_OK)
        st = write_lock(&r, err);
    for (size_t i = 0; i < r.pipeline.n_stages && st == APUS_OK; i++) {
        char line[256];
        r.results[i] = options->force ? NULL : apus_run_done(&r, i);
        if (r.results[i] != NULL) {
            snprintf(line, sizeof line, "stage %.100s (%zu/%zu): done before, reused", r.pipeline.stages[i].name, i + 1, r.pipeline.n_stages);
            fprintf(stderr, "%s\n", line);
            continue;
        }
        if (options->force) { /* nothing of an earlier run may be resumed */
            char dir[4400], result[4400];
            apus_run_stage_paths(&r, i, dir, result, sizeof dir);
            st = apus_remove_tree(dir, err);
        }
        if (st == APUS_OK)
            st = run_stage(&r, i, err);
        if (st == APUS_OK && apus_host_table()->stopping() && i + 1 < r.pipeline.n_stages)
            st = apus_fail(err, APUS_E_STOPPED, "stopped after stage %s; run the same command to go on", r.pipeline.stages[i].name);
    }
    apus_run_close(&r);
    return st;
}
