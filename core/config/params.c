/*
 * core/config/params: a mapping checked against a table of typed parameters. Every message names the place, what was
 * found and what was expected.
 */
#include "config/config.h"
#include "config/scalar.h"
#include "value/node.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXPECTED = 400, FOUND = 120 };

typedef struct check {
    const apus_param *p;
    const char *what;    /* "loss NAME" */
    const apus_node *at; /* where a value made in memory is to be blamed on */
    apus_error *err;
} check;

static apus_node *convert(const check *c, const apus_node *n, apus_param_type type, const char *label);

/* ---------------------------------------------------------------- messages */

static const char *type_words(apus_param_type type)
{
    switch (type) {
    case APUS_PARAM_BOOL:
        return "true or false";
    case APUS_PARAM_INT:
        return "a whole number";
    case APUS_PARAM_FLOAT:
        return "a number";
    case APUS_PARAM_STRING:
        return "a string";
    case APUS_PARAM_PATH:
        return "a path";
    case APUS_PARAM_BYTES:
        return "a size (2GiB, 500MB, or a number of bytes)";
    case APUS_PARAM_LIST:
        return "a list";
    case APUS_PARAM_COMPONENT:
        return "a name, or a mapping with 'type:'";
    case APUS_PARAM_MAP:
        return "a mapping";
    default:
        return "a value";
    }
}

static size_t count_choices(const apus_param *p)
{
    size_t n = 0;
    while (p->choices != NULL && p->choices[n] != NULL)
        n++;
    return n;
}

static int bounded(const apus_param *p, apus_param_type type)
{
    return p->min <= p->max && (p->min != 0 || p->max != 0) && (type == APUS_PARAM_INT || type == APUS_PARAM_FLOAT || type == APUS_PARAM_BYTES);
}

static const char *expected(const apus_param *p, apus_param_type type, char *buffer, size_t capacity)
{
    size_t o = 0;
    if (type == APUS_PARAM_STRING && count_choices(p) > 0) {
        o += (size_t)snprintf(buffer, capacity, "one of ");
        for (size_t i = 0; i < count_choices(p) && o < capacity; i++)
            o += (size_t)snprintf(buffer + o, capacity - o, "%s%s", i > 0 ? ", " : "", p->choices[i]);
    } else {
        o += (size_t)snprintf(buffer, capacity, "%s", type_words(type));
        char low[40], high[40];
        (void)snprintf(low, sizeof low, "%.15g", p->min);
        (void)snprintf(high, sizeof high, "%.15g", p->max);
        if (bounded(p, type) && isfinite(p->min) && isfinite(p->max))
            (void)snprintf(buffer + o, capacity - o, " from %s to %s", low, high);
        else if (bounded(p, type) && isfinite(p->min))
            (void)snprintf(buffer + o, capacity - o, " of at least %s", low);
        else if (bounded(p, type) && isfinite(p->max))
            (void)snprintf(buffer + o, capacity - o, " of at most %s", high);
    }
    return buffer;
}

