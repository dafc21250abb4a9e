/* YAML: any bytes are read or refused with one line that names the place. */
#include "config/config.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    apus_error err = {0};
    apus_node *n = apus_yaml_parse((const char *)data, size, "fuzz.yaml", &err);
    if (n == NULL && (strncmp(err.message, "fuzz.yaml", 9) != 0 || strchr(err.message, '\n') != NULL))
        abort();
    size_t length = 0;
    char *text = n == NULL ? NULL : apus_nodes()->write_json(n, 0, &length);
    free(text);
    apus_nodes()->release(n);
    return 0;
}
