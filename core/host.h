/* host.h - the cloud's end of the conversation, one per connection. Moves no bytes, reads no clock, knows no model.
 *
 *   NEW --HELLO (event)--> GREETED --spa_host_welcome--> READY       need_basis: READY_NO_BASIS until spa_host_basis_here
 *   any --error, spa_host_error of request 0--> CLOSED
 *
 * A request: OPEN --spa_host_ask--> AWAITING(positions, deadline) --STATE | LATE | BAD_STATE--> OPEN ... --spa_host_done--> free.
 * With run-ahead several positions may be awaited; the deadline is the oldest one's, and counts from when it became the oldest.
 * Nothing that a device sends reaches further than its own requests: an unusable STATE is an event of its own request.
 * What an event points to lives until the next feed. Errors stay; after one, the connection is to be closed: a
 * spa_Error message that names it has already been handed to the sink. */
#ifndef SPA_HOST_H
#define SPA_HOST_H

#include "owed.h"

enum spa_host_state { SPA_HOST_NEW, SPA_HOST_GREETED, SPA_HOST_NO_BASIS, SPA_HOST_READY, SPA_HOST_CLOSED };

struct spa_host_limits {
    uint32_t max_requests;        /* at once on this connection */
    uint32_t learn_window;        /* LEARN rows that may be unanswered */
    uint32_t loss_window;         /* LOSS messages that may be unanswered, at most SPA_LOSSES_MAX; 0 without learn_window */
    uint32_t max_bad_states;      /* the connection is cut after more unusable states, late ones with no state between them, or 8 times as many
                                     strays or requests beyond max_requests */
    uint32_t answer_ms;           /* deadline of a state when the request names none */
    uint32_t answer_ms_max;       /* a request may not ask for more, and LATE_WAIT waits this long */
    uint32_t hello_ms;            /* HELLO must come within */
    float    max_state_rms;       /* a state with a larger root mean square is absurd: 1e4 */
    uint32_t run_ahead;           /* states awaited beside the oldest one of a request, below SPA_ASKED_MAX; 0: none, ever */
};

struct spa_host_request {
    uint32_t id;                  /* 0: free */
    uint32_t epoch;
    struct spa_owed owed;         /* positions whose states are awaited */
    uint32_t run_ahead;           /* beside the oldest of them, at most: of the request, after limits */
    uint64_t deadline_ms;         /* of the oldest, when there is one */
    uint32_t answer_ms;           /* of the request, after limits */
    spa_Late late_policy;         /* never LATE_WAIT once a deadline has passed: nobody is waited for without end */
    uint32_t gated, late, refused;/* counters for DONE; of a padded request the owner takes tokens that the base spoke off gated */
    bool pad;                     /* its messages have fixed lengths; nothing runs ahead */
};

enum spa_host_event_type {
    SPA_HOST_HELLO,       /* msg: answer with spa_host_welcome or spa_host_error(0) */
    SPA_HOST_BLOB,        /* msg: a piece of the basis that we asked for; spa_host_basis_here when whole and right */
    SPA_HOST_GENERATE,    /* msg: a new request, checked; ends with spa_host_done or spa_host_error */
    SPA_HOST_CANCEL,      /* request; the owner ends it with spa_host_done(CANCELLED) */
    SPA_HOST_STATE,       /* request, pos, z: a usable state for the awaited position */
    SPA_HOST_LATE,        /* request, pos: the deadline passed; policy in the request: act as it says */
    SPA_HOST_BAD_STATE,   /* request, pos: an unusable state for the awaited position; no other will be taken */
    SPA_HOST_LEARN,       /* msg: a row, or an anchor's number; answer with spa_host_features or spa_host_row_error */
    SPA_HOST_FETCH,       /* msg: answer with spa_host_blob */
    SPA_HOST_LOSS,        /* msg: states for the LM head, checked; answer with spa_host_losses or spa_host_loss_error */
    SPA_HOST_STRAY,       /* a state that nobody awaits (old epoch, wrong position, repeated): counted, ignored */
};
struct spa_host_event {
    enum spa_host_event_type type;
    uint32_t request, pos;
    const float *z;               /* [d], in the work buffer of init */
    const struct spa_message *msg;
};

struct spa_host {
    enum spa_host_state state;
    enum spa_err error;
    struct spa_reader reader;
    struct spa_sink sink;
    struct spa_host_limits limits;
    struct spa_shape shape;       /* of the device's plugin, as the wire knows it */
    bool has_plugin;
    enum spa_dtype tap_dtype, state_dtype;
    uint32_t d, n_vocab;          /* the model's, 0 before welcome */
    uint32_t n_anchors;           /* that WELCOME announced */
    uint32_t peer_max_message;
    uint64_t hello_deadline_ms;
    uint32_t learn_open, losses_open, bad_states, strays;
    uint32_t crowded;             /* requests refused beyond max_requests */
    uint32_t silent;              /* deadlines passed since a state came, usable or not, */
    uint64_t heard_ms;            /* and since when */
    uint32_t given_up;            /* states that we asked for and stopped waiting for: as many strays are no offence */
    bool     unfitted;            /* the plugin's basis is yet to be fitted from LEARN rows, or (generic) to be named by the cloud */
    bool     generic;             /* the plugin takes the cloud's own basis: no row is fitted on */
    uint64_t basis_next;          /* bytes of the uploaded basis so far */
    float *z;                     /* [d_max] work */
    size_t z_cap;
    struct spa_host_request requests[SPA_REQUESTS_MAX];
    struct spa_message msg;
};

