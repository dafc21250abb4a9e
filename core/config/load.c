/*
 * core/config/load: one tree out of a pipeline file: its includes merged, then the overrides set, then every ${…}
 * filled in. Knows paths and places, not what any key means (but `include`).
 */
#include "config/config.h"
#include "config/scalar.h"
#include "value/node.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    INCLUDE_DEPTH = 20,
    INCLUDE_FILES = 256,        /* read in all, a file that is included twice counted twice */
    NESTING = 60,               /* of ${…} in all, fallbacks included */
    DEPTH_LIMIT = 200,          /* of the tree that comes out */
    REFERENCE_DEPTH = 50,       /* ${a} that holds ${b} that holds … */
    EXPANSION_NODES = 100000,   /* values that references may copy in all */
    EXPANSION_BYTES = 16 << 20, /* bytes of text that they may make */
    PATH_SHOWN = 120
};

/* ---------------------------------------------------------------- paths into a tree */

static size_t segment(const char *path)
{
    return strcspn(path, ".");
}

/* The item of a list that `name` names: by its `name:`, else by its index. SIZE_MAX: none. */
static size_t list_item(const apus_node *list, const char *name)
{
    const apus_node_api *api = apus_nodes();
    for (size_t i = 0; i < api->length(list); i++) {
        const char *own = api->as_string(api->get(api->at(list, i), "name"), NULL);
        if (own != NULL && strcmp(own, name) == 0)
            return i;
    }
    if (name[0] == '\0' || strspn(name, "0123456789") != strlen(name) || strlen(name) > 9)
        return SIZE_MAX;
    size_t i = (size_t)atoi(name);
    return i < api->length(list) ? i : SIZE_MAX;
}

/* The nearest name to `word` among the keys of a map, or the `name:`s of a list's items. */
static const char *nearest(const apus_node *n, const char *word)
{
    const apus_node_api *api = apus_nodes();
    size_t count = api->length(n);
    const char **names = calloc(count + 1, sizeof *names);
    if (names == NULL)
        return NULL;
    for (size_t i = 0; i < count; i++)
        names[i] = api->kind(n) == APUS_NODE_MAP ? api->key_at(n, i) : api->as_string(api->get(api->at(n, i), "name"), NULL);
    const char *found = apus_did_you_mean(word, names, count);
    free(names);
    return found;
}

/* One step of a path. NULL when there is nothing of that name. */
static const apus_node *step(const apus_node *n, const char *name)
{
    const apus_node_api *api = apus_nodes();
    if (api->kind(n) == APUS_NODE_LIST) {
        size_t i = list_item(n, name);
        return i == SIZE_MAX ? NULL : api->at(n, i);
    }
    return api->get(n, name);
}

/* ---------------------------------------------------------------- includes */

typedef struct open_file {
    const struct open_file *outer;
    dev_t device;
    ino_t inode;
    int depth;
} open_file;

/* Lay `over` (taken) upon `base`: mappings merge key by key, all else replaces. */
static apus_status merge(apus_node *base, apus_node *over)
{
    const apus_node_api *api = apus_nodes();
    apus_status st = APUS_OK;
    for (size_t i = 0; i < api->length(over) && st == APUS_OK; i++) {
        const char *key = api->key_at(over, i);
        const apus_node *value = api->at(over, i), *old = api->get(base, key);
        apus_node *copy = api->copy(value);
        if (copy != NULL && old != NULL && api->kind(old) == APUS_NODE_MAP && api->kind(copy) == APUS_NODE_MAP) {
            st = merge((apus_node *)old, copy);
        } else {
            int line = 0, column = 0;
            apus_node_key_place(over, i, &line, &column);
            st = apus_node_set_placed(base, key, copy, line, column);
        }
    }
    api->release(over);
    return st;
}

static apus_node *expand(const apus_node *root, const apus_node *n, apus_error *err);
static apus_node *read_merged(const char *path, const apus_node *asked_at, const open_file *outer, int *files, apus_error *err);

