/* bases.c - in: bases as floats. out: the same one for the same hash. */
#include "bases.h"
#include "secret.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

struct spa_basis *spa_bases_get(struct spa_bases *b, const uint8_t hash[SPA_HASH_BYTES], size_t n)
{
    for (size_t i = 0; i < SPA_BASES_MAX; i++) {
        struct spa_basis *s = b->all[i];
        if (s && s->n == n && memcmp(s->hash, hash, SPA_HASH_BYTES) == 0) {
            s->users++;
            s->last_used = ++b->clock;
            return s;
        }
    }
    return NULL;
}

/* A basis that was fitted on somebody's rows tells what they are about. */
static void floats_free(float *floats, size_t n)
{
    spa_secret_free(floats, n * sizeof *floats);
}

static size_t free_place(const struct spa_bases *b)
{
    size_t i = 0;
    while (i < SPA_BASES_MAX && b->all[i])
        i++;
    return i;
}

/* Of those that nobody uses. false: there is none. */
static bool drop_oldest(struct spa_bases *b)
{
    size_t oldest = SPA_BASES_MAX;
    for (size_t i = 0; i < SPA_BASES_MAX; i++)
        if (b->all[i] && b->all[i]->users == 0 && (oldest == SPA_BASES_MAX || b->all[i]->last_used < b->all[oldest]->last_used))
            oldest = i;
    if (oldest == SPA_BASES_MAX)
        return false;
    b->bytes -= b->all[oldest]->n * sizeof *b->all[oldest]->floats;
    floats_free(b->all[oldest]->floats, b->all[oldest]->n);
    free(b->all[oldest]);
    b->all[oldest] = NULL;
    return true;
}

struct spa_basis *spa_bases_add(struct spa_bases *b, float *floats, size_t n)
{
    uint8_t hash[SPA_HASH_BYTES];
    unsigned len = 0;
    struct spa_basis *s = NULL;
    if (EVP_Digest(floats, n * sizeof *floats, hash, &len, EVP_sha256(), NULL))
        s = spa_bases_get(b, hash, n);
    if (s) {
        floats_free(floats, n);
        return s;
    }
    size_t place = free_place(b);
    while ((place == SPA_BASES_MAX || b->bytes + n * sizeof *floats > SPA_BASES_BYTES) && drop_oldest(b))
        place = free_place(b);
    s = place < SPA_BASES_MAX && b->bytes + n * sizeof *floats <= SPA_BASES_BYTES ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        floats_free(floats, n);
        return NULL;
    }
    b->bytes += n * sizeof *floats;
    memcpy(s->hash, hash, sizeof hash);
    s->floats = floats;
    s->n = n;
    s->users = 1;
    s->last_used = ++b->clock;
    b->all[place] = s;
    return s;
}

void spa_bases_put(struct spa_basis *basis)
{
    if (basis)
        basis->users--;
}

void spa_bases_free(struct spa_bases *b)
{
    for (size_t i = 0; i < SPA_BASES_MAX; i++)
        if (b->all[i]) {
            floats_free(b->all[i]->floats, b->all[i]->n);
            free(b->all[i]);
        }
}
