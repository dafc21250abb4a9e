/*
 * A bench for kernels: one call, described once with values in double, run on backend ref in float64 and on backend cpu in
 * float32 for each instruction set; outputs compared. Scratch is exactly as long as asked for, filled with NaN and fenced.
 */
#ifndef APUS_TEST_BENCH_H
#define APUS_TEST_BENCH_H

#include "module/module.h"

#include <apus/blocks.h>
#include <apus/kernel.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct operand {
    apus_dtype dtype; /* APUS_REAL: values in `real`; else bytes in `raw`; APUS_U8: a shape without data. Of outputs REAL or BF16 */
    int32_t ndim;
    int64_t dims[APUS_MAX_DIMS];
    double *real; /* each a float's value */
    void *raw;
} operand;

typedef struct call {
    const char *op, *then;
    double attrs[APUS_MAX_ATTRS];
    operand in[8], out[3];
    uint32_t n_in, n_out;
    int skip;                                         /* bit k: nobody needs out[k] */
    int in_place;                                     /* out[0] is in[0] */
    uint8_t prologue, prologue_inputs, prologue_kept; /* as apus_kernel_call has them */
    const double *bound[3];                           /* by output: how far each element may be off, where no tolerance says it */
} call;

enum { ISAS = 3 };

static const char *const bench_names[ISAS] = {"portable", "avx2", "avx512"}; /* those this machine has come first */
static void *bench_cpu[ISAS], *bench_one[ISAS], *bench_ref;                  /* per instruction set: three threads, and one */
static void *brief_cpu[ISAS], *brief_one[ISAS];                              /* the same with products in bfloat16 */
static int bench_isas;
static uint64_t bench_seed = 1;

static inline double bench_random(double low, double high)
{
    bench_seed = bench_seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(float)(low + (high - low) * (double)(bench_seed >> 33) / 2147483648.0);
}

static inline const apus_backend_ops *bench_backend(const char *name)
{
    apus_error err = {0};
    const apus_component *c = apus_component_find("backend", name, &err);
    assert_non_null(c);
    return c->ops;
}

/* The kernel of a backend for op (then: what follows it), or NULL. */
static inline const apus_kernel *bench_kernel(const char *backend, const char *op, const char *then)
{
    char name[64], after[64];
    snprintf(name, sizeof name, "apus.%s/1", op);
    snprintf(after, sizeof after, "apus.%s/1", then != NULL ? then : "");
    for (size_t i = 0; i < apus_component_count("kernels"); i++) {
        const apus_kernels_ops *t = apus_component_at("kernels", i)->ops;
        for (uint32_t k = 0; strcmp(t->backend, backend) == 0 && k < t->n_kernels; k++) {
            const apus_kernel *found = &t->kernels[k];
            if (strcmp(found->op, name) == 0 && (then == NULL) == (found->then == NULL) && (then == NULL || strcmp(found->then, after) == 0))
                return found;
        }
    }
    return NULL;
}

static inline void *bench_instance(const char *backend, const char *isa, int threads, const char *dtype, const char *activations)
{
    const apus_node_api *node = apus_host_table()->node;
    apus_node *params = node->make_map();
    void *instance = NULL;
    apus_error err = {0};
    assert_int_equal(node->set(params, "threads", node->make_int(threads)), APUS_OK);
    assert_int_equal(node->set(params, "dtype", node->make_string(dtype, (size_t)-1)), APUS_OK);
    assert_int_equal(node->set(params, "activations", node->make_string(activations, (size_t)-1)), APUS_OK);
    assert_int_equal(setenv("APUS_CPU_ISA", isa, 1), 0);
    const apus_status st = bench_backend(backend)->open(apus_host_table(), params, &instance, &err);
    assert_int_equal(unsetenv("APUS_CPU_ISA"), 0);
    node->release(params);
    return st == APUS_OK ? instance : NULL;
}

