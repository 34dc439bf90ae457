/* test_keys.c - key files: hashes and plain keys, lines that are neither, a key that was made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Sixty-four digits. */
#define HASH "af9e0e46b26caf2ded99b09c7be5cfbec5b9f12c3b79b1ca1b5b4e1b8ec0c2c0"

static char path[64];

static void write_file(const char *text)
{
    snprintf(path, sizeof path, "/tmp/test_keys.XXXXXX");
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static int read_text(const char *text, struct spa_keys *k, char why[256])
{
    write_file(text);
    const int rc = spa_keys_read(k, path, why, 256);
    unlink(path);
    return rc;
}

static bool allows(const struct spa_keys *k, const char *key)
{
    char header[600];
    const int n = snprintf(header, sizeof header, "Bearer %s", key);
    return spa_keys_allow(k, header, (size_t)n);
}

static void test_keys_a_made_key_is_known_by_its_line(void **state)
{
    (void)state;
    char key[SPA_KEY_TEXT], other[SPA_KEY_TEXT], line[SPA_KEY_LINE], unused[SPA_KEY_LINE], text[600], why[256];
    struct spa_keys k;
    assert_int_equal(spa_keys_make("alice", key, line), 0);
    assert_int_equal(spa_keys_make(NULL, other, unused), 0);
    assert_string_not_equal(key, other);
    assert_true(strlen(key) >= 43 && strspn(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == strlen(key));
    assert_null(strstr(line, key));
    assert_string_equal(line + strlen(line) - 6, " alice");
    snprintf(text, sizeof text, "# keys\n\n%s\r\nplain one\n", line);
    assert_int_equal(read_text(text, &k, why), 0);
    assert_int_equal(k.n, 2);
    assert_int_equal(k.n_plain, 1);
    assert_true(allows(&k, key));
    assert_true(allows(&k, "plain one"));
    assert_false(allows(&k, other));
    assert_false(allows(&k, line));   /* the hash is no key */
    assert_false(allows(&k, ""));
    assert_false(spa_keys_allow(&k, key, strlen(key)));
    uint8_t hash[SPA_KEY_HASH];
    char header[128];
    snprintf(header, sizeof header, "bearer %s", key);
    assert_true(spa_keys_find(&k, header, strlen(header), hash));
    assert_true(spa_keys_has(&k, hash));
    hash[31] ^= 1;
    assert_false(spa_keys_has(&k, hash));
    spa_keys_free(&k);
}

static void test_keys_lines_that_are_no_key_are_named(void **state)
{
    (void)state;
    const struct { const char *text, *words; } cases[] = {
        { "", "no API key" }, { "# only\n\n", "no API key" }, { "one\nsha256:12ab\n", "line 2" }, { "sha256:" HASH "0\n", "line 1" },
        { "sha256:" HASH "x\n", "line 1" }, { "sha256:\n", "line 1" }, { "sha256:g" HASH "\n", "line 1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char why[256] = "";
        struct spa_keys k;
        assert_int_equal(read_text(cases[i].text, &k, why), -1);
        if (!strstr(why, cases[i].words))
            fail_msg("%s: %s", cases[i].text, why);
        assert_null(k.hashes);
        assert_int_equal(k.n, 0);
    }
    char longest[700], why[256] = "";
    struct spa_keys k;
    memset(longest, 'k', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(read_text(longest, &k, why), -1);
    assert_non_null(strstr(why, "too long"));
    assert_int_equal(spa_keys_read(&k, "/nowhere/keys", why, sizeof why), -1);
    assert_string_equal(why, "/nowhere/keys: cannot read the API keys: No such file or directory");
}

static void test_keys_hash_lines_take_a_name_or_none(void **state)
{
    (void)state;
    const char *const lines[] = { "sha256:" HASH, "sha256:" HASH "\n", "sha256:" HASH " \n", "sha256:" HASH "\tbob the second\n" };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char why[256] = "";
        struct spa_keys k;
        if (read_text(lines[i], &k, why) != 0)
            fail_msg("%s: %s", lines[i], why);
        assert_int_equal(k.n, 1);
        assert_int_equal(k.n_plain, 0);
        spa_keys_free(&k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_a_made_key_is_known_by_its_line),
        cmocka_unit_test(test_keys_lines_that_are_no_key_are_named),
        cmocka_unit_test(test_keys_hash_lines_take_a_name_or_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
