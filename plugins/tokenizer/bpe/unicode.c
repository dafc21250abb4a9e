/* Characters: UTF-8 and classes. Owns no data of its own but GPT-2's byte alphabet; the ranges are in tables.c. */
#include "unicode.h"

#include <string.h>
#include <utf8proc.h>

size_t apus_bpe_step(const unsigned char *s, size_t n, int *valid)
{
    unsigned char c = s[0];
    unsigned char low = 0x80, high = 0xBF;
    size_t need;
    *valid = 0;
    if (c < 0x80) {
        *valid = 1;
        return 1;
    }
    if (c >= 0xC2 && c <= 0xDF) {
        need = 1;
    } else if (c >= 0xE0 && c <= 0xEF) {
        need = 2;
        low = c == 0xE0 ? 0xA0 : 0x80;
        high = c == 0xED ? 0x9F : 0xBF;
    } else if (c >= 0xF0 && c <= 0xF4) {
        need = 3;
        low = c == 0xF0 ? 0x90 : 0x80;
        high = c == 0xF4 ? 0x8F : 0xBF;
    } else {
        return 1;
    }
    for (size_t i = 1; i <= need; i++) {
        if (i >= n || s[i] < low || s[i] > high)
            return i;
        low = 0x80;
        high = 0xBF;
    }
    *valid = 1;
    return need + 1;
}

uint32_t apus_bpe_char(const char *text, size_t *length)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *length = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *length = 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0) {
        *length = 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *length = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

size_t apus_bpe_put(uint32_t c, char out[4])
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)out);
}

size_t apus_bpe_valid_prefix(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        while (i + sizeof word <= n) {
            memcpy(&word, s + i, sizeof word);
            if (word & 0x8080808080808080u)
                break;
            i += sizeof word;
        }
        if (i == n)
            break;
        int valid;
        size_t step = apus_bpe_step(s + i, n - i, &valid);
        if (!valid)
            break;
        i += step;
    }
    return i;
}

int apus_bpe_in(const apus_bpe_range *table, size_t n, uint32_t c)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c > table[middle].last)
            low = middle + 1;
        else if (c < table[middle].first)
            high = middle;
        else
            return 1;
    }
    return 0;
}

int apus_bpe_is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

int apus_bpe_is_word(uint32_t c)
{
    return apus_bpe_in(apus_bpe_word, apus_bpe_word_n, c);
}

int apus_bpe_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    return apus_bpe_in(apus_bpe_numeric, apus_bpe_numeric_n, c);
}

int apus_bpe_is_punctuation(uint32_t c)
{
    return apus_bpe_in(apus_bpe_punctuation, apus_bpe_punctuation_n, c);
}

int apus_bpe_is_mark(uint32_t c)
{
    return c >= 0x300 && apus_bpe_in(apus_bpe_mark, apus_bpe_mark_n, c);
}

uint32_t apus_bpe_lower(uint32_t c)
{
    if (c < 0x80)
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    /* The "ranges" of this table are pairs: character, its lower case. */
    size_t low = 0, high = apus_bpe_newer_lower_n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (apus_bpe_newer_lower[middle].first < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < apus_bpe_newer_lower_n && apus_bpe_newer_lower[low].first == c)
        return apus_bpe_newer_lower[low].last;
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

uint32_t apus_bpe_byte_char(unsigned char byte)
{
    if (byte >= 0x21 && byte != 0xAD && (byte < 0x7F || byte > 0xA0))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte <= 0xA0)
        return 0x121u + (byte - 0x7Fu);
    return 0x143; /* 0xAD */
}

int apus_bpe_char_byte(uint32_t c)
{
    if (c < 0x100)
        return c >= 0x21 && c != 0xAD && (c < 0x7F || c > 0xA0) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}
