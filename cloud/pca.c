/* pca.c - in: states. out: their mean, leading directions and variances. */
#include "pca.h"
#include "secret.h"

#include <cblas.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 256 };   /* states in one product */

/* LAPACK has no C header of its own in every distribution: its Fortran entry, all arguments by address. */
extern void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda,
                    const double *vl, const double *vu, const int *il, const int *iu, const double *abstol, int *m, double *w,
                    double *z, const int *ldz, int *isuppz, double *work, const int *lwork, int *iwork, const int *liwork,
                    int *info);

bool spa_moments_init(struct spa_moments *m, uint32_t d)
{
    *m = (struct spa_moments){ .d = d, .sum = calloc(d, sizeof *m->sum), .xx = calloc((size_t)d * d, sizeof *m->xx) };
    if (m->sum && m->xx)
        return true;
    spa_moments_free(m);
    return false;
}

void spa_moments_free(struct spa_moments *m)
{
    const size_t d = m->d;
    spa_secret_free(m->sum, d * sizeof *m->sum);
    spa_secret_free(m->xx, d * d * sizeof *m->xx);
    m->sum = m->xx = NULL;
}

void spa_normalise(uint32_t d, const float *y, float *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < d; i++)
        sum += (double)y[i] * y[i];
    const float inv = (float)(1.0 / sqrt(sum / d + 1e-6));
    for (uint32_t i = 0; i < d; i++)
        out[i] = y[i] * inv;
}

bool spa_moments_add(struct spa_moments *m, const float *x, uint32_t n)
{
    const size_t d = m->d;
    const size_t block_bytes = (n < BLOCK ? n : BLOCK) * d * sizeof(double);
    double *block = malloc(block_bytes);
    if (!block)
        return false;
    for (uint32_t at = 0; at < n; at += BLOCK) {
        const uint32_t len = n - at < BLOCK ? n - at : BLOCK;
        for (size_t j = 0; j < len; j++)
            for (size_t i = 0; i < d; i++) {
                block[j * d + i] = x[(at + j) * d + i];
                m->sum[i] += x[(at + j) * d + i];
            }
        cblas_dsyrk(CblasColMajor, CblasUpper, CblasNoTrans, (int)d, (int)len, 1.0, block, (int)d, 1.0, m->xx, (int)d);
    }
    m->n += n;
    spa_secret_free(block, block_bytes);
    return true;
}

/* xx becomes the covariance. */
static bool centre(struct spa_moments *m, float *mean)
{
    const size_t d = m->d;
    for (size_t i = 0; i < d; i++) {
        m->sum[i] /= (double)m->n;
        mean[i] = (float)m->sum[i];
        if (!isfinite(m->sum[i]))
            return false;
    }
    for (size_t col = 0; col < d; col++)
        for (size_t row = 0; row <= col; row++)
            m->xx[col * d + row] = m->xx[col * d + row] / (double)m->n - m->sum[row] * m->sum[col];
    return true;
}

enum spa_err spa_moments_directions(struct spa_moments *m, uint32_t k_, float *mean, float *p, double *variances)
{
    const int d = (int)m->d, k = (int)k_, il = d - k + 1, lwork_query = -1;
    int lwork = 0;
    if (m->n < k_ || k_ == 0 || k_ > m->d)
        return SPA_ERR_SHAPE;
    if (!centre(m, mean))
        return SPA_ERR_RANGE;
    double *w = malloc((size_t)d * sizeof *w), *vec = malloc((size_t)k * (size_t)d * sizeof *vec), *work = NULL;
    int *support = malloc(2 * (size_t)d * sizeof *support), *iwork = NULL;
    enum spa_err err = SPA_ERR_NOMEM;
    if (!w || !vec || !support)
        goto done;
    const double zero = 0;
    int found = 0, info = 0, iwork_len = 0;
    double work_len = 0;
    dsyevr_("V", "I", "U", &d, m->xx, &d, &zero, &zero, &il, &d, &zero, &found, w, vec, &d, support, &work_len, &lwork_query,
            &iwork_len, &lwork_query, &info);
    lwork = (int)work_len;
    work = malloc((size_t)lwork * sizeof *work);
    iwork = malloc((size_t)iwork_len * sizeof *iwork);
    if (!work || !iwork)
        goto done;
    dsyevr_("V", "I", "U", &d, m->xx, &d, &zero, &zero, &il, &d, &zero, &found, w, vec, &d, support, work, &lwork, iwork, &iwork_len,
            &info);
    err = info != 0 || found != k ? SPA_ERR_RANGE : SPA_OK;
    /* LAPACK gives ascending eigenvalues; a direction's variance is its eigenvalue, so no second pass is needed. */
    for (int j = 0; err == SPA_OK && j < k; j++) {
        const double *v = vec + (size_t)(k - 1 - j) * (size_t)d;
        variances[j] = w[k - 1 - j] > 0 ? w[k - 1 - j] : 0;
        int top = 0;
        for (int i = 1; i < d; i++)
            top = fabs(v[i]) > fabs(v[top]) ? i : top;
        const double sign = v[top] < 0 ? -1 : 1;
        for (int i = 0; i < d; i++)
            p[(size_t)j * (size_t)d + (size_t)i] = (float)(sign * v[i]);
    }
done:
    free(w);
    spa_secret_free(vec, (size_t)k * (size_t)d * sizeof *vec);
    free(support);
    spa_secret_free(work, (size_t)lwork * sizeof *work);
    free(iwork);
    return err;
}

float spa_pca_scale(const double *variances, uint32_t k)
{
    double sum = 0;
    for (uint32_t j = 0; j < k; j++)
        sum += variances[j];
    return (float)sqrt(sum / k);
}
