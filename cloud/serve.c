/* serve.c - in: sockets. out: letters for the decode thread, and its messages on the wire.
 *
 * libwebsockets 4.1 is fenced in: any upgrade other than to our WebSocket is answered with an error (its HTTP/2 code is kept
 * out), there are no extensions, TLS is 1.2 or newer, and only this file and device/link.c know it. */
#include "serve.h"
#include "callers.h"
#include "keys.h"
#include "listen.h"

#include <jansson.h>
#include <libwebsockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    RX_CHUNK = 8192,
    UNREAD_MAX = 1 << 20,
    CLOCK_ROUGH_MS = 200,      /* between the kernel's clock and the library's */
    WRITES_PER_CALL = 16,
    END_S = 30,                /* for what is queued when a connection is to end */
    HANDSHAKE_S = 10,
    PING_S = 15,               /* and half of it: a dead connection makes way within the 30 s for which its device tries again */
    RETRY_S = 5,               /* what is told to those for whom there is no connection */
    JSON_MAX = 1024,
    STALL_MS = 300000,
};

/* One socket; libwebsockets keeps it. The list is the socket thread's own. */
struct socket {
    struct socket *next;
    struct spa_caller *caller;
    struct lws *wsi;
    struct spa_conn *conn;
    bool paused, ends;         /* ends: what is queued may still leave, for END_S */
    uint8_t *body;             /* of an HTTP answer on its way, behind LWS_PRE bytes */
    size_t body_len;
};

struct spa_serve {
    struct spa_serve_config cfg;
    pthread_mutex_t keys_lock;
    struct spa_keys keys;      /* under the lock, and what came of reloads */
    uint64_t reloads[2];
    atomic_bool keys_changed;
    struct spa_mail *mail;
    struct lws_context *context;
    struct lws_protocols protocols[3];
    lws_retry_bo_t idle;
    struct socket *sockets;
    struct spa_callers callers;
    pthread_t thread;
    bool running;
    int port;
    char address[64];          /* numeric, what is bound to */
    atomic_bool draining, stop;
    const char *_Atomic failed;  /* why the model cannot go on; NULL: it can */
    char models[JSON_MAX];
    struct spa_metrics_sockets counts;   /* what the mail does not count; the socket thread's own */
};

static struct spa_serve *serve_of(struct lws *wsi)
{
    return lws_context_user(lws_get_context(wsi));
}

/* ---- HTTP ---- */

/* Of an upgrade. retry_s: 0 where there is no sense in trying again. */
static int refuse(struct lws *wsi, unsigned status, unsigned retry_s, const char *sentence)
{
    uint8_t head[LWS_PRE + 1024], *start = head + LWS_PRE, *p = start, *end = head + sizeof head - 1;
    char body[LWS_PRE + 512], *text = body + LWS_PRE, seconds[16];
    const int n = snprintf(text, sizeof body - LWS_PRE, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\"}}", sentence,
                           retry_s ? "unavailable_error" : status == 401 ? "authentication_error" : "invalid_request_error");
    const int seconds_len = snprintf(seconds, sizeof seconds, "%u", retry_s);
    if (lws_add_http_common_headers(wsi, status, "application/json", (lws_filepos_t)n, &p, end) ||
        (retry_s && lws_add_http_header_by_token(wsi, WSI_TOKEN_HTTP_RETRY_AFTER, (const uint8_t *)seconds, seconds_len, &p, end)) ||
        lws_finalize_write_http_header(wsi, start, &p, end) ||
        lws_write(wsi, (uint8_t *)text, (size_t)n, LWS_WRITE_HTTP_FINAL) != n)
        return -1;
    return 1;
}

static int answer(struct lws *wsi, struct socket *so, unsigned status, const char *type, const char *body, size_t len)
{
    uint8_t head[LWS_PRE + 1024], *start = head + LWS_PRE, *p = start, *end = head + sizeof head - 1;
    free(so->body);
    so->body = malloc(LWS_PRE + len);
    if (!so->body)
        return 1;
    memcpy(so->body + LWS_PRE, body, len);
    so->body_len = len;
    if (lws_add_http_common_headers(wsi, status, type, len, &p, end) || lws_finalize_write_http_header(wsi, start, &p, end))
        return 1;
    lws_callback_on_writable(wsi);
    return 0;
}

