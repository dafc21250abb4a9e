/*
 * Normalisers: text to text, with origins. Normal forms are those of Unicode 9, which Hugging Face's are (a character
 * added since stands for itself). Knows no model and no pre-tokeniser.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static apus_status memory(apus_bpe_call *call)
{
    return apus_bpe_memory(call->err);
}

/* ---------------------------------------------------------------- normal forms */

static int combining_class(uint32_t c)
{
    if (c < 0x300)
        return 0;
    int class = utf8proc_get_property((utf8proc_int32_t)c)->combining_class;
    return class != 0 && apus_bpe_in(apus_bpe_after_nine, apus_bpe_after_nine_n, c) ? 0 : class;
}

/* Decomposed c into out[], at most 20; returns how many. */
static size_t decompose(uint32_t c, int compat, uint32_t out[20])
{
    out[0] = c;
    if (c < 0xA0 || apus_bpe_in(apus_bpe_after_nine, apus_bpe_after_nine_n, c))
        return 1;
    int boundary = 0;
    utf8proc_int32_t parts[20];
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, 20, UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0), &boundary);
    if (n < 1 || n > 20)
        return 1;
    for (utf8proc_ssize_t i = 0; i < n; i++)
        out[i] = (uint32_t)parts[i];
    return (size_t)n;
}

/* The primary composite of a and b, or 0. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (b < 0x300 || apus_bpe_in(apus_bpe_after_nine, apus_bpe_after_nine_n, a) || apus_bpe_in(apus_bpe_after_nine, apus_bpe_after_nine_n, b))
        return 0;
    utf8proc_int32_t pair[3] = {(utf8proc_int32_t)a, (utf8proc_int32_t)b, 0};
    if (utf8proc_normalize_utf32(pair, 2, UTF8PROC_COMPOSE | UTF8PROC_STABLE) != 1 ||
        apus_bpe_in(apus_bpe_after_nine, apus_bpe_after_nine_n, (uint32_t)pair[0]))
        return 0;
    return (uint32_t)pair[0];
}

/* Characters of class 0 that compose with one before them (Unicode 9). */
static const apus_bpe_range seconds[] = {{0x9BE, 0x9BE},     {0x9D7, 0x9D7},     {0xB3E, 0xB3E},     {0xB56, 0xB57},     {0xBBE, 0xBBE},
                                         {0xBD7, 0xBD7},     {0xCC2, 0xCC2},     {0xCD5, 0xCD6},     {0xD3E, 0xD3E},     {0xD57, 0xD57},
                                         {0xDCF, 0xDCF},     {0xDDF, 0xDDF},     {0x102E, 0x102E},   {0x1161, 0x1175},   {0x11A8, 0x11C2},
                                         {0x1B35, 0x1B35},   {0x11127, 0x11127}, {0x1133E, 0x1133E}, {0x11357, 0x11357}, {0x114B0, 0x114B0},
                                         {0x114BA, 0x114BA}, {0x114BD, 0x114BD}, {0x115AF, 0x115AF}};

/* Stays as it is in every normal form asked for, wherever it stands, and starts a new stretch. */
static int inert(uint32_t c, apus_bpe_normal_kind kind)
{
    if (c < 0xA0)
        return 1;
    if (kind == APUS_BPE_NFC && c < 0x300)
        return 1;
    if ((c >= 0x3400 && c < 0xA000) || (c >= 0x20000 && c < 0x2F800))
        return 1;
    if (c >= 0xAC00 && c <= 0xD7A3) /* Hangul syllables: a jamo that follows is not inert */
        return kind == APUS_BPE_NFC || kind == APUS_BPE_NFKC;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
    return p->combining_class == 0 && p->decomp_seqindex == UINT16_MAX && !apus_bpe_in(seconds, sizeof seconds / sizeof *seconds, c);
}

