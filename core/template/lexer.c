/*
 * core/template/lexer: a template's text as tokens: Jinja's rules for delimiters, white space control, raw blocks,
 * strings and numbers, with trim_blocks and lstrip_blocks on. Knows no grammar.
 */
#include "syntax.h"

#include <stdlib.h>
#include <string.h>

typedef struct lexer {
    tbase *b;
    const char *text; /* line breaks are \n, one at the end is gone */
    size_t length, at;
    size_t counted; /* base.at is the place of this byte */
    tpos place;
    bool line_start; /* what was read last ended a line */
    ttokens out;
    size_t capacity;
    char *open; /* closing brackets that are waited for */
    size_t n_open, open_capacity;
} lexer;

static tpos place(lexer *l, size_t at)
{
    if (at < l->counted) {
        l->counted = 0;
        l->place = (tpos){1, 1};
    }
    for (; l->counted < at; l->counted++)
        if (l->text[l->counted] == '\n') {
            l->place.line++;
            l->place.column = 1;
        } else if (((unsigned char)l->text[l->counted + 1] & 0xc0) != 0x80 || l->counted + 1 >= l->length)
            l->place.column++;
    return l->place;
}

static ttoken *emit(lexer *l, ttoken_kind kind, size_t at)
{
    if (l->out.n == l->capacity) {
        size_t more = l->capacity == 0 ? 256 : l->capacity * 2;
        l->out.items = apus_tpl_grow(l->b, l->out.items, l->capacity * sizeof *l->out.items, more * sizeof *l->out.items);
        l->capacity = more;
    }
    ttoken *t = &l->out.items[l->out.n++];
    *t = (ttoken){.kind = kind, .at = place(l, at)};
    return t;
}

T_NORETURN static void fail_at(lexer *l, size_t at, const char *message)
{
    l->b->at = place(l, at);
    apus_tpl_fail(l->b, APUS_E_INVALID, "%s", message);
}

static bool here(const lexer *l, size_t at, const char *what)
{
    size_t n = strlen(what);
    return l->length - at >= n && memcmp(l->text + at, what, n) == 0;
}

static size_t skip_space(const lexer *l, size_t at)
{
    while (at < l->length) {
        size_t next = at;
        if (!apus_tpl_is_space(apus_tpl_decode(l->text, l->length, &next)))
            break;
        at = next;
    }
    return at;
}

static tstr *piece(lexer *l, size_t from, size_t to)
{
    tstr *s = apus_tpl_str(l->b, l->text + from, to - from, T_OWN);
    (void)apus_tpl_chars(s); /* counted now: templates are shared between threads */
    return s;
}

/* Text between tags: `sign` is the one of the tag that follows; statement: that tag is no {{. */
static void data(lexer *l, size_t from, size_t to, char sign, bool statement)
{
    if (sign == '-') {
        while (to > from) {
            size_t before = to - 1, next;
            while (before > from && ((unsigned char)l->text[before] & 0xc0) == 0x80)
                before--;
            next = before;
            if (!apus_tpl_is_space(apus_tpl_decode(l->text, to, &next)) || next != to)
                break;
            to = before;
        }
    } else if (sign != '+' && statement) {
        size_t line = to;
        while (line > from && l->text[line - 1] != '\n')
            line--;
        if ((line > from || l->line_start) && skip_space(l, line) >= to)
            to = line;
    }
    if (to > from)
        emit(l, K_DATA, from)->text = piece(l, from, to);
}

/* Past an end tag that opens at `at` with `+`, `-` or nothing; 0: none is there. */
static size_t end_tag(const lexer *l, size_t at, const char *tag, bool plus, bool trim)
{
    if (here(l, at, tag)) {
        at += 2;
        return trim && at < l->length && l->text[at] == '\n' ? at + 1 : at;
    }
    if (at < l->length && (l->text[at] == '-' || (plus && l->text[at] == '+')) && here(l, at + 1, tag))
        return l->text[at] == '-' ? skip_space(l, at + 3) : at + 3;
    return 0;
}

