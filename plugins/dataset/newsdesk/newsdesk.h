/*
 * plugins/dataset/newsdesk: company facts made from a seed, the neutral brief that follows from them, and flawed briefs that carry a
 * wrong fact or a loaded word. facts.c: the facts and the sentences; tokenizer.c: their vocabulary; newsdesk.c: the dataset.
 */
#ifndef APUS_NEWSDESK_H
#define APUS_NEWSDESK_H

#include <apus/data.h>
#include <apus/plugin.h>

enum { N_PATTERNS = 4 };

typedef struct facts {
    int first, second;          /* words of the company's name */
    int measure, quarter, year, currency, unit, cause, outlook;
    int value, previous, change;/* in tenths: 412.7 -> 4127; change in tenths of a percent, without sign */
    int up;
} facts;

enum { FLAW_NONE, FLAW_VALUE, FLAW_PREVIOUS, FLAW_CHANGE, FLAW_DIRECTION, FLAW_PERIOD, FLAW_CURRENCY, FLAW_LOADED, N_FLAWS };

/* Facts number i of a seed. unseen: companies whose name is in no other row. */
void newsdesk_facts(uint64_t seed, uint64_t i, int unseen, facts *f);
/* "company: …\nperiod: …" */
void newsdesk_sheet(const facts *f, char *text, size_t capacity);
/* The brief in one of N_PATTERNS wordings, with one flaw (its details drawn from (seed, i)). */
void newsdesk_brief(const facts *f, int pattern, int flaw, uint64_t seed, uint64_t i, char *text, size_t capacity);
int newsdesk_has_loaded_word(const char *text);
/* Every word that any of these texts can have, through fn. */
void newsdesk_words(void (*fn)(void *context, const char *word), void *context);
/* tokenizer.json's shape: whole words, single digits; with tokenizer_config and chat_template beside it. owner: caller. */
apus_node *newsdesk_tokenizer(const apus_node_api *node);

#endif
