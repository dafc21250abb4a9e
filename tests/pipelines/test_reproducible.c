/*
 * Same inputs, same bytes, proven on the command itself: a pipeline of pre-training, LoRA with dropout, preference optimisation and
 * evaluation, run twice, killed at random moments, stopped by a signal, damaged, changed; each time the weights and the events are
 * compared with those of one undisturbed run. APUS_TEST_SEED repeats the moments of an earlier run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <apus/random.h>

#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#define NODE  apus_nodes()
#define KILLS 6

static char folder[1024]; /* everything below it */
static double reference_seconds;
static const char *command = APUS_TEST_COMMAND;
static uint64_t seed;

static const char *const pipeline = "run: none\n"
                                    "seed: 7\n"
                                    "backend: {type: cpu, threads: 2}\n"
                                    "trackers: []\n"
                                    "cache: cache\n"
                                    "stages:\n"
                                    "  - name: pretrain\n"
                                    "    stage: train\n"
                                    "    model:\n"
                                    "      arch: decoder\n"
                                    "      config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,\n"
                                    "               num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 256,\n"
                                    "               tie_word_embeddings: true, initializer_range: 0.02}\n"
                                    "    dataset: {type: newsdesk, task: text, rows: 40, max_length: 128, overlong: right}\n"
                                    "    tuner: full\n"
                                    "    optimizer: {type: adamw, learning_rate: 2.0e-3, weight_decay: 0.1}\n"
                                    "    schedule: {type: cosine, warmup_steps: 2}\n"
                                    "    batch_size: 4\n"
                                    "    max_steps: 16\n"
                                    "    save_steps: 1\n"
                                    "  - name: sft\n"
                                    "    stage: train\n"
                                    "    model: pretrain\n"
                                    "    dataset: {type: newsdesk, task: brief, rows: 30, max_length: 256}\n"
                                    "    tuner: {type: lora, r: 4, lora_dropout: 0.2}\n"
                                    "    optimizer: {type: adamw, learning_rate: 1.0e-3}\n"
                                    "    batch_size: 4\n"
                                    "    max_steps: 10\n"
                                    "    save_steps: 1\n"
                                    "    eval_split: 6\n"
                                    "    eval_steps: 2\n"
                                    "  - name: dpo\n"
                                    "    stage: train\n"
                                    "    model: sft\n"
                                    "    dataset: {type: newsdesk, task: preference, rows: 20, max_length: 256}\n"
                                    "    tuner: full\n"
                                    "    loss: {type: dpo, beta: 1.0}\n"
                                    "    optimizer: {type: adamw, learning_rate: 1.0e-3}\n"
                                    "    batch_size: 2\n"
                                    "    max_steps: 6\n"
                                    "    save_steps: 1\n"
                                    "  - name: judge\n"
                                    "    stage: eval\n"
                                    "    model: dpo\n"
                                    "    dataset: {type: newsdesk, task: brief, rows: 8, max_length: 256}\n";

/* The files a run leaves that must be the same, wherever and however often interrupted it was made. */
static const char *const weights[] = {"pretrain/model/model.safetensors", "sft/model/adapter_model.safetensors", "dpo/model/model.safetensors"};
static const char *const events[] = {"pretrain/events.jsonl", "sft/events.jsonl", "dpo/events.jsonl", "judge/events.jsonl"};

/* ---------------------------------------------------------------- the command */

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_seconds(double seconds)
{
    const struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    (void)nanosleep(&t, NULL);
}

