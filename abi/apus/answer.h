/*
 * apus/answer.h: asking a generator for the answer to a dataset's row, as the stages generate and eval do.
 */
#ifndef APUS_ANSWER_H
#define APUS_ANSWER_H

#include <string.h>

#include <apus/session.h>

/* The example's prompt: its messages up to the last answer. owner: caller. */
static inline apus_node *apus_prompt_messages(const apus_node_api *node, const apus_node *example)
{
    const apus_node *messages = node->get(example, "messages");
    size_t n = node->length(messages);
    const char *last = node->as_string(node->get(node->at(messages, n - 1), "role"), NULL);
    if (node->get(example, "chosen") == NULL && n > 0 && last != NULL && strcmp(last, "assistant") == 0)
        n--;
    if (node->kind(messages) != APUS_NODE_LIST)
        return NULL;
    apus_node *list = node->make_list();
    for (size_t i = 0; i < n; i++)
        (void)node->append(list, node->copy(node->at(messages, i)));
    return list;
}

/* One answer to row i of the rows. owner of *row, *answer: caller. */
static inline apus_status apus_answer_row(const apus_session_api *session, const apus_node_api *node, apus_generator *g, void *rows, int64_t i, const apus_node *params, uint64_t seed, apus_node **row,
                              apus_node **answer, apus_error *err)
{
    apus_node *example = NULL;
    apus_status st = session->rows_example(rows, i, row, &example, err);
    if (st != APUS_OK)
        return st;
    apus_node *messages = apus_prompt_messages(node, example);
    const char *prompt = node->as_string(node->get(example, "prompt"), NULL);
    if (messages == NULL && prompt == NULL)
        prompt = node->as_string(node->get(example, "text"), NULL);
    apus_generate_request request;
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.messages = messages;
    request.tools = node->get(example, "tools");
    request.prompt = messages == NULL ? prompt : NULL;
    request.sampling = params;
    request.seed = seed;
    request.index = (uint64_t)i;
    if (messages == NULL && prompt == NULL)
        st = apus_fail(err, APUS_E_INVALID, "row %lld has neither messages nor a prompt to answer", (long long)i);
    else
        st = session->generate(g, &request, answer, err);
    node->release(messages);
    node->release(example);
    return st;
}

#endif
