/*
 * Pre-tokenisers: a text into pieces, depth first: each stage hands a piece to the next as soon as it is known, the last
 * to the model. Knows no ids.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

/* GPT-2's pattern (openai/gpt-2, encoder.py), ByteLevel's with use_regex. */
#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* Stretches of a text, matches and what lies between, turned into pieces as a behaviour says. */
typedef struct {
    apus_bpe_call *call;
    const apus_bpe_view *v;
    size_t next; /* stage */
    apus_bpe_behavior behavior;
    int pending, flag; /* a stretch is held; it is a match */
    int previous;      /* the stretch before was a match */
    size_t begin, end; /* of the one held */
} pieces;

static apus_status give(const pieces *p, size_t begin, size_t end)
{
    if (begin == end)
        return APUS_OK;
    apus_bpe_view piece = apus_bpe_slice(p->v, begin, end);
    return apus_bpe_split_run(p->call, p->next, &piece);
}

static apus_status stretch(pieces *p, size_t begin, size_t end, int match)
{
    apus_status s = APUS_OK;
    if (p->behavior == APUS_BPE_ISOLATED)
        return give(p, begin, end);
    if (p->behavior == APUS_BPE_REMOVED)
        return match ? APUS_OK : give(p, begin, end);
    int join = 0, drop = 0;
    if (p->pending) {
        if (p->behavior == APUS_BPE_CONTIGUOUS)
            join = match == p->previous;
        else if (p->behavior == APUS_BPE_MERGED_WITH_PREVIOUS)
            join = match && !p->previous;
        else
            drop = p->flag && !match; /* the match held goes with this one, which then takes no more */
    }
    p->previous = match;
    if (drop) {
        p->pending = 0;
        return give(p, p->begin, end);
    }
    if (join) {
        p->end = end;
        return APUS_OK;
    }
    if (p->pending)
        s = give(p, p->begin, p->end);
    p->pending = 1;
    p->flag = match;
    p->begin = begin;
    p->end = end;
    return s;
}

static apus_status finish(pieces *p)
{
    return p->pending ? give(p, p->begin, p->end) : APUS_OK;
}

static apus_status ended(const apus_bpe_call *call, apus_bpe_part *part, size_t at)
{
    if (!apus_bpe_grow(&part->ends, &part->ends_capacity, part->n_ends + 1, sizeof *part->ends))
        return apus_bpe_memory(call->err);
    part->ends[part->n_ends++] = (struct apus_bpe_end){at, call->out->n};
    return APUS_OK;
}

apus_status apus_bpe_split_pattern(apus_bpe_call *call, size_t stage, const apus_bpe_view *v, apus_bpe_part *part)
{
    const apus_bpe_split *op = &call->t->splits[stage];
    if (call->team != NULL && stage == call->t->dealt)
        return apus_bpe_deal(call, v);
    pieces p = {.call = call, .v = v, .next = stage + 1, .behavior = op->behavior};
    const size_t from = part != NULL ? part->from : 0, to = part != NULL ? part->to : SIZE_MAX, limit = part != NULL ? part->limit : v->n;
    apus_bpe_search search = {.s = v->s, .n = v->n, .position = from, .last = from > 0 ? from + 1 : 0};
    size_t begin = 0, end = 0, done = from;
    apus_status s = part != NULL ? ended(call, part, from) : APUS_OK;
    int found = 1;
    while (s == APUS_OK && done < to && (found = apus_bpe_regex_next(call, op->pattern, &search, &begin, &end)) > 0 && end <= limit) {
        if (done != begin)
            s = stretch(&p, done, begin, op->invert);
        if (s == APUS_OK)
            s = stretch(&p, begin, end, !op->invert);
        done = end;
        if (s == APUS_OK && part != NULL)
            s = ended(call, part, end);
    }
    if (s != APUS_OK)
        return s;
    if (found < 0)
        return APUS_E_INVALID;
    if (found == 0 && done != v->n && v->n <= limit) {
        s = stretch(&p, done, v->n, op->invert);
        if (s == APUS_OK && part != NULL)
            s = ended(call, part, v->n);
    }
    return s != APUS_OK ? s : finish(&p);
}

/* Every character of the class is a match of its own. */
static apus_status by_class(apus_bpe_call *call, const apus_bpe_split *op, apus_bpe_behavior behavior, size_t next, const apus_bpe_view *v)
{
    pieces p = {.call = call, .v = v, .next = next, .behavior = behavior};
    apus_status s = APUS_OK;
    size_t done = 0, length;
    for (size_t i = 0; i < v->n && s == APUS_OK; i += length) {
        uint32_t c = apus_bpe_char(v->s + i, &length);
        if (!(op->member != NULL ? op->member(c) : c == op->delimiter))
            continue;
        if (done != i)
            s = stretch(&p, done, i, 0);
        if (s == APUS_OK)
            s = stretch(&p, i, i + length, 1);
        done = i + length;
    }
    if (s == APUS_OK && done != v->n)
        s = stretch(&p, done, v->n, 0);
    return s != APUS_OK ? s : finish(&p);
}

