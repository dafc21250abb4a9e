/*
 * plugins/format/safetensors/write: a model as a Hugging Face folder that transformers loads: config.json, weights in
 * one file or in shards with an index, tokenizer, chat templates, generation_config.json.
 */
#include "safetensors.h"

#define DEFAULT_SHARD 5000000000u /* bytes; what transformers writes */

/* config.json with the element type that is written. transformers names the class to build in `architectures`. */
static apus_node *make_config(const apus_host *host, const apus_node *config, apus_dtype dtype)
{
    static const struct {
        const char *model_type, *class_name;
    } classes[] = {{"llama", "LlamaForCausalLM"},
                   {"mistral", "MistralForCausalLM"},
                   {"qwen2", "Qwen2ForCausalLM"},
                   {"qwen3", "Qwen3ForCausalLM"},
                   {"gpt2", "GPT2LMHeadModel"}};
    const apus_node_api *node = host->node;
    const char *name = dtype == APUS_F16 ? "float16" : dtype == APUS_BF16 ? "bfloat16" : "float32";
    apus_node *c = node->copy(config);
    if (c == NULL)
        return NULL;
    if (node->as_string(node->get(c, "model_type"), NULL) == NULL)
        node->set(c, "model_type", node->make_string("llama", (size_t)-1)); /* the decoder's own default */
    const char *type = node->as_string(node->get(c, "model_type"), NULL);
    for (size_t i = 0; i < sizeof classes / sizeof classes[0] && node->length(node->get(c, "architectures")) == 0; i++)
        if (strcmp(type, classes[i].model_type) == 0) {
            apus_node *list = node->make_list();
            node->append(list, node->make_string(classes[i].class_name, (size_t)-1));
            node->set(c, "architectures", list);
        }
    node->remove(c, "dtype");
    node->set(c, "torch_dtype", node->make_string(name, (size_t)-1));
    return c;
}

/* tokenizer_config.json names the class that reads tokenizer.json in every version of transformers. */
static apus_status write_tokenizer(const apus_host *host, const char *path, const apus_model_card *card, apus_error *err)
{
    const apus_node_api *node = host->node;
    if (card->tokenizer == NULL)
        return APUS_OK;
    apus_status st = apus_write_json_in(host, path, "tokenizer.json", card->tokenizer, err);
    if (st != APUS_OK)
        return st;
    apus_node *config = card->tokenizer_config != NULL ? node->copy(card->tokenizer_config) : node->make_map();
    if (config == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    if (node->as_string(node->get(config, "tokenizer_class"), NULL) == NULL)
        node->set(config, "tokenizer_class", node->make_string("PreTrainedTokenizerFast", (size_t)-1));
    st = apus_write_json_in(host, path, "tokenizer_config.json", config, err);
    node->release(config);
    return st;
}

static apus_status write_templates(const apus_host *host, const char *path, const apus_model_card *card, apus_error *err)
{
    const apus_node_api *node = host->node;
    apus_status st = APUS_OK;
    if (card->chat_template != NULL)
        st = apus_write_in(path, "chat_template.jinja", card->chat_template, strlen(card->chat_template), err);
    if (st != APUS_OK || node->length(card->chat_templates) == 0)
        return st;
    char folder[4096], file[4096];
    if (!apus_path_join(folder, sizeof folder, path, "additional_chat_templates") || mkdir(folder, 0777) != 0)
        return apus_fail_line(err, APUS_E_IO, "%s: additional_chat_templates cannot be made: %s", path, strerror(errno));
    for (size_t i = 0; i < node->length(card->chat_templates) && st == APUS_OK; i++) {
        const char *name = node->key_at(card->chat_templates, i);
        size_t length = 0;
        const char *text = node->as_string(node->at(card->chat_templates, i), &length);
        if (text == NULL)
            continue;
        if (strchr(name, '/') != NULL || name[0] == '.' || name[0] == '\0' || strlen(name) > 200)
            return apus_fail_line(err, APUS_E_INVALID, "chat template '%.200s': its name cannot be a file's", name);
        snprintf(file, sizeof file, "%s.jinja", name);
        st = apus_write_in(folder, file, text, length, err);
    }
    return st;
}

/* Which file of `shards` each item goes to; returns how many files. Items stay in order. */
static size_t place_items(const apus_safetensors_item *items, size_t n, uint64_t limit, size_t *shard)
{
    uint64_t bytes = 0;
    size_t s = 0;
    for (size_t i = 0; i < n; i++) {
        const uint64_t b = apus_safetensors_item_bytes(&items[i]);
        if (bytes > 0 && bytes + b > limit) {
            s++;
            bytes = 0;
        }
        bytes += b;
        shard[i] = s;
    }
    return s + 1;
}

static apus_status write_index(const apus_host *host, const char *path, const apus_safetensors_item *items, size_t n, const size_t *shard,
                               size_t shards, apus_error *err)
{
    const apus_node_api *node = host->node;
    apus_node *index = node->make_map(), *metadata = node->make_map(), *map = node->make_map();
    char file[64];
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        snprintf(file, sizeof file, "model-%05zu-of-%05zu.safetensors", shard[i] + 1, shards);
        node->set(map, items[i].name, node->make_string(file, (size_t)-1));
        total += apus_safetensors_item_bytes(&items[i]);
    }
    node->set(metadata, "total_size", node->make_int((int64_t)total));
    node->set(index, "metadata", metadata);
    apus_status st = node->set(index, "weight_map", map);
    if (st == APUS_OK)
        st = apus_write_json_in(host, path, "model.safetensors.index.json", index, err);
    else
        apus_fail_line(err, st, "%s: out of memory", path);
    node->release(index);
    return st;
}

