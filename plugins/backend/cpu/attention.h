/*
 * Attention, forward: over the tokens being run (segments and their parents) or over paged caches. Never a T×T matrix.
 *
 * A block walks the tiles of its keys with the online softmax (Milakov & Gimelshein 2018; Dao et al. 2022): each tile begins anew
 * and is then joined to those before it, so that threads may share the tiles of a cache. A row meets the same tiles in the same
 * order whatever stands beside it, so its bits depend on its own query and keys alone; and both ops give the same bits.
 */
#ifndef APUS_CPU_ATTENTION_H
#define APUS_CPU_ATTENTION_H

#include "attention_one.h"

/* ---------------------------------------------------------------- one tile of keys */

typedef struct forward {
    const attention_spec *s;
    const attention_keys *keys;
    const attention_block *blocks;
    int64_t n_blocks;
    reals q, k, v;
    void *out; /* NULL: not needed, as lse */
    float *lse;
    int out_halves;
} forward;

/* A thread's memory: pieces of 64 rows of padded dim, and scores. */
typedef struct forward_memory {
    float *q, *units, *panel, *k, *v, *values, *z;
    partial tile, all;
} forward_memory;

static size_t forward_piece(const attention_spec *s)
{
    return apus_cpu_lines((size_t)ATT_ROWS * (size_t)padded_dim(s) * sizeof(float));
}

static size_t forward_bytes(const attention_spec *s)
{
    return 8 * forward_piece(s) + (size_t)ATT_ROWS * (ATT_KEYS + 2 + 4) * sizeof(float);
}

static forward_memory forward_pieces(const attention_spec *s, char *memory)
{
    float *p[9];
    for (int i = 0; i < 9; i++) {
        p[i] = (float *)(void *)(memory + (size_t)i * forward_piece(s));
    }
    float *rows = p[8] + ATT_ROWS * (ATT_KEYS + 2);
    return (forward_memory){
        p[0], p[1], p[2], p[3], p[4], p[5], p[8], {rows, rows + ATT_ROWS, p[6]}, {rows + 2 * ATT_ROWS, rows + 3 * ATT_ROWS, p[7]}};
}

/* all, then what `next` saw. */
static void partial_join(const attention_spec *s, const attention_rows *rows, partial all, partial next)
{
    float fade[ATT_ROWS], part[ATT_ROWS];
    for (int64_t r = 0; r < rows->vectors * WIDE; r += WIDE) {
        const vn a = n_load(all.most + r), b = n_load(next.most + r), most = n_max(a, b), f = n_exp2(a - most), g = n_exp2(b - most);
        n_store(fade + r, f);
        n_store(part + r, g);
        n_store(all.most + r, most);
        n_store(all.sum + r, n_product(PLAIN, n_load(next.sum + r), g, n_load(all.sum + r) * f));
    }
    for (int64_t d = 0; d < s->dim; d++) {
        for (int64_t j = 0, at = d * ATT_ROWS; j < rows->vectors * WIDE; j += WIDE, at += WIDE) {
            n_store(all.o + at, n_product(PLAIN, n_load(next.o + at), n_load(part + j), n_load(all.o + at) * n_load(fade + j)));
        }
    }
}

/* Vector j of rows: scores [key, lane] become numerators as factors [unit of keys, lane]. */
LANES_INLINE void softmax_vector(kind t, const attention_spec *s, const attention_sight *x, const int32_t *position, int64_t tile, int64_t j,
                                 float *z, partial p)
{
    const int64_t low = x->low[j], high = x->high[j];
    float *zj = z + j * WIDE;
    vn top = n_all(ATT_FLOOR), total = n_all(0.0f);
    for (int64_t i = low; i < high; i++) {
        vn v = n_load(zj + i * ATT_ROWS);
        if (x->masked[j]) {
            v = n_select(sees(s, position + j * WIDE, tile + i), v, n_all(2.0f * ATT_FLOOR));
            n_store(zj + i * ATT_ROWS, v);
        }
        top = n_max(top, v);
    }
    for (int64_t i = low; i < high; i += 2) {
        const vn a = n_exp2(n_load(zj + i * ATT_ROWS) - top);
        const vn b = i + 1 < high ? n_exp2(n_load(zj + (i + 1) * ATT_ROWS) - top) : n_all(0.0f);
        total += a;
        total += b;
        if (t == PAIRS) {
            n_store(zj + i / 2 * ATT_ROWS, across(t, a, b));
        } else {
            n_store(zj + i * ATT_ROWS, across(t, a, a));
            n_store(zj + (i + 1) * ATT_ROWS, across(t, b, b));
        }
    }
    n_store(p.sum + j * WIDE, total);
    n_store(p.most + j * WIDE, top);
}

