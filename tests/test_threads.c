/* test_threads.c - the cloud's two threads and real sockets, with a small deterministic model in place of libllama: the session,
 * batch, wire, mail and socket code is the product's own. Made for ThreadSanitizer; runs everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "basis.h"
#include "fake_cloud.h"
#include "head.h"
#include "row_features.h"

#include <math.h>

enum { USERS = 8, QUESTIONS = 3, ANSWER = 24, TEXT = 256 };

struct user {
    const char *url;
    uint32_t number;
    char answers[QUESTIONS][TEXT];
    uint32_t gated, shared;
    bool sampled;
    uint32_t leave_after;      /* tokens after which the connection is dropped; 0: never */
    char why[512];
    int rc;
};

static void *user_run(void *arg)
{
    struct user *u = arg;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    plugin_make(&f, u->number);
    u->rc = link_open(&l, u->url, &f, NULL, u->why, sizeof u->why);
    if (u->rc == 0)
        u->rc = spa_talk_new(&t, l, &f, u->why, sizeof u->why);
    uint32_t ids[QUESTIONS], open = 0, tokens = 0;
    for (uint32_t q = 0; u->rc == 0 && q < QUESTIONS; q++) {
        char text[64];
        snprintf(text, sizeof text, "question %u of user %u", q, u->number);
        const struct spa_part part = { .kind = SPA_PART_USER, .bytes = (const uint8_t *)text, .len = (uint32_t)strlen(text) };
        struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
        spa_talk_defaults(&r.settings);
        r.settings.temp = u->sampled ? 1.0f : 0.0f;
        r.settings.seed = 5;
        r.settings.n_predict = ANSWER;
        r.settings.ignore_eos = true;
        r.settings.gate = q == 2 ? spa_GateMode_GATE_NEVER : spa_GateMode_GATE_ALWAYS;
        u->answers[q][0] = '\0';
        u->rc = spa_talk_ask(t, &r, &ids[q], u->why, sizeof u->why) == 1 ? 0 : -1;
        open++;
    }
    while (u->rc == 0 && open > 0) {
        struct spa_talk_event ev;
        const int got = spa_talk_wait(t, 30000, &ev, u->why, sizeof u->why);
        if (got != 1 || ev.type == SPA_TALK_ERROR) {
            u->rc = -1;
            break;
        }
        uint32_t q = 0;
        while (q + 1 < QUESTIONS && ids[q] != ev.request)
            q++;
        if (ev.type == SPA_TALK_TOKENS) {
            strncat(u->answers[q], ev.text, ev.text_len);
            if (u->leave_after && ++tokens == u->leave_after)
                break;
        } else {
            const struct spa_talk_stats *st = spa_talk_stats(t, ev.request);
            u->gated += st->gated;
            u->shared += st->shared_steps;
            open--;
        }
    }
    spa_talk_free(t);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    return NULL;
}

static void alone(const struct cloud *c, struct user *u, uint32_t number, bool sampled)
{
    memset(u, 0, sizeof *u);
    u->url = c->url;
    u->number = number;
    u->sampled = sampled;
    user_run(u);
    if (u->rc != 0)
        fail_msg("user %u alone: %s", number, u->why);
}

static void assert_same(const struct user *a, const struct user *b)
{
    for (uint32_t q = 0; q < QUESTIONS; q++) {
        assert_int_equal(strlen(a->answers[q]), ANSWER);
        assert_string_equal(a->answers[q], b->answers[q]);
    }
}