/* One entry of `include:`, relative to the folder of the file it stands in; its tree, or NULL. */
static apus_node *read_include(const char *file, const apus_node *entry, const open_file *self, int *files, apus_error *err)
{
    char at[PATH_MAX + 40], found[120], path[PATH_MAX];
    size_t length = 0;
    const char *name = apus_nodes()->as_string(entry, &length);
    if (name == NULL || length == 0 || strlen(name) != length) {
        (void)apus_fail(err, APUS_E_INVALID, "%s'include' expects a file name or a list of them, found %s", apus_scalar_at(entry, at, sizeof at),
                        apus_scalar_found(entry, found, sizeof found));
        return NULL;
    }
    const char *slash = strrchr(file, '/');
    size_t folder = slash == NULL || name[0] == '/' ? 0 : (size_t)(slash - file) + 1;
    if (folder + length >= sizeof path) {
        (void)apus_fail(err, APUS_E_INVALID, "%sthe path of this include is too long", apus_scalar_at(entry, at, sizeof at));
        return NULL;
    }
    memcpy(path, file, folder);
    memcpy(path + folder, name, length + 1);
    return read_merged(path, entry, self, files, err);
}

/* The file with what it includes beneath it; `include` itself is gone. */
static apus_node *read_merged(const char *path, const apus_node *asked_at, const open_file *outer, int *files, apus_error *err)
{
    const apus_node_api *api = apus_nodes();
    char at[PATH_MAX + 40], found[120];
    const char *place = apus_scalar_at(asked_at, at, sizeof at);
    open_file self = {.outer = outer, .depth = outer == NULL ? 0 : outer->depth + 1};
    struct stat st;
    if (stat(path, &st) == 0) {
        self.device = st.st_dev;
        self.inode = st.st_ino;
        for (const open_file *o = outer; o != NULL; o = o->outer) {
            if (o->device == self.device && o->inode == self.inode) {
                (void)apus_fail(err, APUS_E_INVALID, "%s'%s' includes itself, directly or through another file", place, path);
                return NULL;
            }
        }
    } else if (asked_at != NULL) {
        (void)apus_fail(err, APUS_E_IO, "%sthe included file '%s' cannot be opened", place, path);
        (void)apus_hint(err, 0, "the path of an include is relative to the file that includes it");
        return NULL;
    }
    if (self.depth > INCLUDE_DEPTH || ++*files > INCLUDE_FILES) {
        (void)apus_fail(err, APUS_E_INVALID, "%sincludes nest deeper than %d or read more than %d files", place, INCLUDE_DEPTH, INCLUDE_FILES);
        return NULL;
    }
    apus_node *tree = apus_yaml_read(path, err);
    if (tree == NULL)
        return NULL;
    if (api->kind(tree) != APUS_NODE_MAP) {
        (void)apus_fail(err, APUS_E_INVALID, "%sexpected a mapping (key: value), found %s", apus_scalar_at(tree, at, sizeof at),
                        apus_scalar_found(tree, found, sizeof found));
        api->release(tree);
        return NULL;
    }
    const apus_node *written = api->get(tree, "include");
    if (written == NULL)
        return tree;
    apus_node *include = expand(tree, written, err), *base = include == NULL ? NULL : api->make_map();
    size_t count = api->kind(include) == APUS_NODE_LIST ? api->length(include) : 1;
    apus_status status = base != NULL ? APUS_OK : APUS_E_INVALID;
    for (size_t i = 0; i < count && status == APUS_OK; i++) {
        const apus_node *entry = api->kind(include) == APUS_NODE_LIST ? api->at(include, i) : include;
        apus_node *part = read_include(path, entry, &self, files, err);
        status = part == NULL ? APUS_E_INVALID : merge(base, part);
        if (status == APUS_E_MEMORY)
            (void)apus_fail(err, APUS_E_MEMORY, "%s: out of memory", path);
    }
    api->release(include);
    if (status == APUS_OK) {
        (void)api->remove(tree, "include");
        apus_node_place(base, path, 1, 1);
        if (merge(base, tree) == APUS_OK)
            return base;
        tree = NULL;
        (void)apus_fail(err, APUS_E_MEMORY, "%s: out of memory", path);
    }
    api->release(tree);
    api->release(base);
    return NULL;
}