static inline int bench_open(void)
{
    static const char *const files[] = {APUS_TEST_PLUGINS "/apus_backend_cpu.so", APUS_TEST_PLUGINS "/apus_backend_ref.so"};
    apus_error err = {0};
    for (int i = 0; i < 2; i++)
        if (apus_module_load_file(files[i], &err) != APUS_OK)
            fail_msg("%s", err.message);
    bench_ref = bench_instance("ref", "", 1, "float32", "float");
    for (int i = 0; i < ISAS; i++) {
        bench_cpu[i] = bench_instance("cpu", bench_names[i], 3, "float32", "float");
        if (bench_cpu[i] == NULL) {
            print_message("skipped: %s, which this machine has not\n", bench_names[i]);
            break;
        }
        bench_one[i] = bench_instance("cpu", bench_names[i], 1, "float32", "float");
        brief_cpu[i] = bench_instance("cpu", bench_names[i], 3, "bfloat16", "float");
        brief_one[i] = bench_instance("cpu", bench_names[i], 1, "bfloat16", "float");
        bench_isas++;
    }
    return bench_ref == NULL || bench_isas == 0;
}

static inline int bench_close(void **state)
{
    (void)state;
    for (int i = 0; i < bench_isas; i++) {
        bench_backend("cpu")->close(bench_cpu[i]);
        bench_backend("cpu")->close(bench_one[i]);
        bench_backend("cpu")->close(brief_cpu[i]);
        bench_backend("cpu")->close(brief_one[i]);
    }
    bench_backend("ref")->close(bench_ref);
    return 0;
}

/* ---------------------------------------------------------------- describing a call */

static inline call call_of(const char *op, const double *attrs, int n)
{
    call c = {.op = op};
    for (int i = 0; i < n; i++)
        c.attrs[i] = attrs[i];
    return c;
}

static inline int64_t operand_count(const operand *o)
{
    int64_t n = 1;
    for (int32_t d = 0; d < o->ndim; d++)
        n *= o->dims[d];
    return n;
}

static inline operand *next_input(call *c, apus_dtype dtype, int32_t ndim, const int64_t *dims)
{
    operand *o = &c->in[c->n_in++];
    *o = (operand){.dtype = dtype, .ndim = ndim};
    memcpy(o->dims, dims, (size_t)ndim * sizeof *dims);
    return o;
}

static inline void input_real(call *c, double low, double high, int32_t ndim, const int64_t *dims)
{
    operand *o = next_input(c, APUS_REAL, ndim, dims);
    o->real = malloc((size_t)operand_count(o) * sizeof(double) + 1);
    for (int64_t i = 0; i < operand_count(o); i++)
        o->real[i] = bench_random(low, high);
}

/* Values rounded to float32. */
static inline void input_copy(call *c, const double *values, int32_t ndim, const int64_t *dims)
{
    operand *o = next_input(c, APUS_REAL, ndim, dims);
    o->real = malloc((size_t)operand_count(o) * sizeof(double) + 1);
    for (int64_t i = 0; i < operand_count(o); i++)
        o->real[i] = (double)(float)values[i];
}

static inline void input_shape(call *c, int32_t ndim, const int64_t *dims)
{
    (void)next_input(c, APUS_U8, ndim, dims);
}

static inline void input_int(call *c, int32_t ndim, const int64_t *dims, const int32_t *values)
{
    operand *o = next_input(c, APUS_I32, ndim, dims);
    o->raw = malloc((size_t)operand_count(o) * 4 + 1);
    memcpy(o->raw, values, (size_t)operand_count(o) * 4);
}

static inline void input_index(call *c, int64_t limit, int32_t ndim, const int64_t *dims)
{
    operand *o = next_input(c, APUS_I32, ndim, dims);
    o->raw = malloc((size_t)operand_count(o) * 4 + 1);
    for (int64_t i = 0; i < operand_count(o); i++)
        ((int32_t *)o->raw)[i] = (int32_t)bench_random(0, (double)limit - 0.01);
}

