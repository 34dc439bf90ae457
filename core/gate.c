/* gate.c - the gate's one direction for answering, its loss and gradient for training. In: y_fin; out: ask the device? */
#include "gate.h"
#include "kernels.h"

#include <assert.h>
#include <math.h>

void spa_gate_fold(size_t d, const float *w, const float *b, float threshold, float *g, float *g_bias)
{
    assert(threshold > 0 && threshold < 1);
    for (size_t i = 0; i < d; i++)
        g[i] = w[d + i] - w[i];
    *g_bias = b[1] - b[0] - logf(threshold / (1.0f - threshold));
}

float spa_gate_score(size_t d, const float *g, float g_bias, const float *y)
{
    return spa_dot(d, g, y) + g_bias;
}

float spa_gate_backward(size_t d, const float *w, const float *b, const float *y, int label, float weight, float *dw,
                        float *db)
{
    assert(label == 0 || label == 1);
    /* Two classes: the loss is softplus of how far the wrong class is ahead, its derivative the wrong class' share. */
    const float s0 = spa_dot(d, w, y) + b[0], s1 = spa_dot(d, w + d, y) + b[1];
    const float ahead = label ? s0 - s1 : s1 - s0;
    const float small = expf(-fabsf(ahead));
    const float loss = (ahead > 0 ? ahead : 0) + log1pf(small);
    const float share = ahead > 0 ? 1.0f / (1.0f + small) : small / (1.0f + small);
    const float push = weight * (label ? -share : share);   /* d loss / d s1 = -d loss / d s0 */
    for (size_t i = 0; i < d; i++) {
        dw[i] -= push * y[i];
        dw[d + i] += push * y[i];
    }
    db[0] -= push;
    db[1] += push;
    return weight * loss;
}
