/* blas.h - OpenBLAS, loaded when the first loss is computed: it and what it brings are megabytes of memory that a device which only chats
 * should not pay. */
#ifndef SPA_BLAS_H
#define SPA_BLAS_H

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>

extern struct spa_blas {     /* cblas_*, once it is loaded */
    __typeof__(&cblas_sgemm) sgemm;
    __typeof__(&cblas_saxpy) saxpy;
    __typeof__(&cblas_sscal) sscal;
    __typeof__(&cblas_sdot)  sdot;
    __typeof__(&openblas_set_num_threads) set_num_threads;
} spa_blas;

/* Any number of times, from one thread at a time. false: it is not on this machine, with a sentence. */
bool spa_blas_load(char *why, size_t why_len);

#endif
