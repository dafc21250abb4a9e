/*
 * Dataset preference: `chosen` and `rejected` answers to one prompt:
 *   prompt, chosen, rejected              strings or messages (TRL)
 *   conversations, chosen, rejected       ShareGPT turns and {from, value} answers (LLaMA-Factory)
 *   chosen, rejected                      whole conversations that share their beginning: messages, or HH-RLHF transcripts
 *   instruction (input), chosen, rejected Alpaca
 *   messages, rejected_response           the last assistant turn is chosen (ms-swift)
 * chosen_logps and rejected_logps travel along.
 */
#include <stdlib.h>
#include <string.h>

#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    if (node->get(row, "chosen") != NULL && node->get(row, "rejected") != NULL)
        return 95;
    return node->get(row, "rejected_response") != NULL && node->get(row, "messages") != NULL ? 95 : 0;
}

static const char *role_of(const char *from)
{
    if (from == NULL)
        return NULL;
    return strcmp(from, "human") == 0 ? "user" : strcmp(from, "gpt") == 0 ? "assistant" : from;
}

/* {role, content} or {from, value} -> a message appended; 0 when it is neither. */
static int add_turn(apus_node *list, const apus_node *turn)
{
    const char *from = node->as_string(node->get(turn, "from"), NULL), *role = node->as_string(node->get(turn, "role"), NULL);
    if (role != NULL && node->get(turn, "value") == NULL)
        return node->append(list, node->copy(turn)) == APUS_OK;
    const char *value = node->as_string(node->get(turn, "value"), NULL);
    role = role_of(from != NULL ? from : role);
    if (role == NULL || value == NULL)
        return 0;
    apus_add_message(node, list, role, value);
    return 1;
}

/* An answer as a list of messages: a string, one turn, or a list of turns. NULL: none of these. */
static apus_node *answer_messages(const apus_node *answer)
{
    apus_node *list = node->make_list();
    int good = 1;
    if (node->kind(answer) == APUS_NODE_STRING)
        apus_add_message(node, list, "assistant", node->as_string(answer, NULL));
    else if (node->kind(answer) == APUS_NODE_MAP)
        good = add_turn(list, answer);
    else
        for (size_t i = 0; i < node->length(answer) && good; i++)
            good = add_turn(list, node->at(answer, i));
    if (!good || node->length(list) == 0) {
        node->release(list);
        return NULL;
    }
    return list;
}

/* "\n\nHuman: …\n\nAssistant: …" -> messages; NULL when the text is no such transcript. */
static apus_node *transcript(const char *text)
{
    static const char *const marks[2] = {"\n\nHuman:", "\n\nAssistant:"};
    if (strncmp(text, marks[0], strlen(marks[0])) != 0)
        return NULL;
    apus_node *list = node->make_list();
    for (const char *at = text; *at != '\0';) {
        const int who = strncmp(at, marks[1], strlen(marks[1])) == 0;
        const char *begin = at + strlen(marks[who]), *end = begin + strlen(begin);
        for (int k = 0; k < 2; k++) {
            const char *next = strstr(begin, marks[k]);
            if (next != NULL && next < end)
                end = next;
        }
        at = end;
        while (begin < end && *begin == ' ')
            begin++;
        apus_node *m = node->make_map();
        (void)node->set(m, "role", node->make_string(who ? "assistant" : "user", (size_t)-1));
        (void)node->set(m, "content", node->make_string(begin, (size_t)(end - begin)));
        (void)node->append(list, m);
    }
    return list;
}

/* Two whole conversations: what they share at the beginning is the prompt; the rest are the answers. */
static apus_status split_shared(const apus_node *row, apus_node *chosen, apus_node *rejected, apus_node *e, apus_error *err)
{
    const size_t a = node->length(chosen), b = node->length(rejected);
    size_t n = 0;
    apus_node *lists[3] = {node->make_list(), node->make_list(), node->make_list()};
    while (n < a && n < b && node->equal(node->at(chosen, n), node->at(rejected, n)))
        n++;
    for (size_t i = 0; i < a; i++)
        (void)node->append(lists[i < n ? 0 : 1], node->copy(node->at(chosen, i)));
    for (size_t i = n; i < b; i++)
        (void)node->append(lists[2], node->copy(node->at(rejected, i)));
    (void)node->set(e, "messages", lists[0]);
    (void)node->set(e, "chosen", lists[1]);
    (void)node->set(e, "rejected", lists[2]);
    if (n == 0 || n == a || n == b)
        return apus_bad_row(node, row, "chosen", "two conversations that share their beginning and differ in the answer", err);
    return APUS_OK;
}

static apus_status set_answers(const apus_node *row, const apus_node *chosen, const apus_node *rejected, apus_node *e, apus_error *err)
{
    apus_node *a = answer_messages(chosen), *b = answer_messages(rejected);
    if (a == NULL || b == NULL) {
        node->release(a);
        node->release(b);
        return apus_bad_row(node, row, a == NULL ? "chosen" : "rejected", "an answer: text, a message or messages", err);
    }
    (void)node->set(e, "chosen", a);
    return node->set(e, "rejected", b);
}

