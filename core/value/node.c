/*
 * core/value/node: the trees themselves: making, reading, changing, comparing and freeing nodes, and the names of the
 * files they came from. JSON text is json.c's.
 */
#include "value/node.h"
#include "value/layout.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { MAP_LINEAR = 8 }; /* a map up to this size is searched key by key */

/* ---------------------------------------------------------------- file names */

static struct {
    pthread_mutex_t lock;
    char **names; /* names[i] is file i + 1 */
    uint32_t count, capacity;
} files = {.lock = PTHREAD_MUTEX_INITIALIZER};

uint32_t apus_file_intern(const char *name)
{
    if (name == NULL)
        return 0;
    uint32_t id = 0;
    pthread_mutex_lock(&files.lock);
    for (uint32_t i = files.count; i > 0 && id == 0; i--)
        if (strcmp(files.names[i - 1], name) == 0)
            id = i;
    if (id == 0 && files.count == files.capacity) {
        uint32_t capacity = files.capacity == 0 ? 16 : files.capacity * 2;
        char **names = realloc(files.names, capacity * sizeof *names);
        if (names != NULL) {
            files.names = names;
            files.capacity = capacity;
        }
    }
    if (id == 0 && files.count < files.capacity) {
        char *copy = strdup(name);
        if (copy != NULL) {
            files.names[files.count++] = copy;
            id = files.count;
        }
    }
    pthread_mutex_unlock(&files.lock);
    return id;
}

void apus_node_place(apus_node *n, const char *file, int line, int column)
{
    if (n == NULL)
        return;
    n->file = apus_file_intern(file);
    n->line = line > 0 ? (uint32_t)line : 0;
    n->column = column > 0 ? (uint32_t)column : 0;
}

void apus_node_unplace(apus_node *n)
{
    n->file = n->line = n->column = 0;
    if (n->kind == APUS_NODE_LIST)
        for (uint32_t i = 0; i < n->as.list.count; i++)
            apus_node_unplace(n->as.list.items[i]);
    if (n->kind != APUS_NODE_MAP || n->as.map == NULL)
        return;
    for (uint32_t i = 0; i < n->as.map->count; i++) {
        n->as.map->entries[i].line = n->as.map->entries[i].column = 0;
        apus_node_unplace(n->as.map->entries[i].value);
    }
}

static const char *place_text(uint32_t file, uint32_t line, uint32_t column, char *buffer, size_t capacity)
{
    if (buffer == NULL || capacity == 0)
        return "";
    buffer[0] = '\0';
    if (file == 0)
        return buffer;
    pthread_mutex_lock(&files.lock);
    if (line == 0)
        (void)snprintf(buffer, capacity, "%s", files.names[file - 1]);
    else
        (void)snprintf(buffer, capacity, "%s:%u:%u", files.names[file - 1], line, column);
    pthread_mutex_unlock(&files.lock);
    return buffer;
}

static const char *node_where(const apus_node *n, char *buffer, size_t capacity)
{
    return n == NULL ? place_text(0, 0, 0, buffer, capacity) : place_text(n->file, n->line, n->column, buffer, capacity);
}

