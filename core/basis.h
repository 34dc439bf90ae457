/* basis.h - how a tap is made ready: normalised and projected. Runs in the cloud; frozen, public, not personal.
 *
 *   x = y                                                 raw
 *   x = y / rms(y)                                        raw, normalised;  rms(y) = sqrt(mean(y^2) + 1e-6)
 *   x = (P_l (y / rms(y) - mean_l)) / scale_l             projected, P_l: [k, d]
 *
 * A basis as bytes (file, wire, hash): for each tap l in order  scale f32 | mean f32[d] | P f32[k, d], little-endian;
 * its hash is the SHA-256 of those bytes. */
#ifndef SPA_BASIS_H
#define SPA_BASIS_H

#include "ladder.h"

/* Floats of a basis for this shape: n_taps * (1 + d + k*d); 0 when shape->basis is false. */
size_t spa_basis_floats(const struct spa_shape *shape);

/* SPA_OK, or SPA_ERR_RANGE when a number is not finite or a scale not positive. */
enum spa_err spa_basis_check(const struct spa_shape *shape, const float *basis);

/* One tap (index into shape->taps) of one token: y [d] -> x [k]. basis: all of it, NULL when shape->basis is false.
 * scratch: d floats. */
void spa_tap_prepare(const struct spa_shape *shape, const float *basis, uint32_t tap, const float *y,
                     float *scratch, float *x);

#endif
