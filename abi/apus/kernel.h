/*
 * apus/kernel.h: the kinds "backend" (a device) and "kernels" (implementations of ops for a backend).
 */
#ifndef APUS_KERNEL_H
#define APUS_KERNEL_H

#include <apus/graph.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What kernels of other plugins may know of a backend, whose instance they cannot read. */
typedef struct apus_backend_facts {
    uint32_t size;
    uint32_t threads;            /* that compute */
    apus_dtype products;         /* what operands of products of matrices are rounded to: the real type (they are not), APUS_BF16, … */
    const char *hardware;        /* the device and what of it is used: "AMD EPYC 9654, avx512". owner: backend */
} apus_backend_facts;

/* A device. One instance per run. All functions [main] unless tagged. */
typedef struct apus_backend_ops {
    uint32_t size;
    /* params: validated (threads, …). Fails with a clear line where the device does not answer. Two, where a backend has them, are the
     * host's, and the backend does nothing about them: `memory` (BYTES, nullable), the most that a training may take; `tuning` (PATH,
     * nullable), the file that says which table's kernels a training takes for what. */
    apus_status (*open)(const apus_host *host, const apus_node *params, void **backend, apus_error *err);
    void (*close)(void *backend);
    apus_dtype (*real)(void *backend);           /* what APUS_REAL becomes: APUS_F32 or APUS_F64 */
    /* Device memory, zeroed (lazily where that can be: much of it may never be used), 64-byte aligned or better. For a host
     * device these are host pointers. */
    void *(*alloc)(void *backend, size_t bytes); /* NULL when out */
    void (*free)(void *backend, void *p, size_t bytes);
    /* host_memory: 1 when device pointers are host pointers (upload/download are then copies, weights may be used where mapped). */
    int (*host_memory)(void *backend);
    apus_status (*upload)(void *backend, void *device, const void *host, size_t bytes, apus_error *err);
    apus_status (*download)(void *backend, void *host, const void *device, size_t bytes, apus_error *err);
    /* Run fn(context, i) for i in [0, n) on the backend's threads, any order; NULL: elementwise runs go op by op. */
    void (*parallel)(void *backend, int64_t n, void (*fn)(void *context, int64_t i), void *context);
    /* Wait for all that was queued. */
    apus_status (*finish)(void *backend, apus_error *err);
    /* What was chosen, for plan and lock: "cpu: 2 threads, avx2". owner: backend. */
    const char *(*describe)(void *backend);
    /* What a training keeps results in, where the kernel that makes one can write it and all that read it can read it
     * (apus_kernel.narrow_in, narrow_out): APUS_BF16; else the real type. NULL: the real type. */
    apus_dtype (*kept)(void *backend);
    /* Fills what facts->size reaches. NULL: no table that has `open` serves it, and it has no tuning files. */
    void (*facts)(void *backend, apus_backend_facts *facts);
} apus_backend_ops;

/* One call of a kernel. FROZEN. */
typedef struct apus_kernel_call {
    const apus_view *in;
    const apus_view *out;
    const double *attrs;     /* all of the op's, defaults filled in */
    void *scratch;           /* 64-byte aligned, as many bytes as scratch() asked for at capacity */
    void *backend;           /* the backend's instance; the table's own where it has `open` */
    uint32_t n_in, n_out;
    uint32_t accumulate;     /* bit k: add to out[k] instead of writing it (only kernels flagged ACCUMULATES see it set) */
    /* Where in[0] is to be made by an op of the kernel's `prologues` first: 1 + its number there; how many inputs it has beside in[0], which is
     * its own then: they come last of all, as its attributes do; 1 where what it makes is rounded to the type that the backend's `kept` gives. */
    uint8_t prologue, prologue_inputs, prologue_kept, reserved;
} apus_kernel_call;

enum {
    APUS_KERNEL_ACCUMULATES = 1u, /* honours `accumulate` for every output */
    /* A row's bits may depend on how many other rows there are, as those of most libraries' products do. Such a kernel runs in trainings
     * alone, and only where a tuning file names its table: answers and evaluations are the same in any company. */
    APUS_KERNEL_ROWS_VARY = 2u,
    /* Gives the sum of two results of `op`, which has one output and no attributes: a weight's product and its adapter's. in = the inputs of
     * one of them, which are two, then the other's; with `then`, an addition, its other input last: (one + other) + it, each sum rounded. */
    APUS_KERNEL_TWICE = 4u
};

enum { APUS_SIBLINGS_MAX = 4 };

/* An implementation of one op, or of a pattern: of `op` whose output 0 feeds only `then`: of one input or two, or of more as the first.
 * Where the order of two matters, of a kernel `with` the other one's op; or of a sum of two (TWICE). */
