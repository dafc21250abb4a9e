/* tools/apus/preview.c: apus preview: what the model will really see of each row: tokens, which are trained, lengths, drops. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "apus.h"
#include "data/dataset.h"
#include "module/module.h"
#include "run/pipeline.h"
#include "value/node.h"

/* A token's text is what it adds to the one before it: decoders strip a blank that begins a text. before: 0 or 1 tokens at ids[-1]. */
static void print_token(const apus_text *text, const int32_t *ids, size_t before, int trained, int colour)
{
    char *first = NULL, *both = NULL;
    size_t skip = 0, n = 0;
    if (text == NULL || (before > 0 && apus_text_decode(text, ids - before, before, 0, &first, &skip, NULL) != APUS_OK) ||
        apus_text_decode(text, ids - before, before + 1, 0, &both, &n, NULL) != APUS_OK) {
        apus_host_table()->free(first);
        printf("%s%d ", trained ? "*" : "", ids[0]);
        return;
    }
    skip = skip < n ? skip : n;
    if (colour)
        fputs(trained ? "\033[42;30m" : "\033[2m", stdout);
    else if (trained)
        fputs("\xE2\x9F\xA6", stdout);
    fwrite(both + skip, 1, n - skip, stdout);
    if (colour)
        fputs("\033[0m", stdout);
    else if (trained)
        fputs("\xE2\x9F\xA7", stdout);
    apus_host_table()->free(first);
    apus_host_table()->free(both);
}

static void print_row(const apus_text *text, const apus_row *r, size_t i, int colour)
{
    printf("--- row %zu (row %llu of the data): %u tokens, %u trained\n", i, (unsigned long long)r->source, r->n_tokens, r->n_trained);
    for (uint32_t s = 0; s < r->n_segments; s++) {
        const apus_row_segment *g = &r->segments[s];
        if (r->n_answers > 1)
            printf("%s[%s, %u tokens] ", s ? "\n" : "", g->answer < 0 ? "prompt" : g->answer == 0 ? "chosen" : "rejected", g->count);
        for (uint32_t k = 0; k < g->count; k++)
            print_token(text, r->ids + g->begin + k, k > 0, r->trained[g->begin + k], colour);
    }
    printf("\n");
}

static void say(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, "%s\n", line);
}

/* The first stage that trains on a dataset; its model's text and its rows. */
static int preview_stage(const apus_pipeline *p, const apus_pipeline_stage *s, int64_t limit, int json)
{
    const apus_node_api *node = apus_nodes();
    apus_error err = {0};
    const apus_node *spec = node->get(s->params, "model");
    for (size_t i = p->n_stages; i-- > 0;) { /* an earlier stage's text is its own model's */
        const char *earlier = node->as_string(node->get(spec, "stage"), NULL);
        if (earlier != NULL && strcmp(p->stages[i].name, earlier) == 0)
            spec = node->get(p->stages[i].params, "model");
    }
    apus_node *tokenizer = NULL, *row = NULL, *example = NULL;
    apus_examples *e = NULL;
    apus_model *m = NULL;
    apus_dataset *d = NULL;
    apus_status st = apus_examples_open(node->get(s->params, "dataset"), s->seed, &e, &err);
    if (st == APUS_OK && node->get(spec, "arch") != NULL) /* from scratch: the data may bring its tokenizer */
        tokenizer = apus_examples_tokenizer(e);
    const apus_model_options options = {.now = (int64_t)time(NULL), .tokenizer = tokenizer};
    if (st == APUS_OK)
        st = apus_model_open(spec, &options, &m, &err);
    if (st == APUS_OK)
        st = apus_examples_get(e, 0, &row, &example, &err);
    if (st == APUS_OK) { /* into the cache, where a run finds it: memory does not grow with the rows */
        char cache[4200];
        apus_pipeline_cache(p, cache, sizeof cache);
        const apus_dataset_options data = {.text = apus_model_text(m),
                                           .pairs = node->get(example, "chosen") != NULL,
                                           .apart = apus_model_get_facts(m)->length_dependent,
                                           .cache_dir = cache,
                                           .seed = s->seed,
                                           .say = say};
        st = apus_dataset_open(node->get(s->params, "dataset"), &data, &d, &err);
    }
    for (size_t i = 0; st == APUS_OK && !json && i < apus_dataset_rows(d) && (int64_t)i < limit; i++) {
        const apus_row r = apus_dataset_row(d, i);
        print_row(apus_model_text(m), &r, i, isatty(1));
    }
    if (st == APUS_OK && json)
        apus_print_json(node->copy(apus_dataset_report(d)), 1);
    apus_dataset_close(d);
    apus_model_close(m);
    node->release(tokenizer);
    node->release(row);
    node->release(example);
    if (e != NULL)
        apus_examples_close(e);
    return apus_exit(st, &err);
}

static int do_preview(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *stage = NULL, *rows = NULL;
    int json = 0;
    const apus_option options[] = {{"stage", &stage, NULL}, {"rows", &rows, NULL}, {"json", NULL, &json}};
    const int n = apus_options(&apus_verb_preview, argc, argv, options, 3, rest);
    int64_t shown = 3;
    int code = n == -2 ? 0 : n < 0 ? APUS_EXIT_USAGE : n < 1 ? apus_usage(&apus_verb_preview, "which FILE?") : 0;
    if (n >= 1 && code == 0)
        code = apus_whole(&apus_verb_preview, "rows", rows, 0, INT64_MAX, &shown);
    if (n >= 1 && code == 0)
        code = apus_bring_up();
    if (n < 1 || code != 0) {
        free(rest);
        return code;
    }
    const apus_run_options o = {.overrides = rest + 1, .n_overrides = (size_t)n - 1};
    apus_error err = {0};
    apus_pipeline p;
    code = apus_exit(apus_pipeline_load(rest[0], &o, &p, &err), &err);
    free(rest);
    if (code != 0)
        return code;
    size_t i = 0;
    while (i < p.n_stages && (stage != NULL ? strcmp(p.stages[i].name, stage) != 0 : apus_nodes()->get(p.stages[i].params, "dataset") == NULL))
        i++;
    if (i == p.n_stages) {
        fprintf(stderr, "apus: %s\n", stage != NULL ? "there is no such stage" : "no stage has a dataset");
        code = 1;
    } else {
        code = preview_stage(&p, &p.stages[i], shown, json);
    }
    apus_pipeline_free(&p);
    return code;
}

const apus_verb apus_verb_preview = {
    "preview", "what the model will see: rows, tokens, which are trained",
    "preview FILE [key.path=value …] [--stage NAME] [--rows N] [--json]\n\nRows of the first stage with a dataset (or of --stage) as they will be "
    "trained on: rendered by the\n"
    "template, cut into tokens, the trained ones in colour (or between \xE2\x9F\xA6 \xE2\x9F\xA7), with lengths, cuts and drops.\n"
    "  --rows N   how many rows to show (default 3)\n  --json     the counts alone\n",
    do_preview};
