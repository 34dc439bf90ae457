/* anchors_file.c - anchors in the cache folder. In: bytes of files, which are not trusted; records in memory. Out: checked answers,
 * mapped records; files that are whole or not there.
 *
 *   anchors-KEY.answers          "SPAANSW1" | key | n u32 | 0 u32 | n times (number of tokens u32, tokens i32[24]) | SHA-256 of all that
 *   anchors-KEY-LAYERS.states    "SPAANCH1" | key | d, n, n_layers, 0 u32 | layers u32[] | n times (offset u64, length u64, SHA-256 of
 *                                the record) | SHA-256 of all that | records, each at a multiple of 8; length 0: not made yet
 *
 * KEY: 16 hex digits of the key (anchors.c), LAYERS: of the layers' hash. A record is checked when it is first asked for. Files
 * are written beside their names, an anchor at a time, and renamed. They are not synced: what a power cut leaves damaged has
 * another hash and is made again. */
#include "anchors_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAGIC = 8, NAME_HEX = 16, ENTRY = 16 + ANCHOR_HASH, ANSWER = 4 + 4 * SPA_ANCHOR_ANSWER, ALIGN = 8 };
static const char answers_magic[MAGIC + 1] = "SPAANSW1", states_magic[MAGIC + 1] = "SPAANCH1";

