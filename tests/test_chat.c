/* test_chat.c - the turns of a chat, each going on from the one before (GENERATE's after): the same text as when every turn starts from
 * nothing, over less wire, whatever is cancelled, forgotten or in between. Real sockets, real threads, the fake model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"

enum { TURNS = 4, ANSWER = 16, TEXT = 64, LONG = 500 };

struct user {
    struct spa_plugin_file f;
    struct spa_link *l;
    struct spa_talk *t;
    char why[512];
};

/* The cloud's guesses, and the users' padding: all tests run without and with them. */
static uint32_t run_ahead;
static bool pad;

/* number: the plugin's, odd ones look back. Its gate picks about half of the tokens. */
static void user_open(struct user *u, const struct cloud *c, uint32_t number, uint32_t window)
{
    static float gate[FAKE_D];
    for (uint32_t i = 0; i < FAKE_D; i++)
        gate[i] = (float)(spa_noise64(number, 5, i) % 201) / 100.0f - 1.0f;
    memset(u, 0, sizeof *u);
    plugin_make(&u->f, number);
    if (link_open(&u->l, c->url, &u->f, gate, u->why, sizeof u->why) != 0 || spa_talk_new(&u->t, u->l, &u->f, u->why, sizeof u->why) != 0)
        fail_msg("%s", u->why);
    spa_talk_window(u->t, window);
    spa_talk_pad(u->t, pad);
}

static void user_close(struct user *u)
{
    spa_talk_free(u->t);
    spa_link_close(u->l);
    spa_plugin_file_free(&u->f);
}


struct chat {
    bool sampled;
    spa_GateMode gates[TURNS];
    uint32_t cancel_after[TURNS];          /* tokens; 0: it is not cancelled */
    uint32_t first;                        /* turn that the history begins with */
    size_t long_by;                        /* bytes that make its question longer */
    char answers[TURNS][TEXT];
    struct spa_talk_stats stats[TURNS];
    uint32_t ids[TURNS];
};

/* Asks turn k: all turns before it, with their answers, are the prompt. Returns the request's number. */
static uint32_t ask(struct user *u, struct chat *c, uint32_t k, uint32_t after, uint32_t cancel_after, char *answer, struct spa_talk_stats *stats)
{
    struct spa_part parts[2 * TURNS];
    static char texts[TURNS][LONG + 32];
    size_t n = 0;
    for (uint32_t i = c->first; i <= k; i++) {
        snprintf(texts[i], sizeof texts[i], "Q%u: what is %u", i, 17 * i);
        for (size_t at = strlen(texts[i]), end = at + (i == c->first ? c->long_by : 0); at < end; at++) {
            texts[i][at] = (char)('A' + at % 26);
            texts[i][at + 1] = '\0';
        }
        parts[n++] = (struct spa_part){ .kind = SPA_PART_USER, .bytes = (const uint8_t *)texts[i], .len = (uint32_t)strlen(texts[i]) };
        if (i < k)
            parts[n++] = (struct spa_part){ .kind = SPA_PART_ASSISTANT, .bytes = (const uint8_t *)c->answers[i], .len = (uint32_t)strlen(c->answers[i]) };
    }
    struct spa_talk_request r = { .parts = parts, .n_parts = n };
    spa_talk_defaults(&r.settings);
    r.settings.temp = c->sampled ? 1.0f : 0.0f;
    r.settings.seed = 11;
    r.settings.n_predict = ANSWER;
    r.settings.gate = c->gates[k];
    r.settings.after = after;
    uint32_t id, tokens = 0;
    if (spa_talk_ask(u->t, &r, &id, u->why, sizeof u->why) != 1)
        fail_msg("turn %u was not taken: %s", k, u->why);
    answer[0] = '\0';
    for (;;) {
        struct spa_talk_event ev;
        if (spa_talk_wait(u->t, 30000, &ev, u->why, sizeof u->why) != 1 || ev.type == SPA_TALK_ERROR)
            fail_msg("turn %u: %s %.*s", k, u->why, ev.type == SPA_TALK_ERROR ? (int)ev.text_len : 0, ev.text);
        if (ev.type == SPA_TALK_DONE)
            break;
        assert_true(strlen(answer) + ev.text_len < TEXT);
        strncat(answer, ev.text, ev.text_len);
        const uint32_t before = tokens;
        tokens += ev.tokens->ids_count;
        if (before < cancel_after && tokens >= cancel_after)
            spa_talk_cancel(u->t, id);
    }
    *stats = *spa_talk_stats(u->t, id);
    return id;
}

