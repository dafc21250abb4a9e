/*
 * Plans: a layer and its adapter become one kernel, forward and backward, where a kernel takes their sum, and only where that is the same.
 */
#include "core/graph/toy.h"

/* x Wᵀ + 2 x Aᵀ Bᵀ as tuner lora builds it. */
static apus_tensor adapted_linear(bed *b, apus_tensor x, apus_tensor w, apus_tensor bias, const apus_tensor ab[2])
{
    const apus_tensor in[3] = {x, w, bias};
    const apus_tensor y = EMIT(b, "linear", apus_is_none(bias) ? 2 : 3, in, NULL, 0);
    return apus_add(b->g, apus_matmul(b->g, apus_scale(b->g, apus_matmul(b->g, x, ab[0]), 2.0), ab[1]), y);
}

/* Layers with adapters: each is one kernel, with the residual too, and so is what comes back from it: those of three that share x are
 * three. */
static void adapters_are_fused(void **state)
{
    (void)state;
    bed b;
    size_t n;
    bed_begin(&b, 27);
    b.extents[0] = 5;
    const apus_tensor none = apus_none(), x = bed_real(&b, 2, DIMS(APUS_DIM_TOKENS, 6), -1, 1), bias = bed_real(&b, 1, DIMS(6), -1, 1);
    apus_tensor w[4], ab[4][2], wrt[9] = {x}, out[11];
    for (int i = 0; i < 4; i++) {
        w[i] = bed_real(&b, 2, DIMS(6, 6), -1, 1);
        wrt[1 + 2 * i] = ab[i][0] = bed_real(&b, 2, DIMS(2, 6), -1, 1);
        wrt[2 + 2 * i] = ab[i][1] = bed_real(&b, 2, DIMS(6, 2), -1, 1);
    }
    const apus_tensor q = adapted_linear(&b, x, w[0], bias, ab[0]), k = adapted_linear(&b, x, w[1], none, ab[1]);
    const apus_tensor v = adapted_linear(&b, x, w[2], none, ab[2]), mixed = apus_mul(b.g, apus_mul(b.g, q, k), v);
    const apus_tensor y = apus_add(b.g, x, adapted_linear(&b, mixed, w[3], none, ab[3]));
    const apus_tensor loss = bed_mixed(&b, y), one = apus_scalar(b.g, 1.0);
    apus_graph_gradients(b.g, &loss, &one, 1, wrt, 9, out);
    out[9] = y;
    bed_check(&b);
    apus_plan *p = bed_plan(&b, adapted, out, 10, APUS_RECOMPUTE_NONE);
    toy_twices[0] = toy_twices[1] = 0;
    bed_run(&b, p);
    assert_int_equal(toy_twices[0], 4);
    assert_int_equal(toy_twices[1], 4);
    int adds = 0, products = 0;
    for (size_t i = 0; i < p->order.n; i++) {
        adds += strcmp(p->nodes.at[p->order.at[i]].op->name, "apus.add/1") == 0;
        products += strcmp(p->nodes.at[p->order.at[i]].op->name, "apus.linear/1") == 0;
    }
    assert_int_equal(adds, 0);
    assert_int_equal(products, 8);
    const apus_plan_cost cost = apus_plan_costs(p);
    apus_plan *plain = bed_plan(&b, serial, out, 10, APUS_RECOMPUTE_NONE);
    bed_run(&b, plain);
    assert_true(cost.product_flops > 0 && cost.product_flops == apus_plan_costs(plain).product_flops);
    for (size_t i = 0; i < 10; i++) {
        double *got = bed_output(p, i, &n), *want = bed_output(plain, i, &n);
        bed_same(want, got, n, 1e-13, "a layer with an adapter");
        free(got);
        free(want);
    }
    apus_plan_free(plain);
    apus_plan_free(p);

    /* Not where the product's own result is wanted, nor two thick ones. */
    const apus_tensor base = apus_matmul(b.g, x, w[0]), low = apus_matmul(b.g, apus_matmul(b.g, x, ab[0][0]), ab[0][1]);
    const apus_tensor two[2] = {apus_add(b.g, low, base), base}, thick = apus_add(b.g, apus_matmul(b.g, y, w[1]), base);
    for (int c = 0; c < 2; c++) {
        p = bed_plan(&b, adapted, c == 0 ? two : &thick, c == 0 ? 2 : 1, APUS_RECOMPUTE_NONE);
        toy_twices[0] = 0;
        bed_run(&b, p);
        assert_int_equal(toy_twices[0], c == 0 ? 0 : 4);
        apus_plan_free(p);
    }
    bed_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(adapters_are_fused)};
    return cmocka_run_group_tests(tests, toy_setup, toy_teardown);
}