/* ---------------------------------------------------------------- overrides */

static apus_status bad_step(const char *override, const apus_node *n, const char *path, size_t done, const char *name, apus_error *err)
{
    const apus_node_api *api = apus_nodes();
    char shown[PATH_SHOWN], found[120];
    apus_node_kind kind = api->kind(n);
    (void)apus_show(shown, sizeof shown, path, done > 0 ? done - 1 : 0);
    if (kind == APUS_NODE_LIST) {
        const char *near = nearest(n, name);
        (void)apus_fail(err, APUS_E_INVALID, "override '%s': no item '%s' in '%s', a list of %zu", override, name, shown, api->length(n));
        if (near != NULL)
            return apus_hint(err, APUS_E_INVALID, "did you mean '%s'?", near);
        return apus_hint(err, APUS_E_INVALID, "name an item by its index (from 0) or by its `name:`");
    }
    (void)apus_fail(err, APUS_E_INVALID, "override '%s': '%s' is %s, not a mapping", override, shown, apus_scalar_found(n, found, sizeof found));
    if (kind == APUS_NODE_STRING)
        return apus_hint(err, APUS_E_INVALID, "write %s='{type: %s, %s: …}'", shown, api->as_string(n, NULL), name);
    return APUS_E_INVALID;
}

/* Set one "a.b.c=VALUE". Mappings that are missing on the way are made. */
static apus_status override_set(apus_node *root, const char *override, apus_error *err)
{
    const apus_node_api *api = apus_nodes();
    char shown[PATH_SHOWN], name[256], source[PATH_SHOWN + 16];
    (void)apus_show(shown, sizeof shown, override, (size_t)-1);
    const char *equals = strchr(override, '=');
    if (equals == NULL || equals == override)
        return apus_fail(err, APUS_E_INVALID, "override '%s': expected key.path=value", shown);
    size_t length = (size_t)(equals - override);
    char path[PATH_SHOWN];
    (void)apus_show(path, sizeof path, override, length);
    (void)snprintf(source, sizeof source, "override '%s'", path);
    apus_node *value = apus_yaml_parse(equals + 1, strlen(equals + 1), source, err);
    if (value == NULL)
        return APUS_E_INVALID;
    apus_node *n = root;
    for (const char *p = override;;) {
        size_t size = segment(p);
        int last = p + size >= equals;
        if (last)
            size = (size_t)(equals - p);
        if (size == 0 || size >= sizeof name) {
            api->release(value);
            return apus_fail(err, APUS_E_INVALID, "override '%s': expected key.path=value, found %s", shown,
                             size == 0 ? "an empty key" : "a key that is too long");
        }
        memcpy(name, p, size);
        name[size] = '\0';
        if (p == override && strcmp(name, "include") == 0) {
            api->release(value);
            return apus_fail(err, APUS_E_INVALID, "override '%s': 'include' can only be written in a file", shown);
        }
        int list = api->kind(n) == APUS_NODE_LIST, map = api->kind(n) == APUS_NODE_MAP;
        apus_node *inner = (apus_node *)step(n, name);
        if ((!map && !list) || (list && inner == NULL)) {
            apus_status st = bad_step(shown, n, override, (size_t)(p - override), name, err);
            api->release(value);
            return st;
        }
        if (last) {
            if (inner == NULL)
                return api->set(n, name, value) == APUS_OK ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "%s: out of memory", source);
            apus_node_replace(inner, value);
            return APUS_OK;
        }
        if (inner == NULL || api->kind(inner) == APUS_NODE_NULL) {
            apus_node *made = api->make_map();
            apus_node_place(made, source, 1, 1);
            if (made == NULL || (inner == NULL && api->set(n, name, made) != APUS_OK)) {
                api->release(value);
                return apus_fail(err, APUS_E_MEMORY, "%s: out of memory", source);
            }
            if (inner != NULL)
                apus_node_replace(inner, made);
            inner = (apus_node *)step(n, name);
        }
        n = inner;
        p += size + 1;
    }
}

