/* http.c - in: requests of local clients. out: answers, whole or as a stream (http.h).
 *
 * libwebsockets 4.1 is fenced in: no upgrade is taken (its HTTP/2 code is kept out), heads are written here, bodies have a stated
 * length within a limit. Each request has a struct client of its own, which lives until its answer is out or its socket is gone. */
#include "http.h"
#include "api.h"
#include "guard.h"
#include "keys.h"
#include "listen.h"

#include <errno.h>
#include <libwebsockets.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum {
    DISCARD_MAX = 64 << 20,        /* a longer one is read to its end up to here, so that its sender comes to read the error */
    IDLE_S = 60,                   /* between two requests of a connection */
    LINGER_S = 2,                  /* for the sender of a body that is not read: closed at once, it fails before it sees the answer */
    HEAD_MAX = 1024,
    STREAM_PIECE = 16 * 1024,      /* events are put together up to about so much */
};

struct client {
    struct client *next;
    struct spa_http *server;
    struct lws *wsi;
    enum spa_api_kind kind;
    bool reading;                  /* the body is on its way */
    bool head_only, close_after, unread;   /* unread: a body comes that is left lying */
    bool old;                      /* HTTP/1.0: a stream has no chunks and ends with the connection */
    bool streaming;                /* the stream's head is out */
    bool ended;                    /* nothing is added to out any more */
    bool has_key;
    uint8_t key[SPA_KEY_HASH];     /* that it has shown */
    unsigned retry_s;              /* as in api_error.h */
    int status;
    const char *type;
    struct spa_text body, out;
    size_t body_len;               /* that it has announced */
    struct spa_api_error early;    /* the answer once the body is in */
    struct spa_job *job;
    struct spa_reply reply;
};

struct spa_http {
    struct spa_http_config cfg;
    struct spa_models *models;     /* while it runs */
    struct spa_keys keys;
    struct lws_context *context;
    struct lws_protocols protocols[2];
    struct client *clients;
    struct spa_api_counts counts;
    uint32_t n_jobs;
    int64_t started_unix_s;
    int port;
    char address[64];
    volatile sig_atomic_t stops;   /* how often stop was called */
    volatile sig_atomic_t reload;  /* the key file is to be read again */
};

static const char as_json[] = "application/json";
static char had_one;   /* a connection's note once a request of it was answered: what follows, or does not, is its own business */

/* ---- clients ---- */

static struct client *client_new(struct spa_http *h, struct lws *wsi)
{
    struct client *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->server = h;
    c->wsi = wsi;
    c->type = as_json;
    c->next = h->clients;
    h->clients = c;
    lws_set_opaque_user_data(wsi, c);
    return c;
}

static void drop_job(struct client *c, bool answered)
{
    struct spa_http *h = c->server;
    if (!c->job)
        return;
    if (!answered) {
        atomic_store(&c->job->cancelled, true);
        spa_models_rouse(h->models);
    }
    spa_job_let_go(c->job);
    c->job = NULL;
    h->n_jobs--;
}

/* The request is over, well or not. */
static void client_free(struct client *c)
{
    struct spa_http *h = c->server;
    struct client **at = &h->clients;
    drop_job(c, false);
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    h->counts.unfinished += c->reading;
    lws_set_opaque_user_data(c->wsi, &had_one);
    lws_set_timer_usecs(c->wsi, LWS_SET_TIMER_USEC_CANCEL);
    spa_text_free(&c->body);
    spa_text_free(&c->out);
    spa_reply_free(&c->reply);
    free(c);
}

/* The whole answer is in out. */
static int answer(struct client *c, int status)
{
    c->ended = true;
    c->status = status;
    spa_api_count(&c->server->counts, c->kind, status);
    lws_callback_on_writable(c->wsi);
    return 0;
}

static int answer_error(struct client *c, const struct spa_api_error *e)
{
    c->type = as_json;
    c->out.len = 0;
    c->retry_s = e->retry_s;
    spa_reply_error(e, &c->out);
    return answer(c, e->status);
}

static int fail(struct client *c, int status, const char *code, const char *sentence)
{
    struct spa_api_error e;
    spa_api_fail(&e, status, code, NULL, "%s", sentence);
    return answer_error(c, &e);
}

/* ---- writing ---- */

