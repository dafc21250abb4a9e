/* Sources: any compressed file or archive is read or refused with one line that names the file, within bounds. */
#include "io/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { ENOUGH = 1 << 22 };
    static char block[1 << 16];
    char path[64];
    int fd = memfd_create("source", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        return 0;
    }
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    apus_error err = {{0}, {0}};
    apus_source *s = NULL;
    (void)apus_source_open(path, &s, &err);
    const char *name;
    size_t total = 0;
    while (s != NULL && total < ENOUGH && apus_source_next(s, &name, &err) > 0) {
        int64_t n = 1;
        total++;
        while (total < ENOUGH && (n = apus_source_read(s, block, sizeof block, &err)) > 0) {
            total += (size_t)n;
        }
    }
    apus_source_close(s);
    if (err.message[0] != '\0' && (strncmp(err.message, path, strlen(path)) != 0 || strchr(err.message, '\n') != NULL)) {
        abort();
    }
    close(fd);
    return 0;
}
