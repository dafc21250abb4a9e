/* Configuration: every promise of core/config/config.h, and a table of wrong input with the one line each must give. */
#include "config/config.h"
#include "io/io.h"
#include "value/node.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const apus_node_api *api;
static char folder[512];

static void assert_json(const apus_node *n, const char *expected)
{
    char *text = api->write_json(n, 0, NULL);
    assert_non_null(text);
    assert_string_equal(text, expected);
    free(text);
}

static apus_node *yaml(const char *text)
{
    apus_error err = {0};
    apus_node *n = apus_yaml_parse(text, strlen(text), "t.yaml", &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    return n;
}

static void write_file(const char *name, const char *text)
{
    char path[600];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

/* Files are named in full, so messages begin with the folder: leave it out. */
static const char *without_folder(const char *message)
{
    static char text[2048];
    size_t o = 0, n = strlen(folder);
    for (const char *p = message; *p != '\0' && o + 1 < sizeof text;) {
        if (strncmp(p, folder, n) == 0 && p[n] == '/')
            p += n + 1;
        else
            text[o++] = *p++;
    }
    text[o] = '\0';
    return text;
}

static apus_node *load(const char *name, const char *const *overrides, apus_error *err)
{
    char path[600];
    size_t n = 0;
    while (overrides != NULL && overrides[n] != NULL)
        n++;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return apus_config_load(path, overrides, n, err);
}

/* ---------------------------------------------------------------- YAML */

static void scalars_follow_the_core_schema(void **state)
{
    (void)state;
    apus_node *n = yaml("[1, -7, +3, 007, 0x1F, 0o17, 1.0, 1e-4, 1.0e-4, -.5, 2., .inf, -.Inf, .NaN, ~, null, Null, true, "
                        "FALSE, yes, no, on, off, 1_000, 0b1, 1:30, '1', \"true\", !!str 5, !!float 2, !!int \"3\", ! 4, "
                        "99999999999999999999, nan, 2024-01-01]");
    assert_json(n, "[1, -7, 3, 7, 31, 15, 1.0, 0.0001, 0.0001, -0.5, 2.0, Infinity, -Infinity, NaN, null, null, null, true, "
                   "false, \"yes\", \"no\", \"on\", \"off\", \"1_000\", \"0b1\", \"1:30\", \"1\", \"true\", \"5\", 2.0, 3, "
                   "\"4\", 1e+20, \"nan\", \"2024-01-01\"]");
    api->release(n);
    n = yaml("a: |\n  one\n  two\nb: >-\n  one\n  two\nc:\n");
    assert_json(n, "{\"a\": \"one\\ntwo\\n\", \"b\": \"one two\", \"c\": null}");
    api->release(n);
    n = yaml("");
    assert_int_equal(api->kind(n), APUS_NODE_NULL);
    api->release(n);
}

static void nodes_know_their_place(void **state)
{
    (void)state;
    char where[64];
    apus_node *n = yaml("run: x\n\"\xC3\xA9\": [1, 2]\nstages:\n  - name:\n      a\n");
    assert_string_equal(api->where(n, where, sizeof where), "t.yaml:1:1");
    assert_string_equal(api->where(api->at(api->get(n, "\xC3\xA9"), 1), where, sizeof where), "t.yaml:2:10");
    const apus_node *stage = api->at(api->get(n, "stages"), 0);
    assert_string_equal(api->where(api->get(stage, "name"), where, sizeof where), "t.yaml:5:7");
    assert_string_equal(apus_node_key_where(stage, 0, where, sizeof where), "t.yaml:4:5");
    api->release(n);
}

static void aliases_are_copies(void **state)
{
    (void)state;
    apus_node *n = yaml("a: &x {r: 1, s: &y [2]}\nb: *x\nc: *y\nd: {<<: *x, s: 3}\ne:\n  <<: [{q: &z 9}, *x]\n  r: 0\nf: *z\n");
    assert_json(n, "{\"a\": {\"r\": 1, \"s\": [2]}, \"b\": {\"r\": 1, \"s\": [2]}, \"c\": [2], \"d\": {\"s\": 3, \"r\": 1}, "
                   "\"e\": {\"r\": 0, \"q\": 9, \"s\": [2]}, \"f\": 9}");
    api->release(n);
}

static void json_is_yaml(void **state)
{
    (void)state;
    static const char text[] = "{\"a\": [1, 2.5, \"\\u00e9\\/\", null, true], \"b\": {\"c\": -1e-3}}";
    apus_error err = {0};
    apus_node *a = yaml(text), *b = apus_yaml_parse(text, strlen(text), "t.json", &err);
    assert_true(api->equal(a, b));
    api->release(a);
    api->release(b);
    static const char python[] = "[NaN, \"\\ud83d\\ude00\"]";
    b = apus_yaml_parse(python, sizeof python - 1, "t.json", &err);
    assert_non_null(b);
    api->release(b);
}

static void wrong_yaml_names_the_place(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message, *hint;
    } cases[] = {
        {"a: 1\nb: 2\na: 3\n", "t.yaml:3:1: the key 'a' is there twice (first at t.yaml:1:1)", ""},
        {"a: {b: 1, b: 2}", "t.yaml:1:11: the key 'b' is there twice (first at t.yaml:1:5)", ""},
        {"a:\n\tb: 1\n", "t.yaml:2:1: found character that cannot start any token while scanning for the next token",
         "YAML indents with spaces, not tabs"},
        {"a: b: c\n", "t.yaml:1:5: mapping values are not allowed in this context", "quote a value that holds ': ', or check the indentation"},
        {"a: 1\n  b: 2\n", "t.yaml:2:4: mapping values are not allowed in this context", "quote a value that holds ': ', or check the indentation"},
        {"a: `x`\n", "t.yaml:1:4: found character that cannot start any token while scanning for the next token",
         "quote a value that begins with @, ` or %"},
        {"a: [1, 2\nb: 3\n", "t.yaml:2:2: expected ',' or ']' while parsing a flow sequence that began on line 1", ""},
        {"a: \"x\n", "t.yaml:2:1: found unexpected end of stream while scanning a quoted scalar that began on line 1", ""},
        {"a: 1\n b: 2\n- c\n", "t.yaml:2:3: mapping values are not allowed in this context", NULL},
        {"a:\n  b: 1\n c: 2\n", "t.yaml:3:2: expected key while parsing a block mapping that began on line 1",
         "check the indentation of this line and of the one before it"},
        {"a: {r: ${rank}}", "t.yaml:1:9: expected ',' or '}' while parsing a flow mapping", "inside { } and [ ] a reference needs quotes: \"${…}\""},
        {"a: 1\nb: \xff\n", "t.yaml:2:4: invalid leading UTF-8 octet", "save the file as UTF-8 text"},
        {"a: \x01\n", "t.yaml:1:4: control characters are not allowed", "save the file as UTF-8 text"},
        {"a: !secret x\n",
         "t.yaml:1:4: the tag '!secret' means nothing here: expected plain values, or !!str, !!int, !!float, !!bool, "
         "!!null, !!map, !!seq",
         "leave the tag out"},
        {"a: !!python/object:os.system x\n", NULL, "leave the tag out"},
        {"a: !!int x\n", "t.yaml:1:4: 'x' is not what its tag !!int says", ""},
        {"a: !!map [1]\n", NULL, "leave the tag out"},
        {"a: 1\n---\nb: 2\n", "t.yaml:2:1: a second document ('---'): expected one", ""},
        {"a: *b\n", "t.yaml:1:4: '*b' refers to an anchor that is not there: expected '&b' before it", ""},
        {"a: &b [*b]\n", "t.yaml:1:8: '*b' stands inside the value that '&b' names: it would hold itself", ""},
        {"? [a]\n: 1\n", "t.yaml:1:3: a list as a key: expected a word", ""},
        {"a: &x k\n*x : 1\n", "t.yaml:2:1: an alias as a key: expected a word", ""},
        {"&x a: 1\n", "t.yaml:1:1: an anchor on a key: expected it on a value", ""},
        {"\"a\\0b\": 1\n", "t.yaml:1:1: the key 'a\\x00b' holds the character U+0000", ""},
        {"a: {<<: 3}\n", "t.yaml:1:5: '<<' expects a mapping or a list of mappings (usually an alias)", ""},
        {"a: {<<: {}, <<: {}}\n", "t.yaml:1:13: the key '<<' is there twice: expected one list of aliases", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        apus_node *n = apus_yaml_parse(cases[i].text, strlen(cases[i].text), "t.yaml", &err);
        if (n != NULL)
            fail_msg("%s: was read", cases[i].text);
        if (cases[i].message != NULL)
            assert_string_equal(err.message, cases[i].message);
        if (cases[i].hint != NULL)
            assert_string_equal(err.hint, cases[i].hint);
        assert_true(strncmp(err.message, "t.yaml:", 7) == 0 && strchr(err.message, '\n') == NULL);
    }
}

static void yaml_is_bounded(void **state)
{
    (void)state;
    apus_error err = {0};
    char text[8192] = "";
    memset(text, '[', 101);
    assert_null(apus_yaml_parse(text, 101, "t.yaml", &err));
    assert_string_equal(err.message, "t.yaml:1:101: nested deeper than 100 levels");
    memset(text, '[', 100);
    memset(text + 100, ']', 100);
    apus_node *n = apus_yaml_parse(text, 200, "t.yaml", &err);
    assert_non_null(n);
    api->release(n);

    /* A billion laughs. */
    size_t o = (size_t)sprintf(text, "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for (int i = 1; i < 10; i++)
        o += (size_t)sprintf(text + o, "a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i - 1, i - 1, i - 1, i - 1, i - 1,
                             i - 1, i - 1, i - 1, i - 1, i - 1);
    assert_null(apus_yaml_parse(text, o, "t.yaml", &err));
    assert_non_null(strstr(err.message, "makes the aliases expand to more than 100000 values or 16 MiB"));

    /* Depth by aliases. */
    o = (size_t)sprintf(text, "a0: &a0 1\n");
    for (int i = 1; i < 9; i++)
        o += (size_t)sprintf(text + o, "a%d: &a%d [[[[[[[[[[[[[[[[[[[[*a%d]]]]]]]]]]]]]]]]]]]]\n", i, i, i - 1);
    assert_null(apus_yaml_parse(text, o, "t.yaml", &err));
    assert_string_equal(err.message, "t.yaml:6:29: '*a4' makes values nest deeper than 100 levels");

    char *big = malloc((16 << 20) + 1);
    memset(big, '#', (16 << 20) + 1);
    assert_null(apus_yaml_parse(big, (16 << 20) + 1, "t.yaml", &err));
    assert_string_equal(err.message, "t.yaml: 16777217 bytes of YAML: expected at most 16 MiB");
    free(big);
}

/* ---------------------------------------------------------------- loading */

static void includes_merge(void **state)
{
    (void)state;
    char where[600];
    apus_error err = {0};
    (void)mkdir(strcat(strcpy(where, folder), "/sub"), 0700);
    write_file("main.yaml", "include: [sub/a.yaml, sub/b.yaml]\nseed: 2\ntuner: {r: 8}\nstages: [{name: own}]\n");
    write_file("sub/a.yaml", "include: c.yaml\nseed: 1\nfrom_a: true\nstages: [{name: x}, {name: y}]\n");
    write_file("sub/b.yaml", "tuner: {lora_alpha: 32, r: 4}\nfrom_a: false\nagain: ${seed}\n");
    write_file("sub/c.yaml", "from_c: 1\ntuner: {type: lora}\n");
    apus_node *n = load("main.yaml", NULL, &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(n, "{\"from_c\": 1, \"tuner\": {\"type\": \"lora\", \"lora_alpha\": 32, \"r\": 8}, \"seed\": 2, \"from_a\": "
                   "false, \"stages\": [{\"name\": \"own\"}], \"again\": 2}");
    assert_string_equal(without_folder(api->where(api->get(api->get(n, "tuner"), "lora_alpha"), where, sizeof where)), "sub/b.yaml:1:21");
    api->release(n);
}

static void overrides_are_set(void **state)
{
    (void)state;
    char where[600];
    apus_error err = {0};
    write_file("o.yaml", "seed: 1\nbackend: {type: cpu}\nempty:\nstages:\n- name: sft\n  max_steps: 9\n- name: '0'\n  x: ${seed}\n");
    const char *const overrides[] = {
        "seed=7", "stages.sft.max_steps=2", "stages.1.lr=1e-4", "stages.0.y=[a, {b: 3}]", "new.deep.key=a=b", "empty.k=x", "backend=ref", "seed2=",
        NULL};
    apus_node *n = load("o.yaml", overrides, &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(n, "{\"seed\": 7, \"backend\": \"ref\", \"empty\": {\"k\": \"x\"}, \"stages\": [{\"name\": \"sft\", "
                   "\"max_steps\": 2}, {\"name\": \"0\", \"x\": 7, \"lr\": 0.0001, \"y\": [\"a\", {\"b\": 3}]}], \"new\": "
                   "{\"deep\": {\"key\": \"a=b\"}}, \"seed2\": null}");
    assert_string_equal(api->where(api->get(n, "seed"), where, sizeof where), "override 'seed':1:1");
    api->release(n);
}

static void references_are_filled_in(void **state)
{
    (void)state;
    char where[600];
    apus_error err = {0};
    (void)setenv("APUS_TEST_RATE", "3e-4", 1);
    (void)setenv("APUS_TEST_EMPTY", "", 1);
    (void)unsetenv("APUS_TEST_UNSET");
    write_file("i.yaml", "seed: 42\n"
                         "plain: ${APUS_TEST_RATE}\n"
                         "quoted: \"${APUS_TEST_RATE}\"\n"
                         "text: run-${seed}-${x.rate}-${x.on}\n"
                         "x: {rate: 1e-4, on: true, l: [a, b]}\n"
                         "list: ${x.l}\n"
                         "item: ${x.l.1}\n"
                         "stage: ${stages.sft.n}\n"
                         "stages: [{name: sft, n: 3}]\n"
                         "fallback: ${APUS_TEST_UNSET:-5}\n"
                         "empty: ${APUS_TEST_EMPTY:-e}\n"
                         "nothing: ${APUS_TEST_EMPTY}\n"
                         "nested: ${APUS_TEST_UNSET:-${APUS_TEST_UNSET:-${seed}}}\n"
                         "literal: $${seed} $seed 5$\n"
                         "chain: ${item}\n"
                         "map: ${x}\n");
    apus_node *n = load("i.yaml", NULL, &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(n, "{\"seed\": 42, \"plain\": 0.0003, \"quoted\": \"3e-4\", \"text\": \"run-42-0.0001-true\", \"x\": {\"rate\": "
                   "0.0001, \"on\": true, \"l\": [\"a\", \"b\"]}, \"list\": [\"a\", \"b\"], \"item\": \"b\", \"stage\": 3, "
                   "\"stages\": [{\"name\": \"sft\", \"n\": 3}], \"fallback\": 5, \"empty\": \"e\", \"nothing\": null, "
                   "\"nested\": 42, \"literal\": \"${seed} $seed 5$\", \"chain\": \"b\", \"map\": {\"rate\": 0.0001, \"on\": "
                   "true, \"l\": [\"a\", \"b\"]}}");
    assert_string_equal(without_folder(api->where(api->get(n, "list"), where, sizeof where)), "i.yaml:6:7");
    api->release(n);
}

static void wrong_files_give_one_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *override, *message, *hint;
    } cases[] = {
        {"[1]\n", NULL, "w.yaml:1:1: expected a mapping (key: value), found a list", ""},
        {"", NULL, "w.yaml:1:1: expected a mapping (key: value), found nothing (null)", ""},
        {"include: w.yaml\n", NULL, "w.yaml:1:10: 'w.yaml' includes itself, directly or through another file", ""},
        {"include: cycle.yaml\n", NULL, "cycle.yaml:1:10: 'w.yaml' includes itself, directly or through another file", ""},
        {"include: nope.yaml\n", NULL, "w.yaml:1:10: the included file 'nope.yaml' cannot be opened",
         "the path of an include is relative to the file that includes it"},
        {"include: {a: 1}\n", NULL, "w.yaml:1:10: 'include' expects a file name or a list of them, found a mapping", ""},
        {"include: [3]\n", NULL, "w.yaml:1:11: 'include' expects a file name or a list of them, found 3", ""},
        {"include: list.yaml\n", NULL, "list.yaml:1:1: expected a mapping (key: value), found a list", ""},
        {"include: twice.yaml\n", NULL, "twice.yaml:2:1: the key 'a' is there twice (first at twice.yaml:1:1)", ""},
        {"a: ${b}\nb: ${a}\n", NULL, "w.yaml:1:4: ${b} refers to itself, directly or through another key", ""},
        {"a:\n  b: ${a}\n", NULL, "w.yaml:2:6: ${a} refers to itself, directly or through another key", ""},
        {"seed: 1\na: ${sed}\n", NULL, "w.yaml:2:4: ${sed}: no such environment variable, and no such key in the file", "did you mean ${seed}?"},
        {"a: ${APUS_TEST_UNSET}\n", NULL, "w.yaml:1:4: ${APUS_TEST_UNSET}: no such environment variable, and no such key in the file",
         "set it, or give a fallback: ${APUS_TEST_UNSET:-value}"},
        {"a: ${b.c}\nb: {d: 1}\n", NULL, "w.yaml:1:4: ${b.c}: no such key in the file", ""},
        {"a: x${b}\nb: [1]\n", NULL, "w.yaml:1:4: ${b} inside a text: expected a word or a number there, found a list", ""},
        {"a: ${b\n", NULL, "w.yaml:1:4: '${' without its '}' (a literal '${' is '$${')", ""},
        {"a: ${b c}\n", NULL, "w.yaml:1:4: '${b c}': expected ${NAME}, ${NAME:-fallback} or ${key.path} (a literal '${' is '$${')", ""},
        {"a: 1\n", "a", "override 'a': expected key.path=value", ""},
        {"a: 1\n", "=1", "override '=1': expected key.path=value", ""},
        {"a: 1\n", "a..b=1", "override 'a..b=1': expected key.path=value, found an empty key", ""},
        {"a: 1\n", "a={x: 1", NULL, NULL},
        {"a: cpu\n", "a.threads=2", "override 'a.threads=2': 'a' is the string 'cpu', not a mapping", "write a='{type: cpu, threads: …}'"},
        {"s: [{name: align}]\n", "s.algn.x=2", "override 's.algn.x=2': no item 'algn' in 's', a list of 1", "did you mean 'align'?"},
        {"s: [{name: align}]\n", "s.1=2", "override 's.1=2': no item '1' in 's', a list of 1",
         "name an item by its index (from 0) or by its `name:`"},
        {"a: 1\n", "include=x", "override 'include=x': 'include' can only be written in a file", ""},
    };
    write_file("cycle.yaml", "include: w.yaml\n");
    write_file("list.yaml", "[1]\n");
    write_file("twice.yaml", "a: 1\na: 2\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        const char *const overrides[] = {cases[i].override, NULL};
        write_file("w.yaml", cases[i].text);
        apus_node *n = load("w.yaml", overrides, &err);
        if (n != NULL)
            fail_msg("%s: was read", cases[i].text);
        if (cases[i].message != NULL)
            assert_string_equal(without_folder(err.message), cases[i].message);
        if (cases[i].hint != NULL)
            assert_string_equal(err.hint, cases[i].hint);
    }
    apus_error err = {0};
    assert_null(load("missing.yaml", NULL, &err));
    assert_non_null(strstr(err.message, "missing.yaml: "));
    assert_null(load("sub", NULL, &err));
    assert_non_null(strstr(err.message, "is a folder"));
}

static void expansion_is_bounded(void **state)
{
    (void)state;
    apus_error err = {0};
    char text[8192];
    size_t o = (size_t)sprintf(text, "a0: [x,x,x,x,x,x,x,x,x,x]\n");
    for (int i = 1; i < 10; i++) {
        o += (size_t)sprintf(text + o, "a%d:\n", i);
        for (int k = 0; k < 10; k++)
            o += (size_t)sprintf(text + o, "- ${a%d}\n", i - 1);
    }
    write_file("laugh.yaml", text);
    assert_null(load("laugh.yaml", NULL, &err));
    assert_non_null(strstr(err.message, "refers to grows beyond 100000 values"));

    o = (size_t)sprintf(text, "a: ");
    for (int i = 0; i < 500; i++)
        o += (size_t)sprintf(text + o, "${A_:-");
    memset(text + o, '}', 500);
    text[o + 500] = '\0';
    write_file("nest.yaml", text);
    assert_null(load("nest.yaml", NULL, &err));
    assert_string_equal(without_folder(err.message), "nest.yaml:1:4: '${…}' nests deeper than 60");

    for (int i = 0; i < 40; i++) { /* a chain of includes */
        char name[32];
        (void)snprintf(name, sizeof name, "chain%d.yaml", i);
        (void)snprintf(text, sizeof text, "include: chain%d.yaml\n", i + 1);
        write_file(name, text);
    }
    assert_null(load("chain0.yaml", NULL, &err));
    assert_string_equal(without_folder(err.message), "chain20.yaml:1:10: includes nest deeper than 20 or read more than 256 files");
    for (int i = 0; i < 12; i++) { /* two includes a level: 2^12 reads */
        char name[32];
        (void)snprintf(name, sizeof name, "tree%d.yaml", i);
        (void)snprintf(text, sizeof text, i == 11 ? "a: 1\n" : "include: [tree%d.yaml, tree%d.yaml]\n", i + 1, i + 1);
        write_file(name, text);
    }
    assert_null(load("tree0.yaml", NULL, &err));
    assert_non_null(strstr(err.message, "includes nest deeper than 20 or read more than 256 files"));
}

/* ---------------------------------------------------------------- parameters */

static const char *const loss_types[] = {"sigmoid", "ipo", "hinge", NULL};

#define PARAM .size = sizeof(apus_param)
static const apus_param params[] = {
    {PARAM, .name = "model", .type = APUS_PARAM_PATH, .flags = APUS_PARAM_REQUIRED, .doc = "What is trained.",
     .aliases = "model_name_or_path base_model"},
    {PARAM, .name = "epochs", .type = APUS_PARAM_INT, .fallback = "1", .min = 1, .max = 1000, .aliases = "num_train_epochs"},
    {PARAM, .name = "learning_rate", .type = APUS_PARAM_FLOAT, .fallback = "5e-5", .min = 0, .max = INFINITY, .aliases = "lr"},
    {PARAM, .name = "any_number", .type = APUS_PARAM_FLOAT, .fallback = "2", .min = 1, .max = -1},
    {PARAM, .name = "loss_type", .type = APUS_PARAM_STRING, .fallback = "sigmoid", .choices = loss_types},
    {PARAM, .name = "memory", .type = APUS_PARAM_BYTES, .fallback = "2GiB", .unit = "bytes"},
    {PARAM, .name = "target_modules", .type = APUS_PARAM_LIST, .item = APUS_PARAM_STRING, .fallback = "[q_proj, v_proj]"},
    {PARAM, .name = "betas", .type = APUS_PARAM_LIST, .item = APUS_PARAM_FLOAT, .fallback = "[0.9, 0.999]", .min = 0, .max = 1},
    {PARAM, .name = "columns", .type = APUS_PARAM_MAP, .item = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE},
    {PARAM, .name = "shuffle", .type = APUS_PARAM_BOOL, .fallback = "true"},
    {PARAM, .name = "tuner", .type = APUS_PARAM_COMPONENT, .of_kind = "tuner", .flags = APUS_PARAM_NULLABLE, .fallback = "full"},
    {PARAM, .name = "max_steps", .type = APUS_PARAM_INT, .flags = APUS_PARAM_NULLABLE},
    {PARAM, .name = "extra", .type = APUS_PARAM_NODE},
    {PARAM, .name = "seed", .type = APUS_PARAM_INT},
};
enum { N_PARAMS = sizeof params / sizeof params[0] };

static apus_node *validate(const char *text, apus_error *err)
{
    apus_node *given = yaml(text);
    apus_node *n = apus_params_validate(given, params, N_PARAMS, "stage type", "stage train", err);
    api->release(given);
    return n;
}

static void defaults_are_filled_in(void **state)
{
    (void)state;
    char where[64];
    apus_error err = {0};
    apus_node *n = validate("stage: train\nmodel: m.gguf\n", &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(n, "{\"model\": \"m.gguf\", \"epochs\": 1, \"learning_rate\": 5e-05, \"any_number\": 2.0, \"loss_type\": "
                   "\"sigmoid\", \"memory\": 2147483648, \"target_modules\": [\"q_proj\", \"v_proj\"], \"betas\": [0.9, 0.999], "
                   "\"columns\": null, \"shuffle\": true, \"tuner\": {\"type\": \"full\"}, \"max_steps\": null, \"extra\": null, "
                   "\"seed\": null}");
    assert_string_equal(api->where(api->get(n, "betas"), where, sizeof where), "");
    assert_string_equal(api->where(api->at(api->get(n, "betas"), 0), where, sizeof where), "");
    assert_string_equal(api->where(api->get(n, "model"), where, sizeof where), "t.yaml:2:8");
    apus_node *again = apus_params_validate(n, params, N_PARAMS, "", "stage train", &err);
    assert_true(api->equal(n, again));
    api->release(again);
    api->release(n);
    n = apus_params_validate(NULL, params + 1, N_PARAMS - 1, NULL, "stage train", &err);
    assert_non_null(n);
    api->release(n);
}

static void values_are_typed(void **state)
{
    (void)state;
    apus_error err = {0};
    apus_node *n = validate("model: m\nepochs: 1e2\nlearning_rate: 1\nany_number: -.inf\nloss_type: ipo\nmemory: 1.5 kB\n"
                            "target_modules: q_proj\nbetas: [0, 1]\ncolumns: {prompt: q}\nshuffle: false\n"
                            "tuner: {type: lora, r: 8}\nmax_steps: null\nextra: {x: [1]}\nseed: 3\n",
                            &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(n, "{\"model\": \"m\", \"epochs\": 100, \"learning_rate\": 1.0, \"any_number\": -Infinity, \"loss_type\": "
                   "\"ipo\", "
                   "\"memory\": 1500, \"target_modules\": [\"q_proj\"], \"betas\": [0.0, 1.0], \"columns\": {\"prompt\": \"q\"}, "
                   "\"shuffle\": false, \"tuner\": {\"type\": \"lora\", \"r\": 8}, \"max_steps\": null, \"extra\": {\"x\": [1]}, "
                   "\"seed\": 3}");
    assert_int_equal(api->kind(api->get(n, "epochs")), APUS_NODE_INT);
    assert_int_equal(api->kind(api->get(n, "learning_rate")), APUS_NODE_FLOAT);
    api->release(n);
    static const struct {
        const char *text;
        int64_t bytes;
    } sizes[] = {{"7", 7}, {"1e3", 1000}, {"500MB", 500000000}, {"2GiB", (int64_t)2 << 30}, {"0.5KiB", 512}, {"1 tib", (int64_t)1 << 40}, {"3B", 3}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char text[64];
        (void)snprintf(text, sizeof text, "{model: m, memory: %s}", sizes[i].text);
        n = validate(text, &err);
        assert_non_null(n);
        assert_int_equal(api->as_int(api->get(n, "memory"), -1), sizes[i].bytes);
        api->release(n);
    }
    /* a component's map without `type:` is for its resolver to recognise */
    n = validate("{model: m, tuner: {path: x}}", &err);
    assert_json(api->get(n, "tuner"), "{\"path\": \"x\"}");
    api->release(n);
}

static void filled_in_strings_count_as_numbers(void **state)
{
    (void)state;
    apus_error err = {0};
    (void)setenv("APUS_TEST_NUMBER", "12", 1);
    write_file("p.yaml", "{model: \"${APUS_TEST_NUMBER}\", epochs: \"${APUS_TEST_NUMBER}\", betas: [\"${zero}\"]}\n");
    const char *const overrides[] = {"zero=0", NULL};
    apus_node *given = load("p.yaml", overrides, &err);
    assert_non_null(given);
    apus_node *n = apus_params_validate(given, params, N_PARAMS, "zero", "stage train", &err);
    if (n == NULL)
        fail_msg("%s", err.message);
    assert_json(api->get(n, "model"), "\"12\"");
    assert_json(api->get(n, "epochs"), "12");
    assert_json(api->get(n, "betas"), "[0.0]");
    api->release(given);
    api->release(n);
}

static void wrong_values_give_one_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message, *hint;
    } cases[] = {
        {"epochs: 2\n", "t.yaml:1:1: stage train needs 'model': expected a path", "model: What is trained."},
        {"model: m\nnum_train_epochs: 3\n", "t.yaml:2:1: unknown key 'num_train_epochs' in stage train: use 'epochs'", ""},
        {"model: m\nnum_train_epoch: 3\n", "t.yaml:2:1: unknown key 'num_train_epoch' in stage train: did you mean 'epochs'?", ""},
        {"model: m\nlearning-rate:\n  - 3\n", "t.yaml:2:1: unknown key 'learning-rate' in stage train: did you mean 'learning_rate'?", ""},
        {"model: m\nfrobnicate: 3\n", "t.yaml:2:1: unknown key 'frobnicate' in stage train",
         "its keys are: model, epochs, learning_rate, any_number, loss_type, memory, target_modules, betas, columns, "
         "shuffle, "
         "tuner, max_steps, extra, seed"},
        {"model: m\nepochs: three\n", "t.yaml:2:9: 'epochs' of stage train: expected a whole number from 1 to 1000, found the string 'three'", ""},
        {"model: m\nepochs: '3'\n", "t.yaml:2:9: 'epochs' of stage train: expected a whole number from 1 to 1000, found the string '3'",
         "write 3 without quotes"},
        {"model: m\nepochs: 1_000\n", NULL, "write 1000"},
        {"model: m\nepochs: 0\n", "t.yaml:2:9: 'epochs' of stage train: expected a whole number from 1 to 1000, found 0", ""},
        {"model: m\nepochs: 1.5\n", "t.yaml:2:9: 'epochs' of stage train: expected a whole number from 1 to 1000, found 1.5", ""},
        {"model: m\nepochs:\n", "t.yaml:2:8: 'epochs' of stage train: expected a whole number from 1 to 1000, found nothing (null)", ""},
        {"model: m\nlearning_rate: -1\n", "t.yaml:2:16: 'learning_rate' of stage train: expected a number of at least 0, found -1", ""},
        {"model: m\nlearning_rate: .nan\n", "t.yaml:2:16: 'learning_rate' of stage train: expected a number of at least 0, found NaN", ""},
        {"model: m\nany_number: .nan\n", "t.yaml:2:13: 'any_number' of stage train: expected a number, found NaN", ""},
        {"model: m\nloss_type: sigmod\n", "t.yaml:2:12: 'loss_type' of stage train: expected one of sigmoid, ipo, hinge, found the string 'sigmod'",
         "did you mean 'sigmoid'?"},
        {"model: m\nloss_type: [ipo]\n", "t.yaml:2:12: 'loss_type' of stage train: expected one of sigmoid, ipo, hinge, found a list", ""},
        {"model: 3\n", "t.yaml:1:8: 'model' of stage train: expected a path, found 3", "put it in quotes to make it a string"},
        {"model: ''\n", "t.yaml:1:8: 'model' of stage train: expected a path, found the string ''", ""},
        {"model: \"a\\0b\"\n", "t.yaml:1:8: 'model' of stage train: expected a path, found the string 'a\\x00b'", ""},
        {"model: m\nmemory: 2 gigs\n",
         "t.yaml:2:9: 'memory' of stage train: expected a size (2GiB, 500MB, or a number of bytes), found the string "
         "'2 gigs'",
         "units are B, kB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024)"},
        {"model: m\nmemory: 99999999TiB\n", NULL, NULL},
        {"model: m\nmemory: -1\n", NULL, NULL},
        {"model: m\nshuffle: yes\n", "t.yaml:2:10: 'shuffle' of stage train: expected true or false, found the string 'yes'", "write true"},
        {"model: m\nshuffle: 0\n", "t.yaml:2:10: 'shuffle' of stage train: expected true or false, found 0", "write false"},
        {"model: m\nbetas: [0.9, 2]\n", "t.yaml:2:14: 'betas[1]' of stage train: expected a number from 0 to 1, found 2", ""},
        {"model: m\nbetas: null\n", "t.yaml:2:8: 'betas' of stage train: expected a list, found nothing (null)", ""},
        {"model: m\ntarget_modules: {a: b}\n", "t.yaml:2:17: 'target_modules' of stage train: expected a string, found a mapping", ""},
        {"model: m\ncolumns: {prompt: [a]}\n", "t.yaml:2:19: 'columns.prompt' of stage train: expected a string, found a list", ""},
        {"model: m\ncolumns: a\n", "t.yaml:2:10: 'columns' of stage train: expected a mapping, found the string 'a'", ""},
        {"model: m\ntuner: 3\n", "t.yaml:2:8: 'tuner' of stage train: expected a name, or a mapping with 'type:', found 3", ""},
        {"model: m\ntuner: {type: 3}\n", "t.yaml:2:15: 'type' in 'tuner' of stage train: expected the name of a tuner, found 3", ""},
        {"model: \"a\\nb\"\nepochs: \"x\\ny\"\n",
         "t.yaml:2:9: 'epochs' of stage train: expected a whole number from 1 to 1000, found the string 'x\\ny'", ""},
        {"- a\n", "t.yaml:1:1: stage train: expected a mapping (key: value), found a list", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        apus_node *n = validate(cases[i].text, &err);
        if (n != NULL)
            fail_msg("%s: was accepted", cases[i].text);
        if (cases[i].message != NULL)
            assert_string_equal(err.message, cases[i].message);
        if (cases[i].hint != NULL)
            assert_string_equal(err.hint, cases[i].hint);
        assert_true(strncmp(err.message, "t.yaml:", 7) == 0 && strchr(err.message, '\n') == NULL);
        assert_null(validate(cases[i].text, NULL));
    }
}

static void places(const char *key, char *text, size_t capacity)
{
    (void)snprintf(text, capacity, "%s", strcmp(key, "colour") == 0 || strcmp(key, "num_train_epochs") == 0 ? "the garden" : "");
}

static void a_key_of_another_place_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message, *hint;
    } cases[] = {{"model: m\ncolour: red\n", "t.yaml:2:1: unknown key 'colour' in stage train", "'colour' is a key of the garden"},
                 {"model: m\nnum_train_epochs: 3\n", "t.yaml:2:1: unknown key 'num_train_epochs' in stage train: use 'epochs'",
                  "'num_train_epochs' is a key of the garden"},
                 {"model: m\nepoch: 3\n", "t.yaml:2:1: unknown key 'epoch' in stage train: did you mean 'epochs'?", ""}};
    apus_params_know_places(places);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        assert_null(validate(cases[i].text, &err));
        assert_string_equal(err.message, cases[i].message);
        assert_string_equal(err.hint, cases[i].hint);
    }
    apus_params_know_places(NULL);
}

static void what_has_no_effect_is_refused(void **state)
{
    (void)state;
    static const char *const kinds[] = {"a", "b", "c", NULL};
    static const apus_param table[] = {
        {PARAM, .name = "judge", .type = APUS_PARAM_BOOL, .fallback = "false"},
        {PARAM, .name = "kind", .type = APUS_PARAM_STRING, .fallback = "a", .choices = kinds},
        {PARAM, .name = "rows", .type = APUS_PARAM_LIST, .item = APUS_PARAM_INT, .flags = APUS_PARAM_NULLABLE},
        {PARAM, .name = "seeds", .type = APUS_PARAM_INT, .fallback = "3", .needs = "judge"},
        {PARAM, .name = "shade", .type = APUS_PARAM_FLOAT, .fallback = "0.5", .needs = "kind=b kind=c"},
        {PARAM, .name = "loss", .type = APUS_PARAM_STRING, .flags = APUS_PARAM_NULLABLE, .needs = "!judge !rows"},
    };
    static const struct {
        const char *text, *message; /* NULL: it is well */
    } cases[] = {
        {"{}", NULL},
        {"judge: true\nseeds: 2\n", NULL},
        {"judge: false\nseeds: 0\n", NULL},
        {"kind: c\nshade: 1\nloss: x\nrows: []\n", NULL},
        {"kind: b\nseeds: 2\n", "t.yaml:2:8: 'seeds' of stage eval has no effect without 'judge'"},
        {"shade: 0.5\n", "t.yaml:1:8: 'shade' of stage eval has no effect without 'kind=b' or 'kind=c'"},
        {"loss: x\nrows: 3\n", "t.yaml:1:7: 'loss' of stage eval has no effect beside 'rows': leave one of them out"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apus_error err = {0};
        apus_node *given = yaml(cases[i].text);
        apus_node *n = apus_params_validate(given, table, sizeof table / sizeof table[0], NULL, "stage eval", &err);
        assert_string_equal(err.message, cases[i].message != NULL ? cases[i].message : "");
        if (cases[i].message == NULL) { /* the defaults were not written */
            apus_node *again = apus_params_validate(n, table, sizeof table / sizeof table[0], NULL, "stage eval", &err);
            assert_true(api->equal(n, again));
            api->release(again);
        } else {
            assert_null(n);
        }
        api->release(n);
        api->release(given);
    }
}

static void a_wrong_table_is_a_bug_of_ours(void **state)
{
    (void)state;
    static const apus_param bad[] = {{PARAM, .name = "x", .type = APUS_PARAM_INT, .fallback = "three"}};
    apus_error err = {0};
    assert_null(apus_params_validate(NULL, bad, 1, NULL, "loss y", &err));
    assert_non_null(strstr(err.message, "the parameter table of loss y is wrong: the default of 'x'"));
}

static void schema_says_what_validation_does(void **state)
{
    (void)state;
    apus_node *s = apus_params_schema(params, N_PARAMS);
    assert_non_null(s);
    assert_json(api->get(s, "type"), "\"object\"");
    assert_json(api->get(s, "required"), "[\"model\"]");
    assert_json(api->get(s, "additionalProperties"), "false");
    const apus_node *p = api->get(s, "properties");
    assert_int_equal(api->length(p), N_PARAMS);
    assert_json(api->get(p, "epochs"), "{\"anyOf\": [{\"type\": \"integer\", \"minimum\": 1, \"maximum\": 1000}, {\"type\": "
                                       "\"string\", \"pattern\": \"\\\\$\\\\{\"}], \"default\": 1}");
    assert_json(api->get(p, "learning_rate"), "{\"anyOf\": [{\"type\": \"number\", \"minimum\": 0}, {\"type\": \"string\", "
                                              "\"pattern\": \"\\\\$\\\\{\"}], \"default\": 5e-05}");
    assert_json(api->get(p, "loss_type"), "{\"anyOf\": [{\"enum\": [\"sigmoid\", \"ipo\", \"hinge\"]}, {\"type\": \"string\", "
                                          "\"pattern\": \"\\\\$\\\\{\"}], \"default\": \"sigmoid\"}");
    assert_json(api->get(p, "model"), "{\"type\": \"string\", \"minLength\": 1, \"description\": \"What is trained.\"}");
    assert_json(api->get(p, "extra"), "{}");
    assert_json(api->get(api->get(p, "tuner"), "x-apus-kind"), "\"tuner\"");
    assert_json(api->get(api->get(p, "memory"), "description"), "\"Unit: bytes.\"");
    assert_json(api->get(p, "max_steps"), "{\"anyOf\": [{\"anyOf\": [{\"type\": \"integer\"}, {\"type\": \"string\", \"pattern\": "
                                          "\"\\\\$\\\\{\"}]}, {\"type\": \"null\"}]}");
    api->release(s);
}

static void suggestions(void **state)
{
    (void)state;
    static const char *const names[] = {"dpo", "learning_rate", "lora_alpha", "cross_entropy", "ipo"};
    static const struct {
        const char *word, *near;
    } cases[] = {
        {"dop", "dpo"},
        {"DPO", "dpo"},
        {"learnig_rate", "learning_rate"},
        {"LoraAlpha", "lora_alpha"},
        {"cros-entropy", "cross_entropy"},
        {"xyz", NULL},
        {"", NULL},
        {"d", NULL},
        {"learning", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *found = apus_did_you_mean(cases[i].word, names, 5);
        if (cases[i].near == NULL)
            assert_null(found);
        else
            assert_string_equal(found, cases[i].near);
    }
    assert_null(apus_did_you_mean(NULL, names, 5));
    char long_word[300];
    memset(long_word, 'a', 299);
    long_word[299] = '\0';
    assert_null(apus_did_you_mean(long_word, names, 5));
}

int main(void)
{
    api = apus_nodes();
    (void)snprintf(folder, sizeof folder, "%s/config-XXXXXX", APUS_TEST_TMP);
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalars_follow_the_core_schema),
        cmocka_unit_test(nodes_know_their_place),
        cmocka_unit_test(aliases_are_copies),
        cmocka_unit_test(json_is_yaml),
        cmocka_unit_test(wrong_yaml_names_the_place),
        cmocka_unit_test(yaml_is_bounded),
        cmocka_unit_test(includes_merge),
        cmocka_unit_test(overrides_are_set),
        cmocka_unit_test(references_are_filled_in),
        cmocka_unit_test(wrong_files_give_one_line),
        cmocka_unit_test(expansion_is_bounded),
        cmocka_unit_test(defaults_are_filled_in),
        cmocka_unit_test(values_are_typed),
        cmocka_unit_test(filled_in_strings_count_as_numbers),
        cmocka_unit_test(wrong_values_give_one_line),
        cmocka_unit_test(a_key_of_another_place_is_named),
        cmocka_unit_test(what_has_no_effect_is_refused),
        cmocka_unit_test(a_wrong_table_is_a_bug_of_ours),
        cmocka_unit_test(schema_says_what_validation_does),
        cmocka_unit_test(suggestions),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return apus_remove_tree(folder, NULL) == APUS_OK ? failed : 1;
}