static int answer_json(struct lws *wsi, struct socket *so, unsigned status, const char *json)
{
    return answer(wsi, so, status, "application/json", json, strlen(json));
}

/* Does the request show a key of ours? Which one: hash stays as it is when none are set. */
static bool has_key(struct lws *wsi, uint8_t hash[SPA_KEY_HASH])
{
    char key[600] = "";
    struct spa_serve *s = serve_of(wsi);
    const int n = lws_hdr_copy(wsi, key, sizeof key, WSI_TOKEN_HTTP_AUTHORIZATION);
    pthread_mutex_lock(&s->keys_lock);
    const bool allowed = spa_keys_find(&s->keys, key, n > 0 ? (size_t)n : 0, hash);
    pthread_mutex_unlock(&s->keys_lock);
    OPENSSL_cleanse(key, sizeof key);
    return allowed;
}

static int on_health(struct lws *wsi, struct socket *so)
{
    struct spa_serve *s = serve_of(wsi);
    const char *failed = atomic_load(&s->failed), *why = failed ? failed : "draining";
    if (!failed && !atomic_load(&s->draining))
        switch (spa_mail_decoder(s->mail, s->cfg.stall_ms ? s->cfg.stall_ms : STALL_MS)) {
        case SPA_DECODER_RUNS:    return answer_json(wsi, so, 200, "{\"status\":\"ok\"}");
        case SPA_DECODER_OFF:     why = "the decode thread does not run"; break;
        case SPA_DECODER_STALLED: why = "the decode thread stands still"; break;
        }
    char json[JSON_MAX];
    snprintf(json, sizeof json, "{\"error\":{\"message\":\"%s\",\"type\":\"unavailable_error\"}}", why);
    return answer_json(wsi, so, 503, json);
}

static int on_metrics(struct lws *wsi, struct socket *so)
{
    struct spa_serve *s = serve_of(wsi);
    const struct spa_metrics_fixed fixed = { .version = s->cfg.version ? s->cfg.version : "", .model = s->cfg.model_name,
                                             .started_unix_s = s->cfg.started_unix_s, .check_width = s->cfg.check_width };
    struct spa_metrics shown;
    struct spa_metrics_sockets counts = s->counts;
    size_t len = 0;
    uint8_t hash[SPA_KEY_HASH];
    if (!has_key(wsi, hash))
        return answer_json(wsi, so, 401, "{\"error\":{\"message\":\"a key of this cloud is needed: Authorization: Bearer KEY\",\"type\":\"authentication_error\"}}");
    spa_mail_look(s->mail, &shown, &counts);
    pthread_mutex_lock(&s->keys_lock);
    memcpy(counts.key_reloads, s->reloads, sizeof counts.key_reloads);
    pthread_mutex_unlock(&s->keys_lock);
    char *text = spa_metrics_text(&shown, &counts, &fixed, &len);
    const int rc = text ? answer(wsi, so, 200, "text/plain; version=0.0.4; charset=utf-8", text, len) : 1;
    free(text);
    return rc;
}

static int on_http(struct lws *wsi, struct socket *so, const char *path)
{
    const struct spa_serve *s = serve_of(wsi);
    if (lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) == 0)
        return answer_json(wsi, so, 405, "{\"error\":{\"message\":\"only GET is served here\",\"type\":\"invalid_request_error\"}}");
    if (strcmp(path, "/health") == 0 || strcmp(path, "/v1/health") == 0)
        return on_health(wsi, so);
    if (strcmp(path, "/metrics") == 0)
        return on_metrics(wsi, so);
    if (strcmp(path, "/v1/models") == 0 || strcmp(path, "/models") == 0)
        return answer_json(wsi, so, 200, s->models);
    return answer_json(wsi, so, 404, "{\"error\":{\"message\":\"nothing is served at this path; devices connect to /v1/spa\",\"type\":\"not_found_error\"}}");
}

