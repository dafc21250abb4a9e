/*
 * core/graph/dtype: sizes and names of element types and block encodings. Knows no conversion.
 */
#include "graph/graph.h"

#include <strings.h>

static const struct {
    apus_dtype type;
    const char *name;
    uint32_t block, bytes; /* elements and bytes of a block */
} types[] = {
    {APUS_REAL, "REAL", 1, 0},     {APUS_F32, "F32", 1, 4},         {APUS_F64, "F64", 1, 8},       {APUS_F16, "F16", 1, 2},
    {APUS_BF16, "BF16", 1, 2},     {APUS_I32, "I32", 1, 4},         {APUS_I64, "I64", 1, 8},       {APUS_U8, "U8", 1, 1},
    {APUS_Q4_0, "Q4_0", 32, 18},   {APUS_Q4_1, "Q4_1", 32, 20},     {APUS_Q5_0, "Q5_0", 32, 22},   {APUS_Q5_1, "Q5_1", 32, 24},
    {APUS_Q8_0, "Q8_0", 32, 34},   {APUS_IQ4_NL, "IQ4_NL", 32, 18}, {APUS_Q2_K, "Q2_K", 256, 84},  {APUS_Q3_K, "Q3_K", 256, 110},
    {APUS_Q4_K, "Q4_K", 256, 144}, {APUS_Q5_K, "Q5_K", 256, 176},   {APUS_Q6_K, "Q6_K", 256, 210},
};
enum { N_TYPES = sizeof types / sizeof types[0] };

size_t apus_dtype_size(apus_dtype t)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].type == t)
            return types[i].block == 1 ? types[i].bytes : 0;
    return 0;
}

size_t apus_dtype_row_bytes(apus_dtype t, int64_t n)
{
    t &= ~APUS_PACKED; /* but for what fills up its last panel */
    for (size_t i = 0; i < N_TYPES && n >= 0; i++)
        if (types[i].type == t)
            return n % types[i].block == 0 ? (size_t)(n / types[i].block) * types[i].bytes : 0;
    return 0;
}

const char *apus_dtype_name(apus_dtype t)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].type == (t & ~APUS_PACKED))
            return t & APUS_PACKED ? "packed" : types[i].name;
    return "unknown";
}

apus_dtype apus_dtype_parse(const char *name)
{
    static const char *const long_names[][2] = {{"float32", "F32"}, {"float64", "F64"}, {"float16", "F16"}, {"bfloat16", "BF16"}};
    for (size_t i = 0; i < sizeof long_names / sizeof long_names[0] && name != NULL; i++)
        if (strcasecmp(long_names[i][0], name) == 0)
            name = long_names[i][1];
    for (size_t i = 1; i < N_TYPES && name != NULL; i++)
        if (strcasecmp(types[i].name, name) == 0)
            return types[i].type;
    return -1;
}
