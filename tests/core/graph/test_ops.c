/*
 * Every op: its shape rule, its gradient against central differences in float64, its decomposition against itself, and
 * values that PyTorch gives. Runs on the reference backend.
 */
#include "core/graph/bed.h"

static apus_device *ref;
static unsigned char *exercised; /* by op index: some test ran it */

static int setup(void **state)
{
    (void)state;
    ref = bed_ref();
    exercised = calloc(apus_op_count(), 1);
    return exercised == NULL;
}

static int teardown(void **state)
{
    (void)state;
    free(exercised);
    apus_device_close(ref);
    return 0;
}

static void note(const bed *b)
{
    for (size_t i = 0; i < b->g->n_nodes; i++)
        if (b->g->nodes[i].op != NULL)
            exercised[((const apus_op_entry *)b->g->nodes[i].op)->index] = 1;
}

/* Gradients of a mix of `outs` with respect to the first n_wrt real inputs that take one, against central differences. */
static void check_gradients(bed *b, const apus_tensor *outs, size_t n_outs, const char *what)
{
    apus_tensor wrt[BED_INPUTS], all[BED_INPUTS + 1], loss = apus_none();
    size_t which[BED_INPUTS], n_wrt = 0, n;
    for (size_t i = 0; i < b->n_in; i++)
        if (b->in[i].real != NULL)
            which[n_wrt] = i, wrt[n_wrt++] = b->in[i].t;
    bed_check(b);
    for (size_t k = 0; k < n_outs; k++) {
        const apus_tensor part = bed_mixed(b, outs[k]);
        loss = k == 0 ? part : apus_add(b->g, loss, part);
    }
    const apus_tensor one = apus_scalar(b->g, 1.0);
    apus_graph_gradients(b->g, &loss, &one, 1, wrt, n_wrt, all + 1);
    bed_check(b);
    note(b);
    all[0] = loss;
    size_t n_all = 1, of[BED_INPUTS + 1];
    for (size_t k = 0; k < n_wrt; k++)
        if (!apus_is_none(all[k + 1]))
            of[n_all] = which[k], all[n_all++] = all[k + 1];
    assert_true(n_all > 1);
    apus_plan *p = bed_plan(b, ref, all, n_all, APUS_RECOMPUTE_NONE);
    bed_run(b, p);
    double *grads[BED_INPUTS + 1];
    for (size_t k = 1; k < n_all; k++) {
        grads[k] = bed_output(p, k, &n);
        assert_int_equal(n, b->in[of[k]].n);
    }
    apus_plan *forward = bed_plan(b, ref, &loss, 1, APUS_RECOMPUTE_NONE);
    for (size_t k = 1; k < n_all; k++) {
        bed_input *in = &b->in[of[k]];
        for (size_t i = 0; i < in->n; i++) {
            const double x = in->real[i], h = 1e-5 * fmax(1.0, fabs(x));
            double side[2];
            for (int s = 0; s < 2; s++) {
                in->real[i] = s == 0 ? x + h : x - h;
                bed_run(b, forward);
                double *v = bed_output(forward, 0, &n);
                side[s] = v[0];
                free(v);
            }
            in->real[i] = x;
            const double expected = (side[0] - side[1]) / (2.0 * h);
            if (!(fabs(expected - grads[k][i]) <= 1e-7 + 1e-6 * fabs(expected) + 1e-9 * fabs(side[0])))
                fail_msg("%s: gradient of input %zu, element %zu: %.12g, differences give %.12g", what, of[k], i, grads[k][i], expected);
        }
        free(grads[k]);
    }
    apus_plan_free(forward);
    apus_plan_free(p);
}

/* ---------------------------------------------------------------- gradients */

static const struct {
    const char *op;
    uint32_t n_in;
    double low, high;
    double attrs[2];
    uint32_t n_attrs;
} elementwise[] = {
    {"apus.add/1", 2, -2, 2, {0}, 0},         {"apus.sub/1", 2, -2, 2, {0}, 0},           {"apus.mul/1", 2, -2, 2, {0}, 0},
    {"apus.div/1", 2, 0.5, 2, {0}, 0},        {"apus.maximum/1", 2, -2, 2, {0}, 0},       {"apus.minimum/1", 2, -2, 2, {0}, 0},
    {"apus.where/1", 3, -2, 2, {0}, 0},       {"apus.affine/1", 1, -2, 2, {1.7, -.3}, 2}, {"apus.exp/1", 1, -2, 2, {0}, 0},
    {"apus.log/1", 1, 0.3, 3, {0}, 0},        {"apus.log1p/1", 1, -0.7, 3, {0}, 0},       {"apus.expm1/1", 1, -2, 2, {0}, 0},
    {"apus.sqrt/1", 1, 0.3, 3, {0}, 0},       {"apus.abs/1", 1, 0.1, 2, {0}, 0},          {"apus.abs/1", 1, -2, -0.1, {0}, 0},
    {"apus.square/1", 1, -2, 2, {0}, 0},      {"apus.tanh/1", 1, -2, 2, {0}, 0},          {"apus.sigmoid/1", 1, -4, 4, {0}, 0},
    {"apus.log_sigmoid/1", 1, -9, 9, {0}, 0}, {"apus.softplus/1", 1, -9, 9, {0}, 0},      {"apus.relu/1", 1, 0.1, 2, {0}, 0},
    {"apus.relu/1", 1, -2, -0.1, {0}, 0},     {"apus.silu/1", 1, -5, 5, {0}, 0},          {"apus.gelu/1", 1, -3, 3, {0}, 1},
    {"apus.gelu/1", 1, -3, 3, {1}, 1},        {"apus.swiglu/1", 2, -3, 3, {0}, 0},
};

