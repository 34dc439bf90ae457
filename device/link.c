/* link.c - the wire to the cloud (link.h). In: bytes from a WebSocket and messages from the session. Out: events in order.
 *
 * libwebsockets runs only inside spa_link_open, _wait and _close, so its callbacks never meet the caller's code: they move
 * bytes between the socket and two queues, and note what went wrong. What came in is fed to the session one event at a
 * time; the library is not called again before it is used up, so the incoming queue stays as small as one read. */
#define _DEFAULT_SOURCE
#include "link.h"
#include "peer.h"
#include "secret.h"
#include "tls.h"

#include <assert.h>
#include <libwebsockets.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONNECT_MS      = 10000,
    CLOSE_MS        = 500,             /* for the last words of a connection */
    EXPLAIN_MS      = 1000,
    KEPT_BYTES      = 256 * 1024,      /* of an empty outgoing queue */
    READ_BYTES      = 64 * 1024,       /* at most so many from the socket at a time */
    QUEUE_BYTES_MAX = 512 * 1024 * 1024,
    PACK_BYTES      = 12 * 1024,       /* of messages that leave in one WebSocket message: it fits a TLS record */
    KEY_MAX         = 4096,
    RETRY_S_MAX     = 86400,           /* that anybody may tell us to wait */
    SILENCE_S       = 900,             /* of a cloud that owes an answer: a queue, and a slow model's longest prompt */
    TRAIN_MS        = 300000,          /* of one that owes features or losses: a long row's prefill, or the fit, on a small machine; much else to do */
    DAY_MS          = 86400000,
    PING_S          = 30,
    PING_S_MAX      = 3600,
};

/* Bytes in order: data[from .. to). Grows by doubling and stays. */
struct queue { uint8_t *data; size_t cap, from, to; };

/* What lies in the outgoing queue before each message: libwebsockets writes its frame head into the gap. */
struct queued { size_t len; uint8_t gap[LWS_PRE]; };

enum phase { CONNECTING, CONNECTED, OPEN, LOST };

