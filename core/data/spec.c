/* core/data/spec.c: see spec.h; and the examples interface of dataset.h. */
#include "data/spec.h"

#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

/* ---------------------------------------------------------------- parameters */

static const char *const overlong_choices[] = {"right", "left", "drop", "split", "error", NULL};
static const char *const train_choices[] = {"all", "last", NULL};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "path",
     .type = APUS_PARAM_PATH,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "File, folder or archive of rows (.jsonl, .json, .csv, .tsv, .txt; plain or compressed); path#N: the first N rows.",
     .aliases = "file data_path dataset_dir file_name"},
    {.size = sizeof(apus_param),
     .name = "type",
     .type = APUS_PARAM_STRING,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "Which dataset plugin reads the rows; left out: recognised from the rows, and said.",
     .aliases = "formatting format"},
    {.size = sizeof(apus_param),
     .name = "max_length",
     .type = APUS_PARAM_INT,
     .fallback = "2048",
     .min = 2,
     .max = 1e9,
     .unit = "tokens",
     .doc = "Longest row (of a pair: prompt and one answer).",
     .aliases = "cutoff_len sequence_len max_seq_length max_seq_len"},
    {.size = sizeof(apus_param),
     .name = "overlong",
     .type = APUS_PARAM_STRING,
     .flags = APUS_PARAM_NULLABLE,
     .choices = overlong_choices,
     .min = 1,
     .max = 0,
     .doc = "Rows over max_length: right cuts the end (a row whose prompt alone fills it is dropped), left the beginning, drop, split "
            "into several rows, error. Default right; for type text: split.",
     .aliases = "truncation_strategy truncation_mode"},
    {.size = sizeof(apus_param),
     .name = "train_on",
     .type = APUS_PARAM_STRING,
     .fallback = "all",
     .choices = train_choices,
     .min = 1,
     .max = 0,
     .doc = "Which assistant turns are trained.",
     .aliases = "loss_scale train_on_inputs"},
    {.size = sizeof(apus_param),
     .name = "shuffle",
     .type = APUS_PARAM_BOOL,
     .fallback = "true",
     .min = 1,
     .max = 0,
     .doc = "Order the rows anew each epoch, by the seed.",
     .aliases = "dataset_shuffle shuffle_dataset"},
    {.size = sizeof(apus_param),
     .name = "columns",
     .type = APUS_PARAM_MAP,
     .item = APUS_PARAM_STRING,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "Names of the columns: {prompt: q, response: a} reads column q as prompt.",
     .aliases = "field_mapping"},
    {.size = sizeof(apus_param),
     .name = "system",
     .type = APUS_PARAM_STRING,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "System message for conversations that have none.",
     .aliases = "default_system system_prompt"},
    {.size = sizeof(apus_param),
     .name = "template_variables",
     .type = APUS_PARAM_NODE,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "Extra variables of the chat template, such as {enable_thinking: false}.",
     .aliases = "chat_template_kwargs"},
};
enum { N_PARAMS = sizeof params / sizeof params[0] };

const apus_param *apus_dataset_params(uint32_t *n)
{
    *n = N_PARAMS;
    return params;
}

/* Ours and the type's parameters in one table, so that an unknown key is judged against both. */
static apus_node *validate(const apus_node *given, const apus_component *c, apus_error *err)
{
    const uint32_t n = c != NULL ? c->n_params : 0;
    apus_param *all = calloc(N_PARAMS + n, sizeof *all);
    char what[128];
    if (all == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        return NULL;
    }
    memcpy(all, params, sizeof params);
    for (uint32_t i = 0; i < n; i++)
        apus_take(&all[N_PARAMS + i], sizeof *all, (const char *)c->params + (size_t)i * c->params[0].size);
    snprintf(what, sizeof what, "dataset%s%s", c != NULL ? " " : "", c != NULL ? c->name : "");
    apus_node *p = apus_params_validate(given, all, N_PARAMS + n, "", what, err);
    free(all);
    return p;
}

