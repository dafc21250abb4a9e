/*
 * core/template/print: values as text: Python's str() and repr(), numbers from and to text, json.dumps.
 */
#include "eval.h"
#include "value.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- numbers */

/* The shortest digits that read back as v, laid out as Python's float repr does. */
void apus_tpl_float_repr(char out[40], double v)
{
    if (isnan(v) || isinf(v)) {
        (void)snprintf(out, 40, "%s", isnan(v) ? "nan" : v < 0 ? "-inf" : "inf");
        return;
    }
    char digits[40];
    int precision = 1;
    do
        (void)snprintf(digits, sizeof digits, "%.*e", precision - 1, v);
    while (strtod(digits, NULL) != v && ++precision <= 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= 16 || exponent < -4) {
        (void)snprintf(out, 40, "%s", digits);
        return;
    }
    int decimals = precision - 1 - exponent;
    (void)snprintf(out, 40, "%.*f", decimals < 1 ? 1 : decimals, v);
}

/* s without surrounding white space and with the underscores that Python allows between digits removed, in `out`. */
static bool plain_number(const tstr *s, char *out, size_t capacity)
{
    size_t from = 0, to = s->length, n = 0;
    while (from < to) {
        size_t next = from;
        if (!apus_tpl_is_space(apus_tpl_decode(s->bytes, to, &next)))
            break;
        from = next;
    }
    while (to > from && ((unsigned char)s->bytes[to - 1] <= ' ' && apus_tpl_is_space((unsigned char)s->bytes[to - 1])))
        to--;
    for (size_t i = from; i < to; i++) {
        char ch = s->bytes[i];
        if (ch == '_') {
            bool before = i > from && strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", s->bytes[i - 1]) != NULL;
            bool after = i + 1 < to && strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", s->bytes[i + 1]) != NULL;
            if (!before || !after)
                return false;
            continue;
        }
        if (ch == '\0' || (unsigned char)ch >= 0x80 || n + 1 >= capacity)
            return false;
        out[n++] = ch;
    }
    out[n] = '\0';
    return n > 0;
}

static bool same_letters(const char *text, const char *word)
{
    for (; *word != '\0'; text++, word++)
        if ((*text | 0x20) != *word)
            return false;
    return *text == '\0';
}

bool apus_tpl_parse_float(const tstr *s, double *v)
{
    char text[512];
    if (!plain_number(s, text, sizeof text))
        return false;
    const char *p = text + (*text == '-' || *text == '+');
    if (same_letters(p, "inf") || same_letters(p, "infinity")) {
        *v = *text == '-' ? -INFINITY : INFINITY;
        return true;
    }
    if (same_letters(p, "nan")) {
        *v = NAN;
        return true;
    }
    if (strspn(p, "0123456789.eE+-") != strlen(p))
        return false;
    char *end;
    *v = strtod(text, &end);
    return end != text && *end == '\0';
}

bool apus_tpl_parse_int(const tstr *s, int base, int64_t *v, bool *overflow)
{
    char text[512];
    *overflow = false;
    if (!plain_number(s, text, sizeof text) || base < 0 || base > 36 || base == 1)
        return false;
    const char *p = text;
    bool negative = *p == '-';
    p += *p == '-' || *p == '+';
    int prefix = 0;
    if (p[0] == '0' && p[1] != '\0')
        prefix = (p[1] | 0x20) == 'x' ? 16 : (p[1] | 0x20) == 'o' ? 8 : (p[1] | 0x20) == 'b' ? 2 : 0;
    if (prefix != 0 && (base == 0 || base == prefix)) {
        p += 2;
        base = prefix;
    } else if (base == 0) {
        if (p[0] == '0' && strspn(p, "0") != strlen(p))
            return false;
        base = 10;
    }
    if (*p == '\0')
        return false;
    uint64_t total = 0;
    for (; *p != '\0'; p++) {
        int digit = *p >= '0' && *p <= '9' ? *p - '0' : (*p | 0x20) >= 'a' && (*p | 0x20) <= 'z' ? (*p | 0x20) - 'a' + 10 : 99;
        if (digit >= base)
            return false;
        if (__builtin_mul_overflow(total, (uint64_t)base, &total) || __builtin_add_overflow(total, (uint64_t)digit, &total))
            *overflow = true;
    }
    if (total > (uint64_t)INT64_MAX + (negative ? 1 : 0))
        *overflow = true;
    *v = *overflow ? 0 : negative ? (int64_t)(0 - total) : (int64_t)total;
    return true;
}

