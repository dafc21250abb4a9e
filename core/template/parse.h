/*
 * core/template/parse: what the two halves of the parser share: expressions (expression.c) and statements (parser.c).
 */
#ifndef APUS_CORE_TEMPLATE_PARSE_H
#define APUS_CORE_TEMPLATE_PARSE_H

#include "syntax.h"

enum { T_BUCKETS = 512 };

typedef struct unresolved {
    tnode *node;
    bool soft; /* in a branch that may not be taken: an error when it is */
} unresolved;

typedef struct enclosing {
    tsignature *signature;
    struct enclosing *outer;
} enclosing;

typedef struct parser {
    apus_template *t;
    tbase *b;
    const ttoken *at;
    int depth;
    bool soft;
    int loops;    /* for blocks around, for the special name `loop` */
    bool in_loop; /* break and continue have a loop to end */
    enclosing *macros;
    const char *innermost; /* the tag that waits for its end */
    tpos innermost_at;
    unresolved *pending;
    size_t n_pending, pending_capacity;
    uint32_t *chain; /* of names, from 1, by bucket */
    uint32_t heads[T_BUCKETS];
    tstr **blocks;
    size_t n_blocks;
} parser;

/* How a row of expressions with commas is read: any; without an `if` of their own; names to assign to; with namespaces. */
typedef enum { FULL, NO_IF, TARGET, TARGET_NS } how;

static inline bool is_op(const ttoken *t, int op)
{
    return t->kind == K_OPERATOR && t->op == op;
}

static inline bool is_name(const ttoken *t, const char *name)
{
    return t->kind == K_NAME && apus_tpl_is(t->text, name);
}

static inline const ttoken *next(parser *p)
{
    const ttoken *t = p->at;
    if (t->kind != K_EOF)
        p->at++;
    return t;
}

static inline bool skip_op(parser *p, int op)
{
    bool yes = is_op(p->at, op);
    if (yes)
        next(p);
    return yes;
}

static inline bool skip_name(parser *p, const char *name)
{
    bool yes = is_name(p->at, name);
    if (yes)
        next(p);
    return yes;
}

T_NORETURN void apus_tpl_expected(parser *p, const char *what);
T_NORETURN void apus_tpl_refuse(parser *p, tpos at, const char *message);
void apus_tpl_expect_op(parser *p, int op);
const ttoken *apus_tpl_expect(parser *p, ttoken_kind kind, const char *what);
void apus_tpl_deeper(parser *p); /* one level; the caller takes it off p->depth */

tnode *apus_tpl_node(parser *p, tnode_kind kind, tpos at);
void apus_tpl_add(parser *p, tnodes *list, tnode *n);
uint32_t apus_tpl_number_of(parser *p, tstr *name);

tnode *apus_tpl_expression(parser *p);
tnode *apus_tpl_tuple(parser *p, how mode, const char *extra, bool parentheses);
/* `of` | a | b(…); start_inline: the first one stands without its bar. */
tnode *apus_tpl_filters(parser *p, tnode *of, bool start_inline);

#endif
