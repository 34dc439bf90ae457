/* test_utf8.c - device/utf8.c: what is text, and text made of what is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "utf8.h"

#include <stdlib.h>
#include <string.h>

static void test_utf8_good_len_ends_at_the_first_byte_that_is_none(void **state)
{
    (void)state;
    static const struct { const char *text; size_t len, good; } cases[] = {
        { "", 0, 0 }, { "plain", 5, 5 }, { "z\xc3\xbcrich", 7, 7 }, { "\xe2\x82\xac", 3, 3 }, { "\xf0\x9f\x99\x82", 4, 4 }, { "a\0b", 3, 3 },
        { "a\xff", 2, 1 }, { "a\x80", 2, 1 },                                      /* no first byte */
        { "\xc3", 1, 0 }, { "\xe2\x82", 2, 0 }, { "a\xf0\x9f\x99", 4, 1 },         /* cut off */
        { "\xc0\x80", 2, 0 }, { "\xc1\xbf", 2, 0 }, { "\xe0\x9f\xbf", 3, 0 }, { "\xf0\x8f\xbf\xbf", 4, 0 },   /* overlong */
        { "\xed\x9f\xbf", 3, 3 }, { "\xed\xa0\x80", 3, 0 },                        /* surrogates */
        { "\xf4\x8f\xbf\xbf", 4, 4 }, { "\xf4\x90\x80\x80", 4, 0 }, { "\xf5\x80\x80\x80", 4, 0 },             /* beyond U+10FFFF */
        { "\xe2\x28\xa1", 3, 0 }, { "\xe2\x82\x28", 3, 0 }, { "\xf0\x9f\x99\x28", 4, 0 },                     /* wrong later bytes */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (spa_utf8_good_len(cases[i].text, cases[i].len) != cases[i].good)
            fail_msg("case %zu: %zu and not %zu", i, spa_utf8_good_len(cases[i].text, cases[i].len), cases[i].good);
}

static void assert_cleaned(const char *text, size_t len, const char *clean)
{
    char *out = malloc(spa_utf8_clean_room(len));
    assert_non_null(out);
    assert_int_equal(spa_utf8_clean(text, len, out), strlen(clean));
    assert_string_equal(out, clean);
    free(out);
}

static void test_utf8_clean_puts_a_sign_for_each_byte_that_may_not_be(void **state)
{
    (void)state;
    assert_cleaned("", 0, "");
    assert_cleaned("a\xc3\xbc", 3, "a\xc3\xbc");
    assert_cleaned("\0", 1, "\xef\xbf\xbd");
    assert_cleaned("a\0b\0", 4, "a\xef\xbf\xbd" "b\xef\xbf\xbd");
    assert_cleaned("\xff\xfe" "c", 3, "\xef\xbf\xbd\xef\xbf\xbd" "c");
    assert_cleaned("d\xe2\x82", 3, "d\xef\xbf\xbd\xef\xbf\xbd");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_good_len_ends_at_the_first_byte_that_is_none),
        cmocka_unit_test(test_utf8_clean_puts_a_sign_for_each_byte_that_may_not_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
