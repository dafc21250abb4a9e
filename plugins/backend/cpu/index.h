/* Sums, indexing, embeddings, dropout. Sums are cut into a fixed number of parts, so they do not depend on the threads. */
#ifndef APUS_CPU_INDEX_H
#define APUS_CPU_INDEX_H

#include "packed.h"

#include <apus/random.h>

enum { PARTS = 32 };

#define NO_SCRATCH(id)                                                                                                                               \
    static size_t scratch_##id(const apus_kernel_call *c)                                                                                            \
    {                                                                                                                                                \
        (void)c;                                                                                                                                     \
        return 0;                                                                                                                                    \
    }
NO_SCRATCH(sum)
NO_SCRATCH(sum_squares)
NO_SCRATCH(add_row)
NO_SCRATCH(scale_rows)
NO_SCRATCH(embedding)
NO_SCRATCH(embedding_dw)
NO_SCRATCH(gather)
NO_SCRATCH(scatter_add)
NO_SCRATCH(columns)
NO_SCRATCH(columns_grad)
NO_SCRATCH(kv_write)
NO_SCRATCH(dropout)
NO_SCRATCH(dropout_grad)
#undef NO_SCRATCH

LANES_INLINE double sum_range(const float *x, int64_t n, int squares)
{
    vd low[2] = {{0}, {0}}, high[2] = {{0}, {0}};
    for (int64_t i = 0, j = 0; i < n; i += LANES, j ^= 1) {
        const vf v = n - i < LANES ? v_load_part(x + i, n - i) : v_load(x + i);
        const vd a = v_low(v), b = v_high(v);
        low[j] += squares ? a * a : a;
        high[j] += squares ? b * b : b;
    }
    return v_sumd(low[0] + low[1], high[0] + high[1]);
}

LANES_INLINE apus_status sum_all(const apus_kernel_call *c, int squares)
{
    const float *x = (const float *)c->in[0].data;
    float *y = (float *)c->out[0].data;
    const int64_t n = apus_cpu_elements(&c->in[0]);
    double part[PARTS], total = 0.0;
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (n > 65536)
    for (int64_t p = 0; p < PARTS; p++) {
        const int64_t begin = n * p / PARTS, end = n * (p + 1) / PARTS;
        part[p] = squares ? sum_range(x + begin, end - begin, 1) : sum_range(x + begin, end - begin, 0);
    }
    for (int64_t p = 0; p < PARTS; p++) {
        total += part[p];
    }
    y[0] = (float)(total + (c->accumulate & 1u ? (double)y[0] : 0.0));
    return APUS_OK;
}

static apus_status run_sum(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return sum_all(c, 0);
}

static apus_status run_sum_squares(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    return sum_all(c, 1);
}

/* Parts of `rows` rows: as many as there are, at most PARTS. */
static int64_t parts_of(int64_t rows)
{
    return apus_cpu_min(PARTS, (rows + 15) / 16);
}

/* y[i] (+)= the sum of part[p][i] over p, in order. */
static void sum_parts(const double *part, int64_t parts, int64_t n, float *y, int accumulate)
{
    for (int64_t i = 0; i < n; i++) {
        double s = accumulate ? (double)y[i] : 0.0;
        for (int64_t p = 0; p < parts; p++) {
            s += part[p * n + i];
        }
        y[i] = (float)s;
    }
}

/* sum[i .. i+left) += x */
LANES_INLINE void add_double(double *sum, vf x, int64_t left)
{
    if (left >= LANES) {
        ((vd_at *)sum)[0] += v_low(x);
        ((vd_at *)sum)[1] += v_high(x);
    } else {
        for (int64_t j = 0; j < left; j++) {
            sum[j] += (double)x[j];
        }
    }
}

static size_t scratch_sum_rows(const apus_kernel_call *c)
{
    return (size_t)PARTS * (size_t)apus_cpu_width(&c->in[0]) * sizeof(double);
}

