/*
 * tools/apus: the command `apus`: a file per verb, each with its own --help. This header: what the verbs share.
 *
 * Exit codes: 0 done · 1 the input is wrong (configuration, data, model files, names) · 2 the command line is wrong · 3 a file or
 * device could not be read or written · 4 out of memory, or over a limit that was set · 5 well-formed, but nothing here can do it ·
 * 6 a bug in apus or a plugin · 7 a number that is not finite · 130 stopped by SIGINT or SIGTERM, everything saved.
 */
#ifndef APUS_TOOLS_H
#define APUS_TOOLS_H

#include <apus/base.h>

#include "graph/graph.h"
#include "model/model.h"
#include "run/run.h"

typedef struct apus_verb {
    const char *name;
    const char *line;                  /* for `apus --help` */
    const char *help;                  /* for `apus NAME --help` */
    int (*run)(int argc, char **argv); /* argv[0] is the verb; returns the exit code */
} apus_verb;

extern const apus_verb apus_verb_run, apus_verb_check, apus_verb_plan, apus_verb_plugins, apus_verb_schema, apus_verb_preview, apus_verb_chat,
    apus_verb_generate, apus_verb_tokenize, apus_verb_render, apus_verb_score, apus_verb_inspect, apus_verb_export, apus_verb_tune;

enum { APUS_EXIT_USAGE = 2, APUS_EXIT_IO = 3 };

/* One option of a verb: --name VALUE (or --name=VALUE), or a flag. */
typedef struct apus_option {
    const char *name;   /* without the dashes */
    const char **value; /* takes a value; NULL: a flag */
    int *flag;
} apus_option;

/* Read options anywhere on the line; what is left goes to rest (room for argc). Returns how many, or -1 (said on stderr). --help
 * prints the verb's help and returns -2. */
int apus_options(const apus_verb *verb, int argc, char **argv, const apus_option *options, size_t n, const char **rest);

int apus_exit(apus_status st, const apus_error *err); /* says the error with its hint; gives the exit code */
int apus_usage(const apus_verb *verb, const char *message);
/* n: what apus_options gave. -1 where the rest is one word, a MODEL; else the exit code, and why was said. */
int apus_one_model(const apus_verb *verb, int n);
/* The value of --name as a number; NULL leaves *number alone. 0, or the exit code (said). */
int apus_whole(const apus_verb *verb, const char *name, const char *value, int64_t least, int64_t most, int64_t *number);
/* Load the plugins; 0, or an exit code (said). */
int apus_bring_up(void);

/* A node as JSON on stdout, and a line break. Takes it. */
void apus_print_json(apus_node *n, int indent);
/* All of stdin or of a file; owner: caller (free). NULL: said. */
char *apus_read_all(const char *path, size_t *length);
apus_node *apus_read_json(const char *path); /* NULL: said on stderr */

/* A model as the verbs take it: MODEL, --base, --adapter, --template, --backend, --threads, --dtype, --activations. */
typedef struct apus_model_arguments {
    const char *model, *adapter, *base, *template_file, *backend, *threads, *dtype, *activations;
} apus_model_arguments;
#define APUS_MODEL_OPTIONS                                                                                                                           \
    "  MODEL              Hugging Face folder, GGUF file, a run's stage (runs/x:stage), or an adapter with --base\n"                                 \
    "  --adapter DIR      answer with this adapter on top     --base MODEL   MODEL is an adapter of this one\n"                                      \
    "  --backend NAME     cpu (default), ref, …               --threads N    default: all cores\n"                                                 \
    "  --dtype T          float32 (default) or bfloat16: what products of matrices are computed in\n"                                                \
    "  --activations A    float (default) or int8: what they are rounded to before they meet weights in Q8_0 or Q4_0: faster, less exact\n"
/* device NULL: card and text only. 0, or an exit code (said). keep: weights stay encoded. */
int apus_open_model(const apus_model_arguments *a, int keep, int with_weights, apus_device **device, apus_model **model);

#endif
