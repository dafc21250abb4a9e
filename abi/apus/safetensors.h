/*
 * apus/safetensors.h: the safetensors container (https://github.com/huggingface/safetensors): 8 bytes of header length
 * (little-endian), a JSON header {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {key: text}}, then
 * the data, without gaps. Reading checks everything; writing gives what the official library writes. Header-only:
 * shared by every format plugin that keeps tensors this way. Knows nothing of models.
 *
 *     apus_safetensors s = {0};
 *     if (apus_safetensors_open(host, path, &s, err) == APUS_OK) { … s.tensors[i] … }
 *     apus_safetensors_close(host, &s);              // also after a failed open
 */
#ifndef APUS_SAFETENSORS_H
#define APUS_SAFETENSORS_H

#include <apus/blocks.h>
#include <apus/files.h>
#include <apus/model.h>

#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

#define APUS_SAFETENSORS_MAX_HEADER 100000000u /* bytes, as the official reader allows */

typedef struct apus_safetensors {
    apus_map map;              /* of the whole file; length 0 when the caller gave the bytes */
    apus_node *header;         /* owns the names */
    apus_tensor_info *tensors; /* in the header's order; data points into the file */
    size_t count;
    const apus_node *metadata; /* "__metadata__"; NULL: none */
} apus_safetensors;

static inline const char *apus_safetensors_dtype_name(apus_dtype t)
{
    switch (t) {
    case APUS_F32:
        return "F32";
    case APUS_F64:
        return "F64";
    case APUS_F16:
        return "F16";
    case APUS_BF16:
        return "BF16";
    case APUS_I32:
        return "I32";
    case APUS_I64:
        return "I64";
    case APUS_U8:
        return "U8";
    default:
        return NULL;
    }
}

/* Truth values and bytes of either sign are read as U8: no model computes with them (old attention masks). */
static inline apus_dtype apus_safetensors_dtype(const char *name)
{
    static const struct {
        const char *name;
        apus_dtype dtype;
    } known[] = {{"F32", APUS_F32}, {"F16", APUS_F16}, {"BF16", APUS_BF16}, {"F64", APUS_F64}, {"I64", APUS_I64},
                 {"I32", APUS_I32}, {"U8", APUS_U8},   {"BOOL", APUS_U8},   {"I8", APUS_U8}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(name, known[i].name) == 0)
            return known[i].dtype;
    return APUS_REAL;
}

