/*
 * core/config/scalar: what a word of a YAML file means (the core schema of YAML 1.2), and how a message speaks of a
 * value. Knows nothing of documents.
 */
#include "config/scalar.h"
#include "value/node.h"

#include <math.h>
#include <string.h>

static int is(const char *text, size_t length, const char *words)
{
    for (const char *w = words; *w != '\0';) {
        size_t n = strcspn(w, " ");
        if (n == length && memcmp(w, text, n) == 0)
            return 1;
        w += n + (w[n] == ' ');
    }
    return 0;
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?  whole: no point, no exponent. */
static int is_decimal(const char *p, size_t length, int *whole)
{
    const char *end = p + length;
    size_t before = 0, after = 0;
    *whole = 1;
    if (p < end && (*p == '-' || *p == '+'))
        p++;
    for (; p < end && *p >= '0' && *p <= '9'; p++)
        before++;
    if (p < end && *p == '.') {
        *whole = 0;
        for (p++; p < end && *p >= '0' && *p <= '9'; p++)
            after++;
    }
    if (before + after == 0)
        return 0;
    if (p < end && (*p == 'e' || *p == 'E')) {
        *whole = 0;
        p++;
        if (p < end && (*p == '-' || *p == '+'))
            p++;
        if (p == end)
            return 0;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
    }
    return p == end;
}

/* Digits of a base into v; 0 when it does not fit an int64 or is no such number. */
static int read_digits(const char *p, size_t length, unsigned base, int negative, int64_t *v)
{
    uint64_t u = 0, limit = (uint64_t)INT64_MAX + (uint64_t)negative;
    if (length == 0)
        return 0;
    for (size_t i = 0; i < length; i++) {
        char c = p[i];
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
                                            : 99;
        if (d >= base || u > (limit - d) / base)
            return 0;
        u = u * base + d;
    }
    *v = negative ? (int64_t)(0 - u) : (int64_t)u;
    return 1;
}

apus_node *apus_scalar_plain(const char *text, size_t length)
{
    const apus_node_api *api = apus_nodes();
    int64_t v = 0;
    double d = 0;
    int whole = 0;
    if (length == 0 || is(text, length, "~ null Null NULL"))
        return api->make_null();
    if (is(text, length, "true True TRUE"))
        return api->make_bool(1);
    if (is(text, length, "false False FALSE"))
        return api->make_bool(0);
    if (length > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'o') && read_digits(text + 2, length - 2, text[1] == 'x' ? 16 : 8, 0, &v))
        return api->make_int(v);
    if (is_decimal(text, length, &whole)) {
        size_t sign = text[0] == '-' || text[0] == '+';
        if (whole && read_digits(text + sign, length - sign, 10, text[0] == '-', &v))
            return api->make_int(v);
        if (!apus_read_double(text, length, &d))
            return NULL;
        return api->make_float(d);
    }
    if (is(text, length, ".inf .Inf .INF +.inf +.Inf +.INF"))
        return api->make_float(INFINITY);
    if (is(text, length, "-.inf -.Inf -.INF"))
        return api->make_float(-INFINITY);
    if (is(text, length, ".nan .NaN .NAN"))
        return api->make_float(NAN);
    return api->make_string(text, length);
}

const char *apus_scalar_found(const apus_node *n, char *buffer, size_t capacity)
{
    const apus_node_api *api = apus_nodes();
    char text[64];
    size_t length = 0;
    const char *s = api->as_string(n, &length);
    switch (api->kind(n)) {
    case APUS_NODE_BOOL:
        (void)snprintf(buffer, capacity, "%s", api->as_bool(n, 0) ? "true" : "false");
        break;
    case APUS_NODE_INT:
        (void)snprintf(buffer, capacity, "%lld", (long long)api->as_int(n, 0));
        break;
    case APUS_NODE_FLOAT:
        (void)apus_format_double(text, api->as_float(n, 0));
        (void)snprintf(buffer, capacity, "%s", text);
        break;
    case APUS_NODE_STRING:
        (void)snprintf(buffer, capacity, "the string '%s'", apus_show(text, sizeof text, s, length));
        break;
    case APUS_NODE_LIST:
        (void)snprintf(buffer, capacity, "a list");
        break;
    case APUS_NODE_MAP:
        (void)snprintf(buffer, capacity, "a mapping");
        break;
    default:
        (void)snprintf(buffer, capacity, "nothing (null)");
    }
    return buffer;
}

const char *apus_scalar_at(const apus_node *n, char *buffer, size_t capacity)
{
    if (capacity < 3)
        return "";
    (void)apus_nodes()->where(n, buffer, capacity - 2);
    if (buffer[0] != '\0')
        strcat(buffer, ": ");
    return buffer;
}
