/* core/model/updater.c: the optimizer as one plan over all trained weights: a pass over memory per step. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/io.h"
#include "model/internal.h"
#include "model/trainer.h"

static apus_tensor variable(apus_graph *g, const char *prefix, const apus_weight *w)
{
    char name[512];
    snprintf(name, sizeof name, "%s%s", prefix, w->spec.name);
    /* Elementwise: shape does not matter, and a flat one lets the executor cut it anywhere. */
    const int64_t n = (int64_t)apus_weight_elements(&w->spec);
    return apus_graph_variable(g, name, APUS_REAL, 1, &n);
}

enum { STATE_ALIGN = 64 };

static size_t state_bytes(const apus_weight *w)
{
    return (w->bytes + STATE_ALIGN - 1) / STATE_ALIGN * STATE_ALIGN;
}

/* Room for all states in a file. */
static apus_status map_states(apus_updater *u, const char *folder, apus_error *err)
{
    if (!apus_device_host_memory(u->model->device)) {
        apus_fail(err, APUS_E_UNSUPPORTED, "offload_optimizer: this backend computes in memory of its own, where no file can be mapped");
        return apus_hint(err, APUS_E_UNSUPPORTED, "leave offload_optimizer out");
    }
    for (size_t i = 0; i < u->model->n_weights; i++)
        u->file_bytes += u->model->weights[i].trained ? state_bytes(&u->model->weights[i]) * u->n_states : 0;
    if (u->file_bytes == 0)
        return APUS_OK;
    u->file = apus_scratch_map(folder, u->file_bytes, err);
    return u->file != NULL
               ? APUS_OK
               : apus_hint(err, APUS_E_IO, "offload_optimizer keeps the optimizer's states in a file there: make room, or name another run folder");
}

