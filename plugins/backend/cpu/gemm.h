/*
 * Products of matrices, y [m, n] = a [m, k] b [k, n]: panels (panels.h), a tile that keeps its sums in registers, threads.
 *
 * Every element is summed along k in order, a unit at a time, in one float, whatever tile it falls into: its bits depend on
 * neither how many other rows there are nor where it stands nor how many threads work. k is never cut: a group of b (at
 * k = 1536 in bfloat16 147 KB) streams from the second cache at 8 bytes a cycle, a third of what that gives.
 *
 * A tile is HIGH rows by a group of columns: 8 x 48 in 512-bit registers are 24 sums, 3 vectors of b and one element of a;
 * 11 loads for 24 products. 6 x 16 in 256-bit ones: 12 sums, 8 loads.
 */
#ifndef APUS_CPU_GEMM_H
#define APUS_CPU_GEMM_H

#include "activate.h"
#include "integers.h"
#include "normed.h"

enum {
    BAND_LEAST = 128,
    SPELL = 16,                                  /* units of a tile between fetches */
    COUNTER = 64,                                /* bytes: a line of its own */
    BLOCK_BYTES = 4 << 20,                       /* of a packed at once: it streams from the third cache, an eighth of what b takes from the second */
    BLOCK_ROWS = (256 + HIGH - 1) / HIGH * HIGH, /* at least: b is packed anew for each block, which costs more than a from memory */
    NORMED = WIDE % HIGH == 0 ? WIDE : 2 * HIGH  /* rows of a normalised at once, which the first cache keeps until they are packed */
};

/* Loops over sums are two, each short enough to be unrolled early, and n_hold keeps them from becoming memset or memcpy: either would put
 * the sums into memory. */
LANES_INLINE void tile_clear(int mr, int nr, vn *acc)
{
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nr; j++) {
            acc[i * nr + j] = n_hold(n_all(0.0f));
        }
    }
}

/* Adds mr rows of a panel of a (of that height) by nr vectors of a panel of b, over n units. */
LANES_INLINE void tile_sums(kind t, int mr, int nr, const float *a, const float *b, int64_t width, int64_t n, vn *acc)
{
    for (int64_t u = 0; u < n; u++, a += mr, b += width) {
        vn hold[6];
        if (mr < nr) { /* what there is less of stays in registers, the other streams */
            for (int i = 0; i < mr; i++) {
                hold[i] = n_hold(n_all(a[i]));
            }
            for (int j = 0; j < nr; j++) {
                const vn bv = n_hold(n_load(b + j * WIDE));
                for (int i = 0; i < mr; i++) {
                    acc[i * nr + j] = n_product(t, hold[i], bv, acc[i * nr + j]);
                }
            }
        } else {
            for (int j = 0; j < nr; j++) {
                hold[j] = n_hold(n_load(b + j * WIDE));
            }
            for (int i = 0; i < mr; i++) {
                const vn av = n_hold(n_all(a[i]));
                for (int j = 0; j < nr; j++) {
                    acc[i * nr + j] = n_product(t, av, hold[j], acc[i * nr + j]);
                }
            }
        }
    }
}

LANES_INLINE void tile_store_as(int halves, int mr, int nr, const vn *acc, const vn *more, void *y, int64_t ld, const epilogue *e, int64_t rows,
                                int64_t columns)
{
    for (int i = 0; i < mr; i++) {
        if (i >= rows) {
            break;
        }
        for (int j = 0; j < nr; j++) {
            const int64_t c = (int64_t)j * WIDE, left = columns - c;
            vn s = acc[i * nr + j];
            if (left <= 0) {
                break;
            }
            if (e->bias != NULL) {
                s += n_load_part(e->bias + c, left);
            }
            if (more != NULL) {
                s += more[i * nr + j];
            }
            if (e->add != NULL) {
                s += n_load_part(e->add + i * e->ld_add + c, left);
            }
            n_give(halves, element_to(y, halves, i * ld + c), s, left);
        }
    }
}

/* rows and columns: how many of the tile's exist. e's pointers and y point at the tile's first element. more: a second term's sums, added
 * to those with their bias; NULL: there is none. */
LANES_INLINE void tile_store_both(int mr, int nr, const vn *acc, const vn *more, void *y, int64_t ld, const epilogue *e, int64_t rows,
                                  int64_t columns)
{
    if (e->halves) {
        tile_store_as(1, mr, nr, acc, more, y, ld, e, rows, columns);
    } else {
        tile_store_as(0, mr, nr, acc, more, y, ld, e, rows, columns);
    }
}

LANES_INLINE void tile_store(int mr, int nr, const vn *acc, void *y, int64_t ld, const epilogue *e, int64_t rows, int64_t columns)
{
    tile_store_both(mr, nr, acc, NULL, y, ld, e, rows, columns);
}

