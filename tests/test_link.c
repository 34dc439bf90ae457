/* A link that cannot be opened says which of the many reasons it was: against a small server of the test's own, over TCP
 * and over TLS with certificates made here. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "link.h"
#include "peer.h"

static char why[1024];

/* ---- a server that takes one connection, reads a request's head, says `reply` and hangs up ---- */

struct server {
    pthread_t thread;
    int listener;
    unsigned port;
    const char *reply;       /* NULL: silence until the client goes */
    SSL_CTX *tls;            /* NULL: plain TCP */
    char heard[4096];
};

static long server_read(SSL *ssl, int fd, char *to, size_t cap)
{
    return ssl ? SSL_read(ssl, to, (int)cap) : read(fd, to, cap);
}

static void *serve(void *user)
{
    struct server *s = user;
    int fd = accept(s->listener, NULL, NULL);
    SSL *ssl = NULL;
    if (s->tls) {
        ssl = SSL_new(s->tls);
        SSL_set_fd(ssl, fd);
        if (SSL_accept(ssl) != 1)
            goto out;
    }
    for (size_t len = 0; len < sizeof s->heard - 1 && !strstr(s->heard, "\r\n\r\n");) {
        long n = server_read(ssl, fd, s->heard + len, sizeof s->heard - 1 - len);
        if (n <= 0)
            goto out;
        len += (size_t)n;
    }
    if (s->reply) {
        long n = ssl ? SSL_write(ssl, s->reply, (int)strlen(s->reply)) : write(fd, s->reply, strlen(s->reply));
        (void)n;
        if (ssl)
            SSL_shutdown(ssl);
        shutdown(fd, SHUT_WR);
    }
    char rest[256];
    while (server_read(ssl, fd, rest, sizeof rest) > 0)
        ;
out:
    SSL_free(ssl);
    close(fd);
    return NULL;
}

static void start(struct server *s, const char *reply, SSL_CTX *tls)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    *s = (struct server){ .reply = reply, .tls = tls };
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(s->listener, 4), 0);
    assert_int_equal(getsockname(s->listener, (struct sockaddr *)&a, &len), 0);
    s->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(struct server *s)
{
    pthread_join(s->thread, NULL);
    close(s->listener);
    SSL_CTX_free(s->tls);
}

/* ---- opening ---- */

static void expect_refusal(const char *url, const char *key, const char *ca_file, uint32_t connect_ms, const char *piece)
{
    struct spa_link_config cfg = { .url = url, .api_key = key, .ca_file = ca_file, .client = "test",
                                   .max_message = SPA_MESSAGE_MIN, .connect_ms = connect_ms };
    struct spa_link *l = NULL;
    why[0] = 0;
    assert_true(spa_link_open(&l, &cfg, why, sizeof why) < 0);
    assert_null(l);
    if (!strstr(why, piece))
        fail_msg("'%s' does not say '%s'", why, piece);
}

static void expect_refusal_by(const char *reply, const char *key, const char *piece)
{
    struct server s;
    char url[64];
    start(&s, reply, NULL);
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", s.port);
    expect_refusal(url, key, NULL, 0, piece);
    stop(&s);
    assert_non_null(strstr(s.heard, "GET /v1/spa HTTP/1.1\r\n"));
    assert_non_null(strstr(s.heard, "Sec-WebSocket-Protocol: spa\r\n"));
    assert_null(strstr(s.heard, "Sec-WebSocket-Extensions"));
    assert_true((strstr(s.heard, "uthorization: Bearer sesame\r\n") != NULL) == (key != NULL));
}

static void test_link_dead_port_is_refused(void **state)
{
    (void)state;
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);   /* bound, but nobody listens */
    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    char url[64];
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", ntohs(a.sin_port));
    expect_refusal(url, NULL, NULL, 0, "refused the connection");
    snprintf(url, sizeof url, "wss://localhost:%u", ntohs(a.sin_port));
    expect_refusal(url, NULL, NULL, 0, "refused the connection");
    close(fd);
}

static void test_link_unknown_host_is_named(void **state)
{
    (void)state;
    expect_refusal("ws://nobody.invalid:8080", NULL, NULL, 0, "nobody.invalid");
}

