/* session.c - the device's end of the conversation.
 *
 * In: bytes from the cloud, the time, calls of the device. Out: messages to the sink, events. Every message is checked
 * against the conversation before it becomes an event; running the ladder on taps is the caller's business. */
#include "session.h"
#include "basis.h"
#include "logprobs.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void spa_session_init(struct spa_session *s, struct spa_sink sink, uint8_t *buf, size_t cap)
{
    *s = (struct spa_session){ .sink = sink, .next_request = 1 };
    spa_reader_init(&s->reader, buf, cap < SPA_MESSAGE_MAX ? cap : SPA_MESSAGE_MAX);
}

static struct spa_session_request *find(struct spa_session *s, uint32_t id)
{
    for (int i = 0; id && i < SPA_REQUESTS_MAX; i++)
        if (s->requests[i].id == id) return &s->requests[i];
    return NULL;
}

/* Was this id ever ours? Ids count up. */
static bool was_opened(const struct spa_session *s, uint32_t id) { return id && id < s->next_request; }

/* ---- ends ---- */

static spa_Code code_of(enum spa_err err)
{
    switch (err) {
    case SPA_ERR_LIMIT:   return spa_Code_TOO_LARGE;
    case SPA_ERR_ORDER:   return spa_Code_BAD_ORDER;
    case SPA_ERR_TIMEOUT: return spa_Code_BAD_ORDER;
    case SPA_ERR_SHAPE:   return spa_Code_BAD_SHAPE;
    case SPA_ERR_VERSION: return spa_Code_BAD_VERSION;
    default:              return spa_Code_BAD_MESSAGE;
    }
}

static enum spa_err close_with(struct spa_session *s, enum spa_err err)
{
    s->state = SPA_SESSION_CLOSED;
    s->error = err;
    return err;
}

/* The cloud broke the rules: say so, once. Whether the goodbye still leaves does not matter any more. */
static enum spa_err fail(struct spa_session *s, enum spa_err err, const char *sentence)
{
    union spa_head head = { .error = { .code = code_of(err) } };
    (void)spa_wire_send(&s->sink, SPA_MSG_ERROR, &head, (const uint8_t *)sentence, strlen(sentence));
    return close_with(s, err);
}

/* ---- HELLO and WELCOME ---- */

enum spa_err spa_session_hello(struct spa_session *s, const char *client, const spa_Plugin *plugin, const float *gate,
                               uint64_t now_ms, uint64_t greet_ms)
{
    if (s->error) return s->error;
    if (s->state != SPA_SESSION_NEW) return SPA_ERR_ORDER;

    union spa_head head = { .hello = { .version = SPA_WIRE_VERSION, .max_message = (uint32_t)s->reader.cap } };
    size_t client_len = strlen(client);
    assert(client_len < sizeof head.hello.client);
    memcpy(head.hello.client, client, client_len);
    size_t gate_bytes = 0;
    if (plugin) {
        enum spa_err err = spa_wire_shape_from_plugin(plugin, &s->shape);
        if (err) return err;
        assert(plugin->tap_dtype <= _spa_Dtype_MAX && plugin->state_dtype <= _spa_Dtype_MAX);
        head.hello.has_plugin = true;
        head.hello.plugin = *plugin;
        head.hello.plugin.has_gate = gate != NULL;
        gate_bytes = gate ? spa_wire_gate_bytes(&s->shape, plugin->gate_taps) : 0;
        s->tap_dtype = (enum spa_dtype)plugin->tap_dtype;
        s->state_dtype = (enum spa_dtype)plugin->state_dtype;
    }
    enum spa_err err = spa_wire_send(&s->sink, SPA_MSG_HELLO, &head, (const uint8_t *)gate, gate_bytes);
    if (err) return err;
    s->has_plugin = plugin != NULL;
    s->unfitted = plugin && plugin->basis && plugin->basis_hash.size == 0;
    s->generic = s->unfitted && plugin->generic;
    s->state = SPA_SESSION_GREETING;
    s->greet_deadline_ms = greet_ms ? now_ms + greet_ms : 0;
    return SPA_OK;
}

