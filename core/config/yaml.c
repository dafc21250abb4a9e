/*
 * core/config/yaml: YAML text to nodes, on libyaml's events. Bounded: size, depth, and what aliases may expand to.
 * Knows the language only; includes, overrides and interpolation are load.c's.
 */
#include "config/config.h"
#include "config/scalar.h"
#include "io/io.h"
#include "module/module.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum {
    DEPTH_LIMIT = 100,
    SIZE_LIMIT = 16 << 20,  /* bytes of a file */
    ALIAS_NODES = 100000,   /* nodes that all aliases together may expand to */
    ALIAS_BYTES = 16 << 20, /* and bytes of strings */
    NAME_SHOWN = 80
};

typedef struct anchor {
    char *name;
    const apus_node *node; /* NULL while it is still being read */
    struct anchor *next;
} anchor;

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the one being looked at */
    int has_event;
    anchor *anchors;   /* latest first */
    apus_node *merged; /* list of the values of "<<": anchors inside them are good to the end */
    size_t alias_nodes, alias_bytes;
    int depth;
    const char *name, *text;
    size_t length;
    apus_error *err;
} reader;

static APUS_PRINTF(3, 4) apus_node *fail(reader *r, yaml_mark_t at, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    (void)apus_fail(r->err, APUS_E_INVALID, "%s:%zu:%zu: %s", r->name, at.line + 1, at.column + 1, text);
    return NULL;
}

static apus_node *no_memory(reader *r)
{
    (void)apus_fail(r->err, APUS_E_MEMORY, "%s: out of memory while reading YAML", r->name);
    return NULL;
}

/* Line `line` (from 0) of the text. */
static const char *line_of(const reader *r, size_t line, size_t *length)
{
    const char *p = r->text, *end = p + r->length;
    for (size_t n = 0; p < end && n < line; p++)
        n += *p == '\n';
    const char *stop = memchr(p, '\n', (size_t)(end - p));
    *length = (size_t)((stop != NULL ? stop : end) - p);
    return p;
}

/* libyaml's words made ours: place first, then what it did not expect, then where the construct began. */
static void syntax_error(reader *r)
{
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) {
        (void)no_memory(r);
        return;
    }
    yaml_mark_t at = p->problem_mark;
    if (p->error == YAML_READER_ERROR) { /* told as a byte offset */
        memset(&at, 0, sizeof at);
        for (size_t i = 0; i < p->problem_offset && i < r->length; i++) {
            if (r->text[i] == '\n')
                at.line++, at.column = 0;
            else
                at.column += ((unsigned char)r->text[i] & 0xC0) != 0x80;
        }
        (void)fail(r, at, "%s", p->problem != NULL ? p->problem : "not a text");
        (void)apus_hint(r->err, 0, "save the file as UTF-8 text");
        return;
    }
    static const char did_not[] = "did not find ";
    const char *problem = p->problem != NULL ? p->problem : "not YAML";
    int expected = strncmp(problem, did_not, sizeof did_not - 1) == 0;
    const char *words = expected ? problem + sizeof did_not - 1 : problem;
    const char *context = p->context != NULL ? p->context : "";
    if (context[0] != '\0' && p->context_mark.line != at.line)
        (void)fail(r, at, "%s %s that began on line %zu", words, context, p->context_mark.line + 1);
    else
        (void)fail(r, at, "%s%s%s", words, context[0] != '\0' ? " " : "", context);
    size_t length = 0;
    const char *line = line_of(r, at.line, &length);
    size_t blanks = 0;
    while (blanks < length && line[blanks] == ' ')
        blanks++;
    if (strstr(context, "flow") != NULL && memmem(line, length, "${", 2) != NULL)
        (void)apus_hint(r->err, 0, "inside { } and [ ] a reference needs quotes: \"${…}\"");
    else if (strstr(problem, "tab character") != NULL || (blanks < length && line[blanks] == '\t'))
        (void)apus_hint(r->err, 0, "YAML indents with spaces, not tabs");
    else if (strstr(problem, "mapping values are not allowed") != NULL)
        (void)apus_hint(r->err, 0, "quote a value that holds ': ', or check the indentation");
    else if (strstr(problem, "cannot start any token") != NULL)
        (void)apus_hint(r->err, 0, "quote a value that begins with @, ` or %%");
    else if (strstr(problem, "expected key") != NULL || strstr(problem, "expected <block end>") != NULL)
        (void)apus_hint(r->err, 0, "check the indentation of this line and of the one before it");
}

static int next(reader *r)
{
    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (!r->has_event)
        syntax_error(r);
    return r->has_event;
}

static apus_node *placed(reader *r, apus_node *n, yaml_mark_t at)
{
    if (n == NULL)
        return no_memory(r);
    apus_node_place(n, r->name, (int)at.line + 1, (int)at.column + 1);
    return n;
}

