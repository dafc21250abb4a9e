/*
 * core/template/filters_sequence: the filters over sequences and mappings.
 */
#include "filters.h"

#include <string.h>

static tval filter_length(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "length", "", 0, call, NULL);
    int64_t n = apus_tpl_length(c, v);
    if (n < 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "object of type '%s' has no length%s", apus_tpl_type(v),
                      v.kind == T_GENERATOR ? ": put |list in front" : "");
    return apus_tpl_int(n);
}

static tval filter_first(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "first", "", 0, call, NULL);
    titer it = apus_tpl_iterate(c, v);
    tval item;
    return apus_tpl_next(c, &it, &item) ? item : apus_tpl_undefined(&c->base, "No first item, sequence was empty.");
}

static tval filter_last(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "last", "", 0, call, NULL);
    if (v.kind == T_GENERATOR)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "last: a generator cannot be reversed: put |list in front");
    tlist *l;
    if (v.kind == T_LIST || v.kind == T_TUPLE)
        l = v.l;
    else
        l = apus_tpl_to_list(c, v);
    return l->n > 0 ? l->items[l->n - 1] : apus_tpl_undefined(&c->base, "No last item, sequence was empty.");
}

static tval filter_list(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "list", "", 0, call, NULL);
    if (v.kind == T_LIST)
        return v;
    return apus_tpl_lval(apus_tpl_to_list(c, v));
}

static tval filter_items(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "items", "", 0, call, NULL);
    if (v.kind == T_UNDEFINED)
        return apus_tpl_generator(&c->base, apus_tpl_list(&c->base, 0));
    if (v.kind != T_DICT)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "items: Can only get item pairs from a mapping, not %s", apus_tpl_type(v));
    struct tview all = {.dict = v.d, .what = T_ITEMS};
    return apus_tpl_generator(&c->base, apus_tpl_to_list(c, (tval){.kind = T_VIEW, .view = &all}));
}

static tval filter_reverse(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "reverse", "", 0, call, NULL);
    if (v.kind == T_STR)
        return apus_tpl_slice(c, v, apus_tpl_missing(), apus_tpl_missing(), apus_tpl_int(-1));
    const tlist *from = v.kind == T_LIST || v.kind == T_TUPLE ? v.l : apus_tpl_to_list(c, v);
    tlist *l = apus_tpl_list(&c->base, from->n);
    apus_tpl_spend(c, from->n);
    for (size_t i = from->n; i > 0; i--)
        l->items[l->n++] = from->items[i - 1];
    return v.kind == T_GENERATOR ? apus_tpl_lval(l) : apus_tpl_generator(&c->base, l);
}

static tval filter_join(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "join", "d attribute", 0, call, a);
    const tstr *between = a[0].kind == T_MISSING ? apus_tpl_literal(&c->base, "") : apus_tpl_to_str(c, a[0]);
    tbuf b = {.c = c, .markup = between->markup};
    titer it = apus_tpl_iterate(c, v);
    bool more = false;
    for (tval item; apus_tpl_next(c, &it, &item); more = true) {
        if (more)
            apus_tpl_put_str(&b, between);
        const tstr *s = apus_tpl_to_str(c, apus_tpl_path(c, item, a[1], apus_tpl_missing()));
        if (b.markup)
            apus_tpl_put_escaped(&b, s);
        else
            apus_tpl_put_str(&b, s);
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

/* ---------------------------------------------------------------- order */

typedef struct keyed {
    tval key, value;
} keyed;

static tval folded(tctx *c, tval v)
{
    return v.kind == T_STR ? apus_tpl_sval(apus_tpl_case(c, v.s, 'l')) : v;
}

/* Stable, as Python's: with `reverse` too, equal ones keep their order. */
static void merge_sort(tctx *c, keyed *items, keyed *room, size_t n, bool reverse)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, j = half, k = 0;
    merge_sort(c, items, room, half, reverse);
    merge_sort(c, items + half, room, n - half, reverse);
    memcpy(room, items, half * sizeof *room);
    while (i < half && j < n) {
        apus_tpl_spend(c, 8);
        bool second = reverse ? apus_tpl_less(c, room[i].key, items[j].key) : apus_tpl_less(c, items[j].key, room[i].key);
        items[k++] = second ? items[j++] : room[i++];
    }
    while (i < half)
        items[k++] = room[i++];
}

