/* test_anchor_threads.c - anchors and the generic basis over a real socket, from the threads of the cloud, with the fake model: made
 * beside other people's answers, the same as alone, asked for by number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "basis.h"
#include "fake_cloud.h"
#include "make.h"
#include "row_features.h"

#include <math.h>
#include <unistd.h>

enum { TEXT = 256 };

static int link_open_generic(struct spa_link **l, const char *url, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    spa_Plugin announced;
    spa_wire_plugin_from_shape(&f->plugin.shape, &announced);
    announced.generic = true;
    const struct spa_link_config lc = { .url = url, .client = "test", .max_message = 1 << 20, .connect_ms = 20000, .plugin = &announced };
    return spa_link_open(l, &lc, why, why_len);
}

/* n of the cloud's anchors for f, by way of a feature file, which stays for them. */
static struct spa_features ask_anchors(struct spa_link *l, const struct spa_plugin_file *f, size_t n, const float *basis, const uint8_t *hash,
                                       struct spa_feature_file **file)
{
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    struct spa_features out;
    struct spa_feature_key keys[ANCHORS];
    spa_Plugin wanted;
    char why[512] = "";
    n = n < w->n_anchors ? n : w->n_anchors;
    for (size_t i = 0; i < n; i++)
        spa_feature_key_anchor(w->model_hash.bytes, (uint32_t)spa_features_anchor(w->n_anchors, n, i), &keys[i]);
    spa_wire_plugin_from_shape(&f->plugin.shape, &wanted);
    wanted.tap_dtype = (spa_Dtype)spa_link_session(l)->tap_dtype;
    if (basis) {
        wanted.basis_hash.size = SPA_HASH_BYTES;
        memcpy(wanted.basis_hash.bytes, hash, SPA_HASH_BYTES);
    }
    if (spa_feature_file_open(file, NULL, "/tmp", why, sizeof why) != 0 || spa_feature_file_start(*file, w, &wanted, basis, why, sizeof why) != 0 ||
        spa_features_ask_anchors(*file, l, keys, n, (struct spa_features_progress){ 0 }, why, sizeof why) != 0 ||
        spa_feature_file_finish(*file, why, sizeof why) != 0 ||
        spa_features_bind(&out, *file, SPA_FEATURE_ANCHOR, keys, n, NULL, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    return out;
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
        if (link_open(&other, c.url, NULL, NULL, why, sizeof why) != 0 || spa_talk_new(&t, other, NULL, why, sizeof why) != 0 ||
            link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
            fail_msg("%s", why);
        ask_base(t);
        assert_int_equal(read_base(t, quiet), 0);
        /* The answer's first step is held until the anchors are asked for as well. */
        fake_model_hold(&c.model, true);
        ask_base(t);
        struct spa_talk_event none;
        assert_int_equal(spa_talk_wait(t, 20, &none, why, sizeof why), 0);
        assert_int_equal(pthread_create(&thread, NULL, release_soon, &c.model), 0);
        struct spa_feature_file *all_file, *some_file;
        all = ask_anchors(l, &f, 1000, NULL, NULL, &all_file);
        some = ask_anchors(l, &f, 3, NULL, NULL, &some_file);
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
        spa_feature_file_close(all_file);
        spa_feature_file_close(some_file);
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
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(spa_session_learn(spa_link_session(l), &(spa_Learn){ .row = i, .anchor = true }, NULL, 0, NULL), SPA_OK);
    spa_link_close(l);
    fake_model_hold(&c.model, false);
    if (link_open(&l, c.url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    struct spa_feature_file *file;
    all = ask_anchors(l, &f, 1000, NULL, NULL, &file);
    assert_int_equal(all.n, ANCHORS);
    spa_features_free(&all);
    spa_feature_file_close(file);
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
    assert_int_equal(link_open_generic(&l, c.url, &f, why, sizeof why), SPA_LINK_REFUSED);
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

    cloud_start_how(&c, (struct cloud_how){ .generic = generic });
    if (link_open_generic(&l, c.url, &f, why, sizeof why) != 0 ||
        spa_features_generic(l, &basis, &len, hash, why, sizeof why) != 0)
        fail_msg("%s", why);
    struct spa_feature_file *file;
    features = ask_anchors(l, &f, 2, (const float *)(const void *)basis, hash, &file);
    float *expected = spa_generic_basis(generic, &f.plugin.shape);
    assert_int_equal(len, spa_basis_floats(&f.plugin.shape) * sizeof(float));
    assert_memory_equal(basis, expected, len);
    spa_features_free(&features);
    spa_feature_file_close(file);
    spa_link_close(l);
    f.plugin.shape.k = 7;
    assert_int_equal(link_open_generic(&l, c.url, &f, why, sizeof why), SPA_LINK_REFUSED);
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
        cmocka_unit_test(test_threads_anchors_are_made_beside_answers),
        cmocka_unit_test(test_threads_anchors_of_a_device_that_leaves_are_nobodys),
        cmocka_unit_test(test_threads_generic_basis_is_given_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