/* Memory that will be read next, fetched a little with each tile: the weights that follow lie in no cache. */
typedef struct ahead {
    const char *p;
    int64_t rows, bytes, ld; /* of each row; ld in bytes */
    int64_t at;
} ahead;

LANES_INLINE void fetch(ahead *f, int64_t lines)
{
    for (; lines > 0 && f->rows > 0; lines--) {
        __builtin_prefetch(f->p + f->at, 0, 2);
        f->at += 64;
        if (f->at >= f->bytes) {
            f->at = 0;
            f->p += f->ld;
            f->rows--;
        }
    }
}

/* A second term's panels, of the heights and widths that the first one's have; n: its units, 0: there is none. */
typedef struct second {
    const float *a, *b;
    int64_t n;
} second;

/* A tile, and between its sums what memory will be needed for: a few lines at a time, or the panels' loads would wait behind them. y and
 * what is added are first touched when the tile is stored, and lie in no cache either. c: column of the panel from which on. lines: of
 * next, to be fetched with each SPELL. more: its rows are those of the tile. */
LANES_INLINE void tile(kind t, int mr, int nr, const float *a, const float *b, int64_t c, int64_t width, int64_t n, const second *more, void *y,
                       int64_t ld, const epilogue *e, int64_t rows, int64_t columns, ahead *next, int64_t lines)
{
    const int64_t spells = (n + SPELL - 1) / SPELL, each = (mr + spells) / (spells + 1);
    vn acc[24], its[24], *added = NULL;
    if (in_integers(t)) {
        fetch(next, lines * spells);
        quads_sums(t, mr, nr, a, 1, mr, b, c, width, n / LEFT_QUADS, 0, acc);
        tile_store(mr, nr, acc, y, ld, e, rows, columns);
        return;
    }
    tile_clear(mr, nr, acc);
    if (more->n > 0) { /* first: its sums are on their way to memory while the others are made */
        tile_sums(t, mr, nr, more->a, more->b + c, width, more->n, acc);
        for (int i = 0; i < mr; i++) {
            for (int j = 0; j < nr; j++) {
                its[i * nr + j] = n_hold(acc[i * nr + j]);
            }
        }
        added = its;
        tile_clear(mr, nr, acc);
    }
    for (int64_t u = 0, i = 0; u < n; u += SPELL) {
        fetch(next, lines);
        for (const int64_t end = apus_cpu_min(rows, i + each); i < end; i++) {
            for (int j = 0; j < nr; j++) {
                __builtin_prefetch(element_to(y, e->halves, i * ld + j * WIDE), 1);
                if (e->add != NULL) {
                    __builtin_prefetch(e->add + i * e->ld_add + j * WIDE);
                }
            }
        }
        tile_sums(t, mr, nr, a + u * mr, b + c + u * width, width, apus_cpu_min(SPELL, n - u), acc);
    }
    if (added != NULL) {
        tile_store_both(mr, nr, acc, its, y, ld, e, rows, columns);
    } else {
        tile_store(mr, nr, acc, y, ld, e, rows, columns);
    }
}

/* All rows of a (panels of height mr) by one group of b, nr vectors at a time. */
LANES_INLINE void tiles_by(kind t, int mr, int nr, const float *a, const float *b, int64_t width, int64_t n, const second *more, void *y, int64_t ld,
                           const epilogue *e, int64_t rows, int64_t columns, ahead *next)
{
    const int64_t spells = (rows + mr - 1) / mr * (width / (nr * WIDE)) * ((n + SPELL - 1) / SPELL);
    const int64_t lines = (next->bytes + 63) / 64 * next->rows / (spells > 0 ? spells : 1) + 1;
    for (int64_t i = 0; i < rows; i += mr, a += mr * n) {
        const second its = {more->a + i * more->n, more->b, more->n};
        for (int64_t j = 0; j < width; j += (int64_t)nr * WIDE) {
            const epilogue here = {e->bias != NULL ? e->bias + j : NULL, e->add != NULL ? e->add + i * e->ld_add + j : NULL, e->ld_add, e->halves};
            tile(t, mr, nr, a, b, j, width, n, &its, element_to(y, e->halves, i * ld + j), ld, &here, rows - i, columns - j, next, lines);
        }
    }
}

/* Heights of panels of a: a few rows need not be filled up to a whole tile. */
LANES_INLINE int panel_height(int64_t rows)
{
    return rows == 1 ? 1 : rows == 2 ? 2 : rows <= 4 && HIGH > 4 ? 4 : HIGH;
}

