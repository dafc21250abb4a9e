/*
 * core/io/source: the members of a data file, one after the other: a plain file, one compressed file, an archive, or a
 * folder of any of these. libarchive unpacks; what it finds is a stranger's: names, links and sizes are checked here.
 * Nothing is ever written to disk. Knows nothing of what the members hold.
 *
 * Whether a file is packed is told by its first bytes, never by libarchive's guess: to it a text may look like a
 * listing of files. Only tar and zip, and gzip, xz, zstd and bzip2, are unpacked.
 */
#include "io/io.h"

#include <archive.h>
#include <archive_entry.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FOLDER_DEPTH_MAX = 32,
    FILES_MAX = 1 << 20,
    BLOCK = 64 * 1024,
    RATIO_MAX = 300,                 /* text compresses 3 to 30 times, logs up to 200 times */
    UNPACKED_FREE = 64 * 1024 * 1024 /* below this no ratio is suspicious */
};
static const uint64_t UNPACKED_MAX = (uint64_t)1 << 40;

struct apus_source {
    /* The files: the one that was named, or a folder's in name order. */
    char *root;   /* as given */
    char **files; /* relative to root; NULL: root itself is the one file */
    size_t n_files, next_file;
    /* The open one. */
    char *path;                /* of the open file; NULL: none is open */
    int fd;                    /* plain file; -1 */
    struct archive *archive;   /* packed file; NULL */
    int ended;                 /* libarchive has said so: not to be asked again */
    int single;                /* packed without being an archive: one member */
    int members;               /* seen in this file */
    uint64_t packed, unpacked; /* bytes of the file; bytes that came out of it */
    char *name;                /* of the open member; NULL: none */
    apus_status failed;
};

/* Say it once, and stay failed: what follows an error in a stream means nothing. */
static apus_status fail(apus_source *s, apus_status status, apus_error *err, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++) { /* names and libarchive's words may carry anything */
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            *p = ' ';
        }
    }
    s->failed = s->failed == APUS_OK ? status : s->failed;
    return apus_fail(err, status, "%s: %s", s->path != NULL ? s->path : s->root, text);
}

static char *join(const char *a, const char *separator, const char *b)
{
    size_t n = strlen(a) + strlen(separator) + strlen(b) + 1;
    char *out = malloc(n);
    if (out != NULL) {
        (void)snprintf(out, n, "%s%s%s", a, separator, b);
    }
    return out;
}

/* ---------------------------------------------------------------- folders */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static apus_status add_file(apus_source *s, char *relative, size_t *capacity, apus_error *err)
{
    if (s->n_files == *capacity) {
        size_t wider = *capacity != 0 ? *capacity * 2 : 64;
        char **files = wider <= FILES_MAX ? realloc(s->files, wider * sizeof *files) : NULL;
        if (files == NULL) {
            free(relative);
            return fail(s, APUS_E_MEMORY, err, "more than %zu files", s->n_files);
        }
        s->files = files;
        *capacity = wider;
    }
    s->files[s->n_files++] = relative;
    return APUS_OK;
}

/* Collect the files below `relative` ("": the root). Hidden ones are left out; a link to a folder is not followed. */
static apus_status collect(apus_source *s, const char *relative, int depth, size_t *capacity, apus_error *err)
{
    if (depth > FOLDER_DEPTH_MAX) {
        return fail(s, APUS_E_INVALID, err, "folders nested deeper than %d", FOLDER_DEPTH_MAX);
    }
    char *folder = relative[0] != '\0' ? join(s->root, "/", relative) : strdup(s->root);
    DIR *dir = folder != NULL ? opendir(folder) : NULL;
    if (dir == NULL) {
        apus_status status = fail(s, APUS_E_IO, err, "cannot list '%s': %s", relative, strerror(errno));
        free(folder);
        return status;
    }
    apus_status status = APUS_OK;
    const struct dirent *d;
    while (status == APUS_OK && (d = readdir(dir)) != NULL) {
        struct stat st, target;
        if (d->d_name[0] == '.') {
            continue;
        }
        char *child = relative[0] != '\0' ? join(relative, "/", d->d_name) : strdup(d->d_name);
        if (child == NULL) {
            status = fail(s, APUS_E_MEMORY, err, "no memory to list it");
        } else if (fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || fstatat(dirfd(dir), d->d_name, &target, 0) != 0) {
            status = fail(s, APUS_E_IO, err, "cannot open '%s': %s", child, strerror(errno));
        } else if (S_ISDIR(st.st_mode)) {
            status = collect(s, child, depth + 1, capacity, err);
        } else if (S_ISREG(target.st_mode)) {
            status = add_file(s, child, capacity, err);
            child = NULL;
        } else {
            status = fail(s, APUS_E_INVALID, err, "'%s' is neither a file nor a folder", child);
        }
        free(child);
    }
    closedir(dir);
    free(folder);
    return status;
}

