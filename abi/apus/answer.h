/*
 * apus/answer.h: what is written on top of a generator: an answer as a node, many questions answered in their order, the rows of a
 * dataset as questions.
 */
#ifndef APUS_ANSWER_H
#define APUS_ANSWER_H

#include <string.h>
#include <time.h>

#include <apus/session.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline apus_node *apus_answer_ids(const apus_node_api *node, const int32_t *ids, size_t n)
{
    apus_node *list = node->make_list();
    for (size_t i = 0; i < n; i++)
        (void)node->append(list, node->make_int(ids[i]));
    return list;
}

/* {text, prompt_ids, ids, logprobs (if there are any), finish_reason}. owner: caller. */
static inline apus_node *apus_answer_node(const apus_node_api *node, const apus_answer *a)
{
    apus_node *out = node->make_map();
    (void)node->set(out, "text", node->make_string(a->text, a->length));
    (void)node->set(out, "prompt_ids", apus_answer_ids(node, a->prompt_ids, a->n_prompt));
    (void)node->set(out, "ids", apus_answer_ids(node, a->ids, a->n_ids));
    if (a->logprobs != NULL) {
        apus_node *list = node->make_list();
        for (size_t i = 0; i < a->n_ids; i++)
            (void)node->append(list, node->make_float(a->logprobs[i]));
        (void)node->set(out, "logprobs", list);
    }
    (void)node->set(out, "finish_reason", node->make_string(a->finish_reason, (size_t)-1));
    return out;
}

/* ------------------------------------------------------------ many questions */

/* Where questions come from and answers go. */
typedef struct apus_questions {
    int64_t count;
    int64_t ahead; /* how many are asked before the first of them is told: memory against idle rows; some times `parallel` */
    void *context;
    /* Fill request (zeroed, size set) for question i; what it points to is released by the next call, or by the owner of context.
     * piece and done are not used. An error here is told to answered. */
    apus_status (*ask)(void *context, int64_t i, apus_generate_request *request, apus_error *err);
    /* In the order of i. answer: as apus_answer_node, taken by neither; NULL: status and why say what went wrong with this one. An error
     * ends all. */
    apus_status (*answered)(void *context, int64_t i, const apus_node *answer, apus_status status, const apus_error *why, apus_error *err);
} apus_questions;

typedef struct apus_question {
    const apus_host *host;
    apus_node *answer;
    apus_error *why;
    uint64_t ticket;
    apus_status status;
    int done;
} apus_question;

static inline void apus_question_failed(apus_question *q, apus_status status, const apus_error *why)
{
    q->done = 1;
    q->status = status;
    q->why = (apus_error *)q->host->alloc(sizeof *q->why);
    if (q->why != NULL)
        *q->why = *why;
}

static inline void apus_question_done(void *context, const apus_answer *answer)
{
    apus_question *q = (apus_question *)context;
    if (answer->status != APUS_OK) {
        apus_question_failed(q, answer->status, answer->error);
        return;
    }
    q->done = 1;
    q->answer = apus_answer_node(q->host->node, answer);
}