LANES_INLINE void tiles_high(kind t, int mr, const float *a, const float *b, int64_t width, int64_t n, const second *more, void *y, int64_t ld,
                             const epilogue *e, int64_t rows, int64_t columns, ahead *next)
{
#if defined(__AVX512BF16__)
    if (width == GROUP) {
        tiles_by(t, mr, 3, a, b, GROUP, n, more, y, ld, e, rows, columns, next);
    } else if (width == 2 * STRIP) {
        tiles_by(t, mr, 2, a, b, 2 * STRIP, n, more, y, ld, e, rows, columns, next);
    } else {
        tiles_by(t, mr, 1, a, b, STRIP, n, more, y, ld, e, rows, columns, next);
    }
#else
    if (width == GROUP && mr <= 2 && HIGH > 2 && !in_integers(t)) {
        tiles_by(t, mr, 6, a, b, GROUP, n, more, y, ld, e, rows, columns, next);
    } else {
        tiles_by(t, mr, 2, a, b, width, n, more, y, ld, e, rows, columns, next);
    }
#endif
}

LANES_INLINE void tiles_of(kind t, int64_t height, const float *a, const float *b, int64_t width, int64_t n, const second *more, void *y, int64_t ld,
                           const epilogue *e, int64_t rows, int64_t columns, ahead *next)
{
    switch (height) {
    case 1:
        tiles_high(t, 1, a, b, width, n, more, y, ld, e, rows, columns, next);
        return;
    case 2:
        tiles_high(t, 2, a, b, width, n, more, y, ld, e, rows, columns, next);
        return;
#if defined(__AVX2__) || defined(__aarch64__)
    case 4:
        tiles_high(t, 4, a, b, width, n, more, y, ld, e, rows, columns, next);
        return;
    default:
        tiles_high(t, HIGH, a, b, width, n, more, y, ld, e, rows, columns, next);
        return;
#else
    default:
        return;
#endif
    }
}

/* Panels higher than QUADS_HIGH are of that height. */
LANES_INLINE void tiles_quads(kind t, int64_t height, const float *a, const float *b, int64_t width, int64_t n, const second *more, void *y,
                              int64_t ld, const epilogue *e, int64_t rows, int64_t columns, ahead *next)
{
    if (height == 1) {
        tiles_high(t, 1, a, b, width, n, more, y, ld, e, rows, columns, next);
    } else if (height == 2) {
        tiles_high(t, 2, a, b, width, n, more, y, ld, e, rows, columns, next);
    } else {
        tiles_high(t, QUADS_HIGH, a, b, width, n, more, y, ld, e, rows, columns, next);
    }
}

/* rows of packed a, in panels of this height, by one group of packed b of n units: y and e's pointers at the first element. */
static void tiles_twice(kind t, int64_t height, const float *a, const float *b, int64_t width, int64_t n, const second *more, void *y, int64_t ld,
                        const epilogue *e, int64_t rows, int64_t columns, ahead *next)
{
    if (t == QUADS) {
        tiles_quads(QUADS, height, a, b, width, n, more, y, ld, e, rows, columns, next);
    } else if (t == NIBBLES) {
        tiles_quads(NIBBLES, height, a, b, width, n, more, y, ld, e, rows, columns, next);
    } else if (t == BFLOAT16) {
        tiles_of(SUMMED, height, a, b, width, n, more, y, ld, e, rows, columns, next);
    } else {
        tiles_of(PLAIN, height, a, b, width, n, more, y, ld, e, rows, columns, next);
    }
}

/* One term alone. */
static void tiles(kind t, int64_t height, const float *a, const float *b, int64_t width, int64_t n, void *y, int64_t ld, const epilogue *e,
                  int64_t rows, int64_t columns, ahead *next)
{
    const second none = {NULL, NULL, 0};
    tiles_twice(t, height, a, b, width, n, &none, y, ld, e, rows, columns, next);
}

/* ---------------------------------------------------------------- factors */

/* A matrix seen as a factor: `along`: its rows run along the sum, else across it. */
typedef struct factor {
    const void *p;
    int64_t ld; /* elements of a row */
    int along;
    apus_dtype dtype; /* other than APUS_F32 and APUS_BF16: only of the right factor, along; pairs across too */
} factor;

/* Of so many columns of b. */
LANES_INLINE int64_t panel_width(int64_t columns)
{
    return columns > 2 * STRIP ? GROUP : columns > STRIP ? 2 * STRIP : STRIP;
}

/* Whether the right factor is in panels already (packed.h). */
static int is_packed(const factor *f)
{
    return (f->dtype & APUS_PACKED) != 0;
}

/* Whether its units are pairs of bfloat16, on every instruction set. */
static int has_pairs(const factor *f)
{
    return f->dtype == (APUS_PACKED | APUS_BF16);
}

