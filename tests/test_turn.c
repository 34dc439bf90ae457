/* test_turn.c - one answer: stop strings, limits, resumed tokens; the mail; training rows; the basis fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_model.h"
#include "fit.h"
#include "learn.h"
#include "mail.h"
#include "turn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct spa_model model;
static char why[256];
static spa_Code code;

/* ---- answers ---- */

static struct spa_turn *turn_of(const char *prompt, const char *stop, int32_t n_predict)
{
    struct spa_part parts[2] = { { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)prompt, .len = (uint32_t)strlen(prompt) },
                                 { .kind = SPA_PART_STOP, .bytes = (const uint8_t *)stop, .len = stop ? (uint32_t)strlen(stop) : 0 } };
    uint8_t bulk[1024];
    const size_t n = stop ? 2 : 1;
    spa_parts_write(parts, n, bulk);
    const spa_Generate g = { .request = 1, .raw = true, .n_predict = n_predict };
    return spa_turn_new(&model, &g, bulk, spa_parts_len(parts, n), &code, why, sizeof why);
}

/* Feeds text byte by byte as tokens; out gets what is shown, pieces parted by '|'. Returns the bytes taken before the end. */
static size_t speak(struct spa_turn *t, const char *text, char *out, spa_Finish *finish)
{
    size_t i = 0;
    bool done = false, shown;
    out[0] = '\0';
    for (; text[i] && !done; i++) {
        const char *piece;
        size_t len;
        done = spa_turn_token(t, &model, text[i] == '$' ? FAKE_END : text[i] - 32, &piece, &len, &shown, finish);
        strncat(out, piece, len);
        strcat(out, "|");
    }
    return done ? i : SIZE_MAX;
}

static void test_turn_stop_string_is_cut_and_what_looks_like_one_is_held_back(void **state)
{
    (void)state;
    char out[128];
    spa_Finish finish;
    struct spa_turn *t = turn_of("p", "abX", 50);
    assert_int_equal(speak(t, "zabYabX more", out, &finish), 7);
    assert_string_equal(out, "z|||abY||||");
    assert_int_equal(finish, spa_Finish_FINISH_STOP);
    spa_turn_free(t);
}

static void test_turn_end_token_releases_what_was_held(void **state)
{
    (void)state;
    char out[128];
    spa_Finish finish;
    struct spa_turn *t = turn_of("p", "abX", 50);
    assert_int_equal(speak(t, "zab$", out, &finish), 4);
    assert_string_equal(out, "z|||ab|");
    assert_int_equal(t->n_answer, 3);
    spa_turn_free(t);
}

static void test_turn_limits_are_length_and_context(void **state)
{
    (void)state;
    char out[512];
    spa_Finish finish;
    struct spa_turn *t = turn_of("p", NULL, 3);
    assert_int_equal(speak(t, "abcdef", out, &finish), 3);
    assert_int_equal(finish, spa_Finish_FINISH_LENGTH);
    spa_turn_free(t);
    char prompt[FAKE_CTX + 1];
    memset(prompt, 'p', sizeof prompt);
    prompt[FAKE_CTX - 2] = '\0';
    t = turn_of(prompt, NULL, -1);
    assert_int_equal(speak(t, "abcdef", out, &finish), 2);
    assert_int_equal(finish, spa_Finish_FINISH_CONTEXT);
    spa_turn_free(t);
    prompt[FAKE_CTX - 2] = 'p';
    prompt[FAKE_CTX] = '\0';
    assert_null(turn_of(prompt, NULL, -1));
    assert_int_equal(code, spa_Code_CONTEXT_FULL);
    char room[16];
    snprintf(room, sizeof room, "%d", FAKE_CTX);
    assert_non_null(strstr(why, room));
}

