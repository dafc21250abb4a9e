/* tools/apus/main.c: choosing the verb, and what all verbs share. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "apus.h"
#include "module/module.h"
#include "run/run.h"
#include "value/node.h"

static const apus_verb *const verbs[] = {&apus_verb_run,    &apus_verb_check,   &apus_verb_plan,    &apus_verb_tune,     &apus_verb_plugins,
                                         &apus_verb_schema, &apus_verb_preview, &apus_verb_chat,    &apus_verb_generate, &apus_verb_tokenize,
                                         &apus_verb_render, &apus_verb_score,   &apus_verb_inspect, &apus_verb_export};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static const char *plugin_dirs[16];
static size_t n_plugin_dirs;

int apus_exit(apus_status st, const apus_error *err)
{
    static const int codes[] = {0, 1, 3, 4, 5, 1, 6, 130, 7};
    if (st == APUS_OK)
        return 0;
    fprintf(stderr, "apus: %s\n", err->message[0] != '\0' ? err->message : "failed");
    if (err->hint[0] != '\0')
        fprintf(stderr, "  hint: %s\n", err->hint);
    return st > 0 && st < (int)(sizeof codes / sizeof codes[0]) ? codes[st] : 6;
}

int apus_usage(const apus_verb *verb, const char *message)
{
    fprintf(stderr, "apus %s: %s\n  hint: apus %s --help\n", verb->name, message, verb->name);
    return APUS_EXIT_USAGE;
}

int apus_one_model(const apus_verb *verb, int n)
{
    char message[64] = "which MODEL?";
    if (n > 1)
        (void)snprintf(message, sizeof message, "one MODEL, not %d words", n);
    return n == -2 ? 0 : n < 0 ? APUS_EXIT_USAGE : n != 1 ? apus_usage(verb, message) : -1;
}

int apus_whole(const apus_verb *verb, const char *name, const char *value, int64_t least, int64_t most, int64_t *number)
{
    char message[256], *end;
    if (value == NULL)
        return 0;
    errno = 0;
    const long long n = strtoll(value, &end, 10);
    if (end != value && *end == '\0' && errno == 0 && n >= least && n <= most) {
        *number = n;
        return 0;
    }
    (void)snprintf(message, sizeof message, "--%s takes a whole number from %lld to %lld, not '%.60s'", name, (long long)least, (long long)most,
                   value);
    return apus_usage(verb, message);
}

int apus_bring_up(void)
{
    apus_error err = {0};
    /* libgomp's threads spin for seconds by default: beside any other busy process every parallel region then waits for the
     * scheduler (measured: 40 times slower with three of them on two cores). Must be set before a plugin loads libgomp. */
    (void)setenv("GOMP_SPINCOUNT", "20000", 0);
    apus_stop_install();
    return apus_exit(apus_start(plugin_dirs, n_plugin_dirs, &err), &err);
}

int apus_options(const apus_verb *verb, int argc, char **argv, const apus_option *options, size_t n, const char **rest)
{
    int n_rest = 0, only_rest = 0;
    char message[256];
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (only_rest || strncmp(a, "--", 2) != 0) {
            rest[n_rest++] = a;
            continue;
        }
        if (a[2] == '\0') {
            only_rest = 1;
            continue;
        }
        if (strcmp(a, "--help") == 0) {
            printf("usage: apus %s", verb->help);
            return -2;
        }
        const char *equals = strchr(a, '=');
        const size_t length = equals != NULL ? (size_t)(equals - a) - 2 : strlen(a) - 2;
        size_t k = 0;
        while (k < n && (strlen(options[k].name) != length || strncmp(options[k].name, a + 2, length) != 0))
            k++;
        if (k == n) {
            snprintf(message, sizeof message, "there is no option %.*s", (int)length + 2, a);
            (void)apus_usage(verb, message);
            return -1;
        }
        if (options[k].value == NULL && equals != NULL) {
            snprintf(message, sizeof message, "--%s takes no value", options[k].name);
            (void)apus_usage(verb, message);
            return -1;
        }
        if (options[k].value == NULL) {
            *options[k].flag = 1;
        } else if (equals != NULL) {
            *options[k].value = equals + 1;
        } else if (i + 1 < argc) {
            *options[k].value = argv[++i];
        } else {
            snprintf(message, sizeof message, "--%s needs a value", options[k].name);
            (void)apus_usage(verb, message);
            return -1;
        }
    }
    return n_rest;
}

void apus_print_json(apus_node *n, int indent)
{
    size_t length;
    char *text = apus_nodes()->write_json(n, indent ? APUS_JSON_INDENT : 0, &length);
    if (text != NULL) {
        fwrite(text, 1, length, stdout);
        fputc('\n', stdout);
    }
    apus_host_table()->free(text);
    apus_nodes()->release(n);
}

