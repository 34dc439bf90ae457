/* head_cache.c - where the rows of an LM head on this machine come from: a file named by their hash, or the cloud once (head.h). In: WELCOME's
 * description of the head. Out: a mapped file whose hash was checked. A file that is not whole never has the final name. */
#define _POSIX_C_SOURCE 200809L

#include "blob.h"
#include "head.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct writer {
    int fd;
    const char *path;
};

static int write_piece(void *user, const uint8_t *bytes, size_t len, char *why, size_t why_len)
{
    const struct writer *w = user;
    while (len > 0) {
        ssize_t n = write(w->fd, bytes, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            snprintf(why, why_len, "%s: %s; --cache-dir names another folder", w->path, strerror(errno));
            return -1;
        }
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Maps path when it is there with the right length and hash. */
static bool map_cached(struct spa_lm_head *h, const char *path, const spa_Welcome *w)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return false;
    void *at = MAP_FAILED;
    if (fstat(fd, &st) == 0 && st.st_size > 0 && (uint64_t)st.st_size == w->head_bytes)
        at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return false;
    uint8_t hash[SPA_HASH_BYTES];
    spa_sha256(at, (size_t)st.st_size, hash);
    if (memcmp(hash, w->head_hash.bytes, SPA_HASH_BYTES) != 0) {
        munmap(at, (size_t)st.st_size);
        return false;
    }
    h->bytes = at;
    h->len = (size_t)st.st_size;
    h->mapped = true;
    return true;
}

static int fetch_to(struct spa_link *l, const char *path, const spa_Welcome *w,
                    void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len)
{
    char temporary[PATH_MAX + 8];
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    struct writer writer = { mkstemp(temporary), temporary };
    if (writer.fd < 0) {
        snprintf(why, why_len, "%s: %s; --cache-dir names another folder", temporary, strerror(errno));
        return -1;
    }
    const struct spa_blob_sink sink = { &writer, write_piece, progress, user };
    int rc = spa_blob_fetch(l, spa_BlobKind_BLOB_HEAD, w->head_hash.bytes, w->head_bytes, &sink, why, why_len);
    if (rc == 0 && fsync(writer.fd) != 0) {
        snprintf(why, why_len, "%s: %s", temporary, strerror(errno));
        rc = -1;
    }
    if (close(writer.fd) != 0 && rc == 0) {
        snprintf(why, why_len, "%s: %s", temporary, strerror(errno));
        rc = -1;
    }
    if (rc == 0 && rename(temporary, path) != 0) {
        snprintf(why, why_len, "%s: %s", path, strerror(errno));
        rc = -1;
    }
    if (rc != 0)
        unlink(temporary);
    return rc;
}

/* Where the head that w describes is or will be. */
static int path_of(const spa_Welcome *w, const char *cache_dir, char path[PATH_MAX], char *why, size_t why_len)
{
    char folder[PATH_MAX - 80];
    if (w->head_hash.size != SPA_HASH_BYTES || w->head_bytes == 0 || w->head_bytes > SIZE_MAX / 2) {
        snprintf(why, why_len, "the cloud does not hand out its model's LM head, so nothing can be trained or measured with it");
        return -1;
    }
    if (spa_store_cache_folder(cache_dir, "--cache-dir", folder, sizeof folder, why, why_len) != 0)
        return -1;
    int n = snprintf(path, PATH_MAX, "%s/head-", folder);
    for (int i = 0; i < SPA_HASH_BYTES; i++)
        n += snprintf(path + n, (size_t)(PATH_MAX - n), "%02x", w->head_hash.bytes[i]);
    return 0;
}

/* h becomes the head in a mapped file. */
static int view_file(struct spa_lm_head *h, const spa_Welcome *w, struct spa_lm_head *file, char *why, size_t why_len)
{
    if (spa_lm_head_view(h, w->d, w->n_vocab, w->head_type, file->bytes, file->len, why, why_len) != 0) {
        spa_lm_head_close(file);
        return -1;
    }
    h->mapped = true;
    h->scale = w->logit_scale;
    h->softcap = w->softcap;
    return 0;
}

int spa_lm_head_open(struct spa_lm_head *h, struct spa_link *l, const char *cache_dir,
                     void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len)
{
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    char path[PATH_MAX];
    struct spa_lm_head file = {0};
    memset(h, 0, sizeof *h);
    if (path_of(w, cache_dir, path, why, why_len) != 0)
        return -1;
    if (!map_cached(&file, path, w)) {
        /* Before anything is written: a length that cannot be may be one that fills the disk. */
        if (spa_lm_head_view(h, w->d, w->n_vocab, w->head_type, NULL, (size_t)w->head_bytes, why, why_len) != 0)
            return -1;
        if (fetch_to(l, path, w, progress, user, why, why_len) != 0)
            return -1;
        if (!map_cached(&file, path, w)) {
            snprintf(why, why_len, "%s is not what was just written to it", path);
            return -1;
        }
    }
    return view_file(h, w, &file, why, why_len);
}

int spa_lm_head_open_cached(struct spa_lm_head *h, const spa_Welcome *w, const char *cache_dir, char *why, size_t why_len)
{
    char path[PATH_MAX];
    struct spa_lm_head file = {0};
    memset(h, 0, sizeof *h);
    if (path_of(w, cache_dir, path, why, why_len) != 0)
        return -1;
    if (!map_cached(&file, path, w))
        return 0;
    return view_file(h, w, &file, why, why_len) == 0 ? 1 : -1;
}

void spa_lm_head_close(struct spa_lm_head *h)
{
    spa_lm_head_release(h);
    if (h->mapped)
        munmap((void *)(uintptr_t)h->bytes, h->len);
    spa_head_cloud_free(h->cloud);
    memset(h, 0, sizeof *h);
}
