/*
 * Attention of one query over a paged cache: what a token costs while an answer is written. All heads at once, so that keys and values
 * are read as they lie: that reading is most of the cost.
 *
 * A vector's lanes are keys, then elements of values. Each number is summed in the order that attention.h has it, and tiles are the
 * same, so bits are too.
 */
#ifndef APUS_CPU_ATTENTION_ONE_H
#define APUS_CPU_ATTENTION_ONE_H

#include "attention_rows.h"
#include "norm.h"

/* Queries, their keys and values. */
typedef struct one {
    const attention_spec *s;
    const attention_keys *keys;
    const float *q, *k, *v; /* all of them */
    float *out;
    const apus_kernel_call *rope; /* what rotates q first; NULL: it is as it should be */
} one;

/* A thread's memory. rotated: a query; q, units: [head, padded dim]; z: [head, ATT_KEYS]. */
typedef struct one_memory {
    float *rotated, *q, *units, *z;
    partial tile, all;
} one_memory;

static int64_t one_heads(const attention_spec *s)
{
    return (s->heads + WIDE - 1) / WIDE * WIDE;
}

/* most, sum, o of all heads; of the first two whole vectors. */
static size_t one_partial_bytes(const attention_spec *s)
{
    return apus_cpu_lines((size_t)(2 * one_heads(s) + s->heads * padded_dim(s)) * sizeof(float));
}

static partial one_partial(const attention_spec *s, char *memory, int64_t i)
{
    float *p = (float *)(void *)(memory + (size_t)i * one_partial_bytes(s));
    return (partial){p, p + one_heads(s), p + 2 * one_heads(s)};
}

static size_t one_bytes(const attention_spec *s)
{
    return apus_cpu_lines((size_t)(3 * s->heads * padded_dim(s) + s->heads * ATT_KEYS) * sizeof(float)) + 2 * one_partial_bytes(s);
}

static one_memory one_pieces(const attention_spec *s, char *memory)
{
    const int64_t rows = s->heads * padded_dim(s);
    float *p = (float *)(void *)memory;
    one_memory m = {.rotated = p, .q = p + rows, .units = p + 2 * rows, .z = p + 3 * rows};
    char *partials = memory + one_bytes(s) - 2 * one_partial_bytes(s);
    m.tile = one_partial(s, partials, 0);
    m.all = one_partial(s, partials, 1);
    return m;
}

/* Reads the first keys of a tile, one after the other: what comes first cannot be fetched while something else is worked on. */
static void one_touch(const one *o, const attention_block *b, int64_t tile)
{
    int64_t at[WIDE];
    const int64_t n = apus_cpu_min(WIDE, (int64_t)b->position + 1 - tile);
    key_rows(o->keys, b->sequence, tile, n, at);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t e = 0; e < o->s->narrow; e += WIDE) {
            (void)*(const volatile float *)(o->k + at[i] * o->s->narrow + e);
        }
    }
}

/* Elements u … of WIDE keys, turned in registers, times those of m queries; left: elements that are there. With each a line of what
 * `ahead` says is fetched: more at once than the processor can wait for would not be fetched at all. */
LANES_INLINE void one_square(kind t, int m, int whole, int64_t left, const float *const *key, const float *q, int64_t ldq, const float *ahead,
                             vn *sums)
{
    const int64_t per = t == PAIRS ? 2 : 1;
    vn r[WIDE];
    for (int64_t i = 0; i < WIDE; i++) {
        r[i] = along(t, 0, key[i], whole ? WIDE * per : left);
    }
    n_transpose(r);
    for (int64_t u = 0; u < WIDE && (whole || u * per < left); u++) {
        for (int64_t x = 0; x < per; x++) {
            __builtin_prefetch(ahead + (u * per + x) * WIDE, 0, 2);
        }
        for (int i = 0; i < m; i++) {
            sums[i] = n_product(t, n_all(q[i * ldq + u]), r[u], sums[i]);
        }
    }
}

/* Scores z [m heads, WIDE keys]. */
LANES_INLINE void one_scores(kind t, int m, int64_t dim, const float *const *key, const float *q, int64_t ldq, const float *ahead, float *z)
{
    const int64_t per = t == PAIRS ? 2 : 1;
    const float *at[WIDE];
    vn sums[4];
    int64_t e = 0;
    for (int i = 0; i < m; i++) {
        sums[i] = n_all(0.0f);
    }
    for (int i = 0; i < WIDE; i++) {
        at[i] = key[i];
    }
    for (; e + WIDE * per <= dim; e += WIDE * per) {
        one_square(t, m, 1, WIDE * per, at, q + e / per, ldq, ahead + e * WIDE, sums);
        for (int i = 0; i < WIDE; i++) {
            at[i] += WIDE * per;
        }
    }
    if (e < dim) {
        one_square(t, m, 0, dim - e, at, q + e / per, ldq, ahead + e * WIDE, sums);
    }
    for (int i = 0; i < m; i++) {
        n_store(z + i * ATT_KEYS, sums[i]);
    }
}

