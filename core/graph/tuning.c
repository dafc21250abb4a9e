/*
 * core/graph/tuning: tuning files: which table's kernels a training takes for what, where several have them. Reading one, holding it
 * against the device, choosing by it, telling what was chosen. Measures nothing: a choice depends on the file alone.
 *
 * A file is good for one backend on one kind of hardware with one number of threads, one precision and these versions of the tables that it
 * names; elsewhere it is refused, since what was measured there is not true here.
 */
#include "graph/plan.h"

#include "config/config.h"
#include "io/io.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

#define NODE apus_nodes()

enum { CHOICES_MOST = 4096, TABLES_MOST = 4 };

typedef struct choice {
    apus_tuning_key key;
    const apus_kernel_entry *kernel;
} choice;

struct apus_tuning {
    char *path, sha256[65];
    apus_node *tables; /* {name: version} */
    choice *choices;
    size_t n;
};

/* ---------------------------------------------------------------- what is chosen by */

int apus_table_fits(const apus_device *d, const apus_kernel_table *t)
{
    return t->ops.real == d->real && strcmp(t->ops.backend, d->name) == 0;
}

static int plain(const apus_plan *p, int32_t tensor)
{
    const apus_dtype t = p->tensors.at[tensor].shape.dtype;
    return t == p->device->real || t == APUS_I32 || t == APUS_I64 || t == APUS_U8 || (t == p->device->kept && p->tensors.at[tensor].node >= 0);
}

int apus_tuning_key_of(const apus_plan *p, const apus_plan_node *n, apus_tuning_key *key)
{
    size_t used = 0;
    const int three = n->kernel->with != NULL || apus_plan_is_twice(n); /* ops or more: the backend's own */
    if (!p->tuned || n->dead || (n->op->flags & APUS_OP_ELEMENTWISE) != 0 || three)
        return 0;
    *key = (apus_tuning_key){.op = n->op, .then = n->kernel->then};
    for (uint32_t i = 0; i < n->n_in - n->n_prologue; i++) {
        apus_shape s = p->tensors.at[n->in[i]].shape;
        if (apus_plan_reads(n, i) && !plain(p, n->in[i]))
            return 0;
        for (int32_t k = 0; k < s.ndim && key->rows == 0; k++)
            if (s.dims[k] < 0)
                for (key->rows = 1; key->rows < p->capacity[-1 - s.dims[k]];)
                    key->rows *= 2;
        s.dtype = APUS_REAL;
        if (used + 1 < sizeof key->shapes && used > 0)
            key->shapes[used++] = ' ';
        used += (size_t)apus_graph_shape_text(&s, key->shapes + used, sizeof key->shapes - used);
        if (used >= sizeof key->shapes)
            return 0;
    }
    return 1;
}

int apus_tuning_same(const apus_tuning_key *a, const apus_tuning_key *b)
{
    return a->op == b->op && a->then == b->then && a->rows == b->rows && strcmp(a->shapes, b->shapes) == 0;
}

size_t apus_tuning_rivals(const apus_device *d, const apus_tuning_key *key, const apus_kernel_entry **rivals, size_t most)
{
    size_t n = 0;
    const apus_kernel_entry *own = apus_device_choose(d, key->op, key->then, NULL, APUS_REAL);
    if (own != NULL)
        rivals[n++] = own;
    for (size_t i = 0; i < apus_kernel_table_count() && n < most; i++) {
        const apus_kernel_entry *e = apus_device_offer(d, apus_kernel_table_at(i), key->op, key->then);
        if (e != NULL && e->table->module != d->module && e != own)
            rivals[n++] = e;
    }
    return n;
}

static const choice *chosen(const apus_tuning *t, const apus_tuning_key *key)
{
    for (size_t i = 0; i < t->n; i++)
        if (apus_tuning_same(&t->choices[i].key, key))
            return &t->choices[i];
    return NULL;
}

/* Which of the nodes have a choice is told by apus_tuning_describe. */
void apus_plan_tune(apus_plan *p)
{
    apus_tuning_key key;
    for (size_t i = 0; p->device->tuning != NULL && i < p->order.n; i++) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        const choice *c = apus_tuning_key_of(p, n, &key) ? chosen(p->device->tuning, &key) : NULL;
        if (c != NULL)
            n->kernel = c->kernel;
    }
}

