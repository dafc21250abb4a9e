/*
 * core/model/cost.c: what a training costs before it runs: memory, operations, time.
 *
 * Time is an estimate. Every kind of operation (kernel and shapes) of a step is run some times on some rows of the data and timed;
 * what it says is printed and decides nothing.
 */
#include <math.h>
#include <stdlib.h>

#include "model/internal.h"
#include "model/trainer.h"

#define NODE apus_nodes()

/* How many tokens are timed: as many as a micro-batch holds, fewer where they would take long. */
#define TIMED_FLOPS  3e10
#define TIMED_TOKENS 256

/* ---------------------------------------------------------------- time */

typedef struct timing {
    double micro, evaluation; /* seconds a token */
    double update;            /* seconds a step */
} timing;

/* A micro-batch of shuffled rows, at least one. */
static void fill_some(apus_batch *b, const apus_dataset *d, uint64_t seed, int64_t tokens)
{
    const apus_row_order order = {.seed = seed, .n = apus_dataset_rows(d), .shuffle = 1};
    size_t n = 0;
    for (int64_t sum = 0; n < order.n; n++) {
        sum += apus_dataset_row(d, apus_row_order_at(&order, n)).n_tokens;
        if (n > 0 && sum > tokens)
            break;
    }
    (void)apus_batch_fill(b, d, &order, 0, n, 0);
}

apus_status apus_pass_cost(apus_objective *o, apus_reference *r, apus_batch *b, const apus_dataset *d, uint64_t seed, double *seconds,
                           apus_error *err)
{
    const double fits = TIMED_FLOPS / (apus_plan_costs(o->plan).flops + 1.0) * (double)b->capacity[0];
    double policy = 0.0, reference = 0.0;
    fill_some(b, d, seed, fits > TIMED_TOKENS ? fits < 1e9 ? (int64_t)fits : 1000000000 : TIMED_TOKENS);
    apus_status st = apus_reference_measure(r, b, &reference, err);
    if (st == APUS_OK)
        st = apus_objective_measure(o, b, &policy, err);
    *seconds = (policy + reference) / (double)(b->extents[0] > 0 ? b->extents[0] : 1);
    return st;
}

static apus_status time_all(apus_trainer *t, timing *time, apus_error *err)
{
    apus_status st = apus_pass_cost(&t->train, &t->reference, &t->batch, t->data, t->stage->seed, &time->micro, err);
    if (st == APUS_OK)
        st = apus_updater_measure(&t->updater, &time->update, err);
    time->evaluation = 0.0;
    if (st == APUS_OK && t->has_eval)
        st = apus_pass_cost(&t->eval, &t->reference, &t->batch, t->eval_data, t->stage->seed, &time->evaluation, err);
    return st;
}

/* ---------------------------------------------------------------- telling */

static apus_node *describe_memory(const apus_trainer *t)
{
    const apus_training_memory m = apus_trainer_memory(t);
    const struct {
        const char *name;
        uint64_t bytes;
    } parts[] = {{"weights", m.weights},         {"gradients", m.gradients}, {"states", m.states},       {"reference", m.reference},
                 {"activations", m.activations}, {"total", m.total},         {"offloaded", m.offloaded}, {"limit", (uint64_t)t->stage->memory_limit}};
    apus_node *memory = NODE->make_map();
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i].bytes > 0)
            (void)NODE->set(memory, parts[i].name, NODE->make_int((int64_t)parts[i].bytes));
    return memory;
}

static int64_t int_param(const apus_trainer *t, const char *name)
{
    return NODE->as_int(NODE->get(t->params, name), 0);
}

/* Evaluations in the steps that are left: every eval_steps, and one at the end. */
static double evaluations_left(const apus_trainer *t)
{
    const int64_t every = int_param(t, "eval_steps");
    if (!t->has_eval || t->step >= t->max_steps)
        return 0.0;
    const int64_t due = every > 0 ? t->max_steps / every - t->step / every : 0;
    return (double)(due + (every <= 0 || t->max_steps % every != 0 ? 1 : 0));
}

/* A model of the shape that the training will make, for plans of the stages after it. */
static apus_node *shape_of(const apus_trainer *t)
{
    apus_node *spec = NODE->copy(t->start_spec);
    if (t->model->own_extra != NULL) /* the tokenizer that the data brought */
        (void)NODE->set(spec, "tokenizer", NODE->copy(t->model->own_extra));
    (void)NODE->set(spec, "loss", NODE->copy(NODE->get(t->params, "loss")));
    return spec;
}

