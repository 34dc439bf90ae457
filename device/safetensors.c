/* safetensors.c - the container of PyTorch checkpoints, in memory (safetensors.h). In: bytes from anybody. Out: where its tensors
 * lie; or tensors in, bytes out. */
#include "safetensors.h"
#include "dtype.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX = 8, MAX_HEADER = 16 << 20 };

static const struct { const char *name; enum spa_st_dtype dtype; uint64_t bits; } dtypes[] = {
    { "F32", SPA_ST_F32, 32 },    { "F16", SPA_ST_F16, 16 },    { "BF16", SPA_ST_BF16, 16 },  { "I32", SPA_ST_I32, 32 },
    { "I64", SPA_ST_I64, 64 },    { "F64", SPA_ST_OTHER, 64 },  { "U64", SPA_ST_OTHER, 64 },  { "U32", SPA_ST_OTHER, 32 },
    { "U16", SPA_ST_OTHER, 16 },  { "I16", SPA_ST_OTHER, 16 },  { "U8", SPA_ST_OTHER, 8 },    { "I8", SPA_ST_OTHER, 8 },
    { "BOOL", SPA_ST_OTHER, 8 },  { "C64", SPA_ST_OTHER, 64 }, { "F8_E5M2", SPA_ST_OTHER, 8 }, { "F8_E4M3", SPA_ST_OTHER, 8 },
};

static enum spa_err fail(struct spa_fault *fault, enum spa_err code, const char *what, uint64_t at)
{
    *fault = (struct spa_fault) { what, at };
    return code;
}

/* The header as JSON in *root, which the caller releases; *data gets where the numbers begin. */
static enum spa_err take_header(const uint8_t *block, size_t len, json_t **root, size_t *data, struct spa_fault *fault)
{
    uint64_t header_len = 0;
    json_error_t error;
    if (len < PREFIX)
        return fail(fault, SPA_ERR_FORMAT, "the file ends inside the header's length", len);
    for (int i = PREFIX - 1; i >= 0; i--)
        header_len = header_len << 8 | block[i];
    if (header_len > MAX_HEADER)
        return fail(fault, SPA_ERR_LIMIT, "the header is longer than 16 MiB: this is no safetensors file", 0);
    if (header_len > len - PREFIX)
        return fail(fault, SPA_ERR_FORMAT, "the file ends inside its header", len);
    *root = json_loadb((const char *)block + PREFIX, (size_t)header_len, JSON_REJECT_DUPLICATES, &error);
    if (!*root)
        return fail(fault, SPA_ERR_FORMAT, json_error_code(&error) == json_error_duplicate_key ? "a name comes twice in the header"
                    : "the header is no JSON", PREFIX + (error.position > 0 ? (uint64_t)error.position : 0));
    *data = PREFIX + (size_t)header_len;
    if (json_is_object(*root))
        return SPA_OK;
    json_decref(*root);
    return fail(fault, SPA_ERR_FORMAT, "the header is no JSON object", PREFIX);
}

/* A whole number of 0 or more; false for anything else. */
static bool take_count(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static enum spa_err take_tensor(const char *name, const json_t *entry, uint64_t room, struct spa_st_tensor *t,
                                struct spa_fault *fault)
{
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    uint64_t begin, end, bits = 0;
    *t = (struct spa_st_tensor) { .dtype = SPA_ST_OTHER };
    if (strlen(name) >= sizeof t->name || json_array_size(shape) > SPA_ST_MAX_DIMS)
        return fail(fault, SPA_ERR_LIMIT, "a tensor has a name of more than 127 bytes or more than 4 dimensions", PREFIX);
    strcpy(t->name, name);
    if (!dtype || !json_is_array(shape) || json_array_size(offsets) != 2 || !take_count(json_array_get(offsets, 0), &begin) ||
        !take_count(json_array_get(offsets, 1), &end))
        return fail(fault, SPA_ERR_FORMAT, "a tensor without a right dtype, shape or data_offsets", PREFIX);
    if (begin > end || end > room)
        return fail(fault, SPA_ERR_FORMAT, "tensor data runs past the end of the file", PREFIX);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtype, dtypes[i].name) == 0) {
            t->dtype = dtypes[i].dtype;
            bits = dtypes[i].bits;
        }
    }
    t->offset = begin;
    t->n_bytes = end - begin;
    t->n_dims = (uint32_t)json_array_size(shape);
    uint64_t numbers = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (!take_count(json_array_get(shape, i), &t->dims[i]))
            return fail(fault, SPA_ERR_FORMAT, "a tensor without a right dtype, shape or data_offsets", PREFIX);
        if (t->dims[i] != 0 && numbers > UINT64_MAX / 64 / t->dims[i])
            return fail(fault, SPA_ERR_FORMAT, "a tensor's shape does not fit the length of its data", PREFIX);
        numbers *= t->dims[i];
    }
    if (bits == 0)
        return fail(fault, SPA_ERR_FORMAT, "a tensor of a type that safetensors does not have", PREFIX);
    if (numbers * bits != t->n_bytes * 8)
        return fail(fault, SPA_ERR_FORMAT, "a tensor's shape does not fit the length of its data", PREFIX);
    return SPA_OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct spa_st_tensor *x = *(const struct spa_st_tensor *const *)a, *y = *(const struct spa_st_tensor *const *)b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* The format leaves no byte of the data to nobody, and none to two. */
