/* tools/apus/answer.c: apus generate, chat and score: a model that answers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apus.h"
#include "io/io.h"
#include "model/generate.h"
#include "module/module.h"
#include "value/node.h"

typedef struct answer_arguments {
    apus_model_arguments model;
    const char *prompt, *messages, *tools, *max_tokens, *seed, *stop, *sampling[5];
    int json, parse_special;
} answer_arguments;

static const char *const sampling_names[5] = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"};

/* {sampler: {type: standard, …}, max_tokens, stop}. */
static apus_node *sampling_of(const answer_arguments *a)
{
    const apus_node_api *node = apus_nodes();
    apus_node *s = node->make_map(), *sampler = node->make_map(), *stop = node->make_list();
    (void)node->set(sampler, "type", node->make_string("standard", 8));
    for (int i = 0; i < 5; i++) {
        if (a->sampling[i] == NULL)
            continue;
        apus_error err;
        apus_node *v = node->parse_json(a->sampling[i], strlen(a->sampling[i]), sampling_names[i], &err);
        (void)node->set(sampler, sampling_names[i], v != NULL ? v : node->make_string(a->sampling[i], (size_t)-1));
    }
    if (a->stop != NULL)
        (void)node->append(stop, node->make_string(a->stop, (size_t)-1));
    (void)node->set(s, "sampler", sampler);
    (void)node->set(s, "stop", stop);
    (void)node->set(s, "max_tokens", node->make_int(a->max_tokens != NULL ? strtoll(a->max_tokens, NULL, 10) : 512));
    return s;
}

static int read_arguments(const apus_verb *verb, int argc, char **argv, answer_arguments *a, int chat)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    const apus_option options[] = {{"adapter", &a->model.adapter, NULL},   {"base", &a->model.base, NULL},      {"template", &a->model.template_file, NULL},
                                   {"backend", &a->model.backend, NULL},   {"threads", &a->model.threads, NULL}, {"max-tokens", &a->max_tokens, NULL},
                                   {"seed", &a->seed, NULL},               {"stop", &a->stop, NULL},            {"temperature", &a->sampling[0], NULL},
                                   {"top-k", &a->sampling[1], NULL},       {"top-p", &a->sampling[2], NULL},    {"min-p", &a->sampling[3], NULL},
                                   {"repetition-penalty", &a->sampling[4], NULL}, {"parse-special", NULL, &a->parse_special},
                                   {"tools", &a->tools, NULL},             {"json", NULL, &a->json},            {"prompt", &a->prompt, NULL},
                                   {"messages", &a->messages, NULL}};
    const size_t n_options = sizeof options / sizeof options[0] - (chat ? 3 : 0);
    const int n = apus_options(verb, argc, argv, options, n_options, rest);
    int code = n == -2 ? -2 : n < 0 ? APUS_EXIT_USAGE : n != 1 ? apus_usage(verb, "which MODEL?") : 0;
    a->model.model = n == 1 ? rest[0] : NULL;
    free(rest);
    if (code == 0 && a->max_tokens != NULL && strtoll(a->max_tokens, NULL, 10) < 1)
        code = apus_usage(verb, "--max-tokens takes a number from 1 on");
    return code;
}

static int print_piece(void *context, const char *text, size_t length)
{
    (void)context;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 0;
}

static int open_generator(const answer_arguments *a, apus_device **device, apus_generator **g)
{
    apus_model *m = NULL;
    apus_error err = {0};
    int code = apus_bring_up();
    if (code == 0)
        code = apus_open_model(&a->model, 1, 1, device, &m);
    if (code != 0)
        return code;
    *g = apus_generator_new(m, a->parse_special, &err);
    if (*g == NULL) {
        apus_device_close(*device);
        return apus_exit(APUS_E_MEMORY, &err);
    }
    return 0;
}

static int do_generate(int argc, char **argv)
{
    const apus_node_api *node = apus_nodes();
    answer_arguments a = {0};
    int code = read_arguments(&apus_verb_generate, argc, argv, &a, 0);
    if (code != 0)
        return code == -2 ? 0 : code;
    if ((a.prompt != NULL) == (a.messages != NULL))
        return apus_usage(&apus_verb_generate, "give --prompt TEXT or --messages FILE");
    apus_device *device = NULL;
    apus_generator *g = NULL;
    code = open_generator(&a, &device, &g);
    if (code != 0)
        return code;
    apus_node *messages = NULL, *tools = NULL, *answer = NULL, *sampling = sampling_of(&a);
    if (a.messages != NULL && (messages = apus_read_json(a.messages)) == NULL)
        code = 1;
    if (code == 0 && a.tools != NULL && (tools = apus_read_json(a.tools)) == NULL)
        code = 1;
    if (code == 0) {
        apus_error err = {0};
        const apus_generate_request request = {.size = sizeof request, .messages = messages, .tools = tools, .prompt = a.prompt, .sampling = sampling,
                                               .seed = a.seed != NULL ? strtoull(a.seed, NULL, 10) : 42, .piece = a.json ? NULL : print_piece};
        code = apus_exit(apus_generator_answer(g, &request, &answer, &err), &err);
    }
    if (code == 0 && a.json)
        apus_print_json(answer, 0);
    else if (code == 0)
        fputc('\n', stdout), node->release(answer);
    node->release(messages);
    node->release(tools);
    node->release(sampling);
    apus_generator_free(g);
    apus_device_close(device);
    return code;
}

