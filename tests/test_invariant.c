/* test_invariant.c - the self-check finds the width from which a model's bits change (cloud/invariant.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_model.h"
#include "invariant.h"

static struct spa_invariant check(uint32_t rows, uint32_t head_rows, uint32_t depth)
{
    struct spa_model m;
    struct spa_invariant v;
    fake_model_open(&m);
    fake_model_widths(&m, rows, head_rows);
    assert_int_equal(spa_invariant_check(&m, depth, &v), 0);
    /* All slots are empty again: position 0 is where each goes on. */
    for (uint32_t s = 0; s < m.info.n_slots; s++) {
        const struct spa_batch_token t = { 1, 0, s, SPA_WANT_NONE };
        struct spa_states states;
        assert_int_equal(m.decode(m.self, &t, 1, NULL, 0, &states), 0);
    }
    fake_model_close(&m);
    return v;
}

static void test_invariant_model_that_holds_everywhere_holds_as_far_as_was_tried(void **state)
{
    (void)state;
    for (uint32_t depth = 0; depth <= 300; depth += 150) {
        const struct spa_invariant v = check(0, 0, depth);
        assert_int_equal(v.rows, FAKE_UBATCH);
        assert_int_equal(v.rows_of, FAKE_UBATCH);
        assert_int_equal(v.company, FAKE_SLOTS);
        assert_int_equal(v.company_of, FAKE_SLOTS);
        assert_int_equal(v.head, FAKE_SLOTS);
        assert_int_equal(spa_invariant_width(&v), FAKE_UBATCH);
    }
}

static void test_invariant_width_that_changes_bits_is_found(void **state)
{
    (void)state;
    struct spa_invariant v = check(2, 0, 0);
    assert_int_equal(v.rows, 1);
    assert_int_equal(v.company, 1);
    assert_int_equal(v.head, FAKE_SLOTS);
    assert_int_equal(spa_invariant_width(&v), 1);
    v = check(3, 4, 0);
    assert_int_equal(v.rows, 2);
    assert_int_equal(v.company, 2);
    assert_int_equal(v.head, 2);
    assert_int_equal(spa_invariant_width(&v), 2);
    v = check(8, 2, 20);
    assert_int_equal(v.rows, 4);
    assert_int_equal(v.company, FAKE_SLOTS);   /* there are no more of them */
    assert_int_equal(v.head, 1);
    assert_int_equal(spa_invariant_width(&v), 4);
}

static void test_invariant_narrowed_model_holds_where_it_did_not(void **state)
{
    (void)state;
    struct spa_model m;
    struct spa_invariant v;
    fake_model_open(&m);
    fake_model_widths(&m, 4, 3);
    m.narrow(m.self, 2, 2);
    assert_int_equal(spa_invariant_check(&m, 0, &v), 0);
    assert_int_equal(v.rows, FAKE_UBATCH);
    assert_int_equal(v.company, FAKE_SLOTS);
    assert_int_equal(v.head, FAKE_SLOTS);
    fake_model_close(&m);
}

static void test_invariant_depth_beyond_a_slot_is_cut(void **state)
{
    (void)state;
    const struct spa_invariant v = check(5, 0, 100000);
    assert_int_equal(v.rows, 4);
}

static void test_invariant_width_is_the_smaller_of_rows_and_company(void **state)
{
    (void)state;
    struct spa_invariant v = { .rows = 32, .rows_of = 32, .company = 2, .company_of = 8 };
    assert_int_equal(spa_invariant_width(&v), 2);
    v = (struct spa_invariant){ .rows = 4, .rows_of = 32, .company = 2, .company_of = 8 };
    assert_int_equal(spa_invariant_width(&v), 2);
    v = (struct spa_invariant){ .rows = 32, .rows_of = 32, .company = 1, .company_of = 1 };   /* one slot */
    assert_int_equal(spa_invariant_width(&v), 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invariant_model_that_holds_everywhere_holds_as_far_as_was_tried),
        cmocka_unit_test(test_invariant_width_that_changes_bits_is_found),
        cmocka_unit_test(test_invariant_narrowed_model_holds_where_it_did_not),
        cmocka_unit_test(test_invariant_depth_beyond_a_slot_is_cut),
        cmocka_unit_test(test_invariant_width_is_the_smaller_of_rows_and_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
