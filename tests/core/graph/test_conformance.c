/*
 * Conformance of backends: every kernel that any backend but the reference offers for a built-in op is called by itself, on
 * the same numbers as the reference's kernel, over shapes with and without tails, in every encoding it claims, adding
 * where it says it can, with outputs nobody needs, and without touching a byte outside its outputs and scratch.
 * A backend that does not answer here is skipped by name.
 */
#include "core/graph/cases.h"

#include <apus/blocks.h>
#include <dirent.h>

enum { GUARD = 64 };

/* ---------------------------------------------------------------- encodings */

/* A row of a block encoding whose values are of a sensible size: random bytes, drawn again until they are. */
static void encode(apus_dtype t, uint64_t seed, const double *values, int64_t n, unsigned char *row, double *decoded)
{
    if (t == APUS_F32 || t == APUS_F16 || t == APUS_BF16) {
        for (int64_t i = 0; i < n; i++) {
            const float f = (float)values[i];
            const uint16_t h = t == APUS_F16 ? apus_f32_to_f16(f) : apus_f32_to_bf16(f);
            memcpy(row + i * (t == APUS_F32 ? 4 : 2), t == APUS_F32 ? (const void *)&f : (const void *)&h, t == APUS_F32 ? 4 : 2);
        }
    } else {
        int64_t block;
        const size_t bytes = apus_block_layout(t, &block);
        for (int64_t b = 0; b * block < n; b++) {
            float y[256];
            for (uint32_t attempt = 0;; attempt++) {
                for (size_t i = 0; i < bytes; i += 16) {
                    uint32_t words[4];
                    apus_philox4x32((const uint32_t[2]){(uint32_t)seed, 5}, (const uint32_t[4]){attempt, (uint32_t)b, (uint32_t)i, 0}, words);
                    memcpy(row + (size_t)b * bytes + i, words, bytes - i < 16 ? bytes - i : 16);
                }
                (void)apus_row_to_f32(t, row + (size_t)b * bytes, y, block);
                float most = 0;
                int finite = 1;
                for (int64_t i = 0; i < block; i++) {
                    finite &= isfinite(y[i]) != 0;
                    most = fmaxf(most, fabsf(y[i]));
                }
                if (finite && most < 4.0f && most > 0.05f)
                    break;
            }
        }
    }
    float *y = calloc((size_t)n + 1, sizeof *y);
    (void)apus_row_to_f32(t, row, y, n);
    for (int64_t i = 0; i < n; i++)
        decoded[i] = (double)y[i];
    free(y);
}

/* ---------------------------------------------------------------- calls */

typedef struct buffer {
    char *device;
    size_t bytes; /* between two guards */
} buffer;

static buffer to_device(apus_device *d, const void *from, size_t bytes)
{
    apus_error err;
    buffer b = {.bytes = bytes};
    unsigned char *host = malloc(bytes + 2 * GUARD);
    b.device = apus_device_alloc(d, bytes + 2 * GUARD, &err);
    if (b.device == NULL)
        fail_msg("%s", err.message);
    memset(host, 0xa5, bytes + 2 * GUARD);
    if (from != NULL)
        memcpy(host + GUARD, from, bytes);
    assert_int_equal(apus_device_upload(d, b.device, host, bytes + 2 * GUARD, &err), APUS_OK);
    free(host);
    return b;
}

static void from_device(apus_device *d, buffer *b, void *to, const char *what)
{
    apus_error err;
    unsigned char *host = malloc(b->bytes + 2 * GUARD);
    assert_int_equal(apus_device_download(d, host, b->device, b->bytes + 2 * GUARD, &err), APUS_OK);
    for (size_t i = 0; i < GUARD; i++)
        if (host[i] != 0xa5 || host[b->bytes + GUARD + i] != 0xa5)
            fail_msg("%s: wrote outside its memory", what);
    if (to != NULL)
        memcpy(to, host + GUARD, b->bytes);
    free(host);
    apus_device_free(d, b->device, b->bytes + 2 * GUARD);
}

