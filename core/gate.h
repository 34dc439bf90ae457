/* gate.h - decides per token whether the device is asked: a linear classifier with two classes on v [n], which is y_fin [d], or
 * y_fin and behind it the token's taps x [n_taps k].
 *
 *   s = softmax(W v + b)   W: [2, n], row 1 = "ask the device";  fires when s[1] > threshold
 *
 * The authors' gate (`opt.weight`) reads y_fin, has no bias and fires at argmax, that is threshold 0.5. What the cloud needs is one
 * direction: fires when g . v + g_bias > 0 with g = W[1] - W[0], g_bias = b[1] - b[0] - logit(threshold). */
#ifndef SPA_GATE_H
#define SPA_GATE_H

#include "err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Folds w [2, n], b [2] and a threshold in (0, 1) into g [n] and *g_bias. */
void spa_gate_fold(size_t n, const float *w, const float *b, float threshold, float *g, float *g_bias);

/* g . v + g_bias; positive: ask the device. */
float spa_gate_score(size_t n, const float *g, float g_bias, const float *v);

/* Cross-entropy of one token with its class (0 or 1), weighted; ADDS to dw [2, n] and db [2]. Returns the loss. */
float spa_gate_backward(size_t n, const float *w, const float *b, const float *v, int label, float weight,
                        float *dw, float *db);

#endif
