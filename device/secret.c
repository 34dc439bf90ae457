/* secret.c - in: this process, a path. out: no dumps, who may read it (secret.h). */
#define _DEFAULT_SOURCE
#include "secret.h"

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

bool spa_secret_is_open(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && (s.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0;
}