/* n different places below limit. */
static inline void input_places(call *c, int64_t limit, int64_t n)
{
    operand *o = next_input(c, APUS_I32, 1, &n);
    o->raw = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++)
        ((int32_t *)o->raw)[i] = (int32_t)((i * 7 + 3) % limit);
}

static inline void input_long(call *c, int64_t n, int64_t step)
{
    operand *o = next_input(c, APUS_I64, 1, &n);
    o->raw = malloc((size_t)n * 8);
    for (int64_t i = 0; i < n; i++)
        ((int64_t *)o->raw)[i] = i * step + 5;
}

/* A weight [rows, columns] in any encoding: random bytes, with scales that are finite. */
static inline void input_encoded(call *c, apus_dtype t, int64_t rows, int64_t columns)
{
    if (t == APUS_F32) {
        input_real(c, -1, 1, 2, (int64_t[]){rows, columns});
        return;
    }
    operand *o = next_input(c, t, 2, (int64_t[]){rows, columns});
    int64_t elements;
    const size_t size = apus_block_layout(t, &elements), n = (size_t)(rows * columns / elements);
    uint8_t *p = malloc(n * size);
    for (size_t i = 0; i < n * size; i++)
        p[i] = (uint8_t)bench_random(0, 255.9);
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = apus_f32_to_f16((float)bench_random(0.001, 0.01)), brain = apus_f32_to_bf16((float)bench_random(-1, 1));
        const size_t at = t == APUS_Q2_K ? 80 : t == APUS_Q3_K ? 108 : t == APUS_Q6_K ? 208 : 0;
        const int two = t == APUS_Q4_1 || t == APUS_Q5_1 || t == APUS_Q2_K || t == APUS_Q4_K || t == APUS_Q5_K;
        memcpy(p + i * size + at, t == APUS_BF16 ? &brain : &half, 2);
        if (two)
            memcpy(p + i * size + at + 2, &half, 2);
    }
    o->raw = p;
}

static inline void output(call *c, int32_t ndim, const int64_t *dims)
{
    operand *o = &c->out[c->n_out++];
    *o = (operand){.ndim = ndim};
    memcpy(o->dims, dims, (size_t)ndim * sizeof *dims);
}

static inline void call_free(call *c)
{
    for (uint32_t k = 0; k < c->n_in; k++) {
        free(c->in[k].real);
        free(c->in[k].raw);
    }
}

/* ---------------------------------------------------------------- running it */

enum { FENCE = 256 };

