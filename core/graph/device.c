/*
 * core/graph/device: a backend, opened, and the choice among the kernels that serve it. Knows no device by name.
 */
#include "graph/internal.h"

#include "module/module.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

apus_status apus_device_wrap(const char *name, const apus_backend_ops *ops, const apus_node *params, apus_device **device, apus_error *err)
{
    apus_device *d = calloc(1, sizeof *d);
    if (d == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (void)snprintf(d->name, sizeof d->name, "%s", name);
    apus_take(&d->ops, sizeof d->ops, ops);
    const apus_status st = d->ops.open(apus_host_table(), params, &d->backend, err);
    if (st != APUS_OK) {
        free(d);
        return st;
    }
    d->real = d->ops.real(d->backend);
    if (d->real != APUS_F32 && d->real != APUS_F64) {
        apus_device_close(d);
        return apus_fail(err, APUS_E_INTERNAL, "backend %s: computes in neither F32 nor F64", name);
    }
    d->kept = d->ops.kept != NULL ? d->ops.kept(d->backend) : d->real;
    if (d->kept != APUS_BF16 && d->kept != d->real) {
        apus_device_close(d);
        return apus_fail(err, APUS_E_INTERNAL, "backend %s: keeps activations in neither BF16 nor its real type", name);
    }
    *device = d;
    return APUS_OK;
}

apus_status apus_device_open(const apus_node *spec, apus_device **device, apus_error *err)
{
    const apus_component *component = NULL;
    apus_node *params = NULL;
    apus_status st = apus_ops_load(err);
    if (st == APUS_OK)
        st = apus_component_resolve("backend", spec, NULL, &component, &params, err);
    if (st == APUS_OK)
        st = apus_device_wrap(component->name, component->ops, params, device, err);
    apus_nodes()->release(params);
    return st;
}

void apus_device_close(apus_device *d)
{
    if (d == NULL)
        return;
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

static int takes(const apus_kernel *k, apus_dtype real, apus_dtype encoding)
{
    if (encoding == APUS_REAL || encoding == real)
        return 1;
    for (const apus_dtype *e = k->encodings; e != NULL && *e != 0; e++)
        if (*e == encoding)
            return 1;
    return 0;
}

static int serves(const apus_kernel_entry *e, const apus_device *d, const apus_op *op, const apus_op *then, uint32_t twice)
{
    return e->op == op && e->then == then && e->real == d->real && (e->kernel.flags & APUS_KERNEL_TWICE) == twice && strcmp(e->backend, d->name) == 0;
}

const apus_kernel_entry *apus_device_choose(const apus_device *d, const apus_op *op, const apus_op *then, apus_dtype encoding)
{
    for (size_t i = apus_kernel_count(); i-- > 0;) { /* later tables win */
        const apus_kernel_entry *e = apus_kernel_at(i);
        if (serves(e, d, op, then, 0) && takes(&e->kernel, d->real, encoding))
            return e;
    }
    return NULL;
}

const apus_kernel_entry *apus_device_choose_twice(const apus_device *d, const apus_op *op, const apus_op *then, const apus_kernel_call *capacity)
{
    for (size_t i = apus_kernel_count(); i-- > 0;) {
        const apus_kernel_entry *e = apus_kernel_at(i);
        int fits = serves(e, d, op, then, APUS_KERNEL_TWICE);
        for (uint32_t k = 0; k < capacity->n_in && fits; k++)
            fits = takes(&e->kernel, d->real, capacity->in[k].dtype);
        if (fits && (e->kernel.suits == NULL || e->kernel.suits(capacity)))
            return e;
    }
    return NULL;
}

const apus_kernel *apus_device_kernel(const apus_device *d, const char *op, apus_dtype encoding)
{
    const apus_op *o = apus_op_find(op);
    const apus_kernel_entry *e = o != NULL ? apus_device_choose(d, o, NULL, encoding) : NULL;
    return e != NULL ? &e->kernel : NULL;
}

size_t apus_device_pack(const apus_device *d, const apus_view *weight, apus_dtype *packed, void *to)
{
    const apus_kernel *k = apus_device_kernel(d, "apus.linear/1", weight->dtype);
    return k != NULL && k->pack != NULL ? k->pack(d->backend, weight, packed, to) : 0;
}
