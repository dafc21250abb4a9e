/* tools/apus/answer.c: apus generate and chat: a model that answers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "model/sampling.h"
#include "module/module.h"
#include "value/node.h"

const char *const apus_sampling_names[APUS_N_SAMPLING] = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"};

apus_node *apus_answer_sampling(const apus_answer_arguments *a, const apus_model *m)
{
    const apus_node_api *node = apus_nodes();
    const int models = a->whose != NULL && strcmp(a->whose, "model") == 0;
    char ignored[512];
    apus_node *s = node->make_map(), *sampler = models ? apus_model_sampler(m) : node->make_map(), *stop = node->make_list();
    if (!models && apus_model_sampling_ignored(m, ignored, sizeof ignored))
        fprintf(stderr, "%s; --sampling model goes by it\n", ignored);
    (void)node->set(sampler, "type", node->make_string("standard", 8));
    for (int i = 0; i < APUS_N_SAMPLING; i++) {
        if (a->sampling[i] == NULL)
            continue;
        apus_error err;
        apus_node *v = node->parse_json(a->sampling[i], strlen(a->sampling[i]), apus_sampling_names[i], &err);
        (void)node->set(sampler, apus_sampling_names[i], v != NULL ? v : node->make_string(a->sampling[i], (size_t)-1));
    }
    if (a->stop != NULL)
        (void)node->append(stop, node->make_string(a->stop, (size_t)-1));
    (void)node->set(s, "sampler", sampler);
    (void)node->set(s, "stop", stop);
    (void)node->set(s, "max_tokens", node->make_int(a->most));
    return s;
}

static int read_numbers(const apus_verb *verb, apus_answer_arguments *a)
{
    char message[128], *end;
    a->most = 512;
    a->seed_number = 42;
    a->together = 16;
    int code = apus_whole(verb, "max-tokens", a->max_tokens, 1, 1000000000, &a->most);
    if (code == 0)
        code = apus_whole(verb, "seed", a->seed, 0, INT64_MAX, &a->seed_number);
    if (code == 0)
        code = apus_whole(verb, "parallel", a->parallel, 1, 4096, &a->together);
    if (code == 0)
        code = apus_whole(verb, "cache-tokens", a->cache_tokens, 1, 1000000000, &a->room);
    for (int i = 0; i < APUS_N_SAMPLING && code == 0; i++) {
        if (a->sampling[i] == NULL || (strtod(a->sampling[i], &end), end != a->sampling[i] && *end == '\0'))
            continue;
        (void)snprintf(message, sizeof message, "--%s takes a number, not '%.60s'", apus_sampling_names[i], a->sampling[i]);
        for (char *p = message; *p != '\0' && *p != ' '; p++)
            *p = *p == '_' ? '-' : *p;
        code = apus_usage(verb, message);
    }
    return code;
}

static int read_arguments(const apus_verb *verb, int argc, char **argv, apus_answer_arguments *a, int chat)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    const apus_option options[] = {{"adapter", &a->model.adapter, NULL},
                                   {"base", &a->model.base, NULL},
                                   {"template", &a->model.template_file, NULL},
                                   {"backend", &a->model.backend, NULL},
                                   {"threads", &a->model.threads, NULL},
                                   {"dtype", &a->model.dtype, NULL},
                                   {"activations", &a->model.activations, NULL},
                                   {"max-tokens", &a->max_tokens, NULL},
                                   {"seed", &a->seed, NULL},
                                   {"stop", &a->stop, NULL},
                                   {"temperature", &a->sampling[0], NULL},
                                   {"top-k", &a->sampling[1], NULL},
                                   {"top-p", &a->sampling[2], NULL},
                                   {"min-p", &a->sampling[3], NULL},
                                   {"repetition-penalty", &a->sampling[4], NULL},
                                   {"parse-special", NULL, &a->parse_special},
                                   {"sampling", &a->whose, NULL},
                                   {"tools", &a->tools, NULL},
                                   {"json", NULL, &a->json},
                                   {"prompt", &a->prompt, NULL},
                                   {"messages", &a->messages, NULL},
                                   {"prompts", &a->prompts, NULL},
                                   {"out", &a->out, NULL},
                                   {"parallel", &a->parallel, NULL},
                                   {"cache-tokens", &a->cache_tokens, NULL}};
    const size_t n_options = sizeof options / sizeof options[0] - (chat ? 7 : 0);
    const int n = apus_options(verb, argc, argv, options, n_options, rest);
    int code = n == -2 ? -2 : n == 1 ? 0 : apus_one_model(verb, n);
    a->model.model = n == 1 ? rest[0] : NULL;
    free(rest);
    if (code == 0 && a->whose != NULL && strcmp(a->whose, "model") != 0 && strcmp(a->whose, "given") != 0)
        code = apus_usage(verb, "--sampling is given (by the options, default) or model (by its generation_config.json)");
    return code == 0 ? read_numbers(verb, a) : code;
}

static int print_piece(void *context, const char *text, size_t length)
{
    (void)context;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 0;
}

int apus_answer_open(const apus_answer_arguments *a, int64_t parallel, apus_device **device, apus_generator **g)
{
    apus_model *m = NULL;
    apus_error err = {0};
    int code = apus_bring_up();
    if (code == 0)
        code = apus_open_model(&a->model, 1, 1, device, &m);
    if (code != 0)
        return code;
    const apus_generator_options options = {.parse_special = a->parse_special, .parallel = parallel, .cache_tokens = a->room};
    const apus_status st = apus_generator_new(m, &options, g, &err);
    if (st != APUS_OK)
        apus_device_close(*device);
    return apus_exit(st, &err);
}

static int do_generate(int argc, char **argv)
{
    const apus_node_api *node = apus_nodes();
    apus_answer_arguments a = {0};
    int code = read_arguments(&apus_verb_generate, argc, argv, &a, 0);
    if (code != 0)
        return code == -2 ? 0 : code;
    if ((a.prompt != NULL) + (a.messages != NULL) + (a.prompts != NULL) != 1)
        return apus_usage(&apus_verb_generate, "give --prompt TEXT or --messages FILE, or --prompts FILE for many");
    if (a.prompts != NULL)
        return apus_answer_prompts(&a);
    if (a.out != NULL || a.parallel != NULL)
        return apus_usage(&apus_verb_generate, "--out and --parallel go with --prompts");
    apus_device *device = NULL;
    apus_generator *g = NULL;
    code = apus_answer_open(&a, 1, &device, &g);
    if (code != 0)
        return code;
    apus_node *messages = NULL, *tools = NULL, *answer = NULL, *sampling = apus_answer_sampling(&a, apus_generator_model(g));
    if (a.messages != NULL && (messages = apus_read_json(a.messages)) == NULL)
        code = 1;
    if (code == 0 && a.tools != NULL && (tools = apus_read_json(a.tools)) == NULL)
        code = 1;
    if (code == 0) {
        apus_error err = {0};
        const apus_generate_request request = {.size = sizeof request,
                                               .messages = messages,
                                               .tools = tools,
                                               .prompt = a.prompt,
                                               .sampling = sampling,
                                               .seed = (uint64_t)a.seed_number,
                                               .logprobs = a.json,
                                               .piece = a.json ? NULL : print_piece};
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
    apus_answer_arguments a = {0};
    int code = read_arguments(&apus_verb_chat, argc, argv, &a, 1);
    if (code != 0)
        return code == -2 ? 0 : code;
    apus_device *device = NULL;
    apus_generator *g = NULL;
    code = apus_answer_open(&a, 1, &device, &g);
    if (code != 0)
        return code;
    apus_node *messages = node->make_list(), *sampling = apus_answer_sampling(&a, apus_generator_model(g));
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
        const apus_generate_request request = {
            .size = sizeof request, .messages = messages, .sampling = sampling, .seed = (uint64_t)a.seed_number, .index = turn, .piece = print_piece};
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

#define SAMPLING_OPTIONS                                                                                                                             \
    "  --max-tokens N     default 512                         --seed S       default 42\n"                                                           \
    "  --temperature X    default 0: greedy                   --top-k N  --top-p X  --min-p X  --repetition-penalty X\n"                             \
    "  --sampling model   by the model's generation_config.json, where the options above say nothing; default: given\n"                              \
    "  --stop TEXT        ends the answer                     --parse-special  special-token strings in messages count\n"                            \
    "  --template FILE    chat template instead of the model's\n"

const apus_verb apus_verb_generate = {
    "generate", "an answer, or many at once",
    "generate MODEL --prompt TEXT | --messages F.json [--tools F.json] | --prompts F.jsonl [--json] …\n\n"
    "--prompt is continued as raw text; --messages go through the chat template.\n\n" APUS_MODEL_OPTIONS SAMPLING_OPTIONS
    "  --json             {text, prompt_ids, ids, logprobs, finish_reason}\n"
    "  --cache-tokens N   most tokens whose keys and values are kept; default: what the answers at work may need\n\n"
    "Many at once:\n"
    "  --prompts F.jsonl  a request a line: {\"prompt\": …}, {\"messages\": …, \"tools\": …} or {\"input_ids\": […]}, and for this\n"
    "                     line alone id, max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed\n"
    "  --parallel N       answers that are written at once, default 16; they are the same, whatever it is\n"
    "  --out FILE         instead of standard output: a line for each request, in their order: {id (the request's, else its\n"
    "                     number from 0), text, ids, finish_reason}, with --json also prompt_ids and logprobs; for one that\n"
    "                     cannot be answered {id, error}: then the others go on and the exit code says so at the end\n",
    do_generate};
const apus_verb apus_verb_chat = {"chat", "talk to a model", "chat MODEL …\n\n" APUS_MODEL_OPTIONS SAMPLING_OPTIONS, do_chat};
