/*
 * core/template/expression: tokens into the tree of an expression: Jinja's grammar and precedence. Knows no statement
 * and nothing of values beyond constants.
 */
#include "parse.h"

#include <string.h>

enum { DEPTH = 400 };

static tnode *or_expression(parser *p);
static tnode *unary(parser *p, bool with_filter);

/* ---------------------------------------------------------------- tokens */

static const char *describe(const ttoken *t, char out[80])
{
    static const char *const names[] = {"text", "{%", "%}", "{{", "}}", NULL, "a string", "an integer", "a float", NULL, "the end of the template"};
    if (t->kind == K_NAME)
        (void)snprintf(out, 80, "'%.*s'", (int)(t->text->length > 60 ? 60 : t->text->length), t->text->bytes);
    else if (t->kind == K_OPERATOR) {
        static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
        if (t->op >= O_EQ)
            (void)snprintf(out, 80, "'%s'", two[t->op - O_EQ]);
        else
            (void)snprintf(out, 80, "'%c'", (char)t->op);
    } else
        (void)snprintf(out, 80, "%s", names[t->kind]);
    return out;
}

T_NORETURN void apus_tpl_expected(parser *p, const char *what)
{
    char got[80];
    p->b->at = p->at->at;
    apus_tpl_fail(p->b, APUS_E_INVALID, "expected %s, got %s", what, describe(p->at, got));
}

T_NORETURN void apus_tpl_refuse(parser *p, tpos at, const char *message)
{
    p->b->at = at;
    apus_tpl_fail(p->b, APUS_E_INVALID, "%s", message);
}

void apus_tpl_expect_op(parser *p, int op)
{
    char what[4] = {'\'', (char)op, '\'', '\0'};
    if (!skip_op(p, op))
        apus_tpl_expected(p, what);
}

const ttoken *apus_tpl_expect(parser *p, ttoken_kind kind, const char *what)
{
    if (p->at->kind != kind)
        apus_tpl_expected(p, what);
    return next(p);
}

void apus_tpl_deeper(parser *p)
{
    if (++p->depth > DEPTH) {
        p->b->at = p->at->at;
        apus_tpl_fail(p->b, APUS_E_INVALID, "nested over %d levels deep", DEPTH);
    }
}

/* ---------------------------------------------------------------- making nodes */

tnode *apus_tpl_node(parser *p, tnode_kind kind, tpos at)
{
    tnode *n = apus_tpl_alloc(p->b, sizeof *n);
    n->kind = kind;
    n->at = at;
    return n;
}

void apus_tpl_add(parser *p, tnodes *list, tnode *n)
{
    if ((list->n & (list->n - 1)) == 0) /* full at 0, 1, 2, 4, 8, … */
        list->items = apus_tpl_grow(p->b, list->items, list->n * sizeof(tnode *), (list->n == 0 ? 1 : list->n * 2) * sizeof(tnode *));
    list->items[list->n++] = n;
}

uint32_t apus_tpl_number_of(parser *p, tstr *name)
{
    apus_template *t = p->t;
    (void)apus_tpl_chars(name); /* counted now: templates are shared between threads */
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < name->length; i++)
        h = (h ^ (unsigned char)name->bytes[i]) * 16777619u;
    h %= T_BUCKETS;
    for (uint32_t i = p->heads[h]; i != 0; i = p->chain[i - 1])
        if (apus_tpl_str_compare(t->names[i - 1], name) == 0)
            return i - 1;
    if (t->n_names == t->names_capacity) {
        size_t more = t->names_capacity == 0 ? 64 : t->names_capacity * 2;
        t->names = apus_tpl_grow(p->b, t->names, t->n_names * sizeof *t->names, more * sizeof *t->names);
        p->chain = apus_tpl_grow(p->b, p->chain, t->n_names * sizeof *p->chain, more * sizeof *p->chain);
        t->names_capacity = more;
    }
    t->names[t->n_names] = name;
    p->chain[t->n_names] = p->heads[h];
    p->heads[h] = (uint32_t)++t->n_names;
    return (uint32_t)t->n_names - 1;
}

static tnode *constant(parser *p, tpos at, tval v)
{
    tnode *n = apus_tpl_node(p, N_CONST, at);
    n->constant = v;
    return n;
}

