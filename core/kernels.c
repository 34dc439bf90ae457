/* kernels.c - chooses the loops for this processor. In: a call of kernels.h; out: the same call of one of the tables. */
#include "kernels.h"

#include <stdbool.h>

#ifdef SPA_KERNELS_X86
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

const struct spa_kernels *spa_kernels(size_t i)
{
#ifdef SPA_KERNELS_X86
    if (has_avx512() && i-- == 0)
        return &spa_kernels_avx512;
    if (has_avx2() && i-- == 0)
        return &spa_kernels_avx2;
#endif
#ifdef SPA_KERNELS_NEON
    if (i-- == 0)
        return &spa_kernels_neon;
#endif
    return i == 0 ? &spa_kernels_plain : NULL;
}

float spa_dot(size_t n, const float *restrict a, const float *restrict b)
{
    return spa_kernels(0)->dot(n, a, b);
}

void spa_matvec_add(size_t rows, size_t cols, const float *restrict w, const float *restrict x, float *restrict y)
{
    spa_kernels(0)->matvec_add(rows, cols, w, x, y);
}

void spa_matvec_t_add(size_t rows, size_t cols, const float *restrict w, const float *restrict dy, float *restrict dx)
{
    spa_kernels(0)->matvec_t_add(rows, cols, w, dy, dx);
}

void spa_outer_add(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy, const float *restrict x, size_t ldx,
                   float *restrict dw)
{
    spa_kernels(0)->outer_add(rows, cols, n, dy, ldy, x, ldx, dw);
}

/* The next two read and write each number once: memory decides, whatever the processor has. */
void spa_sum_add(size_t len, size_t n, const float *restrict x, size_t ldx, float *restrict y)
{
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < len; i++)
            y[i] += x[t * ldx + i];
}

void spa_relu(size_t n, const float *restrict x, float *restrict y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] < 0 ? 0 : x[i];
}
