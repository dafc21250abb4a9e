/*
 * core/graph/run: a plan's memory made real, and its steps run: symbols scaled to the actual extents, inputs converted,
 * elementwise steps worked tile by tile on the backend's threads. Nothing is allocated after apus_plan_prepare.
 */
#include "graph/plan.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <apus/blocks.h>

enum { TILES_PER_RUN = 16, PARALLEL_ELEMENTS = 8192 /* a thread's start costs as much as so many elements of one op */ };

static const char *const symbol_names[APUS_N_DIM_SYMBOLS] = {"tokens", "segments", "scored positions", "rows", "pairs"};

/* ---------------------------------------------------------------- prepare */

static void store_reals(apus_dtype real, void *dst, const double *src, size_t n)
{
    if (real == APUS_F64)
        memcpy(dst, src, n * sizeof(double));
    else
        for (size_t i = 0; i < n; i++)
            ((float *)dst)[i] = (float)src[i];
}

static apus_status prepare_constants(apus_plan *p, apus_error *err)
{
    const size_t real = apus_dtype_size(p->device->real);
    size_t largest = 1;
    p->constant_bytes = 64;
    for (size_t i = 0; i < p->constants.n; i++) {
        const size_t bytes = (size_t)p->tensors.at[p->constants.at[i].tensor].elements * real;
        largest = bytes > largest ? bytes : largest;
        p->constant_bytes += (bytes + 63) / 64 * 64;
    }
    p->constant_memory = apus_device_alloc(p->device, p->constant_bytes, err);
    void *converted = malloc(largest);
    apus_status st = p->constant_memory == NULL ? APUS_E_MEMORY : APUS_OK;
    if (st == APUS_OK && converted == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    char *at = p->constant_memory;
    for (size_t i = 0; i < p->constants.n && st == APUS_OK; i++) {
        apus_plan_leaf *c = &p->constants.at[i];
        const size_t n = (size_t)p->tensors.at[c->tensor].elements;
        store_reals(p->device->real, converted, c->values, n);
        st = apus_device_upload(p->device, at, converted, n * real, err);
        c->memory = at;
        at += (n * real + 63) / 64 * 64;
        free(c->values);
        c->values = NULL;
    }
    free(converted);
    return st;
}

apus_kernel_call apus_plan_call(const apus_plan *p, const apus_plan_node *n, const apus_view *views, void *scratch)
{
    return (apus_kernel_call){.in = views,
                              .out = views + n->n_in,
                              .attrs = n->attrs,
                              .scratch = scratch,
                              .backend = apus_device_instance(p->device, n->kernel),
                              .n_in = n->n_in,
                              .n_out = n->n_out,
                              .accumulate = n->accumulate,
                              .prologue = (uint8_t)n->prologue,
                              .prologue_inputs = (uint8_t)n->n_prologue,
                              .prologue_kept = (uint8_t)n->prologue_kept};
}

int apus_plan_wants(const apus_plan_tensor *t)
{
    return t->used || t->keep || t->variable >= 0;
}

/* Views of every tensor and call at these extents. */
static void set_views(apus_plan *p, const int64_t *extents, int with_memory)
{
    for (size_t i = 0; i < p->tensors.n; i++) {
        const apus_plan_tensor *t = &p->tensors.at[i];
        apus_view *v = &p->views[i];
        *v = (apus_view){.dtype = t->shape.dtype, .ndim = t->shape.ndim};
        for (int32_t d = 0; d < t->shape.ndim; d++)
            v->dims[d] = t->shape.dims[d] >= 0 ? t->shape.dims[d] : extents[-1 - t->shape.dims[d]];
        if (!with_memory)
            continue;
        if (t->leaf == APUS_NODE_CONSTANT)
            v->data = p->constants.at[t->leaf_index].memory;
        else if (t->variable >= 0)
            v->data = p->variables.at[t->variable].memory;
        else if (t->place >= 0)
            v->data = p->arena + p->places.at[t->place].at;
    }
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_in; k++) {
            n->views[k] = p->views[n->in[k]];
            if (!apus_plan_reads(n, k))
                n->views[k].data = NULL;
        }
        for (uint32_t k = 0; k < n->n_out; k++) {
            n->views[n->n_in + k] = p->views[n->out[k]];
            if (!apus_plan_wants(&p->tensors.at[n->out[k]]))
                n->views[n->n_in + k].data = NULL;
        }
    }
}

