/* test_secret.c - what a user said is not in memory that was given back: a whole cloud with the fake model, and a device, in one process whose
 * every free() and realloc() is looked at (the linker puts ours in place of the library's: tests/CMakeLists.txt). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"
#include "secret.h"

#include <malloc.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* In parts, so that the program has the whole in no string of its own. Bytes of the vocabulary, so that tokens are known, too. */
static char canary[25];
static int32_t canary_tokens[24];
static atomic_bool armed;
static atomic_uint found, looked;

static bool holds(const void *p, const void *what, size_t len)
{
    return memmem(p, malloc_usable_size((void *)(uintptr_t)p), what, len) != NULL;
}

static void look(void *p)
{
    if (!p || !atomic_load(&armed))
        return;
    atomic_fetch_add(&looked, 1);
    if (holds(p, canary, sizeof canary - 1) || holds(p, canary_tokens, sizeof canary_tokens))
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
    atomic_store(&armed, false);
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
    make_canary();
    atomic_store(&found, 0);
    atomic_store(&looked, 0);
    atomic_store(&armed, true);
    cloud_start_how(&c, (struct cloud_how){ .run_ahead = 8, .always = true });
    for (uint32_t user = 0; user < 2; user++)   /* one that looks back, one that does not */
        talk(&c, user);
    cloud_stop(&c);
    atomic_store(&armed, false);
    assert_true(atomic_load(&looked) > 50);
    assert_int_equal(atomic_load(&found), 0);
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
        cmocka_unit_test(test_secret_files_that_others_can_read_are_seen),
        cmocka_unit_test(test_secret_no_core_dumps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
