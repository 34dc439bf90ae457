/* store.c - whole files in and out (store.h). In: a path. Out: its bytes, or bytes on the disk; a sentence when not. */
#define _XOPEN_SOURCE 700
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the user can do about an errno. */
static const char *remedy(int code)
{
    switch (code) {
    case ENOENT:
    case ENOTDIR:      return "check the path";
    case EACCES:
    case EPERM:        return "check who owns it and its permissions";
    case ENOSPC:
    case EDQUOT:       return "free some space there and run it again";
    case EFBIG:        return "a limit on file sizes is set ('ulimit -f'): raise it";
    case EROFS:        return "choose a folder that is not mounted read-only";
    case EISDIR:       return "name a file, not a folder";
    case ENAMETOOLONG: return "choose a shorter name";
    case EMFILE:
    case ENFILE:       return "too many files are open: raise 'ulimit -n'";
    default:           return "try again, and check the disk if it stays so";
    }
}

int spa_store_complain(char *why, size_t why_len, const char *what, const char *path, int code)
{
    char text[128] = "unknown error";
    strerror_r(code, text, sizeof text);
    snprintf(why, why_len, "cannot %s '%s': %s; %s", what, path, text, remedy(code));
    return -1;
}

int spa_store_read(const char *path, size_t max_bytes, uint8_t **bytes, size_t *len, char *why, size_t why_len)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   /* a FIFO must not hang us before fstat tells it */
    if (fd < 0)
        return spa_store_complain(why, why_len, "read", path, errno);
    int rc = -1;
    uint8_t *block = NULL;
    if (fstat(fd, &st) != 0) {
        spa_store_complain(why, why_len, "read", path, errno);
    } else if (!S_ISREG(st.st_mode)) {
        snprintf(why, why_len, "cannot read '%s': it is %s; name a file", path, S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
    } else if (st.st_size == 0) {
        snprintf(why, why_len, "'%s' is empty; fetch or make it again", path);
    } else if ((uint64_t)st.st_size > max_bytes) {
        snprintf(why, why_len, "'%s' has %lld bytes, and at most %zu are read; is it the right file?", path,
                 (long long)st.st_size, max_bytes);
    } else if (!(block = malloc((size_t)st.st_size))) {
        snprintf(why, why_len, "there is no memory for the %lld bytes of '%s'; close other programs", (long long)st.st_size, path);
    } else {
        size_t want = (size_t)st.st_size, got = 0;
        ssize_t n = 1;
        while (got < want && ((n = read(fd, block + got, want - got)) > 0 || (n < 0 && errno == EINTR)))
            got += n > 0 ? (size_t)n : 0;
        if (n < 0)
            spa_store_complain(why, why_len, "read", path, errno);
        else if (got < want)
            snprintf(why, why_len, "'%s' became shorter while it was read; wait until it is written and run it again", path);
        else
            rc = 0;
    }
    close(fd);
    if (rc != 0) {
        free(block);
        return -1;
    }
    *bytes = block;
    *len = (size_t)st.st_size;
    return 0;
}

/* ---- replacing ---- */

/* Where the bytes really go: the target of a link, else path itself. Refuses what is there and is no regular file. */
static int resolve(const char *path, char real[PATH_MAX], struct stat *st, bool *exists, char *why, size_t why_len)
{
    *exists = stat(path, st) == 0;
    if (*exists && !S_ISREG(st->st_mode)) {
        snprintf(why, why_len, "cannot write '%s': it is %s; name a file", path, S_ISDIR(st->st_mode) ? "a folder" : "not a regular file");
        return -1;
    }
    if (*exists && realpath(path, real))
        return 0;
    if ((size_t)snprintf(real, PATH_MAX, "%s", path) >= PATH_MAX)
        return spa_store_complain(why, why_len, "write", path, ENAMETOOLONG);
    return 0;
}