static void gradients_of_elementwise(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof elementwise / sizeof elementwise[0]; c++) {
        for (uint32_t broadcast = 0; broadcast <= elementwise[c].n_in; broadcast++) { /* input broadcast-1 is one element */
            if (broadcast > 0 && elementwise[c].n_in == 1)
                continue;
            bed b;
            bed_begin(&b, 100 + c);
            apus_tensor in[3];
            for (uint32_t i = 0; i < elementwise[c].n_in; i++)
                in[i] = i + 1 == broadcast ? bed_real(&b, 1, DIMS(1), elementwise[c].low, elementwise[c].high)
                                           : bed_real(&b, 2, DIMS(3, 5), elementwise[c].low, elementwise[c].high);
            if (strcmp(elementwise[c].op, "apus.where/1") == 0)
                in[0] = apus_greater(b.g, in[0], apus_scalar(b.g, 0.0));
            const apus_tensor y =
                apus_graph_table()->emit(b.g, elementwise[c].op, in, elementwise[c].n_in, elementwise[c].attrs, elementwise[c].n_attrs);
            if (strcmp(elementwise[c].op, "apus.where/1") == 0) { /* no gradient to the condition: not one to check either */
                b.in[0].real = NULL;
            }
            check_gradients(&b, &y, 1, elementwise[c].op);
            bed_end(&b);
        }
    }
}

static void gradients_at_ties(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 1);
    const apus_tensor x = apus_scalar(b.g, 2.0), zero = apus_scalar(b.g, 0.0), one = apus_scalar(b.g, 1.0);
    const apus_tensor y[3] = {apus_maximum(b.g, x, x), apus_relu(b.g, zero), apus_abs(b.g, zero)};
    const apus_tensor wrt[2] = {x, zero}, dy[3] = {one, one, one};
    apus_tensor d[2];
    apus_graph_gradients(b.g, y, dy, 3, wrt, 2, d);
    bed_check(&b);
    double *v = bed_value(&b, ref, d[0], &n);
    assert_true(v[0] == 1.0); /* half to each side, both are x */
    free(v);
    v = bed_value(&b, ref, d[1], &n);
    assert_true(v[0] == 0.0);
    free(v);
    bed_end(&b);
}

static void gradients_of_sums_and_indexing(void **state)
{
    (void)state;
    bed b;
    for (int c = 0; c < 14; c++) {
        bed_begin(&b, 200 + (uint64_t)c);
        b.extents[0] = 4; /* T */
        b.extents[2] = 6; /* N */
        apus_tensor y = apus_none(), in[3];
        const char *what = "";
        switch (c) {
        case 0:
            what = "sum";
            y = apus_sum(b.g, bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1));
            break;
        case 1:
            what = "sum_rows";
            y = apus_sum_rows(b.g, bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1));
            break;
        case 2:
            what = "fill";
            in[0] = bed_real(&b, 1, DIMS(1), -1, 1);
            y = apus_fill(b.g, in[0], bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1));
            break;
        case 3:
            what = "add_row";
            in[0] = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1);
            y = apus_add_row(b.g, in[0], bed_real(&b, 1, DIMS(3), -1, 1));
            break;
        case 4:
            what = "gather [R]";
            in[0] = bed_real(&b, 1, DIMS(5), -1, 1);
            y = apus_gather(b.g, in[0], bed_ids(&b, 7, 5));
            break;
        case 5:
            what = "gather [R,H]";
            in[0] = bed_real(&b, 2, DIMS(5, 3), -1, 1);
            y = apus_gather(b.g, in[0], bed_ids(&b, APUS_DIM_SCORED, 5));
            break;
        case 6:
            what = "scatter_add [N]";
            in[0] = bed_real(&b, 1, DIMS(7), -1, 1);
            in[1] = bed_ids(&b, 7, 5);
            y = apus_scatter_add(b.g, in[0], in[1], bed_real(&b, 1, DIMS(5), -1, 1));
            break;
        case 7:
            what = "scatter_add [N,H]";
            in[0] = bed_real(&b, 2, DIMS(APUS_DIM_SCORED, 3), -1, 1);
            in[1] = bed_ids(&b, APUS_DIM_SCORED, 4);
            y = apus_scatter_add(b.g, in[0], in[1], bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1));
            break;
        case 8:
            what = "columns";
            y = apus_columns(b.g, bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 7), -1, 1), 2, 3);
            break;
        case 9:
            what = "columns_grad";
            in[0] = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1);
            in[1] = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 7), -1, 1);
            y = EMIT(&b, "columns_grad", 2, in, ATTRS(2), 1);
            break;
        case 10:
            what = "linear";
            in[0] = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1);
            y = apus_matmul(b.g, in[0], bed_real(&b, 2, DIMS(5, 3), -1, 1));
            break;
        case 11:
            what = "linear with bias";
            in[0] = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 3), -1, 1);
            in[1] = bed_real(&b, 2, DIMS(5, 3), -1, 1);
            in[2] = bed_real(&b, 1, DIMS(5), -1, 1);
            y = EMIT(&b, "linear", 3, in, NULL, 0);
            break;
        case 12:
            what = "embedding";
            in[0] = bed_real(&b, 2, DIMS(5, 3), -1, 1);
            in[1] = bed_ids(&b, APUS_DIM_TOKENS, 5);
            y = EMIT(&b, "embedding", 2, in, NULL, 0);
            break;
        default:
            what = "dropout";
            in[0] = bed_real(&b, 2, DIMS(4, 11), -1, 1);
            in[1] = bed_i64(&b, 4, DIMS(0, 5, 1000, (int64_t)1 << 40));
            in[2] = bed_i64(&b, 2, DIMS(42, 3));
            y = EMIT(&b, "dropout", 3, in, ATTRS(0.4, 17), 2);
            break;
        }
        check_gradients(&b, &y, 1, what);
        bed_end(&b);
    }
}

