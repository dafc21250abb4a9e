/*
 * The vocabulary head: log-probabilities of targets, their slopes and the gradient of W. The logits exist a tile at a time.
 *
 * Forward: the vocabulary is cut into tiles of fixed width; each gives every row its largest logit and the sum of
 * exponentials below it, and these are joined in order, in double: a row's bits depend on neither the threads nor the others,
 * nor on whether the slopes are asked for.
 *
 * Slopes: d logp / dx = scale * (W[target] - sum_v p_v W_v) is an attention over the vocabulary with W as keys and values: summed
 * in the same pass with the online softmax (Milakov & Gimelshein 2018), so that the backward pass needs no logits for dx.
 */
#ifndef APUS_CPU_HEAD_H
#define APUS_CPU_HEAD_H

#include "index.h"
#include "matrix.h"

enum {
    HEAD_TILE = 512,   /* vocabulary rows per tile, forward */
    HEAD_ROWS = 64,    /* rows of x per tile, forward */
    HEAD_CHUNK = 1024, /* rows of x per pass over W */
    GRAD_TILE = 1024,  /* vocabulary rows per tile, backward */
    GRAD_CHUNK = 512   /* rows of x per tile, backward */
};

typedef struct head_part {
    float most, sum;
} head_part;

/* logit = softcap(scale * z); slope (may be NULL): its derivative. */
LANES_INLINE vf logit(vf z, float scale, float cap, vf *slope)
{
    z *= v_all(scale);
    if (slope != NULL) {
        *slope = v_all(scale);
    }
    if (cap > 0.0f) {
        const vf t = v_tanh(z / v_all(cap));
        z = t * v_all(cap);
        if (slope != NULL) {
            *slope *= v_fma(-t, t, v_all(1.0f));
        }
    }
    return z;
}

static size_t head_thread_bytes(const apus_view *w)
{
    const size_t panel = w->dtype == APUS_F32 ? 0 : (size_t)HEAD_TILE * (size_t)apus_cpu_width(w) * sizeof(float);
    return (size_t)HEAD_ROWS * HEAD_TILE * sizeof(float) + apus_cpu_lines(panel);
}

static int64_t head_tiles(const apus_view *w)
{
    return (apus_cpu_rows(w) + HEAD_TILE - 1) / HEAD_TILE;
}

static size_t parts_bytes(int64_t rows, int64_t tiles)
{
    return apus_cpu_lines((size_t)(rows * tiles) * sizeof(head_part));
}

static size_t scratch_token_logprob(const apus_kernel_call *c)
{
    const apus_view *w = &c->in[1];
    const int64_t rows = apus_cpu_rows(&c->in[0]), chunk = apus_cpu_min(HEAD_CHUNK, rows), few = apus_cpu_min(GRAD_CHUNK, rows);
    const size_t forward =
        (size_t)threads_of(c) * head_thread_bytes(w) + parts_bytes(chunk, head_tiles(w)) + apus_cpu_lines((size_t)chunk * sizeof(float));
    const size_t panel = w->dtype == APUS_F32 ? 0 : (size_t)HEAD_TILE * (size_t)apus_cpu_width(w) * sizeof(float);
    const size_t slopes = apus_cpu_lines((size_t)few * HEAD_TILE * sizeof(float)) + parts_bytes(few, head_tiles(w)) +
                          2 * apus_cpu_lines((size_t)few * sizeof(float)) + panel;
    return forward > slopes ? forward : slopes;
}

/* One row of logits in place: what token_logprob joins. */
LANES_INLINE head_part head_reduce(float *z, int64_t n, float scale, float cap)
{
    vf most = v_all(-INFINITY), sum = v_all(0.0f);
    for (int64_t i = n; i < (n + LANES - 1) / LANES * LANES; i++) {
        z[i] = 0.0f;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        v_store(z + i, logit(v_load(z + i), scale, cap, NULL));
        if (n - i < LANES) {
            for (int64_t j = n - i; j < LANES; j++) {
                z[i + j] = -INFINITY;
            }
        }
        most = v_max(most, v_load(z + i));
    }
    const float m = v_most(most), base = m > -INFINITY ? m : 0.0f;
    for (int64_t i = 0; i < n; i += LANES) {
        sum += v_exp_fast(v_load(z + i) - v_all(base));
    }
    return (head_part){m, v_sum(sum)};
}

