/*
 * core/model/fit.c: how a training is cut to fit a memory limit: into how large micro-batches, and how many of the model's blocks the
 * backward pass computes again. Decided by the plans' own accounts of bytes and operations, never by a clock or by what is free now:
 * the same training with the same limit is always cut the same way.
 */
#include <math.h>
#include <string.h>

#include "model/internal.h"
#include "model/trainer.h"

#define NODE apus_nodes()

enum {
    TOKENS = 1024,    /* long enough for the matrix kernels, short enough for caches and memory */
    LEAST_TOKENS = 32 /* below, products are as slow as reading the weights */
};

/* A micro-batch reads and writes each weight and gradient about twice, and a byte from memory takes as long as ten operations. */
#define OPERATIONS_PER_BYTE 20.0

/* ---------------------------------------------------------------- memory */

static uint64_t arena(const apus_plan *p)
{
    return p != NULL ? apus_plan_costs(p).arena_bytes : 0;
}

apus_training_memory apus_trainer_memory(const apus_trainer *t)
{
    apus_training_memory m = {.activations = arena(t->train.plan) + arena(t->train.counts) + arena(t->eval.plan) + arena(t->reference.plan) +
                                             arena(t->updater.update) + arena(t->updater.norm)};
    for (size_t i = 0; i < t->model->n_weights; i++) {
        const apus_weight *w = &t->model->weights[i];
        m.weights += w->bytes;
        m.gradients += w->trained ? w->bytes : 0;
        *(t->updater.file != NULL ? &m.offloaded : &m.states) += w->trained ? w->bytes * t->updater.n_states : 0;
    }
    for (size_t i = 0; t->reference.owns_model && i < t->reference.model->n_weights; i++)
        m.reference += t->reference.model->weights[i].bytes;
    for (size_t i = 0; i < t->reference.n_frozen; i++)
        m.reference += t->reference.frozen[i] != NULL ? t->model->weights[i].bytes : 0;
    m.total = m.weights + m.gradients + m.states + m.reference + m.activations;
    return m;
}

/* "12.3 MiB", "4.0 KiB" */
typedef struct size_text {
    char text[32];
} size_text;

static size_text size_of(uint64_t bytes)
{
    size_text s;
    if (bytes < 1u << 20)
        (void)snprintf(s.text, sizeof s.text, "%.1f KiB", (double)bytes / 1024.0);
    else
        (void)snprintf(s.text, sizeof s.text, "%.1f MiB", (double)bytes / 1048576.0);
    return s;
}

/* ---------------------------------------------------------------- a layout */

static void set_capacity(const apus_trainer *t, int64_t tokens, int64_t capacity[APUS_N_DIM_SYMBOLS])
{
    const apus_dataset *const sets[2] = {t->data, t->eval_data};
    apus_batch_capacity(sets, 2, (size_t)NODE->as_int(NODE->get(t->params, "batch_size"), 1), tokens, capacity);
}

/* In place of those that are open. */
static apus_status open_passes(apus_trainer *t, apus_layout layout, apus_error *err)
{
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    const apus_objective_options options = {.train = 1, .dropout = 1, .recompute = layout.recompute}, plain = {0};
    apus_objective_close(&t->eval);
    apus_objective_close(&t->train);
    apus_batch_free(&t->batch);
    t->layout = layout;
    set_capacity(t, layout.tokens, capacity);
    apus_status st = apus_batch_init(&t->batch, capacity, layout.tokens, err);
    if (st == APUS_OK)
        st = apus_objective_open(&t->train, t->model, &t->loss, &options, capacity, err);
    if (st == APUS_OK && t->has_eval)
        st = apus_objective_open(&t->eval, t->model, &t->loss, &plain, capacity, err);
    if (st == APUS_OK)
        st = apus_reference_plan(&t->reference, capacity, err);
    if (st != APUS_OK)
        return st;
    /* They run one after the other, and what they give is read at once. */
    if (t->eval.plan != NULL)
        apus_plan_share(t->eval.plan, t->train.plan);
    if (t->reference.plan != NULL)
        apus_plan_share(t->reference.plan, t->train.plan);
    return APUS_OK;
}

/* What a token takes, in operations. */
static double expense(const apus_trainer *t)
{
    const apus_plan_cost c = apus_plan_costs(t->train.plan);
    return (c.product_flops + OPERATIONS_PER_BYTE * (double)c.variable_bytes) / (double)t->batch.capacity[0];
}

static int recompute_mode(const char *name)
{
    if (name != NULL && strcmp(name, "none") == 0)
        return APUS_RECOMPUTE_NONE;
    return name != NULL && strcmp(name, "block") == 0 ? APUS_RECOMPUTE_BLOCK : APUS_RECOMPUTE_CHEAP;
}

