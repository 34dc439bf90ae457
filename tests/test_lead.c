/* test_lead.c - rows that begin alike: their beginning is decoded once, and each of them learns from what it would have alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"

#include <time.h>

enum { ROWS = 4, BULK = 8192 };

static const char system_prompt[] = "You are a helpful one.";   /* 22 tokens, more than a decode call of the fake model's takes */
static const char *const own[ROWS] = { "Who?", "What is it?", "Where", "Who?" };
static const char *const answers[ROWS] = { "me", "a thing", "there", "you" };

struct bulk { size_t len; uint8_t bytes[BULK]; };

/* All rows, in a group each (alone) or in one; what came for each. before: what stands before each row; base: the first one's number. */
static void ask(struct spa_link *l, const char *before, uint32_t base, bool fit, bool alone, struct bulk *got)
{
    struct spa_session_event ev;
    char why[512] = "";
    uint8_t work[256];
    struct spa_part parts[3];
    parts[0] = (struct spa_part){ SPA_PART_TEXT, false, (const uint8_t *)before, (uint32_t)strlen(before) };
    for (uint32_t i = 0; i < ROWS; i++) {
        parts[1] = (struct spa_part){ SPA_PART_TEXT, false, (const uint8_t *)own[i], (uint32_t)strlen(own[i]) };
        parts[2] = (struct spa_part){ SPA_PART_TEXT, true, (const uint8_t *)answers[i], (uint32_t)strlen(answers[i]) };
        const spa_Learn learn = { .row = base + i, .fit = fit, .more = !alone && i + 1 < ROWS, .last = fit && i + 1 == ROWS };
        assert_int_equal(spa_session_learn(spa_link_session(l), &learn, parts, 3, work), SPA_OK);
    }
    for (uint32_t done = 0; done < ROWS;) {
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%u of %d rows came; %s", done, ROWS, why);
        if (ev.type != SPA_MSG_FEATURES)
            fail_msg("a message of type %d came: %.*s", ev.type, (int)ev.msg->bulk_len, (const char *)ev.msg->bulk);
        if (got) {
            struct bulk *b = &got[ev.msg->head.features.row - base];
            assert_true(ev.msg->bulk_len <= BULK);
            b->len = ev.msg->bulk_len;
            memcpy(b->bytes, ev.msg->bulk, b->len);
        }
        done++;
    }
}

static void assert_same_bulks(const struct bulk *a, const struct bulk *b)
{
    for (uint32_t i = 0; i < ROWS; i++) {
        assert_true(a[i].len > 0);
        assert_int_equal(a[i].len, b[i].len);
        assert_memory_equal(a[i].bytes, b[i].bytes, a[i].len);
    }
}

/* user: odd ones' plugins look back. */
static void check_same_as_alone(uint32_t user)
{
    static struct bulk alone[ROWS], together[ROWS];
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    char why[512] = "";
    cloud_start(&c);
    plugin_make(&f, user);
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    ask(l, system_prompt, 0, false, true, alone);
    const unsigned before = fake_model_learn_calls(&c.model);
    ask(l, system_prompt, ROWS, false, false, together);
    /* 16 and 8 tokens of the beginning, to which "Wh" belongs; then 3, 15, 7 and 4 of the rows, 16 a call. */
    assert_int_equal(fake_model_learn_calls(&c.model) - before, 2 + 2);
    assert_same_bulks(alone, together);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

static void test_lead_rows_are_as_alone(void **state) { (void)state; check_same_as_alone(2); }
static void test_lead_rows_with_context_are_as_alone(void **state) { (void)state; check_same_as_alone(1); }

/* A few tokens in common, as every chat begins with, are not worth a call. */
static void test_lead_short_ones_are_decoded_with_each_row(void **state)
{
    (void)state;
    static struct bulk together[ROWS];
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    char why[512] = "";
    cloud_start(&c);
    plugin_make(&f, 1);
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    ask(l, "user: ", 0, false, false, together);
    assert_int_equal(fake_model_learn_calls(&c.model), 4);   /* 11, 17, 15, 12 tokens */
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* What a fit has kept of rows with a common beginning is what decoding them again gives. */
static void test_lead_of_fitted_rows_is_kept(void **state)
{
    (void)state;
    static struct bulk kept[ROWS], decoded[ROWS];
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_session_event ev;
    char why[512] = "";
    cloud_start(&c);
    plugin_make(&f, 1);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    ask(l, system_prompt, 0, true, false, NULL);
    if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1 || ev.type != SPA_MSG_FITTED)
        fail_msg("no basis; %s", why);
    const unsigned before = fake_model_learn_calls(&c.model);
    ask(l, system_prompt, ROWS, false, false, kept);
    assert_int_equal(fake_model_learn_calls(&c.model), before);
    ask(l, system_prompt, 2 * ROWS, false, false, decoded);
    assert_true(fake_model_learn_calls(&c.model) > before);
    assert_same_bulks(kept, decoded);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* Devices that leave while their rows' beginning is decoded leave nothing behind: not a sequence, not a cell. */
static void test_lead_of_a_device_that_left_is_gone(void **state)
{
    (void)state;
    enum { TIMES = 12 };   /* there are eight sequences */
    static struct bulk alone[ROWS], together[ROWS];
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_session_event ev;
    char why[512] = "", text[600];
    uint8_t work[600];
    memset(text, 'x', sizeof text);
    cloud_start(&c);
    plugin_make(&f, 1);
    for (uint32_t k = 0; k < TIMES; k++) {
        if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
            fail_msg("%s", why);
        fake_model_hold(&c.model, true);
        for (uint32_t i = 0; i < 2; i++) {
            const struct spa_part parts[2] = { { SPA_PART_TEXT, false, (const uint8_t *)text, 500 }, { SPA_PART_TEXT, true, (const uint8_t *)answers[i], 2 } };
            const spa_Learn learn = { .row = i, .more = i == 0 };
            assert_int_equal(spa_session_learn(spa_link_session(l), &learn, parts, 2, work), SPA_OK);
        }
        assert_int_equal(spa_link_wait(l, 20, &ev, why, sizeof why), 0);   /* the first of the beginning's 32 calls is under way */
        spa_link_close(l);
        nanosleep(&(struct timespec){ 0, 50000000 }, NULL);
        fake_model_hold(&c.model, false);
    }
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    ask(l, system_prompt, 0, false, false, together);
    ask(l, system_prompt, ROWS, false, true, alone);
    assert_same_bulks(alone, together);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lead_rows_are_as_alone),
        cmocka_unit_test(test_lead_rows_with_context_are_as_alone),
        cmocka_unit_test(test_lead_short_ones_are_decoded_with_each_row),
        cmocka_unit_test(test_lead_of_fitted_rows_is_kept),
        cmocka_unit_test(test_lead_of_a_device_that_left_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
