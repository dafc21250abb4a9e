/*
 * core/value/number: doubles to text and back, exactly and whatever the locale: the shortest digits that read back,
 * laid out as Python does.
 */
#include "value/node.h"

#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static locale_t c_locale;
static pthread_once_t c_locale_once = PTHREAD_ONCE_INIT;

static void c_locale_start(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

int apus_read_double(const char *text, size_t length, double *v)
{
    static const double power[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                   1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *p = text, *end = text + length;
    int negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+'))
        p++;
    uint64_t digits = 0;
    int64_t exponent = 0;
    int seen = 0, kept = 0, after_point = 0;
    for (; p < end && (is_digit(*p) || (*p == '.' && !after_point)); p++) {
        if (*p == '.') {
            after_point = 1;
            continue;
        }
        seen = 1;
        exponent -= after_point;
        if (kept < 19) {
            digits = digits * 10 + (uint64_t)(*p - '0');
            kept += digits != 0;
        } else {
            kept = 20; /* more digits than an uint64 keeps: for strtod */
        }
    }
    if (!seen)
        return 0;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        int down = p < end && *p == '-';
        if (p < end && (*p == '-' || *p == '+'))
            p++;
        int64_t e = 0;
        if (p == end || !is_digit(*p))
            return 0;
        for (; p < end && is_digit(*p); p++)
            e = e < 1000000 ? e * 10 + (*p - '0') : e;
        exponent += down ? -e : e;
    }
    if (p != end)
        return 0;
    if (kept < 20 && digits < ((uint64_t)1 << 53) && exponent >= -22 && exponent <= 22) {
        /* Both operands are exact doubles, so one division or product is rounded once: exactly what strtod gives. */
        double d = (double)digits;
        d = exponent < 0 ? d / power[-exponent] : d * power[exponent];
        *v = negative ? -d : d;
        return 1;
    }
    pthread_once(&c_locale_once, c_locale_start);
    char room[64], *copy = length < sizeof room ? room : malloc(length + 1);
    if (copy == NULL)
        return 0;
    memcpy(copy, text, length);
    copy[length] = '\0';
    *v = c_locale != (locale_t)0 ? strtod_l(copy, NULL, c_locale) : strtod(copy, NULL);
    if (copy != room)
        free(copy);
    return 1;
}

size_t apus_format_double(char *buffer, double v)
{
    if (isnan(v))
        return (size_t)sprintf(buffer, "NaN");
    if (isinf(v))
        return (size_t)sprintf(buffer, v < 0 ? "-Infinity" : "Infinity");
    /* The digits of %e, whatever stands for the point in this locale. 15 digits always survive except near zero. */
    char text[40], digits[20];
    int n = 0, exponent = 0;
    for (int precision = v != 0 && fabs(v) < 2.3e-308 ? 1 : 15; precision <= 17; precision++) {
        (void)snprintf(text, sizeof text, "%.*e", precision - 1, v);
        const char *p = text;
        for (n = 0; *p != 'e'; p++)
            if (is_digit(*p))
                digits[n++] = *p;
        exponent = atoi(p + 1);
        char exact[48];
        int length = snprintf(exact, sizeof exact, "%s%.*se%d", v < 0 ? "-" : "", n, digits, exponent - (n - 1));
        double back = 0;
        if (apus_read_double(exact, (size_t)length, &back) && back == v)
            break;
    }
    while (n > 1 && digits[n - 1] == '0')
        n--;
    char *o = buffer;
    if (signbit(v))
        *o++ = '-';
    if (exponent < -4 || exponent >= 16) {
        *o++ = digits[0];
        if (n > 1) {
            *o++ = '.';
            memcpy(o, digits + 1, (size_t)n - 1);
            o += n - 1;
        }
        o += sprintf(o, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        if (exponent < 0) {
            *o++ = '0';
            *o++ = '.';
            for (int i = -1; i > exponent; i--)
                *o++ = '0';
        }
        for (int i = 0; i < n || i <= exponent; i++) {
            *o++ = i < n ? digits[i] : '0';
            if (i == exponent) {
                *o++ = '.';
                if (i + 1 >= n)
                    *o++ = '0';
            }
        }
        *o = '\0';
    }
    return (size_t)(o - buffer);
}