static bool hash_or_none(pb_size_t size) { return size == 0 || size == SPA_HASH_BYTES; }

static enum spa_err take_welcome(struct spa_session *s)
{
    const spa_Welcome *w = &s->msg.head.welcome;
    if (s->state != SPA_SESSION_GREETING) return fail(s, SPA_ERR_ORDER, "WELCOME was not expected");
    if (w->version != SPA_WIRE_VERSION) return fail(s, SPA_ERR_VERSION, "this device speaks version 1 only");
    if (s->has_plugin && (w->d != s->shape.d || w->n_layers != s->shape.n_layers))
        return fail(s, SPA_ERR_SHAPE, "the plugin belongs to a model of another width or depth");
    if (w->d == 0 || w->d > SPA_MAX_WIDTH || w->n_layers == 0 || w->n_layers > SPA_MAX_LAYERS || w->n_vocab == 0
        || w->n_vocab > INT32_MAX || w->n_ctx == 0 || w->max_requests == 0 || !isfinite(w->logit_scale)
        || !isfinite(w->softcap) || !hash_or_none(w->model_hash.size) || !hash_or_none(w->head_hash.size))
        return fail(s, SPA_ERR_FORMAT, "WELCOME describes no possible model");
    if (w->max_message < SPA_MESSAGE_MIN || w->max_message > SPA_MESSAGE_MAX)
        return fail(s, SPA_ERR_LIMIT, "WELCOME announces a message size that is not allowed");
    if (w->need_basis && (!s->has_plugin || !s->shape.basis || s->unfitted))
        return fail(s, SPA_ERR_ORDER, "WELCOME asks for a basis that HELLO did not name");
    s->welcome = *w;
    s->state = SPA_SESSION_READY;
    return SPA_OK;
}

/* ---- messages of a request ---- */

/* Taps of a request that is gone, cancelled or has a newer epoch are of no use: SPA_NONE. */
static enum spa_err take_taps(struct spa_session *s)
{
    const spa_Taps *t = &s->msg.head.taps;
    if (!s->has_plugin) return fail(s, SPA_ERR_ORDER, "TAPS for a device without plugin");
    if (!was_opened(s, t->request)) return fail(s, SPA_ERR_ORDER, "TAPS of a request that never was");
    struct spa_session_request *r = find(s, t->request);
    if (r && r->cancelled && t->epoch > r->epoch) {   /* rows that came before CANCEL were those of a wrong guess */
        r->epoch = t->epoch;
        if (t->pos < r->back_to) r->back_to = t->pos;
    }
    if (!r || r->cancelled || t->epoch < r->epoch) return SPA_NONE;

    if (t->n_rows == 0 || t->n_rows > s->welcome.n_ctx || t->pos > s->welcome.n_ctx - t->n_rows)
        return fail(s, SPA_ERR_LIMIT, "TAPS beyond the context");
    for (pb_size_t i = 0; i < t->asked_count; i++)
        if (t->asked[i] >= t->n_rows || (i && t->asked[i] <= t->asked[i - 1]))
            return fail(s, SPA_ERR_FORMAT, "TAPS names its asked rows out of order or out of range");

    uint32_t n_context = t->n_rows - t->asked_count;
    if (s->shape.n_ctx_taps) {
        bool back = t->epoch > r->epoch && t->pos <= r->next_pos;
        bool goes_on = !r->begun && t->pos >= r->after_from && t->pos <= r->after_to;
        if (t->pos != r->next_pos && !back && !goes_on) return fail(s, SPA_ERR_ORDER, "TAPS leave a gap in the positions");
    } else {
        if (n_context) return fail(s, SPA_ERR_SHAPE, "context rows for a plugin without context");
        if (t->epoch == r->epoch && t->pos < r->next_pos) return fail(s, SPA_ERR_ORDER, "TAPS go back within an epoch");
    }
    uint64_t bytes = (uint64_t)t->asked_count * spa_wire_row_bytes(&s->shape, s->tap_dtype)
                   + (uint64_t)n_context * spa_wire_ctx_row_bytes(&s->shape, s->tap_dtype);
    if (s->msg.bulk_len != bytes) return fail(s, SPA_ERR_SHAPE, "TAPS of wrong length");

