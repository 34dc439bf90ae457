/* test_conversation.c - runs the files of tests/wire: whole conversations as text, both ends in one process, on a virtual clock.
 *
 * Every file runs once for each way of cutting the bytes (all at once, pieces of 1, 2, 3, 7, random pieces); each run must
 * meet the file's expectations, and all must give the same transcript, events and clock alike.
 *
 * The language: one act or expectation a line, `#` starts a comment, "..." holds text (\" \\ \xHH inside). After each act
 * everything sent is delivered. Each event must be expected, in its end's order, before the next act. `= CODE` at the end of
 * an act says that the call must return this error (default OK). Numbers left out are 0 unless said.
 *
 *   host  d=4 layers=2 vocab=100 ctx=64 anchors=0 requests=4 window=2 losses=2 bad=2 answer_ms=200 answer_max=1000 hello_ms=500 ahead=0
 *         the cloud's end; a new device with it, so a file may hold several conversations
 *   hello [base] [taps=0,2] [k=4] [context=2] [basis=HH] [generic] [gate] [gate_taps] [form=f32|f16|i8] [greet_ms=300]     basis=: to be fitted
 *   limits requests= window=      the cloud takes fewer than it announced
 *   welcome [d=] [layers=] [need_basis] | basis | basis_here | fitted hash=HH
 *   fetch hash=HH offset= | blob hash=HH offset= total= len=
 *   generate [user=".."] [raw=".."] [stop=".."] [confirmed=1,2] gate=auto|always|never late=wait|base|error answer_ms= predict=8 temp=
 *            [after=1 from= to=] [ahead=] [pad]
 *   ask request=1 epoch= pos= rows=1 asked=0          asked= without a number: context rows only
 *   back request=1 epoch= unasked=                    the cloud turns back
 *   answer request=1 epoch= pos= z=1,2,3,4 [draft=5,6]  (z is filled up with its last number)
 *   logprobs request=1 index= ids=7,8 [n=] [cut=]     entries of 2 bytes; n: what the head says; cut: bytes missing at the end; asked for with logprobs= of generate
 *   tokens request=1 index= ids=7,8 by=0,1 text=".."  | done request=1 finish= | cancel request=1
 *   refuse request=1 code=12 text=".." | refuse_row row= code=10 text=".."
 *   loss id= n=2 [gradient] [top] [z=1] [target=0]      n states, each z, z+1 ..; z=nan: not finite
 *   losses id= n=2 [gradient] [top] | refuse_loss id= code=10 text=".."      the answer: loss i + 1, dstates 10 + i, top i
 *   learn row= [fit] [last] [anchor] [user=".."] [loss=".."] | features row= tokens=4 context= pos=1,2 targets=5,6
 *   raw device|host TYPE name=number .. len=N text=".."    any message, sent past the rules; len: that many bytes of bulk
 *   bytes device|host HEX | sink device|host closed|open
 *   hold | deliver                 nothing is delivered in between
 *   time +N
 *   expect device|host NAME [name=value ..]           the next event; `error CODE` is feed's error
 *   state device|host NAME | count [bad=] [strays=] [given_up=] | deadline device|host N|never */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "basis.h"
#include "host.h"
#include "logprobs.h"
#include "session.h"
#include "words.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAP = 1 << 18, LOG = 1 << 16, MAX_FILES = 64, D_MAX = 64 };

struct end {                       /* one end of the conversation */
    uint8_t in[CAP];               /* bytes on their way to it */
    size_t  in_len;
    uint8_t buf[SPA_MESSAGE_MIN];
    char    events[LOG];           /* not expected yet, one a line */
    enum spa_err error;            /* that feed returned */
    bool    sink_closed;           /* what it sends is refused */
};

static struct world {
    const char *path;
    int line;
    int cut;                       /* bytes a piece; 0: all, -1: random */
    uint64_t dice, now_ms;
    bool held, has_host;
    struct end device, host;       /* device.in holds what the host sent */
    struct spa_session s;
    struct spa_host h;
    spa_Welcome model;
    float z[D_MAX];
    char transcript[4 * LOG];
} w;

static void failure(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s:%d (cut %d): ", w.path, w.line, w.cut);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    fail();
}

static void add(char *log, size_t cap, const char *fmt, va_list ap)
{
    size_t len = strlen(log);
    int n = vsnprintf(log + len, cap - len, fmt, ap);
    if (n < 0 || (size_t)n >= cap - len) failure("log full");
}

static void event(struct end *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t before = strlen(e->events);
    add(e->events, sizeof e->events, fmt, ap);
    va_end(ap);
    size_t at = strlen(w.transcript);
    snprintf(w.transcript + at, sizeof w.transcript - at, "%llu %s %s", (unsigned long long)w.now_ms,
             e == &w.host ? "host" : "device", e->events + before);
}

/* ---- rows, so that both ends can agree on what should have arrived ---- */

static float tap_value(uint32_t pos, uint32_t layer, uint32_t i) { return (float)pos + 8.0f * (float)layer + 0.25f * (float)i; }
static float y_value(uint32_t pos, uint32_t i) { return (float)pos - (float)i; }

