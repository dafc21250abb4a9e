/*
 * core/template/value: truth, equality, order, hashing, dictionaries, walking: Python's rules for each.
 * Knows no syntax and no name that a template calls.
 */
#include "value.h"
#include "value/node.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- bounds */

void apus_tpl_spend(tctx *c, uint64_t work)
{
    c->work += work;
    if (c->work > c->limits.work)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "the template does not come to an end: stopped after %llu units of work",
                      (unsigned long long)c->limits.work);
}

void apus_tpl_enter(tctx *c)
{
    if (++c->depth > c->limits.depth)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "nested or recursing too deep (over %u levels)", c->limits.depth);
}

void apus_tpl_leave(tctx *c)
{
    c->depth--;
}

/* ---------------------------------------------------------------- what a value is */

const char *apus_tpl_type(tval v)
{
    switch (v.kind) {
    case T_MISSING:
    case T_UNDEFINED:
        return "Undefined";
    case T_NONE:
        return "NoneType";
    case T_BOOL:
        return "bool";
    case T_INT:
        return "int";
    case T_FLOAT:
        return "float";
    case T_STR:
        return v.s->markup ? "Markup" : "str";
    case T_LIST:
        return "list";
    case T_TUPLE:
        return "tuple";
    case T_DICT:
        return "dict";
    case T_RANGE:
        return "range";
    case T_VIEW:
        return v.view->what == T_KEYS ? "dict_keys" : v.view->what == T_VALUES ? "dict_values" : "dict_items";
    case T_GENERATOR:
        return "generator";
    case T_NAMESPACE:
        return "Namespace";
    case T_LOOP:
        return "LoopContext";
    case T_MACRO:
        return "Macro";
    case T_FUNCTION:
        return "function";
    case T_METHOD:
        return "builtin_function_or_method";
    case T_CYCLER:
        return "Cycler";
    case T_JOINER:
        return "Joiner";
    }
    return "object";
}

void apus_tpl_use_undefined(tctx *c, tval v)
{
    const struct tundefined *u = v.u;
    if (u->message != NULL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s", u->message);
    if (u->owner == T_MISSING)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "'%.*s' is undefined", (int)u->length, u->name);
    apus_tpl_fail(&c->base, APUS_E_INVALID, "'%s%s' has no attribute '%.*s'",
                  u->owner == T_NONE ? "None" : apus_tpl_type((tval){.kind = u->owner, .s = &(tstr){0}}), u->owner == T_NONE ? "" : " object",
                  (int)u->length, u->name);
}

bool apus_tpl_truth(tval v)
{
    switch (v.kind) {
    case T_MISSING:
    case T_UNDEFINED:
    case T_NONE:
        return false;
    case T_BOOL:
    case T_INT:
        return v.i != 0;
    case T_FLOAT:
        return v.f != 0;
    case T_STR:
        return v.s->length != 0;
    case T_LIST:
    case T_TUPLE:
        return v.l->n != 0;
    case T_DICT:
        return v.d->n != 0;
    case T_RANGE:
        return v.range->n != 0;
    case T_VIEW:
        return v.view->dict->n != 0;
    default:
        return true;
    }
}

int64_t apus_tpl_length(tctx *c, tval v)
{
    switch (v.kind) {
    case T_UNDEFINED:
        return 0;
    case T_STR:
        if (v.s->chars == (size_t)-1)
            apus_tpl_spend(c, v.s->length);
        return (int64_t)apus_tpl_chars(v.s);
    case T_LIST:
    case T_TUPLE:
        return (int64_t)v.l->n;
    case T_DICT:
        return (int64_t)v.d->n;
    case T_RANGE:
        return v.range->n;
    case T_VIEW:
        return (int64_t)v.view->dict->n;
    default:
        return -1;
    }
}

/* ---------------------------------------------------------------- equality, order, hashes */

static bool numeric(tval v)
{
    return v.kind == T_BOOL || v.kind == T_INT || v.kind == T_FLOAT;
}

static int three_way(int64_t a, int64_t b)
{
    return a < b ? -1 : a > b;
}

/* An int against a float, exactly. 2: unordered. */
static int int_float(int64_t i, double f)
{
    if (isnan(f))
        return 2;
    if (f >= 9223372036854775808.0)
        return -1;
    if (f < -9223372036854775808.0)
        return 1;
    double whole = trunc(f);
    int order = three_way(i, (int64_t)whole);
    return order != 0 ? order : f > whole ? -1 : f < whole;
}

static int number_order(tval a, tval b)
{
    if (a.kind == T_FLOAT && b.kind == T_FLOAT)
        return isnan(a.f) || isnan(b.f) ? 2 : a.f < b.f ? -1 : a.f > b.f;
    if (a.kind == T_FLOAT) {
        int order = int_float(b.i, a.f);
        return order == 2 ? 2 : -order;
    }
    return b.kind == T_FLOAT ? int_float(a.i, b.f) : three_way(a.i, b.i);
}

