/*
 * Backend "cpu": threads and the choice of instruction set; and the table of its kernels.
 *
 * $APUS_CPU_ISA (portable, avx2, avx512) asks for less than the machine has, for tests.
 */
#include "cpu.h"

#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* ---------------------------------------------------------------- the device */

static int usable_cores(void)
{
    cpu_set_t *set;
    int n = 0;
    for (int most = 1024; most <= 1024 * 1024 && n == 0; most *= 4) {
        const size_t bytes = CPU_ALLOC_SIZE(most);
        if ((set = CPU_ALLOC(most)) == NULL) {
            break;
        }
        if (sched_getaffinity(0, bytes, set) == 0) {
            n = CPU_COUNT_S(bytes, set);
        }
        CPU_FREE(set);
    }
    return n > 0 ? n : 1;
}

/* What this machine has, best last. */
static int usable_isas(const apus_cpu_isa *isas[3])
{
    int n = 0;
    isas[n++] = &apus_cpu_portable;
#if defined(__x86_64__)
    unsigned a, b, c, d; /* leaf 1, ecx bit 29: F16C; leaf 7.1, eax bit 5: AVX512_BF16: clang's builtin does not know them */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29) != 0) {
        isas[n++] = &apus_cpu_avx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
            (a & 1u << 5) != 0) {
            isas[n++] = &apus_cpu_avx512;
        }
    }
#endif
    return n;
}

static const apus_cpu_isa *choose_isa(apus_error *err)
{
    const char *asked = getenv("APUS_CPU_ISA");
    const apus_cpu_isa *isas[3];
    const int n = usable_isas(isas);
    char names[64] = "";
    if (asked == NULL || asked[0] == '\0') {
        return isas[n - 1];
    }
    for (int i = 0; i < n; i++) {
        const size_t used = strlen(names);
        if (strcmp(asked, isas[i]->name) == 0) {
            return isas[i];
        }
        (void)snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "", isas[i]->name);
    }
    (void)apus_fail(err, APUS_E_UNSUPPORTED, "cpu: APUS_CPU_ISA is '%s'; this machine and build can do: %s", asked, names);
    return NULL;
}

/* "AMD EPYC 9654": as the processor calls itself, spaces at its ends left out. */
static void name_processor(char name[49])
{
#if defined(__x86_64__)
    unsigned words[12];
    for (unsigned i = 0; i < 3; i++) {
        if (!__get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3])) {
            (void)snprintf(name, 49, "x86-64");
            return;
        }
    }
    memcpy(name, words, 48);
    name[48] = '\0';
    const size_t skip = strspn(name, " ");
    memmove(name, name + skip, strlen(name + skip) + 1);
    for (size_t n = strlen(name); n > 0 && name[n - 1] == ' '; n--) {
        name[n - 1] = '\0';
    }
#else
    (void)snprintf(name, 49, "a processor");
#endif
}

static apus_status cpu_open(const apus_host *host, const apus_node *params, void **backend, apus_error *err)
{
    const apus_cpu_isa *isa = choose_isa(err);
    if (isa == NULL) {
        return APUS_E_UNSUPPORTED;
    }
    apus_cpu *cpu = (apus_cpu *)host->alloc(sizeof *cpu);
    if (cpu == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "cpu: out of memory");
    }
    const int64_t asked = host->node->as_int(host->node->get(params, "threads"), 0);
    cpu->host = host;
    cpu->isa = isa;
    const char *dtype = host->node->as_string(host->node->get(params, "dtype"), NULL);
    cpu->bfloat16 = dtype != NULL && strcmp(dtype, "bfloat16") == 0;
    cpu->threads = asked > 0 ? (int)asked : usable_cores();
    const char *rounded = host->node->as_string(host->node->get(params, "activations"), NULL);
    cpu->integers = rounded != NULL && strcmp(rounded, "int8") == 0;
    cpu->nodes = apus_cpu_nodes(&cpu->node_mask);
    char nodes[48] = "";
    if (cpu->nodes > 1) {
        (void)snprintf(nodes, sizeof nodes, ", memory over %d nodes", cpu->nodes);
    }
    (void)snprintf(cpu->description, sizeof cpu->description, "cpu: %d thread%s, %s%s%s%s", cpu->threads, cpu->threads == 1 ? "" : "s", isa->name,
                   nodes,
                   !cpu->bfloat16  ? ""
                   : cpu->integers ? ", products in bfloat16"
                                   : ", products and kept activations in bfloat16",
                   cpu->integers ? ", with Q8_0 and Q4_0 weights in int8" : "");
    char name[49];
    name_processor(name);
    (void)snprintf(cpu->hardware, sizeof cpu->hardware, "%s, %s", name, isa->name);
    *backend = cpu;
    return APUS_OK;
}