static apus_status allocate(apus_updater *u, const char *folder, apus_error *err)
{
    u->weights = calloc(u->n + 1, sizeof(apus_weight *));
    u->grads = calloc(u->n + 1, sizeof *u->grads);
    u->states = calloc(u->n * u->n_states + 1, sizeof *u->states);
    if (u->weights == NULL || u->grads == NULL || u->states == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (folder != NULL) {
        const apus_status st = map_states(u, folder, err);
        if (st != APUS_OK)
            return st;
    }
    size_t n = 0;
    char *next = u->file;
    for (size_t i = 0; i < u->model->n_weights; i++) {
        apus_weight *w = &u->model->weights[i];
        if (!w->trained)
            continue;
        u->weights[n] = w;
        u->grads[n] = apus_device_alloc(u->model->device, w->bytes, err);
        if (u->grads[n] == NULL)
            return APUS_E_MEMORY;
        for (uint32_t k = 0; k < u->n_states; k++) {
            u->states[n * u->n_states + k] = u->file != NULL ? next : apus_device_alloc(u->model->device, w->bytes, err);
            if (u->states[n * u->n_states + k] == NULL)
                return APUS_E_MEMORY;
            next += u->file != NULL ? state_bytes(w) : 0;
        }
        n++;
    }
    return APUS_OK;
}

static apus_status build(apus_updater *u, apus_error *err)
{
    const apus_graph_api *G = apus_graph_table();
    const int64_t one = 1, capacity[APUS_N_DIM_SYMBOLS] = {1, 1, 1, 1, 1};
    const double zero_attrs[2] = {0.0, 0.0};
    char prefix[32];
    u->graph = apus_graph_new(NULL);
    u->norm_graph = apus_graph_new(NULL);
    if (u->graph == NULL || u->norm_graph == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_graph *g = u->graph;
    const apus_tensor rate = G->input(g, "learning_rate", APUS_REAL, 1, &one), step = G->input(g, "step", APUS_REAL, 1, &one),
                      clip = G->input(g, "clip", APUS_REAL, 1, &one);
    apus_tensor total = apus_none();
    for (size_t i = 0; i < u->n; i++) {
        const apus_weight *w = u->weights[i];
        const double decays = w->spec.what == APUS_WEIGHT_NORM || w->spec.what == APUS_WEIGHT_BIAS ? 0.0 : 1.0;
        const apus_tensor param = variable(g, "", w), grad = variable(g, "grad.", w), scaled[2] = {grad, clip};
        apus_optimizer_step s = {.size = sizeof s, .param = param, .learning_rate = rate, .step = step};
        s.grad = G->emit(g, "apus.mul/1", scaled, 2, NULL, 0);
        s.decay = G->constant(g, &decays, 0, NULL);
        for (uint32_t k = 0; k < u->n_states; k++) {
            snprintf(prefix, sizeof prefix, "state%u.", k);
            s.state[k] = variable(g, prefix, w);
            s.new_state[k] = apus_none();
        }
        u->ops.build(u->optimizer, g, &s);
        for (uint32_t k = 0; k < u->n_states; k++)
            apus_graph_assign(g, s.state[k], s.new_state[k]);
        apus_graph_assign(g, param, s.new_param);
        apus_graph_assign(g, grad, G->emit(g, "apus.affine/1", &grad, 1, zero_attrs, 2));

        const apus_tensor norm_grad = variable(u->norm_graph, "grad.", w);
        const apus_tensor squares = G->emit(u->norm_graph, "apus.sum_squares/1", &norm_grad, 1, NULL, 0), both[2] = {total, squares};
        total = apus_is_none(total) ? squares : G->emit(u->norm_graph, "apus.add/1", both, 2, NULL, 0);
    }
    const apus_status st = apus_plan_new(g, u->model->device, NULL, 0, capacity, APUS_RECOMPUTE_NONE, &u->update, err);
    if (st != APUS_OK)
        return st;
    return apus_plan_new(u->norm_graph, u->model->device, &total, 1, capacity, APUS_RECOMPUTE_NONE, &u->norm, err);
}

apus_status apus_updater_bind(apus_updater *u, apus_plan *p, apus_error *err)
{
    char name[512];
    apus_status st = APUS_OK;
    for (size_t v = 0; v < apus_plan_variable_count(p) && st == APUS_OK; v++) {
        const char *variable_name = apus_plan_variable_at(p, v, NULL);
        if (strncmp(variable_name, "grad.", 5) != 0)
            continue;
        for (size_t i = 0; i < u->n; i++)
            if (strcmp(variable_name + 5, u->weights[i]->spec.name) == 0) {
                snprintf(name, sizeof name, "grad.%s", u->weights[i]->spec.name);
                st = apus_plan_bind(p, name, u->grads[i], err);
                break;
            }
    }
    return st;
}

static apus_status bind_update(apus_updater *u, apus_error *err)
{
    char name[512];
    apus_status st = APUS_OK;
    for (size_t i = 0; i < u->n && st == APUS_OK; i++) {
        st = apus_plan_bind(u->update, u->weights[i]->spec.name, u->weights[i]->device, err);
        for (uint32_t k = 0; k < u->n_states && st == APUS_OK; k++) {
            snprintf(name, sizeof name, "state%u.%s", k, u->weights[i]->spec.name);
            st = apus_plan_bind(u->update, name, u->states[i * u->n_states + k], err);
        }
    }
    if (st == APUS_OK)
        st = apus_updater_bind(u, u->update, err);
    return st == APUS_OK ? apus_updater_bind(u, u->norm, err) : st;
}

apus_status apus_updater_open(apus_updater *u, apus_model *m, const apus_node *spec, const char *folder, apus_error *err)
{
    const apus_component *c;
    apus_node *params;
    memset(u, 0, sizeof *u);
    apus_status st = apus_component_resolve("optimizer", spec, NULL, &c, &params, err);
    if (st != APUS_OK)
        return st;
    apus_take(&u->ops, sizeof u->ops, c->ops);
    st = u->ops.open(apus_host_table(), params, &u->optimizer, err);
    apus_nodes()->release(params);
    if (st != APUS_OK) {
        u->optimizer = NULL;
        return st;
    }
    if ((u->ops.flags(u->optimizer) & APUS_OPTIMIZER_ELEMENTWISE) == 0)
        return apus_fail(err, APUS_E_UNSUPPORTED, "optimizer %s is not elementwise", c->name);
    u->model = m;
    u->n_states = u->ops.states(u->optimizer);
    u->peak = u->ops.learning_rate(u->optimizer);
    if (!(u->peak >= 0.0)) /* left out: what such tools' users expect for an adapter and for a whole model */
        u->peak = m->tuner_config != NULL ? 1e-4 : 1e-5;
    for (size_t i = 0; i < m->n_weights; i++)
        u->n += m->weights[i].trained ? 1 : 0;
    if (u->n == 0)
        return apus_fail(err, APUS_E_INVALID, "the tuner trains nothing");
    st = allocate(u, folder, err);
    if (st == APUS_OK)
        st = build(u, err);
    return st == APUS_OK ? bind_update(u, err) : st;
}

void apus_updater_close(apus_updater *u)
{
    apus_plan_free(u->update);
    apus_plan_free(u->norm);
    apus_graph_free(u->graph);
    apus_graph_free(u->norm_graph);
    for (size_t i = 0; i < u->n && u->weights != NULL && u->grads != NULL && u->states != NULL && u->weights[i] != NULL; i++) {
        apus_device_free(u->model->device, u->grads[i], u->weights[i]->bytes);
        for (uint32_t k = 0; k < u->n_states && u->file == NULL; k++)
            apus_device_free(u->model->device, u->states[i * u->n_states + k], u->weights[i]->bytes);
    }
    apus_file_unmap(u->file, u->file_bytes);
    free(u->weights);
    free(u->grads);
    free(u->states);
    if (u->optimizer != NULL)
        u->ops.close(u->optimizer);
    memset(u, 0, sizeof *u);
}

static const int64_t no_extents[APUS_N_DIM_SYMBOLS] = {1, 1, 1, 1, 1};

apus_status apus_updater_norm(apus_updater *u, double *norm, apus_error *err)
{
    apus_status st = apus_plan_run(u->norm, no_extents, NULL, 0, err);
    double squares = 0.0;
    if (st == APUS_OK)
        st = apus_plan_output(u->norm, 0, &squares, 1, err);
    *norm = sqrt(squares);
    return st;
}

static void updater_feeds(apus_feed feeds[3], const double *learning_rate, const double *step, const double *clip)
{
    feeds[0] = (apus_feed){"learning_rate", learning_rate};
    feeds[1] = (apus_feed){"step", step};
    feeds[2] = (apus_feed){"clip", clip};
}

apus_status apus_updater_step(apus_updater *u, double learning_rate, int64_t step, double clip, apus_error *err)
{
    const double step_number = (double)step;
    apus_feed feeds[3];
    updater_feeds(feeds, &learning_rate, &step_number, &clip);
    return apus_plan_run(u->update, no_extents, feeds, 3, err);
}

apus_status apus_updater_measure(apus_updater *u, double *seconds, apus_error *err)
{
    const double one = 1.0;
    double norm = 0.0, update = 0.0;
    apus_feed feeds[3];
    updater_feeds(feeds, &one, &one, &one);
    apus_status st = apus_plan_measure(u->norm, no_extents, NULL, 0, &norm, err);
    if (st == APUS_OK)
        st = apus_plan_measure(u->update, no_extents, feeds, 3, &update, err);
    *seconds = norm + update;
    return st;
}