    if (t->epoch > r->epoch) r->owed.n = 0;
    r->epoch = t->epoch;
    r->begun = true;
    r->next_pos = t->pos + t->n_rows;
    if (t->asked_count) {
        uint32_t pos = t->pos + t->asked[t->asked_count - 1];
        if (r->owed.n == SPA_ASKED_MAX) spa_owed_take(&r->owed, r->owed.pos[0]);   /* the cloud has given it up */
        spa_owed_add(&r->owed, pos);
    }
    return SPA_OK;
}

static enum spa_err take_tokens(struct spa_session *s)
{
    const spa_Tokens *t = &s->msg.head.tokens;
    struct spa_session_request *r = find(s, t->request);
    if (!r) return fail(s, SPA_ERR_ORDER, "TOKENS of a request that is not open");
    if (t->index != r->next_index) return fail(s, SPA_ERR_ORDER, "TOKENS out of order");
    if (t->ids_count != t->by_count) return fail(s, SPA_ERR_FORMAT, "TOKENS without a speaker for each");
    for (pb_size_t i = 0; i < t->ids_count; i++)
        if (t->ids[i] < 0 || (uint32_t)t->ids[i] >= s->welcome.n_vocab || t->by[i] > _spa_Speaker_MAX)
            return fail(s, SPA_ERR_FORMAT, "TOKENS with an unknown token or speaker");
    r->next_index += t->ids_count;
    return SPA_OK;
}

static enum spa_err take_done(struct spa_session *s, struct spa_session_event *ev)
{
    struct spa_session_request *r = find(s, s->msg.head.done.request);
    if (!r) return fail(s, SPA_ERR_ORDER, "DONE of a request that is not open");
    if (s->msg.head.done.finish > _spa_Finish_MAX) return fail(s, SPA_ERR_FORMAT, "DONE for an unknown reason");
    if (s->msg.head.done.finish == spa_Finish_FINISH_CANCELLED && !r->cancelled) return fail(s, SPA_ERR_ORDER, "DONE CANCELLED that was not asked for");
    ev->back_to = r->back_to;
    r->id = 0;
    return SPA_OK;
}

static enum spa_err take_logprobs(struct spa_session *s)
{
    const spa_Logprobs *l = &s->msg.head.logprobs;
    struct spa_session_request *r = find(s, l->request);
    if (!r) return fail(s, SPA_ERR_ORDER, "LOGPROBS of a request that is not open");
    if (l->index != r->next_index || !r->logprobs) return fail(s, SPA_ERR_ORDER, "LOGPROBS that were not asked for");
    struct spa_logprob one;
    uint32_t n = 0;
    enum spa_err err;
    for (size_t at = 0; (err = spa_logprob_next(s->msg.bulk, s->msg.bulk_len, &at, &one)) == SPA_OK; n++)
        if (one.id < 0 || (uint32_t)one.id >= s->welcome.n_vocab) return fail(s, SPA_ERR_FORMAT, "LOGPROBS with an unknown token");
    if (err != SPA_NONE || n != l->n || n == 0 || n > r->logprobs) return fail(s, SPA_ERR_FORMAT, "LOGPROBS of wrong length");
    return SPA_OK;
}

/* The open LOSS of this id is open no more. NULL: there was none. */
static const spa_Loss *loss_answered(struct spa_session *s, uint32_t id)
{
    for (size_t i = 0; i < SPA_LOSSES_MAX; i++)
        if (s->losses[i].open && s->losses[i].asked.id == id) {
            s->losses[i].open = false;
            s->losses_open--;
            return &s->losses[i].asked;
        }
    return NULL;
}

static enum spa_err take_error(struct spa_session *s)
{
    const spa_Error *e = &s->msg.head.error;
    if (e->is_loss) {
        if (e->request || e->is_row || !loss_answered(s, e->row)) return fail(s, SPA_ERR_ORDER, "ERROR of a LOSS that is not open");
    } else if (e->is_row) {
        if (e->request || s->learn_open == 0) return fail(s, SPA_ERR_ORDER, "ERROR of a row that is not open");
        s->learn_open--;
    } else if (e->request) {
        struct spa_session_request *r = find(s, e->request);
        if (!r) return fail(s, SPA_ERR_ORDER, "ERROR of a request that is not open");
        r->id = 0;
    } else {
        close_with(s, SPA_ERR_CLOSED);   /* an event all the same: the owner wants to know why */
    }
    return SPA_OK;
}