typedef struct apus_kernel {
    uint32_t size;
    const char *op;            /* "apus.linear/1" */
    const char *then;          /* NULL, or "apus.add/1", "apus.silu/1": in = op's inputs, then `then`'s other ones, if any; attrs are op's, then
                                  `then`'s; out = then's. Of a `then` of two inputs out[0] may be the same memory as the other one. */
    uint32_t flags;
    const apus_dtype *encodings; /* zero-terminated: element types it takes for a weight operand (W of linear, linear_dx, embedding,
                                    token_logprob*) beside the real type; NULL: the real type only */
    /* Scratch for the largest shapes (dims at capacity, data NULL). NULL: none. */
    size_t (*scratch)(const apus_kernel_call *capacity);
    /* ELEMENTWISE ops: called with views of one dimension over any range, from any thread; outputs may be an input's memory.
     * Others: on the thread that runs the plan; threads inside are the backend's. Deterministic for given extents and threads.
     * [N] outputs of the same run never overlap inputs otherwise. */
    apus_status (*run)(const apus_kernel_call *call, apus_error *err);
    /* Cost in floating-point operations at these dims; NULL: the op's own estimate. */
    double (*flops)(const apus_kernel_call *capacity);
    /* n (2 … APUS_SIBLINGS_MAX) calls at once whose first inputs are the same tensor and of which none reads another's result: a
     * block's query, key and value. They share one scratch, as large as the largest asks for. NULL: one by one. */
    apus_status (*run_siblings)(const apus_kernel_call *calls, uint32_t n, apus_error *err);
    /* Of linear: W in an order of the kernel's own that it reads faster, laid out once where W is only read and that many times: before
     * a generator answers, an adapter is trained. Gives the bytes it takes (0: W stays as it is) and in *packed its element type from then
     * on, APUS_PACKED | that of the values, one of `encodings`; a shorter one than W's where the kernel rounds to that anyway, and then,
     * unless W's values lose nothing, only linear, linear_dx and token_logprob may read it, whose kernels round alike. Every op that reads W must have a
     * kernel for that type. to: 64-byte aligned, zeroed; NULL: only tells, weight->data may be NULL. NULL: there is no such order. [main];
     * threads inside are the backend's. */
    size_t (*pack)(void *backend, const apus_view *weight, apus_dtype *packed, void *to);
    /* Bit k: input (output) k may also be of the type that the backend's `kept` gives, as its view says; written rounded to the nearest,
     * ties to even. Each of them by itself: any mixture may come. An output only where rounding it does no harm: not what losses are
     * computed with. Of a pair: its inputs and its result. */
    uint32_t narrow_in, narrow_out;
    /* NULL, or the op whose output 0 feeds only `then` as its second input, where op's is the first, and that is like op: it has as many
     * inputs, the same first one and the others of the same types and shapes; no attributes. "apus.linear/1" of a gate and of what it is
     * multiplied with, then "apus.swiglu/1": in = op's inputs, then with's. */
    const char *with;
    /* Of kernels flagged TWICE, and of calls with a prologue: 1 where it takes a call of these shapes (dims at capacity, data NULL). It must not
     * depend on what is data's extent: a row is computed alike in every plan. NULL: always. */
    int (*suits)(const apus_kernel_call *capacity);
    /* NULL, or ops, NULL behind the last, whose result, of the shape of their first input, the kernel can make itself as it reads it as in[0]
     * (of a pattern `with` another op, as that one's first input too), with the bits that they give: "apus.rms_norm/1" of linear. It is given
     * one where all that reads the result is one call of this kernel, or siblings. Not of kernels flagged TWICE. */
    const char *const *prologues;
} apus_kernel;

/*
 * vtable of a component of kind "kernels". Where several tables claim the same, that of the backend's own plugin is taken; in trainings that
 * which a tuning file names (`apus tune` measures, and writes it). A table of another plugin is taken by itself only for what the backend's
 * own lacks: of several, the one loaded last.
 */
typedef struct apus_kernels_ops {
    uint32_t size;
    const char *backend;         /* name of the backend component they serve */
    apus_dtype real;             /* the real type they compute in */
    int (*probe)(void);          /* 1 if this machine can run them (baseline ISA only inside); NULL: always */
    const apus_kernel *kernels;  /* stride: kernels[0].size */
    uint32_t n_kernels;
    /* An instance of the table's own for each device that is opened: what its kernels then get as `backend`. Fails with
     * APUS_E_UNSUPPORTED, and why, where it does not serve such a device; any other failure ends the run. facts: valid until `close`.
     * NULL: kernels get the backend's instance. */
    apus_status (*open)(const apus_host *host, const apus_backend_facts *facts, void **instance, apus_error *err);
    void (*close)(void *instance); /* required with open */
    /* What results and times depend on beside the plugin: "oneDNN 2.6.3". A tuning file is refused where it differs. NULL: nothing.
     * owner: instance */
    const char *(*describe)(void *instance);
} apus_kernels_ops;

#ifdef __cplusplus
}
#endif
#endif
