/* ladder_row.c - the ladder over a whole training row: forward that remembers, backward that adds to the gradient.
 * In: the context taps of every token of the row, all taps of the loss tokens, dz; out: z, gradients.
 *
 * Rung by rung with the tokens inside, so that a rung's weights stay in the first cache. Keys and values are made once a
 * token. Attention weights are not kept but made again in backward: they alone would grow with n_ctx * n_loss. */
#include "ladder.h"
#include "kernels.h"
#include "ladder_parts.h"
#include "sample.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Offsets in floats into the scratch of one row. What forward leaves for backward: */
struct row_at {
    size_t c;        /* [n_ctx, e] */
    size_t g;        /* [n_ctx, e]; without ctx_mix the same place as c */
    size_t mix_q;    /* [n_ctx, e] with ctx_mix; backward puts its derivative there */
    size_t kv;       /* [n_ctx, spa_context_floats(1)] */
    size_t h;        /* [n_taps, n_loss, r] after attention */
    size_t h_plain;  /* [n_att, n_loss, r] before attention */
    size_t q;        /* [n_att, n_loss, e] */
    size_t u;        /* [n_taps, n_loss, m]; rung 0 has none */
    size_t last;     /* [n_loss, r] what W_out saw */
    /* and what either needs only while it runs: */
    size_t factors;  /* [r] or [e] */
    size_t w, dw;    /* [n_heads, n_ctx] */
    size_t v, dv;    /* [n_loss, r]; forward uses 2 r of them as a step's tmp */
    size_t dh;       /* [n_loss, r] */
    size_t du;       /* [n_loss, m] */
    size_t dq;       /* [n_loss, e] */
    size_t dkv;      /* as kv */
    size_t dc;       /* [n_ctx, e] first of g, then of c */
    size_t end;
};

static struct row_at row_at(const struct spa_shape *s, size_t n_ctx, size_t n_loss)
{
    const size_t r = s->r, e = s->e, n_kv = n_ctx * spa_context_floats(s, 1), n_mix = s->ctx_mix ? n_ctx * e : 0;
    struct row_at at = {0};
    at.c = 0;
    at.g = at.c + n_mix;
    at.mix_q = at.g + n_ctx * e;
    at.kv = at.mix_q + n_mix;
    at.h = at.kv + n_kv;
    at.h_plain = at.h + s->n_taps * n_loss * r;
    at.q = at.h_plain + s->n_att * n_loss * r;
    at.u = at.q + s->n_att * n_loss * e;
    at.last = at.u + s->n_taps * n_loss * s->m;
    at.factors = at.last + n_loss * r;
    at.w = at.factors + (r > e ? r : e);
    at.dw = at.w + s->n_heads * n_ctx;
    at.v = at.dw + s->n_heads * n_ctx;
    at.dv = at.v + n_loss * r;
    at.dh = at.dv + n_loss * r;
    at.du = at.dh + n_loss * r;
    at.dq = at.du + n_loss * s->m;
    at.dkv = at.dq + n_loss * e;
    at.dc = at.dkv + n_kv;
    at.end = at.dc + n_ctx * e;
    return at;
}

size_t spa_row_scratch_len(const struct spa_shape *shape, uint32_t n_ctx, uint32_t n_loss)
{
    return row_at(shape, n_ctx, n_loss).end;
}

/* Tokens that a loss token can look at; those after the last loss token matter to nobody. */
static size_t seen_tokens(const struct spa_shape *s, const struct spa_row *row)
{
    return s->n_ctx_taps ? (size_t)row->pos[row->n_loss - 1] + 1 : 0;
}

void spa_dropout_factors(struct spa_dropout drop, uint32_t token, size_t rung, size_t n, float *factors)
{
    const uint32_t limit = (uint32_t)(drop.p * 65536.0f + 0.5f);
    const float keep = 1.0f / (1.0f - drop.p);
    const uint64_t place = spa_noise64(drop.key, token, rung);
    for (size_t i = 0; i < n; i += 4) {   /* 16 of 64 random bits a unit */
        const uint64_t bits = spa_noise64(place, i, 0);
        for (size_t l = 0; l < 4 && i + l < n; l++)
            factors[i + l] = (bits >> (16 * l) & 0xffff) < limit ? 0.0f : keep;
    }
}

