/*
 * apus/model.h: the kinds "arch" (builds a model's graph from its configuration) and "format" (reads and writes model files).
 *
 * A configuration is always a node in the shape of Hugging Face's config.json, wherever it came from.
 */
#ifndef APUS_MODEL_H
#define APUS_MODEL_H

#include <apus/graph.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------ the kind "arch" */

/* The tokens being run; tensors of the graph. */
typedef struct apus_model_inputs {
    uint32_t size;
    apus_tensor tokens;    /* i32 [T] */
    apus_tensor positions; /* i32 [T], from 0 in each sequence */
    apus_tensor lengths;   /* i32 [T], tokens in the whole sequence that token t belongs to (for rope scalings) */
} apus_model_inputs;

/* What an architecture gives back. The host sets size; the architecture fills the rest. */
typedef struct apus_model_outputs {
    uint32_t size;
    apus_tensor hidden;         /* [T, hidden], after the last norm */
    apus_weight_spec head;      /* the vocabulary head [vocab, hidden]; the embedding's own spec when tied. Its strings must live
                                   as long as the opened arch */
    double logit_scale;         /* 1 */
    double logit_softcap;       /* 0: none */
} apus_model_outputs;

/* Facts the host and exports need. */
typedef struct apus_model_facts {
    uint32_t size;
    int32_t vocab, hidden, layers, heads, kv_heads, head_dim;
    int32_t max_positions;      /* 0: unbounded */
    int32_t tied;               /* head is the embedding */
    int32_t length_dependent;   /* a token's state depends on how long its sequence is in all (it reads inputs.lengths: dynamic rope
                                   scalings): sequences that begin alike have no state in common */
} apus_model_facts;

typedef struct apus_arch_ops {
    uint32_t size;
    /* How sure this plugin is that it builds this configuration (by model_type): 0 not at all … 100. [any] */
    int (*claims)(const apus_node *config);
    /* Check the configuration; unknown values of known keys are errors that name them (file:line:column from node->where).
     * params: the component's (may be ignored). config stays valid while the arch is open. Read-only after. [main] */
    apus_status (*open)(const apus_host *host, const apus_node *params, const apus_node *config, void **arch, apus_error *err);
    void (*close)(void *arch);
    apus_status (*facts)(void *arch, apus_model_facts *facts);
    /* Build the forward pass. Called many times on different graphs; must build the same each time. [main] */
    void (*build)(void *arch, apus_graph *g, const apus_model_inputs *in, apus_model_outputs *out);
} apus_arch_ops;

/* ------------------------------------------------------------ the kind "format" */

/* One tensor of a file. */
typedef struct apus_tensor_info {
    uint32_t size;
    const char *name;            /* as in the file; owner: the open file */
    apus_dtype dtype;
    int32_t ndim;
    int64_t dims[APUS_MAX_DIMS]; /* logical order, outermost first (PyTorch's) */
    const void *data;            /* mapped or made; valid while the file is open; may be unaligned */
    uint64_t bytes;
    int32_t transposed;          /* set by find(): data is [in, out] where the spec says [out, in] */
} apus_tensor_info;

/* What a file says beside its tensors; each may be NULL. Nodes: owner: the open file. */
typedef struct apus_model_card {
    uint32_t size;
    const apus_node *config;            /* HF config.json's shape (peft: adapter_config.json's) */
    const apus_node *generation_config; /* HF generation_config.json's shape */
    const apus_node *tokenizer;         /* tokenizer.json's shape */
    const apus_node *tokenizer_config;  /* tokenizer_config.json's shape: bos_token, eos_token, … (template excluded) */
    const char *chat_template;          /* text of the default template; NULL: none */
    const apus_node *chat_templates;    /* other named templates {name: text} */
    const apus_node *metadata;          /* the file's own free metadata, for `inspect` */
} apus_model_card;

/* What to write. `read` gives rows of a weight as float32: dst [rows, dims[1]] (a vector: all of it, row = element).  */
typedef struct apus_model_export {
    uint32_t size;
    const apus_model_card *card;
    const apus_weight_spec *weights; /* n_weights; stride sizeof as the host says: weights[0].size */
    size_t n_weights;
    apus_status (*read)(void *context, size_t weight, int64_t row, int64_t rows, float *dst, apus_error *err);
    void *context;
    apus_dtype dtype;                /* wanted for matrices and embeddings: F32, F16, BF16, Q8_0, Q4_0 */
    uint64_t shard_bytes;            /* largest file; 0: format's default */
} apus_model_export;

typedef struct apus_format_ops {
    uint32_t size;
    /* How sure this plugin is that it reads `path` (a file or folder; may look inside): 0 … 100. [any] */
    int (*claims)(const char *path);
    /* Map the file(s); check headers, lengths, overlaps. [main] */
    apus_status (*open)(const apus_host *host, const apus_node *params, const char *path, void **file, apus_error *err);
    void (*close)(void *file);
    apus_status (*card)(void *file, apus_model_card *card, apus_error *err);
    uint64_t (*count)(void *file);
    apus_status (*tensor)(void *file, uint64_t i, apus_tensor_info *info, apus_error *err);
    /* The tensor that holds this weight (by HF name or by role and layer, as the format names things), with its rows in
     * Hugging Face's order. APUS_E_NOT_FOUND: none such. `used` in the file is kept so that leftovers can be listed. */
    apus_status (*find)(void *file, const apus_weight_spec *weight, apus_tensor_info *info, apus_error *err);
    /* Tensors that no find() has asked for: index of the next at or after i, or count(). Known-derived ones
     * (rope frequencies, attention masks) do not count. */
    uint64_t (*unused)(void *file, uint64_t i);
    /* Write a model at `path` (which does not exist yet: the host renames it into place after). NULL: read only. */
    apus_status (*write)(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err);
    /* The host has copied what it needs: mapped pages may leave memory. Tensors stay readable. NULL: nothing to give back. */
    void (*forget)(void *file);
} apus_format_ops;

#ifdef __cplusplus
}
#endif
#endif