static apus_status check_targets(const apus_view *targets, int64_t vocabulary, apus_error *err)
{
    const int32_t *p = (const int32_t *)targets->data;
    const int64_t n = apus_cpu_elements(targets);
    for (int64_t i = 0; i < n; i++) {
        if (check_index("target id", p[i], vocabulary, i, err) != APUS_OK) {
            return APUS_E_INVALID;
        }
    }
    return APUS_OK;
}

/* What the tiles of one row come to: log of the sum of exponentials of its logits. */
static double head_join(const head_part *p, int64_t tiles)
{
    double most = -INFINITY, sum = 0.0;
    for (int64_t t = 0; t < tiles; t++) {
        most = !((double)p[t].most <= most) ? (double)p[t].most : most;
    }
    for (int64_t t = 0; t < tiles; t++) {
        sum += (double)p[t].sum * exp((double)p[t].most - most);
    }
    return most + log(sum);
}

static apus_status token_logprob(const apus_kernel_call *c)
{
    const apus_view *w = &c->in[1];
    const float *x = (const float *)c->in[0].data;
    const int32_t *targets = (const int32_t *)c->in[2].data;
    float *logp = (float *)c->out[0].data, *lse = (float *)c->out[1].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(w), vocabulary = apus_cpu_rows(w), tiles = head_tiles(w);
    const float scale = (float)c->attrs[0], cap = (float)c->attrs[1];
    const int threads = threads_of(c);
    const size_t thread_bytes = head_thread_bytes(w);
    head_part *parts = (head_part *)(void *)((char *)c->scratch + (size_t)threads * thread_bytes);
    for (int64_t first = 0; first < rows; first += HEAD_CHUNK) {
        const int64_t chunk = apus_cpu_min(HEAD_CHUNK, rows - first);
        float *chosen = (float *)(void *)((char *)parts + parts_bytes(chunk, tiles));
#pragma omp parallel for num_threads(threads) schedule(static) if (chunk * vocabulary * k > 32768)
        for (int64_t tile = 0; tile < tiles; tile++) {
            float *z = (float *)(void *)((char *)c->scratch + (size_t)omp_get_thread_num() * thread_bytes);
            const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, vocabulary - v);
            const float *b[HEAD_TILE];
            weight_rows(w, v, columns, k, z + HEAD_ROWS * HEAD_TILE, b);
            for (int64_t i = 0; i < chunk; i += HEAD_ROWS) {
                const int64_t n = apus_cpu_min(HEAD_ROWS, chunk - i);
                for (int64_t j = 0; j < columns; j += PANEL) {
                    dots(x + (first + i) * k, k, n, b + j, apus_cpu_min(PANEL, columns - j), k, z + j, HEAD_TILE, NULL, 0, 0);
                }
                for (int64_t r = 0; r < n; r++) {
                    const int64_t target = targets[first + i + r] - v;
                    parts[(i + r) * tiles + tile] = head_reduce(z + r * HEAD_TILE, columns, scale, cap);
                    if (target >= 0 && target < columns) {
                        chosen[i + r] = z[r * HEAD_TILE + target];
                    }
                }
            }
        }
        for (int64_t r = 0; r < chunk; r++) {
            const double all = head_join(parts + r * tiles, tiles);
            if (lse != NULL) {
                lse[first + r] = (float)all;
            }
            if (logp != NULL) {
                logp[first + r] = (float)((double)chosen[r] - all);
            }
        }
    }
    return APUS_OK;
}

/* Rows of W [first, first + n) of a chunk's tile as float32 rows: where they are, or decoded into panel. */
static const float *head_tile(const apus_view *w, int64_t first, int64_t n, int64_t k, float *panel, int threads)
{
    if (w->dtype == APUS_F32) {
        return (const float *)w->data + first * k;
    }
    decode_rows(w, first, n, k, panel, threads);
    return panel;
}