static void test_threads_eight_users_get_what_they_get_alone(void **state)
{
    (void)state;
    for (int sampled = 0; sampled < 2; sampled++) {
        struct cloud c;
        static struct user solo[USERS], all[USERS];
        pthread_t threads[USERS];
        uint32_t shared = 0;
        cloud_start(&c);
        for (uint32_t i = 0; i < USERS; i++)
            alone(&c, &solo[i], i, sampled);
        cloud_stop(&c);
        cloud_start_how(&c, (struct cloud_how){ .run_ahead = 8, .always = true });   /* with guesses beside each other's tokens */
        for (uint32_t i = 0; i < USERS; i++) {
            all[i] = (struct user){ .url = c.url, .number = i, .sampled = sampled };
            assert_int_equal(pthread_create(&threads[i], NULL, user_run, &all[i]), 0);
        }
        for (uint32_t i = 0; i < USERS; i++)
            pthread_join(threads[i], NULL);
        for (uint32_t i = 0; i < USERS; i++) {
            if (all[i].rc != 0)
                fail_msg("user %u: %s", i, all[i].why);
            assert_same(&solo[i], &all[i]);
            assert_int_equal(all[i].gated, 2 * ANSWER);
            shared += all[i].shared;
            if (i)
                assert_string_not_equal(all[i].answers[0], all[i - 1].answers[0]);
        }
        assert_true(shared > 0);
        cloud_stop(&c);
    }
}

