/*
 * Plans: memory that is reused is never read too late, recomputing changes no bit, effects land once and in order, pairs
 * are fused only where that is the same, extents below capacity and of zero work, and what is wrong is said.
 */
#include "core/graph/toy.h"

/* ---------------------------------------------------------------- a small decoder */

enum { WIDE = 8, HEADS = 2, INNER = 12, VOCABULARY = 11, LAYERS = 4, PARAMETERS = 1 + LAYERS * 9 };

typedef struct decoder {
    apus_tensor loss, hidden, parameters[PARAMETERS], gradients[PARAMETERS];
    double *values[PARAMETERS], *sums[PARAMETERS];
    size_t n[PARAMETERS];
    size_t count;
} decoder;

static apus_tensor parameter(bed *b, decoder *d, uint32_t ndim, const int64_t *dims)
{
    char name[32];
    (void)snprintf(name, sizeof name, "p%zu", d->count);
    size_t n = 1;
    for (uint32_t i = 0; i < ndim; i++)
        n *= (size_t)dims[i];
    d->n[d->count] = n;
    d->values[d->count] = calloc(n, sizeof(double));
    d->sums[d->count] = calloc(n, sizeof(double));
    for (size_t i = 0; i < n; i++)
        d->values[d->count][i] = bed_random(31 + d->count, i, -0.7, 0.7);
    return d->parameters[d->count++] = apus_graph_variable(b->g, name, APUS_REAL, ndim, dims);
}

static const int32_t tokens[12] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}, targets[12] = {1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9};
static const int32_t positions[12] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6}, lengths[12] = {5, 5, 5, 5, 5, 7, 7, 7, 7, 7, 7, 7};
static const int32_t segments[8] = {0, 5, -1, 0, 5, 7, -1, 0};

/* A decoder with a tied head; gradients added to variables "g0" …; the mean of the tokens' log-probabilities is the loss. */
static void decoder_build(bed *b, decoder *d, int effects)
{
    memset(d, 0, sizeof *d);
    const apus_graph_api *api = apus_graph_table();
    double frequencies[2] = {1.0, 0.1};
    const apus_tensor ids = bed_i32(b, 1, DIMS(APUS_DIM_TOKENS), tokens), pos = bed_i32(b, 1, DIMS(APUS_DIM_TOKENS), positions);
    const apus_tensor len = bed_i32(b, 1, DIMS(APUS_DIM_TOKENS), lengths), seg = bed_i32(b, 2, DIMS(APUS_DIM_SEGMENTS, 4), segments);
    const apus_tensor next = bed_i32(b, 1, DIMS(APUS_DIM_TOKENS), targets), freqs = api->constant(b->g, frequencies, 1, DIMS(2));
    const apus_rope_spec rope = {.head_dim = 4, .rotary_dim = 4, .scale = 1.0};
    const apus_tensor table = parameter(b, d, 2, DIMS(VOCABULARY, WIDE));
    const apus_tensor e[2] = {table, ids};
    apus_tensor x = EMIT(b, "embedding", 2, e, NULL, 0);
    for (int l = 0; l < LAYERS; l++) {
        x = api->point(b->g, "block", l, x);
        const apus_tensor h = apus_rms_norm(b->g, x, parameter(b, d, 1, DIMS(WIDE)), 1e-5, 0, 1.0);
        const apus_tensor q = apus_matmul(b->g, h, parameter(b, d, 2, DIMS(WIDE, WIDE)));
        const apus_tensor k = apus_matmul(b->g, h, parameter(b, d, 2, DIMS(WIDE / 2, WIDE)));
        const apus_tensor v = apus_matmul(b->g, h, parameter(b, d, 2, DIMS(WIDE / 2, WIDE)));
        const apus_tensor qkv[4] = {apus_rope(b->g, q, pos, len, freqs, &rope), apus_rope(b->g, k, pos, len, freqs, &rope), v, seg};
        const apus_tensor a = EMIT(b, "attention", 4, qkv, ATTRS(HEADS, 1, 4, 0.5), 4);
        x = apus_add(b->g, x, apus_matmul(b->g, a, parameter(b, d, 2, DIMS(WIDE, WIDE))));
        const apus_tensor m = apus_rms_norm(b->g, x, parameter(b, d, 1, DIMS(WIDE)), 1e-5, 0, 1.0);
        const apus_tensor gate = apus_matmul(b->g, m, parameter(b, d, 2, DIMS(INNER, WIDE)));
        const apus_tensor up = apus_matmul(b->g, m, parameter(b, d, 2, DIMS(INNER, WIDE)));
        x = apus_add(b->g, x, apus_matmul(b->g, apus_swiglu(b->g, gate, up), parameter(b, d, 2, DIMS(WIDE, INNER))));
    }
    x = api->point(b->g, "block", LAYERS, x);
    d->hidden = x;
    const apus_tensor head[3] = {x, table, next};
    d->loss = apus_neg(b->g, apus_sum(b->g, EMIT(b, "token_logprob", 3, head, NULL, 0)));
    const apus_tensor one = apus_scalar(b->g, 1.0);
    apus_graph_gradients(b->g, &d->loss, &one, 1, d->parameters, d->count, d->gradients);
    for (size_t i = 0; i < d->count && effects; i++) {
        char name[32];
        int64_t dims[APUS_MAX_DIMS];
        (void)snprintf(name, sizeof name, "g%zu", i);
        const uint32_t ndim = api->shape(b->g, d->parameters[i], dims);
        apus_graph_accumulate(b->g, apus_graph_variable(b->g, name, APUS_REAL, ndim, dims), d->gradients[i]);
    }
    bed_check(b);
}

static void decoder_bind(decoder *d, apus_plan *p, int effects)
{
    char name[32];
    for (size_t i = 0; i < d->count; i++) {
        (void)snprintf(name, sizeof name, "p%zu", i);
        bed_bind(p, name, d->values[i]);
        (void)snprintf(name, sizeof name, "g%zu", i);
        if (effects)
            bed_bind(p, name, d->sums[i]);
    }
}