static const char *reason_of(int status)
{
    static const struct { int status; const char *reason; } known[] = {
        { 200, "OK" }, { 400, "Bad Request" }, { 401, "Unauthorized" }, { 403, "Forbidden" }, { 404, "Not Found" }, { 405, "Method Not Allowed" },
        { 411, "Length Required" }, { 413, "Content Too Large" }, { 415, "Unsupported Media Type" },
        { 429, "Too Many Requests" }, { 502, "Bad Gateway" }, { 503, "Service Unavailable" },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].status == status)
            return known[i].reason;
    return "Error";
}

/* The page's scripts and styles are our own files, and it talks to nobody else. */
static const char page_policy[] = "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\nreferrer-policy: no-referrer\r\n";

static void add_head(struct spa_text *t, const struct client *c, bool stream, size_t body_len)
{
    char head[HEAD_MAX], length[64], retry[48] = "";
    if (c->status == 429 || c->status == 503)
        snprintf(retry, sizeof retry, "retry-after: %u\r\n", c->retry_s ? c->retry_s : 1);
    const bool chat = c->kind != SPA_API_OTHER;
    snprintf(length, sizeof length, !stream ? "content-length: %zu\r\n" : c->old ? "" : "transfer-encoding: chunked\r\n", body_len);
    const int n = snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\ncontent-type: %s\r\n%scache-control: no-store\r\nx-content-type-options: nosniff\r\n"
        "cross-origin-resource-policy: same-origin\r\n%s%s%s%s%s\r\n", c->status, reason_of(c->status),
        stream ? "text/event-stream; charset=utf-8" : c->type, length, strncmp(c->type, "text/html", 9) == 0 ? page_policy : "",
        c->status == 401 ? "www-authenticate: Bearer\r\n" : "", c->status == 405 ? (chat ? "allow: POST\r\n" : "allow: GET, HEAD\r\n") : "",
        retry, c->close_after ? "connection: close\r\n" : "");
    spa_text_add(t, head, (size_t)n);
}

/* Writes t, which begins with LWS_PRE bytes that are the library's. -1: the socket is of no use. */
static int write_out(struct client *c, struct spa_text *t, bool last)
{
    const size_t len = t->len - LWS_PRE;
    const int n = t->failed ? -1 : lws_write(c->wsi, (unsigned char *)t->data + LWS_PRE, len, last ? LWS_WRITE_HTTP_FINAL : LWS_WRITE_HTTP);
    spa_text_free(t);
    return n < (int)len ? -1 : 0;
}

/* After the last byte: the connection is kept for the next request where both sides like that. */
static int finish(struct client *c)
{
    struct lws *wsi = c->wsi;
    const bool close_after = c->close_after, unread = c->unread;
    client_free(c);
    if (unread) {
        lws_rx_flow_control(wsi, 0);
        lws_set_timeout(wsi, PENDING_TIMEOUT_USER_REASON_BASE, LINGER_S);
        return 0;
    }
    lws_set_timeout(wsi, PENDING_TIMEOUT_HTTP_KEEPALIVE_IDLE, IDLE_S);
    return lws_http_transaction_completed(wsi) || close_after ? -1 : 0;
}

static int write_whole(struct client *c)
{
    static const char gap[LWS_PRE];
    struct spa_text t = { 0 };
    if (c->out.failed)
        return -1;
    spa_text_add(&t, gap, LWS_PRE);
    add_head(&t, c, false, c->out.len);
    if (!c->head_only)
        spa_text_add(&t, c->out.data ? c->out.data : "", c->out.len);
    return write_out(c, &t, true) != 0 ? -1 : finish(c);
}

