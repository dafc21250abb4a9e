/* tools/apus/run.c: apus run, check, plan: pipelines. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apus.h"
#include "module/module.h"
#include "run/run.h"
#include "value/node.h"

static int pipeline(const apus_verb *verb, int argc, char **argv, const char **file, apus_run_options *o, const char **rest, int *json)
{
    const apus_option options[] = {{"force", NULL, &o->force}, {"json", NULL, json}};
    const int n = apus_options(verb, argc, argv, options, 2, rest);
    if (n < 0)
        return n == -2 ? -1 : APUS_EXIT_USAGE;
    if (n < 1)
        return apus_usage(verb, "which FILE?");
    for (int i = 1; i < n; i++)
        if (strchr(rest[i], '=') == NULL)
            return apus_usage(verb, "an override is key.path=value");
    *file = rest[0];
    o->overrides = rest + 1;
    o->n_overrides = (size_t)n - 1;
    return apus_bring_up();
}

static int do_run(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *file = NULL;
    apus_run_options o = {0};
    apus_error err = {0};
    int json = 0, code = pipeline(&apus_verb_run, argc, argv, &file, &o, rest, &json);
    if (code == 0)
        code = apus_exit(apus_run_file(file, &o, &err), &err);
    free(rest);
    return code < 0 ? 0 : code;
}

static int do_check(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *file = NULL;
    apus_run_options o = {0};
    apus_error err = {0};
    int json = 0, code = pipeline(&apus_verb_check, argc, argv, &file, &o, rest, &json);
    if (code == 0) {
        code = apus_exit(apus_check_file(file, &o, &err), &err);
        if (code == 0)
            printf("%s: good\n", file);
    }
    free(rest);
    return code < 0 ? 0 : code;
}

static const char *duration(double seconds, char text[32])
{
    const long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else if (seconds >= 10.0)
        snprintf(text, 32, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(text, 32, "%.1f s", seconds);
    return text;
}

static double number(const apus_node *map, const char *key)
{
    return apus_nodes()->as_float(apus_nodes()->get(map, key), 0.0);
}

static void print_training(const apus_node *s)
{
    const apus_node_api *node = apus_nodes();
    const apus_node *memory = node->get(s, "memory");
    const char *from = node->as_string(node->get(s, "seconds_from"), NULL);
    const double done = number(s, "steps_done");
    printf("%28s%.0f steps", "", number(s, "steps"));
    if (done > 0)
        printf(" (%.0f are done)", done);
    printf(" of about %.0f tokens, %.3g s and %.1f GFLOP each%s\n", number(s, "tokens_per_step"), number(s, "seconds_per_step"),
           number(s, "flops_per_step") * 1e-9, from != NULL && strcmp(from, "events") == 0 ? ", as an earlier run of it on this machine went" : "");
    printf("%28strains %.3f M of %.3f M parameters\n", "", number(s, "trained") * 1e-6, number(s, "parameters") * 1e-6);
    printf("%28smemory %.1f MiB", "", number(memory, "total") / 1048576.0);
    if (number(memory, "limit") > 0)
        printf(" of %.1f", number(memory, "limit") / 1048576.0);
    static const char *const parts[] = {"weights", "gradients", "states", "reference", "activations"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (number(memory, parts[i]) > 0)
            printf("%s%.1f %s", i == 0 ? ": " : ", ", number(memory, parts[i]) / 1048576.0, parts[i]);
    if (number(memory, "offloaded") > 0)
        printf("; %.1f of optimizer states in a file", number(memory, "offloaded") / 1048576.0);
    printf("\n%28s%s\n", "", node->as_string(node->get(s, "layout"), NULL));
}

/* Weights that are laid out anew for the kernels that read them. */
static void print_packed(const apus_node *packed)
{
    const apus_node_api *node = apus_nodes();
    for (size_t i = 0; i < node->length(packed); i++) {
        const apus_node *its = node->at(packed, i);
        printf("%28spacked: %zu weights as %s, %.1f MiB\n", "", node->length(node->get(its, "weights")), node->key_at(packed, i),
               number(its, "bytes") / 1048576.0);
    }
}

/* What the tuning file chose of what it could. */
static void print_tuning(const apus_node *tuning)
{
    const apus_node_api *node = apus_nodes();
    const apus_node *kernels = node->get(tuning, "kernels"), *own = node->get(tuning, "own");
    if (tuning == NULL)
        return;
    printf("%28stuned by %s:", "", node->as_string(node->get(tuning, "file"), NULL));
    for (size_t i = 0; i < node->length(kernels); i++)
        printf("%s %zu kinds of product by %s", i > 0 ? "," : "", node->length(node->at(kernels, i)), node->key_at(kernels, i));
    if (node->length(own) > 0)
        printf("%s %zu that it says nothing of by the backend's own", node->length(kernels) > 0 ? "," : "", node->length(own));
    else if (node->length(kernels) == 0)
        printf(" nothing to choose");
    printf("\n");
}