struct spa_link {
    struct spa_peer peer;
    struct spa_session session;
    uint8_t *message;                  /* the session's buffer, */
    size_t   message_len;              /* and how much of it has ever held something */
    struct queue in, out;
    struct spa_link_bytes bytes;
    enum phase phase;
    bool reached;                      /* TCP came about */
    bool closing;
    atomic_bool woken;                 /* by another thread */
    uint64_t silence_ms, spoken_ms;    /* how long nobody may say anything while an answer is owed; when somebody last did */
    const char *api_key;
    const char *plugin_base;
    struct lws_context *context;
    struct lws *wsi;
    struct spa_tls tls;
    lws_sorted_usec_list_t alarm;      /* ends a wait for the socket */
    lws_retry_bo_t liveness;
    /* why it failed, as far as the callbacks saw */
    unsigned http_status;
    long cert_error;                   /* X509_V_ERR_... */
    uint32_t retry_s;                  /* as the cloud says; 0: it does not */
    bool no_protocol;                  /* upgraded, but not to spa */
    char library_says[128];
    unsigned close_code;
    bool refused;                      /* as SPA_LINK_REFUSED */
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- queues ---- */

/* Room for len bytes at the end, or NULL. */
static uint8_t *queue_room(struct queue *q, size_t len)
{
    if (q->from == q->to)
        q->from = q->to = 0;
    if (q->cap - q->to < len && q->from > 0) {
        memmove(q->data, q->data + q->from, q->to - q->from);
        q->to -= q->from;
        q->from = 0;
    }
    if (q->cap - q->to < len) {
        if (len > QUEUE_BYTES_MAX - q->to)
            return NULL;
        size_t cap = q->cap ? q->cap : READ_BYTES;
        while (cap - q->to < len)
            cap *= 2;
        uint8_t *data = spa_secret_grow(q->data, q->cap, cap);
        if (!data)
            return NULL;
        q->data = data;
        q->cap = cap;
    }
    return q->data + q->to;
}

/* Of a message, with what lies before it. Rounded up, so that the next struct queued is aligned as well. */
static size_t queued_bytes(size_t len)
{
    return (sizeof(struct queued) + len + sizeof(size_t) - 1) / sizeof(size_t) * sizeof(size_t);
}

/* The session's sink. */
static enum spa_err send_message(void *user, const uint8_t *head, size_t len, const uint8_t *bulk, size_t bulk_len)
{
    struct spa_link *l = user;
    if (l->phase == LOST)
        return SPA_ERR_CLOSED;
    struct queued q = { .len = len + bulk_len };
    size_t whole = queued_bytes(q.len);
    uint8_t *at = queue_room(&l->out, whole);
    if (!at)
        return SPA_ERR_CLOSED;
    memcpy(at, &q, sizeof q);
    memcpy(at + sizeof q, head, len);
    if (bulk_len)
        memcpy(at + sizeof q + len, bulk, bulk_len);
    l->out.to += whole;
    l->bytes.up += q.len;
    l->spoken_ms = now_ms();
    if (l->wsi && l->phase == OPEN)
        lws_callback_on_writable(l->wsi);
    return SPA_OK;
}

/* Moves messages that wait behind the first one up to it, as many as go with it. Returns the queue's bytes that they took. */
static size_t pack_queued(const struct spa_link *l, uint8_t *first, size_t *len)
{
    size_t whole = queued_bytes(*len), left = l->out.to - l->out.from;
    while (whole < left && !l->session.pads) {
        struct queued next;
        memcpy(&next, first + whole, sizeof next);
        if (*len + next.len > PACK_BYTES)
            break;
        memmove(first + sizeof next + *len, first + whole + sizeof next, next.len);
        *len += next.len;
        whole += queued_bytes(next.len);
    }
    return whole;
}

static int write_queued(struct spa_link *l, struct lws *wsi)
{
    while (l->out.from < l->out.to) {
        struct queued q;
        uint8_t *at = l->out.data + l->out.from;
        memcpy(&q, at, sizeof q);
        const size_t whole = pack_queued(l, at, &q.len);
        if (lws_write(wsi, at + sizeof q, q.len, LWS_WRITE_BINARY) < 0)
            return -1;
        l->out.from += whole;
        /* A message that the socket took only in part is the library's to finish before the next one. */
        if (lws_partial_buffered(wsi) || lws_send_pipe_choked(wsi))
            break;
    }
    if (l->out.from < l->out.to) {
        lws_callback_on_writable(wsi);
        return 0;
    }
    if (l->out.cap > KEPT_BYTES) {   /* a basis went: nothing that is said per token is so large */
        spa_secret_free(l->out.data, l->out.cap);
        l->out = (struct queue){ 0 };
    }
    if (l->closing) {
        lws_close_reason(wsi, LWS_CLOSE_STATUS_NORMAL, NULL, 0);
        return -1;
    }
    return 0;
}

/* ---- callbacks ---- */

static void note_failure(struct spa_link *l, struct lws *wsi, const char *text, size_t len)
{
    snprintf(l->library_says, sizeof l->library_says, "%.*s", text ? (int)(len < 100 ? len : 100) : 0, text ? text : "");
    if (l->phase == CONNECTED) {
        char retry[16] = "";
        l->http_status = lws_http_client_http_response(wsi);
        if (lws_hdr_copy(wsi, retry, sizeof retry, WSI_TOKEN_HTTP_RETRY_AFTER) > 0 && retry[strspn(retry, "0123456789")] == '\0') {
            const unsigned long s = strtoul(retry, NULL, 10);
            l->retry_s = s < RETRY_S_MAX ? (uint32_t)s : RETRY_S_MAX;
        }
    }
    l->phase = LOST;
    l->wsi = NULL;
}

static int on_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    (void)user;
    struct spa_link *l = lws_context_user(lws_get_context(wsi));
    switch (reason) {
    case LWS_CALLBACK_OPENSSL_PERFORM_SERVER_CERT_VERIFICATION:
        /* user is the X509_STORE_CTX, len OpenSSL's verdict; the handshake ends by that verdict, here it is only noted. */
        if (!len && !l->cert_error)
            l->cert_error = X509_STORE_CTX_get_error(user);
        break;
    case LWS_CALLBACK_WSI_CREATE:
        l->phase = CONNECTED;
        l->reached = true;
        break;
    case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER:
        if (l->api_key) {
            char value[KEY_MAX + 8];
            int n = snprintf(value, sizeof value, "Bearer %s", l->api_key);
            unsigned char **p = in, *end = *p + len;
            const int failed = lws_add_http_header_by_token(wsi, WSI_TOKEN_HTTP_AUTHORIZATION, (unsigned char *)value, n, p, end);
            explicit_bzero(value, sizeof value);
            if (failed)
                return -1;
        }
        break;
    case LWS_CALLBACK_CLIENT_FILTER_PRE_ESTABLISH:
        /* The library takes a missing sub-protocol for ours. */
        if (lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) == 0) {
            l->no_protocol = true;
            return -1;
        }
        break;
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        l->phase = OPEN;
        l->wsi = wsi;
        break;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        note_failure(l, wsi, in, len);
        break;
    case LWS_CALLBACK_CLIENT_RECEIVE: {
        uint8_t *at = queue_room(&l->in, len);
        if (!at)
            return -1;
        memcpy(at, in, len);
        l->in.to += len;
        l->bytes.down += len;
        l->spoken_ms = now_ms();
        break;
    }
    case LWS_CALLBACK_CLIENT_WRITEABLE:
        return write_queued(l, wsi);
    case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
        if (len >= 2)
            l->close_code = (unsigned)((uint8_t *)in)[0] << 8 | ((uint8_t *)in)[1];
        break;
    case LWS_CALLBACK_WSI_DESTROY:   /* all that there is when the upgrade request itself cannot be written */
        if (l->phase == CONNECTED)
            l->phase = LOST;
        break;
    case LWS_CALLBACK_CLIENT_CLOSED:
        l->phase = LOST;
        l->wsi = NULL;
        break;
    default:
        break;
    }
    return 0;
}