static void decoder_free(decoder *d)
{
    for (size_t i = 0; i < d->count; i++) {
        free(d->values[i]);
        free(d->sums[i]);
    }
}

/* Loss and gradients, one after the other, of a fresh plan. Same sizes whatever the mode. owner: caller. */
static double *decoder_run(apus_device *device, int recompute, int64_t n_tokens, int64_t capacity, int effects, size_t *n, size_t *arena)
{
    bed b;
    decoder d;
    apus_tensor all[1 + PARAMETERS];
    bed_begin(&b, 5);
    b.extents[0] = 12;
    b.extents[1] = 2;
    decoder_build(&b, &d, effects);
    all[0] = d.loss;
    memcpy(all + 1, d.gradients, sizeof d.gradients);
    b.extents[0] = b.extents[1] = capacity;
    apus_plan *p = bed_plan(&b, device, all, effects ? 1 : 1 + d.count, recompute);
    decoder_bind(&d, p, effects);
    b.extents[0] = n_tokens;
    b.extents[1] = n_tokens > 5 ? 2 : n_tokens > 0 ? 1 : 0;
    bed_run(&b, p);
    size_t total = 1, m;
    for (size_t i = 0; i < d.count; i++)
        total += d.n[i];
    double *out = calloc(total, sizeof *out);
    assert_non_null(out);
    double *loss = bed_output(p, 0, &m);
    out[0] = loss[0];
    free(loss);
    *n = 1;
    for (size_t i = 0; i < d.count; i++) {
        double *g = effects ? d.sums[i] : bed_output(p, 1 + i, &m);
        memcpy(out + *n, g, d.n[i] * sizeof *out);
        *n += d.n[i];
        if (!effects)
            free(g);
    }
    if (arena != NULL)
        *arena = apus_plan_costs(p).arena_bytes;
    apus_plan_free(p);
    decoder_free(&d);
    bed_end(&b);
    return out;
}

static void recomputing_changes_no_bit(void **state)
{
    (void)state;
    size_t n, m, arena[3];
    for (int effects = 0; effects < 2; effects++) {
        double *plain = decoder_run(ref, APUS_RECOMPUTE_NONE, 12, 12, effects, &n, &arena[0]);
        double *cheap = decoder_run(ref, APUS_RECOMPUTE_CHEAP, 12, 12, effects, &m, &arena[1]);
        double *block = decoder_run(ref, APUS_RECOMPUTE_BLOCK, 12, 12, effects, &m, &arena[2]);
        double *each = decoder_run(serial, APUS_RECOMPUTE_BLOCK, 12, 12, effects, &m, NULL); /* nor do tiles */
        assert_int_equal(n, m);
        assert_memory_equal(plain, cheap, n * sizeof *plain);
        assert_memory_equal(plain, block, n * sizeof *plain);
        assert_memory_equal(plain, each, n * sizeof *plain);
        assert_true(plain[0] > 1.0 && isfinite(plain[0]));
        double *other = decoder_run(toy, APUS_RECOMPUTE_CHEAP, 12, 12, effects, &m, NULL); /* decomposed and fused */
        bed_same(plain, other, n, 1e-12, "decomposed");
        free(plain);
        free(cheap);
        free(block);
        free(each);
        free(other);
    }
    /* With room for 600 tokens the activations outweigh the rest. */
    for (int mode = 0; mode < 3; mode++)
        free(decoder_run(ref, mode, 12, 600, 1, &n, &arena[mode]));
    assert_true(arena[APUS_RECOMPUTE_CHEAP] < arena[APUS_RECOMPUTE_NONE] * 3 / 4);
    assert_true(arena[APUS_RECOMPUTE_BLOCK] < arena[APUS_RECOMPUTE_CHEAP] * 3 / 4);
    /* As many of the blocks as one asks for: the more, the less memory (but the last, which is needed again at once); the same bits. */
    double *plain = decoder_run(ref, APUS_RECOMPUTE_CHEAP, 12, 600, 1, &n, &arena[0]);
    for (int blocks = 1; blocks < LAYERS; blocks++) {
        double *some = decoder_run(ref, APUS_RECOMPUTE_BLOCK + blocks, 12, 600, 1, &m, &arena[1]);
        assert_memory_equal(plain, some, n * sizeof *plain);
        assert_true(arena[1] < arena[0]);
        arena[0] = arena[1];
        free(some);
    }
    free(plain);
}

static void extents_below_capacity(void **state)
{
    (void)state;
    size_t n;
    for (int mode = 0; mode < 3; mode++) {
        for (int64_t t = 5; t <= 12; t += 7) { /* one segment, or both */
            double *exact = decoder_run(ref, mode, t, t, 0, &n, NULL);
            double *roomy = decoder_run(ref, mode, t, 50, 0, &n, NULL);
            assert_memory_equal(exact, roomy, n * sizeof *exact);
            free(exact);
            free(roomy);
        }
        double *nothing = decoder_run(ref, mode, 0, 12, 1, &n, NULL);
        for (size_t i = 0; i < n; i++)
            assert_true(nothing[i] == 0.0);
        free(nothing);
    }
}

/* A short run stays in the beginning of a long plan's arena. */
static void short_runs_touch_little(void **state)
{
    (void)state;
    bed b;
    decoder d;
    size_t bytes;
    bed_begin(&b, 5);
    b.extents[0] = 12;
    b.extents[1] = 2;
    decoder_build(&b, &d, 0);
    b.extents[0] = 600;
    apus_plan *p = bed_plan(&b, ref, &d.loss, 1, APUS_RECOMPUTE_CHEAP);
    decoder_bind(&d, p, 0);
    b.extents[0] = 12;
    bed_run(&b, p);
    const unsigned char *arena = apus_plan_arena(p, &bytes);
    size_t touched = bytes;
    while (touched > 0 && arena[touched - 1] == 0xff)
        touched--;
    assert_true(touched < bytes / 8); /* scratch is of capacity */
    apus_plan_free(p);
    decoder_free(&d);
    bed_end(&b);
}