/* ---- messages of learning, and blobs ---- */

/* The state after the final norm keeps at least half precision: the gate and the loss are computed from it. */
static enum spa_dtype y_fin_dtype(const struct spa_session *s) { return s->tap_dtype == SPA_F32 ? SPA_F32 : SPA_F16; }

enum spa_err spa_features_check(const struct spa_session *s, const spa_Features *f, const uint8_t *bulk, size_t bulk_len, const char **what)
{
    if (f->n_tokens > s->welcome.n_ctx || f->n_ctx > f->n_tokens || f->n_loss > f->n_tokens)
        return *what = "FEATURES with more rows than tokens", SPA_ERR_LIMIT;
    if (f->n_ctx && !s->shape.n_ctx_taps) return *what = "context rows for a plugin without context", SPA_ERR_SHAPE;
    uint64_t bytes = (uint64_t)f->n_loss * (8 + spa_wire_row_bytes(&s->shape, s->tap_dtype)
                                              + spa_dtype_bytes(y_fin_dtype(s), 1, s->shape.d))
                   + (uint64_t)f->n_ctx * spa_wire_ctx_row_bytes(&s->shape, s->tap_dtype);
    if (bulk_len != bytes) return *what = "FEATURES of wrong length", SPA_ERR_SHAPE;

    uint32_t end = s->shape.n_ctx_taps ? f->n_ctx : f->n_tokens;
    for (uint32_t i = 0, last = 0; i < f->n_loss; i++) {
        uint32_t pos, target;
        memcpy(&pos, bulk + 4 * (size_t)i, 4);
        memcpy(&target, bulk + 4 * ((size_t)f->n_loss + i), 4);
        if (pos >= end || (i && pos <= last)) return *what = "FEATURES with positions out of order", SPA_ERR_FORMAT;
        if (target >= s->welcome.n_vocab) return *what = "FEATURES with an unknown token", SPA_ERR_FORMAT;
        last = pos;
    }
    return SPA_OK;
}

static enum spa_err take_features(struct spa_session *s)
{
    const char *what;
    if (s->learn_open == 0) return fail(s, SPA_ERR_ORDER, "FEATURES of a row that is not open");
    enum spa_err err = spa_features_check(s, &s->msg.head.features, s->msg.bulk, s->msg.bulk_len, &what);
    if (err) return fail(s, err, what);
    s->learn_open--;
    return SPA_OK;
}

static enum spa_err take_losses(struct spa_session *s)
{
    const spa_Losses *l = &s->msg.head.losses;
    const spa_Loss *asked = loss_answered(s, l->id);
    if (!asked) return fail(s, SPA_ERR_ORDER, "LOSSES that were not asked for");
    if (l->n != asked->n || l->gradient != asked->gradient || l->top != asked->top
        || s->msg.bulk_len != spa_wire_losses_bytes(s->welcome.d, l->n, l->gradient, l->top))
        return fail(s, SPA_ERR_SHAPE, "LOSSES of wrong length");
    const uint8_t *top = s->msg.bulk + s->msg.bulk_len - 4 * (size_t)l->n;
    for (uint32_t i = 0; l->top && i < l->n; i++) {
        int32_t token;
        memcpy(&token, top + 4 * (size_t)i, 4);
        if (token < -1 || (token >= 0 && (uint32_t)token >= s->welcome.n_vocab))
            return fail(s, SPA_ERR_FORMAT, "LOSSES with an unknown token");
    }
    return SPA_OK;
}

static enum spa_err take_fitted(struct spa_session *s)
{
    const spa_Fitted *f = &s->msg.head.fitted;
    if (!s->unfitted) return fail(s, SPA_ERR_ORDER, "FITTED for a plugin that wants no basis");
    if (f->hash.size != SPA_HASH_BYTES) return fail(s, SPA_ERR_FORMAT, "FITTED without a hash");
    if (f->total != (uint64_t)spa_basis_floats(&s->shape) * 4) return fail(s, SPA_ERR_SHAPE, "a basis of wrong length");
    s->unfitted = false;
    return SPA_OK;
}

