/* core/data/text.c: see text.h. */
#include "data/text.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/config.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

struct apus_text {
    apus_tokenizer_ops ops;
    void *tokenizer;         /* NULL: none */
    const apus_node *source; /* tokenizer.json's node, the card's: the tokenizer reads it while open */
    apus_node *config;       /* tokenizer_config */
    apus_template *compiled; /* NULL: none */
    char *template_text;
    int64_t now;
    int32_t bos, eos;
    int32_t *stops;
    size_t n_stops;
};

/* ---------------------------------------------------------------- special tokens */

/* "<s>" or {content: "<s>"}; NULL when not set. */
static const char *token_text(const apus_node *config, const char *name)
{
    const apus_node *n = NODE->get(config, name);
    const char *s = NODE->as_string(n, NULL);
    return s != NULL ? s : NODE->as_string(NODE->get(n, "content"), NULL);
}

static int32_t token_id(const apus_text *t, const char *text)
{
    return t->tokenizer != NULL && text != NULL ? t->ops.id(t->tokenizer, text) : -1;
}

static void add_stop(apus_text *t, int64_t id)
{
    if (id < 0)
        return;
    for (size_t i = 0; i < t->n_stops; i++)
        if (t->stops[i] == (int32_t)id)
            return;
    int32_t *grown = realloc(t->stops, (t->n_stops + 1) * sizeof *grown);
    if (grown == NULL)
        return;
    t->stops = grown;
    t->stops[t->n_stops++] = (int32_t)id;
}

static void add_eos_of(apus_text *t, const apus_node *config)
{
    const apus_node *eos = NODE->get(config, "eos_token_id");
    add_stop(t, NODE->as_int(eos, -1));
    for (size_t i = 0; i < NODE->length(eos); i++)
        add_stop(t, NODE->as_int(NODE->at(eos, i), -1));
}

/* The first special token the template writes after an assistant's content. */
static void add_end_marker(apus_text *t)
{
    static const char probe[] = "apus-end-marker-probe";
    if (t->compiled == NULL || t->tokenizer == NULL)
        return;
    apus_node *messages = NODE->make_list();
    for (int i = 0; i < 2; i++) {
        apus_node *m = NODE->make_map();
        (void)NODE->set(m, "role", NODE->make_string(i == 0 ? "user" : "assistant", (size_t)-1));
        (void)NODE->set(m, "content", NODE->make_string(i == 0 ? "a" : probe, (size_t)-1));
        (void)NODE->append(messages, m);
    }
    apus_template_output out = {0};
    if (apus_text_render(t, messages, NULL, NULL, 0, &out, NULL) == APUS_OK) {
        const char *after = strstr(out.text, probe);
        apus_tokens ids = {0};
        if (after != NULL &&
            apus_text_encode(t, after + strlen(probe), strlen(after + strlen(probe)), APUS_ENCODE_SPECIAL_TEXT, &ids, NULL) == APUS_OK)
            for (size_t i = 0; i < ids.n; i++)
                if (t->ops.is_special(t->tokenizer, ids.ids[i])) {
                    add_stop(t, ids.ids[i]);
                    break;
                }
        HOST->free(ids.ids);
        HOST->free(ids.begin);
    }
    apus_template_output_free(&out);
    NODE->release(messages);
}

/* ---------------------------------------------------------------- opening */

static apus_status open_tokenizer(apus_text *t, apus_error *err)
{
    const apus_component *chosen = NULL;
    int best = 0;
    for (size_t i = 0; i < apus_component_count("tokenizer"); i++) {
        const apus_component *c = apus_component_at("tokenizer", i);
        apus_tokenizer_ops ops;
        apus_take(&ops, sizeof ops, c->ops);
        const int score = ops.claims(t->source);
        if (score > best) {
            best = score;
            chosen = c;
        }
    }
    if (chosen == NULL) {
        const char *type = NODE->as_string(NODE->get(NODE->get(t->source, "model"), "type"), NULL);
        apus_fail(err, APUS_E_UNSUPPORTED, "no tokenizer here reads a tokenizer.json of model type '%s'", type ? type : "(missing)");
        return apus_hint(err, APUS_E_UNSUPPORTED, "`apus plugins` lists the tokenizers");
    }
    apus_take(&t->ops, sizeof t->ops, chosen->ops);
    apus_node *params = apus_params_validate(NULL, chosen->params, chosen->n_params, "", chosen->name, err);
    if (params == NULL)
        return APUS_E_INVALID;
    apus_status st = t->ops.open(HOST, params, t->source, &t->tokenizer, err);
    NODE->release(params);
    if (st != APUS_OK)
        t->tokenizer = NULL;
    return st;
}

