/* tls.h - the device's side of TLS: whom it trusts, what it shows of itself, and what went wrong. link.c's. */
#ifndef SPA_TLS_H
#define SPA_TLS_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>

struct spa_tls {
    SSL_CTX    *ctx;           /* NULL: no TLS. The owner's to free */
    const char *host;          /* the name or address that the certificate has to be for; borrowed */
    int         alert;         /* the peer's last; 0: none */
    bool        shows_cert;
};

/* TLS 1.2 or newer; the peer's certificate and its name are checked. ca_file: PEM, NULL: the system's authorities; cert_file, key_file: PEM of what
 * is shown where the peer asks for it, NULL: nothing. t stays where it is as long as ctx lives. 0, or -1 with one sentence. */
int  spa_tls_open(struct spa_tls *t, const char *host, const char *ca_file, const char *cert_file, const char *key_file, char *why, size_t why_len);
/* Has the peer said that it takes our certificate for none of its own, or wants one? */
bool spa_tls_refused(const struct spa_tls *t);
/* Why the peer's certificate is not accepted: cert_error is an X509_V_ERR_. */
void spa_tls_explain(long cert_error, const char *peer, const char *host, char *why, size_t why_len);

#endif