static void *as_real(apus_dtype real, const double *values, int64_t n)
{
    void *p = calloc((size_t)n + 1, 8);
    for (int64_t i = 0; i < n; i++) {
        if (real == APUS_F32)
            ((float *)p)[i] = (float)values[i];
        else
            ((double *)p)[i] = values[i];
    }
    return p;
}

typedef struct variant {
    apus_dtype encoding;       /* of the weight; APUS_REAL: plain */
    uint32_t accumulate, skip; /* outputs to add to; outputs nobody needs */
    int in_place;              /* output 0 in the memory of this input; -1 */
} variant;

/* Runs kernel e on the case; results into k->out[].real. `rows`: the encoded weight. */
static void call(apus_device *d, const apus_kernel_entry *e, kase *k, const variant *v, const void *rows, const char *what)
{
    const apus_dtype real = d->real;
    const size_t size = apus_dtype_size(real);
    const int elementwise = (e->op->flags & APUS_OP_ELEMENTWISE) != 0;
    const uint32_t each = e->with != NULL ? k->n_in / 2 : k->n_in; /* inputs of each op */
    apus_view in[OPERANDS], out[APUS_MAX_OUTPUTS];
    buffer bin[OPERANDS], bout[APUS_MAX_OUTPUTS];
    for (uint32_t i = 0; i < k->n_in; i++) {
        operand *o = &k->in[i];
        const int64_t n = count(&o->view);
        in[i] = o->view;
        if (o->view.dtype == APUS_I32 || o->view.dtype == APUS_I64) {
            bin[i] = to_device(d, o->raw, (size_t)n * apus_dtype_size(o->view.dtype));
        } else if ((int)(i % each) == k->weight && v->encoding != APUS_REAL && v->encoding != real) {
            in[i].dtype = v->encoding;
            bin[i] = to_device(d, rows, k->weight_bytes);
        } else {
            void *p = as_real(real, o->real, n);
            in[i].dtype = real;
            bin[i] = to_device(d, p, (size_t)n * size);
            free(p);
        }
        in[i].data = bin[i].device + GUARD;
        if (e->op->shape_only >> i & 1)
            in[i].data = NULL;
    }
    for (uint32_t i = 0; i < k->n_out; i++) {
        const int64_t n = count(&k->out[i].view);
        void *p = as_real(real, k->out[i].real, n);
        bout[i] = to_device(d, (v->accumulate >> i & 1) != 0 ? p : NULL, (size_t)n * size);
        free(p);
        out[i] = k->out[i].view;
        out[i].dtype = real;
        out[i].data = (v->skip >> i & 1) != 0 ? NULL : i == 0 && v->in_place >= 0 ? in[v->in_place].data : bout[i].device + GUARD;
        if (elementwise) {
            out[i].ndim = 1;
            out[i].dims[0] = n;
        }
    }
    for (uint32_t i = 0; i < k->n_in && elementwise; i++) { /* ranges of one dimension */
        in[i].dims[0] = count(&in[i]);
        in[i].ndim = 1;
    }
    apus_kernel_call c = {.in = in,
                          .out = out,
                          .attrs = k->attrs,
                          .backend = apus_device_instance(d, e),
                          .n_in = k->n_in,
                          .n_out = k->n_out,
                          .accumulate = v->accumulate};
    const size_t need = e->kernel.scratch != NULL ? e->kernel.scratch(&c) : 0;
    buffer scratch = to_device(d, NULL, need);
    apus_error err = {.message = ""};
    c.scratch = need > 0 ? scratch.device + GUARD : NULL;
    const apus_status st = e->kernel.run(&c, &err);
    if (st != APUS_OK || d->ops.finish(d->backend, &err) != APUS_OK)
        fail_msg("%s: %s", what, err.message);
    from_device(d, &scratch, NULL, what);
    for (uint32_t i = 0; i < k->n_out; i++) {
        const int64_t n = count(&k->out[i].view);
        void *p = calloc((size_t)n + 1, 8);
        from_device(d, &bout[i], p, what);
        if (i == 0 && v->in_place >= 0) {
            from_device(d, &bin[v->in_place], p, what);
            bin[v->in_place].device = NULL;
        }
        for (int64_t j = 0; j < n && (v->skip >> i & 1) == 0; j++)
            k->out[i].real[j] = real == APUS_F32 ? (double)((float *)p)[j] : ((double *)p)[j];
        free(p);
    }
    for (uint32_t i = 0; i < k->n_in; i++)
        if (bin[i].device != NULL)
            from_device(d, &bin[i], NULL, what);
}