static apus_status open_template(apus_text *t, const apus_model_card *card, const char *file, apus_error *err)
{
    size_t length = 0;
    if (file != NULL) {
        char *text = apus_file_read(file, 16u << 20, &length, err);
        if (text == NULL)
            return APUS_E_IO;
        t->template_text = strdup(text);
        HOST->free(text);
    } else if (card->chat_template != NULL) {
        t->template_text = strdup(card->chat_template);
    } else {
        return APUS_OK;
    }
    if (t->template_text == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    t->compiled = apus_template_compile(t->template_text, strlen(t->template_text), file != NULL ? file : "chat_template", err);
    return t->compiled != NULL ? APUS_OK : APUS_E_INVALID;
}

apus_text *apus_text_open(const apus_model_card *card, const char *template_file, int64_t now, apus_error *err)
{
    apus_text *t = calloc(1, sizeof *t);
    if (t == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory");
        return NULL;
    }
    t->now = now;
    t->bos = t->eos = -1;
    t->config = card->tokenizer_config != NULL ? NODE->copy(card->tokenizer_config) : NODE->make_map();
    apus_status st = APUS_OK;
    if (card->tokenizer != NULL) {
        t->source = card->tokenizer;
        st = open_tokenizer(t, err);
    }
    if (st == APUS_OK)
        st = open_template(t, card, template_file, err);
    if (st != APUS_OK) {
        apus_text_free(t);
        return NULL;
    }
    t->bos = token_id(t, token_text(t->config, "bos_token"));
    t->eos = token_id(t, token_text(t->config, "eos_token"));
    if (t->bos < 0)
        t->bos = (int32_t)NODE->as_int(NODE->get(card->config, "bos_token_id"), -1);
    if (t->eos < 0)
        t->eos = (int32_t)NODE->as_int(NODE->get(card->config, "eos_token_id"), -1);
    add_stop(t, t->eos);
    add_eos_of(t, card->config);
    add_eos_of(t, card->generation_config);
    add_end_marker(t);
    return t;
}

void apus_text_free(apus_text *t)
{
    if (t == NULL)
        return;
    if (t->tokenizer != NULL)
        t->ops.close(t->tokenizer);
    apus_template_free(t->compiled);
    NODE->release(t->config);
    free(t->template_text);
    free(t->stops);
    free(t);
}

int apus_text_has_tokenizer(const apus_text *t)
{
    return t->tokenizer != NULL;
}
int apus_text_has_template(const apus_text *t)
{
    return t->compiled != NULL;
}
const char *apus_text_template(const apus_text *t)
{
    return t->template_text;
}
const apus_node *apus_text_tokenizer(const apus_text *t)
{
    return t->source;
}
const apus_node *apus_text_tokenizer_config(const apus_text *t)
{
    return t->config;
}
int32_t apus_text_vocab(const apus_text *t)
{
    return t->tokenizer != NULL ? t->ops.vocab_size(t->tokenizer) : 0;
}
int32_t apus_text_bos(const apus_text *t)
{
    return t->bos;
}
int32_t apus_text_eos(const apus_text *t)
{
    return t->eos;
}
size_t apus_text_stops(const apus_text *t, const int32_t **ids)
{
    *ids = t->stops;
    return t->n_stops;
}

void apus_text_key(const apus_text *t, char hex[65])
{
    apus_sha256 *sha = apus_sha256_new();
    const apus_node *const parts[2] = {t->source, t->config};
    for (int i = 0; i < 2; i++) {
        size_t length = 0;
        char *text = parts[i] != NULL ? NODE->write_json(parts[i], 0, &length) : NULL;
        if (text != NULL)
            apus_sha256_add(sha, text, length + 1);
        HOST->free(text);
    }
    if (t->template_text != NULL)
        apus_sha256_add(sha, t->template_text, strlen(t->template_text));
    apus_sha256_end(sha, hex);
}

/* ---------------------------------------------------------------- ids */

static apus_status no_tokenizer(apus_error *err)
{
    apus_fail(err, APUS_E_INVALID, "the model has no tokenizer");
    return apus_hint(err, APUS_E_INVALID, "put tokenizer.json beside the weights, or use rows of ready-made input_ids");
}

apus_status apus_text_encode(const apus_text *t, const char *text, size_t length, int flags, apus_tokens *out, apus_error *err)
{
    return t->tokenizer != NULL ? t->ops.encode(t->tokenizer, text, length, flags, out, err) : no_tokenizer(err);
}

int apus_text_threads(int threads)
{
    cpu_set_t set;
    if (threads > 0)
        return threads;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN); /* over 1024 of them */
}

/* A part takes some 10 ms and 1 MiB. */
apus_status apus_text_encode_parallel(const apus_text *t, const char *text, size_t length, int flags, int threads, apus_tokens *out, apus_error *err)
{
    enum { PART = 1 << 17 };
    if (t->tokenizer == NULL || t->ops.encode_parallel == NULL || length < (size_t)4 * PART)
        return apus_text_encode(t, text, length, flags, out, err);
    return t->ops.encode_parallel(t->tokenizer, text, length, flags, apus_text_threads(threads), PART, out, err);
}

