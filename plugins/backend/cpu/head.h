/*
 * The vocabulary head: log-probabilities of targets and their gradient. The logits exist a tile at a time.
 *
 * Forward: the vocabulary is cut into tiles of fixed width; each gives every row its largest logit and the sum of
 * exponentials below it, and these are joined in order, in double: a row's bits depend on neither the threads nor the others.
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

static size_t scratch_token_logprob(const apus_kernel_call *c)
{
    const size_t rows = (size_t)apus_cpu_min(HEAD_CHUNK, apus_cpu_rows(&c->in[0]));
    return (size_t)threads_of(c) * head_thread_bytes(&c->in[1]) + apus_cpu_lines(rows * (size_t)head_tiles(&c->in[1]) * sizeof(head_part)) +
           apus_cpu_lines(rows * sizeof(float));
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

static apus_status run_token_logprob(const apus_kernel_call *c, apus_error *err)
{
    const apus_view *w = &c->in[1];
    const float *x = (const float *)c->in[0].data;
    const int32_t *targets = (const int32_t *)c->in[2].data;
    float *logp = (float *)c->out[0].data, *lse = (float *)c->out[1].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(w), vocabulary = apus_cpu_rows(w), tiles = head_tiles(w);
    const float scale = (float)c->attrs[0], cap = (float)c->attrs[1];
    const int threads = threads_of(c);
    const size_t thread_bytes = head_thread_bytes(w);
    if (check_targets(&c->in[2], vocabulary, err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    head_part *parts = (head_part *)(void *)((char *)c->scratch + (size_t)threads * thread_bytes);
    for (int64_t first = 0; first < rows; first += HEAD_CHUNK) {
        const int64_t chunk = apus_cpu_min(HEAD_CHUNK, rows - first);
        float *chosen = (float *)(void *)((char *)parts + apus_cpu_lines((size_t)(chunk * tiles) * sizeof *parts));
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
            const head_part *p = parts + r * tiles;
            double most = -INFINITY, sum = 0.0;
            for (int64_t t = 0; t < tiles; t++) {
                most = !((double)p[t].most <= most) ? (double)p[t].most : most;
            }
            for (int64_t t = 0; t < tiles; t++) {
                sum += (double)p[t].sum * exp((double)p[t].most - most);
            }
            const double all = most + log(sum);
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

static size_t scratch_token_logprob_grad(const apus_kernel_call *c)
{
    const apus_view *w = &c->in[2];
    const size_t panel = w->dtype == APUS_F32 ? 0 : (size_t)GRAD_TILE * (size_t)apus_cpu_width(w) * sizeof(float);
    return (size_t)apus_cpu_min(GRAD_CHUNK, apus_cpu_rows(&c->in[1])) * GRAD_TILE * sizeof(float) + apus_cpu_lines(panel);
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

static apus_status run_token_logprob_grad(const apus_kernel_call *c, apus_error *err)
{
    const float *d = (const float *)c->in[0].data, *x = (const float *)c->in[1].data, *lse = (const float *)c->in[4].data;
    const apus_view *w = &c->in[2];
    const int32_t *targets = (const int32_t *)c->in[3].data;
    float *dx = (float *)c->out[0].data, *dw = (float *)c->out[1].data;
    const int64_t rows = apus_cpu_rows(&c->in[1]), k = apus_cpu_width(w), vocabulary = apus_cpu_rows(w);
    const float scale = (float)c->attrs[0], cap = (float)c->attrs[1];
    const int threads = blas_threads(c);
    if (check_targets(&c->in[3], vocabulary, err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    if (dx != NULL && (c->accumulate & 1u) == 0) {
        memset(dx, 0, (size_t)(rows * k) * sizeof *dx);
    }
    if (dw != NULL && (c->accumulate & 2u) == 0 && rows == 0) {
        memset(dw, 0, (size_t)(vocabulary * k) * sizeof *dw);
    }
    float *z = (float *)c->scratch, *panel = z + apus_cpu_min(GRAD_CHUNK, rows) * GRAD_TILE;
    for (int64_t first = 0; first < rows; first += GRAD_CHUNK) {
        const int64_t chunk = apus_cpu_min(GRAD_CHUNK, rows - first);
        const float *xc = x + first * k;
        for (int64_t v = 0; v < vocabulary; v += GRAD_TILE) {
            const int64_t columns = apus_cpu_min(GRAD_TILE, vocabulary - v), blocks = (columns + PANEL - 1) / PANEL;
            const float *tile = (const float *)w->data + (w->dtype == APUS_F32 ? v * k : 0);
            if (w->dtype != APUS_F32) {
                decode_rows(w, v, columns, k, panel, threads);
                tile = panel;
            }
#pragma omp parallel num_threads(threads)
            {
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t j = block * PANEL, n = apus_cpu_min(PANEL, columns - j);
                    const float *b[PANEL];
                    for (int64_t i = 0; i < n; i++) {
                        b[i] = tile + (j + i) * k;
                    }
                    dots(xc, k, chunk, b, n, k, z + j, columns, NULL, 0, 0);
                }
#pragma omp for schedule(static)
                for (int64_t r = 0; r < chunk; r++) {
                    head_slopes(z + r * columns, columns, d[first + r], lse[first + r], targets[first + r] - v, scale, cap);
                }
            }
            if (dx != NULL) {
                sgemm(0, chunk, k, columns, z, columns, tile, 1.0f, dx + first * k);
            }
            if (dw != NULL) {
                sgemm(1, columns, k, chunk, z, columns, xc, first > 0 || (c->accumulate & 2u) != 0 ? 1.0f : 0.0f, dw + v * k);
            }
        }
    }
    return APUS_OK;
}

#endif
