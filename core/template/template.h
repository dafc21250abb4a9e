/*
 * core/template: chat templates. The Jinja language as far as models' templates use it, over node values.
 * Knows no model: a template is text, its variables are a map.
 */
#ifndef APUS_CORE_TEMPLATE_H
#define APUS_CORE_TEMPLATE_H

#include <apus/base.h>

typedef struct apus_template apus_template;

/* Compile. `name` is what errors call it (file path). Errors: "name:line:column: …". owner: caller. */
apus_template *apus_template_compile(const char *text, size_t length, const char *name, apus_error *err);
void apus_template_free(apus_template *t);

/* What a byte of the output came from: used to keep special-token strings inside message content
 * ordinary text, and to find which part of a conversation wrote it. */
typedef struct apus_template_piece {
    size_t begin, end; /* bytes of the output; pieces are in order, adjacent, cover all of it */
    int from_content;  /* 1: the text came (whole) out of the variables (message content, tools…); 0: the template's own
                        */
} apus_template_piece;

/* What one {% generation %} block wrote: the assistant's part, in templates that mark it. */
typedef struct apus_template_range {
    size_t begin, end; /* bytes of the output; in order, not empty */
} apus_template_range;

typedef struct apus_template_output {
    char *text; /* NUL-terminated; length bytes */
    size_t length;
    apus_template_piece *pieces;
    size_t n_pieces;
    apus_template_range *generation;
    size_t n_generation; /* 0: the template marks nothing, or wrote nothing there */
} apus_template_output;

/* Render with `variables` (a map: messages, tools, add_generation_prompt, bos_token, …). As transformers does, callers
 * give tools and documents as null when there are none. Variables whose names end in _token are the template's own
 * text. `now`: seconds since the epoch that strftime_now formats (local time is UTC). An undefined name is undefined as
 * in Jinja (falsy, empty when printed; an attribute of it is an error). raise_exception(m) fails with APUS_E_INVALID
 * and m. Loops and output are bounded. [any] owner: the caller frees *out with apus_template_output_free. */
apus_status apus_template_render(const apus_template *t, const apus_node *variables, int64_t now, apus_template_output *out, apus_error *err);
void apus_template_output_free(apus_template_output *out);

#endif
