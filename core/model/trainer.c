/* core/model/trainer.c: opening a training, one step, evaluation on held-out rows, the final model. Its plans: fit.c. */
#include "model/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/io.h"
#include "model/export.h"
#include "model/internal.h"

#define NODE apus_nodes()

static const apus_node *param(const apus_trainer *t, const char *name)
{
    return NODE->get(t->params, name);
}

static int64_t int_param(const apus_trainer *t, const char *name, int64_t fallback)
{
    return NODE->as_int(param(t, name), fallback);
}

/* ---------------------------------------------------------------- opening */

static apus_status open_model(apus_trainer *t, apus_error *err)
{
    apus_stage_context *s = t->stage;
    apus_node *tokenizer = NULL;
    if (NODE->get(param(t, "model"), "arch") != NULL) { /* from scratch: the data may bring its tokenizer */
        apus_examples *e;
        const apus_status st = apus_examples_open(param(t, "dataset"), s->seed, &e, err);
        if (st != APUS_OK)
            return st;
        tokenizer = apus_examples_tokenizer(e);
        apus_examples_close(e);
    }
    const apus_model_options options = {.device = s->device, .now = s->now, .seed = s->seed, .tokenizer = tokenizer};
    apus_status st = apus_model_open(param(t, "model"), &options, &t->model, err);
    NODE->release(tokenizer);
    if (st != APUS_OK)
        return st;
    const apus_node *tuner = param(t, "tuner"), *from = NODE->get(tuner, "adapter");
    const char *adapter = NODE->as_string(from, NULL);
    if (adapter == NULL)
        adapter = NODE->as_string(NODE->get(from, "adapter"), NULL);
    if (adapter == NULL)
        adapter = NODE->as_string(NODE->get(from, "path"), NULL);
    st = apus_model_tune(t->model, tuner, adapter, s->seed, err);
    if (st != APUS_OK)
        return st;
    t->new_adapter = adapter == NULL && apus_model_tuner_config(t->model) != NULL;
    /* What the policy was at step 0, so that an evaluation after training can use the same reference. */
    t->start_spec = NODE->copy(apus_model_spec(t->model));
    if (adapter != NULL) {
        apus_node *spec = NODE->make_map();
        (void)NODE->set(spec, "base", t->start_spec);
        (void)NODE->set(spec, "adapter", NODE->make_string(adapter, (size_t)-1));
        t->start_spec = spec;
    }
    /* Of a model with an adapter that alone is written. */
    return apus_model_tuner_config(t->model) != NULL ? apus_objective_settle(t->model, &t->loss, 1, err) : APUS_OK;
}

/* Ready-made rows, a template's tokens: ids that the model does not have. */
static apus_status check_vocabulary(const apus_trainer *t, const apus_dataset *d, apus_error *err)
{
    const int32_t vocab = t->model->facts.vocab;
    if (apus_dataset_limits(d)->largest_id < vocab)
        return APUS_OK;
    for (size_t i = 0; i < apus_dataset_rows(d); i++) {
        const apus_row r = apus_dataset_row(d, i);
        for (uint32_t k = 0; k < r.n_tokens; k++)
            if (r.ids[k] < 0 || r.ids[k] >= vocab)
                return apus_fail(err, APUS_E_INVALID, "dataset row %llu: token id %d is outside the model's vocabulary of %d",
                                 (unsigned long long)r.source, r.ids[k], vocab);
    }
    return APUS_OK;
}