/* ---------------------------------------------------------------- reading */

static const apus_param file_params[] = {
    {.size = sizeof(apus_param),
     .name = "version",
     .type = APUS_PARAM_INT,
     .flags = APUS_PARAM_REQUIRED,
     .min = 1,
     .max = 1,
     .doc = "Of the format; `apus tune FILE` writes such files."},
    {.size = sizeof(apus_param), .name = "backend", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "Whose kernels."},
    {.size = sizeof(apus_param), .name = "hardware", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "Where it was measured."},
    {.size = sizeof(apus_param),
     .name = "threads",
     .type = APUS_PARAM_INT,
     .flags = APUS_PARAM_REQUIRED,
     .min = 1,
     .max = 1e6,
     .doc = "With how many."},
    {.size = sizeof(apus_param), .name = "products", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "What they are computed in."},
    {.size = sizeof(apus_param),
     .name = "tables",
     .type = APUS_PARAM_MAP,
     .item = APUS_PARAM_STRING,
     .flags = APUS_PARAM_REQUIRED,
     .doc = "The tables that were measured, and their versions."},
    {.size = sizeof(apus_param),
     .name = "choices",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_NODE,
     .flags = APUS_PARAM_REQUIRED,
     .doc = "What is computed by which table."},
};
static const apus_param choice_params[] = {
    {.size = sizeof(apus_param), .name = "op", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "apus.linear/1, …"},
    {.size = sizeof(apus_param), .name = "then", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE, .doc = "Of a pair: the second op."},
    {.size = sizeof(apus_param), .name = "shapes", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "Of its operands."},
    {.size = sizeof(apus_param), .name = "rows", .type = APUS_PARAM_INT, .flags = APUS_PARAM_REQUIRED, .min = 0, .max = 1e15, .doc = "At most."},
    {.size = sizeof(apus_param), .name = "use", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_REQUIRED, .doc = "The table."},
    {.size = sizeof(apus_param),
     .name = "seconds",
     .type = APUS_PARAM_MAP,
     .item = APUS_PARAM_FLOAT,
     .flags = APUS_PARAM_NULLABLE,
     .doc = "What each table took."},
};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static const char *text_of(const apus_node *map, const char *key)
{
    const char *text = NODE->as_string(NODE->get(map, key), NULL);
    return text != NULL ? text : "";
}

static apus_status refuse(apus_status st, apus_error *err)
{
    return apus_hint(err, st, "measure it here: apus tune PIPELINE --out FILE; or leave backend.tuning out");
}

void apus_tuning_version(const apus_device *d, const apus_kernel_table *t, char *text, size_t capacity)
{
    const apus_plugin *plugin = t->module != NULL ? t->module->plugin : NULL;
    const char *more = t->ops.open != NULL && t->ops.describe != NULL ? t->ops.describe(d->tables[t->index].instance) : NULL;
    (void)snprintf(text, capacity, "%s %s%s%s", plugin != NULL ? plugin->name : t->name, plugin != NULL ? plugin->version : "0",
                   more != NULL ? ", " : "", more != NULL ? more : "");
}

static const apus_kernel_table *find_table(const char *name)
{
    for (size_t i = 0; i < apus_kernel_table_count(); i++)
        if (strcmp(apus_kernel_table_at(i)->name, name) == 0)
            return apus_kernel_table_at(i);
    return NULL;
}

/* Every table that the file names is here, serves the device and is what was measured. */
static apus_status check_tables(const char *path, const apus_node *tables, const apus_device *d, apus_error *err)
{
    char version[300];
    for (size_t i = 0; i < NODE->length(tables); i++) {
        const char *name = NODE->key_at(tables, i), *measured = text_of(tables, name);
        const apus_kernel_table *t = find_table(name);
        if (t == NULL || !apus_table_fits(d, t))
            return refuse(apus_fail(err, APUS_E_UNSUPPORTED, "%.500s: it names kernels '%.100s', and no plugin brings such for backend %s", path,
                                    name, d->name),
                          err);
        if (!d->tables[t->index].serves)
            return refuse(apus_fail(err, APUS_E_UNSUPPORTED, "%.500s: kernels %s do not serve this backend: %s", path, name, d->tables[t->index].why),
                          err);
        apus_tuning_version(d, t, version, sizeof version);
        if (strcmp(version, measured) != 0)
            return refuse(
                apus_fail(err, APUS_E_UNSUPPORTED, "%.500s: made with kernels %s of '%.200s', here they are '%s'", path, name, measured, version),
                err);
    }
    return APUS_OK;
}

