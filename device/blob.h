/* blob.h - large blocks of bytes that the cloud holds under their SHA-256: the LM head, a basis. Fetched in pieces. */
#ifndef SPA_BLOB_H
#define SPA_BLOB_H

#include "link.h"

/* Where the pieces go, in order and without gaps.
 *   take      0, or -1 with a sentence in why: the fetch ends
 *   progress  NULL, or called after each piece */
struct spa_blob_sink {
    void *user;
    int  (*take)(void *user, const uint8_t *bytes, size_t len, char *why, size_t why_len);
    void (*progress)(void *user, uint64_t done, uint64_t of);
    void *progress_user;
};

/* Asks for `total` bytes and checks that they are the ones that hash names. Several pieces are under way at a time, so a
 * long road costs little. Nothing else may be open on the link. 0, or -1 with a sentence. */
int spa_blob_fetch(struct spa_link *l, spa_BlobKind kind, const uint8_t hash[SPA_HASH_BYTES], uint64_t total,
                   const struct spa_blob_sink *sink, char *why, size_t why_len);

#endif
