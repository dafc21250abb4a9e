/*
 * core/graph/costs: what a plan costs: operations, memory, time, and how it tells that. Changes nothing that is computed.
 */
#include "graph/plan.h"

#include "value/node.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_MS = 50 /* what takes longer is timed once */, PASSES = 3 /* of what does not */ };

/* A node's operations at its views' extents, without what nobody reads. products: of products of matrices alone. */
static double node_flops(const apus_plan *p, const apus_plan_node *n, int products)
{
    apus_view views[APUS_PLAN_INPUTS + APUS_MAX_OUTPUTS];
    memcpy(views, n->views, (n->n_in + n->n_out) * sizeof *views);
    for (uint32_t k = 0; k < n->n_out; k++)
        if (!apus_plan_wants(&p->tensors.at[n->out[k]]))
            views[n->n_in + k] = (apus_view){.dtype = p->device->real};
    apus_kernel_call call = apus_plan_call(p, n, views, NULL);
    if (!products && n->kernel->kernel.flops != NULL)
        return n->kernel->kernel.flops(&call);
    double flops = products ? apus_op_product_flops(&call, n->op->name) : apus_op_flops(&call, n->op->name);
    if (n->kernel->with != NULL) { /* half of the inputs are its own */
        call.in += (n->n_in - n->n_prologue) / 2;
        flops += products ? apus_op_product_flops(&call, n->kernel->with->name) : apus_op_flops(&call, n->kernel->with->name);
    } else if (apus_plan_is_twice(n)) { /* the other one's inputs come after two */
        call.in += 2;
        call.n_in -= 2;
        flops += products ? apus_op_product_flops(&call, n->op->name) : apus_op_flops(&call, n->op->name);
    }
    return flops;
}

void apus_plan_count_flops(apus_plan *p)
{
    for (size_t s = 0; s < p->steps.n; s++)
        for (int32_t i = 0; i < p->steps.at[s].count; i++) {
            const apus_plan_node *n = &p->nodes.at[p->order.at[p->steps.at[s].first + i]];
            p->steps.at[s].flops += node_flops(p, n, 0);
            p->steps.at[s].product_flops += node_flops(p, n, 1);
        }
}

/* ---------------------------------------------------------------- time */

static int same_node(const apus_plan_node *a, const apus_plan_node *b)
{
    int same = a->op == b->op && a->kernel == b->kernel && a->accumulate == b->accumulate && a->prologue == b->prologue && a->n_in == b->n_in &&
               a->n_out == b->n_out;
    for (int i = 0; i < APUS_MAX_ATTRS && same; i++)
        same = a->attrs[i] == b->attrs[i];
    for (uint32_t k = 0; k < a->n_in + a->n_out && same; k++) {
        const apus_view *x = &a->views[k], *y = &b->views[k];
        same = x->dtype == y->dtype && x->ndim == y->ndim && memcmp(x->dims, y->dims, sizeof x->dims) == 0 && (x->data == NULL) == (y->data == NULL);
    }
    return same;
}

/* The first step with the same kernels and shapes; i itself: there is none before. */
static size_t first_like(const apus_plan *p, const size_t *kinds, size_t n_kinds, size_t i)
{
    const apus_plan_step *s = &p->steps.at[i];
    for (size_t k = 0; k < n_kinds; k++) {
        const apus_plan_step *t = &p->steps.at[kinds[k]];
        int same = s->count == t->count && s->elementwise == t->elementwise;
        for (int32_t m = 0; m < s->count && same; m++)
            same = same_node(&p->nodes.at[p->order.at[s->first + m]], &p->nodes.at[p->order.at[t->first + m]]);
        if (same)
            return kinds[k];
    }
    return i;
}

static apus_status time_step(apus_plan *p, const apus_plan_step *s, double *seconds, apus_error *err)
{
    const double began = apus_clock();
    apus_status st = apus_plan_run_step(p, s, err);
    if (st == APUS_OK)
        st = p->device->ops.finish(p->device->backend, err);
    *seconds = apus_clock() - began;
    return st;
}

/* In order, so that what a step reads is in its place; those left out leave numbers of other steps there, which take as long. A first
 * pass brings memory and caches to where they are in training. */