static enum spa_err take_blob(struct spa_session *s)
{
    const spa_Blob *b = &s->msg.head.blob;
    if (s->fetch_open == 0) return fail(s, SPA_ERR_ORDER, "BLOB that was not fetched");
    if (b->kind > _spa_BlobKind_MAX || b->hash.size != SPA_HASH_BYTES) return fail(s, SPA_ERR_FORMAT, "BLOB without a name");
    if (s->msg.bulk_len > SPA_BLOB_PIECE || b->offset > b->total || s->msg.bulk_len > b->total - b->offset)
        return fail(s, SPA_ERR_LIMIT, "BLOB past its end");
    s->fetch_open--;
    return SPA_OK;
}

/* SPA_OK: an event; SPA_NONE: swallowed. */
static enum spa_err take(struct spa_session *s, struct spa_session_event *ev)
{
    enum spa_err err;
    *ev = (struct spa_session_event){ .type = s->msg.type, .msg = &s->msg, .back_to = UINT32_MAX };
    if (s->state != SPA_SESSION_READY && s->msg.type != SPA_MSG_WELCOME && s->msg.type != SPA_MSG_ERROR)
        return fail(s, SPA_ERR_ORDER, "a message before WELCOME");
    switch (s->msg.type) {
    case SPA_MSG_WELCOME:  err = take_welcome(s); break;
    case SPA_MSG_BLOB:     err = take_blob(s); break;
    case SPA_MSG_TAPS:     ev->request = s->msg.head.taps.request;   err = take_taps(s); break;
    case SPA_MSG_TOKENS:   ev->request = s->msg.head.tokens.request; err = take_tokens(s); break;
    case SPA_MSG_DONE:     ev->request = s->msg.head.done.request;   err = take_done(s, ev); break;
    case SPA_MSG_ERROR:    ev->request = s->msg.head.error.request;  err = take_error(s); break;
    case SPA_MSG_FITTED:   err = take_fitted(s); break;
    case SPA_MSG_FEATURES: err = take_features(s); break;
    case SPA_MSG_LOSSES:   err = take_losses(s); break;
    case SPA_MSG_LOGPROBS: ev->request = s->msg.head.logprobs.request; err = take_logprobs(s); break;
    default:               err = fail(s, SPA_ERR_ORDER, "a message that only devices send"); break;
    }
    return err;
}

/* The clock comes first, so that how the bytes were cut cannot decide between a WELCOME and a timeout. */
enum spa_err spa_session_feed(struct spa_session *s, const uint8_t *in, size_t len, size_t *used, uint64_t now_ms,
                              struct spa_session_event *ev)
{
    *used = 0;
    if (s->error) return s->error;
    if (now_ms >= spa_session_deadline_ms(s)) return fail(s, SPA_ERR_TIMEOUT, "no WELCOME in time");
    while (*used < len) {
        size_t n;
        enum spa_err err = spa_reader_feed(&s->reader, in + *used, len - *used, &n, &s->msg);
        *used += n;
        if (err == SPA_NONE) break;
        if (err) return fail(s, err, err == SPA_ERR_LIMIT ? "a message larger than announced" : "a malformed message");
        if (s->state == SPA_SESSION_NEW) return fail(s, SPA_ERR_ORDER, "a message before HELLO");
        err = take(s, ev);
        if (err != SPA_NONE) return err;
    }
    return SPA_NONE;
}

uint64_t spa_session_deadline_ms(const struct spa_session *s)
{
    return s->state == SPA_SESSION_GREETING && s->greet_deadline_ms ? s->greet_deadline_ms : UINT64_MAX;
}

/* ---- what the device sends ---- */

static enum spa_err ready(const struct spa_session *s)
{
    if (s->error) return s->error;
    return s->state == SPA_SESSION_READY ? SPA_OK : SPA_ERR_ORDER;
}

_Static_assert(spa_State_size >= spa_Learn_size && spa_State_size >= spa_Loss_size && spa_State_size >= spa_Generate_size, "the largest head below");