static tlist *sorted(tctx *c, const tlist *values, const tlist *keys, bool reverse)
{
    keyed *items = apus_tpl_array(&c->base, values->n, sizeof *items);
    for (size_t i = 0; i < values->n; i++)
        items[i] = (keyed){keys->items[i], values->items[i]};
    merge_sort(c, items, apus_tpl_array(&c->base, values->n / 2 + 1, sizeof *items), values->n, reverse);
    tlist *l = apus_tpl_list(&c->base, values->n);
    for (; l->n < values->n; l->n++)
        l->items[l->n] = items[l->n].value;
    return l;
}

/* One key for "a.b", a list of keys for "a,b.c". */
static tval sort_key(tctx *c, tval item, tval attribute, bool exact)
{
    if (attribute.kind != T_STR || memchr(attribute.s->bytes, ',', attribute.s->length) == NULL) {
        tval key = apus_tpl_path(c, item, attribute, apus_tpl_missing());
        return exact ? key : folded(c, key);
    }
    const tlist *paths = apus_tpl_split(c, attribute.s, apus_tpl_literal(&c->base, ","), -1, false);
    tlist *key = apus_tpl_list(&c->base, paths->n);
    for (; key->n < paths->n; key->n++) {
        tval part = apus_tpl_path(c, item, paths->items[key->n], apus_tpl_missing());
        key->items[key->n] = exact ? part : folded(c, part);
    }
    return apus_tpl_lval(key);
}

static tlist *keys_of(tctx *c, const tlist *values, tval attribute, bool exact)
{
    tlist *keys = apus_tpl_list(&c->base, values->n);
    for (; keys->n < values->n; keys->n++)
        keys->items[keys->n] = sort_key(c, values->items[keys->n], attribute, exact);
    return keys;
}

static bool reverse_flag(tctx *c, tval v)
{
    return v.kind != T_MISSING && apus_tpl_need_int(c, "sort: reverse", v) != 0;
}

static tval filter_sort(tctx *c, tval v, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "sort", "reverse case_sensitive attribute", 0, call, a);
    const tlist *values = apus_tpl_to_list(c, v);
    return apus_tpl_lval(sorted(c, values, keys_of(c, values, a[2], apus_tpl_flag(a[1], false)), reverse_flag(c, a[0])));
}

static tval filter_dictsort(tctx *c, tval v, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "dictsort", "case_sensitive by reverse", 0, call, a);
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_DICT)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "dictsort: expected a mapping, not %s", apus_tpl_type(v));
    const tstr *by = a[1].kind == T_MISSING ? apus_tpl_literal(&c->base, "key") : apus_tpl_need_str(c, "dictsort", a[1]);
    if (!apus_tpl_is(by, "key") && !apus_tpl_is(by, "value"))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "dictsort: You can only sort by either \"key\" or \"value\"");
    struct tview all = {.dict = v.d, .what = T_ITEMS};
    const tlist *pairs = apus_tpl_to_list(c, (tval){.kind = T_VIEW, .view = &all});
    return apus_tpl_lval(
        sorted(c, pairs, keys_of(c, pairs, apus_tpl_int(apus_tpl_is(by, "value") ? 1 : 0), apus_tpl_flag(a[0], false)), reverse_flag(c, a[2])));
}

static tval filter_unique(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "unique", "case_sensitive attribute", 0, call, a);
    tdict *seen = apus_tpl_dict(&c->base, 8);
    size_t capacity = 8;
    tlist *l = apus_tpl_list(&c->base, capacity);
    titer it = apus_tpl_iterate(c, v);
    for (tval item; apus_tpl_next(c, &it, &item);) {
        tval key = apus_tpl_path(c, item, a[1], apus_tpl_missing());
        if (!apus_tpl_flag(a[0], false))
            key = folded(c, key);
        size_t before = seen->n;
        apus_tpl_dict_set(c, seen, key, apus_tpl_none());
        if (seen->n > before)
            apus_tpl_push(&c->base, l, &capacity, item);
    }
    return apus_tpl_generator(&c->base, l);
}

static tval extreme(tctx *c, tval v, const tcall *call, const char *what, bool greatest)
{
    tval a[2], best = apus_tpl_missing(), best_key = best;
    apus_tpl_bind(c, what, "case_sensitive attribute", 0, call, a);
    titer it = apus_tpl_iterate(c, v);
    for (tval item; apus_tpl_next(c, &it, &item);) {
        tval key = apus_tpl_path(c, item, a[1], apus_tpl_missing());
        if (!apus_tpl_flag(a[0], false))
            key = folded(c, key);
        if (best.kind == T_MISSING || (greatest ? apus_tpl_compare(c, key, best_key, ">") == 1 : apus_tpl_less(c, key, best_key))) {
            best = item;
            best_key = key;
        }
    }
    return best.kind != T_MISSING ? best : apus_tpl_undefined(&c->base, "No aggregated item, sequence was empty.");
}
static tval filter_min(tctx *c, tval v, const tcall *call)
{
    return extreme(c, v, call, "min", false);
}
static tval filter_max(tctx *c, tval v, const tcall *call)
{
    return extreme(c, v, call, "max", true);
}

