/*
 * Dataset newsdesk: rows for a brief writer, made from a seed:
 *   task text         documents to pre-train on: copy drills (random words, said twice), then sheets of facts with their briefs
 *   task brief        a sheet and its brief, as a conversation; a share of the briefs carries a flaw, as archives do
 *   task preference   a sheet, the right brief, and one with a flaw
 * Its judge holds a brief against the facts (judge.c).
 */
#include "newsdesk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/random.h>

enum { TASK_TEXT, TASK_BRIEF, TASK_PREFERENCE };
static const char *const tasks[] = {"text", "brief", "preference", NULL};

typedef struct newsdesk {
    const apus_host *host;
    int task, unseen;
    int64_t rows;
    double flawed, drills;
    pieces pieces;
} newsdesk;

static const apus_node_api *node; /* set at entry, the same for all */

static apus_status open_dataset(const apus_host *host, const apus_node *params, void **dataset, apus_error *err)
{
    newsdesk *d = host->alloc(sizeof *d);
    if (d == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    const char *task = node->as_string(node->get(params, "task"), NULL);
    while (strcmp(tasks[d->task], task) != 0)
        d->task++;
    d->host = host;
    d->rows = node->as_int(node->get(params, "rows"), 1000);
    d->unseen = node->as_bool(node->get(params, "unseen"), 0);
    d->flawed = node->as_float(node->get(params, "flawed"), 0.4);
    d->drills = node->as_float(node->get(params, "drills"), 0.5);
    newsdesk_pieces(&d->pieces);
    *dataset = d;
    return APUS_OK;
}

static void close_dataset(void *dataset)
{
    newsdesk *d = dataset;
    d->host->free(d);
}

static int64_t count(void *dataset)
{
    return ((const newsdesk *)dataset)->rows;
}

/* Rows of different tasks and companies must not repeat each other: the task is part of the seed. */
static uint64_t seed_of(const newsdesk *d, uint64_t seed)
{
    return seed * 8 + (uint64_t)d->task * 2 + (uint64_t)d->unseen;
}

static double chance(uint64_t seed, int64_t i, uint32_t slot)
{
    return apus_random_uniform(seed, apus_random_purpose("newsdesk.row"), slot, (uint64_t)i);
}

static int64_t below(uint64_t seed, int64_t i, uint32_t slot, uint64_t n)
{
    return (int64_t)apus_random_below(seed, apus_random_purpose("newsdesk.row"), slot, (uint64_t)i, n);
}

/* "copy:" and 6 to 20 random pieces; on the next line the same pieces again. */
static void drill(const pieces *p, uint64_t seed, int64_t i, char *text)
{
    char line[MAX_TEXT / 2 - 8] = "";
    size_t before = 0, used = 0;
    int64_t left = 6 + below(seed, i, 3, 15);
    for (uint32_t slot = 8; left > 0; slot++) {
        const char *piece = p->text[below(seed, i, slot, (uint64_t)p->n)];
        if (strchr(" .,:0123456789", piece[0]) == NULL)
            continue; /* a word without its space would run into the piece before it */
        const size_t n = strlen(piece);
        memcpy(line + used, piece, n + 1);
        if (newsdesk_begins_unseen(line + before + (line[before] == ' ')))
            continue; /* by chance a name that is kept */
        before = used;
        used += n;
        left--;
    }
    snprintf(text, MAX_TEXT, "copy:%.*s\n%.*s", (int)used, line, (int)used, line);
}

static apus_node *facts_node(uint64_t seed, int64_t i, int unseen)
{
    apus_node *n = node->make_map();
    (void)node->set(n, "seed", node->make_int((int64_t)seed));
    (void)node->set(n, "index", node->make_int(i));
    (void)node->set(n, "unseen", node->make_bool(unseen));
    return n;
}

static apus_status make_row(void *dataset, int64_t i, uint64_t run_seed, apus_node **row, apus_error *err)
{
    const newsdesk *d = dataset;
    const uint64_t seed = seed_of(d, run_seed);
    char sheet[MAX_TEXT], good[MAX_TEXT], bad[MAX_TEXT], text[2 * MAX_TEXT];
    facts f;
    newsdesk_facts(seed, (uint64_t)i, d->unseen, &f);
    const char *wording = newsdesk_wordings[below(seed, i, 1, N_WORDINGS)];
    const int flaw = FLAW_NONE + 1 + (int)below(seed, i, 2, N_FLAWS - 1);
    newsdesk_write(newsdesk_sheet, &f, NULL, sheet);
    newsdesk_write(wording, &f, NULL, good);
    newsdesk_spoil(&f, flaw, seed, (uint64_t)i);
    newsdesk_write(wording, &f, flaw == FLAW_LOADED ? newsdesk_loaded_word(seed, (uint64_t)i) : NULL, bad);
    *row = node->make_map();
    if (*row == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (void)node->set(*row, "sheet", node->make_string(sheet, (size_t)-1));
    (void)node->set(*row, "facts", facts_node(seed, i, d->unseen));
    if (d->task == TASK_TEXT) {
        if ((double)i < d->drills * (double)d->rows)
            drill(&d->pieces, seed, i, text);
        else
            snprintf(text, sizeof text, "%s\n%s", sheet, good);
        return node->set(*row, "text", node->make_string(text, (size_t)-1));
    }
    if (d->task == TASK_BRIEF)
        return node->set(*row, "brief", node->make_string(chance(seed, i, 4) < d->flawed ? bad : good, (size_t)-1));
    (void)node->set(*row, "chosen", node->make_string(good, (size_t)-1));
    return node->set(*row, "rejected", node->make_string(bad, (size_t)-1));
}

static apus_node *answer(const apus_node *row, const char *key)
{
    apus_node *list = node->make_list();
    apus_add_message(node, list, "assistant", node->as_string(node->get(row, key), NULL));
    return list;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    const newsdesk *d = dataset;
    const apus_node *text = node->get(row, "text");
    *out = node->make_map();
    if (*out == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (d->task == TASK_TEXT)
        return node->set(*out, "text", node->copy(text));
    apus_node *messages = node->make_list();
    apus_add_message(node, messages, "user", node->as_string(node->get(row, "sheet"), NULL));
    if (d->task == TASK_BRIEF)
        apus_add_message(node, messages, "assistant", node->as_string(node->get(row, "brief"), NULL));
    (void)node->set(*out, "messages", messages);
    if (d->task == TASK_BRIEF)
        return APUS_OK;
    (void)node->set(*out, "chosen", answer(row, "chosen"));
    return node->set(*out, "rejected", answer(row, "rejected"));
}

static apus_status judge(void *dataset, const apus_node *row, const char *text, apus_node **verdict, apus_error *err)
{
    (void)dataset;
    const apus_node *n = node->get(row, "facts");
    facts f;
    newsdesk_facts((uint64_t)node->as_int(node->get(n, "seed"), 0), (uint64_t)node->as_int(node->get(n, "index"), 0),
                   node->as_bool(node->get(n, "unseen"), 0), &f);
    *verdict = newsdesk_judge(node, &f, text);
    return *verdict != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}

static apus_node *tokenizer(void *dataset)
{
    (void)dataset;
    return newsdesk_tokenizer(node);
}

static int claims(const apus_node *row)
{
    (void)row;
    return 0; /* a generator: its rows come from no file */
}

static const apus_dataset_ops ops = {.size = sizeof ops,
                                     .claims = claims,
                                     .open = open_dataset,
                                     .close = close_dataset,
                                     .example = example,
                                     .count = count,
                                     .row = make_row,
                                     .judge = judge,
                                     .tokenizer = tokenizer};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "task",
     .type = APUS_PARAM_STRING,
     .fallback = "brief",
     .choices = tasks,
     .min = 1,
     .max = 0,
     .doc = "What the rows are for: text (pre-training), brief (fine-tuning, evaluation), preference."},
    {.size = sizeof(apus_param),
     .name = "rows",
     .type = APUS_PARAM_INT,
     .fallback = "1000",
     .min = 1,
     .max = 1e9,
     .unit = "rows",
     .doc = "How many."},
    {.size = sizeof(apus_param),
     .name = "unseen",
     .type = APUS_PARAM_BOOL,
     .fallback = "false",
     .min = 1,
     .max = 0,
     .doc = "Companies whose names no other row has."},
    {.size = sizeof(apus_param),
     .name = "flawed",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.4",
     .min = 0.0,
     .max = 1.0,
     .doc = "Share of task brief's briefs that carry a flaw.",
     .needs = "task=brief"},
    {.size = sizeof(apus_param),
     .name = "drills",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.5",
     .min = 0.0,
     .max = 1.0,
     .doc = "Share of task text's documents that are copy drills. They come first: with shuffle: false copying is learned before the texts' habits "
            "hide it.",
     .needs = "task=text"},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "dataset",
                                             .name = "newsdesk",
                                             .doc = "Company facts and neutral briefs, made from a seed, with a judge.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "newsdesk", .version = "1.0.0", .license = "Apache-2.0", .doc = "A newsroom's briefs.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    node = host->node;
    return &plugin;
}