apus_status apus_text_decode(const apus_text *t, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length, apus_error *err)
{
    return t->tokenizer != NULL ? t->ops.decode(t->tokenizer, ids, n, skip_special, text, length, err) : no_tokenizer(err);
}

const char *apus_text_token(const apus_text *t, int32_t id, size_t *length)
{
    return t->tokenizer != NULL ? t->ops.token(t->tokenizer, id, length) : NULL;
}

int apus_text_is_special(const apus_text *t, int32_t id)
{
    return t->tokenizer != NULL && t->ops.is_special(t->tokenizer, id);
}

/* ---------------------------------------------------------------- templates */

/* A copy in which a message's reasoning stands under the names templates read, as transformers does before it renders. */
static apus_node *alias_reasoning(const apus_node *messages)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    if (NODE->kind(messages) != APUS_NODE_LIST)
        return NODE->copy(messages);
    apus_node *list = NODE->make_list();
    for (size_t i = 0; i < NODE->length(messages); i++) {
        apus_node *m = NODE->copy(NODE->at(messages, i));
        const apus_node *reasoning = NULL;
        for (size_t k = 0; k < 3 && NODE->kind(reasoning) == APUS_NODE_NULL; k++)
            reasoning = NODE->get(NODE->at(messages, i), names[k]);
        if (NODE->kind(reasoning) != APUS_NODE_NULL) {
            (void)NODE->set(m, "reasoning_content", NODE->copy(reasoning));
            if (NODE->get(m, "thinking") == NULL)
                (void)NODE->set(m, "thinking", NODE->copy(reasoning));
        }
        (void)NODE->append(list, m);
    }
    return list;
}

apus_status apus_text_render(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables,
                             int add_generation_prompt, apus_template_output *out, apus_error *err)
{
    static const char *const tokens[] = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"};
    if (t->compiled == NULL) {
        apus_fail(err, APUS_E_INVALID, "the model has no chat template");
        return apus_hint(err, APUS_E_INVALID, "name one with template: FILE (--template FILE), or continue raw text with --prompt");
    }
    apus_node *all = NODE->make_map();
    (void)NODE->set(all, "messages", alias_reasoning(messages));
    (void)NODE->set(all, "tools", NODE->length(tools) > 0 ? NODE->copy(tools) : NODE->make_null());
    (void)NODE->set(all, "documents", NODE->make_null());
    (void)NODE->set(all, "add_generation_prompt", NODE->make_bool(add_generation_prompt));
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        const char *text = token_text(t->config, tokens[i]);
        if (text != NULL)
            (void)NODE->set(all, tokens[i], NODE->make_string(text, (size_t)-1));
    }
    for (size_t i = 0; i < NODE->length(variables); i++)
        (void)NODE->set(all, NODE->key_at(variables, i), NODE->copy(NODE->at(variables, i)));
    const apus_status st = apus_template_render(t->compiled, all, t->now, out, err);
    NODE->release(all);
    return st;
}

/* Does this text hold a special token's string? It does when reading such strings changes its ids. */
static int holds_special(const apus_text *t, const char *text, size_t length)
{
    apus_tokens read = {0}, plain = {0};
    int found = 0;
    if (apus_text_encode(t, text, length, APUS_ENCODE_SPECIAL_TEXT, &read, NULL) == APUS_OK &&
        apus_text_encode(t, text, length, 0, &plain, NULL) == APUS_OK)
        found = read.n != plain.n || memcmp(read.ids, plain.ids, read.n * sizeof *read.ids) != 0;
    HOST->free(read.ids);
    HOST->free(read.begin);
    HOST->free(plain.ids);
    HOST->free(plain.begin);
    return found;
}

static apus_status encode_range(const apus_text *t, const char *text, size_t begin, size_t end, int flags, apus_tokens *out, apus_error *err)
{
    const size_t first = out->n;
    apus_status st = begin < end ? apus_text_encode(t, text + begin, end - begin, flags, out, err) : APUS_OK;
    for (size_t i = first; i < out->n; i++)
        out->begin[i] += (uint32_t)begin;
    return st;
}

/* The whole rendering is one text to the tokenizer, except that a piece of content which spells a special token is encoded by
 * itself, as ordinary text. */