static tval filter_sum(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "sum", "attribute start", 0, call, a);
    tval total = a[1].kind == T_MISSING ? apus_tpl_int(0) : a[1];
    if (total.kind == T_STR)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "sum: can't sum strings, use |join");
    titer it = apus_tpl_iterate(c, v);
    for (tval item; apus_tpl_next(c, &it, &item);)
        total = apus_tpl_binary(c, '+', total, apus_tpl_path(c, item, a[0], apus_tpl_missing()));
    return total;
}

/* ---------------------------------------------------------------- groups */

static tval filter_groupby(tctx *c, tval v, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "groupby", "attribute default case_sensitive", 1, call, a);
    bool exact = apus_tpl_flag(a[2], false);
    const tlist *values = apus_tpl_to_list(c, v);
    tlist *keys = apus_tpl_list(&c->base, values->n);
    for (; keys->n < values->n; keys->n++) {
        tval key = apus_tpl_path(c, values->items[keys->n], a[0], a[1]);
        keys->items[keys->n] = exact ? key : folded(c, key);
    }
    const tlist *in_order = sorted(c, values, keys, false);
    size_t capacity = 8;
    tlist *groups = apus_tpl_list(&c->base, capacity), *group = NULL;
    tval last = apus_tpl_missing();
    size_t room = 0;
    for (size_t i = 0; i < in_order->n; i++) {
        tval own = apus_tpl_path(c, in_order->items[i], a[0], a[1]), key = exact ? own : folded(c, own);
        if (group == NULL || !apus_tpl_equal(c, key, last)) {
            room = 4;
            group = apus_tpl_list(&c->base, room);
            tval pair = apus_tpl_pair(&c->base, own, apus_tpl_lval(group));
            pair.l->group = true;
            apus_tpl_push(&c->base, groups, &capacity, pair);
        }
        apus_tpl_push(&c->base, group, &room, in_order->items[i]);
        last = key;
    }
    return apus_tpl_lval(groups);
}

static tval filter_batch(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "batch", "linecount fill_with", 1, call, a);
    int64_t size = apus_tpl_need_int(c, "batch", a[0]);
    size_t capacity = 8, room = 4;
    tlist *batches = apus_tpl_list(&c->base, capacity), *batch = apus_tpl_list(&c->base, room);
    titer it = apus_tpl_iterate(c, v);
    for (tval item; apus_tpl_next(c, &it, &item);) {
        if ((int64_t)batch->n == size) {
            apus_tpl_push(&c->base, batches, &capacity, apus_tpl_lval(batch));
            batch = apus_tpl_list(&c->base, room = 4);
        }
        apus_tpl_push(&c->base, batch, &room, item);
    }
    bool fill = a[1].kind != T_MISSING && a[1].kind != T_NONE && batch->n > 0;
    while (fill && (int64_t)batch->n < size) {
        apus_tpl_spend(c, 4);
        apus_tpl_push(&c->base, batch, &room, a[1]);
    }
    if (batch->n > 0)
        apus_tpl_push(&c->base, batches, &capacity, apus_tpl_lval(batch));
    return apus_tpl_generator(&c->base, batches);
}

static tval filter_slice(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "slice", "slices fill_with", 1, call, a);
    const tlist *all = apus_tpl_to_list(c, v);
    int64_t n = apus_tpl_need_int(c, "slice", a[0]);
    if (n == 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "slice: division by zero");
    size_t capacity = 8, from = 0;
    tlist *slices = apus_tpl_list(&c->base, capacity);
    bool fill = a[1].kind != T_MISSING && a[1].kind != T_NONE;
    for (int64_t i = 0; i < n; i++) {
        size_t size = all->n / (size_t)n, extra = all->n % (size_t)n;
        bool longer = (size_t)i < extra;
        apus_tpl_spend(c, size + 8);
        tlist *slice = apus_tpl_list(&c->base, size + 1);
        for (size_t k = 0; k < size + (longer ? 1u : 0u); k++)
            slice->items[slice->n++] = all->items[from++];
        if (fill && !longer)
            slice->items[slice->n++] = a[1];
        apus_tpl_push(&c->base, slices, &capacity, apus_tpl_lval(slice));
    }
    return apus_tpl_generator(&c->base, slices);
}