/* Run on one backend in float or double: outputs[k] (owner: caller) holds floats or doubles. start: what outputs hold before. */
static inline apus_status bench_run(const call *c, const char *backend, const char *then, void *instance, size_t real, uint32_t accumulate,
                                    double *const *start, void **outputs, apus_error *err)
{
    const apus_kernel *kernel = bench_kernel(backend, c->op, then);
    if (kernel == NULL)
        fail_msg("%s has no kernel for %s", backend, c->op);
    apus_view views[11];
    void *owned[8] = {0};
    for (uint32_t k = 0; k < c->n_in + c->n_out; k++) {
        const operand *o = k < c->n_in ? &c->in[k] : &c->out[k - c->n_in];
        const double *values = k < c->n_in ? o->real : start[k - c->n_in];
        const int64_t n = operand_count(o);
        apus_view *v = &views[k];
        *v = (apus_view){.dtype = o->dtype, .ndim = o->ndim, .data = o->raw};
        memcpy(v->dims, o->dims, sizeof v->dims);
        if (o->dtype == APUS_U8)
            v->dtype = real == 4 ? APUS_F32 : APUS_F64;
        if (k >= c->n_in && o->dtype == APUS_BF16)
            v->data = outputs[k - c->n_in] = malloc((size_t)n * 2 + 1);
        if (o->dtype != APUS_REAL)
            continue;
        v->dtype = real == 4 ? APUS_F32 : APUS_F64;
        v->data = malloc((size_t)n * real + 1);
        for (int64_t i = 0; i < n; i++) {
            if (real == 4)
                ((float *)v->data)[i] = (float)values[i];
            else
                ((double *)v->data)[i] = values[i];
        }
        if (k < c->n_in)
            owned[k] = v->data;
        else
            outputs[k - c->n_in] = v->data;
        if (k >= c->n_in && (c->skip >> (k - c->n_in) & 1) != 0)
            v->data = NULL;
    }
    if (c->in_place) {
        memcpy(outputs[0], views[0].data, (size_t)operand_count(&c->in[0]) * real);
        views[0].data = outputs[0];
    }
    apus_kernel_call k = {.in = views,
                          .out = views + c->n_in,
                          .attrs = c->attrs,
                          .backend = instance,
                          .n_in = c->n_in,
                          .n_out = c->n_out,
                          .accumulate = kernel->flags & APUS_KERNEL_ACCUMULATES ? accumulate : 0,
                          .prologue = c->prologue,
                          .prologue_inputs = c->prologue_inputs,
                          .prologue_kept = c->prologue_kept};
    const size_t bytes = kernel->scratch != NULL ? kernel->scratch(&k) : 0;
    uint8_t *memory = NULL;
    assert_int_equal(posix_memalign((void **)&memory, 64, bytes + FENCE), 0);
    memset(memory, 0xff, bytes + FENCE);
    k.scratch = memory;
    const apus_status st = kernel->run(&k, err);
    for (size_t i = 0; i < FENCE; i++)
        if (memory[bytes + i] != 0xff)
            fail_msg("%s on %s writes beyond its scratch", c->op, backend);
    free(memory);
    for (uint32_t i = 0; i < c->n_in; i++)
        free(owned[i]);
    return st;
}

/* Output k of ref, fresh. owner: caller */
static inline double *run_ref(const call *c, int k)
{
    double *start[3] = {0}, *out[3] = {0};
    apus_error err = {0};
    for (uint32_t i = 0; i < c->n_out; i++)
        start[i] = calloc((size_t)operand_count(&c->out[i]) + 1, sizeof(double));
    assert_int_equal(bench_run(c, "ref", NULL, bench_ref, 8, 0, start, (void **)out, &err), APUS_OK);
    for (uint32_t i = 0; i < c->n_out; i++) {
        free(start[i]);
        if ((int)i != k)
            free(out[i]);
    }
    return out[k];
}

static inline float *run_cpu(const call *c, void *instance, int k)
{
    double *start[3] = {0};
    float *out[3] = {0};
    apus_error err = {0};
    for (uint32_t i = 0; i < c->n_out; i++)
        start[i] = calloc((size_t)operand_count(&c->out[i]) + 1, sizeof(double));
    if (bench_run(c, "cpu", c->then, instance, 4, 0, start, (void **)out, &err) != APUS_OK)
        fail_msg("%s: %s", c->op, err.message);
    for (uint32_t i = 0; i < c->n_out; i++) {
        free(start[i]);
        if ((int)i != k)
            free(out[i]);
    }
    return out[k];
}

/* cpu against ref, fresh and accumulating, on every instruction set; and twice for equal bits. An element may be off by
 * tolerance times (its size + the output's root mean square + what was there). */
