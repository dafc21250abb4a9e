/*
 * core/module/trust: what is looked at before a file's code may run: who may change it, and that it is a whole shared
 * object of this machine. Reads headers only; executes nothing.
 */
#include "module/internal.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static apus_status trust(const char *path, const struct stat *st, apus_error *err)
{
    if (st->st_uid != 0 && st->st_uid != geteuid()) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: owned by user %ld, refused: plugins must belong to root or to you", path, (long)st->st_uid);
        return apus_hint(err, APUS_E_INVALID, "copy it to a folder of your own");
    }
    if ((st->st_mode & 022) != 0) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: %s (mode %04o), refused: others could change what runs here", path,
                        (st->st_mode & 002) != 0 ? "world-writable" : "group-writable", (unsigned)(st->st_mode & 07777));
        return apus_hint(err, APUS_E_INVALID, "chmod go-w '%s'", path);
    }
    return APUS_OK;
}

apus_status apus_module_trust(const char *path, apus_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        return apus_fail(err, APUS_E_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return apus_fail(err, APUS_E_INVALID, "%s: not a regular file, expected a plugin", path);
    }
    return trust(path, &st, err);
}

apus_status apus_module_trust_dir(const char *path, apus_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        return apus_fail(err, APUS_E_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode)) {
        return apus_fail(err, APUS_E_INVALID, "%s: not a folder", path);
    }
    return trust(path, &st, err);
}

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__powerpc64__)
#define MACHINE EM_PPC64
#elif defined(__riscv)
#define MACHINE EM_RISCV
#elif defined(__s390x__)
#define MACHINE EM_S390
#endif

apus_status apus_module_elf(const char *path, apus_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        apus_status status = apus_fail(err, APUS_E_IO, "%s: cannot open: %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    Elf64_Ehdr head;
    const uint64_t size = (uint64_t)st.st_size;
    const char *wrong = NULL;
    const ssize_t got = pread(fd, &head, sizeof head, 0);
    if (got < SELFMAG || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) {
        wrong = "not an ELF file";
    } else if (got < (ssize_t)sizeof head) {
        wrong = "a cut ELF file";
    } else if (head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_type != ET_DYN) {
        wrong = "not a 64-bit ELF shared object";
#ifdef MACHINE
    } else if (head.e_machine != MACHINE) {
        wrong = "built for another machine";
#endif
    } else if (head.e_phentsize != sizeof(Elf64_Phdr) || head.e_phoff > size || (uint64_t)head.e_phnum * sizeof(Elf64_Phdr) > size - head.e_phoff) {
        wrong = "a cut ELF file";
    }
    for (unsigned i = 0; wrong == NULL && i < head.e_phnum; i++) {
        Elf64_Phdr segment;
        if (pread(fd, &segment, sizeof segment, (off_t)(head.e_phoff + i * sizeof segment)) != (ssize_t)sizeof segment ||
            (segment.p_type == PT_LOAD && (segment.p_offset > size || segment.p_filesz > size - segment.p_offset))) {
            wrong = "a cut ELF file";
        }
    }
    close(fd);
    return wrong == NULL ? APUS_OK : apus_fail(err, APUS_E_INVALID, "%s: %s, expected a plugin (shared object)", path, wrong);
}
