/*
 * Devices for the plan's tests, made of the reference kernels: "toy" has kernels for linear followed by add, which takes siblings, by affine,
 * and for two of them followed by maximum, the first and the last of rows that they normalise themselves, and lacks a few ops (they must be
 * decomposed); "adapted" has kernels for the sum of two products, of which one is thin, and pairs; "serial" has no threads, so elementwise nodes run
 * one by one; "brief" keeps activations in bfloat16 and says so of some kernels: for plans that are looked at, not run.
 */
#ifndef APUS_TEST_TOY_H
#define APUS_TEST_TOY_H

#include "core/graph/bed.h"

enum { TOY_ROOM = 1024 };
static int toy_norms; /* calls that make their first input by a norm */
static const char *const toy_prologues[] = {"apus.layer_norm/1", "apus.rms_norm/1", NULL};

/* The first input, normalised if it is to be; attrs: of the ops before. */
static inline apus_view toy_left(const apus_kernel_call *c, int attrs, double room[TOY_ROOM])
{
    apus_view x = c->in[0];
    const double *from = x.data, *w = c->in[c->n_in - 1].data;
    const int64_t n = x.dims[1];
    if (c->prologue == 0)
        return x;
    assert_int_equal(c->prologue, 2);
    assert_in_range(x.dims[0] * n, 0, TOY_ROOM);
    assert_int_equal(c->prologue_inputs, 1);
    toy_norms++;
    for (int64_t i = 0; i < x.dims[0]; i++) {
        double square = 0.0;
        for (int64_t k = 0; k < n; k++)
            square += from[i * n + k] * from[i * n + k];
        for (int64_t k = 0; k < n; k++)
            room[i * n + k] = from[i * n + k] / sqrt(square / (double)n + c->attrs[attrs]) * (c->attrs[attrs + 2] + w[k]);
    }
    x.data = room;
    return x;
}

static int toy_pairs; /* calls of the pair kernel */

static inline apus_status toy_pair(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    double room[TOY_ROOM];
    const uint32_t own = c->n_in - c->prologue_inputs;
    const double *x = toy_left(c, 0, room).data, *w = c->in[1].data, *bias = own > 3 ? c->in[2].data : NULL, *other = c->in[own - 1].data;
    const int64_t m = c->in[0].dims[0], n = c->in[0].dims[1], o = c->in[1].dims[0];
    double *y = c->out[0].data;
    toy_pairs++;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < o; j++) {
            double s = 0.0;
            for (int64_t k = 0; k < n; k++)
                s += x[i * n + k] * w[j * n + k];
            y[i * o + j] = s + (bias != NULL ? bias[j] : 0.0) + other[i * o + j];
        }
    }
    return APUS_OK;
}

static int toy_siblings; /* calls of several pairs at once */

/* The last first: none may count on those before it. */
static inline apus_status toy_pairs_at_once(const apus_kernel_call *calls, uint32_t n, apus_error *err)
{
    toy_siblings++;
    for (uint32_t i = n; i > 0; i--)
        (void)toy_pair(&calls[i - 1], err);
    return APUS_OK;
}

static int toy_patterns; /* calls of the two kernels below */

static inline double toy_dot(const apus_view *x, const apus_view *w, int64_t i, int64_t j)
{
    const int64_t n = x->dims[1];
    double s = 0.0;
    for (int64_t k = 0; k < n; k++)
        s += ((const double *)x->data)[i * n + k] * ((const double *)w->data)[j * n + k];
    return s;
}

/* linear, then affine: scale and shift are the only attributes. */
static inline apus_status toy_affine(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const int64_t m = c->in[0].dims[0], o = c->in[1].dims[0];
    toy_patterns++;
    for (int64_t i = 0; i < m * o; i++)
        ((double *)c->out[0].data)[i] = toy_dot(&c->in[0], &c->in[1], i / o, i % o) * c->attrs[0] + c->attrs[1];
    return APUS_OK;
}

/* The larger of two linears of the same x. */
static inline apus_status toy_larger(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const int64_t m = c->in[0].dims[0], o = c->in[1].dims[0];
    double room[TOY_ROOM];
    const apus_view x = toy_left(c, 0, room);
    assert_memory_equal(&c->in[0], &c->in[2], sizeof c->in[0]);
    toy_patterns++;
    for (int64_t i = 0; i < m * o; i++) {
        const double a = toy_dot(&x, &c->in[1], i / o, i % o), b = toy_dot(&x, &c->in[3], i / o, i % o);
        ((double *)c->out[0].data)[i] = a > b ? a : b;
    }
    return APUS_OK;
}

