/*
 * apus/blocks.h: the element types of types.h as bytes: half floats and ggml's blocks; reading rows of every type as
 * float32, writing rows of Q8_0 and Q4_0 as llama.cpp's reference quantiser does. Header-only; allocates nothing.
 *
 *     size_t bytes = apus_row_bytes(APUS_Q4_K, 576);      // 0: rows of 576 do not fit blocks of 256
 *     apus_row_to_f32(APUS_Q4_0, row, out, 576);
 *
 * Layouts and formulas: ggml-common.h and ggml-quants.c of llama.cpp. Fields are little-endian, as in the files.
 * Every function is [any] and reads its source byte by byte where needed: no alignment is asked of blocks.
 */
#ifndef APUS_BLOCKS_H
#define APUS_BLOCKS_H

#include <apus/types.h>
#include <math.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "apus reads and writes blocks in place and needs a little-endian machine"
#endif

#ifdef __cplusplus
extern "C" {
#define APUS_STATIC_ASSERT static_assert
#else
#define APUS_STATIC_ASSERT _Static_assert
#endif

/* ---------------------------------------------------------------- half floats */

static inline float apus_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    uint32_t bits;
    float f;
    if (exponent == 0) { /* zero and subnormal: mantissa * 2^-24, exact */
        f = (float)mantissa * 5.9604644775390625e-8f;
        memcpy(&bits, &f, sizeof bits);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else {
        bits = sign | (exponent + 112u) << 23 | mantissa << 13;
    }
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even, as the hardware does. */
static inline uint16_t apus_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) { /* NaN, made quiet */
        return (uint16_t)(sign | 0x7e00u | ((bits >> 13) & 1023u));
    }
    if (bits >= 0x477ff000u) { /* 65520 and more */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (bits < 0x38800000u) { /* below 2^-14: adding 0.5 rounds to multiples of 2^-24 */
        memcpy(&f, &bits, sizeof f);
        f += 0.5f;
        memcpy(&bits, &f, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xc8000fffu + ((bits >> 13) & 1u);
    return (uint16_t)(sign | bits >> 13);
}

static inline float apus_bf16_to_f32(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even. */
static inline uint16_t apus_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 64u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* ---------------------------------------------------------------- layouts (FROZEN: they are files' bytes) */

#define APUS_BLOCK       32
#define APUS_SUPER_BLOCK 256

/* Element i < 16 is the low nibble of qs[i], element i + 16 the high one; so in every 4- and 5-bit block of 32. */
typedef struct apus_block_q4_0 {
    uint16_t d; /* f16; x = d (q - 8) */
    uint8_t qs[16];
} apus_block_q4_0;
typedef struct apus_block_q4_1 {
    uint16_t d, m; /* f16; x = d q + m */
    uint8_t qs[16];
} apus_block_q4_1;
typedef struct apus_block_q5_0 {
    uint16_t d;    /* f16; x = d (q - 16) */
    uint8_t qh[4]; /* bit i: fifth bit of element i */
    uint8_t qs[16];
} apus_block_q5_0;
typedef struct apus_block_q5_1 {
    uint16_t d, m; /* f16; x = d q + m */
    uint8_t qh[4];
    uint8_t qs[16];
} apus_block_q5_1;
typedef struct apus_block_q8_0 {
    uint16_t d; /* f16; x = d q */
    int8_t qs[32];
} apus_block_q8_0;
typedef struct apus_block_iq4_nl {
    uint16_t d; /* f16; x = d table[q] */
    uint8_t qs[16];
} apus_block_iq4_nl;
/* Super-blocks: 16 groups of 16 (Q2_K, Q3_K, Q6_K) or 8 groups of 32 (Q4_K, Q5_K), each with its own small scale. */
typedef struct apus_block_q2_k {
    uint8_t scales[16]; /* low nibble: scale, high: minimum */
    uint8_t qs[64];
    uint16_t d, dmin; /* f16; x = d scale q - dmin minimum */
} apus_block_q2_k;
typedef struct apus_block_q3_k {
    uint8_t hmask[32]; /* third bits */
    uint8_t qs[64];
    uint8_t scales[12]; /* 16 of 6 bits, less 32 */
    uint16_t d;         /* f16; x = d scale (q - 4) */
} apus_block_q3_k;
typedef struct apus_block_q4_k {
    uint16_t d, dmin;   /* f16; x = d scale q - dmin minimum */
    uint8_t scales[12]; /* 8 scales and 8 minima of 6 bits */
    uint8_t qs[128];
} apus_block_q4_k;
typedef struct apus_block_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32]; /* fifth bits */
    uint8_t qs[128];
} apus_block_q5_k;
typedef struct apus_block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d; /* f16; x = d scale (q - 32) */
} apus_block_q6_k;

APUS_STATIC_ASSERT(sizeof(apus_block_q4_0) == 18, "Q4_0");
APUS_STATIC_ASSERT(sizeof(apus_block_q4_1) == 20, "Q4_1");
APUS_STATIC_ASSERT(sizeof(apus_block_q5_0) == 22, "Q5_0");
APUS_STATIC_ASSERT(sizeof(apus_block_q5_1) == 24, "Q5_1");
APUS_STATIC_ASSERT(sizeof(apus_block_q8_0) == 34, "Q8_0");
APUS_STATIC_ASSERT(sizeof(apus_block_iq4_nl) == 18, "IQ4_NL");
APUS_STATIC_ASSERT(sizeof(apus_block_q2_k) == 84, "Q2_K");
APUS_STATIC_ASSERT(sizeof(apus_block_q3_k) == 110, "Q3_K");
APUS_STATIC_ASSERT(sizeof(apus_block_q4_k) == 144, "Q4_K");
APUS_STATIC_ASSERT(sizeof(apus_block_q5_k) == 176, "Q5_K");
APUS_STATIC_ASSERT(sizeof(apus_block_q6_k) == 210, "Q6_K");

/* Elements of one block and its bytes (1 and the element's size for plain types); 0 for a type that is not known. */
static inline size_t apus_block_layout(apus_dtype t, int64_t *elements)
{
    *elements = t >= APUS_Q2_K ? APUS_SUPER_BLOCK : t >= APUS_Q4_0 ? APUS_BLOCK : 1;
    switch (t) {
    case APUS_F32:
    case APUS_I32:
        return 4;
    case APUS_F64:
    case APUS_I64:
        return 8;
    case APUS_F16:
    case APUS_BF16:
        return 2;
    case APUS_U8:
        return 1;
    case APUS_Q4_0:
        return sizeof(apus_block_q4_0);
    case APUS_Q4_1:
        return sizeof(apus_block_q4_1);
    case APUS_Q5_0:
        return sizeof(apus_block_q5_0);
    case APUS_Q5_1:
        return sizeof(apus_block_q5_1);
    case APUS_Q8_0:
        return sizeof(apus_block_q8_0);
    case APUS_IQ4_NL:
        return sizeof(apus_block_iq4_nl);
    case APUS_Q2_K:
        return sizeof(apus_block_q2_k);
    case APUS_Q3_K:
        return sizeof(apus_block_q3_k);
    case APUS_Q4_K:
        return sizeof(apus_block_q4_k);
    case APUS_Q5_K:
        return sizeof(apus_block_q5_k);
    case APUS_Q6_K:
        return sizeof(apus_block_q6_k);
    default:
        *elements = 0;
        return 0;
    }
}

/* Bytes of a row of n elements; 0 when n is not a whole number of blocks, does not fit, or t is not known. */
static inline size_t apus_row_bytes(apus_dtype t, int64_t n)
{
    int64_t elements;
    const size_t bytes = apus_block_layout(t, &elements);
    if (bytes == 0 || n < 0 || n % elements != 0 || (uint64_t)(n / elements) > SIZE_MAX / bytes) {
        return 0;
    }
    return (size_t)(n / elements) * bytes;
}

/* ---------------------------------------------------------------- reading: n is a whole number of blocks */

static inline uint16_t apus_load_u16_(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Scale and minimum of group j of Q4_K and Q5_K. */
static inline void apus_scale_min_(const uint8_t *scales, int j, int *scale, int *minimum)
{
    if (j < 4) {
        *scale = scales[j] & 63;
        *minimum = scales[j + 4] & 63;
    } else {
        *scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        *minimum = scales[j + 4] >> 4 | (scales[j] >> 6) << 4;
    }
}

static inline void apus_block_to_f32_q4_0_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p));
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((p[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((p[2 + i] >> 4) - 8) * d;
    }
}

static inline void apus_block_to_f32_q4_1_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p)), m = apus_f16_to_f32(apus_load_u16_(p + 2));
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(p[4 + i] & 15) * d + m;
        y[i + 16] = (float)(p[4 + i] >> 4) * d + m;
    }
}

