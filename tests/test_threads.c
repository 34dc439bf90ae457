/* test_threads.c - the cloud's two threads and real sockets, with a small deterministic model in place of libllama: the session,
 * batch, wire, mail and socket code is the product's own. Made for ThreadSanitizer; runs everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "basis.h"
#include "engine.h"
#include "fake_model.h"
#include "make.h"
#include "row_features.h"
#include "serve.h"
#include "talk.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { USERS = 8, QUESTIONS = 3, ANSWER = 24, TEXT = 256 };

struct cloud {
    struct spa_model model;
    struct spa_serve *serve;
    struct spa_mail *mail;
    struct spa_engine *engine;
    struct spa_anchors *anchors;
    struct spa_generic *generic;
    pthread_t decoder;
    char url[64];
};

static void *decoder(void *engine)
{
    spa_engine_run(engine);
    return NULL;
}

enum { ANCHORS = 8 };
static const char *const anchor_prompts[ANCHORS] = { "hi", "who?", "what is it?", "a longer one, which needs more than a batch of tokens",
                                                     "four", "five", "six", "seven" };

static void cloud_start_with(struct cloud *c, struct spa_generic *generic)
{
    char why[512];
    fake_model_open(&c->model);
    c->generic = generic;
    const struct spa_serve_config sc = { .host = "127.0.0.1", .port = 0, .model_name = "fake", .max_message = 1 << 20 };
    c->serve = spa_serve_new(&sc, why, sizeof why);
    assert_non_null(c->serve);
    c->mail = spa_mail_new(spa_serve_room(), 1 << 22, spa_serve_wake, c->serve);
    const struct spa_anchors_config ac = { .model = &c->model, .prompts = anchor_prompts, .n_prompts = ANCHORS };
    c->anchors = spa_anchors_new(&ac);
    assert_non_null(c->anchors);
    const struct spa_engine_config ec = { .model = &c->model, .mail = c->mail, .anchors = c->anchors, .generic = c->generic, .server = "test", .max_message = 1 << 20, .max_out = 1 << 22, .max_queue = 64,
                                          .max_connections = 64, .drain_ms = 20000,
                                          .limits = { .max_requests = 16, .learn_window = 8, .max_bad_states = 4, .answer_ms = 20000,
                                                      .answer_ms_max = 20000, .hello_ms = 10000, .max_state_rms = 1e4f } };
    c->engine = spa_engine_new(&ec);
    if (spa_serve_start(c->serve, c->mail, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(pthread_create(&c->decoder, NULL, decoder, c->engine), 0);
    snprintf(c->url, sizeof c->url, "ws://127.0.0.1:%d", spa_serve_port(c->serve));
}

static void cloud_start(struct cloud *c)
{
    cloud_start_with(c, NULL);
}

static void cloud_stop(struct cloud *c)
{
    spa_serve_draining(c->serve);
    spa_mail_drain(c->mail);
    pthread_join(c->decoder, NULL);
    spa_serve_stop(c->serve, 2000);
    spa_serve_free(c->serve);
    spa_engine_free(c->engine);
    spa_mail_free(c->mail);
    spa_anchors_free(c->anchors);
    fake_model_close(&c->model);
}

/* Every user's plugin differs: weights from the user's number, W_out too, so that it speaks. Odd users look back. */
static void plugin_make(struct spa_plugin_file *f, uint32_t user)
{
    memset(f, 0, sizeof *f);
    struct spa_shape *s = &f->plugin.shape;
    *s = (struct spa_shape){ .d = FAKE_D, .n_layers = FAKE_LAYERS, .r = 4, .m = 4, .n_taps = 3, .taps = { 0, 1, 3 }, .k = FAKE_D,
                             .normalise = SPA_NORM_RMS, .mode = user % 4 < 2 ? SPA_ADD : SPA_REPLACE };
    if (user % 2) {
        s->n_ctx_taps = 2;
        s->ctx_taps[0] = 0;
        s->ctx_taps[1] = 3;
        s->e = s->n_heads = 2;
        s->n_att = 1;
        s->att_rungs[0] = 2;
    }
    f->plugin.tap_dtype = SPA_F16;
    f->plugin.state_dtype = SPA_F32;
    f->params = malloc(spa_param_count(s) * sizeof *f->params);
    spa_ladder_init(s, user + 1, f->params);
    for (size_t i = 0; i < spa_param_count(s); i++)
        f->params[i] += (float)(int)(spa_noise64(user, 9, i) % 2001) / 2000.0f - 0.5f;
}

