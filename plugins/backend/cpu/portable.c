/* The kernels at the compiler's baseline: any machine. */
#define APUS_CPU_TABLE apus_cpu_portable
#define APUS_CPU_NAME  "portable"
#include "isa.h"