static apus_status open_data(apus_trainer *t, apus_error *err)
{
    apus_stage_context *s = t->stage;
    const apus_dataset_options options = {.text = apus_model_text(t->model),
                                          .pairs = (t->loss.needs & APUS_LOSS_PAIRS) != 0,
                                          .apart = t->model->facts.length_dependent,
                                          .cache_dir = s->cache_dir,
                                          .seed = s->seed,
                                          .say = s->say,
                                          .context = s->say_context};
    apus_status st = apus_dataset_open(param(t, "dataset"), &options, &t->data, err);
    if (st != APUS_OK)
        return st;
    const double split = NODE->as_float(param(t, "eval_split"), 0.0);
    if (NODE->kind(param(t, "eval_dataset")) != APUS_NODE_NULL) {
        st = apus_dataset_open(param(t, "eval_dataset"), &options, &t->eval_data, err);
    } else if (split > 0.0) {
        t->whole_data = t->data;
        t->data = NULL;
        st = apus_dataset_split(t->whole_data, split, s->seed, &t->data, &t->eval_data, err);
    }
    if (st != APUS_OK)
        return st;
    t->has_eval = t->eval_data != NULL;
    const size_t rows = apus_dataset_rows(t->data);
    st = check_vocabulary(t, t->data, err);
    if (st == APUS_OK && t->has_eval)
        st = check_vocabulary(t, t->eval_data, err);
    if (st != APUS_OK)
        return st;
    const int64_t batch = int_param(t, "batch_size", 1);
    t->epoch_steps = ((int64_t)rows + batch - 1) / batch;
    t->max_steps = int_param(t, "max_steps", 0);
    const double epochs = NODE->as_float(param(t, "epochs"), 0.0);
    if (t->max_steps <= 0)
        t->max_steps = (int64_t)ceil((epochs > 0.0 ? epochs : 1.0) * (double)t->epoch_steps);
    else if (epochs > 0.0 && s->say != NULL)
        s->say(s->say_context, "max_steps and epochs are both set: max_steps wins");
    return APUS_OK;
}

/* The stage's folder, or the nearest above it that there is: a plan makes none. */
static void existing_folder(const apus_trainer *t, char *path, size_t capacity)
{
    (void)snprintf(path, capacity, "%s", t->stage->stage_dir);
    while (!apus_path_is_dir(path)) {
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash == path)
            (void)snprintf(path, capacity, "%s", slash == NULL ? "." : "/");
        else
            *slash = '\0';
    }
}

static apus_status open_plans(apus_trainer *t, apus_error *err)
{
    char folder[4096];
    existing_folder(t, folder, sizeof folder);
    apus_status st =
        apus_updater_open(&t->updater, t->model, param(t, "optimizer"), NODE->as_bool(param(t, "offload_optimizer"), 0) ? folder : NULL, err);
    if (st == APUS_OK && (t->loss.needs & APUS_LOSS_NEEDS_REFERENCE))
        st = apus_reference_open(&t->reference, t->model, NODE->get(param(t, "loss"), "reference"), t->new_adapter, t->stage->now, err);
    if (st == APUS_OK)
        st = apus_trainer_fit(t, err);
    if (st == APUS_OK)
        st = apus_updater_bind(&t->updater, t->train.plan, err);
    return st == APUS_OK ? apus_model_bind(t->model, t->train.plan, err) : st;
}

static apus_status open_profile(apus_trainer *t, apus_error *err)
{
    if (!t->stage->profile)
        return APUS_OK;
    t->profile = apus_profile_open(t->stage->stage_dir, err);
    apus_status st = t->profile != NULL ? APUS_OK : APUS_E_MEMORY;
    if (st == APUS_OK)
        st = apus_profile_plan(t->profile, t->train.plan, "", err);
    if (st == APUS_OK)
        st = apus_profile_plan(t->profile, t->train.counts, "counts", err);
    if (st == APUS_OK)
        st = apus_profile_plan(t->profile, t->reference.plan, "reference", err);
    if (st == APUS_OK)
        st = apus_profile_plan(t->profile, t->updater.norm, "norm", err);
    return st == APUS_OK ? apus_profile_plan(t->profile, t->updater.update, "optimizer", err) : st;
}

