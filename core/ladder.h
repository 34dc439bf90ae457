/* ladder.h - the side plugin: its shape, its weights' layout, forward for one token, forward and backward for a row.
 *
 *   x_i    tap i as the cloud prepared it: y, or y/rms(y), or its projection by a basis           [k]
 *   h_0  = W_0 x_0 + b_0                                                                         [r]
 *   h_i  = W_i x_i + b_i + A_i(relu(h_{i-1})),  i = 1..n_taps-1                                  [r]
 *   A_i(v) = v + V_i relu(U_i v + c_i) + e_i              U_i: r -> m, V_i: m -> r
 *   z    = W_out relu(h_{n_taps-1}) + b_out                                                      [d]
 *
 * Source: SPA, arXiv 2403.07088; class LadderSide in the authors' modeling_SPA.py, where every layer is a tap, k = d, m = d.
 *
 * Context attention, ours. With the context taps x_{t,l} of every token t up to and including this one:
 *
 *   c_t  = relu(W_c [x_{t,l} for l in the context taps] + b_c)                                   [e]
 *   after h_i of each attention rung i:   h_i += concat over heads of softmax(q K_j / sqrt(e/H)) V_j,  j <= t
 *   q = W_q relu(h_i) + b_q [e],   K_j = W_k c_j + b_k [e],   V_j = W_v c_j + b_v [r];   H heads, no positions
 *
 * A head owns e/H numbers of q and K and r/H numbers of V. K_j and V_j are cached per token and rung, so the cache
 * costs n_att * (e + r) floats a token.
 *
 * With ctx_mix a token looks back before it is looked at. K_j and V_j are then made of g_j in place of c_j:
 *
 *   g_t  = c_t + concat over heads of softmax(q'_t k_j / sqrt(e/H)) v_j,  j <= t                 [e]
 *   q'_t = M_q c_t + m_q [e],   k_j = M_k c_j + m_k [e],   v_j = M_v c_j + m_v [e];   H heads of e/H each, no positions
 *
 * k_j and v_j are cached, too: 2 e floats a token more. The cost of training grows with the square of a row's length.
 *
 * With a window of n, a token at position t looks at positions max(0, t - n + 1) .. t only, here and there, and the cache needs
 * no more than n + 2 * SPA_CONTEXT_SLACK tokens. Training looks at whole rows: a window shorter than the rows changes answers.
 *
 * Rules for the whole of core: pointers are never NULL unless said; "borrowed" memory is not kept after the call
 * unless said; matrices are row-major [rows, cols]; nothing allocates. Functions with no return value cannot fail. */
#ifndef SPA_LADDER_H
#define SPA_LADDER_H

#include "err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SPA_MAX_TAPS    = 256,      /* tapped layers; the deepest open models have 126 layers */
    SPA_MAX_LAYERS  = 1024,
    SPA_MAX_WIDTH   = 1 << 16,  /* d, k, r, m, e */
    SPA_MAX_ATT     = 32,       /* attention rungs */
    SPA_MAX_HEADS   = 256,
    SPA_HASH_BYTES  = 32,       /* SHA-256 */
};

enum spa_mode      { SPA_REPLACE = 0, SPA_ADD = 1 };   /* logits = head(z), or head(y_fin + z) */
enum spa_normalise { SPA_NORM_NONE = 0, SPA_NORM_RMS = 1 };

struct spa_shape {
    uint32_t d;                      /* base model's width */
    uint32_t n_layers;               /* base model's N: taps are 0 (embedding) .. N */
    uint32_t r, m;                   /* plugin rank; inner width of A_i */
    uint32_t n_taps;                 /* rungs */
    uint32_t taps[SPA_MAX_TAPS];     /* layer numbers, ascending */
    uint32_t k;                      /* tap width: d when raw, the basis' k when projected */
    bool     basis;                  /* projected by a basis (basis.h) */
    enum spa_normalise normalise;
    enum spa_mode mode;
    uint32_t n_ctx_taps;             /* 0: position-wise, no context attention; then e, n_heads, n_att are 0 */
    uint32_t ctx_taps[SPA_MAX_TAPS]; /* layer numbers, ascending, each one of taps[] */
    uint32_t e, n_heads;             /* context width and heads; n_heads divides e and r */
    uint32_t n_att;
    uint32_t att_rungs[SPA_MAX_ATT]; /* rung indices 0..n_taps-1, ascending */
    bool     ctx_mix;                /* context tokens look back, too; only with context */
};

/* SPA_OK, or SPA_ERR_SHAPE / SPA_ERR_LIMIT when the numbers contradict each other or exceed the limits above.
 * Every other function here asserts a shape that passed. */
enum spa_err spa_shape_check(const struct spa_shape *shape);

/* Numbers of a token that a gate of y_fin reads, or one of y_fin and the taps (gate.h). */
static inline size_t spa_shape_gate_width(const struct spa_shape *shape, bool gate_taps)
{
    return shape->d + (gate_taps ? (size_t)shape->n_taps * shape->k : 0);
}

/* The weights, their gradients and both AdamW moments are four arrays of one layout: spa_param_count floats, tensor
 * after tensor in the order of spa_param_tensor. Names: "W.i" [r,k], "b.i" [r]; for i >= 1 "U.i" [m,r], "c.i" [m],
 * "V.i" [r,m], "e.i" [r]; "W_out" [d,r], "b_out" [d]; with context "ctx.W" [e, n_ctx_taps*k], "ctx.b" [e], with ctx_mix
 * M_q to m_v as "ctx.mix.Wq" [e,e], "ctx.mix.bq" [e], "ctx.mix.Wk", ".bk", ".Wv", ".bv" likewise, and for each
 * attention rung i "att.i.Wq" [e,r], "att.i.bq" [e], "att.i.Wk" [e,e], "att.i.bk" [e], "att.i.Wv" [r,e], "att.i.bv" [r].
 * The gate is not part of it (gate.h). */
