/* callers.c - in: sockets that are accepted, that ask, that end. out: whether there is room, and who each is (callers.h). */
#include "callers.h"

#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static uint64_t name_of(const void *bytes, size_t len)
{
    uint8_t hash[EVP_MAX_MD_SIZE] = { 0 };
    uint64_t name = 0;
    EVP_Digest(bytes, len, hash, NULL, EVP_sha256(), NULL);
    memcpy(&name, hash, sizeof name);
    return name ? name : 1;
}

/* Of IPv6 the network: whoever has one has all of its addresses. */
static uint64_t address_of(int fd)
{
    struct sockaddr_storage a;
    struct in6_addr v6;
    struct in_addr v4;
    socklen_t len = sizeof a;
    memset(&a, 0, sizeof a);
    if (getpeername(fd, (struct sockaddr *)&a, &len) != 0)
        return name_of("", 0);
    if (a.ss_family == AF_INET6) {
        memcpy(&v6, (const char *)&a + offsetof(struct sockaddr_in6, sin6_addr), sizeof v6);
        return name_of(&v6, 8);
    }
    memcpy(&v4, (const char *)&a + offsetof(struct sockaddr_in, sin_addr), sizeof v4);
    return name_of(&v4, sizeof v4);
}

uint64_t spa_caller_certificate(void *ssl)
{
    X509 *cert = ssl ? SSL_get1_peer_certificate(ssl) : NULL;
    uint8_t *der = NULL;
    const int len = cert ? i2d_X509_NAME(X509_get_subject_name(cert), &der) : 0;
    const uint64_t name = len > 0 ? name_of(der, (size_t)len) : 0;
    OPENSSL_free(der);
    X509_free(cert);
    return name;
}

/* address, who: 0 for any. */
static uint32_t count(const struct spa_callers *all, bool upgraded, uint64_t address, uint64_t who)
{
    uint32_t n = 0;
    for (const struct spa_caller *c = all->first; c; c = c->next)
        n += c->upgraded == upgraded && (!address || c->address == address) && (!who || c->who == who);
    return n;
}

bool spa_callers_may_come(struct spa_callers *all, int fd)
{
    all->accepted = address_of(fd);
    const bool many = (all->max_sockets && count(all, false, 0, 0) >= all->max_sockets) ||
                      (all->max_per_address && count(all, false, all->accepted, 0) >= all->max_per_address);
    all->counts->refused_sockets += many;
    return !many;
}

struct spa_caller *spa_caller_new(struct spa_callers *all)
{
    struct spa_caller *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    *c = (struct spa_caller){ .next = all->first, .address = all->accepted };
    all->first = c;
    return c;
}

void spa_caller_free(struct spa_callers *all, struct spa_caller *c)
{
    struct spa_caller **at = &all->first;
    if (!c)
        return;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    all->counts->unfinished += !c->asked;
    free(c);
}

unsigned spa_caller_upgrade(struct spa_callers *all, struct spa_caller *c, uint64_t certificate, const char **why)
{
    const uint64_t who = c->has_key ? name_of(c->key, sizeof c->key) : certificate ? certificate : c->address;
    if (all->max_connections && count(all, true, 0, 0) >= all->max_connections) {
        all->counts->refused_full++;
        *why = "the cloud has as many connections as it takes";
        return 503;
    }
    if (all->max_per_address && count(all, true, c->address, 0) >= all->max_per_address) {
        all->counts->refused_address++;
        *why = "your address has as many connections as it may have";
        return 429;
    }
    if (all->max_per_key && count(all, true, 0, who) >= all->max_per_key) {
        all->counts->refused_per_key++;
        *why = "your key has as many connections as it may have";
        return 429;
    }
    c->who = who;
    c->upgraded = true;
    return 0;
}
