/*
 * core/template/methods: the methods of strings, lists, tuples, dictionaries and ranges, as Python names them.
 * What would change a list or dictionary is known and refused, as the immutable sandbox does.
 */
#include "value.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

/* ---------------------------------------------------------------- strings */

#define ARGS(what, params, required, n)                                                                                                              \
    tval a[(n) + 1];                                                                                                                                 \
    apus_tpl_bind(c, what, params, required, call, a)

static tval cased(tctx *c, tval self, const tcall *call, const char *what, char how)
{
    apus_tpl_bind(c, what, "", 0, call, NULL);
    return apus_tpl_sval(apus_tpl_case(c, self.s, how));
}
static tval str_upper(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "upper", 'u');
}
static tval str_lower(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "lower", 'l');
}
static tval str_title(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "title", 't');
}
static tval str_capitalize(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "capitalize", 'c');
}
static tval str_swapcase(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "swapcase", 's');
}
static tval str_casefold(tctx *c, tval self, const tcall *call)
{
    return cased(c, self, call, "casefold", 'f');
}

static tval stripped(tctx *c, tval self, const tcall *call, const char *what, int sides)
{
    ARGS(what, "chars", 0, 1);
    bool given = a[0].kind != T_MISSING && a[0].kind != T_NONE;
    return apus_tpl_sval(apus_tpl_strip(c, self.s, given ? apus_tpl_need_str(c, what, a[0]) : NULL, sides));
}
static tval str_strip(tctx *c, tval self, const tcall *call)
{
    return stripped(c, self, call, "strip", 3);
}
static tval str_lstrip(tctx *c, tval self, const tcall *call)
{
    return stripped(c, self, call, "lstrip", 1);
}
static tval str_rstrip(tctx *c, tval self, const tcall *call)
{
    return stripped(c, self, call, "rstrip", 2);
}

static tval split(tctx *c, tval self, const tcall *call, const char *what, bool from_right)
{
    ARGS(what, "sep maxsplit", 0, 2);
    bool given = a[0].kind != T_MISSING && a[0].kind != T_NONE;
    tstr *separator = given ? apus_tpl_need_str(c, what, a[0]) : NULL;
    int64_t most = a[1].kind == T_MISSING ? -1 : apus_tpl_need_int(c, what, a[1]);
    return apus_tpl_lval(apus_tpl_split(c, self.s, separator, most, from_right));
}
static tval str_split(tctx *c, tval self, const tcall *call)
{
    return split(c, self, call, "split", false);
}
static tval str_rsplit(tctx *c, tval self, const tcall *call)
{
    return split(c, self, call, "rsplit", true);
}

static tval str_splitlines(tctx *c, tval self, const tcall *call)
{
    ARGS("splitlines", "keepends", 0, 1);
    return apus_tpl_lval(apus_tpl_splitlines(c, self.s, a[0].kind != T_MISSING && apus_tpl_need_int(c, "splitlines", a[0]) != 0));
}

static tval partition(tctx *c, tval self, const tcall *call, bool back)
{
    ARGS("partition", "sep", 1, 1);
    tstr *separator = apus_tpl_need_str(c, "partition", a[0]);
    tlist *parts = apus_tpl_split(c, self.s, separator, 1, back), *l = apus_tpl_list(&c->base, 3);
    tval empty = apus_tpl_sval(apus_tpl_literal(&c->base, ""));
    l->n = 3;
    l->items[0] = l->items[1] = l->items[2] = empty;
    if (parts->n == 1)
        l->items[back ? 2 : 0] = self;
    else {
        l->items[0] = parts->items[0];
        l->items[1] = a[0];
        l->items[2] = parts->items[1];
    }
    return apus_tpl_tval(l);
}
static tval str_partition(tctx *c, tval self, const tcall *call)
{
    return partition(c, self, call, false);
}
static tval str_rpartition(tctx *c, tval self, const tcall *call)
{
    return partition(c, self, call, true);
}

