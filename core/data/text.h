/*
 * core/data/text: a model's way with text: its tokenizer and its chat template, as one thing used by training, evaluation and
 * generation alike, so that they cannot disagree.
 */
#ifndef APUS_CORE_TEXT_H
#define APUS_CORE_TEXT_H

#include <apus/model.h>
#include <apus/tokenizer.h>

#include "template/template.h"

typedef struct apus_text apus_text;

/* card: tokenizer (or NULL: none), tokenizer_config, generation_config, config, chat_template. The tokenizer's node, which is large,
 * must outlive the text; the rest is copied where kept. template_file: overrides the card's template; NULL: none. now: seconds since the epoch for
 * strftime_now. */
apus_text *apus_text_open(const apus_model_card *card, const char *template_file, int64_t now, apus_error *err);
void apus_text_free(apus_text *t);

int apus_text_has_tokenizer(const apus_text *t);
int apus_text_has_template(const apus_text *t);
const char *apus_text_template(const apus_text *t);       /* NULL: none */
const apus_node *apus_text_tokenizer(const apus_text *t); /* tokenizer.json's shape, for exports */
const apus_node *apus_text_tokenizer_config(const apus_text *t);
int32_t apus_text_vocab(const apus_text *t);
int32_t apus_text_bos(const apus_text *t); /* -1: none */
int32_t apus_text_eos(const apus_text *t); /* -1: none: the end-of-text token */
/* Stop ids: union of config's, generation config's and tokenizer_config's eos and the template's end marker (the first
 * special token the template writes after an assistant's content). */
size_t apus_text_stops(const apus_text *t, const int32_t **ids);
void apus_text_key(const apus_text *t, char hex[65]); /* sha256 of tokenizer and template: part of cache keys */

/* flags: APUS_ENCODE_*. Appends. [any] */
apus_status apus_text_encode(const apus_text *t, const char *text, size_t length, int flags, apus_tokens *out, apus_error *err);
/* The same tokens, on up to `threads` threads (0: as many as the cores this process may use) where the text is long. [any] */
apus_status apus_text_encode_parallel(const apus_text *t, const char *text, size_t length, int flags, int threads, apus_tokens *out, apus_error *err);
int apus_text_threads(int threads); /* threads, or for 0 the cores this process may use */
apus_status apus_text_decode(const apus_text *t, const int32_t *ids, size_t n, int skip_special, char **text, size_t *length, apus_error *err);
const char *apus_text_token(const apus_text *t, int32_t id, size_t *length);
int apus_text_is_special(const apus_text *t, int32_t id);

/* Render messages. variables: extra template variables (enable_thinking…) or NULL. Errors when there is no template. */
apus_status apus_text_render(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables,
                             int add_generation_prompt, apus_template_output *out, apus_error *err);

/* A conversation as ids, and which of them are trained: from the end of the generation prompt to all that the template writes
 * for an assistant turn, end marker and trailing newline included; train_last: only the last turn; a message with
 * `train: false` is not trained. Special-token strings inside content stay ordinary text unless parse_special; never a
 * second BOS. *trained (owner: caller, host->free) has out->n bytes; NULL when not wanted. */
apus_status apus_text_conversation(const apus_text *t, const apus_node *messages, const apus_node *tools, const apus_node *variables,
                                   int add_generation_prompt, int train_last, int parse_special, apus_tokens *out, uint8_t **trained,
                                   apus_error *err);

#endif