/* Bytes of a column of it. */
static int64_t packed_column(apus_dtype type, int64_t k)
{
    return type == APUS_BF16 ? units(PAIRS, k) * (int64_t)sizeof(float) : (int64_t)apus_row_bytes(type, k);
}

/* The panel of the group that begins at column `first`: those before it are whole ones. */
static const float *packed_panel(const factor *f, int64_t first, int64_t k)
{
    return (const float *)f->p + first * packed_column(f->dtype & ~APUS_PACKED, k) / (int64_t)sizeof(float);
}

/* A panel of pairs as one of floats. */
static void split_pairs(int64_t width, const float *pairs, int64_t k, float *panel)
{
    for (int64_t u = 0; u < units(PAIRS, k); u++) {
        for (int64_t c = 0; c < width; c += WIDE) {
            const vn pair = n_load(pairs + u * width + c);
            n_store(panel + 2 * u * width + c, n_even(pair));
            if (2 * u + 1 < k) {
                n_store(panel + (2 * u + 1) * width + c, n_odd(pair));
            }
        }
    }
}

/* Elements e … e + 15 (n: of a column) of 16 columns of a panel of pairs (of this width: `its`), as units of a panel that is summed over these
 * columns. to: where the first goes; left: columns that there are. */
LANES_INLINE void turn_square(kind t, const float *from, int64_t its, int64_t e, int64_t n, int64_t width, float *to, int64_t left)
{
#if defined(__AVX512BF16__)
    if (t == PAIRS) {
        vn r[8];
        for (int64_t i = 0; i < 8; i++) {
            r[i] = e + 2 * i < n ? n_load(from + (e / 2 + i) * its) : n_all(0.0f);
        }
        n_turn_pairs(r);
        for (int64_t i = 0; i < apus_cpu_min((left + 1) / 2, 8); i++) {
            n_store(to + i * width, r[i]);
        }
        return;
    }
#endif
    (void)t;
    for (int64_t c = 0; c < 16; c += WIDE) {
        for (int64_t x = 0; x < 16; x += WIDE) {
            vn r[WIDE];
            for (int64_t i = 0; i < WIDE; i++) {
                const vn pair = e + x + i < n ? n_load(from + (e + x + i) / 2 * its + c) : n_all(0.0f);
                r[i] = i % 2 == 0 ? n_even(pair) : n_odd(pair);
            }
            n_transpose(r);
            for (int64_t i = 0; i < apus_cpu_min(left - c, WIDE); i++) {
                n_store(to + (c + i) * width + x, r[i]);
            }
        }
    }
}

/* A matrix of k rows, packed as pairs along them, is summed across: columns from `first` on, the first of a group. */
LANES_INLINE void pack_turned(kind t, int64_t width, const factor *f, int64_t first, int64_t k, float *panel)
{
    for (int64_t g = 0; g < k; g += GROUP) {
        const int64_t rows = apus_cpu_min(GROUP, k - g), its = panel_width(rows);
        const float *from = packed_panel(f, g, f->ld);
        for (int64_t c = 0; c < rows; c += 16) {
            for (int64_t e = 0; e < width; e += 16) {
                turn_square(t, from + c, its, first + e, f->ld, width, panel + units(t, g + c) * width + e, rows - c);
            }
        }
    }
}

/* Of floats or bfloat16. */
LANES_INLINE void pack(kind t, int64_t width, const factor *f, int64_t first, int64_t count, int64_t k, float *panels)
{
    const int halves = f->dtype == APUS_BF16;
    const void *p = element(f->p, halves, f->along ? first * f->ld : first);
    if (f->along && halves) {
        pack_along(t, 1, width, p, f->ld, count, k, panels);
    } else if (f->along) {
        pack_along(t, 0, width, p, f->ld, count, k, panels);
    } else if (halves) {
        pack_across(t, 1, width, p, f->ld, count, k, panels);
    } else {
        pack_across(t, 0, width, p, f->ld, count, k, panels);
    }
}

/* An encoded right factor: rows are decoded a piece at a time. */
LANES_INLINE void pack_encoded(kind t, int64_t width, const factor *f, int64_t first, int64_t count, int64_t k, float *panel)
{
    enum { PIECE = 256 };
    float rows[STRIP * PIECE];
    const size_t bytes = apus_row_bytes(f->dtype, f->ld);
    for (int64_t c = 0; c < width; c += STRIP) {
        const int64_t n = apus_cpu_min(STRIP, count - c);
        for (int64_t x = 0; x < k; x += PIECE) {
            const int64_t left = apus_cpu_min(PIECE, k - x);
            for (int64_t i = 0; i < n; i++) {
                decode(f->dtype, (const uint8_t *)f->p + (size_t)(first + c + i) * bytes + apus_row_bytes(f->dtype, x), rows + i * PIECE, left);
            }
            pack_rows(t, 0, width, rows, PIECE, n, STRIP, left, panel + units(t, x) * width + c);
        }
    }
}

