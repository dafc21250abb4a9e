/*
 * Backend "ref": the oracle: float64, plain loops, one thread, no cleverness. Owns no state but its host pointer. Other
 * backends are tested against it; it is never meant to be fast.
 */
#include <apus/blocks.h>
#include <apus/plugin.h>

#include "ref.h"

typedef struct ref {
    const apus_host *host;
} ref;

static apus_status ref_open(const apus_host *host, const apus_node *params, void **backend, apus_error *err)
{
    (void)params;
    ref *r = host->alloc(sizeof *r);
    if (r == NULL)
        return apus_fail(err, APUS_E_MEMORY, "ref: out of memory");
    r->host = host;
    *backend = r;
    return APUS_OK;
}

static void ref_close(void *backend)
{
    ref *r = backend;
    r->host->free(r);
}

static apus_dtype ref_real(void *backend)
{
    (void)backend;
    return APUS_F64;
}

static void *ref_alloc(void *backend, size_t bytes)
{
    return ((ref *)backend)->host->alloc(bytes != 0 ? bytes : 64);
}

static void ref_free(void *backend, void *p, size_t bytes)
{
    (void)bytes;
    ((ref *)backend)->host->free(p);
}

static int ref_host_memory(void *backend)
{
    (void)backend;
    return 1;
}

static apus_status ref_copy_in(void *backend, void *device, const void *host, size_t bytes, apus_error *err)
{
    (void)backend;
    (void)err;
    memcpy(device, host, bytes);
    return APUS_OK;
}

static apus_status ref_copy_out(void *backend, void *host, const void *device, size_t bytes, apus_error *err)
{
    (void)backend;
    (void)err;
    memcpy(host, device, bytes);
    return APUS_OK;
}

static void ref_parallel(void *backend, int64_t n, void (*fn)(void *context, int64_t i), void *context)
{
    (void)backend;
    for (int64_t i = 0; i < n; i++)
        fn(context, i);
}

static apus_status ref_finish(void *backend, apus_error *err)
{
    (void)backend;
    (void)err;
    return APUS_OK;
}

static const char *ref_describe(void *backend)
{
    (void)backend;
    return "ref: float64, 1 thread";
}

const apus_dtype apus_ref_encodings[] = {APUS_F32,    APUS_F16,  APUS_BF16, APUS_Q4_0, APUS_Q4_1, APUS_Q5_0, APUS_Q5_1, APUS_Q8_0,
                                         APUS_IQ4_NL, APUS_Q2_K, APUS_Q3_K, APUS_Q4_K, APUS_Q5_K, APUS_Q6_K, 0};

void apus_ref_row(const apus_view *w, int64_t r, double *out, float *tmp)
{
    const int64_t n = w->dims[1];
    if (w->dtype == APUS_F64) {
        memcpy(out, (const double *)w->data + r * n, (size_t)n * sizeof *out);
        return;
    }
    (void)apus_row_to_f32(w->dtype, (const char *)w->data + (size_t)r * apus_row_bytes(w->dtype, n), tmp, n);
    for (int64_t i = 0; i < n; i++)
        out[i] = (double)tmp[i];
}

static const apus_backend_ops backend_ops = {.size = sizeof backend_ops,
                                             .open = ref_open,
                                             .close = ref_close,
                                             .real = ref_real,
                                             .alloc = ref_alloc,
                                             .free = ref_free,
                                             .host_memory = ref_host_memory,
                                             .upload = ref_copy_in,
                                             .download = ref_copy_out,
                                             .parallel = ref_parallel,
                                             .finish = ref_finish,
                                             .describe = ref_describe};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "memory",
     .type = APUS_PARAM_BYTES,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 9e18,
     .unit = "bytes",
     .doc = "Most that a training may take, as for other backends."},
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "backend",
     .name = "ref",
     .doc = "The reference: float64, plain loops, one thread. Slow; other backends are tested against it.",
     .params = params,
     .n_params = sizeof params / sizeof params[0],
     .ops = &backend_ops},
    {.size = sizeof(apus_component), .kind = "kernels", .name = "ref_elementwise", .doc = "Elementwise ops.", .ops = &apus_ref_elementwise},
    {.size = sizeof(apus_component), .kind = "kernels", .name = "ref_index", .doc = "Sums, indexing, dropout.", .ops = &apus_ref_index},
    {.size = sizeof(apus_component),
     .kind = "kernels",
     .name = "ref_matrix",
     .doc = "Products, embeddings, the vocabulary head.",
     .ops = &apus_ref_matrix},
    {.size = sizeof(apus_component), .kind = "kernels", .name = "ref_norm", .doc = "Norms and rope.", .ops = &apus_ref_norm},
    {.size = sizeof(apus_component), .kind = "kernels", .name = "ref_attention", .doc = "Attention.", .ops = &apus_ref_attention},
};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "ref",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "The reference backend.",
                                   .components = components,
                                   .n_components = sizeof components / sizeof components[0]};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