/* ---------------------------------------------------------------- interpolation */

typedef struct reference {
    const struct reference *outer;
    const apus_node *target; /* being expanded */
    int depth;
} reference;

typedef struct expander {
    const apus_node *root;
    size_t nodes, bytes; /* made by references so far */
    int depth;           /* of what is being made */
    int nesting;         /* of ${…} within fallbacks and references */
    apus_error *err;
} expander;

typedef struct text {
    char *bytes;
    size_t length, capacity;
} text;

static int add(text *t, const char *bytes, size_t length)
{
    if (t->bytes == NULL || t->capacity - t->length < length + 1) {
        size_t capacity = (t->length + length + 1) * 2;
        char *grown = realloc(t->bytes, capacity);
        if (grown == NULL)
            return 0;
        t->bytes = grown;
        t->capacity = capacity;
    }
    memcpy(t->bytes + t->length, bytes, length);
    t->length += length;
    t->bytes[t->length] = '\0';
    return 1;
}

static apus_node *expand_node(expander *x, const apus_node *n, const reference *outer);

static APUS_PRINTF(3, 4) int refuse(expander *x, const apus_node *n, const char *fmt, ...)
{
    char at[PATH_MAX + 40], words[512];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(words, sizeof words, fmt, args);
    va_end(args);
    (void)apus_fail(x->err, APUS_E_INVALID, "%s%s", apus_scalar_at(n, at, sizeof at), words);
    return 0;
}

/* The end of the ${ that opens at p (past its '}'), with nested ${} inside; NULL when it is not closed. */
static const char *closing(const char *p, const char *end)
{
    int depth = 0;
    for (; p < end; p++) {
        if (end - p >= 2 && p[0] == '$' && p[1] == '{') {
            depth++;
            p++;
        } else if (*p == '}' && --depth == 0) {
            return p + 1;
        }
    }
    return NULL;
}

/* The key of the file that `name` names, NULL when there is none. A whole path: "a.b.c". */
static const apus_node *find(const apus_node *root, const char *name)
{
    char part[256];
    const apus_node *n = root;
    for (const char *p = name; n != NULL;) {
        size_t size = segment(p);
        if (size == 0 || size >= sizeof part)
            return NULL;
        memcpy(part, p, size);
        part[size] = '\0';
        n = step(n, part);
        if (p[size] == '\0')
            return n;
        p += size + 1;
    }
    return NULL;
}

static int fill(expander *x, const apus_node *n, const char *s, size_t length, text *out, apus_node **whole, const reference *outer);

/* The value of one key, expanded: into *whole when it stands alone, else as text. */
static int put_key(expander *x, const apus_node *n, const char *name, const apus_node *target, text *out, apus_node **whole, const reference *outer)
{
    const apus_node_api *api = apus_nodes();
    char shown[PATH_SHOWN], found[120], number[40];
    (void)apus_show(shown, sizeof shown, name, (size_t)-1);
    reference self = {.outer = outer, .target = target, .depth = outer == NULL ? 1 : outer->depth + 1};
    for (const reference *o = outer; o != NULL; o = o->outer)
        if (o->target == target)
            return refuse(x, n, "${%s} refers to itself, directly or through another key", shown);
    if (self.depth > REFERENCE_DEPTH)
        return refuse(x, n, "${%s}: references nest deeper than %d", shown, REFERENCE_DEPTH);
    apus_node *value = expand_node(x, target, &self);
    if (value == NULL)
        return 0;
    apus_node_kind kind = api->kind(value);
    int scalar = kind != APUS_NODE_LIST && kind != APUS_NODE_MAP && kind != APUS_NODE_NULL;
    if (whole != NULL && !(scalar && apus_node_marks(n))) {
        *whole = value;
        return 1;
    }
    int ok = 1;
    size_t length = 0;
    const char *s = api->as_string(value, &length);
    switch (kind) {
    case APUS_NODE_BOOL:
        ok = api->as_bool(value, 0) ? add(out, "true", 4) : add(out, "false", 5);
        break;
    case APUS_NODE_INT:
        length = (size_t)snprintf(number, sizeof number, "%lld", (long long)api->as_int(value, 0));
        ok = add(out, number, length);
        break;
    case APUS_NODE_FLOAT:
        length = apus_format_double(number, api->as_float(value, 0));
        ok = add(out, number, length);
        break;
    case APUS_NODE_STRING:
        x->bytes += length;
        ok = add(out, s, length);
        break;
    default:
        (void)refuse(x, n, "${%s} inside a text: expected a word or a number there, found %s", shown, apus_scalar_found(value, found, sizeof found));
        api->release(value);
        return 0;
    }
    api->release(value);
    if (!ok)
        (void)apus_fail(x->err, APUS_E_MEMORY, "out of memory while filling in ${%s}", shown);
    return ok;
}