/* ---- forward ---- */

void spa_row_forward(const struct spa_shape *s, const float *params, const struct spa_row *row, struct spa_dropout drop,
                     float *scratch, float *z)
{
    assert(drop.p >= 0 && drop.p < 1);
    const size_t n_loss = row->n_loss, r = s->r, e = s->e, d = s->d, width = (size_t)s->n_taps * s->k;
    if (n_loss == 0)
        return;
    const struct row_at at = row_at(s, row->n_ctx, n_loss);
    const size_t n_seen = seen_tokens(s, row), stride = spa_context_floats(s, 1);
    assert(n_seen <= row->n_ctx || s->n_ctx_taps == 0);
    float *kv = scratch + at.kv, *tmp = scratch + at.v, *w = scratch + at.w;
    float *factors = drop.p > 0 ? scratch + at.factors : NULL;

    for (size_t j = 0; j < n_seen; j++) {
        float *c = scratch + at.c + j * e, *g = scratch + at.g + j * e;
        spa_context_token(s, params, row->x_ctx + j * s->n_ctx_taps * s->k, c);
        if (s->ctx_mix) {
            if (factors)
                spa_dropout_factors(drop, (uint32_t)j, (size_t)s->n_taps + 1, e, factors);
            spa_context_mix(s, params, kv, j + 1, c, factors, scratch + at.mix_q + j * e, w, g);
        }
        spa_context_keys(s, params, g, kv + j * stride);
    }

    for (size_t i = 0; i < s->n_taps; i++) {
        const size_t a = spa_att_of_rung(s, i);
        for (size_t t = 0; t < n_loss; t++) {
            float *h = scratch + at.h + (i * n_loss + t) * r;
            const float *h_prev = i ? h - n_loss * r : NULL;
            if (factors && i)
                spa_dropout_factors(drop, (uint32_t)t, i, r, factors);
            spa_rung_forward(s, params, i, row->x + t * width + i * s->k, h_prev, factors, tmp,
                             scratch + at.u + (i * n_loss + t) * s->m, h);
            if (a < s->n_att) {
                float *q = scratch + at.q + (a * n_loss + t) * e;
                const size_t n = (size_t)row->pos[t] + 1;
                const struct spa_attention att = spa_attention_of_rung(s, a, kv);
                memcpy(scratch + at.h_plain + (a * n_loss + t) * r, h, r * sizeof *h);
                spa_attend_query(s, params, a, h, tmp, q);
                spa_attend_weights(&att, n, q, w);
                spa_attend_values(&att, n, w, h);
            }
        }
    }

    const struct spa_out_at out = spa_out_at(s);
    for (size_t t = 0; t < n_loss; t++) {
        float *last = scratch + at.last + t * r;
        spa_relu(r, scratch + at.h + ((s->n_taps - 1) * n_loss + t) * r, last);
        if (factors) {
            spa_dropout_factors(drop, (uint32_t)t, s->n_taps, r, factors);
            for (size_t i = 0; i < r; i++)
                last[i] *= factors[i];
        }
        memcpy(z + t * d, params + out.b, d * sizeof *z);
        spa_matvec_add(d, r, params + out.W, last, z + t * d);
    }
}

/* ---- backward ---- */

/* One token through softmax(q K_j / sqrt(e/H)) V_j: dh is what arrives after it, dq is written, dkeys and dvalues, which lie
 * as the keys and values do, get their share. */
