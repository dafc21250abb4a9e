/* core/io: whole files, atomic writes, hashes, and the members of data files, whole, damaged and hostile. */
#include "io/io.h"

#include "module/module.h"

#include <archive.h>
#include <archive_entry.h>

#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[256];

static const char *at(const char *name)
{
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int setup(void **state)
{
    apus_error err;
    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/io-%ld", APUS_TEST_TMP, (long)getpid());
    return apus_mkdirs(folder, &err) == APUS_OK ? 0 : -1;
}

static int teardown(void **state)
{
    apus_error err;
    (void)state;
    return apus_remove_tree(folder, &err) == APUS_OK ? 0 : -1;
}

static void put(const char *path, const void *bytes, size_t n)
{
    apus_error err;
    assert_int_equal(apus_file_write(path, bytes, n, &err), APUS_OK);
}

static void assert_says(const apus_error *err, const char *words)
{
    if (strstr(err->message, words) == NULL || strchr(err->message, '\n') != NULL) {
        fail_msg("message '%s' does not say '%s' on one line", err->message, words);
    }
}

/* ---------------------------------------------------------------- files */

static void test_read(void **state)
{
    (void)state;
    apus_error err;
    size_t n = 99;
    put(at("a"), "hello\0world", 11);
    char *text = apus_file_read(at("a"), 0, &n, &err);
    assert_non_null(text);
    assert_int_equal(n, 11);
    assert_memory_equal(text, "hello\0world", 12);
    apus_host_table()->free(text);
    text = apus_file_read(at("a"), 11, &n, &err);
    assert_non_null(text);
    apus_host_table()->free(text);
    assert_null(apus_file_read(at("a"), 10, &n, &err));
    assert_says(&err, "larger than the limit of 10 bytes");
    assert_null(apus_file_read(at("none"), 0, &n, &err));
    assert_says(&err, "/none: cannot open: No such file");
    assert_null(apus_file_read(folder, 0, &n, &err));
    assert_says(&err, "is a folder");
    put(at("empty"), "", 0);
    text = apus_file_read(at("empty"), 0, &n, &err);
    assert_non_null(text);
    assert_int_equal(n, 0);
    assert_int_equal(text[0], 0);
    apus_host_table()->free(text);
    assert_null(apus_file_read("/dev/zero", 100000, &n, &err)); /* no size, no end */
    assert_says(&err, "limit");
}

static void test_map(void **state)
{
    (void)state;
    apus_error err;
    size_t n;
    put(at("map"), "0123456789", 10);
    const char *map = apus_file_map(at("map"), &n, &err);
    assert_non_null(map);
    assert_int_equal(n, 10);
    assert_memory_equal(map, "0123456789", 10);
    apus_file_unmap(map, n);
    put(at("map0"), "", 0);
    map = apus_file_map(at("map0"), &n, &err);
    assert_non_null(map);
    assert_int_equal(n, 0);
    apus_file_unmap(map, n);
    assert_null(apus_file_map("/dev/null", &n, &err));
    assert_says(&err, "not a regular file");
}

/* A reader that opens the file again and again sees one whole version or another, never a mix or a gap. */
enum { ROUNDS = 200, BYTES = 100000 };

static void *watch(void *path)
{
    for (int torn = 0;;) {
        apus_error err;
        size_t n;
        char *text = apus_file_read(path, 0, &n, &err);
        if (text == NULL || n != BYTES) {
            return "missing or short";
        }
        char first = text[0];
        for (size_t i = 0; i < n; i++) {
            torn |= text[i] != first;
        }
        apus_host_table()->free(text);
        if (torn || first == 'Z') {
            return torn ? "torn" : NULL;
        }
    }
}

static void test_write_is_atomic(void **state)
{
    (void)state;
    apus_error err;
    static char bytes[BYTES];
    char path[512];
    void *verdict;
    pthread_t reader;
    (void)snprintf(path, sizeof path, "%s", at("atomic"));
    memset(bytes, 'A', BYTES);
    put(path, bytes, BYTES);
    assert_int_equal(pthread_create(&reader, NULL, watch, path), 0);
    for (int i = 1; i <= ROUNDS; i++) {
        memset(bytes, i == ROUNDS ? 'Z' : 'A' + i % 25, BYTES);
        put(path, bytes, BYTES);
    }
    pthread_join(reader, &verdict);
    assert_null(verdict);

    /* A failed write leaves the old file and no debris. */
    assert_int_equal(apus_mkdirs(at("busy/inner"), &err), APUS_OK);
    assert_int_equal(apus_file_write(at("busy"), "x", 1, &err), APUS_E_IO);
    assert_says(&err, "busy: is a folder, expected a file");
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    assert_int_equal(apus_file_write(at("pipe"), "x", 1, &err), APUS_E_IO); /* nor takes the place of what is no file */
    assert_says(&err, "pipe: is a device or pipe, expected a file");
    size_t length = 1;
    char *nothing = apus_file_read(at("pipe"), 0, &length, &err); /* a pipe that nobody writes to is not waited for */
    assert_non_null(nothing);
    assert_int_equal(length, 0);
    apus_host_table()->free(nothing);
    assert_int_equal(apus_file_write(at("none/file"), "x", 1, &err), APUS_E_IO);
    DIR *dir = opendir(folder);
    for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
        assert_null(strstr(d->d_name, ".tmp-"));
    }
    closedir(dir);
}

