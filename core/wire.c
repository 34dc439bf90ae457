/* wire.c - messages as bytes.
 *
 * In: structs to send, bytes that arrive in any cuts. Out: one prefix + head + bulk per message, whole messages taken apart.
 * Whether a message is allowed now, and whether its numbers make sense, is session.c's and host.c's business. */
#include "wire.h"

#include <assert.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <string.h>

/* Rows, gates and weights are handed on as they lie in memory. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "spa's bytes are little-endian, and so must be the machine");
_Static_assert(spa_Hello_size <= SPA_HEAD_MAX && spa_Welcome_size <= SPA_HEAD_MAX, "every head fits SPA_HEAD_MAX");
_Static_assert(SPA_BLOB_PIECE + SPA_HEAD_MAX + SPA_PREFIX_LEN <= SPA_MESSAGE_MIN, "every peer takes a blob's piece");

static const struct { const char *name; const pb_msgdesc_t *fields; } types[SPA_MSG_END] = {
    [SPA_MSG_HELLO]    = { "HELLO",    &spa_Hello_msg },
    [SPA_MSG_WELCOME]  = { "WELCOME",  &spa_Welcome_msg },
    [SPA_MSG_FETCH]    = { "FETCH",    &spa_Fetch_msg },
    [SPA_MSG_BLOB]     = { "BLOB",     &spa_Blob_msg },
    [SPA_MSG_GENERATE] = { "GENERATE", &spa_Generate_msg },
    [SPA_MSG_CANCEL]   = { "CANCEL",   &spa_Cancel_msg },
    [SPA_MSG_TAPS]     = { "TAPS",     &spa_Taps_msg },
    [SPA_MSG_STATE]    = { "STATE",    &spa_State_msg },
    [SPA_MSG_TOKENS]   = { "TOKENS",   &spa_Tokens_msg },
    [SPA_MSG_DONE]     = { "DONE",     &spa_Done_msg },
    [SPA_MSG_ERROR]    = { "ERROR",    &spa_Error_msg },
    [SPA_MSG_LEARN]    = { "LEARN",    &spa_Learn_msg },
    [SPA_MSG_FITTED]   = { "FITTED",   &spa_Fitted_msg },
    [SPA_MSG_FEATURES] = { "FEATURES", &spa_Features_msg },
    [SPA_MSG_LOSS]     = { "LOSS",     &spa_Loss_msg },
    [SPA_MSG_LOSSES]   = { "LOSSES",   &spa_Losses_msg },
    [SPA_MSG_LOGPROBS] = { "LOGPROBS", &spa_Logprobs_msg },
};

const char *spa_msg_name(enum spa_msg type)
{
    return (unsigned)type < SPA_MSG_END && types[type].name ? types[type].name : "?";
}

static void put32(uint8_t *out, uint32_t v)
{
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

void spa_wire_pad(enum spa_msg type, union spa_head *head, size_t bulk_len)
{
    size_t want = type == SPA_MSG_TAPS || type == SPA_MSG_STATE ? SPA_PAD_HEAD : SPA_PAD_WORDS - bulk_len, len = 0;
    size_t key = type == SPA_MSG_DONE ? 3 : 2;   /* bytes of the field's tag and length; DONE's has a number above 15 */
    bool sized = pb_get_encoded_size(&len, types[type].fields, head);
    assert(sized && len + key < want && want - len - key <= 127);
    (void)sized;
    pb_size_t n = (pb_size_t)(want - len - key);
    switch (type) {
    case SPA_MSG_TAPS:   head->taps.pad.size = n; break;
    case SPA_MSG_STATE:  head->state.pad.size = n; break;
    case SPA_MSG_TOKENS: head->tokens.pad.size = n; break;
    case SPA_MSG_DONE:   head->done.pad.size = n; break;
    default:             assert(0 && "a message of an answer");
    }
}