static int on_body(struct lws *wsi, struct socket *so)
{
    if (!so->body)
        return 0;
    const bool ok = lws_write(wsi, so->body + LWS_PRE, so->body_len, LWS_WRITE_HTTP_FINAL) == (int)so->body_len;
    free(so->body);
    so->body = NULL;
    if (!ok)
        return 1;
    return lws_http_transaction_completed(wsi) ? -1 : 0;
}

/* Every upgrade passes here before anything else is done with it. 0: go on. */
static int on_upgrade(struct lws *wsi, const char *to)
{
    struct spa_serve *s = serve_of(wsi);
    struct spa_caller *c = lws_get_opaque_user_data(wsi);
    char path[64] = "";
    if (!to || strcasecmp(to, "websocket") != 0)
        return refuse(wsi, 400, 0, "the only upgrade here is to a WebSocket");
    if (lws_hdr_copy(wsi, path, sizeof path, WSI_TOKEN_GET_URI) < 0 || strcmp(path, "/v1/spa") != 0)
        return refuse(wsi, 404, 0, "the WebSocket is at /v1/spa");
    if (!c)
        return -1;
    if (!has_key(wsi, c->key)) {
        s->counts.refused_key++;
        if (s->cfg.log)
            s->cfg.log(NULL, SPA_LOG_DEBUG, "a connection is refused: it shows no key, or a wrong one");
        return refuse(wsi, 401, 0, "a key of this cloud is needed: Authorization: Bearer KEY");
    }
    if (atomic_load(&s->failed))
        return refuse(wsi, 503, RETRY_S, "the cloud cannot answer any more");
    if (atomic_load(&s->draining)) {
        s->counts.refused_draining++;
        return refuse(wsi, 503, RETRY_S, "the cloud is shutting down");
    }
    c->has_key = s->cfg.api_key_file != NULL;
    const char *why;
    const unsigned status = spa_caller_upgrade(&s->callers, c, s->cfg.ca_file ? spa_caller_certificate(lws_get_ssl(wsi)) : 0, &why);
    if (status)
        return refuse(wsi, status, RETRY_S, why);
    return 0;
}

static int on_http_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    struct socket *so = user;
    struct spa_serve *s = serve_of(wsi);
    struct spa_caller *c;
    switch (reason) {
    case LWS_CALLBACK_FILTER_NETWORK_CONNECTION:
        return !spa_callers_may_come(&s->callers, (int)(intptr_t)in);
    case LWS_CALLBACK_SERVER_NEW_CLIENT_INSTANTIATED:   /* at WSI_CREATE the library has still to reset what we would note */
        c = spa_caller_new(&s->callers);
        lws_set_opaque_user_data(wsi, c);
        return c ? 0 : -1;
    case LWS_CALLBACK_WSI_DESTROY:
        spa_caller_free(&s->callers, lws_get_opaque_user_data(wsi));
        lws_set_opaque_user_data(wsi, NULL);
        return 0;
    case LWS_CALLBACK_OPENSSL_PERFORM_CLIENT_CERT_VERIFICATION:
        return len ? 0 : 1;   /* OpenSSL's verdict counts: 0 from here would overrule it */
    case LWS_CALLBACK_HTTP:
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
        c = lws_get_opaque_user_data(wsi);
        if (c)
            c->asked = true;
        return reason == LWS_CALLBACK_HTTP ? on_http(wsi, user, in) : on_upgrade(wsi, in);
    case LWS_CALLBACK_CLOSED_HTTP:
        if (so) {
            free(so->body);
            so->body = NULL;
        }
        return 0;
    case LWS_CALLBACK_HTTP_WRITEABLE: return on_body(wsi, user);
    case LWS_CALLBACK_ESTABLISHED:    return -1;   /* a WebSocket without our sub-protocol */
    default:                          return 0;
    }
}

/* ---- WebSocket ---- */

