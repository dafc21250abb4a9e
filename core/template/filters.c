/*
 * core/template/filters: what stands behind `|`, for text, numbers and JSON; those over sequences are in
 * filters_sequence.c.
 */
#include "filters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- text */

static tval filter_string(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "string", "", 0, call, NULL);
    return apus_tpl_sval(apus_tpl_to_str(c, v));
}

static tval cased(tctx *c, tval v, const tcall *call, const char *what, char how)
{
    apus_tpl_bind(c, what, "", 0, call, NULL);
    return apus_tpl_sval(apus_tpl_case(c, apus_tpl_to_str(c, v), how));
}
static tval filter_upper(tctx *c, tval v, const tcall *call)
{
    return cased(c, v, call, "upper", 'u');
}
static tval filter_lower(tctx *c, tval v, const tcall *call)
{
    return cased(c, v, call, "lower", 'l');
}
static tval filter_capitalize(tctx *c, tval v, const tcall *call)
{
    return cased(c, v, call, "capitalize", 'c');
}

/* Words begin after white space and - ( { [ <: the first letter up, the others down. */
static tval filter_title(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "title", "", 0, call, NULL);
    tstr *s = apus_tpl_to_str(c, v);
    tbuf b = {.c = c, .markup = s->markup};
    size_t from = 0;
    for (size_t at = 0; at <= s->length;) {
        size_t end = at;
        uint32_t ch = at < s->length ? apus_tpl_decode(s->bytes, s->length, &at) : 0;
        bool between = end >= s->length || apus_tpl_is_space(ch) || (ch < 0x80 && ch != 0 && strchr("-({[<", (int)ch));
        if (!between)
            continue;
        if (from < end) {
            size_t second = from;
            (void)apus_tpl_decode(s->bytes, s->length, &second);
            apus_tpl_put_str(&b, apus_tpl_case(c, apus_tpl_part(c, s, from, second), 'u'));
            apus_tpl_put_str(&b, apus_tpl_case(c, apus_tpl_part(c, s, second, end), 'l'));
        }
        if (end >= s->length)
            break;
        apus_tpl_put_part(&b, s, end, at);
        from = at;
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval filter_trim(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "trim", "chars", 0, call, a);
    bool given = a[0].kind != T_MISSING && a[0].kind != T_NONE;
    return apus_tpl_sval(apus_tpl_strip(c, apus_tpl_to_str(c, v), given ? apus_tpl_need_str(c, "trim", a[0]) : NULL, 3));
}

static tstr *plain(tctx *c, tstr *s)
{
    if (!s->markup)
        return s;
    s = apus_tpl_part(c, s, 0, s->length);
    s->markup = false;
    return s;
}

static tval filter_replace(tctx *c, tval v, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "replace", "old new count", 2, call, a);
    int64_t count = a[2].kind == T_MISSING || a[2].kind == T_NONE ? -1 : apus_tpl_need_int(c, "replace", a[2]);
    return apus_tpl_sval(apus_tpl_replace(c, plain(c, apus_tpl_to_str(c, v)), apus_tpl_to_str(c, a[0]), apus_tpl_to_str(c, a[1]), count));
}

