/*
 * Models: BPE (pieces to ids by merging, least rank first, leftmost of equals) and WordLevel. Owns the vocabulary, the
 * merges and the cache of pieces already seen. Knows neither added tokens nor how text becomes pieces.
 */
#include "bpe.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ID_MAX      (1 << 24) /* ids beyond are a damaged file, not a vocabulary */
#define CACHE_SLOTS (1u << 16)
#define CACHE_WAYS  8u
#define CACHE_KEY   64u            /* bytes: longer pieces are not kept */
#define MARK        "\xE2\x96\x81" /* U+2581, SentencePiece's space */

typedef struct {
    const char *s; /* in the source's node */
    uint32_t n;
    int32_t id;
} entry;

typedef struct {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} merge;

/* A piece seen before. Never changes, freed with the model. */
typedef struct {
    uint64_t hash;
    uint32_t n_key, n_ids;
    int32_t ids[]; /* [n_ids] ids, [n_ids] first bytes, then the key's bytes */
} cached;

struct apus_bpe_model {
    int word_level;
    entry *entries;
    size_t n_entries;
    uint32_t *slots; /* open addressing: entry + 1, 0 empty */
    size_t n_slots;
    int32_t *by_id; /* [size]: entry, or -1 */
    int32_t size;
    size_t longest; /* bytes of the longest entry */
    merge *merges;
    size_t n_merges; /* slots */
    const char *unk, *prefix, *suffix;
    size_t n_unk, n_prefix, n_suffix;
    int32_t unk_id;
    int fuse_unk, byte_fallback, ignore_merges;
    int bytes;                /* pieces are raw bytes */
    int cut;                  /* no merge spans "x▁": pieces may be cut before each run of ▁ */
    int32_t byte_id[256];     /* bytes: ids of single bytes; else of ASCII characters; -1 none */
    int32_t fallback[256];    /* <0x00> … */
    _Atomic(cached *) *cache; /* [CACHE_SLOTS] in sets of CACHE_WAYS */
};

/* ---------------------------------------------------------------- vocabulary */

static const entry *look_up(const apus_bpe_model *m, const char *s, size_t n)
{
    if (n > m->longest || m->n_slots == 0)
        return NULL;
    for (size_t i = apus_bpe_hash(s, n) & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        if (m->slots[i] == 0)
            return NULL;
        const entry *e = &m->entries[m->slots[i] - 1];
        if (e->n == n && memcmp(e->s, s, n) == 0)
            return e;
    }
}

int32_t apus_bpe_model_id(const apus_bpe_model *m, const char *s, size_t n)
{
    const entry *e = look_up(m, s, n);
    return e != NULL ? e->id : -1;
}

const char *apus_bpe_model_token(const apus_bpe_model *m, int32_t id, size_t *n)
{
    if (id < 0 || id >= m->size || m->by_id[id] < 0)
        return NULL;
    const entry *e = &m->entries[m->by_id[id]];
    *n = e->n;
    return e->s;
}

int32_t apus_bpe_model_size(const apus_bpe_model *m)
{
    return m->size;
}

