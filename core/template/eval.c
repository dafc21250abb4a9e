/*
 * core/template/eval: walks a compiled template: scopes, loops, macros, output. Jinja's scoping: loops, macros, with
 * and capturing blocks are scopes of their own, `if` is not; a macro sees the scope that it was written in.
 */
#include "render.h"
#include "run.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- scopes */

tval apus_tpl_look_up(const trender *r, const tscope *from, uint32_t name)
{
    for (const tscope *s = from; s != NULL; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (s->names[i] == name)
                return s->values[i];
    return r->own[name];
}

void apus_tpl_store(trender *r, uint32_t name, tval v)
{
    tscope *s = r->scope;
    if (s == NULL) {
        r->own[name] = v;
        return;
    }
    for (size_t i = 0; i < s->n; i++)
        if (s->names[i] == name) {
            s->values[i] = v;
            return;
        }
    if (s->n == s->capacity) {
        size_t more = s->capacity == 0 ? 4 : s->capacity * 2;
        s->names = apus_tpl_grow(&r->c.base, s->names, s->n * sizeof *s->names, more * sizeof *s->names);
        s->values = apus_tpl_grow(&r->c.base, s->values, s->n * sizeof *s->values, more * sizeof *s->values);
        s->capacity = more;
    }
    s->names[s->n] = name;
    s->values[s->n++] = v;
}

tscope *apus_tpl_open_scope(trender *r, tscope *parent)
{
    tscope *s = apus_tpl_alloc(&r->c.base, sizeof *s);
    s->parent = parent;
    return s;
}

/* For the next round of a loop. */
tscope *apus_tpl_fresh_scope(trender *r, tscope *s)
{
    if (s->kept)
        return apus_tpl_open_scope(r, s->parent);
    s->n = 0;
    return s;
}

void apus_tpl_assign(trender *r, const tnode *target, tval v)
{
    tctx *c = &r->c;
    if (target->kind == N_NAME) {
        apus_tpl_store(r, target->name, v);
        return;
    }
    if (target->kind == N_NAMESPACE_SET) {
        tval space = apus_tpl_look_up(r, r->scope, target->namespace_set.name);
        tstr *name = target->namespace_set.attribute;
        c->base.at = target->at;
        if (space.kind != T_NAMESPACE)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "cannot assign attribute on non-namespace object");
        if (name->bytes[0] == '_')
            apus_tpl_fail(&c->base, APUS_E_INVALID, "a namespace's attribute must not begin with an underscore");
        apus_tpl_dict_set(c, space.d, apus_tpl_sval(name), v);
        return;
    }
    titer it = apus_tpl_iterate(c, v);
    tval item;
    size_t n = 0;
    for (; n < target->list.n && apus_tpl_next(c, &it, &item); n++)
        apus_tpl_assign(r, target->list.items[n], item);
    if (n < target->list.n)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "not enough values to unpack (expected %zu, got %zu)", target->list.n, n);
    if (apus_tpl_next(c, &it, &item))
        apus_tpl_fail(&c->base, APUS_E_INVALID, "too many values to unpack (expected %zu)", target->list.n);
}

/* ---------------------------------------------------------------- capturing, macros */

/* What the body writes, as a string. *how: it may end the loop around. */
static tstr *capture(trender *r, const tnodes *body, tscope *scope, flow *how)
{
    tscope *outer = r->scope;
    tbuf *out = r->out, own = {.c = &r->c};
    r->scope = scope;
    r->out = &own;
    flow end = apus_tpl_run_body(r, body);
    r->scope = outer;
    r->out = out;
    if (how != NULL)
        *how = end;
    return apus_tpl_take(&own);
}

static tval make_macro(trender *r, const tsignature *signature)
{
    struct tmacro *m = apus_tpl_alloc(&r->c.base, sizeof *m);
    m->signature = signature;
    m->scope = r->scope;
    for (tscope *s = r->scope; s != NULL && !s->kept; s = s->parent)
        s->kept = true;
    return (tval){.kind = T_MACRO, .macro = m};
}

