/* lm_head.h - loss and gradient of the frozen LM head, in tiles of the vocabulary, so that neither its F32 form nor the logits
 * of all tokens are ever whole in memory. Devices train with it; the cloud lends it to devices that have no room for one.
 *
 * The loss is exact (no sampling of the vocabulary): one pass keeps a running maximum m, sum of exp and the gradient's accumulator per
 * token, all rescaled when m grows; logits of a tile come from a BLAS product of the states with the dequantised tile, the accumulator
 * from a second one. That one leaves out what is less than a millionth (2^-20, or 1 / (16 n_vocab)) as likely as the likeliest token
 * for a state, and with it the rows of the tile that are so for all states: with SmolLM2 and 64 states half of the rows at first and nine
 * tenths at the end of a training (bench/RESULTS.md says what it costs the gradient).
 *
 *   logits = cap(scale * W s + b),   loss = logsumexp(logits) - logits[target],   ds = W^T (softmax - onehot) (times scale, cap') */
#ifndef SPA_LM_HEAD_H
#define SPA_LM_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spa_head_cloud;   /* device/head_cloud.c: somebody else computes */

struct spa_lm_head {
    uint32_t d, n_vocab;
    uint32_t type;             /* ggml's number */
    uint32_t n_threads;        /* at most; 0: as many as there are cores */
    float    scale, softcap;
    const uint8_t *bytes;      /* rows of the vocabulary in ggml's form, then, where there is a bias, n_vocab F32; NULL with `cloud` */
    size_t   len, row_bytes;   /* len: of all of it */
    const uint8_t *bias;       /* in bytes, perhaps unaligned; NULL: the model has none */
    bool     mapped;           /* bytes is a mapped file, ours to unmap */
    struct spa_head_work *work;/* tile buffers; grow with the largest n, never shrink */
    struct spa_head_cloud *cloud;   /* NULL: computed here, from bytes; else by the function below, whose contract is spa_lm_head_loss's */
    int    (*cloud_loss)(struct spa_head_cloud *c, const float *states, const int32_t *target, uint32_t n, float *loss,
                         float *dstates, int32_t *top, char *why, size_t why_len);
    char     why[1024];        /* after -1 of spa_lm_head_loss: one sentence */
};

/* A head over rows that are already in memory (borrowed). 0, or -1 with a sentence: a type that ggml does not know, a
 * width that it cannot cut into blocks, a length that is neither n_vocab rows nor those and a bias. bytes NULL: only asks whether there can
 * be such a head. */
int  spa_lm_head_view(struct spa_lm_head *h, uint32_t d, uint32_t n_vocab, uint32_t type, const uint8_t *bytes, size_t len,
                      char *why, size_t why_len);
void spa_lm_head_release(struct spa_lm_head *h);   /* frees the buffers alone; the rows stay */

/* states [n, d], target [n] (each in 0..n_vocab-1) -> loss [n] (nats), and where not NULL: dstates [n, d] (of the SUM of
 * the losses), top [n]: the token with the largest logit, or the target when
 * its logit is as large within F32's rounding; -1 where no logit is a number. A state with a NaN or infinity has the loss NaN. The result does
 * not depend on the number of threads. -1 with a sentence in h->why: no memory, the cloud that computes is gone. */
int spa_lm_head_loss(struct spa_lm_head *h, const float *states, const int32_t *target, uint32_t n,
                     float *loss, float *dstates, int32_t *top);

#endif
