/*
 * The vocabulary head: log-probabilities of targets, their slopes and the gradient of W. The logits exist a tile at a time.
 *
 * Forward: the vocabulary is cut into tiles of fixed width; each gives every row its largest logit and the sum of
 * exponentials below it, and these are joined in order, in double: a row's bits depend on neither the threads nor the others,
 * nor on whether the slopes are asked for.
 *
 * Slopes: d logp / dx = scale * (W[target] - sum_v p_v W_v) is an attention over the vocabulary with W as keys and values: summed
 * in the same pass with the online softmax (Milakov & Gimelshein 2018), so that the backward pass needs no logits for dx.
 */
#ifndef APUS_CPU_HEAD_H
#define APUS_CPU_HEAD_H

#include "index.h"
#include "matrix.h"

enum {
    HEAD_TILE = 8 * GROUP, /* vocabulary rows per tile */
    HEAD_ROWS = 256,       /* rows of x per block: their panels and a tile of logits stay in the second cache */
    HEAD_GRAD = 512        /* the same for dW, whose sum runs over them */
};

typedef struct head_part {
    float most, sum;
} head_part;

/* logit = softcap(scale * z); slope (may be NULL): its derivative. */
LANES_INLINE vf logit(vf z, float scale, float cap, vf *slope)
{
    z *= v_all(scale);
    if (slope != NULL) {
        *slope = v_all(scale);
    }
    if (cap > 0.0f) {
        const vf t = v_tanh(z / v_all(cap));
        z = t * v_all(cap);
        if (slope != NULL) {
            *slope *= v_fma(-t, t, v_all(1.0f));
        }
    }
    return z;
}

typedef struct head {
    kind t, logits; /* of products; of those that give logits */
    const float *x;
    const apus_view *w;
    const int32_t *targets;
    int64_t rows, k, vocabulary, tiles;
    float scale, cap;
} head;

static head head_of(const apus_kernel_call *c, uint32_t x)
{
    const apus_view *w = &c->in[x + 1];
    return (head){.t = kind_of(c),
                  .logits = kind_with(c, w),
                  .x = (const float *)c->in[x].data,
                  .w = w,
                  .targets = (const int32_t *)c->in[x + 2].data,
                  .rows = apus_cpu_rows(&c->in[x]),
                  .k = apus_cpu_width(w),
                  .vocabulary = apus_cpu_rows(w),
                  .tiles = (apus_cpu_rows(w) + HEAD_TILE - 1) / HEAD_TILE,
                  .scale = (float)c->attrs[0],
                  .cap = (float)c->attrs[1]};
}

static size_t parts_bytes(const head *h)
{
    return apus_cpu_lines((size_t)(h->rows * h->tiles) * sizeof(head_part));
}

static size_t chosen_bytes(const head *h)
{
    return apus_cpu_lines((size_t)h->rows * sizeof(float));
}

/* Logits of `rows` packed rows for n words of the vocabulary from v on, into z [rows, HEAD_TILE]. b: room for a panel. */
static void head_logits(const head *h, const factor *w, int64_t v, int64_t n, const float *a, int64_t rows, float *b, float *z)
{
    const epilogue none = {NULL, NULL, 0, 0};
    for (int64_t j = 0; j < n; j += GROUP) {
        const int64_t columns = apus_cpu_min(GROUP, n - j), after = v + j + GROUP;
        ahead next = ahead_of(w, after, apus_cpu_min(GROUP, h->vocabulary - after), h->k);
        const float *panel = right_panel(h->logits, w, v + j, columns, h->k, b);
        tiles(h->logits, panel_height(rows), a, panel, panel_width(columns), units(h->logits, h->k), z + j, HEAD_TILE, &none, rows, columns, &next);
    }
}