/* A start or end argument as a byte. */
static size_t byte_bound(tctx *c, tstr *s, tval v, size_t otherwise)
{
    if (v.kind == T_MISSING || v.kind == T_NONE)
        return otherwise;
    int64_t i = apus_tpl_need_int(c, "a string's bound", v), n = (int64_t)apus_tpl_chars(s);
    if (i < 0)
        i = i + n < 0 ? 0 : i + n;
    return apus_tpl_offset(s, (size_t)i);
}

static bool start_beyond(tctx *c, tstr *s, tval v)
{
    return v.kind != T_MISSING && v.kind != T_NONE && apus_tpl_need_int(c, "a string's bound", v) > (int64_t)apus_tpl_chars(s);
}

/* startswith, endswith: one string or a tuple of them. */
static tval affix(tctx *c, tval self, const tcall *call, const char *what, bool end)
{
    ARGS(what, "prefix start end", 1, 3);
    size_t from = byte_bound(c, self.s, a[1], 0), to = byte_bound(c, self.s, a[2], self.s->length);
    bool beyond = start_beyond(c, self.s, a[1]) || from > to;
    tval one[1] = {a[0]};
    tlist alone = {.items = one, .n = 1};
    const tlist *all = a[0].kind == T_TUPLE ? a[0].l : &alone;
    for (size_t i = 0; i < all->n; i++) {
        const tstr *s = apus_tpl_need_str(c, what, all->items[i]);
        if (!beyond && s->length <= to - from && memcmp(self.s->bytes + (end ? to - s->length : from), s->bytes, s->length) == 0)
            return apus_tpl_bool(true);
    }
    return apus_tpl_bool(false);
}
static tval str_startswith(tctx *c, tval self, const tcall *call)
{
    return affix(c, self, call, "startswith", false);
}
static tval str_endswith(tctx *c, tval self, const tcall *call)
{
    return affix(c, self, call, "endswith", true);
}

static int64_t find(tctx *c, tval self, const tcall *call, const char *what, bool back)
{
    ARGS(what, "sub start end", 1, 3);
    const tstr *sub = apus_tpl_need_str(c, what, a[0]);
    size_t from = byte_bound(c, self.s, a[1], 0), to = byte_bound(c, self.s, a[2], self.s->length);
    apus_tpl_spend(c, self.s->length);
    if (start_beyond(c, self.s, a[1]))
        return -1;
    size_t found = apus_tpl_find(self.s, from, to, sub);
    if (found == (size_t)-1)
        return -1;
    if (back && sub->length == 0)
        found = to;
    for (size_t next = found; back && sub->length > 0 && next != (size_t)-1;) {
        found = next;
        apus_tpl_spend(c, 8);
        next = apus_tpl_find(self.s, found + 1, to, sub);
    }
    tstr head = {.bytes = self.s->bytes, .length = found, .chars = (size_t)-1};
    return (int64_t)apus_tpl_chars(&head);
}
static tval str_find(tctx *c, tval self, const tcall *call)
{
    return apus_tpl_int(find(c, self, call, "find", false));
}
static tval str_rfind(tctx *c, tval self, const tcall *call)
{
    return apus_tpl_int(find(c, self, call, "rfind", true));
}
static tval found(tctx *c, int64_t i)
{
    if (i < 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "substring not found");
    return apus_tpl_int(i);
}
static tval str_index(tctx *c, tval self, const tcall *call)
{
    return found(c, find(c, self, call, "index", false));
}
static tval str_rindex(tctx *c, tval self, const tcall *call)
{
    return found(c, find(c, self, call, "rindex", true));
}