/* Start `apus run` on the pipeline with its folder `run` and up to two overrides; what it says goes to RUN.log. */
static pid_t start(const char *run, const char *first, const char *second)
{
    char name[256], log[256];
    snprintf(name, sizeof name, "run=%s", run);
    snprintf(log, sizeof log, "%s.log", run);
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const int fd = open(log, O_CREAT | O_WRONLY | O_TRUNC, 0644);
        if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
            _exit(126);
        execl(command, "apus", "--plugin-dir", APUS_TEST_PLUGINS, "run", "pipeline.yaml", name, first, first != NULL ? second : NULL, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Exit code, or -signal. */
static int finish(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* owner: caller */
static char *read_text(const char *path, size_t *length)
{
    apus_error err = {0};
    char *text = apus_file_read(path, 0, length, &err);
    if (text == NULL)
        fail_msg("%s", err.message);
    return text;
}

static int said(const char *run, const char *what)
{
    char log[256];
    size_t n;
    snprintf(log, sizeof log, "%s.log", run);
    char *text = read_text(log, &n);
    const int found = strstr(text, what) != NULL;
    apus_host_table()->free(text);
    return found;
}

static void print_log(const char *run)
{
    char log[256];
    size_t n;
    snprintf(log, sizeof log, "%s.log", run);
    char *text = read_text(log, &n);
    print_message("%s: %s\n", log, text);
    apus_host_table()->free(text);
}

static void run_whole(const char *run, const char *first, const char *second)
{
    const int code = finish(start(run, first, second));
    if (code != 0) {
        print_log(run);
        fail_msg("apus run: exit code %d", code);
    }
}

/* ---------------------------------------------------------------- comparing */

/* Lines of events.jsonl without the one figure that is a clock's; owner: caller. */
static char *events_text(const char *run, const char *file)
{
    char path[512], *all = NULL;
    size_t n, used = 0;
    snprintf(path, sizeof path, "%s/%s", run, file);
    char *text = read_text(path, &n);
    all = calloc(n + 1, 2);
    for (char *line = text, *end; *line != '\0'; line = end + 1) {
        apus_error err = {0};
        size_t length;
        end = strchr(line, '\n');
        assert_non_null(end); /* whole lines only */
        apus_node *event = NODE->parse_json(line, (size_t)(end - line), path, &err);
        if (event == NULL)
            fail_msg("%s", err.message);
        (void)NODE->remove(event, "tokens_per_second");
        (void)NODE->remove(event, "data_seconds");
        char *written = NODE->write_json(event, 0, &length);
        assert_true(used + length + 2 < 2 * (n + 1));
        memcpy(all + used, written, length);
        used += length;
        all[used++] = '\n';
        apus_host_table()->free(written);
        NODE->release(event);
    }
    apus_host_table()->free(text);
    return all;
}

static void hash(const char *run, const char *file, char hex[65])
{
    char path[512];
    size_t n;
    snprintf(path, sizeof path, "%s/%s", run, file);
    char *bytes = read_text(path, &n);
    apus_sha256 *sha = apus_sha256_new();
    apus_sha256_add(sha, bytes, n);
    apus_sha256_end(sha, hex);
    apus_host_table()->free(bytes);
}

/* Nothing half-written is left in a folder of a run. */
static void assert_clean(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char inner[1024];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (strstr(e->d_name, ".tmp") != NULL)
            fail_msg("%s/%s is left over", path, e->d_name);
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        if (apus_path_is_dir(inner))
            assert_clean(inner);
    }
    closedir(d);
}

static void assert_same(const char *run, size_t first_stage)
{
    for (size_t i = first_stage; i < sizeof weights / sizeof weights[0]; i++) {
        char want[65], got[65];
        hash("reference", weights[i], want);
        hash(run, weights[i], got);
        if (strcmp(want, got) != 0)
            fail_msg("%s/%s differs from the undisturbed run's", run, weights[i]);
    }
    for (size_t i = first_stage; i < sizeof events / sizeof events[0]; i++) {
        char *want = events_text("reference", events[i]), *got = events_text(run, events[i]);
        if (strcmp(want, got) != 0)
            fail_msg("%s/%s differs from the undisturbed run's:\n%s\nnot\n%s", run, events[i], got, want);
        free(want);
        free(got);
    }
    assert_clean(run);
}

/* ---------------------------------------------------------------- waiting */

static int64_t count_lines(const char *path)
{
    char buffer[65536];
    int64_t lines = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    for (ssize_t n = read(fd, buffer, sizeof buffer); n > 0; n = read(fd, buffer, sizeof buffer))
        for (ssize_t i = 0; i < n; i++)
            lines += buffer[i] == '\n';
    close(fd);
    return lines;
}

static int ended(pid_t pid)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

/* 1 once `path` has so many lines; 0 when the command ended before. */
static int wait_lines(pid_t pid, const char *path, int64_t lines)
{
    while (!ended(pid)) {
        if (count_lines(path) >= lines)
            return 1;
        pause_seconds(2e-4);
    }
    return 0;
}

/* 1 while the command writes a checkpoint of `stage`, from `step` on; 0 when it ended before one was seen. */
static int wait_writing(pid_t pid, const char *stage, int step)
{
    while (!ended(pid)) {
        char path[256];
        snprintf(path, sizeof path, "%s/checkpoint-%d.tmp", stage, step);
        if (access(path, F_OK) == 0)
            return 1;
        snprintf(path, sizeof path, "%s/checkpoint-%d", stage, step);
        step += access(path, F_OK) == 0;
        pause_seconds(2e-5);
    }
    return 0;
}

/* Newest checkpoint of a stage; -1: none. */
static long newest_checkpoint(const char *stage)
{
    long newest = -1;
    DIR *d = opendir(stage);
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
        char *end;
        if (strncmp(e->d_name, "checkpoint-", 11) != 0)
            continue;
        const long step = strtol(e->d_name + 11, &end, 10);
        newest = *end == '\0' && step > newest ? step : newest;
    }
    if (d != NULL)
        closedir(d);
    return newest;
}

static double draw(uint64_t i)
{
    return apus_random_uniform(seed, apus_random_purpose("test.kill"), 0, i);
}

/* ---------------------------------------------------------------- tests */

static int setup(void **state)
{
    (void)state;
    const char *given = getenv("APUS_TEST_SEED");
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)t.tv_nsec / 1000;
    print_message("APUS_TEST_SEED=%llu\n", (unsigned long long)seed);
    snprintf(folder, sizeof folder, "%s/reproducible.%ld", APUS_TEST_TMP, (long)getpid());
    apus_error err = {0};
    if (apus_remove_tree(folder, &err) != APUS_OK || apus_mkdirs(folder, &err) != APUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(setenv("OMP_WAIT_POLICY", "passive", 1), 0);
    if (apus_file_write("pipeline.yaml", pipeline, strlen(pipeline), &err) != APUS_OK)
        fail_msg("%s", err.message);
    const double begin = now_seconds();
    run_whole("reference", NULL, NULL);
    reference_seconds = now_seconds() - begin;
    assert_clean("reference");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(chdir("/"), 0);
    return apus_remove_tree(folder, NULL) == APUS_OK ? 0 : -1;
}

static void twice(void **state)
{
    (void)state;
    run_whole("twice", NULL, NULL);
    assert_same("twice", 0);
}

/* The seed decides: another one gives other weights, or the comparisons above could not fail. */
static void another_seed(void **state)
{
    (void)state;
    char a[65], b[65];
    run_whole("seed", "seed=8", NULL);
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++) {
        hash("reference", weights[i], a);
        hash("seed", weights[i], b);
        assert_string_not_equal(a, b);
    }
}

