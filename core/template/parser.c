/*
 * core/template/parser: tokens into a tree: Jinja's grammar with loop controls and generation blocks. What a template
 * needs of other files (include, import, extends) is refused. Knows nothing of values beyond constants.
 */
#include "syntax.h"

#include <string.h>

enum { DEPTH = 400, BUCKETS = 512 };

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
    uint32_t heads[BUCKETS];
    size_t chain_capacity;
    tstr **blocks;
    size_t n_blocks;
} parser;

static tnode *expression(parser *p);
static tnode *or_expression(parser *p);
static tnode *unary(parser *p, bool with_filter);
static tnode *filters(parser *p, tnode *of, bool start_inline);
static tnodes statements(parser *p, const char *const *ends, const char **found);

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

T_NORETURN static void expected(parser *p, const char *what)
{
    char got[80];
    p->b->at = p->at->at;
    apus_tpl_fail(p->b, APUS_E_INVALID, "expected %s, got %s", what, describe(p->at, got));
}

T_NORETURN static void fail_at(parser *p, tpos at, const char *message)
{
    p->b->at = at;
    apus_tpl_fail(p->b, APUS_E_INVALID, "%s", message);
}

static bool is_op(const ttoken *t, int op)
{
    return t->kind == K_OPERATOR && t->op == op;
}

static bool is_name(const ttoken *t, const char *name)
{
    return t->kind == K_NAME && apus_tpl_is(t->text, name);
}

static const ttoken *next(parser *p)
{
    const ttoken *t = p->at;
    if (t->kind != K_EOF)
        p->at++;
    return t;
}

static bool skip_op(parser *p, int op)
{
    bool yes = is_op(p->at, op);
    if (yes)
        next(p);
    return yes;
}

static bool skip_name(parser *p, const char *name)
{
    bool yes = is_name(p->at, name);
    if (yes)
        next(p);
    return yes;
}

static void expect_op(parser *p, int op)
{
    char what[4] = {'\'', (char)op, '\'', '\0'};
    if (!skip_op(p, op))
        expected(p, what);
}

static const ttoken *expect(parser *p, ttoken_kind kind, const char *what)
{
    if (p->at->kind != kind)
        expected(p, what);
    return next(p);
}

static void deeper(parser *p)
{
    if (++p->depth > DEPTH) {
        p->b->at = p->at->at;
        apus_tpl_fail(p->b, APUS_E_INVALID, "nested over %d levels deep", DEPTH);
    }
}

/* ---------------------------------------------------------------- making nodes */

static tnode *node(parser *p, tnode_kind kind, tpos at)
{
    tnode *n = apus_tpl_alloc(p->b, sizeof *n);
    n->kind = kind;
    n->at = at;
    return n;
}

static void add(parser *p, tnodes *list, tnode *n)
{
    if ((list->n & (list->n - 1)) == 0) /* full at 0, 1, 2, 4, 8, … */
        list->items = apus_tpl_grow(p->b, list->items, list->n * sizeof(tnode *), (list->n == 0 ? 1 : list->n * 2) * sizeof(tnode *));
    list->items[list->n++] = n;
}

static uint32_t number_of(parser *p, tstr *name)
{
    apus_template *t = p->t;
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < name->length; i++)
        h = (h ^ (unsigned char)name->bytes[i]) * 16777619u;
    h %= BUCKETS;
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
    tnode *n = node(p, N_CONST, at);
    n->constant = v;
    return n;
}

static tnode *binary(parser *p, tnode_kind kind, int op, tpos at, tnode *a, tnode *b)
{
    tnode *n = node(p, kind, at);
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
            expect_op(p, ',');
        if (is_op(p->at, close))
            break;
        add(p, list, expression(p));
    }
    expect_op(p, close);
}

static tnode *dictionary(parser *p)
{
    tnode *n = node(p, N_DICT, next(p)->at);
    while (!is_op(p->at, '}')) {
        if (n->list.n > 0)
            expect_op(p, ',');
        if (is_op(p->at, '}'))
            break;
        tnode *key = expression(p);
        expect_op(p, ':');
        add(p, &n->list, key);
        add(p, &n->list, expression(p));
    }
    expect_op(p, '}');
    return n;
}

