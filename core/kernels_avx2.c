/* kernels_avx2.c - the loops for x86 with AVX2 and FMA (kernels.h): every product is added with one rounding. */
#include "kernels.h"

#ifdef SPA_KERNELS_X86
#include <immintrin.h>
#include <math.h>

#define SPA_TARGET __attribute__((target("avx2,fma")))
#define SPA_LANES 8
#define SPA_MULADD(acc, a, b) ((acc) = _mm256_fmadd_ps(a, b, acc))
#define SPA_ADD(y, g, x) fmaf(g, x, y)
#define SPA_NAME spa_kernels_avx2
#define SPA_NAME_TEXT "avx2"
#include "kernels_loops.h"
#else
typedef int spa_no_avx2;   /* a file in C is never empty */
#endif
