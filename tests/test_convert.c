/* test_convert.c - the authors' checkpoint to a plugin file and back, and what has no way between them. */
#define _XOPEN_SOURCE 700
#include "convert.h"
#include "safetensors.h"
#include "store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN SPA_TEST_DIR "/golden/tiny.plugin.safetensors"

static char why[SPA_WHY_MAX];
static uint8_t *golden;
static size_t golden_len;

static int load(void **state)
{
    (void)state;
    return spa_store_read(GOLDEN, 1 << 20, &golden, &golden_len, why, sizeof why);
}

static int unload(void **state)
{
    (void)state;
    free(golden);
    return 0;
}

static void assert_says(const char *what)
{
    if (!strstr(why, what))
        fail_msg("'%s' does not say '%s'", why, what);
}

static struct spa_plugin_file from_golden(void)
{
    struct spa_plugin_file f;
    if (spa_convert_from_checkpoint("golden", golden, golden_len, SPA_ADD, "Tiny", &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    return f;
}

static void test_convert_golden_checkpoint_has_the_shape_of_its_tensors(void **state)
{
    (void)state;
    struct spa_plugin_file f = from_golden();
    const struct spa_shape *s = &f.plugin.shape;
    assert_int_equal(s->d, 64);
    assert_int_equal(s->k, 64);
    assert_int_equal(s->m, 64);
    assert_int_equal(s->r, 8);
    assert_int_equal(s->n_layers, 4);
    assert_int_equal(s->n_taps, 5);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(s->taps[i], i);
    assert_int_equal(s->normalise, SPA_NORM_NONE);
    assert_int_equal(s->mode, SPA_ADD);
    assert_int_equal(s->n_ctx_taps, 0);
    assert_string_equal(f.plugin.base_name, "Tiny");
    assert_true(f.plugin.has_gate && !f.plugin.gate_has_bias && f.plugin.gate_threshold == 0.5f);
    assert_false(f.plugin.has_base_hash);
    spa_plugin_file_free(&f);
}

/* Names written out here, and not made by the rule in convert.c, for a rung in the middle and both ends. */
static void test_convert_weights_lie_where_the_layout_has_them(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "W.0", "ladder_side.input_adapter.weight" }, { "b.0", "ladder_side.input_adapter.bias" },
        { "W.1", "ladder_side.down_adapters.0.weight" }, { "b.4", "ladder_side.down_adapters.3.bias" },
        { "U.2", "ladder_side.side_adapters.1.adapter_h_to_r.weight" }, { "c.2", "ladder_side.side_adapters.1.adapter_h_to_r.bias" },
        { "V.2", "ladder_side.side_adapters.1.adapter_r_to_h.weight" }, { "e.4", "ladder_side.side_adapters.3.adapter_r_to_h.bias" },
        { "W_out", "ladder_side.output_adapter.weight" }, { "b_out", "ladder_side.output_adapter.bias" },
    };
    struct spa_plugin_file f = from_golden();
    struct spa_st_tensor theirs[64];
    struct spa_fault fault;
    size_t n, found = 0;
    assert_int_equal(spa_st_read(golden, golden_len, theirs, 64, &n, &fault), SPA_OK);
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        for (size_t k = 0; k < spa_tensor_count(&f.plugin.shape); k++) {
            struct spa_tensor ours;
            spa_param_tensor(&f.plugin.shape, k, &ours);
            for (size_t j = 0; j < n; j++) {
                if (strcmp(ours.name, pairs[i][0]) == 0 && strcmp(theirs[j].name, pairs[i][1]) == 0) {
                    assert_int_equal(theirs[j].n_bytes, (size_t)ours.rows * ours.cols * sizeof(float));
                    assert_memory_equal(f.params + ours.offset, golden + theirs[j].offset, theirs[j].n_bytes);
                    found++;
                }
            }
        }
    }
    assert_int_equal(found, sizeof pairs / sizeof pairs[0]);
    spa_plugin_file_free(&f);
}

static const struct spa_convert_wishes as_it_is = { SPA_FORM_BY_NAME, -1, SPA_REPLACE, "" };

