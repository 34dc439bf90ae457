/* test_progress.c - cli/progress.c: the moving line's words and width, and what reaches a terminal, a dumb one, a pipe. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- the line ---- */

static const char *line_of(struct spa_progress *p, uint64_t done, uint64_t of, double seconds, unsigned columns)
{
    static char line[512];
    spa_progress_line(p, done, of, "epoch 3/8  loss 0.1234", p->started + seconds, columns, line, sizeof line);
    return line;
}

static struct spa_progress epochs(uint64_t from)
{
    struct spa_progress p = { .tty = true };
    spa_progress_begin(&p, "epochs");
    spa_progress_measure(&p, "steps", from);
    return p;
}

static void test_progress_line_has_bar_note_rate_and_time_left(void **state)
{
    (void)state;
    struct spa_progress p = epochs(0);
    assert_string_equal(line_of(&p, 50, 200, 10, 120),
                        "epochs       [######..................]  25 %  epoch 3/8  loss 0.1234  5.0 steps/s  30 s left");
    assert_string_equal(line_of(&p, 200, 200, 2, 120),
                        "epochs       [########################] 100 %  epoch 3/8  loss 0.1234  100 steps/s  0 s left");
    assert_non_null(strstr(line_of(&p, 1, 1001, 1, 200), "17 min left"));
    assert_non_null(strstr(line_of(&p, 1, 7201, 1, 200), "2.0 h left"));
}

static void test_progress_line_tells_no_rate_before_there_is_one(void **state)
{
    (void)state;
    struct spa_progress p = epochs(0);
    assert_null(strstr(line_of(&p, 0, 200, 10, 200), "left"));
    assert_null(strstr(line_of(&p, 1, 200, 0, 200), "steps/s"));
    assert_non_null(strstr(line_of(&p, 0, 200, 10, 200), "  0 %"));
}

static void test_progress_line_that_goes_on_counts_only_its_own_steps(void **state)
{
    (void)state;
    struct spa_progress p = epochs(100);
    const char *line = line_of(&p, 150, 200, 10, 200);
    assert_non_null(strstr(line, " 75 %"));
    assert_non_null(strstr(line, "5.0 steps/s  10 s left"));
    assert_null(strstr(line_of(&p, 100, 200, 10, 200), "left"));
}

static void test_progress_line_is_narrower_than_any_terminal(void **state)
{
    (void)state;
    struct spa_progress p = epochs(0);
    for (unsigned columns = 2; columns < 130; columns++)
        assert_in_range(strlen(line_of(&p, 50, 200, 10, columns)), 1, columns - 1);
    assert_string_equal(line_of(&p, 50, 200, 10, 60), "epochs        25 %  epoch 3/8  loss 0.1234  30 s left");
    assert_string_equal(line_of(&p, 50, 200, 10, 46), "epochs        25 %  epoch 3/8  loss 0.1234");
    assert_string_equal(line_of(&p, 50, 200, 10, 30), "epochs        25 %");
    assert_string_equal(line_of(&p, 50, 200, 10, 9), "epochs  ");
    /* A character is not cut in two. */
    char line[64];
    p.phase = "\xc3\xa4\xc3\xb6\xc3\xbc";
    spa_progress_line(&p, 1, 2, NULL, p.started, 3, line, sizeof line);
    assert_string_equal(line, "\xc3\xa4\xc3\xb6");
}

/* ---- what reaches stderr ---- */