/* ---------------------------------------------------------------- anchors */

static anchor *anchor_open(reader *r, const yaml_char_t *name)
{
    anchor *a = calloc(1, sizeof *a);
    char *copy = a == NULL ? NULL : strdup((const char *)name);
    if (copy == NULL) {
        free(a);
        (void)no_memory(r);
        return NULL;
    }
    a->name = copy;
    a->next = r->anchors;
    r->anchors = a;
    return a;
}

/* Add up a subtree and return its depth; stops once it is over the bounds. */
static int measure(const apus_node *n, size_t *nodes, size_t *bytes)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    int deepest = 0;
    (*nodes)++;
    if (api->as_string(n, &length) != NULL)
        *bytes += length;
    for (size_t i = 0; i < api->length(n) && *nodes <= ALIAS_NODES && *bytes <= ALIAS_BYTES; i++) {
        if (api->key_at(n, i) != NULL)
            *bytes += strlen(api->key_at(n, i));
        int depth = measure(api->at(n, i), nodes, bytes);
        deepest = depth > deepest ? depth : deepest;
    }
    return deepest + (api->kind(n) == APUS_NODE_LIST || api->kind(n) == APUS_NODE_MAP);
}

static apus_node *read_alias(reader *r)
{
    char shown[NAME_SHOWN];
    const char *name = (const char *)r->event.data.alias.anchor;
    yaml_mark_t at = r->event.start_mark;
    const anchor *a = r->anchors;
    while (a != NULL && strcmp(a->name, name) != 0)
        a = a->next;
    (void)apus_show(shown, sizeof shown, name, (size_t)-1);
    if (a == NULL)
        return fail(r, at, "'*%s' refers to an anchor that is not there: expected '&%s' before it", shown, shown);
    if (a->node == NULL)
        return fail(r, at, "'*%s' stands inside the value that '&%s' names: it would hold itself", shown, shown);
    int depth = measure(a->node, &r->alias_nodes, &r->alias_bytes);
    if (r->alias_nodes > ALIAS_NODES || r->alias_bytes > ALIAS_BYTES)
        return fail(r, at, "'*%s' makes the aliases expand to more than %d values or %d MiB", shown, ALIAS_NODES, ALIAS_BYTES >> 20);
    if (r->depth + depth > DEPTH_LIMIT)
        return fail(r, at, "'*%s' makes values nest deeper than %d levels", shown, DEPTH_LIMIT);
    apus_node *copy = apus_nodes()->copy(a->node);
    return copy != NULL ? copy : no_memory(r);
}

/* ---------------------------------------------------------------- values */

/* 1: the core tag `name` ("str"), or none given and name NULL; 0 otherwise. */
static int tag_is(const yaml_char_t *tag, const char *name)
{
    static const char core[] = "tag:yaml.org,2002:";
    return tag != NULL && strncmp((const char *)tag, core, sizeof core - 1) == 0 && strcmp((const char *)tag + sizeof core - 1, name) == 0;
}

static apus_node *bad_tag(reader *r, const yaml_char_t *tag)
{
    char shown[NAME_SHOWN];
    (void)fail(r, r->event.start_mark,
               "the tag '%s' means nothing here: expected plain values, or !!str, !!int, !!float, !!bool, !!null, "
               "!!map, !!seq",
               apus_show(shown, sizeof shown, (const char *)tag, (size_t)-1));
    (void)apus_hint(r->err, 0, "leave the tag out");
    return NULL;
}

static apus_node *read_scalar(reader *r)
{
    const apus_node_api *api = apus_nodes();
    const yaml_char_t *tag = r->event.data.scalar.tag;
    const char *text = (const char *)r->event.data.scalar.value;
    size_t length = r->event.data.scalar.length;
    int quoted = r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    char shown[NAME_SHOWN];
    if (tag == NULL ? quoted : (strcmp((const char *)tag, "!") == 0 || tag_is(tag, "str"))) {
        apus_node *n = api->make_string(text, length);
        apus_node_mark(n, APUS_STRING_QUOTED);
        return placed(r, n, r->event.start_mark);
    }
    apus_node *n = apus_scalar_plain(text, length);
    if (n == NULL)
        return no_memory(r);
    static const struct {
        const char *tag;
        apus_node_kind kind;
    } kinds[] = {{"int", APUS_NODE_INT}, {"float", APUS_NODE_FLOAT}, {"bool", APUS_NODE_BOOL}, {"null", APUS_NODE_NULL}};
    const size_t n_kinds = sizeof kinds / sizeof kinds[0];
    size_t k = 0;
    while (k < n_kinds && !tag_is(tag, kinds[k].tag))
        k++;
    if (tag != NULL && k == n_kinds) {
        api->release(n);
        return bad_tag(r, tag);
    }
    const apus_node_kind kind = api->kind(n), wanted = k < n_kinds ? kinds[k].kind : kind;
    if (wanted == APUS_NODE_FLOAT && kind == APUS_NODE_INT) {
        double v = api->as_float(n, 0);
        api->release(n);
        n = api->make_float(v);
    } else if (wanted != kind) {
        api->release(n);
        return fail(r, r->event.start_mark, "'%s' is not what its tag !!%s says", apus_show(shown, sizeof shown, text, length),
                    k < n_kinds ? kinds[k].tag : "");
    }
    return placed(r, n, r->event.start_mark);
}

