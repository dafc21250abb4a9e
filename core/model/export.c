/* core/model/export.c: see export.h. */
#include "model/export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io.h"
#include "model/internal.h"

#define NODE apus_nodes()

typedef struct export_source {
    apus_model *model;
    const size_t *index; /* export weight -> model weight */
    int merge;
} export_source;

static apus_status read_rows(void *context, size_t weight, int64_t row, int64_t rows, float *dst, apus_error *err)
{
    const export_source *s = context;
    return apus_model_read(s->model, s->index[weight], s->merge, row, rows, dst, err);
}

/* The element type the base's matrices are stored in; F32 when they are quantised or made here. */
static apus_dtype stored_dtype(apus_model *m)
{
    if (m->format.file == NULL)
        return APUS_F32;
    for (uint64_t i = 0; i < m->format.ops.count(m->format.file); i++) {
        apus_tensor_info t = {.size = sizeof t};
        if (m->format.ops.tensor(m->format.file, i, &t, NULL) == APUS_OK && t.ndim == 2)
            return t.dtype == APUS_F16 || t.dtype == APUS_BF16 ? t.dtype : APUS_F32;
    }
    return APUS_F32;
}

static void marker_path(const char *path, char *marker, size_t capacity)
{
    snprintf(marker, capacity, apus_path_is_dir(path) ? "%s/apus.json" : "%s.apus.json", path);
}

static int empty_folder(const char *path)
{
    return apus_path_is_dir(path) && rmdir(path) == 0; /* rmdir takes only empty ones */
}

/* What stands at path must be ours, or nothing. */
static apus_status clear_way(const char *path, int replace, apus_error *err)
{
    char marker[4200];
    if (!apus_path_exists(path) || empty_folder(path))
        return APUS_OK;
    marker_path(path, marker, sizeof marker);
    if (!replace && !apus_path_exists(marker)) {
        apus_fail(err, APUS_E_INVALID, "%s: exists and was not written by apus", path);
        return apus_hint(err, APUS_E_INVALID, "name another path, or remove it yourself");
    }
    return APUS_OK;
}

