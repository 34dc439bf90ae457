/* gate.c - the gate's one direction for answering, its loss and gradient for training. In: what it reads of a token; out: ask the device? */
#include "gate.h"
#include "kernels.h"

#include <assert.h>
#include <math.h>

void spa_gate_fold(size_t n, const float *w, const float *b, float threshold, float *g, float *g_bias)
{
    assert(threshold > 0 && threshold < 1);
    for (size_t i = 0; i < n; i++)
        g[i] = w[n + i] - w[i];
    *g_bias = b[1] - b[0] - logf(threshold / (1.0f - threshold));
}

float spa_gate_score(size_t n, const float *g, float g_bias, const float *v)
{
    return spa_dot(n, g, v) + g_bias;
}

float spa_gate_backward(size_t n, const float *w, const float *b, const float *v, int label, float weight, float *dw,
                        float *db)
{
    assert(label == 0 || label == 1);
    /* Two classes: the loss is softplus of how far the wrong class is ahead, its derivative the wrong class' share. */
    const float s0 = spa_dot(n, w, v) + b[0], s1 = spa_dot(n, w + n, v) + b[1];
    const float ahead = label ? s0 - s1 : s1 - s0;
    const float small = expf(-fabsf(ahead));
    const float loss = (ahead > 0 ? ahead : 0) + log1pf(small);
    const float share = ahead > 0 ? 1.0f / (1.0f + small) : small / (1.0f + small);
    const float push = weight * (label ? -share : share);   /* d loss / d s1 = -d loss / d s0 */
    for (size_t i = 0; i < n; i++) {
        dw[i] -= push * v[i];
        dw[n + i] += push * v[i];
    }
    db[0] -= push;
    db[1] += push;
    return weight * loss;
}
