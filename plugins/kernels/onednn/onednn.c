/*
 * Kernels "onednn": linear and its gradients for backend cpu, in float32, by oneDNN's matmul (version 2). Used where a tuning file says
 * that they are faster; knows nothing of encoded or packed weights, nor of bfloat16.
 *
 * oneDNN compiles a product for its extents, and a training's batches have all numbers of rows. So that there are few such products, and
 * none is made in a step once its like was seen: as many rows as are a multiple of BLOCK are one product; what is left is copied, filled
 * up with zeros to a multiple of PAD, and is another. Which two depends on the number of rows alone, and so do the bits.
 *
 * What runs allocates nothing here; oneDNN 2.6's dnnl_primitive_execute does: six or seven blocks, less than 300 bytes in all.
 */
#include <apus/kernel.h>
#include <apus/plugin.h>

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 64, PAD = 16, LINE = 64 };

typedef enum kind { FORWARD, DX, DW } kind;
typedef enum addend { NOTHING, RESULT /* what is there */, OTHER /* another matrix like it */ } addend;

/* result [rows, columns] = left [rows, sum] right [sum, columns] (+ bias [columns]) (+ addend). DW reads its left side by columns, FORWARD its
 * right side. */
typedef struct product {
    int64_t rows, columns, sum;
    int32_t kind, bias, add, unused;
} product;

/* A product that oneDNN has compiled. */
typedef struct compiled {
    product what;
    dnnl_primitive_t primitive;
    dnnl_memory_t left, right, result, bias, other, scratch;
    struct compiled *next; /* of the same bucket */
} compiled;

/* How much scratch a kernel asks for at a capacity. */
typedef struct room {
    product what; /* of all rows */
    size_t bytes;
    struct room *next;
} room;

enum { BUCKETS = 1024 };

typedef struct onednn {
    const apus_host *host;
    int threads;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    compiled *buckets[BUCKETS];
    room *rooms;
    char description[80];
} onednn;

static apus_status failed(apus_error *err, const char *what, dnnl_status_t status)
{
    return apus_fail(err, status == dnnl_out_of_memory ? APUS_E_MEMORY : APUS_E_INTERNAL, "oneDNN: %s: status %d", what, (int)status);
}

/* ---------------------------------------------------------------- products */

static dnnl_status_t describe_matrix(dnnl_memory_desc_t *md, int64_t rows, int64_t columns, int by_columns)
{
    const dnnl_dims_t dims = {rows, columns}, strides = {by_columns ? 1 : columns, by_columns ? rows : 1};
    return dnnl_memory_desc_init_by_strides(md, 2, dims, dnnl_f32, strides);
}

typedef struct descriptors {
    dnnl_memory_desc_t left, right, result, bias;
} descriptors;

/* owner of *pd: caller */
static dnnl_status_t describe(const onednn *o, const product *p, descriptors *d, dnnl_primitive_desc_t *pd)
{
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t then = NULL;
    dnnl_status_t st = describe_matrix(&d->left, p->rows, p->sum, p->kind == DW);
    if (st == dnnl_success)
        st = describe_matrix(&d->right, p->sum, p->columns, p->kind == FORWARD);
    if (st == dnnl_success)
        st = describe_matrix(&d->result, p->rows, p->columns, 0);
    if (st == dnnl_success)
        st = describe_matrix(&d->bias, 1, p->columns, 0);
    if (st == dnnl_success)
        st = dnnl_matmul_desc_init(&matmul, &d->left, &d->right, p->bias ? &d->bias : NULL, &d->result);
    if (st == dnnl_success)
        st = dnnl_primitive_attr_create(&attr);
    if (st == dnnl_success)
        st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (st == dnnl_success)
        st = dnnl_post_ops_create(&then);
    if (st == dnnl_success && p->add == RESULT)
        st = dnnl_post_ops_append_sum(then, 1.0f);
    if (st == dnnl_success && p->add == OTHER)
        st = dnnl_post_ops_append_binary(then, dnnl_binary_add, &d->result);
    if (st == dnnl_success)
        st = dnnl_primitive_attr_set_post_ops(attr, then);
    if (st == dnnl_success)
        st = dnnl_primitive_desc_create(pd, &matmul, attr, o->engine, NULL);
    (void)dnnl_post_ops_destroy(then);
    (void)dnnl_primitive_attr_destroy(attr);
    return st;
}

