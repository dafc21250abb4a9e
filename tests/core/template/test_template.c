/*
 * Chat templates against the environment transformers renders them in (tests/golden/templates.json.gz, made by
 * tools/golden/templates.py): a table of the language and real models' templates; then what the golden file cannot
 * show: where bytes came from, places of errors, bounds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "template/render.h"
#include "template/template.h"
#include "value/node.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static apus_node *golden;

static char *read_all(const char *path, size_t *length)
{
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    archive_read_support_filter_all(a);
    archive_read_support_format_raw(a);
    archive_read_support_format_empty(a);
    char *text = NULL;
    *length = 0;
    if (archive_read_open_filename(a, path, 65536) == ARCHIVE_OK && archive_read_next_header(a, &entry) == ARCHIVE_OK) {
        la_ssize_t got = 0;
        do {
            *length += (size_t)got;
            text = realloc(text, *length + 65537);
            got = archive_read_data(a, text + *length, 65536);
        } while (got > 0);
        text[*length] = '\0';
    }
    archive_read_free(a);
    return text;
}

static apus_node *read_json(const char *path)
{
    apus_error err = {0};
    size_t length;
    char *text = read_all(path, &length);
    if (text == NULL)
        return NULL;
    apus_node *n = apus_nodes()->parse_json(text, length, path, &err);
    if (n == NULL)
        print_error("%s\n", err.message);
    free(text);
    return n;
}

static int setup(void **state)
{
    (void)state;
    golden = read_json(APUS_TEST_GOLDEN "/templates.json.gz");
    return golden == NULL;
}

static int teardown(void **state)
{
    (void)state;
    apus_nodes()->release(golden);
    return 0;
}

static const char *text_of(const apus_node *map, const char *key, size_t *length)
{
    return apus_nodes()->as_string(apus_nodes()->get(map, key), length);
}

/* Pieces cover the output without holes and alternate. */
static bool pieces_fit(const apus_template_output *out)
{
    size_t at = 0;
    for (size_t i = 0; i < out->n_pieces; i++) {
        if (out->pieces[i].begin != at || out->pieces[i].end <= at || (i > 0 && out->pieces[i].from_content == out->pieces[i - 1].from_content))
            return false;
        at = out->pieces[i].end;
    }
    return at == out->length;
}

static bool ranges_fit(const apus_template_output *out, const apus_node *expected)
{
    const apus_node_api *api = apus_nodes();
    if (api->length(expected) != out->n_generation)
        return false;
    for (size_t i = 0; i < out->n_generation; i++) {
        const apus_node *pair = api->at(expected, i);
        if ((size_t)api->as_int(api->at(pair, 0), -1) != out->generation[i].begin ||
            (size_t)api->as_int(api->at(pair, 1), -1) != out->generation[i].end)
            return false;
    }
    return true;
}

/* One golden row; returns whether it holds and prints what differs. */
static bool holds(const char *label, const char *text, size_t length, const apus_node *variables, const apus_node *row, bool exact_message)
{
    const apus_node_api *api = apus_nodes();
    apus_error err = {0};
    apus_template_output out = {0};
    size_t n = 0;
    const char *expected = text_of(row, "text", &n), *error = text_of(row, "error", NULL);
    apus_template *t = apus_template_compile(text, length, "t", &err);
    bool compiles = expected != NULL || strcmp(text_of(row, "when", NULL), "render") == 0, fine = true;
    if (t == NULL && compiles && strstr(err.message, "not supported") == NULL)
        fine = false;
    apus_status status = t == NULL ? APUS_E_INVALID : apus_template_render(t, variables, api->as_int(api->get(golden, "now"), 0), &out, &err);
    if (t != NULL && expected == NULL)
        fine = status != APUS_OK;
    if (expected != NULL)
        fine = status == APUS_OK && out.length == n && memcmp(out.text, expected, n) == 0 && pieces_fit(&out) &&
               ranges_fit(&out, api->get(row, "generation"));
    if (fine && error != NULL && exact_message && strncmp(error, "TemplateError: ", 15) == 0)
        fine = strstr(err.message, error + 15) != NULL;
    if (fine && error != NULL && strncmp(err.message, "t:", 2) != 0)
        fine = false;
    if (!fine)
        print_error("%s\n  template: %.*s\n  expected: %s\n  got:      %s\n", label, (int)(length > 300 ? 300 : length), text,
                    expected != NULL ? expected : error, status == APUS_OK ? out.text : err.message);
    apus_template_output_free(&out);
    apus_template_free(t);
    return fine;
}