/* What the rows of b see of the tile at this position. */
LANES_INLINE void tile_forward(kind t, const forward *f, const attention_block *b, const attention_rows *rows, int64_t kv, int64_t tile,
                               const forward_memory *m, partial p)
{
    const attention_spec *s = f->s;
    const int64_t dim = s->dim, n = apus_cpu_min(ATT_KEYS, (int64_t)b->position + b->count - tile);
    const attention_sight x = sight_of(s, rows, tile, n);
    int64_t at[ATT_KEYS], ld;
    key_rows(f->keys, b->sequence, tile, n, at);
    const reals k = key_factor(s, reals_at(f->k, kv * dim), at, n, m->k, &ld);
    seen_scores(t, &x, units(t == BFLOAT16 ? SUMMED : PLAIN, dim), rows_along(t, k, ld, n, dim, m->panel), m->units, m->z);
    if (s->cap > 0.0f) {
        cap_scores(m->z, n * ATT_ROWS, s->cap * LOG2_E);
    }
    const reals v = key_factor(s, reals_at(f->v, kv * dim), at, n, m->v, &ld);
    for (int64_t j = 0; j < rows->vectors; j++) {
        softmax_vector(t, s, &x, rows->position, tile, j, m->z, p);
    }
    const int all = x.n_stretches == 1 && x.stretches[0].vectors == rows->vectors;
    if (!all) {
        memset(p.o, 0, (size_t)(padded_dim(s) * ATT_ROWS) * sizeof *p.o);
    }
    seen_sums(t, &x, dim, rows_across(t, v, ld, n, dim, 1, m->values), m->z, p.o, !all);
}

/* Queries as factors, across the sum. */
LANES_INLINE void put_queries(kind t, const forward *f, const attention_rows *rows, const forward_memory *m)
{
    gather_rows(f->s, rows, f->q, f->s->scale * LOG2_E, m->q);
    rows_transposed(t, m->q, padded_dim(f->s), rows->n, f->s->dim, m->units);
}

/* ---------------------------------------------------------------- all blocks */

static void put_rows(const forward *f, const attention_block *b, const attention_rows *rows, partial p)
{
    const attention_spec *s = f->s;
    float inverse[ATT_ROWS];
    void *to[ATT_ROWS];
    for (int64_t r = 0; r < rows->vectors * WIDE; r++) {
        inverse[r] = 1.0f / p.sum[r];
        to[r] = f->out != NULL ? element_to(f->out, f->out_halves, rows->at[r]) : NULL;
    }
    if (f->out != NULL) {
        put_transposed(p.o, rows->n, s->dim, inverse, f->out_halves, to);
    }
    for (int64_t r = 0; r < rows->n && f->lse != NULL; r += LANES) {
        const vf l = v_fma(v_load(p.most + r), v_all(LN_2), v_log(v_load(p.sum + r)));
        for (int64_t i = 0; i < LANES && r + i < rows->n; i++) {
            f->lse[(b->token + (r + i) / rows->heads) * s->heads + rows->head + (r + i) % rows->heads] = l[i];
        }
    }
}

