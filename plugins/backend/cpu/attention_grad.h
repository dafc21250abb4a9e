/*
 * Attention, backward (Dao et al. 2022): scores are recomputed tile by tile from the log-sum-exp.
 *
 * The blocks of queries are cut into a few chunks of about equal work. One item of work is a key/value head and a chunk: it
 * owns a partial sum of the gradients of all keys, so nobody waits and the order of every sum is fixed; dk and dv are then
 * the sums over chunks, in order. dq of a block belongs to one item.
 */
#ifndef APUS_CPU_ATTENTION_GRAD_H
#define APUS_CPU_ATTENTION_GRAD_H

#include "attention_rows.h"

enum { ATT_CHUNKS = 16 };

/* As few chunks as keep threads from idling, each having partial sums of its own: more only for a tenth of the time. */
static int64_t attention_chunks(const apus_kernel_call *c, const attention_spec *s)
{
    const int64_t threads = threads_of(c);
    int64_t best = 1;
    for (int64_t n = 2; n <= ATT_CHUNKS; n++) {
        const int64_t turns = (n * s->kv_heads + threads - 1) / threads, best_turns = (best * s->kv_heads + threads - 1) / threads;
        if (10 * turns * best <= 9 * best_turns * n) { /* turns / n: the time, in units of a head's whole work */
            best = n;
        }
    }
    return best;
}

/* Pieces of a thread's memory: as many times 64 rows of padded dim, then of 64 x 64 scores. */
enum { BACK_ROWS = 12, BACK_TILES = 6 };

static size_t backward_bytes(const attention_spec *s)
{
    return BACK_ROWS * apus_cpu_lines((size_t)ATT_ROWS * (size_t)padded_dim(s) * sizeof(float)) +
           BACK_TILES * (size_t)ATT_ROWS * (ATT_KEYS + 2) * sizeof(float);
}

/* Partial sums: for each chunk and key/value head dk [tokens, padded dim], then dv. */
static size_t partial_elements(const attention_spec *s, int64_t tokens)
{
    return (size_t)tokens * (size_t)padded_dim(s);
}

static size_t scratch_attention_grad(const apus_kernel_call *c)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[1]), segments = c->in[6].dims[0];
    return (size_t)threads_of(c) * backward_bytes(&s) + apus_cpu_lines((size_t)segments * sizeof(int64_t)) +
           apus_cpu_lines(most_blocks(&s, tokens, segments) * sizeof(attention_block)) +
           (size_t)(2 * attention_chunks(c, &s) * s.kv_heads) * partial_elements(&s, tokens) * sizeof(float);
}

typedef struct backward {
    const attention_spec *s;
    const attention_keys *keys;
    reals dout, q, k, v, out;
    const float *lse;
    float *dq;
} backward;

/* Factors of one tile: p and ds as units of rows behind each other (for dv and dk), ds as units of keys (for dq). */
typedef struct slopes {
    float *p, *ds, *ds_keys;
} slopes;

