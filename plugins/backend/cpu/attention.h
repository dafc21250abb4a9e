/*
 * Attention, forward: over the tokens being run (segments and their parents) or over paged caches. Never a T×T matrix.
 *
 * Work is cut into blocks: up to ATT_ROWS rows (a row is one query of one head) that share a key/value head. A block walks
 * its keys in tiles of ATT_KEYS positions, whose borders are multiples of ATT_KEYS counted from the sequence's first token,
 * with the online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). A row meets the same tiles in the same order whatever
 * stands beside it, so its bits depend on its own query and keys alone; and both ops give the same bits.
 */
#ifndef APUS_CPU_ATTENTION_H
#define APUS_CPU_ATTENTION_H

#include "index.h"

enum { ATT_ROWS = 64, ATT_KEYS = 64, ATT_HEADS = 16 /* most heads of one block */ };

typedef struct attention_spec {
    int64_t heads, kv_heads, dim, group; /* group: query heads per key/value head */
    int64_t wide, narrow;                /* elements of a token's queries; of its keys */
    int64_t block_heads, block_queries, head_blocks;
    int64_t window;
    float scale, cap;
} attention_spec;

/* Consecutive queries of one sequence. */
typedef struct attention_block {
    int32_t sequence;
    int32_t token, position; /* of the first query: its row, and how many keys come before it */
    int32_t count;
    int32_t chunk; /* backward: which partial sum its keys' gradients go to */
} attention_block;

/* Where keys lie: chains of segments (page 0), or page tables. */
typedef struct attention_keys {
    const int32_t *table;  /* [n, stride] */
    const int64_t *before; /* [n] keys before a segment's own; NULL with pages */
    int64_t n, stride, page;
} attention_keys;

static attention_spec attention_of(const apus_kernel_call *c)
{
    attention_spec s = {.heads = (int64_t)c->attrs[0],
                        .kv_heads = (int64_t)c->attrs[1],
                        .dim = (int64_t)c->attrs[2],
                        .scale = (float)c->attrs[3],
                        .window = (int64_t)c->attrs[4],
                        .cap = (float)c->attrs[5]};
    s.group = s.heads / s.kv_heads;
    s.wide = s.heads * s.dim;
    s.narrow = s.kv_heads * s.dim;
    s.block_heads = apus_cpu_min(s.group, ATT_HEADS);
    s.head_blocks = (s.group + s.block_heads - 1) / s.block_heads;
    s.block_queries = ATT_ROWS / s.block_heads;
    return s;
}

/* Rows of the n keys at positions first … of a sequence. */
static void key_rows(const attention_keys *keys, int64_t sequence, int64_t first, int64_t n, int64_t *rows)
{
    if (keys->page > 0) {
        const int32_t *pages = keys->table + sequence * keys->stride + 4;
        for (int64_t i = 0; i < n; i++) {
            rows[i] = (int64_t)pages[(first + i) / keys->page] * keys->page + (first + i) % keys->page;
        }
        return;
    }
    for (int64_t s = sequence, end = first + n; s >= 0 && end > first; s = keys->table[s * 4 + 2]) {
        for (; end > first && end > keys->before[s]; end--) {
            rows[end - 1 - first] = keys->table[s * 4] + end - 1 - keys->before[s];
        }
    }
}

static int64_t first_key(const attention_spec *s, int64_t position)
{
    return s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
}

/* Cut count queries into blocks; returns how many blocks there are now. */
static int64_t add_blocks(const attention_spec *s, attention_block *blocks, int64_t n, int64_t sequence, int64_t token, int64_t position,
                          int64_t count)
{
    for (int64_t i = 0; i < count; i += s->block_queries) {
        blocks[n++] = (attention_block){.sequence = (int32_t)sequence,
                                        .token = (int32_t)(token + i),
                                        .position = (int32_t)(position + i),
                                        .count = (int32_t)apus_cpu_min(s->block_queries, count - i)};
    }
    return n;
}