static void gradients_of_norms(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, h;
        double width, offset;
    } rms[] = {{3, 6, 0, 0}, {3, 6, 0, 1}, {2, 12, 4, 0}, {2, 12, 3, 1}, {1, 1, 0, 0}};
    bed b;
    for (size_t c = 0; c < sizeof rms / sizeof rms[0]; c++) {
        bed_begin(&b, 300 + c);
        const apus_tensor x = bed_real(&b, 2, DIMS(rms[c].rows, rms[c].h), -2, 2);
        const apus_tensor w = bed_real(&b, 1, DIMS(rms[c].width != 0 ? (int64_t)rms[c].width : rms[c].h), -1, 1);
        const apus_tensor y = apus_rms_norm(b.g, x, w, 1e-3, (int64_t)rms[c].width, rms[c].offset);
        check_gradients(&b, &y, 1, "rms_norm");
        bed_end(&b);
    }
    for (int bias = 0; bias < 2; bias++) {
        bed_begin(&b, 320);
        apus_tensor in[3] = {bed_real(&b, 2, DIMS(3, 7), -2, 2), bed_real(&b, 1, DIMS(7), -1, 1), apus_none()};
        if (bias)
            in[2] = bed_real(&b, 1, DIMS(7), -1, 1);
        const apus_tensor y = EMIT(&b, "layer_norm", bias ? 3 : 2, in, ATTRS(1e-3), 1);
        check_gradients(&b, &y, 1, "layer_norm");
        bed_end(&b);
    }
}

static void gradients_of_rope(void **state)
{
    (void)state;
    static const int32_t positions[5] = {0, 1, 7, 2, 40}, lengths[5] = {3, 3, 9, 9, 41};
    bed b;
    for (int c = 0; c < 8; c++) {
        bed_begin(&b, 400 + (uint64_t)c);
        const int mode = c % 3, partial = c >= 3;
        const int64_t half = partial ? 2 : 4;
        const apus_tensor x = bed_real(&b, 2, DIMS(5, 16), -1, 1);
        const apus_tensor pos = bed_i32(&b, 1, DIMS(5), positions), len = bed_i32(&b, 1, DIMS(5), lengths);
        const apus_tensor f = mode == 2 ? bed_real(&b, 2, DIMS(2, half), 0.1, 1) : bed_real(&b, 1, DIMS(half), 0.1, 1);
        b.in[b.n_in - 1].real = NULL; /* frequencies take no gradient */
        const apus_rope_spec s = {
            .head_dim = 8, .rotary_dim = (int32_t)half * 2, .scale = c >= 6 ? 1.3 : 1.0, .mode = mode, .limit = 4, .factor = 2, .base = 100};
        const apus_tensor y = apus_rope(b.g, x, pos, len, f, &s);
        check_gradients(&b, &y, 1, "rope");
        bed_end(&b);
    }
}

static void gradients_of_attention(void **state)
{
    (void)state;
    static const struct {
        double attrs[6]; /* heads kv_heads head_dim scale window softcap */
        int64_t n_segments;
        int32_t segments[6 * 4];
    } cases[] = {
        {{2, 2, 3, 0.7, 0, 0}, 1, {0, 9, -1, 0}},
        {{4, 2, 3, 0.7, 0, 0}, 2, {0, 4, -1, 0, 4, 5, -1, 0}},
        {{4, 1, 2, 0.5, 3, 0}, 2, {0, 6, -1, 0, 6, 3, -1, 0}},
        {{2, 1, 4, 0.5, 0, 1.5}, 3, {0, 3, -1, 0, 3, 4, 0, 0, 7, 2, 0, 0}},                                     /* two answers of one prompt */
        {{2, 2, 2, 1.0, 4, 2.0}, 4, {0, 2, -1, 0, 2, 2, 0, 0, 4, 3, 1, 0, 7, 2, 0, 0}},                         /* a parent's parent, a window */
        {{6, 3, 2, 0.8, 0, 0}, 6, {0, 1, -1, 0, 1, 0, -1, 0, 1, 3, 0, 0, 4, 0, 2, 0, 4, 2, 2, 0, 6, 3, -1, 0}}, /* empty segments */
    };
    bed b;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        bed_begin(&b, 500 + c);
        b.extents[0] = 9;
        b.extents[1] = cases[c].n_segments;
        const int64_t wide = (int64_t)(cases[c].attrs[0] * cases[c].attrs[2]), narrow = (int64_t)(cases[c].attrs[1] * cases[c].attrs[2]);
        const apus_tensor in[4] = {bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, wide), -1, 1), bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, narrow), -1, 1),
                                   bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, narrow), -1, 1),
                                   bed_i32(&b, 2, DIMS(APUS_DIM_SEGMENTS, 4), cases[c].segments)};
        const apus_tensor y = EMIT(&b, "attention", 4, in, cases[c].attrs, 6);
        check_gradients(&b, &y, 1, "attention");
        bed_end(&b);
    }
}

