/*
 * tools/apus/prompts.c: `apus generate --prompts`: the requests of a file, answered many at a time. The file is read twice: all of it
 * is checked before anything is answered, then a request is read when it is asked, and kept until its answer is written.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <apus/answer.h>

#include "answer.h"
#include "config/config.h"
#include "data/rows.h"
#include "io/io.h"
#include "model/session.h"
#include "module/module.h"
#include "value/node.h"

#define PARAM .size = sizeof(apus_param)
#define UNSET .flags = APUS_PARAM_NULLABLE

/* Keys of a line. What the sampler takes is checked by the sampler. */
static const apus_param line_params[] = {
    {PARAM, .name = "id", .type = APUS_PARAM_NODE, UNSET},
    {PARAM, .name = "prompt", .type = APUS_PARAM_STRING, UNSET, .aliases = "text"},
    {PARAM, .name = "messages", .type = APUS_PARAM_NODE, UNSET},
    {PARAM, .name = "tools", .type = APUS_PARAM_NODE, UNSET},
    {PARAM, .name = "input_ids", .type = APUS_PARAM_LIST, .item = APUS_PARAM_INT, UNSET, .aliases = "ids prompt_ids"},
    {PARAM, .name = "max_tokens", .type = APUS_PARAM_INT, UNSET, .min = 1, .max = 1e9, .aliases = "max_new_tokens max_length"},
    {PARAM, .name = "stop", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING, UNSET},
    {PARAM, .name = "seed", .type = APUS_PARAM_INT, UNSET, .min = 0, .max = 9e18},
    {PARAM, .name = "temperature", .type = APUS_PARAM_FLOAT, UNSET},
    {PARAM, .name = "top_k", .type = APUS_PARAM_INT, UNSET},
    {PARAM, .name = "top_p", .type = APUS_PARAM_FLOAT, UNSET},
    {PARAM, .name = "min_p", .type = APUS_PARAM_FLOAT, UNSET},
    {PARAM, .name = "repetition_penalty", .type = APUS_PARAM_FLOAT, UNSET},
};

/* A request that is asked and not told. */
typedef struct asked {
    apus_node *line;    /* as read: where it stands; NULL: it is not there any more */
    apus_node *request; /* validated; NULL: it is not valid any more */
} asked;

typedef struct prompts {
    const apus_answer_arguments *arguments;
    apus_rows *rows;
    int64_t ahead;
    asked *asked;        /* [ahead]: request i at i % ahead */
    apus_node *sampling; /* of the command line */
    apus_node *own;      /* of the line being asked */
    int32_t *ids;
    FILE *out;
    int64_t count, tokens;
    int code; /* of the first that could not be answered */
} prompts;

static int given(const apus_node *n)
{
    return apus_nodes()->kind(n) != APUS_NODE_NULL;
}

/* The message with its place in the file. A line is read by itself: inside it places begin with ":1:". */
static void place(const apus_node *line, apus_error *err)
{
    char where[1100], message[sizeof err->message];
    apus_nodes()->where(line, where, sizeof where);
    memcpy(message, err->message, sizeof message);
    const char *end = strrchr(where, ':');
    if (strncmp(message, ":1:", 3) == 0 && end != NULL)
        (void)snprintf(err->message, sizeof err->message, "%.*s%.1000s", (int)(end - where), where, message + 2);
    else if (strstr(message, where) == NULL)
        (void)snprintf(err->message, sizeof err->message, "%.500s: %.1000s", where, message);
}

/* owner of *request: caller. */
static apus_status check_line(const apus_node *line, apus_node **request, apus_error *err)
{
    const apus_node_api *node = apus_nodes();
    apus_node *r = apus_params_validate(line, line_params, sizeof line_params / sizeof line_params[0], "", "a request", err);
    if (r == NULL) {
        place(line, err);
        return APUS_E_INVALID;
    }
    const apus_node *messages = node->get(r, "messages");
    apus_status st = APUS_OK;
    if (given(node->get(r, "prompt")) + given(messages) + given(node->get(r, "input_ids")) != 1)
        st = apus_fail(err, APUS_E_INVALID, "a request has one of prompt, messages, input_ids");
    else if (given(messages) && node->kind(messages) != APUS_NODE_LIST)
        st = apus_fail(err, APUS_E_INVALID, "messages must be a list");
    if (st != APUS_OK) {
        place(line, err);
        node->release(r);
        return st;
    }
    *request = r;
    return APUS_OK;
}

