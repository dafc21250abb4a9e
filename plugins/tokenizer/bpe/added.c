/*
 * Added tokens: strings that are tokens wherever they stand in a text, found before and after normalising. Knows neither
 * pre-tokenisers nor the model beyond asking it for ids.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

const apus_bpe_token *apus_bpe_added_token(const apus_bpe_added *a, int32_t id)
{
    return id < 0 || id >= a->size || a->by_id[id] < 0 ? NULL : &a->tokens[a->by_id[id]];
}

/* ---------------------------------------------------------------- finding */

/* Longest token that s[0..n) begins with: its index, or -1. */
static int32_t longest(const apus_bpe_trie *trie, const char *s, size_t n, size_t *length)
{
    int32_t found = -1, at = n > 0 ? trie->root[(unsigned char)s[0]] : -1;
    for (size_t i = 0; at >= 0;) {
        i++;
        if (trie->nodes[at].token >= 0) {
            found = trie->nodes[at].token;
            *length = i;
        }
        if (i == n)
            break;
        at = trie->nodes[at].child;
        while (at >= 0 && trie->nodes[at].byte != (unsigned char)s[i])
            at = trie->nodes[at].sibling;
    }
    return found;
}

static uint32_t char_before(const char *s, size_t end)
{
    size_t i = end - 1, length;
    while (i > 0 && ((unsigned char)s[i] & 0xC0) == 0x80)
        i--;
    return apus_bpe_char(s + i, &length);
}

/* The first byte from i on that a token may begin with, or n. */
static size_t next_first(const apus_bpe_trie *trie, const char *s, size_t n, size_t i)
{
    if (trie->first >= 0) { /* most often '<' */
        const char *p = memchr(s + i, trie->first, n - i);
        return p != NULL ? (size_t)(p - s) : n;
    }
    while (i < n && trie->root[(unsigned char)s[i]] < 0)
        i++;
    return i;
}

/* The next added token in v from *from on. `taken`: where the last one ended. 1 with its index and place, 0. */
static int next_token(const apus_bpe_call *call, const apus_bpe_trie *trie, const apus_bpe_view *v, size_t *from, size_t taken, int32_t *token,
                      size_t *begin, size_t *end)
{
    const apus_bpe_token *tokens = call->t->added.tokens;
    size_t length = 0;
    for (size_t i = *from; (i = next_first(trie, v->s, v->n, i)) < v->n;) {
        const int32_t found = longest(trie, v->s + i, v->n - i, &length);
        if (found < 0) {
            i++;
            continue;
        }
        const apus_bpe_token *t = &tokens[found];
        *begin = i;
        *end = *from = i + length;
        i = *end;
        if (t->special && !(call->flags & APUS_ENCODE_SPECIAL_TEXT))
            continue;
        if (t->single_word) {
            size_t width;
            if ((*begin > 0 && apus_bpe_is_word(char_before(v->s, *begin))) || (*end < v->n && apus_bpe_is_word(apus_bpe_char(v->s + *end, &width))))
                continue;
        }
        while (t->lstrip && *begin > taken && apus_bpe_is_space(char_before(v->s, *begin))) {
            do {
                (*begin)--;
            } while (((unsigned char)v->s[*begin] & 0xC0) == 0x80);
        }
        for (size_t width; t->rstrip && *end < v->n && apus_bpe_is_space(apus_bpe_char(v->s + *end, &width));)
            *end += width;
        *token = found;
        return 1;
    }
    *from = v->n;
    return 0;
}

