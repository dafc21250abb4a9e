/* plugins/dataset/newsdesk/facts.c: the facts and the sentences. See newsdesk.h. */
#include <stdio.h>
#include <string.h>

#include <apus/random.h>

#include "newsdesk.h"

static const char *const firsts[] = {"Alder",  "Amber",  "Arbor",  "Argent", "Aspen",  "Atlas",  "Aurora", "Baltic", "Beacon", "Birch",  "Borea",  "Brook",
                                     "Cedar",  "Cinder", "Cobalt", "Copper", "Coral",  "Corvus", "Crest",  "Dawn",   "Delta",  "Ember",  "Fjord",  "Flint",
                                     "Forge",  "Garnet", "Glacier", "Granite", "Harbor", "Haven",  "Hazel",  "Heron",  "Indigo", "Ivory",  "Jasper", "Juniper",
                                     "Kestrel", "Lark",  "Laurel", "Linden", "Lumen",  "Maple",  "Marble", "Meadow", "Mistral", "Nordic", "Oak",    "Onyx",
                                     "Opal",   "Orchid", "Osprey", "Pine",   "Quartz", "Raven",  "River",  "Rowan",  "Sable",  "Sierra", "Sparrow", "Summit",
                                     "Tamarind", "Teal", "Thorn",  "Tidal",  "Topaz",  "Umber",  "Vale",   "Vega",   "Willow", "Zephyr"};
static const char *const seconds[] = {"Airlines", "Analytics", "Bank",    "Biotech", "Brewing", "Capital", "Chemicals", "Components", "Devices", "Dynamics",
                                      "Energy",   "Foods",     "Freight", "Gas",     "Glass",   "Health",  "Holdings",  "Industries", "Insurance", "Labs",
                                      "Logistics", "Media",    "Metals",  "Mining",  "Mobility", "Motors", "Networks",  "Optics",     "Paper",   "Partners",
                                      "Pharma",   "Plastics",  "Power",   "Rail",    "Robotics", "Semiconductor", "Shipping", "Software", "Steel", "Systems",
                                      "Telecom",  "Textiles",  "Timber",  "Tools",   "Water"};
static const char *const measures[] = {"revenue", "profit", "sales", "turnover", "income", "cash flow"};
static const char *const quarters[] = {"first", "second", "third", "fourth"};
static const char *const currencies[] = {"euros", "dollars", "pounds", "francs", "kroner", "yen"};
static const char *const units[] = {"million", "billion"};
static const char *const causes[] = {"higher volumes", "lower costs",    "new contracts",  "weaker demand", "currency effects", "seasonal demand",
                                     "price changes",  "plant closures", "new products",   "supply delays"};
static const char *const outlooks[] = {"raised", "confirmed", "lowered", "withdrew"};
static const char *const loaded[] = {"stunning", "disastrous", "shocking", "brilliant", "miserable", "spectacular", "dismal", "heroic", "shameful", "glorious"};

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

static int draw(uint64_t seed, uint64_t i, uint32_t slot, int n)
{
    return (int)apus_random_below(seed, apus_random_purpose("newsdesk"), slot, i, (uint64_t)n);
}

/* One name in ten is kept for companies that no training row has, whatever the seed. */
static int name_is_unseen(int first, int second)
{
    return (first * 7 + second * 3) % 10 == 0;
}

void newsdesk_facts(uint64_t seed, uint64_t i, int unseen, facts *f)
{
    uint32_t slot = 16;
    do {
        f->first = draw(seed, i, slot++, COUNT(firsts));
        f->second = draw(seed, i, slot++, COUNT(seconds));
    } while (name_is_unseen(f->first, f->second) != (unseen != 0));
    f->measure = draw(seed, i, 0, COUNT(measures));
    f->quarter = draw(seed, i, 1, 4);
    f->year = 2010 + draw(seed, i, 2, 20);
    f->currency = draw(seed, i, 3, COUNT(currencies));
    f->unit = draw(seed, i, 4, COUNT(units));
    f->cause = draw(seed, i, 5, COUNT(causes));
    f->outlook = draw(seed, i, 6, COUNT(outlooks));
    f->previous = 100 + draw(seed, i, 7, 8900);
    const int change = 5 + draw(seed, i, 8, 400); /* tenths of a percent */
    f->up = draw(seed, i, 9, 2);
    f->value = f->previous + (f->up ? 1 : -1) * ((f->previous * change + 500) / 1000);
    if (f->value == f->previous)
        f->value += f->up ? 1 : -1;
    const int difference = f->value > f->previous ? f->value - f->previous : f->previous - f->value;
    f->change = (difference * 1000 + f->previous / 2) / f->previous;
    if (f->change == 0)
        f->change = 1;
}

void newsdesk_sheet(const facts *f, char *text, size_t capacity)
{
    snprintf(text, capacity,
             "company: %s %s\nperiod: %s quarter %d\n%s: %d.%d %s %s\nyear before: %d.%d %s %s\nchange: %s %d.%d percent\ncause: %s\noutlook: %s",
             firsts[f->first], seconds[f->second], quarters[f->quarter], f->year, measures[f->measure], f->value / 10, f->value % 10,
             units[f->unit], currencies[f->currency], f->previous / 10, f->previous % 10, units[f->unit], currencies[f->currency],
             f->up ? "up" : "down", f->change / 10, f->change % 10, causes[f->cause], outlooks[f->outlook]);
}

