/* Rows from files: both forms, and for each way to be wrong one sentence with file, line and field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rows.h"
#include "utf8.h"

static char path[64];
static char why[1024];

static const char *write_file(const char *text, size_t len)
{
    snprintf(path, sizeof path, "rows-%d.tmp", (int)getpid());
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return path;
}

static int read_text(const char *text, size_t len, struct spa_rows *out)
{
    const char *name = write_file(text, len);
    int rc = spa_rows_read(&name, 1, out, why, sizeof why);
    unlink(path);
    return rc;
}

static void expect_rows(const char *text, size_t n, struct spa_rows *out)
{
    if (read_text(text, strlen(text), out) != 0)
        fail_msg("refused: %s", why);
    assert_int_equal(out->n, n);
}

/* The sentence names the file and holds both pieces. */
static void expect_refusal_of(const char *text, size_t len, const char *line, const char *piece)
{
    struct spa_rows rows;
    assert_int_equal(read_text(text, len, &rows), -1);
    assert_int_equal(rows.n, 0);
    if (!strstr(why, path) || !strstr(why, line) || !strstr(why, piece))
        fail_msg("'%s' does not name %s, %s and %s", why, path, line, piece);
}

static void expect_refusal(const char *text, const char *line, const char *piece)
{
    expect_refusal_of(text, strlen(text), line, piece);
}

static void expect_part(const struct spa_part *p, int kind, int loss, const char *text)
{
    assert_int_equal(p->kind, kind);
    assert_int_equal(p->loss, loss);
    assert_int_equal(p->len, strlen(text));
    assert_memory_equal(p->bytes, text, p->len);
}

static void test_rows_messages_jsonl_gives_parts_with_loss_on_answers(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"Q\"},"
                "{\"role\":\"assistant\",\"content\":\"A\"},{\"role\":\"user\",\"content\":\"q\"},"
                "{\"role\":\"assistant\",\"content\":\"\\u00e4\"}]}\n", 1, &rows);
    const struct spa_example *e = rows.rows;
    assert_int_equal(e->n_parts, 5);
    assert_int_equal(e->line, 1);
    expect_part(&e->parts[0], SPA_PART_SYSTEM, 0, "S");
    expect_part(&e->parts[1], SPA_PART_USER, 0, "Q");
    expect_part(&e->parts[2], SPA_PART_ASSISTANT, 1, "A");
    expect_part(&e->parts[3], SPA_PART_USER, 0, "q");
    expect_part(&e->parts[4], SPA_PART_ASSISTANT, 1, "\xc3\xa4");
    spa_rows_free(&rows);
}

static void test_rows_alpaca_array_and_jsonl_give_the_same_parts(void **state)
{
    (void)state;
    static const char *const files[] = {
        "[{\"instruction\":\"I\",\"input\":\"x\",\"output\":\"O\"},\n\n {\"instruction\":\"J\",\"output\":\"P\",\"extra\":[1]}]\n",
        "{\"instruction\":\"I\",\"input\":\"x\",\"output\":\"O\"}\n\n{\"instruction\":\"J\",\"input\":\"\",\"output\":\"P\"}",
    };
    for (size_t i = 0; i < 2; i++) {
        struct spa_rows rows;
        expect_rows(files[i], 2, &rows);
        expect_part(&rows.rows[0].parts[0], SPA_PART_USER, 0, "I\n\nx");
        expect_part(&rows.rows[0].parts[1], SPA_PART_ASSISTANT, 1, "O");
        expect_part(&rows.rows[1].parts[0], SPA_PART_USER, 0, "J");
        assert_int_equal(rows.rows[1].line, 3);
        spa_rows_free(&rows);
    }
}

static void test_rows_text_is_one_part_that_carries_loss(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"text\":\"Once upon\\na time\"}\n{\"instruction\":\"I\",\"output\":\"O\"}\n", 2, &rows);
    assert_int_equal(rows.rows[0].n_parts, 1);
    expect_part(&rows.rows[0].parts[0], SPA_PART_TEXT, 1, "Once upon\na time");
    assert_int_equal(rows.rows[1].n_parts, 2);
    spa_rows_free(&rows);
    expect_refusal("{\"text\":\" \\n\"}", "line 1", "field text is empty");
    expect_refusal("{\"text\":7}", "line 1", "field text is a number");
}

