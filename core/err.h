/* err.h - the few ways in which core can fail, each with the action that it asks for.
 *
 * A caller's mistake is an assert; the world's (file, peer, memory, time) is one of these codes.
 * core never prints and never exits: programs turn a code, and the fault beside it, into a sentence. */
#ifndef SPA_ERR_H
#define SPA_ERR_H

#include <stdint.h>

enum spa_err {
    SPA_OK          =  0,
    SPA_NONE        =  1,  /* nothing now, not a failure: feed more, ask later */
    SPA_ERR_NOMEM   = -1,  /* memory handed over is too small: ask the *_len function */
    SPA_ERR_SHAPE   = -2,  /* plugin and base model differ: fetch the right plugin */
    SPA_ERR_FORMAT  = -3,  /* malformed file or message: drop it */
    SPA_ERR_LIMIT   = -4,  /* a length beyond what WIRE or PLUGIN allows: drop it */
    SPA_ERR_VERSION = -5,  /* a version that we do not speak: upgrade */
    SPA_ERR_ORDER   = -6,  /* a message that this state does not allow: close */
    SPA_ERR_TIMEOUT = -7,  /* the peer is silent past the deadline: reconnect */
    SPA_ERR_RANGE   = -8,  /* NaN, infinity or an absurd norm: throw it away */
    SPA_ERR_CLOSED  = -9,  /* the sink took no more: the connection is gone or its queue full */
};

/* "SHAPE" for SPA_ERR_SHAPE and so on; "UNKNOWN" for any other number; never NULL. */
const char *spa_err_name(enum spa_err e);

/* What a reader of outside bytes disliked and where.
 *   what   a static string ("tensor data runs past the end of the file"); never NULL after an error
 *   at     byte offset in the block that was read */
struct spa_fault {
    const char *what;
    uint64_t at;
};

#endif
