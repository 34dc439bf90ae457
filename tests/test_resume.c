/* test_resume.c - when a lost cloud is tried again, on a virtual clock, and what an answer knows of its beginning. */
#include "confirmed.h"
#include "retry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

static void test_retry_backs_off_up_to_its_deadline(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct spa_retry r = { 0 };
        uint64_t now = 1000, most = 250;
        spa_retry_begin(&r, now, 30000, seed);
        int64_t pause = spa_retry_next(&r, now);
        assert_in_range(pause, 0, 100);
        now += (uint64_t)pause;
        for (;;) {
            pause = spa_retry_next(&r, now);
            if (pause < 0)
                break;
            if (now + (uint64_t)pause < 31000)
                assert_in_range(pause, most / 2, most);
            most = 2 * most < 5000 ? 2 * most : 5000;
            now += (uint64_t)pause;
        }
        assert_int_equal(now, 31000);   /* the last try was at the deadline */
        assert_in_range(r.tries, 9, 16);
    }
}

static void test_retry_begins_once_until_it_is_over(void **state)
{
    (void)state;
    struct spa_retry r = { 0 };
    spa_retry_begin(&r, 1000, 500, 1);
    spa_retry_begin(&r, 1400, 500, 1);   /* a second break before any token: the first one's deadline */
    assert_true(spa_retry_next(&r, 1499) >= 0);
    assert_int_equal(spa_retry_next(&r, 1500), -1);
    r.begun = false;
    spa_retry_begin(&r, 1600, 500, 1);
    assert_true(spa_retry_next(&r, 1600) >= 0);
}

static void test_retry_waits_as_long_as_the_cloud_says_if_there_is_time(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct spa_retry r = { .later_ms = 2000 };
        spa_retry_begin(&r, 1000, 10000, seed);
        assert_in_range(spa_retry_next(&r, 1000), 2000, 2250);
        assert_in_range(spa_retry_next(&r, 3100), 125, 250);   /* it counts once */
        r.later_ms = 7900;
        assert_int_equal(spa_retry_next(&r, 3200), -1);
        r.later_ms = 7800;
        assert_int_equal(spa_retry_next(&r, 3200), 7800);      /* the last try */
    }
}

static void test_retry_devices_do_not_come_back_together(void **state)
{
    (void)state;
    uint32_t seen[101] = { 0 }, most = 0;
    for (uint64_t seed = 0; seed < 1000; seed++) {
        struct spa_retry r = { 0 };
        spa_retry_begin(&r, 0, 30000, seed);
        const uint32_t n = ++seen[spa_retry_next(&r, 0)];
        most = n > most ? n : most;
    }
    assert_in_range(most, 1, 40);
}

/* ---- the beginning of an answer ---- */

static spa_Tokens tokens;

static struct spa_talk_event say(uint32_t n, const char *text)
{
    tokens = (spa_Tokens){ .ids_count = (pb_size_t)n, .by_count = (pb_size_t)n };
    for (uint32_t i = 0; i < n; i++) {
        tokens.ids[i] = (int32_t)(10 + i);
        tokens.by[i] = i % 2 ? spa_Speaker_PLUGIN : spa_Speaker_BASE;
    }
    return (struct spa_talk_event){ .type = SPA_TALK_TOKENS, .tokens = &tokens, .text = text, .text_len = strlen(text) };
}

static void take(struct spa_confirmed *c, uint32_t n, const char *text, int rc, const char *left)
{
    struct spa_talk_event ev = say(n, text);
    assert_int_equal(spa_confirmed_take(c, &ev), rc);
    assert_int_equal(ev.text_len, strlen(left));
    assert_memory_equal(ev.text, left, ev.text_len);
}

static void test_confirmed_text_that_comes_again_is_known(void **state)
{
    (void)state;
    struct spa_confirmed c = { 0 };
    take(&c, 2, "ab", 1, "ab");
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    take(&c, 1, "c", 1, "c");            /* what came with tokens does not come again */
    take(&c, 0, "tail", 1, "tail");      /* what came behind the last does */
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    take(&c, 0, "ta", 0, "");
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    take(&c, 0, "tail and more", 1, " and more");
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    take(&c, 1, "tail and more yet", 1, " yet");
    const struct spa_part p = spa_confirmed_part(&c);
    const int32_t ids[4] = { 10, 11, 10, 10 };
    assert_int_equal(p.kind, SPA_PART_CONFIRMED);
    assert_int_equal(p.len, sizeof ids);
    assert_memory_equal(p.bytes, ids, sizeof ids);
    spa_confirmed_begin(&c);
    assert_int_equal(c.n, 0);
    take(&c, 0, "new", 1, "new");
    spa_confirmed_free(&c);
}

static void test_confirmed_logprobs_that_come_again_are_known(void **state)
{
    (void)state;
    struct spa_confirmed c = { 0 };
    struct spa_talk_event p = { .type = SPA_TALK_LOGPROBS, .text = "x", .text_len = 1 };
    assert_int_equal(spa_confirmed_take(&c, &p), 1);
    take(&c, 1, "a", 1, "a");
    assert_int_equal(spa_confirmed_take(&c, &p), 1);
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    assert_int_equal(spa_confirmed_take(&c, &p), 0);
    take(&c, 1, "b", 1, "b");
    assert_int_equal(spa_confirmed_take(&c, &p), 1);
    take(&c, 1, "c", 1, "c");
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ 0 });
    assert_int_equal(spa_confirmed_take(&c, &p), 1);
    spa_confirmed_free(&c);
}

static void test_confirmed_counts_of_all_connections_add_up(void **state)
{
    (void)state;
    struct spa_confirmed c = { 0 };
    take(&c, 4, "abcd", 1, "abcd");
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ .started_us = 5, .first_token_us = 7, .bytes_up = 10, .bytes_down = 20, .round_trips = 2 });
    spa_confirmed_broken(&c, &(struct spa_talk_stats){ .started_us = 50, .bytes_up = 1, .bytes_down = 2 });
    struct spa_talk_stats s = { .started_us = 100, .first_token_us = 110, .bytes_up = 100, .bytes_down = 200, .round_trips = 3, .gated = 3, .tokens = 9 };
    spa_confirmed_stats(&c, &s);
    assert_int_equal(s.started_us, 5);
    assert_int_equal(s.first_token_us, 7);
    assert_int_equal(s.bytes_up, 111);
    assert_int_equal(s.bytes_down, 222);
    assert_int_equal(s.round_trips, 5);
    assert_int_equal(s.gated, 5);   /* two of the first four were the plugin's */
    assert_int_equal(s.tokens, 9);
    spa_confirmed_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_retry_backs_off_up_to_its_deadline),
        cmocka_unit_test(test_retry_begins_once_until_it_is_over),
        cmocka_unit_test(test_retry_waits_as_long_as_the_cloud_says_if_there_is_time),
        cmocka_unit_test(test_retry_devices_do_not_come_back_together),
        cmocka_unit_test(test_confirmed_text_that_comes_again_is_known),
        cmocka_unit_test(test_confirmed_logprobs_that_come_again_are_known),
        cmocka_unit_test(test_confirmed_counts_of_all_connections_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
