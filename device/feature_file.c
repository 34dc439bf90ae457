/* feature_file.c - a feature file on the disk (feature_file.h). In: records. Out: records, and their bulks in a mapping.
 *
 * IMPLEMENTATION NOTES
 * PATH is never written to. PATH.part begins as a copy of it (or as a new header), grows by whole records and takes PATH's name when
 * its footer is on the disk. A torn record at the end of PATH.part fails its sum and is overwritten by the next one. Files are read through
 * mappings, but pages that the sums have seen are given back, so that checking a large file does not make the process large. */
#define _GNU_SOURCE   /* flock, madvise, pwritev */
#include "feature_file.h"

#include "feature_source.h"
#include "store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct spa_feature_file {
    bool    named;
    char    path[PATH_MAX], part[PATH_MAX + 8];
    int     fd;                /* of PATH.part, locked; or of the file without a name */
    struct spa_feature_source old, unfinished;
    struct spa_feature_source *in_use;     /* one of them, or &fresh */
    struct spa_feature_source fresh;       /* of start: header, and a map after finish */
    uint8_t *header;           /* fresh's */
    bool    in_part;           /* the records in use lie in PATH.part */
    uint64_t len;              /* of PATH.part up to its last record */
    uint64_t added;
    struct spa_feature_digest *digest;
    bool    finished;
};

/* ---- opening ---- */

/* PATH.part, open and locked. The one that was locked must still be the one with the name: its last owner may have renamed it. */
static int lock_part(struct spa_feature_file *f, char *why, size_t why_len)
{
    for (int tries = 0; tries < 100; tries++) {
        struct stat mine, named;
        f->fd = open(f->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (f->fd < 0)
            return spa_store_complain(why, why_len, "write", f->part, errno);
        if (flock(f->fd, LOCK_EX | LOCK_NB) != 0) {
            snprintf(why, why_len, "another run is writing '%s'; wait for it, or name another file with --features", f->path);
            break;
        }
        if (fstat(f->fd, &mine) == 0 && !S_ISREG(mine.st_mode)) {
            snprintf(why, why_len, "'%s' is no regular file; move it away", f->part);
            break;
        }
        if (stat(f->part, &named) == 0 && named.st_dev == mine.st_dev && named.st_ino == mine.st_ino) {
            (void)fchmod(f->fd, 0600);   /* one that somebody else has made may be readable by others */
            return 0;
        }
        close(f->fd);
        f->fd = -1;
    }
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
    return -1;
}

static int open_named(struct spa_feature_file *f, const char *path, char *why, size_t why_len)
{
    struct stat st;
    const bool exists = stat(path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode)) {
        snprintf(why, why_len, "'%s' is %s; name a file with --features", path, S_ISDIR(st.st_mode) ? "a folder" : "no regular file");
        return -1;
    }
    if (!(exists && realpath(path, f->path)) && (size_t)snprintf(f->path, sizeof f->path, "%s", path) >= sizeof f->path)
        return spa_store_complain(why, why_len, "write", path, ENAMETOOLONG);
    snprintf(f->part, sizeof f->part, "%s.part", f->path);
    if (lock_part(f, why, why_len) != 0)
        return -1;
    const int fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno != ENOENT)
        return spa_store_complain(why, why_len, "read", f->path, errno);
    int rc = fd < 0 ? 0 : spa_feature_source_read(&f->old, fd, f->path, why, why_len);
    if (fd >= 0)
        close(fd);
    return rc == 0 ? spa_feature_source_read(&f->unfinished, f->fd, f->part, why, why_len) : -1;
}

static int open_nameless(struct spa_feature_file *f, const char *folder, char *why, size_t why_len)
{
    if ((size_t)snprintf(f->part, sizeof f->part, "%s/spa-features-XXXXXX", folder) >= sizeof f->part)
        return spa_store_complain(why, why_len, "write into", folder, ENAMETOOLONG);
    f->fd = mkstemp(f->part);
    if (f->fd < 0)
        return spa_store_complain(why, why_len, "make a file in", folder, errno);
    unlink(f->part);
    snprintf(f->part, sizeof f->part, "%.*s/ (the states of this run)", PATH_MAX - 40, folder);   /* for sentences */
    return 0;
}

