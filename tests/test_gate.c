/* test_gate.c - the gate against the authors' decisions, its gradient against finite differences. */
#include "gate.h"
#include "golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_gate_fires_where_the_reference_fires(void **state)
{
    (void)state;
    struct golden plugin = golden_load("tiny.plugin.safetensors"), vectors = golden_load("tiny.vectors.safetensors");
    float *w = golden_tensor(&plugin, "opt.weight", NULL), *y = golden_tensor(&vectors, "final_norm", NULL);
    int32_t *want = golden_tensor(&vectors, "gate", NULL);
    const float b[2] = {0};
    float g[GOLDEN_D], g_bias;
    spa_gate_fold(GOLDEN_D, w, b, 0.5f, g, &g_bias);
    assert_true(g_bias == 0);
    int fired = 0;
    for (size_t t = 0; t < GOLDEN_T; t++) {
        const int ask = spa_gate_score(GOLDEN_D, g, g_bias, y + t * GOLDEN_D) > 0;
        assert_int_equal(ask, want[t]);
        fired += ask;
    }
    assert_true(fired > 0 && fired < GOLDEN_T);
    free(plugin.bytes), free(vectors.bytes), free(w), free(y), free(want);
}

static void test_gate_threshold_is_a_probability(void **state)
{
    (void)state;
    const float w[4] = { 0.25f, -1, 1.5f, 0.5f }, b[2] = { 0.1f, -0.3f };
    for (int i = -20; i <= 20; i++) {
        const float y[2] = { 0.2f * (float)i, 0.3f };
        const double s0 = 0.25 * (double)y[0] - 0.3 + 0.1, s1 = 1.5 * (double)y[0] + 0.15 - 0.3;
        const double p = 1 / (1 + exp(s0 - s1));
        for (float threshold = 0.05f; threshold < 1; threshold += 0.1f) {
            float g[2], g_bias;
            spa_gate_fold(2, w, b, threshold, g, &g_bias);
            assert_int_equal(spa_gate_score(2, g, g_bias, y) > 0, p > (double)threshold);
        }
    }
}

static double gate_loss(size_t d, const double *w, const double *b, const float *y, int label, double weight)
{
    double s[2] = { b[0], b[1] };
    for (size_t i = 0; i < d; i++) {
        s[0] += w[i] * (double)y[i];
        s[1] += w[d + i] * (double)y[i];
    }
    return weight * (log(exp(s[0]) + exp(s[1])) - s[label]);
}

static void test_gate_backward_equals_finite_differences(void **state)
{
    (void)state;
    enum { D = 11 };
    float w[2 * D], b[2] = { 0.3f, -0.2f }, y[D];
    double wide[2 * D + 2];
    for (size_t i = 0; i < 2 * D; i++)
        w[i] = sinf((float)(i * i + 1));
    for (size_t i = 0; i < D; i++)
        y[i] = cosf((float)(3 * i));
    for (size_t i = 0; i < 2 * D; i++)
        wide[i] = (double)w[i];
    wide[2 * D] = (double)b[0], wide[2 * D + 1] = (double)b[1];
    for (int label = 0; label < 2; label++) {
        float grad[2 * D + 2];
        for (size_t i = 0; i < 2 * D + 2; i++)
            grad[i] = 1;   /* backward adds */
        const float loss = spa_gate_backward(D, w, b, y, label, 0.7f, grad, grad + 2 * D);
        assert_true(fabs((double)loss - gate_loss(D, wide, wide + 2 * D, y, label, 0.7)) < 1e-5);
        for (size_t i = 0; i < 2 * D + 2; i++) {
            const double keep = wide[i], step = 1e-5;
            wide[i] = keep + step;
            const double up = gate_loss(D, wide, wide + 2 * D, y, label, 0.7);
            wide[i] = keep - step;
            const double slope = (up - gate_loss(D, wide, wide + 2 * D, y, label, 0.7)) / (2 * step);
            wide[i] = keep;
            assert_true(fabs((double)grad[i] - 1 - slope) < 1e-5);
        }
    }
}

static void test_gate_backward_of_a_far_off_score_stays_finite(void **state)
{
    (void)state;
    const float w[2] = { 0, 1 }, b[2] = {0}, y = 500;
    for (int label = 0; label < 2; label++) {
        float dw[2] = {0}, db[2] = {0};
        const float loss = spa_gate_backward(1, w, b, &y, label, 1, dw, db);
        assert_true(fabsf(loss - (label ? 0.0f : 500.0f)) < 1e-3f);
        assert_true(fabsf(db[1] - (label ? 0.0f : 1.0f)) < 1e-6f && db[0] == -db[1] && dw[1] == 500 * db[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate_fires_where_the_reference_fires),
        cmocka_unit_test(test_gate_threshold_is_a_probability),
        cmocka_unit_test(test_gate_backward_equals_finite_differences),
        cmocka_unit_test(test_gate_backward_of_a_far_off_score_stays_finite),
    };
    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