static tval str_count(tctx *c, tval self, const tcall *call)
{
    ARGS("count", "sub start end", 1, 3);
    const tstr *sub = apus_tpl_need_str(c, "count", a[0]);
    size_t from = byte_bound(c, self.s, a[1], 0), to = byte_bound(c, self.s, a[2], self.s->length);
    int64_t n = 0;
    apus_tpl_spend(c, self.s->length);
    if (start_beyond(c, self.s, a[1]) || from > to)
        return apus_tpl_int(0);
    if (sub->length == 0) {
        tstr part = {.bytes = self.s->bytes + from, .length = to - from, .chars = (size_t)-1};
        return apus_tpl_int((int64_t)apus_tpl_chars(&part) + 1);
    }
    for (; (from = apus_tpl_find(self.s, from, to, sub)) != (size_t)-1; from += sub->length)
        n++;
    return apus_tpl_int(n);
}

static tval str_replace(tctx *c, tval self, const tcall *call)
{
    ARGS("replace", "old new count", 2, 3);
    int64_t count = a[2].kind == T_MISSING ? -1 : apus_tpl_need_int(c, "replace", a[2]);
    return apus_tpl_sval(apus_tpl_replace(c, self.s, apus_tpl_need_str(c, "replace", a[0]), apus_tpl_need_str(c, "replace", a[1]), count));
}

static tval str_join(tctx *c, tval self, const tcall *call)
{
    ARGS("join", "iterable", 1, 1);
    tbuf b = {.c = c, .markup = self.s->markup};
    titer it = apus_tpl_iterate(c, a[0]);
    size_t i = 0;
    for (tval item; apus_tpl_next(c, &it, &item); i++) {
        if (item.kind != T_STR && b.markup)
            item = apus_tpl_sval(apus_tpl_to_str(c, item));
        if (item.kind != T_STR)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "join: item %zu: expected a str, not %s", i, apus_tpl_type(item));
        if (i > 0)
            apus_tpl_put_str(&b, self.s);
        if (b.markup)
            apus_tpl_put_escaped(&b, item.s);
        else
            apus_tpl_put_str(&b, item.s);
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval str_format(tctx *c, tval self, const tcall *call)
{
    return apus_tpl_format(c, self.s, call);
}

static tval str_format_map(tctx *c, tval self, const tcall *call)
{
    ARGS("format_map", "mapping", 1, 1);
    if (a[0].kind != T_DICT)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "format_map: expected a mapping, not %s", apus_tpl_type(a[0]));
    const tdict *d = a[0].d;
    tstr **names = apus_tpl_array(&c->base, d->n, sizeof *names);
    tcall named = {.names = names, .values = d->values};
    tval *values = apus_tpl_array(&c->base, d->n, sizeof *values);
    for (size_t i = 0; i < d->n; i++)
        if (d->keys[i].kind == T_STR) {
            names[named.n_named] = d->keys[i].s;
            values[named.n_named++] = d->values[i];
        }
    named.values = values;
    return apus_tpl_format(c, self.s, &named);
}

static tval remove_affix(tctx *c, tval self, const tcall *call, const char *what, bool end)
{
    ARGS(what, "affix", 1, 1);
    const tstr *x = apus_tpl_need_str(c, what, a[0]);
    tstr *s = self.s;
    if (x->length == 0 || x->length > s->length || memcmp(s->bytes + (end ? s->length - x->length : 0), x->bytes, x->length) != 0)
        return self;
    return apus_tpl_sval(end ? apus_tpl_part(c, s, 0, s->length - x->length) : apus_tpl_part(c, s, x->length, s->length));
}
static tval str_removeprefix(tctx *c, tval self, const tcall *call)
{
    return remove_affix(c, self, call, "removeprefix", false);
}
static tval str_removesuffix(tctx *c, tval self, const tcall *call)
{
    return remove_affix(c, self, call, "removesuffix", true);
}

