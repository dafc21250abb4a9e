/*
 * plugins/format/gguf/read: the container: header, metadata values, tensor list. Every length is checked against the
 * bytes that are left before it is used; nothing is copied but names.
 */
#include "gguf.h"

/* What is left of the file. */
typedef struct reader {
    gguf_file *f;
    const unsigned char *begin, *p, *end;
    apus_error *err;
} reader;

static size_t left(const reader *r)
{
    return (size_t)(r->end - r->p);
}

static apus_status cut(const reader *r, const char *what)
{
    apus_fail_line(r->err, APUS_E_INVALID, "%s: offset %zu: the file ends inside %s", r->f->path, (size_t)(r->p - r->begin), what);
    return apus_hint(r->err, APUS_E_INVALID, "the file is cut or damaged: fetch or copy it again");
}

static apus_status take_u32(reader *r, uint32_t *v, const char *what)
{
    if (left(r) < 4)
        return cut(r, what);
    memcpy(v, r->p, 4);
    r->p += 4;
    return APUS_OK;
}

static apus_status take_u64(reader *r, uint64_t *v, const char *what)
{
    if (left(r) < 8)
        return cut(r, what);
    memcpy(v, r->p, 8);
    r->p += 8;
    return APUS_OK;
}

static apus_status take_text(reader *r, const char **s, size_t *n, const char *what)
{
    uint64_t length = 0;
    const apus_status st = take_u64(r, &length, what);
    if (st != APUS_OK)
        return st;
    if (length > left(r))
        return cut(r, what);
    *s = (const char *)r->p;
    *n = (size_t)length;
    r->p += length;
    return APUS_OK;
}

static size_t scalar_size(uint32_t type)
{
    static const unsigned char sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

static apus_status take_value(reader *r, gguf_value *v, const char *key)
{
    apus_status st = APUS_OK;
    v->count = 1;
    if (v->type == GGUF_ARRAY) {
        st = take_u32(r, &v->item, key);
        if (st == APUS_OK)
            st = take_u64(r, &v->count, key);
        if (st != APUS_OK)
            return st;
        v->data = r->p;
        if (v->item == GGUF_STRING) {
            if (v->count > left(r) / 8)
                return cut(r, key);
            for (uint64_t i = 0; i < v->count && st == APUS_OK; i++) {
                const char *s = NULL;
                size_t n = 0;
                st = take_text(r, &s, &n, key);
            }
        } else {
            const size_t size = scalar_size(v->item);
            if (size == 0)
                return apus_fail_line(r->err, APUS_E_INVALID, "%s: offset %zu: key '%.200s' is an array of type %u, which is not read", r->f->path,
                                      (size_t)(r->p - r->begin), key, v->item);
            if (v->count > left(r) / size)
                return cut(r, key);
            r->p += v->count * size;
        }
    } else if (v->type == GGUF_STRING) {
        const char *s = NULL;
        size_t n = 0;
        st = take_text(r, &s, &n, key);
        if (st == APUS_OK)
            v->data = (const unsigned char *)s;
    } else {
        const size_t size = scalar_size(v->type);
        if (size == 0)
            return apus_fail_line(r->err, APUS_E_INVALID, "%s: offset %zu: key '%.200s' has the unknown type %u", r->f->path,
                                  (size_t)(r->p - r->begin), key, v->type);
        if (size > left(r))
            return cut(r, key);
        v->data = r->p;
        r->p += size;
    }
    v->end = r->p;
    return st;
}

#define NAME_MAX_BYTES 2048

/* Copy a name, NUL-terminated, into the file's blocks of text. */
static apus_status keep_name(reader *r, const char *s, size_t n, const char **kept, const char *what)
{
    gguf_file *f = r->f;
    gguf_names_block *b = f->strings;
    if (n == 0 || n > NAME_MAX_BYTES || memchr(s, 0, n) != NULL)
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: offset %zu: %s: a name of %zu bytes that is no text", f->path,
                              (size_t)((const unsigned char *)s - r->begin), what, n);
    if (b == NULL || sizeof b->text - b->used < n + 1) {
        b = f->host->alloc(sizeof *b);
        if (b == NULL)
            return apus_fail_line(r->err, APUS_E_MEMORY, "%s: out of memory", f->path);
        b->next = f->strings;
        f->strings = b;
    }
    memcpy(b->text + b->used, s, n);
    b->text[b->used + n] = '\0';
    *kept = b->text + b->used;
    b->used += n + 1;
    return APUS_OK;
}