/* The next character of text[0..length) as a message shows it; returns how many bytes it took. */
static size_t show_one(const char *text, size_t length, char piece[8])
{
    unsigned char c = (unsigned char)text[0];
    size_t n = 1;
    while (c >= 0xC0 && n < length && n < 4 && ((unsigned char)text[n] & 0xC0) == 0x80)
        n++;
    if (c >= 0xC0 && n > 1)
        memcpy(piece, text, n), piece[n] = '\0';
    else if (c == '\n' || c == '\t' || c == '\r')
        (void)snprintf(piece, 8, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
    else if (c < 0x20 || c >= 0x7F)
        (void)snprintf(piece, 8, "\\x%02x", c);
    else
        piece[0] = (char)c, piece[1] = '\0';
    return n;
}

const char *apus_show(char *buffer, size_t capacity, const char *text, size_t length)
{
    char piece[8];
    size_t o = 0, whole = 0;
    if (capacity == 0)
        return "";
    if (length == (size_t)-1)
        length = strlen(text);
    for (size_t i = 0; i < length && whole < capacity;) {
        i += show_one(text + i, length - i, piece);
        whole += strlen(piece);
    }
    size_t room = whole < capacity ? capacity - 1 : capacity > 4 ? capacity - 4 : 0;
    for (size_t i = 0; i < length;) {
        i += show_one(text + i, length - i, piece);
        if (o + strlen(piece) > room)
            break;
        memcpy(buffer + o, piece, strlen(piece));
        o += strlen(piece);
    }
    buffer[o] = '\0';
    if (whole >= capacity && room > 0)
        strcat(buffer, "...");
    return buffer;
}

/* ---------------------------------------------------------------- maps */

/* SipHash-1-3 under a key drawn once per process: a hostile file cannot choose colliding keys. Nothing that leaves the
 * process depends on it, because maps are walked in their order. */
static uint64_t sip_key[2];
static pthread_once_t sip_once = PTHREAD_ONCE_INIT;

static void sip_start(void)
{
    if (getrandom(sip_key, sizeof sip_key, GRND_NONBLOCK) != (ssize_t)sizeof sip_key) {
        sip_key[0] = 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)&sip_key;
        sip_key[1] = 0xbf58476d1ce4e5b9u ^ (uint64_t)(uintptr_t)&sip_start;
    }
}

static inline uint64_t rotl(uint64_t x, int r)
{
    return (x << r) | (x >> (64 - r));
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotl(v[1], 13) ^ v[0], v[0] = rotl(v[0], 32);
    v[2] += v[3], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotl(v[1], 17) ^ v[2], v[2] = rotl(v[2], 32);
}

static uint32_t hash_key(const char *key)
{
    pthread_once(&sip_once, sip_start);
    uint64_t v[4] = {sip_key[0] ^ 0x736f6d6570736575u, sip_key[1] ^ 0x646f72616e646f6du, sip_key[0] ^ 0x6c7967656e657261u,
                     sip_key[1] ^ 0x7465646279746573u};
    size_t length = strlen(key), left = length;
    for (; left >= 8; left -= 8, key += 8) {
        uint64_t m;
        memcpy(&m, key, 8);
        v[3] ^= m;
        sip_round(v);
        v[0] ^= m;
    }
    uint64_t m = 0;
    memcpy(&m, key, left);
    m |= (uint64_t)length << 56;
    v[3] ^= m;
    sip_round(v);
    v[0] ^= m;
    v[2] ^= 0xff;
    sip_round(v), sip_round(v), sip_round(v);
    uint64_t h = v[0] ^ v[1] ^ v[2] ^ v[3];
    return (uint32_t)(h ^ (h >> 32));
}

static void index_put(apus_map_body *m, uint32_t hash, uint32_t entry)
{
    uint32_t i = hash & m->mask;
    while (m->index[i].slot != 0)
        i = (i + 1) & m->mask;
    m->index[i] = (apus_map_slot){hash, entry + 1};
}

/* Make the index for m's capacity, or drop it when the map is small. 0 when memory is out: the old one stays. */
static int index_build(apus_map_body *m)
{
    if (m->capacity <= MAP_LINEAR) {
        free(m->index);
        m->index = NULL;
        m->mask = 0;
        return 1;
    }
    uint32_t size = 32;
    while (size < m->capacity + m->capacity / 2)
        size *= 2;
    apus_map_slot *index = calloc(size, sizeof *index);
    if (index == NULL)
        return 0;
    apus_map_slot *old = m->index;
    uint32_t old_mask = m->mask;
    m->index = index;
    m->mask = size - 1;
    if (old != NULL) {
        for (uint32_t i = 0; i <= old_mask; i++)
            if (old[i].slot != 0)
                index_put(m, old[i].hash, old[i].slot - 1);
        free(old);
    } else {
        for (uint32_t i = 0; i < m->count; i++)
            index_put(m, hash_key(m->entries[i].key), i);
    }
    return 1;
}

