/* ladder_parts.h - what the ladder's two ways, token by token (ladder.c) and a whole row (ladder_row.c), share: where a
 * weight lies, and the steps between them. Private to the ladder and its tests; ladder.h holds the equations.
 *
 * Both ways run these same steps in the same order, so they give the same bits. */
#ifndef SPA_LADDER_PARTS_H
#define SPA_LADDER_PARTS_H

#include "ladder.h"

/* Offsets in floats into an array of the parameters' layout. U, c, V, e mean nothing for rung 0. */
struct spa_rung_at { size_t W, b, U, c, V, e; };
struct spa_out_at  { size_t W, b; };
struct spa_att_at  { size_t Wq, bq, Wk, bk, Wv, bv; };

struct spa_rung_at spa_rung_at(const struct spa_shape *shape, size_t rung);
struct spa_out_at  spa_out_at(const struct spa_shape *shape);
struct spa_out_at  spa_ctx_at(const struct spa_shape *shape);               /* ctx.W, ctx.b */
struct spa_att_at  spa_att_at(const struct spa_shape *shape, size_t a);     /* a-th attention rung, from 0 */

struct spa_att_at  spa_mix_at(const struct spa_shape *shape);               /* ctx.mix.*; with ctx_mix only */

/* The attention that follows this rung, from 0; n_att when none does. */
size_t spa_att_of_rung(const struct spa_shape *shape, size_t rung);

/* h_i before attention.
 *   x       in   [k]
 *   h_prev  in   [r], h_{i-1} after attention; NULL for rung 0
 *   drop    in   [r] factors on V's output; NULL: no dropout
 *   tmp     tmp  2 r floats
 *   u       out  [m] relu(U v + c); not written for rung 0
 *   h       out  [r] */
void spa_rung_forward(const struct spa_shape *shape, const float *params, size_t rung, const float *x,
                      const float *h_prev, const float *drop, float *tmp, float *u, float *h);

/* Keys and values as they lie in a cache, position after position. A head owns so many numbers of each. */
struct spa_attention {
    const float *key, *value;   /* of the first position that is looked at */
    size_t stride;              /* floats from a position to the next */
    size_t key_width, value_width, n_heads;
};

/* Those of the a-th attention rung, and of ctx_mix, where kv is the first position's place in the cache. */
struct spa_attention spa_attention_of_rung(const struct spa_shape *shape, size_t a, const float *kv);
struct spa_attention spa_attention_of_mix(const struct spa_shape *shape, const float *kv);

/* One token into the cache, in steps. First c [e]. */
void spa_context_token(const struct spa_shape *shape, const float *params, const float *x_ctx, float *c);

/* With ctx_mix, from c to g.
 *   kv    i/o  the n positions that the token looks at, its own as the last: there its k and v are written
 *   drop  in   [e] factors on what is added to c; NULL: no dropout
 *   q     out  [e] q'
 *   w     tmp  [n_heads, n]
 *   g     out  [e] */
void spa_context_mix(const struct spa_shape *shape, const float *params, float *kv, size_t n, const float *c, const float *drop,
                     float *q, float *w, float *g);

/* The rungs' keys and values of g, or of c without ctx_mix, into the token's place kv. */
void spa_context_keys(const struct spa_shape *shape, const float *params, const float *g, float *kv);

/* q [e] = W_q relu(h) + b_q; tmp: r floats. */
void spa_attend_query(const struct spa_shape *shape, const float *params, size_t a, const float *h, float *tmp, float *q);

/* w [n_heads, n] = softmax over the n first positions, head by head. */
void spa_attend_weights(const struct spa_attention *att, size_t n, const float *q, float *w);

/* h [n_heads * value_width] += the values under those weights. */
void spa_attend_values(const struct spa_attention *att, size_t n, const float *w, float *h);

/* Dropout's factors for n units, each 0 or 1/(1-p). The place before W_out counts as rung n_taps, ctx_mix, where tokens are counted
 * from the row's first, as rung n_taps + 1. */
void spa_dropout_factors(struct spa_dropout drop, uint32_t token, size_t rung, size_t n, float *factors);

#endif