static void attend_backward(const struct spa_attention *att, size_t n, const float *restrict q, const float *restrict w,
                            const float *restrict dh, float *restrict dw, float *restrict dq, float *restrict dkeys,
                            float *restrict dvalues)
{
    const size_t n_heads = att->n_heads, kw = att->key_width, vw = att->value_width, stride = att->stride;
    const float *keys = att->key, *values = att->value;
    const float scale = 1.0f / sqrtf((float)kw);
    for (size_t j = 0; j < n; j++) {
        const float *restrict value = values + j * stride;
        float *restrict dvalue = dvalues + j * stride;
        for (size_t head = 0; head < n_heads; head++) {
            const size_t from = head * vw;
            const float share = w[head * n + j];
            dw[head * n + j] = spa_dot(vw, dh + from, value + from);
            for (size_t i = from; i < from + vw; i++)
                dvalue[i] += share * dh[i];
        }
    }
    for (size_t head = 0; head < n_heads; head++) {   /* through the softmax: dw becomes the scores' derivative */
        float mean = 0;
        for (size_t j = 0; j < n; j++)
            mean += w[head * n + j] * dw[head * n + j];
        for (size_t j = 0; j < n; j++)
            dw[head * n + j] = scale * w[head * n + j] * (dw[head * n + j] - mean);
    }
    memset(dq, 0, n_heads * kw * sizeof *dq);
    for (size_t j = 0; j < n; j++) {
        const float *restrict key = keys + j * stride;
        float *restrict dkey = dkeys + j * stride;
        for (size_t head = 0; head < n_heads; head++) {
            const float g = dw[head * n + j];
            for (size_t i = head * kw; i < (head + 1) * kw; i++) {
                dq[i] += g * key[i];
                dkey[i] += g * q[i];
            }
        }
    }
}

/* The attention after one rung, all loss tokens: dh goes from after it to before it. */
static void attention_backward(const struct spa_shape *s, const float *params, const struct spa_row *row, size_t a,
                               const struct row_at *at, float *scratch, float *grad)
{
    const size_t n_loss = row->n_loss, r = s->r, e = s->e;
    const struct spa_att_at par = spa_att_at(s, a);
    const float *h_plain = scratch + at->h_plain + a * n_loss * r, *q = scratch + at->q + a * n_loss * e;
    const struct spa_attention att = spa_attention_of_rung(s, a, scratch + at->kv);
    float *dkeys = scratch + at->dkv + a * (e + r), *dvalues = dkeys + e;
    float *v = scratch + at->v, *dq = scratch + at->dq, *dh = scratch + at->dh, *w = scratch + at->w;
    float *restrict back = scratch + at->dv;

    for (size_t t = 0; t < n_loss; t++) {
        const size_t n = (size_t)row->pos[t] + 1;
        spa_attend_weights(&att, n, q + t * e, w);
        attend_backward(&att, n, q + t * e, w, dh + t * r, scratch + at->dw, dq + t * e, dkeys, dvalues);
        memset(back, 0, r * sizeof *back);
        spa_matvec_t_add(e, r, params + par.Wq, dq + t * e, back);
        for (size_t i = 0; i < r; i++)
            dh[t * r + i] += h_plain[t * r + i] > 0 ? back[i] : 0;
    }
    spa_relu(n_loss * r, h_plain, v);
    spa_outer_add(e, r, n_loss, dq, e, v, r, grad + par.Wq);
    spa_sum_add(e, n_loss, dq, e, grad + par.bq);
}

/* One rung, all loss tokens: dh goes from h_i to h_{i-1}. */
static void rung_backward(const struct spa_shape *s, const float *params, const struct spa_row *row,
                          struct spa_dropout drop, size_t i, const struct row_at *at, float *scratch, float *grad)
{
    const size_t n_loss = row->n_loss, r = s->r, m = s->m, k = s->k;
    const struct spa_rung_at par = spa_rung_at(s, i);
    float *dh = scratch + at->dh;
    spa_outer_add(r, k, n_loss, dh, r, row->x + i * k, (size_t)s->n_taps * k, grad + par.W);
    spa_sum_add(r, n_loss, dh, r, grad + par.b);
    if (i == 0)
        return;
    const float *h_prev = scratch + at->h + (i - 1) * n_loss * r, *u = scratch + at->u + i * n_loss * m;
    float *v = scratch + at->v, *dout = scratch + at->dv, *du = scratch + at->du, *factors = scratch + at->factors;

