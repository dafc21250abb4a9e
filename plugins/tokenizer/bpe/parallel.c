/*
 * One long text on several threads, with the tokens of one. The caller's thread takes the text through added tokens, normalisers
 * and the pre-tokenisers before the last pattern, in order; from there on (t->dealt) pieces are dealt out in blocks and what the
 * threads make of them is joined in the order it was dealt.
 *
 * A piece longer than a block is cut into parts that begin at guessed places. Once a match has ended, how a pattern goes on depends
 * on that place alone (each thread searches the whole piece, so this holds for any pattern). So a part keeps where its matches
 * ended, and from the first of them that is also one of the part before, both are the same: what the part found before it is
 * thrown away, what it found behind it is kept. Where nothing meets, the caller's thread goes on match by match.
 *
 * Knows no ids, and of pre-tokenisers only apus_bpe_split_pattern.
 */
#include "bpe.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS_MAX = 64, BLOCKS_A_THREAD = 2 };

/* A piece, in the text or (s NULL) in the block's own from byte `base` on; without bytes: an added token that begins at `base`. */
typedef struct {
    apus_bpe_view piece;
    int32_t id;
} item;

typedef struct {
    /* What is to be done: pieces one after another, or (no items) `part` of a long one. */
    item *items;
    size_t n_items, items_capacity, bytes;
    apus_bpe_buffer own;
    apus_bpe_view whole;
    apus_bpe_part part;
    /* What came of it. */
    apus_tokens tokens;
    apus_status status;
    apus_error error;
    int done; /* under the team's lock */
} block;

struct apus_bpe_team {
    size_t size; /* bytes of a block */
    block *blocks;
    size_t n_blocks;
    pthread_t threads[THREADS_MAX];
    int n_threads;
    /* The caller's: block number given % n_blocks is being filled, `joined` is the next to join. */
    apus_bpe_call *call, own; /* the call that deals; where the caller's thread works beside the others */
    uint64_t joined;
    apus_status status; /* of the first block that failed */
    size_t position;    /* of a piece in parts: its tokens so far are those of the matches up to here */
    /* Under `lock`. */
    pthread_mutex_t lock;
    pthread_cond_t ready, finished; /* there is a block to take or none will come; a block is done */
    uint64_t given, taken;
    int ended;
};

/* ---------------------------------------------------------------- blocks, on any thread */

static apus_status run_piece(apus_bpe_call *call, const apus_bpe_view *piece)
{
    const size_t stage = call->t->dealt;
    return stage < call->t->n_splits ? apus_bpe_split_pattern(call, stage, piece, NULL) : apus_bpe_model_encode(call, piece);
}

static void run_block(apus_bpe_call *call, block *b)
{
    call->out = &b->tokens;
    call->err = &b->error;
    b->status = APUS_OK;
    if (b->n_items == 0)
        b->status = call->t->dealt < call->t->n_splits ? apus_bpe_split_pattern(call, call->t->dealt, &b->whole, &b->part)
                                                       : apus_bpe_model_encode(call, &b->whole);
    for (size_t i = 0; i < b->n_items && b->status == APUS_OK; i++) {
        apus_bpe_view v = b->items[i].piece;
        if (v.n == 0) {
            b->status = apus_bpe_emit(call, b->items[i].id, v.base);
            continue;
        }
        if (v.s == NULL)
            v = (apus_bpe_view){b->own.s + v.base, v.n, b->own.at + v.base, 0};
        b->status = run_piece(call, &v);
    }
}

/* The next block to work on, under the lock; NULL: there is none now. */
static block *take(apus_bpe_team *team)
{
    return team->taken < team->given ? &team->blocks[team->taken++ % team->n_blocks] : NULL;
}

static void *work(void *argument)
{
    apus_bpe_team *team = argument;
    apus_bpe_call call;
    const apus_status opened = apus_bpe_call_open(&call, team->call->t, NULL);
    pthread_mutex_lock(&team->lock);
    while (opened == APUS_OK && (team->taken < team->given || !team->ended)) {
        block *b = take(team);
        if (b == NULL) {
            pthread_cond_wait(&team->ready, &team->lock);
            continue;
        }
        pthread_mutex_unlock(&team->lock);
        run_block(&call, b);
        pthread_mutex_lock(&team->lock);
        b->done = 1;
        pthread_cond_signal(&team->finished);
    }
    pthread_mutex_unlock(&team->lock);
    apus_bpe_call_close(&call);
    return NULL;
}