static uint32_t make_row(const struct spa_shape *shape, bool full, uint32_t pos, float *x)
{
    uint32_t n = full ? shape->n_taps : shape->n_ctx_taps;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < shape->k; i++)
            x[t * shape->k + i] = tap_value(pos, full ? shape->taps[t] : shape->ctx_taps[t], i);
    return n;
}
static bool same_row(enum spa_dtype form, const float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i] - y[i]) > (form == SPA_I8 ? 0.2f : 0.0f)) return false;   /* these numbers are exact in F16 */
    return true;
}

/* ---- what the ends see, as text ---- */

static void see_taps(const struct spa_message *m)
{
    const spa_Taps *t = &m->head.taps;
    static float x[4096], y[4096];
    bool right = true;
    for (uint32_t i = 0; i < t->n_rows; i++) {
        enum spa_err err = spa_taps_row(&w.s, m, i, x);
        uint32_t n = make_row(&w.s.shape, spa_taps_row_asked(m, i), t->pos + i, y);
        right = right && !err && same_row(w.s.tap_dtype, x, y, (size_t)n * w.s.shape.k);
    }
    event(&w.device, "TAPS request=%u epoch=%u pos=%u rows=%u asked=%u bytes=%u %s\n", t->request, t->epoch, t->pos, t->n_rows,
          t->asked_count, (unsigned)w.s.reader.taken, right ? "right" : "wrong");
}

static void see_features(const struct spa_message *m)
{
    const spa_Features *f = &m->head.features;
    static uint32_t pos[64];
    static int32_t target[64];
    static float x_ctx[8192], x[8192], y_fin[8192], want[8192];
    enum spa_err err = spa_features_unpack(&w.s, m, pos, target, x_ctx, x, y_fin);
    const struct spa_shape *shape = &w.s.shape;
    bool right = !err;
    for (uint32_t i = 0; i < f->n_ctx; i++) {
        size_t n = (size_t)make_row(shape, false, i, want) * shape->k;
        right = right && same_row(w.s.tap_dtype, x_ctx + i * n, want, n);
    }
    for (uint32_t i = 0; i < f->n_loss; i++) {
        size_t n = (size_t)make_row(shape, true, pos[i], want) * shape->k;
        right = right && same_row(w.s.tap_dtype, x + i * n, want, n);
        for (uint32_t j = 0; j < shape->d; j++) right = right && y_fin[i * shape->d + j] == y_value(pos[i], j);
    }
    event(&w.device, "FEATURES row=%u tokens=%u context=%u loss=%u first=%d %s\n", f->row, f->n_tokens, f->n_ctx, f->n_loss,
          f->n_loss ? target[0] : -1, right ? "right" : "wrong");
}

static void see_losses(const struct spa_message *m)
{
    const spa_Losses *l = &m->head.losses;
    static float loss[64], dstates[64 * D_MAX];
    static int32_t top[64];
    bool right = true;
    spa_losses_unpack(&w.s, m, loss, dstates, top);
    for (uint32_t i = 0; i < l->n; i++) {
        right = right && loss[i] == (float)i + 1 && (!l->top || top[i] == (int32_t)i);
        for (uint32_t j = 0; l->gradient && j < w.model.d; j++) right = right && dstates[i * w.model.d + j] == 10 + (float)i;
    }
    event(&w.device, "LOSSES id=%u n=%u gradient=%d top=%d %s\n", l->id, l->n, l->gradient, l->top, right ? "right" : "wrong");
}

static void see_at_device(const struct spa_session_event *ev)
{
    const union spa_head *head = &ev->msg->head;
    const char *name = spa_msg_name(ev->type);
    int n = (int)ev->msg->bulk_len;
    const char *text = (const char *)ev->msg->bulk;
    switch (ev->type) {
    case SPA_MSG_WELCOME: event(&w.device, "%s version=%u d=%u requests=%u window=%u need_basis=%d\n", name, head->welcome.version,
        head->welcome.d, head->welcome.max_requests, head->welcome.learn_window, head->welcome.need_basis); break;
    case SPA_MSG_BLOB: event(&w.device, "%s offset=%u total=%u len=%d\n", name, (unsigned)head->blob.offset,
        (unsigned)head->blob.total, n); break;
    case SPA_MSG_TAPS: see_taps(ev->msg); break;
    case SPA_MSG_TOKENS: event(&w.device, "%s request=%u index=%u n=%u bytes=%u text=%.*s\n", name, ev->request, head->tokens.index,
        head->tokens.ids_count, (unsigned)w.s.reader.taken, n, text); break;
    case SPA_MSG_DONE: event(&w.device, "%s request=%u finish=%u gated=%u late=%u refused=%u back_to=%d bytes=%u\n", name, ev->request,
        head->done.finish, head->done.gated, head->done.late, head->done.refused, (int)ev->back_to, (unsigned)w.s.reader.taken); break;
    case SPA_MSG_ERROR: event(&w.device, "%s request=%u code=%u is_row=%d is_loss=%d row=%u retry=%u text=%.*s\n", name, ev->request,
        head->error.code, head->error.is_row, head->error.is_loss, head->error.row, head->error.retry_ms, n, text); break;
    case SPA_MSG_FITTED: event(&w.device, "%s total=%u\n", name, (unsigned)head->fitted.total); break;
    case SPA_MSG_FEATURES: see_features(ev->msg); break;
    case SPA_MSG_LOSSES: see_losses(ev->msg); break;
    case SPA_MSG_LOGPROBS: event(&w.device, "%s request=%u index=%u n=%u len=%d\n", name, ev->request, head->logprobs.index,
        head->logprobs.n, n); break;
    default: failure("an event of type %s", name);
    }
}