/* One row of logits in place: what token_logprob joins. */
LANES_INLINE head_part head_reduce(float *z, int64_t n, float scale, float cap)
{
    vf most = v_all(-INFINITY), sum = v_all(0.0f);
    for (int64_t i = n; i < (n + LANES - 1) / LANES * LANES; i++) {
        z[i] = 0.0f;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        v_store(z + i, logit(v_load(z + i), scale, cap, NULL));
        if (n - i < LANES) {
            for (int64_t j = n - i; j < LANES; j++) {
                z[i + j] = -INFINITY;
            }
        }
        most = v_max(most, v_load(z + i));
    }
    const float m = v_most(most), base = m > -INFINITY ? m : 0.0f;
    for (int64_t i = 0; i < n; i += LANES) {
        sum += v_exp_fast(v_load(z + i) - v_all(base));
    }
    return (head_part){m, v_sum(sum)};
}

static apus_status check_targets(const apus_view *targets, int64_t vocabulary, apus_error *err)
{
    const int32_t *p = (const int32_t *)targets->data;
    const int64_t n = apus_cpu_elements(targets);
    for (int64_t i = 0; i < n; i++) {
        if (check_index("target id", p[i], vocabulary, i, err) != APUS_OK) {
            return APUS_E_INVALID;
        }
    }
    return APUS_OK;
}

/* What the tiles of one row come to: log of the sum of exponentials of its logits. */
static double head_join(const head_part *p, int64_t tiles)
{
    double most = -INFINITY, sum = 0.0;
    for (int64_t t = 0; t < tiles; t++) {
        most = !((double)p[t].most <= most) ? (double)p[t].most : most;
    }
    for (int64_t t = 0; t < tiles; t++) {
        sum += (double)p[t].sum * exp((double)p[t].most - most);
    }
    return most + log(sum);
}

/* ---------------------------------------------------------------- forward */

static size_t logits_bytes(const head *h, int64_t rows)
{
    return left_bytes(h->logits, rows, h->k) + right_bytes(h->logits, GROUP, h->k) + (size_t)rows * HEAD_TILE * sizeof(float);
}

static void head_finish(const apus_kernel_call *c, int64_t r, float chosen, double all)
{
    float *logp = (float *)c->out[0].data, *lse = (float *)c->out[1].data;
    if (lse != NULL) {
        lse[r] = (float)all;
    }
    if (logp != NULL) {
        logp[r] = (float)((double)chosen - all);
    }
}

/* Rows [first, first + rows), by tiles that `taken` counts; own: the thread's memory. */
static void head_block(const head *h, int64_t first, int64_t rows, int64_t *taken, char *own, head_part *parts, float *chosen)
{
    const factor x = {h->x, h->k, 1, APUS_F32}, w = {h->w->data, h->k, 1, h->w->dtype};
    float *a = (float *)(void *)own, *b = (float *)(void *)(own + left_bytes(h->logits, rows, h->k));
    float *z = (float *)(void *)((char *)b + right_bytes(h->logits, GROUP, h->k));
    for (int left = 0;; left = 1) {
        const int64_t tile = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, h->vocabulary - v);
        if (tile >= h->tiles) {
            return;
        }
        if (!left) {
            pack_left(h->logits, &x, first, rows, panel_height(rows), h->k, a);
        }
        head_logits(h, &w, v, columns, a, rows, b, z);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t target = h->targets[first + r] - v;
            parts[(first + r) * h->tiles + tile] = head_reduce(z + r * HEAD_TILE, columns, h->scale, h->cap);
            if (target >= 0 && target < columns) {
                chosen[first + r] = z[r * HEAD_TILE + target];
            }
        }
    }
}

