/*
 * plugins/format/gguf: llama.cpp's model files, versions 2 and 3: weights plain and in blocks, configuration,
 * tokenizer, chat templates. Tensors are found by role and layer; what the file stores in another order comes back in
 * Hugging Face's. Knows no architecture beyond the names GGUF gives to hyperparameters.
 */
#include "gguf.h"

static int claims(const char *path)
{
    char magic[4] = {0};
    const size_t n = strlen(path);
    if (apus_is_folder(path))
        return 0;
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return 0;
    const int is = fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0;
    fclose(f);
    return is ? 95 : n > 5 && strcmp(path + n - 5, ".gguf") == 0 ? 60 : 0;
}

static void close_file(void *file)
{
    gguf_file *f = file;
    if (f == NULL)
        return;
    const apus_host *host = f->host;
    gguf_close(f);
    host->free(f);
}

static apus_status open_file(const apus_host *host, const apus_node *params, const char *path, void **file, apus_error *err)
{
    (void)params;
    gguf_file *f = host->alloc(sizeof *f);
    if (f == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    f->host = host;
    const apus_status st = gguf_open(f, path, err);
    if (st != APUS_OK) {
        close_file(f);
        return st;
    }
    *file = f;
    return APUS_OK;
}

/* tokenizer.chat_template is the default; tokenizer.chat_template.NAME those that tokenizer.chat_templates names. */
static void make_templates(gguf_file *f)
{
    static const char prefix[] = "tokenizer.chat_template.";
    const apus_node_api *node = f->host->node;
    size_t n = 0;
    const char *s = gguf_string(gguf_get(f, "tokenizer.chat_template"), &n);
    if (s != NULL && memchr(s, 0, n) == NULL)
        f->template_owner = node->make_string(s, n);
    for (size_t i = 0; i < f->n_values; i++) {
        const gguf_value *v = &f->values[i];
        if (strncmp(v->key, prefix, sizeof prefix - 1) != 0)
            continue;
        s = gguf_string(v, &n);
        if (s == NULL || memchr(s, 0, n) != NULL)
            continue;
        if (f->templates == NULL)
            f->templates = node->make_map();
        node->set(f->templates, v->key + sizeof prefix - 1, node->make_string(s, n));
    }
}

static apus_status card(void *file, apus_model_card *c, apus_error *err)
{
    gguf_file *f = file;
    apus_status st = APUS_OK;
    if (!f->card_made) {
        st = gguf_make_config(f, err);
        if (st == APUS_OK)
            st = gguf_make_metadata(f);
        if (st == APUS_OK)
            st = gguf_make_tokenizer(f, err);
        if (st != APUS_OK)
            return st;
        make_templates(f);
        f->card_made = 1;
    }
    c->config = f->config;
    c->generation_config = f->generation_config;
    c->tokenizer = f->tokenizer;
    c->tokenizer_config = f->tokenizer_config;
    c->chat_template = f->host->node->as_string(f->template_owner, NULL);
    c->chat_templates = f->templates;
    c->metadata = f->metadata;
    return APUS_OK;
}

static uint64_t count(void *file)
{
    return ((const gguf_file *)file)->count;
}

static void give(apus_tensor_info *info, const apus_tensor_info *t)
{
    const uint32_t size = info->size < sizeof *info && info->size > 0 ? info->size : (uint32_t)sizeof *info;
    memcpy(info, t, size);
    info->size = size;
}

static apus_status tensor(void *file, uint64_t i, apus_tensor_info *info, apus_error *err)
{
    const gguf_file *f = file;
    if (i >= f->count)
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: has %llu tensors", f->path, (unsigned long long)f->count);
    give(info, &f->tensors[i]);
    return APUS_OK;
}

int gguf_rows_are_paired(const char *architecture, const char *role)
{
    static const char *const roles[] = {"attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"};
    for (size_t i = 0; i < 4 && strcmp(architecture, "llama") == 0; i++)
        if (strcmp(role, roles[i]) == 0)
            return 1;
    return 0;
}

/* llama.cpp's converter puts the two halves of each rotation pair of a head side by side: row 2 j + s of the file is
 * row s d/2 + j of Hugging Face's (d: head_dim). Rows move whole, so blocks stay blocks; a bias moves by elements. */
static apus_status unpair(gguf_file *f, size_t at, const char *role, apus_tensor_info *t, apus_error *err)
{
    const int query = strncmp(role, "attn_q", 6) == 0;
    const int64_t heads = gguf_int(gguf_arch_get(f, "attention.head_count"), 0);
    const int64_t groups = query ? heads : gguf_int(gguf_arch_get(f, "attention.head_count_kv"), heads);
    const int64_t rows = t->dims[0];
    if (groups <= 0 || rows % (2 * groups) != 0)
        return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%s' has %lld rows, which are not %lld heads", f->path, t->name, (long long)rows,
                              (long long)groups);
    if (f->turned[at] == NULL) {
        const int64_t d = rows / groups, half = d / 2;
        const size_t bytes = (size_t)(t->bytes / (uint64_t)rows);
        unsigned char *to = f->host->alloc((size_t)t->bytes + 1);
        if (to == NULL)
            return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
        for (int64_t h = 0; h < groups; h++)
            for (int64_t j = 0; j < half; j++)
                for (int64_t s = 0; s < 2; s++)
                    memcpy(to + (size_t)(h * d + s * half + j) * bytes, (const unsigned char *)t->data + (size_t)(h * d + 2 * j + s) * bytes, bytes);
        f->turned[at] = to;
    }
    t->data = f->turned[at];
    return APUS_OK;
}