static void see_at_host(const struct spa_host_event *ev)
{
    static const char *names[] = { "HELLO", "BLOB", "GENERATE", "CANCEL", "STATE", "LATE", "BAD_STATE", "LEARN", "FETCH", "LOSS", "STRAY" };
    const char *name = names[ev->type];
    struct spa_host_request *r;
    switch (ev->type) {
    case SPA_HOST_HELLO: event(&w.host, "%s version=%u plugin=%d gate=%u\n", name, ev->msg->head.hello.version,
        ev->msg->head.hello.has_plugin, ev->msg->bulk_len / 4); break;
    case SPA_HOST_BLOB: event(&w.host, "%s offset=%u len=%u\n", name, (unsigned)ev->msg->head.blob.offset, ev->msg->bulk_len); break;
    case SPA_HOST_GENERATE: event(&w.host, "%s request=%u gate=%u late=%u answer_ms=%u after=%u from=%u to=%u\n", name, ev->request,
        ev->msg->head.generate.gate, ev->msg->head.generate.late, spa_host_request(&w.h, ev->request)->answer_ms,
        ev->msg->head.generate.after, ev->msg->head.generate.after_from, ev->msg->head.generate.after_to); break;
    case SPA_HOST_STATE: event(&w.host, "%s request=%u pos=%u draft=%u bytes=%u z=%g,%g\n", name, ev->request, ev->pos, ev->msg->head.state.draft_count, (unsigned)w.h.reader.taken, (double)ev->z[0],
        (double)ev->z[w.h.d - 1]); break;
    case SPA_HOST_LATE: r = spa_host_request(&w.h, ev->request);
        event(&w.host, "%s request=%u pos=%u policy=%u\n", name, ev->request, ev->pos, r->late_policy); break;
    case SPA_HOST_LOSS: {
        float first;
        memcpy(&first, ev->msg->bulk + 4 * (size_t)ev->msg->head.loss.n, 4);
        event(&w.host, "%s id=%u n=%u gradient=%d top=%d z=%g\n", name, ev->msg->head.loss.id, ev->msg->head.loss.n,
              ev->msg->head.loss.gradient, ev->msg->head.loss.top, (double)first);
        break;
    }
    case SPA_HOST_LEARN: event(&w.host, "%s row=%u fit=%d last=%d anchor=%d\n", name, ev->msg->head.learn.row, ev->msg->head.learn.fit,
        ev->msg->head.learn.last, ev->msg->head.learn.anchor); break;
    case SPA_HOST_FETCH: event(&w.host, "%s offset=%u\n", name, (unsigned)ev->msg->head.fetch.offset); break;
    default: event(&w.host, "%s request=%u pos=%u\n", name, ev->request, ev->pos); break;
    }
}

/* ---- the wire between them ---- */

static enum spa_err take(struct end *to, const struct end *from, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    if (from->sink_closed) return SPA_ERR_CLOSED;
    if (a_len + b_len > CAP - to->in_len) failure("wire full");
    memcpy(to->in + to->in_len, a, a_len);
    if (b_len) memcpy(to->in + to->in_len + a_len, b, b_len);
    to->in_len += a_len + b_len;
    return SPA_OK;
}
static enum spa_err to_host(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    (void)user;
    return take(&w.host, &w.device, a, a_len, b, b_len);
}
static enum spa_err to_device(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    (void)user;
    return take(&w.device, &w.host, a, a_len, b, b_len);
}

/* Feeds one piece, however many events it makes. Errors stay: the second call must find the first one's. */
static void feed(struct end *e, const uint8_t *in, size_t len)
{
    enum spa_err err;
    do {
        size_t used = 0;
        struct spa_session_event sev;
        struct spa_host_event hev;
        err = e == &w.host ? spa_host_feed(&w.h, in, len, &used, w.now_ms, &hev)
                           : spa_session_feed(&w.s, in, len, &used, w.now_ms, &sev);
        if (used > len) failure("used more than there was");
        if (err == SPA_OK) { if (e == &w.host) see_at_host(&hev); else see_at_device(&sev); }
        if (err < 0 && e->error && err != e->error) failure("the error %s did not stay", spa_err_name(e->error));
        if (err < 0 && !e->error) event(e, "error %s\n", spa_err_name(e->error = err));
        in += used;
        len -= used;
        if (err == SPA_NONE && len) failure("bytes left over");
    } while (err == SPA_OK);
}

