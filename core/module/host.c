/*
 * core/module/host: the table that every plugin gets: memory, log lines, the stop flag, and the extension tables that
 * other parts of core announce. Knows no extension by name.
 */
#include "module/module.h"

#include "value/node.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---------------------------------------------------------------- memory */

enum { ALIGNMENT = 64, LAZY_BYTES = 1 << 20 };

/* Zero n bytes at p. Large blocks are handed back to the kernel, which zeroes pages when they are first touched: a
 * buffer of which only a part is used costs only that part. */
static void zero(char *p, size_t n)
{
    if (n >= LAZY_BYTES) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        size_t head = (page - (uintptr_t)p % page) % page;
        size_t whole = (n - head) / page * page;
        if (madvise(p + head, whole, MADV_DONTNEED) == 0) {
            memset(p, 0, head);
            memset(p + head + whole, 0, n - head - whole);
            return;
        }
    }
    memset(p, 0, n);
}

static void *host_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    void *p = NULL;
    if (posix_memalign(&p, ALIGNMENT, bytes != 0 ? bytes : 1) != 0) {
        return NULL;
    }
    zero(p, bytes);
    return p;
}

static void *host_realloc(void *p, size_t old_bytes, size_t bytes)
{
    void *q = host_alloc(bytes);
    if (q == NULL) {
        return NULL;
    }
    if (p != NULL) {
        memcpy(q, p, old_bytes < bytes ? old_bytes : bytes);
        free(p);
    }
    return q;
}

/* ---------------------------------------------------------------- log */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static void (*log_before)(void *user);
static void *log_user;

static int log_threshold(void)
{
    const char *level = getenv("APUS_LOG");
    if (level == NULL || strcmp(level, "warn") == 0) {
        return APUS_LOG_WARN;
    }
    return strcmp(level, "debug") == 0   ? APUS_LOG_DEBUG
           : strcmp(level, "info") == 0  ? APUS_LOG_INFO
           : strcmp(level, "error") == 0 ? APUS_LOG_ERROR
                                         : APUS_LOG_WARN;
}

static void host_log(int level, const char *component, const char *line)
{
    static const char *const words[] = {"debug", "info", "warning", "error"};
    if (level < log_threshold() || line == NULL) {
        return;
    }
    level = level < APUS_LOG_DEBUG ? APUS_LOG_DEBUG : level > APUS_LOG_ERROR ? APUS_LOG_ERROR : level;
    const char *separator = component != NULL && component[0] != '\0' ? ": " : "";
    size_t room = strlen(line) + (component != NULL ? strlen(component) : 0) + 32;
    char *text = malloc(room);
    if (text == NULL) {
        return;
    }
    int n = snprintf(text, room, "apus: %s: %s%s%s", words[level], component != NULL ? component : "", separator, line);
    for (int i = 0; i < n; i++) { /* one line, and nothing that moves the terminal's cursor */
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f) {
            text[i] = ' ';
        }
    }
    pthread_mutex_lock(&log_lock);
    if (log_before != NULL) {
        log_before(log_user);
    }
    (void)fprintf(stderr, "%s\n", text);
    (void)fflush(stderr);
    pthread_mutex_unlock(&log_lock);
    free(text);
}

void apus_log_hook(void (*before)(void *user), void *user)
{
    pthread_mutex_lock(&log_lock);
    log_before = before;
    log_user = user;
    pthread_mutex_unlock(&log_lock);
}

/* ---------------------------------------------------------------- clean stop */

static atomic_int stop_requested;
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "the stop flag is set in a signal handler");

static int host_stopping(void)
{
    return atomic_load_explicit(&stop_requested, memory_order_relaxed);
}

void apus_stop_request(void)
{
    atomic_store(&stop_requested, 1);
}

static void on_signal(int number)
{
    (void)number;
    if (atomic_exchange(&stop_requested, 1) != 0) {
        _exit(130);
    }
}

void apus_stop_install(void)
{
    /* SA_RESTART: reads and writes go on; long loops ask host->stopping. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

/* ---------------------------------------------------------------- extensions and the table */

enum { EXTENSIONS_MAX = 64 };

static struct {
    const char *id;
    const void *table;
} extensions[EXTENSIONS_MAX];
static atomic_size_t n_extensions; /* grows only, after the entry is written: readers need no lock */

static const void *host_extension(const char *id)
{
    size_t n = atomic_load_explicit(&n_extensions, memory_order_acquire);
    for (size_t i = 0; id != NULL && i < n; i++) {
        if (strcmp(extensions[i].id, id) == 0) {
            return extensions[i].table;
        }
    }
    return NULL;
}

void apus_host_announce(const char *id, const void *table)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    size_t n = atomic_load(&n_extensions);
    if (host_extension(id) == NULL && n < EXTENSIONS_MAX) {
        extensions[n].id = id;
        extensions[n].table = table;
        atomic_store_explicit(&n_extensions, n + 1, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
}

static apus_host host = {
    .size = sizeof(apus_host),
    .minor = APUS_ABI_MINOR,
    .extension = host_extension,
    .alloc = host_alloc,
    .realloc = host_realloc,
    .free = free,
    .log = host_log,
    .stopping = host_stopping,
};

static void host_complete(void)
{
    host.node = apus_nodes();
}

const apus_host *apus_host_table(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, host_complete);
    return &host;
}
