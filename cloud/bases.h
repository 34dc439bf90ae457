/* bases.h - the bases that the cloud knows, by hash: uploaded by devices or fitted here. A bounded cache; one that is in use
 * by a connection is never dropped. Used by the decode thread alone. */
#ifndef SPA_BASES_H
#define SPA_BASES_H

#include "basis.h"

enum { SPA_BASES_MAX = 256, SPA_BASES_BYTES = 1 << 30 };   /* no more than so many, and so large together */

struct spa_basis {
    uint8_t hash[SPA_HASH_BYTES];
    float  *floats;              /* as basis.h lays them out */
    size_t  n;                   /* floats */
    uint32_t users;
    uint64_t last_used;
};
struct spa_bases {
    struct spa_basis *all[SPA_BASES_MAX];
    uint64_t clock;
    size_t   bytes;              /* of all floats */
};

/* Takes one more reference, or NULL when it is not known or has another length. */
struct spa_basis *spa_bases_get(struct spa_bases *b, const uint8_t hash[SPA_HASH_BYTES], size_t n);
/* Adds floats [n] (taken over, freed on failure) and returns it with a reference; hash is computed. NULL: full or no memory. */
struct spa_basis *spa_bases_add(struct spa_bases *b, float *floats, size_t n);
void spa_bases_put(struct spa_basis *basis);   /* drops a reference; takes NULL */
void spa_bases_free(struct spa_bases *b);

#endif
