/*
 * core/template/syntax: tokens and the tree of a compiled template. What the lexer gives the parser and the parser the
 * evaluator; everything lies in the template's arena and is read-only once compiled.
 */
#ifndef APUS_CORE_TEMPLATE_SYNTAX_H
#define APUS_CORE_TEMPLATE_SYNTAX_H

#include "template.h"
#include "value.h"

/* ---------------------------------------------------------------- tokens */

typedef enum ttoken_kind {
    K_DATA,
    K_BLOCK_BEGIN,
    K_BLOCK_END,
    K_VARIABLE_BEGIN,
    K_VARIABLE_END,
    K_NAME,
    K_STRING,
    K_INT,
    K_FLOAT,
    K_OPERATOR, /* `op`: its first character, or one of the codes below */
    K_EOF
} ttoken_kind;

/* Operators of two characters. */
enum { O_EQ = 256, O_NE, O_LE, O_GE, O_FLOORDIV, O_POW };

typedef struct ttoken {
    ttoken_kind kind;
    int op;
    tpos at;
    tstr *text; /* data, name, string value */
    union {
        int64_t i;
        double f;
    };
} ttoken;

typedef struct ttokens {
    ttoken *items;
    size_t n;
} ttokens;

/* Cut `text` into tokens, as Jinja with trim_blocks and lstrip_blocks. The last one is K_EOF. */
ttokens apus_tpl_lex(tbase *b, const char *text, size_t length);

/* ---------------------------------------------------------------- tree */

typedef enum tnode_kind {
    /* expressions */
    N_CONST,
    N_NAME,
    N_LIST,
    N_TUPLE,
    N_DICT,   /* list: key, value, key, value, … */
    N_CONCAT, /* list */
    N_BINARY,
    N_AND,
    N_OR,
    N_NOT,
    N_NEGATE,
    N_PLUS,
    N_COMPARE,
    N_IF_ELSE, /* a ? b : c; c NULL: undefined */
    N_ATTRIBUTE,
    N_ITEM,
    N_SLICE,
    N_CALL,
    N_FILTER, /* a NULL: of a block */
    N_TEST,
    /* statements */
    N_DATA,
    N_OUTPUT, /* list of expressions */
    N_IF,
    N_FOR,
    N_SET,
    N_SET_BLOCK,
    N_MACRO,
    N_CALL_BLOCK,
    N_FILTER_BLOCK,
    N_WITH,
    N_BLOCK,
    N_GENERATION,
    N_BREAK,
    N_CONTINUE,
    /* assignment targets, besides N_NAME and N_TUPLE */
    N_NAMESPACE_SET
} tnode_kind;

typedef struct tnode tnode;

typedef struct tnodes {
    tnode **items;
    size_t n;
} tnodes;

/* Arguments of a call, filter or test. */
typedef struct targs {
    tnodes positional;
    tstr **names;
    tnodes named;
    tnode *star, *star_star;
} targs;

/* What a macro or call block takes. */
typedef struct tsignature {
    const char *name; /* NULL: a call block */
    uint32_t *params; /* name numbers */
    tstr **param_names;
    tnode **defaults; /* NULL where there is none */
    size_t n;
    bool uses_caller, uses_varargs, uses_kwargs;
    tnodes body;
} tsignature;

struct tnode {
    tnode_kind kind;
    tpos at;
    union {
        tval constant;
        uint32_t name; /* N_NAME: its number */
        tnodes list;   /* N_LIST, N_TUPLE, N_DICT, N_CONCAT, N_OUTPUT */
        tstr *data;    /* N_DATA */
        struct {       /* operators, N_IF_ELSE, N_ITEM */
            tnode *a, *b, *c;
            int op;
        };
        struct { /* N_COMPARE: first op[0] others[0] op[1] … */
            tnode *first;
            tnodes others;
            int *ops; /* O_EQ …, '<', '>', 'i' in, 'n' not in */
        } compare;
        struct {
            tnode *of;
            tstr *name;
        } attribute;
        struct {
            tnode *of, *start, *stop, *step;
        } slice;
        struct {
            tnode *of;
            targs args;
            tstr *name;
            const tfilter *filter;
            const ttest *test;
        } call; /* N_CALL, N_FILTER, N_TEST */
        struct {
            tnode *test;
            tnodes yes, no; /* elif: a nested N_IF in `no` */
        } branch;
        struct {
            tnode *target, *of, *test;
            tnodes body, otherwise;
            bool recursive;
        } loop;
        struct {
            tnode *target, *value; /* N_SET_BLOCK: value is a chain of filters, or NULL */
            tnodes body;
        } set; /* also N_FILTER_BLOCK */
        struct {
            uint32_t name; /* N_MACRO */
            tnode *call;   /* N_CALL_BLOCK */
            tsignature *signature;
        } macro;
        struct {
            tnodes targets, values, body;
            bool scoped;
        } with; /* N_WITH, N_BLOCK, N_GENERATION */
        struct {
            uint32_t name;
            tstr *attribute;
        } namespace_set;
    };
};

/* Names the template mentions, numbered from 0. */
struct apus_template {
    tbase base; /* only its arena and name are alive after compiling */
    tstr **names;
    size_t n_names, names_capacity;
    uint32_t loop, caller, varargs, kwargs; /* numbers of the special ones */
    tnodes body;
};

void apus_tpl_parse(apus_template *t, const ttokens *tokens);

#endif
