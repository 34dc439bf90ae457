/* test_learn.c - device/head.c, learn.c, learn_gate.c, plugin_shape.c: the LM head against sums in double, training against the
 * reference, shapes from words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adamw.h"
#include "gate.h"
#include "golden.h"
#include "learn.h"
#include "plugin_shape.h"

#include <ggml.h>

enum { D = 64, V = 5003, N = 9 };   /* V: several tiles in each part, and no multiple of a tile */

static uint32_t noise_state;

static float noise(float width)
{
    noise_state = noise_state * 1664525u + 1013904223u;
    return ((float)(noise_state >> 8) / (float)(1 << 24) - 0.5f) * 2 * width;
}

static void assert_below(double error, double bound, const char *what)
{
    if (!(error < bound))
        fail_msg("%s: %g is not below %g", what, error, bound);
}

/* ---- the head ---- */

struct head_case {
    struct spa_lm_head h;
    uint8_t *bytes;
    float   *rows;     /* [V, D] what the bytes mean */
    float    bias[V];
    float    states[N * D];
    int32_t  target[N];
};

static void make_head(struct head_case *c, enum ggml_type type, float scale, float softcap, bool bias)
{
    char why[200];
    noise_state = 7;
    float *exact = malloc(sizeof(float) * V * D);
    c->rows = malloc(sizeof(float) * V * D);
    size_t row_bytes = ggml_row_size(type, D);
    c->bytes = malloc((row_bytes + sizeof(float)) * V);
    for (size_t i = 0; i < (size_t)V * D; i++)
        exact[i] = noise(0.4f);
    if (type == GGML_TYPE_F32)
        memcpy(c->bytes, exact, row_bytes * V);
    else
        ggml_quantize_chunk(type, exact, c->bytes, 0, V, D, NULL);
    if (type == GGML_TYPE_F32)
        memcpy(c->rows, exact, row_bytes * V);
    else
        ggml_get_type_traits(type)->to_float(c->bytes, c->rows, (int64_t)V * D);
    free(exact);
    for (int v = 0; v < V; v++)
        c->bias[v] = bias ? noise(3.0f) : 0;
    memcpy(c->bytes + row_bytes * V, c->bias, sizeof c->bias);
    assert_int_equal(spa_lm_head_view(&c->h, D, V, type, c->bytes, row_bytes * V + (bias ? sizeof c->bias : 0), why, sizeof why), 0);
    c->h.scale = scale;
    c->h.softcap = softcap;
    for (int i = 0; i < N * D; i++)
        c->states[i] = noise(i / D == 0 ? 20.0f : 2.0f);   /* the first state's softmax has one large term */
    for (int i = 0; i < N; i++)
        c->target[i] = i == 1 ? 0 : i == 2 ? V - 1 : (i * 1211) % V;
}

static void free_head(struct head_case *c)
{
    spa_lm_head_close(&c->h);
    free(c->bytes);
    free(c->rows);
}

/* The definition, in double. ds NULL: the loss alone. */
static double naive_loss(const struct head_case *c, const double *s, int32_t target, double *ds, int32_t *top)
{
    double *l = malloc(sizeof(double) * V), max = -INFINITY, sum = 0, cap = (double)c->h.softcap, scale = (double)c->h.scale;
    for (int v = 0; v < V; v++) {
        l[v] = 0;
        for (int i = 0; i < D; i++)
            l[v] += (double)c->rows[v * D + i] * s[i];
        l[v] = l[v] * scale + (double)c->bias[v];
        if (cap > 0)
            l[v] = cap * tanh(l[v] / cap);
        if (l[v] > max) {
            max = l[v];
            if (top)
                *top = v;
        }
    }
    for (int v = 0; v < V; v++)
        sum += exp(l[v] - max);
    double loss = max + log(sum) - l[target];
    for (int i = 0; ds && i < D; i++)
        ds[i] = 0;
    for (int v = 0; ds && v < V; v++) {
        double slope = cap > 0 ? 1 - l[v] / cap * (l[v] / cap) : 1;
        double weight = (exp(l[v] - max) / sum - (v == target)) * slope * scale;
        for (int i = 0; i < D; i++)
            ds[i] += weight * (double)c->rows[v * D + i];
    }
    free(l);
    return loss;
}

/* left_out: of the gradient, at most, as a share of its largest number. */
static void check_head_within(enum ggml_type type, float scale, float softcap, bool bias, double left_out)
{
    struct head_case c;
    float loss[N], ds[N * D], loss_alone[N];
    int32_t top[N];
    make_head(&c, type, scale, softcap, bias);
    assert_int_equal(spa_lm_head_loss(&c.h, c.states, c.target, N, loss, ds, top), 0);
    assert_int_equal(spa_lm_head_loss(&c.h, c.states, c.target, N, loss_alone, NULL, NULL), 0);
    assert_memory_equal(loss, loss_alone, sizeof loss);
    for (int i = 0; i < N; i++) {
        double s[D], want_ds[D], largest = 0, error = 0;
        int32_t want_top = -1;
        for (int j = 0; j < D; j++)
            s[j] = (double)c.states[i * D + j];
        double want = naive_loss(&c, s, c.target[i], want_ds, &want_top);
        /* Logits are sums of 64 products in F32: their own rounding is some 1e-6 of the largest. */
        assert_below(fabs((double)loss[i] - want), 2e-6 * (1 + fabs(want)) + 2e-6, "loss");
        if (softcap == 0 || i > 0)   /* the cap makes the first state's largest logits equal in F32 */
            assert_int_equal(top[i], want_top);
        for (int j = 0; j < D; j++) {
            largest = fmax(largest, fabs(want_ds[j]));
            error = fmax(error, fabs((double)ds[i * D + j] - want_ds[j]));
        }
        assert_below(error, left_out * largest + 1e-9, "gradient");
        /* The definition's own gradient, by central differences in double. */
        for (int j = 0; j < D; j += 13) {
            double at = s[j], h = 1e-5;
            s[j] = at + h;
            double above = naive_loss(&c, s, c.target[i], NULL, NULL);
            s[j] = at - h;
            double below = naive_loss(&c, s, c.target[i], NULL, NULL);
            s[j] = at;
            assert_below(fabs((above - below) / (2 * h) - (double)ds[i * D + j]), left_out * largest + 1e-8, "finite difference");
        }
    }
    free_head(&c);
}