/* Sums of two: y += x Wᵀ, or with W as it is. */
static inline void toy_product(const apus_view *in, int gradient, double *y)
{
    const double *x = in[0].data, *w = in[1].data;
    const int64_t m = in[0].dims[0], n = in[0].dims[1], o = in[1].dims[gradient];
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < o; j++)
            for (int64_t k = 0; k < n; k++)
                y[i * o + j] += x[i * n + k] * (gradient ? w[k * o + j] : w[j * n + k]);
}

static int toy_twices[2]; /* calls: forward, gradients */

static inline apus_status toy_twice_of(const apus_kernel_call *c, int gradient, int added)
{
    const int64_t m = c->out[0].dims[0], o = c->out[0].dims[1];
    const double *bias = c->n_in - (uint32_t)added > 4 ? c->in[4].data : NULL, *other = added ? c->in[c->n_in - 1].data : NULL;
    double *y = c->out[0].data;
    toy_twices[gradient]++;
    for (int64_t i = 0; i < m * o; i++)
        y[i] = (bias != NULL ? bias[i % o] : 0.0) + (other != NULL ? other[i] : 0.0);
    toy_product(c->in, gradient, y);
    toy_product(c->in + 2, gradient, y);
    return APUS_OK;
}

static inline apus_status toy_twice(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return toy_twice_of(c, 0, 0);
}

static inline apus_status toy_twice_add(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return toy_twice_of(c, 0, 1);
}

static inline apus_status toy_dx_twice(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return toy_twice_of(c, 1, 0);
}

static inline apus_status toy_dx_twice_add(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return toy_twice_of(c, 1, 1);
}

static inline apus_status toy_dx_pair(const apus_kernel_call *c, apus_error *err)
{
    double *y = c->out[0].data;
    (void)err;
    memmove(y, c->in[2].data, (size_t)(c->out[0].dims[0] * c->out[0].dims[1]) * sizeof *y);
    toy_product(c->in, 1, y);
    return APUS_OK;
}

/* Not where W has three rows. */
static inline int toy_takes_norm(const apus_kernel_call *c)
{
    return c->prologue == 0 || c->in[1].dims[0] != 3;
}

/* The sum's length of one is 2. */
static inline int toy_suits(const apus_kernel_call *c)
{
    return c->in[0].dims[1] == 2 || c->in[2].dims[1] == 2;
}

typedef struct toy_mask {
    const char *op;
    uint32_t in, out;
} toy_mask;

enum { TOY_PAIR = 1, TOY_TWICE = 2 };