static tval filter_indent(tctx *c, tval v, const tcall *call)
{
    tval a[3];
    apus_tpl_bind(c, "indent", "width first blank", 0, call, a);
    tstr *s = apus_tpl_need_str(c, "indent", v), *by;
    if (a[0].kind == T_STR)
        by = a[0].s;
    else
        by = apus_tpl_binary(c, '*', apus_tpl_sval(apus_tpl_literal(&c->base, " ")),
                             apus_tpl_int(a[0].kind == T_MISSING ? 4 : apus_tpl_need_int(c, "indent", a[0])))
                 .s;
    bool first = apus_tpl_flag(a[1], false), blank = apus_tpl_flag(a[2], false);
    tstr *whole = apus_tpl_concat(c, s, apus_tpl_str(&c->base, "\n", 1, T_OWN));
    const tlist *lines = apus_tpl_splitlines(c, whole, false), *kept = apus_tpl_splitlines(c, whole, true);
    tbuf b = {.c = c, .markup = s->markup};
    size_t at = 0;
    if (first)
        apus_tpl_put_str(&b, by);
    for (size_t i = 0; i < lines->n; at += kept->items[i++].s->length) {
        if (i > 0)
            apus_tpl_put(&b, "\n", 1, apus_tpl_tag_at(whole, at - 1));
        if (i > 0 && (blank || lines->items[i].s->length > 0))
            apus_tpl_put_str(&b, by);
        apus_tpl_put_str(&b, lines->items[i].s);
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval filter_center(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "center", "width", 0, call, a);
    const tstr name = {.bytes = "center", .length = 6};
    tval width[1] = {a[0].kind == T_MISSING ? apus_tpl_int(80) : a[0]};
    const tcall with = {.args = width, .n = 1};
    return apus_tpl_method(T_STR, &name)->call(c, apus_tpl_sval(apus_tpl_to_str(c, v)), &with);
}

static tval filter_truncate(tctx *c, tval v, const tcall *call)
{
    tval a[4];
    apus_tpl_bind(c, "truncate", "length killwords end leeway", 0, call, a);
    tstr *s = apus_tpl_need_str(c, "truncate", v);
    int64_t length = a[0].kind == T_MISSING ? 255 : apus_tpl_need_int(c, "truncate", a[0]);
    tstr *end = a[2].kind == T_MISSING ? apus_tpl_literal(&c->base, "...") : apus_tpl_need_str(c, "truncate", a[2]);
    int64_t leeway = a[3].kind == T_MISSING || a[3].kind == T_NONE ? 5 : apus_tpl_need_int(c, "truncate", a[3]);
    int64_t tail = (int64_t)apus_tpl_chars(end), n = (int64_t)apus_tpl_chars(s);
    if (length < tail || leeway < 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "truncate: a length of at least %lld and a leeway of at least 0", (long long)tail);
    if (n - length <= leeway)
        return v;
    tstr *head = apus_tpl_part(c, s, 0, apus_tpl_offset(s, (size_t)(length - tail)));
    if (!apus_tpl_flag(a[1], false))
        head = apus_tpl_split(c, head, apus_tpl_literal(&c->base, " "), 1, true)->items[0].s;
    return apus_tpl_sval(apus_tpl_concat(c, head, end));
}

static tval filter_wordcount(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "wordcount", "", 0, call, NULL);
    const tstr *s = apus_tpl_to_str(c, v);
    int64_t n = 0;
    bool inside = false;
    apus_tpl_spend(c, s->length * 4);
    for (size_t at = 0; at < s->length;) {
        bool word = apus_tpl_is_word(apus_tpl_decode(s->bytes, s->length, &at));
        n += word && !inside;
        inside = word;
    }
    return apus_tpl_int(n);
}

static tval filter_format(tctx *c, tval v, const tcall *call)
{
    if (call->n > 0 && call->n_named > 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "format: positional and keyword arguments at the same time");
    tval args;
    if (call->n_named > 0) {
        args = apus_tpl_dval(apus_tpl_dict(&c->base, call->n_named));
        for (size_t i = 0; i < call->n_named; i++)
            apus_tpl_dict_set(c, args.d, apus_tpl_sval(call->names[i]), call->values[i]);
    } else {
        tlist *l = apus_tpl_list(&c->base, call->n);
        if (call->n > 0)
            memcpy(l->items, call->args, call->n * sizeof *l->items);
        l->n = call->n;
        args = apus_tpl_tval(l);
    }
    return apus_tpl_percent(c, apus_tpl_to_str(c, v), args);
}

