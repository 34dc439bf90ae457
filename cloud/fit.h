/* fit.h - fits a basis on the states of training rows: per tap the mean and the k leading directions of the RMS-normalised
 * states (PCA), and one scale so that the projected values have root mean square 1.
 *
 * A tap is read at loss tokens. A context tap is read at all tokens, prompts' too, whose states lie elsewhere: directions that fit loss
 * tokens alone lose what a prompt's words differ in (bench/RESULTS.md: 1 to 2 points on the routing rows). Where all taps are context taps
 * they are fitted on loss tokens all the same: else no tap would be left that says all it can of those, at 2 points on facts.
 *
 * The same states give the same basis (pca.h). One call of spa_fit_step does one tap, so that the decode thread can serve others
 * in between. */
#ifndef SPA_FIT_H
#define SPA_FIT_H

#include "basis.h"

struct spa_fit;

/* Do tokens without loss count at all? */
static inline bool spa_fit_reads_context(const struct spa_shape *s)
{
    return s->n_ctx_taps > 0 && s->n_ctx_taps < s->n_taps;
}

enum { SPA_FIT_STATES_MAX = 3000 };

/* NULL: no memory. shape is copied. */
struct spa_fit *spa_fit_new(const struct spa_shape *shape);
void spa_fit_free(struct spa_fit *f);                       /* takes NULL */
/* Adds one loss token's raw taps, y[i] [d] for tap i. Returns false once enough are there (the state was not taken). */
bool spa_fit_add(struct spa_fit *f, const float *const *y);
/* Adds another token's raw taps; only those of context taps are read. Takes none beyond SPA_FIT_STATES_MAX. Only where spa_fit_reads_context. */
void spa_fit_add_context(struct spa_fit *f, const float *const *y);
/* Loss tokens added. */
uint32_t spa_fit_states(const struct spa_fit *f);
/* SPA_NONE: more taps to do, call again; SPA_OK: *floats is the basis (malloc'd, the caller's), n_states >= k was met;
 * SPA_ERR_SHAPE: fewer states than k directions need; SPA_ERR_RANGE: states are not finite; SPA_ERR_NOMEM. */
enum spa_err spa_fit_step(struct spa_fit *f, float **floats);

#endif
