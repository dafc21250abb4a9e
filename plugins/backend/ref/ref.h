/* The reference backend's own parts: what its files share. All numbers are double; every loop is the formula as written. */
#ifndef APUS_BACKEND_REF_H
#define APUS_BACKEND_REF_H

#include <apus/kernel.h>

#include <string.h>

/* Kernel tables, one per file: the vtables of ref.c's components. */
extern const apus_kernels_ops apus_ref_elementwise, apus_ref_index, apus_ref_matrix, apus_ref_norm, apus_ref_attention;

#define APUS_REF_TABLE(name, table)                                                                                                                  \
    const apus_kernels_ops name = {                                                                                                                  \
        .size = sizeof(apus_kernels_ops), .backend = "ref", .real = APUS_F64, .kernels = table, .n_kernels = sizeof(table) / sizeof((table)[0])}

extern const apus_dtype apus_ref_encodings[]; /* every encoding that apus/blocks.h reads */

/* Row r of a weight [rows, columns] in any encoding. tmp: float [columns]. */
void apus_ref_row(const apus_view *w, int64_t r, double *out, float *tmp);

static inline int64_t apus_ref_count(const apus_view *v)
{
    int64_t n = 1;
    for (int32_t d = 0; d < v->ndim; d++)
        n *= v->dims[d];
    return n;
}

/* Output k to add into: zeroed, unless the plan wants it added to what is there. NULL: nobody needs it. */
static inline double *apus_ref_sum(const apus_kernel_call *c, uint32_t k)
{
    double *p = c->out[k].data;
    if (p != NULL && (c->accumulate >> k & 1) == 0)
        memset(p, 0, (size_t)apus_ref_count(&c->out[k]) * sizeof *p);
    return p;
}

#endif
