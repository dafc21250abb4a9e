/*
 * The cpu backend's inside: the instance, and the table of kernels that one instruction set provides.
 *
 * Every kernel is written once, in the headers that isa.h includes, over vectors of eight floats (lanes.h) or as wide as the set has (panels.h).
 * That text is compiled once per instruction set: portable.c at the compiler's baseline, avx2.c with AVX2, FMA and F16C, avx512.c with
 * AVX-512 and its products of bfloat16. An instance picks its table when it is opened; the plugin's kernels go through it.
 */
#ifndef APUS_CPU_H
#define APUS_CPU_H

#include <apus/kernel.h>
#include <apus/plugin.h>

typedef struct apus_cpu_kernel {
    apus_status (*run)(const apus_kernel_call *call, apus_error *err);
    size_t (*scratch)(const apus_kernel_call *capacity); /* NULL: none */
    apus_status (*run_siblings)(const apus_kernel_call *calls, uint32_t n, apus_error *err);
} apus_cpu_kernel;

/* Every kernel of the plugin, in the order of ops.h. X(identifier, then, flags, encodings, narrow inputs, narrow outputs), the first and the
 * last two of elementwise ones. */
#define APUS_CPU_ELEMENTWISE(X)                                                                                                                      \
    X(add, 0, 0)                                                                                                                                     \
    X(sub, 0, 0)                                                                                                                                     \
    X(mul, 3, 0)                                                                                                                                     \
    X(div, 0, 0)                                                                                                                                     \
    X(maximum, 0, 0)                                                                                                                                 \
    X(minimum, 0, 0)                                                                                                                                 \
    X(greater, 0, 0)                                                                                                                                 \
    X(where, 0, 0)                                                                                                                                   \
    X(affine, 0, 0)                                                                                                                                  \
    X(exp, 0, 0)                                                                                                                                     \
    X(log, 0, 0)                                                                                                                                     \
    X(log1p, 0, 0)                                                                                                                                   \
    X(expm1, 0, 0)                                                                                                                                   \
    X(sqrt, 0, 0)                                                                                                                                    \
    X(abs, 0, 0)                                                                                                                                     \
    X(square, 0, 0)                                                                                                                                  \
    X(tanh, 0, 0)                                                                                                                                    \
    X(sigmoid, 0, 0)                                                                                                                                 \
    X(log_sigmoid, 0, 0)                                                                                                                             \
    X(softplus, 0, 0)                                                                                                                                \
    X(relu, 0, 0)                                                                                                                                    \
    X(silu, 1, 1)                                                                                                                                    \
    X(sign, 0, 0)                                                                                                                                    \
    X(gelu, 1, 1)                                                                                                                                    \
    X(gelu_grad, 2, 1)                                                                                                                               \
    X(silu_grad, 2, 1)                                                                                                                               \
    X(swiglu, 3, 1)                                                                                                                                  \
    X(swiglu_grad, 6, 3)                                                                                                                             \
    X(stop_gradient, 0, 0)                                                                                                                           \
    X(fill, 0, 0)