static apus_status read_vocabulary(apus_bpe_model *m, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *vocab = api->get(node, "vocab");
    if (api->kind(vocab) != APUS_NODE_MAP)
        return apus_bpe_bad(vocab != NULL ? vocab : node, err, "model: vocab must be a map of tokens to ids");
    size_t n = api->length(vocab);
    m->n_slots = 16;
    while (m->n_slots < n * 2)
        m->n_slots *= 2;
    m->entries = calloc(n + 1, sizeof *m->entries);
    m->slots = calloc(m->n_slots, sizeof *m->slots);
    if (m->entries == NULL || m->slots == NULL)
        return apus_bpe_memory(err);
    for (size_t i = 0; i < n; i++) {
        entry *e = &m->entries[i];
        const apus_node *value = api->at(vocab, i);
        e->s = api->key_at(vocab, i);
        size_t length = strlen(e->s);
        int64_t id = api->as_int(value, -1);
        if (api->kind(value) != APUS_NODE_INT || id < 0 || id >= ID_MAX)
            return apus_bpe_bad(value, err, "model: the id of '%.60s' must be a number from 0 to %d", e->s, ID_MAX - 1);
        if (length > UINT16_MAX)
            return apus_bpe_bad(value, err, "model: a token of the vocabulary has %zu bytes, the limit is %d", length, UINT16_MAX);
        e->n = (uint32_t)length;
        e->id = (int32_t)id;
        if (e->n > m->longest)
            m->longest = e->n;
        if (e->id >= m->size)
            m->size = e->id + 1;
        size_t k = apus_bpe_hash(e->s, e->n) & (m->n_slots - 1);
        while (m->slots[k] != 0)
            k = (k + 1) & (m->n_slots - 1);
        m->slots[k] = (uint32_t)i + 1;
    }
    m->n_entries = n;
    m->by_id = malloc(((size_t)m->size + 1) * sizeof *m->by_id);
    if (m->by_id == NULL)
        return apus_bpe_memory(err);
    for (int32_t i = 0; i < m->size; i++)
        m->by_id[i] = -1;
    for (size_t i = 0; i < n; i++)
        m->by_id[m->entries[i].id] = (int32_t)i;
    return APUS_OK;
}

/* ---------------------------------------------------------------- merges */

static inline const merge *look_up_merge(const apus_bpe_model *m, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    for (size_t i = (h ^ h >> 32) & (m->n_merges - 1);; i = (i + 1) & (m->n_merges - 1)) {
        if (m->merges[i].pair == pair)
            return &m->merges[i];
        if (m->merges[i].pair == UINT64_MAX)
            return NULL;
    }
}

static void add_merge(apus_bpe_model *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    size_t i = (h ^ h >> 32) & (m->n_merges - 1);
    while (m->merges[i].pair != UINT64_MAX && m->merges[i].pair != pair)
        i = (i + 1) & (m->n_merges - 1);
    m->merges[i] = (merge){pair, rank, id}; /* a pair listed twice counts where it is listed last */
}

static int begins_with_mark(const char *s, size_t n)
{
    return n >= 3 && memcmp(s, MARK, 3) == 0;
}

static int ends_with_mark(const char *s, size_t n)
{
    return n >= 3 && memcmp(s + n - 3, MARK, 3) == 0;
}

static apus_status read_merges(apus_bpe_model *m, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *list = api->get(node, "merges");
    if (api->kind(list) != APUS_NODE_LIST)
        return apus_bpe_bad(list != NULL ? list : node, err, "model: merges must be a list of pairs of tokens");
    size_t n = api->length(list);
    if (n >= INT32_MAX)
        return apus_bpe_bad(list, err, "model: too many merges");
    m->n_merges = 16;
    while (m->n_merges < n * 2)
        m->n_merges *= 2;
    m->merges = malloc(m->n_merges * sizeof *m->merges);
    if (m->merges == NULL)
        return apus_bpe_memory(err);
    memset(m->merges, 0xFF, m->n_merges * sizeof *m->merges);
    char *whole = malloc(2 * (size_t)UINT16_MAX + 1);
    if (whole == NULL)
        return apus_bpe_memory(err);
    apus_status s = APUS_OK;
    m->cut = m->n_prefix == 0 && m->n_suffix == 0;
    for (size_t i = 0; i < n && s == APUS_OK; i++) {
        const apus_node *item = api->at(list, i);
        const char *left, *right;
        size_t n_left, n_right;
        if (api->kind(item) == APUS_NODE_LIST && api->length(item) == 2) {
            left = api->as_string(api->at(item, 0), &n_left);
            right = api->as_string(api->at(item, 1), &n_right);
        } else {
            left = api->as_string(item, &n_left);
            right = NULL;
            if (left != NULL && n_left >= 8 && memcmp(left, "#version", 8) == 0)
                continue;
            const char *space = left != NULL ? memchr(left, ' ', n_left) : NULL;
            if (space != NULL && memchr(space + 1, ' ', n_left - (size_t)(space + 1 - left)) == NULL) {
                right = space + 1;
                n_right = n_left - (size_t)(right - left);
                n_left = (size_t)(space - left);
            }
        }
        if (left == NULL || right == NULL) {
            s = apus_bpe_bad(item, err, "model: merge %zu must be \"left right\" or [\"left\", \"right\"]", i);
            break;
        }
        const entry *a = look_up(m, left, n_left), *b = look_up(m, right, n_right), *c = NULL;
        if (a != NULL && b != NULL && n_right >= m->n_prefix) {
            memcpy(whole, left, n_left);
            memcpy(whole + n_left, right + m->n_prefix, n_right - m->n_prefix);
            c = look_up(m, whole, n_left + n_right - m->n_prefix);
        }
        if (c == NULL) {
            s = apus_bpe_bad(item, err, "model: merge %zu ('%.*s' and '%.*s') needs a token that is not in the vocabulary", i,
                             (int)(n_left < 60 ? n_left : 60), left, (int)(n_right < 60 ? n_right : 60), right);
            break;
        }
        if (begins_with_mark(right, n_right) && !ends_with_mark(left, n_left))
            m->cut = 0;
        add_merge(m, a->id, b->id, (uint32_t)i, c->id);
    }
    free(whole);
    return s;
}