const char *apus_tpl_macro_name(const struct tmacro *macro)
{
    return macro->signature->name;
}

tval apus_tpl_macro_attribute(tctx *c, struct tmacro *macro, const tstr *name)
{
    const tsignature *s = macro->signature;
    if (apus_tpl_is(name, "name"))
        return s->name == NULL ? apus_tpl_none() : apus_tpl_sval(apus_tpl_literal(&c->base, s->name));
    if (apus_tpl_is(name, "catch_kwargs"))
        return apus_tpl_bool(s->uses_kwargs);
    if (apus_tpl_is(name, "catch_varargs"))
        return apus_tpl_bool(s->uses_varargs);
    if (apus_tpl_is(name, "caller"))
        return apus_tpl_bool(s->uses_caller);
    if (!apus_tpl_is(name, "arguments"))
        return apus_tpl_missing();
    tlist *l = apus_tpl_list(&c->base, s->n);
    for (; l->n < s->n; l->n++)
        l->items[l->n] = apus_tpl_sval(s->param_names[l->n]);
    return apus_tpl_tval(l);
}

/* The keyword argument of this name, marked as taken. */
static tval take_named(const tcall *call, bool *taken, const tstr *name)
{
    for (size_t i = 0; i < call->n_named; i++)
        if (!taken[i] && apus_tpl_str_compare(call->names[i], name) == 0) {
            taken[i] = true;
            return call->values[i];
        }
    return apus_tpl_missing();
}

static tval call_macro(trender *r, const struct tmacro *macro, const tcall *call)
{
    tctx *c = &r->c;
    const tsignature *s = macro->signature;
    const char *name = s->name == NULL ? "caller" : s->name;
    bool *taken = apus_tpl_array(&c->base, call->n_named, sizeof *taken);
    tval *given = apus_tpl_array(&c->base, s->n, sizeof *given);
    for (size_t i = 0; i < s->n; i++)
        given[i] = i < call->n ? call->args[i] : take_named(call, taken, s->param_names[i]);
    tscope *outer = r->scope, *scope = apus_tpl_open_scope(r, macro->scope);
    tval caller = apus_tpl_missing(), rest = apus_tpl_missing(), named = apus_tpl_missing();
    if (s->uses_caller) {
        caller = take_named(call, taken, r->t->names[r->t->caller]);
        if (caller.kind == T_MISSING || caller.kind == T_NONE)
            caller = apus_tpl_undefined(&c->base, "No caller defined");
    }
    if (s->uses_kwargs)
        named = apus_tpl_dval(apus_tpl_dict(&c->base, call->n_named));
    for (size_t i = 0; i < call->n_named; i++) {
        if (taken[i])
            continue;
        if (!s->uses_kwargs)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "macro '%s' takes no keyword argument '%.*s'", name, (int)call->names[i]->length,
                          call->names[i]->bytes);
        apus_tpl_dict_set(c, named.d, apus_tpl_sval(call->names[i]), call->values[i]);
    }
    if (call->n > s->n && !s->uses_varargs)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "macro '%s' takes not more than %zu argument(s)", name, s->n);
    if (s->uses_varargs) {
        tlist *l = apus_tpl_list(&c->base, call->n > s->n ? call->n - s->n : 0);
        for (size_t i = s->n; i < call->n; i++)
            l->items[l->n++] = call->args[i];
        rest = apus_tpl_tval(l);
    }
    r->scope = scope;
    for (size_t i = 0; i < s->n; i++)
        if (given[i].kind != T_MISSING)
            apus_tpl_store(r, s->params[i], given[i]);
    if (s->uses_caller)
        apus_tpl_store(r, r->t->caller, caller);
    if (s->uses_varargs)
        apus_tpl_store(r, r->t->varargs, rest);
    if (s->uses_kwargs)
        apus_tpl_store(r, r->t->kwargs, named);
    for (size_t i = 0; i < s->n; i++)
        if (given[i].kind == T_MISSING)
            apus_tpl_store(r, s->params[i],
                           s->defaults[i] != NULL ? apus_tpl_eval(r, s->defaults[i])
                                                  : apus_tpl_undefined_attribute(&c->base, T_MISSING, s->param_names[i]));
    r->scope = outer;
    return apus_tpl_sval(capture(r, &s->body, scope, NULL));
}