static void moved(lexer *l, size_t to)
{
    l->at = to;
    l->line_start = to > 0 && l->text[to - 1] == '\n';
}

/* ---------------------------------------------------------------- inside tags */

static int hex(lexer *l, size_t at, size_t from, size_t n, size_t end)
{
    int v = 0;
    for (size_t i = from; i < from + n; i++) {
        char c = i < end ? l->text[i] : ' ';
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
        if (d < 0)
            fail_at(l, at, "a truncated \\x, \\u or \\U escape in a string");
        v = (int)((unsigned)v * 16u + (unsigned)d);
    }
    return v;
}

static size_t encode(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* A string's value: Python's escapes. */
static tstr *unescaped(lexer *l, size_t from, size_t to)
{
    if (memchr(l->text + from, '\\', to - from) == NULL)
        return piece(l, from, to);
    char *out = apus_tpl_alloc(l->b, to - from + 1);
    size_t n = 0;
    for (size_t i = from; i < to;) {
        if (l->text[i] != '\\') {
            out[n++] = l->text[i++];
            continue;
        }
        static const char simple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
        char c = l->text[i + 1];
        size_t at = i, k = 0;
        i += 2;
        while (simple[k] != '\0' && simple[k] != c)
            k += 2;
        if (simple[k] != '\0')
            out[n++] = simple[k + 1];
        else if (c == '\n')
            continue;
        else if (c >= '0' && c <= '7') {
            uint32_t v = (uint32_t)(c - '0');
            for (int digits = 1; digits < 3 && i < to && l->text[i] >= '0' && l->text[i] <= '7'; digits++)
                v = v * 8 + (uint32_t)(l->text[i++] - '0');
            n += encode(out + n, v);
        } else if (c == 'x' || c == 'u' || c == 'U') {
            size_t width = c == 'x' ? 2 : c == 'u' ? 4 : 8;
            uint32_t v = (uint32_t)hex(l, at, i, width, to);
            i += width;
            if (v >= 0xd800 && v < 0xdc00 && i + 6 <= to && l->text[i] == '\\' && l->text[i + 1] == 'u') {
                uint32_t low = (uint32_t)hex(l, i, i + 2, 4, to);
                if (low >= 0xdc00 && low < 0xe000) {
                    v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
                    i += 6;
                }
            }
            if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
                fail_at(l, at, "an escape in a string that is no character");
            n += encode(out + n, v);
        } else if (c == 'N')
            fail_at(l, at, "\\N{…} escapes are not supported: write the character itself");
        else {
            out[n++] = '\\';
            out[n++] = c;
        }
    }
    tstr *s = apus_tpl_str(l->b, out, n, T_OWN);
    (void)apus_tpl_chars(s);
    return s;
}

static bool digit(const lexer *l, size_t at)
{
    return at < l->length && l->text[at] >= '0' && l->text[at] <= '9';
}

/* Past (\d+_)*\d+ at `at`. */
static size_t digits(const lexer *l, size_t at)
{
    while (digit(l, at)) {
        while (digit(l, at))
            at++;
        if (at < l->length && l->text[at] == '_' && digit(l, at + 1))
            at++;
    }
    return at;
}

/* Past a float's characters; 0: no float here. */
static size_t float_end(const lexer *l, size_t at)
{
    size_t whole = digits(l, at), end = whole;
    if (at > 0 && l->text[at - 1] == '.')
        return 0;
    if (whole < l->length && l->text[whole] == '.' && digit(l, whole + 1))
        end = digits(l, whole + 1);
    if (end < l->length && (l->text[end] == 'e' || l->text[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < l->length && (l->text[exponent] == '+' || l->text[exponent] == '-'))
            exponent++;
        if (digit(l, exponent))
            end = digits(l, exponent);
    }
    return end == whole ? 0 : end;
}

static size_t int_end(const lexer *l, size_t at)
{
    size_t end = at + 1;
    if (l->text[at] != '0')
        return digits(l, at);
    char kind = end < l->length ? (char)(l->text[end] | 0x20) : ' ';
    const char *allowed = kind == 'x' ? "0123456789abcdefABCDEF" : kind == 'o' ? "01234567" : kind == 'b' ? "01" : NULL;
    if (allowed == NULL) {
        while (end < l->length && (l->text[end] == '0' || (l->text[end] == '_' && end + 1 < l->length && l->text[end + 1] == '0')))
            end++;
        return end;
    }
    size_t next = end + 1;
    for (;;) {
        size_t from = next + (next < l->length && l->text[next] == '_' ? 1u : 0u);
        if (from >= l->length || l->text[from] == '\0' || strchr(allowed, l->text[from]) == NULL)
            break;
        next = from + 1;
    }
    return next > end + 1 ? next : end;
}

static void number(lexer *l)
{
    size_t from = l->at, end = float_end(l, from);
    bool floating = end != 0;
    if (!floating)
        end = int_end(l, from);
    if (end - from > 400)
        fail_at(l, from, "a number of more than 400 characters");
    ttoken *t = emit(l, floating ? K_FLOAT : K_INT, from);
    const tstr *s = piece(l, from, end);
    bool overflow = false;
    if (floating ? !apus_tpl_parse_float(s, &t->f) : !apus_tpl_parse_int(s, 0, &t->i, &overflow))
        fail_at(l, from, "a number that cannot be read");
    if (overflow)
        fail_at(l, from, "an integer that does not fit 64 bits");
    moved(l, end);
}

static void string(lexer *l)
{
    size_t from = l->at, end = from + 1;
    while (end < l->length && l->text[end] != l->text[from])
        end += l->text[end] == '\\' ? 2 : 1;
    if (end >= l->length)
        fail_at(l, from, "a string that is not closed");
    emit(l, K_STRING, from)->text = unescaped(l, from + 1, end);
    moved(l, end + 1);
}

static void balance(lexer *l, char c)
{
    if (c == '(' || c == '[' || c == '{') {
        if (l->n_open == l->open_capacity) {
            size_t more = l->open_capacity == 0 ? 32 : l->open_capacity * 2;
            l->open = apus_tpl_grow(l->b, l->open, l->open_capacity, more);
            l->open_capacity = more;
        }
        l->open[l->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        char message[64];
        if (l->n_open == 0)
            (void)snprintf(message, sizeof message, "unexpected '%c'", c);
        else if (l->open[--l->n_open] != c)
            (void)snprintf(message, sizeof message, "unexpected '%c', expected '%c'", c, l->open[l->n_open]);
        else
            return;
        fail_at(l, l->at, message);
    }
}

static void operator(lexer *l)
{
    static const struct {
        char text[3];
        int op;
    } two[] = {{"==", O_EQ}, {"!=", O_NE}, {"<=", O_LE}, {">=", O_GE}, {"//", O_FLOORDIV}, {"**", O_POW}};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (here(l, l->at, two[i].text)) {
            emit(l, K_OPERATOR, l->at)->op = two[i].op;
            moved(l, l->at + 2);
            return;
        }
    char c = l->text[l->at];
    if (c == '\0' || strchr("+-/*%~[](){}<>=.:|,;", c) == NULL) {
        char message[48];
        (void)snprintf(message, sizeof message, "unexpected character (byte 0x%02x)", (unsigned)(unsigned char)c);
        fail_at(l, l->at, message);
    }
    balance(l, c);
    emit(l, K_OPERATOR, l->at)->op = (unsigned char)c;
    moved(l, l->at + 1);
}

/* Everything up to the end tag. */
static void inside(lexer *l, bool statement)
{
    const char *tag = statement ? "%}" : "}}";
    size_t begin = l->at;
    for (;;) {
        if (l->at >= l->length)
            fail_at(l, begin, statement ? "a {% that is not closed by %}" : "a {{ that is not closed by }}");
        size_t end = l->n_open == 0 ? end_tag(l, l->at, tag, statement, statement) : 0;
        if (end != 0) {
            emit(l, statement ? K_BLOCK_END : K_VARIABLE_END, l->at);
            moved(l, end);
            return;
        }
        size_t from = skip_space(l, l->at), to = from;
        if (from > l->at) {
            moved(l, from);
            continue;
        }
        char c = l->text[from];
        if (digit(l, from)) {
            number(l);
            continue;
        }
        while (to < l->length) {
            size_t next = to;
            if (!apus_tpl_is_word(apus_tpl_decode(l->text, l->length, &next)))
                break;
            to = next;
        }
        if (to > from) {
            emit(l, K_NAME, from)->text = piece(l, from, to);
            moved(l, to);
        } else if (c == '\'' || c == '"')
            string(l);
        else
            operator(l);
    }
}

/* ---------------------------------------------------------------- between tags */

/* Past `{%- raw -%}` at `at`; 0: something else. */
static size_t raw_begin(const lexer *l, size_t at, char *sign)
{
    size_t p = at + 2;
    *sign = p < l->length && (l->text[p] == '-' || l->text[p] == '+') ? l->text[p++] : ' ';
    p = skip_space(l, p);
    if (!here(l, p, "raw"))
        return 0;
    return end_tag(l, skip_space(l, p + 3), "%}", false, false);
}

static void raw(lexer *l, size_t begin)
{
    size_t from = l->at;
    for (size_t at = from; at + 2 <= l->length; at++) {
        if (!here(l, at, "{%"))
            continue;
        size_t p = at + 2;
        char sign = p < l->length && (l->text[p] == '-' || l->text[p] == '+') ? l->text[p++] : ' ';
        p = skip_space(l, p);
        size_t end = here(l, p, "endraw") ? end_tag(l, skip_space(l, p + 6), "%}", true, true) : 0;
        if (end == 0)
            continue;
        data(l, from, at, sign, true);
        moved(l, end);
        return;
    }
    fail_at(l, begin, "a raw block without {% endraw %}");
}

static void comment(lexer *l, size_t begin)
{
    for (size_t at = l->at; at < l->length; at++) {
        size_t end = end_tag(l, at, "#}", true, true);
        if (end != 0) {
            moved(l, end);
            return;
        }
    }
    fail_at(l, begin, "Missing end of comment tag");
}

ttokens apus_tpl_lex(tbase *b, const char *text, size_t length)
{
    lexer l = {.b = b, .place = {1, 1}, .line_start = true};
    char *clean = apus_tpl_alloc(b, length + 2);
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        clean[n++] = text[i] == '\r' ? '\n' : text[i];
        if (text[i] == '\r' && i + 1 < length && text[i + 1] == '\n')
            i++;
    }
    if (n > 0 && clean[n - 1] == '\n')
        n--;
    clean[n] = '\0';
    l.text = clean;
    l.length = n;
    while (l.at < l.length) {
        size_t from = l.at, at = from;
        while (at < l.length && !here(&l, at, "{%") && !here(&l, at, "{{") && !here(&l, at, "{#"))
            at++;
        if (at >= l.length) {
            emit(&l, K_DATA, from)->text = piece(&l, from, l.length);
            break;
        }
        char sign, kind = l.text[at + 1];
        size_t past = kind == '%' ? raw_begin(&l, at, &sign) : 0;
        if (past != 0) {
            data(&l, from, at, sign, true);
            moved(&l, past);
            raw(&l, at);
            continue;
        }
        past = at + 2;
        sign = past < l.length && (l.text[past] == '-' || l.text[past] == '+') ? l.text[past++] : ' ';
        data(&l, from, at, sign, kind != '{');
        moved(&l, past);
        if (kind == '#') {
            comment(&l, at);
            continue;
        }
        emit(&l, kind == '%' ? K_BLOCK_BEGIN : K_VARIABLE_BEGIN, at);
        inside(&l, kind == '%');
    }
    emit(&l, K_EOF, l.length);
    return l.out;
}