static void check_head(enum ggml_type type, float scale, float softcap) { check_head_within(type, scale, softcap, false, 1e-5); }

static void test_head_gradient_leaves_out_little_where_most_rows_weigh_nothing(void **state)
{
    (void)state;
    check_head_within(GGML_TYPE_Q8_0, 4, 0, false, 2e-3);
    check_head_within(GGML_TYPE_F32, 4, 60, false, 2e-3);
}

static void test_head_loss_and_gradient_equal_double_for_F32(void **state) { (void)state; check_head(GGML_TYPE_F32, 1, 0); }
static void test_head_loss_and_gradient_equal_double_for_F16(void **state) { (void)state; check_head(GGML_TYPE_F16, 1, 0); }
static void test_head_loss_and_gradient_equal_double_for_Q8_0(void **state) { (void)state; check_head(GGML_TYPE_Q8_0, 1, 0); }
static void test_head_loss_and_gradient_equal_double_for_Q4_0(void **state) { (void)state; check_head(GGML_TYPE_Q4_0, 1, 0); }
static void test_head_loss_and_gradient_equal_double_for_Q4_1(void **state) { (void)state; check_head(GGML_TYPE_Q4_1, 1, 0); }
static void test_head_bias_reaches_loss_and_gradient(void **state)
{
    (void)state;
    check_head_within(GGML_TYPE_F32, 1, 0, true, 1e-5);
    check_head_within(GGML_TYPE_Q8_0, 0.7f, 5, true, 1e-5);
}

static void test_head_softcap_and_scale_reach_loss_and_gradient(void **state)
{
    (void)state;
    check_head(GGML_TYPE_F32, 0.7f, 5);
    check_head(GGML_TYPE_Q8_0, 1, 30);
    check_head(GGML_TYPE_Q4_0, 1.3f, 0);
}

static void test_head_many_states_are_as_few_at_a_time(void **state)
{
    (void)state;
    enum { MANY = 700 };   /* more than the head takes at once */
    struct head_case c;
    make_head(&c, GGML_TYPE_Q8_0, 1, 0, false);
    float *states = malloc(sizeof(float) * MANY * D), *ds = malloc(sizeof(float) * MANY * D), *loss = malloc(sizeof(float) * MANY);
    int32_t *target = malloc(sizeof(int32_t) * MANY);
    for (int i = 0; i < MANY; i++) {
        memcpy(states + i * D, c.states + (i % N) * D, sizeof(float) * D);
        target[i] = c.target[i % N];
    }
    float few_loss[N], few_ds[N * D];
    assert_int_equal(spa_lm_head_loss(&c.h, c.states, c.target, N, few_loss, few_ds, NULL), 0);
    assert_int_equal(spa_lm_head_loss(&c.h, states, target, MANY, loss, ds, NULL), 0);
    for (int i = 0; i < MANY; i++) {
        assert_below(fabs((double)(loss[i] - few_loss[i % N])), 1e-6 * (1 + (double)loss[i]), "loss");
        assert_below(golden_max_error(ds + i * D, few_ds + (i % N) * D, D), 1e-5, "gradient");
    }
    free(states);
    free(ds);
    free(loss);
    free(target);
    free_head(&c);
}

static void test_head_state_with_NaN_spoils_its_own_loss_alone(void **state)
{
    (void)state;
    struct head_case c;
    float loss[N], clean[N], ds[N * D], clean_ds[N * D];
    int32_t top[N], clean_top[N];
    make_head(&c, GGML_TYPE_Q8_0, 4, 0, false);   /* sharp: rows of the vocabulary are left out of the gradient */
    assert_int_equal(spa_lm_head_loss(&c.h, c.states, c.target, N, clean, clean_ds, clean_top), 0);
    c.states[3 * D + 5] = NAN;
    c.states[4 * D + 5] = INFINITY;
    assert_int_equal(spa_lm_head_loss(&c.h, c.states, c.target, N, loss, ds, top), 0);
    for (int i = 0; i < N; i++) {
        if (i == 3 || i == 4) {
            assert_true(isnan(loss[i]));
            assert_true(i == 4 || top[i] == -1);
            continue;
        }
        assert_true(fabsf(loss[i] - clean[i]) < 1e-5f);
        assert_int_equal(top[i], clean_top[i]);
        for (int j = 0; j < D; j++)   /* which rows are left out depends on the other states */
            assert_true(fabsf(ds[i * D + j] - clean_ds[i * D + j]) < 2e-3f);
    }
    free_head(&c);
}

static void test_head_of_wrong_length_or_type_is_refused(void **state)
{
    (void)state;
    struct spa_lm_head h;
    char why[200];
    static const uint8_t bytes[4096];
    assert_int_equal(spa_lm_head_view(&h, 64, 16, GGML_TYPE_F32, bytes, 4096, why, sizeof why), 0);
    assert_int_equal(spa_lm_head_view(&h, 64, 16, GGML_TYPE_F32, bytes, 4095, why, sizeof why), -1);
    assert_int_equal(spa_lm_head_view(&h, 64, 15, GGML_TYPE_F32, bytes, 4096, why, sizeof why), -1);
    assert_int_equal(spa_lm_head_view(&h, 48, 16, GGML_TYPE_Q8_0, bytes, 816, why, sizeof why), -1);
    assert_int_equal(spa_lm_head_view(&h, 0, 16, GGML_TYPE_F32, bytes, 0, why, sizeof why), -1);
    for (uint32_t type = GGML_TYPE_COUNT - 1; type < GGML_TYPE_COUNT + 3; type++)
        (void)spa_lm_head_view(&h, 64, 16, type, bytes, 4096, why, sizeof why);
    assert_int_equal(spa_lm_head_view(&h, 64, 16, UINT32_MAX, bytes, 4096, why, sizeof why), -1);
    assert_int_equal(spa_lm_head_view(&h, 64, 16, 4 /* a number that ggml gave up */, bytes, 4096, why, sizeof why), -1);
}