static size_t piece(size_t left)
{
    size_t n = left;
    if (w.cut > 0) n = (size_t)w.cut;
    if (w.cut < 0) n = 1 + (size_t)(spa_noise64(w.dice++, 1, 2) % 40);
    return n < left ? n : left;
}

static void pump(void)
{
    static uint8_t carried[CAP];
    while (!w.held && (w.host.in_len || w.device.in_len)) {
        struct end *e = w.host.in_len ? &w.host : &w.device;
        size_t len = e->in_len;
        memcpy(carried, e->in, len);
        e->in_len = 0;
        if (e == &w.host && !w.has_host) failure("no host");
        for (size_t at = 0, n; at < len; at += n) feed(e, carried + at, n = piece(len - at));
    }
}

/* ---- acts ---- */

static void act_host(void)
{
    w.host.error = w.device.error = SPA_OK;
    w.host.in_len = w.device.in_len = 0;
    spa_session_init(&w.s, (struct spa_sink){ NULL, to_host }, w.device.buf, sizeof w.device.buf);
    struct spa_host_limits limits = { .max_requests = number("requests", 4), .learn_window = number("window", 2), .loss_window = number("losses", 2),
        .max_bad_states = number("bad", 2), .answer_ms = number("answer_ms", 200), .answer_ms_max = number("answer_max", 1000),
        .hello_ms = number("hello_ms", 500), .max_state_rms = 1e4f, .run_ahead = number("ahead", 0) };
    w.model = (spa_Welcome){ .d = number("d", 4), .n_layers = number("layers", 2), .n_vocab = number("vocab", 100),
        .n_ctx = number("ctx", 64), .n_anchors = number("anchors", 0), .logit_scale = 1 };
    spa_host_init(&w.h, (struct spa_sink){ NULL, to_device }, &limits, w.host.buf, sizeof w.host.buf, w.z, D_MAX, w.now_ms);
    w.has_host = true;
}

static enum spa_err act_hello(void)
{
    static float gate[8 * D_MAX];   /* zeros; hello's taps are fewer than 8 */
    spa_Plugin p = spa_Plugin_init_zero;
    p.d = w.model.d;
    p.n_layers = w.model.n_layers;
    p.add = true;
    p.taps_count = (pb_size_t)numbers("taps", p.taps, SPA_MAX_TAPS);
    if (!p.taps_count) { p.taps_count = 2; p.taps[1] = w.model.n_layers; }
    p.ctx_taps_count = (pb_size_t)numbers("context", p.ctx_taps, SPA_MAX_TAPS);
    p.basis = value("basis") != NULL;
    p.rms = p.basis;
    p.k = number("k", p.basis ? 2 : p.d);
    if (p.basis && *value("basis")) {
        p.basis_hash.size = SPA_HASH_BYTES;
        memset(p.basis_hash.bytes, (int)strtol(value("basis"), NULL, 16), SPA_HASH_BYTES);
    }
    p.generic = flag("generic");
    p.gate_taps = flag("gate_taps");
    p.tap_dtype = p.state_dtype = (spa_Dtype)choice("form", "f32|f16|i8", SPA_F32);
    return spa_session_hello(&w.s, "test", flag("base") ? NULL : &p, flag("gate") ? gate : NULL, w.now_ms, number("greet_ms", 0));
}

static enum spa_err act_welcome(void)
{
    spa_Welcome m = w.model;
    m.d = number("d", m.d);
    m.n_layers = number("layers", m.n_layers);
    return spa_host_welcome(&w.h, &m, flag("need_basis"));
}

static size_t text_part(struct spa_part *parts, size_t n, const char *key, enum spa_part_kind kind, bool loss)
{
    const char *text = value(key);
    if (!text) return n;
    parts[n] = (struct spa_part){ (uint8_t)kind, loss, (const uint8_t *)text, (uint32_t)strlen(text) };
    return n + 1;
}

static enum spa_err act_generate(void)
{
    static uint8_t work[4096];
    uint32_t confirmed[16];
    struct spa_part parts[8];
    size_t n = text_part(parts, 0, "user", SPA_PART_USER, false);
    n = text_part(parts, n, "raw", SPA_PART_TEXT, false);
    n = text_part(parts, n, "stop", SPA_PART_STOP, false);
    uint32_t n_confirmed = numbers("confirmed", confirmed, 16);
    if (n_confirmed) parts[n++] = (struct spa_part){ SPA_PART_CONFIRMED, false, (uint8_t *)confirmed, 4 * n_confirmed };
    spa_Generate g = { .raw = value("raw") != NULL, .n_predict = (int32_t)number("predict", 8), .top_k = 40, .top_p = 0.95f,
        .temp = value("temp") ? strtof(value("temp"), NULL) : 0, .answer_ms = number("answer_ms", 0), .logprobs = number("logprobs", 0),
        .gate = (spa_GateMode)choice("gate", "auto|always|never|unknown", 0),
        .late = (spa_Late)choice("late", "wait|base|error|unknown", 1),
        .after = number("after", 0), .after_from = number("from", 0), .after_to = number("to", 0), .run_ahead = number("ahead", 0), .pad = flag("pad") };
    return spa_session_generate(&w.s, &g, parts, n, work);
}

