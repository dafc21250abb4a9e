/*
 * core/template/operators: arithmetic and joining, with Python's rules; integers have 64 bits and overflow is an error.
 */
#include "value.h"

#include <math.h>
#include <string.h>

static const char *spelled(int op)
{
    switch (op) {
    case 'f':
        return "//";
    case 'p':
        return "** or pow()";
    case '+':
        return "+";
    case '-':
        return "-";
    case '*':
        return "*";
    case '/':
        return "/";
    default:
        return "%";
    }
}

T_NORETURN static void overflow(tctx *c)
{
    apus_tpl_fail(&c->base, APUS_E_INVALID, "the integer result does not fit 64 bits");
}

T_NORETURN static void by_zero(tctx *c)
{
    apus_tpl_fail(&c->base, APUS_E_INVALID, "division by zero");
}

static tval int_power(tctx *c, int64_t base, int64_t exponent)
{
    if (exponent < 0) {
        if (base == 0)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "0.0 cannot be raised to a negative power");
        return apus_tpl_float(pow((double)base, (double)exponent));
    }
    int64_t result = 1;
    for (;;) {
        if (exponent & 1 && __builtin_mul_overflow(result, base, &result))
            overflow(c);
        exponent >>= 1;
        if (exponent == 0)
            return apus_tpl_int(result);
        if (__builtin_mul_overflow(base, base, &base))
            overflow(c);
    }
}

static tval ints(tctx *c, int op, int64_t a, int64_t b)
{
    int64_t r;
    switch (op) {
    case '+':
        if (__builtin_add_overflow(a, b, &r))
            overflow(c);
        return apus_tpl_int(r);
    case '-':
        if (__builtin_sub_overflow(a, b, &r))
            overflow(c);
        return apus_tpl_int(r);
    case '*':
        if (__builtin_mul_overflow(a, b, &r))
            overflow(c);
        return apus_tpl_int(r);
    case '/':
        if (b == 0)
            by_zero(c);
        return apus_tpl_float((double)((long double)a / (long double)b));
    case 'p':
        return int_power(c, a, b);
    default:
        if (b == 0)
            by_zero(c);
        if (b == -1) {
            if (op == '%')
                return apus_tpl_int(0);
            if (a == INT64_MIN)
                overflow(c);
            return apus_tpl_int(-a);
        }
        r = a % b;
        bool down = r != 0 && (r < 0) != (b < 0);
        return apus_tpl_int(op == '%' ? r + (down ? b : 0) : a / b - (down ? 1 : 0));
    }
}

/* CPython's float_divmod. */
static tval float_divmod(tctx *c, int op, double a, double b)
{
    if (b == 0)
        by_zero(c);
    double mod = fmod(a, b), div = (a - mod) / b, whole;
    if (mod != 0) {
        if ((b < 0) != (mod < 0)) {
            mod += b;
            div -= 1;
        }
    } else
        mod = copysign(0, b);
    if (div != 0) {
        whole = floor(div);
        if (div - whole > 0.5)
            whole += 1;
    } else
        whole = copysign(0, a / b);
    return apus_tpl_float(op == '%' ? mod : whole);
}

static tval floats(tctx *c, int op, double a, double b)
{
    switch (op) {
    case '+':
        return apus_tpl_float(a + b);
    case '-':
        return apus_tpl_float(a - b);
    case '*':
        return apus_tpl_float(a * b);
    case '/':
        if (b == 0)
            by_zero(c);
        return apus_tpl_float(a / b);
    case 'p': {
        if (a == 0 && b < 0)
            apus_tpl_fail(&c->base, APUS_E_INVALID, "0.0 cannot be raised to a negative power");
        if (a < 0 && b != floor(b) && isfinite(a) && isfinite(b))
            apus_tpl_fail(&c->base, APUS_E_UNSUPPORTED, "a complex number: a negative number to a fractional power");
        double r = pow(a, b);
        if (isinf(r) && isfinite(a) && isfinite(b))
            apus_tpl_fail(&c->base, APUS_E_INVALID, "the power is too large for a float");
        return apus_tpl_float(r);
    }
    default:
        return float_divmod(c, op, a, b);
    }
}

