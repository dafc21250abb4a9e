/* core/data/rows.c: see rows.h. */
#include "data/rows.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define MEMBER_LIMIT ((size_t)4 << 30)

static int full(const apus_node *list, size_t limit)
{
    return limit > 0 && NODE->length(list) >= limit;
}

/* ---------------------------------------------------------------- JSON */

static apus_status add_row(apus_node *list, apus_node *row, const char *name, size_t line, apus_error *err)
{
    if (NODE->kind(row) == APUS_NODE_MAP)
        return NODE->append(list, row);
    NODE->release(row);
    apus_fail(err, APUS_E_INVALID, "%s:%zu: a row must be an object {…}", name, line);
    return apus_hint(err, APUS_E_INVALID, "one JSON object for each row");
}

static apus_status parse_lines(const char *name, const char *bytes, size_t length, size_t limit, apus_node *list, apus_error *err)
{
    size_t line = 1;
    for (size_t at = 0; at < length && !full(list, limit); line++) {
        const char *end = memchr(bytes + at, '\n', length - at);
        const size_t n = end != NULL ? (size_t)(end - bytes) - at : length - at;
        size_t first = 0;
        while (first < n && strchr(" \t\r", bytes[at + first]) != NULL)
            first++;
        if (first < n) {
            char where[1024];
            apus_error inner = {0};
            apus_node *row = NODE->parse_json(bytes + at, n, "", &inner);
            if (row == NULL) {
                snprintf(where, sizeof where, "%s:%zu", name, line);
                const char *message = inner.message[0] == ':' ? inner.message + 1 : inner.message;
                return apus_fail(err, APUS_E_INVALID, "%s: not a JSON object: %s", where, message);
            }
            apus_node_place(row, name, (int)line, 1);
            apus_status st = add_row(list, row, name, line, err);
            if (st != APUS_OK)
                return st;
        }
        at += n + 1;
    }
    return APUS_OK;
}

static apus_status parse_list(const char *name, const char *bytes, size_t length, size_t limit, apus_node *list, apus_error *err)
{
    apus_node *root = NODE->parse_json(bytes, length, name, err);
    if (root == NULL) { /* JSON Lines under the name .json is common */
        apus_error lines = {0};
        const size_t before = NODE->length(list);
        if (parse_lines(name, bytes, length, limit, list, &lines) == APUS_OK && NODE->length(list) > before)
            return APUS_OK;
        return APUS_E_INVALID;
    }
    const apus_node *rows = NODE->kind(root) == APUS_NODE_LIST ? root : NODE->get(root, "data");
    apus_status st = APUS_OK;
    if (NODE->kind(rows) != APUS_NODE_LIST) {
        st = apus_fail(err, APUS_E_INVALID, "%s:1: expected a list of objects", name);
        apus_hint(err, st, "[{…}, {…}], or {\"data\": [{…}]}");
    }
    for (size_t i = 0; i < NODE->length(rows) && st == APUS_OK && !full(list, limit); i++)
        st = add_row(list, NODE->copy(NODE->at(rows, i)), name, i + 1, err);
    NODE->release(root);
    return st;
}

/* ---------------------------------------------------------------- CSV (RFC 4180) */

typedef struct csv {
    const char *bytes, *name;
    size_t length, at, line;
    char separator;
    char *field;
    size_t n, capacity;
} csv;

static int push(csv *c, char ch)
{
    if (c->n + 1 >= c->capacity) {
        c->capacity = c->capacity ? c->capacity * 2 : 256;
        char *grown = realloc(c->field, c->capacity);
        if (grown == NULL)
            return 0;
        c->field = grown;
    }
    c->field[c->n++] = ch;
    c->field[c->n] = '\0';
    return 1;
}

