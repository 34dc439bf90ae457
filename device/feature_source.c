/* feature_source.c - in: a feature file's descriptor. out: a mapping of it, its records by kind and key (feature_source.h). */
#define _DEFAULT_SOURCE   /* madvise */
#include "feature_source.h"

#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the index ---- */

static size_t place_of(const struct spa_feature_index *x, enum spa_feature_kind kind, const struct spa_feature_key *key)
{
    size_t at;
    memcpy(&at, key->bytes, sizeof at);
    for (at += kind;; at++) {
        const uint32_t i = x->table[at & (x->table_cap - 1)];
        if (i == 0 || (x->records[i - 1].kind == kind && memcmp(&x->records[i - 1].key, key, sizeof *key) == 0))
            return at & (x->table_cap - 1);
    }
}

struct spa_feature_record *spa_feature_index_find(const struct spa_feature_index *x, enum spa_feature_kind kind,
                                                  const struct spa_feature_key *key)
{
    const uint32_t i = x->table_cap ? x->table[place_of(x, kind, key)] : 0;
    return i ? &x->records[i - 1] : NULL;
}

int spa_feature_index_add(struct spa_feature_index *x, const struct spa_feature_record *r)
{
    if (x->n == x->cap) {
        const size_t cap = x->cap ? 2 * x->cap : 64;
        struct spa_feature_record *records = realloc(x->records, cap * sizeof *records);
        if (!records)
            return -1;
        x->records = records;
        x->cap = cap;
    }
    if (2 * (x->n + 1) > x->table_cap) {
        const size_t cap = x->table_cap ? 2 * x->table_cap : 256;
        uint32_t *table = cap <= UINT32_MAX ? calloc(cap, sizeof *table) : NULL;
        if (!table)
            return -1;
        free(x->table);
        x->table = table;
        x->table_cap = cap;
        for (size_t i = 0; i < x->n; i++)
            x->table[place_of(x, x->records[i].kind, &x->records[i].key)] = (uint32_t)i + 1;
    }
    x->records[x->n] = *r;
    x->table[place_of(x, r->kind, &r->key)] = (uint32_t)++x->n;
    return 0;
}

/* ---- sources ---- */

static int take_record(void *user, const struct spa_feature_record *r)
{
    struct spa_feature_source *s = user;
    return spa_feature_index_add(&s->index, r);
}

void spa_feature_source_give_back(void *user, size_t up_to)
{
    const struct spa_feature_source *s = user;   /* void, since scans call it */
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    madvise(s->map, up_to / page * page, MADV_DONTNEED);
}

void spa_feature_source_free(struct spa_feature_source *s)
{
    if (s->map)
        munmap(s->map, s->map_len);
    free(s->index.records);
    free(s->index.table);
    memset(s, 0, sizeof *s);
}

int spa_feature_source_map(struct spa_feature_source *s, int fd, const char *path, char *why, size_t why_len)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return spa_store_complain(why, why_len, "read", path, errno);
    if (st.st_size == 0)
        return 0;
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return spa_store_complain(why, why_len, "map", path, errno);
    s->map = map;
    s->map_len = (size_t)st.st_size;
    return 0;
}

int spa_feature_source_read(struct spa_feature_source *s, int fd, const char *path, char *why, size_t why_len)
{
    s->exists = true;
    s->scan.verdict = SPA_FEATURE_FOREIGN;
    if (spa_feature_source_map(s, fd, path, why, why_len) != 0)
        return -1;
    if (s->map && spa_feature_scan(s->map, s->map_len, &s->scan, take_record, spa_feature_source_give_back, s) != 0) {
        snprintf(why, why_len, "out of memory for what '%s' holds", path);
        return -1;
    }
    if (s->map)
        spa_feature_source_give_back(s, s->map_len);
    return 0;
}

bool spa_feature_source_has_header(const struct spa_feature_source *s)
{
    return s->exists && s->scan.verdict <= SPA_FEATURE_DAMAGED;
}
