/* golden.h - for tests: the reference numbers in tests/golden (its README says what they are), and how far apart numbers are.
 *
 * golden_load + golden_tensor read a safetensors file, golden_gguf_f32 one F32 tensor of a GGUF file; both trust their
 * input, which is ours. golden_tiny_* is the authors' tiny model: its shape, its weights under the authors' names, and
 * the frozen head with its mean cross-entropy. A missing file or tensor ends the test program. */
#ifndef SPA_TESTS_GOLDEN_H
#define SPA_TESTS_GOLDEN_H

#include "ladder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GOLDEN_D = 64, GOLDEN_V = 264, GOLDEN_T = 38, GOLDEN_LAYERS = 4 };

struct golden {
    char  *bytes;   /* whole file; free() it */
    size_t len;
};

static inline void golden_die(const char *what, const char *name)
{
    fprintf(stderr, "tests/golden: %s: %s\n", what, name);
    abort();
}

static inline struct golden golden_load(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/golden/%s", SPA_TEST_DIR, name);
    FILE *f = fopen(path, "rb");
    if (!f)
        golden_die("cannot open", path);
    struct golden g = {0};
    fseek(f, 0, SEEK_END);
    g.len = (size_t)ftell(f);
    rewind(f);
    g.bytes = malloc(g.len + 1);
    if (!g.bytes || fread(g.bytes, 1, g.len, f) != g.len)
        golden_die("cannot read", path);
    g.bytes[g.len] = 0;
    fclose(f);
    return g;
}

/* A tensor's 4-byte numbers in fresh memory; free() it. *n gets their count where n is not NULL. */
static inline void *golden_tensor(const struct golden *g, const char *name, size_t *n)
{
    uint64_t head;
    memcpy(&head, g->bytes, sizeof head);
    char key[256];
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *entry = strstr(g->bytes + 8, key);
    const char *offsets = entry ? strstr(entry, "\"data_offsets\":[") : NULL;
    if (!offsets)
        golden_die("no tensor", name);
    char *rest;
    const size_t from = strtoull(offsets + strlen("\"data_offsets\":["), &rest, 10);
    const size_t to = strtoull(rest + 1, NULL, 10);
    void *data = malloc(to - from);
    if (!data || 8 + head + to > g->len)
        golden_die("cannot hold", name);
    memcpy(data, g->bytes + 8 + head + from, to - from);
    if (n)
        *n = (to - from) / 4;
    return data;
}

/* ---- GGUF: walk over the keys, then find a tensor ---- */

static inline uint64_t golden_u64(const char **p, size_t bytes)
{
    uint64_t v = 0;
    memcpy(&v, *p, bytes);
    *p += bytes;
    return v;
}

static inline void golden_skip_value(const char **p, uint64_t type)
{
    static const unsigned char sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    if (type == 8) {            /* string */
        const uint64_t len = golden_u64(p, 8);
        *p += len;
    } else if (type == 9) {     /* array */
        const uint64_t of = golden_u64(p, 4), n = golden_u64(p, 8);
        for (uint64_t i = 0; i < n; i++)
            golden_skip_value(p, of);
    } else {
        *p += sizes[type];
    }
}

static inline float *golden_gguf_f32(const char *file, const char *name, size_t *n)
{
    struct golden g = golden_load(file);
    const char *p = g.bytes + 8;
    const uint64_t n_tensors = golden_u64(&p, 8), n_keys = golden_u64(&p, 8);
    for (uint64_t i = 0; i < n_keys; i++) {
        const uint64_t len = golden_u64(&p, 8);
        p += len;
        golden_skip_value(&p, golden_u64(&p, 4));
    }
    uint64_t found_at = 0, found_n = 0;
    for (uint64_t i = 0; i < n_tensors; i++) {
        const uint64_t len = golden_u64(&p, 8);
        const int same = len == strlen(name) && memcmp(p, name, len) == 0;
        p += len;
        uint64_t n_dims = golden_u64(&p, 4), count = 1;
        while (n_dims--)
            count *= golden_u64(&p, 8);
        const uint64_t type = golden_u64(&p, 4), offset = golden_u64(&p, 8);
        if (same && type == 0) {
            found_at = offset;
            found_n = count;
        }
    }
    if (!found_n)
        golden_die("no F32 tensor", name);
    const size_t data_at = ((size_t)(p - g.bytes) + 31) / 32 * 32;
    float *data = malloc(found_n * 4);
    if (!data)
        golden_die("cannot hold", name);
    memcpy(data, g.bytes + data_at + found_at, found_n * 4);
    *n = found_n;
    free(g.bytes);
    return data;
}

/* ---- how far apart ---- */

