/* core/run/key.c: the hash of what makes a stage's output: the program, its parameters, seed, backend, plugins, and the files it reads. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/io.h"
#include "module/module.h"
#include "run/pipeline.h"
#include "value/node.h"

#define NODE apus_nodes()

/* ---- sha256 of files, remembered between runs by (device, inode, size, mtime) */

typedef struct hash_cache {
    apus_node *known;
    char path[4300];
    int changed;
} hash_cache;

static void cache_open(hash_cache *c, const char *dir)
{
    c->known = NULL;
    c->changed = 0;
    c->path[0] = '\0';
    if (dir != NULL) {
        snprintf(c->path, sizeof c->path, "%s/hashes.json", dir);
        size_t n;
        char *text = apus_path_exists(c->path) ? apus_file_read(c->path, 64u << 20, &n, NULL) : NULL;
        c->known = text != NULL ? NODE->parse_json(text, n, c->path, NULL) : NULL;
        apus_host_table()->free(text);
    }
    if (NODE->kind(c->known) != APUS_NODE_MAP) {
        NODE->release(c->known);
        c->known = NODE->make_map();
    }
}

static void cache_close(hash_cache *c, const char *dir)
{
    size_t n;
    char *text = c->changed && c->path[0] != '\0' ? NODE->write_json(c->known, 0, &n) : NULL;
    if (text != NULL && apus_mkdirs(dir, NULL) == APUS_OK)
        (void)apus_file_write(c->path, text, n, NULL);
    apus_host_table()->free(text);
    NODE->release(c->known);
}

