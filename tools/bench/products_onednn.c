/*
 * oneDNN's side of products.py, over version 3's interface in C (the wheels onednn-cpu-gomp and onednn-devel-cpu-gomp have it, with
 * the same OpenMP runtime as ours).
 *
 *   bench_products_onednn SECONDS        threads: $OMP_NUM_THREADS
 *
 * Where operands are float32 and products are not, x, dy and W are reordered first, W and each operand that likes it into the layout
 * that the product asks for; and float32 ones both ways, W where it lies and reordered, of which the faster counts. The protocol: products.h.
 */
#include "products.h"

#include <oneapi/dnnl/dnnl.h>
#include <sys/mman.h>

#define TRY(call)                                                                                                                                    \
    do {                                                                                                                                             \
        const dnnl_status_t status_ = (call);                                                                                                        \
        if (status_ != dnnl_success) {                                                                                                               \
            fprintf(stderr, "bench_products_onednn: line %d: status %d\n", __LINE__, (int)status_);                                                  \
            exit(1);                                                                                                                                 \
        }                                                                                                                                            \
    } while (0)

static dnnl_engine_t engine;
static dnnl_stream_t stream;

/* A factor on its way: as it is given, as the product reads it, and what turns the one into the other (or NULL). */
typedef struct side {
    dnnl_memory_t given, read;
    dnnl_primitive_t reorder;
    void *room;
} side;

typedef struct calls {
    dnnl_primitive_t product;
    side left, right;
    dnnl_memory_t result;
    char *copies; /* W, or the results of dw */
    size_t copy_bytes;
    side *copied; /* the side that W is; NULL: the result */
    int reorder_copied;
} calls;

static dnnl_memory_desc_t matrix(int64_t rows, int64_t columns, dnnl_data_type_t type, int transposed)
{
    dnnl_memory_desc_t md;
    const dnnl_dims_t dims = {rows, columns}, strides = {transposed ? 1 : columns, transposed ? rows : 1};
    TRY(dnnl_memory_desc_create_with_strides(&md, 2, dims, type, strides));
    return md;
}

static dnnl_memory_desc_t any(int64_t rows, int64_t columns, dnnl_data_type_t type)
{
    dnnl_memory_desc_t md;
    const dnnl_dims_t dims = {rows, columns};
    TRY(dnnl_memory_desc_create_with_tag(&md, 2, dims, type, dnnl_format_tag_any));
    return md;
}

static dnnl_memory_t memory(const_dnnl_memory_desc_t md, void *p)
{
    dnnl_memory_t m;
    TRY(dnnl_memory_create(&m, md, engine, p));
    return m;
}

static void *room_of(size_t bytes)
{
    const size_t huge = 2 << 20, all = (bytes + huge - 1) / huge * huge;
    void *p = aligned_alloc(huge, all);
    if (p != NULL)
        (void)madvise(p, all, MADV_HUGEPAGE); /* as backend cpu does */
    return p;
}

/* given: float32 as it lies; read: what the product asks for. */
static side side_of(const_dnnl_memory_desc_t given, const_dnnl_memory_desc_t read, void *p)
{
    side s = {.given = memory(given, p), .reorder = NULL};
    if (dnnl_memory_desc_equal(given, read)) {
        s.read = memory(read, p);
        return s;
    }
    dnnl_primitive_desc_t pd;
    s.room = room_of(dnnl_memory_desc_get_size(read));
    s.read = memory(read, s.room);
    TRY(dnnl_reorder_primitive_desc_create(&pd, given, engine, read, engine, NULL));
    TRY(dnnl_primitive_create(&s.reorder, pd));
    TRY(dnnl_primitive_desc_destroy(pd));
    return s;
}

static void reorder(const side *s)
{
    if (s->reorder != NULL) {
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, s->given}, {DNNL_ARG_TO, s->read}};
        TRY(dnnl_primitive_execute(s->reorder, stream, 2, args));
    }
}

static void close_side(side *s)
{
    TRY(dnnl_memory_destroy(s->given));
    TRY(dnnl_memory_destroy(s->read));
    if (s->reorder != NULL)
        TRY(dnnl_primitive_destroy(s->reorder));
    free(s->room);
}

static void product(calls *c, int left, int right)
{
    if (left)
        reorder(&c->left);
    if (right)
        reorder(&c->right);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, c->left.read}, {DNNL_ARG_WEIGHTS, c->right.read}, {DNNL_ARG_DST, c->result}};
    TRY(dnnl_primitive_execute(c->product, stream, 3, args));
    TRY(dnnl_stream_wait(stream));
}

static void run_float(void *context, int i)
{
    calls *c = context;
    void *p = c->copies + (size_t)i * c->copy_bytes;
    TRY(dnnl_memory_set_data_handle(c->copied != NULL ? c->copied->given : c->result, p));
    if (c->copied != NULL && c->copied->reorder == NULL)
        TRY(dnnl_memory_set_data_handle(c->copied->read, p));
    product(c, 1, 1);
}

