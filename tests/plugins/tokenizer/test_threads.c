/* One tokenizer, used by several threads at once: its cache of words is theirs together. */
#include "tokenizers.h"

#include <pthread.h>

static const apus_tokenizer_ops *ops;
static apus_node *texts;

static int setup(void **state)
{
    (void)state;
    ops = find_ops("tokenizer", "bpe");
    texts = read_node(APUS_TEST_GOLDEN "/tokenizers/texts.json.gz");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    apus_nodes()->release(texts);
    return 0;
}

static void *encode_all(void *t)
{
    const apus_node *list = apus_nodes()->get(texts, "texts");
    apus_tokens out = {0};
    uint64_t *h = malloc(sizeof *h);
    *h = 0;
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < apus_nodes()->length(list); i++) {
            size_t n;
            const char *s = apus_nodes()->as_string(apus_nodes()->at(list, i), &n);
            apus_error err;
            out.n = 0;
            if (ops->encode(t, s, n, APUS_ENCODE_SPECIAL_TEXT, &out, &err) == APUS_OK)
                *h = *h * 31 + fnv(out.ids, out.n);
        }
    }
    tokens_free(&out);
    return h;
}

static void threads(void **state)
{
    (void)state;
    apus_node *cases = read_node(APUS_TEST_GOLDEN "/tokenizers/synthetic.json.gz");
    void *t = open_tokenizer(ops, apus_nodes()->get(apus_nodes()->at(cases, 0), "tokenizer"));
    pthread_t ids[4];
    uint64_t *hash[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&ids[i], NULL, encode_all, t), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(ids[i], (void **)&hash[i]);
    for (int i = 0; i < 4; i++)
        assert_true(*hash[i] == *hash[0]);
    for (int i = 0; i < 4; i++)
        free(hash[i]);
    ops->close(t);
    apus_nodes()->release(cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
