/* Cases for the conformance of kernels: operands and attributes of each built-in op, with and without tails. */
#ifndef APUS_TEST_CASES_H
#define APUS_TEST_CASES_H

#include "core/graph/bed.h"

enum { OPERANDS = APUS_MAX_INPUTS + 1 };

typedef struct operand {
    apus_view view; /* dims; dtype: APUS_REAL, APUS_I32, APUS_I64; data NULL */
    double *real;   /* exact in float32 */
    void *raw;      /* integers */
} operand;

typedef struct kase {
    operand in[OPERANDS], out[APUS_MAX_OUTPUTS];
    uint32_t n_in, n_out;
    double attrs[APUS_MAX_ATTRS];
    int weight;          /* input that may be encoded; -1 */
    size_t weight_bytes; /* of it, encoded */
    double tolerance;    /* of the largest element of an output */
    uint64_t seed;
} kase;

static inline int64_t count(const apus_view *v)
{
    int64_t n = 1;
    for (int32_t d = 0; d < v->ndim; d++)
        n *= v->dims[d];
    return n;
}

static inline operand *add_operand(kase *k, apus_dtype dtype, int64_t rows, int64_t columns)
{
    operand *o = &k->in[k->n_in++];
    o->view = (apus_view){.dtype = dtype, .ndim = columns < 0 ? 1 : 2, .dims = {rows, columns < 0 ? 0 : columns}};
    return o;
}

static inline void real_in(kase *k, int64_t rows, int64_t columns, double low, double high)
{
    operand *o = add_operand(k, APUS_REAL, rows, columns);
    const int64_t n = count(&o->view);
    o->real = calloc((size_t)n + 1, sizeof(double));
    for (int64_t i = 0; i < n; i++)
        o->real[i] = (double)(float)bed_random(k->seed + k->n_in, (uint64_t)i, low, high);
}

static inline void ints_in(kase *k, int64_t rows, int64_t columns, const int32_t *values)
{
    operand *o = add_operand(k, APUS_I32, rows, columns);
    o->raw = calloc((size_t)count(&o->view) + 1, sizeof(int32_t));
    memcpy(o->raw, values, (size_t)count(&o->view) * sizeof(int32_t));
}

static inline void ids_in(kase *k, int64_t rows, int64_t below)
{
    operand *o = add_operand(k, APUS_I32, rows, -1);
    o->raw = calloc((size_t)rows + 1, sizeof(int32_t));
    for (int64_t i = 0; i < rows; i++)
        ((int32_t *)o->raw)[i] = (int32_t)apus_random_below(k->seed + k->n_in, 3, 0, (uint64_t)i, (uint64_t)below);
}

static inline void longs_in(kase *k, int64_t rows, const int64_t *values)
{
    operand *o = add_operand(k, APUS_I64, rows, -1);
    o->raw = calloc((size_t)rows + 1, sizeof(int64_t));
    memcpy(o->raw, values, (size_t)rows * sizeof(int64_t));
}

/* Lengths on both sides of every vector width. */
static const int64_t lengths[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 1000};
enum { N_LENGTHS = sizeof lengths / sizeof lengths[0] };

static const struct {
    int64_t m, i, o;
} products[] = {{0, 8, 4},   {1, 1, 1},    {1, 576, 65}, {1, 64, 100},  {2, 33, 17},  {3, 7, 130},    {4, 64, 64},
                {7, 100, 9}, {8, 256, 48}, {16, 31, 33}, {17, 128, 20}, {33, 96, 70}, {64, 200, 129}, {130, 48, 40}};
enum { N_PRODUCTS = sizeof products / sizeof products[0] };

