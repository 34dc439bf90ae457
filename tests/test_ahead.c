/* test_ahead.c - run-ahead: whatever is guessed, the answer is the one of a cloud that waits for every state. Real sockets behind a slow
 * path, real threads, the fake model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"
#include "slow_path.h"

#include <math.h>

enum { ANSWER = 24, TOKENS_MAX = 64, TEXT = 256, WAIT_MS = 30000 };

struct bench {                       /* a cloud, and the way to it */
    struct cloud cloud;
    struct slow_path path;
};

static void bench_open_as(struct bench *b, uint32_t run_ahead, bool always)
{
    cloud_start_how(&b->cloud, (struct cloud_how){ .run_ahead = run_ahead, .always = always });
    slow_path_start(&b->path, atoi(strrchr(b->cloud.url, ':') + 1), 500, 4000, 7);
}

static void bench_open(struct bench *b, uint32_t run_ahead) { bench_open_as(b, run_ahead, true); }

static void bench_close(struct bench *b)
{
    slow_path_stop(&b->path);
    cloud_stop(&b->cloud);
}

struct how {
    const char *prompt, *stop;
    uint32_t number;                 /* the plugin's, odd ones look back */
    float strength;                  /* of its last layer: at 0 the base is always right */
    int32_t n_predict;
    float temp, repeat_penalty;
    spa_GateMode gate;
    uint32_t run_ahead;
    spa_Late late;
    uint32_t cancel_after;           /* tokens; 0: it is not cancelled */
};

struct got {
    int32_t ids[TOKENS_MAX];
    uint8_t by[TOKENS_MAX];
    uint32_t n;
    char text[TEXT];
    bool failed;
    spa_Code code;
    spa_Finish finish;
    struct spa_talk_stats stats;
};

static void plugin_of(struct spa_plugin_file *f, const struct how *h)
{
    plugin_make(f, h->number);
    const size_t n = spa_tensor_count(&f->plugin.shape);
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        spa_param_tensor(&f->plugin.shape, i, &t);
        for (size_t k = 0; strstr(t.name, "_out") && k < (size_t)t.rows * t.cols; k++)
            f->params[t.offset + k] *= h->strength;
        for (size_t k = 0; strstr(t.name, ".Wv") && k < (size_t)t.rows * t.cols; k++)
            f->params[t.offset + k] *= 20;   /* what was said before matters: one wrong row behind makes another token */
    }
}

/* One answer. before: a request to go on from, 0: none; *id its number. */
static void ask(struct spa_talk *t, const struct how *h, uint32_t before, uint32_t *id, struct got *g)
{
    const struct spa_part parts[2] = { { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)h->prompt, .len = (uint32_t)strlen(h->prompt) },
                                       { .kind = SPA_PART_STOP, .bytes = (const uint8_t *)h->stop, .len = h->stop ? (uint32_t)strlen(h->stop) : 0 } };
    struct spa_talk_request r = { .parts = parts, .n_parts = h->stop ? 2 : 1 };
    char why[512] = "";
    memset(g, 0, sizeof *g);
    spa_talk_defaults(&r.settings);
    r.settings.raw = true;
    r.settings.temp = h->temp;
    r.settings.seed = 5;
    r.settings.repeat_penalty = h->repeat_penalty ? h->repeat_penalty : 1.0f;
    r.settings.n_predict = h->n_predict ? h->n_predict : ANSWER;
    r.settings.gate = h->gate;
    r.settings.run_ahead = h->run_ahead;
    r.settings.after = before;
    if (spa_talk_ask(t, &r, id, why, sizeof why) != 1)
        fail_msg("%s", why);
    for (;;) {
        struct spa_talk_event ev;
        if (spa_talk_wait(t, WAIT_MS, &ev, why, sizeof why) != 1)
            fail_msg("%s", why[0] ? why : "nothing came");
        if (ev.type == SPA_TALK_TOKENS) {
            for (uint32_t i = 0; i < ev.tokens->ids_count; i++) {
                g->ids[g->n] = ev.tokens->ids[i];
                g->by[g->n++] = (uint8_t)ev.tokens->by[i];
            }
            strncat(g->text, ev.text, ev.text_len);
            if (h->cancel_after && g->n >= h->cancel_after)
                spa_talk_cancel(t, *id);
            continue;
        }
        g->failed = ev.type == SPA_TALK_ERROR;
        g->code = ev.code;
        g->finish = ev.finish;
        break;
    }
    g->stats = *spa_talk_stats(t, *id);
}