/* One entry of the header; `data` and `data_bytes`: what follows the header. */
static inline apus_status apus_safetensors_entry_(const apus_node_api *node, const char *path, const char *name, const apus_node *entry,
                                                  const unsigned char *data, uint64_t data_bytes, apus_tensor_info *t, apus_error *err)
{
    const char *dtype = node->as_string(node->get(entry, "dtype"), NULL);
    const apus_node *shape = node->get(entry, "shape"), *offsets = node->get(entry, "data_offsets");
    memset(t, 0, sizeof *t);
    t->size = sizeof *t;
    t->name = name;
    if (node->kind(entry) != APUS_NODE_MAP || node->length(entry) != 3 || dtype == NULL || node->kind(shape) != APUS_NODE_LIST ||
        node->kind(offsets) != APUS_NODE_LIST || node->length(offsets) != 2)
        return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s': expected {dtype, shape, data_offsets: [begin, end]}", path, name);
    t->dtype = apus_safetensors_dtype(dtype);
    if (t->dtype == APUS_REAL) {
        apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: tensor '%.200s' has element type '%.40s'", path, name, dtype);
        return apus_hint(err, APUS_E_UNSUPPORTED, "readable types are F32, F16, BF16, F64, I64, I32, U8, I8 and BOOL");
    }
    if (node->length(shape) > APUS_MAX_DIMS)
        return apus_fail_line(err, APUS_E_UNSUPPORTED, "%s: tensor '%.200s' has %zu dimensions, at most %d are read", path, name, node->length(shape),
                              APUS_MAX_DIMS);
    t->ndim = (int32_t)node->length(shape);
    uint64_t bytes = apus_row_bytes(t->dtype, 1);
    for (int32_t k = 0; k < t->ndim; k++) {
        const apus_node *d = node->at(shape, (size_t)k);
        t->dims[k] = node->as_int(d, -1);
        if (node->kind(d) != APUS_NODE_INT || t->dims[k] < 0)
            return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s': shape has an entry that is not a size", path, name);
        if (t->dims[k] != 0 && bytes > UINT64_MAX / (uint64_t)t->dims[k])
            return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s': its shape overflows", path, name);
        bytes *= (uint64_t)t->dims[k];
    }
    const int64_t begin = node->as_int(node->at(offsets, 0), -1), end = node->as_int(node->at(offsets, 1), -1);
    if (begin < 0 || end < begin || node->kind(node->at(offsets, 0)) != APUS_NODE_INT || node->kind(node->at(offsets, 1)) != APUS_NODE_INT)
        return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s': data_offsets are not [begin, end]", path, name);
    if ((uint64_t)end > data_bytes) {
        apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s' ends at byte %lld of the data, but only %llu are there", path, name, (long long)end,
                       (unsigned long long)data_bytes);
        return apus_hint(err, APUS_E_INVALID, "the file is cut: fetch or copy it again");
    }
    if ((uint64_t)(end - begin) != bytes)
        return apus_fail_line(err, APUS_E_INVALID, "%s: tensor '%.200s': its shape and type need %llu bytes, data_offsets give %lld", path, name,
                              (unsigned long long)bytes, (long long)(end - begin));
    t->bytes = bytes;
    t->data = data + begin;
    return APUS_OK;
}