/* Another number of about the same size: one digit differs, as slips do. */
static int other_number(int v, uint64_t seed, uint64_t i, uint32_t slot)
{
    static const int places[] = {1, 10, 100, 1000, 10000};
    int digits = 1;
    while (digits < 5 && v >= places[digits])
        digits++;
    const int place = places[draw(seed, i, slot, digits)], digit = v / place % 10, shift = 1 + draw(seed, i, slot + 1, 9);
    const int other = v + ((digit + shift) % 10 - digit) * place;
    return other > 0 ? other : v + place;
}

/* Where a loaded word goes: before the measure. */
static const char *adjective(int flaw, uint64_t seed, uint64_t i, char *text, size_t capacity)
{
    snprintf(text, capacity, "%s%s", flaw == FLAW_LOADED ? loaded[draw(seed, i, 40, COUNT(loaded))] : "", flaw == FLAW_LOADED ? " " : "");
    return text;
}

void newsdesk_brief(const facts *given, int pattern, int flaw, uint64_t seed, uint64_t i, char *text, size_t capacity)
{
    facts f = *given;
    char word[32];
    if (flaw == FLAW_VALUE)
        f.value = other_number(f.value, seed, i, 41);
    if (flaw == FLAW_PREVIOUS)
        f.previous = other_number(f.previous, seed, i, 41);
    if (flaw == FLAW_CHANGE)
        f.change = other_number(f.change, seed, i, 41);
    if (flaw == FLAW_DIRECTION)
        f.up = !f.up;
    if (flaw == FLAW_PERIOD)
        f.quarter = (f.quarter + 1 + draw(seed, i, 43, 3)) % 4;
    if (flaw == FLAW_CURRENCY)
        f.currency = (f.currency + 1 + draw(seed, i, 44, COUNT(currencies) - 1)) % COUNT(currencies);
    const char *loud = adjective(flaw, seed, i, word, sizeof word), *moved = f.up ? "rose" : "fell", *way = f.up ? "up" : "down";
    const char *first = firsts[f.first], *second = seconds[f.second], *measure = measures[f.measure], *quarter = quarters[f.quarter];
    const char *unit = units[f.unit], *currency = currencies[f.currency], *cause = causes[f.cause], *outlook = outlooks[f.outlook];
    const int v = f.value / 10, vd = f.value % 10, p = f.previous / 10, pd = f.previous % 10, c = f.change / 10, cd = f.change % 10;
    switch (pattern) {
    case 0:
        snprintf(text, capacity, "%s %s reported %s%s of %d.%d %s %s for the %s quarter of %d, %s %d.%d percent from %d.%d %s %s a year before. The company named %s and %s its outlook.",
                 first, second, loud, measure, v, vd, unit, currency, quarter, f.year, way, c, cd, p, pd, unit, currency, cause, outlook);
        break;
    case 1:
        snprintf(text, capacity, "The %s%s of %s %s %s %d.%d percent to %d.%d %s %s in the %s quarter of %d, after %d.%d %s %s a year before. It named %s and %s its outlook.",
                 loud, measure, first, second, moved, c, cd, v, vd, unit, currency, quarter, f.year, p, pd, unit, currency, cause, outlook);
        break;
    case 2:
        snprintf(text, capacity, "In the %s quarter of %d, %s %s had %s%s of %d.%d %s %s. That is %s %d.%d percent from %d.%d %s %s a year before. The reason was %s. The company %s its outlook.",
                 quarter, f.year, first, second, loud, measure, v, vd, unit, currency, way, c, cd, p, pd, unit, currency, cause, outlook);
        break;
    default:
        snprintf(text, capacity, "%s %s %s its outlook. Its %s%s %s to %d.%d %s %s in the %s quarter of %d from %d.%d %s %s a year before, %s %d.%d percent, on %s.",
                 first, second, outlook, loud, measure, moved, v, vd, unit, currency, quarter, f.year, p, pd, unit, currency, way, c, cd, cause);
        break;
    }
}

int newsdesk_has_loaded_word(const char *text)
{
    for (int k = 0; k < COUNT(loaded); k++)
        if (strstr(text, loaded[k]) != NULL)
            return 1;
    return 0;
}

static void each_word(const char *text, void (*fn)(void *, const char *), void *context)
{
    char word[64];
    for (const char *p = text; *p != '\0';) {
        size_t n = strcspn(p, " ");
        if (n > 0 && n < sizeof word) {
            memcpy(word, p, n);
            word[n] = '\0';
            fn(context, word);
        }
        p += n + (p[n] == ' ');
    }
}

void newsdesk_words(void (*fn)(void *context, const char *word), void *context)
{
    static const struct {
        const char *const *words;
        int n;
    } lists[] = {{firsts, COUNT(firsts)},         {seconds, COUNT(seconds)}, {measures, COUNT(measures)}, {quarters, COUNT(quarters)},
                 {currencies, COUNT(currencies)}, {units, COUNT(units)},     {causes, COUNT(causes)},     {outlooks, COUNT(outlooks)},
                 {loaded, COUNT(loaded)}};
    for (size_t k = 0; k < sizeof lists / sizeof lists[0]; k++)
        for (int i = 0; i < lists[k].n; i++)
            each_word(lists[k].words[i], fn, context);
    each_word("company period quarter year before change cause outlook up down percent reported of for the from a named and its The rose fell to in after "
              "It In had That is The reason was Its on . , : copy",
              fn, context);
}
