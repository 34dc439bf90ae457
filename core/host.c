/* host.c - the cloud's end of the conversation.
 *
 * In: bytes from one device, the time, calls of the cloud. Out: messages to the sink, events. A device's faults end its
 * request or its connection here; what the model does with a request is the caller's business. */
#include "host.h"
#include "basis.h"
#include "request.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { STRAYS_PER_BAD_STATE = 8, CROWDED_PER_BAD_STATE = 8 };

void spa_host_init(struct spa_host *h, struct spa_sink sink, const struct spa_host_limits *limits, uint8_t *buf, size_t cap,
                   float *z, size_t z_cap, uint64_t now_ms)
{
    assert(limits->loss_window <= SPA_LOSSES_MAX && limits->run_ahead < SPA_ASKED_MAX);
    assert(limits->max_requests >= 1 && limits->max_requests <= SPA_REQUESTS_MAX);
    *h = (struct spa_host){ .sink = sink, .limits = *limits, .z = z, .z_cap = z_cap,
                            .hello_deadline_ms = now_ms + limits->hello_ms };
    spa_reader_init(&h->reader, buf, cap < SPA_MESSAGE_MAX ? cap : SPA_MESSAGE_MAX);
}

struct spa_host_request *spa_host_request(struct spa_host *h, uint32_t id)
{
    for (int i = 0; id && i < SPA_REQUESTS_MAX; i++)
        if (h->requests[i].id == id) return &h->requests[i];
    return NULL;
}

/* ---- errors, to the connection, a request or a row ---- */

static enum spa_err send_error(struct spa_host *h, spa_Error e, const char *sentence)
{
    union spa_head head = { .error = e };
    return spa_wire_send(&h->sink, SPA_MSG_ERROR, &head, (const uint8_t *)sentence, strlen(sentence));
}

static void close_with(struct spa_host *h, enum spa_err err)
{
    h->state = SPA_HOST_CLOSED;
    h->error = err;
}

/* The device broke the rules. Whether the goodbye still leaves does not matter any more. */
static enum spa_err fail(struct spa_host *h, enum spa_err err, spa_Code code, const char *sentence)
{
    (void)send_error(h, (spa_Error){ .code = code }, sentence);
    close_with(h, err);
    return err;
}

/* Answers from within feed must leave, or the device would wait for them for ever. SPA_NONE: read on. */
static enum spa_err refuse(struct spa_host *h, spa_Error e, const char *sentence)
{
    enum spa_err err = send_error(h, e, sentence);
    if (!err) return SPA_NONE;
    close_with(h, err);
    return err;
}

static enum spa_err refuse_request(struct spa_host *h, uint32_t request, spa_Code code, const char *sentence)
{
    return refuse(h, (spa_Error){ .request = request, .code = code }, sentence);
}

static enum spa_err refuse_row(struct spa_host *h, uint32_t row, spa_Code code, const char *sentence)
{
    return refuse(h, (spa_Error){ .row = row, .is_row = true, .code = code }, sentence);
}

/* Its states may still be on the way. */
static void stop_awaiting(struct spa_host *h, struct spa_host_request *r)
{
    h->given_up += r->owed.n;
    r->owed.n = 0;
}

/* A position is not awaited any more. The next one may take as long as if it had been asked for now. */
static bool settle(struct spa_host_request *r, uint32_t pos, uint64_t now_ms)
{
    bool oldest = r->owed.n && r->owed.pos[0] == pos, known = spa_owed_take(&r->owed, pos);
    if (oldest) r->deadline_ms = now_ms + r->answer_ms;
    return known;
}

/* ---- what the device sends ---- */

static bool all_finite(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x;
        memcpy(&x, bytes + 4 * i, 4);
        if (!isfinite(x)) return false;
    }
    return true;
}

