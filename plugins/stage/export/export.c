/* Stage export: writes a model where others can read it: whole, the adapter merged in float32, or the adapter alone. */
#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    (void)host;
    return session->export_model(s, params, err);
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run};

static const char *const dtypes[] = {"float32", "float16", "bfloat16", "q8_0", "q4_0", NULL};

#define PARAM .size = sizeof(apus_param)
#define ANY   .min = 1, .max = 0
static const apus_param params[] = {
    {PARAM, .name = "model", .type = APUS_PARAM_MODEL, .flags = APUS_PARAM_REQUIRED, ANY, .doc = "What is written."},
    {PARAM, .name = "format", .type = APUS_PARAM_STRING, .fallback = "safetensors", ANY,
     .doc = "safetensors (a Hugging Face folder), gguf (a file), peft (an adapter folder)."},
    {PARAM, .name = "path", .type = APUS_PARAM_PATH, .flags = APUS_PARAM_REQUIRED | APUS_PARAM_WRITTEN, ANY,
     .doc = "Where to; what stands there and was not written by apus is never touched.", .aliases = "out output_dir export_dir"},
    {PARAM, .name = "merge", .type = APUS_PARAM_BOOL, .fallback = "true", ANY,
     .doc = "true: the whole model, the adapter merged in; false: the adapter as it is.", .aliases = "merge_lora"},
    {PARAM, .name = "dtype", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE, .choices = dtypes, ANY,
     .doc = "Element type; default the base's (float32 if it was quantised).", .aliases = "torch_dtype"},
    {PARAM, .name = "template", .type = APUS_PARAM_PATH, .flags = APUS_PARAM_NULLABLE, ANY, .doc = "Chat template to write instead of the model's."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "stage",
                                             .name = "export",
                                             .doc = "Writes a model: safetensors, GGUF, or a PEFT adapter.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,           .name = "export",         .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "The export stage.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    return &plugin;
}