enum spa_err spa_wire_send(const struct spa_sink *sink, enum spa_msg type, const union spa_head *head,
                           const uint8_t *bulk, size_t bulk_len)
{
    assert((unsigned)type < SPA_MSG_END && types[type].fields);
    uint8_t out[SPA_PREFIX_LEN + SPA_HEAD_MAX];
    pb_ostream_t stream = pb_ostream_from_buffer(out + SPA_PREFIX_LEN, SPA_HEAD_MAX);
    if (!pb_encode(&stream, types[type].fields, head)) return SPA_ERR_LIMIT;   /* a string without its zero */
    if (bulk_len > (size_t)SPA_MESSAGE_MAX - SPA_PREFIX_LEN - stream.bytes_written) return SPA_ERR_LIMIT;

    out[0] = (uint8_t)type;
    out[1] = 0;
    out[2] = (uint8_t)stream.bytes_written;
    out[3] = (uint8_t)(stream.bytes_written >> 8);
    put32(out + 4, (uint32_t)bulk_len);
    return sink->send(sink->user, out, SPA_PREFIX_LEN + stream.bytes_written, bulk, bulk_len);
}

/* ---- reading ---- */

void spa_reader_init(struct spa_reader *r, uint8_t *buf, size_t cap)
{
    assert(cap >= SPA_MESSAGE_MIN);
    *r = (struct spa_reader){ .buf = buf, .cap = cap };
}

/* Copies until buf holds `want` bytes; true when it does. */
static bool fill(struct spa_reader *r, size_t want, const uint8_t *in, size_t len, size_t *used)
{
    size_t n = want - r->len;
    if (n > len - *used) n = len - *used;
    if (n) memcpy(r->buf + r->len, in + *used, n);
    r->len += n;
    *used += n;
    return r->len == want;
}

/* A bad message is left where it is, so that the next call finds the same fault again: this is how errors stay. */
enum spa_err spa_reader_feed(struct spa_reader *r, const uint8_t *in, size_t len, size_t *used, struct spa_message *msg)
{
    *used = 0;
    if (r->taken) r->len = r->taken = 0;   /* never more than one message in buf */

    if (r->len < SPA_PREFIX_LEN && !fill(r, SPA_PREFIX_LEN, in, len, used)) return SPA_NONE;
    const uint8_t *prefix = r->buf;
    if (prefix[0] >= SPA_MSG_END || !types[prefix[0]].fields || prefix[1] != 0) return SPA_ERR_FORMAT;
    size_t head_len = (size_t)prefix[2] | (size_t)prefix[3] << 8;
    uint32_t bulk_len = get32(prefix + 4);
    if (head_len > SPA_HEAD_MAX) return SPA_ERR_LIMIT;
    if (bulk_len > r->cap || SPA_PREFIX_LEN + head_len > r->cap - bulk_len) return SPA_ERR_LIMIT;

    size_t whole = SPA_PREFIX_LEN + head_len + bulk_len;
    if (!fill(r, whole, in, len, used)) return SPA_NONE;

    msg->type = (enum spa_msg)prefix[0];
    pb_istream_t stream = pb_istream_from_buffer(r->buf + SPA_PREFIX_LEN, head_len);
    if (!pb_decode(&stream, types[msg->type].fields, &msg->head)) return SPA_ERR_FORMAT;
    msg->bulk = r->buf + SPA_PREFIX_LEN + head_len;
    msg->bulk_len = bulk_len;
    r->taken = whole;
    return SPA_OK;
}

/* ---- parts ---- */

enum { PART_PREFIX = 8 };

enum spa_err spa_part_next(const uint8_t *bulk, size_t bulk_len, size_t *at, struct spa_part *part)
{
    if (*at == bulk_len) return SPA_NONE;
    if (*at > bulk_len || bulk_len - *at < PART_PREFIX) return SPA_ERR_FORMAT;
    const uint8_t *p = bulk + *at;
    uint8_t kind = p[0] & (uint8_t)~SPA_PART_LOSS;
    bool loss = p[0] & SPA_PART_LOSS;
    uint32_t len = get32(p + 4);
    if (p[1] || p[2] || p[3]) return SPA_ERR_FORMAT;
    if (kind < SPA_PART_SYSTEM || kind > SPA_PART_CONFIRMED) return SPA_ERR_FORMAT;
    if (loss && kind > SPA_PART_TEXT) return SPA_ERR_FORMAT;
    if (len > bulk_len - *at - PART_PREFIX) return SPA_ERR_FORMAT;
    if (kind == SPA_PART_CONFIRMED && len % 4) return SPA_ERR_FORMAT;
    if (kind == SPA_PART_STOP && len > SPA_STOP_LEN_MAX) return SPA_ERR_LIMIT;
    *part = (struct spa_part){ .kind = kind, .loss = loss, .bytes = p + PART_PREFIX, .len = len };
    *at += PART_PREFIX + (size_t)len;
    return SPA_OK;
}