/* v cut at the tokens of a trie: what lies between goes on, normalised first if it is the outer cut. */
static apus_status cut(apus_bpe_call *call, int outer, const apus_bpe_view *v)
{
    const apus_bpe_trie *trie = outer ? &call->t->added.plain : &call->t->added.normal;
    size_t from = 0, done = 0, begin, end;
    apus_status s = APUS_OK;
    int found;
    do {
        int32_t token = -1;
        found = trie->n > 0 && next_token(call, trie, v, &from, done, &token, &begin, &end);
        if (!found)
            begin = end = v->n;
        if (begin > done) {
            apus_bpe_view between = apus_bpe_slice(v, done, begin);
            if (!outer)
                s = apus_bpe_split_run(call, 0, &between);
            else if ((s = apus_bpe_normalize(call, &between)) == APUS_OK)
                s = cut(call, 0, &between);
        }
        if (s == APUS_OK && found && begin < end) {
            const int32_t id = call->t->added.tokens[token].id;
            const uint32_t at = apus_bpe_origin(v, begin);
            s = call->team != NULL ? apus_bpe_deal_token(call, id, at) : apus_bpe_emit(call, id, at);
            done = end;
        }
    } while (s == APUS_OK && found);
    return s;
}

apus_status apus_bpe_added_run(apus_bpe_call *call, const apus_bpe_view *text)
{
    return cut(call, 1, text);
}

/* ---------------------------------------------------------------- reading */

static int new_node(apus_bpe_trie *trie, unsigned char byte, int32_t sibling)
{
    if (trie->n >= INT32_MAX || !apus_bpe_grow(&trie->nodes, &trie->capacity, trie->n + 1, sizeof *trie->nodes))
        return -1;
    trie->nodes[trie->n] = (struct apus_bpe_trie_node){-1, sibling, -1, byte};
    return (int)trie->n++;
}

/* 1; 0: memory; -1: it is there already. */
static int insert(apus_bpe_trie *trie, const char *s, size_t n, int32_t token)
{
    int32_t at = trie->root[(unsigned char)s[0]];
    if (at < 0) {
        trie->first = trie->n == 0 ? (unsigned char)s[0] : -1;
        if ((at = trie->root[(unsigned char)s[0]] = new_node(trie, (unsigned char)s[0], -1)) < 0)
            return 0;
    }
    for (size_t i = 1; i < n; i++) {
        int32_t child = trie->nodes[at].child;
        while (child >= 0 && trie->nodes[child].byte != (unsigned char)s[i])
            child = trie->nodes[child].sibling;
        if (child < 0) {
            child = new_node(trie, (unsigned char)s[i], trie->nodes[at].child);
            if (child < 0)
                return 0;
            trie->nodes[at].child = child;
        }
        at = child;
    }
    if (trie->nodes[at].token >= 0)
        return -1;
    trie->nodes[at].token = token;
    return 1;
}

/* The text a normalised token is found as, when the normaliser changes it. */
static apus_status normal_form(apus_bpe *t, apus_bpe_token *token, apus_error *err)
{
    apus_bpe_call call;
    apus_status s = apus_bpe_call_open(&call, t, err);
    apus_bpe_view v = {token->content, token->n, NULL, 0};
    if (s == APUS_OK)
        s = apus_bpe_normalize(&call, &v);
    if (s == APUS_OK && (v.n != token->n || memcmp(v.s, token->content, v.n) != 0)) {
        token->normal = malloc(v.n + 1);
        if (token->normal == NULL) {
            s = apus_bpe_memory(err);
        } else {
            if (v.n > 0)
                memcpy(token->normal, v.s, v.n);
            token->normal[v.n] = '\0';
            token->n_normal = v.n;
        }
    }
    apus_bpe_call_close(&call);
    return s;
}