static void test_folders(void **state)
{
    (void)state;
    apus_error err;
    assert_int_equal(apus_mkdirs(at("d/e/f"), &err), APUS_OK);
    assert_int_equal(apus_mkdirs(at("d/e/f/"), &err), APUS_OK);
    assert_true(apus_path_is_dir(at("d/e/f")));
    put(at("d/file"), "x", 1);
    assert_int_equal(apus_mkdirs(at("d/file/g"), &err), APUS_E_IO);
    assert_says(&err, "d/file: is a file where a folder is needed");
    put(at("outside"), "keep", 4);
    assert_int_equal(symlink(at("outside"), at("d/link")), 0);
    assert_int_equal(symlink(folder, at("d/e/up")), 0);
    assert_int_equal(apus_remove_tree(at("d"), &err), APUS_OK);
    assert_false(apus_path_exists(at("d")));
    assert_true(apus_path_exists(at("outside")));
    assert_int_equal(apus_remove_tree(at("d"), &err), APUS_OK);
    assert_int_equal(apus_sync_dir(folder, &err), APUS_OK);
    assert_int_equal(apus_sync_dir(at("d"), &err), APUS_E_IO);
}

static void test_sha256(void **state)
{
    (void)state;
    apus_error err;
    char hex[65];
    apus_sha256_end(apus_sha256_new(), hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    apus_sha256 *s = apus_sha256_new();
    apus_sha256_add(s, "a", 1);
    apus_sha256_add(s, "bc", 2);
    apus_sha256_end(s, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180-4 */
    put(at("abc"), "abc", 3);
    assert_int_equal(apus_sha256_file(at("abc"), hex, &err), APUS_OK);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    put(at("abc"), "abd", 3); /* same size, within the clock's tick */
    assert_int_equal(apus_sha256_file(at("abc"), hex, &err), APUS_OK);
    assert_memory_equal(hex, "a52d159f", 8);
    assert_int_equal(apus_sha256_file(at("nothing"), hex, &err), APUS_E_IO);
    assert_string_equal(hex, "");
    assert_int_equal(apus_sha256_file(folder, hex, &err), APUS_E_IO);
}

/* ---------------------------------------------------------------- sources */

typedef struct member {
    const char *name, *text, *link;
    mode_t type;
} member;

static void pack(const char *path, int (*format)(struct archive *), int filter, const member *members, size_t n)
{
    struct archive *a = archive_write_new();
    assert_int_equal(format(a), ARCHIVE_OK);
    if (filter != 0) {
        assert_int_equal(archive_write_add_filter(a, filter), ARCHIVE_OK);
    }
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    for (size_t i = 0; i < n; i++) {
        struct archive_entry *e = archive_entry_new();
        archive_entry_set_pathname(e, members[i].name);
        archive_entry_set_filetype(e, members[i].type != 0 ? members[i].type : AE_IFREG);
        archive_entry_set_perm(e, 0644);
        size_t size = members[i].text != NULL ? strlen(members[i].text) : 0;
        archive_entry_set_size(e, (la_int64_t)size);
        if (members[i].link != NULL && members[i].type == AE_IFLNK) {
            archive_entry_set_symlink(e, members[i].link);
        } else if (members[i].link != NULL) {
            archive_entry_set_hardlink(e, members[i].link);
        }
        assert_true(archive_write_header(a, e) >= ARCHIVE_WARN);
        if (size > 0) {
            assert_int_equal(archive_write_data(a, members[i].text, size), size);
        }
        archive_entry_free(e);
    }
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

/* "name=text;" of all members, or "error" with err filled. */
static const char *listing(const char *path, apus_error *err)
{
    static char out[4096];
    size_t used = 0;
    memset(err, 0, sizeof *err);
    apus_source *s;
    if (apus_source_open(path, &s, err) != APUS_OK) {
        return "error";
    }
    const char *name;
    int got;
    while ((got = apus_source_next(s, &name, err)) > 0) {
        used += (size_t)snprintf(out + used, sizeof out - used, "%s=", name);
        char piece[7];
        int64_t n;
        while ((n = apus_source_read(s, piece, sizeof piece, err)) > 0) {
            assert_true(used + (size_t)n < sizeof out);
            memcpy(out + used, piece, (size_t)n);
            used += (size_t)n;
        }
        if (n < 0) {
            got = -1;
            break;
        }
        out[used++] = ';';
    }
    apus_source_close(s);
    out[used] = '\0';
    return got < 0 ? "error" : out;
}

static void test_plain(void **state)
{
    (void)state;
    apus_error err;
    put(at("rows.jsonl"), "{\"a\":1}\n", 8);
    assert_string_equal(listing(at("rows.jsonl"), &err), "rows.jsonl={\"a\":1}\n;");
    put(at("none.txt"), "", 0);
    assert_string_equal(listing(at("none.txt"), &err), "none.txt=;");
    put(at("list.txt"), "#mtree\nx type=file\n", 19); /* a listing of files, to libarchive */
    assert_string_equal(listing(at("list.txt"), &err), "list.txt=#mtree\nx type=file\n;");
    put(at("notes.txt"), "BZhang says", 11);
    assert_string_equal(listing(at("notes.txt"), &err), "notes.txt=BZhang says;");
    assert_string_equal(listing(at("absent"), &err), "error");
    assert_says(&err, "absent: cannot open");
}

static void test_compressed(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int filter;
    } cases[] = {
        {"d.csv.gz", ARCHIVE_FILTER_GZIP}, {"d.csv.xz", ARCHIVE_FILTER_XZ}, {"d.csv.zst", ARCHIVE_FILTER_ZSTD}, {"d.csv.bz2", ARCHIVE_FILTER_BZIP2}};
    apus_error err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        member one = {.name = "data", .text = "a,b\n1,2\n"};
        pack(at(cases[i].name), archive_write_set_format_raw, cases[i].filter, &one, 1);
        assert_string_equal(listing(at(cases[i].name), &err), "d.csv=a,b\n1,2\n;");
        one.text = "";
        pack(at(cases[i].name), archive_write_set_format_raw, cases[i].filter, &one, 1);
        assert_string_equal(listing(at(cases[i].name), &err), "d.csv=;");
    }
}

static void test_archives(void **state)
{
    (void)state;
    apus_error err;
    const member members[] = {{.name = "sub", .type = AE_IFDIR},
                              {.name = "sub/b.jsonl", .text = "second and longer than a piece"},
                              {.name = "__MACOSX/sub/._b.jsonl", .text = "shadow"},
                              {.name = "sub/.hidden", .text = "hidden"},
                              {.name = "a.txt", .text = ""}};
    const char *want = "sub/b.jsonl=second and longer than a piece;a.txt=;";
    pack(at("x.tar"), archive_write_set_format_pax_restricted, 0, members, 5);
    assert_string_equal(listing(at("x.tar"), &err), want);
    pack(at("x.tar.gz"), archive_write_set_format_pax_restricted, ARCHIVE_FILTER_GZIP, members, 5);
    assert_string_equal(listing(at("x.tar.gz"), &err), want);
    pack(at("x.tgz"), archive_write_set_format_ustar, ARCHIVE_FILTER_GZIP, members, 5);
    assert_string_equal(listing(at("x.tgz"), &err), want);
    pack(at("x.tar.zst"), archive_write_set_format_pax_restricted, ARCHIVE_FILTER_ZSTD, members, 5);
    assert_string_equal(listing(at("x.tar.zst"), &err), want);
    pack(at("x.zip"), archive_write_set_format_zip, 0, members, 5);
    assert_string_equal(listing(at("x.zip"), &err), want);
    pack(at("old.tar"), archive_write_set_format_v7tar, 0, members, 5);
    assert_string_equal(listing(at("old.tar"), &err), want);

    const member wide = {.name = "d\xc3\xa9j\xc3\xa0.txt", .text = "vu"}; /* beyond ASCII, in the C locale */
    pack(at("utf8.tar"), archive_write_set_format_gnutar, 0, &wide, 1);
    assert_string_equal(listing(at("utf8.tar"), &err), "d\xc3\xa9j\xc3\xa0.txt=vu;");

    /* Members that nobody reads are passed over. */
    apus_source *s;
    assert_int_equal(apus_source_open(at("x.tar.gz"), &s, &err), APUS_OK);
    const char *name;
    int n = 0;
    while (apus_source_next(s, &name, &err) > 0) {
        n++;
    }
    assert_int_equal(n, 2);
    apus_source_close(s);
}

static void test_hostile_archives(void **state)
{
    (void)state;
    apus_error err;
    static const struct {
        member m;
        const char *says;
    } cases[] = {
        {{.name = "../up.txt", .text = "x"}, "member 2 '../up.txt' leaves the archive"},
        {{.name = "a/../../up.txt", .text = "x"}, "leaves the archive"},
        {{.name = "a/..", .text = "x"}, "leaves the archive"},
        {{.name = "..\\up.txt", .text = "x"}, "leaves the archive"},
        {{.name = "/etc/passwd", .text = "x"}, "has an absolute path"},
        {{.name = "C:\\boot.ini", .text = "x"}, "has an absolute path"},
        {{.name = "a\nb", .text = "x"}, "control characters"},
        {{.name = "link", .type = AE_IFLNK, .link = "/etc/passwd"}, "'link' is a link"},
        {{.name = "hard", .link = "ok.txt"}, "'hard' is a link"},
        {{.name = "pipe", .type = AE_IFIFO}, "neither a file nor a folder"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const member members[] = {{.name = "ok.txt", .text = "fine"}, cases[i].m};
        pack(at("bad.tar"), archive_write_set_format_gnutar, 0, members, 2);
        assert_string_equal(listing(at("bad.tar"), &err), "error");
        assert_says(&err, cases[i].says);
        assert_says(&err, "bad.tar: ");
    }
    const member up = {.name = "../up.txt", .text = "x"};
    pack(at("bad.zip"), archive_write_set_format_zip, 0, &up, 1);
    assert_string_equal(listing(at("bad.zip"), &err), "error");
    assert_says(&err, "leaves the archive");
}

static int64_t drain(const char *path, int read_it, apus_error *err)
{
    static char block[1 << 20];
    apus_source *s;
    const char *name;
    int got;
    int64_t n = 0, total = 0;
    if (apus_source_open(path, &s, err) != APUS_OK) {
        return -1;
    }
    while ((got = apus_source_next(s, &name, err)) > 0) {
        while (read_it && (n = apus_source_read(s, block, sizeof block, err)) > 0) {
            total += n;
        }
        if (n < 0) {
            break;
        }
    }
    /* An error stays. */
    if (got < 0 || n < 0) {
        apus_error again;
        assert_int_equal(apus_source_next(s, &name, &again), -1);
        assert_int_equal(apus_source_read(s, block, 1, &again), -1);
        assert_int_equal(apus_source_status(s), APUS_E_INVALID);
    }
    apus_source_close(s);
    return got < 0 || n < 0 ? -1 : total;
}

static void test_bombs(void **state)
{
    (void)state;
    apus_error err;
    size_t n = 100u << 20;
    char *zeros = malloc(n + 1);
    assert_non_null(zeros);
    memset(zeros, ' ', n);
    zeros[n] = '\0';
    const member bomb = {.name = "bomb.txt", .text = zeros};
    pack(at("bomb.gz"), archive_write_set_format_raw, ARCHIVE_FILTER_GZIP, &bomb, 1);
    assert_int_equal(drain(at("bomb.gz"), 1, &err), -1);
    assert_says(&err, "unpacks to more than 300 times");
    pack(at("bomb.zip"), archive_write_set_format_zip, 0, &bomb, 1);
    assert_int_equal(drain(at("bomb.zip"), 1, &err), -1);
    assert_says(&err, "unpacks to more than 300 times");
    assert_int_equal(drain(at("bomb.zip"), 0, &err), -1); /* passing over it is bounded too */
    pack(at("bomb.tar.bz2"), archive_write_set_format_pax_restricted, ARCHIVE_FILTER_BZIP2, &bomb, 1);
    assert_int_equal(drain(at("bomb.tar.bz2"), 0, &err), -1);
    assert_says(&err, "unpacks to more than 300 times");

    /* Large and well packed, but real: stays allowed. */
    srand(1);
    for (size_t i = 0; i < n; i += 64) {
        zeros[i] = (char)('a' + rand() % 26);
    }
    pack(at("real.gz"), archive_write_set_format_raw, ARCHIVE_FILTER_GZIP, &bomb, 1);
    assert_int_equal(drain(at("real.gz"), 1, &err), n);
    free(zeros);
}

static void test_truncated(void **state)
{
    (void)state;
    apus_error err;
    static char text[200001];
    srand(7);
    for (size_t i = 0; i + 1 < sizeof text; i++) {
        text[i] = (char)('a' + rand() % 26);
    }
    const member one = {.name = "rows.txt", .text = text};
    static const struct {
        const char *name;
        int (*format)(struct archive *);
        int filter;
    } cases[] = {
        {"cut.txt.gz", archive_write_set_format_raw, ARCHIVE_FILTER_GZIP},
        {"cut.txt.xz", archive_write_set_format_raw, ARCHIVE_FILTER_XZ},
        {"cut.txt.zst", archive_write_set_format_raw, ARCHIVE_FILTER_ZSTD},
        {"cut.txt.bz2", archive_write_set_format_raw, ARCHIVE_FILTER_BZIP2},
        {"cut.tar", archive_write_set_format_ustar, 0},
        {"cut.tar.gz", archive_write_set_format_ustar, ARCHIVE_FILTER_GZIP},
        {"cut.zip", archive_write_set_format_zip, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pack(at(cases[i].name), cases[i].format, cases[i].filter, &one, 1);
        assert_int_equal(drain(at(cases[i].name), 1, &err), 200000);
        struct stat st;
        assert_int_equal(stat(at(cases[i].name), &st), 0);
        static const int sixteenths[] = {1, 8, 12};
        for (size_t k = 0; k < 3; k++) {
            size_t n;
            char *bytes = apus_file_read(at(cases[i].name), 0, &n, &err);
            put(at("short"), bytes, n * (size_t)sixteenths[k] / 16);
            apus_host_table()->free(bytes);
            assert_int_equal(drain(at("short"), 1, &err), -1);
            assert_says(&err, "cannot be unpacked: ");
        }
    }
    put(at("noise.gz"), "\x1f\x8b\x08 this is no gzip", 19);
    assert_string_equal(listing(at("noise.gz"), &err), "error");
    assert_says(&err, "noise.gz: cannot be unpacked");
    put(at("noise.tar"), "this is no tar", 14);
    assert_string_equal(listing(at("noise.tar"), &err), "error");
    put(at("noise.zip"), "PK\3\4 this is no zip", 19);
    assert_string_equal(listing(at("noise.zip"), &err), "error");
}

static void test_folder(void **state)
{
    (void)state;
    apus_error err;
    assert_int_equal(apus_mkdirs(at("data/sub"), &err), APUS_OK);
    assert_int_equal(apus_mkdirs(at("data/.git"), &err), APUS_OK);
    assert_string_equal(listing(at("data"), &err), "error");
    assert_says(&err, "data: a folder without files");
    put(at("data/b.jsonl"), "2", 1);
    put(at("data/.git/x"), "no", 2);
    put(at("data/a.jsonl"), "1", 1);
    put(at("elsewhere"), "4", 1);
    assert_int_equal(symlink(at("elsewhere"), at("data/d.txt")), 0);
    const member one = {.name = "m.txt", .text = "5"};
    pack(at("data/c.csv.gz"), archive_write_set_format_raw, ARCHIVE_FILTER_GZIP, &one, 1);
    pack(at("data/sub/z.zip"), archive_write_set_format_zip, 0, &one, 1);
    assert_string_equal(listing(at("data"), &err), "a.jsonl=1;b.jsonl=2;c.csv=5;d.txt=4;sub/z.zip/m.txt=5;");
    assert_int_equal(symlink(at("nowhere"), at("data/e.txt")), 0);
    assert_string_equal(listing(at("data"), &err), "error");
    assert_says(&err, "cannot open 'e.txt'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),       cmocka_unit_test(test_map),       cmocka_unit_test(test_write_is_atomic),
        cmocka_unit_test(test_folders),    cmocka_unit_test(test_sha256),    cmocka_unit_test(test_plain),
        cmocka_unit_test(test_compressed), cmocka_unit_test(test_archives),  cmocka_unit_test(test_hostile_archives),
        cmocka_unit_test(test_bombs),      cmocka_unit_test(test_truncated), cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
