/*
 * apus/names.h: a look-up from names (bytes with a length) to numbers, for vocabularies and tensor lists. Header-only.
 * Names stay the caller's and must outlive the table. Adding is [main]; finding is [any].
 */
#ifndef APUS_NAMES_H
#define APUS_NAMES_H

#include <apus/base.h>

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define APUS_NAMES_NONE UINT32_MAX

typedef struct apus_name_slot {
    const char *name; /* NULL: empty */
    uint32_t length, value;
} apus_name_slot;

typedef struct apus_names {
    apus_name_slot *slots;
    size_t mask; /* slots - 1, a power of two */
} apus_names;

/* Room for at most `capacity` names. 0 when memory is out. */
static inline int apus_names_open(const apus_host *host, apus_names *t, size_t capacity)
{
    size_t n = 16;
    while (n < capacity * 2)
        n *= 2;
    t->slots = (apus_name_slot *)host->alloc(n * sizeof(apus_name_slot));
    t->mask = n - 1;
    return t->slots != NULL;
}

static inline void apus_names_close(const apus_host *host, apus_names *t)
{
    host->free(t->slots);
    t->slots = NULL;
}

/* The slot that holds the name, or the empty one where it would go. */
static inline apus_name_slot *apus_names_slot(const apus_names *t, const char *name, size_t length)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        h = (h ^ (unsigned char)name[i]) * 0x100000001b3u;
    for (size_t i = (size_t)(h ^ h >> 32) & t->mask;; i = (i + 1) & t->mask) {
        apus_name_slot *s = &t->slots[i];
        if (s->name == NULL || (s->length == length && memcmp(s->name, name, length) == 0))
            return s;
    }
}

/* 1: added; 0: the name was there (its value stays). */
static inline int apus_names_add(apus_names *t, const char *name, size_t length, uint32_t value)
{
    apus_name_slot *s = apus_names_slot(t, name, length);
    if (s->name != NULL)
        return 0;
    s->name = name;
    s->length = (uint32_t)length;
    s->value = value;
    return 1;
}

static inline uint32_t apus_names_find(const apus_names *t, const char *name, size_t length)
{
    const apus_name_slot *s = apus_names_slot(t, name, length);
    return s->name != NULL ? s->value : APUS_NAMES_NONE;
}

#ifdef __cplusplus
}
#endif
#endif
