/* plugin.h - the plugin file: GGUF in, GGUF out. PLUGIN.md is the format's own document.
 *
 * The reader works on a memory block (a mapped file, bytes from a peer) and trusts nothing in it: counts are capped,
 * offsets stay inside, tensors do not overlap, no name comes twice, every weight is finite. The writer's output is
 * deterministic: the same struct and weights give the same bytes. */
#ifndef SPA_PLUGIN_H
#define SPA_PLUGIN_H

#include "dtype.h"
#include "ladder.h"

enum { SPA_NAME_MAX = 128 };

/* What training left behind; all zero in a converted file. Losses are mean cross-entropy in nats per token. */
struct spa_training {
    uint32_t rows, loss_tokens, epochs;
    uint64_t steps, seed;
    float    first_loss, final_loss;
    float    eval_exact_match;   /* 0..1; negative when nothing was held out */
};

struct spa_plugin {
    struct spa_shape shape;
    char    base_name[SPA_NAME_MAX];      /* general.name of the base model, for people */
    bool    has_base_hash;                /* a converted checkpoint does not know its base */
    uint8_t base_hash[SPA_HASH_BYTES];    /* what spa-cloud announces for its model (WIRE.md, WELCOME) */
    uint8_t basis_hash[SPA_HASH_BYTES];   /* with shape.basis */
    enum spa_dtype weights;               /* how the file keeps the ladder's matrices; I8: as Q8_0, and F16 where rows are no multiple of 32.
                                             All else in a file is F32, and so is everything in memory */
    enum spa_dtype tap_dtype, state_dtype;/* the forms on the wire that this plugin was trained with */
    bool    has_gate, gate_has_bias, gate_taps;   /* gate_taps: it reads y_fin and the taps, else y_fin alone (gate.h) */
    float   gate_threshold;               /* 0.5 unless chosen */
    struct spa_training training;
};

/* How many numbers of a token its gate reads: y_fin's, and those of the taps with gate_taps. */
static inline size_t spa_gate_width(const struct spa_plugin *p) { return spa_shape_gate_width(&p->shape, p->gate_taps); }

/* The version of a file with this plugin: the oldest whose readers compute the same. */
uint32_t spa_plugin_version(const struct spa_plugin *p);

/* Where the numbers are, all little-endian F32: pointers into the block that was read, or the caller's arrays for writing. */
struct spa_plugin_data {
    const float *params;   /* spa_param_count floats in layout order. NULL from the reader when the file's tensors are not all F32 in
                              that order without gaps: then use spa_plugin_params */
    const float *gate_w;   /* [2, spa_gate_width]; NULL without gate */
    const float *gate_b;   /* [2]; NULL without bias */
    const float *basis;    /* spa_basis_floats floats as in basis.h; NULL without basis or when it is not stored */
};

/* Reads a block; it must stay and be 4-byte aligned as long as data is used.
 * SPA_OK; SPA_ERR_FORMAT, _LIMIT, _VERSION, _SHAPE, _RANGE with *fault filled. Nothing is written outside p, data, fault. */
enum spa_err spa_plugin_read(const uint8_t *block, size_t len, struct spa_plugin *p, struct spa_plugin_data *data,
                             struct spa_fault *fault);

/* Copies the weights of a block that spa_plugin_read accepted into layout order: spa_param_count floats. */
enum spa_err spa_plugin_params(const uint8_t *block, size_t len, const struct spa_plugin *p, float *params);

/* Bytes that spa_plugin_write needs, and the writing. SPA_OK or SPA_ERR_NOMEM. */
size_t spa_plugin_write_len(const struct spa_plugin *p, const struct spa_plugin_data *data);
enum spa_err spa_plugin_write(const struct spa_plugin *p, const struct spa_plugin_data *data, uint8_t *out, size_t cap,
                              size_t *len);

#endif