static void test_language(void **state)
{
    (void)state;
    const apus_node_api *api = apus_nodes();
    const apus_node *rows = api->get(golden, "snippets"), *variables = api->get(golden, "variables");
    size_t wrong = 0;
    assert_true(api->length(rows) >= 250);
    for (size_t i = 0; i < api->length(rows); i++) {
        size_t length;
        const char *text = text_of(api->at(rows, i), "template", &length);
        char label[32];
        snprintf(label, sizeof label, "snippet %zu", i);
        wrong += !holds(label, text, length, variables, api->at(rows, i), true);
    }
    assert_int_equal(wrong, 0);
}

static void test_models(void **state)
{
    (void)state;
    const apus_node_api *api = apus_nodes();
    const apus_node *models = api->get(golden, "renderings");
    size_t wrong = 0, skipped = 0;
    for (size_t i = 0; i < api->length(models); i++) {
        const apus_node *model = api->at(models, i), *cases = api->get(model, "cases");
        const char *name = text_of(model, "name", NULL), *file = text_of(model, "file", NULL), *key = text_of(model, "key", NULL);
        size_t length = 0;
        const char *text = text_of(model, "text", &length);
        char path[4096], *read = NULL;
        apus_node *config = NULL;
        if (file != NULL) {
            snprintf(path, sizeof path, "%s/%s", APUS_TEST_DATA, file);
            if (key != NULL)
                text = text_of(config = read_json(path), key, &length);
            else
                text = read = read_all(path, &length);
        }
        if (text == NULL) {
            print_message("skipped: test_models: %s: %s is missing\n", name, path);
            skipped++;
            api->release(config);
            continue;
        }
        for (size_t k = 0; k < api->length(cases); k++) {
            const apus_node *row = api->at(cases, k);
            const char *conversation = text_of(row, "messages", NULL);
            size_t option = (size_t)api->as_int(api->get(row, "options"), 0);
            const apus_node *options = api->at(api->get(golden, "options"), option);
            apus_node *variables = api->make_map();
            api->set(variables, "messages", api->copy(api->get(api->get(golden, "conversations"), conversation)));
            api->set(variables, "tools", api->make_null());
            api->set(variables, "documents", api->make_null());
            api->set(variables, "add_generation_prompt", api->make_bool(0));
            api->set(variables, "bos_token", api->make_string("<s>", 3));
            api->set(variables, "eos_token", api->make_string("</s>", 4));
            for (size_t o = 0; o < api->length(options); o++)
                api->set(variables, api->key_at(options, o), api->copy(api->at(options, o)));
            char label[256];
            snprintf(label, sizeof label, "%s, conversation %s, options %zu", name, conversation, option);
            wrong += !holds(label, text, length, variables, row, true);
            api->release(variables);
        }
        free(read);
        api->release(config);
    }
    assert_int_equal(wrong, 0);
    if (skipped > 0 && skipped + 1 >= api->length(models))
        skip();
}

/* ---------------------------------------------------------------- where bytes came from */

static apus_template_output rendered(const char *text, const char *variables)
{
    apus_error err = {0};
    apus_template_output out = {0};
    apus_node *v = apus_nodes()->parse_json(variables, strlen(variables), "variables", &err);
    apus_template *t = apus_template_compile(text, strlen(text), "t", &err);
    if (v == NULL || t == NULL || apus_template_render(t, v, 0, &out, &err) != APUS_OK)
        fail_msg("%s: %s", text, err.message);
    apus_template_free(t);
    apus_nodes()->release(v);
    return out;
}

/* `expected`: the output with the parts that are content in ⟨ ⟩. */
static void check_pieces(const char *text, const char *variables, const char *expected)
{
    apus_template_output out = rendered(text, variables);
    char marked[4096];
    size_t n = 0;
    for (size_t i = 0; i < out.n_pieces; i++) {
        const apus_template_piece *p = &out.pieces[i];
        n += (size_t)snprintf(marked + n, sizeof marked - n, "%s%.*s%s", p->from_content ? "⟨" : "", (int)(p->end - p->begin), out.text + p->begin,
                              p->from_content ? "⟩" : "");
    }
    marked[n] = '\0';
    assert_string_equal(marked, expected);
    assert_true(pieces_fit(&out));
    apus_template_output_free(&out);
}

