/* core/run/stage.c: events.jsonl and the trackers of one stage. See stage.h and log.h. */
#include "run/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io.h"
#include "module/module.h"
#include "run/log.h"
#include "value/node.h"

#define NODE         apus_nodes()
#define MAX_TRACKERS 8

struct apus_stage_log {
    int fd;
    int64_t position;
    int begun; /* what an earlier attempt left was cut off, or kept by a resumed training */
    struct {
        apus_tracker_ops ops;
        void *tracker;
    } trackers[MAX_TRACKERS];
    size_t n;
};

/* ---------------------------------------------------------------- files of a run */

apus_node *apus_run_json(const char *path)
{
    size_t n;
    char *text = apus_path_exists(path) ? apus_file_read(path, 0, &n, NULL) : NULL;
    apus_node *node = text != NULL ? NODE->parse_json(text, n, path, NULL) : NULL;
    apus_host_table()->free(text);
    return node;
}

apus_status apus_run_json_write(const char *path, const apus_node *node, apus_error *err)
{
    size_t n;
    char *text = NODE->write_json(node, APUS_JSON_INDENT, &n);
    apus_status st = text != NULL ? apus_file_write(path, text, n, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_host_table()->free(text);
    return st;
}

apus_status apus_stage_chose(apus_stage_context *s, apus_node *chosen, apus_error *err)
{
    char path[4400];
    snprintf(path, sizeof path, "%s/run.lock", s->run_dir);
    apus_node *lock = s->log != NULL ? apus_run_json(path) : NULL;
    apus_status st = APUS_OK;
    if (lock != NULL) {
        apus_node *plans = NODE->copy(NODE->get(lock, "plans"));
        (void)NODE->set(plans, s->name, NODE->copy(chosen));
        (void)NODE->set(lock, "plans", plans);
        st = apus_run_json_write(path, lock, err);
    }
    NODE->release(lock);
    NODE->release(chosen);
    return st;
}

/* ---------------------------------------------------------------- events */

apus_status apus_stage_log_open(const apus_node *specs, const apus_tracker_run *run, struct apus_stage_log **log, apus_error *err)
{
    char path[4400];
    struct apus_stage_log *l = calloc(1, sizeof *l);
    if (l == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    snprintf(path, sizeof path, "%s/events.jsonl", run->stage_dir);
    l->fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    apus_status st = l->fd >= 0 ? APUS_OK : apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    if (st == APUS_OK)
        l->position = lseek(l->fd, 0, SEEK_END);
    for (size_t i = 0; i < NODE->length(specs) && st == APUS_OK; i++) {
        const apus_component *c;
        apus_node *params;
        if (l->n == MAX_TRACKERS) {
            st = apus_fail(err, APUS_E_INVALID, "more than %d trackers", MAX_TRACKERS);
            break;
        }
        st = apus_component_resolve("tracker", NODE->at(specs, i), NULL, &c, &params, err);
        if (st != APUS_OK)
            break;
        apus_take(&l->trackers[l->n].ops, sizeof l->trackers[l->n].ops, c->ops);
        st = l->trackers[l->n].ops.open(apus_host_table(), params, run, &l->trackers[l->n].tracker, err);
        NODE->release(params);
        if (st == APUS_OK)
            l->n++;
    }
    if (st != APUS_OK) {
        apus_stage_log_close(l, st);
        return st;
    }
    *log = l;
    return APUS_OK;
}

void apus_stage_log_close(struct apus_stage_log *l, apus_status status)
{
    if (l == NULL)
        return;
    for (size_t i = 0; i < l->n; i++)
        l->trackers[i].ops.close(l->trackers[i].tracker, status);
    if (l->fd >= 0) {
        (void)fsync(l->fd);
        close(l->fd);
    }
    free(l);
}

/* A tracker that fails is said once and left out: a report must not end a run. */
static void tell(struct apus_stage_log *l, const apus_node *event, int replayed)
{
    for (size_t i = 0; i < l->n;) {
        apus_error why = {0};
        if (l->trackers[i].ops.event(l->trackers[i].tracker, event, replayed, &why) == APUS_OK) {
            i++;
            continue;
        }
        apus_host_table()->log(APUS_LOG_WARN, "tracker", why.message);
        l->trackers[i].ops.close(l->trackers[i].tracker, APUS_E_IO);
        l->trackers[i] = l->trackers[--l->n];
    }
}

void apus_stage_log_note(struct apus_stage_log *l, const char *line)
{
    apus_node *event = NODE->make_map();
    (void)NODE->set(event, "note", NODE->make_string(line, (size_t)-1));
    tell(l, event, 0);
    NODE->release(event);
}

apus_status apus_stage_event(apus_stage_context *s, apus_node *event, apus_error *err)
{
    struct apus_stage_log *l = s->log;
    if (event == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (l == NULL) { /* planning: nobody listens */
        NODE->release(event);
        return APUS_OK;
    }
    size_t length;
    char *line = NODE->write_json(event, 0, &length);
    apus_status st = line != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK && !l->begun) /* a stage that does not resume starts its log anew */
        st = apus_stage_events_rewind(s, 0, err);
    if (st == APUS_OK) {
        line[length] = '\n'; /* over the NUL: one write, whole lines */
        const ssize_t n = pwrite(l->fd, line, length + 1, l->position);
        if (n != (ssize_t)(length + 1))
            st = apus_fail(err, APUS_E_IO, "%s/events.jsonl: %s", s->stage_dir, n < 0 ? strerror(errno) : "the disk is full");
        else
            l->position += n;
    }
    apus_host_table()->free(line);
    if (st == APUS_OK)
        tell(l, event, 0);
    NODE->release(event);
    return st;
}

int64_t apus_stage_events_sync(apus_stage_context *s, apus_error *err)
{
    if (s->log == NULL)
        return 0;
    if (fsync(s->log->fd) != 0) {
        (void)apus_fail(err, APUS_E_IO, "%s/events.jsonl: %s", s->stage_dir, strerror(errno));
        return -1;
    }
    return s->log->position;
}

apus_status apus_stage_events_rewind(apus_stage_context *s, int64_t position, apus_error *err)
{
    struct apus_stage_log *l = s->log;
    if (l == NULL)
        return APUS_OK;
    if (position > l->position)
        return apus_fail(err, APUS_E_INVALID, "%s/events.jsonl is shorter than its checkpoint says", s->stage_dir);
    if (ftruncate(l->fd, position) != 0)
        return apus_fail(err, APUS_E_IO, "%s/events.jsonl: %s", s->stage_dir, strerror(errno));
    l->position = position;
    l->begun = 1;
    char path[4400];
    size_t length;
    snprintf(path, sizeof path, "%s/events.jsonl", s->stage_dir);
    char *text = position > 0 ? apus_file_read(path, 0, &length, err) : NULL;
    if (position > 0 && text == NULL)
        return APUS_E_IO;
    for (char *line = text; line != NULL && *line != '\0';) {
        char *end = strchr(line, '\n');
        apus_node *event = NODE->parse_json(line, end != NULL ? (size_t)(end - line) : strlen(line), path, NULL);
        if (event != NULL)
            tell(l, event, 1);
        NODE->release(event);
        line = end != NULL ? end + 1 : NULL;
    }
    apus_host_table()->free(text);
    return APUS_OK;
}
