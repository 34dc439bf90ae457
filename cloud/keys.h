/* keys.h - API keys of clients, kept as SHA-256 and compared in constant time. */
#ifndef SPA_KEYS_H
#define SPA_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spa_keys {
    uint8_t (*hashes)[32];
    size_t n;
};

/* One key a line; empty lines and lines that begin with # are skipped. 0, or -1 with one sentence. */
int  spa_keys_read(struct spa_keys *k, const char *path, char *why, size_t why_len);
/* authorization: the header's value, "Bearer KEY"; not terminated. True when no keys are set. */
bool spa_keys_allow(const struct spa_keys *k, const char *authorization, size_t len);
void spa_keys_free(struct spa_keys *k);

#endif