static bool tuple_end(const parser *p, const char *extra)
{
    return p->at->kind == K_VARIABLE_END || p->at->kind == K_BLOCK_END || is_op(p->at, ')') || (extra != NULL && is_name(p->at, extra));
}

typedef enum { FULL, NO_IF, TARGET, TARGET_NS } how;

static tnode *primary(parser *p, bool with_namespace);

/* One expression, or several with commas: a tuple. */
static tnode *tuple(parser *p, how mode, const char *extra, bool parentheses)
{
    tnodes all = {0};
    tpos at = p->at->at;
    bool commas = false;
    for (;;) {
        if (all.n > 0)
            expect_op(p, ',');
        if (tuple_end(p, extra))
            break;
        add(p, &all, mode == FULL ? expression(p) : mode == NO_IF ? or_expression(p) : primary(p, mode == TARGET_NS));
        if (!is_op(p->at, ','))
            break;
        commas = true;
    }
    if (!commas && all.n > 0)
        return all.items[0];
    if (!commas && !parentheses)
        expected(p, "an expression");
    tnode *n = node(p, N_TUPLE, at);
    n->list = all;
    return n;
}

static tnode *name(parser *p, const ttoken *t)
{
    tnode *n = node(p, N_NAME, t->at);
    n->name = number_of(p, t->text);
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
            n = node(p, N_NAMESPACE_SET, t->at);
            n->namespace_set.name = number_of(p, t->text);
            n->namespace_set.attribute = expect(p, K_NAME, "a name")->text;
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
        n = node(p, N_LIST, next(p)->at);
        items(p, &n->list, ']');
        return n;
    }
    if (!is_op(t, '('))
        expected(p, "an expression");
    next(p);
    deeper(p);
    n = tuple(p, FULL, NULL, true);
    p->depth--;
    expect_op(p, ')');
    return n;
}

/* ---------------------------------------------------------------- calls, subscripts, filters, tests */

static void arguments(parser *p, targs *args)
{
    tpos at = p->at->at;
    expect_op(p, '(');
    size_t names_capacity = 0;
    for (bool more = false; !is_op(p->at, ')'); more = true) {
        if (more)
            expect_op(p, ',');
        if (is_op(p->at, ')'))
            break;
        bool fine;
        if (skip_op(p, '*')) {
            fine = args->star == NULL && args->star_star == NULL;
            args->star = expression(p);
        } else if (skip_op(p, O_POW)) {
            fine = args->star_star == NULL;
            args->star_star = expression(p);
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
            add(p, &args->named, expression(p));
        } else {
            fine = args->star == NULL && args->star_star == NULL && args->named.n == 0;
            add(p, &args->positional, expression(p));
        }
        if (!fine)
            fail_at(p, at, "invalid syntax for function call expression");
    }
    expect_op(p, ')');
}

static tnode *called(parser *p, tnode *of)
{
    tnode *n = node(p, N_CALL, p->at->at);
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
        tnode *n = node(p, N_ATTRIBUTE, t->at);
        n->attribute.of = of;
        n->attribute.name = expect(p, K_NAME, "a name or number after '.'")->text;
        return n;
    }
    tnode *bounds[3] = {NULL, NULL, NULL};
    size_t i = 0;
    bool slice = false;
    tnode *key = node(p, N_TUPLE, t->at);
    while (!is_op(p->at, ']')) {
        if (is_op(p->at, ':') && i < 2 && key->list.n == 0) {
            next(p);
            slice = true;
            i++;
        } else if (is_op(p->at, ',') && !slice && bounds[0] != NULL) {
            next(p);
            add(p, &key->list, bounds[0]);
            bounds[0] = NULL;
            if (is_op(p->at, ']'))
                expected(p, "an expression");
        } else if (bounds[i] == NULL)
            bounds[i] = expression(p);
        else
            expected(p, "']'");
    }
    next(p);
    if (slice) {
        tnode *n = node(p, N_SLICE, t->at);
        n->slice.of = of;
        n->slice.start = bounds[0];
        n->slice.stop = bounds[1];
        n->slice.step = bounds[2];
        return n;
    }
    if (key->list.n == 0 && bounds[0] != NULL)
        return binary(p, N_ITEM, 0, t->at, of, bounds[0]);
    if (bounds[0] != NULL)
        add(p, &key->list, bounds[0]);
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
    tstr *s = expect(p, K_NAME, "a name")->text;
    while (skip_op(p, '.')) {
        const tstr *more = expect(p, K_NAME, "a name")->text;
        char *bytes = apus_tpl_alloc(p->b, s->length + more->length + 1);
        memcpy(bytes, s->bytes, s->length);
        bytes[s->length] = '.';
        memcpy(bytes + s->length + 1, more->bytes, more->length);
        s = apus_tpl_str(p->b, bytes, s->length + more->length + 1, T_OWN);
    }
    return s;
}

