/*
 * core/template/format: Python's two ways to format: "%s" % values and "{}".format(values).
 */
#include "value.h"

#include <inttypes.h>
#include <string.h>

enum { MOST_DIGITS = 5000, MOST_WIDTH = 1 << 20 };

/* How one value is laid out. */
typedef struct spec {
    char fill[5];
    char align; /* < > = ^, or 0 */
    char sign;  /* + space, or 0 */
    bool alternate, zero;
    char group;               /* , _ or 0 */
    int64_t width, precision; /* precision -1: none */
    char type;                /* 0: none */
} spec;

static void pad(tbuf *b, const spec *s, int64_t n, ttag tag)
{
    const char *fill = s->fill[0] == '\0' ? " " : s->fill;
    for (; n > 0; n--)
        apus_tpl_put_text(b, fill, tag);
}

/* `prefix` (sign, 0x) and `body` in s->width columns. */
static void put_number(tbuf *b, const spec *s, const char *prefix, const char *body, ttag tag)
{
    int64_t room = s->width - (int64_t)strlen(prefix) - (int64_t)strlen(body);
    char align = s->align != 0 ? s->align : s->zero ? '=' : '>';
    spec filled = *s;
    if (s->zero && s->fill[0] == '\0')
        filled.fill[0] = '0';
    if (align == '>')
        pad(b, &filled, room, tag);
    else if (align == '^')
        pad(b, &filled, room / 2, tag);
    apus_tpl_put_text(b, prefix, tag);
    if (align == '=')
        pad(b, &filled, room, tag);
    apus_tpl_put_text(b, body, tag);
    if (align == '<')
        pad(b, &filled, room, tag);
    else if (align == '^' && room > 0)
        pad(b, &filled, room - room / 2, tag);
}

static void put_string(tbuf *b, const spec *s, tstr *text, bool escape, ttag tag)
{
    if (s->precision >= 0 && (uint64_t)s->precision < apus_tpl_chars(text))
        text = apus_tpl_part(b->c, text, 0, apus_tpl_offset(text, (size_t)s->precision));
    int64_t room = s->width - (int64_t)apus_tpl_chars(text);
    char align = s->align != 0 ? s->align : '<';
    if (align == '>')
        pad(b, s, room, tag);
    else if (align == '^' && room > 0)
        pad(b, s, room / 2, tag);
    if (escape)
        apus_tpl_put_escaped(b, text);
    else
        apus_tpl_put_str(b, text);
    if (align == '<')
        pad(b, s, room, tag);
    else if (align == '^' && room > 0)
        pad(b, s, room - room / 2, tag);
}

/* Group separators into the digits before the point; zeros that fill the width are grouped too. */
static const char *grouped(tctx *c, const spec *s, const char *prefix, const char *digits)
{
    if (s->group == 0)
        return digits;
    bool based = s->type == 'x' || s->type == 'X' || s->type == 'o' || s->type == 'b';
    size_t whole = strspn(digits, based ? "0123456789abcdefABCDEF" : "0123456789"), length = strlen(digits);
    size_t every = based ? 4 : 3, zeros = 0;
    bool fills = s->zero && (s->align == 0 || s->align == '=') && (s->fill[0] == '\0' || s->fill[0] == '0');
    size_t room = (size_t)s->width, taken = strlen(prefix) + length - whole;
    if (fills && whole > 0 && room > taken) {
        size_t want = room - taken, n = want - (want - 1) / (every + 1); /* n digits and their separators fill `want` */
        zeros = n > whole ? n - whole : 0;
    }
    char *out = apus_tpl_alloc(&c->base, (length + zeros) * 2 + 1), *p = out;
    for (size_t i = 0; i < length + zeros; i++) {
        if (i > 0 && i < whole + zeros && (whole + zeros - i) % every == 0)
            *p++ = s->group;
        *p++ = i < zeros ? '0' : digits[i - zeros];
    }
    return out;
}

