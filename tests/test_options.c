/* test_options.c - the command line against a table: every form of an option, and what is said when it is wrong. */
#define _POSIX_C_SOURCE 200809L
#include "options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct {
    bool json;
    const char *text;
    int32_t n, choice;
    uint64_t seed;
    float temp;
    struct spa_opt_list files;
} got;

static char said[1024];   /* what the last parse wrote to stderr */
static char *positional[8];
static int n_positional;

/* Parses the words, NULL at the end. */
static int parse(const char *first, ...)
{
    const struct spa_option options[] = {
        { "json", NULL, NULL, "flag", SPA_OPT_FLAG, &got.json, 0, 0 },
        { "prompt", "p", "TEXT", "string", SPA_OPT_STRING, &got.text, 0, 0 },
        { "parallel", "np", "N", "int", SPA_OPT_INT, &got.n, 1, 64 },
        { "flash-attn", "fa", "on|off|auto", "choice", SPA_OPT_CHOICE, &got.choice, 0, 0 },
        { "seed", NULL, "N", "u64", SPA_OPT_U64, &got.seed, 0, 0 },
        { "temp", NULL, "T", "float", SPA_OPT_FLOAT, &got.temp, 0, 0 },
        { "file", "f", "FILE", "list", SPA_OPT_LIST, &got.files, 0, 0 },
    };
    const struct spa_usage usage = { "test", "FILE...", "A test.", options, sizeof options / sizeof options[0], 0, 2 };
    char *argv[24] = { (char *)(uintptr_t)"test" };
    int argc = 1;
    va_list words;
    va_start(words, first);
    for (const char *w = first; w; w = va_arg(words, const char *))
        argv[argc++] = (char *)(uintptr_t)w;
    va_end(words);

    memset(&got, 0, sizeof got);
    memset(said, 0, sizeof said);
    FILE *file = tmpfile();
    fflush(stderr);
    int kept = dup(2);
    dup2(fileno(file), 2);
    int rc = spa_options_parse(&usage, argc, argv, &n_positional);
    fflush(stderr);
    dup2(kept, 2);
    close(kept);
    rewind(file);
    if (fread(said, 1, sizeof said - 1, file) == 0)
        said[0] = 0;
    fclose(file);
    memcpy(positional, argv, sizeof positional);
    return rc;
}

#define PARSE(...) parse(__VA_ARGS__, (char *)NULL)
#define GOES(...) assert_int_equal(PARSE(__VA_ARGS__), SPA_OPTIONS_GO)
#define SAYS(what, ...) do { \
        assert_int_equal(PARSE(__VA_ARGS__), SPA_EXIT_USAGE); \
        if (!strstr(said, what)) \
            fail_msg("'%s' does not say '%s'", said, what); \
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one line */ \
    } while (0)

static void test_options_every_form_sets_its_value(void **state)
{
    (void)state;
    GOES("--json", "--prompt", "hello", "-np", "4", "--seed=18446744073709551615", "--temp", "-0.5", "-fa=auto");
    assert_true(got.json);
    assert_string_equal(got.text, "hello");
    assert_int_equal(got.n, 4);
    assert_true(got.seed == UINT64_MAX && got.temp == -0.5f);
    assert_int_equal(got.choice, 2);
    GOES("-p=--json", "--prompt=");
    assert_string_equal(got.text, "");
    GOES("-p", "--not an option of ours");
    assert_string_equal(got.text, "--not an option of ours");
}

static void test_options_positional_arguments_keep_their_order(void **state)
{
    (void)state;
    GOES("one", "--json", "two");
    assert_int_equal(n_positional, 2);
    assert_string_equal(positional[0], "one");
    assert_string_equal(positional[1], "two");
    GOES("--", "--json", "-");
    assert_false(got.json);
    assert_string_equal(positional[0], "--json");
    GOES("-", "-5");
    assert_string_equal(positional[1], "-5");
    SAYS("'three' is one argument too many", "one", "two", "three");
}

static void test_options_unknown_option_names_the_nearest(void **state)
{
    (void)state;
    SAYS("did you mean --prompt?", "--promt", "x");
    SAYS("did you mean --parallel?", "--para=3");
    SAYS("did you mean --help?", "--hlep");
    SAYS("--help' lists them", "--something-quite-different");
    SAYS("--help' lists them", "-x");
}