static enum spa_err act_ask(void)
{
    static float x[4096];
    static uint8_t bulk[CAP];
    uint32_t asked[SPA_ASKED_MAX] = { 0 }, rows = number("rows", 1), pos = number("pos", 0), full = 0;
    uint32_t n_asked = value("asked") ? numbers("asked", asked, SPA_ASKED_MAX) : 1;
    size_t len = 0;
    for (uint32_t i = 0; i < rows; i++) {
        bool is_full = full < n_asked && asked[full] == i;
        full += is_full;
        uint32_t n = make_row(&w.h.shape, is_full, pos + i, x);
        spa_dtype_pack(w.h.tap_dtype, x, n, w.h.shape.k, bulk + len);
        len += spa_dtype_bytes(w.h.tap_dtype, n, w.h.shape.k);
    }
    return spa_host_ask(&w.h, number("request", 1), number("epoch", 0), pos, rows, asked, n_asked, bulk, len, w.now_ms);
}

static enum spa_err act_back(void)
{
    return spa_host_back(&w.h, number("request", 1), number("epoch", 0), number("unasked", 0));
}

static enum spa_err act_answer(void)
{
    static uint8_t work[4 * D_MAX];
    float z[D_MAX];
    const char *v = value("z");
    for (uint32_t i = 0; i < w.model.d; i++) {
        char *next;
        z[i] = strtof(v, &next);
        if (*next == ',') v = next + 1;
    }
    uint32_t ids[SPA_DRAFT_MAX];
    int32_t draft[SPA_DRAFT_MAX];
    const uint32_t n = numbers("draft", ids, SPA_DRAFT_MAX);
    for (uint32_t i = 0; i < n; i++) draft[i] = (int32_t)ids[i];
    spa_session_draft(&w.s, 0, draft, n);
    return spa_session_answer(&w.s, number("request", 1), number("epoch", 0), number("pos", 0), z, work);
}

static enum spa_err act_tokens(void)
{
    uint32_t ids[32], by[32];
    uint8_t speakers[32];
    uint32_t n = numbers("ids", ids, 32), n_by = numbers("by", by, 32);
    for (uint32_t i = 0; i < n; i++) speakers[i] = i < n_by ? (uint8_t)by[i] : 0;
    const char *text = value("text") ? value("text") : "";
    return spa_host_tokens(&w.h, number("request", 1), number("index", 0), (int32_t *)ids, speakers, n, text, strlen(text));
}

static enum spa_err act_logprobs(void)
{
    static uint8_t bulk[SPA_LOGPROBS_BULK_MAX];
    uint32_t ids[SPA_LOGPROBS_MAX], n = numbers("ids", ids, SPA_LOGPROBS_MAX);
    size_t len = 0;
    for (uint32_t i = 0; i < n; i++)
        len += spa_logprob_write(&(struct spa_logprob){ (int32_t)ids[i], -0.5f, (const uint8_t *)"ab", 2 }, bulk + len);
    return spa_host_logprobs(&w.h, number("request", 1), number("index", 0), number("n", n), bulk, len - number("cut", 0));
}

static enum spa_err act_learn(void)
{
    static uint8_t work[4096];
    struct spa_part parts[4];
    size_t n = text_part(parts, 0, "user", SPA_PART_USER, false);
    n = text_part(parts, n, "loss", SPA_PART_ASSISTANT, true);
    spa_Learn l = { .row = number("row", 0), .fit = flag("fit"), .last = flag("last"), .anchor = flag("anchor") };
    return spa_session_learn(&w.s, &l, parts, n, work);
}

static enum spa_err act_features(void)
{
    static uint8_t bulk[CAP];
    static float x[4096];
    uint32_t pos[16], n_loss = numbers("pos", pos, 16), targets[16] = { 0 }, n_ctx = number("context", 0);
    numbers("targets", targets, 16);
    enum spa_dtype form = w.h.tap_dtype, y_form = form == SPA_F32 ? SPA_F32 : SPA_F16;
    size_t len = 8 * (size_t)n_loss;
    memcpy(bulk, pos, 4 * (size_t)n_loss);
    memcpy(bulk + 4 * (size_t)n_loss, targets, 4 * (size_t)n_loss);
    for (uint32_t i = 0; i < n_ctx + n_loss; i++) {
        uint32_t n = make_row(&w.h.shape, i >= n_ctx, i < n_ctx ? i : pos[i - n_ctx], x);
        spa_dtype_pack(form, x, n, w.h.shape.k, bulk + len);
        len += spa_dtype_bytes(form, n, w.h.shape.k);
    }
    for (uint32_t i = 0; i < n_loss; i++) {
        for (uint32_t j = 0; j < w.h.d; j++) x[j] = y_value(pos[i], j);
        spa_dtype_pack(y_form, x, 1, w.h.d, bulk + len);
        len += spa_dtype_bytes(y_form, 1, w.h.d);
    }
    spa_Features f = { .row = number("row", 0), .n_tokens = number("tokens", 4), .n_ctx = n_ctx, .n_loss = n_loss };
    return spa_host_features(&w.h, &f, bulk, len);
}

