/* link.h - the wire to the cloud: a WebSocket (ws or wss) with a session on it. libwebsockets stays behind this header.
 *
 * One thread: nothing happens between calls. What comes in is handed out as session events, in order. */
#ifndef SPA_LINK_H
#define SPA_LINK_H

#include "session.h"

struct spa_link;

struct spa_link_config {
    const char *url;               /* ws://host:port or wss://host:port, a path is allowed */
    const char *api_key;           /* sent as Authorization: Bearer; NULL none */
    const char *ca_file;           /* PEM of the authority to trust for wss; NULL: the system's */
    const char *cert_file, *key_file;   /* PEM: the certificate that we show, and its key; NULL: none */
    const char *client;            /* for the cloud's log */
    uint32_t   *retry_ms;          /* filled when the cloud has no room for us and says when to come again, else 0; NULL: nobody asks */
    size_t      max_message;       /* bytes of the largest message we take */
    uint32_t    connect_ms;        /* until WELCOME; 0: 10000 */
    uint32_t    ping_s;            /* a cloud silent so long is asked whether it lives, and given up when two thirds of that later it has not
                                      answered: a connection may be dead without anybody saying so. 0: 30 */
    uint32_t    silence_s;         /* a cloud that lives, but has owed an answer for so long without a message, is given up. 0: 900 */
    const spa_Plugin *plugin;      /* NULL: base model alone */
    const float *gate;             /* folded, [d]; NULL without */
    const uint8_t *basis;          /* bytes as in basis.h, sent when the cloud does not have them; NULL */
    size_t      basis_len;
    const char *plugin_base;       /* name of the model that the plugin was made for, for sentences; NULL; borrowed */
};

struct spa_link_bytes { uint64_t down, up; };   /* WebSocket payload bytes so far */

/* What a call returns in place of -1 when trying again with this cloud is no use: it refuses us, or breaks the rules. */
enum { SPA_LINK_REFUSED = -2 };

/* Connects, says HELLO, waits for WELCOME, sends the basis when it is wanted. 0, or -1 or SPA_LINK_REFUSED with one sentence in why that names
 * the peer, the cause (refused, no such host, timeout, certificate untrusted or expired or for another name, wrong key,
 * plugin for another model ...) and what to do. *out is to be closed. */
int spa_link_open(struct spa_link **out, const struct spa_link_config *cfg, char *why, size_t why_len);
void spa_link_close(struct spa_link *l);                       /* takes NULL; sends a proper close */

struct spa_session *spa_link_session(struct spa_link *l);      /* for the sending calls of session.h */
struct spa_link_bytes spa_link_bytes(const struct spa_link *l);

/* Waits for the next event at most timeout_ms (negative: no limit). 1: *ev filled, valid until the next call; 0: time
 * is up; with one sentence in why: -1: the connection is lost, or the cloud ended it for a reason that passes; SPA_LINK_REFUSED: the peer broke
 * the protocol, or says that we did. */
int spa_link_wait(struct spa_link *l, int timeout_ms, struct spa_session_event *ev, char *why, size_t why_len);
/* How long features and losses may be waited for without a message: 300 s, or silence_s where that is less; a day with a cloud that gives a key so
 * many tokens a minute, since rows wait for these. */
int spa_link_patience_ms(const struct spa_link *l);
/* The one call that any thread may make while the link is open: the wait that is under way, or the next one, finds time up when
 * nothing else is there. */
void spa_link_wake(struct spa_link *l);

#endif
