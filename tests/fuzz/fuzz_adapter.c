/* Adapter folders through the plugin: the input up to the first NUL is adapter_config.json, the rest the weights. */
#include "module/module.h"

#include <apus/files.h>
#include <apus/model.h>

#include <stdlib.h>

static apus_format_ops ops;
static char folder[64];

static void load(void)
{
    apus_error err = {0};
    if (apus_module_load_file(APUS_TEST_PLUGINS "/apus_format_peft.so", &err) != APUS_OK)
        abort();
    apus_take(&ops, sizeof ops, apus_component_at("format", 0)->ops);
    snprintf(folder, sizeof folder, "/dev/shm/apus-fuzz-%ld", (long)getpid());
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    apus_error err = {0};
    void *file = NULL;
    if (ops.open == NULL)
        load();
    const uint8_t *cut = size > 0 ? memchr(data, 0, size) : NULL;
    const size_t n = cut != NULL ? (size_t)(cut - data) : size;
    const size_t rest = cut != NULL ? size - n - 1 : 0;
    if (apus_write_in(folder, "adapter_config.json", (const char *)data, n, &err) != APUS_OK ||
        apus_write_in(folder, "adapter_model.safetensors", cut != NULL ? (const char *)cut + 1 : "", rest, &err) != APUS_OK)
        abort();
    if (ops.open(apus_host_table(), NULL, folder, &file, &err) == APUS_OK) {
        apus_model_card card = {.size = sizeof card};
        apus_tensor_info t = {.size = sizeof t};
        const apus_weight_spec w = {.size = sizeof w, .name = "model.layers.0.self_attn.q_proj.lora_A.weight", .ndim = 2};
        if (ops.card(file, &card, &err) != APUS_OK || card.config == NULL)
            abort();
        (void)ops.find(file, &w, &t, &err);
        (void)ops.unused(file, 0);
        ops.close(file);
    } else if (err.message[0] == '\0' || strchr(err.message, '\n') != NULL) {
        abort();
    }
    return 0;
}
