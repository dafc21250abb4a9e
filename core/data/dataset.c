/* core/data/dataset.c: encoding all rows on several threads, the report, the cache file, splits and orders. See dataset.h. */
#include "data/dataset.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <apus/random.h>

#include "data/encode.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

struct apus_dataset {
    apus_row_store store;        /* what was encoded; or views into the map */
    const void *map;             /* the cache file; NULL: store is ours */
    size_t map_length;
    apus_node *report;
    int shuffles;
    uint32_t longest;
    uint64_t tokens;
    const apus_dataset *of;      /* a split: rows of another dataset */
    uint32_t *picked;
    size_t n_picked;
};

/* ---------------------------------------------------------------- encoding */

enum { BLOCK = 64, MAX_THREADS = 16 };

/* Rows [BLOCK*i, …) of a part, encoded by whoever comes first; results are joined in order, so threads change nothing. */
typedef struct block_result {
    apus_row_store rows, documents;
    apus_losses losses;
    apus_status status;
    apus_error error;
} block_result;

typedef struct encode_job {
    const apus_data_part *part;
    const apus_encoder *encoder;
    uint64_t first_source;
    int64_t n_blocks, next;
    block_result *blocks;
    pthread_mutex_t lock;
} encode_job;

static void encode_block(encode_job *j, int64_t b)
{
    block_result *r = &j->blocks[b];
    const int64_t end = (b + 1) * BLOCK < j->part->count ? (b + 1) * BLOCK : j->part->count;
    for (int64_t i = b * BLOCK; i < end && r->status == APUS_OK; i++) {
        apus_node *row = NULL, *example = NULL;
        int document = 0;
        const uint64_t source = j->first_source + (uint64_t)i;
        r->status = apus_data_part_row(j->part, i, &row, &r->error);
        if (r->status == APUS_OK)
            r->status = apus_data_part_example(j->part, row, &example, &r->error);
        if (r->status == APUS_OK) {
            apus_row_store *out = NODE->get(example, "text") != NULL ? &r->documents : &r->rows;
            r->status = apus_encode_example(j->encoder, example, source, out, &r->losses, &document, &r->error);
        }
        if (r->status != APUS_OK) { /* name the place in the file, where the message does not */
            char where[256], message[1024];
            NODE->where(row, where, sizeof where);
            snprintf(message, sizeof message, "%.1000s", r->error.message);
            if (where[0] != '\0' && strstr(message, where) == NULL)
                snprintf(r->error.message, sizeof r->error.message, "%s: %s", where, message);
        }
        NODE->release(row);
        NODE->release(example);
        if (HOST->stopping() && r->status == APUS_OK)
            r->status = apus_fail(&r->error, APUS_E_STOPPED, "stopped while reading the dataset");
    }
}

static void *encode_thread(void *argument)
{
    encode_job *j = argument;
    for (;;) {
        pthread_mutex_lock(&j->lock);
        const int64_t b = j->next < j->n_blocks ? j->next++ : -1;
        pthread_mutex_unlock(&j->lock);
        if (b < 0)
            return NULL;
        encode_block(j, b);
    }
}

static void merge_losses(apus_losses *to, const apus_losses *from)
{
    for (int r = 0; r < APUS_N_LOSSES; r++)
        for (uint64_t k = 0; k < from->count[r]; k++)
            apus_losses_add(to, r, k < 20 ? from->first[r][k] : 0);
}