static enum spa_err take_hello(struct spa_host *h)
{
    const spa_Hello *m = &h->msg.head.hello;
    const spa_Plugin *p = &m->plugin;
    if (m->version < SPA_WIRE_VERSION)
        return fail(h, SPA_ERR_VERSION, spa_Code_BAD_VERSION, "this cloud speaks version 1: upgrade the device");
    if (m->max_message < SPA_MESSAGE_MIN || m->max_message > SPA_MESSAGE_MAX)
        return fail(h, SPA_ERR_LIMIT, spa_Code_TOO_LARGE, "max_message must lie between 64 KiB and 64 MiB");
    size_t gate_bytes = 0;
    if (m->has_plugin) {
        if (spa_wire_shape_from_plugin(p, &h->shape))
            return fail(h, SPA_ERR_SHAPE, spa_Code_BAD_SHAPE, "the plugin's shape contradicts itself");
        if (p->tap_dtype > _spa_Dtype_MAX || p->state_dtype > _spa_Dtype_MAX)
            return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "unknown form of numbers");
        if ((p->basis_hash.size && (!p->basis || p->basis_hash.size != SPA_HASH_BYTES))
            || (p->model_hash.size && p->model_hash.size != SPA_HASH_BYTES))
            return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "a hash of wrong length");
        if (p->generic && (!p->basis || p->basis_hash.size))
            return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "a generic basis is one that has no hash yet");
        h->tap_dtype = (enum spa_dtype)p->tap_dtype;
        h->state_dtype = (enum spa_dtype)p->state_dtype;
        size_t overhead = SPA_PREFIX_LEN + SPA_HEAD_MAX;
        if (spa_wire_row_bytes(&h->shape, h->tap_dtype) > m->max_message - overhead)
            return fail(h, SPA_ERR_LIMIT, spa_Code_TOO_LARGE, "one token's taps exceed the device's max_message");
        if (p->has_gate) gate_bytes = spa_wire_gate_bytes(&h->shape, p->gate_taps);
    }
    if (h->msg.bulk_len != gate_bytes || !all_finite(h->msg.bulk, gate_bytes / 4) || !isfinite(p->gate_bias))
        return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "the gate is not as many finite numbers as it reads");
    h->has_plugin = m->has_plugin;
    h->unfitted = m->has_plugin && p->basis && p->basis_hash.size == 0;
    h->generic = h->unfitted && p->generic;
    h->peer_max_message = m->max_message;
    h->state = SPA_HOST_GREETED;
    return SPA_OK;
}

static enum spa_err take_blob(struct spa_host *h)
{
    const spa_Blob *b = &h->msg.head.blob;
    if (h->state != SPA_HOST_NO_BASIS) return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "no basis was asked for");
    uint64_t total = (uint64_t)spa_basis_floats(&h->shape) * 4;
    if (b->kind != spa_BlobKind_BLOB_BASIS || b->hash.size != SPA_HASH_BYTES || b->total != total)
        return fail(h, SPA_ERR_SHAPE, spa_Code_BAD_SHAPE, "not the basis that HELLO named");
    if (b->offset != h->basis_next) return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "a piece of the basis is missing");
    if (h->msg.bulk_len == 0 || h->msg.bulk_len > SPA_BLOB_PIECE || h->msg.bulk_len > total - b->offset)
        return fail(h, SPA_ERR_LIMIT, spa_Code_TOO_LARGE, "a piece of the basis has a wrong length");
    h->basis_next += h->msg.bulk_len;
    return SPA_OK;
}

static bool lacks_basis(const struct spa_host *h) { return h->state == SPA_HOST_NO_BASIS || h->unfitted; }

