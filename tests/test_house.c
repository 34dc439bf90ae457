/* test_house.c - house prompts: prefilled once, the same answers as without them, and nothing else is shared (cloud/house.h). Real
 * sockets, real threads, the fake model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"

enum { ANSWER = 16, TEXT = 64, USERS = 6 };

static const char *const house[2] = { "You are the assistant of a house by the sea. Be kind, be short, and never sing.",
                                      "You are the other one: you sing all day long, whatever the question is." };

struct answer {
    char text[TEXT];
    uint32_t cached, prompt;
};

/* A connection of its own asks `user` after `system`. number: the plugin's, odd ones look back; UINT32_MAX: none. */
static struct answer ask(const struct cloud *c, uint32_t number, const char *system, const char *user)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    struct answer a = { .text = "" };
    char why[512];
    const bool plugin = number != UINT32_MAX;
    if (plugin)
        plugin_make(&f, number);
    if (link_open(&l, c->url, plugin ? &f : NULL, NULL, why, sizeof why) != 0 || spa_talk_new(&t, l, plugin ? &f : NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    const struct spa_part parts[2] = { { .kind = SPA_PART_SYSTEM, .bytes = (const uint8_t *)system, .len = (uint32_t)strlen(system) },
                                       { .kind = SPA_PART_USER, .bytes = (const uint8_t *)user, .len = (uint32_t)strlen(user) } };
    struct spa_talk_request r = { .parts = parts, .n_parts = 2 };
    spa_talk_defaults(&r.settings);
    r.settings.temp = 1.0f;
    r.settings.seed = 3;
    r.settings.n_predict = ANSWER;
    r.settings.gate = plugin ? spa_GateMode_GATE_ALWAYS : spa_GateMode_GATE_NEVER;
    uint32_t id;
    if (spa_talk_ask(t, &r, &id, why, sizeof why) != 1)
        fail_msg("not taken: %s", why);
    for (;;) {
        struct spa_talk_event ev;
        if (spa_talk_wait(t, 30000, &ev, why, sizeof why) != 1 || ev.type == SPA_TALK_ERROR)
            fail_msg("%s %.*s", why, ev.type == SPA_TALK_ERROR ? (int)ev.text_len : 0, ev.text);
        if (ev.type == SPA_TALK_DONE)
            break;
        assert_true(strlen(a.text) + ev.text_len < TEXT);
        strncat(a.text, ev.text, ev.text_len);
    }
    a.cached = spa_talk_stats(t, id)->cached_tokens;
    a.prompt = spa_talk_stats(t, id)->prompt_tokens;
    spa_talk_free(t);
    spa_link_close(l);
    if (plugin)
        spa_plugin_file_free(&f);
    return a;
}

/* Whole micro-batches of "system:TEXT\nuser:", which the template writes whatever the user says. */
static uint32_t shared(const char *text)
{
    const uint32_t n = (uint32_t)(strlen("system:\nuser:") + strlen(text));
    return n - n % FAKE_UBATCH;
}

static void test_house_answers_are_those_without_one(void **state)
{
    (void)state;
    struct cloud with, without;
    cloud_start_how(&with, (struct cloud_how){ .houses = house, .n_houses = 2 });
    cloud_start(&without);
    for (uint32_t u = 0; u < USERS; u++) {
        char question[32];
        snprintf(question, sizeof question, "Who is %u?", u);
        for (uint32_t which = 0; which < 2; which++) {
            const uint32_t number = u == 4 ? UINT32_MAX : u;
            const struct answer a = ask(&with, number, house[which], question), b = ask(&without, number, house[which], question);
            assert_string_equal(a.text, b.text);
            assert_int_equal(a.prompt, b.prompt);
            assert_int_equal(b.cached, 0);
            /* User 1 is the first whose device needs context rows: it makes them, the others have them. */
            assert_int_equal(a.cached, u == 1 ? 0 : shared(house[which]));
        }
    }
    cloud_stop(&with);
    cloud_stop(&without);
}

static void test_house_other_prompts_share_nothing(void **state)
{
    (void)state;
    struct cloud c;
    cloud_start_how(&c, (struct cloud_how){ .houses = house, .n_houses = 1 });
    const char *const other = "Something else entirely, twice as long as it need be, said by a user.";
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t number = 0; number < 2; number++)
            assert_int_equal(ask(&c, number, other, "Who?").cached, 0);
    cloud_stop(&c);
}

static void test_house_prompt_that_differs_on_the_way_shares_what_is_before(void **state)
{
    (void)state;
    struct cloud with, without;
    cloud_start_how(&with, (struct cloud_how){ .houses = house, .n_houses = 1 });
    cloud_start(&without);
    char text[256];
    snprintf(text, sizeof text, "%.30s another house. Sing.", house[0]);
    const uint32_t same = (uint32_t)strlen("system:") + 30;
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t number = 0; number < 2; number++) {
            const struct answer a = ask(&with, number, text, "Who?"), b = ask(&without, number, text, "Who?");
            assert_string_equal(a.text, b.text);
            assert_true(a.cached <= same + 1 && a.cached % FAKE_UBATCH == 0);
            assert_true(i == 0 && number == 1 ? a.cached == 0 : a.cached > same - FAKE_UBATCH);
        }
    /* What was learnt of the beginning is not taken for all of it. */
    const struct answer a = ask(&with, 1, house[0], "Who?"), b = ask(&without, 1, house[0], "Who?");
    assert_string_equal(a.text, b.text);
    assert_int_equal(a.cached, 0);
    assert_int_equal(ask(&with, 1, house[0], "And who?").cached, shared(house[0]));
    cloud_stop(&with);
    cloud_stop(&without);
}

static void test_house_prompt_that_is_too_short_or_too_long_is_refused(void **state)
{
    (void)state;
    struct spa_model m;
    char why[512], longer[FAKE_CTX + 1];
    size_t failed;
    fake_model_open(&m);
    memset(longer, 'x', FAKE_CTX);
    longer[FAKE_CTX] = '\0';
    m.info.n_ubatch = 16;
    const char *const words[2] = { house[0], "" };
    assert_null(spa_houses_new(&m, words, 2, &failed, why, sizeof why));
    assert_int_equal(failed, 1);
    assert_non_null(strstr(why, "tokens"));
    const char *const one = longer;
    assert_null(spa_houses_new(&m, &one, 1, &failed, why, sizeof why));
    assert_int_equal(failed, 0);
    assert_non_null(strstr(why, "slot"));
    fake_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_house_answers_are_those_without_one),
        cmocka_unit_test(test_house_other_prompts_share_nothing),
        cmocka_unit_test(test_house_prompt_that_differs_on_the_way_shares_what_is_before),
        cmocka_unit_test(test_house_prompt_that_is_too_short_or_too_long_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