static apus_status run_sum_rows(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *x = (const float *)c->in[0].data;
    double *part = (double *)c->scratch;
    const int64_t rows = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]), parts = parts_of(rows);
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * n > 65536)
    for (int64_t p = 0; p < parts; p++) {
        double *sum = part + p * n;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t t = rows * p / parts; t < rows * (p + 1) / parts; t++) {
            for (int64_t i = 0; i < n; i += LANES) {
                add_double(sum + i, get(x + t * n + i, n - i), n - i);
            }
        }
    }
    sum_parts(part, parts, n, (float *)c->out[0].data, c->accumulate & 1u);
    return APUS_OK;
}

static apus_status run_add_row(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *x = (const float *)c->in[0].data, *b = (const float *)c->in[1].data;
    float *y = (float *)c->out[0].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]);
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * n > 65536)
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < n; i++) {
            y[t * n + i] = x[t * n + i] + b[i];
        }
    }
    return APUS_OK;
}

static apus_status run_scale_rows(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *x = (const float *)c->in[0].data, *s = (const float *)c->in[1].data;
    float *y = (float *)c->out[0].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]);
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * n > 65536)
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < n; i++) {
            y[t * n + i] = s[t] * x[t * n + i];
        }
    }
    return APUS_OK;
}

static apus_status check_indices(const apus_view *index, int64_t limit, apus_error *err)
{
    const int32_t *p = (const int32_t *)index->data;
    const int64_t n = apus_cpu_elements(index);
    for (int64_t i = 0; i < n; i++) {
        if (check_index("index", p[i], limit, i, err) != APUS_OK) {
            return APUS_E_INVALID;
        }
    }
    return APUS_OK;
}

static int64_t columns_of(const apus_view *v)
{
    return v->ndim > 1 ? apus_cpu_width(v) : 1;
}

static apus_status run_gather(const apus_kernel_call *c, apus_error *err)
{
    const float *x = (const float *)c->in[0].data;
    const int32_t *index = (const int32_t *)c->in[1].data;
    float *y = (float *)c->out[0].data;
    const int64_t n = apus_cpu_elements(&c->in[1]), k = columns_of(&c->in[0]);
    if (check_indices(&c->in[1], c->in[0].dims[0], err) != APUS_OK) {
        return APUS_E_INVALID;
    }
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (n * k > 65536)
    for (int64_t i = 0; i < n; i++) {
        memcpy(y + i * k, x + index[i] * k, (size_t)k * sizeof *y);
    }
    return APUS_OK;
}

/* y[index[i]] += dy[i], in order of i; each thread has its own columns. y is zeroed first unless it accumulates. */
static void add_rows(const apus_kernel_call *c, const float *dy, const int32_t *index, int64_t n, float *y, int64_t rows, int64_t k)
{
    const int fresh = (c->accumulate & 1u) == 0;
#pragma omp parallel num_threads(threads_of(c)) if (n * k > 65536 || rows * k > 65536)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t step = ((k + all - 1) / all + 15) / 16 * 16, begin = apus_cpu_min(k, me * step), end = apus_cpu_min(k, begin + step);
        if (fresh) {
            const int64_t r0 = rows * me / all, r1 = rows * (me + 1) / all;
            memset(y + r0 * k, 0, (size_t)((r1 - r0) * k) * sizeof *y);
#pragma omp barrier
        }
        for (int64_t i = 0; i < n; i++) {
            float *to = y + index[i] * k;
            for (int64_t j = begin; j < end; j++) {
                to[j] += dy[i * k + j];
            }
        }
    }
}