/* What is likely meant by a value of the wrong kind. */
static void hint_for(const check *c, const apus_node *n, apus_param_type type)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    apus_node_kind kind = api->kind(n);
    char shown[80];
    if (s != NULL && type == APUS_PARAM_STRING && count_choices(c->p) > 0) {
        const char *near = apus_did_you_mean(s, c->p->choices, count_choices(c->p));
        if (near != NULL)
            (void)apus_hint(c->err, 0, "did you mean '%s'?", near);
    } else if (type == APUS_PARAM_STRING || type == APUS_PARAM_PATH) {
        if (kind == APUS_NODE_BOOL || kind == APUS_NODE_INT || kind == APUS_NODE_FLOAT)
            (void)apus_hint(c->err, 0, "put it in quotes to make it a string");
    } else if (type == APUS_PARAM_BOOL) {
        static const char *const yes[] = {"yes", "on", "y", "true", "1"}, *const no[] = {"no", "off", "n", "false", "0"};
        for (size_t i = 0; s != NULL && i < sizeof yes / sizeof yes[0]; i++)
            if (strcasecmp(s, yes[i]) == 0 || strcasecmp(s, no[i]) == 0)
                (void)apus_hint(c->err, 0, "write %s", strcasecmp(s, yes[i]) == 0 ? "true" : "false");
        if (kind == APUS_NODE_INT && (api->as_int(n, 2) == 0 || api->as_int(n, 2) == 1))
            (void)apus_hint(c->err, 0, "write %s", api->as_int(n, 0) ? "true" : "false");
    } else if (s != NULL && (type == APUS_PARAM_INT || type == APUS_PARAM_FLOAT) && length < 40) {
        char plain[40];
        size_t o = 0;
        for (size_t i = 0; i < length; i++)
            if (s[i] != '_' && s[i] != ',' && s[i] != ' ')
                plain[o++] = s[i];
        double v;
        if (apus_read_double(plain, o, &v))
            (void)apus_hint(c->err, 0, "write %s%s", apus_show(shown, sizeof shown, plain, o), o == length ? " without quotes" : "");
    } else if (type == APUS_PARAM_BYTES && s != NULL) {
        (void)apus_hint(c->err, 0, "units are B, kB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024)");
    }
}

static apus_node *refuse(const check *c, const apus_node *n, apus_param_type type, const char *label)
{
    char at[PATH_MAX + 40], want[EXPECTED], have[FOUND];
    (void)apus_scalar_at(n, at, sizeof at);
    if (at[0] == '\0')
        (void)apus_scalar_at(c->at, at, sizeof at);
    (void)apus_fail(c->err, APUS_E_INVALID, "%s'%s' of %s: expected %s, found %s", at, label, c->what, expected(c->p, type, want, sizeof want),
                    apus_scalar_found(n, have, sizeof have));
    hint_for(c, n, type);
    return NULL;
}

static apus_node *no_memory(const check *c)
{
    (void)apus_fail(c->err, APUS_E_MEMORY, "out of memory while checking %s", c->what);
    return NULL;
}

/* ---------------------------------------------------------------- one value */

static int in_range(const apus_param *p, apus_param_type type, double v)
{
    return !isnan(v) && (!bounded(p, type) || (v >= p->min && v <= p->max));
}

/* "1.5GiB" -> bytes. 0 when it is no size. */
static int read_bytes(const char *s, size_t length, int64_t *bytes)
{
    static const struct {
        const char *name;
        double scale;
    } units[] = {{"B", 1},          {"kB", 1e3},          {"MB", 1e6},
                 {"GB", 1e9},       {"TB", 1e12},         {"KiB", 1024.},
                 {"MiB", 1048576.}, {"GiB", 1073741824.}, {"TiB", 1099511627776.}};
    size_t number = strspn(s, "0123456789.");
    double v;
    if (number == 0 || number > length || !apus_read_double(s, number, &v))
        return 0;
    const char *unit = s + number + strspn(s + number, " ");
    if (strlen(s) != length)
        return 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(unit, units[i].name) == 0) {
            v *= units[i].scale;
            if (!(v < 9223372036854775808.0) || v != floor(v))
                return 0;
            *bytes = (int64_t)v;
            return 1;
        }
    }
    return 0;
}

