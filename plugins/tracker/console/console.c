/* Tracker console: a progress line on standard error with rate, remaining time and loss; plain lines now and then without a terminal. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <apus/plugin.h>
#include <apus/session.h>

typedef struct console {
    const apus_host *host;
    char stage[64];
    int interactive, drawn;
    int64_t first_step, last_step, max_steps;
    double began, last_line;
    double step_seconds, data_seconds; /* sums over the steps: all of a step, and what it waited for its rows */
    apus_node *profile;                /* NULL: none */
} console;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void erase(console *c)
{
    if (c->drawn)
        fputs("\r\033[K", stderr);
    c->drawn = 0;
}

static apus_status open_tracker(const apus_host *host, const apus_node *params, const apus_tracker_run *run, void **tracker, apus_error *err)
{
    (void)params;
    console *c = host->alloc(sizeof *c);
    if (c == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    c->host = host;
    c->interactive = run->interactive;
    c->first_step = -1;
    snprintf(c->stage, sizeof c->stage, "%s", run->stage);
    fprintf(stderr, "stage %s (%d/%d): %s\n", run->stage, run->stage_index + 1, run->n_stages, run->stage_type);
    c->began = now();
    *tracker = c;
    return APUS_OK;
}

static void duration(double seconds, char *text, size_t capacity)
{
    const long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(text, capacity, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, capacity, "%ld:%02ld", s / 60, s % 60);
}

static void draw_bar(const console *c, int64_t step)
{
    enum { WIDTH = 24 };
    const int full = c->max_steps > 0 ? (int)(WIDTH * step / c->max_steps) : 0;
    fputc('[', stderr);
    for (int i = 0; i < WIDTH; i++)
        fputc(i < full ? '#' : '.', stderr);
    fputs("] ", stderr);
}

static void progress(console *c, const apus_node *e, int64_t step)
{
    const apus_node_api *node = c->host->node;
    const double t = now(), elapsed = t - c->began;
    const int64_t done = step - c->first_step + 1;
    char left[32] = "";
    c->last_step = step;
    if (!c->interactive && step < c->max_steps && t - c->last_line < 10.0 && done > 1)
        return;
    if (c->interactive && step < c->max_steps && t - c->last_line < 0.1)
        return;
    c->last_line = t;
    erase(c);
    if (c->interactive)
        draw_bar(c, step);
    fprintf(stderr, "%s %lld/%lld", c->stage, (long long)step, (long long)c->max_steps);
    static const char *const shown[][2] = {{"loss", "loss"}, {"rewards/accuracies", "acc"}, {"rewards/margins", "margin"}, {"grad_norm", "norm"}};
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++)
        if (node->get(e, shown[i][0]) != NULL)
            fprintf(stderr, "  %s %.4g", shown[i][1], node->as_float(node->get(e, shown[i][0]), 0.0));
    if (node->get(e, "tokens_per_second") != NULL)
        fprintf(stderr, "  %.0f tok/s", node->as_float(node->get(e, "tokens_per_second"), 0.0));
    if (done > 1 && step < c->max_steps) {
        duration(elapsed / (double)done * (double)(c->max_steps - step), left, sizeof left);
        fprintf(stderr, "  %s left", left);
    }
    if (c->interactive && step < c->max_steps) {
        c->drawn = 1;
        fflush(stderr);
    } else {
        fputc('\n', stderr);
    }
}

static apus_status event(void *tracker, const apus_node *e, int replayed, apus_error *err)
{
    (void)err;
    console *c = tracker;
    const apus_node_api *node = c->host->node;
    const char *note = node->as_string(node->get(e, "note"), NULL);
    if (replayed)
        return APUS_OK;
    if (note != NULL) {
        erase(c);
        fprintf(stderr, "  %s\n", note);
        return APUS_OK;
    }
    const int64_t step = node->as_int(node->get(e, "step"), -1);
    if (step >= 0 && node->get(e, "max_steps") != NULL) {
        if (c->first_step < 0)
            c->first_step = step;
        c->max_steps = node->as_int(node->get(e, "max_steps"), 0);
        c->step_seconds += node->as_float(node->get(e, "tokens"), 0.0) / node->as_float(node->get(e, "tokens_per_second"), 1.0);
        c->data_seconds += node->as_float(node->get(e, "data_seconds"), 0.0);
        progress(c, e, step);
        return APUS_OK;
    }
    if (node->get(e, "profile") != NULL) { /* told at the end */
        node->release(c->profile);
        c->profile = node->copy(node->get(e, "profile"));
        return APUS_OK;
    }
    erase(c);
    fprintf(stderr, "  %s", c->stage);
    for (size_t i = 0; i < node->length(e); i++) {
        const apus_node *v = node->at(e, i);
        if (node->kind(v) == APUS_NODE_INT || node->kind(v) == APUS_NODE_FLOAT)
            fprintf(stderr, "  %s %.6g", node->key_at(e, i), node->as_float(v, 0.0));
    }
    fputc('\n', stderr);
    return APUS_OK;
}

static void print_profile(const console *c)
{
    const apus_node_api *node = c->host->node;
    const apus_node *ops = node->get(c->profile, "ops");
    fprintf(stderr, "  where the time of a step goes (%.3g ms, mean of %lld; each operation in %s):\n",
            node->as_float(node->get(c->profile, "seconds_per_step"), 0.0) * 1e3, (long long)node->as_int(node->get(c->profile, "steps"), 0),
            node->as_string(node->get(c->profile, "trace"), NULL));
    for (size_t i = 0; i < node->length(ops); i++) {
        const apus_node *op = node->at(ops, i), *gflops = node->get(op, "gflops");
        const double share = node->as_float(node->get(op, "share"), 0.0);
        if (share < 0.005)
            continue;
        fprintf(stderr, "  %5.1f %%  %9.3f ms  %s", share * 100.0, node->as_float(node->get(op, "seconds_per_step"), 0.0) * 1e3,
                node->as_string(node->get(op, "op"), NULL));
        if (gflops != NULL)
            fprintf(stderr, "  (%.1f GFLOP/s)", node->as_float(gflops, 0.0));
        fputc('\n', stderr);
    }
}

static void close_tracker(void *tracker, apus_status status)
{
    console *c = tracker;
    char took[32];
    erase(c);
    duration(now() - c->began, took, sizeof took);
    if (c->profile != NULL)
        print_profile(c);
    if (status == APUS_OK)
        fprintf(stderr, "  %s done in %s", c->stage, took);
    if (status == APUS_OK && c->step_seconds > 0.0)
        fprintf(stderr, "; its steps waited for data %.2g %% of their time", c->data_seconds / c->step_seconds * 100.0);
    if (status == APUS_OK)
        fputc('\n', stderr);
    c->host->node->release(c->profile);
    c->host->free(c);
}

static const apus_tracker_ops ops = {.size = sizeof ops, .open = open_tracker, .event = event, .close = close_tracker};

static const apus_component components[] = {
    {.size = sizeof(apus_component), .kind = "tracker", .name = "console", .doc = "Progress on standard error.", .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "console", .version = "1.0.0", .license = "Apache-2.0", .doc = "Progress for people.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
