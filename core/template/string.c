/*
 * core/template/string: strings of code points that know where each byte came from: building, cutting, searching,
 * case. Knows no other kind of value.
 */
#include "casing.h"
#include "value.h"

#include <string.h>
#include <utf8proc.h>

/* ---------------------------------------------------------------- UTF-8 */

uint32_t apus_tpl_decode(const char *bytes, size_t length, size_t *at)
{
    const unsigned char *p = (const unsigned char *)bytes + *at;
    size_t left = length - *at;
    uint32_t c = p[0];
    size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (n == 1) {
        *at += 1;
        return c;
    }
    if (n != 0 && n <= left) {
        uint32_t v = c & (0xffu >> (n + 1));
        size_t i = 1;
        for (; i < n && (p[i] & 0xc0) == 0x80; i++)
            v = v << 6 | (p[i] & 0x3fu);
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (i == n && v >= least[n] && v <= 0x10ffff && (v < 0xd800 || v > 0xdfff)) {
            *at += n;
            return v;
        }
    }
    *at += 1;
    return 0xdc00u + c;
}

/* The code point that ends at *at; *at moves to where it begins. */
static uint32_t decode_back(const char *bytes, size_t *at)
{
    size_t end = *at;
    for (size_t n = 1; n <= 4 && n <= end; n++) {
        size_t from = end - n, to = from;
        if (((unsigned char)bytes[from] & 0xc0) == 0x80)
            continue;
        uint32_t c = apus_tpl_decode(bytes, end, &to);
        if (to != end)
            break;
        *at = from;
        return c;
    }
    *at = end - 1;
    return 0xdc00u + (unsigned char)bytes[end - 1];
}

size_t apus_tpl_chars(tstr *s)
{
    if (s->chars == (size_t)-1) {
        size_t n = 0;
        for (size_t at = 0; at < s->length; n++)
            (void)apus_tpl_decode(s->bytes, s->length, &at);
        s->chars = n;
    }
    return s->chars;
}

size_t apus_tpl_offset(tstr *s, size_t index)
{
    if (apus_tpl_chars(s) == s->length)
        return index < s->length ? index : s->length;
    size_t at = 0;
    while (index-- > 0 && at < s->length)
        (void)apus_tpl_decode(s->bytes, s->length, &at);
    return at;
}

/* ---------------------------------------------------------------- building */

void apus_tpl_put(tbuf *b, const char *bytes, size_t n, ttag tag)
{
    if (n == 0)
        return;
    tctx *c = b->c;
    if (n > c->limits.bytes - b->length)
        apus_tpl_fail(&c->base, APUS_E_MEMORY, "the output or a string of more than %zu MiB", c->limits.bytes >> 20);
    apus_tpl_spend(c, n / 16 + 1);
    if (b->length + n > b->capacity) {
        size_t more = b->capacity * 2 > b->length + n ? b->capacity * 2 : b->length + n;
        more = (more + 15) & ~(size_t)15;
        b->bytes = apus_tpl_grow(&c->base, b->bytes, b->capacity, more);
        b->capacity = more;
    }
    memcpy(b->bytes + b->length, bytes, n);
    b->length += n;
    if (b->n_runs > 0 && b->runs[b->n_runs - 1].tag == tag) {
        b->runs[b->n_runs - 1].end = b->length;
        return;
    }
    if (b->n_runs == b->run_capacity) {
        size_t more = b->run_capacity == 0 ? 2 : b->run_capacity * 2;
        b->runs = apus_tpl_grow(&c->base, b->runs, b->run_capacity * sizeof *b->runs, more * sizeof *b->runs);
        b->run_capacity = more;
    }
    b->runs[b->n_runs++] = (trun){b->length, tag};
}

void apus_tpl_put_text(tbuf *b, const char *text, ttag tag)
{
    apus_tpl_put(b, text, strlen(text), tag);
}

void apus_tpl_put_char(tbuf *b, uint32_t c, ttag tag)
{
    char out[4];
    size_t n;
    if (c >= 0xdc80 && c <= 0xdcff) {
        out[0] = (char)(c - 0xdc00);
        n = 1;
    } else
        n = (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)out);
    apus_tpl_put(b, out, n, tag);
}

void apus_tpl_put_part(tbuf *b, const tstr *s, size_t from, size_t to)
{
    if (s->n_runs == 0) {
        apus_tpl_put(b, s->bytes + from, to - from, s->tag);
        return;
    }
    size_t low = 0, high = s->n_runs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (s->runs[middle].end <= from)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low; i < s->n_runs && from < to; i++) {
        size_t end = s->runs[i].end < to ? s->runs[i].end : to;
        apus_tpl_put(b, s->bytes + from, end - from, s->runs[i].tag);
        from = end;
    }
}

