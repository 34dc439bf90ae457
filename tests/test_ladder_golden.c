/* test_ladder_golden.c - the ladder, forward and backward, against the reference's numbers tensor by tensor. */
#include "basis.h"
#include "golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void assert_below(double error, double limit, const char *what)
{
    if (!(error <= limit))
        fail_msg("%s: error %g exceeds %g", what, error, limit);
}

static float *floats(size_t n)
{
    float *x = calloc(n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* ---- the authors' numbers ---- */

struct tiny {
    struct golden plugin, vectors;
    struct spa_shape s;
    struct spa_row row;
    float *params, *x, *scratch, *z, *head, *y;
    uint32_t pos[GOLDEN_T];
};

static void tiny_forward(struct tiny *t)
{
    size_t n_head;
    t->plugin = golden_load("tiny.plugin.safetensors");
    t->vectors = golden_load("tiny.vectors.safetensors");
    t->s = golden_tiny_shape();
    assert_int_equal(spa_shape_check(&t->s), SPA_OK);
    t->params = golden_tiny_params(&t->plugin, "");
    t->x = golden_tiny_taps(&t->vectors);
    t->head = golden_gguf_f32("tiny.base.gguf", "token_embd.weight", &n_head);
    assert_true(n_head == (size_t)GOLDEN_V * GOLDEN_D);
    t->y = golden_tensor(&t->vectors, "final_norm", NULL);
    t->scratch = floats(spa_row_scratch_len(&t->s, 0, GOLDEN_T));
    t->z = floats((size_t)GOLDEN_T * GOLDEN_D);
    for (uint32_t i = 0; i < GOLDEN_T; i++)
        t->pos[i] = i;
    t->row = (struct spa_row){ .n_loss = GOLDEN_T, .pos = t->pos, .x = t->x };
    spa_row_forward(&t->s, t->params, &t->row, (struct spa_dropout){0}, t->scratch, t->z);
}

static void tiny_free(struct tiny *t)
{
    free(t->plugin.bytes), free(t->vectors.bytes), free(t->params), free(t->x), free(t->scratch), free(t->z);
    free(t->head), free(t->y);
}

static void test_ladder_forward_equals_reference(void **state)
{
    (void)state;
    struct tiny t;
    tiny_forward(&t);
    float *side = golden_tensor(&t.vectors, "side", NULL), *want = golden_tensor(&t.vectors, "logits_replace_last", NULL);
    assert_below(golden_max_error(t.z, side, (size_t)GOLDEN_T * GOLDEN_D), 1e-4, "z of the row");

    float z[GOLDEN_D], logits[GOLDEN_V] = {0}, *tmp = floats(spa_ladder_scratch_len(&t.s, 0));
    spa_ladder_forward(&t.s, t.params, t.x + (size_t)(GOLDEN_T - 1) * t.s.n_taps * t.s.k, NULL, tmp, z);
    assert_below(golden_max_error(z, side + (size_t)(GOLDEN_T - 1) * GOLDEN_D, GOLDEN_D), 1e-4, "z of the last token");
    for (size_t v = 0; v < GOLDEN_V; v++)
        for (size_t i = 0; i < GOLDEN_D; i++)
            logits[v] += t.head[v * GOLDEN_D + i] * z[i];
    assert_below(golden_max_error(logits, want, GOLDEN_V), 1e-4, "logits");
    free(side), free(want), free(tmp);
    tiny_free(&t);
}

static void assert_gradients(const struct spa_shape *s, const float *grad, const float *want)
{
    for (size_t i = 0; i < spa_tensor_count(s); i++) {
        struct spa_tensor w;
        spa_param_tensor(s, i, &w);
        assert_below(golden_norm_error(grad + w.offset, want + w.offset, (size_t)w.rows * w.cols), 1e-3, w.name);
    }
}

static void test_ladder_backward_equals_reference(void **state)
{
    (void)state;
    struct tiny t;
    tiny_forward(&t);
    int32_t *targets = golden_tensor(&t.vectors, "train.targets", NULL);
    float *loss = golden_tensor(&t.vectors, "train.loss", NULL), *want = golden_tiny_params(&t.vectors, "train.grad.");
    float *dz = floats((size_t)GOLDEN_T * GOLDEN_D), *grad = floats(spa_param_count(&t.s));
    t.s.mode = SPA_ADD;
    const double got = golden_head_loss(GOLDEN_D, GOLDEN_V, GOLDEN_T, t.head, t.y, t.z, targets, dz);
    assert_below(fabs(got - (double)loss[0]), 1e-4, "loss");
    spa_row_backward(&t.s, t.params, &t.row, (struct spa_dropout){0}, t.scratch, dz, grad);
    assert_gradients(&t.s, grad, want);
    free(targets), free(loss), free(want), free(dz), free(grad);
    tiny_free(&t);
}

/* ---- our own form with context attention, computed in PyTorch ---- */

static float *context_params(const struct golden *g, const struct spa_shape *s, const char *prefix)
{
    float *params = floats(spa_param_count(s));
    for (size_t i = 0; i < spa_tensor_count(s); i++) {
        struct spa_tensor t;
        char name[64];
        size_t n;
        spa_param_tensor(s, i, &t);
        snprintf(name, sizeof name, "%s%s", prefix, t.name);
        float *data = golden_tensor(g, name, &n);
        assert_true(n == (size_t)t.rows * t.cols);
        memcpy(params + t.offset, data, n * sizeof *data);
        free(data);
    }
    return params;
}

static double norm(const float *x, size_t n)
{
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)x[i] * (double)x[i];
    return sqrt(square);
}

static void test_ladder_with_context_equals_reference(void **state)
{
    (void)state;
    enum { TAPS = 3, K = 16 };
    struct golden g = golden_load("tiny.context.safetensors"), vectors = golden_load("tiny.vectors.safetensors");
    struct spa_shape s = { .d = GOLDEN_D, .n_layers = GOLDEN_LAYERS, .r = 8, .m = 12, .n_taps = TAPS, .taps = { 0, 2, 4 },
                           .k = K, .basis = true, .normalise = SPA_NORM_RMS, .mode = SPA_ADD, .n_ctx_taps = 1,
                           .ctx_taps = { 2 }, .e = 8, .n_heads = 2, .n_att = 2, .att_rungs = { 1, 2 } };
    assert_int_equal(spa_shape_check(&s), SPA_OK);

    /* The taps from the states by the basis, as the cloud does it. */
    const size_t per_tap = 1 + GOLDEN_D + K * GOLDEN_D, width = TAPS * K;
    float *p = golden_tensor(&g, "basis", NULL), *mean = golden_tensor(&g, "mean", NULL), *scale = golden_tensor(&g, "scale", NULL);
    float *basis = floats(spa_basis_floats(&s)), *x = floats(GOLDEN_T * width), *x_ctx = floats(GOLDEN_T * K);
    for (uint32_t l = 0; l < TAPS; l++) {
        char name[16];
        float tmp[GOLDEN_D];
        basis[l * per_tap] = scale[l];
        memcpy(basis + l * per_tap + 1, mean + l * GOLDEN_D, GOLDEN_D * sizeof *mean);
        memcpy(basis + l * per_tap + 1 + GOLDEN_D, p + l * K * GOLDEN_D, K * GOLDEN_D * sizeof *p);
        snprintf(name, sizeof name, "state.%u", s.taps[l]);
        float *states = golden_tensor(&vectors, name, NULL);
        snprintf(name, sizeof name, "x.%u", l);
        float *want = golden_tensor(&g, name, NULL);
        for (size_t t = 0; t < GOLDEN_T; t++) {
            spa_tap_prepare(&s, basis, l, states + t * GOLDEN_D, tmp, x + t * width + l * K);
            assert_below(golden_max_error(x + t * width + l * K, want + t * K, K), 1e-4, name);
        }
        free(states), free(want);
    }
    uint32_t pos[GOLDEN_T];
    for (uint32_t t = 0; t < GOLDEN_T; t++) {
        pos[t] = t;
        spa_ladder_context_of(&s, x + t * width, x_ctx + t * K);
    }

    const struct spa_row row = { .n_ctx = GOLDEN_T, .x_ctx = x_ctx, .n_loss = GOLDEN_T, .pos = pos, .x = x };
    float *params = context_params(&g, &s, "param."), *want_grad = context_params(&g, &s, "grad.");
    float *want_z = golden_tensor(&g, "z", NULL), *want_loss = golden_tensor(&g, "loss", NULL);
    float *scratch = floats(spa_row_scratch_len(&s, GOLDEN_T, GOLDEN_T)), *grad = floats(spa_param_count(&s));
    float *z = floats((size_t)GOLDEN_T * GOLDEN_D), *dz = floats((size_t)GOLDEN_T * GOLDEN_D);
    spa_row_forward(&s, params, &row, (struct spa_dropout){0}, scratch, z);
    assert_below(golden_max_error(z, want_z, (size_t)GOLDEN_T * GOLDEN_D), 1e-4, "z");

    size_t n_head;
    float *head = golden_gguf_f32("tiny.base.gguf", "token_embd.weight", &n_head), *y = golden_tensor(&vectors, "final_norm", NULL);
    int32_t *targets = golden_tensor(&vectors, "train.targets", NULL);
    const double loss = golden_head_loss(GOLDEN_D, GOLDEN_V, GOLDEN_T, head, y, z, targets, dz);
    assert_below(fabs(loss - (double)want_loss[0]), 1e-4, "loss");
    spa_row_backward(&s, params, &row, (struct spa_dropout){0}, scratch, dz, grad);
    for (size_t i = 0; i < spa_tensor_count(&s); i++) {
        struct spa_tensor t;
        spa_param_tensor(&s, i, &t);
        const size_t n = (size_t)t.rows * t.cols;
        double error = golden_norm_error(grad + t.offset, want_grad + t.offset, n);
        /* A key's bias moves all scores of a query alike: its true gradient is zero, both sides hold rounding, and the
         * measure is the tensor before it, the keys' matrix, through which the same numbers flow. */
        if (strstr(t.name, ".bk"))
            error *= norm(want_grad + t.offset, n) / norm(want_grad + t.offset - 64, 64);
        assert_below(error, 1e-3, t.name);
    }
    free(g.bytes), free(vectors.bytes), free(p), free(mean), free(scale), free(basis), free(x), free(x_ctx), free(params);
    free(want_grad), free(want_z), free(want_loss), free(scratch), free(grad), free(z), free(dz), free(head), free(y);
    free(targets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ladder_forward_equals_reference),
        cmocka_unit_test(test_ladder_backward_equals_reference),
        cmocka_unit_test(test_ladder_with_context_equals_reference),
    };
    return cmocka_run_group_tests_name("ladder_golden", tests, NULL, NULL);
}