/* Rows [first, first + count) of the left factor into panels of this height; of integers they run along the sum. */
static void pack_left(kind t, const factor *f, int64_t first, int64_t count, int64_t height, int64_t k, float *panels)
{
    if (in_integers(t)) {
        pack_quads_left((const float *)f->p + first * f->ld, f->ld, count, apus_cpu_min(height, QUADS_HIGH), k, panels);
        return;
    }
    switch (height) {
    case 1:
        t == BFLOAT16 ? pack(BFLOAT16, 1, f, first, count, k, panels) : pack(PLAIN, 1, f, first, count, k, panels);
        return;
    case 2:
        t == BFLOAT16 ? pack(BFLOAT16, 2, f, first, count, k, panels) : pack(PLAIN, 2, f, first, count, k, panels);
        return;
#if defined(__AVX2__) || defined(__aarch64__)
    case 4:
        t == BFLOAT16 ? pack(BFLOAT16, 4, f, first, count, k, panels) : pack(PLAIN, 4, f, first, count, k, panels);
        return;
    default:
        t == BFLOAT16 ? pack(BFLOAT16, HIGH, f, first, count, k, panels) : pack(PLAIN, HIGH, f, first, count, k, panels);
        return;
#else
    default:
        return;
#endif
    }
}

/* Columns [first, first + count) of the right factor, a group at most, into one panel. */
static void pack_right(kind t, const factor *f, int64_t first, int64_t count, int64_t k, float *panel)
{
    const int64_t width = panel_width(count);
    if (in_integers(t)) {
        const size_t bytes = apus_row_bytes(f->dtype, f->ld);
        const uint8_t *w = (const uint8_t *)f->p + (size_t)first * bytes;
        t == QUADS ? pack_quads_right(QUADS, width, w, bytes, count, k, panel) : pack_quads_right(NIBBLES, width, w, bytes, count, k, panel);
    } else if (is_packed(f)) {
        t == PAIRS ? pack_turned(PAIRS, width, f, first, k, panel) : pack_turned(PLAIN, width, f, first, k, panel);
    } else if (f->dtype != APUS_F32 && f->dtype != APUS_BF16) {
        t == BFLOAT16 ? pack_encoded(BFLOAT16, width, f, first, count, k, panel) : pack_encoded(PLAIN, width, f, first, count, k, panel);
    } else if (t == BFLOAT16) {
        pack(BFLOAT16, width, f, first, count, k, panel);
    } else {
        pack(PLAIN, width, f, first, count, k, panel);
    }
}

/* The same panel: where it lies, or made in `room`. */
static const float *right_panel(kind t, const factor *f, int64_t first, int64_t count, int64_t k, float *room)
{
    if (!is_packed(f) || !f->along) {
        pack_right(t, f, first, count, k, room);
        return room;
    }
    const float *panel = packed_panel(f, first, k);
    if (!has_pairs(f) || t == PAIRS) {
        return panel;
    }
    split_pairs(panel_width(count), panel, k, room);
    return room;
}

/* What right_panel will read. */
static ahead ahead_of(const factor *f, int64_t first, int64_t count, int64_t k)
{
    if (count <= 0) {
        return (ahead){.rows = 0};
    }
    if (is_packed(f) && f->along) {
        const float *p = packed_panel(f, first, k);
        return (ahead){(const char *)p, 1, panel_width(count) * packed_column(f->dtype & ~APUS_PACKED, k), 0, 0};
    }
    if (is_packed(f)) { /* a run of units of each panel; the last one may be shorter, and what is fetched beyond it is of no use */
        const int64_t unit = GROUP * (int64_t)sizeof(float);
        return (ahead){(const char *)f->p + first / 2 * unit, (k + GROUP - 1) / GROUP, units(PAIRS, count) * unit, units(PAIRS, f->ld) * unit, 0};
    }
    const int64_t row = (int64_t)apus_row_bytes(f->dtype, f->ld);
    return f->along ? (ahead){(const char *)f->p + first * row, count, row, row, 0}
                    : (ahead){(const char *)f->p + apus_row_bytes(f->dtype, first), k, (int64_t)apus_row_bytes(f->dtype, count), row, 0};
}

/* ---------------------------------------------------------------- products */

typedef struct product {
    kind t;
    int64_t m, n, k, k_more;
    factor a, b, a_more, b_more; /* of a second term y is the sum with; its k 0: there is none. Not of integers */
    const norm *norm;            /* of the left factor's rows, which it reads: a's are not; NULL: they are as a has them */
    char *normed;                /* normed_bytes for each thread */
    void *y;
    int64_t ld, y_column; /* y_column: of few rows, the column that y begins with */
    epilogue e;
    int act;                     /* what becomes of the sums (activate.h); then nothing is added to them but the bias */
    const struct product *other; /* of ACT_SWIGLU: what the gate's sums are multiplied with, like it but for its own b and bias */
} product;

