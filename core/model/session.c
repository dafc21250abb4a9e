/* core/model/session.c: the extension "apus.session/1": what stage plugins are written with, over trainer, generate and export. */
#include "model/session.h"

#include <stdlib.h>
#include <string.h>

#include "model/engine.h"
#include "model/export.h"
#include "model/internal.h"
#include "model/sampling.h"
#include "model/trainer.h"

#define NODE apus_nodes()

static const char *stage_name(apus_stage_context *s)
{
    return s->name;
}
static const char *stage_dir(apus_stage_context *s)
{
    return s->stage_dir;
}
static uint64_t stage_seed(apus_stage_context *s)
{
    return s->seed;
}
static void stage_result(apus_stage_context *s, apus_node *result)
{
    NODE->release(s->result);
    s->result = result;
}
static int64_t trainer_step(const apus_trainer *t)
{
    return t->step;
}
static int64_t trainer_max_steps(const apus_trainer *t)
{
    return t->max_steps;
}

/* ---------------------------------------------------------------- evaluation */

/* Do the rows of a dataset come in pairs? By its first row. */
static apus_status rows_are_pairs(const apus_node *dataset, uint64_t seed, int *pairs, apus_error *err)
{
    apus_examples *e;
    apus_node *row = NULL, *example = NULL;
    apus_status st = apus_examples_open(dataset, seed, &e, err);
    if (st != APUS_OK)
        return st;
    st = apus_examples_get(e, 0, &row, &example, err);
    *pairs = st == APUS_OK && NODE->get(example, "chosen") != NULL;
    NODE->release(row);
    NODE->release(example);
    apus_examples_close(e);
    return st;
}

/* The loss an evaluation measures: its own `loss`, else the one the model was trained with where that fits the rows, else the
 * stage's default for such rows. */
static apus_status choose_loss(const apus_node *params, int pairs, apus_loss *l, const apus_node **spec, apus_error *err)
{
    const apus_node *own = NODE->get(params, "loss"), *trained = NODE->get(NODE->get(params, "model"), "loss");
    const apus_node *fallback = NODE->get(params, pairs ? "preference_loss" : "sequence_loss");
    const apus_node *const order[3] = {own, trained, fallback};
    for (int i = 0; i < 3; i++) {
        if (order[i] == NULL || NODE->kind(order[i]) == APUS_NODE_NULL)
            continue;
        apus_status st = apus_loss_open(l, order[i], err);
        if (st != APUS_OK)
            return st;
        *spec = order[i];
        if (i == 0 || ((l->needs & APUS_LOSS_PAIRS) != 0) == (pairs != 0))
            return APUS_OK;
        apus_loss_close(l);
    }
    return apus_fail(err, APUS_E_INVALID, "no loss to evaluate with: set `loss`");
}

/* A model, the rows it is measured on, and how. */
typedef struct evaluation {
    apus_model *model;
    apus_dataset *data;
    apus_loss loss;
    apus_objective objective;
    apus_reference reference;
    apus_batch batch;
} evaluation;

