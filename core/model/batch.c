/* core/model/batch.c: see batch.h. */
#include "model/batch.h"

#include <stdlib.h>
#include <string.h>

enum { T = 0, S = 1, N = 2, R = 3, P = 4 }; /* index of each symbol: -1 - APUS_DIM_… */

void apus_batch_capacity(const apus_dataset *const *datasets, size_t n_datasets, size_t batch_size, int64_t target,
                         int64_t capacity[APUS_N_DIM_SYMBOLS])
{
    int64_t longest = 1, segments = 1, answers = 1, rows = 1;
    for (size_t k = 0; k < n_datasets; k++) {
        if (datasets[k] == NULL)
            continue;
        const apus_dataset_bounds *b = apus_dataset_limits(datasets[k]);
        rows = (int64_t)b->rows > rows ? (int64_t)b->rows : rows;
        longest = b->longest > longest ? b->longest : longest;
        segments = b->segments > segments ? b->segments : segments;
        answers = b->answers > answers ? b->answers : answers;
    }
    if (rows > (int64_t)batch_size)
        rows = (int64_t)batch_size;
    int64_t tokens = longest > target ? longest : target;
    if (tokens > longest * rows)
        tokens = longest * rows;
    const int64_t most_segments = segments * rows;
    capacity[T] = tokens;
    capacity[S] = most_segments < tokens ? most_segments : tokens;
    capacity[N] = tokens;
    capacity[R] = answers * rows < tokens ? answers * rows : tokens;
    capacity[P] = answers > 1 ? rows : 0;
    if (capacity[P] > tokens)
        capacity[P] = tokens;
}

apus_status apus_batch_init(apus_batch *b, const int64_t capacity[APUS_N_DIM_SYMBOLS], int64_t target, apus_error *err)
{
    memset(b, 0, sizeof *b);
    memcpy(b->capacity, capacity, sizeof b->capacity);
    b->target = target;
    const size_t t = (size_t)capacity[T] + 1, s = (size_t)capacity[S] + 1, n = (size_t)capacity[N] + 1, r = (size_t)capacity[R] + 1,
                 p = (size_t)capacity[P] + 1;
    b->tokens = malloc(t * sizeof *b->tokens);
    b->positions = malloc(t * sizeof *b->positions);
    b->lengths = malloc(t * sizeof *b->lengths);
    b->token_index = malloc(t * sizeof *b->token_index);
    b->segments = malloc(s * 4 * sizeof *b->segments);
    b->scored = malloc(n * sizeof *b->scored);
    b->targets = malloc(n * sizeof *b->targets);
    b->token_rows = malloc(n * sizeof *b->token_rows);
    b->ones = malloc(n * sizeof *b->ones);
    b->row_tokens = malloc(r * sizeof *b->row_tokens);
    b->chosen_rows = malloc(p * sizeof *b->chosen_rows);
    b->rejected_rows = malloc(p * sizeof *b->rejected_rows);
    b->pair_ones = malloc(p * sizeof *b->pair_ones);
    b->reference_chosen = calloc(p, sizeof *b->reference_chosen);
    b->reference_rejected = calloc(p, sizeof *b->reference_rejected);
    const apus_feed feeds[] = {{"tokens", b->tokens},
                               {"positions", b->positions},
                               {"lengths", b->lengths},
                               {"token_index", b->token_index},
                               {"segments", b->segments},
                               {"scored", b->scored},
                               {"targets", b->targets},
                               {"token_rows", b->token_rows},
                               {"ones", b->ones},
                               {"row_tokens", b->row_tokens},
                               {"chosen_rows", b->chosen_rows},
                               {"rejected_rows", b->rejected_rows},
                               {"pair_ones", b->pair_ones},
                               {"reference_chosen_logps", b->reference_chosen},
                               {"reference_rejected_logps", b->reference_rejected},
                               {"random", b->random}};
    _Static_assert(sizeof feeds / sizeof feeds[0] == APUS_BATCH_FEEDS, "every array is fed");
    memcpy(b->feeds, feeds, sizeof feeds);
    b->n_feeds = APUS_BATCH_FEEDS;
    for (size_t i = 0; i < b->n_feeds; i++)
        if (b->feeds[i].data == NULL)
            return apus_fail(err, APUS_E_MEMORY, "out of memory for a batch of %lld tokens", (long long)capacity[T]);
    for (size_t i = 0; i < n; i++)
        b->ones[i] = 1.0;
    for (size_t i = 0; i < p; i++)
        b->pair_ones[i] = 1.0;
    return APUS_OK;
}

