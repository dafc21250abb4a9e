/* JSON: any bytes are read or refused with a place; what is read is written and read again as the same value. */
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const apus_node_api *api = apus_nodes();
    apus_error err = {0};
    apus_node *n = api->parse_json((const char *)data, size, "fuzz.json", &err);
    if (n == NULL) {
        if (strncmp(err.message, "fuzz.json:", 10) != 0 || strchr(err.message, '\n') != NULL)
            abort();
        return 0;
    }
    for (int flags = 0; flags < 4; flags++) {
        size_t length = 0;
        char *text = api->write_json(n, flags, &length);
        apus_node *again = text == NULL ? NULL : api->parse_json(text, length, "again", &err);
        if (again == NULL) /* keys that differ only in bytes that are no UTF-8 are written alike */
            if (text == NULL || strstr(err.message, "is there twice") == NULL)
                abort();
        size_t second_length = 0;
        char *second = again == NULL ? NULL : api->write_json(again, flags, &second_length);
        if (second != NULL && (second_length != length || memcmp(second, text, length) != 0))
            abort();
        free(second);
        api->release(again);
        free(text);
    }
    api->release(n);
    return 0;
}
