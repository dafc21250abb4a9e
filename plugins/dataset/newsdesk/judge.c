/* plugins/dataset/newsdesk/judge.c: which facts a text tells, slot by slot. See newsdesk.h. */
#include <stdio.h>
#include <string.h>

#include "newsdesk.h"

typedef struct reading {
    int seen[N_SLOTS], wrong[N_SLOTS];
    size_t read; /* bytes of the text that follow the wording */
    int whole;   /* to the end of both */
} reading;

/* Read the text along a wording, as far as it follows it. */
static void read_along(const char *wording, const facts *f, const char *text, reading *r)
{
    char right[MAX_TEXT];
    const char *at = text, *p = wording;
    memset(r, 0, sizeof *r);
    while (*p != '\0') {
        if (*p != '{') {
            if (*at++ != *p++)
                return;
        } else {
            const int slot = newsdesk_slot_at(p, &p);
            const size_t adjective = slot == SLOT_MEASURE ? newsdesk_loaded_length(at) : 0;
            at += adjective > 0 && at[adjective] == ' ' ? adjective + 1 : 0;
            const size_t n = newsdesk_slot_length(slot, at);
            if (n == 0)
                return;
            newsdesk_slot_text(slot, f->value[slot], right);
            r->seen[slot] = 1;
            r->wrong[slot] |= strlen(right) != n || memcmp(right, at, n) != 0;
            at += n;
        }
        r->read = (size_t)(at - text);
    }
    r->whole = *at == '\0';
}

/* One name of the verdict; what is not right is added to the list. */
static int say(const apus_node_api *node, apus_node *verdict, const char *name, int right, char *wrong, size_t capacity)
{
    const size_t used = strlen(wrong);
    (void)node->set(verdict, name, node->make_int(right));
    if (!right)
        snprintf(wrong + used, capacity - used, "%s%s", used > 0 ? ", " : "", name);
    return right;
}

apus_node *newsdesk_judge(const apus_node_api *node, const facts *f, const char *text)
{
    /* What a reader calls the slots: those of one name stand together. */
    static const char *const names[N_SLOTS + 1] = {"name", "measure",  "period",    "period", "numbers", "numbers", "numbers",
                                                   "unit", "currency", "direction", "cause",  "outlook", ""};
    reading best, r;
    read_along(newsdesk_wordings[0], f, text, &best);
    for (int w = 1; w < N_WORDINGS; w++) {
        read_along(newsdesk_wordings[w], f, text, &r);
        if (r.whole > best.whole || (r.whole == best.whole && r.read > best.read))
            best = r;
    }
    apus_node *verdict = node->make_map();
    char wrong[256] = "";
    int all = say(node, verdict, "form", best.whole, wrong, sizeof wrong), right = 1;
    for (int slot = 0; slot < N_SLOTS; slot++) {
        right &= best.seen[slot] && !best.wrong[slot];
        if (strcmp(names[slot], names[slot + 1]) == 0)
            continue;
        all &= say(node, verdict, names[slot], right, wrong, sizeof wrong);
        right = 1;
    }
    all &= say(node, verdict, "neutral", !newsdesk_has_loaded_word(text), wrong, sizeof wrong);
    (void)node->set(verdict, "faithful", node->make_int(all));
    (void)node->set(verdict, "wrong", node->make_string(wrong, (size_t)-1));
    return verdict;
}
