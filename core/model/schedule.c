/* core/model/schedule.c: constant, linear and cosine with warm-up, as transformers.optimization defines them. */
#include "model/schedule.h"

#include <math.h>
#include <string.h>

#include "config/config.h"
#include "value/node.h"

static const char *const shapes[] = {"constant", "linear", "cosine", NULL};

static const apus_param params[] = {
    {.size = sizeof(apus_param),
     .name = "type",
     .type = APUS_PARAM_STRING,
     .fallback = "constant",
     .choices = shapes,
     .min = 1,
     .max = 0,
     .doc = "Shape after the warm-up; linear and cosine end at 0.",
     .aliases = "lr_scheduler_type lr_scheduler"},
    {.size = sizeof(apus_param),
     .name = "warmup_steps",
     .type = APUS_PARAM_INT,
     .fallback = "0",
     .min = 0,
     .max = 1e15,
     .unit = "steps",
     .doc = "Steps over which the rate rises from 0 to its peak.",
     .aliases = "num_warmup_steps"},
    {.size = sizeof(apus_param),
     .name = "warmup_ratio",
     .type = APUS_PARAM_FLOAT,
     .fallback = "0.0",
     .min = 0,
     .max = 1,
     .doc = "Warm-up as a share of all steps (rounded up); used when warmup_steps is 0.",
     .needs = "!warmup_steps"},
};

const apus_param *apus_schedule_params(uint32_t *n)
{
    *n = sizeof params / sizeof params[0];
    return params;
}

apus_status apus_schedule_open(const apus_node *spec, int64_t total_steps, apus_schedule *s, apus_error *err)
{
    const apus_node_api *node = apus_nodes();
    apus_node *named = NULL;
    if (node->kind(spec) == APUS_NODE_STRING) {
        named = node->make_map();
        (void)node->set(named, "type", node->copy(spec));
        spec = named;
    }
    apus_node *p = apus_params_validate(spec, params, sizeof params / sizeof params[0], "", "schedule", err);
    node->release(named);
    if (p == NULL)
        return APUS_E_INVALID;
    const char *type = node->as_string(node->get(p, "type"), NULL);
    for (s->shape = 0; strcmp(shapes[s->shape], type) != 0; s->shape++)
        continue;
    s->total_steps = total_steps;
    s->warmup_steps = node->as_int(node->get(p, "warmup_steps"), 0);
    if (s->warmup_steps == 0)
        s->warmup_steps = (int64_t)ceil(node->as_float(node->get(p, "warmup_ratio"), 0.0) * (double)total_steps);
    node->release(p);
    return APUS_OK;
}

double apus_schedule_factor(const apus_schedule *s, int64_t step)
{
    if (step < s->warmup_steps)
        return (double)step / (double)(s->warmup_steps > 1 ? s->warmup_steps : 1);
    if (s->shape == 0)
        return 1.0;
    const double rest = (double)(s->total_steps - s->warmup_steps), done = (double)(step - s->warmup_steps);
    if (s->shape == 1)
        return fmax(0.0, (double)(s->total_steps - step) / fmax(1.0, rest));
    return fmax(0.0, 0.5 * (1.0 + cos(3.14159265358979323846 * done / fmax(1.0, rest))));
}
