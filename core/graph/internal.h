/*
 * core/graph/internal: what the files of core/graph share: registered ops and kernels, the graph as it is built, devices.
 * Nothing outside core/graph and its tests includes this.
 */
#ifndef APUS_CORE_GRAPH_INTERNAL_H
#define APUS_CORE_GRAPH_INTERNAL_H

#include "graph/graph.h"
#include "module/module.h"

/* ---- registry (ops.c) */

enum { APUS_ATTR_NAME_MAX = 24 };

/* A registered op. `op` comes first: a const apus_op * from the registry is also one of these. */
typedef struct apus_op_entry {
    apus_op op;
    uint32_t index; /* in the registry */
    uint32_t n_attrs;
    char names[APUS_MAX_ATTRS][APUS_ATTR_NAME_MAX];
    double defaults[APUS_MAX_ATTRS];
    uint32_t required; /* bit k: attribute k has no default */
} apus_op_entry;

/* A registered table of kernels. */
typedef struct apus_kernel_table {
    const char *name;          /* the component's */
    const apus_module *module; /* whose it is; NULL: no plugin's (tests) */
    apus_kernels_ops ops;
    size_t index; /* in the registry */
} apus_kernel_table;

/* A registered kernel, with the table it came from. */
typedef struct apus_kernel_entry {
    apus_kernel kernel;
    const apus_kernel_table *table;
    const apus_op *op, *then, *with; /* NULL: none */
} apus_kernel_entry;

/* Register ops or a kernel table directly: what apus_ops_load does with components. Strings are static. module: whose; NULL: no plugin's. */
apus_status apus_ops_add(const apus_ops_ops *table, apus_error *err);
apus_status apus_kernels_add(const char *name, const apus_module *module, const apus_kernels_ops *table, apus_error *err);
apus_status apus_ops_builtin(apus_error *err); /* only once; apus_graph_new and apus_ops_load see to it */
size_t apus_kernel_count(void);
const apus_kernel_entry *apus_kernel_at(size_t i);
size_t apus_kernel_table_count(void);
const apus_kernel_table *apus_kernel_table_at(size_t i);

extern const apus_ops_ops apus_builtin_ops; /* op_table.c */
/* op_table.c: estimates by the op's name. Of products of matrices alone, which are exact; 0: it is none. */
double apus_op_product_flops(const apus_kernel_call *c, const char *op);
double apus_op_flops(const apus_kernel_call *c, const char *op);

/* gradients.c: the built-in ops' gradients and decompositions, by the names in op_table.c */
typedef void apus_gradient_fn(apus_graph *g, const apus_tensor *in, uint32_t n_in, const apus_tensor *out, const apus_tensor *d_out,
                              const double *attrs, uint32_t need, apus_tensor *d_in);
typedef void apus_decompose_fn(apus_graph *g, const apus_tensor *in, uint32_t n_in, const double *attrs, apus_tensor *out);
apus_gradient_fn apus_gradient_add, apus_gradient_sub, apus_gradient_mul, apus_gradient_div, apus_gradient_maximum, apus_gradient_minimum,
    apus_gradient_where, apus_gradient_affine, apus_gradient_exp, apus_gradient_log, apus_gradient_log1p, apus_gradient_expm1, apus_gradient_sqrt,
    apus_gradient_abs, apus_gradient_square, apus_gradient_tanh, apus_gradient_sigmoid, apus_gradient_log_sigmoid, apus_gradient_softplus,
    apus_gradient_relu, apus_gradient_silu, apus_gradient_gelu, apus_gradient_swiglu, apus_gradient_sum, apus_gradient_sum_rows, apus_gradient_fill,
    apus_gradient_add_row, apus_gradient_gather, apus_gradient_scatter_add, apus_gradient_columns, apus_gradient_columns_grad, apus_gradient_linear,
    apus_gradient_embedding, apus_gradient_rms_norm, apus_gradient_layer_norm, apus_gradient_rope, apus_gradient_attention,
    apus_gradient_token_logprob, apus_gradient_dropout;
apus_decompose_fn apus_decompose_sub, apus_decompose_abs, apus_decompose_square, apus_decompose_sigmoid, apus_decompose_log_sigmoid,
    apus_decompose_softplus, apus_decompose_relu, apus_decompose_silu, apus_decompose_silu_grad, apus_decompose_swiglu, apus_decompose_swiglu_grad,
    apus_decompose_sum_squares, apus_decompose_dropout_grad, apus_decompose_stop_gradient;

/* ---- the graph (graph.c) */

enum { APUS_NODE_OP = 0, APUS_NODE_CONSTANT = 1, APUS_NODE_INPUT = 2, APUS_NODE_VARIABLE = 3 };