/* An item of work: a block and some heads that share a key/value head. Gives that one. */
static int64_t item_rows(const forward *f, int64_t item, const attention_block **b, attention_rows *rows)
{
    const attention_spec *s = f->s;
    const int64_t per_head = f->n_blocks * s->head_blocks, kv = item / per_head, part = item % s->head_blocks * s->block_heads;
    *b = &f->blocks[f->n_blocks - 1 - item % per_head / s->head_blocks]; /* long ones, which come last, first */
    block_rows(s, *b, kv * s->group + part, apus_cpu_min(s->block_heads, s->group - part), rows);
    return kv;
}

static void item_queries(const apus_kernel_call *c, const forward *f, const attention_rows *rows, const forward_memory *m)
{
    if (apus_cpu_of(c)->bfloat16) {
        put_queries(BFLOAT16, f, rows, m);
    } else {
        put_queries(PLAIN, f, rows, m);
    }
}

static void item_tile(const apus_kernel_call *c, const forward *f, const attention_block *b, const attention_rows *rows, int64_t kv, int64_t tile,
                      const forward_memory *m, partial p)
{
    if (apus_cpu_of(c)->bfloat16) {
        tile_forward(BFLOAT16, f, b, rows, kv, tile, m, p);
    } else {
        tile_forward(PLAIN, f, b, rows, kv, tile, m, p);
    }
}

static forward forward_of(const apus_kernel_call *c, const attention_spec *s, const attention_keys *keys, const attention_block *blocks, int64_t n,
                          float *lse)
{
    const apus_view *in = c->in, *out = c->out;
    return (forward){s, keys, blocks, n, reals_of(&in[0]), reals_of(&in[1]), reals_of(&in[2]), out->data, lse, out->dtype == APUS_BF16};
}

