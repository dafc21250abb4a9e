/*
 * core/template/render: one rendering from inside core: with limits of the caller's choice.
 */
#ifndef APUS_CORE_TEMPLATE_RENDER_H
#define APUS_CORE_TEMPLATE_RENDER_H

#include "template.h"
#include "value.h"

/* apus_template_render with other limits: for tests of the limits and for fuzzing. */
apus_status apus_template_render_within(const apus_template *t, const tlimits *limits, const apus_node *variables, int64_t now,
                                        apus_template_output *out, apus_error *err);

/* eval.c: the output lives in *where, which the caller frees with apus_tpl_run_free in any case. NULL: see *status. */
const tstr *apus_tpl_run(const apus_template *t, tctx **where, const tlimits *limits, const apus_node_api *api, const apus_node *variables,
                         int64_t now, apus_error *err, apus_status *status);
void apus_tpl_run_free(tctx *c);

#endif