/* One ${…}: begin..end is what stands between the braces. */
static int put_reference(expander *x, const apus_node *n, const char *begin, const char *end, text *out, apus_node **whole, const reference *outer)
{
    char name[256], shown[PATH_SHOWN];
    size_t size = strspn(begin, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");
    const char *rest = begin + size;
    int fallback = end - rest >= 2 && rest[0] == ':' && rest[1] == '-';
    (void)apus_show(shown, sizeof shown, begin, (size_t)(end - begin));
    if (size == 0 || size >= sizeof name || (rest != end && !fallback))
        return refuse(x, n, "'${%s}': expected ${NAME}, ${NAME:-fallback} or ${key.path} (a literal '${' is '$${')", shown);
    memcpy(name, begin, size);
    name[size] = '\0';
    const apus_node *target = find(x->root, name);
    if (target != NULL)
        return put_key(x, n, name, target, out, whole, outer);
    int plain = strchr(name, '.') == NULL && strchr(name, '-') == NULL;
    const char *value = plain ? getenv(name) : NULL;
    if (value != NULL && (value[0] != '\0' || !fallback)) {
        x->bytes += strlen(value);
        return add(out, value, strlen(value)) ? 1 : apus_fail(x->err, APUS_E_MEMORY, "out of memory") == APUS_OK;
    }
    if (fallback)
        return fill(x, n, rest + 2, (size_t)(end - rest - 2), out, NULL, outer);
    const char *near = nearest(x->root, name);
    if (plain)
        (void)refuse(x, n, "${%s}: no such environment variable, and no such key in the file", name);
    else
        (void)refuse(x, n, "${%s}: no such key in the file", name);
    if (near != NULL)
        (void)apus_hint(x->err, 0, "did you mean ${%s}?", near);
    else if (plain)
        (void)apus_hint(x->err, 0, "set it, or give a fallback: ${%s:-value}", name);
    return 0;
}

/* Append s with every ${…} filled in. When s is one reference to a key and nothing else, its value goes to *whole. */
static int fill(expander *x, const apus_node *n, const char *s, size_t length, text *out, apus_node **whole, const reference *outer)
{
    const char *p = s, *end = s + length;
    if (x->nesting >= NESTING)
        return refuse(x, n, "'${…}' nests deeper than %d", NESTING);
    x->nesting++;
    while (p < end) {
        const char *dollar = memchr(p, '$', (size_t)(end - p));
        size_t plain = (size_t)((dollar == NULL ? end : dollar) - p);
        int ok = add(out, p, plain);
        if (dollar != NULL && ok) {
            p = dollar;
            if (end - p >= 3 && p[1] == '$' && p[2] == '{') {
                ok = add(out, "${", 2);
                p += 3;
            } else if (end - p >= 2 && p[1] == '{') {
                const char *close = closing(p, end);
                if (close == NULL)
                    return refuse(x, n, "'${' without its '}' (a literal '${' is '$${')");
                if (!put_reference(x, n, p + 2, close - 1, out, p == s && close == end ? whole : NULL, outer))
                    return 0;
                p = close;
            } else {
                ok = add(out, "$", 1);
                p++;
            }
        } else {
            p = end;
        }
        if (!ok)
            return apus_fail(x->err, APUS_E_MEMORY, "out of memory while filling in '${'") == APUS_OK;
        if (x->bytes > EXPANSION_BYTES || out->length > EXPANSION_BYTES)
            return refuse(x, n, "what '${…}' refers to grows beyond %d MiB", EXPANSION_BYTES >> 20);
    }
    x->nesting--;
    return 1;
}

static apus_node *expand_string(expander *x, const apus_node *n, const reference *outer)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    text out = {0};
    apus_node *whole = NULL;
    if (!fill(x, n, s, length, &out, &whole, outer)) {
        free(out.bytes);
        api->release(whole);
        return NULL;
    }
    apus_node *made = whole;
    if (made == NULL)
        made = apus_node_marks(n) ? api->make_string(out.bytes, out.length) : apus_scalar_plain(out.bytes == NULL ? "" : out.bytes, out.length);
    free(out.bytes);
    apus_node *result = apus_node_like(n);
    if (made == NULL || result == NULL) {
        api->release(made);
        api->release(result);
        (void)apus_fail(x->err, APUS_E_MEMORY, "out of memory while filling in '${'");
        return NULL;
    }
    apus_node_place(made, NULL, 0, 0);
    apus_node_mark(made, apus_node_marks(n) ? APUS_STRING_QUOTED | APUS_STRING_FILLED : 0);
    apus_node_replace(result, made);
    return result;
}