static void release(onednn *o, compiled *c)
{
    if (c == NULL)
        return;
    const dnnl_memory_t all[] = {c->left, c->right, c->result, c->bias, c->other, c->scratch};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i] != NULL)
            (void)dnnl_memory_destroy(all[i]);
    if (c->primitive != NULL)
        (void)dnnl_primitive_destroy(c->primitive);
    o->host->free(c);
}

static dnnl_status_t compile(const onednn *o, compiled *c)
{
    descriptors d;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t st = describe(o, &c->what, &d, &pd);
    if (st != dnnl_success)
        return st;
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    st = dnnl_primitive_create(&c->primitive, pd);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->left, &d.left, o->engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->right, &d.right, o->engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->result, &d.result, o->engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->bias, &d.bias, o->engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->other, &d.result, o->engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success)
        st = dnnl_memory_create(&c->scratch, scratch, o->engine, DNNL_MEMORY_NONE);
    (void)dnnl_primitive_desc_destroy(pd);
    return st;
}

static size_t bucket_of(const product *p)
{
    const uint64_t parts[] = {(uint64_t)p->rows, (uint64_t)p->columns, (uint64_t)p->sum, (uint64_t)(p->kind * 16 + p->add * 2 + p->bias)};
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        h = (h ^ parts[i]) * 1099511628211u;
    return (size_t)((h ^ h >> 32) % BUCKETS);
}

/* Compiled now if it is new. NULL: an error. owner: o */
static compiled *find(onednn *o, const product *p, apus_error *err)
{
    compiled **bucket = &o->buckets[bucket_of(p)];
    for (compiled *c = *bucket; c != NULL; c = c->next)
        if (memcmp(&c->what, p, sizeof *p) == 0)
            return c;
    compiled *c = (compiled *)o->host->alloc(sizeof *c);
    if (c == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "oneDNN: out of memory");
        return NULL;
    }
    c->what = *p;
    const dnnl_status_t st = compile(o, c);
    if (st != dnnl_success) {
        (void)failed(err, "a product cannot be compiled", st);
        release(o, c);
        return NULL;
    }
    c->next = *bucket;
    *bucket = c;
    return c;
}

typedef struct operands {
    const float *left, *right, *bias, *other;
    float *result;
    void *scratch;
} operands;

static void *writable(const float *p)
{
    return (void *)(uintptr_t)p; /* oneDNN only reads it */
}

static apus_status multiply(onednn *o, const product *p, const operands *with, apus_error *err)
{
    const compiled *c = find(o, p, err);
    if (c == NULL)
        return APUS_E_INTERNAL;
    const struct {
        dnnl_memory_t memory;
        void *data;
    } sides[] = {{c->left, writable(with->left)}, {c->right, writable(with->right)}, {c->result, with->result},
                 {c->bias, writable(with->bias)}, {c->other, writable(with->other)}, {c->scratch, with->scratch}};
    dnnl_status_t st = dnnl_success;
    for (size_t i = 0; i < sizeof sides / sizeof sides[0] && st == dnnl_success; i++)
        st = dnnl_memory_set_data_handle(sides[i].memory, sides[i].data);
    dnnl_exec_arg_t args[6] = {{DNNL_ARG_SRC, c->left}, {DNNL_ARG_WEIGHTS, c->right}, {DNNL_ARG_DST, c->result}, {DNNL_ARG_SCRATCHPAD, c->scratch}};
    int n = 4;
    if (p->bias)
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, c->bias};
    if (p->add == OTHER)
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, c->other};
    if (st == dnnl_success)
        st = dnnl_primitive_execute(c->primitive, o->stream, n, args);
    if (st == dnnl_success)
        st = dnnl_stream_wait(o->stream);
    return st == dnnl_success ? APUS_OK : failed(err, "a product failed", st);
}

