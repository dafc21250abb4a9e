/*
 * core/template/functions: binding the arguments of calls, and the functions every template can call: range, dict,
 * namespace, cycler, joiner, raise_exception, strftime_now.
 */
#include "value.h"

#include <string.h>
#include <time.h>

/* ---------------------------------------------------------------- arguments */

void apus_tpl_bind(tctx *c, const char *what, const char *params, size_t required, const tcall *call, tval *out)
{
    size_t n = 0;
    for (const char *p = params; *p != '\0'; n++) {
        size_t length = strcspn(p, " ");
        tval v = n < call->n ? call->args[n] : apus_tpl_missing();
        for (size_t i = 0; i < call->n_named; i++) {
            if (call->names[i]->length != length || memcmp(call->names[i]->bytes, p, length) != 0)
                continue;
            if (v.kind != T_MISSING)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "%s got two values for argument '%.*s'", what, (int)length, p);
            v = call->values[i];
        }
        if (v.kind == T_MISSING && n < required)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "%s misses its argument '%.*s'", what, (int)length, p);
        out[n] = v;
        p += length + (p[length] == ' ' ? 1 : 0);
    }
    if (call->n > n)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s takes at most %zu argument%s, not %zu", what, n, n == 1 ? "" : "s", call->n);
    for (size_t i = 0; i < call->n_named; i++) {
        bool known = false;
        for (const char *p = params; *p != '\0' && !known;) {
            size_t length = strcspn(p, " ");
            known = call->names[i]->length == length && memcmp(call->names[i]->bytes, p, length) == 0;
            p += length + (p[length] == ' ' ? 1 : 0);
        }
        if (!known)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "%s has no argument '%.*s'%s%s", what, (int)call->names[i]->length, call->names[i]->bytes,
                          n == 0 ? "" : "; it has: ", params);
    }
}

tstr *apus_tpl_need_str(tctx *c, const char *what, tval v)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_STR)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: expected a str, not %s", what, apus_tpl_type(v));
    return v.s;
}

int64_t apus_tpl_need_int(tctx *c, const char *what, tval v)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_INT && v.kind != T_BOOL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: expected an int, not %s", what, apus_tpl_type(v));
    return v.i;
}

bool apus_tpl_flag(tval v, bool fallback)
{
    return v.kind == T_MISSING ? fallback : apus_tpl_truth(v);
}

/* ---------------------------------------------------------------- range, dict, namespace, cycler, joiner */

enum { MOST_RANGE = 100000 }; /* as the sandbox */

static tval make_range(tctx *c, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "range", "start stop step", 1, call, a);
    struct trange *r = apus_tpl_alloc(&c->base, sizeof *r);
    r->start = apus_tpl_need_int(c, "range", a[0]);
    if (a[1].kind == T_MISSING) {
        r->stop = r->start;
        r->start = 0;
    } else
        r->stop = apus_tpl_need_int(c, "range", a[1]);
    r->step = a[2].kind == T_MISSING ? 1 : apus_tpl_need_int(c, "range", a[2]);
    if (r->step == 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "range: the step must not be zero");
    uint64_t span = 0, step = r->step < 0 ? 0 - (uint64_t)r->step : (uint64_t)r->step;
    if (r->step > 0 && r->start < r->stop)
        span = (uint64_t)r->stop - (uint64_t)r->start;
    else if (r->step < 0 && r->start > r->stop)
        span = (uint64_t)r->start - (uint64_t)r->stop;
    uint64_t n = span == 0 ? 0 : (span - 1) / step + 1;
    if (n > MOST_RANGE)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "Range too big: more than %d items", MOST_RANGE);
    r->n = (int64_t)n;
    return (tval){.kind = T_RANGE, .range = r};
}

/* dict(mapping or pairs, name=value, …) */
static tdict *build_dict(tctx *c, const char *what, const tcall *call)
{
    tdict *d = apus_tpl_dict(&c->base, 4);
    if (call->n > 1)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s expected at most 1 argument, got %zu", what, call->n);
    if (call->n == 1 && call->args[0].kind == T_DICT) {
        const tdict *from = call->args[0].d;
        for (size_t i = 0; i < from->n; i++)
            apus_tpl_dict_set(c, d, from->keys[i], from->values[i]);
    } else if (call->n == 1) {
        titer it = apus_tpl_iterate(c, call->args[0]);
        for (tval pair; apus_tpl_next(c, &it, &pair);) {
            const tlist *both = apus_tpl_to_list(c, pair);
            if (both->n != 2)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: an element has %zu items; 2 are required", what, both->n);
            apus_tpl_dict_set(c, d, both->items[0], both->items[1]);
        }
    }
    for (size_t i = 0; i < call->n_named; i++)
        apus_tpl_dict_set(c, d, apus_tpl_sval(call->names[i]), call->values[i]);
    return d;
}

