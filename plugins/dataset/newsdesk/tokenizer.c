/* plugins/dataset/newsdesk/tokenizer.c: a vocabulary of whole words, single digits and marks, in tokenizer.json's shape. */
#include <stdio.h>
#include <string.h>

#include "newsdesk.h"

/* ---- pieces */

static void add(pieces *p, const char *piece, size_t n)
{
    for (int k = 0; k < p->n; k++)
        if (strlen(p->text[k]) == n && memcmp(p->text[k], piece, n) == 0)
            return;
    if (p->n == MAX_PIECES || n >= sizeof p->text[0])
        return;
    memcpy(p->text[p->n], piece, n);
    p->text[p->n++][n] = '\0';
}

/* The literal pieces of a template, cut as the tokenizer's pattern cuts; its slots are left out. */
static void add_template(pieces *p, const char *template)
{
    while (*template != '\0') {
        if (*template == '{') {
            (void)newsdesk_slot_at(template, &template);
            continue;
        }
        const size_t space = *template == ' ', letters = strspn(template + space, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
        if (letters > 0 || space == 0) /* a space before a slot is part of what fills it */
            add(p, template, letters > 0 ? space + letters : 1);
        template += letters > 0 ? space + letters : 1;
    }
}

/* Each word of a slot's value, with its space. */
static void add_words(void *context, const char *words)
{
    char piece[64];
    for (const char *w = words; *w != '\0';) {
        const size_t n = strcspn(w, " ");
        add(context, piece, (size_t)snprintf(piece, sizeof piece, " %.*s", (int)n, w));
        w += n + (w[n] == ' ');
    }
}

void newsdesk_pieces(pieces *p)
{
    p->n = 0;
    for (int k = 0; k < 10; k++) {
        const char digit[2] = {' ', (char)('0' + k)};
        add(p, digit, 2);
        add(p, digit + 1, 1);
    }
    newsdesk_slot_words(add_words, p);
    add_template(p, "copy:");
    add_template(p, newsdesk_sheet);
    for (int k = 0; k < N_WORDINGS; k++)
        add_template(p, newsdesk_wordings[k]);
}

/* ---- tokenizer.json */

static apus_node *special(const apus_node_api *node, int64_t id, const char *content)
{
    static const char *const flags[] = {"single_word", "lstrip", "rstrip", "normalized"};
    apus_node *t = node->make_map();
    (void)node->set(t, "id", node->make_int(id));
    (void)node->set(t, "content", node->make_string(content, (size_t)-1));
    for (int i = 0; i < 4; i++)
        (void)node->set(t, flags[i], node->make_bool(0));
    (void)node->set(t, "special", node->make_bool(1));
    return t;
}

apus_node *newsdesk_tokenizer(const apus_node_api *node)
{
    static const char *const specials[] = {"<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"};
    static const char template[] = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
                                   "{% if add_generation_prompt %}<|assistant|>{% endif %}";
    int64_t n = 0;
    pieces p;
    apus_node *vocab = node->make_map();
    apus_node *root = node->make_map(), *model = node->make_map(), *added = node->make_list(), *split = node->make_map(), *pattern = node->make_map();
    apus_node *decoder = node->make_map(), *config = node->make_map();
    for (int k = 0; k < 4; k++) {
        (void)node->append(added, special(node, n, specials[k]));
        (void)node->set(vocab, specials[k], node->make_int(n++));
    }
    newsdesk_pieces(&p);
    for (int k = 0; k < p.n; k++)
        (void)node->set(vocab, p.text[k], node->make_int(n++));
    (void)node->set(model, "type", node->make_string("WordLevel", 9));
    (void)node->set(model, "vocab", vocab);
    (void)node->set(model, "unk_token", node->make_string("<|unknown|>", (size_t)-1));
    (void)node->set(pattern, "Regex", node->make_string(" ?[A-Za-z]+| ?[0-9]|[^A-Za-z0-9]", (size_t)-1));
    (void)node->set(split, "type", node->make_string("Split", 5));
    (void)node->set(split, "pattern", pattern);
    (void)node->set(split, "behavior", node->make_string("Isolated", 8));
    (void)node->set(split, "invert", node->make_bool(0));
    (void)node->set(decoder, "type", node->make_string("Fuse", 4));
    (void)node->set(root, "version", node->make_string("1.0", 3));
    (void)node->set(root, "truncation", node->make_null());
    (void)node->set(root, "padding", node->make_null());
    (void)node->set(root, "added_tokens", added);
    (void)node->set(root, "normalizer", node->make_null());
    (void)node->set(root, "pre_tokenizer", split);
    (void)node->set(root, "post_processor", node->make_null());
    (void)node->set(root, "decoder", decoder);
    (void)node->set(root, "model", model);
    (void)node->set(config, "eos_token", node->make_string("<|end|>", (size_t)-1));
    (void)node->set(config, "unk_token", node->make_string("<|unknown|>", (size_t)-1));
    (void)node->set(root, "tokenizer_config", config);
    (void)node->set(root, "chat_template", node->make_string(template, (size_t)-1));
    return root;
}