static apus_status find(void *file, const apus_weight_spec *weight, apus_tensor_info *info, apus_error *err)
{
    gguf_file *f = file;
    char name[256];
    if (weight->role == NULL)
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: '%s' has no name in GGUF", f->path, weight->name);
    if (weight->layer >= 0)
        snprintf(name, sizeof name, "blk.%d.%s", weight->layer, weight->role);
    else
        snprintf(name, sizeof name, "%s", weight->role);
    const apus_tensor_info *t = gguf_tensor(f, name);
    if (t == NULL)
        return apus_fail_line(err, APUS_E_NOT_FOUND, "%s: no tensor '%s' for '%s'", f->path, name, weight->name);
    const size_t at = (size_t)(t - f->tensors);
    apus_tensor_info found = *t;
    if (gguf_rows_are_paired(f->architecture, weight->role) && t->bytes > 0) {
        const apus_status st = unpair(f, at, weight->role, &found, err);
        if (st != APUS_OK)
            return st;
    }
    f->used[at] = 1;
    give(info, &found);
    return APUS_OK;
}

/* Tensors that the configuration already holds, and old GPT-2 masks. */
static int is_derived(const char *name)
{
    const size_t n = strlen(name);
    return strncmp(name, "rope_f", 6) == 0 || (n > 10 && strcmp(name + n - 10, ".attn.bias") == 0) ||
           (strncmp(name, "blk.", 4) == 0 && n > 18 && strcmp(name + n - 18, ".rope_freqs.weight") == 0);
}

static uint64_t unused(void *file, uint64_t i)
{
    const gguf_file *f = file;
    while (i < f->count && (f->used[i] || is_derived(f->tensors[i].name)))
        i++;
    return i;
}

static void forget(void *file)
{
    apus_map_forget(&((const gguf_file *)file)->map);
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
    .write = gguf_write,
    .forget = forget,
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "format",
     .name = "gguf",
     .doc = "llama.cpp's GGUF files: reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL; writes "
            "F32, "
            "F16, BF16, Q8_0, Q4_0",
     .ops = &ops},
};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,          .name = "gguf",           .version = "1.0.0", .license = "Apache-2.0",
    .doc = "GGUF model files", .components = components, .n_components = 1,
};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
