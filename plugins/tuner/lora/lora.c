/*
 * Tuner lora: low-rank adaptation (Hu et al. 2021): y = W x + (alpha/r) B A dropout(x), W frozen. A [r, in] starts uniform in
 * +-1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B [out, r] at zero. Names and adapter_config.json as PEFT has them.
 */
#include <math.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/random.h>
#include <apus/train.h>

typedef struct target {
    char module[256];    /* "model.layers.0.self_attn.q_proj" */
    char a[288], b[288]; /* parameters' names */
    int64_t in, out;
    uint32_t purpose; /* of its dropout */
} target;

typedef struct lora {
    const apus_host *host;
    int64_t r;
    double alpha, dropout;
    int rslora, all_linear, conv1d;
    apus_node *modules; /* wanted: list of names */
    target *targets;
    size_t n_targets;
} lora;

static const apus_node_api *N(const lora *l)
{
    return l->host->node;
}

static void close_tuner(void *tuner)
{
    lora *l = tuner;
    N(l)->release(l->modules);
    l->host->free(l->targets);
    l->host->free(l);
}

static apus_status open_tuner(const apus_host *host, const apus_node *params, void **tuner, apus_error *err)
{
    lora *l = host->alloc(sizeof *l);
    if (l == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    l->host = host;
    l->r = N(l)->as_int(N(l)->get(params, "r"), 8);
    l->alpha = N(l)->as_float(N(l)->get(params, "lora_alpha"), 32.0);
    l->dropout = N(l)->as_float(N(l)->get(params, "lora_dropout"), 0.05);
    l->rslora = N(l)->as_bool(N(l)->get(params, "use_rslora"), 0);
    l->modules = N(l)->copy(N(l)->get(params, "target_modules"));
    if (l->modules == NULL || N(l)->length(l->modules) == 0) {
        close_tuner(l);
        apus_fail(err, APUS_E_INVALID, "tuner lora: target_modules names nothing");
        return apus_hint(err, APUS_E_INVALID, "target_modules: all-linear, or [q_proj, v_proj]");
    }
    const char *first = N(l)->as_string(N(l)->at(l->modules, 0), NULL);
    l->all_linear = N(l)->length(l->modules) == 1 && first != NULL && strcmp(first, "all-linear") == 0;
    *tuner = l;
    return APUS_OK;
}

/* "x.y.weight" -> "x.y"; 0 when it does not fit or is no weight. */
static int module_of(const char *weight, char *module, size_t capacity)
{
    const size_t n = strlen(weight);
    if (n <= 7 || n - 7 >= capacity || strcmp(weight + n - 7, ".weight") != 0)
        return 0;
    memcpy(module, weight, n - 7);
    module[n - 7] = '\0';
    return 1;
}

/* As PEFT: the whole name, or a suffix after a dot. */
static int matches(const char *module, const char *wanted)
{
    const size_t n = strlen(module), k = strlen(wanted);
    return n >= k && strcmp(module + n - k, wanted) == 0 && (n == k || module[n - k - 1] == '.');
}

/* The vocabulary head is no linear op: its logits are streamed, never a tensor that an adapter could add to. */
static int adaptable(const apus_weight_spec *w)
{
    return w->what == APUS_WEIGHT_MATRIX && (w->flags & APUS_WEIGHT_HEAD) == 0;
}

static apus_status no_match(const lora *l, const char *wanted, const apus_weight_spec *weights, size_t n, apus_error *err)
{
    char seen[384] = "", module[256], where[256] = "";
    size_t used = 0;
    N(l)->where(l->modules, where, sizeof where);
    for (size_t i = 0; i < n; i++)
        if ((weights[i].flags & APUS_WEIGHT_HEAD) != 0 && module_of(weights[i].name, module, sizeof module) && matches(module, wanted)) {
            apus_fail(err, APUS_E_UNSUPPORTED, "%s%stuner lora: target module '%s' is the vocabulary head, which cannot be adapted", where,
                      where[0] ? ": " : "", wanted);
            return apus_hint(err, APUS_E_UNSUPPORTED, "leave it out of target_modules; tuner full trains it");
        }
    for (size_t i = 0; i < n; i++) { /* leaf names of the first layer say what there is */
        if (!adaptable(&weights[i]) || weights[i].layer > 0 || !module_of(weights[i].name, module, sizeof module))
            continue;
        const char *leaf = strrchr(module, '.');
        leaf = leaf != NULL ? leaf + 1 : module;
        if (used + strlen(leaf) + 3 < sizeof seen)
            used += (size_t)snprintf(seen + used, sizeof seen - used, "%s%s", used ? ", " : "", leaf);
    }
    apus_fail(err, APUS_E_INVALID, "%s%stuner lora: target module '%s' matches no linear layer of the model", where, where[0] ? ": " : "", wanted);
    return apus_hint(err, APUS_E_INVALID, "this model has: %s", seen);
}

static apus_status add_target(lora *l, const apus_weight_spec *w, apus_error *err)
{
    target t = {.in = w->dims[1], .out = w->dims[0]};
    if (!module_of(w->name, t.module, sizeof t.module))
        return apus_fail(err, APUS_E_UNSUPPORTED, "tuner lora: weight '%s' is not a module's weight", w->name);
    snprintf(t.a, sizeof t.a, "%s.lora_A.weight", t.module);
    snprintf(t.b, sizeof t.b, "%s.lora_B.weight", t.module);
    t.purpose = apus_random_purpose(t.module);
    l->conv1d |= (w->flags & APUS_WEIGHT_TRANSPOSED) != 0;
    target *grown = l->host->realloc(l->targets, l->n_targets * sizeof t, (l->n_targets + 1) * sizeof t);
    if (grown == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    l->targets = grown;
    l->targets[l->n_targets++] = t;
    return APUS_OK;
}

static apus_status bind_weights(void *tuner, const apus_weight_spec *weights, size_t n, apus_error *err)
{
    lora *l = tuner;
    char module[256];
    const size_t n_wanted = N(l)->length(l->modules);
    for (size_t k = 0; k < n_wanted && !l->all_linear; k++) {
        const char *wanted = N(l)->as_string(N(l)->at(l->modules, k), NULL);
        int found = 0;
        for (size_t i = 0; i < n && !found; i++)
            found = adaptable(&weights[i]) && module_of(weights[i].name, module, sizeof module) && matches(module, wanted);
        if (!found)
            return no_match(l, wanted, weights, n, err);
    }
    apus_status st = APUS_OK;
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        if (!adaptable(&weights[i]) || !module_of(weights[i].name, module, sizeof module))
            continue;
        int wanted = l->all_linear;
        for (size_t k = 0; k < n_wanted && !wanted; k++)
            wanted = matches(module, N(l)->as_string(N(l)->at(l->modules, k), NULL));
        if (wanted)
            st = add_target(l, &weights[i], err);
    }
    return st;
}

static int trains(void *tuner, const apus_weight_spec *weight)
{
    (void)tuner;
    (void)weight;
    return 0;
}

static size_t parameters(void *tuner)
{
    return 2 * ((const lora *)tuner)->n_targets;
}

static void spec_of(const lora *l, const target *t, int is_b, apus_weight_spec *s)
{
    memset(s, 0, sizeof *s);
    s->size = sizeof *s;
    s->name = is_b ? t->b : t->a;
    s->role = is_b ? "lora_b" : "lora_a";
    s->layer = -1;
    s->what = APUS_WEIGHT_MATRIX;
    s->ndim = 2;
    s->dims[0] = is_b ? t->out : l->r;
    s->dims[1] = is_b ? l->r : t->in;
    s->init_bound = is_b ? 0.0 : 1.0 / sqrt((double)t->in);
}

static apus_status parameter(void *tuner, size_t i, apus_weight_spec *spec)
{
    const lora *l = tuner;
    if (i >= 2 * l->n_targets)
        return APUS_E_NOT_FOUND;
    spec_of(l, &l->targets[i / 2], (int)(i % 2), spec);
    return APUS_OK;
}

static const target *find(const lora *l, const char *weight)
{
    char module[256];
    if (!module_of(weight, module, sizeof module))
        return NULL;
    for (size_t i = 0; i < l->n_targets; i++)
        if (strcmp(l->targets[i].module, module) == 0)
            return &l->targets[i];
    return NULL;
}

static double scaling(const lora *l)
{
    return l->alpha / (l->rslora ? sqrt((double)l->r) : (double)l->r);
}

static apus_tensor linear(void *tuner, apus_graph *g, apus_tensor x, const apus_weight_spec *weight, apus_tensor y, int dropout)
{
    const lora *l = tuner;
    const target *t = find(l, weight->name);
    apus_weight_spec a, b;
    if (t == NULL)
        return y;
    spec_of(l, t, 0, &a);
    spec_of(l, t, 1, &b);
    if (dropout && l->dropout > 0.0) {
        const int64_t tokens = APUS_DIM_TOKENS, two = 2;
        x = apus_dropout(g, x, APUS_G->input(g, "token_index", APUS_I64, 1, &tokens), APUS_G->input(g, "random", APUS_I64, 1, &two), l->dropout,
                         (int64_t)t->purpose);
    }
    /* The scale goes on the thin side: [T, r] instead of [T, out]. */
    const apus_tensor low = apus_scale(g, apus_matmul(g, x, APUS_G->weight(g, &a)), scaling(l));
    return apus_add(g, apus_matmul(g, low, APUS_G->weight(g, &b)), y);
}

static int merge(void *tuner, const apus_weight_spec *weight, int64_t row, int64_t rows, float *w, apus_tuner_values values, void *context)
{
    const lora *l = tuner;
    const target *t = find(l, weight->name);
    if (t == NULL)
        return 0;
    const float *a = values(context, t->a), *b = values(context, t->b);
    if (a == NULL || b == NULL)
        return 0;
    const float scale = (float)scaling(l);
    for (int64_t o = 0; o < rows; o++)
        for (int64_t k = 0; k < l->r; k++) {
            const float s = scale * b[(row + o) * l->r + k];
            for (int64_t i = 0; i < t->in; i++)
                w[o * t->in + i] += s * a[k * t->in + i];
        }
    return 1;
}

static apus_node *config(void *tuner)
{
    const lora *l = tuner;
    const apus_node_api *node = N(l);
    apus_node *c = node->make_map(), *modules = node->make_list();
    for (size_t i = 0; i < l->n_targets; i++) { /* leaf names, each once */
        const char *leaf = strrchr(l->targets[i].module, '.');
        leaf = leaf != NULL ? leaf + 1 : l->targets[i].module;
        int known = 0;
        for (size_t k = 0; k < node->length(modules) && !known; k++)
            known = strcmp(node->as_string(node->at(modules, k), NULL), leaf) == 0;
        if (!known)
            (void)node->append(modules, node->make_string(leaf, (size_t)-1));
    }
    (void)node->set(c, "peft_type", node->make_string("LORA", 4));
    (void)node->set(c, "task_type", node->make_string("CAUSAL_LM", 9));
    (void)node->set(c, "r", node->make_int(l->r));
    (void)node->set(c, "lora_alpha", node->make_float(l->alpha));
    (void)node->set(c, "lora_dropout", node->make_float(l->dropout));
    (void)node->set(c, "target_modules", modules);
    (void)node->set(c, "use_rslora", node->make_bool(l->rslora));
    (void)node->set(c, "use_dora", node->make_bool(0));
    (void)node->set(c, "bias", node->make_string("none", 4));
    (void)node->set(c, "fan_in_fan_out", node->make_bool(l->conv1d));
    (void)node->set(c, "inference_mode", node->make_bool(1));
    (void)node->set(c, "init_lora_weights", node->make_bool(1));
    (void)node->set(c, "modules_to_save", node->make_null());
    return c;
}

static int set_and_not_empty(const apus_node_api *node, const apus_node *n)
{
    return node->kind(n) != APUS_NODE_NULL && !(node->kind(n) == APUS_NODE_BOOL && !node->as_bool(n, 0)) &&
           !((node->kind(n) == APUS_NODE_MAP || node->kind(n) == APUS_NODE_LIST) && node->length(n) == 0);
}

static apus_node *from_config(const apus_host *host, const apus_node *c, apus_error *err)
{
    static const char *const copied[] = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"};
    static const char *const refused[] = {"use_dora",          "modules_to_save", "rank_pattern",       "alpha_pattern", "trainable_token_indices",
                                          "target_parameters", "lora_bias",       "layers_to_transform"};
    const apus_node_api *node = host->node;
    const char *type = node->as_string(node->get(c, "peft_type"), NULL), *bias = node->as_string(node->get(c, "bias"), NULL);
    if (type == NULL || strcmp(type, "LORA") != 0) {
        (void)apus_fail(err, APUS_E_UNSUPPORTED, "adapter_config.json: peft_type '%s' is not LORA", type ? type : "(missing)");
        return NULL;
    }
    if (bias != NULL && strcmp(bias, "none") != 0) {
        (void)apus_fail(err, APUS_E_UNSUPPORTED, "adapter_config.json: bias '%s' cannot be read (only none)", bias);
        return NULL;
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (set_and_not_empty(node, node->get(c, refused[i]))) {
            (void)apus_fail(err, APUS_E_UNSUPPORTED, "adapter_config.json: %s is set, which tuner lora does not do", refused[i]);
            return NULL;
        }
    apus_node *p = node->make_map();
    for (size_t i = 0; i < sizeof copied / sizeof copied[0]; i++) {
        const apus_node *v = node->get(c, copied[i]);
        if (node->kind(v) != APUS_NODE_NULL)
            (void)node->set(p, copied[i], node->copy(v));
    }
    return p;
}

static const apus_tuner_ops ops = {.size = sizeof ops,
                                   .open = open_tuner,
                                   .close = close_tuner,
                                   .bind = bind_weights,
                                   .trains = trains,
                                   .parameters = parameters,
                                   .parameter = parameter,
                                   .linear = linear,
                                   .merge = merge,
                                   .config = config,
                                   .from_config = from_config};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "r",
     .type = APUS_PARAM_INT,
     .fallback = "8",
     .min = 1,
     .max = 65536,
     .doc = "Rank.",
     .aliases = "lora_rank lora_r rank"},
    {.size = sizeof(apus_param),
     .name = "lora_alpha",
     .type = APUS_PARAM_FLOAT,
     .fallback = "32",
     .min = 0.0,
     .max = 1e6,
     .doc = "The update is scaled by lora_alpha / r.",
     .aliases = "alpha"},
    {.size = sizeof(apus_param),
     .name = "lora_dropout",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.05",
     .min = 0.0,
     .max = 0.99,
     .doc = "Dropout on the adapter's input (off in preference losses, as in TRL).",
     .aliases = "dropout"},
    {.size = sizeof(apus_param),
     .name = "target_modules",
     .type = APUS_PARAM_LIST,
     .item = APUS_PARAM_STRING,
     .fallback = "[all-linear]",
     .min = 1,
     .max = 0,
     .doc = "Linear layers to adapt, by name or suffix as in PEFT; all-linear: every one but the vocabulary head.",
     .aliases = "lora_target lora_target_modules"},
    {.size = sizeof(apus_param),
     .name = "use_rslora",
     .type = APUS_PARAM_BOOL,
     .fallback = "false",
     .min = 1,
     .max = 0,
     .doc = "Scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023).",
     .aliases = "use_rs_lora"},
    {.size = sizeof(apus_param),
     .name = "adapter",
     .type = APUS_PARAM_MODEL,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "Adapter to go on from: a PEFT folder or an earlier stage; what is not written here is as it was there. Left out: a new one that starts "
            "at zero."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "tuner",
                                             .name = "lora",
                                             .doc = "Low-rank adaptation: trains two thin matrices beside each chosen layer.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "lora",   .version = "1.0.0", .license = "Apache-2.0", .doc = "Low-rank adaptation.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_graph_functions = host->extension("apus.graph/1");
    return &plugin;
}
