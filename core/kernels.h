/* kernels.h - the few loops in which core spends its time: products of small row-major matrices with vectors.
 *
 * Dot products keep eight partial sums and add them up in one fixed order, pairs of neighbours first, so a result does
 * not depend on which of these functions asked for it, nor on the compiler's leave to reorder sums. They are written with
 * the vector types that gcc (from 12) and clang share, which both lower to whatever the target has, WASM's simd128
 * included: left to themselves the compilers are five times slower here. The other loops vectorise as they stand.
 * Everything that is added to (y, dx, dw) must not overlap what is read. */
#ifndef SPA_KERNELS_H
#define SPA_KERNELS_H

#include <stddef.h>
#include <string.h>

enum { SPA_LANES = 8 };
typedef float spa_lanes __attribute__((vector_size(SPA_LANES * sizeof(float))));

/* Through pointers: passing vectors by value would tie the ABI to the target's widest register. */
static inline void spa_lanes_load(spa_lanes *v, const float *p)
{
    memcpy(v, p, sizeof *v);
}

/* a . b */
static inline float spa_dot(size_t n, const float *restrict a, const float *restrict b)
{
    spa_lanes acc = {0}, va, vb;
    size_t i = 0;
    for (; i + SPA_LANES <= n; i += SPA_LANES) {
        spa_lanes_load(&va, a + i);
        spa_lanes_load(&vb, b + i);
        acc += va * vb;
    }
    float tail = 0;
    for (; i < n; i++)
        tail += a[i] * b[i];
    return (((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))) + tail;
}

/* y [rows] += w [rows, cols] x [cols]. Eight rows at a time share the loads of x, hide the latency of the adds and have
 * their partial sums added up together, by three rounds of shuffles instead of eight times seven adds. */
static inline void spa_matvec_add(size_t rows, size_t cols, const float *restrict w, const float *restrict x,
                                  float *restrict y)
{
    size_t i = 0;
    for (; i + SPA_LANES <= rows; i += SPA_LANES) {
        const float *w_i = w + i * cols;
        spa_lanes acc[SPA_LANES] = {{0}}, vx, vw, pairs[4], fours[2], sum;
        float tail[SPA_LANES] = {0};
        size_t j = 0;
        for (; j + SPA_LANES <= cols; j += SPA_LANES) {
            spa_lanes_load(&vx, x + j);
            for (size_t l = 0; l < SPA_LANES; l++) {
                spa_lanes_load(&vw, w_i + l * cols + j);
                acc[l] += vw * vx;
            }
        }
        for (; j < cols; j++)
            for (size_t l = 0; l < SPA_LANES; l++)
                tail[l] += w_i[l * cols + j] * x[j];
        for (size_t l = 0; l < 4; l++)   /* rows 2l and 2l+1 in turn, four sums of two lanes each */
            pairs[l] = __builtin_shufflevector(acc[2 * l], acc[2 * l + 1], 0, 8, 2, 10, 4, 12, 6, 14)
                     + __builtin_shufflevector(acc[2 * l], acc[2 * l + 1], 1, 9, 3, 11, 5, 13, 7, 15);
        for (size_t l = 0; l < 2; l++)   /* rows 4l .. 4l+3 in turn, two sums of four lanes each */
            fours[l] = __builtin_shufflevector(pairs[2 * l], pairs[2 * l + 1], 0, 1, 8, 9, 4, 5, 12, 13)
                     + __builtin_shufflevector(pairs[2 * l], pairs[2 * l + 1], 2, 3, 10, 11, 6, 7, 14, 15);
        sum = __builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11)
            + __builtin_shufflevector(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
        for (size_t l = 0; l < SPA_LANES; l++)
            y[i + l] += sum[l] + tail[l];
    }
    for (; i < rows; i++)
        y[i] += spa_dot(cols, w + i * cols, x);
}

/* dx [cols] += transposed w [rows, cols] times dy [rows]. */
static inline void spa_matvec_t_add(size_t rows, size_t cols, const float *restrict w, const float *restrict dy,
                                    float *restrict dx)
{
    size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const float *w0 = w + i * cols, *w1 = w0 + cols, *w2 = w1 + cols, *w3 = w2 + cols;
        const float g0 = dy[i], g1 = dy[i + 1], g2 = dy[i + 2], g3 = dy[i + 3];
        for (size_t j = 0; j < cols; j++)
            dx[j] += (g0 * w0[j] + g1 * w1[j]) + (g2 * w2[j] + g3 * w3[j]);
    }
    for (; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            dx[j] += dy[i] * w[i * cols + j];
}

/* dw [rows, cols] += sum over n tokens of dy_t [rows] x_t [cols]; token t's vectors lie ldy and ldx floats after the one
 * before. Four tokens at a time, so that dw is read and written a quarter as often. */
static inline void spa_outer_add(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy,
                                 const float *restrict x, size_t ldx, float *restrict dw)
{
    size_t t = 0;
    for (; t + 4 <= n; t += 4, dy += 4 * ldy, x += 4 * ldx)
        for (size_t i = 0; i < rows; i++) {
            const float g0 = dy[i], g1 = dy[ldy + i], g2 = dy[2 * ldy + i], g3 = dy[3 * ldy + i];
            const float *x0 = x, *x1 = x + ldx, *x2 = x + 2 * ldx, *x3 = x + 3 * ldx;
            float *restrict out = dw + i * cols;
            for (size_t j = 0; j < cols; j++)
                out[j] += (g0 * x0[j] + g1 * x1[j]) + (g2 * x2[j] + g3 * x3[j]);
        }
    for (; t < n; t++, dy += ldy, x += ldx)
        for (size_t i = 0; i < rows; i++) {
            const float g = dy[i];
            float *restrict out = dw + i * cols;
            for (size_t j = 0; j < cols; j++)
                out[j] += g * x[j];
        }
}

/* y [len] += every one of n vectors x_t [len], ldx floats apart. */
static inline void spa_sum_add(size_t len, size_t n, const float *restrict x, size_t ldx, float *restrict y)
{
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < len; i++)
            y[i] += x[t * ldx + i];
}

/* y [n] = max(x, 0); a NaN stays one, so that it is noticed. */
static inline void spa_relu(size_t n, const float *restrict x, float *restrict y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] < 0 ? 0 : x[i];
}

#endif