/* Ask them all, many at a time; the answers are told in their order. Requests of others in g go on meanwhile. */
static inline apus_status apus_answer_all(const apus_host *host, const apus_session_api *session, apus_generator *g, const apus_questions *all,
                                          apus_error *err)
{
    const int64_t ahead = all->ahead > 0 ? all->ahead : 1;
    apus_question *ring = (apus_question *)host->alloc((size_t)ahead * sizeof *ring); /* question i at i % ahead */
    apus_error *why = (apus_error *)host->alloc(sizeof *why);
    apus_status st = ring != NULL && why != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    int64_t asked = 0, told = 0;
    while (st == APUS_OK && told < all->count) {
        for (; asked < all->count && asked < told + ahead; asked++) {
            apus_question *q = &ring[asked % ahead];
            apus_generate_request request;
            memset(q, 0, sizeof *q);
            memset(&request, 0, sizeof request);
            memset(why, 0, sizeof *why);
            q->host = host;
            request.size = sizeof request;
            apus_status one = all->ask(all->context, asked, &request, why);
            request.piece = NULL;
            request.done = apus_question_done;
            request.context = q;
            if (one == APUS_OK)
                one = session->generator_submit(g, &request, &q->ticket, why);
            if (one != APUS_OK)
                apus_question_failed(q, one, why);
        }
        if (!ring[told % ahead].done)
            st = session->generator_step(g, NULL, err);
        for (; st == APUS_OK && told < asked && ring[told % ahead].done; told++) {
            apus_question *q = &ring[told % ahead];
            st = all->answered(all->context, told, q->answer, q->status, q->why, err);
            host->node->release(q->answer);
            host->free(q->why);
        }
    }
    for (; told < asked; told++) {
        apus_question *q = &ring[told % ahead];
        if (!q->done)
            session->generator_cancel(g, q->ticket);
        host->node->release(q->answer);
        host->free(q->why);
    }
    host->free(why);
    host->free(ring);
    return st;
}

/* ------------------------------------------------------------ rows of a dataset */

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

/* Rows as questions, with the same sampling for all. */
typedef struct apus_row_questions {
    const apus_host *host;
    const apus_session_api *session;
    apus_generator *g;
    void *rows;
    int64_t count;
    int64_t parallel; /* the generator's */
    const apus_node *sampling;
    uint64_t seed;
    void *context;
    /* In the order of the rows; row and answer: owner: the caller of this. */
    apus_status (*answered)(void *context, int64_t i, const apus_node *row, const apus_node *answer, apus_error *err);
    apus_node *example, *messages; /* of the row being asked */
} apus_row_questions;

static inline apus_status apus_ask_row(void *context, int64_t i, apus_generate_request *request, apus_error *err)
{
    apus_row_questions *q = (apus_row_questions *)context;
    const apus_node_api *node = q->host->node;
    apus_node *row = NULL;
    node->release(q->example);
    node->release(q->messages);
    q->example = q->messages = NULL;
    const apus_status st = q->session->rows_example(q->rows, i, &row, &q->example, err);
    node->release(row);
    if (st != APUS_OK)
        return st;
    q->messages = apus_prompt_messages(node, q->example);
    request->messages = q->messages;
    request->tools = node->get(q->example, "tools");
    request->sampling = q->sampling;
    request->seed = q->seed;
    request->index = (uint32_t)i;
    if (q->messages == NULL)
        request->prompt = node->as_string(node->get(q->example, "prompt"), NULL);
    if (q->messages == NULL && request->prompt == NULL)
        request->prompt = node->as_string(node->get(q->example, "text"), NULL);
    return APUS_OK;
}

static inline apus_status apus_row_answered(void *context, int64_t i, const apus_node *answer, apus_status status, const apus_error *why,
                                            apus_error *err)
{
    apus_row_questions *q = (apus_row_questions *)context;
    const apus_node_api *node = q->host->node;
    apus_node *row = NULL, *example = NULL;
    if (status != APUS_OK) {
        (void)apus_fail(err, status, "row %lld: %s", (long long)i, why != NULL ? why->message : "out of memory");
        return why != NULL && why->hint[0] != '\0' ? apus_hint(err, status, "%s", why->hint) : status;
    }
    apus_status st = q->session->rows_example(q->rows, i, &row, &example, err);
    if (st == APUS_OK)
        st = q->answered(q->context, i, row, answer, err);
    node->release(row);
    node->release(example);
    return st;
}

