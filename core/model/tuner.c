/* core/model/tuner.c: what is trained: attaching a tuner to a model, its parameters, adapters read from files, merging. */
#include <stdlib.h>
#include <string.h>

#include "io/io.h"
#include "model/internal.h"

#define NODE apus_nodes()

void apus_model_forget_values(apus_model *m)
{
    for (size_t i = 0; i < m->n_weights && m->tuner_values != NULL; i++)
        free(m->tuner_values[i]);
    free(m->tuner_values);
    m->tuner_values = NULL;
}

void apus_model_drop_tuner(apus_model *m)
{
    apus_model_forget_values(m);
    if (m->tuner != NULL)
        m->tuner_ops.close(m->tuner);
    m->tuner = NULL;
    NODE->release(m->tuner_config);
    m->tuner_config = NULL;
    while (m->n_weights > 0 && m->weights[m->n_weights - 1].of_tuner) {
        apus_weight *w = &m->weights[--m->n_weights];
        if (w->owned)
            apus_device_free(m->device, w->device, w->bytes);
        free((void *)(uintptr_t)w->spec.name);
        free((void *)(uintptr_t)w->spec.role);
    }
}

/* A trained weight needs memory of its own, in the real type. */
static apus_status make_trainable(apus_model *m, size_t i, apus_error *err)
{
    apus_weight *w = &m->weights[i];
    w->trained = 1;
    if (w->owned)
        return APUS_OK;
    apus_tensor_info stored = {.size = sizeof stored, .data = w->device, .bytes = w->bytes, .ndim = w->spec.ndim};
    stored.dtype = w->dtype == APUS_REAL ? apus_device_real(m->device) : w->dtype;
    for (int32_t k = 0; k < w->spec.ndim; k++)
        stored.dims[k] = w->spec.dims[k];
    return apus_model_load(m, w, &stored, err);
}

static apus_status bind_tuner(apus_model *m, apus_error *err)
{
    apus_weight_spec *specs = malloc((m->n_weights + 1) * sizeof *specs);
    if (specs == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < m->n_weights; i++)
        specs[i] = m->weights[i].spec;
    apus_status st = m->tuner_ops.bind(m->tuner, specs, m->n_weights, err);
    free(specs);
    const size_t n_model = m->n_weights;
    for (size_t i = 0; i < n_model && st == APUS_OK; i++)
        if (m->tuner_ops.trains(m->tuner, &m->weights[i].spec))
            st = make_trainable(m, i, err);
    if (st == APUS_OK)
        apus_model_forget_file(m);
    for (size_t i = 0; i < m->tuner_ops.parameters(m->tuner) && st == APUS_OK; i++) {
        apus_weight_spec spec = {.size = sizeof spec};
        apus_weight *w;
        st = m->tuner_ops.parameter(m->tuner, i, &spec);
        if (st == APUS_OK)
            st = apus_model_add_weight(m, &spec, &w);
        if (st != APUS_OK)
            return apus_fail(err, st, "a parameter of the tuner could not be added");
        w->of_tuner = 1;
        w->trained = 1;
    }
    if (st == APUS_OK && m->tuner_ops.config != NULL)
        m->tuner_config = m->tuner_ops.config(m->tuner);
    return st;
}

/* Values of the tuner's parameters out of an adapter folder. */
static apus_status load_adapter(apus_model *m, const char *adapter, apus_error *err)
{
    apus_format_file f;
    apus_status st = apus_format_open(adapter, &f, err);
    if (st != APUS_OK)
        return st;
    for (size_t i = 0; i < m->n_weights && st == APUS_OK; i++) {
        apus_weight *w = &m->weights[i];
        if (!w->of_tuner)
            continue;
        apus_tensor_info t = {.size = sizeof t};
        st = f.ops.find(f.file, &w->spec, &t, err);
        if (st == APUS_E_NOT_FOUND) {
            apus_fail(err, st, "%s: no tensor for %s", adapter, w->spec.name);
            apus_hint(err, st, "the adapter was made for another model or other target modules");
        }
        if (st == APUS_OK && (t.ndim != w->spec.ndim || t.dims[0] != w->spec.dims[0] || t.dims[1] != w->spec.dims[1]))
            st = apus_fail(err, APUS_E_INVALID, "%s: %s is [%lld, %lld], expected [%lld, %lld]", adapter, t.name, (long long)t.dims[0],
                           (long long)t.dims[1], (long long)w->spec.dims[0], (long long)w->spec.dims[1]);
        if (st != APUS_OK)
            break;
        const size_t n = apus_weight_elements(&w->spec);
        float *values = malloc(n * sizeof(float));
        if (values == NULL)
            st = apus_fail(err, APUS_E_MEMORY, "out of memory");
        if (st == APUS_OK && apus_decode_row(t.dtype, t.data, (int64_t)n, values) != APUS_OK)
            st = apus_fail(err, APUS_E_UNSUPPORTED, "%s: %s: element type %s cannot be read", adapter, t.name, apus_dtype_name(t.dtype));
        if (st == APUS_OK)
            st = apus_model_own(m, w, err);
        if (st == APUS_OK)
            st = apus_model_store(m, w->device, 0, values, n, err);
        free(values);
    }
    const uint64_t n = st == APUS_OK ? f.ops.count(f.file) : 0;
    const uint64_t left = st == APUS_OK ? f.ops.unused(f.file, 0) : 0;
    if (left < n) {
        apus_tensor_info t = {.size = sizeof t};
        (void)f.ops.tensor(f.file, left, &t, NULL);
        st = apus_fail(err, APUS_E_INVALID, "%s: tensor %s belongs to no target of the tuner", adapter, t.name ? t.name : "?");
    }
    apus_format_close(&f);
    return st;
}

