/* listen.c - in: a server's options. out: whether it may listen so, and at which address (listen.h). */
#define _POSIX_C_SOURCE 200809L
#include "listen.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int spa_listen_check(const struct spa_listen *l, char *why, size_t why_len)
{
    if ((l->ssl_key_file != NULL) != (l->ssl_cert_file != NULL)) {
        snprintf(why, why_len, "TLS needs both --ssl-key-file and --ssl-cert-file");
        return -1;
    }
    if (l->ssl_key_file && (access(l->ssl_key_file, R_OK) != 0 || access(l->ssl_cert_file, R_OK) != 0)) {
        snprintf(why, why_len, "cannot read %s", access(l->ssl_key_file, R_OK) != 0 ? l->ssl_key_file : l->ssl_cert_file);
        return -1;
    }
    if (l->ssl_ca_file && !l->ssl_key_file) {
        snprintf(why, why_len, "--ssl-ca-file asks for certificates, which is a part of TLS: add --ssl-key-file and --ssl-cert-file");
        return -1;
    }
    if (l->ssl_ca_file && access(l->ssl_ca_file, R_OK) != 0) {
        snprintf(why, why_len, "cannot read %s", l->ssl_ca_file);
        return -1;
    }
    if (!spa_listen_is_loopback(l->host) && !((l->key_file || l->ssl_ca_file) && l->ssl_key_file) && !l->force) {
        snprintf(why, why_len, "--host %s is reachable from outside: add %s, --ssl-key-file and --ssl-cert-file, or --force", l->host, l->key_option);
        return -1;
    }
    return 0;
}

bool spa_listen_is_loopback(const char *address)
{
    struct in_addr v4;
    if (inet_pton(AF_INET, address, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return strcmp(address, "localhost") == 0 || strcmp(address, "::1") == 0;
}

int spa_listen_resolve(const char *host, char *numeric, size_t len, bool *is_v6)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE, .ai_family = AF_INET }, *found = NULL;
    if (getaddrinfo(host, NULL, &hints, &found) != 0) {
        hints.ai_family = AF_INET6;
        if (getaddrinfo(host, NULL, &hints, &found) != 0)
            return -1;
    }
    *is_v6 = found->ai_family == AF_INET6;
    const int rc = getnameinfo(found->ai_addr, found->ai_addrlen, numeric, (socklen_t)len, NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(found);
    return rc == 0 ? 0 : -1;
}