/* The entry of `key`, or UINT32_MAX. *hash is set when the map is indexed. */
static uint32_t map_find(const apus_map_body *m, const char *key, uint32_t *hash)
{
    if (m == NULL)
        return UINT32_MAX;
    if (m->index == NULL) {
        for (uint32_t i = 0; i < m->count; i++)
            if (strcmp(m->entries[i].key, key) == 0)
                return i;
        return UINT32_MAX;
    }
    *hash = hash_key(key);
    for (uint32_t i = *hash & m->mask; m->index[i].slot != 0; i = (i + 1) & m->mask)
        if (m->index[i].hash == *hash && strcmp(m->entries[m->index[i].slot - 1].key, key) == 0)
            return m->index[i].slot - 1;
    return UINT32_MAX;
}

static int map_reserve(apus_node *n)
{
    apus_map_body *m = n->as.map;
    if (m != NULL && m->count < m->capacity)
        return 1;
    uint32_t capacity = m == NULL ? 4 : m->capacity * 2;
    if (m != NULL && m->capacity > (1u << 28))
        return 0;
    apus_map_body *bigger = realloc(m, sizeof *m + capacity * sizeof m->entries[0]);
    if (bigger == NULL)
        return 0;
    if (m == NULL)
        memset(bigger, 0, sizeof *bigger);
    n->as.map = bigger;
    uint32_t before = bigger->capacity;
    bigger->capacity = capacity;
    if (!index_build(bigger)) {
        bigger->capacity = before; /* the room is there but is not used */
        return 0;
    }
    return 1;
}

static void node_release(apus_node *n);

apus_status apus_map_add(apus_node *map, char *key, apus_node *value, uint32_t *at)
{
    uint32_t hash = 0;
    *at = map_find(map->as.map, key, &hash);
    if (*at != UINT32_MAX || !map_reserve(map)) {
        free(key);
        node_release(value);
        return *at != UINT32_MAX ? APUS_E_INVALID : APUS_E_MEMORY;
    }
    apus_map_body *m = map->as.map;
    m->entries[m->count] = (apus_map_entry){key, value, 0, 0};
    if (m->index != NULL)
        index_put(m, hash != 0 ? hash : hash_key(key), m->count);
    *at = m->count++;
    return APUS_OK;
}

static apus_status node_set(apus_node *map, const char *key, apus_node *value)
{
    if (map == NULL || map->kind != APUS_NODE_MAP || key == NULL || value == NULL) {
        node_release(value);
        return value == NULL || map == NULL ? APUS_E_MEMORY : APUS_E_INTERNAL;
    }
    uint32_t hash = 0, at = map_find(map->as.map, key, &hash);
    if (at != UINT32_MAX) {
        apus_map_entry *e = &map->as.map->entries[at];
        if (e->value != value)
            node_release(e->value);
        e->value = value;
        return APUS_OK;
    }
    char *copy = strdup(key);
    if (copy == NULL) {
        node_release(value);
        return APUS_E_MEMORY;
    }
    return apus_map_add(map, copy, value, &at);
}

apus_status apus_node_set_placed(apus_node *map, const char *key, apus_node *value, int line, int column)
{
    apus_status st = node_set(map, key, value);
    if (st != APUS_OK)
        return st;
    uint32_t hash = 0;
    apus_map_entry *e = &map->as.map->entries[map_find(map->as.map, key, &hash)];
    e->line = line > 0 ? (uint32_t)line : 0;
    e->column = column > 0 ? (uint32_t)column : 0;
    return APUS_OK;
}

static int node_remove(apus_node *map, const char *key)
{
    if (map == NULL || map->kind != APUS_NODE_MAP || key == NULL)
        return 0;
    apus_map_body *m = map->as.map;
    uint32_t hash = 0, at = map_find(m, key, &hash);
    if (at == UINT32_MAX)
        return 0;
    free(m->entries[at].key);
    node_release(m->entries[at].value);
    memmove(&m->entries[at], &m->entries[at + 1], (m->count - at - 1) * sizeof m->entries[0]);
    m->count--;
    if (m->index != NULL) { /* entries moved up: number them anew in the index that is there */
        memset(m->index, 0, (m->mask + (size_t)1) * sizeof *m->index);
        for (uint32_t i = 0; i < m->count; i++)
            index_put(m, hash_key(m->entries[i].key), i);
    }
    return 1;
}

