/* learn.h - one training row in the cloud: from LEARN's parts to tokens and loss positions, from decoded states to FEATURES.
 *
 * A loss token at place j of the row is predicted from the state at position j-1, so that position carries loss and
 * tokens[j] is its target. Nothing behind the last loss position is decoded. */
#ifndef SPA_LEARN_H
#define SPA_LEARN_H

#include "model.h"
#include "wire.h"

struct spa_learn_row {
    struct spa_learn_row *next;
    uint32_t id;
    bool     fit;                  /* its states are for a basis, not for the device */
    int32_t *tokens;               /* [n_tokens] */
    uint32_t n_tokens, n_feed;     /* positions 0 .. n_feed-1 are decoded */
    uint32_t n_done;               /* decoded so far */
    uint32_t seq;                  /* while n_done > 0 or in the batch */
    bool     placed;               /* seq is taken */
    uint32_t n_lead;               /* first tokens, none with loss, that all rows of its group have in common: lead.c; 0: none to speak of */
    uint32_t group, group_rows;    /* its number on the connection; how many rows that has, known when it is whole */
    bool     group_end;            /* the last of its group */
    bool     taken;                /* for a moment, while a group is compared with those kept */
    uint32_t n_loss, loss_done;
    uint32_t *pos;                 /* [n_loss] ascending */
    uint32_t n_ctx;                /* context rows that the device gets: n_feed, or 0 */
    uint8_t *bulk;                 /* of FEATURES */
    size_t   bulk_len, at_ctx, at_full, at_fin;
    float   *raw;                  /* of a row to fit on: its raw taps, kept so that its features need no second decode. NULL: not kept.
                                      [n_feed, n_taps, d] with context taps, otherwise [n_loss, n_taps, d] */
    float   *raw_fin;              /* [n_loss, d] */
    size_t   raw_len, raw_fin_len; /* their bytes */
};

/* NULL with a code and one sentence in why. shape, tap_dtype: the connection's. */
struct spa_learn_row *spa_learn_row_new(const struct spa_model *m, const spa_Learn *l, const uint8_t *bulk, size_t bulk_len,
                                        const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t max_message,
                                        spa_Code *code, char *why, size_t why_len);
/* The same from tokens that are known: those from n_prompt on are targets. */
struct spa_learn_row *spa_learn_row_of_tokens(uint32_t id, const int32_t *tokens, uint32_t n_prompt, uint32_t n_tokens,
                                              const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t max_message,
                                              spa_Code *code, char *why, size_t why_len);
void spa_learn_row_free(struct spa_learn_row *r);   /* clears the tokens; takes NULL */
bool spa_learn_is_loss(const struct spa_learn_row *r, uint32_t pos);   /* pos must not go back */

/* Packs one decoded position into bulk. x: [n_taps*k] prepared taps when pos carries loss, otherwise NULL; x_ctx likewise
 * [n_ctx_taps*k] or NULL without context; y_fin [d] when it carries loss. */
void spa_learn_row_state(struct spa_learn_row *r, const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t pos,
                         const float *x_ctx, const float *x, const float *y_fin);

/* Bytes that keeping a row's raw states takes, and the room for them. false: no memory, the row is decoded again. */
size_t spa_learn_raw_bytes(const struct spa_learn_row *r, const struct spa_shape *shape);
bool   spa_learn_raw_make(struct spa_learn_row *r, const struct spa_shape *shape);
void   spa_learn_raw_drop(struct spa_learn_row *r);
/* Where the raw taps of a position are [n_taps, d]: every position has a place with context, only those with loss without. */
float *spa_learn_raw_at(const struct spa_learn_row *r, const struct spa_shape *shape, uint32_t pos, uint32_t loss_index);

#endif