static enum spa_err take_generate(struct spa_host *h, struct spa_host_event *ev)
{
    spa_Generate *g = &h->msg.head.generate;
    /* An error that names these would end another request, or the connection: so it ends the connection openly. */
    if (g->request == 0) return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_REQUEST, "0 is no request's number");
    if (spa_host_request(h, g->request))
        return fail(h, SPA_ERR_ORDER, spa_Code_BAD_REQUEST, "a request with this number is under way");

    const char *why;
    enum spa_err err = spa_request_check_generate(g, h->msg.bulk, h->msg.bulk_len, h->has_plugin, h->n_vocab, &why);
    if (err == SPA_ERR_RANGE) return refuse_request(h, g->request, spa_Code_BAD_REQUEST, why);
    if (err) return fail(h, err, spa_Code_BAD_MESSAGE, "malformed parts");
    if (g->gate != spa_GateMode_GATE_NEVER && lacks_basis(h))
        return refuse_request(h, g->request, spa_Code_BAD_ORDER, "the plugin's basis is not here yet");

    struct spa_host_request *slot = NULL;
    uint32_t open = 0;
    for (int i = 0; i < SPA_REQUESTS_MAX; i++) {
        if (h->requests[i].id) open++;
        else if (!slot) slot = &h->requests[i];
    }
    if (!slot || open >= h->limits.max_requests) {
        if (++h->crowded > CROWDED_PER_BAD_STATE * (uint64_t)h->limits.max_bad_states)
            return fail(h, SPA_ERR_ORDER, spa_Code_BUSY, "more requests at once than WELCOME allows, again and again");
        return refuse_request(h, g->request, spa_Code_BUSY, "this connection has as many requests as it may have");
    }

    uint32_t answer_ms = g->answer_ms ? g->answer_ms : h->limits.answer_ms;
    if (answer_ms > h->limits.answer_ms_max || g->late == spa_Late_LATE_WAIT) answer_ms = h->limits.answer_ms_max;
    uint32_t run_ahead = g->run_ahead < h->limits.run_ahead ? g->run_ahead : h->limits.run_ahead;
    if (g->pad) run_ahead = 0;   /* what is taken back would show which tokens the base does not know */
    *slot = (struct spa_host_request){ .id = g->request, .answer_ms = answer_ms, .late_policy = g->late, .run_ahead = run_ahead, .pad = g->pad };
    *ev = (struct spa_host_event){ .type = SPA_HOST_GENERATE, .request = g->request, .msg = &h->msg };
    return SPA_OK;
}

static enum spa_err take_cancel(struct spa_host *h, struct spa_host_event *ev)
{
    struct spa_host_request *r = spa_host_request(h, h->msg.head.cancel.request);
    if (!r) return SPA_NONE;   /* it ended while CANCEL was on the way */
    stop_awaiting(h, r);
    *ev = (struct spa_host_event){ .type = SPA_HOST_CANCEL, .request = r->id, .msg = &h->msg };
    return SPA_OK;
}

static enum spa_err take_learn(struct spa_host *h)
{
    const spa_Learn *l = &h->msg.head.learn;
    const char *why;
    if (l->anchor) {
        if (l->fit || l->last || h->msg.bulk_len)
            return refuse_row(h, l->row, spa_Code_BAD_REQUEST, "an anchor is asked for by its number alone, and is not fitted on");
        if (l->row >= h->n_anchors) return refuse_row(h, l->row, spa_Code_BAD_REQUEST, "there is no anchor with this number");
    } else {
        enum spa_err err = spa_request_check_learn(h->msg.bulk, h->msg.bulk_len, &why);
        if (err == SPA_ERR_RANGE) return refuse_row(h, l->row, spa_Code_BAD_REQUEST, why);
        if (err) return fail(h, err, spa_Code_BAD_MESSAGE, "malformed parts");
    }
    if (!h->has_plugin) return refuse_row(h, l->row, spa_Code_BAD_ORDER, "no plugin was announced");
    if (l->fit && (!h->unfitted || h->generic)) return refuse_row(h, l->row, spa_Code_BAD_ORDER, "the plugin's basis is not to be fitted");
    if (!l->fit && lacks_basis(h)) return refuse_row(h, l->row, spa_Code_BAD_ORDER, "the plugin's basis is not here yet");
    if (h->learn_open >= h->limits.learn_window)
        return refuse_row(h, l->row, spa_Code_BUSY, "more rows are unanswered than WELCOME allows");
    h->learn_open++;
    return SPA_OK;
}

static enum spa_err refuse_loss(struct spa_host *h, uint32_t id, spa_Code code, const char *sentence)
{
    return refuse(h, (spa_Error){ .row = id, .is_loss = true, .code = code }, sentence);
}