static void test_rows_sharegpt_gives_the_parts_of_messages(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"conversations\":[{\"from\":\"human\",\"value\":\"Q\"},{\"from\":\"gpt\",\"value\":\"A\"}],\"system\":\"S\"}\n"
                "{\"conversations\":[{\"from\":\"system\",\"value\":\" \"},{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"}]}", 2, &rows);
    assert_int_equal(rows.rows[0].n_parts, 3);
    expect_part(&rows.rows[0].parts[0], SPA_PART_SYSTEM, 0, "S");
    expect_part(&rows.rows[0].parts[1], SPA_PART_USER, 0, "Q");
    expect_part(&rows.rows[0].parts[2], SPA_PART_ASSISTANT, 1, "A");
    assert_int_equal(rows.rows[1].n_parts, 2);
    expect_part(&rows.rows[1].parts[0], SPA_PART_USER, 0, "Q");
    spa_rows_free(&rows);
    expect_refusal("{\"conversations\":[{\"from\":\"system\",\"value\":\"s\"},{\"from\":\"gpt\",\"value\":\"A\"}],\"system\":\"S\"}", "line 1",
                   "both the field system and a system turn");
    expect_refusal("{\"conversations\":[{\"from\":\"gpt\",\"value\":\"A\"},{\"from\":\"human\",\"value\":\"Q\"}]}", "line 1", "conversations[1].from is not assistant");
}

static void test_rows_weight_and_train_say_which_answers_carry_loss(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\",\"weight\":0},"
                "{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\",\"weight\":1},"
                "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"\",\"train\":false}]}", 1, &rows);
    assert_int_equal(rows.rows[0].n_parts, 4);   /* what follows the last answer with loss changes nothing */
    expect_part(&rows.rows[0].parts[1], SPA_PART_ASSISTANT, 0, "A");
    expect_part(&rows.rows[0].parts[3], SPA_PART_ASSISTANT, 1, "a");
    spa_rows_free(&rows);
    expect_refusal("{\"messages\":[{\"role\":\"assistant\",\"content\":\"A\",\"weight\":0}]}", "line 1", "no answer of the row carries loss");
    expect_refusal("{\"prompt\":[{\"role\":\"system\",\"content\":\"\"}],\"completion\":[{\"role\":\"system\",\"content\":\"\"}]}", "line 1",
                   "completion does not end with a turn of the assistant");
}

static void test_rows_last_answer_only_leaves_loss_on_the_last(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"instruction\":\"I\",\"output\":\"O\",\"system\":\"S\",\"history\":[[\"q\",\"a\"]]}", 1, &rows);
    assert_int_equal(rows.rows[0].n_parts, 5);
    expect_part(&rows.rows[0].parts[0], SPA_PART_SYSTEM, 0, "S");
    expect_part(&rows.rows[0].parts[1], SPA_PART_USER, 0, "q");
    expect_part(&rows.rows[0].parts[2], SPA_PART_ASSISTANT, 1, "a");
    spa_rows_last_answer_only(&rows);
    expect_part(&rows.rows[0].parts[2], SPA_PART_ASSISTANT, 0, "a");
    expect_part(&rows.rows[0].parts[4], SPA_PART_ASSISTANT, 1, "O");
    spa_rows_free(&rows);
}

static void test_rows_prompt_and_completion_are_raw_text_or_turns(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"prompt\":\"The sky is\",\"completion\":\" blue.\"}\n"
                "{\"prompt\":[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"},{\"role\":\"user\",\"content\":\"q\"}],"
                "\"completion\":[{\"role\":\"assistant\",\"content\":\"a\"}]}", 2, &rows);
    expect_part(&rows.rows[0].parts[0], SPA_PART_TEXT, 0, "The sky is");
    expect_part(&rows.rows[0].parts[1], SPA_PART_TEXT, 1, " blue.");
    assert_int_equal(rows.rows[1].n_parts, 4);
    expect_part(&rows.rows[1].parts[1], SPA_PART_ASSISTANT, 0, "A");
    expect_part(&rows.rows[1].parts[3], SPA_PART_ASSISTANT, 1, "a");
    spa_rows_free(&rows);
    expect_refusal("{\"prompt\":\"p\",\"completion\":\" \"}", "line 1", "field completion is an empty answer");
    expect_refusal("{\"prompt\":[],\"completion\":[]}", "line 1", "field prompt has 0 entries");
}