static void put_int(tbuf *b, const spec *s, int64_t v, ttag tag)
{
    char digits[72], prefix[4] = "", *p = digits + sizeof digits - 1;
    unsigned base = s->type == 'x' || s->type == 'X' ? 16 : s->type == 'o' ? 8 : s->type == 'b' ? 2 : 10;
    uint64_t left = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    *p = '\0';
    do
        *--p = (s->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[left % base];
    while ((left /= base) != 0);
    int64_t n = digits + sizeof digits - 1 - p;
    char wide[MOST_DIGITS + 8];
    if (s->precision > n) { /* only % has it: at least so many digits */
        memset(wide, '0', (size_t)(s->precision - n));
        memcpy(wide + (s->precision - n), p, (size_t)n + 1);
        p = wide;
    }
    size_t at = 0;
    if (v < 0 || s->sign == '+' || s->sign == ' ')
        prefix[at++] = v < 0 ? '-' : s->sign;
    if (s->alternate && base != 10) {
        prefix[at++] = '0';
        prefix[at++] = s->type;
    }
    prefix[at] = '\0';
    put_number(b, s, prefix, grouped(b->c, s, prefix, p), tag);
}

static void put_float(tbuf *b, const spec *s, double v, ttag tag)
{
    char layout[16], repr[40], prefix[2] = "";
    const char *body;
    bool percent = s->type == '%';
    char type = percent ? 'f' : s->type == 0 || s->type == 'n' ? 'g' : s->type;
    if (percent)
        v *= 100;
    if (s->type == 0 && s->precision < 0) {
        apus_tpl_float_repr(repr, v);
        body = repr;
    } else {
        int precision = s->precision < 0 ? 6 : (int)s->precision;
        (void)snprintf(layout, sizeof layout, s->alternate ? "%%#.*%c" : "%%.*%c", type);
        size_t room = (size_t)precision + 400;
        char *text = apus_tpl_alloc(&b->c->base, room);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)snprintf(text, room, layout, precision, v);
#pragma GCC diagnostic pop
        if (percent)
            strcat(text, "%");
        else if (s->type == 0 && strpbrk(text, ".eni") == NULL)
            strcat(text, ".0");
        body = text;
    }
    if (*body == '-') {
        prefix[0] = '-';
        body++;
    } else if (s->sign == '+' || s->sign == ' ')
        prefix[0] = s->sign;
    put_number(b, s, prefix, grouped(b->c, s, prefix, body), tag);
}

static double to_float(tctx *c, const char *what, tval v)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (v.kind != T_FLOAT && v.kind != T_INT && v.kind != T_BOOL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: must be a number, not %s", what, apus_tpl_type(v));
    return v.kind == T_FLOAT ? v.f : (double)v.i;
}

static int64_t to_int(tctx *c, const char *what, tval v, bool floats)
{
    if (v.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, v);
    if (floats && v.kind == T_FLOAT) {
        if (!(v.f > -9.2e18 && v.f < 9.2e18))
            apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: the number does not fit 64 bits", what);
        return (int64_t)v.f;
    }
    if (v.kind != T_INT && v.kind != T_BOOL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "%s: an integer is required, not %s", what, apus_tpl_type(v));
    return v.i;
}

/* Digits at *at. */
static int64_t number(tctx *c, const tstr *f, size_t *at, int64_t most)
{
    int64_t n = 0;
    for (; *at < f->length && f->bytes[*at] >= '0' && f->bytes[*at] <= '9'; (*at)++) {
        n = n * 10 + (f->bytes[*at] - '0');
        if (n > most)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "a width or precision over %" PRId64 " in a format", most);
    }
    return n;
}

/* ---------------------------------------------------------------- % */

typedef struct supply {
    tval all;
    size_t next;
    bool single; /* not a tuple: one value */
} supply;

static tval next_value(tctx *c, supply *from)
{
    if (from->single ? from->next > 0 : from->next >= from->all.l->n)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "not enough arguments for format string");
    return from->single ? (from->next++, from->all) : from->all.l->items[from->next++];
}

static int64_t star(tctx *c, const tstr *f, size_t *at, supply *from, int64_t most)
{
    if (*at >= f->length || f->bytes[*at] != '*')
        return number(c, f, at, most);
    (*at)++;
    int64_t n = to_int(c, "*", next_value(c, from), false);
    if (n > most || n < -most)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "a width or precision over %" PRId64 " in a format", most);
    return n;
}

