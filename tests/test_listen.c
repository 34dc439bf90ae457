/* test_listen.c - device/listen.c: where a server may listen, and at which address. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "listen.h"

#include <string.h>

static char why[1024];

static void assert_refused(const struct spa_listen *l, const char *what)
{
    assert_int_equal(spa_listen_check(l, why, sizeof why), -1);
    if (!strstr(why, what))
        fail_msg("'%s' does not say '%s'", why, what);
}

static void test_listen_beyond_this_machine_wants_keys_and_tls_or_force(void **state)
{
    (void)state;
    struct spa_listen l = { .host = "127.0.0.1", .key_option = "--api-key-file" };
    assert_int_equal(spa_listen_check(&l, why, sizeof why), 0);
    l.host = "0.0.0.0";
    assert_refused(&l, "--api-key-file");
    l.key_file = "keys";
    assert_refused(&l, "reachable from outside");
    l.force = true;
    assert_int_equal(spa_listen_check(&l, why, sizeof why), 0);
    l.force = false;
    l.ssl_key_file = "/dev/null";
    assert_refused(&l, "both");
    l.ssl_cert_file = "/nowhere/cert.pem";
    assert_refused(&l, "cannot read /nowhere/cert.pem");
    l.ssl_cert_file = "/dev/null";
    l.ssl_key_file = "/nowhere/key.pem";
    assert_refused(&l, "cannot read /nowhere/key.pem");
    l.ssl_key_file = "/dev/null";
    assert_int_equal(spa_listen_check(&l, why, sizeof why), 0);
}

static void test_listen_certificates_of_clients_are_a_part_of_tls(void **state)
{
    (void)state;
    struct spa_listen l = { .host = "0.0.0.0", .ssl_ca_file = "/nowhere/ca.pem", .key_option = "--api-key-file" };
    assert_refused(&l, "a part of TLS");
    l.ssl_key_file = l.ssl_cert_file = "/dev/null";
    assert_refused(&l, "cannot read /nowhere/ca.pem");
    l.ssl_ca_file = "/dev/null";
    assert_int_equal(spa_listen_check(&l, why, sizeof why), 0);   /* who has a certificate needs no key */
}

static void test_listen_loopback_is_what_nobody_else_reaches(void **state)
{
    (void)state;
    static const char *const inside[] = { "127.0.0.1", "127.255.0.3", "localhost", "::1" }, *const outside[] = { "0.0.0.0", "128.0.0.1", "::", "example.org", "", "127.1" };
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        assert_true(spa_listen_is_loopback(inside[i]));
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        assert_false(spa_listen_is_loopback(outside[i]));
}

static void test_listen_address_becomes_a_number(void **state)
{
    (void)state;
    char numeric[64];
    bool is_v6 = true;
    assert_int_equal(spa_listen_resolve("127.0.0.1", numeric, sizeof numeric, &is_v6), 0);
    assert_string_equal(numeric, "127.0.0.1");
    assert_false(is_v6);
    assert_int_equal(spa_listen_resolve("::1", numeric, sizeof numeric, &is_v6), 0);
    assert_string_equal(numeric, "::1");
    assert_true(is_v6);
    assert_int_equal(spa_listen_resolve("nobody.invalid", numeric, sizeof numeric, &is_v6), -1);
    assert_int_equal(spa_listen_resolve("127.0.0.1", numeric, 3, &is_v6), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen_beyond_this_machine_wants_keys_and_tls_or_force),
        cmocka_unit_test(test_listen_certificates_of_clients_are_a_part_of_tls),
        cmocka_unit_test(test_listen_loopback_is_what_nobody_else_reaches),
        cmocka_unit_test(test_listen_address_becomes_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
