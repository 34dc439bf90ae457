/* bench_ladder.c - in: nothing. out: CSV: what one token costs the ladder, beside one pass over the same weights that only adds them up.
 *
 *   ninja -C build bench_ladder && build/bench_ladder [--rounds 400]
 *
 * Shapes: the paper's (d 576, N 30, every layer raw, r 32, m 576), nine taps of 64 (r 32, m 32), and what spa train makes (nine taps of
 * 64, r 64, m 64, context attention over 256 tokens). A round takes one sample of each: the stream, then the token. A sample is as many
 * runs as make about a million weights. Times are CPU time of this thread; the table gives medians, the stream's fastest as well.
 * The weights have just been used, so they lie in the innermost cache that holds them, for both alike. */
#define _POSIX_C_SOURCE 200809L
#include "kernels.h"
#include "ladder.h"
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS_MAX = 100001, CONTEXT = 256, SAMPLE_WEIGHTS = 1 << 20, SUMS = 8 };

static struct spa_shape shape(uint32_t n_taps, uint32_t k, uint32_t r, uint32_t m, uint32_t n_ctx_taps)
{
    struct spa_shape s = { .d = 576, .n_layers = 30, .r = r, .m = m, .n_taps = n_taps, .k = k, .basis = k < 576,
                           .normalise = k < 576 ? SPA_NORM_RMS : SPA_NORM_NONE, .mode = k < 576 ? SPA_ADD : SPA_REPLACE, .n_ctx_taps = n_ctx_taps };
    for (uint32_t i = 0; i < n_taps; i++)
        s.taps[i] = 30 * i / (n_taps - 1);
    if (n_ctx_taps) {
        memcpy(s.ctx_taps, s.taps, sizeof s.taps);
        s.e = r, s.n_heads = 4, s.n_att = 2;
        s.att_rungs[0] = n_taps / 2;
        s.att_rungs[1] = n_taps - 1;
    }
    return s;
}

/* Reads every weight once and does as little with it as can be: eight sums, so that no add waits for another. As the ladder's own loops
 * (kernels.h), once a kind of processor: a slow pass would flatter the ladder. */
#define STREAM(name, target, n_lanes)                                                    \
    target static float name(const float *w, size_t n)                                   \
    {                                                                                    \
        typedef float lanes __attribute__((vector_size(n_lanes * sizeof(float))));       \
        lanes sum[SUMS] = {{0}}, v;                                                      \
        float all = 0;                                                                   \
        size_t i = 0;                                                                    \
        for (; i + SUMS * n_lanes <= n; i += SUMS * n_lanes)                             \
            for (size_t l = 0; l < SUMS; l++) {                                          \
                memcpy(&v, w + i + l * n_lanes, sizeof v);                               \
                sum[l] += v;                                                             \
            }                                                                            \
        for (; i < n; i++)                                                               \
            all += w[i];                                                                 \
        for (size_t l = 0; l < SUMS; l++)                                                \
            for (size_t j = 0; j < n_lanes; j++)                                         \
                all += sum[l][j];                                                        \
        return all;                                                                      \
    }
STREAM(stream_plain, , 4)
#ifdef SPA_KERNELS_X86
STREAM(stream_avx2, __attribute__((target("avx2"))), 8)
STREAM(stream_avx512, __attribute__((target("avx512f"))), 16)
#endif

static float stream(const float *w, size_t n)
{
#ifdef SPA_KERNELS_X86
    if (__builtin_cpu_supports("avx512f"))
        return stream_avx512(w, n);
    if (__builtin_cpu_supports("avx2"))
        return stream_avx2(w, n);
#endif
    return stream_plain(w, n);
}

static void row(const char *name, struct spa_shape s, int rounds)
{
    if (spa_shape_check(&s) != SPA_OK)
        abort();
    const size_t n = spa_param_count(&s), runs = (SAMPLE_WEIGHTS + n - 1) / n;
    float *params = numbers(n, 1), *x = numbers((size_t)s.n_taps * s.k, 2), *scratch = numbers(spa_ladder_scratch_len(&s, CONTEXT), 3);
    float *z = numbers(s.d, 4);
    struct spa_context context = { .kv = numbers(spa_context_floats(&s, CONTEXT), 5), .cap = CONTEXT };
    spa_ladder_init(&s, 1, params);
    for (uint32_t i = 0; s.n_ctx_taps && i < CONTEXT; i++)
        if (spa_ladder_context(&s, params, x, scratch, &context) != SPA_OK)
            abort();
    static double token_us[ROUNDS_MAX], stream_us[ROUNDS_MAX];
    volatile float sink = 0;
    for (int round = 0; round < rounds; round++) {
        double from = cpu_us();
        for (size_t i = 0; i < runs; i++)
            sink += stream(params, n);
        stream_us[round] = (cpu_us() - from) / (double)runs;
        from = cpu_us();
        for (size_t i = 0; i < runs; i++) {
            if (s.n_ctx_taps && (spa_context_cut(&context, CONTEXT - 1) != SPA_OK || spa_ladder_context(&s, params, x, scratch, &context) != SPA_OK))
                abort();
            spa_ladder_forward(&s, params, x, s.n_ctx_taps ? &context : NULL, scratch, z);
            sink += z[0];
        }
        token_us[round] = (cpu_us() - from) / (double)runs;
    }
    qsort(token_us, (size_t)rounds, sizeof *token_us, smaller);
    qsort(stream_us, (size_t)rounds, sizeof *stream_us, smaller);
    printf("%s,%zu,%.2f,%.2f,%.2f,%.2f\n", name, n * sizeof(float), token_us[rounds / 2], stream_us[rounds / 2], stream_us[0],
           token_us[rounds / 2] / stream_us[rounds / 2]);
    fflush(stdout);
    free(params);
    free(x);
    free(scratch);
    free(z);
    free(context.kv);
}

int main(int argc, char **argv)
{
    int rounds = 400;
    if (argc == 3 && strcmp(argv[1], "--rounds") == 0)
        rounds = atoi(argv[2]);
    if ((argc != 1 && argc != 3) || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "bench_ladder: nothing, or --rounds 1 to %d\n", ROUNDS_MAX);
        return 2;
    }
    printf("shape,weight_bytes,token_us,stream_us,stream_best_us,token_by_stream\n");
    row("paper: 31 raw taps r 32 m 576", shape(31, 576, 32, 576, 0), rounds);
    row("9 taps of 64 r 32 m 32", shape(9, 64, 32, 32, 0), rounds);
    row("spa train: 9 taps of 64 r 64 m 64 and context 256", shape(9, 64, 64, 64, 9), rounds);
    return 0;
}