static apus_status prompt_of_turns(const apus_node *row, const char *key, const apus_node *turns, apus_node *e, apus_error *err)
{
    apus_node *messages = node->make_list();
    apus_add_message(node, messages, "system", apus_row_text(node, row, "system"));
    (void)node->set(e, "messages", messages);
    for (size_t i = 0; i < node->length(turns); i++)
        if (!add_turn(messages, node->at(turns, i)))
            return apus_bad_row(node, row, key, "turns of {from, value} or {role, content}", err);
    return APUS_OK;
}

static void prompt_of_text(const apus_node *row, const char *prompt, const char *input, apus_node *e)
{
    const size_t n = strlen(prompt), m = input != NULL ? strlen(input) : 0;
    char *text = malloc(n + m + 2);
    if (text == NULL)
        return;
    memcpy(text, prompt, n + 1);
    if (input != NULL) {
        text[n] = '\n';
        memcpy(text + n + 1, input, m + 1);
    }
    apus_node *messages = node->make_list();
    apus_add_message(node, messages, "system", apus_row_text(node, row, "system"));
    apus_add_message(node, messages, "user", text);
    (void)node->set(e, "messages", messages);
    free(text);
}

/* ms-swift: the last assistant turn is the chosen answer. */
static apus_status last_turn(const apus_node *row, apus_node *e, apus_error *err)
{
    const apus_node *messages = node->get(row, "messages");
    const size_t n = node->length(messages);
    if (n < 2)
        return apus_bad_row(node, row, "messages", "a prompt and an assistant's turn", err);
    apus_node *prompt = node->make_list();
    for (size_t i = 0; i + 1 < n; i++)
        (void)node->append(prompt, node->copy(node->at(messages, i)));
    (void)node->set(e, "messages", prompt);
    return set_answers(row, node->at(messages, n - 1), node->get(row, "rejected_response"), e, err);
}

static apus_status whole_conversations(const apus_node *row, const apus_node *chosen, const apus_node *rejected, apus_node *e, apus_error *err)
{
    const char *a = node->as_string(chosen, NULL), *b = node->as_string(rejected, NULL);
    apus_node *first = a != NULL ? transcript(a) : answer_messages(chosen), *second = b != NULL ? transcript(b) : answer_messages(rejected);
    apus_status st = first != NULL && second != NULL ? split_shared(row, first, second, e, err)
                                                     : apus_bad_row(node, row, "prompt", "a prompt beside chosen and rejected", err);
    node->release(first);
    node->release(second);
    return st;
}

static apus_status fill(const apus_node *row, apus_node *e, apus_error *err)
{
    const apus_node *chosen = node->get(row, "chosen"), *rejected = node->get(row, "rejected"), *prompt = node->get(row, "prompt");
    const apus_node *turns = node->get(row, "conversations");
    const char *instruction = apus_row_text(node, row, "instruction");
    if (node->get(row, "rejected_response") != NULL)
        return last_turn(row, e, err);
    apus_status st = APUS_OK;
    if (turns == NULL)
        turns = node->get(row, "messages");
    if (node->kind(turns) == APUS_NODE_LIST) {
        st = prompt_of_turns(row, "conversations", turns, e, err);
    } else if (node->kind(prompt) == APUS_NODE_LIST) {
        st = prompt_of_turns(row, "prompt", prompt, e, err);
    } else if (node->kind(prompt) == APUS_NODE_STRING) {
        prompt_of_text(row, node->as_string(prompt, NULL), NULL, e);
        if (node->kind(chosen) == APUS_NODE_STRING) /* for a model without a template */
            (void)node->set(e, "prompt", node->copy(prompt));
    } else if (instruction != NULL) {
        prompt_of_text(row, instruction, apus_row_text(node, row, "input"), e);
    } else {
        return whole_conversations(row, chosen, rejected, e, err);
    }
    return st == APUS_OK ? set_answers(row, chosen, rejected, e, err) : st;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    static const char *const carried[] = {"chosen_logps", "rejected_logps", "tools"};
    (void)dataset;
    apus_node *e = node->make_map();
    apus_status st = fill(row, e, err);
    for (size_t i = 0; i < sizeof carried / sizeof carried[0] && st == APUS_OK; i++)
        if (node->get(row, carried[i]) != NULL)
            (void)node->set(e, carried[i], node->copy(node->get(row, carried[i])));
    if (st != APUS_OK) {
        node->release(e);
        return st;
    }
    *out = e;
    return APUS_OK;
}

static apus_status open_dataset(const apus_host *h, const apus_node *params, void **dataset, apus_error *err)
{
    (void)params;
    (void)err;
    *dataset = (void *)(uintptr_t)h; /* nothing to keep; never read */
    return APUS_OK;
}

static void close_dataset(void *dataset)
{
    (void)dataset;
}

static const apus_dataset_ops ops = {.size = sizeof ops, .claims = claims, .open = open_dataset, .close = close_dataset, .example = example};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "dataset",
     .name = "preference",
     .doc = "Pairs of a chosen and a rejected answer, in the forms of TRL, LLaMA-Factory, ms-swift and HH-RLHF.",
     .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "preference",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Pairs of a chosen and a rejected answer, in the forms of TRL, LLaMA-Factory, ms-swift and HH-RLHF.",
                                   .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