static apus_status file_hash(hash_cache *c, const char *path, char hex[65], apus_error *err)
{
    struct stat s;
    char id[160];
    if (stat(path, &s) != 0)
        return apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    snprintf(id, sizeof id, "%llu:%llu:%lld:%lld.%09ld", (unsigned long long)s.st_dev, (unsigned long long)s.st_ino, (long long)s.st_size,
             (long long)s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    const char *known = NODE->as_string(NODE->get(c->known, id), NULL);
    if (known != NULL && strlen(known) == 64) {
        memcpy(hex, known, 65);
        apus_sha256_told(path, hex);
        return APUS_OK;
    }
    apus_status st = apus_sha256_file(path, hex, err);
    if (st == APUS_OK) {
        (void)NODE->set(c->known, id, NODE->make_string(hex, 64));
        c->changed = 1;
    }
    return st;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int not_hidden(const struct dirent *e)
{
    return e->d_name[0] != '.' && strcmp(e->d_name, "apus.json") != 0;
}

/* A file's bytes; a folder's files in name order (one level: models are flat). */
static apus_status add_path(hash_cache *c, apus_sha256 *sha, const char *path, apus_error *err)
{
    char hex[65];
    if (!apus_path_is_dir(path)) {
        apus_status st = file_hash(c, path, hex, err);
        if (st == APUS_OK)
            apus_sha256_add(sha, hex, 64);
        return st;
    }
    struct dirent **entries;
    const int n = scandir(path, &entries, not_hidden, by_name);
    apus_status st = n >= 0 ? APUS_OK : apus_fail(err, APUS_E_IO, "%s: %s", path, strerror(errno));
    for (int i = 0; i < n; i++) {
        char inner[4600];
        snprintf(inner, sizeof inner, "%s/%s", path, entries[i]->d_name);
        if (st == APUS_OK && !apus_path_is_dir(inner)) {
            apus_sha256_add(sha, entries[i]->d_name, strlen(entries[i]->d_name) + 1);
            st = file_hash(c, inner, hex, err);
            if (st == APUS_OK)
                apus_sha256_add(sha, hex, 64);
        }
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return st;
}

/* ---- what a stage depends on */

static int find_stage(const apus_pipeline *p, const char *name)
{
    for (size_t i = 0; i < p->n_stages; i++)
        if (strcmp(p->stages[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* Strings that name files, below a MODEL or DATASET value or a PATH that is read. */
static apus_status add_files(const apus_pipeline *p, const char (*keys)[65], hash_cache *c, apus_sha256 *sha, const apus_node *n, apus_error *err)
{
    apus_status st = APUS_OK;
    const char *text = NODE->as_string(n, NULL);
    if (text != NULL) {
        char path[4200];
        snprintf(path, sizeof path, "%s", text);
        char *hash = strrchr(path, '#');
        if (hash != NULL && !apus_path_exists(path))
            *hash = '\0';
        return strchr(path, '\n') == NULL && path[0] != '\0' && apus_path_exists(path) ? add_path(c, sha, path, err) : APUS_OK;
    }
    const char *stage = NODE->kind(n) == APUS_NODE_MAP && NODE->length(n) == 1 ? NODE->as_string(NODE->get(n, "stage"), NULL) : NULL;
    const int i = stage != NULL ? find_stage(p, stage) : -1;
    if (i >= 0) {
        apus_sha256_add(sha, keys[i], 64);
        return APUS_OK;
    }
    for (size_t k = 0; k < NODE->length(n) && st == APUS_OK; k++)
        st = add_files(p, keys, c, sha, NODE->at(n, k), err);
    return st;
}

static apus_status add_params(const apus_pipeline *p, const char (*keys)[65], hash_cache *c, apus_sha256 *sha, const apus_component *component,
                              const apus_node *params, apus_error *err)
{
    const apus_module *module = apus_component_module(component);
    apus_status st = APUS_OK;
    if (module != NULL)
        apus_sha256_add(sha, module->sha256, strlen(module->sha256));
    for (uint32_t i = 0; i < component->n_params && st == APUS_OK; i++) {
        apus_param param;
        apus_take(&param, sizeof param, (const char *)component->params + (size_t)i * component->params[0].size);
        const apus_node *value = NODE->get(params, param.name);
        char *text = NODE->write_json(value, 0, NULL);
        apus_sha256_add(sha, param.name, strlen(param.name) + 1);
        if (text != NULL)
            apus_sha256_add(sha, text, strlen(text) + 1);
        apus_host_table()->free(text);
        const int path = (param.type == APUS_PARAM_PATH || param.item == APUS_PARAM_PATH) && (param.flags & APUS_PARAM_WRITTEN) == 0;
        if (path || param.type == APUS_PARAM_MODEL || param.type == APUS_PARAM_DATASET || param.item == APUS_PARAM_MODEL) {
            st = add_files(p, keys, c, sha, value, err);
        } else if (param.type == APUS_PARAM_COMPONENT && NODE->kind(value) == APUS_NODE_MAP) {
            const char *type = NODE->as_string(NODE->get(value, "type"), NULL);
            const apus_component *inner = type != NULL ? apus_component_find(param.of_kind, type, err) : NULL;
            if (inner != NULL)
                st = add_params(p, keys, c, sha, inner, value, err);
        }
    }
    return st;
}

apus_status apus_pipeline_key(const apus_pipeline *p, size_t i, const char (*keys)[65], const char *cache_dir, char hex[65], apus_error *err)
{
    /* Plugins chosen while running (formats, architectures, tokenizers, kernels, datasets) count whole; others where they are named. */
    static const char *const always[] = {"kernels", "op", "arch", "format", "tokenizer", "dataset"};
    const apus_pipeline_stage *s = &p->stages[i];
    hash_cache cache;
    apus_sha256 *sha = apus_sha256_new();
    if (sha == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    cache_open(&cache, cache_dir);
    apus_status st = add_path(&cache, sha, "/proc/self/exe", err); /* the core is inside it */
    apus_sha256_add(sha, s->component->name, strlen(s->component->name) + 1);
    apus_sha256_add(sha, s->name, strlen(s->name) + 1);
    apus_sha256_add(sha, &s->seed, sizeof s->seed);
    const apus_node *backend = NODE->get(p->settings, "backend");
    const apus_component *device = apus_component_find("backend", NODE->as_string(NODE->get(backend, "type"), NULL), err);
    if (st == APUS_OK)
        st = device != NULL ? add_params(p, keys, &cache, sha, device, backend, err) : APUS_E_NOT_FOUND;
    for (size_t k = 0; k < sizeof always / sizeof always[0]; k++)
        for (size_t c = 0; c < apus_component_count(always[k]); c++) {
            const apus_module *m = apus_component_module(apus_component_at(always[k], c));
            if (m != NULL)
                apus_sha256_add(sha, m->sha256, strlen(m->sha256));
        }
    if (st == APUS_OK)
        st = add_params(p, keys, &cache, sha, s->component, s->params, err);
    cache_close(&cache, cache_dir);
    apus_sha256_end(sha, hex);
    return st;
}
