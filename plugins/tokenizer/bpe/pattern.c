/*
 * Patterns: Oniguruma's Ruby syntax, as tokenizer.json holds it, rewritten for PCRE2 so that both match alike: what \s, \w,
 * \h, \v, (?m) and interval quantifiers mean, classes inside classes and &&, and the characters that PCRE2's
 * Unicode data is too old to know. What cannot be rewritten is a problem that is named. Knows text only, no PCRE2.
 */
#include "bpe.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 100
#define SPACES    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NOT_SPACES                                                                                                                                   \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}"                               \
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"

/* Text being written. */
typedef struct {
    char *s;
    size_t n, capacity;
} text;

typedef struct {
    const char *s;
    size_t n, i;
    text out;
    const char *problem; /* first error */
    size_t problem_at;
    int no_memory;
} translation;

static void put_n(translation *t, text *o, const char *s, size_t n)
{
    if (!apus_bpe_grow(&o->s, &o->capacity, o->n + n + 1, 1)) {
        t->no_memory = 1;
        return;
    }
    if (n > 0) /* of an empty text s is NULL */
        memcpy(o->s + o->n, s, n);
    o->n += n;
    o->s[o->n] = '\0';
}

static void put(translation *t, text *o, const char *s)
{
    put_n(t, o, s, strlen(s));
}

static void put_code(translation *t, text *o, uint32_t c)
{
    char b[16];
    snprintf(b, sizeof b, "\\x{%X}", (unsigned)c);
    put(t, o, b);
}

static void put_range(translation *t, text *o, uint32_t first, uint32_t last)
{
    put_code(t, o, first);
    if (last > first) {
        put(t, o, "-");
        put_code(t, o, last);
    }
}

static void put_table(translation *t, text *o, const apus_bpe_range *table, size_t n)
{
    for (size_t i = 0; i < n; i++)
        put_range(t, o, table[i].first, table[i].last);
}

static int fail(translation *t, const char *problem)
{
    if (t->problem == NULL) {
        t->problem = problem;
        t->problem_at = t->i;
    }
    return 0;
}

static int peek(const translation *t, char c)
{
    return t->i < t->n && t->s[t->i] == c;
}

static int take(translation *t, const char *s)
{
    size_t n = strlen(s);
    if (t->n - t->i < n || memcmp(t->s + t->i, s, n) != 0)
        return 0;
    t->i += n;
    return 1;
}

/* One character of a set, as PCRE2 class content (no brackets). kind: s d w h; upper-case ones are their complement and
 * only S has content of its own. */
static void word_items(translation *t, text *o)
{
    put(t, o, "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}");
    put_table(t, o, apus_bpe_newer_word, apus_bpe_newer_word_n);
}

/* Characters newer than PCRE2's data whose category begins with `prefix`. */
static void newer_items(translation *t, text *o, const char *prefix)
{
    for (size_t i = 0; i < apus_bpe_newer_n; i++) {
        if (strncmp(apus_bpe_newer[i].category, prefix, strlen(prefix)) == 0)
            put_range(t, o, apus_bpe_newer[i].first, apus_bpe_newer[i].last);
    }
}