/* ---------------------------------------------------------------- calls */

static tcall arguments(trender *r, const targs *args, tval caller)
{
    tctx *c = &r->c;
    tcall call = {0};
    size_t n = args->positional.n, n_named = args->named.n + (caller.kind != T_MISSING ? 1 : 0);
    const tlist *more = NULL;
    tval dictionary = apus_tpl_missing();
    tval *values = apus_tpl_array(&c->base, n, sizeof *values);
    for (size_t i = 0; i < n; i++)
        values[i] = apus_tpl_eval(r, args->positional.items[i]);
    tval *named = apus_tpl_array(&c->base, n_named, sizeof *named);
    for (size_t i = 0; i < args->named.n; i++)
        named[i] = apus_tpl_eval(r, args->named.items[i]);
    tstr **names = args->names;
    if (args->star != NULL) {
        more = apus_tpl_to_list(c, apus_tpl_eval(r, args->star));
        values = apus_tpl_grow(&c->base, values, n * sizeof *values, (n + more->n) * sizeof *values);
        memcpy(values + n, more->items, more->n * sizeof *values);
        n += more->n;
    }
    if (args->star_star != NULL) {
        dictionary = apus_tpl_eval(r, args->star_star);
        if (dictionary.kind != T_DICT)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "argument after ** must be a mapping, not %s", apus_tpl_type(dictionary));
    }
    size_t extra = dictionary.kind == T_DICT ? dictionary.d->n : 0;
    if (extra > 0 || caller.kind != T_MISSING) {
        names = apus_tpl_array(&c->base, n_named + extra, sizeof *names);
        if (args->named.n > 0)
            memcpy(names, args->names, args->named.n * sizeof *names);
        named = apus_tpl_grow(&c->base, named, n_named * sizeof *named, (n_named + extra) * sizeof *named);
        n_named = args->named.n;
        if (caller.kind != T_MISSING) {
            names[n_named] = r->t->names[r->t->caller];
            named[n_named++] = caller;
        }
        for (size_t i = 0; i < extra; i++) {
            names[n_named] = apus_tpl_need_str(c, "**: a keyword", dictionary.d->keys[i]);
            for (size_t k = 0; k < args->named.n; k++)
                if (apus_tpl_str_compare(names[k], names[n_named]) == 0)
                    apus_tpl_fail(&c->base, APUS_E_INVALID, "multiple values for keyword argument '%.*s'", (int)names[k]->length, names[k]->bytes);
            named[n_named++] = dictionary.d->values[i];
        }
    }
    call.args = values;
    call.n = n;
    call.names = names;
    call.values = named;
    call.n_named = n_named;
    return call;
}

static tval call_loop(trender *r, struct tloop *l, const tcall *call)
{
    tval source;
    apus_tpl_bind(&r->c, "loop", "iterable", 1, call, &source);
    if (!l->node->loop.recursive)
        apus_tpl_fail(&r->c.base, APUS_E_INVALID, "The loop must have the 'recursive' marker to be called recursively.");
    tbuf *out = r->out, own = {.c = &r->c};
    r->out = &own;
    (void)apus_tpl_run_loop(r, l->node, source, l->scope, l->depth0 + 1);
    r->out = out;
    return apus_tpl_sval(apus_tpl_take(&own));
}