/* ---- training on the reference ---- */

struct tiny {
    struct golden plugin, vectors;
    struct spa_shape shape;
    float *params, *x, *y, *head_rows;
    int32_t *target;
    struct spa_lm_head head;
    struct spa_features f;
};

/* The reference's positions from, from + step ... as a row, packed as the cloud packs it. */
static void add_row(struct tiny *t, uint32_t from, uint32_t step)
{
    struct spa_feature_row *row = &t->f.rows[t->f.n++];
    uint32_t n = (GOLDEN_T - from + step - 1) / step;
    size_t width = (size_t)t->shape.n_taps * t->shape.k;
    row->head = (spa_Features){ .n_tokens = GOLDEN_T, .n_loss = n };
    row->bulk_len = (uint32_t)(n * (8 + 4 * (width + GOLDEN_D)));
    row->bulk = malloc(row->bulk_len);
    uint8_t *pos = row->bulk, *target = pos + 4 * n, *x = target + 4 * n, *y = x + 4 * n * width;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = from + i * step;
        memcpy(pos + 4 * i, &at, 4);
        memcpy(target + 4 * i, &t->target[at], 4);
        memcpy(x + 4 * width * i, t->x + width * at, 4 * width);
        memcpy(y + (size_t)4 * GOLDEN_D * i, t->y + (size_t)GOLDEN_D * at, (size_t)4 * GOLDEN_D);
    }
    t->f.n_loss += n;
    t->f.n_tokens += GOLDEN_T;
    t->f.max_loss = n > t->f.max_loss ? n : t->f.max_loss;
}

static void tiny_init(struct tiny *t, size_t rows_cap)
{
    char why[200];
    size_t n_head;
    memset(t, 0, sizeof *t);
    t->plugin = golden_load("tiny.plugin.safetensors");
    t->vectors = golden_load("tiny.vectors.safetensors");
    t->shape = golden_tiny_shape();
    t->shape.mode = SPA_ADD;
    t->params = golden_tiny_params(&t->plugin, "");
    t->x = golden_tiny_taps(&t->vectors);
    t->y = golden_tensor(&t->vectors, "final_norm", NULL);
    t->target = golden_tensor(&t->vectors, "train.targets", NULL);
    t->head_rows = golden_gguf_f32("tiny.base.gguf", "token_embd.weight", &n_head);
    assert_int_equal(spa_lm_head_view(&t->head, GOLDEN_D, GOLDEN_V, GGML_TYPE_F32, (const uint8_t *)t->head_rows, n_head * 4, why,
                                      sizeof why), 0);
    t->f.shape = t->shape;
    t->f.rows = calloc(rows_cap, sizeof *t->f.rows);
    t->f.wire = calloc(1, sizeof *t->f.wire);
    t->f.wire->shape = t->shape;
    t->f.wire->tap_dtype = t->f.wire->state_dtype = SPA_F32;
}

/* n rows, of every n-th position. */
static void tiny_with_rows(struct tiny *t, uint32_t n)
{
    tiny_init(t, n);
    for (uint32_t i = 0; i < n; i++)
        add_row(t, i, n);
}

static void tiny_free(struct tiny *t)
{
    spa_features_free(&t->f);
    spa_lm_head_close(&t->head);
    free(t->plugin.bytes);
    free(t->vectors.bytes);
    free(t->params);
    free(t->x);
    free(t->y);
    free(t->target);
    free(t->head_rows);
}

static const struct spa_adamw reference_adamw = { 2e-4f, 0.9f, 0.999f, 1e-8f, 0.01f };

static float reference_number(const struct tiny *t, const char *name)
{
    float *data = golden_tensor(&t->vectors, name, NULL), value = data[0];
    free(data);
    return value;
}

static void test_learn_ten_steps_through_the_head_equal_reference(void **state)
{
    (void)state;
    struct tiny t;
    tiny_init(&t, 1);
    size_t n = spa_param_count(&t.shape), n_state = (size_t)GOLDEN_T * GOLDEN_D;
    float *scratch = malloc(spa_row_scratch_len(&t.shape, 0, GOLDEN_T) * sizeof *scratch), *z = malloc(n_state * sizeof *z);
    float *s = malloc(n_state * sizeof *s), *grad = malloc(n * sizeof *grad), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v);
    float *want_grad = golden_tiny_params(&t.vectors, "train.grad."), *want = golden_tiny_params(&t.vectors, "train.after10.");
    float losses[GOLDEN_T];
    uint32_t pos[GOLDEN_T];
    double loss = 0;
    for (uint32_t i = 0; i < GOLDEN_T; i++)
        pos[i] = i;
    const struct spa_row row = { .n_loss = GOLDEN_T, .pos = pos, .x = t.x };
    const struct spa_dropout none = { 0, 0 };
    for (uint64_t step = 1; step <= 10; step++) {
        spa_row_forward(&t.shape, t.params, &row, none, scratch, z);
        for (size_t i = 0; i < n_state; i++)
            s[i] = t.y[i] + z[i];
        assert_int_equal(spa_lm_head_loss(&t.head, s, t.target, GOLDEN_T, losses, z, NULL), 0);
        loss = 0;
        for (int i = 0; i < GOLDEN_T; i++)
            loss += (double)losses[i] / GOLDEN_T;
        for (size_t i = 0; i < n_state; i++)
            z[i] /= GOLDEN_T;
        memset(grad, 0, n * sizeof *grad);
        spa_row_backward(&t.shape, t.params, &row, none, scratch, z, grad);
        if (step == 1) {
            assert_below(fabs(loss - (double)reference_number(&t, "train.loss")), 1e-5, "loss of the first step");
            for (size_t i = 0; i < spa_tensor_count(&t.shape); i++) {
                struct spa_tensor w;
                spa_param_tensor(&t.shape, i, &w);
                assert_below(golden_norm_error(grad + w.offset, want_grad + w.offset, (size_t)w.rows * w.cols), 1e-3, w.name);
            }
        }
        spa_adamw_step(&reference_adamw, step, n, t.params, grad, m, v);
    }
    assert_below(fabs(loss - (double)reference_number(&t, "train.loss_after_10")), 1e-4, "loss of the tenth step");
    assert_below(golden_norm_error(t.params, want, n), 1e-3, "weights after ten steps");
    free(scratch);
    free(z);
    free(s);
    free(grad);
    free(m);
    free(v);
    free(want_grad);
    free(want);
    tiny_free(&t);
}

