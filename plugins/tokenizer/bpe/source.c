/*
 * Reading a tokenizer's source: a node in the shape of Hugging Face's tokenizer.json. Every key is known or an error that
 * says where. Owns the order of the parts and the post-processor; the parts read themselves.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

apus_status apus_bpe_bad(const apus_node *n, apus_error *err, const char *fmt, ...)
{
    char where[512] = "", message[900];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    if (n != NULL)
        apus_bpe_host->node->where(n, where, sizeof where);
    return apus_fail(err, APUS_E_INVALID, "%s%s%s", where, where[0] != '\0' ? ": " : "tokenizer: ", message);
}

apus_status apus_bpe_keys(const apus_node *map, const char *what, const char *known, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    if (api->kind(map) != APUS_NODE_MAP)
        return apus_bpe_bad(map, err, "%s must be a map", what);
    for (size_t i = 0; i < api->length(map); i++) {
        const char *key = api->key_at(map, i), *p = known;
        size_t n = strlen(key);
        while (p != NULL && !(strncmp(p, key, n) == 0 && n > 0 && (p[n] == ' ' || p[n] == '\0'))) {
            p = strchr(p, ' ');
            p = p != NULL ? p + 1 : NULL;
        }
        if (p == NULL) {
            (void)apus_bpe_bad(api->at(map, i), err, "%s: unknown key '%.60s'", what, key);
            return apus_hint(err, APUS_E_UNSUPPORTED, "known keys: %s", known);
        }
    }
    return APUS_OK;
}

const char *apus_bpe_type(const apus_node *map)
{
    const char *type = apus_bpe_host->node->as_string(apus_bpe_host->node->get(map, "type"), NULL);
    return type != NULL ? type : "";
}

apus_status apus_bpe_bool(const apus_node *map, const char *what, const char *key, int fallback, int *out, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *n = api->get(map, key);
    *out = fallback;
    if (api->kind(n) == APUS_NODE_NULL)
        return APUS_OK;
    if (api->kind(n) != APUS_NODE_BOOL)
        return apus_bpe_bad(n, err, "%s: %s must be true or false", what, key);
    *out = api->as_bool(n, fallback);
    return APUS_OK;
}

apus_status apus_bpe_string(const apus_node *map, const char *what, const char *key, const char **out, size_t *n, apus_error *err)
{
    const apus_node *value = apus_bpe_host->node->get(map, key);
    *out = apus_bpe_host->node->as_string(value, n);
    if (*out == NULL)
        return apus_bpe_bad(value != NULL ? value : map, err, "%s: %s must be a string", what, key);
    if (apus_bpe_valid_prefix(*out, *n) != *n)
        return apus_bpe_bad(value, err, "%s: %s is not UTF-8", what, key);
    return APUS_OK;
}

apus_status apus_bpe_pattern(const apus_node *map, const char *what, apus_bpe_regex **out, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *pattern = api->get(map, "pattern");
    const char *key = api->length(pattern) == 1 ? api->key_at(pattern, 0) : NULL;
    size_t n = 0;
    const char *s = key != NULL ? api->as_string(api->at(pattern, 0), &n) : NULL;
    if (s == NULL || (strcmp(key, "String") != 0 && strcmp(key, "Regex") != 0))
        return apus_bpe_bad(pattern != NULL ? pattern : map, err, "%s: pattern must be {\"String\": …} or {\"Regex\": …}", what);
    char where[640], place[512];
    snprintf(where, sizeof where, "%s: %s", api->where(pattern, place, sizeof place)[0] != '\0' ? place : "tokenizer", what);
    return apus_bpe_regex_open(out, s, n, key[0] == 'S', where, err);
}

apus_status apus_bpe_one_char(const apus_node *map, const char *what, const char *key, uint32_t *c, apus_error *err)
{
    const char *s;
    size_t n, length = 0;
    apus_status status = apus_bpe_string(map, what, key, &s, &n, err);
    if (status != APUS_OK)
        return status;
    if (n > 0)
        *c = apus_bpe_char(s, &length);
    if (n == 0 || length != n)
        return apus_bpe_bad(map, err, "%s: %s must be one character", what, key);
    return APUS_OK;
}

int32_t apus_bpe_id(const apus_node *n, const char *what, apus_error *err)
{
    int64_t id = apus_bpe_host->node->as_int(n, -1);
    if (apus_bpe_host->node->kind(n) == APUS_NODE_INT && id >= 0 && id < 1 << 24)
        return (int32_t)id;
    (void)apus_bpe_bad(n, err, "%s: an id must be a number from 0 to %d", what, (1 << 24) - 1);
    return -1;
}

/* ---------------------------------------------------------------- post-processor */

typedef struct {
    int32_t *ids;
    size_t n, capacity;
} id_list;

static apus_status add_id(id_list *l, const apus_node *node, const char *what, apus_error *err)
{
    int32_t id = apus_bpe_id(node, what, err);
    if (id < 0)
        return APUS_E_INVALID;
    if (!apus_bpe_grow(&l->ids, &l->capacity, l->n + 1, sizeof *l->ids))
        return apus_bpe_memory(err);
    l->ids[l->n++] = id;
    return APUS_OK;
}

