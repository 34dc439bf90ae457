/* test_kernels.c - every table of loops that this processor can run, beside scalar loops in double: all lengths around the widths of
 * vectors, pointers that are aligned to nothing, nothing written beside. */
#include "kernels.h"
#include "sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

enum { ROOM = 1 << 16, EDGE = 8 };
static const size_t lengths[] = { 0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 64, 65, 100, 127, 129, 576, 577 };
static const size_t short_lengths[] = { 1, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 48, 65 };
enum { N_LENGTHS = sizeof lengths / sizeof *lengths, N_SHORT = sizeof short_lengths / sizeof *short_lengths };

static float a_room[ROOM], b_room[ROOM], y_room[ROOM], before[ROOM];

static void fill(float *x, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)spa_noise64(key, 3, i) * 0x1p-63 - 1.0);
}

/* Of the sum of sizes, not of the sum: sums of both signs may nearly vanish. */
static void assert_near(const char *table, double got, double want, double size)
{
    if (!(fabs(got - want) <= 1e-5 * size))
        fail_msg("%s: %.9g instead of %.9g, which is %.2g of %g", table, got, want, fabs(got - want) / size, size);
}

static void test_kernels_first_table_is_the_best_and_plain_the_last(void **state)
{
    (void)state;
    size_t n = 0;
    while (spa_kernels(n))
        n++;
    assert_true(n >= 1);
    assert_null(spa_kernels(n + 1));
    for (size_t i = 1; i < n; i++)
        assert_ptr_not_equal(spa_kernels(i), spa_kernels(i - 1));
    assert_ptr_equal(spa_kernels(n - 1), &spa_kernels_plain);
    for (size_t i = 0; i < n; i++)
        print_message("%s%s", spa_kernels(i)->name, i + 1 < n ? ", " : "\n");
}

static void test_kernels_dot_equals_scalar(void **state)
{
    (void)state;
    const struct spa_kernels *k;
    for (size_t v = 0; (k = spa_kernels(v)); v++)
        for (size_t i = 0; i < N_LENGTHS; i++)
            for (size_t off = 0; off < 4; off++) {
                const size_t n = lengths[i];
                const float *a = a_room + off, *b = b_room + (off * 3) % 4;
                double want = 0, size = 0;
                for (size_t j = 0; j < n; j++) {
                    want += (double)a[j] * b[j];
                    size += fabs((double)a[j] * b[j]);
                }
                assert_near(k->name, k->dot(n, a, b), want, size);
            }
}

static void test_kernels_matvec_equals_scalar_and_dot_bit_for_bit(void **state)
{
    (void)state;
    const struct spa_kernels *k;
    for (size_t v = 0; (k = spa_kernels(v)); v++)
        for (size_t r = 0; r < N_SHORT; r++)
            for (size_t c = 0; c < N_LENGTHS; c++) {
                const size_t rows = short_lengths[r], cols = lengths[c];
                const float *w = a_room + 1, *x = b_room + 3;
                float *y = y_room + EDGE + 1;
                memcpy(y_room, before, sizeof y_room);
                k->matvec_add(rows, cols, w, x, y);
                for (size_t i = 0; i < rows; i++) {
                    const float y_i = before[EDGE + 1 + i];
                    double want = y_i, size = fabs((double)y_i);
                    for (size_t j = 0; j < cols; j++) {
                        want += (double)w[i * cols + j] * x[j];
                        size += fabs((double)w[i * cols + j] * x[j]);
                    }
                    assert_near(k->name, y[i], want, size);
                    const float same = y_i + k->dot(cols, w + i * cols, x);
                    assert_memory_equal(&y[i], &same, sizeof same);
                }
                memcpy(y, before + EDGE + 1, rows * sizeof *y);
                assert_memory_equal(y_room, before, sizeof y_room);
            }
}

static void test_kernels_matvec_t_equals_scalar(void **state)
{
    (void)state;
    const struct spa_kernels *k;
    for (size_t v = 0; (k = spa_kernels(v)); v++)
        for (size_t r = 0; r < N_SHORT; r++)
            for (size_t c = 0; c < N_LENGTHS; c++) {
                const size_t rows = short_lengths[r], cols = lengths[c];
                const float *w = a_room + 3, *dy = b_room + 1;
                float *dx = y_room + EDGE + 3;
                memcpy(y_room, before, sizeof y_room);
                k->matvec_t_add(rows, cols, w, dy, dx);
                for (size_t j = 0; j < cols; j++) {
                    const float dx_j = before[EDGE + 3 + j];
                    double want = dx_j, size = fabs((double)dx_j);
                    for (size_t i = 0; i < rows; i++) {
                        want += (double)w[i * cols + j] * dy[i];
                        size += fabs((double)w[i * cols + j] * dy[i]);
                    }
                    assert_near(k->name, dx[j], want, size);
                }
                memcpy(dx, before + EDGE + 3, cols * sizeof *dx);
                assert_memory_equal(y_room, before, sizeof y_room);
            }
}