struct log {
    struct spa_learn_step steps[64];
    size_t n;
};

/* Takes all steps; 0, or -1 with a sentence. log may be NULL. */
static int train_with(struct tiny *t, const struct spa_features *anchors, const struct spa_learn_config *cfg, float *params, struct log *log,
                      char *why, size_t why_len)
{
    struct spa_learner *l;
    struct spa_learn_step step;
    if (spa_learner_new(&l, &t->shape, &t->f, anchors, &t->head, cfg, params, why, why_len) != 0)
        return -1;
    int rc;
    while ((rc = spa_learner_step(l, &step, why, why_len)) == 1)
        if (log && log->n < 64)
            log->steps[log->n++] = step;
    spa_learner_free(l);
    return rc;
}

static int train(struct tiny *t, const struct spa_learn_config *cfg, float *params, struct log *log, char *why, size_t why_len)
{
    return train_with(t, NULL, cfg, params, log, why, why_len);
}

static struct spa_learn_config settings(uint32_t epochs, uint32_t batch_rows)
{
    return (struct spa_learn_config){ .epochs = epochs, .batch_rows = batch_rows, .warmup = 1, .adamw = reference_adamw, .seed = 5 };
}

static void test_learn_first_step_equals_reference_however_rows_are_cut(void **state)
{
    (void)state;
    /* 0: one row. 1: every third position a row of its own kind. 2: the whole twenty times over, more than one group holds. */
    for (int cut = 0; cut < 3; cut++) {
        struct tiny t;
        struct log log = {0};
        char why[200];
        tiny_init(&t, 20);
        if (cut == 0)
            add_row(&t, 0, 1);
        for (uint32_t i = 0; cut == 1 && i < 3; i++)
            add_row(&t, i, 3);
        for (int i = 0; cut == 2 && i < 20; i++)
            add_row(&t, 0, 1);
        float *want = golden_tiny_params(&t.vectors, "train.grad.");
        double norm = 0;
        for (size_t i = 0; i < spa_param_count(&t.shape); i++)
            norm += (double)want[i] * (double)want[i];
        struct spa_learn_config cfg = settings(1, 20);
        assert_int_equal(train(&t, &cfg, t.params, &log, why, sizeof why), 0);
        assert_int_equal(log.n, 1);
        assert_below(fabs((double)log.steps[0].loss - (double)reference_number(&t, "train.loss")), 1e-5, "loss");
        assert_below(fabs((double)log.steps[0].grad_norm / sqrt(norm) - 1), 1e-4, "norm of the gradient");
        free(want);
        tiny_free(&t);
    }
}

static void test_learn_same_seed_gives_same_bits_and_another_seed_others(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    tiny_with_rows(&t, 4);
    size_t n = spa_param_count(&t.shape);
    float *runs[3];
    for (int i = 0; i < 3; i++) {
        struct spa_learn_config cfg = settings(3, 2);
        cfg.dropout = 0.1f;
        cfg.seed = i == 2 ? 6 : 5;
        runs[i] = malloc(n * sizeof *runs[i]);
        memcpy(runs[i], t.params, n * sizeof *runs[i]);
        assert_int_equal(train(&t, &cfg, runs[i], NULL, why, sizeof why), 0);
    }
    assert_memory_equal(runs[0], runs[1], n * sizeof *runs[0]);
    assert_memory_not_equal(runs[0], runs[2], n * sizeof *runs[0]);
    for (int i = 0; i < 3; i++)
        free(runs[i]);
    tiny_free(&t);
}

static void test_learn_untrained_plugin_in_add_mode_measures_as_the_base(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    float base[GOLDEN_T], with[GOLDEN_T];
    int32_t base_top[GOLDEN_T], top[GOLDEN_T];
    const struct spa_features_progress quiet = { NULL, NULL };
    tiny_with_rows(&t, 3);
    spa_ladder_init(&t.shape, 1, t.params);
    assert_int_equal(spa_learn_measure(&t.shape, &t.f, &t.head, NULL, base, base_top, quiet, why, sizeof why), 0);
    assert_int_equal(spa_learn_measure(&t.shape, &t.f, &t.head, t.params, with, top, quiet, why, sizeof why), 0);
    assert_memory_equal(base, with, sizeof base);
    assert_memory_equal(base_top, top, sizeof top);
    tiny_free(&t);
}

static void test_learn_many_epochs_learn_the_row_by_heart(void **state)
{
    (void)state;
    struct tiny t;
    struct log log = {0};
    char why[200];
    float loss[GOLDEN_T];
    const struct spa_features_progress quiet = { NULL, NULL };
    tiny_init(&t, 2);
    add_row(&t, 0, 2);
    add_row(&t, 1, 2);
    t.shape.mode = t.f.shape.mode = SPA_REPLACE;
    spa_ladder_init(&t.shape, 3, t.params);
    struct spa_learn_config cfg = settings(60, 2);
    cfg.adamw.lr = 3e-3f;
    cfg.clip = 1;
    assert_int_equal(train(&t, &cfg, t.params, &log, why, sizeof why), 0);
    assert_int_equal(log.n, 60);
    assert_true(log.steps[59].lr < 1e-5f);
    assert_int_equal(spa_learn_measure(&t.shape, &t.f, &t.head, t.params, loss, NULL, quiet, why, sizeof why), 0);
    double mean = 0;
    for (int i = 0; i < GOLDEN_T; i++)
        mean += (double)loss[i] / GOLDEN_T;
    assert_below(mean, 0.5 * (double)log.steps[0].loss, "loss after training");
    tiny_free(&t);
}

