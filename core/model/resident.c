/*
 * core/model/resident: before a model answers, its weights move into the device's memory, in the order that its kernels read fastest.
 *
 * A backend gives large blocks on large pages. A map of a file has small ones, and decoding, which reads every weight for every
 * token, then waits for address translation as long as a third of the time (in a virtual machine).
 */
#include <string.h>
#include <unistd.h>

#include "model/internal.h"
#include "model/pages.h"
#include "model/score.h"

enum { PIECE = 1 << 20, ALIGN = 64, READERS = 8 };

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

/* Bytes of the weight packed, and its element type then; 0: it cannot be. g: all that will read it. A shorter type serves linear alone,
 * which rounds to it anyway. */
static size_t packed_bytes(const apus_model *m, const apus_graph *g, const apus_weight *w, apus_dtype *packed)
{
    const apus_op *readers[READERS];
    const apus_view v = view_of(m, w);
    const size_t n = g != NULL && w->device != NULL && !w->trained ? apus_graph_readers(g, w->spec.name, readers, READERS) : 0;
    const size_t bytes = n > 0 && n <= READERS ? apus_device_pack(m->device, &v, packed, NULL) : 0;
    size_t linear = 0;
    for (size_t i = 0; i < n && bytes > 0; i++) {
        const int is_linear = strcmp(readers[i]->name, "apus.linear/1") == 0;
        if (apus_device_kernel(m->device, readers[i]->name, *packed) == NULL || (!is_linear && *packed != (APUS_PACKED | v.dtype)))
            return 0;
        linear += (size_t)is_linear;
    }
    return linear > 0 ? bytes : 0;
}

/* What a generator's plans will compute. NULL: it cannot be built, which they will say. */
static apus_graph *graph_of(apus_model *m)
{
    const apus_forward_options forward = {.mode = APUS_FORWARD_CACHED, .tuner = 1, .page = APUS_PAGE, .slots = APUS_PAGE, .table_columns = 5};
    apus_graph *g = apus_model_graph(m, &forward);
    apus_forward f;
    apus_error err;
    if (g != NULL && apus_model_forward(m, g, &f, &err) == APUS_OK) {
        (void)apus_model_logits(g, &f, "scored");
        return g;
    }
    apus_graph_free(g);
    return NULL;
}

/* A weight moves to `to`. packed: its bytes there; 0: as it is. */
static void move_weight(apus_model *m, apus_weight *w, size_t packed, char *to)
{
    if (packed > 0) {
        const apus_view v = view_of(m, w);
        (void)apus_device_pack(m->device, &v, &w->dtype, to);
    } else {
        move c = {to, w->device, w->bytes};
        apus_device_parallel(m->device, (int64_t)((w->bytes + PIECE - 1) / PIECE), copy_piece, &c);
    }
    if (w->owned)
        apus_device_free(m->device, w->device, w->bytes);
    w->owned = 0;
    w->device = to;
    w->bytes = packed > 0 ? packed : w->bytes;
    if (m->format.ops.forget != NULL && m->format.file != NULL) /* at once: both copies of all would be twice the memory */
        m->format.ops.forget(m->format.file);
}

/* Bytes that weight i takes when it moves; 0: it does not. */
static size_t room(const apus_model *m, const apus_graph *g, size_t i, size_t *packed)
{
    apus_dtype type;
    const apus_weight *w = &m->weights[i];
    *packed = packed_bytes(m, g, w, &type);
    const size_t bytes = *packed > 0 ? *packed : in_file(w) ? w->bytes : 0;
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void apus_model_settle(apus_model *m)
{
    size_t bytes = 0, at = 0, packed;
    if (!apus_device_host_memory(m->device) || m->resident != NULL)
        return;
    apus_graph *g = graph_of(m);
    for (size_t i = 0; i < m->n_weights; i++)
        bytes += room(m, g, i, &packed);
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    /* a file's pages can leave memory again, copies cannot */
    if (bytes > 0 && pages > 0 && page > 0 && bytes / (size_t)page <= (size_t)pages / 2)
        m->resident = apus_device_alloc(m->device, bytes, NULL);
    m->resident_bytes = m->resident != NULL ? bytes : 0;
    for (size_t i = 0; i < m->n_weights && m->resident != NULL; i++) {
        const size_t its = room(m, g, i, &packed);
        if (its > 0)
            move_weight(m, &m->weights[i], packed, (char *)m->resident + at);
        at += its;
    }
    apus_graph_free(g);
}
