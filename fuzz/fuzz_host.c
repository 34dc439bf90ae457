/* fuzz_host.c - any bytes at the cloud's end of the conversation.
 *
 * Byte 0 of the input picks how far a proper conversation has come before the bytes arrive, byte 1 the size of the pieces that
 * they arrive in; a byte of time passes with each piece. The cloud does what an owner would: it welcomes, asks, answers rows. */
#include "host.h"

#include <stdlib.h>
#include <string.h>

enum { D = 8, LAYERS = 4 };

static enum spa_err take(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    uint8_t *sum = user;   /* read every byte, so that a sanitizer sees what was handed over */
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

static uint8_t buf[SPA_MESSAGE_MIN], rows[4096], sum;
static float z[D];
static struct spa_host h;

static void own(const struct spa_host_event *ev, bool need_basis, uint64_t now_ms)
{
    const spa_Features f = { .row = 1, .n_tokens = 1 };
    spa_Welcome w = { .d = D, .n_layers = LAYERS, .n_vocab = 100, .n_ctx = 64, .n_anchors = 3 };
    static uint32_t epoch;
    uint32_t asked = 0;
    if (ev->type == SPA_HOST_GENERATE) epoch = 0;
    switch (ev->type) {
    case SPA_HOST_HELLO:
        if (ev->msg->head.hello.has_plugin && ev->msg->head.hello.plugin.d != D) { spa_host_error(&h, 0, spa_Code_BAD_SHAPE, "no"); break; }
        spa_host_welcome(&h, &w, need_basis && h.shape.basis && !h.unfitted);
        break;
    case SPA_HOST_GENERATE: case SPA_HOST_STATE: case SPA_HOST_BAD_STATE: case SPA_HOST_LATE:
        /* It runs ahead by two, and turns back now and then. */
        for (uint32_t i = 1; i < 3 && h.has_plugin && spa_wire_row_bytes(&h.shape, h.tap_dtype) <= sizeof rows; i++)
            spa_host_ask(&h, ev->request, epoch, ev->pos + i, 1, &asked, 1, rows, spa_wire_row_bytes(&h.shape, h.tap_dtype), now_ms);
        spa_host_tokens(&h, ev->request, ev->pos, &(int32_t){ 7 }, &(uint8_t){ spa_Speaker_PLUGIN }, 1, "seven", 5);
        if (ev->pos % 3 == 2) spa_host_back(&h, ev->request, ++epoch, 0);
        break;
    case SPA_HOST_CANCEL: spa_host_done(&h, &(spa_Done){ .request = ev->request, .finish = spa_Finish_FINISH_CANCELLED }); break;
    case SPA_HOST_LOSS: {
        const spa_Loss *l = &ev->msg->head.loss;
        if (spa_wire_losses_bytes(D, l->n, l->gradient, l->top) <= sizeof rows)
            spa_host_losses(&h, &(spa_Losses){ l->id, l->n, l->gradient, l->top }, rows, spa_wire_losses_bytes(D, l->n, l->gradient, l->top));
        break;
    }
    case SPA_HOST_LEARN: spa_host_features(&h, &f, NULL, 0); break;
    case SPA_HOST_BLOB: if (h.basis_next == ev->msg->head.blob.total) spa_host_basis_here(&h); break;
    default: break;
    }
}

static void feed(const uint8_t *in, size_t len, size_t piece, uint64_t *now_ms, bool need_basis)
{
    for (size_t at = 0; at < len;) {
        size_t used, n = len - at < piece ? len - at : piece;
        struct spa_host_event ev;
        enum spa_err err = spa_host_feed(&h, in + at, n, &used, *now_ms, &ev);
        if (used > n) abort();
        if (err == SPA_OK) own(&ev, need_basis, *now_ms);
        if (err < 0 && h.state != SPA_HOST_CLOSED) abort();
        if (err < 0) return;
        at += used;
        *now_ms += in[at ? at - 1 : 0];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    const struct spa_host_limits limits = { .max_requests = 2, .learn_window = 2, .loss_window = 2, .max_bad_states = 3, .answer_ms = 500,
                                            .answer_ms_max = 2000, .hello_ms = 1000, .max_state_rms = 1e4f, .run_ahead = 3 };
    uint8_t how = data[0];
    uint64_t now_ms = 0;
    spa_host_init(&h, (struct spa_sink){ &sum, take }, &limits, buf, sizeof buf, z, D, 0);

    static struct script script;
    script.len = 0;
    const struct spa_sink pen = { &script, write_down };
    union spa_head head;
    memset(&head, 0, sizeof head);
    head.hello = (spa_Hello){ .version = 1, .max_message = SPA_MESSAGE_MIN, .has_plugin = (how & 8) == 0 };
    spa_Plugin *p = &head.hello.plugin;
    *p = (spa_Plugin){ .d = D, .n_layers = LAYERS, .k = D, .taps_count = 2, .taps = { 0, LAYERS }, .tap_dtype = how >> 4 & 1, .state_dtype = how >> 5 & 1 };
    if (how & 4) {
        p->basis = p->rms = true;
        p->k = 2;
        if (how & 64) p->basis_hash.size = SPA_HASH_BYTES;
        p->generic = (how & 96) == 32;   /* without a hash, and states in F16 */
    }
    if (how & 128) { p->ctx_taps_count = 1; p->ctx_taps[0] = LAYERS; }
    if (how & 3) spa_wire_send(&pen, SPA_MSG_HELLO, &head, NULL, 0);
    if ((how & 3) > 1) {
        static const uint8_t parts[] = { SPA_PART_USER, 0, 0, 0, 2, 0, 0, 0, 'h', 'i' };
        memset(&head, 0, sizeof head);
        head.generate = (spa_Generate){ .request = 1, .n_predict = 4, .gate = how & 8 ? spa_GateMode_GATE_NEVER : spa_GateMode_GATE_ALWAYS, .pad = how & 32 };
        spa_wire_send(&pen, SPA_MSG_GENERATE, &head, parts, sizeof parts);
    }
    feed(script.bytes, script.len, script.len, &now_ms, how & 1);
    feed(data + 2, size - 2, data[1] ? data[1] : size, &now_ms, how & 1);
    return 0;
}