/* Whitespace: \w+|[^\w\s]+ */
static apus_status words(apus_bpe_call *call, size_t next, const apus_bpe_view *v)
{
    pieces p = {.call = call, .v = v, .next = next};
    apus_status s = APUS_OK;
    size_t begin = 0, length;
    int kind = 0; /* 0 space, 1 word, 2 other */
    for (size_t i = 0; i <= v->n && s == APUS_OK; i += length) {
        length = 1;
        int now = 0;
        if (i < v->n) {
            uint32_t c = apus_bpe_char(v->s + i, &length);
            now = apus_bpe_is_word(c) ? 1 : apus_bpe_is_space(c) ? 0 : 2;
        }
        if (now != kind || i == v->n) {
            if (kind != 0)
                s = give(&p, begin, i);
            begin = i;
            kind = now;
        }
    }
    return s;
}

static apus_status metaspace(apus_bpe_call *call, const apus_bpe_split *op, size_t stage, const apus_bpe_view *v)
{
    apus_bpe_buffer *b = &call->stages[stage];
    char mark[4];
    size_t n = apus_bpe_put(op->delimiter, mark);
    b->n = 0;
    int marked = v->s[0] == ' ' || (v->n >= n && memcmp(v->s, mark, n) == 0);
    if (!apus_bpe_reserve(b, v->n + 64))
        return apus_bpe_memory(call->err);
    if (!marked && (op->prepend == 2 || (op->prepend == 1 && apus_bpe_origin(v, 0) == 0)) && !apus_bpe_add(b, mark, n, apus_bpe_origin(v, 0)))
        return apus_bpe_memory(call->err);
    for (size_t i = 0; i < v->n;) {
        size_t space = apus_bpe_find(v->s, v->n, i, " ", 1);
        if (!apus_bpe_copy(b, v, i, space) || (space < v->n && !apus_bpe_add(b, mark, n, apus_bpe_origin(v, space))))
            return apus_bpe_memory(call->err);
        i = space + 1;
    }
    apus_bpe_view changed = apus_bpe_view_of(b);
    return op->cut ? by_class(call, op, APUS_BPE_MERGED_WITH_NEXT, stage + 1, &changed) : apus_bpe_split_run(call, stage + 1, &changed);
}

/* As the last stage ByteLevel leaves the bytes to the model, which reads them through the alphabet. */
static apus_status byte_level(apus_bpe_call *call, const apus_bpe_split *op, size_t stage, const apus_bpe_view *v)
{
    apus_bpe_view text = *v;
    apus_bpe_buffer *b = &call->stages[stage];
    if (op->prepend && v->s[0] != ' ') {
        b->n = 0;
        if (!apus_bpe_add(b, " ", 1, apus_bpe_origin(v, 0)) || !apus_bpe_copy(b, v, 0, v->n))
            return apus_bpe_memory(call->err);
        text = apus_bpe_view_of(b);
    }
    if (op->pattern == NULL)
        return apus_bpe_split_run(call, stage + 1, &text);
    return apus_bpe_split_pattern(call, stage, &text, NULL);
}

static apus_status fixed(apus_bpe_call *call, const apus_bpe_split *op, size_t stage, const apus_bpe_view *v)
{
    pieces p = {.call = call, .v = v, .next = stage + 1};
    apus_status s = APUS_OK;
    size_t begin = 0, count = 0, length;
    for (size_t i = 0; i < v->n && s == APUS_OK; i += length) {
        if (count == op->length) {
            s = give(&p, begin, i);
            begin = i;
            count = 0;
        }
        apus_bpe_char(v->s + i, &length);
        count++;
    }
    return s != APUS_OK ? s : give(&p, begin, v->n);
}

apus_status apus_bpe_split_run(apus_bpe_call *call, size_t stage, const apus_bpe_view *v)
{
    if (v->n == 0)
        return APUS_OK;
    if (stage == call->t->n_splits)
        return apus_bpe_model_encode(call, v);
    const apus_bpe_split *op = &call->t->splits[stage];
    switch (op->kind) {
    case APUS_BPE_SPLIT_REGEX:
        return apus_bpe_split_pattern(call, stage, v, NULL);
    case APUS_BPE_SPLIT_CLASS:
        return by_class(call, op, op->behavior, stage + 1, v);
    case APUS_BPE_SPLIT_WORDS:
        return words(call, stage + 1, v);
    case APUS_BPE_SPLIT_METASPACE:
        return metaspace(call, op, stage, v);
    case APUS_BPE_SPLIT_BYTELEVEL:
        return byte_level(call, op, stage, v);
    case APUS_BPE_SPLIT_BYTES: {
        apus_bpe_buffer *b = &call->stages[stage];
        b->n = 0;
        for (size_t i = 0; i < v->n; i++) {
            char utf8[4];
            if (!apus_bpe_add(b, utf8, apus_bpe_put(apus_bpe_byte_char((unsigned char)v->s[i]), utf8), apus_bpe_origin(v, i)))
                return apus_bpe_memory(call->err);
        }
        apus_bpe_view mapped = apus_bpe_view_of(b);
        return apus_bpe_split_run(call, stage + 1, &mapped);
    }
    case APUS_BPE_SPLIT_FIXED:
        return fixed(call, op, stage, v);
    }
    return APUS_E_INTERNAL;
}

