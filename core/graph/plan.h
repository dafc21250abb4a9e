/*
 * core/graph/plan: a plan under construction and as it runs: what the passes share. The passes, in order:
 *
 *   collect    plan.c      what outputs and effects need, kernels chosen, decompositions, build order
 *   fuse       fuse.c      patterns that one kernel computes
 *   twice      twice.c     sums of two results of one op that one kernel computes
 *   tune       tuning.c    kernels of other tables, where a tuning file names them
 *   narrow     narrow.c    results that are kept in fewer bits
 *   recompute  recompute.c forward nodes cloned into the backward pass
 *   effects    effects.c   accumulations and assignments become stores into variables' memory
 *   prologues  fuse.c      what only products of one left factor read becomes part of their kernel's call
 *   group      schedule.c  steps: a kernel, sibling calls of one, or runs of elementwise nodes worked tile by tile
 *   memory     memory.c    lifetimes, reuse in place, offsets in one arena
 *   run        run.c      (what it costs, in memory, operations and time: costs.c)
 */
#ifndef APUS_CORE_GRAPH_PLAN_H
#define APUS_CORE_GRAPH_PLAN_H

#include "graph/internal.h"

enum {
    APUS_PLAN_INPUTS = APUS_MAX_INPUTS + 1,
    APUS_PLAN_OPERANDS = 256,         /* most operands of the members of one elementwise step */
    APUS_PLAN_TILE_BYTES = 128 * 1024 /* of all slots of a tile, at most */
};

typedef struct apus_plan_tensor {
    apus_shape shape;   /* dtype resolved: never APUS_REAL */
    int32_t node;       /* that computes it; -1: a leaf */
    int32_t leaf;       /* APUS_NODE_CONSTANT, _INPUT or _VARIABLE; else APUS_NODE_OP */
    int32_t leaf_index; /* in inputs, variables or constants */
    int32_t block_point;
    int keep;           /* an output of the plan */
    int used;           /* by a node, an output or an effect */
    int32_t variable;   /* its memory is this variable's; -1 */
    int32_t place;      /* its memory is this place of the arena; -1 */
    int32_t slot;       /* in its step's tiles it lives in this slot; -1 */
    int32_t step, last; /* where it is computed; its last use */
    int64_t elements;   /* at capacity */
} apus_plan_tensor;

typedef struct apus_plan_node {
    const apus_op *op;
    const apus_kernel_entry *kernel;
    uint32_t n_in, n_out;
    int32_t in[APUS_PLAN_INPUTS], out[APUS_MAX_OUTPUTS];
    uint32_t shape_only;
    uint32_t accumulate; /* bit k: output k is added to its variable */
    double attrs[APUS_MAX_ATTRS];
    uint32_t prologue, n_prologue; /* as apus_kernel_call has them */
    int prologue_kept;
    int32_t backward;
    int32_t segment; /* which stretch between block points (recompute) */
    int32_t step;
    int dead;
    apus_view *views; /* n_in then n_out: of the current extents */
} apus_plan_node;

typedef struct apus_plan_step {
    int32_t first, count; /* nodes order[first … first+count) */
    int elementwise;
    int32_t slots;   /* of a tile */
    int64_t tile;    /* elements */
    int32_t scratch; /* place; -1 */
    double flops, product_flops, seconds;
} apus_plan_step;

typedef struct apus_plan_leaf {
    char *name;
    int32_t tensor;
    void *memory;   /* a variable's, bound by the caller; a constant's */
    double *values; /* of a constant, until it is uploaded */
    int used;
} apus_plan_leaf;

typedef struct apus_plan_place {
    size_t bytes, offset; /* at capacity */
    size_t at;            /* its offset at the current extents, at most `offset` */
    int32_t tensor;       /* one that lives in it, all are of one shape; -1: scratch */
    int32_t first, last;  /* steps in which it is taken */
} apus_plan_place;

typedef struct apus_plan_effect {
    int accumulate;
    int32_t variable, value; /* tensors */
} apus_plan_effect;

/* A growing array: items, their count, their room. */
#define APUS_LIST(type)                                                                                                                              \
    struct {                                                                                                                                         \
        type *at;                                                                                                                                    \
        size_t n, cap;                                                                                                                               \
    }

struct apus_plan {
    apus_device *device;
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    APUS_LIST(apus_plan_tensor) tensors;
    APUS_LIST(apus_plan_node) nodes;
    APUS_LIST(int32_t) order;
    APUS_LIST(apus_plan_step) steps;
    APUS_LIST(apus_plan_leaf) inputs;
    APUS_LIST(apus_plan_leaf) variables;
    APUS_LIST(apus_plan_leaf) constants;
    APUS_LIST(apus_plan_place) places;
    int32_t *stacked; /* places by offset */
    size_t *tops;     /* by step: where the free part of the arena begins, while places are set */
    APUS_LIST(apus_plan_effect) effects;
    int32_t *outputs;
    size_t n_outputs;

