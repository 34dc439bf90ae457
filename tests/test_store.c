/* test_store.c - whole files: read, replaced or left alone; plugin files above them. Works in a folder of its own under TMPDIR. */
#define _XOPEN_SOURCE 700
#include "plugin_file.h"
#include "basis.h"
#include "store.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "test_folder.h"

static char path[300], why[SPA_WHY_MAX];

static int make_folder(void **state)
{
    (void)state;
    why[0] = 0;
    return folder_make();
}

static const char *in_folder(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void assert_holds(const char *file, const char *text)
{
    uint8_t *bytes;
    size_t len;
    assert_int_equal(spa_store_read(file, 1000, &bytes, &len, why, sizeof why), 0);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(bytes, text, len);
    free(bytes);
}

static void assert_says(const char *what)
{
    if (!strstr(why, what))
        fail_msg("'%s' does not say '%s'", why, what);
}

static void test_store_replaced_file_holds_the_new_bytes_alone(void **state)
{
    (void)state;
    struct stat st;
    in_folder("a");
    assert_int_equal(spa_store_replace(path, "first", 5, true, why, sizeof why), 0);
    assert_holds(path, "first");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(spa_store_replace(path, "2nd", 3, true, why, sizeof why), 0);
    assert_holds(path, "2nd");
    assert_int_equal(folder_n_files(), 1);
}

static void test_store_replacing_keeps_the_mode_unless_only_the_owner_may(void **state)
{
    (void)state;
    struct stat st;
    in_folder("a");
    assert_int_equal(spa_store_replace(path, "x", 1, false, why, sizeof why), 0);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(spa_store_replace(path, "y", 1, false, why, sizeof why), 0);
    stat(path, &st);
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_int_equal(spa_store_replace(path, "z", 1, true, why, sizeof why), 0);
    stat(path, &st);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_store_replacing_through_a_link_keeps_the_link(void **state)
{
    (void)state;
    char link[300];
    struct stat st;
    in_folder("target");
    assert_int_equal(spa_store_replace(path, "old", 3, true, why, sizeof why), 0);
    snprintf(link, sizeof link, "%.250s/link", folder);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(spa_store_replace(link, "new", 3, true, why, sizeof why), 0);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_holds(path, "new");
}

/* A limit on file sizes stops the write in the middle, as a full disk does. */
static void test_store_write_that_fails_midway_leaves_the_old_file_and_nothing_else(void **state)
{
    (void)state;
    static uint8_t much[100000];
    struct rlimit before, small;
    in_folder("a");
    assert_int_equal(spa_store_replace(path, "old", 3, true, why, sizeof why), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 50000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = spa_store_replace(path, much, sizeof much, true, why, sizeof why);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rc, -1);
    assert_says(path);
    assert_says("File too large");
    assert_holds(path, "old");
    assert_int_equal(folder_n_files(), 1);
}

static void test_store_what_cannot_be_written_is_one_sentence(void **state)
{
    (void)state;
    assert_int_equal(spa_store_replace(in_folder("nowhere/a"), "x", 1, true, why, sizeof why), -1);
    assert_says("No such file or directory");
    assert_says("check the path");
    assert_int_equal(spa_store_replace(folder, "x", 1, true, why, sizeof why), -1);
    assert_says("it is a folder");
    assert_int_equal(spa_store_replace("/dev/null", "x", 1, true, why, sizeof why), -1);
    assert_says("not a regular file");
    assert_int_equal(spa_store_check_writable(in_folder("nowhere/a"), why, sizeof why), -1);
    assert_says("nowhere/a");
    assert_int_equal(spa_store_check_writable(in_folder("a"), why, sizeof why), 0);
    assert_int_equal(folder_n_files(), 0);
}

static void test_store_what_cannot_be_read_is_one_sentence(void **state)
{
    (void)state;
    uint8_t *bytes;
    size_t len;
    assert_int_equal(spa_store_read(in_folder("a"), 10, &bytes, &len, why, sizeof why), -1);
    assert_says("No such file");
    assert_int_equal(spa_store_read(folder, 10, &bytes, &len, why, sizeof why), -1);
    assert_says("folder");
    in_folder("a");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(spa_store_read(path, 10, &bytes, &len, why, sizeof why), -1);
    assert_says("not a regular file");
    unlink(path);
    assert_int_equal(spa_store_replace(path, "", 0, true, why, sizeof why), 0);
    assert_int_equal(spa_store_read(path, 10, &bytes, &len, why, sizeof why), -1);
    assert_says("is empty");
    assert_int_equal(spa_store_replace(path, "01234567890", 11, true, why, sizeof why), 0);
    assert_int_equal(spa_store_read(path, 10, &bytes, &len, why, sizeof why), -1);
    assert_says("at most 10");
}

static void test_store_sha256_is_the_known_one(void **state)
{
    (void)state;
    uint8_t hash[SPA_SHA256_BYTES];
    char hex[SPA_SHA256_HEX];
    spa_sha256("abc", 3, hash);
    spa_sha256_hex(hash, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");   /* FIPS 180-4 */
}

/* ---- plugin files ---- */

static struct spa_plugin_file small_plugin(void)
{
    struct spa_plugin_file f;
    memset(&f, 0, sizeof f);
    f.plugin.shape = (struct spa_shape) { .d = 6, .n_layers = 2, .r = 3, .m = 3, .n_taps = 2, .taps = { 0, 2 }, .k = 4, .basis = true,
                                          .normalise = SPA_NORM_RMS, .mode = SPA_ADD };
    f.plugin.gate_threshold = 0.5f;
    size_t n = spa_param_count(&f.plugin.shape), n_basis = spa_basis_floats(&f.plugin.shape);
    f.params = malloc(n * sizeof(float));
    spa_ladder_init(&f.plugin.shape, 1, f.params);
    f.basis = malloc(n_basis * sizeof(float));
    for (size_t i = 0; i < n_basis; i++)
        f.basis[i] = 1 + (float)i;
    spa_sha256(f.basis, n_basis * sizeof(float), f.plugin.basis_hash);
    return f;
}

static void test_plugin_file_saved_and_loaded_is_the_same(void **state)
{
    (void)state;
    struct spa_plugin_file f = small_plugin(), g;
    struct stat st;
    assert_int_equal(spa_plugin_file_save(in_folder("p.gguf"), &f, why, sizeof why), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (spa_plugin_file_load(path, &g, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_memory_equal(g.params, f.params, spa_param_count(&f.plugin.shape) * sizeof(float));
    assert_memory_equal(g.basis, f.basis, spa_basis_floats(&f.plugin.shape) * sizeof(float));
    assert_null(g.gate_w);
    spa_plugin_file_free(&f);
    spa_plugin_file_free(&g);
    spa_plugin_file_free(NULL);
}

static void test_plugin_file_that_is_wrong_is_one_sentence(void **state)
{
    (void)state;
    struct spa_plugin_file f = small_plugin(), g;
    uint8_t *bytes;
    size_t len;
    assert_int_equal(spa_plugin_file_save(in_folder("p.gguf"), &f, why, sizeof why), 0);
    assert_int_equal(spa_store_read(path, 1 << 20, &bytes, &len, why, sizeof why), 0);
    assert_int_equal(spa_plugin_file_parse("cut.gguf", bytes, len / 2, &g, why, sizeof why), -1);
    assert_says("'cut.gguf'");
    assert_says("at byte");
    assert_says("fetch or train it again");
    assert_null(g.params);
    bytes[len - 40] ^= 1;   /* in the basis' last numbers */
    assert_int_equal(spa_plugin_file_parse("flip.gguf", bytes, len, &g, why, sizeof why), -1);
    assert_says("hash");
    free(bytes);
    assert_int_equal(spa_plugin_file_load(SPA_TEST_DIR "/golden/tiny.plugin.bin", &g, why, sizeof why), -1);
    assert_says("spa convert");
    assert_int_equal(spa_plugin_file_load(SPA_TEST_DIR "/golden/tiny.plugin.safetensors", &g, why, sizeof why), -1);
    assert_says("spa convert");
    assert_int_equal(spa_plugin_file_load(SPA_TEST_DIR "/golden/tiny.base.gguf", &g, why, sizeof why), -1);
    assert_says("base model");
    assert_int_equal(spa_plugin_file_load(SPA_TEST_DIR "/golden/README.md", &g, why, sizeof why), -1);
    assert_says("no GGUF");
    spa_plugin_file_free(&f);
}

static void test_plugin_file_with_NaN_does_not_replace_a_good_one(void **state)
{
    (void)state;
    struct spa_plugin_file f = small_plugin(), g;
    assert_int_equal(spa_plugin_file_save(in_folder("p.gguf"), &f, why, sizeof why), 0);
    f.params[3] = NAN;
    assert_int_equal(spa_plugin_file_save(path, &f, why, sizeof why), -1);
    assert_says("NaN");
    assert_int_equal(spa_plugin_file_load(path, &g, why, sizeof why), 0);
    spa_plugin_file_free(&f);
    spa_plugin_file_free(&g);
}

/* Each errno that a person can do something about has its own advice. */
static void test_store_complaint_names_file_cause_and_remedy(void **state)
{
    (void)state;
    static const struct { int code; const char *says; } cases[] = {
        { ENOENT, "check the path" }, { ENOTDIR, "check the path" }, { EACCES, "permissions" }, { EPERM, "permissions" }, { ENOSPC, "free some space" },
        { EDQUOT, "free some space" }, { EFBIG, "ulimit -f" }, { EROFS, "read-only" }, { EISDIR, "not a folder" }, { ENAMETOOLONG, "shorter name" },
        { EMFILE, "ulimit -n" }, { ENFILE, "ulimit -n" }, { EIO, "check the disk" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(spa_store_complain(why, sizeof why, "write", "some/file", cases[i].code), -1);
        assert_says("cannot write 'some/file': ");
        assert_says(cases[i].says);
    }
}

static void test_store_cache_folder_is_the_named_one_or_where_caches_lie(void **state)
{
    (void)state;
    char out[300], named[400], *const long_name = calloc(1, 400);
    struct stat st;
    memset(long_name, 'x', 399);
    snprintf(named, sizeof named, "%s/cache", folder);
    assert_int_equal(spa_store_cache_folder(named, "--cache-dir", out, sizeof out, why, sizeof why), 0);
    assert_string_equal(out, named);
    assert_true(stat(out, &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 0777) == 0700);
    assert_int_equal(spa_store_cache_folder(named, "--cache-dir", out, sizeof out, why, sizeof why), 0);   /* it may be there */
    assert_int_equal(rmdir(named), 0);
    assert_int_equal(spa_store_cache_folder("/proc/nothing/cache", "--cache-dir", out, sizeof out, why, sizeof why), -1);
    assert_says("--cache-dir names another");
    assert_int_equal(spa_store_cache_folder("", "--cache-dir", out, sizeof out, why, sizeof why), -1);
    assert_says("is empty");
    assert_int_equal(spa_store_cache_folder(long_name, "--cache-dir", out, sizeof out, why, sizeof why), -1);
    assert_says("too long");
    free(long_name);
    setenv("XDG_CACHE_HOME", folder, 1);
    assert_int_equal(spa_store_cache_folder(NULL, "--cache-dir", out, sizeof out, why, sizeof why), 0);
    snprintf(named, sizeof named, "%s/spa", folder);
    assert_string_equal(out, named);
    assert_int_equal(rmdir(named), 0);
    setenv("XDG_CACHE_HOME", "no/absolute/path", 1);
    setenv("HOME", folder, 1);
    assert_int_equal(spa_store_cache_folder(NULL, "--cache-dir", out, sizeof out, why, sizeof why), 0);
    snprintf(named, sizeof named, "%s/.cache/spa", folder);
    assert_string_equal(out, named);
    assert_int_equal(rmdir(named), 0);
    snprintf(named, sizeof named, "%s/.cache", folder);
    assert_int_equal(rmdir(named), 0);
    setenv("HOME", "", 1);
    assert_int_equal(spa_store_cache_folder(NULL, "--cache-dir", out, sizeof out, why, sizeof why), 0);
    assert_true(strncmp(out, "/tmp/spa-cache-", 15) == 0);
}

/* Names of which a path, or the file beside it, would be longer than the system takes. */
static void test_store_name_that_is_too_long_is_said(void **state)
{
    (void)state;
    static char name[2 * PATH_MAX];
    for (size_t len = PATH_MAX - 8; len < PATH_MAX + 8; len += 8) {
        memset(name, 'x', len);
        for (size_t i = 0; i < len; i += 100)
            name[i] = '/';
        name[len] = 0;
        assert_int_equal(spa_store_replace(name, "x", 1, true, why, sizeof why), -1);
        assert_non_null(strstr(why, "cannot write"));
        assert_int_equal(spa_store_check_writable(name, why, sizeof why), -1);
    }
    assert_int_equal(spa_store_read(name, 10, &(uint8_t *){ NULL }, &(size_t){ 0 }, why, sizeof why), -1);
}

static void test_store_check_writable_asks_and_leaves_nothing(void **state)
{
    (void)state;
    assert_int_equal(spa_store_check_writable(in_folder("new"), why, sizeof why), 0);
    assert_int_equal(folder_n_files(), 0);
    assert_int_equal(spa_store_check_writable("/proc/nothing", why, sizeof why), -1);
    assert_says("cannot write beside '/proc/nothing'");
    assert_int_equal(spa_store_check_writable(folder, why, sizeof why), -1);
    assert_says("it is a folder");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, folder_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_store_replaced_file_holds_the_new_bytes_alone),
        TEST(test_store_replacing_keeps_the_mode_unless_only_the_owner_may),
        TEST(test_store_replacing_through_a_link_keeps_the_link),
        TEST(test_store_write_that_fails_midway_leaves_the_old_file_and_nothing_else),
        TEST(test_store_what_cannot_be_written_is_one_sentence),
        TEST(test_store_what_cannot_be_read_is_one_sentence),
        TEST(test_store_complaint_names_file_cause_and_remedy),
        TEST(test_store_cache_folder_is_the_named_one_or_where_caches_lie),
        TEST(test_store_name_that_is_too_long_is_said),
        TEST(test_store_check_writable_asks_and_leaves_nothing),
        TEST(test_store_sha256_is_the_known_one),
        TEST(test_plugin_file_saved_and_loaded_is_the_same),
        TEST(test_plugin_file_that_is_wrong_is_one_sentence),
        TEST(test_plugin_file_with_NaN_does_not_replace_a_good_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
