/* engine_parts.h - what engine.c (the loop), admit.c (places and slots), cut.c, peer.c, peer_hello.c, peer_learn.c (a connection), kept.c (ended sequences), feed.c (the batch), ahead.c (guesses)
 * and losses.c (the head for training) of the decode thread share. */
#ifndef SPA_ENGINE_PARTS_H
#define SPA_ENGINE_PARTS_H

#include "accounts.h"
#include "bases.h"
#include "engine.h"
#include "fit.h"
#include "learn.h"
#include "lm_head.h"
#include "pace.h"
#include "turn.h"

struct peer {
    struct peer *next;
    struct spa_engine *engine;
    struct spa_conn *conn;
    uint32_t number;                       /* for the log */
    struct spa_account *account;           /* held */
    uint32_t n_queued, n_turns;            /* of turns: waiting for a slot; all */
    uint64_t busy_ms;                      /* when it last said something, or something of it ended */
    uint32_t crowded;                      /* refusals of the host's that metrics have seen */
    enum spa_cut cut;                      /* why it is to be cut, with is_cut; the host's own errors say it themselves */
    bool     is_cut;
    struct spa_host host;
    uint8_t *buf;
    size_t   buf_used;                     /* bytes of it that have ever held something */
    size_t   gate_bytes;
    float   *z;
    float   *gate, gate_bias;              /* folded direction [d], or [d + n_taps k]; NULL: no gate */
    bool     gate_taps;                    /* the longer one */
    struct spa_basis *basis;
    uint8_t *upload;                       /* a basis on its way up */
    size_t   upload_len;
    struct spa_fit *fit;                   /* a basis being fitted */
    bool     unsendable;                   /* a message could not be queued: the connection is to be cut */
    bool     round_trip_known;
    float    round_trip_ms;                /* from asking for a state to its coming, smoothed */
    float    guesses_right[SPA_GUESSES];   /* share of guesses that were, smoothed */
    uint64_t came_ms;                      /* when the bytes that are looked at now came */
    uint8_t  basis_hash[SPA_HASH_BYTES];   /* announced in HELLO */
    bool     fit_last, fit_running;        /* the last row came; its states are all there */
    struct spa_turn *turns[SPA_REQUESTS_MAX];
    struct spa_learn_row *rows, **rows_end;/* in order; the first ones may be placed in the batch */
    uint32_t group;                        /* number of the one that is coming */
    uint32_t groups_ready;                 /* groups of them that are whole: their last row is marked */
    struct loss *losses;                   /* LOSS messages that wait, in order: losses.c */
    struct spa_learn_row *kept;            /* fitted on, raw states at hand until the row is asked for its features */
    struct spa_anchor_set *anchors;        /* of this plugin's taps, once one was asked for */
    uint32_t *anchor_ids, n_anchor_ids;    /* [learn_window] asked for and not answered */
};

/* A sequence that has ended, in a slot that nobody needs. */
struct kept {
    struct spa_turn *turn;                 /* NULL: nothing is kept */
    struct peer *peer;                     /* whose it is, and nobody else's */
    uint64_t when;                         /* order of ending */
};

