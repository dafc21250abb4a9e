/*
 * core/io/file: whole files: read with a limit, mapped read-only, written so that a reader sees either the old bytes or
 * the new ones. Knows nothing of what the bytes mean.
 */
#include "io/io.h"

#include "module/module.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_LIMIT_DEFAULT = 1 << 30, TREE_DEPTH_MAX = 200 };

static apus_status fail_errno(apus_error *err, const char *path, const char *what)
{
    int code = errno;
    return apus_fail(err, code == ENOMEM ? APUS_E_MEMORY : APUS_E_IO, "%s: %s: %s", path, what, strerror(code));
}

int apus_open_reading(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd >= 0) { /* a pipe's reader waits for its writer, once there is one */
        (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    }
    return fd;
}

/* Open for reading; folders are refused here, because read() would only say so later. */
static int open_file(const char *path, struct stat *st, apus_error *err)
{
    int fd = apus_open_reading(path);
    if (fd < 0) {
        (void)fail_errno(err, path, "cannot open");
        return -1;
    }
    if (fstat(fd, st) != 0) {
        (void)fail_errno(err, path, "cannot stat");
        close(fd);
        return -1;
    }
    if (S_ISDIR(st->st_mode)) {
        (void)apus_fail(err, APUS_E_IO, "%s: is a folder, expected a file", path);
        close(fd);
        return -1;
    }
    return fd;
}

char *apus_file_read(const char *path, size_t limit, size_t *length, apus_error *err)
{
    const apus_host *host = apus_host_table();
    struct stat st;
    int fd = open_file(path, &st, err);
    if (fd < 0) {
        return NULL;
    }
    if (limit == 0) {
        limit = READ_LIMIT_DEFAULT;
    }
    /* The size is a first guess only: pipes have none, and a file may grow while it is read. */
    size_t capacity = 64 * 1024;
    if (S_ISREG(st.st_mode) && st.st_size >= 0) {
        capacity = (uintmax_t)st.st_size > limit ? 0 : (size_t)st.st_size + 1;
    }
    size_t n = 0;
    char *bytes = capacity != 0 ? host->alloc(capacity + 1) : NULL;
    if (capacity != 0 && bytes == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "%s: no memory for %zu bytes", path, capacity);
        goto failed;
    }
    while (capacity != 0) {
        ssize_t got = read(fd, bytes + n, capacity - n);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            (void)fail_errno(err, path, "cannot read");
            goto failed;
        }
        if (got == 0) {
            close(fd);
            bytes[n] = '\0';
            if (length != NULL) {
                *length = n;
            }
            return bytes;
        }
        n += (size_t)got;
        if (n > limit) {
            break;
        }
        if (n == capacity) {
            size_t wider = capacity * 2;
            char *moved = host->realloc(bytes, capacity + 1, wider + 1);
            if (moved == NULL) {
                (void)apus_fail(err, APUS_E_MEMORY, "%s: no memory for %zu bytes", path, wider);
                goto failed;
            }
            bytes = moved;
            capacity = wider;
        }
    }
    (void)apus_fail(err, APUS_E_INVALID, "%s: larger than the limit of %zu bytes", path, limit);
failed:
    host->free(bytes);
    close(fd);
    return NULL;
}

static const char empty_file[1] = "";

const void *apus_file_map(const char *path, size_t *length, apus_error *err)
{
    struct stat st;
    int fd = open_file(path, &st, err);
    if (fd < 0) {
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        (void)apus_fail(err, APUS_E_IO, "%s: not a regular file, cannot be mapped", path);
        close(fd);
        return NULL;
    }
    if (st.st_size == 0) {
        close(fd);
        *length = 0;
        return empty_file;
    }
    if ((uintmax_t)st.st_size > SIZE_MAX / 2) {
        (void)apus_fail(err, APUS_E_IO, "%s: too large to map", path);
        close(fd);
        return NULL;
    }
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        (void)fail_errno(err, path, "cannot map");
        close(fd);
        return NULL;
    }
    close(fd);
    *length = (size_t)st.st_size;
    return map;
}

void apus_file_unmap(const void *map, size_t length)
{
    if (map != NULL && length != 0) {
        (void)munmap((void *)(uintptr_t)map, length);
    }
}

void *apus_scratch_map(const char *folder, size_t length, apus_error *err)
{
    char path[4200];
    if ((size_t)snprintf(path, sizeof path, "%s/scratch.tmp-XXXXXX", folder) >= sizeof path) {
        (void)apus_fail(err, APUS_E_IO, "%s: the path is too long", folder);
        return NULL;
    }
    const int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) {
        (void)fail_errno(err, folder, "cannot create a file in it");
        return NULL;
    }
    (void)unlink(path);
    const int full = posix_fallocate(fd, 0, (off_t)length);
    if (full != 0) {
        (void)apus_fail(err, APUS_E_IO, "%s: no room for a file of %.1f MiB: %s", folder, (double)length / 1048576.0, strerror(full));
        close(fd);
        return NULL;
    }
    void *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        (void)fail_errno(err, folder, "cannot map a file in it");
        map = NULL;
    }
    close(fd);
    return map;
}