static const struct {
    double attrs[6]; /* heads kv_heads head_dim scale window softcap */
    int64_t n;
    int32_t segments[5 * 4];
    int64_t tokens;
} attentions[] = {
    {{1, 1, 1, 1.0, 0, 0}, 1, {0, 1, -1, 0}, 1},
    {{2, 2, 3, 0.7, 0, 0}, 0, {0}, 0},
    {{4, 2, 16, 0.25, 0, 0}, 2, {0, 40, -1, 0, 40, 33, -1, 0}, 73},
    {{9, 3, 64, 0.125, 0, 0}, 1, {0, 150, -1, 0}, 150},
    {{4, 1, 20, 0.3, 7, 0}, 2, {0, 60, -1, 0, 60, 3, -1, 0}, 63},
    {{2, 1, 80, 0.1, 0, 1.5}, 3, {0, 33, -1, 0, 33, 24, 0, 0, 57, 12, 0, 0}, 69},
    {{6, 3, 8, 0.4, 10, 2.0}, 5, {0, 12, -1, 0, 12, 0, 0, 0, 12, 22, 0, 0, 34, 31, 2, 0, 65, 2, 2, 0}, 67},
};
enum { N_ATTENTIONS = sizeof attentions / sizeof attentions[0] };

static inline int is(const char *op, const char *name)
{
    return strncmp(op, "apus.", 5) == 0 && strncmp(op + 5, name, strlen(name)) == 0 && strcmp(op + 5 + strlen(name), "/1") == 0;
}

static inline int elementwise_case(kase *k, const apus_op *op, int c)
{
    const int forms = 1 + (int)op->min_inputs; /* form f > 0: input f-1 is one element */
    if (c >= forms * N_LENGTHS * 2)
        return 0;
    const int64_t n = lengths[c / forms / 2];
    const int form = c / 2 % forms, other = c % 2;
    const int positive = is(op->name, "log") || is(op->name, "sqrt") || is(op->name, "log1p");
    if (is(op->name, "gelu") || is(op->name, "gelu_grad"))
        k->attrs[0] = other;
    else if (is(op->name, "affine"))
        k->attrs[0] = other ? 1.7 : -0.3, k->attrs[1] = other ? 0.0 : 2.5;
    for (uint32_t i = 0; i < op->min_inputs; i++) {
        const int apart = is(op->name, "div") && i == 1;
        real_in(k, form == (int)i + 1 && n > 0 ? 1 : n, -1, positive || apart ? 0.01 : other ? -2 : -30, other ? 2 : 30);
    }
    if (is(op->name, "fill"))
        k->in[0].view.dims[0] = 1;
    if (is(op->name, "where"))
        for (int64_t i = 0; i < k->in[0].view.dims[0]; i += 3)
            k->in[0].real[i] = 0.0;
    if ((is(op->name, "exp") || is(op->name, "expm1")) && !other)
        for (int64_t i = 0; i < k->in[0].view.dims[0]; i++)
            k->in[0].real[i] = (double)(float)(k->in[0].real[i] * 0.3);
    k->tolerance = 1e-6;
    return 1;
}

static inline int index_case(kase *k, const apus_op *op, int c)
{
    static const int64_t rows[] = {0, 1, 2, 5, 33, 200}, columns[] = {1, 3, 8, 17, 64, 100, 576};
    if (c >= 6 * 7)
        return 0;
    const int64_t t = rows[c / 7], h = columns[c % 7];
    k->tolerance = 1e-6;
    if (is(op->name, "sum") || is(op->name, "sum_squares") || is(op->name, "sum_rows")) {
        real_in(k, t, h, -1, 1);
    } else if (is(op->name, "add_row")) {
        real_in(k, t, h, -1, 1);
        real_in(k, h, -1, -1, 1);
    } else if (is(op->name, "scale_rows")) {
        real_in(k, t, h, -1, 1);
        real_in(k, t, -1, -1, 1);
    } else if (is(op->name, "gather")) {
        real_in(k, 9, c % 2 ? h : -1, -1, 1);
        ids_in(k, t, 9);
    } else if (is(op->name, "scatter_add")) {
        real_in(k, t, c % 2 ? h : -1, -1, 1);
        ids_in(k, t, 9);
        real_in(k, 9, c % 2 ? h : -1, -1, 1);
    } else if (is(op->name, "columns")) {
        real_in(k, t, h, -1, 1);
        const int64_t third = h / 3, quarter = h / 4, rest = h - third - quarter;
        k->attrs[0] = (double)third;
        k->attrs[1] = (double)rest;
    } else if (is(op->name, "columns_grad")) {
        real_in(k, t, h - h / 3, -1, 1);
        real_in(k, t, h, -1, 1);
        const int64_t third = h / 3, quarter = h / 4;
        k->attrs[0] = (double)(third - quarter);
    } else {
        int64_t token[200];
        for (int64_t i = 0; i < t; i++)
            token[i] = i * 977 + (i % 5 == 4 ? (int64_t)1 << 35 : 0);
        real_in(k, t, h, -1, 1);
        longs_in(k, t, token);
        longs_in(k, 2, (const int64_t[]){(int64_t)0x123456789abcdef, 41});
        k->attrs[0] = 0.3;
        k->attrs[1] = 4294967295.0;
    }
    return 1;
}