static int write_stream(struct client *c)
{
    static const char gap[LWS_PRE];
    struct spa_text t = { 0 };
    char size[32];
    if (c->out.failed)
        return -1;
    spa_text_add(&t, gap, LWS_PRE);
    if (!c->streaming) {
        c->status = 200;
        add_head(&t, c, true, 0);
        c->streaming = true;
    }
    if (c->out.len && !c->old)
        spa_text_add(&t, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", c->out.len));
    spa_text_add(&t, c->out.data, c->out.len);
    if (c->out.len && !c->old)
        spa_text_add(&t, "\r\n", 2);
    if (c->ended && !c->old)
        spa_text_add(&t, "0\r\n\r\n", 5);
    c->out.len = 0;
    if (t.len == LWS_PRE && !t.failed) {   /* an old client's stream has ended, and all of it is out */
        spa_text_free(&t);
        return finish(c);
    }
    if (write_out(c, &t, c->ended) != 0)
        return -1;
    if (c->ended)
        return finish(c);
    lws_set_timer_usecs(c->wsi, (lws_usec_t)c->server->cfg.ping_s * LWS_US_PER_SEC);
    return 0;
}

static void count_tokens(struct spa_http *h, const struct client *c, const struct spa_job_event *ev)
{
    if (ev->type != SPA_JOB_DONE)
        return;
    const struct spa_talk_stats *s = &ev->stats;
    h->counts.prompt_tokens += s->prompt_tokens;
    h->counts.gated += s->gated;
    h->counts.round_trips += s->round_trips;
    h->counts.plugin_tokens += c->reply.plugin_tokens;
    h->counts.base_tokens += s->tokens > c->reply.plugin_tokens ? s->tokens - c->reply.plugin_tokens : 0;
}

/* Takes what the job has brought since the last look, as much as the socket is given at once. */
static void take_events(struct client *c)
{
    struct spa_job_event *ev;
    while (c->job && c->out.len < STREAM_PIECE && (ev = spa_job_next(c->job)) != NULL) {
        const int status = spa_reply_event(&c->reply, ev, &c->out);
        c->retry_s = ev->type == SPA_JOB_FAILED ? ev->error.retry_s : 0;
        count_tokens(c->server, c, ev);
        if (status) {
            c->ended = true;
            c->status = status;
            spa_api_count(&c->server->counts, c->kind, status);
            drop_job(c, true);
        }
        spa_job_event_free(ev);
    }
}

static int on_writeable(struct client *c)
{
    take_events(c);
    const bool stream = c->reply.stream && (c->streaming || (c->status == 0 || c->status == 200));
    if (stream && c->kind != SPA_API_OTHER && (c->out.len || c->ended) && !c->reading) {
        const bool more = !c->ended;
        const int rc = write_stream(c);
        if (rc == 0 && more)
            lws_callback_on_writable(c->wsi);   /* perhaps more has come by now; otherwise nothing happens */
        return rc;
    }
    return c->ended ? write_whole(c) : 0;
}

/* A stream from which nothing came for a while: the client and what stands between learn that we live. */
static int on_silence(struct client *c)
{
    if (!c->reply.stream || !c->job)
        return 0;
    static const char comment[] = ": keep-alive\n\n";
    spa_text_add(&c->out, comment, sizeof comment - 1);
    lws_callback_on_writable(c->wsi);
    return 0;
}

/* ---- a question ---- */

static void draw_id(const struct client *c, struct spa_reply *r)
{
    unsigned char random[12] = { 0 };
    if (getrandom(random, sizeof random, 0) != sizeof random)
        memcpy(random, &c, sizeof c);   /* an id is a name, no secret */
    int n = snprintf(r->id, sizeof r->id, "%s-", c->kind == SPA_API_CHAT ? "chatcmpl" : "cmpl");
    for (size_t i = 0; i < sizeof random; i++)
        n += snprintf(r->id + n, sizeof r->id - (size_t)n, "%02x", random[i]);
}

static int on_question(struct client *c)
{
    struct spa_http *h = c->server;
    struct spa_api_error e;
    struct spa_question q;
    const char *name = NULL;
    if (h->n_jobs >= h->cfg.max_jobs)
        return fail(c, 429, "too_many_requests", "there are too many requests at once; try again in a moment");
    int rc = spa_question_parse(&q, c->kind == SPA_API_CHAT, c->body.data ? c->body.data : "", c->body.len, &e);
    spa_text_free(&c->body);
    if (rc != 0) {
        spa_question_free(&q);
        return answer_error(c, &e);
    }
    switch (spa_models_ask(h->models, &q, spa_http_wake, h, &c->job, &name)) {
    case SPA_MODELS_UNKNOWN:
        spa_api_fail(&e, 404, "model_not_found", "model", "there is no model '%.100s' here; GET /v1/models lists them", q.model);
        rc = answer_error(c, &e);
        break;
    case SPA_MODELS_NO_MEMORY:
        rc = fail(c, 503, NULL, "there is not enough memory for this request");
        break;
    default:
        h->n_jobs++;
        spa_reply_begin(&c->reply, c->job, name, (int64_t)time(NULL));
        draw_id(c, &c->reply);
        lws_set_timeout(c->wsi, NO_PENDING_TIMEOUT, 0);
        if (c->reply.stream)
            lws_set_timer_usecs(c->wsi, (lws_usec_t)h->cfg.ping_s * LWS_US_PER_SEC);
        break;
    }
    spa_question_free(&q);
    return rc;
}

static int on_body_end(struct client *c)
{
    c->reading = false;
    lws_set_timeout(c->wsi, NO_PENDING_TIMEOUT, 0);
    if (c->early.status)
        return answer_error(c, &c->early);
    if (c->body.failed)
        return fail(c, 503, NULL, "there is not enough memory for this request");
    return on_question(c);
}

static int on_body(struct client *c, const char *bytes, size_t len)
{
    if (!c->reading)
        return 0;
    if (!c->early.status)
        spa_text_add(&c->body, bytes, len);
    return 0;
}

/* ---- a request's head ---- */

static bool header(struct lws *wsi, enum lws_token_indexes token, char *out, size_t cap)
{
    out[0] = 0;
    const int n = lws_hdr_total_length(wsi, token);
    return n > 0 && lws_hdr_copy(wsi, out, (int)cap, token) >= 0;
}

/* 0, or the error that the request is to get. */
static int check_head(struct client *c, bool post, bool is_public, struct spa_api_error *e)
{
    const struct spa_http *h = c->server;
    char host[300], origin[320], key[600], type[64];
    if (!header(c->wsi, WSI_TOKEN_HOST, host, sizeof host) || !spa_guard_host(host, h->cfg.names, h->cfg.n_names))
        return spa_api_fail(e, 403, "host_not_allowed", NULL, "the Host of a request has to be an address, localhost or a name given with --allow-host");
    if (lws_hdr_total_length(c->wsi, WSI_TOKEN_ORIGIN) > 0 &&
        (!header(c->wsi, WSI_TOKEN_ORIGIN, origin, sizeof origin) || !spa_guard_origin(origin, host)))
        return spa_api_fail(e, 403, "origin_not_allowed", NULL, "pages of other sites may not ask this server");
    header(c->wsi, WSI_TOKEN_HTTP_AUTHORIZATION, key, sizeof key);
    c->has_key = h->cfg.client_key_file && spa_keys_find(&h->keys, key, strlen(key), c->key);
    const bool allowed = is_public || !h->cfg.client_key_file || c->has_key;
    explicit_bzero(key, sizeof key);
    if (!allowed)
        return spa_api_fail(e, 401, "invalid_api_key", NULL, "a key of this server is needed: Authorization: Bearer KEY");
    /* A form of another site's page can send other types without asking first, this one not. */
    if (post && (!header(c->wsi, WSI_TOKEN_HTTP_CONTENT_TYPE, type, sizeof type) || strncasecmp(type, as_json, sizeof as_json - 1) != 0 ||
                 (type[sizeof as_json - 1] && !strchr("; \t", type[sizeof as_json - 1]))))
        return spa_api_fail(e, 415, NULL, NULL, "the body has to be JSON, with content-type: application/json");
    return 0;
}

/* The announced length of the body; -1: none is announced that can be read. */
static long long announced(struct lws *wsi)
{
    char text[32], *end;
    if (!header(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH, text, sizeof text) || text[strspn(text, "0123456789")])
        return -1;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    return errno || *end ? -1 : n;
}

static int on_request(struct spa_http *h, struct lws *wsi, const char *path)
{
    struct client *c = client_new(h, wsi);
    struct spa_api_error e = { 0 };
    char version[16];
    if (!c)
        return -1;
    const bool head = lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0, get = head || lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) > 0;
    const bool post = lws_hdr_total_length(wsi, WSI_TOKEN_POST_URI) > 0;
    const struct spa_api_way way = spa_api_way(path);
    const long long len = announced(wsi);
    c->kind = way.kind;
    c->head_only = head;
    if (check_head(c, post && way.post, way.is_public, &e) == 0) {
        if (!way.get && !way.post)
            spa_api_fail(&e, 404, NULL, NULL, "nothing is served at this path; /openapi.json says what is where");
        else if (!(get && way.get) && !(post && way.post))
            spa_api_fail(&e, 405, NULL, NULL, "this method is not served here");
        else if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0 || (post && len < 0))
            spa_api_fail(&e, 411, NULL, NULL, "the body needs a content-length");
        else if (len > (long long)h->cfg.max_body)
            spa_api_fail(&e, 413, NULL, NULL, "the body is longer than %u bytes", h->cfg.max_body);
    }
    c->old = header(wsi, WSI_TOKEN_HTTP, version, sizeof version) && strcmp(version, "HTTP/1.0") == 0;
    c->close_after = c->old;
    if (post && len > 0 && len <= DISCARD_MAX) {   /* an error, too, waits until the body is in: else the client may never read it */
        c->reading = true;
        c->early = e;
        lws_set_timeout(wsi, PENDING_TIMEOUT_HTTP_CONTENT, (int)h->cfg.request_s);
        return 0;
    }
    c->unread = len > 0 || lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0;
    c->close_after |= !get || c->unread;   /* bytes may come that are no request */
    lws_set_timeout(wsi, NO_PENDING_TIMEOUT, 0);
    if (e.status)
        return answer_error(c, &e);
    if (post)
        return fail(c, 400, NULL, "the body is empty; it has to be a JSON object");
    return answer(c, spa_api_get(h->models, &h->counts, h->started_unix_s, path, &c->out, &c->type));
}