/* `single` of a TemplateProcessing: the ids before and after the one sequence A. */
static apus_status template(const apus_node *node, id_list *before, id_list *after, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const char *what = "post_processor 'TemplateProcessing'";
    apus_status s = apus_bpe_keys(node, what, "type single pair special_tokens", err);
    const apus_node *single = api->get(node, "single"), *specials = api->get(node, "special_tokens");
    int sequences = 0;
    for (size_t i = 0; s == APUS_OK && i < api->length(single); i++) {
        const apus_node *piece = api->at(single, i), *special = api->get(piece, "SpecialToken"), *sequence = api->get(piece, "Sequence");
        const char *id = api->as_string(api->get(special != NULL ? special : sequence, "id"), NULL);
        if (id == NULL)
            return apus_bpe_bad(piece, err, "%s: a piece must be a Sequence or a SpecialToken with an id", what);
        if (special == NULL) {
            if (strcmp(id, "A") != 0)
                return apus_bpe_bad(piece, err, "%s: `single` must use sequence A", what);
            sequences++;
            continue;
        }
        const apus_node *entry = api->get(specials, id), *ids = api->get(entry, "ids");
        if (api->kind(ids) != APUS_NODE_LIST)
            return apus_bpe_bad(piece, err, "%s: special_tokens has no ids of '%.60s'", what, id);
        for (size_t k = 0; s == APUS_OK && k < api->length(ids); k++)
            s = add_id(sequences > 0 ? after : before, api->at(ids, k), what, err);
    }
    if (s == APUS_OK && sequences != 1)
        return apus_bpe_bad(node, err, "%s: `single` must hold sequence A once, it holds it %d times", what, sequences);
    return s;
}

/* Bert's and Roberta's: cls, the text, sep. */
static apus_status cls_sep(const apus_node *node, const char *what, const char *known, id_list *before, id_list *after, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    apus_status s = apus_bpe_keys(node, what, known, err);
    static const char *const keys[] = {"cls", "sep"};
    for (int i = 0; i < 2 && s == APUS_OK; i++) {
        const apus_node *pair = api->get(node, keys[i]);
        if (api->length(pair) != 2)
            return apus_bpe_bad(pair != NULL ? pair : node, err, "%s: %s must be [\"token\", id]", what, keys[i]);
        s = add_id(i == 0 ? before : after, api->at(pair, 1), what, err);
    }
    return s;
}

static apus_status post_open(apus_bpe *t, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const char *type = apus_bpe_type(node);
    id_list before = {0}, after = {0};
    apus_status s;
    if (api->kind(node) == APUS_NODE_NULL)
        return APUS_OK;
    if (strcmp(type, "Sequence") == 0) {
        s = apus_bpe_keys(node, "post_processor 'Sequence'", "type processors", err);
        const apus_node *list = api->get(node, "processors");
        for (size_t i = 0; s == APUS_OK && i < api->length(list); i++)
            s = post_open(t, api->at(list, i), err);
        return s;
    }
    if (strcmp(type, "ByteLevel") == 0) { /* trims offsets only; ours say where the token's text begins, space included */
        return apus_bpe_keys(node, "post_processor 'ByteLevel'", "type add_prefix_space trim_offsets use_regex", err);
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        s = template(node, &before, &after, err);
    } else if (strcmp(type, "BertProcessing") == 0) {
        s = cls_sep(node, "post_processor 'BertProcessing'", "type cls sep", &before, &after, err);
    } else if (strcmp(type, "RobertaProcessing") == 0) {
        s = cls_sep(node, "post_processor 'RobertaProcessing'", "type cls sep trim_offsets add_prefix_space", &before, &after, err);
    } else {
        (void)apus_bpe_bad(node, err, "post_processor '%.60s' is not supported", type);
        return apus_hint(err, APUS_E_UNSUPPORTED, "supported: Sequence TemplateProcessing ByteLevel BertProcessing RobertaProcessing");
    }
    if (s == APUS_OK && before.n + after.n > 0 && t->n_before + t->n_after > 0)
        s = apus_bpe_bad(node, err, "post_processor: only one in a Sequence may add tokens");
    if (s == APUS_OK && before.n + after.n > 0) {
        t->before = before.ids;
        t->n_before = before.n;
        t->after = after.ids;
        t->n_after = after.n;
        return APUS_OK;
    }
    free(before.ids);
    free(after.ids);
    return s;
}

apus_status apus_bpe_open(apus_bpe *t, const apus_node *source, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    /* truncation and padding are transformers' to set at each call, which it does not by default: they change no ids. */
    apus_status s =
        apus_bpe_keys(source, "tokenizer", "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model", err);
    if (s != APUS_OK)
        return s;
    const apus_node *version = api->get(source, "version");
    const char *text = api->as_string(version, NULL);
    if (api->kind(version) != APUS_NODE_NULL && (text == NULL || strcmp(text, "1.0") != 0))
        return apus_bpe_bad(version, err, "tokenizer: version must be \"1.0\"");
    if ((s = apus_bpe_model_open(&t->model, api->get(source, "model"), err)) != APUS_OK ||
        (s = apus_bpe_normal_open(t, api->get(source, "normalizer"), err)) != APUS_OK ||
        (s = apus_bpe_split_open(t, api->get(source, "pre_tokenizer"), err)) != APUS_OK)
        return s;
    int bytes = t->n_splits > 0 && t->splits[t->n_splits - 1].kind == APUS_BPE_SPLIT_BYTES;
    t->n_splits -= (size_t)bytes;
    t->dealt = apus_bpe_split_dealt(t);
    if ((s = apus_bpe_model_ready(t->model, bytes, err)) != APUS_OK ||
        (s = apus_bpe_added_open(t, api->get(source, "added_tokens"), err)) != APUS_OK ||
        (s = post_open(t, api->get(source, "post_processor"), err)) != APUS_OK)
        return s;
    t->no_decoder = api->kind(api->get(source, "decoder")) == APUS_NODE_NULL;
    if (!t->no_decoder && (s = apus_bpe_decode_open(t, api->get(source, "decoder"), err)) != APUS_OK)
        return s;
    t->size = apus_bpe_model_size(t->model) > t->added.size ? apus_bpe_model_size(t->model) : t->added.size;
    return APUS_OK;
}
