/* wire.h - messages as bytes: the frame, the heads (nanopb, spa.proto), the parts. WIRE.md is the protocol's own document.
 *
 *   message = type u8 | 0 u8 | head_len u16 | bulk_len u32 | head (protobuf) | bulk (raw bytes)       all little-endian
 *
 * A stream of messages may be cut anywhere: WebSocket carries one or more whole messages in a message of its own, but any transport of
 * ordered bytes would do. */
#ifndef SPA_WIRE_H
#define SPA_WIRE_H

#include "dtype.h"
#include "ladder.h"
#include "sample.h"
#include "spa.pb.h"

enum {
    SPA_WIRE_VERSION   = 1,
    SPA_PREFIX_LEN     = 8,
    SPA_HEAD_MAX       = 4096,            /* bytes of a head */
    SPA_MESSAGE_MIN    = 64 * 1024,       /* every peer takes messages of this size */
    SPA_MESSAGE_MAX    = 64 * 1024 * 1024,/* nobody may announce more */
    SPA_BLOB_PIECE     = 48 * 1024,       /* bytes of a blob in one message, at most */
    SPA_PARTS_MAX      = 1024,            /* parts of a GENERATE or LEARN */
    SPA_STOPS_MAX      = 16,              /* stop strings of a request */
    SPA_STOP_LEN_MAX   = 256,
    SPA_REQUESTS_MAX   = 64,              /* at once on a connection */
    SPA_ASKED_MAX      = 32,
    SPA_DRAFT_MAX      = 48,              /* draft tokens of a STATE, and what parts them */
    SPA_LOSSES_MAX     = 16,              /* LOSS messages at once on a connection */
    SPA_PAD_HEAD       = 40,              /* with Generate.pad: bytes of a TAPS' or STATE's head, */
    SPA_PAD_WORDS      = 128,             /* of a TOKENS' or DONE's head and bulk together, */
    SPA_PAD_TEXT_MAX   = 96,              /* and of the text in such a TOKENS, at most */
};

enum spa_msg {
    SPA_MSG_HELLO = 1, SPA_MSG_WELCOME, SPA_MSG_FETCH, SPA_MSG_BLOB, SPA_MSG_GENERATE, SPA_MSG_CANCEL, SPA_MSG_TAPS,
    SPA_MSG_STATE, SPA_MSG_TOKENS, SPA_MSG_DONE, SPA_MSG_ERROR, SPA_MSG_LEARN, SPA_MSG_FITTED, SPA_MSG_FEATURES,
    SPA_MSG_LOSS, SPA_MSG_LOSSES, SPA_MSG_LOGPROBS,
    SPA_MSG_END   /* one past the last */
};
const char *spa_msg_name(enum spa_msg type);   /* "HELLO"; "?" for any other number */

/* One message, taken apart. `head` is the union member of its type; bulk points into the buffer that was read. */
union spa_head {
    spa_Hello hello; spa_Welcome welcome; spa_Fetch fetch; spa_Blob blob; spa_Generate generate; spa_Cancel cancel;
    spa_Taps taps; spa_State state; spa_Tokens tokens; spa_Done done; spa_Error error; spa_Learn learn;
    spa_Fitted fitted; spa_Features features; spa_Loss loss; spa_Losses losses;
    spa_Logprobs logprobs;
};
struct spa_message {
    enum spa_msg   type;
    union spa_head head;
    const uint8_t *bulk;
    uint32_t       bulk_len;
};

/* Where outgoing messages go. The platform copies both pieces before it returns: SPA_OK, or SPA_ERR_CLOSED when it cannot
 * take them (connection gone, queue full), which the function that sent passes on. A message is taken whole or not at all. */
struct spa_sink {
    void *user;
    enum spa_err (*send)(void *user, const uint8_t *prefix_and_head, size_t len, const uint8_t *bulk, size_t bulk_len);
};

/* Fills the pad of a TAPS, STATE, TOKENS or DONE, so that all of its type, with as many rows, are equally long. At most one token and
 * SPA_PAD_TEXT_MAX bytes of text; no draft, and one asked row. */
