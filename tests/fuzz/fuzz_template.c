/* Chat templates: any text compiles and renders with any variables, or is refused with one line that names the place,
 * within bounds. The input is a template, a zero byte and the variables as JSON; without the byte the usual ones. */
#include "template/render.h"
#include "value/node.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const apus_error *err)
{
    if (strncmp(err->message, "fuzz:", 5) != 0 || strchr(err->message, '\n') != NULL)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char usual[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9 <b>\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"
        "[{\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1.5}}}]}],\"tools\":null,\"xs\":[3,1,2],\"d\":{\"a\":1},\"s\":"
        "\"abc\",\"n\":7,\"t\":true,\"bos_token\":\"<s>\",\"add_generation_prompt\":true}";
    static const tlimits limits = {.iterations = 20000, .work = 20000000, .bytes = 1 << 20, .memory = 32 << 20, .depth = 600};
    const uint8_t *cut = size == 0 ? NULL : memchr(data, 0, size);
    size_t length = cut == NULL ? size : (size_t)(cut - data);
    const char *json = cut == NULL ? usual : (const char *)cut + 1;
    apus_error err = {0};
    apus_node *variables = apus_nodes()->parse_json(json, cut == NULL ? strlen(usual) : size - length - 1, "variables", &err);
    apus_template *t = apus_template_compile((const char *)data, length, "fuzz", &err);
    if (t == NULL)
        check(&err);
    apus_template_output out = {0};
    if (t != NULL && apus_template_render_within(t, &limits, variables, 1750000000, &out, &err) != APUS_OK)
        check(&err);
    size_t at = 0;
    for (size_t i = 0; i < out.n_pieces; at = out.pieces[i++].end)
        if (out.pieces[i].begin != at || out.pieces[i].end <= at)
            abort();
    if (at != out.length)
        abort();
    apus_template_output_free(&out);
    apus_template_free(t);
    apus_nodes()->release(variables);
    return 0;
}