static tnode *binary(parser *p, tnode_kind kind, int op, tpos at, tnode *a, tnode *b)
{
    tnode *n = apus_tpl_node(p, kind, at);
    n->a = a;
    n->b = b;
    n->op = op;
    return n;
}

static void unresolved_name(parser *p, tnode *n)
{
    if (p->n_pending == p->pending_capacity) {
        size_t more = p->pending_capacity == 0 ? 8 : p->pending_capacity * 2;
        p->pending = apus_tpl_grow(p->b, p->pending, p->n_pending * sizeof *p->pending, more * sizeof *p->pending);
        p->pending_capacity = more;
    }
    p->pending[p->n_pending++] = (unresolved){n, p->soft};
}

/* ---------------------------------------------------------------- primaries */

/* Items up to `close`; a comma at the end is fine. */
static void items(parser *p, tnodes *list, char close)
{
    while (!is_op(p->at, close)) {
        if (list->n > 0)
            apus_tpl_expect_op(p, ',');
        if (is_op(p->at, close))
            break;
        apus_tpl_add(p, list, apus_tpl_expression(p));
    }
    apus_tpl_expect_op(p, close);
}

static tnode *dictionary(parser *p)
{
    tnode *n = apus_tpl_node(p, N_DICT, next(p)->at);
    while (!is_op(p->at, '}')) {
        if (n->list.n > 0)
            apus_tpl_expect_op(p, ',');
        if (is_op(p->at, '}'))
            break;
        tnode *key = apus_tpl_expression(p);
        apus_tpl_expect_op(p, ':');
        apus_tpl_add(p, &n->list, key);
        apus_tpl_add(p, &n->list, apus_tpl_expression(p));
    }
    apus_tpl_expect_op(p, '}');
    return n;
}

static bool tuple_end(const parser *p, const char *extra)
{
    return p->at->kind == K_VARIABLE_END || p->at->kind == K_BLOCK_END || is_op(p->at, ')') || (extra != NULL && is_name(p->at, extra));
}

static tnode *primary(parser *p, bool with_namespace);

/* One expression, or several with commas: a tuple. */
tnode *apus_tpl_tuple(parser *p, how mode, const char *extra, bool parentheses)
{
    tnodes all = {0};
    tpos at = p->at->at;
    bool commas = false;
    for (;;) {
        if (all.n > 0)
            apus_tpl_expect_op(p, ',');
        if (tuple_end(p, extra))
            break;
        apus_tpl_add(p, &all, mode == FULL ? apus_tpl_expression(p) : mode == NO_IF ? or_expression(p) : primary(p, mode == TARGET_NS));
        if (!is_op(p->at, ','))
            break;
        commas = true;
    }
    if (!commas && all.n > 0)
        return all.items[0];
    if (!commas && !parentheses)
        apus_tpl_expected(p, "an expression");
    tnode *n = apus_tpl_node(p, N_TUPLE, at);
    n->list = all;
    return n;
}

static tnode *name(parser *p, const ttoken *t)
{
    tnode *n = apus_tpl_node(p, N_NAME, t->at);
    n->name = apus_tpl_number_of(p, t->text);
    for (enclosing *m = p->macros; m != NULL; m = m->outer) {
        m->signature->uses_caller = m->signature->uses_caller || n->name == p->t->caller;
        m->signature->uses_varargs = m->signature->uses_varargs || n->name == p->t->varargs;
        m->signature->uses_kwargs = m->signature->uses_kwargs || n->name == p->t->kwargs;
    }
    return n;
}

