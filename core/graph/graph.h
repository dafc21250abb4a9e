/*
 * core/graph: tensor expressions: building, differentiating, planning memory, running. Knows ops, never models.
 *
 *   apus_graph *g = apus_graph_new(&hooks);          // arch, tuner, loss build into it through apus.graph/1
 *   apus_graph_gradients(g, …);                      // more nodes, built from ops
 *   apus_plan *p = apus_plan_new(g, …, capacity, …); // kernels, order, memory: all decided here
 *   apus_plan_bind(p, "name", device_memory);        // weights, states, gradients
 *   apus_plan_run(p, extents, feeds, n, &err);       // no allocation
 */
#ifndef APUS_CORE_GRAPH_H
#define APUS_CORE_GRAPH_H

#include <apus/graph.h>
#include <apus/kernel.h>

/* ---- ops and kernels: filled once after the plugins are loaded */

/* Built-in ops plus those of "op" components; kernels of "kernels" components whose probe says yes. [main] */
apus_status apus_ops_load(apus_error *err);
void apus_graph_announce(void);                /* apus.graph/1, before the plugins are loaded: they ask for it at entry */
const apus_op *apus_op_find(const char *name); /* NULL when unknown */
size_t apus_op_count(void);
const apus_op *apus_op_at(size_t i);

/* A backend, opened. owner of *device: caller, who closes it; left alone on failure. [main] */
typedef struct apus_device apus_device;
apus_status apus_device_open(const apus_node *spec /* "cpu" or {type: cpu, …} */, apus_device **device, apus_error *err);
void apus_device_close(apus_device *d);
apus_dtype apus_device_real(const apus_device *d);
const char *apus_device_describe(const apus_device *d);
int apus_device_host_memory(const apus_device *d);
void *apus_device_alloc(apus_device *d, size_t bytes, apus_error *err); /* zeroed */
void apus_device_free(apus_device *d, void *p, size_t bytes);
apus_status apus_device_upload(apus_device *d, void *device, const void *host, size_t bytes, apus_error *err);
apus_status apus_device_download(apus_device *d, void *host, const void *device, size_t bytes, apus_error *err);
/* fn(context, i) for i in [0, n) on the backend's threads, any order. */
void apus_device_parallel(const apus_device *d, int64_t n, void (*fn)(void *context, int64_t i), void *context);
/* The kernel that would run op for this operand encoding, or NULL. */
const apus_kernel *apus_device_kernel(const apus_device *d, const char *op, apus_dtype encoding);
/* apus_kernel.pack of the kernel that would run linear with this weight. 0: it stays as it is. */
size_t apus_device_pack(const apus_device *d, const apus_view *weight, apus_dtype *packed, void *to);

/* ---- tuning: which table's kernels are faster where */

/* {file, sha256, hardware, threads, tables} of the file that the device was opened with; NULL: none. owner: caller. */
apus_node *apus_device_tuning(const apus_device *d);
/* From now on apus_plan_measure times nothing: it notes what the plan computes. The device is for nothing else then. */
apus_status apus_device_try(apus_device *d, apus_error *err);
/* What a trial found. */
typedef struct apus_trial {
    const char *op, *then; /* then: NULL unless a pair */
    const char *shapes;    /* "[T,576] [1536,576]" */
    int64_t rows;
    size_t count; /* in all that was noted */
    size_t n;     /* tables */
    const char *table[4];
    double seconds[4]; /* medians; of tables[0], the backend's own, first */
    size_t best;
} apus_trial;
typedef struct apus_trial_found {
    void *context;
    void (*idle)(void *context, const char *table, const char *why); /* a table that was made for the backend and does not serve it */
    void (*found)(void *context, const apus_trial *trial);
} apus_trial_found;
/* Time every table's kernel for each thing noted that more than one has, in turn, for about so many seconds each; write which is the fastest
 * to a tuning file, whole or not at all. Within two in a hundred the backend's own stays. */
apus_status apus_device_tune(apus_device *d, const char *path, double seconds, const apus_trial_found *found, apus_error *err);

