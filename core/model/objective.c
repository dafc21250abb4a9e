/* core/model/objective.c: see objective.h. */
#include "model/objective.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/internal.h"

static const apus_graph_api *G(void)
{
    return apus_graph_table();
}

/* ---------------------------------------------------------------- the loss */

apus_status apus_loss_open(apus_loss *l, const apus_node *spec, apus_error *err)
{
    const apus_component *c;
    apus_node *params;
    memset(l, 0, sizeof *l);
    apus_status st = apus_component_resolve("loss", spec, NULL, &c, &params, err);
    if (st != APUS_OK)
        return st;
    apus_take(&l->ops, sizeof l->ops, c->ops);
    st = l->ops.open(apus_host_table(), params, &l->loss, err);
    apus_nodes()->release(params);
    if (st == APUS_OK)
        l->needs = l->ops.needs(l->loss);
    else
        l->loss = NULL;
    return st;
}

void apus_loss_close(apus_loss *l)
{
    if (l->loss != NULL)
        l->ops.close(l->loss);
    memset(l, 0, sizeof *l);
}

static void add_term(apus_loss_context *c, const char *name, apus_tensor sum, apus_tensor count, double weight)
{
    if (c->n_terms == APUS_MAX_TERMS) {
        G()->fail(c->graph, "a loss has more than 8 terms");
        return;
    }
    snprintf(c->term_names[c->n_terms], sizeof c->term_names[0], "%s", name);
    c->term_sum[c->n_terms] = sum;
    c->term_count[c->n_terms] = count;
    c->weights[c->n_terms++] = weight;
}

static void add_metric(apus_loss_context *c, const char *name, apus_tensor sum, apus_tensor count)
{
    if (c->n_metrics == APUS_MAX_METRICS) {
        G()->fail(c->graph, "a loss has more than 24 metrics");
        return;
    }
    snprintf(c->metric_names[c->n_metrics], sizeof c->metric_names[0], "%s", name);
    c->metric_sum[c->n_metrics] = sum;
    c->metric_count[c->n_metrics++] = count;
}

static apus_tensor input(apus_graph *g, const char *name, apus_dtype type, int64_t dim)
{
    return G()->input(g, name, type, 1, &dim);
}

/* hidden states of the scored positions -> log-probability of each target; *row_logps: their sums by row. */
static apus_tensor token_logps(apus_graph *g, const apus_forward *f, apus_tensor *row_logps)
{
    const apus_tensor scored = input(g, "scored", APUS_I32, APUS_DIM_SCORED);
    const apus_tensor pick[2] = {f->hidden, scored};
    const apus_tensor in[3] = {G()->emit(g, "apus.gather/1", pick, 2, NULL, 0), f->head, input(g, "targets", APUS_I32, APUS_DIM_SCORED)};
    const double attrs[2] = {f->outputs.logit_scale, f->outputs.logit_softcap};
    const apus_tensor logps = G()->emit(g, "apus.token_logprob/1", in, 3, attrs, 2);
    const apus_tensor add[3] = {logps, input(g, "token_rows", APUS_I32, APUS_DIM_SCORED), input(g, "row_tokens", APUS_REAL, APUS_DIM_ROWS)};
    *row_logps = G()->emit(g, "apus.scatter_add/1", add, 3, NULL, 0);
    return logps;
}

static apus_tensor gather(apus_graph *g, apus_tensor x, apus_tensor index)
{
    const apus_tensor in[2] = {x, index};
    return G()->emit(g, "apus.gather/1", in, 2, NULL, 0);
}

