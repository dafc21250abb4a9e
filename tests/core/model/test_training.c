/*
 * Training against the libraries that define it: optimizer trajectories (torch.optim), schedules (transformers), preference losses
 * and their gradients (TRL), a LoRA adapter (PEFT), whole models' losses and gradients (transformers), on both backends and through
 * the same objective and updater that a training uses. Golden values: tools/golden.
 */
#include "core/model/bench.h"

#include <unistd.h>

#include "model/score.h"
#include "model/trainer.h"

static apus_device *devices[2]; /* ref, cpu */
static const char *const device_names[2] = {"ref", "cpu"};
static apus_node *golden;

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    size_t n;
    bench_start();
    devices[0] = bench_device("\"ref\"");
    devices[1] = bench_device("{\"type\": \"cpu\", \"threads\": 2}");
    char *text = apus_file_read(APUS_TEST_GOLDEN "/training.json", 0, &n, &err);
    assert_non_null(text);
    golden = NODE->parse_json(text, n, "training.json", &err);
    assert_non_null(golden);
    HOST->free(text);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    NODE->release(golden);
    apus_device_close(devices[0]);
    apus_device_close(devices[1]);
    return 0;
}

/* ---------------------------------------------------------------- optimizers */

/* The updater over one weight of `start`, fed the golden gradients. */
static void trajectory(apus_device *d, const apus_node *spec, const apus_node *expected, int what, double bound)
{
    apus_error err = {0};
    const apus_node *all = NODE->get(golden, "optimizers"), *gradients = NODE->get(all, "gradients");
    size_t n;
    double *start = numbers(NODE->get(all, "start"), &n), *x = malloc(n * sizeof *x);
    apus_weight w = {.spec = {.size = sizeof w.spec, .name = "w", .ndim = 1, .dims = {(int64_t)n}, .what = what},
                     .dtype = APUS_REAL,
                     .bytes = n * apus_dtype_size(apus_device_real(d)),
                     .trained = 1};
    apus_model m = {.device = d, .weights = &w, .n_weights = 1};
    apus_updater u;
    w.device = apus_device_alloc(d, w.bytes, &err);
    bench_write(d, w.device, start, n);
    OK(apus_updater_open(&u, &m, spec, NULL, &err));
    assert_int_equal(u.n, 1);
    for (size_t step = 0; step < NODE->length(gradients); step++) {
        double *g = numbers(NODE->at(gradients, step), &n), *want = numbers(NODE->at(expected, step), &n), norm, squares = 0.0;
        bench_write(d, u.grads[0], g, n);
        for (size_t i = 0; i < n; i++)
            squares += g[i] * g[i];
        OK(apus_updater_norm(&u, &norm, &err));
        assert_true(fabs(norm - sqrt(squares)) <= 1e-6 * sqrt(squares));
        OK(apus_updater_step(&u, u.peak, (int64_t)step + 1, 1.0, &err));
        bench_read(d, w.device, x, n);
        for (size_t i = 0; i < n; i++)
            if (!(fabs(x[i] - want[i]) <= bound))
                fail_msg("step %zu: element %zu is %.17g, not %.17g", step + 1, i, x[i], want[i]);
        bench_read(d, u.grads[0], x, n);
        for (size_t i = 0; i < n; i++)
            assert_true(x[i] == 0.0); /* ready for the next step */
        free(g);
        free(want);
    }
    apus_updater_close(&u);
    apus_device_free(d, w.device, w.bytes);
    free(start);
    free(x);
}

static apus_node *optimizer_spec(const apus_node *c)
{
    apus_node *spec = NODE->copy(c);
    (void)NODE->set(spec, "learning_rate", NODE->copy(NODE->get(c, "lr")));
    (void)NODE->remove(spec, "lr");
    (void)NODE->remove(spec, "after_each_step");
    return spec;
}

static void optimizers(void **state)
{
    (void)state;
    const apus_node *cases = NODE->get(NODE->get(golden, "optimizers"), "cases");
    assert_int_equal(NODE->length(cases), 6);
    for (size_t i = 0; i < NODE->length(cases); i++) {
        apus_node *spec = optimizer_spec(NODE->at(cases, i));
        const apus_node *expected = NODE->get(NODE->at(cases, i), "after_each_step");
        trajectory(devices[0], spec, expected, APUS_WEIGHT_MATRIX, 1e-12);
        trajectory(devices[1], spec, expected, APUS_WEIGHT_MATRIX, 2e-6);
        NODE->release(spec);
    }
}

