/* fit.c - in: raw taps of loss tokens, and of other tokens where a device looks back. out: a basis. */
#include "fit.h"

#include "pca.h"
#include "secret.h"

#include <assert.h>
#include <cblas.h>
#include <stdlib.h>
#include <string.h>

struct spa_fit {
    struct spa_shape shape;
    float   *states;      /* [n_taps][SPA_FIT_STATES_MAX][d] of loss tokens, normalised */
    float   *context;     /* [n_ctx_taps][SPA_FIT_STATES_MAX][d] of others */
    uint32_t n, n_context, next_tap;
    float   *basis;
};

struct spa_fit *spa_fit_new(const struct spa_shape *shape)
{
    struct spa_fit *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->shape = *shape;
    /* The cores are the model's; and a pool of idle BLAS threads would spin beside its own. */
    openblas_set_num_threads(1);
    f->states = malloc((size_t)shape->n_taps * SPA_FIT_STATES_MAX * shape->d * sizeof *f->states);
    const size_t n_others = spa_fit_reads_context(shape) ? shape->n_ctx_taps : 0;
    f->context = malloc((n_others * SPA_FIT_STATES_MAX * shape->d + 1) * sizeof *f->context);
    f->basis = malloc(spa_basis_floats(shape) * sizeof *f->basis);
    if (!f->states || !f->context || !f->basis) {
        spa_fit_free(f);
        return NULL;
    }
    return f;
}

void spa_fit_free(struct spa_fit *f)
{
    if (!f)
        return;
    const size_t d = f->shape.d, n_others = spa_fit_reads_context(&f->shape) ? f->shape.n_ctx_taps : 0;
    for (uint32_t t = 0; f->states && t < f->shape.n_taps; t++)   /* what was written: fits are often short, and their room is not */
        explicit_bzero(f->states + (size_t)t * SPA_FIT_STATES_MAX * d, f->n * d * sizeof *f->states);
    for (uint32_t t = 0; f->context && t < n_others; t++)
        explicit_bzero(f->context + (size_t)t * SPA_FIT_STATES_MAX * d, f->n_context * d * sizeof *f->context);
    free(f->states);
    free(f->context);
    spa_secret_free(f->basis, spa_basis_floats(&f->shape) * sizeof *f->basis);
    free(f);
}

bool spa_fit_add(struct spa_fit *f, const float *const *y)
{
    if (f->n == SPA_FIT_STATES_MAX)
        return false;
    const size_t d = f->shape.d;
    for (uint32_t t = 0; t < f->shape.n_taps; t++)
        spa_normalise(f->shape.d, y[t], f->states + ((size_t)t * SPA_FIT_STATES_MAX + f->n) * d);
    f->n++;
    return true;
}

void spa_fit_add_context(struct spa_fit *f, const float *const *y)
{
    const size_t d = f->shape.d;
    assert(spa_fit_reads_context(&f->shape));
    if (f->n_context == SPA_FIT_STATES_MAX)
        return;
    for (uint32_t t = 0, c = 0; t < f->shape.n_taps && c < f->shape.n_ctx_taps; t++)
        if (f->shape.taps[t] == f->shape.ctx_taps[c])
            spa_normalise(f->shape.d, y[t], f->context + ((size_t)c++ * SPA_FIT_STATES_MAX + f->n_context) * d);
    f->n_context++;
}

uint32_t spa_fit_states(const struct spa_fit *f)
{
    return f->n;
}

/* Its own states, and those of other tokens where it is a context tap. */
static bool add_states(const struct spa_fit *f, uint32_t tap, struct spa_moments *m)
{
    const size_t size = (size_t)SPA_FIT_STATES_MAX * f->shape.d;
    if (!spa_moments_add(m, f->states + tap * size, f->n))
        return false;
    for (uint32_t c = 0; f->n_context && c < f->shape.n_ctx_taps; c++)
        if (f->shape.ctx_taps[c] == f->shape.taps[tap])
            return spa_moments_add(m, f->context + c * size, f->n_context);
    return true;
}

/* Mean, directions and scale of one tap into its place in the basis. */
static enum spa_err fit_tap(struct spa_fit *f, uint32_t tap)
{
    const size_t d = f->shape.d, k = f->shape.k;
    float *scale = f->basis + (size_t)tap * (1 + d + k * d);
    struct spa_moments m;
    double *variances = malloc(k * sizeof *variances);
    enum spa_err err = SPA_ERR_NOMEM;
    if (variances && spa_moments_init(&m, f->shape.d)) {
        if (add_states(f, tap, &m))
            err = spa_moments_directions(&m, f->shape.k, scale + 1, scale + 1 + d, variances);
        if (err == SPA_OK) {
            *scale = spa_pca_scale(variances, f->shape.k);
            err = *scale > 1e-20f ? SPA_OK : SPA_ERR_SHAPE;
        }
        spa_moments_free(&m);
    }
    free(variances);
    return err;
}

enum spa_err spa_fit_step(struct spa_fit *f, float **floats)
{
    if (f->n < f->shape.k)
        return SPA_ERR_SHAPE;
    const enum spa_err err = fit_tap(f, f->next_tap);
    if (err != SPA_OK)
        return err;
    if (++f->next_tap < f->shape.n_taps)
        return SPA_NONE;
    *floats = f->basis;
    f->basis = NULL;
    return SPA_OK;
}