typedef struct apus_graph_node {
    int32_t kind;
    const apus_op *op; /* NULL for a leaf */
    uint32_t n_in, n_out;
    int32_t in[APUS_MAX_INPUTS];
    double attrs[APUS_MAX_ATTRS];
    int32_t first;  /* tensor of output 0; the others follow */
    int backward;   /* built while differentiating */
    char *name;     /* of an input or a variable */
    double *values; /* of a constant */
} apus_graph_node;

typedef struct apus_graph_tensor {
    int32_t node;
    int32_t block_point; /* marked "block": recompute starts here */
    apus_shape shape;
} apus_graph_tensor;

typedef struct apus_graph_weight {
    apus_weight_spec spec; /* strings: owner: this */
    int32_t tensor;
} apus_graph_weight;

typedef struct apus_graph_effect {
    int accumulate; /* else assign */
    int32_t variable, value;
} apus_graph_effect;

struct apus_graph {
    apus_graph_hooks hooks;
    apus_graph_node *nodes;
    size_t n_nodes, cap_nodes;
    apus_graph_tensor *tensors;
    size_t n_tensors, cap_tensors;
    apus_graph_weight *weights;
    size_t n_weights, cap_weights;
    apus_graph_effect *effects;
    size_t n_effects, cap_effects;
    int32_t *seen; /* hash table over nodes: equal nodes are built once; -1: empty */
    size_t cap_seen;
    int backward;
    int narrow;     /* apus_graph_narrow */
    int tuned;      /* apus_graph_tune */
    char near[160]; /* the weight or point last named: where an error is */
    apus_status status;
    apus_error error;
};

/* Records the first failure; always returns none. */
apus_tensor apus_graph_fail(apus_graph *g, apus_status status, const apus_error *error);
int apus_graph_shape_text(const apus_shape *s, char *buffer, size_t capacity); /* "f32? [T,576]" */
int apus_shape_equal(const apus_shape *a, const apus_shape *b);                /* dims only */
int apus_shape_single(const apus_shape *s);                                    /* one element whatever the extents */
void *apus_grow(void *items, size_t *capacity, size_t n, size_t item);         /* room for one more; NULL: out of memory */

/* ---- devices (device.c) */

typedef struct apus_device_slab apus_device_slab;
typedef struct apus_tuning apus_tuning;
typedef struct apus_trials apus_trials;

/* A table on a device. */
typedef struct apus_device_table {
    int serves;
    void *instance; /* what its kernels get: the table's own, or the backend's */
    char why[240];  /* it does not serve, in its words; "": it is for another backend or type */
} apus_device_table;

struct apus_device {
    char name[64];
    const apus_module *module; /* the backend's; NULL: no plugin's (tests) */
    apus_backend_ops ops;
    void *backend;
    apus_dtype real, kept; /* kept: of a training's activations, where kernels take it */
    apus_backend_facts facts;
    apus_device_table *tables; /* by apus_kernel_table.index */
    size_t n_tables;
    apus_tuning *tuning;     /* which table's kernels trainings take; NULL: the backend's own */
    apus_trials *trials;     /* collects what trainings compute, to time it (apus_device_try); NULL: nobody asks */
    apus_device_slab *slabs; /* the newest first */
};

/* A device around a backend that is `module`'s; NULL: that no plugin brought (tests). It serves the tables registered before. */
apus_status apus_device_wrap(const char *name, const apus_module *module, const apus_backend_ops *ops, const apus_node *params, apus_device **device,
                             apus_error *err);
/* Kernel of op (then and with NULL), or of the pattern: the backend's own; where it has none, another table's. Never one whose rows vary. */
const apus_kernel_entry *apus_device_choose(const apus_device *d, const apus_op *op, const apus_op *then, const apus_op *with, apus_dtype encoding);
/* Kernel of the sum of two results of op (APUS_KERNEL_TWICE) for a call of these types and shapes; NULL: none. */
const apus_kernel_entry *apus_device_choose_twice(const apus_device *d, const apus_op *op, const apus_op *then, const apus_kernel_call *capacity);
/* The kernel that table `t` has for it on this device; NULL: none. Of plain operands. */
const apus_kernel_entry *apus_device_offer(const apus_device *d, const apus_kernel_table *t, const apus_op *op, const apus_op *then);
/* What the kernels of a table get as apus_kernel_call.backend. */
void *apus_device_instance(const apus_device *d, const apus_kernel_entry *e);

/* ---- tuning (tuning.c, trials.c) */

/* Whether t was made for this backend and type. */
int apus_table_fits(const apus_device *d, const apus_kernel_table *t);
/* "onednn 1.0.0, oneDNN 2.6.3": what a tuning file says of a table that it names. */
void apus_tuning_version(const apus_device *d, const apus_kernel_table *t, char *text, size_t capacity);
/* A tuning file, read and held against the device. owner of *tuning: caller; left alone on failure. */
apus_status apus_tuning_read(const char *path, const apus_device *d, apus_tuning **tuning, apus_error *err);
void apus_tuning_free(apus_tuning *t);
void apus_trials_free(apus_trials *t);

#endif