static apus_status encode_part(const apus_data_part *p, const apus_encoder *e, uint64_t first_source, apus_row_store *out, apus_losses *losses,
                               apus_error *err)
{
    encode_job j = {.part = p, .encoder = e, .first_source = first_source, .n_blocks = (p->count + BLOCK - 1) / BLOCK,
                    .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[MAX_THREADS];
    apus_row_store documents = {0};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores, started = 0;
    j.blocks = calloc((size_t)j.n_blocks + 1, sizeof *j.blocks);
    if (j.blocks == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (n_threads > j.n_blocks)
        n_threads = (int)j.n_blocks;
    while (started + 1 < n_threads && pthread_create(&threads[started], NULL, encode_thread, &j) == 0)
        started++;
    (void)encode_thread(&j);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    apus_status st = APUS_OK;
    for (int64_t b = 0; b < j.n_blocks; b++) {
        block_result *r = &j.blocks[b];
        if (st == APUS_OK && r->status != APUS_OK) {
            st = r->status;
            if (err != NULL)
                *err = r->error;
        }
        if (st == APUS_OK)
            st = apus_row_store_append(out, &r->rows);
        if (st == APUS_OK)
            st = apus_row_store_append(&documents, &r->documents);
        merge_losses(losses, &r->losses);
        apus_row_store_free(&r->rows);
        apus_row_store_free(&r->documents);
    }
    if (st == APUS_OK && documents.n_rows > 0)
        st = apus_pack_documents(e, &documents, out, losses, err);
    apus_row_store_free(&documents);
    free(j.blocks);
    return st;
}

/* ---------------------------------------------------------------- the report */

static apus_node *losses_node(const apus_losses *l, int from, int to)
{
    apus_node *map = NODE->make_map();
    for (int r = from; r < to; r++) {
        if (l->count[r] == 0)
            continue;
        apus_node *entry = NODE->make_map(), *rows = NODE->make_list();
        for (uint64_t k = 0; k < l->count[r] && k < 20; k++)
            (void)NODE->append(rows, NODE->make_int((int64_t)l->first[r][k]));
        (void)NODE->set(entry, "count", NODE->make_int((int64_t)l->count[r]));
        (void)NODE->set(entry, "rows", rows);
        (void)NODE->set(map, apus_loss_reasons[r], entry);
    }
    return map;
}

static void measure(apus_dataset *d)
{
    d->longest = 0;
    d->tokens = 0;
    for (size_t i = 0; i < apus_dataset_rows(d); i++) {
        const apus_row r = apus_dataset_row(d, i);
        d->longest = r.n_tokens > d->longest ? r.n_tokens : d->longest;
        d->tokens += r.n_tokens;
    }
}

static apus_node *make_report(apus_dataset *d, const apus_data_part *parts, size_t n, const apus_losses *losses)
{
    apus_node *report = NODE->make_map(), *types = NODE->make_list(), *files = NODE->make_list();
    uint64_t trained = 0;
    int64_t rows_read = 0;
    measure(d);
    for (size_t i = 0; i < d->store.n_rows; i++)
        trained += d->store.rows[i].n_trained;
    for (size_t i = 0; i < n; i++) {
        rows_read += parts[i].count;
        (void)NODE->append(types, NODE->make_string(parts[i].component->name, (size_t)-1));
        if (parts[i].path != NULL)
            (void)NODE->append(files, NODE->make_string(parts[i].path, (size_t)-1));
    }
    (void)NODE->set(report, "type", types);
    (void)NODE->set(report, "files", files);
    (void)NODE->set(report, "rows_read", NODE->make_int(rows_read));
    (void)NODE->set(report, "rows", NODE->make_int((int64_t)d->store.n_rows));
    (void)NODE->set(report, "tokens", NODE->make_int((int64_t)d->tokens));
    (void)NODE->set(report, "trained_tokens", NODE->make_int((int64_t)trained));
    (void)NODE->set(report, "longest", NODE->make_int(d->longest));
    (void)NODE->set(report, "dropped", losses_node(losses, 0, APUS_LOSS_CUT));
    (void)NODE->set(report, "cut", losses_node(losses, APUS_LOSS_CUT, APUS_N_LOSSES));
    return report;
}

/* The counted lines: what was recognised, dropped, cut. */
static void say_report(const apus_dataset *d, const apus_dataset_options *o)
{
    char line[640], list[256];
    if (o->say == NULL)
        return;
    const apus_node *types = NODE->get(d->report, "type"), *files = NODE->get(d->report, "files");
    const char *type = NODE->as_string(NODE->at(types, 0), NULL), *file = NODE->as_string(NODE->at(files, 0), NULL);
    snprintf(line, sizeof line, "dataset %.300s: %s, %lld rows, %lld tokens", file != NULL ? file : "(generated)", type != NULL ? type : "?",
             (long long)NODE->as_int(NODE->get(d->report, "rows"), 0), (long long)NODE->as_int(NODE->get(d->report, "tokens"), 0));
    o->say(o->context, line);
    static const char *const kinds[2] = {"dropped", "cut"};
    for (int k = 0; k < 2; k++) {
        const apus_node *map = NODE->get(d->report, kinds[k]);
        for (size_t i = 0; i < NODE->length(map); i++) {
            const apus_node *rows = NODE->get(NODE->at(map, i), "rows");
            const int64_t count = NODE->as_int(NODE->get(NODE->at(map, i), "count"), 0);
            size_t used = 0;
            list[0] = '\0';
            for (size_t r = 0; r < NODE->length(rows) && r < 10; r++)
                used += (size_t)snprintf(list + used, sizeof list - used, "%s%lld", r ? ", " : "", (long long)NODE->as_int(NODE->at(rows, r), 0));
            snprintf(line, sizeof line, "%lld rows %s (%s): rows %s%s", (long long)count, kinds[k], NODE->key_at(map, i), list,
                     count > 10 ? ", …" : "");
            o->say(o->context, line);
        }
    }
}

/* ---------------------------------------------------------------- the cache */

/* A cache file: this header, then rows, segments, ids, trained, the report as JSON; each part at a multiple of 64 bytes. */
typedef struct cache_header {
    char magic[8];
    uint64_t n_rows, n_segments, n_tokens, report_bytes, total;
} cache_header;

static const char cache_magic[8] = "APUSTOK1";

static size_t padded(size_t n)
{
    return (n + 63) / 64 * 64;
}

static void cache_offsets(const cache_header *h, size_t at[5])
{
    at[0] = padded(sizeof *h);
    at[1] = at[0] + padded((size_t)h->n_rows * sizeof(apus_row_record));
    at[2] = at[1] + padded((size_t)h->n_segments * sizeof(apus_row_segment));
    at[3] = at[2] + padded((size_t)h->n_tokens * sizeof(int32_t));
    at[4] = at[3] + padded((size_t)h->n_tokens);
}

/* Everything that decides the rows: files, parameters, tokenizer, template. */
static apus_status cache_key(const apus_data_part *parts, size_t n, const apus_dataset_options *o, char hex[65], apus_error *err)
{
    apus_sha256 *sha = apus_sha256_new();
    char part[65];
    const char flags[3] = {'1', (char)('0' + (o->pairs != 0) + 2 * (o->apart != 0)), '\0'};
    apus_status st = APUS_OK;
    apus_sha256_add(sha, flags, 2);
    apus_sha256_add(sha, &o->seed, sizeof o->seed);
    if (o->text != NULL) {
        apus_text_key(o->text, part);
        apus_sha256_add(sha, part, 64);
    }
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        char *text = NODE->write_json(parts[i].params, 0, NULL);
        if (text != NULL)
            apus_sha256_add(sha, text, strlen(text) + 1);
        HOST->free(text);
        const apus_module *module = apus_component_module(parts[i].component);
        apus_sha256_add(sha, parts[i].component->name, strlen(parts[i].component->name) + 1);
        if (module != NULL)
            apus_sha256_add(sha, module->sha256, strlen(module->sha256));
        apus_sha256_add(sha, &parts[i].count, sizeof parts[i].count);
        if (parts[i].path != NULL && !apus_path_is_dir(parts[i].path)) {
            st = apus_sha256_file(parts[i].path, part, err);
            if (st == APUS_OK)
                apus_sha256_add(sha, part, 64);
        }
    }
    apus_sha256_end(sha, hex);
    return st;
}

static void cache_path(const char *dir, const char *key, char *path, size_t capacity)
{
    snprintf(path, capacity, "%s/tokens-%.32s.bin", dir, key);
}

/* A damaged or foreign file is as good as none: it is made anew. */
static int cache_load(apus_dataset *d, const char *path)
{
    size_t length, at[5];
    if (!apus_path_exists(path))
        return 0;
    const char *map = apus_file_map(path, &length, NULL);
    if (map == NULL)
        return 0;
    cache_header h;
    apus_row_store *s = &d->store;
    int good = length >= sizeof h;
    if (good) {
        memcpy(&h, map, sizeof h);
        good = memcmp(h.magic, cache_magic, 8) == 0 && h.total == length && h.n_rows < length && h.n_segments < length && h.n_tokens < length &&
               h.report_bytes < length;
    }
    if (good) {
        cache_offsets(&h, at);
        good = at[4] + h.report_bytes == length;
    }
    if (good) {
        s->rows = (apus_row_record *)(uintptr_t)(map + at[0]);
        s->segments = (apus_row_segment *)(uintptr_t)(map + at[1]);
        s->ids = (int32_t *)(uintptr_t)(map + at[2]);
        s->trained = (uint8_t *)(uintptr_t)(map + at[3]);
        s->n_rows = (size_t)h.n_rows;
        s->n_tokens = (size_t)h.n_tokens;
        s->n_segments = (size_t)h.n_segments;
        d->report = NODE->parse_json(map + at[4], (size_t)h.report_bytes, path, NULL);
        good = d->report != NULL;
    }
    for (size_t i = 0; i < s->n_rows && good; i++)
        good = s->rows[i].tokens + s->rows[i].n_tokens <= h.n_tokens && s->rows[i].segments + s->rows[i].n_segments <= h.n_segments;
    if (!good) {
        memset(s, 0, sizeof *s);
        apus_file_unmap(map, length);
        return 0;
    }
    d->map = map;
    d->map_length = length;
    return 1;
}

static void cache_save(const apus_dataset *d, const char *dir, const char *path)
{
    size_t report_bytes, at[5];
    char *report = NODE->write_json(d->report, 0, &report_bytes);
    const apus_row_store *s = &d->store;
    cache_header h = {.n_rows = s->n_rows, .n_segments = s->n_segments, .n_tokens = s->n_tokens, .report_bytes = report_bytes};
    memcpy(h.magic, cache_magic, 8);
    cache_offsets(&h, at);
    h.total = at[4] + report_bytes;
    char *bytes = report != NULL ? calloc(1, (size_t)h.total) : NULL;
    if (bytes != NULL) {
        memcpy(bytes, &h, sizeof h);
        memcpy(bytes + at[0], s->rows, s->n_rows * sizeof *s->rows);
        memcpy(bytes + at[1], s->segments, s->n_segments * sizeof *s->segments);
        memcpy(bytes + at[2], s->ids, s->n_tokens * sizeof *s->ids);
        memcpy(bytes + at[3], s->trained, s->n_tokens);
        memcpy(bytes + at[4], report, report_bytes);
        apus_error why = {0};
        if (apus_mkdirs(dir, &why) != APUS_OK || apus_file_write(path, bytes, (size_t)h.total, &why) != APUS_OK)
            HOST->log(APUS_LOG_WARN, "data", why.message); /* a cache that cannot be written costs time only */
    }
    free(bytes);
    HOST->free(report);
}

/* ---------------------------------------------------------------- opening */

static apus_status encode_all(apus_dataset *d, const apus_data_part *parts, size_t n, const apus_dataset_options *o, apus_error *err)
{
    apus_losses losses = {0};
    uint64_t first = 0;
    apus_status st = APUS_OK;
    for (size_t i = 0; i < n && st == APUS_OK; i++) {
        const char *train_on = NODE->as_string(NODE->get(parts[i].params, "train_on"), NULL);
        const apus_encoder e = {.text = o->text,
                                .pairs = o->pairs,
                                .apart = o->apart,
                                .max_length = NODE->as_int(NODE->get(parts[i].params, "max_length"), 2048),
                                .overlong = NODE->as_string(NODE->get(parts[i].params, "overlong"), NULL),
                                .train_last = train_on != NULL && strcmp(train_on, "last") == 0,
                                .variables = NODE->get(parts[i].params, "template_variables")};
        st = encode_part(&parts[i], &e, first, &d->store, &losses, err);
        first += (uint64_t)parts[i].count;
    }
    if (st != APUS_OK)
        return st;
    d->report = make_report(d, parts, n, &losses);
    if (d->store.n_rows == 0) {
        char why[256] = "";
        size_t used = 0;
        for (int r = 0; r < APUS_N_LOSSES && used + 80 < sizeof why; r++)
            if (losses.count[r] > 0)
                used += (size_t)snprintf(why + used, sizeof why - used, "%s%llu: %s", used ? "; " : "", (unsigned long long)losses.count[r],
                                         apus_loss_reasons[r]);
        apus_fail(err, APUS_E_INVALID, "no row of the dataset is left to train on (%s)", why);
        return apus_hint(err, APUS_E_INVALID, "raise dataset.max_length, or look at the rows with `apus preview`");
    }
    return APUS_OK;
}

apus_dataset *apus_dataset_open(const apus_node *spec, const apus_dataset_options *o, apus_error *err)
{
    apus_data_part *parts;
    size_t n;
    char key[65], path[4200];
    apus_status st = apus_data_parts_open(spec, o->seed, 1, &parts, &n, err);
    if (st != APUS_OK)
        return NULL;
    apus_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = cache_key(parts, n, o, key, err);
    if (st == APUS_OK) {
        d->shuffles = NODE->as_bool(NODE->get(parts[0].params, "shuffle"), 1);
        if (o->cache_dir != NULL)
            cache_path(o->cache_dir, key, path, sizeof path);
        if (o->cache_dir == NULL || !cache_load(d, path)) {
            st = encode_all(d, parts, n, o, err);
            if (st == APUS_OK)
                (void)NODE->set(d->report, "key", NODE->make_string(key, 64));
            if (st == APUS_OK && o->cache_dir != NULL)
                cache_save(d, o->cache_dir, path);
        }
    }
    if (st == APUS_OK) {
        measure(d);
        say_report(d, o);
    }
    apus_data_parts_close(parts, n);
    if (st != APUS_OK) {
        apus_dataset_close(d);
        return NULL;
    }
    return d;
}

void apus_dataset_close(apus_dataset *d)
{
    if (d == NULL)
        return;
    if (d->map != NULL)
        apus_file_unmap(d->map, d->map_length);
    else
        apus_row_store_free(&d->store);
    NODE->release(d->report);
    free(d->picked);
    free(d);
}

size_t apus_dataset_rows(const apus_dataset *d)
{
    return d->of != NULL ? d->n_picked : d->store.n_rows;
}

apus_row apus_dataset_row(const apus_dataset *d, size_t i)
{
    return d->of != NULL ? apus_dataset_row(d->of, d->picked[i]) : apus_row_store_get(&d->store, i);
}

uint32_t apus_dataset_longest(const apus_dataset *d)
{
    return d->longest;
}
uint64_t apus_dataset_tokens(const apus_dataset *d)
{
    return d->tokens;
}
const apus_node *apus_dataset_report(const apus_dataset *d)
{
    return d->report;
}
int apus_dataset_shuffles(const apus_dataset *d)
{
    return d->shuffles;
}

/* ---------------------------------------------------------------- orders and splits */

void apus_dataset_order(uint64_t seed, uint64_t epoch, int shuffle, size_t n, uint32_t *order)
{
    const uint32_t purpose = apus_random_purpose("shuffle");
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; shuffle && i-- > 1;) { /* Fisher and Yates */
        const size_t k = (size_t)apus_random_below(seed, purpose, (uint32_t)epoch, i, i + 1);
        const uint32_t swap = order[i];
        order[i] = order[k];
        order[k] = swap;
    }
}

