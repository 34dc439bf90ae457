/* peer.c - the cloud's address (peer.h). In: a URL. Out: its pieces, or a sentence on what is wrong with it or its host. */
#define _POSIX_C_SOURCE 200809L
#include "peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static const char default_path[] = "/v1/spa";

static int refuse_url(const char *url, const char *what, char *why, size_t why_len)
{
    snprintf(why, why_len, "'%.200s' is no address of a cloud: %s, as in ws://127.0.0.1:8080", url, what);
    return -1;
}

/* Nothing that could end a header line or be hidden in a terminal. */
static bool is_plain(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s <= ' ' || (unsigned char)*s >= 127)
            return false;
    return true;
}

static int parse_port(const char *s, size_t len, uint16_t *port)
{
    unsigned value = 0;
    if (len == 0 || len > 5)
        return -1;
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9')
            return -1;
        value = value * 10 + (unsigned)(s[i] - '0');
    }
    if (value == 0 || value > 65535)
        return -1;
    *port = (uint16_t)value;
    return 0;
}

int spa_peer_parse(const char *url, struct spa_peer *out, char *why, size_t why_len)
{
    memset(out, 0, sizeof *out);
    const char *at;
    if (strncasecmp(url, "ws://", 5) == 0) {
        at = url + 5;
    } else if (strncasecmp(url, "wss://", 6) == 0) {
        at = url + 6;
        out->tls = true;
    } else {
        return refuse_url(url, "it begins with ws:// or wss://", why, why_len);
    }
    if (!is_plain(url))
        return refuse_url(url, "it has no spaces and no letters beyond ASCII", why, why_len);

    size_t authority_len = strcspn(at, "/?#");
    const char *path = at + authority_len;
    if (memchr(at, '@', authority_len))
        return refuse_url(url, "it carries no user name or password (a key goes into a file)", why, why_len);
    const char *host = at, *host_end, *rest;
    if (*at == '[') {
        host = at + 1;
        host_end = memchr(at, ']', authority_len);
        if (!host_end)
            return refuse_url(url, "an IPv6 address ends with ]", why, why_len);
        rest = host_end + 1;
        out->is_ipv6 = true;
    } else {
        host_end = memchr(at, ':', authority_len);
        if (!host_end)
            host_end = path;
        rest = host_end;
    }
    size_t host_len = (size_t)(host_end - host);
    if (host_len == 0 || host_len >= sizeof out->host)
        return refuse_url(url, "it names a host", why, why_len);
    memcpy(out->host, host, host_len);
    struct in6_addr ignored;
    if (out->is_ipv6 && inet_pton(AF_INET6, out->host, &ignored) != 1)
        return refuse_url(url, "an IPv6 address stands between [ and ]", why, why_len);

    out->port = out->tls ? 443 : 80;
    if (rest < path && (*rest != ':' || parse_port(rest + 1, (size_t)(path - rest) - 1, &out->port) != 0))
        return refuse_url(url, "its port is a number from 1 to 65535", why, why_len);
    if (*path == '?' || *path == '#' || strchr(path, '#') || strlen(path) >= sizeof out->path)
        return refuse_url(url, "after host and port comes at most a short path", why, why_len);
    snprintf(out->path, sizeof out->path, "%s", *path && strcmp(path, "/") != 0 ? path : default_path);

    const char *open = out->is_ipv6 ? "[" : "", *close_bracket = out->is_ipv6 ? "]" : "";
    snprintf(out->host_header, sizeof out->host_header, "%s%s%s:%u", open, out->host, close_bracket, out->port);
    snprintf(out->shown, sizeof out->shown, "%s://%s", out->tls ? "wss" : "ws", out->host_header);
    return 0;
}

/* errno of a TCP connection to one address; 0 when it came about. */
static int try_address(const struct addrinfo *a, int timeout_ms)
{
    int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    if (fd < 0)
        return errno;
    int error = 0;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || (connect(fd, a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS)) {
        error = errno;
    } else {
        struct pollfd p = { .fd = fd, .events = POLLOUT };
        socklen_t len = sizeof error;
        if (poll(&p, 1, timeout_ms) <= 0)
            error = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
            error = errno;
    }
    close(fd);
    return error;
}

void spa_peer_explain_unreachable(const struct spa_peer *p, int timeout_ms, char *why, size_t why_len)
{
    char port[8];
    snprintf(port, sizeof port, "%u", p->port);
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *found = NULL;
    int rc = getaddrinfo(p->host, port, &hints, &found);
    if (rc != 0) {
        if (rc == EAI_AGAIN)
            snprintf(why, why_len, "cannot look up '%s': the name service does not answer; is this machine online?", p->host);
        else
            snprintf(why, why_len, "there is no host '%s' (%s); check the address", p->host, gai_strerror(rc));
        return;
    }
    int error = 0;
    /* The last address speaks: with localhost as ::1 and 127.0.0.1 it is the one that people mean. */
    for (const struct addrinfo *a = found; a; a = a->ai_next)
        error = try_address(a, timeout_ms);
    freeaddrinfo(found);
    if (error == ECONNREFUSED)
        snprintf(why, why_len, "%s refused the connection: is spa-cloud running there?", p->shown);
    else if (error == ETIMEDOUT)
        snprintf(why, why_len, "%s does not answer (time ran out); check the address and any firewall between", p->shown);
    else if (error == EHOSTUNREACH || error == ENETUNREACH)
        snprintf(why, why_len, "there is no route to %s (%s); check the network", p->shown, strerror(error));
    else if (error)
        snprintf(why, why_len, "cannot connect to %s: %s", p->shown, strerror(error));
    else
        snprintf(why, why_len, "the connection to %s could not be made this time; try again", p->shown);
}
