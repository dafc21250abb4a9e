/* A tokenizer's source, a zero byte, a text: any source is opened or refused in one line; what is opened gives ids of its
 * vocabulary that begin inside the text, the same ones on several threads, and text back for them. */
#include "module/module.h"
#include "value/node.h"

#include <apus/tokenizer.h>

#include <stdlib.h>
#include <string.h>

static void complain(const apus_error *err)
{
    if (err->message[0] == '\0' || strchr(err->message, '\n') != NULL)
        abort();
}

static void parallel(const apus_tokenizer_ops *ops, void *t, const char *text, size_t n, int flags, apus_status status, const apus_tokens *one)
{
    apus_tokens many = {0};
    apus_error err = {0};
    if (ops->encode_parallel == NULL)
        return;
    if (ops->encode_parallel(t, text, n, flags, 2, 1 + n % 7, &many, &err) != status)
        abort();
    if (many.n != one->n || (many.n > 0 && (memcmp(many.ids, one->ids, many.n * sizeof *many.ids) != 0 ||
                                            memcmp(many.begin, one->begin, many.n * sizeof *many.begin) != 0)))
        abort();
    apus_host_table()->free(many.ids);
    apus_host_table()->free(many.begin);
}

static void use(const apus_tokenizer_ops *ops, void *t, const char *text, size_t n)
{
    apus_tokens out = {0};
    for (int flags = 0; flags < 4; flags++) {
        apus_error err = {0};
        out.n = 0;
        const apus_status status = ops->encode(t, text, n, flags, &out, &err);
        parallel(ops, t, text, n, flags, status, &out);
        if (status != APUS_OK) {
            complain(&err);
            continue;
        }
        for (size_t i = 0; i < out.n; i++) {
            int added = (flags & APUS_ENCODE_ADD_SPECIAL) != 0;
            if (out.begin[i] > n || (!added && (out.begin[i] == n || out.ids[i] < 0 || out.ids[i] >= ops->vocab_size(t))))
                abort();
        }
        char *back = NULL;
        size_t length = 0;
        if (ops->decode(t, out.ids, out.n, flags & 1, &back, &length, &err) != APUS_OK)
            complain(&err);
        else if (back[length] != '\0')
            abort();
        apus_host_table()->free(back);
    }
    apus_host_table()->free(out.ids);
    apus_host_table()->free(out.begin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int loaded;
    apus_error err = {0};
    if (!loaded && (apus_module_load_file(APUS_TEST_PLUGINS "/apus_tokenizer_bpe.so", &err) != APUS_OK ||
                    apus_module_load_file(APUS_TEST_PLUGINS "/apus_tokenizer_byte.so", &err) != APUS_OK))
        abort();
    loaded = 1;
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t n = zero != NULL ? (size_t)(zero - data) : size;
    const char *text = zero != NULL ? (const char *)zero + 1 : "";
    apus_node *source = apus_nodes()->parse_json((const char *)data, n, "fuzz", &err);
    if (source == NULL) {
        complain(&err);
        return 0;
    }
    for (size_t i = 0; i < apus_component_count("tokenizer"); i++) {
        const apus_tokenizer_ops *ops = apus_component_at("tokenizer", i)->ops;
        void *t = NULL;
        err = (apus_error){0};
        (void)ops->claims(source);
        if (ops->open(apus_host_table(), NULL, source, &t, &err) != APUS_OK) {
            complain(&err);
            continue;
        }
        use(ops, t, text, zero != NULL ? size - n - 1 : 0);
        ops->close(t);
    }
    apus_nodes()->release(source);
    return 0;
}
