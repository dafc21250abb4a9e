/*
 * core/module: finding and loading plugins, and the registry of their components. The one file that meets libltdl.
 *
 * libltdl 2.4.7 calls every failure "file not found" and binds lazily, so each file is first opened with dlopen: it
 * tells the cause, binds now and pins the object. Files are opened by their full path with no extension added (a .la
 * beside a plugin could lead elsewhere). Nothing is ever closed: plugins stay until the process ends.
 */
#include "module/internal.h"

#include "config/config.h"
#include "io/io.h"
#include "value/node.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <ltdl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Programs built by apus_preload() define it (the plugins linked into them); others do not. */
extern const lt_dlsymlist apus_preloaded[] __attribute__((weak));

typedef struct module {
    apus_module public;
    apus_plugin plugin;
    apus_keep keep;
    const char *base; /* file name without its folder and extension */
    struct stat st;   /* when it was loaded */
    char sha256[65];
} module;

typedef struct entry {
    const apus_component *component;
    const module *module;
} entry;

/* The registry. Changed only on the main thread, before workers start; components are in (kind, name) order. */
static module **modules;
static size_t n_modules;
static entry *entries;
static size_t n_entries;

static void say(int level, const char *text)
{
    apus_host_table()->log(level, "module", text);
}

/* ---------------------------------------------------------------- registry */

static int compare(const char *kind, const char *name, const apus_component *c)
{
    int order = strcmp(kind, c->kind);
    return order != 0 ? order : strcmp(name, c->name);
}

