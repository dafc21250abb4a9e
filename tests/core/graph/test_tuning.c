/*
 * Which table's kernels run: the backend's own, another's for what that lacks, in trainings what a tuning file says; kernels whose rows vary
 * nowhere else. What a tuning file must not be is refused, with the reason.
 */
#include "core/graph/bed.h"

#include "io/io.h"

enum { TOKENS = 200, WIDE = 64 };

static const apus_plugin my_plugin = {.name = "mine", .version = "1.0.0"}, their_plugin = {.name = "theirs", .version = "2.0.0"};
static const apus_module my_module = {.path = "mine", .sha256 = "", .plugin = &my_plugin},
                         their_module = {.path = "theirs", .sha256 = "", .plugin = &their_plugin};
static int their_calls, opened, closed;
static void *instance_seen;
static apus_backend_facts facts_seen;

/* ---------------------------------------------------------------- the tables */

/* Quick, and easy to tell. */
static apus_status their_linear(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    double *y = c->out[0].data;
    their_calls++;
    instance_seen = c->backend;
    for (int64_t i = 0; i < c->out[0].dims[0] * c->out[0].dims[1]; i++)
        y[i] = 7.0;
    return APUS_OK;
}

static apus_status their_tanh(const apus_kernel_call *c, apus_error *err)
{
    (void)err;
    instance_seen = c->backend;
    for (int64_t i = 0; i < c->out[0].dims[0]; i++)
        ((double *)c->out[0].data)[i] = tanh(((const double *)c->in[0].data)[i]);
    return APUS_OK;
}

static apus_status their_open(const apus_host *host, const apus_backend_facts *facts, void **instance, apus_error *err)
{
    (void)host;
    (void)err;
    facts_seen = *facts;
    opened++;
    *instance = &opened;
    return APUS_OK;
}

static void their_close(void *instance)
{
    assert_ptr_equal(instance, &opened);
    closed++;
}

static const char *their_description(void *instance)
{
    (void)instance;
    return "library 3";
}

static apus_status never_open(const apus_host *host, const apus_backend_facts *facts, void **instance, apus_error *err)
{
    (void)host;
    (void)facts;
    (void)instance;
    return apus_fail(err, APUS_E_UNSUPPORTED, "not on a %s", "toy");
}

static void my_facts(void *backend, apus_backend_facts *facts)
{
    (void)backend;
    *facts = (apus_backend_facts){.size = facts->size, .threads = 3, .products = APUS_F64, .hardware = "a toy"};
}

static apus_device *open_mine(void)
{
    apus_error err = {0};
    apus_backend_ops ops = *(const apus_backend_ops *)apus_component_find("backend", "ref", &err)->ops;
    apus_device *d = NULL;
    ops.facts = my_facts;
    if (apus_device_wrap("mine", &my_module, &ops, NULL, &d, &err) != APUS_OK)
        fail_msg("%s", err.message);
    return d;
}

static apus_device *ref;

