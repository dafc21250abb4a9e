/*
 * tests/plugins/format/models: what the tests of formats share: plugins loaded as the host loads them, the weights that
 * an architecture asks for, an export that reads from an open file.
 */
#ifndef APUS_TEST_MODELS_H
#define APUS_TEST_MODELS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <apus/blocks.h>
#include <apus/model.h>

#include "graph/graph.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()

static inline void load_plugin(const char *name)
{
    char path[1024];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/apus_%s.so", APUS_TEST_PLUGINS, name);
    if (apus_module_load_file(path, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

static inline apus_format_ops format(const char *name)
{
    apus_error err = {0};
    apus_format_ops ops;
    const apus_component *c = apus_component_find("format", name, &err);
    assert_non_null(c);
    apus_take(&ops, sizeof ops, c->ops);
    return ops;
}

static inline void *open_file(const apus_format_ops *ops, const char *path)
{
    apus_error err = {0};
    void *file = NULL;
    if (ops->open(apus_host_table(), NULL, path, &file, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return file;
}

static inline apus_model_card card_of(const apus_format_ops *ops, void *file)
{
    apus_error err = {0};
    apus_model_card card = {.size = sizeof card};
    if (ops->card(file, &card, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return card;
}

/* The architecture that claims a configuration, opened. */
static inline void *open_arch(const apus_node *config, apus_arch_ops *ops, apus_error *err)
{
    void *arch = NULL;
    for (size_t i = 0; i < apus_component_count("arch"); i++) {
        apus_take(ops, sizeof *ops, apus_component_at("arch", i)->ops);
        if (ops->claims(config) > 0)
            return ops->open(apus_host_table(), NULL, config, &arch, err) == APUS_OK ? arch : NULL;
    }
    apus_fail(err, APUS_E_NOT_FOUND, "no architecture claims it");
    return NULL;
}

/* The graph of a configuration's forward pass. */
static inline apus_graph *build_graph(const apus_arch_ops *ops, void *arch, apus_model_outputs *out)
{
    apus_error err = {0};
    apus_graph *g = apus_graph_new(NULL);
    const apus_graph_api *api = apus_graph_table();
    const int64_t tokens = APUS_DIM_TOKENS;
    const apus_model_inputs in = {.size = sizeof in,
                                  .tokens = api->input(g, "tokens", APUS_I32, 1, &tokens),
                                  .positions = api->input(g, "positions", APUS_I32, 1, &tokens),
                                  .lengths = api->input(g, "lengths", APUS_I32, 1, &tokens)};
    *out = (apus_model_outputs){.size = sizeof *out};
    ops->build(arch, g, &in, out);
    (void)api->weight(g, &out->head);
    if (apus_graph_status(g, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return g;
}

/* Values of a weight as float32 in the order of its specification; owner: caller. */
static inline float *weight_values(const apus_format_ops *ops, void *file, const apus_weight_spec *w)
{
    apus_error err = {0};
    apus_tensor_info t = {.size = sizeof t};
    if (ops->find(file, w, &t, &err) != APUS_OK)
        fail_msg("%s", err.message);
    const int64_t columns = t.dims[t.ndim - 1], rows = t.ndim > 1 ? t.dims[0] : 1;
    float *x = malloc((size_t)(rows * columns) * sizeof *x), *y = malloc((size_t)(rows * columns) * sizeof *y);
    const size_t bytes = apus_row_bytes(t.dtype, columns);
    for (int64_t r = 0; r < rows; r++)
        assert_true(apus_row_to_f32(t.dtype, (const char *)t.data + (size_t)r * bytes, x + r * columns, columns));
    assert_int_equal(rows * columns, w->dims[0] * (w->ndim > 1 ? w->dims[1] : 1));
    if (!t.transposed) {
        free(y);
        return x;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            y[c * rows + r] = x[r * columns + c];
    free(x);
    return y;
}

/* A model read from an open file, to be written by another format. */
typedef struct source {
    float **values;
    apus_weight_spec *specs;
    size_t n;
    apus_graph *graph;
    apus_model_card card;
} source;

static inline apus_status source_read(void *context, size_t weight, int64_t row, int64_t rows, float *dst, apus_error *err)
{
    const source *s = context;
    const int64_t columns = s->specs[weight].ndim > 1 ? s->specs[weight].dims[1] : 1;
    (void)err;
    memcpy(dst, s->values[weight] + row * columns, (size_t)(rows * columns) * sizeof *dst);
    return APUS_OK;
}

static inline source source_open(const apus_format_ops *ops, void *file)
{
    apus_error err = {0};
    apus_arch_ops arch_ops;
    apus_model_outputs out;
    source s = {.card = card_of(ops, file)};
    void *arch = open_arch(s.card.config, &arch_ops, &err);
    if (arch == NULL)
        fail_msg("%s", err.message);
    s.graph = build_graph(&arch_ops, arch, &out);
    arch_ops.close(arch);
    s.n = apus_graph_weight_count(s.graph);
    s.specs = calloc(s.n, sizeof *s.specs);
    s.values = calloc(s.n, sizeof *s.values);
    for (size_t i = 0; i < s.n; i++) {
        s.specs[i] = *apus_graph_weight_at(s.graph, i);
        s.values[i] = weight_values(ops, file, &s.specs[i]);
    }
    return s;
}

static inline void source_close(source *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->values[i]);
    free(s->values);
    free(s->specs);
    apus_graph_free(s->graph);
}

static inline apus_model_export source_export(source *s, apus_dtype dtype)
{
    return (apus_model_export){.size = sizeof(apus_model_export),
                               .card = &s->card,
                               .weights = s->specs,
                               .n_weights = s->n,
                               .read = source_read,
                               .context = s,
                               .dtype = dtype};
}

/* A fresh path under the tests' folder. */
static inline const char *fresh(char *buffer, size_t capacity, const char *name)
{
    apus_error err = {0};
    snprintf(buffer, capacity, "%s/%s", APUS_TEST_TMP, name);
    if (apus_remove_tree(buffer, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return buffer;
}

static inline void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void write_text_in(const char *folder, const char *name, const char *text)
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    write_bytes(path, text, strlen(text));
}

/* Opening must fail with this status and a message that holds `part`. */
static inline void assert_refused(const apus_format_ops *ops, const char *path, apus_status status, const char *part)
{
    apus_error err = {0};
    void *file = NULL;
    const apus_status st = ops->open(apus_host_table(), NULL, path, &file, &err);
    if (st == APUS_OK)
        fail_msg("%s: opened, expected '%s'", path, part);
    if (strstr(err.message, part) == NULL || strchr(err.message, '\n') != NULL)
        fail_msg("expected '%s', got '%s'", part, err.message);
    assert_int_equal(st, status);
    assert_null(file);
}

/* Skips the test, by name, where the file is missing. */
static inline const char *shared_data(const char *test, char *buffer, size_t capacity, const char *name)
{
    snprintf(buffer, capacity, "%s/%s", APUS_TEST_DATA, name);
    if (access(buffer, R_OK) != 0) {
        print_message("skipped: %s: %s is missing\n", test, buffer);
        skip();
    }
    return buffer;
}

#endif
