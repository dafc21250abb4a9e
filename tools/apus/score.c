/* tools/apus/score.c: `apus score`: log-probabilities of a text that is there, its logits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apus.h"
#include "io/io.h"
#include "model/score.h"
#include "module/module.h"
#include "value/node.h"

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
    const apus_option options[] = {{"text", &text, NULL},         {"ids", &id_text, NULL},        {"adapter", &a.adapter, NULL},
                                   {"base", &a.base, NULL},       {"logits", &logits_path, NULL}, {"backend", &a.backend, NULL},
                                   {"threads", &a.threads, NULL}, {"dtype", &a.dtype, NULL},      {"activations", &a.activations, NULL},
                                   {"json", NULL, &json}};
    const int n_rest = apus_options(&apus_verb_score, argc, argv, options, sizeof options / sizeof options[0], rest);
    a.model = n_rest == 1 ? rest[0] : NULL;
    free(rest);
    if (n_rest != 1)
        return apus_one_model(&apus_verb_score, n_rest);
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
        st = apus_model_text(m) != NULL
                 ? apus_text_encode(apus_model_text(m), text, strlen(text), APUS_ENCODE_SPECIAL_TEXT | APUS_ENCODE_ADD_SPECIAL, &tokens, &err)
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

const apus_verb apus_verb_score = {"score", "log-probabilities of a text",
                                   "score MODEL --text T | --ids 1,2,3 [--logits OUT.npy] …\n\n"
                                   "JSON: ids, logprobs (of each next token), nll (mean), perplexity.\n\n" APUS_MODEL_OPTIONS
                                   "  --logits OUT.npy   the float32 [tokens, vocabulary] logits, for NumPy\n",
                                   do_score};