static void test_rows_content_may_be_a_list_of_one_text(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Q\"}]},{\"role\":\"assistant\",\"content\":\"A\"}]}", 1, &rows);
    expect_part(&rows.rows[0].parts[0], SPA_PART_USER, 0, "Q");
    spa_rows_free(&rows);
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}", "line 1",
                   "messages[0].content is a list of something else");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "line 1", "messages[0].content is a list");
}

static void test_rows_utf16_is_refused_with_a_remedy(void **state)
{
    (void)state;
    expect_refusal_of("\xff\xfe{\0\"\0", 6, "line 1", "UTF-16; save it as UTF-8");
}

static void test_rows_byte_order_mark_and_crlf_are_accepted(void **state)
{
    (void)state;
    struct spa_rows rows;
    expect_rows("\xef\xbb\xbf{\"instruction\":\"I\",\"output\":\"O\"}\r\n\r\n{\"instruction\":\"J\",\"output\":\"P\"}\r\n", 2, &rows);
    expect_part(&rows.rows[1].parts[1], SPA_PART_ASSISTANT, 1, "P");
    assert_int_equal(rows.rows[1].line, 3);
    spa_rows_free(&rows);
    expect_rows("\xef\xbb\xbf \r\n[{\"instruction\":\"I\",\"output\":\"O\"}]", 1, &rows);
    assert_int_equal(rows.rows[0].line, 2);
    spa_rows_free(&rows);
}

static void test_rows_wrong_type_is_named_by_line_and_field(void **state)
{
    (void)state;
    expect_refusal("{\"messages\":{}}", "line 1", "field messages is an object");
    expect_refusal("\n{\"messages\":[7]}", "line 2", "field messages[0] is a number");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "line 1", "field messages[0].content is null");
    expect_refusal("{\"instruction\":\"I\",\"output\":[]}", "line 1", "field output is an array");
    expect_refusal("{\"instruction\":\"I\",\"input\":true,\"output\":\"O\"}", "line 1", "field input is a boolean");
    expect_refusal("[\n{\"instruction\":\"I\",\"output\":\"O\"},\n{\"instruction\":1,\"output\":\"O\"}]", "line 3", "field instruction");
    expect_refusal("[[]]", "line 1", "the row is an array");
    expect_refusal("{\"conversations\":[{\"from\":\"human\",\"value\":7}]}", "line 1", "field conversations[0].value is a number");
    expect_refusal("{\"conversations\":\"x\"}", "line 1", "field conversations is a string");
    expect_refusal("{\"messages\":[{\"role\":\"assistant\",\"content\":\"A\",\"weight\":0.5}]}", "line 1", "messages[0].weight is neither 0 nor 1");
    expect_refusal("{\"messages\":[{\"role\":\"assistant\",\"content\":\"A\",\"train\":1}]}", "line 1", "messages[0].train is a number");
    expect_refusal("{\"instruction\":\"I\",\"output\":\"O\",\"history\":[[\"q\"]]}", "line 1", "history[0] is not a pair");
    expect_refusal("{\"instruction\":\"I\",\"output\":\"O\",\"system\":1}", "line 1", "field system is a number");
    expect_refusal("{\"prompt\":1,\"completion\":\"c\"}", "line 1", "field prompt is a number");
}

static void test_rows_missing_field_is_named_by_line_and_field(void **state)
{
    (void)state;
    expect_refusal("{\"messages\":[{\"content\":\"x\"}]}", "line 1", "messages[0].role is missing");
    expect_refusal("{\"messages\":[{\"role\":\"user\"}]}", "line 1", "messages[0].content is missing");
    expect_refusal("{\"instruction\":\"I\"}", "line 1", "field output is missing");
    expect_refusal("{\"output\":\"O\"}", "line 1", "field instruction is missing");
    expect_refusal("{\"prompt\":\"O\"}", "line 1", "none of the fields messages");
    expect_refusal("{\"messages\":[]}", "line 1", "field messages has 0 entries");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"}]}", "line 1", "without an answer");
}