/* More requests than slots on one connection, all of one length: they end in the same round, and nothing but the queue is left. */
static void test_threads_queue_moves_up_when_all_slots_end_at_once(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    char why[512] = "";
    cloud_start(&c);
    if (link_open(&l, c.url, NULL, NULL, why, sizeof why) != 0 || spa_talk_new(&t, l, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"same", .len = 4 };   /* all prompts fit into one batch */
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.temp = 0;
    r.settings.gate = spa_GateMode_GATE_NEVER;
    r.settings.raw = true;
    /* The first answer holds the decode thread in its first step until all others wait; three of them join in its second, and
     * all four end in its fifth. */
    fake_model_hold(&c.model, true);
    for (uint32_t i = 0; i < 1 + 2 * FAKE_SLOTS; i++) {
        uint32_t id;
        r.settings.n_predict = i ? 4 : 5;
        assert_int_equal(spa_talk_ask(t, &r, &id, why, sizeof why), 1);
        struct spa_talk_event none;
        assert_int_equal(spa_talk_wait(t, 20, &none, why, sizeof why), 0);
    }
    fake_model_hold(&c.model, false);
    for (uint32_t done = 0; done < 1 + 2 * FAKE_SLOTS;) {
        struct spa_talk_event ev;
        if (spa_talk_wait(t, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%u of %u answers came; %s", done, 1 + 2 * FAKE_SLOTS, why);
        assert_int_not_equal(ev.type, SPA_TALK_ERROR);
        done += ev.type == SPA_TALK_DONE;
    }
    spa_talk_free(t);
    spa_link_close(l);
    cloud_stop(&c);
}

static void test_threads_users_who_leave_disturb_nobody(void **state)
{
    (void)state;
    struct cloud c;
    static struct user solo, stays, leaves[USERS];
    pthread_t threads[USERS], staying;
    cloud_start(&c);
    alone(&c, &solo, 1, false);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < USERS; i++) {
            leaves[i] = (struct user){ .url = c.url, .number = i, .leave_after = 1 + 5 * i + round };
            assert_int_equal(pthread_create(&threads[i], NULL, user_run, &leaves[i]), 0);
        }
        stays = (struct user){ .url = c.url, .number = 1 };
        assert_int_equal(pthread_create(&staying, NULL, user_run, &stays), 0);
        pthread_join(staying, NULL);
        for (uint32_t i = 0; i < USERS; i++)
            pthread_join(threads[i], NULL);
        if (stays.rc != 0)
            fail_msg("%s", stays.why);
        assert_same(&solo, &stays);
    }
    cloud_stop(&c);
}

/* How many of an answer's tokens the device was asked for. */
static uint32_t asked_with(const struct cloud *c, const struct spa_plugin_file *f, const float *gate, const char *text)
{
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    struct spa_talk_event ev;
    char why[512] = "";
    uint32_t id;
    if (link_open(&l, c->url, f, gate, why, sizeof why) != 0 || spa_talk_new(&t, l, f, why, sizeof why) != 0)
        fail_msg("%s", why);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)text, .len = (uint32_t)strlen(text) };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.n_predict = 1;
    r.settings.raw = true;
    assert_int_equal(spa_talk_ask(t, &r, &id, why, sizeof why), 1);
    do
        if (spa_talk_wait(t, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%s", why);
    while (ev.type == SPA_TALK_TOKENS);
    assert_int_equal(ev.type, SPA_TALK_DONE);
    const uint32_t asked = spa_talk_stats(t, id)->gated;
    spa_talk_free(t);
    spa_link_close(l);
    return asked;
}

/* A gate that reads the taps: what one direction of them asks for, the opposite one does not; without it, y_fin decides as ever. */
static void test_threads_gate_may_read_the_taps(void **state)
{
    (void)state;
    enum { PROMPTS = 12 };
    struct cloud c;
    uint32_t up = 0, as_ever = 0;
    cloud_start(&c);
    for (uint32_t with_context = 0; with_context < 2; with_context++) {
        struct spa_plugin_file f;
        plugin_make(&f, with_context);
        const size_t d = FAKE_D, at = d + 2 * d + 5;   /* number 5 of tap 2 */
        f.plugin.gate_taps = true;
        float *gate = calloc(spa_gate_width(&f.plugin), sizeof *gate);
        for (uint32_t i = 0; i < PROMPTS; i++) {
            char text[16];
            snprintf(text, sizeof text, "prompt %u", i);
            gate[at] = 1;
            const uint32_t one = asked_with(&c, &f, gate, text);
            gate[at] = -1;
            assert_int_equal(one + asked_with(&c, &f, gate, text), 1);
            up += one;
            gate[at] = 0;
            gate[3] = 1;
            const uint32_t wide = asked_with(&c, &f, gate, text);
            f.plugin.gate_taps = false;
            assert_int_equal(wide, asked_with(&c, &f, gate, text));
            f.plugin.gate_taps = true;
            gate[3] = 0;
            as_ever += wide;
        }
        free(gate);
        spa_plugin_file_free(&f);
    }
    assert_in_range(up, 1, 2 * PROMPTS - 1);
    assert_in_range(as_ever, 1, 2 * PROMPTS - 1);
    cloud_stop(&c);
}

/* What a device does that owes a state; spoken to by hand, since spa's own device always answers. */
enum misdeed { SILENT, NOT_A_NUMBER, TOO_SHORT };
struct verdict {
    uint32_t base, plugin, late, refused;
    bool failed;
    spa_Code code;
};

static struct verdict misbehave(const struct cloud *c, enum misdeed what, spa_Late policy)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    char why[512] = "";
    struct verdict v = { 0 };
    plugin_make(&f, 2);
    if (link_open(&l, c->url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    struct spa_session *s = spa_link_session(l);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"abc", .len = 3 };
    uint8_t work[256];
    spa_Generate g;
    spa_talk_defaults(&g);
    g.raw = true;
    g.temp = 0;
    g.n_predict = 3;
    g.gate = spa_GateMode_GATE_ALWAYS;
    g.late = policy;
    g.answer_ms = 50;
    assert_int_equal(spa_session_generate(s, &g, &part, 1, work), SPA_OK);
    for (bool open = true; open;) {
        struct spa_session_event ev;
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("nothing came; %s", why);
        if (ev.type == SPA_MSG_TAPS && what != SILENT) {
            float z[FAKE_D] = { what == NOT_A_NUMBER ? NAN : 1.0f };
            const spa_Taps *t = &ev.msg->head.taps;
            const union spa_head head = { .state = { .request = t->request, .epoch = t->epoch, .pos = t->pos + t->n_rows - 1, .n = 1 } };
            assert_int_equal(spa_wire_send(&s->sink, SPA_MSG_STATE, &head, (const uint8_t *)z, what == TOO_SHORT ? 8 : sizeof z), SPA_OK);
        } else if (ev.type == SPA_MSG_TOKENS) {
            for (uint32_t i = 0; i < ev.msg->head.tokens.by_count; i++)
                *(ev.msg->head.tokens.by[i] == spa_Speaker_BASE ? &v.base : &v.plugin) += 1;
        } else if (ev.type == SPA_MSG_DONE || ev.type == SPA_MSG_ERROR) {
            open = false;
            v.failed = ev.type == SPA_MSG_ERROR;
            v.code = v.failed ? ev.msg->head.error.code : spa_Code_OK;
            v.late = v.failed ? 0 : ev.msg->head.done.late;
            v.refused = v.failed ? 0 : ev.msg->head.done.refused;
        }
    }
    spa_link_close(l);
    spa_plugin_file_free(&f);
    return v;
}

static void test_threads_silent_and_lying_devices_hurt_only_themselves(void **state)
{
    (void)state;
    struct cloud c;
    static struct user solo, u;
    pthread_t thread;
    cloud_start(&c);
    alone(&c, &solo, 1, false);
    u = (struct user){ .url = c.url, .number = 1 };
    assert_int_equal(pthread_create(&thread, NULL, user_run, &u), 0);
    struct verdict v = misbehave(&c, SILENT, spa_Late_LATE_BASE);
    assert_true(!v.failed && v.base == 3 && v.plugin == 0 && v.late == 3);
    v = misbehave(&c, SILENT, spa_Late_LATE_ERROR);
    assert_true(v.failed && v.code == spa_Code_LATE_ANSWER && v.base == 0);
    v = misbehave(&c, NOT_A_NUMBER, spa_Late_LATE_BASE);
    assert_true(!v.failed && v.base == 3 && v.plugin == 0 && v.refused == 3);
    v = misbehave(&c, TOO_SHORT, spa_Late_LATE_BASE);
    assert_true(!v.failed && v.base == 3 && v.refused == 3);
    v = misbehave(&c, NOT_A_NUMBER, spa_Late_LATE_ERROR);
    assert_true(v.failed && v.code == spa_Code_BAD_STATE);
    pthread_join(thread, NULL);
    if (u.rc != 0)
        fail_msg("%s", u.why);
    assert_same(&solo, &u);
    cloud_stop(&c);
}

static void test_threads_draining_lets_answers_end_whole(void **state)
{
    (void)state;
    struct cloud c;
    static struct user solo, u;
    pthread_t thread;
    cloud_start(&c);
    alone(&c, &solo, 3, false);
    u = (struct user){ .url = c.url, .number = 3 };
    assert_int_equal(pthread_create(&thread, NULL, user_run, &u), 0);
    /* Wherever the user is by now - not connected yet, asking, answered - nothing is torn. */
    const struct timespec nap = { 0, 30000000 };
    nanosleep(&nap, NULL);
    cloud_stop(&c);
    pthread_join(thread, NULL);
    for (uint32_t q = 0; u.rc == 0 && q < QUESTIONS; q++)
        assert_string_equal(u.answers[q], solo.answers[q]);
    if (u.rc != 0)
        assert_true(strlen(u.why) > 0);
}

/* A basis is fitted and rows are learned from while others chat. */
static void test_threads_rows_are_learned_beside_answers(void **state)
{
    (void)state;
    struct cloud c;
    static struct user solo, u;
    pthread_t thread;
    char why[512] = "", texts[40][2][48];
    struct spa_part parts[40][2];
    struct spa_example examples[40];
    cloud_start(&c);
    alone(&c, &solo, 5, false);

    struct spa_plugin_file f;
    plugin_make(&f, 1);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    for (uint32_t i = 0; i < 40; i++) {
        snprintf(texts[i][0], sizeof texts[i][0], "row %u asks", i);
        snprintf(texts[i][1], sizeof texts[i][1], "answer %u", i * i);
        for (uint32_t k = 0; k < 2; k++)
            parts[i][k] = (struct spa_part){ k ? SPA_PART_ASSISTANT : SPA_PART_USER, k == 1, (const uint8_t *)texts[i][k], (uint32_t)strlen(texts[i][k]) };
        examples[i] = (struct spa_example){ .parts = parts[i], .n_parts = 2, .file = "memory", .line = i + 1 };
    }
    const struct spa_rows rows = { .rows = examples, .n = 40 };
    u = (struct user){ .url = c.url, .number = 5 };
    assert_int_equal(pthread_create(&thread, NULL, user_run, &u), 0);
    struct spa_link *l = NULL;
    uint8_t *basis = NULL, hash[SPA_HASH_BYTES];
    size_t basis_len = 0;
    struct spa_features features;
    struct spa_feature_file *file = NULL;
    struct spa_feature_key *keys = spa_features_keys(&rows);
    spa_Plugin wanted;
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0 ||
        spa_features_fit(l, &rows, &basis, &basis_len, hash, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
        fail_msg("%s", why);
    spa_wire_plugin_from_shape(&f.plugin.shape, &wanted);
    wanted.tap_dtype = (spa_Dtype)f.plugin.tap_dtype;
    wanted.basis_hash.size = SPA_HASH_BYTES;
    memcpy(wanted.basis_hash.bytes, hash, SPA_HASH_BYTES);
    if (spa_feature_file_open(&file, NULL, "/tmp", why, sizeof why) != 0 ||
        spa_feature_file_start(file, &spa_link_session(l)->welcome, &wanted, (const float *)(const void *)basis, why, sizeof why) != 0 ||
        spa_features_ask(file, l, SPA_FEATURE_ROW, &rows, keys, (struct spa_features_progress){ 0 }, why, sizeof why) != 0 ||
        spa_feature_file_finish(file, why, sizeof why) != 0 ||
        spa_features_bind(&features, file, SPA_FEATURE_ROW, keys, rows.n, NULL, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(basis_len, spa_basis_floats(&f.plugin.shape) * sizeof(float));
    assert_int_equal(features.n, 40);
    uint32_t loss = 0;
    for (uint32_t i = 0; i < 40; i++)
        loss += (uint32_t)strlen(texts[i][1]) + 1;   /* and the end */
    assert_int_equal(features.n_loss, loss);
    pthread_join(thread, NULL);
    if (u.rc != 0)
        fail_msg("%s", u.why);
    assert_same(&solo, &u);
    spa_features_free(&features);
    spa_feature_file_close(file);
    free(keys);
    free(basis);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* Two groups, each more than a minute's tokens: the cloud says nothing until the key has some again, for longer than the link takes silence. */
static void test_threads_a_fit_waits_for_the_tokens_of_its_key(void **state)
{
    (void)state;
    enum { ROWS = 8, LEN = 171, A_MINUTE = 600 };   /* a group of four: some 690 tokens, nine seconds' more than there are */
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    char why[512] = "";
    uint8_t text[ROWS][LEN], *basis = NULL, hash[SPA_HASH_BYTES];
    struct spa_part parts[ROWS];
    struct spa_example examples[ROWS];
    size_t basis_len = 0;
    for (uint32_t i = 0; i < ROWS; i++) {
        for (uint32_t k = 0; k < LEN; k++)
            text[i][k] = (uint8_t)('a' + spa_noise64(i, k, 0) % 26);
        parts[i] = (struct spa_part){ .kind = SPA_PART_TEXT, .loss = true, .bytes = text[i], .len = LEN };
        examples[i] = (struct spa_example){ .parts = &parts[i], .n_parts = 1, .file = "memory", .line = i + 1 };
    }
    const struct spa_rows rows = { .rows = examples, .n = ROWS };
    cloud_start_how(&c, (struct cloud_how){ .tokens_per_minute = A_MINUTE });
    plugin_make(&f, 0);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    spa_Plugin announced;
    spa_wire_plugin_from_shape(&f.plugin.shape, &announced);
    const struct spa_link_config lc = { .url = c.url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .plugin = &announced, .silence_s = 1 };
    if (spa_link_open(&l, &lc, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(spa_link_session(l)->welcome.tokens_per_minute, A_MINUTE);
    if (spa_features_fit(l, &rows, &basis, &basis_len, hash, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(basis_len, spa_basis_floats(&f.plugin.shape) * sizeof(float));
    free(basis);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* A group that is larger than what the window leaves is decoded as one all the same, once answers have made room for the rest of it. */
static void test_threads_a_full_window_cuts_no_group(void **state)
{
    (void)state;
    enum { WINDOW = 8, ROWS = 1 + WINDOW };   /* row 0 is a group, the others are one */
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL, *other = NULL;
    struct spa_talk *t = NULL;
    char why[512] = "";
    const struct spa_part part = { .kind = SPA_PART_TEXT, .loss = true, .bytes = (const uint8_t *)"ab", .len = 2 }, prompt = { .kind = SPA_PART_TEXT, .bytes = part.bytes, .len = 2 };
    struct spa_talk_request r = { .parts = &prompt, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.n_predict = 1;
    r.settings.temp = 0;
    r.settings.raw = true;
    r.settings.gate = spa_GateMode_GATE_NEVER;
    cloud_start(&c);
    plugin_make(&f, 1);
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0 || link_open(&other, c.url, NULL, NULL, why, sizeof why) != 0 ||
        spa_talk_new(&t, other, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(spa_link_session(l)->welcome.learn_window, WINDOW);
    /* Somebody's answer holds the decode thread until the window is full. */
    struct spa_talk_event none;
    struct spa_session_event ev;
    uint32_t id, sent = 0, done = 0;
    fake_model_hold(&c.model, true);
    assert_int_equal(spa_talk_ask(t, &r, &id, why, sizeof why), 1);
    assert_int_equal(spa_talk_wait(t, 20, &none, why, sizeof why), 0);
    while (done < ROWS) {
        for (; sent < ROWS && spa_link_session(l)->learn_open < WINDOW; sent++) {
            uint8_t work[16];
            const spa_Learn learn = { .row = sent, .more = sent > 0 && sent + 1 < ROWS };
            assert_int_equal(spa_session_learn(spa_link_session(l), &learn, &part, 1, work), SPA_OK);
        }
        if (done == 0) {
            while (spa_link_wait(l, 50, &ev, why, sizeof why) == 1)
                assert_int_not_equal(ev.type, SPA_MSG_FEATURES);
            fake_model_hold(&c.model, false);
        }
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%u of %u rows came; %s", done, ROWS, why);
        done += ev.type == SPA_MSG_FEATURES;
    }
    assert_int_equal(fake_model_learn_calls(&c.model), 3);   /* row 0; six rows, for which there is room; the two that are left */
    spa_talk_free(t);
    spa_link_close(other);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* A group of rows that were fitted on is answered from what the fit kept, unless it asks for a row more often than that holds it. */
static void test_threads_a_row_twice_is_not_taken_from_the_fit_twice(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_session_event ev;
    char why[512] = "";
    uint8_t work[128];
    const char *texts[] = { "the first row of two, long enough", "and the second one, which differs" };
    struct spa_part parts[2];
    cloud_start(&c);
    plugin_make(&f, 1);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    struct spa_session *session = spa_link_session(l);
    for (uint32_t i = 0; i < 2; i++) {
        parts[i] = (struct spa_part){ SPA_PART_TEXT, true, (const uint8_t *)texts[i], (uint32_t)strlen(texts[i]) };
        const spa_Learn learn = { .row = i, .fit = true, .more = i == 0, .last = i == 1 };
        assert_int_equal(spa_session_learn(session, &learn, &parts[i], 1, work), SPA_OK);
    }
    do
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("no basis; %s", why);
    while (ev.type != SPA_MSG_FITTED);
    const uint32_t which[] = { 0, 0, 0, 1 };   /* the same row twice, then the fit's own group */
    for (uint32_t i = 0; i < 4; i++) {
        const spa_Learn learn = { .row = 10 + i, .more = i % 2 == 0 };
        assert_int_equal(spa_session_learn(session, &learn, &parts[which[i]], 1, work), SPA_OK);
    }
    for (uint32_t done = 0; done < 4; done += ev.type == SPA_MSG_FEATURES)
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%u rows came; %s", done, why);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* A link with the plugin, whose taps have no basis, and a nameless file of what the cloud says to the rows. */
static struct spa_feature_file *ask_rows(const struct cloud *c, struct spa_plugin_file *f, struct spa_link **l, const struct spa_rows *rows,
                                         const struct spa_feature_key *keys)
{
    struct spa_feature_file *file = NULL;
    spa_Plugin wanted;
    char why[512] = "";
    spa_wire_plugin_from_shape(&f->plugin.shape, &wanted);
    wanted.tap_dtype = (spa_Dtype)f->plugin.tap_dtype;
    if (link_open(l, c->url, f, NULL, why, sizeof why) != 0 || spa_feature_file_open(&file, NULL, "/tmp", why, sizeof why) != 0 ||
        spa_feature_file_start(file, &spa_link_session(*l)->welcome, &wanted, NULL, why, sizeof why) != 0 ||
        spa_features_ask(file, *l, SPA_FEATURE_ROW, rows, keys, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
        fail_msg("%s", why);
    return file;
}

/* Rows too long, too large or without an answer cost nobody else anything; equal rows are asked once; a cloud that is gone is told apart
 * from one that refuses. */
static void test_threads_rows_that_cannot_be_learned_are_left_out_and_named(void **state)
{
    (void)state;
    enum { GOOD, TOO_LONG, SAME, EMPTY, TOO_LARGE, LAST, N, LARGE = 1100000 };
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_feature_file *file = NULL;
    struct spa_features features;
    struct spa_left_out left = { 0 };
    struct spa_example examples[N];
    struct spa_part parts[N][2];
    char why[512] = "", said[512], *large = malloc(LARGE);
    memset(large, 'x', LARGE);
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t len = i == TOO_LONG ? FAKE_CTX : i == TOO_LARGE ? LARGE : 5;
        parts[i][0] = (struct spa_part){ SPA_PART_USER, false, (const uint8_t *)(i == LAST ? "last question" : large), len };
        parts[i][1] = (struct spa_part){ SPA_PART_ASSISTANT, true, (const uint8_t *)"answer", 6 };
        examples[i] = (struct spa_example){ .parts = parts[i], .n_parts = 2, .file = "memory", .line = i + 1 };
    }
    parts[EMPTY][0].kind = parts[EMPTY][1].kind = SPA_PART_TEXT;   /* raw text has no end token that could be learned */
    parts[EMPTY][1].len = 0;
    struct spa_rows rows = { .rows = examples, .n = N };
    struct spa_feature_key *keys = spa_features_keys(&rows);
    cloud_start(&c);
    plugin_make(&f, 1);
    file = ask_rows(&c, &f, &l, &rows, keys);
    assert_int_equal(spa_feature_file_records(file), N - 1);
    const uint64_t up = spa_link_bytes(l).up;
    assert_int_equal(spa_features_ask(file, l, SPA_FEATURE_ROW, &rows, keys, (struct spa_features_progress){ 0 }, why, sizeof why), 0);
    assert_int_equal(spa_link_bytes(l).up, up);   /* there is nothing left to ask */

    parts[LAST][0].len = 4;   /* a row that the file does not know, for a cloud that is gone */
    struct spa_feature_key *others = spa_features_keys(&rows);
    cloud_stop(&c);
    assert_int_equal(spa_features_ask(file, l, SPA_FEATURE_ROW, &rows, others, (struct spa_features_progress){ 0 }, why, sizeof why),
                     SPA_FEATURES_LOST);
    assert_int_equal(spa_feature_file_records(file), N - 1);

    if (spa_feature_file_finish(file, why, sizeof why) != 0 ||
        spa_features_bind(&features, file, SPA_FEATURE_ROW, keys, N, &rows, &left, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_true(rows.n == 3 && features.n == 3);
    assert_true(rows.rows[0].line == GOOD + 1 && rows.rows[1].line == SAME + 1 && rows.rows[2].line == LAST + 1);
    assert_ptr_equal(features.rows[0].bulk, features.rows[1].bulk);
    spa_left_out_say(&left, said, sizeof said);
    assert_string_equal(said, "left out: 3 of 6 rows: 1 longer than the cloud's context of 800 tokens (first: memory line 2), "
                              "2 that the cloud refused (first: memory line 4: the row's answer tokenizes to nothing, so there is nothing to learn from it)");
    spa_features_free(&features);
    rows.n = 1;
    left = (struct spa_left_out){ 0 };
    rows.rows[0].line = TOO_LONG + 1;
    assert_int_equal(spa_features_bind(&features, file, SPA_FEATURE_ROW, keys + TOO_LONG, 1, &rows, &left, why, sizeof why), -1);
    assert_non_null(strstr(why, "no row is left"));
    assert_non_null(strstr(why, "memory line 2"));
    spa_link_close(l);
    spa_feature_file_close(file);
    spa_plugin_file_free(&f);
    free(keys);
    free(others);
    free(large);
}

/* A LOSS that is refused is no end of the connection. */
static void test_threads_a_refused_loss_leaves_the_connection(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_session_event ev;
    char why[512] = "";
    float z[FAKE_D] = { 0 };
    uint8_t work[4 + 4 * FAKE_D + 16];
    cloud_start(&c);
    plugin_make(&f, 1);
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    const int32_t targets[] = { FAKE_VOCAB, 1 };   /* the first is no token */
    for (uint32_t i = 0; i < 2; i++) {
        const spa_Loss loss = { .id = 7 + i, .n = 1 };
        assert_int_equal(spa_session_loss(spa_link_session(l), &loss, &targets[i], z, work), SPA_OK);
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1)
            fail_msg("%s", why);
        assert_int_equal(ev.type, i == 0 ? SPA_MSG_ERROR : SPA_MSG_LOSSES);
    }
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* Rows around the longest that the cloud takes are learned or left out, one by one: none ends the connection. */
static void test_threads_rows_around_the_context_are_taken_or_refused(void **state)
{
    (void)state;
    enum { N = 32 };
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_feature_file *file = NULL;
    struct spa_example examples[N];
    struct spa_part parts[N][2];
    char text[FAKE_CTX];
    memset(text, 'x', sizeof text);
    for (uint32_t i = 0; i < N; i++) {
        parts[i][0] = (struct spa_part){ SPA_PART_USER, false, (const uint8_t *)text, FAKE_CTX - N + i };
        parts[i][1] = (struct spa_part){ SPA_PART_ASSISTANT, true, (const uint8_t *)"a", 1 };
        examples[i] = (struct spa_example){ .parts = parts[i], .n_parts = 2, .file = "memory", .line = i + 1 };
    }
    const struct spa_rows rows = { .rows = examples, .n = N };
    struct spa_feature_key *keys = spa_features_keys(&rows);
    cloud_start(&c);
    plugin_make(&f, 1);
    file = ask_rows(&c, &f, &l, &rows, keys);
    bool refused = false;
    for (uint32_t i = 0; i < N; i++) {
        const struct spa_feature_record *r = spa_feature_file_find(file, SPA_FEATURE_ROW, &keys[i]);
        assert_non_null(r);
        assert_true(r->refused || !refused);   /* the longer ones */
        refused = r->refused != 0;
        assert_int_equal(r->refused, refused ? spa_Code_CONTEXT_FULL : 0);
    }
    assert_true(refused && !spa_feature_file_find(file, SPA_FEATURE_ROW, &keys[0])->refused);
    spa_link_close(l);
    spa_feature_file_close(file);
    spa_plugin_file_free(&f);
    free(keys);
    cloud_stop(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_eight_users_get_what_they_get_alone),
        cmocka_unit_test(test_threads_queue_moves_up_when_all_slots_end_at_once),
        cmocka_unit_test(test_threads_users_who_leave_disturb_nobody),
        cmocka_unit_test(test_threads_silent_and_lying_devices_hurt_only_themselves),
        cmocka_unit_test(test_threads_draining_lets_answers_end_whole),
        cmocka_unit_test(test_threads_rows_are_learned_beside_answers),
        cmocka_unit_test(test_threads_a_fit_waits_for_the_tokens_of_its_key),
        cmocka_unit_test(test_threads_a_full_window_cuts_no_group),
        cmocka_unit_test(test_threads_a_refused_loss_leaves_the_connection),
        cmocka_unit_test(test_threads_rows_around_the_context_are_taken_or_refused),
        cmocka_unit_test(test_threads_a_row_twice_is_not_taken_from_the_fit_twice),
        cmocka_unit_test(test_threads_gate_may_read_the_taps),
        cmocka_unit_test(test_threads_rows_that_cannot_be_learned_are_left_out_and_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