static tnode *primary(parser *p, bool with_namespace)
{
    const ttoken *t = p->at;
    tnode *n;
    switch (t->kind) {
    case K_NAME:
        next(p);
        if (apus_tpl_is(t->text, "true") || apus_tpl_is(t->text, "True"))
            return constant(p, t->at, apus_tpl_bool(true));
        if (apus_tpl_is(t->text, "false") || apus_tpl_is(t->text, "False"))
            return constant(p, t->at, apus_tpl_bool(false));
        if (apus_tpl_is(t->text, "none") || apus_tpl_is(t->text, "None"))
            return constant(p, t->at, apus_tpl_none());
        if (with_namespace && skip_op(p, '.')) {
            n = apus_tpl_node(p, N_NAMESPACE_SET, t->at);
            n->namespace_set.name = apus_tpl_number_of(p, t->text);
            n->namespace_set.attribute = apus_tpl_expect(p, K_NAME, "a name")->text;
            return n;
        }
        return name(p, t);
    case K_STRING: {
        tstr *s = next(p)->text;
        size_t total = s->length;
        const ttoken *last = p->at;
        for (; last->kind == K_STRING; last++)
            total += last->text->length;
        if (last > p->at) { /* neighbours join */
            char *bytes = apus_tpl_alloc(p->b, total + 1);
            memcpy(bytes, s->bytes, total = s->length);
            for (; p->at < last; total += next(p)->text->length)
                memcpy(bytes + total, p->at->text->bytes, p->at->text->length);
            s = apus_tpl_str(p->b, bytes, total, T_OWN);
            (void)apus_tpl_chars(s);
        }
        return constant(p, t->at, apus_tpl_sval(s));
    }
    case K_INT:
        next(p);
        return constant(p, t->at, apus_tpl_int(t->i));
    case K_FLOAT:
        next(p);
        return constant(p, t->at, apus_tpl_float(t->f));
    default:
        break;
    }
    if (is_op(t, '{'))
        return dictionary(p);
    if (is_op(t, '[')) {
        n = apus_tpl_node(p, N_LIST, next(p)->at);
        items(p, &n->list, ']');
        return n;
    }
    if (!is_op(t, '('))
        apus_tpl_expected(p, "an expression");
    next(p);
    apus_tpl_deeper(p);
    n = apus_tpl_tuple(p, FULL, NULL, true);
    p->depth--;
    apus_tpl_expect_op(p, ')');
    return n;
}

/* ---------------------------------------------------------------- calls, subscripts, filters, tests */

static void arguments(parser *p, targs *args)
{
    tpos at = p->at->at;
    apus_tpl_expect_op(p, '(');
    size_t names_capacity = 0;
    for (bool more = false; !is_op(p->at, ')'); more = true) {
        if (more)
            apus_tpl_expect_op(p, ',');
        if (is_op(p->at, ')'))
            break;
        bool fine;
        if (skip_op(p, '*')) {
            fine = args->star == NULL && args->star_star == NULL;
            args->star = apus_tpl_expression(p);
        } else if (skip_op(p, O_POW)) {
            fine = args->star_star == NULL;
            args->star_star = apus_tpl_expression(p);
        } else if (p->at->kind == K_NAME && is_op(p->at + 1, '=')) {
            fine = args->star_star == NULL;
            if (args->named.n == names_capacity) {
                size_t room = names_capacity == 0 ? 4 : names_capacity * 2;
                args->names = apus_tpl_grow(p->b, args->names, names_capacity * sizeof *args->names, room * sizeof *args->names);
                names_capacity = room;
            }
            args->names[args->named.n] = next(p)->text;
            for (size_t i = 0; i < args->named.n; i++)
                fine = fine && apus_tpl_str_compare(args->names[i], args->names[args->named.n]) != 0;
            next(p);
            apus_tpl_add(p, &args->named, apus_tpl_expression(p));
        } else {
            fine = args->star == NULL && args->star_star == NULL && args->named.n == 0;
            apus_tpl_add(p, &args->positional, apus_tpl_expression(p));
        }
        if (!fine)
            apus_tpl_refuse(p, at, "invalid syntax for function call expression");
    }
    apus_tpl_expect_op(p, ')');
}

static tnode *called(parser *p, tnode *of)
{
    tnode *n = apus_tpl_node(p, N_CALL, p->at->at);
    n->call.of = of;
    arguments(p, &n->call.args);
    return n;
}