/* ---------------------------------------------------------------- reading */

static apus_bpe_split *append(apus_bpe *t, apus_bpe_split_kind kind)
{
    if (!apus_bpe_grow(&t->splits, &t->splits_capacity, t->n_splits + 1, sizeof *t->splits))
        return NULL;
    apus_bpe_split *op = &t->splits[t->n_splits++];
    *op = (apus_bpe_split){.kind = kind};
    return op;
}

static apus_status behavior(const apus_node *node, const char *what, int required, apus_bpe_behavior *out, apus_error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const apus_node_api *api = apus_bpe_host->node;
    const apus_node *n = api->get(node, "behavior");
    *out = APUS_BPE_ISOLATED;
    if (n == NULL && !required)
        return APUS_OK;
    const char *s = api->as_string(n, NULL);
    for (size_t i = 0; s != NULL && i < 5; i++) {
        if (strcmp(names[i], s) == 0) {
            *out = (apus_bpe_behavior)i;
            return APUS_OK;
        }
    }
    return apus_bpe_bad(n != NULL ? n : node, err, "%s: behavior must be Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous", what);
}

static apus_status open_metaspace(apus_bpe *t, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    const char *what = "pre_tokenizer 'Metaspace'";
    apus_status s = apus_bpe_keys(node, what, "type replacement add_prefix_space prepend_scheme split str_rep", err);
    apus_bpe_split *op = append(t, APUS_BPE_SPLIT_METASPACE);
    if (s != APUS_OK)
        return s;
    if (op == NULL)
        return apus_bpe_memory(err);
    int prefix = 1;
    if ((s = apus_bpe_one_char(node, what, "replacement", &op->delimiter, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "add_prefix_space", 1, &prefix, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "split", 1, &op->cut, err)) != APUS_OK)
        return s;
    const apus_node *n = api->get(node, "prepend_scheme");
    const char *scheme = n == NULL ? "always" : api->as_string(n, NULL);
    op->prepend = scheme == NULL ? -1 : strcmp(scheme, "always") == 0 ? 2 : strcmp(scheme, "first") == 0 ? 1 : strcmp(scheme, "never") == 0 ? 0 : -1;
    if (op->prepend < 0)
        return apus_bpe_bad(n, err, "%s: prepend_scheme must be always, first or never", what);
    if (!prefix) {
        if (n != NULL && op->prepend != 0)
            return apus_bpe_bad(n, err, "%s: add_prefix_space is false, but prepend_scheme is '%s'", what, scheme);
        op->prepend = 0;
    }
    return APUS_OK;
}

static apus_status open_byte_level(apus_bpe *t, const apus_node *node, apus_error *err)
{
    const char *what = "pre_tokenizer 'ByteLevel'";
    apus_status s = apus_bpe_keys(node, what, "type add_prefix_space trim_offsets use_regex", err);
    if (s != APUS_OK)
        return s;
    apus_bpe_split *op = append(t, APUS_BPE_SPLIT_BYTELEVEL);
    int use_regex = 1, trim;
    if (op == NULL)
        return apus_bpe_memory(err);
    op->behavior = APUS_BPE_ISOLATED;
    if ((s = apus_bpe_bool(node, what, "add_prefix_space", 1, &op->prepend, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "use_regex", 1, &use_regex, err)) != APUS_OK ||
        (s = apus_bpe_bool(node, what, "trim_offsets", 1, &trim, err)) != APUS_OK)
        return s;
    if (use_regex && (s = apus_bpe_regex_open(&op->pattern, GPT2_PATTERN, sizeof GPT2_PATTERN - 1, 0, what, err)) != APUS_OK)
        return s;
    return append(t, APUS_BPE_SPLIT_BYTES) != NULL ? APUS_OK : apus_bpe_memory(err);
}

size_t apus_bpe_split_dealt(const apus_bpe *t)
{
    size_t i = t->n_splits;
    while (i > 0 && t->splits[i - 1].pattern == NULL)
        i--;
    return i > 0 && t->splits[i - 1].behavior <= APUS_BPE_ISOLATED ? i - 1 : t->n_splits;
}