/* Most blocks that `tokens` queries in `sequences` can make. */
static size_t most_blocks(const attention_spec *s, int64_t tokens, int64_t sequences)
{
    return (size_t)(tokens / s->block_queries + sequences + 1);
}

/* The blocks of all segments and the keys before each; -1 with err when the table is wrong. covered: queries in all. */
static int64_t segment_blocks(const attention_spec *s, const apus_view *table, int64_t tokens, int64_t *before, attention_block *blocks,
                              int64_t *covered, apus_error *err)
{
    const int32_t *segments = (const int32_t *)table->data;
    int64_t n = 0;
    *covered = 0;
    for (int64_t i = 0; i < table->dims[0]; i++) {
        const int32_t *seg = segments + i * 4;
        if (seg[0] < 0 || seg[1] < 0 || (int64_t)seg[0] + seg[1] > tokens || seg[2] >= i || seg[2] < -1 || (*covered += seg[1]) > tokens) {
            (void)apus_fail(err, APUS_E_INVALID, "attention: segment %lld is {%d, %d, %d}, of %lld tokens", (long long)i, seg[0], seg[1], seg[2],
                            (long long)tokens);
            return -1;
        }
        before[i] = seg[2] >= 0 ? before[seg[2]] + segments[seg[2] * 4 + 1] : 0;
        n = add_blocks(s, blocks, n, i, seg[0], before[i], seg[1]);
    }
    return n;
}

/* ---------------------------------------------------------------- one block */

/* Scores of a tile, in place: row [ATT_KEYS]; keys outside [low, high) become -inf. Gives the largest. */
LANES_INLINE float mask_scores(const attention_spec *s, float *row, int64_t low, int64_t high)
{
    vf most = v_all(-INFINITY);
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t i = 0; i < ATT_KEYS; i += LANES) {
        vf z = v_load(row + i) * v_all(s->scale);
        if (s->cap > 0.0f) {
            z = v_tanh(z / v_all(s->cap)) * v_all(s->cap);
        }
        if (i < low || i + LANES > high) {
            const vi at = lane + v_alli((int32_t)i);
            z = v_select((at >= v_alli((int32_t)low)) & (at < v_alli((int32_t)high)), z, v_all(-INFINITY));
        }
        v_store(row + i, z);
        most = v_larger(most, z); /* a NaN is kept by the exponentials */
    }
    return v_most(most);
}

typedef struct forward_memory {
    float *q, *o, *s; /* [ATT_ROWS, dim], [ATT_ROWS, dim], [ATT_ROWS, ATT_KEYS] */
} forward_memory;

static size_t forward_bytes(const attention_spec *s)
{
    return 2 * apus_cpu_lines((size_t)ATT_ROWS * (size_t)s->dim * sizeof(float)) + (size_t)ATT_ROWS * ATT_KEYS * sizeof(float);
}

