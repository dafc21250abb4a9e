/*
 * core/model/pages: the pages of a paged key/value cache: who holds each, which one holds a given prefix of tokens, and which one is
 * given up when room is short. Knows token ids and page numbers; the keys and values themselves lie elsewhere.
 *
 * A page that is full of known tokens can be found by what it holds: its tokens and the page before it, back to the sequence's first
 * token. Only one page answers to the same prefix. One that nobody holds any more stays findable until its room is needed; the one
 * unused for longest goes first.
 */
#ifndef APUS_CORE_PAGES_H
#define APUS_CORE_PAGES_H

#include <apus/base.h>

enum {
    APUS_PAGE = 16,    /* positions of a page */
    APUS_PAGE_ROOT = 1 /* what comes before the first page of a sequence */
};

typedef struct apus_page {
    int32_t refs;          /* sequences that hold it */
    int32_t written;       /* positions whose keys and values are there, or will be when the batch being composed has run */
    uint64_t writer;       /* who writes the rest; 0: nobody */
    uint64_t serial;       /* what it holds, as the page after it names it; 0: cannot be found */
    uint64_t before, salt; /* what it was put under: see apus_pages_find */
    int32_t tokens[APUS_PAGE];
    int32_t chain;          /* next of its hash bucket; -1 */
    int32_t next, previous; /* in the list of the free, or of the kept by age; -1 */
} apus_page;

typedef struct apus_pages {
    apus_page *at;
    int32_t *buckets;
    int32_t n, n_buckets;
    int32_t n_free, n_kept; /* held by nobody: without and with findable content */
    int32_t free, oldest, newest;
    uint64_t serial;
} apus_pages;

apus_status apus_pages_grow(apus_pages *p, int32_t n, apus_error *err); /* to n pages; those there stay as they are */
void apus_pages_free(apus_pages *p);
int32_t apus_pages_room(const apus_pages *p); /* pages that could be taken now */

/* The page that holds tokens [APUS_PAGE] after the page `before` (its serial, or APUS_PAGE_ROOT), held once more; -1: none. salt: what
 * else its keys and values depend on. */
int32_t apus_pages_find(apus_pages *p, uint64_t before, const int32_t *tokens, uint64_t salt);
/* An empty page, held once, that `writer` will write; -1: no room. */
int32_t apus_pages_take(apus_pages *p, uint64_t writer);
/* From now on the page can be found under this. Gives the serial of what it holds: another page's if that one was there first. */
uint64_t apus_pages_put(apus_pages *p, int32_t page, uint64_t before, const int32_t *tokens, uint64_t salt);
/* `holder` holds it no more. Let go of a sequence's last page first: what comes first is of use to more. */
void apus_pages_drop(apus_pages *p, int32_t page, uint64_t holder);

#endif