static apus_status mark_leaves(apus_plan *p, apus_error *err)
{
    for (size_t i = 0; i < p->inputs.n; i++)
        p->inputs.at[i].used = p->tensors.at[p->inputs.at[i].tensor].used;
    for (size_t i = 0; i < p->variables.n; i++)
        p->variables.at[i].used = p->tensors.at[p->variables.at[i].tensor].used;
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        for (uint32_t k = 0; k < n->n_out; k++)
            if (p->tensors.at[n->out[k]].variable >= 0)
                p->variables.at[p->tensors.at[n->out[k]].variable].used = 1;
    }
    size_t kept = 0; /* names of variables are given out by index: the used ones first, in order */
    int32_t *to = malloc((p->variables.n + 1) * sizeof *to);
    apus_plan_leaf *sorted = malloc((p->variables.n + 1) * sizeof *sorted);
    const int made = to != NULL && sorted != NULL;
    if (made) {
        for (int used = 1; used >= 0; used--)
            for (size_t i = 0; i < p->variables.n; i++)
                if ((p->variables.at[i].used != 0) == used) {
                    to[i] = (int32_t)kept;
                    sorted[kept++] = p->variables.at[i];
                }
        if (kept > 0)
            memcpy(p->variables.at, sorted, kept * sizeof *sorted);
        for (size_t i = 0; i < p->tensors.n; i++) {
            apus_plan_tensor *t = &p->tensors.at[i];
            t->variable = t->variable >= 0 ? to[t->variable] : -1;
            if (t->leaf == APUS_NODE_VARIABLE)
                t->leaf_index = t->variable;
        }
    }
    free(to);
    free(sorted);
    return made ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
}

