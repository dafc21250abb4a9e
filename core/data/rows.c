/* core/data/rows.c: see rows.h. */
#include "data/rows.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE       apus_nodes()
#define WINDOW_MAX ((size_t)4 << 30)

typedef int (*next_row)(apus_rows *r, apus_node **row, apus_error *err);

struct apus_rows {
    apus_source *source;
    char *path, shown[1536];      /* of the open member, as messages name it */
    next_row next;                /* by its kind; NULL: none is open */
    size_t members, line, column; /* line, column: of what stands at `at`; column of .json alone */
    /* The part of the member that is in memory: bytes[at, end) are not read yet. */
    char *bytes;
    size_t at, end, capacity;
    int ended;          /* the member has no more */
    apus_status failed; /* what kind of error it was, where it is not the input's */
    /* .json: how many rows of the list were read; it stands in an object; the first row, where it was JSON Lines. */
    size_t items;
    int wrapped;
    apus_node *first;
    /* .csv, .tsv */
    char separator, *field;
    size_t n, field_capacity;
    apus_node *header;
};

/* ---------------------------------------------------------------- the window */

/* More of the member behind what is there; 0: an error. */
static int fill(apus_rows *r, apus_error *err)
{
    memmove(r->bytes, r->bytes + r->at, r->end - r->at);
    r->end -= r->at;
    r->at = 0;
    if (r->end == r->capacity) {
        char *grown = r->capacity * 2 <= WINDOW_MAX ? realloc(r->bytes, r->capacity * 2 + 1) : NULL;
        if (grown == NULL) {
            r->failed = apus_fail(err, APUS_E_MEMORY, "%s:%zu: a row or file larger than memory or 4 GiB", r->shown, r->line);
            return 0;
        }
        r->bytes = grown;
        r->capacity *= 2;
    }
    const int64_t n = apus_source_read(r->source, r->bytes + r->end, r->capacity - r->end, err);
    if (n < 0) {
        r->failed = apus_source_status(r->source);
        return 0;
    }
    r->ended = n == 0;
    r->end += (size_t)n;
    r->bytes[r->end] = '\0';
    return 1;
}

/* The next byte, not taken; -1 at the end, -2 error. */
static int peek(apus_rows *r, apus_error *err)
{
    while (r->at == r->end && !r->ended)
        if (!fill(r, err))
            return -2;
    return r->at < r->end ? (unsigned char)r->bytes[r->at] : -1;
}

/* UTF-8's byte order mark, at the beginning. */
static void skip_bom(apus_rows *r, apus_error *err)
{
    if (peek(r, err) == 0xEF && (r->end - r->at >= 3 || fill(r, err)) && r->end - r->at >= 3 && memcmp(r->bytes + r->at, "\xEF\xBB\xBF", 3) == 0)
        r->at += 3;
}

/* ---------------------------------------------------------------- JSON */

static int give(const apus_rows *r, apus_node *parsed, size_t line, apus_node **row, apus_error *err)
{
    if (NODE->kind(parsed) == APUS_NODE_MAP) {
        *row = parsed;
        return 1;
    }
    NODE->release(parsed);
    const apus_status st = apus_fail(err, APUS_E_INVALID, "%s:%zu: a row must be an object {…}", r->shown, line);
    (void)apus_hint(err, st, "one JSON object for each row");
    return -1;
}

/* The next line into bytes[at, *length); 1, 0 at the end, -1 error. */
static int next_line(apus_rows *r, size_t *length, apus_error *err)
{
    size_t seen = 0;
    for (;;) {
        const char *end = r->end - r->at > seen ? memchr(r->bytes + r->at + seen, '\n', r->end - r->at - seen) : NULL;
        seen = r->end - r->at;
        if (end != NULL || r->ended) {
            *length = end != NULL ? (size_t)(end - r->bytes) - r->at : seen;
            return end != NULL || seen > 0;
        }
        if (!fill(r, err))
            return -1;
    }
}