static inline void compare_on(const call *c, double tolerance, void *const *many, void *const *one)
{
    double *start[3] = {0};
    for (uint32_t k = 0; k < c->n_out; k++) {
        const int64_t n = operand_count(&c->out[k]);
        start[k] = malloc((size_t)n * sizeof(double) + 1);
        for (int64_t i = 0; i < n; i++)
            start[k][i] = bench_random(-1, 1);
    }
    for (uint32_t accumulate = 0; accumulate < 2; accumulate++) {
        double *want[3] = {0};
        apus_error err = {0};
        const uint32_t bits = accumulate ? (1u << c->n_out) - 1 : 0;
        const apus_kernel *kernel = bench_kernel("cpu", c->op, c->then);
        if (kernel == NULL)
            fail_msg("cpu has no kernel for %s", c->op);
        if (accumulate && (kernel->flags & APUS_KERNEL_ACCUMULATES) == 0)
            break;
        call alone = *c;
        alone.n_in -= c->then != NULL;
        assert_int_equal(bench_run(&alone, "ref", NULL, bench_ref, 8, bits, start, (void **)want, &err), APUS_OK);
        const int adds = (bench_kernel("ref", c->op, NULL)->flags & APUS_KERNEL_ACCUMULATES) != 0;
        for (uint32_t k = 0; k < c->n_out && accumulate && !adds; k++)
            for (int64_t i = 0; i < operand_count(&c->out[k]); i++)
                want[k][i] += start[k][i];
        for (int64_t i = 0; c->then != NULL && i < operand_count(&c->out[0]); i++)
            want[0][i] += c->in[c->n_in - 1].real[i];
        for (int run = 0; run < 3 * bench_isas; run++) {
            float *got[3] = {0}, *again[3] = {0};
            void *instance = run % 3 == 1 ? one[run / 3] : many[run / 3];
            if (bench_run(c, "cpu", c->then, instance, 4, bits, start, (void **)got, &err) != APUS_OK)
                fail_msg("%s: %s", c->op, err.message);
            assert_int_equal(bench_run(c, "cpu", c->then, instance, 4, bits, start, (void **)again, &err), APUS_OK);
            for (uint32_t k = 0; k < c->n_out; k++) {
                const int64_t n = operand_count(&c->out[k]);
                double square = 0;
                for (int64_t i = 0; i < n; i++)
                    square += want[k][i] * want[k][i];
                const double size = n > 0 ? sqrt(square / (double)n) : 0;
                for (int64_t i = 0; i < n && (c->skip >> k & 1) == 0; i++) {
                    const double relative = tolerance * (fabs(want[k][i]) + (tolerance > 0 ? size + (accumulate ? 1 : 0) : 0));
                    const double adding = accumulate ? 0x1p-22 * (fabs(want[k][i]) + 1) : 0; /* to what was there, up to four times */
                    const double allowed = (c->bound[k] != NULL ? c->bound[k][i] + adding : relative) + 1e-30;
                    if (!(fabs((double)got[k][i] - want[k][i]) <= allowed))
                        fail_msg("%s %s (in0 %lld x %lld): output %u, element %lld of %lld is %.9g, expected %.9g (run %d, accumulate %u)", c->op,
                                 c->then != NULL ? c->then : "", (long long)c->in[0].dims[0], (long long)c->in[0].dims[1], k, (long long)i,
                                 (long long)n, (double)got[k][i], want[k][i], run, accumulate);
                }
                if (memcmp(got[k], again[k], (size_t)n * 4) != 0)
                    fail_msg("%s: two runs differ", c->op);
            }
            for (uint32_t k = 0; k < c->n_out; k++) {
                free(got[k]);
                free(again[k]);
            }
        }
        for (uint32_t k = 0; k < c->n_out; k++)
            free(want[k]);
    }
    for (uint32_t k = 0; k < c->n_out; k++)
        free(start[k]);
}

static inline void compare(const call *c, double tolerance)
{
    compare_on(c, tolerance, bench_cpu, bench_one);
}

/* These inputs (bits) rounded to bfloat16; kept: what they were, for restore_inputs. */
static inline void round_inputs(call *c, uint32_t rounded, double **kept)
{
    for (uint32_t k = 0; k < c->n_in; k++) {
        const size_t n = (size_t)operand_count(&c->in[k]);
        kept[k] = NULL;
        if ((rounded >> k & 1) == 0)
            continue;
        kept[k] = malloc(n * sizeof(double) + 1);
        memcpy(kept[k], c->in[k].real, n * sizeof(double));
        for (size_t i = 0; i < n; i++)
            c->in[k].real[i] = (double)apus_bf16_to_f32(apus_f32_to_bf16((float)kept[k][i]));
    }
}