static tval marked(tstr *s, tctx *c)
{
    s = apus_tpl_part(c, s, 0, s->length);
    s->markup = true;
    return apus_tpl_sval(s);
}

static tval filter_safe(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "safe", "", 0, call, NULL);
    return marked(apus_tpl_to_str(c, v), c);
}

static tval filter_escape(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "escape", "", 0, call, NULL);
    tbuf b = {.c = c, .markup = true};
    apus_tpl_put_escaped(&b, apus_tpl_to_str(c, v));
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval filter_forceescape(tctx *c, tval v, const tcall *call)
{
    return filter_escape(c, apus_tpl_sval(plain(c, apus_tpl_to_str(c, v))), call);
}

/* Tags and comments go, white space becomes single spaces. Entities other than markup's own stay. */
static tval filter_striptags(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "striptags", "", 0, call, NULL);
    tstr *s = apus_tpl_to_str(c, v);
    tbuf b = {.c = c};
    apus_tpl_spend(c, s->length);
    for (size_t at = 0; at < s->length;) {
        if (s->bytes[at] == '<') {
            bool comment = s->length - at >= 4 && memcmp(s->bytes + at, "<!--", 4) == 0;
            const char *end = comment ? memmem(s->bytes + at, s->length - at, "-->", 3) : memchr(s->bytes + at, '>', s->length - at);
            if (end != NULL) {
                at = (size_t)(end - s->bytes) + (comment ? 3 : 1);
                continue;
            }
            apus_tpl_put_part(&b, s, at, at + 1);
            at++;
            continue;
        }
        const char *next = memchr(s->bytes + at, '<', s->length - at);
        size_t upto = next == NULL ? s->length : (size_t)(next - s->bytes);
        apus_tpl_put_part(&b, s, at, upto);
        at = upto;
    }
    const tlist *words = apus_tpl_split(c, apus_tpl_take(&b), NULL, -1, false);
    tbuf out = {.c = c};
    static const char *const entities[][2] = {{"&lt;", "<"}, {"&gt;", ">"}, {"&#39;", "'"}, {"&#34;", "\""}, {"&quot;", "\""}, {"&amp;", "&"}};
    for (size_t i = 0; i < words->n; i++) {
        if (i > 0)
            apus_tpl_put(&out, " ", 1, T_OWN);
        tstr *word = words->items[i].s;
        for (size_t e = 0; e < sizeof entities / sizeof *entities; e++)
            word = apus_tpl_replace(c, word, apus_tpl_literal(&c->base, entities[e][0]), apus_tpl_literal(&c->base, entities[e][1]), -1);
        apus_tpl_put_str(&out, word);
    }
    return apus_tpl_sval(apus_tpl_take(&out));
}