/* Norms and biases do not decay, whatever weight_decay says. */
static void no_decay(void **state)
{
    (void)state;
    const apus_node *plain = NODE->at(NODE->get(NODE->get(golden, "optimizers"), "cases"), 0), *expected = NODE->get(plain, "after_each_step");
    apus_node *spec = optimizer_spec(plain);
    assert_true(number(plain, "weight_decay") == 0.0);
    (void)NODE->set(spec, "weight_decay", NODE->make_float(0.5));
    trajectory(devices[0], spec, expected, APUS_WEIGHT_NORM, 1e-12);
    trajectory(devices[0], spec, expected, APUS_WEIGHT_BIAS, 1e-12);
    NODE->release(spec);
}

/* ---------------------------------------------------------------- schedules */

static void schedules(void **state)
{
    (void)state;
    const apus_node *cases = NODE->get(NODE->get(golden, "schedules"), "cases");
    assert_int_equal(NODE->length(cases), 8);
    for (size_t i = 0; i < NODE->length(cases); i++) {
        apus_error err = {0};
        const apus_node *c = NODE->at(cases, i);
        const double rate = number(c, "learning_rate");
        const int64_t total = (int64_t)number(c, "total_steps");
        apus_node *spec = NODE->make_map();
        apus_schedule s;
        size_t n;
        (void)NODE->set(spec, "type", NODE->copy(NODE->get(c, "type")));
        (void)NODE->set(spec, "warmup_steps", NODE->copy(NODE->get(c, "warmup_steps")));
        OK(apus_schedule_open(spec, total, &s, &err));
        NODE->release(spec);
        double *used = numbers(NODE->get(c, "used"), &n);
        for (size_t k = 0; k < n; k++)
            if (!(fabs(rate * apus_schedule_factor(&s, (int64_t)k) - used[k]) <= 1e-15))
                fail_msg("case %zu, step %zu: %.17g, not %.17g", i, k, rate * apus_schedule_factor(&s, (int64_t)k), used[k]);
        assert_true(fabs(rate * apus_schedule_factor(&s, total) - number(c, "after_last")) <= 1e-15);
        free(used);
    }
}

/* ---------------------------------------------------------------- preference losses */

static void add_term(apus_loss_context *c, const char *name, apus_tensor sum, apus_tensor count, double weight)
{
    (void)name;
    c->term_sum[c->n_terms] = sum;
    c->term_count[c->n_terms] = count;
    c->weights[c->n_terms++] = weight;
}

static void add_metric(apus_loss_context *c, const char *name, apus_tensor sum, apus_tensor count)
{
    snprintf(c->metric_names[c->n_metrics], sizeof c->metric_names[0], "%s", name);
    c->metric_sum[c->n_metrics] = sum;
    c->metric_count[c->n_metrics++] = count;
}

static const char *const pair_inputs[6] = {"chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_tokens", "rejected_tokens"};

static void close_to(double x, const double want, double bound, const char *what, size_t which)
{
    if (!(fabs(x - want) <= bound * fmax(1.0, fabs(want))))
        fail_msg("case %zu: %s is %.17g, not %.17g", which, what, x, want);
}