/* First entry that is not before (kind, name). */
static size_t lower_bound(const char *kind, const char *name)
{
    size_t low = 0, high = n_entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare(kind, name, entries[middle].component) > 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static const entry *lookup(const char *kind, const char *name)
{
    size_t i = lower_bound(kind, name);
    return i < n_entries && compare(kind, name, entries[i].component) == 0 ? &entries[i] : NULL;
}

/* Takes m: it belongs to the registry or, with an error, is freed by the caller. */
static apus_status add_module(module *m, apus_error *err)
{
    const apus_plugin *p = &m->plugin;
    for (uint32_t i = 0; i < p->n_components; i++) {
        const apus_component *c = &p->components[i];
        const entry *other = lookup(c->kind, c->name);
        if (other != NULL) {
            (void)apus_fail(err, APUS_E_INVALID, "%s: %s %s is already provided by %s", m->public.path, c->kind, c->name, other->module->public.path);
            return apus_hint(err, APUS_E_INVALID, "remove one of the two files, or rename the component");
        }
    }
    entry *wider = realloc(entries, (n_entries + p->n_components + 1) * sizeof *wider);
    entries = wider != NULL ? wider : entries;
    module **more = realloc(modules, (n_modules + 1) * sizeof *more);
    modules = more != NULL ? more : modules;
    if (wider == NULL || more == NULL) {
        return apus_fail(err, APUS_E_MEMORY, "%s: no memory to register it", m->public.path);
    }
    modules[n_modules++] = m;
    for (uint32_t i = 0; i < p->n_components; i++) {
        const apus_component *c = &p->components[i];
        size_t at = lower_bound(c->kind, c->name);
        memmove(entries + at + 1, entries + at, (n_entries - at) * sizeof *entries);
        entries[at] = (entry){.component = c, .module = m};
        n_entries++;
    }
    return APUS_OK;
}

/* ---------------------------------------------------------------- loading */

static apus_status start_ltdl(apus_error *err)
{
    static int started;
    if (started) {
        return APUS_OK;
    }
    if (apus_preloaded != NULL) {
        (void)lt_dlpreload_default(apus_preloaded);
    }
    if (lt_dlinit() != 0) {
        return apus_fail(err, APUS_E_INTERNAL, "libltdl does not start");
    }
    started = 1;
    return APUS_OK;
}

/* How dlopen's message reads once the path that it may repeat is cut off. */
static const char *dl_cause(const char *path)
{
    const char *cause = dlerror();
    size_t n = strlen(path);
    if (cause == NULL) {
        return "cannot be loaded";
    }
    return strncmp(cause, path, n) == 0 && strncmp(cause + n, ": ", 2) == 0 ? cause + n + 2 : cause;
}

static lt_dlhandle open_with(const char *name, int (*how)(lt_dladvise *advise))
{
    lt_dladvise advise;
    lt_dlhandle handle = NULL;
    if (lt_dladvise_init(&advise) != 0) {
        return NULL;
    }
    if (how(&advise) == 0) {
        handle = lt_dlopenadvise(name, advise);
    }
    (void)lt_dladvise_destroy(&advise);
    return handle;
}

/* Ask the entry, check what it gives, register. path is copied; base: its name without folder and extension. */
static apus_status enter(lt_dlhandle handle, const char *path, const char *base, const struct stat *st, apus_error *err)
{
    void *symbol = lt_dlsym(handle, "apus_plugin_v1");
    apus_plugin_entry function;
    if (symbol == NULL) {
        for (int major = 0; major < 10; major++) {
            char name[32];
            (void)snprintf(name, sizeof name, "apus_plugin_v%d", major);
            if (lt_dlsym(handle, name) != NULL) {
                return apus_fail(err, APUS_E_UNSUPPORTED, "%s: made for ABI %d, this host serves ABI %d", path, major, APUS_ABI_MAJOR);
            }
        }
        (void)apus_fail(err, APUS_E_INVALID, "%s: has no entry 'apus_plugin_v1': not a plugin", path);
        return apus_hint(err, APUS_E_INVALID, "declare it with APUS_EXPORT");
    }
    memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from object to function pointers */
    const apus_plugin *theirs = function(apus_host_table());
    if (theirs == NULL) {
        char line[PATH_MAX + 64];
        (void)snprintf(line, sizeof line, "%s: declined to serve this machine", path);
        say(APUS_LOG_WARN, line);
        return APUS_OK;
    }
    module *m = calloc(1, sizeof *m);
    char *own_path = m != NULL ? apus_keep_alloc(&m->keep, strlen(path) + 1) : NULL;
    char *own_base = m != NULL ? apus_keep_alloc(&m->keep, strlen(base) + 1) : NULL;
    apus_status status = APUS_OK;
    if (own_path == NULL || own_base == NULL) {
        status = apus_fail(err, APUS_E_MEMORY, "%s: no memory to load it", path);
    } else {
        m->base = strcpy(own_base, base);
        m->public = (apus_module){.path = strcpy(own_path, path), .sha256 = m->sha256, .plugin = &m->plugin};
        if (st != NULL) {
            m->st = *st;
        }
        status = apus_plugin_check(st != NULL ? path : base, theirs, &m->keep, &m->plugin, err);
    }
    if (status == APUS_OK) {
        status = add_module(m, err);
    }
    if (status != APUS_OK && m != NULL) {
        apus_keep_free(&m->keep);
        free(m);
    }
    return status;
}

/* File name without folder and ".so". */
static void base_of(const char *path, char *out, size_t capacity)
{
    const char *slash = strrchr(path, '/');
    (void)snprintf(out, capacity, "%s", slash != NULL ? slash + 1 : path);
    size_t n = strlen(out);
    if (n > 3 && strcmp(out + n - 3, ".so") == 0) {
        out[n - 3] = '\0';
    }
}

static apus_status load_file(const char *real, apus_error *err)
{
    char folder[PATH_MAX], base[NAME_MAX + 1];
    struct stat st;
    (void)snprintf(folder, sizeof folder, "%s", real);
    *strrchr(folder, '/') = '\0';
    apus_status status = apus_module_trust_dir(folder[0] != '\0' ? folder : "/", err);
    status = status == APUS_OK ? apus_module_trust(real, err) : status;
    status = status == APUS_OK ? apus_module_elf(real, err) : status;
    status = status == APUS_OK ? start_ltdl(err) : status;
    if (status != APUS_OK) {
        return status;
    }
    if (stat(real, &st) != 0) {
        return apus_fail(err, APUS_E_IO, "%s: cannot open: %s", real, strerror(errno));
    }
    if (dlopen(real, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) == NULL) {
        return apus_fail(err, APUS_E_INVALID, "%s: %s", real, dl_cause(real));
    }
    lt_dlhandle handle = open_with(real, lt_dladvise_local);
    if (handle == NULL) {
        const char *cause = lt_dlerror();
        return apus_fail(err, APUS_E_INTERNAL, "%s: libltdl: %s", real, cause != NULL ? cause : "cannot be loaded");
    }
    base_of(real, base, sizeof base);
    return enter(handle, real, base, &st, err);
}

static const module *loaded_from(const char *real)
{
    for (size_t i = 0; i < n_modules; i++) {
        if (strcmp(modules[i]->public.path, real) == 0) {
            return modules[i];
        }
    }
    return NULL;
}

apus_status apus_module_load_file(const char *path, apus_error *err)
{
    char real[PATH_MAX];
    if (realpath(path, real) == NULL) {
        return apus_fail(err, APUS_E_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    return loaded_from(real) != NULL ? APUS_OK : load_file(real, err);
}

/* ---------------------------------------------------------------- discovery */

/* A problem: with `lenient` a warning, else the error. */
static apus_status settle(apus_status status, int lenient, apus_error *err)
{
    if (status != APUS_OK && lenient) {
        say(APUS_LOG_WARN, err->message);
        err->message[0] = err->hint[0] = '\0';
        return APUS_OK;
    }
    return status;
}

static int is_plugin_file(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return d->d_name[0] != '.' && n > 3 && strcmp(d->d_name + n - 3, ".so") == 0;
}

/* A file of the same name in an earlier folder wins, so that a newer build can stand before the installed one. */
static int shadowed(const char *real, size_t n_before)
{
    char base[NAME_MAX + 1], line[2 * PATH_MAX + 64];
    base_of(real, base, sizeof base);
    for (size_t i = 0; i < n_before; i++) {
        if (strcmp(modules[i]->base, base) == 0) {
            (void)snprintf(line, sizeof line, "%s: left out: %s comes first", real, modules[i]->public.path);
            say(APUS_LOG_INFO, line);
            return 1;
        }
    }
    return 0;
}

static apus_status load_dir(const char *dir, int lenient, apus_error *err)
{
    struct dirent **files;
    if (dir[0] != '/') {
        (void)apus_fail(err, APUS_E_INVALID, "%s: a folder of plugins must be an absolute path", dir);
        return settle(APUS_E_INVALID, lenient, err);
    }
    apus_status status = apus_module_trust_dir(dir, err);
    if (status != APUS_OK) {
        return settle(status, lenient, err);
    }
    int n = scandir(dir, &files, is_plugin_file, alphasort);
    if (n < 0) {
        (void)apus_fail(err, APUS_E_IO, "%s: cannot list: %s", dir, strerror(errno));
        return settle(APUS_E_IO, lenient, err);
    }
    const size_t n_before = n_modules;
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX], real[PATH_MAX];
        if (status == APUS_OK) {
            if (snprintf(path, sizeof path, "%s/%s", dir, files[i]->d_name) >= (int)sizeof path || realpath(path, real) == NULL) {
                (void)apus_fail(err, APUS_E_IO, "%s/%s: cannot open: %s", dir, files[i]->d_name, strerror(errno));
                status = settle(APUS_E_IO, lenient, err);
            } else if (loaded_from(real) == NULL && !shadowed(real, n_before)) {
                status = settle(load_file(real, err), lenient, err);
            }
        }
        free(files[i]);
    }
    free(files);
    return status;
}

static apus_status load_preloaded(int lenient, apus_error *err)
{
    static int loaded;
    if (apus_preloaded == NULL || loaded) {
        return APUS_OK;
    }
    loaded = 1;
    apus_status status = start_ltdl(err);
    for (const lt_dlsymlist *s = apus_preloaded; status == APUS_OK && s->name != NULL; s++) {
        size_t n = strlen(s->name);
        char name[256];
        if (s->address != NULL || n < 3 || n >= sizeof name || strcmp(s->name + n - 2, ".a") != 0) {
            continue;
        }
        memcpy(name, s->name, n - 2);
        name[n - 2] = '\0';
        lt_dlhandle handle = open_with(name, lt_dladvise_preload);
        if (handle == NULL) {
            return apus_fail(err, APUS_E_INTERNAL, "%s: built in, but libltdl does not find it", name);
        }
        status = settle(enter(handle, "(built in)", name, NULL, err), lenient, err);
    }
    return status;
}

/* The folder of plugins that belongs to this program: beside it in a build tree, or where it was installed to, also
 * when the whole installation was moved. */
static apus_status load_own(int lenient, apus_error *err)
{
    static const char *const beside[] = {"/plugins", "/../" APUS_PLUGIN_SUBDIR};
    char program[PATH_MAX], dir[PATH_MAX + 128];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash = n > 0 ? (program[n] = '\0', strrchr(program, '/')) : NULL;
    for (size_t i = 0; slash != NULL && i < sizeof beside / sizeof beside[0]; i++) {
        *slash = '\0';
        (void)snprintf(dir, sizeof dir, "%s%s", program, beside[i]);
        if (apus_path_is_dir(dir)) {
            return load_dir(dir, lenient, err);
        }
    }
    return apus_path_is_dir(APUS_PLUGIN_DIR) ? load_dir(APUS_PLUGIN_DIR, lenient, err) : APUS_OK;
}

apus_status apus_modules_load(const char *const *dirs, size_t n_dirs, int lenient, apus_error *err)
{
    apus_error local;
    err = err != NULL ? err : &local;
    apus_status status = load_preloaded(lenient, err);
    for (size_t i = 0; status == APUS_OK && i < n_dirs; i++) {
        status = load_dir(dirs[i], lenient, err);
    }
    const char *path = getenv("APUS_PLUGIN_PATH");
    while (status == APUS_OK && path != NULL && path[0] != '\0') {
        char dir[PATH_MAX];
        size_t n = strcspn(path, ":");
        if (n >= sizeof dir) {
            (void)apus_fail(err, APUS_E_INVALID, "APUS_PLUGIN_PATH: a folder's path is too long");
            return settle(APUS_E_INVALID, lenient, err);
        }
        memcpy(dir, path, n);
        dir[n] = '\0';
        if (n > 0) { /* an empty part would mean the working directory elsewhere; here it means nothing */
            status = load_dir(dir, lenient, err);
        }
        path += n + (path[n] == ':');
    }
    return status == APUS_OK ? load_own(lenient, err) : status;
}

/* ---------------------------------------------------------------- asking */

size_t apus_module_count(void)
{
    return n_modules;
}

/* The hash is made when someone first looks, not at every start. */
static const apus_module *look(module *m)
{
    struct stat now;
    apus_error err;
    if (m->st.st_ino != 0 && m->sha256[0] == '\0' && stat(m->public.path, &now) == 0 && now.st_ino == m->st.st_ino && now.st_size == m->st.st_size &&
        now.st_mtim.tv_sec == m->st.st_mtim.tv_sec && now.st_mtim.tv_nsec == m->st.st_mtim.tv_nsec) {
        (void)apus_sha256_file(m->public.path, m->sha256, &err);
    }
    return &m->public;
}

const apus_module *apus_module_at(size_t i)
{
    return i < n_modules ? look(modules[i]) : NULL;
}

const apus_module *apus_component_module(const apus_component *c)
{
    for (size_t i = 0; i < n_modules; i++) {
        const apus_plugin *p = &modules[i]->plugin;
        if (c >= p->components && c < p->components + p->n_components) {
            return look(modules[i]);
        }
    }
    return NULL;
}

size_t apus_component_count(const char *kind)
{
    if (kind == NULL) {
        return n_entries;
    }
    size_t n = 0;
    for (size_t i = lower_bound(kind, ""); i < n_entries && strcmp(entries[i].component->kind, kind) == 0; i++) {
        n++;
    }
    return n;
}

const apus_component *apus_component_at(const char *kind, size_t i)
{
    return i < apus_component_count(kind) ? entries[(kind != NULL ? lower_bound(kind, "") : 0) + i].component : NULL;
}

const apus_component *apus_component_find(const char *kind, const char *name, apus_error *err)
{
    const entry *found = lookup(kind, name);
    if (found != NULL) {
        return found->component;
    }
    size_t n = apus_component_count(kind);
    if (apus_kind_find(kind) == NULL) {
        (void)apus_fail(err, APUS_E_NOT_FOUND, "'%s' is no kind of component", kind);
        return NULL;
    }
    if (n == 0) {
        (void)apus_fail(err, APUS_E_NOT_FOUND, "no %s named '%s': no plugin with a %s is loaded", kind, name, kind);
        (void)apus_hint(err, APUS_E_NOT_FOUND, "name the folder of plugins with --plugin-dir or APUS_PLUGIN_PATH");
        return NULL;
    }
    const char **names = malloc(n * sizeof *names);
    const char *near = NULL;
    char list[400] = "";
    size_t used = 0;
    for (size_t i = 0; names != NULL && i < n; i++) {
        names[i] = apus_component_at(kind, i)->name;
        int put = snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "", names[i]);
        used = put > 0 && used + (size_t)put < sizeof list ? used + (size_t)put : used;
        list[used] = '\0';
    }
    if (names != NULL) {
        near = apus_did_you_mean(name, names, n);
    }
    if (near != NULL) {
        (void)apus_fail(err, APUS_E_NOT_FOUND, "no %s named '%s': did you mean '%s'?", kind, name, near);
    } else {
        (void)apus_fail(err, APUS_E_NOT_FOUND, "no %s named '%s'", kind, name);
    }
    (void)apus_hint(err, APUS_E_NOT_FOUND, "there are: %s", list);
    free(names);
    return NULL;
}