    memcpy(dout, dh, n_loss * r * sizeof *dout);
    if (drop.p > 0)
        for (size_t t = 0; t < n_loss; t++) {
            spa_dropout_factors(drop, (uint32_t)t, i, r, factors);
            for (size_t l = 0; l < r; l++)
                dout[t * r + l] *= factors[l];
        }
    spa_outer_add(r, m, n_loss, dout, r, u, m, grad + par.V);
    spa_sum_add(r, n_loss, dout, r, grad + par.e);

    memset(du, 0, n_loss * m * sizeof *du);
    for (size_t t = 0; t < n_loss; t++)
        spa_matvec_t_add(r, m, params + par.V, dout + t * r, du + t * m);
    for (size_t l = 0; l < n_loss * m; l++)
        du[l] = u[l] > 0 ? du[l] : 0;
    spa_relu(n_loss * r, h_prev, v);
    spa_outer_add(m, r, n_loss, du, m, v, r, grad + par.U);
    spa_sum_add(m, n_loss, du, m, grad + par.c);

    for (size_t t = 0; t < n_loss; t++)   /* A_i(v) = v + ...: dh itself goes through, too */
        spa_matvec_t_add(m, r, params + par.U, du + t * m, dh + t * r);
    for (size_t l = 0; l < n_loss * r; l++)
        dh[l] = h_prev[l] > 0 ? dh[l] : 0;
}

/* All tokens' looking back: dc goes from g to c. */
static void mix_backward(const struct spa_shape *s, const float *params, size_t n_seen, struct spa_dropout drop,
                         const struct row_at *at, float *scratch, float *grad)
{
    const size_t e = s->e, stride = spa_context_floats(s, 1);
    const struct spa_att_at par = spa_mix_at(s);
    const struct spa_attention att = spa_attention_of_mix(s, scratch + at->kv);
    const float *c = scratch + at->c;
    float *w = scratch + at->w, *dc = scratch + at->dc, *q = scratch + at->mix_q, *dq = scratch + at->dq;
    float *dkeys = scratch + at->dkv + s->n_att * (e + s->r), *dvalues = dkeys + e, *dadded = scratch + at->factors;

    for (size_t t = 0; t < n_seen; t++) {
        if (drop.p > 0) {
            spa_dropout_factors(drop, (uint32_t)t, (size_t)s->n_taps + 1, e, dadded);
            for (size_t i = 0; i < e; i++)
                dadded[i] *= dc[t * e + i];
        }
        spa_attend_weights(&att, t + 1, q + t * e, w);
        attend_backward(&att, t + 1, q + t * e, w, drop.p > 0 ? dadded : dc + t * e, scratch + at->dw, dq, dkeys, dvalues);
        memcpy(q + t * e, dq, e * sizeof *q);
    }
    spa_outer_add(e, e, n_seen, q, e, c, e, grad + par.Wq);
    spa_sum_add(e, n_seen, q, e, grad + par.bq);
    spa_outer_add(e, e, n_seen, dkeys, stride, c, e, grad + par.Wk);
    spa_sum_add(e, n_seen, dkeys, stride, grad + par.bk);
    spa_outer_add(e, e, n_seen, dvalues, stride, c, e, grad + par.Wv);
    spa_sum_add(e, n_seen, dvalues, stride, grad + par.bv);
    for (size_t j = 0; j < n_seen; j++) {   /* g = c + ...: dc itself goes through, too */
        spa_matvec_t_add(e, e, params + par.Wq, q + j * e, dc + j * e);
        spa_matvec_t_add(e, e, params + par.Wk, dkeys + j * stride, dc + j * e);
        spa_matvec_t_add(e, e, params + par.Wv, dvalues + j * stride, dc + j * e);
    }
}