static void gradients_of_the_head(void **state)
{
    (void)state;
    bed b;
    for (int c = 0; c < 4; c++) {
        bed_begin(&b, 600 + (uint64_t)c);
        b.extents[2] = 5;
        const apus_tensor in[3] = {bed_real(&b, 2, DIMS(APUS_DIM_SCORED, 3), -1, 1), bed_real(&b, 2, DIMS(7, 3), -1, 1),
                                   bed_ids(&b, APUS_DIM_SCORED, 7)};
        const apus_tensor y = EMIT(&b, "token_logprob", 3, in, ATTRS(c & 1 ? 2.0 : 1.0, c & 2 ? 1.5 : 0.0), 2);
        check_gradients(&b, &y, 1, "token_logprob");
        bed_end(&b);
    }
}

/* A graph with shared subexpressions, a tied weight and a stop_gradient. */
static void gradients_of_a_small_model(void **state)
{
    (void)state;
    bed b;
    bed_begin(&b, 700);
    b.extents[0] = 4;
    const apus_tensor w = bed_real(&b, 2, DIMS(6, 4), -1, 1), ids = bed_ids(&b, APUS_DIM_TOKENS, 6);
    const apus_tensor norm = bed_real(&b, 1, DIMS(4), 0.5, 1.5), up = bed_real(&b, 2, DIMS(8, 4), -1, 1), down = bed_real(&b, 2, DIMS(4, 8), -1, 1);
    const apus_tensor e[2] = {w, ids};
    apus_tensor x = EMIT(&b, "embedding", 2, e, NULL, 0);
    for (int l = 0; l < 2; l++) {
        const apus_tensor h = apus_rms_norm(b.g, x, norm, 1e-5, 0, 0.0);
        x = apus_add(b.g, x, apus_matmul(b.g, apus_silu(b.g, apus_matmul(b.g, h, up)), down));
    }
    const apus_tensor head[3] = {x, w, bed_ids(&b, APUS_DIM_TOKENS, 6)};
    const apus_tensor y[2] = {EMIT(&b, "token_logprob", 3, head, NULL, 0), apus_mul(b.g, x, apus_stop_gradient(b.g, apus_affine(b.g, x, 0.0, 2.0)))};
    check_gradients(&b, y, 2, "a small model");
    bed_end(&b);
}

static void gradients_flow_only_where_they_should(void **state)
{
    (void)state;
    bed b;
    bed_begin(&b, 710);
    const apus_tensor x = bed_real(&b, 1, DIMS(3), -1, 1), z = bed_real(&b, 1, DIMS(3), -1, 1);
    const apus_tensor y = apus_sum(b.g, apus_stop_gradient(b.g, x)), one = apus_scalar(b.g, 1.0);
    const apus_tensor wrt[3] = {x, z, y};
    apus_tensor d[3];
    apus_graph_gradients(b.g, &y, &one, 1, wrt, 3, d);
    bed_check(&b);
    assert_true(apus_is_none(d[0]) && apus_is_none(d[1]));
    assert_int_equal(d[2].id, one.id);
    const size_t before = b.g->n_nodes;
    const apus_tensor w = apus_sum(b.g, apus_mul(b.g, x, z));
    apus_graph_gradients(b.g, &w, &one, 1, &z, 1, d); /* nothing is built for x */
    assert_false(apus_is_none(d[0]));
    assert_int_equal(b.g->n_nodes - before, 4); /* mul, sum, fill, mul */
    note(&b);
    bed_end(&b);
}

/* ---------------------------------------------------------------- decompositions */

static void decompositions(void **state)
{
    (void)state;
    for (size_t o = 0; o < apus_op_count(); o++) {
        const apus_op *op = apus_op_at(o);
        bed b;
        size_t n, m;
        if (op->decompose == NULL)
            continue;
        bed_begin(&b, 800 + o);
        const int random = strcmp(op->name, "apus.dropout_grad/1") == 0;
        apus_tensor in[APUS_MAX_INPUTS], out[APUS_MAX_OUTPUTS];
        double attrs[APUS_MAX_ATTRS] = {random ? 0.3 : 0.0};
        for (uint32_t i = 0; i < op->min_inputs && !random; i++)
            in[i] = bed_real(&b, 2, DIMS(7, 9), -6, 6);
        if (random) {
            in[0] = bed_real(&b, 2, DIMS(2, 9), -6, 6);
            in[1] = bed_i64(&b, 2, DIMS(3, 4));
            in[2] = bed_i64(&b, 2, DIMS(1, 1));
        }
        const uint32_t n_attrs = ((const apus_op_entry *)op)->n_attrs;
        const apus_tensor whole = apus_graph_table()->emit(b.g, op->name, in, op->min_inputs, attrs, n_attrs);
        op->decompose(b.g, in, op->min_inputs, attrs, out);
        bed_check(&b);
        note(&b);
        for (uint32_t k = 0; k < op->n_outputs; k++) {
            double *x = bed_value(&b, ref, apus_graph_table()->output(b.g, whole, k), &n);
            double *y = bed_value(&b, ref, out[k], &m);
            assert_int_equal(n, m);
            for (size_t i = 0; i < n; i++)
                if (!(fabs(x[i] - y[i]) <= 1e-12 * (1.0 + fabs(x[i]))))
                    fail_msg("%s: output %u, element %zu: %.17g, decomposed %.17g", op->name, k, i, x[i], y[i]);
            free(x);
            free(y);
        }
        bed_end(&b);
    }
}