static void run_packed(void *context, int i)
{
    calls *c = context;
    TRY(dnnl_memory_set_data_handle(c->copied->read, c->copies + (size_t)i * c->copy_bytes));
    product(c, 1, 0);
}

static void run_ready(void *context, int i)
{
    calls *c = context;
    TRY(dnnl_memory_set_data_handle(c->copied != NULL ? c->copied->read : c->result, c->copies + (size_t)i * c->copy_bytes));
    product(c, 0, 0);
}

/* where: W is read where it lies, whatever the product would like (float32 alone). */
static double measure(const request *r, int where, double budget)
{
    const int forward = strcmp(r->op, "forward") == 0, dw = strcmp(r->op, "dw") == 0, as_float = strcmp(r->operands, "float") == 0;
    const dnnl_data_type_t type = strcmp(r->dtype, "bfloat16") == 0 ? dnnl_bf16 : dnnl_f32;
    /* result [rows, columns] = left [rows, sum] right [sum, columns] */
    const int64_t rows = dw ? r->n : r->m, columns = forward ? r->n : r->k, sum = forward ? r->k : dw ? r->m : r->n;
    dnnl_memory_desc_t left = matrix(rows, sum, dnnl_f32, dw), right = matrix(sum, columns, dnnl_f32, forward),
                       result = matrix(rows, columns, dnnl_f32, 0);
    /* what changes with each call has its layout chosen for it where that can pay; activations stay rows, but for a transposed one */
    dnnl_memory_desc_t left_wish = dw ? any(rows, sum, type) : matrix(rows, sum, type, 0),
                       right_wish = where ? matrix(sum, columns, type, forward) : any(sum, columns, type);
    dnnl_primitive_desc_t pd;
    calls c = {.copied = NULL};
    TRY(dnnl_matmul_primitive_desc_create(&pd, engine, where && dw ? left : left_wish, right_wish, NULL, result, NULL));
    TRY(dnnl_primitive_create(&c.product, pd));
    const size_t elements = (size_t)(rows * sum + sum * columns + rows * columns);
    float *pool = room_of(elements * sizeof(float));
    fill(pool, elements);
    c.left = side_of(left, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0), pool);
    c.right = side_of(right, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), pool + rows * sum);
    c.result = memory(result, pool + rows * sum + sum * columns);
    c.copied = dw ? NULL : &c.right;
    c.copy_bytes = dw || as_float ? (size_t)(r->n * r->k) * sizeof(float)
                                  : dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
    const int copies = copies_of(c.copy_bytes);
    c.copies = room_of(c.copy_bytes * (size_t)copies);
    product(&c, 1, 1);
    void *first = NULL;
    TRY(dnnl_memory_get_data_handle(dw || as_float ? c.right.given : c.right.read, &first));
    for (int i = 0; i < copies; i++) {
        if (dw)
            memset(c.copies + (size_t)i * c.copy_bytes, 1, c.copy_bytes);
        else
            memcpy(c.copies + (size_t)i * c.copy_bytes, first, c.copy_bytes);
    }
    const double seconds = median_seconds(as_float ? run_float : strcmp(r->operands, "packed") == 0 ? run_packed : run_ready, &c, copies, budget);
    close_side(&c.left);
    close_side(&c.right);
    TRY(dnnl_memory_destroy(c.result));
    TRY(dnnl_primitive_destroy(c.product));
    TRY(dnnl_primitive_desc_destroy(pd));
    TRY(dnnl_memory_desc_destroy(left));
    TRY(dnnl_memory_desc_destroy(right));
    TRY(dnnl_memory_desc_destroy(result));
    TRY(dnnl_memory_desc_destroy(left_wish));
    TRY(dnnl_memory_desc_destroy(right_wish));
    free(c.copies);
    free(pool);
    return seconds;
}

static double serve(const request *r, double budget)
{
    if (strcmp(r->operands, "packed") == 0 && strcmp(r->op, "forward") != 0)
        return -1.0;
    if (strcmp(r->dtype, "float32") != 0 || strcmp(r->operands, "float") != 0)
        return measure(r, 0, budget);
    const double reordered = measure(r, 0, budget / 2), there = measure(r, 1, budget / 2);
    return reordered < there ? reordered : there;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "bench_products_onednn: give the seconds of a request\n");
        return 2;
    }
    const dnnl_version_t *v = dnnl_version();
    fprintf(stderr, "oneDNN %d.%d.%d\n", v->major, v->minor, v->patch);
    TRY(dnnl_engine_create(&engine, dnnl_cpu, 0));
    TRY(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    return answer_requests(serve, atof(argv[1]));
}