static void attention_block_forward(const attention_spec *s, const attention_keys *keys, const attention_block *b, int64_t kv, int64_t head,
                                    int64_t heads, const float *q, const float *k, const float *v, float *out, float *lse, char *memory)
{
    const int64_t dim = s->dim, rows = b->count * heads;
    const size_t row_bytes = apus_cpu_lines((size_t)ATT_ROWS * (size_t)dim * sizeof(float));
    const forward_memory m = {(float *)(void *)memory, (float *)(void *)(memory + row_bytes), (float *)(void *)(memory + 2 * row_bytes)};
    float most[ATT_ROWS], sum[ATT_ROWS];
    float *o[ATT_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        memcpy(m.q + r * dim, q + (b->token + r / heads) * s->wide + (head + r % heads) * dim, (size_t)dim * sizeof *q);
        memset(m.o + r * dim, 0, (size_t)dim * sizeof *q);
        most[r] = -INFINITY;
        sum[r] = 0.0f;
        o[r] = m.o + r * dim;
    }
    const int64_t end = (int64_t)b->position + b->count;
    for (int64_t tile = first_key(s, b->position) / ATT_KEYS * ATT_KEYS; tile < end; tile += ATT_KEYS) {
        const int64_t n = apus_cpu_min(ATT_KEYS, end - tile);
        int64_t at[ATT_KEYS];
        const float *krow[ATT_KEYS], *vrow[ATT_KEYS];
        key_rows(keys, b->sequence, tile, n, at);
        for (int64_t j = 0; j < n; j++) {
            krow[j] = k + at[j] * s->narrow + kv * dim;
            vrow[j] = v + at[j] * s->narrow + kv * dim;
        }
        dots(m.q, dim, rows, krow, n, dim, m.s, ATT_KEYS, NULL, 0, 0);
        for (int64_t r = 0; r < rows; r++) {
            float *z = m.s + r * ATT_KEYS;
            const int64_t position = b->position + r / heads, low = first_key(s, position) - tile;
            const int64_t high = apus_cpu_min(position + 1 - tile, ATT_KEYS);
            for (int64_t j = n; j < ATT_KEYS; j++) {
                z[j] = 0.0f;
            }
            const float top = high > low ? mask_scores(s, z, low, high) : -INFINITY, next = top > most[r] || top != top ? top : most[r];
            if (!(next > -INFINITY) && next == next) { /* no key of this tile is seen */
                memset(z, 0, ATT_KEYS * sizeof *z);
                continue;
            }
            vf total = v_all(0.0f);
            if (high > low) {
                for (int64_t j = 0; j < ATT_KEYS; j += LANES) {
                    const vf p = v_exp_fast(v_load(z + j) - v_all(next));
                    v_store(z + j, p);
                    total += p;
                }
            } else {
                memset(z, 0, ATT_KEYS * sizeof *z);
            }
            if (next != most[r]) {
                const float fade = v_exp_fast(v_all(most[r] - next))[0];
                sum[r] *= fade;
                for (int64_t j = 0; j < dim; j += LANES) {
                    put(o[r] + j, get(o[r] + j, dim - j) * v_all(fade), dim - j);
                }
                most[r] = next;
            }
            sum[r] += v_sum(total);
        }
        outer(rows, dim, n, m.s, ATT_KEYS, 1, vrow, o);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = b->token + r / heads, h = head + r % heads;
        const vf inverse = v_all(1.0f / sum[r]);
        for (int64_t j = 0; j < dim && out != NULL; j += LANES) {
            put(out + t * s->wide + h * dim + j, get(o[r] + j, dim - j) * inverse, dim - j);
        }
        if (lse != NULL) {
            lse[t * s->heads + h] = most[r] + v_log(v_all(sum[r]))[0];
        }
    }
}

/* All blocks, over all key/value heads; blocks are independent, so any thread may take any. */
static void attention_forward(const apus_kernel_call *c, const attention_spec *s, const attention_keys *keys, const attention_block *blocks,
                              int64_t n, float *out, float *lse, char *memory)
{
    const int64_t per_block = s->kv_heads * s->head_blocks, items = n * per_block;
    const size_t bytes = forward_bytes(s);
    const float *q = (const float *)c->in[0].data, *k = (const float *)c->in[1].data, *v = (const float *)c->in[2].data;
#pragma omp parallel for num_threads(threads_of(c)) schedule(dynamic, 1) if (items > 1)
    for (int64_t item = 0; item < items; item++) {
        const attention_block *b = &blocks[n - 1 - item / per_block]; /* long ones, which come last, first */
        const int64_t kv = item % per_block / s->head_blocks, part = item % s->head_blocks * s->block_heads;
        const int64_t heads = apus_cpu_min(s->block_heads, s->group - part);
        attention_block_forward(s, keys, b, kv, kv * s->group + part, heads, q, k, v, out, lse, memory + (size_t)omp_get_thread_num() * bytes);
    }
}

static size_t scratch_attention(const apus_kernel_call *c)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[0]), segments = c->in[3].dims[0];
    return (size_t)threads_of(c) * forward_bytes(&s) + apus_cpu_lines((size_t)segments * sizeof(int64_t)) +
           most_blocks(&s, tokens, segments) * sizeof(attention_block);
}

