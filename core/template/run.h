/*
 * core/template/run: the evaluator's own state, shared by statements and expressions (eval.c) and loops (loops.c).
 */
#ifndef APUS_CORE_TEMPLATE_RUN_H
#define APUS_CORE_TEMPLATE_RUN_H

#include "eval.h"
#include "syntax.h"

typedef struct tscope {
    struct tscope *parent; /* NULL: the template's own names */
    uint32_t *names;
    tval *values;
    size_t n, capacity;
    bool kept; /* a macro refers to it: it is not used again */
} tscope;

struct tmacro {
    const tsignature *signature;
    tscope *scope;
};

struct tloop {
    const tnode *node;
    tscope *scope; /* around the loop */
    tval source;
    titer it;
    tlist *pending; /* items that asking for the length has read ahead */
    size_t next_pending;
    tval before, current, after; /* after: read ahead, or T_MISSING */
    int64_t index0, length, depth0;
    tval changed;
};

typedef struct trender {
    tctx c;
    const apus_template *t;
    tval *own; /* by name number: variables, functions, what the template set at its top */
    tscope *scope;
    tbuf *out;
    tval captured; /* what a filter block filters */
    uint32_t generations;
} trender;

typedef enum { RUN, BREAK, CONTINUE } flow;

tval apus_tpl_look_up(const trender *r, const tscope *from, uint32_t name); /* T_MISSING: nobody set it */
void apus_tpl_store(trender *r, uint32_t name, tval v);
tscope *apus_tpl_open_scope(trender *r, tscope *parent);
tscope *apus_tpl_fresh_scope(trender *r, tscope *s); /* for the next round of a loop */
void apus_tpl_assign(trender *r, const tnode *target, tval v);

tval apus_tpl_eval(trender *r, const tnode *n);
flow apus_tpl_run_body(trender *r, const tnodes *body);
/* All rounds of `n` over `source`, in the scope the loop stands in. */
flow apus_tpl_run_loop(trender *r, const tnode *n, tval source, tscope *around, int64_t depth0);

#endif