/* A copy of n with every ${…} in its strings filled in. */
static apus_node *expand_node(expander *x, const apus_node *n, const reference *outer)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    if (outer != NULL && ++x->nodes > EXPANSION_NODES) {
        (void)refuse(x, n, "what '${…}' refers to grows beyond %d values", EXPANSION_NODES);
        return NULL;
    }
    if (s != NULL && memchr(s, '$', length) != NULL)
        return expand_string(x, n, outer);
    if (outer != NULL)
        x->bytes += length;
    apus_node *made = NULL;
    if (api->kind(n) != APUS_NODE_LIST && api->kind(n) != APUS_NODE_MAP) {
        made = api->copy(n);
    } else {
        if (x->depth >= DEPTH_LIMIT) {
            (void)refuse(x, n, "nested deeper than %d levels", DEPTH_LIMIT);
            return NULL;
        }
        x->depth++;
        made = apus_node_like(n);
        for (size_t i = 0; i < api->length(n) && made != NULL; i++) {
            apus_node *item = expand_node(x, api->at(n, i), outer);
            if (item == NULL) {
                api->release(made);
                return NULL;
            }
            int line = 0, column = 0;
            apus_node_key_place(n, i, &line, &column);
            apus_status st =
                api->kind(n) == APUS_NODE_LIST ? api->append(made, item) : apus_node_set_placed(made, api->key_at(n, i), item, line, column);
            if (st != APUS_OK) {
                api->release(made);
                made = NULL;
            }
        }
        x->depth--;
    }
    if (made == NULL)
        (void)apus_fail(x->err, APUS_E_MEMORY, "out of memory while filling in '${'");
    return made;
}

static apus_node *expand(const apus_node *root, const apus_node *n, apus_error *err)
{
    expander x = {.root = root, .err = err};
    return expand_node(&x, n, NULL);
}

apus_node *apus_config_load(const char *path, const char *const *overrides, size_t n_overrides, apus_error *err)
{
    int files = 0;
    apus_node *tree = read_merged(path, NULL, NULL, &files, err);
    for (size_t i = 0; i < n_overrides && tree != NULL; i++) {
        if (override_set(tree, overrides[i], err) != APUS_OK) {
            apus_nodes()->release(tree);
            tree = NULL;
        }
    }
    if (tree == NULL)
        return NULL;
    apus_node *expanded = expand(tree, tree, err);
    apus_nodes()->release(tree);
    return expanded;
}