static void preference_case(apus_device *d, const apus_node *c, size_t which, double bound)
{
    apus_error err = {0};
    const apus_graph_api *api = apus_graph_table();
    const apus_node *pairs = NODE->get(NODE->get(golden, "dpo"), "pairs");
    const int64_t dim = APUS_DIM_PAIRS, one = 1;
    apus_node *spec = NODE->make_map();
    static const char *const keys[] = {"loss_type", "beta", "label_smoothing", "rpo_alpha"};
    (void)NODE->set(spec, "type", NODE->make_string("dpo", 3));
    for (size_t i = 0; i < 4; i++)
        (void)NODE->set(spec, keys[i], NODE->copy(NODE->get(c, keys[i])));
    apus_loss loss;
    OK(apus_loss_open(&loss, spec, &err));
    NODE->release(spec);

    apus_graph *g = apus_graph_new(NULL);
    apus_loss_context *x = calloc(1, sizeof *x);
    apus_tensor in[7], outputs[2 + 4 * 8], dy[APUS_MAX_TERMS];
    apus_feed feeds[8 + APUS_MAX_TERMS];
    double *values[7];
    size_t n = 0, n_feeds = 0, n_out = 0;
    for (size_t i = 0; i < 6; i++) {
        in[i] = api->input(g, pair_inputs[i], APUS_REAL, 1, &dim);
        values[i] = numbers(NODE->get(pairs, pair_inputs[i]), &n);
        feeds[n_feeds++] = (apus_feed){pair_inputs[i], values[i]};
    }
    in[6] = api->input(g, "pair_ones", APUS_REAL, 1, &dim);
    values[6] = malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++)
        values[6][i] = 1.0;
    feeds[n_feeds++] = (apus_feed){"pair_ones", values[6]};
    const apus_signals s = {.size = sizeof s,
                            .context = x,
                            .token_logps = apus_none(),
                            .token_rows = apus_none(),
                            .row_logps = apus_none(),
                            .row_tokens = apus_none(),
                            .ones = apus_none(),
                            .chosen_logps = in[0],
                            .rejected_logps = in[1],
                            .reference_chosen_logps = in[2],
                            .reference_rejected_logps = in[3],
                            .chosen_tokens = in[4],
                            .rejected_tokens = in[5],
                            .pair_ones = in[6],
                            .term = add_term,
                            .metric = add_metric};
    x->graph = g;
    loss.ops.build(loss.loss, g, &s);
    OK(apus_graph_status(g, &err));
    double scale[APUS_MAX_TERMS] = {0};
    char names[APUS_MAX_TERMS][16];
    for (size_t k = 0; k < x->n_terms; k++) {
        snprintf(names[k], sizeof names[k], "scale%zu", k);
        dy[k] = api->input(g, names[k], APUS_REAL, 1, &one);
        feeds[n_feeds++] = (apus_feed){names[k], &scale[k]};
        outputs[n_out++] = x->term_sum[k];
        outputs[n_out++] = x->term_count[k];
    }
    for (size_t k = 0; k < x->n_metrics; k++) {
        outputs[n_out++] = x->metric_sum[k];
        outputs[n_out++] = x->metric_count[k];
    }
    apus_graph_gradients(g, x->term_sum, dy, x->n_terms, in, 2, outputs + n_out);
    OK(apus_graph_status(g, &err));
    int64_t capacity[APUS_N_DIM_SYMBOLS] = {1, 1, 1, 1, 1};
    capacity[-1 - APUS_DIM_PAIRS] = (int64_t)n;
    apus_plan *p;
    OK(apus_plan_new(g, d, outputs, n_out + 2, capacity, APUS_RECOMPUTE_NONE, &p, &err));

    double sum, count, total = 0.0;
    OK(apus_plan_run(p, capacity, feeds, n_feeds, &err)); /* the counts, then with them the gradients */
    for (size_t k = 0; k < x->n_terms; k++) {
        OK(apus_plan_output(p, 2 * k + 1, &count, 1, &err));
        scale[k] = x->weights[k] / count;
    }
    OK(apus_plan_run(p, capacity, feeds, n_feeds, &err));
    for (size_t k = 0; k < x->n_terms; k++) {
        OK(apus_plan_output(p, 2 * k, &sum, 1, &err));
        total += scale[k] * sum;
    }
    close_to(total, number(c, "loss"), bound, "loss", which);
    for (size_t k = 0; k < 2; k++) {
        static const char *const gradients[2] = {"d_chosen", "d_rejected"};
        double *want = numbers(NODE->get(c, gradients[k]), &n), *got = malloc(n * sizeof *got);
        OK(apus_plan_output(p, n_out + k, got, (int64_t)n, &err));
        for (size_t i = 0; i < n; i++)
            close_to(got[i], want[i], bound, gradients[k], which);
        free(want);
        free(got);
    }
    const apus_node *metrics = NODE->get(c, "metrics");
    for (size_t k = 0; k < NODE->length(metrics); k++) {
        size_t found = x->n_metrics;
        for (size_t i = 0; i < x->n_metrics; i++)
            found = strcmp(x->metric_names[i], NODE->key_at(metrics, k)) == 0 ? i : found;
        assert_true(found < x->n_metrics);
        OK(apus_plan_output(p, 2 * (x->n_terms + found), &sum, 1, &err));
        OK(apus_plan_output(p, 2 * (x->n_terms + found) + 1, &count, 1, &err));
        close_to(sum / count, NODE->as_float(NODE->at(metrics, k), NAN), fmax(bound, 1e-7), NODE->key_at(metrics, k), which);
    }
    apus_plan_free(p);
    apus_graph_free(g);
    apus_loss_close(&loss);
    for (size_t i = 0; i < 7; i++)
        free(values[i]);
    free(x);
}

