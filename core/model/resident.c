/*
 * core/model/resident: weights that nothing will change move into the device's memory, in the order that its kernels read fastest: once,
 * before a model answers, is evaluated, or has an adapter trained on it.
 *
 * A backend gives large blocks on large pages. A map of a file has small ones, and decoding, which reads every weight for every
 * token, then waits for address translation as long as a third of the time (in a virtual machine).
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/internal.h"

enum { PIECE = 1 << 20, ALIGN = 64, READERS = 8, SMALL = 1 << 16 };

typedef struct move {
    char *to;
    const char *from;
    size_t bytes;
} move;

static void copy_piece(void *context, int64_t i)
{
    const move *m = context;
    const size_t at = (size_t)i * PIECE, left = m->bytes - at;
    memcpy(m->to + at, m->from + at, left < PIECE ? left : PIECE);
}

static int in_file(const apus_weight *w)
{
    return !w->owned && w->device != NULL;
}

static apus_view view_of(const apus_model *m, const apus_weight *w)
{
    apus_view v = {.data = w->device, .dtype = w->dtype == APUS_REAL ? apus_device_real(m->device) : w->dtype, .ndim = w->spec.ndim};
    memcpy(v.dims, w->spec.dims, (size_t)w->spec.ndim * sizeof v.dims[0]);
    return v;
}

/* Does op read a weight that was rounded as if it had not been? It rounds to that anyway. */
static int rounds(const apus_op *op)
{
    return strcmp(op->name, "apus.linear/1") == 0 || strcmp(op->name, "apus.linear_dx/1") == 0 || strcmp(op->name, "apus.token_logprob/1") == 0;
}

static int gathers(const apus_op *op)
{
    return strcmp(op->name, "apus.embedding/1") == 0;
}

typedef struct scan {
    const float *values;
    size_t n;
    int lossy;
} scan;

static void scan_piece(void *context, int64_t i)
{
    scan *s = context;
    const size_t first = (size_t)i * PIECE, end = first + PIECE < s->n ? first + PIECE : s->n;
    uint32_t lost = 0, bits;
    for (size_t k = first; k < end; k++) {
        memcpy(&bits, s->values + k, sizeof bits);
        lost |= (bits & 0xffffu) | (uint32_t)((bits & 0x7f800000u) == 0 && bits << 1 != 0); /* instructions flush subnormals */
    }
    if (lost != 0)
        __atomic_store_n(&s->lossy, 1, __ATOMIC_RELAXED);
}

/* Nothing is lost when these float32 become bfloat16: they were bfloat16 before somebody stored them. */
static int lossless(const apus_model *m, const apus_view *v, const apus_weight *w, apus_dtype packed)
{
    scan s = {v->data, apus_weight_elements(&w->spec), 0};
    if (packed == (APUS_PACKED | v->dtype))
        return 1;
    if (packed != (APUS_PACKED | APUS_BF16) || v->dtype != APUS_F32)
        return 0;
    apus_device_parallel(m->device, (int64_t)((s.n + PIECE - 1) / PIECE), scan_piece, &s);
    return !s.lossy;
}

/* Bytes of the weight packed, and its element type then, if that is only read, by kernels that take it; 0: it cannot be. */
static size_t packed_size(const apus_model *m, const apus_weight *w, apus_dtype *packed)
{
    const apus_view v = view_of(m, w);
    return w->device != NULL && !w->trained ? apus_device_pack(m->device, &v, packed, NULL) : 0;
}

/* What settling does with a weight. */
typedef struct place {
    size_t room;   /* bytes of the memory it moves to; 0: it does not move */
    size_t packed; /* of them, when it is packed; 0: it moves as it is */
    int apart;     /* embedding goes on reading the file: packing rounds */
} place;

