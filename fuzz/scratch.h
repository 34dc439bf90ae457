/* scratch.h - files for what reads files by name: a folder in memory that goes with the process. */
#ifndef SPA_FUZZ_SCRATCH_H
#define SPA_FUZZ_SCRATCH_H

#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch[64];
static char scratch_files[4][PATH_MAX];
static unsigned scratch_n;

static void scratch_remove(void)
{
    for (unsigned i = 0; i < scratch_n; i++)
        unlink(scratch_files[i]);
    rmdir(scratch);
}

/* The path of a file in the folder, both made at the first call. */
static const char *scratch_path(const char *name)
{
    if (!scratch[0]) {
        snprintf(scratch, sizeof scratch, "%s/spa-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        if (!mkdtemp(scratch))
            abort();
        atexit(scratch_remove);
    }
    if (scratch_n == sizeof scratch_files / sizeof *scratch_files)
        abort();
    snprintf(scratch_files[scratch_n], PATH_MAX, "%s/%s", scratch, name);
    return scratch_files[scratch_n++];
}

static void scratch_write(const char *path, const void *bytes, size_t len)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, bytes, len) != (ssize_t)len)
        abort();
    close(fd);
}

#endif
