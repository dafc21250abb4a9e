/* core/model/profile.c: see profile.h. */
#include "model/profile.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/io.h"
#include "value/node.h"

#define NODE apus_nodes()

enum { MAX_PLANS = 8, MAX_KINDS = 256, MAX_EVENTS = 200000 };

typedef struct kind {
    char name[96];
    int64_t calls;
    double seconds, flops;
} kind;

typedef struct watched {
    apus_profile *profile;
    apus_plan *plan;
    const char *label;
} watched;

struct apus_profile {
    char path[4400];
    double opened;
    watched plans[MAX_PLANS];
    size_t n_plans;
    kind kinds[MAX_KINDS];
    size_t n_kinds;
    int64_t begun, ended; /* optimizer steps, the first among them */
    double seconds;       /* of those that are profiled */
    char *text;           /* the trace's events */
    size_t used, capacity, events;
    int changed, told, failed;
};

/* ---------------------------------------------------------------- the trace */

/* One event; names and shapes hold nothing that JSON escapes. */
__attribute__((format(printf, 2, 3))) static void add_event(apus_profile *p, const char *format, ...)
{
    enum { LONGEST = 512 };
    if (p->failed || p->events == MAX_EVENTS)
        return;
    if (p->used + LONGEST > p->capacity) {
        const size_t capacity = p->capacity * 2 + 65536;
        char *text = realloc(p->text, capacity);
        if (text == NULL) {
            p->failed = 1;
            return;
        }
        p->text = text;
        p->capacity = capacity;
    }
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(p->text + p->used, LONGEST, format, args);
    va_end(args);
    p->used += n > 0 && n < LONGEST ? (size_t)n : 0;
    p->events++;
    p->changed = 1;
}

/* Whole nanoseconds, both ends rounded alike: a viewer drops a span that ends behind the one around it. */
static int64_t nanoseconds(const apus_profile *p, double clock)
{
    return llround((clock - p->opened) * 1e9);
}

/* A complete event of the Trace Event Format, times in microseconds; more: further members, ", …". */
static void add_span(apus_profile *p, const char *name, const char *category, double began, double ended, const char *more)
{
    const int64_t ts = nanoseconds(p, began), dur = nanoseconds(p, ended) - ts;
    add_event(p,
              ",\n{\"name\": \"%s\", \"cat\": \"%s\", \"ph\": \"X\", \"ts\": %" PRId64 ".%03d, \"dur\": %" PRId64 ".%03d, \"pid\": 1, \"tid\": 0%s}",
              name, category, ts / 1000, (int)(ts % 1000), dur / 1000, (int)(dur % 1000), more);
}

