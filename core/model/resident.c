/*
 * core/model/resident: weights that lie in the mapped file move into the device's memory.
 *
 * A backend gives large blocks on large pages. A map of a file has small ones, and decoding, which reads every weight for every
 * token, then waits for address translation as long as a third of the time (in a virtual machine).
 */
#include <string.h>
#include <unistd.h>

#include "model/internal.h"

enum { PIECE = 1 << 20, ALIGN = 64 };

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

static size_t room(const apus_weight *w)
{
    return (w->bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void apus_model_settle(apus_model *m)
{
    size_t bytes = 0, at = 0;
    if (!apus_device_host_memory(m->device) || m->resident != NULL)
        return;
    for (size_t i = 0; i < m->n_weights; i++)
        bytes += in_file(&m->weights[i]) ? room(&m->weights[i]) : 0;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (bytes == 0 || pages <= 0 || page <= 0 || bytes / (size_t)page > (size_t)pages / 2)
        return; /* a file's pages can leave memory again, copies cannot */
    m->resident = apus_device_alloc(m->device, bytes, NULL);
    if (m->resident == NULL)
        return;
    m->resident_bytes = bytes;
    for (size_t i = 0; i < m->n_weights; i++) {
        apus_weight *w = &m->weights[i];
        if (!in_file(w))
            continue;
        move c = {(char *)m->resident + at, w->device, w->bytes};
        apus_device_parallel(m->device, (int64_t)((w->bytes + PIECE - 1) / PIECE), copy_piece, &c);
        w->device = c.to;
        at += room(w);
        if (m->format.ops.forget != NULL && m->format.file != NULL) /* at once: both copies of all would be twice the memory */
            m->format.ops.forget(m->format.file);
    }
}