void apus_node_trim(apus_node *n)
{
    if (n->kind == APUS_NODE_LIST && n->as.list.capacity > 3 && n->as.list.count < n->as.list.capacity) {
        apus_node **items = realloc(n->as.list.items, n->as.list.count * sizeof *items);
        if (items != NULL) {
            n->as.list.items = items;
            n->as.list.capacity = n->as.list.count;
        }
    } else if (n->kind == APUS_NODE_MAP && n->as.map != NULL && n->as.map->count < n->as.map->capacity) {
        apus_map_body *m = realloc(n->as.map, sizeof *m + n->as.map->count * sizeof m->entries[0]);
        if (m != NULL) {
            n->as.map = m;
            m->capacity = m->count;
        }
    }
}

/* ---------------------------------------------------------------- making and freeing */

static apus_node *make(apus_node_kind kind)
{
    apus_node *n = calloc(1, sizeof *n);
    if (n != NULL)
        n->kind = (uint8_t)kind;
    return n;
}

apus_node *apus_node_string_room(size_t length)
{
    if (length > SIZE_MAX - sizeof(apus_node) - 1)
        return NULL;
    apus_node *n = malloc(sizeof *n + length + 1);
    if (n == NULL)
        return NULL;
    memset(n, 0, sizeof *n);
    n->kind = APUS_NODE_STRING;
    n->as.string.bytes = (char *)(n + 1);
    n->as.string.bytes[length] = '\0';
    n->as.string.length = length;
    return n;
}

void apus_node_mark(apus_node *n, int marks)
{
    if (n != NULL && n->kind == APUS_NODE_STRING)
        n->flags |= (uint8_t)(marks & (APUS_STRING_QUOTED | APUS_STRING_FILLED));
}

int apus_node_marks(const apus_node *n)
{
    return n == NULL ? 0 : n->flags & (APUS_STRING_QUOTED | APUS_STRING_FILLED);
}

apus_node *apus_node_like(const apus_node *n)
{
    apus_node *like = n->kind == APUS_NODE_STRING ? apus_node_string_room(0) : make(n->kind);
    if (like != NULL) {
        like->file = n->file;
        like->line = n->line;
        like->column = n->column;
    }
    return like;
}

static apus_node *make_null(void)
{
    return make(APUS_NODE_NULL);
}

static apus_node *make_bool(int v)
{
    apus_node *n = make(APUS_NODE_BOOL);
    if (n != NULL)
        n->as.boolean = v != 0;
    return n;
}

static apus_node *make_int(int64_t v)
{
    apus_node *n = make(APUS_NODE_INT);
    if (n != NULL)
        n->as.integer = v;
    return n;
}

static apus_node *make_float(double v)
{
    apus_node *n = make(APUS_NODE_FLOAT);
    if (n != NULL)
        n->as.real = v;
    return n;
}

static apus_node *make_string(const char *bytes, size_t length)
{
    if (bytes == NULL)
        length = 0;
    else if (length == (size_t)-1)
        length = strlen(bytes);
    apus_node *n = apus_node_string_room(length);
    if (n != NULL && length > 0)
        memcpy(n->as.string.bytes, bytes, length);
    return n;
}

static apus_node *make_list(void)
{
    return make(APUS_NODE_LIST);
}

static apus_node *make_map(void)
{
    return make(APUS_NODE_MAP);
}

/* Free what n holds, not n itself. */
static void clear(apus_node *n)
{
    if (n->kind == APUS_NODE_STRING && (n->flags & APUS_NODE_ADOPTED)) {
        free((apus_node *)(void *)n->as.string.bytes - 1);
    } else if (n->kind == APUS_NODE_LIST) {
        for (uint32_t i = 0; i < n->as.list.count; i++)
            node_release(n->as.list.items[i]);
        free(n->as.list.items);
    } else if (n->kind == APUS_NODE_MAP && n->as.map != NULL) {
        for (uint32_t i = 0; i < n->as.map->count; i++) {
            free(n->as.map->entries[i].key);
            node_release(n->as.map->entries[i].value);
        }
        free(n->as.map->index);
        free(n->as.map);
    }
    n->kind = APUS_NODE_NULL;
    n->flags = 0;
}

static void node_release(apus_node *n)
{
    if (n == NULL)
        return;
    clear(n);
    free(n);
}