static void preferences(void **state)
{
    (void)state;
    const apus_node *cases = NODE->get(NODE->get(golden, "dpo"), "cases");
    assert_int_equal(NODE->length(cases), 11);
    for (size_t i = 0; i < NODE->length(cases); i++) {
        preference_case(devices[0], NODE->at(cases, i), i, 1e-12);
        preference_case(devices[1], NODE->at(cases, i), i, 2e-5);
    }
}

/* ---------------------------------------------------------------- whole models */

/* An objective over documents of ready-made ids: gradients in buffers of our own. */
typedef struct study {
    apus_model *model;
    apus_loss loss;
    apus_dataset *data;
    apus_objective objective;
    apus_batch batch;
    void **grads; /* by weight; NULL: not trained */
} study;

static void write_rows(const char *path, const int32_t *ids, const int32_t *lengths, size_t documents)
{
    apus_error err = {0};
    char *text = malloc(65536);
    size_t used = 0;
    for (size_t d = 0; d < documents; d++) {
        used += (size_t)snprintf(text + used, 65536 - used, "{\"input_ids\": [");
        for (int32_t i = 0; i < lengths[d]; i++)
            used += (size_t)snprintf(text + used, 65536 - used, "%s%d", i ? ", " : "", *ids++);
        used += (size_t)snprintf(text + used, 65536 - used, "]}\n");
    }
    OK(apus_file_write(path, text, used, &err));
    free(text);
}

static void study_open(study *s, apus_model *m, const int32_t *ids, const int32_t *lengths, size_t documents, int64_t micro_batch, int recompute)
{
    apus_error err = {0};
    char path[512], json[1024];
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    memset(s, 0, sizeof *s);
    s->model = m;
    snprintf(path, sizeof path, "%s/training.%ld.jsonl", APUS_TEST_TMP, (long)getpid());
    write_rows(path, ids, lengths, documents);
    snprintf(json, sizeof json, "{\"path\": \"%s\", \"type\": \"tokens\", \"shuffle\": false}", path);
    apus_node *spec = bench_parse(json), *loss = bench_parse("\"cross_entropy\"");
    OK(apus_loss_open(&s->loss, loss, &err));
    const apus_dataset_options options = {.seed = 1};
    OK(apus_dataset_open(spec, &options, &s->data, &err));
    assert_int_equal(apus_dataset_rows(s->data), documents);
    NODE->release(spec);
    NODE->release(loss);
    (void)unlink(path);
    const apus_dataset *sets[1] = {s->data};
    apus_batch_capacity(sets, 1, documents, micro_batch, capacity);
    OK(apus_batch_init(&s->batch, capacity, micro_batch, &err));
    const apus_objective_options how = {.train = 1, .dropout = 1, .recompute = recompute};
    OK(apus_objective_open(&s->objective, m, &s->loss, &how, capacity, &err));
    s->grads = calloc(m->n_weights, sizeof *s->grads);
    for (size_t i = 0; i < m->n_weights; i++) {
        char name[512];
        if (!m->weights[i].trained)
            continue;
        snprintf(name, sizeof name, "grad.%s", m->weights[i].spec.name);
        s->grads[i] = apus_device_alloc(m->device, m->weights[i].bytes, &err);
        assert_non_null(s->grads[i]);
        OK(apus_plan_bind(s->objective.plan, name, s->grads[i], &err));
    }
}

/* One global batch over all rows; returns the loss. */
static double study_run(study *s, size_t *micro_batches)
{
    apus_error err = {0};
    apus_objective_sums counts = {0}, sums = {0};
    const size_t rows = apus_dataset_rows(s->data);
    const apus_row_order order = {.n = rows};
    s->batch.random[0] = 1;
    s->batch.random[1] = 0;
    int64_t tokens = 0;
    for (size_t i = 0; i < rows; tokens += s->batch.extents[0]) {
        i += apus_batch_fill(&s->batch, s->data, &order, i, rows, tokens);
        OK(apus_objective_count(&s->objective, &s->batch, &counts, &err));
    }
    OK(apus_objective_scale(&s->objective, &counts, &err));
    tokens = 0;
    *micro_batches = 0;
    for (size_t i = 0; i < rows; tokens += s->batch.extents[0]) {
        i += apus_batch_fill(&s->batch, s->data, &order, i, rows, tokens);
        OK(apus_objective_run(&s->objective, &s->batch, &sums, &err));
        ++*micro_batches;
    }
    return apus_objective_loss(&s->objective, &sums);
}

static void study_close(study *s)
{
    for (size_t i = 0; i < s->model->n_weights; i++)
        if (s->grads[i] != NULL)
            apus_device_free(s->model->device, s->grads[i], s->model->weights[i].bytes);
    free(s->grads);
    apus_objective_close(&s->objective);
    apus_batch_free(&s->batch);
    apus_dataset_close(s->data);
    apus_loss_close(&s->loss);
}

