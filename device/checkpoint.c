/* checkpoint.c - in: weights, moments and a step, or a path. out: a file, or these (checkpoint.h). */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VERSION = 1, HEAD_BYTES = 64, MAX_PARAMS = 1 << 28 };
static const char magic[8] = { 'S', 'P', 'A', 'C', 'K', 'P', 'T', '\n' };

static size_t file_len(size_t n_params, size_t n_moments) { return HEAD_BYTES + (n_params + n_moments) * sizeof(float) + SPA_SHA256_BYTES; }

int spa_checkpoint_save(const char *path, const struct spa_checkpoint *c, char *why, size_t why_len)
{
    const uint32_t version = VERSION;
    const uint64_t n = c->n_params;
    const size_t len = file_len(c->n_params, c->n_moments), weights = c->n_params * sizeof(float);
    uint8_t *b = calloc(1, len);
    if (!b) {
        snprintf(why, why_len, "out of memory for the checkpoint '%s'", path);
        return -1;
    }
    memcpy(b, magic, sizeof magic);
    memcpy(b + 8, &version, sizeof version);
    memcpy(b + 16, c->key, sizeof c->key);
    memcpy(b + 48, &c->step, sizeof c->step);
    memcpy(b + 56, &n, sizeof n);
    memcpy(b + HEAD_BYTES, c->params, weights);
    memcpy(b + HEAD_BYTES + weights, c->moments, c->n_moments * sizeof(float));
    spa_sha256(b, len - SPA_SHA256_BYTES, b + len - SPA_SHA256_BYTES);
    const int rc = spa_store_replace(path, b, len, true, why, why_len);
    free(b);
    return rc;
}

int spa_checkpoint_load(const char *path, struct spa_checkpoint *c, char *why, size_t why_len)
{
    uint8_t *b, sum[SPA_SHA256_BYTES];
    uint32_t version;
    uint64_t n;
    size_t len;
    if (access(path, F_OK) != 0)
        return 0;
    if (spa_store_read(path, file_len(MAX_PARAMS, 2 * (size_t)MAX_PARAMS), &b, &len, why, why_len) != 0)
        return -1;
    const char *trouble = NULL;
    if (len < file_len(0, 0) || memcmp(b, magic, sizeof magic) != 0) {
        trouble = "is no checkpoint of spa train";
    } else {
        memcpy(&version, b + 8, sizeof version);
        memcpy(&n, b + 56, sizeof n);
        spa_sha256(b, len - SPA_SHA256_BYTES, sum);
        if (version != VERSION)
            trouble = "is a checkpoint of another version of spa";
        else if (n > MAX_PARAMS || len < file_len((size_t)n, 0) || memcmp(sum, b + len - SPA_SHA256_BYTES, sizeof sum) != 0)
            trouble = "is damaged";
        else if (n != c->n_params || len != file_len(c->n_params, c->n_moments) || memcmp(b + 16, c->key, sizeof c->key) != 0)
            trouble = "belongs to a training with other rows or options";
    }
    if (trouble) {
        snprintf(why, why_len, "'%.600s' %s; delete it, or train without --resume", path, trouble);
    } else {
        const size_t weights = c->n_params * sizeof(float);
        memcpy(&c->step, b + 48, sizeof c->step);
        memcpy(c->params, b + HEAD_BYTES, weights);
        memcpy(c->moments, b + HEAD_BYTES + weights, c->n_moments * sizeof(float));
    }
    free(b);
    return trouble ? -1 : 1;
}
