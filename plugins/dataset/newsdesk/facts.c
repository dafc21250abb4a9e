/* plugins/dataset/newsdesk/facts.c: the facts, and the texts that tell them. See newsdesk.h. */
#include <stdio.h>
#include <string.h>

#include <apus/random.h>

#include "newsdesk.h"

/* Every slot has a space before it, in the sheet and in the briefs: what is to be copied is then the same piece in both. */
const char *const newsdesk_sheet = "company: {name}\nperiod: {quarter} quarter {year}\nfigure: {measure} {value} {unit} {currency}\n"
                                   "year before: {previous} {unit} {currency}\nchange: {way} {change} percent\ncause: {cause}\noutlook: {outlook}";

const char *const newsdesk_wordings[N_WORDINGS] = {
    "The company {name} reported {measure} of {value} {unit} {currency} for the {quarter} quarter of {year}, {way} {change} percent from "
    "{previous} {unit} {currency} a year before. It named {cause} and {outlook} its outlook.",
    "The {measure} of {name} was {way} {change} percent to {value} {unit} {currency} in the {quarter} quarter of {year}, after {previous} {unit} "
    "{currency} a year before. The company named {cause} and {outlook} its outlook.",
    "In the {quarter} quarter of {year}, {name} had {measure} of {value} {unit} {currency}. That is {way} {change} percent from {previous} "
    "{unit} {currency} a year before. The reason was {cause}. The company {outlook} its outlook.",
    "Outlook {outlook}: the {measure} of {name} was {value} {unit} {currency} in the {quarter} quarter of {year} and {previous} {unit} "
    "{currency} a year before, {way} {change} percent, on {cause}."};

static const char *const slot_names[N_SLOTS] = {"name",   "measure", "quarter",  "year", "value", "previous",
                                                "change", "unit",    "currency", "way",  "cause", "outlook"};

static const char *const firsts[] = {
    "Alder",  "Amber",  "Arbor",   "Argent", "Aspen",    "Atlas", "Aurora", "Baltic",  "Beacon",  "Birch", "Borea",  "Brook",  "Cedar",   "Cinder",
    "Cobalt", "Copper", "Coral",   "Corvus", "Crest",    "Dawn",  "Delta",  "Ember",   "Fjord",   "Flint", "Forge",  "Garnet", "Glacier", "Granite",
    "Harbor", "Haven",  "Hazel",   "Heron",  "Indigo",   "Ivory", "Jasper", "Juniper", "Kestrel", "Lark",  "Laurel", "Linden", "Lumen",   "Maple",
    "Marble", "Meadow", "Mistral", "Nordic", "Oak",      "Onyx",  "Opal",   "Orchid",  "Osprey",  "Pine",  "Quartz", "Raven",  "River",   "Rowan",
    "Sable",  "Sierra", "Sparrow", "Summit", "Tamarind", "Teal",  "Thorn",  "Tidal",   "Topaz",   "Umber", "Vale",   "Vega",   "Willow",  "Zephyr"};
static const char *const seconds[] = {"Airlines", "Analytics",  "Bank",      "Biotech",       "Brewing",   "Capital",  "Chemicals", "Components",
                                      "Devices",  "Dynamics",   "Energy",    "Foods",         "Freight",   "Gas",      "Glass",     "Health",
                                      "Holdings", "Industries", "Insurance", "Labs",          "Logistics", "Media",    "Metals",    "Mining",
                                      "Mobility", "Motors",     "Networks",  "Optics",        "Paper",     "Partners", "Pharma",    "Plastics",
                                      "Power",    "Rail",       "Robotics",  "Semiconductor", "Shipping",  "Software", "Steel",     "Systems",
                                      "Telecom",  "Textiles",   "Timber",    "Tools",         "Water"};
static const char *const measures[] = {"revenue", "profit", "sales", "turnover", "income", "cash flow"};
static const char *const quarters[] = {"first", "second", "third", "fourth"};
static const char *const currencies[] = {"euros", "dollars", "pounds", "francs", "kroner", "yen"};
static const char *const units[] = {"million", "billion"};
static const char *const ways[] = {"down", "up"};
static const char *const causes[] = {"higher volumes",  "lower costs",   "new contracts",  "weaker demand", "currency effects",
                                     "seasonal demand", "price changes", "plant closures", "new products",  "supply delays"};