/* The weight packed, if all that will read it (g) takes that; packed 0: it stays in its order. */
static place packed_place(const apus_model *m, const apus_graph *g, const apus_weight *w)
{
    apus_dtype packed;
    const apus_op *readers[READERS];
    const apus_view v = view_of(m, w);
    const size_t n = g != NULL ? apus_graph_readers(g, w->spec.name, readers, READERS) : 0;
    const size_t bytes = n > 0 && n <= READERS ? packed_size(m, w, &packed) : 0;
    int exact = 0, gathered = 0, multiplied = 0;
    for (size_t i = 0; i < n && bytes > 0; i++) {
        if (apus_device_kernel(m->device, readers[i]->name, packed) == NULL)
            return (place){0};
        gathered |= gathers(readers[i]);
        multiplied |= !gathers(readers[i]);
        exact |= !gathers(readers[i]) && !rounds(readers[i]);
    }
    if (bytes == 0 || !multiplied)
        return (place){0};
    const int loses = (exact || gathered) && !lossless(m, &v, w, packed);
    return loses && (exact || !in_file(w) || w->dtype != APUS_REAL) ? (place){0} : (place){.packed = bytes, .apart = loses};
}

static void move_weight(apus_model *m, apus_weight *w, const place *p, char *to)
{
    if (p->packed > 0) {
        const apus_view v = view_of(m, w);
        (void)apus_device_pack(m->device, &v, &w->dtype, to);
    } else {
        move c = {to, w->device, w->bytes};
        apus_device_parallel(m->device, (int64_t)((w->bytes + PIECE - 1) / PIECE), copy_piece, &c);
    }
    w->rows = p->apart ? w->device : NULL;
    if (w->owned)
        apus_device_free(m->device, w->device, w->bytes);
    w->owned = 0;
    w->device = to;
    w->bytes = p->packed > 0 ? p->packed : w->bytes;
    if (m->format.ops.forget != NULL && m->format.file != NULL) /* at once: both copies of all would be twice the memory */
        m->format.ops.forget(m->format.file);
}

/* Whether of the weight, where it does not move, little is read: all of what is small, rows of a table. */
static int is_spared(const apus_graph *g, const apus_weight *w)
{
    const apus_op *readers[READERS];
    const size_t n = g != NULL ? apus_graph_readers(g, w->spec.name, readers, READERS) : 0;
    int only_rows = n > 0 && n <= READERS;
    for (size_t i = 0; i < n && only_rows; i++)
        only_rows = gathers(readers[i]);
    return !in_file(w) || w->bytes <= SMALL || only_rows;
}

/* Not all: a weight moves only if it takes less then. */
static place place_of(const apus_model *m, const apus_graph *g, int all, const apus_weight *w)
{
    place p = packed_place(m, g, w);
    if (!all && p.packed >= w->bytes)
        p = (place){0};
    const size_t bytes = p.packed > 0 ? p.packed : all && in_file(w) ? w->bytes : 0;
    p.room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

int apus_model_shrinks(const apus_model *m)
{
    int shrinks = 0;
    apus_dtype type;
    for (size_t i = 0; i < m->n_weights && !shrinks && apus_device_host_memory(m->device) && m->resident == NULL; i++) {
        const size_t packed = packed_size(m, &m->weights[i], &type);
        shrinks = packed > 0 && packed < m->weights[i].bytes;
    }
    return shrinks;
}

void apus_model_settle(apus_model *m, const apus_graph *g, int all)
{
    size_t bytes = 0, at = 0;
    if (!apus_device_host_memory(m->device) || m->resident != NULL)
        return;
    place *places = malloc((m->n_weights + 1) * sizeof *places);
    if (places == NULL)
        return;
    for (size_t i = 0; i < m->n_weights; i++) {
        places[i] = place_of(m, g, all, &m->weights[i]);
        bytes += places[i].room;
    }
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    /* a file's pages can leave memory again, copies cannot */
    if (bytes > 0 && pages > 0 && page > 0 && bytes / (size_t)page <= (size_t)pages / 2)
        m->resident = apus_device_alloc(m->device, bytes, NULL);
    m->resident_bytes = m->resident != NULL ? bytes : 0;
    m->rows_left = m->resident != NULL;
    for (size_t i = 0; i < m->n_weights && m->rows_left; i++)
        m->rows_left = places[i].room > 0 || is_spared(g, &m->weights[i]);
    for (size_t i = 0; i < m->n_weights && m->resident != NULL; i++) {
        if (places[i].room > 0)
            move_weight(m, &m->weights[i], &places[i], (char *)m->resident + at);
        at += places[i].room;
    }
    free(places);
}
