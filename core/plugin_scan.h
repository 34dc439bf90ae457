/* plugin_scan.h - the first pass over a plugin file, shared by the files of the reader (plugin.h) and nobody else.
 *
 * In: bytes that nobody vouches for. Out: where the value of each key that we know lies, and a list of tensor heads of which
 * names are unique, types are among those of plugin_format.h and data lies inside the file, aligned, in order and apart. */
#ifndef SPA_PLUGIN_SCAN_H
#define SPA_PLUGIN_SCAN_H

#include "plugin.h"
#include "plugin_format.h"

#include <string.h>

struct text { const uint8_t *at; size_t len; };
struct reader { const uint8_t *block; size_t len, at; };
struct value { uint32_t type, elem; uint64_t count; size_t at; };   /* type SPA_GGUF_N_TYPES: the key is not there */
struct head { struct text name; uint32_t n_dims, type; uint64_t dims[SPA_GGUF_MAX_DIMS], offset; enum spa_dtype dtype; };

enum key {
    K_ALIGNMENT, K_GENERAL_TYPE, K_ADAPTER_TYPE, K_VERSION, K_D, K_N_LAYERS, K_R, K_M, K_K, K_TAPS, K_BASIS, K_BASIS_HASH,
    K_NORMALISE, K_MODE, K_CTX_TAPS, K_CTX_E, K_CTX_HEADS, K_CTX_RUNGS, K_CTX_MIX, K_BASE_NAME, K_BASE_HASH, K_TAP_DTYPE,
    K_STATE_DTYPE, K_GATE_THRESHOLD, K_ROWS, K_LOSS_TOKENS, K_EPOCHS, K_STEPS, K_SEED, K_FIRST_LOSS, K_FINAL_LOSS, K_EXACT_MATCH, N_KEYS
};

/* What a file says of a key, its type and the sentences for its absence and for a wrong value. */
struct key_rule { const char *name; uint32_t type; const char *missing, *wrong; };
extern const struct key_rule spa_plugin_rules[N_KEYS];

struct file {
    struct reader r;
    struct spa_fault *fault;
    struct value values[N_KEYS];
    size_t tensors_at, data_at;
    uint64_t n_tensors;
};

/* Fills f. SPA_OK; SPA_ERR_FORMAT, _LIMIT, _VERSION (of GGUF) with *fault filled. */
enum spa_err spa_plugin_scan(struct file *f, const uint8_t *block, size_t len, struct spa_fault *fault);

/* The string, the tensor head at r, which moves on; false: the block ends before (never after the scan). */
bool spa_plugin_take_text(struct reader *r, struct text *t);
bool spa_plugin_take_head(struct reader *r, struct head *h);

static inline enum spa_err fail(struct spa_fault *fault, enum spa_err code, const char *what, uint64_t at)
{
    *fault = (struct spa_fault) { what, at };
    return code;
}

static inline bool text_is(struct text t, const char *s)
{
    return t.len == strlen(s) && memcmp(t.at, s, t.len) == 0;
}

#endif
