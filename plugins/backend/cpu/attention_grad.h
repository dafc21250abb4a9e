/*
 * Attention, backward (Dao et al. 2022): scores are recomputed tile by tile from the log-sum-exp.
 *
 * The blocks of queries are cut into a few chunks of about equal work. One item of work is a key/value head and a chunk: it
 * owns a partial sum of the gradients of all keys, so nobody waits and the order of every sum is fixed; dk and dv are then
 * the sums over chunks, in order. dq of a block belongs to one item.
 */
#ifndef APUS_CPU_ATTENTION_GRAD_H
#define APUS_CPU_ATTENTION_GRAD_H

#include "attention.h"
#include "norm.h"

enum { ATT_CHUNKS = 8 };

static int64_t attention_chunks(const apus_kernel_call *c, const attention_spec *s)
{
    const int64_t threads = threads_of(c), wanted = threads > 1 ? (4 * threads + s->kv_heads - 1) / s->kv_heads : 1;
    return apus_cpu_min(wanted, ATT_CHUNKS);
}

/* Per thread: q, dout, dq [ATT_ROWS, dim]; p, ds [ATT_ROWS, ATT_KEYS]. */
static size_t backward_bytes(const attention_spec *s)
{
    return 3 * apus_cpu_lines((size_t)ATT_ROWS * (size_t)s->dim * sizeof(float)) + 2 * (size_t)ATT_ROWS * ATT_KEYS * sizeof(float);
}

/* Partial sums: for each chunk and key/value head dk [tokens, dim], then dv. */
static size_t partial_elements(const attention_spec *s, int64_t tokens)
{
    return apus_cpu_lines((size_t)tokens * (size_t)s->dim * sizeof(float)) / sizeof(float);
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
    const float *dout, *q, *k, *v, *out, *lse;
    float *dq;
} backward;

/* Scores z -> p and, with dp in ds, ds (all of one row of a tile), zero outside [low, high). */
LANES_INLINE void backward_row(const attention_spec *s, float *z, float *ds, int64_t low, int64_t high, float lse, float delta)
{
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t i = 0; i < ATT_KEYS; i += LANES) {
        const vi at = lane + v_alli((int32_t)i), seen = (at >= v_alli((int32_t)low)) & (at < v_alli((int32_t)high));
        vf l = v_load(z + i) * v_all(s->scale), slope = v_all(s->scale);
        if (s->cap > 0.0f) {
            const vf t = v_tanh(l / v_all(s->cap));
            l = t * v_all(s->cap);
            slope *= v_fma(-t, t, v_all(1.0f));
        }
        const vf p = v_select(seen, v_exp_fast(l - v_all(lse)), v_all(0.0f));
        v_store(z + i, p);
        v_store(ds + i, v_select(seen, p * (v_load(ds + i) - v_all(delta)) * slope, v_all(0.0f)));
    }
}