apus_status apus_trainer_open(apus_stage_context *s, const apus_node *params, apus_trainer **trainer, apus_error *err)
{
    apus_trainer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    t->stage = s;
    t->params = params;
    t->best_eval = INFINITY;
    t->best_step = -1;
    apus_status st = apus_loss_open(&t->loss, param(t, "loss"), err);
    if (st == APUS_OK)
        st = open_model(t, err);
    if (st == APUS_OK)
        st = open_data(t, err);
    if (st == APUS_OK)
        st = apus_schedule_open(param(t, "schedule"), t->max_steps, &t->schedule, err);
    if (st == APUS_OK)
        st = open_plans(t, err);
    if (st == APUS_OK)
        st = open_profile(t, err);
    if (st == APUS_OK)
        st = apus_stage_chose(s, apus_trainer_chosen(t), err);
    if (st == APUS_OK && apus_trainer_resume(t, err) < 0)
        st = APUS_E_INVALID;
    if (st != APUS_OK) {
        apus_trainer_close(t);
        return st;
    }
    *trainer = t;
    return APUS_OK;
}

void apus_trainer_close(apus_trainer *t)
{
    if (t == NULL)
        return;
    apus_profile_close(t->profile);
    apus_reference_close(&t->reference);
    apus_objective_close(&t->eval);
    apus_objective_close(&t->train);
    apus_updater_close(&t->updater);
    apus_batch_free(&t->batch);
    apus_dataset_close(t->data);
    apus_dataset_close(t->eval_data);
    apus_dataset_close(t->whole_data);
    apus_loss_close(&t->loss);
    apus_model_close(t->model);
    NODE->release(t->start_spec);
    free(t);
}

/* ---------------------------------------------------------------- a step */

/* Rows of a step by their numbers, for an error: "rows 12, 40, …". */
static const char *name_rows(const apus_trainer *t, size_t begin, size_t end, char *text, size_t capacity)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = begin; i < end && used + 24 < capacity; i++)
        used += (size_t)snprintf(text + used, capacity - used, "%s%llu", i > begin ? ", " : "",
                                 (unsigned long long)apus_dataset_row(t->data, apus_row_order_at(&t->order, i)).source);
    return text;
}

/* Not finite: the gradients are thrown away, the weights are as they were. */
static apus_status stop_numeric(apus_trainer *t, double loss, double norm, size_t begin, size_t end, apus_error *err)
{
    char rows[256];
    apus_fail(err, APUS_E_NUMERIC, "step %lld: loss is %g and the gradient norm %g, rows %s", (long long)t->step + 1, loss, norm,
              name_rows(t, begin, end, rows, sizeof rows));
    return apus_hint(err, APUS_E_NUMERIC, "lower optimizer.learning_rate, set max_grad_norm, or look at those rows; the last checkpoint is kept");
}

/* Time that the step waits for its data, from `began` on. */
static void wait_ends(apus_trainer *t, double began, double *waited)
{
    const double ended = apus_clock();
    apus_profile_wait(t->profile, began, ended);
    *waited += ended - began;
}

/* The step's rows are order[begin … *end). */
static size_t step_rows(apus_trainer *t, size_t *end)
{
    const uint64_t epoch = (uint64_t)(t->step / t->epoch_steps);
    const size_t rows = apus_dataset_rows(t->data), batch = (size_t)int_param(t, "batch_size", 1);
    t->order = (apus_row_order){t->stage->seed, epoch, rows, apus_dataset_shuffles(t->data)};
    const size_t begin = (size_t)(t->step % t->epoch_steps) * batch;
    *end = begin + batch < rows ? begin + batch : rows;
    return begin;
}

/* Rows from i on into the next micro-batch; how many. */
static size_t next_rows(apus_trainer *t, size_t i, size_t end, int64_t index_base, double *waited)
{
    const double began = apus_clock();
    const size_t n = apus_batch_fill(&t->batch, t->data, &t->order, i, end, index_base);
    wait_ends(t, began, waited);
    return n;
}

/* Once, when there is a profile to tell. */
static apus_status tell_profile(apus_trainer *t, int last, apus_error *err)
{
    apus_node *table;
    apus_status st = apus_profile_table(t->profile, last, &table, err);
    if (st != APUS_OK || table == NULL)
        return st;
    apus_node *e = NODE->make_map();
    (void)NODE->set(e, "step", NODE->make_int(t->step));
    (void)NODE->set(e, "profile", table);
    return apus_stage_event(t->stage, e, err);
}