static void test_rows_empty_answer_is_refused(void **state)
{
    (void)state;
    expect_refusal("{\"instruction\":\"I\",\"output\":\" \\n\"}", "line 1", "field output is an empty answer");
    expect_refusal("{\"messages\":[{\"role\":\"assistant\",\"content\":\"\"}]}", "line 1", "messages[0].content is an empty answer");
    expect_refusal("{\"instruction\":\"\",\"output\":\"O\"}", "line 1", "field instruction is empty");
}

static void test_rows_unknown_role_is_refused(void **state)
{
    (void)state;
    expect_refusal("{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "line 1", "messages[0].role is 'tool'");
}

static void test_rows_bad_utf8_is_named_by_line_and_field(void **state)
{
    (void)state;
    expect_refusal("{\"instruction\":\"I\",\"output\":\"O\"}\n{\"instruction\":\"caf\xe9\",\"output\":\"O\"}", "line 2",
                   "field instruction holds bytes that are no UTF-8");
    expect_refusal("[{\"instruction\":\"I\",\"output\":\"\xed\xa0\x80\"}]", "line 1", "field output holds bytes that are no UTF-8");
    expect_refusal("{\"instruction\":\"I\",\"output\":\"a\\u0000b\"}", "line 1", "no JSON");
}

static void test_rows_broken_json_is_named_by_line(void **state)
{
    (void)state;
    expect_refusal("{\"instruction\":\"I\",\"output\":\"O\"}\n{\"instruction\"", "line 2", "no JSON");
    expect_refusal("{\"output\":\"O\",\"output\":\"P\"}", "line 1", "duplicate");
    expect_refusal("[{\"instruction\":\"I\",\"output\":\"O\"}", "line 1", "does not end");
    expect_refusal("[{\"instruction\":\"I\",\"output\":\"O\"},\n]", "line 2", "no JSON");
    expect_refusal("[{\"instruction\":\"I\",\"output\":\"O\"}\n{}]", "line 2", "comma");
    expect_refusal("[{\"instruction\":\"I\",\"output\":\"O\"}]\n{}", "line 2", "follows");
    expect_refusal("\n \n", "", "holds no rows");
    expect_refusal("[]", "", "holds no rows");
}

/* No cut of a good array is taken for a whole one, and none reads beyond its end (that is the sanitizer's to see). */
static void test_rows_array_cut_at_any_byte_is_refused(void **state)
{
    (void)state;
    const char text[] = "[{\"messages\":[{\"role\":\"assistant\",\"content\":\"\xc3\xa4\"}]}, {\"instruction\":\"I\",\"output\":\"O\"}]";
    for (size_t cut = 1; cut < sizeof text - 1; cut++)
        expect_refusal_of(text, cut, "line 1", "");
}

static void test_rows_absent_file_is_named(void **state)
{
    (void)state;
    struct spa_rows rows;
    const char *paths[] = { "no-such-rows.jsonl" };
    assert_int_equal(spa_rows_read(paths, 1, &rows, why, sizeof why), -1);
    assert_non_null(strstr(why, "no-such-rows.jsonl"));
}

static void test_rows_hold_back_is_seeded_keeps_order_and_loses_nothing(void **state)
{
    (void)state;
    char text[4096];
    size_t at = 0;
    for (int i = 0; i < 50; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "{\"instruction\":\"%d\",\"output\":\"O\"}\n", i);
    uint32_t first[10], moved = 0;
    for (int round = 0; round < 3; round++) {
        struct spa_rows rows, held;
        expect_rows(text, 50, &rows);
        assert_int_equal(spa_rows_hold_back(&rows, 0.2f, round == 2 ? 8 : 7, &held, why, sizeof why), 0);
        assert_int_equal(held.n, 10);
        assert_int_equal(rows.n, 40);
        uint64_t seen = 0;
        for (size_t i = 0; i < rows.n; i++) {
            assert_true(i == 0 || rows.rows[i].line > rows.rows[i - 1].line);
            seen |= 1ull << rows.rows[i].line;
        }
        spa_rows_free(&rows);   /* what was held back lives on */
        for (size_t i = 0; i < held.n; i++) {
            assert_true(i == 0 || held.rows[i].line > held.rows[i - 1].line);
            assert_int_equal(held.rows[i].parts[1].bytes[0], 'O');
            seen |= 1ull << held.rows[i].line;
            if (round == 0)
                first[i] = held.rows[i].line;
            else if (round == 1)
                assert_int_equal(held.rows[i].line, first[i]);
            else
                moved += held.rows[i].line != first[i];
        }
        assert_true(seen == ((1ull << 51) - 2));
        spa_rows_free(&held);
    }
    assert_true(moved > 0);
}

static void test_rows_hold_back_takes_one_at_least_and_never_all(void **state)
{
    (void)state;
    struct spa_rows rows, held;
    expect_rows("{\"instruction\":\"I\",\"output\":\"O\"}\n{\"instruction\":\"J\",\"output\":\"O\"}", 2, &rows);
    assert_int_equal(spa_rows_hold_back(&rows, 1, 1, &held, why, sizeof why), -1);
    assert_int_equal(spa_rows_hold_back(&rows, 0, 1, &held, why, sizeof why), 0);
    assert_int_equal(held.n, 0);
    assert_int_equal(spa_rows_hold_back(&rows, 0.01f, 1, &held, why, sizeof why), 0);
    assert_int_equal(held.n, 1);
    assert_int_equal(rows.n, 1);
    spa_rows_free(&held);
    spa_rows_free(&rows);
}

static void test_utf8_takes_what_rfc_3629_takes(void **state)
{
    (void)state;
    static const struct { const char *text; size_t good; } cases[] = {
        { "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 10 }, { "\xc0\x80", 0 }, { "a\xe0\x9f\xbf", 1 }, { "\xed\x9f\xbf", 3 },
        { "\xed\xa0\x80", 0 }, { "\xf4\x8f\xbf\xbf", 4 }, { "\xf4\x90\x80\x80", 0 }, { "\xf0\x8f\xbf\xbf", 0 }, { "a\x80", 1 },
        { "\xe2\x82", 0 }, { "\xff", 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(spa_utf8_good_len(cases[i].text, strlen(cases[i].text)), cases[i].good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_messages_jsonl_gives_parts_with_loss_on_answers),
        cmocka_unit_test(test_rows_alpaca_array_and_jsonl_give_the_same_parts),
        cmocka_unit_test(test_rows_text_is_one_part_that_carries_loss),
        cmocka_unit_test(test_rows_sharegpt_gives_the_parts_of_messages),
        cmocka_unit_test(test_rows_weight_and_train_say_which_answers_carry_loss),
        cmocka_unit_test(test_rows_last_answer_only_leaves_loss_on_the_last),
        cmocka_unit_test(test_rows_prompt_and_completion_are_raw_text_or_turns),
        cmocka_unit_test(test_rows_content_may_be_a_list_of_one_text),
        cmocka_unit_test(test_rows_utf16_is_refused_with_a_remedy),
        cmocka_unit_test(test_rows_byte_order_mark_and_crlf_are_accepted),
        cmocka_unit_test(test_rows_wrong_type_is_named_by_line_and_field),
        cmocka_unit_test(test_rows_missing_field_is_named_by_line_and_field),
        cmocka_unit_test(test_rows_empty_answer_is_refused),
        cmocka_unit_test(test_rows_unknown_role_is_refused),
        cmocka_unit_test(test_rows_bad_utf8_is_named_by_line_and_field),
        cmocka_unit_test(test_rows_broken_json_is_named_by_line),
        cmocka_unit_test(test_rows_array_cut_at_any_byte_is_refused),
        cmocka_unit_test(test_rows_absent_file_is_named),
        cmocka_unit_test(test_rows_hold_back_is_seeded_keeps_order_and_loses_nothing),
        cmocka_unit_test(test_rows_hold_back_takes_one_at_least_and_never_all),
        cmocka_unit_test(test_utf8_takes_what_rfc_3629_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