/* ---------------------------------------------------------------- comparing */

static apus_device *ref;

static int in_place_input(const apus_op *op)
{
    return (op->flags & APUS_OP_IN_PLACE) != 0 ? 0 : -1;
}

/* How many of the case's last inputs are the other ones of a pair's second op. */
static uint32_t others(const apus_kernel_entry *e)
{
    return e->then != NULL && e->with == NULL ? e->then->max_inputs - 1 : 0;
}

static int is_twice(const apus_kernel_entry *e)
{
    return (e->kernel.flags & APUS_KERNEL_TWICE) != 0;
}

/* What op gives for the first two inputs, added to what it gave for the others. */
static void reference_other(const apus_kernel_entry *first, kase *k)
{
    const variant none = {.in_place = -1};
    kase other = {.n_in = 2, .n_out = 1, .in = {k->in[0], k->in[1]}, .out = {k->out[0]}};
    const int64_t n = count(&k->out[0].view);
    other.out[0].real = calloc((size_t)n + 1, sizeof(double));
    call(ref, first, &other, &none, NULL, "ref");
    for (int64_t j = 0; j < n; j++)
        k->out[0].real[j] += other.out[0].real[j];
    free(other.out[0].real);
}

/* What the reference gives for the case: op, perhaps of the other two inputs too, then perhaps the second op of a pair on the case's last
 * inputs. */
static void reference(const apus_kernel_entry *e, kase *k, const variant *v)
{
    const apus_kernel_entry *first = apus_device_choose(ref, e->op, NULL, NULL, APUS_REAL);
    assert_non_null(first);
    const uint32_t n_in = k->n_in;
    k->n_in = e->with != NULL ? n_in / 2 : n_in - others(e);
    if (is_twice(e)) { /* the last of them by themselves, then the first two */
        const variant none = {.in_place = -1};
        kase last = *k;
        memmove(last.in, last.in + 2, (last.n_in -= 2) * sizeof last.in[0]);
        call(ref, first, &last, &none, NULL, "ref");
        reference_other(first, k);
    }
    const variant plain = {.skip = v->skip, .in_place = in_place_input(e->op)};
    double *before[APUS_MAX_OUTPUTS];
    for (uint32_t i = 0; i < k->n_out; i++) {
        const size_t bytes = ((size_t)count(&k->out[i].view) + 1) * sizeof(double);
        before[i] = malloc(bytes);
        memcpy(before[i], k->out[i].real, bytes);
    }
    if (!is_twice(e))
        call(ref, first, k, &plain, NULL, "ref");
    for (uint32_t i = 0; i < k->n_out; i++) {
        for (int64_t j = 0; j < count(&k->out[i].view) && (v->accumulate >> i & 1) != 0; j++)
            k->out[i].real[j] += before[i][j];
        free(before[i]);
    }
    k->n_in = n_in;
    if (e->then == NULL)
        return;
    kase second = {.n_in = e->then->max_inputs, .n_out = 1};
    second.in[0] = second.in[1] = k->out[0];
    memcpy(second.in + 1, k->in + n_in - others(e), others(e) * sizeof second.in[0]);
    second.out[0] = k->out[0];
    memcpy(second.attrs, k->attrs + ((const apus_op_entry *)e->op)->n_attrs, ((const apus_op_entry *)e->then)->n_attrs * sizeof second.attrs[0]);
    const variant none = {.in_place = -1};
    call(ref, apus_device_choose(ref, e->then, NULL, NULL, APUS_REAL), &second, &none, NULL, "ref");
}

