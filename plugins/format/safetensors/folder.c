/*
 * plugins/format/safetensors/folder: the files of a Hugging Face folder: configuration, weights in one file or in
 * shards with an index. Every name of the index must be where it says; no tensor may be there twice.
 */
#include "safetensors.h"

/* Add an opened shard's tensors to the folder's list. */
static apus_status collect(folder *f, apus_error *err)
{
    size_t n = 0;
    for (size_t s = 0; s < f->n_shards; s++)
        n += f->shards[s].count;
    f->tensors = f->host->alloc((n + 1) * sizeof(const apus_tensor_info *));
    f->used = f->host->alloc(n + 1);
    if (f->tensors == NULL || f->used == NULL || n >= APUS_NAMES_NONE || !apus_names_open(f->host, &f->by_name, n + 1))
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    for (size_t s = 0; s < f->n_shards; s++)
        for (size_t i = 0; i < f->shards[s].count; i++) {
            const apus_tensor_info *t = &f->shards[s].tensors[i];
            if (!apus_names_add(&f->by_name, t->name, strlen(t->name), (uint32_t)f->count))
                return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%s' is in two of its files", f->path, t->name);
            f->tensors[f->count++] = t;
        }
    return APUS_OK;
}

static apus_status open_single(folder *f, const char *path, apus_error *err)
{
    f->shards = f->host->alloc(sizeof *f->shards);
    if (f->shards == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    f->n_shards = 1;
    const apus_status st = apus_safetensors_open(f->host, path, &f->shards[0], err);
    if (st != APUS_OK)
        return st;
    if (f->shards[0].metadata != NULL)
        f->metadata = f->host->node->copy(f->shards[0].metadata);
    return collect(f, err);
}

/* A shard's name must be a plain file name of this folder. */
static int plain_name(const char *name, size_t length)
{
    return name != NULL && length > 0 && strlen(name) == length && strchr(name, '/') == NULL && name[0] != '.';
}

/* model.safetensors.index.json: {"metadata": …, "weight_map": {tensor: file}} */
static apus_status open_index(folder *f, const apus_node *index, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    const apus_node *map = node->get(index, "weight_map");
    char where[1024], path[4096];
    const size_t n = node->length(map);
    if (node->kind(map) != APUS_NODE_MAP || n == 0)
        return apus_fail_line(err, APUS_E_INVALID, "%s: model.safetensors.index.json has no weight_map", f->path);
    apus_names files;
    const char **names = f->host->alloc(n * sizeof *names);
    if (names == NULL || !apus_names_open(f->host, &files, n)) {
        f->host->free(names);
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    }
    size_t n_files = 0;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        size_t length = 0;
        const char *file = node->as_string(node->at(map, i), &length);
        if (!plain_name(file, length))
            st = apus_fail_line(err, APUS_E_INVALID, "%s: weight_map must name files of this folder",
                                node->where(node->at(map, i), where, sizeof where));
        else if (apus_names_add(&files, file, length, (uint32_t)n_files))
            names[n_files++] = file;
    }
    f->shards = st == APUS_OK ? f->host->alloc(n_files * sizeof *f->shards) : NULL;
    if (st == APUS_OK && f->shards == NULL)
        st = apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    for (size_t s = 0; s < n_files && st == APUS_OK; s++) {
        if (!apus_path_join(path, sizeof path, f->path, names[s])) {
            st = apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", f->path);
            break;
        }
        f->n_shards = s + 1;
        st = apus_safetensors_open(f->host, path, &f->shards[s], err);
        if (st == APUS_E_NOT_FOUND)
            apus_hint(err, st, "the index names this file: fetch all shards of the model");
    }
    if (st == APUS_OK)
        st = collect(f, err);
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        const char *tensor = node->key_at(map, i), *file = node->as_string(node->at(map, i), NULL);
        const uint32_t at = apus_names_find(&f->by_name, tensor, strlen(tensor));
        const apus_safetensors *s = &f->shards[apus_names_find(&files, file, strlen(file))];
        if (at == APUS_NAMES_NONE || f->tensors[at] < s->tensors || f->tensors[at] >= s->tensors + s->count)
            st = apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%s' is not in %s as its index says", f->path, tensor, file);
    }
    apus_names_close(f->host, &files);
    f->host->free(names);
    return st;
}

static apus_status open_weights(folder *f, apus_error *err)
{
    char path[4096];
    apus_node *index = NULL;
    if (apus_folder_has(f->path, "model.safetensors")) {
        if (!apus_path_join(path, sizeof path, f->path, "model.safetensors"))
            return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", f->path);
        return open_single(f, path, err);
    }
    apus_status st = apus_json_in(f->host, f->path, "model.safetensors.index.json", &index, err);
    if (st != APUS_OK)
        return st;
    if (index != NULL) {
        st = open_index(f, index, err);
        f->host->node->release(index);
        return st;
    }
    if (apus_folder_has(f->path, "pytorch_model.bin") || apus_folder_has(f->path, "pytorch_model.bin.index.json")) {
        apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: its weights are in pytorch_model.bin, a pickle, which can run code when read", f->path);
        return apus_hint(err, APUS_E_UNSUPPORTED,
                         "convert it once with transformers: "
                         "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)");
    }
    return APUS_OK; /* a tokenizer alone: collect() was never needed */
}

apus_status folder_open(folder *f, const char *path, apus_error *err)
{
    if (strlen(path) >= sizeof f->path)
        return apus_fail_line(err, APUS_E_INVALID, "%.200s…: the path is too long", path);
    memcpy(f->path, path, strlen(path) + 1);
    if (!apus_is_folder(path)) {
        const size_t n = strlen(path);
        if (n < 5 || strcmp(path + n - 5, ".json") != 0)
            return open_single(f, path, err);
        f->tokenizer = apus_json_file(f->host, path, err);
        if (f->tokenizer == NULL)
            return APUS_E_INVALID;
        if (f->host->node->kind(f->host->node->get(f->tokenizer, "model")) == APUS_NODE_MAP)
            return APUS_OK;
        return apus_fail_line(err, APUS_E_INVALID, "%s: not a tokenizer.json (it has no model)", path);
    }
    apus_status st = apus_json_in(f->host, path, "config.json", &f->config, err);
    if (st == APUS_OK && f->config != NULL && f->host->node->kind(f->config) != APUS_NODE_MAP)
        st = apus_fail_line(err, APUS_E_INVALID, "%s/config.json: not a JSON object", path);
    if (st == APUS_OK)
        st = apus_json_in(f->host, path, "generation_config.json", &f->generation_config, err);
    if (st == APUS_OK)
        st = folder_read_text(f, err);
    return st == APUS_OK ? open_weights(f, err) : st;
}

void folder_close(folder *f)
{
    const apus_node_api *node = f->host->node;
    apus_names_close(f->host, &f->by_name);
    f->host->free((void *)f->tensors);
    f->host->free(f->used);
    for (size_t s = 0; s < f->n_shards; s++)
        apus_safetensors_close(f->host, &f->shards[s]);
    f->host->free(f->shards);
    node->release(f->config);
    node->release(f->generation_config);
    node->release(f->tokenizer);
    node->release(f->tokenizer_config);
    node->release(f->templates);
    node->release(f->metadata);
    node->release(f->template_owner);
}
