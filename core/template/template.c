/*
 * core/template/template: the door: compile, render, free. Turns the marked bytes of a rendering into pieces and
 * ranges.
 */
#include "render.h"
#include "syntax.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

enum { SOURCE_MOST = 16 << 20 };

static const tlimits usual = {.iterations = 10000000, .work = 20000000000u, .bytes = 256u << 20, .memory = 2048ull << 20, .depth = 1500};

static bool compiled(apus_template *t, const char *text, size_t length)
{
    if (setjmp(t->base.leave) != 0)
        return false;
    if (length > SOURCE_MOST)
        apus_tpl_fail(&t->base, APUS_E_INVALID, "a template of more than %d MiB", SOURCE_MOST >> 20);
    ttokens tokens = apus_tpl_lex(&t->base, text, length);
    apus_tpl_parse(t, &tokens);
    return true;
}

apus_template *apus_template_compile(const char *text, size_t length, const char *name, apus_error *err)
{
    apus_template *t = calloc(1, sizeof *t);
    char *own = strdup(name == NULL ? "template" : name);
    if (t == NULL || own == NULL) {
        free(t);
        free(own);
        (void)apus_fail(err, APUS_E_MEMORY, "no memory to compile %s", name == NULL ? "a template" : name);
        return NULL;
    }
    t->base.err = err;
    t->base.name = own;
    t->base.at = (tpos){1, 1};
    apus_tpl_arena_init(&t->base.arena, (size_t)1 << 30);
    if (!compiled(t, text, length)) {
        apus_template_free(t);
        return NULL;
    }
    t->base.err = NULL;
    return t;
}

void apus_template_free(apus_template *t)
{
    if (t == NULL)
        return;
    apus_tpl_arena_free(&t->base.arena);
    free((char *)t->base.name);
    free(t);
}

/* Runs of one origin are pieces; runs of one generation block are ranges. */
static apus_status deliver(const tstr *s, const char *name, apus_template_output *out, apus_error *err)
{
    size_t n = s->n_runs == 0 ? 1 : s->n_runs;
    out->text = malloc(s->length + 1);
    out->pieces = calloc(n, sizeof *out->pieces);
    out->generation = calloc(n, sizeof *out->generation);
    if (out->text == NULL || out->pieces == NULL || out->generation == NULL) {
        apus_template_output_free(out);
        return apus_fail(err, APUS_E_MEMORY, "no memory for the text of %s", name);
    }
    memcpy(out->text, s->bytes, s->length);
    out->text[s->length] = '\0';
    out->length = s->length;
    size_t from = 0;
    ttag block = 0;
    for (size_t i = 0; i < n && s->length > 0; i++) {
        trun run = s->n_runs == 0 ? (trun){s->length, s->tag} : s->runs[i];
        int content = (run.tag & T_CONTENT) != 0;
        if (out->n_pieces > 0 && out->pieces[out->n_pieces - 1].from_content == content)
            out->pieces[out->n_pieces - 1].end = run.end;
        else
            out->pieces[out->n_pieces++] = (apus_template_piece){from, run.end, content};
        if (run.tag >> 1 != 0 && run.tag >> 1 == block)
            out->generation[out->n_generation - 1].end = run.end;
        else if (run.tag >> 1 != 0)
            out->generation[out->n_generation++] = (apus_template_range){from, run.end};
        block = run.tag >> 1;
        from = run.end;
    }
    return APUS_OK;
}

apus_status apus_template_render_within(const apus_template *t, const tlimits *limits, const apus_node *variables, int64_t now,
                                        apus_template_output *out, apus_error *err)
{
    tctx *c = NULL;
    apus_status status = APUS_OK;
    *out = (apus_template_output){0};
    const tstr *s = apus_tpl_run(t, &c, limits, apus_nodes(), variables, now, err, &status);
    if (s != NULL)
        status = deliver(s, t->base.name, out, err);
    apus_tpl_run_free(c);
    return status;
}

apus_status apus_template_render(const apus_template *t, const apus_node *variables, int64_t now, apus_template_output *out, apus_error *err)
{
    return apus_template_render_within(t, &usual, variables, now, out, err);
}

void apus_template_output_free(apus_template_output *out)
{
    free(out->text);
    free(out->pieces);
    free(out->generation);
    *out = (apus_template_output){0};
}
