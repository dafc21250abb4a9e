/* What the tests of core/model share: all plugins loaded, devices, models opened by path, golden tensors and JSON. */
#ifndef APUS_TEST_BENCH_H
#define APUS_TEST_BENCH_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/io.h"
#include "model/internal.h"
#include "run/run.h"

#define NODE apus_nodes()
#define HOST apus_host_table()
#define OK(x)                                                                                                                                        \
    do {                                                                                                                                             \
        if ((x) != APUS_OK)                                                                                                                          \
            fail_msg("%s: %s", #x, err.message);                                                                                                     \
    } while (0)

static inline void bench_start(void)
{
    static const char *const folders[] = {APUS_TEST_PLUGINS};
    apus_error err = {0};
    OK(apus_start(folders, 1, &err));
}

static inline apus_node *bench_parse(const char *json)
{
    apus_error err = {0};
    apus_node *n = NODE->parse_json(json, strlen(json), "test", &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    return n;
}

static inline apus_device *bench_device(const char *json)
{
    apus_error err = {0};
    apus_node *spec = bench_parse(json);
    apus_device *d = NULL;
    if (apus_device_open(spec, &d, &err) != APUS_OK)
        fail_msg("%s", err.message);
    NODE->release(spec);
    return d;
}

static inline double number(const apus_node *map, const char *key)
{
    const apus_node *n = NODE->get(map, key);
    assert_true(NODE->kind(n) == APUS_NODE_FLOAT || NODE->kind(n) == APUS_NODE_INT);
    return NODE->as_float(n, NAN);
}

/* Numbers of a list; owner: caller. */
static inline double *numbers(const apus_node *list, size_t *n)
{
    *n = NODE->length(list);
    assert_true(*n > 0);
    double *x = malloc(*n * sizeof *x);
    for (size_t i = 0; i < *n; i++)
        x[i] = NODE->as_float(NODE->at(list, i), NAN);
    return x;
}

static inline apus_model *bench_model(const char *json, const apus_model_options *options)
{
    apus_error err = {0};
    apus_node *spec = bench_parse(json);
    apus_model *m;
    OK(apus_model_open(spec, options, &m, &err));
    NODE->release(spec);
    return m;
}

/* A device's memory of reals as doubles, and back. n: at most 1 << 20 */
static inline void bench_read(apus_device *d, const void *device, double *x, size_t n)
{
    apus_error err = {0};
    if (apus_device_real(d) == APUS_F64) {
        OK(apus_device_download(d, x, device, n * sizeof *x, &err));
        return;
    }
    float *f = malloc(n * sizeof *f);
    OK(apus_device_download(d, f, device, n * sizeof *f, &err));
    for (size_t i = 0; i < n; i++)
        x[i] = (double)f[i];
    free(f);
}

static inline void bench_write(apus_device *d, void *device, const double *x, size_t n)
{
    apus_error err = {0};
    if (apus_device_real(d) == APUS_F64) {
        OK(apus_device_upload(d, device, x, n * sizeof *x, &err));
        return;
    }
    float *f = malloc(n * sizeof *f);
    for (size_t i = 0; i < n; i++)
        f[i] = (float)x[i];
    OK(apus_device_upload(d, device, f, n * sizeof *f, &err));
    free(f);
}

/* A tensor of an open golden.safetensors, by its exact name; NULL data: there is none. */
static inline apus_tensor_info bench_tensor(const apus_format_file *golden, const char *name)
{
    apus_error err = {0};
    apus_tensor_info t = {.size = sizeof t};
    const apus_weight_spec w = {.size = sizeof w, .name = name};
    if (golden->ops.find(golden->file, &w, &t, &err) != APUS_OK)
        t.data = NULL;
    return t;
}

static inline apus_format_file bench_golden(const char *file)
{
    char path[1024];
    apus_error err = {0};
    apus_format_file f;
    snprintf(path, sizeof path, "%s/%s", APUS_TEST_GOLDEN, file);
    OK(apus_format_open(path, &f, &err));
    return f;
}

#endif
