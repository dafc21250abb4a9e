/*
 * core/template/access: attributes, subscripts and slices, with the sandbox's rules: an attribute first for a.b, an
 * item first for a["b"], and nothing that begins with an underscore or changes a list or dictionary.
 */
#include "eval.h"
#include "value.h"

#include <string.h>

static bool internal_name(const tstr *name)
{
    return name->length >= 2 && name->bytes[0] == '_' && name->bytes[1] == '_';
}

/* What the sandbox gives instead of an unsafe attribute: something that fails once it is used. */
static tval unsafe_attribute(tctx *c, tval v, const tstr *name)
{
    const char *type = apus_tpl_type(v);
    size_t n = name->length + strlen(type) + 64;
    char *message = apus_tpl_alloc(&c->base, n);
    (void)snprintf(message, n, "access to attribute '%.*s' of '%s' object is unsafe", (int)name->length, name->bytes, type);
    return apus_tpl_undefined(&c->base, message);
}

static tval cycler_next(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "next", "", 0, call, NULL);
    struct tcycler *cycler = self.cycler;
    tval v = cycler->items->items[cycler->next];
    cycler->next = (cycler->next + 1) % cycler->items->n;
    return v;
}

static tval cycler_reset(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "reset", "", 0, call, NULL);
    self.cycler->next = 0;
    return apus_tpl_none();
}

static tval method(tctx *c, tval self, const tmethod_def *def)
{
    struct tmethod *m = apus_tpl_alloc(&c->base, sizeof *m);
    *m = (struct tmethod){self, def};
    return (tval){.kind = T_METHOD, .method = m};
}

tval apus_tpl_attribute(tctx *c, tval v, const tstr *name)
{
    static const tmethod_def next = {"next", cycler_next, NULL}, reset = {"reset", cycler_reset, NULL};
    switch (v.kind) {
    case T_NAMESPACE:
        if (internal_name(name))
            return unsafe_attribute(c, v, name);
        return apus_tpl_dict_find(c, v.d, name->bytes, name->length);
    case T_LOOP:
        return apus_tpl_loop_attribute(c, v.loop, name);
    case T_MACRO:
        return apus_tpl_macro_attribute(c, v.macro, name);
    case T_CYCLER:
        if (apus_tpl_is(name, "next"))
            return method(c, v, &next);
        if (apus_tpl_is(name, "reset"))
            return method(c, v, &reset);
        if (apus_tpl_is(name, "current"))
            return v.cycler->items->items[v.cycler->next];
        return apus_tpl_missing();
    case T_JOINER:
        if (apus_tpl_is(name, "sep"))
            return apus_tpl_sval(v.joiner->separator);
        return apus_tpl_is(name, "used") ? apus_tpl_bool(v.joiner->used) : apus_tpl_missing();
    case T_TUPLE:
        if (v.l->group && apus_tpl_is(name, "grouper"))
            return v.l->items[0];
        if (v.l->group && apus_tpl_is(name, "list"))
            return v.l->items[1];
        break;
    case T_MISSING:
    case T_UNDEFINED:
        apus_tpl_use_undefined(c, v);
    default:
        break;
    }
    if (internal_name(name))
        return unsafe_attribute(c, v, name);
    const tmethod_def *def = apus_tpl_method(v.kind, name);
    if (def == NULL)
        return apus_tpl_missing();
    if (def->call != NULL)
        return method(c, v, def);
    if (def->refused == NULL)
        return unsafe_attribute(c, v, name);
    apus_tpl_fail(&c->base, APUS_E_UNSUPPORTED, "'%s.%s' is not supported in templates: %s", apus_tpl_type(v), def->name, def->refused);
}

/* obj[key] alone; T_MISSING where Python raises a TypeError or LookupError. */
static tval item(tctx *c, tval v, tval key)
{
    switch (v.kind) {
    case T_DICT:
        return apus_tpl_hashable(key) ? apus_tpl_dict_get(c, v.d, key) : apus_tpl_missing();
    case T_STR:
    case T_LIST:
    case T_TUPLE:
    case T_RANGE:
        return key.kind == T_INT || key.kind == T_BOOL ? apus_tpl_index(c, v, key.i) : apus_tpl_missing();
    case T_MISSING:
    case T_UNDEFINED:
        apus_tpl_use_undefined(c, v);
    default:
        return apus_tpl_missing();
    }
}

tval apus_tpl_getattr(tctx *c, tval v, tstr *name)
{
    tval found = apus_tpl_attribute(c, v, name);
    if (found.kind == T_MISSING)
        found = item(c, v, apus_tpl_sval(name));
    return found.kind == T_MISSING ? apus_tpl_undefined_attribute(&c->base, v.kind, name) : found;
}

tval apus_tpl_getitem(tctx *c, tval v, tval key)
{
    tval found = item(c, v, key);
    if (found.kind != T_MISSING)
        return found;
    if (key.kind == T_STR) {
        found = apus_tpl_attribute(c, v, key.s);
        if (found.kind != T_MISSING)
            return found;
        return apus_tpl_undefined_attribute(&c->base, v.kind, key.s);
    }
    tbuf b = {.c = c};
    apus_tpl_put_text(&b, v.kind == T_NONE ? "None" : apus_tpl_type(v), T_OWN);
    apus_tpl_put_text(&b, v.kind == T_NONE ? " has no element " : " object has no element ", T_OWN);
    apus_tpl_repr(&b, key, T_OWN);
    apus_tpl_put(&b, "", 1, T_OWN);
    return apus_tpl_undefined(&c->base, b.bytes);
}