static void test_learn_goes_on_from_any_step_with_the_same_bits(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    tiny_with_rows(&t, 4);
    const size_t n = spa_param_count(&t.shape);
    struct spa_learn_config cfg = settings(3, 3);
    cfg.dropout = 0.1f;
    cfg.anchor_weight = 0.5f;
    cfg.anchor_rows = 2;
    float *whole = malloc(n * sizeof *whole), *cut = malloc(n * sizeof *cut), *moments = malloc(2 * n * sizeof *moments);
    memcpy(whole, t.params, n * sizeof *whole);
    assert_int_equal(train_with(&t, &t.f, &cfg, whole, NULL, why, sizeof why), 0);
    for (uint64_t at = 1; at <= 5; at++) {
        struct spa_learner *l;
        struct spa_learn_step step;
        memcpy(cut, t.params, n * sizeof *cut);
        assert_int_equal(spa_learner_new(&l, &t.shape, &t.f, &t.f, &t.head, &cfg, cut, why, sizeof why), 0);
        for (uint64_t i = 0; i < at; i++)
            assert_int_equal(spa_learner_step(l, &step, why, sizeof why), 1);
        memcpy(moments, spa_learner_moments(l), 2 * n * sizeof *moments);
        spa_learner_free(l);
        assert_int_equal(spa_learner_new(&l, &t.shape, &t.f, &t.f, &t.head, &cfg, cut, why, sizeof why), 0);
        spa_learner_go_on(l, at, moments);
        while (spa_learner_step(l, &step, why, sizeof why) == 1)
            ;
        assert_int_equal(step.step, 6);
        spa_learner_free(l);
        assert_memory_equal(cut, whole, n * sizeof *cut);
    }
    free(whole);
    free(cut);
    free(moments);
    tiny_free(&t);
}

static void test_learn_anchors_keep_z_small_where_they_stand(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    double energy[2] = { 0, 0 };
    tiny_init(&t, 2);
    add_row(&t, 0, 2);
    add_row(&t, 1, 2);
    t.shape.mode = t.f.shape.mode = SPA_ADD;
    const size_t n = spa_param_count(&t.shape);
    float *start = malloc(n * sizeof *start);
    spa_ladder_init(&t.shape, 3, start);
    for (int with = 0; with < 2; with++) {
        struct spa_learn_config cfg = settings(30, 2);
        struct log log = {0};
        cfg.anchor_weight = 1000;
        cfg.anchor_rows = 2;
        memcpy(t.params, start, n * sizeof *start);
        assert_int_equal(train_with(&t, with ? &t.f : NULL, &cfg, t.params, &log, why, sizeof why), 0);
        assert_true(log.steps[0].penalty == 0);   /* W_out begins at zero */
        assert_true(with ? log.steps[29].penalty > 0 : log.steps[29].penalty == 0);
        /* What a second pass over the same rows computes by hand. */
        for (size_t i = 0; i < t.f.n; i++) {
            const spa_Features *head = &t.f.rows[i].head;
            uint32_t pos[GOLDEN_T];
            int32_t target[GOLDEN_T];
            const size_t width = (size_t)t.shape.n_taps * t.shape.k, ctx = (size_t)t.shape.n_ctx_taps * t.shape.k;
            float *x_ctx = malloc((head->n_ctx * ctx + 1) * sizeof *x_ctx), *x = malloc(head->n_loss * width * sizeof *x);
            float *y = malloc((size_t)head->n_loss * t.shape.d * sizeof *y), *z = malloc((size_t)head->n_loss * t.shape.d * sizeof *z);
            float *scratch = malloc(spa_row_scratch_len(&t.shape, head->n_ctx, head->n_loss) * sizeof *scratch);
            spa_features_row(&t.f, i, pos, target, x_ctx, x, y);
            const struct spa_row row = { head->n_ctx, x_ctx, head->n_loss, pos, x };
            spa_row_forward(&t.shape, t.params, &row, (struct spa_dropout){ 0, 0 }, scratch, z);
            for (size_t j = 0; j < (size_t)head->n_loss * t.shape.d; j++)
                energy[with] += (double)z[j] * (double)z[j];
            free(x_ctx);
            free(x);
            free(y);
            free(z);
            free(scratch);
        }
    }
    assert_true(energy[0] > 0);
    assert_below(energy[1], 0.2 * energy[0], "z on anchors");
    free(start);
    tiny_free(&t);
}

static void test_learn_loss_that_is_no_number_names_its_step(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    tiny_init(&t, 1);
    add_row(&t, 0, 1);
    t.params[3] = NAN;
    struct spa_learn_config cfg = settings(2, 1);
    assert_int_equal(train(&t, &cfg, t.params, NULL, why, sizeof why), -1);
    assert_non_null(strstr(why, "step 1 of 2"));
    tiny_free(&t);
}

static void test_learn_gate_tells_harmed_tokens_from_others(void **state)
{
    (void)state;
    struct tiny t;
    char why[200];
    float loss[GOLDEN_T], base[GOLDEN_T], w[2 * GOLDEN_D], b[2], g[GOLDEN_D], bias;
    const struct spa_gate gate = { GOLDEN_D, w, b };
    tiny_init(&t, 1);
    add_row(&t, 0, 1);
    for (int i = 0; i < GOLDEN_T; i++) {
        base[i] = 1;
        loss[i] = i % 6 == 0 ? 0.2f : i % 3 == 0 ? 1.04f : i % 3 == 1 ? 1.06f : 1.5f;   /* helped, harmed by less than the margin, harmed */
    }
    assert_int_equal(spa_learn_gate(&t.f, loss, base, NULL, 1, &gate, why, sizeof why), 0);
    spa_gate_fold(GOLDEN_D, w, b, 0.5f, g, &bias);
    int right = 0, fired = 0;
    for (int i = 0; i < GOLDEN_T; i++) {
        bool fires = spa_gate_score(GOLDEN_D, g, bias, t.y + (size_t)i * GOLDEN_D) > 0;
        right += fires == (i % 3 == 0);
        fired += fires;
    }
    assert_true(right >= GOLDEN_T - 2);   /* 38 points in 64 dimensions: any labels can be told apart */
    double rate;
    assert_int_equal(spa_learn_gate_rate(&t.f, &gate, 0.5f, &rate, why, sizeof why), 0);
    assert_below(fabs(rate - (double)fired / GOLDEN_T), 1e-9, "rate");
    tiny_free(&t);
}