/* A plan that keeps every tensor reuses nothing: what it gives is what every other plan must give. */
static void memory_is_reused_safely(void **state)
{
    (void)state;
    bed b;
    decoder d;
    apus_tensor *all;
    size_t n, m;
    for (int mode = 0; mode < 3; mode++) {
        bed_begin(&b, 5);
        b.extents[0] = 12;
        b.extents[1] = 2;
        decoder_build(&b, &d, 0);
        const size_t n_all = b.g->n_tensors;
        all = calloc(n_all, sizeof *all);
        for (size_t i = 0; i < n_all; i++)
            all[i] = (apus_tensor){(int32_t)i};
        apus_plan *keep = bed_plan(&b, ref, all, n_all, mode);
        decoder_bind(&d, keep, 0);
        bed_run(&b, keep);
        for (size_t i = 7; i < n_all; i += 13) { /* a few at a time, so that the rest may be overwritten */
            const apus_tensor some[2] = {all[i], d.loss};
            apus_plan *p = bed_plan(&b, ref, some, 2, mode);
            for (size_t v = 0; v < apus_plan_variable_count(p); v++) {
                const char *name = apus_plan_variable_at(p, v, NULL);
                bed_bind(p, name, d.values[strtol(name + 1, NULL, 10)]);
            }
            bed_run(&b, p);
            double *x = bed_output(p, 0, &n), *y = bed_output(keep, i, &m);
            assert_int_equal(n, m);
            assert_memory_equal(x, y, n * sizeof *x);
            free(x);
            free(y);
            apus_plan_free(p);
        }
        apus_plan_free(keep);
        free(all);
        decoder_free(&d);
        bed_end(&b);
    }
}

/* Which results of an op a plan of the decoder keeps in bfloat16: their number, and of all it has. */
static size_t narrow_results(const apus_plan *p, const char *op, int backward, size_t *all)
{
    size_t n = 0;
    *all = 0;
    for (size_t i = 0; i < p->order.n; i++) {
        const apus_plan_node *node = &p->nodes.at[p->order.at[i]];
        if ((op != NULL && strcmp(node->op->name, op) != 0) || node->backward != backward)
            continue;
        for (uint32_t k = 0; k < node->n_out; k++, ++*all)
            n += p->tensors.at[node->out[k]].shape.dtype == APUS_BF16;
    }
    return n;
}

/* narrow: whether the graph asks for it. owner: caller, with b and d. */
static apus_plan *narrow_plan(bed *b, decoder *d, apus_device *device, int narrow, int recompute)
{
    bed_begin(b, 5);
    b->extents[0] = 12;
    b->extents[1] = 2;
    decoder_build(b, d, 1);
    b->extents[0] = 600;
    if (narrow)
        apus_graph_narrow(b->g);
    return bed_plan(b, device, &d->loss, 1, recompute);
}

/* Kept in bfloat16 is what its kernel can write and all its readers can read so, in the forward pass of a training alone; and it does not
 * depend on what is computed again. */
static void results_are_narrowed(void **state)
{
    (void)state;
    size_t all, arena[2];
    for (int recompute = 0; recompute < 3; recompute++) {
        for (int narrow = 0; narrow < 2; narrow++) {
            static const struct {
                const char *op;
                size_t narrow, all;
            } wants[] = {
                {"apus.linear/1", 2 * LAYERS, 7 * LAYERS}, /* gate and up; rope takes no bfloat16, nor attention for v, nor the stream */
                {"apus.rope/1", 2 * LAYERS, 2 * LAYERS},
                {"apus.swiglu/1", LAYERS, LAYERS},
                {"apus.rms_norm/1", 2 * LAYERS, 2 * LAYERS},
                {"apus.attention/1", LAYERS, 2 * LAYERS}, /* lse stays */
                {"apus.embedding/1", 0, 1},               /* a block point */
                {"apus.add/1", 0, 2 * LAYERS},
            };
            bed b;
            decoder d;
            apus_plan *p = narrow_plan(&b, &d, brief, narrow, recompute);
            for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
                assert_int_equal(narrow_results(p, wants[i].op, 0, &all), narrow ? wants[i].narrow : 0);
                assert_int_equal(all, wants[i].all);
            }
            /* In the backward pass clones alone. */
            const size_t clones = narrow_results(p, NULL, 1, &all);
            assert_true(recompute == APUS_RECOMPUTE_NONE || !narrow ? clones == 0 : clones > 0);
            arena[narrow] = apus_plan_costs(p).arena_bytes;
            apus_node *told = apus_plan_describe(p);
            assert_int_equal(apus_nodes()->as_int(apus_nodes()->get(told, "BF16"), 0), apus_plan_costs(p).narrow_bytes);
            assert_int_equal(apus_plan_costs(p).narrow_bytes, narrow ? LAYERS * 600 * 2 * (4 * WIDE + WIDE / 2 + 3 * INNER) : 0);
            apus_nodes()->release(told);
            apus_plan_free(p);
            decoder_free(&d);
            bed_end(&b);
        }
        assert_true(recompute == APUS_RECOMPUTE_BLOCK || arena[1] < arena[0] * 7 / 10); /* of eight bytes two are left */
        assert_true(arena[1] < arena[0]);
    }
    bed b;
    decoder d;
    apus_plan *p = narrow_plan(&b, &d, ref, 1, APUS_RECOMPUTE_CHEAP); /* a device that keeps its real type */
    assert_int_equal(narrow_results(p, NULL, 0, &all), 0);
    apus_plan_free(p);
    decoder_free(&d);
    bed_end(&b);
}

