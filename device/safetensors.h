/* safetensors.h - reads and writes safetensors in memory, as far as the authors' checkpoints and adapter folders need it.
 *
 * Format: u64 little-endian header length, JSON header (read with jansson), data. Nothing in it is trusted: lengths are
 * capped, tensors stay inside the file and do not overlap, no name comes twice. */
#ifndef SPA_SAFETENSORS_H
#define SPA_SAFETENSORS_H

#include "err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPA_ST_MAX_TENSORS = 4096, SPA_ST_NAME_MAX = 128, SPA_ST_MAX_DIMS = 4 };

enum spa_st_dtype { SPA_ST_F32, SPA_ST_F16, SPA_ST_BF16, SPA_ST_I32, SPA_ST_I64, SPA_ST_OTHER };

struct spa_st_tensor {
    char     name[SPA_ST_NAME_MAX];
    enum spa_st_dtype dtype;
    uint32_t n_dims;
    uint64_t dims[SPA_ST_MAX_DIMS];
    uint64_t offset, n_bytes;   /* from the start of the block */
};

/* Fills at most cap tensors in header order; *n gets how many. SPA_OK; SPA_ERR_FORMAT, _LIMIT; SPA_ERR_NOMEM if cap is small. */
enum spa_err spa_st_read(const uint8_t *block, size_t len, struct spa_st_tensor *out, size_t cap, size_t *n,
                         struct spa_fault *fault);

/* Value of a __metadata__ key as a string: copies at most cap-1 bytes and a zero. SPA_NONE when absent. */
enum spa_err spa_st_metadata(const uint8_t *block, size_t len, const char *key, char *out, size_t cap);

/* The tensor of a name, NULL when there is none. */
const struct spa_st_tensor *spa_st_find(const struct spa_st_tensor *tensors, size_t n, const char *name);
/* Copies a tensor of [rows, cols], or [rows] with cols 0, from the block it was read of; F16 and BF16 are widened. false: another shape or type. */
bool spa_st_numbers(const uint8_t *block, const struct spa_st_tensor *t, uint32_t rows, uint32_t cols, float *out);

/* Writes tensors (name, dims, and dtype F32 or F16 filled in; offset and n_bytes are set here) with one metadata pair {"format":"pt"}.
 * data[i] is tensor i's numbers. SPA_OK or SPA_ERR_NOMEM; *len gets the bytes needed either way. */
enum spa_err spa_st_write(struct spa_st_tensor *tensors, const float *const *data, size_t n, uint8_t *out, size_t cap,
                          size_t *len);

#endif