static apus_status one(apus_bpe *t, const apus_node *node, apus_bpe_token *token, int32_t next, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const char *what = "added_tokens";
    apus_status s = apus_bpe_keys(node, what, "id content single_word lstrip rstrip normalized special", err);
    if (s != APUS_OK || (s = apus_bpe_string(node, what, "content", &token->content, &token->n, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "single_word", 0, &token->single_word, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "lstrip", 0, &token->lstrip, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "rstrip", 0, &token->rstrip, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "special", 0, &token->special, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "normalized", !token->special, &token->normalized, err)) != APUS_OK)
        return s;
    if (token->n == 0 || apus_bpe_valid_prefix(token->content, token->n) != token->n)
        return apus_bpe_bad(node, err, "added_tokens: content must be a UTF-8 string that is not empty");
    const apus_node *id = api->get(node, "id");
    int32_t declared = id == NULL ? next : apus_bpe_id(id, what, err);
    if (declared < 0)
        return APUS_E_INVALID;
    token->id = apus_bpe_model_id(t->model, token->content, token->n);
    if (token->id < 0) {
        size_t n;
        const char *other = apus_bpe_model_token(t->model, declared, &n);
        if (other != NULL)
            return apus_bpe_bad(id, err, "added_tokens: id %d of '%.60s' is '%.60s' in the vocabulary", declared, token->content, other);
        token->id = declared;
    } else if (id != NULL && token->id != declared) {
        char line[256];
        snprintf(line, sizeof line, "added token '%.60s' says id %d but the vocabulary gives it %d, which is used", token->content, declared,
                 token->id);
        apus_bpe_host->log(APUS_LOG_WARN, "bpe", line);
    }
    return token->normalized && t->n_normals > 0 ? normal_form(t, token, err) : APUS_OK;
}

apus_status apus_bpe_added_open(apus_bpe *t, const apus_node *list, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    apus_bpe_added *a = &t->added;
    memset(a->plain.root, 0xFF, sizeof a->plain.root);
    memset(a->normal.root, 0xFF, sizeof a->normal.root);
    if (api->kind(list) == APUS_NODE_NULL)
        return APUS_OK;
    if (api->kind(list) != APUS_NODE_LIST)
        return apus_bpe_bad(list, err, "added_tokens must be a list");
    size_t n = api->length(list);
    a->tokens = calloc(n + 1, sizeof *a->tokens);
    if (a->tokens == NULL)
        return apus_bpe_memory(err);
    int32_t next = apus_bpe_model_size(t->model);
    for (size_t i = 0; i < n; i++) {
        apus_bpe_token *token = &a->tokens[i];
        a->n++;
        apus_status s = one(t, api->at(list, i), token, next, err);
        if (s != APUS_OK)
            return s;
        if (token->id >= next)
            next = token->id + 1;
        if (token->id >= a->size)
            a->size = token->id + 1;
        const char *text = token->normal != NULL ? token->normal : token->content;
        size_t length = token->normal != NULL ? token->n_normal : token->n;
        if (length == 0)
            continue; /* the normaliser leaves nothing of it: it is never found */
        int done = insert(token->normalized ? &a->normal : &a->plain, text, length, (int32_t)i);
        if (done == 0)
            return apus_bpe_memory(err);
        if (done < 0)
            return apus_bpe_bad(api->at(list, i), err, "added_tokens: '%.60s' is there twice", token->content);
    }
    a->by_id = malloc(((size_t)a->size + 1) * sizeof *a->by_id);
    if (a->by_id == NULL)
        return apus_bpe_memory(err);
    for (int32_t i = 0; i < a->size; i++)
        a->by_id[i] = -1;
    for (size_t i = 0; i < n; i++) {
        if (a->by_id[a->tokens[i].id] >= 0)
            return apus_bpe_bad(api->at(list, i), err, "added_tokens: '%.60s' and '%.60s' have the same id %d",
                                a->tokens[a->by_id[a->tokens[i].id]].content, a->tokens[i].content, a->tokens[i].id);
        a->by_id[a->tokens[i].id] = (int32_t)i;
    }
    return APUS_OK;
}

void apus_bpe_added_close(apus_bpe_added *a)
{
    for (size_t i = 0; i < a->n; i++)
        free(a->tokens[i].normal);
    free(a->tokens);
    free(a->by_id);
    free(a->plain.nodes);
    free(a->normal.nodes);
}