static bool dict_equal(tctx *c, const tdict *a, const tdict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        tval other = apus_tpl_dict_get(c, b, a->keys[i]);
        if (other.kind == T_MISSING || !apus_tpl_equal(c, a->values[i], other))
            return false;
    }
    return true;
}

bool apus_tpl_equal(tctx *c, tval a, tval b)
{
    if (numeric(a) && numeric(b))
        return number_order(a, b) == 0;
    if (a.kind != b.kind)
        return false;
    bool same = true;
    switch (a.kind) {
    case T_STR:
        if (a.s->length != b.s->length)
            return false;
        apus_tpl_spend(c, a.s->length / 16 + 1);
        return memcmp(a.s->bytes, b.s->bytes, a.s->length) == 0;
    case T_NONE:
    case T_MISSING:
    case T_UNDEFINED:
        return true;
    case T_LIST:
    case T_TUPLE:
        if (a.l == b.l)
            return true;
        if (a.l->n != b.l->n)
            return false;
        apus_tpl_enter(c);
        apus_tpl_spend(c, a.l->n + 4);
        for (size_t i = 0; i < a.l->n && same; i++)
            same = apus_tpl_equal(c, a.l->items[i], b.l->items[i]);
        apus_tpl_leave(c);
        return same;
    case T_DICT:
        if (a.d == b.d)
            return true;
        apus_tpl_enter(c);
        same = dict_equal(c, a.d, b.d);
        apus_tpl_leave(c);
        return same;
    case T_RANGE:
        return a.range->n == b.range->n &&
               (a.range->n == 0 || (a.range->start == b.range->start && (a.range->n == 1 || a.range->step == b.range->step)));
    case T_VIEW:
        if (a.view->what != b.view->what || a.view->what == T_VALUES)
            return a.p == b.p;
        if (a.view->what == T_ITEMS)
            return dict_equal(c, a.view->dict, b.view->dict);
        same = a.view->dict->n == b.view->dict->n;
        for (size_t i = 0; i < a.view->dict->n && same; i++)
            same = apus_tpl_dict_get(c, b.view->dict, a.view->dict->keys[i]).kind != T_MISSING;
        return same;
    case T_METHOD:
        return a.method->def == b.method->def && a.method->self.p == b.method->self.p;
    default:
        return a.p == b.p;
    }
}

int apus_tpl_compare(tctx *c, tval a, tval b, const char *op)
{
    if (a.kind == T_UNDEFINED || b.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, a.kind == T_UNDEFINED ? a : b);
    if (numeric(a) && numeric(b))
        return number_order(a, b);
    if (a.kind == b.kind && a.kind == T_STR) {
        apus_tpl_spend(c, (a.s->length < b.s->length ? a.s->length : b.s->length) / 16 + 1);
        return apus_tpl_str_compare(a.s, b.s);
    }
    if (a.kind == b.kind && (a.kind == T_LIST || a.kind == T_TUPLE)) {
        apus_tpl_enter(c);
        int order = 0;
        size_t n = a.l->n < b.l->n ? a.l->n : b.l->n, i = 0;
        while (i < n && apus_tpl_equal(c, a.l->items[i], b.l->items[i]))
            i++;
        if (i < n)
            order = apus_tpl_compare(c, a.l->items[i], b.l->items[i], op);
        else
            order = three_way((int64_t)a.l->n, (int64_t)b.l->n);
        apus_tpl_leave(c);
        return order;
    }
    apus_tpl_fail(&c->base, APUS_E_INVALID, "'%s' not supported between instances of '%s' and '%s'", op, apus_tpl_type(a), apus_tpl_type(b));
}

bool apus_tpl_less(tctx *c, tval a, tval b)
{
    return apus_tpl_compare(c, a, b, "<") == -1;
}

bool apus_tpl_hashable(tval v)
{
    if (v.kind == T_LIST || v.kind == T_DICT || v.kind == T_VIEW)
        return false;
    if (v.kind == T_TUPLE)
        for (size_t i = 0; i < v.l->n; i++)
            if (!apus_tpl_hashable(v.l->items[i]))
                return false;
    return true;
}

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t hash_bytes(const char *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return mix(h);
}

