/*
 * The cpu backend's large blocks: on borders of huge pages, as reading weights is bound by address translation otherwise; and dealt out
 * over the memory nodes that the process may use, as every thread reads all of the weights.
 */
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { HUGE_PAGE = APUS_CPU_LARGE };

static size_t whole_pages(size_t bytes)
{
    return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

/* "0-1,4": bit i of the mask for node i; of nodes beyond the mask none. Returns how many there are. */
static int parse_nodes(const char *list, unsigned long *mask)
{
    int n = 0;
    *mask = 0;
    while (*list >= '0' && *list <= '9') {
        char *end;
        const long first = strtol(list, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long i = first; i <= last && i < (long)(8 * sizeof *mask); i++, n++) {
            *mask |= 1ul << i;
        }
        list = *end == ',' ? end + 1 : end;
    }
    return n;
}

int apus_cpu_nodes(unsigned long *mask)
{
    static const char key[] = "Mems_allowed_list:";
    char line[4096];
    int n = 0;
    FILE *f = fopen("/proc/self/status", "r");
    *mask = 0;
    while (f != NULL && n == 0 && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, key, sizeof key - 1) == 0) {
            n = parse_nodes(line + sizeof key - 1 + strspn(line + sizeof key - 1, " \t"), mask);
        }
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return n > 0 ? n : 1;
}

/* Only advice: where the kernel says no, pages lie with the thread that touches them first. */
static void deal_out(void *p, size_t bytes, int nodes, unsigned long mask)
{
#if defined(__linux__)
    if (nodes > 1) {
        (void)syscall(SYS_mbind, p, bytes, MPOL_INTERLEAVE, &mask, 8 * sizeof mask + 1, 0);
    }
#else
    (void)p, (void)bytes, (void)nodes, (void)mask;
#endif
}

void *apus_cpu_map(const apus_cpu *cpu, size_t bytes)
{
    if (bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE) {
        return NULL;
    }
    const size_t size = whole_pages(bytes);
    char *p = (char *)mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == (char *)MAP_FAILED) {
        return NULL;
    }
    const size_t skip = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (skip > 0) {
        (void)munmap(p, skip);
    }
    (void)munmap(p + skip + size, HUGE_PAGE - skip);
    (void)madvise(p + skip, size, MADV_HUGEPAGE); /* a kernel without huge pages says no */
    deal_out(p + skip, size, cpu->nodes, cpu->node_mask);
    return p + skip;
}

void apus_cpu_unmap(void *p, size_t bytes)
{
    (void)munmap(p, whole_pages(bytes));
}