static void attention_block_backward(const backward *g, const attention_block *b, int64_t kv, int64_t head, int64_t heads, float *dk, float *dv,
                                     char *memory)
{
    const attention_spec *s = g->s;
    const int64_t dim = s->dim, rows = b->count * heads, end = (int64_t)b->position + b->count;
    const size_t row_bytes = apus_cpu_lines((size_t)ATT_ROWS * (size_t)dim * sizeof(float));
    float *q = (float *)(void *)memory, *dout = (float *)(void *)(memory + row_bytes), *dq = (float *)(void *)(memory + 2 * row_bytes);
    float *z = (float *)(void *)(memory + 3 * row_bytes), *ds = z + ATT_ROWS * ATT_KEYS;
    const float *q_row[ATT_ROWS], *dout_row[ATT_ROWS];
    float *dq_row[ATT_ROWS], delta[ATT_ROWS], lse[ATT_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = b->token + r / heads, at = t * s->wide + (head + r % heads) * dim;
        memcpy(q + r * dim, g->q + at, (size_t)dim * sizeof *q);
        memcpy(dout + r * dim, g->dout + at, (size_t)dim * sizeof *q);
        memset(dq + r * dim, 0, (size_t)dim * sizeof *q);
        delta[r] = dot_row(g->dout + at, g->out + at, dim);
        lse[r] = g->lse[t * s->heads + head + r % heads];
        q_row[r] = q + r * dim;
        dout_row[r] = dout + r * dim;
        dq_row[r] = dq + r * dim;
    }
    for (int64_t tile = first_key(s, b->position) / ATT_KEYS * ATT_KEYS; tile < end; tile += ATT_KEYS) {
        const int64_t n = apus_cpu_min(ATT_KEYS, end - tile);
        int64_t at[ATT_KEYS];
        const float *k_row[ATT_KEYS], *v_row[ATT_KEYS];
        float *dk_row[ATT_KEYS], *dv_row[ATT_KEYS];
        key_rows(g->keys, b->sequence, tile, n, at);
        for (int64_t j = 0; j < n; j++) {
            k_row[j] = g->k + at[j] * s->narrow + kv * dim;
            v_row[j] = g->v + at[j] * s->narrow + kv * dim;
            dk_row[j] = dk + at[j] * dim;
            dv_row[j] = dv + at[j] * dim;
        }
        dots(q, dim, rows, k_row, n, dim, z, ATT_KEYS, NULL, 0, 0);
        dots(dout, dim, rows, v_row, n, dim, ds, ATT_KEYS, NULL, 0, 0);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t position = b->position + r / heads, low = first_key(s, position) - tile;
            for (int64_t j = n; j < ATT_KEYS; j++) {
                z[r * ATT_KEYS + j] = 0.0f;
                ds[r * ATT_KEYS + j] = 0.0f;
            }
            backward_row(s, z + r * ATT_KEYS, ds + r * ATT_KEYS, low > 0 ? low : 0, apus_cpu_min(position + 1 - tile, n), lse[r], delta[r]);
        }
        outer(rows, dim, n, ds, ATT_KEYS, 1, k_row, dq_row);
        outer(n, dim, rows, z, 1, ATT_KEYS, dout_row, dv_row);
        outer(n, dim, rows, ds, 1, ATT_KEYS, q_row, dk_row);
    }
    for (int64_t r = 0; r < rows && g->dq != NULL; r++) {
        memcpy(g->dq + (b->token + r / heads) * s->wide + (head + r % heads) * dim, dq_row[r], (size_t)dim * sizeof *q);
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
                        (const float *)c->in[0].data,
                        (const float *)c->in[1].data,
                        (const float *)c->in[2].data,
                        (const float *)c->in[3].data,
                        (const float *)c->in[4].data,
                        (const float *)c->in[5].data,
                        (float *)c->out[0].data};
    if (covered < tokens && g.dq != NULL) {
        memset(g.dq, 0, (size_t)(tokens * s.wide) * sizeof *g.dq);
    }
    cut_chunks(blocks, n, chunks);
#pragma omp parallel num_threads(threads_of(c)) if (items > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; item++) {
            const int64_t chunk = item / s.kv_heads, kv = item % s.kv_heads;
            float *dk = sums + (size_t)(2 * item) * partial, *dv = dk + partial;
            memset(dk, 0, 2 * partial * sizeof *dk);
            for (int64_t i = 0; i < n; i++) {
                for (int64_t part = 0; part < s.group && blocks[i].chunk == chunk; part += s.block_heads) {
                    attention_block_backward(&g, &blocks[i], kv, kv * s.group + part, apus_cpu_min(s.block_heads, s.group - part), dk, dv,
                                             memory + (size_t)omp_get_thread_num() * bytes);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            for (int which = 0; which < 2; which++) {
                float *to = (float *)c->out[1 + which].data;
                for (int64_t i = 0; i < s.narrow && to != NULL; i++) {
                    const float *from = sums + (size_t)(2 * (i / s.dim) + which) * partial + t * s.dim + i % s.dim;
                    float total = 0.0f;
                    for (int64_t chunk = 0; chunk < chunks; chunk++) {
                        total += from[(size_t)(2 * chunk * s.kv_heads) * partial];
                    }
                    to[t * s.narrow + i] = total;
                }
            }
        }
    }
    return APUS_OK;
}

#endif
