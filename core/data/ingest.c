/*
 * core/data/ingest.c: see ingest.h. Blocks of rows go round a ring: whoever is free reads the next block (one at a time, for a
 * file has one order), encodes it beside the others, and whoever finishes the block whose turn it is writes it and those that
 * are ready behind it.
 */
#include "data/ingest.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

enum { BLOCK = 64, THREADS_MAX = 64, BLOCKS_A_THREAD = 4 };

typedef struct block {
    apus_node *read[BLOCK]; /* rows as the file has them */
    int n_read, ready;
    uint64_t first_source;
    apus_row_store rows, documents;
    apus_losses losses;
    apus_status status;
    apus_error error;
} block;

typedef struct ring {
    apus_data_part *part;
    const apus_encoder *encoder;
    apus_row_sink *sink;
    apus_losses *losses;
    apus_packer packer;
    /* Under `reading`: who holds it reads the next block. */
    pthread_mutex_t reading;
    uint64_t n_read, source;
    int ended;
    /* Under `lock`. */
    pthread_mutex_t lock;
    pthread_cond_t room;
    uint64_t n_written;
    int writing, stopped, encoding; /* encoding: blocks that are being encoded */
    apus_status status;             /* of the first block that failed */
    apus_error error;
    int threads;
    uint64_t n_blocks;
    block *blocks;
} ring;

static apus_status read_block(ring *r, block *b)
{
    b->first_source = r->source;
    while (b->n_read < BLOCK) {
        apus_node *row;
        const apus_status st = apus_data_part_next(r->part, &row, &b->error);
        if (st != APUS_OK)
            return st;
        if (row == NULL)
            break;
        b->read[b->n_read++] = row;
    }
    r->source += (uint64_t)b->n_read;
    return APUS_OK;
}

/* The next block with something in it, read; NULL: there is none, or no more is wanted. */
static block *take_block(ring *r)
{
    block *b = NULL;
    pthread_mutex_lock(&r->reading);
    pthread_mutex_lock(&r->lock);
    while (!r->stopped && r->n_read - r->n_written >= r->n_blocks)
        pthread_cond_wait(&r->room, &r->lock);
    const int stopped = r->stopped;
    pthread_mutex_unlock(&r->lock);
    if (!stopped && !r->ended) {
        b = &r->blocks[r->n_read % r->n_blocks];
        b->status = read_block(r, b);
        r->ended = b->status != APUS_OK || b->n_read < BLOCK;
        if (b->n_read == 0 && b->status == APUS_OK)
            b = NULL;
        else
            r->n_read++;
    }
    pthread_mutex_unlock(&r->reading);
    return b;
}

/* One block more is being encoded, or one fewer: how many are. */
static int count_encoding(ring *r, int more)
{
    pthread_mutex_lock(&r->lock);
    const int n = r->encoding += more;
    pthread_mutex_unlock(&r->lock);
    return n;
}

static apus_status encode_row(const ring *r, const apus_encoder *encoder, block *b, apus_node *row, uint64_t source)
{
    apus_node *example = NULL;
    char where[256];
    NODE->where(row, where, sizeof where);
    apus_status st = apus_data_part_example(r->part, row, &example, &b->error);
    NODE->release(row); /* a document is large enough once */
    if (st == APUS_OK)
        st = apus_encode_example(encoder, example, source, &b->rows, &b->documents, &b->losses, &b->error);
    NODE->release(example);
    if (st != APUS_OK) { /* name the place in the file, where the message does not */
        char message[1024];
        (void)snprintf(message, sizeof message, "%.1000s", b->error.message);
        if (where[0] != '\0' && strstr(message, where) == NULL)
            (void)snprintf(b->error.message, sizeof b->error.message, "%s: %s", where, message);
    }
    return st;
}

/* The rows before one that cannot be read come first: of two faults the first in the file is told. Long texts take the threads that
 * have no block. */
