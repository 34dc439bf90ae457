/* tls.c - TLS towards a cloud (tls.h). In: files, a host name. Out: a context for the library, and what TLS said when it failed. */
#define _POSIX_C_SOURCE 200809L
#include "tls.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

/* libwebsockets takes the name to check from the Host header and cuts it at its first colon, which no IPv6 address
 * survives; so the name is set here, as the handshake starts. An address is not sent as server name: RFC 6066 forbids it. */
static void on_handshake(const SSL *ssl, int where, int ret)
{
    struct spa_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    if ((where & SSL_CB_READ_ALERT) == SSL_CB_READ_ALERT && (ret & 0xff) != SSL3_AD_CLOSE_NOTIFY)
        t->alert = ret & 0xff;
    if (!(where & SSL_CB_HANDSHAKE_START))
        return;
    X509_VERIFY_PARAM *param = SSL_get0_param((SSL *)ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(param, t->host)) {
        X509_VERIFY_PARAM_set1_host(param, NULL, 0);
        SSL_set_tlsext_host_name((SSL *)ssl, NULL);
    } else {
        X509_VERIFY_PARAM_set1_host(param, t->host, 0);
        SSL_set_tlsext_host_name((SSL *)ssl, t->host);
    }
}

/* A key that wants a passphrase is of no use to a program that nobody sits at. */
static int no_passphrase(char *buf, int size, int rwflag, void *user)
{
    (void)buf, (void)size, (void)rwflag, (void)user;
    return -1;
}

static int show_certificate(struct spa_tls *t, const char *cert_file, const char *key_file, char *why, size_t why_len)
{
    SSL_CTX_set_default_passwd_cb(t->ctx, no_passphrase);
    const bool cert = SSL_CTX_use_certificate_chain_file(t->ctx, cert_file) == 1;
    if (cert && SSL_CTX_use_PrivateKey_file(t->ctx, key_file, SSL_FILETYPE_PEM) == 1 && SSL_CTX_check_private_key(t->ctx) == 1) {
        t->shows_cert = true;
        return 0;
    }
    ERR_clear_error();
    if (cert)
        snprintf(why, why_len, "%s is not the private key of %s, as PEM without a passphrase", key_file, cert_file);
    else
        snprintf(why, why_len, "cannot use %s as the certificate to show: it has to be a PEM file", cert_file);
    return -1;
}

int spa_tls_open(struct spa_tls *t, const char *host, const char *ca_file, const char *cert_file, const char *key_file, char *why, size_t why_len)
{
    t->host = host;
    t->ctx = SSL_CTX_new(TLS_client_method());
    if (!t->ctx || !SSL_CTX_set_min_proto_version(t->ctx, TLS1_2_VERSION)) {
        snprintf(why, why_len, "TLS is not available on this machine");
        return -1;
    }
    SSL_CTX_set_app_data(t->ctx, t);
    SSL_CTX_set_info_callback(t->ctx, on_handshake);
    if (ca_file ? !SSL_CTX_load_verify_file(t->ctx, ca_file) : !SSL_CTX_set_default_verify_paths(t->ctx)) {
        unsigned long e = ERR_peek_error();
        const char *reason = ERR_SYSTEM_ERROR(e) ? strerror(ERR_GET_REASON(e)) : "it holds no PEM certificate";
        snprintf(why, why_len, "cannot use %s as the authority to trust: %s", ca_file ? ca_file : "the system's certificates",
                 ca_file ? reason : "none found");
        ERR_clear_error();
        return -1;
    }
    return cert_file ? show_certificate(t, cert_file, key_file, why, why_len) : 0;
}

/* Alerts are what TLS says of a client's certificate; in TLS 1.3 after the client has thought that all is well. */
bool spa_tls_refused(const struct spa_tls *t)
{
    return t->alert == TLS13_AD_CERTIFICATE_REQUIRED || t->alert == SSL3_AD_BAD_CERTIFICATE || t->alert == SSL3_AD_UNSUPPORTED_CERTIFICATE ||
           t->alert == SSL3_AD_CERTIFICATE_REVOKED || t->alert == SSL3_AD_CERTIFICATE_EXPIRED || t->alert == SSL3_AD_CERTIFICATE_UNKNOWN ||
           t->alert == TLS1_AD_UNKNOWN_CA;
}

void spa_tls_explain(long cert_error, const char *peer, const char *host, char *why, size_t why_len)
{
    switch (cert_error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        snprintf(why, why_len, "the certificate of %s has expired; its owner has to renew it (or this machine's clock is wrong)",
                 peer);
        break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        snprintf(why, why_len, "the certificate of %s is not valid yet; is this machine's clock right?", peer);
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        snprintf(why, why_len, "the certificate of %s is for another name than '%s'; use the name that it was made for", peer,
                 host);
        break;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        snprintf(why, why_len, "the certificate of %s is not trusted: nobody this machine trusts has signed it "
                 "(--ca-file names another authority)", peer);
        break;
    default:
        snprintf(why, why_len, "the certificate of %s is not accepted: %s", peer, X509_verify_cert_error_string(cert_error));
    }
}