/* Sends what the cloud has room for. */
static enum spa_err send_fitting(const struct spa_session *s, enum spa_msg type, const union spa_head *head,
                                 const uint8_t *bulk, size_t bulk_len)
{
    if (bulk_len > s->welcome.max_message - (SPA_PREFIX_LEN + spa_State_size)) return SPA_ERR_LIMIT;
    return spa_wire_send(&s->sink, type, head, bulk, bulk_len);
}

static uint32_t confirmed_tokens(const struct spa_part *parts, size_t n)
{
    uint32_t tokens = 0;
    for (size_t i = 0; i < n; i++)
        if (parts[i].kind == SPA_PART_CONFIRMED) tokens += parts[i].len / 4;
    return tokens;
}

enum spa_err spa_session_generate(struct spa_session *s, spa_Generate *g, const struct spa_part *parts, size_t n,
                                  uint8_t *work)
{
    enum spa_err err = ready(s);
    if (err) return err;
    if (s->unfitted && g->gate != spa_GateMode_GATE_NEVER) return SPA_ERR_ORDER;
    if (g->after && (!was_opened(s, g->after) || find(s, g->after) || g->after_from > g->after_to)) return SPA_ERR_ORDER;
    if (g->pad && !s->welcome.pads) return SPA_ERR_VERSION;
    if (s->next_request == UINT32_MAX) return SPA_ERR_LIMIT;   /* ids are used up: a new connection, please */

    struct spa_session_request *slot = NULL;
    uint32_t open = 0;
    for (int i = 0; i < SPA_REQUESTS_MAX; i++) {
        if (s->requests[i].id) open++;
        else if (!slot) slot = &s->requests[i];
    }
    if (!slot || open >= s->welcome.max_requests) return SPA_ERR_NOMEM;

    size_t len = spa_parts_len(parts, n);
    if (len > s->welcome.max_message) return SPA_ERR_LIMIT;   /* before work is written */
    spa_parts_write(parts, n, work);
    g->request = s->next_request;
    union spa_head head = { .generate = *g };
    err = send_fitting(s, SPA_MSG_GENERATE, &head, work, len);
    if (err) return err;
    s->next_request++;
    s->pads |= g->pad;
    *slot = (struct spa_session_request){ .id = g->request, .next_index = confirmed_tokens(parts, n), .pad = g->pad, .back_to = UINT32_MAX };
    if (g->after) {
        slot->after_from = g->after_from;
        slot->after_to = g->after_to;
    }
    slot->logprobs = g->logprobs;
    return SPA_OK;
}

enum spa_err spa_session_cancel(struct spa_session *s, uint32_t request)
{
    enum spa_err err = ready(s);
    if (err) return err;
    struct spa_session_request *r = find(s, request);
    if (!r || r->cancelled) return SPA_OK;
    union spa_head head = { .cancel = { .request = request } };
    err = spa_wire_send(&s->sink, SPA_MSG_CANCEL, &head, NULL, 0);
    if (err) return err;
    r->cancelled = true;
    r->owed.n = 0;
    return SPA_OK;
}

bool spa_taps_row_asked(const struct spa_message *taps, uint32_t i)
{
    const spa_Taps *t = &taps->head.taps;
    for (pb_size_t a = 0; a < t->asked_count; a++)
        if (t->asked[a] == i) return true;
    return false;
}

enum spa_err spa_taps_row(const struct spa_session *s, const struct spa_message *taps, uint32_t i, float *x)
{
    const spa_Taps *t = &taps->head.taps;
    assert(taps->type == SPA_MSG_TAPS && i < t->n_rows);
    uint32_t full = 0;   /* asked rows before row i */
    while (full < t->asked_count && t->asked[full] < i) full++;
    const uint8_t *row = taps->bulk + full * spa_wire_row_bytes(&s->shape, s->tap_dtype)
                       + (i - full) * spa_wire_ctx_row_bytes(&s->shape, s->tap_dtype);
    size_t groups = spa_taps_row_asked(taps, i) ? s->shape.n_taps : s->shape.n_ctx_taps;
    return spa_dtype_unpack(s->tap_dtype, row, groups, s->shape.k, x);
}