/* ---------------------------------------------------------------- effects */

/* AdamW as an optimizer writes it: one pass over memory, and the numbers of the formula. */
static void adamw_is_one_pass(void **state)
{
    (void)state;
    enum { N = 10007 };
    static double w[N], m[N], v[N], g[N];
    bed b;
    bed_begin(&b, 1);
    const int64_t n = N;
    const apus_tensor tw = apus_graph_variable(b.g, "w", APUS_REAL, 1, &n), tm = apus_graph_variable(b.g, "m", APUS_REAL, 1, &n);
    const apus_tensor tv = apus_graph_variable(b.g, "v", APUS_REAL, 1, &n), tg = apus_graph_variable(b.g, "g", APUS_REAL, 1, &n);
    const apus_tensor rate = bed_real(&b, 1, DIMS(1), 0.01, 0.01), scale = bed_real(&b, 1, DIMS(1), 0.5, 0.5);
    const apus_tensor clipped = apus_mul(b.g, tg, scale);
    const apus_tensor m2 = apus_add(b.g, apus_scale(b.g, tm, 0.9), apus_scale(b.g, clipped, 0.1));
    const apus_tensor v2 = apus_add(b.g, apus_scale(b.g, tv, 0.95), apus_scale(b.g, apus_square(b.g, clipped), 0.05));
    const apus_tensor step = apus_div(b.g, apus_scale(b.g, m2, 10.0), apus_affine(b.g, apus_sqrt(b.g, apus_scale(b.g, v2, 20.0)), 1.0, 1e-8));
    const apus_tensor decayed = apus_mul(b.g, tw, apus_affine(b.g, apus_scale(b.g, rate, 0.1), -1.0, 1.0));
    const apus_tensor w2 = apus_sub(b.g, decayed, apus_mul(b.g, step, rate));
    apus_graph_assign(b.g, tw, w2);
    apus_graph_assign(b.g, tm, m2);
    apus_graph_assign(b.g, tv, v2);
    apus_graph_assign(b.g, tg, apus_fill(b.g, apus_scalar(b.g, 0.0), tg));
    bed_check(&b);
    apus_plan *p = bed_plan(&b, ref, NULL, 0, APUS_RECOMPUTE_NONE);
    assert_int_equal(p->steps.n, 3); /* two scalars, then everything else */
    assert_true(p->steps.at[2].count >= 15);
    assert_true(apus_plan_costs(p).arena_bytes < 2048);
    bed_bind(p, "w", w);
    bed_bind(p, "m", m);
    bed_bind(p, "v", v);
    bed_bind(p, "g", g);
    double ew[N], em[N], ev[N];
    for (int i = 0; i < N; i++) {
        w[i] = ew[i] = bed_random(1, (uint64_t)i, -1, 1);
        m[i] = em[i] = bed_random(2, (uint64_t)i, -1, 1);
        v[i] = ev[i] = bed_random(3, (uint64_t)i, 0, 1);
    }
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < N; i++) {
            g[i] = bed_random(4 + (uint64_t)s, (uint64_t)i, -1, 1);
            const double c = g[i] * 0.5;
            em[i] = 0.9 * em[i] + 0.1 * c;
            ev[i] = 0.95 * ev[i] + 0.05 * (c * c);
            ew[i] = ew[i] * (1.0 - 0.1 * 0.01) - 10.0 * em[i] / (sqrt(20.0 * ev[i]) + 1e-8) * 0.01;
        }
        bed_run(&b, p);
        bed_same(ew, w, N, 1e-14, "w");
        bed_same(em, m, N, 1e-15, "m");
        bed_same(ev, v, N, 1e-15, "v");
        for (int i = 0; i < N; i++)
            assert_true(g[i] == 0.0);
    }
    apus_plan_free(p);
    bed_end(&b);
}

static void reads_see_the_old_value(void **state)
{
    (void)state;
    enum { N = 9000 };
    static double a[N], c[N], old_a[N], old_c[N];
    apus_device *const devices[] = {ref, toy, serial};
    for (int k = 0; k < 3; k++) {
        bed b;
        size_t n;
        bed_begin(&b, 2);
        const int64_t dim = N;
        const apus_tensor ta = apus_graph_variable(b.g, "a", APUS_REAL, 1, &dim), tc = apus_graph_variable(b.g, "c", APUS_REAL, 1, &dim);
        apus_graph_assign(b.g, ta, tc); /* a swap … */
        apus_graph_assign(b.g, tc, ta);
        apus_graph_accumulate(b.g, ta, apus_scale(b.g, ta, 2.0)); /* … then a += 2 * old a: old c + 2 old a */
        const apus_tensor after = apus_sum(b.g, apus_mul(b.g, ta, apus_exp(b.g, tc)));
        apus_plan *p = bed_plan(&b, devices[k], &after, 1, APUS_RECOMPUTE_NONE);
        bed_bind(p, "a", a);
        bed_bind(p, "c", c);
        double expected = 0.0;
        for (int i = 0; i < N; i++) {
            a[i] = old_a[i] = bed_random(1, (uint64_t)i, -1, 1);
            c[i] = old_c[i] = bed_random(2, (uint64_t)i, -1, 1);
            expected += a[i] * exp(c[i]);
        }
        bed_run(&b, p);
        double *s = bed_output(p, 0, &n);
        bed_same(&expected, s, 1, 1e-14, "the sum");
        free(s);
        for (int i = 0; i < N; i++)
            if (a[i] != old_c[i] + 2.0 * old_a[i] || c[i] != old_a[i])
                fail_msg("device %d, element %d: %.17g %.17g", k, i, a[i], c[i]);
        apus_plan_free(p);
        bed_end(&b);
    }
}