uint64_t apus_tpl_hash(tctx *c, tval v)
{
    uint64_t h = 0x9e3779b97f4a7c15u;
    switch (v.kind) {
    case T_BOOL:
    case T_INT:
        return mix((uint64_t)v.i);
    case T_FLOAT:
        if (fabs(v.f) < 9e18 && v.f == trunc(v.f))
            return mix((uint64_t)(int64_t)v.f);
        memcpy(&h, &v.f, sizeof h);
        return mix(h);
    case T_STR:
        apus_tpl_spend(c, v.s->length / 4 + 1);
        return hash_bytes(v.s->bytes, v.s->length);
    case T_TUPLE:
        apus_tpl_enter(c);
        for (size_t i = 0; i < v.l->n; i++)
            h = mix(h * 31 + apus_tpl_hash(c, v.l->items[i]));
        apus_tpl_leave(c);
        return h;
    case T_LIST:
    case T_DICT:
    case T_VIEW:
        apus_tpl_fail(&c->base, APUS_E_INVALID, "unhashable type: '%s'", apus_tpl_type(v));
    case T_NONE:
    case T_UNDEFINED:
        return mix((uint64_t)v.kind);
    default:
        return mix((uint64_t)(uintptr_t)v.p);
    }
}

/* ---------------------------------------------------------------- dictionaries */

enum { SMALL = 8 };

/* Where the key is (from 1), or 0; *slot: where it would go in the index. */
static size_t locate(tctx *c, const tdict *d, tval key, size_t *slot)
{
    if (d->index == NULL) {
        apus_tpl_spend(c, d->n);
        for (size_t i = 0; i < d->n; i++)
            if (apus_tpl_equal(c, d->keys[i], key))
                return i + 1;
        return 0;
    }
    size_t at = (size_t)apus_tpl_hash(c, key) & (d->index_size - 1);
    while (d->index[at] != 0) {
        if (apus_tpl_equal(c, d->keys[d->index[at] - 1], key))
            return d->index[at];
        at = (at + 1) & (d->index_size - 1);
    }
    if (slot != NULL)
        *slot = at;
    return 0;
}

static void reindex(tctx *c, tdict *d)
{
    d->index_size = d->capacity * 2;
    d->index = apus_tpl_array(&c->base, d->index_size, sizeof *d->index);
    for (size_t i = 0; i < d->n; i++) {
        size_t at = (size_t)apus_tpl_hash(c, d->keys[i]) & (d->index_size - 1);
        while (d->index[at] != 0)
            at = (at + 1) & (d->index_size - 1);
        d->index[at] = (uint32_t)(i + 1);
    }
}

tval apus_tpl_dict_get(tctx *c, const tdict *d, tval key)
{
    size_t i = locate(c, d, key, NULL);
    return i == 0 ? apus_tpl_missing() : d->values[i - 1];
}

tval apus_tpl_dict_find(tctx *c, const tdict *d, const char *key, size_t length)
{
    tstr s = {.bytes = key, .length = length, .chars = (size_t)-1};
    return apus_tpl_dict_get(c, d, apus_tpl_sval(&s));
}

void apus_tpl_dict_set(tctx *c, tdict *d, tval key, tval value)
{
    if (!apus_tpl_hashable(key))
        (void)apus_tpl_hash(c, key);
    size_t slot = 0, i = locate(c, d, key, &slot);
    if (i != 0) {
        d->values[i - 1] = value;
        return;
    }
    if (d->n == d->capacity) {
        size_t more = 8;
        while (more <= d->capacity)
            more *= 2;
        if (more > UINT32_MAX / 4)
            apus_tpl_fail(&c->base, APUS_E_MEMORY, "a dictionary of more than %zu keys", d->capacity);
        d->keys = apus_tpl_grow(&c->base, d->keys, d->n * sizeof *d->keys, more * sizeof *d->keys);
        d->values = apus_tpl_grow(&c->base, d->values, d->n * sizeof *d->values, more * sizeof *d->values);
        d->capacity = more;
        d->index = NULL;
    }
    d->keys[d->n] = key;
    d->values[d->n] = value;
    d->n++;
    if (d->index != NULL)
        d->index[slot] = (uint32_t)d->n;
    else if (d->n > SMALL) {
        size_t power = 16;
        while (power < d->capacity)
            power *= 2;
        size_t keep = d->capacity;
        d->capacity = power;
        reindex(c, d);
        d->capacity = keep;
    }
}

/* ---------------------------------------------------------------- walking */

bool apus_tpl_iterable(tval v)
{
    switch (v.kind) {
    case T_UNDEFINED:
    case T_STR:
    case T_LIST:
    case T_TUPLE:
    case T_DICT:
    case T_RANGE:
    case T_VIEW:
    case T_GENERATOR:
        return true;
    default:
        return false;
    }
}

titer apus_tpl_iterate(tctx *c, tval v)
{
    if (!apus_tpl_iterable(v))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "'%s' object is not iterable", apus_tpl_type(v));
    return (titer){.of = v};
}

static tval view_item(tctx *c, const struct tview *view, size_t i)
{
    if (view->what == T_ITEMS)
        return apus_tpl_pair(&c->base, view->dict->keys[i], view->dict->values[i]);
    return view->what == T_KEYS ? view->dict->keys[i] : view->dict->values[i];
}

