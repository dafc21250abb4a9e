/*
 * core/model/model: a model in memory: what its files say, its architecture, its weights on a device, an adapter on top, its text.
 * Weights are shared, never copied, by the graphs that use them.
 */
#ifndef APUS_CORE_MODEL_H
#define APUS_CORE_MODEL_H

#include <apus/model.h>
#include <apus/train.h>

#include "data/text.h"
#include "graph/graph.h"

/* One weight, or one parameter of a tuner. */
typedef struct apus_weight {
    apus_weight_spec spec; /* strings: owner: the model */
    apus_dtype dtype;      /* APUS_REAL or an encoding */
    void *device;          /* device memory, or the mapped file where the backend computes in host memory */
    void *rows;            /* real numbers in the mapped file, which embedding reads where `device` holds rounded ones; NULL: it reads that */
    size_t bytes;          /* of device memory */
    int owned;             /* device memory is ours to free */
    int trained;
    int of_tuner;
} apus_weight;

typedef struct apus_model apus_model;

typedef struct apus_model_options {
    apus_device *device; /* NULL: card and text only, no weights */
    int keep_encoded;    /* 1: weights stay as stored where the device has kernels for it; 0: all become the real type */
    int64_t now;         /* for the template */
    const char *template_file;
    uint64_t seed;              /* weights from scratch */
    const apus_node *tokenizer; /* tokenizer.json's shape for a model from scratch that has none; may be NULL */
    int no_text;                /* do not open tokenizer and template */
} apus_model_options;

/* spec: a path (string); {path, template}; {base: spec, adapter: path, merge: bool}; {arch, config, tokenizer: path, or what
 * tokenizer.json holds}. An adapter
 * folder alone uses its base_model_name_or_path when that is a path that exists. adapter merged in float32 unless options of
 * the caller attach a tuner (apus_model_tune). Every missing, unused and wrongly shaped tensor is named in one error. */
apus_status apus_model_open(const apus_node *spec, const apus_model_options *options, apus_model **model, apus_error *err);
void apus_model_close(apus_model *m);

const apus_model_card *apus_model_get_card(const apus_model *m);
const apus_model_facts *apus_model_get_facts(const apus_model *m);
const apus_text *apus_model_text(const apus_model *m);
const apus_node *apus_model_spec(const apus_model *m);
apus_device *apus_model_device(const apus_model *m);
size_t apus_model_weights(const apus_model *m);
apus_weight *apus_model_weight(apus_model *m, size_t i);
apus_weight *apus_model_weight_named(apus_model *m, const char *name);

/* Attach a tuner (component "tuner", validated params). adapter: folder whose weights it starts from, and whose configuration holds where
 * tuner_spec has no written value; NULL: new (A by its init, keyed by seed). Adds its parameters as weights; marks what is trained. */
apus_status apus_model_tune(apus_model *m, const apus_node *tuner_spec, const char *adapter, uint64_t seed, apus_error *err);
/* Open an adapter folder with the tuner its configuration names, for answering with it unmerged. */
apus_status apus_model_adapt(apus_model *m, const char *adapter, apus_error *err);
const apus_node *apus_model_tuner_config(const apus_model *m); /* adapter_config; NULL: full or none */

/* Build the forward pass into g (whose hooks come from apus_model_hooks). */
typedef struct apus_forward {
    apus_tensor hidden; /* [T, hidden] */
    apus_tensor head;   /* weight tensor [vocab, hidden] */
    apus_model_outputs outputs;
} apus_forward;

enum { APUS_FORWARD_PLAIN = 0, APUS_FORWARD_CACHED = 1 };
typedef struct apus_forward_options {
    int mode;              /* PLAIN: attention by segments; CACHED: over the paged cache */
    int tuner;             /* 1: with the tuner's adapter; 0: without */
    int dropout;           /* 1: the tuner's dropout is on */
    int narrow;            /* 1: apus_graph_narrow */
    int tuned;             /* 1: apus_graph_tune */
    int32_t page;          /* CACHED: positions per page */
    int64_t slots;         /* CACHED: rows of each layer's cache */
    int64_t table_columns; /* CACHED: 4 + pages of a table row */
} apus_forward_options;
/* A graph that keeps `options` for the model's hooks. */
apus_graph *apus_model_graph(apus_model *m, const apus_forward_options *options);
apus_status apus_model_forward(apus_model *m, apus_graph *g, apus_forward *f, apus_error *err);
/* Bind all of the plan's variables that are weights of m. Others stay for the caller. */
apus_status apus_model_bind(apus_model *m, apus_plan *p, apus_error *err);
/* apus_plan_run, of a plan that is bound to m. Where of the weights' file only an embedding's rows are still read, its pages leave memory every
 * so many rows: the kernel brings a row's neighbours with it, and in time all of a table that is packed besides. [main] */
apus_status apus_model_run(apus_model *m, apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds,
                           apus_error *err);

/* Rows of a weight as float32, the adapter merged when merge. For exports and merging. */
apus_status apus_model_read(apus_model *m, size_t weight, int merge, int64_t row, int64_t rows, float *dst, apus_error *err);

/* Decode n elements of an element type into floats, and back for plain types. */
apus_status apus_decode_row(apus_dtype t, const void *src, int64_t n, float *dst);

#endif