static void build_loss(apus_objective *o, const apus_loss *l, const apus_forward *f)
{
    apus_graph *g = o->graph;
    apus_signals s = {.size = sizeof s, .context = &o->context, .term = add_term, .metric = add_metric};
    o->context.graph = g;
    s.token_logps = token_logps(g, f, &s.row_logps);
    s.token_rows = input(g, "token_rows", APUS_I32, APUS_DIM_SCORED);
    s.row_tokens = input(g, "row_tokens", APUS_REAL, APUS_DIM_ROWS);
    s.ones = input(g, "ones", APUS_REAL, APUS_DIM_SCORED);
    s.chosen_logps = s.rejected_logps = s.chosen_tokens = s.rejected_tokens = s.pair_ones = apus_none();
    s.reference_chosen_logps = s.reference_rejected_logps = apus_none();
    if (l->needs & APUS_LOSS_PAIRS) {
        const apus_tensor chosen = input(g, "chosen_rows", APUS_I32, APUS_DIM_PAIRS);
        const apus_tensor rejected = input(g, "rejected_rows", APUS_I32, APUS_DIM_PAIRS);
        s.chosen_logps = gather(g, s.row_logps, chosen);
        s.rejected_logps = gather(g, s.row_logps, rejected);
        s.chosen_tokens = gather(g, s.row_tokens, chosen);
        s.rejected_tokens = gather(g, s.row_tokens, rejected);
        s.pair_ones = input(g, "pair_ones", APUS_REAL, APUS_DIM_PAIRS);
        if (l->needs & APUS_LOSS_NEEDS_REFERENCE) {
            s.reference_chosen_logps = input(g, "reference_chosen_logps", APUS_REAL, APUS_DIM_PAIRS);
            s.reference_rejected_logps = input(g, "reference_rejected_logps", APUS_REAL, APUS_DIM_PAIRS);
        }
    }
    l->ops.build(l->loss, g, &s);
    if (o->context.n_terms == 0)
        G()->fail(g, "the loss gave no term");
}

static apus_tensor gradient_variable(apus_graph *g, const apus_weight *w)
{
    char name[512];
    snprintf(name, sizeof name, "grad.%s", w->spec.name);
    return apus_graph_variable(g, name, APUS_REAL, (uint32_t)w->spec.ndim, w->spec.dims);
}

