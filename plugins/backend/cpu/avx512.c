/* The kernels with AVX-512 (F, BW, DQ, VL) AVX512-BF16 and AVX512-VNNI; empty where the compiler does not target x86-64. */
#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define APUS_CPU_TABLE apus_cpu_avx512
#define APUS_CPU_NAME  "avx512"
#include "isa.h"
#else
typedef int apus_cpu_no_avx512;
#endif
