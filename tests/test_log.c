/* test_log.c - an event is one line on stderr, whatever is in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "log_lines.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUT = 1 << 14 };
static char out[OUT];

/* What an event writes to stderr, in out. */
static void write_down(bool json, int32_t level, enum spa_log_level of, const char *line)
{
    FILE *f = tmpfile();
    assert_non_null(f);
    const int terminal = dup(STDERR_FILENO);
    fflush(stderr);
    dup2(fileno(f), STDERR_FILENO);
    spa_log_json = json;
    spa_log_level = level;
    spa_log_line(NULL, of, line);
    fflush(stderr);
    dup2(terminal, STDERR_FILENO);
    close(terminal);
    rewind(f);
    out[fread(out, 1, sizeof out - 1, f)] = '\0';
    fclose(f);
}

/* The message in out, which must be one object on one line. */
static const char *message_of(json_t **event)
{
    json_error_t why;
    assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
    *event = json_loads(out, JSON_REJECT_DUPLICATES, &why);
    if (!*event)
        fail_msg("%s in %s", why.text, out);
    assert_int_equal(strlen(json_string_value(json_object_get(*event, "time"))), strlen("2026-01-31T12:00:00.123Z"));
    return json_string_value(json_object_get(*event, "message"));
}

static void test_log_levels_hide_what_is_less(void **state)
{
    (void)state;
    static const char *const names[] = { "error", "warn", "info", "debug" };
    for (int32_t level = SPA_LOG_ERROR; level <= SPA_LOG_DEBUG; level++)
        for (int32_t of = SPA_LOG_ERROR; of <= SPA_LOG_DEBUG; of++) {
            write_down(false, level, (enum spa_log_level)of, "an event");
            if (of > level) {
                assert_string_equal(out, "");
                continue;
            }
            const size_t when = strlen("2026-01-31T12:00:00.123Z ");
            char wanted[32];
            snprintf(wanted, sizeof wanted, "%c an event\n", "EWID"[of]);
            assert_true(strlen(out) > when);
            assert_string_equal(out + when, wanted);
            json_t *event;
            write_down(true, level, (enum spa_log_level)of, "an event");
            assert_string_equal(message_of(&event), "an event");
            assert_string_equal(json_string_value(json_object_get(event, "level")), names[of]);
            json_decref(event);
        }
}

static void test_log_a_line_stays_a_line(void **state)
{
    (void)state;
    static const struct { const char *line, *says; } cases[] = {
        { "quote \" and backslash \\", "quote \" and backslash \\" },
        { "two\nlines\r\n\ttab", "two lines   tab" },
        { "{\"level\":\"info\"}", "{\"level\":\"info\"}" },
        { "gr\xc3\xbcn \xf0\x9f\x8c\xbf", "gr\xc3\xbcn \xf0\x9f\x8c\xbf" },
        { "no utf-8: \xff\xc3", "no utf-8: ??" },
        { "\x1b[31mred\x7f", " [31mred " },
        { "", "" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *event;
        write_down(true, SPA_LOG_INFO, SPA_LOG_INFO, cases[i].line);
        assert_string_equal(message_of(&event), cases[i].says);
        json_decref(event);
        write_down(false, SPA_LOG_INFO, SPA_LOG_INFO, cases[i].line);
        assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
        out[strlen(out) - 1] = '\0';
        assert_string_equal(strstr(out, " I ") + 3, cases[i].says);
    }
}

static void test_log_connection_and_request_are_fields(void **state)
{
    (void)state;
    static const struct { const char *line, *says; int connection, request; } cases[] = {
        { "connection 12: hello", "hello", 12, -1 },
        { "connection 12 closed", "closed", 12, -1 },
        { "connection 4294967295 request 7 ended: stop", "ended: stop", -2, 7 },
        { "connection 1 request 0: the state is late", "the state is late", 1, 0 },
        { "connection x", "connection x", -1, -1 },
        { "request 3", "request 3", -1, -1 },
        { "a connection 5", "a connection 5", -1, -1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *event;
        write_down(true, SPA_LOG_INFO, SPA_LOG_INFO, cases[i].line);
        assert_string_equal(message_of(&event), cases[i].says);
        const json_t *c = json_object_get(event, "connection"), *r = json_object_get(event, "request");
        if (cases[i].connection == -2)
            assert_true(json_integer_value(c) == 4294967295);
        else
            assert_int_equal(c ? json_integer_value(c) : -1, cases[i].connection);
        assert_int_equal(r ? json_integer_value(r) : -1, cases[i].request);
        assert_int_equal(json_object_size(event), 3 + (c != NULL) + (r != NULL));
        json_decref(event);
        write_down(false, SPA_LOG_INFO, SPA_LOG_INFO, cases[i].line);
        assert_non_null(strstr(out, cases[i].line));
    }
}

static void test_log_a_long_line_is_cut_between_characters(void **state)
{
    (void)state;
    static char line[5000];
    for (size_t shift = 0; shift < 3; shift++) {
        json_t *event;
        memset(line, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof line; i += 3)
            memcpy(line + i, "\xe2\x82\xac", 4);
        write_down(true, SPA_LOG_INFO, SPA_LOG_INFO, line);
        const size_t len = strlen(message_of(&event));
        assert_true(len > 2000 && len < 2048 && (len - shift) % 3 == 0);
        json_decref(event);
    }
}

static void test_log_failure_is_a_sentence_or_an_object(void **state)
{
    (void)state;
    json_t *event;
    FILE *f = tmpfile();
    const int terminal = dup(STDERR_FILENO);
    fflush(stderr);
    dup2(fileno(f), STDERR_FILENO);
    spa_log_json = false;
    assert_int_equal(spa_log_fail("spa-cloud", "no model"), 1);
    spa_log_json = true;
    spa_log_level = SPA_LOG_ERROR;
    spa_log_fail("spa-cloud", "no model");
    fflush(stderr);
    dup2(terminal, STDERR_FILENO);
    close(terminal);
    rewind(f);
    assert_non_null(fgets(out, sizeof out, f));
    assert_string_equal(out, "spa-cloud: no model\n");
    assert_non_null(fgets(out, sizeof out, f));
    assert_string_equal(message_of(&event), "no model");
    json_decref(event);
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_levels_hide_what_is_less),
        cmocka_unit_test(test_log_a_line_stays_a_line),
        cmocka_unit_test(test_log_connection_and_request_are_fields),
        cmocka_unit_test(test_log_a_long_line_is_cut_between_characters),
        cmocka_unit_test(test_log_failure_is_a_sentence_or_an_object),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
