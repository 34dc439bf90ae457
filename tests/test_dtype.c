/* test_dtype.c - the forms in which numbers travel: what survives, what is rounded, what is refused. */
#include "dtype.h"
#include "sample.h"

#include <math.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static float noise(uint64_t i)
{
    return (float)((double)spa_noise64(5, 0, i) * 0x1p-63 - 1.0);
}

/* The value of an f16 by its definition. */
static double f16_value(unsigned h)
{
    const unsigned exponent = h >> 10 & 31, fraction = h & 1023;
    const double a = exponent ? ldexp(1 + fraction / 1024.0, (int)exponent - 15) : ldexp(fraction / 1024.0, -14);
    return h & 0x8000 ? -a : a;
}

static void test_dtype_every_f16_survives_the_way_through_f32(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x10000; h++) {
        const float x = spa_f32_from_f16((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(x) && isnan(spa_f32_from_f16(spa_f16_from_f32(x))));
            continue;
        }
        if ((h & 0x7fff) == 0x7c00)
            assert_true(isinf(x) && (x > 0) == (h == 0x7c00));
        else
            assert_true((double)x == f16_value(h));
        assert_int_equal(spa_f16_from_f32(x), h);
    }
}

static void test_dtype_f32_rounds_to_the_nearest_even_f16(void **state)
{
    (void)state;
    /* Between each f16 and its neighbour: below the middle, the middle, above the middle. The largest one's neighbour would
     * be 65536, which is infinity's place. */
    for (unsigned h = 0; h < 0x7c00; h++) {
        const double low = f16_value(h), high = h == 0x7bff ? 65536 : f16_value(h + 1);
        const float middle = (float)((low + high) / 2);
        assert_true((double)middle == (low + high) / 2);
        assert_int_equal(spa_f16_from_f32(nextafterf(middle, 0)), h);
        assert_int_equal(spa_f16_from_f32(middle), h & 1 ? h + 1 : h);
        assert_int_equal(spa_f16_from_f32(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(spa_f16_from_f32(-middle), 0x8000 | (h & 1 ? h + 1 : h));
    }
    assert_int_equal(spa_f16_from_f32(3e38f), 0x7c00);
    assert_int_equal(spa_f16_from_f32(-INFINITY), 0xfc00);
    assert_int_equal(spa_f16_from_f32(1e-40f), 0);
}

static void test_dtype_f32_comes_back_bit_for_bit_and_little_endian(void **state)
{
    (void)state;
    float x[9], y[9];
    uint8_t bytes[36];
    for (size_t i = 0; i < 9; i++)
        x[i] = noise(i);
    x[0] = 1.0f;
    x[1] = -0.0f;
    assert_true(spa_dtype_bytes(SPA_F32, 3, 3) == sizeof bytes);
    spa_dtype_pack(SPA_F32, x, 3, 3, bytes);
    assert_int_equal(spa_dtype_unpack(SPA_F32, bytes, 3, 3, y), SPA_OK);
    assert_memory_equal(x, y, sizeof x);
    const uint8_t one[] = { 0, 0, 0x80, 0x3f };
    assert_memory_equal(bytes, one, 4);
}

static void test_dtype_f16_is_within_its_rounding_and_little_endian(void **state)
{
    (void)state;
    float x[8], y[8];
    uint8_t bytes[16];
    for (size_t i = 0; i < 8; i++)
        x[i] = noise(i);
    x[0] = 1.0f;
    assert_true(spa_dtype_bytes(SPA_F16, 2, 4) == sizeof bytes);
    spa_dtype_pack(SPA_F16, x, 2, 4, bytes);
    assert_int_equal(spa_dtype_unpack(SPA_F16, bytes, 2, 4, y), SPA_OK);
    for (size_t i = 0; i < 8; i++)
        assert_true(fabsf(y[i] - x[i]) <= 0x1p-12f);   /* half of the spacing below 1 */
    assert_int_equal(bytes[0], 0);
    assert_int_equal(bytes[1], 0x3c);
}

static void test_dtype_i8_has_one_scale_a_group(void **state)
{
    (void)state;
    enum { GROUPS = 3, N = 10 };
    float x[GROUPS * N], y[GROUPS * N];
    uint8_t bytes[GROUPS * (N + 2)];
    for (size_t i = 0; i < N; i++) {
        x[i] = noise(i);
        x[N + i] = 0;
        x[2 * N + i] = 1000 * noise(N + i);
    }
    x[3] = -127;   /* scale 1: this group's other numbers become whole */
    x[4] = 2.6f;
    assert_true(spa_dtype_bytes(SPA_I8, GROUPS, N) == sizeof bytes);
    spa_dtype_pack(SPA_I8, x, GROUPS, N, bytes);
    assert_int_equal(spa_dtype_unpack(SPA_I8, bytes, GROUPS, N, y), SPA_OK);
    assert_true(y[3] == -127 && y[4] == 3);
    assert_int_equal(bytes[2 + 3], 0x81);
    float max = 0;
    for (size_t i = 0; i < N; i++) {
        assert_true(y[N + i] == 0);
        max = fmaxf(max, fabsf(x[2 * N + i]));
    }
    assert_int_equal(bytes[N + 2], 0);
    assert_int_equal(bytes[N + 3], 0);
    /* Half a step, and for the clamped largest what the scale's own rounding (2^-11) takes away. */
    for (size_t i = 2 * N; i < 3 * N; i++)
        assert_true(fabsf(y[i] - x[i]) <= max / 127 * 0.5f * 1.001f + max * 0x1p-11f);
}

static void test_dtype_i8_of_tiny_numbers_stays_in_range(void **state)
{
    (void)state;
    for (int i = -149 * 8; i < -10 * 8; i++) {   /* here the scale itself is a few units of the smallest f16, or none */
        const float x[3] = { exp2f((float)i / 8) * 0.75f, -exp2f((float)i / 8), 0 };
        float y[3];
        uint8_t bytes[5];
        spa_dtype_pack(SPA_I8, x, 1, 3, bytes);
        assert_int_equal(spa_dtype_unpack(SPA_I8, bytes, 1, 3, y), SPA_OK);
        assert_true(y[0] >= 0 && y[0] <= 2 * x[0] && y[1] <= 0 && y[1] >= 2 * x[1] && y[2] == 0);
        assert_true(bytes[2] <= 127 && bytes[3] != 0x80);
        if (bytes[0] == 0 && bytes[1] == 0)
            assert_true(bytes[2] == 0 && bytes[3] == 0 && bytes[4] == 0);
    }
}

static void test_dtype_what_is_not_finite_is_RANGE_in_every_form(void **state)
{
    (void)state;
    const float bad[] = { NAN, INFINITY, -INFINITY, -NAN };
    const enum spa_dtype types[] = { SPA_F32, SPA_F16, SPA_I8 };
    for (size_t t = 0; t < 3; t++)
        for (size_t b = 0; b < 4; b++)
            for (size_t at = 0; at < 18; at++) {
                float x[18], y[18];
                uint8_t bytes[18 * 4];
                for (size_t i = 0; i < 18; i++)
                    x[i] = noise(i);
                spa_dtype_pack(types[t], x, 2, 9, bytes);
                assert_int_equal(spa_dtype_unpack(types[t], bytes, 2, 9, y), SPA_OK);
                x[at] = bad[b];
                spa_dtype_pack(types[t], x, 2, 9, bytes);
                assert_int_equal(spa_dtype_unpack(types[t], bytes, 2, 9, y), SPA_ERR_RANGE);
            }
    /* From a stranger: an infinite scale whose numbers are all zero. */
    const uint8_t forged[] = { 0x00, 0x7c, 0, 0 };
    float y[2];
    assert_int_equal(spa_dtype_unpack(SPA_I8, forged, 1, 2, y), SPA_ERR_RANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype_every_f16_survives_the_way_through_f32),
        cmocka_unit_test(test_dtype_f32_rounds_to_the_nearest_even_f16),
        cmocka_unit_test(test_dtype_f32_comes_back_bit_for_bit_and_little_endian),
        cmocka_unit_test(test_dtype_f16_is_within_its_rounding_and_little_endian),
        cmocka_unit_test(test_dtype_i8_has_one_scale_a_group),
        cmocka_unit_test(test_dtype_i8_of_tiny_numbers_stays_in_range),
        cmocka_unit_test(test_dtype_what_is_not_finite_is_RANGE_in_every_form),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