static const struct lws_protocols protocols[] = {
    { .name = "spa", .callback = on_event, .rx_buffer_size = READ_BYTES, .tx_packet_size = READ_BYTES },
    { 0 },
};

static void on_alarm(lws_sorted_usec_list_t *alarm)
{
    (void)alarm;   /* that the wait has ended is all */
}

/* Lets the library work until something happens, at most until `until` (now_ms' clock; UINT64_MAX: no limit). */
static void serve_socket(struct spa_link *l, uint64_t until)
{
    uint64_t now = now_ms();
    if (until == UINT64_MAX)
        lws_sul_cancel(&l->alarm);
    else   /* the library waits in whole milliseconds, cut off: one more, or it would spin through the last one */
        lws_sul_schedule(l->context, 0, &l->alarm, on_alarm, (lws_usec_t)(until > now ? until - now + 1 : 1) * LWS_US_PER_MS);
    lws_service(l->context, until <= now ? -1 : 0);
}

/* ---- connecting ---- */

static int start_connection(struct spa_link *l, uint32_t connect_ms, uint32_t ping_s)
{
    const uint32_t ping = ping_s == 0 ? PING_S : ping_s < PING_S_MAX ? ping_s : PING_S_MAX;
    l->liveness = (lws_retry_bo_t){ .secs_since_valid_ping = (uint16_t)ping, .secs_since_valid_hangup = (uint16_t)(ping + (2 * ping + 2) / 3) };
    lws_set_log_level(0, NULL);
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN, .protocols = protocols, .user = l, .gid = (gid_t)-1, .uid = (uid_t)-1,
        .options = l->tls.ctx ? LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT : 0, .provided_client_ssl_ctx = l->tls.ctx,
        .pt_serv_buf_size = READ_BYTES,
        .timeout_secs = (connect_ms + 1999) / 2000,   /* for one address: half the time, so that a second one gets its turn */
        .connect_timeout_secs = connect_ms / 1000 + 1,
        .http_proxy_address = "",                     /* what http_proxy= in the environment names is for other programs */
        .retry_and_idle_policy = &l->liveness,
    };
    l->context = lws_create_context(&info);
    if (!l->context)
        return -1;
    struct lws_client_connect_info to = {
        .context = l->context, .address = l->peer.host, .port = l->peer.port, .path = l->peer.path,
        .host = l->peer.host_header, .origin = NULL, .protocol = "spa", .local_protocol_name = "spa", .alpn = "http/1.1",
        .ssl_connection = (l->peer.tls ? LCCSCF_USE_SSL : 0) | LCCSCF_HTTP_NO_FOLLOW_REDIRECT,
        .retry_and_idle_policy = &l->liveness,
    };
    /* NULL: it failed at once, and then no callback says so. */
    if (!lws_client_connect_via_info(&to))
        l->phase = LOST;
    return 0;
}

