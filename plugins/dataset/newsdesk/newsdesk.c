/*
 * Dataset newsdesk: rows for a brief writer, made from a seed:
 *   task text         documents to pre-train on: a sheet of facts with its brief, or a copy drill (random words, said twice)
 *   task brief        a sheet and its brief, as a conversation; a share of the briefs carries a flaw, as archives do
 *   task preference   a sheet, the right brief, and one with a flaw
 * The judge holds a brief against its facts: every number, name, period, direction, currency and unit in its own slot, no loaded word.
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

typedef struct word_list {
    const char *words[512];
    char text[8192];
    size_t n, used;
} word_list;

static void collect(void *context, const char *word)
{
    word_list *l = context;
    const size_t n = strlen(word) + 1;
    if (l->n == 512 || l->used + n > sizeof l->text)
        return;
    memcpy(l->text + l->used, word, n);
    l->words[l->n++] = l->text + l->used;
    l->used += n;
}

/* "copy: a b 4 c\na b 4 c" */
static void drill(uint64_t seed, int64_t i, char *text, size_t capacity)
{
    word_list *l = calloc(1, sizeof *l);
    const int64_t n = 6 + below(seed, i, 3, 15);
    char line[1024] = "";
    size_t used = 0;
    if (l != NULL)
        newsdesk_words(collect, l);
    for (int64_t k = 0; l != NULL && k < n && used + 64 < sizeof line; k++) {
        const int digit = chance(seed, i, (uint32_t)(8 + 2 * k)) < 0.4;
        const int64_t pick = below(seed, i, (uint32_t)(9 + 2 * k), digit ? 10 : l->n);
        if (digit)
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%lld", k ? " " : "", (long long)pick);
        else
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%s", k ? " " : "", l->words[pick]);
    }
    snprintf(text, capacity, "copy: %s\n%s", line, line);
    free(l);
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
    char sheet[512], good[1024], bad[1024], text[2100];
    facts f;
    newsdesk_facts(seed, (uint64_t)i, d->unseen, &f);
    newsdesk_sheet(&f, sheet, sizeof sheet);
    const int pattern = (int)below(seed, i, 1, N_PATTERNS), flaw = 1 + (int)below(seed, i, 2, N_FLAWS - 1);
    newsdesk_brief(&f, pattern, FLAW_NONE, seed, (uint64_t)i, good, sizeof good);
    newsdesk_brief(&f, pattern, flaw, seed, (uint64_t)i, bad, sizeof bad);
    *row = node->make_map();
    if (*row == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (void)node->set(*row, "sheet", node->make_string(sheet, (size_t)-1));
    (void)node->set(*row, "facts", facts_node(seed, i, d->unseen));
    if (d->task == TASK_TEXT) {
        if (chance(seed, i, 4) < d->drills)
            drill(seed, i, text, sizeof text);
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

/* A brief is faithful when it is, letter by letter, one of the wordings with every fact in its slot. */
static apus_status judge(void *dataset, const apus_node *row, const char *text, apus_node **verdict, apus_error *err)
{
    (void)dataset;
    const apus_node *n = node->get(row, "facts");
    const uint64_t seed = (uint64_t)node->as_int(node->get(n, "seed"), 0), i = (uint64_t)node->as_int(node->get(n, "index"), 0);
    char right[1024], name[160];
    facts f;
    int faithful = 0;
    newsdesk_facts(seed, i, node->as_bool(node->get(n, "unseen"), 0), &f);
    for (int p = 0; p < N_PATTERNS && !faithful; p++) {
        newsdesk_brief(&f, p, FLAW_NONE, seed, i, right, sizeof right);
        faithful = strcmp(text, right) == 0;
    }
    /* "company: Alder Glass\n…": the name as it must stand in the brief */
    const char *sheet = node->as_string(node->get(row, "sheet"), NULL);
    const char *begin = sheet != NULL && strncmp(sheet, "company: ", 9) == 0 ? sheet + 9 : "";
    snprintf(name, sizeof name, "%.*s", (int)strcspn(begin, "\n"), begin);
    *verdict = node->make_map();
    if (*verdict == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (void)node->set(*verdict, "faithful", node->make_int(faithful));
    (void)node->set(*verdict, "named", node->make_int(name[0] != '\0' && strstr(text, name) != NULL));
    return node->set(*verdict, "loaded", node->make_int(newsdesk_has_loaded_word(text)));
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

static const apus_dataset_ops ops = {.size = sizeof ops, .claims = claims, .open = open_dataset, .close = close_dataset, .example = example, .count = count,
                                     .row = make_row, .judge = judge, .tokenizer = tokenizer};

static const apus_param params[] = {
    {.size = sizeof(apus_param), .name = "task", .type = APUS_PARAM_STRING, .fallback = "brief", .choices = tasks, .min = 1, .max = 0,
     .doc = "What the rows are for: text (pre-training), brief (fine-tuning, evaluation), preference."},
    {.size = sizeof(apus_param), .name = "rows", .type = APUS_PARAM_INT, .fallback = "1000", .min = 1, .max = 1e9, .unit = "rows", .doc = "How many."},
    {.size = sizeof(apus_param), .name = "unseen", .type = APUS_PARAM_BOOL, .fallback = "false", .min = 1, .max = 0,
     .doc = "Companies whose names no other row has."},
    {.size = sizeof(apus_param), .name = "flawed", .type = APUS_PARAM_FLOAT, .fallback = "0.4", .min = 0.0, .max = 1.0,
     .doc = "Share of task brief's briefs that carry a flaw."},
    {.size = sizeof(apus_param), .name = "drills", .type = APUS_PARAM_FLOAT, .fallback = "0.5", .min = 0.0, .max = 1.0,
     .doc = "Share of task text's documents that are copy drills: without them names are not learned."},
};

static const apus_component components[] = {{.size = sizeof(apus_component), .kind = "dataset", .name = "newsdesk",
                                             .doc = "Company facts and neutral briefs, made from a seed, with a judge.", .params = params,
                                             .n_params = sizeof params / sizeof params[0], .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD, .name = "newsdesk", .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "A newsroom's briefs.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    node = host->node;
    return &plugin;
}
