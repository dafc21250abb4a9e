/* core/model/engine.c: see engine.h. */
#include "model/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <apus/answer.h>
#include <apus/logits.h>

#include "model/internal.h"
#include "model/pages.h"
#include "model/reply.h"
#include "model/runner.h"

enum {
    BATCH_TOKENS = 256, /* of one run, unless asked otherwise */
    FIRST_PAGES = 128   /* of the first cache; doubled when more are needed */
};

/* A request: waiting, then at work. */
typedef struct sequence {
    apus_reply reply;
    uint64_t ticket;
    struct sequence *next; /* of the waiting */
    int32_t *pages;        /* [n_pages]; room for all of the longest answer's that can be */
    size_t n_pages, cap_pages;
    size_t computed; /* leading ids whose keys and values are there, or will be when the batch has run */
    size_t put;      /* leading pages that are full of known ids */
    uint64_t chain;  /* serial of the last of those */
    size_t cached;
    int32_t row; /* of this run's logits; -1 */
    int32_t chosen;
    double logprob;
    apus_status status;
    int cancelled;
} sequence;

struct apus_generator {
    apus_model *model;
    apus_generator_options options;
    apus_runner runner;
    apus_pages pages;
    sequence *waiting, **last; /* first come, first served; who gave up its pages comes first. last: where the next is linked */
    sequence **running;        /* [n_running], by admission */
    sequence **rows;           /* [most rows]: whose logits each row is */
    size_t n_waiting, n_running;
    uint64_t tickets;
    int stalled;        /* somebody at work lacks a page */
    float *sampled;     /* [parallel, vocab]: rows that may not be changed, or are no floats */
    void *downloaded;   /* [parallel, vocab] of the device's reals; NULL where its memory is the host's */
    int cannot_grow;    /* the device has no more memory */
    apus_error full;    /* why there was no page */
    apus_status failed; /* a run failed: what the cache holds is unknown */
    apus_generator_counts counts;
};

/* ---------------------------------------------------------------- opening */

apus_status apus_generator_new(apus_model *m, const apus_generator_options *options, apus_generator **generator, apus_error *err)
{
    apus_generator *g = calloc(1, sizeof *g);
    if (g == NULL) {
        apus_model_close(m);
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    }
    g->model = m;
    g->last = &g->waiting;
    g->options = *options;
    apus_generator_options *o = &g->options;
    o->parallel = o->parallel > 0 ? o->parallel : 1;
    o->batch_tokens = o->batch_tokens > 0 ? o->batch_tokens : BATCH_TOKENS;
    o->batch_tokens = o->batch_tokens < o->parallel ? o->parallel : o->batch_tokens;
    const size_t rows = (size_t)o->parallel, vocab = (size_t)m->facts.vocab, real = apus_dtype_size(apus_device_real(m->device));
    g->running = calloc(rows, sizeof *g->running);
    g->rows = calloc(rows, sizeof *g->rows);
    g->sampled = malloc(rows * vocab * sizeof *g->sampled);
    if (!apus_device_host_memory(m->device))
        g->downloaded = malloc(rows * vocab * real);
    apus_status st = apus_runner_open(&g->runner, m, o->batch_tokens, o->parallel, err);
    if (st == APUS_OK &&
        (g->running == NULL || g->rows == NULL || g->sampled == NULL || (g->downloaded == NULL && !apus_device_host_memory(m->device))))
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        *generator = g;
    else
        apus_generator_free(g);
    return st;
}

static void free_sequence(sequence *s)
{
    apus_reply_close(&s->reply);
    free(s->pages);
    free(s);
}

void apus_generator_free(apus_generator *g)
{
    if (g == NULL)
        return;
    for (sequence *s = g->waiting, *next; s != NULL; s = next) {
        next = s->next;
        free_sequence(s);
    }
    for (size_t i = 0; i < g->n_running; i++)
        free_sequence(g->running[i]);
    apus_runner_close(&g->runner);
    apus_pages_free(&g->pages);
    free(g->running);
    free(g->rows);
    free(g->sampled);
    free(g->downloaded);
    apus_model_close(g->model);
    free(g);
}

apus_status apus_generator_describe(apus_generator *g, apus_node **plan, apus_error *err)
{
    return apus_runner_describe(&g->runner, plan, err);
}

apus_model *apus_generator_model(apus_generator *g)
{
    return g->model;
}

