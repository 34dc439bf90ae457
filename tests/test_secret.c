/* test_secret.c - what a user said, and the states of it, are not in memory that was given back: a whole cloud with the fake model, and a device,
 * in one process whose every free() and realloc() is looked at (the linker puts ours in place of the library's: tests/CMakeLists.txt). Text is
 * found by a canary. All states of the model begin with MARK numbers in fixed proportions, which scaling, means and products of states keep: in any
 * of the forms that numbers have here, these proportions are a state, or as good as one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "dtype.h"
#include "engine_parts.h"
#include "fake_cloud.h"
#include "secret.h"

#include <malloc.h>
#include <math.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* In parts, so that the program has the whole in no string of its own. Bytes of the vocabulary, so that tokens are known, too. */
static char canary[25];
static int32_t canary_tokens[24];
static atomic_bool armed;
static atomic_uint found, looked, cleared;
static _Thread_local bool mine;   /* this thread's memory is not looked at: it holds the user's own files */

enum { MARK = 6 };
static const float mark[MARK] = { 1.0f, -0.7f, 0.45f, -1.3f, 0.85f, 1.55f };

static double number(const uint8_t *p, size_t size)
{
    double d;
    float f;
    uint16_t h;
    memcpy(&d, p, sizeof d);
    memcpy(&f, p, sizeof f);
    memcpy(&h, p, sizeof h);
    return size == sizeof d ? d : size == sizeof f ? (double)f : (double)spa_f32_from_f16(h);
}

/* Numbers of so many bytes, anywhere. */
static bool is_marked(const uint8_t *p, size_t len, size_t size)
{
    for (size_t at = 0; at + MARK * size + sizeof(double) <= len; at += size) {
        const double first = number(p + at, size);
        size_t i = 1;
        if (!(fabs(first) > 1e-4 && fabs(first) < 1e4))
            continue;
        while (i < MARK && fabs(number(p + at + i * size, size) / first / (double)mark[i] - 1) < 0.004)
            i++;
        if (i == MARK)
            return true;
    }
    return false;
}

static bool holds_state(const void *p, size_t len)
{
    return is_marked(p, len, sizeof(double)) || is_marked(p, len, sizeof(float)) || is_marked(p, len, sizeof(uint16_t));
}

static bool holds(const void *p, size_t len)
{
    return memmem(p, len, canary, sizeof canary - 1) || memmem(p, len, canary_tokens, sizeof canary_tokens) || holds_state(p, len);
}

static void look(void *p)
{
    if (!p || mine || !atomic_load(&armed))
        return;
    atomic_fetch_add(&looked, 1);
    if (holds(p, malloc_usable_size(p)))
        atomic_fetch_add(&found, 1);
}

void __real_free(void *p);
void *__real_realloc(void *p, size_t n);
void __wrap_free(void *p);
void *__wrap_realloc(void *p, size_t n);

void __wrap_free(void *p)
{
    look(p);
    __real_free(p);
}

/* Another place than before: the old one was given back as it was. */
void *__wrap_realloc(void *p, size_t n)
{
    const unsigned before = atomic_load(&found);
    look(p);
    const bool had = atomic_load(&found) > before;
    void *q = __real_realloc(p, n);
    if (q == p && had)
        atomic_fetch_sub(&found, 1);
    return q;
}

static void make_canary(void)
{
    snprintf(canary, sizeof canary, "%s%s%s", "Tweety", " sings at ", "midnight");
    for (size_t i = 0; i < 24; i++)
        canary_tokens[i] = canary[i] - 32;
}

static void test_secret_the_look_sees_what_is_freed(void **state)
{
    (void)state;
    make_canary();
    atomic_store(&found, 0);
    atomic_store(&armed, true);
    char *volatile p = malloc(100);
    memcpy(p + 10, canary, sizeof canary);
    free(p);
    assert_int_equal(atomic_load(&found), 1);
    p = malloc(100);
    memcpy(p + 10, canary, sizeof canary);
    p = spa_secret_grow(p, 100, 200);
    assert_memory_equal(p + 10, canary, sizeof canary);
    spa_secret_free(p, 200);
    assert_int_equal(atomic_load(&found), 1);
    for (int form = 0; form < 3; form++) {
        float *volatile floats = calloc(100, sizeof *floats);
        double *volatile doubles = calloc(100, sizeof *doubles);
        uint16_t *volatile halves = calloc(100, sizeof *halves);
        for (size_t i = 0; i < MARK; i++) {
            floats[5 + i] = form == 0 ? 0.3f * mark[i] : 1;
            doubles[7 + i] = form == 1 ? -2.5 * (double)mark[i] : 1;
            halves[9 + i] = form == 2 ? spa_f16_from_f32(1.1f * mark[i]) : 0;
        }
        free(floats);
        free(doubles);
        free(halves);
        assert_int_equal(atomic_load(&found), 2 + form);
    }
    atomic_store(&armed, false);
}