static enum spa_err take_loss(struct spa_host *h)
{
    const spa_Loss *l = &h->msg.head.loss;
    if (h->msg.bulk_len != spa_wire_loss_bytes(h->d, l->n))
        return fail(h, SPA_ERR_SHAPE, spa_Code_BAD_SHAPE, "LOSS of wrong length");
    if (h->limits.loss_window == 0) return refuse_loss(h, l->id, spa_Code_BAD_ORDER, "this cloud computes no losses");
    if (l->n == 0) return refuse_loss(h, l->id, spa_Code_BAD_REQUEST, "LOSS without a state");
    if (h->losses_open >= h->limits.loss_window)
        return refuse_loss(h, l->id, spa_Code_BUSY, "more LOSS messages are unanswered than WELCOME allows");
    if (spa_wire_losses_bytes(h->d, l->n, l->gradient, l->top) > h->peer_max_message - (SPA_PREFIX_LEN + spa_Tokens_size))
        return refuse_loss(h, l->id, spa_Code_TOO_LARGE, "the losses and gradients of so many states exceed the device's max_message");
    for (uint32_t i = 0; i < l->n; i++) {
        int32_t target;
        memcpy(&target, h->msg.bulk + 4 * (size_t)i, 4);
        if (target < 0 || (uint32_t)target >= h->n_vocab)
            return refuse_loss(h, l->id, spa_Code_BAD_REQUEST, "a target that is not in the vocabulary");
    }
    if (!all_finite(h->msg.bulk + 4 * (size_t)l->n, (size_t)l->n * h->d))
        return refuse_loss(h, l->id, spa_Code_BAD_STATE, "a state that is not finite has no loss");
    h->losses_open++;
    return SPA_OK;
}

/* Unpacks z; false when it is none. */
static bool usable(const struct spa_host *h)
{
    const struct spa_message *m = &h->msg;
    uint32_t d = h->shape.d;
    if (m->head.state.n != 1 || m->bulk_len != spa_wire_state_bytes(&h->shape, h->state_dtype)) return false;
    if (spa_wire_state_unpack(&h->shape, h->state_dtype, m->bulk, h->z)) return false;
    double squares = 0;
    for (uint32_t i = 0; i < d; i++) squares += (double)h->z[i] * h->z[i];
    return sqrt(squares / d) <= h->limits.max_state_rms;
}

static enum spa_err take_state(struct spa_host *h, uint64_t now_ms, struct spa_host_event *ev)
{
    const spa_State *s = &h->msg.head.state;
    if (!h->has_plugin) return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "STATE from a device without plugin");
    struct spa_host_request *r = spa_host_request(h, s->request);
    *ev = (struct spa_host_event){ .request = s->request, .pos = s->pos, .msg = &h->msg };
    h->silent = 0;
    for (pb_size_t i = 0; i < s->draft_count; i++)
        if (s->draft[i] > h->n_vocab) return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "a draft with an unknown token");
    if (!r || r->epoch != s->epoch || !settle(r, s->pos, now_ms)) {
        h->strays++;
        ev->type = SPA_HOST_STRAY;
    } else if (usable(h)) {
        ev->type = SPA_HOST_STATE;
        ev->z = h->z;
    } else {
        r->refused++;
        h->bad_states++;
        ev->type = SPA_HOST_BAD_STATE;
    }
    uint64_t strays_allowed = (uint64_t)h->given_up + STRAYS_PER_BAD_STATE * (uint64_t)h->limits.max_bad_states;
    if (h->bad_states > h->limits.max_bad_states || h->strays > strays_allowed)
        return fail(h, SPA_ERR_RANGE, spa_Code_BAD_STATE, "too many states that are of no use");
    return SPA_OK;
}

static enum spa_err take_fetch(struct spa_host *h)
{
    const spa_Fetch *f = &h->msg.head.fetch;
    if (f->kind > _spa_BlobKind_MAX || f->hash.size != SPA_HASH_BYTES)
        return fail(h, SPA_ERR_FORMAT, spa_Code_BAD_MESSAGE, "FETCH names no blob");
    return SPA_OK;
}

