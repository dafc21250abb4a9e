/*
 * All kernels for one instruction set: included by portable.c and avx2.c, which name the table (APUS_CPU_TABLE) and are
 * compiled with that set's options. Everything but the table is static.
 */
#include "attention.h"
#include "attention_grad.h"
#include "cpu.h"
#include "elementwise.h"
#include "head.h"
#include "index.h"
#include "matrix.h"
#include "norm.h"

const apus_cpu_isa APUS_CPU_TABLE = {
    .name = APUS_CPU_NAME,
    .kernels =
        {
#define X(id, in, out) [APUS_CPU_##id] = {.run = run_##id},
            APUS_CPU_ELEMENTWISE(X)
#undef X
#define X(id, then, flags, types, in, out) [APUS_CPU_##id] = {.run = run_##id, .scratch = scratch_##id},
                APUS_CPU_OTHERS(X)
#undef X
                    [APUS_CPU_linear] = {.run = run_linear, .scratch = scratch_linear, .run_siblings = run_siblings_linear},
            [APUS_CPU_linear_add] = {.run = run_linear_add, .scratch = scratch_linear},
            [APUS_CPU_linear_relu] = {.run = run_linear_relu, .scratch = scratch_linear_act},
            [APUS_CPU_linear_silu] = {.run = run_linear_silu, .scratch = scratch_linear_act},
            [APUS_CPU_linear_tanh] = {.run = run_linear_tanh, .scratch = scratch_linear_act},
            [APUS_CPU_linear_gelu] = {.run = run_linear_gelu, .scratch = scratch_linear_act},
            [APUS_CPU_linear_swiglu] = {.run = run_linear_swiglu, .scratch = scratch_linear_act},
            [APUS_CPU_linear_dx_add] = {.run = run_linear_dx_add, .scratch = scratch_linear_dx},
            [APUS_CPU_linear_twice] = {.run = run_linear_twice, .scratch = scratch_linear_twice},
            [APUS_CPU_linear_twice_add] = {.run = run_linear_twice_add, .scratch = scratch_linear_twice_add},
            [APUS_CPU_linear_dx_twice] = {.run = run_linear_dx_twice, .scratch = scratch_linear_dx_twice},
            [APUS_CPU_linear_dx_twice_add] = {.run = run_linear_dx_twice_add, .scratch = scratch_linear_dx_twice},
            [APUS_CPU_rope_attention_cached] = {.run = run_rope_attention_cached, .scratch = scratch_rope_attention_cached},
        },
    .pack_weight = pack_weight,
};