static enum spa_err act_loss(void)
{
    static float states[64 * D_MAX];
    static uint8_t work[4 * 64 * (1 + D_MAX)];
    int32_t target[64];
    uint32_t n = number("n", 2), d = w.model.d;
    for (uint32_t i = 0; i < n && i < 64; i++) target[i] = (int32_t)number("target", 0);
    for (uint32_t i = 0; i < n * d && i < 64 * d; i++) states[i] = (value("z") ? strtof(value("z"), NULL) : 1) + (float)(i % d);
    spa_Loss l = { .id = number("id", 1), .n = n, .gradient = flag("gradient"), .top = flag("top") };
    return spa_session_loss(&w.s, &l, target, states, work);
}

static enum spa_err act_losses(void)
{
    static float bulk[64 * (2 + D_MAX)];
    spa_Losses l = { .id = number("id", 1), .n = number("n", 2), .gradient = flag("gradient"), .top = flag("top") };
    size_t at = 0;
    for (uint32_t i = 0; i < l.n; i++) bulk[at++] = (float)i + 1;
    for (uint32_t i = 0; l.gradient && i < l.n * w.model.d; i++) bulk[at++] = 10 + (float)(i / w.model.d);
    for (int32_t i = 0; l.top && (uint32_t)i < l.n; i++) memcpy(&bulk[at++], &i, 4);
    return spa_host_losses(&w.h, &l, (const uint8_t *)bulk, 4 * at);
}

static enum spa_err act_refuse_loss(void)
{
    return spa_host_loss_error(&w.h, number("id", 1), (spa_Code)number("code", 10), value("text") ? value("text") : "");
}

static enum spa_err act_basis(void)
{
    static uint8_t bytes[CAP], hash[SPA_HASH_BYTES];
    return spa_session_send_basis(&w.s, hash, bytes, spa_basis_floats(&w.s.shape) * 4);
}

static enum spa_err act_blob(void)
{
    static uint8_t bytes[SPA_BLOB_PIECE];
    spa_Blob b = { .offset = number("offset", 0), .total = number("total", 0), .hash.size = SPA_HASH_BYTES };
    hash_of(b.hash.bytes);
    return spa_host_blob(&w.h, &b, bytes, number("len", 0));
}

static enum spa_err act_fitted(void)
{
    spa_Fitted f = { .hash.size = SPA_HASH_BYTES, .total = spa_basis_floats(&w.h.shape) * 4, .n_states = 3 };
    hash_of(f.hash.bytes);
    return spa_host_fitted(&w.h, &f);
}

/* Any message, with no end's leave. */
static enum spa_err act_raw(void)
{
    static uint8_t bulk[SPA_MESSAGE_MIN];
    static const struct spa_sink sinks[] = { { NULL, to_host }, { NULL, to_device } };
    enum spa_msg type = SPA_MSG_HELLO;
    while (type < SPA_MSG_END && strcmp(words[2], spa_msg_name(type))) type++;
    union spa_head head;
    memset(&head, 0, sizeof head);
    uint32_t request = number("request", 1);
    switch (type) {
    case SPA_MSG_HELLO: head.hello.version = number("version", 1); head.hello.max_message = number("max_message", SPA_MESSAGE_MIN); break;
    case SPA_MSG_WELCOME: head.welcome = w.model; head.welcome.version = number("version", 1);
        head.welcome.max_message = SPA_MESSAGE_MIN; head.welcome.max_requests = 1; head.welcome.need_basis = flag("need_basis"); break;
    case SPA_MSG_GENERATE: head.generate.request = request; head.generate.n_predict = 8; head.generate.gate = number("gate", 0);
        head.generate.late = number("late", 0); head.generate.after = number("after", 0);
        head.generate.after_from = number("from", 0); head.generate.after_to = number("to", 0); break;
    case SPA_MSG_CANCEL: head.cancel.request = request; break;
    case SPA_MSG_FETCH: break;
    case SPA_MSG_TAPS: head.taps.request = request; head.taps.pos = number("pos", 0); head.taps.n_rows = number("rows", 1);
        head.taps.epoch = number("epoch", 0); head.taps.asked_count = (pb_size_t)numbers("asked", head.taps.asked, 32); break;
    case SPA_MSG_STATE: head.state.request = request; head.state.epoch = number("epoch", 0); head.state.pos = number("pos", 0);
        head.state.n = number("n", 1); break;
    case SPA_MSG_TOKENS: head.tokens.request = request; head.tokens.index = number("index", 0); break;
    case SPA_MSG_DONE: head.done = (spa_Done){ .request = request, .finish = (spa_Finish)number("finish", 0) }; break;
    case SPA_MSG_LEARN: head.learn.row = number("row", 0); head.learn.fit = flag("fit");
        head.learn.anchor = flag("anchor"); break;
    case SPA_MSG_FEATURES: head.features.n_tokens = number("tokens", 4); head.features.n_loss = number("loss", 0); break;
    case SPA_MSG_LOSS: head.loss = (spa_Loss){ number("id", 1), number("n", 0), flag("gradient"), flag("top") };
        if (value("target")) { int32_t target = (int32_t)number("target", 0); memcpy(bulk, &target, 4); }
        if (value("z")) { float z = strtof(value("z"), NULL); memcpy(bulk + 4 * (size_t)number("n", 0), &z, 4); }
        break;
    case SPA_MSG_LOSSES: head.losses = (spa_Losses){ number("id", 1), number("n", 0), flag("gradient"), flag("top") };
        if (value("token")) { int32_t token = (int32_t)number("token", 0); memcpy(bulk + number("len", 0) - 4, &token, 4); }
        break;
    case SPA_MSG_LOGPROBS: head.logprobs.request = request; break;
    case SPA_MSG_FITTED: head.fitted.hash.size = 32; head.fitted.total = number("total", 0); break;
    case SPA_MSG_BLOB: head.blob.kind = number("kind", 1); head.blob.total = number("total", 0); head.blob.hash.size = 32; break;
    case SPA_MSG_ERROR: head.error.request = number("request", 0); head.error.code = number("code", 12);
        head.error.is_loss = flag("is_loss"); head.error.row = number("row", 0); break;
    default: failure("raw %s?", words[2]);
    }
    size_t len = number("len", 0);
    if (value("text")) {
        struct spa_part part;
        spa_parts_write(&part, text_part(&part, 0, "text", SPA_PART_USER, flag("loss")), bulk);
        len = 8 + strlen(value("text"));
    }
    enum spa_err err = spa_wire_send(&sinks[strcmp(words[1], "host") == 0], type, &head, bulk, len);
    memset(bulk, 0, len);
    return err;
}

