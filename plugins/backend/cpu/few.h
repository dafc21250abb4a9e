/*
 * Products of a few rows: y [m, n] = a [m, k] W^T with m <= FEW_MOST. W is read once, as it lies in memory, and turned in registers:
 * what decoding one token costs is the reading of the weights.
 *
 * A strip of one or two WIDE rows of W (columns of y) is worked on at a time, along the sum: vectors across the strip are multiplied by
 * one element of a, so each element of y is summed in the order that gemm.h has, bit for bit. Of a single row two sums run side by
 * side: one alone waits for itself.
 */
#ifndef APUS_CPU_FEW_H
#define APUS_CPU_FEW_H

#include "packed.h"

enum {
    FEW_MOST = PACKED_ROWS,
    FEW_PIECE = 256, /* elements decoded at once: what the longest blocks have */
    FEW_WIDEST = 2 * WIDE,
    FEW_QUADS = 4 /* rows of products in integers that are worked on together: more than registers hold cost twice as much each */
};

/* One strip's sums on their way. a: m rows of units, lda apart. */
typedef struct strip {
    const float *a;
    int64_t lda, lines; /* lines: to fetch with each WIDE units */
    ahead next;
} strip;

/* Throughout: m rows; nr vectors make the strip; acc[i * nr + j]: the sums of row i, vector j. */

/* Elements e and e + 1 of the sum (e is even), each a vector across the strip. acc: that vector's. */
LANES_INLINE void few_two(kind t, int m, int nr, vn even, vn odd, const strip *s, int64_t e, vn *acc)
{
    if (t == PAIRS) {
        const vn unit = across(t, even, odd);
        for (int i = 0; i < m; i++) {
            acc[i * nr] = n_product(t, n_all(s->a[i * s->lda + e / 2]), unit, acc[i * nr]);
        }
        return;
    }
    even = across(t, even, even);
    odd = across(t, odd, odd);
    for (int i = 0; i < m; i++) {
        acc[i * nr] = n_product(t, n_all(s->a[i * s->lda + e]), even, acc[i * nr]);
        acc[i * nr] = n_product(t, n_all(s->a[i * s->lda + e + 1]), odd, acc[i * nr]);
    }
}

/* Units u … of float32 rows ld apart; left: elements that are there. */
LANES_INLINE void few_square(kind t, int m, int nr, int whole, const float *w, int64_t ld, int64_t left, const strip *s, int64_t u, vn *acc)
{
    const int64_t per = t == PAIRS ? 2 : 1;
    vn r[WIDE];
    for (int64_t i = 0; i < WIDE; i++) {
        r[i] = along(t, 0, w + i * ld, whole ? WIDE * per : left);
    }
    n_transpose(r);
    for (int64_t x = 0; x < WIDE && (whole || x < units(t, left)); x++) {
        for (int i = 0; i < m; i++) {
            acc[i * nr] = n_product(t, n_all(s->a[i * s->lda + u + x]), r[x], acc[i * nr]);
        }
    }
}

/* n elements from element e on, of float32 rows. */
LANES_INLINE void few_floats(kind t, int m, int nr, const float *w, int64_t ld, int64_t n, strip *s, int64_t e, vn *acc)
{
    const int64_t per = t == PAIRS ? 2 : 1, step = WIDE * per;
    int64_t x = 0;
    for (; x + step <= n; x += step) {
        fetch(&s->next, s->lines);
        for (int j = 0; j < nr; j++) {
            few_square(t, m, nr, 1, w + j * WIDE * ld + x, ld, step, s, (e + x) / per, acc + j);
        }
    }
    for (int j = 0; j < nr && x < n; j++) {
        few_square(t, m, nr, 0, w + j * WIDE * ld + x, ld, n - x, s, (e + x) / per, acc + j);
    }
}

/* The same of encoded rows, `bytes` apart, a piece at a time. */
LANES_INLINE void few_decoded(kind t, int m, int nr, apus_dtype type, const uint8_t *w, size_t bytes, int64_t first, int64_t k, strip *s, vn *acc)
{
    float rows[FEW_WIDEST * FEW_PIECE];
    for (int64_t e = first; e < k; e += FEW_PIECE) {
        const int64_t n = apus_cpu_min(FEW_PIECE, k - e);
        for (int64_t i = 0; i < nr * WIDE; i++) {
            decode(type, w + (size_t)i * bytes + apus_row_bytes(type, e), rows + i * FEW_PIECE, n);
        }
        few_floats(t, m, nr, rows, FEW_PIECE, n, s, e, acc);
    }
}