/* The tuner that an adapter folder's configuration describes. */
static apus_status tuner_of_adapter(apus_model *m, const char *adapter, apus_error *err)
{
    apus_format_file f;
    apus_status st = apus_format_open(adapter, &f, err);
    if (st != APUS_OK)
        return st;
    apus_node *params = NULL;
    const apus_component *chosen = NULL;
    apus_error last = {0};
    for (size_t i = 0; i < apus_component_count("tuner") && params == NULL; i++) {
        const apus_component *c = apus_component_at("tuner", i);
        apus_take(&m->tuner_ops, sizeof m->tuner_ops, c->ops);
        if (m->tuner_ops.from_config == NULL)
            continue;
        params = m->tuner_ops.from_config(apus_host_table(), f.card.config, &last);
        chosen = c;
    }
    if (params == NULL) {
        st = apus_fail(err, APUS_E_UNSUPPORTED, "%s: %s", adapter, last.message[0] ? last.message : "no tuner here reads this adapter");
    } else {
        apus_node *complete = apus_params_validate(params, chosen->params, chosen->n_params, "type", chosen->name, err);
        st = complete != NULL ? m->tuner_ops.open(apus_host_table(), complete, &m->tuner, err) : APUS_E_INVALID;
        NODE->release(complete);
    }
    NODE->release(params);
    apus_format_close(&f);
    if (st != APUS_OK)
        m->tuner = NULL;
    return st;
}

static int is_number(const apus_node *n)
{
    const apus_node_kind kind = NODE->kind(n);
    return kind == APUS_NODE_BOOL || kind == APUS_NODE_INT || kind == APUS_NODE_FLOAT;
}

static double number(const apus_node *n)
{
    return NODE->kind(n) == APUS_NODE_BOOL ? NODE->as_bool(n, 0) : NODE->as_float(n, 0.0);
}

/* What goes on from an adapter is as that was, but for what somebody wrote: where both are numbers and differ, that is said. */
static apus_status follow_adapter(const apus_tuner_ops *ops, const apus_component *c, const char *adapter, apus_node *params, apus_error *err)
{
    apus_format_file f;
    char line[512], at[256];
    apus_status st = ops->from_config != NULL ? apus_format_open(adapter, &f, err) : APUS_E_NOT_FOUND;
    if (st != APUS_OK)
        return ops->from_config != NULL ? st : APUS_OK;
    apus_error why = {0};
    apus_node *theirs = ops->from_config(apus_host_table(), f.card.config, &why);
    apus_node *typed = theirs != NULL ? apus_params_validate(theirs, c->params, c->n_params, "type", adapter, err) : NULL;
    if (theirs == NULL)
        st = apus_fail(err, APUS_E_UNSUPPORTED, "%s: %s", adapter, why.message);
    else if (typed == NULL)
        st = APUS_E_INVALID;
    for (size_t i = 0; i < NODE->length(theirs) && st == APUS_OK; i++) {
        const char *key = NODE->key_at(theirs, i);
        const apus_node *value = NODE->get(typed, key), *ours = NODE->get(params, key);
        if (NODE->where(ours, at, sizeof at)[0] == '\0') {
            (void)NODE->set(params, key, NODE->copy(value));
        } else if (is_number(ours) && is_number(value) && number(ours) != number(value)) {
            (void)snprintf(line, sizeof line, "%s: %s is %g, and was %g in %s", at, key, number(ours), number(value), adapter);
            apus_host_table()->log(APUS_LOG_WARN, c->name, line);
        }
    }
    NODE->release(typed);
    NODE->release(theirs);
    apus_format_close(&f);
    return st;
}

apus_status apus_model_tune(apus_model *m, const apus_node *tuner_spec, const char *adapter, uint64_t seed, apus_error *err)
{
    const apus_component *c;
    apus_node *params;
    apus_status st = apus_component_resolve("tuner", tuner_spec, NULL, &c, &params, err);
    if (st != APUS_OK)
        return st;
    apus_take(&m->tuner_ops, sizeof m->tuner_ops, c->ops);
    if (adapter != NULL)
        st = follow_adapter(&m->tuner_ops, c, adapter, params, err);
    if (st == APUS_OK)
        st = m->tuner_ops.open(apus_host_table(), params, &m->tuner, err);
    NODE->release(params);
    if (st != APUS_OK) {
        m->tuner = NULL;
        return st;
    }
    st = bind_tuner(m, err);
    if (st == APUS_OK && adapter != NULL)
        return load_adapter(m, adapter, err);
    for (size_t i = 0; i < m->n_weights && st == APUS_OK; i++)
        if (m->weights[i].of_tuner)
            st = apus_model_init_weight(m, &m->weights[i], seed, err);
    return st;
}