void apus_node_replace(apus_node *n, apus_node *with)
{
    if (n == NULL || with == NULL || n == with)
        return;
    clear(n);
    n->kind = with->kind;
    n->as = with->as;
    if (with->file != 0) {
        n->file = with->file;
        n->line = with->line;
        n->column = with->column;
    }
    if (with->kind == APUS_NODE_STRING) {
        n->flags = with->flags | APUS_NODE_ADOPTED;
        if (!(with->flags & APUS_NODE_ADOPTED))
            return; /* `with` lives on as the room of the bytes behind it */
    }
    free(with);
}

static apus_status node_append(apus_node *list, apus_node *item)
{
    if (list == NULL || list->kind != APUS_NODE_LIST || item == NULL) {
        node_release(item);
        return item == NULL || list == NULL ? APUS_E_MEMORY : APUS_E_INTERNAL;
    }
    if (list->as.list.count == list->as.list.capacity) {
        uint32_t capacity = list->as.list.capacity < 3 ? 3 : list->as.list.capacity * 2;
        apus_node **items = NULL;
        if (list->as.list.capacity <= (1u << 30))
            items = realloc(list->as.list.items, capacity * sizeof(apus_node *));
        if (items == NULL) {
            node_release(item);
            return APUS_E_MEMORY;
        }
        list->as.list.items = items;
        list->as.list.capacity = capacity;
    }
    list->as.list.items[list->as.list.count++] = item;
    return APUS_OK;
}

static apus_node *node_copy(const apus_node *n)
{
    if (n == NULL)
        return make_null();
    apus_node *c;
    if (n->kind == APUS_NODE_STRING) {
        c = make_string(n->as.string.bytes, n->as.string.length);
    } else {
        c = make(n->kind);
        if (c != NULL && n->kind < APUS_NODE_STRING)
            c->as = n->as;
    }
    if (c == NULL)
        return NULL;
    apus_node_mark(c, apus_node_marks(n));
    c->file = n->file;
    c->line = n->line;
    c->column = n->column;
    apus_status st = APUS_OK;
    if (n->kind == APUS_NODE_LIST) {
        for (uint32_t i = 0; i < n->as.list.count && st == APUS_OK; i++)
            st = node_append(c, node_copy(n->as.list.items[i]));
    } else if (n->kind == APUS_NODE_MAP && n->as.map != NULL) {
        for (uint32_t i = 0; i < n->as.map->count && st == APUS_OK; i++)
            st = apus_node_set_placed(c, n->as.map->entries[i].key, node_copy(n->as.map->entries[i].value), (int)n->as.map->entries[i].line,
                                      (int)n->as.map->entries[i].column);
    }
    if (st != APUS_OK) {
        node_release(c);
        return NULL;
    }
    return c;
}

/* ---------------------------------------------------------------- reading */

static apus_node_kind node_kind(const apus_node *n)
{
    return n == NULL ? APUS_NODE_NULL : n->kind;
}

static int as_bool(const apus_node *n, int fallback)
{
    return n != NULL && n->kind == APUS_NODE_BOOL ? n->as.boolean : fallback;
}

/* v as an int64 when it is integral and in range. */
static int integral(double v, int64_t *out)
{
    if (!(v >= -9223372036854775808.0 && v < 9223372036854775808.0) || (double)(int64_t)v != v)
        return 0;
    *out = (int64_t)v;
    return 1;
}

static int64_t as_int(const apus_node *n, int64_t fallback)
{
    int64_t v;
    if (n != NULL && n->kind == APUS_NODE_INT)
        return n->as.integer;
    return n != NULL && n->kind == APUS_NODE_FLOAT && integral(n->as.real, &v) ? v : fallback;
}

static double as_float(const apus_node *n, double fallback)
{
    if (n != NULL && n->kind == APUS_NODE_INT)
        return (double)n->as.integer;
    return n != NULL && n->kind == APUS_NODE_FLOAT ? n->as.real : fallback;
}

static const char *as_string(const apus_node *n, size_t *length)
{
    int is = n != NULL && n->kind == APUS_NODE_STRING;
    if (length != NULL)
        *length = is ? n->as.string.length : 0;
    return is ? n->as.string.bytes : NULL;
}