/* Gradients of a weight used twice go straight into its sum: no second table is ever made. */
static void tied_weights_accumulate_in_place(void **state)
{
    (void)state;
    enum { V = 500, H = 4 };
    static double w[V * H], g[V * H], before[V * H];
    bed b;
    size_t n;
    double *gradient = NULL;
    for (int direct = 0; direct < 2; direct++) {
        bed_begin(&b, 3);
        b.extents[0] = 12;
        const apus_tensor tw = apus_graph_variable(b.g, "w", APUS_REAL, 2, DIMS(V, H));
        const apus_tensor e[2] = {tw, bed_i32(&b, 1, DIMS(APUS_DIM_TOKENS), tokens)};
        const apus_tensor head[3] = {EMIT(&b, "embedding", 2, e, NULL, 0), tw, bed_i32(&b, 1, DIMS(APUS_DIM_TOKENS), targets)};
        const apus_tensor loss = apus_sum(b.g, EMIT(&b, "token_logprob", 3, head, NULL, 0)), one = apus_scalar(b.g, 1.0);
        apus_tensor dw;
        apus_graph_gradients(b.g, &loss, &one, 1, &tw, 1, &dw);
        if (direct)
            apus_graph_accumulate(b.g, apus_graph_variable(b.g, "g", APUS_REAL, 2, DIMS(V, H)), dw);
        apus_plan *p = bed_plan(&b, ref, direct ? &loss : &dw, 1, APUS_RECOMPUTE_NONE);
        for (int i = 0; i < V * H; i++) {
            w[i] = bed_random(1, (uint64_t)i, -1, 1);
            g[i] = before[i] = bed_random(2, (uint64_t)i, -1, 1);
        }
        bed_bind(p, "w", w);
        if (!direct) {
            bed_run(&b, p);
            gradient = bed_output(p, 0, &n);
        } else {
            assert_true(apus_plan_costs(p).arena_bytes < V * H * sizeof(double));
            bed_bind(p, "g", g);
            bed_run(&b, p);
            bed_run(&b, p);
            for (int i = 0; i < V * H; i++)
                if (!(fabs(g[i] - before[i] - 2.0 * gradient[i]) < 1e-12))
                    fail_msg("element %d: %.17g, expected %.17g", i, g[i], before[i] + 2.0 * gradient[i]);
        }
        apus_plan_free(p);
        bed_end(&b);
    }
    free(gradient);
}

/* ---------------------------------------------------------------- fusing, choosing, describing */

static void pairs_are_fused(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 20);
    const apus_tensor x = bed_real(&b, 2, DIMS(5, 6), -1, 1), w = bed_real(&b, 2, DIMS(6, 6), -1, 1), o = bed_real(&b, 2, DIMS(5, 6), -1, 1);
    const apus_tensor bias = bed_real(&b, 1, DIMS(6), -1, 1), biased[3] = {x, w, bias};
    const apus_tensor l = apus_matmul(b.g, x, w), l2 = EMIT(&b, "linear", 3, biased, NULL, 0), s = apus_exp(b.g, o);
    const struct {
        apus_tensor out[2];
        size_t n_out;
        int pairs;
    } cases[] = {
        {{apus_add(b.g, l, o)}, 1, 1},
        {{apus_add(b.g, s, l2)}, 1, 1},                     /* in place of s */
        {{apus_add(b.g, s, apus_matmul(b.g, s, w))}, 1, 1}, /* but not where the product reads s */
        {{apus_add(b.g, l, o), l}, 2, 0},                   /* its own result is wanted too */
        {{apus_add(b.g, l, l)}, 1, 0},
        {{apus_add(b.g, l, apus_scalar(b.g, 1))}, 1, 0}, /* another shape */
        {{apus_sub(b.g, l, o)}, 1, 1},                   /* add(l, -o) on a backend without sub */
        {{apus_add(b.g, apus_add(b.g, l, o), s), s}, 2, 1},
        {{apus_add(b.g, l, l2)}, 1, 1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        apus_plan *p = bed_plan(&b, toy, cases[c].out, cases[c].n_out, APUS_RECOMPUTE_NONE);
        toy_pairs = 0;
        bed_run(&b, p);
        if (toy_pairs != cases[c].pairs)
            fail_msg("case %zu: %d pairs", c, toy_pairs);
        for (size_t k = 0; k < cases[c].n_out; k++) {
            double *y = bed_output(p, k, &n), *expected = bed_value(&b, ref, cases[c].out[k], &n);
            bed_same(expected, y, n, 1e-14, "a pair");
            free(y);
            free(expected);
        }
        apus_plan_free(p);
    }
    bed_end(&b);
}

/* What follows with one input, or joins two that are alike; not where somebody else reads what lies between. */
static void patterns_are_fused(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 27);
    const apus_tensor x = bed_real(&b, 2, DIMS(5, 6), -1, 1), z = bed_real(&b, 2, DIMS(5, 6), -1, 1), w = bed_real(&b, 2, DIMS(6, 6), -1, 1);
    const apus_tensor u = bed_real(&b, 2, DIMS(6, 6), -1, 1), s = apus_exp(b.g, x), kept = apus_matmul(b.g, x, w);
#define XW apus_matmul(b.g, x, w)
    const struct {
        apus_tensor out[2];
        size_t n_out;
        int patterns;
    } cases[] = {
        {{apus_affine(b.g, XW, 2, 3)}, 1, 1},
        {{apus_affine(b.g, apus_matmul(b.g, s, w), 2, 3)}, 1, 1}, /* s is as large as the result, and is read until the end */
        {{apus_affine(b.g, kept, 2, 3), kept}, 2, 0},
        {{apus_maximum(b.g, XW, apus_matmul(b.g, x, u))}, 1, 1},
        {{apus_maximum(b.g, apus_matmul(b.g, s, w), apus_matmul(b.g, s, u))}, 1, 1},
        {{apus_maximum(b.g, kept, apus_matmul(b.g, x, u)), kept}, 2, 0},
        {{apus_maximum(b.g, XW, apus_matmul(b.g, z, u))}, 1, 0}, /* of another x */
        {{apus_maximum(b.g, kept, kept)}, 1, 0},
        {{apus_maximum(b.g, apus_affine(b.g, XW, 2, 3), apus_affine(b.g, apus_matmul(b.g, x, u), 4, 5))}, 1, 2},
    };