/* Blocks are independent, so any thread may take any. */
static void attention_forward(const apus_kernel_call *c, const forward *f, char *memory)
{
    const attention_spec *s = f->s;
    const int64_t items = f->n_blocks * s->kv_heads * s->head_blocks;
    const size_t bytes = forward_bytes(s);
#pragma omp parallel for num_threads(threads_of(c)) schedule(dynamic, 1) if (items > 1)
    for (int64_t item = 0; item < items; item++) {
        const forward_memory m = forward_pieces(s, memory + (size_t)omp_get_thread_num() * bytes);
        const attention_block *b;
        attention_rows rows;
        const int64_t kv = item_rows(f, item, &b, &rows), end = (int64_t)b->position + b->count;
        int64_t tile = first_tile(s, b);
        item_queries(c, f, &rows, &m);
        item_tile(c, f, b, &rows, kv, tile, &m, m.all);
        while ((tile += ATT_KEYS) < end) {
            item_tile(c, f, b, &rows, kv, tile, &m, m.tile);
            partial_join(s, &rows, m.all, m.tile);
        }
        put_rows(f, b, &rows, m.all);
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
    float *lse = (float *)c->out[1].data;
    if (covered < tokens && c->out[0].data != NULL) { /* tokens of no segment see nothing */
        memset(c->out[0].data, 0, apus_row_bytes(c->out[0].dtype, tokens * s.wide));
    }
    if (covered < tokens && lse != NULL) {
        memset(lse, 0, (size_t)(tokens * s.heads) * sizeof *lse);
    }
    const attention_keys keys = {(const int32_t *)c->in[3].data, before, segments, 4, 0};
    const forward f = forward_of(c, &s, &keys, blocks, n, lse);
    attention_forward(c, &f, memory);
    return APUS_OK;
}

/* ---------------------------------------------------------------- over caches */

static size_t cached_bytes(const attention_spec *s)
{
    const size_t many = forward_bytes(s), single = one_bytes(s);
    return many > single ? many : single;
}

static size_t scratch_attention_cached(const apus_kernel_call *c)
{
    const attention_spec s = attention_of(c);
    return (size_t)threads_of(c) * cached_bytes(&s) + ONE_TILES * one_partial_bytes(&s) +
           most_blocks(&s, apus_cpu_rows(&c->in[0]), c->in[3].dims[0]) * sizeof(attention_block);
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

/* rope: of the queries, which are not rotated yet; rotated: where they will be, all of them. NULL: they are as they should be. */
static apus_status over_caches(const apus_kernel_call *c, const apus_kernel_call *rope, float *rotated, apus_error *err)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[0]), rows = c->in[3].dims[0], columns = c->in[3].dims[1], page = (int64_t)c->attrs[6];
    const int32_t *table = (const int32_t *)c->in[3].data;
    float *out = (float *)c->out[0].data;
    char *memory = (char *)c->scratch;
    char *partials = memory + (size_t)threads_of(c) * cached_bytes(&s);
    attention_block *blocks = (attention_block *)(void *)(partials + ONE_TILES * one_partial_bytes(&s));
    int64_t n = 0, covered = 0, ones = most_blocks(&s, tokens, rows); /* single queries stand last */
    const int64_t all = ones;
    for (int64_t i = 0; i < rows; i++) {
        const int32_t *row = table + i * columns;
        if (check_pages(row, i, tokens, columns, page, c->in[1].dims[0], err) != APUS_OK) {
            return APUS_E_INTERNAL;
        }
        if ((covered += row[1]) > tokens) {
            return apus_fail(err, APUS_E_INTERNAL, "attention_cached: the table has more queries than there are tokens (%lld)", (long long)tokens);
        }
        if (row[1] == 1) {
            (void)add_blocks(&s, blocks, --ones, i, row[0], row[2] - 1, 1);
        } else {
            n = add_blocks(&s, blocks, n, i, row[0], row[2] - row[1], row[1]);
        }
    }
    if (covered < tokens) {
        memset(out, 0, (size_t)(tokens * s.wide) * sizeof *out);
    }
    const attention_keys keys = {table, NULL, rows, columns, page};
    forward f = forward_of(c, &s, &keys, blocks, n, NULL);
    one o = {&s, &keys, (const float *)c->in[0].data, (const float *)c->in[1].data, (const float *)c->in[2].data, out, rope};
    if (n > 0 && rope != NULL) { /* several items read the same queries */
        const apus_view to = {.data = rotated, .dtype = APUS_F32};
        apus_kernel_call all_of_them = *rope;
        all_of_them.out = &to;
        over_rows(&all_of_them, tokens, tokens * s.wide, ROPE_LEAST, rope_rows);
        f.q = (reals){rotated, 0};
        o.q = rotated;
        o.rope = NULL;
    }
    if (n > 0) {
        attention_forward(c, &f, memory);
    }
    attention_ones(c, &o, blocks + ones, all - ones, memory, partials);
    return APUS_OK;
}

static apus_status run_attention_cached(const apus_kernel_call *c, apus_error *err)
{
    return over_caches(c, NULL, NULL, err);
}

/* ---------------------------------------------------------------- after rope */

enum { ROPE_INPUTS = 4, ROPE_ATTRS = 8 };

/* c without rope: its x as the queries. in: room for the inputs. */
static apus_kernel_call without_rope(const apus_kernel_call *c, apus_view in[4])
{
    apus_kernel_call its = *c;
    in[0] = c->in[0];
    memcpy(in + 1, c->in + ROPE_INPUTS, 3 * sizeof *in);
    its.in = in;
    its.n_in = 4;
    its.attrs = c->attrs + ROPE_ATTRS;
    return its;
}

static size_t scratch_rope_attention_cached(const apus_kernel_call *c)
{
    apus_view in[4];
    const apus_kernel_call its = without_rope(c, in);
    return apus_cpu_lines((size_t)apus_cpu_elements(&c->in[0]) * sizeof(float)) + scratch_attention_cached(&its);
}

static apus_status run_rope_attention_cached(const apus_kernel_call *c, apus_error *err)
{
    apus_view in[4];
    apus_kernel_call its = without_rope(c, in);
    const apus_status st = rope_check(c, err);
    its.scratch = (char *)c->scratch + apus_cpu_lines((size_t)apus_cpu_elements(&c->in[0]) * sizeof(float));
    return st == APUS_OK ? over_caches(&its, c, (float *)c->scratch, err) : st;
}

#endif
