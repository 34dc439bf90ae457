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
    size_t kv;       /* [n_ctx, n_att, e + r] */
    size_t h;        /* [n_taps, n_loss, r] after attention */
    size_t h_plain;  /* [n_att, n_loss, r] before attention */
    size_t q;        /* [n_att, n_loss, e] */
    size_t u;        /* [n_taps, n_loss, m]; rung 0 has none */
    size_t last;     /* [n_loss, r] what W_out saw */
    /* and what either needs only while it runs: */
    size_t factors;  /* [r] */
    size_t w, dw;    /* [n_heads, n_ctx] */
    size_t v, dv;    /* [n_loss, r]; forward uses 2 r of them as a step's tmp */
    size_t dh;       /* [n_loss, r] */
    size_t du;       /* [n_loss, m] */
    size_t dq;       /* [n_loss, e] */
    size_t dkv;      /* [n_ctx, n_att, e + r] */
    size_t dc;       /* [n_ctx, e] */
    size_t end;
};

static struct row_at row_at(const struct spa_shape *s, size_t n_ctx, size_t n_loss)
{
    const size_t r = s->r, e = s->e, n_kv = n_ctx * s->n_att * (e + r);
    struct row_at at = {0};
    at.c = 0;
    at.kv = at.c + n_ctx * e;
    at.h = at.kv + n_kv;
    at.h_plain = at.h + s->n_taps * n_loss * r;
    at.q = at.h_plain + s->n_att * n_loss * r;
    at.u = at.q + s->n_att * n_loss * e;
    at.last = at.u + s->n_taps * n_loss * s->m;
    at.factors = at.last + n_loss * r;
    at.w = at.factors + r;
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
    const size_t n_seen = seen_tokens(s, row);
    assert(n_seen <= row->n_ctx || s->n_ctx_taps == 0);
    float *kv = scratch + at.kv, *tmp = scratch + at.v, *w = scratch + at.w;
    float *factors = drop.p > 0 ? scratch + at.factors : NULL;

    for (size_t j = 0; j < n_seen; j++)
        spa_context_token(s, params, row->x_ctx + j * s->n_ctx_taps * s->k, scratch + at.c + j * e,
                          kv + j * s->n_att * (e + r));

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
                memcpy(scratch + at.h_plain + (a * n_loss + t) * r, h, r * sizeof *h);
                spa_attend_query(s, params, a, h, tmp, q);
                spa_attend_weights(s, a, kv, n, q, w);
                spa_attend_values(s, a, kv, n, w, h);
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

/* One loss token through softmax(q K_j / sqrt(e/H)) V_j: dh [r] is what arrives after it, dq [e] and dkv get their share. */
static void attend_backward(const struct spa_shape *s, size_t a, const float *restrict kv, size_t n,
                            const float *restrict q, const float *restrict w, const float *restrict dh,
                            float *restrict dw, float *restrict dq, float *restrict dkv)
{
    const size_t e = s->e, r = s->r, n_heads = s->n_heads, kw = e / n_heads, vw = r / n_heads, stride = s->n_att * (e + r);
    const float scale = 1.0f / sqrtf((float)kw);
    kv += a * (e + r);
    dkv += a * (e + r);
    for (size_t j = 0; j < n; j++) {
        const float *restrict value = kv + j * stride + e;
        float *restrict dvalue = dkv + j * stride + e;
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
    memset(dq, 0, e * sizeof *dq);
    for (size_t j = 0; j < n; j++) {
        const float *restrict key = kv + j * stride;
        float *restrict dkey = dkv + j * stride;
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
    const float *kv = scratch + at->kv;
    float *v = scratch + at->v, *dq = scratch + at->dq, *dh = scratch + at->dh, *w = scratch + at->w;
    float *restrict back = scratch + at->dv;

    for (size_t t = 0; t < n_loss; t++) {
        const size_t n = (size_t)row->pos[t] + 1;
        spa_attend_weights(s, a, kv, n, q + t * e, w);
        attend_backward(s, a, kv, n, q + t * e, w, dh + t * r, scratch + at->dw, dq + t * e, scratch + at->dkv);
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

/* From all keys and values to W_k, W_v and W_c. */
static void context_backward(const struct spa_shape *s, const float *params, const struct spa_row *row, size_t n_seen,
                             const struct row_at *at, float *scratch, float *grad)
{
    const size_t r = s->r, e = s->e, stride = s->n_att * (e + r), width = (size_t)s->n_ctx_taps * s->k;
    const struct spa_out_at ctx = spa_ctx_at(s);
    const float *c = scratch + at->c;
    float *dc = scratch + at->dc;
    memset(dc, 0, n_seen * e * sizeof *dc);
    for (size_t a = 0; a < s->n_att; a++) {
        const struct spa_att_at par = spa_att_at(s, a);
        const float *dkey = scratch + at->dkv + a * (e + r), *dvalue = dkey + e;
        spa_outer_add(e, e, n_seen, dkey, stride, c, e, grad + par.Wk);
        spa_sum_add(e, n_seen, dkey, stride, grad + par.bk);
        spa_outer_add(r, e, n_seen, dvalue, stride, c, e, grad + par.Wv);
        spa_sum_add(r, n_seen, dvalue, stride, grad + par.bv);
        for (size_t j = 0; j < n_seen; j++) {
            spa_matvec_t_add(e, e, params + par.Wk, dkey + j * stride, dc + j * e);
            spa_matvec_t_add(r, e, params + par.Wv, dvalue + j * stride, dc + j * e);
        }
    }
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

    memset(scratch + at.dkv, 0, n_seen * s->n_att * (s->e + r) * sizeof *scratch);
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
        context_backward(s, params, row, n_seen, &at, scratch, grad);
}