/* What a proxy says while the cloud behind it is gone, or the cloud while it is full or going down, and an upgrade that was cut: all else is
 * the last word. */
static bool passes(unsigned http_status)
{
    return http_status == 0 || http_status == 101 || http_status == 429 || (http_status >= 500 && http_status != 501 && http_status != 505);
}

/* The connection ended before the upgrade was done. */
static void explain_no_connection(struct spa_link *l, char *why, size_t why_len)
{
    const char *peer = l->peer.shown;
    l->refused = l->cert_error || l->no_protocol || spa_tls_refused(&l->tls) || !passes(l->http_status);
    if (l->cert_error)
        spa_tls_explain(l->cert_error, peer, l->peer.host, why, why_len);
    else if (!l->reached)
        spa_peer_explain_unreachable(&l->peer, EXPLAIN_MS, why, why_len);
    else if (l->http_status == 401 || l->http_status == 403)
        snprintf(why, why_len, l->api_key ? "%s does not accept the API key" :
                 "%s wants an API key: give one with --api-key-file or in SPA_API_KEY", peer);
    else if ((l->http_status == 503 || l->http_status == 429) && l->retry_s)
        snprintf(why, why_len, "%s takes no more connections%s now; try again in %u s", peer, l->http_status == 429 ? " of yours" : "", l->retry_s);
    else if (l->http_status == 503 || l->http_status == 429)
        snprintf(why, why_len, "%s takes no more connections now; try again later", peer);
    else if (spa_tls_refused(&l->tls))
        snprintf(why, why_len, l->tls.shows_cert ? "%s does not accept the certificate that is shown (--cert-file)" :
                 "%s wants a certificate of its clients: give yours with --cert-file and --key-file", peer);
    else if (l->http_status && l->http_status != 101)
        snprintf(why, why_len, "%s answers, but is no spa-cloud (HTTP status %u for %s)", peer, l->http_status, l->peer.path);
    else if (l->http_status == 101 || l->no_protocol)
        snprintf(why, why_len, "%s speaks WebSocket, but not spa; check the address", peer);
    else if (strstr(l->library_says, "imed out"))
        snprintf(why, why_len, "%s takes connections but says nothing (time ran out)", peer);
    else if (l->peer.tls && strstr(l->library_says, "connect S"))   /* of SSL_connect */
        snprintf(why, why_len, "%s does not speak TLS as expected; if it serves without TLS, write ws:// for wss://", peer);
    else
        snprintf(why, why_len, "%s hung up instead of answering as a spa-cloud%s", peer,
                 !l->peer.tls ? "; if it serves TLS, write wss:// for ws://" : l->tls.shows_cert ? "; does it accept the certificate that is shown?" :
                 "; if it wants a certificate of its clients, give yours with --cert-file and --key-file");
}

