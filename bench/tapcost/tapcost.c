/* tapcost.c - in: a GGUF. out: CSV: what capturing every layer's output costs a decode call, and what gate, projection and LM head take of a
 * token's time in the cloud.
 *
 *   ninja -C build spa-tapcost && build/spa-tapcost MODEL.gguf [--threads N] [--steps 40] [--rounds 5] [--widths 1,8,32]
 *
 * So many sequences side by side, one token each a step, as the cloud decodes them; a round is so many steps without taps and so many with all
 * of them, in turns step by step, so that whatever else the machine does falls on both. ms are CPU time of all threads and wall time; shares
 * are medians over the rounds. The head runs after every step, once for each state, as in the cloud. */
#define _POSIX_C_SOURCE 200809L
#include "basis.h"
#include "dtype.h"
#include "gate.h"
#include "model_llama.h"
#include "sample.h"

#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_CTX_SLOT = 512, WIDTHS_MAX = 8, WIDEST = 64, ROUNDS_MAX = 101, TAPS = 9, K = 64 };

struct clocks { double cpu_ms, wall_ms; };

static double ms_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void add_since(struct clocks *sum, struct clocks from)
{
    sum->cpu_ms += ms_of(CLOCK_PROCESS_CPUTIME_ID) - from.cpu_ms;
    sum->wall_ms += ms_of(CLOCK_MONOTONIC) - from.wall_ms;
}

static struct clocks now(void)
{
    return (struct clocks){ ms_of(CLOCK_PROCESS_CPUTIME_ID), ms_of(CLOCK_MONOTONIC) };
}

static int smaller(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, smaller);
    return x[n / 2];
}

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

static int fail(const char *why)
{
    fprintf(stderr, "spa-tapcost: %s\n", why);
    return 1;
}

/* ---- decode calls ---- */

struct run {
    struct spa_model m;
    struct spa_batch_token batch[WIDEST];
    struct spa_states states;
    uint32_t layers[1024], n_layers, pos;
    float *logits;
};

/* One call of `width` sequences. It is undone, so that with and without taps meet the same cache. */
static int step(struct run *r, uint32_t width, bool taps, struct clocks *decode, struct clocks *head)
{
    for (uint32_t i = 0; i < width; i++)
        r->batch[i] = (struct spa_batch_token){ (int32_t)(100 + (r->pos * 31 + i) % 1000) % r->m.info.n_vocab, r->pos, i, SPA_WANT_ALL };
    struct clocks from = now();
    const int rc = r->m.decode(r->m.self, r->batch, width, r->layers, taps ? r->n_layers : 0, &r->states);
    add_since(decode, from);
    if (rc != 0)
        return -1;
    from = now();
    r->m.head(r->m.self, r->states.y_fin, width, r->logits);
    add_since(head, from);
    for (uint32_t i = 0; i < width; i++)
        r->m.seq_rm(r->m.self, i, r->pos);
    return 0;
}

static int measure(struct run *r, uint32_t width, int steps, int rounds)
{
    double cpu[ROUNDS_MAX], wall[ROUNDS_MAX], plain_ms[ROUNDS_MAX], head_ms[ROUNDS_MAX];
    for (int i = 0; i < rounds; i++) {
        struct clocks with = { 0 }, without = { 0 }, head = { 0 };
        for (int k = -2; k < steps; k++) {
            struct clocks ignored = { 0 };   /* the first ones warm up */
            const bool first = k % 2 == 0;
            if (step(r, width, first, k < 0 ? &ignored : first ? &with : &without, k < 0 ? &ignored : &head) != 0 ||
                step(r, width, !first, k < 0 ? &ignored : first ? &without : &with, k < 0 ? &ignored : &head) != 0)
                return fail("a decode call failed");
            /* and so the cache grows */
            for (uint32_t s = 0; s < width; s++)
                r->batch[s].want = SPA_WANT_NONE;
            r->batch[0].want = SPA_WANT_ALL;
            if (r->m.decode(r->m.self, r->batch, width, NULL, 0, &r->states) != 0)
                return fail("a decode call failed");
            r->pos++;
        }
        head.cpu_ms /= 2;
        head.wall_ms /= 2;
        cpu[i] = 100 * (without.cpu_ms + head.cpu_ms) / (with.cpu_ms + head.cpu_ms);
        wall[i] = 100 * (without.wall_ms + head.wall_ms) / (with.wall_ms + head.wall_ms);
        plain_ms[i] = (without.cpu_ms + head.cpu_ms) / steps / width;
        head_ms[i] = head.cpu_ms / steps / width;
        for (uint32_t s = 0; s < width; s++)
            r->m.seq_rm(r->m.self, s, 0);
        r->pos = 0;
    }
    const double share = median(cpu, rounds), share_wall = median(wall, rounds);
    printf("%u,%.2f,%.1f,%.1f,%.1f,%.1f,%.0f\n", width, median(plain_ms, rounds), share, cpu[0], cpu[rounds - 1], share_wall, 1e3 * median(head_ms, rounds));
    fflush(stdout);
    return 0;
}