static apus_status read_values(reader *r)
{
    gguf_file *f = r->f;
    for (size_t i = 0; i < f->n_values; i++) {
        gguf_value *v = &f->values[i];
        const char *s = NULL;
        size_t n = 0;
        apus_status st = take_text(r, &s, &n, "a key");
        if (st == APUS_OK)
            st = keep_name(r, s, n, &v->key, "key");
        if (st == APUS_OK)
            st = take_u32(r, &v->type, v->key);
        if (st == APUS_OK)
            st = take_value(r, v, v->key);
        if (st != APUS_OK)
            return st;
        if (!apus_names_add(&f->keys, v->key, n, (uint32_t)i))
            return apus_fail_line(r->err, APUS_E_INVALID, "%s: key '%.200s' is there twice", f->path, v->key);
    }
    return APUS_OK;
}

/* ggml's tensor types. Types with dtype APUS_REAL are known but not read. */
static const struct {
    const char *name;
    apus_dtype dtype;
} ggml_types[] = {
    {"F32", APUS_F32},      {"F16", APUS_F16},    {"Q4_0", APUS_Q4_0},     {"Q4_1", APUS_Q4_1},  {NULL, APUS_REAL},      {NULL, APUS_REAL},
    {"Q5_0", APUS_Q5_0},    {"Q5_1", APUS_Q5_1},  {"Q8_0", APUS_Q8_0},     {"Q8_1", APUS_REAL},  {"Q2_K", APUS_Q2_K},    {"Q3_K", APUS_Q3_K},
    {"Q4_K", APUS_Q4_K},    {"Q5_K", APUS_Q5_K},  {"Q6_K", APUS_Q6_K},     {"Q8_K", APUS_REAL},  {"IQ2_XXS", APUS_REAL}, {"IQ2_XS", APUS_REAL},
    {"IQ3_XXS", APUS_REAL}, {"IQ1_S", APUS_REAL}, {"IQ4_NL", APUS_IQ4_NL}, {"IQ3_S", APUS_REAL}, {"IQ2_S", APUS_REAL},   {"IQ4_XS", APUS_REAL},
    {"I8", APUS_U8},        {"I16", APUS_REAL},   {"I32", APUS_I32},       {"I64", APUS_I64},    {"F64", APUS_F64},      {"IQ1_M", APUS_REAL},
    {"BF16", APUS_BF16},    {NULL, APUS_REAL},    {NULL, APUS_REAL},       {NULL, APUS_REAL},    {"TQ1_0", APUS_REAL},   {"TQ2_0", APUS_REAL},
    {NULL, APUS_REAL},      {NULL, APUS_REAL},    {NULL, APUS_REAL},       {"MXFP4", APUS_REAL},
};

static apus_status read_tensor(reader *r, apus_tensor_info *t)
{
    gguf_file *f = r->f;
    const char *s = NULL;
    size_t n = 0;
    uint32_t ndim = 0, type = 0;
    uint64_t offset = 0, rows = 1;
    apus_status st = take_text(r, &s, &n, "a tensor's name");
    t->size = sizeof *t;
    if (st == APUS_OK)
        st = keep_name(r, s, n, &t->name, "tensor");
    if (st == APUS_OK)
        st = take_u32(r, &ndim, t->name);
    if (st != APUS_OK)
        return st;
    if (ndim == 0 || ndim > APUS_MAX_DIMS)
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s' has %u dimensions, 1 to %d are read", f->path, t->name, ndim,
                              APUS_MAX_DIMS);
    t->ndim = (int32_t)ndim;
    for (uint32_t k = 0; k < ndim; k++) { /* the file has the innermost dimension first */
        uint64_t d = 0;
        st = take_u64(r, &d, t->name);
        if (st != APUS_OK)
            return st;
        if (d > INT64_MAX || (k > 0 && d != 0 && rows > (uint64_t)INT64_MAX / d))
            return apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s': its shape overflows", f->path, t->name);
        t->dims[ndim - 1 - k] = (int64_t)d;
        rows = k > 0 ? rows * d : rows;
    }
    st = take_u32(r, &type, t->name);
    if (st == APUS_OK)
        st = take_u64(r, &offset, t->name);
    if (st != APUS_OK)
        return st;
    const int known = type < sizeof ggml_types / sizeof ggml_types[0] && ggml_types[type].name != NULL;
    if (!known || ggml_types[type].dtype == APUS_REAL) {
        apus_fail_line(r->err, APUS_E_UNSUPPORTED, "%s: tensor '%.200s' is stored as %s (type %u), which is not read", f->path, t->name,
                       known ? ggml_types[type].name : "an unknown type", type);
        return apus_hint(r->err, APUS_E_UNSUPPORTED, "readable: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL");
    }
    t->dtype = ggml_types[type].dtype;
    const int64_t columns = t->dims[ndim - 1];
    const size_t row = apus_row_bytes(t->dtype, columns);
    if (row == 0 && columns != 0)
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s': rows of %lld elements do not fit blocks of %s", f->path, t->name,
                              (long long)columns, ggml_types[type].name);
    if (rows != 0 && row > UINT64_MAX / rows)
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s': its shape overflows", f->path, t->name);
    t->bytes = row * rows;
    t->data = (const void *)(uintptr_t)offset; /* made an address once the data's begin is known */
    if (!apus_names_add(&f->names, t->name, n, (uint32_t)(t - f->tensors)))
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s' is there twice", f->path, t->name);
    return APUS_OK;
}