static void put_quoted(tbuf *b, const tstr *s, bool query)
{
    for (size_t i = 0; i < s->length; i++) {
        unsigned char ch = (unsigned char)s->bytes[i];
        ttag tag = apus_tpl_tag_at(s, i);
        bool plain_char = (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
                          (ch != 0 && strchr("_.-~", ch) != NULL) || (ch == '/' && !query);
        char text[4];
        if (plain_char)
            apus_tpl_put(b, s->bytes + i, 1, tag);
        else if (ch == ' ' && query)
            apus_tpl_put(b, "+", 1, tag);
        else {
            (void)snprintf(text, sizeof text, "%%%02X", ch);
            apus_tpl_put(b, text, 3, tag);
        }
    }
}

static tval filter_urlencode(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "urlencode", "", 0, call, NULL);
    tbuf b = {.c = c};
    if (v.kind == T_STR || !apus_tpl_iterable(v)) {
        put_quoted(&b, apus_tpl_to_str(c, v), false);
        return apus_tpl_sval(apus_tpl_take(&b));
    }
    tview_kind items = T_ITEMS;
    struct tview all = {.dict = v.d, .what = items};
    titer it = apus_tpl_iterate(c, v.kind == T_DICT ? (tval){.kind = T_VIEW, .view = &all} : v);
    size_t n = 0;
    for (tval pair; apus_tpl_next(c, &it, &pair); n++) {
        const tlist *both = apus_tpl_to_list(c, pair);
        if (both->n != 2)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "urlencode: expected pairs");
        if (n > 0)
            apus_tpl_put(&b, "&", 1, T_OWN);
        put_quoted(&b, apus_tpl_to_str(c, both->items[0]), true);
        apus_tpl_put(&b, "=", 1, T_OWN);
        put_quoted(&b, apus_tpl_to_str(c, both->items[1]), true);
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval filter_xmlattr(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "xmlattr", "autospace", 0, call, a);
    if (v.kind != T_DICT)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "xmlattr: expected a mapping, not %s", apus_tpl_type(v));
    tbuf b = {.c = c};
    for (size_t i = 0; i < v.d->n; i++) {
        if (v.d->values[i].kind == T_NONE || v.d->values[i].kind == T_UNDEFINED)
            continue;
        const tstr *key = apus_tpl_need_str(c, "xmlattr", v.d->keys[i]);
        for (size_t k = 0; k < key->length; k++)
            if (key->bytes[k] == '\0' || strchr(" \t\n\r\f\v/>=", key->bytes[k]) != NULL)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "Invalid character in attribute name");
        if (b.length > 0 || apus_tpl_flag(a[0], true))
            apus_tpl_put(&b, " ", 1, T_OWN);
        apus_tpl_put_escaped(&b, key);
        apus_tpl_put(&b, "=\"", 2, T_OWN);
        apus_tpl_put_escaped(&b, apus_tpl_to_str(c, v.d->values[i]));
        apus_tpl_put(&b, "\"", 1, T_OWN);
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

/* ---------------------------------------------------------------- numbers */

/* Python's float(v); false: a TypeError or ValueError. */
static bool as_float(tctx *c, tval v, double *out)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind == T_STR)
        return apus_tpl_parse_float(v.s, out);
    if (v.kind != T_INT && v.kind != T_BOOL && v.kind != T_FLOAT)
        return false;
    *out = v.kind == T_FLOAT ? v.f : (double)v.i;
    return true;
}

T_NORETURN static void too_wide(tctx *c)
{
    apus_tpl_fail(&c->base, APUS_E_INVALID, "int: the number does not fit 64 bits");
}

static tval filter_int(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "int", "default base", 0, call, a);
    int64_t base = a[1].kind == T_MISSING ? 10 : apus_tpl_need_int(c, "int", a[1]), n;
    bool overflow = false;
    if (v.kind == T_INT || v.kind == T_BOOL)
        return apus_tpl_int(v.i);
    if (v.kind == T_STR && apus_tpl_parse_int(v.s, base < 0 || base > 36 ? 1 : (int)base, &n, &overflow)) {
        if (overflow)
            too_wide(c);
        return apus_tpl_int(n);
    }
    double f;
    if (!as_float(c, v, &f) || isnan(f) || isinf(f))
        return a[0].kind == T_MISSING ? apus_tpl_int(0) : a[0];
    if (f >= 9223372036854775808.0 || f < -9223372036854775808.0)
        too_wide(c);
    return apus_tpl_int((int64_t)f);
}

static tval filter_float(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "float", "default", 0, call, a);
    double f;
    if (as_float(c, v, &f))
        return apus_tpl_float(f);
    return a[0].kind == T_MISSING ? apus_tpl_float(0) : a[0];
}

static tval filter_abs(tctx *c, tval v, const tcall *call)
{
    apus_tpl_bind(c, "abs", "", 0, call, NULL);
    if (v.kind == T_FLOAT)
        return apus_tpl_float(fabs(v.f));
    int64_t n = apus_tpl_need_int(c, "abs", v);
    if (n == INT64_MIN)
        too_wide(c);
    return apus_tpl_int(n < 0 ? -n : n);
}