/* Runs a phase with stderr at `end` and returns what was written there; end's other side is `from`. */
static const char *phase_on(int end, int from, const char *term, const char *no_colour)
{
    static char seen[2000];
    struct spa_progress p;
    const char *old_term = getenv("TERM");
    char keep[100];
    snprintf(keep, sizeof keep, "%s", old_term ? old_term : "");
    setenv("TERM", term, 1);
    if (no_colour)
        setenv("NO_COLOR", no_colour, 1);
    else
        unsetenv("NO_COLOR");
    fflush(stderr);
    int real = dup(STDERR_FILENO);
    dup2(end, STDERR_FILENO);
    spa_progress_init(&p, false);
    spa_progress_begin(&p, "epochs");
    spa_progress_draw(&p, 1, 2, "a note that is long enough to reach the edge of a terminal of eighty columns, and beyond it");
    spa_progress_say(&p, "said");
    spa_progress_end(&p, "done");
    fflush(stderr);
    dup2(real, STDERR_FILENO);
    close(real);
    setenv("TERM", keep, 1);
    size_t len = 0;
    const char *last = NULL;
    while (!last || !strchr(last, '\n')) {   /* a terminal hands over what was written piece by piece */
        ssize_t n = read(from, seen + len, sizeof seen - 1 - len);
        assert_true(n > 0);
        len += (size_t)n;
        seen[len] = '\0';
        last = strstr(seen, "done");
    }
    return seen;
}

static int open_terminal(int *controller, unsigned short columns)
{
    struct winsize size = { .ws_row = 24, .ws_col = columns };
    *controller = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(*controller >= 0 && grantpt(*controller) == 0 && unlockpt(*controller) == 0);
    int terminal = open(ptsname(*controller), O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0);
    assert_int_equal(ioctl(terminal, TIOCSWINSZ, &size), 0);
    return terminal;
}

static void test_progress_terminal_gets_a_line_that_moves(void **state)
{
    (void)state;
    int controller, terminal = open_terminal(&controller, 200);
    const char *seen = phase_on(terminal, controller, "xterm", NULL);
    assert_non_null(strstr(seen, "\r\033[K\033[1mepochs\033[0m       [############............]  50 %  a note"));
    assert_non_null(strstr(seen, "\r\033[Ksaid\r\n"));
    seen = phase_on(terminal, controller, "xterm", "");   /* set to nothing is as not set */
    assert_non_null(strstr(seen, "\033[1m"));
    close(terminal);
    close(controller);
}

static void test_progress_NO_COLOR_leaves_what_redrawing_needs(void **state)
{
    (void)state;
    int controller, terminal = open_terminal(&controller, 200);
    const char *seen = phase_on(terminal, controller, "xterm", "1");
    assert_non_null(strstr(seen, "[############............]"));
    for (const char *at = seen; (at = strchr(at, '\033')); at++)
        assert_memory_equal(at, "\033[K", 3);
    close(terminal);
    close(controller);
}

static void test_progress_narrow_terminal_is_not_wrapped(void **state)
{
    (void)state;
    int controller, terminal = open_terminal(&controller, 24);
    const char *seen = phase_on(terminal, controller, "xterm", "1");
    const char *line = strstr(seen, "\033[K");
    assert_non_null(line);
    assert_in_range(strcspn(line + 3, "\r"), 10, 23);
    close(terminal);
    close(controller);
}

static void test_progress_pipe_and_dumb_terminal_get_plain_lines(void **state)
{
    (void)state;
    int controller, terminal = open_terminal(&controller, 80), ends[2];
    const char *seen = phase_on(terminal, controller, "dumb", NULL);
    assert_null(strchr(seen, '\033'));
    assert_memory_equal(seen, "said\r\nepochs       done  ", 24);
    close(terminal);
    close(controller);
    assert_int_equal(pipe(ends), 0);
    seen = phase_on(ends[1], ends[0], "xterm", NULL);
    assert_null(strpbrk(seen, "\033\r"));
    assert_memory_equal(seen, "said\nepochs       done  ", 23);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress_line_has_bar_note_rate_and_time_left),
        cmocka_unit_test(test_progress_line_tells_no_rate_before_there_is_one),
        cmocka_unit_test(test_progress_line_that_goes_on_counts_only_its_own_steps),
        cmocka_unit_test(test_progress_line_is_narrower_than_any_terminal),
        cmocka_unit_test(test_progress_terminal_gets_a_line_that_moves),
        cmocka_unit_test(test_progress_NO_COLOR_leaves_what_redrawing_needs),
        cmocka_unit_test(test_progress_narrow_terminal_is_not_wrapped),
        cmocka_unit_test(test_progress_pipe_and_dumb_terminal_get_plain_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