void apus_tpl_put_str(tbuf *b, const tstr *s)
{
    apus_tpl_put_part(b, s, 0, s->length);
}

void apus_tpl_put_escaped(tbuf *b, const tstr *s)
{
    if (s->markup) {
        apus_tpl_put_str(b, s);
        return;
    }
    size_t from = 0;
    for (size_t i = 0; i < s->length; i++) {
        const char *as = NULL;
        switch (s->bytes[i]) {
        case '&':
            as = "&amp;";
            break;
        case '<':
            as = "&lt;";
            break;
        case '>':
            as = "&gt;";
            break;
        case '\'':
            as = "&#39;";
            break;
        case '"':
            as = "&#34;";
            break;
        default:
            continue;
        }
        apus_tpl_put_part(b, s, from, i);
        apus_tpl_put_text(b, as, apus_tpl_tag_at(s, i));
        from = i + 1;
    }
    apus_tpl_put_part(b, s, from, s->length);
}

tstr *apus_tpl_take(tbuf *b)
{
    tstr *s = apus_tpl_str(&b->c->base, b->bytes, b->length, b->n_runs == 0 ? T_OWN : b->runs[0].tag);
    if (b->n_runs > 1) {
        s->runs = b->runs;
        s->n_runs = b->n_runs;
    }
    s->markup = b->markup;
    return s;
}

/* ---------------------------------------------------------------- parts */

ttag apus_tpl_tag_at(const tstr *s, size_t byte)
{
    size_t low = 0, high = s->n_runs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (s->runs[middle].end <= byte)
            low = middle + 1;
        else
            high = middle;
    }
    return s->n_runs == 0 ? s->tag : s->runs[low < s->n_runs ? low : s->n_runs - 1].tag;
}

tstr *apus_tpl_part(tctx *c, const tstr *s, size_t from, size_t to)
{
    tstr *part = apus_tpl_str(&c->base, s->bytes + from, to - from, T_OWN);
    part->markup = s->markup;
    part->tag = apus_tpl_tag_at(s, from);
    if (s->chars == s->length)
        part->chars = part->length;
    if (s->n_runs == 0)
        return part;
    size_t first = 0;
    while (first < s->n_runs && s->runs[first].end <= from)
        first++;
    size_t last = first;
    while (last < s->n_runs && s->runs[last].end < to)
        last++;
    apus_tpl_spend(c, last + 1);
    if (last == first || part->length == 0)
        return part;
    trun *runs = apus_tpl_array(&c->base, last - first + 1, sizeof *runs);
    for (size_t i = first; i <= last && i < s->n_runs; i++) {
        runs[i - first] = s->runs[i];
        runs[i - first].end = (s->runs[i].end < to ? s->runs[i].end : to) - from;
    }
    part->runs = runs;
    part->n_runs = last - first + 1;
    return part;
}

bool apus_tpl_is(const tstr *s, const char *text)
{
    return strlen(text) == s->length && memcmp(s->bytes, text, s->length) == 0;
}

int apus_tpl_str_compare(const tstr *a, const tstr *b)
{
    size_t n = a->length < b->length ? a->length : b->length;
    int order = n == 0 ? 0 : memcmp(a->bytes, b->bytes, n);
    if (order == 0)
        order = a->length < b->length ? -1 : a->length > b->length;
    return order < 0 ? -1 : order > 0;
}

size_t apus_tpl_find(const tstr *s, size_t from, size_t to, const tstr *what)
{
    if (from > to || what->length > to - from)
        return (size_t)-1;
    if (what->length == 0)
        return from;
    const char *found = memmem(s->bytes + from, to - from, what->bytes, what->length);
    return found == NULL ? (size_t)-1 : (size_t)(found - s->bytes);
}

tstr *apus_tpl_concat(tctx *c, tstr *a, tstr *b)
{
    if (!a->markup && !b->markup) {
        if (a->length == 0)
            return b;
        if (b->length == 0)
            return a;
    }
    tbuf out = {.c = c, .markup = a->markup || b->markup};
    if (out.markup) {
        apus_tpl_put_escaped(&out, a);
        apus_tpl_put_escaped(&out, b);
    } else {
        apus_tpl_put_str(&out, a);
        apus_tpl_put_str(&out, b);
    }
    return apus_tpl_take(&out);
}

/* ---------------------------------------------------------------- classes of characters */

