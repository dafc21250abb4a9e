/*
 * core/model/checkpoint.c: all that a training is at a step, written aside, synced, then renamed:
 *   checkpoint-N/state.json     step, data position, sums, where events.jsonl was, and the tensors' names and sizes
 *   checkpoint-N/tensors.bin    trained weights and optimizer states, raw, in that order
 *   checkpoint-N/manifest.json  sha256 of both; verified on load
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io.h"
#include "model/internal.h"
#include "model/trainer.h"

#define NODE  apus_nodes()
#define CHUNK (4u << 20)

/* ---------------------------------------------------------------- tensors */

typedef struct tensor_stream {
    int fd;
    apus_sha256 *sha;
    void *buffer; /* CHUNK bytes */
    apus_device *device;
    const char *path;
} tensor_stream;

static apus_status write_tensor(tensor_stream *s, void *device, size_t bytes, apus_error *err)
{
    for (size_t done = 0; done < bytes;) {
        const size_t n = bytes - done < CHUNK ? bytes - done : CHUNK;
        apus_status st = apus_device_download(s->device, s->buffer, (const char *)device + done, n, err);
        if (st != APUS_OK)
            return st;
        apus_sha256_add(s->sha, s->buffer, n);
        for (size_t w = 0; w < n;) {
            const ssize_t k = write(s->fd, (const char *)s->buffer + w, n - w);
            if (k < 0 && errno == EINTR)
                continue;
            if (k < 0)
                return apus_fail(err, APUS_E_IO, "%s: %s", s->path, strerror(errno));
            w += (size_t)k;
        }
        done += n;
    }
    return APUS_OK;
}

static apus_status read_tensor(tensor_stream *s, void *device, size_t bytes, apus_error *err)
{
    for (size_t done = 0; done < bytes;) {
        const size_t n = bytes - done < CHUNK ? bytes - done : CHUNK;
        for (size_t r = 0; r < n;) {
            const ssize_t k = read(s->fd, (char *)s->buffer + r, n - r);
            if (k < 0 && errno == EINTR)
                continue;
            if (k <= 0)
                return apus_fail(err, APUS_E_IO, "%s: %s", s->path, k < 0 ? strerror(errno) : "shorter than its state says");
            r += (size_t)k;
        }
        apus_status st = apus_device_upload(s->device, (char *)device + done, s->buffer, n, err);
        if (st != APUS_OK)
            return st;
        done += n;
    }
    return APUS_OK;
}

/* Calls fn for each tensor of a checkpoint, in file order. */
static apus_status each_tensor(apus_trainer *t, apus_status (*fn)(tensor_stream *, void *, size_t, apus_error *), tensor_stream *s, apus_error *err)
{
    const apus_updater *u = &t->updater;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < u->n && st == APUS_OK; i++) {
        st = fn(s, u->weights[i]->device, u->weights[i]->bytes, err);
        for (uint32_t k = 0; k < u->n_states && st == APUS_OK; k++)
            st = fn(s, u->states[i * u->n_states + k], u->weights[i]->bytes, err);
    }
    return st;
}

static apus_node *describe_tensors(const apus_trainer *t)
{
    const apus_updater *u = &t->updater;
    apus_node *list = NODE->make_list();
    for (size_t i = 0; i < u->n; i++)
        for (uint32_t k = 0; k <= u->n_states; k++) {
            apus_node *e = NODE->make_map();
            (void)NODE->set(e, "name", NODE->make_string(u->weights[i]->spec.name, (size_t)-1));
            (void)NODE->set(e, "state", NODE->make_string(k == 0 ? "" : u->ops.state_name(u->optimizer, k - 1), (size_t)-1));
            (void)NODE->set(e, "bytes", NODE->make_int((int64_t)u->weights[i]->bytes));
            (void)NODE->append(list, e);
        }
    return list;
}

/* ---------------------------------------------------------------- folders */

static int64_t checkpoint_step(const char *name)
{
    char *end;
    if (strncmp(name, "checkpoint-", 11) != 0 || name[11] < '0' || name[11] > '9')
        return -1;
    const long long step = strtoll(name + 11, &end, 10);
    return *end == '\0' ? step : -1;
}

/* Steps of the checkpoints in a folder, newest first; *steps owner: caller. */
static size_t list_checkpoints(const char *folder, int64_t **steps)
{
    size_t n = 0, capacity = 0;
    *steps = NULL;
    DIR *d = opendir(folder);
    if (d == NULL)
        return 0;
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        const int64_t step = checkpoint_step(e->d_name);
        if (step < 0)
            continue;
        if (n == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            int64_t *grown = realloc(*steps, capacity * sizeof **steps);
            if (grown == NULL)
                break;
            *steps = grown;
        }
        size_t i = n++;
        for (; i > 0 && (*steps)[i - 1] < step; i--)
            (*steps)[i] = (*steps)[i - 1];
        (*steps)[i] = step;
    }
    closedir(d);
    return n;
}

