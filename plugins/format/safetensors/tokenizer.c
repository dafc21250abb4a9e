/*
 * plugins/format/safetensors/tokenizer: tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat templates;
 * and GPT-2's older pair (encoder.json + vocab.bpe, later vocab.json + merges.txt) turned into tokenizer.json's shape.
 */
#include "safetensors.h"

#include <dirent.h>

#define END_OF_TEXT "<|endoftext|>"

/* {"type": type, "add_prefix_space": false, "trim_offsets": …, "use_regex": true} */
static apus_node *byte_level(const apus_node_api *node, int add_prefix_space, int trim_offsets)
{
    apus_node *n = node->make_map();
    node->set(n, "type", node->make_string("ByteLevel", (size_t)-1));
    node->set(n, "add_prefix_space", node->make_bool(add_prefix_space));
    node->set(n, "trim_offsets", node->make_bool(trim_offsets));
    node->set(n, "use_regex", node->make_bool(1));
    return n;
}

/* merges.txt: "a b" a line, the first line may be a "#version" comment. */
static apus_node *read_merges(const apus_host *host, const char *path, apus_error *err)
{
    const apus_node_api *node = host->node;
    apus_map map = {NULL, 0};
    if (apus_map_open(path, &map, err) != APUS_OK)
        return NULL;
    apus_node *list = node->make_list();
    const char *p = (const char *)map.bytes, *end = p + map.length;
    apus_status st = list == NULL ? apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path) : APUS_OK;
    for (int line = 1; p < end && st == APUS_OK; line++) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        size_t n = (size_t)((eol != NULL ? eol : end) - p);
        if (n > 0 && p[n - 1] == '\r')
            n--;
        const char *space = memchr(p, ' ', n);
        if (n > 0 && !(line == 1 && p[0] == '#')) {
            if (space == NULL || space == p || space == p + n - 1 || memchr(space + 1, ' ', (size_t)(p + n - space - 1)) != NULL)
                st = apus_fail_line(err, APUS_E_INVALID, "%s:%d: expected two pieces with a space between", path, line);
            else
                st = node->append(list, node->make_string(p, n));
        }
        p = eol != NULL ? eol + 1 : end;
    }
    apus_map_close(&map);
    if (st == APUS_OK)
        return list;
    node->release(list);
    return NULL;
}

/* GPT-2 as Hugging Face writes it: byte-level BPE, <|endoftext|> the only special token. */
apus_node *gpt2_tokenizer(const apus_host *host, const char *vocabulary, const char *merges, apus_error *err)
{
    const apus_node_api *node = host->node;
    apus_node *vocab = apus_json_file(host, vocabulary, err);
    if (vocab == NULL)
        return NULL;
    if (node->kind(vocab) != APUS_NODE_MAP) {
        node->release(vocab);
        apus_fail_line(err, APUS_E_INVALID, "%s: expected {token: id}", vocabulary);
        return NULL;
    }
    apus_node *list = read_merges(host, merges, err);
    if (list == NULL) {
        node->release(vocab);
        return NULL;
    }
    const int64_t end = node->as_int(node->get(vocab, END_OF_TEXT), -1);
    apus_node *t = node->make_map(), *model = node->make_map(), *added = node->make_list();
    if (end >= 0) {
        apus_node *a = node->make_map();
        node->set(a, "id", node->make_int(end));
        node->set(a, "content", node->make_string(END_OF_TEXT, (size_t)-1));
        node->set(a, "single_word", node->make_bool(0));
        node->set(a, "lstrip", node->make_bool(0));
        node->set(a, "rstrip", node->make_bool(0));
        node->set(a, "normalized", node->make_bool(0));
        node->set(a, "special", node->make_bool(1));
        node->append(added, a);
    }
    node->set(model, "type", node->make_string("BPE", (size_t)-1));
    node->set(model, "dropout", node->make_null());
    node->set(model, "unk_token", node->make_null());
    node->set(model, "continuing_subword_prefix", node->make_string("", 0));
    node->set(model, "end_of_word_suffix", node->make_string("", 0));
    node->set(model, "fuse_unk", node->make_bool(0));
    node->set(model, "byte_fallback", node->make_bool(0));
    node->set(model, "ignore_merges", node->make_bool(0));
    node->set(model, "vocab", vocab);
    node->set(model, "merges", list);
    node->set(t, "version", node->make_string("1.0", (size_t)-1));
    node->set(t, "truncation", node->make_null());
    node->set(t, "padding", node->make_null());
    node->set(t, "added_tokens", added);
    node->set(t, "normalizer", node->make_null());
    node->set(t, "pre_tokenizer", byte_level(node, 0, 1));
    node->set(t, "post_processor", byte_level(node, 1, 0));
    node->set(t, "decoder", byte_level(node, 1, 1));
    if (node->set(t, "model", model) != APUS_OK) {
        apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", vocabulary);
        node->release(t);
        return NULL;
    }
    return t;
}