/* Answer the rows 0 … count-1. */
static inline apus_status apus_answer_rows(apus_row_questions *q, apus_error *err)
{
    apus_questions all;
    memset(&all, 0, sizeof all);
    all.count = q->count;
    all.ahead = 4 * (q->parallel > 0 ? q->parallel : 1);
    all.context = q;
    all.ask = apus_ask_row;
    all.answered = apus_row_answered;
    const apus_status st = apus_answer_all(q->host, q->session, q->g, &all, err);
    q->host->node->release(q->example);
    q->host->node->release(q->messages);
    q->example = q->messages = NULL;
    return st;
}

/* For a stage with the parameters dataset, parallel, limit and a generator's: opens that and the rows it is asked, up to `limit` of them.
 * q: filled anew; answered and context are the caller's to set. apus_close_rows also after a failure. */
static inline apus_status apus_open_rows(apus_row_questions *q, const apus_host *host, const apus_session_api *session, const apus_node *params,
                                         apus_stage_context *stage, apus_error *err)
{
    const apus_node_api *node = host->node;
    const int64_t limit = node->as_int(node->get(params, "limit"), 0);
    memset(q, 0, sizeof *q);
    q->host = host;
    q->session = session;
    q->sampling = params;
    q->seed = session->seed(stage);
    q->parallel = node->as_int(node->get(params, "parallel"), 1);
    apus_status st = session->generator_open(stage, params, &q->g, err);
    if (st == APUS_OK)
        st = session->rows_open(stage, node->get(params, "dataset"), &q->rows, &q->count, err);
    if (limit > 0 && limit < q->count)
        q->count = limit;
    return st;
}

static inline void apus_close_rows(apus_row_questions *q)
{
    if (q->rows != NULL)
        q->session->rows_close(q->rows);
    if (q->g != NULL)
        q->session->generator_close(q->g);
}

/* ------------------------------------------------------------ what that will take */

static inline double apus_answer_clock(void)
{
    struct timespec t;
    (void)timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline apus_status apus_answer_ignored(void *context, int64_t i, const apus_node *row, const apus_node *answer, apus_error *err)
{
    (void)context;
    (void)i;
    (void)row;
    (void)answer;
    (void)err;
    return APUS_OK;
}

/* For a stage's `plan`: some rows are asked for a few tokens, then their prompts, which are known by now, for a few more. Into costs:
 * answers, max_tokens, at_most, packed, and the seconds of `passes` over all rows if every answer is as long as it may be. */
static inline apus_status apus_answer_plan(apus_row_questions *q, int64_t passes, apus_node *costs, apus_error *err)
{
    enum { APUS_FEW_TOKENS = 8 };
    const apus_node_api *node = q->host->node;
    apus_row_questions some = *q;
    const int64_t together = q->parallel > 0 ? q->parallel : 1, most = node->as_int(node->get(q->sampling, "max_tokens"), 512);
    double seconds[2] = {0.0, 0.0};
    apus_status st = APUS_OK;
    some.count = q->count < together ? q->count : together;
    some.answered = apus_answer_ignored;
    for (int k = 0; k < 2 && st == APUS_OK && q->count > 0; k++) {
        apus_node *sampling = node->copy(q->sampling);
        (void)node->set(sampling, "max_tokens", node->make_int(k == 0 ? 1 : APUS_FEW_TOKENS));
        some.sampling = sampling;
        const double began = apus_answer_clock();
        st = apus_answer_rows(&some, err);
        seconds[k] = apus_answer_clock() - began;
        node->release(sampling);
    }
    if (st != APUS_OK)
        return st;
    const double rounds = (double)passes * (double)q->count / (double)(some.count > 0 ? some.count : 1);
    (void)node->set(costs, "answers", node->make_int(passes * q->count));
    (void)node->set(costs, "max_tokens", node->make_int(most));
    (void)node->set(costs, "seconds", node->make_float(rounds * (seconds[0] + seconds[1] / APUS_FEW_TOKENS * (double)most)));
    (void)node->set(costs, "at_most", node->make_bool(1));
    q->session->generator_plan(q->g, costs);
    return APUS_OK;
}

#ifdef __cplusplus
}
#endif
#endif