/* ---------------------------------------------------------------- values from PyTorch */

static apus_node *golden;

static double *golden_values(const char *key, size_t *n)
{
    const apus_node_api *api = apus_nodes();
    if (golden == NULL) {
        apus_error err;
        FILE *f = fopen(APUS_TEST_GOLDEN "/ops.json", "rb");
        assert_non_null(f);
        static char text[1 << 20];
        const size_t length = fread(text, 1, sizeof text, f);
        (void)fclose(f);
        golden = api->parse_json(text, length, "ops.json", &err);
        if (golden == NULL)
            fail_msg("%s", err.message);
    }
    const apus_node *list = api->get(golden, key);
    *n = api->length(list);
    if (*n == 0)
        fail_msg("ops.json has no %s", key);
    double *v = calloc(*n, sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < *n; i++)
        v[i] = api->as_float(api->at(list, i), NAN);
    return v;
}

/* Both sides compute their inputs: sin(3 k + seed), k = 0, 1, … */
static apus_tensor wave(bed *b, uint32_t ndim, const int64_t *dims, double seed)
{
    const apus_tensor t = bed_real(b, ndim, dims, 0, 1);
    bed_input *in = &b->in[b->n_in - 1];
    for (size_t i = 0; i < in->n; i++)
        in->real[i] = sin(3.0 * (double)i + seed);
    return t;
}

static void check_golden(bed *b, apus_tensor t, const char *key)
{
    size_t n, m;
    bed_check(b);
    note(b);
    double *expected = golden_values(key, &m), *v = bed_value(b, ref, t, &n);
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++)
        if (!(fabs(v[i] - expected[i]) <= 1e-11 * (1.0 + fabs(expected[i]))))
            fail_msg("%s: element %zu is %.15g, PyTorch gives %.15g", key, i, v[i], expected[i]);
    free(expected);
    free(v);
}

static void values(void **state)
{
    (void)state;
    bed b;
    bed_begin(&b, 900);
    const apus_tensor x = apus_scale(b.g, wave(&b, 2, DIMS(5, 8), 0.1), 3.0), y = wave(&b, 2, DIMS(5, 8), 0.2);
    const apus_tensor w = wave(&b, 1, DIMS(8), 0.3), bias = wave(&b, 1, DIMS(8), 0.4), dy = wave(&b, 2, DIMS(5, 8), 0.5);
    apus_tensor in[7];
    check_golden(&b, apus_silu(b.g, x), "silu");
    check_golden(&b, apus_gelu(b.g, x, 0), "gelu");
    check_golden(&b, apus_gelu(b.g, x, 1), "gelu_tanh");
    check_golden(&b, apus_softplus(b.g, x), "softplus");
    check_golden(&b, apus_log_sigmoid(b.g, x), "log_sigmoid");
    check_golden(&b, apus_swiglu(b.g, x, y), "swiglu");
    check_golden(&b, apus_expm1(b.g, x), "expm1");
    check_golden(&b, apus_sign(b.g, x), "sign");
    check_golden(&b, apus_rms_norm(b.g, x, w, 1e-5, 0, 0.0), "rms_norm");
    check_golden(&b, apus_rms_norm(b.g, x, wave(&b, 1, DIMS(4), 0.3), 1e-5, 4, 1.0), "rms_norm_groups");
    check_golden(&b, apus_layer_norm(b.g, x, w, bias, 1e-5), "layer_norm");
    check_golden(&b, apus_sum_rows(b.g, x), "sum_rows");
    in[0] = x;
    check_golden(&b, EMIT(&b, "sum_squares", 1, in, NULL, 0), "sum_squares");
    in[0] = dy, in[1] = x;
    check_golden(&b, EMIT(&b, "silu_grad", 2, in, NULL, 0), "silu_grad");
    check_golden(&b, EMIT(&b, "gelu_grad", 2, in, ATTRS(0), 1), "gelu_grad");
    check_golden(&b, EMIT(&b, "gelu_grad", 2, in, ATTRS(1), 1), "gelu_tanh_grad");
    in[2] = w;
    const apus_tensor dl = EMIT(&b, "layer_norm_grad", 3, in, ATTRS(1e-5), 1);
    check_golden(&b, dl, "layer_norm_dx");
    check_golden(&b, apus_graph_table()->output(b.g, dl, 1), "layer_norm_dw");
    check_golden(&b, apus_graph_table()->output(b.g, dl, 2), "layer_norm_db");
    in[0] = x, in[1] = wave(&b, 2, DIMS(6, 8), 0.6), in[2] = bed_i32(&b, 1, DIMS(5), (const int32_t[]){0, 5, 3, 3, 1});
    check_golden(&b, EMIT(&b, "token_logprob", 3, in, ATTRS(0.5, 2.0), 2), "token_logprob");
    bed_end(&b);
}