/* One chat, turn by turn. */
static void turn(struct user *u, struct chat *c, uint32_t k)
{
    c->ids[k] = ask(u, c, k, k > c->first ? c->ids[k - 1] : 0, c->cancel_after[k], c->answers[k], &c->stats[k]);
}

/* Every turn's answer again, each on a connection of its own with nothing to go on from. */
static void assert_as_from_nothing(const struct cloud *cloud, struct chat *c, uint32_t number, uint32_t window)
{
    for (uint32_t k = c->first; k < TURNS; k++) {
        struct user u;
        char answer[TEXT];
        struct spa_talk_stats stats;
        user_open(&u, cloud, number, window);
        spa_talk_pad(u.t, false);
        ask(&u, c, k, 0, 0, answer, &stats);
        assert_int_equal(stats.cached_tokens, 0);
        assert_int_equal(stats.prompt_tokens, c->stats[k].prompt_tokens);
        if (c->cancel_after[k])
            answer[strlen(c->answers[k])] = '\0';
        else
            assert_int_equal(strlen(answer), ANSWER);
        assert_string_equal(c->answers[k], answer);
        /* A turn that was cancelled may have brought the device nothing yet, whatever the cloud has kept. */
        const bool cut = c->cancel_after[k] || (k > c->first && c->cancel_after[k - 1]);
        if (c->stats[k].cached_tokens && c->gates[k] == spa_GateMode_GATE_AUTO && u.f.plugin.shape.n_ctx_taps && !cut && !run_ahead && !pad)
            assert_true(c->stats[k].bytes_down < stats.bytes_down);
        user_close(&u);
    }
}

static void test_chat_turns_that_go_on_say_the_same(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    for (uint32_t number = 0; number < 8; number++) {
        struct chat c = { .sampled = number / 4 };
        struct user u;
        user_open(&u, &cloud, number % 4, 0);
        for (uint32_t k = 0; k < TURNS; k++)
            turn(&u, &c, k);
        user_close(&u);
        assert_int_equal(c.stats[0].cached_tokens, 0);
        for (uint32_t k = 1; k < TURNS; k++)   /* the fake tokenizer takes half of what was said for something else: at least the question before is kept */
            assert_true(c.stats[k].cached_tokens >= c.stats[k - 1].prompt_tokens);
        assert_as_from_nothing(&cloud, &c, number % 4, 0);
    }
    cloud_stop(&cloud);
}

/* Turns that never ask leave no context rows behind: what they decoded is decoded again when rows are wanted. */
static void test_chat_with_turns_of_the_base_alone_says_the_same(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    for (uint32_t mask = 1; mask < 1 << TURNS; mask++) {
        struct chat c = { 0 };
        struct user u;
        for (uint32_t k = 0; k < TURNS; k++)
            c.gates[k] = mask >> k & 1 ? spa_GateMode_GATE_NEVER : spa_GateMode_GATE_AUTO;
        user_open(&u, &cloud, 1, 0);
        for (uint32_t k = 0; k < TURNS; k++)
            turn(&u, &c, k);
        user_close(&u);
        for (uint32_t k = 1; k < TURNS; k++)
            assert_int_equal(c.stats[k].cached_tokens > 0, (mask >> k & 1) || (mask & ((1u << k) - 1)) != (1u << k) - 1);
        assert_as_from_nothing(&cloud, &c, 1, 0);
    }
    cloud_stop(&cloud);
}

