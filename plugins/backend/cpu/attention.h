/*
 * Attention, forward: over the tokens being run (segments and their parents) or over paged caches. Never a T×T matrix.
 *
 * A block walks the tiles of its keys with the online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). Each span of
 * ATT_SPAN positions begins anew and is then joined to those before it: threads may share the spans of a long cache. A row
 * meets the same tiles in the same order whatever stands beside it, so its bits depend on its own query and keys alone; and
 * both ops give the same bits.
 */
#ifndef APUS_CPU_ATTENTION_H
#define APUS_CPU_ATTENTION_H

#include "attention_rows.h"

enum {
    ATT_SPAN = 512, /* keys */
    FEW_ROWS = 16   /* of a block, up to which lanes of rows would be mostly empty */
};

/* ---------------------------------------------------------------- one span of keys */

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

/* Softmax over some keys: per row the largest score (to base 2), the sum of numerators, and values weighted by them: o [padded
 * dim, ATT_ROWS], of few rows [row, padded dim]. */
typedef struct partial {
    float *most, *sum, *o;
} partial;

/* A thread's memory: pieces of 64 rows of padded dim, and scores. */
typedef struct forward_memory {
    float *q, *units, *panel, *k, *v, *values, *z;
    partial span, all;
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

static int is_few(const attention_rows *rows)
{
    return rows->n <= FEW_ROWS;
}

static void partial_clear(const attention_spec *s, const attention_rows *rows, partial p)
{
    for (int64_t r = 0; r < rows->vectors * WIDE; r++) {
        p.most[r] = ATT_FLOOR;
        p.sum[r] = 0.0f;
    }
    memset(p.o, 0, (size_t)(padded_dim(s) * (is_few(rows) ? rows->n : ATT_ROWS)) * sizeof *p.o);
}

/* p.o of each row times its factor. */
static void partial_fade(const attention_spec *s, const attention_rows *rows, partial p, const float *factor)
{
    const int64_t wide = padded_dim(s);
    for (int64_t r = 0; is_few(rows) && r < rows->n; r++) {
        for (int64_t d = 0; d < wide && factor[r] != 1.0f; d += WIDE) {
            n_store(p.o + r * wide + d, n_load(p.o + r * wide + d) * n_all(factor[r]));
        }
    }
    for (int64_t j = 0; !is_few(rows) && j < rows->vectors * WIDE; j += WIDE) {
        const vn f = n_load(factor + j);
        int fades = 0;
        for (int64_t r = j; r < j + WIDE; r++) {
            fades |= factor[r] != 1.0f;
        }
        for (int64_t d = 0; d < s->dim && fades; d++) {
            n_store(p.o + d * ATT_ROWS + j, n_load(p.o + d * ATT_ROWS + j) * f);
        }
    }
}

/* all, then what `next` saw. */
static void partial_join(const attention_spec *s, const attention_rows *rows, partial all, partial next)
{
    const int64_t wide = padded_dim(s);
    float fade[ATT_ROWS], part[ATT_ROWS];
    for (int64_t r = 0; r < rows->vectors * WIDE; r += WIDE) {
        const vn a = n_load(all.most + r), b = n_load(next.most + r), most = n_max(a, b), f = n_exp2(a - most), g = n_exp2(b - most);
        n_store(fade + r, f);
        n_store(part + r, g);
        n_store(all.most + r, most);
        n_store(all.sum + r, n_product(PLAIN, n_load(next.sum + r), g, n_load(all.sum + r) * f));
    }
    if (is_few(rows)) {
        for (int64_t r = 0; r < rows->n; r++) {
            for (int64_t d = r * wide; d < (r + 1) * wide; d += WIDE) {
                n_store(all.o + d, n_product(PLAIN, n_load(next.o + d), n_all(part[r]), n_load(all.o + d) * n_all(fade[r])));
            }
        }
        return;
    }
    for (int64_t d = 0; d < s->dim; d++) {
        for (int64_t j = 0, at = d * ATT_ROWS; j < rows->vectors * WIDE; j += WIDE, at += WIDE) {
            n_store(all.o + at, n_product(PLAIN, n_load(next.o + at), n_load(part + j), n_load(all.o + at) * n_load(fade + j)));
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

/* Vector j of rows: scores [key, lane] become numerators as factors [unit of keys, lane]; earlier sums fade. */
LANES_INLINE void softmax_vector(kind t, const attention_spec *s, const attention_sight *x, const int32_t *position, int64_t tile, int64_t j,
                                 float *z, partial p, float *fade)
{
    const int64_t low = x->low[j], high = x->high[j];
    float *zj = z + j * WIDE;
    vn top = n_load(p.most + j * WIDE), total = n_all(0.0f);
    const vn before = top;
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
    const vn f = n_exp2(before - top);
    n_store(fade + j * WIDE, f);
    n_store(p.sum + j * WIDE, n_product(PLAIN, n_load(p.sum + j * WIDE), f, total));
    n_store(p.most + j * WIDE, top);
}

/* A few rows: scores [row, ATT_KEYS] become numerators as factors [row, unit of keys]. Each number as softmax_vector gives it. */
LANES_INLINE void softmax_few(kind t, const attention_spec *s, const attention_rows *rows, int64_t tile, int64_t n, float *z, partial p, float *fade)
{
    ni lane;
    float top[FEW_ROWS + WIDE] = {0}, total[FEW_ROWS + WIDE] = {0};
    for (int i = 0; i < WIDE; i++) {
        lane[i] = i;
    }
    for (int64_t r = 0; r < rows->n; r++) {
        const int64_t low = first_key(s, rows->position[r]) - tile, high = apus_cpu_min(n, rows->position[r] + 1 - tile);
        vn most = n_all(p.most[r]);
        for (int64_t i = 0; i < n; i += WIDE) {
            vn v = n_load(z + r * ATT_KEYS + i);
            if (i < low || i + WIDE > high) {
                const ni key = lane + (int32_t)i;
                v = n_select((key >= (int32_t)low) & (key < (int32_t)high), v, n_all(2.0f * ATT_FLOOR));
                n_store(z + r * ATT_KEYS + i, v);
            }
            most = n_max(most, v);
        }
        top[r] = n_most(most);
        for (int64_t i = 0; i < n; i += WIDE) {
            n_store(z + r * ATT_KEYS + i, n_exp2(n_load(z + r * ATT_KEYS + i) - n_all(top[r])));
        }
    }
    for (int64_t r = 0; r < rows->n; r += 4) { /* key after key, as in a lane; four rows hide the adds' latency */
        const float *from = z + r * ATT_KEYS;
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        for (int64_t i = 0; i < n; i++) {
            a += from[i];
            b += from[i + ATT_KEYS];
            c += from[i + 2 * ATT_KEYS];
            d += from[i + 3 * ATT_KEYS];
        }
        total[r] = a;
        total[r + 1] = b;
        total[r + 2] = c;
        total[r + 3] = d;
    }
    for (int64_t r = 0; r < rows->n; r += WIDE) {
        const vn f = n_exp2(n_load(p.most + r) - n_load(top + r));
        n_store(fade + r, f);
        n_store(p.sum + r, n_product(PLAIN, n_load(p.sum + r), f, n_load(total + r)));
        n_store(p.most + r, n_load(top + r));
    }
    for (int64_t r = 0; r < rows->n && t != PLAIN; r++) {
        for (int64_t i = 0; i < ATT_KEYS; i += t == PAIRS ? 2 * WIDE : WIDE) {
            n_store(z + r * ATT_KEYS + (t == PAIRS ? i / 2 : i), along(t, 0, z + r * ATT_KEYS + i, ATT_KEYS - i));
        }
    }
}

/* Keys of a tile, and those that the next one will read. */
typedef struct tile_keys {
    int64_t tile, n, next_n; /* the position of the first; how many */
    int64_t at[ATT_KEYS], next[ATT_KEYS];
} tile_keys;

/* n rows of keys or values, from memory. */
LANES_INLINE void fetch_rows(const attention_spec *s, reals from, const int64_t *at, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t d = 0; d < s->dim; d += 16) {
            __builtin_prefetch(element(from.p, from.halves, at[i] * s->narrow + d), 0, 2);
        }
    }
}

/* Of `from`, n rows of the next tile from the i-th on, where there are such. */
LANES_INLINE void fetch_next(const attention_spec *s, reals from, const tile_keys *k, int64_t i, int64_t n)
{
    fetch_rows(s, from, k->next + i, apus_cpu_min(n, k->next_n - i));
}

/* A few rows and a tile: a vector's lanes are keys, then elements of values. */
LANES_INLINE void few_tile(kind t, const forward *f, const attention_rows *rows, const tile_keys *keys, int64_t kv, const forward_memory *m,
                           partial p)
{
    const attention_spec *s = f->s;
    const kind summed = t == BFLOAT16 ? SUMMED : PLAIN;
    const int64_t dim = s->dim, wide = padded_dim(s), n = keys->n;
    const strided q = t == PLAIN ? (strided){m->q, wide, 1} : (strided){m->units, (units(t, dim) + WIDE - 1) / WIDE * WIDE, 1};
    const reals all_k = reals_at(f->k, kv * dim), all_v = reals_at(f->v, kv * dim);
    float fade[FEW_ROWS + WIDE];
    for (int64_t i = 0, run; i < n; i += run) {
        int64_t ld;
        run = key_run(keys->at + i, n - i);
        const reals k = key_factor(s, all_k, keys->at + i, run, m->k, &ld);
        fetch_next(s, all_k, keys, i, run);
        if (k.halves) {
            pack_rows(BFLOAT16, 1, ATT_KEYS, k.p, ld, run, (run + WIDE - 1) / WIDE * WIDE, dim, m->panel + i);
        } else {
            pack_rows(t, 0, ATT_KEYS, k.p, ld, run, (run + WIDE - 1) / WIDE * WIDE, dim, m->panel + i);
        }
    }
    small_product(t, rows->n, (n + WIDE - 1) / WIDE, units(summed, dim), q, m->panel, ATT_KEYS, m->z, ATT_KEYS, 0);
    if (s->cap > 0.0f) {
        cap_scores(m->z, rows->n * ATT_KEYS, s->cap * LOG2_E);
    }
    softmax_few(t, s, rows, keys->tile, n, m->z, p, fade);
    partial_fade(s, rows, p, fade);
    for (int64_t i = 0, run; i < n; i += run) {
        int64_t ld;
        run = key_run(keys->at + i, n - i);
        const reals v = key_factor(s, all_v, keys->at + i, run, m->v, &ld);
        fetch_next(s, all_v, keys, i, run);
        const strided values = rows_across(t, v, ld, run, dim, dim % WIDE == 0, m->values);
        small_product(t, rows->n, wide / WIDE, units(summed, run), (strided){m->z + units(summed, i), ATT_KEYS, 1}, values.p, values.along, p.o, wide,
                      1);
    }
}

LANES_INLINE void many_tile(kind t, const forward *f, const attention_rows *rows, const tile_keys *keys, int64_t kv, const forward_memory *m,
                            partial p)
{
    const attention_spec *s = f->s;
    const int64_t dim = s->dim, n = keys->n;
    const attention_sight x = sight_of(s, rows, keys->tile, n);
    float fade[ATT_ROWS];
    int64_t ld;
    const reals k = key_factor(s, reals_at(f->k, kv * dim), keys->at, n, m->k, &ld);
    seen_scores(t, &x, units(t == BFLOAT16 ? SUMMED : PLAIN, dim), rows_along(t, k, ld, n, dim, m->panel), m->units, m->z);
    if (s->cap > 0.0f) {
        cap_scores(m->z, n * ATT_ROWS, s->cap * LOG2_E);
    }
    const reals v = key_factor(s, reals_at(f->v, kv * dim), keys->at, n, m->v, &ld);
    for (int64_t j = 0; j < rows->vectors; j++) {
        softmax_vector(t, s, &x, rows->position, keys->tile, j, m->z, p, fade);
    }
    partial_fade(s, rows, p, fade);
    seen_sums(t, &x, dim, rows_across(t, v, ld, n, dim, 1, m->values), m->z, p.o);
}

/* Queries as factors: of few rows along, of more across the sum. */
LANES_INLINE void put_queries(kind t, const forward *f, const attention_rows *rows, const forward_memory *m)
{
    const attention_spec *s = f->s;
    const int64_t wide = padded_dim(s);
    gather_rows(s, rows, f->q, s->scale * LOG2_E, m->q);
    if (is_few(rows)) {
        (void)rows_along(t, (reals){m->q, 0}, wide, rows->n, s->dim, m->units);
    } else {
        rows_transposed(t, m->q, wide, rows->n, s->dim, m->units);
    }
}

/* What the rows of b see of a span. */
LANES_INLINE void span_forward(kind t, const forward *f, const attention_block *b, const attention_rows *rows, int64_t kv, int64_t span,
                               const forward_memory *m, partial p)
{
    const int64_t low = first_key(f->s, b->position), first = low > span * ATT_SPAN ? low : span * ATT_SPAN;
    const int64_t end = (int64_t)b->position + b->count, stop = apus_cpu_min(end, (span + 1) * ATT_SPAN);
    tile_keys keys = {.tile = first / ATT_KEYS * ATT_KEYS};
    partial_clear(f->s, rows, p);
    for (keys.next_n = 0; keys.tile < stop; keys.tile += ATT_KEYS) {
        keys.n = apus_cpu_min(ATT_KEYS, end - keys.tile);
        if (keys.next_n > 0) {
            memcpy(keys.at, keys.next, sizeof keys.at);
        } else {
            key_rows(f->keys, b->sequence, keys.tile, keys.n, keys.at);
            if (is_few(rows)) { /* what a row costs then is the waiting for memory */
                fetch_rows(f->s, reals_at(f->k, kv * f->s->dim), keys.at, keys.n);
                fetch_rows(f->s, reals_at(f->v, kv * f->s->dim), keys.at, keys.n);
            }
        }
        keys.next_n = apus_cpu_min(ATT_KEYS, stop - keys.tile - ATT_KEYS);
        if (keys.next_n > 0) {
            key_rows(f->keys, b->sequence, keys.tile + ATT_KEYS, keys.next_n, keys.next);
        }
        if (is_few(rows)) {
            few_tile(t, f, rows, &keys, kv, m, p);
        } else {
            many_tile(t, f, rows, &keys, kv, m, p);
        }
    }
}

/* ---------------------------------------------------------------- all blocks */

static void put_rows(const forward *f, const attention_block *b, const attention_rows *rows, partial p)
{
    const attention_spec *s = f->s;
    const int64_t wide = padded_dim(s);
    float inverse[ATT_ROWS];
    void *to[ATT_ROWS];
    for (int64_t r = 0; r < rows->vectors * WIDE; r++) {
        inverse[r] = 1.0f / p.sum[r];
        to[r] = f->out != NULL ? element_to(f->out, f->out_halves, rows->at[r]) : NULL;
    }
    if (f->out != NULL && is_few(rows)) {
        for (int64_t r = 0; r < rows->n; r++) {
            for (int64_t d = 0; d < s->dim; d += WIDE) {
                n_give(f->out_halves, element_to(to[r], f->out_halves, d), n_load(p.o + r * wide + d) * n_all(inverse[r]), s->dim - d);
            }
        }
    } else if (f->out != NULL) {
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

static void item_span(const apus_kernel_call *c, const forward *f, const attention_block *b, const attention_rows *rows, int64_t kv, int64_t span,
                      const forward_memory *m, partial p)
{
    if (apus_cpu_of(c)->bfloat16) {
        span_forward(BFLOAT16, f, b, rows, kv, span, m, p);
    } else {
        span_forward(PLAIN, f, b, rows, kv, span, m, p);
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
        item_queries(c, f, &rows, &m);
        int64_t span = first_key(s, b->position) / ATT_SPAN;
        item_span(c, f, b, &rows, kv, span, &m, m.all);
        while (++span * ATT_SPAN < end) {
            item_span(c, f, b, &rows, kv, span, &m, m.span);
            partial_join(s, &rows, m.all, m.span);
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

/* When a few rows are all there is, threads share the spans of each item: up to so many items. */
static int64_t shared_items(const apus_kernel_call *c)
{
    return threads_of(c) > 1 ? 4 * (int64_t)threads_of(c) : 0;
}

/* Spans of the longest sequence that a table of so many columns can name. */
static int64_t most_spans(const apus_kernel_call *c)
{
    return ((c->in[3].dims[1] - 4) * (int64_t)c->attrs[6] + ATT_SPAN - 1) / ATT_SPAN;
}

/* Of a few rows: most, sum, o. */
static size_t shared_bytes(const attention_spec *s)
{
    return (size_t)(FEW_ROWS * (2 + padded_dim(s))) * sizeof(float);
}

static partial shared_partial(const attention_spec *s, char *memory, int64_t i)
{
    float *p = (float *)(void *)(memory + (size_t)i * shared_bytes(s));
    return (partial){p, p + FEW_ROWS, p + 2 * FEW_ROWS};
}

/* Spans of each item, then the items: the same joins in the same order as attention_forward. */
static void attention_shared(const apus_kernel_call *c, const forward *f, int64_t spans, char *memory, char *partials)
{
    const attention_spec *s = f->s;
    const int64_t items = f->n_blocks * s->kv_heads * s->head_blocks;
    const size_t bytes = forward_bytes(s);
#pragma omp parallel num_threads(threads_of(c))
    {
        const forward_memory m = forward_pieces(s, memory + (size_t)omp_get_thread_num() * bytes);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < items * spans; i++) {
            const attention_block *b;
            attention_rows rows;
            const int64_t kv = item_rows(f, i / spans, &b, &rows), span = i % spans, end = (int64_t)b->position + b->count;
            if (span >= first_key(s, b->position) / ATT_SPAN && span * ATT_SPAN < end) {
                item_queries(c, f, &rows, &m);
                item_span(c, f, b, &rows, kv, span, &m, shared_partial(s, partials, i));
            }
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; item++) {
            const attention_block *b;
            attention_rows rows;
            (void)item_rows(f, item, &b, &rows);
            int64_t span = first_key(s, b->position) / ATT_SPAN;
            const partial all = shared_partial(s, partials, item * spans + span);
            while (++span * ATT_SPAN < (int64_t)b->position + b->count) {
                partial_join(s, &rows, all, shared_partial(s, partials, item * spans + span));
            }
            put_rows(f, b, &rows, all);
        }
    }
}

static size_t scratch_attention_cached(const apus_kernel_call *c)
{
    const attention_spec s = attention_of(c);
    return (size_t)threads_of(c) * forward_bytes(&s) + (size_t)(shared_items(c) * most_spans(c)) * shared_bytes(&s) +
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

static apus_status run_attention_cached(const apus_kernel_call *c, apus_error *err)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[0]), rows = c->in[3].dims[0], columns = c->in[3].dims[1], page = (int64_t)c->attrs[6];
    const int32_t *table = (const int32_t *)c->in[3].data;
    float *out = (float *)c->out[0].data;
    char *memory = (char *)c->scratch;
    char *partials = memory + (size_t)threads_of(c) * forward_bytes(&s);
    attention_block *blocks = (attention_block *)(void *)(partials + (size_t)(shared_items(c) * most_spans(c)) * shared_bytes(&s));
    int64_t n = 0, covered = 0, spans = 0, few = 1;
    for (int64_t i = 0; i < rows; i++) {
        const int32_t *row = table + i * columns;
        if (check_pages(row, i, tokens, columns, page, c->in[1].dims[0], err) != APUS_OK) {
            return APUS_E_INTERNAL;
        }
        if ((covered += row[1]) > tokens) {
            return apus_fail(err, APUS_E_INTERNAL, "attention_cached: the table has more queries than there are tokens (%lld)", (long long)tokens);
        }
        n = add_blocks(&s, blocks, n, i, row[0], row[2] - row[1], row[1]);
        few &= row[1] * s.block_heads <= FEW_ROWS;
        spans = row[2] > spans * ATT_SPAN ? (row[2] + ATT_SPAN - 1) / ATT_SPAN : spans;
    }
    if (covered < tokens) {
        memset(out, 0, (size_t)(tokens * s.wide) * sizeof *out);
    }
    const attention_keys keys = {table, NULL, rows, columns, page};
    const forward f = forward_of(c, &s, &keys, blocks, n, NULL);
    if (few && spans > 1 && n * s.kv_heads * s.head_blocks <= shared_items(c)) {
        attention_shared(c, &f, spans, memory, partials);
    } else {
        attention_forward(c, &f, memory);
    }
    return APUS_OK;
}

#endif