size_t apus_dtype_size(apus_dtype t);                 /* bytes of one element; 0 for block encodings */
size_t apus_dtype_row_bytes(apus_dtype t, int64_t n); /* bytes of n elements of a row; 0 if n does not fit its blocks */
const char *apus_dtype_name(apus_dtype t);            /* "F32", "Q4_0", … */
apus_dtype apus_dtype_parse(const char *name);        /* -1 when unknown; any case */

/* ---- building */

/* What surrounds the graph: every NULL has a plain default. Hooks call the graph's functions to build. */
#define APUS_GRAPH_ROWS " (rows)"
typedef struct apus_graph_hooks {
    void *context;
    /* Element type a weight is stored in (APUS_REAL or an encoding), when it is first asked for. */
    apus_dtype (*stored)(void *context, const apus_weight_spec *w);
    /* 1: embedding reads rows of real numbers from a variable of its own, named as the weight with APUS_GRAPH_ROWS behind it: what is
     * stored for products was rounded. Default: 0. */
    int (*rows_apart)(void *context, const apus_weight_spec *w);
    /* Default: linear op on the weight's variable. `y` is that default. Returns y or what replaces it (tuners). */
    apus_tensor (*linear)(void *context, apus_graph *g, apus_tensor x, const apus_weight_spec *w, apus_tensor y);
    apus_tensor (*embedding)(void *context, apus_graph *g, apus_tensor ids, const apus_weight_spec *w, apus_tensor y);
    /* Default: op attention with the input "segments" (i32 [S,4]). */
    apus_tensor (*attention)(void *context, apus_graph *g, apus_tensor q, apus_tensor k, apus_tensor v, const apus_attention_spec *s);
    apus_tensor (*point)(void *context, apus_graph *g, const char *name, int32_t layer, apus_tensor t);
} apus_graph_hooks;

apus_graph *apus_graph_new(const apus_graph_hooks *hooks); /* hooks copied */
void apus_graph_free(apus_graph *g);
apus_status apus_graph_status(const apus_graph *g, apus_error *err);
const apus_graph_api *apus_graph_table(void); /* announced as "apus.graph/1" */

/* A named persistent tensor whose memory is bound to the plan: weights (by their HF name), adapters, optimiser state.
 * The same name gives the same tensor. */
apus_tensor apus_graph_variable(apus_graph *g, const char *name, apus_dtype dtype, uint32_t ndim, const int64_t *dims);
/* Weights asked for so far, in first-use order (weights of tied uses appear once). */
size_t apus_graph_weight_count(const apus_graph *g);
const apus_weight_spec *apus_graph_weight_at(const apus_graph *g, size_t i); /* owner: graph */
apus_tensor apus_graph_weight_tensor(apus_graph *g, size_t i);
/* How often ops read the weight, and the first `most` of those ops. */
size_t apus_graph_readers(const apus_graph *g, const char *weight, const apus_op **ops, size_t most);

/* Effects, in this order when run: all reads of a variable in the plan see its old value.
 * accumulate: variable += value (kernels add straight into it where they can); assign: variable = value. */
void apus_graph_accumulate(apus_graph *g, apus_tensor variable, apus_tensor value);
void apus_graph_assign(apus_graph *g, apus_tensor variable, apus_tensor value);

/* Plans of this graph keep results in the device's narrower type, where its kernels take it. For a training, and for
 * whatever its numbers are compared with: the decision depends on the kernels alone, never on whether there is a backward pass. */
void apus_graph_narrow(apus_graph *g);

/* Plans of this graph take the kernels that the device's tuning file names, those whose rows vary too (APUS_KERNEL_ROWS_VARY). For a
 * training whose numbers are compared with no other plan's. */
void apus_graph_tune(apus_graph *g);

/* d sum_i(y_i · dy_i) / d wrt_k -> dwrt_k (none where nothing depends on it). Shapes of dy as y. */
void apus_graph_gradients(apus_graph *g, const apus_tensor *y, const apus_tensor *dy, size_t n_y, const apus_tensor *wrt, size_t n_wrt,
                          apus_tensor *dwrt);

/* ---- planning and running */

enum { APUS_RECOMPUTE_NONE = 0, APUS_RECOMPUTE_CHEAP = 1, APUS_RECOMPUTE_BLOCK = 2 /* + n: the first n blocks only */ };