static int by_place(const void *a, const void *b)
{
    const apus_tensor_info *x = *(const apus_tensor_info *const *)a, *y = *(const apus_tensor_info *const *)b;
    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Offsets become addresses; tensors lie inside the file, aligned, none over another. */
static apus_status place_tensors(reader *r)
{
    gguf_file *f = r->f;
    const int64_t alignment = gguf_int(gguf_get(f, "general.alignment"), 32);
    if (alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0)
        return apus_fail_line(r->err, APUS_E_INVALID, "%s: general.alignment is %lld, expected a power of two", f->path, (long long)alignment);
    const size_t begin = ((size_t)(r->p - r->begin) + (size_t)alignment - 1) & ~((size_t)alignment - 1);
    const size_t length = (size_t)(r->end - r->begin), data = begin < length ? length - begin : 0;
    const apus_tensor_info **order = f->host->alloc((f->count + 1) * sizeof *order);
    if (order == NULL)
        return apus_fail_line(r->err, APUS_E_MEMORY, "%s: out of memory", f->path);
    apus_status st = APUS_OK;
    for (uint64_t i = 0; i < f->count && st == APUS_OK; i++) {
        apus_tensor_info *t = &f->tensors[i];
        const uint64_t offset = (uintptr_t)t->data;
        if (offset % (uint64_t)alignment != 0) {
            st = apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s' lies at %llu, not a multiple of %lld", f->path, t->name,
                                (unsigned long long)offset, (long long)alignment);
        } else if (offset > data || t->bytes > data - offset) {
            apus_fail_line(r->err, APUS_E_INVALID, "%s: tensor '%.200s' needs bytes %llu to %llu of the data, but only %zu are there", f->path,
                           t->name, (unsigned long long)offset, (unsigned long long)offset + t->bytes, data);
            st = apus_hint(r->err, APUS_E_INVALID, "the file is cut: fetch or copy it again");
        }
        order[i] = t;
    }
    if (st == APUS_OK)
        qsort(order, f->count, sizeof *order, by_place);
    for (uint64_t i = 1; i < f->count && st == APUS_OK; i++)
        if ((uintptr_t)order[i]->data < (uintptr_t)order[i - 1]->data + order[i - 1]->bytes)
            st = apus_fail_line(r->err, APUS_E_INVALID, "%s: tensors '%.200s' and '%.200s' overlap", f->path, order[i - 1]->name, order[i]->name);
    f->host->free((void *)order);
    for (uint64_t i = 0; i < f->count && st == APUS_OK; i++)
        f->tensors[i].data = r->begin + begin + (uintptr_t)f->tensors[i].data;
    return st;
}