static void values_of_rope(void **state)
{
    (void)state;
    bed b;
    bed_begin(&b, 910);
    const apus_tensor x = wave(&b, 2, DIMS(5, 16), 0.1);
    const apus_tensor pos = bed_i32(&b, 1, DIMS(5), (const int32_t[]){0, 1, 2, 3, 70});
    const apus_tensor len = bed_i32(&b, 1, DIMS(5), (const int32_t[]){71, 71, 71, 71, 71});
    double f[4];
    for (int i = 0; i < 4; i++)
        f[i] = pow(100.0, -i / 4.0);
    const apus_tensor freqs = apus_graph_table()->constant(b.g, f, 1, DIMS(4));
    apus_rope_spec s = {.head_dim = 8, .rotary_dim = 8, .scale = 1.0};
    check_golden(&b, apus_rope(b.g, x, pos, len, freqs, &s), "rope");
    s.mode = 1, s.limit = 32, s.factor = 2, s.base = 100; /* transformers' dynamic NTK beyond its limit */
    check_golden(&b, apus_rope(b.g, x, pos, len, freqs, &s), "rope_dynamic");
    s.limit = 71; /* not beyond */
    check_golden(&b, apus_rope(b.g, x, pos, len, freqs, &s), "rope");
    bed_end(&b);
}

static void values_of_attention(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 920);
    apus_tensor in[4] = {wave(&b, 2, DIMS(6, 16), 0.1), wave(&b, 2, DIMS(6, 8), 0.2), wave(&b, 2, DIMS(6, 8), 0.3),
                         bed_i32(&b, 2, DIMS(2, 4), (const int32_t[]){0, 2, -1, 0, 2, 4, -1, 0})};
    apus_tensor y = EMIT(&b, "attention", 4, in, ATTRS(4, 2, 4, 0.5), 4);
    check_golden(&b, y, "attention");
    check_golden(&b, apus_graph_table()->output(b.g, y, 1), "attention_lse");
    check_golden(&b, EMIT(&b, "attention", 4, in, ATTRS(4, 2, 4, 0.5, 2, 1.5), 6), "attention_window_softcap");

    /* Two answers of one prompt, packed behind it, see what each would see alone. */
    in[3] = bed_i32(&b, 2, DIMS(3, 4), (const int32_t[]){0, 2, -1, 0, 2, 2, 0, 0, 4, 2, 0, 0});
    y = EMIT(&b, "attention", 4, in, ATTRS(4, 2, 4, 0.5, 3, 0), 6);
    double *packed = bed_value(&b, ref, y, &n);
    const apus_tensor rows = bed_i32(&b, 1, DIMS(4), (const int32_t[]){0, 1, 4, 5});
    const apus_tensor alone[4] = {apus_gather(b.g, in[0], rows), apus_gather(b.g, in[1], rows), apus_gather(b.g, in[2], rows),
                                  bed_i32(&b, 2, DIMS(1, 4), (const int32_t[]){0, 4, -1, 0})};
    double *one = bed_value(&b, ref, EMIT(&b, "attention", 4, alone, ATTRS(4, 2, 4, 0.5, 3, 0), 6), &n);
    for (size_t i = 0; i < 16; i++) {
        assert_true(fabs(packed[4 * 16 + i] - one[2 * 16 + i]) < 1e-14);
        assert_true(fabs(packed[5 * 16 + i] - one[3 * 16 + i]) < 1e-14);
    }
    free(packed);
    free(one);
    note(&b);
    bed_end(&b);
}

/* The paged cache gives what plain attention gives, however the prompt is cut and wherever its pages lie. */
static void cached_attention(void **state)
{
    (void)state;
    enum { TOKENS = 7, PAGE = 2, SLOTS = 16 };
    static const int32_t pages[4] = {6, 1, 4, 3};
    static const int64_t cuts[] = {3, 1, 1, 2};
    bed b;
    apus_error err;
    size_t n;
    double q[TOKENS * 8], k[TOKENS * 4], v[TOKENS * 4], cache[2][SLOTS * 4] = {{0}};
    bed_begin(&b, 930);
    const apus_tensor plain[4] = {wave(&b, 2, DIMS(TOKENS, 8), 0.1), wave(&b, 2, DIMS(TOKENS, 4), 0.2), wave(&b, 2, DIMS(TOKENS, 4), 0.3),
                                  bed_i32(&b, 2, DIMS(1, 4), (const int32_t[]){0, TOKENS, -1, 0})};
    double *expected = bed_value(&b, ref, EMIT(&b, "attention", 4, plain, ATTRS(2, 1, 4, 0.5, 5, 0), 6), &n);
    memcpy(q, b.in[0].real, sizeof q);
    memcpy(k, b.in[1].real, sizeof k);
    memcpy(v, b.in[2].real, sizeof v);
    bed_end(&b);
    int64_t at = 0;
    for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; at += cuts[c++]) {
        int32_t slots[TOKENS];
        const int32_t table[8] = {0, (int32_t)cuts[c], (int32_t)(at + cuts[c]), 0, pages[0], pages[1], pages[2], pages[3]};
        bed_begin(&b, 931);
        b.extents[0] = cuts[c];
        for (int64_t i = 0; i < cuts[c]; i++)
            slots[i] = pages[(at + i) / PAGE] * PAGE + (int32_t)((at + i) % PAGE);
        apus_tensor in[4] = {bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 8), 0, 1), bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 4), 0, 1),
                             bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 4), 0, 1), bed_i32(&b, 1, DIMS(APUS_DIM_TOKENS), slots)};
        memcpy(b.in[0].real, q + at * 8, (size_t)cuts[c] * 8 * sizeof *q);
        memcpy(b.in[1].real, k + at * 4, (size_t)cuts[c] * 4 * sizeof *q);
        memcpy(b.in[2].real, v + at * 4, (size_t)cuts[c] * 4 * sizeof *q);
        for (int i = 0; i < 2; i++) {
            const apus_tensor write[3] = {apus_graph_variable(b.g, i == 0 ? "keys" : "values", APUS_REAL, 2, DIMS(SLOTS, 4)), in[1 + i], in[3]};
            in[1 + i] = EMIT(&b, "kv_write", 3, write, NULL, 0);
        }
        in[3] = bed_i32(&b, 2, DIMS(1, 8), table);
        const apus_tensor y = EMIT(&b, "attention_cached", 4, in, ATTRS(2, 1, 4, 0.5, 5, 0, PAGE), 7);
        bed_check(&b);
        note(&b);
        apus_plan *p = bed_plan(&b, ref, &y, 1, APUS_RECOMPUTE_CHEAP);
        assert_int_equal(apus_plan_bind(p, "keys", cache[0], &err), APUS_OK);
        assert_int_equal(apus_plan_bind(p, "values", cache[1], &err), APUS_OK);
        bed_run(&b, p);
        double *got = bed_output(p, 0, &n);
        for (size_t i = 0; i < n; i++)
            if (!(fabs(got[i] - expected[at * 8 + (int64_t)i]) < 1e-14))
                fail_msg("token %lld: %.15g, expected %.15g", (long long)at, got[i], expected[at * 8 + (int64_t)i]);
        free(got);
        apus_plan_free(p);
        bed_end(&b);
    }
    free(expected);
}

