/* drafts.h - how this user's answers go on: token ids of answers that were trained on or given, and a look at which of them continue an
 * answer that has begun. What it says travels beside states, and helps the cloud to guess; it never decides a token.
 *
 * All places in all answers, sorted by what stands before them, read backwards: the places that follow the same words stand together,
 * and the longer the words the closer. 8 bytes a token, taken when it is made.
 *
 * The first words of an answer say little about the rest. The question does, and the taps behind it say what it is about in any
 * wording: of training rows, whose taps a feature file holds, the answers to the nearest questions go before other ways. */
#ifndef SPA_DRAFTS_H
#define SPA_DRAFTS_H

#include "plugin.h"

#include <stddef.h>
#include <stdint.h>

struct spa_drafts;

enum {
    SPA_DRAFTS_TOKENS = 16384,        /* a good size: 128 KiB */
    SPA_DRAFTS_TAPS   = 512 << 10,    /* bytes of taps that are kept for the nearest questions, at most */
    SPA_DRAFTS_NEAR   = 3,
};

/* The answers to the questions that are nearest to one, different ones, the nearest first. Zeroed: none is known. */
struct spa_drafts_near { uint32_t n, at[SPA_DRAFTS_NEAR]; };

struct spa_drafts *spa_drafts_new(uint32_t cap);   /* tokens; NULL: no memory */
void spa_drafts_free(struct spa_drafts *d);        /* takes NULL */
/* An answer. When there is no room, those that were added after the features go first; one that does not fit then is left out. */
void spa_drafts_add(struct spa_drafts *d, const int32_t *ids, uint32_t n);
/* The answers of a feature file's training rows, as many as half the room holds; they stay. Where the file's taps are those of this
 * plugin, so do the taps of each answer's first token. Once, and before other answers. How many answers; 0 as well for a file that cannot be read or is none. */
uint32_t spa_drafts_add_features(struct spa_drafts *d, const char *path, const struct spa_plugin *plugin);
/* x [n_taps, k]: the taps that ask for an answer's first token. None is near where the shape is not that of the file's plugin. */
struct spa_drafts_near spa_drafts_near(const struct spa_drafts *d, const struct spa_shape *shape, const float *x);
/* How an answer that begins with ids [n] may go on: the likeliest ways, each behind the other, parted by -1, the likeliest first.
 * near: NULL, or what its question is near to. out [cap]. Returns how much of out is filled; 0: nothing is known. */
uint32_t spa_drafts_look(const struct spa_drafts *d, const struct spa_drafts_near *near, const int32_t *ids, uint32_t n, int32_t *out, uint32_t cap);

#endif
