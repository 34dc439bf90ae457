/* anchors.h - anchors: general prompts of our own, the base model's own greedy answers to them, and its states on both. Devices that
 * train ask for them by number. Public and the same for everybody: nothing of a user is in them.
 *
 * A prompt is written by the chat template, an answer has at most SPA_ANCHOR_ANSWER tokens, its end token included when it
 * comes. States are made for a set of layers, on the first demand, a few anchors side by side in the batches that the decode
 * thread runs anyway, and kept in a cache folder: the answers in one file, each set's states in one more (anchors_file.c). Without
 * a folder, or when it cannot be written, they stay in memory.
 *
 *   demand     spa_anchor_set_get, spa_anchor_get: here, or on its way
 *   making     each round of the decode loop: collect (before the decode), deliver (after it), speak (the head), file_step
 *
 * All calls come from one thread. */
#ifndef SPA_ANCHORS_H
#define SPA_ANCHORS_H

#include "log.h"
#include "model.h"

extern const char *const spa_anchor_prompts[];   /* anchor_prompts.c */
extern const size_t spa_anchor_prompts_n;

enum {
    SPA_ANCHOR_ANSWER = 24,   /* tokens of an answer, at most */
    SPA_ANCHOR_SETS   = 4,    /* sets of layers at a time, in memory and in the folder: a device may ask for any */
};

struct spa_anchors;
struct spa_anchor_set;

struct spa_anchors_config {
    const struct spa_model *model;      /* kept */
    const char *const *prompts;         /* those that do not fit a slot, or that no template writes, are left out */
    size_t n_prompts;
    const char *folder;                 /* that is there; NULL: all stays in memory. Copied */
    spa_log_fn *log;         /* may be NULL */
    void *log_user;
};

/* The model's learning sequences, lent by whoever runs its decodes: take gives one that is free, with room for `cells` tokens, or -1. */
struct spa_anchors_seats {
    int32_t (*take)(void *user, uint32_t cells);
    void    (*give)(void *user, uint32_t seq, uint32_t cells);
    void *user;
};

struct spa_anchors *spa_anchors_new(const struct spa_anchors_config *cfg);   /* NULL: no memory */
void spa_anchors_free(struct spa_anchors *a);                                /* takes NULL */
void spa_anchors_sit(struct spa_anchors *a, struct spa_anchors_seats seats); /* before anything is made */
uint32_t spa_anchors_n(const struct spa_anchors *a);                         /* 0 for NULL */

/* ---- demand ---- */

/* A reference to the set of these layers (ascending), or NULL: too many sets are in use, or no memory. Without layers: the
 * answers alone. */
struct spa_anchor_set *spa_anchor_set_get(struct spa_anchors *a, const uint32_t *layers, uint32_t n_layers);
void spa_anchor_set_put(struct spa_anchor_set *s);   /* what nobody else waits for is not begun any more; takes NULL */

/* An anchor of a set. Tokens n_prompt .. n_tokens-1 are the answer; positions 0 .. n_tokens-2 have states, and those from
 * n_prompt-1 on predict an answer's token. Valid until the thread that owns the anchors calls anything but spa_anchor_*. */
struct spa_anchor {
    const int32_t *tokens;
    uint32_t n_prompt, n_tokens;
    const uint8_t *taps, *y_fin;      /* packed: read them with the functions below */
};
enum spa_anchor_status { SPA_ANCHOR_HERE, SPA_ANCHOR_COMING, SPA_ANCHOR_FAILED };
/* COMING: it is on the list, ask again. FAILED is said once; asking again tries again. */
enum spa_anchor_status spa_anchor_get(struct spa_anchor_set *s, uint32_t number, struct spa_anchor *out);
/* y [n_layers, d]: the raw taps of a position. y [d]: the state after the final norm that predicts answer token i. */
void spa_anchor_taps(const struct spa_anchor_set *s, const struct spa_anchor *anchor, uint32_t pos, float *y);
void spa_anchor_y_fin(const struct spa_anchor_set *s, const struct spa_anchor *anchor, uint32_t i, float *y);

/* ---- making ---- */

bool spa_anchors_busy(const struct spa_anchors *a);   /* there is something to decode or to write; false for NULL */
/* Fills at most `room` rows of a batch and marks the layers that they want: layer_at[l] = 0. Returns how many. */
uint32_t spa_anchors_collect(struct spa_anchors *a, struct spa_batch_token *batch, uint32_t room, int32_t *layer_at);
/* The decode of what was collected last. wanted: index of its first wanted row; layer_at: layer -> index in states' layers. */
void spa_anchors_deliver(struct spa_anchors *a, const struct spa_states *states, uint32_t wanted, const int32_t *layer_at);
void spa_anchors_decode_failed(struct spa_anchors *a);
void spa_anchors_speak(struct spa_anchors *a);        /* the next token of every answer whose state waits */
void spa_anchors_file_step(struct spa_anchors *a);    /* a piece of what is to be written */

#endif
