/* plugins/dataset/newsdesk/tokenizer.c: a vocabulary of whole words, single digits, spaces and marks, in tokenizer.json's shape. */
#include <stdio.h>
#include <string.h>

#include "newsdesk.h"

typedef struct vocabulary {
    const apus_node_api *node;
    apus_node *map;
    int64_t n;
} vocabulary;

static void add(void *context, const char *word)
{
    vocabulary *v = context;
    if (v->node->get(v->map, word) == NULL)
        (void)v->node->set(v->map, word, v->node->make_int(v->n++));
}

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

/* A word stands alone, or with the space before it: half as many tokens as spaces by themselves. */
static void add_word(void *context, const char *word)
{
    char spaced[80];
    add(context, word);
    if (strchr(".,:", word[0]) != NULL)
        return;
    snprintf(spaced, sizeof spaced, " %s", word);
    add(context, spaced);
}

apus_node *newsdesk_tokenizer(const apus_node_api *node)
{
    static const char *const specials[] = {"<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"};
    static const char *const marks[] = {" ", "\n", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    static const char template[] = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
                                   "{% if add_generation_prompt %}<|assistant|>{% endif %}";
    vocabulary v = {.node = node, .map = node->make_map()};
    apus_node *root = node->make_map(), *model = node->make_map(), *added = node->make_list(), *split = node->make_map(), *pattern = node->make_map();
    apus_node *decoder = node->make_map(), *config = node->make_map();
    for (int i = 0; i < 4; i++) {
        (void)node->append(added, special(node, v.n, specials[i]));
        add(&v, specials[i]);
    }
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        add(&v, marks[i]);
    newsdesk_words(add_word, &v);
    (void)node->set(model, "type", node->make_string("WordLevel", 9));
    (void)node->set(model, "vocab", v.map);
    (void)node->set(model, "unk_token", node->make_string("<|unknown|>", (size_t)-1));
    (void)node->set(pattern, "Regex", node->make_string(" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]", (size_t)-1));
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