static apus_node *read_value(reader *r);

static apus_node *read_list(reader *r)
{
    const apus_node_api *api = apus_nodes();
    apus_node *list = placed(r, api->make_list(), r->event.start_mark);
    while (list != NULL && next(r)) {
        if (r->event.type == YAML_SEQUENCE_END_EVENT)
            return list;
        apus_node *item = read_value(r);
        if (item == NULL)
            break;
        if (api->append(list, item) != APUS_OK) {
            (void)no_memory(r);
            break;
        }
    }
    api->release(list);
    return NULL;
}

/* The keys of `from` that `map` lacks (YAML's merge key "<<": written keys win). 0 after an error. */
static int merge_map(reader *r, apus_node *map, const apus_node *from, yaml_mark_t at)
{
    const apus_node_api *api = apus_nodes();
    if (api->kind(from) == APUS_NODE_LIST) {
        for (size_t i = 0; i < api->length(from); i++)
            if (api->kind(api->at(from, i)) != APUS_NODE_MAP || !merge_map(r, map, api->at(from, i), at))
                return fail(r, at, "'<<' expects a mapping or a list of mappings (usually an alias)") != NULL;
        return 1;
    }
    if (api->kind(from) != APUS_NODE_MAP)
        return fail(r, at, "'<<' expects a mapping or a list of mappings (usually an alias)") != NULL;
    for (size_t i = 0; i < api->length(from); i++) {
        const char *key = api->key_at(from, i);
        if (api->get(map, key) == NULL && api->set(map, key, api->copy(api->at(from, i))) != APUS_OK)
            return no_memory(r) != NULL;
    }
    return 1;
}

/* Read the key at the current event into *key (owner: caller). 0 after an error. */
static int read_key(reader *r, const apus_node *map, char **key, int *merge)
{
    const apus_node_api *api = apus_nodes();
    char shown[NAME_SHOWN], where[256];
    yaml_mark_t at = r->event.start_mark;
    if (r->event.type != YAML_SCALAR_EVENT) {
        const char *what = r->event.type == YAML_ALIAS_EVENT ? "an alias" : r->event.type == YAML_SEQUENCE_START_EVENT ? "a list" : "a mapping";
        (void)fail(r, at, "%s as a key: expected a word", what);
        if (r->event.type == YAML_MAPPING_START_EVENT)
            (void)apus_hint(r->err, 0, "quote '{{ … }}' and '${…}' that begin a value inside { }");
        return 0;
    }
    if (r->event.data.scalar.anchor != NULL)
        return fail(r, at, "an anchor on a key: expected it on a value") != NULL;
    const yaml_char_t *tag = r->event.data.scalar.tag;
    if (tag != NULL && strcmp((const char *)tag, "!") != 0 && !tag_is(tag, "str"))
        return bad_tag(r, tag) != NULL;
    const char *text = (const char *)r->event.data.scalar.value;
    size_t length = r->event.data.scalar.length;
    (void)apus_show(shown, sizeof shown, text, length);
    if (memchr(text, '\0', length) != NULL)
        return fail(r, at, "the key '%s' holds the character U+0000", shown) != NULL;
    *merge = r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE && strcmp(text, "<<") == 0;
    if (api->get(map, text) != NULL) {
        for (size_t i = 0; i < api->length(map); i++)
            if (strcmp(api->key_at(map, i), text) == 0)
                (void)apus_node_key_where(map, i, where, sizeof where);
        return fail(r, at, "the key '%s' is there twice (first at %s)", shown, where) != NULL;
    }
    *key = strdup(text);
    return *key != NULL ? 1 : no_memory(r) != NULL;
}

