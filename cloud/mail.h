/* mail.h - the queue between the socket thread and the decode thread. Everything in it is guarded by one mutex.
 *
 *   socket thread:  spa_mail_open, _bytes, _denied, _gone  put letters in;   spa_mail_next_out takes what is to be written
 *   decode thread:  spa_mail_take takes letters;   spa_mail_send, _hang_up  put messages out, _flush wakes the other side
 *   both:           spa_mail_show puts the decode thread's counters up, spa_mail_look reads them and says how it fares
 *
 * A connection is freed when both sides have let go of it: the socket thread by _gone, which puts its last letter in, and the
 * decode thread by _release. Whichever comes second frees: _release when the last letter has been taken, otherwise _take when it
 * meets that letter, which is then not handed out. */
#ifndef SPA_MAIL_H
#define SPA_MAIL_H

#include "err.h"
#include "metrics.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spa_mail;
struct spa_conn;

/* How a WebSocket is closed: RFC 6455's numbers, and 1013, try again later. */
enum spa_close { SPA_CLOSE_DONE = 1000, SPA_CLOSE_GOING_AWAY = 1001, SPA_CLOSE_PROTOCOL = 1002, SPA_CLOSE_POLICY = 1008, SPA_CLOSE_TOO_BIG = 1009,
                 SPA_CLOSE_LATER = 1013 };

enum spa_letter_kind { SPA_LETTER_OPEN, SPA_LETTER_BYTES, SPA_LETTER_GONE, SPA_LETTER_DENIED, SPA_LETTER_DRAIN };
struct spa_letter {
    enum spa_letter_kind kind;
    struct spa_conn *conn;      /* NULL with DRAIN */
    uint8_t *bytes;             /* of BYTES; the taker clears and frees it */
    size_t len;
    uint64_t at_ms;             /* when it was put in: a decode call may pass before it is taken */
};

/* A message on its way out: `room` bytes are free before data, for the transport's own head. */
struct spa_outgoing {
    struct spa_outgoing *next;
    size_t len;
    uint8_t *data;
};

/* room: bytes that outgoing messages keep free in front; out_max: bytes that may wait per connection; wake is called by
 * spa_mail_flush, from the decode thread, when there is something to write. */
struct spa_mail *spa_mail_new(size_t room, size_t out_max, void (*wake)(void *user), void *user);
void spa_mail_free(struct spa_mail *m);
uint64_t spa_now_ms(void);      /* the monotonic clock */

/* ---- socket thread ---- */
struct spa_conn *spa_mail_open(struct spa_mail *m, uint64_t who);                /* who: of accounts.h. NULL: no memory */
/* Copies bytes in. Returns how many of the connection wait now, or SIZE_MAX without memory. */
size_t spa_mail_bytes(struct spa_mail *m, struct spa_conn *c, const void *bytes, size_t len);
size_t spa_mail_waiting(struct spa_mail *m, struct spa_conn *c);
void   spa_mail_gone(struct spa_mail *m, struct spa_conn *c);
void   spa_mail_denied(struct spa_mail *m, struct spa_conn *c);                  /* its key holds no longer */
void   spa_mail_drain(struct spa_mail *m);
/* The next message to write, with small ones behind it in one piece (spa_mail_alone); the caller's to free with free(); NULL: none. *hang_up: close
 * once nothing is left, as spa_mail_close_as says. What the message holds is the user's: spa_outgoing_free clears it. */
struct spa_outgoing *spa_mail_next_out(struct spa_mail *m, struct spa_conn *c, bool *hang_up);
enum spa_close spa_mail_close_as(struct spa_mail *m, struct spa_conn *c);
void   spa_outgoing_free(struct spa_outgoing *o);                                /* takes NULL */
bool   spa_mail_hangs_up(struct spa_mail *m, struct spa_conn *c);                  /* it is to end when its queue is empty */
bool   spa_mail_is_gone(struct spa_mail *m, struct spa_conn *c);                   /* its socket is no more; the letter may be yet to come */
bool   spa_mail_busy(struct spa_mail *m);                                        /* some connection is still open */
bool   spa_mail_has_out(struct spa_mail *m, struct spa_conn *c);                 /* something to write, or to hang up */

/* How the decode thread fares. stalled: it has not come for letters for more than stall_ms, and does not sleep. */
enum spa_decoder { SPA_DECODER_OFF, SPA_DECODER_RUNS, SPA_DECODER_STALLED };
enum spa_decoder spa_mail_decoder(struct spa_mail *m, uint64_t stall_ms);
/* What was shown last, and the mail's own counts in bytes_in, bytes_out, opened, open of s. */
void   spa_mail_look(struct spa_mail *m, struct spa_metrics *shown, struct spa_metrics_sockets *s);

/* ---- decode thread ---- */
/* It begins or ends. */
void   spa_mail_decodes(struct spa_mail *m, bool runs);
void   spa_mail_show(struct spa_mail *m, const struct spa_metrics *metrics);   /* copies */
/* The next letter, waiting until deadline_ms (0: not at all; UINT64_MAX: for ever). false: none came. */
bool   spa_mail_take(struct spa_mail *m, uint64_t deadline_ms, struct spa_letter *out);
/* SPA_OK, or SPA_ERR_CLOSED when the connection is gone or too much waits. */
enum spa_err spa_mail_send(struct spa_mail *m, struct spa_conn *c, const void *a, size_t a_len, const void *b, size_t b_len);
/* From now on what waits together leaves one by one all the same. */
void   spa_mail_alone(struct spa_mail *m, struct spa_conn *c);
size_t spa_mail_out_bytes(struct spa_mail *m, struct spa_conn *c);
void   spa_mail_hang_up(struct spa_mail *m, struct spa_conn *c, enum spa_close as);
void   spa_mail_flush(struct spa_mail *m);
void   spa_mail_release(struct spa_mail *m, struct spa_conn *c);
/* A place for what the decode thread knows of a connection; NULL at first. Only the decode thread looks at it. */
void **spa_conn_note(struct spa_conn *c);
uint64_t spa_conn_who(const struct spa_conn *c);

#endif