/* ---------------------------------------------------------------- opening */

static apus_status optional_string(const apus_node *node, const char *key, const char **s, size_t *n, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *value = api->get(node, key);
    *s = NULL;
    *n = 0;
    return api->kind(value) == APUS_NODE_NULL ? APUS_OK : apus_bpe_string(node, "model", key, s, n, err);
}

static apus_status open_bpe(apus_bpe_model *m, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    apus_status s = apus_bpe_keys(node, "model 'BPE'",
                                  "type dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk "
                                  "byte_fallback ignore_merges vocab merges",
                                  err);
    if (s != APUS_OK || (s = read_vocabulary(m, node, err)) != APUS_OK ||
        (s = optional_string(node, "unk_token", &m->unk, &m->n_unk, err)) != APUS_OK ||
        (s = optional_string(node, "continuing_subword_prefix", &m->prefix, &m->n_prefix, err)) != APUS_OK ||
        (s = optional_string(node, "end_of_word_suffix", &m->suffix, &m->n_suffix, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, "model", "fuse_unk", 0, &m->fuse_unk, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, "model", "byte_fallback", 0, &m->byte_fallback, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, "model", "ignore_merges", 0, &m->ignore_merges, err)) != APUS_OK)
        return s;
    const apus_node *dropout = api->get(node, "dropout");
    if (api->kind(dropout) != APUS_NODE_NULL && api->as_float(dropout, -1) != 0) {
        (void)apus_bpe_bad(dropout, err, "model: dropout is not supported: ids would depend on chance");
        return apus_hint(err, APUS_E_UNSUPPORTED, "set dropout to null in tokenizer.json");
    }
    if (m->n_prefix > UINT16_MAX / 2 || m->n_suffix > UINT16_MAX / 2)
        return apus_bpe_bad(node, err, "model: continuing_subword_prefix or end_of_word_suffix is too long");
    if ((s = read_merges(m, node, err)) != APUS_OK)
        return s;
    if (m->unk != NULL)
        m->unk_id = apus_bpe_model_id(m, m->unk, m->n_unk);
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        m->fallback[b] = apus_bpe_model_id(m, name, 6);
    }
    return APUS_OK;
}