/* ---- the library's calls ---- */

/* The request that is under way on it; NULL: none. */
static struct client *client_of(struct lws *wsi)
{
    void *note = lws_get_opaque_user_data(wsi);
    return note == &had_one ? NULL : note;
}

static int on_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    (void)user;
    struct spa_http *h = lws_context_user(lws_get_context(wsi));
    struct client *c = NULL;
    if (reason == LWS_CALLBACK_HTTP_BODY || reason == LWS_CALLBACK_HTTP_BODY_COMPLETION || reason == LWS_CALLBACK_HTTP_WRITEABLE ||
        reason == LWS_CALLBACK_TIMER || reason == LWS_CALLBACK_CLOSED_HTTP || reason == LWS_CALLBACK_WSI_DESTROY || reason == LWS_CALLBACK_HTTP)
        c = client_of(wsi);
    switch (reason) {
    case LWS_CALLBACK_FILTER_NETWORK_CONNECTION:
        h->counts.refused += h->counts.connections >= h->cfg.max_connections;
        return h->counts.connections >= h->cfg.max_connections || h->stops;
    case LWS_CALLBACK_WSI_CREATE:
        h->counts.connections++;
        return 0;
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
        lws_set_opaque_user_data(wsi, &had_one);
        lws_return_http_status(wsi, 400, "no upgrade is taken here");
        return 1;
    case LWS_CALLBACK_ESTABLISHED:
        return -1;
    case LWS_CALLBACK_HTTP:
        return c ? -1 : on_request(h, wsi, in);
    case LWS_CALLBACK_HTTP_BODY:
        return c ? on_body(c, in, len) : -1;
    case LWS_CALLBACK_HTTP_BODY_COMPLETION:
        return c && c->reading ? on_body_end(c) : 0;
    case LWS_CALLBACK_HTTP_WRITEABLE:
        return c ? on_writeable(c) : 0;
    case LWS_CALLBACK_TIMER:
        return c ? on_silence(c) : 0;
    case LWS_CALLBACK_CLOSED_HTTP:
        if (c)
            client_free(c);
        return 0;
    case LWS_CALLBACK_WSI_DESTROY:
        if (c)
            client_free(c);
        else
            h->counts.unfinished += lws_get_opaque_user_data(wsi) != &had_one;
        if (h->counts.connections)
            h->counts.connections--;
        return 0;
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED:
        for (c = h->clients; c; c = c->next)
            if (c->job)
                lws_callback_on_writable(c->wsi);
        return 0;
    default:
        return 0;
    }
}

