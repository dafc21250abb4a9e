/*
 * Attention's queries and keys, for its kernels forward and backward: blocks of queries, where their keys lie, what a block
 * sees of a tile of keys.
 *
 * A block is up to ATT_ROWS rows (a row is one query of one head) that share a key/value head. A tile is ATT_KEYS positions;
 * tiles' borders are multiples of that, counted from the sequence's first token.
 */
#ifndef APUS_CPU_ATTENTION_ROWS_H
#define APUS_CPU_ATTENTION_ROWS_H

#include "attention_tiles.h"
#include "index.h"

enum { ATT_HEADS = 16 /* most heads of one block */ };

#define LOG2_E 1.44269504088896341f
#define LN_2   0.693147180559945309f

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
        const int32_t *pages = keys->table + sequence * keys->stride + 4 + first / keys->page;
        for (int64_t i = 0, at = first % keys->page; i < n; at = 0, pages++) {
            for (; i < n && at < keys->page; i++, at++) {
                rows[i] = (int64_t)*pages * keys->page + at;
            }
        }
        return;
    }
    for (int64_t s = sequence, end = first + n; s >= 0 && end > first; s = keys->table[s * 4 + 2]) {
        const int64_t before = keys->before[s], begin = before > first ? before : first, row = keys->table[s * 4] - before;
        for (int64_t i = begin; i < end; i++) {
            rows[i - first] = row + i;
        }
        end = begin < end ? begin : end;
    }
}

static int64_t first_key(const attention_spec *s, int64_t position)
{
    return s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
}