static apus_status encode_rendered(const apus_text *t, const apus_template_output *r, int parse_special, apus_tokens *out, apus_error *err)
{
    size_t done = 0;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < r->n_pieces && st == APUS_OK && !parse_special; i++) {
        const apus_template_piece *p = &r->pieces[i];
        if (!p->from_content || !holds_special(t, r->text + p->begin, p->end - p->begin))
            continue;
        st = encode_range(t, r->text, done, p->begin, APUS_ENCODE_SPECIAL_TEXT, out, err);
        if (st == APUS_OK)
            st = encode_range(t, r->text, p->begin, p->end, 0, out, err);
        done = p->end;
    }
    return st == APUS_OK ? encode_range(t, r->text, done, r->length, APUS_ENCODE_SPECIAL_TEXT, out, err) : st;
}

/* ---------------------------------------------------------------- what is trained */

static apus_node *first_messages(const apus_node *messages, size_t n)
{
    apus_node *list = NODE->make_list();
    for (size_t i = 0; i < n; i++)
        (void)NODE->append(list, NODE->copy(NODE->at(messages, i)));
    return list;
}

/* Length of the rendering of the first n messages when it begins `whole`, else SIZE_MAX. *out keeps the rendering. */
static size_t prefix_length(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables, size_t n, int prompt,
                            const apus_template_output *whole, apus_template_output *out)
{
    apus_node *some = first_messages(messages, n);
    const apus_status st = apus_text_render(t, some, tools, variables, prompt, out, NULL);
    NODE->release(some);
    if (st != APUS_OK || out->length > whole->length || memcmp(out->text, whole->text, out->length) != 0)
        return SIZE_MAX;
    return out->length;
}

/* Templates that write a turn differently once others follow (a reasoning block that is left out of history, say): the turn's
 * content is found in the whole text, and what the template writes behind it when it comes last must follow. */
static size_t end_by_content(const apus_template_output *whole, size_t start, const apus_template_output *last, const char *content)
{
    if (content == NULL || *content == '\0' || last->text == NULL || start > whole->length)
        return SIZE_MAX;
    const char *at = strstr(whole->text + start, content), *behind = NULL;
    for (const char *p = strstr(last->text, content); p != NULL; p = strstr(p + 1, content))
        behind = p + strlen(content);
    if (at == NULL || behind == NULL)
        return SIZE_MAX;
    const size_t end = (size_t)(at - whole->text) + strlen(content), more = strlen(behind);
    return end + more <= whole->length && memcmp(whole->text + end, behind, more) == 0 ? end + more : SIZE_MAX;
}

static apus_status mark_turn(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables, size_t i,
                             const apus_template_output *whole, const apus_tokens *ids, uint8_t *trained, apus_error *err)
{
    apus_template_output before = {0}, upto = {0};
    const size_t start = prefix_length(t, messages, tools, variables, i, 1, whole, &before);
    size_t end = prefix_length(t, messages, tools, variables, i + 1, 0, whole, &upto);
    if (end == SIZE_MAX && start != SIZE_MAX)
        end = end_by_content(whole, start, &upto, NODE->as_string(NODE->get(NODE->at(messages, i), "content"), NULL));
    apus_template_output_free(&before);
    apus_template_output_free(&upto);
    if (start == SIZE_MAX || end == SIZE_MAX || end < start) {
        apus_fail(err, APUS_E_UNSUPPORTED, "message %zu: the template writes this turn in a way that its tokens cannot be told from the prompt's", i);
        return apus_hint(err, APUS_E_UNSUPPORTED, "train_on: last, or another template: FILE");
    }
    for (size_t k = 0; k < ids->n; k++)
        if (ids->begin[k] >= start && ids->begin[k] < end)
            trained[k] = 1;
    return APUS_OK;
}

static int is_trained_turn(const apus_node *message)
{
    const char *role = NODE->as_string(NODE->get(message, "role"), NULL);
    return role != NULL && strcmp(role, "assistant") == 0 && NODE->as_bool(NODE->get(message, "train"), 1);
}

apus_status apus_text_conversation(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables,
                                   int add_generation_prompt, int train_last, int parse_special, apus_tokens *out, uint8_t **trained, apus_error *err)
{
    apus_template_output whole = {0};
    if (t->tokenizer == NULL)
        return no_tokenizer(err);
    apus_status st = apus_text_render(t, messages, tools, variables, add_generation_prompt, &whole, err);
    if (st == APUS_OK)
        st = encode_rendered(t, &whole, parse_special, out, err);
    uint8_t *mask = NULL;
    if (st == APUS_OK && trained != NULL) {
        mask = HOST->alloc(out->n + 1);
        st = mask != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
        int found = 0;
        for (size_t i = NODE->length(messages); i-- > 0 && st == APUS_OK && !(train_last && found);)
            if (is_trained_turn(NODE->at(messages, i))) {
                st = mark_turn(t, messages, tools, variables, i, &whole, out, mask, err);
                found = 1;
            }
    }
    apus_template_output_free(&whole);
    if (st == APUS_OK && trained != NULL)
        *trained = mask;
    else
        HOST->free(mask);
    return st;
}