/* ---- what a threshold costs ---- */

/* Hand-made tops beside the rows of a tiny case, and where in the reference each loss token stands. */
struct tops_case {
    struct tiny t;
    int32_t top[GOLDEN_T], base_top[GOLDEN_T], target[GOLDEN_T];
    uint32_t at[GOLDEN_T], n;
    struct spa_learn_tops tops;
};

/* Rows of every n_rows-th position. Top tokens are targets, or one beside them, as the noise has it. */
static void tops_init(struct tops_case *c, uint32_t n_rows, uint32_t seed)
{
    tiny_init(&c->t, n_rows);
    noise_state = seed;
    c->n = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        add_row(&c->t, i, n_rows);
        for (uint32_t at = i; at < GOLDEN_T; at += n_rows) {
            c->at[c->n] = at;
            c->target[c->n] = c->t.target[at];
            c->top[c->n] = c->t.target[at] + (noise(1) < -0.8f);
            c->base_top[c->n] = c->t.target[at] + (noise(1) < 0.2f);
            c->n++;
        }
    }
    c->tops = (struct spa_learn_tops){ &c->t.f, c->top, c->base_top };
}

/* The gate as its header defines it, in double. */
static bool fires_by_definition(const struct tops_case *c, uint32_t token, const struct spa_gate *gate, double threshold)
{
    const size_t n_taps = (size_t)c->t.shape.n_taps * c->t.shape.k;
    double s0 = (double)gate->b[0], s1 = (double)gate->b[1];
    for (size_t i = 0; i < gate->width; i++) {
        double v = (double)(i < GOLDEN_D ? c->t.y[c->at[token] * (size_t)GOLDEN_D + i] : c->t.x[c->at[token] * n_taps + i - GOLDEN_D]);
        s0 += (double)gate->w[i] * v;
        s1 += (double)gate->w[gate->width + i] * v;
    }
    return exp(s1) / (exp(s0) + exp(s1)) > threshold;
}

/* One share after the other, row by row, nothing shared between thresholds. */
static void trade_by_definition(const struct tops_case *c, const struct spa_gate *gate, double threshold, double *exact, double *fires,
                                double *changed, double *same)
{
    uint32_t token = 0, n_exact = 0, n_fires = 0, n_changed = 0, n_same = 0;
    for (size_t i = 0; i < c->t.f.n; i++) {
        bool row_exact = true, row_same = true;
        for (uint32_t end = token + c->t.f.rows[i].head.n_loss; token < end; token++) {
            int32_t said = c->base_top[token];
            if (fires_by_definition(c, token, gate, threshold)) {
                said = c->top[token];
                n_fires++;
            }
            if (said != c->base_top[token]) {
                n_changed++;
                row_same = false;
            }
            if (said != c->target[token])
                row_exact = false;
        }
        n_exact += row_exact;
        n_same += row_same;
    }
    *exact = (double)n_exact / (double)c->t.f.n;
    *fires = (double)n_fires / (double)token;
    *changed = (double)n_changed / (double)token;
    *same = (double)n_same / (double)c->t.f.n;
}

static void check_trade(const struct spa_gate *gate)
{
    struct tops_case own, general;
    struct spa_gate_trade trade[SPA_GATE_THRESHOLDS];
    char why[200];
    double exact, fires, changed, same, least = 1, most = 0;
    tops_init(&own, 19, 1);
    tops_init(&general, 12, 2);
    for (size_t i = 0; i < 2 * gate->width; i++)
        gate->w[i] = noise(i % gate->width < GOLDEN_D ? 0.25f : 0.03f);   /* the taps are many, and larger */
    assert_int_equal(spa_learn_gate_trade(&own.tops, &general.tops, gate, spa_gate_thresholds, SPA_GATE_THRESHOLDS, trade, why, sizeof why), 0);
    for (int i = 0; i < SPA_GATE_THRESHOLDS; i++) {
        assert_true(trade[i].threshold == spa_gate_thresholds[i]);
        assert_true(i == 0 || trade[i].threshold > trade[i - 1].threshold);
        trade_by_definition(&own, gate, (double)trade[i].threshold, &exact, &fires, &changed, &same);
        assert_below(fabs(trade[i].exact - exact), 1e-12, "exact");
        assert_below(fabs(trade[i].fires - fires), 1e-12, "fires");
        least = fmin(least, fires);
        most = fmax(most, fires);
        trade_by_definition(&general, gate, (double)trade[i].threshold, &exact, &fires, &changed, &same);
        assert_below(fabs(trade[i].general_fires - fires), 1e-12, "fires on general tokens");
        assert_below(fabs(trade[i].general_changed - changed), 1e-12, "changes general tokens");
        assert_below(fabs(trade[i].general_same - same), 1e-12, "leaves general answers alone");
        double rate;
        assert_int_equal(spa_learn_gate_rate(&own.t.f, gate, trade[i].threshold, &rate, why, sizeof why), 0);
        assert_below(fabs(rate - trade[i].fires), 1e-12, "rate");
    }
    assert_true(least < 0.3 && most > 0.7);   /* the thresholds do lie where the scores are */
    tiny_free(&own.t);
    tiny_free(&general.t);
}