static tnode *subscript(parser *p, tnode *of)
{
    const ttoken *t = next(p);
    if (is_op(t, '.')) {
        if (p->at->kind == K_INT) {
            tnode *n = binary(p, N_ITEM, 0, t->at, of, constant(p, p->at->at, apus_tpl_int(p->at->i)));
            next(p);
            return n;
        }
        tnode *n = apus_tpl_node(p, N_ATTRIBUTE, t->at);
        n->attribute.of = of;
        n->attribute.name = apus_tpl_expect(p, K_NAME, "a name or number after '.'")->text;
        return n;
    }
    tnode *bounds[3] = {NULL, NULL, NULL};
    size_t i = 0;
    bool slice = false;
    tnode *key = apus_tpl_node(p, N_TUPLE, t->at);
    while (!is_op(p->at, ']')) {
        if (is_op(p->at, ':') && i < 2 && key->list.n == 0) {
            next(p);
            slice = true;
            i++;
        } else if (is_op(p->at, ',') && !slice && bounds[0] != NULL) {
            next(p);
            apus_tpl_add(p, &key->list, bounds[0]);
            bounds[0] = NULL;
            if (is_op(p->at, ']'))
                apus_tpl_expected(p, "an expression");
        } else if (bounds[i] == NULL)
            bounds[i] = apus_tpl_expression(p);
        else
            apus_tpl_expected(p, "']'");
    }
    next(p);
    if (slice) {
        tnode *n = apus_tpl_node(p, N_SLICE, t->at);
        n->slice.of = of;
        n->slice.start = bounds[0];
        n->slice.stop = bounds[1];
        n->slice.step = bounds[2];
        return n;
    }
    if (key->list.n == 0 && bounds[0] != NULL)
        return binary(p, N_ITEM, 0, t->at, of, bounds[0]);
    if (bounds[0] != NULL)
        apus_tpl_add(p, &key->list, bounds[0]);
    return binary(p, N_ITEM, 0, t->at, of, key);
}

static tnode *postfix(parser *p, tnode *n)
{
    for (;;) {
        if (is_op(p->at, '.') || is_op(p->at, '['))
            n = subscript(p, n);
        else if (is_op(p->at, '('))
            n = called(p, n);
        else
            return n;
    }
}

static tstr *dotted(parser *p)
{
    tstr *s = apus_tpl_expect(p, K_NAME, "a name")->text;
    while (skip_op(p, '.')) {
        const tstr *more = apus_tpl_expect(p, K_NAME, "a name")->text;
        char *bytes = apus_tpl_alloc(p->b, s->length + more->length + 1);
        memcpy(bytes, s->bytes, s->length);
        bytes[s->length] = '.';
        memcpy(bytes + s->length + 1, more->bytes, more->length);
        s = apus_tpl_str(p->b, bytes, s->length + more->length + 1, T_OWN);
    }
    return s;
}

tnode *apus_tpl_filters(parser *p, tnode *of, bool start_inline)
{
    while (start_inline || is_op(p->at, '|')) {
        if (!start_inline)
            next(p);
        start_inline = false;
        tnode *n = apus_tpl_node(p, N_FILTER, p->at->at);
        n->call.name = dotted(p);
        n->call.filter = apus_tpl_filter(n->call.name->bytes, n->call.name->length);
        n->call.of = of;
        if (is_op(p->at, '('))
            arguments(p, &n->call.args);
        if (n->call.filter == NULL)
            unresolved_name(p, n);
        of = n;
    }
    return of;
}

static tnode *test(parser *p, tnode *of)
{
    tpos at = next(p)->at;
    bool negated = skip_name(p, "not");
    tnode *n = apus_tpl_node(p, N_TEST, p->at->at);
    n->call.of = of;
    n->call.name = dotted(p);
    n->call.test = apus_tpl_test(n->call.name->bytes, n->call.name->length);
    const ttoken *t = p->at;
    if (is_op(t, '('))
        arguments(p, &n->call.args);
    else if ((t->kind == K_NAME && !is_name(t, "else") && !is_name(t, "or") && !is_name(t, "and")) || t->kind == K_STRING || t->kind == K_INT ||
             t->kind == K_FLOAT || is_op(t, '[') || is_op(t, '{')) {
        if (is_name(t, "is"))
            apus_tpl_refuse(p, t->at, "You cannot chain multiple tests with is");
        apus_tpl_add(p, &n->call.args.positional, postfix(p, primary(p, false)));
    }
    if (n->call.test == NULL)
        unresolved_name(p, n);
    return negated ? binary(p, N_NOT, 0, at, n, NULL) : n;
}

static tnode *filter_expression(parser *p, tnode *n)
{
    for (;;) {
        if (is_op(p->at, '|'))
            n = apus_tpl_filters(p, n, false);
        else if (is_name(p->at, "is"))
            n = test(p, n);
        else if (is_op(p->at, '('))
            n = called(p, n);
        else
            return n;
    }
}

/* ---------------------------------------------------------------- operators */

static tnode *unary(parser *p, bool with_filter)
{
    const ttoken *t = p->at;
    tnode *n;
    apus_tpl_deeper(p);
    if (skip_op(p, '-'))
        n = binary(p, N_NEGATE, 0, t->at, unary(p, false), NULL);
    else if (skip_op(p, '+'))
        n = binary(p, N_PLUS, 0, t->at, unary(p, false), NULL);
    else
        n = primary(p, false);
    n = postfix(p, n);
    p->depth--;
    return with_filter ? filter_expression(p, n) : n;
}

