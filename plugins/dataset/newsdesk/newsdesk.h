/*
 * plugins/dataset/newsdesk: company facts made from a seed, the neutral brief that follows from them, and flawed briefs that carry a
 * wrong fact or a loaded word. facts.c: the facts, and the texts that tell them; judge.c: which facts a text tells;
 * tokenizer.c: the texts' vocabulary; newsdesk.c: the dataset. Nothing here knows what a model is.
 */
#ifndef APUS_NEWSDESK_H
#define APUS_NEWSDESK_H

#include <apus/data.h>
#include <apus/plugin.h>

/* What a text has places for. A slot's value is an index of its words, or a number. */
enum newsdesk_slot {
    SLOT_NAME,     /* its first word * the number of second words + its second: "Alder Glass" */
    SLOT_MEASURE,  /* "revenue" */
    SLOT_QUARTER,  /* "fourth" */
    SLOT_YEAR,     /* 2020 */
    SLOT_VALUE,    /* tenths: 4127 is "412.7" */
    SLOT_PREVIOUS, /* tenths */
    SLOT_CHANGE,   /* tenths of a percent, without sign */
    SLOT_UNIT,     /* "million" */
    SLOT_CURRENCY, /* "euros" */
    SLOT_WAY,      /* "up" */
    SLOT_CAUSE,    /* "higher volumes" */
    SLOT_OUTLOOK,  /* "raised" */
    N_SLOTS
};

typedef struct facts {
    int value[N_SLOTS];
} facts;

enum newsdesk_flaw {
    FLAW_NONE,
    FLAW_NAME,
    FLAW_VALUE,
    FLAW_PREVIOUS,
    FLAW_CHANGE,
    FLAW_DIRECTION,
    FLAW_PERIOD,
    FLAW_CURRENCY,
    FLAW_UNIT,
    FLAW_LOADED, /* "stunning revenue" */
    N_FLAWS
};

enum { N_WORDINGS = 4, MAX_TEXT = 1024 }; /* MAX_TEXT: bytes that any text here fits in, its 0 included */

/* A text with the facts in their slots: literal text and "{slot}". */
extern const char *const newsdesk_sheet;
extern const char *const newsdesk_wordings[N_WORDINGS];

/* Facts number i of a seed. unseen: companies whose name no other row has, whatever its seed. */
void newsdesk_facts(uint64_t seed, uint64_t i, int unseen, facts *f);
/* One wrong fact instead of the right one (FLAW_NONE, FLAW_LOADED: none), drawn from (seed, i). */
void newsdesk_spoil(facts *f, int flaw, uint64_t seed, uint64_t i);
/* The loaded word of (seed, i). */
const char *newsdesk_loaded_word(uint64_t seed, uint64_t i);
/* A slot's value in words, and "412.7". text: [MAX_TEXT]. */
void newsdesk_slot_text(int slot, int value, char *text);
/* The template with its slots filled; loaded: a word before the measure, or NULL. text: [MAX_TEXT]. */
void newsdesk_write(const char *template, const facts *f, const char *loaded, char *text);
/* The slot that a template names at "{…}", and what follows it. */
int newsdesk_slot_at(const char *template, const char **rest);
/* Bytes at the front of text that are a value of this slot, right or wrong; 0: none. */
size_t newsdesk_slot_length(int slot, const char *text);
/* Whether text begins with a name that is kept for unseen companies. */
int newsdesk_begins_unseen(const char *text);
/* Bytes at the front of text that are a loaded word; 0: none. */
size_t newsdesk_loaded_length(const char *text);
int newsdesk_has_loaded_word(const char *text);
/* Every word that a slot can hold, and every loaded one, through fn. */
void newsdesk_slot_words(void (*fn)(void *context, const char *word), void *context);

/*
 * How a text stands to the facts: name -> 1 or 0. "form": it is one of the wordings to its last letter; "name", "measure", "period",
 * "direction", "numbers", "currency", "unit", "cause", "outlook": each such slot of it is right (a slot it never reaches is not);
 * "neutral": no loaded word anywhere; "faithful": all of these. "wrong": the names of those that are 0, in a string. owner: caller.
 */
apus_node *newsdesk_judge(const apus_node_api *node, const facts *f, const char *text);

/* The pieces that these texts are made of, each once: a word or digit with the space before it, a digit, a mark; a word that begins a line. */
enum { MAX_PIECES = 512 };
typedef struct pieces {
    char text[MAX_PIECES][24];
    int n;
} pieces;

void newsdesk_pieces(pieces *p);
/* tokenizer.json's shape, with tokenizer_config and chat_template beside it. owner: caller; NULL: out of memory. */
apus_node *newsdesk_tokenizer(const apus_node_api *node);

#endif