/* close_evaluation also after a failure. */
static apus_status open_evaluation(evaluation *e, apus_stage_context *s, const apus_node *params, apus_error *err)
{
    const apus_node *spec = NULL, *dataset = NODE->get(params, "dataset");
    int pairs = 0;
    const apus_model_options options = {.device = s->device, .now = s->now, .seed = s->seed};
    *e = (evaluation){0};
    apus_status st = apus_model_open(NODE->get(params, "model"), &options, &e->model, err);
    if (st != APUS_OK)
        return st;
    st = rows_are_pairs(dataset, s->seed, &pairs, err);
    if (st == APUS_OK)
        st = choose_loss(params, pairs, &e->loss, &spec, err);
    if (st == APUS_OK)
        st = apus_objective_settle(e->model, &e->loss, 0, err);
    const apus_dataset_options data_options = {.text = e->model->text,
                                               .pairs = (e->loss.needs & APUS_LOSS_PAIRS) != 0,
                                               .apart = e->model->facts.length_dependent,
                                               .cache_dir = s->cache_dir,
                                               .seed = s->seed,
                                               .say = s->say,
                                               .context = s->say_context};
    if (st == APUS_OK)
        st = apus_dataset_open(dataset, &data_options, &e->data, err);
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    const apus_dataset *const sets[1] = {e->data};
    const apus_objective_options forward = {0};
    if (st == APUS_OK) {
        enum { ROWS = 16, TOKENS = 1024 };
        apus_batch_capacity(sets, 1, ROWS, TOKENS, capacity);
        st = apus_batch_init(&e->batch, capacity, TOKENS, err);
    }
    if (st == APUS_OK)
        st = apus_objective_open(&e->objective, e->model, &e->loss, &forward, capacity, err);
    if (st == APUS_OK && (e->loss.needs & APUS_LOSS_NEEDS_REFERENCE))
        st = apus_reference_open(&e->reference, e->model, NODE->get(spec, "reference"), 0, s->now, err);
    return st == APUS_OK ? apus_reference_plan(&e->reference, capacity, err) : st;
}

static void close_evaluation(evaluation *e)
{
    apus_reference_close(&e->reference);
    apus_objective_close(&e->objective);
    apus_batch_free(&e->batch);
    apus_dataset_close(e->data);
    apus_loss_close(&e->loss);
    apus_model_close(e->model);
}

static apus_status evaluate(apus_stage_context *s, const apus_node *params, apus_node **metrics, apus_error *err)
{
    evaluation e;
    apus_objective_sums sums = {0};
    apus_status st = open_evaluation(&e, s, params, err);
    if (st == APUS_OK)
        st = apus_stage_chose(s, apus_model_chosen(e.model, apus_plan_describe(e.objective.plan)), err);
    if (st == APUS_OK)
        st = apus_evaluate_rows(&e.objective, &e.reference, &e.batch, e.data, &sums, err);
    if (st == APUS_OK) {
        *metrics = NODE->make_map();
        apus_objective_report(&e.objective, &sums, "eval_", *metrics);
        (void)NODE->set(*metrics, "rows", NODE->make_int((int64_t)apus_dataset_rows(e.data)));
        (void)NODE->set(*metrics, "dataset", NODE->copy(apus_dataset_report(e.data)));
    }
    close_evaluation(&e);
    return st;
}

static apus_status evaluate_plan(apus_stage_context *s, const apus_node *params, apus_node *costs, apus_error *err)
{
    evaluation e;
    double token = 0.0;
    apus_status st = open_evaluation(&e, s, params, err);
    if (st == APUS_OK)
        st = apus_pass_cost(&e.objective, &e.reference, &e.batch, e.data, s->seed, &token, err);
    if (st == APUS_OK) {
        const double tokens = (double)apus_dataset_limits(e.data)->tokens;
        (void)NODE->set(costs, "rows", NODE->make_int((int64_t)apus_dataset_rows(e.data)));
        apus_node_set_float(costs, "tokens", tokens);
        apus_node_set_float(costs, "seconds", token * tokens);
        (void)NODE->set(costs, "packed", apus_model_packed(e.model));
        (void)NODE->set(costs, "plan", apus_plan_describe(e.objective.plan));
    }
    close_evaluation(&e);
    return st;
}

/* ---------------------------------------------------------------- planning a training */

static apus_status trainer_plan(apus_stage_context *s, const apus_node *params, apus_node *costs, apus_error *err)
{
    apus_trainer *t;
    apus_status st = apus_trainer_open(s, params, &t, err);
    if (st != APUS_OK)
        return st;
    st = apus_trainer_describe(t, costs, err);
    apus_trainer_close(t);
    return st;
}

/* ---------------------------------------------------------------- generation, rows */