/* Position of the first tile that a block sees. */
static int64_t first_tile(const attention_spec *s, const attention_block *b)
{
    return first_key(s, b->position) / ATT_KEYS * ATT_KEYS;
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

/* ---------------------------------------------------------------- rows and what they see */

/* Softmax over some keys: per row the largest score (to base 2), the sum of numerators, and values weighted by them: o [padded
 * dim, ATT_ROWS], of single queries [head, padded dim]. */
typedef struct partial {
    float *most, *sum, *o;
} partial;

/* The rows of a block: lane r is query r / heads, head r % heads. */
typedef struct attention_rows {
    int64_t n, vectors, head, heads; /* head: the first */
    int32_t position[ATT_ROWS];      /* lanes without a row have the last one's */
    int64_t at[ATT_ROWS];            /* of its query, in q and out */
} attention_rows;

/* Keys [first, end) of a tile, by vectors [j, j + vectors) of rows. */
typedef struct attention_stretch {
    int64_t first, end, j, vectors;
} attention_stretch;

/* What the rows see of a tile. By vector of rows: keys [low, high), low even and high, if it can be, a multiple of four;
 * masked: not each row sees all of those. The same as stretches, in the order of keys. */
typedef struct attention_sight {
    int64_t low[ATT_VECTORS], high[ATT_VECTORS];
    int masked[ATT_VECTORS], n_stretches;
    attention_stretch stretches[2 * ATT_VECTORS];
} attention_sight;

static void block_rows(const attention_spec *s, const attention_block *b, int64_t head, int64_t heads, attention_rows *rows)
{
    *rows = (attention_rows){.n = b->count * heads, .head = head, .heads = heads};
    rows->vectors = (rows->n + WIDE - 1) / WIDE;
    for (int64_t r = 0; r < rows->vectors * WIDE; r++) {
        const int64_t i = apus_cpu_min(r, rows->n - 1);
        rows->position[r] = (int32_t)(b->position + i / heads);
        rows->at[r] = (b->token + i / heads) * s->wide + (head + i % heads) * s->dim;
    }
}

/* Of the tile of n keys that begins at position `tile`. */
static attention_sight sight_of(const attention_spec *s, const attention_rows *rows, int64_t tile, int64_t n)
{
    attention_sight x = {.n_stretches = 0};
    int64_t *low = x.low, *high = x.high;
    for (int64_t j = 0; j < rows->vectors; j++) { /* positions ascend, and so do low and high */
        const int64_t first = rows->position[j * WIDE] - tile, last = rows->position[j * WIDE + WIDE - 1] - tile;
        const int64_t from = first_key(s, first + tile) - tile, all = first_key(s, last + tile) - tile;
        low[j] = from > 0 ? apus_cpu_min(from, n) & ~(int64_t)1 : 0;
        high[j] = last + 1 > low[j] ? apus_cpu_min(n, (last + 4) & ~(int64_t)3) : low[j];
        x.masked[j] = all > low[j] || first + 1 < high[j];
    }
    for (int64_t key = low[0], next; key < high[rows->vectors - 1]; key = next) {
        int64_t j = 0, end = rows->vectors;
        while (high[j] <= key) {
            j++;
        }
        while (low[end - 1] > key) {
            end--;
        }
        next = end < rows->vectors ? apus_cpu_min(low[end], high[j]) : high[j];
        if (end > j) {
            x.stretches[x.n_stretches++] = (attention_stretch){key, next, j, end - j};
        }
    }
    return x;
}

/* Which of the rows from r on see position `key`. */
LANES_INLINE ni sees(const attention_spec *s, const int32_t *position, int64_t key)
{
    ni p;
    memcpy(&p, position, sizeof p);
    const ni seen = p >= (int32_t)key;
    return s->window > 0 ? seen & (p - (int32_t)s->window < (int32_t)key) : seen;
}

/* Rows [n, dim] of keys at these places of `from`, ld apart: where they lie, if that is one after the other, or copied. */
static reals key_factor(const attention_spec *s, reals from, const int64_t *at, int64_t n, float *copy, int64_t *ld)
{
    int64_t apart = 0;
    for (int64_t i = 0; i < n; i++) {
        apart |= at[i] ^ (at[0] + i);
    }
    if (apart == 0) {
        *ld = s->narrow;
        return reals_at(from, at[0] * s->narrow);
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(element_to(copy, from.halves, i * s->dim), element(from.p, from.halves, at[i] * s->narrow),
               (size_t)s->dim * (from.halves ? sizeof(uint16_t) : sizeof(float)));
    }
    *ld = s->dim;
    return (reals){copy, from.halves};
}

/* c [key, lane] = a b, for the keys that the rows see; m: units of the sum. */
static void seen_scores(kind t, const attention_sight *x, int64_t m, strided a, const float *b, float *c)
{
    for (int i = 0; i < x->n_stretches; i++) {
        const attention_stretch *e = &x->stretches[i];
        const strided from = {a.p + e->first * a.across, a.across, a.along};
        small_product(t, e->end - e->first, e->vectors, m, from, b + e->j * WIDE, ATT_ROWS, c + e->first * ATT_ROWS + e->j * WIDE, ATT_ROWS, 0);
    }
}

/* c [m, lane] = (c +) a b over the keys that the rows see; b: units of keys. */
static void seen_sums(kind t, const attention_sight *x, int64_t m, strided a, const float *b, float *c, int add)
{
    const kind summed = t == BFLOAT16 ? SUMMED : PLAIN;
    for (int i = 0; i < x->n_stretches; i++) {
        const attention_stretch *e = &x->stretches[i];
        const int64_t first = units(summed, e->first), n = units(summed, e->end) - first;
        const strided from = {a.p + first * a.along, a.across, a.along};
        small_product(t, m, e->vectors, n, from, b + first * ATT_ROWS + e->j * WIDE, ATT_ROWS, c + e->j * WIDE, ATT_ROWS, add);
    }
}

static int64_t padded_dim(const attention_spec *s)
{
    return (s->dim + WIDE - 1) / WIDE * WIDE;
}

/* Rows of queries (or gradients) times factor, side by side; [rows, padded dim], zeros behind each. */
static void gather_rows(const attention_spec *s, const attention_rows *rows, reals from, float factor, float *to)
{
    const int64_t wide = padded_dim(s);
    for (int64_t r = 0; r < rows->n; r++) {
        for (int64_t d = 0; d < wide; d += WIDE) {
            n_store(to + r * wide + d, n_take(from.halves, element(from.p, from.halves, rows->at[r] + d), s->dim - d) * n_all(factor));
        }
    }
}

/* Softcap: scores, in units of cap, become their tanh, again in scores' units. */
static void cap_scores(float *z, int64_t n, float cap)
{
    for (int64_t i = 0; i < n; i += LANES) {
        v_store(z + i, v_tanh(v_load(z + i) / v_all(cap)) * v_all(cap));
    }
}

#endif