/* The stretch v[begin, end), which holds no inert character but perhaps its first. */
static int normal_stretch(apus_bpe_call *call, apus_bpe_normal_kind kind, const apus_bpe_view *v, size_t begin, size_t end, apus_bpe_buffer *out)
{
    size_t n = 0;
    int compat = kind == APUS_BPE_NFKC || kind == APUS_BPE_NFKD;
    for (size_t i = begin; i < end;) {
        size_t length;
        uint32_t parts[20], c = apus_bpe_char(v->s + i, &length);
        size_t m = decompose(c, compat, parts);
        if (!apus_bpe_grow(&call->chars, &call->chars_capacity, n + m, sizeof *call->chars) ||
            !apus_bpe_grow(&call->chars_at, &call->chars_at_capacity, n + m, sizeof *call->chars_at))
            return 0;
        for (size_t k = 0; k < m; k++, n++) {
            call->chars[n] = parts[k];
            call->chars_at[n] = apus_bpe_origin(v, i);
        }
        i += length;
    }
    uint32_t *c = call->chars, *at = call->chars_at;
    /* Canonical order: each run of marks sorted by class, stably. Classes are below 256: a counting sort keeps long runs
     * linear; short ones are inserted. */
    for (size_t i = 0; i < n;) {
        if (combining_class(c[i]) == 0) {
            i++;
            continue;
        }
        size_t stop = i;
        while (stop < n && combining_class(c[stop]) != 0)
            stop++;
        size_t run = stop - i;
        if (run < 32) {
            for (size_t a = i + 1; a < stop; a++) {
                uint32_t ch = c[a], where = at[a];
                int class = combining_class(ch);
                size_t b = a;
                for (; b > i && combining_class(c[b - 1]) > class; b--) {
                    c[b] = c[b - 1];
                    at[b] = at[b - 1];
                }
                c[b] = ch;
                at[b] = where;
            }
        } else {
            size_t start[257] = {0};
            uint32_t *copy = malloc(run * 2 * sizeof *copy);
            if (copy == NULL)
                return 0;
            for (size_t a = 0; a < run; a++) {
                copy[a] = c[i + a];
                copy[run + a] = at[i + a];
                start[combining_class(copy[a]) + 1]++;
            }
            for (size_t k = 0; k < 256; k++)
                start[k + 1] += start[k];
            for (size_t a = 0; a < run; a++) {
                size_t to = i + start[combining_class(copy[a])]++;
                c[to] = copy[a];
                at[to] = copy[run + a];
            }
            free(copy);
        }
        i = stop;
    }
    if (kind == APUS_BPE_NFC || kind == APUS_BPE_NFKC) { /* UAX #15, D117 */
        size_t m = 0, starter = SIZE_MAX;
        int last = 0;
        for (size_t i = 0; i < n; i++) {
            int class = combining_class(c[i]);
            if (starter != SIZE_MAX && (last < class || (last == 0 && starter + 1 == m))) {
                uint32_t composite = compose(c[starter], c[i]);
                if (composite != 0) {
                    c[starter] = composite;
                    continue;
                }
            }
            if (class == 0)
                starter = m;
            last = class;
            c[m] = c[i];
            at[m] = at[i];
            m++;
        }
        n = m;
    }
    for (size_t i = 0; i < n; i++) {
        char utf8[4];
        if (!apus_bpe_add(out, utf8, apus_bpe_put(c[i], utf8), at[i]))
            return 0;
    }
    return 1;
}

/* Bytes of v that no normal form of this kind changes: up to the start of the last character before the first that is
 * not inert (that character may yet compose). */
static size_t next_stretch(const apus_bpe_view *v, size_t from, apus_bpe_normal_kind kind)
{
    size_t previous = from, i = from;
    while (i < v->n) {
        if ((unsigned char)v->s[i] < 0x80) {
            previous = i++;
            continue;
        }
        size_t length;
        if (!inert(apus_bpe_char(v->s + i, &length), kind))
            return previous;
        previous = i;
        i += length;
    }
    return v->n;
}

/* 1: changed into out; 0: as it was; -1: memory. */
static int normal_form(apus_bpe_call *call, apus_bpe_normal_kind kind, const apus_bpe_view *v, apus_bpe_buffer *out)
{
    size_t i = next_stretch(v, 0, kind);
    if (i == v->n)
        return 0;
    if (!apus_bpe_reserve(out, v->n) || !apus_bpe_copy(out, v, 0, i))
        return -1;
    while (i < v->n) {
        size_t length, end = i;
        apus_bpe_char(v->s + i, &length);
        end += length;
        while (end < v->n) {
            if (inert(apus_bpe_char(v->s + end, &length), kind))
                break;
            end += length;
        }
        if (!normal_stretch(call, kind, v, i, end, out))
            return -1;
        i = next_stretch(v, end, kind);
        if (!apus_bpe_copy(out, v, end, i))
            return -1;
    }
    return 1;
}