static tval repeat(tctx *c, tval v, int64_t times)
{
    uint64_t n = times < 0 ? 0 : (uint64_t)times, total;
    if (v.kind == T_STR) {
        if (v.s->length == 0)
            n = 0;
        if (__builtin_mul_overflow(n, (uint64_t)v.s->length, &total) || total > c->limits.bytes)
            apus_tpl_fail(&c->base, APUS_E_MEMORY, "a string of more than %zu MiB", c->limits.bytes >> 20);
        tbuf b = {.c = c, .markup = v.s->markup};
        for (; n > 0; n--)
            apus_tpl_put_str(&b, v.s);
        return apus_tpl_sval(apus_tpl_take(&b));
    }
    if (v.l->n == 0)
        n = 0;
    if (__builtin_mul_overflow(n, (uint64_t)v.l->n, &total) || total > c->limits.memory / sizeof(tval))
        apus_tpl_fail(&c->base, APUS_E_MEMORY, "a list that does not fit the memory limit");
    tlist *l = apus_tpl_list(&c->base, (size_t)total);
    apus_tpl_spend(c, total);
    for (; n > 0; n--)
        for (size_t i = 0; i < v.l->n; i++)
            l->items[l->n++] = v.l->items[i];
    return (tval){.kind = v.kind, .l = l};
}

static bool integral(tval v)
{
    return v.kind == T_INT || v.kind == T_BOOL;
}

tval apus_tpl_binary(tctx *c, int op, tval a, tval b)
{
    if (op == '%' && a.kind == T_STR)
        return apus_tpl_percent(c, a.s, b);
    if (a.kind == T_UNDEFINED || b.kind == T_UNDEFINED)
        apus_tpl_use_undefined(c, a.kind == T_UNDEFINED ? a : b);
    if (integral(a) && integral(b))
        return ints(c, op, a.i, b.i);
    if ((integral(a) || a.kind == T_FLOAT) && (integral(b) || b.kind == T_FLOAT))
        return floats(c, op, a.kind == T_FLOAT ? a.f : (double)a.i, b.kind == T_FLOAT ? b.f : (double)b.i);
    bool sequence_a = a.kind == T_STR || a.kind == T_LIST || a.kind == T_TUPLE;
    bool sequence_b = b.kind == T_STR || b.kind == T_LIST || b.kind == T_TUPLE;
    if (op == '*' && sequence_a && integral(b))
        return repeat(c, a, b.i);
    if (op == '*' && integral(a) && sequence_b)
        return repeat(c, b, a.i);
    if (op == '+' && a.kind == T_STR && b.kind == T_STR)
        return apus_tpl_sval(apus_tpl_concat(c, a.s, b.s));
    if (op == '+' && a.kind == b.kind && sequence_a) {
        tlist *l = apus_tpl_list(&c->base, a.l->n + b.l->n);
        apus_tpl_spend(c, a.l->n + b.l->n);
        if (a.l->n > 0)
            memcpy(l->items, a.l->items, a.l->n * sizeof *l->items);
        if (b.l->n > 0)
            memcpy(l->items + a.l->n, b.l->items, b.l->n * sizeof *l->items);
        l->n = a.l->n + b.l->n;
        return (tval){.kind = a.kind, .l = l};
    }
    if (op == '+' && a.kind == T_STR)
        apus_tpl_fail(&c->base, APUS_E_INVALID, "can only concatenate str (not \"%s\") to str", apus_tpl_type(b));
    apus_tpl_fail(&c->base, APUS_E_INVALID, "unsupported operand type(s) for %s: '%s' and '%s'", spelled(op), apus_tpl_type(a), apus_tpl_type(b));
}