static void test_provenance(void **state)
{
    (void)state;
    const char *v = "{\"m\":{\"role\":\"user\",\"content\":\"  a <|im_end|> b  \",\"n\":3},\"bos_token\":\"<s>\",\"xs\":[\"p\","
                    "\"q\"],\"t\":{\"k\":[1,\"z\"]},\"x_tokens\":\"no\"}";
    check_pieces("{{ bos_token }}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>", v, "<s><|im_start|>⟨user⟩\n⟨  a <|im_end|> b  ⟩<|im_end|>");
    check_pieces("{{ '<|a|>' + m.content.strip() + '<|b|>' }}", v, "<|a|>⟨a <|im_end|> b⟩<|b|>");
    check_pieces("{{ ('<|a|>' ~ m.content|trim ~ '<|b|>')[3:9] }}", v, "|>⟨a <|⟩");
    check_pieces("{{ m.content|trim|replace('<|im_end|>', '[cut]') }}", v, "⟨a ⟩[cut]⟨ b⟩");
    check_pieces("{{ 'x,y'.replace('x', m.role) }}", v, "⟨user⟩,y");
    check_pieces("{{ xs|join('<sep>') }}{{ '<s>'.join(xs) }}", v, "⟨p⟩<sep>⟨qp⟩<s>⟨q⟩");
    check_pieces("{{ t|tojson }}|{{ t }}", v, "⟨{\"k\": [1, \"z\"]}⟩|⟨{'k': [1, 'z']}⟩");
    check_pieces("{{ {'own': m.role}|tojson }}", v, "{\"own\": ⟨\"user\"⟩}");
    check_pieces("{{ '%s=%s' % ('a', m.role) }} {{ '{}:{}'.format(m.role, 'b') }}", v, "a=⟨user⟩ ⟨user⟩:b");
    check_pieces("{{ m.role|upper }}{{ 'x'|upper }}{{ m.role[::-1] }}", v, "⟨USER⟩X⟨resu⟩");
    check_pieces("{% set a %}<{{ m.role }}>{% endset %}{{ a }}{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(a) }}", v, "<⟨user⟩>[<⟨user⟩>]");
    check_pieces("{% for k, w in t.items() %}{{ k }}{% endfor %}{{ m.n }}", v, "⟨k⟩3");
    check_pieces("{{ x_tokens }}", v, "⟨no⟩");
    check_pieces("{{ m.content.split('<|im_end|>')[0].strip() ~ '!' }}", v, "⟨a⟩!");
    check_pieces("{% generation %}{{ m.role }}.{% endgeneration %}", v, "⟨user⟩.");
    check_pieces("{{ (m.role + '\nb')|indent(2) }}", v, "⟨user⟩\n  b");
}

static void test_generation_in_strings(void **state)
{
    (void)state;
    apus_template_output out = rendered("{% macro say(x) %}<a>{% generation %}{{ x }}{% endgeneration %}</a>{% endmacro %}"
                                        "{% set kept %}{{ say('one') }}{% endset %}--{{ kept }}{{ say('two') }}",
                                        "{}");
    assert_string_equal(out.text, "--<a>one</a><a>two</a>");
    assert_int_equal(out.n_generation, 2);
    assert_int_equal(out.generation[0].begin, 5);
    assert_int_equal(out.generation[0].end, 8);
    assert_int_equal(out.generation[1].begin, 15);
    assert_int_equal(out.generation[1].end, 18);
    apus_template_output_free(&out);
}

/* ---------------------------------------------------------------- errors and bounds */

static void check_error(const char *text, apus_status expected, const char *message)
{
    apus_error err = {0};
    apus_template_output out = {0};
    /* Small enough to be reached soon under sanitizers too. */
    const tlimits limits = {.iterations = 100000, .work = 400000000, .bytes = 4 << 20, .memory = 64 << 20, .depth = 1500};
    const char *variables = "{\"xs\":[1,2],\"s\":\"abcdefgh\"}";
    apus_node *v = apus_nodes()->parse_json(variables, strlen(variables), "variables", &err);
    apus_template *t = apus_template_compile(text, strlen(text), "dir/chat_template.jinja", &err);
    if (t != NULL)
        assert_int_equal(apus_template_render_within(t, &limits, v, 0, &out, &err), expected);
    assert_null(out.text);
    assert_string_equal(err.message, message);
    apus_template_free(t);
    apus_nodes()->release(v);
}

#define AT "dir/chat_template.jinja:"