static int write_all(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t put = write(fd, bytes, n);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put < 0) {
            return -1;
        }
        bytes += put;
        n -= (size_t)put;
    }
    return 0;
}

/* The folder that holds `path`; the caller gives room for it. */
static void parent_of(const char *path, char *out)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        strcpy(out, ".");
        return;
    }
    size_t n = slash == path ? 1 : (size_t)(slash - path);
    memcpy(out, path, n);
    out[n] = '\0';
}

apus_status apus_file_may_be(const char *path, apus_error *err)
{
    struct stat st;
    char *folder = malloc(strlen(path) + 2);
    apus_status status = APUS_OK;
    if (folder == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "%s: no memory to write it", path);
    }
    parent_of(path, folder);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) { /* it would be replaced: /dev/null too, by who may */
        status = apus_fail(err, APUS_E_IO, "%s: is %s, expected a file or a name for a new one", path,
                           S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    } else if (access(folder, W_OK | X_OK) != 0) {
        status = fail_errno(err, path, "cannot create");
    }
    free(folder);
    return status;
}

apus_status apus_file_write(const char *path, const void *bytes, size_t length, apus_error *err)
{
    size_t room = strlen(path) + 32;
    char *temporary = malloc(room);
    char *folder = malloc(room);
    apus_status status = APUS_OK;
    int fd = -1;
    if (temporary == NULL || folder == NULL) {
        status = apus_fail(err, APUS_E_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    status = apus_file_may_be(path, err);
    if (status != APUS_OK) {
        goto done;
    }
    (void)snprintf(temporary, room, "%s.tmp-%ld", path, (long)getpid());
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        status = fail_errno(err, path, "cannot create");
        goto done;
    }
    if (write_all(fd, bytes, length) != 0) {
        status = fail_errno(err, path, "cannot write");
    } else if (fsync(fd) != 0) {
        status = fail_errno(err, path, "cannot sync");
    }
    if (close(fd) != 0 && status == APUS_OK) {
        status = fail_errno(err, path, "cannot write");
    }
    if (status == APUS_OK && rename(temporary, path) != 0) {
        status = fail_errno(err, path, "cannot rename into place");
    }
    if (status != APUS_OK) {
        (void)unlink(temporary);
        goto done;
    }
    parent_of(path, folder);
    status = apus_sync_dir(folder, err);
done:
    free(temporary);
    free(folder);
    return status;
}

apus_status apus_mkdirs(const char *path, apus_error *err)
{
    char *part = strdup(path);
    if (part == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "%s: no memory", path);
    }
    apus_status status = APUS_OK;
    for (char *p = part; status == APUS_OK && *p != '\0';) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char kept = *p;
        *p = '\0';
        if (part[0] != '\0' && mkdir(part, 0777) != 0) {
            /* Say what is in the way; a read-only parent that already holds the folder is fine. */
            int code = errno;
            struct stat st;
            if (stat(part, &st) != 0) {
                errno = code;
                status = fail_errno(err, part, "cannot make this folder");
            } else if (!S_ISDIR(st.st_mode)) {
                status = apus_fail(err, APUS_E_IO, "%s: is a file where a folder is needed", part);
            }
        }
        *p = kept;
    }
    free(part);
    return status;
}

int apus_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

int apus_path_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

int apus_path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Remove `name` in the folder `at`, folders with all they hold. Works by descriptors, so that a folder swapped for a
 * link meanwhile cannot lead it elsewhere. `path` is what errors call the root. */
static apus_status remove_at(int at, const char *name, const char *path, int depth, apus_error *err)
{
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) {
        return APUS_OK;
    }
    if (errno != EISDIR && errno != EPERM) {
        return fail_errno(err, path, "cannot remove");
    }
    if (depth > TREE_DEPTH_MAX) {
        return apus_fail(err, APUS_E_IO, "%s: folders nested deeper than %d", path, TREE_DEPTH_MAX);
    }
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        apus_status status = fail_errno(err, path, "cannot remove");
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    apus_status status = APUS_OK;
    const struct dirent *entry;
    while (status == APUS_OK && (entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            status = remove_at(dirfd(dir), entry->d_name, path, depth + 1, err);
        }
    }
    closedir(dir);
    if (status == APUS_OK && unlinkat(at, name, AT_REMOVEDIR) != 0) {
        status = fail_errno(err, path, "cannot remove");
    }
    return status;
}

apus_status apus_remove_tree(const char *path, apus_error *err)
{
    return remove_at(AT_FDCWD, path, path, 0, err);
}

apus_status apus_sync_dir(const char *path, apus_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return fail_errno(err, path, "cannot open");
    }
    apus_status status = APUS_OK;
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) { /* some network file systems cannot sync folders */
        status = fail_errno(err, path, "cannot sync");
    }
    close(fd);
    return status;
}