static void test_learn_gate_trade_equals_its_definition(void **state)
{
    (void)state;
    const struct spa_shape shape = golden_tiny_shape();
    const size_t both = GOLDEN_D + (size_t)shape.n_taps * shape.k;
    float b[2] = { 0.1f, -0.2f }, *w = malloc(2 * both * sizeof *w);
    check_trade(&(struct spa_gate){ GOLDEN_D, w, b });
    check_trade(&(struct spa_gate){ both, w, b });
    free(w);
}

static void test_learn_gate_trade_at_its_ends_is_the_base_or_the_plugin(void **state)
{
    (void)state;
    struct tops_case c;
    struct spa_gate_trade trade[2];
    static float w[2 * GOLDEN_D], always[2] = { 0, 50 }, never[2] = { 50, 0 };
    const struct spa_gate open = { GOLDEN_D, w, always }, shut = { GOLDEN_D, w, never };
    const float half[2] = { 0.5f, 0.5f };
    char why[200];
    tops_init(&c, 19, 3);
    memcpy(c.top, c.target, sizeof c.top);           /* a plugin that knows all */
    for (int i = 0; i < GOLDEN_T; i++)
        c.base_top[i] = c.target[i] + 1;             /* a base that knows nothing */
    assert_int_equal(spa_learn_gate_trade(&c.tops, &c.tops, &open, half, 1, trade, why, sizeof why), 0);
    assert_true(trade[0].exact == 1 && trade[0].fires == 1 && trade[0].general_changed == 1 && trade[0].general_same == 0);
    assert_int_equal(spa_learn_gate_trade(&c.tops, NULL, &shut, half, 2, trade, why, sizeof why), 0);
    assert_true(trade[1].exact == 0 && trade[1].fires == 0);
    assert_true(isnan(trade[1].general_fires) && isnan(trade[1].general_changed) && isnan(trade[1].general_same));
    tiny_free(&c.t);
}

static void test_learn_gate_choice_is_the_quietest_that_is_nearly_best(void **state)
{
    (void)state;
    const struct spa_gate_trade trade[] = {
        { 0.1f, 0.99, 1.0, 0.5, 0.20, 0.1 },
        { 0.5f, 1.00, 0.9, 0.3, 0.10, 0.3 },
        { 0.8f, 0.99, 0.8, 0.2, 0.02, 0.8 },      /* a point below the best: still good enough */
        { 0.9f, 0.98, 0.6, 0.1, 0.00, 1.0 },      /* quieter, and too far below */
    };
    assert_int_equal(spa_learn_gate_choose(trade, 4), 2);
    assert_int_equal(spa_learn_gate_choose(trade, 2), 1);
    struct spa_gate_trade even[] = { { 0.1f, 1, 0.9, 0.3, 0, 1 }, { 0.5f, 1, 0.9, 0.2, 0, 1 }, { 0.9f, 1, 0.9, 0.2, 0, 1 } };
    assert_int_equal(spa_learn_gate_choose(even, 3), 1);   /* the lower threshold of two that do the same */
    even[2].fires = 0.7;
    assert_int_equal(spa_learn_gate_choose(even, 3), 2);
    const struct spa_gate_trade alone[] = { { 0.1f, 0.9, 0.9, NAN, NAN, NAN }, { 0.5f, 0.9, 0.7, NAN, NAN, NAN }, { 0.9f, 0.4, 0.1, NAN, NAN, NAN } };
    assert_int_equal(spa_learn_gate_choose(alone, 3), 1);  /* without general answers: what fires least */
    const struct spa_gate_trade nothing[] = { { 0.1f, 0, 0.2, 0, 0, 1 }, { 0.5f, 0, 0.2, 0, 0, 1 } };
    assert_int_equal(spa_learn_gate_choose(nothing, 2), 0);
}

static void test_learn_defaults_give_small_sets_enough_steps(void **state)
{
    (void)state;
    struct spa_learn_config cfg = { .dropout = -1 };
    spa_learn_defaults(&cfg, 150);
    assert_int_equal(cfg.epochs, 12);
    assert_int_equal(spa_learn_steps(&cfg, 150), 96);
    assert_true(cfg.dropout == 0.1f);
    cfg = (struct spa_learn_config){ .dropout = -1, .anchor_weight = -1 };
    spa_learn_defaults(&cfg, 4000);
    assert_int_equal(cfg.epochs, 8);
    assert_true(cfg.anchor_weight == 0.3f);
    cfg.anchor_weight = -1;
    spa_learn_defaults(&cfg, 600);
    assert_true(cfg.anchor_weight == 0.5f);
    cfg.anchor_weight = -1;
    spa_learn_defaults(&cfg, 152);
    assert_true(cfg.anchor_weight == 1);
    cfg.anchor_weight = 0;
    spa_learn_defaults(&cfg, 152);
    assert_true(cfg.anchor_weight == 0);
    assert_int_equal(cfg.warmup, 20);
}

/* ---- the shape of a new plugin ---- */

static void test_shape_defaults_are_the_recipe(void **state)
{
    (void)state;
    static const uint32_t taps[] = { 0, 4, 8, 12, 16, 20, 24, 28, 30 };
    struct spa_shape_wishes w = { .taps = "auto", .basis = "task", .context = "all", .rank = 32, .mode = SPA_ADD };
    struct spa_shape s;
    char why[200];
    assert_int_equal(spa_shape_from_wishes(&w, 576, 30, &s, why, sizeof why), 0);
    assert_int_equal(s.n_taps, 9);
    assert_memory_equal(s.taps, taps, sizeof taps);
    assert_int_equal(s.n_ctx_taps, 9);
    assert_true(s.basis && s.k == 64 && s.r == 32 && s.m == 32 && s.e == 32 && s.n_heads == 4 && !s.ctx_mix);
    assert_true(s.n_att == 2 && s.att_rungs[0] == 4 && s.att_rungs[1] == 8);
    for (uint32_t layers = 1; layers <= 200; layers++) {
        assert_int_equal(spa_shape_from_wishes(&w, 64, layers, &s, why, sizeof why), 0);
        assert_true(s.taps[0] == 0 && s.taps[s.n_taps - 1] == layers && s.n_taps <= 12);
    }
}