static apus_status read_gpt2(folder *f, const char *vocabulary, const char *merges, apus_error *err)
{
    char a[4096], b[4096];
    if (!apus_path_join(a, sizeof a, f->path, vocabulary) || !apus_path_join(b, sizeof b, f->path, merges))
        return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", f->path);
    f->tokenizer = gpt2_tokenizer(f->host, a, b, err);
    if (f->tokenizer == NULL)
        return APUS_E_INVALID;
    const apus_node_api *node = f->host->node;
    if (f->tokenizer_config == NULL && node->get(node->get(node->get(f->tokenizer, "model"), "vocab"), END_OF_TEXT) != NULL) {
        f->tokenizer_config = node->make_map();
        node->set(f->tokenizer_config, "bos_token", node->make_string(END_OF_TEXT, (size_t)-1));
        node->set(f->tokenizer_config, "eos_token", node->make_string(END_OF_TEXT, (size_t)-1));
        node->set(f->tokenizer_config, "unk_token", node->make_string(END_OF_TEXT, (size_t)-1));
    }
    return APUS_OK;
}

/* Take the text file folder/name as a template named `as` (NULL: the default one). */
static apus_status read_template(folder *f, const char *name, const char *as, apus_error *err)
{
    char path[4096];
    apus_map map = {NULL, 0};
    if (!apus_path_join(path, sizeof path, f->path, name))
        return apus_fail_line(err, APUS_E_INVALID, "%s: the path is too long", f->path);
    apus_status st = apus_map_open(path, &map, err);
    if (st != APUS_OK)
        return st;
    if (memchr(map.bytes, 0, map.length) != NULL)
        st = apus_fail_line(err, APUS_E_INVALID, "%s: not a text", path);
    apus_node *text = st == APUS_OK ? f->host->node->make_string((const char *)map.bytes, map.length) : NULL;
    apus_map_close(&map);
    if (st != APUS_OK)
        return st;
    if (as != NULL)
        return f->host->node->set(f->templates, as, text);
    f->host->node->release(f->template_owner);
    f->template_owner = text;
    return text != NULL ? APUS_OK : apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
}