#undef XW
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        apus_plan *p = bed_plan(&b, toy, cases[c].out, cases[c].n_out, APUS_RECOMPUTE_NONE);
        toy_patterns = 0;
        bed_run(&b, p);
        if (toy_patterns != cases[c].patterns)
            fail_msg("case %zu: %d patterns", c, toy_patterns);
        for (size_t k = 0; k < cases[c].n_out; k++) {
            double *y = bed_output(p, k, &n), *expected = bed_value(&b, ref, cases[c].out[k], &n);
            bed_same(expected, y, n, 1e-14, "a pattern");
            free(y);
            free(expected);
        }
        apus_plan_free(p);
    }
    bed_end(&b);
}

/* What one call, or siblings, alone read as their left factor is made by them; nothing else. */
static void prologues_are_fused(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 28);
    const apus_tensor x = bed_real(&b, 2, DIMS(5, 6), -1, 1), o = bed_real(&b, 2, DIMS(5, 6), -1, 1), w = bed_real(&b, 2, DIMS(6, 6), -1, 1);
    const apus_tensor u = bed_real(&b, 2, DIMS(6, 6), -1, 1), thin = bed_real(&b, 2, DIMS(3, 6), -1, 1), o3 = bed_real(&b, 2, DIMS(5, 3), -1, 1);
    const apus_tensor scale = bed_real(&b, 1, DIMS(6), -1, 1), other = bed_real(&b, 1, DIMS(6), -1, 1), s = apus_tanh(b.g, o);
#define NORM(by)      apus_rms_norm(b.g, x, by, 1e-5, 0, 1.0)
#define PAIR(y, w, o) apus_add(b.g, apus_matmul(b.g, y, w), o)
    const apus_tensor one = NORM(scale), two = NORM(scale), both = NORM(scale), kept = NORM(scale), apart = NORM(scale), mixed = NORM(scale);
    const apus_tensor summed = NORM(scale), pattern = NORM(scale), weight = NORM(scale), small = NORM(scale), late = NORM(scale);
    const apus_tensor differ = NORM(scale), differs = apus_rms_norm(b.g, x, scale, 1e-2, 0, 1.0), first = NORM(scale), second = NORM(other);
    const apus_tensor late_one = PAIR(late, w, o), between = apus_tanh(b.g, late_one);
    const struct {
        apus_tensor out[3];
        size_t n_out;
        int norms, siblings;
    } cases[] = {
        {{PAIR(one, w, o)}, 1, 1, 0},
        {{PAIR(two, w, s)}, 1, 1, 0}, /* in place of s */
        {{PAIR(both, w, o), PAIR(both, u, o)}, 2, 2, 1},
        {{PAIR(kept, w, o), kept}, 2, 0, 0},
        {{PAIR(apart, w, o), apus_exp(b.g, apart)}, 2, 0, 0},
        {{PAIR(mixed, w, o), apus_matmul(b.g, mixed, u)}, 2, 0, 0}, /* by another kernel */
        {{late_one, between, PAIR(late, u, between)}, 3, 0, 0},     /* not at once */
        {{PAIR(summed, w, summed)}, 1, 0, 0},
        {{apus_maximum(b.g, apus_matmul(b.g, pattern, w), apus_matmul(b.g, pattern, u))}, 1, 1, 0},
        {{PAIR(o, apus_rms_norm(b.g, w, scale, 1e-5, 0, 1.0), PAIR(o, w, x))}, 1, 0, 0}, /* the other factor */
        {{PAIR(small, thin, o3)}, 1, 0, 0},                                              /* the kernel does not want it */
        {{PAIR(first, w, o), PAIR(second, u, o)}, 2, 2, 0},                              /* of two norms: no siblings */
        {{PAIR(differ, w, o), PAIR(differs, u, o)}, 2, 2, 0},
        {{PAIR(apus_exp(b.g, apus_tanh(b.g, weight)), w, o)}, 1, 0, 0},
    };
#undef NORM
#undef PAIR
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        apus_plan *p = bed_plan(&b, toy, cases[c].out, cases[c].n_out, APUS_RECOMPUTE_NONE);
        toy_norms = toy_siblings = 0;
        bed_run(&b, p);
        if (toy_norms != cases[c].norms || toy_siblings != cases[c].siblings)
            fail_msg("case %zu: %d norms, %d siblings", c, toy_norms, toy_siblings);
        for (size_t k = 0; k < cases[c].n_out; k++) {
            double *y = bed_output(p, k, &n), *expected = bed_value(&b, ref, cases[c].out[k], &n);
            bed_same(expected, y, n, 1e-13, "a product of what is normalised");
            free(y);
            free(expected);
        }
        apus_node *told = apus_plan_describe(p);
        int of = 0;
        for (size_t k = 0; k < apus_nodes()->length(apus_nodes()->get(told, "ops")); k++)
            of |= strstr(apus_nodes()->as_string(apus_nodes()->get(apus_nodes()->at(apus_nodes()->get(told, "ops"), k), "kernel"), NULL),
                         "toy of apus.rms_norm/1 + apus.") != NULL;
        assert_int_equal(of, cases[c].norms > 0);
        apus_nodes()->release(told);
        apus_plan_free(p);
    }
    bed_end(&b);
}