/* ---------------------------------------------------------------- one file */

static void close_file(apus_source *s)
{
    if (s->archive != NULL) {
        (void)archive_read_free(s->archive);
        s->archive = NULL;
    }
    if (s->fd >= 0) {
        close(s->fd);
        s->fd = -1;
    }
    free(s->path);
    free(s->name);
    s->path = s->name = NULL;
}

static int ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcasecmp(s + n - m, end) == 0;
}

static const char *const packed_suffixes[] = {".gz", ".xz", ".zst", ".bz2", NULL};

/* By the first bytes; a tar of before POSIX has no mark and is known by its name. */
static int is_packed(const unsigned char *head, size_t n, const char *path)
{
    static const struct {
        size_t at, n;
        const char *bytes;
    } marks[] = {
        {0, 3, "\x1f\x8b\x08"},
        {0, 6,
         "\xfd"
         "7zXZ\0"},
        {0, 4, "\x28\xb5\x2f\xfd"},
        {0, 3, "BZh"},
        {0, 4, "PK\3\4"},
        {0, 4, "PK\5\6"},
        {257, 5, "ustar"},
    };
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        if (n >= marks[i].at + marks[i].n && memcmp(head + marks[i].at, marks[i].bytes, marks[i].n) == 0) {
            /* "BZh" begins a bzip2 file only with a level and the block or end mark. */
            return marks[i].bytes[0] != 'B' || (n >= 10 && head[3] >= '1' && head[3] <= '9' &&
                                                (memcmp(head + 4, "1AY&SY", 6) == 0 || memcmp(head + 4, "\x17\x72\x45\x38\x50\x90", 6) == 0));
        }
    }
    return ends_with(path, ".tar");
}

/* The archive's own words, on one line. */
static const char *cause(struct archive *a)
{
    const char *text = archive_error_string(a);
    return text != NULL && text[0] != '\0' ? text : "damaged";
}

static apus_status open_packed(apus_source *s, apus_error *err)
{
    s->archive = archive_read_new();
    if (s->archive == NULL) {
        return fail(s, APUS_E_MEMORY, err, "no memory to unpack it");
    }
    struct archive *a = s->archive;
    (void)archive_read_support_filter_gzip(a);
    (void)archive_read_support_filter_xz(a);
    (void)archive_read_support_filter_zstd(a);
    (void)archive_read_support_filter_bzip2(a);
    (void)archive_read_support_format_tar(a);
    (void)archive_read_support_format_zip(a);
    (void)archive_read_support_format_raw(a);
    (void)archive_read_support_format_empty(a);
    if (archive_read_open_filename(a, s->path, BLOCK) < ARCHIVE_WARN) {
        return fail(s, APUS_E_INVALID, err, "cannot be unpacked: %s", cause(a));
    }
    return APUS_OK;
}