static apus_node *convert_component(const check *c, const apus_node *n, const char *label)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    const char *name = api->as_string(n, &length);
    if (name != NULL && length > 0 && strlen(name) == length) {
        apus_node *map = api->make_map();
        if (map == NULL || api->set(map, "type", api->copy(n)) != APUS_OK) {
            api->release(map);
            return no_memory(c);
        }
        return map;
    }
    const apus_node *type = api->get(n, "type");
    if (api->kind(n) != APUS_NODE_MAP)
        return refuse(c, n, APUS_PARAM_COMPONENT, label);
    if (type != NULL && (name = api->as_string(type, &length), name == NULL || length == 0 || strlen(name) != length)) {
        char at[PATH_MAX + 40], have[FOUND];
        (void)apus_fail(c->err, APUS_E_INVALID, "%s'type' in '%s' of %s: expected the name of a %s, found %s", apus_scalar_at(type, at, sizeof at),
                        label, c->what, c->p->of_kind != NULL ? c->p->of_kind : "component", apus_scalar_found(type, have, sizeof have));
        return NULL;
    }
    return api->copy(n);
}

/* A list's items or a mapping's values, one by one. */
static apus_node *convert_items(const check *c, const apus_node *n, const char *label)
{
    const apus_node_api *api = apus_nodes();
    int map = api->kind(n) == APUS_NODE_MAP && c->p->type == APUS_PARAM_MAP;
    int alone = !map && api->kind(n) != APUS_NODE_LIST;
    size_t count = alone ? 1 : api->length(n);
    apus_node *made = map ? api->make_map() : api->make_list();
    for (size_t i = 0; i < count && made != NULL; i++) {
        char name[200], key[80];
        if (map)
            (void)snprintf(name, sizeof name, "%s.%s", label, apus_show(key, sizeof key, api->key_at(n, i), (size_t)-1));
        else if (alone)
            (void)snprintf(name, sizeof name, "%s", label);
        else
            (void)snprintf(name, sizeof name, "%s[%zu]", label, i);
        apus_node *item = convert(c, alone ? n : api->at(n, i), c->p->item, name);
        if (item == NULL) {
            api->release(made);
            return NULL;
        }
        int line, column;
        apus_node_key_place(n, i, &line, &column);
        if ((map ? apus_node_set_placed(made, api->key_at(n, i), item, line, column) : api->append(made, item)) != APUS_OK) {
            api->release(made);
            made = NULL;
        }
    }
    return made;
}

/* n as `type`, a new node; NULL after an error. Placing it is the caller's. */
static apus_node *convert_kind(const check *c, const apus_node *n, apus_param_type type, const char *label)
{
    const apus_node_api *api = apus_nodes();
    apus_node_kind kind = api->kind(n);
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    int64_t v = 0;
    switch (type) {
    case APUS_PARAM_BOOL:
        return kind == APUS_NODE_BOOL ? api->make_bool(api->as_bool(n, 0)) : refuse(c, n, type, label);
    case APUS_PARAM_INT:
        if (kind == APUS_NODE_FLOAT && api->as_int(n, 0) == api->as_int(n, 1))
            kind = APUS_NODE_INT;
        if (kind != APUS_NODE_INT || !in_range(c->p, type, api->as_float(n, 0)))
            return refuse(c, n, type, label);
        return api->make_int(api->as_int(n, 0));
    case APUS_PARAM_FLOAT:
        if ((kind != APUS_NODE_INT && kind != APUS_NODE_FLOAT) || !in_range(c->p, type, api->as_float(n, 0)))
            return refuse(c, n, type, label);
        return api->make_float(api->as_float(n, 0));
    case APUS_PARAM_BYTES:
        if (kind == APUS_NODE_INT || (kind == APUS_NODE_FLOAT && api->as_int(n, 0) == api->as_int(n, 1)))
            v = api->as_int(n, 0);
        else if (s == NULL || !read_bytes(s, length, &v))
            return refuse(c, n, type, label);
        if (v < 0 || !in_range(c->p, type, (double)v))
            return refuse(c, n, type, label);
        return api->make_int(v);
    case APUS_PARAM_STRING: {
        int known = count_choices(c->p) == 0;
        for (size_t i = 0; s != NULL && i < count_choices(c->p); i++)
            known |= strcmp(s, c->p->choices[i]) == 0;
        return s != NULL && known ? api->make_string(s, length) : refuse(c, n, type, label);
    }
    case APUS_PARAM_PATH:
        return s != NULL && length > 0 && strlen(s) == length ? api->make_string(s, length) : refuse(c, n, type, label);
    case APUS_PARAM_COMPONENT:
        return convert_component(c, n, label);
    case APUS_PARAM_LIST:
        return kind == APUS_NODE_NULL ? refuse(c, n, type, label) : convert_items(c, n, label);
    case APUS_PARAM_MAP:
        return kind == APUS_NODE_MAP ? convert_items(c, n, label) : refuse(c, n, type, label);
    default:
        return api->copy(n);
    }
}

