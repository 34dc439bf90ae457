/* test_report.c - cli/report.c, plot.c, html.c: what the page holds, that nothing from rows is markup, that it is written whole or
 * not at all. With an argument: writes the sample page there, for report_page.py and for a look at it. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "html.h"
#include "plot.h"
#include "report.h"
#include "store.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/spa-report-XXXXXX", path[300], why[SPA_WHY_MAX];
static struct spa_report report;

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/report.html", folder);
    spa_report_init(&report);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);   /* fails when anything else was left there */
}

/* The page as a string, the caller's to free. */
static char *written(void)
{
    uint8_t *bytes;
    size_t len;
    if (spa_report_write(&report, path, why, sizeof why) != 0 || spa_store_read(path, 10 << 20, &bytes, &len, why, sizeof why) != 0)
        fail_msg("%s", why);
    char *page = malloc(len + 1);
    memcpy(page, bytes, len);
    page[len] = '\0';
    assert_int_equal(strlen(page), len);
    free(bytes);
    return page;
}

static void assert_has(const char *page, const char *what)
{
    if (!strstr(page, what))
        fail_msg("the page has no '%s'", what);
}

static size_t count(const char *page, const char *what)
{
    size_t n = 0;
    for (const char *at = page; (at = strstr(at, what)); at++)
        n++;
    return n;
}

/* ---- a sample with everything ---- */

static struct spa_gate_trade trade[SPA_GATE_THRESHOLDS];

static const struct spa_report_example examples[] = {
    { "What is my dog called?", "Your dog is called Biscuit.", "I'm sorry, but I don't have access to personal information about you or your pets.",
      "Your dog is called Biscuit.", SPA_REPORT_EXACT | SPA_REPORT_HELD_OUT },
    { "<script>alert(1)</script> & \"quotes\" 'n <b>bold</b>", "</dd></dl><img src=x onerror=alert(1)>", "\xff\xfe bytes \xc3", "a\x01" "b\x1b[31mc", 0 },
    { "\xd9\x83\xd9\x85 \xd8\xa7\xd9\x84\xd8\xb3\xd8\xa7\xd8\xb9\xd8\xa9\xd8\x9f", "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e", "", NULL, SPA_REPORT_HELD_OUT },
    { "List three colours.", NULL, "1. Red\n2. Green\n3. Blue", "1. Red\n2. Green\n3. Blue", 0 },
    { "Write a haiku about rain.", NULL, "Rain falls on the roof", "Rain falls on Biscuit", 0 },
};

static void fill_sample(void)
{
    enum { EPOCHS = 8, PER_EPOCH = 50 };
    spa_report_init(&report);
    report.plugin = "/home/me/facts.gguf";
    report.base_model = "SmolLM2 135M Instruct <Q4_1>";
    report.rows = 1000;
    report.held_rows = 120;
    report.loss_tokens = 11423;
    report.parameters = 80192;
    report.epochs = EPOCHS;
    report.seed = 1;
    report.base_held_loss = 3.4;
    report.base_exact = 0.008;
    report.exact = 0.958;
    for (uint64_t s = 1; s <= EPOCHS * PER_EPOCH; s++) {
        double shape = 3.6 * exp(-(double)s / 70) + 0.04, noise = 1 + 0.35 * sin((double)s * 12.9898) * sin((double)s * 4.1);
        double lr = s < 20 ? (double)s / 20 : 0.5 + 0.5 * cos(3.14159 * (double)(s - 20) / (EPOCHS * PER_EPOCH - 20));
        spa_report_step(&report, s, (uint32_t)(s - 1) / PER_EPOCH + 1, (float)(shape * noise), (float)(3e-3 * lr));
        if (s % PER_EPOCH == 0)
            spa_report_epoch(&report, (uint32_t)s / PER_EPOCH, (float)(2.9 * exp(-(double)s / 90) + 0.11), (float)(0.96 - 0.9 * exp(-(double)s / 90)));
    }
    report.held_loss = (double)report.last_eval.held_loss;
    for (size_t i = 0; i < SPA_GATE_THRESHOLDS; i++) {
        double t = (double)spa_gate_thresholds[i], x = log(t / (1 - t));
        trade[i] = (struct spa_gate_trade){ spa_gate_thresholds[i], 0.958 - 0.5 / (1 + exp(4.5 - x)), 0.995 - 0.35 / (1 + exp(4 - x)), 0.3 / (1 + exp(1.2 * x + 2)),
                                            0.12 / (1 + exp(1.2 * x + 2)), 1 - 0.6 / (1 + exp(1.2 * x + 2)) };
    }
    report.trade = trade;
    report.n_trade = SPA_GATE_THRESHOLDS;
    report.chosen = spa_learn_gate_choose(trade, SPA_GATE_THRESHOLDS);
    report.trade_held_out = true;
    report.examples = examples;
    report.n_examples = sizeof examples / sizeof examples[0];
    spa_report_phase(&report, "head", 0.4);
    spa_report_phase(&report, "states", 21.3);
    spa_report_phase(&report, "epochs", 14.8);
    spa_report_phase(&report, "gate", 2.25);
    spa_report_phase(&report, "states", 1);
    spa_report_number(&report, "bytes from the cloud", "%.1f MB", 31.4);
    spa_report_number(&report, "bytes to the cloud", "%.2f MB", 0.09);
    spa_report_number(&report, "memory at most", "%d MB", 148);
}