static const char *const outlooks[] = {"raised", "confirmed", "lowered", "suspended"};
static const char *const loaded[] = {"stunning",    "disastrous", "shocking", "brilliant", "miserable",
                                     "spectacular", "dismal",     "heroic",   "shameful",  "glorious"};

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Words of the slots that are no name and no number. */
static const struct {
    const char *const *words;
    int n;
} lists[N_SLOTS] = {[SLOT_MEASURE] = {measures, COUNT(measures)},
                    [SLOT_QUARTER] = {quarters, COUNT(quarters)},
                    [SLOT_UNIT] = {units, COUNT(units)},
                    [SLOT_CURRENCY] = {currencies, COUNT(currencies)},
                    [SLOT_WAY] = {ways, COUNT(ways)},
                    [SLOT_CAUSE] = {causes, COUNT(causes)},
                    [SLOT_OUTLOOK] = {outlooks, COUNT(outlooks)}};

/* ---- facts */

static int draw(uint64_t seed, uint64_t i, uint32_t slot, int n)
{
    return (int)apus_random_below(seed, apus_random_purpose("newsdesk"), slot, i, (uint64_t)n);
}

/* One name in ten is kept for companies that no training row has, whatever the seed. */
static int is_kept(int name)
{
    return (name / COUNT(seconds) * 7 + name % COUNT(seconds) * 3) % 10 == 0;
}

static int draw_name(uint64_t seed, uint64_t i, int kept, uint32_t slot)
{
    int name;
    do
        name = draw(seed, i, slot++, COUNT(firsts) * COUNT(seconds));
    while (is_kept(name) != kept);
    return name;
}

void newsdesk_facts(uint64_t seed, uint64_t i, int unseen, facts *f)
{
    const int up = draw(seed, i, 9, 2), previous = 100 + draw(seed, i, 7, 8900), change = 5 + draw(seed, i, 8, 400); /* change: 0.5 to 40.4 percent */
    const int moved = (previous * change + 500) / 1000, difference = moved > 0 ? moved : 1;
    f->value[SLOT_NAME] = draw_name(seed, i, unseen != 0, 64);
    for (int slot = 0; slot < N_SLOTS; slot++)
        if (lists[slot].n > 0)
            f->value[slot] = draw(seed, i, 16 + (uint32_t)slot, lists[slot].n);
    f->value[SLOT_YEAR] = 2010 + draw(seed, i, 2, 20);
    f->value[SLOT_WAY] = up;
    f->value[SLOT_PREVIOUS] = previous;
    f->value[SLOT_VALUE] = previous + (up ? difference : -difference);
    f->value[SLOT_CHANGE] = (difference * 1000 + previous / 2) / previous;
}

/* Another number of about the same size: one digit differs, as slips do. */
static int other_number(int v, uint64_t seed, uint64_t i)
{
    static const int places[] = {1, 10, 100, 1000, 10000};
    int digits = 1;
    while (digits < 5 && v >= places[digits])
        digits++;
    const int place = places[draw(seed, i, 41, digits)], digit = v / place % 10, shift = 1 + draw(seed, i, 42, 9);
    const int other = v + ((digit + shift) % 10 - digit) * place;
    return other > 0 ? other : v + place;
}

static int other_word(int v, int n, uint64_t seed, uint64_t i)
{
    return (v + 1 + draw(seed, i, 43, n - 1)) % n;
}

void newsdesk_spoil(facts *f, int flaw, uint64_t seed, uint64_t i)
{
    static const int slots[N_FLAWS] = {
        [FLAW_NAME] = SLOT_NAME,      [FLAW_VALUE] = SLOT_VALUE,       [FLAW_PREVIOUS] = SLOT_PREVIOUS, [FLAW_CHANGE] = SLOT_CHANGE,
        [FLAW_PERIOD] = SLOT_QUARTER, [FLAW_CURRENCY] = SLOT_CURRENCY, [FLAW_UNIT] = SLOT_UNIT};
    int *v = &f->value[slots[flaw]];
    switch (flaw) {
    case FLAW_NAME: /* another company that rows like this one may tell of */
        for (uint32_t slot = 128, right = (uint32_t)*v; (uint32_t)*v == right; slot += 64)
            *v = draw_name(seed, i, is_kept((int)right), slot);
        break;
    case FLAW_VALUE:
    case FLAW_PREVIOUS:
    case FLAW_CHANGE:
        *v = other_number(*v, seed, i);
        break;
    case FLAW_DIRECTION:
        f->value[SLOT_WAY] = !f->value[SLOT_WAY];
        break;
    case FLAW_PERIOD:
    case FLAW_CURRENCY:
    case FLAW_UNIT:
        *v = other_word(*v, lists[slots[flaw]].n, seed, i);
        break;
    default:
        break;
    }
}