/* Pairs that read one left factor and add the same: neither result may lie where the other still reads. */
static void siblings_do_not_share_memory(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 26);
    const apus_tensor x = bed_real(&b, 2, DIMS(5, 6), -1, 1), o = bed_real(&b, 2, DIMS(5, 6), -1, 1);
    const apus_tensor w = bed_real(&b, 2, DIMS(6, 6), -1, 1), u = bed_real(&b, 2, DIMS(6, 6), -1, 1), s = apus_exp(b.g, o);
    const apus_tensor y = apus_add(b.g, apus_matmul(b.g, x, w), s), z = apus_add(b.g, apus_matmul(b.g, x, u), s);
    const apus_tensor out = apus_add(b.g, apus_tanh(b.g, y), apus_exp(b.g, z));
    apus_plan *p = bed_plan(&b, toy, &out, 1, APUS_RECOMPUTE_NONE);
    toy_siblings = 0;
    bed_run(&b, p);
    assert_int_equal(toy_siblings, 1);
    double *got = bed_output(p, 0, &n), *expected = bed_value(&b, ref, out, &n);
    bed_same(expected, got, n, 1e-13, "a sibling");
    free(got);
    free(expected);
    apus_plan_free(p);
    bed_end(&b);
}

static void unused_parts_are_pruned(void **state)
{
    (void)state;
    bed b;
    apus_error err;
    size_t n;
    bed_begin(&b, 21);
    const apus_tensor x = bed_real(&b, 1, DIMS(4), -1, 1), y = bed_real(&b, 1, DIMS(4), -1, 1);
    (void)apus_exp(b.g, apus_graph_variable(b.g, "unused", APUS_REAL, 1, DIMS(4)));
    const apus_tensor z = apus_fill(b.g, apus_sum(b.g, x), y); /* of y only the shape counts */
    apus_plan *p = bed_plan(&b, ref, &z, 1, APUS_RECOMPUTE_NONE);
    assert_true(apus_plan_uses_input(p, "in0"));
    assert_false(apus_plan_uses_input(p, "in1"));
    assert_false(apus_plan_uses_input(p, "nothing"));
    assert_int_equal(apus_plan_variable_count(p), 0);
    const apus_feed feed = {"in0", b.in[0].data};
    assert_int_equal(apus_plan_run(p, b.extents, &feed, 1, &err), APUS_OK);
    double *v = bed_output(p, 0, &n);
    assert_int_equal(n, 4);
    assert_true(fabs(v[3] - (b.in[0].real[0] + b.in[0].real[1] + b.in[0].real[2] + b.in[0].real[3])) < 1e-15);
    free(v);
    apus_plan_free(p);
    bed_end(&b);
}

static void plans_describe_themselves(void **state)
{
    (void)state;
    const apus_node_api *api = apus_nodes();
    bed b;
    bed_begin(&b, 22);
    b.extents[0] = 10;
    const apus_tensor x = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 6), -1, 1), w = apus_graph_variable(b.g, "w", APUS_REAL, 2, DIMS(5, 6));
    const apus_tensor y = apus_tanh(b.g, apus_scale(b.g, apus_matmul(b.g, x, w), 2.0));
    apus_plan *p = bed_plan(&b, ref, &y, 1, APUS_RECOMPUTE_NONE);
    static double memory[30];
    bed_bind(p, "w", memory);
    const apus_feed feed = {"in0", b.in[0].data};
    double seconds = 0.0;
    apus_error err;
    if (apus_plan_measure(p, b.extents, &feed, 1, &seconds, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_true(seconds > 0.0 && seconds < 10.0);
    const apus_plan_cost cost = apus_plan_costs(p);
    assert_true(cost.flops >= 600 && cost.flops < 800);
    assert_int_equal(cost.variable_bytes, 240);
    apus_node *d = apus_plan_describe(p);
    const apus_node *ops = api->get(d, "ops");
    assert_int_equal(api->length(ops), 2);
    assert_string_equal(api->as_string(api->get(api->at(ops, 0), "op"), NULL), "apus.linear/1");
    assert_string_equal(api->as_string(api->get(api->at(ops, 0), "kernel"), NULL), "ref_matrix");
    assert_string_equal(api->as_string(api->get(api->at(ops, 1), "op"), NULL), "elementwise");
    assert_int_equal(api->as_int(api->get(api->at(ops, 1), "nodes"), 0), 2);
    assert_true(api->as_float(api->get(api->at(ops, 0), "seconds"), 0) > 0);
    api->release(d);
    apus_plan_free(p);
    bed_end(&b);
}

/* ---------------------------------------------------------------- what is wrong is said */

static void expect(const apus_error *err, const char *part)
{
    if (strstr(err->message, part) == NULL)
        fail_msg("expected '%s' in '%s'", part, err->message);
}

static void errors(void **state)
{
    (void)state;
    bed b;
    apus_error err = {.message = ""};
    bed_begin(&b, 23);
    b.extents[0] = 3;
    const apus_tensor x = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 4), -1, 1), w = apus_graph_variable(b.g, "w", APUS_REAL, 2, DIMS(5, 4));
    const apus_tensor y = apus_matmul(b.g, x, w), g = apus_gelu(b.g, y, 0);
    apus_plan *p = NULL;
    assert_int_equal(apus_plan_new(b.g, toy, &g, 1, b.extents, 0, &p, &err), APUS_E_UNSUPPORTED);
    expect(&err, "backend toy has no kernel for apus.gelu/1");
    const apus_tensor coded = apus_matmul(b.g, x, apus_graph_variable(b.g, "coded", APUS_BF16, 2, DIMS(5, 4)));
    apus_plan_free(bed_plan(&b, ref, &coded, 1, APUS_RECOMPUTE_NONE));
    const apus_tensor none = apus_none();
    assert_int_equal(apus_plan_new(b.g, ref, &none, 1, b.extents, 0, &p, &err), APUS_E_INVALID);
    expect(&err, "output 0 is no tensor");
    assert_int_equal(apus_plan_new(b.g, ref, &y, 1, DIMS(-1, 0, 0, 0, 0), 0, &p, &err), APUS_E_INVALID);
    expect(&err, "a capacity of -1");
    assert_null(p);

    p = bed_plan(&b, ref, &y, 1, APUS_RECOMPUTE_NONE);
    apus_feed feed = {"in0", b.in[0].data};
    double out[15];
    assert_int_not_equal(apus_plan_run(p, b.extents, &feed, 1, &err), APUS_OK);
    expect(&err, "variable 'w' has no memory");
    assert_int_equal(apus_plan_bind(p, "v", out, &err), APUS_E_NOT_FOUND);
    expect(&err, "no variable named 'v'");
    static double memory[20];
    bed_bind(p, "w", memory);
    assert_int_not_equal(apus_plan_run(p, b.extents, NULL, 0, &err), APUS_OK);
    expect(&err, "input 'in0' is not given");
    assert_int_not_equal(apus_plan_run(p, b.extents, &(apus_feed){"in0", NULL}, 1, &err), APUS_OK);
    expect(&err, "input 'in0' has no data");
    assert_int_not_equal(apus_plan_run(p, DIMS(4, 0, 0, 0, 0), &feed, 1, &err), APUS_OK);
    expect(&err, "4 tokens, planned for at most 3");
    assert_int_not_equal(apus_plan_output(p, 0, out, 15, &err), APUS_OK); /* nothing has run */
    assert_int_equal(apus_plan_run(p, b.extents, &feed, 1, &err), APUS_OK);
    assert_int_equal(apus_plan_output(p, 0, out, 15, &err), APUS_OK);
    assert_int_not_equal(apus_plan_output(p, 0, out, 14, &err), APUS_OK);
    expect(&err, "has 15 elements, not 14");
    assert_int_not_equal(apus_plan_output(p, 1, out, 15, &err), APUS_OK);
    assert_null(apus_plan_output_view(p, 1).data);
    apus_plan_free(p);

    const apus_tensor gathered = apus_gather(b.g, x, bed_i32(&b, 1, DIMS(2), (const int32_t[]){0, 3}));
    p = bed_plan(&b, ref, &gathered, 1, APUS_RECOMPUTE_NONE);
    const apus_feed feeds[2] = {feed, {"in1", b.in[1].data}};
    assert_int_equal(apus_plan_run(p, b.extents, feeds, 2, &err), APUS_E_INVALID);
    expect(&err, "apus.gather/1: index 3 of 3 rows");
    apus_plan_free(p);
    (void)apus_add(b.g, x, w);
    assert_int_equal(apus_plan_new(b.g, ref, &y, 1, b.extents, 0, &p, &err), APUS_E_INVALID);
    expect(&err, "shapes differ");
    bed_end(&b);
}