static void print_costs(const apus_node *s)
{
    const apus_node_api *node = apus_nodes();
    char text[32];
    printf("%s %s%s\n", node->as_bool(node->get(s, "at_most"), 0) ? "at most" : "about", duration(number(s, "seconds"), text),
           node->get(s, "waits_for") != NULL ? ", with a model as an earlier stage will make it" : "");
    if (node->get(s, "layout") != NULL)
        print_training(s);
    else if (node->get(s, "answers") != NULL)
        printf("%28s%.0f answers of up to %.0f tokens\n", "", number(s, "answers"), number(s, "max_tokens"));
    else if (node->get(s, "rows") != NULL)
        printf("%28s%.0f rows, %.0f tokens\n", "", number(s, "rows"), number(s, "tokens"));
    print_packed(node->get(s, "packed"));
    print_tuning(node->get(node->get(s, "plan"), "tuning"));
}

static void print_stage(const apus_node *s)
{
    const apus_node_api *node = apus_nodes();
    const char *waits = node->as_string(node->get(s, "waits_for"), NULL), *why = node->as_string(node->get(s, "unknown"), NULL);
    printf("%-16s %-9s  ", node->as_string(node->get(s, "name"), NULL), node->as_string(node->get(s, "stage"), NULL));
    if (node->as_bool(node->get(s, "done"), 0))
        printf("done before: will be reused\n");
    else if (node->get(s, "seconds") != NULL)
        print_costs(s);
    else if (waits != NULL)
        printf("its model is made by stage %s: costs are not known yet%s%s\n", waits, why != NULL ? ": " : "", why != NULL ? why : "");
    else
        printf("costs are not known before it runs\n");
}

static void print_plan(const apus_node *plan)
{
    const apus_node_api *node = apus_nodes();
    const apus_node *stages = node->get(plan, "stages"), *others = node->get(plan, "not_estimated");
    char text[32];
    printf("run folder %s, on %s\n", node->as_string(node->get(plan, "run"), NULL), node->as_string(node->get(plan, "machine"), NULL));
    for (size_t i = 0; i < node->length(stages); i++)
        print_stage(node->at(stages, i));
    printf("in all about %s", duration(number(plan, "seconds"), text));
    for (size_t i = 0; i < node->length(others); i++)
        printf("%s%s", i == 0 ? ", and what these take: " : ", ", node->as_string(node->at(others, i), NULL));
    printf("\nTimes are estimates from timing each kind of operation here and now, on some rows; start, checkpoints and saving are not counted.\n");
}

static int do_plan(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *file = NULL;
    apus_run_options o = {0};
    apus_error err = {0};
    int json = 0, code = pipeline(&apus_verb_plan, argc, argv, &file, &o, rest, &json);
    if (code == 0) {
        apus_node *plan = NULL;
        code = apus_exit(apus_plan_file(file, &o, &plan, &err), &err);
        if (plan != NULL && json) {
            apus_print_json(plan, 1);
        } else if (plan != NULL) {
            print_plan(plan);
            apus_nodes()->release(plan);
        }
    }
    free(rest);
    return code < 0 ? 0 : code;
}

#define OVERRIDES "  key.path=value   overrides a key of the file; list items by index or name: stages.align.max_steps=2 (values are YAML)\n"

const apus_verb apus_verb_run = {
    "run", "run a pipeline; resumes or reuses what is done",
    "run FILE [key.path=value …] [--force]\n\nRuns the stages of FILE into its run folder. Stopped or killed, the same "
    "command goes on from the newest\ncheckpoint and ends with the same bytes. Stages whose inputs did not change are reused.\n\n" OVERRIDES
    "  --force          do every stage anew\n",
    do_run};
const apus_verb apus_verb_check = {"check", "validate a pipeline without running it",
                                   "check FILE [key.path=value …]\n\nValidates keys, types, names, files and the wiring of the stages.\n\n" OVERRIDES,
                                   do_check};
const apus_verb apus_verb_plan = {
    "plan", "say what a run would do: stages, time, memory, operations",
    "plan FILE [key.path=value …] [--force] [--json]\n\nOpens everything a run would and says what it costs, before anything runs. Times are "
    "estimates: each kind of\noperation of a step is timed on some rows, or an earlier run of the same stage here tells its speed.\n\n" OVERRIDES
    "  --force          as if nothing had been done\n"
    "  --json           the same as JSON, with the operations of each step\n",
    do_plan};