/* buf [cap]: room for the largest message that we take; z [z_cap]: room for one state. */
void spa_host_init(struct spa_host *h, struct spa_sink sink, const struct spa_host_limits *limits, uint8_t *buf, size_t cap,
                   float *z, size_t z_cap, uint64_t now_ms);

/* Takes bytes; stops after a message, or a passed deadline, that makes an event. SPA_OK: *ev is filled; SPA_NONE: all taken.
 * in NULL with len 0: only the clock moves. Call again until SPA_NONE: several deadlines may have passed. */
enum spa_err spa_host_feed(struct spa_host *h, const uint8_t *in, size_t len, size_t *used, uint64_t now_ms,
                           struct spa_host_event *ev);
uint64_t spa_host_deadline_ms(const struct spa_host *h);   /* UINT64_MAX: never */

/* ---- what the cloud sends ----
 * SPA_ERR_ORDER: no such request (it may have ended), nothing to answer, or not READY. SPA_ERR_LIMIT: larger than the device
 * takes. SPA_ERR_CLOSED: the sink took nothing, and nothing has changed here. */

/* Answers HELLO. w's model fields are the model's; version, max_*, need_basis, the windows are set here.
 * d and N of the plugin must be the model's (SPA_ERR_SHAPE, and the peer is told). */
enum spa_err spa_host_welcome(struct spa_host *h, spa_Welcome *w, bool need_basis);
void spa_host_basis_here(struct spa_host *h);

/* Sends rows: positions pos .. pos+n_rows-1, their packed bytes in bulk (wire.h's row sizes), offsets of the full rows in
 * asked. SPA_ERR_ORDER as well when more than run_ahead states of the same epoch are awaited. With n_asked > 0 the request awaits the state of the last asked row, too, until its answer_ms have passed. */
enum spa_err spa_host_ask(struct spa_host *h, uint32_t request, uint32_t epoch, uint32_t pos, uint32_t n_rows,
                          const uint32_t *asked, uint32_t n_asked, const uint8_t *bulk, size_t bulk_len, uint64_t now_ms);
/* The cloud went back: no state of an older epoch is awaited any more, and n_unasked positions that were asked for, answered or not, are
 * not part of the answer. epoch: above the request's. */
enum spa_err spa_host_back(struct spa_host *h, uint32_t request, uint32_t epoch, uint32_t n_unasked);
/* Of a padded request: one token and SPA_PAD_TEXT_MAX bytes of text at most. */
enum spa_err spa_host_tokens(struct spa_host *h, uint32_t request, uint32_t index, const int32_t *ids, const uint8_t *by,
                             uint32_t n, const char *text, size_t text_len);
/* Ends a request: d's request, finish, prompt_tokens, completion_tokens, steps, shared_steps are the caller's. */
enum spa_err spa_host_done(struct spa_host *h, spa_Done *d);
/* Before the TOKENS of the token at index: n entries as in logprobs.h. */
enum spa_err spa_host_logprobs(struct spa_host *h, uint32_t request, uint32_t index, uint32_t n, const uint8_t *bulk, size_t bulk_len);
/* request 0: the connection; it is CLOSED afterwards. Otherwise the request is freed. */
enum spa_err spa_host_error(struct spa_host *h, uint32_t request, spa_Code code, const char *sentence);
/* BUSY of a request: ask again after retry_ms. */
enum spa_err spa_host_busy(struct spa_host *h, uint32_t request, uint32_t retry_ms, const char *sentence);
enum spa_err spa_host_row_error(struct spa_host *h, uint32_t row, spa_Code code, const char *sentence);
enum spa_err spa_host_features(struct spa_host *h, const spa_Features *f, const uint8_t *bulk, size_t bulk_len);
/* l: of the LOSS that is answered; bulk as WIRE.md says. */
enum spa_err spa_host_losses(struct spa_host *h, const spa_Losses *l, const uint8_t *bulk, size_t bulk_len);
enum spa_err spa_host_loss_error(struct spa_host *h, uint32_t id, spa_Code code, const char *sentence);
enum spa_err spa_host_fitted(struct spa_host *h, const spa_Fitted *f);
enum spa_err spa_host_blob(struct spa_host *h, const spa_Blob *b, const uint8_t *bytes, size_t len);
/* The request behind an id, NULL when there is none. */
struct spa_host_request *spa_host_request(struct spa_host *h, uint32_t id);

#endif
