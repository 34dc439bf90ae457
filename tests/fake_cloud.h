/* fake_cloud.h - a whole cloud with the fake model in place of libllama, on a real socket, and plugins for it. Everything else is the
 * product's own code. For the tests of the threads and of chats. */
#ifndef SPA_FAKE_CLOUD_H
#define SPA_FAKE_CLOUD_H

#include "anchors.h"
#include "engine.h"
#include "fake_model.h"
#include "serve.h"
#include "talk.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cloud {
    struct spa_model model;
    struct spa_serve *serve;
    struct spa_mail *mail;
    struct spa_engine *engine;
    struct spa_anchors *anchors;
    struct spa_houses *houses;
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

/* How a cloud is: all zeros for a plain one. */
struct cloud_how {
    struct spa_generic *generic;
    const char *const *houses;   /* contents of system messages that all share */
    size_t n_houses;
    uint32_t run_ahead;          /* guesses of a turn at once, at most */
    bool always;                 /* whether they are expected to pay or not */
    uint64_t stall_ms;           /* of spa_serve_config */
    uint32_t max_connections;    /* of the decode thread; 0: 64 */
    uint32_t tokens_per_minute;
    void (*alter)(struct spa_model *m);   /* another model in place of the fake one, which is open */
    spa_log_fn *log;             /* gets every line */
    void *log_user;
};

static void cloud_start_how(struct cloud *c, struct cloud_how how)
{
    char why[512];
    size_t failed;
    fake_model_open(&c->model);
    if (how.alter)
        how.alter(&c->model);
    c->houses = how.n_houses ? spa_houses_new(&c->model, how.houses, how.n_houses, &failed, why, sizeof why) : NULL;
    if (how.n_houses && !c->houses)
        fail_msg("%s", why);
    fake_model_hand_over(&c->model);
    const struct spa_serve_config sc = { .host = "127.0.0.1", .port = 0, .model_name = "fake", .max_message = 1 << 20, .version = "test",
                                         .stall_ms = how.stall_ms, .log = how.log };
    c->serve = spa_serve_new(&sc, why, sizeof why);
    assert_non_null(c->serve);
    c->mail = spa_mail_new(spa_serve_room(), 1 << 22, spa_serve_wake, c->serve);
    const struct spa_anchors_config ac = { .model = &c->model, .prompts = anchor_prompts, .n_prompts = ANCHORS };
    c->anchors = spa_anchors_new(&ac);
    assert_non_null(c->anchors);
    const struct spa_engine_config ec = { .model = &c->model, .mail = c->mail, .anchors = c->anchors, .generic = how.generic, .houses = c->houses, .server = "test", .log = how.log, .log_user = how.log_user,
                                          .max_message = 1 << 20, .max_out = 1 << 22, .max_queue = 64, .max_connections = how.max_connections ? how.max_connections : 64, .run_ahead_always = how.always, .tokens_per_minute = how.tokens_per_minute, .drain_ms = 20000,
                                          .limits = { .max_requests = 16, .learn_window = 8, .loss_window = 4, .max_bad_states = 4 + 16 * how.run_ahead, .answer_ms = 20000,
                                                      .answer_ms_max = 20000, .hello_ms = 10000, .max_state_rms = 1e4f, .run_ahead = how.run_ahead } };
    c->engine = spa_engine_new(&ec);
    if (spa_serve_start(c->serve, c->mail, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(pthread_create(&c->decoder, NULL, decoder, c->engine), 0);
    snprintf(c->url, sizeof c->url, "ws://127.0.0.1:%d", spa_serve_port(c->serve));
}

static inline void cloud_start(struct cloud *c) { cloud_start_how(c, (struct cloud_how){ 0 }); }

/* The decode thread has ended; what it worked with is still there. */
static inline void cloud_drain(struct cloud *c)
{
    spa_serve_draining(c->serve);
    spa_mail_drain(c->mail);
    pthread_join(c->decoder, NULL);
}

static inline void cloud_free(struct cloud *c)
{
    spa_serve_stop(c->serve, 2000);
    spa_serve_free(c->serve);
    spa_engine_free(c->engine);
    spa_mail_free(c->mail);
    spa_anchors_free(c->anchors);
    spa_houses_free(c->houses);
    fake_model_close(&c->model);
}

static inline void cloud_stop(struct cloud *c)
{
    cloud_drain(c);
    cloud_free(c);
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

/* gate [spa_gate_width], or NULL: every token is asked. */
static int link_open(struct spa_link **l, const char *url, const struct spa_plugin_file *f, const float *gate, char *why, size_t why_len)
{
    spa_Plugin announced;
    if (f) {
        spa_wire_plugin_from_shape(&f->plugin.shape, &announced);
        announced.tap_dtype = (spa_Dtype)f->plugin.tap_dtype;
        announced.state_dtype = (spa_Dtype)f->plugin.state_dtype;
        announced.has_gate = gate != NULL;
        announced.gate_taps = gate && f->plugin.gate_taps;
    }
    const struct spa_link_config lc = { .url = url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .plugin = f ? &announced : NULL,
                                        .gate = gate };
    return spa_link_open(l, &lc, why, why_len);
}

#endif
