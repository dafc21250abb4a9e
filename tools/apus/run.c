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

static void print_stage(const apus_node *s)
{
    const apus_node_api *node = apus_nodes();
    const apus_node *memory = node->get(s, "memory");
    printf("%-16s %-9s", node->as_string(node->get(s, "name"), NULL), node->as_string(node->get(s, "stage"), NULL));
    if (node->as_bool(node->get(s, "done"), 0)) {
        printf("done before: will be reused\n");
        return;
    }
    if (node->get(s, "waits_for") != NULL)
        printf("to do; its model is made by stage %s, so costs are not known yet", node->as_string(node->get(s, "waits_for"), NULL));
    if (memory != NULL)
        printf("%lld steps of about %.0f tokens, %.1f GFLOP each; trains %.3f M of %.3f M parameters; memory %.0f MiB weights and states, "
               "%.0f MiB activations",
               (long long)node->as_int(node->get(s, "steps"), 0), node->as_float(node->get(s, "tokens_per_step"), 0),
               node->as_float(node->get(s, "flops_per_step"), 0) * 1e-9, node->as_float(node->get(s, "trained"), 0) * 1e-6,
               node->as_float(node->get(s, "parameters"), 0) * 1e-6, node->as_float(node->get(memory, "weights_and_states"), 0) / 1048576.0,
               node->as_float(node->get(memory, "activations"), 0) / 1048576.0);
    printf("\n");
}

static int do_plan(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *file = NULL;
    const apus_node_api *node = apus_nodes();
    apus_run_options o = {0};
    apus_error err = {0};
    int json = 0, code = pipeline(&apus_verb_plan, argc, argv, &file, &o, rest, &json);
    if (code == 0) {
        apus_node *plan = apus_plan_file(file, &o, &err);
        if (plan == NULL) {
            code = apus_exit(APUS_E_INVALID, &err);
        } else if (json) {
            apus_print_json(plan, 1);
        } else {
            const apus_node *stages = node->get(plan, "stages");
            printf("run folder %s, on %s\n", node->as_string(node->get(plan, "run"), NULL), node->as_string(node->get(plan, "machine"), NULL));
            for (size_t i = 0; i < node->length(stages); i++)
                print_stage(node->at(stages, i));
            node->release(plan);
        }
    }
    free(rest);
    return code < 0 ? 0 : code;
}

#define OVERRIDES                                                                                                              \
    "  key.path=value   overrides a key of the file; list items by index or name: stages.align.max_steps=2 (values are YAML)\n"

const apus_verb apus_verb_run = {"run", "run a pipeline; resumes or reuses what is done",
                                 "run FILE [key.path=value …] [--force]\n\nRuns the stages of FILE into its run folder. Stopped or killed, the same "
                                 "command goes on from the newest\ncheckpoint and ends with the same bytes. Stages whose inputs did not change are reused.\n\n" OVERRIDES
                                 "  --force          do every stage anew\n",
                                 do_run};
const apus_verb apus_verb_check = {"check", "validate a pipeline without running it",
                                   "check FILE [key.path=value …]\n\nValidates keys, types, names, files and the wiring of the stages.\n\n" OVERRIDES, do_check};
const apus_verb apus_verb_plan = {"plan", "say what a run would do: stages, memory, operations",
                                  "plan FILE [key.path=value …] [--json]\n\nOpens everything a run would and says what it costs, before anything runs.\n\n" OVERRIDES
                                  "  --json           the same as JSON, with the operations of each step\n",
                                  do_plan};
