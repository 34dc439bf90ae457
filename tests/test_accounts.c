/* test_accounts.c - what each key may have, on a clock of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "accounts.h"

static void test_accounts_without_a_limit_nobody_waits(void **state)
{
    (void)state;
    struct spa_accounts all = { 0 };
    struct spa_account *a = spa_account_get(&all, 7, 0);
    spa_account_spend(&all, a, 1000000);
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 0), 0);
    spa_account_put(&all, a, 0);
    assert_null(all.first);
    spa_accounts_free(&all);
}

static void test_accounts_a_minutes_tokens_may_be_spent_at_once_and_come_back_in_a_minute(void **state)
{
    (void)state;
    struct spa_accounts all = { .tokens_per_minute = 600 };
    struct spa_account *a = spa_account_get(&all, 7, 1000);
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 1000), 0);
    spa_account_spend(&all, a, 599);
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 1000), 0);
    spa_account_spend(&all, a, 1);
    assert_in_range(spa_account_wait_ms(&all, a, 0, 1000), 100, 101);   /* ten a second */
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 1101), 0);
    spa_account_spend(&all, a, 601);   /* an answer that was under way */
    assert_in_range(spa_account_wait_ms(&all, a, 0, 1101), 60000, 60101);
    assert_in_range(spa_account_wait_ms(&all, a, 0, 31101), 30000, 30101);
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 1000000), 0);
    spa_account_spend(&all, a, 600);   /* an hour's rest brings no more than a minute's tokens */
    assert_true(spa_account_wait_ms(&all, a, 0, 1000000) > 0);
    spa_account_put(&all, a, 1000000);
    spa_accounts_free(&all);
}

static void test_accounts_what_has_begun_may_owe_a_minute_more(void **state)
{
    (void)state;
    struct spa_accounts all = { .tokens_per_minute = 600 };
    struct spa_account *a = spa_account_get(&all, 7, 0);
    spa_account_spend(&all, a, 1199);
    assert_true(spa_account_wait_ms(&all, a, 0, 0) > 59000);
    assert_int_equal(spa_account_wait_ms(&all, a, 1, 0), 0);
    spa_account_spend(&all, a, 1);
    assert_in_range(spa_account_wait_ms(&all, a, 1, 0), 100, 101);
    assert_int_equal(spa_account_wait_ms(&all, a, 1, 101), 0);
    spa_account_put(&all, a, 0);
    spa_accounts_free(&all);
}

static void test_accounts_connecting_anew_brings_nothing(void **state)
{
    (void)state;
    struct spa_accounts all = { .tokens_per_minute = 60 };
    struct spa_account *a = spa_account_get(&all, 7, 0), *other = spa_account_get(&all, 8, 0);
    assert_ptr_not_equal(a, other);
    assert_ptr_equal(a, spa_account_get(&all, 7, 0));
    assert_int_equal(a->connections, 2);
    spa_account_spend(&all, a, 60);
    assert_int_equal(spa_account_wait_ms(&all, other, 0, 0), 0);
    spa_account_put(&all, a, 0);
    spa_account_put(&all, a, 0);
    a = spa_account_get(&all, 7, 10000);
    assert_int_equal(spa_account_wait_ms(&all, a, 0, 10000), 0);   /* ten tokens by now */
    spa_account_spend(&all, a, 10);
    assert_true(spa_account_wait_ms(&all, a, 0, 10000) > 0);
    spa_account_put(&all, a, 10000);
    spa_account_put(&all, other, 10000);
    assert_ptr_equal(all.first, a);      /* the other had nothing to remember */
    assert_null(a->next);
    spa_account_put(&all, spa_account_get(&all, 9, 70000), 70000);
    assert_null(all.first);              /* nor has anybody after a minute */
    spa_accounts_free(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accounts_without_a_limit_nobody_waits),
        cmocka_unit_test(test_accounts_a_minutes_tokens_may_be_spent_at_once_and_come_back_in_a_minute),
        cmocka_unit_test(test_accounts_what_has_begun_may_owe_a_minute_more),
        cmocka_unit_test(test_accounts_connecting_anew_brings_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
