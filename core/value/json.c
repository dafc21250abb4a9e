/*
 * core/value/json: JSON text to nodes and back. Strict RFC 8259, plus NaN and Infinity as Python writes them; every
 * value keeps its line and column, which the general libraries do not tell. Text is not checked to be UTF-8: data files
 * that are not keep their bytes, and writing replaces what is no UTF-8 by U+FFFD.
 */
#include "value/layout.h"
#include "value/node.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_LIMIT = 200 };

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---------------------------------------------------------------- reading */

typedef struct reader {
    const char *p, *end;
    const char *mark; /* up to where `column` counts */
    uint32_t line;    /* from 1 */
    uint32_t column;  /* characters before mark on its line */
    uint32_t file;    /* interned */
    int depth;
    const char *name;
    apus_error *err;
} reader;

/* Column of `at` (on the current line, at or after mark), from 1, in characters. */
static uint32_t column_of(reader *r, const char *at)
{
    uint32_t column = r->column;
    for (const char *p = r->mark; p < at; p++)
        column += ((unsigned char)*p & 0xC0) != 0x80;
    r->mark = at;
    r->column = column;
    return column + 1;
}

static APUS_PRINTF(3, 4) apus_node *fail(reader *r, const char *at, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    (void)apus_fail(r->err, APUS_E_INVALID, "%s:%u:%u: %s", r->name, r->line, column_of(r, at), text);
    return NULL;
}

static apus_node *no_memory(reader *r)
{
    (void)apus_fail(r->err, APUS_E_MEMORY, "%s:%u: out of memory while reading JSON", r->name, r->line);
    return NULL;
}

static apus_node *made(reader *r, apus_node *n)
{
    return n != NULL ? n : no_memory(r);
}

/* What stands at p, for a message: one character, quoted, or its name. */
static const char *found(const reader *r, const char *p, char buffer[24])
{
    if (p >= r->end)
        return "the end of the text";
    unsigned char c = (unsigned char)*p;
    if (c > 0x20 && c < 0x7F)
        (void)snprintf(buffer, 24, c == '\'' ? "\"%c\"" : "'%c'", c);
    else
        (void)snprintf(buffer, 24, c == ' ' ? "a blank" : "byte 0x%02x", c);
    return buffer;
}

static void skip_space(reader *r)
{
    for (; r->p < r->end; r->p++) {
        if (*r->p == '\n') {
            r->line++;
            r->mark = r->p + 1;
            r->column = 0;
        } else if (*r->p != ' ' && *r->p != '\t' && *r->p != '\r') {
            break;
        }
    }
}

static int hex4(const char *p, const char *end, uint32_t *v)
{
    if (end - p < 4)
        return 0;
    *v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0)
            return 0;
        *v = *v << 4 | (uint32_t)d;
    }
    return 1;
}