/* ---- a model whose states can be told ---- */

static struct spa_model plain;   /* the fake one */

static int marked_decode(void *self, const struct spa_batch_token *batch, uint32_t n, const uint32_t *layers, uint32_t n_layers, struct spa_states *out)
{
    const int rc = plain.decode(self, batch, n, layers, n_layers, out);
    for (size_t row = 0; rc == 0 && row < (size_t)out->n_wanted * (n_layers + 1); row++) {
        float *y = (float *)(uintptr_t)(row < out->n_wanted ? out->y_fin + row * FAKE_D : out->taps + (row - out->n_wanted) * FAKE_D);
        const float scale = 1 + y[FAKE_D - 1] / 4;   /* no two alike */
        for (size_t i = 0; i < MARK; i++)
            y[i] = mark[i] * scale;
    }
    return rc;
}

static void counted_clear(void *self)
{
    plain.clear(self);
    atomic_fetch_add(&cleared, 1);
}

static void mark_states(struct spa_model *m)
{
    plain = *m;
    m->decode = marked_decode;
    m->clear = counted_clear;
}

static void watch(void)
{
    make_canary();
    atomic_store(&found, 0);
    atomic_store(&looked, 0);
    atomic_store(&cleared, 0);
    atomic_store(&armed, true);
}

static void watched(void)
{
    atomic_store(&armed, false);
    assert_true(atomic_load(&looked) > 50);
    assert_int_equal(atomic_load(&found), 0);
}

/* One answer over a connection; the prompt and a stop string hold the canary, and the device has a plugin. */
static void talk(const struct cloud *c, uint32_t user)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    char why[512] = "";
    uint32_t request;
    plugin_make(&f, user);
    if (link_open(&l, c->url, &f, NULL, why, sizeof why) != 0 || spa_talk_new(&t, l, &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    const struct spa_part parts[] = { { .kind = SPA_PART_USER, .bytes = (const uint8_t *)canary, .len = 24 },
                                      { .kind = SPA_PART_STOP, .bytes = (const uint8_t *)canary, .len = 24 } };
    struct spa_talk_request r = { .parts = parts, .n_parts = 2 };
    spa_talk_defaults(&r.settings);
    r.settings.gate = spa_GateMode_GATE_ALWAYS;
    r.settings.n_predict = 12;
    r.settings.ignore_eos = true;
    assert_int_equal(spa_talk_ask(t, &r, &request, why, sizeof why), 1);
    struct spa_talk_event ev = { .type = SPA_TALK_TOKENS };
    while (ev.type == SPA_TALK_TOKENS)
        if (spa_talk_wait(t, 30000, &ev, why, sizeof why) != 1)
            fail_msg("%s", why);
    assert_int_equal(ev.type, SPA_TALK_DONE);
    spa_talk_free(t);
    spa_link_close(l);
    spa_plugin_file_free(&f);
}

static void test_secret_no_prompt_in_freed_memory(void **state)
{
    (void)state;
    struct cloud c;
    watch();
    cloud_start_how(&c, (struct cloud_how){ .run_ahead = 8, .always = true, .alter = mark_states });
    for (uint32_t user = 0; user < 2; user++)   /* one that looks back, one that does not */
        talk(&c, user);
    cloud_stop(&c);
    watched();
}

/* Rows with the canary; each is answered. What the device does with the answers is not ours to clear. */
static void ask_rows(struct spa_link *l, uint32_t base, bool fit)
{
    enum { ROWS = 3 };
    static const char *const answers[ROWS] = { "me", "a thing", "over there, far away" }, *const own[ROWS] = { "a", "b", "c" };   /* they do not begin alike */
    struct spa_session_event ev;
    char why[512] = "";
    uint8_t work[256];
    for (uint32_t i = 0; i < ROWS; i++) {
        const struct spa_part parts[] = { { SPA_PART_TEXT, false, (const uint8_t *)own[i], 1 }, { SPA_PART_TEXT, false, (const uint8_t *)canary, 24 },
                                          { SPA_PART_TEXT, true, (const uint8_t *)answers[i], (uint32_t)strlen(answers[i]) } };
        const spa_Learn learn = { .row = base + i, .fit = fit, .more = i + 1 < ROWS, .last = fit && i + 1 == ROWS };
        assert_int_equal(spa_session_learn(spa_link_session(l), &learn, parts, 3, work), SPA_OK);
    }
    for (uint32_t done = 0; done < ROWS + (fit ? 1 : 0); done++)
        if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1 || (ev.type != SPA_MSG_FEATURES && ev.type != SPA_MSG_FITTED))
            fail_msg("%u of the answers came; %s", done, why);
}