static tval call_value(trender *r, tval callee, const tcall *call)
{
    tctx *c = &r->c;
    switch (callee.kind) {
    case T_FUNCTION:
        return callee.fn->call(c, call);
    case T_METHOD:
        return callee.method->def->call(c, callee.method->self, call);
    case T_MACRO:
        return call_macro(r, callee.macro, call);
    case T_LOOP:
        return call_loop(r, callee.loop, call);
    case T_JOINER:
        apus_tpl_bind(c, "the joiner", "", 0, call, NULL);
        if (callee.joiner->used)
            return apus_tpl_sval(callee.joiner->separator);
        callee.joiner->used = true;
        return apus_tpl_sval(apus_tpl_literal(&c->base, ""));
    case T_UNDEFINED:
        apus_tpl_use_undefined(c, callee);
    default:
        apus_tpl_fail(&c->base, APUS_E_INVALID, "'%s' object is not callable", apus_tpl_type(callee));
    }
}

static tval eval_call(trender *r, const tnode *n, tval caller)
{
    tval callee = apus_tpl_eval(r, n->call.of);
    tcall call = arguments(r, &n->call.args, caller);
    return call_value(r, callee, &call);
}

static tval eval_filter(trender *r, const tnode *n)
{
    tval v = n->call.of == NULL ? r->captured : apus_tpl_eval(r, n->call.of);
    tcall call = arguments(r, &n->call.args, apus_tpl_missing());
    if (n->call.filter == NULL)
        apus_tpl_fail(&r->c.base, APUS_E_INVALID, "No filter named '%.*s' found.", (int)n->call.name->length, n->call.name->bytes);
    return n->call.filter->call(&r->c, v, &call);
}

static tval eval_test(trender *r, const tnode *n)
{
    tval v = apus_tpl_eval(r, n->call.of);
    tcall call = arguments(r, &n->call.args, apus_tpl_missing());
    if (n->call.test == NULL)
        apus_tpl_fail(&r->c.base, APUS_E_INVALID, "No test named '%.*s' found.", (int)n->call.name->length, n->call.name->bytes);
    return apus_tpl_bool(n->call.test->call(&r->c, v, &call));
}

/* ---------------------------------------------------------------- expressions */

static bool holds(tctx *c, int op, tval a, tval b)
{
    int order;
    switch (op) {
    case O_EQ:
        return apus_tpl_equal(c, a, b);
    case O_NE:
        return !apus_tpl_equal(c, a, b);
    case 'i':
        return apus_tpl_contains(c, b, a);
    case 'n':
        return !apus_tpl_contains(c, b, a);
    case '<':
        return apus_tpl_compare(c, a, b, "<") == -1;
    case '>':
        return apus_tpl_compare(c, a, b, ">") == 1;
    case O_LE:
        order = apus_tpl_compare(c, a, b, "<=");
        return order == -1 || order == 0;
    default:
        order = apus_tpl_compare(c, a, b, ">=");
        return order == 1 || order == 0;
    }
}

static tval eval_compare(trender *r, const tnode *n)
{
    tval left = apus_tpl_eval(r, n->compare.first);
    for (size_t i = 0; i < n->compare.others.n; i++) {
        tval right = apus_tpl_eval(r, n->compare.others.items[i]);
        if (!holds(&r->c, n->compare.ops[i], left, right))
            return apus_tpl_bool(false);
        left = right;
    }
    return apus_tpl_bool(true);
}

static tval eval_sign(trender *r, const tnode *n)
{
    tval v = apus_tpl_eval(r, n->a);
    if (v.kind == T_FLOAT)
        return n->kind == N_NEGATE ? apus_tpl_float(-v.f) : v;
    if (v.kind != T_INT && v.kind != T_BOOL && v.kind != T_UNDEFINED)
        apus_tpl_fail(&r->c.base, APUS_E_INVALID, "bad operand type for unary %c: '%s'", n->kind == N_NEGATE ? '-' : '+', apus_tpl_type(v));
    return apus_tpl_binary(&r->c, n->kind == N_NEGATE ? '-' : '+', apus_tpl_int(0), v);
}