static kind kind_of(const apus_kernel_call *c)
{
    return apus_cpu_of(c)->bfloat16 ? BFLOAT16 : PLAIN;
}

/* Of activations times w. */
static kind kind_with(const apus_kernel_call *c, const apus_view *w)
{
    const apus_dtype type = w->dtype & ~APUS_PACKED;
    const int integers = apus_cpu_of(c)->integers;
    return integers && type == APUS_Q8_0 ? QUADS : integers && type == APUS_Q4_0 ? NIBBLES : kind_of(c);
}

/* How the threads share a product: the rows are cut into `bands`, and each band's threads take groups of b in turn. Every
 * thread packs for itself what it reads: cores may share no cache, and none waits for another. Bands keep rows where the ops
 * before and after have them; b is packed anew for each, which a band of BAND_LEAST rows makes cheap. */
typedef struct split {
    int64_t bands, band_rows, block_rows, blocks; /* a block: rows packed at once */
} split;

/* most: rows of a block at most. */
static split split_of(int64_t m, int64_t most, int threads)
{
    split s = {.bands = threads};
    while (s.bands > 1 && (threads % s.bands != 0 || m / s.bands < BAND_LEAST)) {
        s.bands--;
    }
    s.band_rows = s.bands == 1 ? m : ((m + s.bands - 1) / s.bands + HIGH - 1) / HIGH * HIGH;
    s.block_rows = apus_cpu_min(s.band_rows, most);
    s.blocks = s.band_rows > 0 ? (s.band_rows + s.block_rows - 1) / s.block_rows : 0;
    return s;
}

/* Rows of a block at most. */
static int64_t block_most(kind t, int64_t k)
{
    const int64_t fit = BLOCK_BYTES / ((units(t, k) + 1) * (int64_t)sizeof(float)) / HIGH * HIGH;
    return fit > BLOCK_ROWS ? fit : BLOCK_ROWS;
}

static size_t left_bytes(kind t, int64_t rows, int64_t k)
{
    return apus_cpu_lines((size_t)((rows + HIGH - 1) / HIGH * HIGH * units(t, k)) * sizeof(float));
}

/* Rows of the left factor that are normalised at once, of each thread. */
static size_t normed_bytes(int64_t k)
{
    return apus_cpu_lines((size_t)(NORMED * k) * sizeof(float));
}

static size_t right_bytes(kind t, int64_t n, int64_t k)
{
    return apus_cpu_lines((size_t)(apus_cpu_min(GROUP, (n + STRIP - 1) / STRIP * STRIP) * units(t, k)) * sizeof(float));
}

/* Counters of any split of m rows or fewer. */
static size_t counters_bytes(int64_t m, int64_t most, int threads)
{
    return (size_t)(threads * ((m + most - 1) / most)) * COUNTER;
}

/* What a second term takes besides. */
static size_t more_bytes(kind t, int64_t m, int64_t n, int64_t k, int threads)
{
    return (size_t)threads * (left_bytes(t, m, k) + right_bytes(t, n, k));
}

/* Enough for any m and k up to these: fewer rows may be cut into fewer bands of more rows each, a shorter sum into longer blocks. */
static size_t multiply_bytes(kind t, int64_t m, int64_t n, int64_t k, int threads)
{
    const size_t all = left_bytes(t, m, k), least = left_bytes(t, BLOCK_ROWS, k), most = least > BLOCK_BYTES ? least : BLOCK_BYTES;
    return (size_t)threads * ((all < most ? all : most) + right_bytes(t, n, k)) + counters_bytes(m, block_most(t, k), threads);
}

/* What is taken in turn: groups of b, the last ones cut into parts of the rows so that no thread waits long for another. Who
 * computes an element does not change it. */
typedef struct items {
    int64_t whole, parts, part_rows, n;
} items;

static items items_of(int64_t rows, int64_t groups, int64_t threads, int alone)
{
    const int64_t tail = alone ? 0 : apus_cpu_min(groups, 2 * threads), most = (rows + 4 * HIGH - 1) / (4 * HIGH);
    items w = {.whole = groups - tail, .parts = apus_cpu_min(most, tail < 2 * threads ? 8 : 4)};
    w.part_rows = ((rows + w.parts - 1) / w.parts + HIGH - 1) / HIGH * HIGH;
    w.parts = (rows + w.part_rows - 1) / w.part_rows;
    w.n = w.whole + tail * w.parts;
    return w;
}

