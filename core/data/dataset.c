/* core/data/dataset.c: a dataset opened: its key, its rows from the cache or made, the report; splits and orders. See dataset.h. */
#include "data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include <apus/random.h>

#include "data/ingest.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE apus_nodes()
#define HOST apus_host_table()

/* Of each of `strata` stretches of n rows, one is the eval part's, the others the train part's. */
struct split {
    size_t n, strata;
    uint64_t seed;
    int eval;
};

struct apus_dataset {
    apus_row_set set;
    int shuffles;
    apus_dataset_bounds bounds;
    const apus_dataset *of; /* a part of another dataset */
    struct split split;
};

/* ---------------------------------------------------------------- the report */

static apus_node *losses_node(const apus_losses *l, int from, int to)
{
    apus_node *map = NODE->make_map();
    for (int r = from; r < to; r++) {
        if (l->count[r] == 0)
            continue;
        apus_node *entry = NODE->make_map(), *rows = NODE->make_list();
        for (uint64_t k = 0; k < l->count[r] && k < APUS_LOSSES_LISTED; k++)
            (void)NODE->append(rows, NODE->make_int((int64_t)l->first[r][k]));
        (void)NODE->set(entry, "count", NODE->make_int((int64_t)l->count[r]));
        (void)NODE->set(entry, "rows", rows);
        (void)NODE->set(map, apus_loss_reasons[r], entry);
    }
    return map;
}

static apus_node *make_report(const apus_dataset_bounds *b, const apus_data_part *parts, size_t n, const apus_losses *losses, const char *key)
{
    apus_node *report = NODE->make_map(), *types = NODE->make_list(), *files = NODE->make_list();
    int64_t rows_read = 0;
    for (size_t i = 0; i < n; i++) {
        rows_read += parts[i].given;
        (void)NODE->append(types, NODE->make_string(parts[i].component->name, (size_t)-1));
        if (parts[i].path != NULL)
            (void)NODE->append(files, NODE->make_string(parts[i].path, (size_t)-1));
    }
    (void)NODE->set(report, "type", types);
    (void)NODE->set(report, "files", files);
    (void)NODE->set(report, "rows_read", NODE->make_int(rows_read));
    (void)NODE->set(report, "rows", NODE->make_int((int64_t)b->rows));
    (void)NODE->set(report, "tokens", NODE->make_int((int64_t)b->tokens));
    (void)NODE->set(report, "trained_tokens", NODE->make_int((int64_t)b->trained));
    (void)NODE->set(report, "longest", NODE->make_int(b->longest));
    (void)NODE->set(report, "dropped", losses_node(losses, 0, APUS_LOSS_CUT));
    (void)NODE->set(report, "cut", losses_node(losses, APUS_LOSS_CUT, APUS_N_LOSSES));
    (void)NODE->set(report, "key", NODE->make_string(key, 64));
    return report;
}

