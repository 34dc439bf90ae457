/* retry.h - when to try a lost cloud again, and which of several. No clock and no sockets: the caller tells the time. */
#ifndef SPA_RETRY_H
#define SPA_RETRY_H

#include <stdbool.h>
#include <stdint.h>

enum { SPA_RETRY_DEFAULT_S = 30 };

/* From the first break since an answer got on to its next token. */
struct spa_retry { bool begun; uint64_t until_ms, seed; uint32_t tries; uint32_t later_ms; };   /* later_ms: the cloud has said that the next try is of no use before */

/* seed: of the jitter; devices that were cut off together shall not come back together. Does nothing when it has begun. */
void spa_retry_begin(struct spa_retry *r, uint64_t now_ms, uint64_t within_ms, uint64_t seed);
/* How long to wait before the next try: at once or nearly so, then a quarter of a second, doubled each time up to 5 s, all less a random part of
 * up to half; but not before later_ms, which counts once. The last try is at the deadline. -1: it has passed, or will have by then. */
int64_t spa_retry_next(struct spa_retry *r, uint64_t now_ms);

enum { SPA_CLOUDS_MAX = 16 };

/* What is known of the clouds that --cloud lists. All zeros in the beginning. */
struct spa_clouds {
    uint32_t refused;                /* bits: it refused us, and asking again changes nothing */
    uint32_t at;                     /* the one that is connected */
    uint32_t later_ms;               /* of the last time that none took us: when one will, as they say; 0: nobody knows */
    bool     known;                  /* the model that answers come from, of the first connection: */
    bool     has_hash;
    uint8_t  hash[32];
    uint32_t d, n_layers, n_vocab;
};

#endif
