/* logprobs.c - entries as bytes and back (logprobs.h). */
#include "logprobs.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { ENTRY_HEAD = 12 };

enum spa_err spa_logprob_next(const uint8_t *bulk, size_t bulk_len, size_t *at, struct spa_logprob *out)
{
    if (*at == bulk_len) return SPA_NONE;
    if (bulk_len - *at < ENTRY_HEAD) return SPA_ERR_FORMAT;
    const uint8_t *b = bulk + *at;
    memcpy(&out->id, b, 4);
    memcpy(&out->logprob, b + 4, 4);
    memcpy(&out->len, b + 8, 4);
    if (out->len > SPA_LOGPROB_BYTES_MAX || out->len > bulk_len - *at - ENTRY_HEAD) return SPA_ERR_FORMAT;
    if (!isfinite(out->logprob) || out->logprob > 0) return SPA_ERR_FORMAT;
    out->bytes = b + ENTRY_HEAD;
    *at += ENTRY_HEAD + (size_t)out->len;
    return SPA_OK;
}

size_t spa_logprob_write(const struct spa_logprob *l, uint8_t *out)
{
    assert(l->len <= SPA_LOGPROB_BYTES_MAX);
    memcpy(out, &l->id, 4);
    memcpy(out + 4, &l->logprob, 4);
    memcpy(out + 8, &l->len, 4);
    if (l->len) memcpy(out + ENTRY_HEAD, l->bytes, l->len);
    return ENTRY_HEAD + (size_t)l->len;
}