static void cpu_close(void *backend)
{
    apus_cpu *cpu = (apus_cpu *)backend;
    if (cpu->integers && cpu->layers && !cpu->rounded) {
        cpu->host->log(APUS_LOG_WARN, "cpu", "activations: int8 had no effect: no linear layer here has its weight stored as Q8_0 or Q4_0");
    }
    cpu->host->free(cpu);
}

static apus_dtype cpu_real(void *backend)
{
    (void)backend;
    return APUS_F32;
}

static void *cpu_alloc(void *backend, size_t bytes)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
    return bytes < APUS_CPU_LARGE ? cpu->host->alloc(bytes > 0 ? bytes : 64) : apus_cpu_map(cpu, bytes);
}

static void cpu_free(void *backend, void *p, size_t bytes)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
    if (p == NULL || bytes < APUS_CPU_LARGE) {
        cpu->host->free(p);
    } else {
        apus_cpu_unmap(p, bytes);
    }
}

static int cpu_host_memory(void *backend)
{
    (void)backend;
    return 1;
}

static apus_status cpu_upload(void *backend, void *device, const void *host, size_t bytes, apus_error *err)
{
    (void)backend;
    (void)err;
    memcpy(device, host, bytes);
    return APUS_OK;
}

static apus_status cpu_download(void *backend, void *host, const void *device, size_t bytes, apus_error *err)
{
    (void)backend;
    (void)err;
    memcpy(host, device, bytes);
    return APUS_OK;
}

static void cpu_parallel(void *backend, int64_t n, void (*fn)(void *context, int64_t i), void *context)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
#pragma omp parallel for num_threads(cpu->threads) schedule(static) if (n > 1)
    for (int64_t i = 0; i < n; i++) {
        fn(context, i);
    }
}

static apus_status cpu_finish(void *backend, apus_error *err)
{
    (void)backend;
    (void)err;
    return APUS_OK;
}

/* What meets weights in int8 is rounded to 8 bits from floats. */
static apus_dtype cpu_kept(void *backend)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
    return cpu->bfloat16 && !cpu->integers ? APUS_BF16 : APUS_F32;
}

static const char *cpu_describe(void *backend)
{
    return ((const apus_cpu *)backend)->description;
}

static void cpu_facts(void *backend, apus_backend_facts *facts)
{
    const apus_cpu *cpu = (const apus_cpu *)backend;
    const apus_backend_facts ours = {
        .size = facts->size, .threads = (uint32_t)cpu->threads, .products = cpu->bfloat16 ? APUS_BF16 : APUS_F32, .hardware = cpu->hardware};
    memcpy(facts, &ours, facts->size < sizeof ours ? facts->size : sizeof ours);
}

static const apus_backend_ops backend_ops = {
    .size = sizeof backend_ops,
    .open = cpu_open,
    .close = cpu_close,
    .real = cpu_real,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_memory = cpu_host_memory,
    .upload = cpu_upload,
    .download = cpu_download,
    .parallel = cpu_parallel,
    .finish = cpu_finish,
    .describe = cpu_describe,
    .kept = cpu_kept,
    .facts = cpu_facts,
};

/* ---------------------------------------------------------------- the kernels: each goes through the instance's table */

/* What files hold; then, for the ops that run with frozen weights alone, those packed (packed.h). */
#define ENCODINGS                                                                                                                                    \
    APUS_F16, APUS_BF16, APUS_Q4_0, APUS_Q4_1, APUS_Q5_0, APUS_Q5_1, APUS_Q8_0, APUS_IQ4_NL, APUS_Q2_K, APUS_Q3_K, APUS_Q4_K, APUS_Q5_K, APUS_Q6_K