static void dropout_is_a_function_of_its_key(void **state)
{
    (void)state;
    enum { TOKENS = 64, WIDE = 64 };
    int64_t token[TOKENS];
    bed b;
    size_t n;
    bed_begin(&b, 940);
    for (int64_t t = 0; t < TOKENS; t++)
        token[t] = t < 32 ? t : ((int64_t)1 << 32) + t - 32; /* the high word counts too */
    const apus_tensor x = bed_real(&b, 2, DIMS(TOKENS, WIDE), 1, 2), tok = bed_i64(&b, TOKENS, token), seed = bed_i64(&b, 2, DIMS(7, 3));
    double *y = bed_value(&b, ref, apus_dropout(b.g, x, tok, seed, 0.25, 5), &n);
    double *same = bed_value(&b, ref, apus_dropout(b.g, x, tok, seed, 0.25, 6), &n);
    size_t kept = 0, differ = 0, halves = 0;
    for (size_t i = 0; i < n; i++) {
        kept += y[i] != 0.0;
        differ += (y[i] != 0.0) != (same[i] != 0.0);
        halves += i < n / 2 && (y[i] != 0.0) != (y[i + n / 2] != 0.0);
        assert_true(y[i] == 0.0 || fabs(y[i] - b.in[0].real[i] / 0.75) < 1e-15);
    }
    assert_true(fabs((double)kept / (double)n - 0.75) < 0.03);
    assert_true(differ > n / 4 && halves > n / 8);
    uint32_t words[4];
    apus_random_dropout(7, 3, 5, token[40], 2, words);
    assert_true((y[40 * WIDE + 9] != 0.0) == (words[1] >= apus_random_dropout_bound(0.25)));
    free(y);
    free(same);
    bed_end(&b);
}

