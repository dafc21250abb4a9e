/*
 * core/graph/trials: which table's kernel is the fastest for what trainings compute, measured, and written to a tuning file (tuning.c reads
 * it). The only place where a clock has a say in which kernels run, and never while anything is trained.
 *
 * Each call works on other memory of as much as no cache holds, for a training's next step meets other weights too; the tables take turns,
 * so that a machine that slows down slows all of them.
 */
#include "graph/plan.h"

#include "io/io.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

enum { TABLES_MOST = 4, CALLS_LEAST = 7, CALLS_MOST = 400, ALIGN = 64 };
static const size_t cold_bytes = (size_t)160 << 20;
static const double tie = 0.02; /* the backend's own kernel stays where another's is not faster by more */

/* Something trainings compute. */
typedef struct task {
    apus_tuning_key key;
    size_t count;
    double attrs[APUS_MAX_ATTRS];
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS]; /* at capacity, without memory; of an output nobody wants: no elements */
    uint32_t n_in, n_out, accumulate, shape_only;
    int in_place; /* output 0 lies in the last input */
} task;

struct apus_trials {
    task *at;
    size_t n, cap;
};

apus_status apus_device_try(apus_device *d, apus_error *err)
{
    apus_trials_free(d->trials);
    d->trials = calloc(1, sizeof *d->trials);
    return d->trials != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}

void apus_trials_free(apus_trials *t)
{
    if (t != NULL)
        free(t->at);
    free(t);
}

/* Only kernels of real numbers: others' operands would have to mean something. */
static int measurable(const apus_plan *p, const apus_plan_node *n)
{
    for (uint32_t i = 0; i < n->n_in; i++)
        if (p->tensors.at[n->in[i]].shape.dtype != p->device->real)
            return 0;
    return 1;
}