/* ---------------------------------------------------------------- recognising */

static apus_status recognise(apus_data_part *p, apus_error *err)
{
    int best = 0;
    const apus_node *first = p->first;
    for (size_t i = 0; i < apus_component_count("dataset"); i++) {
        const apus_component *c = apus_component_at("dataset", i);
        apus_dataset_ops ops;
        apus_take(&ops, sizeof ops, c->ops);
        const int score = ops.claims != NULL ? ops.claims(first) : 0;
        if (score > best) {
            best = score;
            p->component = c;
        }
    }
    if (p->component != NULL)
        return APUS_OK;
    char keys[256] = "", where[256];
    size_t used = 0;
    for (size_t i = 0; i < NODE->length(first) && used + 40 < sizeof keys; i++)
        used += (size_t)snprintf(keys + used, sizeof keys - used, "%s%.32s", i ? ", " : "", NODE->key_at(first, i));
    apus_fail(err, APUS_E_INVALID, "%s: no dataset type recognises rows with the columns %s", NODE->where(first, where, sizeof where), keys);
    return apus_hint(err, APUS_E_INVALID, "name the type, or map the columns: {prompt: …, response: …}");
}

static apus_node *rename_columns(const apus_node *row, const apus_node *columns)
{
    apus_node *copy = NODE->copy(row);
    for (size_t i = 0; i < NODE->length(columns); i++) {
        const char *theirs = NODE->as_string(NODE->at(columns, i), NULL);
        const apus_node *value = theirs != NULL ? NODE->get(row, theirs) : NULL;
        if (value == NULL)
            continue;
        (void)NODE->remove(copy, theirs);
        (void)NODE->set(copy, NODE->key_at(columns, i), NODE->copy(value));
    }
    return copy;
}