bool apus_tpl_next(tctx *c, titer *it, tval *item)
{
    tval v = it->of;
    size_t i = it->next;
    apus_tpl_spend(c, 4);
    switch (v.kind) {
    case T_STR: {
        size_t from = it->at;
        if (from >= v.s->length)
            return false;
        (void)apus_tpl_decode(v.s->bytes, v.s->length, &it->at);
        *item = apus_tpl_sval(apus_tpl_part(c, v.s, from, it->at));
        item->s->markup = false;
        break;
    }
    case T_LIST:
    case T_TUPLE:
        if (i >= v.l->n)
            return false;
        *item = v.l->items[i];
        break;
    case T_DICT:
        if (i >= v.d->n)
            return false;
        *item = v.d->keys[i];
        break;
    case T_RANGE:
        if ((int64_t)i >= v.range->n)
            return false;
        *item = apus_tpl_int(apus_tpl_range_at(v.range, (int64_t)i));
        break;
    case T_VIEW:
        if (i >= v.view->dict->n)
            return false;
        *item = view_item(c, v.view, i);
        break;
    case T_GENERATOR:
        if (v.gen->next >= v.gen->items->n)
            return false;
        *item = v.gen->items->items[v.gen->next++];
        break;
    default:
        return false;
    }
    it->next++;
    return true;
}

tlist *apus_tpl_to_list(tctx *c, tval v)
{
    titer it = apus_tpl_iterate(c, v);
    int64_t n = apus_tpl_length(c, v);
    size_t capacity = n < 0 ? 8 : (size_t)n;
    tlist *l = apus_tpl_list(&c->base, capacity);
    for (tval item; apus_tpl_next(c, &it, &item);)
        apus_tpl_push(&c->base, l, &capacity, item);
    return l;
}

bool apus_tpl_contains(tctx *c, tval in, tval item)
{
    if (in.kind == T_STR) {
        if (item.kind != T_STR)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "'in <string>' requires string as left operand, not %s", apus_tpl_type(item));
        apus_tpl_spend(c, in.s->length / 8);
        return apus_tpl_find(in.s, 0, in.s->length, item.s) != (size_t)-1;
    }
    if (in.kind == T_DICT || (in.kind == T_VIEW && in.view->what == T_KEYS)) {
        (void)apus_tpl_hash(c, item);
        return apus_tpl_dict_get(c, in.kind == T_DICT ? in.d : in.view->dict, item).kind != T_MISSING;
    }
    if (!apus_tpl_iterable(in))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "argument of type '%s' is not iterable", apus_tpl_type(in));
    titer it = apus_tpl_iterate(c, in);
    for (tval other; apus_tpl_next(c, &it, &other);)
        if (apus_tpl_equal(c, other, item))
            return true;
    return false;
}

/* ---------------------------------------------------------------- from outside */

enum { NODE_DEPTH = 400 };

static tval from_node(tctx *c, const apus_node_api *api, const apus_node *n, ttag tag, int depth)
{
    if (depth > NODE_DEPTH)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "a variable is nested over %d levels deep", NODE_DEPTH);
    size_t length = 0;
    switch (api->kind(n)) {
    case APUS_NODE_BOOL:
        return apus_tpl_bool(api->as_bool(n, 0) != 0);
    case APUS_NODE_INT:
        return apus_tpl_int(api->as_int(n, 0));
    case APUS_NODE_FLOAT:
        return apus_tpl_float(api->as_float(n, 0));
    case APUS_NODE_STRING: {
        const char *bytes = api->as_string(n, &length);
        return apus_tpl_sval(apus_tpl_str(&c->base, bytes, length, tag));
    }
    case APUS_NODE_LIST: {
        length = api->length(n);
        tlist *l = apus_tpl_list(&c->base, length);
        l->content = true;
        for (; l->n < length; l->n++)
            l->items[l->n] = from_node(c, api, api->at(n, l->n), tag, depth + 1);
        return apus_tpl_lval(l);
    }
    case APUS_NODE_MAP: {
        length = api->length(n);
        tdict *d = apus_tpl_dict(&c->base, length);
        d->content = true;
        for (size_t i = 0; i < length; i++) {
            const char *key = api->key_at(n, i);
            apus_tpl_dict_set(c, d, apus_tpl_sval(apus_tpl_str(&c->base, key, strlen(key), tag)), from_node(c, api, api->at(n, i), tag, depth + 1));
        }
        return apus_tpl_dval(d);
    }
    default:
        return apus_tpl_none();
    }
}

tval apus_tpl_from_node(tctx *c, const apus_node *n, ttag tag)
{
    return from_node(c, apus_nodes(), n, tag, 0);
}