apus_status apus_trials_note(apus_trials *t, const apus_plan *p, apus_error *err)
{
    const apus_kernel_entry *rivals[TABLES_MOST];
    apus_tuning_key key;
    for (size_t i = 0; i < p->order.n; i++) {
        apus_plan_node own = p->nodes.at[p->order.at[i]]; /* without what only some tables' kernels take over */
        own.n_in -= own.n_prologue;
        own.prologue = own.n_prologue = 0;
        const apus_plan_node *n = &own;
        if (!apus_tuning_key_of(p, n, &key) || !measurable(p, n) || apus_tuning_rivals(p->device, &key, rivals, TABLES_MOST) < 2)
            continue;
        size_t k = 0;
        while (k < t->n && !apus_tuning_same(&t->at[k].key, &key))
            k++;
        if (k == t->n) {
            task *grown = apus_grow(t->at, &t->cap, t->n, sizeof *t->at);
            if (grown == NULL)
                return apus_fail(err, APUS_E_MEMORY, "out of memory");
            t->at = grown;
            t->at[t->n++] = (task){.key = key, .n_in = n->n_in, .n_out = n->n_out, .accumulate = n->accumulate, .shape_only = n->shape_only};
            memcpy(t->at[k].attrs, n->attrs, sizeof n->attrs);
            (void)apus_plan_capacity(p, n, t->at[k].views);
            const apus_plan_tensor *last = &p->tensors.at[n->in[n->n_in - 1]], *first = &p->tensors.at[n->out[0]];
            t->at[k].in_place = key.then != NULL && last->place >= 0 && last->place == first->place;
        }
        t->at[k].count++;
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- timing */

static size_t bytes_of(const apus_view *v)
{
    size_t n = apus_dtype_size(v->dtype);
    for (int32_t d = 0; d < v->ndim; d++)
        n *= (size_t)v->dims[d];
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

typedef struct bench {
    apus_device *d;
    const task *t;
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS];
    char *pool;
    size_t set, sets; /* bytes of a call's operands; how many such the pool holds */
    void *scratch[TABLES_MOST];
    size_t scratch_bytes[TABLES_MOST];
} bench;

static apus_kernel_call call_of(bench *b, const apus_kernel_entry *e, size_t turn, void *scratch)
{
    const task *t = b->t;
    const uint32_t all = t->n_in + t->n_out;
    char *at = b->pool + turn % b->sets * b->set;
    for (uint32_t i = 0; i < all; i++) {
        b->views[i] = t->views[i];
        b->views[i].data = i < t->n_in && (t->shape_only >> i & 1) != 0 ? NULL : at;
        at += bytes_of(&t->views[i]);
    }
    if (t->in_place)
        b->views[t->n_in].data = b->views[t->n_in - 1].data;
    return (apus_kernel_call){.in = b->views,
                              .out = b->views + t->n_in,
                              .attrs = t->attrs,
                              .scratch = scratch,
                              .backend = apus_device_instance(b->d, e),
                              .n_in = t->n_in,
                              .n_out = t->n_out,
                              .accumulate = (e->kernel.flags & APUS_KERNEL_ACCUMULATES) != 0 ? t->accumulate : 0};
}

/* Small numbers of both signs, so that sums stay small however often they are added to. */
static apus_status fill(const bench *b, apus_error *err)
{
    const size_t real = apus_dtype_size(b->d->real);
    apus_status st = APUS_OK;
    uint32_t x = 1;
    for (size_t at = 0, all = b->set * b->sets; at < all && st == APUS_OK;) {
        float f[1024];
        double g[1024];
        size_t n = (all - at) / real < 1024 ? (all - at) / real : 1024;
        for (size_t i = 0; i < n; i++) {
            x = x * 1664525u + 1013904223u;
            g[i] = ((double)(x >> 8) - 8388608.0) * 1e-9;
            f[i] = (float)g[i];
        }
        st = apus_device_upload(b->d, b->pool + at, real == sizeof(float) ? (const void *)f : (const void *)g, n * real, err);
        at += n > 0 ? n * real : all;
    }
    return st;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static apus_status time_tables(bench *b, const apus_kernel_entry **e, size_t n, double seconds, double *medians, apus_error *err)
{
    double(*taken)[CALLS_MOST] = malloc(n * sizeof *taken);
    if (taken == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = APUS_OK;
    size_t calls = 0, turn = 0;
    const double begin = apus_clock();
    for (int warm = 1; st == APUS_OK && calls < CALLS_MOST && (warm || calls < CALLS_LEAST || apus_clock() - begin < seconds); warm = 0) {
        for (size_t i = 0; i < n && st == APUS_OK; i++) {
            const size_t k = calls % 2 == 0 ? i : n - 1 - i;
            const apus_kernel_call c = call_of(b, e[k], turn++, b->scratch[k]);
            const double began = apus_clock();
            st = e[k]->kernel.run(&c, err);
            if (st == APUS_OK)
                st = b->d->ops.finish(b->d->backend, err);
            taken[k][calls] = apus_clock() - began;
        }
        calls += !warm; /* the first turn pages and caches come in */
    }
    for (size_t k = 0; k < n && st == APUS_OK; k++) {
        qsort(taken[k], calls, sizeof taken[k][0], by_value);
        medians[k] = taken[k][calls / 2];
    }
    free(taken);
    return st;
}

static apus_status try_task(apus_device *d, const task *t, const apus_kernel_entry **e, size_t n, double seconds, double *medians, apus_error *err)
{
    bench b = {.d = d, .t = t};
    for (uint32_t i = 0; i < t->n_in + t->n_out; i++)
        b.set += bytes_of(&t->views[i]);
    b.sets = cold_bytes / (b.set + 1) + 2;
    b.sets = b.sets < n * CALLS_MOST ? b.sets : n * CALLS_MOST;
    b.pool = apus_device_alloc(d, b.set * b.sets, err);
    apus_status st = b.pool != NULL ? fill(&b, err) : APUS_E_MEMORY;
    for (size_t k = 0; k < n && st == APUS_OK; k++) {
        const apus_kernel_call c = call_of(&b, e[k], 0, NULL);
        b.scratch_bytes[k] = e[k]->kernel.scratch != NULL ? e[k]->kernel.scratch(&c) : 0;
        if (b.scratch_bytes[k] > 0 && (b.scratch[k] = apus_device_alloc(d, b.scratch_bytes[k], err)) == NULL)
            st = APUS_E_MEMORY;
    }
    if (st == APUS_OK)
        st = time_tables(&b, e, n, seconds, medians, err);
    for (size_t k = 0; k < n; k++)
        apus_device_free(d, b.scratch[k], b.scratch_bytes[k]);
    apus_device_free(d, b.pool, b.set * b.sets);
    return st;
}

/* ---------------------------------------------------------------- the file */

/* As JSON, which YAML is. */
static void put_string(FILE *f, const char *text)
{
    apus_node *n = apus_nodes()->make_string(text, (size_t)-1);
    char *json = apus_nodes()->write_json(n, 0, NULL);
    (void)fputs(json != NULL ? json : "\"\"", f);
    apus_host_table()->free(json);
    apus_nodes()->release(n);
}

static void put_head(FILE *f, const apus_device *d)
{
    char version[300];
    (void)fputs("# Written by `apus tune`: which kernels trainings take where several plugins have some. To use it:\n"
                "#   backend: {type: …, tuning: THIS FILE}\n"
                "# Times are medians in seconds. Made anew, not by hand: it is good for this machine, these threads and versions alone.\n"
                "version: 1\nbackend: ",
                f);
    put_string(f, d->name);
    (void)fputs("\nhardware: ", f);
    put_string(f, d->facts.hardware);
    (void)fprintf(f, "\nthreads: %u\nproducts: %s\ntables:\n", d->facts.threads, apus_dtype_name(d->facts.products));
    for (size_t i = 0; i < d->n_tables; i++) {
        const apus_kernel_table *t = apus_kernel_table_at(i);
        if (!d->tables[i].serves)
            continue;
        apus_tuning_version(d, t, version, sizeof version);
        (void)fprintf(f, "  %s: ", t->name);
        put_string(f, version);
        (void)fputc('\n', f);
    }
}

static void put_choice(FILE *f, const apus_trial *t)
{
    (void)fprintf(f, "  - {op: %s, ", t->op);
    if (t->then != NULL)
        (void)fprintf(f, "then: %s, ", t->then);
    (void)fprintf(f, "shapes: \"%s\", rows: %lld, use: %s, seconds: {", t->shapes, (long long)t->rows, t->table[t->best]);
    for (size_t k = 0; k < t->n; k++)
        (void)fprintf(f, "%s%s: %.4g", k > 0 ? ", " : "", t->table[k], t->seconds[k]);
    (void)fputs("}}\n", f);
}

/* Times every task; its choice goes to f. */
static apus_status try_all(apus_device *d, FILE *f, double seconds, const apus_trial_found *found, apus_error *err)
{
    apus_status st = APUS_OK;
    for (size_t i = 0; i < d->trials->n && st == APUS_OK; i++) {
        const task *t = &d->trials->at[i];
        const apus_kernel_entry *rivals[TABLES_MOST];
        apus_trial trial = {.op = t->key.op->name,
                            .then = t->key.then != NULL ? t->key.then->name : NULL,
                            .shapes = t->key.shapes,
                            .rows = t->key.rows,
                            .count = t->count,
                            .n = apus_tuning_rivals(d, &t->key, rivals, TABLES_MOST)};
        if (apus_host_table()->stopping())
            return apus_fail(err, APUS_E_STOPPED, "stopped; nothing was written");
        st = try_task(d, t, rivals, trial.n, seconds, trial.seconds, err);
        for (size_t k = 0; k < trial.n && st == APUS_OK; k++) {
            trial.table[k] = rivals[k]->table->name;
            if (k > 0 && trial.seconds[k] < trial.seconds[trial.best] * (trial.best == 0 ? 1.0 - tie : 1.0))
                trial.best = k;
        }
        if (st == APUS_OK) {
            put_choice(f, &trial);
            found->found(found->context, &trial);
        }
    }
    return st;
}

apus_status apus_device_tune(apus_device *d, const char *path, double seconds, const apus_trial_found *found, apus_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (d->ops.facts == NULL)
        return apus_fail(err, APUS_E_UNSUPPORTED, "backend %s takes no tuning file", d->name);
    FILE *f = open_memstream(&text, &length);
    if (f == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < d->n_tables; i++)
        if (d->tables[i].why[0] != '\0')
            found->idle(found->context, apus_kernel_table_at(i)->name, d->tables[i].why);
    put_head(f, d);
    (void)fprintf(f, "choices:%s\n", d->trials->n > 0 ? "" : " []");
    apus_status st = try_all(d, f, seconds, found, err);
    if (fclose(f) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = apus_file_write(path, text, length, err);
    free(text);
    return st;
}