static void talk_open(const char *url, const struct how *h, struct spa_plugin_file *f, struct spa_link **l, struct spa_talk **t)
{
    char why[512] = "";
    float gate[FAKE_D];
    for (uint32_t i = 0; i < FAKE_D; i++)
        gate[i] = (float)(spa_noise64(h->number, 5, i) % 201) / 100.0f - 1.0f;   /* it picks about half of the tokens */
    plugin_of(f, h);
    if (link_open(l, url, f, gate, why, sizeof why) != 0 || spa_talk_new(t, *l, f, why, sizeof why) != 0)
        fail_msg("%s", why);
}

static void talk_close(struct spa_plugin_file *f, struct spa_link *l, struct spa_talk *t)
{
    spa_talk_free(t);
    spa_link_close(l);
    spa_plugin_file_free(f);
}

static void answer(const char *url, const struct how *h, struct got *g)
{
    struct spa_plugin_file f;
    struct spa_link *l;
    struct spa_talk *t;
    uint32_t id;
    talk_open(url, h, &f, &l, &t);
    ask(t, h, 0, &id, g);
    talk_close(&f, l, t);
}

static void assert_same(const struct got *a, const struct got *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->by, b->by, a->n);
    assert_string_equal(a->text, b->text);
    assert_int_equal(a->failed, b->failed);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->stats.gated, b->stats.gated);
    assert_int_equal(a->stats.tokens, b->stats.tokens);
}

/* Drafts are how the user's own answers went on: asked again, all of the answer is there; of another answer's drafts none is. */
static void test_ahead_drafts_of_the_device_are_guesses_and_no_more(void **state)
{
    (void)state;
    struct bench b;
    uint32_t lies = 0;
    bench_open(&b, 16);
    for (uint32_t i = 0; i < 8; i++) {
        struct spa_plugin_file f;
        struct spa_link *l;
        struct spa_talk *t;
        struct spa_drafts *d = spa_drafts_new(1024);
        struct got waiting, ahead;
        uint32_t id, drafted = 0, right = 0;
        struct how h = { .prompt = "again", .number = i % 4, .strength = 0.3f, .temp = i / 4 ? 1.0f : 0, .gate = spa_GateMode_GATE_ALWAYS };
        answer(b.cloud.url, &h, &waiting);
        talk_open(b.path.url, &h, &f, &l, &t);
        spa_talk_drafts(t, d);
        h.run_ahead = 16;
        for (uint32_t turn = 0; turn < 3; turn++) {
            ask(t, &h, 0, &id, &ahead);
            assert_same(&waiting, &ahead);
            if (turn == 0)
                assert_int_equal(ahead.stats.guessed_draft, 0);
            drafted += ahead.stats.guessed_draft;
            right += ahead.stats.right_draft;
            /* Things that were never said: only wrong drafts can come of them. */
            int32_t lie[ANSWER];
            for (uint32_t k = 0; k < ANSWER; k++)
                lie[k] = k < 6 ? waiting.ids[k] : (waiting.ids[k] + 1) % FAKE_END;
            for (uint32_t k = 0; turn == 1 && k < 3; k++)
                spa_drafts_add(d, lie, ANSWER);
        }
        assert_true(right > ANSWER / 2);
        lies += drafted - right;
        talk_close(&f, l, t);
        spa_drafts_free(d);
    }
    assert_true(lies > 0);
    bench_close(&b);
}

struct sum { uint32_t guessed, right, wasted, waits, gated; };

static void add_up(struct sum *s, const struct got *g)
{
    s->guessed += g->stats.guessed_base + g->stats.guessed_text;
    s->right += g->stats.right_base + g->stats.right_text;
    s->wasted += g->stats.wasted_steps;
    s->waits += g->stats.waits;
    s->gated += g->stats.gated;
    assert_true(g->stats.right_base <= g->stats.guessed_base && g->stats.right_text <= g->stats.guessed_text);
    assert_true(g->stats.waits <= g->stats.gated);
}

/* ---- the same tokens ---- */