static void compare(const kase *k, double *const *expected, uint32_t skip, const char *what)
{
    for (uint32_t i = 0; i < k->n_out; i++) {
        const int64_t n = count(&k->out[i].view);
        double most = 0.0;
        for (int64_t j = 0; j < n; j++)
            most = fmax(most, isfinite(expected[i][j]) ? fabs(expected[i][j]) : 0.0);
        for (int64_t j = 0; j < n && (skip >> i & 1) == 0; j++) {
            const double a = k->out[i].real[j], b = expected[i][j];
            if (!(fabs(a - b) <= k->tolerance * (most + 1e-3)) && !(isnan(a) && isnan(b)) && a != b)
                fail_msg("%s: output %u, element %lld of %lld: %.9g, the reference gives %.9g", what, i, (long long)j, (long long)n, a, b);
        }
    }
}

static void run_variant(apus_device *d, const apus_kernel_entry *e, kase *k, variant v, const void *rows, const char *what)
{
    double *start[APUS_MAX_OUTPUTS], *expected[APUS_MAX_OUTPUTS], *again[APUS_MAX_OUTPUTS];
    for (uint32_t i = 0; i < k->n_out; i++) {
        const size_t bytes = ((size_t)count(&k->out[i].view) + 1) * sizeof(double);
        start[i] = malloc(bytes), expected[i] = malloc(bytes), again[i] = malloc(bytes);
        for (size_t j = 0; j < bytes / sizeof(double); j++)
            start[i][j] = (double)(float)bed_random(4 + i, j, -1, 1);
        memcpy(k->out[i].real, start[i], bytes);
    }
    reference(e, k, &v);
    for (int turn = 0; turn < 2; turn++) { /* the second time for the bits */
        for (uint32_t i = 0; i < k->n_out; i++) {
            const size_t bytes = ((size_t)count(&k->out[i].view) + 1) * sizeof(double);
            memcpy(turn == 0 ? expected[i] : again[i], k->out[i].real, bytes);
            memcpy(k->out[i].real, start[i], bytes);
        }
        call(d, e, k, &v, rows, what);
    }
    compare(k, expected, v.skip, what);
    for (uint32_t i = 0; i < k->n_out; i++) {
        if ((v.skip >> i & 1) == 0 && memcmp(again[i], k->out[i].real, (size_t)count(&k->out[i].view) * sizeof(double)) != 0)
            fail_msg("%s: output %u has other bits the second time", what, i);
        free(start[i]);
        free(expected[i]);
        free(again[i]);
    }
}

/* The weight as the device's linear packs it; NULL: not with these settings. owner: caller; rows: taken */
static unsigned char *pack(apus_device *d, kase *k, apus_dtype encoding, unsigned char *rows)
{
    apus_error err;
    apus_dtype type;
    apus_view w = k->in[k->weight].view;
    w.dtype = encoding & ~APUS_PACKED;
    buffer from = to_device(d, rows, k->weight_bytes);
    w.data = from.device + GUARD;
    const size_t bytes = apus_device_pack(d, &w, &type, NULL);
    if (bytes == 0) {
        from_device(d, &from, NULL, "pack");
        free(rows);
        return NULL;
    }
    assert_true(type == encoding);
    void *to = apus_device_alloc(d, bytes, &err);
    assert_non_null(to);
    assert_int_equal(apus_device_pack(d, &w, &type, to), bytes);
    free(rows);
    rows = malloc(bytes);
    assert_int_equal(apus_device_download(d, rows, to, bytes, &err), APUS_OK);
    apus_device_free(d, to, bytes);
    from_device(d, &from, NULL, "pack");
    k->weight_bytes = bytes;
    return rows;
}

