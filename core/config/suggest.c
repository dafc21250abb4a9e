/*
 * core/config/suggest: the nearest known name to one that nothing answers to.
 */
#include "config/config.h"

#include <string.h>

enum { LONGEST = 64 }; /* names beyond it are not compared */

static int lower(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c == '-' ? '_' : (unsigned char)c;
}

/* Optimal string alignment: insert, delete, change, or swap two neighbours; case and '-' for '_' cost nothing. */
static size_t distance(const char *a, size_t n, const char *b, size_t m)
{
    size_t rows[3][LONGEST + 1], *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t j = 0; j <= m; j++)
        last[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t d = last[j - 1] + (lower(a[i - 1]) != lower(b[j - 1]));
            d = last[j] + 1 < d ? last[j] + 1 : d;
            d = now[j - 1] + 1 < d ? now[j - 1] + 1 : d;
            if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1]) && before[j - 2] + 1 < d)
                d = before[j - 2] + 1;
            now[j] = d;
        }
        size_t *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[m];
}

const char *apus_did_you_mean(const char *word, const char *const *names, size_t n)
{
    size_t length = word == NULL ? 0 : strlen(word), best = length / 3 + 1;
    const char *nearest = NULL;
    if (length == 0 || length > LONGEST)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t other = names[i] == NULL ? 0 : strlen(names[i]);
        if (other == 0 || other > LONGEST)
            continue;
        size_t d = distance(word, length, names[i], other);
        if (d < best) {
            best = d;
            nearest = names[i];
        }
    }
    return nearest;
}