static const apus_dtype encodings[] = {ENCODINGS, 0}, pairs_too[] = {ENCODINGS, APUS_PACKED | APUS_BF16, 0},
                        floats_too[] = {APUS_BF16, APUS_PACKED | APUS_BF16, 0},
                        packed_too[] = {ENCODINGS, APUS_PACKED | APUS_F32, APUS_PACKED | APUS_BF16, APUS_PACKED | APUS_Q8_0, APUS_PACKED | APUS_Q4_0,
                                        0};

#define RUN(id)                                                                                                                                      \
    static apus_status run_##id(const apus_kernel_call *call, apus_error *err)                                                                       \
    {                                                                                                                                                \
        return apus_cpu_of(call)->isa->kernels[APUS_CPU_##id].run(call, err);                                                                        \
    }
#define SCRATCH(id)                                                                                                                                  \
    static size_t scratch_##id(const apus_kernel_call *capacity)                                                                                     \
    {                                                                                                                                                \
        return apus_cpu_of(capacity)->isa->kernels[APUS_CPU_##id].scratch(capacity);                                                                 \
    }
#define X(id, in, out) RUN(id)
APUS_CPU_ELEMENTWISE(X)
#undef X
#define X(id, then, flags, types, in, out) RUN(id) SCRATCH(id)
APUS_CPU_OTHERS(X)
#undef X

/* A forward product is planned: whether the setting of activations means anything to it. */
static void note_weight(const apus_kernel_call *c)
{
    apus_cpu *cpu = (apus_cpu *)c->backend;
    const apus_dtype stored = c->in[1].dtype & ~APUS_PACKED;
    cpu->layers = 1;
    cpu->rounded |= stored == APUS_Q8_0 || stored == APUS_Q4_0;
}

#define FORWARD(id)                                                                                                                                  \
    RUN(id)                                                                                                                                          \
    static size_t scratch_##id(const apus_kernel_call *capacity)                                                                                     \
    {                                                                                                                                                \
        note_weight(capacity);                                                                                                                       \
        return apus_cpu_of(capacity)->isa->kernels[APUS_CPU_##id].scratch(capacity);                                                                 \
    }
FORWARD(linear)
FORWARD(linear_add)
FORWARD(linear_relu)
FORWARD(linear_silu)
FORWARD(linear_tanh)
FORWARD(linear_gelu)
FORWARD(linear_swiglu)
RUN(linear_dx_add)
SCRATCH(linear_dx_add)
RUN(linear_twice)
SCRATCH(linear_twice)
RUN(linear_twice_add)
SCRATCH(linear_twice_add)
RUN(linear_dx_twice)
SCRATCH(linear_dx_twice)
RUN(linear_dx_twice_add)
SCRATCH(linear_dx_twice_add)
RUN(rope_attention_cached)
SCRATCH(rope_attention_cached)

/* As apus.attention_cached/1 has it: each query sees all that its table can name. Rope's part is nothing beside that. */
static double flops_rope_attention_cached(const apus_kernel_call *c)
{
    return 4.0 * (double)apus_cpu_elements(&c->in[0]) * c->attrs[14] * (double)(c->in[6].dims[1] - 4);
}

/* One of two sums, of these lengths, is short enough to be worked into the tiles of the other. */
static int one_is_thin(int64_t a, int64_t b)
{
    const int64_t thin = a < b ? a : b, other = a < b ? b : a;
    return thin <= 256 && 4 * thin <= other;
}

/* Not of integers, whose units are other ones. A bias belongs to the last two. */
static int suits_linear_twice(const apus_kernel_call *c)
{
    const apus_dtype a = c->in[1].dtype & ~APUS_PACKED, b = c->in[3].dtype & ~APUS_PACKED;
    const int64_t first = apus_cpu_width(&c->in[1]), second = apus_cpu_width(&c->in[3]);
    const int integers = apus_cpu_of(c)->integers && (a == APUS_Q8_0 || a == APUS_Q4_0 || b == APUS_Q8_0 || b == APUS_Q4_0);
    const int biased = c->n_in > 4 && c->in[4].ndim == 1;
    return !integers && one_is_thin(first, second) && (!biased || first < second);
}

static int suits_linear_dx_twice(const apus_kernel_call *c)
{
    return one_is_thin(apus_cpu_rows(&c->in[1]), apus_cpu_rows(&c->in[3]));
}

static apus_status run_siblings_linear(const apus_kernel_call *calls, uint32_t n, apus_error *err)
{
    return apus_cpu_of(calls)->isa->kernels[APUS_CPU_linear].run_siblings(calls, n, err);
}

static size_t pack_linear(void *backend, const apus_view *weight, apus_dtype *packed, void *to)
{
    return ((const apus_cpu *)backend)->isa->pack_weight(backend, weight, packed, to);
}

/* What of up to 16 columns reads its left factor as it lies (thin.h). */
static int suits_linear(const apus_kernel_call *c)
{
    return c->prologue == 0 || apus_cpu_rows(&c->in[1]) > 16;
}

/* What is done to the left factor as it is packed: linear in matrix.h knows them by their numbers. */
static const char *const left_norms[] = {"apus.rms_norm/1", "apus.layer_norm/1", NULL};

/* linear and the activation of its result. */
#define LINEAR_THEN(id)                                                                                                                              \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = "apus.linear/1", .then = "apus." #id "/1", .encodings = packed_too, .scratch = scratch_linear_##id,       \
        .run = run_linear_##id, .narrow_in = 1, .narrow_out = 1, .suits = suits_linear, .prologues = left_norms                                      \
    }

static const apus_kernel kernels[] = {
#define X(id, in, out) {.size = sizeof(apus_kernel), .op = "apus." #id "/1", .run = run_##id, .narrow_in = (in), .narrow_out = (out)},
    APUS_CPU_ELEMENTWISE(X)
#undef X
#define X(id, after, bits, types, in, out)                                                                                                           \
    {.size = sizeof(apus_kernel),                                                                                                                    \
     .op = "apus." #id "/1",                                                                                                                         \
     .then = after,                                                                                                                                  \
     .flags = bits,                                                                                                                                  \
     .encodings = types,                                                                                                                             \
     .scratch = scratch_##id,                                                                                                                        \
     .run = run_##id,                                                                                                                                \
     .narrow_in = (in),                                                                                                                              \
     .narrow_out = (out)},
        APUS_CPU_OTHERS(X)
#undef X
            {.size = sizeof(apus_kernel),
             .op = "apus.linear/1",
             .flags = APUS_KERNEL_ACCUMULATES,
             .encodings = packed_too,
             .scratch = scratch_linear,
             .run = run_linear,
             .run_siblings = run_siblings_linear,
             .pack = pack_linear,
             .narrow_in = 1,
             .narrow_out = 1,
             .suits = suits_linear,
             .prologues = left_norms},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear/1",
     .then = "apus.add/1",
     .encodings = packed_too,
     .scratch = scratch_linear_add,
     .run = run_linear_add,
     .narrow_in = 1,
     .narrow_out = 1,
     .suits = suits_linear,
     .prologues = left_norms},
    LINEAR_THEN(relu),
    LINEAR_THEN(silu),
    LINEAR_THEN(tanh),
    LINEAR_THEN(gelu),
    {.size = sizeof(apus_kernel),
     .op = "apus.linear/1",
     .then = "apus.swiglu/1",
     .encodings = packed_too,
     .scratch = scratch_linear_swiglu,
     .run = run_linear_swiglu,
     .narrow_in = 1 | 4 | 8, /* x stands before each W */
     .narrow_out = 1,
     .with = "apus.linear/1",
     .suits = suits_linear,
     .prologues = left_norms},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear_dx/1",
     .then = "apus.add/1",
     .encodings = pairs_too,
     .scratch = scratch_linear_dx_add,
     .run = run_linear_dx_add,
     .narrow_in = 1},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear/1",
     .flags = APUS_KERNEL_TWICE,
     .encodings = packed_too,
     .scratch = scratch_linear_twice,
     .run = run_linear_twice,
     .narrow_in = 5,
     .narrow_out = 1,
     .suits = suits_linear_twice},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear/1",
     .then = "apus.add/1",
     .flags = APUS_KERNEL_TWICE,
     .encodings = packed_too,
     .scratch = scratch_linear_twice_add,
     .run = run_linear_twice_add,
     .narrow_in = 5,
     .narrow_out = 1,
     .suits = suits_linear_twice},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear_dx/1",
     .flags = APUS_KERNEL_TWICE,
     .encodings = floats_too,
     .scratch = scratch_linear_dx_twice,
     .run = run_linear_dx_twice,
     .narrow_in = 5,
     .suits = suits_linear_dx_twice},
    {.size = sizeof(apus_kernel),
     .op = "apus.linear_dx/1",
     .then = "apus.add/1",
     .flags = APUS_KERNEL_TWICE,
     .encodings = floats_too,
     .scratch = scratch_linear_dx_twice_add,
     .run = run_linear_dx_twice_add,
     .narrow_in = 5,
     .suits = suits_linear_dx_twice},
    {.size = sizeof(apus_kernel),
     .op = "apus.rope/1",
     .then = "apus.attention_cached/1",
     .scratch = scratch_rope_attention_cached,
     .run = run_rope_attention_cached,
     .flops = flops_rope_attention_cached},
};