static inline void apus_block_to_f32_q5_0_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p));
    uint32_t high;
    memcpy(&high, p + 2, sizeof high);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((int)((p[6 + i] & 15u) | ((high >> i) & 1u) << 4) - 16) * d;
        y[i + 16] = (float)((int)((unsigned)p[6 + i] >> 4 | ((high >> (i + 16)) & 1u) << 4) - 16) * d;
    }
}

static inline void apus_block_to_f32_q5_1_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p)), m = apus_f16_to_f32(apus_load_u16_(p + 2));
    uint32_t high;
    memcpy(&high, p + 4, sizeof high);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(int)((p[8 + i] & 15u) | ((high >> i) & 1u) << 4) * d + m;
        y[i + 16] = (float)(int)((unsigned)p[8 + i] >> 4 | ((high >> (i + 16)) & 1u) << 4) * d + m;
    }
}

static inline void apus_block_to_f32_q8_0_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p));
    for (int i = 0; i < 32; i++) {
        y[i] = (float)(int8_t)p[2 + i] * d;
    }
}

static inline void apus_block_to_f32_iq4_nl_(const uint8_t *p, float *y)
{
    static const int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const float d = apus_f16_to_f32(apus_load_u16_(p));
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)table[p[2 + i] & 15];
        y[i + 16] = d * (float)table[p[2 + i] >> 4];
    }
}