static void put_percent(tbuf *b, spec *s, tval v, bool markup, ttag tag)
{
    tctx *c = b->c;
    switch (s->type) {
    case 'd':
    case 'i':
    case 'u':
        s->type = 'd';
        put_int(b, s, to_int(c, "%d", v, true), tag);
        break;
    case 'x':
    case 'X':
    case 'o':
        put_int(b, s, to_int(c, "%x", v, false), tag);
        break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        put_float(b, s, to_float(c, "%f", v), tag);
        break;
    case 'c':
        s->precision = -1;
        if ((v.kind == T_INT || v.kind == T_BOOL) && v.i >= 0 && v.i <= 0x10ffff && (v.i < 0xd800 || v.i > 0xdfff)) {
            tbuf one = {.c = c};
            apus_tpl_put_char(&one, (uint32_t)v.i, tag);
            v = apus_tpl_sval(apus_tpl_take(&one));
        }
        if (v.kind != T_STR || apus_tpl_chars(v.s) != 1)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "%%c requires int or char");
        put_string(b, s, v.s, markup, tag);
        break;
    case 's':
        put_string(b, s, apus_tpl_to_str(c, v), markup, tag);
        break;
    case 'r': {
        tbuf text = {.c = c};
        apus_tpl_repr(&text, v, T_OWN);
        put_string(b, s, apus_tpl_take(&text), markup, tag);
        break;
    }
    default:
        apus_tpl_fail(&c->base, APUS_E_INVALID, "unsupported format character '%c'", s->type);
    }
}

tval apus_tpl_percent(tctx *c, tstr *f, tval args)
{
    tbuf b = {.c = c, .markup = f->markup};
    supply from = {.all = args, .single = args.kind != T_TUPLE};
    bool mapping = args.kind == T_DICT || args.kind == T_LIST || args.kind == T_RANGE || args.kind == T_UNDEFINED;
    for (size_t at = 0; at < f->length;) {
        const char *percent = memchr(f->bytes + at, '%', f->length - at);
        size_t upto = percent == NULL ? f->length : (size_t)(percent - f->bytes);
        apus_tpl_put_part(&b, f, at, upto);
        if ((at = upto) >= f->length)
            break;
        ttag tag = apus_tpl_tag_at(f, at++);
        spec s = {.precision = -1};
        tval v = apus_tpl_missing();
        if (at < f->length && f->bytes[at] == '(') {
            const char *close = memchr(f->bytes + at, ')', f->length - at);
            if (close == NULL)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "incomplete format key");
            if (args.kind != T_DICT)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "format requires a mapping");
            size_t end = (size_t)(close - f->bytes);
            v = apus_tpl_dict_find(c, args.d, f->bytes + at + 1, end - at - 1);
            if (v.kind == T_MISSING)
                apus_tpl_fail(&c->base, APUS_E_INVALID, "the format's key '%.*s' is not there", (int)(end - at - 1), f->bytes + at + 1);
            at = end + 1;
        }
        for (; at < f->length && strchr("-+ #0", f->bytes[at]) != NULL && f->bytes[at] != '\0'; at++) {
            char flag = f->bytes[at];
            s.align = flag == '-' ? '<' : s.align;
            s.sign = flag == '+' ? '+' : flag == ' ' && s.sign == 0 ? ' ' : s.sign;
            s.alternate = s.alternate || flag == '#';
            s.zero = s.zero || flag == '0';
        }
        s.width = star(c, f, &at, &from, MOST_WIDTH);
        if (s.width < 0) {
            s.align = '<';
            s.width = -s.width;
        }
        if (s.align == '<')
            s.zero = false;
        if (at < f->length && f->bytes[at] == '.') {
            at++;
            s.precision = star(c, f, &at, &from, MOST_DIGITS);
            s.precision = s.precision < 0 ? 0 : s.precision;
        }
        while (at < f->length && f->bytes[at] != '\0' && strchr("hlL", f->bytes[at]) != NULL)
            at++;
        if (at >= f->length)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "incomplete format");
        s.type = f->bytes[at++];
        if (s.type == '%') {
            apus_tpl_put(&b, "%", 1, tag);
            continue;
        }
        if (s.align == 0 && strchr("srac", s.type) != NULL) {
            s.align = '>';
            s.zero = false;
        }
        put_percent(&b, &s, v.kind == T_MISSING ? next_value(c, &from) : v, f->markup, tag);
    }
    if (from.single ? from.next == 0 && !mapping : from.next < from.all.l->n)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "not all arguments converted during string formatting");
    return apus_tpl_sval(apus_tpl_take(&b));
}

/* ---------------------------------------------------------------- str.format */

