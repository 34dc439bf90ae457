/* house.h - system prompts that the operator declares, prefilled once and shared by all users, exactly: what is shared is the frozen base's
 * keys, values and raw taps of the operator's own words. Nothing of any user goes in: taps are kept from a user's prefill only
 * for positions whose tokens, and all before them, are the house prompt's.
 *
 * Built before the decode thread runs, then used by that thread alone. */
#ifndef SPA_HOUSE_H
#define SPA_HOUSE_H

#include "model.h"

enum { SPA_HOUSES_MAX = 16 };

struct spa_house;
struct spa_houses;

/* Prefills all of them in slot 0, which is empty before and after.
 *   texts  [n]  contents of a system message, UTF-8, terminated; not kept
 * A prompt is shared up to the last whole micro-batch of the tokens that its template writes whatever the user says.
 *   failed out  which one it could not be; only then
 * NULL with one sentence: no memory, a prompt that is too short or too long, no chat template. */
struct spa_houses *spa_houses_new(const struct spa_model *m, const char *const *texts, size_t n, size_t *failed, char *why, size_t why_len);
void spa_houses_free(struct spa_houses *h);   /* takes NULL */

/* The one with which a prompt begins, and how many tokens of it are shared: whole micro-batches, fewer than n_tokens.
 * NULL: none; houses may be NULL. */
struct spa_house *spa_house_of(struct spa_houses *h, const int32_t *tokens, uint32_t n_tokens, uint32_t *n);
/* Makes a slot's sequence the first n tokens of it. false: the slot is empty then. */
bool spa_house_enter(const struct spa_house *h, const struct spa_model *m, uint32_t slot, uint32_t n);

/* A layer's raw taps [n, d] of its first n tokens, or NULL as long as not all are known. */
const float *spa_house_taps(const struct spa_house *h, uint32_t layer, uint32_t n);
/* Tells the raw taps of a layer at a position that a user's prefill has just made. Known ones and gaps are left out. */
void spa_house_note(struct spa_house *h, uint32_t layer, uint32_t pos, const float *y);
/* How many tokens of it can be shared. */
uint32_t spa_house_len(const struct spa_houses *h, size_t i);

#endif