static apus_node *convert(const check *c, const apus_node *n, apus_param_type type, const char *label)
{
    const apus_node_api *api = apus_nodes();
    apus_node *read = NULL;
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    int wants_text = type == APUS_PARAM_STRING || type == APUS_PARAM_PATH || type == APUS_PARAM_COMPONENT;
    if (s != NULL && !wants_text && type != APUS_PARAM_LIST && (apus_node_marks(n) & APUS_STRING_FILLED))
        read = apus_scalar_plain(s, length); /* "${LR}": quoted only because { } wants it so */
    apus_node *place = apus_node_like(n);
    if (c->err != NULL)
        c->err->message[0] = '\0';
    apus_node *made = place == NULL ? NULL : convert_kind(c, read != NULL ? read : n, type, label);
    api->release(read);
    if (made == NULL) {
        api->release(place);
        return c->err == NULL || c->err->message[0] != '\0' ? NULL : no_memory(c);
    }
    apus_node_replace(place, made);
    return place;
}

/* ---------------------------------------------------------------- the mapping */

static int has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *w = words == NULL ? "" : words; *w != '\0';) {
        size_t n = strcspn(w, " ");
        if (n == length && memcmp(w, word, n) == 0)
            return 1;
        w += n;
        w += strspn(w, " ");
    }
    return 0;
}

