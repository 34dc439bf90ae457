/* session.h - the device's end of the conversation. Moves no bytes, reads no clock: the caller carries both.
 *
 *   NEW --hello--> GREETING --WELCOME--> READY        from any state: error, ERROR of request 0 --> CLOSED
 *
 *   NEW      -> GREETING   spa_session_hello   HELLO leaves
 *   GREETING -> READY      spa_session_feed    WELCOME arrives (event); if need_basis, send the BLOB pieces first
 *   READY                  generate, cancel, answer, learn, fetch; several requests at once
 *
 * Within READY each request: OPEN --TAPS that asks--> OWING --answer--> OPEN ... --DONE or ERROR--> free. Several states may be owed.
 * An error stays: every call returns it until spa_session_init. What an event points to lives until the next feed. */
#ifndef SPA_SESSION_H
#define SPA_SESSION_H

#include "owed.h"

enum spa_session_state { SPA_SESSION_NEW, SPA_SESSION_GREETING, SPA_SESSION_READY, SPA_SESSION_CLOSED };

struct spa_session_request {
    uint32_t id;            /* 0: free */
    uint32_t epoch;         /* the newest that TAPS named */
    uint32_t next_pos;      /* context rows seen so far: the next row's position; with a higher epoch it may go back */
    bool     begun;         /* its first TAPS came; before that, rows may start at after_from .. after_to, too */
    uint32_t after_from, after_to;
    uint32_t next_index;    /* tokens of the answer seen so far */
    uint32_t logprobs;      /* asked for, as in GENERATE */
    struct spa_owed owed;   /* positions that we owe states for */
    bool     cancelled;     /* CANCEL left: further TAPS are swallowed */
    uint32_t back_to;       /* the lowest position at which one of those went back; UINT32_MAX: none did */
    bool     pad;           /* its states have a fixed length */
};

struct spa_session {
    enum spa_session_state state;
    enum spa_err error;
    struct spa_reader reader;
    struct spa_sink sink;
    struct spa_shape shape;          /* of the plugin announced */
    bool has_plugin;
    enum spa_dtype tap_dtype, state_dtype;
    spa_Welcome welcome;             /* from READY on */
    uint32_t next_request;
    uint64_t greet_deadline_ms;      /* 0: none */
    uint32_t learn_open;             /* LEARN rows not answered yet */
    uint32_t fetch_open;             /* FETCH not answered yet */
    bool     unfitted;               /* the plugin's basis is yet to come, with FITTED */
    struct { bool open; spa_Loss asked; } losses[SPA_LOSSES_MAX];
    uint32_t losses_open;            /* LOSS not answered yet */
    bool     generic;                /* and is the cloud's own: it comes without rows to fit on */
    struct spa_session_request requests[SPA_REQUESTS_MAX];
    spa_State draft;                 /* its draft goes with the next state */
    bool     pads;                   /* a padded request was opened: from then on messages leave one by one */
    struct spa_message msg;          /* the message behind the last event */
};

/* Events: the message itself, checked against the conversation. Types as in spa_msg:
 *   WELCOME, BLOB, TOKENS, DONE, ERROR, FITTED, FEATURES, TAPS, LOSSES, LOGPROBS
 * A TAPS of an older epoch or a request that is gone (cancelled) is swallowed. */
struct spa_session_event {
    enum spa_msg type;
    uint32_t request;                 /* where the message names one */
    const struct spa_message *msg;    /* head and bulk */
    uint32_t back_to;                 /* DONE: context rows from this position on do not hold, since the cloud went back after CANCEL; else UINT32_MAX */
};

/* buf [cap]: room for the largest message; cap is announced as max_message (SPA_MESSAGE_MIN .. SPA_MESSAGE_MAX). */
void spa_session_init(struct spa_session *s, struct spa_sink sink, uint8_t *buf, size_t cap);

/* Sends HELLO. plugin NULL: the base model alone; gate NULL or [d], with plugin->gate_taps [d + n_taps k] (gate.h). The welcome must come within greet_ms of now_ms. */
enum spa_err spa_session_hello(struct spa_session *s, const char *client, const spa_Plugin *plugin, const float *gate,
                               uint64_t now_ms, uint64_t greet_ms);

/* Takes bytes; stops after a message that makes an event. SPA_OK: *ev is filled. SPA_NONE: all bytes taken, no event.
 * Errors: SPA_ERR_FORMAT, _LIMIT, _ORDER (a message that the state does not allow), _SHAPE (WELCOME and plugin differ,
 * rows of wrong length), _VERSION, _TIMEOUT. in may be NULL with len 0: only the clock moves. */
enum spa_err spa_session_feed(struct spa_session *s, const uint8_t *in, size_t len, size_t *used, uint64_t now_ms,
                              struct spa_session_event *ev);
/* When to call feed for the clock's sake; UINT64_MAX: never. */
uint64_t spa_session_deadline_ms(const struct spa_session *s);

/* ---- calls in READY ----
 * SPA_ERR_ORDER: not READY, or what the function says. SPA_ERR_CLOSED: the sink took nothing, and nothing has changed here.
 * Neither stays. */