static inline int matrix_case(kase *k, const apus_op *op, int c, int encoded)
{
    if (c >= N_PRODUCTS)
        return 0;
    const int64_t m = products[c].m, i = encoded ? (products[c].i + 255) / 256 * 256 : products[c].i, o = products[c].o;
    k->tolerance = 3e-6 * sqrt((double)(i > o ? i : o) + (double)m);
    k->weight = 1;
    if (is(op->name, "linear")) {
        real_in(k, m, i, -1, 1);
        real_in(k, o, i, -1, 1);
        if (c % 2)
            real_in(k, o, -1, -1, 1);
    } else if (is(op->name, "linear_dx")) {
        real_in(k, m, o, -1, 1);
        real_in(k, o, i, -1, 1);
    } else if (is(op->name, "linear_dw")) {
        real_in(k, m, o, -1, 1);
        real_in(k, m, i, -1, 1);
        k->weight = -1;
    } else if (is(op->name, "embedding")) {
        real_in(k, o, i, -1, 1);
        ids_in(k, m, o);
        k->weight = 0;
    } else if (is(op->name, "embedding_dw")) {
        real_in(k, m, i, -1, 1);
        ids_in(k, m, o);
        real_in(k, o, i, -1, 1);
        k->weight = -1;
    } else { /* token_logprob, token_logprob_dw */
        const int grad = is(op->name, "token_logprob_dw");
        k->attrs[0] = c % 3 ? 1.0 : 0.5;
        k->attrs[1] = c % 4 == 3 ? 5.0 : 0.0;
        if (grad)
            real_in(k, m, -1, -1, 1);
        real_in(k, m, i, -0.3, 0.3);
        real_in(k, o, i, -1, 1);
        ids_in(k, m, o);
        k->weight = grad ? 2 : 1;
        if (grad)
            real_in(k, m, -1, 5, 5); /* lse: not that of the logits, which changes nothing */
    }
    return 1;
}

static inline int norm_case(kase *k, const apus_op *op, int c)
{
    static const int64_t rows[] = {0, 1, 3, 40}, columns[] = {1, 6, 16, 60, 576, 1000};
    if (c >= 4 * 6 * 2)
        return 0;
    const int64_t t = rows[c / 12], h = columns[c / 2 % 6];
    const int64_t wide = c % 2 && h % 2 == 0 && strstr(op->name, "rms") != NULL ? h / 2 : h;
    if (wide <= 3 && strstr(op->name, "_grad") != NULL)
        return -1; /* nothing but cancellation */
    k->attrs[0] = 1e-5;
    if (strstr(op->name, "rms") != NULL) {
        k->attrs[1] = c % 2 ? (double)wide : 0.0;
        k->attrs[2] = c % 2;
    }
    if (strstr(op->name, "_grad") != NULL)
        real_in(k, t, h, -1, 1);
    real_in(k, t, h, -2, 2);
    real_in(k, wide, -1, -1, 1);
    if (is(op->name, "layer_norm") && c % 2)
        real_in(k, h, -1, -1, 1);
    k->tolerance = 1e-5; /* layer_norm of rows of one element divides by sqrt(eps) */
    return 1;
}

