/* basis.c - how a tap is made ready for the ladder: normalised and projected. In: a state y; out: x. */
#include "basis.h"
#include "kernels.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static size_t tap_floats(const struct spa_shape *s)
{
    return 1 + (size_t)s->d + (size_t)s->k * s->d;
}

size_t spa_basis_floats(const struct spa_shape *s)
{
    return s->basis ? s->n_taps * tap_floats(s) : 0;
}

enum spa_err spa_basis_check(const struct spa_shape *s, const float *basis)
{
    const size_t n = spa_basis_floats(s), n_tap = tap_floats(s);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(basis[i]))
            return SPA_ERR_RANGE;
    for (size_t i = 0; i < n; i += n_tap)
        if (!(basis[i] > 0))
            return SPA_ERR_RANGE;
    return SPA_OK;
}

void spa_tap_prepare(const struct spa_shape *s, const float *basis, uint32_t tap, const float *restrict y,
                     float *restrict scratch, float *restrict x)
{
    assert(tap < s->n_taps && (basis || !s->basis));
    const size_t d = s->d, k = s->k;
    if (s->normalise == SPA_NORM_NONE) {
        memcpy(x, y, d * sizeof *x);
        return;
    }
    const float rms = sqrtf(spa_dot(d, y, y) / (float)d + 1e-6f);
    if (!s->basis) {
        for (size_t i = 0; i < d; i++)
            x[i] = y[i] / rms;
        return;
    }
    const float scale = basis[tap * tap_floats(s)];
    const float *restrict mean = basis + tap * tap_floats(s) + 1, *p = mean + d;
    for (size_t i = 0; i < d; i++)
        scratch[i] = y[i] / rms - mean[i];
    memset(x, 0, k * sizeof *x);
    spa_matvec_add(k, d, p, scratch, x);
    for (size_t i = 0; i < k; i++)
        x[i] /= scale;
}