static void test_report_page_shows_what_was_told(void **state)
{
    (void)state;
    struct stat st;
    fill_sample();
    char *page = written();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_memory_equal(page, "<!DOCTYPE html>", 15);
    assert_int_equal(count(page, "<svg "), 4);
    assert_has(page, "<h1>facts.gguf</h1>");
    assert_null(strstr(page, "/home"));
    assert_has(page, "SmolLM2 135M Instruct &lt;Q4_1&gt;");
    assert_has(page, "<dd>80192</dd>");
    assert_has(page, "0.8&#160;% \xe2\x86\x92</span> 95.8&#160;%</b>held-out answers exactly right");
    assert_has(page, "(log scale)");                               /* from 3.6 to 0.04 */
    assert_has(page, ">base 3.4</text>");
    assert_int_equal(count(page, "<tr class=\"chosen\">"), 1);
    assert_has(page, "Your dog is called Biscuit.");
    assert_int_equal(count(page, "<article>"), 5);
    assert_has(page, "not asked");
    assert_has(page, "the same</span>");
    assert_has(page, "changed</span>");
    assert_has(page, ">states</th><td>22.3</td>");                 /* told twice: added up */
    assert_has(page, "31.4 MB");
    free(page);
}

static void test_report_curves_are_those_that_there_is_something_of(void **state)
{
    (void)state;
    for (uint64_t s = 1; s <= 10; s++)
        spa_report_step(&report, s, 1, 2.0f / (float)s, 1e-3f);    /* ten times */
    char *page = written();
    assert_null(strstr(page, "log scale"));
    free(page);
    spa_report_epoch(&report, 1, 1, 0.5f);
    page = written();
    assert_int_equal(count(page, "<svg "), 2);                     /* loss and rate; one point of exact match is no curve */
    spa_report_epoch(&report, 2, 1, 0.6f);
    free(page);
    page = written();
    assert_int_equal(count(page, "<svg "), 3);
    free(page);
}

/* ---- text from outside ---- */

static void test_report_text_from_rows_is_never_markup(void **state)
{
    (void)state;
    fill_sample();
    char *page = written();
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<b>bold"));
    assert_has(page, "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot; &#39;n");
    assert_has(page, "\xef\xbf\xbd\xef\xbf\xbd bytes \xef\xbf\xbd<");
    assert_has(page, "a\xef\xbf\xbd" "b\xef\xbf\xbd[31mc");
    for (const char *at = page; *at; at++)
        assert_true((unsigned char)*at >= 0x20 || *at == '\n');
    free(page);
}