static int on_received(struct spa_serve *s, struct socket *so, const void *in, size_t len)
{
    const size_t waiting = len ? spa_mail_bytes(s->mail, so->conn, in, len) : 0;   /* a frame of nothing says nothing */
    if (waiting == SIZE_MAX)
        return -1;
    if (waiting > s->cfg.max_unread && !so->paused) {
        so->paused = true;
        s->counts.pauses++;
        lws_rx_flow_control(so->wsi, 0);
    }
    return 0;
}

static int on_writeable(struct spa_serve *s, struct socket *so)
{
    bool hang_up = false;
    if (atomic_load(&s->failed)) {
        lws_close_reason(so->wsi, LWS_CLOSE_STATUS_UNEXPECTED_CONDITION, NULL, 0);
        return -1;
    }
    for (int i = 0; i < WRITES_PER_CALL && !lws_send_pipe_choked(so->wsi); i++) {
        struct spa_outgoing *o = spa_mail_next_out(s->mail, so->conn, &hang_up);
        if (!o)
            break;
        const int n = lws_write(so->wsi, o->data, o->len, LWS_WRITE_BINARY);
        const bool ok = n >= (int)o->len;
        spa_outgoing_free(o);
        if (!ok)
            return -1;
        if (hang_up)
            break;
    }
    if (hang_up) {
        lws_close_reason(so->wsi, (enum lws_close_status)spa_mail_close_as(s->mail, so->conn), NULL, 0);
        return -1;
    }
    if (spa_mail_has_out(s->mail, so->conn))
        lws_callback_on_writable(so->wsi);
    return 0;
}

/* Those whose key is no more. Their conversations end, and then their sockets. */
static void drop_denied(struct spa_serve *s)
{
    pthread_mutex_lock(&s->keys_lock);
    for (struct socket *so = s->sockets; so; so = so->next)
        if (so->caller && so->caller->has_key && !spa_keys_has(&s->keys, so->caller->key))
            spa_mail_denied(s->mail, so->conn);
    pthread_mutex_unlock(&s->keys_lock);
}

/* The decode thread has been at work: write what it left, read on where it has caught up. */
static void look_around(struct spa_serve *s)
{
    if (atomic_exchange(&s->keys_changed, false))
        drop_denied(s);
    for (struct socket *so = s->sockets; so; so = so->next) {
        if (spa_mail_has_out(s->mail, so->conn) || atomic_load(&s->failed)) {
            lws_callback_on_writable(so->wsi);
            if (!so->ends && spa_mail_hangs_up(s->mail, so->conn)) {   /* who does not read would hold its socket and queue for ever */
                so->ends = true;
                lws_set_timeout(so->wsi, PENDING_TIMEOUT_CLOSE_SEND, END_S);
            }
        }
        if (so->paused && spa_mail_waiting(s->mail, so->conn) <= s->cfg.max_unread / 2) {
            so->paused = false;
            lws_rx_flow_control(so->wsi, 1);
        }
    }
}

/* Is this the end of a line from which no byte came for as long as it may be silent? The library does not say why it closes one, nor of pongs, which
 * are empty. Who goes by itself has answered the last ping, and that is less long ago. */
static bool was_silent(const struct spa_serve *s, struct lws *wsi)
{
    struct tcp_info tcp;
    socklen_t len = sizeof tcp;
    return getsockopt(lws_get_socket_fd(wsi), IPPROTO_TCP, TCP_INFO, &tcp, &len) == 0 &&
           tcp.tcpi_last_data_recv + CLOCK_ROUGH_MS >= s->idle.secs_since_valid_hangup * 1000u;
}

static void forget(struct spa_serve *s, struct socket *so)
{
    struct socket **at = &s->sockets;
    while (*at && *at != so)
        at = &(*at)->next;
    if (*at)
        *at = so->next;
    if (so->conn)
        spa_mail_gone(s->mail, so->conn);
    so->conn = NULL;
}

