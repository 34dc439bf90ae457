/* kernels_neon.c - the loops for ARM with NEON (kernels.h), 64 and 32 bits. By hand, since on 32 bits gcc leaves floats alone: NEON
 * there takes numbers below 2^-126 as 0. Sums are eight lanes in two vectors, folded, then pairs of neighbours; what is left over
 * at the end of a row is one sum more, added last. */
#include "kernels.h"

#ifdef SPA_KERNELS_NEON
#include <arm_neon.h>

#ifdef __ARM_FEATURE_FMA
#include <math.h>
#define MULADD(acc, a, b) vfmaq_f32(acc, a, b)
#define ADD(y, g, x) fmaf(g, x, y)
#else
#define MULADD(acc, a, b) vmlaq_f32(acc, a, b)
#define ADD(y, g, x) ((y) + (g) * (x))
#endif

/* [v0 + v1, v2 + v3] */
static float32x2_t neighbours(float32x4_t v)
{
    return vpadd_f32(vget_low_f32(v), vget_high_f32(v));
}

static float dot(size_t n, const float *restrict a, const float *restrict b)
{
    float32x4_t low = vdupq_n_f32(0), high = low;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        low = MULADD(low, vld1q_f32(a + i), vld1q_f32(b + i));
        high = MULADD(high, vld1q_f32(a + i + 4), vld1q_f32(b + i + 4));
    }
    float tail = 0;
    for (; i < n; i++)
        tail = ADD(tail, a[i], b[i]);
    const float32x2_t sum = neighbours(vaddq_f32(low, high));
    return vget_lane_f32(vpadd_f32(sum, sum), 0) + tail;
}

/* Four rows at a time share the loads of x and hide the latency of the adds; eight sums and x fit the sixteen registers of 32 bits. */
static void matvec_add(size_t rows, size_t cols, const float *restrict w, const float *restrict x, float *restrict y)
{
    size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const float *w_i = w + i * cols;
        float32x4_t low[4], high[4];
        float tail[4] = {0};
        size_t j = 0;
        for (size_t l = 0; l < 4; l++)
            low[l] = high[l] = vdupq_n_f32(0);
        for (; j + 8 <= cols; j += 8) {
            const float32x4_t x_low = vld1q_f32(x + j), x_high = vld1q_f32(x + j + 4);
            for (size_t l = 0; l < 4; l++) {
                low[l] = MULADD(low[l], vld1q_f32(w_i + l * cols + j), x_low);
                high[l] = MULADD(high[l], vld1q_f32(w_i + l * cols + j + 4), x_high);
            }
        }
        for (; j < cols; j++)
            for (size_t l = 0; l < 4; l++)
                tail[l] = ADD(tail[l], w_i[l * cols + j], x[j]);
        float32x2_t sum[4];
        for (size_t l = 0; l < 4; l++)
            sum[l] = neighbours(vaddq_f32(low[l], high[l]));
        const float32x4_t rest = vaddq_f32(vcombine_f32(vpadd_f32(sum[0], sum[1]), vpadd_f32(sum[2], sum[3])), vld1q_f32(tail));
        vst1q_f32(y + i, vaddq_f32(vld1q_f32(y + i), rest));
    }
    for (; i < rows; i++)
        y[i] += dot(cols, w + i * cols, x);
}

/* y [n] += g0 a + g1 b + g2 c + g3 e */
static void add_four(size_t n, const float g[4], const float *restrict a, const float *restrict b, const float *restrict c,
                     const float *restrict e, float *restrict y)
{
    const float32x4_t g0 = vdupq_n_f32(g[0]), g1 = vdupq_n_f32(g[1]), g2 = vdupq_n_f32(g[2]), g3 = vdupq_n_f32(g[3]);
    size_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float32x4_t first = MULADD(vmulq_f32(g0, vld1q_f32(a + j)), g1, vld1q_f32(b + j));
        const float32x4_t second = MULADD(vmulq_f32(g2, vld1q_f32(c + j)), g3, vld1q_f32(e + j));
        vst1q_f32(y + j, vaddq_f32(vld1q_f32(y + j), vaddq_f32(first, second)));
    }
    for (; j < n; j++)
        y[j] += ADD(g[0] * a[j], g[1], b[j]) + ADD(g[2] * c[j], g[3], e[j]);
}

/* y [n] += g a */
static void add_one(size_t n, float g, const float *restrict a, float *restrict y)
{
    const float32x4_t all = vdupq_n_f32(g);
    size_t j = 0;
    for (; j + 4 <= n; j += 4)
        vst1q_f32(y + j, MULADD(vld1q_f32(y + j), all, vld1q_f32(a + j)));
    for (; j < n; j++)
        y[j] = ADD(y[j], g, a[j]);
}

static void matvec_t_add(size_t rows, size_t cols, const float *restrict w, const float *restrict dy, float *restrict dx)
{
    size_t i = 0;
    for (; i + 4 <= rows; i += 4, w += 4 * cols)
        add_four(cols, dy + i, w, w + cols, w + 2 * cols, w + 3 * cols, dx);
    for (; i < rows; i++, w += cols)
        add_one(cols, dy[i], w, dx);
}

static void outer_add(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy, const float *restrict x, size_t ldx,
                      float *restrict dw)
{
    size_t t = 0;
    for (; t + 4 <= n; t += 4, dy += 4 * ldy, x += 4 * ldx)
        for (size_t i = 0; i < rows; i++) {
            const float g[4] = { dy[i], dy[ldy + i], dy[2 * ldy + i], dy[3 * ldy + i] };
            add_four(cols, g, x, x + ldx, x + 2 * ldx, x + 3 * ldx, dw + i * cols);
        }
    for (; t < n; t++, dy += ldy, x += ldx)
        for (size_t i = 0; i < rows; i++)
            add_one(cols, dy[i], x, dw + i * cols);
}

const struct spa_kernels spa_kernels_neon = { "neon", dot, matvec_add, matvec_t_add, outer_add };
#else
typedef int spa_no_neon;   /* a file in C is never empty */
#endif