static apus_node *read_map(reader *r)
{
    const apus_node_api *api = apus_nodes();
    apus_node *map = placed(r, api->make_map(), r->event.start_mark);
    const apus_node *merged = NULL;
    yaml_mark_t merge_at = {0};
    int ok = map != NULL;
    while (ok) {
        char *key = NULL;
        int merge = 0;
        ok = next(r);
        if (ok && r->event.type == YAML_MAPPING_END_EVENT)
            break;
        ok = ok && read_key(r, map, &key, &merge);
        if (!ok)
            break;
        yaml_mark_t at = r->event.start_mark;
        apus_node *value = next(r) ? read_value(r) : NULL;
        if (value == NULL) {
            ok = 0;
        } else if (merge) {
            if (api->append(r->merged, value) != APUS_OK)
                ok = no_memory(r) != NULL;
            else if (merged != NULL)
                ok = fail(r, at, "the key '<<' is there twice: expected one list of aliases") != NULL;
            merged = value;
            merge_at = at;
        } else if (apus_node_set_placed(map, key, value, (int)at.line + 1, (int)at.column + 1) != APUS_OK) {
            ok = no_memory(r) != NULL;
        }
        free(key);
    }
    if (ok && merged != NULL)
        ok = merge_map(r, map, merged, merge_at);
    if (ok)
        return map;
    api->release(map);
    return NULL;
}

/* The value that begins at the current event; the current event is its last one afterwards. */
static apus_node *read_value(reader *r)
{
    const yaml_char_t *name = NULL, *tag = NULL;
    yaml_event_type_t type = r->event.type;
    anchor *a = NULL;
    if (type == YAML_ALIAS_EVENT)
        return read_alias(r);
    if (type == YAML_SCALAR_EVENT)
        name = r->event.data.scalar.anchor;
    else if (type == YAML_SEQUENCE_START_EVENT)
        name = r->event.data.sequence_start.anchor, tag = r->event.data.sequence_start.tag;
    else
        name = r->event.data.mapping_start.anchor, tag = r->event.data.mapping_start.tag;
    if (name != NULL && (a = anchor_open(r, name)) == NULL)
        return NULL;
    apus_node *n = NULL;
    if (type == YAML_SCALAR_EVENT) {
        n = read_scalar(r);
    } else {
        int list = type == YAML_SEQUENCE_START_EVENT;
        if (tag != NULL && strcmp((const char *)tag, "!") != 0 && !tag_is(tag, list ? "seq" : "map"))
            return bad_tag(r, tag);
        if (++r->depth > DEPTH_LIMIT)
            return fail(r, r->event.start_mark, "nested deeper than %d levels", DEPTH_LIMIT);
        n = list ? read_list(r) : read_map(r);
        r->depth--;
    }
    if (a != NULL)
        a->node = n;
    return n;
}

/* The one document of the stream; an empty stream is null. */
static apus_node *read_document(reader *r)
{
    const apus_node_api *api = apus_nodes();
    if (!next(r)) /* stream start */
        return NULL;
    if (!next(r))
        return NULL;
    if (r->event.type == YAML_STREAM_END_EVENT)
        return placed(r, api->make_null(), r->event.start_mark);
    apus_node *n = next(r) ? read_value(r) : NULL;
    if (n == NULL)
        return NULL;
    int more = next(r); /* document end */
    if (more)
        more = next(r); /* the end of all */
    if (more) {
        if (r->event.type == YAML_STREAM_END_EVENT)
            return n;
        (void)fail(r, r->event.start_mark, "a second document ('---'): expected one");
    }
    api->release(n);
    return NULL;
}

apus_node *apus_yaml_parse(const char *text, size_t length, const char *name, apus_error *err)
{
    if (name == NULL)
        name = "(text)";
    if (text == NULL)
        length = 0, text = "";
    if (length > SIZE_LIMIT) {
        (void)apus_fail(err, APUS_E_INVALID, "%s: %zu bytes of YAML: expected at most %d MiB", name, length, SIZE_LIMIT >> 20);
        return NULL;
    }
    size_t name_length = strlen(name);
    if (name_length > 5 && strcmp(name + name_length - 5, ".json") == 0)
        return apus_nodes()->parse_json(text, length, name, err);
    reader r = {.name = name, .text = text, .length = length, .err = err};
    if (!yaml_parser_initialize(&r.parser)) {
        (void)no_memory(&r);
        return NULL;
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    r.merged = apus_nodes()->make_list();
    apus_node *n = r.merged != NULL ? read_document(&r) : no_memory(&r);
    apus_nodes()->release(r.merged);
    if (r.has_event)
        yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    for (anchor *a = r.anchors, *rest; a != NULL; a = rest) {
        rest = a->next;
        free(a->name);
        free(a);
    }
    return n;
}

apus_node *apus_yaml_read(const char *path, apus_error *err)
{
    size_t length = 0;
    char *text = apus_file_read(path, SIZE_LIMIT, &length, err);
    if (text == NULL)
        return NULL;
    apus_node *n = apus_yaml_parse(text, length, path, err);
    apus_host_table()->free(text);
    return n;
}
