/* keys.c - in: a file of keys, an Authorization header. out: yes or no. */
#include "keys.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

enum { RANDOM = 32, LINE_MAX_BYTES = 512 };
static const char hashed[] = "sha256:";

/* -1: not 64 hexadecimal digits with nothing or white space behind them. */
static int take_hex(const char *text, uint8_t hash[SPA_KEY_HASH])
{
    for (size_t i = 0; i < 2 * SPA_KEY_HASH; i++) {
        const char c = text[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        hash[i / 2] = (uint8_t)(hash[i / 2] << 4 | digit);
    }
    return text[2 * SPA_KEY_HASH] && !strchr(" \t", text[2 * SPA_KEY_HASH]) ? -1 : 0;
}

static int take_line(const char *line, size_t n, struct spa_keys *k)
{
    unsigned len = 0;
    if (strncmp(line, hashed, sizeof hashed - 1) == 0)
        return take_hex(line + sizeof hashed - 1, k->hashes[k->n]);
    k->n_plain++;
    return EVP_Digest(line, n, k->hashes[k->n], &len, EVP_sha256(), NULL) ? 0 : -1;
}

int spa_keys_read(struct spa_keys *k, const char *path, char *why, size_t why_len)
{
    memset(k, 0, sizeof *k);
    FILE *f = fopen(path, "re");
    if (!f) {
        snprintf(why, why_len, "%s: cannot read the API keys: %s", path, strerror(errno));
        return -1;
    }
    char line[LINE_MAX_BYTES];
    unsigned number = 0;
    int rc = 0;
    while (rc == 0 && fgets(line, sizeof line, f)) {
        const size_t n = strcspn(line, "\r\n");
        number++;
        if (n == 0 || line[0] == '#')
            continue;
        line[n] = '\0';
        void *more = realloc(k->hashes, (k->n + 1) * sizeof *k->hashes);
        if (more)
            k->hashes = more;
        if (!more || n + 1 == sizeof line) {
            snprintf(why, why_len, "%s: the key on line %u is too long, or there is no memory", path, number);
            rc = -1;
        } else if (take_line(line, n, k) != 0) {
            snprintf(why, why_len, "%s: line %u is no key: behind sha256: there have to be 64 hexadecimal digits, and a name if you like", path, number);
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

bool spa_keys_find(const struct spa_keys *k, const char *authorization, size_t len, uint8_t hash[SPA_KEY_HASH])
{
    static const char bearer[] = "Bearer ";
    if (k->n == 0)
        return true;
    if (len < sizeof bearer - 1 || strncasecmp(authorization, bearer, sizeof bearer - 1) != 0)
        return false;
    unsigned n = 0;
    if (!EVP_Digest(authorization + sizeof bearer - 1, len - (sizeof bearer - 1), hash, &n, EVP_sha256(), NULL))
        return false;
    return spa_keys_has(k, hash);
}

bool spa_keys_has(const struct spa_keys *k, const uint8_t hash[SPA_KEY_HASH])
{
    bool has = false;
    for (size_t i = 0; i < k->n; i++)   /* all of them, so that time says nothing about which */
        has |= CRYPTO_memcmp(hash, k->hashes[i], SPA_KEY_HASH) == 0;
    return has;
}

bool spa_keys_allow(const struct spa_keys *k, const char *authorization, size_t len)
{
    uint8_t hash[SPA_KEY_HASH];
    return spa_keys_find(k, authorization, len, hash);
}

void spa_keys_free(struct spa_keys *k)
{
    free(k->hashes);
    memset(k, 0, sizeof *k);
}

int spa_keys_make(const char *name, char key[SPA_KEY_TEXT], char line[SPA_KEY_LINE])
{
    static const char prefix[] = "spa-";
    uint8_t random[RANDOM], hash[SPA_KEY_HASH], text[4 * ((RANDOM + 2) / 3) + 1];
    unsigned len = 0;
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return -1;
    EVP_EncodeBlock(text, random, sizeof random);
    for (uint8_t *c = text; *c; c++)   /* what a URL, a shell and a header all take */
        *c = *c == '+' ? '-' : *c == '/' ? '_' : *c == '=' ? '\0' : *c;
    const int n = snprintf(key, SPA_KEY_TEXT, "%s%s", prefix, (const char *)text);
    explicit_bzero(random, sizeof random);
    explicit_bzero(text, sizeof text);
    if (!EVP_Digest(key, (size_t)n, hash, &len, EVP_sha256(), NULL))
        return -1;
    size_t at = (size_t)snprintf(line, SPA_KEY_LINE, "%s", hashed);
    for (size_t i = 0; i < sizeof hash; i++)
        at += (size_t)snprintf(line + at, SPA_KEY_LINE - at, "%02x", hash[i]);
    if (name)
        snprintf(line + at, SPA_KEY_LINE - at, " %s", name);
    return 0;
}
