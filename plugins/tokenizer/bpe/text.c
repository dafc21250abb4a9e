/* Texts with origins, searching and hashing bytes. Knows no stage of the pipeline. */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

int apus_bpe_grow(void *array, size_t *capacity, size_t need, size_t item)
{
    if (need <= *capacity)
        return 1;
    size_t size = *capacity < 16 ? 16 : *capacity;
    while (size < need) {
        if (size > SIZE_MAX / 2 / item)
            return 0;
        size *= 2;
    }
    void *old;
    memcpy(&old, array, sizeof old);
    void *p = realloc(old, size * item);
    if (p == NULL)
        return 0;
    memcpy(array, &p, sizeof p);
    *capacity = size;
    return 1;
}

int apus_bpe_reserve(apus_bpe_buffer *b, size_t more)
{
    if (more > SIZE_MAX - b->n)
        return 0;
    size_t need = b->n + more + 1, capacity = b->capacity;
    if (need <= capacity)
        return 1;
    if (!apus_bpe_grow(&b->s, &capacity, need, 1))
        return 0;
    uint32_t *at = realloc(b->at, capacity * sizeof *at);
    if (at == NULL)
        return 0;
    b->at = at;
    b->capacity = capacity;
    return 1;
}

int apus_bpe_add(apus_bpe_buffer *b, const char *s, size_t n, uint32_t at)
{
    if (!apus_bpe_reserve(b, n))
        return 0;
    if (n > 0)
        memcpy(b->s + b->n, s, n);
    for (size_t i = 0; i < n; i++)
        b->at[b->n + i] = at;
    b->n += n;
    return 1;
}

int apus_bpe_copy(apus_bpe_buffer *b, const apus_bpe_view *v, size_t begin, size_t end)
{
    if (!apus_bpe_reserve(b, end - begin))
        return 0;
    if (end > begin)
        memcpy(b->s + b->n, v->s + begin, end - begin);
    uint32_t *at = b->at + b->n;
    for (size_t i = begin; i < end; i++)
        *at++ = apus_bpe_origin(v, i);
    b->n += end - begin;
    return 1;
}

void apus_bpe_buffer_free(apus_bpe_buffer *b)
{
    free(b->s);
    free(b->at);
    *b = (apus_bpe_buffer){0};
}

int apus_bpe_repair(apus_bpe_buffer *b, const apus_bpe_view *v)
{
    size_t i = 0;
    while (i < v->n) {
        size_t good = apus_bpe_valid_prefix(v->s + i, v->n - i);
        if (!apus_bpe_copy(b, v, i, i + good))
            return 0;
        i += good;
        if (i == v->n)
            break;
        int valid;
        size_t bad = apus_bpe_step((const unsigned char *)v->s + i, v->n - i, &valid);
        if (!apus_bpe_add(b, "\xEF\xBF\xBD", 3, apus_bpe_origin(v, i)))
            return 0;
        i += bad;
    }
    return 1;
}

size_t apus_bpe_find(const char *text, size_t length, size_t from, const char *s, size_t n)
{
    while (from + n <= length) {
        const char *p = memchr(text + from, s[0], length - from - n + 1);
        if (p == NULL)
            break;
        if (n == 1 || memcmp(p + 1, s + 1, n - 1) == 0)
            return (size_t)(p - text);
        from = (size_t)(p - text) + 1;
    }
    return length;
}

/* A multiply-and-fold hash over 8-byte words (the idea of wyhash); not for untrusted table flooding beyond what
 * bounded probing tolerates. */
static inline uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

uint64_t apus_bpe_hash(const void *bytes, size_t n)
{
    const unsigned char *s = bytes;
    uint64_t h = 0x9E3779B97F4A7C15u ^ n, w = 0;
    size_t left = n;
    for (; left > 8; left -= 8, s += 8) {
        memcpy(&w, s, 8);
        h = mix(h ^ w, 0xE7037ED1A0B428DBu);
    }
    w = 0;
    if (left >= 4) {
        uint32_t a, b;
        memcpy(&a, s, 4);
        memcpy(&b, s + left - 4, 4);
        w = (uint64_t)a << 32 | b;
    } else if (left > 0) {
        w = (uint64_t)s[0] << 16 | (uint64_t)s[left / 2] << 8 | s[left - 1];
    }
    return mix(h ^ w, 0xA0761D6478BD642Fu);
}
