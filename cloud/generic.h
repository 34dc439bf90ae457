/* generic.h - the generic basis of a model: mean and leading directions of general text's states, for every layer, made once by
 * `spa-cloud basis` (generic_make.c) and kept in a file. Any taps and any number of directions up to the file's can be served
 * from it. Public and the same for everybody.
 *
 *   file = "SPABASE1" | model's hash [32] | d, n_layers, k, 0 u32 | n_states u64
 *        | for each layer 0..n_layers:  variances f64[k] | mean f32[d] | P f32[k, d] | 0 to a multiple of 8
 *        | SHA-256 of all that                                                                    little-endian */
#ifndef SPA_GENERIC_H
#define SPA_GENERIC_H

#include "basis.h"
#include "model.h"

struct spa_generic;

/* One layer's part. */
struct spa_generic_layer {
    double *variances;   /* [k] */
    float  *mean, *p;    /* [d], [k, d] */
};

/* Maps a file and checks it. 0; 1: there is no such file; -1 with a sentence: damaged, or of another model. */
int  spa_generic_open(struct spa_generic **out, const char *path, const struct spa_model_info *info, char *why, size_t why_len);
void spa_generic_close(struct spa_generic *g);   /* takes NULL */
uint32_t spa_generic_states(const struct spa_generic *g);
uint32_t spa_generic_k(const struct spa_generic *g);
/* The basis of shape's taps and k, malloc'd. NULL: spa_generic_why_not says why (g may be NULL there). */
float *spa_generic_basis(const struct spa_generic *g, const struct spa_shape *shape);
void   spa_generic_why_not(const struct spa_generic *g, const struct spa_shape *shape, char *why, size_t why_len);

/* Puts a file together: room for it, malloc'd, with its head filled; its layers; the hash at the end. */
uint8_t *spa_generic_bytes(const struct spa_model_info *info, uint32_t k, uint64_t n_states, size_t *len);
struct spa_generic_layer spa_generic_layer(uint8_t *bytes, const struct spa_model_info *info, uint32_t k, uint32_t layer);
void spa_generic_seal(uint8_t *bytes, size_t len);

#endif
