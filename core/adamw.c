/* adamw.c - the optimizer: gradient clipping, learning rate schedule, step. One loop each over flat arrays. */
#include "adamw.h"

#include <assert.h>
#include <math.h>

void spa_adamw_step(const struct spa_adamw *cfg, uint64_t t, size_t n, float *restrict w, const float *restrict g,
                    float *restrict m, float *restrict v)
{
    assert(t >= 1);
    /* In double: 1 - beta2^t starts near 0.001 and would lose half its digits in float. */
    const float correct1 = (float)(1.0 - pow((double)cfg->beta1, (double)t));
    const float correct2 = (float)(1.0 - pow((double)cfg->beta2, (double)t));
    const float b1 = cfg->beta1, b2 = cfg->beta2, c1 = 1.0f - b1, c2 = 1.0f - b2, eps = cfg->eps;
    const float keep = 1.0f - cfg->lr * cfg->weight_decay, step = cfg->lr / correct1, root2 = 1.0f / sqrtf(correct2);
    for (size_t i = 0; i < n; i++) {
        m[i] = b1 * m[i] + c1 * g[i];
        v[i] = b2 * v[i] + c2 * g[i] * g[i];
        w[i] = keep * w[i] - step * m[i] / (sqrtf(v[i]) * root2 + eps);
    }
}

enum spa_err spa_clip_norm(float *g, size_t n, float max_norm, float *norm)
{
    double acc[8] = {0};   /* squares of large finite floats would overflow a float */
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t l = 0; l < 8; l++)
            acc[l] += (double)g[i + l] * (double)g[i + l];
    for (; i < n; i++)
        acc[0] += (double)g[i] * (double)g[i];
    const double sum = ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
    *norm = (float)sqrt(sum);
    if (!isfinite(*norm))
        return SPA_ERR_RANGE;
    if (max_norm > 0 && *norm > max_norm) {
        const float scale = max_norm / *norm;
        for (i = 0; i < n; i++)
            g[i] *= scale;
    }
    return SPA_OK;
}

float spa_cosine_schedule(uint64_t t, uint64_t warmup, uint64_t total)
{
    if (t < warmup)
        return (float)t / (float)warmup;
    if (t >= total)
        return 0;
    const double part = (double)(t - warmup) / (double)(total - warmup);
    return (float)(0.5 * (1.0 + cos(3.14159265358979323846 * part)));
}