static apus_status check_device(const char *path, const apus_node *file, const apus_device *d, apus_error *err)
{
    char threads[24], here[24];
    (void)snprintf(threads, sizeof threads, "%lld", (long long)NODE->as_int(NODE->get(file, "threads"), 0));
    (void)snprintf(here, sizeof here, "%u", d->facts.threads);
    const struct {
        const char *what, *there, *here;
    } facts[] = {{"for backend", text_of(file, "backend"), d->name},
                 {"on", text_of(file, "hardware"), d->facts.hardware},
                 {"with threads:", threads, here},
                 {"with products in", text_of(file, "products"), apus_dtype_name(d->facts.products)}};
    for (size_t i = 0; i < COUNT(facts); i++)
        if (strcmp(facts[i].there, facts[i].here) != 0)
            return refuse(
                apus_fail(err, APUS_E_UNSUPPORTED, "%.500s: made %s %.200s, this run has %.200s", path, facts[i].what, facts[i].there, facts[i].here),
                err);
    return APUS_OK;
}

/* "at" of messages: file, line and column of a choice's key. */
static apus_status read_choice(const apus_node *entry, const apus_node *tables, const apus_device *d, apus_tuning *t, apus_error *err)
{
    char at[600];
    choice *c = &t->choices[t->n];
    apus_node *given = apus_params_validate(entry, choice_params, COUNT(choice_params), NULL, "a choice of a tuning file", err);
    if (given == NULL)
        return APUS_E_INVALID;
    const char *then = NODE->as_string(NODE->get(given, "then"), NULL), *use = text_of(given, "use"), *shapes = text_of(given, "shapes");
    (void)NODE->where(entry, at, sizeof at);
    c->key = (apus_tuning_key){.op = apus_op_find(text_of(given, "op")),
                               .then = then != NULL ? apus_op_find(then) : NULL,
                               .rows = NODE->as_int(NODE->get(given, "rows"), 0)};
    (void)snprintf(c->key.shapes, sizeof c->key.shapes, "%s", shapes);
    const apus_kernel_table *table = find_table(use);
    apus_status st = APUS_OK;
    if (c->key.op == NULL || (then != NULL && c->key.then == NULL))
        st = apus_fail(err, APUS_E_INVALID, "%s: no op is named '%.100s'", at, c->key.op == NULL ? text_of(given, "op") : then);
    else if (table == NULL || NODE->get(tables, use) == NULL)
        st = apus_fail(err, APUS_E_INVALID, "%s: '%.100s' is none of the file's tables", at, use);
    else if ((c->kernel = apus_device_offer(d, table, c->key.op, c->key.then)) == NULL)
        st = apus_fail(err, APUS_E_UNSUPPORTED, "%s: kernels %s have none for %s%s%s", at, table->name, c->key.op->name, then != NULL ? " + " : "",
                       then != NULL ? then : "");
    else if (strlen(shapes) >= sizeof c->key.shapes)
        st = apus_fail(err, APUS_E_INVALID, "%s: 'shapes' is too long", at);
    else if (chosen(t, &c->key) != NULL)
        st = apus_fail(err, APUS_E_INVALID, "%s: chosen twice: %s%s%s %s, %lld rows", at, c->key.op->name, then != NULL ? " + " : "",
                       then != NULL ? then : "", shapes, (long long)c->key.rows);
    NODE->release(given);
    t->n += st == APUS_OK;
    return st;
}

