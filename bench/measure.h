/* measure.h - what the C programs here have in common: a clock of this thread's own time, numbers to work on, an order for medians. */
#ifndef SPA_BENCH_MEASURE_H
#define SPA_BENCH_MEASURE_H

#include "sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* For qsort of doubles. */
static inline int smaller(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* n numbers in [-1, 1), on a cache line of their own; the caller's to free. Without memory the program ends. */
static inline float *numbers(size_t n, uint64_t seed)
{
    float *x = aligned_alloc(64, (n * sizeof *x + 64) / 64 * 64);
    if (!x) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)(spa_noise64(seed, i, 0) >> 11) * 0x1p-52 - 1.0);
    return x;
}

#endif