static void test_error_places(void **state)
{
    (void)state;
    check_error("ab\n{{ 'é' ~ missing.x }}", APUS_E_INVALID, AT "2:17: 'missing' is undefined");
    check_error("{% for x in xs %}\n  {{ x +\n 'a' }}{% endfor %}", APUS_E_INVALID, AT "2:8: unsupported operand type(s) for +: 'int' and 'str'");
    check_error("\n\n   {{ raise_exception('System role\nnot supported') }}", APUS_E_INVALID, AT "3:22: System role not supported");
    check_error("{% if xs %}\n{% for x in xs %}\n{% endif %}", APUS_E_INVALID, AT "3:4: unknown tag 'endif'; the block 'for' of line 2 is open");
    check_error("{% if xs %}\nabc", APUS_E_INVALID, AT "2:4: the template ends, but the block 'if' of line 1 is not closed");
    check_error("{{ xs|nosuch }}", APUS_E_INVALID, AT "1:7: No filter named 'nosuch'.");
    check_error("{{ xs", APUS_E_INVALID, AT "1:3: a {{ that is not closed by }}");
    check_error("{{ 'a }}", APUS_E_INVALID, AT "1:4: a string that is not closed");
    check_error("{% include 'a' %}", APUS_E_UNSUPPORTED, AT "1:4: 'include' is not supported: a chat template is one file of plain text");
    check_error("{{ xs|map('upper') }}", APUS_E_INVALID, AT "1:7: a generator has no text to print: put |list or |join behind it");
    check_error("{{ xs.append(1) }}", APUS_E_INVALID, AT "1:13: access to attribute 'append' of 'list' object is unsafe");
    check_error("{{ xs[0].y.z }}", APUS_E_INVALID, AT "1:11: 'int object' has no attribute 'y'");
    check_error("{{ xs|pprint }}", APUS_E_UNSUPPORTED, AT "1:7: the filters pprint, random, urlize and wordwrap are not supported in chat templates");
}

static void test_bounds(void **state)
{
    (void)state;
    check_error("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", APUS_E_INVALID,
                AT "1:46: more than 100000 rounds of loops");
}

static void test_more_bounds(void **state)
{
    (void)state;
    check_error("{% for a in range(10) %}{{ s * 100000 }}{% endfor %}", APUS_E_MEMORY, AT "1:30: the output or a string of more than 4 MiB");
    check_error("{{ s * 1000000000000 }}", APUS_E_MEMORY, AT "1:6: a string of more than 4 MiB");
    check_error("{{ xs * 1000000000 }}", APUS_E_MEMORY, AT "1:7: a list that does not fit the memory limit");
    check_error("{{ 9223372036854775807 + 1 }}", APUS_E_INVALID, AT "1:24: the integer result does not fit 64 bits");
    check_error("{{ 9223372036854775808 }}", APUS_E_INVALID, AT "1:4: an integer that does not fit 64 bits");
    check_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", APUS_E_INVALID, AT "1:20: nested or recursing too deep (over 1500 levels)");
    check_error("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", APUS_E_INVALID, AT "1:49: nested or recursing too deep (over 1500 levels)");
    check_error("{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}", APUS_E_INVALID,
                AT "1:97: nested or recursing too deep (over 1500 levels)");
    check_error("{% for a in range(90000) %}{% if s * 4000 == s %}{% endif %}{% endfor %}", APUS_E_MEMORY,
                AT "1:36: the template needs more than 64 MiB of memory");
    char deep[2100] = "{{ ";
    memset(deep + 3, '(', 1000);
    deep[1003] = '1';
    memset(deep + 1004, ')', 1000);
    strcpy(deep + 2004, " }}");
    check_error(deep, APUS_E_INVALID, AT "1:137: nested over 400 levels deep");
}

/* A template is shared: rendering changes nothing in it, and an output frees cleanly twice. */
static void test_again(void **state)
{
    (void)state;
    const char *variables = "{\"messages\":[{\"role\":\"user\",\"content\":\"hé\"}]}";
    const char *text = "{% for m in messages %}{{ m.role ~ 'é'[0] }}:{{ m.content[1] }}{% endfor %}";
    apus_error err = {0};
    apus_node *v = apus_nodes()->parse_json(variables, strlen(variables), "variables", &err);
    apus_template *t = apus_template_compile(text, strlen(text), NULL, &err);
    assert_non_null(t);
    for (int i = 0; i < 3; i++) {
        apus_template_output out;
        assert_int_equal(apus_template_render(t, v, 0, &out, &err), APUS_OK);
        assert_string_equal(out.text, "useré:é");
        apus_template_output_free(&out);
        apus_template_output_free(&out);
    }
    apus_template_free(t);
    apus_template_free(NULL);
    apus_nodes()->release(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_language),     cmocka_unit_test(test_models),
        cmocka_unit_test(test_provenance),   cmocka_unit_test(test_generation_in_strings),
        cmocka_unit_test(test_error_places), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_more_bounds),  cmocka_unit_test(test_again),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