static tval make_dict(tctx *c, const tcall *call)
{
    return apus_tpl_dval(build_dict(c, "dict", call));
}

static tval make_namespace(tctx *c, const tcall *call)
{
    tdict *d = build_dict(c, "namespace", call);
    for (size_t i = 0; i < d->n; i++)
        if (d->keys[i].kind == T_STR && d->keys[i].s->length > 0 && d->keys[i].s->bytes[0] == '_')
            apus_tpl_fail(&c->base, APUS_E_INVALID, "a namespace's attribute must not begin with an underscore");
    return (tval){.kind = T_NAMESPACE, .d = d};
}

static tval make_cycler(tctx *c, const tcall *call)
{
    if (call->n == 0 || call->n_named != 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "cycler: at least one item has to be provided");
    struct tcycler *cycler = apus_tpl_alloc(&c->base, sizeof *cycler);
    cycler->items = apus_tpl_list(&c->base, call->n);
    memcpy(cycler->items->items, call->args, call->n * sizeof *call->args);
    cycler->items->n = call->n;
    return (tval){.kind = T_CYCLER, .cycler = cycler};
}

static tval make_joiner(tctx *c, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "joiner", "sep", 0, call, a);
    struct tjoiner *joiner = apus_tpl_alloc(&c->base, sizeof *joiner);
    joiner->separator = a[0].kind == T_MISSING ? apus_tpl_literal(&c->base, ", ") : apus_tpl_need_str(c, "joiner", a[0]);
    return (tval){.kind = T_JOINER, .joiner = joiner};
}

/* ---------------------------------------------------------------- raise_exception, strftime_now */

static tval raise_exception(tctx *c, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "raise_exception", "message", 1, call, a);
    tstr *s = apus_tpl_to_str(c, a[0]);
    apus_tpl_fail(&c->base, APUS_E_INVALID, "%.*s", (int)(s->length > 1000 ? 1000 : s->length), s->bytes);
}

/* One directive at a time, so that every answer has a known bound. */
static tval strftime_now(tctx *c, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "strftime_now", "format", 1, call, a);
    const tstr *f = apus_tpl_need_str(c, "strftime_now", a[0]);
    time_t now = (time_t)c->now;
    struct tm parts;
    if (gmtime_r(&now, &parts) == NULL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "strftime_now: the time is out of range");
    tbuf b = {.c = c};
    for (size_t at = 0; at < f->length;) {
        if (f->bytes[at] != '%' || at + 1 >= f->length) {
            apus_tpl_put_part(&b, f, at, at + 1);
            at++;
            continue;
        }
        size_t n = 1;
        n += strchr("-_0^#EO", f->bytes[at + n]) != NULL && at + n + 1 < f->length ? 1u : 0u;
        char kind = f->bytes[at + n], directive[4] = "%", text[128];
        ttag tag = apus_tpl_tag_at(f, at);
        memcpy(directive + 1, f->bytes + at + 1, n);
        if (kind == 'f' && n == 1)
            apus_tpl_put_text(&b, "000000", tag);
        else if (kind == '%')
            apus_tpl_put(&b, "%", 1, tag);
        else if (kind != 'z' && kind != 'Z') {
            if (kind == '\0' || strchr("aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyY", kind) == NULL)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "strftime_now: unknown directive '%%%c'", kind);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            apus_tpl_put(&b, text, strftime(text, sizeof text, directive, &parts), tag);
#pragma GCC diagnostic pop
        }
        at += n + 1;
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

static const struct tfunction globals[] = {
    {"range", make_range},          {"dict", make_dict},     {"namespace", make_namespace},
    {"cycler", make_cycler},        {"joiner", make_joiner}, {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

const struct tfunction *apus_tpl_global(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (strlen(globals[i].name) == length && memcmp(globals[i].name, name, length) == 0)
            return &globals[i];
    return NULL;
}