/* A new file beside `real`, named after it. Its descriptor, or -1 with errno. */
static int open_beside(const char *real, char temporary[PATH_MAX], mode_t mode)
{
    for (int i = 0; i < 1000; i++) {
        if (snprintf(temporary, PATH_MAX, "%s.%ld-%d.tmp", real, (long)getpid(), i) >= PATH_MAX) {
            errno = ENAMETOOLONG;
            return -1;
        }
        int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

static int write_all(int fd, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

/* The rename is on the disk only when its folder is. Some file systems cannot sync a folder: then that is all there is. */
void spa_store_sync_folder(const char *real)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(real, '/');
    if (!slash)
        strcpy(folder, ".");
    else
        snprintf(folder, sizeof folder, "%.*s", slash == real ? 1 : (int)(slash - real), real);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

int spa_store_replace(const char *path, const void *bytes, size_t len, bool only_owner, char *why, size_t why_len)
{
    char real[PATH_MAX], temporary[PATH_MAX];
    struct stat st;
    bool exists;
    if (resolve(path, real, &st, &exists, why, why_len) != 0)
        return -1;
    int fd = open_beside(real, temporary, only_owner ? 0600 : 0666);
    if (fd < 0)
        return spa_store_complain(why, why_len, "write beside", path, errno);
    int failed = 0;
    if (exists && !only_owner && fchmod(fd, st.st_mode & 0777) != 0)
        failed = errno;
    if (!failed && write_all(fd, bytes, len) != 0)
        failed = errno;
    if (!failed && fsync(fd) != 0)
        failed = errno;
    if (close(fd) != 0 && !failed)
        failed = errno;
    if (!failed && rename(temporary, real) != 0)
        failed = errno;
    if (failed) {
        unlink(temporary);
        return spa_store_complain(why, why_len, "write", path, failed);
    }
    spa_store_sync_folder(real);
    return 0;
}

int spa_store_check_writable(const char *path, char *why, size_t why_len)
{
    char real[PATH_MAX], temporary[PATH_MAX];
    struct stat st;
    bool exists;
    if (resolve(path, real, &st, &exists, why, why_len) != 0)
        return -1;
    int fd = open_beside(real, temporary, 0600);
    if (fd < 0)
        return spa_store_complain(why, why_len, "write beside", path, errno);
    close(fd);
    unlink(temporary);
    return 0;
}

/* ---- the cache folder ---- */

static int make_folders(const char *path, const char *option, char *why, size_t why_len)
{
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *c = part + 1;; c++) {
        if (*c != '/' && *c != '\0')
            continue;
        bool last = *c == '\0';
        *c = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST) {
            char text[128] = "unknown error";
            strerror_r(errno, text, sizeof text);
            snprintf(why, why_len, "cannot make the cache folder %s: %s; %s names another", part, text, option);
            return -1;
        }
        if (last)
            return 0;
        *c = '/';
    }
}

int spa_store_cache_folder(const char *named, const char *option, char *out, size_t out_len, char *why, size_t why_len)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;
    if (named)
        n = snprintf(out, out_len, "%s", named);
    else if (xdg && xdg[0] == '/')
        n = snprintf(out, out_len, "%s/spa", xdg);
    else if (home && home[0] == '/')
        n = snprintf(out, out_len, "%s/.cache/spa", home);
    else
        n = snprintf(out, out_len, "/tmp/spa-cache-%ld", (long)getuid());
    if (n < 1 || (size_t)n >= out_len) {
        snprintf(why, why_len, "the cache folder's name is %s", n < 1 ? "empty" : "too long");
        return -1;
    }
    return make_folders(out, option, why, why_len);
}

/* ---- hashes ---- */

void spa_sha256(const void *bytes, size_t len, uint8_t hash[SPA_SHA256_BYTES])
{
    if (!EVP_Digest(bytes, len, hash, NULL, EVP_sha256(), NULL))
        abort();   /* only without memory, or in an OpenSSL that lacks SHA-256: a hash must never be wrong in silence */
}

void spa_sha256_hex(const uint8_t hash[SPA_SHA256_BYTES], char hex[SPA_SHA256_HEX])
{
    for (size_t i = 0; i < SPA_SHA256_BYTES; i++)
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
}
