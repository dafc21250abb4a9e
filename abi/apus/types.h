/*
 * apus/types.h: element types, dimensions, the weight a model declares, the view a kernel gets.
 */
#ifndef APUS_TYPES_H
#define APUS_TYPES_H

#include <apus/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types and block encodings. Block layouts: apus/blocks.h. Values are never reused. */
typedef int32_t apus_dtype;
enum {
    APUS_REAL = 0, /* a number; the plan assigns the backend's real type */
    APUS_F32 = 1,
    APUS_F64 = 2,
    APUS_F16 = 3,
    APUS_BF16 = 4,
    APUS_I32 = 5,
    APUS_I64 = 6,
    APUS_U8 = 7,
    /* blocks of 32 along a row (ggml layouts) */
    APUS_Q4_0 = 32,
    APUS_Q4_1 = 33,
    APUS_Q5_0 = 34,
    APUS_Q5_1 = 35,
    APUS_Q8_0 = 36,
    APUS_IQ4_NL = 37,
    /* super-blocks of 256 along a row (ggml layouts) */
    APUS_Q2_K = 48,
    APUS_Q3_K = 49,
    APUS_Q4_K = 50,
    APUS_Q5_K = 51,
    APUS_Q6_K = 52,
    /* APUS_PACKED | one of the above: such values in an order of the kernel's that laid them out (apus_kernel.pack); in memory only */
    APUS_PACKED = 256
};

#define APUS_MAX_DIMS 4

/* A dimension is a constant (>= 0) or a symbol (< 0) whose extent comes with the data. */
enum {
    APUS_DIM_TOKENS = -1,   /* T: tokens fed to the model */
    APUS_DIM_SEGMENTS = -2, /* S: attention segments */
    APUS_DIM_SCORED = -3,   /* N: positions whose next token is scored or sampled */
    APUS_DIM_ROWS = -4,     /* R: sequences (answers) a loss sees */
    APUS_DIM_PAIRS = -5,    /* P: preference pairs */
    APUS_N_DIM_SYMBOLS = 5
};

/* Contiguous, row-major. FROZEN. A block-encoded weight has its logical dims; a row is dims[last] elements. */
typedef struct apus_view {
    void *data;           /* NULL: an output nobody needs: skip it */
    apus_dtype dtype;     /* never APUS_REAL at run time */
    int32_t ndim;
    int64_t dims[APUS_MAX_DIMS]; /* actual extents of this run */
} apus_view;

/* What a weight is for: formats, tuners, optimisers and exports go by this, never by its name's spelling. */
enum {
    APUS_WEIGHT_MATRIX = 1,    /* of a linear: [out, in] */
    APUS_WEIGHT_EMBEDDING = 2, /* [rows, width] */
    APUS_WEIGHT_NORM = 3,      /* scale or shift of a norm: no weight decay */
    APUS_WEIGHT_BIAS = 4       /* no weight decay */
};
enum {
    APUS_WEIGHT_HEAD = 1u,       /* the vocabulary head: `all-linear` leaves it out */
    APUS_WEIGHT_TRANSPOSED = 2u, /* Hugging Face stores it [in, out] (GPT-2's Conv1D) */
    APUS_WEIGHT_OPTIONAL = 4u    /* may be missing from a file (then `init` fills it) */
};

/* One parameter of a model, as its architecture declares it. Strings need to live only through the call. */
typedef struct apus_weight_spec {
    uint32_t size;
    const char *name;     /* Hugging Face's name: "model.layers.0.self_attn.q_proj.weight" */
    const char *role;     /* role without the layer, as GGUF calls it: "attn_q.weight", "token_embd.weight" */
    int32_t layer;        /* -1: none */
    int32_t what;         /* APUS_WEIGHT_MATRIX … */
    uint32_t flags;
    int32_t ndim;
    int64_t dims[2];      /* logical: MATRIX [out, in] */
    double init_std;      /* from scratch: normal(0, init_std); 0: filled with init_fill */
    double init_fill;
    double init_bound;    /* > 0: uniform in [-init_bound, init_bound) instead */
} apus_weight_spec;

#ifdef __cplusplus
}
#endif
#endif
