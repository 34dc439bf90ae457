/* test_peft.c - adapter folders: out and in again is the same plugin, and whatever is wrong in one is said. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basis.h"
#include "peft.h"
#include "peft_card.h"
#include "store.h"
#include "test_folder.h"

static char why[SPA_WHY_MAX];

static float *numbers(size_t n, uint32_t seed)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((seed + i * 7919) % 2003 + 1) / 2003;
    return x;
}

/* With everything that a plugin may have. */
static struct spa_plugin_file sample(void)
{
    struct spa_plugin_file f = { .plugin = {
        .shape = { .d = 64, .n_layers = 6, .r = 8, .m = 16, .n_taps = 3, .taps = { 0, 2, 5 }, .k = 32, .basis = true, .mode = SPA_ADD,
                   .normalise = SPA_NORM_RMS, .n_ctx_taps = 2, .ctx_taps = { 0, 5 }, .e = 8, .n_heads = 2, .n_att = 1, .att_rungs = { 2 }, .ctx_mix = true },
        .base_name = "T\xc3\xbcny 'quoted' 1B", .has_base_hash = true, .tap_dtype = SPA_I8, .state_dtype = SPA_F16, .has_gate = true,
        .gate_has_bias = true, .gate_taps = true, .gate_threshold = 0.25f,
        .training = { 10, 200, 3, 30, UINT64_MAX, 4.5f, 0.25f, -1 } } };
    for (int i = 0; i < SPA_HASH_BYTES; i++)
        f.plugin.base_hash[i] = (uint8_t)(i * 8);
    f.params = numbers(spa_param_count(&f.plugin.shape), 1);
    f.gate_w = numbers(2 * spa_gate_width(&f.plugin), 2);
    f.gate_b = numbers(2, 3);
    f.basis = numbers(spa_basis_floats(&f.plugin.shape), 4);
    spa_sha256(f.basis, spa_basis_floats(&f.plugin.shape) * sizeof(float), f.plugin.basis_hash);
    return f;
}

static const char *in_folder(const char *name)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int begin(void **state)
{
    (void)state;
    return folder_make();
}

static void expect_no_load(const char *piece)
{
    struct spa_plugin_file f;
    assert_int_equal(spa_peft_load(folder, &f, why, sizeof why), -1);
    assert_null(f.params);
    if (!strstr(why, folder) || !strstr(why, piece))
        fail_msg("'%s' does not name the folder and say '%s'", why, piece);
}

/* Rewrites the config with one piece of its text replaced by another. */
static void edit_config(const char *old, const char *new)
{
    uint8_t *text;
    size_t len;
    char *path = strdup(in_folder("adapter_config.json"));
    assert_int_equal(spa_store_read(path, 1 << 20, &text, &len, why, sizeof why), 0);
    char *edited = calloc(len + strlen(new) + 2, 1), *whole = calloc(len + 1, 1);
    memcpy(whole, text, len);
    const char *at = strstr(whole, old);
    if (!at)
        fail_msg("'%s' is not in the config", old);
    sprintf(edited, "%.*s%s%s", (int)(at - whole), whole, new, at + strlen(old));
    assert_int_equal(spa_store_replace(path, edited, strlen(edited), true, why, sizeof why), 0);
    free(text);
    free(edited);
    free(whole);
    free(path);
}

static void save_sample(enum spa_dtype weights)
{
    struct spa_plugin_file f = sample();
    f.plugin.weights = weights;
    if (spa_peft_save(folder, &f, why, sizeof why) != 0)
        fail_msg("%s", why);
    spa_plugin_file_free(&f);
}

static uint8_t *written(const struct spa_plugin_file *f, size_t *len)
{
    const struct spa_plugin_data data = { f->params, f->gate_w, f->gate_b, f->basis };
    uint8_t *bytes = malloc(spa_plugin_write_len(&f->plugin, &data));
    assert_int_equal(spa_plugin_write(&f->plugin, &data, bytes, spa_plugin_write_len(&f->plugin, &data), len), SPA_OK);
    return bytes;
}