/* A thread's own panels: of a, of b and the other product's; the sums of its rows that are not results yet; the second term's panels. */
typedef struct room {
    float *a, *b[2], *sums[2], *a_more, *b_more;
    char *normed;
} room;

/* Bytes of what a product with an activation needs besides, of each thread. */
static size_t activate_bytes(kind t, int64_t n, int64_t k)
{
    return right_bytes(t, n, k) + 2 * apus_cpu_lines(ACT_ROOM * sizeof(float));
}

/* The same tiles as a product's without: sums of ACT_ROWS rows at a time, while they are near. y: the first row; j: the group's column. */
static void tiles_activated(const product *p, int64_t height, const float *a, const float *const panel[2], int64_t n, int64_t y, int64_t j,
                            int64_t rows, int64_t columns, ahead next[2], const room *own)
{
    for (int64_t i = 0; i < rows; i += ACT_ROWS) {
        const int64_t some = apus_cpu_min(ACT_ROWS, rows - i);
        for (int s = 0; s < (p->other != NULL ? 2 : 1); s++) {
            const float *bias = s == 0 ? p->e.bias : p->other->e.bias;
            const epilogue e = {bias != NULL ? bias + j : NULL, NULL, 0, 0};
            tiles(p->t, height, a + i * n, panel[s], panel_width(columns), n, own->sums[s], GROUP, &e, some, columns, &next[s]);
        }
        activate(p->act, p->e.halves, own->sums[0], own->sums[1], some, columns, element_to(p->y, p->e.halves, (y + i) * p->ld + j), p->ld);
    }
}

/* The left factor's rows, as they are multiplied: normalised, if they are to be. */
static factor left_rows(const product *p, int64_t first, int64_t count, void *normed)
{
    const int64_t groups = p->k / p->norm->width;
    norm_groups(p->norm, first * groups, (first + count) * groups, normed);
    return (factor){normed, p->k, 1, p->norm->halves ? APUS_BF16 : APUS_F32};
}

/* pack_left of rows that may have to be normalised. */
static void pack_product_left(const product *p, int64_t first, int64_t count, int64_t height, void *normed, float *panels)
{
    if (p->norm == NULL) {
        pack_left(p->t, &p->a, first, count, height, p->k, panels);
        return;
    }
    for (int64_t i = 0; i < count; i += NORMED) {
        const int64_t some = apus_cpu_min(NORMED, count - i);
        const factor rows = left_rows(p, first + i, some, normed);
        pack_left(p->t, &rows, 0, some, height, p->k, panels + i * units(p->t, p->k));
    }
}

/* Of n products whose columns are cut into strips of this width, one after the other, that which strip *at of all belongs to; *at becomes its
 * number there. NULL: beyond the last. */
static const product *product_of_strip(const product *p, uint32_t n, int64_t width, int64_t *at)
{
    for (uint32_t i = 0; i < n; i++) {
        const int64_t strips = (p[i].n + width - 1) / width;
        if (*at < strips) {
            return &p[i];
        }
        *at -= strips;
    }
    return NULL;
}

static int64_t strips_of(const product *p, uint32_t n, int64_t width)
{
    int64_t strips = 0;
    for (uint32_t i = 0; i < n; i++) {
        strips += (p[i].n + width - 1) / width;
    }
    return strips;
}

/* Rows [first, first + rows), by groups that `taken` counts, shared by `threads`; alone: no other thread will help. Of a only what its
 * items need: one that helps at the end finds it in another core's cache. */
