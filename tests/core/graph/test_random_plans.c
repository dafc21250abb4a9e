/*
 * Plans of graphs drawn at random, with effects, recomputing and every device, against one that keeps every tensor.
 */
#include "core/graph/toy.h"

enum { R_SHAPES = 3, R_VARIABLES = 6 };
static const int64_t r_rows = 7, r_columns[R_SHAPES] = {3, 700, 1};

typedef struct random_graph {
    bed b;
    apus_tensor t[400];
    size_t n;
    apus_tensor variables[R_VARIABLES];
    int32_t effect_variable[12], effect_value[12], effect_adds[12];
    size_t n_effects;
} random_graph;

static uint64_t pick(random_graph *r, uint64_t n)
{
    return apus_random_below(r->b.seed, 77, 0, r->n * 16 + r->b.g->n_nodes * 7919 + (r->n_effects << 40), n);
}

static int32_t shape_of(random_graph *r, apus_tensor t)
{
    int64_t dims[APUS_MAX_DIMS];
    if (apus_graph_table()->shape(r->b.g, t, dims) == 1)
        return -1;
    for (int32_t s = 0; s < R_SHAPES; s++)
        if (dims[1] == r_columns[s])
            return s;
    return -1;
}

/* Some earlier tensor of this shape, recent ones rather. */
static apus_tensor some(random_graph *r, int32_t shape, uint64_t salt)
{
    for (uint64_t i = 0;; i++) {
        const uint64_t back = apus_random_below(r->b.seed + salt, 78, (uint32_t)i, r->n, i < 20 ? (r->n < 8 ? r->n : 8) : r->n);
        const apus_tensor t = r->t[r->n - 1 - back];
        if (shape_of(r, t) == shape)
            return t;
    }
}

static void random_build(random_graph *r, uint64_t seed, int effects)
{
    memset(r, 0, sizeof *r);
    bed_begin(&r->b, seed);
    apus_graph *g = r->b.g;
    for (int v = 0; v < R_VARIABLES; v++) {
        const char name[2] = {(char)('a' + v), 0};
        r->variables[v] = r->t[r->n++] = apus_graph_variable(g, name, APUS_REAL, 2, DIMS(r_rows, r_columns[v % R_SHAPES]));
    }
    r->t[r->n++] = apus_graph_variable(g, "scalar", APUS_REAL, 1, DIMS(1));
    const apus_tensor scalar = r->t[r->n - 1];
    for (int i = 0; i < 60; i++) {
        const int32_t s = (int32_t)pick(r, R_SHAPES), o = (int32_t)((s + 1 + i % 2) % R_SHAPES);
        const apus_tensor x = some(r, s, 1), y = some(r, s, 2);
        apus_tensor z;
        switch (pick(r, 14)) {
        case 0:
            z = apus_add(g, x, y);
            break;
        case 1:
            z = apus_sub(g, x, y);
            break;
        case 2:
            z = apus_mul(g, apus_tanh(g, x), y);
            break;
        case 3:
            z = apus_maximum(g, x, y);
            break;
        case 4:
            z = apus_silu(g, x);
            break;
        case 5:
            z = apus_swiglu(g, apus_tanh(g, x), y);
            break;
        case 6:
            z = apus_add(g, x, scalar);
            break;
        case 7:
            z = apus_mul(g, x, apus_tanh(g, apus_sum(g, y)));
            break;
        case 8:
            z = apus_affine(g, x, 0.5, 0.1);
            break;
        case 9: { /* a product that changes the shape: [7,a] -> [7,b] through [b,a] */
            const apus_tensor w = apus_emit2(g, "apus.linear_dw/1", apus_tanh(g, some(r, o, 3)), apus_tanh(g, y), NULL, 0);
            z = apus_scale(g, apus_matmul(g, apus_tanh(g, x), w), 0.01);
            break;
        }
        case 10: { /* a residual */
            const apus_tensor w = apus_emit2(g, "apus.linear_dw/1", apus_tanh(g, some(r, o, 3)), apus_tanh(g, y), NULL, 0);
            z = apus_add(g, some(r, o, 4), apus_matmul(g, apus_tanh(g, x), w));
            break;
        }
        case 11:
            z = apus_columns(g, x, 0, r_columns[s]);
            break;
        case 12:
            z = apus_add_row(g, x, apus_sum_rows(g, y));
            break;
        default:
            z = apus_fill(g, apus_sum(g, apus_tanh(g, x)), y);
            break;
        }
        r->t[r->n++] = apus_affine(g, apus_tanh(g, z), 1.0 + 0.001 * i, 0.0);
        if (i % 3 != 0)
            r->t[r->n - 1] = z;
    }
    apus_tensor loss = apus_sum(g, apus_tanh(g, r->t[r->n - 1])), d[R_VARIABLES];
    for (size_t i = 1; i < 4; i++)
        loss = apus_add(g, loss, apus_sum(g, apus_tanh(g, r->t[r->n - 1 - i])));
    const apus_tensor one = apus_scalar(g, 1.0);
    apus_graph_gradients(g, &loss, &one, 1, r->variables, R_VARIABLES, d);
    r->t[r->n++] = loss;
    for (int v = 0; v < R_VARIABLES; v++)
        if (!apus_is_none(d[v]))
            r->t[r->n++] = d[v];
    for (size_t k = 0; k < 10; k++) {
        const int32_t v = (int32_t)pick(r, R_VARIABLES), adds = pick(r, 3) != 0;
        const apus_tensor value = pick(r, 4) == 0 && !apus_is_none(d[v]) ? d[v] : some(r, v % R_SHAPES, 5 + k);
        r->effect_variable[r->n_effects] = v;
        r->effect_value[r->n_effects] = value.id;
        r->effect_adds[r->n_effects++] = adds;
        if (effects && adds)
            apus_graph_accumulate(g, r->variables[v], value);
        else if (effects)
            apus_graph_assign(g, r->variables[v], value);
    }
    for (int v = 0; v < 3 && seed % 2 == 0; v++) { /* gradients' sums, which nothing reads */
        const char name[3] = {'g', (char)('a' + v), 0};
        const apus_tensor sum = apus_graph_variable(g, name, APUS_REAL, 2, DIMS(r_rows, r_columns[v % R_SHAPES]));
        if (effects && !apus_is_none(d[v])) {
            apus_graph_accumulate(g, sum, d[v]);
            apus_graph_accumulate(g, sum, some(r, v % R_SHAPES, 50));
        }
    }
    bed_check(&r->b);
}