apus_node *apus_model_packed(const apus_model *m)
{
    apus_node *packed = NODE->make_map();
    for (size_t i = 0; i < m->n_weights; i++) {
        const apus_dtype dtype = m->weights[i].dtype;
        const char *type = apus_dtype_name(dtype & ~APUS_PACKED);
        if ((dtype & APUS_PACKED) == 0 || NODE->get(packed, type) != NULL)
            continue;
        apus_node *its = NODE->make_map(), *names = NODE->make_list();
        int64_t bytes = 0;
        for (size_t k = i; k < m->n_weights; k++) {
            if (m->weights[k].dtype != dtype)
                continue;
            (void)NODE->append(names, NODE->make_string(m->weights[k].spec.name, (size_t)-1));
            bytes += (int64_t)m->weights[k].bytes;
        }
        (void)NODE->set(its, "weights", names);
        (void)NODE->set(its, "bytes", NODE->make_int(bytes));
        (void)NODE->set(packed, type, its);
    }
    return packed;
}

apus_node *apus_model_chosen(const apus_model *m, apus_node *plan)
{
    char line[300];
    apus_node *chosen = NODE->make_map(), *kernels = NODE->make_list();
    const apus_node *ops = NODE->get(plan, "ops");
    for (size_t i = 0; i < NODE->length(ops); i++) {
        const apus_node *op = NODE->at(ops, i);
        (void)snprintf(line, sizeof line, "%s: %s", NODE->as_string(NODE->get(op, "op"), NULL), NODE->as_string(NODE->get(op, "kernel"), NULL));
        (void)NODE->append(kernels, NODE->make_string(line, (size_t)-1));
    }
    (void)NODE->set(chosen, "packed", apus_model_packed(m));
    if (NODE->get(plan, "tuning") != NULL)
        (void)NODE->set(chosen, "tuning", NODE->copy(NODE->get(plan, "tuning")));
    (void)NODE->set(chosen, "kernels", kernels);
    NODE->release(plan);
    return chosen;
}

apus_node *apus_trainer_chosen(const apus_trainer *t)
{
    char line[160];
    apus_node *chosen = apus_model_chosen(t->model, apus_plan_describe(t->train.plan));
    (void)NODE->set(chosen, "layout", NODE->make_string(apus_trainer_layout(t, line), (size_t)-1));
    (void)NODE->set(chosen, "memory", describe_memory(t));
    return chosen;
}

apus_status apus_trainer_describe(apus_trainer *t, apus_node *map, apus_error *err)
{
    uint64_t parameters = 0, trained = 0;
    char layout[160];
    for (size_t i = 0; i < t->model->n_weights; i++) {
        const apus_weight *w = &t->model->weights[i];
        const uint64_t n = apus_weight_elements(&w->spec);
        parameters += n;
        trained += w->trained ? n : 0;
    }
    timing time;
    apus_status st = time_all(t, &time, err);
    if (st != APUS_OK)
        return st;
    (void)NODE->set(map, "parameters", NODE->make_int((int64_t)parameters));
    (void)NODE->set(map, "trained", NODE->make_int((int64_t)trained));
    (void)NODE->set(map, "rows", NODE->make_int((int64_t)apus_dataset_rows(t->data)));
    (void)NODE->set(map, "steps", NODE->make_int(t->max_steps));
    (void)NODE->set(map, "steps_done", NODE->make_int(t->step));
    (void)NODE->set(map, "memory", describe_memory(t));
    (void)NODE->set(map, "layout", NODE->make_string(apus_trainer_layout(t, layout), (size_t)-1));
    (void)NODE->set(map, "packed", apus_model_packed(t->model));
    /* The plan's cost is for a full micro-batch; a step holds batch_size rows of average length. */
    const double rows = (double)apus_dataset_rows(t->data);
    const double tokens = (double)apus_dataset_limits(t->data)->tokens / rows * fmin((double)int_param(t, "batch_size"), rows);
    const double known = t->stage->tokens_per_second, step = known > 0.0 ? tokens / known : time.micro * tokens + time.update;
    const double evaluation = t->has_eval ? time.evaluation * (double)apus_dataset_limits(t->eval_data)->tokens : 0.0;
    apus_node_set_float(map, "tokens_per_step", tokens);
    apus_node_set_float(map, "flops_per_step", apus_plan_costs(t->train.plan).flops * tokens / (double)t->batch.capacity[0]);
    apus_node_set_float(map, "seconds_per_step", step);
    apus_node_set_float(map, "seconds", step * (double)(t->max_steps - t->step) + evaluation * evaluations_left(t));
    (void)NODE->set(map, "seconds_from", NODE->make_string(known > 0.0 ? "events" : "timing", (size_t)-1));
    (void)NODE->set(map, "model", shape_of(t));
    (void)NODE->set(map, "plan", apus_plan_describe(t->train.plan));
    return APUS_OK;
}