/* ---------------------------------------------------------------- map, select */

static tval filter_map(tctx *c, tval v, const tcall *call)
{
    size_t capacity = 8;
    tlist *l = apus_tpl_list(&c->base, capacity);
    if (!apus_tpl_truth(v))
        return apus_tpl_generator(&c->base, l);
    titer it = apus_tpl_iterate(c, v);
    tval item;
    bool by_attribute = false;
    for (size_t i = 0; i < call->n_named; i++)
        by_attribute = by_attribute || apus_tpl_is(call->names[i], "attribute");
    if (call->n == 0 && by_attribute) {
        tval a[2];
        apus_tpl_bind(c, "map", "attribute default", 1, call, a);
        while (apus_tpl_next(c, &it, &item))
            apus_tpl_push(&c->base, l, &capacity, apus_tpl_path(c, item, a[0], a[1]));
        return apus_tpl_generator(&c->base, l);
    }
    if (call->n == 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "map requires a filter argument");
    const tstr *name = apus_tpl_need_str(c, "map", call->args[0]);
    const tfilter *filter = apus_tpl_filter(name->bytes, name->length);
    if (filter == NULL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "No filter named '%.*s'.", (int)name->length, name->bytes);
    tcall rest = *call;
    rest.args++;
    rest.n--;
    apus_tpl_enter(c);
    while (apus_tpl_next(c, &it, &item))
        apus_tpl_push(&c->base, l, &capacity, filter->call(c, item, &rest));
    apus_tpl_leave(c);
    return apus_tpl_generator(&c->base, l);
}

static tval select_or_reject(tctx *c, tval v, const tcall *call, bool by_attribute, bool wanted)
{
    size_t capacity = 8;
    tlist *l = apus_tpl_list(&c->base, capacity);
    if (!apus_tpl_truth(v))
        return apus_tpl_generator(&c->base, l);
    tcall rest = *call;
    tval attribute = apus_tpl_missing();
    if (by_attribute) {
        if (call->n == 0)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "Missing parameter for attribute name");
        attribute = call->args[0];
        rest.args++;
        rest.n--;
    }
    const ttest *test = NULL;
    if (rest.n > 0) {
        const tstr *name = apus_tpl_need_str(c, "select", rest.args[0]);
        test = apus_tpl_test(name->bytes, name->length);
        if (test == NULL)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "No test named '%.*s'.", (int)name->length, name->bytes);
        rest.args++;
        rest.n--;
    }
    titer it = apus_tpl_iterate(c, v);
    for (tval item; apus_tpl_next(c, &it, &item);) {
        tval subject = apus_tpl_path(c, item, attribute, apus_tpl_missing());
        if ((test == NULL ? apus_tpl_truth(subject) : test->call(c, subject, &rest)) == wanted)
            apus_tpl_push(&c->base, l, &capacity, item);
    }
    return apus_tpl_generator(&c->base, l);
}
static tval filter_select(tctx *c, tval v, const tcall *call)
{
    return select_or_reject(c, v, call, false, true);
}
static tval filter_reject(tctx *c, tval v, const tcall *call)
{
    return select_or_reject(c, v, call, false, false);
}
static tval filter_selectattr(tctx *c, tval v, const tcall *call)
{
    return select_or_reject(c, v, call, true, true);
}
static tval filter_rejectattr(tctx *c, tval v, const tcall *call)
{
    return select_or_reject(c, v, call, true, false);
}

static const tfilter filters[] = {
    {"length", filter_length},
    {"count", filter_length},
    {"first", filter_first},
    {"last", filter_last},
    {"list", filter_list},
    {"items", filter_items},
    {"reverse", filter_reverse},
    {"join", filter_join},
    {"sort", filter_sort},
    {"dictsort", filter_dictsort},
    {"unique", filter_unique},
    {"min", filter_min},
    {"max", filter_max},
    {"sum", filter_sum},
    {"groupby", filter_groupby},
    {"batch", filter_batch},
    {"slice", filter_slice},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
};

const tfilter *apus_tpl_sequence_filter(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strlen(filters[i].name) == length && memcmp(filters[i].name, name, length) == 0)
            return &filters[i];
    return NULL;
}