/* ---- life ---- */

static int listen_there(struct spa_http *h, bool is_v6, char *why, size_t why_len)
{
    const struct spa_http_config *cfg = &h->cfg;
    h->protocols[0] = (struct lws_protocols){ .name = "http", .callback = on_event };
    struct lws_context_creation_info info = {
        .port = cfg->port, .iface = h->address, .protocols = h->protocols, .user = h, .timeout_secs = cfg->request_s, .keepalive_timeout = IDLE_S,
        .server_string = "spa", .alpn = "http/1.1", .gid = (gid_t)-1, .uid = (uid_t)-1, .max_http_header_data = (unsigned short)cfg->max_head,
        .options = is_v6 ? LWS_SERVER_OPTION_IPV6_V6ONLY_MODIFY | LWS_SERVER_OPTION_IPV6_V6ONLY_VALUE : LWS_SERVER_OPTION_DISABLE_IPV6,
    };
    if (cfg->cert_file) {
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = cfg->cert_file;
        info.ssl_private_key_filepath = cfg->key_file;
        info.ssl_options_set = SSL_OP_NO_SSLv3 | SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1 | SSL_OP_NO_RENEGOTIATION;
    }
    lws_set_log_level(0, NULL);
    h->context = lws_create_context(&info);
    struct lws_vhost *vhost = h->context ? lws_get_vhost_by_name(h->context, "default") : NULL;
    h->port = vhost ? lws_get_vhost_listen_port(vhost) : 0;
    if (vhost && h->port > 0)
        return 0;
    snprintf(why, why_len, cfg->cert_file ? "cannot listen on %s:%d with certificate %s and key %s; is the port taken, are both files PEM and a pair?"
                                          : "cannot listen on %s:%d; is the port taken, is the address this machine's?",
             cfg->host, cfg->port, cfg->cert_file, cfg->key_file);
    return -1;
}