void apus_batch_free(apus_batch *b)
{
    for (size_t i = 0; i + 1 < b->n_feeds; i++) /* the last feed is inside the struct */
        free((void *)(uintptr_t)b->feeds[i].data);
    memset(b, 0, sizeof *b);
}

static int fits(const apus_batch *b, const apus_row *r)
{
    const int64_t most = b->extents[T] == 0 || b->target > b->capacity[T] ? b->capacity[T] : b->target;
    return b->extents[T] + r->n_tokens <= most && b->extents[S] + r->n_segments <= b->capacity[S] && b->extents[N] + r->n_trained <= b->capacity[N] &&
           b->extents[R] + r->n_answers <= b->capacity[R] && (r->n_answers < 2 || b->extents[P] + 1 <= b->capacity[P]);
}

static void add_row(apus_batch *b, const apus_row *r, int64_t index_base)
{
    const int64_t token0 = b->extents[T], segment0 = b->extents[S], row0 = b->extents[R];
    memcpy(b->tokens + token0, r->ids, r->n_tokens * sizeof *r->ids);
    for (uint32_t a = 0; a < r->n_answers; a++)
        b->row_tokens[row0 + a] = 0.0;
    for (uint32_t i = 0; i < r->n_tokens; i++)
        b->token_index[token0 + i] = index_base + token0 + i;
    for (uint32_t k = 0; k < r->n_segments; k++) {
        const apus_row_segment *s = &r->segments[k];
        int32_t start = 0; /* position of the segment's first token; parents are one deep or more */
        for (int32_t p = s->parent; p >= 0; p = r->segments[p].parent)
            start += (int32_t)r->segments[p].count;
        int32_t *row = b->segments + 4 * (segment0 + k);
        row[0] = (int32_t)(token0 + s->begin);
        row[1] = (int32_t)s->count;
        row[2] = s->parent < 0 ? -1 : (int32_t)(segment0 + s->parent);
        row[3] = 0;
        for (uint32_t i = 0; i < s->count; i++) {
            const uint32_t t = s->begin + i;
            b->positions[token0 + t] = start + (int32_t)i;
            b->lengths[token0 + t] = start + (int32_t)s->count; /* read by models that share no prompt alone */
            if (!r->trained[t])
                continue;
            const apus_row_segment *parent = i == 0 ? &r->segments[s->parent] : NULL;
            const uint32_t before = i > 0 ? t - 1 : parent->begin + parent->count - 1;
            const int64_t n = b->extents[N]++;
            b->scored[n] = (int32_t)(token0 + before);
            b->targets[n] = r->ids[t];
            b->token_rows[n] = (int32_t)(row0 + s->answer);
            b->row_tokens[row0 + s->answer] += 1.0;
        }
    }
    if (r->n_answers > 1) {
        const int64_t p = b->extents[P]++;
        b->chosen_rows[p] = (int32_t)row0;
        b->rejected_rows[p] = (int32_t)row0 + 1;
        if (r->reference_logps != NULL) {
            b->reference_chosen[p] = r->reference_logps[0];
            b->reference_rejected[p] = r->reference_logps[1];
        }
    }
    b->extents[T] += r->n_tokens;
    b->extents[S] += r->n_segments;
    b->extents[R] += r->n_answers;
}

size_t apus_batch_fill(apus_batch *b, const apus_dataset *d, const apus_row_order *order, size_t begin, size_t end, int64_t index_base)
{
    memset(b->extents, 0, sizeof b->extents);
    size_t taken = 0;
    for (; begin + taken < end; taken++) {
        const apus_row r = apus_dataset_row(d, apus_row_order_at(order, begin + taken));
        if (!fits(b, &r))
            break;
        add_row(b, &r, index_base);
    }
    return taken;
}