static tval eval_concat(trender *r, const tnode *n)
{
    tbuf b = {.c = &r->c};
    for (size_t i = 0; i < n->list.n; i++)
        apus_tpl_print(&b, apus_tpl_eval(r, n->list.items[i]));
    return apus_tpl_sval(apus_tpl_take(&b));
}

static tval eval_list(trender *r, const tnode *n)
{
    tlist *l = apus_tpl_list(&r->c.base, n->list.n);
    for (size_t i = 0; i < n->list.n; i++)
        l->items[l->n++] = apus_tpl_eval(r, n->list.items[i]);
    return (tval){.kind = n->kind == N_LIST ? T_LIST : T_TUPLE, .l = l};
}

static tval eval_dict(trender *r, const tnode *n)
{
    tdict *d = apus_tpl_dict(&r->c.base, n->list.n / 2);
    for (size_t i = 0; i < n->list.n; i += 2) {
        tval key = apus_tpl_eval(r, n->list.items[i]);
        apus_tpl_dict_set(&r->c, d, key, apus_tpl_eval(r, n->list.items[i + 1]));
    }
    return apus_tpl_dval(d);
}

static tval eval_name(trender *r, const tnode *n)
{
    tval v = apus_tpl_look_up(r, r->scope, n->name);
    return v.kind != T_MISSING ? v : apus_tpl_undefined_attribute(&r->c.base, T_MISSING, r->t->names[n->name]);
}

static tval eval_slice(trender *r, const tnode *n)
{
    tval of = apus_tpl_eval(r, n->slice.of), bounds[3];
    const tnode *nodes[3] = {n->slice.start, n->slice.stop, n->slice.step};
    for (int i = 0; i < 3; i++)
        bounds[i] = nodes[i] == NULL ? apus_tpl_missing() : apus_tpl_eval(r, nodes[i]);
    return apus_tpl_slice(&r->c, of, bounds[0], bounds[1], bounds[2]);
}

static tval eval_if_else(trender *r, const tnode *n)
{
    if (apus_tpl_truth(apus_tpl_eval(r, n->a)))
        return apus_tpl_eval(r, n->b);
    if (n->c != NULL)
        return apus_tpl_eval(r, n->c);
    return apus_tpl_undefined(&r->c.base, "the inline if-expression evaluated to false and no else section was defined.");
}

static tval eval_kind(trender *r, const tnode *n)
{
    tctx *c = &r->c;
    tval v;
    switch (n->kind) {
    case N_CONST:
        return n->constant;
    case N_NAME:
        return eval_name(r, n);
    case N_LIST:
    case N_TUPLE:
        return eval_list(r, n);
    case N_DICT:
        return eval_dict(r, n);
    case N_CONCAT:
        return eval_concat(r, n);
    case N_BINARY:
        v = apus_tpl_eval(r, n->a);
        return apus_tpl_binary(c, n->op, v, apus_tpl_eval(r, n->b));
    case N_AND:
        v = apus_tpl_eval(r, n->a);
        return apus_tpl_truth(v) ? apus_tpl_eval(r, n->b) : v;
    case N_OR:
        v = apus_tpl_eval(r, n->a);
        return apus_tpl_truth(v) ? v : apus_tpl_eval(r, n->b);
    case N_NOT:
        return apus_tpl_bool(!apus_tpl_truth(apus_tpl_eval(r, n->a)));
    case N_NEGATE:
    case N_PLUS:
        return eval_sign(r, n);
    case N_COMPARE:
        return eval_compare(r, n);
    case N_IF_ELSE:
        return eval_if_else(r, n);
    case N_ATTRIBUTE:
        return apus_tpl_getattr(c, apus_tpl_eval(r, n->attribute.of), n->attribute.name);
    case N_ITEM:
        v = apus_tpl_eval(r, n->a);
        return apus_tpl_getitem(c, v, apus_tpl_eval(r, n->b));
    case N_SLICE:
        return eval_slice(r, n);
    case N_CALL:
        return eval_call(r, n, apus_tpl_missing());
    case N_FILTER:
        return eval_filter(r, n);
    case N_TEST:
        return eval_test(r, n);
    default:
        apus_tpl_fail(&c->base, APUS_E_INTERNAL, "a statement where an expression is needed");
    }
}