/* ---------------------------------------------------------------- any number of rows */

static int64_t whole(int64_t rows)
{
    return rows / BLOCK * BLOCK;
}

static int64_t padded(int64_t rows)
{
    return (rows + PAD - 1) / PAD * PAD;
}

static size_t lines(int64_t floats)
{
    return ((size_t)floats * sizeof(float) + LINE - 1) / LINE * LINE;
}

/* The rows that count: of dw they are what is summed over. */
static int64_t *rows_of(product *p)
{
    return p->kind == DW ? &p->sum : &p->rows;
}

/* Bytes of the two matrices that a rest of rows is copied to, or computed in. */
static size_t rest_bytes(const product *p)
{
    return p->kind == DW ? lines(BLOCK * p->rows) + lines(BLOCK * p->columns) : lines(BLOCK * p->sum) + lines(BLOCK * p->columns);
}

/* How the rest is computed: by itself, added by whoever asked; of dw onto what the other rows gave. */
static product rest_of(product p, int64_t rest)
{
    const int on_top = p.kind == DW && (p.add == RESULT || whole(p.sum) > 0);
    *rows_of(&p) = padded(rest);
    p.add = on_top ? RESULT : NOTHING;
    return p;
}

static void fill_up(float *to, const float *from, int64_t rows, int64_t width)
{
    memcpy(to, from, (size_t)(rows * width) * sizeof *to);
    memset(to + rows * width, 0, (size_t)((padded(rows) - rows) * width) * sizeof *to);
}

static apus_status rest(onednn *o, const product *p, const operands *with, char *scratch, apus_error *err)
{
    product all = *p;
    const int64_t done = whole(*rows_of(&all)), left = *rows_of(&all) - done;
    const product piece = rest_of(*p, left);
    float *first = (float *)scratch, *second = (float *)(scratch + lines(BLOCK * (p->kind == DW ? p->rows : p->sum)));
    operands its = *with;
    its.left = first;
    its.scratch = scratch + rest_bytes(p);
    if (p->kind == DW) {
        fill_up(first, with->left + done * p->rows, left, p->rows);
        fill_up(second, with->right + done * p->columns, left, p->columns);
        its.right = second;
        return multiply(o, &piece, &its, err);
    }
    fill_up(first, with->left + done * p->sum, left, p->sum);
    its.result = second;
    const apus_status st = multiply(o, &piece, &its, err);
    if (st != APUS_OK)
        return st;
    const int64_t from = done * p->columns;
    for (int64_t i = 0; i < left * p->columns; i++) {
        const float add = p->add == RESULT ? with->result[from + i] : p->add == OTHER ? with->other[from + i] : 0.0f;
        with->result[from + i] = second[i] + add;
    }
    return APUS_OK;
}

/* A sum of nothing. */
static void nothing(const product *p, const operands *with)
{
    for (int64_t i = 0; i < p->rows; i++)
        for (int64_t j = 0; j < p->columns; j++) {
            const int64_t at = i * p->columns + j;
            const float add = p->add == RESULT ? with->result[at] : p->add == OTHER ? with->other[at] : 0.0f;
            with->result[at] = (p->bias ? with->bias[j] : 0.0f) + add;
        }
}

static apus_status compute(onednn *o, const product *p, const operands *with, char *scratch, apus_error *err)
{
    product most = *p;
    const int64_t rows = *rows_of(&most);
    apus_status st = APUS_OK;
    if (p->rows == 0 || p->columns == 0)
        return APUS_OK;
    if (p->sum == 0) {
        nothing(p, with);
        return APUS_OK;
    }
    const int threads = omp_get_max_threads();
    omp_set_num_threads(o->threads); /* what oneDNN goes by */
    *rows_of(&most) = whole(rows);
    if (whole(rows) > 0) {
        operands its = *with;
        its.scratch = scratch + rest_bytes(p);
        st = multiply(o, &most, &its, err);
    }
    if (st == APUS_OK && whole(rows) < rows)
        st = rest(o, p, with, scratch, err);
    omp_set_num_threads(threads);
    return st;
}