static void test_chat_after_a_cancelled_turn_says_the_same(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    for (uint32_t after = 1; after <= 15; after++) {
        struct chat c = { .cancel_after = { after, 0, after, 0 } };
        struct user u;
        user_open(&u, &cloud, 1 + 2 * (after % 2), 0);
        for (uint32_t k = 0; k < TURNS; k++)
            turn(&u, &c, k);
        user_close(&u);
        assert_as_from_nothing(&cloud, &c, 1 + 2 * (after % 2), 0);
    }
    cloud_stop(&cloud);
}

/* Others need all slots between two turns: the cloud has forgotten the chat, and it goes on from nothing. */
static void test_chat_that_the_cloud_has_forgotten_says_the_same(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    struct chat c = { 0 }, others[FAKE_SLOTS] = { { 0 } };
    struct user u, other;
    user_open(&u, &cloud, 3, 0);
    user_open(&other, &cloud, 1, 0);
    turn(&u, &c, 0);
    turn(&u, &c, 1);
    for (uint32_t i = 0; i < FAKE_SLOTS; i++)
        turn(&other, &others[i], 0);
    turn(&u, &c, 2);
    turn(&u, &c, 3);
    assert_true(c.stats[1].cached_tokens > 0);
    assert_int_equal(c.stats[2].cached_tokens, 0);
    assert_true(c.stats[3].cached_tokens > 0);
    assert_as_from_nothing(&cloud, &c, 3, 0);
    user_close(&other);
    user_close(&u);
    cloud_stop(&cloud);
}

/* A newcomer takes the slot whose sequence ended first: with one slot fewer in use than there are, a chat is not forgotten. */
static void test_chat_keeps_its_slot_while_others_have_older_ones(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    struct chat c = { 0 };
    struct user u, other;
    user_open(&u, &cloud, 1, 0);
    user_open(&other, &cloud, 2, 0);
    for (uint32_t k = 0; k < TURNS; k++) {
        turn(&u, &c, k);
        for (uint32_t i = 0; i + 1 < FAKE_SLOTS; i++) {
            struct chat one = { 0 };
            turn(&other, &one, 0);
        }
        assert_int_equal(c.stats[k].cached_tokens > 0, k > 0);
    }
    user_close(&other);
    user_close(&u);
    cloud_stop(&cloud);
}

/* The same number on another connection is another request, also when plugin and text are the same. */
static void test_chat_never_goes_on_from_another_connection(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    struct chat c = { 0 }, same = { 0 };
    struct user u, other;
    user_open(&u, &cloud, 1, 0);
    user_open(&other, &cloud, 1, 0);
    turn(&u, &c, 0);
    for (uint32_t k = 0; k < 2; k++)
        turn(&other, &same, k);
    assert_int_equal(same.ids[0], c.ids[0]);
    assert_true(same.stats[1].cached_tokens > 0);
    /* The other's first request went into its second: of that number there is only u's left, and it is not the other's. */
    same.ids[2] = ask(&other, &same, 2, same.ids[0], 0, same.answers[2], &same.stats[2]);
    assert_int_equal(same.stats[2].cached_tokens, 0);
    for (uint32_t k = 1; k < TURNS; k++) {
        turn(&u, &c, k);
        assert_true(c.stats[k].cached_tokens > 0);
    }
    assert_string_equal(same.answers[2], c.answers[2]);
    /* u leaves, and its sequences with it. */
    user_close(&u);
    struct chat late = { 0 };
    user_open(&u, &cloud, 1, 0);
    turn(&u, &late, 0);
    assert_int_equal(late.stats[0].cached_tokens, 0);
    user_close(&u);
    user_close(&other);
    cloud_stop(&cloud);
}