/* Tokens confirmed by a device that resumes are bounded by what it asks for. */
static void test_turn_more_confirmed_than_asked_is_BAD_REQUEST(void **state)
{
    (void)state;
    const int32_t ids[4] = { 1, 2, 3, 4 };
    const struct spa_part parts[2] = { { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"hello", .len = 5 },
                                       { .kind = SPA_PART_CONFIRMED, .bytes = (const uint8_t *)ids, .len = sizeof ids } };
    uint8_t bulk[128];
    spa_parts_write(parts, 2, bulk);
    spa_Generate g = { .request = 1, .raw = true, .n_predict = 3 };
    assert_null(spa_turn_new(&model, &g, bulk, spa_parts_len(parts, 2), &code, why, sizeof why));
    assert_int_equal(code, spa_Code_BAD_REQUEST);
    g.n_predict = 5;
    struct spa_turn *t = spa_turn_new(&model, &g, bulk, spa_parts_len(parts, 2), &code, why, sizeof why);
    assert_non_null(t);
    assert_int_equal(t->n_tokens, 9);
    char out[64];
    spa_Finish finish;
    assert_int_equal(speak(t, "xyz", out, &finish), 1);
    assert_int_equal(finish, spa_Finish_FINISH_LENGTH);
    spa_turn_free(t);
}

/* Cut behind every token: what was said before and what is said after the cut are the whole, wherever something was held back, and with as
 * many tokens in it. pad: at most 96 bytes leave with a token. */
static void resume_everywhere(const char *said, const char *stop, int32_t n_predict, bool pad)
{
    for (size_t cut = 1; cut <= strlen(said); cut++) {
        char before[512] = "", after[512] = "", whole[512] = "";
        int32_t ids[64];
        struct spa_turn *t = turn_of("p", stop, n_predict), *again = NULL;
        bool done = false, shown = true;
        spa_Finish finish = spa_Finish_FINISH_STOP, last = finish;
        for (size_t i = 0; said[i] && !done; i++) {
            const char *piece;
            size_t len;
            ids[i] = said[i] == '$' ? FAKE_END : said[i] - 32;
            done = spa_turn_token(again ? again : t, &model, ids[i], &piece, &len, &shown, &finish);
            strncat(again ? after : before, piece, len);
            if (i + 1 != cut || !shown)
                continue;
            const struct spa_part parts[3] = { { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"p", .len = 1 },
                                               { .kind = SPA_PART_CONFIRMED, .bytes = (const uint8_t *)ids, .len = (uint32_t)(4 * cut) },
                                               { .kind = SPA_PART_STOP, .bytes = (const uint8_t *)stop, .len = (uint32_t)strlen(stop) } };
            uint8_t bulk[1024];
            spa_parts_write(parts, 3, bulk);
            const spa_Generate g = { .request = 1, .raw = true, .n_predict = n_predict, .pad = pad };
            again = spa_turn_new(&model, &g, bulk, spa_parts_len(parts, 3), &code, why, sizeof why);
            assert_non_null(again);
            assert_int_equal(again->over, done);
            assert_int_equal(again->n_answer, cut);
            assert_int_equal(again->n_said, 0);
            assert_int_equal(again->said_len, 0);
            last = again->over_by;
        }
        assert_true(done);
        if (again && again->over)
            assert_int_equal(last, finish);
        spa_turn_free(t);
        spa_turn_free(again);
        t = turn_of("p", stop, n_predict);
        for (size_t i = 0, end = 0; said[i] && !end; i++) {
            const char *piece;
            size_t len;
            end = spa_turn_token(t, &model, said[i] == '$' ? FAKE_END : said[i] - 32, &piece, &len, &shown, &finish);
            strncat(whole, piece, len);
        }
        spa_turn_free(t);
        strcat(before, after);
        assert_string_equal(before, whole);
    }
}

static void test_turn_resumed_says_what_was_held_back(void **state)
{
    (void)state;
    for (int pad = 0; pad < 2; pad++) {
        resume_everywhere("zabYabX", "abX", 50, pad);
        resume_everywhere("zabYab$", "abX", 50, pad);
        resume_everywhere("zabYab", "abX", 6, pad);
        resume_everywhere("aaaaaaab", "aab", 50, pad);
    }
}

