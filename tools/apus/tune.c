/* tools/apus/tune.c: apus tune: which plugin's kernels are the fastest for a pipeline's trainings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apus.h"
#include "module/module.h"

typedef struct sums {
    size_t n, others; /* kinds of operation; those that another table than the backend's own is the fastest for */
    double own, best; /* seconds of all of them once */
} sums;

static void idle(void *context, const char *table, const char *why)
{
    (void)context;
    printf("kernels %s do not serve this backend: %s\n", table, why);
}

static void found(void *context, const apus_trial *t)
{
    sums *s = context;
    char what[300];
    snprintf(what, sizeof what, "%s%s%s %s, %lld rows", t->op, t->then != NULL ? " + " : "", t->then != NULL ? t->then : "", t->shapes,
             (long long)t->rows);
    printf("%-70s %4zu ×", what, t->count);
    for (size_t k = 0; k < t->n; k++)
        printf("  %s %.3f ms", t->table[k], t->seconds[k] * 1e3);
    if (t->best > 0)
        printf("  -> %s, %.1f %% less\n", t->table[t->best], 100.0 * (1.0 - t->seconds[t->best] / t->seconds[0]));
    else
        printf("  -> %s\n", t->table[0]);
    fflush(stdout);
    s->n++;
    s->others += t->best > 0;
    s->own += (double)t->count * t->seconds[0];
    s->best += (double)t->count * t->seconds[t->best];
}

static int do_tune(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *out = NULL;
    const apus_option options[] = {{"out", &out, NULL}};
    const int n = apus_options(&apus_verb_tune, argc, argv, options, 1, rest);
    int code = n == -2 ? -1 : n < 0 ? APUS_EXIT_USAGE : n < 1 ? apus_usage(&apus_verb_tune, "which FILE?") : 0;
    for (int i = 1; i < n && code == 0; i++)
        if (strchr(rest[i], '=') == NULL)
            code = apus_usage(&apus_verb_tune, "an override is key.path=value");
    if (code == 0)
        code = apus_bring_up();
    if (code == 0) {
        const apus_run_options run = {.overrides = rest + 1, .n_overrides = (size_t)n - 1};
        apus_error err = {0};
        char *written = NULL;
        sums s = {0};
        const apus_trial_found tell = {&s, idle, found};
        code = apus_exit(apus_tune_file(rest[0], &run, out, &tell, &written, &err), &err);
        if (code == 0 && s.n == 0)
            printf("nothing to choose: no training here computes what several plugins have kernels for\n");
        else if (code == 0)
            printf("%zu of %zu kinds by another plugin than the backend's own; all of them once: %.4g ms instead of %.4g (%.1f %% less)\n", s.others,
                   s.n, s.best * 1e3, s.own * 1e3, 100.0 * (1.0 - s.best / s.own));
        if (code == 0)
            printf("written: %s\nto use it: backend.tuning=%s, or backend: {type: …, tuning: %s} in the file\n", written, written, written);
        apus_host_table()->free(written);
    }
    free(rest);
    return code < 0 ? 0 : code;
}

const apus_verb apus_verb_tune = {
    "tune", "time the kernels of all plugins for a pipeline; write which to use",
    "tune FILE [key.path=value …] [--out TUNING]\n\nOpens the pipeline as `apus plan` does, times every plugin's kernels in turn for each kind of "
    "product "
    "that its\ntrainings compute, and writes which is the fastest to a tuning file. A run takes it with backend.tuning=TUNING; it\nis good for this "
    "machine, number of threads, dtype and versions of the plugins, and refused elsewhere. Where\nanother plugin's kernel is not at least 2 % "
    "faster, "
    "the backend's own stays. Nothing is trained.\n\n"
    "  key.path=value   overrides a key of the file, as for `apus run`\n"
    "  --out TUNING     the file to write; default: what backend.tuning names, else FILE.tuning.yaml\n",
    do_tune};
