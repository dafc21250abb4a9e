/* abi/apus/blocks.h against the values of tools/golden/blocks.py, bit for bit. */
#include <apus/blocks.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void golden(void **state)
{
    (void)state;
    FILE *file = fopen(APUS_TEST_GOLDEN "/blocks.bin", "rb");
    assert_non_null(file);
    int32_t head[4];
    int records = 0;
    while (fread(head, sizeof head, 1, file) == 1) {
        const int32_t n = head[2], bytes = head[3];
        uint8_t *blocks = malloc((size_t)bytes), *written = calloc(1, (size_t)bytes);
        float *values = malloc((size_t)n * 4), *read = malloc((size_t)n * 4);
        assert_int_equal(fread(blocks, (size_t)bytes, 1, file), 1);
        assert_int_equal(fread(values, (size_t)n * 4, 1, file), 1);
        assert_int_equal(apus_row_bytes(head[1], n), bytes);
        if (head[0] == 0) {
            assert_int_equal(apus_row_to_f32(head[1], blocks, read, n), 1);
            for (int i = 0; i < n; i++) {
                if (memcmp(&read[i], &values[i], 4) != 0) {
                    fail_msg("type %d element %d: %.9g, expected %.9g", head[1], i, (double)read[i], (double)values[i]);
                }
            }
        } else {
            for (int i = 0; i < n; i++) {
                const uint16_t half = head[1] == APUS_F16 ? apus_f32_to_f16(values[i]) : apus_f32_to_bf16(values[i]);
                if (head[1] == APUS_F16 || head[1] == APUS_BF16) {
                    memcpy(written + 2 * i, &half, 2);
                }
            }
            if (head[1] == APUS_Q8_0) {
                apus_quantise_q8_0(values, written, n);
            } else if (head[1] == APUS_Q4_0) {
                apus_quantise_q4_0(values, written, n);
            }
            for (int i = 0; i < bytes; i++) {
                if (blocks[i] != written[i]) {
                    fail_msg("type %d byte %d: %d, expected %d", head[1], i, written[i], blocks[i]);
                }
            }
        }
        records++;
        free(blocks);
        free(written);
        free(values);
        free(read);
    }
    assert_int_equal(fclose(file), 0);
    assert_int_equal(records, 17);
}

/* Every half float survives the way to float32 and back. */
static void halves(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const float f = apus_f16_to_f32((uint16_t)h), b = apus_bf16_to_f32((uint16_t)h);
        assert_int_equal(apus_f32_to_f16(f), isnan(f) ? h | 0x200u : h);
        assert_int_equal(apus_f32_to_bf16(b), isnan(b) ? h | 64u : h);
    }
}

static void odd_input(void **state)
{
    (void)state;
    float y[256] = {7.0f}, x[32];
    uint8_t blocks[256] = {0};
    assert_int_equal(apus_row_bytes(APUS_Q4_K, 576), 0);
    assert_int_equal(apus_row_bytes(APUS_Q8_0, 576), 612);
    assert_int_equal(apus_row_bytes(APUS_Q8_0, -32), 0);
    assert_int_equal(apus_row_bytes(APUS_F64, INT64_MAX), 0);
    assert_int_equal(apus_row_bytes(99, 32), 0);
    assert_int_equal(apus_row_to_f32(APUS_Q4_0, blocks, y, 33), 0);
    assert_int_equal(apus_row_to_f32(APUS_I32, blocks, y, 1), 0);
    assert_true(y[0] == 7.0f);
    for (int i = 0; i < 32; i++) {
        x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -3e38f;
    }
    apus_quantise_q8_0(x, blocks, 32); /* no undefined behaviour; the sanitizers watch */
    apus_quantise_q4_0(x, blocks, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden), cmocka_unit_test(halves), cmocka_unit_test(odd_input)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