static void encode_block(ring *r, block *b)
{
    const apus_status reading = b->status;
    const apus_error fault = b->error;
    apus_encoder encoder = *r->encoder;
    encoder.threads = r->threads - count_encoding(r, 1) + 1;
    b->status = APUS_OK;
    for (int i = 0; i < b->n_read; i++) {
        if (b->status == APUS_OK && HOST->stopping())
            b->status = apus_fail(&b->error, APUS_E_STOPPED, "stopped while reading the dataset");
        if (b->status == APUS_OK)
            b->status = encode_row(r, &encoder, b, b->read[i], b->first_source + (uint64_t)i);
        else
            NODE->release(b->read[i]);
    }
    if (b->status == APUS_OK && reading != APUS_OK) {
        b->status = reading;
        b->error = fault;
    }
    (void)count_encoding(r, -1);
}

static apus_status write_block(ring *r, block *b)
{
    apus_status st = b->status;
    if (st == APUS_OK)
        st = apus_row_sink_append(r->sink, &b->rows, &b->error);
    for (size_t i = 0; i < b->documents.n_rows && st == APUS_OK; i++) {
        const apus_row document = apus_row_store_get(&b->documents, i);
        st = apus_packer_add(&r->packer, &document, r->sink, &b->error);
    }
    for (int k = 0; k < APUS_N_LOSSES; k++)
        for (uint64_t i = 0; i < b->losses.count[k]; i++)
            apus_losses_add(r->losses, k, i < APUS_LOSSES_LISTED ? b->losses.first[k][i] : 0);
    if (st != APUS_OK)
        r->error = b->error;
    return st;
}

/* Its memory is used again: a block of ordinary rows needs little, and one that was large would stay so. */
static void clear_block(block *b)
{
    apus_row_store_free(&b->rows);
    apus_row_store_free(&b->documents);
    memset(&b->losses, 0, sizeof b->losses);
    b->error.message[0] = b->error.hint[0] = '\0';
    b->n_read = b->ready = 0;
    b->status = APUS_OK;
}

/* Block b is encoded: write what is ready and has its turn, unless somebody does. */
static void give_block(ring *r, block *b)
{
    pthread_mutex_lock(&r->lock);
    b->ready = 1;
    while (!r->writing && r->blocks[r->n_written % r->n_blocks].ready) {
        block *next = &r->blocks[r->n_written % r->n_blocks];
        r->writing = 1;
        pthread_mutex_unlock(&r->lock);
        const apus_status st = r->status == APUS_OK ? write_block(r, next) : r->status;
        clear_block(next);
        pthread_mutex_lock(&r->lock);
        r->status = st;
        r->stopped = st != APUS_OK;
        r->writing = 0;
        r->n_written++;
        pthread_cond_broadcast(&r->room);
    }
    pthread_mutex_unlock(&r->lock);
}

static void *work(void *argument)
{
    ring *r = argument;
    for (block *b; (b = take_block(r)) != NULL;) {
        encode_block(r, b);
        give_block(r, b);
    }
    return NULL;
}

apus_status apus_ingest(apus_data_part *part, const apus_encoder *encoder, uint64_t first_source, int threads, apus_row_sink *sink,
                        apus_losses *losses, apus_error *err)
{
    ring r = {.part = part,
              .encoder = encoder,
              .sink = sink,
              .losses = losses,
              .source = first_source,
              .reading = PTHREAD_MUTEX_INITIALIZER,
              .lock = PTHREAD_MUTEX_INITIALIZER,
              .room = PTHREAD_COND_INITIALIZER};
    pthread_t others[THREADS_MAX];
    int started = 0;
    threads = threads < 1 ? 1 : threads > THREADS_MAX ? THREADS_MAX : threads;
    r.threads = threads;
    r.n_blocks = (uint64_t)threads * BLOCKS_A_THREAD;
    r.blocks = calloc(r.n_blocks, sizeof *r.blocks);
    if (r.blocks == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = apus_packer_open(&r.packer, encoder->max_length, err);
    if (st == APUS_OK) {
        while (started + 1 < threads && pthread_create(&others[started], NULL, work, &r) == 0)
            started++;
        (void)work(&r);
        for (int i = 0; i < started; i++)
            pthread_join(others[i], NULL);
        st = r.status;
        if (st == APUS_OK)
            st = apus_packer_end(&r.packer, sink, err);
        else if (err != NULL)
            *err = r.error;
    }
    apus_packer_close(&r.packer);
    free(r.blocks);
    return st;
}