/* ---------------------------------------------------------------- scratch */

static size_t scratch_of(const onednn *o, const product *p)
{
    descriptors d;
    dnnl_primitive_desc_t pd = NULL;
    if (describe(o, p, &d, &pd) != dnnl_success)
        return 0; /* the kernel will say why */
    const size_t bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
    (void)dnnl_primitive_desc_destroy(pd);
    return bytes;
}

/* The most that p and all with fewer rows need; and those of as many as p's are compiled. */
static size_t prepare(onednn *o, product p)
{
    const int64_t rows = *rows_of(&p);
    size_t most = 0;
    for (const room *r = o->rooms; r != NULL; r = r->next)
        if (memcmp(&r->what, &p, sizeof p) == 0)
            return r->bytes;
    if (p.rows == 0 || p.columns == 0 || p.sum == 0)
        return 0;
    const int threads = omp_get_max_threads();
    omp_set_num_threads(o->threads);
    for (int64_t n = BLOCK; n <= rows; n += BLOCK) {
        product piece = p;
        *rows_of(&piece) = n;
        const size_t its = scratch_of(o, &piece);
        most = its > most ? its : most;
        if (n == whole(rows))
            (void)find(o, &piece, NULL);
    }
    for (int64_t n = PAD; n <= BLOCK; n += PAD) {
        product piece = rest_of(p, n);
        if (n == padded(rows - whole(rows)))
            (void)find(o, &piece, NULL);
        for (int on_top = 0; on_top <= (p.kind == DW); on_top++) {
            piece.add = on_top ? RESULT : NOTHING;
            const size_t its = scratch_of(o, &piece);
            most = its > most ? its : most;
        }
    }
    omp_set_num_threads(threads);
    room *r = (room *)o->host->alloc(sizeof *r);
    most += rest_bytes(&p);
    if (r != NULL) {
        *r = (room){p, most, o->rooms};
        o->rooms = r;
    }
    return most;
}

/* ---------------------------------------------------------------- kernels */

/* The last of a pair's inputs is the add's other operand; where that is the result's memory, it is added to in place. */
static product product_of(const apus_kernel_call *c, kind k, int pair, int in_place)
{
    const apus_view *a = &c->in[0], *b = &c->in[1];
    const int bias = k == FORWARD && c->n_in > 2u + (uint32_t)pair;
    product p = {.kind = k, .bias = bias, .add = (c->accumulate & 1u) != 0 || in_place ? RESULT : pair ? OTHER : NOTHING};
    p.rows = k == DW ? a->dims[1] : a->dims[0];
    p.columns = k == FORWARD ? b->dims[0] : b->dims[1];
    p.sum = k == DW ? a->dims[0] : a->dims[1];
    return p;
}

static apus_status run(const apus_kernel_call *c, kind k, int pair, apus_error *err)
{
    const product p = product_of(c, k, pair, pair && c->out[0].data == c->in[c->n_in - 1].data);
    const operands with = {.left = (const float *)c->in[0].data,
                           .right = (const float *)c->in[1].data,
                           .bias = p.bias ? (const float *)c->in[2].data : NULL,
                           .other = pair ? (const float *)c->in[c->n_in - 1].data : NULL,
                           .result = (float *)c->out[0].data};
    return compute((onednn *)c->backend, &p, &with, (char *)c->scratch, err);
}

/* Whether a pair's result lies in its operand is known when it runs: enough for both. */
static size_t scratch(const apus_kernel_call *c, kind k, int pair)
{
    onednn *o = (onednn *)c->backend;
    const size_t beside = prepare(o, product_of(c, k, pair, 0)), in_place = pair ? prepare(o, product_of(c, k, pair, 1)) : 0;
    return beside > in_place ? beside : in_place;
}

