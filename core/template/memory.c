/*
 * core/template/memory: the arena of one compilation or rendering, the way out on failure, and the plain makers of
 * values. Knows no operation on them.
 */
#include "value.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE_ALIGN = 16, HEADER = (sizeof(tbig) + 15) & ~15u, CHUNK = 16 << 10, CHUNK_MOST = 1 << 20, LARGE = 64 << 10 };

void apus_tpl_arena_init(tarena *a, size_t limit)
{
    *a = (tarena){.limit = limit};
    a->list.next = a->list.previous = &a->list;
}

void apus_tpl_arena_free(tarena *a)
{
    if (a->list.next == NULL)
        return;
    for (tbig *p = a->list.next; p != &a->list;) {
        tbig *next = p->next;
        free(p);
        p = next;
    }
    a->list.next = a->list.previous = &a->list;
}

void apus_tpl_fail(tbase *b, apus_status status, const char *fmt, ...)
{
    char text[1200];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
    b->status = apus_fail(b->err, status, "%s:%u:%u: %s", b->name, (unsigned)b->at.line, (unsigned)b->at.column, text);
    longjmp(b->leave, 1);
}

static void take(tbase *b, size_t bytes)
{
    tarena *a = &b->arena;
    if (bytes > a->limit || a->used > a->limit - bytes)
        apus_tpl_fail(b, APUS_E_MEMORY, "the template needs more than %zu MiB of memory", a->limit >> 20);
    a->used += bytes;
}

/* One piece from malloc (or `old` moved), in the list. */
static tbig *piece(tbase *b, tbig *old, size_t bytes)
{
    tbig *p;
    if (old != NULL) {
        take(b, bytes > old->bytes ? bytes - old->bytes : 0);
        old->next->previous = old->previous;
        old->previous->next = old->next;
        p = realloc(old, HEADER + bytes);
        if (p == NULL)
            free(old);
    } else {
        take(b, bytes);
        p = malloc(HEADER + bytes);
    }
    if (p == NULL)
        apus_tpl_fail(b, APUS_E_MEMORY, "no memory for %zu bytes", bytes);
    p->bytes = bytes;
    p->next = b->arena.list.next;
    p->previous = &b->arena.list;
    p->next->previous = p;
    b->arena.list.next = p;
    return p;
}

static size_t rounded(tbase *b, size_t bytes)
{
    if (bytes > b->arena.limit)
        take(b, bytes);
    return bytes == 0 ? PIECE_ALIGN : (bytes + PIECE_ALIGN - 1) & ~(size_t)(PIECE_ALIGN - 1);
}

static void *raw(tbase *b, size_t bytes)
{
    tarena *a = &b->arena;
    if (bytes >= LARGE)
        return (char *)piece(b, NULL, bytes) + HEADER;
    if (a->left < bytes) {
        size_t chunk = a->used < CHUNK ? CHUNK : a->used < CHUNK_MOST ? a->used : CHUNK_MOST;
        chunk = (chunk < bytes ? bytes : chunk) & ~(size_t)(PIECE_ALIGN - 1);
        a->at = (char *)piece(b, NULL, chunk) + HEADER;
        a->left = chunk;
    }
    void *p = a->at;
    a->at += bytes;
    a->left -= bytes;
    return p;
}

void *apus_tpl_alloc(tbase *b, size_t bytes)
{
    bytes = rounded(b, bytes);
    return memset(raw(b, bytes), 0, bytes);
}

void *apus_tpl_array(tbase *b, size_t n, size_t item)
{
    if (item != 0 && n > b->arena.limit / item)
        take(b, (size_t)-1);
    return apus_tpl_alloc(b, n * item);
}

void *apus_tpl_grow(tbase *b, void *old, size_t old_bytes, size_t bytes)
{
    size_t before = rounded(b, old_bytes), after = rounded(b, bytes);
    if (old == NULL)
        return raw(b, after);
    if (after <= before)
        return old;
    if (before >= LARGE)
        return (char *)piece(b, (tbig *)((char *)old - HEADER), after) + HEADER;
    tarena *a = &b->arena;
    if ((char *)old + before == a->at && a->left >= after - before && after < LARGE) {
        a->at += after - before;
        a->left -= after - before;
        return old;
    }
    void *p = raw(b, after);
    memcpy(p, old, old_bytes);
    return p;
}

/* ---------------------------------------------------------------- makers */

tstr *apus_tpl_str(tbase *b, const char *bytes, size_t length, ttag tag)
{
    tstr *s = apus_tpl_alloc(b, sizeof *s);
    *s = (tstr){.bytes = length == 0 ? "" : bytes, .length = length, .chars = (size_t)-1, .tag = tag};
    return s;
}

tstr *apus_tpl_literal(tbase *b, const char *text)
{
    return apus_tpl_str(b, text, strlen(text), T_OWN);
}

tlist *apus_tpl_list(tbase *b, size_t capacity)
{
    tlist *l = apus_tpl_alloc(b, sizeof *l);
    l->items = apus_tpl_array(b, capacity, sizeof *l->items);
    return l;
}

void apus_tpl_push(tbase *b, tlist *l, size_t *capacity, tval v)
{
    if (l->n >= *capacity) {
        size_t more = *capacity < 8 ? 8 : *capacity * 2;
        l->items = apus_tpl_grow(b, l->items, *capacity * sizeof *l->items, more * sizeof *l->items);
        *capacity = more;
    }
    l->items[l->n++] = v;
}

tval apus_tpl_pair(tbase *b, tval first, tval second)
{
    tlist *l = apus_tpl_list(b, 2);
    l->items[0] = first;
    l->items[1] = second;
    l->n = 2;
    return apus_tpl_tval(l);
}

tval apus_tpl_generator(tbase *b, tlist *items)
{
    struct tgenerator *g = apus_tpl_alloc(b, sizeof *g);
    g->items = items;
    return (tval){.kind = T_GENERATOR, .gen = g};
}

tdict *apus_tpl_dict(tbase *b, size_t capacity)
{
    tdict *d = apus_tpl_alloc(b, sizeof *d);
    d->capacity = capacity;
    d->keys = apus_tpl_array(b, capacity, sizeof *d->keys);
    d->values = apus_tpl_array(b, capacity, sizeof *d->values);
    return d;
}

tval apus_tpl_undefined(tbase *b, const char *message)
{
    struct tundefined *u = apus_tpl_alloc(b, sizeof *u);
    u->message = message;
    return (tval){.kind = T_UNDEFINED, .u = u};
}

tval apus_tpl_undefined_attribute(tbase *b, tkind owner, const tstr *name)
{
    struct tundefined *u = apus_tpl_alloc(b, sizeof *u);
    *u = (struct tundefined){.name = name->bytes, .length = name->length, .owner = owner};
    return (tval){.kind = T_UNDEFINED, .u = u};
}