/* Next field into c->field. Returns what ended it: separator, '\n', 0 at the end of the file, -1 error. */
static int next_field(csv *c, apus_error *err)
{
    c->n = 0;
    if (!push(c, ' '))
        return -1;
    c->n = 0;
    c->field[0] = '\0';
    const size_t opened = c->line;
    int quoted = c->at < c->length && c->bytes[c->at] == '"';
    c->at += (size_t)quoted;
    while (c->at < c->length) {
        const char ch = c->bytes[c->at++];
        if (quoted && ch == '"') {
            if (c->at < c->length && c->bytes[c->at] == '"') {
                c->at++;
                if (!push(c, '"'))
                    return -1;
                continue;
            }
            quoted = 0;
            if (c->at < c->length && c->bytes[c->at] != c->separator && c->bytes[c->at] != '\n' && c->bytes[c->at] != '\r') {
                (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: text after a closing quote", c->name, c->line);
                return -1;
            }
            continue;
        }
        if (!quoted && ch == c->separator)
            return ch;
        if (!quoted && ch == '\r' && c->at < c->length && c->bytes[c->at] == '\n')
            continue;
        if (ch == '\n') {
            c->line++;
            if (!quoted)
                return '\n';
        }
        if (!push(c, ch))
            return -1;
    }
    if (quoted) {
        (void)apus_fail(err, APUS_E_INVALID, "%s:%zu: a quoted field that is never closed", c->name, opened);
        return -1;
    }
    return 0;
}

static apus_status parse_csv(const char *name, const char *bytes, size_t length, char separator, size_t limit, apus_node *list, apus_error *err)
{
    csv c = {.bytes = bytes, .name = name, .length = length, .line = 1, .separator = separator};
    if (length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0)
        c.at = 3;
    apus_node *header = NODE->make_list();
    apus_status st = APUS_OK;
    int end;
    do {
        end = next_field(&c, err);
        if (end >= 0)
            (void)NODE->append(header, NODE->make_string(c.field, c.n));
    } while (end > 0 && end != '\n');
    if (end < 0)
        st = APUS_E_INVALID;
    while (st == APUS_OK && c.at < c.length && !full(list, limit)) {
        const size_t line = c.line;
        apus_node *row = NODE->make_map();
        size_t k = 0;
        do {
            end = next_field(&c, err);
            const char *column = NODE->as_string(NODE->at(header, k), NULL);
            if (end < 0) {
                st = APUS_E_INVALID;
            } else if (column == NULL && !(k == 1 && c.n == 0)) {
                st = apus_fail(err, APUS_E_INVALID, "%s:%zu: more fields than the header has columns (%zu)", name, line, NODE->length(header));
            } else if (column != NULL) {
                (void)NODE->set(row, column, NODE->make_string(c.field, c.n));
                k++;
            }
        } while (st == APUS_OK && end > 0 && end != '\n');
        const int blank = k == 1 && NODE->length(header) > 1;
        if (st == APUS_OK && k < NODE->length(header) && !blank)
            st = apus_fail(err, APUS_E_INVALID, "%s:%zu: %zu fields, but the header has %zu columns", name, line, k, NODE->length(header));
        if (st != APUS_OK || blank) {
            NODE->release(row);
        } else {
            apus_node_place(row, name, (int)line, 1);
            st = NODE->append(list, row);
        }
    }
    NODE->release(header);
    free(c.field);
    return st;
}

/* ---------------------------------------------------------------- files */

static int has_extension(const char *name, const char *extension)
{
    const size_t n = strlen(name), k = strlen(extension);
    return n >= k && strcasecmp(name + n - k, extension) == 0;
}

apus_status apus_rows_parse(const char *name, const char *bytes, size_t length, size_t limit, apus_node *list, apus_error *err)
{
    if (has_extension(name, ".jsonl") || has_extension(name, ".ndjson"))
        return parse_lines(name, bytes, length, limit, list, err);
    if (has_extension(name, ".json"))
        return parse_list(name, bytes, length, limit, list, err);
    if (has_extension(name, ".csv") || has_extension(name, ".tsv"))
        return parse_csv(name, bytes, length, has_extension(name, ".csv") ? ',' : '\t', limit, list, err);
    if (has_extension(name, ".txt") || has_extension(name, ".md")) {
        apus_node *row = NODE->make_map();
        (void)NODE->set(row, "text", NODE->make_string(bytes, length));
        apus_node_place(row, name, 1, 1);
        return NODE->append(list, row);
    }
    apus_fail(err, APUS_E_UNSUPPORTED, "%s: rows cannot be read from a file of this kind", name);
    return apus_hint(err, APUS_E_UNSUPPORTED, ".jsonl, .json, .csv, .tsv, .txt or .md, plain, compressed (.gz .xz .zst .bz2) or in an archive");
}

static apus_status read_member(apus_source *s, char **bytes, size_t *length, apus_error *err)
{
    size_t capacity = 1u << 20;
    *length = 0;
    *bytes = malloc(capacity + 1);
    while (*bytes != NULL) {
        const int64_t n = apus_source_read(s, *bytes + *length, capacity - *length, err);
        if (n < 0)
            return APUS_E_INVALID;
        if (n == 0)
            break;
        *length += (size_t)n;
        if (*length == capacity) {
            capacity *= 2;
            char *grown = capacity <= MEMBER_LIMIT ? realloc(*bytes, capacity + 1) : NULL;
            if (grown == NULL)
                return apus_fail(err, APUS_E_MEMORY, "a data file is larger than memory or 4 GiB");
            *bytes = grown;
        }
    }
    if (*bytes == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    (*bytes)[*length] = '\0';
    return APUS_OK;
}

apus_status apus_rows_read(const char *path, size_t limit, apus_node *list, apus_error *err)
{
    apus_source *s = apus_source_open(path, err);
    if (s == NULL)
        return APUS_E_IO;
    apus_status st = APUS_OK;
    const char *name;
    int more = 1, members = 0;
    while (st == APUS_OK && !full(list, limit) && (more = apus_source_next(s, &name, err)) == 1) {
        char *bytes = NULL, shown[1536];
        size_t length;
        const char *base = strrchr(path, '/');
        base = base != NULL ? base + 1 : path;
        /* A plain or compressed file is named by its path, a member of an archive behind it. */
        const int same = strncmp(base, name, strlen(name)) == 0;
        if (same)
            snprintf(shown, sizeof shown, "%.*s%s", (int)(base - path), path, name);
        else
            snprintf(shown, sizeof shown, "%s:%s", path, name);
        st = read_member(s, &bytes, &length, err);
        if (st == APUS_OK)
            st = apus_rows_parse(shown, bytes, length, limit, list, err);
        free(bytes);
        members++;
    }
    apus_source_close(s);
    if (st == APUS_OK && more < 0)
        return APUS_E_INVALID;
    if (st == APUS_OK && members == 0)
        return apus_fail(err, APUS_E_INVALID, "%s: there is no file in it", path);
    return st;
}