/* Python's round(v, digits): exact decimal, ties to even. */
static double rounded(double v, int64_t digits)
{
    if (!isfinite(v) || digits > 323)
        return v;
    if (digits < -308)
        return copysign(0, v);
    char text[700];
    if (digits < 0) { /* as many significant digits as stay: printf rounds them exactly */
        (void)snprintf(text, sizeof text, "%.20e", v);
        int kept = atoi(strchr(text, 'e') + 1) + (int)digits;
        if (kept >= 0)
            (void)snprintf(text, sizeof text, "%.*e", kept, v);
        else
            (void)snprintf(text, sizeof text, "%de%d", kept == -1 && fabs(v) > 0.5 * pow(10, (double)-digits), -(int)digits);
        return kept >= 0 ? strtod(text, NULL) : copysign(strtod(text, NULL), v);
    }
    (void)snprintf(text, sizeof text, "%.*f", (int)digits, v);
    return strtod(text, NULL);
}

static int64_t rounded_int(tctx *c, int64_t v, int64_t digits)
{
    if (digits >= 0)
        return v;
    if (digits < -18)
        return 0;
    int64_t scale = 1;
    for (; digits < 0; digits++)
        scale *= 10;
    int64_t rest = v % scale, base = v - rest, half = scale / 2;
    if (rest < 0) {
        rest += scale;
        if (__builtin_sub_overflow(base, scale, &base))
            too_wide(c);
    }
    bool up = rest > half || (rest == half && (base / scale) % 2 != 0);
    if (up && __builtin_add_overflow(base, scale, &base))
        too_wide(c);
    return base;
}

static tval filter_round(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "round", "precision method", 0, call, a);
    int64_t digits = a[0].kind == T_MISSING ? 0 : apus_tpl_need_int(c, "round", a[0]);
    const tstr *method = a[1].kind == T_MISSING ? NULL : apus_tpl_need_str(c, "round", a[1]);
    if (v.kind != T_FLOAT)
        (void)apus_tpl_need_int(c, "round", v);
    if (method == NULL || apus_tpl_is(method, "common"))
        return v.kind == T_FLOAT ? apus_tpl_float(rounded(v.f, digits)) : apus_tpl_int(rounded_int(c, v.i, digits));
    if (!apus_tpl_is(method, "ceil") && !apus_tpl_is(method, "floor"))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "round: method must be common, ceil or floor");
    tval scale = apus_tpl_binary(c, 'p', apus_tpl_int(10), apus_tpl_int(digits));
    tval scaled = apus_tpl_binary(c, '*', v, scale);
    if (scaled.kind == T_FLOAT) {
        double whole = apus_tpl_is(method, "ceil") ? ceil(scaled.f) : floor(scaled.f);
        if (!(fabs(whole) < 9.2e18))
            too_wide(c);
        scaled = apus_tpl_int((int64_t)whole);
    }
    return apus_tpl_binary(c, '/', scaled, scale);
}

static tval filter_filesizeformat(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "filesizeformat", "binary", 0, call, a);
    double bytes, base = apus_tpl_flag(a[0], false) ? 1024 : 1000, unit = base;
    if (!as_float(c, v, &bytes) || isnan(bytes) || isinf(bytes))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "filesizeformat: expected a number, not %s", apus_tpl_type(v));
    char text[400];
    if (bytes == 1)
        (void)snprintf(text, sizeof text, "1 Byte");
    else if (bytes < base)
        (void)snprintf(text, sizeof text, "%.0f Bytes", trunc(bytes));
    else {
        static const char letters[] = "kMGTPEZY";
        size_t i = 0;
        for (; i < 7; i++) {
            unit *= base;
            if (bytes < unit)
                break;
        }
        if (i == 7)
            unit *= base;
        char letter = base == 1024 && i == 0 ? 'K' : letters[i];
        (void)snprintf(text, sizeof text, "%.1f %c%sB", base * bytes / unit, letter, base == 1024 ? "i" : "");
    }
    return apus_tpl_sval(apus_tpl_str(&c->base, strcpy(apus_tpl_alloc(&c->base, strlen(text) + 1), text), strlen(text), T_OWN));
}