static void test_turn_confirmed_tokens_do_not_go_on_behind_the_end(void **state)
{
    (void)state;
    const int32_t ids[4] = { 'a' - 32, 'X' - 32, 'b' - 32, FAKE_END };
    for (uint32_t first = 0; first < 2; first++) {   /* behind a stop string; an end token itself */
        const struct spa_part parts[3] = { { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"p", .len = 1 },
                                           { .kind = SPA_PART_CONFIRMED, .bytes = (const uint8_t *)(ids + 2 * first), .len = first ? 8 : 12 },
                                           { .kind = SPA_PART_STOP, .bytes = (const uint8_t *)"X", .len = 1 } };
        uint8_t bulk[128];
        spa_parts_write(parts, 3, bulk);
        const spa_Generate g = { .request = 1, .raw = true, .n_predict = 50 };
        assert_null(spa_turn_new(&model, &g, bulk, spa_parts_len(parts, 3), &code, why, sizeof why));
        assert_int_equal(code, spa_Code_BAD_REQUEST);
        assert_non_null(strstr(why, "behind the end"));
    }
}

/* What is said between two looks leaves together; of a padded turn, whole characters as far as there is room. */
static void test_turn_what_was_said_leaves_together(void **state)
{
    (void)state;
    struct spa_turn *t = turn_of("p", NULL, 50);
    const char *piece;
    size_t len;
    bool shown;
    spa_Finish finish;
    for (uint32_t i = 0; i < 3; i++) {
        spa_turn_token(t, &model, 'a' - 32 + (int32_t)i, &piece, &len, &shown, &finish);
        t->by = i == 1 ? spa_Speaker_PLUGIN : spa_Speaker_BASE;
        assert_true(spa_turn_say(t, 'a' - 32 + (int32_t)i, shown, piece, len));
    }
    assert_int_equal(t->n_said, 3);
    assert_int_equal(t->said_index, 0);
    assert_int_equal(t->said_by[1], spa_Speaker_PLUGIN);
    assert_int_equal(spa_turn_said_text(t), 3);
    assert_memory_equal(t->said_text, "abc", 3);
    spa_turn_said(t, 3);
    assert_int_equal(t->n_said, 0);
    spa_turn_token(t, &model, FAKE_END, &piece, &len, &shown, &finish);
    assert_true(spa_turn_say(t, FAKE_END, shown, "rest", 4));
    assert_int_equal(t->n_said, 0);
    assert_int_equal(t->said_index, 3);
    spa_turn_free(t);

    char many[SPA_PAD_TEXT_MAX + 4];
    memset(many, 'x', sizeof many);
    memcpy(many + SPA_PAD_TEXT_MAX - 2, "\xe2\x82\xac", 3);   /* a character across the end of the room */
    t = turn_of("p", NULL, 50);
    t->pad = true;
    assert_true(spa_turn_say(t, 1, true, many, sizeof many));
    assert_int_equal(spa_turn_said_text(t), SPA_PAD_TEXT_MAX - 2);
    spa_turn_said(t, SPA_PAD_TEXT_MAX - 2);
    assert_int_equal(spa_turn_said_text(t), 6);
    assert_memory_equal(t->said_text, "\xe2\x82\xacxxx", 6);
    for (uint32_t i = 0; i < SPA_ASKED_MAX; i++)
        assert_true(spa_turn_say(t, 1, true, "", 0));
    assert_false(spa_turn_say(t, 1, true, "", 0));
    spa_turn_free(t);
}

/* ---- mail ---- */

static void no_wake(void *user)
{
    (void)user;
}

/* The decode thread lets go at the first bad letter while more letters of the connection wait: they stay readable, and the last
 * one frees it. AddressSanitizer is the judge. */