/* Two vectors of lanes as units of rows. */
LANES_INLINE void put_lanes(kind t, float *to, vn a, vn b)
{
#if defined(__AVX512BF16__)
    if (t == PAIRS) {
        n_store(to, (vn)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
        return;
    }
#endif
    n_store(to, across(t, a, a));
    n_store(to + WIDE, across(t, b, b));
}

/* Scores z and dp [key, lane] of two keys and two vectors of lanes from `lane` on -> factors. slope: of the softcap, NULL: none. */
LANES_INLINE void slope_square(kind t, const attention_spec *s, const attention_sight *x, const int32_t *position, int64_t tile, int64_t i,
                               int64_t lane, const float *z, const float *dp, const float *slope, const float *lse, const float *delta,
                               const slopes *to)
{
    vn p[4], ds[4];
    for (int64_t j = 0; j < 2; j++) {
        for (int64_t e = 0; e < 2; e++) {
            const int64_t l = lane + j * WIDE, at = (i + e) * ATT_ROWS + l;
            if (i + e < x->low[l / WIDE] || i + e >= x->high[l / WIDE]) { /* seen by none of these rows */
                p[2 * e + j] = ds[2 * e + j] = n_all(0.0f);
                continue;
            }
            vn v = n_exp2(n_load(z + at) - n_load(lse + l));
            if (x->masked[l / WIDE]) {
                v = n_select(sees(s, position + l, tile + i + e), v, n_all(0.0f));
            }
            vn d = v * (n_load(dp + at) - n_load(delta + l));
            if (slope != NULL) {
                d = n_select(v != n_all(0.0f), d * n_load(slope + at), n_all(0.0f));
            }
            p[2 * e + j] = v;
            ds[2 * e + j] = d;
        }
    }
    const int64_t per = t == PAIRS ? 2 : 1;
    for (int64_t e = 0; e < 2; e++) {
        put_lanes(t, to->p + ((i + e) * ATT_ROWS + lane) / per, p[2 * e], p[2 * e + 1]);
        put_lanes(t, to->ds + ((i + e) * ATT_ROWS + lane) / per, ds[2 * e], ds[2 * e + 1]);
    }
    for (int64_t j = 0; j < 2 && t == PAIRS; j++) {
        n_store(to->ds_keys + i / 2 * ATT_ROWS + lane + j * WIDE, across(t, ds[j], ds[2 + j]));
    }
}

/* The softcap of scores z, and its slope. */
static void cap_slopes(float *z, float *slope, int64_t n, float cap)
{
    for (int64_t i = 0; i < n; i += LANES) {
        const vf t = v_tanh(v_load(z + i) / v_all(cap));
        v_store(z + i, t * v_all(cap));
        v_store(slope + i, v_fma(-t, t, v_all(1.0f)));
    }
}

/* sums [key, padded dim] += a b, each key over the rows that see it; rows of a lie ld apart. */
static void add_key_sums(kind t, const attention_spec *s, const attention_sight *x, const int64_t *at, const float *a, int64_t ld, const float *b,
                         float *sums)
{
    const kind summed = t == BFLOAT16 ? SUMMED : PLAIN;
    const int64_t wide = padded_dim(s);
    for (int e = 0; e < x->n_stretches; e++) {
        const attention_stretch *r = &x->stretches[e];
        const int64_t first = units(summed, r->j * WIDE), n = units(summed, r->vectors * WIDE);
        for (int64_t i = r->first, run; i < r->end; i += run) { /* keys that lie one after the other */
            run = 1;
            while (i + run < r->end && at[i + run] == at[i] + run) {
                run++;
            }
            small_product(t, run, wide / WIDE, n, (strided){a + i * ld + first, ld, 1}, b + first * wide, wide, sums + at[i] * wide, wide, 1);
        }
    }
}

/* delta [lane]: dout times out, element after element as small_product sums dout times v, with dout rounded as it is there: the
 * score of a lone key has no gradient. a, b: memory for columns. */
LANES_INLINE void row_deltas(kind t, const backward *g, const attention_rows *rows, const float *dout, float *a, float *b, float *delta)
{
    const int64_t dim = g->s->dim, wide = padded_dim(g->s);
    gather_rows(g->s, rows, g->out, 1.0f, b);
    rows_transposed(PLAIN, b, wide, rows->n, dim, a);
    rows_transposed(PLAIN, dout, wide, rows->n, dim, b);
    for (int64_t j = 0; j < rows->vectors * WIDE; j += WIDE) {
        vn total = n_all(0.0f);
        for (int64_t d = 0; d < dim; d++) {
            const vn x = n_load(b + d * ATT_ROWS + j);
            total = n_product(PLAIN, t == BFLOAT16 ? n_round(x) : x, n_load(a + d * ATT_ROWS + j), total);
        }
        n_store(delta + j, total);
    }
}

LANES_INLINE void attention_block_backward(kind t, const backward *g, const attention_block *b, int64_t kv, int64_t head, int64_t heads, float *dk,
                                           float *dv, char *memory)
{
    const attention_spec *s = g->s;
    const kind summed = t == BFLOAT16 ? SUMMED : PLAIN;
    const int64_t dim = s->dim, wide = padded_dim(s), end = (int64_t)b->position + b->count;
    const size_t piece = apus_cpu_lines((size_t)ATT_ROWS * (size_t)wide * sizeof(float)), square = (size_t)ATT_ROWS * (ATT_KEYS + 2) * sizeof(float);
    float *r[BACK_ROWS], *z[BACK_TILES];
    for (int64_t i = 0; i < BACK_ROWS; i++) {
        r[i] = (float *)(void *)(memory + (size_t)i * piece);
    }
    for (int64_t i = 0; i < BACK_TILES; i++) {
        z[i] = (float *)(void *)(memory + BACK_ROWS * piece + (size_t)i * square);
    }
    float *q = r[0], *dout = r[1], *qt = r[2], *dout_t = r[3], *dq = r[4];
    attention_rows rows;
    float lse[ATT_ROWS] = {0}, delta[ATT_ROWS] = {0};
    block_rows(s, b, head, heads, &rows);
    const int64_t lanes = (rows.n + 2 * WIDE - 1) / (2 * WIDE) * (2 * WIDE);
    gather_rows(s, &rows, g->q, s->scale * LOG2_E, q);
    gather_rows(s, &rows, g->dout, 1.0f, dout);
    row_deltas(t, g, &rows, dout, qt, dout_t, delta);
    memset(q + rows.n * wide, 0, (size_t)((lanes - rows.n) * wide) * sizeof *q);
    memset(dout + rows.n * wide, 0, (size_t)((lanes - rows.n) * wide) * sizeof *q);
    for (int64_t i = 0; i < rows.n; i++) {
        lse[i] = g->lse[(b->token + i / heads) * s->heads + head + i % heads] * LOG2_E;
    }
    rows_transposed(t, q, wide, rows.n, dim, qt);
    rows_transposed(t, dout, wide, rows.n, dim, dout_t);
    const strided q_rows = rows_across(t, (reals){q, 0}, wide, lanes, wide, 1, r[5]),
                  dout_rows = rows_across(t, (reals){dout, 0}, wide, lanes, wide, 1, r[6]);
    memset(dq, 0, (size_t)(wide * ATT_ROWS) * sizeof *dq);
    const slopes f = t == PAIRS ? (slopes){z[2], z[3], z[4]} : (slopes){z[0], z[1], z[1]};
    for (int64_t tile = first_key(s, b->position) / ATT_KEYS * ATT_KEYS; tile < end; tile += ATT_KEYS) {
        const int64_t n = apus_cpu_min(ATT_KEYS, end - tile);
        attention_sight x = sight_of(s, &rows, tile, n);
        int64_t at[ATT_KEYS], k_ld, v_ld;
        key_rows(g->keys, b->sequence, tile, n, at);
        const reals k = key_factor(s, reals_at(g->k, kv * dim), at, n, r[7], &k_ld), v = key_factor(s, reals_at(g->v, kv * dim), at, n, r[8], &v_ld);
        seen_scores(t, &x, units(summed, dim), rows_along(t, k, k_ld, n, dim, r[9]), qt, z[0]);
        seen_scores(t, &x, units(summed, dim), rows_along(t, v, v_ld, n, dim, r[10]), dout_t, z[1]);
        if (s->cap > 0.0f) {
            cap_slopes(z[0], z[5], n * ATT_ROWS, s->cap * LOG2_E);
        }
        for (int64_t i = 0; i < n; i += 2) {
            for (int64_t lane = 0; lane < lanes; lane += 2 * WIDE) {
                slope_square(t, s, &x, rows.position, tile, i, lane, z[0], z[1], s->cap > 0.0f ? z[5] : NULL, lse, delta, &f);
            }
        }
        const int64_t row = t == PAIRS ? ATT_ROWS / 2 : ATT_ROWS;
        add_key_sums(t, s, &x, at, f.p, row, dout_rows.p, dv);
        add_key_sums(t, s, &x, at, f.ds, row, q_rows.p, dk);
        seen_sums(t, &x, dim, rows_across(t, k, k_ld, n, dim, 1, r[11]), f.ds_keys, dq, 1);
    }
    if (g->dq != NULL) {
        float scale[ATT_ROWS];
        void *to[ATT_ROWS];
        for (int64_t i = 0; i < rows.vectors * WIDE; i++) {
            scale[i] = s->scale;
            to[i] = g->dq + rows.at[i];
        }
        put_transposed(dq, rows.n, dim, scale, 0, to);
    }
}

/* Give each block its chunk, by the keys its queries see. */
static void cut_chunks(attention_block *blocks, int64_t n, int64_t chunks)
{
    double total = 0.0, done = 0.0;
    for (int64_t i = 0; i < n; i++) {
        total += (double)blocks[i].count * (double)(blocks[i].position + blocks[i].count);
    }
    for (int64_t i = 0; i < n; i++) {
        const double work = (double)blocks[i].count * (double)(blocks[i].position + blocks[i].count);
        blocks[i].chunk = (int32_t)apus_cpu_min(chunks - 1, (int64_t)((done + 0.5 * work) * (double)chunks / total));
        done += work;
    }
}

static apus_status run_attention_grad(const apus_kernel_call *c, apus_error *err)
{
    const attention_spec s = attention_of(c);
    const int64_t tokens = apus_cpu_rows(&c->in[1]), segments = c->in[6].dims[0], chunks = attention_chunks(c, &s), items = chunks * s.kv_heads;
    const size_t bytes = backward_bytes(&s), partial = partial_elements(&s, tokens);
    char *memory = (char *)c->scratch;
    int64_t *before = (int64_t *)(void *)(memory + (size_t)threads_of(c) * bytes), covered;
    attention_block *blocks = (attention_block *)(void *)((char *)before + apus_cpu_lines((size_t)segments * sizeof *before));
    float *sums = (float *)(void *)((char *)blocks + apus_cpu_lines(most_blocks(&s, tokens, segments) * sizeof *blocks));
    const int64_t n = segment_blocks(&s, &c->in[6], tokens, before, blocks, &covered, err);
    if (n < 0) {
        return APUS_E_INVALID;
    }
    const attention_keys keys = {(const int32_t *)c->in[6].data, before, segments, 4, 0};
    const backward g = {&s,
                        &keys,
                        reals_of(&c->in[0]),
                        reals_of(&c->in[1]),
                        reals_of(&c->in[2]),
                        reals_of(&c->in[3]),
                        reals_of(&c->in[4]),
                        (const float *)c->in[5].data,
                        (float *)c->out[0].data};
    if (covered < tokens && g.dq != NULL) {
        memset(g.dq, 0, (size_t)(tokens * s.wide) * sizeof *g.dq);
    }
    cut_chunks(blocks, n, chunks);
    const int64_t wide = padded_dim(&s);
#pragma omp parallel num_threads(threads_of(c)) if (items > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; item++) {
            const int64_t chunk = item / s.kv_heads, kv = item % s.kv_heads;
            float *dk = sums + (size_t)(2 * item) * partial, *dv = dk + partial;
            char *own = memory + (size_t)omp_get_thread_num() * bytes;
            memset(dk, 0, 2 * partial * sizeof *dk);
            for (int64_t i = 0; i < n; i++) {
                for (int64_t part = 0; part < s.group && blocks[i].chunk == chunk; part += s.block_heads) {
                    const int64_t heads = apus_cpu_min(s.block_heads, s.group - part);
                    if (apus_cpu_of(c)->bfloat16) {
                        attention_block_backward(BFLOAT16, &g, &blocks[i], kv, kv * s.group + part, heads, dk, dv, own);
                    } else {
                        attention_block_backward(PLAIN, &g, &blocks[i], kv, kv * s.group + part, heads, dk, dv, own);
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t i = 0; i < 2 * s.kv_heads; i++) {
                const int64_t which = i % 2, kv = i / 2;
                const float *from = sums + (size_t)(2 * kv + which) * partial + t * wide;
                float *to = (float *)c->out[1 + which].data;
                for (int64_t d = 0; d < s.dim && to != NULL; d += WIDE) {
                    vn total = n_load(from + d);
                    for (int64_t chunk = 1; chunk < chunks; chunk++) {
                        total += n_load(from + (size_t)(2 * chunk * s.kv_heads) * partial + d);
                    }
                    n_store_part(to + t * s.narrow + kv * s.dim + d, which == 0 ? total * n_all(LN_2) : total, s.dim - d);
                }
            }
        }
    }
    return APUS_OK;
}

#endif