tval apus_tpl_eval(trender *r, const tnode *n)
{
    tpos outer = r->c.base.at;
    apus_tpl_enter(&r->c);
    apus_tpl_spend(&r->c, 16);
    r->c.base.at = n->at;
    tval v = eval_kind(r, n);
    r->c.base.at = outer;
    apus_tpl_leave(&r->c);
    return v;
}

/* ---------------------------------------------------------------- statements */

/* Elements of a chain of elif, in turn. */
static flow run_if(trender *r, const tnode *n)
{
    for (;;) {
        r->c.base.at = n->at;
        if (apus_tpl_truth(apus_tpl_eval(r, n->branch.test)))
            return apus_tpl_run_body(r, &n->branch.yes);
        if (n->branch.no.n != 1 || n->branch.no.items[0]->kind != N_IF)
            return apus_tpl_run_body(r, &n->branch.no);
        n = n->branch.no.items[0];
    }
}

static flow run_with(trender *r, const tnode *n)
{
    tscope *outer = r->scope, *scope = apus_tpl_open_scope(r, outer);
    tval *values = apus_tpl_array(&r->c.base, n->with.values.n, sizeof *values);
    for (size_t i = 0; i < n->with.values.n; i++)
        values[i] = apus_tpl_eval(r, n->with.values.items[i]);
    r->scope = scope;
    for (size_t i = 0; i < n->with.targets.n; i++)
        apus_tpl_assign(r, n->with.targets.items[i], values[i]);
    flow how = apus_tpl_run_body(r, &n->with.body);
    r->scope = outer;
    return how;
}

/* set and filter blocks: both filter what their body writes. */
static flow run_captured(trender *r, const tnode *n)
{
    flow how;
    tval v = apus_tpl_sval(capture(r, &n->set.body, apus_tpl_open_scope(r, r->scope), &how));
    if (how != RUN)
        return how;
    if (n->set.value != NULL) {
        r->captured = v;
        v = apus_tpl_eval(r, n->set.value);
    }
    if (n->kind == N_SET_BLOCK)
        apus_tpl_assign(r, n->set.target, v);
    else
        apus_tpl_print(r->out, v);
    return RUN;
}

static void run_generation(trender *r, const tnode *n)
{
    ttag mark = ++r->generations << 1;
    const tstr *s = capture(r, &n->with.body, apus_tpl_open_scope(r, r->scope), NULL);
    size_t from = 0;
    for (size_t i = 0; i < (s->n_runs == 0 ? 1 : s->n_runs); i++) {
        trun run = s->n_runs == 0 ? (trun){s->length, s->tag} : s->runs[i];
        apus_tpl_put(r->out, s->bytes + from, run.end - from, run.tag >> 1 != 0 ? run.tag : run.tag | mark);
        from = run.end;
    }
}

