/* blob.c - fetches a block by its hash (blob.h). In: BLOB messages. Out: pieces, in order; the hash is checked at the end. */
#include "blob.h"

#include <openssl/evp.h>

#include <stdio.h>
#include <string.h>

enum { IN_FLIGHT = 8, SILENCE_MS = 60000 };

static int fetch_pieces(struct spa_link *l, spa_BlobKind kind, const uint8_t *hash, uint64_t total, EVP_MD_CTX *digest,
                        const struct spa_blob_sink *sink, char *why, size_t why_len)
{
    struct spa_session *s = spa_link_session(l);
    uint64_t asked = 0, got = 0;   /* offsets: of the next piece to ask for, of the next that comes */
    while (got < total) {
        for (; asked < total && asked - got < (uint64_t)IN_FLIGHT * SPA_BLOB_PIECE; asked += SPA_BLOB_PIECE) {
            enum spa_err e = spa_session_fetch(s, kind, hash, asked);
            if (e != SPA_OK) {
                snprintf(why, why_len, "asking the cloud for a piece failed: %s", spa_err_name(e));
                return -1;
            }
        }
        struct spa_session_event ev;
        int rc = spa_link_wait(l, SILENCE_MS, &ev, why, why_len);
        if (rc < 0)
            return -1;
        if (rc == 0) {
            snprintf(why, why_len, "the cloud has been silent for %d seconds", SILENCE_MS / 1000);
            return -1;
        }
        if (ev.type == SPA_MSG_ERROR) {
            snprintf(why, why_len, "the cloud says: %.*s", (int)ev.msg->bulk_len, (const char *)ev.msg->bulk);
            return -1;
        }
        if (ev.type != SPA_MSG_BLOB)
            continue;
        const spa_Blob *b = &ev.msg->head.blob;
        uint32_t len = ev.msg->bulk_len;
        /* Every piece but the last is whole: a shorter one would leave a gap before the next that was asked for. */
        uint64_t expected = total - got < SPA_BLOB_PIECE ? total - got : SPA_BLOB_PIECE;
        if (b->kind != kind || b->offset != got || b->total != total || len != expected) {
            snprintf(why, why_len, "the cloud sent a piece that was not asked for");
            return -1;
        }
        if (sink->take(sink->user, ev.msg->bulk, len, why, why_len) != 0)
            return -1;
        EVP_DigestUpdate(digest, ev.msg->bulk, len);
        got += len;
        if (sink->progress)
            sink->progress(sink->progress_user, got, total);
    }
    uint8_t found[SPA_HASH_BYTES];
    EVP_DigestFinal_ex(digest, found, NULL);
    if (memcmp(found, hash, SPA_HASH_BYTES) != 0) {
        snprintf(why, why_len, "what the cloud sent does not have the hash that it announced");
        return -1;
    }
    return 0;
}

int spa_blob_fetch(struct spa_link *l, spa_BlobKind kind, const uint8_t hash[SPA_HASH_BYTES], uint64_t total,
                   const struct spa_blob_sink *sink, char *why, size_t why_len)
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    if (!digest || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(digest);
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    int rc = fetch_pieces(l, kind, hash, total, digest, sink, why, why_len);
    EVP_MD_CTX_free(digest);
    return rc;
}
