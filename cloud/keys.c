/* keys.c - in: a file of keys, an Authorization header. out: yes or no. */
#include "keys.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int spa_keys_read(struct spa_keys *k, const char *path, char *why, size_t why_len)
{
    memset(k, 0, sizeof *k);
    FILE *f = fopen(path, "re");
    if (!f) {
        snprintf(why, why_len, "%s: cannot read the API keys: %s", path, strerror(errno));
        return -1;
    }
    char line[512];
    int rc = 0;
    while (rc == 0 && fgets(line, sizeof line, f)) {
        const size_t n = strcspn(line, "\r\n");
        if (n == 0 || line[0] == '#')
            continue;
        void *more = realloc(k->hashes, (k->n + 1) * sizeof *k->hashes);
        unsigned len = 0;
        if (more)
            k->hashes = more;
        if (!more || n + 1 == sizeof line || !EVP_Digest(line, n, k->hashes[k->n], &len, EVP_sha256(), NULL)) {
            snprintf(why, why_len, "%s: a key is too long, or there is no memory", path);
            rc = -1;
        } else {
            k->n++;
        }
    }
    explicit_bzero(line, sizeof line);
    fclose(f);
    if (rc == 0 && k->n == 0) {
        snprintf(why, why_len, "%s: no API key in this file; put one on each line", path);
        rc = -1;
    }
    if (rc != 0)
        spa_keys_free(k);
    return rc;
}

bool spa_keys_allow(const struct spa_keys *k, const char *authorization, size_t len)
{
    static const char bearer[] = "Bearer ";
    if (k->n == 0)
        return true;
    if (len < sizeof bearer - 1 || strncasecmp(authorization, bearer, sizeof bearer - 1) != 0)
        return false;
    uint8_t hash[32];
    unsigned n = 0;
    if (!EVP_Digest(authorization + sizeof bearer - 1, len - (sizeof bearer - 1), hash, &n, EVP_sha256(), NULL))
        return false;
    bool allow = false;
    for (size_t i = 0; i < k->n; i++)   /* all of them, so that time says nothing about which */
        allow |= CRYPTO_memcmp(hash, k->hashes[i], sizeof hash) == 0;
    return allow;
}

void spa_keys_free(struct spa_keys *k)
{
    free(k->hashes);
    memset(k, 0, sizeof *k);
}