/* ---- what the cloud does with a gated token's states ---- */

static int parts(const struct spa_model_info *info)
{
    struct spa_shape s = { .d = info->d, .n_layers = info->n_layers, .r = 64, .m = 64, .n_taps = TAPS, .k = K, .basis = true, .normalise = SPA_NORM_RMS, .mode = SPA_ADD };
    enum { REPEAT = 2001 };
    static double tap_us[REPEAT], gate_us[REPEAT];
    for (uint32_t i = 0; i < TAPS; i++)
        s.taps[i] = info->n_layers * i / (TAPS - 1);
    const size_t n_basis = spa_basis_floats(&s);
    float *basis = malloc(n_basis * sizeof *basis), *y = malloc((size_t)TAPS * s.d * sizeof *y), *scratch = malloc(s.d * sizeof *scratch), x[TAPS * K];
    uint8_t packed[TAPS * (K + 4)];
    if (!basis || !y || !scratch)
        return fail("out of memory");
    for (size_t i = 0; i < n_basis; i++)
        basis[i] = (float)(spa_noise64(1, i, 0) % 1000) / 1000;
    for (size_t i = 0; i < (size_t)TAPS * s.d; i++)
        y[i] = (float)(spa_noise64(2, i, 0) % 1000) / 1000;
    volatile float sink;
    for (int i = 0; i < REPEAT; i++) {
        double from = ms_of(CLOCK_THREAD_CPUTIME_ID);
        for (uint32_t t = 0; t < TAPS; t++)
            spa_tap_prepare(&s, basis, t, y + (size_t)t * s.d, scratch, x + t * K);
        spa_dtype_pack(SPA_I8, x, TAPS, K, packed);
        tap_us[i] = 1e3 * (ms_of(CLOCK_THREAD_CPUTIME_ID) - from);
        from = ms_of(CLOCK_THREAD_CPUTIME_ID);
        sink = spa_gate_score(s.d, y, 0, basis) + spa_gate_score(TAPS * K, y, 0, x);
        gate_us[i] = 1e3 * (ms_of(CLOCK_THREAD_CPUTIME_ID) - from);
    }
    (void)sink;
    printf("\npart,us_per_token\nprojection of %d taps to %d and packing,%.1f\ngate on y_fin and taps,%.1f\n", TAPS, K, median(tap_us, REPEAT), median(gate_us, REPEAT));
    free(basis);
    free(y);
    free(scratch);
    return 0;
}

int main(int argc, char **argv)
{
    int threads = 0, steps = 40, rounds = 5;
    uint32_t widths[WIDTHS_MAX] = { 1, 8, 32 }, n_widths = 3;
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--steps") == 0)
            steps = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--rounds") == 0)
            rounds = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--widths") == 0) {
            n_widths = 0;
            for (char *at = argv[i + 1]; *at && n_widths < WIDTHS_MAX; at += *at == ',')
                widths[n_widths++] = (uint32_t)strtoul(at, &at, 10);
        }
    }
    uint32_t widest = 1;
    for (uint32_t i = 0; i < n_widths; i++)
        widest = widths[i] > widest ? widths[i] : widest;
    if (argc < 2 || argc % 2 || rounds < 1 || rounds > ROUNDS_MAX || steps < 1 || steps > N_CTX_SLOT - 8 || widest > WIDEST)
        return fail("say which model: spa-tapcost MODEL.gguf [--threads N] [--steps N] [--rounds N] [--widths W,..]");
    llama_log_set(quiet, NULL);
    static struct run r;
    char why[512];
    const struct spa_llama_config cfg = { .path = argv[1], .n_ctx = widest * N_CTX_SLOT, .n_slots = widest, .n_batch = 512, .n_ubatch = 32, .n_threads = threads,
                                          .type_k = "f16", .type_v = "f16", .flash_attn = true };
    if (spa_llama_open(&r.m, &cfg, why, sizeof why) != 0)
        return fail(why);
    for (uint32_t l = 0; l <= r.m.info.n_layers; l++)
        r.layers[r.n_layers++] = l;
    r.logits = malloc((size_t)widest * (size_t)r.m.info.n_vocab * sizeof *r.logits);
    int rc = r.logits ? 0 : fail("out of memory");
    printf("width,cpu_ms_per_token_without,percent_of_speed_with_all_taps_cpu,least,most,percent_wall,head_us_per_token\n");
    for (uint32_t i = 0; rc == 0 && i < n_widths; i++) {
        const int fewer = steps / (int)(1 + widths[i] / 16);   /* wide calls take longer and vary less */
        rc = measure(&r, widths[i], fewer ? fewer : 1, rounds);
    }
    if (rc == 0)
        rc = parts(&r.m.info);
    free(r.logits);
    spa_llama_close(&r.m);
    return rc;
}