const char *newsdesk_loaded_word(uint64_t seed, uint64_t i)
{
    return loaded[draw(seed, i, 40, COUNT(loaded))];
}

/* ---- texts */

void newsdesk_slot_text(int slot, int value, char *text)
{
    if (slot == SLOT_NAME)
        snprintf(text, MAX_TEXT, "%s %s", firsts[value / COUNT(seconds)], seconds[value % COUNT(seconds)]);
    else if (slot == SLOT_YEAR)
        snprintf(text, MAX_TEXT, "%d", value);
    else if (lists[slot].n == 0)
        snprintf(text, MAX_TEXT, "%d.%d", value / 10, value % 10);
    else
        snprintf(text, MAX_TEXT, "%s", lists[slot].words[value]);
}

int newsdesk_slot_at(const char *template, const char **rest)
{
    const size_t n = strcspn(template, "}");
    int slot = 0;
    while (slot + 1 < N_SLOTS && (strlen(slot_names[slot]) != n - 1 || strncmp(slot_names[slot], template + 1, n - 1) != 0))
        slot++;
    *rest = template + n + 1;
    return slot;
}

void newsdesk_write(const char *template, const facts *f, const char *loaded_word, char *text)
{
    char value[MAX_TEXT];
    size_t used = 0;
    for (const char *p = template; *p != '\0';) {
        if (*p != '{') {
            const size_t n = strcspn(p, "{");
            used += (size_t)snprintf(text + used, MAX_TEXT - used, "%.*s", (int)n, p);
            p += n;
            continue;
        }
        const int slot = newsdesk_slot_at(p, &p), adorned = slot == SLOT_MEASURE && loaded_word != NULL;
        newsdesk_slot_text(slot, f->value[slot], value);
        used += (size_t)snprintf(text + used, MAX_TEXT - used, "%s%s%s", adorned ? loaded_word : "", adorned ? " " : "", value);
    }
}

/* Which of these words the text begins with; -1: none. */
static int word_at(const char *const *words, int n, const char *text)
{
    for (int k = 0; k < n; k++) {
        const size_t length = strlen(words[k]);
        const char after = strncmp(text, words[k], length) == 0 ? text[length] : 'a';
        if (!((after >= 'a' && after <= 'z') || (after >= 'A' && after <= 'Z')))
            return k;
    }
    return -1;
}

/* The name that the text begins with; -1: none. */
static int name_at(const char *text)
{
    const int first = word_at(firsts, COUNT(firsts), text);
    const char *rest = first >= 0 ? text + strlen(firsts[first]) : "";
    const int second = *rest == ' ' ? word_at(seconds, COUNT(seconds), rest + 1) : -1;
    return second >= 0 ? first * COUNT(seconds) + second : -1;
}

size_t newsdesk_slot_length(int slot, const char *text)
{
    char value[MAX_TEXT];
    const int v = slot == SLOT_NAME ? name_at(text) : word_at(lists[slot].words, lists[slot].n, text);
    if (v >= 0) {
        newsdesk_slot_text(slot, v, value);
        return strlen(value);
    }
    if (slot == SLOT_NAME || lists[slot].n > 0)
        return 0;
    const size_t whole = strspn(text, "0123456789");
    const size_t tenths = slot != SLOT_YEAR && whole > 0 && text[whole] == '.' ? strspn(text + whole + 1, "0123456789") : 0;
    return tenths > 0 ? whole + 1 + tenths : whole;
}

int newsdesk_begins_unseen(const char *text)
{
    const int name = name_at(text);
    return name >= 0 && is_kept(name);
}

size_t newsdesk_loaded_length(const char *text)
{
    const int k = word_at(loaded, COUNT(loaded), text);
    return k >= 0 ? strlen(loaded[k]) : 0;
}

int newsdesk_has_loaded_word(const char *text)
{
    for (int k = 0; k < COUNT(loaded); k++)
        if (strstr(text, loaded[k]) != NULL)
            return 1;
    return 0;
}

void newsdesk_slot_words(void (*fn)(void *context, const char *word), void *context)
{
    for (int k = 0; k < COUNT(firsts); k++)
        fn(context, firsts[k]);
    for (int k = 0; k < COUNT(seconds); k++)
        fn(context, seconds[k]);
    for (int slot = 0; slot < N_SLOTS; slot++)
        for (int k = 0; k < lists[slot].n; k++)
            fn(context, lists[slot].words[k]);
    for (int k = 0; k < COUNT(loaded); k++)
        fn(context, loaded[k]);
}