static flow run_one(trender *r, const tnode *n)
{
    tscope *outer = r->scope;
    tval v;
    switch (n->kind) {
    case N_DATA:
        apus_tpl_put(r->out, n->data->bytes, n->data->length, T_OWN);
        return RUN;
    case N_OUTPUT:
        for (size_t i = 0; i < n->list.n; i++) {
            v = apus_tpl_eval(r, n->list.items[i]);
            r->c.base.at = n->list.items[i]->at;
            apus_tpl_print(r->out, v);
        }
        return RUN;
    case N_IF:
        return run_if(r, n);
    case N_FOR:
        v = apus_tpl_eval(r, n->loop.of);
        r->c.base.at = n->loop.of->at;
        return apus_tpl_run_loop(r, n, v, r->scope, 0);
    case N_SET:
        v = apus_tpl_eval(r, n->set.value);
        apus_tpl_assign(r, n->set.target, v);
        return RUN;
    case N_SET_BLOCK:
    case N_FILTER_BLOCK:
        return run_captured(r, n);
    case N_MACRO:
        apus_tpl_store(r, n->macro.name, make_macro(r, n->macro.signature));
        return RUN;
    case N_CALL_BLOCK:
        v = make_macro(r, n->macro.signature);
        apus_tpl_print(r->out, eval_call(r, n->macro.call, v));
        return RUN;
    case N_WITH:
        return run_with(r, n);
    case N_BLOCK:
        r->scope = apus_tpl_open_scope(r, n->with.scoped ? outer : NULL);
        (void)apus_tpl_run_body(r, &n->with.body);
        r->scope = outer;
        return RUN;
    case N_GENERATION:
        run_generation(r, n);
        return RUN;
    case N_BREAK:
        return BREAK;
    case N_CONTINUE:
        return CONTINUE;
    default:
        apus_tpl_fail(&r->c.base, APUS_E_INTERNAL, "an expression where a statement is needed");
    }
}

flow apus_tpl_run_body(trender *r, const tnodes *body)
{
    flow how = RUN;
    tpos outer = r->c.base.at;
    apus_tpl_enter(&r->c);
    for (size_t i = 0; i < body->n && how == RUN; i++) {
        r->c.base.at = body->items[i]->at;
        apus_tpl_spend(&r->c, 16);
        how = run_one(r, body->items[i]);
    }
    r->c.base.at = outer;
    apus_tpl_leave(&r->c);
    return how;
}

/* ---------------------------------------------------------------- one rendering */

static bool own_name(const tstr *name)
{
    return name->length >= 6 && memcmp(name->bytes + name->length - 6, "_token", 6) == 0;
}

const tstr *apus_tpl_run(const apus_template *t, tctx **where, const tlimits *limits, const apus_node_api *api, const apus_node *variables,
                         int64_t now, apus_error *err, apus_status *status)
{
    trender *r = calloc(1, sizeof *r);
    if (r == NULL) {
        *status = apus_fail(err, APUS_E_MEMORY, "no memory to render %s", t->base.name);
        return NULL;
    }
    *where = &r->c;
    apus_tpl_arena_init(&r->c.base.arena, limits->memory);
    r->c.base.err = err;
    r->c.base.name = t->base.name;
    r->c.base.at = (tpos){1, 1};
    r->c.limits = *limits;
    r->c.now = now;
    r->t = t;
    if (setjmp(r->c.base.leave) != 0) {
        *status = r->c.base.status;
        return NULL;
    }
    r->own = apus_tpl_array(&r->c.base, t->n_names, sizeof *r->own);
    for (size_t i = 0; i < t->n_names; i++) {
        const tstr *name = t->names[i];
        char *key = apus_tpl_alloc(&r->c.base, name->length + 1);
        memcpy(key, name->bytes, name->length);
        const apus_node *n = memchr(key, '\0', name->length) != NULL ? NULL : api->get(variables, key);
        const struct tfunction *f = apus_tpl_global(name->bytes, name->length);
        if (n != NULL)
            r->own[i] = apus_tpl_from_node(&r->c, n, own_name(name) ? T_OWN : T_CONTENT);
        else if (f != NULL)
            r->own[i] = (tval){.kind = T_FUNCTION, .fn = f};
    }
    tbuf *out = apus_tpl_alloc(&r->c.base, sizeof *out);
    out->c = &r->c;
    r->out = out;
    (void)apus_tpl_run_body(r, &t->body);
    *status = APUS_OK;
    return apus_tpl_take(out);
}

void apus_tpl_run_free(tctx *c)
{
    if (c != NULL)
        apus_tpl_arena_free(&c->base.arena);
    free(c);
}