static void add_message(apus_node *messages, const char *role, const char *content)
{
    const apus_node_api *node = apus_nodes();
    apus_node *m = node->make_map();
    (void)node->set(m, "role", node->make_string(role, (size_t)-1));
    (void)node->set(m, "content", node->make_string(content, (size_t)-1));
    (void)node->append(messages, m);
}

static int do_chat(int argc, char **argv)
{
    const apus_node_api *node = apus_nodes();
    answer_arguments a = {0};
    int code = read_arguments(&apus_verb_chat, argc, argv, &a, 1);
    if (code != 0)
        return code == -2 ? 0 : code;
    apus_device *device = NULL;
    apus_generator *g = NULL;
    code = open_generator(&a, &device, &g);
    if (code != 0)
        return code;
    apus_node *messages = node->make_list(), *sampling = sampling_of(&a);
    char *line = NULL;
    size_t capacity = 0;
    fprintf(stderr, "Talk to %s. An empty line is ignored; /new begins anew; end with Ctrl-D.\n", a.model.model);
    for (uint64_t turn = 0; code == 0; turn++) {
        fputs("> ", stderr);
        const ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0)
            break;
        while (n > 0 && line[strlen(line) > 0 ? strlen(line) - 1 : 0] == '\n')
            line[strlen(line) - 1] = '\0';
        if (line[0] == '\0')
            continue;
        if (strcmp(line, "/new") == 0) {
            node->release(messages);
            messages = node->make_list();
            continue;
        }
        add_message(messages, "user", line);
        apus_error err = {0};
        apus_node *answer = NULL;
        const apus_generate_request request = {.size = sizeof request, .messages = messages, .sampling = sampling,
                                               .seed = a.seed != NULL ? strtoull(a.seed, NULL, 10) : 42, .index = turn, .piece = print_piece};
        code = apus_exit(apus_generator_answer(g, &request, &answer, &err), &err);
        fputc('\n', stdout);
        if (code == 0)
            add_message(messages, "assistant", node->as_string(node->get(answer, "text"), NULL));
        node->release(answer);
    }
    free(line);
    node->release(messages);
    node->release(sampling);
    apus_generator_free(g);
    apus_device_close(device);
    return code;
}

/* ---------------------------------------------------------------- score */

