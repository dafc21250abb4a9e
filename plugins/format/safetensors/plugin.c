/*
 * plugins/format/safetensors: Hugging Face folders (config.json, safetensors with or without an index, tokenizer, chat
 * template, generation_config.json), single .safetensors files, and folders or files with a tokenizer alone.
 * Owns: which file of a folder means what. Knows no architecture: tensors are found by their exact names.
 */
#include "safetensors.h"

static int has_suffix(const char *s, const char *suffix)
{
    const size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

static int claims(const char *path)
{
    static const char *const marks[] = {"config.json",  "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
                                        "encoder.json", "vocab.json",        "tokenizer_config.json"};
    if (!apus_is_folder(path))
        return has_suffix(path, ".safetensors") ? 80 : has_suffix(path, "tokenizer.json") ? 60 : 0;
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (apus_folder_has(path, marks[i]))
            return 70;
    return 0;
}

static void close_file(void *file)
{
    folder *f = file;
    if (f == NULL)
        return;
    const apus_host *host = f->host;
    folder_close(f);
    host->free(f);
}

static apus_status open_file(const apus_host *host, const apus_node *params, const char *path, void **file, apus_error *err)
{
    (void)params;
    folder *f = host->alloc(sizeof *f);
    if (f == NULL)
        return apus_fail(err, APUS_E_MEMORY, "%s: out of memory", path);
    f->host = host;
    const apus_status st = folder_open(f, path, err);
    if (st != APUS_OK) {
        close_file(f);
        return st;
    }
    *file = f;
    return APUS_OK;
}

static apus_status card(void *file, apus_model_card *c, apus_error *err)
{
    const folder *f = file;
    (void)err;
    c->config = f->config;
    c->generation_config = f->generation_config;
    c->tokenizer = f->tokenizer;
    c->tokenizer_config = f->tokenizer_config;
    c->chat_template = f->chat_template;
    c->chat_templates = f->templates;
    c->metadata = f->metadata;
    return APUS_OK;
}

static uint64_t count(void *file)
{
    return ((const folder *)file)->count;
}

/* `info` may be an older caller's, shorter than ours. */
static void give(apus_tensor_info *info, const apus_tensor_info *t)
{
    const uint32_t size = info->size < sizeof *info && info->size > 0 ? info->size : (uint32_t)sizeof *info;
    memcpy(info, t, size);
    info->size = size;
}

static apus_status tensor(void *file, uint64_t i, apus_tensor_info *info, apus_error *err)
{
    const folder *f = file;
    if (i >= f->count)
        return apus_fail(err, APUS_E_NOT_FOUND, "%s: has %zu tensors", f->path, f->count);
    give(info, f->tensors[i]);
    return APUS_OK;
}

/* Exact names, with or without the base model's prefix ("model.", "transformer."): checkpoints of the bare base model
 * (as GPT-2's) lack it. */
static uint32_t find_name(const folder *f, const char *name)
{
    uint32_t at = apus_names_find(&f->by_name, name, strlen(name));
    if (at == APUS_NAMES_NONE && strncmp(name, "model.", 6) == 0)
        at = apus_names_find(&f->by_name, name + 6, strlen(name) - 6);
    if (at == APUS_NAMES_NONE && strncmp(name, "transformer.", 12) == 0)
        at = apus_names_find(&f->by_name, name + 12, strlen(name) - 12);
    return at;
}

static apus_status find(void *file, const apus_weight_spec *weight, apus_tensor_info *info, apus_error *err)
{
    folder *f = file;
    const uint32_t at = f->count > 0 ? find_name(f, weight->name) : APUS_NAMES_NONE;
    if (at == APUS_NAMES_NONE)
        return apus_fail(err, APUS_E_NOT_FOUND, "%s: no tensor '%s'", f->path, weight->name);
    f->used[at] = 1;
    give(info, f->tensors[at]);
    info->transposed = (weight->flags & APUS_WEIGHT_TRANSPOSED) != 0;
    return APUS_OK;
}

/* Buffers that old checkpoints carry and every loader recomputes; the head's copy in a tied checkpoint. */
static int is_derived(const folder *f, const apus_tensor_info *t)
{
    if (has_suffix(t->name, ".rotary_emb.inv_freq") || has_suffix(t->name, ".attn.masked_bias"))
        return 1;
    if (has_suffix(t->name, ".attn.bias") && t->ndim == 4)
        return 1;
    const apus_node *tied = f->host->node->get(f->config, "tie_word_embeddings");
    return strcmp(t->name, "lm_head.weight") == 0 && f->host->node->as_bool(tied, 0);
}

static uint64_t unused(void *file, uint64_t i)
{
    const folder *f = file;
    while (i < f->count && (f->used[i] || is_derived(f, f->tensors[i])))
        i++;
    return i;
}

static void forget(void *file)
{
    const folder *f = file;
    for (size_t s = 0; s < f->n_shards; s++)
        apus_map_forget(&f->shards[s].map);
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
    .write = folder_write,
    .forget = forget,
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "format",
     .name = "safetensors",
     .doc = "Hugging Face folders and .safetensors files: weights F32, F16, BF16, with tokenizer and chat template",
     .ops = &ops},
};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "safetensors", .version = "1.0.0", .license = "Apache-2.0", .doc = "Hugging Face model folders",
    .components = components, .n_components = 1,
};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