static double *study_gradient(const study *s, size_t i, size_t *n)
{
    *n = apus_weight_elements(&s->model->weights[i].spec);
    double *x = malloc(*n * sizeof *x);
    bench_read(s->model->device, s->grads[i], x, *n);
    return x;
}

/* Relative L2 error of each trained weight's gradient; prefix: before the weight's name in the golden file. Gives the sum of all errors'
 * squares. */
static double compare_gradients(const study *s, const apus_format_file *file, const char *prefix, double bound)
{
    size_t compared = 0;
    double all = 0.0;
    for (size_t i = 0; i < s->model->n_weights; i++) {
        char name[512];
        size_t n;
        const apus_weight_spec *w = &s->model->weights[i].spec;
        if (s->grads[i] == NULL)
            continue;
        snprintf(name, sizeof name, "grad.%s%s", prefix, w->name);
        const apus_tensor_info t = bench_tensor(file, name);
        if (t.data == NULL)
            fail_msg("no golden %s", name);
        const float *want = t.data;
        double *x = study_gradient(s, i, &n), wrong = 0.0, size = 0.0;
        const int turned = (w->flags & APUS_WEIGHT_TRANSPOSED) != 0;
        const size_t columns = w->ndim > 1 ? (size_t)w->dims[1] : 1, rows = n / columns;
        for (size_t a = 0; a < rows; a++)
            for (size_t b = 0; b < columns; b++) {
                const double e = (double)want[turned ? b * rows + a : a * columns + b], diff = x[a * columns + b] - e;
                wrong += diff * diff;
                size += e * e;
            }
        free(x);
        if (!(sqrt(wrong) <= bound * sqrt(size)))
            fail_msg("gradient of %s: relative error %g", w->name, sqrt(wrong / size));
        all += wrong;
        compared++;
    }
    assert_true(compared > 0);
    return all;
}

static void compare_logits(apus_model *m, const apus_format_file *file, const char *which, double bound)
{
    apus_error err = {0};
    const apus_tensor_info ids = bench_tensor(file, "input_ids"), want = bench_tensor(file, which);
    const size_t n = (size_t)ids.dims[0], vocab = (size_t)m->facts.vocab;
    float *logits = malloc(n * vocab * sizeof *logits);
    double *logprobs = malloc(n * sizeof *logprobs), worst = 0.0;
    OK(apus_model_score(m, ids.data, n, logprobs, logits, &err));
    for (size_t i = 0; i < n * vocab; i++)
        worst = fmax(worst, fabs((double)logits[i] - (double)((const float *)want.data)[i]));
    if (!(worst <= bound))
        fail_msg("%s differ by %g", which, worst);
    double loss = 0.0;
    for (size_t i = 0; i + 1 < n; i++)
        loss -= logprobs[i] / (double)(n - 1);
    if (strcmp(which, "logits") == 0)
        assert_true(fabs(loss - (double)*(const float *)bench_tensor(file, "loss").data) < 1e-4);
    free(logits);
    free(logprobs);
}

static apus_model *open_golden(apus_device *d, const char *model)
{
    char json[1024];
    const apus_model_options options = {.device = d, .no_text = 1};
    snprintf(json, sizeof json, "\"%s/models/%s\"", APUS_TEST_GOLDEN, model);
    return bench_model(json, &options);
}

static void tune(apus_model *m, const char *json, const char *adapter)
{
    apus_error err = {0};
    apus_node *spec = bench_parse(json);
    OK(apus_model_tune(m, spec, adapter, 1, &err));
    NODE->release(spec);
}

/* The cpu backend on whole models (the ref backend's graphs: tests/plugins/arch). Gives the sum of all gradients' squared errors. */
static double model_case(apus_device *d, const char *model, const char *which, int recompute, double loss_bound, double gradient_bound)
{
    char file[256];
    size_t micro_batches;
    snprintf(file, sizeof file, "models/%s/%s.safetensors", model, which);
    apus_format_file want = bench_golden(file);
    apus_model *m = open_golden(d, model);
    const apus_tensor_info ids = bench_tensor(&want, "input_ids");
    const int packed = strcmp(which, "packed") == 0;
    const int32_t one = (int32_t)ids.dims[0];
    const apus_tensor_info lengths = packed ? bench_tensor(&want, "lengths") : ids;
    print_message("%s (%s)\n", model, which);
    if (!packed && d == devices[1])
        compare_logits(m, &want, "logits", 1e-4);
    tune(m, "\"full\"", NULL);
    study s;
    study_open(&s, m, ids.data, packed ? lengths.data : &one, packed ? (size_t)lengths.dims[0] : 1, 1024, recompute);
    const double loss = study_run(&s, &micro_batches), expected = (double)*(const float *)bench_tensor(&want, "loss").data;
    assert_int_equal(micro_batches, 1);
    if (!(fabs(loss - expected) < loss_bound))
        fail_msg("loss %.9g, not %.9g", loss, expected);
    const double wrong = compare_gradients(&s, &want, "", gradient_bound);
    study_close(&s);
    apus_model_close(m);
    apus_format_close(&want);
    return wrong;
}

