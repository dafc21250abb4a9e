/* tools/apus/files.c: apus inspect and export: model files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "apus.h"
#include "model/export.h"
#include "model/internal.h"
#include "run/run.h"
#include "value/node.h"

static void print_dims(const apus_tensor_info *t)
{
    printf("[");
    for (int32_t k = 0; k < t->ndim; k++)
        printf("%s%lld", k ? ", " : "", (long long)t->dims[k]);
    printf("]");
}

static apus_node *describe_tensor(const apus_tensor_info *t)
{
    const apus_node_api *node = apus_nodes();
    apus_node *n = node->make_map(), *dims = node->make_list();
    for (int32_t k = 0; k < t->ndim; k++)
        (void)node->append(dims, node->make_int(t->dims[k]));
    (void)node->set(n, "name", node->make_string(t->name, (size_t)-1));
    (void)node->set(n, "dtype", node->make_string(apus_dtype_name(t->dtype), (size_t)-1));
    (void)node->set(n, "shape", dims);
    (void)node->set(n, "bytes", node->make_int((int64_t)t->bytes));
    return n;
}

static int do_inspect(int argc, char **argv)
{
    const apus_node_api *node = apus_nodes();
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int json = 0;
    const apus_option options[] = {{"json", NULL, &json}};
    const int n = apus_options(&apus_verb_inspect, argc, argv, options, 1, rest);
    const char *path = n == 1 ? rest[0] : NULL;
    free(rest);
    if (n != 1)
        return n == -2 ? 0 : n < 0 ? APUS_EXIT_USAGE : apus_usage(&apus_verb_inspect, "which FILE?");
    int code = apus_bring_up();
    if (code != 0)
        return code;
    apus_error err = {0};
    apus_format_file f;
    apus_status st = apus_format_open(path, &f, &err);
    if (st != APUS_OK)
        return apus_exit(st, &err);
    apus_node *out = node->make_map(), *tensors = node->make_list();
    uint64_t bytes = 0, elements = 0;
    for (uint64_t i = 0; i < f.ops.count(f.file) && st == APUS_OK; i++) {
        apus_tensor_info t = {.size = sizeof t};
        uint64_t size = 1;
        st = f.ops.tensor(f.file, i, &t, &err);
        if (st != APUS_OK)
            break;
        for (int32_t k = 0; k < t.ndim; k++)
            size *= (uint64_t)t.dims[k];
        bytes += t.bytes;
        elements += size;
        if (json) {
            (void)node->append(tensors, describe_tensor(&t));
        } else {
            printf("%-56s %-7s ", t.name, apus_dtype_name(t.dtype));
            print_dims(&t);
            printf("\n");
        }
    }
    if (st == APUS_OK && json) {
        (void)node->set(out, "format", node->make_string(f.component->name, (size_t)-1));
        (void)node->set(out, "parameters", node->make_int((int64_t)elements));
        (void)node->set(out, "bytes", node->make_int((int64_t)bytes));
        (void)node->set(out, "config", f.card.config != NULL ? node->copy(f.card.config) : node->make_null());
        (void)node->set(out, "metadata", f.card.metadata != NULL ? node->copy(f.card.metadata) : node->make_null());
        (void)node->set(out, "tensors", tensors);
        apus_print_json(out, 1);
    } else {
        if (st == APUS_OK) {
            printf("\n%s: %s, %llu tensors, %.3f M parameters, %.1f MiB\n", path, f.component->name, (unsigned long long)f.ops.count(f.file),
                   (double)elements * 1e-6, (double)bytes / 1048576.0);
            char *config = f.card.config != NULL ? node->write_json(f.card.config, APUS_JSON_INDENT, NULL) : NULL;
            if (config != NULL)
                printf("config %s\n", config);
            apus_host_table()->free(config);
        }
        node->release(tensors);
        node->release(out);
    }
    apus_format_close(&f);
    return apus_exit(st, &err);
}

static int do_export(int argc, char **argv)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest), *format = NULL, *out = NULL, *dtype = NULL;
    apus_model_arguments a = {0};
    const apus_option options[] = {{"adapter", &a.adapter, NULL}, {"base", &a.base, NULL}, {"template", &a.template_file, NULL},
                                   {"format", &format, NULL},     {"out", &out, NULL},     {"dtype", &dtype, NULL}};
    const int n = apus_options(&apus_verb_export, argc, argv, options, 6, rest);
    a.model = n == 1 ? rest[0] : NULL;
    free(rest);
    if (n != 1)
        return apus_one_model(&apus_verb_export, n);
    if (format == NULL || out == NULL)
        return apus_usage(&apus_verb_export, "--format and --out are needed");
    apus_device *device = NULL;
    apus_model *m = NULL;
    apus_error err = {0};
    int code = apus_bring_up();
    if (code == 0)
        code = apus_open_model(&a, 0, 1, &device, &m);
    if (code != 0)
        return code;
    const apus_dtype type = dtype != NULL ? apus_dtype_parse(dtype) : APUS_REAL;
    apus_status st = APUS_OK;
    if (type < 0) {
        st = apus_fail(&err, APUS_E_INVALID, "dtype '%s' is not one that can be written", dtype);
        apus_hint(&err, st, "float32, float16, bfloat16, q8_0 or q4_0");
    }
    const apus_write_options write = {.format = format, .path = out, .dtype = type};
    if (st == APUS_OK)
        st = apus_model_write(m, &write, &err);
    if (st == APUS_OK)
        printf("%s\n", out);
    apus_model_close(m);
    apus_device_close(device);
    return apus_exit(st, &err);
}

const apus_verb apus_verb_inspect = {"inspect", "tensors, shapes, types and metadata of a model file",
                                     "inspect FILE [--json]\n\nOf safetensors, GGUF, a model or adapter folder, without loading the weights.\n",
                                     do_inspect};
const apus_verb apus_verb_export = {"export", "merge and convert a model without YAML",
                                    "export MODEL [--adapter DIR] --format F --out PATH [--dtype T] [--template FILE]\n\n"
                                    "  --format   safetensors (a Hugging Face folder) or gguf (a file)\n"
                                    "  --dtype    float32, float16, bfloat16, q8_0, q4_0; default the base's (float32 if it was quantised)\n"
                                    "An adapter is merged in float32. What stands at PATH and was not written by apus is never touched.\n",
                                    do_export};
