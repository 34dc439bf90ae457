/* test_plugin.c - the plugin file's reader and writer: what goes out comes in again, and what is wrong in any way is said to be.
 * Every block that the reader sees is a malloc of exactly its length, so that AddressSanitizer sees a byte read outside. */
#include "basis.h"
#include "plugin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct sample {
    struct spa_plugin p;
    struct spa_plugin_data data;
    float *params, *gate_w, *gate_b, *basis;
};

static float *numbers(size_t n, float first)
{
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = first + (float)i / 64;
    return x;
}

/* With a context that looks back, where asked for. r decides whether tensors have gaps: multiples of 8 everywhere have none. */
static struct sample sample_with(uint32_t width, bool everything, bool mix)
{
    struct sample s;
    memset(&s, 0, sizeof s);
    struct spa_shape *h = &s.p.shape;
    *h = (struct spa_shape) { .d = 2 * width, .n_layers = 6, .r = width, .m = width, .n_taps = 3, .taps = { 0, 2, 5 },
                              .k = 2 * width, .mode = SPA_ADD, .normalise = SPA_NORM_RMS };
    if (everything) {
        h->basis = true;
        h->k = width;
        h->n_ctx_taps = 2;
        h->ctx_taps[0] = 0;
        h->ctx_taps[1] = 5;
        h->e = width;
        h->n_heads = 2;
        h->n_att = 1;
        h->att_rungs[0] = 2;
        h->ctx_mix = mix;
        s.p.has_gate = s.p.gate_has_bias = s.p.has_base_hash = true;
        s.p.gate_taps = width % 8 == 0;
        strcpy(s.p.base_name, "T\xc3\xbcny 1B");
        s.p.training = (struct spa_training) { 10, 200, 3, 30, UINT64_MAX, 4.5f, 0.25f, -1 };
        for (int i = 0; i < SPA_HASH_BYTES; i++) {
            s.p.base_hash[i] = (uint8_t)(i * 8);
            s.p.basis_hash[i] = (uint8_t)(255 - i);
        }
        s.data.gate_w = s.gate_w = numbers(2 * spa_gate_width(&s.p), -1);
        s.data.gate_b = s.gate_b = numbers(2, 0.5f);
        s.data.basis = s.basis = numbers(spa_basis_floats(h), 1);
    }
    s.p.tap_dtype = SPA_I8;
    s.p.state_dtype = SPA_F16;
    s.p.gate_threshold = 0.25f;
    assert_int_equal(spa_shape_check(h), SPA_OK);
    s.data.params = s.params = numbers(spa_param_count(h), -3);
    return s;
}

static struct sample sample_of(uint32_t width, bool everything) { return sample_with(width, everything, false); }

static void sample_free(struct sample *s)
{
    free(s->params);
    free(s->gate_w);
    free(s->gate_b);
    free(s->basis);
}

static uint8_t *write_sample(const struct sample *s, size_t *len)
{
    size_t need = spa_plugin_write_len(&s->p, &s->data);
    uint8_t *block = malloc(need);
    assert_int_equal(spa_plugin_write(&s->p, &s->data, block, need, len), SPA_OK);
    assert_int_equal(*len, need);
    return block;
}

static enum spa_err read_copy(const uint8_t *block, size_t len, struct spa_fault *fault)
{
    struct spa_plugin p;
    struct spa_plugin_data data;
    uint8_t *copy = malloc(len ? len : 1);
    memcpy(copy, block, len);
    *fault = (struct spa_fault) { NULL, 0 };
    enum spa_err e = spa_plugin_read(copy, len, &p, &data, fault);
    if (e == SPA_OK)
        assert_int_equal(spa_shape_check(&p.shape), SPA_OK);
    else
        assert_non_null(fault->what);
    free(copy);
    return e;
}

static void assert_refused(const uint8_t *block, size_t len, enum spa_err e, const char *what)
{
    struct spa_fault fault;
    assert_int_equal(read_copy(block, len, &fault), e);
    if (!strstr(fault.what, what))
        fail_msg("'%s' does not say '%s'", fault.what, what);
}