/* Put the place of a node before a message. */
static apus_status at_place(const apus_node *n, apus_status status, apus_error *err)
{
    char place[512];
    if (err != NULL && apus_nodes()->where(n, place, sizeof place)[0] != '\0') {
        apus_error inner = *err;
        (void)apus_fail(err, status, "%s: %s", place, inner.message);
        memcpy(err->hint, inner.hint, sizeof inner.hint);
    }
    return status;
}

apus_status apus_component_resolve(const char *kind, const apus_node *spec, const char *fallback_name, const apus_component **component,
                                   apus_node **params, apus_error *err)
{
    const apus_node_api *nodes = apus_nodes();
    const char *name = fallback_name;
    const apus_node *place = spec;
    const apus_node_kind is = nodes->kind(spec);
    if (is == APUS_NODE_STRING) {
        name = nodes->as_string(spec, NULL);
    } else if (is == APUS_NODE_MAP && nodes->get(spec, "type") != NULL) {
        place = nodes->get(spec, "type");
        name = nodes->as_string(place, NULL);
        if (name == NULL) {
            (void)apus_fail(err, APUS_E_INVALID, "type must be the name of a %s", kind);
            return at_place(place, APUS_E_INVALID, err);
        }
    } else if (is != APUS_NODE_MAP && is != APUS_NODE_NULL) {
        (void)apus_fail(err, APUS_E_INVALID, "expected the name of a %s, or a mapping with 'type:'", kind);
        return at_place(spec, APUS_E_INVALID, err);
    }
    if (name == NULL) {
        (void)apus_fail(err, APUS_E_INVALID, "a %s needs 'type:', its name", kind);
        return at_place(spec, APUS_E_INVALID, err);
    }
    const apus_component *c = apus_component_find(kind, name, err);
    if (c == NULL) {
        return at_place(place, APUS_E_NOT_FOUND, err);
    }
    char what[256];
    (void)snprintf(what, sizeof what, "%s %s", kind, name);
    apus_node *valid = apus_params_validate(is == APUS_NODE_MAP ? spec : NULL, c->params, c->n_params, "type", what, err);
    if (valid == NULL) {
        return APUS_E_INVALID;
    }
    *component = c;
    *params = valid;
    return APUS_OK;
}