static apus_status build_gradients(apus_objective *o, apus_model *m, apus_error *err)
{
    apus_graph *g = o->graph;
    const size_t n = apus_model_weights(m);
    apus_tensor *wrt = malloc(2 * n * sizeof *wrt), *grads = wrt + n, dy[APUS_MAX_TERMS];
    apus_weight **trained = malloc(n * sizeof(apus_weight *));
    if (wrt == NULL || trained == NULL) {
        free(wrt);
        free(trained);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    size_t n_wrt = 0;
    for (size_t i = 0; i < n; i++) {
        apus_weight *w = apus_model_weight(m, i);
        if (!w->trained)
            continue;
        trained[n_wrt] = w;
        wrt[n_wrt++] = apus_graph_variable(g, w->spec.name, APUS_REAL, (uint32_t)w->spec.ndim, w->spec.dims);
    }
    for (size_t k = 0; k < o->context.n_terms; k++) {
        char name[32];
        const int64_t one = 1;
        snprintf(name, sizeof name, "term_scale.%zu", k);
        dy[k] = G()->input(g, name, APUS_REAL, 1, &one);
    }
    apus_graph_gradients(g, o->context.term_sum, dy, o->context.n_terms, wrt, n_wrt, grads);
    for (size_t i = 0; i < n_wrt; i++) {
        if (apus_is_none(grads[i]))
            continue;
        apus_graph_accumulate(g, gradient_variable(g, trained[i]), grads[i]);
    }
    free(wrt);
    free(trained);
    return apus_graph_status(g, err);
}

static const char *const scale_names[APUS_MAX_TERMS] = {"term_scale.0", "term_scale.1", "term_scale.2", "term_scale.3",
                                                        "term_scale.4", "term_scale.5", "term_scale.6", "term_scale.7"};

/* The graph from tokens to terms. A training's log-probabilities that are held against the reference's have the same kernels as those. */
static apus_status build(apus_objective *o, apus_model *m, const apus_loss *l, const apus_objective_options *options, apus_error *err)
{
    const apus_forward_options forward = {.mode = APUS_FORWARD_PLAIN,
                                          .tuner = 1,
                                          .dropout = options->dropout && !(l->needs & APUS_LOSS_NO_DROPOUT),
                                          .narrow = 1,
                                          .tuned = options->train && !(l->needs & APUS_LOSS_NEEDS_REFERENCE)};
    apus_forward f;
    o->graph = apus_model_graph(m, &forward);
    if (o->graph == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = apus_model_forward(m, o->graph, &f, err);
    if (st != APUS_OK)
        return st;
    build_loss(o, l, &f);
    return apus_graph_status(o->graph, err);
}

apus_status apus_objective_settle(apus_model *m, const apus_loss *l, int train, apus_error *err)
{
    apus_objective o = {0};
    const apus_objective_options options = {.train = train};
    if (!apus_model_shrinks(m))
        return APUS_OK;
    apus_status st = build(&o, m, l, &options, err);
    if (st == APUS_OK && train)
        st = build_gradients(&o, m, err);
    if (st == APUS_OK)
        apus_model_settle(m, o.graph, 0);
    apus_graph_free(o.graph);
    return st;
}

apus_status apus_objective_open(apus_objective *o, apus_model *m, const apus_loss *l, const apus_objective_options *options,
                                const int64_t capacity[APUS_N_DIM_SYMBOLS], apus_error *err)
{
    memset(o, 0, sizeof *o);
    o->model = m;
    o->feeds = calloc(APUS_BATCH_FEEDS + APUS_MAX_TERMS, sizeof *o->feeds);
    if (o->feeds == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = build(o, m, l, options, err);
    apus_tensor outputs[2 * (APUS_MAX_TERMS + APUS_MAX_METRICS)], counts[APUS_MAX_TERMS];
    const apus_loss_context *c = &o->context;
    size_t n = 0;
    for (size_t k = 0; k < c->n_terms; k++) {
        outputs[n++] = c->term_sum[k];
        outputs[n++] = c->term_count[k];
        counts[k] = c->term_count[k];
    }
    for (size_t k = 0; k < c->n_metrics; k++) {
        outputs[n++] = c->metric_sum[k];
        outputs[n++] = c->metric_count[k];
    }
    if (st == APUS_OK && options->train) {
        /* The counts are planned before the gradients' effects join the graph. */
        st = apus_plan_new(o->graph, apus_model_device(m), counts, c->n_terms, capacity, APUS_RECOMPUTE_NONE, &o->counts, err);
        if (st == APUS_OK && apus_plan_uses_input(o->counts, "tokens"))
            st = apus_fail(err, APUS_E_UNSUPPORTED, "the loss's count depends on the model; it must depend on the data alone");
        if (st == APUS_OK)
            st = build_gradients(o, m, err);
    }
    if (st == APUS_OK)
        st = apus_plan_new(o->graph, apus_model_device(m), outputs, n, capacity, options->train ? options->recompute : APUS_RECOMPUTE_NONE, &o->plan,
                           err);
    if (st != APUS_OK)
        return st;
    if (o->counts != NULL)
        apus_plan_share(o->counts, o->plan);
    return apus_model_bind(m, o->plan, err);
}

void apus_objective_close(apus_objective *o)
{
    apus_plan_free(o->counts);
    apus_plan_free(o->plan);
    apus_graph_free(o->graph);
    free(o->feeds);
    memset(o, 0, sizeof *o);
}

apus_status apus_objective_count(apus_objective *o, const apus_batch *b, apus_objective_sums *sums, apus_error *err)
{
    apus_status st = apus_plan_run(o->counts, b->extents, b->feeds, b->n_feeds, err);
    for (size_t k = 0; k < o->context.n_terms && st == APUS_OK; k++) {
        double v = 0.0;
        st = apus_plan_output(o->counts, k, &v, 1, err);
        sums->term_count[k] += v;
    }
    return st;
}

apus_status apus_objective_scale(apus_objective *o, const apus_objective_sums *counts, apus_error *err)
{
    for (size_t k = 0; k < o->context.n_terms; k++) {
        if (!(counts->term_count[k] > 0.0)) {
            apus_fail(err, APUS_E_INVALID, "the batch has nothing to train on: loss term '%s' counts %g", o->context.term_names[k],
                      counts->term_count[k]);
            return apus_hint(err, APUS_E_INVALID, "raise dataset.max_length, or look at the rows with `apus preview`");
        }
        o->scale[k] = o->context.weights[k] / counts->term_count[k];
    }
    return APUS_OK;
}

/* The batch's and the scales; their number. */
static size_t gather_feeds(apus_objective *o, const apus_batch *b)
{
    size_t n_feeds = b->n_feeds;
    memcpy(o->feeds, b->feeds, n_feeds * sizeof *o->feeds);
    for (size_t k = 0; k < o->context.n_terms; k++)
        o->feeds[n_feeds++] = (apus_feed){scale_names[k], &o->scale[k]};
    return n_feeds;
}

apus_status apus_objective_measure(apus_objective *o, const apus_batch *b, double *seconds, apus_error *err)
{
    const size_t n_feeds = gather_feeds(o, b);
    return apus_plan_measure(o->plan, b->extents, o->feeds, n_feeds, seconds, err);
}

apus_status apus_objective_run(apus_objective *o, const apus_batch *b, apus_objective_sums *sums, apus_error *err)
{
    const size_t n_feeds = gather_feeds(o, b);
    apus_status st = apus_model_run(o->model, o->plan, b->extents, o->feeds, n_feeds, err);
    size_t n = 0;
    for (size_t k = 0; k < o->context.n_terms + o->context.n_metrics && st == APUS_OK; k++) {
        double sum = 0.0, count = 0.0;
        st = apus_plan_output(o->plan, n++, &sum, 1, err);
        if (st == APUS_OK)
            st = apus_plan_output(o->plan, n++, &count, 1, err);
        if (k < o->context.n_terms) {
            sums->term_sum[k] += sum;
            sums->term_count[k] += count;
        } else {
            sums->metric_sum[k - o->context.n_terms] += sum;
            sums->metric_count[k - o->context.n_terms] += count;
        }
    }
    return st;
}

double apus_objective_loss(const apus_objective *o, const apus_objective_sums *sums)
{
    double loss = 0.0;
    for (size_t k = 0; k < o->context.n_terms; k++)
        loss += o->context.weights[k] * sums->term_sum[k] / sums->term_count[k];
    return loss;
}

static void report(apus_node *map, const char *prefix, const char *kind, const char *name, double v)
{
    char key[160];
    snprintf(key, sizeof key, "%s%s%s", prefix, kind, name);
    apus_node_set_float(map, key, v);
}

void apus_objective_report(const apus_objective *o, const apus_objective_sums *sums, const char *prefix, apus_node *map)
{
    const apus_loss_context *c = &o->context;
    report(map, prefix, "", "loss", apus_objective_loss(o, sums));
    for (size_t k = 0; k < c->n_terms && c->n_terms > 1; k++)
        report(map, prefix, "loss/", c->term_names[k], sums->term_sum[k] / sums->term_count[k]);
    for (size_t k = 0; k < c->n_metrics; k++)
        if (sums->metric_count[k] > 0.0)
            report(map, prefix, "", c->metric_names[k], sums->metric_sum[k] / sums->metric_count[k]);
}

/* ---------------------------------------------------------------- the reference */

static apus_status freeze(apus_reference *r, apus_model *policy, apus_error *err)
{
    r->n_frozen = apus_model_weights(policy);
    r->frozen = calloc(r->n_frozen, sizeof *r->frozen);
    if (r->frozen == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < r->n_frozen; i++) {
        const apus_weight *w = apus_model_weight(policy, i);
        if (!w->trained)
            continue;
        r->frozen[i] = apus_device_alloc(policy->device, w->bytes, err);
        void *bounce = malloc(w->bytes);
        apus_status st = r->frozen[i] != NULL && bounce != NULL ? APUS_OK : APUS_E_MEMORY;
        if (st == APUS_OK)
            st = apus_device_download(policy->device, bounce, w->device, w->bytes, err);
        if (st == APUS_OK)
            st = apus_device_upload(policy->device, r->frozen[i], bounce, w->bytes, err);
        free(bounce);
        if (st != APUS_OK)
            return st;
    }
    return APUS_OK;
}

/* Log-probabilities of rows by the reference. */
static apus_status reference_graph(const apus_reference *r, apus_graph **graph, apus_tensor *row_logps, apus_error *err)
{
    const apus_forward_options forward = {.mode = APUS_FORWARD_PLAIN, .tuner = r->adapter, .narrow = 1};
    apus_forward f;
    apus_graph *g = apus_model_graph(r->model, &forward);
    const apus_status st = g != NULL ? apus_model_forward(r->model, g, &f, err) : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st != APUS_OK) {
        apus_graph_free(g);
        return st;
    }
    (void)token_logps(g, &f, row_logps);
    *graph = g;
    return APUS_OK;
}

/* A model of the reference's own. */
static apus_status open_other(apus_reference *r, const apus_node *spec, const apus_model *policy, int64_t now, apus_error *err)
{
    const apus_model_options options = {.device = policy->device, .now = now, .no_text = 1};
    apus_tensor row_logps;
    apus_graph *g;
    apus_status st = apus_model_open(spec, &options, &r->model, err);
    r->owns_model = st == APUS_OK;
    if (st != APUS_OK || !apus_model_shrinks(r->model))
        return st;
    st = reference_graph(r, &g, &row_logps, err);
    if (st != APUS_OK)
        return st;
    apus_model_settle(r->model, g, 0);
    apus_graph_free(g);
    return APUS_OK;
}

apus_status apus_reference_open(apus_reference *r, apus_model *policy, const apus_node *how, int new_adapter, int64_t now, apus_error *err)
{
    const apus_node_api *node = apus_nodes();
    const char *name = node->as_string(how, NULL);
    memset(r, 0, sizeof *r);
    r->adapter = 1;
    r->model = policy;
    apus_status st = APUS_OK;
    if (name != NULL && strcmp(name, "precomputed") == 0) {
        r->model = NULL;
        return APUS_OK;
    }
    if (name == NULL || strcmp(name, "start") == 0) {
        if (node->kind(how) == APUS_NODE_MAP) {
            st = open_other(r, how, policy, now, err);
        } else if (policy->tuner == NULL) {
            st = APUS_OK; /* nothing is trained: the model is its own start */
        } else if (new_adapter) {
            r->adapter = 0;
        } else {
            st = freeze(r, policy, err);
        }
    } else if (strcmp(name, "base") == 0) {
        r->adapter = 0;
        if (policy->tuner_config == NULL) {
            st = apus_fail(err, APUS_E_INVALID, "loss.reference: base means the adapter off, but this tuner trains the model itself");
            apus_hint(err, st, "use reference: start, or name a model");
        }
    } else {
        st = open_other(r, how, policy, now, err);
    }
    if (st == APUS_OK && r->model->facts.length_dependent && !policy->facts.length_dependent)
        st = apus_fail(err, APUS_E_UNSUPPORTED,
                       "loss.reference: this model's states depend on a sequence's length, the trained one's do not: "
                       "the rows were made for the latter");
    return st;
}

apus_status apus_reference_plan(apus_reference *r, const int64_t capacity[APUS_N_DIM_SYMBOLS], apus_error *err)
{
    if (r->model == NULL)
        return APUS_OK;
    apus_plan_free(r->plan);
    apus_graph_free(r->graph);
    free(r->rows);
    r->plan = NULL;
    r->graph = NULL;
    r->rows = malloc(((size_t)capacity[-1 - APUS_DIM_ROWS] + 1) * sizeof *r->rows);
    if (r->rows == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_tensor row_logps;
    apus_status st = reference_graph(r, &r->graph, &row_logps, err);
    if (st == APUS_OK)
        st = apus_plan_new(r->graph, r->model->device, &row_logps, 1, capacity, APUS_RECOMPUTE_NONE, &r->plan, err);
    if (st == APUS_OK)
        st = apus_model_bind(r->model, r->plan, err);
    for (size_t i = 0; i < apus_plan_variable_count(r->plan) && st == APUS_OK && r->frozen != NULL; i++) {
        const apus_weight *w = apus_model_weight_named(r->model, apus_plan_variable_at(r->plan, i, NULL));
        if (w != NULL && r->frozen[w - r->model->weights] != NULL)
            st = apus_plan_bind(r->plan, w->spec.name, r->frozen[w - r->model->weights], err);
    }
    return st;
}

void apus_reference_close(apus_reference *r)
{
    apus_plan_free(r->plan);
    apus_graph_free(r->graph);
    for (size_t i = 0; i < r->n_frozen; i++)
        if (r->frozen[i] != NULL)
            apus_device_free(r->model->device, r->frozen[i], r->model->weights[i].bytes);
    free(r->frozen);
    free(r->rows);
    if (r->owns_model)
        apus_model_close(r->model);
    memset(r, 0, sizeof *r);
}

apus_status apus_reference_run(apus_reference *r, apus_batch *b, apus_error *err)
{
    if (r->plan == NULL)
        return APUS_OK;
    apus_status st = apus_model_run(r->model, r->plan, b->extents, b->feeds, b->n_feeds, err);
    if (st == APUS_OK)
        st = apus_plan_output(r->plan, 0, r->rows, b->extents[-1 - APUS_DIM_ROWS], err);
    for (int64_t p = 0; p < b->extents[-1 - APUS_DIM_PAIRS] && st == APUS_OK; p++) {
        b->reference_chosen[p] = r->rows[b->chosen_rows[p]];
        b->reference_rejected[p] = r->rows[b->rejected_rows[p]];
    }
    return st;
}

apus_status apus_reference_measure(apus_reference *r, const apus_batch *b, double *seconds, apus_error *err)
{
    *seconds = 0.0;
    return r->plan != NULL ? apus_plan_measure(r->plan, b->extents, b->feeds, b->n_feeds, seconds, err) : APUS_OK;
}