/* \p{name} as class content; *negative when what was written is the complement. */
static int property_items(translation *t, text *o, const char *name, int *negative)
{
    static const char *const categories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P",  "Pc", "Pd",
                                             "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};
    static const char *const long_names[][2] = {{"letter", "L"},
                                                {"uppercaseletter", "Lu"},
                                                {"lowercaseletter", "Ll"},
                                                {"titlecaseletter", "Lt"},
                                                {"modifierletter", "Lm"},
                                                {"otherletter", "Lo"},
                                                {"mark", "M"},
                                                {"nonspacingmark", "Mn"},
                                                {"spacingmark", "Mc"},
                                                {"enclosingmark", "Me"},
                                                {"number", "N"},
                                                {"decimalnumber", "Nd"},
                                                {"letternumber", "Nl"},
                                                {"othernumber", "No"},
                                                {"punctuation", "P"},
                                                {"connectorpunctuation", "Pc"},
                                                {"dashpunctuation", "Pd"},
                                                {"symbol", "S"},
                                                {"mathsymbol", "Sm"},
                                                {"currencysymbol", "Sc"},
                                                {"modifiersymbol", "Sk"},
                                                {"othersymbol", "So"},
                                                {"separator", "Z"},
                                                {"spaceseparator", "Zs"},
                                                {"control", "Cc"},
                                                {"format", "Cf"},
                                                {"digit", "Nd"}};
    static const char *const scripts[] = {"Hiragana",  "Katakana",  "Latin",    "Cyrillic", "Greek",   "Hangul",     "Arabic",   "Hebrew",
                                          "Thai",      "Bopomofo",  "Armenian", "Georgian", "Bengali", "Devanagari", "Tamil",    "Telugu",
                                          "Khmer",     "Lao",       "Tibetan",  "Ethiopic", "Myanmar", "Gujarati",   "Gurmukhi", "Kannada",
                                          "Malayalam", "Mongolian", "Sinhala",  "Yi",       "Common"};
    char key[40];
    size_t n = 0;
    for (const char *p = name; *p != '\0' && n < sizeof key - 1; p++) {
        if (*p == '^' && p == name)
            *negative ^= 1;
        else if (*p != ' ' && *p != '_' && *p != '-')
            key[n++] = (char)tolower((unsigned char)*p);
    }
    key[n] = '\0';
    const char *category = NULL;
    for (size_t i = 0; i < sizeof categories / sizeof *categories; i++) {
        if (strcasecmp(categories[i], key) == 0)
            category = categories[i];
    }
    for (size_t i = 0; i < sizeof long_names / sizeof *long_names; i++) {
        if (strcmp(long_names[i][0], key) == 0)
            category = long_names[i][1];
    }
    if (category != NULL) {
        put(t, o, "\\p{");
        put(t, o, category);
        put(t, o, "}");
        newer_items(t, o, category);
        return 1;
    }
    if (strcmp(key, "c") == 0 || strcmp(key, "other") == 0) { /* what is none of the six others */
        *negative ^= 1;
        for (const char *p = "LMNPSZ"; *p != '\0'; p++) {
            const char one[2] = {*p, '\0'};
            property_items(t, o, one, negative);
        }
        return 1;
    }
    if (strcmp(key, "han") == 0) {
        put(t, o, "\\p{sc:Han}");
        put_table(t, o, apus_bpe_newer_han, apus_bpe_newer_han_n);
        return 1;
    }
    if (strcmp(key, "space") == 0 || strcmp(key, "whitespace") == 0) {
        put(t, o, SPACES);
        return 1;
    }
    if (strcmp(key, "word") == 0) {
        word_items(t, o);
        return 1;
    }
    if (strcmp(key, "punct") == 0)
        return property_items(t, o, "P", negative) && property_items(t, o, "S", negative);
    if (strcmp(key, "alpha") == 0 || strcmp(key, "alphabetic") == 0 || strcmp(key, "alnum") == 0) {
        put(t, o, "\\p{Alphabetic}");
        newer_items(t, o, "L");
        return strcmp(key, "alnum") != 0 || property_items(t, o, "Nd", negative);
    }
    if (strcmp(key, "upper") == 0 || strcmp(key, "lower") == 0) {
        put(t, o, key[0] == 'u' ? "\\p{Uppercase}" : "\\p{Lowercase}");
        newer_items(t, o, key[0] == 'u' ? "Lu" : "Ll");
        return 1;
    }
    if (strcmp(key, "xdigit") == 0) {
        put(t, o, "0-9A-Fa-f");
        return 1;
    }
    if (strcmp(key, "any") == 0) {
        put(t, o, "\\x{0}-\\x{10FFFF}");
        return 1;
    }
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        if (strcasecmp(scripts[i], key) == 0) {
            put(t, o, "\\p{sc:");
            put(t, o, scripts[i]);
            put(t, o, "}");
            return 1;
        }
    }
    return fail(t, "a property in \\p{…} that is not supported");
}