static void test_kernels_outer_equals_scalar(void **state)
{
    (void)state;
    const struct spa_kernels *k;
    for (size_t v = 0; (k = spa_kernels(v)); v++)
        for (size_t r = 0; r < N_SHORT; r += 2)
            for (size_t c = 0; c < N_SHORT; c++)
                for (size_t n = 0; n <= 9; n++) {
                    const size_t rows = short_lengths[r], cols = short_lengths[c], ldy = rows + 3, ldx = cols + 5;
                    const float *dy = a_room + 1, *x = b_room + 2;
                    float *dw = y_room + EDGE + 1;
                    memcpy(y_room, before, sizeof y_room);
                    k->outer_add(rows, cols, n, dy, ldy, x, ldx, dw);
                    for (size_t i = 0; i < rows; i++)
                        for (size_t j = 0; j < cols; j++) {
                            const float dw_ij = before[EDGE + 1 + i * cols + j];
                            double want = dw_ij, size = fabs((double)dw_ij);
                            for (size_t t = 0; t < n; t++) {
                                want += (double)dy[t * ldy + i] * x[t * ldx + j];
                                size += fabs((double)dy[t * ldy + i] * x[t * ldx + j]);
                            }
                            assert_near(k->name, dw[i * cols + j], want, size);
                        }
                    memcpy(dw, before + EDGE + 1, rows * cols * sizeof *dw);
                    assert_memory_equal(y_room, before, sizeof y_room);
                }
}

/* What is not a number must not vanish in a masked load or in a shuffle, and must not spread to other rows. */
static void test_kernels_nan_reaches_its_row_and_no_other(void **state)
{
    (void)state;
    const struct spa_kernels *k;
    for (size_t v = 0; (k = spa_kernels(v)); v++)
        for (size_t c = 1; c < N_LENGTHS; c++)
            for (size_t row = 0; row < 17; row++) {
                const size_t cols = lengths[c], at = row * cols + (row * 7) % cols;
                const float was = a_room[at];
                float y[17] = {0};
                a_room[at] = NAN;
                k->matvec_add(17, cols, a_room, b_room, y);
                a_room[at] = was;
                for (size_t i = 0; i < 17; i++)
                    assert_int_equal(isnan(y[i]) != 0, i == row);
            }
}

static void test_kernels_calls_go_to_the_first_table(void **state)
{
    (void)state;
    const struct spa_kernels *k = spa_kernels(0);
    float ours[100] = {0}, theirs[100] = {0};
    ours[0] = spa_dot(99, a_room, b_room);
    theirs[0] = k->dot(99, a_room, b_room);
    spa_matvec_add(9, 33, a_room, b_room, ours + 1);
    k->matvec_add(9, 33, a_room, b_room, theirs + 1);
    spa_matvec_t_add(7, 33, a_room, b_room, ours + 10);
    k->matvec_t_add(7, 33, a_room, b_room, theirs + 10);
    spa_outer_add(5, 9, 6, a_room, 5, b_room, 9, ours + 43);
    k->outer_add(5, 9, 6, a_room, 5, b_room, 9, theirs + 43);
    assert_memory_equal(ours, theirs, sizeof ours);
}

static void test_kernels_sum_and_relu_do_as_they_say(void **state)
{
    (void)state;
    const float x[] = { 1, -2, 3, 100, 4, 5, -6, 100 };
    float y[] = { 10, 20, 30 }, out[4];
    spa_sum_add(3, 2, x, 4, y);
    assert_true(y[0] == 15 && y[1] == 23 && y[2] == 27);
    const float in[] = { -1, 2, NAN, -0.0f };
    spa_relu(4, in, out);
    assert_true(out[0] == 0 && out[1] == 2 && isnan(out[2]) && out[3] == 0);
}

int main(void)
{
    fill(a_room, ROOM, 1);
    fill(b_room, ROOM, 2);
    fill(before, ROOM, 3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_first_table_is_the_best_and_plain_the_last),
        cmocka_unit_test(test_kernels_dot_equals_scalar),
        cmocka_unit_test(test_kernels_matvec_equals_scalar_and_dot_bit_for_bit),
        cmocka_unit_test(test_kernels_matvec_t_equals_scalar),
        cmocka_unit_test(test_kernels_outer_equals_scalar),
        cmocka_unit_test(test_kernels_nan_reaches_its_row_and_no_other),
        cmocka_unit_test(test_kernels_calls_go_to_the_first_table),
        cmocka_unit_test(test_kernels_sum_and_relu_do_as_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
