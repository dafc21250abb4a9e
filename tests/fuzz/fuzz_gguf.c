/* GGUF through the plugin, as the host loads it: any bytes are a model file or refused in one line; what is opened can
 * be used: card, tensors, rows in Hugging Face's order. */
#include "module/module.h"

#include <apus/model.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static apus_format_ops ops;

static void load(void)
{
    apus_error err = {0};
    if (apus_module_load_file(APUS_TEST_PLUGINS "/apus_format_gguf.so", &err) != APUS_OK)
        abort();
    apus_take(&ops, sizeof ops, apus_component_at("format", 0)->ops);
}

static void use(void *file)
{
    static const char *const roles[] = {"attn_q.weight", "attn_k.weight", "attn_q.bias", "ffn_up.weight"};
    apus_error err = {0};
    apus_model_card card = {.size = sizeof card};
    volatile unsigned char sink = 0;
    if (ops.card(file, &card, &err) != APUS_OK && (err.message[0] == '\0' || strchr(err.message, '\n') != NULL))
        abort();
    for (uint64_t i = 0; i < ops.count(file); i++) {
        apus_tensor_info t = {.size = sizeof t};
        if (ops.tensor(file, i, &t, &err) != APUS_OK)
            abort();
        if (t.bytes > 0)
            sink = ((const unsigned char *)t.data)[t.bytes - 1];
    }
    for (size_t i = 0; i < 4; i++) {
        apus_tensor_info t = {.size = sizeof t};
        const apus_weight_spec w = {.size = sizeof w, .name = "w", .role = roles[i], .layer = 0, .ndim = 2};
        if (ops.find(file, &w, &t, &err) == APUS_OK && t.bytes > 0)
            sink = ((const unsigned char *)t.data)[t.bytes - 1];
    }
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    apus_error err = {0};
    char path[64];
    void *file = NULL;
    if (ops.open == NULL)
        load();
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || (size > 0 && write(fd, data, size) != (ssize_t)size))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ops.open(apus_host_table(), NULL, path, &file, &err) == APUS_OK) {
        use(file);
        ops.close(file);
    } else if (err.message[0] == '\0' || strchr(err.message, '\n') != NULL) {
        abort();
    }
    close(fd);
    return 0;
}