/* Pad to a width: `left` of the missing columns in front. */
static tval padded(tctx *c, tval self, const tcall *call, const char *what, char side)
{
    ARGS(what, "width fillchar", 1, 2);
    int64_t width = apus_tpl_need_int(c, what, a[0]), room = width - (int64_t)apus_tpl_chars(self.s);
    const tstr *fill = apus_tpl_literal(&c->base, " ");
    if (a[1].kind != T_MISSING) {
        tstr *given = apus_tpl_need_str(c, what, a[1]);
        if (apus_tpl_chars(given) != 1)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: the fill character must be exactly one character long", what);
        fill = given;
    }
    if (room <= 0)
        return self;
    int64_t left = side == 'r' ? 0 : side == 'l' ? room : room / 2 + (room & width & 1);
    tbuf b = {.c = c, .markup = self.s->markup};
    for (int64_t i = 0; i < left; i++)
        apus_tpl_put_str(&b, fill);
    apus_tpl_put_str(&b, self.s);
    for (int64_t i = left; i < room; i++)
        apus_tpl_put_str(&b, fill);
    return apus_tpl_sval(apus_tpl_take(&b));
}
static tval str_center(tctx *c, tval self, const tcall *call)
{
    return padded(c, self, call, "center", 'c');
}
static tval str_ljust(tctx *c, tval self, const tcall *call)
{
    return padded(c, self, call, "ljust", 'r');
}
static tval str_rjust(tctx *c, tval self, const tcall *call)
{
    return padded(c, self, call, "rjust", 'l');
}