typedef struct apus_plan apus_plan;

/* outputs: kept for reading after each run. capacity: largest extent of each symbol (index -1-symbol). Only what the
 * outputs and effects need is planned. Errors name an op or weight encoding that no kernel of the device takes.
 * recompute: CHEAP clones cheap forward ops into the backward pass; BLOCK keeps only the "block" points; BLOCK + n does so for the first
 * n blocks, and is CHEAP for the others. */
apus_status apus_plan_new(apus_graph *g, apus_device *d, const apus_tensor *outputs, size_t n_outputs, const int64_t capacity[APUS_N_DIM_SYMBOLS],
                          int recompute, apus_plan **plan, apus_error *err);
void apus_plan_free(apus_plan *p);

/* p works in other's memory from now on, where that is large enough; else nothing happens. Neither may run before what it needs of the
 * last run's outputs is read. other is freed after p, or p is not run any more. */
void apus_plan_share(apus_plan *p, const apus_plan *other);

/* Inputs and variables the plan really uses. */
size_t apus_plan_variable_count(const apus_plan *p);
const char *apus_plan_variable_at(const apus_plan *p, size_t i, apus_shape *shape);
int apus_plan_uses_input(const apus_plan *p, const char *name);

/* Memory (device) of a variable, by name; stays the caller's. Unbound variables make run fail. */
apus_status apus_plan_bind(apus_plan *p, const char *variable, void *device, apus_error *err);

typedef struct apus_feed {
    const char *input;
    const void *data; /* host; i32/i64 as declared; APUS_REAL inputs are given as double */
} apus_feed;

/* extents: actual size of each symbol, at most its capacity; 0 is fine. */
apus_status apus_plan_run(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, apus_error *err);
/* k-th output of the last run, as doubles / raw. n: elements (by the last extents). */
apus_status apus_plan_output(apus_plan *p, size_t k, double *values, int64_t n, apus_error *err);
/* Device pointer of output k and its actual view. */
apus_view apus_plan_output_view(const apus_plan *p, size_t k);

typedef struct apus_plan_cost {
    size_t arena_bytes;    /* activations, scratch and constants, at capacity; what is shared counts where it is from */
    size_t variable_bytes; /* what binding will take */
    double flops;          /* at capacity */
    double product_flops;  /* of products of matrices alone */
    size_t nodes;
    int blocks;          /* stretches between "block" points */
    size_t narrow_bytes; /* of results in the device's narrower type (apus_graph_narrow), at capacity; clones not counted */
} apus_plan_cost;
apus_plan_cost apus_plan_costs(const apus_plan *p);
/* {ops: [{op, count, kernel, flops, seconds}], arena: …, BF16: bytes of activations in it}: seconds as apus_plan_measure found them,
 * else 0. owner: caller. */
apus_node *apus_plan_describe(const apus_plan *p);
/* About how long a run with these extents and feeds takes: each kind of step (kernel and shapes) is run and timed some times, on
 * whatever numbers are there. What the plan writes (gradients, states) is spoilt: for plans that will not be run for their results. */
apus_status apus_plan_measure(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, double *seconds,
                              apus_error *err);

double apus_clock(void); /* seconds, monotonic */

/* What step of a plan that runs is, at the extents of this run. */
typedef struct apus_plan_step_facts {
    const char *op;     /* "apus.linear/1"; "elementwise": several, one tile after the other */
    const char *kernel; /* the table it is from */
    int32_t nodes;
    double flops;     /* of a product of matrices; 0: not known */
    char shapes[192]; /* "[64,576] [192,576] -> [64,192]" of the first node's inputs, the last one's outputs */
} apus_plan_step_facts;
void apus_plan_step_look(const apus_plan *p, size_t step, apus_plan_step_facts *facts);

/* Told of each step when it is done, with its begin and end by apus_clock. Called by apus_plan_run, on its thread. */
typedef struct apus_plan_watcher {
    void *context;
    void (*step)(void *context, const apus_plan *p, size_t step, double began, double ended);
} apus_plan_watcher;
void apus_plan_watch(apus_plan *p, const apus_plan_watcher *watcher); /* copied; NULL: nobody, which costs nothing */

#endif
