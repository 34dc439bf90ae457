/* fuzz_session.c - any bytes at the device's end of the conversation.
 *
 * Byte 0 of the input picks the plugin and how far a proper conversation has come before the bytes arrive, byte 1 the size of
 * the pieces. The device does what an owner would: it unpacks every row, answers what it owes. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

enum { D = 8, LAYERS = 4, N_CTX = 64, MAX_ROW = 2 * D };

static enum spa_err take(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    uint8_t *sum = user;
    for (size_t i = 0; i < a_len; i++) *sum ^= a[i];
    for (size_t i = 0; i < b_len; i++) *sum ^= b[i];
    return SPA_OK;
}

struct script { uint8_t bytes[8192]; size_t len; };
static enum spa_err write_down(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    struct script *s = user;
    if (a_len + b_len > sizeof s->bytes - s->len) return SPA_ERR_CLOSED;
    memcpy(s->bytes + s->len, a, a_len);
    if (b_len) memcpy(s->bytes + s->len + a_len, b, b_len);
    s->len += a_len + b_len;
    return SPA_OK;
}

static uint8_t buf[SPA_MESSAGE_MIN], work[4096], sum;
static struct spa_session s;
static const uint8_t hash[SPA_HASH_BYTES];

static void own(const struct spa_session_event *ev)
{
    static float x[MAX_ROW], z[D], x_ctx[N_CTX * MAX_ROW], x_full[N_CTX * MAX_ROW], y_fin[N_CTX * D];
    static uint32_t pos[N_CTX];
    static int32_t target[N_CTX];
    const struct spa_part part = { SPA_PART_ASSISTANT, true, (const uint8_t *)"hi", 2 };
    switch (ev->type) {
    case SPA_MSG_WELCOME: {
        spa_Generate g = { .n_predict = 4, .gate = s.has_plugin && !s.unfitted ? spa_GateMode_GATE_ALWAYS : spa_GateMode_GATE_NEVER };
        if (s.welcome.need_basis) { static const uint8_t basis[4096]; spa_session_send_basis(&s, hash, basis, sizeof basis); }
        spa_session_generate(&s, &g, &part, 1, work);
        g.pad = s.welcome.pads;
        spa_session_generate(&s, &g, &part, 1, work);
        spa_session_learn(&s, &(spa_Learn){ .row = 1, .fit = s.unfitted }, &part, 1, work);
        spa_session_learn(&s, &(spa_Learn){ .row = 2, .fit = s.unfitted }, &part, 1, work);
        if (s.welcome.d == D) {   /* without a plugin a cloud may have any width; this owner has states of one */
            spa_session_loss(&s, &(spa_Loss){ .id = 1, .n = 2, .gradient = true }, target, x_full, work);
            spa_session_loss(&s, &(spa_Loss){ .id = 2, .n = 1, .top = true }, target, x_full, work);
        }
        spa_session_learn(&s, &(spa_Learn){ .row = 1, .anchor = true }, NULL, 0, work);
        spa_session_fetch(&s, spa_BlobKind_BLOB_HEAD, hash, 0);
        break;
    }
    case SPA_MSG_TAPS: {
        const spa_Taps *t = &ev->msg->head.taps;
        if (t->pos + t->n_rows > s.welcome.n_ctx) abort();
        for (uint32_t i = 0; i < t->n_rows; i++) (void)spa_taps_row(&s, ev->msg, i, x);
        for (uint32_t i = 0; i < t->n_rows; i++)
            if (spa_taps_row_asked(ev->msg, i)) (void)spa_session_answer(&s, t->request, t->epoch, t->pos + i, z, work);
        break;
    }
    case SPA_MSG_FEATURES:
        if (s.welcome.n_ctx > N_CTX) break;   /* as much room as this owner has */
        (void)spa_features_unpack(&s, ev->msg, pos, target, x_ctx, x_full, y_fin);
        break;
    case SPA_MSG_LOSSES: spa_losses_unpack(&s, ev->msg, x_full, y_fin, target); break;
    case SPA_MSG_TOKENS: if (ev->msg->head.tokens.index == 3) spa_session_cancel(&s, ev->request); break;
    default: break;
    }
}

static void feed(const uint8_t *in, size_t len, size_t piece)
{
    for (size_t at = 0; at < len;) {
        size_t used, n = len - at < piece ? len - at : piece;
        struct spa_session_event ev;
        enum spa_err err = spa_session_feed(&s, in + at, n, &used, 0, &ev);
        if (used > n) abort();
        if (err == SPA_OK) own(&ev);
        if (err < 0 && s.state != SPA_SESSION_CLOSED) abort();
        if (err < 0) return;
        at += used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    uint8_t how = data[0];
    spa_session_init(&s, (struct spa_sink){ &sum, take }, buf, sizeof buf);
    spa_Plugin p = { .d = D, .n_layers = LAYERS, .k = D, .taps_count = 2, .taps = { 0, LAYERS }, .tap_dtype = how >> 4 & 1, .state_dtype = how >> 5 & 1 };
    if (how & 4) {
        p.basis = p.rms = true;
        p.k = 2;
        if (how & 64) p.basis_hash.size = SPA_HASH_BYTES;
    }
    if (how & 128) { p.ctx_taps_count = 1; p.ctx_taps[0] = LAYERS; }
    if (how & 1) p.tap_dtype = spa_Dtype_I8;
    if (spa_session_hello(&s, "fuzz", how & 8 ? NULL : &p, NULL, 0, 0)) abort();
    if (how & 2) {
        static struct script script;
        script.len = 0;
        const struct spa_sink pen = { &script, write_down };
        union spa_head head;
        memset(&head, 0, sizeof head);
        head.welcome = (spa_Welcome){ .version = 1, .d = D, .n_layers = LAYERS, .n_vocab = 100, .n_ctx = N_CTX,
            .max_message = SPA_MESSAGE_MIN, .max_requests = 2, .learn_window = 3, .loss_window = 2, .n_anchors = 2, .need_basis = (how & 76) == 68, .pads = how & 32 };
        spa_wire_send(&pen, SPA_MSG_WELCOME, &head, NULL, 0);
        feed(script.bytes, script.len, script.len);
        if (s.state != SPA_SESSION_READY) abort();
    }
    feed(data + 2, size - 2, data[1] ? data[1] : size);
    return 0;
}
