/* dtype.c - rows of numbers to bytes and back: F32, F16, I8 with a scale a group. */
#include "dtype.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static uint32_t bits_of(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static float float_of(uint32_t b)
{
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint16_t spa_f16_from_f32(float x)
{
    const uint32_t b = bits_of(x), sign = b >> 16 & 0x8000, a = b & 0x7fffffff;
    if (a > 0x7f800000)                      /* NaN: keep it one, quiet */
        return (uint16_t)(sign | 0x7e00);
    if (a >= 0x47800000)                     /* 2^16; what lies below it rounds there by itself */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) {                    /* below 2^-14: in units of 2^-24, which adding 0.5 rounds to */
        const uint32_t units = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
        return (uint16_t)(sign | units);
    }
    const uint32_t rounded = a + 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
}

float spa_f32_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff;
    if (a >= 0x7c00)
        return float_of(sign | 0x7f800000 | (a & 0x3ff) << 13);
    if (a < 0x400)
        return float_of(sign | bits_of((float)a * 0x1p-24f));
    return float_of(sign | ((a << 13) + 0x38000000));
}

size_t spa_dtype_bytes(enum spa_dtype t, size_t n_groups, size_t group)
{
    switch (t) {
    case SPA_F32: return n_groups * group * 4;
    case SPA_F16: return n_groups * group * 2;
    case SPA_I8:  return n_groups * (group + 2);
    }
    assert(0 && "a dtype");
    return 0;
}

static void pack_i8(const float *restrict x, size_t n, uint8_t *restrict out)
{
    uint32_t max = 0;   /* as bits: magnitudes order like integers, infinity and NaN above them all */
    for (size_t i = 0; i < n; i++) {
        const uint32_t a = bits_of(x[i]) & 0x7fffffff;
        max = a > max ? a : max;
    }
    /* A scale that is not finite says to the reader what the numbers cannot: SPA_ERR_RANGE. */
    const uint16_t half = spa_f16_from_f32(float_of(max) / 127.0f);
    const float scale = spa_f32_from_f16(half);
    put16(out, half);
    out += 2;
    if (!(scale > 0 && scale < INFINITY)) {
        memset(out, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float q = rintf(x[i] / scale);
        q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
        out[i] = (uint8_t)(int8_t)q;
    }
}

void spa_dtype_pack(enum spa_dtype t, const float *x, size_t n_groups, size_t group, uint8_t *out)
{
    const size_t n = n_groups * group;
    switch (t) {
    case SPA_F32:
        for (size_t i = 0; i < n; i++)
            put32(out + 4 * i, bits_of(x[i]));
        return;
    case SPA_F16:
        for (size_t i = 0; i < n; i++)
            put16(out + 2 * i, spa_f16_from_f32(x[i]));
        return;
    case SPA_I8:
        for (size_t g = 0; g < n_groups; g++)
            pack_i8(x + g * group, group, out + g * (group + 2));
        return;
    }
    assert(0 && "a dtype");
}

enum spa_err spa_dtype_unpack(enum spa_dtype t, const uint8_t *in, size_t n_groups, size_t group, float *x)
{
    const size_t n = n_groups * group;
    switch (t) {
    case SPA_F32:
        for (size_t i = 0; i < n; i++)
            x[i] = float_of(get32(in + 4 * i));
        break;
    case SPA_F16:
        for (size_t i = 0; i < n; i++)
            x[i] = spa_f32_from_f16(get16(in + 2 * i));
        break;
    case SPA_I8:
        for (size_t g = 0; g < n_groups; g++, in += group + 2) {
            const float scale = spa_f32_from_f16(get16(in));
            for (size_t i = 0; i < group; i++)
                x[g * group + i] = scale * (float)(int8_t)in[2 + i];
        }
        break;
    }
    /* Looking at exponents is exact and vectorises. */
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (bits_of(x[i]) & 0x7f800000) == 0x7f800000;
    return bad ? SPA_ERR_RANGE : SPA_OK;
}