apus_status gguf_read(gguf_file *f, const unsigned char *bytes, size_t length, apus_error *err)
{
    reader r = {f, bytes, bytes, bytes + length, err};
    uint32_t version = 0;
    uint64_t tensors = 0, values = 0;
    if (length < 4 || memcmp(bytes, "GGUF", 4) != 0) {
        apus_fail_line(err, APUS_E_INVALID, "%s: does not begin with GGUF", f->path);
        return apus_hint(err, APUS_E_INVALID, "not a GGUF file (a Git LFS pointer, or a page instead of the file?)");
    }
    r.p += 4;
    apus_status st = take_u32(&r, &version, "the header");
    if (st == APUS_OK && version != 2 && version != 3) {
        apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: GGUF version %u; 2 and 3 are read", f->path, version);
        return apus_hint(err, APUS_E_UNSUPPORTED,
                         (version & 0xffff) == 0 ? "a big-endian file: gguf-convert-endian turns it"
                                                 : "convert the model again with a current llama.cpp");
    }
    if (st == APUS_OK)
        st = take_u64(&r, &tensors, "the header");
    if (st == APUS_OK)
        st = take_u64(&r, &values, "the header");
    if (st != APUS_OK)
        return st;
    /* a value takes at least 13 bytes, a tensor 33: so counts bound memory before anything is allocated */
    if (values > left(&r) / 13 || tensors > left(&r) / 33 || values >= UINT32_MAX || tensors >= UINT32_MAX)
        return apus_fail_line(err, APUS_E_INVALID, "%s: %llu values and %llu tensors do not fit into %zu bytes", f->path, (unsigned long long)values,
                              (unsigned long long)tensors, length);
    f->n_values = (size_t)values;
    f->count = tensors;
    f->values = f->host->alloc((values + 1) * sizeof *f->values);
    f->tensors = f->host->alloc((tensors + 1) * sizeof *f->tensors);
    f->used = f->host->alloc(tensors + 1);
    f->turned = f->host->alloc((tensors + 1) * sizeof *f->turned);
    if (f->values == NULL || f->tensors == NULL || f->used == NULL || f->turned == NULL || !apus_names_open(f->host, &f->keys, values) ||
        !apus_names_open(f->host, &f->names, tensors))
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", f->path);
    st = read_values(&r);
    for (uint64_t i = 0; i < tensors && st == APUS_OK; i++)
        st = read_tensor(&r, &f->tensors[i]);
    if (st == APUS_OK)
        st = place_tensors(&r);
    if (st != APUS_OK)
        return st;
    const gguf_value *architecture = gguf_get(f, "general.architecture");
    size_t n = 0;
    const char *s = gguf_string(architecture, &n);
    if (s == NULL || n > 64)
        return apus_fail_line(err, APUS_E_INVALID, "%s: general.architecture is missing", f->path);
    return keep_name(&r, s, n, &f->architecture, "general.architecture");
}

apus_status gguf_open(gguf_file *f, const char *path, apus_error *err)
{
    if (strlen(path) >= sizeof f->path)
        return apus_fail_line(err, APUS_E_INVALID, "%.200s…: the path is too long", path);
    memcpy(f->path, path, strlen(path) + 1);
    const apus_status st = apus_map_open(path, &f->map, err);
    return st == APUS_OK ? gguf_read(f, f->map.bytes, f->map.length, err) : st;
}

void gguf_close(gguf_file *f)
{
    const apus_host *host = f->host;
    for (uint64_t i = 0; f->turned != NULL && i < f->count; i++)
        host->free(f->turned[i]);
    host->free(f->turned);
    host->free(f->values);
    host->free(f->tensors);
    host->free(f->used);
    while (f->strings != NULL) {
        gguf_names_block *next = f->strings->next;
        host->free(f->strings);
        f->strings = next;
    }
    apus_names_close(host, &f->keys);
    apus_names_close(host, &f->names);
    host->node->release(f->config);
    host->node->release(f->generation_config);
    host->node->release(f->tokenizer);
    host->node->release(f->tokenizer_config);
    host->node->release(f->templates);
    host->node->release(f->metadata);
    host->node->release(f->template_owner);
    apus_map_close(&f->map);
}

/* ---------------------------------------------------------------- values */

const gguf_value *gguf_get(const gguf_file *f, const char *key)
{
    const uint32_t at = apus_names_find(&f->keys, key, strlen(key));
    return at == APUS_NAMES_NONE ? NULL : &f->values[at];
}

const gguf_value *gguf_arch_get(const gguf_file *f, const char *key)
{
    char name[256];
    snprintf(name, sizeof name, "%s.%s", f->architecture, key);
    return gguf_get(f, name);
}

