/* generic.c - in: the file of a generic basis. out: bases for any taps and k (generic.h). */
#include "generic.h"
#include "pca.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAGIC = 8, HASH = 32, HEAD = MAGIC + HASH + 16 + 8 };
static const char magic[MAGIC + 1] = "SPABASE1";

struct spa_generic {
    uint8_t *map;
    size_t   len;
    uint32_t d, n_layers, k;
    uint64_t n_states;
};

static size_t layer_bytes(uint32_t d, uint32_t k)
{
    return (k * sizeof(double) + (1 + (size_t)k) * d * sizeof(float) + 7) / 8 * 8;
}

static struct spa_generic_layer layer_of(const uint8_t *bytes, uint32_t d, uint32_t k, uint32_t layer)
{
    uint8_t *at = (uint8_t *)(uintptr_t)bytes + HEAD + layer * layer_bytes(d, k);
    float *mean = (float *)(void *)(at + k * sizeof(double));
    return (struct spa_generic_layer){ (double *)(void *)at, mean, mean + d };
}

uint8_t *spa_generic_bytes(const struct spa_model_info *info, uint32_t k, uint64_t n_states, size_t *len)
{
    const uint32_t numbers[4] = { info->d, info->n_layers, k, 0 };
    *len = HEAD + (info->n_layers + (size_t)1) * layer_bytes(info->d, k) + HASH;
    uint8_t *bytes = calloc(1, *len);
    if (!bytes)
        return NULL;
    memcpy(bytes, magic, MAGIC);
    memcpy(bytes + MAGIC, info->hash, HASH);
    memcpy(bytes + MAGIC + HASH, numbers, sizeof numbers);
    memcpy(bytes + MAGIC + HASH + sizeof numbers, &n_states, sizeof n_states);
    return bytes;
}

struct spa_generic_layer spa_generic_layer(uint8_t *bytes, const struct spa_model_info *info, uint32_t k, uint32_t layer)
{
    return layer_of(bytes, info->d, k, layer);
}

static void hash_of(const uint8_t *bytes, size_t len, uint8_t hash[HASH])
{
    if (!EVP_Digest(bytes, len, hash, NULL, EVP_sha256(), NULL))
        abort();   /* only without memory, or in an OpenSSL that lacks SHA-256: a hash must never be wrong in silence */
}

void spa_generic_seal(uint8_t *bytes, size_t len)
{
    hash_of(bytes, len - HASH, bytes + len - HASH);
}

/* Only a damaged maker writes numbers that cannot be, but they would reach every device. */
static bool usable(const struct spa_generic *g)
{
    for (uint32_t l = 0; l <= g->n_layers; l++) {
        const struct spa_generic_layer at = layer_of(g->map, g->d, g->k, l);
        for (size_t i = 0; i < g->k; i++)
            if (!isfinite(at.variances[i]) || at.variances[i] < 0)
                return false;
        for (size_t i = 0; i < (1 + (size_t)g->k) * g->d; i++)
            if (!isfinite(at.mean[i]))
                return false;
        const float scale = spa_pca_scale(at.variances, g->k);
        if (!(scale > 1e-20f) || !isfinite(scale))
            return false;
    }
    return true;
}

static const char *read_head(struct spa_generic *g, const struct spa_model_info *info)
{
    uint32_t numbers[4];
    uint8_t hash[HASH];
    if (g->len < HEAD + HASH || memcmp(g->map, magic, MAGIC) != 0)
        return "it is not a generic basis; make one with 'spa-cloud basis'";
    if (memcmp(g->map + MAGIC, info->hash, HASH) != 0)
        return "it belongs to another model and is not used; make one for this model with 'spa-cloud basis'";
    memcpy(numbers, g->map + MAGIC + HASH, sizeof numbers);
    memcpy(&g->n_states, g->map + MAGIC + HASH + sizeof numbers, sizeof g->n_states);
    g->d = numbers[0];
    g->n_layers = numbers[1];
    g->k = numbers[2];
    if (g->d != info->d || g->n_layers != info->n_layers || g->k == 0 || g->k > g->d ||
        g->len != HEAD + (g->n_layers + (size_t)1) * layer_bytes(g->d, g->k) + HASH)
        return "it is damaged; make it again with 'spa-cloud basis'";
    hash_of(g->map, g->len - HASH, hash);
    if (memcmp(hash, g->map + g->len - HASH, HASH) != 0 || !usable(g))
        return "it is damaged; make it again with 'spa-cloud basis'";
    return NULL;
}

int spa_generic_open(struct spa_generic **out, const char *path, const struct spa_model_info *info, char *why, size_t why_len)
{
    struct stat st;
    *out = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 1;
    void *map = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0
                    ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    const int code = errno;
    if (fd >= 0)
        close(fd);
    struct spa_generic *g = map != MAP_FAILED ? calloc(1, sizeof *g) : NULL;
    if (!g) {
        snprintf(why, why_len, "%s: the generic basis cannot be read%s%s", path, fd < 0 ? ": " : "", fd < 0 ? strerror(code) : "");
        return -1;
    }
    g->map = map;
    g->len = (size_t)st.st_size;
    const char *wrong = read_head(g, info);
    if (wrong) {
        snprintf(why, why_len, "%s: %s", path, wrong);
        spa_generic_close(g);
        return -1;
    }
    *out = g;
    return 0;
}

void spa_generic_close(struct spa_generic *g)
{
    if (g)
        munmap(g->map, g->len);
    free(g);
}

uint32_t spa_generic_states(const struct spa_generic *g)
{
    return g->n_states < UINT32_MAX ? (uint32_t)g->n_states : UINT32_MAX;
}

uint32_t spa_generic_k(const struct spa_generic *g)
{
    return g->k;
}

float *spa_generic_basis(const struct spa_generic *g, const struct spa_shape *shape)
{
    const size_t d = shape->d, k = shape->k, tap = 1 + d + k * d;
    if (k > g->k || !shape->basis || d != g->d || shape->n_layers != g->n_layers)
        return NULL;
    float *out = malloc(spa_basis_floats(shape) * sizeof *out);
    for (uint32_t i = 0; out && i < shape->n_taps; i++) {
        const struct spa_generic_layer at = layer_of(g->map, g->d, g->k, shape->taps[i]);
        out[i * tap] = spa_pca_scale(at.variances, shape->k);
        memcpy(out + i * tap + 1, at.mean, d * sizeof *out);
        memcpy(out + i * tap + 1 + d, at.p, k * d * sizeof *out);
    }
    return out;
}

void spa_generic_why_not(const struct spa_generic *g, const struct spa_shape *shape, char *why, size_t why_len)
{
    if (!g)
        snprintf(why, why_len, "this cloud has no generic basis for its model: its operator makes one with 'spa-cloud basis', or use --basis task:%u", shape->k);
    else if (shape->k > g->k)
        snprintf(why, why_len, "this cloud's generic basis has %u directions and not %u: use --basis generic:%u, or have it made again with 'spa-cloud basis --k %u'",
                 g->k, shape->k, g->k, shape->k);
    else
        snprintf(why, why_len, "the cloud is out of memory; try again later");
}