static apus_status write_marker(apus_model *m, const char *path, apus_error *err)
{
    char marker[4200];
    marker_path(path, marker, sizeof marker);
    apus_node *note = NODE->make_map();
    (void)NODE->set(note, "made_by", NODE->make_string("apus " APUS_VERSION, (size_t)-1));
    (void)NODE->set(note, "model", NODE->copy(m->spec));
    char *text = NODE->write_json(note, APUS_JSON_INDENT, NULL);
    NODE->release(note);
    apus_status st = text != NULL ? apus_file_write(marker, text, strlen(text), err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_host_table()->free(text);
    return st;
}

/* The folder or file at aside takes path's place. */
static apus_status move_in(const char *aside, const char *path, apus_error *err)
{
    char marker[4200];
    marker_path(path, marker, sizeof marker);
    apus_status st = apus_remove_tree(path, err);
    if (st == APUS_OK && apus_path_exists(marker))
        st = apus_remove_tree(marker, err);
    if (st == APUS_OK && rename(aside, path) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    return st;
}

static apus_node *adapter_config(apus_model *m)
{
    apus_node *config = NODE->copy(m->tuner_config);
    const char *base = NODE->as_string(m->spec, NULL);
    if (base == NULL)
        base = NODE->as_string(NODE->get(m->spec, "path"), NULL);
    (void)NODE->set(config, "base_model_name_or_path", base != NULL ? NODE->make_string(base, (size_t)-1) : NODE->make_null());
    return config;
}

static const char *dtype_name(apus_dtype t)
{
    return t == APUS_F16 ? "float16" : t == APUS_BF16 ? "bfloat16" : "float32";
}

static apus_status write_files(apus_model *m, const apus_write_options *o, const char *aside, apus_error *err)
{
    const apus_component *c = apus_component_find("format", o->format, err);
    if (c == NULL)
        return APUS_E_NOT_FOUND;
    apus_format_ops ops;
    apus_take(&ops, sizeof ops, c->ops);
    if (ops.write == NULL)
        return apus_fail(err, APUS_E_UNSUPPORTED, "format %s cannot be written", o->format);
    apus_weight_spec *specs = calloc(m->n_weights + 1, sizeof *specs);
    size_t *index = calloc(m->n_weights + 1, sizeof *index);
    apus_node *params = apus_params_validate(NULL, c->params, c->n_params, "", c->name, err);
    if (specs == NULL || index == NULL || params == NULL) {
        free(specs);
        free(index);
        NODE->release(params);
        return params == NULL ? APUS_E_INVALID : apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    size_t n = 0;
    for (size_t i = 0; i < m->n_weights; i++)
        if (m->weights[i].of_tuner == (o->adapter != 0)) {
            index[n] = i;
            specs[n++] = m->weights[i].spec;
        }
    apus_model_card card = m->format.card;
    const apus_dtype dtype = o->dtype != APUS_REAL ? o->dtype : stored_dtype(m);
    apus_node *config = o->adapter ? adapter_config(m) : NODE->copy(m->config);
    if (!o->adapter) {
        (void)NODE->remove(config, "dtype");
        (void)NODE->remove(config, "quantization_config"); /* what is written is not quantised that way any more */
        (void)NODE->set(config, "torch_dtype", NODE->make_string(dtype_name(dtype), (size_t)-1));
    }
    card.config = config;
    if (m->text != NULL) {
        card.chat_template = apus_text_template(m->text);
        card.tokenizer = apus_text_tokenizer(m->text);
    }
    export_source source = {.model = m, .index = index, .merge = !o->adapter};
    const apus_model_export export = {.size = sizeof export,
                                      .card = &card,
                                      .weights = specs,
                                      .n_weights = n,
                                      .read = read_rows,
                                      .context = &source,
                                      .dtype = o->adapter ? APUS_F32 : dtype};
    apus_model_forget_values(m);
    apus_status st = ops.write(apus_host_table(), params, aside, &export, err);
    NODE->release(config);
    NODE->release(params);
    free(specs);
    free(index);
    return st;
}

apus_status apus_model_write(apus_model *m, const apus_write_options *o, apus_error *err)
{
    char aside[4200], parent[4200];
    if (o->adapter && m->tuner_config == NULL) {
        apus_fail(err, APUS_E_INVALID, "there is no adapter to write: the model itself was trained");
        return apus_hint(err, APUS_E_INVALID, "write the whole model: merge: true");
    }
    apus_status st = clear_way(o->path, o->replace, err);
    if (st != APUS_OK)
        return st;
    snprintf(parent, sizeof parent, "%s", o->path);
    char *slash = strrchr(parent, '/');
    if (slash != NULL && slash != parent) {
        *slash = '\0';
        st = apus_mkdirs(parent, err);
    }
    snprintf(aside, sizeof aside, "%s.tmp-%ld", o->path, (long)getpid());
    if (st == APUS_OK)
        st = apus_remove_tree(aside, err);
    if (st == APUS_OK)
        st = write_files(m, o, aside, err);
    if (st == APUS_OK)
        st = move_in(aside, o->path, err);
    else
        (void)apus_remove_tree(aside, NULL);
    return st == APUS_OK ? write_marker(m, o->path, err) : st;
}

/* ---------------------------------------------------------------- the stage */

apus_status apus_export_stage(apus_stage_context *s, const apus_node *params, apus_error *err)
{
    const char *format = NODE->as_string(NODE->get(params, "format"), NULL), *path = NODE->as_string(NODE->get(params, "path"), NULL);
    const char *type = NODE->as_string(NODE->get(params, "dtype"), NULL);
    const apus_node *spec = NODE->get(params, "model"), *adapter = NODE->get(spec, "adapter");
    const int merge = NODE->as_bool(NODE->get(params, "merge"), 1);
    const int alone = !merge && NODE->kind(adapter) != APUS_NODE_NULL; /* the adapter as it is, over its base */
    const apus_model_options options = {
        .device = s->device, .now = s->now, .seed = s->seed, .template_file = NODE->as_string(NODE->get(params, "template"), NULL)};
    apus_model *m;
    apus_status st = apus_model_open(alone ? NODE->get(spec, "base") : spec, &options, &m, err);
    if (st != APUS_OK)
        return st;
    st = alone ? apus_model_adapt(m, NODE->as_string(adapter, NULL), err) : APUS_OK;
    const apus_dtype dtype = type != NULL ? apus_dtype_parse(type) : APUS_REAL;
    if (st == APUS_OK && dtype < 0) {
        st = apus_fail(err, APUS_E_INVALID, "dtype '%s' is not one that can be written", type);
        apus_hint(err, st, "float32, float16, bfloat16, q8_0 or q4_0");
    }
    const apus_write_options write = {.format = format, .path = path, .adapter = alone, .dtype = dtype};
    if (st == APUS_OK)
        st = apus_model_write(m, &write, err);
    if (st == APUS_OK) {
        apus_node *result = NODE->make_map(), *model = NODE->make_map();
        if (alone)
            (void)NODE->set(model, "base", NODE->copy(NODE->get(spec, "base")));
        (void)NODE->set(model, alone ? "adapter" : "path", NODE->make_string(path, (size_t)-1));
        (void)NODE->set(result, "model", model);
        NODE->release(s->result);
        s->result = result;
    }
    apus_model_close(m);
    return st;
}
