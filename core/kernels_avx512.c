/* kernels_avx512.c - the loops for x86 with AVX-512 F (kernels.h): sixteen partial sums, every product added with one rounding. */
#include "kernels.h"

#ifdef SPA_KERNELS_X86
#include <immintrin.h>
#include <math.h>

#define SPA_TARGET __attribute__((target("avx512f,avx2,fma")))
#define SPA_LANES 16
#define SPA_MULADD(acc, a, b) ((acc) = _mm512_fmadd_ps(a, b, acc))
#define SPA_ADD(y, g, x) fmaf(g, x, y)
#define SPA_LOAD_N(v, p, n) ((v) = _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), p))
#define SPA_NAME spa_kernels_avx512
#define SPA_NAME_TEXT "avx512"
#include "kernels_loops.h"
#else
typedef int spa_no_avx512;   /* a file in C is never empty */
#endif
