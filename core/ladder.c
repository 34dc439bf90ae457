/* ladder.c - the ladder's shape and layout, fresh weights, and one token at a time. In: prepared taps; out: z.
 * Training is ladder_row.c; preparing taps is basis.c; what becomes of z is the cloud's. */
#include "ladder.h"
#include "kernels.h"
#include "ladder_parts.h"
#include "sample.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- shape ---- */

static enum spa_err check_width(uint32_t n)
{
    return n == 0 ? SPA_ERR_SHAPE : n > SPA_MAX_WIDTH ? SPA_ERR_LIMIT : SPA_OK;
}

static bool ascends(const uint32_t *v, uint32_t n, uint32_t max)
{
    for (uint32_t i = 0; i < n; i++)
        if (v[i] > max || (i > 0 && v[i] <= v[i - 1]))
            return false;
    return true;
}

static enum spa_err check_context(const struct spa_shape *s)
{
    if (s->n_ctx_taps == 0)
        return s->e == 0 && s->n_heads == 0 && s->n_att == 0 && !s->ctx_mix ? SPA_OK : SPA_ERR_SHAPE;
    if (s->n_ctx_taps > SPA_MAX_TAPS || s->n_heads > SPA_MAX_HEADS || s->n_att > SPA_MAX_ATT)
        return SPA_ERR_LIMIT;
    const enum spa_err err = check_width(s->e);
    if (err)
        return err;
    if (s->n_heads == 0 || s->e % s->n_heads || s->r % s->n_heads || s->n_att == 0)
        return SPA_ERR_SHAPE;
    if (!ascends(s->ctx_taps, s->n_ctx_taps, s->n_layers) || !ascends(s->att_rungs, s->n_att, s->n_taps - 1))
        return SPA_ERR_SHAPE;
    uint32_t found = 0;
    for (uint32_t i = 0; i < s->n_taps && found < s->n_ctx_taps; i++)
        found += s->taps[i] == s->ctx_taps[found];
    return found == s->n_ctx_taps ? SPA_OK : SPA_ERR_SHAPE;
}

enum spa_err spa_shape_check(const struct spa_shape *s)
{
    const uint32_t widths[] = { s->d, s->r, s->m, s->k };
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const enum spa_err err = check_width(widths[i]);
        if (err)
            return err;
    }
    if (s->n_taps > SPA_MAX_TAPS || s->n_layers > SPA_MAX_LAYERS)
        return SPA_ERR_LIMIT;
    if (s->n_taps == 0 || s->n_layers == 0 || !ascends(s->taps, s->n_taps, s->n_layers))
        return SPA_ERR_SHAPE;
    if (s->normalise != SPA_NORM_NONE && s->normalise != SPA_NORM_RMS)
        return SPA_ERR_SHAPE;
    if (s->mode != SPA_REPLACE && s->mode != SPA_ADD)
        return SPA_ERR_SHAPE;
    /* A basis is fitted on normalised states and cannot have more directions than they have. */
    if (s->basis ? s->k > s->d || s->normalise != SPA_NORM_RMS : s->k != s->d)
        return SPA_ERR_SHAPE;
    const enum spa_err err = check_context(s);
    if (err)
        return err;
    /* Below the limits above a count stays under 2^43 floats; where size_t is narrower it has to be looked at. */
    const uint64_t r = s->r, rungs = (uint64_t)s->n_taps * (r * s->k + 2 * r * s->m + 2 * r + s->m);
    const uint64_t context = (uint64_t)s->e * s->n_ctx_taps * s->k + s->e + (s->ctx_mix ? 3 * (uint64_t)s->e * (s->e + 1) : 0)
                           + (uint64_t)s->n_att * ((uint64_t)s->e * (2 * r + s->e + 2) + r);
    if (rungs + context + (uint64_t)s->d * (r + 1) > SIZE_MAX / sizeof(float))
        return SPA_ERR_LIMIT;
    return SPA_OK;
}

/* ---- layout ---- */

struct spa_rung_at spa_rung_at(const struct spa_shape *s, size_t rung)
{
    const size_t r = s->r, m = s->m, k = s->k;
    const size_t first = r * k + r, other = first + m * r + m + r * m + r;
    struct spa_rung_at at = {0};
    at.W = rung == 0 ? 0 : first + (rung - 1) * other;
    at.b = at.W + r * k;
    at.U = at.b + r;
    at.c = at.U + m * r;
    at.V = at.c + m;
    at.e = at.V + r * m;
    return at;
}

