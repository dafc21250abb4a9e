/*
 * core/io: files as a run needs them: whole reads with limits, streams of rows out of plain, compressed and archived
 * files (libarchive), read-only maps, writes that are either whole or absent, sha256 (libcrypto).
 */
#ifndef APUS_CORE_IO_H
#define APUS_CORE_IO_H

#include <apus/base.h>

/* A file for reading, as open(2) gives it, that waits for nobody: a pipe that no one has opened to write is empty. */
int apus_open_reading(const char *path);

/* Whole file, NUL-terminated (owner: caller, host->free). Over `limit` bytes (0: 1 GiB) is an error. */
char *apus_file_read(const char *path, size_t limit, size_t *length, apus_error *err);

/* Read-only map; NULL with error. An empty file maps to a valid pointer with *length 0. */
const void *apus_file_map(const char *path, size_t *length, apus_error *err);
void apus_file_unmap(const void *map, size_t length);

/* Zeroed memory that the kernel may write to a file in `folder` rather than keep: mapped, shared. The file has no name, and its
 * room on the disk is taken before this returns: touching the memory cannot fail. Given back by apus_file_unmap. length > 0. */
void *apus_scratch_map(const char *folder, size_t length, apus_error *err);

/* May a file be put there: is what stands there a regular file, or nothing, and the folder there to be written? For who works long before. */
apus_status apus_file_may_be(const char *path, apus_error *err);
/* Write path.tmp-PID beside it, fsync, rename, fsync the folder. */
apus_status apus_file_write(const char *path, const void *bytes, size_t length, apus_error *err);

apus_status apus_mkdirs(const char *path, apus_error *err);
int apus_path_exists(const char *path);
int apus_path_is_dir(const char *path);
int apus_path_is_file(const char *path);                         /* a regular one */
apus_status apus_remove_tree(const char *path, apus_error *err); /* a missing path is fine; does not follow links */
apus_status apus_sync_dir(const char *path, apus_error *err);

/* sha256 as 64 hex digits + NUL. apus_sha256_file caches by (device, inode, size, mtime) within the process. */
typedef struct apus_sha256 apus_sha256;
apus_sha256 *apus_sha256_new(void);
void apus_sha256_add(apus_sha256 *s, const void *bytes, size_t n);
void apus_sha256_end(apus_sha256 *s, char hex[65]); /* frees s */
apus_status apus_sha256_file(const char *path, char hex[65], apus_error *err);
void apus_sha256_told(const char *path, const char hex[65]); /* what an earlier process found of the same bytes: not read again */

/* The members of a data file: a plain file is one member; .gz .xz .zst .bz2 of one file is one; .tar*, .zip have many.
 * Members whose names leave the archive (.., absolute) are an error; total output is bounded (ratio and size) against
 * bombs. A folder's files are members in name order. Names carry the extension that says what they hold ("a.jsonl"). */
typedef struct apus_source apus_source;
apus_status apus_source_open(const char *path, apus_source **source, apus_error *err);
/* 1: a next member (name valid until the next call), 0: end, -1: error. */
int apus_source_next(apus_source *s, const char **name, apus_error *err);
/* Bytes of the member: > 0, 0 at its end, -1 error. */
int64_t apus_source_read(apus_source *s, void *buffer, size_t capacity, apus_error *err);
/* What kind of error the first one was; APUS_OK: there was none. */
apus_status apus_source_status(const apus_source *s);
void apus_source_close(apus_source *s);

#endif