#define APUS_CPU_OTHERS(X)                                                                                                                           \
    X(sum, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                                \
    X(sum_squares, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                        \
    X(sum_rows, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                           \
    X(scale_rows, NULL, 0, NULL, 0, 0)                                                                                                               \
    X(add_row, NULL, 0, NULL, 0, 0)                                                                                                                  \
    X(gather, NULL, 0, NULL, 0, 0)                                                                                                                   \
    X(scatter_add, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                        \
    X(columns, NULL, 0, NULL, 1, 1)                                                                                                                  \
    X(columns_grad, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                       \
    X(linear_dx, NULL, APUS_KERNEL_ACCUMULATES, pairs_too, 1, 0)                                                                                     \
    X(linear_dw, NULL, APUS_KERNEL_ACCUMULATES, NULL, 3, 0)                                                                                          \
    X(embedding, NULL, 0, packed_too, 0, 0)                                                                                                          \
    X(embedding_dw, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                       \
    X(rms_norm, NULL, 0, NULL, 0, 1)                                                                                                                 \
    X(rms_norm_grad, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                      \
    X(layer_norm, NULL, 0, NULL, 0, 1)                                                                                                               \
    X(layer_norm_grad, NULL, APUS_KERNEL_ACCUMULATES, NULL, 0, 0)                                                                                    \
    X(rope, NULL, 0, NULL, 0, 1)                                                                                                                     \
    X(attention, NULL, 0, NULL, 7, 1)                                                                                                                \
    X(attention_grad, NULL, 0, NULL, 30, 0)                                                                                                          \
    X(kv_write, NULL, 0, NULL, 0, 0)                                                                                                                 \
    X(attention_cached, NULL, 0, NULL, 0, 0)                                                                                                         \
    X(token_logprob, NULL, 0, pairs_too, 0, 0)                                                                                                       \
    X(token_logprob_dw, NULL, APUS_KERNEL_ACCUMULATES, encodings, 0, 0)                                                                              \
    X(dropout, NULL, 0, NULL, 0, 0)                                                                                                                  \
    X(dropout_grad, NULL, 0, NULL, 0, 0)

enum {
#define X(id, in, out) APUS_CPU_##id,
    APUS_CPU_ELEMENTWISE(X)
#undef X
#define X(id, then, flags, types, in, out) APUS_CPU_##id,
        APUS_CPU_OTHERS(X)
#undef X
            APUS_CPU_linear,
    APUS_CPU_linear_add,
    APUS_CPU_linear_relu,
    APUS_CPU_linear_silu,
    APUS_CPU_linear_tanh,
    APUS_CPU_linear_gelu,
    APUS_CPU_linear_swiglu,
    APUS_CPU_linear_dx_add,
    APUS_CPU_linear_twice,
    APUS_CPU_linear_twice_add,
    APUS_CPU_linear_dx_twice,
    APUS_CPU_linear_dx_twice_add,
    APUS_CPU_rope_attention_cached,
    APUS_CPU_N_KERNELS
};

/* apus_kernel.narrow_in and narrow_out of elementwise ones. */
enum {
#define X(id, in, out) APUS_CPU_IN_##id = (in), APUS_CPU_OUT_##id = (out),
    APUS_CPU_ELEMENTWISE(X)
#undef X
};

typedef struct apus_cpu_isa {
    const char *name;
    apus_cpu_kernel kernels[APUS_CPU_N_KERNELS];
    size_t (*pack_weight)(void *backend, const apus_view *weight, apus_dtype *packed, void *to); /* apus_kernel.pack */
} apus_cpu_isa;

extern const apus_cpu_isa apus_cpu_portable;
extern const apus_cpu_isa apus_cpu_avx2;
extern const apus_cpu_isa apus_cpu_avx512;

/* One instance per run. Read-only after open. */
typedef struct apus_cpu {
    const apus_host *host;
    const apus_cpu_isa *isa;
    int threads;
    int bfloat16;            /* products round their operands to it */
    int integers;            /* activations that meet a weight in Q8_0 or Q4_0 are rounded to 8 bits */
    int layers, rounded;     /* linear layers were planned; and with such weights. [main] */
    int nodes;               /* of memory, that the process may use */
    unsigned long node_mask; /* which */
    char description[208], hardware[80];
} apus_cpu;

enum { APUS_CPU_LARGE = 2 * 1024 * 1024 }; /* bytes: from here on a block is mapped */

/* memory.c. Zeroed when first touched. NULL: there is none. */
void *apus_cpu_map(const apus_cpu *cpu, size_t bytes);
void apus_cpu_unmap(void *p, size_t bytes);
/* How many memory nodes the process may use, at least 1, and which. */
int apus_cpu_nodes(unsigned long *mask);

static inline const apus_cpu *apus_cpu_of(const apus_kernel_call *call)
{
    return (const apus_cpu *)call->backend;
}

static inline int64_t apus_cpu_elements(const apus_view *v)
{
    int64_t n = 1;
    for (int32_t i = 0; i < v->ndim; i++) {
        n *= v->dims[i];
    }
    return n;
}

/* Elements of the last dimension, and how many such rows there are. */
static inline int64_t apus_cpu_width(const apus_view *v)
{
    return v->ndim > 0 ? v->dims[v->ndim - 1] : 1;
}

static inline int64_t apus_cpu_rows(const apus_view *v)
{
    int64_t n = 1;
    for (int32_t i = 0; i + 1 < v->ndim; i++) {
        n *= v->dims[i];
    }
    return n;
}

static inline int64_t apus_cpu_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Bytes rounded up to whole cache lines: scratch is cut into pieces of these. */
static inline size_t apus_cpu_lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

#endif