struct spa_out_at spa_out_at(const struct spa_shape *s)
{
    struct spa_out_at at = {0};
    at.W = spa_rung_at(s, s->n_taps).W;   /* where one rung more would start */
    at.b = at.W + (size_t)s->d * s->r;
    return at;
}

struct spa_out_at spa_ctx_at(const struct spa_shape *s)
{
    struct spa_out_at at = {0};
    at.W = spa_out_at(s).b + s->d;
    at.b = at.W + (size_t)s->e * s->n_ctx_taps * s->k;
    return at;
}

struct spa_att_at spa_mix_at(const struct spa_shape *s)
{
    const size_t e = s->e;
    struct spa_att_at at = {0};
    at.Wq = spa_ctx_at(s).b + e;
    at.bq = at.Wq + e * e;
    at.Wk = at.bq + e;
    at.bk = at.Wk + e * e;
    at.Wv = at.bk + e;
    at.bv = at.Wv + e * e;
    return at;
}

struct spa_att_at spa_att_at(const struct spa_shape *s, size_t a)
{
    const size_t r = s->r, e = s->e;
    struct spa_att_at at = {0};
    at.Wq = (s->ctx_mix ? spa_mix_at(s).bv : spa_ctx_at(s).b) + e + a * (e * r + e + e * e + e + r * e + r);
    at.bq = at.Wq + e * r;
    at.Wk = at.bq + e;
    at.bk = at.Wk + e * e;
    at.Wv = at.bk + e;
    at.bv = at.Wv + r * e;
    return at;
}

size_t spa_att_of_rung(const struct spa_shape *s, size_t rung)
{
    size_t a = 0;
    while (a < s->n_att && s->att_rungs[a] != rung)
        a++;
    return a;
}

size_t spa_param_count(const struct spa_shape *s)
{
    return spa_att_at(s, s->n_att).Wq;   /* where one attention more would start; without context, b_out's end */
}

size_t spa_tensor_count(const struct spa_shape *s)
{
    return 2 + 6 * ((size_t)s->n_taps - 1) + 2 + (s->n_ctx_taps ? 2 + 6 * (size_t)s->ctx_mix + 6 * (size_t)s->n_att : 0);
}

/* "head", then number and dot and tail where tail is not NULL: "W." 3 -> "W.3", "att." 4 "Wq" -> "att.4.Wq". */
static void name_tensor(struct spa_tensor *t, const char *head, const size_t *number, const char *tail)
{
    char *p = t->name;
    while (*head)
        *p++ = *head++;
    if (number) {
        char digits[20];
        size_t n = 0, v = *number;
        do
            digits[n++] = (char)('0' + v % 10);
        while (v /= 10);
        while (n)
            *p++ = digits[--n];
    }
    if (tail) {
        *p++ = '.';
        while (*tail)
            *p++ = *tail++;
    }
    *p = 0;
}

void spa_param_tensor(const struct spa_shape *s, size_t index, struct spa_tensor *out)
{
    assert(index < spa_tensor_count(s));
    const size_t n_rung_tensors = 2 + 6 * ((size_t)s->n_taps - 1);
    size_t rows, cols, offset;
    memset(out, 0, sizeof *out);
    if (index < n_rung_tensors) {
        static const char *const names[] = { "W.", "b.", "U.", "c.", "V.", "e." };
        const size_t rung = index < 2 ? 0 : 1 + (index - 2) / 6, which = index < 2 ? index : (index - 2) % 6;
        const struct spa_rung_at at = spa_rung_at(s, rung);
        const size_t offsets[] = { at.W, at.b, at.U, at.c, at.V, at.e };
        const size_t row_counts[] = { s->r, s->r, s->m, s->m, s->r, s->r }, col_counts[] = { s->k, 1, s->r, 1, s->m, 1 };
        rows = row_counts[which], cols = col_counts[which], offset = offsets[which];
        out->is_vector = which & 1;
        name_tensor(out, names[which], &rung, NULL);
    } else if (index < n_rung_tensors + 2) {
        const struct spa_out_at at = spa_out_at(s);
        out->is_vector = index != n_rung_tensors;
        rows = s->d, cols = out->is_vector ? 1 : s->r, offset = out->is_vector ? at.b : at.W;
        name_tensor(out, out->is_vector ? "b_out" : "W_out", NULL, NULL);
    } else if (index < n_rung_tensors + 4) {
        const struct spa_out_at at = spa_ctx_at(s);
        out->is_vector = index != n_rung_tensors + 2;
        rows = s->e, cols = out->is_vector ? 1 : (size_t)s->n_ctx_taps * s->k, offset = out->is_vector ? at.b : at.W;
        name_tensor(out, out->is_vector ? "ctx.b" : "ctx.W", NULL, NULL);
    } else {
        static const char *const names[] = { "Wq", "bq", "Wk", "bk", "Wv", "bv" };
        const size_t group = (index - n_rung_tensors - 4) / 6, which = (index - n_rung_tensors - 4) % 6;
        const bool mix = s->ctx_mix && group == 0;
        const size_t a = group - s->ctx_mix, width = mix ? s->e : s->r, rung = mix ? 0 : s->att_rungs[a];
        const struct spa_att_at at = mix ? spa_mix_at(s) : spa_att_at(s, a);
        const size_t offsets[] = { at.Wq, at.bq, at.Wk, at.bk, at.Wv, at.bv };
        const size_t row_counts[] = { s->e, s->e, s->e, s->e, width, width }, col_counts[] = { width, 1, s->e, 1, s->e, 1 };
        rows = row_counts[which], cols = col_counts[which], offset = offsets[which];
        out->is_vector = which & 1;
        name_tensor(out, mix ? "ctx.mix" : "att.", mix ? NULL : &rung, names[which]);
    }
    out->rows = (uint32_t)rows;
    out->cols = (uint32_t)cols;
    out->offset = offset;
}