static void test_link_silent_server_runs_out_of_time(void **state)
{
    (void)state;
    struct server s;
    struct timespec from, to;
    char url[64];
    start(&s, NULL, NULL);
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", s.port);
    clock_gettime(CLOCK_MONOTONIC, &from);
    expect_refusal(url, NULL, NULL, 300, "says nothing");
    clock_gettime(CLOCK_MONOTONIC, &to);
    stop(&s);
    assert_true((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 < 3000);
}

static void test_link_http_refusals_are_told_apart(void **state)
{
    (void)state;
    expect_refusal_by("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", NULL, "wants an API key");
    expect_refusal_by("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "sesame", "does not accept the API key");
    expect_refusal_by("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", NULL, "HTTP status 404");
    expect_refusal_by("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", NULL, "takes no more connections");
    expect_refusal_by("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", NULL, "HTTP status 301");
    expect_refusal_by("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: x\r\n\r\n", NULL, "but not spa");
    expect_refusal_by("220 mail.example ESMTP\r\n\r\n", NULL, "hung up");
    expect_refusal_by("", NULL, "hung up");
}

/* ---- TLS ---- */

static SSL_CTX *make_server_tls(const char *name, long valid_from_s, long valid_until_s, const char *pem_path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    assert_non_null(key);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), valid_from_s);
    X509_gmtime_adj(X509_getm_notAfter(cert), valid_until_s);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const unsigned char *)"spa test", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_EXTENSION *san = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, name);
    assert_non_null(san);
    X509_add_ext(cert, san, -1);
    X509_EXTENSION_free(san);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    FILE *f = fopen(pem_path, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_X509(f, cert), 1);
    fclose(f);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    assert_int_equal(SSL_CTX_use_certificate(ctx, cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    X509_free(cert);
    EVP_PKEY_free(key);
    return ctx;
}

static const char unauthorized[] = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

static void expect_tls(const char *san, long from_s, long until_s, bool trusted, const char *host, const char *piece)
{
    char pem[64], url[64];
    struct server s;
    snprintf(pem, sizeof pem, "link-%d.pem.tmp", (int)getpid());
    start(&s, unauthorized, make_server_tls(san, from_s, until_s, pem));
    snprintf(url, sizeof url, "wss://%s:%u", host, s.port);
    expect_refusal(url, NULL, trusted ? pem : NULL, 0, piece);
    stop(&s);
    unlink(pem);
}

static void test_link_certificate_faults_are_told_apart(void **state)
{
    (void)state;
    /* A good certificate lets us through to the server's own refusal. */
    expect_tls("DNS:localhost", -100, 3600, true, "localhost", "wants an API key");
    expect_tls("IP:127.0.0.1", -100, 3600, true, "127.0.0.1", "wants an API key");
    expect_tls("DNS:localhost", -100, 3600, false, "localhost", "is not trusted");
    expect_tls("DNS:localhost", -7200, -3600, true, "localhost", "has expired");
    expect_tls("DNS:localhost", 3600, 7200, true, "localhost", "not valid yet");
    expect_tls("DNS:other.example", -100, 3600, true, "localhost", "for another name than 'localhost'");
    expect_tls("DNS:localhost", -100, 3600, true, "127.0.0.1", "for another name than '127.0.0.1'");
}

static void test_link_tls_to_a_plain_server_and_back_are_named(void **state)
{
    (void)state;
    char pem[64], url[64];
    struct server s;
    start(&s, "HTTP/1.1 400 Bad Request\r\n\r\n", NULL);
    snprintf(url, sizeof url, "wss://127.0.0.1:%u", s.port);
    /* The plain server waits for the end of a request's head, which a ClientHello does not hold: it hangs up in the end. */
    expect_refusal(url, NULL, NULL, 300, "says nothing");
    stop(&s);
    snprintf(pem, sizeof pem, "link-%d.pem.tmp", (int)getpid());
    start(&s, unauthorized, make_server_tls("DNS:localhost", -100, 3600, pem));
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", s.port);
    expect_refusal(url, NULL, NULL, 0, "wss:// for ws://");
    stop(&s);
    unlink(pem);
}

static void test_link_unusable_authority_file_is_named(void **state)
{
    (void)state;
    expect_refusal("wss://127.0.0.1:1", NULL, "no-such.pem", 0, "no-such.pem");
    expect_refusal("wss://127.0.0.1:1", NULL, SPA_TEST_DIR "/test_link.c", 0, "no PEM certificate");
}

/* ---- addresses ---- */

static void test_peer_takes_addresses_apart(void **state)
{
    (void)state;
    struct spa_peer p;
    assert_int_equal(spa_peer_parse("ws://localhost:8080", &p, why, sizeof why), 0);
    assert_false(p.tls);
    assert_string_equal(p.host, "localhost");
    assert_int_equal(p.port, 8080);
    assert_string_equal(p.path, "/v1/spa");
    assert_int_equal(spa_peer_parse("WSS://[::1]/a/b?c=d", &p, why, sizeof why), 0);
    assert_true(p.tls);
    assert_string_equal(p.host, "::1");
    assert_int_equal(p.port, 443);
    assert_string_equal(p.path, "/a/b?c=d");
    assert_string_equal(p.shown, "wss://[::1]:443");
    assert_string_equal(p.host_header, "[::1]:443");
}

static void test_peer_refuses_what_is_no_address(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "localhost:8080", "http://localhost", "ws://", "ws://:80", "ws://h:", "ws://h:0",
        "ws://h:65536", "ws://h:8a", "ws://u:p@h", "ws://[::1", "ws://[x]:1", "ws://[::1]x", "ws://h/ x", "ws://h#f", "ws://h?q",
        "ws://h\r\nX: y" };
    struct spa_peer p;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (spa_peer_parse(wrong[i], &p, why, sizeof why) != -1)
            fail_msg("'%s' was taken for an address", wrong[i]);
}