static void killed_at_random(void **state)
{
    (void)state;
    int kills = 0;
    uint64_t draws = 0;
    for (int round = 0; kills < KILLS; round++) {
        char run[64];
        snprintf(run, sizeof run, "killed-%d", round);
        for (int done = 0; !done;) {
            const double delay = draw(draws++) * reference_seconds;
            const pid_t pid = start(run, NULL, NULL);
            pause_seconds(delay);
            (void)kill(pid, SIGKILL);
            const int code = finish(pid);
            done = code == 0;
            kills += code == -SIGKILL;
            if (!done && code != -SIGKILL) {
                print_log(run);
                fail_msg("exit code %d after a kill", code);
            }
            if (kills >= KILLS && !done) { /* enough: let it end */
                run_whole(run, NULL, NULL);
                done = 1;
            }
        }
        assert_same(run, 0);
    }
    print_message("killed %d times\n", kills);
}

/* While a checkpoint is being written: its folder is there under its temporary name. */
static void killed_in_checkpoints(void **state)
{
    (void)state;
    static const char *const stages[] = {"pretrain", "sft", "dpo"};
    static const int steps[] = {15, 9, 5};
    int kills = 0;
    for (uint64_t round = 0; round < 5 && kills == 0; round++) { /* the moment is short: a busy machine may miss it */
        char run[64];
        snprintf(run, sizeof run, "writing-%llu", (unsigned long long)round);
        for (uint64_t i = 0; i < 3; i++) {
            char stage[256];
            snprintf(stage, sizeof stage, "%s/%s", run, stages[i]);
            const pid_t pid = start(run, NULL, NULL);
            if (wait_writing(pid, stage, 1 + (int)(draw(1000 + 3 * round + i) * 0.5 * steps[i]))) {
                pause_seconds(draw(2000 + 3 * round + i) * 1e-3);
                (void)kill(pid, SIGKILL);
            }
            const int code = finish(pid);
            assert_true(code == 0 || code == -SIGKILL);
            kills += code == -SIGKILL;
        }
        run_whole(run, NULL, NULL);
        assert_same(run, 0);
    }
    print_message("killed %d times\n", kills);
    assert_true(kills > 0);
}