static inline int rope_case(kase *k, int c)
{
    static const int32_t positions[] = {0, 1, 2, 17, 100, 511, 2000, 3, 9}, spans[] = {5, 5, 64, 65, 101, 512, 2001, 4, 10};
    static const int64_t dims[] = {2, 6, 16, 64, 80};
    if (c >= 5 * 3 * 2 * 2)
        return 0;
    const int64_t d = dims[c / 12], t = c % 2 ? 9 : 1, rotary = c / 2 % 2 && d > 4 ? d / 4 * 2 : d;
    const int mode = d == 2 ? 0 : c / 4 % 3;
    if (mode == 1 && rotary <= 2)
        return -1;
    real_in(k, t, 3 * d, -1, 1);
    ints_in(k, t, -1, positions);
    ints_in(k, t, -1, spans);
    real_in(k, mode == 2 ? 2 : rotary / 2, mode == 2 ? rotary / 2 : -1, 0.001, 1);
    const double attrs[8] = {(double)d, (double)rotary, c % 2 ? 1.1 : 1.0, c / 2 % 2, mode, 64, 2, 10000};
    memcpy(k->attrs, attrs, sizeof attrs);
    k->tolerance = 3e-4; /* angles of thousands of radians, in float32 as in PyTorch */
    return 1;
}

static inline int attention_case(kase *k, const apus_op *op, int c)
{
    if (c >= N_ATTENTIONS)
        return 0;
    const double *a = attentions[c].attrs;
    const int64_t t = attentions[c].tokens, wide = (int64_t)(a[0] * a[2]), narrow = (int64_t)(a[1] * a[2]);
    memcpy(k->attrs, a, sizeof attentions[c].attrs);
    k->tolerance = 1e-5;
    if (is(op->name, "attention_cached")) {
        enum { PAGE = 16, PAGES = 10, SLOTS = 30 * PAGE };
        int32_t table[3 * (4 + PAGES)], rows = t == 0 ? 0 : 3, tokens = t == 0 ? 0 : t == 1 ? 3 : 3 + 37;
        const int32_t counts[3] = {1, t > 1 ? 37 : 0, tokens - 1 - (t > 1 ? 37 : 0)}, spans[3] = {150, 70, 33};
        for (int32_t r = 0, begin = 0; r < 3; begin += counts[r++]) {
            int32_t *row = table + r * (4 + PAGES);
            row[0] = begin, row[1] = counts[r], row[2] = spans[r], row[3] = 0;
            for (int32_t p = 0; p < PAGES; p++)
                row[4 + p] = (7 * p + 10 * r + 3) % 30;
        }
        real_in(k, tokens, wide, -1, 1);
        real_in(k, SLOTS, narrow, -1, 1);
        real_in(k, SLOTS, narrow, -1, 1);
        ints_in(k, rows, 4 + PAGES, table);
        k->attrs[6] = PAGE;
        return 1;
    }
    if (is(op->name, "attention_grad"))
        real_in(k, t, wide, -1, 1);
    real_in(k, t, wide, -1, 1);
    real_in(k, t, narrow, -1, 1);
    real_in(k, t, narrow, -1, 1);
    if (is(op->name, "attention_grad")) { /* numbers of the right size: the formula holds for any */
        real_in(k, t, wide, -1, 1);
        real_in(k, t, (int64_t)a[0], 4, 6);
    }
    ints_in(k, attentions[c].n, 4, attentions[c].segments);
    return 1;
}

