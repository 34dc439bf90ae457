/* plugin_sample.c - writes a small plugin with context attention that looks back, and what our code computes with it, for readers
 * that are not ours (test_plugin_gguf.py).
 *
 *   plugin_sample FOLDER       FOLDER/sample.gguf; x.f32 [N_TOKENS, n_taps, k], prepared taps; z.f32 [N_TOKENS, d]; little-endian F32 */
#include "plugin.h"
#include "sample.h"

#include <stdio.h>
#include <stdlib.h>

enum { N_TOKENS = 11 };

static float *noise(size_t n, uint64_t seed)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)(int)(spa_noise64(seed, 1, i) % 2001) / 1500.0f - 0.667f;
    return x;
}

static int save(const char *folder, const char *name, const void *bytes, size_t len)
{
    char path[1000];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return -1;
    FILE *f = fopen(path, "wb");
    if (!f)
        return -1;
    const size_t n = fwrite(bytes, 1, len, f);
    return fclose(f) == 0 && n == len ? 0 : -1;
}

int main(int argc, char **argv)
{
    const struct spa_plugin p = {
        .shape = { .d = 12, .n_layers = 5, .r = 8, .m = 6, .n_taps = 3, .taps = { 0, 2, 5 }, .k = 12, .mode = SPA_ADD, .n_ctx_taps = 2,
                   .ctx_taps = { 0, 5 }, .e = 4, .n_heads = 2, .n_att = 2, .att_rungs = { 0, 2 }, .ctx_mix = true },
        .gate_threshold = 0.5f,
    };
    const struct spa_shape *s = &p.shape;
    const size_t width = (size_t)s->n_taps * s->k;
    float x_ctx[2 * 12], *params = noise(spa_param_count(s), 1), *x = noise(N_TOKENS * width, 2), *z = malloc(N_TOKENS * s->d * sizeof *z);
    float *scratch = malloc(spa_ladder_scratch_len(s, N_TOKENS) * sizeof *scratch);
    struct spa_context ctx = { .kv = malloc(spa_context_floats(s, N_TOKENS) * sizeof(float)), .cap = N_TOKENS };
    const struct spa_plugin_data data = { .params = params };
    size_t len = spa_plugin_write_len(&p, &data);
    uint8_t *bytes = malloc(len);
    if (argc != 2 || spa_shape_check(s) != SPA_OK || !params || !x || !z || !scratch || !ctx.kv || !bytes)
        return 2;
    for (size_t t = 0; t < N_TOKENS; t++) {
        spa_ladder_context_of(s, x + t * width, x_ctx);
        if (spa_ladder_context(s, params, x_ctx, scratch, &ctx) != SPA_OK)
            return 2;
        spa_ladder_forward(s, params, x + t * width, &ctx, scratch, z + t * s->d);
    }
    int rc = spa_plugin_write(&p, &data, bytes, len, &len) == SPA_OK ? 0 : -1;
    if (rc == 0 && (save(argv[1], "sample.gguf", bytes, len) != 0 || save(argv[1], "x.f32", x, N_TOKENS * width * sizeof *x) != 0 ||
                    save(argv[1], "z.f32", z, N_TOKENS * s->d * sizeof *z) != 0))
        rc = -1;
    free(params), free(x), free(z), free(scratch), free(ctx.kv), free(bytes);
    return rc ? 1 : 0;
}
