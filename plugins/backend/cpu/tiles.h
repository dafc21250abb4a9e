/*
 * What kernels share: threads, what is added to a product's elements, the check of an index.
 */
#ifndef APUS_CPU_TILES_H
#define APUS_CPU_TILES_H

#include "cpu.h"
#include "lanes.h"

#include <omp.h>

/* Where a product puts a sum: y = sum + bias[j] + add[i * ld_add + j]; either may be NULL. add may be y's memory. halves: y is bfloat16. */
typedef struct epilogue {
    const float *bias, *add;
    int64_t ld_add;
    int halves;
} epilogue;

static int threads_of(const apus_kernel_call *call)
{
    return apus_cpu_of(call)->threads;
}

/* Rows [begin, end) of what a call computes. */
typedef void rows_fn(const apus_kernel_call *c, int64_t begin, int64_t end);

/* All rows: on this thread alone where they are fewer elements than starting the others takes. A parallel region of one thread takes half
 * a microsecond too, as long as such ops need for one token. */
static void over_rows(const apus_kernel_call *c, int64_t rows, int64_t elements, int64_t least, rows_fn *fn)
{
    if (elements <= least) {
        fn(c, 0, rows);
        return;
    }
#pragma omp parallel num_threads(threads_of(c))
    {
        const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
        fn(c, rows * me / threads, rows * (me + 1) / threads);
    }
}

static apus_status check_index(const char *what, int64_t index, int64_t limit, int64_t at, apus_error *err)
{
    if (index >= 0 && index < limit) {
        return APUS_OK;
    }
    return apus_fail(err, APUS_E_INVALID, "%s %lld at place %lld is outside 0 … %lld", what, (long long)index, (long long)at, (long long)limit - 1);
}

#endif
