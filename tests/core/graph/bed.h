/* What the graph's tests share: a graph with its inputs and their values, run on a device; numbers from a seed. */
#ifndef APUS_TEST_BED_H
#define APUS_TEST_BED_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <apus/random.h>

#include "graph/plan.h"
#include "module/module.h"
#include "value/node.h"

#define DIMS(...)                             ((const int64_t[]){__VA_ARGS__})
#define ATTRS(...)                            ((const double[]){__VA_ARGS__})
#define EMIT(b, op, n_in, in, attrs, n_attrs) apus_graph_table()->emit((b)->g, "apus." op "/1", in, n_in, attrs, n_attrs)

enum { BED_INPUTS = 40, BED_OUTPUTS = 40 };

typedef struct bed_input {
    char name[16];
    apus_tensor t;
    apus_dtype dtype;
    size_t n;     /* at the extents */
    double *real; /* values of a REAL input */
    void *data;   /* what is fed */
} bed_input;

typedef struct bed {
    apus_graph *g;
    bed_input in[BED_INPUTS];
    size_t n_in;
    int64_t extents[APUS_N_DIM_SYMBOLS];
    uint64_t seed;
} bed;

static inline void bed_begin(bed *b, uint64_t seed)
{
    memset(b, 0, sizeof *b);
    b->g = apus_graph_new(NULL);
    b->seed = seed;
}

static inline void bed_end(bed *b)
{
    for (size_t i = 0; i < b->n_in; i++)
        free(b->in[i].data);
    apus_graph_free(b->g);
}

