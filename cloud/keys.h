/* keys.h - API keys of clients, kept as SHA-256 and compared in constant time.
 *
 * A key file has one key a line; empty lines and lines that begin with # are skipped:
 *
 *   sha256:HEX [NAME]     the SHA-256 of a key, 64 digits; the name is for people
 *   anything else         a key in plain text */
#ifndef SPA_KEYS_H
#define SPA_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPA_KEY_HASH = 32, SPA_KEY_TEXT = 64, SPA_KEY_LINE = 256 };   /* bytes; the latter two with their zero */

struct spa_keys {
    uint8_t (*hashes)[SPA_KEY_HASH];
    size_t n;
    size_t n_plain;          /* lines that hold the key itself */
};

/* 0, or -1 with one sentence, and no key. */
int  spa_keys_read(struct spa_keys *k, const char *path, char *why, size_t why_len);
/* authorization: the header's value, "Bearer KEY"; not terminated. True when no keys are set. */
bool spa_keys_allow(const struct spa_keys *k, const char *authorization, size_t len);
/* The same, and which key it was; hash stays as it is when no keys are set. */
bool spa_keys_find(const struct spa_keys *k, const char *authorization, size_t len, uint8_t hash[SPA_KEY_HASH]);
bool spa_keys_has(const struct spa_keys *k, const uint8_t hash[SPA_KEY_HASH]);
void spa_keys_free(struct spa_keys *k);

/* A random key, and its line for a key file. name: without white space, or NULL. -1: this machine gives no random numbers. */
int  spa_keys_make(const char *name, char key[SPA_KEY_TEXT], char line[SPA_KEY_LINE]);

#endif