static inline void apus_block_to_f32_q2_k_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p + 80)), dmin = apus_f16_to_f32(apus_load_u16_(p + 82));
    for (int g = 0; g < 16; g++) { /* group g: 16 elements */
        const uint8_t *q = p + 16 + 32 * (g / 8) + 16 * (g % 2);
        const int shift = 2 * ((g % 8) / 2);
        const float dl = d * (float)(p[g] & 15), ml = dmin * (float)(p[g] >> 4);
        for (int i = 0; i < 16; i++) {
            *y++ = dl * (float)((q[i] >> shift) & 3) - ml;
        }
    }
}

static inline void apus_block_to_f32_q3_k_(const uint8_t *p, float *y)
{
    const uint8_t *scales = p + 96;
    const float d = apus_f16_to_f32(apus_load_u16_(p + 108));
    for (int g = 0; g < 16; g++) {
        const uint8_t *q = p + 32 + 32 * (g / 8) + 16 * (g % 2), *high = p + 16 * (g % 2);
        const int shift = 2 * ((g % 8) / 2), bit = 1 << (g / 2);
        const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        const int scale = low | ((scales[8 + g % 4] >> (2 * (g / 4))) & 3) << 4;
        const float dl = d * (float)(scale - 32);
        for (int i = 0; i < 16; i++) {
            *y++ = dl * (float)(((q[i] >> shift) & 3) - (high[i] & bit ? 0 : 4));
        }
    }
}

static inline void apus_block_to_f32_q4_k_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p)), dmin = apus_f16_to_f32(apus_load_u16_(p + 2));
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = p + 16 + 32 * (g / 2);
        int scale, minimum;
        apus_scale_min_(p + 4, g, &scale, &minimum);
        const float dl = d * (float)scale, ml = dmin * (float)minimum;
        for (int i = 0; i < 32; i++) {
            *y++ = dl * (float)(g % 2 ? q[i] >> 4 : q[i] & 15) - ml;
        }
    }
}

static inline void apus_block_to_f32_q5_k_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p)), dmin = apus_f16_to_f32(apus_load_u16_(p + 2));
    for (int g = 0; g < 8; g++) {
        const uint8_t *high = p + 16, *q = p + 48 + 32 * (g / 2);
        int scale, minimum;
        apus_scale_min_(p + 4, g, &scale, &minimum);
        const float dl = d * (float)scale, ml = dmin * (float)minimum;
        for (int i = 0; i < 32; i++) {
            *y++ = dl * (float)((g % 2 ? q[i] >> 4 : q[i] & 15) + ((high[i] >> g) & 1) * 16) - ml;
        }
    }
}

static inline void apus_block_to_f32_q6_k_(const uint8_t *p, float *y)
{
    const float d = apus_f16_to_f32(apus_load_u16_(p + 208));
    for (int g = 0; g < 8; g++) { /* 32 elements with two scales */
        const uint8_t *low = p + 64 * (g / 4) + 32 * (g % 2), *high = p + 128 + 32 * (g / 4);
        const int8_t *scales = (const int8_t *)p + 192 + 2 * g;
        const float scale[2] = {d * (float)scales[0], d * (float)scales[1]};
        for (int i = 0; i < 32; i++) {
            const int q = ((g % 4) / 2 ? low[i] >> 4 : low[i] & 15) | ((high[i] >> (2 * (g % 4))) & 3) << 4;
            *y++ = scale[i / 16] * (float)(q - 32);
        }
    }
}

#define APUS_EACH_BLOCK_(name, elements, bytes)                                                                        \
    for (int64_t i = 0; i < n; i += (elements), p += (bytes)) {                                                        \
        apus_block_to_f32_##name##_(p, y + i);                                                                         \
    }                                                                                                                  \
    return 1

