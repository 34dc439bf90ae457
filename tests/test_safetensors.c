/* test_safetensors.c - the container of PyTorch checkpoints: reading the golden one, writing, and what is refused.
 * Every block that the reader sees is a malloc of exactly its length, so that AddressSanitizer sees a byte read outside. */
#include "safetensors.h"
#include "store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct spa_st_tensor tensors[SPA_ST_MAX_TENSORS];

static enum spa_err read_copy(const uint8_t *block, size_t len, size_t *n, struct spa_fault *fault)
{
    uint8_t *copy = malloc(len ? len : 1);
    memcpy(copy, block, len);
    *fault = (struct spa_fault) { NULL, 0 };
    enum spa_err e = spa_st_read(copy, len, tensors, SPA_ST_MAX_TENSORS, n, fault);
    if (e != SPA_OK)
        assert_non_null(fault->what);
    for (size_t i = 0; e == SPA_OK && i < *n; i++)
        assert_true(tensors[i].offset <= len && tensors[i].n_bytes <= len - tensors[i].offset);
    free(copy);
    return e;
}

/* A file with this header and n_data bytes of data. */
static enum spa_err read_text(const char *header, size_t n_data, size_t *n, struct spa_fault *fault)
{
    size_t header_len = strlen(header), len = 8 + header_len + n_data;
    uint8_t *block = calloc(1, len);
    memcpy(block, &(uint64_t) { header_len }, 8);
    memcpy(block + 8, header, header_len);
    enum spa_err e = read_copy(block, len, n, fault);
    free(block);
    return e;
}

static void load_golden(uint8_t **block, size_t *len)
{
    char why[SPA_WHY_MAX];
    if (spa_store_read(SPA_TEST_DIR "/golden/tiny.plugin.safetensors", 1 << 20, block, len, why, sizeof why) != 0)
        fail_msg("%s", why);
}

static void test_safetensors_golden_checkpoint_is_read(void **state)
{
    (void)state;
    uint8_t *block;
    size_t len, n;
    struct spa_fault fault;
    char text[8];
    load_golden(&block, &len);
    assert_int_equal(spa_st_read(block, len, tensors, SPA_ST_MAX_TENSORS, &n, &fault), SPA_OK);
    assert_int_equal(n, 29);
    assert_string_equal(tensors[1].name, "ladder_side.down_adapters.0.weight");
    assert_int_equal(tensors[1].dtype, SPA_ST_F32);
    assert_int_equal(tensors[1].n_dims, 2);
    assert_true(tensors[1].dims[0] == 8 && tensors[1].dims[1] == 64);
    assert_true(tensors[1].offset == 8 + 2984 + 32 && tensors[1].n_bytes == 2048);
    assert_int_equal(spa_st_metadata(block, len, "format", text, sizeof text), SPA_OK);
    assert_string_equal(text, "pt");
    assert_int_equal(spa_st_metadata(block, len, "adapter_len", text, 1), SPA_OK);
    assert_string_equal(text, "");
    assert_int_equal(spa_st_metadata(block, len, "nobody", text, sizeof text), SPA_NONE);
    assert_int_equal(spa_st_read(block, len, tensors, 28, &n, &fault), SPA_ERR_NOMEM);
    free(block);
}

static void test_safetensors_cut_at_any_byte_is_refused(void **state)
{
    (void)state;
    uint8_t *block;
    size_t len, n;
    struct spa_fault fault;
    load_golden(&block, &len);
    for (size_t cut = 0; cut < len; cut += cut < 3200 ? 1 : 37)   /* every byte of the header, then some of the data */
        if (read_copy(block, cut, &n, &fault) != SPA_ERR_FORMAT)
            fail_msg("%zu of %zu bytes were not FORMAT", cut, len);
    free(block);
}

static void test_safetensors_any_bit_of_the_header_flipped_stays_inside(void **state)
{
    (void)state;
    uint8_t *block;
    size_t len, n, refused = 0, bits = 8 * 600;
    struct spa_fault fault;
    load_golden(&block, &len);
    for (size_t bit = 0; bit < bits; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        refused += read_copy(block, len, &n, &fault) != SPA_OK;
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(refused > bits / 4);   /* a flipped letter in a name makes another name, which is right */
    free(block);
}

static void test_safetensors_written_and_read_is_the_same(void **state)
{
    (void)state;
    const float a[6] = { 1, 2, 3, 4, 5, 6 }, b[1] = { -7 };
    const float *const data[] = { a, b };
    struct spa_st_tensor out[2], in[2];
    size_t len, again_len, n;
    struct spa_fault fault;
    memset(out, 0, sizeof out);
    strcpy(out[0].name, "matrix");
    out[0].n_dims = 2;
    out[0].dims[0] = 2;
    out[0].dims[1] = 3;
    strcpy(out[1].name, "vector");
    out[1].n_dims = 1;
    out[1].dims[0] = 1;
    assert_int_equal(spa_st_write(out, data, 2, NULL, 0, &len), SPA_ERR_NOMEM);
    uint8_t *block = malloc(len);
    assert_int_equal(spa_st_write(out, data, 2, block, len, &again_len), SPA_OK);
    assert_int_equal(len, again_len);
    assert_int_equal(spa_st_read(block, len, in, 2, &n, &fault), SPA_OK);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(in[i].name, out[i].name);
        assert_int_equal(in[i].dtype, SPA_ST_F32);
        assert_int_equal(in[i].n_dims, out[i].n_dims);
        assert_memory_equal(in[i].dims, out[i].dims, sizeof in[i].dims);
        assert_true(in[i].offset == out[i].offset && in[i].offset % 4 == 0);
        assert_memory_equal(block + in[i].offset, data[i], in[i].n_bytes);
    }
    free(block);
}

