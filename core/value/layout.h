/* core/value/layout: how a node lies in memory. For the files of core/value only. */
#ifndef APUS_CORE_VALUE_LAYOUT_H
#define APUS_CORE_VALUE_LAYOUT_H

#include <apus/base.h>

enum {
    APUS_NODE_ADOPTED = 1 /* a string whose bytes lie behind another, emptied node (see apus_node_replace) */
    /* 2 and 4: APUS_STRING_QUOTED, APUS_STRING_FILLED */
};

typedef struct apus_map_entry {
    char *key;
    apus_node *value;
    uint32_t line, column; /* of the key, in the value's file; line 0: unknown */
} apus_map_entry;

/* Open addressing over the entries of a large map; slot 0 is empty, else entry number + 1. */
typedef struct apus_map_slot {
    uint32_t hash, slot;
} apus_map_slot;

typedef struct apus_map_body {
    uint32_t count, capacity;
    uint32_t mask; /* of index; 0: no index yet */
    apus_map_slot *index;
    apus_map_entry entries[];
} apus_map_body;

struct apus_node {
    uint8_t kind, flags;
    uint32_t file; /* interned name; 0: made in memory */
    uint32_t line, column;
    union {
        int boolean;
        int64_t integer;
        double real;
        struct {
            char *bytes; /* behind the node itself unless ADOPTED */
            size_t length;
        } string;
        struct {
            apus_node **items;
            uint32_t count, capacity;
        } list;
        apus_map_body *map; /* NULL: empty */
    } as;
};

uint32_t apus_file_intern(const char *name); /* 0 when name is NULL or memory is out */

/* A string node whose `length` bytes the caller still writes; terminated already. */
apus_node *apus_node_string_room(size_t length);

/* Append key -> value to a map; takes both, also on failure. E_INVALID: the key was there (*at: its entry). */
apus_status apus_map_add(apus_node *map, char *key, apus_node *value, uint32_t *at);

/* Give back what growth left over. */
void apus_node_trim(apus_node *n);

apus_node *apus_json_parse(const char *text, size_t length, const char *name, apus_error *err);
char *apus_json_write(const apus_node *n, int flags, size_t *length);

#endif