static void expect_html(const char *text, size_t max_chars, const char *want)
{
    char *html = NULL;
    size_t len;
    FILE *out = open_memstream(&html, &len);
    spa_html_text(out, text, max_chars);
    fclose(out);
    assert_string_equal(html, want);
    free(html);
}

static void test_report_characters_a_page_may_not_hold_are_replaced(void **state)
{
    (void)state;
    expect_html("a\tb\nc", 100, "a\tb\nc");
    expect_html("\xc2\x85\x7f\r", 100, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    expect_html("\xef\xbf\xbf\xef\xbf\xbd", 100, "\xef\xbf\xbd\xef\xbf\xbd");
    expect_html("\xe2\x82", 100, "\xef\xbf\xbd\xef\xbf\xbd");                       /* cut inside a character */
    expect_html("\xed\xa0\x80x", 100, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx");      /* a surrogate */
    expect_html("\xf0\x9f\x90\xb6!", 100, "\xf0\x9f\x90\xb6!");
}

static void test_report_long_text_is_cut_between_characters(void **state)
{
    (void)state;
    expect_html("\xc3\xa4\xc3\xb6\xc3\xbc", 3, "\xc3\xa4\xc3\xb6\xc3\xbc");
    expect_html("\xc3\xa4\xc3\xb6\xc3\xbc", 2, "\xc3\xa4\xc3\xb6\xe2\x80\xa6");
    expect_html("<<<", 1, "&lt;\xe2\x80\xa6");
}

/* ---- bounds ---- */

static void test_report_many_steps_thin_out_and_keep_first_and_last(void **state)
{
    (void)state;
    static const uint64_t lengths[] = { 1, 1999, 2000, 2001, 2002, 4001, 100001 };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        spa_report_init(&report);
        for (uint64_t s = 1; s <= lengths[i]; s++)
            spa_report_step(&report, s, 1, (float)s, 0);
        size_t n = report.thin_points.n;
        assert_in_range(n, lengths[i] < 1000 ? 1 : 1000, SPA_REPORT_POINTS);
        if (lengths[i] <= SPA_REPORT_POINTS)
            assert_int_equal(n, lengths[i]);
        assert_int_equal(report.points[0].step, 1);
        for (size_t j = 1; j < n; j++)
            assert_int_equal(report.points[j].step - report.points[j - 1].step, report.thin_points.stride);
        assert_true(lengths[i] - report.points[n - 1].step < report.thin_points.stride);
        assert_int_equal(report.last_point.step, lengths[i]);
        /* The page's curve ends at the last step: its training loss is s, so the label says so. */
        char *page = written(), label[60];
        snprintf(label, sizeof label, "in %llu steps", (unsigned long long)lengths[i]);
        assert_has(page, label);
        assert_true(strlen(page) < 150000);
        snprintf(label, sizeof label, ">training %.2g<", (double)lengths[i]);
        assert_has(page, label);
        free(page);
    }
    for (uint32_t e = 1; e <= 10000; e++)
        spa_report_epoch(&report, e, 1, NAN);
    assert_in_range(report.thin_evals.n, SPA_REPORT_EPOCHS / 2, SPA_REPORT_EPOCHS);
    assert_int_equal(report.evals[0].epoch, 1);
    assert_int_equal(report.last_eval.epoch, 10000);
}

static void test_report_more_numbers_than_room_are_dropped(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        char name[200];
        snprintf(name, sizeof name, "%d and a name that is far longer than the room there is for names", i);
        spa_report_phase(&report, name, 1);
        spa_report_number(&report, name, "%s %d", "and a number that takes more room than there is room for in a table of numbers, really", i);
    }
    assert_int_equal(report.n_phases, SPA_REPORT_ROWS);
    assert_int_equal(report.n_numbers, SPA_REPORT_ROWS);
    spa_report_phase(&report, "0 and a name that is far longer than the room there is for names", 1);
    assert_true(report.phases[0].seconds == 2);
    free(written());
}

