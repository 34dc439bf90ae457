/* secret.c - in: this process, a path. out: no dumps, who may read it (secret.h). */
#define _DEFAULT_SOURCE
#include "secret.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

void spa_secret_no_core_dumps(void)
{
    const struct rlimit none = { 0, 0 };
    setrlimit(RLIMIT_CORE, &none);
#ifndef __SANITIZE_ADDRESS__   /* its search for leaks looks at the process as a debugger does */
    prctl(PR_SET_DUMPABLE, 0);   /* a pipe as core pattern does not ask for the limit */
#endif
}

void spa_secret_free(void *p, size_t n)
{
    if (p)
        explicit_bzero(p, n);
    free(p);
}

void *spa_secret_grow(void *p, size_t had, size_t wanted)
{
    void *more = malloc(wanted);
    if (!more)
        return NULL;
    if (p)
        memcpy(more, p, had < wanted ? had : wanted);
    spa_secret_free(p, had);
    return more;
}

bool spa_secret_is_open(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && (s.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0;
}
