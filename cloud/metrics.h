/* metrics.h - what the cloud counts, and the page on which Prometheus reads it.
 *
 * The decode thread counts in a struct of its own and shows a copy through the mail once a round (mail.h); the socket thread writes what
 * it was shown as text. Counters begin with the program; units are tokens, seconds, bytes. Sums over all users, nothing of one. */
#ifndef SPA_METRICS_H
#define SPA_METRICS_H

#include "ahead.h"

#include <stddef.h>
#include <stdint.h>

/* How a request ended: the first ones as spa_Finish has them. */
enum spa_end { SPA_END_STOP, SPA_END_LENGTH, SPA_END_CANCELLED, SPA_END_CONTEXT, SPA_END_FAILED, SPA_END_REFUSED, SPA_END_GONE, SPA_ENDS };

/* Why a request got no answer: the queue was full; it waited and had to make room for somebody who holds fewer places; as many as its key,
 * its connection may have; its key's tokens a minute; the context; the cloud goes down; what it said. */
enum spa_refusal { SPA_REFUSED_QUEUE, SPA_REFUSED_CROWDED_OUT, SPA_REFUSED_KEY, SPA_REFUSED_CONNECTION, SPA_REFUSED_TOKENS, SPA_REFUSED_CONTEXT,
                   SPA_REFUSED_DRAINING, SPA_REFUSED_CONTENTS, SPA_REFUSALS };
/* Why a connection was cut: unusable or stray states; nothing said in time; no message of ours; too large a one; not allowed there; it did not read;
 * it did nothing; its key was taken back; no byte came on the line, not even on a ping (the socket
 * thread's, as no other). */
enum spa_cut { SPA_CUT_STATES, SPA_CUT_SILENT, SPA_CUT_MESSAGE, SPA_CUT_SIZE, SPA_CUT_ORDER, SPA_CUT_UNREAD, SPA_CUT_IDLE, SPA_CUT_KEY, SPA_CUT_PING, SPA_CUTS };

enum { SPA_ANSWER_BOUNDS = 12, SPA_WIDTH_BOUNDS = 10 };

/* The decode thread's own. */
struct spa_metrics {
    uint64_t tokens[2];                     /* said, by spa_Speaker */
    uint64_t gated_tokens;                  /* said, with the device asked before */
    uint64_t prompt_tokens_decoded, prompt_tokens_kept;
    uint64_t training_tokens;               /* of rows, decoded */
    uint64_t late, unusable, stray;         /* the device's states */
    uint64_t refused_full;                  /* connections beyond what is allowed */
    uint64_t ends[SPA_ENDS], refused[SPA_REFUSALS], cut[SPA_CUTS];
    uint64_t resumed;                       /* requests with confirmed tokens */
    uint64_t guesses_right[SPA_GUESSES], guesses_wrong[SPA_GUESSES];   /* decoded ones; wrong: or behind a wrong one */
    uint64_t answers[SPA_ANSWER_BOUNDS + 1], batches[SPA_WIDTH_BOUNDS + 1];   /* per bucket; the last one: above all bounds */
    double   answer_seconds;                /* sum of the time to a usable state */
    uint64_t batch_tokens;
    double   head_seconds, decode_seconds;  /* in calls of the model; decode: training rows too */
    uint32_t queue, slots, slots_busy, training_streams, training_waits, states_awaited;   /* now */
};

void spa_metrics_answer(struct spa_metrics *m, uint64_t ms);       /* a usable state came, so long after it was asked for */
void spa_metrics_batch(struct spa_metrics *m, uint32_t n_tokens);  /* a decode call */

/* The socket thread's own, and what the mail counts. */
struct spa_metrics_sockets {
    uint64_t bytes_in, bytes_out;           /* WebSocket payload */
    uint64_t opened;
    uint32_t open;
    uint64_t refused_key, refused_draining, refused_full, refused_address, refused_per_key;   /* at the upgrade */
    uint64_t refused_sockets, unfinished;   /* at once, since too many ask for nothing; closed before they asked for anything */
    uint64_t key_reloads[2];                /* taken, refused */
    uint64_t unanswered_pings;              /* connections that were given up for it */
    uint64_t pauses;                        /* sockets that were read no further for a while, as often as it happened */
};

struct spa_metrics_fixed {
    const char *version, *model;
    int64_t started_unix_s;
    uint32_t check_width;                   /* the widest batch whose bits hold; 0: not tried */
};

/* The page, UTF-8, zero-terminated, the caller's to free(); NULL: no memory. */
char *spa_metrics_text(const struct spa_metrics *m, const struct spa_metrics_sockets *s, const struct spa_metrics_fixed *f, size_t *len);

#endif