apus_status apus_bpe_model_open(apus_bpe_model **out, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    apus_bpe_model *m = calloc(1, sizeof *m);
    if (m == NULL)
        return apus_bpe_memory(err);
    *out = m;
    m->unk_id = -1;
    if (api->kind(node) != APUS_NODE_MAP)
        return apus_bpe_bad(node, err, "model: must be a map with type, vocab and merges");
    const char *type = apus_bpe_type(node);
    if (strcmp(type, "BPE") == 0 || (type[0] == '\0' && api->get(node, "merges") != NULL))
        return open_bpe(m, node, err);
    if (strcmp(type, "WordLevel") == 0) {
        m->word_level = 1;
        apus_status s = apus_bpe_keys(node, "model 'WordLevel'", "type vocab unk_token", err);
        if (s != APUS_OK || (s = read_vocabulary(m, node, err)) != APUS_OK ||
            (s = apus_bpe_string(node, "model", "unk_token", &m->unk, &m->n_unk, err)) != APUS_OK)
            return s;
        m->unk_id = apus_bpe_model_id(m, m->unk, m->n_unk);
        return APUS_OK;
    }
    (void)apus_bpe_bad(node, err, "model '%s' is not supported", type);
    return apus_hint(err, APUS_E_UNSUPPORTED, "supported: BPE, WordLevel");
}

apus_status apus_bpe_model_ready(apus_bpe_model *m, int bytes, apus_error *err)
{
    m->bytes = bytes;
    for (int b = 0; b < 256; b++) {
        char utf8[4] = {(char)b, 0, 0, 0};
        size_t n = bytes ? apus_bpe_put(apus_bpe_byte_char((unsigned char)b), utf8) : 1;
        m->byte_id[b] = !bytes && b >= 0x80 ? -1 : apus_bpe_model_id(m, utf8, n);
    }
    /* A character that is left out would let what stands around it meet: then no cuts. */
    int complete = m->unk != NULL;
    for (int b = 0; m->byte_fallback && !complete && b < 256; b++) {
        if (m->fallback[b] < 0)
            break;
        complete = b == 255;
    }
    m->cut = m->cut && complete && !bytes && apus_bpe_model_id(m, MARK, 3) >= 0;
    if (!m->word_level) {
        m->cache = calloc(CACHE_SLOTS, sizeof *m->cache);
        if (m->cache == NULL)
            return apus_bpe_memory(err);
    }
    return APUS_OK;
}

void apus_bpe_model_close(apus_bpe_model *m)
{
    if (m == NULL)
        return;
    for (size_t i = 0; m->cache != NULL && i < CACHE_SLOTS; i++)
        free(atomic_load_explicit(&m->cache[i], memory_order_acquire));
    free(m->cache);
    free(m->entries);
    free(m->slots);
    free(m->by_id);
    free(m->merges);
    free(m);
}

/* ---------------------------------------------------------------- merging */

static int add_symbol(apus_bpe_call *call, int32_t id, size_t begin)
{
    if (!apus_bpe_grow(&call->symbols, &call->symbols_capacity, call->n_symbols + 1, sizeof *call->symbols))
        return 0;
    uint32_t i = (uint32_t)call->n_symbols++;
    call->symbols[i] = (apus_bpe_symbol){id, (uint32_t)begin, i > 0 ? i - 1 : UINT32_MAX, UINT32_MAX};
    if (i > 0)
        call->symbols[i - 1].next = i;
    return 1;
}

/* One character of a piece as the vocabulary spells it: with prefix and suffix where they belong. The rules of unknown
 * ones, and that a pending unknown comes after the bytes that follow it, are tokenizers' models/bpe/model.rs. */
