/* core/model/pages.c: see pages.h. */
#include "model/pages.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- finding */

static uint64_t mixed(uint64_t h)
{
    h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDu;
    return h ^ (h >> 33);
}

static int32_t bucket_of(const apus_pages *p, uint64_t before, const int32_t *tokens, uint64_t salt)
{
    uint64_t h = mixed(before ^ mixed(salt));
    for (int i = 0; i < APUS_PAGE; i++)
        h = mixed(h ^ (uint32_t)tokens[i]);
    return (int32_t)(h & (uint64_t)(p->n_buckets - 1));
}

static int32_t lookup(const apus_pages *p, int32_t bucket, uint64_t before, const int32_t *tokens, uint64_t salt)
{
    int32_t i = p->buckets[bucket];
    while (i >= 0 && (p->at[i].before != before || p->at[i].salt != salt || memcmp(p->at[i].tokens, tokens, sizeof p->at[i].tokens) != 0))
        i = p->at[i].chain;
    return i;
}

static void enter(apus_pages *p, int32_t page)
{
    apus_page *at = &p->at[page];
    const int32_t bucket = bucket_of(p, at->before, at->tokens, at->salt);
    at->chain = p->buckets[bucket];
    p->buckets[bucket] = page;
}

static void forget(apus_pages *p, int32_t page)
{
    apus_page *at = &p->at[page];
    if (at->serial == 0)
        return;
    int32_t *link = &p->buckets[bucket_of(p, at->before, at->tokens, at->salt)];
    while (*link != page)
        link = &p->at[*link].chain;
    *link = at->chain;
    at->serial = 0;
}

/* ---------------------------------------------------------------- free and kept */

static void set_free(apus_pages *p, int32_t page)
{
    p->at[page].next = p->free;
    p->free = page;
    p->n_free++;
}

static void keep(apus_pages *p, int32_t page)
{
    apus_page *at = &p->at[page];
    at->next = -1;
    at->previous = p->newest;
    if (p->newest >= 0)
        p->at[p->newest].next = page;
    else
        p->oldest = page;
    p->newest = page;
    p->n_kept++;
}

static void unkeep(apus_pages *p, int32_t page)
{
    const apus_page *at = &p->at[page];
    if (at->previous >= 0)
        p->at[at->previous].next = at->next;
    else
        p->oldest = at->next;
    if (at->next >= 0)
        p->at[at->next].previous = at->previous;
    else
        p->newest = at->previous;
    p->n_kept--;
}

/* ---------------------------------------------------------------- the pool */

apus_status apus_pages_grow(apus_pages *p, int32_t n, apus_error *err)
{
    int32_t n_buckets = 64;
    while (n_buckets < n && n_buckets < 1 << 30)
        n_buckets *= 2;
    int32_t *buckets = malloc((size_t)n_buckets * sizeof *buckets);
    apus_page *at = buckets != NULL ? realloc(p->at, (size_t)n * sizeof *at) : NULL;
    if (at == NULL) {
        free(buckets);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    if (p->n == 0) {
        p->free = p->oldest = p->newest = -1;
        p->serial = APUS_PAGE_ROOT;
    }
    free(p->buckets);
    p->at = at;
    p->buckets = buckets;
    p->n_buckets = n_buckets;
    for (int32_t i = 0; i < n_buckets; i++)
        buckets[i] = -1;
    for (int32_t i = 0; i < p->n; i++)
        if (at[i].serial != 0)
            enter(p, i);
    for (int32_t i = n; i-- > p->n;) {
        memset(&at[i], 0, sizeof at[i]);
        set_free(p, i);
    }
    p->n = n;
    return APUS_OK;
}

void apus_pages_free(apus_pages *p)
{
    free(p->at);
    free(p->buckets);
    *p = (apus_pages){0};
}

int32_t apus_pages_room(const apus_pages *p)
{
    return p->n_free + p->n_kept;
}

int32_t apus_pages_find(apus_pages *p, uint64_t before, const int32_t *tokens, uint64_t salt)
{
    const int32_t page = p->n > 0 ? lookup(p, bucket_of(p, before, tokens, salt), before, tokens, salt) : -1;
    if (page >= 0 && p->at[page].refs++ == 0)
        unkeep(p, page);
    return page;
}

int32_t apus_pages_take(apus_pages *p, uint64_t writer)
{
    int32_t page = p->n > 0 ? p->free : -1;
    if (page >= 0) {
        p->free = p->at[page].next;
        p->n_free--;
    } else if (p->n_kept > 0) {
        page = p->oldest;
        unkeep(p, page);
        forget(p, page);
    } else {
        return -1;
    }
    p->at[page].refs = 1;
    p->at[page].written = 0;
    p->at[page].writer = writer;
    return page;
}

uint64_t apus_pages_put(apus_pages *p, int32_t page, uint64_t before, const int32_t *tokens, uint64_t salt)
{
    apus_page *at = &p->at[page];
    const int32_t there = lookup(p, bucket_of(p, before, tokens, salt), before, tokens, salt);
    if (there >= 0)
        return p->at[there].serial;
    at->before = before;
    at->salt = salt;
    memcpy(at->tokens, tokens, sizeof at->tokens);
    at->serial = ++p->serial;
    enter(p, page);
    return at->serial;
}

void apus_pages_drop(apus_pages *p, int32_t page, uint64_t holder)
{
    apus_page *at = &p->at[page];
    if (at->writer == holder)
        at->writer = 0;
    if (--at->refs > 0)
        return;
    if (at->serial != 0 && at->written == APUS_PAGE) {
        keep(p, page);
    } else {
        forget(p, page);
        set_free(p, page);
    }
}