static apus_status token_logprob(const apus_kernel_call *c)
{
    const head h = head_of(c, 0);
    const int threads = threads_of(c);
    const split s = split_of(h.rows, HEAD_ROWS, threads);
    const size_t own = logits_bytes(&h, s.block_rows);
    head_part *parts = (head_part *)c->scratch;
    float *chosen = (float *)(void *)((char *)parts + parts_bytes(&h));
    char *counters = (char *)chosen + chosen_bytes(&h), *memory = counters + s.bands * s.blocks * COUNTER;
    memset(counters, 0, (size_t)(s.bands * s.blocks) * COUNTER);
#pragma omp parallel num_threads(threads) if (h.rows * h.vocabulary * h.k > 32768)
    {
        const int64_t me = omp_get_thread_num();
        for (int64_t i = 0; i < s.bands * s.blocks; i++) {
            int64_t first, rows;
            int64_t *taken = (int64_t *)(void *)(counters + block_at(&s, h.rows, me, i, &first, &rows) * COUNTER);
            if (rows > 0) {
                head_block(&h, first, rows, taken, memory + (size_t)me * own, parts, chosen);
            }
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t r = 0; r < h.rows; r++) {
            head_finish(c, r, chosen[r], head_join(parts + r * h.tiles, h.tiles));
        }
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- slopes */

/* Rows that one thread takes at once. */
static int64_t slopes_rows(const head *h, int threads)
{
    const int64_t each = ((h->rows + threads - 1) / threads + HIGH - 1) / HIGH * HIGH;
    return apus_cpu_min(HEAD_ROWS, each > 0 ? each : HIGH);
}

/* What is decoded at once: of a packed W one row. */
static size_t tile_bytes(const head *h)
{
    const size_t rows = h->w->dtype == APUS_F32 ? 0 : (h->w->dtype & APUS_PACKED) != 0 ? 1 : HEAD_TILE;
    return apus_cpu_lines(rows * (size_t)h->k * sizeof(float));
}

/* Panels of x and of weights, a panel of W either way, logits, the largest ones, a tile of W decoded. */
static size_t slopes_bytes(const head *h, int64_t rows)
{
    const size_t down = right_bytes(h->t, h->k, HEAD_TILE), along = right_bytes(h->logits, GROUP, h->k);
    return left_bytes(h->logits, rows, h->k) + left_bytes(h->t, rows, HEAD_TILE) + (along > down ? along : down) +
           (size_t)rows * HEAD_TILE * sizeof(float) + apus_cpu_lines((size_t)rows * sizeof(float)) + tile_bytes(h);
}

static size_t scratch_token_logprob(const apus_kernel_call *c)
{
    const head h = head_of(c, 0);
    const int threads = threads_of(c);
    const size_t logits = (size_t)threads * logits_bytes(&h, apus_cpu_min(h.rows, HEAD_ROWS)) + counters_bytes(h.rows, HEAD_ROWS, threads);
    const size_t slopes = (size_t)threads * slopes_bytes(&h, slopes_rows(&h, threads));
    return parts_bytes(&h) + chosen_bytes(&h) + (logits > slopes ? logits : slopes);
}

/* Rows of W [v, v + n), v the first of a tile: where they are, or decoded into `room`. */
static factor head_rows(const head *h, int64_t v, int64_t n, float *room)
{
    const size_t bytes = apus_row_bytes(h->w->dtype, h->k);
    const uint8_t *p = (const uint8_t *)h->w->data + (size_t)v * bytes;
    const factor w = {h->w->data, h->k, 1, h->w->dtype};
    if (is_packed(&w)) {
        return (factor){packed_panel(&w, v, h->k), h->k, 1, h->w->dtype};
    }
    if (h->w->dtype == APUS_F32) {
        return (factor){p, h->k, 1, APUS_F32};
    }
    for (int64_t i = 0; i < n; i++) {
        decode(h->w->dtype, p + (size_t)i * bytes, room + i * h->k, h->k);
    }
    return (factor){room, h->k, 1, APUS_F32};
}

/* One row of W. */
static const float *head_row(const head *h, int64_t r, float *room)
{
    if ((h->w->dtype & APUS_PACKED) == 0) {
        return (const float *)head_rows(h, r, 1, room).p;
    }
    packed_row(h->w, r, room);
    return room;
}

/* y [rows, k] (+)= packed [rows, n] · f [n, k]: f's rows run across. */
static void head_product(const head *h, const float *packed, int64_t height, int64_t rows, int64_t n, const factor *f, int add, float *b, float *y)
{
    const factor across = {f->p, f->ld, 0, f->dtype};
    for (int64_t j = 0; j < h->k; j += GROUP) {
        const int64_t columns = apus_cpu_min(GROUP, h->k - j);
        const epilogue e = {NULL, add ? y + j : NULL, h->k, 0};
        ahead next = {.rows = 0};
        pack_right(h->t, &across, j, columns, n, b);
        tiles(h->t, height, packed, b, panel_width(columns), units(h->t, n), y + j, h->k, &e, rows, columns, &next);
    }
}

/* Logits z of one row over n of the vocabulary -> exp(logit - most) * slope, in place. */
LANES_INLINE void head_weights(float *z, int64_t n, float most, float scale, float cap)
{
    for (int64_t i = 0; i < n; i += LANES) {
        vf slope;
        const vf l = logit(get(z + i, n - i), scale, cap, &slope);
        put(z + i, v_exp_fast(l - v_all(most)) * slope, n - i);
    }
}

/* One tile of logits z [rows, HEAD_TILE]: what it adds to each row, its weights relative to the largest logit so far, and the
 * row's sum e of earlier tiles made relative to that too. */
static void head_weigh(const head *h, int64_t first, int64_t rows, int64_t tile, float *z, float *most, head_part *parts, float *chosen, float *e)
{
    const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, h->vocabulary - v);
    float row[HEAD_TILE + LANES];
    for (int64_t r = 0; r < rows; r++) {
        const int64_t target = h->targets[first + r] - v;
        memcpy(row, z + r * HEAD_TILE, (size_t)columns * sizeof *row);
        const head_part part = parts[(first + r) * h->tiles + tile] = head_reduce(row, columns, h->scale, h->cap);
        if (target >= 0 && target < columns) {
            chosen[first + r] = row[target];
        }
        const float before = tile > 0 ? most[r] : -INFINITY, now = before > part.most ? before : part.most;
        most[r] = now;
        head_weights(z + r * HEAD_TILE, columns, now, h->scale, h->cap);
        if (tile > 0 && now != before) {
            const vf fade = v_exp_fast(v_all(before - now));
            for (int64_t j = 0; j < h->k; j += LANES) {
                put(e + r * h->k + j, get(e + r * h->k + j, h->k - j) * fade, h->k - j);
            }
        }
    }
}

/* Rows [first, first + rows) of everything; own: the thread's memory. */
static void slopes_block(const apus_kernel_call *c, const head *h, int64_t first, int64_t rows, char *own, head_part *parts, float *chosen)
{
    const factor x = {h->x, h->k, 1, APUS_F32}, stored = {h->w->data, h->k, 1, h->w->dtype};
    const size_t down = right_bytes(h->t, h->k, HEAD_TILE), along = right_bytes(h->logits, GROUP, h->k);
    float *a = (float *)(void *)own, *b = (float *)(void *)(own + left_bytes(h->logits, rows, h->k));
    float *weights = (float *)(void *)((char *)b + (along > down ? along : down));
    float *z = (float *)(void *)((char *)weights + left_bytes(h->t, rows, HEAD_TILE)), *most = z + rows * HEAD_TILE;
    float *tile_rows = (float *)(void *)((char *)most + apus_cpu_lines((size_t)rows * sizeof(float)));
    float *e = (float *)c->out[2].data + first * h->k;
    const int64_t height = panel_height(rows);
    pack_left(h->logits, &x, first, rows, height, h->k, a);
    for (int64_t tile = 0; tile < h->tiles; tile++) {
        const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, h->vocabulary - v);
        const factor w = head_rows(h, v, columns, tile_rows), logits = {z, HEAD_TILE, 1, APUS_F32};
        head here = *h;
        if (in_integers(h->logits) || is_packed(&stored)) { /* what is decoded serves the slopes alone */
            head_logits(h, &stored, v, columns, a, rows, b, z);
        } else {
            here.vocabulary = columns;
            head_logits(&here, &w, 0, columns, a, rows, b, z);
        }
        head_weigh(h, first, rows, tile, z, most, parts, chosen, e);
        pack_left(h->t, &logits, 0, rows, height, columns, weights);
        head_product(h, weights, height, rows, columns, &w, tile > 0, b, e);
    }
    for (int64_t r = 0; r < rows; r++) {
        const double all = head_join(parts + (first + r) * h->tiles, h->tiles);
        const float logit_of = chosen[first + r], p = (float)exp((double)most[r] - all);
        const float s = h->cap > 0.0f ? h->scale * (1.0f - logit_of / h->cap * (logit_of / h->cap)) : h->scale;
        const float *b_row = head_row(h, h->targets[first + r], tile_rows);
        for (int64_t j = 0; j < h->k; j += LANES) {
            float *er = e + r * h->k + j;
            const vf exact = get(b_row + j, h->k - j), of_target = h->t == BFLOAT16 ? v_round(exact) : exact; /* a factor as all of W is */
            put(er, v_fma(of_target, v_all(s), -(get(er, h->k - j) * v_all(p))), h->k - j);
        }
        head_finish(c, first + r, logit_of, all);
    }
}