static apus_status write_node(const char *folder, const char *name, const apus_node *node, char hex[65], apus_error *err)
{
    char path[4608];
    size_t length;
    char *text = NODE->write_json(node, APUS_JSON_INDENT, &length);
    if (text == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    snprintf(path, sizeof path, "%s/%s", folder, name);
    apus_status st = apus_file_write(path, text, length, err);
    if (hex != NULL) {
        apus_sha256 *sha = apus_sha256_new();
        apus_sha256_add(sha, text, length);
        apus_sha256_end(sha, hex);
    }
    apus_host_table()->free(text);
    return st;
}

/* The newest save_total_limit checkpoints and the best one stay. */
static void drop_old(const apus_trainer *t)
{
    const int64_t limit = NODE->as_int(NODE->get(t->params, "save_total_limit"), 2);
    char path[4608];
    int64_t *steps;
    const size_t n = list_checkpoints(t->stage->stage_dir, &steps);
    for (size_t i = 0; i < n; i++) {
        if ((int64_t)i < limit || limit <= 0 || steps[i] == t->best_step)
            continue;
        snprintf(path, sizeof path, "%s/checkpoint-%lld", t->stage->stage_dir, (long long)steps[i]);
        (void)apus_remove_tree(path, NULL);
    }
    free(steps);
}

/* `best` -> the checkpoint with the lowest eval_loss, when it is still there. */
static void link_best(const apus_trainer *t)
{
    char path[4608], target[64], aside[4640];
    if (t->best_step < 0)
        return;
    snprintf(target, sizeof target, "checkpoint-%lld", (long long)t->best_step);
    snprintf(path, sizeof path, "%s/%s", t->stage->stage_dir, target);
    if (!apus_path_is_dir(path))
        return;
    snprintf(path, sizeof path, "%s/best", t->stage->stage_dir);
    snprintf(aside, sizeof aside, "%s.tmp", path);
    (void)unlink(aside);
    if (symlink(target, aside) == 0)
        (void)rename(aside, path);
}

/* events: bytes of events.jsonl that belong to this state. */
static apus_node *describe_state(const apus_trainer *t, int64_t events)
{
    apus_node *s = NODE->make_map();
    (void)NODE->set(s, "key", NODE->make_string(t->stage->key ? t->stage->key : "", (size_t)-1));
    (void)NODE->set(s, "step", NODE->make_int(t->step));
    (void)NODE->set(s, "num_tokens", NODE->make_int((int64_t)t->num_tokens));
    (void)NODE->set(s, "seconds", NODE->make_float(t->seconds));
    (void)NODE->set(s, "events", NODE->make_int(events));
    if (t->eval_due)
        (void)NODE->set(s, "eval_due", NODE->make_bool(1));
    if (t->best_step >= 0) {
        (void)NODE->set(s, "best_step", NODE->make_int(t->best_step));
        (void)NODE->set(s, "best_eval", NODE->make_float(t->best_eval));
    }
    (void)NODE->set(s, "tensors", describe_tensors(t));
    return s;
}

static apus_status write_tensors(apus_trainer *t, const char *folder, char hex[65], apus_error *err)
{
    char path[4608];
    snprintf(path, sizeof path, "%s/tensors.bin", folder);
    tensor_stream s = {.fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644), .device = t->stage->device, .path = path};
    if (s.fd < 0)
        return apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    s.buffer = malloc(CHUNK);
    s.sha = apus_sha256_new();
    apus_status st = s.buffer != NULL && s.sha != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = each_tensor(t, write_tensor, &s, err);
    if (s.sha != NULL)
        apus_sha256_end(s.sha, hex);
    if (st == APUS_OK && fsync(s.fd) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    if (close(s.fd) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    free(s.buffer);
    return st;
}

apus_status apus_trainer_checkpoint(apus_trainer *t, apus_error *err)
{
    const double began = apus_clock();
    char final[4096], aside[4200], hex[65];
    snprintf(final, sizeof final, "%s/checkpoint-%lld", t->stage->stage_dir, (long long)t->step);
    snprintf(aside, sizeof aside, "%s.tmp", final);
    apus_status st = apus_remove_tree(aside, err);
    if (st == APUS_OK)
        st = apus_mkdirs(aside, err);
    apus_node *manifest = NODE->make_map();
    if (st == APUS_OK)
        st = write_tensors(t, aside, hex, err);
    const int64_t events = st == APUS_OK ? apus_stage_events_sync(t->stage, err) : -1;
    if (st == APUS_OK && events < 0)
        st = APUS_E_IO;
    if (st == APUS_OK) {
        (void)NODE->set(manifest, "tensors.bin", NODE->make_string(hex, 64));
        apus_node *state = describe_state(t, events);
        st = write_node(aside, "state.json", state, hex, err);
        NODE->release(state);
    }
    if (st == APUS_OK) {
        (void)NODE->set(manifest, "state.json", NODE->make_string(hex, 64));
        st = write_node(aside, "manifest.json", manifest, NULL, err);
    }
    NODE->release(manifest);
    if (st == APUS_OK)
        st = apus_sync_dir(aside, err);
    if (st == APUS_OK)
        st = apus_remove_tree(final, err);
    if (st == APUS_OK && rename(aside, final) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", final, strerror(errno));
    if (st == APUS_OK)
        st = apus_sync_dir(t->stage->stage_dir, err);
    if (st != APUS_OK)
        return st;
    drop_old(t);
    link_best(t);
    apus_profile_span(t->profile, "checkpoint", began, apus_clock());
    return APUS_OK;
}

/* ---------------------------------------------------------------- resuming */

static apus_node *read_node(const char *path, apus_error *err)
{
    size_t length;
    char *text = apus_file_read(path, 0, &length, err);
    if (text == NULL)
        return NULL;
    apus_node *n = NODE->parse_json(text, length, path, err);
    apus_host_table()->free(text);
    return n;
}

/* 1: whole; 0: not (err says why). */
static int verify(const char *folder, apus_error *err)
{
    static const char *const files[] = {"state.json", "tensors.bin"};
    char path[4608], hex[65];
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    apus_node *manifest = read_node(path, err);
    int whole = manifest != NULL;
    for (size_t i = 0; i < 2 && whole; i++) {
        const char *want = NODE->as_string(NODE->get(manifest, files[i]), NULL);
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        whole = apus_sha256_file(path, hex, err) == APUS_OK;
        if (whole && (want == NULL || strcmp(want, hex) != 0)) {
            (void)apus_fail(err, APUS_E_INVALID, "%s: its sha256 is not the manifest's", path);
            whole = 0;
        }
    }
    NODE->release(manifest);
    return whole;
}

static apus_status load(apus_trainer *t, const char *folder, const apus_node *state, apus_error *err)
{
    char path[4608];
    apus_node *tensors = describe_tensors(t);
    const int same = NODE->equal(tensors, NODE->get(state, "tensors"));
    NODE->release(tensors);
    if (!same)
        return apus_fail(err, APUS_E_INVALID, "%s: holds other tensors than this training has", folder);
    snprintf(path, sizeof path, "%s/tensors.bin", folder);
    tensor_stream s = {.fd = open(path, O_RDONLY | O_CLOEXEC), .device = t->stage->device, .path = path};
    if (s.fd < 0)
        return apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    s.buffer = malloc(CHUNK);
    apus_status st = s.buffer != NULL ? each_tensor(t, read_tensor, &s, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    close(s.fd);
    free(s.buffer);
    if (st != APUS_OK)
        return st;
    t->step = NODE->as_int(NODE->get(state, "step"), 0);
    t->num_tokens = (uint64_t)NODE->as_int(NODE->get(state, "num_tokens"), 0);
    t->seconds = NODE->as_float(NODE->get(state, "seconds"), 0.0);
    t->eval_due = NODE->as_bool(NODE->get(state, "eval_due"), 0);
    t->best_step = NODE->as_int(NODE->get(state, "best_step"), -1);
    t->best_eval = NODE->as_float(NODE->get(state, "best_eval"), INFINITY);
    return apus_stage_events_rewind(t->stage, NODE->as_int(NODE->get(state, "events"), 0), err);
}

int apus_trainer_resume(apus_trainer *t, apus_error *err)
{
    char folder[4096], path[4608], line[5000];
    int64_t *steps;
    const size_t n = list_checkpoints(t->stage->stage_dir, &steps);
    int found = 0;
    for (size_t i = 0; i < n && !found; i++) {
        snprintf(folder, sizeof folder, "%s/checkpoint-%lld", t->stage->stage_dir, (long long)steps[i]);
        apus_error why = {0};
        if (!verify(folder, &why)) { /* damaged: an older one may be whole */
            snprintf(line, sizeof line, "checkpoint passed over: %.*s", 1400, why.message);
            apus_host_table()->log(APUS_LOG_WARN, "train", line);
            continue;
        }
        snprintf(path, sizeof path, "%s/state.json", folder);
        apus_node *state = read_node(path, err);
        const char *key = NODE->as_string(NODE->get(state, "key"), NULL);
        if (state != NULL && key != NULL && t->stage->key != NULL && strcmp(key, t->stage->key) == 0) {
            if (load(t, folder, state, err) == APUS_OK) {
                found = 1;
                if (t->stage->say != NULL) {
                    snprintf(line, sizeof line, "resumed from step %lld of %lld", (long long)t->step, (long long)t->max_steps);
                    t->stage->say(t->stage->say_context, line);
                }
            } else {
                found = -1;
            }
        }
        NODE->release(state);
    }
    free(steps);
    if (found == 0 && apus_stage_events_rewind(t->stage, 0, err) != APUS_OK)
        return -1;
    return found;
}