static void test_options_wrong_value_is_one_sentence(void **state)
{
    (void)state;
    SAYS("--parallel wants a whole number from 1 to 64, not '65'", "-np", "65");
    SAYS("--parallel wants a whole number", "-np", "4x");
    SAYS("--parallel wants a whole number", "-np", "");
    SAYS("--parallel wants a whole number", "-np", "99999999999999999999");
    SAYS("--temp wants a number", "--temp", "nan");
    SAYS("--seed wants", "--seed", "-1");
    SAYS("--seed wants", "--seed", "18446744073709551616");
    SAYS("--flash-attn wants on|off|auto, not 'of'", "-fa", "of");
    SAYS("--json takes no value", "--json=1");
}

static void test_options_missing_value_is_one_sentence(void **state)
{
    (void)state;
    SAYS("--prompt needs a value", "--prompt");
    SAYS("--prompt needs a value", "-p", "--json");
}

static void test_options_nearest_word_is_near(void **state)
{
    (void)state;
    static const char *const words[] = { "chat", "complete", "train", "eval" };
    assert_string_equal(spa_options_nearest("trian", words, 4), "train");
    assert_string_equal(spa_options_nearest("comp", words, 4), "complete");
    assert_null(spa_options_nearest("xyzzy", words, 4));
    assert_null(spa_options_nearest("", words, 4));
}

static void test_options_list_keeps_all_in_order_and_says_when_they_are_too_many(void **state)
{
    (void)state;
    GOES("--file", "a", "-f", "b", "--file=c");
    assert_int_equal(got.files.n, 3);
    assert_string_equal(got.files.at[0], "a");
    assert_string_equal(got.files.at[1], "b");
    assert_string_equal(got.files.at[2], "c");
    GOES("-f=1", "-f=2", "-f=3", "-f=4", "-f=5", "-f=6", "-f=7", "-f=8", "-f=9", "-f=10", "-f=11", "-f=12", "-f=13", "-f=14", "-f=15", "-f=16");
    assert_int_equal(got.files.n, SPA_OPT_LIST_MAX);
    SAYS("16", "-f=1", "-f=2", "-f=3", "-f=4", "-f=5", "-f=6", "-f=7", "-f=8", "-f=9", "-f=10", "-f=11", "-f=12", "-f=13", "-f=14", "-f=15", "-f=16", "-f=17");
}

static void test_options_description_is_one_line_of_fields_an_option(void **state)
{
    (void)state;
    const struct spa_option options[] = {
        { "fa", "f", "on|off", "one\ttwo\\three", SPA_OPT_CHOICE, NULL, 0, 0 },
        { "json", NULL, NULL, "flag", SPA_OPT_FLAG, NULL, 0, 0 },
    };
    const struct spa_usage usage = { "spa test", "", "First line.\nSecond.", options, 2, 0, 0 };
    char *argv[] = { (char *)(uintptr_t)"test", (char *)(uintptr_t)"--describe" }, out[512] = "";
    FILE *file = tmpfile();
    fflush(stdout);
    const int kept = dup(1);
    dup2(fileno(file), 1);
    const int rc = spa_options_parse(&usage, 2, argv, &n_positional);
    spa_options_describe_verb("a verb", "does something");
    fflush(stdout);
    dup2(kept, 1);
    close(kept);
    rewind(file);
    assert_true(fread(out, 1, sizeof out - 1, file) > 0);
    fclose(file);
    assert_int_equal(rc, 0);
    assert_string_equal(out, "command\tspa test\t\tFirst line.\\nSecond.\n"
                             "option\tfa\tf\ton|off\tchoice\tone\\ntwo\\\\three\n"
                             "option\tjson\t\t\tflag\tflag\n"
                             "verb\ta verb\tdoes something\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_every_form_sets_its_value),
        cmocka_unit_test(test_options_positional_arguments_keep_their_order),
        cmocka_unit_test(test_options_unknown_option_names_the_nearest),
        cmocka_unit_test(test_options_wrong_value_is_one_sentence),
        cmocka_unit_test(test_options_missing_value_is_one_sentence),
        cmocka_unit_test(test_options_nearest_word_is_near),
        cmocka_unit_test(test_options_description_is_one_line_of_fields_an_option),
        cmocka_unit_test(test_options_list_keeps_all_in_order_and_says_when_they_are_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