static int on_spa_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    struct spa_serve *s = serve_of(wsi);
    struct socket *so = user;
    switch (reason) {
    case LWS_CALLBACK_ESTABLISHED:
        memset(so, 0, sizeof *so);
        so->wsi = wsi;
        so->caller = lws_get_opaque_user_data(wsi);
        so->conn = spa_mail_open(s->mail, so->caller ? so->caller->who : 0);
        if (!so->conn)
            return -1;
        so->next = s->sockets;
        s->sockets = so;
        return 0;
    case LWS_CALLBACK_RECEIVE:
        return on_received(s, so, in, len);
    case LWS_CALLBACK_SERVER_WRITEABLE:
        return on_writeable(s, so);
    case LWS_CALLBACK_CLOSED:
        s->counts.unanswered_pings += was_silent(s, wsi);
        forget(s, so);
        return 0;
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED:
        look_around(s);
        return 0;
    default:
        return 0;
    }
}

/* ---- life ---- */

size_t spa_serve_room(void)
{
    return LWS_PRE;
}

struct spa_serve *spa_serve_new(const struct spa_serve_config *cfg, char *why, size_t why_len)
{
    struct spa_serve *s = calloc(1, sizeof *s);
    if (!s) {
        snprintf(why, why_len, "out of memory");
        return NULL;
    }
    s->cfg = *cfg;
    s->cfg.max_unread = cfg->max_unread ? cfg->max_unread : UNREAD_MAX;
    if (cfg->api_key_file && spa_keys_read(&s->keys, cfg->api_key_file, why, why_len) != 0) {
        free(s);
        return NULL;
    }
    pthread_mutex_init(&s->keys_lock, NULL);
    s->callers = (struct spa_callers){ .max_connections = cfg->max_connections, .max_per_address = cfg->max_per_address, .max_per_key = cfg->max_per_key,
                                       .max_sockets = cfg->max_sockets, .counts = &s->counts };
    json_t *j = json_pack("{s:s, s:[{s:s, s:s, s:I, s:s}]}", "object", "list", "data", "id", cfg->model_name, "object", "model",
                          "created", (json_int_t)cfg->started_unix_s, "owned_by", "spa");
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    snprintf(s->models, sizeof s->models, "%s", text ? text : "{\"object\":\"list\",\"data\":[]}");
    free(text);
    json_decref(j);
    return s;
}

void spa_serve_wake(void *serve)
{
    struct spa_serve *s = serve;
    lws_cancel_service(s->context);
}

static void *run(void *arg)
{
    struct spa_serve *s = arg;
    while (!atomic_load(&s->stop) && lws_service(s->context, 0) >= 0)
        ;
    return NULL;
}

