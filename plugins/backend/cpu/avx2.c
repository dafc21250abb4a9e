/* The kernels with AVX2, FMA and F16C; empty where the compiler does not target x86-64. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define APUS_CPU_TABLE apus_cpu_avx2
#define APUS_CPU_NAME  "avx2"
#include "isa.h"
#else
typedef int apus_cpu_no_avx2;
#endif