apus_status apus_plan_measure(apus_plan *p, const int64_t extents[APUS_N_DIM_SYMBOLS], const apus_feed *feeds, size_t n_feeds, double *seconds,
                              apus_error *err)
{
    *seconds = 0.0;
    if (p->device->trials != NULL)
        return apus_trials_note(p->device->trials, p, err);
    size_t *kinds = malloc((p->steps.n + 1) * sizeof *kinds), n_kinds = 0;
    apus_status st = kinds != NULL ? apus_plan_begin(p, extents, feeds, n_feeds, err) : apus_fail(err, APUS_E_MEMORY, "out of memory while planning");
    for (size_t i = 0; i < p->steps.n && st == APUS_OK; i++)
        if (first_like(p, kinds, n_kinds, i) == i) {
            kinds[n_kinds++] = i;
            st = time_step(p, &p->steps.at[i], &p->steps.at[i].seconds, err);
        }
    for (int pass = 1; pass <= PASSES && st == APUS_OK; pass++) {
        st = apus_plan_begin(p, extents, feeds, n_feeds, err);
        for (size_t k = 0; k < n_kinds && st == APUS_OK; k++) {
            apus_plan_step *s = &p->steps.at[kinds[k]];
            double again = 0.0;
            if (s->seconds * 1e3 >= SHORT_MS)
                continue;
            st = time_step(p, s, &again, err);
            s->seconds = pass == 1 ? again : s->seconds + (again - s->seconds) / pass;
        }
    }
    for (size_t i = 0; i < p->steps.n && st == APUS_OK; i++) {
        p->steps.at[i].seconds = p->steps.at[first_like(p, kinds, n_kinds, i)].seconds;
        *seconds += p->steps.at[i].seconds;
    }
    p->ran = 0; /* what is in the outputs means nothing */
    free(kinds);
    return st;
}

/* ---------------------------------------------------------------- telling */

static const char *step_name(const apus_plan *p, const apus_plan_step *s)
{
    return s->count > 1 && s->elementwise ? "elementwise" : p->nodes.at[p->order.at[s->first]].op->name;
}

/* Appends as much as there is room for. */
static void put_text(char *text, size_t capacity, const char *more)
{
    const size_t used = strlen(text);
    (void)snprintf(text + used, capacity - used, "%s", more);
}

static void put_shape(char *text, size_t capacity, const apus_view *v)
{
    char number[24];
    put_text(text, capacity, text[0] != '\0' ? " [" : "[");
    for (int32_t d = 0; d < v->ndim; d++) {
        (void)snprintf(number, sizeof number, "%s%lld", d > 0 ? "," : "", (long long)v->dims[d]);
        put_text(text, capacity, number);
    }
    put_text(text, capacity, "]");
}

void apus_plan_step_look(const apus_plan *p, size_t step, apus_plan_step_facts *facts)
{
    const apus_plan_step *s = &p->steps.at[step];
    const apus_plan_node *first = &p->nodes.at[p->order.at[s->first]], *last = &p->nodes.at[p->order.at[s->first + s->count - 1]];
    *facts = (apus_plan_step_facts){.op = step_name(p, s), .kernel = first->kernel->table->name, .nodes = s->count};
    for (int32_t i = 0; i < s->count; i++)
        facts->flops += node_flops(p, &p->nodes.at[p->order.at[s->first + i]], 1);
    for (uint32_t k = 0; k < first->n_in; k++)
        put_shape(facts->shapes, sizeof facts->shapes, &first->views[k]);
    put_text(facts->shapes, sizeof facts->shapes, " ->");
    for (uint32_t k = 0; k < last->n_out; k++)
        if (apus_plan_wants(&p->tensors.at[last->out[k]]))
            put_shape(facts->shapes, sizeof facts->shapes, &last->views[last->n_in + k]);
}