static int link_open_generic(struct spa_link **l, const char *url, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    spa_Plugin announced;
    spa_wire_plugin_from_shape(&f->plugin.shape, &announced);
    announced.generic = true;
    const struct spa_link_config lc = { .url = url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .plugin = &announced };
    return spa_link_open(l, &lc, why, why_len);
}

static int link_open(struct spa_link **l, const char *url, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    spa_Plugin announced;
    if (f) {
        spa_wire_plugin_from_shape(&f->plugin.shape, &announced);
        announced.tap_dtype = (spa_Dtype)f->plugin.tap_dtype;
        announced.state_dtype = (spa_Dtype)f->plugin.state_dtype;
    }
    const struct spa_link_config lc = { .url = url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .plugin = f ? &announced : NULL };
    return spa_link_open(l, &lc, why, why_len);
}

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
    u->rc = link_open(&l, u->url, &f, u->why, sizeof u->why);
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
    if (link_open(&l, c.url, NULL, why, sizeof why) != 0 || spa_talk_new(&t, l, NULL, why, sizeof why) != 0)
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
    if (link_open(&l, c->url, &f, why, sizeof why) != 0)
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
    if (link_open(&l, c.url, &f, why, sizeof why) != 0 ||
        spa_features_fit(l, &rows, &basis, &basis_len, hash, (struct spa_features_progress){ 0 }, why, sizeof why) != 0 ||
        spa_features_ask(&features, l, &rows, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
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
    free(basis);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* The cloud's anchors against those that a model with nobody else on it makes: the same tokens and states. */
static void assert_as_alone(const struct spa_features *f)
{
    static const uint32_t layers[] = { 0, 1, 3 };
    struct spa_model model;
    char why[256];
    fake_model_open(&model);
    const struct spa_anchors_config ac = { .model = &model, .prompts = anchor_prompts, .n_prompts = ANCHORS };
    struct spa_anchors *alone = spa_anchors_new(&ac);
    assert_int_equal(spa_make_anchors(alone, &model, layers, 3, (struct spa_make_progress){ 0 }, why, sizeof why), 0);
    struct spa_anchor_set *set = spa_anchor_set_get(alone, layers, 3);
    for (uint32_t i = 0; i < ANCHORS; i++) {
        uint32_t pos[SPA_ANCHOR_ANSWER];
        int32_t target[SPA_ANCHOR_ANSWER];
        static float x_ctx[FAKE_CTX * 3 * FAKE_D], x[SPA_ANCHOR_ANSWER * 3 * FAKE_D], y_fin[SPA_ANCHOR_ANSWER * FAKE_D], y[3 * FAKE_D],
                     prepared[FAKE_D], scratch[FAKE_D];
        struct spa_anchor v;
        assert_int_equal(spa_anchor_get(set, i, &v), SPA_ANCHOR_HERE);
        spa_features_row(f, i, pos, target, x_ctx, x, y_fin);
        for (uint32_t t = 0; t < SPA_ANCHOR_ANSWER; t++) {
            assert_int_equal(pos[t], v.n_prompt - 1 + t);
            assert_int_equal(target[t], v.tokens[v.n_prompt + t]);
            spa_anchor_y_fin(set, &v, t, y);
            for (uint32_t k = 0; k < FAKE_D; k++)
                assert_true(fabsf(y_fin[t * FAKE_D + k] - y[k]) < 2e-3f);   /* F16 on the wire */
            spa_anchor_taps(set, &v, pos[t], y);
            for (uint32_t tap = 0; tap < 3; tap++) {
                spa_tap_prepare(&f->shape, NULL, tap, y + tap * FAKE_D, scratch, prepared);
                for (uint32_t k = 0; k < FAKE_D; k++)
                    assert_true(fabsf(x[(t * 3 + tap) * FAKE_D + k] - prepared[k]) < 4e-3f);
            }
        }
    }
    spa_anchor_set_put(set);
    spa_anchors_free(alone);
    fake_model_close(&model);
}

/* A long answer of the base model on a talk of its own: asked here, read below. */
static void ask_base(struct spa_talk *t)
{
    static const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"tell me more", .len = 12 };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    char why[256];
    uint32_t id;
    spa_talk_defaults(&r.settings);
    r.settings.temp = 0;
    r.settings.raw = true;
    r.settings.n_predict = 150;
    r.settings.gate = spa_GateMode_GATE_NEVER;
    assert_int_equal(spa_talk_ask(t, &r, &id, why, sizeof why), 1);
}

/* Decode calls that it shared with others. */
static uint32_t read_base(struct spa_talk *t, char text[TEXT])
{
    char why[256] = "";
    struct spa_talk_event ev;
    text[0] = '\0';
    for (;;) {
        if (spa_talk_wait(t, 20000, &ev, why, sizeof why) != 1 || ev.type == SPA_TALK_ERROR)
            fail_msg("%s", why);
        if (ev.type == SPA_TALK_DONE)
            return spa_talk_stats(t, ev.request)->shared_steps;
        strncat(text, ev.text, ev.text_len);
    }
}

static void *release_soon(void *model)
{
    const struct timespec nap = { 0, 50000000 };
    nanosleep(&nap, NULL);
    fake_model_hold(model, false);
    return NULL;
}

/* Anchors are made while somebody else's answer is under way, and are the same for the next device, which waits for none. */
static void test_threads_anchors_are_made_beside_answers(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < 2; kind++) {   /* without context taps and with */
        struct cloud c;
        struct spa_plugin_file f;
        struct spa_link *l = NULL, *other = NULL;
        struct spa_talk *t = NULL;
        struct spa_features all, some;
        pthread_t thread;
        char why[512] = "", quiet[TEXT], busy[TEXT];
        cloud_start(&c);
        plugin_make(&f, kind);
        if (link_open(&other, c.url, NULL, why, sizeof why) != 0 || spa_talk_new(&t, other, NULL, why, sizeof why) != 0 ||
            link_open(&l, c.url, &f, why, sizeof why) != 0)
            fail_msg("%s", why);
        ask_base(t);
        assert_int_equal(read_base(t, quiet), 0);
        /* The answer's first step is held until the anchors are asked for as well. */
        fake_model_hold(&c.model, true);
        ask_base(t);
        struct spa_talk_event none;
        assert_int_equal(spa_talk_wait(t, 20, &none, why, sizeof why), 0);
        assert_int_equal(pthread_create(&thread, NULL, release_soon, &c.model), 0);
        if (spa_features_ask_anchors(&all, l, 1000, (struct spa_features_progress){ 0 }, why, sizeof why) != 0 ||
            spa_features_ask_anchors(&some, l, 3, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
            fail_msg("%s", why);
        pthread_join(thread, NULL);
        assert_true(read_base(t, busy) > 0);
        assert_string_equal(busy, quiet);
        assert_int_equal(all.n, ANCHORS);
        assert_int_equal(all.n_loss, ANCHORS * SPA_ANCHOR_ANSWER);
        assert_int_equal(some.n, 3);
        for (size_t i = 0; i < 3; i++) {   /* of 8: 0, 2, 5 */
            const struct spa_feature_row *a = &all.rows[i * ANCHORS / 3], *b = &some.rows[i];
            assert_int_equal(a->bulk_len, b->bulk_len);
            assert_memory_equal(a->bulk, b->bulk, a->bulk_len);
            assert_true(a->head.n_ctx == (kind ? a->head.n_tokens - 1 : 0));
        }
        assert_as_alone(&all);
        spa_features_free(&all);
        spa_features_free(&some);
        spa_talk_free(t);
        spa_link_close(other);
        spa_link_close(l);
        spa_plugin_file_free(&f);
        cloud_stop(&c);
    }
}

/* One that leaves while its anchors are made holds up nobody. */
static void test_threads_anchors_of_a_device_that_leaves_are_nobodys(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_features all;
    char why[512] = "";
    cloud_start(&c);
    plugin_make(&f, 1);
    fake_model_hold(&c.model, true);
    if (link_open(&l, c.url, &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(spa_session_learn(spa_link_session(l), &(spa_Learn){ .row = i, .anchor = true }, NULL, 0, NULL), SPA_OK);
    spa_link_close(l);
    fake_model_hold(&c.model, false);
    if (link_open(&l, c.url, &f, why, sizeof why) != 0 ||
        spa_features_ask_anchors(&all, l, 1000, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(all.n, ANCHORS);
    spa_features_free(&all);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    cloud_stop(&c);
}

/* The cloud's generic basis reaches the device by its hash; a cloud without one says what to do. */
static void test_threads_generic_basis_is_given_at_once(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_generic *generic;
    struct spa_features features;
    uint8_t *bytes, *basis, hash[SPA_HASH_BYTES];
    size_t len;
    char why[512] = "", path[] = "/tmp/spa-basis-XXXXXX";
    plugin_make(&f, 1);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    cloud_start(&c);
    assert_int_equal(link_open_generic(&l, c.url, &f, why, sizeof why), -1);
    assert_non_null(strstr(why, "spa-cloud basis"));
    cloud_stop(&c);

    struct spa_model model;
    fake_model_open(&model);
    const struct spa_anchors_config ac = { .model = &model, .prompts = anchor_prompts, .n_prompts = ANCHORS };
    struct spa_anchors *anchors = spa_anchors_new(&ac);
    assert_int_equal(spa_make_generic_of_anchors(anchors, &model, 6, (struct spa_make_progress){ 0 }, &bytes, &len, why, sizeof why), 0);
    const int fd = mkstemp(path);
    assert_int_equal(write(fd, bytes, len), len);
    close(fd);
    free(bytes);
    if (spa_generic_open(&generic, path, &model.info, why, sizeof why) != 0)
        fail_msg("%s", why);
    unlink(path);
    spa_anchors_free(anchors);
    fake_model_close(&model);

    cloud_start_with(&c, generic);
    if (link_open_generic(&l, c.url, &f, why, sizeof why) != 0 ||
        spa_features_generic(l, &basis, &len, hash, why, sizeof why) != 0 ||
        spa_features_ask_anchors(&features, l, 2, (struct spa_features_progress){ 0 }, why, sizeof why) != 0)
        fail_msg("%s", why);
    float *expected = spa_generic_basis(generic, &f.plugin.shape);
    assert_int_equal(len, spa_basis_floats(&f.plugin.shape) * sizeof(float));
    assert_memory_equal(basis, expected, len);
    spa_features_free(&features);
    spa_link_close(l);
    f.plugin.shape.k = 7;
    assert_int_equal(link_open_generic(&l, c.url, &f, why, sizeof why), -1);
    assert_non_null(strstr(why, "generic:6"));
    free(expected);
    free(basis);
    cloud_stop(&c);
    spa_generic_close(generic);
    spa_plugin_file_free(&f);
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
        cmocka_unit_test(test_threads_anchors_are_made_beside_answers),
        cmocka_unit_test(test_threads_anchors_of_a_device_that_leaves_are_nobodys),
        cmocka_unit_test(test_threads_generic_basis_is_given_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