/* From all keys and values to W_k, W_v and W_c. */
static void context_backward(const struct spa_shape *s, const float *params, const struct spa_row *row, size_t n_seen,
                             struct spa_dropout drop, const struct row_at *at, float *scratch, float *grad)
{
    const size_t r = s->r, e = s->e, stride = spa_context_floats(s, 1), width = (size_t)s->n_ctx_taps * s->k;
    const struct spa_out_at ctx = spa_ctx_at(s);
    const float *c = scratch + at->c, *g = scratch + at->g;
    float *dc = scratch + at->dc;
    memset(dc, 0, n_seen * e * sizeof *dc);
    for (size_t a = 0; a < s->n_att; a++) {
        const struct spa_att_at par = spa_att_at(s, a);
        const float *dkey = scratch + at->dkv + a * (e + r), *dvalue = dkey + e;
        spa_outer_add(e, e, n_seen, dkey, stride, g, e, grad + par.Wk);
        spa_sum_add(e, n_seen, dkey, stride, grad + par.bk);
        spa_outer_add(r, e, n_seen, dvalue, stride, g, e, grad + par.Wv);
        spa_sum_add(r, n_seen, dvalue, stride, grad + par.bv);
        for (size_t j = 0; j < n_seen; j++) {
            spa_matvec_t_add(e, e, params + par.Wk, dkey + j * stride, dc + j * e);
            spa_matvec_t_add(r, e, params + par.Wv, dvalue + j * stride, dc + j * e);
        }
    }
    if (s->ctx_mix)
        mix_backward(s, params, n_seen, drop, at, scratch, grad);
    for (size_t l = 0; l < n_seen * e; l++)
        dc[l] = c[l] > 0 ? dc[l] : 0;
    spa_outer_add(e, width, n_seen, dc, e, row->x_ctx, width, grad + ctx.W);
    spa_sum_add(e, n_seen, dc, e, grad + ctx.b);
}

void spa_row_backward(const struct spa_shape *s, const float *params, const struct spa_row *row, struct spa_dropout drop,
                      float *scratch, const float *dz, float *grad)
{
    const size_t n_loss = row->n_loss, r = s->r, d = s->d;
    if (n_loss == 0)
        return;
    const struct row_at at = row_at(s, row->n_ctx, n_loss);
    const struct spa_out_at out = spa_out_at(s);
    const size_t n_seen = seen_tokens(s, row);
    const float *h_last = scratch + at.h + (s->n_taps - 1) * n_loss * r;
    float *dh = scratch + at.dh, *factors = scratch + at.factors;

    memset(scratch + at.dkv, 0, n_seen * spa_context_floats(s, 1) * sizeof *scratch);
    memset(dh, 0, n_loss * r * sizeof *dh);
    spa_outer_add(d, r, n_loss, dz, d, scratch + at.last, r, grad + out.W);
    spa_sum_add(d, n_loss, dz, d, grad + out.b);
    for (size_t t = 0; t < n_loss; t++) {
        spa_matvec_t_add(d, r, params + out.W, dz + t * d, dh + t * r);
        if (drop.p > 0) {
            spa_dropout_factors(drop, (uint32_t)t, s->n_taps, r, factors);
            for (size_t i = 0; i < r; i++)
                dh[t * r + i] *= factors[i];
        }
    }
    for (size_t l = 0; l < n_loss * r; l++)
        dh[l] = h_last[l] > 0 ? dh[l] : 0;

    for (size_t i = s->n_taps; i-- > 0;) {
        const size_t a = spa_att_of_rung(s, i);
        if (a < s->n_att)
            attention_backward(s, params, row, a, &at, scratch, grad);
        rung_backward(s, params, row, drop, i, &at, scratch, grad);
    }
    if (s->n_ctx_taps)
        context_backward(s, params, row, n_seen, drop, &at, scratch, grad);
}