/* With a short window the device cannot go back far: it says so, and the cloud starts from nothing where it would have to. */
static void test_chat_with_a_window_says_the_same(void **state)
{
    (void)state;
    struct cloud cloud;
    cloud_start_how(&cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = true });
    for (uint32_t number = 1; number <= 3; number += 2)
        for (uint32_t window = 1; window < 40; window += 19) {
            struct chat c = { .long_by = LONG };
            struct user u;
            user_open(&u, &cloud, number, window);
            for (uint32_t k = 0; k < TURNS; k++)
                turn(&u, &c, k);
            /* A new chat that shares no more than the first words with the old one. */
            struct chat other = { .first = 2 };
            other.ids[1] = c.ids[3];
            other.ids[2] = ask(&u, &other, 2, c.ids[3], 0, other.answers[2], &other.stats[2]);
            other.ids[3] = ask(&u, &other, 3, other.ids[2], 0, other.answers[3], &other.stats[3]);
            user_close(&u);
            for (uint32_t k = 1; k < TURNS; k++)
                assert_true(c.stats[k].cached_tokens > LONG);
            assert_int_equal(other.stats[2].cached_tokens, 0);
            assert_true(other.stats[3].cached_tokens > 0);
            assert_as_from_nothing(&cloud, &c, number, window);
            assert_as_from_nothing(&cloud, &other, number, window);
        }
    cloud_stop(&cloud);
}

/* Its sockets answer pings, its decode thread stands still. */
static void test_chat_cloud_that_lives_and_says_nothing_is_given_up(void **state)
{
    (void)state;
    struct cloud c;
    struct user u = { 0 };
    struct spa_talk_event ev;
    uint32_t id;
    int got;
    cloud_start(&c);
    const struct spa_link_config lc = { .url = c.url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .silence_s = 1, .ping_s = 1 };
    if (spa_link_open(&u.l, &lc, u.why, sizeof u.why) != 0 || spa_talk_new(&u.t, u.l, NULL, u.why, sizeof u.why) != 0)
        fail_msg("%s", u.why);
    assert_int_equal(spa_talk_wait(u.t, 1500, &ev, u.why, sizeof u.why), 0);   /* nothing is owed: nobody is given up */
    fake_model_hold(&c.model, true);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"hello", .len = 5 };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.raw = true;
    r.settings.gate = spa_GateMode_GATE_NEVER;
    assert_int_equal(spa_talk_ask(u.t, &r, &id, u.why, sizeof u.why), 1);
    while ((got = spa_talk_wait(u.t, -1, &ev, u.why, sizeof u.why)) == 1)
        ;
    assert_int_equal(got, -1);
    assert_non_null(strstr(u.why, "has said nothing for 1 s in the middle of an answer"));
    fake_model_hold(&c.model, false);
    user_close(&u);
    cloud_stop(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_turns_that_go_on_say_the_same),
        cmocka_unit_test(test_chat_with_turns_of_the_base_alone_says_the_same),
        cmocka_unit_test(test_chat_after_a_cancelled_turn_says_the_same),
        cmocka_unit_test(test_chat_that_the_cloud_has_forgotten_says_the_same),
        cmocka_unit_test(test_chat_keeps_its_slot_while_others_have_older_ones),
        cmocka_unit_test(test_chat_never_goes_on_from_another_connection),
        cmocka_unit_test(test_chat_with_a_window_says_the_same),
    };
    const struct CMUnitTest once[] = { cmocka_unit_test(test_chat_cloud_that_lives_and_says_nothing_is_given_up) };
    const int waiting = cmocka_run_group_tests(tests, NULL, NULL) + cmocka_run_group_tests(once, NULL, NULL);
    run_ahead = 8;
    const int ahead = cmocka_run_group_tests(tests, NULL, NULL);
    pad = true;
    return waiting + ahead + cmocka_run_group_tests(tests, NULL, NULL);
}
