/* kernels_plain.c - the loops for any processor (kernels.h): products and sums are rounded one by one, in every lane as in plain C. */
#define SPA_TARGET
#define SPA_LANES 8
#define SPA_MULADD(acc, a, b) ((acc) += (a) * (b))
#define SPA_ADD(y, g, x) ((y) + (g) * (x))
#define SPA_NAME spa_kernels_plain
#define SPA_NAME_TEXT "plain"
#include "kernels_loops.h"