char *apus_read_all(const char *path, size_t *length)
{
    FILE *f = path != NULL ? fopen(path, "rb") : stdin;
    size_t capacity = 65536, n = 0;
    char *text = f != NULL ? malloc(capacity) : NULL;
    while (text != NULL) {
        const size_t got = fread(text + n, 1, capacity - n - 1, f);
        n += got;
        if (got == 0)
            break;
        if (n + 1 == capacity) {
            char *grown = realloc(text, capacity *= 2);
            if (grown == NULL)
                free(text);
            text = grown;
        }
    }
    if (text == NULL || ferror(f)) {
        fprintf(stderr, "apus: %s: %s\n", path != NULL ? path : "standard input", strerror(errno));
        free(text);
        text = NULL;
    }
    if (f != NULL && f != stdin)
        fclose(f);
    if (text != NULL) {
        text[n] = '\0';
        *length = n;
    }
    return text;
}

apus_node *apus_read_json(const char *path)
{
    size_t n;
    apus_error err = {0};
    char *text = apus_read_all(path, &n);
    apus_node *node = text != NULL ? apus_nodes()->parse_json(text, n, path, &err) : NULL;
    if (text != NULL && node == NULL)
        (void)apus_exit(APUS_E_INVALID, &err);
    free(text);
    return node;
}

/* ---------------------------------------------------------------- models */

static apus_node *backend_spec(const apus_model_arguments *a)
{
    const apus_node_api *node = apus_nodes();
    apus_node *spec = node->make_map();
    (void)node->set(spec, "type", node->make_string(a->backend != NULL ? a->backend : "cpu", (size_t)-1));
    if (a->threads != NULL) { /* what is no number, the backend says */
        char *end;
        const long long n = strtoll(a->threads, &end, 10);
        (void)node->set(spec, "threads", end != a->threads && *end == '\0' ? node->make_int(n) : node->make_string(a->threads, (size_t)-1));
    }
    if (a->dtype != NULL)
        (void)node->set(spec, "dtype", node->make_string(a->dtype, (size_t)-1));
    if (a->activations != NULL)
        (void)node->set(spec, "activations", node->make_string(a->activations, (size_t)-1));
    return spec;
}

int apus_open_model(const apus_model_arguments *a, int keep, int with_weights, apus_device **device, apus_model **model)
{
    const apus_node_api *node = apus_nodes();
    apus_error err = {0};
    apus_status st = APUS_OK;
    apus_node *spec = apus_model_locate(a->base != NULL ? a->base : a->model, &err);
    if (spec == NULL)
        return apus_exit(APUS_E_NOT_FOUND, &err);
    if (device != NULL)
        *device = NULL;
    *model = NULL;
    if (with_weights) {
        apus_node *backend = backend_spec(a);
        st = apus_device_open(backend, device, &err);
        node->release(backend);
    }
    const apus_model_options options = {
        .device = with_weights ? *device : NULL, .keep_encoded = keep, .now = (int64_t)time(NULL), .template_file = a->template_file};
    if (st == APUS_OK)
        st = apus_model_open(spec, &options, model, &err);
    const char *adapter = a->base != NULL ? a->model : a->adapter;
    if (st == APUS_OK && with_weights && adapter != NULL)
        st = apus_model_adapt(*model, adapter, &err);
    node->release(spec);
    if (st == APUS_OK)
        return 0;
    apus_model_close(*model);
    *model = NULL;
    if (with_weights && *device != NULL)
        apus_device_close(*device);
    return apus_exit(st, &err);
}

/* ---------------------------------------------------------------- the command */

static void print_help(void)
{
    printf("usage: apus [--plugin-dir DIR] VERB …\n\n"
           "Trains, aligns, evaluates, exports and runs language models from one YAML file.\n\n");
    for (size_t i = 0; i < N_VERBS; i++)
        printf("  %-10s %s\n", verbs[i]->name, verbs[i]->line);
    printf("\n`apus VERB --help` says more. Plugins: --plugin-dir (absolute), then $APUS_PLUGIN_PATH, then the installed ones.\n"
           "Exit codes: 0 done, 1 wrong input, 2 wrong command line, 3 file or device, 4 memory, 5 not supported,\n"
           "6 a bug, 7 a number that is not finite, 130 stopped by a signal with everything saved.\n");
}

/* What a verb printed has come out, or that is what it ends with. */
static int finish(int code)
{
    errno = 0;
    if ((fflush(stdout) == 0 && !ferror(stdout)) || code != 0)
        return code;
    fprintf(stderr, "apus: standard output: %s\n", errno != 0 ? strerror(errno) : "not all of it could be written");
    return APUS_EXIT_IO;
}

int main(int argc, char **argv)
{
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            print_help();
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            printf("apus %s\n", APUS_VERSION);
            return 0;
        }
        if (strcmp(argv[i], "--plugin-dir") == 0 && i + 1 < argc && n_plugin_dirs < 16) {
            plugin_dirs[n_plugin_dirs++] = argv[++i];
            continue;
        }
        fprintf(stderr, "apus: there is no option %s\n  hint: apus --help\n", argv[i]);
        return APUS_EXIT_USAGE;
    }
    if (i == argc) {
        print_help();
        return APUS_EXIT_USAGE;
    }
    for (size_t k = 0; k < N_VERBS; k++)
        if (strcmp(argv[i], verbs[k]->name) == 0)
            return finish(verbs[k]->run(argc - i, argv + i));
    fprintf(stderr, "apus: there is no verb '%s'\n  hint: apus --help\n", argv[i]);
    return APUS_EXIT_USAGE;
}