/* Where a text lies in the block, from the end of it. */
static size_t after(const uint8_t *block, size_t len, const char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i + n <= len; i++)
        if (memcmp(block + i, text, n) == 0)
            return i + n;
    fail_msg("'%s' is not in the file", text);
    return 0;
}

static void check_round_trip(uint32_t width, bool everything, bool mix)
{
    struct sample s = sample_with(width, everything, mix);
    const struct spa_shape *h = &s.p.shape;
    size_t len, n = spa_param_count(h);
    uint8_t *block = write_sample(&s, &len);
    struct spa_plugin p;
    struct spa_plugin_data data;
    struct spa_fault fault;
    assert_int_equal(spa_plugin_read(block, len, &p, &data, &fault), SPA_OK);

    const struct spa_shape *g = &p.shape;
    assert_int_equal(g->d, h->d);
    assert_int_equal(g->n_layers, h->n_layers);
    assert_int_equal(g->r, h->r);
    assert_int_equal(g->m, h->m);
    assert_int_equal(g->k, h->k);
    assert_int_equal(g->n_taps, h->n_taps);
    assert_memory_equal(g->taps, h->taps, sizeof g->taps);
    assert_int_equal(g->basis, h->basis);
    assert_int_equal(g->normalise, h->normalise);
    assert_int_equal(g->mode, h->mode);
    assert_int_equal(g->n_ctx_taps, h->n_ctx_taps);
    assert_memory_equal(g->ctx_taps, h->ctx_taps, sizeof g->ctx_taps);
    assert_int_equal(g->e, h->e);
    assert_int_equal(g->n_heads, h->n_heads);
    assert_int_equal(g->n_att, h->n_att);
    assert_memory_equal(g->att_rungs, h->att_rungs, sizeof g->att_rungs);
    assert_int_equal(g->ctx_mix, h->ctx_mix);
    assert_int_equal(block[after(block, len, "spa.version") + 4], mix ? 2 : 1);
    assert_string_equal(p.base_name, s.p.base_name);
    assert_int_equal(p.has_base_hash, s.p.has_base_hash);
    assert_memory_equal(p.base_hash, s.p.base_hash, sizeof p.base_hash);
    assert_memory_equal(p.basis_hash, s.p.basis_hash, sizeof p.basis_hash);
    assert_int_equal(p.tap_dtype, s.p.tap_dtype);
    assert_int_equal(p.state_dtype, s.p.state_dtype);
    assert_true(p.gate_threshold == s.p.gate_threshold);
    assert_int_equal(p.training.rows, s.p.training.rows);
    assert_int_equal(p.training.loss_tokens, s.p.training.loss_tokens);
    assert_int_equal(p.training.epochs, s.p.training.epochs);
    assert_true(p.training.steps == s.p.training.steps && p.training.seed == s.p.training.seed);
    assert_true(p.training.first_loss == s.p.training.first_loss && p.training.final_loss == s.p.training.final_loss);
    assert_true(p.training.eval_exact_match == s.p.training.eval_exact_match);

    float *params = malloc(n * sizeof *params);
    assert_int_equal(spa_plugin_params(block, len, &p, params), SPA_OK);
    assert_memory_equal(params, s.params, n * sizeof *params);
    free(params);
    assert_int_equal(data.params != NULL, width % 8 == 0);
    if (data.params)
        assert_memory_equal(data.params, s.params, n * sizeof *params);
    assert_int_equal(p.has_gate, everything);
    assert_int_equal(p.gate_has_bias, everything);
    assert_int_equal(p.gate_taps, s.p.gate_taps);
    assert_int_equal(data.gate_w != NULL && data.gate_b != NULL && data.basis != NULL, everything);
    if (everything) {
        assert_memory_equal(data.gate_w, s.gate_w, 2 * spa_gate_width(&p) * sizeof(float));
        assert_memory_equal(data.gate_b, s.gate_b, 2 * sizeof(float));
        assert_memory_equal(data.basis, s.basis, spa_basis_floats(h) * sizeof(float));
    }
    free(block);
    sample_free(&s);
}