int spa_feature_file_open(struct spa_feature_file **out, const char *path, const char *folder, char *why, size_t why_len)
{
    struct spa_feature_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    f->fd = -1;
    f->named = path != NULL;
    if ((path ? open_named(f, path, why, why_len) : open_nameless(f, folder, why, why_len)) != 0) {
        spa_feature_file_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

int spa_feature_file_forget(struct spa_feature_file *f, char *why, size_t why_len)
{
    assert(!f->in_use || f->finished);
    if (f->named && unlink(f->path) != 0 && errno != ENOENT)
        return spa_store_complain(why, why_len, "delete", f->path, errno);
    if (f->in_use)
        return 0;
    spa_feature_source_free(&f->old);
    spa_feature_source_free(&f->unfinished);
    if (f->named && ftruncate(f->fd, 0) != 0)
        return spa_store_complain(why, why_len, "empty", f->part, errno);
    return 0;
}

void spa_feature_file_close(struct spa_feature_file *f)
{
    if (!f)
        return;
    /* Kept: what an unfinished run, this one or one before it, would have to ask for again. */
    const bool kept = !f->finished && (f->in_part ? f->in_use->index.n > 0 : f->unfinished.index.n > 0);
    if (f->fd >= 0 && f->named && !(f->finished && f->in_part)) {
        if (!kept)
            unlink(f->part);
        else if (f->in_part)
            (void)!ftruncate(f->fd, (off_t)f->len);   /* if not, the next run finds the torn end by its sum */
    }
    if (f->fd >= 0)
        close(f->fd);
    spa_feature_source_free(&f->old);
    spa_feature_source_free(&f->unfinished);
    spa_feature_source_free(&f->fresh);
    spa_feature_digest_free(f->digest);
    free(f->header);
    free(f);
}

/* ---- is it of use? ---- */

const spa_Welcome *spa_feature_file_model(const struct spa_feature_file *f)
{
    const struct spa_feature_source *s = f->old.exists ? &f->old : &f->unfinished;
    return (s == &f->old ? s->scan.verdict == SPA_FEATURE_WHOLE : spa_feature_source_has_header(s)) ? &s->scan.base.model : NULL;
}

static bool same_hash(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    return a_len == b_len && memcmp(a, b, a_len) == 0;
}

static bool same_model(const spa_Welcome *a, const spa_Welcome *b)
{
    return same_hash(a->model_hash.bytes, a->model_hash.size, b->model_hash.bytes, b->model_hash.size) && a->d == b->d &&
           a->n_layers == b->n_layers && a->n_vocab == b->n_vocab &&
           same_hash(a->head_hash.bytes, a->head_hash.size, b->head_hash.bytes, b->head_hash.size);
}

/* What differs between a file's taps and those that are wanted; NULL: nothing. */
static const char *difference(const struct spa_feature_base *base, const spa_Plugin *wanted)
{
    const spa_Plugin *file = &base->plugin;
    if (file->taps_count != wanted->taps_count || memcmp(file->taps, wanted->taps, file->taps_count * sizeof *file->taps) != 0)
        return "other taps";
    if (file->basis != wanted->basis || file->k != wanted->k || file->rms != wanted->rms)
        return "taps of another width";
    if (file->ctx_taps_count != wanted->ctx_taps_count ||
        memcmp(file->ctx_taps, wanted->ctx_taps, file->ctx_taps_count * sizeof *file->ctx_taps) != 0)
        return "other context taps";
    if (file->tap_dtype != wanted->tap_dtype)
        return "taps in another form";
    if (wanted->basis_hash.size && !same_hash(file->basis_hash.bytes, file->basis_hash.size, wanted->basis_hash.bytes, wanted->basis_hash.size))
        return "taps on another basis";
    if (wanted->basis && !wanted->basis_hash.size && file->generic != wanted->generic)
        return wanted->generic ? "taps on another basis (the rows' own, not the cloud's)" : "taps on another basis (the cloud's, not the rows' own)";
    if (file->basis && !base->basis && !wanted->basis_hash.size)
        return "less (no basis)";
    return NULL;
}

static bool fits(const struct spa_feature_source *s, const spa_Welcome *model, const spa_Plugin *wanted)
{
    return spa_feature_source_has_header(s) && same_model(&s->scan.base.model, model) && !difference(&s->scan.base, wanted);
}

int spa_feature_file_check(const struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *wanted, char *why, size_t why_len)
{
    const struct spa_feature_scan *s = &f->old.scan;
    const char *what;
    if (!f->old.exists)
        return 0;
    switch (s->verdict) {
    case SPA_FEATURE_FOREIGN:
        snprintf(why, why_len, "'%s' is not a feature file", f->path);
        return -1;
    case SPA_FEATURE_VERSION_OTHER:
        snprintf(why, why_len, "'%s' is a feature file of another version of spa", f->path);
        return -1;
    case SPA_FEATURE_NO_HEADER:
        snprintf(why, why_len, "the feature file '%s' is damaged: its header is cut short or not what was written", f->path);
        return -1;
    case SPA_FEATURE_DAMAGED:
        snprintf(why, why_len, "the feature file '%s' is damaged: from byte %llu on it is not what was written", f->path,
                 (unsigned long long)s->good_len);
        return -1;
    case SPA_FEATURE_CUT:
        snprintf(why, why_len, "the feature file '%s' is cut short: it ends in the middle, at byte %zu", f->path, f->old.map_len);
        return -1;
    case SPA_FEATURE_WHOLE:
        break;
    }
    if (model && !same_model(&s->base.model, model)) {
        snprintf(why, why_len, "the feature file '%s' holds states of the model '%s', not of '%s'%s", f->path, s->base.model.model, model->model,
                 strcmp(s->base.model.model, model->model) == 0 ? " (the same name, other weights)" : "");
        return -1;
    }
    if (wanted && (what = difference(&s->base, wanted))) {
        snprintf(why, why_len, "the feature file '%s' holds %s than this run wants", f->path, what);
        return -1;
    }
    return 0;
}

bool spa_feature_file_serves(const struct spa_feature_file *f, const spa_Plugin *wanted, enum spa_feature_kind kind,
                             const struct spa_feature_key *keys, size_t n)
{
    const spa_Welcome *model = spa_feature_file_model(f);
    if (!model || spa_feature_file_check(f, NULL, wanted, NULL, 0) != 0)
        return false;
    const struct spa_feature_source *first = f->old.exists ? &f->old : &f->unfinished;
    const bool both = fits(&f->unfinished, model, wanted) && memcmp(first->scan.header_sum, f->unfinished.scan.header_sum, SPA_HASH_BYTES) == 0;
    if (!fits(first, model, wanted))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!spa_feature_index_find(&first->index, kind, &keys[i]) && !(both && spa_feature_index_find(&f->unfinished.index, kind, &keys[i])))
            return false;
    return true;
}

static size_t count_keys(const struct spa_feature_source *s, const struct spa_feature_source *more, const struct spa_feature_key *keys,
                         size_t n)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++)
        found += spa_feature_index_find(&s->index, SPA_FEATURE_ROW, &keys[i]) != NULL ||
                 (more && spa_feature_index_find(&more->index, SPA_FEATURE_ROW, &keys[i]));
    return found;
}