/* One case in all its variants. */
static void check_case(apus_device *d, const apus_kernel_entry *e, kase *k, apus_dtype encoding, const char *what)
{
    unsigned char *rows = NULL;
    if (encoding != APUS_REAL && k->weight >= 0) {
        operand *w = &k->in[k->weight];
        const int64_t r = w->view.dims[0], n = w->view.dims[1];
        const apus_dtype stored = encoding & ~APUS_PACKED;
        const size_t bytes = apus_dtype_row_bytes(stored, n);
        rows = calloc((size_t)r + 1, bytes);
        for (int64_t i = 0; i < r; i++)
            encode(stored, 50 + (uint64_t)i, w->real + i * n, n, rows + (size_t)i * bytes, w->real + i * n);
        k->weight_bytes = (size_t)r * bytes;
        if (encoding != stored && (rows = pack(d, k, encoding, rows)) == NULL)
            return;
    }
    if (e->then != NULL) {
        const uint32_t n_in = k->n_in;
        double *attrs = k->attrs + ((const apus_op_entry *)e->op)->n_attrs;
        memcpy(attrs, ((const apus_op_entry *)e->then)->defaults, ((const apus_op_entry *)e->then)->n_attrs * sizeof *attrs);
        if (others(e) == 1) /* like the result */
            real_in(k, k->out[0].view.dims[0], k->out[0].view.dims[1], -1, 1);
        else if (is(e->op->name, "rope") && is(e->then->name, "attention_cached"))
            cache_in(k, attrs, k->out[0].view.dims[0], k->out[0].view.dims[1] / (int64_t)k->attrs[0], (int64_t)k->attrs[0]);
        else if (others(e) > 1)
            fail_msg("%s: no case here", what);
        for (uint32_t i = 0; i < n_in && e->with != NULL; i++)
            k->in[k->n_in++] = k->in[i];
        run_variant(d, e, k, (variant){.encoding = encoding, .in_place = -1}, rows, what);
        if (others(e) == 1)
            run_variant(d, e, k, (variant){.encoding = encoding, .in_place = (int)k->n_in - 1}, rows, what);
        else
            k->n_in = n_in;
        free(rows);
        return;
    }
    const uint32_t all = (1u << k->n_out) - 1;
    run_variant(d, e, k, (variant){.encoding = encoding, .in_place = in_place_input(e->op)}, rows, what);
    for (uint32_t i = 0; i < k->n_out && k->n_out > 1; i++)
        run_variant(d, e, k, (variant){.encoding = encoding, .skip = all & ~(1u << i), .in_place = -1}, rows, what);
    if ((e->kernel.flags & APUS_KERNEL_ACCUMULATES) != 0) {
        run_variant(d, e, k, (variant){.encoding = encoding, .accumulate = all, .in_place = -1}, rows, what);
        for (uint32_t i = 0; i < k->n_out && k->n_out > 1; i++)
            run_variant(d, e, k, (variant){.encoding = encoding, .accumulate = 1u << i, .in_place = -1}, rows, what);
    }
    for (uint32_t i = 0; i < k->n_in && k->n_out == 1 && (e->op->flags & APUS_OP_ELEMENTWISE) != 0; i++)
        if (k->in[i].view.dims[0] == k->out[0].view.dims[0] && (e->op->shape_only >> i & 1) == 0)
            run_variant(d, e, k, (variant){.encoding = encoding, .in_place = (int)i}, rows, what);
    free(rows);
}

/* The case with another two inputs before its own, whose product has a shape like its own. 0: the kernel leaves such to others. */
static int make_twice(apus_device *d, const apus_kernel_entry *e, kase *k, int c)
{
    static const int64_t lengths_of_sums[] = {1, 3, 8, 16, 33};
    const int64_t r = lengths_of_sums[c % 5], m = k->in[0].view.dims[0];
    const int along = is(e->op->name, "linear"); /* W's rows run along the sum */
    kase other = {.seed = k->seed + 500};
    apus_view in[OPERANDS];
    if (!along && !is(e->op->name, "linear_dx"))
        fail_msg("%s: no case for two here", e->op->name);
    real_in(&other, m, r, -1, 1);
    real_in(&other, along ? k->in[1].view.dims[0] : r, along ? r : k->in[1].view.dims[1], -1, 1);
    memmove(k->in + 2, k->in, k->n_in * sizeof k->in[0]);
    memcpy(k->in, other.in, 2 * sizeof k->in[0]);
    k->n_in += 2;
    k->weight += k->weight >= 0 ? 2 : 0;
    for (uint32_t i = 0; i < k->n_in; i++) {
        in[i] = k->in[i].view;
        in[i].dtype = d->real;
    }
    const apus_kernel_call capacity = {.in = in, .out = &k->out[0].view, .backend = d->backend, .n_in = k->n_in, .n_out = 1};
    return e->kernel.suits == NULL || e->kernel.suits(&capacity);
}