static void test_ahead_says_what_waiting_says(void **state)
{
    (void)state;
    static const uint32_t windows[] = { 1, 3, 31 };
    static const float strengths[] = { 0, 0.05f, 0.3f };
    struct bench b;
    struct sum all = { 0 };
    bench_open(&b, 31);
    for (uint32_t i = 0; i < 3 * 4 * 2 * 2; i++) {
        struct how h = { .prompt = i % 3 ? "tell me" : "abcdefabcdefabcdefabcd", .number = i % 4, .strength = strengths[i / 4 % 3], .temp = i / 12 % 2 ? 1.0f : 0,
                         .repeat_penalty = i % 5 == 0 ? 1.3f : 1.0f, .gate = i / 24 % 2 ? spa_GateMode_GATE_AUTO : spa_GateMode_GATE_ALWAYS };
        struct got waiting, ahead;
        answer(b.cloud.url, &h, &waiting);
        assert_int_equal(waiting.n, ANSWER);
        assert_int_equal(waiting.stats.guessed_base + waiting.stats.wasted_steps, 0);
        assert_int_equal(waiting.stats.waits, waiting.stats.gated);
        h.run_ahead = windows[i % 3];
        answer(b.path.url, &h, &ahead);
        assert_same(&waiting, &ahead);
        add_up(&all, &ahead);
        if (h.strength == 0 && h.repeat_penalty == 1.0f && h.number < 2)   /* y_fin + 0 */
            assert_int_equal(ahead.stats.right_base, ahead.stats.guessed_base);
    }
    /* Both ways are gone: right and wrong guesses, few round trips waited for. */
    assert_true(all.right > 50 && all.guessed > all.right + 20 && all.wasted > 20);
    assert_true(all.waits < all.gated);
    bench_close(&b);
}

/* A repeat makes the text itself the better guess. */
static void test_ahead_text_is_guessed_where_it_repeats(void **state)
{
    (void)state;
    struct bench b;
    struct got waiting, ahead;
    struct how h = { .prompt = "start", .number = 2, .strength = 0.3f, .gate = spa_GateMode_GATE_ALWAYS };
    bench_open(&b, 8);
    answer(b.cloud.url, &h, &waiting);
    /* A prompt that holds what comes anyway: greedy states depend on all tokens before, so only the guesses are of interest. */
    h.prompt = "abcabcabcabcabcabcabc";
    answer(b.cloud.url, &h, &waiting);
    h.run_ahead = 8;
    answer(b.path.url, &h, &ahead);
    assert_same(&waiting, &ahead);
    assert_true(ahead.stats.guessed_text > 0);
    bench_close(&b);
}

struct user {
    const char *url;
    struct how how;
    struct got got;
};

static void *user_run(void *arg)
{
    struct user *u = arg;
    answer(u->url, &u->how, &u->got);
    return NULL;
}

/* More users than slots, guesses only where the cloud expects them to pay: all get what they get alone. */
static void test_ahead_in_company_says_what_waiting_says(void **state)
{
    (void)state;
    enum { USERS = 6, ROUNDS = 3 };
    struct bench b;
    struct sum all = { 0 };
    bench_open_as(&b, 31, false);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        static struct user users[USERS];
        struct got waiting[USERS];
        pthread_t threads[USERS];
        for (uint32_t i = 0; i < USERS; i++) {
            users[i] = (struct user){ .url = b.path.url, .how = { .prompt = "all at once", .number = i, .strength = i % 3 ? 0.05f : 0.3f, .temp = round % 2 ? 1.0f : 0,
                                                                  .gate = i % 2 ? spa_GateMode_GATE_AUTO : spa_GateMode_GATE_ALWAYS } };
            answer(b.cloud.url, &users[i].how, &waiting[i]);
            users[i].how.run_ahead = 31;
            assert_int_equal(pthread_create(&threads[i], NULL, user_run, &users[i]), 0);
        }
        for (uint32_t i = 0; i < USERS; i++) {
            pthread_join(threads[i], NULL);
            assert_same(&waiting[i], &users[i].got);
            add_up(&all, &users[i].got);
        }
    }
    assert_true(all.guessed > 0);
    bench_close(&b);
}

/* ---- ends ---- */

static void test_ahead_ends_where_waiting_ends(void **state)
{
    (void)state;
    struct bench b;
    uint32_t stopped = 0, ended = 0;
    bench_open(&b, 16);
    fake_model_ends(&b.cloud.model);
    for (uint32_t i = 0; i < 24; i++) {
        char prompt[16], stop[2] = "";
        struct how h = { .prompt = prompt, .number = i % 4, .strength = i % 2 ? 0.3f : 0.05f, .temp = 1.0f, .n_predict = 1 + (int32_t)(i * 7 % 40), .gate = spa_GateMode_GATE_ALWAYS };
        struct got waiting, ahead;
        snprintf(prompt, sizeof prompt, "go %u", i);
        answer(b.cloud.url, &h, &waiting);
        if (i % 3 == 0 && waiting.n > 6) {   /* a stop string in the midst of it */
            stop[0] = waiting.text[5];
            h.stop = stop;
            answer(b.cloud.url, &h, &waiting);
            stopped++;
        }
        h.run_ahead = 16;
        answer(b.path.url, &h, &ahead);
        assert_same(&waiting, &ahead);
        ended += !h.stop && waiting.finish == spa_Finish_FINISH_STOP;
    }
    assert_true(stopped > 2 && ended > 2);
    bench_close(&b);
}