/* n elements of type t at src -> y[n], with the bits that ggml's dequantize_row gives. 0 when t is not a type of
 * numbers or n is not a whole number of its blocks (nothing is written), else 1. F64 is rounded. */
static inline int apus_row_to_f32(apus_dtype t, const void *src, float *y, int64_t n)
{
    const uint8_t *p = (const uint8_t *)src;
    if (n == 0) {
        return 1;
    }
    if (apus_row_bytes(t, n) == 0) {
        return 0;
    }
    switch (t) {
    case APUS_F32:
        memcpy(y, p, (size_t)n * 4);
        return 1;
    case APUS_F64:
        for (int64_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + 8 * i, sizeof v);
            y[i] = (float)v;
        }
        return 1;
    case APUS_F16:
        for (int64_t i = 0; i < n; i++) {
            y[i] = apus_f16_to_f32(apus_load_u16_(p + 2 * i));
        }
        return 1;
    case APUS_BF16:
        for (int64_t i = 0; i < n; i++) {
            y[i] = apus_bf16_to_f32(apus_load_u16_(p + 2 * i));
        }
        return 1;
    case APUS_Q4_0:
        APUS_EACH_BLOCK_(q4_0, 32, 18);
    case APUS_Q4_1:
        APUS_EACH_BLOCK_(q4_1, 32, 20);
    case APUS_Q5_0:
        APUS_EACH_BLOCK_(q5_0, 32, 22);
    case APUS_Q5_1:
        APUS_EACH_BLOCK_(q5_1, 32, 24);
    case APUS_Q8_0:
        APUS_EACH_BLOCK_(q8_0, 32, 34);
    case APUS_IQ4_NL:
        APUS_EACH_BLOCK_(iq4_nl, 32, 18);
    case APUS_Q2_K:
        APUS_EACH_BLOCK_(q2_k, 256, 84);
    case APUS_Q3_K:
        APUS_EACH_BLOCK_(q3_k, 256, 110);
    case APUS_Q4_K:
        APUS_EACH_BLOCK_(q4_k, 256, 144);
    case APUS_Q5_K:
        APUS_EACH_BLOCK_(q5_k, 256, 176);
    case APUS_Q6_K:
        APUS_EACH_BLOCK_(q6_k, 256, 210);
    default:
        return 0;
    }
}
#undef APUS_EACH_BLOCK_

/* ---------------------------------------------------------------- writing */

/* A block with a value that is not finite has no meaning in these types: its quants become 0 and its scale says so. */
static inline int apus_quant_(float v, int low, int high)
{
    return v >= (float)low && v <= (float)high + 0.999f ? (int)v : v > (float)high ? high : v < (float)low ? low : 0;
}

/* x[n], n divisible by 32 -> blocks (quantize_row_q8_0_ref). */
static inline void apus_quantise_q8_0(const float *x, void *blocks, int64_t n)
{
    uint8_t *p = (uint8_t *)blocks;
    for (int64_t i = 0; i < n; i += 32, p += 34) {
        float most = 0.0f;
        for (int j = 0; j < 32; j++) {
            const float v = fabsf(x[i + j]);
            most = v > most ? v : most;
        }
        const float d = most / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
        const uint16_t half = apus_f32_to_f16(d);
        memcpy(p, &half, sizeof half);
        for (int j = 0; j < 32; j++) {
            p[2 + j] = (uint8_t)(int8_t)apus_quant_(roundf(x[i + j] * inverse), -128, 127);
        }
    }
}

/* x[n], n divisible by 32 -> blocks (quantize_row_q4_0_ref). */
static inline void apus_quantise_q4_0(const float *x, void *blocks, int64_t n)
{
    uint8_t *p = (uint8_t *)blocks;
    for (int64_t i = 0; i < n; i += 32, p += 18) {
        float most = 0.0f, extreme = 0.0f;
        for (int j = 0; j < 32; j++) {
            const float v = fabsf(x[i + j]);
            if (most < v) {
                most = v;
                extreme = x[i + j];
            }
        }
        const float d = extreme / -8.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
        const uint16_t half = apus_f32_to_f16(d);
        memcpy(p, &half, sizeof half);
        for (int j = 0; j < 16; j++) {
            const int low = apus_quant_(x[i + j] * inverse + 8.5f, 0, 15);
            const int high = apus_quant_(x[i + j + 16] * inverse + 8.5f, 0, 15);
            p[2 + j] = (uint8_t)(low | high << 4);
        }
    }
}

#undef APUS_STATIC_ASSERT
#ifdef __cplusplus
}
#endif
#endif
