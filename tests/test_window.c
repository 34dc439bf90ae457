/* test_window.c - the bounded context cache: a window of N gives the numbers of a cache that only ever saw the last N tokens, however
 * long the text was and however often it went back. Attention has no positions, so such a cache is the reference. With ctx_mix a token's
 * own place in the cache is that of a cache that only ever saw the N tokens up to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "ladder.h"
#include "sample.h"

#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 900, WINDOW = 37 };

static struct spa_shape shape = { .d = 12, .n_layers = 4, .r = 8, .m = 4, .n_taps = 3, .taps = { 0, 2, 4 }, .k = 12,
    .normalise = SPA_NORM_RMS, .mode = SPA_ADD, .n_ctx_taps = 2, .ctx_taps = { 0, 2 }, .e = 6, .n_heads = 2, .n_att = 2, .att_rungs = { 0, 2 } };

static float *params, *x, *x_ctx, *scratch, *places;
static float z[12], want[12];

static float *floats(size_t n)
{
    float *p = calloc(n, sizeof *p);
    assert_non_null(p);
    return p;
}

static void fill(float *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(int)(spa_noise64(seed, 1, i) % 2001) / 1000.0f - 1.0f;
}

static struct spa_context cache(uint32_t cap, uint32_t window)
{
    return (struct spa_context){ .kv = floats(spa_context_floats(&shape, cap)), .cap = cap, .window = window };
}

static void add(struct spa_context *c, uint32_t token)
{
    assert_int_equal(spa_ladder_context(&shape, params, x_ctx + (size_t)token * shape.n_ctx_taps * shape.k, scratch, c), SPA_OK);
}

static void forward(const struct spa_context *c, uint32_t token, float *out)
{
    spa_ladder_forward(&shape, params, x + (size_t)token * shape.n_taps * shape.k, c, scratch, out);
}

static uint32_t window_begin(uint32_t pos) { return pos >= WINDOW ? pos - WINDOW + 1 : 0; }

/* Each token's place in a cache that saw nothing but the window's tokens. */
static void make_places(void)
{
    const size_t place = spa_context_floats(&shape, 1);
    struct spa_context c = cache(WINDOW, 0);
    places = floats(N_TOKENS * place);
    for (uint32_t pos = 0; pos < N_TOKENS; pos++) {
        c.len = 0;
        for (uint32_t t = window_begin(pos); t <= pos; t++)
            add(&c, t);
        memcpy(places + pos * place, c.kv + (c.len - 1) * place, place * sizeof *places);
    }
    free(c.kv);
}

/* z of a position by a cache that holds nothing but the window's places. */
static void reference(uint32_t pos, float *out)
{
    const uint32_t begin = window_begin(pos);
    const struct spa_context c = { .kv = places + spa_context_floats(&shape, begin), .cap = WINDOW, .len = pos - begin + 1 };
    forward(&c, pos, out);
}

static int setup(bool mix)
{
    shape.ctx_mix = mix;
    assert_int_equal(spa_shape_check(&shape), SPA_OK);
    params = floats(spa_param_count(&shape));
    x = floats((size_t)N_TOKENS * shape.n_taps * shape.k);
    x_ctx = floats((size_t)N_TOKENS * shape.n_ctx_taps * shape.k);
    scratch = floats(spa_ladder_scratch_len(&shape, N_TOKENS));
    fill(params, spa_param_count(&shape), 1);
    fill(x, (size_t)N_TOKENS * shape.n_taps * shape.k, 2);
    fill(x_ctx, (size_t)N_TOKENS * shape.n_ctx_taps * shape.k, 3);
    make_places();
    return 0;
}

static int setup_without_mix(void **state) { return (void)state, setup(false); }
static int setup_with_mix(void **state)    { return (void)state, setup(true); }

static int teardown(void **state)
{
    (void)state;
    free(params), free(x), free(x_ctx), free(scratch), free(places);
    return 0;
}

static void assert_right(const struct spa_context *c)
{
    forward(c, c->len - 1, z);
    reference(c->len - 1, want);
    assert_memory_equal(z, want, sizeof z);
}

static void test_window_equals_attention_over_the_last_tokens(void **state)
{
    (void)state;
    struct spa_context c = cache(spa_context_cap(WINDOW), WINDOW);
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        add(&c, t);
        assert_right(&c);
    }
    assert_int_equal(c.len, N_TOKENS);
    assert_true(c.first > 0 && c.len - c.first <= c.cap);
    free(c.kv);
}

/* Back by up to a slack, over and over, and once to the beginning: the same numbers as on the way forward. */
static void test_window_going_back_and_coming_again_changes_nothing(void **state)
{
    (void)state;
    struct spa_context c = cache(spa_context_cap(WINDOW), WINDOW);
    for (uint32_t round = 0; round < 40; round++) {
        for (uint32_t i = 0; i < 150 && c.len < N_TOKENS; i++)
            add(&c, c.len);
        assert_right(&c);
        const uint32_t back = 1 + (uint32_t)(spa_noise64(7, 7, round) % SPA_CONTEXT_SLACK);
        assert_int_equal(spa_context_cut(&c, round == 30 ? 0 : c.len - back), SPA_OK);
        add(&c, c.len);
        assert_right(&c);
    }
    free(c.kv);
}

static void test_window_what_is_gone_cannot_be_gone_back_to(void **state)
{
    (void)state;
    struct spa_context c = cache(spa_context_cap(WINDOW), WINDOW);
    while (c.len < spa_context_cap(WINDOW))
        add(&c, c.len);
    assert_int_equal(spa_context_floor(&c), 0);          /* nothing is gone yet: any position */
    assert_int_equal(spa_context_cut(&c, c.len + 1), SPA_ERR_RANGE);
    add(&c, c.len);
    const uint32_t floor = spa_context_floor(&c), len = c.len;
    assert_int_equal(floor, SPA_CONTEXT_SLACK + WINDOW - 1);
    assert_int_equal(spa_context_cut(&c, floor - 1), SPA_ERR_RANGE);
    assert_int_equal(c.len, len);
    assert_int_equal(spa_context_cut(&c, floor), SPA_OK);
    add(&c, c.len);
    assert_right(&c);
    assert_int_equal(spa_context_cut(&c, 0), SPA_OK);
    assert_int_equal(c.first, 0);
    free(c.kv);
}

static void test_window_without_room_for_it_is_NOMEM(void **state)
{
    (void)state;
    struct spa_context c = cache(WINDOW, WINDOW);        /* a cache that is still growing */
    while (c.len < WINDOW)
        add(&c, c.len);
    assert_int_equal(spa_ladder_context(&shape, params, x_ctx, scratch, &c), SPA_ERR_NOMEM);
    assert_int_equal(c.len, WINDOW);
    free(c.kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window_equals_attention_over_the_last_tokens),
        cmocka_unit_test(test_window_going_back_and_coming_again_changes_nothing),
        cmocka_unit_test(test_window_what_is_gone_cannot_be_gone_back_to),
        cmocka_unit_test(test_window_without_room_for_it_is_NOMEM),
    };
    const int failed = cmocka_run_group_tests_name("without mix", tests, setup_without_mix, teardown);
    return failed + cmocka_run_group_tests_name("with mix", tests, setup_with_mix, teardown);
}
