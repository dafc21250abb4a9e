/*
 * core/graph/device: a backend, opened, and the choice among the kernels that serve it. Knows no device by name.
 */
#include "graph/internal.h"

#include "value/node.h"

#include <stdlib.h>
#include <string.h>

/* The tables that were made for this backend and serve this instance of it. */
static apus_status open_tables(apus_device *d, apus_error *err)
{
    d->n_tables = apus_kernel_table_count();
    d->tables = calloc(d->n_tables + 1, sizeof *d->tables);
    if (d->tables == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < d->n_tables; i++) {
        const apus_kernel_table *t = apus_kernel_table_at(i);
        apus_device_table *its = &d->tables[i];
        apus_error why = {.message = ""};
        apus_status st = APUS_OK;
        if (!apus_table_fits(d, t))
            continue;
        its->instance = d->backend;
        if (t->ops.open != NULL && d->ops.facts == NULL)
            st = apus_fail(&why, APUS_E_UNSUPPORTED, "backend %s tells nothing of itself", d->name);
        else if (t->ops.open != NULL)
            st = t->ops.open(apus_host_table(), &d->facts, &its->instance, &why);
        if (st != APUS_OK && st != APUS_E_UNSUPPORTED)
            return apus_fail(err, st, "kernels %s: %s", t->name, why.message);
        its->serves = st == APUS_OK;
        (void)snprintf(its->why, sizeof its->why, "%s", why.message);
    }
    return APUS_OK;
}

