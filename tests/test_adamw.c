/* test_adamw.c - the optimizer against torch.optim.AdamW's numbers, and clipping and schedule against their definitions. */
#include "adamw.h"
#include "golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_adamw_ten_steps_equal_reference(void **state)
{
    (void)state;
    struct golden plugin = golden_load("tiny.plugin.safetensors"), vectors = golden_load("tiny.vectors.safetensors");
    struct spa_shape s = golden_tiny_shape();
    s.mode = SPA_ADD;
    const size_t n = spa_param_count(&s), n_z = (size_t)GOLDEN_T * GOLDEN_D;
    size_t n_head;
    float *w = golden_tiny_params(&plugin, ""), *want = golden_tiny_params(&vectors, "train.after10.");
    float *x = golden_tiny_taps(&vectors), *y = golden_tensor(&vectors, "final_norm", NULL);
    float *head = golden_gguf_f32("tiny.base.gguf", "token_embd.weight", &n_head);
    float *want_loss = golden_tensor(&vectors, "train.loss_after_10", NULL);
    int32_t *targets = golden_tensor(&vectors, "train.targets", NULL);
    float *g = malloc(n * sizeof *g), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v);
    float *z = malloc(n_z * sizeof *z), *dz = malloc(n_z * sizeof *dz);
    float *scratch = malloc(spa_row_scratch_len(&s, 0, GOLDEN_T) * sizeof *scratch);
    uint32_t pos[GOLDEN_T];
    for (uint32_t t = 0; t < GOLDEN_T; t++)
        pos[t] = t;
    const struct spa_row row = { .n_loss = GOLDEN_T, .pos = pos, .x = x };
    const struct spa_adamw cfg = { .lr = 2e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f };
    float *before = malloc(n * sizeof *before);
    memcpy(before, w, n * sizeof *w);

    double loss = 0;
    for (uint64_t t = 1; t <= 10; t++) {
        spa_row_forward(&s, w, &row, (struct spa_dropout){0}, scratch, z);
        loss = golden_head_loss(GOLDEN_D, GOLDEN_V, GOLDEN_T, head, y, z, targets, dz);
        memset(g, 0, n * sizeof *g);
        spa_row_backward(&s, w, &row, (struct spa_dropout){0}, scratch, dz, g);
        spa_adamw_step(&cfg, t, n, w, g, m, v);
    }
    assert_true(fabs(loss - (double)want_loss[0]) <= 1e-4);
    for (size_t i = 0; i < spa_tensor_count(&s); i++) {
        struct spa_tensor t;
        spa_param_tensor(&s, i, &t);
        const size_t at = t.offset, len = (size_t)t.rows * t.cols;
        const double error = golden_norm_error(w + at, want + at, len);
        if (!(error <= 1e-3))
            fail_msg("%s: error %g", t.name, error);
        /* The way gone is small beside the weights, so it is looked at by itself. Adam turns the sign of a gradient of
         * rounding size into a whole step, hence the wider measure. */
        for (size_t l = at; l < at + len; l++) {
            w[l] -= before[l];
            want[l] -= before[l];
        }
        const double way = golden_norm_error(w + at, want + at, len);
        if (!(way <= 2e-2))
            fail_msg("%s: error of the way gone %g", t.name, way);
    }
    free(plugin.bytes), free(vectors.bytes), free(w), free(want), free(x), free(y), free(head), free(want_loss);
    free(targets), free(g), free(m), free(v), free(z), free(dz), free(scratch), free(before);
}

static void test_adamw_first_step_moves_by_lr_and_decays(void **state)
{
    (void)state;
    /* At t = 1 the corrected moments are g and g^2: each weight moves by lr against its gradient's sign. */
    float w[3] = { 1, -2, 4 }, m[3] = {0}, v[3] = {0};
    const float g[3] = { 0.5f, -3, 0 };
    const struct spa_adamw cfg = { .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f };
    spa_adamw_step(&cfg, 1, 3, w, g, m, v);
    assert_true(fabsf(w[0] - (0.999f - 0.01f)) < 1e-6f);
    assert_true(fabsf(w[1] - (-1.998f + 0.01f)) < 1e-6f);
    assert_true(fabsf(w[2] - 3.996f) < 1e-6f);
}

static void test_adamw_clip_scales_only_what_is_too_long(void **state)
{
    (void)state;
    float g[11] = {0}, norm;
    g[0] = 3, g[10] = -4;   /* one in the blocks, one in the tail */
    assert_int_equal(spa_clip_norm(g, 11, 6, &norm), SPA_OK);
    assert_true(norm == 5 && g[0] == 3 && g[10] == -4);
    assert_int_equal(spa_clip_norm(g, 11, 0, &norm), SPA_OK);
    assert_true(norm == 5 && g[0] == 3);
    assert_int_equal(spa_clip_norm(g, 11, 1, &norm), SPA_OK);
    assert_true(norm == 5 && fabsf(g[0] - 0.6f) < 1e-6f && fabsf(g[10] + 0.8f) < 1e-6f);
    float large[2] = { 3e30f, 4e30f };   /* their squares do not fit in a float */
    assert_int_equal(spa_clip_norm(large, 2, 1, &norm), SPA_OK);
    assert_true(fabsf(norm / 5e30f - 1) < 1e-6f && fabsf(large[1] - 0.8f) < 1e-6f);
}

static void test_adamw_clip_of_nan_or_infinity_is_RANGE_and_changes_nothing(void **state)
{
    (void)state;
    const float bad[2] = { NAN, -INFINITY };
    for (size_t i = 0; i < 2; i++)
        for (size_t at = 0; at < 9; at++) {
            float g[9] = { 9, 9, 9, 9, 9, 9, 9, 9, 9 }, keep[9], norm;
            g[at] = bad[i];
            memcpy(keep, g, sizeof g);
            assert_int_equal(spa_clip_norm(g, 9, 1, &norm), SPA_ERR_RANGE);
            assert_memory_equal(g, keep, sizeof g);
        }
}

static void test_adamw_schedule_warms_up_then_follows_a_cosine_to_zero(void **state)
{
    (void)state;
    assert_true(fabsf(spa_cosine_schedule(1, 20, 120) - 0.05f) < 1e-6f);
    assert_true(spa_cosine_schedule(20, 20, 120) == 1);
    assert_true(fabsf(spa_cosine_schedule(70, 20, 120) - 0.5f) < 1e-6f);
    assert_true(fabsf(spa_cosine_schedule(45, 20, 120) - 0.8535534f) < 1e-6f);
    assert_true(spa_cosine_schedule(120, 20, 120) == 0);
    assert_true(spa_cosine_schedule(500, 20, 120) == 0);
    assert_true(spa_cosine_schedule(5, 20, 10) == 0.25f);   /* shorter than its warm-up */
    assert_true(fabsf(spa_cosine_schedule(1, 0, 2) - 0.5f) < 1e-6f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw_ten_steps_equal_reference),
        cmocka_unit_test(test_adamw_first_step_moves_by_lr_and_decays),
        cmocka_unit_test(test_adamw_clip_scales_only_what_is_too_long),
        cmocka_unit_test(test_adamw_clip_of_nan_or_infinity_is_RANGE_and_changes_nothing),
        cmocka_unit_test(test_adamw_schedule_warms_up_then_follows_a_cosine_to_zero),
    };
    return cmocka_run_group_tests_name("adamw", tests, NULL, NULL);
}