/* chat_template of tokenizer_config.json: a text, or [{name, template}]. */
static apus_status read_config_template(folder *f, const apus_node *t, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    char where[1024];
    if (node->kind(t) == APUS_NODE_STRING) {
        f->template_owner = node->copy(t);
        return f->template_owner != NULL ? APUS_OK : APUS_E_MEMORY;
    }
    for (size_t i = 0; i < node->length(t); i++) {
        const apus_node *item = node->at(t, i), *text = node->get(item, "template");
        const char *name = node->as_string(node->get(item, "name"), NULL);
        if (name == NULL || node->kind(text) != APUS_NODE_STRING)
            return apus_fail_line(err, APUS_E_INVALID, "%s: chat_template: expected a text or a list of {name, template}",
                                  node->where(item, where, sizeof where));
        if (strcmp(name, "default") == 0 && f->template_owner == NULL)
            f->template_owner = node->copy(text);
        else
            node->set(f->templates, name, node->copy(text));
    }
    return APUS_OK;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* additional_chat_templates/NAME.jinja, as transformers saves named templates. */
static apus_status read_more_templates(folder *f, apus_error *err)
{
    char path[4096], name[512];
    struct dirent **entries = NULL;
    if (!apus_path_join(path, sizeof path, f->path, "additional_chat_templates") || !apus_is_folder(path))
        return APUS_OK;
    const int n = scandir(path, &entries, NULL, by_name);
    apus_status st = APUS_OK;
    for (int i = 0; i < n; i++) {
        const char *file = entries[i]->d_name;
        const size_t length = strlen(file);
        if (st == APUS_OK && length > 6 && length < 256 && strcmp(file + length - 6, ".jinja") == 0) {
            char as[256];
            memcpy(as, file, length - 6);
            as[length - 6] = '\0';
            snprintf(name, sizeof name, "additional_chat_templates/%s", file);
            st = read_template(f, name, as, err);
        }
        free(entries[i]);
    }
    free(entries);
    return st;
}

/* Special tokens that only special_tokens_map.json names. */
static apus_status read_special_map(folder *f, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    apus_node *map = NULL;
    const apus_status st = apus_json_in(f->host, f->path, "special_tokens_map.json", &map, err);
    if (st != APUS_OK || map == NULL)
        return st;
    if (f->tokenizer_config == NULL)
        f->tokenizer_config = node->make_map();
    for (size_t i = 0; node->kind(map) == APUS_NODE_MAP && i < node->length(map); i++)
        if (node->kind(node->get(f->tokenizer_config, node->key_at(map, i))) == APUS_NODE_NULL)
            node->set(f->tokenizer_config, node->key_at(map, i), node->copy(node->at(map, i)));
    node->release(map);
    return APUS_OK;
}

apus_status folder_read_text(folder *f, apus_error *err)
{
    const apus_node_api *node = f->host->node;
    f->templates = node->make_map();
    if (f->templates == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    apus_status st = apus_json_in(f->host, f->path, "tokenizer.json", &f->tokenizer, err);
    if (st == APUS_OK)
        st = apus_json_in(f->host, f->path, "tokenizer_config.json", &f->tokenizer_config, err);
    if (st == APUS_OK && f->tokenizer == NULL && apus_folder_has(f->path, "encoder.json") && apus_folder_has(f->path, "vocab.bpe"))
        st = read_gpt2(f, "encoder.json", "vocab.bpe", err);
    else if (st == APUS_OK && f->tokenizer == NULL && apus_folder_has(f->path, "vocab.json") && apus_folder_has(f->path, "merges.txt"))
        st = read_gpt2(f, "vocab.json", "merges.txt", err);
    if (st == APUS_OK)
        st = read_config_template(f, node->get(f->tokenizer_config, "chat_template"), err);
    if (st == APUS_OK && f->tokenizer_config != NULL)
        node->remove(f->tokenizer_config, "chat_template");
    if (st == APUS_OK)
        st = read_special_map(f, err);
    if (st == APUS_OK && apus_folder_has(f->path, "chat_template.jinja"))
        st = read_template(f, "chat_template.jinja", NULL, err);
    if (st == APUS_OK)
        st = read_more_templates(f, err);
    if (st != APUS_OK)
        return st;
    size_t length = 0;
    f->chat_template = node->as_string(f->template_owner, &length);
    if (f->chat_template != NULL && strlen(f->chat_template) != length)
        return apus_fail_line(err, APUS_E_INVALID, "%s: the chat template holds a NUL character", f->path);
    if (node->length(f->templates) == 0) {
        node->release(f->templates);
        f->templates = NULL;
    }
    return APUS_OK;
}