apus_generator_counts apus_generator_get_counts(const apus_generator *g)
{
    apus_generator_counts c = g->counts;
    c.pages = g->pages.n;
    c.pages_held = g->pages.n - apus_pages_room(&g->pages);
    return c;
}

/* ---------------------------------------------------------------- pages */

static size_t pages_of(size_t positions)
{
    return (positions + APUS_PAGE - 1) / APUS_PAGE;
}

/* Pages that s can ever need: its last token's keys and values are nobody's. */
static size_t most_pages(const sequence *s)
{
    return pages_of(s->reply.most - 1);
}

/* Pages the cache may have; `also`: who asks for some and is not at work yet; NULL. */
static size_t limit(const apus_generator *g, const sequence *also)
{
    size_t n = also != NULL ? most_pages(also) : 0;
    if (g->options.cache_tokens > 0)
        return pages_of((size_t)g->options.cache_tokens);
    for (size_t i = 0; i < g->n_running; i++)
        n += most_pages(g->running[i]);
    return n;
}

static int grow(apus_generator *g, size_t pages)
{
    g->full.message[0] = g->full.hint[0] = '\0';
    apus_status st =
        pages <= INT32_MAX / APUS_PAGE ? APUS_OK : apus_fail(&g->full, APUS_E_MEMORY, "a cache of %zu positions is too large", pages * APUS_PAGE);
    if (st == APUS_OK)
        st = apus_runner_grow(&g->runner, (int64_t)pages, &g->full);
    if (st == APUS_OK)
        st = apus_pages_grow(&g->pages, (int32_t)pages, &g->full);
    g->cannot_grow = st != APUS_OK;
    return st == APUS_OK;
}

/* Is there room for n more pages? The cache grows where it may. */
static int make_room(apus_generator *g, size_t n, const sequence *also)
{
    const size_t room = (size_t)apus_pages_room(&g->pages), now = (size_t)g->pages.n;
    if (room >= n)
        return 1;
    const size_t most = limit(g, also), least = now + n - room;
    size_t target = now > 0 ? 2 * now : FIRST_PAGES;
    target = target < least ? least : target;
    target = target > most ? most : target;
    if (least > most || g->cannot_grow)
        return 0;
    return grow(g, target) || (target > least && grow(g, least));
}

static uint64_t salt_of(const apus_generator *g, const sequence *s, size_t page)
{
    return g->runner.uses_lengths && page * APUS_PAGE < s->reply.n_prompt ? s->reply.n_prompt : 0;
}

/* Pages that are full of known ids can be found by others from now on. */
static void put_pages(apus_generator *g, sequence *s)
{
    for (; (s->put + 1) * APUS_PAGE <= s->reply.n && s->put < s->n_pages; s->put++)
        s->chain = apus_pages_put(&g->pages, s->pages[s->put], s->chain, s->reply.ids + s->put * APUS_PAGE, salt_of(g, s, s->put));
}

/* A page for each of the first n positions; 0: there is no room. */
static int reach(apus_generator *g, sequence *s, size_t n, const sequence *also)
{
    const size_t need = pages_of(n);
    if (need > s->cap_pages) {
        const size_t cap = 2 * need;
        int32_t *grown = realloc(s->pages, cap * sizeof *grown);
        if (grown == NULL) {
            (void)apus_fail(&g->full, APUS_E_MEMORY, "out of memory");
            return 0;
        }
        s->pages = grown;
        s->cap_pages = cap;
    }
    if (need > s->n_pages && !make_room(g, need - s->n_pages, also))
        return 0;
    while (s->n_pages < need)
        s->pages[s->n_pages++] = apus_pages_take(&g->pages, s->ticket);
    put_pages(g, s);
    return 1;
}

static void give_up_pages(apus_generator *g, sequence *s)
{
    while (s->n_pages > 0)
        apus_pages_drop(&g->pages, s->pages[--s->n_pages], s->ticket);
    s->computed = s->put = 0;
    s->chain = APUS_PAGE_ROOT;
}

