/*
 * What the programs share that time products of a linear alone (products.py runs them in turn): the protocol, the operands, the clock.
 *
 * A request is a line of standard input, "OP M N K DTYPE OPERANDS"; its answer a line of standard output: the median of its calls in
 * seconds, or "no". OP: forward y [m, n] = x [m, k] W^T; dx [m, k] = dy [m, n] W; dw [n, k] = dy^T x, with W [n, k]. DTYPE: what products
 * are computed in. OPERANDS: "float", all of them float32 as training has them; "packed", W laid out ahead as the program likes it; "ready",
 * every operand so, which shows what conversions cost. y, dx and dw are float32.
 *
 * Each call meets another W (of dw: another result) of as many as no cache holds together.
 */
#ifndef BENCH_PRODUCTS_H
#define BENCH_PRODUCTS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COLD_BYTES = 160 << 20, COPIES_MOST = 512, CALLS_LEAST = 5, CALLS_MOST = 2000 };

typedef struct request {
    char op[16], dtype[16], operands[16];
    int64_t m, n, k;
} request;

/* How many W that take so many bytes each. */
static inline int copies_of(size_t bytes)
{
    const size_t n = COLD_BYTES / bytes + 2;
    return n < COPIES_MOST ? (int)n : COPIES_MOST;
}

static inline void fill(float *p, size_t n)
{
    uint32_t x = 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = ((float)(x >> 8) - 8388608.0f) * 1e-8f;
    }
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int by_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* call(context, i): the product with the i-th of `copies` W. */
static inline double median_seconds(void (*call)(void *context, int i), void *context, int copies, double budget)
{
    static double seconds[CALLS_MOST];
    int n = 0;
    call(context, copies - 1);
    for (const double begin = now(); n < CALLS_MOST && (n < CALLS_LEAST || now() - begin < budget); n++) {
        const double t = now();
        call(context, n % copies);
        seconds[n] = now() - t;
    }
    qsort(seconds, (size_t)n, sizeof *seconds, by_seconds);
    return seconds[n / 2];
}

/* serve(request, budget): seconds, or less than 0. */
static inline int answer_requests(double (*serve)(const request *r, double budget), double budget)
{
    char line[256];
    request r;
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "%15s %ld %ld %ld %15s %15s", r.op, &r.m, &r.n, &r.k, r.dtype, r.operands) != 6)
            return 2;
        const double seconds = serve(&r, budget);
        if (seconds < 0)
            printf("no\n");
        else
            printf("%.9f\n", seconds);
        fflush(stdout);
    }
    return 0;
}

#endif
