/*
 * Characters as Hugging Face's tokenizers see them: UTF-8 steps and the classes its stages ask for.
 * Knows no tokenizer.
 */
#ifndef APUS_BPE_UNICODE_H
#define APUS_BPE_UNICODE_H

#include <stddef.h>
#include <stdint.h>

typedef struct apus_bpe_range {
    uint32_t first, last; /* inclusive */
} apus_bpe_range;

typedef struct apus_bpe_category {
    uint32_t first, last;
    const char *category; /* "Lu", … */
} apus_bpe_category;

/* tables.c; ranges ascend. */
extern const apus_bpe_category apus_bpe_newer[];
extern const apus_bpe_range apus_bpe_newer_han[], apus_bpe_newer_word[], apus_bpe_word[], apus_bpe_numeric[], apus_bpe_punctuation[], apus_bpe_mark[],
    apus_bpe_after_nine[], apus_bpe_newer_lower[];
extern const size_t apus_bpe_newer_n, apus_bpe_newer_han_n, apus_bpe_newer_word_n, apus_bpe_word_n, apus_bpe_numeric_n, apus_bpe_punctuation_n,
    apus_bpe_mark_n, apus_bpe_after_nine_n, apus_bpe_newer_lower_n;

/* Bytes of the character (or, with *valid 0, of the maximal ill-formed subpart) that s[0..n) opens with; n > 0. */
size_t apus_bpe_step(const unsigned char *s, size_t n, int *valid);
/* The character at s, which is well-formed; *length its bytes. */
uint32_t apus_bpe_char(const char *s, size_t *length);
/* Writes c, returns its bytes (1 … 4). */
size_t apus_bpe_put(uint32_t c, char out[4]);
/* Length of the longest well-formed prefix. */
size_t apus_bpe_valid_prefix(const char *s, size_t n);

int apus_bpe_in(const apus_bpe_range *table, size_t n, uint32_t c);
int apus_bpe_is_space(uint32_t c); /* White_Space */
int apus_bpe_is_word(uint32_t c);
int apus_bpe_is_numeric(uint32_t c);
int apus_bpe_is_punctuation(uint32_t c);
int apus_bpe_is_mark(uint32_t c);
uint32_t apus_bpe_lower(uint32_t c); /* U+0130 is the caller's: it has two characters */

/* GPT-2's bytes as printable characters (openai/gpt-2, encoder.py): U+0021 … U+0143. */
uint32_t apus_bpe_byte_char(unsigned char byte);
int apus_bpe_char_byte(uint32_t c); /* -1 when none */

#endif
