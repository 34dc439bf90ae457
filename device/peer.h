/* peer.h - where the cloud is: a ws:// or wss:// URL taken apart, and the reason why nobody can be reached there. */
#ifndef SPA_PEER_H
#define SPA_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPA_PEER_HOST_MAX = 254, SPA_PEER_PATH_MAX = 512 };

struct spa_peer {
    bool     tls;
    bool     is_ipv6;                        /* host is a bare IPv6 address: brackets belong around it in a URL */
    char     host[SPA_PEER_HOST_MAX];
    uint16_t port;
    char     path[SPA_PEER_PATH_MAX];        /* "/v1/spa" unless the URL has one */
    char     host_header[SPA_PEER_HOST_MAX + 10];
    char     shown[SPA_PEER_HOST_MAX + 20];  /* scheme://host:port, for sentences */
};

/* 0, or -1 with one sentence. */
int spa_peer_parse(const char *url, struct spa_peer *out, char *why, size_t why_len);

/* Says why no TCP connection came about: looks the name up and tries once more, at most timeout_ms. */
void spa_peer_explain_unreachable(const struct spa_peer *p, int timeout_ms, char *why, size_t why_len);

#endif