static inline void restore_inputs(call *c, double **kept)
{
    for (uint32_t k = 0; k < c->n_in; k++) {
        if (kept[k] != NULL)
            memcpy(c->in[k].real, kept[k], (size_t)operand_count(&c->in[k]) * sizeof(double));
        free(kept[k]);
    }
}

/* Products in bfloat16 round these inputs (bits) themselves, and in the same way. */
static inline void rounds_itself(call *c, uint32_t rounded)
{
    for (int isa = 0; isa < bench_isas; isa++) {
        double *kept[8];
        float *got = run_cpu(c, brief_cpu[isa], 0);
        round_inputs(c, rounded, kept);
        float *want = run_cpu(c, brief_cpu[isa], 0);
        restore_inputs(c, kept);
        assert_memory_equal(got, want, (size_t)operand_count(&c->out[0]) * 4);
        free(got);
        free(want);
    }
}

/* With products in bfloat16, against ref with these inputs (bits) rounded to it; their values stay as they were. */
static inline void compare_brief(call *c, uint32_t rounded, double tolerance)
{
    double *kept[8];
    round_inputs(c, rounded, kept);
    compare_on(c, tolerance, brief_cpu, brief_one);
    restore_inputs(c, kept);
    rounds_itself(c, rounded);
}

/* The values of an encoded W. owner: caller */
static inline double *decode_weight(const operand *w)
{
    const int64_t n = w->dims[0], k = w->dims[1];
    float *row = malloc((size_t)k * sizeof *row);
    double *values = malloc((size_t)(n * k) * sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        (void)apus_row_to_f32(w->dtype, (char *)w->raw + (size_t)i * apus_row_bytes(w->dtype, k), row, k);
        for (int64_t j = 0; j < k; j++)
            values[i * k + j] = (double)row[j];
    }
    free(row);
    return values;
}

/* The same call with operand `at`, a weight, as linear's kernel packs it for this instance. owner: caller frees in[at].raw */
static inline call packed(const call *c, uint32_t at, void *instance)
{
    call to = *c;
    operand *w = &to.in[at];
    const int64_t n = w->dims[0], k = w->dims[1];
    apus_view v = {.data = w->raw, .dtype = w->dtype == APUS_REAL ? APUS_F32 : w->dtype, .ndim = 2, .dims = {n, k}};
    float *values = NULL;
    if (w->dtype == APUS_REAL) {
        v.data = values = malloc((size_t)(n * k) * sizeof *values);
        for (int64_t i = 0; i < n * k; i++)
            values[i] = (float)w->real[i];
    }
    const apus_kernel *kernel = bench_kernel("cpu", "linear", NULL);
    const size_t bytes = kernel->pack(instance, &v, &w->dtype, NULL);
    assert_true(bytes >= (size_t)(n * k) / 2);
    assert_int_equal(posix_memalign(&w->raw, 64, bytes + 64), 0);
    memset(w->raw, 0, bytes);
    memset((char *)w->raw + bytes, 0xff, 64); /* NaN, if it were read as numbers */
    assert_int_equal(kernel->pack(instance, &v, &w->dtype, w->raw), bytes);
    for (int i = 0; i < 64; i++)
        assert_int_equal(((uint8_t *)w->raw)[bytes + (size_t)i], 0xff);
    free(values);
    return to;
}

static inline void same_packed(const call *c, uint32_t at, void *instance, const char *isa)
{
    call its = packed(c, at, instance);
    for (uint32_t k = 0; k < c->n_out; k++) {
        float *want = run_cpu(c, instance, (int)k), *got = run_cpu(&its, instance, (int)k);
        if (memcmp(want, got, (size_t)operand_count(&c->out[k]) * 4) != 0)
            fail_msg("%s on %s: %lld x %lld packed gives other bits in output %u", c->op, isa, (long long)c->in[at].dims[0],
                     (long long)c->in[at].dims[1], k);
        free(want);
        free(got);
    }
    free(its.in[at].raw);
}