static spec read_spec(tctx *c, tstr *f)
{
    spec s = {.precision = -1};
    size_t at = 0, after = 0;
    if (f->length > 0) {
        (void)apus_tpl_decode(f->bytes, f->length, &after);
        if (after < f->length && strchr("<>=^", f->bytes[after]) != NULL && f->bytes[after] != '\0') {
            memcpy(s.fill, f->bytes, after);
            s.align = f->bytes[after];
            at = after + 1;
        } else if (strchr("<>=^", f->bytes[0]) != NULL && f->bytes[0] != '\0')
            s.align = f->bytes[at++];
    }
    if (at < f->length && (f->bytes[at] == '+' || f->bytes[at] == '-' || f->bytes[at] == ' ')) {
        s.sign = f->bytes[at++];
    }
    if (at < f->length && f->bytes[at] == '#') {
        s.alternate = true;
        at++;
    }
    if (at < f->length && f->bytes[at] == '0') {
        s.zero = true;
        at++;
    }
    s.width = number(c, f, &at, MOST_WIDTH);
    if (at < f->length && (f->bytes[at] == ',' || f->bytes[at] == '_'))
        s.group = f->bytes[at++];
    if (at < f->length && f->bytes[at] == '.') {
        at++;
        if (at >= f->length || f->bytes[at] < '0' || f->bytes[at] > '9')
            apus_tpl_fail(&c->base, APUS_E_INVALID, "Format specifier missing precision");
        s.precision = number(c, f, &at, MOST_DIGITS);
    }
    if (at < f->length)
        s.type = f->bytes[at++];
    if (at < f->length || (s.type != 0 && strchr("sdnbcoxXeEfFgG%", s.type) == NULL))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "Invalid format specifier '%.*s'", (int)f->length, f->bytes);
    if (s.group != 0 && s.type != 0 && strchr(s.group == ',' ? "dfFeEgG%" : "dfFeEgG%boxX", s.type) == NULL)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "Cannot specify '%c' with '%c'.", s.group, s.type);
    return s;
}

static void put_formatted(tbuf *b, tval v, tstr *how, bool markup, ttag tag)
{
    tctx *c = b->c;
    if (how->length == 0) {
        tstr *text = apus_tpl_to_str(c, v);
        if (markup)
            apus_tpl_put_escaped(b, text);
        else
            apus_tpl_put_str(b, text);
        return;
    }
    spec s = read_spec(c, how);
    bool whole = v.kind == T_INT || v.kind == T_BOOL;
    if (v.kind == T_STR) {
        if ((s.type != 0 && s.type != 's') || s.sign != 0 || s.align == '=' || s.group != 0 || s.alternate)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "the format '%.*s' is not for a string", (int)how->length, how->bytes);
        if (s.zero && s.fill[0] == '\0')
            s.fill[0] = '0';
        put_string(b, &s, v.s, markup, tag);
    } else if (whole && s.precision < 0 && s.type == 'c')
        put_percent(b, &s, apus_tpl_int(v.i), markup, tag);
    else if (whole && s.precision < 0 && (s.type == 0 || strchr("dnboxX", s.type) != NULL)) {
        s.type = s.type == 0 || s.type == 'n' ? 'd' : s.type;
        put_int(b, &s, v.i, tag);
    } else if ((whole && s.type != 0 && strchr("eEfFgG%", s.type) != NULL) ||
               (v.kind == T_FLOAT && strchr("sdboxXc", s.type == 0 ? 'g' : s.type) == NULL))
        put_float(b, &s, to_float(c, "format", v), tag);
    else
        apus_tpl_fail(&c->base, APUS_E_INVALID, "unsupported format string '%.*s' for %s", (int)how->length, how->bytes, apus_tpl_type(v));
}

typedef struct fields {
    const tcall *call;
    int64_t next; /* -1: fields are numbered by hand */
} fields;