/* ---------------------------------------------------------------- the others */

static uint32_t nmt(uint32_t c) /* UINT32_MAX: dropped */
{
    if ((c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F)
        return UINT32_MAX;
    if (c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
        c == 0xFEFF || c == 0xFFFD)
        return ' ';
    return c;
}

/* Character by character: LOWERCASE, STRIP_ACCENTS, NMT, BYTES. */
static int each(apus_bpe_normal_kind kind, const apus_bpe_view *v, apus_bpe_buffer *out)
{
    if (!apus_bpe_reserve(out, v->n))
        return -1;
    for (size_t i = 0; i < v->n;) {
        size_t length, n = 1;
        uint32_t c = apus_bpe_char(v->s + i, &length), to[4] = {c, 0, 0, 0};
        if (kind == APUS_BPE_LOWERCASE) {
            to[0] = apus_bpe_lower(c);
            if (c == 0x130) {
                to[0] = 'i';
                to[n++] = 0x307;
            }
        } else if (kind == APUS_BPE_STRIP_ACCENTS) {
            n = !apus_bpe_is_mark(c);
        } else if (kind == APUS_BPE_NMT) {
            to[0] = nmt(c);
            n = to[0] != UINT32_MAX;
        } else {
            for (n = 0; n < length; n++)
                to[n] = apus_bpe_byte_char((unsigned char)v->s[i + n]);
        }
        for (size_t k = 0; k < n; k++) {
            char utf8[4];
            if (!apus_bpe_add(out, utf8, apus_bpe_put(to[k], utf8), apus_bpe_origin(v, i)))
                return -1;
        }
        i += length;
    }
    return 1;
}

/* Every match becomes the content, which begins where the match did. */
static int replace(apus_bpe_call *call, const apus_bpe_normal *op, const apus_bpe_view *v, apus_bpe_buffer *out)
{
    apus_bpe_search search = {.s = v->s, .n = v->n};
    size_t begin, end, done = 0;
    int any = 0, found;
    while ((found = apus_bpe_regex_next(call, op->pattern, &search, &begin, &end)) > 0) {
        if (!any && !apus_bpe_reserve(out, v->n + v->n / 2))
            return -1;
        any = 1;
        uint32_t at = begin < v->n ? apus_bpe_origin(v, begin) : v->n > 0 ? apus_bpe_origin(v, v->n - 1) : 0;
        if (!apus_bpe_copy(out, v, done, begin) || !apus_bpe_add(out, op->text, op->n_text, at))
            return -1;
        done = end;
    }
    if (found < 0)
        return -2;
    return !any ? 0 : apus_bpe_copy(out, v, done, v->n) ? 1 : -1;
}

static void strip(const apus_bpe_normal *op, apus_bpe_view *v)
{
    size_t begin = 0, end = v->n, length;
    while (op->left && begin < end && apus_bpe_is_space(apus_bpe_char(v->s + begin, &length)))
        begin += length;
    while (op->right && end > begin) {
        size_t i = end - 1;
        while (i > begin && ((unsigned char)v->s[i] & 0xC0) == 0x80)
            i--;
        if (!apus_bpe_is_space(apus_bpe_char(v->s + i, &length)))
            break;
        end = i;
    }
    *v = apus_bpe_slice(v, begin, end);
}

apus_status apus_bpe_normalize(apus_bpe_call *call, apus_bpe_view *v)
{
    const apus_bpe *t = call->t;
    int which = 0; /* the buffer that v is not in */
    for (size_t i = 0; i < t->n_normals && v->n > 0; i++) {
        const apus_bpe_normal *op = &t->normals[i];
        apus_bpe_buffer *out = &call->normal[which];
        out->n = 0;
        int changed = 0;
        switch (op->kind) {
        case APUS_BPE_NFC:
        case APUS_BPE_NFD:
        case APUS_BPE_NFKC:
        case APUS_BPE_NFKD:
            changed = normal_form(call, op->kind, v, out);
            break;
        case APUS_BPE_STRIP:
            strip(op, v);
            break;
        case APUS_BPE_REPLACE:
            changed = replace(call, op, v, out);
            break;
        case APUS_BPE_PREPEND:
            changed = apus_bpe_reserve(out, v->n + op->n_text) && apus_bpe_add(out, op->text, op->n_text, apus_bpe_origin(v, 0)) &&
                              apus_bpe_copy(out, v, 0, v->n)
                          ? 1
                          : -1;
            break;
        case APUS_BPE_LOWERCASE:
        case APUS_BPE_STRIP_ACCENTS:
        case APUS_BPE_NMT:
        case APUS_BPE_BYTES:
            changed = each(op->kind, v, out);
            break;
        }
        if (changed == -1)
            return memory(call);
        if (changed < 0)
            return APUS_E_INVALID;
        if (changed) {
            *v = apus_bpe_view_of(out);
            which ^= 1;
        }
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- reading */

apus_status apus_bpe_normal_open(apus_bpe *t, const apus_node *node, apus_error *err)
{
    static const struct {
        const char *type, *keys;
        apus_bpe_normal_kind kind;
    } kinds[] = {{"NFC", "type", APUS_BPE_NFC},
                 {"NFD", "type", APUS_BPE_NFD},
                 {"NFKC", "type", APUS_BPE_NFKC},
                 {"NFKD", "type", APUS_BPE_NFKD},
                 {"Lowercase", "type", APUS_BPE_LOWERCASE},
                 {"Strip", "type strip_left strip_right", APUS_BPE_STRIP},
                 {"StripAccents", "type", APUS_BPE_STRIP_ACCENTS},
                 {"Replace", "type pattern content", APUS_BPE_REPLACE},
                 {"Prepend", "type prepend", APUS_BPE_PREPEND},
                 {"Nmt", "type", APUS_BPE_NMT},
                 {"ByteLevel", "type", APUS_BPE_BYTES}};
    const apus_node_api *api = apus_bpe_host->node;
    if (api->kind(node) == APUS_NODE_NULL)
        return APUS_OK;
    const char *type = apus_bpe_type(node);
    apus_status s;
    if (strcmp(type, "Sequence") == 0) {
        s = apus_bpe_keys(node, "normalizer 'Sequence'", "type normalizers", err);
        const apus_node *list = api->get(node, "normalizers");
        for (size_t i = 0; s == APUS_OK && i < api->length(list); i++) {
            if (api->kind(api->at(list, i)) == APUS_NODE_NULL)
                return apus_bpe_bad(list, err, "a normalizer in a Sequence is null");
            s = apus_bpe_normal_open(t, api->at(list, i), err);
        }
        return s;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].type, type) != 0)
            continue;
        char what[64];
        snprintf(what, sizeof what, "normalizer '%s'", type);
        if ((s = apus_bpe_keys(node, what, kinds[i].keys, err)) != APUS_OK)
            return s;
        if (!apus_bpe_grow(&t->normals, &t->normals_capacity, t->n_normals + 1, sizeof *t->normals))
            return apus_bpe_memory(err);
        apus_bpe_normal *op = &t->normals[t->n_normals++];
        *op = (apus_bpe_normal){.kind = kinds[i].kind};
        if (op->kind == APUS_BPE_STRIP) {
            if ((s = apus_bpe_bool(node, what, "strip_left", 0, &op->left, err)) != APUS_OK)
                return s;
            return apus_bpe_bool(node, what, "strip_right", 0, &op->right, err);
        }
        if (op->kind == APUS_BPE_REPLACE) {
            if ((s = apus_bpe_pattern(node, what, &op->pattern, err)) != APUS_OK)
                return s;
            return apus_bpe_string(node, what, "content", &op->text, &op->n_text, err);
        }
        if (op->kind == APUS_BPE_PREPEND)
            return apus_bpe_string(node, what, "prepend", &op->text, &op->n_text, err);
        return APUS_OK;
    }
    (void)apus_bpe_bad(node, err, "normalizer '%s' is not supported", type);
    return apus_hint(err, APUS_E_UNSUPPORTED, "supported: Sequence NFC NFD NFKC NFKD Lowercase Strip StripAccents Replace Prepend Nmt ByteLevel");
}