LANES_INLINE void few_bfloat16(kind t, int m, int nr, const uint8_t *w, size_t bytes, int64_t k, strip *s, vn *acc)
{
    int64_t e = 0;
    for (; e + 2 * WIDE <= k; e += 2 * WIDE) {
        fetch(&s->next, s->lines);
        for (int j = 0; j < nr; j++) {
            vn r[WIDE];
            for (int64_t i = 0; i < WIDE; i++) {
                r[i] = n_load((const float *)(const void *)(w + (size_t)(j * WIDE + i) * bytes + (size_t)e * 2));
            }
            n_transpose(r);
            for (int64_t x = 0; x < WIDE; x++) {
                if (t == PAIRS) { /* they are units already */
                    for (int i = 0; i < m; i++) {
                        acc[i * nr + j] = n_product(t, n_all(s->a[i * s->lda + e / 2 + x]), r[x], acc[i * nr + j]);
                    }
                } else {
                    few_two(PLAIN, m, nr, n_even(r[x]), n_odd(r[x]), s, e + 2 * x, acc + j); /* they are rounded */
                }
            }
        }
    }
    few_decoded(t, m, nr, APUS_BF16, w, bytes, e, k, s, acc);
}

LANES_INLINE void few_q8_0(kind t, int m, int nr, const uint8_t *w, size_t bytes, int64_t k, uint16_t *scales, strip *s, vn *acc)
{
    half_scales(w, bytes, nr * WIDE, 34, k / 32, scales);
    for (int64_t b = 0; b < k / 32; b++) {
        vn scale[2];
        fetch(&s->next, s->lines);
        for (int j = 0; j < nr; j++) {
            scale[j] = n_halves(scales + (b * nr + j) * WIDE);
        }
        for (int64_t h = 0; h < 2; h++) {
            ni r[2][4];
            for (int j = 0; j < nr; j++) {
                n_bytes16(w + (size_t)(j * WIDE) * bytes + b * 34 + 2 + 16 * h, bytes, r[j]);
            }
            for (int64_t x = 0; x < 4; x++) {
                const int64_t e = 32 * b + 16 * h + 4 * x;
                for (int j = 0; j < nr; j++) {
                    const ni q = r[j][x];
                    few_two(t, m, nr, n_whole((q << 24) >> 24) * scale[j], n_whole((q << 16) >> 24) * scale[j], s, e, acc + j);
                    few_two(t, m, nr, n_whole((q << 8) >> 24) * scale[j], n_whole(q >> 24) * scale[j], s, e + 2, acc + j);
                }
            }
        }
    }
}

