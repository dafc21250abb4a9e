/*
 * Dataset messages: `messages` [{role, content, tool_calls…}] with `tools`; or `prompt` and `completion` (strings or messages, as
 * TRL); or `query` and `response` with `history` and `system` (ms-swift). A prompt and a completion of strings become a user's
 * and an assistant's turn, and are plain text where the model has no template.
 */
#include <string.h>

#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    if (node->get(row, "chosen") != NULL || node->get(row, "rejected") != NULL || node->get(row, "rejected_response") != NULL)
        return 0;
    if (node->kind(node->get(row, "messages")) == APUS_NODE_LIST)
        return 90;
    if (node->get(row, "prompt") != NULL && (node->get(row, "completion") != NULL || node->get(row, "response") != NULL))
        return 80;
    return node->get(row, "query") != NULL && node->get(row, "response") != NULL ? 80 : 0;
}

static apus_status check_messages(const apus_node *row, const char *key, const apus_node *list, apus_error *err)
{
    for (size_t i = 0; i < node->length(list); i++)
        if (node->as_string(node->get(node->at(list, i), "role"), NULL) == NULL)
            return apus_bad_row(node, row, key, "messages, each with a role", err);
    return APUS_OK;
}

static apus_status conversation(const apus_node *row, apus_node *out, apus_error *err)
{
    const apus_node *messages = node->get(row, "messages");
    if (node->kind(messages) != APUS_NODE_LIST || node->length(messages) == 0)
        return apus_bad_row(node, row, "messages", "a list of messages", err);
    (void)node->set(out, "messages", node->copy(messages));
    return check_messages(row, "messages", messages, err);
}

/* TRL's conversational prompt and completion: the prompt's turns are not trained. */
static apus_status prompt_messages(const apus_node *row, const apus_node *prompt, const apus_node *completion, apus_node *out, apus_error *err)
{
    apus_node *list = node->make_list();
    (void)node->set(out, "messages", list);
    for (size_t i = 0; i < node->length(prompt); i++) {
        apus_node *m = node->copy(node->at(prompt, i));
        (void)node->set(m, "train", node->make_bool(0));
        (void)node->append(list, m);
    }
    for (size_t i = 0; i < node->length(completion); i++)
        (void)node->append(list, node->copy(node->at(completion, i)));
    return check_messages(row, "prompt", list, err);
}

static apus_status prompt_text(const apus_node *row, const char *prompt, const char *answer, apus_node *out)
{
    const apus_node *history = node->get(row, "history");
    apus_node *list = node->make_list();
    apus_add_message(node, list, "system", apus_row_text(node, row, "system"));
    for (size_t i = 0; i < node->length(history); i++) {
        apus_add_message(node, list, "user", node->as_string(node->at(node->at(history, i), 0), NULL));
        apus_add_message(node, list, "assistant", node->as_string(node->at(node->at(history, i), 1), NULL));
    }
    apus_add_message(node, list, "user", prompt);
    apus_add_message(node, list, "assistant", answer);
    (void)node->set(out, "messages", list);
    (void)node->set(out, "prompt", node->make_string(prompt, (size_t)-1));
    return node->set(out, "completion", node->make_string(answer, (size_t)-1));
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    (void)dataset;
    const apus_node *prompt = node->get(row, "prompt"), *completion = node->get(row, "completion"), *tools = node->get(row, "tools");
    apus_status st;
    if (prompt == NULL)
        prompt = node->get(row, "query");
    if (completion == NULL)
        completion = node->get(row, "response");
    apus_node *e = node->make_map();
    if (node->get(row, "messages") != NULL)
        st = conversation(row, e, err);
    else if (node->kind(prompt) == APUS_NODE_LIST && node->kind(completion) == APUS_NODE_LIST)
        st = prompt_messages(row, prompt, completion, e, err);
    else if (node->kind(prompt) == APUS_NODE_STRING && node->kind(completion) == APUS_NODE_STRING)
        st = prompt_text(row, node->as_string(prompt, NULL), node->as_string(completion, NULL), e);
    else
        st = apus_bad_row(node, row, "messages", "a list of messages, or prompt and completion (both strings or both lists)", err);
    if (st == APUS_OK && node->kind(tools) == APUS_NODE_STRING) { /* tools as JSON text */
        size_t n;
        const char *text = node->as_string(tools, &n);
        apus_node *parsed = node->parse_json(text, n, "tools", err);
        st = parsed != NULL ? node->set(e, "tools", parsed) : APUS_E_INVALID;
    } else if (st == APUS_OK && node->length(tools) > 0) {
        st = node->set(e, "tools", node->copy(tools));
    }
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

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "dataset",
                                             .name = "messages",
                                             .doc = "Conversations in the form of OpenAI; prompt and completion; query and response.",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "messages",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Conversations in the form of OpenAI; prompt and completion; query and response.",
                                   .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