apus_status apus_trainer_step(apus_trainer *t, apus_error *err)
{
    apus_status st = t->eval_due ? apus_trainer_evaluate(t, err) : APUS_OK;
    if (st != APUS_OK)
        return st;
    const double started = apus_clock();
    apus_profile_begin(t->profile);
    double waited = 0.0;
    size_t end;
    const size_t begin = step_rows(t, &end);
    t->batch.random[0] = (int64_t)t->stage->seed;
    t->batch.random[1] = t->step;

    apus_objective_sums sums = {0}, counts = {0};
    int64_t tokens = 0;
    for (size_t i = begin; i < end && st == APUS_OK;) {
        i += next_rows(t, i, end, tokens, &waited);
        tokens += t->batch.extents[0];
        st = apus_objective_count(&t->train, &t->batch, &counts, err);
    }
    if (st == APUS_OK)
        st = apus_objective_scale(&t->train, &counts, err);
    tokens = 0;
    for (size_t i = begin; i < end && st == APUS_OK;) {
        i += next_rows(t, i, end, tokens, &waited);
        tokens += t->batch.extents[0];
        st = apus_reference_run(&t->reference, &t->batch, err);
        if (st == APUS_OK)
            st = apus_objective_run(&t->train, &t->batch, &sums, err);
    }
    if (st != APUS_OK)
        return st;

    double norm = 0.0;
    const double loss = apus_objective_loss(&t->train, &sums);
    st = apus_updater_norm(&t->updater, &norm, err);
    if (st == APUS_OK && (!isfinite(loss) || !isfinite(norm)))
        st = stop_numeric(t, loss, norm, begin, end, err);
    const double limit = NODE->as_float(param(t, "max_grad_norm"), 0.0);
    /* torch.nn.utils.clip_grad_norm_: factor max/(norm + 1e-6), at most 1. */
    const double clip = limit > 0.0 ? fmin(1.0, limit / (norm + 1e-6)) : 1.0;
    const double rate = t->updater.peak * apus_schedule_factor(&t->schedule, t->step);
    if (st == APUS_OK)
        st = apus_updater_step(&t->updater, rate, t->step + 1, clip, err);
    if (st != APUS_OK)
        return st;
    t->step++;
    t->num_tokens += (uint64_t)tokens;
    const double ended = apus_clock(), seconds = ended - started;
    t->seconds += seconds;
    apus_profile_end(t->profile, started, ended);

    apus_node *e = NODE->make_map();
    (void)NODE->set(e, "step", NODE->make_int(t->step));
    apus_objective_report(&t->train, &sums, "", e);
    apus_node_set_float(e, "grad_norm", norm);
    apus_node_set_float(e, "learning_rate", rate);
    apus_node_set_float(e, "epoch", (double)t->step / (double)t->epoch_steps);
    (void)NODE->set(e, "tokens", NODE->make_int(tokens));
    (void)NODE->set(e, "num_tokens", NODE->make_int((int64_t)t->num_tokens));
    apus_node_set_float(e, "tokens_per_second", (double)tokens / fmax(seconds, 1e-9));
    apus_node_set_float(e, "data_seconds", waited);
    (void)NODE->set(e, "max_steps", NODE->make_int(t->max_steps));
    st = apus_stage_event(t->stage, e, err);
    return st == APUS_OK ? tell_profile(t, 0, err) : st;
}

/* ---------------------------------------------------------------- evaluation */

apus_status apus_evaluate_rows(apus_objective *o, apus_reference *r, apus_batch *b, const apus_dataset *d, apus_objective_sums *sums, apus_error *err)
{
    const apus_row_order order = {.n = apus_dataset_rows(d)};
    apus_status st = APUS_OK;
    for (size_t i = 0; i < order.n && st == APUS_OK;) {
        i += apus_batch_fill(b, d, &order, i, order.n, 0);
        st = apus_reference_run(r, b, err);
        if (st == APUS_OK)
            st = apus_objective_run(o, b, sums, err);
        if (st == APUS_OK && apus_host_table()->stopping())
            st = apus_fail(err, APUS_E_STOPPED, "stopped during evaluation");
    }
    return st;
}

