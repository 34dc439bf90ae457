/* test_checkpoint.c - device/checkpoint.c: what was saved comes back, and of what is wrong nothing is taken. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint.h"
#include "test_folder.h"

#include <string.h>

enum { N = 5, HEAD = 64, LEN = HEAD + 3 * N * 4 + 32 };

static char path[300], why[SPA_WHY_MAX];
static float params[N], moments[2 * N];

static struct spa_checkpoint mine(void)
{
    struct spa_checkpoint c = { .step = 17, .n_params = N, .n_moments = 2 * N, .params = params, .moments = moments };
    memset(c.key, 7, sizeof c.key);
    for (int i = 0; i < N; i++)
        params[i] = moments[i] = moments[N + i] = (float)i;
    return c;
}

static int set_up(void **state)
{
    (void)state;
    if (folder_make() != 0)
        return -1;
    snprintf(path, sizeof path, "%s/p.checkpoint", folder);
    return 0;
}

static void test_checkpoint_comes_back_as_it_was(void **state)
{
    (void)state;
    struct spa_checkpoint c = mine(), again = c;
    float p[N] = { 0 }, m[2 * N] = { 0 };
    again.params = p;
    again.moments = m;
    again.step = 0;
    assert_int_equal(spa_checkpoint_load(path, &again, why, sizeof why), 0);   /* there is none */
    assert_int_equal(spa_checkpoint_save(path, &c, why, sizeof why), 0);
    assert_int_equal(spa_checkpoint_load(path, &again, why, sizeof why), 1);
    assert_int_equal(again.step, 17);
    assert_memory_equal(p, params, sizeof p);
    assert_memory_equal(m, moments, sizeof m);
    assert_int_equal(folder_n_files(), 1);
}

/* A byte is changed; sums are put right where `sealed`. */
static void refuse(size_t at, uint8_t value, bool sealed, size_t len, const char *what)
{
    struct spa_checkpoint c = mine();
    uint8_t *bytes;
    size_t n;
    assert_int_equal(spa_checkpoint_save(path, &c, why, sizeof why), 0);
    assert_int_equal(spa_store_read(path, LEN, &bytes, &n, why, sizeof why), 0);
    assert_int_equal(n, LEN);
    bytes[at] = value;
    if (sealed)
        spa_sha256(bytes, LEN - 32, bytes + LEN - 32);
    assert_int_equal(spa_store_replace(path, bytes, len, true, why, sizeof why), 0);
    free(bytes);
    params[0] = 99;
    assert_int_equal(spa_checkpoint_load(path, &c, why, sizeof why), -1);
    if (!strstr(why, what) || !strstr(why, "p.checkpoint"))
        fail_msg("'%s' does not say '%s'", why, what);
    assert_true(params[0] == 99);
}

static void test_checkpoint_that_is_wrong_is_one_sentence_and_nothing_is_taken(void **state)
{
    (void)state;
    refuse(0, 'X', true, LEN, "is no checkpoint");
    refuse(0, 'S', true, 90, "is no checkpoint");
    refuse(8, 2, true, LEN, "another version");
    refuse(70, 1, false, LEN, "is damaged");
    refuse(60, 1, true, LEN, "is damaged");            /* so many numbers that no file holds them */
    refuse(0, 'S', true, LEN - 4, "is damaged");
    refuse(16, 9, true, LEN, "other rows or options"); /* another key */
    assert_int_equal(spa_checkpoint_load(folder, &(struct spa_checkpoint){ 0 }, why, sizeof why), -1);
    assert_non_null(strstr(why, "a folder"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_checkpoint_comes_back_as_it_was, set_up, folder_remove),
        cmocka_unit_test_setup_teardown(test_checkpoint_that_is_wrong_is_one_sentence_and_nothing_is_taken, set_up, folder_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