/* A column that the mapping names must be there. */
static apus_status check_columns(const apus_data_part *p, apus_error *err)
{
    const apus_node *columns = NODE->get(p->params, "columns"), *first = p->first;
    for (size_t i = 0; i < NODE->length(columns); i++) {
        const char *theirs = NODE->as_string(NODE->at(columns, i), NULL);
        char where[256];
        if (theirs != NULL && NODE->get(first, theirs) == NULL)
            return apus_fail(err, APUS_E_INVALID, "%s: columns: the rows have no column '%s'", NODE->where(NODE->at(columns, i), where, sizeof where),
                             theirs);
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- opening */

static apus_node *renamed(const apus_data_part *p, apus_node *row)
{
    const apus_node *columns = NODE->get(p->params, "columns");
    if (NODE->length(columns) == 0)
        return row;
    apus_node *copy = rename_columns(row, columns);
    NODE->release(row);
    return copy;
}

/* The first row says what the others are. */
static apus_status begin_rows(apus_data_part *p, apus_error *err)
{
    apus_status st = apus_rows_open(p->path, &p->rows, err);
    if (st == APUS_OK)
        st = apus_rows_next(p->rows, &p->first, err);
    if (st == APUS_OK && p->first == NULL)
        st = apus_fail(err, APUS_E_INVALID, "%s: there are no rows in it", p->path);
    if (st == APUS_OK)
        st = check_columns(p, err);
    if (st == APUS_OK)
        p->first = renamed(p, p->first);
    return st;
}

apus_status apus_data_part_next(apus_data_part *p, apus_node **row, apus_error *err)
{
    apus_status st = APUS_OK;
    apus_node *next = NULL;
    if (p->rows != NULL && p->first != NULL && p->given < p->most) {
        next = p->first;
        p->first = NULL;
    } else if (p->given < p->most) {
        st = p->rows == NULL ? p->ops.row(p->instance, p->given, p->seed, &next, err) : apus_rows_next(p->rows, &next, err);
        if (st == APUS_OK && next != NULL && p->rows != NULL)
            next = renamed(p, next);
    }
    if (st != APUS_OK)
        return st;
    p->given += next != NULL;
    *row = next;
    return APUS_OK;
}

static apus_status open_part(const apus_node *given, uint64_t seed, int read, apus_data_part *p, apus_error *err)
{
    apus_node *spec = NODE->kind(given) == APUS_NODE_STRING ? NODE->make_map() : NODE->copy(given);
    if (NODE->kind(given) == APUS_NODE_STRING)
        (void)NODE->set(spec, "path", NODE->copy(given));
    const char *type = NODE->as_string(NODE->get(spec, "type"), NULL), *path = NODE->as_string(NODE->get(spec, "path"), NULL);
    apus_status st = APUS_OK;
    p->seed = seed;
    p->most = INT64_MAX;
    if (type != NULL) {
        p->component = apus_component_find("dataset", type, err);
        st = p->component != NULL ? APUS_OK : APUS_E_NOT_FOUND;
        if (st != APUS_OK && err != NULL) { /* say where the wrong name stands */
            apus_error at = *err;
            char where[256];
            NODE->where(NODE->get(spec, "type"), where, sizeof where);
            (void)snprintf(err->message, sizeof err->message, "%s%s%.1200s", where, where[0] ? ": " : "", at.message);
        }
    }
    if (st == APUS_OK && path != NULL) {
        p->path = strdup(path);
        char *hash = p->path != NULL ? strrchr(p->path, '#') : NULL;
        if (hash != NULL && hash[1] >= '1' && hash[1] <= '9' && hash[1 + strspn(hash + 1, "0123456789")] == '\0') {
            p->most = strtoll(hash + 1, NULL, 10);
            *hash = '\0';
        }
        if (!apus_path_exists(p->path)) {
            char where[256];
            NODE->where(NODE->get(spec, "path"), where, sizeof where);
            st = apus_fail(err, APUS_E_NOT_FOUND, "%s%sdataset: %s: no such file or folder", where, where[0] ? ": " : "", p->path);
            apus_hint(err, st, "paths are relative to the working directory");
        }
    }
    if (st == APUS_OK && (p->component != NULL || !read)) {
        p->params = validate(spec, p->component, err);
        st = p->params != NULL ? APUS_OK : APUS_E_INVALID;
    }
    if (st == APUS_OK && p->component == NULL && path == NULL) {
        char where[256];
        st = apus_fail(err, APUS_E_INVALID, "%s: a dataset needs a path, or a type that makes its own rows", NODE->where(given, where, sizeof where));
    }
    if (st == APUS_OK && !read) {
        NODE->release(spec);
        return APUS_OK;
    }
    if (st == APUS_OK && p->params == NULL) { /* the type is not known before its rows are */
        p->params = NODE->copy(spec);
        st = begin_rows(p, err);
        if (st == APUS_OK)
            st = recognise(p, err);
        NODE->release(p->params);
        p->params = st == APUS_OK ? validate(spec, p->component, err) : NULL;
        if (st == APUS_OK && p->params == NULL)
            st = APUS_E_INVALID;
    } else if (st == APUS_OK && p->path != NULL) {
        st = begin_rows(p, err);
    }
    NODE->release(spec);
    if (st != APUS_OK)
        return st;
    apus_take(&p->ops, sizeof p->ops, p->component->ops);
    st = p->ops.open(HOST, p->params, &p->instance, err);
    if (st != APUS_OK) {
        p->instance = NULL;
        return st;
    }
    if (p->path == NULL) {
        if (p->ops.count == NULL || p->ops.row == NULL)
            return apus_fail(err, APUS_E_INVALID, "dataset %s needs a path", p->component->name);
        p->most = p->ops.count(p->instance);
    }
    return APUS_OK;
}

apus_status apus_data_parts_open(const apus_node *spec, uint64_t seed, int read, apus_data_part **parts, size_t *n, apus_error *err)
{
    const int is_list = NODE->kind(spec) == APUS_NODE_LIST;
    *n = is_list ? NODE->length(spec) : 1;
    *parts = calloc(*n + 1, sizeof **parts);
    if (*parts == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = *n > 0 ? APUS_OK : apus_fail(err, APUS_E_INVALID, "the list of datasets is empty");
    for (size_t i = 0; i < *n && st == APUS_OK; i++)
        st = open_part(is_list ? NODE->at(spec, i) : spec, seed, read, &(*parts)[i], err);
    if (st != APUS_OK) {
        apus_data_parts_close(*parts, *n);
        *parts = NULL;
        *n = 0;
    }
    return st;
}

void apus_data_parts_close(apus_data_part *parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (parts[i].instance != NULL)
            parts[i].ops.close(parts[i].instance);
        NODE->release(parts[i].params);
        apus_rows_close(parts[i].rows);
        NODE->release(parts[i].first);
        free(parts[i].path);
    }
    free(parts);
}

apus_status apus_data_part_example(const apus_data_part *p, const apus_node *row, apus_node **example, apus_error *err)
{
    apus_status st = p->ops.example(p->instance, row, example, err);
    if (st != APUS_OK)
        return st;
    const apus_node *system = NODE->get(p->params, "system"), *messages = NODE->get(*example, "messages");
    const char *first = NODE->as_string(NODE->get(NODE->at(messages, 0), "role"), NULL);
    if (NODE->kind(system) == APUS_NODE_STRING && NODE->kind(messages) == APUS_NODE_LIST && (first == NULL || strcmp(first, "system") != 0)) {
        apus_node *list = NODE->make_list(), *m = NODE->make_map();
        (void)NODE->set(m, "role", NODE->make_string("system", 6));
        (void)NODE->set(m, "content", NODE->copy(system));
        (void)NODE->append(list, m);
        for (size_t i = 0; i < NODE->length(messages); i++)
            (void)NODE->append(list, NODE->copy(NODE->at(messages, i)));
        (void)NODE->set(*example, "messages", list);
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- examples (dataset.h) */

/* Rows are asked for in order, mostly, and again for a while: the last that were read of a file stay here, more of them where that was
 * too few, and what came before is read anew. */
typedef struct window {
    apus_node **rows; /* [capacity]: row i of the part at i % capacity, for those from `first` on that it has given */
    int64_t capacity, first;
    int64_t count; /* of the part; -1: its end was not seen yet */
} window;

struct apus_examples {
    apus_data_part *parts;
    window *windows; /* [n] */
    size_t n;
};

enum { WINDOW = 256 };

static void forget_rows(window *w)
{
    for (int64_t i = 0; w->rows != NULL && i < w->capacity; i++) {
        NODE->release(w->rows[i]);
        w->rows[i] = NULL;
    }
    w->first = 0;
}

static apus_status begin_again(apus_data_part *p, window *w, int64_t capacity, apus_error *err)
{
    apus_node **rows = calloc((size_t)capacity, sizeof(apus_node *));
    if (rows == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    forget_rows(w);
    free(w->rows);
    w->rows = rows;
    w->capacity = capacity;
    if (p->given == 0)
        return APUS_OK;
    apus_rows_close(p->rows);
    p->rows = NULL;
    p->given = 0;
    return apus_rows_open(p->path, &p->rows, err);
}

/* Row i of a part that has a file; NULL: it ends before that. */
static apus_status row_of(apus_data_part *p, window *w, int64_t i, const apus_node **row, apus_error *err)
{
    apus_status st = APUS_OK;
    *row = NULL;
    if (w->rows == NULL || i < w->first)
        st = begin_again(p, w, w->rows == NULL ? WINDOW : i > 0 ? 2 * w->capacity : w->capacity, err);
    while (st == APUS_OK && p->given <= i) {
        apus_node *next;
        st = apus_data_part_next(p, &next, err);
        if (st == APUS_OK && next == NULL)
            w->count = p->given;
        if (st != APUS_OK || next == NULL)
            return st;
        apus_node **place = &w->rows[(p->given - 1) % w->capacity];
        NODE->release(*place);
        *place = next;
        w->first = p->given > w->capacity ? p->given - w->capacity : 0;
    }
    if (st == APUS_OK)
        *row = w->rows[i % w->capacity];
    return st;
}

apus_status apus_dataset_check(const apus_node *spec, apus_error *err)
{
    apus_data_part *parts;
    size_t n;
    apus_status st = apus_data_parts_open(spec, 0, 0, &parts, &n, err);
    if (st == APUS_OK)
        apus_data_parts_close(parts, n);
    return st;
}

apus_status apus_examples_open(const apus_node *spec, uint64_t seed, apus_examples **examples, apus_error *err)
{
    apus_examples *e = calloc(1, sizeof *e);
    if (e == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = apus_data_parts_open(spec, seed, 1, &e->parts, &e->n, err);
    if (st == APUS_OK && (e->windows = calloc(e->n, sizeof *e->windows)) == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t k = 0; k < e->n && st == APUS_OK; k++)
        e->windows[k].count = e->parts[k].rows != NULL ? -1 : e->parts[k].most;
    if (st == APUS_OK)
        *examples = e;
    else
        apus_examples_close(e);
    return st;
}

void apus_examples_close(apus_examples *e)
{
    if (e == NULL)
        return;
    for (size_t k = 0; e->windows != NULL && k < e->n; k++) {
        forget_rows(&e->windows[k]);
        free(e->windows[k].rows);
    }
    apus_data_parts_close(e->parts, e->n);
    free(e->windows);
    free(e);
}

apus_status apus_examples_count(apus_examples *e, int64_t *count, apus_error *err)
{
    int64_t sum = 0;
    for (size_t k = 0; k < e->n; k++) {
        window *w = &e->windows[k];
        const apus_node *row;
        for (int64_t i = e->parts[k].given; w->count < 0; i++) {
            const apus_status st = row_of(&e->parts[k], w, i, &row, err);
            if (st != APUS_OK)
                return st;
        }
        sum += w->count;
    }
    *count = sum;
    return APUS_OK;
}

apus_status apus_examples_get(apus_examples *e, int64_t i, apus_node **row, apus_node **example, apus_error *err)
{
    const int64_t asked = i;
    for (size_t k = 0; k < e->n; k++) {
        apus_data_part *p = &e->parts[k];
        window *w = &e->windows[k];
        const apus_node *kept = NULL;
        apus_status st = p->rows != NULL && (w->count < 0 || i < w->count) ? row_of(p, w, i, &kept, err) : APUS_OK;
        if (st != APUS_OK)
            return st;
        if (w->count >= 0 && i >= w->count) {
            i -= w->count;
            continue;
        }
        if (p->rows == NULL)
            st = p->ops.row(p->instance, i, p->seed, row, err);
        else
            *row = NODE->copy(kept);
        if (st == APUS_OK)
            st = apus_data_part_example(p, *row, example, err);
        if (st != APUS_OK) {
            NODE->release(*row);
            *row = NULL;
        }
        return st;
    }
    return apus_fail(err, APUS_E_NOT_FOUND, "there is no row %lld", (long long)asked);
}

apus_status apus_examples_judge(const apus_examples *e, const apus_node *row, const char *answer, apus_node **verdict, apus_error *err)
{
    const apus_data_part *p = &e->parts[0];
    if (p->ops.judge == NULL) {
        apus_fail(err, APUS_E_UNSUPPORTED, "dataset %s cannot judge an answer", p->component->name);
        return apus_hint(err, APUS_E_UNSUPPORTED, "leave `judge` out");
    }
    return p->ops.judge(p->instance, row, answer, verdict, err);
}

apus_node *apus_examples_tokenizer(const apus_examples *e)
{
    for (size_t i = 0; i < e->n; i++)
        if (e->parts[i].ops.tokenizer != NULL) {
            apus_node *t = e->parts[i].ops.tokenizer(e->parts[i].instance);
            if (t != NULL)
                return t;
        }
    return NULL;
}