bool apus_tpl_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool is_line_break(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool apus_tpl_is_printable(uint32_t c)
{
    if (c == ' ')
        return true;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

bool apus_tpl_is_word(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return c == '_' || (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

/* ---------------------------------------------------------------- cutting */

static bool among(uint32_t c, const tstr *chars)
{
    if (chars == NULL)
        return apus_tpl_is_space(c);
    for (size_t at = 0; at < chars->length;)
        if (apus_tpl_decode(chars->bytes, chars->length, &at) == c)
            return true;
    return false;
}

tstr *apus_tpl_strip(tctx *c, tstr *s, const tstr *chars, int sides)
{
    size_t from = 0, to = s->length;
    uint64_t each = chars == NULL ? 1 : chars->length / 4 + 1;
    while ((sides & 1) != 0 && from < to) {
        size_t next = from;
        apus_tpl_spend(c, each);
        if (!among(apus_tpl_decode(s->bytes, to, &next), chars))
            break;
        from = next;
    }
    while ((sides & 2) != 0 && to > from) {
        size_t before = to;
        apus_tpl_spend(c, each);
        if (!among(decode_back(s->bytes, &before), chars) || before < from)
            break;
        to = before;
    }
    return from == 0 && to == s->length ? s : apus_tpl_part(c, s, from, to);
}

tstr *apus_tpl_replace(tctx *c, tstr *s, const tstr *old, const tstr *with, int64_t count)
{
    tbuf b = {.c = c, .markup = s->markup};
    size_t from = 0, at = 0;
    while (count != 0) {
        size_t found = apus_tpl_find(s, at, s->length, old);
        apus_tpl_spend(c, ((found == (size_t)-1 ? s->length : found) - at) / 8 + 1);
        if (found == (size_t)-1)
            break;
        apus_tpl_put_part(&b, s, from, found);
        if (s->markup)
            apus_tpl_put_escaped(&b, with);
        else
            apus_tpl_put_str(&b, with);
        from = at = found + old->length;
        count -= count > 0;
        if (old->length == 0) {
            if (at >= s->length)
                break;
            (void)apus_tpl_decode(s->bytes, s->length, &at);
        }
    }
    if (from == 0 && b.length == 0)
        return s;
    apus_tpl_put_part(&b, s, from, s->length);
    return apus_tpl_take(&b);
}

tlist *apus_tpl_splitlines(tctx *c, tstr *s, bool keep)
{
    size_t capacity = 8, from = 0;
    tlist *l = apus_tpl_list(&c->base, capacity);
    apus_tpl_spend(c, s->length);
    for (size_t at = 0; at < s->length;) {
        size_t end = at;
        uint32_t ch = apus_tpl_decode(s->bytes, s->length, &at);
        if (!is_line_break(ch))
            continue;
        if (ch == '\r' && at < s->length && s->bytes[at] == '\n')
            at++;
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, keep ? at : end)));
        from = at;
    }
    if (from < s->length)
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, s->length)));
    return l;
}

static void reversed(tlist *l)
{
    for (size_t i = 0, j = l->n; i + 1 < j; i++) {
        tval v = l->items[--j];
        l->items[j] = l->items[i];
        l->items[i] = v;
    }
}

static size_t find_back(const tstr *s, size_t to, const tstr *what)
{
    if (what->length > to)
        return (size_t)-1;
    for (size_t at = to - what->length;; at--) {
        if (memcmp(s->bytes + at, what->bytes, what->length) == 0)
            return at;
        if (at == 0)
            return (size_t)-1;
    }
}

/* White space separates; runs of it count once. */
static void split_space(tctx *c, tstr *s, int64_t most, tlist *l, size_t capacity)
{
    size_t at = 0;
    for (;;) {
        size_t next = at;
        while (at < s->length && apus_tpl_is_space(apus_tpl_decode(s->bytes, s->length, &next)))
            at = next;
        if (at >= s->length)
            return;
        size_t from = at, to = s->length;
        if (most != 0) {
            for (next = at; at < s->length && !apus_tpl_is_space(apus_tpl_decode(s->bytes, s->length, &next));)
                at = next;
            to = at;
            most -= most > 0;
        } else
            at = s->length;
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, to)));
    }
}

static void split_space_back(tctx *c, tstr *s, int64_t most, tlist *l, size_t capacity)
{
    size_t to = s->length;
    for (;;) {
        size_t before = to;
        while (to > 0 && apus_tpl_is_space(decode_back(s->bytes, &before)))
            to = before;
        if (to == 0)
            break;
        size_t from = to;
        if (most != 0) {
            for (before = from; from > 0 && !apus_tpl_is_space(decode_back(s->bytes, &before));)
                from = before;
            most -= most > 0;
        } else
            from = 0;
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, to)));
        to = from;
    }
    reversed(l);
}