static void test_mail_connection_outlives_its_letters(void **state)
{
    (void)state;
    struct spa_mail *m = spa_mail_new(16, 100, no_wake, NULL);
    struct spa_conn *c = spa_mail_open(m, 1);
    struct spa_letter l;
    spa_mail_bytes(m, c, "bad", 3);
    spa_mail_bytes(m, c, "more", 4);
    spa_mail_gone(m, c);
    assert_true(spa_mail_take(m, 0, &l) && l.kind == SPA_LETTER_OPEN);
    assert_true(spa_mail_take(m, 0, &l) && l.kind == SPA_LETTER_BYTES);
    free(l.bytes);
    spa_mail_hang_up(m, c, SPA_CLOSE_DONE);
    spa_mail_release(m, c);
    assert_true(spa_mail_take(m, 0, &l) && l.kind == SPA_LETTER_BYTES && *spa_conn_note(l.conn) == NULL);
    free(l.bytes);
    assert_false(spa_mail_take(m, 0, &l));
    spa_mail_free(m);
}

static void test_mail_packs_what_waits_unless_each_is_to_go_alone(void **state)
{
    (void)state;
    struct spa_mail *m = spa_mail_new(16, 100000, no_wake, NULL);
    struct spa_conn *c = spa_mail_open(m, 1);
    static char large[20000];
    bool hang_up;
    for (int alone = 0; alone < 2; alone++) {
        if (alone)
            spa_mail_alone(m, c);
        assert_int_equal(spa_mail_send(m, c, "one ", 4, "two ", 4), SPA_OK);
        assert_int_equal(spa_mail_send(m, c, "three", 5, NULL, 0), SPA_OK);
        assert_int_equal(spa_mail_send(m, c, large, sizeof large, NULL, 0), SPA_OK);
        struct spa_outgoing *o = spa_mail_next_out(m, c, &hang_up);
        assert_int_equal(o->len, alone ? 8 : 13);
        assert_memory_equal(o->data, "one two three", o->len);
        free(o);
        if (alone)
            free(spa_mail_next_out(m, c, &hang_up));
        assert_int_equal(spa_mail_out_bytes(m, c), sizeof large);
        o = spa_mail_next_out(m, c, &hang_up);
        assert_int_equal(o->len, sizeof large);
        free(o);
        assert_null(spa_mail_next_out(m, c, &hang_up));
    }
    spa_mail_gone(m, c);
    spa_mail_release(m, c);
    spa_mail_free(m);
}

static void test_mail_takes_no_more_than_its_limit(void **state)
{
    (void)state;
    struct spa_mail *m = spa_mail_new(16, 100, no_wake, NULL);
    struct spa_conn *c = spa_mail_open(m, 1);
    char bytes[60] = "";
    bool hang_up;
    assert_int_equal(spa_mail_send(m, c, bytes, 60, NULL, 0), SPA_OK);
    assert_int_equal(spa_mail_send(m, c, bytes, 20, bytes, 21), SPA_ERR_CLOSED);
    assert_int_equal(spa_mail_out_bytes(m, c), 60);
    free(spa_mail_next_out(m, c, &hang_up));
    assert_int_equal(spa_mail_send(m, c, bytes, 20, bytes, 21), SPA_OK);
    spa_mail_gone(m, c);
    assert_int_equal(spa_mail_send(m, c, bytes, 1, NULL, 0), SPA_ERR_CLOSED);
    spa_mail_release(m, c);
    spa_mail_free(m);
}

/* ---- training rows ---- */

static void test_learn_loss_is_on_the_answer_and_its_end_alone(void **state)
{
    (void)state;
    struct spa_shape shape = { .d = FAKE_D, .n_layers = FAKE_LAYERS, .r = 1, .m = 1, .n_taps = 1, .k = FAKE_D };
    struct spa_part parts[2] = { { .kind = SPA_PART_USER, .bytes = (const uint8_t *)"hi", .len = 2 },
                                 { .kind = SPA_PART_ASSISTANT, .loss = true, .bytes = (const uint8_t *)"YES", .len = 3 } };
    uint8_t bulk[128];
    spa_parts_write(parts, 2, bulk);
    const spa_Learn l = { .row = 4 };
    struct spa_learn_row *r = spa_learn_row_new(&model, &l, bulk, spa_parts_len(parts, 2), &shape, SPA_F32, 1 << 20, &code, why, sizeof why);
    assert_non_null(r);
    /* "user:hi\nassistant:" is 18 tokens, then Y E S and the end: four targets, the first predicted from token 17. */
    assert_int_equal(r->n_loss, 4);
    const char *want = "YES";
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(r->pos[i], 17 + i);
        assert_int_equal(r->tokens[r->pos[i] + 1], i < 3 ? ((want[i] - 32) & 0x5f) : FAKE_END);
    }
    assert_int_equal(r->n_feed, 21);
    assert_int_equal(r->n_ctx, 0);
    spa_learn_row_free(r);
}