static tnode *power(parser *p)
{
    tnode *n = unary(p, true);
    for (const ttoken *t = p->at; skip_op(p, O_POW); t = p->at)
        n = binary(p, N_BINARY, 'p', t->at, n, unary(p, true));
    return n;
}

static tnode *product(parser *p)
{
    tnode *n = power(p);
    for (;;) {
        const ttoken *t = p->at;
        if (!is_op(t, '*') && !is_op(t, '/') && !is_op(t, '%') && !is_op(t, O_FLOORDIV))
            return n;
        next(p);
        n = binary(p, N_BINARY, t->op == O_FLOORDIV ? 'f' : t->op, t->at, n, power(p));
    }
}

static tnode *concatenation(parser *p)
{
    tpos at = p->at->at;
    tnode *n = product(p);
    if (!is_op(p->at, '~'))
        return n;
    tnode *all = apus_tpl_node(p, N_CONCAT, at);
    apus_tpl_add(p, &all->list, n);
    while (skip_op(p, '~'))
        apus_tpl_add(p, &all->list, product(p));
    return all;
}

static tnode *sum(parser *p)
{
    tnode *n = concatenation(p);
    for (const ttoken *t = p->at; is_op(t, '+') || is_op(t, '-'); t = p->at) {
        next(p);
        n = binary(p, N_BINARY, t->op, t->at, n, concatenation(p));
    }
    return n;
}

static int comparison(parser *p)
{
    const ttoken *t = p->at;
    if (t->kind == K_OPERATOR && (t->op == O_EQ || t->op == O_NE || t->op == O_LE || t->op == O_GE || t->op == '<' || t->op == '>')) {
        next(p);
        return t->op;
    }
    if (skip_name(p, "in"))
        return 'i';
    if (is_name(t, "not") && is_name(t + 1, "in")) {
        next(p);
        next(p);
        return 'n';
    }
    return 0;
}

static tnode *compared(parser *p)
{
    tpos at = p->at->at;
    tnode *n = sum(p), *all = NULL;
    for (int op; (op = comparison(p)) != 0;) {
        if (all == NULL) {
            all = apus_tpl_node(p, N_COMPARE, at);
            all->compare.first = n;
        }
        size_t i = all->compare.others.n;
        if ((i & (i - 1)) == 0)
            all->compare.ops = apus_tpl_grow(p->b, all->compare.ops, i * sizeof(int), (i == 0 ? 1 : i * 2) * sizeof(int));
        all->compare.ops[i] = op;
        apus_tpl_add(p, &all->compare.others, sum(p));
    }
    return all == NULL ? n : all;
}

static tnode *negated(parser *p)
{
    const ttoken *t = p->at;
    if (!skip_name(p, "not"))
        return compared(p);
    apus_tpl_deeper(p);
    tnode *n = binary(p, N_NOT, 0, t->at, negated(p), NULL);
    p->depth--;
    return n;
}

static tnode *and_expression(parser *p)
{
    tnode *n = negated(p);
    for (const ttoken *t = p->at; skip_name(p, "and"); t = p->at)
        n = binary(p, N_AND, 0, t->at, n, negated(p));
    return n;
}

static tnode *or_expression(parser *p)
{
    tnode *n = and_expression(p);
    for (const ttoken *t = p->at; skip_name(p, "or"); t = p->at)
        n = binary(p, N_OR, 0, t->at, n, and_expression(p));
    return n;
}

tnode *apus_tpl_expression(parser *p)
{
    tpos at = p->at->at;
    size_t before = p->n_pending;
    apus_tpl_deeper(p);
    tnode *n = or_expression(p);
    while (skip_name(p, "if")) {
        bool soft = p->soft;
        p->soft = true;
        for (size_t i = before; i < p->n_pending; i++)
            p->pending[i].soft = true;
        tnode *whole = apus_tpl_node(p, N_IF_ELSE, at);
        whole->b = n;
        whole->a = or_expression(p);
        if (skip_name(p, "else"))
            whole->c = apus_tpl_expression(p);
        n = whole;
        p->soft = soft;
    }
    p->depth--;
    return n;
}
