/* costs.c - in: nothing. out: CSV: what a gated token costs in bytes and microseconds, in the cloud and on the device, for models of several
 * widths d and depths N, without the models: weights, states and bases are random, all sizes are real.
 *
 *   ninja -C build spa-costs && build/spa-costs [--repeat 200]
 *
 * Forms: the paper's (every layer's raw output in F16, r 32, m = d, replace, no context) and ours (nine taps of 64 in I8, r = m = 64,
 * context attention over 256 tokens, states in I8). Times are CPU time of this thread, medians, everything in memory that has just been
 * used: a device or cloud with other work between is slower. */
#define _POSIX_C_SOURCE 200809L
#include "basis.h"
#include "gate.h"
#include "measure.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OURS_TAPS = 9, OURS_K = 64, CONTEXT = 256, REPEAT_MAX = 2001 };

static const struct model { const char *like; uint32_t d, n; } models[] = {
    { "SmolLM2 135M", 576, 30 }, { "1B", 2048, 16 }, { "3B", 3072, 28 }, { "7B", 4096, 32 }, { "13B", 5120, 40 }, { "70B", 8192, 80 },
};

static struct spa_shape paper(const struct model *m)
{
    struct spa_shape s = { .d = m->d, .n_layers = m->n, .r = 32, .m = m->d, .n_taps = m->n + 1, .k = m->d, .normalise = SPA_NORM_NONE, .mode = SPA_REPLACE };
    for (uint32_t i = 0; i <= m->n; i++)
        s.taps[i] = i;
    return s;
}

static struct spa_shape ours(const struct model *m)
{
    struct spa_shape s = { .d = m->d, .n_layers = m->n, .r = 64, .m = 64, .n_taps = OURS_TAPS, .k = OURS_K, .basis = true, .normalise = SPA_NORM_RMS,
                           .mode = SPA_ADD, .n_ctx_taps = OURS_TAPS, .e = 64, .n_heads = 4, .n_att = 2, .att_rungs = { 4, 8 } };
    for (uint32_t i = 0; i < OURS_TAPS; i++)
        s.taps[i] = s.ctx_taps[i] = m->n * i / (OURS_TAPS - 1);
    return s;
}

/* The four parts of a gated token's way, each measured apart. */
struct work {
    const struct spa_shape *s;
    enum spa_dtype taps, state;
    float *basis, *y, *scratch, *x, *params, *z, *gate, *ladder_scratch;
    uint8_t *bytes;
    struct spa_context context;
    volatile float sink;
};

static void prepare(struct work *w)
{
    for (uint32_t i = 0; i < w->s->n_taps; i++)
        spa_tap_prepare(w->s, w->basis, i, w->y + (size_t)i * w->s->d, w->scratch, w->x + (size_t)i * w->s->k);
    spa_dtype_pack(w->taps, w->x, w->s->n_taps, w->s->k, w->bytes);
}

static void gate(struct work *w) { w->sink = spa_gate_score(w->s->d, w->gate, 0, w->y); }

static void ladder(struct work *w)
{
    if (spa_dtype_unpack(w->taps, w->bytes, w->s->n_taps, w->s->k, w->x) != SPA_OK)
        abort();
    if (w->s->n_ctx_taps) {
        spa_context_cut(&w->context, CONTEXT - 1);
        spa_ladder_context(w->s, w->params, w->x, w->ladder_scratch, &w->context);
    }
    spa_ladder_forward(w->s, w->params, w->x, w->s->n_ctx_taps ? &w->context : NULL, w->ladder_scratch, w->z);
}

static void state(struct work *w) { spa_wire_state_pack(w->s, w->state, w->z, w->bytes); }

static double median_us(void (*part)(struct work *), struct work *w, int repeat)
{
    static double took[REPEAT_MAX];
    for (int i = 0; i < repeat; i++) {
        const double from = cpu_us();
        part(w);
        took[i] = cpu_us() - from;
    }
    qsort(took, (size_t)repeat, sizeof *took, smaller);
    return took[repeat / 2];
}

static void row(const struct model *m, const char *form, struct spa_shape s, enum spa_dtype taps, enum spa_dtype state_type, int repeat)
{
    if (spa_shape_check(&s) != SPA_OK)
        abort();
    const size_t n_params = spa_param_count(&s), full = spa_wire_row_bytes(&s, taps), up = spa_wire_state_bytes(&s, state_type);
    struct work w = { .s = &s, .taps = taps, .state = state_type, .basis = s.basis ? numbers(spa_basis_floats(&s), 1) : NULL,
                      .y = numbers((size_t)s.n_taps * s.d, 2), .scratch = numbers(s.d, 3), .x = numbers((size_t)s.n_taps * s.k, 4), .params = malloc(n_params * sizeof(float)),
                      .z = numbers(s.d, 5), .gate = numbers(s.d, 6), .ladder_scratch = numbers(spa_ladder_scratch_len(&s, CONTEXT), 7), .bytes = malloc(full + up),
                      .context = { .kv = numbers(spa_context_floats(&s, CONTEXT), 8), .cap = CONTEXT } };
    if (!w.params || !w.bytes)
        abort();
    for (uint32_t i = 0; s.basis && i < s.n_taps; i++)
        w.basis[(size_t)i * (1 + s.d + (size_t)s.k * s.d)] = 1;   /* a scale is positive */
    spa_ladder_init(&s, 1, w.params);
    for (uint32_t i = 0; s.n_ctx_taps && i < CONTEXT - 1; i++)
        spa_ladder_context(&s, w.params, w.x, w.ladder_scratch, &w.context);
    const double prepare_us = median_us(prepare, &w, repeat), gate_us = median_us(gate, &w, repeat);
    prepare(&w);
    const double ladder_us = median_us(ladder, &w, repeat);
    printf("%s,%u,%u,%s,%zu,%zu,%zu,%zu,%.2f,%.2f,%.2f,%.2f\n", m->like, m->d, m->n, form, full, up, n_params, spa_basis_floats(&s), prepare_us, gate_us,
           ladder_us, median_us(state, &w, repeat));
    fflush(stdout);
    free(w.basis);
    free(w.y);
    free(w.scratch);
    free(w.x);
    free(w.params);
    free(w.z);
    free(w.gate);
    free(w.ladder_scratch);
    free(w.bytes);
    free(w.context.kv);
}

int main(int argc, char **argv)
{
    int repeat = 200;
    if (argc == 3 && strcmp(argv[1], "--repeat") == 0)
        repeat = atoi(argv[2]);
    if ((argc != 1 && argc != 3) || repeat < 1 || repeat > REPEAT_MAX) {
        fprintf(stderr, "spa-costs: nothing, or --repeat 1 to %d\n", REPEAT_MAX);
        return 2;
    }
    printf("model,d,layers,form,bytes_down,bytes_up,ladder_params,basis_floats,prepare_us,gate_us,ladder_us,pack_state_us\n");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        row(&models[i], "ours", ours(&models[i]), SPA_I8, SPA_I8, repeat);
        row(&models[i], "paper", paper(&models[i]), SPA_F16, SPA_F16, repeat > 20 ? 20 : repeat);   /* it is slow, and steady */
    }
    return 0;
}
