/* model.h - the frozen base model as the decode thread needs it. model_llama.c is the real one; the thread tests bring a
 * small deterministic one. Nothing else in cloud/ knows libllama.
 *
 * All calls come from one thread (the decode thread), except `info`, which never changes. */
#ifndef SPA_MODEL_H
#define SPA_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spa_model_info {
    char     name[128];
    uint8_t  hash[32];          /* SHA-256 of the file's head and of every tensor's first bytes: model_file.h */
    uint32_t d, n_layers;
    int32_t  n_vocab;
    uint32_t n_slots;           /* sequences for answers: 0 .. n_slots-1 */
    uint32_t n_learn_seqs;      /* sequences for training rows: n_slots .. n_slots+n_learn_seqs-1 */
    uint32_t n_ctx_slot;        /* tokens that each slot may hold: guaranteed, no slot can take another's */
    uint32_t n_learn_cells;     /* tokens that all learning sequences may hold together */
    uint32_t n_batch;           /* tokens of answers in one decode call, at most */
    uint32_t n_learn_batch;     /* and of training rows beside them */
    uint32_t n_ubatch;          /* tokens of answers that are computed together, at most: prompts are cut into pieces of it */
    uint32_t head_type;         /* ggml's number */
    const uint8_t *head_bytes;  /* [n_vocab] rows of the output tensor, then the bias where there is one (lm_head.h) */
    size_t   head_len;
    uint8_t  head_hash[32];
    float    logit_scale, softcap;
};

/* How much of a row the caller wants back: nothing; taps below the last layer; all taps and y_fin. */
enum spa_want { SPA_WANT_NONE, SPA_WANT_MID, SPA_WANT_ALL };

struct spa_batch_token {
    int32_t  token;
    uint32_t pos, seq;
    enum spa_want want;
};

/* What decode left of the rows that were wanted, in their order in the batch. Valid until the next decode. */
struct spa_states {
    const float *y_fin;   /* [n_wanted, d]; rows of WANT_MID are not filled */
    const float *taps;    /* [n_layers_asked, n_wanted, d], layers as asked; layer N of WANT_MID rows is not filled */
    uint32_t     n_wanted;
};

struct spa_model {
    struct spa_model_info info;
    void *self;

    /* One decode call. layers [n_layers]: the taps wanted, ascending. 0, or -1: the call failed and changed nothing that
     * seq_rm of the batch's sequences does not mend. */
    int  (*decode)(void *self, const struct spa_batch_token *batch, uint32_t n, const uint32_t *layers, uint32_t n_layers,
                   struct spa_states *out);
    /* Forgets positions from `from` on. false: this model's cache cannot be cut there, only emptied (from 0). */
    bool (*seq_rm)(void *self, uint32_t seq, uint32_t from);
    /* A learning sequence that is empty holds the n tokens that `from` holds, as if it had decoded them. */
    void (*seq_cp)(void *self, uint32_t from, uint32_t to, uint32_t n);
    /* From now on no more than `rows` tokens of answers are computed together, and no more than `head_rows` states in one product. */
    void (*narrow)(void *self, uint32_t rows, uint32_t head_rows);
    /* A slot's sequence as bytes, malloc'd; and bytes as an empty or used slot's sequence, in place of what it holds. false: no
     * memory, or this model's cache cannot. Exact: what follows has the bits it would have had. */
    bool (*save)(void *self, uint32_t seq, uint8_t **bytes, size_t *len);
    bool (*load)(void *self, uint32_t seq, const uint8_t *bytes, size_t len);
    /* logits [n, n_vocab] of states [n, d], scale and soft-cap applied. */
    void (*head)(void *self, const float *states, uint32_t n, float *logits);
    /* Clears what decode and head have left in buffers: the last spa_states are gone. Sequences stay. */
    void (*clear)(void *self);
    /* Token ids of text; returns how many, or the negative of how many there would be when cap is too small.
     * start: add what the model wants at the beginning; special: markup in the text becomes special tokens. */
    int32_t (*tokenize)(void *self, const char *text, size_t len, bool start, bool special, int32_t *out, int32_t cap);
    /* Bytes of a token, not terminated; special tokens have none. */
    int32_t (*piece)(void *self, int32_t token, char *out, int32_t cap);
    bool    (*is_end)(void *self, int32_t token);
    /* The chat as the model's template writes it; open: with the beginning of the assistant's turn. roles and contents are
     * terminated. Returns the length (call again when it is >= cap), or -1 when the model has no template that we know. */
    int32_t (*chat)(void *self, const char *const *roles, const char *const *contents, size_t n, bool open, char *out,
                    int32_t cap);
};

#endif
