/* dtype.h - the forms in which rows of numbers travel.
 *
 *   F32  n * 4 bytes;  F16  n * 2 bytes;  I8  per group of `group` numbers: f16 scale, then one int8 a number
 *
 * A tap row is n_taps groups of k; wire.h has a state's groups. I8: scale = max|x| / 127 rounded to f16, q = round(x / scale)
 * clamped to +-127; a group of zeros has scale 0. All little-endian. */
#ifndef SPA_DTYPE_H
#define SPA_DTYPE_H

#include "err.h"
#include <stddef.h>
#include <stdint.h>

enum spa_dtype { SPA_F32 = 0, SPA_F16 = 1, SPA_I8 = 2 };

/* Bytes of n_groups groups of `group` numbers. */
size_t spa_dtype_bytes(enum spa_dtype t, size_t n_groups, size_t group);

void spa_dtype_pack(enum spa_dtype t, const float *x, size_t n_groups, size_t group, uint8_t *out);

/* SPA_OK, or SPA_ERR_RANGE when a number is NaN or infinite (x is filled all the same). */
enum spa_err spa_dtype_unpack(enum spa_dtype t, const uint8_t *in, size_t n_groups, size_t group, float *x);

uint16_t spa_f16_from_f32(float x);   /* round to nearest even; overflow to infinity */
float    spa_f32_from_f16(uint16_t h);

#endif
