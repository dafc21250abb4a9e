/*
 * Backend cpu's side of products.py: linear and its gradients as a plan calls them.
 *
 *   bench_products PLUGIN.so THREADS SECONDS
 *
 * A request gets about SECONDS. The protocol: products.h.
 */
#include "module/module.h"
#include "products.h"

#include <apus/kernel.h>

static const apus_kernels_ops *kernels;
static const apus_backend_ops *backend;
static void *instances[2]; /* float32, bfloat16 */

typedef struct calls {
    const apus_kernel *kernel;
    apus_kernel_call call;
    apus_view in[2], out, copies[COPIES_MOST];
    int rotates_result;
} calls;

static const apus_kernel *kernel_of(const char *op)
{
    char name[32];
    snprintf(name, sizeof name, "apus.%s/1", op);
    for (uint32_t i = 0; i < kernels->n_kernels; i++)
        if (kernels->kernels[i].then == NULL && strcmp(kernels->kernels[i].op, name) == 0)
            return &kernels->kernels[i];
    return NULL;
}

static size_t bytes_of(const apus_view *v)
{
    return (size_t)(v->dims[0] * v->dims[1]) * sizeof(float);
}

static apus_view real(void *cpu, int64_t rows, int64_t columns)
{
    apus_view v = {.dtype = APUS_F32, .ndim = 2, .dims = {rows, columns}};
    v.data = backend->alloc(cpu, bytes_of(&v));
    fill(v.data, (size_t)(rows * columns));
    return v;
}

static void run(void *context, int i)
{
    calls *c = context;
    if (c->rotates_result)
        c->out = c->copies[i];
    else
        c->in[1] = c->copies[i];
    (void)c->kernel->run(&c->call, NULL);
}

static double serve(const request *r, double budget)
{
    static calls c;
    const int forward = strcmp(r->op, "forward") == 0, dw = strcmp(r->op, "dw") == 0, packed = strcmp(r->operands, "packed") == 0;
    void *cpu = instances[strcmp(r->dtype, "bfloat16") == 0];
    if (strcmp(r->operands, "ready") == 0 || (packed && !forward))
        return -1.0;
    apus_view x = real(cpu, r->m, r->k), y = real(cpu, r->m, r->n), w = real(cpu, r->n, r->k), shown = w;
    c = (calls){.kernel = kernel_of(forward ? "linear" : dw ? "linear_dw" : "linear_dx"), .rotates_result = dw};
    size_t bytes = bytes_of(&w);
    if (packed)
        bytes = c.kernel->pack(cpu, &w, &shown.dtype, NULL);
    const int copies = copies_of(bytes);
    char *all = backend->alloc(cpu, bytes * (size_t)copies);
    for (int i = 0; i < copies; i++) {
        c.copies[i] = shown;
        c.copies[i].data = all + (size_t)i * bytes;
        if (packed)
            (void)c.kernel->pack(cpu, &w, &shown.dtype, c.copies[i].data);
        else
            memcpy(c.copies[i].data, w.data, bytes);
        c.copies[i].dtype = shown.dtype;
    }
    c.in[0] = forward ? x : y;
    c.in[1] = dw ? x : c.copies[0];
    c.out = forward ? y : dw ? c.copies[0] : x;
    c.call = (apus_kernel_call){.in = c.in, .out = &c.out, .backend = cpu, .n_in = 2, .n_out = 1};
    const size_t scratch = c.kernel->scratch(&c.call);
    c.call.scratch = backend->alloc(cpu, scratch);
    const double seconds = median_seconds(run, &c, copies, budget);
    backend->free(cpu, c.call.scratch, scratch);
    backend->free(cpu, all, bytes * (size_t)copies);
    backend->free(cpu, x.data, bytes_of(&x));
    backend->free(cpu, y.data, bytes_of(&y));
    backend->free(cpu, w.data, bytes_of(&w));
    return seconds;
}

int main(int argc, char **argv)
{
    static const char *const dtypes[] = {"float32", "bfloat16"};
    apus_error err = {.message = ""};
    if (argc != 4 || apus_module_load_file(argv[1], &err) != APUS_OK) {
        fprintf(stderr, "bench_products: %s\n", argc != 4 ? "give the plugin's file, threads and seconds" : err.message);
        return 2;
    }
    backend = apus_component_find("backend", "cpu", &err)->ops;
    kernels = apus_component_find("kernels", "cpu", &err)->ops;
    const apus_node_api *node = apus_host_table()->node;
    for (int i = 0; i < 2; i++) {
        apus_node *params = node->make_map();
        (void)node->set(params, "threads", node->make_int(atoi(argv[2])));
        (void)node->set(params, "dtype", node->make_string(dtypes[i], (size_t)-1));
        if (backend->open(apus_host_table(), params, &instances[i], &err) != APUS_OK) {
            fprintf(stderr, "bench_products: %s\n", err.message);
            return 1;
        }
        node->release(params);
    }
    return answer_requests(serve, atof(argv[3]));
}