/* ---------------------------------------------------------------- any value */

static tval filter_default(tctx *c, tval v, const tcall *call)
{
    tval a[2];
    apus_tpl_bind(c, "default", "default_value boolean", 0, call, a);
    if (v.kind != T_UNDEFINED && (!apus_tpl_flag(a[1], false) || apus_tpl_truth(v)))
        return v;
    return a[0].kind == T_MISSING ? apus_tpl_sval(apus_tpl_literal(&c->base, "")) : a[0];
}

static tval filter_attr(tctx *c, tval v, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "attr", "name", 1, call, a);
    const tstr *name = apus_tpl_need_str(c, "attr", a[0]);
    tval found = apus_tpl_attribute(c, v, name);
    return found.kind == T_MISSING ? apus_tpl_undefined_attribute(&c->base, v.kind, name) : found;
}

static tval filter_tojson(tctx *c, tval v, const tcall *call)
{
    tval a[4];
    apus_tpl_bind(c, "tojson", "ensure_ascii indent separators sort_keys", 0, call, a);
    tjson how = {.ascii = apus_tpl_flag(a[0], false), .sort = apus_tpl_flag(a[3], false)};
    if (a[1].kind == T_STR)
        how.indent = a[1].s;
    else if (a[1].kind != T_MISSING && a[1].kind != T_NONE)
        how.indent =
            apus_tpl_binary(c, '*', apus_tpl_sval(apus_tpl_literal(&c->base, " ")), apus_tpl_int(apus_tpl_need_int(c, "tojson: indent", a[1]))).s;
    if (a[2].kind != T_MISSING && a[2].kind != T_NONE) {
        const tlist *both = apus_tpl_to_list(c, a[2]);
        if (both->n != 2)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "tojson: separators are two strings");
        how.item = apus_tpl_need_str(c, "tojson: separators", both->items[0]);
        how.key = apus_tpl_need_str(c, "tojson: separators", both->items[1]);
    }
    tbuf b = {.c = c};
    apus_tpl_json(&b, v, &how);
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval refused(tctx *c, tval v, const tcall *call)
{
    (void)v;
    (void)call;
    apus_tpl_fail(&c->base, APUS_E_UNSUPPORTED, "the filters pprint, random, urlize and wordwrap are not supported in chat templates");
}

static const tfilter filters[] = {
    {"string", filter_string},
    {"upper", filter_upper},
    {"lower", filter_lower},
    {"capitalize", filter_capitalize},
    {"title", filter_title},
    {"trim", filter_trim},
    {"replace", filter_replace},
    {"indent", filter_indent},
    {"center", filter_center},
    {"truncate", filter_truncate},
    {"wordcount", filter_wordcount},
    {"format", filter_format},
    {"safe", filter_safe},
    {"escape", filter_escape},
    {"e", filter_escape},
    {"forceescape", filter_forceescape},
    {"striptags", filter_striptags},
    {"urlencode", filter_urlencode},
    {"xmlattr", filter_xmlattr},
    {"int", filter_int},
    {"float", filter_float},
    {"abs", filter_abs},
    {"round", filter_round},
    {"filesizeformat", filter_filesizeformat},
    {"default", filter_default},
    {"d", filter_default},
    {"attr", filter_attr},
    {"tojson", filter_tojson},
    {"pprint", refused},
    {"random", refused},
    {"urlize", refused},
    {"wordwrap", refused},
};

const tfilter *apus_tpl_filter(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strlen(filters[i].name) == length && memcmp(filters[i].name, name, length) == 0)
            return &filters[i];
    return apus_tpl_sequence_filter(name, length);
}