static apus_status open_file(apus_source *s, const char *path, apus_error *err)
{
    unsigned char head[512];
    struct stat st;
    s->members = s->single = s->ended = 0;
    s->packed = s->unpacked = 0;
    s->path = strdup(path);
    if (s->path == NULL) {
        return fail(s, APUS_E_MEMORY, err, "no memory to open it");
    }
    s->fd = apus_open_reading(path);
    if (s->fd < 0 || fstat(s->fd, &st) != 0) {
        return fail(s, APUS_E_IO, err, "cannot open: %s", strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) { /* a pipe cannot be looked into: plain */
        return APUS_OK;
    }
    s->packed = (uint64_t)st.st_size;
    ssize_t n = pread(s->fd, head, sizeof head, 0);
    if (n < 0) {
        return fail(s, APUS_E_IO, err, "cannot read: %s", strerror(errno));
    }
    if (!is_packed(head, (size_t)n, path)) {
        return APUS_OK;
    }
    close(s->fd);
    s->fd = -1;
    return open_packed(s, err);
}

apus_status apus_source_open(const char *path, apus_source **source, apus_error *err)
{
    struct stat st;
    apus_source *s = calloc(1, sizeof *s);
    if (s == NULL || (s->root = strdup(path)) == NULL) {
        free(s);
        return apus_fail(err, APUS_E_MEMORY, "%s: no memory to open it", path);
    }
    s->fd = -1;
    apus_status status;
    if (stat(path, &st) != 0) {
        status = fail(s, errno == ENOENT ? APUS_E_NOT_FOUND : APUS_E_IO, err, "cannot open: %s", strerror(errno));
    } else if (S_ISDIR(st.st_mode)) {
        size_t capacity = 0;
        status = collect(s, "", 0, &capacity, err);
        if (status == APUS_OK && s->n_files == 0) {
            status = fail(s, APUS_E_INVALID, err, "a folder without files");
        }
        if (status == APUS_OK) {
            qsort(s->files, s->n_files, sizeof *s->files, by_name);
        }
    } else {
        status = open_file(s, path, err);
        s->n_files = s->next_file = 1;
    }
    if (status == APUS_OK) {
        *source = s;
    } else {
        apus_source_close(s);
    }
    return status;
}

apus_status apus_source_status(const apus_source *s)
{
    return s->failed;
}

void apus_source_close(apus_source *s)
{
    if (s == NULL) {
        return;
    }
    close_file(s);
    for (size_t i = 0; s->files != NULL && i < s->n_files; i++) {
        free(s->files[i]);
    }
    free(s->files);
    free(s->root);
    free(s);
}

/* ---------------------------------------------------------------- members */

/* A member's name may only lead downwards, and must be fit to print. NULL: fine, else what is wrong. */
static const char *name_fault(const char *name)
{
    if (name == NULL || name[0] == '\0') {
        return "has no name";
    }
    if (name[0] == '/' || name[0] == '\\' || (name[0] != '\0' && name[1] == ':')) {
        return "has an absolute path";
    }
    for (const char *p = name; *p != '\0';) {
        size_t n = strcspn(p, "/\\");
        if (n == 2 && p[0] == '.' && p[1] == '.') {
            return "leaves the archive ('..')";
        }
        p += n + (p[n] != '\0');
    }
    for (const char *p = name; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            return "has control characters in its name";
        }
    }
    return NULL;
}

/* Hidden files and macOS's shadow copies ("__MACOSX/._rows.jsonl") are no data. */
static int is_hidden(const char *name)
{
    const char *slash = strrchr(name, '/');
    return (slash != NULL ? slash[1] : name[0]) == '.' || strncmp(name, "__MACOSX/", 9) == 0;
}

/* What the member is called to the outside: relative to a folder, without the suffix of the packing. */
static apus_status set_name(apus_source *s, const char *member, apus_error *err)
{
    const char *slash = strrchr(s->path, '/');
    const char *file = s->files != NULL ? s->files[s->next_file - 1] : slash != NULL ? slash + 1 : s->path;
    free(s->name);
    s->name = member == NULL ? strdup(file) : s->files != NULL ? join(file, "/", member) : strdup(member);
    if (s->name == NULL) {
        return fail(s, APUS_E_MEMORY, err, "no memory for a name");
    }
    for (size_t i = 0; member == NULL && s->archive != NULL && packed_suffixes[i] != NULL; i++) {
        if (ends_with(s->name, packed_suffixes[i])) {
            s->name[strlen(s->name) - strlen(packed_suffixes[i])] = '\0';
            break;
        }
    }
    return APUS_OK;
}

static apus_status check_bounds(apus_source *s, apus_error *err)
{
    uint64_t through = (uint64_t)archive_filter_bytes(s->archive, 0); /* headers and skipped parts count too */
    uint64_t out = s->unpacked > through ? s->unpacked : through;
    if (out > UNPACKED_MAX || (out > UNPACKED_FREE && out / RATIO_MAX > s->packed)) {
        (void)fail(s, APUS_E_INVALID, err, "unpacks to more than %d times its %llu bytes", RATIO_MAX, (unsigned long long)s->packed);
        return apus_hint(err, APUS_E_INVALID, "if this is really data, unpack it yourself and name the folder");
    }
    return APUS_OK;
}

static int64_t read_packed(apus_source *s, void *buffer, size_t capacity, apus_error *err)
{
    la_ssize_t n;
    if (s->ended) {
        return 0;
    }
    do {
        n = archive_read_data(s->archive, buffer, capacity < INT_MAX ? capacity : INT_MAX);
    } while (n == ARCHIVE_RETRY);
    if (n < 0) {
        (void)fail(s, APUS_E_INVALID, err, "%s%scannot be unpacked: %s", s->single ? "" : s->name, s->single ? "" : ": ", cause(s->archive));
        return -1;
    }
    s->unpacked += (uint64_t)n;
    return check_bounds(s, err) == APUS_OK ? n : -1;
}

/* Read over what is left of the member, within the bounds that reading has. */
static apus_status skip_rest(apus_source *s, apus_error *err)
{
    char block[8192];
    int64_t n;
    do {
        n = read_packed(s, block, sizeof block, err);
    } while (n > 0);
    return n < 0 ? APUS_E_INVALID : APUS_OK;
}