void spa_wire_pad(enum spa_msg type, union spa_head *head, size_t bulk_len);
/* Encodes prefix and head and hands the message over. */
enum spa_err spa_wire_send(const struct spa_sink *sink, enum spa_msg type, const union spa_head *head,
                           const uint8_t *bulk, size_t bulk_len);

/* Puts messages together from bytes that come in any cuts. buf holds one whole message: at least SPA_MESSAGE_MIN bytes. */
struct spa_reader {
    uint8_t *buf;
    size_t   cap, len;
    size_t   taken;      /* bytes of the message handed out last: dropped at the next call */
};
void spa_reader_init(struct spa_reader *r, uint8_t *buf, size_t cap);
/* Takes bytes up to the end of one message; *used says how many (the rest is the caller's to feed again).
 * SPA_OK: *msg is whole, valid until the next call. SPA_NONE: all taken, more needed.
 * SPA_ERR_LIMIT: larger than cap or a head beyond SPA_HEAD_MAX; SPA_ERR_FORMAT: unknown type, nonzero reserved byte, head
 * that does not parse. Errors stay. */
enum spa_err spa_reader_feed(struct spa_reader *r, const uint8_t *in, size_t len, size_t *used, struct spa_message *msg);

/* ---- parts: the bulk of GENERATE and LEARN ----
 *   part = kind u8 | 0 u8[3] | len u32 | bytes
 * SYSTEM, USER, ASSISTANT, TEXT hold UTF-8; LOSS is set in kind of the parts that carry loss in LEARN; STOP a stop string;
 * CONFIRMED int32 token ids of the answer so far (resume). */
enum spa_part_kind {
    SPA_PART_SYSTEM = 1, SPA_PART_USER = 2, SPA_PART_ASSISTANT = 3, SPA_PART_TEXT = 4, SPA_PART_STOP = 5,
    SPA_PART_CONFIRMED = 6, SPA_PART_LOSS = 0x80
};
struct spa_part {
    uint8_t        kind;    /* without SPA_PART_LOSS */
    bool           loss;
    const uint8_t *bytes;   /* not zero-terminated */
    uint32_t       len;
};
/* Walks parts: start with *at = 0. SPA_OK fills *part; SPA_NONE at the end; SPA_ERR_FORMAT / _LIMIT. */
enum spa_err spa_part_next(const uint8_t *bulk, size_t bulk_len, size_t *at, struct spa_part *part);
/* Bytes of all parts, and writing them to out (that many bytes). */
size_t spa_parts_len(const struct spa_part *parts, size_t n);
void   spa_parts_write(const struct spa_part *parts, size_t n, uint8_t *out);

/* ---- shapes on the wire ---- */
/* Bytes of one full tap row and of one context row of this plugin. */
size_t spa_wire_row_bytes(const struct spa_shape *shape, enum spa_dtype t);
size_t spa_wire_ctx_row_bytes(const struct spa_shape *shape, enum spa_dtype t);
/* A state z [d]: groups of 64 numbers when d is a multiple of 64, otherwise one group. unpack returns as spa_dtype_unpack. */
enum { SPA_STATE_GROUP = 64 };
size_t       spa_wire_state_bytes(const struct spa_shape *shape, enum spa_dtype t);
void         spa_wire_state_pack(const struct spa_shape *shape, enum spa_dtype t, const float *z, uint8_t *out);
enum spa_err spa_wire_state_unpack(const struct spa_shape *shape, enum spa_dtype t, const uint8_t *in, float *z);
/* Bulk of a LOSS of n states, and of its answer. */
uint64_t spa_wire_loss_bytes(uint32_t d, uint32_t n);
uint64_t spa_wire_losses_bytes(uint32_t d, uint32_t n, bool gradient, bool top);
/* The announcement of a plugin, and back. The cloud's shape has r = m = 1 and, with context taps, e = n_heads = 1 and one
 * attention rung: it neither knows nor needs the real ones. */
void         spa_wire_plugin_from_shape(const struct spa_shape *shape, spa_Plugin *out);
enum spa_err spa_wire_shape_from_plugin(const spa_Plugin *in, struct spa_shape *out);
/* HELLO's bulk, with a gate that reads y_fin, or the taps too. */
size_t spa_wire_gate_bytes(const struct spa_shape *shape, bool gate_taps);

#endif