void spa_ladder_init(const struct spa_shape *s, uint64_t seed, float *params)
{
    const size_t n_tensors = spa_tensor_count(s), out_at = spa_out_at(s).W;
    const size_t mix_begin = s->ctx_mix ? n_tensors - 6 * ((size_t)s->n_att + 1) : n_tensors, mix_end = mix_begin + 6;
    float bound = 0;
    for (size_t t = 0; t < n_tensors; t++) {
        /* The generator counts ctx_mix' tensors after all others, which so get the numbers that they have without it. */
        const size_t number = t < mix_begin ? t : t < mix_end ? t - mix_begin + n_tensors - 6 : t - 6;
        struct spa_tensor tensor;
        spa_param_tensor(s, t, &tensor);
        const size_t n = (size_t)tensor.rows * tensor.cols;
        float *w = params + tensor.offset;
        if (!tensor.is_vector)   /* a bias follows its matrix and shares its fan-in */
            bound = 1.0f / sqrtf((float)tensor.cols);
        const bool zero = (s->mode == SPA_ADD && tensor.offset >= out_at && tensor.offset <= spa_out_at(s).b) ||
                          (t >= mix_begin + 4 && t < mix_end);
        for (size_t i = 0; i < n; i++) {
            const float u = (float)(spa_noise64(seed, number, i) >> 40) * 0x1p-24f;   /* [0, 1) */
            w[i] = zero ? 0.0f : (2.0f * u - 1.0f) * bound;
        }
    }
}

/* ---- the steps ---- */

void spa_rung_forward(const struct spa_shape *s, const float *params, size_t rung, const float *x, const float *h_prev,
                      const float *drop, float *tmp, float *u, float *h)
{
    const size_t r = s->r, m = s->m;
    const struct spa_rung_at at = spa_rung_at(s, rung);
    memcpy(h, params + at.b, r * sizeof *h);
    spa_matvec_add(r, s->k, params + at.W, x, h);
    if (rung == 0)
        return;
    float *restrict v = tmp, *restrict o = tmp + r;
    spa_relu(r, h_prev, v);
    memcpy(u, params + at.c, m * sizeof *u);
    spa_matvec_add(m, r, params + at.U, v, u);
    for (size_t i = 0; i < m; i++)
        u[i] = u[i] < 0 ? 0 : u[i];
    memcpy(o, params + at.e, r * sizeof *o);
    spa_matvec_add(r, m, params + at.V, u, o);
    if (drop)
        for (size_t i = 0; i < r; i++)
            o[i] *= drop[i];
    for (size_t i = 0; i < r; i++)
        h[i] += v[i] + o[i];
}

struct spa_attention spa_attention_of_rung(const struct spa_shape *s, size_t a, const float *kv)
{
    const float *key = kv + a * ((size_t)s->e + s->r);
    return (struct spa_attention){ key, key + s->e, spa_context_floats(s, 1), s->e / s->n_heads, s->r / s->n_heads, s->n_heads };
}

struct spa_attention spa_attention_of_mix(const struct spa_shape *s, const float *kv)
{
    const float *key = kv + s->n_att * ((size_t)s->e + s->r);   /* after those of the rungs */
    return (struct spa_attention){ key, key + s->e, spa_context_floats(s, 1), s->e / s->n_heads, s->e / s->n_heads, s->n_heads };
}

