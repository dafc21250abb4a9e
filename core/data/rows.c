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
    char *path, shown[1536]; /* of the open member, as messages name it */
    next_row next;           /* by its kind; NULL: none is open */
    size_t members, line;    /* line: of what stands at `at` */
    /* The part of the member that is in memory: bytes[at, end) are not read yet. */
    char *bytes;
    size_t at, end, capacity;
    int ended; /* the member has no more */
    /* .json: all of it, and which row comes next. */
    apus_node *root;
    const apus_node *list;
    size_t item;
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
            (void)apus_fail(err, APUS_E_MEMORY, "%s:%zu: a row or file larger than memory or 4 GiB", r->shown, r->line);
            return 0;
        }
        r->bytes = grown;
        r->capacity *= 2;
    }
    const int64_t n = apus_source_read(r->source, r->bytes + r->end, r->capacity - r->end, err);
    if (n < 0)
        return 0;
    r->ended = n == 0;
    r->end += (size_t)n;
    r->bytes[r->end] = '\0';
    return 1;
}

static int fill_all(apus_rows *r, apus_error *err)
{
    while (!r->ended)
        if (!fill(r, err))
            return 0;
    return 1;
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

static int next_item(apus_rows *r, apus_node **row, apus_error *err)
{
    if (r->item == NODE->length(r->list))
        return 0;
    const size_t i = r->item++;
    return give(r, NODE->copy(NODE->at(r->list, i)), i + 1, row, err);
}

/* A list is one value: it is read whole. JSON Lines under the name .json are common, and tried when it is none. */
static int open_json(apus_rows *r, apus_error *err)
{
    if (!fill_all(r, err))
        return 0;
    r->root = NODE->parse_json(r->bytes, r->end, r->shown, err);
    if (r->root == NULL) {
        apus_error first = {0};
        apus_node *row = NULL;
        if (next_jsonl(r, &row, &first) < 1)
            return 0;
        NODE->release(row);
        r->at = 0;
        r->line = 1;
        r->next = next_jsonl;
        return 1;
    }
    r->list = NODE->kind(r->root) == APUS_NODE_LIST ? r->root : NODE->get(r->root, "data");
    if (NODE->kind(r->list) != APUS_NODE_LIST) {
        const apus_status st = apus_fail(err, APUS_E_INVALID, "%s:1: expected a list of objects", r->shown);
        (void)apus_hint(err, st, "[{…}, {…}], or {\"data\": [{…}]}");
        return 0;
    }
    r->at = r->end;
    return 1;
}

/* ---------------------------------------------------------------- CSV (RFC 4180) */

/* The next byte, not taken; -1 at the end, -2 error. */
static int peek(apus_rows *r, apus_error *err)
{
    while (r->at == r->end && !r->ended)
        if (!fill(r, err))
            return -2;
    return r->at < r->end ? (unsigned char)r->bytes[r->at] : -1;
}

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
        return csv_fault(r, opened, "out of memory", err);
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
            return csv_fault(r, opened, "out of memory", err);
    }
    return ch == -2 ? -1 : quoted ? csv_fault(r, opened, "a quoted field that is never closed", err) : 0;
}

static int open_csv(apus_rows *r, apus_error *err)
{
    int end;
    if (peek(r, err) == 0xEF && (r->end - r->at >= 3 || fill(r, err)) && r->end - r->at >= 3 && memcmp(r->bytes + r->at, "\xEF\xBB\xBF", 3) == 0)
        r->at += 3;
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
    for (int more; (more = peek(r, err)) >= 0;) {
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
    if (r->line == 0 || !fill_all(r, err))
        return r->line == 0 ? 0 : -1;
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
    NODE->release(r->root);
    NODE->release(r->header);
    r->root = r->header = NULL;
    r->list = NULL;
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
    r->at = r->end = r->item = 0;
    r->ended = 0;
    r->line = 1;
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
        const apus_status st = apus_fail(err, APUS_E_UNSUPPORTED, "%s: rows cannot be read from a file of this kind", r->shown);
        (void)apus_hint(err, st, ".jsonl, .json, .csv, .tsv, .txt or .md, plain, compressed (.gz .xz .zst .bz2) or in an archive");
        return -1;
    }
    return 1;
}

apus_rows *apus_rows_open(const char *path, apus_error *err)
{
    apus_rows *r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->capacity = (size_t)1 << 20;
        r->bytes = malloc(r->capacity + 1);
        r->path = strdup(path);
    }
    if (r == NULL || r->bytes == NULL || r->path == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        apus_rows_close(r);
        return NULL;
    }
    r->source = apus_source_open(path, err);
    if (r->source == NULL) {
        apus_rows_close(r);
        return NULL;
    }
    return r;
}

int apus_rows_next(apus_rows *r, apus_node **row, apus_error *err)
{
    for (;;) {
        if (r->next == NULL) {
            const char *name;
            const int more = apus_source_next(r->source, &name, err);
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
