/* apus generate --prompts: memory does not grow with the requests of the file; each answer is its request's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { FEW = 200, MANY = 3000, BYTES = 20000 };

/* The most memory, in bytes, that answering n requests of BYTES bytes took. */
static long answered(int n)
{
    char prompts[512], out[512];
    snprintf(prompts, sizeof prompts, "%s/prompts-%ld.jsonl", APUS_TEST_TMP, (long)getpid());
    snprintf(out, sizeof out, "%s/answers-%ld.jsonl", APUS_TEST_TMP, (long)getpid());
    FILE *f = fopen(prompts, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++)
        fprintf(f, "{\"id\": \"%0*d\", \"input_ids\": [%d], \"max_tokens\": 1}\n", BYTES, i, i % 50);
    assert_int_equal(fclose(f), 0);
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)freopen("/dev/null", "w", stderr);
        execl(APUS_TEST_COMMAND, "apus", "generate", APUS_TEST_GOLDEN "/models/llama", "--prompts", prompts, "--parallel", "4", "--out", out, NULL);
        _exit(127);
    }
    int status;
    struct rusage used;
    assert_int_equal(wait4(pid, &status, 0, &used), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    f = fopen(out, "r");
    assert_non_null(f);
    int i = 0, id;
    for (; fscanf(f, "{\"id\": \"%d\"%*[^\n]\n", &id) == 1; i++)
        assert_int_equal(id, i);
    assert_int_equal(i, n);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(unlink(prompts) | unlink(out), 0);
    return used.ru_maxrss * 1024;
}

static void memory(void **state)
{
    (void)state;
    const long few = answered(FEW), many = answered(MANY);
#ifdef APUS_TEST_SANITIZED
    print_message("skipped: memory of %ld and %ld bytes: sanitizers keep what is freed\n", few, many);
#else
    if (many > few + (long)(MANY - FEW) * BYTES / 4)
        fail_msg("%ld KiB with %d requests, %ld with %d", few / 1024, FEW, many / 1024, MANY);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory)};
    return cmocka_run_group_tests_name("pipelines/prompts", tests, NULL, NULL);
}
