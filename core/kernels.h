/* kernels.h - the few loops in which core spends its time: products of small row-major matrices with vectors.
 *
 * Every loop is there once a kind of processor, in a table. Which table these functions use is looked up at each call, from what
 * the processor says and what this file was compiled for:
 *
 *   avx512   x86 with AVX-512 F      kernels_avx512.c    sixteen partial sums
 *   avx2     x86 with AVX2 and FMA   kernels_avx2.c      eight
 *   neon     ARM                     kernels_neon.c      eight; compiled in where NEON is a matter of course: always on aarch64,
 *                                                        on 32 bits with -mfpu=neon, since only the system knows there
 *   plain    everything else         kernels_plain.c     eight, as a vector type that the compiler lowers to what the target has,
 *                                                        WASM's simd128 included: left to themselves compilers are five times slower
 *
 * Why a look at each call: core has no globals, so nobody could keep the answer, and a table as an argument would go through every
 * function of core. The look is a load and a test of what the compiler's library found before main (__builtin_cpu_supports), a
 * nanosecond beside 50 and more. Not ifuncs (target_clones): only glibc's loader has them, and gcc lowers vector types before
 * it makes the clones. Everything is compiled for the processor by function, not by file, so no flags are needed.
 *
 * The tables agree within 1e-5 of the sum of the products' sizes, not bit by bit: they add in another order, and FMA rounds once.
 * Within a table the order is fixed, and the compiler may not change it: the same program on the same machine gives the same bits,
 * and a row of a matrix gives the same bits whether spa_dot or spa_matvec_add asks, wherever in the matrix it lies.
 *
 * Rules for all: pointers need no alignment. What is added to (y, dx, dw) must not overlap what is read. Lengths may be 0. */
#ifndef SPA_KERNELS_H
#define SPA_KERNELS_H

#include <stddef.h>

/* a . b */
float spa_dot(size_t n, const float *restrict a, const float *restrict b);

/* y [rows] += w [rows, cols] x [cols]. */
void spa_matvec_add(size_t rows, size_t cols, const float *restrict w, const float *restrict x, float *restrict y);

/* dx [cols] += transposed w [rows, cols] times dy [rows]. */
void spa_matvec_t_add(size_t rows, size_t cols, const float *restrict w, const float *restrict dy, float *restrict dx);

/* dw [rows, cols] += sum over n tokens of dy_t [rows] x_t [cols]; token t's vectors lie ldy and ldx floats after the one before. */
void spa_outer_add(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy, const float *restrict x, size_t ldx,
                   float *restrict dw);

/* y [len] += every one of n vectors x_t [len], ldx floats apart. */
void spa_sum_add(size_t len, size_t n, const float *restrict x, size_t ldx, float *restrict y);

/* y [n] = max(x, 0); a NaN stays one, so that it is noticed. */
void spa_relu(size_t n, const float *restrict x, float *restrict y);

/* ---- the tables themselves, for tests and benchmarks ---- */

struct spa_kernels {
    const char *name;
    float (*dot)(size_t n, const float *restrict a, const float *restrict b);
    void (*matvec_add)(size_t rows, size_t cols, const float *restrict w, const float *restrict x, float *restrict y);
    void (*matvec_t_add)(size_t rows, size_t cols, const float *restrict w, const float *restrict dy, float *restrict dx);
    void (*outer_add)(size_t rows, size_t cols, size_t n, const float *restrict dy, size_t ldy, const float *restrict x, size_t ldx,
                      float *restrict dw);
};

/* Those that this processor can run, the best first, plain last; NULL from there on. */
const struct spa_kernels *spa_kernels(size_t i);

/* Each lies in its own file, and only where the compiler's target has it. Call them only by way of spa_kernels. */
extern const struct spa_kernels spa_kernels_plain, spa_kernels_avx2, spa_kernels_avx512, spa_kernels_neon;

#if defined(__x86_64__) || defined(__i386__)
#define SPA_KERNELS_X86
#elif defined(__ARM_NEON)
#define SPA_KERNELS_NEON
#endif

#endif