static inline void toy_register(const char *name, const char *const *without, int with, const toy_mask *narrow, size_t n_narrow)
{
    static const apus_kernel twice[] = {
        {.op = "apus.linear/1", .flags = APUS_KERNEL_TWICE, .run = toy_twice, .suits = toy_suits},
        {.op = "apus.linear/1", .then = "apus.add/1", .flags = APUS_KERNEL_TWICE, .run = toy_twice_add, .suits = toy_suits},
        {.op = "apus.linear_dx/1", .flags = APUS_KERNEL_TWICE, .run = toy_dx_twice, .suits = toy_suits},
        {.op = "apus.linear_dx/1", .then = "apus.add/1", .flags = APUS_KERNEL_TWICE, .run = toy_dx_twice_add, .suits = toy_suits},
        {.op = "apus.linear_dx/1", .then = "apus.add/1", .run = toy_dx_pair},
    };
    apus_error err;
    apus_kernel *kernels = calloc(apus_kernel_count() + 8, sizeof *kernels); /* kept: registered kernels are never freed */
    uint32_t n = 0;
    assert_non_null(kernels);
    for (size_t i = 0; i < apus_kernel_count(); i++) {
        const apus_kernel_entry *e = apus_kernel_at(i);
        int leave = strcmp(e->table->ops.backend, "ref") != 0;
        for (const char *const *w = without; *w != NULL; w++)
            leave |= strcmp(e->kernel.op, *w) == 0;
        if (leave)
            continue;
        kernels[n] = e->kernel;
        for (size_t k = 0; k < n_narrow; k++)
            if (strcmp(e->kernel.op, narrow[k].op) == 0) {
                kernels[n].narrow_in = narrow[k].in;
                kernels[n].narrow_out = narrow[k].out;
            }
        kernels[n++].size = sizeof *kernels;
    }
    for (size_t k = 0; k < sizeof twice / sizeof twice[0] && (with & TOY_TWICE) != 0; k++) {
        kernels[n] = twice[k];
        kernels[n++].size = sizeof *kernels;
    }
    if ((with & TOY_PAIR) != 0) {
        kernels[n++] = (apus_kernel){.size = sizeof *kernels,
                                     .op = "apus.linear/1",
                                     .then = "apus.add/1",
                                     .run = toy_pair,
                                     .run_siblings = toy_pairs_at_once,
                                     .suits = toy_takes_norm,
                                     .prologues = toy_prologues};
        kernels[n++] = (apus_kernel){.size = sizeof *kernels, .op = "apus.linear/1", .then = "apus.affine/1", .run = toy_affine};
        kernels[n++] = (apus_kernel){.size = sizeof *kernels,
                                     .op = "apus.linear/1",
                                     .then = "apus.maximum/1",
                                     .run = toy_larger,
                                     .with = "apus.linear/1",
                                     .prologues = toy_prologues};
    }
    const apus_kernels_ops table = {.size = sizeof table, .backend = name, .real = APUS_F64, .kernels = kernels, .n_kernels = n};
    if (apus_kernels_add(name, NULL, &table, &err) != APUS_OK)
        fail_msg("%s", err.message);
    free(kernels);
}

static inline apus_dtype toy_kept(void *backend)
{
    (void)backend;
    return APUS_BF16;
}

static inline apus_device *toy_device(const char *name, int parallel, int brief)
{
    apus_error err;
    const apus_component *c = apus_component_find("backend", "ref", &err);
    assert_non_null(c);
    apus_backend_ops ops = *(const apus_backend_ops *)c->ops;
    if (!parallel)
        ops.parallel = NULL;
    if (brief)
        ops.kept = toy_kept;
    apus_device *d = NULL;
    assert_int_equal(apus_device_wrap(name, NULL, &ops, NULL, &d, &err), APUS_OK);
    return d;
}

static apus_device *ref, *toy, *adapted, *serial, *brief;

static inline int toy_setup(void **state)
{
    static const char *const toy_lacks[] = {
        "apus.sub/1", "apus.silu/1",   "apus.swiglu/1",    "apus.swiglu_grad/1", "apus.log_sigmoid/1", "apus.softplus/1",
        "apus.abs/1", "apus.square/1", "apus.silu_grad/1", "apus.sum_squares/1", "apus.sigmoid/1",     "apus.gelu/1",
        NULL};
    static const char *const none[] = {NULL};
    static const toy_mask narrow[] = {{"apus.linear/1", 1, 1},      {"apus.linear_dw/1", 2, 0},       {"apus.swiglu/1", 3, 1},
                                      {"apus.swiglu_grad/1", 6, 0}, {"apus.rms_norm/1", 0, 1},        {"apus.rope/1", 0, 1},
                                      {"apus.attention/1", 3, 1},   {"apus.attention_grad/1", 30, 0}, {"apus.embedding/1", 0, 1}};
    (void)state;
    ref = bed_ref();
    toy_register("toy", toy_lacks, TOY_PAIR, NULL, 0);
    toy_register("adapted", none, TOY_PAIR | TOY_TWICE, NULL, 0);
    toy_register("serial", none, 0, NULL, 0);
    toy_register("brief", none, 0, narrow, sizeof narrow / sizeof narrow[0]);
    toy = toy_device("toy", 1, 0);
    adapted = toy_device("adapted", 1, 0);
    serial = toy_device("serial", 0, 0);
    brief = toy_device("brief", 1, 1);
    return 0;
}

static inline int toy_teardown(void **state)
{
    (void)state;
    apus_device_close(ref);
    apus_device_close(toy);
    apus_device_close(adapted);
    apus_device_close(serial);
    apus_device_close(brief);
    return 0;
}

#endif