static void multiply_block(const product *all, uint32_t n_all, int64_t first, int64_t rows, int64_t threads, int alone, int64_t *taken,
                           const room *own)
{
    const int64_t n = units(all->t, all->k), n_more = units(all->t, all->k_more), groups = strips_of(all, n_all, GROUP), height = panel_height(rows);
    const items work = items_of(rows, groups, threads, alone);
    const float *panel[2] = {NULL, NULL}, *panel_more = NULL;
    int64_t packed = -1;
    for (unsigned have = 0;;) { /* bits: parts of a */
        const int64_t item = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        if (item >= work.n) {
            return;
        }
        const int whole = item < work.whole;
        const int64_t group = whole ? item : work.whole + (item - work.whole) / work.parts;
        int64_t its = group, after = whole ? group + threads : groups; /* after: the next of this thread, where all are equally fast */
        const product *p = product_of_strip(all, n_all, GROUP, &its), *then = product_of_strip(all, n_all, GROUP, &after);
        const int64_t j = GROUP * its;
        const int64_t part = whole ? 0 : (item - work.whole) % work.parts, end = whole ? work.parts : part + 1, i = part * work.part_rows;
        const int64_t columns = apus_cpu_min(GROUP, p->n - j), y = first + i;
        const epilogue e = {p->e.bias != NULL ? p->e.bias + j : NULL, p->e.add != NULL ? p->e.add + y * p->e.ld_add + j : NULL, p->e.ld_add,
                            p->e.halves};
        for (int64_t x = part; x < end; x++) {
            const int64_t at = x * work.part_rows;
            if ((have >> x & 1u) == 0) {
                const int64_t now = apus_cpu_min(work.part_rows, rows - at);
                pack_product_left(p, first + at, now, height, own->normed, own->a + at * n);
                if (n_more > 0) {
                    pack_left(p->t, &p->a_more, first + at, now, height, p->k_more, own->a_more + at * n_more);
                }
                have |= 1u << x;
            }
        }
        if (packed != group) {
            panel[0] = right_panel(p->t, &p->b, j, columns, p->k, own->b[0]);
            if (p->other != NULL) {
                panel[1] = right_panel(p->t, &p->other->b, j, columns, p->k, own->b[1]);
            }
            panel_more = n_more > 0 ? right_panel(p->t, &p->b_more, j, columns, p->k_more, own->b_more) : NULL;
            packed = group;
        }
        const int64_t now_rows = whole ? rows : apus_cpu_min(work.part_rows, rows - i);
        ahead next[2] = {{.rows = 0}, {.rows = 0}};
        if (then != NULL) {
            next[0] = ahead_of(&then->b, after * GROUP, apus_cpu_min(GROUP, then->n - after * GROUP), p->k);
        }
        if (p->act == ACT_NONE) {
            const second more = {own->a_more + i * n_more, panel_more, n_more};
            tiles_twice(p->t, height, own->a + i * n, panel[0], panel_width(columns), n, &more, element_to(p->y, p->e.halves, y * p->ld + j), p->ld,
                        &e, now_rows, columns, &next[0]);
            continue;
        }
        if (then != NULL && then->other != NULL) {
            next[1] = ahead_of(&then->other->b, after * GROUP, apus_cpu_min(GROUP, then->n - after * GROUP), p->k);
        }
        tiles_activated(p, height, own->a + i * n, panel, n, y, j, now_rows, columns, next, own);
    }
}

/* The i-th block that thread `me` looks at: of its own band, then what is left of the others. Gives its counter's number. */
static int64_t block_at(const split *s, int64_t m, int64_t me, int64_t i, int64_t *first, int64_t *rows)
{
    const int64_t band = (me + i / s->blocks) % s->bands, block = i % s->blocks;
    *first = band * s->band_rows + block * s->block_rows;
    *rows = apus_cpu_min(m, apus_cpu_min((band + 1) * s->band_rows, *first + s->block_rows)) - *first;
    return band * s->blocks + block;
}

/* n products of one left factor: of one kind, with no second term if there are several. scratch: multiply_bytes of the largest; with an
 * activation, activate_bytes for each thread too; with a second term, more_bytes. */
static void multiply(const product *p, uint32_t n, int threads, char *scratch)
{
    const split s = split_of(p->m, block_most(p->t, p->k), threads);
    int64_t most = 0, all = 0;
    for (uint32_t i = 0; i < n; i++) {
        most = p[i].n > most ? p[i].n : most;
        all += p[i].n;
    }
    const size_t left = left_bytes(p->t, s.block_rows, p->k), right = right_bytes(p->t, most, p->k);
    const size_t left_more = left_bytes(p->t, s.block_rows, p->k_more);
    const size_t each = left + right + (p->act != ACT_NONE ? activate_bytes(p->t, most, p->k) : left_more + right_bytes(p->t, most, p->k_more));
    char *counters = scratch + (size_t)threads * each;
    memset(counters, 0, (size_t)(s.bands * s.blocks) * COUNTER);
#pragma omp parallel num_threads(threads) if (p->m * all * p->k > 32768)
    {
        const int64_t me = omp_get_thread_num();
        char *at = scratch + (size_t)me * each;
        char *more = at + left + right; /* an activation's, or the second term's */
        float *sums = (float *)(void *)(more + right);
        const room own = {.a = (float *)(void *)at,
                          .b = {(float *)(void *)(at + left), (float *)(void *)more},
                          .sums = {sums, sums + ACT_ROOM},
                          .a_more = (float *)(void *)more,
                          .b_more = (float *)(void *)(more + left_more),
                          .normed = p->norm != NULL ? p->normed + (size_t)me * normed_bytes(p->k) : NULL};
        for (int64_t i = 0; i < s.bands * s.blocks; i++) {
            int64_t first, rows;
            int64_t *taken = (int64_t *)(void *)(counters + block_at(&s, p->m, me, i, &first, &rows) * COUNTER);
            if (rows > 0) {
                multiply_block(p, n, first, rows, threads / s.bands, threads == 1, taken, &own);
            }
        }
    }
}

#endif