static void test_learn_row_too_long_is_CONTEXT_FULL_and_too_large_is_TOO_LARGE(void **state)
{
    (void)state;
    struct spa_shape shape = { .d = FAKE_D, .n_layers = FAKE_LAYERS, .r = 1, .m = 1, .n_taps = 1, .k = FAKE_D };
    uint8_t text[FAKE_CTX + 100], bulk[FAKE_CTX + 200];
    memset(text, 'a', sizeof text);
    struct spa_part part = { .kind = SPA_PART_TEXT, .loss = true, .bytes = text, .len = sizeof text };
    const spa_Learn l = { .row = 4 };
    spa_parts_write(&part, 1, bulk);
    assert_null(spa_learn_row_new(&model, &l, bulk, spa_parts_len(&part, 1), &shape, SPA_F32, 1 << 20, &code, why, sizeof why));
    assert_int_equal(code, spa_Code_CONTEXT_FULL);
    part.len = 100;
    spa_parts_write(&part, 1, bulk);
    assert_null(spa_learn_row_new(&model, &l, bulk, spa_parts_len(&part, 1), &shape, SPA_F32, 8000, &code, why, sizeof why));
    assert_int_equal(code, spa_Code_TOO_LARGE);
}

/* ---- basis ---- */

/* States that vary along two known directions only: the fit finds that plane, and projected values have root mean square 1. */
static void test_fit_finds_the_directions_and_the_scale(void **state)
{
    (void)state;
    struct spa_shape shape = { .d = 8, .n_layers = 3, .r = 1, .m = 1, .n_taps = 2, .taps = { 0, 2 }, .k = 2, .basis = true, .normalise = SPA_NORM_RMS };
    struct spa_fit *f = spa_fit_new(&shape);
    float y[2][400][8];
    for (uint32_t j = 0; j < 400; j++) {
        const float a = sinf(0.7f * (float)j), b = 0.3f * cosf(1.9f * (float)j + 1);
        for (uint32_t t = 0; t < 2; t++) {
            const float base[8] = { 10, 10, 10, 10, 10, 10, 10, 10 };
            memcpy(y[t][j], base, sizeof base);
            y[t][j][t] += a;
            y[t][j][t + 1] -= a;
            y[t][j][5] += b;
            y[t][j][6] -= b;
        }
        const float *rows[2] = { y[0][j], y[1][j] };
        assert_true(spa_fit_add(f, rows));
    }
    float *basis = NULL;
    assert_int_equal(spa_fit_step(f, &basis), SPA_NONE);
    assert_int_equal(spa_fit_step(f, &basis), SPA_OK);
    assert_int_equal(spa_basis_check(&shape, basis), SPA_OK);
    for (uint32_t t = 0; t < 2; t++) {
        const float *p = basis + t * (1 + 8 + 16) + 9;
        assert_true(fabsf(fabsf(p[t]) - sqrtf(0.5f)) < 2e-2f && fabsf(p[t] + p[t + 1]) < 2e-2f);
        assert_true(fabsf(fabsf(p[8 + 5]) - sqrtf(0.5f)) < 2e-2f);
        double sum = 0;
        for (uint32_t j = 0; j < 400; j++) {
            float scratch[8], x[2];
            spa_tap_prepare(&shape, basis, t, y[t][j], scratch, x);
            sum += (double)x[0] * x[0] + (double)x[1] * x[1];
        }
        assert_true(fabs(sum / 800 - 1) < 1e-3);
    }
    free(basis);
    spa_fit_free(f);
}

