/* adamw.h - one optimizer step, and what goes with it. Loshchilov and Hutter, arXiv 1711.05101; as torch.optim.AdamW.
 *
 *   m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2
 *   w = w - lr wd w;       w = w - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) */
#ifndef SPA_ADAMW_H
#define SPA_ADAMW_H

#include "err.h"
#include <stddef.h>
#include <stdint.h>

struct spa_adamw {
    float lr, beta1, beta2, eps, weight_decay;
};

/* Step t (1 for the first) over n weights w, gradients g and moments m, v (zero before the first step). */
void spa_adamw_step(const struct spa_adamw *cfg, uint64_t t, size_t n, float *w, const float *g, float *m, float *v);

/* Scales g so that its Euclidean norm is at most max_norm (0: no limit); *norm gets the norm before.
 * SPA_ERR_RANGE when the norm is NaN or infinite: g is left alone and the step must be thrown away. */
enum spa_err spa_clip_norm(float *g, size_t n, float max_norm, float *norm);

/* Factor on lr at step t of total: linear warm-up over `warmup` steps, then cosine to zero at `total`. t from 1. */
float spa_cosine_schedule(uint64_t t, uint64_t warmup, uint64_t total);

#endif
