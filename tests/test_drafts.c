/* test_drafts.c - drafts: what follows the longest words that an answer ends with, most frequent first, within the room there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "drafts.h"
#include "sample.h"

#include <stdlib.h>
#include <string.h>

enum { CAP = 48 };

static void assert_look(const struct spa_drafts *d, const int32_t *ids, uint32_t n, const int32_t *want, uint32_t n_want)
{
    int32_t out[CAP];
    const uint32_t got = spa_drafts_look(d, NULL, ids, n, out, CAP);
    assert_int_equal(got, n_want);
    assert_memory_equal(out, want, n_want * sizeof *want);
}

static void test_drafts_say_what_followed_the_same_words(void **state)
{
    (void)state;
    struct spa_drafts *d = spa_drafts_new(64);
    const int32_t a[] = { 1, 2, 3, 4, 5 }, b[] = { 1, 2, 7, 8 }, c[] = { 1, 2, 3, 9 }, e[] = { 6, 2, 4 };
    spa_drafts_add(d, a, 5);
    spa_drafts_add(d, b, 4);
    spa_drafts_add(d, c, 4);
    spa_drafts_add(d, e, 3);
    assert_look(d, (const int32_t[]){ 1, 2 }, 2, (const int32_t[]){ 3, 9, -1, 7, 8 }, 5);            /* twice 3, once 7 */
    assert_look(d, (const int32_t[]){ 1, 2, 3 }, 3, (const int32_t[]){ 9, -1, 4, 5 }, 4);
    assert_look(d, (const int32_t[]){ 0, 9, 2, 7 }, 4, (const int32_t[]){ 8 }, 1);                   /* in the midst of another answer */
    assert_look(d, NULL, 0, (const int32_t[]){ 1, 2, 3, 9, -1, 6, 2, 4 }, 8);                        /* how answers begin */
    assert_look(d, (const int32_t[]){ 11, 2 }, 2, NULL, 0);                                          /* one word says nothing */
    assert_look(d, (const int32_t[]){ 1, 2, 3, 4, 5 }, 5, NULL, 0);                                  /* an end */
    spa_drafts_free(d);
}

static void test_drafts_look_equals_a_search_through_all(void **state)
{
    (void)state;
    enum { N = 60, LEN = 20 };
    struct spa_drafts *d = spa_drafts_new(4096);
    static int32_t text[N][LEN];
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t k = 0; k < LEN; k++)
            text[i][k] = (int32_t)(spa_noise64(3, i, k) % 4);
        spa_drafts_add(d, text[i], LEN);
    }
    for (uint32_t trial = 0; trial < 500; trial++) {
        int32_t ids[6], out[CAP];
        const uint32_t n = 2 + (uint32_t)(spa_noise64(4, trial, 9) % 5);
        for (uint32_t k = 0; k < n; k++)
            ids[k] = (int32_t)(spa_noise64(4, trial, k) % 4);
        /* The longest match, and how often each token follows it. */
        uint32_t best = 0, count[4] = { 0 };
        for (uint32_t i = 0; i < N; i++)
            for (uint32_t at = 0; at < LEN; at++) {
                uint32_t same = 0;
                while (same < n && same < at && ids[n - 1 - same] == text[i][at - 1 - same])
                    same++;
                same += same == n && same == at;   /* the start, too */
                if (same > best) {
                    best = same;
                    memset(count, 0, sizeof count);
                }
                if (same == best)
                    count[text[i][at]]++;
            }
        const uint32_t got = spa_drafts_look(d, NULL, ids, n, out, CAP);
        assert_true(best >= 2 && got > 0);
        for (uint32_t v = 0; v < 4; v++)
            assert_true(count[out[0]] >= count[v]);
    }
    spa_drafts_free(d);
}

static void test_drafts_are_bounded_and_forget_the_older_ones(void **state)
{
    (void)state;
    struct spa_drafts *d = spa_drafts_new(16);
    int32_t long_one[16] = { 0 };
    for (int32_t i = 0; i < 100; i++) {
        const int32_t a[] = { i, i + 1, i + 2, i + 3 };
        spa_drafts_add(d, a, 4);
        assert_look(d, a, 2, a + 2, 2);
    }
    spa_drafts_add(d, long_one, 16);   /* does not fit, and harms nothing */
    assert_look(d, (const int32_t[]){ 99, 100, 101 }, 3, (const int32_t[]){ 102 }, 1);
    assert_look(d, (const int32_t[]){ 5, 6, 7 }, 3, NULL, 0);
    int32_t out[3];
    assert_int_equal(spa_drafts_look(d, NULL, (const int32_t[]){ 99 }, 1, out, 3), 3);
    assert_int_equal(spa_drafts_add_features(d, "/nowhere/at/all", NULL), 0);
    spa_drafts_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drafts_say_what_followed_the_same_words),
        cmocka_unit_test(test_drafts_look_equals_a_search_through_all),
        cmocka_unit_test(test_drafts_are_bounded_and_forget_the_older_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
