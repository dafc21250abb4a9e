/* core/model/internal.h: what the files of core/model share. */
#ifndef APUS_CORE_MODEL_INTERNAL_H
#define APUS_CORE_MODEL_INTERNAL_H

#include <apus/blocks.h>

#include "config/config.h"
#include "model/model.h"
#include "module/module.h"
#include "value/node.h"

/* A model file, opened by the format that claims it. */
typedef struct apus_format_file {
    apus_format_ops ops;
    const apus_component *component;
    void *file;
    apus_model_card card;
} apus_format_file;

apus_status apus_format_open(const char *path, apus_format_file *f, apus_error *err);
void apus_format_close(apus_format_file *f);

typedef struct apus_model_graph_context {
    struct apus_model_graph_context *next;
    apus_model *model;
    apus_forward_options options;
} apus_model_graph_context;

struct apus_model {
    apus_device *device;
    char *path; /* of the weights; NULL from scratch */
    apus_node *spec;
    apus_format_file format;         /* from scratch: card only */
    apus_format_file tokenizer_file; /* from scratch, with `tokenizer:` */
    const apus_node *config;
    apus_node *own_config, *own_tokenizer, *own_extra;
    apus_arch_ops arch_ops;
    void *arch;
    apus_model_facts facts;
    apus_text *text;
    apus_weight *weights; /* the model's, then its tuner's parameters */
    size_t n_weights, cap_weights, last_found;
    void *resident; /* device memory of weights that settled */
    size_t resident_bytes;
    int rows_left;     /* of the file embedding's rows are read, and else little */
    int64_t rows_read; /* of them, since the file's pages left memory */
    apus_model_graph_context *graphs;
    apus_tuner_ops tuner_ops;
    void *tuner;
    apus_node *tuner_config;
    float **tuner_values; /* host copies of the tuner's parameters, made when a merge asks; by weight index */
};

size_t apus_weight_elements(const apus_weight_spec *w);
apus_status apus_model_add_weight(apus_model *m, const apus_weight_spec *spec, apus_weight **out);
apus_status apus_model_own(apus_model *m, apus_weight *w, apus_error *err);
apus_status apus_model_store(apus_model *m, void *device, size_t offset, const float *src, size_t n, apus_error *err);
/* Decode a file's tensor into w's own memory, untransposed. */
apus_status apus_model_load(apus_model *m, apus_weight *w, const apus_tensor_info *t, apus_error *err);
/* Once all weights are copies, the file's pages need not stay in memory beside them. */
void apus_model_forget_file(apus_model *m);
/* Before weights are read many times and never again changed or written to a file: those that are not trained are packed
 * (apus_kernel.pack) where every kernel that g reads them with can take that; where packing rounds, embedding reads the file's. all: for products of
 * few rows, which wait for weights; and those that lie in the file move into the device's memory too. Else what takes less memory alone is packed:
 * products of many rows have nothing else from it. g: all that will read them; NULL: not known, none is packed. They stay where they are if they
 * would fill half of the machine's memory or there is none to be had: only speed and memory depend on it. Once for a model, before its plans. */
void apus_model_settle(apus_model *m, const apus_graph *g, int all);
/* Whether that can find anything to do without `all`: g need not be built otherwise. */
int apus_model_shrinks(const apus_model *m);
apus_status apus_model_init_weight(apus_model *m, apus_weight *w, uint64_t seed, apus_error *err);
apus_status apus_model_merge_adapter(apus_model *m, const char *adapter, apus_error *err);
void apus_model_drop_tuner(apus_model *m);
/* The tuner's parameters have changed: merges must fetch them anew. */
void apus_model_forget_values(apus_model *m);

#endif