/* 1: at a member, 0: no more in this file, -1: error. */
static int next_packed(apus_source *s, apus_error *err)
{
    for (;;) {
        if (s->name != NULL && skip_rest(s, err) != APUS_OK) {
            return -1;
        }
        free(s->name);
        s->name = NULL;
        struct archive_entry *e;
        int rc = ARCHIVE_EOF;
        while (!s->ended && (rc = archive_read_next_header(s->archive, &e)) == ARCHIVE_RETRY) {
        }
        if (rc == ARCHIVE_EOF) {
            s->ended = 1;
            /* Nothing at all, but compressed: one file without bytes. */
            if (s->members == 0 && archive_format(s->archive) == ARCHIVE_FORMAT_EMPTY && archive_filter_count(s->archive) > 1) {
                s->members = s->single = 1;
                return set_name(s, NULL, err) == APUS_OK ? 1 : -1;
            }
            return 0;
        }
        if (rc < ARCHIVE_WARN) {
            (void)fail(s, APUS_E_INVALID, err, "cannot be unpacked: %s", cause(s->archive));
            return -1;
        }
        if (check_bounds(s, err) != APUS_OK) {
            return -1;
        }
        s->members++;
        if (archive_format(s->archive) == ARCHIVE_FORMAT_RAW) {
            s->single = 1;
            if (archive_filter_count(s->archive) < 2) { /* marked as packed, and yet no reader knows it */
                (void)fail(s, APUS_E_INVALID, err, "cannot be unpacked: damaged, or not what its first bytes say");
                return -1;
            }
            return set_name(s, NULL, err) == APUS_OK ? 1 : -1;
        }
        const char *name = archive_entry_pathname(e);
        name = name != NULL ? name : archive_entry_pathname_utf8(e);
        const char *fault = name_fault(name);
        const char *shown = fault != NULL && name != NULL && strncmp(fault, "has control", 11) == 0 ? "" : name;
        if (fault == NULL && (archive_entry_hardlink(e) != NULL || archive_entry_symlink(e) != NULL)) {
            fault = "is a link, and links in archives are not followed";
        } else if (fault == NULL && archive_entry_filetype(e) != AE_IFREG && archive_entry_filetype(e) != AE_IFDIR) {
            fault = "is neither a file nor a folder";
        } else if (fault == NULL && archive_entry_is_encrypted(e)) {
            fault = "is encrypted";
        }
        if (fault != NULL) {
            (void)fail(s, APUS_E_INVALID, err, "member %d '%.200s' %s", s->members, shown != NULL ? shown : "", fault);
            return -1;
        }
        if (set_name(s, name, err) != APUS_OK) {
            return -1;
        }
        if (archive_entry_filetype(e) == AE_IFREG && !is_hidden(name)) {
            return 1;
        }
    }
}

int apus_source_next(apus_source *s, const char **name, apus_error *err)
{
    if (s->failed != APUS_OK) {
        (void)fail(s, APUS_E_INVALID, err, "cannot be read further after an error");
        return -1;
    }
    for (;;) {
        if (s->path != NULL) {
            int found = 0;
            if (s->archive != NULL) {
                found = next_packed(s, err);
            } else if (s->members++ == 0) {
                found = set_name(s, NULL, err) == APUS_OK ? 1 : -1;
            }
            if (found > 0) {
                *name = s->name;
            }
            if (found != 0) {
                return found;
            }
            close_file(s);
        }
        if (s->next_file >= s->n_files) {
            return 0;
        }
        char *path = join(s->root, "/", s->files[s->next_file++]);
        apus_status status = path != NULL ? open_file(s, path, err) : fail(s, APUS_E_MEMORY, err, "no memory to open it");
        free(path);
        if (status != APUS_OK) {
            return -1;
        }
    }
}

int64_t apus_source_read(apus_source *s, void *buffer, size_t capacity, apus_error *err)
{
    if (s->failed != APUS_OK || s->name == NULL) {
        (void)fail(s, APUS_E_INVALID, err, "no member is open");
        return -1;
    }
    if (s->archive != NULL) {
        return read_packed(s, buffer, capacity, err);
    }
    for (;;) {
        ssize_t n = read(s->fd, buffer, capacity < SSIZE_MAX ? capacity : SSIZE_MAX);
        if (n >= 0) {
            return n;
        }
        if (errno != EINTR) {
            (void)fail(s, APUS_E_IO, err, "cannot read: %s", strerror(errno));
            return -1;
        }
    }
}