/* Known answers from the authors' kat_vectors. */
static void philox(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        apus_philox4x32(known[i].key, known[i].counter, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

/* ---------------------------------------------------------------- shapes */

static void expect_error(bed *b, const char *part)
{
    apus_error err = {.message = ""};
    if (apus_graph_status(b->g, &err) == APUS_OK || strstr(err.message, part) == NULL)
        fail_msg("expected an error with '%s', got '%s'", part, err.message);
}

static void shape_errors(void **state)
{
    (void)state;
    bed b;
    for (int c = 0; c < 22; c++) {
        bed_begin(&b, 1000);
        const apus_tensor x = bed_real(&b, 2, DIMS(3, 4), 0, 1), y = bed_real(&b, 2, DIMS(3, 5), 0, 1), v = bed_real(&b, 1, DIMS(4), 0, 1);
        const apus_tensor i = bed_ids(&b, 3, 2), none = apus_none();
        const apus_tensor q = apus_graph_variable(b.g, "q", APUS_Q4_0, 2, DIMS(4, 32));
        const apus_tensor ix[2] = {x, i}, xv[2] = {x, v}, xxx[4] = {x, x, x, i}, qi[2] = {q, i};
        const apus_tensor heads[4] = {x, x, x, bed_i32(&b, 2, DIMS(1, 4), (const int32_t[]){0, 3, -1, 0})};
        const char *part = "";
        /* clang-format off */
        switch (c) {
        case 0: (void)apus_add(b.g, x, y), part = "apus.add/1([3,4], [3,5]): shapes differ"; break;
        case 1: (void)apus_add(b.g, x, i), part = "input 1 is not of numbers"; break;
        case 2: (void)apus_add(b.g, x, none), part = "input 1 is no tensor"; break;
        case 3: (void)apus_emit1(b.g, "apus.nothing/1", x, NULL, 0), part = "no op named 'apus.nothing/1'"; break;
        case 4: (void)apus_emit1(b.g, "apus.add/1", x, NULL, 0), part = "takes 2 to 2 inputs"; break;
        case 5: (void)apus_emit1(b.g, "apus.exp/1", x, ATTRS(1), 1), part = "takes 0 attributes"; break;
        case 6: (void)apus_matmul(b.g, x, y), part = "needs x [M,I] and W [O,I]"; break;
        case 7: (void)apus_columns(b.g, x, 2, 3), part = "columns 2 to 5 of 4"; break;
        case 8: (void)apus_gather(b.g, x, v), part = "needs index i32"; break;
        case 9: (void)apus_add_row(b.g, y, v), part = "needs x [T,H] and b [H]"; break;
        case 10: (void)apus_rms_norm(b.g, x, v, 1e-5, 3, 0), part = "groups of 3 do not divide 4"; break;
        case 11: (void)apus_rms_norm(b.g, y, v, 1e-5, 0, 0), part = "needs a weight [5]"; break;
        case 12: (void)EMIT(&b, "attention", 4, xxx, NULL, 0), part = "need values"; break;
        case 13: (void)EMIT(&b, "attention", 4, heads, ATTRS(3, 2, 1, 1), 4), part = "kv_heads must divide heads"; break;
        case 14: (void)EMIT(&b, "attention", 4, xxx, ATTRS(2, 2, 2, 1), 4), part = "needs segments i32 [S,4]"; break;
        case 15: (void)apus_add(b.g, q, q), part = "not of numbers"; break;
        case 16: (void)EMIT(&b, "embedding", 2, qi, NULL, 0); (void)apus_sum(b.g, i), part = "input is not of numbers"; break;
        case 17: (void)apus_graph_variable(b.g, "r", APUS_Q4_0, 1, DIMS(33)), part = "do not divide into Q4_0 blocks"; break;
        case 18: (void)apus_graph_variable(b.g, "q", APUS_REAL, 1, DIMS(4)), part = "declared as Q4_0[4,32] and as [4]"; break;
        case 19: apus_graph_assign(b.g, x, x), part = "not a variable"; break;
        case 20: apus_graph_accumulate(b.g, apus_graph_variable(b.g, "z", APUS_REAL, 1, DIMS(4)), x), part = "is [4], the value is [3,4]"; break;
        default: (void)apus_emit2(b.g, "apus.fill/1", xv[0], ix[0], NULL, 0), part = "the value must be one number"; break;
        }
        /* clang-format on */
        expect_error(&b, part);
        assert_true(apus_is_none(apus_add(b.g, x, x))); /* sticky: nothing is built after an error */
        expect_error(&b, part);
        bed_end(&b);
    }
}

static void equal_nodes_are_built_once(void **state)
{
    (void)state;
    bed b;
    bed_begin(&b, 1100);
    const apus_tensor x = bed_real(&b, 1, DIMS(3), 0, 1);
    const apus_tensor a = apus_affine(b.g, apus_exp(b.g, x), 2, 0), c = apus_affine(b.g, apus_exp(b.g, x), 2, 0);
    assert_int_equal(a.id, c.id);
    assert_int_not_equal(a.id, apus_affine(b.g, apus_exp(b.g, x), 2, 1).id);
    assert_int_equal(apus_scalar(b.g, 2.5).id, apus_scalar(b.g, 2.5).id);
    assert_int_not_equal(apus_scalar(b.g, 2.5).id, apus_scalar(b.g, 2.0).id);
    for (int i = 0; i < 5000; i++) /* the table grows */
        (void)apus_scale(b.g, x, (double)i);
    assert_int_equal(apus_affine(b.g, apus_exp(b.g, x), 2, 0).id, a.id);
    bed_end(&b);
}

static void every_op_is_exercised(void **state)
{
    (void)state;
    for (size_t i = 0; i < apus_op_count(); i++)
        if (!exercised[i])
            fail_msg("no test runs %s", apus_op_at(i)->name);
}

static void element_types(void **state)
{
    (void)state;
    assert_int_equal(apus_dtype_row_bytes(APUS_Q4_K, 512), 288);
    assert_int_equal(apus_dtype_row_bytes(APUS_Q4_K, 128), 0);
    assert_int_equal(apus_dtype_row_bytes(APUS_BF16, 3), 6);
    assert_int_equal(apus_dtype_size(APUS_Q8_0), 0);
    assert_int_equal(apus_dtype_size(APUS_I64), 8);
    assert_int_equal(apus_dtype_parse("bf16"), APUS_BF16);
    assert_int_equal(apus_dtype_parse("bfloat16"), APUS_BF16);
    assert_int_equal(apus_dtype_parse("float32"), APUS_F32);
    assert_int_equal(apus_dtype_parse("IQ4_nl"), APUS_IQ4_NL);
    assert_int_equal(apus_dtype_parse("float"), -1);
    assert_string_equal(apus_dtype_name(APUS_Q5_1), "Q5_1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_of_elementwise),
        cmocka_unit_test(gradients_at_ties),
        cmocka_unit_test(gradients_of_sums_and_indexing),
        cmocka_unit_test(gradients_of_norms),
        cmocka_unit_test(gradients_of_rope),
        cmocka_unit_test(gradients_of_attention),
        cmocka_unit_test(gradients_of_the_head),
        cmocka_unit_test(gradients_of_a_small_model),
        cmocka_unit_test(gradients_flow_only_where_they_should),
        cmocka_unit_test(decompositions),
        cmocka_unit_test(values),
        cmocka_unit_test(values_of_rope),
        cmocka_unit_test(values_of_attention),
        cmocka_unit_test(cached_attention),
        cmocka_unit_test(dropout_is_a_function_of_its_key),
        cmocka_unit_test(philox),
        cmocka_unit_test(shape_errors),
        cmocka_unit_test(equal_nodes_are_built_once),
        cmocka_unit_test(every_op_is_exercised),
        cmocka_unit_test(element_types),
    };
    const int failed = cmocka_run_group_tests(tests, setup, teardown);
    apus_nodes()->release(golden);
    return failed;
}