static tval str_zfill(tctx *c, tval self, const tcall *call)
{
    ARGS("zfill", "width", 1, 1);
    int64_t room = apus_tpl_need_int(c, "zfill", a[0]) - (int64_t)apus_tpl_chars(self.s);
    size_t sign = self.s->length > 0 && (self.s->bytes[0] == '-' || self.s->bytes[0] == '+');
    tbuf b = {.c = c, .markup = self.s->markup};
    apus_tpl_put_part(&b, self.s, 0, sign);
    for (; room > 0; room--)
        apus_tpl_put(&b, "0", 1, T_OWN);
    apus_tpl_put_part(&b, self.s, sign, self.s->length);
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval str_expandtabs(tctx *c, tval self, const tcall *call)
{
    ARGS("expandtabs", "tabsize", 0, 1);
    int64_t size = a[0].kind == T_MISSING ? 8 : apus_tpl_need_int(c, "expandtabs", a[0]), column = 0;
    tbuf b = {.c = c, .markup = self.s->markup};
    for (size_t at = 0; at < self.s->length;) {
        size_t from = at;
        uint32_t ch = apus_tpl_decode(self.s->bytes, self.s->length, &at);
        if (ch == '\t') {
            for (int64_t n = size > 0 ? size - column % size : 0; n > 0; n--, column++)
                apus_tpl_put(&b, " ", 1, apus_tpl_tag_at(self.s, from));
            continue;
        }
        apus_tpl_put_part(&b, self.s, from, at);
        column = ch == '\n' || ch == '\r' ? 0 : column + 1;
    }
    return apus_tpl_sval(apus_tpl_take(&b));
}

/* One answer for all of a string's characters; an empty string is none of them. */
static bool digit_like(uint32_t c)
{
    static const struct {
        uint32_t first, last;
    } ranges[] = {{0xb2, 0xb3},     {0xb9, 0xb9},     {0x1369, 0x1371},   {0x19da, 0x19da},   {0x2070, 0x2070},   {0x2074, 0x2079},  {0x2080, 0x2089},
                  {0x2460, 0x2468}, {0x2474, 0x247c}, {0x2488, 0x2490},   {0x24ea, 0x24ea},   {0x24f5, 0x24fd},   {0x24ff, 0x24ff},  {0x2776, 0x277e},
                  {0x2780, 0x2788}, {0x278a, 0x2792}, {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (c >= ranges[i].first && c <= ranges[i].last)
            return true;
    return false;
}

static bool in_class(uint32_t c, char class)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    bool letter = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
    switch (class) {
    case 'a':
        return letter;
    case 'n':
        return letter || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
    case 'd':
        return k == UTF8PROC_CATEGORY_ND || digit_like(c);
    case 'D':
        return k == UTF8PROC_CATEGORY_ND;
    case 'N':
        return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
    case 's':
        return apus_tpl_is_space(c);
    case 'A':
        return c < 0x80;
    default:
        return apus_tpl_is_printable(c);
    }
}

static tval is_class(tctx *c, tval self, const tcall *call, char class)
{
    apus_tpl_bind(c, "this method", "", 0, call, NULL);
    apus_tpl_spend(c, self.s->length * 4);
    for (size_t at = 0; at < self.s->length;)
        if (!in_class(apus_tpl_decode(self.s->bytes, self.s->length, &at), class))
            return apus_tpl_bool(false);
    return apus_tpl_bool(self.s->length > 0 || class == 'A' || class == 'p');
}
#define IS(name, class)                                                                                                                              \
    static tval str_##name(tctx *c, tval self, const tcall *call)                                                                                    \
    {                                                                                                                                                \
        return is_class(c, self, call, class);                                                                                                       \
    }
IS(isalpha, 'a')
IS(isalnum, 'n')
IS(isdigit, 'd')
IS(isdecimal, 'D')
IS(isnumeric, 'N')
IS(isspace, 's')
IS(isascii, 'A')
IS(isprintable, 'p')

static tval is_case(tctx *c, tval self, const tcall *call, char how)
{
    apus_tpl_bind(c, "this method", "", 0, call, NULL);
    apus_tpl_spend(c, self.s->length * 4);
    bool any = false, inside = false;
    for (size_t at = 0; at < self.s->length;) {
        uint32_t ch = apus_tpl_decode(self.s->bytes, self.s->length, &at);
        char which = apus_tpl_case_of(ch);
        bool upper = which == 'u' || which == 't', lower = which == 'l';
        if ((how == 'l' && upper) || (how == 'u' && (lower || which == 't')) || (how == 't' && ((upper && inside) || (lower && !inside))))
            return apus_tpl_bool(false);
        inside = upper || lower;
        any = any || inside;
    }
    return apus_tpl_bool(any);
}
static tval str_islower(tctx *c, tval self, const tcall *call)
{
    return is_case(c, self, call, 'l');
}
static tval str_isupper(tctx *c, tval self, const tcall *call)
{
    return is_case(c, self, call, 'u');
}
static tval str_istitle(tctx *c, tval self, const tcall *call)
{
    return is_case(c, self, call, 't');
}

static tval str_isidentifier(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "isidentifier", "", 0, call, NULL);
    size_t at = 0;
    for (bool first = true; at < self.s->length; first = false) {
        uint32_t ch = apus_tpl_decode(self.s->bytes, self.s->length, &at);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)ch);
        bool letter = in_class(ch, 'a') || ch == '_' || k == UTF8PROC_CATEGORY_NL;
        if (!letter && (first || (k != UTF8PROC_CATEGORY_ND && k != UTF8PROC_CATEGORY_MN && k != UTF8PROC_CATEGORY_MC && k != UTF8PROC_CATEGORY_PC)))
            return apus_tpl_bool(false);
    }
    return apus_tpl_bool(at > 0);
}

/* ---------------------------------------------------------------- lists and ranges */

static tval seq_index(tctx *c, tval self, const tcall *call)
{
    ARGS("index", "value start stop", 1, 3);
    int64_t n = apus_tpl_length(c, self), from = 0, to = n;
    if (a[1].kind != T_MISSING)
        from = apus_tpl_need_int(c, "index", a[1]);
    if (a[2].kind != T_MISSING)
        to = apus_tpl_need_int(c, "index", a[2]);
    from = from < 0 ? (from + n < 0 ? 0 : from + n) : from;
    to = to < 0 ? to + n : to > n ? n : to;
    for (int64_t i = from; i < to; i++) {
        apus_tpl_spend(c, 4);
        if (apus_tpl_equal(c, apus_tpl_index(c, self, i), a[0]))
            return apus_tpl_int(i);
    }
    tbuf b = {.c = c};
    apus_tpl_repr(&b, a[0], T_OWN);
    apus_tpl_fail(&c->base, APUS_E_INVALID, "%.*s is not in %s", (int)(b.length > 200 ? 200 : b.length), b.bytes, apus_tpl_type(self));
}