static enum spa_err check_tiling(const struct spa_st_tensor *tensors, size_t n, uint64_t room, struct spa_fault *fault)
{
    const struct spa_st_tensor **sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted)
        return fail(fault, SPA_ERR_NOMEM, "no memory for the list of tensors", 0);
    for (size_t i = 0; i < n; i++)
        sorted[i] = &tensors[i];
    qsort(sorted, n, sizeof *sorted, by_offset);
    uint64_t end = 0;
    bool tiled = true;
    for (size_t i = 0; i < n && tiled; i++) {
        tiled = sorted[i]->offset == end;
        end += sorted[i]->n_bytes;
    }
    free(sorted);
    if (!tiled || end != room)
        return fail(fault, SPA_ERR_FORMAT, "tensors overlap, or leave bytes of the file to nobody", PREFIX);
    return SPA_OK;
}

enum spa_err spa_st_read(const uint8_t *block, size_t len, struct spa_st_tensor *out, size_t cap, size_t *n, struct spa_fault *fault)
{
    json_t *root, *entry;
    const char *name;
    size_t data;
    *n = 0;
    enum spa_err e = take_header(block, len, &root, &data, fault);
    if (e != SPA_OK)
        return e;
    json_object_foreach(root, name, entry) {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (*n == SPA_ST_MAX_TENSORS)
            e = fail(fault, SPA_ERR_LIMIT, "more than 4096 tensors", PREFIX);
        else if (*n == cap)
            e = fail(fault, SPA_ERR_NOMEM, "more tensors than there is room for", PREFIX);
        else
            e = take_tensor(name, entry, len - data, &out[*n], fault);
        if (e != SPA_OK)
            break;
        ++*n;
    }
    json_decref(root);
    if (e == SPA_OK)
        e = check_tiling(out, *n, len - data, fault);
    for (size_t i = 0; i < *n; i++)
        out[i].offset += data;
    return e;
}

enum spa_err spa_st_metadata(const uint8_t *block, size_t len, const char *key, char *out, size_t cap)
{
    struct spa_fault fault;
    json_t *root;
    size_t data;
    enum spa_err e = take_header(block, len, &root, &data, &fault);
    if (e != SPA_OK)
        return e;
    const char *value = json_string_value(json_object_get(json_object_get(root, "__metadata__"), key));
    if (value)
        snprintf(out, cap, "%s", value);
    json_decref(root);
    return value ? SPA_OK : SPA_NONE;
}

/* ---- numbers ---- */

const struct spa_st_tensor *spa_st_find(const struct spa_st_tensor *tensors, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(tensors[i].name, name) == 0)
            return &tensors[i];
    return NULL;
}

/* Foreign files need not align their data, so numbers are taken through memcpy. */
static void widen(const uint8_t *from, enum spa_st_dtype dtype, size_t n, float *out)
{
    if (dtype == SPA_ST_F32) {
        memcpy(out, from, n * sizeof *out);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        if (dtype == SPA_ST_F16) {
            out[i] = spa_f32_from_f16(half);
        } else {
            uint32_t bits = (uint32_t)half << 16;
            memcpy(&out[i], &bits, sizeof bits);
        }
    }
}

