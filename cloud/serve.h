/* serve.h - the cloud's sockets: HTTP, WebSocket and TLS by libwebsockets, on a thread of their own. Bytes go to and come
 * from the decode thread through mail.h; nothing here knows what they mean.
 *
 *   GET /health      200 {"status":"ok"}; 503 while draining, and when the decode thread has ended or stands still, or a worker is lost. Needs no key: it says
 *                    nothing else, and who starts and stops clouds asks for it
 *   GET /metrics     counters for Prometheus (metrics.h), with the key when keys are set: sums over few users say much about one
 *   GET /v1/models   the model, in OpenAI's form
 *   GET /v1/spa      the WebSocket (sub-protocol "spa"), with Authorization: Bearer KEY when keys are set
 *
 * Who connects is one of (accounts.h): the key, else the client certificate's subject, else the address (of IPv6 its first 64 bits). Too many
 * connections get 503 or 429 with Retry-After. */
#ifndef SPA_SERVE_H
#define SPA_SERVE_H

#include "log.h"
#include "mail.h"

struct spa_serve;

struct spa_serve_config {
    const char *host;            /* address to bind to */
    int         port;            /* 0: any free one */
    const char *cert_file, *key_file;   /* PEM; both or neither */
    const char *ca_file;         /* PEM: clients have to show a certificate of this authority; NULL: they need none */
    const char *api_key_file;    /* of keys.h; NULL: none */
    uint32_t    max_connections, max_per_address, max_per_key;   /* WebSockets; 0: no limit */
    uint32_t    max_sockets;     /* that are no WebSocket (yet); 0: no limit */
    uint32_t    max_head;        /* bytes of a request's head; 0: 4096 */
    uint32_t    handshake_s;     /* for TLS and a request's head to come; 0: 10 */
    uint32_t    ping_s;          /* a WebSocket that is silent so long is asked whether it lives, and given up half as long after; 0: 15 */
    size_t      max_unread;      /* bytes of a connection that may wait for the decode thread before it is read no further; 0: 1 MiB */
    const char *model_name;      /* for /v1/models */
    int64_t     started_unix_s;
    size_t      max_message;
    spa_log_fn *log;             /* called on the socket thread; NULL: nobody */
    const char *version;         /* for /metrics, like the next one */
    uint32_t    check_width;
    uint64_t    stall_ms;        /* without a sign of the decode thread it counts as stuck; 0: 300000, time for a slow model's longest step */
};

/* Reads keys and prepares; nothing listens yet. NULL with one sentence. */
struct spa_serve *spa_serve_new(const struct spa_serve_config *cfg, char *why, size_t why_len);
/* Bytes that messages in the mail keep free in front for this transport. */
size_t spa_serve_room(void);
/* Wakes the socket thread; for spa_mail_new. */
void spa_serve_wake(void *serve);
/* Listens and starts the thread. 0, or -1 with one sentence. */
int  spa_serve_start(struct spa_serve *s, struct spa_mail *mail, char *why, size_t why_len);
int  spa_serve_port(const struct spa_serve *s);
/* Reads the key file again, from any thread. 0: taken, and connections whose key has gone end; -1 with one sentence: the old keys hold on. */
int  spa_serve_reload(struct spa_serve *s, char *why, size_t why_len);
/* How many keys there are, and how many of them stand in plain text in the file. */
size_t spa_serve_keys(struct spa_serve *s, size_t *n_plain);
void spa_serve_draining(struct spa_serve *s);    /* /health says so from now on; new connections are refused */
/* The model cannot go on, and never will: /health says why (kept), new connections are refused, those that are there are closed (1011), so that
 * devices go elsewhere at once. From any thread. */
void spa_serve_fail(struct spa_serve *s, const char *why);
/* Writes what is queued (for at most grace_ms), closes everything, ends the thread. Takes NULL. */
void spa_serve_stop(struct spa_serve *s, uint64_t grace_ms);
void spa_serve_free(struct spa_serve *s);

#endif