enum spa_err spa_session_answer(struct spa_session *s, uint32_t request, uint32_t epoch, uint32_t pos, const float *z,
                                uint8_t *work)
{
    enum spa_err err = ready(s);
    if (err) return err;
    struct spa_session_request *r = find(s, request);
    if (!r || r->epoch != epoch || !spa_owed_has(&r->owed, pos)) return SPA_ERR_ORDER;
    spa_wire_state_pack(&s->shape, s->state_dtype, z, work);
    union spa_head head = { .state = s->draft };
    if (r->pad) head.state = (spa_State){ 0 };
    head.state.request = request;
    head.state.epoch = epoch;
    head.state.pos = pos;
    head.state.n = 1;
    if (r->pad) spa_wire_pad(SPA_MSG_STATE, &head, 0);
    err = send_fitting(s, SPA_MSG_STATE, &head, work, spa_wire_state_bytes(&s->shape, s->state_dtype));
    if (err) return err;
    spa_owed_take(&r->owed, pos);
    s->draft.draft_count = 0;
    s->draft.draft_index = 0;
    return SPA_OK;
}

void spa_session_draft(struct spa_session *s, uint32_t index, const int32_t *draft, uint32_t n)
{
    assert(n <= SPA_DRAFT_MAX);
    s->draft.draft_index = n ? index : 0;
    s->draft.draft_count = (pb_size_t)n;
    for (uint32_t i = 0; i < n; i++) s->draft.draft[i] = (uint32_t)(draft[i] + 1);
}

enum spa_err spa_session_learn(struct spa_session *s, const spa_Learn *l, const struct spa_part *parts, size_t n,
                               uint8_t *work)
{
    enum spa_err err = ready(s);
    if (err) return err;
    if (!s->has_plugin || l->fit != s->unfitted || (l->fit && s->generic)) return SPA_ERR_ORDER;
    if (l->anchor && (l->fit || n || l->row >= s->welcome.n_anchors)) return SPA_ERR_ORDER;
    if (s->learn_open >= s->welcome.learn_window) return SPA_ERR_NOMEM;
    size_t len = spa_parts_len(parts, n);
    if (len > s->welcome.max_message) return SPA_ERR_LIMIT;
    spa_parts_write(parts, n, work);
    union spa_head head = { .learn = *l };
    err = send_fitting(s, SPA_MSG_LEARN, &head, work, len);
    if (err) return err;
    s->learn_open++;
    return SPA_OK;
}

enum spa_err spa_features_unpack(const struct spa_session *s, const struct spa_message *features, uint32_t *pos,
                                 int32_t *target, float *x_ctx, float *x, float *y_fin)
{
    assert(features->type == SPA_MSG_FEATURES);
    const spa_Features *f = &features->head.features;
    const struct spa_shape *shape = &s->shape;
    const uint8_t *at = features->bulk;
    enum spa_err err = SPA_OK, e;
    if (f->n_loss) {
        memcpy(pos, at, 4 * (size_t)f->n_loss);
        at += 4 * (size_t)f->n_loss;
        memcpy(target, at, 4 * (size_t)f->n_loss);
        at += 4 * (size_t)f->n_loss;
    }
    if (f->n_ctx) {
        e = spa_dtype_unpack(s->tap_dtype, at, (size_t)f->n_ctx * shape->n_ctx_taps, shape->k, x_ctx);
        if (e) err = e;
        at += f->n_ctx * spa_wire_ctx_row_bytes(shape, s->tap_dtype);
    }
    if (f->n_loss) {
        e = spa_dtype_unpack(s->tap_dtype, at, (size_t)f->n_loss * shape->n_taps, shape->k, x);
        if (e) err = e;
        at += f->n_loss * spa_wire_row_bytes(shape, s->tap_dtype);
        e = spa_dtype_unpack(y_fin_dtype(s), at, f->n_loss, shape->d, y_fin);
        if (e) err = e;
    }
    return err;
}