apus_status apus_plan_prepare(apus_plan *p, apus_error *err)
{
    size_t views = 0;
    for (size_t i = 0; i < p->order.n; i++)
        views += p->nodes.at[p->order.at[i]].n_in + p->nodes.at[p->order.at[i]].n_out;
    p->views = calloc(p->tensors.n + 1, sizeof *p->views);
    p->call_views = calloc(views + 1, sizeof *p->call_views);
    if (p->views == NULL || p->call_views == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    views = 0;
    for (size_t i = 0; i < p->order.n; i++) {
        apus_plan_node *n = &p->nodes.at[p->order.at[i]];
        n->views = p->call_views + views;
        views += n->n_in + n->n_out;
    }
    if (mark_leaves(p, err) != APUS_OK)
        return APUS_E_MEMORY;
    set_views(p, p->capacity, 0);
    apus_plan_count_flops(p);
    for (size_t i = 0; i < p->inputs.n; i++) {
        const size_t bytes = apus_plan_bytes(&p->tensors.at[p->inputs.at[i].tensor]);
        p->staging_bytes = bytes > p->staging_bytes ? bytes : p->staging_bytes;
    }
    if (!apus_device_host_memory(p->device) && (p->staging = malloc(p->staging_bytes + 1)) == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    p->arena = apus_device_alloc(p->device, p->arena_bytes + 64, err);
    if (p->arena == NULL)
        return APUS_E_MEMORY;
    p->arena_bytes += 64;
    return prepare_constants(p, err);
}

/* ---------------------------------------------------------------- variables and inputs */

size_t apus_plan_variable_count(const apus_plan *p)
{
    size_t n = 0;
    while (n < p->variables.n && p->variables.at[n].used)
        n++;
    return n;
}

const char *apus_plan_variable_at(const apus_plan *p, size_t i, apus_shape *shape)
{
    if (i >= apus_plan_variable_count(p))
        return NULL;
    if (shape != NULL)
        *shape = p->tensors.at[p->variables.at[i].tensor].shape;
    return p->variables.at[i].name;
}

int apus_plan_uses_input(const apus_plan *p, const char *name)
{
    for (size_t i = 0; i < p->inputs.n; i++)
        if (strcmp(p->inputs.at[i].name, name) == 0)
            return p->inputs.at[i].used != 0;
    return 0;
}

apus_status apus_plan_bind(apus_plan *p, const char *variable, void *device, apus_error *err)
{
    for (size_t i = 0; i < p->variables.n; i++) {
        if (strcmp(p->variables.at[i].name, variable) != 0)
            continue;
        p->variables.at[i].memory = device;
        p->ready = 0;
        return APUS_OK;
    }
    return apus_fail(err, APUS_E_NOT_FOUND, "plan: no variable named '%s'", variable);
}

static apus_status feed(apus_plan *p, const apus_plan_leaf *in, const void *data, apus_error *err)
{
    const apus_view *v = &p->views[in->tensor];
    size_t n = 1;
    for (int32_t d = 0; d < v->ndim; d++)
        n *= (size_t)v->dims[d];
    if (n == 0)
        return APUS_OK;
    if (data == NULL)
        return apus_fail(err, APUS_E_INTERNAL, "plan: input '%s' has no data", in->name);
    const apus_shape *s = &p->tensors.at[in->tensor].shape;
    const size_t bytes = n * apus_dtype_size(s->dtype);
    const void *from = data;
    if (s->dtype == p->device->real) {
        void *to = p->staging != NULL ? p->staging : v->data;
        store_reals(s->dtype, to, data, n);
        from = to;
        if (p->staging == NULL)
            return APUS_OK;
    }
    return apus_device_upload(p->device, v->data, from, bytes, err);
}

static apus_status feed_all(apus_plan *p, const apus_feed *feeds, size_t n_feeds, apus_error *err)
{
    /* Feeds may be more than the plan uses: a batch brings all it knows. */
    for (size_t i = 0; i < p->inputs.n; i++) {
        const apus_plan_leaf *in = &p->inputs.at[i];
        size_t f = 0;
        if (!in->used)
            continue;
        while (f < n_feeds && strcmp(feeds[f].input, in->name) != 0)
            f++;
        if (f == n_feeds)
            return apus_fail(err, APUS_E_INTERNAL, "plan: input '%s' is not given", in->name);
        const apus_status st = feed(p, in, feeds[f].data, err);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- tiles */

typedef struct tile_context {
    const apus_plan *p;
    const apus_plan_step *s;
    int64_t elements, tile;
    atomic_int failed;
    apus_status status;
    apus_error error;
    const apus_op *op;
} tile_context;

/* Views of all operands of a step's members, one after the other, for n elements from `begin`; move: bytes to the next tile's. */
static void set_tile(const tile_context *c, int64_t begin, int64_t n, char *slots, apus_view *views, size_t *move)
{
    const apus_plan *p = c->p;
    const size_t real = apus_dtype_size(p->device->real);
    for (int32_t m = 0; m < c->s->count; m++) {
        const apus_plan_node *node = &p->nodes.at[p->order.at[c->s->first + m]];
        for (uint32_t k = 0; k < node->n_in + node->n_out; k++, views++, move++) {
            const int is_out = k >= node->n_in;
            const apus_plan_tensor *t = &p->tensors.at[is_out ? node->out[k - node->n_in] : node->in[k]];
            *move = 0;
            *views = (apus_view){.data = node->views[k].data, .dtype = t->shape.dtype, .ndim = 1, .dims = {n}};
            if (t->slot >= 0 && t->step == node->step && (is_out || apus_plan_reads(node, k))) {
                views->data = slots + (size_t)t->slot * (size_t)c->tile * real;
            } else if (apus_shape_single(&t->shape) && c->elements != 1) {
                views->dims[0] = 1;
            } else if (views->data != NULL) {
                const size_t size = apus_dtype_size(t->shape.dtype);
                views->data = (char *)views->data + (size_t)begin * size;
                *move = (size_t)c->tile * size;
            }
        }
    }
}

static void run_members(tile_context *c, apus_view *views, const size_t *move)
{
    const apus_plan *p = c->p;
    for (int32_t m = 0; m < c->s->count; m++) {
        const apus_plan_node *node = &p->nodes.at[p->order.at[c->s->first + m]];
        const apus_kernel_call call = apus_plan_call(p, node, views, NULL);
        /* The next tile's operands: tiles are too short for the hardware to see where they lead (an update of 28 M parameters takes
         * 19 ms instead of 31). Into the second cache: the first has no room, nor ways to wait for so many. */
        for (uint32_t k = 0; k < node->n_in; k++)
            for (size_t at = 0; at < move[k]; at += 64)
                __builtin_prefetch((const char *)views[k].data + move[k] + at, 0, 2);
        apus_error error; /* not cleared: two kilobytes for each kernel of each tile */
        error.message[0] = error.hint[0] = '\0';
        const apus_status st = node->kernel->kernel.run(&call, &error);
        if (st != APUS_OK) {
            if (atomic_exchange(&c->failed, 1) == 0) {
                c->status = st;
                c->error = error;
                c->op = node->op;
            }
            return;
        }
        for (uint32_t k = 0; k < node->n_in + node->n_out; k++, views++, move++)
            if (*move > 0)
                views->data = (char *)views->data + *move;
    }
}

/* Tiles stay in the first cache; a run of them shares its views, which take as long to make as a tile to compute. */
static void run_tiles(void *context, int64_t i)
{
    tile_context *c = context;
    _Alignas(64) char slots[APUS_PLAN_TILE_BYTES];
    apus_view views[APUS_PLAN_OPERANDS];
    size_t move[APUS_PLAN_OPERANDS];
    const int64_t first = i * c->tile * TILES_PER_RUN, rest = c->elements - first;
    const int64_t end = first + (rest < c->tile * TILES_PER_RUN ? rest : c->tile * TILES_PER_RUN);
    for (int64_t begin = first; begin < end; begin += c->tile) {
        const int64_t n = end - begin < c->tile ? end - begin : c->tile;
        if (begin == first || n < c->tile)
            set_tile(c, begin, n, slots, views, move);
        run_members(c, views, move);
    }
}

static int64_t count_of(const apus_view *v)
{
    int64_t n = 1;
    for (int32_t d = 0; d < v->ndim; d++)
        n *= v->dims[d];
    return n;
}

static apus_status named_failure(const apus_op *op, apus_status st, const apus_error *why, apus_error *err)
{
    if (err != NULL) {
        (void)snprintf(err->message, sizeof err->message, "%s: %.1400s", op->name, why->message);
        memcpy(err->hint, why->hint, sizeof err->hint);
    }
    return st;
}

static apus_status run_elementwise(const apus_plan *p, const apus_plan_step *s, apus_error *err)
{
    const apus_plan_node *first = &p->nodes.at[p->order.at[s->first]];
    tile_context c = {.p = p, .s = s, .elements = count_of(&p->views[first->out[0]]), .tile = s->tile};
    if (c.elements == 0)
        return APUS_OK;
    if (p->device->ops.parallel == NULL)
        c.tile = c.elements;
    const int64_t runs = (c.elements + c.tile * TILES_PER_RUN - 1) / (c.tile * TILES_PER_RUN);
    if (p->device->ops.parallel != NULL && c.elements * s->count > PARALLEL_ELEMENTS)
        p->device->ops.parallel(p->device->backend, runs, run_tiles, &c);
    else
        for (int64_t i = 0; i < runs; i++)
            run_tiles(&c, i);
    return atomic_load(&c.failed) ? named_failure(c.op, c.status, &c.error, err) : APUS_OK;
}

/* ---------------------------------------------------------------- run */

static apus_status run_kernel(const apus_plan *p, const apus_plan_step *s, apus_error *err)
{
    const apus_kernel *kernel = &p->nodes.at[p->order.at[s->first]].kernel->kernel;
    void *scratch = s->scratch >= 0 ? p->arena + p->places.at[s->scratch].at : NULL;
    apus_kernel_call calls[APUS_SIBLINGS_MAX];
    uint32_t n_calls = 0;
    for (int32_t i = 0; i < s->count; i++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[s->first + i]];
        int64_t most = 0;
        for (uint32_t k = 0; k < n->n_out; k++) {
            const int64_t count = count_of(&n->views[n->n_in + k]);
            most = count > most ? count : most;
        }
        if (most > 0)
            calls[n_calls++] = apus_plan_call(p, n, n->views, scratch);
    }
    if (n_calls == 0)
        return APUS_OK;
    apus_error why; /* not cleared: two kilobytes for each kernel */
    why.message[0] = why.hint[0] = '\0';
    const apus_status st = n_calls == 1 ? kernel->run(&calls[0], &why) : kernel->run_siblings(calls, n_calls, &why);
    return st == APUS_OK ? APUS_OK : named_failure(p->nodes.at[p->order.at[s->first]].op, st, &why, err);
}

/* Element i of reals, or of what stands for them. */
static double real_at(apus_dtype type, const void *p, int64_t i)
{
    if (type == APUS_F64)
        return ((const double *)p)[i];
    return type == APUS_F32 ? ((const float *)p)[i] : apus_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* For debugging (APUS_CHECK_NUMBERS=1): the first op that gives a number that is not finite. */
static apus_status check_step(apus_plan *p, const apus_plan_step *s, apus_error *err)
{
    for (int32_t m = 0; m < s->count; m++) {
        const apus_plan_node *n = &p->nodes.at[p->order.at[s->first + m]];
        for (uint32_t k = 0; k < n->n_out; k++) {
            const apus_view *v = &p->views[n->out[k]];
            const int is_real = v->dtype == p->device->real || v->dtype == p->device->kept;
            const int64_t count = v->data != NULL && is_real && apus_plan_wants(&p->tensors.at[n->out[k]]) ? count_of(v) : 0;
            const size_t size = apus_dtype_size(v->dtype);
            for (int64_t i = 0; i < count;) {
                double buffer[512];
                const int64_t c = count - i < 512 ? count - i : 512;
                const apus_status st = apus_device_download(p->device, buffer, (const char *)v->data + (size_t)i * size, (size_t)c * size, err);
                if (st != APUS_OK)
                    return st;
                for (int64_t j = 0; j < c; j++, i++) {
                    const double x = real_at(v->dtype, buffer, j);
                    if (!isfinite(x))
                        return apus_fail(err, APUS_E_NUMERIC, "%s: element %lld of output %u is %g", n->op->name, (long long)i, k, x);
                }
            }
        }
    }
    return APUS_OK;
}

double apus_clock(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

apus_status apus_plan_begin(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, apus_error *err)
{
    p->ran = 0;
    for (int i = 0; i < APUS_N_DIM_SYMBOLS; i++)
        if (extents[i] < 0 || extents[i] > p->capacity[i])
            return apus_fail(err, APUS_E_INTERNAL, "plan: %lld %s, planned for at most %lld", (long long)extents[i], symbol_names[i],
                             (long long)p->capacity[i]);
    if (!p->ready || memcmp(p->extents, extents, sizeof p->extents) != 0) {
        for (size_t i = 0; i < p->variables.n; i++)
            if (p->variables.at[i].used && p->variables.at[i].memory == NULL)
                return apus_fail(err, APUS_E_INTERNAL, "plan: variable '%s' has no memory", p->variables.at[i].name);
        memcpy(p->extents, extents, sizeof p->extents);
        apus_plan_settle_places(p, extents);
        set_views(p, extents, 1);
        p->ready = 1;
    }
    return feed_all(p, feeds, n_feeds, err);
}

apus_status apus_plan_run_step(apus_plan *p, const apus_plan_step *s, apus_error *err)
{
    return s->elementwise ? run_elementwise(p, s, err) : run_kernel(p, s, err);
}

/* The step's work is waited for, so that its time is its own. */
static apus_status run_watched(apus_plan *p, size_t step, apus_error *err)
{
    const double began = apus_clock();
    apus_status st = apus_plan_run_step(p, &p->steps.at[step], err);
    if (st == APUS_OK)
        st = p->device->ops.finish(p->device->backend, err);
    if (st == APUS_OK)
        p->watcher.step(p->watcher.context, p, step, began, apus_clock());
    return st;
}

apus_status apus_plan_run(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, apus_error *err)
{
    apus_status st = apus_plan_begin(p, extents, feeds, n_feeds, err);
    for (size_t i = 0; i < p->steps.n && st == APUS_OK; i++) {
        st = p->watcher.step != NULL ? run_watched(p, i, err) : apus_plan_run_step(p, &p->steps.at[i], err);
        if (st == APUS_OK && p->check_numbers)
            st = check_step(p, &p->steps.at[i], err);
    }
    if (st == APUS_OK)
        st = p->device->ops.finish(p->device->backend, err);
    p->ran = st == APUS_OK;
    return st;
}

void apus_plan_watch(apus_plan *p, const apus_plan_watcher *watcher)
{
    p->watcher = watcher != NULL ? *watcher : (apus_plan_watcher){.step = NULL};
}

apus_view apus_plan_output_view(const apus_plan *p, size_t k)
{
    return k < p->n_outputs ? p->views[p->outputs[k]] : (apus_view){.data = NULL};
}

apus_status apus_plan_output(apus_plan *p, size_t k, double *values, int64_t n, apus_error *err)
{
    if (k >= p->n_outputs || !p->ran)
        return apus_fail(err, APUS_E_INTERNAL, "plan: no output %zu", k);
    const apus_view *v = &p->views[p->outputs[k]];
    const int64_t count = count_of(v);
    if (n != count)
        return apus_fail(err, APUS_E_INTERNAL, "plan: output %zu has %lld elements, not %lld", k, (long long)count, (long long)n);
    const size_t size = apus_dtype_size(v->dtype);
    if (size == 0)
        return apus_fail(err, APUS_E_UNSUPPORTED, "plan: output %zu is stored as %s", k, apus_dtype_name(v->dtype));
    for (int64_t i = 0; i < n;) {
        double buffer[512];
        const int64_t c = n - i < 512 ? n - i : 512;
        const apus_status st = apus_device_download(p->device, buffer, (const char *)v->data + (size_t)i * size, (size_t)c * size, err);
        if (st != APUS_OK)
            return st;
        const void *b = buffer;
        for (int64_t j = 0; j < c; j++, i++) {
            switch (v->dtype) {
            case APUS_F64:
                values[i] = buffer[j];
                break;
            case APUS_F32:
                values[i] = (double)((const float *)b)[j];
                break;
            case APUS_I32:
                values[i] = (double)((const int32_t *)b)[j];
                break;
            case APUS_I64:
                values[i] = (double)((const int64_t *)b)[j];
                break;
            case APUS_U8:
                values[i] = (double)((const uint8_t *)b)[j];
                break;
            default:
                return apus_fail(err, APUS_E_UNSUPPORTED, "plan: output %zu is stored as %s", k, apus_dtype_name(v->dtype));
            }
        }
    }
    return APUS_OK;
}

void *apus_plan_arena(const apus_plan *p, size_t *bytes)
{
    *bytes = p->arena_bytes;
    return p->arena;
}