bool spa_st_numbers(const uint8_t *block, const struct spa_st_tensor *t, uint32_t rows, uint32_t cols, float *out)
{
    bool fits = t->n_dims == (cols ? 2u : 1u) && t->dims[0] == rows && (!cols || t->dims[1] == cols);
    if (!fits || (t->dtype != SPA_ST_F32 && t->dtype != SPA_ST_F16 && t->dtype != SPA_ST_BF16))
        return false;
    widen(block + t->offset, t->dtype, (size_t)rows * (cols ? cols : 1), out);
    return true;
}

/* ---- writing: once without memory to count, once with it ---- */

struct sink { uint8_t *out; size_t at; };

static void put(struct sink *s, const void *bytes, size_t n)
{
    if (s->out)
        memcpy(s->out + s->at, bytes, n);
    s->at += n;
}

static void put_text(struct sink *s, const char *text)
{
    put(s, text, strlen(text));
}

static void put_number(struct sink *s, uint64_t v)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, v);
    put_text(s, digits);
}

static void put_numbers(struct sink *s, const struct spa_st_tensor *t, const float *numbers)
{
    if (t->dtype == SPA_ST_F32) {
        put(s, numbers, (size_t)t->n_bytes);
        return;
    }
    for (uint64_t i = 0; i < t->n_bytes / 2; i++) {
        const uint16_t half = spa_f16_from_f32(numbers[i]);
        put(s, &half, sizeof half);
    }
}

/* Names are written as they are: those with a quote, a backslash or a control character are a caller's mistake. */
static void put_entry(struct sink *s, const struct spa_st_tensor *t, uint64_t begin)
{
    for (const char *c = t->name; *c; c++)
        assert(*c != '"' && *c != '\\' && (unsigned char)*c >= 0x20);
    put_text(s, ",\"");
    put_text(s, t->name);
    put_text(s, t->dtype == SPA_ST_F16 ? "\":{\"dtype\":\"F16\",\"shape\":[" : "\":{\"dtype\":\"F32\",\"shape\":[");
    for (uint32_t i = 0; i < t->n_dims; i++) {
        put_text(s, i ? "," : "");
        put_number(s, t->dims[i]);
    }
    put_text(s, "],\"data_offsets\":[");
    put_number(s, begin);
    put_text(s, ",");
    put_number(s, begin + t->n_bytes);
    put_text(s, "]}");
}

static void put_header(struct sink *s, const struct spa_st_tensor *tensors, size_t n)
{
    uint64_t begin = 0;
    put_text(s, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        put_entry(s, &tensors[i], begin);
        begin += tensors[i].n_bytes;
    }
    put_text(s, "}");
    while (s->at % PREFIX != 0)   /* so that the data is aligned */
        put_text(s, " ");
}

enum spa_err spa_st_write(struct spa_st_tensor *tensors, const float *const *data, size_t n, uint8_t *out, size_t cap, size_t *len)
{
    for (size_t i = 0; i < n; i++) {
        assert(tensors[i].dtype == SPA_ST_F32 || tensors[i].dtype == SPA_ST_F16);
        tensors[i].n_bytes = tensors[i].dtype == SPA_ST_F16 ? 2 : 4;
        for (uint32_t k = 0; k < tensors[i].n_dims; k++)
            tensors[i].n_bytes *= tensors[i].dims[k];
    }
    struct sink header = { NULL, 0 };
    put_header(&header, tensors, n);
    *len = PREFIX + header.at;
    for (size_t i = 0; i < n; i++) {
        tensors[i].offset = *len;
        *len += (size_t)tensors[i].n_bytes;
    }
    if (cap < *len)
        return SPA_ERR_NOMEM;
    uint8_t prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++)
        prefix[i] = (uint8_t)((uint64_t)header.at >> 8 * i);
    struct sink s = { out, 0 };
    put(&s, prefix, PREFIX);
    put_header(&s, tensors, n);
    for (size_t i = 0; i < n; i++)
        put_numbers(&s, &tensors[i], data[i]);
    return SPA_OK;
}