static void test_ahead_full_context_ends_as_waiting_does(void **state)
{
    (void)state;
    struct bench b;
    char prompt[FAKE_CTX];
    struct got waiting, ahead;
    for (uint32_t i = 0; i < FAKE_CTX - 10; i++)
        prompt[i] = (char)('a' + i * i % 23);
    prompt[FAKE_CTX - 10] = '\0';
    struct how h = { .prompt = prompt, .number = 1, .strength = 0.05f, .n_predict = -1, .gate = spa_GateMode_GATE_ALWAYS };
    bench_open(&b, 16);
    answer(b.cloud.url, &h, &waiting);
    assert_int_equal(waiting.finish, spa_Finish_FINISH_CONTEXT);
    h.run_ahead = 16;
    answer(b.path.url, &h, &ahead);
    assert_same(&waiting, &ahead);
    bench_close(&b);
}

/* What is kept of an ended or cancelled answer is what was said, no guess. */
static void test_ahead_next_turn_goes_on_from_what_was_said(void **state)
{
    (void)state;
    struct bench b;
    bench_open(&b, 16);
    for (uint32_t i = 0; i < 12; i++) {
        struct spa_plugin_file f;
        struct spa_link *l;
        struct spa_talk *t;
        struct got first, second, from_nothing;
        uint32_t id;
        char prompt[TEXT + 64];
        struct how h = { .prompt = "first question", .number = i % 4, .strength = i % 3 ? 0.05f : 0.3f, .gate = i % 2 ? spa_GateMode_GATE_AUTO : spa_GateMode_GATE_ALWAYS,
                         .run_ahead = 16, .cancel_after = i % 2 ? 0 : 5 };
        talk_open(b.path.url, &h, &f, &l, &t);
        ask(t, &h, 0, &id, &first);
        snprintf(prompt, sizeof prompt, "first question%s", first.text);
        h.prompt = prompt;
        h.cancel_after = 0;
        ask(t, &h, id, &id, &second);
        h.run_ahead = 0;
        answer(b.cloud.url, &h, &from_nothing);
        assert_same(&from_nothing, &second);
        assert_true(second.stats.cached_tokens >= strlen("first question"));
        talk_close(&f, l, t);
    }
    bench_close(&b);
}

/* A memory that drops no tail: the tokens are the same, and from the first wrong guess on nothing is guessed. */
static void test_ahead_memory_that_cannot_be_cut_waits(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 8; i++) {
        struct bench b;
        struct how h = { .prompt = "no way back", .number = i % 4, .strength = 1, .gate = i / 4 ? spa_GateMode_GATE_ALWAYS : spa_GateMode_GATE_AUTO };
        struct got waiting, ahead;
        bench_open(&b, 8);
        fake_model_cannot_cut(&b.cloud.model);
        answer(b.cloud.url, &h, &waiting);
        h.run_ahead = 8;
        for (uint32_t turn = 0; turn < 2; turn++) {
            answer(b.path.url, &h, &ahead);
            assert_same(&waiting, &ahead);
            assert_int_equal(ahead.stats.guessed_base + ahead.stats.guessed_text > 0, turn == 0);
        }
        bench_close(&b);
    }
}

/* ---- devices that do not play along ---- */

enum misdeed { HONEST, SILENT, NOT_A_NUMBER };