/* SPA_OK: an event; SPA_NONE: dealt with. */
static enum spa_err take(struct spa_host *h, uint64_t now_ms, struct spa_host_event *ev)
{
    enum spa_msg type = h->msg.type;
    *ev = (struct spa_host_event){ .msg = &h->msg };
    if (type == SPA_MSG_ERROR) {   /* the device's goodbye, which needs no answer */
        close_with(h, SPA_ERR_CLOSED);
        return SPA_ERR_CLOSED;
    }
    if (h->state == SPA_HOST_NEW && type != SPA_MSG_HELLO)
        return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "HELLO comes first");
    if (h->state != SPA_HOST_NEW && type == SPA_MSG_HELLO)
        return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "HELLO comes once");
    if (h->state == SPA_HOST_GREETED)
        return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "wait for WELCOME");

    switch (type) {
    case SPA_MSG_HELLO:    ev->type = SPA_HOST_HELLO; return take_hello(h);
    case SPA_MSG_BLOB:     ev->type = SPA_HOST_BLOB;  return take_blob(h);
    case SPA_MSG_LEARN:    ev->type = SPA_HOST_LEARN; return take_learn(h);
    case SPA_MSG_LOSS:     ev->type = SPA_HOST_LOSS;  return take_loss(h);
    case SPA_MSG_FETCH:    ev->type = SPA_HOST_FETCH; return take_fetch(h);
    case SPA_MSG_GENERATE: return take_generate(h, ev);
    case SPA_MSG_CANCEL:   return take_cancel(h, ev);
    case SPA_MSG_STATE:    return take_state(h, now_ms, ev);
    default:               return fail(h, SPA_ERR_ORDER, spa_Code_BAD_ORDER, "a message that only clouds send");
    }
}

/* ---- time ---- */

static struct spa_host_request *most_urgent(struct spa_host *h)
{
    struct spa_host_request *first = NULL;
    for (int i = 0; i < SPA_REQUESTS_MAX; i++) {
        struct spa_host_request *r = &h->requests[i];
        if (r->id && r->owed.n && (!first || r->deadline_ms < first->deadline_ms)) first = r;
    }
    return first;
}

uint64_t spa_host_deadline_ms(const struct spa_host *h)
{
    if (h->error) return UINT64_MAX;
    if (h->state == SPA_HOST_NEW) return h->hello_deadline_ms;
    uint64_t deadline = UINT64_MAX;
    for (int i = 0; i < SPA_REQUESTS_MAX; i++) {
        const struct spa_host_request *r = &h->requests[i];
        if (r->id && r->owed.n && r->deadline_ms < deadline) deadline = r->deadline_ms;
    }
    return deadline;
}

/* SPA_NONE: no deadline has passed. */
static enum spa_err clock_event(struct spa_host *h, uint64_t now_ms, struct spa_host_event *ev)
{
    if (now_ms < spa_host_deadline_ms(h)) return SPA_NONE;
    if (h->state == SPA_HOST_NEW) return fail(h, SPA_ERR_TIMEOUT, spa_Code_BAD_ORDER, "no HELLO in time");
    struct spa_host_request *r = most_urgent(h);
    uint32_t pos = r->owed.pos[0];
    settle(r, pos, now_ms);
    h->given_up++;
    r->late++;
    /* Some are late on a slow line; who says nothing at all for the cloud's own patience, over so many deadlines, holds a slot for nothing. */
    if (++h->silent > h->limits.max_bad_states && now_ms >= h->heard_ms + h->limits.answer_ms)
        return fail(h, SPA_ERR_TIMEOUT, spa_Code_LATE_ANSWER, "the device answers nothing that it is asked");
    if (r->late_policy == spa_Late_LATE_WAIT) r->late_policy = spa_Late_LATE_ERROR;
    *ev = (struct spa_host_event){ .type = SPA_HOST_LATE, .request = r->id, .pos = pos };
    return SPA_OK;
}