static void test_shape_words_are_followed_or_refused_by_name(void **state)
{
    (void)state;
    struct spa_shape s;
    char why[200];
    const struct spa_shape_wishes raw = { .taps = "0,16,30", .basis = "none", .context = "16", .rank = 6, .inner = 10 };
    assert_int_equal(spa_shape_from_wishes(&raw, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.n_taps == 3 && s.taps[1] == 16 && !s.basis && s.k == 576 && s.m == 10 && s.n_ctx_taps == 1 && s.ctx_taps[0] == 16);
    const struct spa_shape_wishes one = { .taps = "1", .basis = "task:7", .context = "none", .rank = 1 };
    assert_int_equal(spa_shape_from_wishes(&one, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.n_taps == 1 && s.taps[0] == 30 && s.k == 7 && s.n_ctx_taps == 0 && s.n_att == 0);
    const struct spa_shape_wishes mix = { .taps = "auto", .basis = "task", .context = "all", .context_mix = true, .rank = 8 };
    assert_int_equal(spa_shape_from_wishes(&mix, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.ctx_mix);
    const struct spa_shape_wishes wide = { .taps = "auto", .basis = "task", .context = "all", .rank = 8, .context_width = 20 };
    assert_int_equal(spa_shape_from_wishes(&wide, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.e == 20 && s.r == 8 && s.m == 8 && s.n_heads == 4);
    const struct spa_shape_wishes odd = { .taps = "auto", .basis = "task", .context = "all", .rank = 8, .context_width = 21 };
    assert_int_equal(spa_shape_from_wishes(&odd, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.e == 21 && s.n_heads == 1);
    const struct spa_shape_wishes generic = { .taps = "auto", .basis = "generic:32", .context = "all", .rank = 8 };
    assert_int_equal(spa_shape_from_wishes(&generic, 576, 30, &s, why, sizeof why), 0);
    assert_true(s.basis && s.k == 32 && spa_shape_wants_generic(&generic) && !spa_shape_wants_generic(&one));
    static const struct { struct spa_shape_wishes w; const char *names; } refused[] = {
        { { .taps = "0,31", .basis = "task", .context = "all", .rank = 8 }, "--taps" },
        { { .taps = "4,4", .basis = "task", .context = "all", .rank = 8 }, "--taps" },
        { { .taps = "0", .basis = "task", .context = "all", .rank = 8 }, "--taps" },
        { { .taps = "32", .basis = "task", .context = "all", .rank = 8 }, "--taps" },
        { { .taps = "some", .basis = "task", .context = "all", .rank = 8 }, "--taps" },
        { { .taps = "auto", .basis = "task:0", .context = "all", .rank = 8 }, "--basis" },
        { { .taps = "auto", .basis = "generic:0", .context = "all", .rank = 8 }, "--basis" },
        { { .taps = "auto", .basis = "generically", .context = "all", .rank = 8 }, "--basis" },
        { { .taps = "auto", .basis = "task:577", .context = "all", .rank = 8 }, "--basis" },
        { { .taps = "auto", .basis = "task", .context = "3", .rank = 8 }, "--context" },
        { { .taps = "auto", .basis = "task", .context = "", .rank = 8 }, "--context" },
        { { .taps = "auto", .basis = "task", .context = "none", .context_mix = true, .rank = 8 }, "--context-mix" },
        { { .taps = "auto", .basis = "task", .context = "none", .context_width = 8, .rank = 8 }, "--context-width" },
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        assert_int_equal(spa_shape_from_wishes(&refused[i].w, 576, 30, &s, why, sizeof why), -1);
        assert_non_null(strstr(why, refused[i].names));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_gradient_leaves_out_little_where_most_rows_weigh_nothing),
        cmocka_unit_test(test_head_loss_and_gradient_equal_double_for_F32),
        cmocka_unit_test(test_head_loss_and_gradient_equal_double_for_F16),
        cmocka_unit_test(test_head_loss_and_gradient_equal_double_for_Q8_0),
        cmocka_unit_test(test_head_loss_and_gradient_equal_double_for_Q4_0),
        cmocka_unit_test(test_head_loss_and_gradient_equal_double_for_Q4_1),
        cmocka_unit_test(test_head_bias_reaches_loss_and_gradient),
        cmocka_unit_test(test_head_softcap_and_scale_reach_loss_and_gradient),
        cmocka_unit_test(test_head_many_states_are_as_few_at_a_time),
        cmocka_unit_test(test_head_state_with_NaN_spoils_its_own_loss_alone),
        cmocka_unit_test(test_head_of_wrong_length_or_type_is_refused),
        cmocka_unit_test(test_learn_ten_steps_through_the_head_equal_reference),
        cmocka_unit_test(test_learn_first_step_equals_reference_however_rows_are_cut),
        cmocka_unit_test(test_learn_same_seed_gives_same_bits_and_another_seed_others),
        cmocka_unit_test(test_learn_untrained_plugin_in_add_mode_measures_as_the_base),
        cmocka_unit_test(test_learn_many_epochs_learn_the_row_by_heart),
        cmocka_unit_test(test_learn_goes_on_from_any_step_with_the_same_bits),
        cmocka_unit_test(test_learn_anchors_keep_z_small_where_they_stand),
        cmocka_unit_test(test_learn_loss_that_is_no_number_names_its_step),
        cmocka_unit_test(test_learn_gate_tells_harmed_tokens_from_others),
        cmocka_unit_test(test_learn_gate_trade_equals_its_definition),
        cmocka_unit_test(test_learn_gate_trade_at_its_ends_is_the_base_or_the_plugin),
        cmocka_unit_test(test_learn_gate_choice_is_the_quietest_that_is_nearly_best),
        cmocka_unit_test(test_learn_defaults_give_small_sets_enough_steps),
        cmocka_unit_test(test_shape_defaults_are_the_recipe),
        cmocka_unit_test(test_shape_words_are_followed_or_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