static apus_status read_choices(const char *path, const apus_node *file, const apus_device *d, apus_tuning *t, apus_error *err)
{
    const apus_node *choices = NODE->get(file, "choices");
    const size_t n = NODE->length(choices);
    if (n > CHOICES_MOST)
        return apus_fail(err, APUS_E_INVALID, "%.500s: %zu choices, at most %d", path, n, CHOICES_MOST);
    t->choices = calloc(n + 1, sizeof *t->choices);
    if (t->choices == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = APUS_OK;
    for (size_t i = 0; i < n && st == APUS_OK; i++)
        st = read_choice(NODE->at(choices, i), t->tables, d, t, err);
    return st;
}

apus_status apus_tuning_read(const char *path, const apus_device *d, apus_tuning **tuning, apus_error *err)
{
    if (d->ops.facts == NULL)
        return apus_fail(err, APUS_E_UNSUPPORTED, "backend %s takes no tuning file", d->name);
    apus_tuning *t = calloc(1, sizeof *t);
    if (t == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_node *written = apus_yaml_read(path, err), *file = NULL;
    apus_status st = written == NULL ? APUS_E_INVALID : APUS_OK;
    if (st == APUS_OK) {
        file = apus_params_validate(written, file_params, COUNT(file_params), NULL, "a tuning file", err);
        st = file != NULL ? APUS_OK : APUS_E_INVALID;
    }
    if (st == APUS_OK)
        st = check_device(path, file, d, err);
    if (st == APUS_OK)
        st = check_tables(path, NODE->get(file, "tables"), d, err);
    if (st == APUS_OK) {
        t->path = strdup(path);
        t->tables = NODE->copy(NODE->get(file, "tables"));
        st = t->path != NULL && t->tables != NULL ? read_choices(path, file, d, t, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    if (st == APUS_OK)
        st = apus_sha256_file(path, t->sha256, err);
    NODE->release(written);
    NODE->release(file);
    if (st == APUS_OK)
        *tuning = t;
    else
        apus_tuning_free(t);
    return st;
}

void apus_tuning_free(apus_tuning *t)
{
    if (t == NULL)
        return;
    free(t->path);
    free(t->choices);
    NODE->release(t->tables);
    free(t);
}

/* ---------------------------------------------------------------- telling */

static void set_text(apus_node *map, const char *key, const char *text)
{
    (void)NODE->set(map, key, NODE->make_string(text, (size_t)-1));
}

apus_node *apus_device_tuning(const apus_device *d)
{
    if (d->tuning == NULL)
        return NULL;
    apus_node *map = NODE->make_map();
    set_text(map, "file", d->tuning->path);
    set_text(map, "sha256", d->tuning->sha256);
    (void)NODE->set(map, "tables", NODE->copy(d->tuning->tables));
    return map;
}

/* Once each. */
static void add_line(apus_node *list, const char *line)
{
    for (size_t i = 0; i < NODE->length(list); i++)
        if (strcmp(NODE->as_string(NODE->at(list, i), NULL), line) == 0)
            return;
    (void)NODE->append(list, NODE->make_string(line, (size_t)-1));
}

apus_node *apus_tuning_describe(const apus_plan *p)
{
    apus_tuning_key key;
    const apus_kernel_entry *rivals[TABLES_MOST];
    char line[400];
    apus_node *map = p->tuned ? apus_device_tuning(p->device) : NULL, *kernels = NODE->make_map(), *own = NODE->make_list();
    for (size_t i = 0; map != NULL && i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        if (!apus_tuning_key_of(p, n, &key) || apus_tuning_rivals(p->device, &key, rivals, TABLES_MOST) < 2)
            continue;
        (void)snprintf(line, sizeof line, "%s%s%s %s, up to %lld rows", key.op->name, key.then != NULL ? " + " : "",
                       key.then != NULL ? key.then->name : "", key.shapes, (long long)key.rows);
        if (chosen(p->device->tuning, &key) == NULL) {
            add_line(own, line);
            continue;
        }
        if (NODE->get(kernels, n->kernel->table->name) == NULL)
            (void)NODE->set(kernels, n->kernel->table->name, NODE->make_list());
        add_line((apus_node *)(uintptr_t)NODE->get(kernels, n->kernel->table->name), line); /* a child of a tree that is ours */
    }
    if (map == NULL) {
        NODE->release(kernels);
        NODE->release(own);
        return NULL;
    }
    (void)NODE->set(map, "kernels", kernels);
    (void)NODE->set(map, "own", own);
    return map;
}