/* SIGTERM: a checkpoint, exit code 130, and the rest later. save_steps 0: only the signal writes one. */
static void stopped(void **state)
{
    (void)state;
    static const char *const stages[] = {"pretrain", "sft"};
    for (int i = 0; i < 2; i++) {
        char run[64], path[256], save[64];
        snprintf(run, sizeof run, "stopped-%s", stages[i]);
        snprintf(path, sizeof path, "%s/%s/events.jsonl", run, stages[i]);
        snprintf(save, sizeof save, "stages.%s.save_steps=0", stages[i]);
        const pid_t pid = start(run, save, NULL);
        const int sent = wait_lines(pid, path, 2);
        (void)kill(pid, SIGTERM);
        const int code = finish(pid);
        if (!sent || code != 130) {
            print_log(run);
            fail_msg("%s: exit code %d", run, code);
        }
        snprintf(path, sizeof path, "%s/%s", run, stages[i]);
        const long step = newest_checkpoint(path);
        assert_true(step > 0);
        run_whole(run, save, NULL);
        assert_same(run, 0);
        print_message("%s at step %ld\n", run, step);
    }
}

/* Stop a run in `stage` at about its line `lines`, keeping the folder as a kill leaves it. */
static void kill_at(const char *run, const char *stage, int64_t lines)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s/events.jsonl", run, stage);
    const pid_t pid = start(run, NULL, NULL);
    assert_true(wait_lines(pid, path, lines));
    (void)kill(pid, SIGKILL);
    (void)finish(pid);
}

static void flip(const char *path, off_t at)
{
    unsigned char c;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 0x10;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    assert_int_equal(close(fd), 0);
}

static void damaged_checkpoint(void **state)
{
    (void)state;
    static const char *const damage[] = {"state.json", "shorter", "gone"};
    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        char run[64], stage[128], path[256];
        snprintf(run, sizeof run, "damaged-%s", damage[i]);
        snprintf(stage, sizeof stage, "%s/pretrain", run);
        kill_at(run, "pretrain", 6);
        const long newest = newest_checkpoint(stage);
        assert_true(newest >= 4);
        const char *file = strcmp(damage[i], "shorter") == 0 ? "tensors.bin" : strcmp(damage[i], "gone") == 0 ? "manifest.json" : damage[i];
        snprintf(path, sizeof path, "%s/checkpoint-%ld/%s", stage, newest, file);
        if (strcmp(damage[i], "shorter") == 0)
            assert_int_equal(truncate(path, 1000), 0);
        else if (strcmp(damage[i], "gone") == 0)
            assert_int_equal(unlink(path), 0);
        else
            flip(path, 17);
        run_whole(run, NULL, NULL);
        if (!said(run, "checkpoint passed over")) {
            print_log(run);
            fail_msg("%s: not a word about the damage", run);
        }
        assert_same(run, 0);
    }
}

/* Which stages were done again: those from `first` on. */
static void assert_again_from(const char *run, size_t first, const char *why)
{
    static const char *const stages[] = {"pretrain", "sft", "dpo", "judge"};
    for (size_t k = 0; k < 4; k++) {
        char line[128];
        snprintf(line, sizeof line, "stage %s (%zu/4): done before, reused", stages[k], k + 1);
        if (said(run, line) != (k < first)) {
            print_log(run);
            fail_msg("%s: stage %s %s", why, stages[k], k < first ? "was done again" : "was reused");
        }
    }
}

/* A stage is done again when its configuration changed, and so are those that build on it; no other. */
static void changed_key(void **state)
{
    (void)state;
    static const struct {
        const char *override;
        size_t first; /* stage done again */
    } cases[] = {{"seed=7", 4},
                 {"stages.judge.dataset.rows=9", 3},
                 {"stages.dpo.loss.beta=0.5", 2},
                 {"stages.sft.tuner.lora_dropout=0.1", 1},
                 {"stages.pretrain.optimizer.learning_rate=1e-3", 0}};
    run_whole("changed", NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        run_whole("changed", cases[i].override, NULL);
        assert_again_from("changed", cases[i].first, cases[i].override);
    }
    run_whole("changed", NULL, NULL); /* and back: what the first run made */
    assert_same("changed", 0);
}