static int await_upgrade(struct spa_link *l, uint64_t deadline, char *why, size_t why_len)
{
    while (l->phase != OPEN && l->phase != LOST && !spa_tls_refused(&l->tls)) {   /* of an alert the library may say nothing */
        if (now_ms() >= deadline) {
            snprintf(why, why_len, l->reached ? "%s takes connections but says nothing (time ran out)" :
                     "%s does not answer (time ran out); check the address and any firewall between", l->peer.shown);
            return -1;
        }
        serve_socket(l, deadline);
    }
    if (l->phase == OPEN)
        return 0;
    explain_no_connection(l, why, why_len);
    return -1;
}

/* ---- waiting ---- */

static bool busy(const struct spa_session *s)
{
    bool any = s->learn_open > 0 || s->losses_open > 0;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        any |= s->requests[i].id != 0;
    return any;
}

/* A cloud that gives a key so many tokens a minute says nothing while rows and losses wait for them; pings tell that it lives. */
static uint64_t silence_ms(const struct spa_link *l)
{
    const struct spa_session *s = &l->session;
    return s->welcome.tokens_per_minute && (s->learn_open || s->losses_open) ? DAY_MS : l->silence_ms;
}

int spa_link_patience_ms(const struct spa_link *l)
{
    if (l->session.welcome.tokens_per_minute)
        return DAY_MS;
    return l->silence_ms < TRAIN_MS ? (int)l->silence_ms : TRAIN_MS;
}

static void explain_loss(const struct spa_link *l, char *why, size_t why_len)
{
    const char *when = busy(&l->session) ? " in the middle of an answer" : "";
    if (l->close_code == LWS_CLOSE_STATUS_GOINGAWAY)
        snprintf(why, why_len, "%s is shutting down and closed the connection%s", l->peer.shown, when);
    else if (l->close_code == LWS_CLOSE_STATUS_UNEXPECTED_CONDITION)
        snprintf(why, why_len, "%s cannot go on and closed the connection%s; ask another cloud, or try again later", l->peer.shown, when);
    else
        snprintf(why, why_len, "%s closed the connection%s; is spa-cloud still running there?", l->peer.shown, when);
}

static void explain_session(const struct spa_link *l, enum spa_err e, char *why, size_t why_len)
{
    const char *peer = l->peer.shown;
    /* Of a WELCOME that was refused; the session keeps only those that it takes. */
    const struct spa_message *m = &l->session.msg;
    const char *model = m->type == SPA_MSG_WELCOME ? m->head.welcome.model : "";
    switch (e) {
    case SPA_ERR_SHAPE:
        if (!model[0])
            snprintf(why, why_len, "%s sent states that do not fit the plugin (%s)", peer, spa_err_name(e));
        else if (l->plugin_base)
            snprintf(why, why_len, "the plugin is for the model '%s', but %s serves '%s'", l->plugin_base, peer, model);
        else
            snprintf(why, why_len, "the plugin is for another model: %s serves '%s', whose width and layers differ", peer, model);
        break;
    case SPA_ERR_VERSION:
        snprintf(why, why_len, "%s speaks another version of the protocol; upgrade the older of the two", peer);
        break;
    case SPA_ERR_TIMEOUT:
        snprintf(why, why_len, "%s takes connections but does not greet (time ran out)", peer);
        break;
    case SPA_ERR_CLOSED:
        explain_loss(l, why, why_len);
        break;
    default:
        snprintf(why, why_len, "%s sent something that is no spa message here (%s); is it a spa-cloud of this version?", peer,
                 spa_err_name(e));
    }
}