/* o [m heads, nr vectors] (+)= numerators [m heads, WIDE keys] times the values of these keys; left: elements that are there. */
LANES_INLINE void one_sums(kind t, int m, int nr, int64_t left, const float *const *value, int64_t d, const float *z, const float *ahead, float *o,
                           int64_t ldo, int add)
{
    const int64_t per = t == PAIRS ? 2 : 1;
    vn sums[4 * 4];
    for (int i = 0; i < m * nr; i++) {
        sums[i] = add ? n_load(o + i / nr * ldo + i % nr * WIDE) : n_all(0.0f);
    }
    for (int64_t e = 0; e < WIDE; e += per) {
        vn v[4];
        for (int j = 0; j < nr; j++) {
            const float *first = value[e] + d + j * WIDE, *second = value[e + per - 1] + d + j * WIDE;
            v[j] = n_hold(left >= nr * WIDE ? across(t, n_load(first), n_load(second)) : across(t, n_take(0, first, left), n_take(0, second, left)));
            for (int64_t x = 0; x < per; x++) {
                __builtin_prefetch(ahead + ((e + x) * nr + j) * WIDE, 0, 2);
            }
        }
        for (int i = 0; i < m; i++) {
            const vn factor = n_all(z[i * ATT_KEYS + e / per]);
            for (int j = 0; j < nr; j++) {
                sums[i * nr + j] = n_product(t, factor, v[j], sums[i * nr + j]);
            }
        }
    }
    for (int i = 0; i < m * nr; i++) {
        n_store(o + i / nr * ldo + i % nr * WIDE, sums[i]);
    }
}

LANES_INLINE void one_values(kind t, int m, int64_t dim, const float *const *value, const float *z, const float *ahead, float *o, int64_t ldo,
                             int add)
{
    enum { MOST = WIDE == 16 ? 4 : 2 };
    int64_t d = 0;
    for (; d + MOST * WIDE <= dim; d += MOST * WIDE) {
        one_sums(t, m, MOST, MOST * WIDE, value, d, z, ahead + d * WIDE, o + d, ldo, add);
    }
    for (; d < dim; d += WIDE) {
        one_sums(t, m, 1, apus_cpu_min(WIDE, dim - d), value, d, z, ahead + d * WIDE, o + d, ldo, add);
    }
}

/* f(t, m, …) for the heads of a group, up to four at a time: h is the first of them. */
#define ONE_HEADS(f, t, group, ...)                                                                                                                  \
    do {                                                                                                                                             \
        int64_t h = 0;                                                                                                                               \
        for (; h + 4 <= (group); h += 4) {                                                                                                           \
            f(t, 4, __VA_ARGS__);                                                                                                                    \
        }                                                                                                                                            \
        if ((group)-h == 3) {                                                                                                                        \
            f(t, 3, __VA_ARGS__);                                                                                                                    \
        } else if ((group)-h == 2) {                                                                                                                 \
            f(t, 2, __VA_ARGS__);                                                                                                                    \
        } else if ((group)-h == 1) {                                                                                                                 \
            f(t, 1, __VA_ARGS__);                                                                                                                    \
        }                                                                                                                                            \
    } while (0)

/* Scores [head, ATT_KEYS] of n keys become numerators as factors [head, unit of keys]; those the query does not see are none. */
LANES_INLINE void one_softmax(kind t, const attention_spec *s, int64_t low, int64_t high, int64_t n, float *z, partial p)
{
    ni lane;
    for (int i = 0; i < WIDE; i++) {
        lane[i] = i;
    }
    for (int64_t h = 0; h < s->heads; h++) {
        float *its = z + h * ATT_KEYS;
        vn most = n_all(ATT_FLOOR);
        for (int64_t i = 0; i < n; i += WIDE) {
            vn v = n_load(its + i);
            if (i < low || i + WIDE > high) {
                const ni key = lane + (int32_t)i;
                v = n_select((key >= (int32_t)low) & (key < (int32_t)high), v, n_all(2.0f * ATT_FLOOR));
            }
            n_store(its + i, v);
            most = n_max(most, v);
        }
        p.most[h] = n_most(most);
        for (int64_t i = 0; i < n; i += WIDE) {
            n_store(its + i, n_exp2(n_load(its + i) - n_all(p.most[h])));
        }
    }
    for (int64_t h = s->heads; h < one_heads(s); h++) {
        p.most[h] = ATT_FLOOR;
    }
    for (int64_t h = 0; h < s->heads; h += WIDE) { /* key after key, as in a lane */
        vn total = n_all(0.0f);
        for (int64_t i = 0; i < n; i += WIDE) {
            vn r[WIDE];
            for (int64_t j = 0; j < WIDE; j++) {
                r[j] = h + j < s->heads ? n_load(z + (h + j) * ATT_KEYS + i) : n_all(0.0f);
            }
            n_transpose(r);
            for (int64_t j = 0; j < WIDE; j++) {
                total += r[j];
            }
        }
        n_store(p.sum + h, total);
    }
    for (int64_t h = 0; h < s->heads && t != PLAIN; h++) {
        for (int64_t i = 0; i < ATT_KEYS; i += t == PAIRS ? 2 * WIDE : WIDE) {
            n_store(z + h * ATT_KEYS + (t == PAIRS ? i / 2 : i), along(t, 0, z + h * ATT_KEYS + i, ATT_KEYS - i));
        }
    }
}