/* ---------------------------------------------------------------- joining, on the caller's thread */

static apus_status append(apus_bpe_team *team, const apus_tokens *tokens, size_t from, size_t to)
{
    apus_tokens *out = team->call->out;
    const apus_status s = from < to ? apus_bpe_emit_reserve(team->call, to - from) : APUS_OK;
    if (s == APUS_OK && from < to) {
        memcpy(out->ids + out->n, tokens->ids + from, (to - from) * sizeof *out->ids);
        memcpy(out->begin + out->n, tokens->begin + from, (to - from) * sizeof *out->begin);
        out->n += to - from;
    }
    return s;
}

/* One match of a piece in parts, where no part has it. */
static apus_status one_match(apus_bpe_team *team, const apus_bpe_view *whole)
{
    apus_bpe_part part = {.from = team->position, .to = team->position + 1, .limit = whole->n};
    team->own.out = team->call->out;
    team->own.err = team->call->err;
    const apus_status s = apus_bpe_split_pattern(&team->own, team->call->t->dealt, whole, &part);
    if (s == APUS_OK)
        team->position = part.ends[part.n_ends - 1].at;
    free(part.ends);
    return s;
}

/* What a part failed at is behind the last of its ends: one_match comes to it if it is there. */
static apus_status join_part(apus_bpe_team *team, const block *b)
{
    const struct apus_bpe_end *ends = b->part.ends;
    const size_t n = b->part.n_ends;
    apus_status s = APUS_OK;
    for (size_t i = 0; s == APUS_OK && team->position < b->part.to;) {
        while (i < n && ends[i].at < team->position)
            i++;
        if (i < n && ends[i].at == team->position && ends[n - 1].at > team->position) {
            s = append(team, &b->tokens, ends[i].n_tokens, ends[n - 1].n_tokens);
            team->position = ends[n - 1].at;
        } else {
            s = one_match(team, &b->whole);
        }
    }
    return s;
}

static void join_next(apus_bpe_team *team)
{
    block *b = &team->blocks[team->joined % team->n_blocks], *other;
    pthread_mutex_lock(&team->lock);
    while (!b->done) {
        other = take(team);
        if (other == NULL) {
            pthread_cond_wait(&team->finished, &team->lock);
            continue;
        }
        pthread_mutex_unlock(&team->lock);
        run_block(&team->own, other);
        pthread_mutex_lock(&team->lock);
        other->done = 1;
    }
    b->done = 0;
    pthread_mutex_unlock(&team->lock);
    if (team->status == APUS_OK && b->n_items == 0 && team->call->t->dealt < team->call->t->n_splits) {
        team->status = join_part(team, b);
    } else if (team->status == APUS_OK) {
        team->status = b->status == APUS_OK ? append(team, &b->tokens, 0, b->tokens.n) : b->status;
        if (b->status != APUS_OK && team->call->err != NULL)
            *team->call->err = b->error;
    }
    b->n_items = b->bytes = b->own.n = b->part.n_ends = b->tokens.n = 0;
    team->joined++;
}

/* ---------------------------------------------------------------- dealing, on the caller's thread */

static block *room(apus_bpe_team *team)
{
    while (team->given - team->joined == team->n_blocks)
        join_next(team);
    return &team->blocks[team->given % team->n_blocks];
}

static void give(apus_bpe_team *team)
{
    pthread_mutex_lock(&team->lock);
    team->given++;
    pthread_cond_signal(&team->ready);
    pthread_mutex_unlock(&team->lock);
}

static void join_all(apus_bpe_team *team)
{
    if (room(team)->n_items > 0)
        give(team);
    while (team->joined < team->given)
        join_next(team);
}