uint32_t spa_session_loss_max(const struct spa_session *s)
{
    uint64_t up = (s->welcome.max_message - (SPA_PREFIX_LEN + spa_State_size)) / spa_wire_loss_bytes(s->welcome.d, 1);
    uint64_t down = (s->reader.cap - (SPA_PREFIX_LEN + SPA_HEAD_MAX)) / spa_wire_losses_bytes(s->welcome.d, 1, true, true);
    return (uint32_t)(up < down ? up : down);
}

enum spa_err spa_session_loss(struct spa_session *s, const spa_Loss *l, const int32_t *target, const float *states, uint8_t *work)
{
    enum spa_err err = ready(s);
    if (err) return err;
    uint32_t window = s->welcome.loss_window < SPA_LOSSES_MAX ? s->welcome.loss_window : SPA_LOSSES_MAX;
    if (s->losses_open >= window) return SPA_ERR_NOMEM;
    assert(l->n > 0);
    if (l->n > spa_session_loss_max(s)) return SPA_ERR_LIMIT;
    size_t n_numbers = (size_t)l->n * s->welcome.d, slot = SPA_LOSSES_MAX;
    for (size_t i = 0; i < SPA_LOSSES_MAX; i++) {
        if (!s->losses[i].open) slot = i;
        else if (s->losses[i].asked.id == l->id) return SPA_ERR_ORDER;
    }
    for (size_t i = 0; i < n_numbers; i++)
        if (!isfinite(states[i])) return SPA_ERR_RANGE;
    memcpy(work, target, 4 * (size_t)l->n);
    memcpy(work + 4 * (size_t)l->n, states, 4 * n_numbers);
    union spa_head head = { .loss = *l };
    err = send_fitting(s, SPA_MSG_LOSS, &head, work, (size_t)spa_wire_loss_bytes(s->welcome.d, l->n));
    if (err) return err;
    s->losses[slot].open = true;
    s->losses[slot].asked = *l;
    s->losses_open++;
    return SPA_OK;
}

void spa_losses_unpack(const struct spa_session *s, const struct spa_message *losses, float *loss, float *dstates, int32_t *top)
{
    assert(losses->type == SPA_MSG_LOSSES);
    const spa_Losses *l = &losses->head.losses;
    const uint8_t *at = losses->bulk;
    memcpy(loss, at, 4 * (size_t)l->n);
    at += 4 * (size_t)l->n;
    if (l->gradient) {
        memcpy(dstates, at, 4 * (size_t)l->n * s->welcome.d);
        at += 4 * (size_t)l->n * s->welcome.d;
    }
    if (l->top) memcpy(top, at, 4 * (size_t)l->n);
}

enum spa_err spa_session_fetch(struct spa_session *s, spa_BlobKind kind, const uint8_t hash[SPA_HASH_BYTES], uint64_t offset)
{
    enum spa_err err = ready(s);
    if (err) return err;
    union spa_head head = { .fetch = { .kind = kind, .offset = offset, .hash.size = SPA_HASH_BYTES } };
    memcpy(head.fetch.hash.bytes, hash, SPA_HASH_BYTES);
    err = spa_wire_send(&s->sink, SPA_MSG_FETCH, &head, NULL, 0);
    if (err) return err;
    s->fetch_open++;
    return SPA_OK;
}

enum spa_err spa_session_send_basis(struct spa_session *s, const uint8_t hash[SPA_HASH_BYTES], const uint8_t *bytes,
                                    size_t len)
{
    enum spa_err err = ready(s);
    if (err) return err;
    if (!s->welcome.need_basis) return SPA_ERR_ORDER;
    union spa_head head = { .blob = { .kind = spa_BlobKind_BLOB_BASIS, .total = len, .hash.size = SPA_HASH_BYTES } };
    memcpy(head.blob.hash.bytes, hash, SPA_HASH_BYTES);
    for (size_t at = 0; at < len;) {
        size_t n = len - at < SPA_BLOB_PIECE ? len - at : SPA_BLOB_PIECE;
        head.blob.offset = at;
        err = spa_wire_send(&s->sink, SPA_MSG_BLOB, &head, bytes + at, n);
        if (err) return err;
        at += n;
    }
    s->welcome.need_basis = false;   /* once */
    return SPA_OK;
}