struct spa_engine {
    struct spa_engine_config cfg;
    struct spa_model *model;
    struct peer *peers;
    uint32_t n_peers, next_number, n_queued;
    uint64_t arrivals;
    struct spa_bases bases;
    struct spa_accounts accounts;
    size_t   prompt_max;                   /* bytes */
    double   turn_ms;                      /* an answer's time in its slot, smoothed */
    struct spa_turn **slots;               /* [n_slots] the turn in it */
    struct peer **slot_peer;               /* [n_slots] and whose it is */
    struct kept *kept;                     /* [n_slots] in free slots */
    uint64_t endings;
    bool    *seq_taken;                    /* [n_learn_seqs] */
    uint32_t learn_cells, anchor_cells;    /* in use by rows and their lead, by anchors */
    struct lead { bool placed; uint32_t seq, n, n_done; } lead;   /* what the rows of the learner's group begin with: its sequence, tokens, those decoded */
    bool     anchors_next;                 /* a group has just ended */
    size_t   kept_bytes;                   /* raw states kept for fits, of all connections */
    uint32_t next_slot, then_slot;         /* where this round's look at the slots begins, and the next one's */
    struct peer *learner;                  /* whose group is being decoded; NULL: nobody's */
    uint64_t learner_stalled_ms;           /* since when it could go on and does not read; 0: it does */
    struct peer *next_learner;             /* whose turn it is then */
    struct peer *next_losses;
    struct spa_lm_head lm_head;            /* over the model's rows */
    float   *loss, *loss_dstates;          /* of one slice */
    int32_t *loss_top;
    float    step_ms;                      /* a decode call with single tokens and the head behind it, smoothed */
    struct spa_pace pace;                  /* what such calls take, by width */
    uint32_t width;                        /* single tokens of turns in the next call, at most */
    bool     full_house;                   /* while one user's state is on its way, others' tokens are computed */
    bool     cannot_cut;                   /* the model's memory drops no tail: nobody runs ahead any more */
    bool     draining;
    uint64_t drain_deadline_ms;
    struct spa_metrics metrics;

    struct spa_batch_token *batch;         /* [n_batch + n_learn_batch] */
    struct fed *fed;                       /* [same] what each run of batch rows is for */
    uint32_t n_batch, n_fed;
    uint32_t layers[SPA_MAX_LAYERS + 1], n_layers;
    int32_t  layer_at[SPA_MAX_LAYERS + 1]; /* layer -> index in layers, or -1 */

    float   *head_in, *head_out;           /* [HEAD_MAX, d], [HEAD_MAX, n_vocab] */
    struct spa_candidate *candidates;      /* [n_vocab] */
    float   *x, *x_ctx, *scratch;          /* prepared taps of one row */
    uint8_t *packed;                       /* CTX_PIECE bytes and the largest full row of any connection so far */
    size_t   packed_cap, x_cap;
    uint32_t head_used, batch_used;        /* rows of head_in and batch that have held something since they were cleared */
    bool     somebody_left;                /* since then */
};

enum {
    HEAD_MAX = 16,            /* states through the head in one product, a bound on its memory */
    CTX_PIECE = 256 * 1024,   /* bytes of context rows in one message */
    KEPT_MAX = 512 << 20,     /* bytes of raw states that fits may keep, all together; rows beyond are decoded twice */
    LEARNER_STALL_MS = 60000, /* that a group may wait for its device to read, while others wait for it */
    LEARN_OUT_MAX = 4 << 20,  /* bytes of features that may wait for a device before it gets no more */
};

/* A run of consecutive batch rows: part of a turn's tokens or of a training row's; without a peer, all that the anchors brought. */
struct fed {
    struct peer *peer;
    struct spa_turn *turn;          /* or */
    struct spa_learn_row *row;
    bool lead;                      /* of the row's whole group */
    uint32_t at, n;                 /* batch rows at .. at+n-1 */
    uint32_t wanted_at;             /* index of the first wanted row among the wanted */
};

