/*
 * core/graph/ops: the registry of ops and kernels: built-in ops, those of plugins, and the kernels that this machine can
 * run. Filled on the main thread before anything is planned; knows no op by name.
 */
#include "graph/internal.h"

#include "value/node.h"

#include <stdlib.h>
#include <string.h>

static struct {
    apus_op_entry **ops; /* each its own block: pointers to entries stay good */
    size_t n_ops, cap_ops;
    int32_t *index; /* hash of names */
    size_t cap_index;
    apus_kernel_entry **kernels;
    size_t n_kernels, cap_kernels;
    apus_kernel_table **tables;
    size_t n_tables, cap_tables;
    int builtin, loaded;
} registry;

void *apus_grow(void *items, size_t *capacity, size_t n, size_t item)
{
    if (n < *capacity)
        return items;
    const size_t wanted = *capacity != 0 ? *capacity * 2 : 32;
    void *p = realloc(items, wanted * item);
    if (p != NULL)
        *capacity = wanted;
    return p;
}

static uint64_t name_hash(const char *s)
{
    uint64_t h = 14695981039346656037u;
    for (; *s != '\0'; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

const apus_op *apus_op_find(const char *name)
{
    if (registry.cap_index == 0 || name == NULL)
        return NULL;
    for (size_t i = name_hash(name) & (registry.cap_index - 1);; i = (i + 1) & (registry.cap_index - 1)) {
        if (registry.index[i] < 0)
            return NULL;
        const apus_op *op = &registry.ops[registry.index[i]]->op;
        if (strcmp(op->name, name) == 0)
            return op;
    }
}

size_t apus_op_count(void)
{
    return registry.n_ops;
}

const apus_op *apus_op_at(size_t i)
{
    return i < registry.n_ops ? &registry.ops[i]->op : NULL;
}

static int index_put(int32_t *index, size_t capacity, size_t k)
{
    size_t i = name_hash(registry.ops[k]->op.name) & (capacity - 1);
    while (index[i] >= 0)
        i = (i + 1) & (capacity - 1);
    index[i] = (int32_t)k;
    return 1;
}

static int index_room(void)
{
    if (registry.cap_index >= 2 * (registry.n_ops + 1))
        return 1;
    const size_t wanted = registry.cap_index != 0 ? registry.cap_index * 2 : 256;
    int32_t *index = malloc(wanted * sizeof *index);
    if (index == NULL)
        return 0;
    memset(index, 0xff, wanted * sizeof *index);
    for (size_t k = 0; k < registry.n_ops; k++)
        index_put(index, wanted, k);
    free(registry.index);
    registry.index = index;
    registry.cap_index = wanted;
    return 1;
}

/* "eps=1e-5 width=0 heads": names, with defaults or required. */
static apus_status parse_attrs(apus_op_entry *e, apus_error *err)
{
    const char *s = e->op.attrs != NULL ? e->op.attrs : "";
    while (*s != '\0') {
        const size_t length = strcspn(s, " ");
        const char *equals = memchr(s, '=', length);
        const size_t name = equals != NULL ? (size_t)(equals - s) : length;
        if (length != 0) {
            if (e->n_attrs == APUS_MAX_ATTRS || name == 0 || name >= APUS_ATTR_NAME_MAX)
                return apus_fail(err, APUS_E_INVALID, "op %s: attributes '%s' are not names with defaults", e->op.name, e->op.attrs);
            memcpy(e->names[e->n_attrs], s, name);
            if (equals == NULL)
                e->required |= 1u << e->n_attrs;
            else if (!apus_read_double(equals + 1, length - name - 1, &e->defaults[e->n_attrs]))
                return apus_fail(err, APUS_E_INVALID, "op %s: the default of attribute %s is not a number", e->op.name, e->names[e->n_attrs]);
            e->n_attrs++;
        }
        s += length;
        s += *s == ' ';
    }
    return APUS_OK;
}

static apus_status add_op(const apus_op *foreign, apus_error *err)
{
    apus_op_entry *e = calloc(1, sizeof *e);
    if (e == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_take(&e->op, sizeof e->op, foreign);
    apus_status st = APUS_OK;
    if (e->op.name == NULL || strchr(e->op.name, '.') == NULL || strchr(e->op.name, '/') == NULL)
        st = apus_fail(err, APUS_E_INVALID, "op '%s': an op is named owner.name/version", e->op.name != NULL ? e->op.name : "");
    else if (e->op.shapes == NULL || e->op.n_outputs == 0 || e->op.n_outputs > APUS_MAX_OUTPUTS || e->op.max_inputs > APUS_MAX_INPUTS ||
             e->op.min_inputs > e->op.max_inputs)
        st = apus_fail(err, APUS_E_INVALID, "op %s: needs a shape rule, 1 to %d outputs and at most %d inputs", e->op.name, APUS_MAX_OUTPUTS,
                       APUS_MAX_INPUTS);
    else if (apus_op_find(e->op.name) != NULL)
        st = apus_fail(err, APUS_E_INVALID, "op %s is registered twice", e->op.name);
    if (st == APUS_OK)
        st = parse_attrs(e, err);
    if (st == APUS_OK) {
        void *p = apus_grow(registry.ops, &registry.cap_ops, registry.n_ops, sizeof *registry.ops);
        if (p != NULL)
            registry.ops = p;
        if (p == NULL || !index_room())
            st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    if (st != APUS_OK) {
        free(e);
        return st;
    }
    e->index = (uint32_t)registry.n_ops;
    registry.ops[registry.n_ops] = e;
    index_put(registry.index, registry.cap_index, registry.n_ops++);
    return APUS_OK;
}

apus_status apus_ops_add(const apus_ops_ops *table, apus_error *err)
{
    apus_ops_ops t;
    apus_take(&t, sizeof t, table);
    for (uint32_t i = 0; i < t.n_ops; i++) {
        const apus_op *op = (const apus_op *)((const char *)t.ops + (size_t)i * t.ops[0].size);
        const apus_status st = add_op(op, err);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

apus_status apus_ops_builtin(apus_error *err)
{
    if (registry.builtin)
        return APUS_OK;
    registry.builtin = 1;
    return apus_ops_add(&apus_builtin_ops, err);
}

static apus_status add_kernel(const apus_kernel_table *t, uint32_t i, apus_error *err)
{
    apus_kernel_entry *e = calloc(1, sizeof *e);
    void *p = apus_grow(registry.kernels, &registry.cap_kernels, registry.n_kernels, sizeof *registry.kernels);
    if (p != NULL)
        registry.kernels = p;
    if (e == NULL || p == NULL) {
        free(e);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    apus_take(&e->kernel, sizeof e->kernel, (const char *)t->ops.kernels + (size_t)i * t->ops.kernels[0].size);
    e->table = t;
    e->op = apus_op_find(e->kernel.op);
    e->then = e->kernel.then != NULL ? apus_op_find(e->kernel.then) : NULL;
    e->with = e->kernel.with != NULL ? apus_op_find(e->kernel.with) : NULL;
    if (e->kernel.run == NULL || e->op == NULL || (e->kernel.then != NULL && e->then == NULL) || (e->kernel.with != NULL && e->with == NULL)) {
        const char *unknown = e->op == NULL ? e->kernel.op : e->kernel.then != NULL && e->then == NULL ? e->kernel.then : e->kernel.with;
        const apus_status st = apus_fail(err, APUS_E_INVALID, "kernels '%s': kernel %u: %s%s", t->name, i,
                                         e->kernel.run == NULL ? "it has no function" : "no op named ", e->kernel.run == NULL ? "" : unknown);
        free(e);
        return st;
    }
    registry.kernels[registry.n_kernels++] = e;
    return APUS_OK;
}

apus_status apus_kernels_add(const char *name, const apus_module *module, const apus_kernels_ops *table, apus_error *err)
{
    apus_kernels_ops ops;
    apus_take(&ops, sizeof ops, table);
    if (ops.backend == NULL || (ops.real != APUS_F32 && ops.real != APUS_F64))
        return apus_fail(err, APUS_E_INVALID, "kernels '%s': need the backend they serve and the real type they compute in", name);
    if (ops.open != NULL && ops.close == NULL)
        return apus_fail(err, APUS_E_INVALID, "kernels '%s': what opens an instance must close it", name);
    if (ops.probe != NULL && !ops.probe())
        return APUS_OK;
    apus_kernel_table *t = calloc(1, sizeof *t);
    void *p = apus_grow(registry.tables, &registry.cap_tables, registry.n_tables, sizeof *registry.tables);
    if (p != NULL)
        registry.tables = p;
    if (t == NULL || p == NULL) {
        free(t);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    *t = (apus_kernel_table){.name = name, .module = module, .ops = ops, .index = registry.n_tables};
    registry.tables[registry.n_tables++] = t;
    apus_status st = APUS_OK;
    for (uint32_t i = 0; i < ops.n_kernels && st == APUS_OK; i++)
        st = add_kernel(t, i, err);
    return st;
}

size_t apus_kernel_table_count(void)
{
    return registry.n_tables;
}

const apus_kernel_table *apus_kernel_table_at(size_t i)
{
    return registry.tables[i];
}

size_t apus_kernel_count(void)
{
    return registry.n_kernels;
}

const apus_kernel_entry *apus_kernel_at(size_t i)
{
    return registry.kernels[i];
}

void apus_graph_announce(void)
{
    apus_host_announce("apus.graph/1", apus_graph_table());
}

/* Components of a kind in the order their plugins were loaded. */
static apus_status load_kind(const char *kind, apus_error *err)
{
    for (size_t m = 0; m < apus_module_count(); m++) {
        for (size_t i = 0; i < apus_component_count(kind); i++) {
            const apus_component *c = apus_component_at(kind, i);
            if (apus_component_module(c) != apus_module_at(m))
                continue;
            const apus_status st = kind[0] == 'o' ? apus_ops_add(c->ops, err) : apus_kernels_add(c->name, apus_module_at(m), c->ops, err);
            if (st != APUS_OK)
                return st;
        }
    }
    return APUS_OK;
}

apus_status apus_ops_load(apus_error *err)
{
    if (registry.loaded)
        return APUS_OK;
    registry.loaded = 1;
    apus_graph_announce();
    apus_status st = apus_ops_builtin(err);
    if (st == APUS_OK)
        st = load_kind("op", err);
    if (st == APUS_OK)
        st = load_kind("kernels", err);
    return st;
}
