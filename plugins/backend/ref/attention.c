/*
 * Attention of the reference backend: for each segment the rows of the keys its queries may see are listed (its parents',
 * root first, then its own), and each query is worked alone.
 */
#include "ref.h"

#include <math.h>

typedef struct attention {
    int64_t heads, kv_heads, dim, window;
    double scale, softcap;
} attention;

static attention attributes(const double *a)
{
    return (attention){(int64_t)a[0], (int64_t)a[1], (int64_t)a[2], (int64_t)a[4], a[3], a[5]};
}

static double dot(const double *a, const double *b, int64_t n)
{
    double s = 0.0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

static double score(const attention *a, const double *q, const double *k)
{
    const double z = a->scale * dot(q, k, a->dim);
    return a->softcap > 0.0 ? a->softcap * tanh(z / a->softcap) : z;
}

/* First visible position of the query at `position`. */
static int64_t first_visible(const attention *a, int64_t position)
{
    return a->window > 0 && position + 1 > a->window ? position + 1 - a->window : 0;
}

/* softmax over rows[first … position] of one head; weights into p. Gives lse. */
static double softmax(const attention *a, const double *q, const double *k, const int64_t *rows, int64_t first, int64_t position, int64_t stride,
                      double *p)
{
    double most = -INFINITY, sum = 0.0;
    for (int64_t j = first; j <= position; j++) {
        p[j] = score(a, q, k + rows[j] * stride);
        most = fmax(most, p[j]);
    }
    for (int64_t j = first; j <= position; j++)
        sum += exp(p[j] - most);
    const double lse = most + log(sum);
    for (int64_t j = first; j <= position; j++)
        p[j] = exp(p[j] - lse);
    return lse;
}

/* Rows of the keys that segment s sees, in order of position. Gives how many come before its own, or -1 with err. */
static int64_t visible_rows(const int32_t *segments, int64_t n_segments, int64_t s, int64_t tokens, int64_t *rows, apus_error *err)
{
    int64_t before = 0;
    for (int64_t k = s, deep = 0; k >= 0; k = segments[k * 4 + 2], deep++) {
        const int32_t *seg = segments + k * 4;
        if (seg[0] < 0 || seg[1] < 0 || (int64_t)seg[0] + seg[1] > tokens || seg[2] >= k || seg[2] < -1 || deep >= n_segments) {
            (void)apus_fail(err, APUS_E_INVALID, "segment %lld is {%d, %d, %d}, of %lld tokens", (long long)k, seg[0], seg[1], seg[2],
                            (long long)tokens);
            return -1;
        }
        before += k != s ? seg[1] : 0;
    }
    int64_t at = before + segments[s * 4 + 1];
    if (at > tokens) {
        (void)apus_fail(err, APUS_E_INVALID, "segment %lld sees more keys than there are tokens", (long long)s);
        return -1;
    }
    for (int64_t k = s; k >= 0; k = segments[k * 4 + 2])
        for (int64_t i = segments[k * 4 + 1]; i-- > 0;)
            rows[--at] = segments[k * 4] + i;
    return before;
}

static size_t scratch(const apus_kernel_call *c)
{
    return (size_t)c->in[0].dims[0] * (sizeof(int64_t) + sizeof(double));
}

static size_t grad_scratch(const apus_kernel_call *c)
{
    return (size_t)c->in[1].dims[0] * (sizeof(int64_t) + sizeof(double));
}

static apus_status run_attention(const apus_kernel_call *c, apus_error *err)
{
    const attention a = attributes(c->attrs);
    const double *q = c->in[0].data, *k = c->in[1].data, *v = c->in[2].data;
    const int32_t *segments = c->in[3].data;
    const int64_t tokens = c->in[0].dims[0], wide = a.heads * a.dim, narrow = a.kv_heads * a.dim;
    double *out = apus_ref_sum(c, 0), *lse = apus_ref_sum(c, 1), *p = c->scratch;
    int64_t *rows = (int64_t *)(void *)(p + tokens);
    for (int64_t s = 0; s < c->in[3].dims[0]; s++) {
        const int64_t before = visible_rows(segments, c->in[3].dims[0], s, tokens, rows, err);
        if (before < 0)
            return APUS_E_INVALID;
        for (int64_t i = 0; i < segments[s * 4 + 1]; i++) {
            const int64_t t = segments[s * 4] + i, position = before + i, first = first_visible(&a, position);
            for (int64_t h = 0; h < a.heads; h++) {
                const int64_t kv = h / (a.heads / a.kv_heads) * a.dim;
                const double l = softmax(&a, q + t * wide + h * a.dim, k + kv, rows, first, position, narrow, p);
                if (lse != NULL)
                    lse[t * a.heads + h] = l;
                for (int64_t j = first; j <= position && out != NULL; j++)
                    for (int64_t d = 0; d < a.dim; d++)
                        out[t * wide + h * a.dim + d] += p[j] * v[rows[j] * narrow + kv + d];
            }
        }
    }
    return APUS_OK;
}

static apus_status run_attention_grad(const apus_kernel_call *c, apus_error *err)
{
    const attention a = attributes(c->attrs);
    const double *dout = c->in[0].data, *q = c->in[1].data, *k = c->in[2].data, *v = c->in[3].data, *out = c->in[4].data;
    const double *lse = c->in[5].data;
    const int32_t *segments = c->in[6].data;
    const int64_t tokens = c->in[1].dims[0], wide = a.heads * a.dim, narrow = a.kv_heads * a.dim;
    double *dq = apus_ref_sum(c, 0), *dk = apus_ref_sum(c, 1), *dv = apus_ref_sum(c, 2);
    int64_t *rows = c->scratch;
    for (int64_t s = 0; s < c->in[6].dims[0]; s++) {
        const int64_t before = visible_rows(segments, c->in[6].dims[0], s, tokens, rows, err);
        if (before < 0)
            return APUS_E_INVALID;
        for (int64_t i = 0; i < segments[s * 4 + 1]; i++) {
            const int64_t t = segments[s * 4] + i, position = before + i;
            for (int64_t h = 0; h < a.heads; h++) {
                const int64_t kv = h / (a.heads / a.kv_heads) * a.dim, at = t * wide + h * a.dim;
                const double mean = dot(dout + at, out + at, a.dim); /* sum over keys of p dp */
                for (int64_t j = first_visible(&a, position); j <= position; j++) {
                    const int64_t row = rows[j] * narrow + kv;
                    const double z = score(&a, q + at, k + row), p = exp(z - lse[t * a.heads + h]);
                    const double slope = a.softcap > 0.0 ? 1.0 - z / a.softcap * (z / a.softcap) : 1.0;
                    const double ds = p * (dot(dout + at, v + row, a.dim) - mean) * slope * a.scale;
                    for (int64_t d = 0; d < a.dim; d++) {
                        if (dq != NULL)
                            dq[at + d] += ds * k[row + d];
                        if (dk != NULL)
                            dk[row + d] += ds * q[at + d];
                        if (dv != NULL)
                            dv[row + d] += p * dout[at + d];
                    }
                }
            }
        }
    }
    return APUS_OK;
}

static apus_status run_kv_write(const apus_kernel_call *c, apus_error *err)
{
    const double *from = c->in[1].data;
    const int32_t *slot = c->in[2].data;
    const int64_t w = c->in[0].dims[1];
    double *cache = c->out[0].data;
    for (int64_t t = 0; t < c->in[1].dims[0]; t++) {
        if (slot[t] < 0 || slot[t] >= c->in[0].dims[0])
            return apus_fail(err, APUS_E_INTERNAL, "slot %d of %lld", slot[t], (long long)c->in[0].dims[0]);
        memcpy(cache + slot[t] * w, from + t * w, (size_t)w * sizeof *cache);
    }
    return APUS_OK;
}

static size_t cached_scratch(const apus_kernel_call *c)
{
    return (size_t)c->in[3].dims[1] * (size_t)c->attrs[6] * (sizeof(int64_t) + sizeof(double));
}

static apus_status run_attention_cached(const apus_kernel_call *c, apus_error *err)
{
    const attention a = attributes(c->attrs);
    const double *q = c->in[0].data, *k = c->in[1].data, *v = c->in[2].data;
    const int64_t page = (int64_t)c->attrs[6], columns = c->in[3].dims[1], slots = c->in[1].dims[0], tokens = c->in[0].dims[0];
    const int64_t wide = a.heads * a.dim, narrow = a.kv_heads * a.dim;
    double *out = apus_ref_sum(c, 0), *p = c->scratch;
    int64_t *rows = (int64_t *)(void *)(p + columns * page);
    for (int64_t s = 0; s < c->in[3].dims[0]; s++) {
        const int32_t *entry = (const int32_t *)c->in[3].data + s * columns;
        const int64_t begin = entry[0], count = entry[1], length = entry[2];
        if (begin < 0 || count < 0 || begin + count > tokens || length < count || length > (columns - 4) * page)
            return apus_fail(err, APUS_E_INTERNAL, "table row %lld is {%d, %d, %d}", (long long)s, entry[0], entry[1], entry[2]);
        for (int64_t j = 0; j < length; j++) {
            rows[j] = (int64_t)entry[4 + j / page] * page + j % page;
            if (rows[j] < 0 || rows[j] >= slots)
                return apus_fail(err, APUS_E_INTERNAL, "table row %lld names slot %lld of %lld", (long long)s, (long long)rows[j], (long long)slots);
        }
        for (int64_t i = 0; i < count; i++) {
            const int64_t t = begin + i, position = length - count + i, first = first_visible(&a, position);
            for (int64_t h = 0; h < a.heads; h++) {
                const int64_t kv = h / (a.heads / a.kv_heads) * a.dim;
                (void)softmax(&a, q + t * wide + h * a.dim, k + kv, rows, first, position, narrow, p);
                for (int64_t j = first; j <= position; j++)
                    for (int64_t d = 0; d < a.dim; d++)
                        out[t * wide + h * a.dim + d] += p[j] * v[rows[j] * narrow + kv + d];
            }
        }
    }
    return APUS_OK;
}

#define KERNEL(name, fl, sc)                                                                                                                         \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus." #name "/1", .flags = fl, .scratch = sc, .run = run_##name                                         \
    }

static const apus_kernel kernels[] = {
    KERNEL(attention, 0, scratch),
    KERNEL(attention_grad, APUS_KERNEL_ACCUMULATES, grad_scratch),
    KERNEL(kv_write, 0, NULL),
    KERNEL(attention_cached, 0, cached_scratch),
};
APUS_REF_TABLE(apus_ref_attention, kernels);