static apus_status one_character(apus_bpe_call *call, const char *s, size_t n, size_t begin, int last, int32_t *unk_pending, size_t *unk_begin)
{
    const apus_bpe_model *m = call->t->model;
    const int first = begin == 0;
    const char *character = m->bytes ? NULL : s;
    if ((!first && m->n_prefix > 0) || (last && m->n_suffix > 0)) {
        call->word.n = 0;
        if ((!first && !apus_bpe_add(&call->word, m->prefix, m->n_prefix, 0)) || !apus_bpe_add(&call->word, s, n, 0) ||
            (last && !apus_bpe_add(&call->word, m->suffix, m->n_suffix, 0)))
            return apus_bpe_memory(call->err);
        s = call->word.s;
        n = call->word.n;
    }
    int32_t id = apus_bpe_model_id(m, s, n);
    int ok = 1;
    if (id >= 0) {
        if (*unk_pending >= 0)
            ok = add_symbol(call, *unk_pending, *unk_begin);
        *unk_pending = -1;
        return ok && add_symbol(call, id, begin) ? APUS_OK : apus_bpe_memory(call->err);
    }
    if (m->byte_fallback) {
        size_t known = 0;
        while (known < n && m->fallback[(unsigned char)s[known]] >= 0)
            known++;
        if (known == n) {
            for (size_t i = 0; i < n && ok; i++)
                ok = add_symbol(call, m->fallback[(unsigned char)s[i]], begin + (s == character ? i : 0));
            return ok ? APUS_OK : apus_bpe_memory(call->err);
        }
    }
    if (m->unk == NULL)
        return APUS_OK; /* as tokenizers: the character is left out */
    if (m->unk_id < 0)
        return apus_fail(call->err, APUS_E_INVALID, "the tokenizer's unk_token '%.60s' is not in its vocabulary", m->unk);
    if (*unk_pending >= 0 && m->fuse_unk)
        return APUS_OK;
    if (*unk_pending >= 0)
        ok = add_symbol(call, *unk_pending, *unk_begin);
    *unk_pending = m->unk_id;
    *unk_begin = begin;
    return ok ? APUS_OK : apus_bpe_memory(call->err);
}

static apus_status characters(apus_bpe_call *call, const char *s, size_t n)
{
    const apus_bpe_model *m = call->t->model;
    int plain = m->n_prefix == 0 && m->n_suffix == 0;
    int32_t pending = -1;
    size_t pending_begin = 0;
    call->n_symbols = 0;
    for (size_t i = 0, length; i < n; i += length) {
        unsigned char b = (unsigned char)s[i];
        length = 1;
        if (plain && pending < 0 && m->byte_id[b] >= 0 && (m->bytes || b < 0x80)) {
            if (!add_symbol(call, m->byte_id[b], i))
                return apus_bpe_memory(call->err);
            continue;
        }
        char mapped[4];
        const char *c = s + i;
        size_t n_c;
        if (m->bytes) {
            n_c = apus_bpe_put(apus_bpe_byte_char(b), mapped);
            c = mapped;
        } else {
            apus_bpe_char(c, &length);
            n_c = length;
        }
        apus_status status = one_character(call, c, n_c, i, i + length == n, &pending, &pending_begin);
        if (status != APUS_OK)
            return status;
    }
    if (pending >= 0 && !add_symbol(call, pending, pending_begin))
        return apus_bpe_memory(call->err);
    return APUS_OK;
}

static void sift_down(apus_bpe_merge *heap, size_t n, size_t i)
{
    apus_bpe_merge moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].order < heap[child].order)
            child++;
        if (heap[child].order >= moved.order)
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static int heap_push(apus_bpe_call *call, const merge *m, uint32_t position)
{
    if (!apus_bpe_grow(&call->heap, &call->heap_capacity, call->n_heap + 1, sizeof *call->heap))
        return 0;
    apus_bpe_merge new = {(uint64_t)m->rank << 32 | position, m->id};
    size_t i = call->n_heap++;
    for (size_t parent; i > 0 && call->heap[parent = (i - 1) / 2].order > new.order; i = parent)
        call->heap[i] = call->heap[parent];
    call->heap[i] = new;
    return 1;
}