/* A float32 matrix as NumPy's .npy, version 1.0. */
static apus_status write_npy(const char *path, const float *values, size_t rows, size_t columns, apus_error *err)
{
    char header[128];
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    const int n = snprintf(header + 10, sizeof header - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, columns);
    memset(header + 10 + n, ' ', sizeof header - 10 - (size_t)n);
    header[127] = '\n';
    header[8] = (char)(sizeof header - 10);
    header[9] = 0;
    const size_t bytes = rows * columns * sizeof *values;
    char *all = malloc(sizeof header + bytes);
    if (all == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    memcpy(all, header, sizeof header);
    memcpy(all + sizeof header, values, bytes);
    const apus_status st = apus_file_write(path, all, sizeof header + bytes, err);
    free(all);
    return st;
}

static int parse_ids(const char *text, int32_t **ids, size_t *n)
{
    *ids = malloc((strlen(text) / 2 + 2) * sizeof **ids);
    *n = 0;
    for (const char *p = text; *ids != NULL && *p != '\0';) {
        char *end;
        const long v = strtol(p, &end, 10);
        if (end == p || (*end != ',' && *end != '\0') || v < 0 || v > INT32_MAX)
            return 0;
        (*ids)[(*n)++] = (int32_t)v;
        p = *end == ',' ? end + 1 : end;
    }
    return *ids != NULL && *n > 0;
}

static apus_node *describe_score(const int32_t *ids, size_t n, const double *logprobs)
{
    const apus_node_api *node = apus_nodes();
    apus_node *out = node->make_map(), *id_list = node->make_list(), *logprob_list = node->make_list();
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        (void)node->append(id_list, node->make_int(ids[i]));
    for (size_t i = 0; i + 1 < n; i++) {
        sum += logprobs[i];
        (void)node->append(logprob_list, node->make_float(logprobs[i]));
    }
    const double nll = n > 1 ? -sum / (double)(n - 1) : NAN;
    (void)node->set(out, "ids", id_list);
    (void)node->set(out, "logprobs", logprob_list);
    (void)node->set(out, "nll", n > 1 ? node->make_float(nll) : node->make_null());
    (void)node->set(out, "perplexity", n > 1 ? node->make_float(exp(nll)) : node->make_null());
    return out;
}

static int do_score(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *text = NULL, *id_text = NULL, *logits_path = NULL;
    apus_model_arguments a = {0};
    int json = 0;
    const apus_option options[] = {{"text", &text, NULL},       {"ids", &id_text, NULL},        {"adapter", &a.adapter, NULL}, {"base", &a.base, NULL},
                                   {"logits", &logits_path, NULL}, {"backend", &a.backend, NULL}, {"threads", &a.threads, NULL}, {"json", NULL, &json}};
    const int n_rest = apus_options(&apus_verb_score, argc, argv, options, 8, rest);
    a.model = n_rest == 1 ? rest[0] : NULL;
    free(rest);
    if (n_rest != 1)
        return n_rest == -2 ? 0 : n_rest < 0 ? APUS_EXIT_USAGE : apus_usage(&apus_verb_score, "which MODEL?");
    if ((text != NULL) == (id_text != NULL))
        return apus_usage(&apus_verb_score, "give --text TEXT or --ids 1,2,3");
    int32_t *ids = NULL;
    size_t n = 0;
    if (id_text != NULL && !parse_ids(id_text, &ids, &n)) {
        free(ids);
        return apus_usage(&apus_verb_score, "--ids takes numbers between commas: 1,2,3");
    }
    apus_device *device = NULL;
    apus_model *m = NULL;
    apus_tokens tokens = {0};
    apus_error err = {0};
    int code = apus_bring_up();
    if (code == 0)
        code = apus_open_model(&a, 1, 1, &device, &m);
    if (code != 0) {
        free(ids);
        return code;
    }
    apus_status st = APUS_OK;
    if (text != NULL) {
        st = apus_model_text(m) != NULL ? apus_text_encode(apus_model_text(m), text, strlen(text), APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, &tokens, &err)
                                        : apus_fail(&err, APUS_E_INVALID, "%s: there is no tokenizer: give --ids", a.model);
        n = tokens.n;
    }
    const int32_t *scored = text != NULL ? tokens.ids : ids;
    const size_t vocab = (size_t)apus_model_get_facts(m)->vocab;
    double *logprobs = malloc((n + 1) * sizeof *logprobs);
    float *logits = logits_path != NULL ? malloc((n + 1) * vocab * sizeof *logits) : NULL;
    if (logprobs == NULL || (logits_path != NULL && logits == NULL))
        st = apus_fail(&err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = apus_model_score(m, scored, n, logprobs, logits, &err);
    if (st == APUS_OK && logits != NULL)
        st = write_npy(logits_path, logits, n, vocab, &err);
    if (st == APUS_OK)
        apus_print_json(describe_score(scored, n, logprobs), 0);
    free(logprobs);
    free(logits);
    free(ids);
    apus_host_table()->free(tokens.ids);
    apus_host_table()->free(tokens.begin);
    apus_model_close(m);
    apus_device_close(device);
    return apus_exit(st, &err);
}

#define MODEL_OPTIONS                                                                                               \
    "  MODEL              Hugging Face folder, GGUF file, a run's stage (runs/x:stage), or an adapter with --base\n" \
    "  --adapter DIR      answer with this adapter on top     --base MODEL   MODEL is an adapter of this one\n"      \
    "  --backend NAME     cpu (default), ref, …               --threads N    default: all cores\n"
#define SAMPLING_OPTIONS                                                                                            \
    "  --max-tokens N     default 512                         --seed S       default 42\n"                          \
    "  --temperature X    default 0: greedy                   --top-k N  --top-p X  --min-p X  --repetition-penalty X\n" \
    "  --stop TEXT        ends the answer                     --parse-special  special-token strings in messages count\n" \
    "  --template FILE    chat template instead of the model's\n"

const apus_verb apus_verb_generate = {"generate", "one answer", "generate MODEL --prompt TEXT | --messages F.json [--tools F.json] [--json] …\n\n"
                                      "--prompt is continued as raw text; --messages go through the chat template.\n\n" MODEL_OPTIONS SAMPLING_OPTIONS
                                      "  --json             {text, prompt_ids, ids, logprobs, finish_reason}\n", do_generate};
const apus_verb apus_verb_chat = {"chat", "talk to a model", "chat MODEL …\n\n" MODEL_OPTIONS SAMPLING_OPTIONS, do_chat};
const apus_verb apus_verb_score = {"score", "log-probabilities of a text", "score MODEL --text T | --ids 1,2,3 [--logits OUT.npy] …\n\n"
                                   "JSON: ids, logprobs (of each next token), nll (mean), perplexity.\n\n" MODEL_OPTIONS
                                   "  --logits OUT.npy   the float32 [tokens, vocabulary] logits, for NumPy\n", do_score};