const char *apus_trainer_layout(const apus_trainer *t, char text[160])
{
    const int blocks = apus_plan_costs(t->train.plan).blocks, r = t->layout.recompute;
    const int64_t most = t->batch.capacity[0], target = t->batch.target;
    const int n = target < most
                      ? snprintf(text, 160, "micro-batches of up to %lld tokens, a row alone of up to %lld, ", (long long)target, (long long)most)
                      : snprintf(text, 160, "micro-batches of up to %lld tokens, ", (long long)most);
    if (r > APUS_RECOMPUTE_BLOCK)
        (void)snprintf(text + n, 160 - (size_t)n, "%d of %d blocks computed again", r - APUS_RECOMPUTE_BLOCK, blocks);
    else
        (void)snprintf(text + n, 160 - (size_t)n, "%s",
                       r == APUS_RECOMPUTE_NONE    ? "nothing computed again"
                       : r == APUS_RECOMPUTE_CHEAP ? "cheap operations computed again"
                                                   : "all blocks computed again");
    return text;
}

/* ---------------------------------------------------------------- the search */

typedef struct search {
    apus_trainer *t;
    uint64_t limit, least; /* bytes; the least that any layout took */
    apus_layout best;
    double best_expense;
} search;

/* Opens a layout; 1 when it keeps within the limit. */
static apus_status try(search *s, int64_t tokens, int recompute, int *fits, apus_error *err)
{
    const apus_layout layout = {tokens, recompute};
    const apus_status st = open_passes(s->t, layout, err);
    *fits = 0;
    if (st != APUS_OK)
        return st;
    const uint64_t total = apus_trainer_memory(s->t).total;
    s->least = total < s->least ? total : s->least;
    *fits = total <= s->limit;
    if (*fits && expense(s->t) < s->best_expense) {
        s->best = layout;
        s->best_expense = expense(s->t);
    }
    return APUS_OK;
}

/* The fewest blocks computed again that fit. All but the last, which is needed again at once, is mostly the least memory. */
static apus_status try_blocks(search *s, int64_t tokens, int blocks, apus_error *err)
{
    int low = 1, high = blocks - 1, fits = 0;
    apus_status st = high >= 1 ? try(s, tokens, APUS_RECOMPUTE_BLOCK + high, &fits, err) : APUS_OK;
    if (st == APUS_OK && !fits)
        return try(s, tokens, APUS_RECOMPUTE_BLOCK, &fits, err);
    while (low < high && st == APUS_OK) {
        const int middle = (low + high) / 2;
        st = try(s, tokens, APUS_RECOMPUTE_BLOCK + middle, &fits, err);
        if (fits)
            high = middle;
        else
            low = middle + 1;
    }
    return st;
}

static apus_status refuse(const search *s, apus_error *err)
{
    const apus_training_memory m = apus_trainer_memory(s->t);
    apus_fail(err, APUS_E_MEMORY,
              "memory: the limit is %s, this training needs at least %s: %s of weights, %s of gradients, %s of optimizer states, "
              "the rest of activations and scratch for rows of up to %u tokens",
              size_of(s->limit).text, size_of(s->least).text, size_of(m.weights + m.reference).text, size_of(m.gradients).text,
              size_of(m.states).text, apus_dataset_limits(s->t->data)->longest);
    return apus_hint(err, APUS_E_MEMORY, "raise backend.memory, shorten dataset.max_length, %strain fewer weights",
                     m.states > 0 ? "set offload_optimizer, or " : "or ");
}

apus_status apus_trainer_fit(apus_trainer *t, apus_error *err)
{
    const int wanted = recompute_mode(NODE->as_string(NODE->get(t->params, "recompute"), NULL));
    if (t->stage->memory_limit <= 0)
        return open_passes(t, (apus_layout){TOKENS, wanted}, err);
    search s = {.t = t, .limit = (uint64_t)t->stage->memory_limit, .least = UINT64_MAX, .best_expense = INFINITY};
    apus_status st = APUS_OK;
    int64_t before = 0, capacity[APUS_N_DIM_SYMBOLS];
    for (int64_t tokens = TOKENS; tokens >= LEAST_TOKENS && st == APUS_OK; tokens /= 2) {
        int fits;
        set_capacity(t, tokens, capacity);
        if (capacity[0] == before) /* the longest row, or all of them, take no less or more */
            continue;
        before = capacity[0];
        st = try(&s, tokens, wanted, &fits, err);
        const int blocks = st == APUS_OK ? apus_plan_costs(t->train.plan).blocks : 0;
        if (st == APUS_OK && !fits && blocks > 0 && wanted != APUS_RECOMPUTE_BLOCK)
            st = try_blocks(&s, tokens, blocks, err);
    }
    if (st != APUS_OK)
        return st;
    if (!(s.best_expense < INFINITY))
        return refuse(&s, err);
    st = open_passes(t, s.best, err);
    if (st == APUS_OK && t->stage->say != NULL) {
        char line[300], text[160];
        (void)snprintf(line, sizeof line, "memory: %s of %s, with %s", size_of(apus_trainer_memory(t).total).text, size_of(s.limit).text,
                       apus_trainer_layout(t, text));
        t->stage->say(t->stage->say_context, line);
    }
    return st;
}