/* `of` | a | b(…); start_inline: the first one stands without its bar. */
static tnode *filters(parser *p, tnode *of, bool start_inline)
{
    while (start_inline || is_op(p->at, '|')) {
        if (!start_inline)
            next(p);
        start_inline = false;
        tnode *n = node(p, N_FILTER, p->at->at);
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
    tnode *n = node(p, N_TEST, p->at->at);
    n->call.of = of;
    n->call.name = dotted(p);
    n->call.test = apus_tpl_test(n->call.name->bytes, n->call.name->length);
    const ttoken *t = p->at;
    if (is_op(t, '('))
        arguments(p, &n->call.args);
    else if ((t->kind == K_NAME && !is_name(t, "else") && !is_name(t, "or") && !is_name(t, "and")) || t->kind == K_STRING || t->kind == K_INT ||
             t->kind == K_FLOAT || is_op(t, '[') || is_op(t, '{')) {
        if (is_name(t, "is"))
            fail_at(p, t->at, "You cannot chain multiple tests with is");
        add(p, &n->call.args.positional, postfix(p, primary(p, false)));
    }
    if (n->call.test == NULL)
        unresolved_name(p, n);
    return negated ? binary(p, N_NOT, 0, at, n, NULL) : n;
}

static tnode *filter_expression(parser *p, tnode *n)
{
    for (;;) {
        if (is_op(p->at, '|'))
            n = filters(p, n, false);
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
    deeper(p);
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
    tnode *all = node(p, N_CONCAT, at);
    add(p, &all->list, n);
    while (skip_op(p, '~'))
        add(p, &all->list, product(p));
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
            all = node(p, N_COMPARE, at);
            all->compare.first = n;
        }
        size_t i = all->compare.others.n;
        if ((i & (i - 1)) == 0)
            all->compare.ops = apus_tpl_grow(p->b, all->compare.ops, i * sizeof(int), (i == 0 ? 1 : i * 2) * sizeof(int));
        all->compare.ops[i] = op;
        add(p, &all->compare.others, sum(p));
    }
    return all == NULL ? n : all;
}

static tnode *negated(parser *p)
{
    const ttoken *t = p->at;
    if (!skip_name(p, "not"))
        return compared(p);
    deeper(p);
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

static tnode *expression(parser *p)
{
    tpos at = p->at->at;
    size_t before = p->n_pending;
    deeper(p);
    tnode *n = or_expression(p);
    while (skip_name(p, "if")) {
        bool soft = p->soft;
        p->soft = true;
        for (size_t i = before; i < p->n_pending; i++)
            p->pending[i].soft = true;
        tnode *whole = node(p, N_IF_ELSE, at);
        whole->b = n;
        whole->a = or_expression(p);
        if (skip_name(p, "else"))
            whole->c = expression(p);
        n = whole;
        p->soft = soft;
    }
    p->depth--;
    return n;
}

/* ---------------------------------------------------------------- statements */

static void stored(parser *p, tnode *target)
{
    if (target->kind == N_TUPLE)
        for (size_t i = 0; i < target->list.n; i++)
            stored(p, target->list.items[i]);
    else if (target->kind == N_NAME) {
        if (target->name == p->t->loop && p->loops > 0)
            fail_at(p, target->at, "Can't assign to special loop variable in for-loop target");
    } else if (target->kind != N_NAMESPACE_SET)
        fail_at(p, target->at, "can't assign to this: a name, several names or an attribute of a namespace is needed");
}

static tnode *assign_target(parser *p, how mode, const char *extra)
{
    tnode *n = tuple(p, mode, extra, false);
    stored(p, n);
    return n;
}

typedef struct around {
    bool soft, in_loop;
} around;

/* The body of a block that is a place of its own: what is not known in it is an error at once. */
static tnodes inner(parser *p, const char *end, bool in_loop)
{
    around was = {p->soft, p->in_loop};
    const char *const ends[] = {end, NULL};
    const char *found;
    p->soft = false;
    p->in_loop = in_loop;
    tnodes body = statements(p, ends, &found);
    next(p);
    p->soft = was.soft;
    p->in_loop = was.in_loop;
    return body;
}

static tnode *for_block(parser *p, tpos at)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    tnode *n = node(p, N_FOR, at);
    around was = {p->soft, p->in_loop};
    const char *found;
    p->loops++;
    n->loop.target = assign_target(p, TARGET, "in");
    if (!skip_name(p, "in"))
        expected(p, "'in'");
    n->loop.of = tuple(p, NO_IF, "recursive", false);
    p->soft = false;
    if (skip_name(p, "if"))
        n->loop.test = expression(p);
    n->loop.recursive = skip_name(p, "recursive");
    p->in_loop = true;
    n->loop.body = statements(p, ends, &found);
    next(p);
    p->soft = was.soft;
    p->in_loop = was.in_loop;
    if (found == ends[1])
        n->loop.otherwise = inner(p, "endfor", was.in_loop);
    p->loops--;
    return n;
}