static const apus_kernels_ops kernels_ops = {
    .size = sizeof kernels_ops,
    .backend = "cpu",
    .real = APUS_F32,
    .kernels = kernels,
    .n_kernels = sizeof kernels / sizeof kernels[0],
};

static const char *const dtypes[] = {"float32", "bfloat16", NULL};
static const char *const activations[] = {"float", "int8", NULL};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "threads",
     .type = APUS_PARAM_INT,
     .fallback = "0",
     .min = 0,
     .max = 1024,
     .unit = "threads",
     .doc = "Threads that compute. 0: as many as the cores this process may use.",
     .aliases = "num_threads n_threads nthreads"},
    {.size = sizeof(apus_param),
     .name = "dtype",
     .type = APUS_PARAM_STRING,
     .fallback = "float32",
     .choices = dtypes,
     .doc = "What products of matrices are computed in, those inside attention too. bfloat16: both operands are rounded to it, sums are float32; "
            "in training, activations kept for the backward pass are bfloat16, but for the residual stream. Weights, optimizer state, norms, "
            "softmax and losses stay float32 either way.",
     .aliases = "torch_dtype compute_dtype precision"},
    {.size = sizeof(apus_param),
     .name = "activations",
     .type = APUS_PARAM_STRING,
     .fallback = "float",
     .choices = activations,
     .doc = "What activations that meet a weight stored as Q8_0 or Q4_0 are rounded to. int8: to 8 bits in blocks of 32, as llama.cpp does; the "
            "products are integers, several times as fast, the results less exact. Other weights are multiplied as dtype says. In training the "
            "forward pass rounds, and gradients are those of the products without it."},
    {.size = sizeof(apus_param),
     .name = "memory",
     .type = APUS_PARAM_BYTES,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 9e18,
     .unit = "bytes",
     .doc = "Most that a training may take (2GiB, 1500MB): weights, gradients, optimizer states, activations, scratch. Its batches are cut "
            "and blocks of the model computed again as needed; refused before the first step where that is not enough."},
    {.size = sizeof(apus_param),
     .name = "tuning",
     .type = APUS_PARAM_PATH,
     .flags = APUS_PARAM_NULLABLE,
     .min = 1,
     .max = 0,
     .doc = "File that `apus tune` wrote here: which kernels a training takes where other plugins (kernels onednn) have some too. Without it, "
            "this backend's own. Refused on another machine, with other threads, dtype or versions."},
};

static const apus_component components[] = {
    {.size = sizeof(apus_component),
     .kind = "backend",
     .name = "cpu",
     .doc = "The processor: float32, OpenMP threads, vector instructions chosen at run time, products in float32 or bfloat16.",
     .params = params,
     .n_params = sizeof params / sizeof params[0],
     .ops = &backend_ops},
    {.size = sizeof(apus_component), .kind = "kernels", .name = "cpu", .doc = "Kernels of every built-in op, in float32.", .ops = &kernels_ops},
};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "cpu",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "The processor as a backend: float32 and bfloat16, vector instructions.",
                                   .components = components,
                                   .n_components = sizeof components / sizeof components[0]};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
