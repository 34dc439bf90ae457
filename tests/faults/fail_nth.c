/* fail_nth.c - makes one call fail: linked into a program of ours in place of what it calls (the linker's --wrap), so that every call in our
 * own code is counted, and none of the libraries'. In: two variables of the environment.
 *
 *   SPA_FAIL=CLASS:N     the Nth call of a class fails (from 1), and only that; CLASS: alloc, or file: everything that works on files
 *   SPA_FAIL_COUNT=FILE  gets a line at the end: how many calls of each class there were, "alloc N file N"
 *
 * With SPA_FAIL_LIBRARIES (a program without sanitizers) malloc, calloc and realloc of every library in the process count as well: they are
 * then defined here, around glibc's own. */
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ALLOC, FILES, CLASSES };
static atomic_ulong calls[CLASSES];
static unsigned long fail_at[CLASSES];
static const char *const words[CLASSES] = { "alloc", "file" };

/* Before main, and before the first call that a library makes then is counted. */
__attribute__((constructor)) static void begin(void)
{
    const char *what = getenv("SPA_FAIL");
    for (int c = 0; what && c < CLASSES; c++) {
        const size_t n = strlen(words[c]);
        if (strncmp(what, words[c], n) == 0 && what[n] == ':')
            fail_at[c] = strtoul(what + n + 1, NULL, 10);
    }
}

/* Shows where, once, with SPA_FAIL_WHERE: for people. */
static void show(void)
{
    void *stack[24];
    if (getenv("SPA_FAIL_WHERE"))
        backtrace_symbols_fd(stack, backtrace(stack, 24), STDERR_FILENO);
}

static bool fails(int class, int code)
{
    const bool now = atomic_fetch_add(&calls[class], 1) + 1 == fail_at[class];
    if (now) {
        show();
        errno = code;
    }
    return now;
}

/* RESULT NAME(PARAMETERS): fails with CODE and VALUE, or does what the real one does. */
#define WRAP(class, code, value, result, name, parameters, arguments) \
    result __real_##name parameters; \
    result __wrap_##name parameters; \
    result __wrap_##name parameters { return fails(class, code) ? (value) : __real_##name arguments; }

#ifdef SPA_FAIL_LIBRARIES
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n) { return fails(ALLOC, ENOMEM) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails(ALLOC, ENOMEM) ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return fails(ALLOC, ENOMEM) ? NULL : __libc_realloc(p, n); }
#else
WRAP(ALLOC, ENOMEM, NULL, void *, malloc, (size_t n), (n))
WRAP(ALLOC, ENOMEM, NULL, void *, calloc, (size_t n, size_t size), (n, size))
WRAP(ALLOC, ENOMEM, NULL, void *, realloc, (void *p, size_t n), (p, n))
WRAP(ALLOC, ENOMEM, NULL, char *, strdup, (const char *s), (s))
WRAP(ALLOC, ENOMEM, NULL, FILE *, open_memstream, (char **at, size_t *len), (at, len))
#endif
WRAP(FILES, EIO, -1, ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
WRAP(FILES, ENOSPC, -1, ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n))
WRAP(FILES, ENOSPC, -1, ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
WRAP(FILES, ENOSPC, -1, ssize_t, pwritev, (int fd, const struct iovec *all, int n, off_t at), (fd, all, n, at))
WRAP(FILES, EIO, -1, int, fsync, (int fd), (fd))
WRAP(FILES, EIO, -1, int, rename, (const char *from, const char *to), (from, to))
WRAP(FILES, EIO, -1, int, ftruncate, (int fd, off_t n), (fd, n))
WRAP(FILES, EIO, -1, int, fstat, (int fd, struct stat *st), (fd, st))
WRAP(FILES, EACCES, -1, int, mkdir, (const char *path, mode_t mode), (path, mode))
WRAP(FILES, EACCES, -1, int, mkstemp, (char *path), (path))
WRAP(FILES, EPERM, -1, int, fchmod, (int fd, mode_t mode), (fd, mode))
WRAP(FILES, EMFILE, NULL, FILE *, fopen, (const char *path, const char *how), (path, how))
WRAP(FILES, ENOMEM, MAP_FAILED, void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t from), (at, n, prot, flags, fd, from))

/* What is closed is closed, whatever it says. */
int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    const bool now = fails(FILES, EIO);
    const int rc = __real_close(fd);
    if (now)
        errno = EIO;
    return now ? -1 : rc;
}

int __real_fclose(FILE *f);
int __wrap_fclose(FILE *f);
int __wrap_fclose(FILE *f)
{
    const bool now = fails(FILES, ENOSPC);
    const int rc = __real_fclose(f);
    if (now)
        errno = ENOSPC;
    return now ? EOF : rc;
}

int __real_fflush(FILE *f);
int __wrap_fflush(FILE *f);
int __wrap_fflush(FILE *f)
{
    return fails(FILES, ENOSPC) ? EOF : __real_fflush(f);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list more;
        va_start(more, flags);
        mode = va_arg(more, mode_t);
        va_end(more);
    }
    return fails(FILES, EMFILE) ? -1 : __real_open(path, flags, mode);
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("SPA_FAIL_COUNT");
    FILE *f = path ? __real_fopen(path, "w") : NULL;
    if (!f)
        return;
    fprintf(f, "alloc %lu file %lu\n", atomic_load(&calls[ALLOC]), atomic_load(&calls[FILES]));
    __real_fclose(f);
}
