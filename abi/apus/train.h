/*
 * apus/train.h: the kinds "loss", "tuner" and "optimizer". They meet the graph and nothing else.
 *
 * Named inputs every training graph has (graph->input): "tokens" "positions" "lengths" i32 [T]; "segments" i32 [S,4];
 * "token_index" i64 [T]: the token's index in the global batch, whatever the cut; "random" i64 [2] = {seed, step}.
 */
#ifndef APUS_TRAIN_H
#define APUS_TRAIN_H

#include <apus/graph.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------ the kind "loss" */

typedef struct apus_loss_context apus_loss_context;

/* What a loss may read. Log-probabilities are natural logs of the policy's (or the reference's) probability of the target token.
 * A row is one trained sequence (an answer); a pair is a chosen and a rejected row. Unused ones cost nothing. */
typedef struct apus_signals {
    uint32_t size;
    apus_loss_context *context;
    apus_tensor token_logps;              /* [N] of each trained token */
    apus_tensor token_rows;               /* i32 [N] row of each trained token */
    apus_tensor row_logps;                /* [R] sum over the row's trained tokens */
    apus_tensor row_tokens;               /* [R] how many they are */
    apus_tensor chosen_logps;             /* [P] sums */
    apus_tensor rejected_logps;           /* [P] */
    apus_tensor chosen_tokens;            /* [P] counts */
    apus_tensor rejected_tokens;          /* [P] */
    apus_tensor reference_chosen_logps;   /* [P] of the reference model; no gradient; none unless NEEDS_REFERENCE */
    apus_tensor reference_rejected_logps; /* [P] */
    apus_tensor ones;                     /* [N] ones; apus_sum of it counts tokens */
    apus_tensor pair_ones;                /* [P] ones */
    /* One term of the loss: weight * (sum over the global batch of `sum`) / (the same of `count`); both [1]. `count` must depend
     * on the data alone. */
    void (*term)(apus_loss_context *context, const char *name, apus_tensor sum, apus_tensor count, double weight);
    /* A figure for the events, summed and divided the same way: "rewards/margins". */
    void (*metric)(apus_loss_context *context, const char *name, apus_tensor sum, apus_tensor count);
} apus_signals;

enum {
    APUS_LOSS_SEQUENCES = 0u,       /* rows are single sequences */
    APUS_LOSS_PAIRS = 1u,           /* rows are preference pairs */
    APUS_LOSS_NEEDS_REFERENCE = 2u, /* needs the reference model's log-probabilities */
    APUS_LOSS_NO_DROPOUT = 4u       /* dropout stays off (policy and reference must be comparable) */
};

typedef struct apus_loss_ops {
    uint32_t size;
    apus_status (*open)(const apus_host *host, const apus_node *params, void **loss, apus_error *err);
    void (*close)(void *loss);
    uint32_t (*needs)(void *loss);
    void (*build)(void *loss, apus_graph *g, const apus_signals *signals);
} apus_loss_ops;

/* ------------------------------------------------------------ the kind "tuner" */

/* Values of a tuner's parameter as float32, for merging. NULL when there is none of that name. */
typedef const float *(*apus_tuner_values)(void *context, const char *parameter);

typedef struct apus_tuner_ops {
    uint32_t size;
    apus_status (*open)(const apus_host *host, const apus_node *params, void **tuner, apus_error *err);
    void (*close)(void *tuner);
    /* See all of the model's weights once; decide. A target that matches nothing is an error. [main] */
    apus_status (*bind)(void *tuner, const apus_weight_spec *weights, size_t n, apus_error *err);
    int (*trains)(void *tuner, const apus_weight_spec *weight);      /* 1: the model's own weight is trained */
    /* Its own parameters, after bind: named "<module>.lora_A.weight"…; trained always. Strings: owner: tuner. */
    size_t (*parameters)(void *tuner);
    apus_status (*parameter)(void *tuner, size_t i, apus_weight_spec *spec);
    /* Wrap y = W x (+b). Own matrices through graph->weight. dropout 0: leave dropout out. Returns y or the new tensor. NULL:
     * matrices stay as they are. */
    apus_tensor (*linear)(void *tuner, apus_graph *g, apus_tensor x, const apus_weight_spec *weight, apus_tensor y, int dropout);
    /* NULL: embeddings stay as they are. */
    apus_tensor (*embedding)(void *tuner, apus_graph *g, apus_tensor ids, const apus_weight_spec *weight, apus_tensor y, int dropout);
    /* Add to w (rows row … row+rows of the weight, float32 [rows, dims[1]]) what this tuner adds. 1 if it changed anything.
     * NULL: it adds nothing. */
    int (*merge)(void *tuner, const apus_weight_spec *weight, int64_t row, int64_t rows, float *w, apus_tuner_values values, void *context);
    /* adapter_config.json as PEFT writes it (base model name added by the host); NULL: nothing but the weights themselves
     * (full). owner: caller. */
    apus_node *(*config)(void *tuner);
    /* Parameters of this tuner that reproduce an adapter_config.json: NULL with error when it is not one of ours. owner: caller. */
    apus_node *(*from_config)(const apus_host *host, const apus_node *adapter_config, apus_error *err);
} apus_tuner_ops;

/* ------------------------------------------------------------ the kind "optimizer" */

#define APUS_MAX_STATES 4

/* One parameter's update, as a graph over its elements. Scalars are [1]. */
typedef struct apus_optimizer_step {
    uint32_t size;
    apus_tensor param, grad;             /* [*] grad already clipped */
    apus_tensor state[APUS_MAX_STATES];  /* [*] zero at step 1 */
    apus_tensor learning_rate;           /* of this step */
    apus_tensor step;                    /* 1, 2, … */
    apus_tensor decay;                   /* 1, or 0 for norms and biases: times weight_decay */
    /* filled in by the optimizer */
    apus_tensor new_param;
    apus_tensor new_state[APUS_MAX_STATES];
} apus_optimizer_step;

enum { APUS_OPTIMIZER_ELEMENTWISE = 1u };

typedef struct apus_optimizer_ops {
    uint32_t size;
    apus_status (*open)(const apus_host *host, const apus_node *params, void **optimizer, apus_error *err);
    void (*close)(void *optimizer);
    uint32_t (*flags)(void *optimizer);
    uint32_t (*states)(void *optimizer);                       /* how many states per parameter */
    const char *(*state_name)(void *optimizer, uint32_t k);    /* "exp_avg" */
    double (*learning_rate)(void *optimizer);                  /* the peak rate its parameters give; NaN: left out (the host takes 1e-4 for an
                                                                  adapter, 1e-5 for a whole model) */
    void (*build)(void *optimizer, apus_graph *g, apus_optimizer_step *step);
} apus_optimizer_ops;

#ifdef __cplusplus
}
#endif
#endif