/* y [m, n] of x and a W stored in `type`; with a bias, and with what is added, on request. */
static inline call linear_call(apus_dtype type, int64_t m, int64_t n, int64_t k, int bias, int fused)
{
    call c = call_of("linear", NULL, 0);
    c.then = fused ? "add" : NULL;
    input_real(&c, -1, 1, 2, (int64_t[]){m, k});
    input_encoded(&c, type, n, k);
    if (bias)
        input_real(&c, -1, 1, 1, &n);
    if (fused)
        input_real(&c, -1, 1, 2, (int64_t[]){m, n});
    output(&c, 2, (int64_t[]){m, n});
    return c;
}

/* The last 1 … 40 rows of a linear by themselves have the bits they have in `whole`, on `many` threads and on one. */
static inline void same_alone(const call *c, const float *whole, void *many, void *one, const char *isa)
{
    const int64_t all = c->in[0].dims[0], n = c->out[0].dims[1];
    for (int64_t m = 1; m <= 40; m++) {
        call part = *c;
        part.in[0].real += (all - m) * c->in[0].dims[1];
        part.in[0].dims[0] = part.out[0].dims[0] = m;
        float *some = run_cpu(&part, m % 2 == 0 ? many : one, 0);
        if (memcmp(some, whole + (all - m) * n, (size_t)(m * n) * 4) != 0)
            fail_msg("%s, W in type %d: %lld rows have other bits than in company", isa, (int)c->in[1].dtype, (long long)m);
        free(some);
    }
}

/* All that may read one packed weight. linear's operands are sum's too, dx's are dx_sum's. */
typedef struct weight_readers {
    call linear, sum, rows, dx, dx_sum;
} weight_readers;

static inline weight_readers readers_of(apus_dtype type, int64_t m, int64_t n, int64_t k)
{
    weight_readers r = {.linear = linear_call(type, m, n, k, 1, 0), .rows = call_of("embedding", NULL, 0), .dx = call_of("linear_dx", NULL, 0)};
    r.sum = r.linear;
    r.sum.then = "add";
    input_real(&r.sum, -1, 1, 2, (int64_t[]){m, n});
    input_encoded(&r.rows, type, n, k);
    input_index(&r.rows, n, 1, &m);
    output(&r.rows, 2, (int64_t[]){m, k});
    input_real(&r.dx, -1, 1, 2, (int64_t[]){m, n});
    input_encoded(&r.dx, type, n, k);
    output(&r.dx, 2, (int64_t[]){m, k});
    r.dx_sum = r.dx;
    r.dx_sum.then = "add";
    input_real(&r.dx_sum, -1, 1, 2, (int64_t[]){m, k});
    return r;
}

static inline void readers_free(weight_readers *r)
{
    call_free(&r->sum);
    call_free(&r->rows);
    call_free(&r->dx_sum);
}

/* The call fails with a message that has `text` in it. */
static inline void expect_refused(const call *c, const char *text)
{
    double *start[3] = {0};
    float *out[3] = {0};
    for (uint32_t i = 0; i < c->n_out; i++)
        start[i] = calloc((size_t)operand_count(&c->out[i]) + 1, sizeof(double));
    for (int isa = 0; isa < bench_isas; isa++) {
        apus_error err = {.message = ""};
        assert_int_not_equal(bench_run(c, "cpu", c->then, bench_cpu[isa], 4, 0, start, (void **)out, &err), APUS_OK);
        if (strstr(err.message, text) == NULL)
            fail_msg("%s says '%s', expected '%s'", c->op, err.message, text);
        for (uint32_t i = 0; i < c->n_out; i++)
            free(out[i]);
    }
    for (uint32_t i = 0; i < c->n_out; i++)
        free(start[i]);
}

#endif
