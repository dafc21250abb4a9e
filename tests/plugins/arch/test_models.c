/*
 * Architectures against transformers: logits and every gradient of the tiny checkpoints in tests/golden/models (made by
 * tools/golden/models.py), computed by the backend `ref`: one document, and two packed into one run.
 */
#include "plugins/format/models.h"

static apus_format_ops hf, gguf;
static apus_device *device;

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_graph_announce();
    load_plugin("format_safetensors");
    load_plugin("format_gguf");
    load_plugin("arch_decoder");
    load_plugin("arch_gpt2");
    load_plugin("backend_ref");
    assert_int_equal(apus_ops_load(&err), APUS_OK);
    hf = format("safetensors");
    gguf = format("gguf");
    apus_node *spec = NODE->make_string("ref", 3);
    if (apus_device_open(spec, &device, &err) != APUS_OK)
        fail_msg("%s", err.message);
    NODE->release(spec);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(device);
    return 0;
}

/* A tensor of golden.safetensors, by its exact name. */
static apus_tensor_info golden_tensor(void *golden, const char *name)
{
    apus_error err = {0};
    apus_tensor_info t = {.size = sizeof t};
    const apus_weight_spec w = {.size = sizeof w, .name = name};
    if (hf.find(golden, &w, &t, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return t;
}

/* A checkpoint's graph from tokens to logits and gradients, planned and bound. */
typedef struct run {
    source s;
    apus_graph *g;
    apus_plan *plan;
    void **memory;
    size_t n; /* weights */
    int64_t vocab, tokens, segments;
} run;

static void bind(run *r)
{
    apus_error err = {0};
    r->memory = calloc(r->n, sizeof *r->memory);
    for (size_t i = 0; i < r->n; i++) {
        const apus_weight_spec *w = apus_graph_weight_at(r->g, i);
        const size_t n = (size_t)(w->dims[0] * (w->ndim > 1 ? w->dims[1] : 1));
        double *x = malloc(n * sizeof *x);
        assert_string_equal(w->name, r->s.specs[i].name); /* the same build gives the same order */
        for (size_t k = 0; k < n; k++)
            x[k] = (double)r->s.values[i][k];
        r->memory[i] = apus_device_alloc(device, n * sizeof *x, &err);
        assert_non_null(r->memory[i]);
        assert_int_equal(apus_device_upload(device, r->memory[i], x, n * sizeof *x, &err), APUS_OK);
        if (apus_plan_bind(r->plan, w->name, r->memory[i], &err) != APUS_OK)
            fail_msg("%s", err.message);
        free(x);
    }
}

static run prepare(const apus_format_ops *format, void *file, int64_t tokens, int64_t segments)
{
    apus_error err = {0};
    apus_arch_ops ops;
    apus_model_outputs out;
    run r = {.s = source_open(format, file), .tokens = tokens, .segments = segments};
    const apus_graph_api *api = apus_graph_table();
    assert_int_equal(apus_device_real(device), APUS_F64);
    void *arch = open_arch(r.s.card.config, &ops, &err);
    if (arch == NULL)
        fail_msg("%s", err.message);
    r.g = build_graph(&ops, arch, &out);
    r.vocab = out.head.dims[0];
    const apus_tensor logits = api->linear(r.g, out.hidden, &out.head, NULL);
    const int64_t dims[2] = {APUS_DIM_TOKENS, r.vocab};
    const apus_tensor dlogits = api->input(r.g, "dlogits", APUS_REAL, 2, dims);
    r.n = apus_graph_weight_count(r.g);
    apus_tensor *wrt = calloc(r.n, sizeof *wrt), *outputs = calloc(r.n + 1, sizeof *outputs);
    for (size_t i = 0; i < r.n; i++)
        wrt[i] = apus_graph_weight_tensor(r.g, i);
    outputs[0] = logits;
    apus_graph_gradients(r.g, &logits, &dlogits, 1, wrt, r.n, outputs + 1);
    if (apus_graph_status(r.g, &err) != APUS_OK)
        fail_msg("%s", err.message);
    const int64_t capacity[APUS_N_DIM_SYMBOLS] = {tokens, segments, 0, 0, 0};
    if (apus_plan_new(r.g, device, outputs, r.n + 1, capacity, APUS_RECOMPUTE_NONE, &r.plan, &err) != APUS_OK)
        fail_msg("%s", err.message);
    ops.close(arch);
    free(wrt);
    free(outputs);
    bind(&r);
    return r;
}

static void finish(run *r)
{
    for (size_t i = 0; i < r->n; i++) {
        const apus_weight_spec *w = &r->s.specs[i];
        apus_device_free(device, r->memory[i], (size_t)(w->dims[0] * (w->ndim > 1 ? w->dims[1] : 1)) * sizeof(double));
    }
    free(r->memory);
    apus_plan_free(r->plan);
    apus_graph_free(r->g);
    source_close(&r->s);
}

static void execute(run *r, const int32_t *ids, const int32_t *lengths, const double *dlogits)
{
    apus_error err = {0};
    int32_t *positions = calloc((size_t)r->tokens, sizeof *positions), *whole = calloc((size_t)r->tokens, sizeof *whole);
    int32_t *segments = calloc((size_t)r->segments * 4, sizeof *segments);
    int32_t at = 0;
    for (int64_t d = 0; d < r->segments; d++) {
        const int32_t row[4] = {at, lengths[d], -1, 0};
        memcpy(segments + 4 * d, row, sizeof row);
        for (int32_t i = 0; i < lengths[d]; i++, at++) {
            positions[at] = i;
            whole[at] = lengths[d];
        }
    }
    assert_int_equal(at, r->tokens);
    const apus_feed feeds[] = {{"tokens", ids}, {"positions", positions}, {"lengths", whole}, {"segments", segments}, {"dlogits", dlogits}};
    apus_feed used[5];
    size_t n = 0;
    for (size_t i = 0; i < 5; i++)
        if (apus_plan_uses_input(r->plan, feeds[i].input))
            used[n++] = feeds[i];
    const int64_t extents[APUS_N_DIM_SYMBOLS] = {r->tokens, r->segments, 0, 0, 0};
    if (apus_plan_run(r->plan, extents, used, n, &err) != APUS_OK)
        fail_msg("%s", err.message);
    free(positions);
    free(whole);
    free(segments);
}

/* d(mean next-token loss)/d logits: (softmax - one-hot) / count on every token that has a next one. Returns the loss. */
static double loss_gradient(const run *r, const int32_t *ids, const int32_t *lengths, const double *logits, double *d)
{
    double loss = 0;
    int64_t at = 0;
    for (int64_t s = 0; s < r->segments; s++)
        for (int32_t i = 0; i < lengths[s]; i++, at++) {
            const double *x = logits + at * r->vocab;
            double most = x[0], sum = 0;
            if (i + 1 == lengths[s])
                continue;
            for (int64_t v = 0; v < r->vocab; v++)
                most = fmax(most, x[v]);
            for (int64_t v = 0; v < r->vocab; v++)
                sum += exp(x[v] - most);
            const double count = (double)(r->tokens - r->segments);
            for (int64_t v = 0; v < r->vocab; v++)
                d[at * r->vocab + v] = (exp(x[v] - most) / sum - (v == ids[at + 1])) / count;
            loss -= (x[ids[at + 1]] - most - log(sum)) / count;
        }
    return loss;
}

static void compare_gradient(const run *r, void *golden, const char *model, size_t i)
{
    apus_error err = {0};
    const apus_weight_spec *w = &r->s.specs[i];
    const int64_t rows = w->dims[0], columns = w->ndim > 1 ? w->dims[1] : 1;
    char name[256];
    snprintf(name, sizeof name, "grad.%s", w->name);
    const apus_tensor_info t = golden_tensor(golden, name);
    const float *expected = t.data;
    double *x = malloc((size_t)(rows * columns) * sizeof *x), wrong = 0, size = 0;
    if (apus_plan_output(r->plan, i + 1, x, rows * columns, &err) != APUS_OK)
        fail_msg("%s", err.message);
    for (int64_t a = 0; a < rows; a++)
        for (int64_t b = 0; b < columns; b++) {
            const int turned = (w->flags & APUS_WEIGHT_TRANSPOSED) != 0;
            const double e = (double)expected[turned ? b * rows + a : a * columns + b], diff = x[a * columns + b] - e;
            wrong += diff * diff;
            size += e * e;
        }
    free(x);
    if (!(sqrt(wrong) <= 1e-3 * sqrt(size)))
        fail_msg("%s: gradient of %s: relative error %g", model, w->name, sqrt(wrong / size));
}

static void compare(const char *model, const char *which)
{
    char path[1024];
    apus_error err = {0};
    snprintf(path, sizeof path, "%s/models/%s", APUS_TEST_GOLDEN, model);
    void *file = open_file(&hf, path);
    snprintf(path, sizeof path, "%s/models/%s/%s.safetensors", APUS_TEST_GOLDEN, model, which);
    void *golden = open_file(&hf, path);
    const apus_tensor_info ids = golden_tensor(golden, "input_ids"), logits = golden_tensor(golden, "logits");
    const int packed = strcmp(which, "packed") == 0;
    const int32_t one = (int32_t)ids.dims[0];
    const apus_tensor_info documents = packed ? golden_tensor(golden, "lengths") : ids;
    const int32_t *lengths = packed ? documents.data : &one;
    run r = prepare(&hf, file, ids.dims[0], packed ? documents.dims[0] : 1);
    const size_t n = (size_t)(r.tokens * r.vocab);
    double *d = calloc(n, sizeof *d), *x = calloc(n, sizeof *x), worst = 0;
    execute(&r, ids.data, lengths, d);
    assert_int_equal(apus_plan_output(r.plan, 0, x, (int64_t)n, &err), APUS_OK);
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(x[i] - (double)((const float *)logits.data)[i]));
    if (!(worst <= 1e-4))
        fail_msg("%s (%s): logits differ by %g", model, which, worst);
    const double loss = loss_gradient(&r, ids.data, lengths, x, d);
    assert_true(fabs(loss - (double)*(const float *)golden_tensor(golden, "loss").data) < 1e-5);
    execute(&r, ids.data, lengths, d);
    for (size_t i = 0; i < r.n; i++)
        compare_gradient(&r, golden, model, i);
    print_message("%s (%s): logits within %.1e\n", model, which, worst);
    free(d);
    free(x);
    finish(&r);
    hf.close(golden);
    hf.close(file);
}

static void one_document(void **state)
{
    (void)state;
    static const char *const models[] = {"llama",        "llama-tied",     "llama-bias",    "llama-headdim", "llama-linear", "llama-yarn",
                                         "llama-llama3", "llama-longrope", "llama-dynamic", "qwen2",         "qwen3",        "mistral",
                                         "gpt2"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        compare(models[i], "golden");
}

static void packed_documents(void **state)
{
    (void)state;
    static const char *const models[] = {"llama", "llama-dynamic", "llama-longrope", "qwen2", "qwen3", "mistral", "gpt2"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        compare(models[i], "packed");
}

static double worst_difference(run *r, const int32_t *ids, const float *expected)
{
    apus_error err = {0};
    const size_t n = (size_t)(r->tokens * r->vocab);
    const int32_t length = (int32_t)r->tokens;
    double *zero = calloc(n, sizeof *zero), *x = calloc(n, sizeof *x), worst = 0;
    execute(r, ids, &length, zero);
    assert_int_equal(apus_plan_output(r->plan, 0, x, (int64_t)n, &err), APUS_OK);
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(x[i] - (double)expected[i]));
    free(zero);
    free(x);
    return worst;
}

/* A GGUF that we write says the same model: rows, biases, every rotary scaling it can express. */
static void through_gguf(void **state)
{
    (void)state;
    static const char *const models[] = {"llama",        "llama-tied",     "llama-bias", "llama-headdim", "llama-linear", "llama-yarn",
                                         "llama-llama3", "llama-longrope", "qwen2",      "qwen3",         "mistral",      "gpt2"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char path[1024];
        apus_error err = {0};
        snprintf(path, sizeof path, "%s/models/%s", APUS_TEST_GOLDEN, models[i]);
        void *file = open_file(&hf, path);
        source s = source_open(&hf, file);
        const apus_model_export export = source_export(&s, APUS_F32);
        fresh(path, sizeof path, "through.gguf");
        if (gguf.write(apus_host_table(), NULL, path, &export, &err) != APUS_OK)
            fail_msg("%s", err.message);
        source_close(&s);
        hf.close(file);
        file = open_file(&gguf, path);
        snprintf(path, sizeof path, "%s/models/%s/golden.safetensors", APUS_TEST_GOLDEN, models[i]);
        void *golden = open_file(&hf, path);
        const apus_tensor_info ids = golden_tensor(golden, "input_ids");
        run r = prepare(&gguf, file, ids.dims[0], 1);
        const double worst = worst_difference(&r, ids.data, golden_tensor(golden, "logits").data);
        if (!(worst <= 1e-4))
            fail_msg("%s: logits differ by %g", models[i], worst);
        finish(&r);
        hf.close(golden);
        gguf.close(file);
    }
}

/* llama.cpp's own file and its logits (float32 there, with a half-precision cache: hence the bound). */
static void llama_cpps_logits(void **state)
{
    (void)state;
    char path[1024];
    apus_error err = {0};
    size_t length = 0;
    shared_data(__func__, path, sizeof path, "models/stories260K/golden_logits_F32.bin");
    char *bytes = apus_file_read(path, 0, &length, &err);
    assert_non_null(bytes);
    const int32_t *head = (const int32_t *)(void *)bytes;
    shared_data(__func__, path, sizeof path, "models/stories260K/stories260K.gguf");
    void *file = open_file(&gguf, path);
    run r = prepare(&gguf, file, head[0], 1);
    assert_int_equal(head[1], r.vocab);
    const double worst = worst_difference(&r, head + 2, (const float *)(head + 2 + head[0]));
    print_message("stories260K: logits within %.1e\n", worst);
    assert_true(worst < 0.02);
    finish(&r);
    gguf.close(file);
    apus_host_table()->free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_document),
        cmocka_unit_test(packed_documents),
        cmocka_unit_test(through_gguf),
        cmocka_unit_test(llama_cpps_logits),
    };
    return cmocka_run_group_tests_name("arch/models", tests, setup, teardown);
}
