/*
 * core/template/parser: tokens into the tree of a template: Jinja's statements with loop controls and generation blocks.
 * What a template needs of other files (include, import, extends) is refused.
 */
#include "parse.h"

#include <string.h>

static tnodes statements(parser *p, const char *const *ends, const char **found);

/* ---------------------------------------------------------------- statements */

static void stored(parser *p, tnode *target)
{
    if (target->kind == N_TUPLE)
        for (size_t i = 0; i < target->list.n; i++)
            stored(p, target->list.items[i]);
    else if (target->kind == N_NAME) {
        if (target->name == p->t->loop && p->loops > 0)
            apus_tpl_refuse(p, target->at, "Can't assign to special loop variable in for-loop target");
    } else if (target->kind != N_NAMESPACE_SET)
        apus_tpl_refuse(p, target->at, "can't assign to this: a name, several names or an attribute of a namespace is needed");
}

static tnode *assign_target(parser *p, how mode, const char *extra)
{
    tnode *n = apus_tpl_tuple(p, mode, extra, false);
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
    tnode *n = apus_tpl_node(p, N_FOR, at);
    around was = {p->soft, p->in_loop};
    const char *found;
    p->loops++;
    n->loop.target = assign_target(p, TARGET, "in");
    if (!skip_name(p, "in"))
        apus_tpl_expected(p, "'in'");
    n->loop.of = apus_tpl_tuple(p, NO_IF, "recursive", false);
    p->soft = false;
    if (skip_name(p, "if"))
        n->loop.test = apus_tpl_expression(p);
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
    tnode *first = apus_tpl_node(p, N_IF, at), *n = first;
    bool soft = p->soft;
    const char *found;
    p->soft = true;
    for (;;) {
        n->branch.test = apus_tpl_tuple(p, NO_IF, NULL, false);
        n->branch.yes = statements(p, ends, &found);
        tpos here = next(p)->at;
        if (found != ends[0])
            break;
        tnode *more = apus_tpl_node(p, N_IF, here);
        apus_tpl_add(p, &n->branch.no, more);
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
    tnode *n = apus_tpl_node(p, N_SET, at);
    n->set.target = assign_target(p, TARGET_NS, NULL);
    if (skip_op(p, '=')) {
        n->set.value = apus_tpl_tuple(p, FULL, NULL, false);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->set.value = apus_tpl_filters(p, NULL, false);
    n->set.body = inner(p, "endset", p->in_loop);
    return n;
}

/* (a, b=1) */
static void signature(parser *p, tsignature *s)
{
    bool defaults = false;
    size_t capacity = 0;
    apus_tpl_expect_op(p, '(');
    while (!is_op(p->at, ')')) {
        if (s->n > 0)
            apus_tpl_expect_op(p, ',');
        if (s->n == capacity) {
            size_t more = capacity == 0 ? 4 : capacity * 2;
            s->params = apus_tpl_grow(p->b, s->params, capacity * sizeof *s->params, more * sizeof *s->params);
            s->param_names = apus_tpl_grow(p->b, s->param_names, capacity * sizeof *s->param_names, more * sizeof *s->param_names);
            s->defaults = apus_tpl_grow(p->b, s->defaults, capacity * sizeof(tnode *), more * sizeof(tnode *));
            capacity = more;
        }
        const ttoken *t = apus_tpl_expect(p, K_NAME, "a parameter's name");
        s->params[s->n] = apus_tpl_number_of(p, t->text);
        for (size_t i = 0; i < s->n; i++)
            if (s->params[i] == s->params[s->n])
                apus_tpl_refuse(p, t->at, "two parameters of the same name");
        s->param_names[s->n] = t->text;
        s->defaults[s->n] = skip_op(p, '=') ? apus_tpl_expression(p) : NULL;
        if (defaults && s->defaults[s->n] == NULL)
            apus_tpl_refuse(p, t->at, "non-default argument follows default argument");
        defaults = s->defaults[s->n] != NULL;
        s->n++;
    }
    apus_tpl_expect_op(p, ')');
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
    tnode *n = apus_tpl_node(p, N_MACRO, at);
    const ttoken *t = apus_tpl_expect(p, K_NAME, "the macro's name");
    n->macro.name = apus_tpl_number_of(p, t->text);
    if (n->macro.name == p->t->loop && p->loops > 0)
        apus_tpl_refuse(p, t->at, "a macro must not be called loop inside a loop");
    n->macro.signature = apus_tpl_alloc(p->b, sizeof *n->macro.signature);
    n->macro.signature->name = text_of(p, t->text);
    signature(p, n->macro.signature);
    macro_body(p, n->macro.signature, "endmacro");
    return n;
}

static tnode *call_block(parser *p, tpos at)
{
    tnode *n = apus_tpl_node(p, N_CALL_BLOCK, at);
    n->macro.signature = apus_tpl_alloc(p->b, sizeof *n->macro.signature);
    if (is_op(p->at, '('))
        signature(p, n->macro.signature);
    n->macro.call = apus_tpl_expression(p);
    if (n->macro.call->kind != N_CALL)
        apus_tpl_refuse(p, at, "expected call");
    macro_body(p, n->macro.signature, "endcall");
    return n;
}

static tnode *with_block(parser *p, tpos at)
{
    tnode *n = apus_tpl_node(p, N_WITH, at);
    while (p->at->kind != K_BLOCK_END) {
        if (n->with.targets.n > 0)
            apus_tpl_expect_op(p, ',');
        apus_tpl_add(p, &n->with.targets, assign_target(p, TARGET, NULL));
        apus_tpl_expect_op(p, '=');
        apus_tpl_add(p, &n->with.values, apus_tpl_expression(p));
    }
    n->with.body = inner(p, "endwith", p->in_loop);
    return n;
}

static tnode *named_block(parser *p, tpos at)
{
    tnode *n = apus_tpl_node(p, N_BLOCK, at);
    const ttoken *t = apus_tpl_expect(p, K_NAME, "the block's name");
    for (size_t i = 0; i < p->n_blocks; i++)
        if (apus_tpl_str_compare(p->blocks[i], t->text) == 0)
            apus_tpl_refuse(p, t->at, "a block of this name is defined twice");
    size_t have = p->n_blocks;
    if ((have & (have - 1)) == 0)
        p->blocks = apus_tpl_grow(p->b, p->blocks, have * sizeof(tstr *), (have == 0 ? 1 : have * 2) * sizeof(tstr *));
    p->blocks[p->n_blocks++] = t->text;
    n->with.scoped = skip_name(p, "scoped");
    if (is_name(p->at, "required"))
        apus_tpl_refuse(p, p->at->at, "a required block needs another template that fills it: a chat template is one file");
    n->with.body = inner(p, "endblock", false);
    if (p->at->kind == K_NAME && apus_tpl_str_compare(p->at->text, t->text) == 0)
        next(p);
    return n;
}

static tnode *print_statement(parser *p, tpos at)
{
    tnode *n = apus_tpl_node(p, N_OUTPUT, at);
    while (p->at->kind != K_BLOCK_END) {
        if (n->list.n > 0)
            apus_tpl_expect_op(p, ',');
        apus_tpl_add(p, &n->list, apus_tpl_expression(p));
    }
    return n;
}

static tnode *statement(parser *p)
{
    const ttoken *t = apus_tpl_expect(p, K_NAME, "a tag's name");
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
        n = apus_tpl_node(p, N_FILTER_BLOCK, t->at);
        n->set.value = apus_tpl_filters(p, NULL, true);
        n->set.body = inner(p, "endfilter", p->in_loop);
        return n;
    }
    if (apus_tpl_is(t->text, "generation")) {
        n = apus_tpl_node(p, N_GENERATION, t->at);
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
            apus_tpl_refuse(p, t->at, "break or continue outside of a loop");
        return apus_tpl_node(p, apus_tpl_is(t->text, "break") ? N_BREAK : N_CONTINUE, t->at);
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
    apus_tpl_deeper(p);
    if (ends != NULL) {
        skip_op(p, ':');
        apus_tpl_expect(p, K_BLOCK_END, "'%}'");
        const char *last = ends[0];
        for (const char *const *e = ends; *e != NULL; e++)
            last = *e;
        p->innermost = strcmp(last, "else") == 0 ? "for" : last + 3; /* endX closes X */
        p->innermost_at = p->at[-1].at;
    }
    for (;;) {
        const ttoken *t = next(p);
        if (t->kind == K_DATA) {
            n = apus_tpl_node(p, N_DATA, t->at);
            n->data = t->text;
        } else if (t->kind == K_VARIABLE_BEGIN) {
            n = apus_tpl_node(p, N_OUTPUT, t->at);
            apus_tpl_add(p, &n->list, apus_tpl_tuple(p, FULL, NULL, false));
            apus_tpl_expect(p, K_VARIABLE_END, "'}}'");
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
            apus_tpl_expect(p, K_BLOCK_END, "'%}'");
        } else
            break;
        apus_tpl_add(p, &body, n);
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
    t->loop = apus_tpl_number_of(&p, apus_tpl_literal(p.b, "loop"));
    t->caller = apus_tpl_number_of(&p, apus_tpl_literal(p.b, "caller"));
    t->varargs = apus_tpl_number_of(&p, apus_tpl_literal(p.b, "varargs"));
    t->kwargs = apus_tpl_number_of(&p, apus_tpl_literal(p.b, "kwargs"));
    t->body = statements(&p, NULL, NULL);
    for (size_t i = 0; i < p.n_pending; i++)
        if (!p.pending[i].soft) {
            const tnode *n = p.pending[i].node;
            p.b->at = n->at;
            apus_tpl_fail(p.b, APUS_E_INVALID, "No %s named '%.*s'.", n->kind == N_FILTER ? "filter" : "test", (int)n->call.name->length,
                          n->call.name->bytes);
        }
}