/* The clock comes first: how the bytes were cut must not decide whether a state is late. */
enum spa_err spa_host_feed(struct spa_host *h, const uint8_t *in, size_t len, size_t *used, uint64_t now_ms,
                           struct spa_host_event *ev)
{
    *used = 0;
    if (h->error) return h->error;
    enum spa_err err = clock_event(h, now_ms, ev);
    if (err != SPA_NONE) return err;
    while (*used < len) {
        size_t n;
        err = spa_reader_feed(&h->reader, in + *used, len - *used, &n, &h->msg);
        *used += n;
        if (err == SPA_NONE) break;
        if (err == SPA_ERR_LIMIT) return fail(h, err, spa_Code_TOO_LARGE, "a message larger than this cloud takes");
        if (err) return fail(h, err, spa_Code_BAD_MESSAGE, "a malformed message");
        err = take(h, now_ms, ev);
        if (err != SPA_NONE) return err;
    }
    return SPA_NONE;
}

/* ---- what the cloud sends ---- */

enum spa_err spa_host_welcome(struct spa_host *h, spa_Welcome *w, bool need_basis)
{
    if (h->error) return h->error;
    if (h->state != SPA_HOST_GREETED) return SPA_ERR_ORDER;
    assert(!need_basis || (h->has_plugin && h->shape.basis && !h->unfitted));
    if (h->has_plugin && (w->d != h->shape.d || w->n_layers != h->shape.n_layers))
        return fail(h, SPA_ERR_SHAPE, spa_Code_BAD_SHAPE, "the plugin belongs to a model of another width or depth");
    assert(!h->has_plugin || w->d <= h->z_cap);
    w->version = SPA_WIRE_VERSION;
    w->max_message = (uint32_t)h->reader.cap;
    w->max_requests = h->limits.max_requests;
    w->learn_window = h->limits.learn_window;
    if (w->learn_window == 0) h->limits.loss_window = 0;
    w->loss_window = h->limits.loss_window;
    w->need_basis = need_basis;
    w->pads = true;
    union spa_head head = { .welcome = *w };
    enum spa_err err = spa_wire_send(&h->sink, SPA_MSG_WELCOME, &head, NULL, 0);
    if (err) return err;
    h->d = w->d;
    h->n_vocab = w->n_vocab;
    h->n_anchors = w->n_anchors;
    h->state = need_basis ? SPA_HOST_NO_BASIS : SPA_HOST_READY;
    return SPA_OK;
}

void spa_host_basis_here(struct spa_host *h)
{
    h->unfitted = false;
    if (h->state == SPA_HOST_NO_BASIS) h->state = SPA_HOST_READY;
}

static enum spa_err ready(const struct spa_host *h)
{
    if (h->error) return h->error;
    return h->state == SPA_HOST_READY || h->state == SPA_HOST_NO_BASIS ? SPA_OK : SPA_ERR_ORDER;
}

_Static_assert(spa_Tokens_size >= spa_Taps_size && spa_Tokens_size >= spa_Features_size && spa_Tokens_size >= spa_Losses_size, "the largest head below");

static enum spa_err send_fitting(const struct spa_host *h, enum spa_msg type, const union spa_head *head,
                                 const uint8_t *bulk, size_t bulk_len)
{
    if (bulk_len > h->peer_max_message - (SPA_PREFIX_LEN + spa_Tokens_size)) return SPA_ERR_LIMIT;
    return spa_wire_send(&h->sink, type, head, bulk, bulk_len);
}