/* A number of any type as a double; integers beyond 2^53 do not occur in what is read this way. */
static int number(uint32_t type, const unsigned char *p, double *out)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        float f32;
        uint64_t u64;
        int64_t i64;
        double f64;
    } v;
    const size_t size = scalar_size(type);
    if (size == 0)
        return 0;
    memcpy(&v, p, size);
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        *out = v.u8;
        break;
    case GGUF_I8:
        *out = v.i8;
        break;
    case GGUF_U16:
        *out = v.u16;
        break;
    case GGUF_I16:
        *out = v.i16;
        break;
    case GGUF_U32:
        *out = v.u32;
        break;
    case GGUF_I32:
        *out = v.i32;
        break;
    case GGUF_F32:
        *out = (double)v.f32;
        break;
    case GGUF_U64:
        *out = (double)v.u64;
        break;
    case GGUF_I64:
        *out = (double)v.i64;
        break;
    default:
        *out = v.f64;
        break;
    }
    return 1;
}

double gguf_float(const gguf_value *v, double fallback)
{
    double x;
    return v != NULL && number(v->type, v->data, &x) ? x : fallback;
}

int64_t gguf_int(const gguf_value *v, int64_t fallback)
{
    const double x = gguf_float(v, 0.5);
    return x >= -9e15 && x <= 9e15 && x == floor(x) ? (int64_t)x : fallback;
}

int gguf_bool(const gguf_value *v, int fallback)
{
    return v != NULL && v->type == GGUF_BOOL ? v->data[0] != 0 : fallback;
}

const char *gguf_string(const gguf_value *v, size_t *length)
{
    if (v == NULL || v->type != GGUF_STRING)
        return NULL;
    *length = (size_t)(v->end - v->data);
    return (const char *)v->data;
}

int gguf_is_numbers(const gguf_value *v)
{
    return v != NULL && v->type == GGUF_ARRAY && v->item != GGUF_STRING;
}

double gguf_item(const gguf_value *array, uint64_t i)
{
    double x = 0;
    (void)number(array->item, array->data + i * scalar_size(array->item), &x);
    return x;
}

const char *gguf_next_string(const unsigned char **p, size_t *length)
{
    uint64_t n;
    memcpy(&n, *p, 8);
    const char *s = (const char *)*p + 8;
    *p += 8 + n;
    *length = (size_t)n;
    return s;
}

static apus_node *scalar_node(const apus_node_api *node, uint32_t type, const unsigned char *p)
{
    double x = 0;
    int64_t i;
    if (type == GGUF_BOOL)
        return node->make_bool(p[0] != 0);
    if (type == GGUF_I64) { /* a u64 beyond int64 stays a float */
        memcpy(&i, p, 8);
        return node->make_int(i);
    }
    (void)number(type, p, &x);
    if (type == GGUF_F32 || type == GGUF_F64 || x > 9e15)
        return node->make_float(x);
    return node->make_int((int64_t)x);
}

apus_node *gguf_node(const gguf_file *f, const gguf_value *v, size_t most_items)
{
    const apus_node_api *node = f->host->node;
    if (v->type == GGUF_STRING)
        return node->make_string((const char *)v->data, (size_t)(v->end - v->data));
    if (v->type != GGUF_ARRAY)
        return scalar_node(node, v->type, v->data);
    if (v->count > most_items) {
        char text[80];
        snprintf(text, sizeof text, "(%llu %s)", (unsigned long long)v->count, v->item == GGUF_STRING ? "strings" : "numbers");
        return node->make_string(text, (size_t)-1);
    }
    apus_node *list = node->make_list();
    const unsigned char *p = v->data;
    for (uint64_t i = 0; i < v->count; i++) {
        if (v->item == GGUF_STRING) {
            size_t n = 0;
            const char *s = gguf_next_string(&p, &n);
            node->append(list, node->make_string(s, n));
        } else {
            node->append(list, scalar_node(node, v->item, v->data + i * scalar_size(v->item)));
        }
    }
    return list;
}

const apus_tensor_info *gguf_tensor(const gguf_file *f, const char *name)
{
    const uint32_t at = apus_names_find(&f->names, name, strlen(name));
    return at == APUS_NAMES_NONE ? NULL : &f->tensors[at];
}