static int setup(void **state)
{
    static const apus_kernel theirs[] = {{.size = sizeof(apus_kernel), .op = "apus.linear/1", .flags = APUS_KERNEL_ROWS_VARY, .run = their_linear},
                                         {.size = sizeof(apus_kernel), .op = "apus.rms_norm/1", .run = their_linear},
                                         {.size = sizeof(apus_kernel), .op = "apus.sum_rows/1", .flags = APUS_KERNEL_ROWS_VARY, .run = their_linear},
                                         {.size = sizeof(apus_kernel), .op = "apus.tanh/1", .run = their_tanh}};
    static apus_kernel mine[200];
    apus_error err = {0};
    uint32_t n = 0;
    (void)state;
    ref = bed_ref();
    for (size_t i = 0; i < apus_kernel_count(); i++) {
        mine[n] = apus_kernel_at(i)->kernel;
        mine[n].size = sizeof mine[n];
        n += strcmp(mine[n].op, "apus.tanh/1") != 0 && strcmp(mine[n].op, "apus.sum_rows/1") != 0;
    }
    const apus_kernels_ops my_table = {.size = sizeof my_table, .backend = "mine", .real = APUS_F64, .kernels = mine, .n_kernels = n};
    const apus_kernels_ops their_table = {.size = sizeof their_table,
                                          .backend = "mine",
                                          .real = APUS_F64,
                                          .kernels = theirs,
                                          .n_kernels = 4,
                                          .open = their_open,
                                          .close = their_close,
                                          .describe = their_description};
    const apus_kernels_ops no_table = {
        .size = sizeof no_table, .backend = "mine", .real = APUS_F64, .kernels = theirs, .n_kernels = 1, .open = never_open, .close = their_close};
    const apus_kernels_ops half_table = {.size = sizeof half_table, .backend = "mine", .real = APUS_F64, .kernels = theirs, .open = never_open};
    assert_int_equal(apus_kernels_add("mine", &my_module, &my_table, &err), APUS_OK);
    assert_int_equal(apus_kernels_add("theirs", &their_module, &their_table, &err), APUS_OK);
    assert_int_equal(apus_kernels_add("nobodys", &their_module, &no_table, &err), APUS_OK);
    assert_int_equal(apus_kernels_add("half", &their_module, &half_table, &err), APUS_E_INVALID);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_device_close(ref);
    return 0;
}

/* ---------------------------------------------------------------- a graph: y = tanh(x W^T) */

static double weights[WIDE * WIDE];

static apus_plan *plan_of(bed *b, apus_device *d, int tuned)
{
    bed_begin(b, 5);
    b->extents[0] = TOKENS;
    if (tuned)
        apus_graph_tune(b->g);
    const apus_tensor x = bed_real(b, 2, DIMS(APUS_DIM_TOKENS, WIDE), -1, 1), w = apus_graph_variable(b->g, "w", APUS_REAL, 2, DIMS(WIDE, WIDE));
    const apus_tensor y = apus_tanh(b->g, apus_matmul(b->g, x, w));
    apus_plan *p = bed_plan(b, d, &y, 1, APUS_RECOMPUTE_NONE);
    bed_bind(p, "w", weights);
    return p;
}

/* 1: the linear of such a plan is theirs. */
static int is_theirs(apus_device *d, int tuned)
{
    bed b;
    size_t n;
    apus_plan *p = plan_of(&b, d, tuned);
    their_calls = 0;
    bed_run(&b, p);
    double *y = bed_output(p, 0, &n);
    assert_int_equal(n, TOKENS * WIDE);
    assert_true(fabs(y[n - 1] - (their_calls ? tanh(7.0) : 0.0)) < 1e-12); /* W is zero */
    free(y);
    apus_plan_free(p);
    bed_end(&b);
    return their_calls;
}

static void own_kernels_come_first(void **state)
{
    (void)state;
    opened = closed = 0;
    apus_device *d = open_mine();
    assert_int_equal(opened, 1);
    assert_int_equal(facts_seen.threads, 3);
    assert_string_equal(facts_seen.hardware, "a toy");
    assert_int_equal(is_theirs(d, 0), 0);
    assert_ptr_equal(instance_seen, &opened); /* tanh is theirs: the backend has none */
    assert_int_equal(is_theirs(d, 1), 0);
    assert_string_equal(apus_device_choose(d, apus_op_find("apus.rms_norm/1"), NULL, NULL, APUS_REAL)->table->name, "mine");
    assert_null(apus_device_choose(d, apus_op_find("apus.sum_rows/1"), NULL, NULL, APUS_REAL)); /* its rows vary, and no file names it */
    apus_device_close(d);
    assert_int_equal(closed, 1);
}

/* ---------------------------------------------------------------- files */

static const char path[] = APUS_TEST_TMP "/test.tuning.yaml";
static const char good[] =
    "version: 1\nbackend: mine\nhardware: a toy\nthreads: 3\nproducts: F64\ntables: {mine: mine 1.0.0, theirs: \"theirs 2.0.0, library 3\"}\n"
    "choices:\n  - {op: apus.linear/1, shapes: \"[T,64] [64,64]\", rows: 256, use: theirs, seconds: {mine: 2e-3, theirs: 1e-3}}\n";