struct spa_http *spa_http_new(const struct spa_http_config *cfg, char *why, size_t why_len)
{
    struct spa_http *h = calloc(1, sizeof *h);
    bool is_v6 = false;
    if (!h) {
        snprintf(why, why_len, "there is not enough memory for a server");
        return NULL;
    }
    h->cfg = *cfg;
    h->started_unix_s = (int64_t)time(NULL);
    int rc = cfg->client_key_file ? spa_keys_read(&h->keys, cfg->client_key_file, why, why_len) : 0;
    if (rc == 0 && spa_listen_resolve(cfg->host, h->address, sizeof h->address, &is_v6) != 0) {
        snprintf(why, why_len, "--host %s: no such address; use one of this machine's, or 127.0.0.1", cfg->host);
        rc = -1;
    }
    if (rc == 0)
        rc = listen_there(h, is_v6, why, why_len);
    if (rc == 0)
        return h;
    spa_http_free(h);
    return NULL;
}

int spa_http_port(const struct spa_http *h)
{
    return h->port;
}

size_t spa_http_plain_keys(const struct spa_http *h) { return h->keys.n_plain; }

void spa_http_wake(void *http)
{
    struct spa_http *h = http;
    lws_cancel_service(h->context);
}

void spa_http_stop(struct spa_http *h)
{
    h->stops = h->stops + 1;
    lws_cancel_service(h->context);
}

void spa_http_reload(struct spa_http *h)
{
    h->reload = 1;
    lws_cancel_service(h->context);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void on_alarm(lws_sorted_usec_list_t *alarm)
{
    (void)alarm;   /* that the wait has ended is all */
}

static void read_keys_again(struct spa_http *h)
{
    struct spa_keys fresh;
    char why[512];
    h->reload = 0;
    const int rc = h->cfg.client_key_file ? spa_keys_read(&fresh, h->cfg.client_key_file, why, sizeof why) : -1;
    if (!h->cfg.client_key_file)
        snprintf(why, sizeof why, "there is no --client-key-file to read again");
    if (rc == 0) {
        spa_keys_free(&h->keys);
        h->keys = fresh;
        for (struct client *c = h->clients; c; c = c->next)
            if (c->has_key && !spa_keys_has(&h->keys, c->key))
                lws_set_timeout(c->wsi, PENDING_TIMEOUT_USER_REASON_BASE, LWS_TO_KILL_ASYNC);
        snprintf(why, sizeof why, "%.400s: %zu keys from now on", h->cfg.client_key_file, h->keys.n);
    }
    if (h->cfg.log)
        h->cfg.log(why);
}

void spa_http_run(struct spa_http *h, struct spa_models *models, uint64_t drain_ms)
{
    h->models = models;
    lws_sorted_usec_list_t alarm = { 0 };
    uint64_t until = 0;
    while (lws_service(h->context, 0) >= 0) {
        spa_models_look(h->models);
        if (h->reload)
            read_keys_again(h);
        if (!h->stops)
            continue;
        const uint64_t now = now_ms();
        until = until ? until : now + drain_ms;
        if (h->stops > 1 || !h->clients || now >= until)
            break;
        lws_sul_schedule(h->context, 0, &alarm, on_alarm, 100 * LWS_US_PER_MS);
    }
    lws_sul_cancel(&alarm);
    for (struct client *c = h->clients; c; c = c->next)
        drop_job(c, false);
}

void spa_http_free(struct spa_http *h)
{
    if (!h)
        return;
    if (h->context)
        lws_context_destroy(h->context);
    spa_keys_free(&h->keys);
    free(h);
}