/* An ERROR that ends the connection, in the cloud's words. */
static void explain_goodbye(const struct spa_link *l, const struct spa_message *m, char *why, size_t why_len)
{
    int len = (int)(m->bulk_len < 400 ? m->bulk_len : 400);
    if (m->head.error.code == spa_Code_WRONG_MODEL || m->head.error.code == spa_Code_BAD_SHAPE)
        snprintf(why, why_len, "%s refuses the plugin%s%s%s: %.*s", l->peer.shown, l->plugin_base ? " (made for '" : "",
                 l->plugin_base ? l->plugin_base : "", l->plugin_base ? "')" : "", len, (const char *)m->bulk);
    else
        snprintf(why, why_len, "%s ends the connection: %.*s", l->peer.shown, len, (const char *)m->bulk);
}

int spa_link_wait(struct spa_link *l, int timeout_ms, struct spa_session_event *ev, char *why, size_t why_len)
{
    uint64_t start = now_ms(), until = timeout_ms < 0 ? UINT64_MAX : start + (uint64_t)timeout_ms;
    for (bool last = false;; last = now_ms() >= until) {
        size_t used = 0;
        enum spa_err e = spa_session_feed(&l->session, l->in.data ? l->in.data + l->in.from : NULL, l->in.to - l->in.from,
                                          &used, now_ms(), ev);
        l->in.from += used;
        l->message_len = l->session.reader.len > l->message_len ? l->session.reader.len : l->message_len;
        if (e == SPA_OK) {
            if (ev->type == SPA_MSG_ERROR && ev->request == 0 && !ev->msg->head.error.is_row && !ev->msg->head.error.is_loss) {
                const spa_Code code = ev->msg->head.error.code;
                explain_goodbye(l, ev->msg, why, why_len);
                return code == spa_Code_BUSY || code == spa_Code_DRAINING || code == spa_Code_INTERNAL ? -1 : SPA_LINK_REFUSED;
            }
            return 1;
        }
        if (e != SPA_NONE) {
            explain_session(l, e, why, why_len);
            return e == SPA_ERR_CLOSED || e == SPA_ERR_TIMEOUT ? -1 : SPA_LINK_REFUSED;
        }
        if (l->phase == LOST) {
            explain_loss(l, why, why_len);
            return -1;
        }
        if (busy(&l->session) && now_ms() >= l->spoken_ms + silence_ms(l)) {
            snprintf(why, why_len, "%s lives, but has said nothing for %llu s in the middle of an answer; is it overloaded?", l->peer.shown,
                     (unsigned long long)silence_ms(l) / 1000);
            return -1;
        }
        if (last || atomic_exchange(&l->woken, false))
            return 0;
        uint64_t deadline = spa_session_deadline_ms(&l->session);
        if (busy(&l->session) && l->spoken_ms + silence_ms(l) < deadline)
            deadline = l->spoken_ms + silence_ms(l);
        serve_socket(l, deadline < until ? deadline : until);
    }
}

/* ---- opening and closing ---- */

static int greet(struct spa_link *l, const struct spa_link_config *cfg, uint64_t deadline, char *why, size_t why_len)
{
    uint64_t now = now_ms();
    enum spa_err e = spa_session_hello(&l->session, cfg->client, cfg->plugin, cfg->gate, now,
                                       deadline > now ? deadline - now : 1);
    if (e != SPA_OK) {
        explain_session(l, e, why, why_len);
        return e == SPA_ERR_CLOSED ? -1 : SPA_LINK_REFUSED;
    }
    struct spa_session_event ev;
    int rc = spa_link_wait(l, -1, &ev, why, why_len);
    if (rc < 0)
        return rc;
    assert(ev.type == SPA_MSG_WELCOME);   /* the session lets nothing else through before READY */
    if (!l->session.welcome.need_basis)
        return 0;
    if (!cfg->basis) {
        snprintf(why, why_len, "%s does not have the plugin's basis, and the plugin file does not hold it", l->peer.shown);
        return SPA_LINK_REFUSED;
    }
    e = spa_session_send_basis(&l->session, cfg->plugin->basis_hash.bytes, cfg->basis, cfg->basis_len);
    if (e != SPA_OK) {
        explain_session(l, e, why, why_len);
        return e == SPA_ERR_CLOSED ? -1 : SPA_LINK_REFUSED;
    }
    return 0;
}

