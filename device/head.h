/* head.h - the frozen LM head on the device, for training: fetched once in its quantised form, kept by hash, run in tiles of
 * the vocabulary so that neither its F32 form nor the logits of all tokens are ever whole in memory.
 *
 * Loss and gradient are exact (no sampling of the vocabulary): one pass keeps a running maximum m, sum of exp and the
 * gradient's accumulator per token, all rescaled when m grows; logits of a tile come from a BLAS product of the states
 * with the dequantised tile, the accumulator from a second one.
 *
 *   logits = cap(scale * W s),   loss = logsumexp(logits) - logits[target],   ds = W^T (softmax - onehot) (times scale, cap') */
#ifndef SPA_HEAD_H
#define SPA_HEAD_H

#include "link.h"

struct spa_lm_head {
    uint32_t d, n_vocab;
    uint32_t type;             /* ggml's number */
    float    scale, softcap;
    const uint8_t *bytes;      /* rows of the vocabulary in ggml's form */
    size_t   len;
    bool     mapped;           /* bytes is a mapped file, ours to unmap */
    struct spa_head_work *work;/* tile buffers; grow with the largest n, never shrink */
};

/* A head over rows that are already in memory (borrowed). 0, or -1 with a sentence: a type that ggml does not know, a
 * width that it cannot cut into blocks, a length that is not n_vocab rows. */
int  spa_lm_head_view(struct spa_lm_head *h, uint32_t d, uint32_t n_vocab, uint32_t type, const uint8_t *bytes, size_t len,
                      char *why, size_t why_len);
void spa_lm_head_release(struct spa_lm_head *h);   /* frees the buffers alone; the rows stay */

/* Takes it from the cache folder (NULL: $XDG_CACHE_HOME/spa or ~/.cache/spa), or fetches it over the link and keeps it there
 * (whole or not at all, checked against its hash). 0, or -1 with a sentence. */
int  spa_lm_head_open(struct spa_lm_head *h, struct spa_link *l, const char *cache_dir,
                      void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len);
/* From the cache folder alone, without a link: the head that w describes. 1, 0 when it is not there, -1 with a sentence. */
int  spa_lm_head_open_cached(struct spa_lm_head *h, const spa_Welcome *w, const char *cache_dir, char *why, size_t why_len);
void spa_lm_head_close(struct spa_lm_head *h);

/* states [n, d], target [n] (each in 0..n_vocab-1) -> loss [n] (nats), and where not NULL: dstates [n, d] (of the SUM of
 * the losses), top [n]: the token with the largest logit. A state with a NaN or infinity has the loss NaN. The result does
 * not depend on the number of threads. -1 only for lack of memory or threads. */
int spa_lm_head_loss(struct spa_lm_head *h, const float *states, const int32_t *target, uint32_t n,
                     float *loss, float *dstates, int32_t *top);

#endif