struct spa_tensor {
    char     name[24];
    uint32_t rows, cols;    /* a vector has rows = its length, cols = 1 and is_vector set */
    bool     is_vector;
    size_t   offset;        /* floats from the start of the array */
};
size_t spa_param_count(const struct spa_shape *shape);
size_t spa_tensor_count(const struct spa_shape *shape);
void   spa_param_tensor(const struct spa_shape *shape, size_t index, struct spa_tensor *out);

/* Fresh weights: matrices and biases uniform in +-1/sqrt(fan-in) from a counter-based generator keyed by seed.
 * W_out and b_out are zero in add mode, so that an untrained plugin is the base model exactly. ctx.mix.Wv and .bv are zero and
 * the other tensors have the numbers of the same shape without ctx_mix, so that both start as the same plugin. */
void spa_ladder_init(const struct spa_shape *shape, uint64_t seed, float *params);

/* ---- one token at a time, for answering ---- */

/* Keys and values of the tokens seen so far, or of the newest of them. The caller owns kv: spa_context_floats(shape, cap)
 * floats. Which tokens a position looks at depends on the position and the window alone, so going back and coming again gives
 * the same bits. When kv is full and cap is at least spa_context_cap(window), the oldest tokens make room. */
struct spa_context {
    float   *kv;     /* [cap], positions first .. len-1, each [n_att][e + r] and with ctx_mix [2 e] */
    uint32_t cap;    /* tokens that kv has room for */
    uint32_t len;    /* tokens seen: the next one's position */
    uint32_t first;  /* the oldest position in kv */
    uint32_t window; /* tokens that one looks at, itself included; 0: all. Set before the first token */
};
enum { SPA_CONTEXT_SLACK = 128 };   /* with a window, going back by so many positions always works */
uint32_t spa_context_cap(uint32_t window);   /* tokens that kv must have room for, however long the text: window + 2 slacks */
/* The lowest position but 0 that it can go back to: below it, what that position looks at is not all there. */
uint32_t spa_context_floor(const struct spa_context *ctx);
/* Forgets positions from len on. SPA_ERR_RANGE: more than was seen, or below the floor and not 0; nothing has changed. */
enum spa_err spa_context_cut(struct spa_context *ctx, uint32_t len);
size_t spa_context_floats(const struct spa_shape *shape, uint32_t cap);   /* 0 without context attention */

/* Appends one token's context taps x_ctx [n_ctx_taps * k]. scratch: spa_ladder_scratch_len(shape, n) floats with n >= the tokens it
 * looks at, itself included; ctx->cap will do.
 * SPA_OK, or SPA_ERR_NOMEM when ctx is full and has no window, or less room than its window wants. */
enum spa_err spa_ladder_context(const struct spa_shape *shape, const float *params, const float *x_ctx,
                                float *scratch, struct spa_context *ctx);

/* z of one token.
 *   x        in   [n_taps * k]
 *   ctx      in   every token up to and including this one; NULL without context attention
 *   scratch  tmp  spa_ladder_scratch_len(shape, n) floats with n >= the tokens it looks at; ctx->cap will do
 *   z        out  [d] */
size_t spa_ladder_scratch_len(const struct spa_shape *shape, uint32_t n_ctx);
void   spa_ladder_forward(const struct spa_shape *shape, const float *params, const float *x,
                          const struct spa_context *ctx, float *scratch, float *z);

/* Picks the context taps [n_ctx_taps * k] out of a full row [n_taps * k]. */
void spa_ladder_context_of(const struct spa_shape *shape, const float *x, float *x_ctx);

/* ---- a whole row at once, for training ---- */

struct spa_row {
    uint32_t        n_ctx;   /* tokens 0..n_ctx-1 have context taps; 0 without context attention */
    const float    *x_ctx;   /* [n_ctx, n_ctx_taps * k] */
    uint32_t        n_loss;  /* tokens that carry loss */
    const uint32_t *pos;     /* [n_loss] ascending; pos[i] < n_ctx with context attention */
    const float    *x;       /* [n_loss, n_taps * k] */
};

/* Dropout on V's output, before W_out and on what ctx_mix adds to c: each unit is zeroed with probability p, the others scaled by
 * 1/(1-p). Which units is a function of (key, token, rung, unit) alone, so backward sees what forward saw. p = 0: none. */
struct spa_dropout {
    float    p;
    uint64_t key;
};

/* forward fills scratch (spa_row_scratch_len floats) and z [n_loss, d]; backward reads what forward left in scratch and
 * ADDS to grad (spa_param_count floats). dz [n_loss, d] is the loss' derivative by z. Backward may overwrite the scratch. */
size_t spa_row_scratch_len(const struct spa_shape *shape, uint32_t n_ctx, uint32_t n_loss);
void   spa_row_forward(const struct spa_shape *shape, const float *params, const struct spa_row *row,
                       struct spa_dropout drop, float *scratch, float *z);
void   spa_row_backward(const struct spa_shape *shape, const float *params, const struct spa_row *row,
                        struct spa_dropout drop, float *scratch, const float *dz, float *grad);

#endif