static apus_status read_text(apus_device *d, const char *text, apus_error *err)
{
    assert_int_equal(apus_file_write(path, text, strlen(text), err), APUS_OK);
    *err = (apus_error){.message = ""};
    apus_tuning_free(d->tuning);
    d->tuning = NULL;
    return apus_tuning_read(path, d, &d->tuning, err);
}

static void a_file_chooses_in_trainings(void **state)
{
    (void)state;
    const apus_node_api *api = apus_nodes();
    apus_error err;
    apus_device *d = open_mine();
    if (read_text(d, good, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(is_theirs(d, 0), 0);
    assert_int_equal(is_theirs(d, 1), 1);
    bed b;
    apus_plan *p = plan_of(&b, d, 1);
    apus_node *told = apus_plan_describe(p);
    const apus_node *tuning = api->get(told, "tuning");
    assert_int_equal(strlen(api->as_string(api->get(tuning, "sha256"), NULL)), 64);
    assert_string_equal(api->as_string(api->at(api->get(api->get(tuning, "kernels"), "theirs"), 0), NULL),
                        "apus.linear/1 [T,64] [64,64], up to 256 rows");
    assert_int_equal(api->length(api->get(tuning, "own")), 0);
    api->release(told);
    apus_plan_free(p);
    bed_end(&b);

    char other[sizeof good]; /* of other rows: the own one, and it is told */
    memcpy(other, good, sizeof good);
    static const char twice[] = {'5', '1', '2'};
    memcpy(strstr(other, "rows: 256") + strlen("rows: "), twice, sizeof twice);
    assert_int_equal(read_text(d, other, &err), APUS_OK);
    assert_int_equal(is_theirs(d, 1), 0);
    p = plan_of(&b, d, 1);
    told = apus_plan_describe(p);
    assert_int_equal(api->length(api->get(api->get(told, "tuning"), "own")), 1);
    api->release(told);
    apus_plan_free(p);
    bed_end(&b);
    apus_device_close(d);
}

static void what_is_wrong_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *says;
        apus_status status;
    } wrongs[] = {
        {"threads: 3", "threads: 4", "made with threads: 4, this run has 3", APUS_E_UNSUPPORTED},
        {"a toy", "a Cray", "made on a Cray, this run has a toy", APUS_E_UNSUPPORTED},
        {"F64", "F32", "made with products in F32, this run has F64", APUS_E_UNSUPPORTED},
        {"backend: mine", "backend: ref", "made for backend ref, this run has mine", APUS_E_UNSUPPORTED},
        {"library 3", "library 4", "made with kernels theirs of 'theirs 2.0.0, library 4', here they are 'theirs 2.0.0, library 3'",
         APUS_E_UNSUPPORTED},
        {"theirs: \"theirs 2.0.0, library 3\"", "strange: x", "it names kernels 'strange', and no plugin brings such for backend mine",
         APUS_E_UNSUPPORTED},
        {"mine: mine 1.0.0", "nobodys: x", "kernels nobodys do not serve this backend: not on a toy", APUS_E_UNSUPPORTED},
        {"apus.linear/1", "apus.linear_dw/1", "kernels theirs have none for apus.linear_dw/1", APUS_E_UNSUPPORTED},
        {"apus.linear/1", "apus.lienar/1", "no op is named 'apus.lienar/1'", APUS_E_INVALID},
        {"use: theirs", "use: strange", "'strange' is none of the file's tables", APUS_E_INVALID},
        {"rows: 256", "rows: many", ":8:57: 'rows' of a choice of a tuning file: expected a whole number", APUS_E_INVALID},
        {"rows: 256, ", "", "needs 'rows'", APUS_E_INVALID},
        {"use: ", "uses: ", "unknown key 'uses'", APUS_E_INVALID},
        {"version: 1", "version: 2", "'version' of a tuning file: expected a whole number from 1 to 1", APUS_E_INVALID},
        {"tables: {", "tables: [", "", APUS_E_INVALID},
        {"choices:\n", "choices: x\nmore:\n", "unknown key 'more'", APUS_E_INVALID},
    };
    apus_error err;
    apus_device *d = open_mine();
    for (size_t i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) {
        char text[2 * sizeof good];
        const char *at = strstr(good, wrongs[i].from);
        assert_non_null(at);
        (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, wrongs[i].to, at + strlen(wrongs[i].from));
        const apus_status st = read_text(d, text, &err);
        if (st != wrongs[i].status || strstr(err.message, wrongs[i].says) == NULL || strchr(err.message, '\n') != NULL)
            fail_msg("%s instead of %s: status %d: %s", wrongs[i].to, wrongs[i].from, (int)st, err.message);
        assert_non_null(strstr(err.message, path));
    }
    char twice[2 * sizeof good];
    (void)snprintf(twice, sizeof twice, "%s%s", good, strstr(good, "  - {"));
    assert_int_equal(read_text(d, twice, &err), APUS_E_INVALID);
    assert_non_null(strstr(err.message, "chosen twice"));
    assert_int_equal(apus_tuning_read(APUS_TEST_TMP "/none.yaml", d, &d->tuning, &err), APUS_E_INVALID);
    assert_int_equal(apus_tuning_read(path, ref, &ref->tuning, &err), APUS_E_UNSUPPORTED); /* a backend that tells nothing of itself */
    apus_device_close(d);
}