    char *arena, *constant_memory;
    size_t arena_bytes, constant_bytes;
    int shared;    /* the arena is another plan's */
    void *staging; /* for feeds of a device that is not in host memory */
    size_t staging_bytes;
    apus_view *views;      /* of tensors, at the current extents */
    apus_view *call_views; /* of nodes */
    int64_t extents[APUS_N_DIM_SYMBOLS];
    int tuned; /* its graph's: apus_graph_tune */
    int ready; /* views are those of `extents` and of the bound memory */
    int ran;
    int check_numbers;
    apus_plan_watcher watcher;
};

/* Appends a zeroed item; NULL: out of memory. */
#define APUS_LIST_ADD(list) apus_list_add((void **)&(list).at, &(list).n, &(list).cap, sizeof *(list).at)
void *apus_list_add(void **at, size_t *n, size_t *cap, size_t item);

int32_t apus_plan_add_tensor(apus_plan *p, const apus_shape *shape); /* -1: out of memory */
int32_t apus_plan_add_node(apus_plan *p, const apus_plan_node *node);
/* A node of one output like tensor `like`: op(in…); -1 with err. Not put into the order. */
int32_t apus_plan_make(apus_plan *p, const char *op, const int32_t *in, uint32_t n_in, const double *attrs, int32_t like, apus_error *err);
size_t apus_plan_bytes(const apus_plan_tensor *t);                                                  /* at capacity */
apus_kernel_call apus_plan_capacity(const apus_plan *p, const apus_plan_node *n, apus_view *views); /* views: of n's inputs, then outputs */
int apus_plan_is_elementwise(const apus_plan_node *n);
int apus_plan_is_twice(const apus_plan_node *n);          /* its kernel is one of APUS_KERNEL_TWICE */
int apus_plan_reads(const apus_plan_node *n, uint32_t k); /* 0 where only the shape of input k counts */
uint32_t apus_plan_attrs(const apus_plan_node *n);        /* of its op and of what follows it; a prologue's come behind them */
size_t apus_plan_siblings(const apus_plan *p, size_t i);  /* how many nodes from order[i] on are run at once (apus_kernel.run_siblings): 1 or more */
/* Marks what is used, drops dead nodes from the order. */
void apus_plan_prune(apus_plan *p);

apus_status apus_plan_fuse(apus_plan *p, int narrow, apus_error *err); /* narrow: apus_plan_narrow follows */
void apus_plan_twice(apus_plan *p);
apus_status apus_plan_flatten_effects(apus_plan *p, apus_error *err);
apus_status apus_plan_lower_effects(apus_plan *p, apus_error *err);
void apus_plan_tune(apus_plan *p);
void apus_plan_narrow(apus_plan *p);
apus_status apus_plan_recompute(apus_plan *p, int mode, apus_error *err);
void apus_plan_prologues(apus_plan *p);
apus_status apus_plan_group(apus_plan *p, apus_error *err);
apus_status apus_plan_memory(apus_plan *p, apus_error *err);
/* Sets every place's `at` for these extents, so that a short run touches the beginning of the arena only. */
void apus_plan_settle_places(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS]);
apus_status apus_plan_prepare(apus_plan *p, apus_error *err);
void apus_plan_count_flops(apus_plan *p); /* of each step, at the extents of the views */

/* A run, in parts: extents checked, views set, inputs in their places; then each step. */
apus_status apus_plan_begin(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, apus_error *err);
apus_status apus_plan_run_step(apus_plan *p, const apus_plan_step *s, apus_error *err);
apus_kernel_call apus_plan_call(const apus_plan *p, const apus_plan_node *n, const apus_view *views, void *scratch);
int apus_plan_wants(const apus_plan_tensor *t); /* somebody reads it */

/* What a tuning file chooses by. */
typedef struct apus_tuning_key {
    const apus_op *op, *then;
    int64_t rows;     /* at capacity, of the first operand that has as many as the data, rounded up to a power of two; 0: none has */
    char shapes[160]; /* of the operands: "[T,576] [1536,576]" */
} apus_tuning_key;

/* 1 where tables may differ: the node is a kernel of plain operands, its graph a training's. */
int apus_tuning_key_of(const apus_plan *p, const apus_plan_node *n, apus_tuning_key *key);
int apus_tuning_same(const apus_tuning_key *a, const apus_tuning_key *b);
/* Tables that have a kernel for it, the backend's own first; at most `most`. */
size_t apus_tuning_rivals(const apus_device *d, const apus_tuning_key *key, const apus_kernel_entry **rivals, size_t most);
/* {file, sha256, kernels: {TABLE: [what it computes]}, own: [what the file says nothing of]} of this plan. NULL: it is not tuned. owner: caller. */
apus_node *apus_tuning_describe(const apus_plan *p);

/* The plan would be timed: what it computes is noted instead. */
apus_status apus_trials_note(apus_trials *t, const apus_plan *p, apus_error *err);

/* The arena, so that tests can poison it. */
void *apus_plan_arena(const apus_plan *p, size_t *bytes);

#endif