/* Merge call->symbols until no pair has a merge. O(n log n). */
static int merge_all(apus_bpe_call *call)
{
    const apus_bpe_model *m = call->t->model;
    apus_bpe_symbol *symbols = call->symbols;
    call->n_heap = 0;
    for (uint32_t i = 0; i + 1 < call->n_symbols; i++) {
        const merge *found = look_up_merge(m, symbols[i].id, symbols[i + 1].id);
        if (found == NULL)
            continue;
        if (!apus_bpe_grow(&call->heap, &call->heap_capacity, call->n_heap + 1, sizeof *call->heap))
            return 0;
        call->heap[call->n_heap++] = (apus_bpe_merge){(uint64_t)found->rank << 32 | i, found->id};
    }
    for (size_t i = call->n_heap / 2; i-- > 0;)
        sift_down(call->heap, call->n_heap, i);
    while (call->n_heap > 0) {
        apus_bpe_merge top = call->heap[0];
        call->heap[0] = call->heap[--call->n_heap];
        if (call->n_heap > 0)
            sift_down(call->heap, call->n_heap, 0);
        uint32_t at = (uint32_t)top.order;
        apus_bpe_symbol *left = &symbols[at];
        if (left->id < 0 || left->next == UINT32_MAX)
            continue;
        apus_bpe_symbol *right = &symbols[left->next];
        const merge *found = look_up_merge(m, left->id, right->id);
        if (found == NULL || found->id != top.id) /* what stood here has merged otherwise */
            continue;
        left->id = top.id;
        left->next = right->next;
        right->id = -1;
        if (left->next != UINT32_MAX)
            symbols[left->next].prev = at;
        if (left->prev != UINT32_MAX && (found = look_up_merge(m, symbols[left->prev].id, left->id)) != NULL && !heap_push(call, found, left->prev))
            return 0;
        if (left->next != UINT32_MAX && (found = look_up_merge(m, left->id, symbols[left->next].id)) != NULL && !heap_push(call, found, at))
            return 0;
    }
    return 1;
}

/* ---------------------------------------------------------------- pieces */

static apus_status emit_cached(apus_bpe_call *call, const cached *c, const apus_bpe_view *piece)
{
    apus_status s = apus_bpe_emit_reserve(call, c->n_ids);
    if (s != APUS_OK)
        return s;
    apus_tokens *out = call->out;
    for (uint32_t i = 0; i < c->n_ids; i++) {
        out->ids[out->n] = c->ids[i];
        out->begin[out->n++] = apus_bpe_origin(piece, (size_t)c->ids[c->n_ids + i]);
    }
    return APUS_OK;
}

/* Keep the ids that piece just gave: out->ids[from …). Full sets keep what they have. */
static void remember(apus_bpe_call *call, const apus_bpe_view *piece, uint64_t hash, const uint32_t *firsts, size_t from)
{
    const apus_bpe_model *m = call->t->model;
    size_t n = call->out->n - from;
    _Atomic(cached *) *set = &m->cache[hash & (CACHE_SLOTS - CACHE_WAYS)];
    for (unsigned i = 0; i < CACHE_WAYS; i++) {
        if (atomic_load_explicit(&set[i], memory_order_relaxed) != NULL)
            continue;
        cached *c = malloc(sizeof *c + 2 * n * sizeof c->ids[0] + piece->n);
        if (c == NULL)
            return;
        c->hash = hash;
        c->n_key = (uint32_t)piece->n;
        c->n_ids = (uint32_t)n;
        for (size_t k = 0; k < n; k++) {
            c->ids[k] = call->out->ids[from + k];
            c->ids[n + k] = (int32_t)firsts[k];
        }
        memcpy(&c->ids[2 * n], piece->s, piece->n);
        cached *none = NULL;
        if (!atomic_compare_exchange_strong_explicit(&set[i], &none, c, memory_order_release, memory_order_relaxed))
            free(c); /* another thread was first; next time */
        return;
    }
}

