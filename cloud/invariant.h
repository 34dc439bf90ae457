/* invariant.h - how wide a batch may be before a token's bits depend on its company.
 *
 * The same token after the same tokens shall have the same state, bit for bit, whether it is decoded alone, beside tokens of other
 * sequences, or in one piece with the tokens around it. Whether that holds is a matter of the model's types and of the backend's
 * paths (notes in invariant.c), so it is tried: a fixed probe, decoded one by one and then at widths 2, 4, 8 ... */
#ifndef SPA_INVARIANT_H
#define SPA_INVARIANT_H

#include "model.h"

enum { SPA_INVARIANT_WIDEST = 32 };   /* the widest that is tried */

/* Widest that holds, 1 when not even 2 do; the widest that was tried when all do. */
struct spa_invariant {
    uint32_t rows;      /* tokens of one sequence in a piece */
    uint32_t company;   /* sequences side by side, a token each */
    uint32_t head;      /* states in one product of the LM head */
    uint32_t rows_of, company_of, head_of;   /* widest that was tried: what slots, micro-batch and batch allow */
};

/* Tries. All slots are empty before and after. depth: tokens that stand before the probe (ggml takes other paths on a long cache);
 * cut to what a slot holds. Cost: depth + about 150 tokens, and 60 rows of the head.
 * 0; -1: the model failed to decode, or no memory. */
int spa_invariant_check(const struct spa_model *m, uint32_t depth, struct spa_invariant *out);

/* The widest decode that holds for rows and company alike. */
uint32_t spa_invariant_width(const struct spa_invariant *v);

#endif