static apus_status generator_open(apus_stage_context *s, const apus_node *params, apus_generator **generator, apus_error *err)
{
    const apus_model_options options = {.device = s->device,
                                        .now = s->now,
                                        .seed = s->seed,
                                        .keep_encoded = 1,
                                        .template_file = NODE->as_string(NODE->get(params, "template"), NULL)};
    apus_model *m;
    apus_status st = apus_model_open(NODE->get(params, "model"), &options, &m, err);
    if (st != APUS_OK)
        return st;
    char line[512];
    const char *sampling = NODE->as_string(NODE->get(params, "sampling"), NULL);
    if (s->say != NULL && (sampling == NULL || strcmp(sampling, "model") != 0) && apus_model_sampling_ignored(m, line, sizeof line))
        s->say(s->say_context, line);
    const apus_generator_options how = {.parse_special = NODE->as_bool(NODE->get(params, "parse_special"), 0),
                                        .parallel = NODE->as_int(NODE->get(params, "parallel"), 1),
                                        .cache_tokens = NODE->as_int(NODE->get(params, "cache_tokens"), 0)};
    apus_node *plan;
    st = apus_generator_new(m, &how, generator, err);
    if (st == APUS_OK)
        st = apus_generator_describe(*generator, &plan, err);
    return st == APUS_OK ? apus_stage_chose(s, apus_model_chosen(m, plan), err) : st;
}

static void generator_plan(apus_generator *g, apus_node *costs)
{
    apus_node *plan;
    (void)NODE->set(costs, "packed", apus_model_packed(apus_generator_model(g)));
    if (apus_generator_describe(g, &plan, NULL) == APUS_OK)
        (void)NODE->set(costs, "plan", plan);
}

static apus_status rows_open(apus_stage_context *s, const apus_node *dataset, void **rows, int64_t *count, apus_error *err)
{
    apus_examples *e;
    apus_status st = apus_examples_open(dataset, s->seed, &e, err);
    if (st != APUS_OK)
        return st;
    st = apus_examples_count(e, count, err);
    if (st != APUS_OK)
        apus_examples_close(e);
    else
        *rows = e;
    return st;
}
static apus_status rows_example(void *rows, int64_t i, apus_node **row, apus_node **example, apus_error *err)
{
    return apus_examples_get(rows, i, row, example, err);
}
static apus_status rows_judge(void *rows, const apus_node *row, const char *answer, apus_node **verdict, apus_error *err)
{
    return apus_examples_judge(rows, row, answer, verdict, err);
}
static void rows_close(void *rows)
{
    apus_examples_close(rows);
}

const apus_session_api *apus_session_table(void)
{
    static const apus_session_api table = {.size = sizeof table,
                                           .stage_name = stage_name,
                                           .stage_dir = stage_dir,
                                           .seed = stage_seed,
                                           .event = apus_stage_event,
                                           .result = stage_result,
                                           .trainer_open = apus_trainer_open,
                                           .trainer_close = apus_trainer_close,
                                           .trainer_step = trainer_step,
                                           .trainer_max_steps = trainer_max_steps,
                                           .train_step = apus_trainer_step,
                                           .trainer_evaluate = apus_trainer_evaluate,
                                           .trainer_checkpoint = apus_trainer_checkpoint,
                                           .trainer_finish = apus_trainer_finish,
                                           .evaluate = evaluate,
                                           .generator_open = generator_open,
                                           .generator_close = apus_generator_free,
                                           .generator_submit = apus_generator_submit,
                                           .generator_cancel = apus_generator_cancel,
                                           .generator_step = apus_generator_step,
                                           .generate = apus_generator_answer,
                                           .rows_open = rows_open,
                                           .rows_example = rows_example,
                                           .rows_judge = rows_judge,
                                           .rows_close = rows_close,
                                           .export_model = apus_export_stage,
                                           .trainer_plan = trainer_plan,
                                           .evaluate_plan = evaluate_plan,
                                           .generator_plan = generator_plan};
    return &table;
}