/* peer.c */
struct peer *peer_new(struct spa_engine *e, struct spa_conn *c);
void peer_free(struct peer *p);                       /* ends its turns and rows */
void peer_bytes(struct peer *p, const uint8_t *bytes, size_t len, uint64_t now_ms);
void peer_turn_end(struct peer *p, struct spa_turn *t, spa_Finish finish);
void peer_turn_fail(struct peer *p, struct spa_turn *t, spa_Code code, const char *sentence);
/* What t has said leaves in one TOKENS; of a padded turn the text that does not fit goes with its next token, or, with all, in a TOKENS of its own. */
void peer_said(struct peer *p, struct spa_turn *t, bool all);
void peer_no_state(struct peer *p, struct spa_turn *t, spa_Code code);   /* the device's last word on a token was none */
bool peer_broken(const struct peer *p);               /* to be hung up on */
/* A request that waits for a slot has lost its place. */
void peer_turn_crowded_out(struct peer *p, struct spa_turn *t, uint32_t retry_ms);
size_t peer_prompt_bytes(const struct spa_message *m); /* of a GENERATE's or LEARN's texts */
/* admit.c */
struct admission { spa_Code code; enum spa_refusal refusal; uint32_t retry_ms; char why[256]; };   /* retry_ms 0: not known */
bool admit(struct peer *p, const struct spa_message *m, uint64_t now_ms, struct admission *out);   /* a GENERATE. false: refused, *out says how */
void admit_make_room(struct spa_engine *e, const struct peer *p);   /* for a turn that was let in: where the queue is full, the newest place of who holds the most */
void admit_fill_slots(struct spa_engine *e);
/* cut.c */
void peer_cut(struct peer *p, enum spa_cut why, spa_Code code, const char *sentence);   /* it is broken then */
uint64_t peer_idle_deadline_ms(const struct peer *p); /* UINT64_MAX: none */
enum spa_close cut_count(const struct peer *p);       /* p is broken: counts and logs why, and says how its socket is to be closed */
/* peer_hello.c: messages that the host let through */
void peer_hello(struct peer *p, const struct spa_message *m);
void peer_blob(struct peer *p, const struct spa_message *m);
void peer_fetch(struct peer *p, const struct spa_message *m);
void peer_say_fitted(struct peer *p, struct spa_basis *b, uint32_t n_states);   /* b, taken over, is the connection's from now on */
/* peer_learn.c */
void peer_learn(struct peer *p, const struct spa_message *m);  /* a LEARN that the host let through */
void peer_row_done(struct peer *p, struct spa_learn_row *r);   /* all its positions are decoded: answers and frees it */
void peer_fit_step(struct peer *p);                   /* one tap of a basis being fitted */
void peer_anchor_step(struct peer *p);                /* answers some of the anchors that are asked for and here */
void peer_rows_free(struct peer *p);                  /* drops rows, anchors asked for and a basis being fitted */
/* Makes room for rows of this shape. false: no memory. */
bool engine_fit_rows(struct spa_engine *e, const struct spa_shape *shape, enum spa_dtype t);
void engine_log(struct spa_engine *e, const char *fmt, ...);   /* at level info */
void engine_log_at(struct spa_engine *e, enum spa_log_level level, const char *fmt, ...);

/* lead.c */
void lead_of_group(struct spa_learn_row *first);      /* a whole group, up to the end of its list: what its rows begin with */
void lead_place(struct spa_engine *e, const struct spa_learn_row *first, uint32_t seq);   /* takes the sequence */
void lead_continue(struct spa_engine *e, struct spa_learn_row *r);   /* r, just placed, begins behind the decoded lead, if its group has one */
void lead_drop(struct spa_engine *e);                 /* the group is done, or gone */