/* The command line's, with what the line says otherwise. owner: p. */
static const apus_node *sampling_of(prompts *p, const apus_node *request)
{
    const apus_node_api *node = apus_nodes();
    node->release(p->own);
    p->own = node->copy(p->sampling);
    apus_node *sampler = node->copy(node->get(p->sampling, "sampler"));
    static const char *const keys[] = {"max_tokens", "stop"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (given(node->get(request, keys[i])))
            (void)node->set(p->own, keys[i], node->copy(node->get(request, keys[i])));
    for (int i = 0; i < APUS_N_SAMPLING; i++)
        if (given(node->get(request, apus_sampling_names[i])))
            (void)node->set(sampler, apus_sampling_names[i], node->copy(node->get(request, apus_sampling_names[i])));
    (void)node->set(p->own, "sampler", sampler);
    return p->own;
}

static apus_status ask(void *context, int64_t i, apus_generate_request *q, apus_error *err)
{
    prompts *p = context;
    const apus_node_api *node = apus_nodes();
    asked *a = &p->asked[i % p->ahead];
    apus_status st = apus_rows_next(p->rows, &a->line, err);
    if (st == APUS_OK && a->line == NULL)
        st = apus_fail(err, APUS_E_INVALID, "%s: it has changed: there is no request %lld any more", p->arguments->prompts, (long long)i);
    if (st == APUS_OK)
        st = check_line(a->line, &a->request, err);
    if (st != APUS_OK)
        return st;
    const apus_node *r = a->request, *ids = node->get(r, "input_ids");
    q->prompt = node->as_string(node->get(r, "prompt"), NULL);
    q->messages = given(node->get(r, "messages")) ? node->get(r, "messages") : NULL;
    q->tools = given(node->get(r, "tools")) ? node->get(r, "tools") : NULL;
    q->sampling = sampling_of(p, r);
    q->seed = (uint64_t)node->as_int(node->get(r, "seed"), p->arguments->seed_number);
    q->index = given(node->get(r, "seed")) ? 0 : (uint32_t)i; /* a line with a seed of its own is answered as if it were alone */
    q->logprobs = p->arguments->json;
    if (!given(ids))
        return APUS_OK;
    free(p->ids);
    q->n_ids = node->length(ids);
    q->ids = p->ids = malloc((q->n_ids + 1) * sizeof *p->ids);
    if (p->ids == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (size_t k = 0; k < q->n_ids; k++) {
        const int64_t id = node->as_int(node->at(ids, k), -1);
        p->ids[k] = id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
    }
    return APUS_OK;
}

static void say_failure(prompts *p, const asked *a, apus_status status, const apus_error *why, apus_node *line)
{
    const apus_node_api *node = apus_nodes();
    apus_error full = {.message = "out of memory", .hint = ""};
    if (why != NULL)
        full = *why;
    place(a->line, &full);
    const int code = apus_exit(status, &full);
    p->code = p->code != 0 ? p->code : code;
    (void)node->set(line, "error", node->make_string(full.message, (size_t)-1));
}

static void forget(asked *a)
{
    apus_nodes()->release(a->line);
    apus_nodes()->release(a->request);
    *a = (asked){NULL, NULL};
}

static apus_status answered(void *context, int64_t i, const apus_node *answer, apus_status status, const apus_error *why, apus_error *err)
{
    static const char *const kept[] = {"text", "ids", "finish_reason", "prompt_ids", "logprobs"};
    prompts *p = context;
    const apus_node_api *node = apus_nodes();
    asked *a = &p->asked[i % p->ahead];
    const apus_node *id = node->get(a->request, "id");
    apus_node *line = node->make_map();
    (void)node->set(line, "id", given(id) ? node->copy(id) : node->make_int(i));
    if (status != APUS_OK)
        say_failure(p, a, status, why, line);
    forget(a);
    for (size_t k = 0; status == APUS_OK && k < (p->arguments->json ? 5u : 3u); k++)
        (void)node->set(line, kept[k], node->copy(node->get(answer, kept[k])));
    p->tokens += (int64_t)node->length(node->get(answer, "ids"));
    size_t n = 0;
    char *text = node->write_json(line, 0, &n);
    node->release(line);
    const int good = text != NULL && fwrite(text, 1, n, p->out) == n && fputc('\n', p->out) != EOF && fflush(p->out) == 0;
    apus_host_table()->free(text);
    return good ? APUS_OK : apus_fail(err, APUS_E_IO, "%s: %s", p->arguments->out != NULL ? p->arguments->out : "standard output", strerror(errno));
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static apus_status answer_all(prompts *p, apus_generator *g, apus_error *err)
{
    const apus_questions all = {.count = p->count, .ahead = p->ahead, .context = p, .ask = ask, .answered = answered};
    const double start = now();
    const apus_status st = apus_answer_all(apus_host_table(), apus_session_table(), g, &all, err);
    const double seconds = now() - start;
    if (st == APUS_OK)
        fprintf(stderr, "%lld requests, %lld tokens in %.1f s: %.1f tokens/s\n", (long long)p->count, (long long)p->tokens, seconds,
                (double)p->tokens / seconds);
    return st;
}

/* What is written appears under its name when it is whole. */
static apus_status into_file(prompts *p, apus_generator *g, apus_error *err)
{
    const char *out = p->arguments->out;
    p->out = stdout;
    if (out == NULL)
        return answer_all(p, g, err);
    char path[4400];
    if ((size_t)snprintf(path, sizeof path, "%s.tmp", out) >= sizeof path)
        return apus_fail(err, APUS_E_IO, "%.80s…: the path is too long", out);
    apus_status st = apus_file_may_be(out, err);
    p->out = st == APUS_OK ? fopen(path, "w") : NULL;
    if (p->out == NULL)
        return st != APUS_OK ? st : apus_fail(err, APUS_E_IO, "%s: cannot be written: %s", out, strerror(errno));
    st = answer_all(p, g, err);
    if (fclose(p->out) != 0 && st == APUS_OK)
        st = apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    if (st == APUS_OK && rename(path, out) != 0)
        st = apus_fail(err, APUS_E_IO, "%s: %s", out, strerror(errno));
    return st;
}

static apus_status check_lines(const char *path, int64_t *count, apus_error *err)
{
    const apus_node_api *node = apus_nodes();
    apus_rows *rows = NULL;
    apus_node *line = NULL, *request = NULL;
    struct stat is;
    if (stat(path, &is) == 0 && !S_ISREG(is.st_mode) && !S_ISDIR(is.st_mode))
        return apus_fail(err, APUS_E_INVALID, "%s: requests are read twice, which takes a file", path);
    apus_status st = apus_rows_open(path, &rows, err);
    while (st == APUS_OK && (st = apus_rows_next(rows, &line, err)) == APUS_OK && line != NULL) {
        st = check_line(line, &request, err);
        node->release(line);
        node->release(request);
        request = NULL;
        ++*count;
    }
    apus_rows_close(rows);
    return st == APUS_OK && *count == 0 ? apus_fail(err, APUS_E_INVALID, "%s: there are no requests in it", path) : st;
}

/* What the command line says of it is told once, not of each request. */
static apus_status check_sampler(const apus_node *sampling, apus_error *err)
{
    const apus_component *c;
    apus_node *params;
    const apus_status st = apus_component_resolve("sampler", apus_nodes()->get(sampling, "sampler"), NULL, &c, &params, err);
    if (st == APUS_OK)
        apus_nodes()->release(params);
    return st;
}

int apus_answer_prompts(const apus_answer_arguments *a)
{
    const apus_node_api *node = apus_nodes();
    apus_error err = {0};
    apus_device *device = NULL;
    apus_generator *g = NULL;
    prompts p = {.arguments = a, .ahead = 4 * a->together};
    apus_status st = check_lines(a->prompts, &p.count, &err);
    if (st == APUS_OK)
        st = apus_rows_open(a->prompts, &p.rows, &err);
    if (st == APUS_OK && (p.asked = calloc((size_t)p.ahead, sizeof *p.asked)) == NULL)
        st = apus_fail(&err, APUS_E_MEMORY, "out of memory");
    int code = apus_exit(st, &err);
    if (code == 0)
        code = apus_answer_open(a, a->together, &device, &g);
    if (code == 0) {
        p.sampling = apus_answer_sampling(a, apus_generator_model(g));
        st = check_sampler(p.sampling, &err);
        if (st == APUS_OK)
            st = into_file(&p, g, &err);
        code = apus_exit(st, &err);
        code = code != 0 ? code : p.code;
        apus_generator_free(g);
        apus_device_close(device);
    }
    for (int64_t i = 0; p.asked != NULL && i < p.ahead; i++)
        forget(&p.asked[i]);
    free(p.asked);
    apus_rows_close(p.rows);
    node->release(p.sampling);
    node->release(p.own);
    free(p.ids);
    return code;
}