static void hex(const uint8_t *bytes, char out[NAME_HEX + 1])
{
    for (size_t i = 0; i < NAME_HEX / 2; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static void give_up(struct spa_anchors *a, const char *path, int code)
{
    anchors_log(a, SPA_LOG_WARN, "anchors: cannot write %s: %s; from now on they stay in memory and are made again after a restart (--anchors names another folder)",
                path, strerror(code));
    free(a->folder);
    a->folder = NULL;
    a->answers_dirty = false;
    for (size_t i = 0; i < SPA_ANCHOR_SETS; i++)
        if (a->sets[i])
            a->sets[i]->dirty = false;
}

static int write_all(int fd, const void *bytes, size_t len)
{
    for (const uint8_t *at = bytes; len > 0;) {
        const ssize_t n = write(fd, at, len);
        if (n < 0 && errno != EINTR)
            return -1;
        at += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* ---- answers ---- */

static size_t answers_len(const struct spa_anchors *a)
{
    return MAGIC + ANCHOR_HASH + 8 + (size_t)a->n * ANSWER + ANCHOR_HASH;
}

static void answers_path(const struct spa_anchors *a, char path[PATH_MAX])
{
    char key[NAME_HEX + 1];
    hex(a->key, key);
    snprintf(path, PATH_MAX, "%s/anchors-%s.answers", a->folder, key);
}

void anchors_read_answers(struct spa_anchors *a)
{
    char path[PATH_MAX];
    if (!a->folder)
        return;
    answers_path(a, path);
    const size_t len = answers_len(a), body = len - ANCHOR_HASH;
    uint8_t *bytes = malloc(len + 1), found[ANCHOR_HASH];
    const int fd = bytes ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        free(bytes);
        return;
    }
    size_t got = 0;
    for (ssize_t n = 1; n > 0 && got <= len; got += n > 0 ? (size_t)n : 0)
        n = read(fd, bytes + got, len + 1 - got);
    close(fd);
    bool whole = got == len && memcmp(bytes, answers_magic, MAGIC) == 0 && memcmp(bytes + MAGIC, a->key, ANCHOR_HASH) == 0;
    if (whole) {
        anchor_hash(bytes, body, found);
        whole = memcmp(found, bytes + body, ANCHOR_HASH) == 0;
    }
    for (uint32_t i = 0; whole && i < a->n; i++) {
        const uint8_t *at = bytes + MAGIC + ANCHOR_HASH + 8 + (size_t)i * ANSWER;
        struct anchor_text *t = &a->texts[i];
        uint32_t n;
        memcpy(&n, at, 4);
        bool good = n <= SPA_ANCHOR_ANSWER;
        for (uint32_t k = 0; good && k < n; k++) {
            memcpy(&t->tokens[t->n_prompt + k], at + 4 + 4 * (size_t)k, 4);
            good = t->tokens[t->n_prompt + k] >= 0 && t->tokens[t->n_prompt + k] < a->model->info.n_vocab;
        }
        t->n_tokens = t->n_prompt + (good ? n : 0);
    }
    if (!whole)
        anchors_log(a, SPA_LOG_WARN, "anchors: %s is damaged; the answers are made again", path);
    free(bytes);
}

void anchors_write_answers(struct spa_anchors *a)
{
    char path[PATH_MAX], temporary[PATH_MAX + 8];
    const size_t len = answers_len(a);
    uint8_t *bytes = calloc(1, len);
    a->answers_dirty = false;
    if (!bytes)
        return;
    memcpy(bytes, answers_magic, MAGIC);
    memcpy(bytes + MAGIC, a->key, ANCHOR_HASH);
    memcpy(bytes + MAGIC + ANCHOR_HASH, &a->n, 4);
    for (uint32_t i = 0; i < a->n; i++) {
        const struct anchor_text *t = &a->texts[i];
        const uint32_t n = t->n_tokens - t->n_prompt;
        uint8_t *at = bytes + MAGIC + ANCHOR_HASH + 8 + (size_t)i * ANSWER;
        memcpy(at, &n, 4);
        memcpy(at + 4, t->tokens + t->n_prompt, 4 * (size_t)n);
    }
    anchor_hash(bytes, len - ANCHOR_HASH, bytes + len - ANCHOR_HASH);
    answers_path(a, path);
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    const int fd = mkstemp(temporary);
    bool ok = fd >= 0 && write_all(fd, bytes, len) == 0;
    int code = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        code = errno;
        ok = false;
    }
    if (ok && rename(temporary, path) != 0) {
        code = errno;
        ok = false;
    }
    if (!ok) {
        if (fd >= 0)
            unlink(temporary);
        give_up(a, path, code);
    }
    free(bytes);
}

/* ---- states: reading ---- */

static size_t head_len(const struct spa_anchor_set *s)
{
    return MAGIC + ANCHOR_HASH + 16 + 4 * (size_t)s->n_layers + (size_t)s->owner->n * ENTRY + ANCHOR_HASH;
}

static size_t table_at(const struct spa_anchor_set *s)
{
    return MAGIC + ANCHOR_HASH + 16 + 4 * (size_t)s->n_layers;
}

static size_t aligned(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static void states_path(const struct spa_anchor_set *s, char path[PATH_MAX])
{
    uint8_t hash[ANCHOR_HASH];
    char key[NAME_HEX + 1], layers[NAME_HEX + 1];
    anchor_hash(s->layers, s->n_layers * sizeof *s->layers, hash);
    hex(s->owner->key, key);
    hex(hash, layers);
    snprintf(path, PATH_MAX, "%s/anchors-%s-%s.states", s->owner->folder, key, layers);
}

/* The head up to its table. */
static void head_begin(const struct spa_anchor_set *s, uint8_t *head)
{
    const uint32_t numbers[4] = { s->owner->model->info.d, s->owner->n, s->n_layers, 0 };
    memcpy(head, states_magic, MAGIC);
    memcpy(head + MAGIC, s->owner->key, ANCHOR_HASH);
    memcpy(head + MAGIC + ANCHOR_HASH, numbers, sizeof numbers);
    memcpy(head + MAGIC + ANCHOR_HASH + sizeof numbers, s->layers, 4 * (size_t)s->n_layers);
}

static bool head_good(const struct spa_anchor_set *s, const uint8_t *map, size_t len)
{
    const size_t head = head_len(s), before = table_at(s);
    uint8_t *expected = len >= head ? malloc(before) : NULL, hash[ANCHOR_HASH];
    if (!expected)
        return false;
    head_begin(s, expected);
    anchor_hash(map, head - ANCHOR_HASH, hash);
    const bool good = memcmp(expected, map, before) == 0 && memcmp(hash, map + head - ANCHOR_HASH, ANCHOR_HASH) == 0;
    free(expected);
    return good;
}

void anchors_map(struct spa_anchor_set *s)
{
    char path[PATH_MAX];
    struct stat st;
    if (!s->owner->folder || s->n_layers == 0)
        return;
    states_path(s, path);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *map = fstat(fd, &st) == 0 && st.st_size > 0 ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (map != MAP_FAILED)
        (void)futimens(fd, NULL);   /* the oldest file is the one that goes when there are too many */
    close(fd);
    if (map == MAP_FAILED)
        return;
    if (!head_good(s, map, (size_t)st.st_size)) {
        anchors_log(s->owner, SPA_LOG_WARN, "anchors: %s is damaged; the states are made again", path);
        munmap(map, (size_t)st.st_size);
        return;
    }
    s->map = map;
    s->map_len = (size_t)st.st_size;
    for (uint32_t i = 0; i < s->owner->n; i++) {
        const uint8_t *at = s->map + table_at(s) + (size_t)i * ENTRY;
        struct anchor_entry *e = &s->entries[i];
        uint64_t offset, len;
        memcpy(&offset, at, 8);
        memcpy(&len, at + 8, 8);
        if (e->block || len == 0 || offset % ALIGN || offset > s->map_len || len > s->map_len - offset)
            continue;
        e->mapped = s->map + offset;
        e->len = (size_t)len;
        memcpy(e->hash, at + 16, ANCHOR_HASH);
    }
}

void anchors_unmap(struct spa_anchor_set *s)
{
    for (uint32_t i = 0; i < s->owner->n; i++) {
        s->entries[i].mapped = NULL;
        s->entries[i].checked = false;
    }
    if (s->map)
        munmap(s->map, s->map_len);
    s->map = NULL;
    s->map_len = 0;
}

/* ---- states: writing ---- */

/* Removes the oldest of this model's sets until there is room for one more. */
static void prune(const struct spa_anchors *a, const char *spare)
{
    char key[NAME_HEX + 1], prefix[NAME_HEX + 16];
    hex(a->key, key);
    snprintf(prefix, sizeof prefix, "anchors-%s-", key);
    for (;;) {
        char oldest[PATH_MAX] = "";
        struct timespec when = { 0 };
        unsigned n = 0;
        DIR *dir = opendir(a->folder);
        for (struct dirent *d; dir && (d = readdir(dir));) {
            char path[PATH_MAX];
            struct stat st;
            const size_t len = strlen(d->d_name);
            if (strncmp(d->d_name, prefix, strlen(prefix)) != 0 || len < 7 || strcmp(d->d_name + len - 7, ".states") != 0 ||
                (size_t)snprintf(path, sizeof path, "%s/%s", a->folder, d->d_name) >= sizeof path || strcmp(path, spare) == 0 || stat(path, &st) != 0)
                continue;
            n++;
            if (!*oldest || st.st_mtim.tv_sec < when.tv_sec || (st.st_mtim.tv_sec == when.tv_sec && st.st_mtim.tv_nsec < when.tv_nsec)) {
                strcpy(oldest, path);
                when = st.st_mtim;
            }
        }
        if (dir)
            closedir(dir);
        if (n < SPA_ANCHOR_SETS || unlink(oldest) != 0)
            return;
    }
}

void anchors_write_abort(struct spa_anchors *a)
{
    struct anchor_writer *w = &a->writer;
    if (!w->set)
        return;
    close(w->fd);
    unlink(w->temporary);
    free(w->head);
    w->set = NULL;
}

static void write_failed(struct spa_anchors *a, int code)
{
    anchors_write_abort(a);
    give_up(a, a->writer.path, code);
}

void anchors_write_begin(struct spa_anchor_set *s)
{
    struct spa_anchors *a = s->owner;
    struct anchor_writer *w = &a->writer;
    const size_t head = aligned(head_len(s));
    states_path(s, w->path);
    prune(a, w->path);
    snprintf(w->temporary, sizeof w->temporary, "%s.XXXXXX", w->path);
    w->head = calloc(1, head);
    w->fd = w->head ? mkstemp(w->temporary) : -1;
    if (w->fd < 0) {
        const int code = w->head ? errno : ENOMEM;
        free(w->head);
        give_up(a, w->path, code);
        return;
    }
    w->set = s;
    w->next = 0;
    w->at = head;
    s->dirty = false;   /* what comes from now on may or may not be in: states_here says so again */
    head_begin(s, w->head);
    if (write_all(w->fd, w->head, head) != 0)   /* its place; the numbers come last */
        write_failed(a, errno);
}

/* All records are out: the head, the name, and the map in place of the blocks. */
static void finish(struct spa_anchors *a)
{
    struct anchor_writer *w = &a->writer;
    struct spa_anchor_set *s = w->set;
    const size_t head = head_len(s);
    anchor_hash(w->head, head - ANCHOR_HASH, w->head + head - ANCHOR_HASH);
    if (pwrite(w->fd, w->head, head, 0) != (ssize_t)head || rename(w->temporary, w->path) != 0) {
        write_failed(a, errno);
        return;
    }
    close(w->fd);
    w->set = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->n; i++) {
        struct anchor_entry *e = &s->entries[i];
        uint64_t len;
        memcpy(&len, w->head + table_at(s) + (size_t)i * ENTRY + 8, 8);
        n += len > 0;
        if (len > 0)
            anchor_drop_block(s, e);
    }
    anchors_unmap(s);
    anchors_map(s);
    anchors_log(a, SPA_LOG_INFO, "anchors: %u of %u are in %s (%.1f MB)", n, a->n, w->path, (double)w->at / 1e6);
    free(w->head);
}

void anchors_write_step(struct spa_anchors *a)
{
    static const uint8_t zeros[ALIGN];
    struct anchor_writer *w = &a->writer;
    const struct anchor_entry *e = NULL;
    const uint8_t *record = NULL;
    while (!record && w->next < a->n) {
        e = &w->set->entries[w->next++];
        record = e->block ? e->block : e->mapped;
    }
    if (!record) {
        finish(a);
        return;
    }
    const uint64_t numbers[2] = { w->at, e->len };
    uint8_t *at = w->head + table_at(w->set) + (size_t)(w->next - 1) * ENTRY;
    memcpy(at, numbers, sizeof numbers);
    memcpy(at + sizeof numbers, e->hash, ANCHOR_HASH);
    if (write_all(w->fd, record, e->len) != 0 || write_all(w->fd, zeros, aligned(e->len) - e->len) != 0)
        write_failed(a, errno);
    else
        w->at += aligned(e->len);
}