static inline void bed_check(const bed *b)
{
    apus_error err;
    if (apus_graph_status(b->g, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

static inline double bed_random(uint64_t seed, uint64_t index, double low, double high)
{
    return low + (high - low) * apus_random_uniform(seed, 7, 0, index);
}

static inline bed_input *bed_input_new(bed *b, apus_dtype dtype, uint32_t ndim, const int64_t *dims, size_t size)
{
    assert_true(b->n_in < BED_INPUTS);
    bed_input *in = &b->in[b->n_in];
    (void)snprintf(in->name, sizeof in->name, "in%zu", b->n_in);
    b->n_in++;
    in->dtype = dtype;
    in->n = 1;
    for (uint32_t d = 0; d < ndim; d++)
        in->n *= (size_t)(dims[d] >= 0 ? dims[d] : b->extents[-1 - dims[d]]);
    in->data = calloc(in->n + 1, size);
    assert_non_null(in->data);
    in->t = apus_graph_table()->input(b->g, in->name, dtype, ndim, dims);
    return in;
}

/* Random numbers in [low, high). */
static inline apus_tensor bed_real(bed *b, uint32_t ndim, const int64_t *dims, double low, double high)
{
    bed_input *in = bed_input_new(b, APUS_REAL, ndim, dims, sizeof(double));
    in->real = in->data;
    for (size_t i = 0; i < in->n; i++)
        in->real[i] = bed_random(b->seed + b->n_in, i, low, high);
    return in->t;
}

static inline apus_tensor bed_i32(bed *b, uint32_t ndim, const int64_t *dims, const int32_t *values)
{
    bed_input *in = bed_input_new(b, APUS_I32, ndim, dims, sizeof(int32_t));
    memcpy(in->data, values, in->n * sizeof *values);
    return in->t;
}

/* Random integers in [0, n). */
static inline apus_tensor bed_ids(bed *b, int64_t count, int32_t n)
{
    bed_input *in = bed_input_new(b, APUS_I32, 1, &count, sizeof(int32_t));
    for (size_t i = 0; i < in->n; i++)
        ((int32_t *)in->data)[i] = (int32_t)apus_random_below(b->seed + b->n_in, 9, 0, i, (uint64_t)n);
    return in->t;
}

static inline apus_tensor bed_i64(bed *b, int64_t n, const int64_t *values)
{
    bed_input *in = bed_input_new(b, APUS_I64, 1, &n, sizeof(int64_t));
    memcpy(in->data, values, in->n * sizeof *values);
    return in->t;
}

static inline apus_plan *bed_plan(bed *b, apus_device *d, const apus_tensor *out, size_t n_out, int recompute)
{
    apus_error err;
    apus_plan *p;
    if (apus_plan_new(b->g, d, out, n_out, b->extents, recompute, &p, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return p;
}

/* Runs with the arena poisoned: what a kernel reads and nobody wrote is not a number. */
static inline void bed_run(bed *b, apus_plan *p)
{
    apus_error err;
    apus_feed feeds[BED_INPUTS];
    size_t bytes;
    void *arena = apus_plan_arena(p, &bytes);
    if (apus_device_host_memory(p->device))
        memset(arena, 0xff, bytes);
    for (size_t i = 0; i < b->n_in; i++)
        feeds[i] = (apus_feed){b->in[i].name, b->in[i].data};
    if (apus_plan_run(p, b->extents, feeds, b->n_in, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

static inline size_t bed_count(const apus_plan *p, size_t k)
{
    const apus_view v = apus_plan_output_view(p, k);
    size_t n = 1;
    for (int32_t d = 0; d < v.ndim; d++)
        n *= (size_t)v.dims[d];
    return n;
}

/* Output k of the last run; owner: caller. */
static inline double *bed_output(apus_plan *p, size_t k, size_t *n)
{
    apus_error err;
    *n = bed_count(p, k);
    double *values = calloc(*n + 1, sizeof *values);
    assert_non_null(values);
    if (apus_plan_output(p, k, values, (int64_t)*n, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return values;
}

/* One tensor's value, from a fresh plan. */
static inline double *bed_value(bed *b, apus_device *d, apus_tensor t, size_t *n)
{
    apus_plan *p = bed_plan(b, d, &t, 1, APUS_RECOMPUTE_NONE);
    bed_run(b, p);
    double *v = bed_output(p, 0, n);
    apus_plan_free(p);
    return v;
}

/* A scalar that every element of t counts in, each with its own weight. */
static inline apus_tensor bed_mixed(bed *b, apus_tensor t)
{
    int64_t dims[APUS_MAX_DIMS];
    const uint32_t ndim = apus_graph_table()->shape(b->g, t, dims);
    if (ndim == 0)
        return apus_none();
    return apus_sum(b->g, apus_mul(b->g, t, bed_real(b, ndim, dims, -1.0, 1.0)));
}

static inline void bed_bind(apus_plan *p, const char *name, void *memory)
{
    apus_error err;
    if (apus_plan_bind(p, name, memory, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

/* Within tolerance, relative to a where that is large. */
static inline void bed_same(const double *a, const double *b, size_t n, double tolerance, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= tolerance * (1.0 + fabs(a[i]))))
            fail_msg("%s: element %zu: %.17g and %.17g", what, i, a[i], b[i]);
}

/* Plugins of the build, loaded once. */
static inline void bed_load(const char *const *files, size_t n)
{
    static int loaded;
    apus_error err;
    if (loaded)
        return;
    loaded = 1;
    apus_graph_announce();
    for (size_t i = 0; i < n; i++) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/%s", APUS_TEST_PLUGINS, files[i]);
        if (apus_module_load_file(path, &err) != APUS_OK)
            fail_msg("%s", err.message);
    }
    if (apus_ops_load(&err) != APUS_OK)
        fail_msg("%s", err.message);
}

static inline apus_device *bed_device(const char *name)
{
    apus_error err;
    apus_node *spec = apus_nodes()->make_string(name, (size_t)-1);
    apus_device *d = NULL;
    if (apus_device_open(spec, &d, &err) != APUS_OK)
        fail_msg("%s", err.message);
    apus_nodes()->release(spec);
    return d;
}

static inline apus_device *bed_ref(void)
{
    static const char *const files[] = {"apus_backend_ref.so"};
    bed_load(files, 1);
    return bed_device("ref");
}

#endif