static void write_text(const char *path, const void *text, size_t length)
{
    apus_error err = {0};
    if (apus_file_write(path, text, length, &err) != APUS_OK)
        fail_msg("%s", err.message);
}

/* What a stage reads, and the program that runs it, are part of what made it. */
static void changed_content(void **state)
{
    (void)state;
    size_t n;
    write_text("template.jinja", "one", 3);
    run_whole("content", "stages.judge.template=template.jinja", NULL);
    run_whole("content", "stages.judge.template=template.jinja", NULL);
    assert_again_from("content", 4, "nothing changed");
    write_text("template.jinja", "two", 3);
    run_whole("content", "stages.judge.template=template.jinja", NULL);
    assert_again_from("content", 3, "a template changed");

    char *program = read_text(APUS_TEST_COMMAND, &n);
    write_text("apus", program, n + 1); /* a byte longer: works the same, and is another program */
    apus_host_table()->free(program);
    assert_int_equal(chmod("apus", 0755), 0);
    command = "./apus";
    run_whole("content", "stages.judge.template=template.jinja", NULL);
    command = APUS_TEST_COMMAND;
    assert_again_from("content", 0, "the program changed");
    assert_same("content", 0);
}

/* A stage's folder has its key from its first moment on: killed before, the next start would take it for a stranger's and set it aside,
 * over the previous one. */
static void never_without_key(void **state)
{
    (void)state;
    static const char *const stages[] = {"pretrain", "sft", "dpo", "judge"};
    const pid_t pid = start("keyed", NULL, NULL);
    for (size_t i = 0; i < 4;) {
        char path[256];
        const int over = ended(pid);
        snprintf(path, sizeof path, "keyed/%s", stages[i]);
        if (access(path, F_OK) == 0) {
            snprintf(path, sizeof path, "keyed/%s/key", stages[i]);
            assert_int_equal(access(path, F_OK), 0);
            i++;
        } else if (over) {
            print_log("keyed");
            fail_msg("stage %s was not begun", stages[i]);
        }
    }
    assert_int_equal(finish(pid), 0);
    /* What was set aside stays until another takes its place; what was begun aside is swept. */
    run_whole("keyed", "stages.judge.dataset.rows=9", NULL);
    assert_true(said("keyed", "set aside as judge.previous"));
    apus_error err = {0};
    assert_int_equal(apus_remove_tree("keyed/judge", &err), APUS_OK);
    assert_int_equal(apus_mkdirs("keyed/judge.tmp", &err), APUS_OK);
    run_whole("keyed", "stages.judge.dataset.rows=9", NULL);
    assert_int_equal(access("keyed/judge.previous/result.json", F_OK), 0);
    assert_int_not_equal(access("keyed/judge.tmp", F_OK), 0);
}

/* A stage that ended without saying so is ended again, and tells nothing twice. */
static void lost_results(void **state)
{
    (void)state;
    run_whole("lost", NULL, NULL);
    assert_int_equal(unlink("lost/sft/result.json"), 0);
    assert_int_equal(unlink("lost/judge/result.json"), 0);
    run_whole("lost", NULL, NULL);
    assert_same("lost", 0);
}

/* Two processes must not write into one folder. */
static void one_at_a_time(void **state)
{
    (void)state;
    const int fd = open("reference/.lock", O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    const int code = finish(start("reference", NULL, NULL));
    close(fd);
    assert_true(code > 0 && code < 126);
    assert_true(said("reference", "another process is running in this folder"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twice),
        cmocka_unit_test(another_seed),
        cmocka_unit_test(killed_at_random),
        cmocka_unit_test(killed_in_checkpoints),
        cmocka_unit_test(stopped),
        cmocka_unit_test(damaged_checkpoint),
        cmocka_unit_test(changed_key),
        cmocka_unit_test(changed_content),
        cmocka_unit_test(never_without_key),
        cmocka_unit_test(lost_results),
        cmocka_unit_test(one_at_a_time),
    };
    return cmocka_run_group_tests_name("reproducible", tests, setup, teardown);
}
