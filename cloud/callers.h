/* callers.h - who is at the other end of the cloud's sockets, and whether there is a connection for one more. The socket thread's own; beside
 * serve.c the one file of the cloud that knows sockets.
 *
 *   accepted --_new--> asks for nothing yet --_asked--> asks --_upgrade--> a WebSocket         any of them --_free--> gone
 *
 * Names are hashes of 64 bits, never 0: an address (of IPv6 the network), and who it is: the key, else the certificate's subject, else the address. */
#ifndef SPA_CALLERS_H
#define SPA_CALLERS_H

#include "keys.h"
#include "metrics.h"

struct lws;

struct spa_caller {
    struct spa_caller *next;
    uint64_t address, who;           /* who: 0 before the upgrade */
    uint8_t  key[SPA_KEY_HASH];
    bool     has_key, asked, upgraded;
};

struct spa_callers {
    struct spa_caller *first;
    uint64_t accepted;               /* address of the socket that is just being accepted */
    uint32_t max_connections, max_per_address, max_per_key, max_sockets;   /* as in serve.h */
    struct spa_metrics_sockets *counts;
};

/* Before anything is read of the socket: may it stay? Those that ask for nothing are bounded, all together and for an address. */
bool spa_callers_may_come(struct spa_callers *all, int fd);
/* The socket that was just accepted. NULL: no memory. */
struct spa_caller *spa_caller_new(struct spa_callers *all);
void spa_caller_free(struct spa_callers *all, struct spa_caller *c);   /* takes NULL */

/* An upgrade, its key (c->key, with has_key) known to be good. certificate: of spa_caller_certificate. 0: c is one of the connections now; otherwise
 * the HTTP status of the refusal, and its sentence. */
unsigned spa_caller_upgrade(struct spa_callers *all, struct spa_caller *c, uint64_t certificate, const char **why);
/* Who the client's certificate, which TLS has verified, says it is; 0: it has shown none. ssl: an SSL *. */
uint64_t spa_caller_certificate(void *ssl);

#endif
