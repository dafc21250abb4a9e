/*
 * core/template/loops: for: the rounds, what `loop` answers, filtered and recursive loops.
 */
#include "run.h"

#include <string.h>

static bool next_unfiltered(trender *r, struct tloop *l, tval *item)
{
    if (l->pending != NULL) {
        if (l->next_pending >= l->pending->n)
            return false;
        *item = l->pending->items[l->next_pending++];
        return true;
    }
    while (apus_tpl_next(&r->c, &l->it, item)) {
        if (++r->c.iterations > r->c.limits.iterations)
            apus_tpl_fail(&r->c.base, APUS_E_INVALID, "more than %llu rounds of loops", (unsigned long long)r->c.limits.iterations);
        if (l->node->loop.test == NULL)
            return true;
        tscope *outer = r->scope;
        r->scope = apus_tpl_open_scope(r, l->scope);
        apus_tpl_assign(r, l->node->loop.target, *item);
        bool wanted = apus_tpl_truth(apus_tpl_eval(r, l->node->loop.test));
        r->scope = outer;
        if (wanted)
            return true;
    }
    return false;
}

static bool next_item(trender *r, struct tloop *l)
{
    tval item = l->after;
    l->after = apus_tpl_missing();
    if (item.kind == T_MISSING && !next_unfiltered(r, l, &item))
        return false;
    l->index0++;
    l->before = l->current;
    l->current = item;
    return true;
}

static tval peek(trender *r, struct tloop *l)
{
    if (l->after.kind == T_MISSING && !next_unfiltered(r, l, &l->after))
        l->after = apus_tpl_missing();
    return l->after;
}

static int64_t loop_length(trender *r, struct tloop *l)
{
    if (l->length >= 0)
        return l->length;
    if (l->node->loop.test == NULL)
        l->length = apus_tpl_length(&r->c, l->source);
    if (l->length >= 0)
        return l->length;
    size_t capacity = 8;
    tlist *rest = apus_tpl_list(&r->c.base, capacity);
    for (tval item; next_unfiltered(r, l, &item);)
        apus_tpl_push(&r->c.base, rest, &capacity, item);
    l->pending = rest;
    l->next_pending = 0;
    return l->length = (int64_t)rest->n + l->index0 + 1 + (l->after.kind != T_MISSING ? 1 : 0);
}

void apus_tpl_loop_place(tctx *c, struct tloop *l, int64_t *index, int64_t *length)
{
    *index = l->index0 + 1;
    *length = loop_length((trender *)c, l);
}

static tval loop_cycle(tctx *c, tval self, const tcall *call)
{
    if (call->n == 0 || call->n_named > 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "no items for cycling given");
    return call->args[(size_t)self.loop->index0 % call->n];
}

static tval loop_changed(tctx *c, tval self, const tcall *call)
{
    tlist *now = apus_tpl_list(&c->base, call->n);
    if (call->n > 0)
        memcpy(now->items, call->args, call->n * sizeof *now->items);
    now->n = call->n;
    if (self.loop->changed.kind != T_MISSING && apus_tpl_equal(c, self.loop->changed, apus_tpl_tval(now)))
        return apus_tpl_bool(false);
    self.loop->changed = apus_tpl_tval(now);
    return apus_tpl_bool(true);
}

tval apus_tpl_loop_attribute(tctx *c, struct tloop *l, const tstr *name)
{
    static const tmethod_def methods[] = {{"cycle", loop_cycle, NULL}, {"changed", loop_changed, NULL}};
    trender *r = (trender *)c;
    if (apus_tpl_is(name, "index"))
        return apus_tpl_int(l->index0 + 1);
    if (apus_tpl_is(name, "index0"))
        return apus_tpl_int(l->index0);
    if (apus_tpl_is(name, "first"))
        return apus_tpl_bool(l->index0 == 0);
    if (apus_tpl_is(name, "last"))
        return apus_tpl_bool(peek(r, l).kind == T_MISSING);
    if (apus_tpl_is(name, "length"))
        return apus_tpl_int(loop_length(r, l));
    if (apus_tpl_is(name, "revindex"))
        return apus_tpl_int(loop_length(r, l) - l->index0);
    if (apus_tpl_is(name, "revindex0"))
        return apus_tpl_int(loop_length(r, l) - l->index0 - 1);
    if (apus_tpl_is(name, "depth"))
        return apus_tpl_int(l->depth0 + 1);
    if (apus_tpl_is(name, "depth0"))
        return apus_tpl_int(l->depth0);
    if (apus_tpl_is(name, "previtem"))
        return l->index0 == 0 ? apus_tpl_undefined(&c->base, "there is no previous item") : l->before;
    if (apus_tpl_is(name, "nextitem")) {
        tval after = peek(r, l);
        return after.kind == T_MISSING ? apus_tpl_undefined(&c->base, "there is no next item") : after;
    }
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (apus_tpl_is(name, methods[i].name)) {
            struct tmethod *m = apus_tpl_alloc(&c->base, sizeof *m);
            *m = (struct tmethod){{.kind = T_LOOP, .loop = l}, &methods[i]};
            return (tval){.kind = T_METHOD, .method = m};
        }
    return apus_tpl_missing();
}

flow apus_tpl_run_loop(trender *r, const tnode *n, tval source, tscope *around, int64_t depth0)
{
    tctx *c = &r->c;
    tscope *outer = r->scope, *scope = apus_tpl_open_scope(r, around);
    struct tloop *l = apus_tpl_alloc(&c->base, sizeof *l);
    *l =
        (struct tloop){.node = n, .scope = around, .source = source, .it = apus_tpl_iterate(c, source), .index0 = -1, .length = -1, .depth0 = depth0};
    bool any = false;
    while (next_item(r, l)) {
        r->scope = scope = apus_tpl_fresh_scope(r, scope);
        apus_tpl_assign(r, n->loop.target, l->current);
        apus_tpl_store(r, r->t->loop, (tval){.kind = T_LOOP, .loop = l});
        flow end = apus_tpl_run_body(r, &n->loop.body);
        any = any || end == RUN; /* as Jinja: `else` runs when no round came to its end */
        if (end == BREAK)
            break;
    }
    flow how = RUN;
    if (!any && n->loop.otherwise.n > 0) {
        r->scope = apus_tpl_open_scope(r, around);
        how = apus_tpl_run_body(r, &n->loop.otherwise);
    }
    r->scope = outer;
    return how;
}