static size_t node_length(const apus_node *n)
{
    if (n != NULL && n->kind == APUS_NODE_LIST)
        return n->as.list.count;
    return n != NULL && n->kind == APUS_NODE_MAP && n->as.map != NULL ? n->as.map->count : 0;
}

static const apus_node *node_at(const apus_node *n, size_t i)
{
    if (i >= node_length(n))
        return NULL;
    return n->kind == APUS_NODE_LIST ? n->as.list.items[i] : n->as.map->entries[i].value;
}

static const char *key_at(const apus_node *n, size_t i)
{
    return i < node_length(n) && n->kind == APUS_NODE_MAP ? n->as.map->entries[i].key : NULL;
}

static const apus_node *node_get(const apus_node *map, const char *key)
{
    if (map == NULL || map->kind != APUS_NODE_MAP || key == NULL)
        return NULL;
    uint32_t hash = 0, at = map_find(map->as.map, key, &hash);
    return at == UINT32_MAX ? NULL : map->as.map->entries[at].value;
}

const char *apus_node_key_where(const apus_node *map, size_t i, char *buffer, size_t capacity)
{
    if (key_at(map, i) == NULL)
        return place_text(0, 0, 0, buffer, capacity);
    const apus_map_entry *e = &map->as.map->entries[i];
    return e->line == 0 ? node_where(e->value, buffer, capacity) : place_text(e->value->file, e->line, e->column, buffer, capacity);
}

void apus_node_key_place(const apus_node *map, size_t i, int *line, int *column)
{
    const apus_map_entry *e = key_at(map, i) == NULL ? NULL : &map->as.map->entries[i];
    *line = e == NULL ? 0 : (int)e->line;
    *column = e == NULL ? 0 : (int)e->column;
}

/* An int and a float are equal when they are the same number; NaN equals itself. */
static int node_equal(const apus_node *a, const apus_node *b)
{
    apus_node_kind k = node_kind(a);
    if (k != node_kind(b)) {
        const apus_node *i = k == APUS_NODE_INT ? a : b, *f = k == APUS_NODE_INT ? b : a;
        int64_t v;
        return node_kind(i) == APUS_NODE_INT && node_kind(f) == APUS_NODE_FLOAT && integral(f->as.real, &v) && v == i->as.integer;
    }
    switch (k) {
    case APUS_NODE_BOOL:
        return a->as.boolean == b->as.boolean;
    case APUS_NODE_INT:
        return a->as.integer == b->as.integer;
    case APUS_NODE_FLOAT:
        return a->as.real == b->as.real || (a->as.real != a->as.real && b->as.real != b->as.real);
    case APUS_NODE_STRING:
        return a->as.string.length == b->as.string.length && memcmp(a->as.string.bytes, b->as.string.bytes, a->as.string.length) == 0;
    case APUS_NODE_LIST:
    case APUS_NODE_MAP: {
        size_t n = node_length(a);
        if (n != node_length(b))
            return 0;
        for (size_t i = 0; i < n; i++) {
            const apus_node *other = k == APUS_NODE_LIST ? node_at(b, i) : node_get(b, key_at(a, i));
            if (other == NULL || !node_equal(node_at(a, i), other))
                return 0;
        }
        return 1;
    }
    default:
        return 1;
    }
}

const apus_node_api *apus_nodes(void)
{
    static const apus_node_api api = {
        .size = sizeof(apus_node_api),
        .kind = node_kind,
        .as_bool = as_bool,
        .as_int = as_int,
        .as_float = as_float,
        .as_string = as_string,
        .length = node_length,
        .at = node_at,
        .key_at = key_at,
        .get = node_get,
        .where = node_where,
        .make_null = make_null,
        .make_bool = make_bool,
        .make_int = make_int,
        .make_float = make_float,
        .make_string = make_string,
        .make_list = make_list,
        .make_map = make_map,
        .copy = node_copy,
        .append = node_append,
        .set = node_set,
        .remove = node_remove,
        .release = node_release,
        .parse_json = apus_json_parse,
        .write_json = apus_json_write,
        .equal = node_equal,
    };
    return &api;
}