/* What the lowest four bits of each stand for, less 8. */
LANES_INLINE vn few_nibble(ni q)
{
#if defined(__AVX512BF16__)
    return (vn)_mm512_permutexvar_ps((__m512i)q, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
#else
    return n_whole((q & v_alli(15)) - v_alli(8));
#endif
}

LANES_INLINE void few_q4_0(kind t, int m, int nr, const uint8_t *w, size_t bytes, int64_t k, uint16_t *scales, strip *s, vn *acc)
{
    half_scales(w, bytes, nr * WIDE, 18, k / 32, scales);
    for (int64_t b = 0; b < k / 32; b++) {
        vn scale[2];
        ni r[2][4];
        fetch(&s->next, s->lines);
        for (int j = 0; j < nr; j++) {
            scale[j] = n_halves(scales + (b * nr + j) * WIDE);
            n_bytes16(w + (size_t)(j * WIDE) * bytes + b * 18 + 2, bytes, r[j]);
        }
        for (int64_t h = 0; h < 2; h++) { /* low nibbles are the first half of the block */
            for (int64_t x = 0; x < 4; x++) {
                const int64_t e = 32 * b + 16 * h + 4 * x;
                for (int j = 0; j < nr; j++) {
                    const ni q = r[j][x] >> (int)(4 * h);
                    few_two(t, m, nr, few_nibble(q) * scale[j], few_nibble(q >> 8) * scale[j], s, e, acc + j);
                    few_two(t, m, nr, few_nibble(q >> 16) * scale[j], few_nibble(q >> 24) * scale[j], s, e + 2, acc + j);
                }
            }
        }
    }
}

/* Half h of a block: its sums. r: bytes of the strip; nibbles serve both halves. */
LANES_INLINE void quads_half(kind t, int m, int nr, int h, const uint8_t *w, size_t bytes, const float *a, int64_t lda, ni r[2][4], ni *sums)
{
    for (int j = 0; j < nr && (h == 0 || t == QUADS); j++) {
        n_bytes16(w + (size_t)(j * WIDE) * bytes + 2 + 16 * h, bytes, r[j]);
    }
    for (int x = 0; x < 4; x++) {
        for (int j = 0; j < nr; j++) {
            const ni q = t == NIBBLES ? nibbles_of(r[j][x], h) : quads_of(r[j][x]);
            for (int i = 0; i < m; i++) {
                sums[i * nr + j] = n_quads(t, q, (ni)n_all(a[i * lda + 4 * h + x]), sums[i * nr + j]);
            }
        }
    }
}

/* The integers of a block are exact, so that no order of theirs matters; block after block as quads_sums adds them. */
LANES_INLINE void few_quads(kind t, int m, int nr, const uint8_t *w, size_t bytes, int64_t k, uint16_t *scales, strip *s, vn *acc)
{
    const size_t block = quads_block(t);
    const float *a = s->a;
    half_scales(w, bytes, nr * WIDE, block, k / 32, scales);
    for (int64_t b = 0; b < k / 32; b++, a += LEFT_QUADS, w += block) {
        ni sums[2 * FEW_MOST], more[2 * FEW_MOST], r[2][4];
        fetch(&s->next, s->lines);
        for (int i = 0; i < m * nr; i++) {
            sums[i] = quads_begin(t, a[i / nr * s->lda + 9]);
            more[i] = n_alli(0);
        }
        quads_half(t, m, nr, 0, w, bytes, a, s->lda, r, sums);
        quads_half(t, m, nr, 1, w, bytes, a, s->lda, r, m == 1 ? more : sums); /* one sum alone waits for itself */
        for (int j = 0; j < nr; j++) {
            const vn scale = n_halves(scales + (b * nr + j) * WIDE);
            for (int i = 0; i < m; i++) {
                const ni sum = m == 1 ? sums[i * nr + j] + more[i * nr + j] : sums[i * nr + j];
                acc[i * nr + j] = n_product(PLAIN, n_whole(sum), n_all(a[i * s->lda + 8]) * scale, acc[i * nr + j]);
            }
        }
    }
}

/* ---------------------------------------------------------------- strips, threads */

/* y [rows, columns] of one strip: the last `columns` of it (all but in the last strip, which begins where the one before has been). */
LANES_INLINE void few_store(int m, int nr, vn *acc, int64_t rows, int64_t columns, void *y, int64_t ld, const epilogue *e)
{
    for (int i = 0; i < m && columns < nr * WIDE; i++) {
        float all[2 * FEW_WIDEST] = {0};
        for (int j = 0; j < nr; j++) {
            n_store(all + j * WIDE, acc[i * nr + j]);
        }
        for (int j = 0; j < nr; j++) {
            acc[i * nr + j] = n_load(all + (nr + j) * WIDE - columns);
        }
    }
    tile_store(m, nr, acc, y, ld, e, rows, columns);
}

LANES_INLINE void few_sums(kind t, int m, int nr, const factor *f, int64_t first, int64_t k, uint16_t *scales, strip *s, vn *acc)
{
    const size_t bytes = apus_row_bytes(f->dtype, f->ld);
    const uint8_t *w = (const uint8_t *)f->p + (size_t)first * bytes;
    for (int i = 0; i < m * nr; i++) {
        acc[i] = n_all(0.0f);
    }
    if (in_integers(t)) {
        few_quads(t, m, nr, w, bytes, k, scales, s, acc);
        return;
    }
    switch (f->dtype) {
    case APUS_F32:
        few_floats(t, m, nr, (const float *)(const void *)w, f->ld, k, s, 0, acc);
        return;
    case APUS_BF16:
        few_bfloat16(t, m, nr, w, bytes, k, s, acc);
        return;
    case APUS_Q8_0:
        few_q8_0(t, m, nr, w, bytes, k, scales, s, acc);
        return;
    case APUS_Q4_0:
        few_q4_0(t, m, nr, w, bytes, k, scales, s, acc);
        return;
    default:
        few_decoded(t, m, nr, f->dtype, w, bytes, 0, k, s, acc);
        return;
    }
}

/* Vectors that a strip of m rows has: what registers hold. */
LANES_INLINE int few_vectors(int m)
{
    return m <= 4 ? 2 : 1;
}

/* Columns of a strip of m rows. */
static int64_t few_width(const product *p, int m)
{
    return is_packed(&p->b) ? GROUP : few_vectors(m) * WIDE;
}

/* The strip of W that begins at row j. */
static ahead few_ahead(const product *p, int64_t j, int64_t width)
{
    if (is_packed(&p->b)) {
        return ahead_of(&p->b, j, apus_cpu_min(width, p->n - j), p->k);
    }
    const int64_t n = apus_cpu_min(width, p->n - j), row = (int64_t)apus_row_bytes(p->b.dtype, p->b.ld);
    return n > 0 ? (ahead){(const char *)p->b.p + j * row, 1, n * row, 0, 0} : (ahead){.rows = 0};
}

/* The strip of y's columns from j on. */
LANES_INLINE void few_strip(kind t, int m, const product *p, const float *a, int64_t lda, int64_t j, uint16_t *scales)
{
    const int nr = few_vectors(m);
    const int64_t width = nr * WIDE, columns = apus_cpu_min(width, p->n - j), steps = p->k / (2 * WIDE) + 1;
    strip s = {.a = a, .lda = lda, .next = few_ahead(p, j + width, width)};
    const epilogue e = {p->e.bias != NULL ? p->e.bias + j : NULL, p->e.add != NULL ? p->e.add + j : NULL, p->e.ld_add, p->e.halves};
    vn acc[2 * FEW_MOST];
    s.lines = s.next.bytes / 64 / steps + 1;
    few_sums(t, m, nr, &p->b, j + columns - width, p->k, scales, &s, acc);
    few_store(m, nr, acc, p->m, columns, element_to(p->y, p->e.halves, j - p->y_column), p->ld, &e);
}

/* Rows that are worked on together, of m: those that do not exist are zeros. */
static int few_height(int64_t m)
{
    return m <= 2 ? (int)m : m <= 4 ? 4 : FEW_MOST;
}

static void few_rows_of(const product *p, const float *a, int64_t lda, int64_t j, uint16_t *scales)
{
#define FEW_ROWS(m)                                                                                                                                  \
    case m:                                                                                                                                          \
        if (is_packed(&p->b)) {                                                                                                                      \
            packed_strip(m, p, a, lda, j);                                                                                                           \
        } else if (p->t == QUADS && (m) <= FEW_QUADS) {                                                                                              \
            few_strip(QUADS, m, p, a, lda, j, scales);                                                                                               \
        } else if (p->t == NIBBLES && (m) <= FEW_QUADS) {                                                                                            \
            few_strip(NIBBLES, m, p, a, lda, j, scales);                                                                                             \
        } else if (p->t == BFLOAT16) {                                                                                                               \
            few_strip(BFLOAT16, m, p, a, lda, j, scales);                                                                                            \
        } else {                                                                                                                                     \
            few_strip(PLAIN, m, p, a, lda, j, scales);                                                                                               \
        }                                                                                                                                            \
        return;
    switch (few_height(p->m)) {
        FEW_ROWS(1)
        FEW_ROWS(2)
        FEW_ROWS(4)
        FEW_ROWS(FEW_MOST)
    default:
        return;
    }
#undef FEW_ROWS
}

/* All rows, a few at a time: the strip of W is near when the later ones come. */
static void few_strip_of(const product *p, const float *a, int64_t lda, int64_t j, uint16_t *scales)
{
    const int64_t step = in_integers(p->t) ? FEW_QUADS : FEW_MOST;
    if (p->m <= step) {
        few_rows_of(p, a, lda, j, scales);
        return;
    }
    product rows = *p;
    for (int64_t i = 0; i < p->m; i += step) {
        rows.m = apus_cpu_min(step, p->m - i);
        rows.y = element_to(p->y, p->e.halves, i * p->ld);
        rows.e.add = p->e.add != NULL ? p->e.add + i * p->e.ld_add : NULL;
        few_rows_of(&rows, a + i * lda, lda, j, scales);
    }
}

/* The strip of a product with an activation: its sums, and the other product's, then what becomes of them. */
static void few_activated(const product *p, const float *a, int64_t lda, int64_t j, int64_t width, uint16_t *scales)
{
    float sums[2][FEW_MOST * GROUP];
    for (int s = 0; s < (p->other != NULL ? 2 : 1); s++) {
        product its = s == 0 ? *p : *p->other;
        its.y = sums[s];
        its.ld = GROUP;
        its.y_column = j;
        its.e = (epilogue){its.e.bias, NULL, 0, 0};
        few_strip_of(&its, a, lda, j, scales);
    }
    activate(p->act, p->e.halves, sums[0], sums[1], p->m, apus_cpu_min(width, p->n - j), element_to(p->y, p->e.halves, j), p->ld);
}

/* A thread's part of the strips: it takes them from the front, threads that help from the back, so that each reads memory in one
 * direction. */
typedef struct few_part {
    int64_t taken, helped; /* strips; of those, by others */
    char apart[COUNTER - 2 * sizeof(int64_t)];
} few_part;

static size_t few_scales_bytes(int64_t k)
{
    return apus_cpu_lines((size_t)(k / 32 * FEW_WIDEST) * sizeof(uint16_t));
}

static size_t few_bytes(kind t, int64_t k, int threads)
{
    return apus_cpu_lines((size_t)(FEW_MOST * units(t, k)) * sizeof(float)) + (size_t)threads * (few_scales_bytes(k) + sizeof(few_part));
}

/* Whether this serves products of the same left factor: few rows, a strip's width of columns at least; strips of one kind. */
static int suits_few(const product *p, uint32_t n)
{
    int all = p->m <= FEW_MOST;
    for (uint32_t i = 0; i < n; i++) {
        all &= p[i].t == p->t && is_packed(&p[i].b) == is_packed(&p->b) && (is_packed(&p->b) || p[i].n >= FEW_WIDEST);
    }
    return all;
}

/* A strip of a part of `all` strips; -1: none is left. taken: by its own thread. */
static int64_t few_take(few_part *part, int64_t all, int own, int64_t *taken)
{
    if (__atomic_fetch_add(&part->taken, 1, __ATOMIC_RELAXED) >= all) {
        return -1;
    }
    return own ? (*taken)++ : all - 1 - __atomic_fetch_add(&part->helped, 1, __ATOMIC_RELAXED);
}

/* n products of the same left factor, of which suits_few has said yes. Their strips lie one after the other; every thread has a part
 * of them of its own, which lies in one piece, and helps the others when it is through. scratch: few_bytes. */
static void few(const product *p, uint32_t n, int threads, char *scratch)
{
    const int64_t lda = units(p->t, p->k), per = p->t == PAIRS ? 2 : 1, height = few_height(p->m);
    const int64_t width = few_width(p, in_integers(p->t) ? FEW_QUADS : (int)height);
    float *a = (float *)(void *)scratch;
    few_part *parts = (few_part *)(void *)(scratch + apus_cpu_lines((size_t)(FEW_MOST * lda) * sizeof(float)));
    char *scales = (char *)(parts + threads);
    const factor left = p->norm != NULL ? left_rows(p, 0, p->m, p->normed) : p->a;
    const int halves = left.dtype == APUS_BF16;
    const int64_t strips = strips_of(p, n, width);
    memset(parts, 0, (size_t)threads * sizeof *parts);
    const int64_t most = (strips + threads - 1) / threads;
    if (in_integers(p->t)) { /* panels of one row */
        pack_quads_left((const float *)left.p, left.ld, p->m, 1, p->k, a);
        memset(a + p->m * lda, 0, (size_t)((height - p->m) * lda) * sizeof *a);
    }
    for (int64_t i = 0; i < height && !in_integers(p->t); i++) {
        for (int64_t u = 0; u < lda; u += WIDE) {
            const int64_t there = i < p->m ? p->k - u * per : 0;
            const void *row = element(left.p, halves, i * left.ld + u * per);
            n_store_part(a + i * lda + u, p->t == BFLOAT16 ? along(BFLOAT16, halves, row, there) : along(PLAIN, halves, row, there), lda - u);
        }
    }
#pragma omp parallel num_threads(threads) if (strips * width * p->k > 32768)
    {
        const int64_t me = omp_get_thread_num();
        uint16_t *own = (uint16_t *)(void *)(scales + (size_t)me * few_scales_bytes(p->k));
        int64_t at = me * most, taken = 0;
        const product *first = product_of_strip(p, n, width, &at);
        if (first != NULL) {
            ahead begin = few_ahead(first, at * width, width);
            fetch(&begin, begin.bytes / 64 + 1);
        }
        for (int64_t i = 0; i < threads; i++) {
            const int64_t whose = (me + i) % threads, all = apus_cpu_min(most, strips - whose * most);
            for (int64_t x; (x = few_take(&parts[whose], all, i == 0, &taken)) >= 0;) {
                int64_t strip_at = whose * most + x;
                const product *its = product_of_strip(p, n, width, &strip_at);
                if (its->act == ACT_NONE) {
                    few_strip_of(its, a, lda, strip_at * width, own);
                } else {
                    few_activated(its, a, lda, strip_at * width, width, own);
                }
            }
        }
    }
}

#endif