static void models(void **state)
{
    (void)state;
    static const char *const all[] = {"llama",          "llama-tied",    "llama-bias", "llama-headdim", "llama-linear", "llama-yarn", "llama-llama3",
                                      "llama-longrope", "llama-dynamic", "qwen2",      "qwen3",         "mistral",      "gpt2"};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        (void)model_case(devices[1], all[i], "golden", (int)(i % 3), 1e-4, 1e-3);
}

/* With products and kept activations in bfloat16. A rounding is off by 2^-9 at most; some twelve of a layer's forward pass and as many of
 * its backward pass come together in a gradient, in two layers: sqrt(48) 2^-9 = 1.4 %, and four times that where it cancels. The loss moves
 * by less than one rounding of it. What is computed again changes no bit. */
static void brief_models(void **state)
{
    (void)state;
    static const char *const all[] = {"llama", "llama-bias", "qwen3", "mistral", "gpt2"};
    double first = 0.0;
    apus_device *brief = bench_device("{\"type\": \"cpu\", \"threads\": 2, \"dtype\": \"bfloat16\"}");
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        for (int recompute = 0; recompute < 3; recompute++) {
            const double wrong = model_case(brief, all[i], "golden", recompute, 6.0 * 0x1p-9, 4.0 * sqrt(48.0) * 0x1p-9);
            assert_true(wrong == (recompute == 0 ? wrong : first));
            first = wrong;
        }
    apus_device_close(brief);
}

static void packed_models(void **state)
{
    (void)state;
    static const char *const all[] = {"llama", "llama-dynamic", "llama-longrope", "qwen2", "qwen3", "mistral", "gpt2"};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        (void)model_case(devices[1], all[i], "packed", (int)(i % 3), 1e-4, 1e-3);
}

/* ---------------------------------------------------------------- LoRA */

#define LORA "{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 8, \"lora_dropout\": 0, \"target_modules\": [\"q_proj\", \"v_proj\"]}"

static void lora(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_format_file want = bench_golden("lora/golden.safetensors");
    const apus_tensor_info ids = bench_tensor(&want, "input_ids");
    const int32_t length = (int32_t)ids.dims[0];
    for (size_t d = 0; d < 2; d++) {
        print_message("%s\n", device_names[d]);
        const apus_model_options options = {.device = devices[d], .no_text = 1};
        apus_model *m = bench_model("{\"base\": \"" APUS_TEST_GOLDEN "/models/llama\", \"adapter\": \"" APUS_TEST_GOLDEN "/lora\"}", &options);
        compare_logits(m, &want, "merged_logits", 1e-4);
        apus_model_close(m);

        m = open_golden(devices[d], "llama"); /* beside the matrices, as an answer uses it */
        OK(apus_model_adapt(m, APUS_TEST_GOLDEN "/lora", &err));
        compare_logits(m, &want, "logits", 1e-4);
        apus_model_close(m);

        m = open_golden(devices[d], "llama");
        tune(m, LORA, APUS_TEST_GOLDEN "/lora");
        compare_logits(m, &want, "logits", 1e-4);
        study s;
        size_t micro_batches;
        study_open(&s, m, ids.data, &length, 1, 1024, APUS_RECOMPUTE_NONE);
        const double loss = study_run(&s, &micro_batches);
        assert_true(fabs(loss - (double)*(const float *)bench_tensor(&want, "loss").data) < 1e-4);
        (void)compare_gradients(&s, &want, "base_model.model.", 1e-3);
        study_close(&s);
        apus_model_close(m);

        m = open_golden(devices[d], "llama"); /* rank, scale and targets are the adapter's where nothing else is written */
        tune(m, "{\"type\": \"lora\"}", APUS_TEST_GOLDEN "/lora");
        compare_logits(m, &want, "logits", 1e-4);
        assert_true(NODE->as_float(NODE->get(apus_model_tuner_config(m), "lora_alpha"), 0) == 8);
        apus_model_close(m);

        m = open_golden(devices[d], "llama"); /* a new adapter changes nothing */
        tune(m, LORA, NULL);
        apus_format_file base = bench_golden("models/llama/golden.safetensors");
        compare_logits(m, &base, "logits", 1e-4);
        apus_format_close(&base);
        apus_model_close(m);
    }
    apus_format_close(&want);
}

