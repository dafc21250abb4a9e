/* plugins/arch/decoder: what its files share. */
#ifndef APUS_ARCH_DECODER_H
#define APUS_ARCH_DECODER_H

#include <apus/model.h>
#include <apus/plugin.h>

#include <math.h>
#include <string.h>

enum { ACT_SILU = 0, ACT_GELU = 1, ACT_GELU_TANH = 2, ACT_RELU = 3 };

#define MAX_LAYERS 4096

/* Rotary position embedding, resolved. */
typedef struct decoder_rope {
    apus_rope_spec spec;
    double *freqs; /* [rows, rotary_dim / 2], float32 values */
    int rows;      /* 2 for longrope: short, long */
} decoder_rope;

typedef struct decoder {
    const apus_host *host;
    int64_t vocab, hidden, inner, layers, heads, groups, head_dim, max_positions;
    double eps, init_std;
    int act;
    int tied, qkv_bias, o_bias, mlp_bias, qk_norm;
    int32_t *window; /* [layers]; 0: all */
    decoder_rope rope;
    apus_weight_spec head;
} decoder;

/* config.c */
apus_status decoder_configure(decoder *d, const apus_node *config, apus_error *err);
/* An error about a value: "config.json:3:5: hidden_size: …". key: its name. */
apus_status decoder_refuse(const decoder *d, apus_error *err, const apus_node *value, const char *key, const char *fmt, ...) APUS_PRINTF(5, 6);
/* A number of the configuration within [min, max]; absent or null: the fallback (NaN: required). */
apus_status decoder_number(const decoder *d, const apus_node *map, const char *key, double fallback, double min, double max, double *out,
                           apus_error *err);

/* rope.c: rope_parameters (or rope_scaling and rope_theta) as transformers' modeling_rope_utils resolves them. */
apus_status decoder_rope_configure(decoder *d, const apus_node *config, apus_error *err);

/* build.c */
void decoder_build(void *arch, apus_graph *g, const apus_model_inputs *in, apus_model_outputs *out);
apus_weight_spec decoder_embedding_spec(const decoder *d);
apus_weight_spec decoder_head_spec(const decoder *d);

#endif