static apus_status deal_item(apus_bpe_team *team, const apus_bpe_view *v, int32_t id)
{
    block *b = room(team);
    item new = {*v, id};
    if (team->status != APUS_OK)
        return team->status;
    if (v->at != NULL) { /* a buffer that is used again */
        new.piece = (apus_bpe_view){NULL, v->n, NULL, (uint32_t)b->own.n};
        if (!apus_bpe_copy(&b->own, v, 0, v->n))
            return apus_bpe_memory(team->call->err);
    }
    if (!apus_bpe_grow(&b->items, &b->items_capacity, b->n_items + 1, sizeof *b->items))
        return apus_bpe_memory(team->call->err);
    b->items[b->n_items++] = new;
    b->bytes += v->n + 1;
    if (b->bytes >= team->size)
        give(team);
    return APUS_OK;
}

/* Where a part that has at least the size of a block ends: at a whole character, or where the model itself would cut. */
static size_t part_end(const apus_bpe_team *team, const apus_bpe_view *v, size_t from)
{
    const apus_bpe *t = team->call->t;
    if (v->n - from <= team->size)
        return v->n;
    size_t end = from + team->size;
    if (t->dealt == t->n_splits)
        return apus_bpe_model_cut(t->model, v, end);
    while (end < v->n && ((unsigned char)v->s[end] & 0xC0) == 0x80)
        end++;
    return end;
}

/* v in parts; it need not stay when this returns. */
static apus_status deal_parts(apus_bpe_team *team, const apus_bpe_view *v)
{
    const int pattern = team->call->t->dealt < team->call->t->n_splits;
    if (room(team)->n_items > 0)
        give(team);
    team->position = 0;
    for (size_t from = 0, to; from < v->n && team->status == APUS_OK; from = to) {
        block *b = room(team);
        if (pattern && team->position > from) /* a match went on past what would be the next part */
            from = team->position;
        to = part_end(team, v, from);
        b->whole = pattern ? *v : apus_bpe_slice(v, from, to);
        b->part.from = from;
        b->part.to = to;
        b->part.limit = v->n - to > team->size ? to + team->size : v->n;
        give(team);
    }
    join_all(team);
    return team->status;
}

apus_status apus_bpe_deal(apus_bpe_call *call, const apus_bpe_view *v)
{
    return v->n > call->team->size ? deal_parts(call->team, v) : deal_item(call->team, v, -1);
}

apus_status apus_bpe_deal_token(apus_bpe_call *call, int32_t id, uint32_t begin)
{
    return deal_item(call->team, &(apus_bpe_view){.base = begin}, id);
}

apus_status apus_bpe_team_open(apus_bpe_call *call, int threads, size_t size)
{
    apus_bpe_team *team = calloc(1, sizeof *team);
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    if (team == NULL)
        return apus_bpe_memory(call->err);
    team->size = size;
    team->n_blocks = (size_t)threads * BLOCKS_A_THREAD + 1;
    team->blocks = calloc(team->n_blocks, sizeof *team->blocks);
    team->call = call;
    apus_status s = apus_bpe_call_open(&team->own, call->t, call->err);
    if (s == APUS_OK && team->blocks == NULL)
        s = apus_bpe_memory(call->err);
    if (s != APUS_OK) {
        apus_bpe_call_close(&team->own);
        free(team->blocks);
        free(team);
        return s;
    }
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->ready, NULL);
    pthread_cond_init(&team->finished, NULL);
    call->team = team;
    while (team->n_threads + 1 < threads && pthread_create(&team->threads[team->n_threads], NULL, work, team) == 0)
        team->n_threads++;
    return APUS_OK;
}

apus_status apus_bpe_team_end(apus_bpe_call *call)
{
    apus_bpe_team *team = call->team;
    if (team == NULL)
        return APUS_OK;
    join_all(team);
    pthread_mutex_lock(&team->lock);
    team->ended = 1;
    pthread_cond_broadcast(&team->ready);
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->n_threads; i++)
        pthread_join(team->threads[i], NULL);
    const apus_status s = team->status;
    for (size_t i = 0; i < team->n_blocks; i++) {
        block *b = &team->blocks[i];
        apus_bpe_buffer_free(&b->own);
        free(b->items);
        free(b->part.ends);
        call->t->host->free(b->tokens.ids);
        call->t->host->free(b->tokens.begin);
    }
    apus_bpe_call_close(&team->own);
    pthread_cond_destroy(&team->finished);
    pthread_cond_destroy(&team->ready);
    pthread_mutex_destroy(&team->lock);
    free(team->blocks);
    free(team);
    call->team = NULL;
    return s;
}