static void check_kernel(apus_device *d, const apus_kernel_entry *e)
{
    const apus_dtype plain[] = {APUS_REAL, 0};
    for (int n = -1; n < 0 || (e->kernel.encodings != NULL && e->kernel.encodings[n] != 0); n++) {
        const apus_dtype encoding = n < 0 ? plain[0] : e->kernel.encodings[n];
        for (int c = 0;; c++) {
            kase k;
            char what[256];
            int made = make_case(&k, e->op, c, encoding != APUS_REAL);
            if (made == 1 && encoding != APUS_REAL && (c + n) % 3 != 0) /* every shape in some encodings */
                made = -1;
            (void)snprintf(what, sizeof what, "%s of %s%s%s, %s, case %d", e->op->name, e->table->name, e->then != NULL ? " then " : "",
                           e->then != NULL ? e->then->name : "", apus_dtype_name(encoding), c);
            if (made == 1) {
                if (e->then != NULL || is_twice(e))
                    k.tolerance *= 2;
                shape_outputs(&k, e->op);
                if (!is_twice(e) || make_twice(d, e, &k, c))
                    check_case(d, e, &k, encoding, what);
            }
            end_case(&k);
            if (made == -2 && strncmp(e->op->name, "apus.", 5) == 0)
                fail_msg("%s: no case here", e->op->name);
            if (made == 0 || made == -2)
                break;
        }
    }
}

/* Memory comes zeroed, also where it was used before. */
static void check_memory(apus_device *d)
{
    apus_error err;
    for (size_t bytes = 100; bytes < (size_t)40 << 20; bytes *= 40) {
        for (int turn = 0; turn < 2; turn++) {
            unsigned char *host = malloc(bytes), *p = apus_device_alloc(d, bytes, &err);
            assert_true(host != NULL && p != NULL && (uintptr_t)p % 64 == 0);
            assert_int_equal(apus_device_download(d, host, p, bytes, &err), APUS_OK);
            for (size_t i = 0; i < bytes; i++)
                if (host[i] != 0)
                    fail_msg("byte %zu of %zu is not zero", i, bytes);
            memset(host, 0xff, bytes);
            assert_int_equal(apus_device_upload(d, p, host, bytes, &err), APUS_OK);
            apus_device_free(d, p, bytes);
            free(host);
        }
    }
}

/* Blocks cut out of one slab: each its own, zeroed, whatever was freed before. */
static void check_neighbours(apus_device *d)
{
    enum { BLOCKS = 60, BYTES = 1500 * 1024 + 4 };
    apus_error err;
    unsigned char *block[BLOCKS], *host = malloc(BYTES);
    assert_non_null(host);
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < BLOCKS; i++) {
            block[i] = apus_device_alloc(d, BYTES, &err);
            assert_true(block[i] != NULL && (uintptr_t)block[i] % 64 == 0);
            assert_int_equal(apus_device_download(d, host, block[i], BYTES, &err), APUS_OK);
            for (size_t k = 0; k < BYTES; k++)
                if (host[k] != 0)
                    fail_msg("byte %zu of block %d is not zero", k, i);
            memset(host, i + 1, BYTES);
            assert_int_equal(apus_device_upload(d, block[i], host, BYTES, &err), APUS_OK);
        }
        for (int i = 0; i < BLOCKS; i++) {
            assert_int_equal(apus_device_download(d, host, block[i], BYTES, &err), APUS_OK);
            for (size_t k = 0; k < BYTES; k++)
                if (host[k] != i + 1)
                    fail_msg("byte %zu of block %d was overwritten", k, i);
        }
        for (int i = 0; i < BLOCKS; i++)
            apus_device_free(d, block[i * 7 % BLOCKS], BYTES);
    }
    free(host);
}

