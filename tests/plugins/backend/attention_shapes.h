/* Attention's shapes that tests go through: heads shared and not, sizes with tails, windows, softcaps, chains of segments. */
#ifndef APUS_ATTENTION_SHAPES_H
#define APUS_ATTENTION_SHAPES_H

#include "bench.h"

typedef struct shape {
    int heads, kv_heads, dim, window;
    double softcap;
    int n_segments;
    int32_t segments[5][4];
} shape;

static const shape shapes[] = {
    {2, 1, 8, 0, 0, 1, {{0, 1, -1, 0}}},
    {4, 2, 16, 0, 0, 2, {{0, 5, -1, 0}, {5, 70, -1, 0}}},
    {9, 3, 64, 0, 0, 1, {{0, 200, -1, 0}}},
    {3, 3, 20, 0, 5.0, 3, {{0, 66, -1, 0}, {66, 30, 0, 0}, {96, 131, 0, 0}}},
    {6, 2, 12, 10, 0, 4, {{0, 90, -1, 0}, {90, 64, 0, 0}, {154, 3, 1, 0}, {157, 100, -1, 0}}},
    {40, 2, 24, 70, 3.0, 2, {{0, 150, -1, 0}, {150, 20, 0, 0}}},
    {2, 2, 5, 1, 0, 2, {{3, 40, -1, 0}, {0, 3, -1, 0}}},
    {2, 1, 80, 0, 0, 3, {{0, 64, -1, 0}, {64, 0, 0, 0}, {64, 65, 1, 0}}},
};

static inline int64_t tokens_of(const shape *s)
{
    int64_t n = 0;
    for (int i = 0; i < s->n_segments; i++)
        n += s->segments[i][1];
    return n;
}

static inline call attention_call(const char *op, const shape *s, int64_t page)
{
    const double attrs[7] = {s->heads, s->kv_heads, s->dim, 1.0 / sqrt(s->dim), s->window, s->softcap, (double)page};
    return call_of(op, attrs, page > 0 ? 7 : 6);
}

/* Attention of shape s on random inputs, and its gradient at what ref gives for them. out, lse: that; owner: caller. */
static inline void attention_calls(const shape *s, call *forward, call *gradient, double **out, double **lse)
{
    const int64_t t = tokens_of(s), wide[2] = {t, s->heads * s->dim}, narrow[2] = {t, s->kv_heads * s->dim}, heads[2] = {t, s->heads};
    call *c = forward, *g = gradient;
    *c = attention_call("attention", s, 0);
    input_real(c, -2, 2, 2, wide);
    input_real(c, -2, 2, 2, narrow);
    input_real(c, -1, 1, 2, narrow);
    input_int(c, 2, (int64_t[]){s->n_segments, 4}, &s->segments[0][0]);
    output(c, 2, wide);
    output(c, 2, heads);
    *out = run_ref(c, 0);
    *lse = run_ref(c, 1);
    *g = attention_call("attention_grad", s, 0);
    input_real(g, -1, 1, 2, wide);
    for (int k = 0; k < 3; k++)
        input_copy(g, c->in[k].real, 2, k == 0 ? wide : narrow);
    input_copy(g, *out, 2, wide);
    input_copy(g, *lse, 2, heads);
    input_int(g, 2, (int64_t[]){s->n_segments, 4}, &s->segments[0][0]);
    output(g, 2, wide);
    output(g, 2, narrow);
    output(g, 2, narrow);
}

#endif
