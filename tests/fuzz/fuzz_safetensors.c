/* safetensors: any bytes are a container or refused in one line; what is read lies inside the bytes. */
#include "module/module.h"

#include <apus/safetensors.h>

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    apus_error err = {0};
    apus_safetensors s = {0};
    if (apus_safetensors_read(apus_host_table(), "fuzz", data, size, &s, &err) == APUS_OK) {
        for (size_t i = 0; i < s.count; i++) {
            const unsigned char *p = s.tensors[i].data;
            if (p < data || s.tensors[i].bytes > size || p + s.tensors[i].bytes > data + size)
                abort();
        }
    } else if (err.message[0] == '\0' || strchr(err.message, '\n') != NULL) {
        abort();
    }
    apus_safetensors_close(apus_host_table(), &s);
    return 0;
}
