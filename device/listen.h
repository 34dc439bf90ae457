/* listen.h - where a server of ours listens, the cloud and `spa serve` alike: what its options may say, and its address as a number. */
#ifndef SPA_LISTEN_H
#define SPA_LISTEN_H

#include <stdbool.h>
#include <stddef.h>

struct spa_listen {
    const char *host;                          /* address or name to listen on */
    const char *key_file, *key_option;         /* keys that clients must show, NULL: none; and the option that names them */
    const char *ssl_key_file, *ssl_cert_file;  /* NULL: no TLS */
    const char *ssl_ca_file;                   /* clients must show a certificate of this authority, as good as a key; NULL: they need none */
    bool force;
};

/* TLS is whole, its files can be read, and beyond this machine there are both TLS and keys, unless forced. 0, or -1 with one sentence. */
int  spa_listen_check(const struct spa_listen *l, char *why, size_t why_len);
/* Is the address this machine's own, not reachable from outside? */
bool spa_listen_is_loopback(const char *address);
/* The numeric form of an address or host name, IPv4 where there are both. libwebsockets wants it so: given an IPv4 address on a dual-stack
 * socket, or a name, it listens on every interface without a word. 0 or -1. */
int  spa_listen_resolve(const char *host, char *numeric, size_t len, bool *is_v6);

#endif