static tnode *if_block(parser *p, tpos at)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    tnode *first = node(p, N_IF, at), *n = first;
    bool soft = p->soft;
    const char *found;
    p->soft = true;
    for (;;) {
        n->branch.test = tuple(p, NO_IF, NULL, false);
        n->branch.yes = statements(p, ends, &found);
        tpos here = next(p)->at;
        if (found != ends[0])
            break;
        tnode *more = node(p, N_IF, here);
        add(p, &n->branch.no, more);
        n = more;
    }
    if (found == ends[1]) {
        n->branch.no = statements(p, last, &found);
        next(p);
    }
    p->soft = soft;
    return first;
}

static tnode *set_block(parser *p, tpos at)
{
    tnode *n = node(p, N_SET, at);
    n->set.target = assign_target(p, TARGET_NS, NULL);
    if (skip_op(p, '=')) {
        n->set.value = tuple(p, FULL, NULL, false);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->set.value = filters(p, NULL, false);
    n->set.body = inner(p, "endset", p->in_loop);
    return n;
}

/* (a, b=1) */
static void signature(parser *p, tsignature *s)
{
    bool defaults = false;
    size_t capacity = 0;
    expect_op(p, '(');
    while (!is_op(p->at, ')')) {
        if (s->n > 0)
            expect_op(p, ',');
        if (s->n == capacity) {
            size_t more = capacity == 0 ? 4 : capacity * 2;
            s->params = apus_tpl_grow(p->b, s->params, capacity * sizeof *s->params, more * sizeof *s->params);
            s->param_names = apus_tpl_grow(p->b, s->param_names, capacity * sizeof *s->param_names, more * sizeof *s->param_names);
            s->defaults = apus_tpl_grow(p->b, s->defaults, capacity * sizeof(tnode *), more * sizeof(tnode *));
            capacity = more;
        }
        const ttoken *t = expect(p, K_NAME, "a parameter's name");
        s->params[s->n] = number_of(p, t->text);
        for (size_t i = 0; i < s->n; i++)
            if (s->params[i] == s->params[s->n])
                fail_at(p, t->at, "two parameters of the same name");
        s->param_names[s->n] = t->text;
        s->defaults[s->n] = skip_op(p, '=') ? expression(p) : NULL;
        if (defaults && s->defaults[s->n] == NULL)
            fail_at(p, t->at, "non-default argument follows default argument");
        defaults = s->defaults[s->n] != NULL;
        s->n++;
    }
    expect_op(p, ')');
}

static void macro_body(parser *p, tsignature *s, const char *end)
{
    enclosing here = {s, p->macros};
    p->macros = &here;
    s->body = inner(p, end, false);
    p->macros = here.outer;
    /* A parameter of that name is that parameter. */
    for (size_t i = 0; i < s->n; i++) {
        s->uses_caller = s->uses_caller && s->params[i] != p->t->caller;
        s->uses_varargs = s->uses_varargs && s->params[i] != p->t->varargs;
        s->uses_kwargs = s->uses_kwargs && s->params[i] != p->t->kwargs;
    }
}

static char *text_of(parser *p, const tstr *s)
{
    char *text = apus_tpl_alloc(p->b, s->length + 1);
    memcpy(text, s->bytes, s->length);
    return text;
}

static tnode *macro_block(parser *p, tpos at)
{
    tnode *n = node(p, N_MACRO, at);
    const ttoken *t = expect(p, K_NAME, "the macro's name");
    n->macro.name = number_of(p, t->text);
    if (n->macro.name == p->t->loop && p->loops > 0)
        fail_at(p, t->at, "a macro must not be called loop inside a loop");
    n->macro.signature = apus_tpl_alloc(p->b, sizeof *n->macro.signature);
    n->macro.signature->name = text_of(p, t->text);
    signature(p, n->macro.signature);
    macro_body(p, n->macro.signature, "endmacro");
    return n;
}

static tnode *call_block(parser *p, tpos at)
{
    tnode *n = node(p, N_CALL_BLOCK, at);
    n->macro.signature = apus_tpl_alloc(p->b, sizeof *n->macro.signature);
    if (is_op(p->at, '('))
        signature(p, n->macro.signature);
    n->macro.call = expression(p);
    if (n->macro.call->kind != N_CALL)
        fail_at(p, at, "expected call");
    macro_body(p, n->macro.signature, "endcall");
    return n;
}

static tnode *with_block(parser *p, tpos at)
{
    tnode *n = node(p, N_WITH, at);
    while (p->at->kind != K_BLOCK_END) {
        if (n->with.targets.n > 0)
            expect_op(p, ',');
        add(p, &n->with.targets, assign_target(p, TARGET, NULL));
        expect_op(p, '=');
        add(p, &n->with.values, expression(p));
    }
    n->with.body = inner(p, "endwith", p->in_loop);
    return n;
}

static tnode *named_block(parser *p, tpos at)
{
    tnode *n = node(p, N_BLOCK, at);
    const ttoken *t = expect(p, K_NAME, "the block's name");
    for (size_t i = 0; i < p->n_blocks; i++)
        if (apus_tpl_str_compare(p->blocks[i], t->text) == 0)
            fail_at(p, t->at, "a block of this name is defined twice");
    size_t have = p->n_blocks;
    if ((have & (have - 1)) == 0)
        p->blocks = apus_tpl_grow(p->b, p->blocks, have * sizeof(tstr *), (have == 0 ? 1 : have * 2) * sizeof(tstr *));
    p->blocks[p->n_blocks++] = t->text;
    n->with.scoped = skip_name(p, "scoped");
    if (is_name(p->at, "required"))
        fail_at(p, p->at->at, "a required block needs another template that fills it: a chat template is one file");
    n->with.body = inner(p, "endblock", false);
    if (p->at->kind == K_NAME && apus_tpl_str_compare(p->at->text, t->text) == 0)
        next(p);
    return n;
}

static tnode *print_statement(parser *p, tpos at)
{
    tnode *n = node(p, N_OUTPUT, at);
    while (p->at->kind != K_BLOCK_END) {
        if (n->list.n > 0)
            expect_op(p, ',');
        add(p, &n->list, expression(p));
    }
    return n;
}

static tnode *statement(parser *p)
{
    const ttoken *t = expect(p, K_NAME, "a tag's name");
    tnode *n;
    if (apus_tpl_is(t->text, "for"))
        return for_block(p, t->at);
    if (apus_tpl_is(t->text, "if"))
        return if_block(p, t->at);
    if (apus_tpl_is(t->text, "set"))
        return set_block(p, t->at);
    if (apus_tpl_is(t->text, "macro"))
        return macro_block(p, t->at);
    if (apus_tpl_is(t->text, "call"))
        return call_block(p, t->at);
    if (apus_tpl_is(t->text, "filter")) {
        n = node(p, N_FILTER_BLOCK, t->at);
        n->set.value = filters(p, NULL, true);
        n->set.body = inner(p, "endfilter", p->in_loop);
        return n;
    }
    if (apus_tpl_is(t->text, "generation")) {
        n = node(p, N_GENERATION, t->at);
        n->with.body = inner(p, "endgeneration", false);
        return n;
    }
    if (apus_tpl_is(t->text, "with"))
        return with_block(p, t->at);
    if (apus_tpl_is(t->text, "block"))
        return named_block(p, t->at);
    if (apus_tpl_is(t->text, "print"))
        return print_statement(p, t->at);
    if (apus_tpl_is(t->text, "break") || apus_tpl_is(t->text, "continue")) {
        if (!p->in_loop)
            fail_at(p, t->at, "break or continue outside of a loop");
        return node(p, apus_tpl_is(t->text, "break") ? N_BREAK : N_CONTINUE, t->at);
    }
    static const char *const refused[] = {"include", "import", "from", "extends", "autoescape"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (apus_tpl_is(t->text, refused[i])) {
            p->b->at = t->at;
            apus_tpl_fail(p->b, APUS_E_UNSUPPORTED, "'%s' is not supported: a chat template is one file of plain text", refused[i]);
        }
    p->b->at = t->at;
    if (p->innermost != NULL)
        apus_tpl_fail(p->b, APUS_E_INVALID, "unknown tag '%.*s'; the block '%s' of line %u is open", (int)t->text->length, t->text->bytes,
                      p->innermost, (unsigned)p->innermost_at.line);
    apus_tpl_fail(p->b, APUS_E_INVALID, "unknown tag '%.*s'", (int)t->text->length, t->text->bytes);
}

/* Text, output and statements up to the end of the template. Or, from the end of a tag, up to {% and one of `ends`,
 * which is then the next token. */
static tnodes statements(parser *p, const char *const *ends, const char **found)
{
    tnodes body = {0};
    tnode *n;
    const char *outer = p->innermost;
    tpos outer_at = p->innermost_at;
    deeper(p);
    if (ends != NULL) {
        skip_op(p, ':');
        expect(p, K_BLOCK_END, "'%}'");
        const char *last = ends[0];
        for (const char *const *e = ends; *e != NULL; e++)
            last = *e;
        p->innermost = strcmp(last, "else") == 0 ? "for" : last + 3; /* endX closes X */
        p->innermost_at = p->at[-1].at;
    }
    for (;;) {
        const ttoken *t = next(p);
        if (t->kind == K_DATA) {
            n = node(p, N_DATA, t->at);
            n->data = t->text;
        } else if (t->kind == K_VARIABLE_BEGIN) {
            n = node(p, N_OUTPUT, t->at);
            add(p, &n->list, tuple(p, FULL, NULL, false));
            expect(p, K_VARIABLE_END, "'}}'");
        } else if (t->kind == K_BLOCK_BEGIN) {
            for (const char *const *e = ends; e != NULL && *e != NULL; e++)
                if (is_name(p->at, *e)) {
                    *found = *e;
                    p->depth--;
                    p->innermost = outer;
                    p->innermost_at = outer_at;
                    return body;
                }
            n = statement(p);
            expect(p, K_BLOCK_END, "'%}'");
        } else
            break;
        add(p, &body, n);
    }
    if (ends != NULL) {
        p->b->at = p->at->at;
        apus_tpl_fail(p->b, APUS_E_INVALID, "the template ends, but the block '%s' of line %u is not closed", p->innermost,
                      (unsigned)p->innermost_at.line);
    }
    p->depth--;
    return body;
}

void apus_tpl_parse(apus_template *t, const ttokens *tokens)
{
    parser p = {.t = t, .b = &t->base, .at = tokens->items};
    t->loop = number_of(&p, apus_tpl_literal(p.b, "loop"));
    t->caller = number_of(&p, apus_tpl_literal(p.b, "caller"));
    t->varargs = number_of(&p, apus_tpl_literal(p.b, "varargs"));
    t->kwargs = number_of(&p, apus_tpl_literal(p.b, "kwargs"));
    t->body = statements(&p, NULL, NULL);
    for (size_t i = 0; i < p.n_pending; i++)
        if (!p.pending[i].soft) {
            const tnode *n = p.pending[i].node;
            p.b->at = n->at;
            apus_tpl_fail(p.b, APUS_E_INVALID, "No %s named '%.*s'.", n->kind == N_FILTER ? "filter" : "test", (int)n->call.name->length,
                          n->call.name->bytes);
        }
}