/* Case c of an op: 1, 0 when there are no more, -1 to leave one out, -2 for an op without cases. */
static inline int make_case(kase *k, const apus_op *op, int c, int encoded)
{
    static const char *const index_ops[] = {"sum",         "sum_squares", "sum_rows",     "add_row", "scale_rows",  "gather",
                                            "scatter_add", "columns",     "columns_grad", "dropout", "dropout_grad"};
    static const char *const matrix_ops[] = {"linear", "linear_dx", "linear_dw", "embedding", "embedding_dw", "token_logprob", "token_logprob_dw"};
    memset(k, 0, sizeof *k);
    k->weight = -1;
    k->seed = 1000u * (uint64_t)c + 17;
    if ((op->flags & APUS_OP_ELEMENTWISE) != 0)
        return elementwise_case(k, op, c);
    for (size_t i = 0; i < sizeof index_ops / sizeof index_ops[0]; i++)
        if (is(op->name, index_ops[i]))
            return index_case(k, op, c);
    for (size_t i = 0; i < sizeof matrix_ops / sizeof matrix_ops[0]; i++)
        if (is(op->name, matrix_ops[i]))
            return matrix_case(k, op, c, encoded);
    if (strstr(op->name, "_norm") != NULL)
        return norm_case(k, op, c);
    if (is(op->name, "rope"))
        return rope_case(k, c);
    if (is(op->name, "attention") || is(op->name, "attention_grad") || is(op->name, "attention_cached"))
        return attention_case(k, op, c);
    if (is(op->name, "kv_write")) {
        if (c >= N_LENGTHS)
            return 0;
        int32_t slots[1000];
        for (int32_t i = 0; i < lengths[c]; i++)
            slots[i] = (i * 7 + 3) % 1003;
        real_in(k, 1003, 1 + c * 3, -1, 1);
        real_in(k, lengths[c], 1 + c * 3, -1, 1);
        ints_in(k, lengths[c], -1, slots);
        return 1;
    }
    return -2;
}

/* What attention over a cache reads beside queries [tokens, heads * dim], of one sequence; attrs: its own. */
static inline void cache_in(kase *k, double *attrs, int64_t tokens, int64_t heads, int64_t dim)
{
    enum { PAGE = 16, PAGES = 5 };
    const int32_t length = (int32_t)tokens + 61, table[4 + PAGES] = {0, (int32_t)tokens, length, 0, 3, 0, 4, 1, 2};
    const double own[7] = {(double)heads, 1, (double)dim, 1.0 / sqrt((double)dim), 0, 0, PAGE};
    real_in(k, PAGES * PAGE, dim, -1, 1);
    real_in(k, PAGES * PAGE, dim, -1, 1);
    ints_in(k, 1, 4 + PAGES, table);
    memcpy(attrs, own, sizeof own);
}

static inline void end_case(kase *k)
{
    for (uint32_t i = 0; i < k->n_in; i++) {
        free(k->in[i].real);
        free(k->in[i].raw);
    }
    for (uint32_t i = 0; i < k->n_out; i++)
        free(k->out[i].real);
}

/* The shapes of the outputs, by the op's own rule; elementwise kernels see ranges of one dimension. */
static inline void shape_outputs(kase *k, const apus_op *op)
{
    apus_shape in[OPERANDS], out[APUS_MAX_OUTPUTS];
    apus_error err;
    for (uint32_t i = 0; i < k->n_in; i++) {
        in[i] = (apus_shape){.dtype = k->in[i].view.dtype, .ndim = k->in[i].view.ndim};
        memcpy(in[i].dims, k->in[i].view.dims, sizeof in[i].dims);
    }
    if (op->shapes(in, k->n_in, k->attrs, out, &err) != APUS_OK)
        fail_msg("%s: %s", op->name, err.message);
    k->n_out = op->n_outputs;
    for (uint32_t i = 0; i < k->n_out; i++) {
        k->out[i].view = (apus_view){.dtype = APUS_REAL, .ndim = out[i].ndim};
        memcpy(k->out[i].view.dims, out[i].dims, sizeof out[i].dims);
        k->out[i].real = calloc((size_t)count(&k->out[i].view) + 1, sizeof(double));
    }
}

#endif