static apus_status run_attention(const apus_kernel_call *c, apus_error *err)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[0]), segments = c->in[3].dims[0];
    char *memory = (char *)c->scratch;
    int64_t *before = (int64_t *)(void *)(memory + (size_t)threads_of(c) * forward_bytes(&s)), covered;
    attention_block *blocks = (attention_block *)(void *)((char *)before + apus_cpu_lines((size_t)segments * sizeof *before));
    const int64_t n = segment_blocks(&s, &c->in[3], tokens, before, blocks, &covered, err);
    if (n < 0) {
        return APUS_E_INVALID;
    }
    float *out = (float *)c->out[0].data, *lse = (float *)c->out[1].data;
    if (covered < tokens && out != NULL) { /* tokens of no segment see nothing */
        memset(out, 0, (size_t)(tokens * s.wide) * sizeof *out);
    }
    if (covered < tokens && lse != NULL) {
        memset(lse, 0, (size_t)(tokens * s.heads) * sizeof *lse);
    }
    const attention_keys keys = {(const int32_t *)c->in[3].data, before, segments, 4, 0};
    attention_forward(c, &s, &keys, blocks, n, out, lse, memory);
    return APUS_OK;
}

static size_t scratch_attention_cached(const apus_kernel_call *c)
{
    const attention_spec s = attention_of(c);
    return (size_t)threads_of(c) * forward_bytes(&s) + most_blocks(&s, apus_cpu_rows(&c->in[0]), c->in[3].dims[0]) * sizeof(attention_block);
}

static apus_status check_pages(const int32_t *row, int64_t at, int64_t tokens, int64_t columns, int64_t page, int64_t slots, apus_error *err)
{
    const int64_t begin = row[0], count = row[1], length = row[2];
    if (page < 1 || begin < 0 || count < 0 || begin + count > tokens || length < count || length > (columns - 4) * page) {
        return apus_fail(err, APUS_E_INTERNAL, "attention_cached: row %lld of the table is {%d, %d, %d}, of %lld tokens and %lld pages of %lld",
                         (long long)at, row[0], row[1], row[2], (long long)tokens, (long long)columns - 4, (long long)page);
    }
    for (int64_t p = 0; p * page < length; p++) {
        const int64_t last = apus_cpu_min(length - p * page, page) - 1;
        if (row[4 + p] < 0 || row[4 + p] * page + last >= slots) {
            return apus_fail(err, APUS_E_INTERNAL, "attention_cached: row %lld of the table names page %d of %lld slots", (long long)at, row[4 + p],
                             (long long)slots);
        }
    }
    return APUS_OK;
}

static apus_status run_attention_cached(const apus_kernel_call *c, apus_error *err)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[0]), rows = c->in[3].dims[0], columns = c->in[3].dims[1], page = (int64_t)c->attrs[6];
    const int32_t *table = (const int32_t *)c->in[3].data;
    float *out = (float *)c->out[0].data;
    char *memory = (char *)c->scratch;
    attention_block *blocks = (attention_block *)(void *)(memory + (size_t)threads_of(c) * forward_bytes(&s));
    int64_t n = 0, covered = 0;
    for (int64_t i = 0; i < rows; i++) {
        const int32_t *row = table + i * columns;
        if (check_pages(row, i, tokens, columns, page, c->in[1].dims[0], err) != APUS_OK) {
            return APUS_E_INTERNAL;
        }
        if ((covered += row[1]) > tokens) {
            return apus_fail(err, APUS_E_INTERNAL, "attention_cached: the table has more queries than there are tokens (%lld)", (long long)tokens);
        }
        n = add_blocks(&s, blocks, n, i, row[0], row[2] - row[1], row[1]);
    }
    if (covered < tokens) {
        memset(out, 0, (size_t)(tokens * s.wide) * sizeof *out);
    }
    const attention_keys keys = {table, NULL, rows, columns, page};
    attention_forward(c, &s, &keys, blocks, n, out, NULL, memory);
    return APUS_OK;
}

#endif
