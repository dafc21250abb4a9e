/*
 * What is done to the sums of a product before they are its result: an activation, or the gate that another product's sums go through.
 * Sums of some rows and a group's columns lie in a thread's own memory, in its nearer caches.
 */
#ifndef APUS_CPU_ACTIVATE_H
#define APUS_CPU_ACTIVATE_H

#include "functions.h"

enum { ACT_NONE, ACT_RELU, ACT_SILU, ACT_TANH, ACT_GELU_ERF, ACT_GELU_TANH, ACT_SWIGLU };

enum {
    ACT_ROWS = 16 * HIGH,             /* at once: whole panels of the left factor */
    ACT_ROOM = ACT_ROWS * (int)GROUP, /* floats of one product's sums, GROUP a row */
};

LANES_INLINE vn activated(int act, vn x, vn other)
{
    switch (act) {
    case ACT_RELU:
        return n_relu(x);
    case ACT_SILU:
        return n_silu(x);
    case ACT_TANH:
        return n_tanh(x);
    case ACT_GELU_ERF:
        return n_gelu_erf(x);
    case ACT_GELU_TANH:
        return n_gelu_tanh(x);
    default:
        return n_swiglu(x, other);
    }
}

LANES_INLINE void activate_as(int act, int halves, const float *sums, const float *others, int64_t rows, int64_t columns, void *y, int64_t ld)
{
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t c = 0; c < columns; c += WIDE) {
            const vn x = n_load(sums + i * GROUP + c), other = act == ACT_SWIGLU ? n_load(others + i * GROUP + c) : x;
            n_give(halves, element_to(y, halves, i * ld + c), activated(act, x, other), columns - c);
        }
    }
}

/* y [rows, columns], ld apart, of sums [rows, GROUP]; others: what a gate's are multiplied with. */
static void activate(int act, int halves, const float *sums, const float *others, int64_t rows, int64_t columns, void *y, int64_t ld)
{
#define ACTIVATE(act)                                                                                                                                \
    case act:                                                                                                                                        \
        if (halves) {                                                                                                                                \
            activate_as(act, 1, sums, others, rows, columns, y, ld);                                                                                 \
        } else {                                                                                                                                     \
            activate_as(act, 0, sums, others, rows, columns, y, ld);                                                                                 \
        }                                                                                                                                            \
        return;
    switch (act) {
        ACTIVATE(ACT_RELU)
        ACTIVATE(ACT_SILU)
        ACTIVATE(ACT_TANH)
        ACTIVATE(ACT_GELU_ERF)
        ACTIVATE(ACT_GELU_TANH)
        ACTIVATE(ACT_SWIGLU)
    default:
        return;
    }
#undef ACTIVATE
}

#endif
