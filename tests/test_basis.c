/* test_basis.c - taps as the cloud prepares them, against the header's formulas in double. (test_ladder.c compares the
 * projected form with the reference, too.) */
#include "basis.h"
#include "sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { D = 13, K = 5, TAPS = 3, PER_TAP = 1 + D + K * D };

static const struct spa_shape projected = { .d = D, .n_layers = 8, .r = 2, .m = 2, .n_taps = TAPS, .taps = { 0, 3, 8 }, .k = K,
                                            .basis = true, .normalise = SPA_NORM_RMS, .mode = SPA_ADD };

static void fill(float *x, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)spa_noise64(key, 0, i) * 0x1p-62 - 2.0);
}

static void fill_basis(float *basis)
{
    fill(basis, TAPS * PER_TAP, 1);
    for (size_t l = 0; l < TAPS; l++)
        basis[l * PER_TAP] = 0.25f * (float)(l + 1);
}

static double rms(const float *y)
{
    double square = 0;
    for (size_t i = 0; i < D; i++)
        square += (double)y[i] * (double)y[i];
    return sqrt(square / D + 1e-6);
}

static void test_basis_raw_tap_is_the_state_itself(void **state)
{
    (void)state;
    struct spa_shape s = projected;
    s.basis = false, s.k = D, s.normalise = SPA_NORM_NONE;
    float y[D], tmp[D], x[D];
    fill(y, D, 2);
    assert_true(spa_basis_floats(&s) == 0);
    spa_tap_prepare(&s, NULL, 1, y, tmp, x);
    assert_memory_equal(x, y, sizeof x);
}

static void test_basis_normalised_tap_has_root_mean_square_one(void **state)
{
    (void)state;
    struct spa_shape s = projected;
    s.basis = false, s.k = D;
    float y[D], tmp[D], x[D];
    fill(y, D, 3);
    spa_tap_prepare(&s, NULL, 2, y, tmp, x);
    for (size_t i = 0; i < D; i++)
        assert_true(fabs((double)x[i] - (double)y[i] / rms(y)) < 1e-6);
    memset(y, 0, sizeof y);   /* the 1e-6 keeps a state of zeros at zero */
    spa_tap_prepare(&s, NULL, 2, y, tmp, x);
    for (size_t i = 0; i < D; i++)
        assert_true(x[i] == 0);
}

static void test_basis_projected_tap_follows_the_formula_for_its_own_tap(void **state)
{
    (void)state;
    assert_true(spa_basis_floats(&projected) == TAPS * PER_TAP);
    float basis[TAPS * PER_TAP], y[D], tmp[D], x[K];
    fill_basis(basis);
    fill(y, D, 4);
    for (uint32_t l = 0; l < TAPS; l++) {
        const float *scale = basis + l * PER_TAP, *mean = scale + 1, *p = mean + D;
        spa_tap_prepare(&projected, basis, l, y, tmp, x);
        for (size_t i = 0; i < K; i++) {
            double want = 0;
            for (size_t j = 0; j < D; j++)
                want += (double)p[i * D + j] * ((double)y[j] / rms(y) - (double)mean[j]);
            assert_true(fabs((double)x[i] - want / (double)*scale) < 1e-4);
        }
    }
}

static void test_basis_check_refuses_what_is_not_finite_or_not_positive(void **state)
{
    (void)state;
    float basis[TAPS * PER_TAP];
    fill_basis(basis);
    assert_int_equal(spa_basis_check(&projected, basis), SPA_OK);
    const float bad[] = { NAN, INFINITY, -INFINITY };
    for (size_t i = 0; i < TAPS * PER_TAP; i++)
        for (size_t b = 0; b < 3; b++) {
            const float keep = basis[i];
            basis[i] = bad[b];
            assert_int_equal(spa_basis_check(&projected, basis), SPA_ERR_RANGE);
            basis[i] = keep;
        }
    for (size_t l = 0; l < TAPS; l++) {
        fill_basis(basis);
        basis[l * PER_TAP] = 0;
        assert_int_equal(spa_basis_check(&projected, basis), SPA_ERR_RANGE);
        basis[l * PER_TAP] = -1;
        assert_int_equal(spa_basis_check(&projected, basis), SPA_ERR_RANGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_basis_raw_tap_is_the_state_itself),
        cmocka_unit_test(test_basis_normalised_tap_has_root_mean_square_one),
        cmocka_unit_test(test_basis_projected_tap_follows_the_formula_for_its_own_tap),
        cmocka_unit_test(test_basis_check_refuses_what_is_not_finite_or_not_positive),
    };
    return cmocka_run_group_tests_name("basis", tests, NULL, NULL);
}