/* ---------------------------------------------------------------- weights that nothing changes */

/* A model under an adapter, its matrices rounded to bfloat16 on request. settled: as a training has it. */
static apus_model *open_frozen(apus_device *d, const char *name, int round, int settled)
{
    apus_error err = {0};
    apus_model *m = open_golden(d, name);
    for (size_t k = 0; k < m->n_weights && round; k++) {
        apus_weight *w = &m->weights[k];
        const size_t n = apus_weight_elements(&w->spec);
        double *x = malloc(n * sizeof *x);
        bench_read(d, w->device, x, n);
        for (size_t i = 0; i < n; i++)
            x[i] = (double)apus_bf16_to_f32(apus_f32_to_bf16((float)x[i]));
        if (!w->owned)
            OK(apus_model_own(m, w, &err));
        bench_write(d, w->device, x, n);
        free(x);
    }
    tune(m, "{\"type\": \"lora\", \"r\": 4, \"lora_dropout\": 0.1}", NULL);
    if (settled) {
        apus_node *spec = bench_parse("\"cross_entropy\"");
        apus_loss l;
        OK(apus_loss_open(&l, spec, &err));
        OK(apus_objective_settle(m, &l, 1, &err));
        apus_loss_close(&l);
        NODE->release(spec);
    }
    return m;
}

/* What settled weight w should be: packed where products read it, in bfloat16 where they are computed in that. An embedding goes on
 * reading the file where packing rounds. */
static apus_dtype settled_type(apus_device *d, const apus_weight *w, int tied)
{
    const int head = tied ? w->spec.what == APUS_WEIGHT_EMBEDDING && strstr(w->spec.name, "wpe") == NULL : (w->spec.flags & APUS_WEIGHT_HEAD) != 0;
    const int matrix = w->spec.what == APUS_WEIGHT_MATRIX && !w->trained && !head;
    return d != devices[0] && d != devices[1] && (matrix || head) ? APUS_PACKED | APUS_BF16 : APUS_REAL;
}

static int times_forgotten;

static void count_forgotten(void *file)
{
    (void)file;
    times_forgotten++;
}

/* Weights packed once for a whole training give its bits: loss and gradients are those of the same weights read as the file has them. Of that
 * then only rows are read, and its pages leave memory when 512 have been. */
static void frozen(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "llama-tied", "gpt2"};
    apus_error err = {0};
    apus_device *brief = bench_device("{\"type\": \"cpu\", \"threads\": 2, \"dtype\": \"bfloat16\"}");
    for (int i = 0; i < 18; i++) {
        apus_device *d = i / 3 % 3 < 2 ? devices[i / 3 % 3] : brief;
        char file[256];
        snprintf(file, sizeof file, "models/%s/golden.safetensors", names[i % 3]);
        apus_format_file want = bench_golden(file);
        const apus_tensor_info ids = bench_tensor(&want, "input_ids");
        const int32_t length = (int32_t)ids.dims[0];
        study s[2];
        double loss[2];
        for (int settled = 0; settled < 2; settled++) {
            apus_model *m = open_frozen(d, names[i % 3], i / 9, settled);
            for (size_t k = 0; k < m->n_weights; k++) {
                const apus_weight *w = &m->weights[k];
                if (w->dtype != (settled ? settled_type(d, w, i % 3 > 0) : APUS_REAL))
                    fail_msg("case %d: %s has type %d", i, w->spec.name, (int)w->dtype);
                assert_int_equal(w->rows != NULL, i / 9 == 0 && (w->dtype & APUS_PACKED) != 0 && w->spec.what == APUS_WEIGHT_EMBEDDING);
                float row[1024]; /* what is packed, perhaps rounded, makes no file */
                assert_true(w->spec.ndim < 2 || w->spec.dims[1] <= 1024);
                assert_int_equal(apus_model_read(m, k, 0, 0, 1, row, &err), (w->dtype & APUS_PACKED) != 0 ? APUS_E_INTERNAL : APUS_OK);
            }
            size_t micro_batches;
            study_open(&s[settled], m, ids.data, &length, 1, 1024, settled ? APUS_RECOMPUTE_CHEAP : APUS_RECOMPUTE_NONE);
            m->format.ops.forget = count_forgotten;
            assert_int_equal(m->rows_left, settled && d == brief);
            for (int enough = 0; enough < 2; enough++) {
                times_forgotten = 0;
                m->rows_read = enough ? 511 : 0;
                loss[settled] = study_run(&s[settled], &micro_batches);
                assert_int_equal(times_forgotten, enough && m->rows_left);
            }
        }
        assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
        for (size_t k = 0; k < s[0].model->n_weights; k++) {
            size_t n;
            if (s[0].grads[k] == NULL)
                continue;
            double *plain = study_gradient(&s[0], k, &n), *packed = study_gradient(&s[1], k, &n);
            if (memcmp(plain, packed, n * sizeof *plain) != 0)
                fail_msg("case %d: gradient of %s has other bits with packed weights", i, s[0].model->weights[k].spec.name);
            free(plain);
            free(packed);
        }
        for (int k = 0; k < 2; k++) {
            apus_model *m = s[k].model;
            study_close(&s[k]);
            apus_model_close(m);
        }
        apus_format_close(&want);
    }
    apus_device_close(brief);
}

