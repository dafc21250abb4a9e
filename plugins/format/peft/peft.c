/*
 * plugins/format/peft: adapter folders as PEFT has them: adapter_config.json and adapter_model.safetensors, both ways.
 * A parameter "model.layers.0.self_attn.q_proj.lora_A.weight" is the file's "base_model.model." and that name. Knows no
 * kind of adapter: the configuration is the tuners' to read.
 */
#include <apus/model.h>
#include <apus/names.h>
#include <apus/plugin.h>
#include <apus/safetensors.h>

#define PREFIX  "base_model.model."
#define CONFIG  "adapter_config.json"
#define WEIGHTS "adapter_model.safetensors"

typedef struct adapter {
    const apus_host *host;
    const char *path; /* behind the struct */
    apus_safetensors weights;
    unsigned char *used;
    apus_names names;
    apus_node *config;
} adapter;

static int claims(const char *path)
{
    if (!apus_is_folder(path) || !apus_folder_has(path, CONFIG))
        return 0;
    /* a whole model beside it is the model's folder */
    return apus_folder_has(path, "model.safetensors") || apus_folder_has(path, "model.safetensors.index.json") ? 10 : 90;
}

static apus_status open_weights(adapter *a, apus_error *err)
{
    char path[4096];
    if (!apus_folder_has(a->path, WEIGHTS)) {
        if (apus_folder_has(a->path, "adapter_model.bin")) {
            apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: its weights are in adapter_model.bin, a pickle, which can run code when read", a->path);
            return apus_hint(err, APUS_E_UNSUPPORTED,
                             "convert it once with PEFT: AutoPeftModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)");
        }
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: has %s but no %s", a->path, CONFIG, WEIGHTS);
    }
    if (!apus_path_join(path, sizeof path, a->path, WEIGHTS))
        return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", a->path);
    const apus_status st = apus_safetensors_open(a->host, path, &a->weights, err);
    if (st != APUS_OK)
        return st;
    const size_t n = a->weights.count;
    a->used = a->host->alloc(n + 1);
    if (a->used == NULL || n >= APUS_NAMES_NONE || !apus_names_open(a->host, &a->names, n + 1))
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", a->path);
    for (size_t i = 0; i < n; i++)
        apus_names_add(&a->names, a->weights.tensors[i].name, strlen(a->weights.tensors[i].name), (uint32_t)i);
    return APUS_OK;
}

static apus_status open_config(adapter *a, apus_error *err)
{
    const apus_node_api *node = a->host->node;
    apus_status st = apus_json_in(a->host, a->path, CONFIG, &a->config, err);
    if (st == APUS_OK && a->config == NULL)
        st = apus_fail_line(err, APUS_E_NOT_FOUND, "%s: has no %s", a->path, CONFIG);
    if (st == APUS_OK && node->as_string(node->get(a->config, "peft_type"), NULL) == NULL) {
        apus_fail_line(err, APUS_E_INVALID, "%s/%s: peft_type is missing", a->path, CONFIG);
        st = apus_hint(err, APUS_E_INVALID, "an adapter that PEFT saved says \"peft_type\": \"LORA\" there");
    }
    return st;
}

static void close_file(void *file)
{
    adapter *a = file;
    if (a == NULL)
        return;
    const apus_host *host = a->host;
    apus_names_close(host, &a->names);
    host->free(a->used);
    apus_safetensors_close(host, &a->weights);
    host->node->release(a->config);
    host->free(a);
}

