/* http.h - the local server's sockets: HTTP/1.1 (and TLS) by libwebsockets in one thread, everything bounded. libwebsockets stays behind
 * this header. What a request means is api.h's, question.h's and reply.h's business. */
#ifndef SPA_HTTP_H
#define SPA_HTTP_H

#include "models.h"

struct spa_http;

struct spa_http_config {
    const char *host;                    /* address to bind to */
    int         port;                    /* 0: any free one */
    const char *cert_file, *key_file;    /* TLS: PEM; both or neither */
    const char *client_key_file;         /* keys that clients must show, a file of keys.h; NULL: none */
    const char *const *names;            /* beside addresses and localhost, what Host may say */
    size_t      n_names;
    uint32_t    ping_s;                  /* a stream that is silent so long gets a comment */
    uint32_t    max_jobs;                /* answers under way or waiting; more are refused with 429 */
    uint32_t    max_connections;         /* more are closed at once */
    uint32_t    max_head;                /* bytes of a request's head; a longer one is closed */
    uint32_t    max_body;                /* bytes of a request; more are refused with 413 */
    uint32_t    request_s;               /* for a request's head and body to come */
    void      (*log)(const char *sentence);   /* on the loop's thread; NULL: nobody */
};

/* Listens. NULL with one sentence. */
struct spa_http *spa_http_new(const struct spa_http_config *cfg, char *why, size_t why_len);
int  spa_http_port(const struct spa_http *h);
size_t spa_http_plain_keys(const struct spa_http *h);   /* that stand in the key file themselves, not their hashes */
/* Wakes the loop; from any thread, and from a signal handler. */
void spa_http_wake(void *http);
/* Answers until spa_http_stop, then until the answers under way have ended, at most drain_ms; a second stop ends at once. models is
 * borrowed; nothing of it is held afterwards. */
void spa_http_run(struct spa_http *h, struct spa_models *models, uint64_t drain_ms);
void spa_http_stop(struct spa_http *h);  /* from a signal handler, too */
/* The key file is read again, by the loop: requests of keys that have gone end. One that cannot be used changes nothing. From a signal handler, too. */
void spa_http_reload(struct spa_http *h);
void spa_http_free(struct spa_http *h);  /* takes NULL */

#endif
