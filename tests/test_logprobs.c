/* test_logprobs.c - entries of LOGPROBS come back as written, and what is cut or no number is refused. */
#include "logprobs.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static size_t two_entries(uint8_t *out)
{
    const size_t first = spa_logprob_write(&(struct spa_logprob){ 7, -0.25f, (const uint8_t *)"dog", 3 }, out);
    return first + spa_logprob_write(&(struct spa_logprob){ 9, 0, NULL, 0 }, out + first);
}

static void test_logprobs_come_back_as_written(void **state)
{
    (void)state;
    uint8_t bytes[64];
    const size_t len = two_entries(bytes);
    struct spa_logprob l;
    size_t at = 0;
    assert_int_equal(len, 12 + 3 + 12);
    assert_int_equal(spa_logprob_next(bytes, len, &at, &l), SPA_OK);
    assert_int_equal(l.id, 7);
    assert_true(l.logprob == -0.25f);
    assert_int_equal(l.len, 3);
    assert_memory_equal(l.bytes, "dog", 3);
    assert_int_equal(spa_logprob_next(bytes, len, &at, &l), SPA_OK);
    assert_int_equal(l.id, 9);
    assert_int_equal(l.len, 0);
    assert_int_equal(spa_logprob_next(bytes, len, &at, &l), SPA_NONE);
}

static void test_logprobs_cut_anywhere_but_between_entries_are_FORMAT(void **state)
{
    (void)state;
    uint8_t bytes[64];
    const size_t whole = two_entries(bytes);
    for (size_t len = 1; len < whole; len++) {
        uint8_t *cut = malloc(len);   /* exactly so long: a sanitizer sees a read beyond */
        memcpy(cut, bytes, len);
        struct spa_logprob l;
        size_t at = 0;
        enum spa_err err;
        do
            err = spa_logprob_next(cut, len, &at, &l);
        while (err == SPA_OK);
        assert_int_equal(err, len == 15 ? SPA_NONE : SPA_ERR_FORMAT);
        free(cut);
    }
}

static void test_logprobs_that_are_no_logarithm_of_a_share_are_FORMAT(void **state)
{
    (void)state;
    const float bad[] = { NAN, INFINITY, -INFINITY, 0.5f };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint8_t bytes[12];
        struct spa_logprob l = { 1, bad[i], NULL, 0 };
        size_t at = 0;
        spa_logprob_write(&l, bytes);
        assert_int_equal(spa_logprob_next(bytes, sizeof bytes, &at, &l), SPA_ERR_FORMAT);
    }
}

static void test_logprobs_token_longer_than_any_is_FORMAT(void **state)
{
    (void)state;
    uint8_t bytes[12 + SPA_LOGPROB_BYTES_MAX + 1] = { 0 };
    const uint32_t len = SPA_LOGPROB_BYTES_MAX + 1;
    struct spa_logprob l;
    size_t at = 0;
    memcpy(bytes + 8, &len, 4);
    assert_int_equal(spa_logprob_next(bytes, sizeof bytes, &at, &l), SPA_ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logprobs_come_back_as_written),
        cmocka_unit_test(test_logprobs_cut_anywhere_but_between_entries_are_FORMAT),
        cmocka_unit_test(test_logprobs_that_are_no_logarithm_of_a_share_are_FORMAT),
        cmocka_unit_test(test_logprobs_token_longer_than_any_is_FORMAT),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
