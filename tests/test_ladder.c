/* test_ladder.c - the ladder against its own equations in double and against itself. The reference's numbers are in
 * test_ladder_golden.c. */
#include "basis.h"
#include "golden.h"
#include "ladder_parts.h"
#include "sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void assert_below(double error, double limit, const char *what)
{
    if (!(error <= limit))
        fail_msg("%s: error %g exceeds %g", what, error, limit);
}

/* Uniform in +-1, from the generator that tests/test_sample.c looks at. */
static float noise(uint64_t key, uint64_t i)
{
    return (float)((double)spa_noise64(key, 77, i) * 0x1p-63 - 1.0);
}

static float *noise_array(uint64_t key, size_t n, float scale)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * noise(key, i);
    return x;
}

static float *floats(size_t n)
{
    float *x = calloc(n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* ---- the header's equations, naively and in double ---- */

enum { N_VOCAB = 7, N_CTX = 6, N_LOSS = 5, W = 64 };   /* W: no width here is larger */

struct reference {
    const struct spa_shape *s;
    const double *p;       /* parameters in layout order */
    const struct spa_row *row;
    struct spa_dropout drop;
};

static const double *weights(const struct reference *ref, const char *name)
{
    for (size_t i = 0; i < spa_tensor_count(ref->s); i++) {
        struct spa_tensor t;
        spa_param_tensor(ref->s, i, &t);
        if (strcmp(t.name, name) == 0)
            return ref->p + t.offset;
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static const double *numbered(const struct reference *ref, const char *format, unsigned i)
{
    char name[24];
    snprintf(name, sizeof name, format, i);
    return weights(ref, name);
}

static void affine(size_t rows, size_t cols, const double *w, const double *b, const double *x, double *y)
{
    for (size_t i = 0; i < rows; i++) {
        y[i] = b[i];
        for (size_t j = 0; j < cols; j++)
            y[i] += w[i * cols + j] * x[j];
    }
}

static void widen(size_t n, const float *x, double *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (double)x[i];
}

static void positive(size_t n, const double *x, double *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = fmax(x[i], 0);
}

/* What the keys and values of every position are made of: c, and with ctx_mix g. */
static void reference_context(const struct reference *ref, double g[N_CTX][W])
{
    const struct spa_shape *s = ref->s;
    const size_t e = s->e, n_in = (size_t)s->n_ctx_taps * s->k, width = s->ctx_mix ? e / s->n_heads : 0;
    double in[512], c[N_CTX][W], q[W], key[N_CTX][W], value[N_CTX][W];
    float keep[W];
    for (size_t j = 0; j < ref->row->n_ctx; j++) {
        widen(n_in, ref->row->x_ctx + j * n_in, in);
        affine(e, n_in, weights(ref, "ctx.W"), weights(ref, "ctx.b"), in, c[j]);
        positive(e, c[j], c[j]);
        memcpy(g[j], c[j], sizeof c[j]);
        if (s->ctx_mix) {
            affine(e, e, weights(ref, "ctx.mix.Wk"), weights(ref, "ctx.mix.bk"), c[j], key[j]);
            affine(e, e, weights(ref, "ctx.mix.Wv"), weights(ref, "ctx.mix.bv"), c[j], value[j]);
        }
    }
    for (size_t t = 0; s->ctx_mix && t < ref->row->n_ctx; t++) {
        affine(e, e, weights(ref, "ctx.mix.Wq"), weights(ref, "ctx.mix.bq"), c[t], q);
        spa_dropout_factors(ref->drop, (uint32_t)t, (size_t)s->n_taps + 1, e, keep);
        for (size_t from = 0; from < e; from += width) {
            double score[N_CTX], sum = 0;
            for (size_t j = 0; j <= t; j++) {
                score[j] = 0;
                for (size_t i = from; i < from + width; i++)
                    score[j] += q[i] * key[j][i] / sqrt((double)width);
                sum += score[j] = exp(score[j]);
            }
            for (size_t j = 0; j <= t; j++)
                for (size_t i = from; i < from + width; i++)
                    g[t][i] += score[j] / sum * value[j][i] * (ref->drop.p > 0 ? (double)keep[i] : 1);
        }
    }
}

static void reference_attention(const struct reference *ref, unsigned rung, double g[N_CTX][W], size_t n_ctx, double *h)
{
    const struct spa_shape *s = ref->s;
    const size_t e = s->e, r = s->r, kw = e / s->n_heads, vw = r / s->n_heads;
    double v[W], q[W], key[W], value[W], add[W] = {0}, score[64], values[64][W];
    positive(r, h, v);
    affine(e, r, numbered(ref, "att.%u.Wq", rung), numbered(ref, "att.%u.bq", rung), v, q);
    for (size_t head = 0; head < s->n_heads; head++) {
        double sum = 0;
        for (size_t j = 0; j < n_ctx; j++) {
            affine(e, e, numbered(ref, "att.%u.Wk", rung), numbered(ref, "att.%u.bk", rung), g[j], key);
            affine(r, e, numbered(ref, "att.%u.Wv", rung), numbered(ref, "att.%u.bv", rung), g[j], value);
            memcpy(values[j], value, r * sizeof *value);
            score[j] = 0;
            for (size_t i = head * kw; i < (head + 1) * kw; i++)
                score[j] += q[i] * key[i] / sqrt((double)kw);
            sum += score[j] = exp(score[j]);
        }
        for (size_t j = 0; j < n_ctx; j++)
            for (size_t i = head * vw; i < (head + 1) * vw; i++)
                add[i] += score[j] / sum * values[j][i];
    }
    for (size_t i = 0; i < r; i++)
        h[i] += add[i];
}

static void reference_forward(const struct reference *ref, double g[N_CTX][W], size_t token, double *z)
{
    const struct spa_shape *s = ref->s;
    const size_t r = s->r, m = s->m, k = s->k;
    double h[64], v[64], u[64], o[64], x[64];
    float keep[64];
    for (unsigned i = 0; i < s->n_taps; i++) {
        double next[64];
        widen(k, ref->row->x + (token * s->n_taps + i) * k, x);
        affine(r, k, numbered(ref, "W.%u", i), numbered(ref, "b.%u", i), x, next);
        if (i) {
            positive(r, h, v);
            affine(m, r, numbered(ref, "U.%u", i), numbered(ref, "c.%u", i), v, u);
            positive(m, u, u);
            affine(r, m, numbered(ref, "V.%u", i), numbered(ref, "e.%u", i), u, o);
            spa_dropout_factors(ref->drop, (uint32_t)token, i, r, keep);
            for (size_t l = 0; l < r; l++)
                next[l] += v[l] + o[l] * (ref->drop.p > 0 ? (double)keep[l] : 1);
        }
        memcpy(h, next, sizeof h);
        for (size_t a = 0; a < s->n_att; a++)
            if (s->att_rungs[a] == i)
                reference_attention(ref, i, g, ref->row->pos[token] + 1, h);
    }
    positive(r, h, v);
    spa_dropout_factors(ref->drop, (uint32_t)token, s->n_taps, r, keep);
    for (size_t l = 0; l < r; l++)
        v[l] *= ref->drop.p > 0 ? (double)keep[l] : 1;
    affine(s->d, r, weights(ref, "W_out"), weights(ref, "b_out"), v, z);
}

/* ---- a small case of any shape ---- */

struct small {
    struct spa_shape s;
    struct spa_dropout drop;
    struct spa_row row;
    float *params, *x, *x_ctx, *y, *head;
    size_t n_params;
};

static const uint32_t small_pos[N_LOSS] = { 0, 1, 2, 4, 5 };
static const int32_t small_targets[N_LOSS] = { 3, 0, 6, 2, 3 };

/* flags: which of the shape's choices are on */
enum { ADD = 1, RMS = 2, BASIS = 4, SUBSET = 8, CONTEXT = 16, DROPOUT = 32, MIX = 64 };

static struct spa_shape small_shape(unsigned flags)
{
    struct spa_shape s = { .d = 10, .n_layers = 3, .r = 6, .m = 9, .n_taps = 4, .taps = { 0, 1, 2, 3 }, .k = 10 };
    s.mode = flags & ADD ? SPA_ADD : SPA_REPLACE;
    s.normalise = flags & (RMS | BASIS) ? SPA_NORM_RMS : SPA_NORM_NONE;
    if (flags & BASIS) {
        s.basis = true;
        s.k = 5;
    }
    if (flags & SUBSET) {
        s.n_layers = 9;
        s.n_taps = 3;
        s.taps[0] = 2, s.taps[1] = 5, s.taps[2] = 9, s.taps[3] = 0;
    }
    if (flags & CONTEXT) {
        s.n_ctx_taps = 2;
        s.ctx_taps[0] = s.taps[0], s.ctx_taps[1] = s.taps[2];
        s.e = 8;
        s.n_heads = 2;
        s.n_att = 2;
        s.att_rungs[0] = 0, s.att_rungs[1] = s.n_taps - 1;
        s.ctx_mix = flags & MIX;
    }
    return s;
}

static void small_init(struct small *c, unsigned flags, uint64_t key)
{
    memset(c, 0, sizeof *c);
    c->s = small_shape(flags);
    const struct spa_shape *s = &c->s;
    assert_int_equal(spa_shape_check(s), SPA_OK);
    if (flags & DROPOUT)
        c->drop = (struct spa_dropout){ .p = 0.3f, .key = key };
    const size_t width = (size_t)s->n_taps * s->k, ctx_width = (size_t)s->n_ctx_taps * s->k;
    c->n_params = spa_param_count(s);
    c->params = noise_array(key, c->n_params, 0.6f);
    c->head = noise_array(key + 1, (size_t)N_VOCAB * s->d, 1);
    c->y = noise_array(key + 2, (size_t)N_LOSS * s->d, 1);
    c->x = floats(N_LOSS * width);
    c->x_ctx = floats(N_CTX * ctx_width);

    float *basis = noise_array(key + 3, spa_basis_floats(s), 1);
    for (size_t l = 0; s->basis && l < s->n_taps; l++)
        basis[l * (1 + s->d + (size_t)s->k * s->d)] = 0.5f + (float)l;
    float *states = noise_array(key + 4, (size_t)N_CTX * s->n_taps * s->d, 3), *full = floats(N_CTX * width);
    float *tmp = floats(s->d);
    for (size_t t = 0; t < N_CTX; t++) {
        for (uint32_t l = 0; l < s->n_taps; l++)
            spa_tap_prepare(s, s->basis ? basis : NULL, l, states + (t * s->n_taps + l) * s->d, tmp,
                            full + t * width + (size_t)l * s->k);
        if (ctx_width)
            spa_ladder_context_of(s, full + t * width, c->x_ctx + t * ctx_width);
    }
    for (size_t t = 0; t < N_LOSS; t++)
        memcpy(c->x + t * width, full + small_pos[t] * width, width * sizeof *full);
    free(basis), free(states), free(full), free(tmp);
    c->row = (struct spa_row){ .n_ctx = ctx_width ? N_CTX : 0, .x_ctx = c->x_ctx, .n_loss = N_LOSS, .pos = small_pos, .x = c->x };
}

static void small_free(struct small *c)
{
    free(c->params), free(c->x), free(c->x_ctx), free(c->y), free(c->head);
}

/* The loss in double from parameters in double. */
static double small_loss(const struct small *c, const double *p)
{
    const struct reference ref = { &c->s, p, &c->row, c->drop };
    const size_t d = c->s.d;
    double loss = 0, g[N_CTX][W];
    reference_context(&ref, g);
    for (size_t t = 0; t < N_LOSS; t++) {
        double z[64], logits[N_VOCAB], sum = 0;
        reference_forward(&ref, g, t, z);
        for (size_t v = 0; v < N_VOCAB; v++) {
            logits[v] = 0;
            for (size_t i = 0; i < d; i++)
                logits[v] += (double)c->head[v * d + i] * (z[i] + (c->s.mode == SPA_ADD ? (double)c->y[t * d + i] : 0));
            sum += exp(logits[v]);
        }
        loss += (log(sum) - logits[small_targets[t]]) / N_LOSS;
    }
    return loss;
}

static void check_differences(unsigned flags, const char *what)
{
    struct small c;
    small_init(&c, flags, 1000 + flags);
    const size_t d = c.s.d;
    float *scratch = floats(spa_row_scratch_len(&c.s, c.row.n_ctx, N_LOSS)), *grad = floats(c.n_params);
    float *z = floats(N_LOSS * d), *dz = floats(N_LOSS * d);
    double *p = malloc(c.n_params * sizeof *p);
    widen(c.n_params, c.params, p);

    spa_row_forward(&c.s, c.params, &c.row, c.drop, scratch, z);
    const double loss = golden_head_loss(d, N_VOCAB, N_LOSS, c.head, c.s.mode == SPA_ADD ? c.y : NULL, z, small_targets, dz);
    spa_row_backward(&c.s, c.params, &c.row, c.drop, scratch, dz, grad);
    assert_below(fabs(loss - small_loss(&c, p)), 1e-5, what);

    for (size_t i = 0; i < spa_tensor_count(&c.s); i++) {
        struct spa_tensor t;
        spa_param_tensor(&c.s, i, &t);
        double error = 0, size = 0;
        for (size_t l = t.offset; l < t.offset + (size_t)t.rows * t.cols; l++) {
            const double step = 1e-6, keep = p[l];
            p[l] = keep + step;
            const double up = small_loss(&c, p);
            p[l] = keep - step;
            const double slope = (up - small_loss(&c, p)) / (2 * step);
            p[l] = keep;
            error += (slope - (double)grad[l]) * (slope - (double)grad[l]);
            size += slope * slope;
        }
        char name[128];
        snprintf(name, sizeof name, "%s: gradient of %s", what, t.name);
        /* The second part is for ctx.mix.bk and att.i.bk, which shift all scores of a query alike: zero but for float's rounding. */
        assert_below(sqrt(error), 1e-4 * sqrt(size) + 1e-6, name);
    }
    free(scratch), free(grad), free(z), free(dz), free(p);
    small_free(&c);
}

static void test_ladder_backward_equals_finite_differences(void **state)
{
    (void)state;
    check_differences(0, "replace, raw");
    check_differences(ADD, "add, raw");
    check_differences(RMS, "replace, rms");
    check_differences(ADD | RMS, "add, rms");
    check_differences(ADD | BASIS, "add, basis");
    check_differences(SUBSET, "replace, subset");
    check_differences(ADD | RMS | SUBSET, "add, rms, subset");
}

static void test_ladder_backward_with_context_equals_finite_differences(void **state)
{
    (void)state;
    check_differences(CONTEXT, "replace, context");
    check_differences(ADD | CONTEXT, "add, context");
    check_differences(ADD | RMS | CONTEXT, "add, rms, context");
    check_differences(ADD | BASIS | SUBSET | CONTEXT, "add, basis, subset, context");
}

static void test_ladder_backward_with_dropout_equals_finite_differences(void **state)
{
    (void)state;
    check_differences(DROPOUT, "replace, dropout");
    check_differences(ADD | RMS | DROPOUT, "add, rms, dropout");
    check_differences(ADD | BASIS | CONTEXT | DROPOUT, "add, basis, context, dropout");
}

static void test_ladder_backward_with_mix_equals_finite_differences(void **state)
{
    (void)state;
    check_differences(CONTEXT | MIX, "replace, mix");
    check_differences(ADD | BASIS | SUBSET | CONTEXT | MIX, "add, basis, subset, mix");
    check_differences(ADD | RMS | CONTEXT | MIX | DROPOUT, "add, rms, mix, dropout");
}

static void test_ladder_backward_adds_to_the_gradient(void **state)
{
    (void)state;
    struct small c;
    small_init(&c, ADD | CONTEXT, 5);
    float *scratch = floats(spa_row_scratch_len(&c.s, N_CTX, N_LOSS));
    float *once = floats(c.n_params), *twice = floats(c.n_params);
    float *z = floats((size_t)N_LOSS * c.s.d), *dz = noise_array(9, (size_t)N_LOSS * c.s.d, 1);
    for (int i = 0; i < 3; i++) {
        spa_row_forward(&c.s, c.params, &c.row, c.drop, scratch, z);
        spa_row_backward(&c.s, c.params, &c.row, c.drop, scratch, dz, i ? twice : once);
    }
    for (size_t i = 0; i < c.n_params; i++)
        once[i] *= 2;
    assert_below(golden_norm_error(twice, once, c.n_params), 1e-6, "two passes");
    free(scratch), free(once), free(twice), free(z), free(dz);
    small_free(&c);
}

/* ---- token by token and the row at once ---- */

static void check_tokens_equal_row(unsigned flags)
{
    struct small c;
    small_init(&c, flags, 300 + flags);
    const struct spa_shape *s = &c.s;
    const size_t d = s->d, width = (size_t)s->n_taps * s->k;
    float *scratch = floats(spa_row_scratch_len(s, c.row.n_ctx, N_LOSS)), *z = floats(N_LOSS * d), *z_row = floats(N_LOSS * d);
    spa_row_forward(s, c.params, &c.row, c.drop, scratch, z_row);
    float *tmp = floats(spa_ladder_scratch_len(s, N_CTX));
    struct spa_context ctx = { .kv = floats(spa_context_floats(s, N_CTX)), .cap = N_CTX };
    for (size_t t = 0; t < N_LOSS; t++) {
        while (s->n_ctx_taps && ctx.len <= small_pos[t])
            assert_int_equal(spa_ladder_context(s, c.params, c.x_ctx + ctx.len * (size_t)s->n_ctx_taps * s->k, tmp, &ctx), SPA_OK);
        spa_ladder_forward(s, c.params, c.x + t * width, s->n_ctx_taps ? &ctx : NULL, tmp, z + t * d);
    }
    assert_memory_equal(z, z_row, N_LOSS * d * sizeof *z);
    free(scratch), free(z), free(z_row), free(tmp), free(ctx.kv);
    small_free(&c);
}

static void test_ladder_token_by_token_equals_row(void **state)
{
    (void)state;
    check_tokens_equal_row(ADD);
    check_tokens_equal_row(BASIS | SUBSET);
    check_tokens_equal_row(ADD | CONTEXT);
    check_tokens_equal_row(ADD | BASIS | SUBSET | CONTEXT);
    check_tokens_equal_row(ADD | CONTEXT | MIX);
    check_tokens_equal_row(BASIS | SUBSET | CONTEXT | MIX);
}

static void check_tail(unsigned flags)
{
    struct small c;
    small_init(&c, flags, 6);
    const struct spa_shape *s = &c.s;
    const size_t ctx_width = (size_t)s->n_ctx_taps * s->k;
    float *tmp = floats(spa_ladder_scratch_len(s, N_CTX)), *z = floats(s->d), *again = floats(s->d);
    struct spa_context ctx = { .kv = floats(spa_context_floats(s, 3)), .cap = 3 };
    for (size_t j = 0; j < 3; j++)
        assert_int_equal(spa_ladder_context(s, c.params, c.x_ctx + j * ctx_width, tmp, &ctx), SPA_OK);
    assert_int_equal(spa_ladder_context(s, c.params, c.x_ctx, tmp, &ctx), SPA_ERR_NOMEM);
    spa_ladder_forward(s, c.params, c.x, &ctx, tmp, z);
    ctx.len = 1;   /* run-ahead guessed wrong: other tokens come, then the right ones again */
    for (size_t j = 4; j < 6; j++)
        assert_int_equal(spa_ladder_context(s, c.params, c.x_ctx + j * ctx_width, tmp, &ctx), SPA_OK);
    spa_ladder_forward(s, c.params, c.x, &ctx, tmp, again);
    assert_memory_not_equal(z, again, s->d * sizeof *z);
    ctx.len = 1;
    for (size_t j = 1; j < 3; j++)
        assert_int_equal(spa_ladder_context(s, c.params, c.x_ctx + j * ctx_width, tmp, &ctx), SPA_OK);
    spa_ladder_forward(s, c.params, c.x, &ctx, tmp, again);
    assert_memory_equal(z, again, s->d * sizeof *z);
    free(tmp), free(z), free(again), free(ctx.kv);
    small_free(&c);
}

static void test_ladder_context_forgets_its_tail(void **state)
{
    (void)state;
    check_tail(ADD | CONTEXT);
    check_tail(ADD | CONTEXT | MIX);
}

/* ---- fresh weights, dropout ---- */

static void test_ladder_untrained_add_plugin_gives_zero(void **state)
{
    (void)state;
    struct small c;
    small_init(&c, ADD | CONTEXT, 7);
    spa_ladder_init(&c.s, 42, c.params);
    float *scratch = floats(spa_row_scratch_len(&c.s, N_CTX, N_LOSS)), *z = noise_array(3, (size_t)N_LOSS * c.s.d, 1);
    spa_row_forward(&c.s, c.params, &c.row, c.drop, scratch, z);
    for (size_t i = 0; i < (size_t)N_LOSS * c.s.d; i++)
        assert_true(z[i] == 0.0f);
    free(scratch), free(z);
    small_free(&c);
}

static void test_ladder_fresh_plugin_with_mix_is_what_it_is_without(void **state)
{
    (void)state;
    struct small with, without;
    small_init(&with, BASIS | CONTEXT | MIX, 8);
    small_init(&without, BASIS | CONTEXT, 8);
    const size_t n = (size_t)N_LOSS * with.s.d;
    float *scratch = floats(spa_row_scratch_len(&with.s, N_CTX, N_LOSS)), *z = floats(n), *z_without = floats(n);
    spa_ladder_init(&with.s, 42, with.params);
    spa_ladder_init(&without.s, 42, without.params);
    spa_row_forward(&with.s, with.params, &with.row, with.drop, scratch, z);
    spa_row_forward(&without.s, without.params, &without.row, without.drop, scratch, z_without);
    for (size_t i = 0; i < n; i++)
        assert_true(z[i] == z_without[i] && z[i] != 0);
    for (size_t i = 0, mixed = 0; i < spa_tensor_count(&with.s); i++) {
        struct spa_tensor t;
        spa_param_tensor(&with.s, i, &t);
        mixed += strncmp(t.name, "ctx.mix.", 8) == 0;
        assert_true((with.params[t.offset] == 0) == (strcmp(t.name, "ctx.mix.Wv") == 0 || strcmp(t.name, "ctx.mix.bv") == 0));
        if (i + 1 == spa_tensor_count(&with.s))
            assert_int_equal(mixed, 6);
    }
    free(scratch), free(z), free(z_without);
    small_free(&with);
    small_free(&without);
}

static void test_ladder_init_is_uniform_within_its_fan_in_and_repeats(void **state)
{
    (void)state;
    const struct spa_shape s = { .d = 200, .n_layers = 2, .r = 16, .m = 24, .n_taps = 2, .taps = { 1, 2 }, .k = 200 };
    const size_t n = spa_param_count(&s);
    float *a = floats(n), *b = floats(n);
    spa_ladder_init(&s, 1, a);
    spa_ladder_init(&s, 1, b);
    assert_memory_equal(a, b, n * sizeof *a);
    spa_ladder_init(&s, 2, b);
    assert_memory_not_equal(a, b, n * sizeof *a);
    for (size_t i = 0; i < spa_tensor_count(&s); i += 2) {
        struct spa_tensor w, bias;
        spa_param_tensor(&s, i, &w);
        spa_param_tensor(&s, i + 1, &bias);
        assert_true(!w.is_vector && bias.is_vector && bias.offset == w.offset + (size_t)w.rows * w.cols);
        const double bound = 1 / sqrt((double)w.cols), count = (double)w.rows * w.cols;
        double mean = 0, square = 0;
        for (size_t l = w.offset; l < bias.offset + bias.rows; l++)
            assert_true(fabs((double)a[l]) <= bound * (1 + 1e-6));
        for (size_t l = w.offset; l < bias.offset; l++) {
            mean += (double)a[l] / count;
            square += (double)a[l] * (double)a[l] / count;
        }
        /* five standard deviations of the two estimates, variance bound^2 / 3 */
        assert_below(fabs(mean), 5 * bound / sqrt(3 * count), w.name);
        assert_below(fabs(square / (bound * bound / 3) - 1), 5 * sqrt(0.8 / count), w.name);
    }
    free(a), free(b);
}

static void test_ladder_dropout_zeroes_its_share_and_depends_on_its_key(void **state)
{
    (void)state;
    enum { N = 1000, R = 31 };
    float keep[R], other[R];
    size_t zeros = 0, differ[3] = {0};
    for (uint32_t t = 0; t < N; t++) {
        const struct spa_dropout drop = { .p = 0.2f, .key = 8 }, drop2 = { .p = 0.2f, .key = 9 };
        spa_dropout_factors(drop, t, 3, R, keep);
        for (size_t i = 0; i < R; i++) {
            assert_true(keep[i] == 0 || fabsf(keep[i] - 1.25f) < 1e-6f);
            zeros += keep[i] == 0;
        }
        spa_dropout_factors(drop, t + 1, 3, R, other);
        differ[0] += memcmp(keep, other, sizeof keep) != 0;
        spa_dropout_factors(drop, t, 4, R, other);
        differ[1] += memcmp(keep, other, sizeof keep) != 0;
        spa_dropout_factors(drop2, t, 3, R, other);
        differ[2] += memcmp(keep, other, sizeof keep) != 0;
    }
    assert_below(fabs((double)zeros / (N * R) - 0.2), 5 * sqrt(0.16 / (N * R)), "share of zeros");
    for (size_t i = 0; i < 3; i++)
        assert_true(differ[i] > N - 10);
}

/* ---- shape and layout ---- */

static void test_ladder_shape_check_names_what_is_wrong(void **state)
{
    (void)state;
    const struct spa_shape good = small_shape(ADD | BASIS | CONTEXT);
    assert_int_equal(spa_shape_check(&good), SPA_OK);
#define CHECK(change, expected) do { struct spa_shape s = good; change; assert_int_equal(spa_shape_check(&s), expected); } while (0)
    CHECK(s.d = 0, SPA_ERR_SHAPE);
    CHECK(s.r = 0, SPA_ERR_SHAPE);
    CHECK(s.m = SPA_MAX_WIDTH + 1, SPA_ERR_LIMIT);
    CHECK(s.k = s.d + 1, SPA_ERR_SHAPE);
    CHECK(s.basis = false, SPA_ERR_SHAPE);
    CHECK(s.normalise = SPA_NORM_NONE, SPA_ERR_SHAPE);
    CHECK(s.normalise = (enum spa_normalise)2, SPA_ERR_SHAPE);
    CHECK(s.mode = (enum spa_mode)2, SPA_ERR_SHAPE);
    CHECK(s.n_taps = 0, SPA_ERR_SHAPE);
    CHECK(s.n_taps = SPA_MAX_TAPS + 1, SPA_ERR_LIMIT);
    CHECK(s.n_layers = 0, SPA_ERR_SHAPE);
    CHECK(s.n_layers = SPA_MAX_LAYERS + 1, SPA_ERR_LIMIT);
    CHECK(s.n_layers = 2, SPA_ERR_SHAPE);
    CHECK(s.taps[1] = 0, SPA_ERR_SHAPE);
    CHECK(s.taps[2] = 1, SPA_ERR_SHAPE);
    CHECK(s.n_ctx_taps = 0, SPA_ERR_SHAPE);
    CHECK(s.n_ctx_taps = SPA_MAX_TAPS + 1, SPA_ERR_LIMIT);
    CHECK((s.n_ctx_taps = s.e = s.n_heads = s.n_att = 0, s.ctx_mix = true), SPA_ERR_SHAPE);
    CHECK((s.n_ctx_taps = s.e = s.n_heads = s.n_att = 0), SPA_OK);
    CHECK(s.ctx_mix = true, SPA_OK);
    CHECK(s.ctx_taps[0] = 2, SPA_ERR_SHAPE);
    CHECK((s.n_layers = 5, s.ctx_taps[1] = 5), SPA_ERR_SHAPE);
    CHECK(s.e = 7, SPA_ERR_SHAPE);
    CHECK(s.e = SPA_MAX_WIDTH + 8, SPA_ERR_LIMIT);
    CHECK(s.n_heads = 0, SPA_ERR_SHAPE);
    CHECK(s.n_heads = 4, SPA_ERR_SHAPE);
    CHECK(s.n_heads = SPA_MAX_HEADS + 1, SPA_ERR_LIMIT);
    CHECK(s.n_att = 0, SPA_ERR_SHAPE);
    CHECK(s.n_att = SPA_MAX_ATT + 1, SPA_ERR_LIMIT);
    CHECK(s.att_rungs[1] = 4, SPA_ERR_SHAPE);
    CHECK(s.att_rungs[1] = 0, SPA_ERR_SHAPE);
#undef CHECK
}

static void test_ladder_layout_has_every_tensor_once_and_no_gap(void **state)
{
    (void)state;
    const unsigned flags[] = { 0, SUBSET, ADD | CONTEXT, BASIS | CONTEXT, CONTEXT | MIX };
    for (size_t f = 0; f < 5; f++) {
        const struct spa_shape s = small_shape(flags[f]);
        size_t end = 0;
        char last[24] = "";
        for (size_t i = 0; i < spa_tensor_count(&s); i++) {
            struct spa_tensor t;
            spa_param_tensor(&s, i, &t);
            assert_true(t.offset == end && (t.is_vector ? t.cols == 1 : t.rows > 0));
            end += (size_t)t.rows * t.cols;
            memcpy(last, t.name, sizeof last);
        }
        assert_true(end == spa_param_count(&s));
        assert_string_equal(last, flags[f] & CONTEXT ? "att.3.bv" : "b_out");
    }
    struct spa_shape wide = { .d = 4, .n_layers = 300, .r = 1, .m = 1, .n_taps = 256, .k = 4 };
    for (uint32_t i = 0; i < 256; i++)
        wide.taps[i] = i;
    struct spa_tensor t;
    spa_param_tensor(&wide, spa_tensor_count(&wide) - 3, &t);
    assert_string_equal(t.name, "e.255");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ladder_shape_check_names_what_is_wrong),
        cmocka_unit_test(test_ladder_layout_has_every_tensor_once_and_no_gap),
        cmocka_unit_test(test_ladder_backward_equals_finite_differences),
        cmocka_unit_test(test_ladder_backward_with_context_equals_finite_differences),
        cmocka_unit_test(test_ladder_backward_with_mix_equals_finite_differences),
        cmocka_unit_test(test_ladder_backward_with_dropout_equals_finite_differences),
        cmocka_unit_test(test_ladder_backward_adds_to_the_gradient),
        cmocka_unit_test(test_ladder_token_by_token_equals_row),
        cmocka_unit_test(test_ladder_context_forgets_its_tail),
        cmocka_unit_test(test_ladder_untrained_add_plugin_gives_zero),
        cmocka_unit_test(test_ladder_fresh_plugin_with_mix_is_what_it_is_without),
        cmocka_unit_test(test_ladder_init_is_uniform_within_its_fan_in_and_repeats),
        cmocka_unit_test(test_ladder_dropout_zeroes_its_share_and_depends_on_its_key),
    };
    return cmocka_run_group_tests_name("ladder", tests, NULL, NULL);
}
