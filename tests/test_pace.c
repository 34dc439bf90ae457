/* How wide a decode call is when many users wait for states (cloud/pace.h). */
#include "pace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* Calls of many widths that take a + b w. */
static struct spa_pace measured(double a, double b)
{
    struct spa_pace p = { 0 };
    for (uint32_t i = 0; i < 200; i++)
        spa_pace_took(&p, 1 + i % 32, a + b * (1 + i % 32));
    return p;
}

static void test_pace_knows_what_a_call_takes(void **state)
{
    (void)state;
    const struct spa_pace p = measured(5, 7), nothing = { 0 };
    for (uint32_t w = 1; w <= 64; w++)
        assert_true(fabs(spa_pace_ms(&p, w) - (5 + 7 * w)) < 1e-6);
    assert_true(spa_pace_ms(&nothing, 4) == 0);
}

static void test_pace_forgets_how_slow_it_was(void **state)
{
    (void)state;
    struct spa_pace p = measured(50, 70);
    for (uint32_t i = 0; i < 2000; i++)
        spa_pace_took(&p, 1 + i % 32, 5 + 7 * (1 + i % 32));
    assert_true(fabs(spa_pace_ms(&p, 10) - 75) < 1);
}

static void test_pace_a_call_that_was_held_up_counts_little(void **state)
{
    (void)state;
    struct spa_pace p = measured(5, 7);
    spa_pace_took(&p, 16, 60000);
    assert_true(spa_pace_ms(&p, 16) < 1.1 * (5 + 7 * 16));
}

static void test_pace_without_round_trip_takes_all_at_once(void **state)
{
    (void)state;
    const struct spa_pace p = measured(5, 7);
    for (uint32_t n = 0; n <= 64; n++)
        assert_int_equal(spa_pace_width(&p, n, 0), n);
}

/* The least round, over all widths, and by trying them. */
static void test_pace_takes_the_quickest_round(void **state)
{
    (void)state;
    const struct spa_pace p = measured(2.8, 3.5);
    for (double wait = 1; wait < 400; wait *= 1.5) {
        const uint32_t got = spa_pace_width(&p, 32, wait);
        const double round = fmax(2.8 * ceil(32.0 / got) + 3.5 * 32, 2.8 + 3.5 * got + wait);
        for (uint32_t w = 1; w <= 32; w++)
            assert_true(round <= fmax(2.8 * ceil(32.0 / w) + 3.5 * 32, 2.8 + 3.5 * w + wait) + 1e-6);
    }
    assert_int_equal(spa_pace_width(&p, 32, 100), 7);
}

static void test_pace_splits_nobody_where_width_costs_nothing(void **state)
{
    (void)state;
    const struct spa_pace p = measured(20, 0);
    assert_int_equal(spa_pace_width(&p, 32, 100), 32);
    assert_int_equal(spa_pace_width(&p, 1, 100), 1);
}

static void test_pace_a_house_is_full_when_others_compute_for_a_round_trip(void **state)
{
    (void)state;
    const struct spa_pace p = measured(2.8, 3.5);
    assert_false(spa_pace_full(&p, 1, 100));
    assert_false(spa_pace_full(&p, 8, 100));
    assert_true(spa_pace_full(&p, 32, 100));
    assert_true(spa_pace_full(&p, 1, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace_knows_what_a_call_takes),
        cmocka_unit_test(test_pace_forgets_how_slow_it_was),
        cmocka_unit_test(test_pace_a_call_that_was_held_up_counts_little),
        cmocka_unit_test(test_pace_without_round_trip_takes_all_at_once),
        cmocka_unit_test(test_pace_takes_the_quickest_round),
        cmocka_unit_test(test_pace_splits_nobody_where_width_costs_nothing),
        cmocka_unit_test(test_pace_a_house_is_full_when_others_compute_for_a_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
