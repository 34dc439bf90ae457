/* blas.c - in: the machine's OpenBLAS. out: the functions of it that a loss needs (blas.h). */
#define _GNU_SOURCE
#include "blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

struct spa_blas spa_blas;

/* POSIX lets a function's address come as a data pointer; C does not let it be cast. */
static bool find(void *from, const char *name, void *to)
{
    void *found = dlsym(from, name);
    memcpy(to, &found, sizeof found);
    return found != NULL;
}

bool spa_blas_load(char *why, size_t why_len)
{
    static const char *const names[] = { "libopenblas.so.0", "libopenblas.so" };
    static bool loaded;
    void *from = NULL;
    for (size_t i = 0; !loaded && !from && i < sizeof names / sizeof *names; i++)
        from = dlopen(names[i], RTLD_NOW);
    loaded = loaded || (from && find(from, "cblas_sgemm", &spa_blas.sgemm) && find(from, "cblas_saxpy", &spa_blas.saxpy) &&
                        find(from, "cblas_sscal", &spa_blas.sscal) && find(from, "cblas_sdot", &spa_blas.sdot) &&
                        find(from, "openblas_set_num_threads", &spa_blas.set_num_threads));
    if (!loaded)
        snprintf(why, why_len, "libopenblas.so.0 is missing on this machine: install OpenBLAS, or have the cloud compute losses with --head cloud");
    return loaded;
}