/* Loss tokens vary in one pair of numbers, other tokens in another: both are directions of a context tap, the second of no other tap. */
static void test_fit_of_a_context_tap_sees_other_tokens(void **state)
{
    (void)state;
    struct spa_shape shape = { .d = 8, .n_layers = 3, .r = 1, .m = 1, .n_taps = 2, .taps = { 0, 2 }, .k = 1, .basis = true, .normalise = SPA_NORM_RMS,
                               .n_ctx_taps = 1, .ctx_taps = { 2 }, .e = 1, .n_heads = 1, .n_att = 1, .att_rungs = { 1 } };
    struct spa_fit *f = spa_fit_new(&shape);
    for (uint32_t j = 0; j < 400; j++) {
        float said[8] = { 10, 10, 10, 10, 10, 10, 10, 10 }, other[8] = { 10, 10, 10, 10, 10, 10, 10, 10 };
        const float a = 0.3f * sinf(0.7f * (float)j), b = cosf(1.9f * (float)j + 1);
        said[0] += a, said[1] -= a;
        other[5] += b, other[6] -= b;
        const float *loss[2] = { said, said }, *context[2] = { NULL, other };   /* of a tap that is no context tap nothing is read */
        assert_true(spa_fit_add(f, loss));
        spa_fit_add_context(f, context);
    }
    assert_int_equal(spa_fit_states(f), 400);
    float *basis = NULL;
    assert_int_equal(spa_fit_step(f, &basis), SPA_NONE);
    assert_int_equal(spa_fit_step(f, &basis), SPA_OK);
    const float *own = basis + 9, *context = basis + (1 + 8 + 8) + 9;
    assert_true(fabsf(fabsf(own[0]) - sqrtf(0.5f)) < 2e-2f && fabsf(own[5]) < 2e-2f);
    assert_true(fabsf(fabsf(context[5]) - sqrtf(0.5f)) < 2e-2f && fabsf(context[0]) < 2e-2f);
    free(basis);
    spa_fit_free(f);
}

static void test_fit_on_too_few_states_is_SHAPE(void **state)
{
    (void)state;
    struct spa_shape shape = { .d = 8, .n_layers = 3, .r = 1, .m = 1, .n_taps = 1, .k = 4, .basis = true };
    struct spa_fit *f = spa_fit_new(&shape);
    const float y[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, *row = y;
    float *basis;
    for (int i = 0; i < 3; i++)
        spa_fit_add(f, &row);
    assert_int_equal(spa_fit_step(f, &basis), SPA_ERR_SHAPE);
    spa_fit_free(f);
}

static int open_model(void **state)
{
    (void)state;
    fake_model_open(&model);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    fake_model_close(&model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turn_stop_string_is_cut_and_what_looks_like_one_is_held_back),
        cmocka_unit_test(test_turn_end_token_releases_what_was_held),
        cmocka_unit_test(test_turn_limits_are_length_and_context),
        cmocka_unit_test(test_turn_more_confirmed_than_asked_is_BAD_REQUEST),
        cmocka_unit_test(test_turn_resumed_says_what_was_held_back),
        cmocka_unit_test(test_turn_confirmed_tokens_do_not_go_on_behind_the_end),
        cmocka_unit_test(test_turn_what_was_said_leaves_together),
        cmocka_unit_test(test_mail_connection_outlives_its_letters),
        cmocka_unit_test(test_mail_packs_what_waits_unless_each_is_to_go_alone),
        cmocka_unit_test(test_mail_takes_no_more_than_its_limit),
        cmocka_unit_test(test_learn_loss_is_on_the_answer_and_its_end_alone),
        cmocka_unit_test(test_learn_row_too_long_is_CONTEXT_FULL_and_too_large_is_TOO_LARGE),
        cmocka_unit_test(test_fit_finds_the_directions_and_the_scale),
        cmocka_unit_test(test_fit_of_a_context_tap_sees_other_tokens), cmocka_unit_test(test_fit_on_too_few_states_is_SHAPE),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