static enum spa_err act_bytes(void)
{
    uint8_t byte;
    for (const char *p = words[2]; *p; p += 2) {
        char hex[3] = { p[0], p[1], 0 };
        byte = (uint8_t)strtol(hex, NULL, 16);
        (void)(strcmp(words[1], "host") == 0 ? to_device : to_host)(NULL, &byte, 1, NULL, 0);
    }
    return SPA_OK;
}

static enum spa_err act_fetch(void)
{
    uint8_t hash[SPA_HASH_BYTES];
    hash_of(hash);
    return spa_session_fetch(&w.s, spa_BlobKind_BLOB_HEAD, hash, number("offset", 0));
}

static enum spa_err act_done(void)
{
    spa_Done d = { .request = number("request", 1), .finish = (spa_Finish)number("finish", 0) };
    return spa_host_done(&w.h, &d);
}

static enum spa_err act_cancel(void) { return spa_session_cancel(&w.s, number("request", 1)); }
static enum spa_err act_basis_here(void) { spa_host_basis_here(&w.h); return SPA_OK; }
static enum spa_err act_refuse(void)
{
    return spa_host_error(&w.h, number("request", 1), (spa_Code)number("code", 12), value("text") ? value("text") : "");
}
static enum spa_err act_busy(void) { return spa_host_busy(&w.h, number("request", 1), number("retry", 0), "full"); }
static enum spa_err act_refuse_row(void)
{
    return spa_host_row_error(&w.h, number("row", 0), (spa_Code)number("code", 10), value("text") ? value("text") : "");
}
static enum spa_err act_hold(void) { w.held = true; return SPA_OK; }
static enum spa_err act_deliver(void) { w.held = false; return SPA_OK; }
static enum spa_err act_sink(void)
{
    (strcmp(words[1], "host") == 0 ? &w.host : &w.device)->sink_closed = flag("closed");
    return SPA_OK;
}
static enum spa_err act_time(void)
{
    w.now_ms += (uint64_t)strtol(words[1], NULL, 10);
    feed(&w.host, NULL, 0);
    feed(&w.device, NULL, 0);
    return SPA_OK;
}
static enum spa_err act_new_host(void) { act_host(); return SPA_OK; }

static enum spa_err act_limits(void)
{
    w.h.limits.max_requests = number("requests", w.h.limits.max_requests);
    w.h.limits.learn_window = number("window", w.h.limits.learn_window);
    w.h.limits.loss_window = number("losses", w.h.limits.loss_window);
    return SPA_OK;
}

static const struct { const char *name; enum spa_err (*act)(void); } acts[] = {
    { "limits", act_limits },
    { "host", act_new_host }, { "hello", act_hello }, { "welcome", act_welcome }, { "basis", act_basis },
    { "basis_here", act_basis_here }, { "fitted", act_fitted }, { "fetch", act_fetch }, { "blob", act_blob },
    { "generate", act_generate }, { "ask", act_ask }, { "back", act_back }, { "answer", act_answer }, { "tokens", act_tokens }, { "logprobs", act_logprobs }, { "done", act_done },
    { "cancel", act_cancel }, { "refuse", act_refuse }, { "busy", act_busy }, { "refuse_row", act_refuse_row },
    { "loss", act_loss }, { "losses", act_losses }, { "refuse_loss", act_refuse_loss }, { "learn", act_learn },
    { "features", act_features }, { "raw", act_raw }, { "bytes", act_bytes }, { "sink", act_sink }, { "hold", act_hold },
    { "deliver", act_deliver }, { "time", act_time },
};