/* After a backslash: a set such as \s or \p{L}? Then its class content goes to o. 1 yes, 0 no (nothing taken), -1 error. */
static int set_escape(translation *t, text *o, int *negative)
{
    char c = t->s[t->i];
    *negative = 0;
    switch (c) {
    case 's':
        put(t, o, SPACES);
        break;
    case 'S':
        put(t, o, NOT_SPACES);
        break;
    case 'd':
    case 'D':
        if (!property_items(t, o, "Nd", negative))
            return -1;
        *negative = c == 'D';
        break;
    case 'w':
    case 'W':
        word_items(t, o);
        *negative = c == 'W';
        break;
    case 'h':
    case 'H':
        put(t, o, "0-9A-Fa-f");
        *negative = c == 'H';
        break;
    case 'p':
    case 'P': {
        char name[40];
        const char *close = t->i + 1 < t->n && t->s[t->i + 1] == '{' ? memchr(t->s + t->i, '}', t->n - t->i) : NULL;
        size_t begin = t->i + 2;
        if (close == NULL || (size_t)(close - t->s) - begin >= sizeof name) {
            fail(t, "\\p without a property in braces");
            return -1;
        }
        size_t n = (size_t)(close - t->s) - begin;
        memcpy(name, t->s + begin, n);
        name[n] = '\0';
        *negative = c == 'P';
        if (strlen(name) != n || !property_items(t, o, name, negative))
            return -1;
        t->i = (size_t)(close - t->s);
        break;
    }
    default:
        return 0;
    }
    t->i++;
    return 1;
}