int spa_link_open(struct spa_link **out, const struct spa_link_config *cfg, char *why, size_t why_len)
{
    assert(cfg->max_message >= SPA_MESSAGE_MIN && cfg->max_message <= SPA_MESSAGE_MAX);
    *out = NULL;
    struct spa_link *l = calloc(1, sizeof *l);
    if (!l || !(l->message = malloc(cfg->max_message))) {
        free(l);
        snprintf(why, why_len, "there is not enough memory for a connection");
        return SPA_LINK_REFUSED;
    }
    int rc = SPA_LINK_REFUSED;
    if (cfg->retry_ms)
        *cfg->retry_ms = 0;
    uint32_t connect_ms = cfg->connect_ms ? cfg->connect_ms : CONNECT_MS;
    uint64_t deadline = now_ms() + connect_ms;
    l->api_key = cfg->api_key;
    l->plugin_base = cfg->plugin_base;
    l->silence_ms = (cfg->silence_s ? cfg->silence_s : SILENCE_S) * (uint64_t)1000;
    spa_session_init(&l->session, (struct spa_sink){ l, send_message }, l->message, cfg->max_message);
    if (spa_peer_parse(cfg->url, &l->peer, why, why_len) != 0)
        goto fail;
    if (l->peer.tls && spa_tls_open(&l->tls, l->peer.host, cfg->ca_file, cfg->cert_file, cfg->key_file, why, why_len) != 0)
        goto fail;
    if (cfg->api_key && strlen(cfg->api_key) > KEY_MAX) {
        snprintf(why, why_len, "the API key is longer than %d bytes", KEY_MAX);
        goto fail;
    }
    if (start_connection(l, connect_ms, cfg->ping_s) != 0) {
        snprintf(why, why_len, "there is not enough memory for a connection");
        goto fail;
    }
    if (await_upgrade(l, deadline, why, why_len) != 0) {
        rc = l->refused ? SPA_LINK_REFUSED : -1;
        if (cfg->retry_ms)
            *cfg->retry_ms = l->retry_s * 1000;
        goto fail;
    }
    rc = greet(l, cfg, deadline, why, why_len);
    if (rc == -1 && cfg->retry_ms && l->session.msg.type == SPA_MSG_ERROR)
        *cfg->retry_ms = l->session.msg.head.error.retry_ms;
    if (rc != 0)
        goto fail;
    l->api_key = NULL;   /* the caller's; not needed any more */
    *out = l;
    return 0;
fail:
    spa_link_close(l);
    return rc;
}

void spa_link_close(struct spa_link *l)
{
    if (!l)
        return;
    if (l->phase == OPEN) {
        l->closing = true;
        lws_callback_on_writable(l->wsi);
        uint64_t until = now_ms() + CLOSE_MS;
        while (l->phase == OPEN && now_ms() < until)
            serve_socket(l, until);
    }
    if (l->context) {
        lws_sul_cancel(&l->alarm);
        lws_context_destroy(l->context);
    }
    SSL_CTX_free(l->tls.ctx);
    spa_secret_free(l->message, l->message_len);
    spa_secret_free(l->in.data, l->in.cap);
    spa_secret_free(l->out.data, l->out.cap);
    free(l);
}

void spa_link_wake(struct spa_link *l)
{
    atomic_store(&l->woken, true);
    lws_cancel_service(l->context);
}

struct spa_session *spa_link_session(struct spa_link *l)
{
    return &l->session;
}

struct spa_link_bytes spa_link_bytes(const struct spa_link *l)
{
    return l->bytes;
}