void spa_context_token(const struct spa_shape *s, const float *params, const float *x_ctx, float *c)
{
    const size_t e = s->e;
    const struct spa_out_at ctx = spa_ctx_at(s);
    memcpy(c, params + ctx.b, e * sizeof *c);
    spa_matvec_add(e, (size_t)s->n_ctx_taps * s->k, params + ctx.W, x_ctx, c);
    for (size_t i = 0; i < e; i++)
        c[i] = c[i] < 0 ? 0 : c[i];
}

void spa_context_mix(const struct spa_shape *s, const float *params, float *kv, size_t n, const float *c, const float *drop,
                     float *q, float *w, float *g)
{
    const size_t e = s->e;
    const struct spa_att_at at = spa_mix_at(s);
    const struct spa_attention att = spa_attention_of_mix(s, kv);
    float *key = kv + (att.key - kv) + (n - 1) * att.stride, *value = key + e;
    memcpy(key, params + at.bk, e * sizeof *key);
    spa_matvec_add(e, e, params + at.Wk, c, key);
    memcpy(value, params + at.bv, e * sizeof *value);
    spa_matvec_add(e, e, params + at.Wv, c, value);
    memcpy(q, params + at.bq, e * sizeof *q);
    spa_matvec_add(e, e, params + at.Wq, c, q);
    spa_attend_weights(&att, n, q, w);
    memset(g, 0, e * sizeof *g);
    spa_attend_values(&att, n, w, g);
    for (size_t i = 0; i < e; i++)
        g[i] = c[i] + (drop ? drop[i] * g[i] : g[i]);
}

void spa_context_keys(const struct spa_shape *s, const float *params, const float *g, float *kv)
{
    const size_t r = s->r, e = s->e;
    for (size_t a = 0; a < s->n_att; a++, kv += e + r) {
        const struct spa_att_at at = spa_att_at(s, a);
        memcpy(kv, params + at.bk, e * sizeof *kv);
        spa_matvec_add(e, e, params + at.Wk, g, kv);
        memcpy(kv + e, params + at.bv, r * sizeof *kv);
        spa_matvec_add(r, e, params + at.Wv, g, kv + e);
    }
}

void spa_attend_query(const struct spa_shape *s, const float *params, size_t a, const float *h, float *tmp, float *q)
{
    const struct spa_att_at at = spa_att_at(s, a);
    spa_relu(s->r, h, tmp);
    memcpy(q, params + at.bq, s->e * sizeof *q);
    spa_matvec_add(s->e, s->r, params + at.Wq, tmp, q);
}

void spa_attend_weights(const struct spa_attention *att, size_t n, const float *q, float *w)
{
    const size_t n_heads = att->n_heads, width = att->key_width, stride = att->stride;
    const float scale = 1.0f / sqrtf((float)width);
    const float *key = att->key;
    for (size_t j = 0; j < n; j++, key += stride)
        for (size_t head = 0; head < n_heads; head++)
            w[head * n + j] = scale * spa_dot(width, q + head * width, key + head * width);
    for (size_t head = 0; head < n_heads; head++, w += n) {
        float max = w[0], sum = 0;
        for (size_t j = 1; j < n; j++)
            max = w[j] > max ? w[j] : max;
        for (size_t j = 0; j < n; j++) {
            w[j] = expf(w[j] - max);
            sum += w[j];
        }
        const float share = 1.0f / sum;
        for (size_t j = 0; j < n; j++)
            w[j] *= share;
    }
}

void spa_attend_values(const struct spa_attention *att, size_t n, const float *w, float *restrict h)
{
    const size_t n_heads = att->n_heads, width = att->value_width, stride = att->stride;
    const float *restrict value = att->value;
    for (size_t j = 0; j < n; j++, value += stride)
        for (size_t head = 0; head < n_heads; head++) {
            const float share = w[head * n + j];
            for (size_t i = head * width; i < (head + 1) * width; i++)
                h[i] += share * value[i];
        }
}

/* ---- one token ---- */

size_t spa_context_floats(const struct spa_shape *s, uint32_t cap)
{
    return (size_t)cap * (s->n_att * ((size_t)s->e + s->r) + (s->ctx_mix ? 2 * (size_t)s->e : 0));
}

uint32_t spa_context_cap(uint32_t window)
{
    return window < UINT32_MAX - 2 * SPA_CONTEXT_SLACK ? window + 2 * SPA_CONTEXT_SLACK : UINT32_MAX;
}