/* A query's bits depend on its own row alone. */
static void check_row_invariance(apus_device *d)
{
    const apus_kernel_entry *e = apus_device_choose(d, apus_op_find("apus.attention_cached/1"), NULL, NULL, APUS_REAL);
    const variant plain = {.in_place = -1};
    for (int c = 0; c < N_ATTENTIONS && e != NULL; c++) {
        kase k;
        (void)make_case(&k, e->op, c, 0);
        shape_outputs(&k, e->op);
        call(d, e, &k, &plain, NULL, "attention_cached");
        const int64_t wide = k.in[0].view.dims[1], columns = k.in[3].view.dims[1];
        for (int64_t s = 0; s < k.in[3].view.dims[0]; s++) {
            const int32_t *row = (int32_t *)k.in[3].raw + s * columns;
            for (int32_t i = 0; i<row[1]; i += row[1]> 5 ? 5 : 1) {
                kase one = k;
                int32_t alone[64];
                memcpy(alone, row, (size_t)columns * sizeof *row);
                alone[0] = 0, alone[1] = 1, alone[2] = row[2] - row[1] + i + 1;
                one.in[0].real = k.in[0].real + (row[0] + i) * wide;
                one.in[0].view.dims[0] = one.in[3].view.dims[0] = 1;
                one.in[3].raw = alone;
                one.out[0].view.dims[0] = 1;
                one.out[0].real = calloc((size_t)wide, sizeof(double));
                call(d, e, &one, &plain, NULL, "attention_cached");
                if (memcmp(one.out[0].real, k.out[0].real + (row[0] + i) * wide, (size_t)wide * sizeof(double)) != 0)
                    fail_msg("attention_cached, case %d: query %d of row %lld has other bits alone", c, i, (long long)s);
                free(one.out[0].real);
            }
        }
        end_case(&k);
    }
}

/* ---------------------------------------------------------------- */

static int setup(void **state)
{
    (void)state;
    const char *files[64] = {NULL};
    size_t n = 0;
    DIR *folder = opendir(APUS_TEST_PLUGINS);
    assert_non_null(folder);
    for (struct dirent *f = readdir(folder); f != NULL && n < 64; f = readdir(folder))
        if (strstr(f->d_name, ".so") != NULL && (strstr(f->d_name, "apus_backend_") == f->d_name || strstr(f->d_name, "apus_kernels_") == f->d_name))
            files[n++] = strdup(f->d_name);
    (void)closedir(folder);
    bed_load(files, n);
    for (size_t i = 0; i < n; i++)
        free((char *)(uintptr_t)files[i]);
    ref = bed_device("ref");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(ref);
    return 0;
}

static void every_kernel_agrees_with_the_reference(void **state)
{
    (void)state;
    size_t checked = 0;
    for (size_t b = 0; b < apus_component_count("backend"); b++) {
        const char *name = apus_component_at("backend", b)->name;
        apus_error err;
        if (strcmp(name, "ref") == 0)
            continue;
        apus_node *spec = apus_nodes()->make_string(name, (size_t)-1);
        apus_device *d = NULL;
        const apus_status opened = apus_device_open(spec, &d, &err);
        apus_nodes()->release(spec);
        if (opened != APUS_OK) {
            print_message("skipped: every_kernel_agrees_with_the_reference: backend %s: %s\n", name, err.message);
            continue;
        }
        print_message("%s\n", apus_device_describe(d));
        for (size_t i = 0; i < apus_kernel_count(); i++) {
            const apus_kernel_entry *e = apus_kernel_at(i);
            if (strcmp(e->table->ops.backend, name) != 0 || !d->tables[e->table->index].serves)
                continue;
            check_kernel(d, e);
            checked++;
        }
        check_row_invariance(d);
        check_memory(d);
        check_neighbours(d);
        apus_device_close(d);
    }
    print_message("%zu kernels\n", checked);
    if (checked == 0) {
        print_message("skipped: every_kernel_agrees_with_the_reference: no backend beside the reference is built\n");
        skip();
    }
}

/* The reference through the same harness: what it asks of others it does itself. */
static void the_reference_agrees_with_itself(void **state)
{
    (void)state;
    for (size_t i = 0; i < apus_kernel_count(); i++)
        if (strcmp(apus_kernel_at(i)->table->ops.backend, "ref") == 0)
            check_kernel(ref, apus_kernel_at(i));
    check_row_invariance(ref);
    check_memory(ref);
    check_neighbours(ref);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_agrees_with_itself),
        cmocka_unit_test(every_kernel_agrees_with_the_reference),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
