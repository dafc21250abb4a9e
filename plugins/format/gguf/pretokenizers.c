/*
 * plugins/format/gguf/pretokenizers: llama.cpp's names for how a byte-level vocabulary cuts text (tokenizer.ggml.pre),
 * as tokenizer.json's pre_tokenizer, both ways. The expressions are those of the models' own tokenizer.json files, from
 * which llama.cpp's are adapted (src/llama-vocab.cpp). A step that in llama.cpp isolates its matches is a Split here.
 */
#include "gguf.h"

#define LLAMA3                                                                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "                                                                       \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"                                                                                                   \
    "\\s+(?!\\S)|\\s+"
#define QWEN2                                                                                                                                        \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"                                \
    "\\s+(?!\\S)|\\s+"
#define QWEN35                                                                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"                                \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TEKKEN                                                                                                                                       \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"                                                     \
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT4O                                                                                                                                        \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'"                                \
    "ll|'d)?|"                                                                                                                                       \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'"                                \
    "ll|'d)?|"                                                                                                                                       \
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define DEEPSEEK3                                                                                                                                    \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"                                             \
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* What follows the splits: ByteLevel's own expression (GPT-2's), or none. */
enum { PLAIN = 0, GPT2_REGEX = 1 };
enum { IGNORE_MERGES = 1, ADD_BOS = 2 };

typedef struct pre_tokenizer {
    const char *names; /* space-separated; the first is written */
    const char *splits[3];
    int digits; /* before all: each digit alone */
    int regex;
    int flags;
} pre_tokenizer;

static const pre_tokenizer known[] = {
    {"gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais trillion "
     "granite-docling exaone4",
     {NULL},
     0,
     GPT2_REGEX,
     0},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", {NULL}, 1, GPT2_REGEX, 0},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", {QWEN2}, 0, PLAIN, 0},
    {"qwen35", {QWEN35}, 0, PLAIN, 0},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", {LLAMA3}, 0, PLAIN, IGNORE_MERGES | ADD_BOS},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {LLAMA3}, 0, PLAIN, 0},
    {"tekken", {TEKKEN}, 0, PLAIN, IGNORE_MERGES | ADD_BOS},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", {GPT4O}, 0, PLAIN, 0},
    {"deepseek-v3 hunyuan-dense joyai-llm", {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3}, 0, PLAIN, 0},
};

static apus_node *split(const apus_node_api *node, const char *expression)
{
    apus_node *n = node->make_map(), *pattern = node->make_map();
    node->set(pattern, "Regex", node->make_string(expression, (size_t)-1));
    node->set(n, "type", node->make_string("Split", (size_t)-1));
    node->set(n, "pattern", pattern);
    node->set(n, "behavior", node->make_string("Isolated", (size_t)-1));
    node->set(n, "invert", node->make_bool(0));
    return n;
}

static apus_node *byte_level(const apus_node_api *node, int regex)
{
    apus_node *n = node->make_map();
    node->set(n, "type", node->make_string("ByteLevel", (size_t)-1));
    node->set(n, "add_prefix_space", node->make_bool(0));
    node->set(n, "trim_offsets", node->make_bool(1));
    node->set(n, "use_regex", node->make_bool(regex));
    return n;
}

static apus_node *make(const apus_node_api *node, const pre_tokenizer *p)
{
    apus_node *n, *list;
    if (!p->digits && p->splits[0] == NULL)
        return byte_level(node, 1);
    n = node->make_map();
    list = node->make_list();
    if (p->digits) {
        apus_node *digits = node->make_map();
        node->set(digits, "type", node->make_string("Digits", (size_t)-1));
        node->set(digits, "individual_digits", node->make_bool(1));
        node->append(list, digits);
    }
    for (int i = 0; i < 3; i++)
        if (p->splits[i] != NULL)
            node->append(list, split(node, p->splits[i]));
    node->append(list, byte_level(node, p->regex));
    node->set(n, "type", node->make_string("Sequence", (size_t)-1));
    node->set(n, "pretokenizers", list);
    return n;
}

/* Is `name` one of the space-separated `names`? */
static int is_one_of(const char *names, const char *name, size_t length)
{
    for (const char *p = names; *p != '\0';) {
        const size_t n = strcspn(p, " ");
        if (n == length && memcmp(p, name, n) == 0)
            return 1;
        p += n + (p[n] == ' ');
    }
    return 0;
}

apus_node *gguf_pre_tokenizer(const apus_node_api *node, const char *name, size_t length, int *ignore_merges, int *add_bos)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (is_one_of(known[i].names, name, length)) {
            *ignore_merges = (known[i].flags & IGNORE_MERGES) != 0;
            *add_bos = (known[i].flags & ADD_BOS) != 0;
            return make(node, &known[i]);
        }
    return NULL;
}

static int text_is(const apus_node_api *node, const apus_node *n, const char *key, const char *value)
{
    const char *s = node->as_string(node->get(n, key), NULL);
    return s != NULL && strcmp(s, value) == 0;
}

/* Same steps? Offsets and the case of an option that cannot show in ids do not matter. */
static int same(const apus_node_api *node, const pre_tokenizer *p, const apus_node *const *steps, size_t n)
{
    size_t at = 0;
    if (p->digits && !(at < n && text_is(node, steps[at], "type", "Digits") && node->as_bool(node->get(steps[at++], "individual_digits"), 0)))
        return 0;
    for (int i = 0; i < 3; i++)
        if (p->splits[i] != NULL &&
            !(at < n && text_is(node, steps[at], "type", "Split") && text_is(node, steps[at], "behavior", "Isolated") &&
              !node->as_bool(node->get(steps[at], "invert"), 0) && text_is(node, node->get(steps[at++], "pattern"), "Regex", p->splits[i])))
            return 0;
    return at + 1 == n && text_is(node, steps[at], "type", "ByteLevel") && !node->as_bool(node->get(steps[at], "add_prefix_space"), 1) &&
           node->as_bool(node->get(steps[at], "use_regex"), 1) == p->regex;
}

const char *gguf_pre_tokenizer_name(const apus_node_api *node, const apus_node *pre_tokenizer)
{
    static const char *const first[] = {"gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o", "deepseek-v3"};
    const apus_node *steps[8] = {pre_tokenizer}, *list = node->get(pre_tokenizer, "pretokenizers");
    size_t n = 1;
    if (text_is(node, pre_tokenizer, "type", "Sequence")) {
        n = node->length(list);
        if (n > 8)
            return NULL;
        for (size_t i = 0; i < n; i++)
            steps[i] = node->at(list, i);
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (same(node, &known[i], steps, n))
            return first[i];
    return NULL;
}