static void test_safetensors_what_is_wrong_is_named(void **state)
{
    (void)state;
#define T(name, dims, begin, end) "\"" name "\":{\"dtype\":\"F32\",\"shape\":[" dims "],\"data_offsets\":[" begin "," end "]}"
    static const struct { const char *header; size_t n_data; enum spa_err e; const char *what; } cases[] = {
        { "{" T("a", "2", "0", "8") "," T("b", "1", "8", "12") "}", 12, SPA_OK, "" },
        { "{}  ", 0, SPA_OK, "" },
        { "{" T("a", "", "0", "4") "}", 4, SPA_OK, "" },
        { "{" T("a", "0", "0", "0") "," T("b", "1", "0", "4") "}", 4, SPA_OK, "" },
        { "[]", 0, SPA_ERR_FORMAT, "object" },
        { "{", 0, SPA_ERR_FORMAT, "JSON" },
        { "{} x", 0, SPA_ERR_FORMAT, "JSON" },
        { "{\"a\":1}", 0, SPA_ERR_FORMAT, "dtype" },
        { "{" T("a", "2", "0", "8") "," T("a", "2", "8", "16") "}", 16, SPA_ERR_FORMAT, "twice" },
        { "{" T("a", "2", "0", "8") "," T("b", "2", "4", "12") "}", 12, SPA_ERR_FORMAT, "overlap" },
        { "{" T("a", "2", "0", "8") "," T("b", "2", "0", "8") "}", 16, SPA_ERR_FORMAT, "overlap" },
        { "{" T("a", "2", "0", "8") "," T("b", "1", "12", "16") "}", 16, SPA_ERR_FORMAT, "nobody" },
        { "{" T("a", "2", "0", "8") "}", 12, SPA_ERR_FORMAT, "nobody" },
        { "{" T("a", "2", "0", "8") "}", 7, SPA_ERR_FORMAT, "past the end" },
        { "{" T("a", "2", "8", "0") "}", 8, SPA_ERR_FORMAT, "past the end" },
        { "{" T("a", "3", "0", "8") "}", 8, SPA_ERR_FORMAT, "does not fit" },
        { "{" T("a", "4611686018427387904,4", "0", "0") "}", 0, SPA_ERR_FORMAT, "does not fit" },
        { "{" T("a", "2", "-1", "7") "}", 8, SPA_ERR_FORMAT, "dtype" },
        { "{" T("a", "2.0", "0", "8") "}", 8, SPA_ERR_FORMAT, "dtype" },
        { "{" T("a", "-2", "0", "8") "}", 8, SPA_ERR_FORMAT, "dtype" },
        { "{" T("a", "99999999999999999999", "0", "8") "}", 8, SPA_ERR_FORMAT, "JSON" },
        { "{" T("a", "1,1,1,1,1", "0", "4") "}", 4, SPA_ERR_LIMIT, "dimensions" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n;
        struct spa_fault fault;
        enum spa_err e = read_text(cases[i].header, cases[i].n_data, &n, &fault);
        if (e != cases[i].e || (e != SPA_OK && !strstr(fault.what, cases[i].what)))
            fail_msg("%s: %s, %s", cases[i].header, spa_err_name(e), fault.what ? fault.what : "");
    }
}

static void test_safetensors_long_name_and_long_header_are_LIMIT(void **state)
{
    (void)state;
    char header[512];
    size_t n;
    struct spa_fault fault;
    snprintf(header, sizeof header, "{\"%0128d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 0);
    assert_int_equal(read_text(header, 4, &n, &fault), SPA_ERR_LIMIT);
    snprintf(header, sizeof header, "{\"%0127d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 0);
    assert_int_equal(read_text(header, 4, &n, &fault), SPA_OK);
    const uint64_t huge = UINT64_MAX;
    assert_int_equal(read_copy((const uint8_t *)&huge, sizeof huge, &n, &fault), SPA_ERR_LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_golden_checkpoint_is_read),
        cmocka_unit_test(test_safetensors_cut_at_any_byte_is_refused),
        cmocka_unit_test(test_safetensors_any_bit_of_the_header_flipped_stays_inside),
        cmocka_unit_test(test_safetensors_written_and_read_is_the_same),
        cmocka_unit_test(test_safetensors_what_is_wrong_is_named),
        cmocka_unit_test(test_safetensors_long_name_and_long_header_are_LIMIT),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