apus_status apus_model_adapt(apus_model *m, const char *adapter, apus_error *err)
{
    apus_status st = tuner_of_adapter(m, adapter, err);
    if (st == APUS_OK)
        st = bind_tuner(m, err);
    if (st == APUS_OK)
        st = load_adapter(m, adapter, err);
    return st;
}

const apus_node *apus_model_tuner_config(const apus_model *m)
{
    return m->tuner_config;
}

/* ---------------------------------------------------------------- reading and merging */

/* Elements of a weight on the device as floats. */
static apus_status fetch(apus_model *m, const apus_weight *w, size_t offset, size_t n, float *dst, apus_error *err)
{
    if (apus_device_real(m->device) == APUS_F32)
        return apus_device_download(m->device, dst, (const float *)w->device + offset, n * sizeof(float), err);
    double chunk[512];
    for (size_t i = 0; i < n; i += 512) {
        const size_t k = n - i < 512 ? n - i : 512;
        apus_status st = apus_device_download(m->device, chunk, (const double *)w->device + offset + i, k * sizeof(double), err);
        if (st != APUS_OK)
            return st;
        for (size_t j = 0; j < k; j++)
            dst[i + j] = (float)chunk[j];
    }
    return APUS_OK;
}

static const float *tuner_value(void *context, const char *parameter)
{
    apus_model *m = context;
    const apus_weight *w = apus_model_weight_named(m, parameter);
    if (w == NULL || !w->of_tuner)
        return NULL;
    const size_t i = (size_t)(w - m->weights);
    if (m->tuner_values == NULL)
        m->tuner_values = calloc(m->n_weights, sizeof *m->tuner_values);
    if (m->tuner_values == NULL)
        return NULL;
    if (m->tuner_values[i] == NULL) {
        const size_t n = apus_weight_elements(&w->spec);
        float *values = malloc(n * sizeof(float));
        if (values == NULL || fetch(m, w, 0, n, values, NULL) != APUS_OK) {
            free(values);
            return NULL;
        }
        m->tuner_values[i] = values;
    }
    return m->tuner_values[i];
}

apus_status apus_model_read(apus_model *m, size_t weight, int merge, int64_t row, int64_t rows, float *dst, apus_error *err)
{
    const apus_weight *w = &m->weights[weight];
    const int64_t columns = w->spec.ndim > 1 ? w->spec.dims[1] : 1;
    if ((w->dtype & APUS_PACKED) != 0)
        return apus_fail(err, APUS_E_INTERNAL, "%s: packed for computing with it; what is written comes from a model that was not", w->spec.name);
    if (w->dtype == APUS_REAL) {
        apus_status st = fetch(m, w, (size_t)(row * columns), (size_t)(rows * columns), dst, err);
        if (st != APUS_OK)
            return st;
    } else {
        const size_t row_bytes = apus_dtype_row_bytes(w->dtype, columns);
        for (int64_t r = 0; r < rows; r++)
            if (apus_decode_row(w->dtype, (const char *)w->device + (size_t)(row + r) * row_bytes, columns, dst + r * columns) != APUS_OK)
                return apus_fail(err, APUS_E_UNSUPPORTED, "%s: element type cannot be read", w->spec.name);
    }
    if (merge && m->tuner != NULL && m->tuner_ops.merge != NULL)
        (void)m->tuner_ops.merge(m->tuner, &w->spec, row, rows, dst, tuner_value, m);
    return APUS_OK;
}

apus_status apus_model_merge_adapter(apus_model *m, const char *adapter, apus_error *err)
{
    apus_status st = apus_model_adapt(m, adapter, err);
    for (size_t i = 0; i < m->n_weights && st == APUS_OK && m->tuner_ops.merge != NULL; i++) {
        apus_weight *w = &m->weights[i];
        if (w->of_tuner || w->spec.ndim != 2)
            continue;
        const int64_t rows = w->spec.dims[0], columns = w->spec.dims[1];
        float *values = malloc((size_t)rows * (size_t)columns * sizeof(float));
        if (values == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory while merging %s", w->spec.name);
        st = apus_model_read(m, i, 0, 0, rows, values, err);
        if (st == APUS_OK && m->tuner_ops.merge(m->tuner, &w->spec, 0, rows, values, tuner_value, m)) {
            if (!w->owned)
                st = apus_model_own(m, w, err);
            if (st == APUS_OK)
                st = apus_model_store(m, w->device, 0, values, (size_t)(rows * columns), err);
        }
        free(values);
    }
    if (st == APUS_OK)
        apus_model_drop_tuner(m);
    return st;
}
