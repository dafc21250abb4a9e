/* A pipeline file with overrides and interpolation, then a parameter table: the first line of the input is an override,
 * the rest the file. Includes other than of itself find nothing. */
#include "config/config.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const choices[] = {"sigmoid", "ipo", NULL};
static const apus_param params[] = {
    {.size = sizeof(apus_param), .name = "epochs", .type = APUS_PARAM_INT, .fallback = "1", .min = 1, .max = 9, .aliases = "num_train_epochs"},
    {.size = sizeof(apus_param), .name = "rate", .type = APUS_PARAM_FLOAT, .fallback = "5e-5"},
    {.size = sizeof(apus_param), .name = "loss_type", .type = APUS_PARAM_STRING, .fallback = "sigmoid", .choices = choices},
    {.size = sizeof(apus_param), .name = "memory", .type = APUS_PARAM_BYTES, .fallback = "2GiB"},
    {.size = sizeof(apus_param), .name = "modules", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING},
    {.size = sizeof(apus_param), .name = "columns", .type = APUS_PARAM_MAP, .item = APUS_PARAM_PATH},
    {.size = sizeof(apus_param), .name = "tuner", .type = APUS_PARAM_COMPONENT, .of_kind = "tuner", .flags = APUS_PARAM_NULLABLE},
    {.size = sizeof(apus_param), .name = "any", .type = APUS_PARAM_NODE},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[64];
    if (path[0] == '\0')
        (void)snprintf(path, sizeof path, "/tmp/apus-fuzz-%ld.yaml", (long)getpid());
    const uint8_t *line = memchr(data, '\n', size);
    size_t first = line == NULL ? 0 : (size_t)(line - data);
    char *override = strndup((const char *)data, first);
    const uint8_t *text = line == NULL ? data : line + 1;
    FILE *f = fopen(path, "wb");
    if (f == NULL || override == NULL)
        abort();
    (void)fwrite(text, 1, size - (size_t)(text - data), f);
    (void)fclose(f);
    apus_error err = {0};
    const char *overrides[] = {override};
    apus_node *n = apus_config_load(path, overrides, first > 0, &err);
    if (n == NULL && (err.message[0] == '\0' || strchr(err.message, '\n') != NULL))
        abort();
    apus_node *valid = n == NULL ? NULL : apus_params_validate(n, params, sizeof params / sizeof params[0], "stages run", "fuzz", &err);
    if (n != NULL && valid == NULL && (err.message[0] == '\0' || strchr(err.message, '\n') != NULL))
        abort();
    if (valid != NULL) { /* validating again changes nothing */
        apus_node *again = apus_params_validate(valid, params, sizeof params / sizeof params[0], "", "fuzz", &err);
        if (again == NULL || !apus_nodes()->equal(valid, again))
            abort();
        apus_nodes()->release(again);
    }
    apus_nodes()->release(valid);
    apus_nodes()->release(n);
    free(override);
    (void)unlink(path);
    return 0;
}