static inline int apus_safetensors_by_place_(const void *a, const void *b)
{
    const apus_tensor_info *x = *(const apus_tensor_info *const *)a, *y = *(const apus_tensor_info *const *)b;
    if (x->data != y->data)
        return (const unsigned char *)x->data < (const unsigned char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The data must be covered once and wholly. */
static inline apus_status apus_safetensors_cover_(const apus_host *host, const char *path, const apus_safetensors *s, const unsigned char *data,
                                                  uint64_t data_bytes, apus_error *err)
{
    const apus_tensor_info **order = (const apus_tensor_info **)host->alloc((s->count + 1) * sizeof(const apus_tensor_info *));
    if (order == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < s->count; i++)
        order[i] = &s->tensors[i];
    qsort(order, s->count, sizeof *order, apus_safetensors_by_place_);
    uint64_t place = 0;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < s->count && st == APUS_OK; i++) {
        const uint64_t begin = (uint64_t)((const unsigned char *)order[i]->data - data);
        if (begin < place)
            st = apus_fail_line(err, APUS_E_INVALID, "%s: tensors '%.200s' and '%.200s' overlap at byte %llu of the data", path,
                                order[i - (i > 0)]->name, order[i]->name, (unsigned long long)begin);
        else if (begin > place)
            st = apus_fail_line(err, APUS_E_INVALID, "%s: bytes %llu to %llu of the data belong to no tensor", path, (unsigned long long)place,
                                (unsigned long long)begin);
        place = begin + order[i]->bytes;
    }
    if (st == APUS_OK && place != data_bytes)
        st = apus_fail_line(err, APUS_E_INVALID, "%s: %llu bytes after the last tensor", path, (unsigned long long)(data_bytes - place));
    host->free((void *)order);
    return st;
}

/* Read a container that lies in memory; the bytes must outlive s. `path` is what errors call it. */
static inline apus_status apus_safetensors_read(const apus_host *host, const char *path, const unsigned char *bytes, size_t length,
                                                apus_safetensors *s, apus_error *err)
{
    const apus_node_api *node = host->node;
    uint64_t header = 0;
    if (length < 8)
        return apus_fail_line(err, APUS_E_INVALID, "%s: %zu bytes are too few for a safetensors file", path, length);
    for (int i = 7; i >= 0; i--)
        header = header << 8 | bytes[i];
    if (header > APUS_SAFETENSORS_MAX_HEADER || header > length - 8) {
        apus_fail_line(err, APUS_E_INVALID, "%s: its header is said to be %llu bytes long, but %zu follow", path, (unsigned long long)header,
                       length - 8);
        return apus_hint(err, APUS_E_INVALID, "the file is cut or is not a safetensors file (a Git LFS pointer?)");
    }
    s->header = node->parse_json((const char *)bytes + 8, (size_t)header, path, err);
    if (s->header == NULL)
        return APUS_E_INVALID;
    if (node->kind(s->header) != APUS_NODE_MAP)
        return apus_fail_line(err, APUS_E_INVALID, "%s: its header is not a JSON object", path);
    const size_t n = node->length(s->header);
    s->tensors = (apus_tensor_info *)host->alloc((n + 1) * sizeof(apus_tensor_info));
    if (s->tensors == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    const unsigned char *data = bytes + 8 + header;
    const uint64_t data_bytes = length - 8 - header;
    for (size_t i = 0; i < n; i++) {
        const char *name = node->key_at(s->header, i);
        const apus_node *entry = node->at(s->header, i);
        if (strcmp(name, "__metadata__") == 0) {
            if (node->kind(entry) != APUS_NODE_MAP)
                return apus_fail_line(err, APUS_E_INVALID, "%s: __metadata__ is not a JSON object", path);
            s->metadata = entry;
            continue;
        }
        const apus_status st = apus_safetensors_entry_(node, path, name, entry, data, data_bytes, &s->tensors[s->count], err);
        if (st != APUS_OK)
            return st;
        s->count++;
    }
    return apus_safetensors_cover_(host, path, s, data, data_bytes, err);
}

static inline apus_status apus_safetensors_open(const apus_host *host, const char *path, apus_safetensors *s, apus_error *err)
{
    const apus_status st = apus_map_open(path, &s->map, err);
    return st == APUS_OK ? apus_safetensors_read(host, path, s->map.bytes, s->map.length, s, err) : st;
}

static inline void apus_safetensors_close(const apus_host *host, apus_safetensors *s)
{
    host->node->release(s->header);
    host->free(s->tensors);
    apus_map_close(&s->map);
    memset(s, 0, sizeof *s);
}

/* Encode n floats as a plain element type (F32, F16, BF16). dst may be src: halves are written behind what is read. */
static inline void apus_encode_plain(apus_dtype t, const float *src, void *dst, size_t n)
{
    if (t == APUS_F32) {
        memmove(dst, src, n * sizeof *src);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = t == APUS_F16 ? apus_f32_to_f16(src[i]) : apus_f32_to_bf16(src[i]);
        memcpy((unsigned char *)dst + 2 * i, &half, sizeof half);
    }
}

/* What a writer asks for each tensor, in file order. */
typedef struct apus_safetensors_item {
    const char *name;
    apus_dtype dtype; /* F32, F16 or BF16 */
    int32_t ndim;
    int64_t dims[2];    /* as they lie in the file */
    int32_t transposed; /* values come as [dims[1], dims[0]] rows */
    size_t weight;      /* for `read` */
} apus_safetensors_item;

static inline uint64_t apus_safetensors_item_bytes(const apus_safetensors_item *it)
{
    return (uint64_t)it->dims[0] * (uint64_t)(it->ndim > 1 ? it->dims[1] : 1) * apus_row_bytes(it->dtype, 1);
}

/* One tensor's values to a file; `read` as in apus_model_export. */
static inline apus_status apus_safetensors_put_(const apus_host *host, FILE *f, const apus_safetensors_item *it,
                                                apus_status (*read)(void *, size_t, int64_t, int64_t, float *, apus_error *), void *context,
                                                apus_error *err)
{
    /* rows and columns as `read` gives them */
    const int64_t rows = it->transposed ? it->dims[1] : it->dims[0];
    const int64_t columns = it->ndim < 2 ? 1 : it->transposed ? it->dims[0] : it->dims[1];
    const int64_t most = it->transposed || columns == 0 ? rows : (int64_t)(1 << 20) / columns + 1;
    const int64_t chunk = most < rows ? most : rows;
    const size_t capacity = (size_t)chunk * (size_t)columns;
    float *values = (float *)host->alloc(capacity * sizeof(float) + 64);
    float *turned = it->transposed ? (float *)host->alloc(capacity * sizeof(float) + 64) : NULL;
    apus_status st =
        values == NULL || (it->transposed && turned == NULL) ? apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", it->name) : APUS_OK;
    for (int64_t row = 0; row < rows && st == APUS_OK; row += chunk) {
        const int64_t n = rows - row < chunk ? rows - row : chunk;
        const size_t elements = (size_t)n * (size_t)columns;
        st = host->stopping() ? apus_fail_line(err, APUS_E_STOPPED, "stopped") : read(context, it->weight, row, n, values, err);
        if (st != APUS_OK)
            break;
        if (turned != NULL)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < columns; c++)
                    turned[c * rows + r] = values[r * columns + c];
        apus_encode_plain(it->dtype, turned != NULL ? turned : values, values, elements);
        const size_t bytes = elements * apus_row_bytes(it->dtype, 1);
        if (fwrite(values, 1, bytes, f) != bytes)
            st = apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", it->name, strerror(errno));
    }
    host->free(turned);
    host->free(values);
    return st;
}

/* Write a container. metadata: {"format": "pt"}, as transformers asks of every file it loads. */
static inline apus_status apus_safetensors_write(const apus_host *host, const char *path, const apus_safetensors_item *items, size_t n,
                                                 apus_status (*read)(void *, size_t, int64_t, int64_t, float *, apus_error *), void *context,
                                                 apus_error *err)
{
    const apus_node_api *node = host->node;
    apus_node *header = node->make_map(), *metadata = node->make_map();
    apus_status st = header == NULL ? APUS_E_MEMORY : APUS_OK;
    if (metadata != NULL)
        node->set(metadata, "format", node->make_string("pt", 2));
    if (st == APUS_OK)
        st = node->set(header, "__metadata__", metadata);
    else
        node->release(metadata);
    int64_t place = 0;
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        apus_node *entry = node->make_map(), *shape = node->make_list(), *offsets = node->make_list();
        for (int32_t k = 0; k < items[i].ndim; k++)
            node->append(shape, node->make_int(items[i].dims[k]));
        node->append(offsets, node->make_int(place));
        place += (int64_t)apus_safetensors_item_bytes(&items[i]);
        node->append(offsets, node->make_int(place));
        node->set(entry, "dtype", node->make_string(apus_safetensors_dtype_name(items[i].dtype), (size_t)-1));
        node->set(entry, "shape", shape);
        node->set(entry, "data_offsets", offsets);
        st = node->set(header, items[i].name, entry);
    }
    size_t length = 0;
    char *text = st == APUS_OK ? node->write_json(header, 0, &length) : NULL;
    node->release(header);
    if (text == NULL)
        return apus_fail_line(err, APUS_E_MEMORY, "%s: out of memory", path);
    FILE *f = fopen(path, "wb");
    if (f == NULL) {
        host->free(text);
        return apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", path, strerror(errno));
    }
    const uint64_t padded = ((uint64_t)length + 7) & ~(uint64_t)7; /* the data begins at a multiple of 8 */
    unsigned char size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (unsigned char)(padded >> (8 * i));
    int ok = fwrite(size, 1, 8, f) == 8 && fwrite(text, 1, length, f) == length;
    for (uint64_t i = length; i < padded; i++)
        ok = ok && fputc(' ', f) != EOF;
    host->free(text);
    st = ok ? APUS_OK : apus_fail_line(err, APUS_E_IO, "%s: cannot be written: %s", path, strerror(errno));
    for (size_t i = 0; i < n && st == APUS_OK; i++)
        st = apus_safetensors_put_(host, f, &items[i], read, context, err);
    return apus_stdio_finish(f, path, st, err);
}

#ifdef __cplusplus
}
#endif
#endif