static tval seq_count(tctx *c, tval self, const tcall *call)
{
    ARGS("count", "value", 1, 1);
    int64_t n = 0;
    titer it = apus_tpl_iterate(c, self);
    for (tval item; apus_tpl_next(c, &it, &item);)
        n += apus_tpl_equal(c, item, a[0]) ? 1 : 0;
    return apus_tpl_int(n);
}

static tval list_copy(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "copy", "", 0, call, NULL);
    return self;
}

/* ---------------------------------------------------------------- dictionaries */

static tval view(tctx *c, tval self, const tcall *call, const char *what, tview_kind kind)
{
    apus_tpl_bind(c, what, "", 0, call, NULL);
    struct tview *v = apus_tpl_alloc(&c->base, sizeof *v);
    *v = (struct tview){self.d, kind};
    return (tval){.kind = T_VIEW, .view = v};
}
static tval dict_keys(tctx *c, tval self, const tcall *call)
{
    return view(c, self, call, "keys", T_KEYS);
}
static tval dict_values(tctx *c, tval self, const tcall *call)
{
    return view(c, self, call, "values", T_VALUES);
}
static tval dict_items(tctx *c, tval self, const tcall *call)
{
    return view(c, self, call, "items", T_ITEMS);
}

static tval dict_get(tctx *c, tval self, const tcall *call)
{
    ARGS("get", "key default", 1, 2);
    (void)apus_tpl_hash(c, a[0]);
    tval v = apus_tpl_dict_get(c, self.d, a[0]);
    return v.kind != T_MISSING ? v : a[1].kind == T_MISSING ? apus_tpl_none() : a[1];
}

/* ---------------------------------------------------------------- numbers */

static tval float_is_integer(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "is_integer", "", 0, call, NULL);
    return apus_tpl_bool(self.kind != T_FLOAT || (isfinite(self.f) && self.f == floor(self.f)));
}

static tval int_bit_length(tctx *c, tval self, const tcall *call)
{
    apus_tpl_bind(c, "bit_length", "", 0, call, NULL);
    uint64_t left = self.i < 0 ? 0 - (uint64_t)self.i : (uint64_t)self.i;
    int64_t n = 0;
    for (; left != 0; left >>= 1)
        n++;
    return apus_tpl_int(n);
}

/* ---------------------------------------------------------------- tables */

#define M(type, name)                                                                                                                                \
    {                                                                                                                                                \
#name, type##_##name, NULL                                                                                                                   \
    }
#define UNSAFE(name)                                                                                                                                 \
    {                                                                                                                                                \
        name, NULL, NULL                                                                                                                             \
    }
#define NOT_HERE(name, why)                                                                                                                          \
    {                                                                                                                                                \
        name, NULL, why                                                                                                                              \
    }

static const tmethod_def strings[] = {
    M(str, strip),
    M(str, lstrip),
    M(str, rstrip),
    M(str, split),
    M(str, rsplit),
    M(str, splitlines),
    M(str, startswith),
    M(str, endswith),
    M(str, replace),
    M(str, upper),
    M(str, lower),
    M(str, title),
    M(str, capitalize),
    M(str, swapcase),
    M(str, casefold),
    M(str, find),
    M(str, rfind),
    M(str, index),
    M(str, rindex),
    M(str, count),
    M(str, join),
    M(str, format),
    M(str, format_map),
    M(str, removeprefix),
    M(str, removesuffix),
    M(str, partition),
    M(str, rpartition),
    M(str, center),
    M(str, ljust),
    M(str, rjust),
    M(str, zfill),
    M(str, expandtabs),
    M(str, isalpha),
    M(str, isalnum),
    M(str, isdigit),
    M(str, isdecimal),
    M(str, isnumeric),
    M(str, isspace),
    M(str, isascii),
    M(str, isprintable),
    M(str, islower),
    M(str, isupper),
    M(str, istitle),
    M(str, isidentifier),
    NOT_HERE("encode", "there are no bytes here"),
    NOT_HERE("translate", "use replace"),
    NOT_HERE("maketrans", "use replace"),
    {NULL, NULL, NULL},
};