#define KERNEL(name, k, pair)                                                                                                                        \
    static apus_status run_##name(const apus_kernel_call *c, apus_error *err)                                                                        \
    {                                                                                                                                                \
        return run(c, k, pair, err);                                                                                                                 \
    }                                                                                                                                                \
    static size_t scratch_##name(const apus_kernel_call *c)                                                                                          \
    {                                                                                                                                                \
        return scratch(c, k, pair);                                                                                                                  \
    }
KERNEL(linear, FORWARD, 0)
KERNEL(linear_add, FORWARD, 1)
KERNEL(linear_dx, DX, 0)
KERNEL(linear_dx_add, DX, 1)
KERNEL(linear_dw, DW, 0)

#define ENTRY(name, first, second, bits)                                                                                                             \
    {                                                                                                                                                \
        .size = sizeof(apus_kernel), .op = first, .then = second, .flags = APUS_KERNEL_ROWS_VARY | (bits), .scratch = scratch_##name,                \
        .run = run_##name                                                                                                                            \
    }
static const apus_kernel kernels[] = {
    ENTRY(linear, "apus.linear/1", NULL, APUS_KERNEL_ACCUMULATES), ENTRY(linear_add, "apus.linear/1", "apus.add/1", 0),
    ENTRY(linear_dx, "apus.linear_dx/1", NULL, APUS_KERNEL_ACCUMULATES), ENTRY(linear_dx_add, "apus.linear_dx/1", "apus.add/1", 0),
    ENTRY(linear_dw, "apus.linear_dw/1", NULL, APUS_KERNEL_ACCUMULATES)};

/* ---------------------------------------------------------------- the table's instance */

static void onednn_close(void *instance)
{
    onednn *o = (onednn *)instance;
    for (size_t i = 0; i < BUCKETS; i++)
        for (compiled *c = o->buckets[i]; c != NULL;) {
            compiled *next = c->next;
            release(o, c);
            c = next;
        }
    for (room *r = o->rooms; r != NULL;) {
        room *next = r->next;
        o->host->free(r);
        r = next;
    }
    if (o->stream != NULL)
        (void)dnnl_stream_destroy(o->stream);
    if (o->engine != NULL)
        (void)dnnl_engine_destroy(o->engine);
    o->host->free(o);
}

static apus_status onednn_open(const apus_host *host, const apus_backend_facts *facts, void **instance, apus_error *err)
{
    if (facts->products != APUS_F32)
        return apus_fail(err, APUS_E_UNSUPPORTED, "its products are float32, the backend's are not");
    onednn *o = (onednn *)host->alloc(sizeof *o);
    if (o == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    *o = (onednn){.host = host, .threads = (int)facts->threads};
    const dnnl_version_t *v = dnnl_version();
    (void)snprintf(o->description, sizeof o->description, "oneDNN %d.%d.%d, instructions 0x%x", v->major, v->minor, v->patch,
                   (unsigned)dnnl_get_effective_cpu_isa());
    dnnl_status_t st = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
    if (st == dnnl_success)
        st = dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags);
    if (st != dnnl_success) {
        onednn_close(o);
        return failed(err, "it does not start", st);
    }
    *instance = o;
    return APUS_OK;
}

static const char *onednn_describe(void *instance)
{
    return ((const onednn *)instance)->description;
}

static const apus_kernels_ops ops = {.size = sizeof ops,
                                     .backend = "cpu",
                                     .real = APUS_F32,
                                     .kernels = kernels,
                                     .n_kernels = sizeof kernels / sizeof kernels[0],
                                     .open = onednn_open,
                                     .close = onednn_close,
                                     .describe = onednn_describe};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "kernels",
                                             .name = "onednn",
                                             .doc = "oneDNN's products for backend cpu, in float32 trainings: where `apus tune` finds them faster.",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,
                                   .name = "onednn",
                                   .version = "1.0.0",
                                   .license = "Apache-2.0",
                                   .doc = "Kernels of oneDNN for the processor.",
                                   .components = components,
                                   .n_components = sizeof components / sizeof components[0]};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