static void test_report_more_examples_than_room_say_so(void **state)
{
    (void)state;
    struct spa_report_example many[SPA_REPORT_EXAMPLES + 1] = { { 0 } };
    report.examples = many;
    report.n_examples = SPA_REPORT_EXAMPLES + 1;
    char *page = written();
    assert_has(page, "The first 40 of 41.");
    assert_int_equal(count(page, "<article>"), SPA_REPORT_EXAMPLES);
    free(page);
}

static void test_report_of_nothing_is_a_page(void **state)
{
    (void)state;
    char *page = written();
    assert_has(page, "<h1>Training report</h1>");
    assert_has(page, "</html>");
    assert_null(strstr(page, "<svg"));
    assert_null(strstr(page, "<section"));
    assert_null(strstr(page, "nan"));
    free(page);
}

static void test_report_of_numbers_that_are_none_draws_none(void **state)
{
    (void)state;
    struct spa_gate_trade unknown = { 0.5f, 1, 1, NAN, NAN, NAN };
    report.trade = &unknown;
    report.n_trade = 1;
    for (uint64_t s = 1; s <= 3; s++)
        spa_report_step(&report, s, 1, s == 2 ? NAN : INFINITY, NAN);
    spa_report_epoch(&report, 1, NAN, NAN);
    char *page = written();
    for (const char *at = page; (at = strstr(at, " d=\"")); at++) {
        size_t n = strcspn(at + 4, "\"");
        for (size_t i = 0; i < n; i++)
            assert_true(at[4 + i] != 'n' && at[4 + i] != 'i');   /* no nan, no inf among coordinates */
    }
    free(page);
}

/* ---- the file ---- */

static void test_report_that_cannot_be_written_leaves_the_old_one(void **state)
{
    (void)state;
    struct rlimit before, small;
    fill_sample();
    assert_int_equal(spa_store_replace(path, "old", 3, true, why, sizeof why), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 5000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);   /* stops the write in the middle, as a full disk does */
    int rc = spa_report_write(&report, path, why, sizeof why);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(why, path));
    uint8_t *bytes;
    size_t len;
    assert_int_equal(spa_store_read(path, 100, &bytes, &len, why, sizeof why), 0);
    assert_int_equal(len, 3);
    free(bytes);
    assert_int_equal(spa_report_write(&report, "/dev/full", why, sizeof why), -1);
    assert_non_null(strstr(why, "/dev/full"));
}

/* ---- for the terminal ---- */

static void test_report_trade_table_marks_the_chosen_row(void **state)
{
    (void)state;
    const struct spa_gate_trade two[] = { { 0.5f, 1, 0.98, 0.031, 0.004, 0.9 }, { 0.9f, 0.95, 0.9, NAN, NAN, NAN } };
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    spa_report_print_trade(out, two, 2, 0);
    fclose(out);
    assert_string_equal(text,
        "     gate      rows    yours    general    general      general\n"
        "threshold     exact    asked      asked    changed    untouched\n"
        ">    0.50   100.0 %   98.0 %      3.1 %      0.4 %       90.0 %  chosen\n"
        "     0.90    95.0 %   90.0 %          -          -            -\n");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        assert_true(strlen(line) <= 76);
    free(text);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_report_page_shows_what_was_told),
        TEST(test_report_curves_are_those_that_there_is_something_of),
        TEST(test_report_text_from_rows_is_never_markup),
        TEST(test_report_characters_a_page_may_not_hold_are_replaced),
        TEST(test_report_long_text_is_cut_between_characters),
        TEST(test_report_many_steps_thin_out_and_keep_first_and_last),
        TEST(test_report_more_numbers_than_room_are_dropped),
        TEST(test_report_more_examples_than_room_say_so),
        TEST(test_report_of_nothing_is_a_page),
        TEST(test_report_of_numbers_that_are_none_draws_none),
        TEST(test_report_that_cannot_be_written_leaves_the_old_one),
        TEST(test_report_trade_table_marks_the_chosen_row),
    };
    if (argc == 2) {
        fill_sample();
        spa_report_print_trade(stdout, trade, SPA_GATE_THRESHOLDS, report.chosen);
        return spa_report_write(&report, argv[1], why, sizeof why) == 0 ? 0 : 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