static void numbers_are_checked(void **state)
{
    (void)state;
    bed b;
    apus_error err;
    bed_begin(&b, 24);
    const apus_tensor x = bed_real(&b, 1, DIMS(3), -2, -1), y = apus_sum(b.g, apus_log(b.g, x));
    assert_int_equal(setenv("APUS_CHECK_NUMBERS", "1", 1), 0);
    apus_plan *p = bed_plan(&b, serial, &y, 1, APUS_RECOMPUTE_NONE);
    assert_int_equal(unsetenv("APUS_CHECK_NUMBERS"), 0);
    const apus_feed feed = {"in0", b.in[0].data};
    assert_int_equal(apus_plan_run(p, b.extents, &feed, 1, &err), APUS_E_NUMERIC);
    expect(&err, "apus.log/1: element 0");
    apus_plan_free(p);
    bed_end(&b);
}

/* Tiles whose elements read what the tile also writes. */
static void a_tile_reads_what_it_writes(void **state)
{
    (void)state;
    enum { N = 20000 };
    static double a[N], c[N];
    bed b;
    bed_begin(&b, 25);
    const int64_t n = N;
    const apus_tensor ta = apus_graph_variable(b.g, "a", APUS_REAL, 1, &n), tc = apus_graph_variable(b.g, "c", APUS_REAL, 1, &n);
    const apus_tensor x = apus_scale(b.g, ta, 2.0), y = apus_add(b.g, apus_exp(b.g, x), ta);
    apus_graph_assign(b.g, ta, x); /* y, later in the same tile, still reads the old a */
    apus_graph_assign(b.g, tc, y);
    apus_plan *p = bed_plan(&b, ref, NULL, 0, APUS_RECOMPUTE_NONE);
    bed_bind(p, "a", a);
    bed_bind(p, "c", c);
    for (int i = 0; i < N; i++)
        a[i] = i * 1e-4;
    bed_run(&b, p);
    for (int i = 0; i < N; i++)
        assert_true(a[i] == 2.0 * (i * 1e-4) && c[i] == exp(2.0 * (i * 1e-4)) + i * 1e-4);
    assert_true(p->steps.n <= 2);
    apus_plan_free(p);
    bed_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recomputing_changes_no_bit),   cmocka_unit_test(results_are_narrowed),
        cmocka_unit_test(extents_below_capacity),       cmocka_unit_test(short_runs_touch_little),
        cmocka_unit_test(memory_is_reused_safely),      cmocka_unit_test(adamw_is_one_pass),
        cmocka_unit_test(reads_see_the_old_value),      cmocka_unit_test(tied_weights_accumulate_in_place),
        cmocka_unit_test(a_tile_reads_what_it_writes),  cmocka_unit_test(pairs_are_fused),
        cmocka_unit_test(patterns_are_fused),           cmocka_unit_test(prologues_are_fused),
        cmocka_unit_test(siblings_do_not_share_memory), cmocka_unit_test(unused_parts_are_pruned),
        cmocka_unit_test(plans_describe_themselves),    cmocka_unit_test(errors),
        cmocka_unit_test(numbers_are_checked),
    };
    return cmocka_run_group_tests(tests, toy_setup, toy_teardown);
}
