/*
 * core/model/objective: a loss over a model: the graph from tokens to terms and metrics, its sums over a global batch, the
 * reference model's log-probabilities. Training and evaluation use the same one, so that they cannot disagree.
 */
#ifndef APUS_CORE_OBJECTIVE_H
#define APUS_CORE_OBJECTIVE_H

#include "model/batch.h"
#include "model/model.h"

#define APUS_MAX_TERMS   8
#define APUS_MAX_METRICS 24

/* A loss component, opened. */
typedef struct apus_loss {
    apus_loss_ops ops;
    void *loss;
    uint32_t needs;
} apus_loss;

apus_status apus_loss_open(apus_loss *l, const apus_node *spec, apus_error *err);
void apus_loss_close(apus_loss *l);

struct apus_loss_context {
    apus_graph *graph;
    size_t n_terms, n_metrics;
    char term_names[APUS_MAX_TERMS][64], metric_names[APUS_MAX_METRICS][64];
    double weights[APUS_MAX_TERMS];
    apus_tensor term_sum[APUS_MAX_TERMS], term_count[APUS_MAX_TERMS];
    apus_tensor metric_sum[APUS_MAX_METRICS], metric_count[APUS_MAX_METRICS];
};

/* Sums over the micro-batches of a global batch. */
typedef struct apus_objective_sums {
    double term_sum[APUS_MAX_TERMS], term_count[APUS_MAX_TERMS];
    double metric_sum[APUS_MAX_METRICS], metric_count[APUS_MAX_METRICS];
} apus_objective_sums;

typedef struct apus_objective {
    apus_loss_context context;
    apus_model *model;
    apus_graph *graph;
    apus_plan *plan;              /* forward, and backward when trained: sums, counts, gradients accumulated */
    apus_plan *counts;            /* the terms' counts alone, from the data */
    double scale[APUS_MAX_TERMS]; /* weight / global count: what each term's sum is multiplied by */
    apus_feed *feeds;             /* the batch's, then the scales */
} apus_objective;

typedef struct apus_objective_options {
    int train; /* build gradients of all trained weights, accumulated into variables "grad.<name>" */
    int dropout;
    int recompute;
} apus_objective_options;

/* Before anything else is opened over m, whose weights are not to be written to a file from then on, a tuner's aside: see
 * apus_model_settle. train: gradients are built too. */
apus_status apus_objective_settle(apus_model *m, const apus_loss *l, int train, apus_error *err);
apus_status apus_objective_open(apus_objective *o, apus_model *m, const apus_loss *l, const apus_objective_options *options,
                                const int64_t capacity[APUS_N_DIM_SYMBOLS], apus_error *err);
void apus_objective_close(apus_objective *o);

/* Add this micro-batch's counts. */
apus_status apus_objective_count(apus_objective *o, const apus_batch *b, apus_objective_sums *sums, apus_error *err);
/* Run this micro-batch; adds its sums (and metrics). Scales must be set when training. */
apus_status apus_objective_run(apus_objective *o, const apus_batch *b, apus_objective_sums *sums, apus_error *err);
/* About how long such a run takes: see apus_plan_measure. */
apus_status apus_objective_measure(apus_objective *o, const apus_batch *b, double *seconds, apus_error *err);
/* weight / count for each term, from counts over the global batch. */
apus_status apus_objective_scale(apus_objective *o, const apus_objective_sums *counts, apus_error *err);
/* loss = sum of weight * sum / count. */
double apus_objective_loss(const apus_objective *o, const apus_objective_sums *sums);
/* Put loss, its terms (when there are several) and the metrics into a map, each name behind prefix. */
void apus_objective_report(const apus_objective *o, const apus_objective_sums *sums, const char *prefix, apus_node *map);

/* The reference: log-probabilities of each row by another state of the model. */
typedef struct apus_reference {
    apus_model *model; /* the policy itself, or another model */
    int owns_model;
    int adapter; /* the model's tuner is on */
    apus_graph *graph;
    apus_plan *plan; /* NULL: no reference wanted, or precomputed */
    void **frozen;   /* device copies bound instead of the policy's trained weights */
    size_t n_frozen;
    double *rows; /* [R] */
} apus_reference;

/* how: "start", "base", "precomputed" (strings) or a model spec (map or path). new_adapter: the policy's tuner starts at zero, so
 * that "start" is the base. now, seed: as for apus_model_open. */
apus_status apus_reference_open(apus_reference *r, apus_model *policy, const apus_node *how, int new_adapter, int64_t now, apus_error *err);
/* Its plan for batches of this capacity, in place of an earlier one. Before it runs. Nothing for one that is not open. */
apus_status apus_reference_plan(apus_reference *r, const int64_t capacity[APUS_N_DIM_SYMBOLS], apus_error *err);
void apus_reference_close(apus_reference *r);
/* Fill b's reference log-probabilities. */
apus_status apus_reference_run(apus_reference *r, apus_batch *b, apus_error *err);
/* About how long that takes: see apus_plan_measure. */
apus_status apus_reference_measure(apus_reference *r, const apus_batch *b, double *seconds, apus_error *err);

#endif