/* A basis is fitted on rows, they are learned from out of what the fit kept and decoded anew, and the head says what it thinks of states. */
static void train(const struct cloud *c, uint32_t user)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_session_event ev;
    char why[512] = "";
    float states[2][FAKE_D] = { { 0 } };
    const int32_t targets[2] = { 1, 2 };
    uint8_t work[512];
    plugin_make(&f, user);
    f.plugin.shape.basis = true;
    f.plugin.shape.k = 4;
    if (link_open(&l, c->url, &f, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    for (uint32_t i = 0; i < 3; i++)
        ask_rows(l, 10 * i, i == 0);
    for (size_t i = 0; i < MARK; i++)
        states[0][i] = states[1][i] = mark[i];
    const spa_Loss loss = { .id = 1, .n = 2, .gradient = true, .top = true };
    assert_int_equal(spa_session_loss(spa_link_session(l), &loss, targets, &states[0][0], work), SPA_OK);
    if (spa_link_wait(l, 20000, &ev, why, sizeof why) != 1 || ev.type != SPA_MSG_LOSSES)
        fail_msg("no losses; %s", why);
    spa_link_close(l);
    spa_plugin_file_free(&f);
}

static void test_secret_no_row_in_freed_memory_of_the_cloud(void **state)
{
    (void)state;
    struct cloud c;
    watch();
    mine = true;   /* the device's */
    cloud_start_how(&c, (struct cloud_how){ .alter = mark_states });
    for (uint32_t user = 0; user < 2; user++)
        train(&c, user);
    mine = false;
    cloud_stop(&c);
    watched();
}

/* Nobody talks with the cloud any more, and it runs: what it worked with holds nothing of who was there. */
static void test_secret_what_is_shared_is_cleared_when_somebody_leaves(void **state)
{
    (void)state;
    struct cloud c;
    const uint32_t leaves = 4;
    watch();
    mine = true;
    cloud_start_how(&c, (struct cloud_how){ .run_ahead = 8, .always = true, .alter = mark_states });
    for (uint32_t i = 0; i < leaves; i++) {
        i % 2 ? train(&c, i / 2) : talk(&c, i / 2);
        for (uint32_t ms = 0; atomic_load(&cleared) <= i; ms++) {
            if (ms == 20000)
                fail_msg("nothing was cleared when number %u left", i);
            nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
        }
    }
    cloud_drain(&c);
    const struct spa_engine *e = c.engine;
    const struct { const void *p; size_t len; } shared[] = {
        { e->batch, (e->model->info.n_batch + e->model->info.n_learn_batch) * sizeof *e->batch },
        { e->head_in, HEAD_MAX * FAKE_D * sizeof *e->head_in }, { e->head_out, FAKE_VOCAB * sizeof *e->head_out },
        { e->scratch, FAKE_D * sizeof *e->scratch }, { e->x, e->x_cap * sizeof *e->x }, { e->x_ctx, e->x_cap * sizeof *e->x_ctx },
        { e->packed, e->packed_cap }, { e->candidates, FAKE_VOCAB * sizeof *e->candidates }, { e->loss, sizeof *e->loss },
        { e->loss_dstates, 2 * FAKE_D * sizeof *e->loss_dstates }, { c.model.self, malloc_usable_size(c.model.self) } };
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        assert_false(holds(shared[i].p, shared[i].len));
    for (size_t i = 0; i < shared[0].len; i++)
        assert_int_equal(((const uint8_t *)shared[0].p)[i], 0);
    for (size_t i = 0; i < FAKE_D; i++)   /* states that a plugin has changed, and what the head makes of them, have no mark */
        assert_true(e->head_in[i] == 0 && e->head_out[i] == 0 && e->loss_dstates[i] == 0);
    assert_null(e->lm_head.work);
    mine = false;
    cloud_free(&c);
    watched();
}

static void test_secret_files_that_others_can_read_are_seen(void **state)
{
    (void)state;
    static const struct { mode_t mode; bool is_open; } cases[] = { { 0600, false }, { 0400, false }, { 0640, false }, { 0644, true }, { 0604, true }, { 0660, true } };
    char path[] = "/tmp/test_secret.XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fchmod(fd, cases[i].mode);
        assert_int_equal(spa_secret_is_open(path), cases[i].is_open);
    }
    close(fd);
    unlink(path);
    assert_false(spa_secret_is_open(path));
}

static void test_secret_no_core_dumps(void **state)
{
    (void)state;
    struct rlimit l;
    spa_secret_no_core_dumps();
    assert_int_equal(getrlimit(RLIMIT_CORE, &l), 0);
    assert_int_equal(l.rlim_cur, 0);
    assert_int_equal(l.rlim_max, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_secret_the_look_sees_what_is_freed),
        cmocka_unit_test(test_secret_no_prompt_in_freed_memory),
        cmocka_unit_test(test_secret_no_row_in_freed_memory_of_the_cloud),
        cmocka_unit_test(test_secret_what_is_shared_is_cleared_when_somebody_leaves),
        cmocka_unit_test(test_secret_files_that_others_can_read_are_seen),
        cmocka_unit_test(test_secret_no_core_dumps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