static void test_peft_out_and_in_again_is_the_same_plugin(void **state)
{
    (void)state;
    struct spa_plugin_file f = sample(), back;
    save_sample(SPA_F32);
    assert_int_equal(folder_n_files(), 3);
    struct stat st;
    assert_int_equal(stat(folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    if (spa_peft_load(folder, &back, why, sizeof why) != 0)
        fail_msg("%s", why);
    size_t len, back_len;
    uint8_t *bytes = written(&f, &len), *back_bytes = written(&back, &back_len);   /* every field and number is in there */
    assert_int_equal(len, back_len);
    assert_memory_equal(bytes, back_bytes, len);
    free(bytes);
    free(back_bytes);
    spa_plugin_file_free(&back);
    spa_plugin_file_free(&f);
}

static void test_peft_matrices_in_F16_come_within_half_a_step(void **state)
{
    (void)state;
    struct spa_plugin_file f = sample(), back;
    save_sample(SPA_F16);
    struct stat st;
    assert_int_equal(stat(in_folder("adapter_model.safetensors"), &st), 0);
    const size_t all_f32 = (spa_param_count(&f.plugin.shape) + spa_basis_floats(&f.plugin.shape) + 2 * spa_gate_width(&f.plugin)) * sizeof(float);
    assert_true((size_t)st.st_size < all_f32 + 2500 - spa_param_count(&f.plugin.shape));   /* 2500: the header; most weights are in matrices */
    assert_int_equal(spa_peft_load(folder, &back, why, sizeof why), 0);
    for (size_t i = 0; i < spa_param_count(&f.plugin.shape); i++)
        assert_true(fabsf(back.params[i] - f.params[i]) <= 0x1p-11f * fabsf(f.params[i]));
    assert_memory_equal(back.basis, f.basis, spa_basis_floats(&f.plugin.shape) * sizeof(float));   /* its hash is of F32 */
    spa_plugin_file_free(&back);
    spa_plugin_file_free(&f);
}

static void test_peft_folder_that_is_not_empty_is_left_alone(void **state)
{
    (void)state;
    struct spa_plugin_file f = sample();
    save_sample(SPA_F32);
    assert_int_equal(spa_peft_save(folder, &f, why, sizeof why), -1);
    assert_non_null(strstr(why, "exists already"));
    assert_int_equal(folder_n_files(), 3);
    f.plugin.weights = SPA_I8;
    assert_int_equal(spa_peft_save(in_folder("inner"), &f, why, sizeof why), -1);
    assert_non_null(strstr(why, "Q8_0"));
    assert_int_equal(access(in_folder("inner"), F_OK), -1);
    spa_plugin_file_free(&f);
}

static void test_peft_wrong_config_is_named_by_field(void **state)
{
    (void)state;
    static const struct { const char *old, *new, *piece; } cases[] = {
        { "\"SPA\"", "\"LORA\"", "its peft_type is LORA, another kind" },
        { "\"version\": 2", "\"version\": 3", "upgrade spa" },
        { "\"version\": 2", "\"version\": 0", "upgrade spa" },
        { "\"version\": 2", "\"version\": 1", "its version is older than that" },
        { "\"mix\": true", "\"mix\": 1", "field mix" },
        { "\"d\": 64", "\"d\": -1", "field d " },
        { "\"d\": 64", "\"d\": \"64\"", "field d " },
        { "\"n_layers\": 6", "\"n_layers\": 4294967296", "field n_layers" },
        { "\"r\": 8", "\"r\": 0", "shape" },
        { "\"m\": 16", "\"m\": 17", "missing or not F32" },
        { "\"mode\": \"add\"", "\"mode\": \"mul\"", "field mode" },
        { "\"basis\": true", "\"basis\": 1", "field basis" },
        { "\"basis.hash\": \"", "\"basis.hash\": \"0", "field basis.hash" },
        { "\"heads\": 2", "\"heads\": 3", "shape" },
        { "{", "", "no JSON object" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        folder_remove(NULL);
        folder_make();
        save_sample(SPA_F32);
        edit_config(cases[i].old, cases[i].new);
        expect_no_load(cases[i].piece);
    }
    folder_remove(NULL);
    folder_make();
    save_sample(SPA_F32);
    struct spa_plugin_file f = sample();
    f.basis[5] += 1;
    unlink(in_folder("adapter_model.safetensors"));
    expect_no_load("adapter_model.safetensors");
    folder_remove(NULL);
    folder_make();
    assert_int_equal(spa_peft_save(folder, &f, why, sizeof why), 0);
    expect_no_load("basis does not have the hash");
    spa_plugin_file_free(&f);
}

static void test_peft_card_says_what_the_plugin_is(void **state)
{
    (void)state;
    struct spa_plugin_file f = sample();
    char *card = spa_peft_card(&f.plugin);
    static const char *const pieces[] = { "library_name: spa", "base_model: 'T\xc3\xbcny ''quoted'' 1B'", "r 8, m 16, 3 rungs", "10 rows with 200 tokens",
                                          "spa convert", "Before you share it" };
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        if (!strstr(card, pieces[i]))
            fail_msg("the card does not say '%s'", pieces[i]);
    free(card);
    spa_plugin_file_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_peft_out_and_in_again_is_the_same_plugin, begin, folder_remove),
        cmocka_unit_test_setup_teardown(test_peft_matrices_in_F16_come_within_half_a_step, begin, folder_remove),
        cmocka_unit_test_setup_teardown(test_peft_folder_that_is_not_empty_is_left_alone, begin, folder_remove),
        cmocka_unit_test_setup_teardown(test_peft_wrong_config_is_named_by_field, begin, folder_remove),
        cmocka_unit_test(test_peft_card_says_what_the_plugin_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