static apus_status run_scatter_add(const apus_kernel_call *c, apus_error *err)
{
    const int64_t rows = c->out[0].dims[0];
    if (check_indices(&c->in[1], rows, err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    add_rows(c, (const float *)c->in[0].data, (const int32_t *)c->in[1].data, apus_cpu_elements(&c->in[1]), (float *)c->out[0].data, rows,
             columns_of(&c->out[0]));
    return APUS_OK;
}

static apus_status run_embedding(const apus_kernel_call *c, apus_error *err)
{
    const apus_view *w = &c->in[0];
    const int32_t *ids = (const int32_t *)c->in[1].data;
    float *y = (float *)c->out[0].data;
    const int64_t t = apus_cpu_elements(&c->in[1]), rows = w->dims[0], k = apus_cpu_width(w);
    const size_t bytes = apus_row_bytes(w->dtype, k);
    for (int64_t i = 0; i < t; i++) {
        if (check_index("token id", ids[i], rows, i, err) != APUS_OK) {
            return APUS_E_INVALID;
        }
    }
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (t * k > 65536)
    for (int64_t i = 0; i < t; i++) {
        if ((w->dtype & APUS_PACKED) != 0) {
            packed_row(w, ids[i], y + i * k);
        } else {
            decode(w->dtype, (const uint8_t *)w->data + (size_t)ids[i] * bytes, y + i * k, k);
        }
    }
    return APUS_OK;
}

static apus_status run_embedding_dw(const apus_kernel_call *c, apus_error *err)
{
    const int32_t *ids = (const int32_t *)c->in[1].data;
    const int64_t n = apus_cpu_elements(&c->in[1]), rows = c->out[0].dims[0], k = apus_cpu_width(&c->out[0]);
    for (int64_t i = 0; i < n; i++) {
        if (check_index("token id", ids[i], rows, i, err) != APUS_OK) {
            return APUS_E_INVALID;
        }
    }
    add_rows(c, (const float *)c->in[0].data, ids, n, (float *)c->out[0].data, rows, k);
    return APUS_OK;
}

static apus_status run_columns(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const int from = c->in[0].dtype == APUS_BF16, to = c->out[0].dtype == APUS_BF16;
    const int64_t rows = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]), begin = (int64_t)c->attrs[0], k = apus_cpu_width(&c->out[0]);
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * k > 65536)
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < k; i += LANES) {
            const vf x = v_take(from, element(c->in[0].data, from, t * n + begin + i), k - i);
            v_give(to, element_to(c->out[0].data, to, t * k + i), x, k - i);
        }
    }
    return APUS_OK;
}

static apus_status run_columns_grad(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *dy = (const float *)c->in[0].data;
    float *dx = (float *)c->out[0].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), k = apus_cpu_width(&c->in[0]), begin = (int64_t)c->attrs[0], n = apus_cpu_width(&c->out[0]);
    const int fresh = (c->accumulate & 1u) == 0;
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * n > 65536)
    for (int64_t t = 0; t < rows; t++) {
        float *to = dx + t * n;
        if (fresh) {
            memset(to, 0, (size_t)n * sizeof *to);
        }
        for (int64_t i = 0; i < k; i++) {
            to[begin + i] += dy[t * k + i];
        }
    }
    return APUS_OK;
}

static apus_status run_kv_write(const apus_kernel_call *c, apus_error *err)
{
    const float *x = (const float *)c->in[1].data;
    const int32_t *slot = (const int32_t *)c->in[2].data;
    float *cache = (float *)c->out[0].data;
    const int64_t t = apus_cpu_elements(&c->in[2]), k = apus_cpu_width(&c->out[0]);
    if (check_indices(&c->in[2], c->out[0].dims[0], err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    for (int64_t i = 0; i < t; i++) {
        memcpy(cache + slot[i] * k, x + i * k, (size_t)k * sizeof *cache);
    }
    return APUS_OK;
}

static apus_status run_dropout(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    const float *x = (const float *)c->in[0].data;
    const int64_t *token = (const int64_t *)c->in[1].data, *seed = (const int64_t *)c->in[2].data;
    float *y = (float *)c->out[0].data;
    const int64_t rows = apus_cpu_rows(&c->in[0]), n = apus_cpu_width(&c->in[0]);
    const uint64_t bound = apus_random_dropout_bound(c->attrs[0]);
    const uint32_t purpose = (uint32_t)c->attrs[1];
    const float grow = (float)(1.0 / (1.0 - c->attrs[0]));
#pragma omp parallel for num_threads(threads_of(c)) schedule(static) if (rows * n > 4096)
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < n; i += 4) {
            uint32_t words[4];
            apus_random_dropout(seed[0], seed[1], purpose, token[t], (uint32_t)(i / 4), words);
            for (int64_t j = 0; j < apus_cpu_min(4, n - i); j++) {
                y[t * n + i + j] = words[j] >= bound ? x[t * n + i + j] * grow : 0.0f;
            }
        }
    }
    return APUS_OK;
}

static apus_status run_dropout_grad(const apus_kernel_call *c, apus_error *err)
{
    return run_dropout(c, err);
}

#endif