/* "0", "name", "", then .attribute and [item]. */
static tval field(tctx *c, fields *from, tstr *name)
{
    size_t at = 0, end;
    while (at < name->length && name->bytes[at] != '.' && name->bytes[at] != '[')
        at++;
    tval v = apus_tpl_missing();
    size_t digits = 0;
    int64_t n = number(c, name, &digits, 1 << 20);
    if (at == 0 || digits == at) {
        if ((at == 0 && from->next < 0) || (at > 0 && from->next > 0))
            apus_tpl_fail(&c->base, APUS_E_INVALID, "cannot mix automatic field numbering and field numbers");
        if (at == 0)
            n = from->next++;
        else
            from->next = -1;
        if ((uint64_t)n >= from->call->n)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "Replacement index %" PRId64 " out of range for positional args", n);
        v = from->call->args[n];
    } else {
        tstr *key = apus_tpl_part(c, name, 0, at);
        for (size_t i = 0; i < from->call->n_named; i++)
            if (apus_tpl_str_compare(from->call->names[i], key) == 0)
                v = from->call->values[i];
        if (v.kind == T_MISSING)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "the format's name '%.*s' is not given", (int)key->length, key->bytes);
    }
    while (at < name->length) {
        bool attribute = name->bytes[at] == '.';
        end = ++at;
        while (end < name->length && (attribute ? name->bytes[end] != '.' && name->bytes[end] != '[' : name->bytes[end] != ']'))
            end++;
        if (end == at || (!attribute && end >= name->length))
            apus_tpl_fail(&c->base, APUS_E_INVALID, "bad field '%.*s' in a format", (int)name->length, name->bytes);
        tstr *key = apus_tpl_part(c, name, at, end);
        if (attribute)
            v = apus_tpl_getattr(c, v, key);
        else {
            digits = 0;
            n = number(c, key, &digits, 1 << 20);
            v = apus_tpl_getitem(c, v, digits == key->length ? apus_tpl_int(n) : apus_tpl_sval(key));
        }
        at = end + (attribute ? 0 : 1);
        if (at < name->length && name->bytes[at] != '.' && name->bytes[at] != '[')
            apus_tpl_fail(&c->base, APUS_E_INVALID, "bad field '%.*s' in a format", (int)name->length, name->bytes);
    }
    return v;
}

static tstr *formatted(tctx *c, tstr *f, fields *from, int depth)
{
    tbuf b = {.c = c, .markup = f->markup};
    if (depth > 2)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "Max string recursion exceeded");
    for (size_t at = 0; at < f->length;) {
        size_t upto = at;
        while (upto < f->length && f->bytes[upto] != '{' && f->bytes[upto] != '}')
            upto++;
        apus_tpl_put_part(&b, f, at, upto);
        if ((at = upto) >= f->length)
            break;
        char brace = f->bytes[at];
        if (at + 1 < f->length && f->bytes[at + 1] == brace) {
            apus_tpl_put_part(&b, f, at, at + 1);
            at += 2;
            continue;
        }
        if (brace == '}')
            apus_tpl_fail(&c->base, APUS_E_INVALID, "Single '}' encountered in format string");
        ttag tag = apus_tpl_tag_at(f, at);
        size_t name = ++at, end = at, nested = 1, conversion = 0, colon = 0;
        for (; end < f->length; end++) {
            char ch = f->bytes[end];
            nested += ch == '{' ? 1u : 0u;
            if (ch == '}' && --nested == 0)
                break;
            if (ch == '[' && colon == 0)
                while (end + 1 < f->length && f->bytes[end] != ']')
                    end++;
            else if (ch == ':' && colon == 0)
                colon = end;
            else if (ch == '!' && colon == 0 && conversion == 0)
                conversion = end;
        }
        if (end >= f->length)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "expected '}' before end of string");
        size_t stop = conversion != 0 ? conversion : colon != 0 ? colon : end;
        tval v = field(c, from, apus_tpl_part(c, f, name, stop));
        if (conversion != 0) {
            char how = f->bytes[conversion + 1];
            if ((colon != 0 ? colon : end) != conversion + 2 || (how != 'r' && how != 's'))
                apus_tpl_fail(&c->base, APUS_E_INVALID, "Unknown conversion specifier in a format");
            tbuf text = {.c = c};
            if (how == 'r')
                apus_tpl_repr(&text, v, T_OWN);
            else
                apus_tpl_print(&text, v);
            v = apus_tpl_sval(apus_tpl_take(&text));
        }
        tstr *how = colon == 0 ? apus_tpl_literal(&c->base, "") : formatted(c, apus_tpl_part(c, f, colon + 1, end), from, depth + 1);
        put_formatted(&b, v, how, f->markup, tag);
        at = end + 1;
    }
    return apus_tpl_take(&b);
}

tval apus_tpl_format(tctx *c, tstr *format, const tcall *call)
{
    fields from = {.call = call};
    return apus_tpl_sval(formatted(c, format, &from, 1));
}