/* ---- writing ---- */

/* Appends what iov names to PATH.part. After -1 its good length is what it was; a torn end lies beyond it. */
static int append(struct spa_feature_file *f, struct iovec *iov, int n, char *why, size_t why_len)
{
    uint64_t at = f->len;
    while (n > 0) {
        ssize_t wrote = pwritev(f->fd, iov, n, (off_t)at);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0) {
            spa_store_complain(why, why_len, "write", f->part, errno);
            (void)!ftruncate(f->fd, (off_t)f->len);   /* if not, the next run finds the torn end by its sum */
            return -1;
        }
        at += (uint64_t)wrote;
        for (size_t left = (size_t)wrote; n > 0; iov++, n--) {
            if (left < iov->iov_len) {
                iov->iov_base = (uint8_t *)iov->iov_base + left;
                iov->iov_len -= left;
                break;
            }
            left -= iov->iov_len;
        }
    }
    f->len = at;
    return 0;
}

static struct iovec piece(const void *bytes, size_t len)
{
    return (struct iovec){ (void *)(uintptr_t)bytes, len };
}

/* PATH.part becomes the first len bytes of s's map, header and records, unless it is them already. After -1 it is empty. */
static int begin_part(struct spa_feature_file *f, const struct spa_feature_source *s, const uint8_t *bytes, uint64_t len, char *why,
                      size_t why_len)
{
    enum { STEP = 4 << 20 };
    const bool there = s == &f->unfinished;
    int rc = 0;
    f->len = there ? len : 0;
    f->digest = spa_feature_digest_new(s->scan.header_sum);
    if (!f->digest) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    for (size_t i = 0; i < s->index.n; i++)
        spa_feature_digest_add(f->digest, bytes + s->index.records[i].at - SPA_FEATURE_RECORD_HEAD);
    if (!there)
        spa_feature_source_free(&f->unfinished);
    if (ftruncate(f->fd, (off_t)f->len) != 0)
        rc = spa_store_complain(why, why_len, "write", f->part, errno);
    while (rc == 0 && f->len < len) {
        struct iovec step = piece(bytes + f->len, (size_t)(len - f->len < STEP ? len - f->len : STEP));
        rc = append(f, &step, 1, why, why_len);
        if (s->map)
            spa_feature_source_give_back((void *)(uintptr_t)s, (size_t)f->len);
    }
    f->in_part = rc == 0;
    if (rc != 0 && !there) {
        spa_feature_digest_free(f->digest);
        f->digest = NULL;
        f->len = 0;
        (void)!ftruncate(f->fd, 0);
    }
    return rc;
}