tval apus_tpl_path(tctx *c, tval v, tval attribute, tval fallback)
{
    if (attribute.kind == T_NONE || attribute.kind == T_MISSING)
        return v;
    bool instead = fallback.kind != T_NONE && fallback.kind != T_MISSING;
    if (attribute.kind != T_STR) {
        v = apus_tpl_getitem(c, v, attribute);
        return instead && v.kind == T_UNDEFINED ? fallback : v;
    }
    const tstr *path = attribute.s;
    for (size_t from = 0; from <= path->length;) {
        size_t to = from;
        int64_t number = 0;
        bool digits = true;
        for (; to < path->length && path->bytes[to] != '.'; to++)
            if (path->bytes[to] < '0' || path->bytes[to] > '9' || to - from > 17)
                digits = false;
            else
                number = number * 10 + (path->bytes[to] - '0');
        tval key = digits && to > from ? apus_tpl_int(number) : apus_tpl_sval(apus_tpl_part(c, path, from, to));
        v = apus_tpl_getitem(c, v, key);
        if (instead && v.kind == T_UNDEFINED)
            v = fallback;
        from = to + 1;
    }
    return v;
}

tval apus_tpl_index(tctx *c, tval v, int64_t i)
{
    int64_t n = apus_tpl_length(c, v);
    if (i < 0)
        i += n;
    if (i < 0 || i >= n)
        return apus_tpl_missing();
    if (v.kind == T_RANGE)
        return apus_tpl_int(apus_tpl_range_at(v.range, i));
    if (v.kind == T_LIST || v.kind == T_TUPLE)
        return v.l->items[i];
    if (v.s->chars != v.s->length)
        apus_tpl_spend(c, v.s->length);
    size_t from = apus_tpl_offset(v.s, (size_t)i), to = from;
    (void)apus_tpl_decode(v.s->bytes, v.s->length, &to);
    return apus_tpl_sval(apus_tpl_part(c, v.s, from, to));
}

/* One bound of a slice, clipped as Python does. */
static int64_t bound(tctx *c, tval v, int64_t n, int64_t otherwise, bool back)
{
    if (v.kind == T_MISSING || v.kind == T_NONE)
        return otherwise;
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_INT && v.kind != T_BOOL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "slice indices must be integers or None, not %s", apus_tpl_type(v));
    int64_t i = v.i;
    if (i < 0) {
        i = i < -n ? -1 : i + n;
        return i < 0 ? (back ? -1 : 0) : i;
    }
    return i >= n ? (back ? n - 1 : n) : i;
}

tval apus_tpl_slice(tctx *c, tval v, tval start, tval stop, tval step)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_STR && v.kind != T_LIST && v.kind != T_TUPLE && v.kind != T_RANGE)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "'%s' object cannot be sliced", apus_tpl_type(v));
    int64_t n = apus_tpl_length(c, v), by = 1;
    if (step.kind != T_MISSING && step.kind != T_NONE) {
        if (step.kind != T_INT && step.kind != T_BOOL)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "slice indices must be integers or None, not %s", apus_tpl_type(step));
        by = step.i;
    }
    if (by == 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "slice step cannot be zero");
    if (by < -INT64_MAX)
        by = -INT64_MAX;
    int64_t from = bound(c, start, n, by < 0 ? n - 1 : 0, by < 0), to = bound(c, stop, n, by < 0 ? -1 : n, by < 0);
    int64_t count = by < 0 ? (to < from ? (from - to - 1) / -by + 1 : 0) : (from < to ? (to - from - 1) / by + 1 : 0);
    if (v.kind == T_RANGE) {
        struct trange *r = apus_tpl_alloc(&c->base, sizeof *r);
        if (__builtin_mul_overflow(v.range->step, by, &r->step))
            apus_tpl_fail(&c->base, APUS_E_INVALID, "the range's step overflows");
        r->start = apus_tpl_range_at(v.range, from);
        r->stop = apus_tpl_range_at(v.range, to);
        r->n = count;
        return (tval){.kind = T_RANGE, .range = r};
    }
    apus_tpl_spend(c, (uint64_t)count);
    if (v.kind != T_STR) {
        tlist *l = apus_tpl_list(&c->base, (size_t)count);
        l->content = v.l->content;
        for (; l->n < (size_t)count; from += by)
            l->items[l->n++] = v.l->items[from];
        return (tval){.kind = v.kind, .l = l};
    }
    apus_tpl_spend(c, v.s->length / 4);
    if (count == 0 || by == 1)
        return apus_tpl_sval(apus_tpl_part(c, v.s, apus_tpl_offset(v.s, (size_t)from), apus_tpl_offset(v.s, (size_t)(count == 0 ? from : to))));
    /* Byte offsets of every code point, then the wanted ones in order. */
    size_t *at = apus_tpl_array(&c->base, (size_t)n + 1, sizeof *at);
    for (size_t i = 0, byte = 0; i < (size_t)n; at[++i] = byte)
        (void)apus_tpl_decode(v.s->bytes, v.s->length, &byte);
    tbuf b = {.c = c, .markup = v.s->markup};
    for (; count > 0; count--, from += by)
        apus_tpl_put_part(&b, v.s, at[from], at[from + 1]);
    return apus_tpl_sval(apus_tpl_take(&b));
}