/* ---------------------------------------------------------------- str() and repr() */

static void repr_str(tbuf *b, const tstr *s)
{
    bool single = memchr(s->bytes, '\'', s->length) != NULL, twice = memchr(s->bytes, '"', s->length) != NULL;
    char quote = single && !twice ? '"' : '\'';
    apus_tpl_put(b, &quote, 1, apus_tpl_tag_at(s, 0));
    for (size_t at = 0; at < s->length;) {
        size_t from = at;
        uint32_t c = apus_tpl_decode(s->bytes, s->length, &at);
        ttag tag = apus_tpl_tag_at(s, from);
        char text[16];
        if (c == (uint32_t)quote || c == '\\') {
            text[0] = '\\';
            text[1] = (char)c;
            apus_tpl_put(b, text, 2, tag);
        } else if (c == '\n' || c == '\r' || c == '\t')
            apus_tpl_put_text(b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t", tag);
        else if (apus_tpl_is_printable(c))
            apus_tpl_put(b, s->bytes + from, at - from, tag);
        else {
            (void)snprintf(text, sizeof text, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
            apus_tpl_put_text(b, text, tag);
        }
    }
    apus_tpl_put(b, &quote, 1, apus_tpl_tag_at(s, s->length == 0 ? 0 : s->length - 1));
}

static void repr_items(tbuf *b, const tlist *l, const char *open, const char *close, ttag tag)
{
    if (l->content)
        tag |= T_CONTENT;
    apus_tpl_put_text(b, open, tag);
    for (size_t i = 0; i < l->n; i++) {
        if (i > 0)
            apus_tpl_put_text(b, ", ", tag);
        apus_tpl_repr(b, l->items[i], tag);
    }
    apus_tpl_put_text(b, close, tag);
}

static void repr_dict(tbuf *b, const tdict *d, ttag tag)
{
    if (d->content)
        tag |= T_CONTENT;
    apus_tpl_put_text(b, "{", tag);
    for (size_t i = 0; i < d->n; i++) {
        if (i > 0)
            apus_tpl_put_text(b, ", ", tag);
        apus_tpl_repr(b, d->keys[i], tag);
        apus_tpl_put_text(b, ": ", tag);
        apus_tpl_repr(b, d->values[i], tag);
    }
    apus_tpl_put_text(b, "}", tag);
}

T_NORETURN static void no_text(tbuf *b, tval v)
{
    apus_tpl_fail(&b->c->base, APUS_E_INVALID, "a %s has no text to print%s", apus_tpl_type(v),
                  v.kind == T_GENERATOR ? ": put |list or |join behind it" : "");
}

void apus_tpl_repr(tbuf *b, tval v, ttag tag)
{
    char text[80];
    apus_tpl_enter(b->c);
    apus_tpl_spend(b->c, 8);
    switch (v.kind) {
    case T_MISSING:
    case T_UNDEFINED:
        apus_tpl_put_text(b, "Undefined", tag);
        break;
    case T_NONE:
        apus_tpl_put_text(b, "None", tag);
        break;
    case T_BOOL:
        apus_tpl_put_text(b, v.i ? "True" : "False", tag);
        break;
    case T_INT:
        (void)snprintf(text, sizeof text, "%" PRId64, v.i);
        apus_tpl_put_text(b, text, tag);
        break;
    case T_FLOAT:
        apus_tpl_float_repr(text, v.f);
        apus_tpl_put_text(b, text, tag);
        break;
    case T_STR:
        if (v.s->markup)
            apus_tpl_put_text(b, "Markup(", tag);
        repr_str(b, v.s);
        if (v.s->markup)
            apus_tpl_put_text(b, ")", tag);
        break;
    case T_LIST:
        repr_items(b, v.l, "[", "]", tag);
        break;
    case T_TUPLE:
        repr_items(b, v.l, "(", v.l->n == 1 ? ",)" : ")", tag);
        break;
    case T_DICT:
        repr_dict(b, v.d, tag);
        break;
    case T_NAMESPACE:
        apus_tpl_put_text(b, "<Namespace ", tag);
        repr_dict(b, v.d, tag);
        apus_tpl_put_text(b, ">", tag);
        break;
    case T_RANGE:
        (void)snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64, v.range->start, v.range->stop);
        apus_tpl_put_text(b, text, tag);
        if (v.range->step != 1) {
            (void)snprintf(text, sizeof text, ", %" PRId64, v.range->step);
            apus_tpl_put_text(b, text, tag);
        }
        apus_tpl_put_text(b, ")", tag);
        break;
    case T_VIEW: {
        apus_tpl_put_text(b, apus_tpl_type(v), tag);
        apus_tpl_put_text(b, "(", tag);
        tlist *l = apus_tpl_to_list(b->c, v);
        l->content = v.view->dict->content;
        repr_items(b, l, "[", "]", tag);
        apus_tpl_put_text(b, ")", tag);
        break;
    }
    case T_MACRO: {
        const char *name = apus_tpl_macro_name(v.macro);
        apus_tpl_put_text(b, "<Macro ", tag);
        if (name == NULL)
            apus_tpl_put_text(b, "anonymous", tag);
        else
            repr_str(b, apus_tpl_literal(&b->c->base, name));
        apus_tpl_put_text(b, ">", tag);
        break;
    }
    case T_LOOP: {
        int64_t index, length;
        apus_tpl_loop_place(b->c, v.loop, &index, &length);
        (void)snprintf(text, sizeof text, "<LoopContext %" PRId64 "/%" PRId64 ">", index, length);
        apus_tpl_put_text(b, text, tag);
        break;
    }
    default:
        no_text(b, v);
    }
    apus_tpl_leave(b->c);
}

void apus_tpl_print(tbuf *b, tval v)
{
    if (v.kind == T_STR)
        apus_tpl_put_str(b, v.s);
    else if (v.kind != T_UNDEFINED && v.kind != T_MISSING)
        apus_tpl_repr(b, v, T_OWN);
}

tstr *apus_tpl_to_str(tctx *c, tval v)
{
    if (v.kind == T_STR)
        return v.s;
    tbuf b = {.c = c};
    apus_tpl_print(&b, v);
    return apus_tpl_take(&b);
}

/* ---------------------------------------------------------------- json.dumps */

static void json_str(tbuf *b, const tstr *s, bool ascii)
{
    apus_tpl_put(b, "\"", 1, apus_tpl_tag_at(s, 0));
    size_t from = 0;
    for (size_t at = 0; at < s->length;) {
        size_t begin = at;
        uint32_t c = apus_tpl_decode(s->bytes, s->length, &at);
        char text[16];
        if (c == '"' || c == '\\')
            (void)snprintf(text, sizeof text, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t' || c == '\b' || c == '\f')
            (void)snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c == '\b' ? 'b' : 'f');
        else if (c < 0x20 || (ascii && c > 0x7e && c < 0x10000))
            (void)snprintf(text, sizeof text, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            (void)snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
        else
            continue;
        apus_tpl_put_part(b, s, from, begin);
        apus_tpl_put_text(b, text, apus_tpl_tag_at(s, begin));
        from = at;
    }
    apus_tpl_put_part(b, s, from, s->length);
    apus_tpl_put(b, "\"", 1, apus_tpl_tag_at(s, s->length == 0 ? 0 : s->length - 1));
}

static void json_break(tbuf *b, const tjson *how, int depth, ttag tag)
{
    if (how->indent == NULL)
        return;
    apus_tpl_put(b, "\n", 1, tag);
    for (int i = 0; i < depth; i++)
        apus_tpl_put(b, how->indent->bytes, how->indent->length, tag);
}

static void json_separate(tbuf *b, const tstr *custom, const char *otherwise, ttag tag)
{
    if (custom != NULL)
        apus_tpl_put(b, custom->bytes, custom->length, tag);
    else
        apus_tpl_put_text(b, otherwise, tag);
}

static void json_number(char text[40], double v)
{
    apus_tpl_float_repr(text, v);
    if (isnan(v) || isinf(v))
        (void)snprintf(text, 40, "%s", isnan(v) ? "NaN" : v < 0 ? "-Infinity" : "Infinity");
}

static void json_value(tbuf *b, tval v, const tjson *how, int depth, ttag tag);

static void json_key(tbuf *b, tval key, const tjson *how, ttag tag)
{
    char text[40];
    switch (key.kind) {
    case T_STR:
        json_str(b, key.s, how->ascii);
        return;
    case T_NONE:
        apus_tpl_put_text(b, "\"null\"", tag);
        return;
    case T_BOOL:
        apus_tpl_put_text(b, key.i ? "\"true\"" : "\"false\"", tag);
        return;
    case T_INT:
        (void)snprintf(text, sizeof text, "%" PRId64, key.i);
        break;
    case T_FLOAT:
        json_number(text, key.f);
        break;
    default:
        apus_tpl_fail(&b->c->base, APUS_E_INVALID, "keys must be str, int, float, bool or None, not %s", apus_tpl_type(key));
    }
    apus_tpl_put(b, "\"", 1, tag);
    apus_tpl_put_text(b, text, tag);
    apus_tpl_put(b, "\"", 1, tag);
}

/* The order of a dictionary's keys when they are sorted: insertion into place is enough, they are few. */
static size_t *key_order(tctx *c, const tdict *d, bool sort)
{
    size_t *order = apus_tpl_array(&c->base, d->n, sizeof *order);
    for (size_t i = 0; i < d->n; i++) {
        size_t at = i;
        apus_tpl_spend(c, 1);
        for (; sort && at > 0 && apus_tpl_less(c, d->keys[i], d->keys[order[at - 1]]); at--) {
            order[at] = order[at - 1];
            apus_tpl_spend(c, 8);
        }
        order[at] = i;
    }
    return order;
}

static void json_dict(tbuf *b, const tdict *d, const tjson *how, int depth, ttag tag)
{
    if (d->content)
        tag |= T_CONTENT;
    if (d->n == 0) {
        apus_tpl_put_text(b, "{}", tag);
        return;
    }
    const size_t *order = key_order(b->c, d, how->sort);
    apus_tpl_put(b, "{", 1, tag);
    for (size_t i = 0; i < d->n; i++) {
        if (i > 0)
            json_separate(b, how->item, how->indent == NULL ? ", " : ",", tag);
        json_break(b, how, depth + 1, tag);
        json_key(b, d->keys[order[i]], how, tag);
        json_separate(b, how->key, ": ", tag);
        json_value(b, d->values[order[i]], how, depth + 1, tag);
    }
    json_break(b, how, depth, tag);
    apus_tpl_put(b, "}", 1, tag);
}

static void json_list(tbuf *b, const tlist *l, const tjson *how, int depth, ttag tag)
{
    if (l->content)
        tag |= T_CONTENT;
    if (l->n == 0) {
        apus_tpl_put_text(b, "[]", tag);
        return;
    }
    apus_tpl_put(b, "[", 1, tag);
    for (size_t i = 0; i < l->n; i++) {
        if (i > 0)
            json_separate(b, how->item, how->indent == NULL ? ", " : ",", tag);
        json_break(b, how, depth + 1, tag);
        json_value(b, l->items[i], how, depth + 1, tag);
    }
    json_break(b, how, depth, tag);
    apus_tpl_put(b, "]", 1, tag);
}

static void json_value(tbuf *b, tval v, const tjson *how, int depth, ttag tag)
{
    char text[40];
    apus_tpl_enter(b->c);
    apus_tpl_spend(b->c, 8);
    switch (v.kind) {
    case T_NONE:
        apus_tpl_put_text(b, "null", tag);
        break;
    case T_BOOL:
        apus_tpl_put_text(b, v.i ? "true" : "false", tag);
        break;
    case T_INT:
        (void)snprintf(text, sizeof text, "%" PRId64, v.i);
        apus_tpl_put_text(b, text, tag);
        break;
    case T_FLOAT:
        json_number(text, v.f);
        apus_tpl_put_text(b, text, tag);
        break;
    case T_STR:
        json_str(b, v.s, how->ascii);
        break;
    case T_LIST:
    case T_TUPLE:
        json_list(b, v.l, how, depth, tag);
        break;
    case T_DICT:
        json_dict(b, v.d, how, depth, tag);
        break;
    default:
        apus_tpl_fail(&b->c->base, APUS_E_INVALID, "Object of type %s is not JSON serializable", apus_tpl_type(v));
    }
    apus_tpl_leave(b->c);
}

void apus_tpl_json(tbuf *b, tval v, const tjson *how)
{
    json_value(b, v, how, 0, T_OWN);
}