static apus_status open_file(const apus_host *host, const apus_node *params, const char *path, void **file, apus_error *err)
{
    (void)params;
    const size_t n = strlen(path);
    adapter *a = host->alloc(sizeof *a + n + 1);
    if (a == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    memcpy((char *)(a + 1), path, n + 1);
    a->path = (const char *)(a + 1);
    a->host = host;
    apus_status st = open_config(a, err);
    if (st == APUS_OK)
        st = open_weights(a, err);
    if (st != APUS_OK) {
        close_file(a);
        return st;
    }
    *file = a;
    return APUS_OK;
}

static apus_status card(void *file, apus_model_card *c, apus_error *err)
{
    const adapter *a = file;
    (void)err;
    c->config = a->config;
    c->metadata = a->weights.metadata;
    return APUS_OK;
}

static uint64_t count(void *file)
{
    return ((const adapter *)file)->weights.count;
}

static void give(apus_tensor_info *info, const apus_tensor_info *t)
{
    const uint32_t size = info->size < sizeof *info && info->size > 0 ? info->size : (uint32_t)sizeof *info;
    memcpy(info, t, size);
    info->size = size;
}

static apus_status tensor(void *file, uint64_t i, apus_tensor_info *info, apus_error *err)
{
    const adapter *a = file;
    if (i >= a->weights.count)
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: has %zu tensors", a->path, a->weights.count);
    give(info, &a->weights.tensors[i]);
    return APUS_OK;
}

/* "base_model.model." and the name; adapters saved on a bare base model lack its "model." or "transformer.". */
static apus_status find(void *file, const apus_weight_spec *weight, apus_tensor_info *info, apus_error *err)
{
    adapter *a = file;
    const char *bare = strncmp(weight->name, "model.", 6) == 0          ? weight->name + 6
                       : strncmp(weight->name, "transformer.", 12) == 0 ? weight->name + 12
                                                                        : weight->name;
    char name[1024];
    snprintf(name, sizeof name, PREFIX "%s", weight->name);
    uint32_t at = apus_names_find(&a->names, name, strlen(name));
    if (at == APUS_NAMES_NONE) {
        snprintf(name, sizeof name, PREFIX "%s", bare);
        at = apus_names_find(&a->names, name, strlen(name));
    }
    if (at == APUS_NAMES_NONE)
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: no tensor '" PREFIX "%s'", a->path, weight->name);
    a->used[at] = 1;
    give(info, &a->weights.tensors[at]);
    return APUS_OK;
}

static uint64_t unused(void *file, uint64_t i)
{
    const adapter *a = file;
    while (i < a->weights.count && a->used[i])
        i++;
    return i;
}

/* Names of the file in one block, beside the items. */
static apus_status make_items(const apus_host *host, const apus_model_export *model, apus_safetensors_item *items, char **names, apus_error *err)
{
    const size_t stride = model->n_weights > 0 ? model->weights[0].size : 0;
    size_t bytes = 1;
    for (size_t i = 0; i < model->n_weights; i++)
        bytes += strlen(((const apus_weight_spec *)((const char *)model->weights + i * stride))->name) + sizeof PREFIX;
    char *p = *names = host->alloc(bytes);
    if (p == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "out of memory");
    for (size_t i = 0; i < model->n_weights; i++) {
        const apus_weight_spec *w = (const apus_weight_spec *)((const char *)model->weights + i * stride);
        const size_t n = strlen(w->name);
        items[i] =
            (apus_safetensors_item){.name = p, .dtype = APUS_F32, .ndim = w->ndim, .dims = {w->dims[0], w->ndim > 1 ? w->dims[1] : 1}, .weight = i};
        memcpy(p, PREFIX, sizeof PREFIX - 1);
        memcpy(p + sizeof PREFIX - 1, w->name, n + 1);
        p += sizeof PREFIX + n;
    }
    return APUS_OK;
}

static apus_status write_folder(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err)
{
    (void)params;
    char file[4096], *names = NULL;
    if (model->n_weights == 0 || host->node->get(model->card->config, "peft_type") == NULL) {
        apus_fail_line(err, APUS_E_INVALID, "%s: there is no adapter to write", path);
        return apus_hint(err, APUS_E_INVALID, "the model has none: write it as safetensors or gguf");
    }
    if (mkdir(path, 0777) != 0 && !(errno == EEXIST && apus_is_folder(path)))
        return apus_fail_line(err, APUS_E_IO, "%s: cannot be made: %s", path, strerror(errno));
    if (!apus_path_join(file, sizeof file, path, WEIGHTS))
        return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", path);
    apus_safetensors_item *items = host->alloc(model->n_weights * sizeof *items);
    apus_status st = items == NULL ? apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path) : make_items(host, model, items, &names, err);
    if (st == APUS_OK)
        st = apus_write_json_in(host, path, CONFIG, model->card->config, err);
    if (st == APUS_OK)
        st = apus_safetensors_write(host, file, items, model->n_weights, model->read, model->context, err);
    host->free(items);
    host->free(names);
    return st;
}

static const apus_format_ops ops = {
    .size = sizeof ops,
    .claims = claims,
    .open = open_file,
    .close = close_file,
    .card = card,
    .count = count,
    .tensor = tensor,
    .find = find,
    .unused = unused,
    .write = write_folder,
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "format",
     .name = "peft",
     .doc = "PEFT adapter folders: adapter_config.json and adapter_model.safetensors, in float32",
     .ops = &ops},
};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,       .name = "peft",           .version = "1.0.0", .license = "Apache-2.0",
    .doc = "PEFT adapters", .components = components, .n_components = 1,
};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
