/* core/data/store.c: see store.h. */
#include "data/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

/* ---------------------------------------------------------------- memory */

static size_t padded(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t row_bytes(uint32_t n_tokens, uint32_t n_segments)
{
    return padded(n_segments * sizeof(apus_row_segment) + n_tokens * (sizeof(int32_t) + 1), 4);
}

static int grow(void **p, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity)
        return 1;
    size_t n = *capacity ? *capacity * 2 : 64;
    while (n < need)
        n *= 2;
    void *grown = realloc(*p, n * size);
    if (grown == NULL)
        return 0;
    *p = grown;
    *capacity = n;
    return 1;
}

static int room(apus_row_store *s, size_t rows, size_t bytes)
{
    return grow((void **)&s->rows, &s->cap_rows, s->n_rows + rows, sizeof *s->rows) && grow((void **)&s->data, &s->cap_bytes, s->n_bytes + bytes, 1);
}

void apus_row_store_free(apus_row_store *s)
{
    free(s->rows);
    free(s->data);
    memset(s, 0, sizeof *s);
}

apus_status apus_row_store_add(apus_row_store *s, const apus_row *r)
{
    const size_t bytes = row_bytes(r->n_tokens, r->n_segments);
    if (!room(s, 1, bytes))
        return APUS_E_MEMORY;
    apus_row_record *rec = &s->rows[s->n_rows++];
    memset(rec, 0, sizeof *rec);
    rec->source = r->source;
    rec->at = s->n_bytes;
    rec->n_tokens = r->n_tokens;
    rec->n_segments = r->n_segments;
    rec->n_answers = r->n_answers;
    for (uint32_t i = 0; i < r->n_tokens; i++)
        rec->n_trained += r->trained[i] != 0;
    if (r->reference_logps != NULL) {
        rec->has_reference = 1;
        memcpy(rec->reference, r->reference_logps, r->n_answers * sizeof(double));
    }
    char *to = s->data + s->n_bytes;
    const size_t segments = r->n_segments * sizeof *r->segments, ids = r->n_tokens * sizeof *r->ids;
    memcpy(to, r->segments, segments);
    memcpy(to + segments, r->ids, ids);
    memcpy(to + segments + ids, r->trained, r->n_tokens);
    memset(to + segments + ids + r->n_tokens, 0, bytes - segments - ids - r->n_tokens);
    s->n_bytes += bytes;
    return APUS_OK;
}

apus_row apus_row_store_get(const apus_row_store *s, size_t i)
{
    const apus_row_record *rec = &s->rows[i];
    const char *at = s->data + rec->at;
    const size_t segments = rec->n_segments * sizeof(apus_row_segment);
    return (apus_row){.source = rec->source,
                      .n_tokens = rec->n_tokens,
                      .n_segments = rec->n_segments,
                      .n_answers = rec->n_answers,
                      .n_trained = rec->n_trained,
                      .segments = (const void *)at,
                      .ids = (const void *)(at + segments),
                      .trained = (const uint8_t *)at + segments + rec->n_tokens * sizeof(int32_t),
                      .reference_logps = rec->has_reference ? rec->reference : NULL};
}

static apus_status append(apus_row_store *s, const apus_row_store *more)
{
    if (!room(s, more->n_rows, more->n_bytes))
        return APUS_E_MEMORY;
    if (more->n_bytes > 0)
        memcpy(s->data + s->n_bytes, more->data, more->n_bytes);
    for (size_t i = 0; i < more->n_rows; i++) {
        s->rows[s->n_rows] = more->rows[i];
        s->rows[s->n_rows++].at += s->n_bytes;
    }
    s->n_bytes += more->n_bytes;
    return APUS_OK;
}

/* ---------------------------------------------------------------- the sink */

/* A cache file: this header, then the rows' data, their records, the report as JSON; each part at a multiple of 64 bytes. */
typedef struct cache_header {
    char magic[8];
    uint64_t n_rows, data_bytes, report_bytes, total;
    apus_dataset_bounds bounds;
} cache_header;

static const char cache_magic[8] = "APUSTOK2";
enum { PART = 64, FLUSH = 1 << 22 };

struct apus_row_sink {
    apus_row_store pending; /* memory; of a file: what is not written yet */
    apus_dataset_bounds bounds;
    char *path, *temporary; /* NULL: memory */
    int data, records;      /* the file; the records until their place in it is known, a file without a name */
    uint64_t n_rows, data_bytes;
};

static void cache_parts(const cache_header *h, uint64_t at[3])
{
    at[0] = padded(sizeof *h, PART);
    at[1] = at[0] + padded(h->data_bytes, PART);
    at[2] = at[1] + padded(h->n_rows * sizeof(apus_row_record), PART);
}

