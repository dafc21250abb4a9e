/*
 * core/template/tests: what stands behind `is`: Jinja's tests by name.
 */
#include "value.h"

#include <string.h>

#define TEST(name)        static bool is_##name(tctx *c, tval v, const tcall *call)
#define NO_ARGUMENT(what) apus_tpl_bind(c, "test '" what "'", "", 0, call, NULL)

static tval other(tctx *c, const tcall *call)
{
    tval a[1];
    apus_tpl_bind(c, "this test", "other", 1, call, a);
    return a[0];
}

TEST(defined)
{
    NO_ARGUMENT("defined");
    return v.kind != T_UNDEFINED;
}
TEST(undefined)
{
    NO_ARGUMENT("undefined");
    return v.kind == T_UNDEFINED;
}
TEST(none)
{
    NO_ARGUMENT("none");
    return v.kind == T_NONE;
}
TEST(boolean)
{
    NO_ARGUMENT("boolean");
    return v.kind == T_BOOL;
}
TEST(true)
{
    NO_ARGUMENT("true");
    return v.kind == T_BOOL && v.i != 0;
}
TEST(false)
{
    NO_ARGUMENT("false");
    return v.kind == T_BOOL && v.i == 0;
}
TEST(integer)
{
    NO_ARGUMENT("integer");
    return v.kind == T_INT;
}
TEST(float)
{
    NO_ARGUMENT("float");
    return v.kind == T_FLOAT;
}
TEST(number)
{
    NO_ARGUMENT("number");
    return v.kind == T_INT || v.kind == T_FLOAT || v.kind == T_BOOL;
}
TEST(string)
{
    NO_ARGUMENT("string");
    return v.kind == T_STR;
}
TEST(mapping)
{
    NO_ARGUMENT("mapping");
    return v.kind == T_DICT;
}
TEST(sequence)
{
    NO_ARGUMENT("sequence");
    return v.kind == T_STR || v.kind == T_LIST || v.kind == T_TUPLE || v.kind == T_DICT || v.kind == T_RANGE || v.kind == T_UNDEFINED;
}
TEST(iterable)
{
    NO_ARGUMENT("iterable");
    return apus_tpl_iterable(v) || v.kind == T_LOOP;
}
TEST(callable)
{
    NO_ARGUMENT("callable");
    return v.kind == T_MACRO || v.kind == T_FUNCTION || v.kind == T_METHOD || v.kind == T_JOINER || v.kind == T_LOOP || v.kind == T_UNDEFINED;
}
TEST(escaped)
{
    NO_ARGUMENT("escaped");
    return v.kind == T_STR && v.s->markup;
}

static bool every_letter(tctx *c, tval v, const tcall *call, const char *method)
{
    apus_tpl_bind(c, "this test", "", 0, call, NULL);
    tstr *s = apus_tpl_to_str(c, v);
    const tstr name = {.bytes = method, .length = strlen(method)};
    return apus_tpl_truth(apus_tpl_method(T_STR, &name)->call(c, apus_tpl_sval(s), call));
}
TEST(lower)
{
    return every_letter(c, v, call, "islower");
}
TEST(upper)
{
    return every_letter(c, v, call, "isupper");
}

static bool remainder_is(tctx *c, tval v, int64_t of, int64_t is)
{
    return apus_tpl_equal(c, apus_tpl_binary(c, '%', v, apus_tpl_int(of)), apus_tpl_int(is));
}
TEST(odd)
{
    NO_ARGUMENT("odd");
    return remainder_is(c, v, 2, 1);
}
TEST(even)
{
    NO_ARGUMENT("even");
    return remainder_is(c, v, 2, 0);
}
TEST(divisibleby)
{
    tval a[1];
    apus_tpl_bind(c, "test 'divisibleby'", "num", 1, call, a);
    return apus_tpl_equal(c, apus_tpl_binary(c, '%', v, a[0]), apus_tpl_int(0));
}

TEST(eq)
{
    return apus_tpl_equal(c, v, other(c, call));
}
TEST(ne)
{
    return !apus_tpl_equal(c, v, other(c, call));
}
TEST(lt)
{
    return apus_tpl_compare(c, v, other(c, call), "<") == -1;
}
TEST(gt)
{
    return apus_tpl_compare(c, v, other(c, call), ">") == 1;
}
TEST(le)
{
    int order = apus_tpl_compare(c, v, other(c, call), "<=");
    return order == -1 || order == 0;
}
TEST(ge)
{
    int order = apus_tpl_compare(c, v, other(c, call), ">=");
    return order == 1 || order == 0;
}
TEST(in)
{
    tval a[1];
    apus_tpl_bind(c, "test 'in'", "seq", 1, call, a);
    return apus_tpl_contains(c, a[0], v);
}
TEST(sameas)
{
    tval to = other(c, call);
    if (v.kind != to.kind)
        return false;
    switch (v.kind) {
    case T_NONE:
        return true;
    case T_BOOL:
    case T_INT:
        return v.i == to.i;
    case T_FLOAT:
        return v.f == to.f;
    case T_STR:
        return v.s == to.s || (v.s->bytes == to.s->bytes && v.s->length == to.s->length);
    default:
        return v.p == to.p;
    }
}
TEST(filter)
{
    NO_ARGUMENT("filter");
    return v.kind == T_STR && apus_tpl_filter(v.s->bytes, v.s->length) != NULL;
}
TEST(test)
{
    NO_ARGUMENT("test");
    return v.kind == T_STR && apus_tpl_test(v.s->bytes, v.s->length) != NULL;
}

static const ttest tests[] = {
    {"defined", is_defined},
    {"undefined", is_undefined},
    {"none", is_none},
    {"boolean", is_boolean},
    {"true", is_true},
    {"false", is_false},
    {"integer", is_integer},
    {"float", is_float},
    {"number", is_number},
    {"string", is_string},
    {"mapping", is_mapping},
    {"sequence", is_sequence},
    {"iterable", is_iterable},
    {"callable", is_callable},
    {"escaped", is_escaped},
    {"lower", is_lower},
    {"upper", is_upper},
    {"odd", is_odd},
    {"even", is_even},
    {"divisibleby", is_divisibleby},
    {"==", is_eq},
    {"eq", is_eq},
    {"equalto", is_eq},
    {"!=", is_ne},
    {"ne", is_ne},
    {"<", is_lt},
    {"lt", is_lt},
    {"lessthan", is_lt},
    {">", is_gt},
    {"gt", is_gt},
    {"greaterthan", is_gt},
    {"<=", is_le},
    {"le", is_le},
    {">=", is_ge},
    {"ge", is_ge},
    {"in", is_in},
    {"sameas", is_sameas},
    {"filter", is_filter},
    {"test", is_test},
};

const ttest *apus_tpl_test(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (strlen(tests[i].name) == length && memcmp(tests[i].name, name, length) == 0)
            return &tests[i];
    return NULL;
}
