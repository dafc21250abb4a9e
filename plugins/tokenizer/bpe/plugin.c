/*
 * The plugin "bpe": the kind's table over the parts of bpe.h. Owns what a call needs to work and the growth of the
 * caller's tokens.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

const apus_host *apus_bpe_host;

apus_status apus_bpe_memory(apus_error *err)
{
    return apus_fail(err, APUS_E_MEMORY, "tokenizer: out of memory");
}

apus_status apus_bpe_call_open(apus_bpe_call *call, const apus_bpe *t, apus_error *err)
{
    *call = (apus_bpe_call){.t = t, .err = err};
    if (t->n_splits > 0 && (call->stages = calloc(t->n_splits, sizeof *call->stages)) == NULL)
        return apus_bpe_memory(err);
    return APUS_OK;
}

void apus_bpe_call_close(apus_bpe_call *call)
{
    pcre2_match_data_free(call->match);
    pcre2_match_context_free(call->match_context);
    if (call->match_stack != NULL)
        pcre2_jit_stack_free(call->match_stack);
    apus_bpe_buffer_free(&call->repaired);
    apus_bpe_buffer_free(&call->normal[0]);
    apus_bpe_buffer_free(&call->normal[1]);
    apus_bpe_buffer_free(&call->word);
    for (size_t i = 0; call->stages != NULL && i < call->t->n_splits; i++)
        apus_bpe_buffer_free(&call->stages[i]);
    free(call->stages);
    free(call->chars);
    free(call->chars_at);
    free(call->symbols);
    free(call->heap);
}

apus_status apus_bpe_emit_reserve(apus_bpe_call *call, size_t more)
{
    apus_tokens *out = call->out;
    if (more <= out->capacity - out->n)
        return APUS_OK;
    size_t capacity = out->capacity < 32 ? 64 : out->capacity;
    while (capacity - out->n < more) {
        if (capacity > SIZE_MAX / 16)
            return apus_bpe_memory(call->err);
        capacity *= 2;
    }
    int32_t *ids = call->t->host->realloc(out->ids, out->capacity * sizeof *ids, capacity * sizeof *ids);
    if (ids == NULL)
        return apus_bpe_memory(call->err);
    out->ids = ids;
    uint32_t *begin = call->t->host->realloc(out->begin, out->capacity * sizeof *begin, capacity * sizeof *begin);
    if (begin == NULL)
        return apus_bpe_memory(call->err);
    out->begin = begin;
    out->capacity = capacity;
    return APUS_OK;
}

apus_status apus_bpe_emit(apus_bpe_call *call, int32_t id, uint32_t begin)
{
    apus_tokens *out = call->out;
    if (out->n == out->capacity) {
        apus_status s = apus_bpe_emit_reserve(call, 1);
        if (s != APUS_OK)
            return s;
    }
    out->ids[out->n] = id;
    out->begin[out->n++] = begin;
    return APUS_OK;
}

/* Errors quote what they complain of: one line of UTF-8, whatever that was. */
static apus_status one_line(apus_status s, apus_error *err)
{
    if (s == APUS_OK || err == NULL)
        return s;
    for (size_t i = 0, n = strlen(err->message), step; i < n; i += step) {
        int valid;
        step = apus_bpe_step((const unsigned char *)err->message + i, n - i, &valid);
        if (!valid || (unsigned char)err->message[i] < 0x20)
            memset(err->message + i, valid ? ' ' : '?', step);
    }
    return s;
}

static int claims(const apus_node *source)
{
    const apus_node *model = apus_bpe_host->node->get(source, "model");
    const char *type = apus_bpe_type(model);
    if (strcmp(type, "BPE") == 0 || strcmp(type, "WordLevel") == 0)
        return 100;
    return type[0] == '\0' && apus_bpe_host->node->get(model, "merges") != NULL ? 90 : 0;
}

static void close_tokenizer(void *tokenizer)
{
    apus_bpe *t = tokenizer;
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->n_normals; i++)
        apus_bpe_regex_close(t->normals[i].pattern);
    for (size_t i = 0; i < t->n_splits; i++)
        apus_bpe_regex_close(t->splits[i].pattern);
    for (size_t i = 0; i < t->n_decodes; i++)
        apus_bpe_regex_close(t->decodes[i].pattern);
    free(t->normals);
    free(t->splits);
    free(t->decodes);
    apus_bpe_model_close(t->model);
    apus_bpe_added_close(&t->added);
    free(t->before);
    free(t->after);
    free(t);
}