static void test_peer_that_takes_connections_after_all_is_said(void **state)
{
    (void)state;
    struct server s;
    struct spa_peer p;
    char url[64];
    start(&s, "", NULL);
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", s.port);
    assert_int_equal(spa_peer_parse(url, &p, why, sizeof why), 0);
    spa_peer_explain_unreachable(&p, 5000, why, sizeof why);
    assert_non_null(strstr(why, "could not be made this time"));
    stop(&s);
    snprintf(p.host, sizeof p.host, "fe80::1");   /* without a scope: no packet can leave for it */
    spa_peer_explain_unreachable(&p, 100, why, sizeof why);
    assert_true(strstr(why, "cannot connect") || strstr(why, "no route"));
}

/* A server that takes nobody any more: its queue of connections is full, and the kernel drops what asks for another one. */
static void test_peer_that_takes_no_more_connections_runs_out_of_time(void **state)
{
    (void)state;
    enum { WAITING = 8 };
    int waiting[WAITING];
    struct spa_peer p;
    char url[64];
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    for (int i = 0; i < WAITING; i++) {
        waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(waiting[i], (struct sockaddr *)&a, sizeof a);
    }
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", ntohs(a.sin_port));
    assert_int_equal(spa_peer_parse(url, &p, why, sizeof why), 0);
    spa_peer_explain_unreachable(&p, 200, why, sizeof why);
    if (!strstr(why, "does not answer (time ran out)"))
        fail_msg("%s", why);
    for (int i = 0; i < WAITING; i++)
        close(waiting[i]);
    close(fd);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_dead_port_is_refused),
        cmocka_unit_test(test_link_unknown_host_is_named),
        cmocka_unit_test(test_link_silent_server_runs_out_of_time),
        cmocka_unit_test(test_link_http_refusals_are_told_apart),
        cmocka_unit_test(test_link_certificate_faults_are_told_apart),
        cmocka_unit_test(test_link_tls_to_a_plain_server_and_back_are_named),
        cmocka_unit_test(test_link_unusable_authority_file_is_named),
        cmocka_unit_test(test_peer_takes_addresses_apart),
        cmocka_unit_test(test_peer_refuses_what_is_no_address),
        cmocka_unit_test(test_peer_that_takes_connections_after_all_is_said),
        cmocka_unit_test(test_peer_that_takes_no_more_connections_runs_out_of_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
