/* The plugin of abi/README.md: printed there as it is compiled, loaded as any other, and its numbers are the formula's. */
#include "graph/graph.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <apus/train.h>

static void test_readme(void **state)
{
    (void)state;
    apus_error err;
    char *readme = apus_file_read(APUS_TEST_SOURCE "/abi/README.md", 0, NULL, &err);
    char *example = apus_file_read(APUS_TEST_SOURCE "/tests/abi/example/focal.c", 0, NULL, &err);
    assert_non_null(readme);
    assert_non_null(example);
    const char *begin = strstr(readme, "```c\n/*\n * Loss focal");
    assert_non_null(begin);
    begin += strlen("```c\n");
    assert_memory_equal(begin, example, strlen(example));
    assert_memory_equal(begin + strlen(example), "```\n", 4);
    apus_host_table()->free(readme);
    apus_host_table()->free(example);
}

struct apus_loss_context {
    apus_tensor sum, count;
    double weight;
    int terms;
};

static void keep_term(apus_loss_context *c, const char *name, apus_tensor sum, apus_tensor count, double weight)
{
    assert_string_equal(name, "focal");
    *c = (apus_loss_context){.sum = sum, .count = count, .weight = weight, .terms = c->terms + 1};
}

/* The loss as its plugin builds it, on the reference backend: value and gradient against the formula in closed form. */
static void test_numbers(void **state)
{
    (void)state;
    enum { N = 4 };
    static const double logps[N] = {-0.01, -0.7, -2.5, -9.0};
    static const double ones[N] = {1, 1, 1, 1};
    static const char spec_text[] = "{\"type\": \"focal\", \"gamma\": 1.5}";
    const double gamma = 1.5;
    const apus_node_api *nodes = apus_nodes();
    const apus_graph_api *api = apus_graph_table();
    apus_error err = {{0}, {0}};
    const char *dir = APUS_TEST_PLUGINS;

    apus_graph_announce();
    if (apus_modules_load(&dir, apus_path_is_dir(dir) ? 1 : 0, 0, &err) != APUS_OK || apus_module_load_file(APUS_TEST_EXAMPLE, &err) != APUS_OK ||
        apus_ops_load(&err) != APUS_OK) {
        fail_msg("%s", err.message);
    }
    const apus_component *c;
    apus_node *params;
    apus_node *spec = nodes->parse_json(spec_text, sizeof spec_text - 1, "spec", &err);
    assert_int_equal(apus_component_resolve("loss", spec, NULL, &c, &params, &err), APUS_OK);
    nodes->release(spec);
    const apus_loss_ops *ops = c->ops;
    void *loss;
    assert_int_equal(ops->open(apus_host_table(), params, &loss, &err), APUS_OK);
    assert_int_equal(ops->needs(loss), APUS_LOSS_SEQUENCES);

    const apus_graph_hooks hooks = {0};
    apus_graph *g = apus_graph_new(&hooks);
    const int64_t scored = APUS_DIM_SCORED;
    apus_loss_context context = {.terms = 0};
    const apus_signals signals = {.size = sizeof signals,
                                  .context = &context,
                                  .token_logps = api->input(g, "token_logps", APUS_REAL, 1, &scored),
                                  .ones = api->input(g, "ones", APUS_REAL, 1, &scored),
                                  .term = keep_term};
    ops->build(loss, g, &signals);
    ops->close(loss);
    nodes->release(params);
    assert_int_equal(context.terms, 1);
    assert_true(context.weight == 1.0);
    const apus_tensor one = apus_graph_table()->constant(g, &(double){1.0}, 0, NULL);
    apus_tensor gradient;
    apus_graph_gradients(g, &context.sum, &one, 1, &signals.token_logps, 1, &gradient);
    if (apus_graph_status(g, &err) != APUS_OK) {
        fail_msg("%s", err.message);
    }

    apus_node *ref = nodes->make_string("ref", 3);
    apus_device *device = NULL;
    assert_int_equal(apus_device_open(ref, &device, &err), APUS_OK);
    nodes->release(ref);
    const apus_tensor outputs[] = {context.sum, context.count, gradient};
    int64_t extents[APUS_N_DIM_SYMBOLS] = {0};
    extents[-1 - APUS_DIM_SCORED] = N;
    apus_plan *plan;
    if (apus_plan_new(g, device, outputs, 3, extents, APUS_RECOMPUTE_NONE, &plan, &err) != APUS_OK) {
        fail_msg("%s", err.message);
    }
    const apus_feed feeds[] = {{"token_logps", logps}, {"ones", ones}};
    if (apus_plan_run(plan, extents, feeds, 2, &err) != APUS_OK) {
        fail_msg("%s", err.message);
    }
    double sum, count, d[N], want = 0;
    assert_int_equal(apus_plan_output(plan, 0, &sum, 1, &err), APUS_OK);
    assert_int_equal(apus_plan_output(plan, 1, &count, 1, &err), APUS_OK);
    assert_int_equal(apus_plan_output(plan, 2, d, N, &err), APUS_OK);
    for (int t = 0; t < N; t++) {
        const double p = exp(logps[t]), q = 1 - p;
        want -= pow(q, gamma) * logps[t];
        const double slope = -pow(q, gamma) + gamma * pow(q, gamma - 1) * p * logps[t];
        if (!(fabs(d[t] - slope) < 1e-9)) {
            fail_msg("gradient of token %d is %.12g, expected %.12g", t, d[t], slope);
        }
    }
    if (!(fabs(sum - want) < 1e-9) || count != N) {
        fail_msg("loss %.12g / %g, expected %.12g / %d", sum, count, want, N);
    }
    apus_plan_free(plan);
    apus_device_close(device);
    apus_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_readme), cmocka_unit_test(test_numbers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