/* What the query of b sees of the tile at this position; next: of the tile that its thread takes then, fetched meanwhile. */
LANES_INLINE void one_tile(kind t, const one *o, const attention_block *b, int64_t tile, int64_t next, const one_memory *m, partial p)
{
    const attention_spec *s = o->s;
    const int64_t dim = s->dim, wide = padded_dim(s), n = apus_cpu_min(ATT_KEYS, (int64_t)b->position + 1 - tile);
    const int64_t ldq = t == PLAIN ? wide : (units(t, dim) + WIDE - 1) / WIDE * WIDE;
    const float *q = t == PLAIN ? m->q : m->units;
    int64_t at[ATT_KEYS + 1];
    key_rows(o->keys, b->sequence, tile, n, at);
    at[n] = at[n - 1];
    if (next <= b->position) {
        key_rows(o->keys, b->sequence, next, 1, &at[n]);
    }
    const float *then = o->k + at[n] * s->narrow;
    for (int64_t i = 0; i < n; i += WIDE) {
        const float *key[WIDE], *ahead = i + WIDE < n ? o->k + at[i + WIDE] * s->narrow : o->v + at[0] * s->narrow;
        for (int64_t kv = 0; kv < s->kv_heads; kv++) {
            for (int64_t j = 0; j < WIDE; j++) {
                key[j] = o->k + at[apus_cpu_min(i + j, n - 1)] * s->narrow + kv * dim;
            }
            ONE_HEADS(one_scores, t, s->group, dim, key, q + (kv * s->group + h) * ldq, ldq, ahead + kv * dim * WIDE,
                      m->z + (kv * s->group + h) * ATT_KEYS + i);
        }
    }
    if (s->cap > 0.0f) {
        cap_scores(m->z, s->heads * ATT_KEYS, s->cap * LOG2_E);
    }
    one_softmax(t, s, first_key(s, b->position) - tile, (int64_t)b->position + 1 - tile, n, m->z, p);
    for (int64_t i = 0; i < n; i += WIDE) {
        const float *value[WIDE], *ahead = i + WIDE < n ? o->v + at[i + WIDE] * s->narrow : then;
        for (int64_t kv = 0; kv < s->kv_heads; kv++) {
            for (int64_t j = 0; j < WIDE; j++) {
                value[j] = o->v + at[apus_cpu_min(i + j, n - 1)] * s->narrow + kv * dim;
            }
            ONE_HEADS(one_values, t, s->group, dim, value, m->z + (kv * s->group + h) * ATT_KEYS + units(t, i), ahead + kv * dim * WIDE,
                      p.o + (kv * s->group + h) * wide, wide, i > 0);
        }
    }
}

/* The query of b as factors. */
LANES_INLINE void one_query(kind t, const one *o, const attention_block *b, const one_memory *m)
{
    const attention_spec *s = o->s;
    const int64_t wide = padded_dim(s);
    const float *q = o->q + b->token * s->wide;
    if (o->rope != NULL) {
        rope_token(o->rope, b->token, 0, m->rotated);
        q = m->rotated;
    }
    for (int64_t h = 0; h < s->heads; h++) {
        for (int64_t d = 0; d < wide; d += WIDE) {
            n_store(m->q + h * wide + d, n_take(0, q + h * s->dim + d, s->dim - d) * n_all(s->scale * LOG2_E));
        }
    }
    (void)rows_along(t, (reals){m->q, 0}, wide, s->heads, s->dim, m->units);
}