apus_status apus_trainer_evaluate(apus_trainer *t, apus_error *err)
{
    if (!t->has_eval)
        return APUS_OK;
    apus_objective_sums sums = {0};
    const double began = apus_clock();
    apus_status st = apus_evaluate_rows(&t->eval, &t->reference, &t->batch, t->eval_data, &sums, err);
    t->eval_due = st == APUS_E_STOPPED;
    apus_profile_span(t->profile, "evaluation", began, apus_clock());
    if (st != APUS_OK)
        return st;
    const double loss = apus_objective_loss(&t->eval, &sums);
    if (loss < t->best_eval) {
        t->best_eval = loss;
        t->best_step = t->step;
    }
    apus_node *e = NODE->make_map();
    (void)NODE->set(e, "step", NODE->make_int(t->step));
    apus_node_set_float(e, "epoch", (double)t->step / (double)t->epoch_steps);
    apus_objective_report(&t->eval, &sums, "eval_", e);
    return apus_stage_event(t->stage, e, err);
}

/* ---------------------------------------------------------------- the result */

apus_status apus_trainer_finish(apus_trainer *t, apus_error *err)
{
    apus_status st = t->eval_due ? apus_trainer_evaluate(t, err) : APUS_OK;
    if (st == APUS_OK)
        st = tell_profile(t, 1, err);
    if (st != APUS_OK)
        return st;
    char path[4096];
    const int adapter = apus_model_tuner_config(t->model) != NULL;
    snprintf(path, sizeof path, "%s/model", t->stage->stage_dir);
    const apus_write_options options = {.format = NODE->as_string(param(t, adapter ? "adapter_format" : "format"), NULL),
                                        .path = path,
                                        .adapter = adapter,
                                        .dtype = APUS_F32,
                                        .replace = 1};
    st = apus_model_write(t->model, &options, err);
    if (st != APUS_OK)
        return st;
    apus_node *result = NODE->make_map(), *model = NODE->make_map();
    if (adapter) {
        (void)NODE->set(model, "base", NODE->copy(apus_model_spec(t->model)));
        (void)NODE->set(model, "adapter", NODE->make_string(path, (size_t)-1));
    } else {
        (void)NODE->set(model, "path", NODE->make_string(path, (size_t)-1));
    }
    /* How it was trained, so that an evaluation without `loss:` measures the same thing against the same reference. */
    apus_node *loss = NODE->copy(param(t, "loss"));
    const apus_node *reference = NODE->get(loss, "reference");
    const char *how = NODE->as_string(reference, NULL);
    if ((t->loss.needs & APUS_LOSS_NEEDS_REFERENCE) && NODE->kind(loss) == APUS_NODE_MAP &&
        (how == NULL ? NODE->kind(reference) == APUS_NODE_NULL : 1)) {
        if (how == NULL || strcmp(how, "start") == 0)
            (void)NODE->set(loss, "reference", NODE->copy(t->start_spec));
        else if (strcmp(how, "base") == 0)
            (void)NODE->set(loss, "reference", NODE->copy(apus_model_spec(t->model)));
    }
    (void)NODE->set(model, "loss", loss);
    (void)NODE->set(result, "model", model);
    (void)NODE->set(result, "steps", NODE->make_int(t->step));
    (void)NODE->set(result, "num_tokens", NODE->make_int((int64_t)t->num_tokens));
    (void)NODE->set(result, "dataset", NODE->copy(apus_dataset_report(t->whole_data != NULL ? t->whole_data : t->data)));
    if (t->best_step >= 0)
        apus_node_set_float(result, "best_eval_loss", t->best_eval);
    NODE->release(t->stage->result);
    t->stage->result = result;
    return APUS_OK;
}