static apus_status one_piece(apus_bpe_call *call, const apus_bpe_view *piece)
{
    const apus_bpe_model *m = call->t->model;
    uint64_t hash = 0;
    if (piece->n <= CACHE_KEY) {
        hash = apus_bpe_hash(piece->s, piece->n);
        _Atomic(cached *) *set = &m->cache[hash & (CACHE_SLOTS - CACHE_WAYS)];
        for (unsigned i = 0; i < CACHE_WAYS; i++) {
            const cached *c = atomic_load_explicit(&set[i], memory_order_acquire);
            if (c == NULL)
                break;
            if (c->hash == hash && c->n_key == piece->n && memcmp(&c->ids[2 * (size_t)c->n_ids], piece->s, piece->n) == 0)
                return emit_cached(call, c, piece);
        }
    }
    apus_status s = characters(call, piece->s, piece->n);
    if (s != APUS_OK)
        return s;
    if (!merge_all(call))
        return apus_bpe_memory(call->err);
    if ((s = apus_bpe_emit_reserve(call, call->n_symbols)) != APUS_OK)
        return s;
    uint32_t firsts[CACHE_KEY];
    size_t from = call->out->n, n = 0;
    for (size_t i = 0; i < call->n_symbols; i++) {
        const apus_bpe_symbol *symbol = &call->symbols[i];
        if (symbol->id < 0)
            continue;
        if (n < CACHE_KEY)
            firsts[n] = symbol->begin;
        n++;
        (void)apus_bpe_emit(call, symbol->id, apus_bpe_origin(piece, symbol->begin));
    }
    if (piece->n <= CACHE_KEY && n <= CACHE_KEY)
        remember(call, piece, hash, firsts, from);
    return APUS_OK;
}

/* A whole piece that is one entry of the vocabulary: its id, or -1. */
static int32_t whole(apus_bpe_call *call, const apus_bpe_view *piece)
{
    const apus_bpe_model *m = call->t->model;
    if (piece->n > m->longest)
        return -1;
    if (!m->bytes)
        return apus_bpe_model_id(m, piece->s, piece->n);
    call->word.n = 0;
    if (!apus_bpe_reserve(&call->word, piece->n * 2))
        return -1;
    for (size_t i = 0; i < piece->n; i++)
        call->word.n += apus_bpe_put(apus_bpe_byte_char((unsigned char)piece->s[i]), call->word.s + call->word.n);
    return apus_bpe_model_id(m, call->word.s, call->word.n);
}

/* The next ▁ that does not follow another, from byte `from` on. */
static size_t next_mark(const apus_bpe_view *piece, size_t from)
{
    size_t mark;
    while ((mark = apus_bpe_find(piece->s, piece->n, from, MARK, 3)) < piece->n && mark >= 3 && memcmp(piece->s + mark - 3, MARK, 3) == 0)
        from = mark + 3;
    return mark;
}

size_t apus_bpe_model_cut(const apus_bpe_model *m, const apus_bpe_view *piece, size_t from)
{
    return m->cut && !m->ignore_merges ? next_mark(piece, from) : piece->n;
}

apus_status apus_bpe_model_encode(apus_bpe_call *call, const apus_bpe_view *piece)
{
    const apus_bpe_model *m = call->t->model;
    if (call->team != NULL)
        return apus_bpe_deal(call, piece);
    if (m->word_level || m->ignore_merges) {
        int32_t id = whole(call, piece);
        if (id < 0 && m->word_level)
            id = m->unk_id;
        if (id >= 0)
            return apus_bpe_emit(call, id, apus_bpe_origin(piece, 0));
        if (m->word_level)
            return apus_fail(call->err, APUS_E_INVALID, "'%.*s' is not in the tokenizer's vocabulary, nor is its unk_token '%.60s'",
                             (int)(piece->n < 60 ? piece->n : 60), piece->s, m->unk);
    }
    if (!m->cut || piece->n <= 16)
        return one_piece(call, piece);
    apus_status s = APUS_OK;
    for (size_t begin = 0, end; begin < piece->n && s == APUS_OK; begin = end) {
        end = next_mark(piece, begin + 1);
        const apus_bpe_view part = apus_bpe_slice(piece, begin, end);
        s = one_piece(call, &part);
    }
    return s;
}