/* all, then the tile. */
static void one_join(const attention_spec *s, partial all, partial next)
{
    const int64_t wide = padded_dim(s);
    for (int64_t h = 0; h < s->heads; h += WIDE) {
        const vn a = n_load(all.most + h), b = n_load(next.most + h), most = n_max(a, b), f = n_exp2(a - most), g = n_exp2(b - most);
        n_store(all.most + h, most);
        n_store(all.sum + h, n_product(PLAIN, n_load(next.sum + h), g, n_load(all.sum + h) * f));
        for (int64_t i = 0; i < WIDE && h + i < s->heads; i++) {
            for (int64_t d = (h + i) * wide; d < (h + i + 1) * wide; d += WIDE) {
                n_store(all.o + d, n_product(PLAIN, n_load(next.o + d), n_all(g[i]), n_load(all.o + d) * n_all(f[i])));
            }
        }
    }
}

static void one_put(const one *o, const attention_block *b, partial p)
{
    const attention_spec *s = o->s;
    for (int64_t h = 0; h < s->heads; h++) {
        const vn inverse = n_all(1.0f / p.sum[h]);
        for (int64_t d = 0; d < s->dim; d += WIDE) {
            n_give(0, o->out + b->token * s->wide + h * s->dim + d, n_load(p.o + h * padded_dim(s) + d) * inverse, s->dim - d);
        }
    }
}

static void one_begin(const apus_kernel_call *c, const one *o, const attention_block *b, const one_memory *m)
{
    if (apus_cpu_of(c)->bfloat16) {
        one_query(BFLOAT16, o, b, m);
    } else {
        one_query(PLAIN, o, b, m);
    }
}

static void one_part(const apus_kernel_call *c, const one *o, const attention_block *b, int64_t tile, int64_t next, const one_memory *m, partial p)
{
    if (apus_cpu_of(c)->bfloat16) {
        one_tile(BFLOAT16, o, b, tile, next, m, p);
    } else {
        one_tile(PLAIN, o, b, tile, next, m, p);
    }
}

/* All of one query. */
static void one_whole(const apus_kernel_call *c, const one *o, const attention_block *b, char *memory)
{
    const one_memory m = one_pieces(o->s, memory);
    int64_t tile = first_tile(o->s, b);
    one_touch(o, b, tile);
    one_begin(c, o, b, &m);
    one_part(c, o, b, tile, tile + ATT_KEYS, &m, m.all);
    while ((tile += ATT_KEYS) <= b->position) {
        one_part(c, o, b, tile, tile + ATT_KEYS, &m, m.tile);
        one_join(o->s, m.all, m.tile);
    }
    one_put(o, b, m.all);
}

enum {
    ONE_TILES = 64,              /* of one query that threads share, at a time: as many partial results are kept */
    ONE_LEAST = ATT_KEYS * 3 / 2 /* keys: fewer are not worth a second thread */
};

/* The same by all threads. partials: ONE_TILES. */
static void one_shared(const apus_kernel_call *c, const one *o, const attention_block *b, char *memory, char *partials)
{
    const attention_spec *s = o->s;
    const int64_t first = first_tile(s, b), tiles = (b->position - first) / ATT_KEYS + 1;
    const partial all = one_pieces(s, memory).all;
#pragma omp parallel num_threads(threads_of(c))
    {
        const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
        const one_memory m = one_pieces(s, memory + (size_t)me * one_bytes(s));
        if (me < tiles) {
            one_touch(o, b, first + me * ATT_KEYS);
        }
        one_begin(c, o, b, &m);
        for (int64_t done = 0; done < tiles; done += ONE_TILES) {
#pragma omp for schedule(static, 1)
            for (int64_t i = done; i < apus_cpu_min(tiles, done + ONE_TILES); i++) {
                one_part(c, o, b, first + i * ATT_KEYS, first + (i + threads) * ATT_KEYS, &m, i == 0 ? all : one_partial(s, partials, i - done));
            }
#pragma omp single
            for (int64_t i = done > 0 ? done : 1; i < apus_cpu_min(tiles, done + ONE_TILES); i++) {
                one_join(s, all, one_partial(s, partials, i - done));
            }
        }
    }
    one_put(o, b, all);
}

/* n single queries. Each is one thread's where there are as many as threads. */
static void attention_ones(const apus_kernel_call *c, const one *o, const attention_block *blocks, int64_t n, char *memory, char *partials)
{
    const int64_t threads = threads_of(c);
    for (int64_t i = 0; i < n && n < threads; i++) {
        if (threads == 1 || blocks[i].position - first_key(o->s, blocks[i].position) < ONE_LEAST) {
            one_whole(c, o, &blocks[i], memory);
        } else {
            one_shared(c, o, &blocks[i], memory, partials);
        }
    }
    if (n < threads) {
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i++) {
        one_whole(c, o, &blocks[i], memory + (size_t)omp_get_thread_num() * one_bytes(o->s));
    }
}

#endif
