/*
 * apus/random.h: random numbers that are a function of (seed, purpose, step, index), never of call order: Philox4x32-10,
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
 */
#ifndef APUS_RANDOM_H
#define APUS_RANDOM_H

#include <math.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Ten rounds of Philox4x32. */
static inline void apus_philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1], c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* 32 random bits at (seed, purpose, step, index): index/4 is the counter's first word pair, index%4 the word. */
static inline uint32_t apus_random_bits(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t index)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint64_t block = index / 4;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), step, purpose};
    uint32_t out[4];
    apus_philox4x32(key, counter, out);
    return out[index % 4];
}

/* Uniform in [0, 1), 53 bits. */
static inline double apus_random_uniform(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t index)
{
    const uint64_t hi = apus_random_bits(seed, purpose, step, 2 * index), lo = apus_random_bits(seed, purpose, step, 2 * index + 1);
    return (double)(((hi << 32) | lo) >> 11) * 0x1p-53;
}

/* Standard normal (Box & Muller 1958). */
static inline double apus_random_normal(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t index)
{
    const double u = 1.0 - apus_random_uniform(seed, purpose, step, 2 * index); /* (0, 1] */
    const double v = apus_random_uniform(seed, purpose, step, 2 * index + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925286766559 * v);
}

/* Integer in [0, n), n > 0, without bias worth naming: 64 bits times n. */
static inline uint64_t apus_random_below(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t index, uint64_t n)
{
    const uint64_t hi = apus_random_bits(seed, purpose, step, 2 * index), lo = apus_random_bits(seed, purpose, step, 2 * index + 1);
    const uint64_t r = (hi << 32) | lo, r0 = (uint32_t)r, r1 = r >> 32, n0 = (uint32_t)n, n1 = n >> 32;
    const uint64_t m0 = r0 * n0, m1 = r1 * n0 + (m0 >> 32), m2 = r0 * n1 + (uint32_t)m1;
    return r1 * n1 + (m1 >> 32) + (m2 >> 32); /* high half of the 128-bit product */
}

/* The purpose that a name stands for (FNV-1a, 32 bits): parameters' names, "dropout", "shuffle". */
static inline uint32_t apus_random_purpose(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name != '\0'; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return h;
}

/* The four words that decide dropout of columns 4*block … 4*block+3 of token `token`: see dropout in apus/ops.h. Tokens
 * of 2^32 and more go on in the key, so that no two tokens share their words. */
static inline void apus_random_dropout(int64_t seed, int64_t step, uint32_t purpose, int64_t token, uint32_t block, uint32_t out[4])
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)((uint64_t)seed >> 32) ^ (uint32_t)((uint64_t)token >> 32)};
    const uint32_t counter[4] = {(uint32_t)token, block, (uint32_t)step, purpose};
    apus_philox4x32(key, counter, out);
}

/* An element is kept where its word is at least this: u = word * 2^-32 >= p. */
static inline uint64_t apus_random_dropout_bound(double p)
{
    return (uint64_t)ceil(p * 0x1p32);
}

#ifdef __cplusplus
}
#endif
#endif
