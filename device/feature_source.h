/* feature_source.h - a feature file as it lies on the disk: mapped, checked, its records found by kind and key. For feature_file.c. */
#ifndef SPA_FEATURE_SOURCE_H
#define SPA_FEATURE_SOURCE_H

#include "feature_format.h"

/* Records by kind and key: open addressing, keys are hashes already. */
struct spa_feature_index {
    struct spa_feature_record *records;
    size_t    n, cap;
    uint32_t *table;           /* [table_cap] place in records + 1; 0: free */
    size_t    table_cap;       /* a power of two, or 0 */
};

/* A file as it was found. */
struct spa_feature_source {
    bool    exists;
    uint8_t *map;
    size_t  map_len;
    struct spa_feature_scan scan;
    struct spa_feature_index index;
};

/* NULL: not there. Valid until the next add. */
struct spa_feature_record *spa_feature_index_find(const struct spa_feature_index *x, enum spa_feature_kind kind,
                                                  const struct spa_feature_key *key);
/* All records stay in their order, for the footer's sake; of the same kind and key the last one is found. -1: out of memory. */
int  spa_feature_index_add(struct spa_feature_index *x, const struct spa_feature_record *r);

/* Maps all of fd; an empty file maps nothing. These two: 0, or -1 with one sentence about `path` in why. */
int  spa_feature_source_map(struct spa_feature_source *s, int fd, const char *path, char *why, size_t why_len);
/* Maps and checks it, as far as it is good: s->scan.verdict says what was found. */
int  spa_feature_source_read(struct spa_feature_source *s, int fd, const char *path, char *why, size_t why_len);
/* Is there a file whose header is good? */
bool spa_feature_source_has_header(const struct spa_feature_source *s);
/* Pages of the mapping up to there will not be looked at soon. user: the source. */
void spa_feature_source_give_back(void *user, size_t up_to);
void spa_feature_source_free(struct spa_feature_source *s);

#endif