uint32_t spa_context_floor(const struct spa_context *ctx)
{
    return ctx->first ? ctx->first + ctx->window - 1 : 0;   /* the next token looks at window - 1 before it */
}

enum spa_err spa_context_cut(struct spa_context *ctx, uint32_t len)
{
    if (len > ctx->len || (len && len < spa_context_floor(ctx)))
        return SPA_ERR_RANGE;
    ctx->len = len;
    ctx->first = len ? ctx->first : 0;
    return SPA_OK;
}

/* Tokens that the newest one looks at. */
static uint32_t looked_at(const struct spa_context *ctx)
{
    return ctx->window && ctx->window < ctx->len ? ctx->window : ctx->len;
}

enum spa_err spa_ladder_context(const struct spa_shape *s, const float *params, const float *x_ctx, float *scratch,
                                struct spa_context *ctx)
{
    assert(s->n_ctx_taps > 0 && ctx->first <= ctx->len && ctx->len - ctx->first <= ctx->cap);
    if (ctx->len - ctx->first == ctx->cap) {
        if (ctx->window == 0 || ctx->cap < spa_context_cap(ctx->window))
            return SPA_ERR_NOMEM;
        /* One slack goes, window and the other stay: a token pays for (window / slack) moved ones, and all lie in one piece. */
        memmove(ctx->kv, ctx->kv + spa_context_floats(s, SPA_CONTEXT_SLACK),
                spa_context_floats(s, ctx->cap - SPA_CONTEXT_SLACK) * sizeof *ctx->kv);
        ctx->first += SPA_CONTEXT_SLACK;
    }
    float *kv = ctx->kv + spa_context_floats(s, ctx->len - ctx->first), *c = scratch, *g = c;
    ctx->len++;
    spa_context_token(s, params, x_ctx, c);
    if (s->ctx_mix) {
        const uint32_t n = looked_at(ctx);
        float *q = c + s->e, *w = q + 2 * (size_t)s->e;
        g = q + s->e;
        spa_context_mix(s, params, kv - spa_context_floats(s, n - 1), n, c, NULL, q, w, g);
    }
    spa_context_keys(s, params, g, kv);
    return SPA_OK;
}

size_t spa_ladder_scratch_len(const struct spa_shape *s, uint32_t n_ctx)
{
    /* h twice, tmp, u, q or c, attention weights; or c, q, g, attention weights */
    const size_t forward = 4 * (size_t)s->r + s->m + s->e, mix = s->ctx_mix ? 3 * (size_t)s->e : 0;
    return (forward > mix ? forward : mix) + (size_t)s->n_heads * n_ctx;
}

void spa_ladder_forward(const struct spa_shape *s, const float *params, const float *x, const struct spa_context *ctx,
                        float *scratch, float *z)
{
    assert(s->n_ctx_taps == 0 || (ctx && ctx->len > ctx->first));
    const size_t r = s->r;
    const uint32_t n = s->n_ctx_taps ? looked_at(ctx) : 0;
    const float *kv = n ? ctx->kv + spa_context_floats(s, ctx->len - ctx->first - n) : NULL;
    float *h = scratch, *h_prev = h + r, *tmp = h_prev + r, *u = tmp + 2 * r, *q = u + s->m, *w = q + s->e;
    for (size_t i = 0; i < s->n_taps; i++) {
        float *swap = h;
        h = h_prev;
        h_prev = swap;
        spa_rung_forward(s, params, i, x + i * s->k, h_prev, NULL, tmp, u, h);
        const size_t a = spa_att_of_rung(s, i);
        if (a < s->n_att) {
            const struct spa_attention att = spa_attention_of_rung(s, a, kv);
            spa_attend_query(s, params, a, h, tmp, q);
            spa_attend_weights(&att, n, q, w);
            spa_attend_values(&att, n, w, h);
        }
    }
    const struct spa_out_at out = spa_out_at(s);
    spa_relu(r, h, tmp);
    memcpy(z, params + out.b, s->d * sizeof *z);
    spa_matvec_add(s->d, r, params + out.W, tmp, z);
}

void spa_ladder_context_of(const struct spa_shape *s, const float *x, float *x_ctx)
{
    const size_t k = s->k;
    for (size_t i = 0, c = 0; i < s->n_taps && c < s->n_ctx_taps; i++)
        if (s->taps[i] == s->ctx_taps[c])
            memcpy(x_ctx + k * c++, x + k * i, k * sizeof *x);
}
