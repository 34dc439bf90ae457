/* kernels_loops.h - the bodies of the loops, once for all processors whose vectors gcc (from 12) and clang know as a type. Included
 * by one kernels_*.c, which says before:
 *
 *   SPA_TARGET   __attribute__((target(...))), or nothing
 *   SPA_LANES    8 or 16 floats that are multiplied and added at once
 *   SPA_MULADD   SPA_MULADD(acc, a, b): acc += a * b, lane by lane
 *   SPA_ADD      SPA_ADD(y, g, x): y + g * x of single numbers, rounded as often as SPA_MULADD rounds
 *   SPA_LOAD_N   SPA_LOAD_N(v, p, n): n numbers of p, then zeros, reading no more than those; left out where a processor has no such load
 *   SPA_NAME     the table's name in C, and as text
 *
 * A sum keeps SPA_LANES partial sums and adds them up in one fixed order: lane l to lane l + 8 where there are sixteen, then pairs
 * of neighbours. What is left over at the end of a row goes into the first lanes with SPA_LOAD_N, else into one sum more, added last.
 * Vectors go through macros: passing them by value would tie the ABI to the target's widest register. */
#include "kernels.h"

#include <string.h>

typedef float lanes __attribute__((vector_size(SPA_LANES * sizeof(float))));
typedef float eight __attribute__((vector_size(8 * sizeof(float))));

#define LOAD(v, p) memcpy(&(v), (p), sizeof(v))
#if SPA_LANES == 16
#define FOLD(to, v) ((to) = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15))
#else
#define FOLD(to, v) ((to) = (v))
#endif

SPA_TARGET static float dot(size_t n, const float *restrict a, const float *restrict b)
{
    lanes acc = {0}, va, vb;
    eight sum;
    size_t i = 0;
    for (; i + SPA_LANES <= n; i += SPA_LANES) {
        LOAD(va, a + i);
        LOAD(vb, b + i);
        SPA_MULADD(acc, va, vb);
    }
    float tail = 0;
#ifdef SPA_LOAD_N
    if (i < n) {
        SPA_LOAD_N(va, a + i, n - i);
        SPA_LOAD_N(vb, b + i, n - i);
        SPA_MULADD(acc, va, vb);
    }
#else
    for (; i < n; i++)
        tail = SPA_ADD(tail, a[i], b[i]);
#endif
    FOLD(sum, acc);
    return (((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]))) + tail;
}

/* Eight rows at a time share the loads of x, hide the latency of the adds and have their partial sums added up together, by
 * three rounds of shuffles instead of eight times seven adds. */
SPA_TARGET static void matvec_add(size_t rows, size_t cols, const float *restrict w, const float *restrict x, float *restrict y)
{
    size_t i = 0;
    for (; i + 8 <= rows; i += 8) {
        const float *w_i = w + i * cols;
        lanes acc[8] = {{0}}, vx, vw;
        eight one[8], pairs[4], fours[2], sum;
        float tail[8] = {0};
        size_t j = 0;
        for (; j + SPA_LANES <= cols; j += SPA_LANES) {
            LOAD(vx, x + j);
            for (size_t l = 0; l < 8; l++) {
                LOAD(vw, w_i + l * cols + j);
                SPA_MULADD(acc[l], vw, vx);
            }
        }
#ifdef SPA_LOAD_N
        if (j < cols) {
            SPA_LOAD_N(vx, x + j, cols - j);
            for (size_t l = 0; l < 8; l++) {
                SPA_LOAD_N(vw, w_i + l * cols + j, cols - j);
                SPA_MULADD(acc[l], vw, vx);
            }
        }
#else
        for (; j < cols; j++)
            for (size_t l = 0; l < 8; l++)
                tail[l] = SPA_ADD(tail[l], w_i[l * cols + j], x[j]);
#endif
        for (size_t l = 0; l < 8; l++)
            FOLD(one[l], acc[l]);
        for (size_t l = 0; l < 4; l++)   /* rows 2l and 2l+1 in turn, four sums of two lanes each */
            pairs[l] = __builtin_shufflevector(one[2 * l], one[2 * l + 1], 0, 8, 2, 10, 4, 12, 6, 14)
                     + __builtin_shufflevector(one[2 * l], one[2 * l + 1], 1, 9, 3, 11, 5, 13, 7, 15);
        for (size_t l = 0; l < 2; l++)   /* rows 4l .. 4l+3 in turn, two sums of four lanes each */
            fours[l] = __builtin_shufflevector(pairs[2 * l], pairs[2 * l + 1], 0, 1, 8, 9, 4, 5, 12, 13)
                     + __builtin_shufflevector(pairs[2 * l], pairs[2 * l + 1], 2, 3, 10, 11, 6, 7, 14, 15);
        sum = __builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11)
            + __builtin_shufflevector(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
        for (size_t l = 0; l < 8; l++)
            y[i + l] += sum[l] + tail[l];
    }
    for (; i < rows; i++)
        y[i] += dot(cols, w + i * cols, x);
}

/* Four rows at a time, so that dx is read and written a quarter as often. */
SPA_TARGET static void matvec_t_add(size_t rows, size_t cols, const float *restrict w, const float *restrict dy, float *restrict dx)
{
    size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const float *w0 = w + i * cols, *w1 = w0 + cols, *w2 = w1 + cols, *w3 = w2 + cols;
        const float g0 = dy[i], g1 = dy[i + 1], g2 = dy[i + 2], g3 = dy[i + 3];
        for (size_t j = 0; j < cols; j++)
            dx[j] += SPA_ADD(g0 * w0[j], g1, w1[j]) + SPA_ADD(g2 * w2[j], g3, w3[j]);
    }
    for (; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            dx[j] = SPA_ADD(dx[j], dy[i], w[i * cols + j]);
}

/* Four tokens at a time, so that dw is read and written a quarter as often. */
SPA_TARGET static void outer_add(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy, const float *restrict x,
                                 size_t ldx, float *restrict dw)
{
    size_t t = 0;
    for (; t + 4 <= n; t += 4, dy += 4 * ldy, x += 4 * ldx)
        for (size_t i = 0; i < rows; i++) {
            const float g0 = dy[i], g1 = dy[ldy + i], g2 = dy[2 * ldy + i], g3 = dy[3 * ldy + i];
            const float *x0 = x, *x1 = x + ldx, *x2 = x + 2 * ldx, *x3 = x + 3 * ldx;
            float *restrict out = dw + i * cols;
            for (size_t j = 0; j < cols; j++)
                out[j] += SPA_ADD(g0 * x0[j], g1, x1[j]) + SPA_ADD(g2 * x2[j], g3, x3[j]);
        }
    for (; t < n; t++, dy += ldy, x += ldx)
        for (size_t i = 0; i < rows; i++) {
            const float g = dy[i];
            float *restrict out = dw + i * cols;
            for (size_t j = 0; j < cols; j++)
                out[j] = SPA_ADD(out[j], g, x[j]);
        }
}

const struct spa_kernels SPA_NAME = { SPA_NAME_TEXT, dot, matvec_add, matvec_t_add, outer_add };
