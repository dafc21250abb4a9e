/*
 * apus/files.h: the little that plugins reading and writing model files share: read-only maps, paths, JSON files,
 * whole writes. Header-only, POSIX. Knows nothing of what the files hold.
 */
#ifndef APUS_FILES_H
#define APUS_FILES_H

#include <apus/base.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A read-only map of a whole file. A file that is cut while it is mapped ends the process: the same rule as for every
 * program that maps its input. */
typedef struct apus_map {
    const unsigned char *bytes; /* never NULL after apus_map_open succeeded */
    size_t length;
} apus_map;

static inline apus_status apus_map_open(const char *path, apus_map *m, apus_error *err)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    if (fd < 0)
        return apus_fail(err, errno == ENOENT ? APUS_E_NOT_FOUND : APUS_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return apus_fail(err, APUS_E_INVALID, "%s: not a regular file", path);
    }
    m->bytes = (const unsigned char *)"";
    m->length = (size_t)st.st_size;
    if (m->length > 0) {
        void *p = mmap(NULL, m->length, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            const int why = errno;
            close(fd);
            m->length = 0;
            return apus_fail(err, APUS_E_IO, "%s: cannot be mapped: %s", path, strerror(why));
        }
        m->bytes = (const unsigned char *)p;
    }
    close(fd);
    return APUS_OK;
}

/* Pages of the map leave this process's memory; whoever reads them again gets them from the file. */
static inline void apus_map_forget(const apus_map *m)
{
#ifdef MADV_DONTNEED /* not in strict POSIX, whose POSIX_MADV_DONTNEED glibc ignores */
    if (m->length > 0)
        (void)madvise((void *)(uintptr_t)m->bytes, m->length, MADV_DONTNEED);
#endif
    (void)m;
}

static inline void apus_map_close(apus_map *m)
{
    if (m->length > 0)
        munmap((void *)(uintptr_t)m->bytes, m->length);
    m->bytes = NULL;
    m->length = 0;
}

/* Replace control characters, so that a text out of a file stays on its line of a message. Returns s. */
static inline char *apus_one_line(char *s)
{
    for (char *p = s; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = '?';
    return s;
}

/* As apus_fail, of a message with texts out of a file. */
static inline APUS_PRINTF(3, 4) apus_status apus_fail_line(apus_error *err, apus_status status, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        apus_one_line(err->message);
        err->hint[0] = '\0';
    }
    return status;
}

#ifdef __clang_analyzer__ /* as in base.h */
#define apus_fail_line(err, status, ...) ((void)apus_fail_line(err, status, __VA_ARGS__), (status))
#endif

/* "folder/name" into a buffer; 0 when it does not fit. */
static inline int apus_path_join(char *buffer, size_t capacity, const char *folder, const char *name)
{
    const size_t n = strlen(folder);
    const int written = snprintf(buffer, capacity, "%s%s%s", folder, n > 0 && folder[n - 1] == '/' ? "" : "/", name);
    return written > 0 && (size_t)written < capacity;
}

static inline int apus_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static inline int apus_folder_has(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;
    return apus_path_join(path, sizeof path, folder, name) && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* A JSON file as a node (owner: caller); NULL with the error. */
static inline apus_node *apus_json_file(const apus_host *host, const char *path, apus_error *err)
{
    apus_map map = {NULL, 0};
    if (apus_map_open(path, &map, err) != APUS_OK)
        return NULL;
    apus_node *n = host->node->parse_json((const char *)map.bytes, map.length, path, err);
    apus_map_close(&map);
    return n;
}

/* folder/name as a node; *out stays NULL when there is no such file. */
static inline apus_status apus_json_in(const apus_host *host, const char *folder, const char *name, apus_node **out, apus_error *err)
{
    char path[4096];
    *out = NULL;
    if (!apus_folder_has(folder, name))
        return APUS_OK;
    if (!apus_path_join(path, sizeof path, folder, name))
        return apus_fail(err, APUS_E_INVALID, "%s: the path is too long", folder);
    *out = apus_json_file(host, path, err);
    return *out != NULL ? APUS_OK : APUS_E_INVALID;
}

/* Finish a file that was written with stdio: flush, sync, close; names the path in the error. */
static inline apus_status apus_stdio_finish(FILE *f, const char *path, apus_status st, apus_error *err)
{
    int failed = st == APUS_OK && (fflush(f) != 0 || fsync(fileno(f)) != 0);
    const int why = errno;
    if (fclose(f) != 0)
        failed = st == APUS_OK;
    if (failed)
        return apus_fail(err, APUS_E_IO, "%s: cannot be written: %s", path, strerror(why));
    return st;
}

/* Write folder/name whole (not atomic: for folders that are renamed into place when complete). */
static inline apus_status apus_write_in(const char *folder, const char *name, const char *bytes, size_t length, apus_error *err)
{
    char path[4096];
    if (!apus_path_join(path, sizeof path, folder, name))
        return apus_fail(err, APUS_E_INVALID, "%s: the path is too long", folder);
    FILE *f = fopen(path, "wb");
    if (f == NULL)
        return apus_fail(err, APUS_E_IO, "%s: cannot be written: %s", path, strerror(errno));
    apus_status st = APUS_OK;
    if (length > 0 && fwrite(bytes, 1, length, f) != length)
        st = apus_fail(err, APUS_E_IO, "%s: cannot be written: %s", path, strerror(errno));
    return apus_stdio_finish(f, path, st, err);
}

/* Write folder/name as indented JSON with a final newline. */
static inline apus_status apus_write_json_in(const apus_host *host, const char *folder, const char *name, const apus_node *node, apus_error *err)
{
    size_t n = 0;
    char *text = host->node->write_json(node, APUS_JSON_INDENT, &n);
    if (text == NULL)
        return apus_fail(err, APUS_E_MEMORY, "%s: out of memory", name);
    if (n == 0 || text[n - 1] != '\n')
        text[n++] = '\n'; /* in the place of the terminator: the text is not used as a string any more */
    const apus_status st = apus_write_in(folder, name, text, n, err);
    host->free(text);
    return st;
}

#ifdef __cplusplus
}
#endif
#endif