/* The counted lines: what was recognised, dropped, cut. */
static void say_report(const apus_dataset *d, const apus_dataset_options *o)
{
    char line[640], list[256];
    if (o->say == NULL)
        return;
    const apus_node *types = NODE->get(d->set.report, "type"), *files = NODE->get(d->set.report, "files");
    const char *type = NODE->as_string(NODE->at(types, 0), NULL), *file = NODE->as_string(NODE->at(files, 0), NULL);
    snprintf(line, sizeof line, "dataset %.300s: %s, %lld rows, %lld tokens", file != NULL ? file : "(generated)", type != NULL ? type : "?",
             (long long)NODE->as_int(NODE->get(d->set.report, "rows"), 0), (long long)NODE->as_int(NODE->get(d->set.report, "tokens"), 0));
    o->say(o->context, line);
    static const char *const kinds[2] = {"dropped", "cut"};
    for (int k = 0; k < 2; k++) {
        const apus_node *map = NODE->get(d->set.report, kinds[k]);
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

/* ---------------------------------------------------------------- the key */

/* A folder's files, names and bytes, in the order they are read in. */
static apus_status hash_folder(apus_sha256 *sha, const char *path, apus_error *err)
{
    apus_source *s = NULL;
    apus_status st = apus_source_open(path, &s, err);
    const char *name;
    char *buffer = malloc(1 << 16);
    if (st == APUS_OK && buffer == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    int more = st == APUS_OK ? 1 : -1;
    int64_t n = 0;
    while (more > 0 && (more = apus_source_next(s, &name, err)) > 0) {
        apus_sha256_add(sha, name, strlen(name) + 1);
        while ((n = apus_source_read(s, buffer, 1 << 16, err)) > 0)
            apus_sha256_add(sha, buffer, (size_t)n);
        more = n < 0 ? -1 : 1;
    }
    if (st == APUS_OK && more < 0)
        st = apus_source_status(s);
    free(buffer);
    apus_source_close(s);
    return st;
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
        apus_sha256_add(sha, &parts[i].most, sizeof parts[i].most);
        if (parts[i].path != NULL && apus_path_is_dir(parts[i].path)) {
            st = hash_folder(sha, parts[i].path, err);
        } else if (parts[i].path != NULL) {
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

/* ---------------------------------------------------------------- opening */

static apus_status nothing_left(const apus_losses *losses, apus_error *err)
{
    char why[256] = "";
    size_t used = 0;
    for (int r = 0; r < APUS_N_LOSSES && used + 80 < sizeof why; r++)
        if (losses->count[r] > 0)
            used += (size_t)snprintf(why + used, sizeof why - used, "%s%llu: %s", used ? "; " : "", (unsigned long long)losses->count[r],
                                     apus_loss_reasons[r]);
    apus_fail(err, APUS_E_INVALID, "no row of the dataset is left to train on (%s)", why);
    return apus_hint(err, APUS_E_INVALID, "raise dataset.max_length, or look at the rows with `apus preview`");
}

/* A cache that cannot be begun costs time and memory only. */
static apus_row_sink *open_sink(const char *dir, const char *path, apus_error *err)
{
    apus_error why = {0};
    apus_row_sink *sink = dir != NULL && apus_mkdirs(dir, &why) == APUS_OK ? apus_row_sink_open(path, &why) : NULL;
    if (sink == NULL && dir != NULL)
        HOST->log(APUS_LOG_WARN, "data", why.message);
    return sink != NULL ? sink : apus_row_sink_open(NULL, err);
}

static apus_status make_rows(apus_dataset *d, apus_data_part *parts, size_t n, const apus_dataset_options *o, const char *key, const char *path,
                             apus_error *err)
{
    apus_losses losses = {0};
    uint64_t first = 0;
    apus_row_sink *sink = open_sink(o->cache_dir, path, err);
    if (sink == NULL)
        return APUS_E_MEMORY;
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
        st = apus_ingest(&parts[i], &e, first, apus_text_threads(o->threads), sink, &losses, err);
        first += (uint64_t)parts[i].given;
    }
    const apus_dataset_bounds *b = apus_row_sink_bounds(sink);
    if (st == APUS_OK && b->rows == 0)
        st = nothing_left(&losses, err);
    if (st == APUS_OK)
        return apus_row_sink_end(sink, make_report(b, parts, n, &losses, key), &d->set, err);
    apus_row_sink_abandon(sink);
    return st;
}

apus_status apus_dataset_open(const apus_node *spec, const apus_dataset_options *o, apus_dataset **dataset, apus_error *err)
{
    apus_data_part *parts;
    size_t n;
    char key[65], path[4200] = "";
    apus_status st = apus_data_parts_open(spec, o->seed, 1, &parts, &n, err);
    if (st != APUS_OK)
        return st;
    apus_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = cache_key(parts, n, o, key, err);
    if (st == APUS_OK) {
        d->shuffles = NODE->as_bool(NODE->get(parts[0].params, "shuffle"), 1);
        if (o->cache_dir != NULL)
            cache_path(o->cache_dir, key, path, sizeof path);
        if (o->cache_dir == NULL || !apus_row_set_load(&d->set, path))
            st = make_rows(d, parts, n, o, key, path, err);
    }
    if (st == APUS_OK) {
        d->bounds = d->set.bounds;
        say_report(d, o);
    }
    apus_data_parts_close(parts, n);
    if (st == APUS_OK)
        *dataset = d;
    else
        apus_dataset_close(d);
    return st;
}

void apus_dataset_close(apus_dataset *d)
{
    if (d == NULL)
        return;
    apus_row_set_close(&d->set);
    free(d);
}

/* ---------------------------------------------------------------- parts */

/* The row that stretch j begins at. */
static size_t stratum(const struct split *s, size_t j)
{
    return j * (s->n / s->strata) + j * (s->n % s->strata) / s->strata;
}

/* The row of stretch j that is the eval part's. */
static size_t eval_row(const struct split *s, size_t j)
{
    const size_t begin = stratum(s, j);
    return begin + (size_t)apus_random_below(s->seed, apus_random_purpose("split"), 0, j, stratum(s, j + 1) - begin);
}

/* Row i of the train part. */
static size_t train_row(const struct split *s, size_t i)
{
    /* Before stretch j there are stratum(j) - j of its rows: the last j for which that is not beyond i. */
    size_t j = (size_t)((double)i * (double)s->strata / (double)(s->n - s->strata));
    j = j < s->strata ? j : s->strata - 1;
    while (j > 0 && stratum(s, j) - j > i)
        j--;
    while (j + 1 < s->strata && stratum(s, j + 1) - (j + 1) <= i)
        j++;
    return i + j + (i + j >= eval_row(s, j));
}

size_t apus_dataset_rows(const apus_dataset *d)
{
    if (d->of == NULL)
        return d->set.rows.n_rows;
    return d->split.eval ? d->split.strata : d->split.n - d->split.strata;
}

apus_row apus_dataset_row(const apus_dataset *d, size_t i)
{
    if (d->of == NULL)
        return apus_row_store_get(&d->set.rows, i);
    return apus_dataset_row(d->of, d->split.eval ? eval_row(&d->split, i) : train_row(&d->split, i));
}

const apus_dataset_bounds *apus_dataset_limits(const apus_dataset *d)
{
    return &d->bounds;
}
const apus_node *apus_dataset_report(const apus_dataset *d)
{
    return d->set.report;
}
int apus_dataset_shuffles(const apus_dataset *d)
{
    return d->shuffles;
}

/* ---------------------------------------------------------------- orders, making parts */

enum { ROUNDS = 8 };

size_t apus_row_order_at(const apus_row_order *o, size_t i)
{
    if (!o->shuffle)
        return i;
    const uint32_t purpose = apus_random_purpose("shuffle");
    uint32_t bits = 0;
    while (bits < 63 && (uint64_t)1 << bits < o->n)
        bits++;
    const uint32_t low_bits = bits / 2; /* at most 31 */
    const uint64_t low_mask = ((uint64_t)1 << low_bits) - 1, high_mask = ((uint64_t)1 << (bits - low_bits)) - 1;
    uint64_t low = i & low_mask, high = (uint64_t)i >> low_bits;
    do {
        for (uint64_t r = 0; r < ROUNDS; r += 2) {
            high ^= apus_random_bits(o->seed, purpose, (uint32_t)o->epoch, r << 32 | low) & high_mask;
            low ^= apus_random_bits(o->seed, purpose, (uint32_t)o->epoch, (r + 1) << 32 | high) & low_mask;
        }
    } while ((high << low_bits | low) >= o->n);
    return (size_t)(high << low_bits | low);
}

static apus_dataset *part(const apus_dataset *of, struct split split)
{
    apus_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->of = of;
    d->shuffles = of->shuffles;
    d->split = split;
    d->set.report = NODE->copy(of->set.report);
    for (size_t i = 0, n = apus_dataset_rows(d); i < n; i++) {
        const apus_row r = apus_dataset_row(d, i);
        apus_dataset_bounds_add(&d->bounds, &r);
    }
    d->bounds.largest_id = of->bounds.largest_id;
    return d;
}

apus_status apus_dataset_split(apus_dataset *d, double fraction_or_rows, uint64_t seed, apus_dataset **train, apus_dataset **eval, apus_error *err)
{
    const size_t n = apus_dataset_rows(d), take = (size_t)(fraction_or_rows < 1.0 ? fraction_or_rows * (double)n : fraction_or_rows);
    if (take == 0 || take >= n) {
        apus_fail(err, APUS_E_INVALID, "eval_split takes %zu of %zu rows: both parts need at least one", take, n);
        return apus_hint(err, APUS_E_INVALID, "a share below 1 (0.05) or a number of rows (100)");
    }
    *eval = part(d, (struct split){n, take, seed, 1});
    *train = part(d, (struct split){n, take, seed, 0});
    return *eval != NULL && *train != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
}
