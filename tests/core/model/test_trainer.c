/*
 * A training as a stage opens it: what is on disk before a checkpoint says so, that a step allocates nothing, where its time goes, how it
 * keeps a memory limit, with and without its optimizer's states in a file,
 * and preference pairs of models whose states depend on how long a sequence is.
 */
#include "core/model/bench.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model/score.h"
#include "model/trainer.h"
#include "run/log.h"

static apus_device *device;
static char folder[512];

/* ---------------------------------------------------------------- what reached the disk, in order */

static char journal[64][600];
static size_t n_journal;

static void note(const char *what, const char *path)
{
    if (n_journal < 64)
        snprintf(journal[n_journal++], sizeof journal[0], "%s %.500s", what, path);
}

/* The host's calls come here: it is linked into this program. */
int fsync(int fd)
{
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    note("sync", path);
    return (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
    note("rename", to);
    return (int)syscall(SYS_renameat2, -100 /* AT_FDCWD */, from, -100, to, 0);
}

/* Where the first entry that begins with `what` and ends with `tail` stands; n_journal: nowhere. */
static size_t journal_find(const char *what, const char *tail)
{
    for (size_t i = 0; i < n_journal; i++) {
        const size_t n = strlen(journal[i]), k = strlen(tail);
        if (strncmp(journal[i], what, strlen(what)) == 0 && n >= k && strcmp(journal[i] + n - k, tail) == 0)
            return i;
    }
    return n_journal;
}

/* ---------------------------------------------------------------- */

static int setup(void **state)
{
    (void)state;
    apus_error err = {0};
    bench_start();
    device = bench_device("{\"type\": \"cpu\", \"threads\": 2}");
    snprintf(folder, sizeof folder, "%s/trainer.%ld", APUS_TEST_TMP, (long)getpid());
    OK(apus_remove_tree(folder, &err));
    OK(apus_mkdirs(folder, &err));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(device);
    return apus_remove_tree(folder, NULL) == APUS_OK ? 0 : -1;
}

static void write_file(const char *name, const char *text, char *path, size_t capacity)
{
    apus_error err = {0};
    snprintf(path, capacity, "%s/%s", folder, name);
    OK(apus_file_write(path, text, strlen(text), &err));
}

/* A training of the golden llama on two rows. key NULL: nothing is resumed. */
typedef struct training {
    apus_stage_context stage;
    apus_node *params;
    apus_trainer *t;
} training;

static void open_training(training *a, int batch_size, int max_steps, const char *key, int profile)
{
    apus_error err = {0};
    char rows[600], json[2048];
    write_file("rows.jsonl", "{\"input_ids\": [3, 1, 4, 1, 5, 9, 2, 6]}\n{\"input_ids\": [2, 7, 1, 8, 2, 8]}\n", rows, sizeof rows);
    snprintf(json, sizeof json,
             "{\"model\": {\"path\": \"%s/models/llama\"}, \"dataset\": {\"type\": \"tokens\", \"path\": \"%s\"}, \"tuner\": \"full\","
             " \"loss\": \"cross_entropy\", \"optimizer\": \"adamw\", \"schedule\": \"constant\", \"batch_size\": %d, \"max_steps\": %d}",
             APUS_TEST_GOLDEN, rows, batch_size, max_steps);
    *a = (training){.params = bench_parse(json)};
    a->stage =
        (apus_stage_context){.run_dir = folder, .stage_dir = folder, .name = "train", .seed = 1, .device = device, .key = key, .profile = profile};
    const apus_tracker_run run = {.size = sizeof run, .run_dir = folder, .stage_dir = folder, .stage = "train", .stage_type = "train"};
    OK(apus_stage_log_open(NULL, &run, &a->stage.log, &err));
    OK(apus_trainer_open(&a->stage, a->params, &a->t, &err));
}

static void close_training(training *a)
{
    apus_trainer_close(a->t);
    apus_stage_log_close(a->stage.log, APUS_OK);
    NODE->release(a->params);
}

/* A checkpoint says how long events.jsonl is: after a power loss that much must be there, so it is synced before the checkpoint gets
 * its name; as are the checkpoint's own files. */
static void synced_before_named(void **state)
{
    (void)state;
    apus_error err = {0};
    training a;
    open_training(&a, 1, 2, "k", 0);
    OK(apus_trainer_step(a.t, &err));
    n_journal = 0;
    OK(apus_trainer_checkpoint(a.t, &err));
    const size_t named = journal_find("rename", "/checkpoint-1");
    assert_true(named < n_journal);
    static const char *const before[] = {"/events.jsonl", "/checkpoint-1.tmp/tensors.bin", "/checkpoint-1.tmp"};
    for (size_t i = 0; i < sizeof before / sizeof before[0]; i++)
        if (journal_find("sync", before[i]) >= named)
            fail_msg("%s is not synced before the checkpoint has its name", before[i]);
    assert_true(journal_find("rename", "/checkpoint-1.tmp/state.json") < named);
    assert_true(journal_find("rename", "/checkpoint-1.tmp/manifest.json") < named);
    assert_true(named + 1 < n_journal); /* and the name itself */
    assert_string_equal(journal[named + 1] + strlen("sync "), folder);
    close_training(&a);
}

/* ---------------------------------------------------------------- what a step allocates */

#if !defined(APUS_TEST_SANITIZED)
static atomic_int counting, allocated;

#define REAL(name, result, parameters)                                                                                                               \
    static result(*real) parameters;                                                                                                                 \
    if (real == NULL)                                                                                                                                \
        *(void **)&real = dlsym(RTLD_NEXT, name);                                                                                                    \
    allocated += counting

/* Calls of the host, its plugins and their libraries come here. */
void *malloc(size_t n)
{
    REAL("malloc", void *, (size_t));
    return real(n);
}

void *realloc(void *p, size_t n)
{
    REAL("realloc", void *, (void *, size_t));
    return real(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    REAL("aligned_alloc", void *, (size_t, size_t));
    return real(alignment, n);
}

int posix_memalign(void **p, size_t alignment, size_t n)
{
    REAL("posix_memalign", int, (void **, size_t, size_t));
    return real(p, alignment, n);
}

void *calloc(size_t n, size_t size)
{
    REAL("calloc", void *, (size_t, size_t));
    return real(n, size);
}
#endif

/* Once it has run, a step's arithmetic asks nobody for memory: forward, backward, the gradients' norm and the optimizer. */
static void steps_allocate_nothing(void **state)
{
    (void)state;
#if defined(APUS_TEST_SANITIZED)
    printf("skipped: model/trainer, allocations of a step: a sanitizer has the allocator\n");
#else
    apus_error err = {0};
    training a;
    open_training(&a, 2, 6, NULL, 0);
    OK(apus_trainer_step(a.t, &err));
    counting = 1;
    HOST->free(HOST->alloc(1)); /* the host's come here */
    const int seen = allocated;
    apus_objective_sums sums = {0}, counts = {0};
    double norm;
    const apus_status st[] = {apus_objective_count(&a.t->train, &a.t->batch, &counts, &err), apus_objective_scale(&a.t->train, &counts, &err),
                              apus_objective_run(&a.t->train, &a.t->batch, &sums, &err), apus_updater_norm(&a.t->updater, &norm, &err),
                              apus_updater_step(&a.t->updater, 1e-3, 2, 1.0, &err)};
    counting = 0;
    for (size_t i = 0; i < sizeof st / sizeof st[0]; i++)
        assert_int_equal(st[i], APUS_OK);
    assert_int_equal(seen, 1);
    assert_int_equal(allocated, seen);
    assert_true(isfinite(norm) && norm > 0.0);
    close_training(&a);
#endif
}

/* ---------------------------------------------------------------- where the time goes */

static apus_node *read_json(const char *name)
{
    apus_error err = {0};
    char path[600];
    size_t n;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *text = apus_file_read(path, 0, &n, &err);
    apus_node *node = text != NULL ? NODE->parse_json(text, n, path, &err) : NULL;
    if (node == NULL)
        fail_msg("%s", err.message);
    HOST->free(text);
    return node;
}

/* Six steps; the loss of the last. */
static double train(int profile)
{
    apus_error err = {0};
    training a;
    open_training(&a, 2, 6, NULL, profile);
    for (int i = 0; i < 6; i++)
        OK(apus_trainer_step(a.t, &err));
    OK(apus_trainer_checkpoint(a.t, &err));
    close_training(&a);

    char path[600];
    size_t n;
    double loss = NAN;
    int tables = 0;
    snprintf(path, sizeof path, "%s/events.jsonl", folder);
    char *text = apus_file_read(path, 0, &n, &err);
    assert_non_null(text);
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        apus_node *e = bench_parse(line);
        const apus_node *table = NODE->get(e, "profile"), *ops = NODE->get(table, "ops");
        double share = 0.0;
        for (size_t i = 0; i < NODE->length(ops); i++)
            share += number(NODE->at(ops, i), "share");
        if (table != NULL) {
            tables++;
            assert_true(fabs(share - 1.0) < 1e-6);
            assert_int_equal(number(table, "steps"), 3);
        } else {
            loss = number(e, "loss");
            assert_true(number(e, "data_seconds") >= 0.0);
        }
        NODE->release(e);
    }
    HOST->free(text);
    assert_int_equal(tables, profile);
    return loss;
}

static int64_t trace_time(const apus_node *event, const char *key)
{
    return llround(number(event, key) * 1000.0);
}

/* The Trace Event Format, as viewers read it: of every event a name, a phase and a process; of complete ones a thread, a category and times
 * in microseconds, here to the nanosecond; those of a thread lie beside each other or one inside the other. */
static void check_trace(const apus_node *trace)
{
    const apus_node *events = NODE->get(trace, "traceEvents");
    assert_true(NODE->length(events) > 2);
    assert_string_equal(NODE->as_string(NODE->get(trace, "displayTimeUnit"), NULL), "ms");
    for (size_t i = 0; i < NODE->length(events); i++) {
        const apus_node *e = NODE->at(events, i);
        const char *phase = NODE->as_string(NODE->get(e, "ph"), NULL);
        assert_non_null(NODE->as_string(NODE->get(e, "name"), NULL));
        assert_non_null(NODE->get(e, "pid"));
        if (strcmp(phase, "M") == 0) {
            assert_non_null(NODE->as_string(NODE->get(NODE->get(e, "args"), "name"), NULL));
            continue;
        }
        assert_string_equal(phase, "X");
        assert_non_null(NODE->as_string(NODE->get(e, "cat"), NULL));
        assert_true(number(e, "ts") >= 0.0 && number(e, "dur") >= 0.0 && number(e, "dur") < 1e9);
        const int64_t begin = trace_time(e, "ts"), end = begin + trace_time(e, "dur");
        for (size_t k = 0; k < i; k++) {
            const apus_node *o = NODE->at(events, k);
            if (NODE->get(o, "ts") == NULL || number(o, "tid") != number(e, "tid"))
                continue;
            const int64_t other = trace_time(o, "ts"), its_end = other + trace_time(o, "dur");
            assert_true(end <= other || its_end <= begin || (other <= begin && end <= its_end) || (begin <= other && its_end <= end));
        }
    }
}

/* A trace holds every operation of steps 2 to 4, each inside its step, and what comes later of checkpoints; it changes no number. */
static void profiles(void **state)
{
    (void)state;
    apus_error err = {0};
    char path[600];
    snprintf(path, sizeof path, "%s/trace.json", folder);
    const double loss = train(0);
    assert_false(apus_path_exists(path));
    assert_true(train(1) == loss);
    apus_node *trace = read_json("trace.json");
    check_trace(trace);
    const apus_node *events = NODE->get(trace, "traceEvents");
    double begin[3] = {0}, end[3] = {0};
    int steps = 0, products = 0, checkpoints = 0, waits = 0;
    for (size_t i = 0; i < NODE->length(events); i++) {
        const apus_node *e = NODE->at(events, i);
        if (strcmp(NODE->as_string(NODE->get(e, "name"), NULL), "step") == 0 && steps < 3) {
            begin[steps] = number(e, "ts");
            end[steps++] = number(e, "ts") + number(e, "dur");
        }
    }
    assert_int_equal(steps, 3);
    for (size_t i = 0; i < NODE->length(events); i++) {
        const apus_node *e = NODE->at(events, i), *args = NODE->get(e, "args");
        const char *name = NODE->as_string(NODE->get(e, "name"), NULL);
        if (strcmp(NODE->as_string(NODE->get(e, "ph"), NULL), "X") != 0)
            continue;
        int inside = 0;
        for (int k = 0; k < 3; k++)
            inside |= number(e, "ts") >= begin[k] - 0.0005 && number(e, "ts") + number(e, "dur") <= end[k] + 0.0005;
        checkpoints += strcmp(name, "checkpoint") == 0;
        waits += strcmp(name, "data") == 0;
        assert_true(inside || strcmp(name, "checkpoint") == 0);
        if (strcmp(name, "apus.linear_dw/1") == 0) {
            products++;
            assert_true(number(args, "gflops") > 0.0);
            assert_non_null(strstr(NODE->as_string(NODE->get(args, "shapes"), NULL), "] -> ["));
        }
    }
    assert_true(products >= 3 && products % 3 == 0);
    assert_int_equal(checkpoints, 1);
    assert_int_equal(waits, 6); /* in each of three steps: the rows counted, the rows trained */
    NODE->release(trace);
    OK(apus_remove_tree(path, &err));
}

/* ---------------------------------------------------------------- a memory limit */

typedef struct fitted {
    apus_status status;
    apus_error error;
    apus_training_memory memory;
    apus_layout layout;
    int64_t tokens; /* of a micro-batch, at most */
    double loss;    /* of the third step */
} fitted;

/* Three steps of a small decoder with preference pairs or plain rows, evaluated too; limit 0: none. more: parameters, ", …". */
static fitted fit_with(int64_t limit, int batch_size, int pairs, const char *more)
{
    fitted f = {.loss = NAN};
    apus_error err = {0};
    char rows[600], json[4096], text[4096] = "";
    for (int r = 0; r < 8; r++) {
        const size_t n = strlen(text);
        snprintf(text + n, sizeof text - n,
                 pairs ? "{\"prompt\": \"What is %d? \", \"chosen\": \"It is a number, and a good one.\", \"rejected\": \"I will not tell.\"}\n"
                       : "{\"prompt\": \"What is %d? \", \"completion\": \"It is a number that comes before another, and after one.\"}\n",
                 r);
    }
    write_file("fit.jsonl", text, rows, sizeof rows);
    snprintf(json, sizeof json,
             "{\"model\": {\"arch\": \"decoder\", \"tokenizer\": \"%s/../../configs/byte-tokenizer\", \"config\": {\"model_type\": \"llama\","
             " \"vocab_size\": 257, \"hidden_size\": 32, \"intermediate_size\": 96, \"num_hidden_layers\": 6, \"num_attention_heads\": 4,"
             " \"num_key_value_heads\": 2, \"initializer_range\": 0.2, \"eos_token_id\": 256}},"
             " \"dataset\": {\"path\": \"%s\", \"max_length\": 200}, \"eval_dataset\": {\"path\": \"%s\", \"max_length\": 200}, \"tuner\": \"full\","
             " \"loss\": \"%s\", \"optimizer\": {\"type\": \"adamw\", \"learning_rate\": 1e-3}, \"schedule\": \"constant\","
             " \"recompute\": \"none\", \"batch_size\": %d, \"max_steps\": 3%s}",
             APUS_TEST_GOLDEN, rows, rows, pairs ? "dpo" : "cross_entropy", batch_size, more);
    apus_node *params = bench_parse(json);
    apus_stage_context stage = {.run_dir = folder, .stage_dir = folder, .name = "train", .seed = 1, .device = device, .memory_limit = limit};
    const apus_tracker_run run = {.size = sizeof run, .run_dir = folder, .stage_dir = folder, .stage = "train", .stage_type = "train"};
    OK(apus_stage_log_open(NULL, &run, &stage.log, &err));
    apus_trainer *t = NULL;
    f.status = apus_trainer_open(&stage, params, &t, &f.error);
    if (f.status == APUS_OK) {
        f.memory = apus_trainer_memory(t);
        f.layout = t->layout;
        f.tokens = t->batch.capacity[0];
        for (int i = 0; i < 3; i++)
            OK(apus_trainer_step(t, &err));
        OK(apus_trainer_evaluate(t, &err));
        f.loss = t->best_eval;
    }
    apus_trainer_close(t);
    apus_stage_log_close(stage.log, APUS_OK);
    NODE->release(params);
    return f;
}

static fitted fit(int64_t limit, int batch_size, int pairs)
{
    return fit_with(limit, batch_size, pairs, "");
}

/* States in a file move no bit and are no memory. What was a file's is gone with the training. */
static void offloads_states(void **state)
{
    static const char offload[] = ", \"offload_optimizer\": true";
    (void)state;
    const fitted kept = fit(0, 4, 0), away = fit_with(0, 4, 0, offload);
    if (away.status != APUS_OK)
        fail_msg("%s", away.error.message);
    assert_true(away.loss == kept.loss);
    assert_true(kept.memory.states > 0 && kept.memory.offloaded == 0);
    assert_true(away.memory.states == 0 && away.memory.offloaded == kept.memory.states);
    assert_true(away.memory.total == kept.memory.total - kept.memory.states);
    const int64_t limit = (int64_t)(kept.memory.total - kept.memory.activations - 1); /* the states alone are too much */
    const fitted refused = fit(limit, 4, 0), fits = fit_with(limit, 4, 0, offload);
    assert_int_equal(refused.status, APUS_E_MEMORY);
    assert_non_null(strstr(refused.error.hint, "offload_optimizer"));
    assert_int_equal(fits.status, APUS_OK);
    assert_true(fabs(fits.loss - kept.loss) < 1e-5 * fabs(kept.loss));
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        assert_null(strstr(e->d_name, "scratch"));
    closedir(d);
}

/* The limit is kept by computing again where that is the only way, which moves no bit; or by cutting, which moves rounding alone. */
static void fits_the_limit(void **state)
{
    (void)state;
    for (int pairs = 0; pairs < 2; pairs++) {
        const fitted one = fit(0, 1, pairs), four = fit(0, 4, pairs);
        assert_int_equal(one.status, APUS_OK);
        assert_int_equal(one.layout.recompute, APUS_RECOMPUTE_NONE);
        const uint64_t rest = one.memory.total - one.memory.activations;
        assert_true(pairs == (one.memory.reference > 0) && one.memory.states == 2 * one.memory.gradients);
        int kinds = 0, last = 0;
        for (int share = 9; share >= 6; share--) { /* one row cannot be cut */
            const fitted f = fit((int64_t)(rest + one.memory.activations * (uint64_t)share / 10), 1, pairs);
            if (f.status != APUS_OK)
                fail_msg("%d tenths: %s", share, f.error.message);
            assert_true(f.memory.total <= rest + one.memory.activations * (uint64_t)share / 10);
            assert_true(f.layout.recompute > APUS_RECOMPUTE_BLOCK && f.layout.recompute >= last);
            kinds += f.layout.recompute != last;
            last = f.layout.recompute;
            assert_true(f.loss == one.loss);
        }
        assert_true(kinds >= 2); /* no more than is needed */
        const fitted cut = fit((int64_t)(rest + four.memory.activations / 2), 4, pairs);
        assert_int_equal(cut.status, APUS_OK);
        assert_true(cut.memory.total <= rest + four.memory.activations / 2 && cut.tokens < four.tokens);
        assert_true(fabs(cut.loss - four.loss) < 1e-5 * fabs(four.loss));
        const fitted none = fit((int64_t)(rest + one.memory.activations / 20), 1, pairs);
        assert_int_equal(none.status, APUS_E_MEMORY);
        assert_non_null(strstr(none.error.message, "needs at least"));
        /* What is said to be enough is. */
        const char *least = strstr(none.error.message, "at least ") + strlen("at least ");
        const double unit = strncmp(strchr(least, ' '), " MiB", 4) == 0 ? 1048576.0 : 1024.0;
        assert_int_equal(fit((int64_t)((strtod(least, NULL) + 0.06) * unit), 1, pairs).status, APUS_OK);
        assert_int_equal(fit((int64_t)((strtod(least, NULL) - 0.06) * unit), 1, pairs).status, APUS_E_MEMORY);
    }
}

/* ---------------------------------------------------------------- pairs */

static const char *const pair_rows =
    "{\"prompt\": \"Say it. \", \"chosen\": \"a much longer answer, past what the model was made for\", \"rejected\": \"no\"}\n"
    "{\"prompt\": \"And now something that is long in itself: \", \"chosen\": \"yes\", \"rejected\": \"never in all the years\"}\n";

/* What training sees of each answer is what the answer's whole text scores alone. */
static void pair_case(const char *rope, int shares)
{
    apus_error err = {0};
    char rows[600], json[4096];
    write_file("pairs.jsonl", pair_rows, rows, sizeof rows);
    snprintf(json, sizeof json,
             "{\"arch\": \"decoder\", \"tokenizer\": \"%s/../../configs/byte-tokenizer\", \"config\": {\"model_type\": \"llama\","
             " \"vocab_size\": 257, \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
             " \"num_key_value_heads\": 2, \"initializer_range\": 0.2, \"eos_token_id\": 256%s}}",
             APUS_TEST_GOLDEN, rope);
    const apus_model_options options = {.device = device, .seed = 5};
    apus_model *m = bench_model(json, &options);
    snprintf(json, sizeof json, "{\"path\": \"%s\", \"type\": \"preference\", \"max_length\": 200, \"shuffle\": false}", rows);
    apus_node *spec = bench_parse(json), *loss_spec = bench_parse("{\"type\": \"dpo\", \"reference\": \"precomputed\"}");
    const apus_dataset_options how = {.text = m->text, .pairs = 1, .apart = m->facts.length_dependent, .seed = 1};
    apus_dataset *d;
    OK(apus_dataset_open(spec, &how, &d, &err));
    assert_int_equal(apus_dataset_rows(d), 2);

    apus_loss loss;
    apus_objective o;
    apus_batch b;
    int64_t capacity[APUS_N_DIM_SYMBOLS];
    const apus_row_order in_order = {.n = 2};
    const apus_dataset *const sets[1] = {d};
    const apus_objective_options forward = {0};
    OK(apus_loss_open(&loss, loss_spec, &err));
    apus_batch_capacity(sets, 1, 1, 1024, capacity);
    OK(apus_batch_init(&b, capacity, 1024, &err));
    OK(apus_objective_open(&o, m, &loss, &forward, capacity, &err));
    for (uint32_t i = 0; i < 2; i++) {
        const apus_row r = apus_dataset_row(d, i);
        apus_objective_sums sums = {0};
        assert_int_equal(r.n_segments, shares ? 3 : 2);
        assert_int_equal(apus_batch_fill(&b, d, &in_order, i, i + 1, 0), 1);
        OK(apus_objective_run(&o, &b, &sums, &err));
        for (uint32_t a = 0; a < 2; a++) {
            int32_t ids[200];
            double logprobs[200], sum = 0.0, got = NAN;
            size_t n = 0, prompt = r.segments[0].count;
            for (uint32_t k = 0; k < r.n_segments; k++) /* the prompt, then this answer; or both at once */
                if (r.segments[k].answer == (int32_t)a || r.segments[k].answer < 0)
                    for (uint32_t t = 0; t < r.segments[k].count; t++)
                        ids[n++] = r.ids[r.segments[k].begin + t];
            for (uint32_t t = 0; !shares && t <= r.segments[0].count; t++)
                if (r.trained[t]) {
                    prompt = t;
                    break;
                }
            OK(apus_model_score(m, ids, n, logprobs, NULL, &err));
            for (size_t t = prompt; t < n; t++)
                sum += logprobs[t - 1];
            for (size_t k = 0; k < o.context.n_metrics; k++)
                if (strcmp(o.context.metric_names[k], a == 0 ? "logps/chosen" : "logps/rejected") == 0)
                    got = sums.metric_sum[k];
            if (!(fabs(got - sum) < 2e-4))
                fail_msg("row %u, answer %u: %.6f in the pair, %.6f alone", i, a, got, sum);
        }
    }
    apus_objective_close(&o);
    apus_batch_free(&b);
    apus_loss_close(&loss);
    apus_dataset_close(d);
    apus_model_close(m);
    NODE->release(spec);
    NODE->release(loss_spec);
}

static void pairs(void **state)
{
    (void)state;
    pair_case(", \"max_position_embeddings\": 200", 1);
    pair_case(
        ", \"max_position_embeddings\": 200, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 24}",
        1);
    pair_case(", \"max_position_embeddings\": 24, \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}", 0);
    pair_case(", \"max_position_embeddings\": 200, \"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 4.0, "
              "\"original_max_position_embeddings\": 24,"
              " \"short_factor\": [1.0, 1.1, 1.2, 1.3], \"long_factor\": [1.0, 2.0, 3.0, 4.0]}",
              0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(synced_before_named), cmocka_unit_test(steps_allocate_nothing), cmocka_unit_test(profiles),
                                       cmocka_unit_test(fits_the_limit),      cmocka_unit_test(offloads_states),        cmocka_unit_test(pairs)};
    return cmocka_run_group_tests_name("model/trainer", tests, setup, teardown);
}
