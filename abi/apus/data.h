/*
 * apus/data.h: the kind "dataset": a pure map from a row to an example, or a generator of rows.
 *
 * A row is a node as the file has it. An example is a node in one of these shapes (the host renders, tokenises, cuts, packs):
 *   {messages: [{role, content, …}], tools: […]}                                 a conversation; every assistant turn is trained
 *   {messages: [prompt messages], chosen: [messages], rejected: [messages]}      a preference pair; only the answers are trained
 *        … with chosen_logps / rejected_logps (floats) when a reference was computed before
 *   {prompt: "…", completion: "…"}                                               plain text, no template; the completion is trained
 *   {prompt: "…", chosen: "…", rejected: "…"}                                    plain text preference
 *   {text: "…"}                                                                  a document; all of it is trained
 *   {input_ids: […], labels: […]}                                                ready-made; labels -100 (or left out: all) as in HF
 * A message may carry `train: false`. Extra keys `facts` (any node) travel with the row to evaluators.
 */
#ifndef APUS_DATA_H
#define APUS_DATA_H

#include <apus/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct apus_dataset_ops {
    uint32_t size;
    /* How surely rows like this are this type's: 0 no … 100. [any] */
    int (*claims)(const apus_node *row);
    apus_status (*open)(const apus_host *host, const apus_node *params, void **dataset, apus_error *err);
    void (*close)(void *dataset);
    /* Row -> example (owner: caller). APUS_E_INVALID: this row is bad: the message says why and which key. [any] */
    apus_status (*example)(void *dataset, const apus_node *row, apus_node **example, apus_error *err);
    /* Generators: how many rows; row i (a function of params, i and the seed alone). NULL both: rows come from `path`. [any] */
    int64_t (*count)(void *dataset);
    apus_status (*row)(void *dataset, int64_t i, uint64_t seed, apus_node **row, apus_error *err);
    /* Check an answer against the row it answers: a map of name -> 0/1 or number ("faithful": 1, …), averaged by evaluation;
     * may hold strings for the trace. owner: caller. NULL: this type cannot judge. [any] */
    apus_status (*judge)(void *dataset, const apus_node *row, const char *answer, apus_node **verdict, apus_error *err);
    /* A tokenizer (tokenizer.json's shape) that this type's texts need, for models made from scratch; NULL: none. owner: caller. */
    apus_node *(*tokenizer)(void *dataset);
} apus_dataset_ops;

/* ------------------------------------------------------------ small helpers for dataset plugins */

/* A plain string that is not empty, or NULL. */
static inline const char *apus_row_text(const apus_node_api *node, const apus_node *row, const char *key)
{
    const char *s = node->as_string(node->get(row, key), NULL);
    return s != NULL && s[0] != '\0' ? s : NULL;
}

/* Append {role, content} to a list; content NULL: nothing. */
static inline void apus_add_message(const apus_node_api *node, apus_node *list, const char *role, const char *content)
{
    if (content == NULL)
        return;
    apus_node *m = node->make_map();
    (void)node->set(m, "role", node->make_string(role, (size_t)-1));
    (void)node->set(m, "content", node->make_string(content, (size_t)-1));
    (void)node->append(list, m);
}

/* "row at file:line: key 'x' …" for a row that is wrong. */
static inline apus_status apus_bad_row(const apus_node_api *node, const apus_node *row, const char *key, const char *expected, apus_error *err)
{
    char where[256];
    return apus_fail(err, APUS_E_INVALID, "%s: key '%s': expected %s", node->where(row, where, sizeof where), key, expected);
}

#ifdef __cplusplus
}
#endif
#endif
