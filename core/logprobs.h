/* logprobs.h - the bulk of LOGPROBS: how likely a token was, and what else was likely. One entry after the other without padding:
 *
 *   id i32 | logprob f32 | len u32 | bytes [len]      bytes: the token's own, which need not be whole characters */
#ifndef SPA_LOGPROBS_H
#define SPA_LOGPROBS_H

#include "err.h"
#include <stddef.h>
#include <stdint.h>

enum {
    SPA_LOGPROBS_MAX = 21,         /* entries: the token that was said, then up to 20 of the likeliest, the likeliest first */
    SPA_LOGPROB_BYTES_MAX = 512,   /* of a token */
    SPA_LOGPROBS_BULK_MAX = SPA_LOGPROBS_MAX * (12 + SPA_LOGPROB_BYTES_MAX),
};

struct spa_logprob { int32_t id; float logprob; const uint8_t *bytes; uint32_t len; };

/* Walks the entries: start with *at = 0. SPA_OK fills *out, whose bytes point into bulk; SPA_NONE at the end; SPA_ERR_FORMAT: cut off, too
 * long, or a logprob that is no number from minus something finite to 0. */
enum spa_err spa_logprob_next(const uint8_t *bulk, size_t bulk_len, size_t *at, struct spa_logprob *out);
/* Writes one to out, 12 + l->len bytes, and says how many. */
size_t spa_logprob_write(const struct spa_logprob *l, uint8_t *out);

#endif