/* Records of `from` that are not in use yet, byte by byte: headers are the same, so sums stay right. */
static int append_others(struct spa_feature_file *f, const struct spa_feature_source *from, char *why, size_t why_len)
{
    for (size_t i = 0; i < from->index.n; i++) {
        struct spa_feature_record r = from->index.records[i];
        const uint8_t *head = from->map + r.at - SPA_FEATURE_RECORD_HEAD;
        if (spa_feature_index_find(&f->in_use->index, r.kind, &r.key))
            continue;
        struct iovec all = piece(head, SPA_FEATURE_RECORD_HEAD + r.bulk_len + spa_feature_padding(r.bulk_len));
        r.at = f->len + SPA_FEATURE_RECORD_HEAD;
        if (append(f, &all, 1, why, why_len) != 0)
            return -1;
        spa_feature_digest_add(f->digest, head);
        if (spa_feature_index_add(&f->in_use->index, &r) != 0) {
            snprintf(why, why_len, "out of memory");
            return -1;
        }
    }
    return 0;
}

int spa_feature_file_use(struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *wanted, const struct spa_feature_key *keys,
                         size_t n, bool *used, char *why, size_t why_len)
{
    assert(!f->in_use);
    struct spa_feature_source *old = &f->old, *part = &f->unfinished;
    const bool old_fits = fits(old, model, wanted) && old->scan.verdict == SPA_FEATURE_WHOLE, part_fits = fits(part, model, wanted);
    const bool same = old_fits && part_fits && memcmp(old->scan.header_sum, part->scan.header_sum, SPA_HASH_BYTES) == 0;
    bool news = false;   /* does PATH.part hold what PATH lacks? */
    for (size_t i = 0; same && !news && i < part->index.n; i++)
        news = !spa_feature_index_find(&old->index, part->index.records[i].kind, &part->index.records[i].key);
    *used = true;
    if (old_fits && 2 * count_keys(old, news ? part : NULL, keys, n) >= n)
        f->in_use = news ? part : old;
    else if (part_fits && !same && (part->index.n == 0 || count_keys(part, NULL, keys, n) > 0))
        f->in_use = part;
    *used = f->in_use != NULL;
    if (f->in_use != part)
        return 0;
    if (begin_part(f, part, part->map, part->scan.good_len, why, why_len) != 0)
        return -1;
    return news ? append_others(f, old, why, why_len) : 0;
}

int spa_feature_file_start(struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *plugin, const float *basis, char *why,
                           size_t why_len)
{
    assert(!f->in_use);
    struct spa_feature_scan *s = &f->fresh.scan;
    struct spa_feature_base base;
    size_t len;
    spa_feature_base_from(model, plugin, basis, &base);
    f->header = spa_feature_header_make(&base, &len, s->header_sum);
    if (!f->header) {
        snprintf(why, why_len, "out of memory for the basis");
        return -1;
    }
    if (spa_feature_scan(f->header, len, s, NULL, NULL, NULL) != 0) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    if (!s->header_len) {
        snprintf(why, why_len, "the cloud's model has numbers that no feature file takes");
        return -1;
    }
    f->in_use = &f->fresh;
    return begin_part(f, &f->fresh, f->header, len, why, why_len);
}

const struct spa_feature_base *spa_feature_file_base(const struct spa_feature_file *f)
{
    return f->in_use ? &f->in_use->scan.base : NULL;
}

const struct spa_session *spa_feature_file_wire(const struct spa_feature_file *f)
{
    return &f->in_use->scan.wire;
}

const struct spa_feature_record *spa_feature_file_find(const struct spa_feature_file *f, enum spa_feature_kind kind,
                                                       const struct spa_feature_key *key)
{
    return spa_feature_index_find(&f->in_use->index, kind, key);
}