/* z [rows, n] = x [rows, k] · tile [n, k]; inside a parallel region, all of its threads. */
static void head_logits(const float *x, int64_t rows, const float *tile, int64_t n, int64_t k, float *z)
{
    const int64_t blocks = (n + PANEL - 1) / PANEL;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t j = block * PANEL, columns = apus_cpu_min(PANEL, n - j);
        const float *b[PANEL];
        for (int64_t i = 0; i < columns; i++) {
            b[i] = tile + (j + i) * k;
        }
        dots(x, k, rows, b, columns, k, z + j, n, NULL, 0, 0);
    }
}

/* Logits z of one row over n of the vocabulary -> exp(logit - most) * slope, in place. */
LANES_INLINE void head_weights(float *z, int64_t n, float most, float scale, float cap)
{
    for (int64_t i = 0; i < n; i += LANES) {
        vf slope;
        const vf l = logit(get(z + i, n - i), scale, cap, &slope);
        put(z + i, v_exp_fast(l - v_all(most)) * slope, n - i);
    }
}

/* The forward pass with slopes: out[2] [N, k] = d logp / dx. */
static apus_status token_logprob_slopes(const apus_kernel_call *c)
{
    const apus_view *w = &c->in[1];
    const float *x = (const float *)c->in[0].data;
    const int32_t *targets = (const int32_t *)c->in[2].data;
    float *logp = (float *)c->out[0].data, *lse = (float *)c->out[1].data, *out = (float *)c->out[2].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(w), vocabulary = apus_cpu_rows(w), tiles = head_tiles(w);
    const float scale = (float)c->attrs[0], cap = (float)c->attrs[1];
    const int threads = blas_threads(c);
    const int64_t most_rows = apus_cpu_min(GRAD_CHUNK, rows);
    float *z = (float *)c->scratch;
    head_part *parts = (head_part *)(void *)((char *)c->scratch + apus_cpu_lines((size_t)most_rows * HEAD_TILE * sizeof(float)));
    float *most = (float *)(void *)((char *)parts + parts_bytes(most_rows, tiles));
    float *chosen = (float *)(void *)((char *)most + apus_cpu_lines((size_t)most_rows * sizeof(float)));
    float *panel = (float *)(void *)((char *)chosen + apus_cpu_lines((size_t)most_rows * sizeof(float)));
    for (int64_t first = 0; first < rows; first += GRAD_CHUNK) {
        const int64_t chunk = apus_cpu_min(GRAD_CHUNK, rows - first);
        float *e = out + first * k;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, vocabulary - v);
            const float *wt = head_tile(w, v, columns, k, panel, threads);
#pragma omp parallel num_threads(threads)
            {
                float row[HEAD_TILE + LANES];
                head_logits(x + first * k, chunk, wt, columns, k, z);
#pragma omp for schedule(static)
                for (int64_t r = 0; r < chunk; r++) {
                    const int64_t target = targets[first + r] - v;
                    memcpy(row, z + r * columns, (size_t)columns * sizeof *row);
                    const head_part part = parts[r * tiles + tile] = head_reduce(row, columns, scale, cap);
                    if (target >= 0 && target < columns) {
                        chosen[r] = row[target];
                    }
                    const float before = tile > 0 ? most[r] : -INFINITY, now = before > part.most ? before : part.most;
                    most[r] = now;
                    head_weights(z + r * columns, columns, now, scale, cap);
                    if (tile > 0 && now != before) {
                        const vf fade = v_exp_fast(v_all(before - now));
                        for (int64_t j = 0; j < k; j += LANES) {
                            put(e + r * k + j, get(e + r * k + j, k - j) * fade, k - j);
                        }
                    }
                }
            }
            sgemm(0, chunk, k, columns, z, columns, wt, tile > 0 ? 1.0f : 0.0f, e);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t r = 0; r < chunk; r++) {
            const double all = head_join(parts + r * tiles, tiles);
            const int32_t target = targets[first + r];
            const float p = (float)exp((double)most[r] - all), s = cap > 0.0f ? scale * (1.0f - chosen[r] / cap * (chosen[r] / cap)) : scale;
            float *er = e + r * k, *wr = panel + (int64_t)omp_get_thread_num() * k;
            const float *b;
            weight_rows(w, target, 1, k, wr, &b);
            for (int64_t j = 0; j < k; j += LANES) {
                put(er + j, v_fma(get(b + j, k - j), v_all(s), -(get(er + j, k - j) * v_all(p))), k - j);
            }
            if (lse != NULL) {
                lse[first + r] = (float)all;
            }
            if (logp != NULL) {
                logp[first + r] = (float)((double)chosen[r] - all);
            }
        }
    }
    return APUS_OK;
}