static apus_status write_weights(const apus_host *host, const char *path, const apus_model_export *model, const apus_safetensors_item *items,
                                 size_t *shard, apus_error *err)
{
    const size_t n = model->n_weights;
    const size_t shards = place_items(items, n, model->shard_bytes != 0 ? model->shard_bytes : DEFAULT_SHARD, shard);
    char name[64], file[4096];
    apus_status st = APUS_OK;
    for (size_t s = 0, first = 0; s < shards && st == APUS_OK; s++) {
        size_t last = first;
        while (last < n && shard[last] == s)
            last++;
        if (shards == 1)
            snprintf(name, sizeof name, "model.safetensors");
        else
            snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shards);
        if (!apus_path_join(file, sizeof file, path, name))
            return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", path);
        st = apus_safetensors_write(host, file, items + first, last - first, model->read, model->context, err);
        first = last;
    }
    return st == APUS_OK && shards > 1 ? write_index(host, path, items, n, shard, shards, err) : st;
}

apus_status folder_write(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err)
{
    (void)params;
    const apus_model_card *card = model->card;
    const apus_dtype dtype = model->dtype == APUS_REAL ? APUS_F32 : model->dtype;
    if (dtype != APUS_F32 && dtype != APUS_F16 && dtype != APUS_BF16) {
        apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: safetensors folders are written in float32, float16 or bfloat16", path);
        return apus_hint(err, APUS_E_UNSUPPORTED, "`dtype: bfloat16`, or `format: gguf` for a quantised file");
    }
    if (mkdir(path, 0777) != 0 && !(errno == EEXIST && apus_is_folder(path)))
        return apus_fail_line(err, APUS_E_IO, "%s: cannot be made: %s", path, strerror(errno));
    const size_t n = model->n_weights, stride = n > 0 ? model->weights[0].size : 0;
    apus_safetensors_item *items = host->alloc((n + 1) * sizeof *items);
    size_t *shard = host->alloc((n + 1) * sizeof *shard);
    apus_node *config = card->config != NULL ? make_config(host, card->config, dtype) : NULL;
    apus_status st = APUS_OK;
    if (items == NULL || shard == NULL || (card->config != NULL && config == NULL))
        st = apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        const apus_weight_spec *w = (const apus_weight_spec *)((const char *)model->weights + i * stride);
        const int turned = (w->flags & APUS_WEIGHT_TRANSPOSED) != 0 && w->ndim == 2;
        items[i] = (apus_safetensors_item){.name = w->name,
                                           .dtype = dtype,
                                           .ndim = w->ndim,
                                           .dims = {w->dims[turned ? 1 : 0], w->ndim > 1 ? w->dims[turned ? 0 : 1] : 1},
                                           .transposed = turned,
                                           .weight = i};
    }
    if (st == APUS_OK && config != NULL)
        st = apus_write_json_in(host, path, "config.json", config, err);
    if (st == APUS_OK && card->generation_config != NULL)
        st = apus_write_json_in(host, path, "generation_config.json", card->generation_config, err);
    if (st == APUS_OK)
        st = write_tokenizer(host, path, card, err);
    if (st == APUS_OK)
        st = write_templates(host, path, card, err);
    if (st == APUS_OK && n > 0)
        st = write_weights(host, path, model, items, shard, err);
    host->node->release(config);
    host->free(items);
    host->free(shard);
    return st;
}