static void fill_variables(double memory[R_VARIABLES + 1][7 * 700])
{
    for (int v = 0; v <= R_VARIABLES; v++)
        for (uint64_t i = 0; i < 7 * 700; i++)
            memory[v][i] = bed_random(90 + (uint64_t)v, i, -1, 1);
}

static void bind_variables(apus_plan *p, double memory[R_VARIABLES + 1][7 * 700], double sums[3][7 * 700])
{
    for (size_t i = 0; i < apus_plan_variable_count(p); i++) {
        const char *name = apus_plan_variable_at(p, i, NULL);
        if (strcmp(name, "scalar") == 0)
            bed_bind(p, name, memory[R_VARIABLES]);
        else if (name[0] == 'g' && name[1] != 0)
            bed_bind(p, name, sums[name[1] - 'a']);
        else
            bed_bind(p, name, memory[name[0] - 'a']);
    }
}

static void random_graphs(void **state)
{
    (void)state;
    static double memory[R_VARIABLES + 1][7 * 700], expected[R_VARIABLES][7 * 700], sums[3][7 * 700], first_sums[3][7 * 700];
    apus_device *const devices[] = {ref, serial, toy};
    for (uint64_t seed = 0; seed < 40; seed++) {
        random_graph r;
        size_t n, m;
        /* The oracle keeps every tensor and has no effects; those are worked by hand. */
        random_build(&r, seed, 0);
        apus_plan *keep = bed_plan(&r.b, ref, r.t, r.n, APUS_RECOMPUTE_NONE);
        fill_variables(memory);
        bind_variables(keep, memory, sums);
        bed_run(&r.b, keep);
        memcpy(expected, memory, sizeof expected);
        for (size_t k = 0; k < r.n_effects; k++) {
            apus_plan *one = bed_plan(&r.b, ref, &(apus_tensor){r.effect_value[k]}, 1, APUS_RECOMPUTE_NONE);
            bind_variables(one, memory, sums);
            bed_run(&r.b, one);
            double *value = bed_output(one, 0, &n), *to = expected[r.effect_variable[k]];
            for (size_t i = 0; i < n; i++)
                to[i] = r.effect_adds[k] ? to[i] + value[i] : value[i];
            free(value);
            apus_plan_free(one);
        }
        for (int c = 0; c < 7; c++) {
            random_graph q;
            apus_device *d = devices[c / 3];
            random_build(&q, seed, 1);
            assert_int_equal(q.n, r.n);
            const size_t kept[3] = {r.n - 1, r.n - 4, (size_t)(seed % r.n)};
            const apus_tensor out[3] = {q.t[kept[0]], q.t[kept[1]], q.t[kept[2]]};
            apus_plan *p = bed_plan(&q.b, d, out, 3, c % 3);
            fill_variables(memory);
            memset(sums, 0, sizeof sums);
            bind_variables(p, memory, sums);
            bed_run(&q.b, p);
            const double tolerance = d == toy ? 1e-10 : 0.0;
            for (int v = 0; v < R_VARIABLES; v++)
                bed_same(expected[v], memory[v], (size_t)(r_rows * r_columns[v % R_SHAPES]), tolerance == 0.0 ? 1e-13 : tolerance, "a variable");
            for (size_t k = 0; k < 3; k++) {
                const apus_plan_tensor *t = &p->tensors.at[p->outputs[k]];
                if (t->variable >= 0) /* an output that is a variable shows its new value */
                    continue;
                double *x = bed_output(keep, kept[k], &n), *y = bed_output(p, k, &m);
                assert_int_equal(n, m);
                bed_same(x, y, n, tolerance, "an output");
                free(x);
                free(y);
            }
            if (c == 0)
                memcpy(first_sums, sums, sizeof sums);
            for (int v = 0; v < 3; v++)
                bed_same(first_sums[v], sums[v], 7 * 700, 1e-10, "a sum");
            apus_plan_free(p);
            bed_end(&q.b);
        }
        apus_plan_free(keep);
        bed_end(&r.b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_graphs)};
    return cmocka_run_group_tests(tests, toy_setup, toy_teardown);
}