static apus_status run_token_logprob(const apus_kernel_call *c, apus_error *err)
{
    if (check_targets(&c->in[2], apus_cpu_rows(&c->in[1]), err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    return c->n_out > 2 && c->out[2].data != NULL ? token_logprob_slopes(c) : token_logprob(c);
}

static size_t scratch_token_logprob_dw(const apus_kernel_call *c)
{
    const apus_view *w = &c->in[2];
    const size_t panel = w->dtype == APUS_F32 ? 0 : (size_t)GRAD_TILE * (size_t)apus_cpu_width(w) * sizeof(float);
    return apus_cpu_lines((size_t)apus_cpu_min(GRAD_CHUNK, apus_cpu_rows(&c->in[1])) * GRAD_TILE * sizeof(float)) + apus_cpu_lines(panel);
}

/* Logits z of row r over `columns` of the vocabulary -> d * (onehot - softmax) * slope, in place. */
LANES_INLINE void head_slopes(float *z, int64_t columns, float d, float lse, int64_t target, float scale, float cap)
{
    for (int64_t i = 0; i < columns; i += LANES) {
        const int64_t left = columns - i;
        vf slope;
        const vf l = logit(get(z + i, left), scale, cap, &slope);
        vf g = -v_exp(l - v_all(lse));
        if (target >= i && target < i + LANES) {
            g[target - i] += 1.0f;
        }
        put(z + i, g * v_all(d) * slope, left);
    }
}

static apus_status run_token_logprob_dw(const apus_kernel_call *c, apus_error *err)
{
    const float *d = (const float *)c->in[0].data, *x = (const float *)c->in[1].data, *lse = (const float *)c->in[4].data;
    const apus_view *w = &c->in[2];
    const int32_t *targets = (const int32_t *)c->in[3].data;
    float *dw = (float *)c->out[0].data;
    const int64_t rows = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(w), vocabulary = apus_cpu_rows(w);
    const float scale = (float)c->attrs[0], cap = (float)c->attrs[1];
    const int threads = blas_threads(c);
    if (check_targets(&c->in[3], vocabulary, err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    if ((c->accumulate & 1u) == 0 && rows == 0) {
        memset(dw, 0, (size_t)(vocabulary * k) * sizeof *dw);
    }
    float *z = (float *)c->scratch, *panel = z + apus_cpu_min(GRAD_CHUNK, rows) * GRAD_TILE;
    for (int64_t first = 0; first < rows; first += GRAD_CHUNK) {
        const int64_t chunk = apus_cpu_min(GRAD_CHUNK, rows - first);
        const float *xc = x + first * k;
        for (int64_t v = 0; v < vocabulary; v += GRAD_TILE) {
            const int64_t columns = apus_cpu_min(GRAD_TILE, vocabulary - v);
            const float *tile = head_tile(w, v, columns, k, panel, threads);
#pragma omp parallel num_threads(threads)
            {
                head_logits(xc, chunk, tile, columns, k, z);
#pragma omp for schedule(static)
                for (int64_t r = 0; r < chunk; r++) {
                    head_slopes(z + r * columns, columns, d[first + r], lse[first + r], targets[first + r] - v, scale, cap);
                }
            }
            sgemm(1, columns, k, chunk, z, columns, xc, first > 0 || (c->accumulate & 1u) != 0 ? 1.0f : 0.0f, dw + v * k);
        }
    }
    return APUS_OK;
}

#endif