static void test_plugin_written_and_read_is_the_same(void **state)
{
    (void)state;
    check_round_trip(8, true, false);
    check_round_trip(8, true, true);
    check_round_trip(8, false, false);
    check_round_trip(6, true, false);    /* tensors with gaps between them: weights come by copy */
    check_round_trip(6, true, true);
    check_round_trip(6, false, false);
}

/* Matrices in F16, in Q8_0, and in Q8_0 where rows are no whole blocks: there F16 takes its place. */
static void check_smaller_weights(uint32_t width, enum spa_dtype weights, size_t file_below)
{
    struct sample s = sample_of(width, true);
    const size_t n = spa_param_count(&s.p.shape);
    struct spa_plugin p;
    struct spa_plugin_data data;
    struct spa_fault fault;
    size_t len, f32_len = spa_plugin_write_len(&s.p, &s.data);
    for (size_t i = 0; i < n; i++)
        s.params[i] = (float)((i * 7919) % 2003) / 1000 - 1;
    s.p.weights = weights;
    uint8_t *block = write_sample(&s, &len);
    assert_true(len < f32_len - n * sizeof(float) * file_below / 100);
    assert_int_equal(spa_plugin_read(block, len, &p, &data, &fault), SPA_OK);
    assert_int_equal(p.weights, width % 32 == 0 ? weights : SPA_F16);
    assert_null(data.params);
    assert_memory_equal(data.gate_w, s.gate_w, 2 * spa_gate_width(&p) * sizeof(float));
    assert_memory_equal(data.basis, s.basis, spa_basis_floats(&p.shape) * sizeof(float));
    float *params = malloc(n * sizeof *params);
    assert_int_equal(spa_plugin_params(block, len, &p, params), SPA_OK);
    for (size_t i = 0; i < spa_tensor_count(&p.shape); i++) {
        struct spa_tensor t;
        spa_param_tensor(&p.shape, i, &t);
        /* Half a step of F16 at 1; half a step of 1/127 with a scale that is F16 itself. */
        const float step = t.is_vector ? 0 : p.weights == SPA_F16 ? 0x1p-11f : 0.5f / 127 + 0x1p-10f;
        for (size_t k = t.offset; k < t.offset + (size_t)t.rows * t.cols; k++)
            assert_true(fabsf(params[k] - s.params[k]) <= step);
    }
    free(params);
    free(block);
    sample_free(&s);
}

static void test_plugin_weights_in_F16_and_Q8_0_come_within_their_steps(void **state)
{
    (void)state;
    check_smaller_weights(8, SPA_F16, 30);
    check_smaller_weights(32, SPA_F16, 40);
    check_smaller_weights(32, SPA_I8, 60);
    check_smaller_weights(8, SPA_I8, 30);
}

static void test_plugin_half_a_block_or_a_gate_in_F16_is_refused(void **state)
{
    (void)state;
    struct sample s = sample_of(32, true);
    size_t len;
    s.p.weights = SPA_I8;
    uint8_t *block = write_sample(&s, &len);
    size_t head = after(block, len, "spa.W.0");
    block[head + 4] = 33;   /* after the number of dimensions: the first of them */
    assert_refused(block, len, SPA_ERR_FORMAT, "no whole number of blocks");
    block[head + 4] = 32;
    size_t gate = after(block, len, "spa.gate.weight");
    block[gate + 4 + 16] = 1;   /* its type, after two dimensions; half of its bytes are padding then */
    assert_refused(block, len, SPA_ERR_FORMAT, "a vector, the gate or the basis is not F32");
    block[gate + 4 + 16] = 2;
    assert_refused(block, len, SPA_ERR_FORMAT, "not F32, F16 or Q8_0");
    free(block);
    sample_free(&s);
}