/* Opens a request; g->request is set here. parts as in wire.h; work: spa_parts_len bytes.
 * g->after: 0, or an ended request of this session whose sequence this one goes on from; then, with context taps, the first
 * rows may start at any position from g->after_from to g->after_to as well as at 0: the caller still has what comes before.
 * g->pad: only with welcome.pads, or SPA_ERR_VERSION.
 * SPA_ERR_NOMEM: welcome.max_requests are open; SPA_ERR_LIMIT: larger than welcome.max_message; SPA_ERR_ORDER: gate other
 * than NEVER while the basis is yet to be fitted, or after names no ended request. Without plugin the caller sets gate to NEVER. */
enum spa_err spa_session_generate(struct spa_session *s, spa_Generate *g, const struct spa_part *parts, size_t n,
                                  uint8_t *work);
/* The request ends with DONE(CANCELLED) from the cloud, or with whatever was under way. No-op when it is gone. */
enum spa_err spa_session_cancel(struct spa_session *s, uint32_t request);

/* Context row or full row i of a TAPS message: is it asked, and its numbers, unpacked into x [n_taps*k] (asked) or
 * [n_ctx_taps*k]. SPA_OK or SPA_ERR_RANGE. */
bool         spa_taps_row_asked(const struct spa_message *taps, uint32_t i);
enum spa_err spa_taps_row(const struct spa_session *s, const struct spa_message *taps, uint32_t i, float *x);

/* A state that we owe: z [d]. work: spa_wire_state_bytes. SPA_ERR_ORDER when nothing is owed at pos. */
enum spa_err spa_session_answer(struct spa_session *s, uint32_t request, uint32_t epoch, uint32_t pos, const float *z,
                                uint8_t *work);
/* What travels with the next state: how the answer may go on from token `index` on. draft [n], at most SPA_DRAFT_MAX: token ids, -1
 * between different ways. n 0: nothing. With a padded request's state none travels. */
void         spa_session_draft(struct spa_session *s, uint32_t index, const int32_t *draft, uint32_t n);

/* A training row; answered by FEATURES or ERROR with is_row. SPA_ERR_NOMEM: the learn window is full; SPA_ERR_LIMIT as above;
 * SPA_ERR_ORDER: no plugin, or fit and the plugin's basis do not go together (fit only before FITTED, others only after).
 * An anchor (l->anchor, without parts): l->row is its number, below welcome.n_anchors, or SPA_ERR_ORDER. */
enum spa_err spa_session_learn(struct spa_session *s, const spa_Learn *l, const struct spa_part *parts, size_t n,
                               uint8_t *work);
/* What feed checks of FEATURES, for those that were kept elsewhere: lengths, positions and targets against shape, tap_dtype and
 * welcome of s, where nothing else is looked at. SPA_OK, or an error with *what. */
enum spa_err spa_features_check(const struct spa_session *s, const spa_Features *f, const uint8_t *bulk, size_t bulk_len, const char **what);
/* A FEATURES message, unpacked: pos and target [n_loss], x_ctx [n_ctx, n_ctx_taps*k], x [n_loss, n_taps*k],
 * y_fin [n_loss, d]. Lengths, positions and targets were checked by feed. SPA_OK, or SPA_ERR_RANGE when a number is not finite. */
enum spa_err spa_features_unpack(const struct spa_session *s, const struct spa_message *features, uint32_t *pos,
                                 int32_t *target, float *x_ctx, float *x, float *y_fin);

/* States through the cloud's LM head: l->n (1 or more) states [n, d] and their targets [n], in 0..n_vocab-1; answered by LOSSES or
 * ERROR with is_loss, in any order. work: spa_wire_loss_bytes. SPA_ERR_NOMEM: the loss window is full, or is 0; SPA_ERR_LIMIT: more
 * than spa_session_loss_max; SPA_ERR_ORDER: the id is in use; SPA_ERR_RANGE: a state that is not finite. */
enum spa_err spa_session_loss(struct spa_session *s, const spa_Loss *l, const int32_t *target, const float *states, uint8_t *work);
/* States that one LOSS may have, so that it and its answer, with all that may be wanted, fit into both ends' messages. */
uint32_t     spa_session_loss_max(const struct spa_session *s);
/* A LOSSES message, unpacked: loss [n], dstates [n, d] and top [n] where they were wanted (otherwise not touched, and may be NULL).
 * Length and top (-1, none, to n_vocab - 1) were checked by feed; a state beyond all bounds may have a loss that is no number. */
void         spa_losses_unpack(const struct spa_session *s, const struct spa_message *losses, float *loss, float *dstates, int32_t *top);

enum spa_err spa_session_fetch(struct spa_session *s, spa_BlobKind kind, const uint8_t hash[SPA_HASH_BYTES], uint64_t offset);
/* Sends a whole basis in pieces. SPA_ERR_ORDER unless WELCOME asked for it. */
enum spa_err spa_session_send_basis(struct spa_session *s, const uint8_t hash[SPA_HASH_BYTES], const uint8_t *bytes,
                                    size_t len);
#endif