bool spa_feature_file_settled(const struct spa_feature_file *f, enum spa_feature_kind kind, const struct spa_feature_key *key)
{
    return f->in_use && f->old.scan.verdict == SPA_FEATURE_WHOLE && memcmp(f->old.scan.header_sum, f->in_use->scan.header_sum, SPA_HASH_BYTES) == 0 &&
           spa_feature_index_find(&f->old.index, kind, key);
}

int spa_feature_file_add(struct spa_feature_file *f, const struct spa_feature_record *r, const uint8_t *bulk, char *why, size_t why_len)
{
    static const uint8_t zeros[8];
    uint8_t head[SPA_FEATURE_RECORD_HEAD];
    struct spa_feature_source *s = f->in_use;
    assert(s && !f->finished);
    if (!f->in_part && begin_part(f, s, s->map, s->scan.good_len, why, why_len) != 0)
        return -1;
    struct spa_feature_record mine = *r;
    spa_feature_record_make(r, bulk, s->scan.header_sum, head);
    mine.at = f->len + sizeof head;
    struct iovec all[] = { piece(head, sizeof head), piece(bulk, r->bulk_len), piece(zeros, spa_feature_padding(r->bulk_len)) };
    const uint64_t before = f->len;
    if (append(f, all, 3, why, why_len) != 0)
        return -1;
    if (spa_feature_index_add(&s->index, &mine) != 0) {
        f->len = before;
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    spa_feature_digest_add(f->digest, head);
    f->added++;
    return 0;
}

static int by_key(const void *a, const void *b) { return memcmp(a, b, sizeof(struct spa_feature_key)); }

size_t spa_feature_file_keys(const struct spa_feature_file *f, enum spa_feature_kind kind, struct spa_feature_key **keys)
{
    const struct spa_feature_index *x = &f->in_use->index;
    size_t n = 0;
    *keys = malloc((x->n + 1) * sizeof **keys);
    if (!*keys)
        return SIZE_MAX;
    for (size_t i = 0; i < x->n; i++)
        if (x->records[i].kind == kind && !x->records[i].refused)
            (*keys)[n++] = x->records[i].key;
    qsort(*keys, n, sizeof **keys, by_key);
    return n;
}

uint64_t spa_feature_file_records(const struct spa_feature_file *f) { return f->in_use ? f->in_use->index.n : f->unfinished.index.n; }
uint64_t spa_feature_file_added(const struct spa_feature_file *f) { return f->added; }
uint64_t spa_feature_file_bytes(const struct spa_feature_file *f) { return f->in_part ? f->len : f->in_use ? f->in_use->scan.good_len : 0; }

/* ---- the end ---- */

static int make_whole(struct spa_feature_file *f, char *why, size_t why_len)
{
    uint8_t footer[SPA_FEATURE_FOOTER];
    const uint64_t good = f->len;
    spa_feature_digest_end(f->digest, f->in_use->index.n, good + sizeof footer, footer);
    f->digest = NULL;
    struct iovec all = piece(footer, sizeof footer);
    int rc = append(f, &all, 1, why, why_len);
    if (rc == 0 && f->named && fsync(f->fd) != 0)
        rc = spa_store_complain(why, why_len, "write", f->part, errno);
    if (rc == 0 && f->named && rename(f->part, f->path) != 0)
        rc = spa_store_complain(why, why_len, "write", f->path, errno);
    if (rc == 0 && f->named)
        spa_store_sync_folder(f->path);
    if (rc != 0)
        f->len = good;
    return rc;
}

int spa_feature_file_finish(struct spa_feature_file *f, char *why, size_t why_len)
{
    assert(f->in_use && !f->finished);
    if (f->in_part) {
        if (make_whole(f, why, why_len) != 0)
            return -1;
        f->finished = true;
        if (f->in_use->map)
            munmap(f->in_use->map, f->in_use->map_len);
        f->in_use->map = NULL;
        f->in_use->scan.base.basis = NULL;   /* lay in the old map or in header */
        if (spa_feature_source_map(f->in_use, f->fd, f->path, why, why_len) != 0)
            return -1;
    }
    f->finished = true;
    return 0;
}

const uint8_t *spa_feature_file_bulk(const struct spa_feature_file *f, const struct spa_feature_record *r)
{
    assert(f->finished);
    return f->in_use->map + r->at;
}