static void test_plugin_scale_of_a_block_that_is_infinite_is_RANGE(void **state)
{
    (void)state;
    struct sample s = sample_of(32, false);
    size_t len;
    s.p.weights = SPA_I8;
    s.params[0] = 9e6f;   /* /127 is beyond F16 */
    uint8_t *block = write_sample(&s, &len);
    assert_refused(block, len, SPA_ERR_RANGE, "NaN or infinite");
    free(block);
    sample_free(&s);
}

static void test_plugin_written_twice_is_the_same_bytes(void **state)
{
    (void)state;
    struct sample s = sample_of(8, true);
    size_t len, again_len;
    uint8_t *block = write_sample(&s, &len), *again = write_sample(&s, &again_len);
    assert_int_equal(len, again_len);
    assert_memory_equal(block, again, len);
    assert_int_equal(spa_plugin_write(&s.p, &s.data, again, len - 1, &again_len), SPA_ERR_NOMEM);
    assert_int_equal(again_len, len);
    free(block);
    free(again);
    sample_free(&s);
}

static void test_plugin_cut_at_any_byte_is_refused(void **state)
{
    (void)state;
    struct sample s = sample_of(6, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    struct spa_fault fault;
    for (size_t cut = 0; cut < len; cut++)
        if (read_copy(block, cut, &fault) != SPA_ERR_FORMAT)
            fail_msg("%zu of %zu bytes were not FORMAT", cut, len);
    assert_int_equal(read_copy(block, len, &fault), SPA_OK);
    free(block);
    sample_free(&s);
}

static void test_plugin_with_bytes_after_its_end_is_refused(void **state)
{
    (void)state;
    struct sample s = sample_of(8, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    block = realloc(block, len + 32);
    memset(block + len, 0, 32);
    assert_refused(block, len + 32, SPA_ERR_FORMAT, "does not end");
    free(block);
    sample_free(&s);
}

static void test_plugin_any_bit_of_the_header_flipped_is_refused_or_consistent(void **state)
{
    (void)state;
    struct sample s = sample_with(6, true, true);
    size_t len, refused = 0;
    uint8_t *block = write_sample(&s, &len);
    size_t header_len = after(block, len, "spa.basis\x02") + 64;   /* the last tensor's head and the padding */
    struct spa_fault fault;
    assert_true(header_len < len);
    for (size_t bit = 0; bit < 8 * header_len; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        refused += read_copy(block, len, &fault) != SPA_OK;
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    /* What passes is the value of a hash, a name, a training number or a key that is optional: far from all of it. */
    assert_true(refused > 4 * header_len);
    free(block);
    sample_free(&s);
}

/* ---- one thing wrong at a time ---- */

static void put_u32(uint8_t *at, uint32_t v) { memcpy(at, &v, sizeof v); }
static void put_u64(uint8_t *at, uint64_t v) { memcpy(at, &v, sizeof v); }

struct wrong {
    const char *text;    /* the change is made after this text, or at the file's start for "" */
    size_t skip;
    uint64_t value;
    size_t bytes;        /* of value */
    enum spa_err e;
    const char *what;
};

/* A key's value lies 4 bytes behind its name: the type comes first. A matrix' head after its name: n_dims u32, two dims u64, type
 * u32, offset u64. */
static const struct wrong wrongs[] = {
    { "", 0, 'X', 1, SPA_ERR_FORMAT, "no GGUF" },
    { "", 4, 2, 4, SPA_ERR_VERSION, "GGUF version" },
    { "", 8, 1 << 20, 8, SPA_ERR_LIMIT, "too many" },
    { "", 8, UINT64_MAX, 8, SPA_ERR_LIMIT, "too many" },
    { "", 16, UINT64_MAX, 8, SPA_ERR_LIMIT, "too many" },
    { "", 24, UINT64_MAX, 8, SPA_ERR_FORMAT, "ends inside" },
    { "general.type", 4 + 8, 'x', 1, SPA_ERR_FORMAT, "general.type" },
    { "adapter.type", 4 + 8, 'x', 1, SPA_ERR_FORMAT, "adapter.type" },
    { "spa.version", 4, 3, 4, SPA_ERR_VERSION, "newer" },
    { "spa.version", 4, 0, 4, SPA_ERR_FORMAT, "spa.version" },
    { "spa.version", 0, 5, 4, SPA_ERR_FORMAT, "spa.version" },
    { "spa.d", 4, 0, 4, SPA_ERR_SHAPE, "shape" },
    { "spa.d", 4, 1u << 31, 4, SPA_ERR_LIMIT, "shape" },
    { "spa.d", 4, 20, 4, SPA_ERR_SHAPE, "spa.W_out" },
    { "spa.r", 4, 10, 4, SPA_ERR_SHAPE, "spa.W.i" },
    { "spa.m", 4, 10, 4, SPA_ERR_SHAPE, "spa.U.i" },
    { "spa.taps", 4, 5, 4, SPA_ERR_FORMAT, "spa.taps" },
    { "spa.taps", 8, 1u << 31, 8, SPA_ERR_LIMIT, "too many elements" },
    { "spa.taps", 16, 3, 4, SPA_ERR_SHAPE, "shape" },
    { "spa.basis", 4, 2, 1, SPA_ERR_FORMAT, "spa.basis" },
    { "spa.basis.hash", 12, 'A', 1, SPA_ERR_FORMAT, "spa.basis.hash" },
    { "spa.basis.hash", 3, 9, 1, SPA_ERR_FORMAT, "type" },
    { "spa.normalise", 12, 'x', 1, SPA_ERR_FORMAT, "spa.normalise" },
    { "spa.mode", 12, 'x', 1, SPA_ERR_FORMAT, "spa.mode" },
    { "spa.context.heads", 4, 5, 4, SPA_ERR_SHAPE, "shape" },
    { "spa.base.name", 12, 27, 1, SPA_ERR_FORMAT, "spa.base.name" },
    { "spa.base.name", 13, 0xff, 1, SPA_ERR_FORMAT, "spa.base.name" },
    { "spa.tap_dtype", 12, 'x', 1, SPA_ERR_FORMAT, "spa.tap_dtype" },
    { "spa.gate.threshold", 4, 0x3f800000, 4, SPA_ERR_FORMAT, "threshold" },
    { "spa.gate.threshold", 4, 0x7fc00000, 4, SPA_ERR_FORMAT, "threshold" },
    { "spa.training.final_loss", 4, 0x7fc00000, 4, SPA_ERR_RANGE, "training" },
    { "spa.d", 0, 99, 4, SPA_ERR_FORMAT, "type" },
    { "spa.W.0", 0, 5, 4, SPA_ERR_FORMAT, "dimensions" },
    { "spa.W.0", 4, 0, 8, SPA_ERR_FORMAT, "runs past" },
    { "spa.W.0", 4, UINT64_MAX / 2, 8, SPA_ERR_FORMAT, "runs past" },
    { "spa.W.0", 4, (uint64_t)1 << 62, 8, SPA_ERR_FORMAT, "runs past" },   /* times 4 bytes it is 0 */
    { "spa.W.0", 20, 2, 4, SPA_ERR_FORMAT, "not F32, F16 or Q8_0" },
    { "spa.W.0", 24, 4, 8, SPA_ERR_FORMAT, "aligned" },
    { "spa.W.1", 24, 0, 8, SPA_ERR_FORMAT, "overlap" },
    { "spa.W.1", 24, (uint64_t)-32, 8, SPA_ERR_FORMAT, "runs past" },
    { "spa.basis\x02", 3 + 8, 6, 8, SPA_ERR_FORMAT, "runs past" },   /* twice its rows */
    { "spa.gate.weight", 24, 1 << 20, 8, SPA_ERR_FORMAT, "runs past" },
    { "spa.gate.weight", 4, 5, 8, SPA_ERR_SHAPE, "neither [2, d] nor" },
};

/* In a file with spa.context.mix. */
static const struct wrong mix_wrongs[] = {
    { "spa.version", 4, 1, 4, SPA_ERR_FORMAT, "spa.context.mix is there, but spa.version is older" },
    { "spa.version", 4, 3, 4, SPA_ERR_VERSION, "newer" },
    { "spa.context.mix", 4, 2, 1, SPA_ERR_FORMAT, "spa.context.mix" },
    { "spa.context.mix", 0, 0, 4, SPA_ERR_FORMAT, "spa.context.mix" },
    { "spa.ctx.mix.Wk", 4, 3, 8, SPA_ERR_SHAPE, "spa.ctx.mix.Wk" },
};

static void check_wrongs(bool mix, const struct wrong *list, size_t n)
{
    struct sample s = sample_with(6, true, mix);
    size_t len;
    uint8_t *block = write_sample(&s, &len), *copy = malloc(len);
    for (size_t i = 0; i < n; i++) {
        const struct wrong *w = &list[i];
        memcpy(copy, block, len);
        memcpy(copy + (*w->text ? after(copy, len, w->text) : 0) + w->skip, &w->value, w->bytes);
        assert_refused(copy, len, w->e, w->what);
    }
    free(copy);
    free(block);
    sample_free(&s);
}

static void test_plugin_one_wrong_field_is_named(void **state)
{
    (void)state;
    check_wrongs(false, wrongs, sizeof wrongs / sizeof wrongs[0]);
    check_wrongs(true, mix_wrongs, sizeof mix_wrongs / sizeof mix_wrongs[0]);
}

/* Renaming a key to one that nobody knows is the same as leaving it out. */
static void test_plugin_missing_key_or_tensor_is_named(void **state)
{
    (void)state;
    static const char *const required[] = {
        "general.type", "adapter.type", "spa.version", "spa.d", "spa.n_layers", "spa.r", "spa.m", "spa.k", "spa.taps",
        "spa.basis.hash", "spa.normalise", "spa.mode", "spa.context.taps", "spa.context.e", "spa.context.heads",
        "spa.context.rungs", "spa.tap_dtype", "spa.state_dtype",
    };
    static const char *const tensors[][2] = {
        { "spa.W.1", "spa.W.i" }, { "spa.b.0", "spa.b.i" }, { "spa.U.2", "spa.U.i" }, { "spa.c.1", "spa.c.i" },
        { "spa.V.1", "spa.V.i" }, { "spa.e.2", "spa.e.i" }, { "spa.W_out", "spa.W_out" }, { "spa.b_out", "spa.b_out" },
        { "spa.ctx.W", "spa.ctx.W" }, { "spa.ctx.b", "spa.ctx.b" }, { "spa.att.2.Wq", "spa.att.i.Wq" },
        { "spa.att.2.bq", "spa.att.i.bq" }, { "spa.att.2.Wk", "spa.att.i.Wk" }, { "spa.att.2.bk", "spa.att.i.bk" },
        { "spa.att.2.Wv", "spa.att.i.Wv" }, { "spa.att.2.bv", "spa.att.i.bv" },
        { "spa.gate.weight", "spa.gate.bias is there without" },
    };
    struct sample s = sample_of(6, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        uint8_t *last = block + after(block, len, required[i]) - 1, kept = *last;
        *last = '~';
        assert_refused(block, len, SPA_ERR_FORMAT, required[i]);
        assert_refused(block, len, SPA_ERR_FORMAT, "missing");
        *last = kept;
    }
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        uint8_t *last = block + after(block, len, tensors[i][0]) - 1, kept = *last;
        *last = '~';
        assert_refused(block, len, SPA_ERR_FORMAT, tensors[i][1]);
        *last = kept;
    }
    free(block);
    sample_free(&s);
}

static void test_plugin_missing_part_of_the_mix_is_named(void **state)
{
    (void)state;
    static const char *const context[] = { "spa.context.taps", "spa.context.e", "spa.context.heads", "spa.context.rungs" };
    static const char *const tensors[] = { "spa.ctx.mix.Wq", "spa.ctx.mix.bq", "spa.ctx.mix.Wk", "spa.ctx.mix.bk", "spa.ctx.mix.Wv", "spa.ctx.mix.bv" };
    struct sample s = sample_with(6, true, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        uint8_t *last = block + after(block, len, tensors[i]) - 1, kept = *last;
        *last = '~';
        assert_refused(block, len, SPA_ERR_FORMAT, tensors[i]);
        *last = kept;
    }
    for (size_t i = 0; i < sizeof context / sizeof context[0]; i++)
        block[after(block, len, context[i]) - 1] = '~';
    assert_refused(block, len, SPA_ERR_FORMAT, "spa.context.taps is missing");
    free(block);
    sample_free(&s);
}

static void test_plugin_same_key_or_tensor_twice_is_refused(void **state)
{
    (void)state;
    struct sample s = sample_of(6, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    uint8_t *m = block + after(block, len, "spa.m") - 1;
    *m = 'r';
    assert_refused(block, len, SPA_ERR_FORMAT, "key comes twice");
    *m = 'm';
    block[after(block, len, "spa.W.2") - 1] = '1';
    assert_refused(block, len, SPA_ERR_FORMAT, "tensor comes twice");
    free(block);
    sample_free(&s);
}

static void test_plugin_number_that_is_not_finite_is_RANGE(void **state)
{
    (void)state;
    struct sample s = sample_of(6, true);
    float *const arrays[] = { s.params, s.gate_w, s.gate_b, s.basis };
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (size_t i = 0; i < 4; i++) {
        for (size_t k = 0; k < 3; k++) {
            float kept = arrays[i][1];
            arrays[i][1] = bad[k];
            size_t len;
            uint8_t *block = write_sample(&s, &len);
            assert_refused(block, len, SPA_ERR_RANGE, "NaN or infinite");
            free(block);
            arrays[i][1] = kept;
        }
    }
    s.basis[0] = 0;   /* a scale */
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    assert_refused(block, len, SPA_ERR_RANGE, "scale");
    free(block);
    sample_free(&s);
}

/* ---- files that others may write ---- */

/* Puts bytes into the block at `at`; the header grows by a multiple of 32, so the data stays aligned. */
static uint8_t *insert(uint8_t *block, size_t *len, size_t at, const void *bytes, size_t n)
{
    assert_int_equal(n % 32, 0);
    block = realloc(block, *len + n);
    memmove(block + at + n, block + at, *len - at);
    memcpy(block + at, bytes, n);
    *len += n;
    return block;
}

static void test_plugin_unknown_keys_and_tensors_are_ignored(void **state)
{
    (void)state;
    struct sample s = sample_of(8, true);
    size_t len;
    uint8_t *block = write_sample(&s, &len), key[32], head[64];
    put_u64(key, 16);
    memcpy(key + 8, "spa.future_key_x", 16);
    put_u32(key + 24, 4);
    put_u32(key + 28, 7);
    block = insert(block, &len, 24, key, sizeof key);
    put_u64(block + 16, block[16] + 1u);
    struct spa_fault fault;
    assert_int_equal(read_copy(block, len, &fault), SPA_OK);

    /* a tensor [1] at the end, in 32 bytes of its own; its head has 8 + 32 + 4 + 8 + 4 + 8 bytes */
    size_t heads_end = after(block, len, "spa.basis\x02") - 1 + 4 + 16 + 4 + 8;
    uint64_t last_offset;
    memcpy(&last_offset, block + heads_end - 8, 8);
    uint64_t basis_bytes = spa_basis_floats(&s.p.shape) * sizeof(float);
    put_u64(head, 32);
    memcpy(head + 8, "spa.a_tensor_of_some_later_day__", 32);
    put_u32(head + 40, 1);
    put_u64(head + 44, 1);
    put_u32(head + 52, 0);
    put_u64(head + 56, last_offset + (basis_bytes + 31) / 32 * 32);
    block = insert(block, &len, heads_end, head, sizeof head);
    block = realloc(block, len + 32);
    memset(block + len, 0, 32);
    len += 32;
    block[8]++;
    assert_int_equal(read_copy(block, len, &fault), SPA_OK);
    free(block);
    sample_free(&s);
}

static void test_plugin_tensors_in_another_order_are_found_by_name(void **state)
{
    (void)state;
    struct sample s = sample_of(8, false);
    size_t len, n = spa_param_count(&s.p.shape);
    uint8_t *block = write_sample(&s, &len);
    /* W.1 and W.2 have the same shape: exchanging their names exchanges their numbers. */
    uint8_t *one = block + after(block, len, "spa.W.1") - 1, *two = block + after(block, len, "spa.W.2") - 1;
    *one = '2';
    *two = '1';
    struct spa_plugin p;
    struct spa_plugin_data data;
    struct spa_fault fault;
    float *params = malloc(n * sizeof *params);
    assert_int_equal(spa_plugin_read(block, len, &p, &data, &fault), SPA_OK);
    assert_null(data.params);
    assert_int_equal(spa_plugin_params(block, len, &p, params), SPA_OK);
    for (size_t i = 0; i < spa_tensor_count(&p.shape); i++) {
        struct spa_tensor t, from;
        spa_param_tensor(&p.shape, i, &t);
        from = t;
        for (size_t k = 0; k < spa_tensor_count(&p.shape); k++) {
            struct spa_tensor other;
            spa_param_tensor(&p.shape, k, &other);
            if ((strcmp(t.name, "W.1") == 0 && strcmp(other.name, "W.2") == 0) ||
                (strcmp(t.name, "W.2") == 0 && strcmp(other.name, "W.1") == 0))
                from = other;
        }
        assert_memory_equal(params + t.offset, s.params + from.offset, (size_t)t.rows * t.cols * sizeof(float));
    }
    free(params);
    free(block);
    sample_free(&s);
}

static void test_plugin_basis_may_be_left_out_of_the_file(void **state)
{
    (void)state;
    struct sample s = sample_of(8, true);
    s.data.basis = NULL;
    size_t len;
    uint8_t *block = write_sample(&s, &len);
    struct spa_plugin p;
    struct spa_plugin_data data;
    struct spa_fault fault;
    assert_int_equal(spa_plugin_read(block, len, &p, &data, &fault), SPA_OK);
    assert_true(p.shape.basis);
    assert_null(data.basis);
    free(block);
    sample_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plugin_written_and_read_is_the_same),
        cmocka_unit_test(test_plugin_weights_in_F16_and_Q8_0_come_within_their_steps),
        cmocka_unit_test(test_plugin_half_a_block_or_a_gate_in_F16_is_refused),
        cmocka_unit_test(test_plugin_scale_of_a_block_that_is_infinite_is_RANGE),
        cmocka_unit_test(test_plugin_written_twice_is_the_same_bytes),
        cmocka_unit_test(test_plugin_cut_at_any_byte_is_refused),
        cmocka_unit_test(test_plugin_with_bytes_after_its_end_is_refused),
        cmocka_unit_test(test_plugin_any_bit_of_the_header_flipped_is_refused_or_consistent),
        cmocka_unit_test(test_plugin_one_wrong_field_is_named),
        cmocka_unit_test(test_plugin_missing_key_or_tensor_is_named),
        cmocka_unit_test(test_plugin_missing_part_of_the_mix_is_named),
        cmocka_unit_test(test_plugin_same_key_or_tensor_twice_is_refused),
        cmocka_unit_test(test_plugin_number_that_is_not_finite_is_RANGE),
        cmocka_unit_test(test_plugin_unknown_keys_and_tensors_are_ignored),
        cmocka_unit_test(test_plugin_tensors_in_another_order_are_found_by_name),
        cmocka_unit_test(test_plugin_basis_may_be_left_out_of_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