tlist *apus_tpl_split(tctx *c, tstr *s, const tstr *separator, int64_t most, bool from_right)
{
    size_t capacity = 8;
    tlist *l = apus_tpl_list(&c->base, capacity);
    apus_tpl_spend(c, s->length);
    if (separator == NULL) {
        if (from_right)
            split_space_back(c, s, most, l, capacity);
        else
            split_space(c, s, most, l, capacity);
        return l;
    }
    if (separator->length == 0)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "empty separator");
    if (from_right) {
        size_t to = s->length, found;
        apus_tpl_spend(c, s->length * (separator->length / 16 + 1));
        while (most != 0 && (found = find_back(s, to, separator)) != (size_t)-1) {
            apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, found + separator->length, to)));
            to = found;
            most -= most > 0;
        }
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, 0, to)));
        reversed(l);
        return l;
    }
    size_t from = 0, found;
    while (most != 0 && (found = apus_tpl_find(s, from, s->length, separator)) != (size_t)-1) {
        apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, found)));
        from = found + separator->length;
        most -= most > 0;
    }
    apus_tpl_push(&c->base, l, &capacity, apus_tpl_sval(apus_tpl_part(c, s, from, s->length)));
    return l;
}

/* ---------------------------------------------------------------- case */

char apus_tpl_case_of(uint32_t c)
{
    utf8proc_int32_t ch = (utf8proc_int32_t)c;
    switch (utf8proc_category(ch)) {
    case UTF8PROC_CATEGORY_LU:
        return 'u';
    case UTF8PROC_CATEGORY_LL:
        return 'l';
    case UTF8PROC_CATEGORY_LT:
        return 't';
    default: /* Roman numerals, circled letters */
        return utf8proc_tolower(ch) != ch ? 'u' : utf8proc_toupper(ch) != ch ? 'l' : 0;
    }
}

static bool cased(uint32_t c)
{
    return apus_tpl_case_of(c) != 0;
}

static bool case_ignorable(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_LM ||
           k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0xb7 || c == 0x2019;
}

/* Greek sigma has another lower case at the end of a word. */
static bool final_sigma(const tstr *s, size_t begin, size_t end)
{
    uint32_t c = 0;
    while (begin > 0 && case_ignorable(c = decode_back(s->bytes, &begin)))
        c = 0;
    if (c == 0 || !cased(c))
        return false;
    c = 0;
    while (end < s->length && case_ignorable(c = apus_tpl_decode(s->bytes, s->length, &end)))
        c = 0;
    return c == 0 || !cased(c);
}

static void put_upper(tbuf *b, uint32_t c, bool title, ttag tag)
{
    const char *special = apus_tpl_special_case(c, title);
    if (special != NULL)
        apus_tpl_put_text(b, special, tag);
    else
        apus_tpl_put_char(b, (uint32_t)(title ? utf8proc_totitle((utf8proc_int32_t)c) : utf8proc_toupper((utf8proc_int32_t)c)), tag);
}

static void put_lower(tbuf *b, const tstr *s, uint32_t c, size_t begin, size_t end, ttag tag)
{
    if (c == 0x130)
        apus_tpl_put_text(b, "i\xcc\x87", tag);
    else if (c == 0x3a3)
        apus_tpl_put_char(b, final_sigma(s, begin, end) ? 0x3c2 : 0x3c3, tag);
    else
        apus_tpl_put_char(b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c), tag);
}

static void put_folded(tbuf *b, uint32_t c, ttag tag)
{
    utf8proc_int32_t to[8];
    int class = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, to, 8, UTF8PROC_CASEFOLD, &class);
    for (utf8proc_ssize_t i = 0; i < n && i < 8; i++)
        apus_tpl_put_char(b, (uint32_t)to[i], tag);
}

tstr *apus_tpl_case(tctx *c, tstr *s, char how)
{
    tbuf b = {.c = c, .markup = s->markup};
    bool inside = false;
    apus_tpl_spend(c, s->length * 8);
    for (size_t at = 0; at < s->length;) {
        size_t begin = at;
        uint32_t ch = apus_tpl_decode(s->bytes, s->length, &at);
        ttag tag = apus_tpl_tag_at(s, begin);
        if (ch >= 0xdc80 && ch <= 0xdcff)
            apus_tpl_put_char(&b, ch, tag);
        else if (how == 'f')
            put_folded(&b, ch, tag);
        else if (how == 'u' || (how == 's' && apus_tpl_case_of(ch) == 'l'))
            put_upper(&b, ch, false, tag);
        else if ((how == 'c' && begin == 0) || (how == 't' && !inside))
            put_upper(&b, ch, true, tag);
        else if (how == 's' && apus_tpl_case_of(ch) != 'u')
            apus_tpl_put_char(&b, ch, tag);
        else
            put_lower(&b, s, ch, begin, at, tag);
        inside = cased(ch);
    }
    return apus_tpl_take(&b);
}
