/*
 * core/template/eval: what the rest of the value code needs of the evaluator: loop variables and macros, whose insides
 * only it knows.
 */
#ifndef APUS_CORE_TEMPLATE_EVAL_H
#define APUS_CORE_TEMPLATE_EVAL_H

#include "value.h"

tval apus_tpl_loop_attribute(tctx *c, struct tloop *loop, const tstr *name); /* T_MISSING: no such attribute */
tval apus_tpl_macro_attribute(tctx *c, struct tmacro *macro, const tstr *name);
const char *apus_tpl_macro_name(const struct tmacro *macro); /* NULL: a call block's */
void apus_tpl_loop_place(tctx *c, struct tloop *loop, int64_t *index, int64_t *length);

#endif
