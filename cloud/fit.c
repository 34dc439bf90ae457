/* fit.c - in: raw taps of loss tokens. out: a basis. */
#include "fit.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LAPACK has no C header of its own in every distribution: its Fortran entry, all arguments by address. */
extern void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda,
                    const double *vl, const double *vu, const int *il, const int *iu, const double *abstol, int *m, double *w,
                    double *z, const int *ldz, int *isuppz, double *work, const int *lwork, int *iwork, const int *liwork,
                    int *info);

struct spa_fit {
    struct spa_shape shape;
    float   *states;      /* [n_taps][SPA_FIT_STATES_MAX][d], normalised */
    uint32_t n, next_tap;
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
    f->basis = malloc(spa_basis_floats(shape) * sizeof *f->basis);
    if (!f->states || !f->basis) {
        spa_fit_free(f);
        return NULL;
    }
    return f;
}

void spa_fit_free(struct spa_fit *f)
{
    if (!f)
        return;
    free(f->states);
    free(f->basis);
    free(f);
}

bool spa_fit_add(struct spa_fit *f, const float *const *y)
{
    if (f->n == SPA_FIT_STATES_MAX)
        return false;
    const uint32_t d = f->shape.d;
    for (uint32_t t = 0; t < f->shape.n_taps; t++) {
        float *to = f->states + ((size_t)t * SPA_FIT_STATES_MAX + f->n) * d;
        double sum = 0;
        for (uint32_t i = 0; i < d; i++)
            sum += (double)y[t][i] * y[t][i];
        const float inv = (float)(1.0 / sqrt(sum / d + 1e-6));
        for (uint32_t i = 0; i < d; i++)
            to[i] = y[t][i] * inv;
    }
    f->n++;
    return true;
}

uint32_t spa_fit_states(const struct spa_fit *f)
{
    return f->n;
}

/* Mean, directions and scale of one tap into its place in the basis. */
static enum spa_err fit_tap(struct spa_fit *f, uint32_t tap)
{
    const int d = (int)f->shape.d, k = (int)f->shape.k, n = (int)f->n;
    const size_t dd = (size_t)d * (size_t)d;
    double *x = malloc((size_t)n * (size_t)d * sizeof *x), *cov = malloc(dd * sizeof *cov), *w = malloc((size_t)d * sizeof *w);
    double *vec = malloc((size_t)k * (size_t)d * sizeof *vec), *mean = calloc((size_t)d, sizeof *mean), *work = NULL;
    int *support = malloc(2 * (size_t)d * sizeof *support), *iwork = NULL;
    enum spa_err err = SPA_ERR_NOMEM;
    if (!x || !cov || !w || !vec || !mean || !support)
        goto done;
    const float *states = f->states + (size_t)tap * SPA_FIT_STATES_MAX * (size_t)d;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < d; i++)
            mean[i] += states[(size_t)j * d + i];
    for (int i = 0; i < d; i++) {
        mean[i] /= n;
        if (!isfinite(mean[i])) {
            err = SPA_ERR_RANGE;
            goto done;
        }
    }
    for (int j = 0; j < n; j++)
        for (int i = 0; i < d; i++)
            x[(size_t)j * d + i] = states[(size_t)j * d + i] - mean[i];
    cblas_dsyrk(CblasColMajor, CblasUpper, CblasNoTrans, d, n, 1.0 / n, x, d, 0.0, cov, d);

    const int il = d - k + 1, lwork_query = -1;
    const double zero = 0;
    int m = 0, info = 0, iwork_len = 0;
    double work_len = 0;
    dsyevr_("V", "I", "U", &d, cov, &d, &zero, &zero, &il, &d, &zero, &m, w, vec, &d, support, &work_len, &lwork_query,
            &iwork_len, &lwork_query, &info);
    const int lwork = (int)work_len;
    work = malloc((size_t)lwork * sizeof *work);
    iwork = malloc((size_t)iwork_len * sizeof *iwork);
    if (!work || !iwork)
        goto done;
    dsyevr_("V", "I", "U", &d, cov, &d, &zero, &zero, &il, &d, &zero, &m, w, vec, &d, support, work, &lwork, iwork, &iwork_len, &info);
    if (info != 0 || m != k) {
        err = SPA_ERR_RANGE;
        goto done;
    }
    /* LAPACK gives ascending eigenvalues; a direction's variance is its eigenvalue, so the scale needs no second pass. */
    float *scale = f->basis + (size_t)tap * (1 + (size_t)d + (size_t)k * (size_t)d), *to_mean = scale + 1, *p = to_mean + d;
    double sum = 0;
    for (int j = 0; j < k; j++) {
        const double *v = vec + (size_t)(k - 1 - j) * d;
        sum += w[k - 1 - j] > 0 ? w[k - 1 - j] : 0;
        int top = 0;
        for (int i = 1; i < d; i++)
            top = fabs(v[i]) > fabs(v[top]) ? i : top;
        const double sign = v[top] < 0 ? -1 : 1;
        for (int i = 0; i < d; i++)
            p[(size_t)j * d + i] = (float)(sign * v[i]);
    }
    for (int i = 0; i < d; i++)
        to_mean[i] = (float)mean[i];
    *scale = (float)sqrt(sum / k);
    err = *scale > 1e-20f ? SPA_OK : SPA_ERR_SHAPE;
done:
    free(x);
    free(cov);
    free(w);
    free(vec);
    free(mean);
    free(support);
    free(work);
    free(iwork);
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