apus_plan_cost apus_plan_costs(const apus_plan *p)
{
    apus_plan_cost c = {.arena_bytes = p->constant_bytes + (p->shared ? 0 : p->arena_bytes), .nodes = p->order.n};
    for (size_t i = 0; i < p->steps.n; i++) {
        c.flops += p->steps.at[i].flops;
        c.product_flops += p->steps.at[i].product_flops;
    }
    for (size_t i = 0; i < p->variables.n; i++)
        if (p->variables.at[i].used)
            c.variable_bytes += apus_plan_bytes(&p->tensors.at[p->variables.at[i].tensor]);
    int points = 0;
    for (size_t i = 0; i < p->order.n; i++)
        for (uint32_t k = 0; k < p->nodes.at[p->order.at[i]].n_out; k++)
            points += p->tensors.at[p->nodes.at[p->order.at[i]].out[k]].block_point != 0;
    for (size_t i = 0; i < p->tensors.n; i++) {
        const apus_plan_tensor *t = &p->tensors.at[i];
        if (t->node >= 0 && t->used && t->shape.dtype == p->device->kept && p->device->kept != p->device->real && !p->nodes.at[t->node].backward)
            c.narrow_bytes += apus_plan_bytes(t);
    }
    c.blocks = points > 0 ? points - 1 : 0;
    return c;
}

/* One line for all steps of the same op and kernel. */
static void describe_step(const apus_plan *p, const apus_plan_step *s, apus_node *ops)
{
    const apus_node_api *api = apus_nodes();
    const apus_plan_node *n = &p->nodes.at[p->order.at[s->first]];
    const char *name = step_name(p, s), *then = n->kernel->kernel.then;
    const char *twice = apus_plan_is_twice(n) ? " twice" : "", *of = n->prologue > 0 ? n->kernel->kernel.prologues[n->prologue - 1] : "";
    char kernel[160];
    (void)snprintf(kernel, sizeof kernel, "%s%s%s%s%s%s", n->kernel->table->name, twice, n->prologue > 0 ? " of " : "", of, then != NULL ? " + " : "",
                   then != NULL ? then : "");
    apus_node *row = NULL;
    int64_t count = 0, nodes = 0;
    double flops = 0, seconds = 0;
    for (size_t i = 0; i < api->length(ops) && row == NULL; i++) {
        const apus_node *r = api->at(ops, i);
        if (strcmp(api->as_string(api->get(r, "op"), NULL), name) == 0 && strcmp(api->as_string(api->get(r, "kernel"), NULL), kernel) == 0) {
            row = (apus_node *)(uintptr_t)r; /* children of a tree that is ours */
            count = api->as_int(api->get(r, "count"), 0);
            nodes = api->as_int(api->get(r, "nodes"), 0);
            flops = api->as_float(api->get(r, "flops"), 0);
            seconds = api->as_float(api->get(r, "seconds"), 0);
        }
    }
    if (row == NULL) {
        row = api->make_map();
        if (row == NULL || api->append(ops, row) != APUS_OK)
            return;
        (void)api->set(row, "op", api->make_string(name, (size_t)-1));
        (void)api->set(row, "kernel", api->make_string(kernel, (size_t)-1));
    }
    (void)api->set(row, "count", api->make_int(count + 1));
    (void)api->set(row, "nodes", api->make_int(nodes + s->count));
    (void)api->set(row, "flops", api->make_float(flops + s->flops));
    (void)api->set(row, "seconds", api->make_float(seconds + s->seconds));
}

apus_node *apus_plan_describe(const apus_plan *p)
{
    const apus_node_api *api = apus_nodes();
    apus_node *map = api->make_map(), *ops = api->make_list();
    if (map == NULL || ops == NULL || api->set(map, "ops", ops) != APUS_OK) {
        api->release(map);
        return NULL;
    }
    for (size_t i = 0; i < p->steps.n; i++)
        describe_step(p, &p->steps.at[i], ops);
    const apus_plan_cost cost = apus_plan_costs(p);
    (void)api->set(map, "device", api->make_string(apus_device_describe(p->device), (size_t)-1));
    (void)api->set(map, "arena", api->make_int((int64_t)cost.arena_bytes));
    if (cost.narrow_bytes > 0)
        (void)api->set(map, apus_dtype_name(p->device->kept), api->make_int((int64_t)cost.narrow_bytes));
    apus_node *tuning = apus_tuning_describe(p);
    if (tuning != NULL)
        (void)api->set(map, "tuning", tuning);
    (void)api->set(map, "variables", api->make_int((int64_t)cost.variable_bytes));
    (void)api->set(map, "flops", api->make_float(cost.flops));
    (void)api->set(map, "nodes", api->make_int((int64_t)cost.nodes));
    (void)api->set(map, "steps", api->make_int((int64_t)p->steps.n));
    return map;
}