enum spa_err spa_host_ask(struct spa_host *h, uint32_t request, uint32_t epoch, uint32_t pos, uint32_t n_rows,
                          const uint32_t *asked, uint32_t n_asked, const uint8_t *bulk, size_t bulk_len, uint64_t now_ms)
{
    enum spa_err err = ready(h);
    if (err) return err;
    struct spa_host_request *r = spa_host_request(h, request);
    if (!r || epoch < r->epoch || (n_asked && r->owed.n > r->run_ahead && epoch == r->epoch)) return SPA_ERR_ORDER;
    assert(h->has_plugin && n_asked <= SPA_ASKED_MAX && n_rows && n_asked <= n_rows);
    assert(bulk_len == n_asked * spa_wire_row_bytes(&h->shape, h->tap_dtype)
                     + (n_rows - n_asked) * spa_wire_ctx_row_bytes(&h->shape, h->tap_dtype));

    union spa_head head = { .taps = { .request = request, .epoch = epoch, .pos = pos, .n_rows = n_rows,
                                      .asked_count = (pb_size_t)n_asked } };
    if (n_asked) memcpy(head.taps.asked, asked, n_asked * sizeof *asked);
    if (r->pad) spa_wire_pad(SPA_MSG_TAPS, &head, bulk_len);
    err = send_fitting(h, SPA_MSG_TAPS, &head, bulk, bulk_len);
    if (err) return err;
    if (epoch > r->epoch) stop_awaiting(h, r);   /* the old epoch's state is of no use */
    r->epoch = epoch;
    if (n_asked) {
        if (r->owed.n == 0) r->deadline_ms = now_ms + r->answer_ms;
        if (h->silent == 0) h->heard_ms = now_ms;
        spa_owed_add(&r->owed, pos + asked[n_asked - 1]);
        r->gated++;
    }
    return SPA_OK;
}

enum spa_err spa_host_back(struct spa_host *h, uint32_t request, uint32_t epoch, uint32_t n_unasked)
{
    enum spa_err err = ready(h);
    if (err) return err;
    struct spa_host_request *r = spa_host_request(h, request);
    if (!r || epoch <= r->epoch) return SPA_ERR_ORDER;
    assert(n_unasked <= r->gated);
    stop_awaiting(h, r);
    r->epoch = epoch;
    r->gated -= n_unasked;
    return SPA_OK;
}

enum spa_err spa_host_tokens(struct spa_host *h, uint32_t request, uint32_t index, const int32_t *ids, const uint8_t *by,
                             uint32_t n, const char *text, size_t text_len)
{
    enum spa_err err = ready(h);
    if (err) return err;
    const struct spa_host_request *r = spa_host_request(h, request);
    if (!r) return SPA_ERR_ORDER;
    union spa_head head = { .tokens = { .request = request, .index = index } };
    assert(n <= sizeof head.tokens.ids / sizeof *head.tokens.ids);
    head.tokens.ids_count = head.tokens.by_count = (pb_size_t)n;
    for (uint32_t i = 0; i < n; i++) {
        head.tokens.ids[i] = ids[i];
        head.tokens.by[i] = (spa_Speaker)by[i];
    }
    if (r->pad) spa_wire_pad(SPA_MSG_TOKENS, &head, text_len);
    return send_fitting(h, SPA_MSG_TOKENS, &head, (const uint8_t *)text, text_len);
}

enum spa_err spa_host_logprobs(struct spa_host *h, uint32_t request, uint32_t index, uint32_t n, const uint8_t *bulk, size_t bulk_len)
{
    enum spa_err err = ready(h);
    if (err) return err;
    if (!spa_host_request(h, request)) return SPA_ERR_ORDER;
    union spa_head head = { .logprobs = { .request = request, .index = index, .n = n } };
    return send_fitting(h, SPA_MSG_LOGPROBS, &head, bulk, bulk_len);
}

enum spa_err spa_host_done(struct spa_host *h, spa_Done *d)
{
    enum spa_err err = ready(h);
    if (err) return err;
    struct spa_host_request *r = spa_host_request(h, d->request);
    if (!r) return SPA_ERR_ORDER;
    d->gated = r->gated;
    d->late = r->late;
    d->refused = r->refused;
    union spa_head head = { .done = *d };
    if (r->pad) spa_wire_pad(SPA_MSG_DONE, &head, 0);
    err = spa_wire_send(&h->sink, SPA_MSG_DONE, &head, NULL, 0);
    if (err) return err;
    stop_awaiting(h, r);
    r->id = 0;
    return SPA_OK;
}

