/* test_guard.c - who may ask the local server. */
#include "guard.h"
#include "listen.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static void test_guard_host_is_an_address_localhost_or_a_given_name(void **state)
{
    (void)state;
    static const char *const names[] = { "house.example", "box" };
    static const char *const good[] = { "127.0.0.1", "127.0.0.1:8081", "192.168.1.7:1", "[::1]", "[::1]:8081", "localhost", "LocalHost:80", "BOX:8081", "house.example" };
    static const char *const bad[] = { "", "evil.example", "evil.example:8081", "127.0.0.1.evil.example", "localhost.evil.example", "house.example.evil", "::1",
                                       "[::1", "[::1]x", "[localhost]", "127.0.0.1:99999999", "127.0.0.1:8x", "a@127.0.0.1", "127.1", ":8081" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(spa_guard_host(good[i], names, 2));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(spa_guard_host(bad[i], names, 2));
    assert_false(spa_guard_host("box", names, 1));
}

static void test_guard_origin_is_this_server_itself(void **state)
{
    (void)state;
    assert_true(spa_guard_origin("http://127.0.0.1:8081", "127.0.0.1:8081"));
    assert_true(spa_guard_origin("https://LOCALHOST:8081", "localhost:8081"));
    assert_false(spa_guard_origin("http://127.0.0.1:8082", "127.0.0.1:8081"));
    assert_false(spa_guard_origin("http://evil.example", "127.0.0.1:8081"));
    assert_false(spa_guard_origin("http://127.0.0.1:8081.evil.example", "127.0.0.1:8081"));
    assert_false(spa_guard_origin("null", "127.0.0.1:8081"));
    assert_false(spa_guard_origin("file://127.0.0.1:8081", "127.0.0.1:8081"));
    assert_false(spa_guard_origin("", "127.0.0.1:8081"));
}

static void test_guard_loopback(void **state)
{
    (void)state;
    assert_true(spa_listen_is_loopback("127.0.0.1") && spa_listen_is_loopback("127.9.9.9") && spa_listen_is_loopback("::1") && spa_listen_is_loopback("localhost"));
    assert_false(spa_listen_is_loopback("0.0.0.0") || spa_listen_is_loopback("::") || spa_listen_is_loopback("192.168.1.1") || spa_listen_is_loopback("house.example"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guard_host_is_an_address_localhost_or_a_given_name),
        cmocka_unit_test(test_guard_origin_is_this_server_itself),
        cmocka_unit_test(test_guard_loopback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