/* ---------------------------------------------------------------- trials */

static size_t n_found, n_idle;

static void idle(void *context, const char *table, const char *why)
{
    (void)context;
    assert_string_equal(table, "nobodys");
    assert_string_equal(why, "not on a toy");
    n_idle++;
}

static void found(void *context, const apus_trial *t)
{
    (void)context;
    assert_string_equal(t->op, "apus.linear/1");
    assert_string_equal(t->shapes, "[T,64] [64,64]");
    assert_int_equal(t->rows, 256);
    assert_int_equal(t->n, 2);
    assert_string_equal(t->table[0], "mine");
    assert_string_equal(t->table[t->best], "theirs"); /* which computes nothing */
    n_found++;
}

static void trials_write_what_is_read(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_device *d = open_mine();
    assert_int_equal(apus_device_try(d, &err), APUS_OK);
    for (int tuned = 0; tuned < 2; tuned++) { /* only what may be chosen is noted */
        bed b;
        double seconds;
        apus_plan *p = plan_of(&b, d, tuned);
        const apus_feed feed = {"in0", b.in[0].data};
        assert_int_equal(apus_plan_measure(p, b.extents, &feed, 1, &seconds, &err), APUS_OK);
        apus_plan_free(p);
        bed_end(&b);
    }
    const apus_trial_found tell = {NULL, idle, found};
    if (apus_device_tune(d, path, 0.01, &tell, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(n_found, 1);
    assert_int_equal(n_idle, 1);
    if (apus_tuning_read(path, d, &d->tuning, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(is_theirs(d, 1), 1);
    assert_int_equal(apus_device_tune(d, APUS_TEST_TMP "/no/such/folder.yaml", 0.01, &tell, &err), APUS_E_IO);
    apus_device_close(d);

    d = open_mine(); /* nothing noted: a file all the same */
    assert_int_equal(apus_device_try(d, &err), APUS_OK);
    assert_int_equal(apus_device_tune(d, path, 0.01, &tell, &err), APUS_OK);
    if (apus_tuning_read(path, d, &d->tuning, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(is_theirs(d, 1), 0);
    apus_device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(own_kernels_come_first), cmocka_unit_test(a_file_chooses_in_trainings),
                                       cmocka_unit_test(what_is_wrong_is_refused), cmocka_unit_test(trials_write_what_is_read)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