/* The parameter whose name or alias is nearest to `key`; NULL when none is near. */
static const apus_param *nearest(const apus_param *params, uint32_t n, const char *key)
{
    size_t words = 0, bytes = 1;
    for (uint32_t i = 0; i < n; i++) {
        size_t length = params[i].aliases == NULL ? 0 : strlen(params[i].aliases);
        bytes += strlen(params[i].name) + length + 2;
        words += length + 1;
    }
    const char **names = calloc(words, sizeof *names);
    const apus_param **owners = calloc(words, sizeof *owners), *found = NULL;
    char *pool = malloc(bytes), *end = pool;
    size_t count = 0;
    for (uint32_t i = 0; i < n && names != NULL && owners != NULL && pool != NULL; i++) {
        char *save = NULL, *begin = end;
        end += sprintf(end, "%s %s", params[i].name, params[i].aliases == NULL ? "" : params[i].aliases) + 1;
        for (char *w = strtok_r(begin, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) {
            names[count] = w;
            owners[count++] = &params[i];
        }
    }
    const char *name = apus_did_you_mean(key, names, count);
    for (size_t i = 0; i < count && found == NULL; i++)
        if (names[i] == name)
            found = owners[i];
    free(names);
    free(owners);
    free(pool);
    return found;
}

static apus_key_places *places_of;

void apus_params_know_places(apus_key_places *of)
{
    places_of = of;
}

static apus_status unknown_key(const apus_node *given, size_t i, const apus_param *params, uint32_t n, const char *what, apus_error *err)
{
    const char *key = apus_nodes()->key_at(given, i);
    char at[PATH_MAX + 40], shown[120], known[400] = "";
    (void)apus_node_key_where(given, i, at, sizeof at - 2);
    const char *colon = at[0] != '\0' ? ": " : "";
    (void)apus_show(shown, sizeof shown, key, (size_t)-1);
    const apus_param *same = NULL, *near = nearest(params, n, key);
    for (uint32_t p = 0; p < n && same == NULL; p++)
        same = has_word(params[p].aliases, key) ? &params[p] : NULL;
    if (same != NULL)
        (void)apus_fail(err, APUS_E_INVALID, "%s%sunknown key '%s' in %s: use '%s'", at, colon, shown, what, same->name);
    else if (near != NULL)
        (void)apus_fail(err, APUS_E_INVALID, "%s%sunknown key '%s' in %s: did you mean '%s'?", at, colon, shown, what, near->name);
    else
        (void)apus_fail(err, APUS_E_INVALID, "%s%sunknown key '%s' in %s", at, colon, shown, what);
    if (places_of != NULL)
        places_of(key, known, sizeof known);
    if (known[0] != '\0')
        return apus_hint(err, APUS_E_INVALID, "'%s' is a key of %s", shown, known);
    if (near != NULL) /* an alias is near itself */
        return APUS_E_INVALID;
    size_t o = 0;
    for (uint32_t p = 0; p < n && o < sizeof known; p++)
        o += (size_t)snprintf(known + o, sizeof known - o, "%s%s", p > 0 ? ", " : "", params[p].name);
    if (o >= sizeof known)
        (void)snprintf(known + sizeof known - 6, 6, ", …");
    return n > 0 ? apus_hint(err, APUS_E_INVALID, "its keys are: %s", known) : apus_hint(err, APUS_E_INVALID, "%s takes no parameters", what);
}

/* The value of one parameter: given, or its default; NULL after an error. */
static apus_node *value_of(const check *c, const apus_node *given)
{
    const apus_node_api *api = apus_nodes();
    const apus_param *p = c->p;
    const apus_node *n = api->get(given, p->name);
    char at[PATH_MAX + 40], want[EXPECTED];
    if (n != NULL) {
        int may_be_unset =
            (p->flags & APUS_PARAM_NULLABLE) || p->type == APUS_PARAM_NODE || (p->fallback == NULL && !(p->flags & APUS_PARAM_REQUIRED));
        if (api->kind(n) == APUS_NODE_NULL && may_be_unset)
            return apus_node_like(n);
        return convert(c, n, p->type, p->name);
    }
    if (p->flags & APUS_PARAM_REQUIRED) {
        (void)apus_fail(c->err, APUS_E_INVALID, "%s%s needs '%s': expected %s", apus_scalar_at(given, at, sizeof at), c->what, p->name,
                        expected(p, p->type, want, sizeof want));
        if (p->doc != NULL)
            (void)apus_hint(c->err, 0, "%s: %s", p->name, p->doc);
        return NULL;
    }
    if (p->fallback == NULL)
        return api->make_null();
    apus_error inner = {0};
    check d = {.p = p, .what = c->what, .at = NULL, .err = &inner};
    apus_node *value = apus_yaml_parse(p->fallback, strlen(p->fallback), "default", &inner);
    apus_node *made = NULL;
    if (value != NULL && api->kind(value) == APUS_NODE_NULL)
        made = api->make_null();
    else if (value != NULL)
        made = convert(&d, value, p->type, p->name);
    api->release(value);
    if (made == NULL)
        (void)apus_fail(c->err, APUS_E_INTERNAL, "the parameter table of %s is wrong: the default of '%s': %s", c->what, p->name, inner.message);
    else
        apus_node_unplace(made);
    return made;
}

/* ---------------------------------------------------------------- what has an effect */

static int is_set(const apus_node *n)
{
    const apus_node_api *api = apus_nodes();
    size_t length = 0;
    switch (api->kind(n)) {
    case APUS_NODE_NULL:
        return 0;
    case APUS_NODE_BOOL:
        return api->as_bool(n, 0);
    case APUS_NODE_INT:
    case APUS_NODE_FLOAT:
        return api->as_float(n, 0) != 0;
    case APUS_NODE_STRING:
        (void)api->as_string(n, &length);
        return length > 0;
    default:
        return api->length(n) > 0;
    }
}

/* Does one of `needs` hold, a name or name=value? */
static int holds(const apus_node *made, const char *word, size_t length)
{
    char name[128];
    (void)snprintf(name, sizeof name, "%.*s", (int)length, word);
    char *value = strchr(name, '=');
    if (value == NULL)
        return is_set(apus_nodes()->get(made, name));
    *value = '\0';
    const char *has = apus_nodes()->as_string(apus_nodes()->get(made, name), NULL);
    return has != NULL && strcmp(has, value + 1) == 0;
}

/* A value that somebody wrote and nothing will read. */
static apus_status check_effect(const apus_node *made, const apus_param *p, const char *what, apus_error *err)
{
    const apus_node *value = apus_nodes()->get(made, p->name);
    char at[PATH_MAX + 40], wanted[200] = "";
    int wants = 0, has = 0;
    if (p->needs == NULL || !is_set(value) || apus_scalar_at(value, at, sizeof at)[0] == '\0')
        return APUS_OK;
    for (const char *w = p->needs; *w != '\0'; w += strspn(w, " ")) {
        const int not = *w == '!';
        w += not ;
        const size_t length = strcspn(w, " "), used = strlen(wanted);
        const int held = holds(made, w, length);
        if (not &&held)
            return apus_fail(err, APUS_E_INVALID, "%s'%s' of %s has no effect beside '%.*s': leave one of them out", at, p->name, what, (int)length,
                             w);
        if (!not ) {
            (void)snprintf(wanted + used, sizeof wanted - used, "%s'%.*s'", wants > 0 ? " or " : "", (int)length, w);
            wants = 1;
            has |= held;
        }
        w += length;
    }
    return has || !wants ? APUS_OK : apus_fail(err, APUS_E_INVALID, "%s'%s' of %s has no effect without %s", at, p->name, what, wanted);
}

/* ---------------------------------------------------------------- all of it */

apus_node *apus_params_validate(const apus_node *given, const apus_param *params, uint32_t n_params, const char *ignore, const char *what,
                                apus_error *err)
{
    const apus_node_api *api = apus_nodes();
    char at[PATH_MAX + 40], have[FOUND];
    if (api->kind(given) != APUS_NODE_MAP && api->kind(given) != APUS_NODE_NULL) {
        (void)apus_fail(err, APUS_E_INVALID, "%s%s: expected a mapping (key: value), found %s", apus_scalar_at(given, at, sizeof at), what,
                        apus_scalar_found(given, have, sizeof have));
        return NULL;
    }
    for (size_t i = 0; i < api->length(given); i++) {
        const char *key = api->key_at(given, i);
        int known = has_word(ignore, key);
        for (uint32_t p = 0; p < n_params && !known; p++)
            known = strcmp(params[p].name, key) == 0;
        if (!known) {
            (void)unknown_key(given, i, params, n_params, what, err);
            return NULL;
        }
    }
    apus_node *made = api->kind(given) == APUS_NODE_MAP ? apus_node_like(given) : api->make_map();
    for (uint32_t p = 0; p < n_params && made != NULL; p++) {
        check c = {.p = &params[p], .what = what, .at = given, .err = err};
        apus_node *value = value_of(&c, given);
        if (value == NULL) {
            api->release(made);
            return NULL;
        }
        if (api->set(made, params[p].name, value) != APUS_OK) {
            api->release(made);
            made = NULL;
        }
    }
    if (made == NULL) {
        (void)apus_fail(err, APUS_E_MEMORY, "out of memory while checking %s", what);
        return NULL;
    }
    for (uint32_t p = 0; p < n_params; p++) {
        if (check_effect(made, &params[p], what, err) != APUS_OK) {
            api->release(made);
            return NULL;
        }
    }
    return made;
}