/* Largest difference, relative to the largest value expected. */
static inline double golden_max_error(const float *got, const float *want, size_t n)
{
    double error = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double e = fabs((double)got[i] - (double)want[i]);
        error = !(e <= error) ? e : error;
        largest = fmax(largest, fabs((double)want[i]));
    }
    return largest > 0 ? error / largest : error;
}

/* Norm of the difference, relative to the norm expected. */
static inline double golden_norm_error(const float *got, const float *want, size_t n)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return norm > 0 ? sqrt(error / norm) : sqrt(error);
}

/* ---- the tiny model ---- */

static inline struct spa_shape golden_tiny_shape(void)
{
    struct spa_shape s = { .d = GOLDEN_D, .n_layers = GOLDEN_LAYERS, .r = 8, .m = GOLDEN_D, .n_taps = 5,
                           .taps = { 0, 1, 2, 3, 4 }, .k = GOLDEN_D, .mode = SPA_REPLACE };
    return s;
}

/* Our tensor's name as the authors' checkpoint has it. */
static inline void golden_authors_name(const char *ours, const char *prefix, char *out, size_t cap)
{
    const char *kind = ours[0] == 'W' || ours[0] == 'U' || ours[0] == 'V' ? "weight" : "bias";
    const int i = ours[1] == '.' ? atoi(ours + 2) : -1;
    if (i < 0)
        snprintf(out, cap, "%sladder_side.output_adapter.%s", prefix, kind);
    else if ((ours[0] == 'W' || ours[0] == 'b') && i == 0)
        snprintf(out, cap, "%sladder_side.input_adapter.%s", prefix, kind);
    else if (ours[0] == 'W' || ours[0] == 'b')
        snprintf(out, cap, "%sladder_side.down_adapters.%d.%s", prefix, i - 1, kind);
    else
        snprintf(out, cap, "%sladder_side.side_adapters.%d.adapter_%s.%s", prefix, i - 1,
                 ours[0] == 'U' || ours[0] == 'c' ? "h_to_r" : "r_to_h", kind);
}

/* All tensors of one kind ("" weights, "train.grad." and so on) in layout order; free() it. */
static inline float *golden_tiny_params(const struct golden *g, const char *prefix)
{
    const struct spa_shape s = golden_tiny_shape();
    float *params = malloc(spa_param_count(&s) * sizeof *params);
    for (size_t i = 0; i < spa_tensor_count(&s); i++) {
        struct spa_tensor t;
        char name[128];
        size_t n;
        spa_param_tensor(&s, i, &t);
        golden_authors_name(t.name, prefix, name, sizeof name);
        float *data = golden_tensor(g, name, &n);
        if (!params || n != (size_t)t.rows * t.cols)
            golden_die("shape differs", name);
        memcpy(params + t.offset, data, n * sizeof *data);
        free(data);
    }
    return params;
}

/* x [T, n_taps * d] from state.i; free() it. */
static inline float *golden_tiny_taps(const struct golden *vectors)
{
    const size_t d = GOLDEN_D, n_taps = GOLDEN_LAYERS + 1;
    float *x = malloc(GOLDEN_T * n_taps * d * sizeof *x);
    for (size_t i = 0; i < n_taps; i++) {
        char name[32];
        snprintf(name, sizeof name, "state.%d", (int)i);
        float *state = golden_tensor(vectors, name, NULL);
        for (size_t t = 0; t < GOLDEN_T; t++)
            memcpy(x + (t * n_taps + i) * d, state + t * d, d * sizeof *x);
        free(state);
    }
    return x;
}

/* Mean cross-entropy of head [n_vocab, d] on y + z (y NULL: on z) over n tokens; dz [n, d] its derivative. */
static inline double golden_head_loss(size_t d, size_t n_vocab, size_t n, const float *head, const float *y, const float *z,
                                      const int32_t *targets, float *dz)
{
    double loss = 0;
    double *p = malloc(n_vocab * sizeof *p);
    for (size_t t = 0; t < n; t++) {
        double max = -INFINITY, sum = 0;
        for (size_t v = 0; v < n_vocab; v++) {
            p[v] = 0;
            for (size_t i = 0; i < d; i++)
                p[v] += (double)head[v * d + i] * ((y ? (double)y[t * d + i] : 0) + (double)z[t * d + i]);
            max = fmax(max, p[v]);
        }
        const double hit = p[targets[t]];
        for (size_t v = 0; v < n_vocab; v++)
            sum += p[v] = exp(p[v] - max);
        loss += (max + log(sum) - hit) / (double)n;
        for (size_t i = 0; i < d; i++) {
            double g = 0;
            for (size_t v = 0; v < n_vocab; v++)
                g += (p[v] / sum - (v == (size_t)targets[t])) * (double)head[v * d + i];
            dz[t * d + i] = (float)(g / (double)n);
        }
    }
    free(p);
    return loss;
}

#endif