static apus_status open_tokenizer(const apus_host *host, const apus_node *params, const apus_node *source, void **tokenizer, apus_error *err)
{
    (void)params; /* the component has none */
    apus_bpe *t = calloc(1, sizeof *t);
    *tokenizer = NULL;
    if (t == NULL)
        return apus_bpe_memory(err);
    t->host = host;
    apus_status s = apus_bpe_open(t, source, err);
    if (s != APUS_OK) {
        close_tokenizer(t);
        return one_line(s, err);
    }
    *tokenizer = t;
    return APUS_OK;
}

static apus_status encode_parallel(void *tokenizer, const char *text, size_t length, int flags, int threads, size_t part, apus_tokens *out,
                                   apus_error *err)
{
    const apus_bpe *t = tokenizer;
    if (length >= UINT32_MAX)
        return apus_fail(err, APUS_E_INVALID, "a text of %zu bytes is too long to tokenize at once: the limit is 4 GiB", length);
    apus_bpe_call call;
    apus_status s = apus_bpe_call_open(&call, t, err);
    size_t from = out->n;
    apus_bpe_view v = {text, length, NULL, 0};
    call.flags = flags;
    call.out = out;
    if (s == APUS_OK && (flags & APUS_ENCODE_ADD_SPECIAL)) {
        for (size_t i = 0; i < t->n_before && s == APUS_OK; i++)
            s = apus_bpe_emit(&call, t->before[i], 0);
    }
    if (s == APUS_OK && apus_bpe_valid_prefix(text, length) != length) {
        if (apus_bpe_repair(&call.repaired, &v))
            v = apus_bpe_view_of(&call.repaired);
        else
            s = apus_bpe_memory(err);
    }
    if (s == APUS_OK && threads > 1 && v.n > part)
        s = apus_bpe_team_open(&call, threads, part);
    if (s == APUS_OK && v.n > 0)
        s = apus_bpe_added_run(&call, &v);
    const apus_status dealt = apus_bpe_team_end(&call);
    s = dealt != APUS_OK ? dealt : s; /* what was dealt comes first in the text */
    if (s == APUS_OK && (flags & APUS_ENCODE_ADD_SPECIAL)) {
        for (size_t i = 0; i < t->n_after && s == APUS_OK; i++)
            s = apus_bpe_emit(&call, t->after[i], (uint32_t)length);
    }
    if (s != APUS_OK)
        out->n = from;
    apus_bpe_call_close(&call);
    return one_line(s, err);
}

static apus_status encode(void *tokenizer, const char *text, size_t length, int flags, apus_tokens *out, apus_error *err)
{
    return encode_parallel(tokenizer, text, length, flags, 1, SIZE_MAX, out, err);
}

static apus_status decode(void *tokenizer, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length, apus_error *err)
{
    apus_bpe_call call;
    apus_status s = apus_bpe_call_open(&call, tokenizer, err);
    if (s == APUS_OK)
        s = apus_bpe_decode_run(&call, ids, n, skip_special, text, length);
    apus_bpe_call_close(&call);
    return one_line(s, err);
}

static int32_t vocab_size(void *tokenizer)
{
    return ((const apus_bpe *)tokenizer)->size;
}

static const char *token(void *tokenizer, int32_t id, size_t *length)
{
    const apus_bpe *t = tokenizer;
    const apus_bpe_token *added = apus_bpe_added_token(&t->added, id);
    size_t n = 0;
    const char *s = added != NULL ? added->content : apus_bpe_model_token(t->model, id, &n);
    if (length != NULL)
        *length = added != NULL ? added->n : n;
    return s;
}

static int32_t id_of(void *tokenizer, const char *s)
{
    const apus_bpe *t = tokenizer;
    for (size_t i = 0; i < t->added.n; i++) {
        if (strcmp(t->added.tokens[i].content, s) == 0)
            return t->added.tokens[i].id;
    }
    return apus_bpe_model_id(t->model, s, strlen(s));
}

static int is_special(void *tokenizer, int32_t id)
{
    const apus_bpe_token *added = apus_bpe_added_token(&((const apus_bpe *)tokenizer)->added, id);
    return added != NULL && added->special;
}

static const apus_tokenizer_ops ops = {.size = sizeof ops,
                                       .claims = claims,
                                       .open = open_tokenizer,
                                       .close = close_tokenizer,
                                       .encode = encode,
                                       .decode = decode,
                                       .vocab_size = vocab_size,
                                       .token = token,
                                       .id = id_of,
                                       .is_special = is_special,
                                       .encode_parallel = encode_parallel};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "tokenizer",
     .name = "bpe",
     .doc = "Byte-pair encoding and whole words, from Hugging Face's tokenizer.json: the same ids, the same text back.",
     .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "bpe",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Tokenizers of Hugging Face's tokenizer.json: BPE and WordLevel",
                                   .components = components,
                                   .n_components = 1};

const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    apus_bpe_host = host;
    return &plugin;
}