apus_status apus_device_wrap(const char *name, const apus_module *module, const apus_backend_ops *ops, const apus_node *params, apus_device **device,
                             apus_error *err)
{
    apus_device *d = calloc(1, sizeof *d);
    if (d == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (void)snprintf(d->name, sizeof d->name, "%s", name);
    d->module = module;
    apus_take(&d->ops, sizeof d->ops, ops);
    apus_status st = d->ops.open(apus_host_table(), params, &d->backend, err);
    if (st != APUS_OK) {
        free(d);
        return st;
    }
    d->real = d->ops.real(d->backend);
    d->kept = d->ops.kept != NULL ? d->ops.kept(d->backend) : d->real;
    d->facts = (apus_backend_facts){.size = sizeof d->facts, .threads = 1, .products = d->real, .hardware = ""};
    if (d->ops.facts != NULL)
        d->ops.facts(d->backend, &d->facts);
    if (d->real != APUS_F32 && d->real != APUS_F64)
        st = apus_fail(err, APUS_E_INTERNAL, "backend %s: computes in neither F32 nor F64", name);
    else if (d->kept != APUS_BF16 && d->kept != d->real)
        st = apus_fail(err, APUS_E_INTERNAL, "backend %s: keeps activations in neither BF16 nor its real type", name);
    else
        st = open_tables(d, err);
    if (st == APUS_OK)
        *device = d;
    else
        apus_device_close(d);
    return st;
}

apus_status apus_device_open(const apus_node *spec, apus_device **device, apus_error *err)
{
    const apus_component *component = NULL;
    apus_node *params = NULL;
    apus_device *d = NULL;
    apus_status st = apus_ops_load(err);
    if (st == APUS_OK)
        st = apus_component_resolve("backend", spec, NULL, &component, &params, err);
    if (st == APUS_OK)
        st = apus_device_wrap(component->name, apus_component_module(component), component->ops, params, &d, err);
    const char *tuning = apus_nodes()->as_string(apus_nodes()->get(params, "tuning"), NULL);
    if (st == APUS_OK && tuning != NULL)
        st = apus_tuning_read(tuning, d, &d->tuning, err);
    if (st == APUS_OK)
        *device = d;
    else
        apus_device_close(d);
    apus_nodes()->release(params);
    return st;
}

void apus_device_close(apus_device *d)
{
    if (d == NULL)
        return;
    apus_tuning_free(d->tuning);
    apus_trials_free(d->trials);
    for (size_t i = 0; d->tables != NULL && i < d->n_tables; i++)
        if (d->tables[i].serves && apus_kernel_table_at(i)->ops.open != NULL)
            apus_kernel_table_at(i)->ops.close(d->tables[i].instance);
    free(d->tables);
    d->ops.close(d->backend);
    free(d);
}

apus_dtype apus_device_real(const apus_device *d)
{
    return d->real;
}

const char *apus_device_describe(const apus_device *d)
{
    return d->ops.describe(d->backend);
}

int apus_device_host_memory(const apus_device *d)
{
    return d->ops.host_memory(d->backend);
}

/* ---------------------------------------------------------------- memory */

/*
 * Blocks of middling size are cut one after the other out of slabs: a device maps whole pages, of 2 MiB where it can, and
 * each of a model's hundreds of weights would waste most of one. A slab goes when all its blocks have gone; no part of it
 * is given out twice, so that every block comes zeroed.
 */
enum { CUT_LEAST = 64 * 1024, CUT_MOST = 16 * 1024 * 1024, SLAB = 64 * 1024 * 1024, CUT_ALIGN = 64 };

struct apus_device_slab {
    char *memory;
    size_t used;
    size_t blocks; /* that have not been freed */
    apus_device_slab *next;
};

static int is_cut(size_t bytes)
{
    return bytes >= CUT_LEAST && bytes <= CUT_MOST;
}

static void *cut(apus_device *d, size_t bytes)
{
    apus_device_slab *s = d->slabs;
    if (s == NULL || SLAB - s->used < bytes) {
        s = calloc(1, sizeof *s);
        if (s != NULL)
            s->memory = d->ops.alloc(d->backend, SLAB);
        if (s == NULL || s->memory == NULL) {
            free(s);
            return NULL;
        }
        s->next = d->slabs;
        d->slabs = s;
    }
    void *p = s->memory + s->used;
    s->used += (bytes + CUT_ALIGN - 1) / CUT_ALIGN * CUT_ALIGN;
    s->blocks++;
    return p;
}

static void free_cut(apus_device *d, const char *p)
{
    apus_device_slab **at = &d->slabs;
    while (*at != NULL && !(p >= (*at)->memory && p < (*at)->memory + SLAB))
        at = &(*at)->next;
    apus_device_slab *s = *at;
    if (s == NULL || --s->blocks > 0)
        return;
    *at = s->next;
    d->ops.free(d->backend, s->memory, SLAB);
    free(s);
}

void *apus_device_alloc(apus_device *d, size_t bytes, apus_error *err)
{
    void *p = is_cut(bytes) ? cut(d, bytes) : d->ops.alloc(d->backend, bytes);
    if (p == NULL)
        (void)apus_fail(err, APUS_E_MEMORY, "%s: no room for %.1f MiB", d->name, (double)bytes / 1048576.0);
    return p;
}

void apus_device_free(apus_device *d, void *p, size_t bytes)
{
    if (p == NULL)
        return;
    if (is_cut(bytes))
        free_cut(d, p);
    else
        d->ops.free(d->backend, p, bytes);
}

apus_status apus_device_upload(apus_device *d, void *device, const void *host, size_t bytes, apus_error *err)
{
    return bytes != 0 ? d->ops.upload(d->backend, device, host, bytes, err) : APUS_OK;
}

apus_status apus_device_download(apus_device *d, void *host, const void *device, size_t bytes, apus_error *err)
{
    return bytes != 0 ? d->ops.download(d->backend, host, device, bytes, err) : APUS_OK;
}

void apus_device_parallel(const apus_device *d, int64_t n, void (*fn)(void *context, int64_t i), void *context)
{
    if (d->ops.parallel != NULL)
        d->ops.parallel(d->backend, n, fn, context);
    else
        for (int64_t i = 0; i < n; i++)
            fn(context, i);
}

/* ---------------------------------------------------------------- the choice */

static int takes(const apus_kernel *k, apus_dtype real, apus_dtype encoding)
{
    if (encoding == APUS_REAL || encoding == real)
        return 1;
    for (const apus_dtype *e = k->encodings; e != NULL && *e != 0; e++)
        if (*e == encoding)
            return 1;
    return 0;
}

static int serves(const apus_device *d, const apus_kernel_table *t)
{
    return t->index < d->n_tables && d->tables[t->index].serves;
}

/* Whether it is one of the device's kernels for that pattern, of the backend's own table or of another's. */
static int fits(const apus_device *d, const apus_kernel_entry *e, int own, const apus_op *op, const apus_op *then, const apus_op *with,
                uint32_t twice)
{
    return e->op == op && e->then == then && e->with == with && (e->table->module == d->module) == own && serves(d, e->table) &&
           (e->kernel.flags & (APUS_KERNEL_ROWS_VARY | APUS_KERNEL_TWICE)) == twice;
}

const apus_kernel_entry *apus_device_choose(const apus_device *d, const apus_op *op, const apus_op *then, const apus_op *with, apus_dtype encoding)
{
    for (int own = 1; own >= 0; own--)
        for (size_t i = apus_kernel_count(); i-- > 0;) { /* of others, the one loaded last */
            const apus_kernel_entry *e = apus_kernel_at(i);
            if (fits(d, e, own, op, then, with, 0) && takes(&e->kernel, d->real, encoding))
                return e;
        }
    return NULL;
}

const apus_kernel_entry *apus_device_choose_twice(const apus_device *d, const apus_op *op, const apus_op *then, const apus_kernel_call *capacity)
{
    for (int own = 1; own >= 0; own--)
        for (size_t i = apus_kernel_count(); i-- > 0;) {
            const apus_kernel_entry *e = apus_kernel_at(i);
            int all = fits(d, e, own, op, then, NULL, APUS_KERNEL_TWICE);
            for (uint32_t k = 0; k < capacity->n_in && all; k++)
                all = takes(&e->kernel, d->real, capacity->in[k].dtype);
            if (all && (e->kernel.suits == NULL || e->kernel.suits(capacity)))
                return e;
        }
    return NULL;
}

const apus_kernel_entry *apus_device_offer(const apus_device *d, const apus_kernel_table *t, const apus_op *op, const apus_op *then)
{
    for (size_t i = 0; i < apus_kernel_count() && serves(d, t); i++) {
        const apus_kernel_entry *e = apus_kernel_at(i);
        if (e->table == t && e->op == op && e->then == then && e->with == NULL && (e->kernel.flags & APUS_KERNEL_TWICE) == 0)
            return e;
    }
    return NULL;
}

void *apus_device_instance(const apus_device *d, const apus_kernel_entry *e)
{
    return d->tables[e->table->index].instance;
}

const apus_kernel *apus_device_kernel(const apus_device *d, const char *op, apus_dtype encoding)
{
    const apus_op *o = apus_op_find(op);
    const apus_kernel_entry *e = o != NULL ? apus_device_choose(d, o, NULL, NULL, encoding) : NULL;
    return e != NULL ? &e->kernel : NULL;
}

size_t apus_device_pack(const apus_device *d, const apus_view *weight, apus_dtype *packed, void *to)
{
    const apus_kernel_entry *e = apus_device_choose(d, apus_op_find("apus.linear/1"), NULL, NULL, weight->dtype);
    return e != NULL && e->kernel.pack != NULL ? e->kernel.pack(apus_device_instance(d, e), weight, packed, to) : 0;
}