size_t spa_parts_len(const struct spa_part *parts, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) len += PART_PREFIX + (size_t)parts[i].len;
    return len;
}

void spa_parts_write(const struct spa_part *parts, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        const struct spa_part *p = &parts[i];
        memset(out, 0, 4);
        out[0] = (uint8_t)(p->kind | (p->loss ? SPA_PART_LOSS : 0));
        put32(out + 4, p->len);
        if (p->len) memcpy(out + PART_PREFIX, p->bytes, p->len);
        out += PART_PREFIX + (size_t)p->len;
    }
}

/* ---- shapes ---- */

size_t spa_wire_gate_bytes(const struct spa_shape *shape, bool gate_taps)
{
    return spa_shape_gate_width(shape, gate_taps) * sizeof(float);
}

size_t spa_wire_row_bytes(const struct spa_shape *shape, enum spa_dtype t)
{
    return spa_dtype_bytes(t, shape->n_taps, shape->k);
}

size_t spa_wire_ctx_row_bytes(const struct spa_shape *shape, enum spa_dtype t)
{
    return spa_dtype_bytes(t, shape->n_ctx_taps, shape->k);
}

static size_t state_group(const struct spa_shape *shape)
{
    return shape->d % SPA_STATE_GROUP ? shape->d : SPA_STATE_GROUP;
}

size_t spa_wire_state_bytes(const struct spa_shape *shape, enum spa_dtype t)
{
    const size_t group = state_group(shape);
    return spa_dtype_bytes(t, shape->d / group, group);
}

void spa_wire_state_pack(const struct spa_shape *shape, enum spa_dtype t, const float *z, uint8_t *out)
{
    const size_t group = state_group(shape);
    spa_dtype_pack(t, z, shape->d / group, group, out);
}

enum spa_err spa_wire_state_unpack(const struct spa_shape *shape, enum spa_dtype t, const uint8_t *in, float *z)
{
    const size_t group = state_group(shape);
    return spa_dtype_unpack(t, in, shape->d / group, group, z);
}

uint64_t spa_wire_loss_bytes(uint32_t d, uint32_t n)
{
    return (uint64_t)n * (4 + 4 * (uint64_t)d);
}

uint64_t spa_wire_losses_bytes(uint32_t d, uint32_t n, bool gradient, bool top)
{
    return (uint64_t)n * (4 + (gradient ? 4 * (uint64_t)d : 0) + (top ? 4 : 0));
}

void spa_wire_plugin_from_shape(const struct spa_shape *shape, spa_Plugin *out)
{
    *out = (spa_Plugin)spa_Plugin_init_zero;
    out->d = shape->d;
    out->n_layers = shape->n_layers;
    out->k = shape->k;
    out->rms = shape->normalise == SPA_NORM_RMS;
    out->basis = shape->basis;
    out->add = shape->mode == SPA_ADD;
    out->taps_count = (pb_size_t)shape->n_taps;
    memcpy(out->taps, shape->taps, shape->n_taps * sizeof *out->taps);
    out->ctx_taps_count = (pb_size_t)shape->n_ctx_taps;
    memcpy(out->ctx_taps, shape->ctx_taps, shape->n_ctx_taps * sizeof *out->ctx_taps);
}

enum spa_err spa_wire_shape_from_plugin(const spa_Plugin *in, struct spa_shape *out)
{
    *out = (struct spa_shape){
        .d = in->d, .n_layers = in->n_layers, .r = 1, .m = 1, .k = in->k,
        .basis = in->basis,
        .normalise = in->rms ? SPA_NORM_RMS : SPA_NORM_NONE,
        .mode = in->add ? SPA_ADD : SPA_REPLACE,
        .n_taps = in->taps_count, .n_ctx_taps = in->ctx_taps_count,
    };
    memcpy(out->taps, in->taps, in->taps_count * sizeof *out->taps);
    memcpy(out->ctx_taps, in->ctx_taps, in->ctx_taps_count * sizeof *out->ctx_taps);
    if (out->n_ctx_taps) out->e = out->n_heads = out->n_att = 1;
    return spa_shape_check(out);
}