/* kept.c */
void kept_store(struct spa_engine *e, struct peer *p, struct spa_turn *t);   /* t has ended; its slot is free. Takes t */
void kept_drop_of(struct spa_engine *e, const struct peer *p);               /* all of a connection */
void kept_enter(struct spa_engine *e, struct peer *p, struct spa_turn *t);   /* puts a queued turn into a free slot; there is one */
/* ahead.c */
void ahead_hope(struct peer *p);                      /* a new connection: what is believed of guesses before any was made */
void ahead_begin(struct spa_engine *e, struct peer *p, struct spa_turn *t);   /* a new turn: may it run ahead? */
uint32_t ahead_room(const struct spa_engine *e);      /* guesses that the next batch takes, beside what is ready by now */
bool ahead_wants_guess(const struct spa_engine *e, const struct spa_turn *t);
bool ahead_wants_decode(const struct spa_engine *e, const struct spa_turn *t);   /* its newest guess */
bool ahead_guess_by_words(const struct spa_engine *e, struct spa_turn *t);   /* from text or draft. false: the head is to be asked */
void ahead_draft(struct spa_turn *t, const spa_State *s);   /* what came with a state */
const float *ahead_guess_state(const struct spa_engine *e, const struct spa_turn *t);   /* [d] of what has no token behind it */
void ahead_guess_by_base(struct spa_engine *e, struct spa_turn *t, const float *logits);   /* of that state */
/* Where the guess that has just been decoded keeps its y_fin [d]; and then what the gate said of it, before n_past counts it. */
float *ahead_row_state(const struct spa_engine *e, const struct spa_turn *t);
void ahead_row_decoded(struct spa_turn *t, bool asked, uint64_t now_ms);
void ahead_came(struct peer *p, uint64_t asked_ms);   /* a state did: how long it took */
void ahead_step_took(struct spa_engine *e, float ms); /* a decode call with what ready turns and guesses need, no more */
/* The device's answer for a position behind the front, z [d], or NULL: there is none, with the code that ends the request, or OK:
 * the base speaks. */
void ahead_answer(struct peer *p, struct spa_turn *t, uint32_t pos, const float *z, spa_Code refused);
uint32_t ahead_awaited(const struct spa_turn *t);       /* states of t that its device owes */
bool ahead_is_right(const struct spa_turn *t, int32_t token);   /* guess 0, before the token is appended */
/* After it: the next front, or back to where the guess was wrong. true: *token is known already. false: t->status says what is next. */
bool ahead_settle(struct spa_engine *e, struct peer *p, struct spa_turn *t, bool right, int32_t *token);
void ahead_end(struct spa_engine *e, struct peer *p, struct spa_turn *t);   /* drops what is not confirmed */
/* losses.c */
int  losses_init(struct spa_engine *e);               /* -1: no memory. A head that cannot be read: no losses for anybody */
void losses_take(struct peer *p, const struct spa_message *m);          /* a LOSS that the host let through */
bool losses_wait(const struct spa_engine *e, const struct peer *p);     /* it has some that could be computed now */
void losses_step(struct spa_engine *e);               /* a slice of one connection's, the next one's in the next round */
void losses_free(struct peer *p);
void losses_clear(struct spa_engine *e);              /* what it has computed with: nobody's loss is half done between two slices */

/* logprobs.c */
void logprobs_send(struct spa_engine *e, struct peer *p, const struct spa_turn *t, int32_t token, const float *logits);   /* before it is said */

/* feed.c */
bool feed_asks(const struct peer *p, const struct spa_turn *t);          /* may this turn ask the device? */
/* Context rows of the first n tokens of t's house prompt, as if they had been decoded. false: not all taps are known, or no memory. */
bool feed_house(struct spa_engine *e, const struct peer *p, struct spa_turn *t, uint32_t n);
bool feed_may_learn(const struct spa_engine *e, const struct peer *p);   /* it has rows that could be in the next batch */
bool feed_may_send(const struct spa_engine *e, const struct peer *p);    /* it reads what it asked for */
void feed_seats(struct spa_engine *e);                /* lends the anchors what training rows leave */
void feed_collect(struct spa_engine *e);              /* fills batch, fed, layers */
void feed_deliver(struct spa_engine *e, const struct spa_states *s, uint64_t now_ms);   /* after the decode */
void feed_kept(struct spa_engine *e, struct peer *p, const struct spa_learn_row *kept, struct spa_learn_row *r);   /* r's bulk from kept states */
/* r's bulk from an anchor's states. raw: (n_taps + 1) d floats of scratch. */
void feed_anchor(struct spa_engine *e, struct peer *p, const struct spa_anchor *anchor, struct spa_learn_row *r, float *raw);

#endif