/* ---------------------------------------------------------------- the cut */

/* However a global batch is cut into micro-batches, the loss and the gradients are the same, dropout included. */
static void cuts(void **state)
{
    (void)state;
    apus_format_file want = bench_golden("models/llama/golden.safetensors");
    const int32_t *ids = bench_tensor(&want, "input_ids").data, lengths[5] = {9, 4, 16, 6, 13};
    static const char *const tuners[2] = {"\"full\"", "{\"type\": \"lora\", \"r\": 4, \"lora_alpha\": 8, \"lora_dropout\": 0.3, "
                                                      "\"target_modules\": [\"q_proj\", \"v_proj\"]}"};
    static const int64_t targets[3] = {1024, 24, 1};
    for (size_t d = 0; d < 2; d++)
        for (size_t k = 0; k < 2; k++) {
            apus_model *m = open_golden(devices[d], "llama");
            /* B is zero in a new adapter, and with it A's gradient: start from one where both are not. */
            tune(m, tuners[k], k == 0 ? NULL : APUS_TEST_GOLDEN "/lora");
            study s[3];
            double loss[3];
            size_t micro_batches[3];
            for (size_t c = 0; c < 3; c++) {
                study_open(&s[c], m, ids, lengths, 5, targets[c], (int)c);
                loss[c] = study_run(&s[c], &micro_batches[c]);
                assert_true(fabs(loss[c] - loss[0]) < 1e-5);
            }
            assert_int_equal(micro_batches[0], 1);
            assert_true(micro_batches[1] > 1);
            assert_true(micro_batches[2] == 5); /* a row each, though capacity is the longest's */
            print_message("%s, %s: loss %.7f in 1, %zu and %zu micro-batches\n", device_names[d], k == 0 ? "full" : "lora", loss[0], micro_batches[1],
                          micro_batches[2]);
            for (size_t i = 0; i < m->n_weights; i++) {
                size_t n;
                if (s[0].grads[i] == NULL)
                    continue;
                double *whole = study_gradient(&s[0], i, &n);
                for (size_t c = 1; c < 3; c++) {
                    double *cut = study_gradient(&s[c], i, &n), wrong = 0.0, size = 0.0;
                    for (size_t e = 0; e < n; e++) {
                        wrong += (cut[e] - whole[e]) * (cut[e] - whole[e]);
                        size += whole[e] * whole[e];
                    }
                    if (!(sqrt(wrong) <= (d == 0 ? 1e-12 : 1e-5) * sqrt(size)))
                        fail_msg("%s: gradient of %s: relative difference %g", device_names[d], m->weights[i].spec.name, sqrt(wrong / size));
                    free(cut);
                }
                free(whole);
            }
            for (size_t c = 0; c < 3; c++)
                study_close(&s[c]);
            apus_model_close(m);
        }
    apus_format_close(&want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimizers), cmocka_unit_test(no_decay),      cmocka_unit_test(schedules),    cmocka_unit_test(preferences),
        cmocka_unit_test(models),     cmocka_unit_test(packed_models), cmocka_unit_test(brief_models), cmocka_unit_test(lora),
        cmocka_unit_test(frozen),     cmocka_unit_test(cuts),
    };
    return cmocka_run_group_tests_name("model/training", tests, setup, teardown);
}