/* The forward pass with slopes: out[2] [N, k] = d logp / dx. */
static apus_status token_logprob_slopes(const apus_kernel_call *c)
{
    const head h = head_of(c, 0);
    const int threads = threads_of(c);
    const int64_t block = slopes_rows(&h, threads);
    const size_t own = slopes_bytes(&h, block);
    head_part *parts = (head_part *)c->scratch;
    float *chosen = (float *)(void *)((char *)parts + parts_bytes(&h));
    char *memory = (char *)chosen + chosen_bytes(&h);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t first = 0; first < h.rows; first += block) {
        slopes_block(c, &h, first, apus_cpu_min(block, h.rows - first), memory + (size_t)omp_get_thread_num() * own, parts, chosen);
    }
    return APUS_OK;
}

static apus_status run_token_logprob(const apus_kernel_call *c, apus_error *err)
{
    if (check_targets(&c->in[2], apus_cpu_rows(&c->in[1]), err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    return c->n_out > 2 && c->out[2].data != NULL ? token_logprob_slopes(c) : token_logprob(c);
}

/* ---------------------------------------------------------------- gradient of W */

/* Logits z of row r over `columns` of the vocabulary -> d * (onehot - softmax) * slope, in place. */
LANES_INLINE void head_slopes(float *z, int64_t columns, float d, float lse, int64_t target, float scale, float cap)
{
    for (int64_t i = 0; i < columns; i += LANES) {
        const int64_t left = columns - i;
        vf slope;
        const vf l = logit(get(z + i, left), scale, cap, &slope);
        vf g = -v_exp(l - v_all(lse));
        if (target >= i && target < i + LANES) {
            g[target - i] += 1.0f;
        }
        put(z + i, g * v_all(d) * slope, left);
    }
}

/* A chunk's panels of x: as left factor of the logits, then as right factor of dW. */
static size_t chunk_bytes(const head *h)
{
    const size_t groups = (size_t)((h->k + GROUP - 1) / GROUP), rows = (size_t)apus_cpu_min(HEAD_GRAD, h->rows);
    return left_bytes(h->logits, (int64_t)rows, h->k) + groups * right_bytes(h->t, h->k, (int64_t)rows);
}

static int64_t chunks_of(const head *h)
{
    return (h->rows + HEAD_GRAD - 1) / HEAD_GRAD;
}

/* A panel of W, logits, their slopes as a left factor. */
static size_t dw_bytes(const head *h)
{
    const int64_t rows = apus_cpu_min(HEAD_GRAD, h->rows);
    return right_bytes(h->logits, GROUP, h->k) + (size_t)rows * HEAD_TILE * sizeof(float) + left_bytes(h->t, HEAD_TILE, rows);
}

static size_t scratch_token_logprob_dw(const apus_kernel_call *c)
{
    const head h = head_of(c, 1);
    return (size_t)chunks_of(&h) * chunk_bytes(&h) + (size_t)threads_of(c) * dw_bytes(&h);
}

static void dw_pack(const head *h, int64_t first, int64_t rows, char *panels)
{
    const factor along = {h->x, h->k, 1, APUS_F32}, across = {h->x + first * h->k, h->k, 0, APUS_F32};
    pack_left(h->logits, &along, first, rows, panel_height(rows), h->k, (float *)(void *)panels);
    const size_t right = right_bytes(h->t, h->k, apus_cpu_min(HEAD_GRAD, h->rows));
    panels += left_bytes(h->logits, apus_cpu_min(HEAD_GRAD, h->rows), h->k);
    for (int64_t j = 0; j < h->k; j += GROUP, panels += right) {
        pack_right(h->t, &across, j, apus_cpu_min(GROUP, h->k - j), rows, (float *)(void *)panels);
    }
}

/* dW of one tile of the vocabulary: over all chunks of rows, packed at `panels`. */
static void dw_tile(const apus_kernel_call *c, const head *h, int64_t tile, const char *panels, char *own)
{
    const float *d = (const float *)c->in[0].data, *lse = (const float *)c->in[4].data;
    const int64_t v = tile * HEAD_TILE, columns = apus_cpu_min(HEAD_TILE, h->vocabulary - v), most = apus_cpu_min(HEAD_GRAD, h->rows);
    const factor w = {h->w->data, h->k, 1, h->w->dtype};
    const size_t right = right_bytes(h->t, h->k, most);
    float *b = (float *)(void *)own, *z = (float *)(void *)(own + right_bytes(h->logits, GROUP, h->k)), *slopes = z + most * HEAD_TILE;
    float *dw = (float *)c->out[0].data + v * h->k;
    for (int64_t first = 0; first < h->rows; first += HEAD_GRAD, panels += chunk_bytes(h)) {
        const int64_t rows = apus_cpu_min(HEAD_GRAD, h->rows - first), height = panel_height(columns);
        const factor left = {z, HEAD_TILE, 0, APUS_F32};
        head_logits(h, &w, v, columns, (const float *)(const void *)panels, rows, b, z);
        for (int64_t r = 0; r < rows; r++) {
            head_slopes(z + r * HEAD_TILE, columns, d[first + r], lse[first + r], h->targets[first + r] - v, h->scale, h->cap);
        }
        pack_left(h->t, &left, 0, columns, height, rows, slopes);
        const char *x = panels + left_bytes(h->logits, most, h->k);
        for (int64_t j = 0; j < h->k; j += GROUP, x += right) {
            const int64_t n = apus_cpu_min(GROUP, h->k - j);
            const epilogue e = {NULL, first > 0 || (c->accumulate & 1u) != 0 ? dw + j : NULL, h->k, 0};
            ahead next = {.rows = 0};
            tiles(h->t, height, slopes, (const float *)(const void *)x, panel_width(n), units(h->t, rows), dw + j, h->k, &e, columns, n, &next);
        }
    }
}

static apus_status run_token_logprob_dw(const apus_kernel_call *c, apus_error *err)
{
    const head h = head_of(c, 1);
    char *own = (char *)c->scratch + (size_t)chunks_of(&h) * chunk_bytes(&h);
    if (check_targets(&c->in[3], h.vocabulary, err) != APUS_OK) {
        return APUS_E_INVALID;
    }
    if ((c->accumulate & 1u) == 0 && h.rows == 0) {
        memset(c->out[0].data, 0, (size_t)(h.vocabulary * h.k) * sizeof(float));
    }
#pragma omp parallel num_threads(threads_of(c))
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < chunks_of(&h); i++) {
            dw_pack(&h, i * HEAD_GRAD, apus_cpu_min(HEAD_GRAD, h.rows - i * HEAD_GRAD), (char *)c->scratch + (size_t)i * chunk_bytes(&h));
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < h.tiles; tile++) {
            dw_tile(c, &h, tile, (const char *)c->scratch, own + (size_t)omp_get_thread_num() * dw_bytes(&h));
        }
    }
    return APUS_OK;
}

#endif
