/* checkpoint.h - a training in mid-course on the disk: weights, AdamW's moments and the number of the last step. Order, dropout and
 * schedule follow from seed and step, so nothing else is needed to go on with the same bits. With members (members.h) it holds the weights of
 * all, and the moments of the one that is being trained.
 *
 *   file = "SPACKPT\n" | version u32 | 0 u32 | key[32] | step u64 | n_params u64 | params f32[n] | moments f32[] | SHA-256 of all before
 *
 * little-endian, mode 0600, replaced whole. The key stands for all that decides the training's course. */
#ifndef SPA_CHECKPOINT_H
#define SPA_CHECKPOINT_H

#include "store.h"

struct spa_checkpoint {
    uint8_t  key[SPA_SHA256_BYTES];
    uint64_t step;
    size_t   n_params, n_moments;
    float   *params;    /* [n_params], the caller's */
    float   *moments;   /* [n_moments], the caller's */
};

/* 0, or -1 with a sentence; an older checkpoint is then still there. */
int spa_checkpoint_save(const char *path, const struct spa_checkpoint *c, char *why, size_t why_len);

/* Fills step, params and moments. 1; 0 when there is no file at path; -1 with a sentence: it is damaged, or its key or sizes are
 * not c's: then params and moments are untouched. */
int spa_checkpoint_load(const char *path, struct spa_checkpoint *c, char *why, size_t why_len);

#endif