static enum spa_err end_with(struct spa_host *h, spa_Error e, const char *sentence)
{
    struct spa_host_request *r = spa_host_request(h, e.request);
    if (!r) return SPA_ERR_ORDER;
    enum spa_err err = send_error(h, e, sentence);
    if (err) return err;
    stop_awaiting(h, r);
    r->id = 0;
    return SPA_OK;
}

enum spa_err spa_host_error(struct spa_host *h, uint32_t request, spa_Code code, const char *sentence)
{
    if (h->error) return h->error;
    if (request == 0) {
        enum spa_err err = send_error(h, (spa_Error){ .code = code }, sentence);
        close_with(h, SPA_ERR_CLOSED);
        return err;
    }
    return end_with(h, (spa_Error){ .request = request, .code = code }, sentence);
}

enum spa_err spa_host_busy(struct spa_host *h, uint32_t request, uint32_t retry_ms, const char *sentence)
{
    return h->error ? h->error : end_with(h, (spa_Error){ .request = request, .code = spa_Code_BUSY, .retry_ms = retry_ms }, sentence);
}

/* One row fewer is open when its answer has left. */
static enum spa_err row_answered(struct spa_host *h, enum spa_err sent)
{
    if (sent == SPA_OK) h->learn_open--;
    return sent;
}

enum spa_err spa_host_row_error(struct spa_host *h, uint32_t row, spa_Code code, const char *sentence)
{
    enum spa_err err = ready(h);
    if (err) return err;
    if (h->learn_open == 0) return SPA_ERR_ORDER;
    return row_answered(h, send_error(h, (spa_Error){ .row = row, .is_row = true, .code = code }, sentence));
}

enum spa_err spa_host_features(struct spa_host *h, const spa_Features *f, const uint8_t *bulk, size_t bulk_len)
{
    enum spa_err err = ready(h);
    if (err) return err;
    if (h->learn_open == 0) return SPA_ERR_ORDER;
    union spa_head head = { .features = *f };
    return row_answered(h, send_fitting(h, SPA_MSG_FEATURES, &head, bulk, bulk_len));
}

/* One LOSS fewer is open when its answer has left. */
static enum spa_err loss_answered(struct spa_host *h, enum spa_err sent)
{
    if (sent == SPA_OK) h->losses_open--;
    return sent;
}

enum spa_err spa_host_losses(struct spa_host *h, const spa_Losses *l, const uint8_t *bulk, size_t bulk_len)
{
    enum spa_err err = ready(h);
    if (err) return err;
    if (h->losses_open == 0) return SPA_ERR_ORDER;
    assert(bulk_len == spa_wire_losses_bytes(h->d, l->n, l->gradient, l->top));
    union spa_head head = { .losses = *l };
    return loss_answered(h, send_fitting(h, SPA_MSG_LOSSES, &head, bulk, bulk_len));
}

enum spa_err spa_host_loss_error(struct spa_host *h, uint32_t id, spa_Code code, const char *sentence)
{
    enum spa_err err = ready(h);
    if (err) return err;
    if (h->losses_open == 0) return SPA_ERR_ORDER;
    return loss_answered(h, send_error(h, (spa_Error){ .row = id, .is_loss = true, .code = code }, sentence));
}

enum spa_err spa_host_fitted(struct spa_host *h, const spa_Fitted *f)
{
    enum spa_err err = ready(h);
    if (err) return err;
    union spa_head head = { .fitted = *f };
    return spa_wire_send(&h->sink, SPA_MSG_FITTED, &head, NULL, 0);
}

enum spa_err spa_host_blob(struct spa_host *h, const spa_Blob *b, const uint8_t *bytes, size_t len)
{
    enum spa_err err = ready(h);
    if (err) return err;
    assert(len <= SPA_BLOB_PIECE);
    union spa_head head = { .blob = *b };
    return spa_wire_send(&h->sink, SPA_MSG_BLOB, &head, bytes, len);
}