/* A device spoken to by hand: after `from` tokens it commits its misdeed. */
static void misbehave(const char *url, const struct how *h, enum misdeed what, uint32_t from, struct got *g)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    char why[512] = "";
    uint8_t work[256];
    plugin_of(&f, h);
    if (link_open(&l, url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    struct spa_session *s = spa_link_session(l);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)h->prompt, .len = (uint32_t)strlen(h->prompt) };
    spa_Generate r;
    memset(g, 0, sizeof *g);
    spa_talk_defaults(&r);
    r.raw = true;
    r.temp = 0;
    r.n_predict = h->n_predict;
    r.gate = spa_GateMode_GATE_ALWAYS;
    r.late = h->late;
    r.answer_ms = 150;
    r.run_ahead = h->run_ahead;
    assert_int_equal(spa_session_generate(s, &r, &part, 1, work), SPA_OK);
    spa_State owed[TOKENS_MAX];
    uint32_t n_owed = 0;
    for (bool open = true; open;) {
        struct spa_session_event ev;
        const int rc = spa_link_wait(l, n_owed ? 30 : WAIT_MS, &ev, why, sizeof why);
        if (rc < 0 || (rc == 0 && n_owed == 0))
            fail_msg("nothing came; %s", why);
        for (uint32_t i = 0; rc == 0 && i < n_owed; i++) {   /* all at once: some are behind the front when they come */
            const bool bad = owed[i].pos + 1 >= part.len + from;
            float z[FAKE_D] = { bad && what == NOT_A_NUMBER ? NAN : 0.0f };
            const union spa_head head = { .state = owed[i] };
            if (!bad || what != SILENT)
                assert_int_equal(spa_wire_send(&s->sink, SPA_MSG_STATE, &head, (const uint8_t *)z, sizeof z), SPA_OK);
        }
        n_owed = rc == 0 ? 0 : n_owed;
        if (rc == 0)
            continue;
        if (ev.type == SPA_MSG_TAPS) {
            const spa_Taps *t = &ev.msg->head.taps;
            assert_true(n_owed < TOKENS_MAX);
            owed[n_owed++] = (spa_State){ .request = t->request, .epoch = t->epoch, .pos = t->pos + t->n_rows - 1, .n = 1 };
        } else if (ev.type == SPA_MSG_TOKENS) {
            for (uint32_t i = 0; i < ev.msg->head.tokens.ids_count; i++) {
                g->ids[g->n] = ev.msg->head.tokens.ids[i];
                g->by[g->n++] = (uint8_t)ev.msg->head.tokens.by[i];
            }
        } else if (ev.type == SPA_MSG_DONE || ev.type == SPA_MSG_ERROR) {
            open = false;
            g->failed = ev.type == SPA_MSG_ERROR;
            g->code = g->failed ? ev.msg->head.error.code : spa_Code_OK;
            if (!g->failed)
                g->stats = (struct spa_talk_stats){ .gated = ev.msg->head.done.gated, .late = ev.msg->head.done.late, .refused = ev.msg->head.done.refused };
        }
    }
    spa_link_close(l);
    spa_plugin_file_free(&f);
}

static void test_ahead_silent_and_lying_devices_get_what_waiting_gives_them(void **state)
{
    (void)state;
    struct bench b;
    bench_open(&b, 4);
    for (uint32_t i = 0; i < 16; i++) {
        struct how h = { .prompt = "abc", .number = i % 2 ? 0 : 2, .strength = 1, .n_predict = 4, .late = i / 2 % 2 ? spa_Late_LATE_BASE : spa_Late_LATE_ERROR };
        const enum misdeed what = i / 4 % 2 ? SILENT : NOT_A_NUMBER;
        const uint32_t from = i / 8 ? 2 : 1;   /* tokens that it answers well */
        struct got waiting, ahead;
        misbehave(b.cloud.url, &h, what, from, &waiting);
        h.run_ahead = 4;
        misbehave(b.path.url, &h, what, from, &ahead);
        assert_int_equal(waiting.n, ahead.n);
        assert_memory_equal(waiting.ids, ahead.ids, ahead.n * sizeof *ahead.ids);
        assert_memory_equal(waiting.by, ahead.by, ahead.n);
        assert_int_equal(waiting.failed, ahead.failed);
        assert_int_equal(waiting.code, ahead.code);
        assert_int_equal(waiting.stats.gated, ahead.stats.gated);
        if (h.late == spa_Late_LATE_BASE)
            assert_true(!ahead.failed && ahead.n == 4 && ahead.by[3] == spa_Speaker_BASE);
        else
            assert_true(ahead.failed && ahead.code == (what == SILENT ? spa_Code_LATE_ANSWER : spa_Code_BAD_STATE) && ahead.n == from);
    }
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ahead_says_what_waiting_says),
        cmocka_unit_test(test_ahead_text_is_guessed_where_it_repeats),
        cmocka_unit_test(test_ahead_drafts_of_the_device_are_guesses_and_no_more),
        cmocka_unit_test(test_ahead_in_company_says_what_waiting_says),
        cmocka_unit_test(test_ahead_ends_where_waiting_ends),
        cmocka_unit_test(test_ahead_full_context_ends_as_waiting_does),
        cmocka_unit_test(test_ahead_next_turn_goes_on_from_what_was_said),
        cmocka_unit_test(test_ahead_memory_that_cannot_be_cut_waits),
        cmocka_unit_test(test_ahead_silent_and_lying_devices_get_what_waiting_gives_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