/* ---- expectations ---- */

/* The event's line is NAME word word ... text=REST; every expected word must be among them. */
static bool has_word(const char *line, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = line; (p = strstr(p, word)); p += n)
        if ((p == line || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}

static void expect(void)
{
    struct end *e = strcmp(words[1], "host") == 0 ? &w.host : &w.device;
    char *end = strchr(e->events, '\n');
    if (!end) failure("expected %s at the %s, but nothing happened", words[2], words[1]);
    *end = 0;
    bool found = strncmp(e->events, words[2], strlen(words[2])) == 0 && has_word(e->events, words[2]);
    for (int i = 3; i < n_words; i++) found = found && has_word(e->events, words[i]);
    if (!found) failure("the %s saw: %s", words[1], e->events);
    memmove(e->events, end + 1, strlen(end + 1) + 1);
}

static void check_state(void)
{
    static const char *host_states[] = { "NEW", "GREETED", "NO_BASIS", "READY", "CLOSED" };
    static const char *device_states[] = { "NEW", "GREETING", "READY", "CLOSED" };
    const char *is = strcmp(words[1], "host") == 0 ? host_states[w.h.state] : device_states[w.s.state];
    if (strcmp(is, words[2])) failure("the %s is %s", words[1], is);
}

static void check_count(void)
{
    if (number("bad", w.h.bad_states) != w.h.bad_states || number("strays", w.h.strays) != w.h.strays
        || number("given_up", w.h.given_up) != w.h.given_up || number("crowded", w.h.crowded) != w.h.crowded)
        failure("bad=%u strays=%u given_up=%u crowded=%u", w.h.bad_states, w.h.strays, w.h.given_up, w.h.crowded);
}

static void check_deadline(void)
{
    uint64_t is = strcmp(words[1], "host") == 0 ? spa_host_deadline_ms(&w.h) : spa_session_deadline_ms(&w.s);
    uint64_t want = strcmp(words[2], "never") == 0 ? UINT64_MAX : (uint64_t)strtol(words[2], NULL, 10);
    if (is != want) failure("the deadline is %llu", (unsigned long long)is);
}

static void nothing_left(void)
{
    if (*w.host.events) failure("the host also saw: %s", w.host.events);
    if (*w.device.events) failure("the device also saw: %s", w.device.events);
}

static void act(void)
{
    nothing_left();
    const char *want = "OK";
    if (n_words > 2 && strcmp(words[n_words - 2], "=") == 0) { want = words[n_words - 1]; n_words -= 2; }
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(acts[i].name, words[0])) continue;
        enum spa_err err = acts[i].act();
        if (strcmp(spa_err_name(err), want)) failure("%s returned %s", words[0], spa_err_name(err));
        pump();
        return;
    }
    failure("what is %s?", words[0]);
}

static void run_file(const char *path, int cut)
{
    memset(&w, 0, sizeof w);
    w.path = path;
    w.cut = cut;
    w.dice = 20;
    FILE *f = fopen(path, "r");
    if (!f) failure("cannot be read");
    char line[1024];
    while (fgets(line, sizeof line, f)) {
        w.line++;
        split(line);
        if (!n_words) continue;
        if (strcmp(words[0], "expect") == 0) expect();
        else if (strcmp(words[0], "state") == 0) check_state();
        else if (strcmp(words[0], "count") == 0) check_count();
        else if (strcmp(words[0], "deadline") == 0) check_deadline();
        else act();
    }
    fclose(f);
    nothing_left();
}

static void test_conversation_runs_alike_for_every_cut(void **state)
{
    static const int cuts[] = { 0, 1, 2, 3, 7, -1 };
    static char first[sizeof w.transcript];
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        run_file(*state, cuts[i]);
        if (i == 0) strcpy(first, w.transcript);
        else if (strcmp(first, w.transcript)) failure("other events than all at once:\n%s\n--- all at once:\n%s", w.transcript, first);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct CMUnitTest *)a)->name, ((const struct CMUnitTest *)b)->name);
}

int main(void)
{
    static char paths[MAX_FILES][512];
    static struct CMUnitTest tests[MAX_FILES];
    size_t n = 0;
    DIR *dir = opendir(SPA_TEST_DIR "/wire");
    for (struct dirent *d; dir && (d = readdir(dir)) && n < MAX_FILES;) {
        size_t len = strlen(d->d_name);
        if (len < 6 || strcmp(d->d_name + len - 5, ".wire")) continue;
        snprintf(paths[n], sizeof paths[n], SPA_TEST_DIR "/wire/%s", d->d_name);
        tests[n] = (struct CMUnitTest){ strrchr(paths[n], '/') + 1, test_conversation_runs_alike_for_every_cut, NULL, NULL, paths[n] };
        n++;
    }
    if (dir) closedir(dir);
    if (n == 0) { fprintf(stderr, "no conversations in " SPA_TEST_DIR "/wire\n"); return 1; }
    qsort(tests, n, sizeof *tests, by_name);
    return _cmocka_run_group_tests("conversations", tests, n, NULL, NULL);
}
