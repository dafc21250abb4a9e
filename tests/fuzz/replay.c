/*
 * tests/fuzz/replay: a fuzz target without a fuzzer: every file of the corpus, and each of them cut and altered in a fixed way,
 * goes through it once. So any compiler tests what the fuzzers have found. Usage: replay FOLDER…
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VARIANTS = 48, PATH = 4096 };

/* A copy of its own size, so that a sanitizer sees a read past the end. */
static void feed(const uint8_t *data, size_t size, size_t at, unsigned flip)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL)
        abort();
    memcpy(copy, data, size);
    if (flip != 0 && at < size)
        copy[at] ^= (uint8_t)flip;
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t size = 0, capacity = 0, n;
    if (f == NULL) {
        perror(path);
        return 0;
    }
    do {
        capacity += 1 << 16;
        uint8_t *grown = realloc(data, capacity);
        if (grown == NULL)
            abort();
        data = grown;
        n = fread(data + size, 1, capacity - size, f);
        size += n;
    } while (n > 0);
    fclose(f);
    fprintf(stderr, "%s\n", path); /* before it runs: a crash stands below its input */
    feed(data, size, 0, 0);
    uint64_t state = size; /* a fixed walk: Knuth's MMIX constants */
    for (unsigned i = 0; i < VARIANTS && size > 0; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const size_t at = (size_t)(state >> 33) % size;
        if (i % 2 == 0)
            feed(data, at, 0, 0);
        else
            feed(data, size, i % 4 == 1 ? at % (at < 64 ? size : 64) : at, 1u << (i / 4 % 8));
    }
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    size_t count = 0;
    for (int i = 1; i < argc; i++) {
        struct dirent **names;
        const int n = scandir(argv[i], &names, NULL, alphasort);
        for (int k = 0; k < n; k++) {
            char path[PATH];
            struct stat st;
            snprintf(path, sizeof path, "%s/%s", argv[i], names[k]->d_name);
            if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
                count += (size_t)replay(path);
            free(names[k]);
        }
        if (n >= 0)
            free(names);
    }
    fprintf(stderr, "%zu files replayed\n", count);
    return count > 0 ? 0 : 1; /* a corpus that is not there proves nothing */
}
