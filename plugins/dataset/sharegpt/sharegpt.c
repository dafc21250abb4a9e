/*
 * Dataset sharegpt: `conversations` [{from, value}] with system and tools. human/user, gpt/assistant, system; function_call and
 * observation as LLaMA-Factory has them: a call becomes the assistant's tool_calls, an observation a tool's message.
 */
#include <string.h>

#include <apus/data.h>
#include <apus/plugin.h>

static const apus_node_api *node; /* set at entry, the same for all */

static int claims(const apus_node *row)
{
    return node->kind(node->get(row, "conversations")) == APUS_NODE_LIST && node->get(row, "chosen") == NULL ? 90 : 0;
}

static const char *role_of(const char *from)
{
    static const char *const names[][2] = {{"human", "user"},    {"user", "user"},        {"gpt", "assistant"}, {"assistant", "assistant"},
                                           {"system", "system"}, {"observation", "tool"}, {"tool", "tool"},     {"function_call", "assistant"}};
    for (size_t i = 0; from != NULL && i < sizeof names / sizeof names[0]; i++)
        if (strcmp(from, names[i][0]) == 0)
            return names[i][1];
    return NULL;
}

/* "{\"name\": …, \"arguments\": {…}}", or a list of them. */
static apus_status add_call(const apus_node *row, apus_node *list, const char *value, apus_error *err)
{
    apus_node *calls = node->parse_json(value, strlen(value), "function_call", err);
    if (calls == NULL)
        return APUS_E_INVALID;
    apus_node *m = node->make_map(), *tool_calls = node->make_list();
    const size_t n = node->kind(calls) == APUS_NODE_LIST ? node->length(calls) : 1;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < n; i++) {
        const apus_node *call = node->kind(calls) == APUS_NODE_LIST ? node->at(calls, i) : calls;
        if (node->as_string(node->get(call, "name"), NULL) == NULL)
            st = apus_bad_row(node, row, "function_call", "a JSON object with name and arguments", err);
        apus_node *entry = node->make_map();
        (void)node->set(entry, "type", node->make_string("function", 8));
        (void)node->set(entry, "function", node->copy(call));
        (void)node->append(tool_calls, entry);
    }
    (void)node->set(m, "role", node->make_string("assistant", 9));
    (void)node->set(m, "content", node->make_string("", 0));
    (void)node->set(m, "tool_calls", tool_calls);
    (void)node->append(list, m);
    node->release(calls);
    return st;
}

static apus_status add_tools(const apus_node *row, apus_node *out, apus_error *err)
{
    const apus_node *tools = node->get(row, "tools");
    size_t n;
    const char *text = node->as_string(tools, &n);
    if (text != NULL && n == 0)
        return APUS_OK;
    apus_node *parsed = text != NULL ? node->parse_json(text, n, "tools", err) : NULL, *list = node->make_list();
    if (text != NULL && parsed == NULL) {
        node->release(list);
        return APUS_E_INVALID;
    }
    const apus_node *given = parsed != NULL ? parsed : tools;
    for (size_t i = 0; i < node->length(given); i++) { /* bare functions are wrapped as templates expect them */
        const apus_node *tool = node->at(given, i);
        apus_node *wrapped = node->copy(tool);
        if (node->get(tool, "function") == NULL) {
            wrapped = node->make_map();
            (void)node->set(wrapped, "type", node->make_string("function", 8));
            (void)node->set(wrapped, "function", node->copy(tool));
        }
        (void)node->append(list, wrapped);
    }
    node->release(parsed);
    if (node->length(list) > 0)
        return node->set(out, "tools", list);
    node->release(list);
    return APUS_OK;
}

static apus_status example(void *dataset, const apus_node *row, apus_node **out, apus_error *err)
{
    (void)dataset;
    const apus_node *turns = node->get(row, "conversations");
    if (node->kind(turns) != APUS_NODE_LIST || node->length(turns) == 0)
        return apus_bad_row(node, row, "conversations", "a list of turns", err);
    apus_node *e = node->make_map(), *messages = node->make_list();
    (void)node->set(e, "messages", messages);
    apus_add_message(node, messages, "system", apus_row_text(node, row, "system"));
    apus_status st = APUS_OK;
    for (size_t i = 0; i < node->length(turns) && st == APUS_OK; i++) {
        const apus_node *turn = node->at(turns, i);
        const char *from = node->as_string(node->get(turn, "from"), NULL), *value = node->as_string(node->get(turn, "value"), NULL);
        if (from == NULL)
            from = node->as_string(node->get(turn, "role"), NULL);
        if (value == NULL)
            value = node->as_string(node->get(turn, "content"), NULL);
        const char *role = role_of(from);
        if (role == NULL || value == NULL)
            st = apus_bad_row(node, row, "conversations", "turns of {from: human|gpt|system|function_call|observation, value: text}", err);
        else if (strcmp(from, "function_call") == 0)
            st = add_call(row, messages, value, err);
        else
            apus_add_message(node, messages, role, value);
    }
    if (st == APUS_OK)
        st = add_tools(row, e, err);
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
                                             .name = "sharegpt",
                                             .doc = "ShareGPT conversations: from and value, with function calls.",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "sharegpt",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "ShareGPT conversations: from and value, with function calls.",
                                   .components = components,
                                   .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *h)
{
    node = h->node;
    return &plugin;
}