static apus_status write_trace(apus_profile *p, apus_error *err)
{
    static const char head[] = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n"
                               "{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": 1, \"args\": {\"name\": \"apus\"}},\n"
                               "{\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": 0, \"args\": {\"name\": \"training\"}}";
    static const char tail[] = "\n]}\n";
    if (p->failed)
        return apus_fail(err, APUS_E_MEMORY, "out of memory for the trace");
    const size_t n = sizeof head - 1 + p->used + sizeof tail - 1;
    char *all = malloc(n + 1);
    if (all == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory for the trace");
    memcpy(all, head, sizeof head - 1);
    if (p->used > 0)
        memcpy(all + sizeof head - 1, p->text, p->used);
    memcpy(all + sizeof head - 1 + p->used, tail, sizeof tail);
    const apus_status st = apus_file_write(p->path, all, n, err);
    free(all);
    p->changed = 0;
    return st;
}

/* ---------------------------------------------------------------- kinds of work */

static void count(apus_profile *p, const char *label, const char *op, double seconds, double flops)
{
    char name[sizeof p->kinds[0].name];
    (void)snprintf(name, sizeof name, "%s%s%s", label, label[0] != '\0' ? ": " : "", op);
    size_t i = 0;
    while (i < p->n_kinds && strcmp(p->kinds[i].name, name) != 0)
        i++;
    if (i == MAX_KINDS)
        return;
    kind *k = &p->kinds[i];
    if (i == p->n_kinds) {
        p->n_kinds++;
        memcpy(k->name, name, sizeof name);
    }
    k->calls++;
    k->seconds += seconds;
    k->flops += flops;
}

static void on_step(void *context, const apus_plan *plan, size_t step, double began, double ended)
{
    const watched *w = context;
    apus_plan_step_facts f;
    apus_plan_step_look(plan, step, &f);
    count(w->profile, w->label, f.op, ended - began, f.flops);
    char more[400];
    (void)snprintf(more, sizeof more, ", \"args\": {\"kernel\": \"%s\", \"shapes\": \"%s\", \"nodes\": %d, \"gflops\": %.4g}", f.kernel, f.shapes,
                   (int)f.nodes, f.flops / (ended - began + 1e-12) * 1e-9);
    add_span(w->profile, f.op, w->label[0] != '\0' ? w->label : "model", began, ended, more);
}

/* ---------------------------------------------------------------- life */

apus_profile *apus_profile_open(const char *stage_dir, apus_error *err)
{
    apus_profile *p = calloc(1, sizeof *p);
    if (p == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        return NULL;
    }
    (void)snprintf(p->path, sizeof p->path, "%s/trace.json", stage_dir);
    p->opened = apus_clock();
    return p;
}

void apus_profile_close(apus_profile *p)
{
    if (p == NULL)
        return;
    if (p->changed)
        (void)write_trace(p, NULL);
    free(p->text);
    free(p);
}

apus_status apus_profile_plan(apus_profile *p, apus_plan *plan, const char *label, apus_error *err)
{
    if (p == NULL || plan == NULL)
        return APUS_OK;
    if (p->n_plans == MAX_PLANS)
        return apus_fail(err, APUS_E_INTERNAL, "profile: more than %d plans", MAX_PLANS);
    p->plans[p->n_plans++] = (watched){p, plan, label};
    return APUS_OK;
}

static int is_profiled(const apus_profile *p)
{
    return p->begun > 1 && p->begun <= 1 + APUS_PROFILE_STEPS;
}

static void watch(apus_profile *p, int on)
{
    for (size_t i = 0; i < p->n_plans; i++)
        apus_plan_watch(p->plans[i].plan, on ? &(apus_plan_watcher){&p->plans[i], on_step} : NULL);
}

void apus_profile_begin(apus_profile *p)
{
    if (p == NULL)
        return;
    p->begun++;
    if (is_profiled(p))
        watch(p, 1);
}

void apus_profile_end(apus_profile *p, double began, double ended)
{
    if (p == NULL || !is_profiled(p))
        return;
    watch(p, 0);
    p->ended = p->begun;
    p->seconds += ended - began;
    add_span(p, "step", "step", began, ended, "");
}

void apus_profile_span(apus_profile *p, const char *name, double began, double ended)
{
    if (p == NULL)
        return;
    add_span(p, name, "host", began, ended, "");
}

void apus_profile_wait(apus_profile *p, double began, double ended)
{
    if (p == NULL || !is_profiled(p))
        return;
    count(p, "", "data", ended - began, 0.0);
    add_span(p, "data", "host", began, ended, "");
}

/* ---------------------------------------------------------------- the table */

static int by_seconds(const void *a, const void *b)
{
    const double x = ((const kind *)a)->seconds, y = ((const kind *)b)->seconds;
    return x > y ? -1 : x < y;
}

apus_status apus_profile_table(apus_profile *p, int last, apus_node **table, apus_error *err)
{
    *table = NULL;
    if (p == NULL || p->told || p->ended < 2 || (!last && p->ended < 1 + APUS_PROFILE_STEPS))
        return APUS_OK;
    p->told = 1;
    const double steps = (double)(p->ended - 1);
    double rest = p->seconds;
    for (size_t i = 0; i < p->n_kinds; i++)
        rest -= p->kinds[i].seconds;
    count(p, "", "other", rest > 0.0 ? rest : 0.0, 0.0);
    qsort(p->kinds, p->n_kinds, sizeof p->kinds[0], by_seconds);
    apus_node *ops = NODE->make_list();
    for (size_t i = 0; i < p->n_kinds; i++) {
        const kind *k = &p->kinds[i];
        apus_node *row = NODE->make_map();
        (void)NODE->set(row, "op", NODE->make_string(k->name, (size_t)-1));
        (void)NODE->set(row, "calls", NODE->make_int(k->calls));
        apus_node_set_float(row, "seconds_per_step", k->seconds / steps);
        apus_node_set_float(row, "share", k->seconds / p->seconds);
        if (k->flops > 0.0)
            apus_node_set_float(row, "gflops", k->flops / k->seconds * 1e-9);
        (void)NODE->append(ops, row);
    }
    *table = NODE->make_map();
    (void)NODE->set(*table, "steps", NODE->make_int(p->ended - 1));
    apus_node_set_float(*table, "seconds_per_step", p->seconds / steps);
    (void)NODE->set(*table, "trace", NODE->make_string(p->path, (size_t)-1));
    (void)NODE->set(*table, "ops", ops);
    const apus_status st = write_trace(p, err);
    if (st != APUS_OK) {
        NODE->release(*table);
        *table = NULL;
    }
    return st;
}