static int ascending(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static apus_dataset *pick(const apus_dataset *of, const uint32_t *rows, size_t n)
{
    apus_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->of = of;
    d->shuffles = of->shuffles;
    d->n_picked = n;
    d->picked = malloc((n + 1) * sizeof *d->picked);
    if (d->picked == NULL) {
        free(d);
        return NULL;
    }
    memcpy(d->picked, rows, n * sizeof *rows);
    qsort(d->picked, n, sizeof *d->picked, ascending); /* both parts keep the file's order */
    d->report = NODE->copy(of->report);
    measure(d);
    return d;
}

apus_status apus_dataset_split(apus_dataset *d, double fraction_or_rows, uint64_t seed, apus_dataset **train, apus_dataset **eval, apus_error *err)
{
    const size_t n = apus_dataset_rows(d), take = (size_t)(fraction_or_rows < 1.0 ? fraction_or_rows * (double)n : fraction_or_rows);
    if (take == 0 || take >= n) {
        apus_fail(err, APUS_E_INVALID, "eval_split takes %zu of %zu rows: both parts need at least one", take, n);
        return apus_hint(err, APUS_E_INVALID, "a share below 1 (0.05) or a number of rows (100)");
    }
    uint32_t *order = malloc(n * sizeof *order);
    if (order == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    apus_dataset_order(seed ^ 0x73706c6974u /* "split": not the first epoch's order */, 0, 1, n, order);
    *eval = pick(d, order, take);
    *train = pick(d, order + take, n - take);
    free(order);
    return *eval != NULL && *train != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}