apus_status apus_bpe_split_open(apus_bpe *t, const apus_node *node, apus_error *err)
{
    const apus_node_api *api = apus_bpe_host->node;
    if (api->kind(node) == APUS_NODE_NULL)
        return APUS_OK;
    const char *type = apus_bpe_type(node);
    char what[64];
    snprintf(what, sizeof what, "pre_tokenizer '%.40s'", type);
    apus_status s;
    apus_bpe_split *op;
    if (strcmp(type, "Sequence") == 0) {
        s = apus_bpe_keys(node, what, "type pretokenizers", err);
        const apus_node *list = api->get(node, "pretokenizers");
        for (size_t i = 0; s == APUS_OK && i < api->length(list); i++) {
            if (api->kind(api->at(list, i)) == APUS_NODE_NULL)
                return apus_bpe_bad(list, err, "a pre_tokenizer in a Sequence is null");
            s = apus_bpe_split_open(t, api->at(list, i), err);
        }
        return s;
    }
    if (strcmp(type, "Metaspace") == 0)
        return open_metaspace(t, node, err);
    if (strcmp(type, "ByteLevel") == 0)
        return open_byte_level(t, node, err);
    if (strcmp(type, "Split") == 0) {
        if ((s = apus_bpe_keys(node, what, "type pattern behavior invert", err)) != APUS_OK)
            return s;
        if ((op = append(t, APUS_BPE_SPLIT_REGEX)) == NULL)
            return apus_bpe_memory(err);
        if ((s = apus_bpe_pattern(node, what, &op->pattern, err)) != APUS_OK || (s = behavior(node, what, 1, &op->behavior, err)) != APUS_OK)
            return s;
        return apus_bpe_bool(node, what, "invert", 0, &op->invert, err);
    }
    if (strcmp(type, "Whitespace") == 0 || strcmp(type, "WhitespaceSplit") == 0) {
        if ((s = apus_bpe_keys(node, what, "type", err)) != APUS_OK)
            return s;
        if ((op = append(t, type[10] == '\0' ? APUS_BPE_SPLIT_WORDS : APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        op->member = apus_bpe_is_space;
        return APUS_OK;
    }
    if (strcmp(type, "Digits") == 0) {
        int individual = 0;
        if ((s = apus_bpe_keys(node, what, "type individual_digits", err)) != APUS_OK ||
            (s = apus_bpe_bool(node, what, "individual_digits", 0, &individual, err)) != APUS_OK)
            return s;
        if ((op = append(t, APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        op->member = apus_bpe_is_numeric;
        op->behavior = individual ? APUS_BPE_ISOLATED : APUS_BPE_CONTIGUOUS;
        return APUS_OK;
    }
    if (strcmp(type, "Punctuation") == 0) {
        if ((s = apus_bpe_keys(node, what, "type behavior", err)) != APUS_OK)
            return s;
        if ((op = append(t, APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        op->member = apus_bpe_is_punctuation;
        return behavior(node, what, 0, &op->behavior, err);
    }
    if (strcmp(type, "BertPreTokenizer") == 0) {
        if ((s = apus_bpe_keys(node, what, "type", err)) != APUS_OK)
            return s;
        if ((op = append(t, APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        op->member = apus_bpe_is_space;
        if ((op = append(t, APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        op->member = apus_bpe_is_punctuation;
        op->behavior = APUS_BPE_ISOLATED;
        return APUS_OK;
    }
    if (strcmp(type, "CharDelimiterSplit") == 0) {
        if ((s = apus_bpe_keys(node, what, "type delimiter", err)) != APUS_OK)
            return s;
        if ((op = append(t, APUS_BPE_SPLIT_CLASS)) == NULL)
            return apus_bpe_memory(err);
        return apus_bpe_one_char(node, what, "delimiter", &op->delimiter, err);
    }
    if (strcmp(type, "FixedLength") == 0) {
        if ((s = apus_bpe_keys(node, what, "type length", err)) != APUS_OK)
            return s;
        int64_t length = api->as_int(api->get(node, "length"), 5);
        if (length < 1)
            return apus_bpe_bad(node, err, "%s: length must be at least 1", what);
        if ((op = append(t, APUS_BPE_SPLIT_FIXED)) == NULL)
            return apus_bpe_memory(err);
        op->length = (size_t)length;
        return APUS_OK;
    }
    (void)apus_bpe_bad(node, err, "%s is not supported", what);
    return apus_hint(err, APUS_E_UNSUPPORTED,
                     "supported: Sequence ByteLevel Split Metaspace Whitespace WhitespaceSplit Digits "
                     "Punctuation BertPreTokenizer CharDelimiterSplit FixedLength");
}