static size_t put_utf8(char *o, uint32_t c)
{
    if (c < 0x80) {
        o[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        o[0] = (char)(0xC0 | c >> 6);
        o[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        o[0] = (char)(0xE0 | c >> 12);
        o[1] = (char)(0x80 | (c >> 6 & 63));
        o[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    o[0] = (char)(0xF0 | c >> 18);
    o[1] = (char)(0x80 | (c >> 12 & 63));
    o[2] = (char)(0x80 | (c >> 6 & 63));
    o[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* At the opening quote: find the end of the string and whether it needs decoding. p moves past the closing quote. */
static const char *scan_string(reader *r, size_t *raw, int *escapes)
{
    const char *begin = r->p + 1, *p = begin;
    *escapes = 0;
    for (;; p++) {
        while (p < r->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
            p++;
        if (p >= r->end) {
            (void)fail(r, r->p, "a string that begins here is never closed");
            return NULL;
        }
        if (*p == '"')
            break;
        if ((unsigned char)*p < 0x20) {
            if (*p == '\n')
                (void)fail(r, p, "a line break inside a string: write \\n, or close the string with '\"'");
            else
                (void)fail(r, p, "a control character (byte 0x%02x) inside a string: write \\u%04x", (unsigned)*p, (unsigned)*p);
            return NULL;
        }
        *escapes = 1;
        if (++p >= r->end) {
            (void)fail(r, r->p, "a string that begins here is never closed");
            return NULL;
        }
    }
    *raw = (size_t)(p - begin);
    r->p = p + 1;
    return begin;
}

/* Decode raw[0..n) into o, which holds n bytes; returns the length, or SIZE_MAX after fail(). */
static size_t decode_string(reader *r, const char *raw, size_t n, char *o)
{
    const char *p = raw, *end = raw + n;
    char *begin = o;
    while (p < end) {
        if (*p != '\\') {
            *o++ = *p++;
            continue;
        }
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char *known = p[1] == '\0' ? NULL : strchr(from, p[1]);
        if (known != NULL) {
            *o++ = to[known - from];
            p += 2;
            continue;
        }
        uint32_t c = 0, low = 0;
        char room[24];
        if (p[1] != 'u') {
            (void)fail(r, p, "an unknown escape: '\\' followed by %s", found(r, p + 1, room));
            return SIZE_MAX;
        }
        if (!hex4(p + 2, end, &c)) {
            (void)fail(r, p, "\\u needs four hexadecimal digits");
            return SIZE_MAX;
        }
        const char *at = p;
        p += 6;
        if (c >= 0xD800 && c < 0xE000) {
            if (c >= 0xDC00 || end - p < 2 || p[0] != '\\' || p[1] != 'u' || !hex4(p + 2, end, &low) || low < 0xDC00 || low > 0xDFFF) {
                (void)fail(r, at, "\\u%04x is half of a surrogate pair: its other half is missing", c);
                return SIZE_MAX;
            }
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
            p += 6;
        }
        o += put_utf8(o, c);
    }
    return (size_t)(o - begin);
}

static apus_node *read_string(reader *r)
{
    size_t raw = 0;
    int escapes = 0;
    const char *text = scan_string(r, &raw, &escapes);
    if (text == NULL)
        return NULL;
    apus_node *n = apus_node_string_room(raw);
    if (n == NULL)
        return no_memory(r);
    if (!escapes) {
        memcpy(n->as.string.bytes, text, raw);
        return n;
    }
    size_t length = decode_string(r, text, raw, n->as.string.bytes);
    if (length == SIZE_MAX) {
        free(n);
        return NULL;
    }
    n->as.string.bytes[length] = '\0';
    n->as.string.length = length;
    return n;
}

static char *read_key(reader *r)
{
    size_t raw = 0;
    int escapes = 0;
    const char *at = r->p, *text = scan_string(r, &raw, &escapes);
    if (text == NULL)
        return NULL;
    char *key = malloc(raw + 1);
    if (key == NULL) {
        (void)no_memory(r);
        return NULL;
    }
    size_t length = raw;
    if (escapes)
        length = decode_string(r, text, raw, key);
    else
        memcpy(key, text, raw);
    if (length != SIZE_MAX && memchr(key, '\0', length) != NULL) {
        (void)fail(r, at, "a key that holds the character U+0000");
        length = SIZE_MAX;
    }
    if (length == SIZE_MAX) {
        free(key);
        return NULL;
    }
    key[length] = '\0';
    return key;
}

static apus_node *read_number(reader *r)
{
    const apus_node_api *api = apus_nodes();
    const char *begin = r->p, *p = begin;
    char room[24];
    int negative = *p == '-', whole = 1;
    p += negative;
    if (p < r->end && *p == 'I' && r->end - p >= 8 && memcmp(p, "Infinity", 8) == 0) {
        r->p = p + 8;
        return made(r, api->make_float(negative ? -INFINITY : INFINITY));
    }
    if (p >= r->end || !is_digit(*p))
        return fail(r, p, "expected a digit after '-', found %s", found(r, p, room));
    if (*p == '0' && p + 1 < r->end && is_digit(p[1]))
        return fail(r, begin, "a number that begins with 0 and goes on: leave the leading zero out");
    uint64_t v = 0;
    int fits = 1;
    for (; p < r->end && is_digit(*p); p++) {
        uint64_t d = (uint64_t)(*p - '0');
        if (v > (UINT64_MAX - d) / 10)
            fits = 0;
        else
            v = v * 10 + d;
    }
    if (p < r->end && *p == '.') {
        whole = 0;
        if (++p >= r->end || !is_digit(*p))
            return fail(r, p, "expected a digit after '.', found %s", found(r, p, room));
        while (p < r->end && is_digit(*p))
            p++;
    }
    if (p < r->end && (*p == 'e' || *p == 'E')) {
        whole = 0;
        p++;
        if (p < r->end && (*p == '-' || *p == '+'))
            p++;
        if (p >= r->end || !is_digit(*p))
            return fail(r, p, "expected a digit in the exponent, found %s", found(r, p, room));
        while (p < r->end && is_digit(*p))
            p++;
    }
    r->p = p;
    /* A whole number beyond int64 (model_max_length: 1e30 in full) becomes the nearest float. */
    if (whole && fits && v <= (uint64_t)INT64_MAX + (uint64_t)negative)
        return made(r, api->make_int(negative ? (int64_t)(0 - v) : (int64_t)v));
    double d = 0;
    if (!apus_read_double(begin, (size_t)(p - begin), &d))
        return no_memory(r);
    return made(r, api->make_float(d));
}

static apus_node *read_value(reader *r);

static apus_node *read_list(reader *r)
{
    const apus_node_api *api = apus_nodes();
    char room[24];
    apus_node *list = api->make_list();
    if (list == NULL)
        return no_memory(r);
    r->p++;
    skip_space(r);
    if (r->p < r->end && *r->p == ']') {
        r->p++;
        return list;
    }
    for (;;) {
        apus_node *item = read_value(r);
        if (item == NULL)
            break;
        if (api->append(list, item) != APUS_OK) {
            (void)no_memory(r);
            break;
        }
        skip_space(r);
        if (r->p < r->end && *r->p == ',') {
            const char *comma = r->p++;
            skip_space(r);
            if (r->p < r->end && *r->p == ']') {
                (void)fail(r, comma < r->mark ? r->p : comma, "a comma before ']': JSON wants a value after each comma");
                break;
            }
        } else if (r->p < r->end && *r->p == ']') {
            r->p++;
            apus_node_trim(list);
            return list;
        } else {
            (void)fail(r, r->p, "expected ',' or ']' in a list, found %s", found(r, r->p, room));
            break;
        }
    }
    api->release(list);
    return NULL;
}

static apus_node *read_map(reader *r)
{
    const apus_node_api *api = apus_nodes();
    char room[24];
    apus_node *map = api->make_map();
    if (map == NULL)
        return no_memory(r);
    r->p++;
    skip_space(r);
    if (r->p < r->end && *r->p == '}') {
        r->p++;
        return map;
    }
    for (;;) {
        if (r->p >= r->end || *r->p != '"') {
            (void)fail(r, r->p, "expected a key in double quotes, found %s", found(r, r->p, room));
            break;
        }
        uint32_t key_line = r->line, key_column = column_of(r, r->p), at = 0;
        char *key = read_key(r);
        if (key == NULL)
            break;
        skip_space(r);
        if (r->p >= r->end || *r->p != ':') {
            (void)fail(r, r->p, "expected ':' after a key, found %s", found(r, r->p, room));
            free(key);
            break;
        }
        r->p++;
        apus_node *value = read_value(r);
        if (value == NULL) {
            free(key);
            break;
        }
        apus_status st = apus_map_add(map, key, value, &at);
        if (st != APUS_OK) {
            if (st == APUS_E_MEMORY) {
                (void)no_memory(r);
                break;
            }
            char key_text[80];
            (void)apus_fail(r->err, APUS_E_INVALID, "%s:%u:%u: the key '%s' is there twice (first on line %u)", r->name, key_line, key_column,
                            apus_show(key_text, sizeof key_text, api->key_at(map, at), (size_t)-1), map->as.map->entries[at].line);
            break;
        }
        map->as.map->entries[at].line = key_line;
        map->as.map->entries[at].column = key_column;
        skip_space(r);
        if (r->p < r->end && *r->p == ',') {
            r->p++;
            skip_space(r);
            if (r->p < r->end && *r->p == '}') {
                (void)fail(r, r->p, "a comma before '}': JSON wants a key after each comma");
                break;
            }
        } else if (r->p < r->end && *r->p == '}') {
            r->p++;
            apus_node_trim(map);
            return map;
        } else {
            (void)fail(r, r->p, "expected ',' or '}' in a map, found %s", found(r, r->p, room));
            break;
        }
    }
    api->release(map);
    return NULL;
}

static int word(reader *r, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, w, n) != 0)
        return 0;
    r->p += n;
    return 1;
}

static apus_node *read_value(reader *r)
{
    const apus_node_api *api = apus_nodes();
    skip_space(r);
    char room[24];
    const char *at = r->p;
    if (at >= r->end)
        return fail(r, at, "expected a value, found the end of the text");
    uint32_t line = r->line, column = column_of(r, at);
    apus_node *n = NULL;
    switch (*at) {
    case '{':
    case '[':
        if (++r->depth > DEPTH_LIMIT)
            return fail(r, at, "nested deeper than %d levels", DEPTH_LIMIT);
        n = *at == '{' ? read_map(r) : read_list(r);
        r->depth--;
        break;
    case '"':
        n = read_string(r);
        break;
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9':
        n = read_number(r);
        break;
    default:
        if (word(r, "true") || word(r, "false"))
            n = made(r, api->make_bool(*at == 't'));
        else if (word(r, "null"))
            n = made(r, api->make_null());
        else if (word(r, "NaN"))
            n = made(r, api->make_float(NAN));
        else if (word(r, "Infinity"))
            n = made(r, api->make_float(INFINITY));
        else
            return fail(r, at, "expected a value, found %s", found(r, at, room));
    }
    if (n == NULL)
        return NULL;
    n->file = r->file;
    n->line = line;
    n->column = column;
    return n;
}

apus_node *apus_json_parse_at(const char *text, size_t length, const char *name, size_t line, size_t column, apus_error *err)
{
    if (name == NULL)
        name = "(text)";
    if (text == NULL)
        length = 0, text = "";
    if (length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
        text += 3, length -= 3;
    reader r = {.p = text,
                .end = text + length,
                .mark = text,
                .line = (uint32_t)line,
                .column = (uint32_t)column - 1,
                .file = apus_file_intern(name),
                .name = name,
                .err = err};
    apus_node *n = read_value(&r);
    if (n == NULL)
        return NULL;
    skip_space(&r);
    if (r.p < r.end) {
        char room[24];
        (void)fail(&r, r.p, "expected the end of the text after the value, found %s", found(&r, r.p, room));
        apus_nodes()->release(n);
        return NULL;
    }
    return n;
}

apus_node *apus_json_parse(const char *text, size_t length, const char *name, apus_error *err)
{
    return apus_json_parse_at(text, length, name, 1, 1, err);
}

/* ---------------------------------------------------------------- writing */

typedef struct writer {
    char *bytes;
    size_t length, capacity;
    int flags, failed;
} writer;

static char *room_for(writer *w, size_t n)
{
    if (w->failed)
        return NULL;
    if (w->capacity - w->length < n) {
        size_t capacity = w->capacity * 2 > w->length + n ? w->capacity * 2 : w->length + n + 64;
        char *bytes = realloc(w->bytes, capacity);
        if (bytes == NULL) {
            w->failed = 1;
            return NULL;
        }
        w->bytes = bytes;
        w->capacity = capacity;
    }
    return w->bytes + w->length;
}

static void put(writer *w, const char *text, size_t n)
{
    char *o = room_for(w, n);
    if (o != NULL) {
        memcpy(o, text, n);
        w->length += n;
    }
}

/* One character of UTF-8 at p: its bytes and code point; an invalid byte gives 1 and U+FFFD. */
static size_t get_utf8(const unsigned char *p, const unsigned char *end, uint32_t *c)
{
    size_t n = *p >= 0xF0 && *p < 0xF5 ? 4 : *p >= 0xE0 && *p < 0xF0 ? 3 : *p >= 0xC2 && *p < 0xE0 ? 2 : 1;
    *c = n == 4 ? *p & 7u : n == 3 ? *p & 15u : *p & 31u;
    if ((size_t)(end - p) < n)
        n = 1;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            n = 1;
            break;
        }
        *c = *c << 6 | (p[i] & 63u);
    }
    if (n == 1 || (n == 3 && *c < 0x800) || (n == 4 && (*c < 0x10000 || *c > 0x10FFFF)) || (*c >= 0xD800 && *c < 0xE000)) {
        *c = 0xFFFD;
        n = 1;
    }
    return n;
}

static void put_string(writer *w, const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + n;
    put(w, "\"", 1);
    while (p < end) {
        const unsigned char *run = p;
        while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\')
            p++;
        put(w, (const char *)run, (size_t)(p - run));
        if (p == end)
            break;
        char out[16];
        if (*p >= 0x80) {
            uint32_t c;
            size_t bytes = get_utf8(p, end, &c);
            p += bytes;
            if (!(w->flags & APUS_JSON_ASCII))
                put(w, out, put_utf8(out, c));
            else if (c < 0x10000)
                put(w, out, (size_t)sprintf(out, "\\u%04x", c));
            else
                put(w, out, (size_t)sprintf(out, "\\u%04x\\u%04x", 0xD7C0 + (c >> 10), 0xDC00 | (c & 0x3FF)));
            continue;
        }
        static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
        const char *known = *p == '\0' ? NULL : strchr(plain, *p);
        if (known != NULL)
            put(w, out, (size_t)sprintf(out, "\\%c", letter[known - plain]));
        else
            put(w, out, (size_t)sprintf(out, "\\u%04x", *p));
        p++;
    }
    put(w, "\"", 1);
}

static void new_line(writer *w, int depth)
{
    if (!(w->flags & APUS_JSON_INDENT))
        return;
    put(w, "\n", 1);
    for (int i = 0; i < depth; i++)
        put(w, "  ", 2);
}

static void put_value(writer *w, const apus_node *n, int depth)
{
    const apus_node_api *api = apus_nodes();
    char text[40];
    size_t length = 0;
    switch (api->kind(n)) {
    case APUS_NODE_BOOL:
        put(w, n->as.boolean ? "true" : "false", n->as.boolean ? 4 : 5);
        break;
    case APUS_NODE_INT:
        put(w, text, (size_t)sprintf(text, "%lld", (long long)n->as.integer));
        break;
    case APUS_NODE_FLOAT:
        length = apus_format_double(text, n->as.real);
        put(w, text, length);
        break;
    case APUS_NODE_STRING:
        put_string(w, n->as.string.bytes, n->as.string.length);
        break;
    case APUS_NODE_LIST:
    case APUS_NODE_MAP: {
        int map = n->kind == APUS_NODE_MAP;
        length = api->length(n);
        put(w, map ? "{" : "[", 1);
        for (size_t i = 0; i < length; i++) {
            if (i > 0)
                put(w, ", ", w->flags & APUS_JSON_INDENT ? 1 : 2);
            new_line(w, depth + 1);
            if (map) {
                put_string(w, api->key_at(n, i), strlen(api->key_at(n, i)));
                put(w, ": ", 2);
            }
            put_value(w, api->at(n, i), depth + 1);
        }
        if (length > 0)
            new_line(w, depth);
        put(w, map ? "}" : "]", 1);
        break;
    }
    default:
        put(w, "null", 4);
    }
}

char *apus_json_write(const apus_node *n, int flags, size_t *length)
{
    writer w = {.flags = flags};
    put_value(&w, n, 0);
    put(&w, "", 1);
    if (length != NULL)
        *length = w.failed ? 0 : w.length - 1;
    if (w.failed) {
        free(w.bytes);
        return NULL;
    }
    return w.bytes;
}