int spa_serve_start(struct spa_serve *s, struct spa_mail *mail, char *why, size_t why_len)
{
    s->mail = mail;
    s->protocols[0] = (struct lws_protocols){ .name = "http", .callback = on_http_event, .per_session_data_size = sizeof(struct socket) };
    s->protocols[1] = (struct lws_protocols){ .name = "spa", .callback = on_spa_event, .per_session_data_size = sizeof(struct socket),
                                              .rx_buffer_size = RX_CHUNK };
    const uint16_t ping = (uint16_t)(s->cfg.ping_s ? s->cfg.ping_s : PING_S);
    s->idle = (lws_retry_bo_t){ .secs_since_valid_ping = ping, .secs_since_valid_hangup = (uint16_t)(ping + (ping + 1) / 2) };
    bool is_v6 = false;
    if (spa_listen_resolve(s->cfg.host, s->address, sizeof s->address, &is_v6) != 0) {
        snprintf(why, why_len, "--host %s: no such address; use one of this machine's, or 127.0.0.1", s->cfg.host);
        return -1;
    }
    struct lws_context_creation_info info = {
        .port = s->cfg.port,
        .iface = s->address,
        .protocols = s->protocols,
        .user = s,
        .timeout_secs = s->cfg.handshake_s ? s->cfg.handshake_s : HANDSHAKE_S,
        .max_http_header_data = (unsigned short)s->cfg.max_head,
        .retry_and_idle_policy = &s->idle,
        .server_string = "spa-cloud",
        .alpn = "http/1.1",
        .gid = (gid_t)-1,
        .uid = (uid_t)-1,
        .options = LWS_SERVER_OPTION_VALIDATE_UTF8 | (is_v6 ? LWS_SERVER_OPTION_IPV6_V6ONLY_MODIFY | LWS_SERVER_OPTION_IPV6_V6ONLY_VALUE
                                                            : LWS_SERVER_OPTION_DISABLE_IPV6),
    };
    if (s->cfg.cert_file) {
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = s->cfg.cert_file;
        info.ssl_private_key_filepath = s->cfg.key_file;
        info.ssl_options_set = SSL_OP_NO_SSLv3 | SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1 | SSL_OP_NO_RENEGOTIATION;
    }
    if (s->cfg.ca_file) {
        info.options |= LWS_SERVER_OPTION_REQUIRE_VALID_OPENSSL_CLIENT_CERT;
        info.ssl_ca_filepath = s->cfg.ca_file;
    }
    lws_set_log_level(0, NULL);
    s->context = lws_create_context(&info);
    struct lws_vhost *vhost = s->context ? lws_get_vhost_by_name(s->context, "default") : NULL;
    s->port = vhost ? lws_get_vhost_listen_port(vhost) : 0;
    if (!vhost || s->port <= 0) {
        snprintf(why, why_len, s->cfg.cert_file ? "cannot listen on %s:%d with certificate %s and key %s; is the port taken, are both files PEM and a pair?"
                                                : "cannot listen on %s:%d; is the port taken, is the address this machine's?",
                 s->cfg.host, s->cfg.port, s->cfg.cert_file, s->cfg.key_file);
        return -1;
    }
    if (pthread_create(&s->thread, NULL, run, s) != 0) {
        snprintf(why, why_len, "cannot start a thread");
        return -1;
    }
    s->running = true;
    return 0;
}

int spa_serve_reload(struct spa_serve *s, char *why, size_t why_len)
{
    struct spa_keys fresh, old;
    const int rc = spa_keys_read(&fresh, s->cfg.api_key_file, why, why_len);
    pthread_mutex_lock(&s->keys_lock);
    s->reloads[rc != 0]++;
    if (rc == 0) {
        old = s->keys;
        s->keys = fresh;
        atomic_store(&s->keys_changed, true);
    }
    pthread_mutex_unlock(&s->keys_lock);
    if (rc == 0) {
        spa_keys_free(&old);
        lws_cancel_service(s->context);
    }
    return rc;
}

size_t spa_serve_keys(struct spa_serve *s, size_t *n_plain)
{
    pthread_mutex_lock(&s->keys_lock);
    const size_t n = s->keys.n;
    *n_plain = s->keys.n_plain;
    pthread_mutex_unlock(&s->keys_lock);
    return n;
}

int spa_serve_port(const struct spa_serve *s)
{
    return s->port;
}

void spa_serve_draining(struct spa_serve *s)
{
    atomic_store(&s->draining, true);
}

void spa_serve_fail(struct spa_serve *s, const char *why)
{
    atomic_store(&s->failed, why);
    lws_cancel_service(s->context);
}

void spa_serve_stop(struct spa_serve *s, uint64_t grace_ms)
{
    if (!s || !s->running)
        return;
    /* The last messages need some turns of the socket thread. It ends by itself when the time is over. */
    const uint64_t until = spa_now_ms() + grace_ms;
    while (spa_now_ms() < until && spa_mail_busy(s->mail)) {
        lws_cancel_service(s->context);
        const struct timespec nap = { 0, 5000000 };
        nanosleep(&nap, NULL);
    }
    atomic_store(&s->stop, true);
    lws_cancel_service(s->context);
    pthread_join(s->thread, NULL);
    s->running = false;
}

void spa_serve_free(struct spa_serve *s)
{
    if (!s)
        return;
    spa_serve_stop(s, 0);
    if (s->context)
        lws_context_destroy(s->context);
    spa_keys_free(&s->keys);
    pthread_mutex_destroy(&s->keys_lock);
    free(s);
}
