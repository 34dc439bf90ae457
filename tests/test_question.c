/* test_question.c - bodies of local clients: what is taken, what is refused and which field is named. */
#include "question.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int parse(const char *body, bool chat, struct spa_question *q, struct spa_api_error *e)
{
    const size_t len = strlen(body);
    char *exact = malloc(len + 1);   /* a sanitizer sees a read beyond */
    memcpy(exact, body, len);
    memset(e, 0, sizeof *e);
    const int rc = spa_question_parse(q, chat, exact, len, e);
    free(exact);
    return rc;
}

static void test_question_chat_is_taken_whole(void **state)
{
    (void)state;
    struct spa_question q;
    struct spa_api_error e;
    assert_int_equal(parse("{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"a\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"b\"},"
                           "{\"type\":\"text\",\"text\":\"c\"}]},{\"role\":\"assistant\",\"content\":null}],\"temperature\":0.5,\"top_p\":0.25,\"top_k\":7,\"min_p\":0,"
                           "\"repeat_penalty\":2,\"seed\":9,\"max_tokens\":5,\"max_completion_tokens\":6,\"stop\":[\"x\",\"yz\"],\"stream\":true,"
                           "\"stream_options\":{\"include_usage\":true},\"logprobs\":true,\"top_logprobs\":4,\"unknown\":[1]}", true, &q, &e), 0);
    assert_string_equal(q.model, "m");
    assert_int_equal(q.n_said, 3);
    assert_int_equal(q.n_parts, 5);
    assert_int_equal(q.parts[0].kind, SPA_PART_SYSTEM);
    assert_int_equal(q.parts[1].len, 2);
    assert_memory_equal(q.parts[1].bytes, "bc", 2);
    assert_int_equal(q.parts[2].kind, SPA_PART_ASSISTANT);
    assert_int_equal(q.parts[2].len, 0);
    assert_int_equal(q.parts[4].kind, SPA_PART_STOP);
    assert_true(q.settings.temp == 0.5f && q.settings.top_p == 0.25f && q.settings.min_p == 0 && q.settings.repeat_penalty == 2);
    assert_int_equal(q.settings.top_k, 7);
    assert_int_equal(q.settings.seed, 9);
    assert_int_equal(q.settings.n_predict, 6);
    assert_true(q.stream && q.include_usage && q.logprobs && q.n_top == 4 && !q.settings.raw);
    spa_question_free(&q);
}

static void test_question_completion_is_raw_text_with_the_usual_settings(void **state)
{
    (void)state;
    struct spa_question q;
    struct spa_api_error e;
    assert_int_equal(parse("{\"prompt\":[\"a\"],\"logprobs\":0,\"max_tokens\":3.0}", false, &q, &e), 0);
    assert_true(q.settings.raw && q.parts[0].kind == SPA_PART_TEXT && q.logprobs && q.n_top == 0 && !q.model);
    assert_int_equal(q.settings.n_predict, 3);
    assert_true(q.settings.temp == 0.8f && q.settings.seed < (uint64_t)1 << 53);
    const uint64_t drawn = q.settings.seed;
    spa_question_free(&q);
    assert_int_equal(parse("{\"prompt\":\"a\",\"seed\":-1}", false, &q, &e), 0);
    assert_true(q.settings.seed != drawn);
    spa_question_free(&q);
}

static void test_question_that_is_wrong_names_the_field(void **state)
{
    (void)state;
#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
    static const struct { const char *body, *param; } wrong[] = {
        { "", NULL }, { "{", NULL }, { "[]", NULL }, { "1", NULL }, { "{}", "messages" }, { "{\"messages\":{}}", "messages" },
        { "{\"messages\":[1]}", "messages" }, { "{\"messages\":[{\"role\":\"user\",\"content\":1}]}", "messages" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "messages" }, { "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "messages" },
        { "{" MESSAGES ",\"model\":[]}", "model" }, { "{" MESSAGES ",\"temperature\":2.1}", "temperature" }, { "{" MESSAGES ",\"top_p\":-0.1}", "top_p" },
        { "{" MESSAGES ",\"min_p\":true}", "min_p" }, { "{" MESSAGES ",\"repeat_penalty\":0}", "repeat_penalty" }, { "{" MESSAGES ",\"top_k\":-2}", "top_k" },
        { "{" MESSAGES ",\"seed\":0.5}", "seed" }, { "{" MESSAGES ",\"max_tokens\":0}", "max_tokens" }, { "{" MESSAGES ",\"max_tokens\":-2}", "max_tokens" },
        { "{" MESSAGES ",\"stop\":[\"\"]}", "stop" }, { "{" MESSAGES ",\"stream\":1}", "stream" }, { "{" MESSAGES ",\"stream_options\":[]}", "stream_options" },
        { "{" MESSAGES ",\"logprobs\":3}", "logprobs" }, { "{" MESSAGES ",\"top_logprobs\":1}", "top_logprobs" }, { "{" MESSAGES ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs" },
        { "{" MESSAGES ",\"n\":2}", "n" }, { "{" MESSAGES ",\"tools\":{}}", "tools" }, { "{" MESSAGES ",\"tools\":[{}]}", "tools" }, { "{" MESSAGES ",\"logit_bias\":[]}", "logit_bias" },
        { "{" MESSAGES ",\"presence_penalty\":0.5}", "presence_penalty" }, { "{" MESSAGES ",\"response_format\":{}}", "response_format" },
        { "{" MESSAGES ",\"ignore_eos\":\"no\"}", "ignore_eos" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct spa_question q;
        struct spa_api_error e;
        assert_int_equal(parse(wrong[i].body, true, &q, &e), -1);
        assert_int_equal(e.status, 400);
        if (wrong[i].param)
            assert_string_equal(e.param, wrong[i].param);
        else
            assert_null(e.param);
        spa_question_free(&q);
    }
}

/* Every beginning of a good body is a bad one, and leaves nothing behind. */
static void test_question_cut_anywhere_is_refused(void **state)
{
    (void)state;
    char body[] = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}],\"stop\":[\"a\"],\"seed\":1}";
    for (size_t len = sizeof body - 2; len > 0; len--) {
        struct spa_question q;
        struct spa_api_error e;
        body[len] = 0;
        assert_int_equal(parse(body, true, &q, &e), -1);
        spa_question_free(&q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_question_chat_is_taken_whole),
        cmocka_unit_test(test_question_completion_is_raw_text_with_the_usual_settings),
        cmocka_unit_test(test_question_that_is_wrong_names_the_field),
        cmocka_unit_test(test_question_cut_anywhere_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
