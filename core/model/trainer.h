/*
 * core/model/trainer: a model being trained: objective, optimizer, schedule, order of the data, checkpoints. See apus/session.h for
 * what each call promises.
 */
#ifndef APUS_CORE_TRAINER_H
#define APUS_CORE_TRAINER_H

#include "model/objective.h"
#include "model/profile.h"
#include "model/schedule.h"
#include "run/stage.h"

/* The optimizer over every trained weight: gradients in device memory, states there too or in a mapped file. */
typedef struct apus_updater {
    apus_optimizer_ops ops;
    void *optimizer;
    apus_model *model;
    size_t n;              /* trained weights */
    apus_weight **weights; /* [n] */
    void **grads;          /* [n] device */
    void **states;         /* [n * n_states] device, by weight then state */
    char *file;            /* mapped, holds the states; NULL: device memory does */
    size_t file_bytes;
    uint32_t n_states;
    apus_graph *graph, *norm_graph;
    apus_plan *update, *norm;
    double peak; /* learning rate before the schedule */
} apus_updater;

/* folder: a file in it holds the states, which the kernel may write out and read back; NULL: the device's memory. */
apus_status apus_updater_open(apus_updater *u, apus_model *m, const apus_node *spec, const char *folder, apus_error *err);
void apus_updater_close(apus_updater *u);
/* Bind "grad.<name>" variables of a plan. */
apus_status apus_updater_bind(apus_updater *u, apus_plan *p, apus_error *err);
/* L2 norm over all gradients. */
apus_status apus_updater_norm(apus_updater *u, double *norm, apus_error *err);
/* One step (1-based) with gradients times clip; leaves the gradients zero. */
apus_status apus_updater_step(apus_updater *u, double learning_rate, int64_t step, double clip, apus_error *err);
/* About how long norm and step take: see apus_plan_measure. */
apus_status apus_updater_measure(apus_updater *u, double *seconds, apus_error *err);

/* How a step is cut and what its backward pass computes again. */
typedef struct apus_layout {
    int64_t tokens; /* micro-batches are cut at about so many; one row may be longer */
    int recompute;  /* as for apus_plan_new */
} apus_layout;

struct apus_trainer {
    apus_stage_context *stage;
    const apus_node *params; /* the stage's; live as long as the stage */
    apus_model *model;
    apus_loss loss;
    apus_objective train, eval;
    apus_reference reference;
    apus_updater updater;
    apus_layout layout;
    apus_schedule schedule;
    apus_dataset *data, *eval_data, *whole_data;
    apus_batch batch;
    apus_row_order order;    /* of the current epoch */
    int64_t step, max_steps; /* optimizer steps done; to do */
    int64_t epoch_steps;     /* steps of an epoch */
    uint64_t num_tokens;
    double seconds;    /* of training so far, checkpoints aside: for the report only */
    double best_eval;  /* lowest eval_loss so far */
    int64_t best_step; /* -1: none */
    int has_eval, new_adapter;
    int eval_due;          /* the evaluation of this step was stopped: it comes first when training goes on */
    apus_profile *profile; /* NULL: off */
    apus_node *start_spec; /* the model at step 0, for later stages' reference */
};

apus_status apus_trainer_open(apus_stage_context *s, const apus_node *params, apus_trainer **trainer, apus_error *err);
void apus_trainer_close(apus_trainer *t);
apus_status apus_trainer_step(apus_trainer *t, apus_error *err);
apus_status apus_trainer_evaluate(apus_trainer *t, apus_error *err);
apus_status apus_trainer_checkpoint(apus_trainer *t, apus_error *err);
apus_status apus_trainer_finish(apus_trainer *t, apus_error *err);

/* Opens the passes (train, eval, the reference's plan) over updater and reference, in the layout that takes the least time among
 * those that keep within the stage's memory_limit (fit.c). APUS_E_MEMORY: none does; err says what the least would be. */
apus_status apus_trainer_fit(apus_trainer *t, apus_error *err);

/* Bytes of what a training computes with; not the program, its data's mapped pages, nor buffers of some kilobytes. */
typedef struct apus_training_memory {
    uint64_t weights; /* of the model and its adapter */
    uint64_t gradients, states;
    uint64_t offloaded;   /* states in a file: not in `total` */
    uint64_t reference;   /* weights of the reference that are not the model's */
    uint64_t activations; /* all plans' arenas: activations, scratch, constants */
    uint64_t total;
} apus_training_memory;
apus_training_memory apus_trainer_memory(const apus_trainer *t);
/* "micro-batches of up to 512 tokens, 3 of 30 blocks computed again" */
const char *apus_trainer_layout(const apus_trainer *t, char text[160]);

/* {BF16: {weights: [names], bytes}}: the packed weights, by what they hold. owner: caller. (cost.c) */
apus_node *apus_model_packed(const apus_model *m);
/* What was decided, for the lock: {packed, kernels: ["op: table"]} of a model and a plan over it, as apus_plan_describe tells it (taken); of
 * a training {layout, memory} too. owner: caller. (cost.c) */
apus_node *apus_model_chosen(const apus_model *m, apus_node *plan);
apus_node *apus_trainer_chosen(const apus_trainer *t);
/* What the training costs, into a map: parameters, trained, rows, steps, steps_done, memory (bytes), layout, tokens_per_step,
 * flops_per_step, seconds_per_step, seconds (of all that is left; an estimate), seconds_from (events: the stage's tokens_per_second;
 * timing: each kind of operation is timed now, on some rows), packed, model (a spec of the shape that it will make), plan. Gradients and weights
 * are spoilt by the timing: the trainer can only be closed then. (cost.c) */
apus_status apus_trainer_describe(apus_trainer *t, apus_node *map, apus_error *err);
/* About how long a token of d takes to run through o and r, by timing on some rows; their results mean nothing. b: of their capacity. */
apus_status apus_pass_cost(apus_objective *o, apus_reference *r, apus_batch *b, const apus_dataset *d, uint64_t seed, double *seconds,
                           apus_error *err);

/* Sums of the objective over all rows of d, in order. r: zeroed when no reference is needed. */
apus_status apus_evaluate_rows(apus_objective *o, apus_reference *r, apus_batch *b, const apus_dataset *d, apus_objective_sums *sums,
                               apus_error *err);

/* Newest checkpoint that is whole and was made by the same configuration: 1 loaded, 0 none, -1 error. */
int apus_trainer_resume(apus_trainer *t, apus_error *err);

#endif