/* Pages that hold the beginning of s already. Its last id is always computed: its logits are wanted. */
static apus_status share_prefix(apus_generator *g, sequence *s)
{
    const size_t whole = (s->reply.n - 1) / APUS_PAGE;
    if (whole > s->cap_pages) {
        int32_t *grown = realloc(s->pages, (whole + 1) * sizeof *grown);
        if (grown == NULL)
            return apus_fail(&s->reply.error, APUS_E_MEMORY, "out of memory");
        s->pages = grown;
        s->cap_pages = whole + 1;
    }
    while (s->put < whole) {
        const int32_t page = apus_pages_find(&g->pages, s->chain, s->reply.ids + s->put * APUS_PAGE, salt_of(g, s, s->put));
        if (page < 0)
            break;
        s->pages[s->n_pages++] = page;
        s->chain = g->pages.at[page].serial;
        s->put++;
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- requests */

static void wait_last(apus_generator *g, sequence *s)
{
    s->next = NULL;
    *g->last = s;
    g->last = &s->next;
    g->n_waiting++;
}

static void wait_first(apus_generator *g, sequence *s)
{
    s->next = g->waiting;
    if (g->waiting == NULL)
        g->last = &s->next;
    g->waiting = s;
    g->n_waiting++;
}

static sequence *stop_waiting(apus_generator *g, sequence **at)
{
    sequence *s = *at;
    *at = s->next;
    if (s->next == NULL)
        g->last = at;
    g->n_waiting--;
    return s;
}

apus_status apus_generator_submit(apus_generator *g, const apus_generate_request *request, uint64_t *ticket, apus_error *err)
{
    sequence *s = calloc(1, sizeof *s);
    if (s == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_status st = apus_reply_open(&s->reply, g->model, g->options.parse_special, request, err);
    if (st != APUS_OK) {
        free(s);
        return st;
    }
    if (g->options.cache_tokens > 0 && most_pages(s) > pages_of((size_t)g->options.cache_tokens)) {
        apus_fail(err, APUS_E_MEMORY, "a prompt of %zu tokens and an answer of up to %zu need more than the %lld positions of the cache", s->reply.n,
                  s->reply.most - s->reply.n, (long long)g->options.cache_tokens);
        free_sequence(s);
        return apus_hint(err, APUS_E_MEMORY, "raise cache_tokens or lower max_tokens");
    }
    s->ticket = ++g->tickets;
    s->chain = APUS_PAGE_ROOT;
    s->row = -1;
    wait_last(g, s);
    if (ticket != NULL)
        *ticket = s->ticket;
    return APUS_OK;
}

void apus_generator_cancel(apus_generator *g, uint64_t ticket)
{
    for (sequence **at = &g->waiting; *at != NULL; at = &(*at)->next)
        if ((*at)->ticket == ticket) {
            free_sequence(stop_waiting(g, at));
            return;
        }
    for (size_t i = 0; i < g->n_running; i++)
        if (g->running[i]->ticket == ticket)
            g->running[i]->cancelled = 1; /* it may be cancelled while its own piece is told */
}

/* Those that are finished or cancelled leave. */
static void sweep(apus_generator *g)
{
    size_t kept = 0;
    for (size_t i = 0; i < g->n_running; i++) {
        sequence *s = g->running[i];
        if (s->reply.finish == NULL && !s->cancelled) {
            g->running[kept++] = s;
            continue;
        }
        give_up_pages(g, s);
        free_sequence(s);
    }
    g->n_running = kept;
}

static void deliver(const sequence *s)
{
    apus_answer answer = apus_reply_answer(&s->reply);
    answer.n_cached = s->cached;
    if (s->reply.done != NULL)
        s->reply.done(s->reply.context, &answer);
}

/* ---------------------------------------------------------------- a step */

static apus_status admit_one(apus_generator *g, sequence *s, int *admitted)
{
    *admitted = 0;
    const apus_status st = share_prefix(g, s);
    if (st != APUS_OK)
        return st;
    const size_t shared = s->n_pages;
    if (reach(g, s, s->reply.n, s)) {
        if (s->reply.n == s->reply.n_prompt)
            s->cached = shared * APUS_PAGE;
        g->counts.cached += (int64_t)(shared * APUS_PAGE);
        g->running[g->n_running++] = s;
        *admitted = 1;
        return APUS_OK;
    }
    give_up_pages(g, s);
    if (g->n_running > 0)
        return APUS_OK; /* it waits */
    s->reply.error = g->full;
    return APUS_E_MEMORY;
}

static void admit(apus_generator *g)
{
    int admitted = 1;
    while (g->waiting != NULL && g->n_running < (size_t)g->options.parallel && !g->stalled && admitted) {
        sequence *s = stop_waiting(g, &g->waiting);
        const apus_status st = admit_one(g, s, &admitted);
        if (st != APUS_OK) {
            const apus_error why = s->reply.error;
            apus_reply_fail(&s->reply, st, &why);
            deliver(s);
            free_sequence(s);
            admitted = 1;
        } else if (!admitted) {
            wait_first(g, s);
        }
    }
}

/* Positions that others have computed for it meanwhile. */
static void advance(const apus_generator *g, sequence *s)
{
    while (s->computed + 1 < s->reply.n && s->computed / APUS_PAGE < s->n_pages) {
        const size_t page = s->computed / APUS_PAGE, there = page * APUS_PAGE + (size_t)g->pages.at[s->pages[page]].written;
        if (there <= s->computed)
            break;
        s->computed = there < s->reply.n ? there : s->reply.n - 1;
    }
}

/* How many of the next n positions are s's to compute: up to a page that another is writing, or has written. */
static size_t own_positions(apus_generator *g, const sequence *s, size_t n)
{
    const size_t end = s->computed + n;
    for (size_t at = s->computed; at < end; at = (at / APUS_PAGE + 1) * APUS_PAGE) {
        apus_page *page = &g->pages.at[s->pages[at / APUS_PAGE]];
        if (page->writer == 0 && page->written < APUS_PAGE)
            page->writer = s->ticket;
        if (page->writer != s->ticket)
            return at - s->computed;
    }
    return n;
}

/* At most n tokens of s join the batch. */
static size_t schedule(apus_generator *g, sequence *s, size_t n)
{
    if (!reach(g, s, s->reply.n, NULL)) {
        g->stalled = 1;
        return 0;
    }
    const size_t left = s->reply.n - s->computed;
    n = own_positions(g, s, left < n ? left : n);
    if (n == 0)
        return 0;
    const size_t begin = s->computed;
    s->computed += n;
    for (size_t at = begin; at < s->computed; at++)
        g->pages.at[s->pages[at / APUS_PAGE]].written = (int32_t)(at % APUS_PAGE) + 1;
    s->row = apus_runner_add(&g->runner, s->reply.ids, begin, n, s->reply.n_prompt, s->pages, s->computed == s->reply.n);
    if (s->row >= 0)
        g->rows[s->row] = s;
    return n;
}

/* The batch of the next run: everybody's next token, then prompts, the oldest first. Gives its tokens. */
static size_t compose(apus_generator *g)
{
    size_t left = (size_t)g->options.batch_tokens;
    apus_runner_clear(&g->runner);
    g->stalled = 0;
    for (int prompts = 0; prompts < 2; prompts++)
        for (size_t i = 0; i < g->n_running && left > 0; i++) {
            sequence *s = g->running[i];
            if (prompts == 0)
                s->row = -1;
            if (s->row >= 0)
                continue;
            advance(g, s);
            if ((s->reply.n - s->computed > 1) == prompts)
                left -= schedule(g, s, left);
        }
    return (size_t)g->options.batch_tokens - left;
}

/* Nobody can go on: the youngest gives up its pages. Its ids stay; what it had is computed again, to the same bits. */
static void preempt(apus_generator *g)
{
    sequence *s = g->running[--g->n_running];
    if (g->n_running == 0) { /* it has the cache for itself, and the cache cannot grow */
        apus_reply_fail(&s->reply, APUS_E_MEMORY, &g->full);
        deliver(s);
        give_up_pages(g, s);
        free_sequence(s);
        return;
    }
    give_up_pages(g, s);
    wait_first(g, s);
    g->counts.preempted++;
}

/* ---------------------------------------------------------------- choosing */

static double log_sum_exp_wide(const double *x, int64_t n)
{
    double top = x[0], sum = 0.0;
    for (int64_t i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

typedef struct choosing {
    apus_generator *g;
    void *logits; /* [rows, vocab] of the device's reals, in host memory */
} choosing;

static void choose_row(void *context, int64_t i)
{
    const choosing *c = context;
    sequence *s = c->g->rows[i];
    const int64_t vocab = c->g->model->facts.vocab;
    const int wanted = s->reply.wants_logprobs;
    float *copy = c->g->sampled + i * vocab;
    if (apus_device_real(c->g->model->device) == APUS_F32) {
        float *row = (float *)c->logits + i * vocab;
        if (!wanted) {
            s->status = apus_reply_choose(&s->reply, row, &s->chosen, &s->reply.error);
            return;
        }
        memcpy(copy, row, (size_t)vocab * sizeof *row);
        s->status = apus_reply_choose(&s->reply, copy, &s->chosen, &s->reply.error);
        const float top = apus_logits_largest(row, vocab);
        if (s->status == APUS_OK)
            s->logprob = (double)row[s->chosen] - (double)top - log(apus_logits_sum(row, vocab, top));
        return;
    }
    const double *row = (const double *)c->logits + i * vocab;
    for (int64_t v = 0; v < vocab; v++)
        copy[v] = (float)row[v];
    s->status = apus_reply_choose(&s->reply, copy, &s->chosen, &s->reply.error);
    if (s->status == APUS_OK && wanted)
        s->logprob = row[s->chosen] - log_sum_exp_wide(row, vocab);
}

static apus_status choose(apus_generator *g, apus_error *err)
{
    apus_device *d = g->model->device;
    const apus_view v = apus_runner_logits(&g->runner);
    choosing c = {.g = g, .logits = v.data};
    if (g->runner.n_scored == 0)
        return APUS_OK;
    if (g->downloaded != NULL) {
        const size_t bytes = (size_t)g->runner.n_scored * (size_t)g->model->facts.vocab * apus_dtype_size(apus_device_real(d));
        const apus_status st = apus_device_download(d, g->downloaded, v.data, bytes, err);
        if (st != APUS_OK)
            return st;
        c.logits = g->downloaded;
    }
    apus_device_parallel(d, g->runner.n_scored, choose_row, &c);
    return APUS_OK;
}

static void take_chosen(apus_generator *g)
{
    for (int64_t i = 0; i < g->runner.n_scored; i++) {
        sequence *s = g->rows[i];
        if (s->cancelled)
            continue;
        if (s->status != APUS_OK) {
            const apus_error why = s->reply.error;
            apus_reply_fail(&s->reply, s->status, &why);
        } else {
            apus_reply_take(&s->reply, s->chosen, s->logprob);
        }
        if (s->reply.finish != NULL && !s->cancelled)
            deliver(s);
    }
}

apus_status apus_generator_step(apus_generator *g, size_t *pending, apus_error *err)
{
    if (apus_host_table()->stopping())
        return apus_fail(err, APUS_E_STOPPED, "stopped while answering");
    if (g->failed != APUS_OK)
        return apus_fail(err, g->failed, "a run of the model failed before: this generator can only be closed");
    sweep(g);
    admit(g);
    while (g->n_running > 0 && compose(g) == 0)
        preempt(g);
    if (g->n_running > 0) {
        apus_status st = apus_runner_run(&g->runner, err);
        if (st == APUS_OK)
            st = choose(g, err);
        if (st != APUS_OK)
            return g->failed = st;
        g->counts.steps++;
        g->counts.computed += g->runner.n_tokens;
        take_chosen(g);
        sweep(g);
    }
    if (pending != NULL)
        *pending = g->n_waiting + g->n_running;
    return APUS_OK;
}

/* ---------------------------------------------------------------- one request */

typedef struct awaited {
    int (*piece)(void *context, const char *text, size_t length);
    void *context;
    apus_node *answer;
    apus_status status;
    apus_error *err;
    int done;
} awaited;

static int pass_piece(void *context, const char *text, size_t length)
{
    const awaited *a = context;
    return a->piece(a->context, text, length);
}

static void keep_answer(void *context, const apus_answer *answer)
{
    awaited *a = context;
    a->done = 1;
    a->status = answer->status;
    if (answer->status == APUS_OK)
        a->answer = apus_answer_node(apus_nodes(), answer);
    else if (a->err != NULL)
        *a->err = *answer->error;
}

apus_status apus_generator_answer(apus_generator *g, const apus_generate_request *request, apus_node **answer, apus_error *err)
{
    apus_generate_request q;
    apus_take(&q, sizeof q, request);
    awaited a = {.piece = q.piece, .context = q.context, .err = err};
    uint64_t ticket = 0;
    q.size = sizeof q;
    q.piece = q.piece != NULL ? pass_piece : NULL;
    q.done = keep_answer;
    q.context = &a;
    apus_status st = apus_generator_submit(g, &q, &ticket, err);
    while (st == APUS_OK && !a.done)
        st = apus_generator_step(g, NULL, err);
    if (!a.done) {
        apus_generator_cancel(g, ticket);
        return st;
    }
    if (a.status == APUS_OK && a.answer == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (a.status == APUS_OK)
        *answer = a.answer;
    return a.status;
}