static void test_convert_there_and_back_is_the_same_to_the_bit(void **state)
{
    (void)state;
    char gguf[] = "/tmp/spa-convert-XXXXXX", back[] = "/tmp/spa-convert-XXXXXX";
    close(mkstemp(gguf));
    close(mkstemp(back));
    struct spa_convert_done done;
    struct spa_plugin_file f;
    if (spa_convert_file(GOLDEN, gguf, &as_it_is, &done, &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(done.from, SPA_FORM_CHECKPOINT);
    assert_int_equal(done.to, SPA_FORM_PLUGIN);
    spa_plugin_file_free(&f);
    if (spa_convert_file(gguf, back, &as_it_is, &done, &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    assert_int_equal(done.from, SPA_FORM_PLUGIN);
    assert_int_equal(done.to, SPA_FORM_CHECKPOINT);
    spa_plugin_file_free(&f);

    uint8_t *bytes;
    size_t len, n, n_back;
    struct spa_fault fault;
    struct spa_st_tensor before[64], after[64];
    assert_int_equal(spa_store_read(back, 1 << 20, &bytes, &len, why, sizeof why), 0);
    assert_int_equal(spa_st_read(golden, golden_len, before, 64, &n, &fault), SPA_OK);
    assert_int_equal(spa_st_read(bytes, len, after, 64, &n_back, &fault), SPA_OK);
    assert_int_equal(n, n_back);
    for (size_t i = 0; i < n; i++) {   /* both are in the order of names */
        assert_string_equal(before[i].name, after[i].name);
        assert_int_equal(before[i].n_dims, after[i].n_dims);
        assert_memory_equal(before[i].dims, after[i].dims, sizeof before[i].dims);
        assert_int_equal(before[i].n_bytes, after[i].n_bytes);
        assert_memory_equal(golden + before[i].offset, bytes + after[i].offset, before[i].n_bytes);
    }
    free(bytes);
    unlink(gguf);
    unlink(back);
}

static void test_convert_pickle_is_never_opened_and_the_way_out_is_said(void **state)
{
    (void)state;
    struct spa_convert_done done;
    struct spa_plugin_file f;
    const char *out = "/tmp/spa-convert-must-not-be-there";
    assert_int_equal(spa_convert_file(SPA_TEST_DIR "/golden/tiny.plugin.bin", out, &as_it_is, &done, &f, why, sizeof why), -1);
    assert_says("pickle");
    assert_says("python3 -c");
    assert_says("tiny.plugin.safetensors'");
    assert_int_equal(access(out, F_OK), -1);
    assert_int_equal(spa_file_kind((const uint8_t *)"\x80\x02\x8a\x0a", 4), SPA_FILE_PICKLE);
}

static void test_convert_unknown_file_is_refused(void **state)
{
    (void)state;
    struct spa_convert_done done;
    struct spa_plugin_file f;
    assert_int_equal(spa_convert_file(SPA_TEST_DIR "/golden/README.md", "/tmp/x", &as_it_is, &done, &f, why, sizeof why), -1);
    assert_says("neither");
}

/* A checkpoint as text: the header's names and dims are changed in place. */
static void replace(uint8_t *bytes, size_t len, const char *old, const char *new)
{
    size_t n = strlen(old);
    assert_int_equal(n, strlen(new));
    for (size_t i = 0; i + n <= len; i++) {
        if (memcmp(bytes + i, old, n) == 0) {
            memcpy(bytes + i, new, n);
            return;
        }
    }
    fail_msg("'%s' is not there", old);
}

static void test_convert_checkpoint_that_is_no_ladder_is_named(void **state)
{
    (void)state;
    static const struct { const char *old, *new, *what; } cases[] = {
        { "input_adapter.weight", "input_adapter.wrong_", "lacks the matrices" },
        { "down_adapters.1.bias", "down_adapters.1.bibs", "lacks ladder_side.down_adapters.1.bias" },
        { "down_adapters.3.weight", "down_adapters.9.weight", "no part of the ladder" },
        { "1.adapter_h_to_r.weight\":{\"dtype\":\"F32\",\"shape\":[64,8]", "1.adapter_h_to_r.weight\":{\"dtype\":\"F32\",\"shape\":[8,64]",
          "side_adapters.1.adapter_h_to_r.weight is not" },
        { "opt.weight\":{\"dtype\":\"F32\",\"shape\":[2,64]", "opt.weight\":{\"dtype\":\"I32\",\"shape\":[2,64]", "opt.weight is not" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spa_plugin_file f;
        uint8_t *bytes = malloc(golden_len);
        memcpy(bytes, golden, golden_len);
        replace(bytes, golden_len, cases[i].old, cases[i].new);
        assert_int_equal(spa_convert_from_checkpoint("bad", bytes, golden_len, SPA_REPLACE, "", &f, why, sizeof why), -1);
        assert_says("'bad'");
        assert_says(cases[i].what);
        assert_null(f.params);
        free(bytes);
    }
    struct spa_plugin_file f;
    assert_int_equal(spa_convert_from_checkpoint("cut", golden, golden_len - 1, SPA_REPLACE, "", &f, why, sizeof why), -1);
    assert_says("'cut'");
}

static void test_convert_checkpoint_without_gate_has_none(void **state)
{
    (void)state;
    uint8_t *bytes = malloc(golden_len), *back;
    size_t back_len, n;
    struct spa_plugin_file f;
    struct spa_st_tensor theirs[64];
    struct spa_fault fault;
    memcpy(bytes, golden, golden_len);
    replace(bytes, golden_len, "opt.weight", "opt.wxyz__");
    assert_int_equal(spa_convert_from_checkpoint("x", bytes, golden_len, SPA_REPLACE, "", &f, why, sizeof why), 0);
    assert_false(f.plugin.has_gate);
    assert_int_equal(spa_convert_to_checkpoint("x", &f, &back, &back_len, why, sizeof why), 0);
    assert_int_equal(spa_st_read(back, back_len, theirs, 64, &n, &fault), SPA_OK);
    assert_int_equal(n, 28);
    free(back);
    free(bytes);
    spa_plugin_file_free(&f);
}

static void test_convert_half_floats_are_widened_exactly(void **state)
{
    (void)state;
    /* The gate's 512 bytes as 128 F32 become 256 bytes of 128 halves; the rest of its place goes to a tensor of no interest. */
    static const struct { const char *dtype; uint16_t half; } cases[] = { { "BF16", 0xc049 }, { "F16", 0xc248 } };
    for (size_t i = 0; i < 2; i++) {
        struct spa_plugin_file f;
        char header[4096];
        uint64_t header_len;
        memcpy(&header_len, golden, 8);
        int n = snprintf(header, sizeof header, "%.*s", (int)header_len, (const char *)golden + 8);
        char *opt = strstr(header, "\"opt.weight\"");
        n = (int)(opt - header) + snprintf(opt, sizeof header - (size_t)(opt - header), "\"opt.weight\":{\"dtype\":\"%s\",\"shape\":[2,64],"
            "\"data_offsets\":[30240,30496]},\"z\":{\"dtype\":\"F32\",\"shape\":[64],\"data_offsets\":[30496,30752]}}", cases[i].dtype);
        size_t len = 8 + (size_t)n + 30752;
        uint8_t *bytes = malloc(len);
        memcpy(bytes, &(uint64_t) { (uint64_t)n }, 8);
        memcpy(bytes + 8, header, (size_t)n);
        memcpy(bytes + 8 + n, golden + golden_len - 30752, 30752);
        for (int k = 0; k < 128; k++)
            memcpy(bytes + 8 + n + 30240 + 2 * k, &cases[i].half, 2);
        if (spa_convert_from_checkpoint("half", bytes, len, SPA_REPLACE, "", &f, why, sizeof why) != 0)
            fail_msg("%s", why);
        assert_true(f.gate_w[0] == -3.140625f && f.gate_w[127] == -3.140625f);
        free(bytes);
        spa_plugin_file_free(&f);
    }
}

static void test_convert_plugin_beyond_the_authors_form_is_refused(void **state)
{
    (void)state;
    float bias[2] = { 0, 0.5f };
    struct spa_plugin_file f = from_golden(), g;
    uint8_t *bytes;
    size_t len;
#define REFUSED(what) do { \
        assert_int_equal(spa_convert_to_checkpoint("p", &g, &bytes, &len, why, sizeof why), -1); \
        assert_says(what); \
    } while (0)
    g = f;
    g.plugin.shape.n_ctx_taps = g.plugin.shape.n_heads = g.plugin.shape.n_att = 1;
    g.plugin.shape.e = 8;
    REFUSED("context attention");
    g = f;
    g.plugin.shape.basis = true;
    REFUSED("basis");
    g = f;
    g.plugin.shape.normalise = SPA_NORM_RMS;
    REFUSED("normalised");
    g = f;
    g.plugin.shape.n_layers = 6;
    REFUSED("some of the layers");
    g = f;
    g.plugin.shape.m = 8;
    REFUSED("inner width");
    g = f;
    g.plugin.gate_has_bias = true;
    g.gate_b = bias;
    REFUSED("bias");
    g = f;
    g.plugin.gate_threshold = 0.25f;
    REFUSED("threshold");
    g = f;
    g.plugin.gate_taps = true;
    REFUSED("reads the taps");
    spa_plugin_file_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert_golden_checkpoint_has_the_shape_of_its_tensors),
        cmocka_unit_test(test_convert_weights_lie_where_the_layout_has_them),
        cmocka_unit_test(test_convert_there_and_back_is_the_same_to_the_bit),
        cmocka_unit_test(test_convert_pickle_is_never_opened_and_the_way_out_is_said),
        cmocka_unit_test(test_convert_unknown_file_is_refused),
        cmocka_unit_test(test_convert_checkpoint_that_is_no_ladder_is_named),
        cmocka_unit_test(test_convert_checkpoint_without_gate_has_none),
        cmocka_unit_test(test_convert_half_floats_are_widened_exactly),
        cmocka_unit_test(test_convert_plugin_beyond_the_authors_form_is_refused),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
