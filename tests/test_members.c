/* test_members.c - device/members.c: several ladders joined into one answer with the mean of their states, and come apart again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "members.h"
#include "sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 3, D = 12, K = 5, TOKENS = 7, LOSS = 3, KINDS = 3 };
static const uint32_t pos[LOSS] = { 0, 3, 6 };

static float noise(uint64_t key, uint64_t i) { return (float)(spa_noise64(key, i, 0) >> 40) / (float)(1 << 23) - 1; }

static float *numbers(uint64_t key, size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = noise(key, i);
    return x;
}

/* Position-wise, with a context, with one that looks back. */
static struct spa_shape shape_of(int kind)
{
    struct spa_shape s = { .d = D, .n_layers = 4, .r = 8, .m = 6, .n_taps = 3, .taps = { 0, 2, 4 }, .k = K, .basis = true,
                           .normalise = SPA_NORM_RMS, .mode = SPA_ADD };
    if (kind > 0) {
        s.n_ctx_taps = 2;
        s.ctx_taps[1] = 4;
        s.e = 4;
        s.n_heads = 2;
        s.n_att = 2;
        s.att_rungs[0] = 1;
        s.att_rungs[1] = 2;
    }
    s.ctx_mix = kind > 1;
    return s;
}

static float *answer(const struct spa_shape *s, const float *params, const float *x_ctx, const float *x)
{
    const struct spa_row row = { s->n_ctx_taps ? TOKENS : 0, x_ctx, LOSS, pos, x };
    float *scratch = malloc(spa_row_scratch_len(s, TOKENS, LOSS) * sizeof *scratch), *z = malloc(LOSS * D * sizeof *z);
    spa_row_forward(s, params, &row, (struct spa_dropout){ 0, 0 }, scratch, z);
    free(scratch);
    return z;
}

static void test_members_joined_answer_with_their_mean(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct spa_shape one = shape_of(kind), all, back;
        assert_int_equal(spa_members_shape(&one, N, &all), SPA_OK);
        assert_int_equal(all.r, N * one.r);
        assert_int_equal(spa_members_one(&all, N, &back), SPA_OK);
        assert_memory_equal(&back, &one, sizeof one);
        const size_t n = spa_param_count(&one);
        float *members = numbers(1, N * n), *params = malloc(spa_param_count(&all) * sizeof *params);
        float *x_ctx = numbers(2, TOKENS * 2 * K), *x = numbers(3, LOSS * 3 * K);
        spa_members_join(&one, N, members, params);
        float *z = answer(&all, params, x_ctx, x), mean[LOSS * D] = { 0 }, largest = 0;
        for (size_t i = 0; i < N; i++) {
            float *of_one = answer(&one, members + i * n, x_ctx, x);
            for (size_t j = 0; j < LOSS * D; j++)
                mean[j] += of_one[j] / N;
            free(of_one);
        }
        for (size_t j = 0; j < LOSS * D; j++)
            largest = fmaxf(largest, fabsf(mean[j]));
        for (size_t j = 0; j < LOSS * D; j++)
            if (!(fabsf(z[j] - mean[j]) < 1e-5f * largest))
                fail_msg("kind %d, number %zu: %g, the mean is %g", kind, j, (double)z[j], (double)mean[j]);
        free(members);
        free(params);
        free(x_ctx);
        free(x);
        free(z);
    }
}

static void test_members_come_apart_as_they_were(void **state)
{
    (void)state;
    const struct spa_shape one = shape_of(2);
    struct spa_shape all;
    assert_int_equal(spa_members_shape(&one, N, &all), SPA_OK);
    const size_t n = spa_param_count(&one), n_all = spa_param_count(&all);
    float *members = numbers(1, N * n), *params = malloc(n_all * sizeof *params), *apart = malloc(N * n * sizeof *apart), *again = malloc(n_all * sizeof *again);
    spa_members_join(&one, N, members, params);
    assert_true(spa_members_split(&one, N, params, apart));
    spa_members_join(&one, N, apart, again);
    for (size_t i = 0; i < n_all; i++)
        assert_true(fabsf(again[i] - params[i]) < 1e-6f);
    for (size_t t = 0; t < spa_tensor_count(&one); t++) {
        struct spa_tensor tensor;
        spa_param_tensor(&one, t, &tensor);
        for (size_t i = 0; strcmp(tensor.name, "b_out") != 0 && i < (size_t)tensor.rows * tensor.cols; i++)   /* of b_out each has the mean */
            assert_true(fabsf(apart[n + tensor.offset + i] - members[n + tensor.offset + i]) < 1e-6f);
    }
    free(apart);
    free(again);
    free(members);
    free(params);
}

static void test_members_of_a_ladder_that_has_none_are_refused(void **state)
{
    (void)state;
    const struct spa_shape one = shape_of(1);
    struct spa_shape all, back;
    assert_int_equal(spa_members_shape(&one, N, &all), SPA_OK);
    float *params = numbers(4, spa_param_count(&all)), *members = malloc(N * spa_param_count(&one) * sizeof *members);
    assert_false(spa_members_split(&one, N, params, members));
    assert_true(spa_members_split(&all, 1, params, params));   /* one is always made of one */
    assert_int_equal(spa_members_one(&all, 5, &back), SPA_ERR_SHAPE);
    assert_int_equal(spa_members_shape(&one, 200, &back), SPA_ERR_LIMIT);   /* 400 heads */
    free(params);
    free(members);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members_joined_answer_with_their_mean),
        cmocka_unit_test(test_members_come_apart_as_they_were),
        cmocka_unit_test(test_members_of_a_ladder_that_has_none_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
