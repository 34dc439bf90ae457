/* pca.h - mean and leading directions of states: what task bases (fit.h) and the generic basis (generic.h) are made of.
 *
 * Sums are kept in double, so that how the states were cut into blocks does not show. Directions are eigenvectors of the
 * covariance (LAPACK dsyevr), the sign of each chosen so that its largest entry is positive: the same states give the same
 * directions. */
#ifndef SPA_PCA_H
#define SPA_PCA_H

#include "err.h"
#include <stdbool.h>
#include <stdint.h>

/* Sums over n states: of each number, and of all products (upper triangle). */
struct spa_moments {
    uint32_t d;
    uint64_t n;
    double *sum;    /* [d] */
    double *xx;     /* [d, d] */
};

bool spa_moments_init(struct spa_moments *m, uint32_t d);   /* false: no memory, and nothing is held */
void spa_moments_free(struct spa_moments *m);
/* y [d] divided by its root mean square, as basis.h does it. */
void spa_normalise(uint32_t d, const float *y, float *out);
/* Adds n states x [n, d]. false: no memory. */
bool spa_moments_add(struct spa_moments *m, const float *x, uint32_t n);

/* mean [d]; the k leading directions p [k, d] with their variances [k], largest first. Uses m up: only free it afterwards.
 * SPA_ERR_SHAPE: fewer states than directions; SPA_ERR_RANGE: states that are not finite; SPA_ERR_NOMEM. */
enum spa_err spa_moments_directions(struct spa_moments *m, uint32_t k, float *mean, float *p, double *variances);
/* The scale that gives values on the first k directions a root mean square of 1. */
float spa_pca_scale(const double *variances, uint32_t k);

#endif