static const tmethod_def lists[] = {
    {"index", seq_index, NULL},
    {"count", seq_count, NULL},
    {"copy", list_copy, NULL},
    UNSAFE("append"),
    UNSAFE("clear"),
    UNSAFE("pop"),
    UNSAFE("reverse"),
    UNSAFE("insert"),
    UNSAFE("sort"),
    UNSAFE("extend"),
    UNSAFE("remove"),
    {NULL, NULL, NULL},
};

static const tmethod_def tuples[] = {
    {"index", seq_index, NULL},
    {"count", seq_count, NULL},
    {NULL, NULL, NULL},
};

static const tmethod_def ranges[] = {
    {"index", seq_index, NULL},
    {"count", seq_count, NULL},
    NOT_HERE("start", "keep the number in a variable"),
    NOT_HERE("stop", "keep the number in a variable"),
    NOT_HERE("step", "keep the number in a variable"),
    {NULL, NULL, NULL},
};

static const tmethod_def dicts[] = {
    M(dict, keys), M(dict, values),   M(dict, items),       M(dict, get),     {"copy", list_copy, NULL},          UNSAFE("clear"),
    UNSAFE("pop"), UNSAFE("popitem"), UNSAFE("setdefault"), UNSAFE("update"), NOT_HERE("fromkeys", "use dict()"), {NULL, NULL, NULL},
};

static const tmethod_def views[] = {
    NOT_HERE("mapping", "use the dictionary itself"),
    NOT_HERE("isdisjoint", "there are no sets here"),
    {NULL, NULL, NULL},
};

static const tmethod_def ints[] = {
    {"bit_length", int_bit_length, NULL},
    NOT_HERE("bit_count", "there are no bits here"),
    NOT_HERE("real", "use the number itself"),
    NOT_HERE("imag", "there are no complex numbers here"),
    NOT_HERE("numerator", "use the number itself"),
    NOT_HERE("denominator", "there are no fractions here"),
    NOT_HERE("conjugate", "use the number itself"),
    NOT_HERE("to_bytes", "there are no bytes here"),
    NOT_HERE("from_bytes", "there are no bytes here"),
    NOT_HERE("as_integer_ratio", "there are no fractions here"),
    {NULL, NULL, NULL},
};

static const tmethod_def floats[] = {
    {"is_integer", float_is_integer, NULL},
    NOT_HERE("real", "use the number itself"),
    NOT_HERE("imag", "there are no complex numbers here"),
    NOT_HERE("conjugate", "use the number itself"),
    NOT_HERE("hex", "use round or format"),
    NOT_HERE("fromhex", "use |float"),
    NOT_HERE("as_integer_ratio", "there are no fractions here"),
    {NULL, NULL, NULL},
};

const tmethod_def *apus_tpl_method(tkind kind, const tstr *name)
{
    const tmethod_def *table = kind == T_STR     ? strings
                               : kind == T_LIST  ? lists
                               : kind == T_TUPLE ? tuples
                               : kind == T_DICT  ? dicts
                               : kind == T_RANGE ? ranges
                               : kind == T_VIEW  ? views
                               : kind == T_INT   ? ints
                               : kind == T_BOOL  ? ints
                               : kind == T_FLOAT ? floats
                                                 : NULL;
    for (; table != NULL && table->name != NULL; table++)
        if (table->name[0] == (name->length > 0 ? name->bytes[0] : '\0') && apus_tpl_is(name, table->name))
            return table;
    return NULL;
}