static int next_jsonl(apus_rows *r, apus_node **row, apus_error *err)
{
    size_t n;
    for (int more; (more = next_line(r, &n, err)) != 0;) {
        if (more < 0)
            return -1;
        const char *text = r->bytes + r->at;
        const size_t line = r->line++, blank = strspn(text, " \t\r");
        r->at += n < r->end - r->at ? n + 1 : n;
        if (blank >= n)
            continue;
        apus_error inner = {0};
        apus_node *parsed = NODE->parse_json(text, n, "", &inner);
        if (parsed == NULL) {
            const char *message = inner.message[0] == ':' ? inner.message + 1 : inner.message;
            (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: not a JSON object: %s", r->shown, line, message);
            return -1;
        }
        apus_node_place(parsed, r->shown, (int)line, 1);
        return give(r, parsed, line, row, err);
    }
    return 0;
}

/* Takes n bytes of the window. */
static void take(apus_rows *r, size_t n)
{
    for (const char *p = r->bytes + r->at, *end = p + n; p < end; p++) {
        r->line += *p == '\n';
        r->column = *p == '\n' ? 1 : r->column + (((unsigned char)*p & 0xC0) != 0x80);
    }
    r->at += n;
}

/* As peek, behind white space. */
static int peek_mark(apus_rows *r, apus_error *err)
{
    int ch;
    while ((ch = peek(r, err)) == ' ' || ch == '\t' || ch == '\r' || ch == '\n')
        take(r, 1);
    return ch;
}

static int expected(const apus_rows *r, const char *what, apus_error *err)
{
    (void)apus_fail(err, APUS_E_INVALID, "%s:%zu:%zu: expected %s", r->shown, r->line, r->column, what);
    return -1;
}

/* Brings the value at `at` into the window and tells its length. It ends with its last bracket or quote, or before what ends a number or
 * word; brackets and strings alone are looked at, the parser judges the rest. */
static int value_length(apus_rows *r, size_t *length, apus_error *err)
{
    int depth = 0, quoted = 0, ended = 0;
    size_t i = 0;
    while (!ended) {
        while (r->at + i >= r->end && !r->ended)
            if (!fill(r, err))
                return -1;
        if (r->at + i >= r->end)
            break;
        const char ch = r->bytes[r->at + i];
        const int opens = ch == '{' || ch == '[', closes = ch == '}' || ch == ']';
        if (depth == 0 && !quoted && (closes || ch == ',' || ch == ':' || ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n'))
            break;
        i += quoted && ch == '\\' ? 2 : 1;
        quoted ^= ch == '"';
        depth += quoted ? 0 : opens - closes;
        ended = depth == 0 && !quoted && (closes || ch == '"');
    }
    i = i > 0 ? i : 1; /* for the parser to name */
    *length = i < r->end - r->at ? i : r->end - r->at;
    return 0;
}

/* The value at `at`, taken; NULL: error. */
static apus_node *take_value(apus_rows *r, apus_error *err)
{
    size_t n;
    if (value_length(r, &n, err) < 0)
        return NULL;
    apus_node *value = apus_json_parse_at(r->bytes + r->at, n, r->shown, r->line, r->column, err);
    take(r, n);
    return value;
}

/* "key": taken, and what stands behind it is told as by peek_mark. NULL: error. */
static apus_node *take_key(apus_rows *r, int *ch, apus_error *err)
{
    *ch = peek_mark(r, err);
    apus_node *key = *ch == '"' ? take_value(r, err) : NULL;
    if (key == NULL) {
        if (*ch != '"' && *ch != -2)
            (void)expected(r, "a key in quotes", err);
        return NULL;
    }
    *ch = peek_mark(r, err);
    if (*ch == ':') {
        take(r, 1);
        *ch = peek_mark(r, err);
        if (*ch != -2)
            return key;
    } else if (*ch != -2) {
        (void)expected(r, "':' behind the key", err);
    }
    NODE->release(key);
    return NULL;
}

/* Behind a value in an object: 1 at a next key, 0 when the object is closed and taken, -1 error. */
static int more_keys(apus_rows *r, apus_error *err)
{
    const int ch = peek_mark(r, err);
    if (ch != ',' && ch != '}')
        return ch == -2 ? -1 : expected(r, "',' or '}' in an object", err);
    take(r, 1);
    return ch == ',';
}

/* Behind the last row: what else the object has, and then nothing. */
static int end_list(apus_rows *r, apus_error *err)
{
    int more = r->wrapped, ch;
    while (more && (more = more_keys(r, err)) > 0) {
        apus_node *key = take_key(r, &ch, err), *value = key != NULL ? take_value(r, err) : NULL;
        NODE->release(key);
        NODE->release(value);
        more = value != NULL ? 1 : -1;
        if (more < 0)
            return -1;
    }
    if (more < 0)
        return -1;
    ch = peek_mark(r, err);
    return ch == -1 ? 0 : ch == -2 ? -1 : expected(r, "the end of the file behind the list of rows", err);
}

static int next_item(apus_rows *r, apus_node **row, apus_error *err)
{
    int ch = peek_mark(r, err);
    if (ch == ']') {
        take(r, 1);
        return end_list(r, err);
    }
    if (r->items > 0 && ch == ',') {
        take(r, 1);
        if (peek_mark(r, err) == ']')
            return expected(r, "a row: JSON wants one after each comma", err);
    } else if (r->items > 0) {
        return ch == -2 ? -1 : expected(r, "',' or ']' in the list of rows", err);
    }
    ch = peek_mark(r, err);
    const size_t line = r->line;
    apus_node *parsed = ch != -2 ? take_value(r, err) : NULL;
    r->items++;
    return parsed != NULL ? give(r, parsed, line, row, err) : -1;
}

static int next_first(apus_rows *r, apus_node **row, apus_error *err)
{
    (void)err;
    *row = r->first;
    r->first = NULL;
    r->next = next_jsonl;
    return 1;
}

/* {"data": [...]}, or JSON Lines under the name .json, which are common: then its first row is read already. */
static int open_object(apus_rows *r, apus_error *err)
{
    const size_t line = r->line;
    int more = 1, ch;
    r->first = NODE->make_map();
    apus_node_place(r->first, r->shown, (int)line, 1);
    take(r, 1);
    if (peek_mark(r, err) == '}') {
        take(r, 1);
        more = 0;
    }
    while (more) {
        apus_node *key = take_key(r, &ch, err);
        const char *name = NODE->as_string(key, NULL);
        apus_node *value = NULL;
        if (name != NULL && strcmp(name, "data") == 0 && ch == '[') {
            NODE->release(key);
            r->wrapped = 1;
            take(r, 1);
            return 1;
        }
        if (name != NULL)
            value = take_value(r, err);
        if (value != NULL)
            (void)NODE->set(r->first, name, value);
        NODE->release(key);
        if (value == NULL || (more = more_keys(r, err)) < 0)
            return 0;
    }
    ch = peek_mark(r, err);
    if (ch == -1) {
        (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: expected a list of objects", r->shown, line);
        (void)apus_hint(err, APUS_E_INVALID, "[{…}, {…}], or {\"data\": [{…}]}");
    }
    r->next = next_first;
    return ch >= 0;
}

static int open_json(apus_rows *r, apus_error *err)
{
    skip_bom(r, err);
    const int ch = peek_mark(r, err);
    if (ch == '{')
        return open_object(r, err);
    if (ch == '[') {
        take(r, 1);
        return 1;
    }
    apus_node *other = ch != -2 ? take_value(r, err) : NULL;
    if (other != NULL) {
        NODE->release(other);
        (void)apus_fail(err, APUS_E_INVALID, "%s:1: expected a list of objects", r->shown);
        (void)apus_hint(err, APUS_E_INVALID, "[{…}, {…}], or {\"data\": [{…}]}");
    }
    return 0;
}

/* ---------------------------------------------------------------- CSV (RFC 4180) */

static int push(apus_rows *r, char ch)
{
    if (r->n + 1 >= r->field_capacity) {
        char *grown = realloc(r->field, r->field_capacity ? r->field_capacity * 2 : 256);
        if (grown == NULL)
            return 0;
        r->field_capacity = r->field_capacity ? r->field_capacity * 2 : 256;
        r->field = grown;
    }
    r->field[r->n++] = ch;
    r->field[r->n] = '\0';
    return 1;
}

static int no_memory(apus_rows *r, size_t line, apus_error *err)
{
    r->failed = apus_fail(err, APUS_E_MEMORY, "%s:%zu: out of memory", r->shown, line);
    return -1;
}

static int csv_fault(const apus_rows *r, size_t line, const char *what, apus_error *err)
{
    (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: %s", r->shown, line, what);
    return -1;
}

/* Next field into r->field. Returns what ended it: separator, '\n', 0 at the end of the file, -1 error. */
static int next_field(apus_rows *r, apus_error *err)
{
    const size_t opened = r->line;
    int ch = peek(r, err), quoted = ch == '"';
    r->n = 0;
    r->at += (size_t)quoted;
    if (!push(r, ' '))
        return no_memory(r, opened, err);
    r->n = 0;
    r->field[0] = '\0';
    while ((ch = peek(r, err)) >= 0) {
        r->at++;
        if (quoted && ch == '"') {
            ch = peek(r, err);
            if (ch == '"') {
                r->at++;
            } else {
                quoted = 0;
                if (ch >= 0 && ch != r->separator && ch != '\n' && ch != '\r')
                    return csv_fault(r, r->line, "text after a closing quote", err);
                continue;
            }
        } else if (!quoted && ch == r->separator) {
            return ch;
        } else if (!quoted && ch == '\r' && peek(r, err) == '\n') {
            continue;
        } else if (ch == '\n') {
            r->line++;
            if (!quoted)
                return '\n';
        }
        if (!push(r, (char)ch))
            return no_memory(r, opened, err);
    }
    return ch == -2 ? -1 : quoted ? csv_fault(r, opened, "a quoted field that is never closed", err) : 0;
}

static int open_csv(apus_rows *r, apus_error *err)
{
    int end;
    skip_bom(r, err);
    r->header = NODE->make_list();
    do {
        end = next_field(r, err);
        if (end >= 0)
            (void)NODE->append(r->header, NODE->make_string(r->field, r->n));
    } while (end > 0 && end != '\n');
    return end >= 0;
}

static int next_csv(apus_rows *r, apus_node **row, apus_error *err)
{
    while (peek(r, err) >= 0) {
        const size_t line = r->line, columns = NODE->length(r->header);
        apus_node *map = NODE->make_map();
        size_t k = 0;
        int end;
        do {
            end = next_field(r, err);
            const char *column = NODE->as_string(NODE->at(r->header, k), NULL);
            if (end >= 0 && column == NULL && !(k == 1 && r->n == 0)) {
                (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: more fields than the header has columns (%zu)", r->shown, line, columns);
                end = -1;
            } else if (end >= 0 && column != NULL) {
                (void)NODE->set(map, column, NODE->make_string(r->field, r->n));
                k++;
            }
        } while (end > 0 && end != '\n');
        const int blank = k == 1 && columns > 1 && r->n == 0;
        if (end >= 0 && k < columns && !blank) {
            (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: %zu fields, but the header has %zu columns", r->shown, line, k, columns);
            end = -1;
        }
        if (end >= 0 && !blank) {
            apus_node_place(map, r->shown, (int)line, 1);
            *row = map;
            return 1;
        }
        NODE->release(map);
        if (end < 0)
            return -1;
    }
    return peek(r, err) == -2 ? -1 : 0;
}

/* ---------------------------------------------------------------- text */

static int next_text(apus_rows *r, apus_node **row, apus_error *err)
{
    if (r->line == 0)
        return 0;
    while (!r->ended)
        if (!fill(r, err))
            return -1;
    r->line = 0; /* one row: the whole file */
    *row = NODE->make_map();
    (void)NODE->set(*row, "text", NODE->make_string(r->bytes, r->end));
    apus_node_place(*row, r->shown, 1, 1);
    r->at = r->end;
    return 1;
}

/* ---------------------------------------------------------------- members */

static int has_extension(const char *name, const char *extension)
{
    const size_t n = strlen(name), k = strlen(extension);
    return n >= k && strcasecmp(name + n - k, extension) == 0;
}

static void close_member(apus_rows *r)
{
    NODE->release(r->first);
    NODE->release(r->header);
    r->first = r->header = NULL;
    r->next = NULL;
}

/* 1 when the member is ready, -1 error. */
static int open_member(apus_rows *r, const char *name, apus_error *err)
{
    const char *base = strrchr(r->path, '/');
    base = base != NULL ? base + 1 : r->path;
    /* A plain or compressed file is named by its path, a member of an archive behind it. */
    if (strncmp(base, name, strlen(name)) == 0)
        snprintf(r->shown, sizeof r->shown, "%.*s%s", (int)(base - r->path), r->path, name);
    else
        snprintf(r->shown, sizeof r->shown, "%s:%s", r->path, name);
    r->at = r->end = r->items = 0;
    r->ended = r->wrapped = 0;
    r->line = r->column = 1;
    r->members++;
    if (has_extension(name, ".jsonl") || has_extension(name, ".ndjson")) {
        r->next = next_jsonl;
    } else if (has_extension(name, ".json")) {
        r->next = next_item;
        return open_json(r, err) ? 1 : -1;
    } else if (has_extension(name, ".csv") || has_extension(name, ".tsv")) {
        r->next = next_csv;
        r->separator = has_extension(name, ".csv") ? ',' : '\t';
        return open_csv(r, err) ? 1 : -1;
    } else if (has_extension(name, ".txt") || has_extension(name, ".md")) {
        r->next = next_text;
    } else {
        r->failed = apus_fail(err, APUS_E_UNSUPPORTED, "%s: rows cannot be read from a file of this kind", r->shown);
        (void)apus_hint(err, r->failed, ".jsonl, .json, .csv, .tsv, .txt or .md, plain, compressed (.gz .xz .zst .bz2) or in an archive");
        return -1;
    }
    return 1;
}

apus_status apus_rows_open(const char *path, apus_rows **rows, apus_error *err)
{
    apus_rows *r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->capacity = (size_t)1 << 20;
        r->bytes = malloc(r->capacity + 1);
        r->path = strdup(path);
    }
    if (r == NULL || r->bytes == NULL || r->path == NULL) {
        apus_rows_close(r);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    const apus_status st = apus_source_open(path, &r->source, err);
    if (st == APUS_OK)
        *rows = r;
    else
        apus_rows_close(r);
    return st;
}

/* 1: a row, 0: the end, -1: error. */
static int next(apus_rows *r, apus_node **row, apus_error *err)
{
    for (;;) {
        if (r->next == NULL) {
            const char *name;
            const int more = apus_source_next(r->source, &name, err);
            r->failed = more < 0 ? apus_source_status(r->source) : APUS_OK;
            if (more == 0 && r->members == 0) {
                (void)apus_fail(err, APUS_E_INVALID, "%s: there is no file in it", r->path);
                return -1;
            }
            if (more <= 0 || open_member(r, name, err) < 0)
                return more == 0 ? 0 : -1;
        }
        const int found = r->next(r, row, err);
        if (found != 0)
            return found;
        close_member(r);
    }
}

apus_status apus_rows_next(apus_rows *r, apus_node **row, apus_error *err)
{
    apus_node *read = NULL;
    if (next(r, &read, err) < 0)
        return r->failed != APUS_OK ? r->failed : APUS_E_INVALID;
    *row = read;
    return APUS_OK;
}

void apus_rows_close(apus_rows *r)
{
    if (r == NULL)
        return;
    close_member(r);
    if (r->source != NULL)
        apus_source_close(r->source);
    free(r->field);
    free(r->bytes);
    free(r->path);
    free(r);
}