static apus_status cannot_write(const apus_row_sink *s, apus_error *err)
{
    const apus_status st = apus_fail(err, APUS_E_IO, "%s: cannot write the token cache: %s", s->path, strerror(errno));
    return apus_hint(err, st, "APUS_CACHE names another folder");
}

static apus_status put(const apus_row_sink *s, int fd, const void *bytes, size_t n, apus_error *err)
{
    for (const char *p = bytes; n > 0;) {
        const ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return cannot_write(s, err);
        p += w;
        n -= (size_t)w;
    }
    return APUS_OK;
}

apus_row_sink *apus_row_sink_open(const char *path, apus_error *err)
{
    apus_row_sink *s = calloc(1, sizeof *s);
    if (s == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        return NULL;
    }
    s->data = s->records = -1;
    if (path == NULL)
        return s;
    const size_t n = strlen(path) + 32;
    s->path = strdup(path);
    s->temporary = malloc(n);
    if (s->path == NULL || s->temporary == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        apus_row_sink_abandon(s);
        return NULL;
    }
    (void)snprintf(s->temporary, n, "%s.records-%ld", path, (long)getpid());
    s->records = open(s->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    (void)unlink(s->temporary);
    (void)snprintf(s->temporary, n, "%s.tmp-%ld", path, (long)getpid());
    s->data = s->records < 0 ? -1 : open(s->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (s->data < 0 || lseek(s->data, (off_t)padded(sizeof(cache_header), PART), SEEK_SET) < 0) {
        (void)cannot_write(s, err);
        apus_row_sink_abandon(s);
        return NULL;
    }
    return s;
}

void apus_row_sink_abandon(apus_row_sink *s)
{
    if (s == NULL)
        return;
    if (s->data >= 0) {
        close(s->data);
        (void)unlink(s->temporary);
    }
    if (s->records >= 0)
        close(s->records);
    apus_row_store_free(&s->pending);
    free(s->path);
    free(s->temporary);
    free(s);
}

/* Pending rows into the file, once they are many. */
static apus_status flush(apus_row_sink *s, size_t enough, apus_error *err)
{
    apus_row_store *p = &s->pending;
    if (s->path == NULL || p->n_bytes < enough || p->n_rows == 0)
        return APUS_OK;
    for (size_t i = 0; i < p->n_rows; i++)
        p->rows[i].at += s->data_bytes;
    apus_status st = put(s, s->data, p->data, p->n_bytes, err);
    if (st == APUS_OK)
        st = put(s, s->records, p->rows, p->n_rows * sizeof *p->rows, err);
    s->data_bytes += p->n_bytes;
    s->n_rows += p->n_rows;
    p->n_bytes = p->n_rows = 0;
    return st;
}

void apus_dataset_bounds_add(apus_dataset_bounds *b, const apus_row *r)
{
    b->rows++;
    b->tokens += r->n_tokens;
    b->trained += r->n_trained;
    b->longest = r->n_tokens > b->longest ? r->n_tokens : b->longest;
    b->segments = r->n_segments > b->segments ? r->n_segments : b->segments;
    b->answers = r->n_answers > b->answers ? r->n_answers : b->answers;
}

static apus_status added(apus_row_sink *s, apus_status st, size_t before, apus_error *err)
{
    if (st != APUS_OK)
        return apus_fail(err, st, "out of memory");
    for (size_t i = before; i < s->pending.n_rows; i++) {
        const apus_row r = apus_row_store_get(&s->pending, i);
        apus_dataset_bounds_add(&s->bounds, &r);
        for (uint32_t k = 0; k < r.n_tokens; k++)
            s->bounds.largest_id = r.ids[k] > s->bounds.largest_id ? r.ids[k] : s->bounds.largest_id;
    }
    return flush(s, FLUSH, err);
}

apus_status apus_row_sink_add(apus_row_sink *s, const apus_row *r, apus_error *err)
{
    const size_t before = s->pending.n_rows;
    return added(s, apus_row_store_add(&s->pending, r), before, err);
}

apus_status apus_row_sink_append(apus_row_sink *s, const apus_row_store *more, apus_error *err)
{
    const size_t before = s->pending.n_rows;
    return added(s, append(&s->pending, more), before, err);
}

const apus_dataset_bounds *apus_row_sink_bounds(const apus_row_sink *s)
{
    return &s->bounds;
}

/* The records from their own file behind the data. */
static apus_status move_records(const apus_row_sink *s, apus_error *err)
{
    char buffer[64 * 1024];
    ssize_t n;
    if (lseek(s->records, 0, SEEK_SET) < 0)
        return cannot_write(s, err);
    while ((n = read(s->records, buffer, sizeof buffer)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        const apus_status st = n < 0 ? cannot_write(s, err) : put(s, s->data, buffer, (size_t)n, err);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

static apus_status finish_file(apus_row_sink *s, const apus_node *report, apus_error *err)
{
    static const char zeros[PART] = {0};
    size_t report_bytes = 0;
    apus_status st = flush(s, 0, err);
    char *json = NODE->write_json(report, 0, &report_bytes);
    cache_header h = {.n_rows = s->n_rows, .data_bytes = s->data_bytes, .report_bytes = report_bytes, .bounds = s->bounds};
    uint64_t at[3];
    memcpy(h.magic, cache_magic, sizeof h.magic);
    cache_parts(&h, at);
    h.total = at[2] + report_bytes;
    if (st == APUS_OK && json == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = put(s, s->data, zeros, (size_t)(at[1] - at[0] - h.data_bytes), err);
    if (st == APUS_OK)
        st = move_records(s, err);
    if (st == APUS_OK)
        st = put(s, s->data, zeros, (size_t)(at[2] - at[1] - h.n_rows * sizeof(apus_row_record)), err);
    if (st == APUS_OK)
        st = put(s, s->data, json, report_bytes, err);
    if (st == APUS_OK && (pwrite(s->data, &h, sizeof h, 0) != (ssize_t)sizeof h || fsync(s->data) != 0 || rename(s->temporary, s->path) != 0))
        st = cannot_write(s, err);
    HOST->free(json);
    return st;
}

apus_status apus_row_sink_end(apus_row_sink *s, apus_node *report, apus_row_set *set, apus_error *err)
{
    apus_status st = APUS_OK;
    memset(set, 0, sizeof *set);
    if (s->path == NULL) {
        *set = (apus_row_set){.rows = s->pending, .bounds = s->bounds, .report = report};
        memset(&s->pending, 0, sizeof s->pending);
        report = NULL;
    } else {
        st = finish_file(s, report, err);
        if (st == APUS_OK && !apus_row_set_load(set, s->path))
            st = apus_fail(err, APUS_E_IO, "%s: cannot be read back", s->path);
    }
    NODE->release(report);
    apus_row_sink_abandon(s);
    return st;
}

/* ---------------------------------------------------------------- reading */

/* Every record must lie within the data. Read, not mapped: they need not stay in memory. */
static int records_good(const char *path, const cache_header *h, uint64_t at)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    apus_row_record records[512];
    uint64_t done = 0;
    int good = fd >= 0;
    while (good && done < h->n_rows) {
        const uint64_t left = h->n_rows - done, n = left < 512 ? left : 512;
        const size_t bytes = (size_t)n * sizeof *records;
        good = pread(fd, records, bytes, (off_t)(at + done * sizeof *records)) == (ssize_t)bytes;
        for (uint64_t i = 0; i < n && good; i++)
            good = records[i].at % 4 == 0 && records[i].at <= h->data_bytes &&
                   row_bytes(records[i].n_tokens, records[i].n_segments) <= h->data_bytes - records[i].at;
        done += n;
    }
    if (fd >= 0)
        close(fd);
    return good;
}

int apus_row_set_load(apus_row_set *set, const char *path)
{
    size_t length;
    memset(set, 0, sizeof *set);
    if (!apus_path_exists(path))
        return 0;
    const char *map = apus_file_map(path, &length, NULL);
    if (map == NULL)
        return 0;
    cache_header h;
    uint64_t at[3] = {0};
    int good = length >= sizeof h;
    if (good) {
        memcpy(&h, map, sizeof h);
        good = memcmp(h.magic, cache_magic, sizeof h.magic) == 0 && h.total == length && h.n_rows < length && h.data_bytes < length &&
               h.report_bytes < length;
    }
    if (good) {
        cache_parts(&h, at);
        good = at[2] + h.report_bytes == length && records_good(path, &h, at[1]);
    }
    if (good)
        set->report = NODE->parse_json(map + at[2], (size_t)h.report_bytes, path, NULL);
    if (set->report == NULL) {
        apus_file_unmap(map, length);
        return 0;
    }
    set->rows = (apus_row_store){.rows = (apus_row_record *)(uintptr_t)(map + at[1]),
                                 .data = (char *)(uintptr_t)(map + at[0]),
                                 .n_rows = (size_t)h.n_rows,
                                 .n_bytes = (size_t)h.data_bytes};
    set->bounds = h.bounds;
    set->map = map;
    set->map_bytes = length;
    return 1;
}

void apus_row_set_close(apus_row_set *set)
{
    NODE->release(set->report);
    if (set->map != NULL)
        apus_file_unmap(set->map, set->map_bytes);
    else
        apus_row_store_free(&set->rows);
    memset(set, 0, sizeof *set);
}