/* After a backslash: an escape that is one character. 1, or 0 with nothing taken. */
static int char_escape(translation *t, uint32_t *c)
{
    static const char names[] = "ntrfvae";
    static const char values[] = {'\n', '\t', '\r', '\f', '\v', '\a', 27};
    char e = t->s[t->i];
    const char *p = memchr(names, e, sizeof names - 1);
    if (p != NULL) {
        *c = (unsigned char)values[p - names];
        t->i++;
        return 1;
    }
    if (e == 'x' || e == 'u') {
        size_t i = t->i + 1, most = e == 'u' ? 4 : 2, digits = 0;
        int braces = e == 'x' && i < t->n && t->s[i] == '{';
        if (braces) {
            i++;
            most = 8;
        }
        uint32_t value = 0;
        for (; digits < most && i < t->n && isxdigit((unsigned char)t->s[i]); i++, digits++)
            value = value << 4 | (uint32_t)(isdigit((unsigned char)t->s[i]) ? t->s[i] - '0' : (t->s[i] | 32) - 'a' + 10);
        if (braces && (i >= t->n || t->s[i++] != '}'))
            return fail(t, "\\x{…} without its end");
        if (digits == 0 || (e == 'u' && digits != 4) || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
            return fail(t, "a character escape that names no character");
        *c = value;
        t->i = i;
        return 1;
    }
    if (e == '0') {
        uint32_t value = 0;
        size_t digits = 0;
        for (; digits < 3 && t->i < t->n && t->s[t->i] >= '0' && t->s[t->i] <= '7'; digits++, t->i++)
            value = value << 3 | (uint32_t)(t->s[t->i] - '0');
        *c = value;
        return 1;
    }
    if (!isalnum((unsigned char)e)) {
        size_t length;
        *c = apus_bpe_char(t->s + t->i, &length);
        t->i += length;
        return 1;
    }
    return 0;
}

/* A class, from after its '[' to after its ']': an expression for one character goes to o. */
static int class(translation *t, text *o, int depth);

/* The terms of a class up to && or ]: one expression. */
static int class_terms(translation *t, text *o, int depth, int first)
{
    text items = {0}, others = {0};
    int ok = 1;
    while (ok) {
        if (t->i >= t->n) {
            ok = fail(t, "a class without its ]");
            break;
        }
        if (peek(t, ']') && !first)
            break;
        if (t->n - t->i >= 2 && memcmp(t->s + t->i, "&&", 2) == 0)
            break;
        first = 0;
        if (take(t, "[:")) {
            const char *close = memchr(t->s + t->i, ':', t->n - t->i);
            char name[20] = "";
            size_t n = close != NULL ? (size_t)(close - t->s) - t->i : sizeof name;
            if (n >= sizeof name || close + 1 >= t->s + t->n || close[1] != ']') {
                ok = fail(t, "a class such as [:alpha:] without its end");
                break;
            }
            memcpy(name, t->s + t->i, n);
            int negative = 0;
            text one = {0};
            ok = property_items(t, &one, name, &negative);
            if (ok && negative) {
                put(t, &others, "|[^");
                put_n(t, &others, one.s, one.n);
                put(t, &others, "]");
            } else if (ok) {
                put_n(t, &items, one.s, one.n);
            }
            free(one.s);
            t->i += n + 2;
            continue;
        }
        if (take(t, "[")) {
            put(t, &others, "|");
            ok = class(t, &others, depth + 1);
            continue;
        }
        uint32_t c;
        if (take(t, "\\")) {
            if (t->i >= t->n) {
                ok = fail(t, "a pattern that ends in a backslash");
                break;
            }
            int negative;
            text one = {0};
            int set = set_escape(t, &one, &negative);
            if (set > 0 && negative) {
                put(t, &others, "|[^");
                put_n(t, &others, one.s, one.n);
                put(t, &others, "]");
            } else if (set > 0) {
                put_n(t, &items, one.s, one.n);
            }
            free(one.s);
            if (set < 0)
                ok = 0;
            if (set != 0)
                continue;
            if (take(t, "b")) {
                c = 8;
            } else if (!char_escape(t, &c)) {
                ok = fail(t, "an escape in a class that is not supported");
                break;
            }
        } else {
            size_t length;
            c = apus_bpe_char(t->s + t->i, &length);
            t->i += length;
        }
        uint32_t last = c;
        if (t->n - t->i >= 2 && t->s[t->i] == '-' && t->s[t->i + 1] != ']' && t->s[t->i + 1] != '[') {
            size_t back = t->i++;
            if (take(t, "\\")) {
                if (t->i >= t->n || strchr("sSdDwWhHpP", t->s[t->i]) != NULL || !char_escape(t, &last)) {
                    t->i = back; /* a plain '-' before a set */
                    last = c;
                }
            } else {
                size_t length;
                last = apus_bpe_char(t->s + t->i, &length);
                t->i += length;
            }
            if (last < c)
                ok = fail(t, "a range that runs backwards");
        }
        put_range(t, &items, c, last);
    }
    if (ok) {
        if (others.n == 0) {
            put(t, o, items.n > 0 ? "[" : "(?!)");
            if (items.n > 0) {
                put_n(t, o, items.s, items.n);
                put(t, o, "]");
            }
        } else {
            put(t, o, "(?:");
            if (items.n > 0) {
                put(t, o, "[");
                put_n(t, o, items.s, items.n);
                put(t, o, "]");
            }
            put_n(t, o, others.s + (items.n > 0 ? 0 : 1), others.n - (items.n > 0 ? 0 : 1));
            put(t, o, ")");
        }
    }
    free(items.s);
    free(others.s);
    return ok;
}

static int class(translation *t, text *o, int depth)
{
    if (depth > DEPTH_MAX)
        return fail(t, "classes that are nested too deep");
    int negative = take(t, "^");
    text all = {0}, one = {0};
    int ok = class_terms(t, &all, depth, 1);
    while (ok && take(t, "&&")) {
        ok = class_terms(t, &one, depth, 0);
        text both = {0};
        put(t, &both, "(?:(?=");
        put_n(t, &both, all.s, all.n);
        put(t, &both, ")");
        put_n(t, &both, one.s, one.n);
        put(t, &both, ")");
        free(all.s);
        all = both;
        one.n = 0;
    }
    if (ok && !take(t, "]"))
        ok = fail(t, "a class without its ]");
    if (ok && negative && all.n > 0 && all.s[0] == '[') {
        put(t, o, "[^");
        put_n(t, o, all.s + 1, all.n - 1);
    } else if (ok && negative) {
        put(t, o, "(?:(?!");
        put_n(t, o, all.s, all.n);
        put(t, o, ")(?s:.))");
    } else if (ok) {
        put_n(t, o, all.s, all.n);
    }
    free(all.s);
    free(one.s);
    return ok;
}

/* \b and \B with Oniguruma's word characters. */
static void boundary(translation *t, int negative)
{
    text w = {0};
    word_items(t, &w);
    static const char *const both[2][5] = {{"(?:(?<=[", "])(?![", "])|(?<![", "])(?=[", "]))"}, {"(?:(?<=[", "])(?=[", "])|(?<![", "])(?![", "]))"}};
    for (int i = 0; i < 5; i++) {
        put(t, &t->out, both[negative][i]);
        if (i < 4)
            put_n(t, &t->out, w.s, w.n);
    }
    free(w.s);
}

/* "(?:" before position `at` of the output and ")" at its end. */
static void wrap(translation *t, size_t at)
{
    put(t, &t->out, "(?:)");
    if (t->no_memory)
        return;
    size_t n = t->out.n - 4 - at;
    memmove(t->out.s + at + 3, t->out.s + at, n);
    memcpy(t->out.s + at, "(?:", 3);
    t->out.s[at + 3 + n] = ')';
}

/* {n}, {n,}, {,m}, {n,m} here? Then written, as PCRE2 spells it. */
static int interval(translation *t)
{
    size_t i = t->i + 1, low = 0, high = 0;
    unsigned long a = 0, b = 0;
    for (; i < t->n && isdigit((unsigned char)t->s[i]) && low < 6; i++, low++)
        a = a * 10 + (unsigned long)(t->s[i] - '0');
    int comma = i < t->n && t->s[i] == ',';
    if (comma) {
        for (i++; i < t->n && isdigit((unsigned char)t->s[i]) && high < 6; i++, high++)
            b = b * 10 + (unsigned long)(t->s[i] - '0');
    }
    if (i >= t->n || t->s[i] != '}' || (low == 0 && high == 0))
        return 0;
    char spelled[48];
    if (!comma)
        snprintf(spelled, sizeof spelled, "{%lu}", a);
    else if (high == 0)
        snprintf(spelled, sizeof spelled, "{%lu,}", a);
    else
        snprintf(spelled, sizeof spelled, "{%lu,%lu}", a, b);
    put(t, &t->out, spelled);
    t->i = i + 1;
    return 1;
}

/* After an atom whose output begins at `atom`: its quantifiers. */
static void quantifiers(translation *t, size_t atom)
{
    for (int again = 0; t->i < t->n; again++) {
        char c = t->s[t->i];
        if (c != '*' && c != '+' && c != '?' && c != '{')
            return;
        size_t before = t->out.n;
        if (again > 0) {
            if (c == '{') { /* is it one at all? */
                size_t i = t->i;
                int is = interval(t);
                t->i = i;
                t->out.n = before;
                if (!is)
                    return;
            }
            wrap(t, atom);
        }
        if (c == '{') {
            int exact = memchr(t->s + t->i, ',', strcspn(t->s + t->i, "}")) == NULL;
            if (!interval(t))
                return;
            /* Ruby: {n,m}? is lazy, {n}? and {n,m}+ are quantifiers of a quantifier. */
            if (!exact && take(t, "?"))
                put(t, &t->out, "?");
            continue;
        }
        t->i++;
        put_n(t, &t->out, &c, 1);
        if (peek(t, '?') || peek(t, '+'))
            put_n(t, &t->out, t->s + t->i++, 1);
    }
}

/* After "(?": writes the group's opening. 1: a group is open; 2: isolated options, open until the group around ends;
 * 3: nothing is open (a comment); 0: error. */
static int group_opening(translation *t)
{
    static const char *const same[] = {":", "=", "!", ">", "<=", "<!"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        if (take(t, same[i])) {
            put(t, &t->out, "(?");
            put(t, &t->out, same[i]);
            return 1;
        }
    }
    if (take(t, "#")) {
        while (t->i < t->n && t->s[t->i] != ')')
            t->i++;
        return take(t, ")") ? 3 : fail(t, "a comment without its )");
    }
    if (take(t, "<")) {
        put(t, &t->out, "(?<");
        while (t->i < t->n && t->s[t->i] != '>')
            put_n(t, &t->out, t->s + t->i++, 1);
        put(t, &t->out, ">");
        return take(t, ">") ? 1 : fail(t, "a named group without its >");
    }
    text options = {0};
    int ok = 1;
    while (t->i < t->n && t->s[t->i] != ':' && t->s[t->i] != ')') {
        char c = t->s[t->i++];
        if (c == 'i' || c == '-')
            put_n(t, &options, &c, 1);
        else if (c == 'm') /* Ruby's m is the others' s */
            put(t, &options, "s");
        else
            ok = fail(t, "a group (?…) that is not supported");
    }
    if (ok && t->i >= t->n)
        ok = fail(t, "a group without its )");
    if (ok) {
        put(t, &t->out, "(?");
        put_n(t, &t->out, options.s != NULL ? options.s : "", options.n);
        put(t, &t->out, ":");
    }
    free(options.s);
    return !ok ? 0 : t->s[t->i++] == ':' ? 1 : 2;
}

static int translate(translation *t)
{
    struct {
        size_t begin;
        int extra; /* option groups that end with this one */
    } open[DEPTH_MAX + 1] = {{0, 0}};
    size_t depth = 0;
    while (t->i < t->n) {
        size_t atom = t->out.n;
        char c = t->s[t->i];
        if (c == '|' || c == '^' || c == '$') {
            put_n(t, &t->out, &c, 1);
            t->i++;
            if (c == '|')
                continue;
        } else if (c == '(') {
            t->i++;
            int kind = 1;
            if (take(t, "?"))
                kind = group_opening(t);
            else
                put(t, &t->out, "(");
            if (kind == 0)
                return 0;
            if (kind == 2)
                open[depth].extra++;
            if (kind == 1) {
                if (depth == DEPTH_MAX)
                    return fail(t, "groups that are nested too deep");
                depth++;
                open[depth].begin = atom;
                open[depth].extra = 0;
            }
            continue;
        } else if (c == ')') {
            if (depth == 0)
                return fail(t, "a ) without its (");
            for (; open[depth].extra > 0; open[depth].extra--)
                put(t, &t->out, ")");
            put(t, &t->out, ")");
            t->i++;
            atom = open[depth].begin;
            depth--;
        } else if (c == '[') {
            t->i++;
            if (!class(t, &t->out, 0))
                return 0;
        } else if (c == '\\') {
            t->i++;
            if (t->i >= t->n)
                return fail(t, "a pattern that ends in a backslash");
            int negative;
            text one = {0};
            int set = set_escape(t, &one, &negative);
            if (set > 0) {
                put(t, &t->out, negative ? "[^" : "[");
                put_n(t, &t->out, one.s, one.n);
                put(t, &t->out, "]");
            }
            free(one.s);
            if (set < 0)
                return 0;
            uint32_t code;
            if (set > 0) {
                ;
            } else if (strchr("bB", t->s[t->i]) != NULL && t->s[t->i] != '\0') {
                boundary(t, t->s[t->i++] == 'B');
            } else if (t->s[t->i] != '\0' && strchr("AzZGRXK123456789kg", t->s[t->i]) != NULL) {
                char e = t->s[t->i++];
                put(t, &t->out, "\\");
                put_n(t, &t->out, &e, 1);
                if (e == 'k' || e == 'g') {
                    do {
                        if (t->i >= t->n)
                            return fail(t, "\\k or \\g without <name>");
                        put_n(t, &t->out, t->s + t->i, 1);
                    } while (t->s[t->i++] != '>');
                }
            } else if (char_escape(t, &code)) {
                put_code(t, &t->out, code);
            } else {
                return fail(t, "an escape that is not supported");
            }
        } else if (c == '{' || c == '}' || c == ']') {
            put_code(t, &t->out, (unsigned char)c);
            t->i++;
        } else {
            if (c == '*' || c == '+' || c == '?')
                return fail(t, "a quantifier with nothing before it");
            size_t length;
            apus_bpe_char(t->s + t->i, &length);
            put_n(t, &t->out, t->s + t->i, length);
            t->i += length;
        }
        quantifiers(t, atom);
        if (t->no_memory)
            return 0;
    }
    if (depth > 0)
        return fail(t, "a group without its )");
    for (; open[0].extra > 0; open[0].extra--)
        put(t, &t->out, ")");
    put(t, &t->out, "");
    return t->problem == NULL && !t->no_memory;
}

int apus_bpe_translate(const char *pattern, size_t n, char **out, size_t *n_out, const char **problem, size_t *at)
{
    translation t = {.s = pattern, .n = n};
    int ok = translate(&t);
    *problem = t.no_memory ? NULL : t.problem;
    *at = t.problem_at;
    if (!ok) {
        free(t.out.s);
        return 0;
    }
    *out = t.out.s;
    *n_out = t.out.n;
    return 1;
}
