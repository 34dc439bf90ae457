/* learn_gate.c - the gate's training: logistic regression on y_fin and the taps (learn.h). In: features, losses with and without the
 * plugin. Out: w [2, n], b [2] for them as they are; and what each threshold costs and brings.
 *
 * These numbers differ widely in size, so training sees them with mean 0 and deviation 1 per direction; mean and deviation
 * are folded into w and b at the end. */
#include "learn.h"

#include "gate.h"
#include "sample.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EPOCHS = 30, BATCH = 64 };
static const struct spa_adamw gate_adamw = { .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.001f };

/* What the gate reads of one row's loss tokens at a time; the other numbers of a row are unpacked on the way and not looked at. */
struct reader {
    uint32_t  n;               /* numbers of a token */
    uint32_t *pos;
    int32_t  *target;
    float    *x_ctx, *x, *y_fin;
    float    *v;               /* [n_loss, n] */
};

static void reader_free(struct reader *r)
{
    free(r->pos);
    free(r->target);
    free(r->x_ctx);
    free(r->x);
    free(r->y_fin);
    free(r->v);
}

static int reader_init(struct reader *r, const struct spa_features *f, size_t n, char *why, size_t why_len)
{
    const struct spa_shape *s = &f->shape;
    assert(n == s->d || n == s->d + (size_t)s->n_taps * s->k);
    r->n = (uint32_t)n;
    r->pos = malloc((f->max_loss + 1) * sizeof *r->pos);
    r->target = malloc((f->max_loss + 1) * sizeof *r->target);
    r->x_ctx = malloc(((size_t)f->max_ctx * s->n_ctx_taps * s->k + 1) * sizeof *r->x_ctx);
    r->x = malloc(((size_t)f->max_loss * s->n_taps * s->k + 1) * sizeof *r->x);
    r->y_fin = malloc(((size_t)f->max_loss * s->d + 1) * sizeof *r->y_fin);
    r->v = malloc(((size_t)f->max_loss * n + 1) * sizeof *r->v);
    if (r->pos && r->target && r->x_ctx && r->x && r->y_fin && r->v)
        return 0;
    reader_free(r);
    snprintf(why, why_len, "out of memory for the gate");
    return -1;
}

static uint32_t read_row(struct reader *r, const struct spa_features *f, size_t i)
{
    const uint32_t d = f->shape.d, n_x = r->n - d, n_loss = f->rows[i].head.n_loss;
    spa_features_row(f, i, r->pos, r->target, r->x_ctx, r->x, r->y_fin);
    for (uint32_t t = 0; t < n_loss; t++) {
        memcpy(r->v + (size_t)t * r->n, r->y_fin + (size_t)t * d, d * sizeof *r->v);
        memcpy(r->v + (size_t)t * r->n + d, r->x + (size_t)t * n_x, n_x * sizeof *r->v);
    }
    return n_loss;
}

/* Personal rows first, then general ones: row i of both together. */
struct both {
    const struct spa_features *f, *general;   /* general: NULL for none */
    struct reader r, r_general;
    size_t n;
    uint64_t n_loss;
};

static uint32_t read_both(struct both *s, size_t i, float **v)
{
    const bool own = i < s->f->n;
    struct reader *r = own ? &s->r : &s->r_general;
    *v = r->v;
    return own ? read_row(r, s->f, i) : read_row(r, s->general, i - s->f->n);
}

/* mean [n] and 1/deviation [n] over all loss tokens. */
static void statistics(struct both *s, double *mean, double *inverse)
{
    const uint32_t width = s->r.n;
    float *v;
    memset(mean, 0, width * sizeof *mean);
    memset(inverse, 0, width * sizeof *inverse);
    for (size_t i = 0; i < s->n; i++)
        for (uint32_t t = 0, n = read_both(s, i, &v); t < n; t++)
            for (uint32_t c = 0; c < width; c++)
                mean[c] += (double)v[(size_t)t * width + c] / (double)s->n_loss;
    for (size_t i = 0; i < s->n; i++)
        for (uint32_t t = 0, n = read_both(s, i, &v); t < n; t++)
            for (uint32_t c = 0; c < width; c++) {
                double off = (double)v[(size_t)t * width + c] - mean[c];
                inverse[c] += off * off / (double)s->n_loss;
            }
    for (uint32_t c = 0; c < width; c++)
        inverse[c] = 1 / sqrt(inverse[c] + 1e-6);
}

/* Weights of the run: w [2, width] and b [2] in one array, and what AdamW keeps. */
struct weights {
    size_t n;
    float *w, *grad, *m, *v;
};

static void train(struct both *s, const float *loss, const float *base_loss, const size_t *first, uint64_t seed,
                  const double *mean, const double *inverse, struct weights *k)
{
    const uint32_t width = s->r.n;
    uint32_t pending = 0;
    uint64_t step = 0, steps = (uint64_t)EPOCHS * ((s->n_loss + BATCH - 1) / BATCH);
    for (uint32_t epoch = 0; epoch < EPOCHS; epoch++)
        for (size_t at = 0; at < s->n; at++) {
            size_t i = (size_t)(spa_noise64(seed, epoch, at) % s->n);   /* rows with replacement: order costs no memory */
            float *all;
            for (uint32_t t = 0, n = read_both(s, i, &all); t < n; t++) {
                float *v = all + (size_t)t * width;
                for (uint32_t c = 0; c < width; c++)
                    v[c] = (float)(((double)v[c] - mean[c]) * inverse[c]);
                int label = i < s->f->n && loss[first[i] + t] < base_loss[first[i] + t] + SPA_GATE_MARGIN;
                spa_gate_backward(width, k->w, k->w + 2 * (size_t)width, v, label, 1.0f / BATCH, k->grad, k->grad + 2 * (size_t)width);
                if (++pending < BATCH)
                    continue;
                struct spa_adamw adamw = gate_adamw;
                step++;
                adamw.lr *= spa_cosine_schedule(step < steps ? step : steps, 0, steps + 1);
                spa_adamw_step(&adamw, step, k->n, k->w, k->grad, k->m, k->v);
                memset(k->grad, 0, k->n * sizeof *k->grad);
                pending = 0;
            }
        }
}

int spa_learn_gate(const struct spa_features *f, const float *loss, const float *base_loss, const struct spa_features *general,
                   uint64_t seed, const struct spa_gate *gate, char *why, size_t why_len)
{
    const size_t width = gate->width;
    struct both s = { .f = f, .general = general, .n = f->n + (general ? general->n : 0), .n_loss = f->n_loss + (general ? general->n_loss : 0) };
    if (reader_init(&s.r, f, width, why, why_len) != 0)
        return -1;
    if (general && reader_init(&s.r_general, general, width, why, why_len) != 0) {
        reader_free(&s.r);
        return -1;
    }
    struct weights k = { .n = 2 * width + 2 };
    size_t *first = malloc(f->n * sizeof *first);   /* of each row in loss */
    double *mean = malloc(width * sizeof *mean), *inverse = malloc(width * sizeof *inverse);
    k.w = calloc(k.n, sizeof *k.w);
    k.grad = calloc(k.n, sizeof *k.grad);
    k.m = calloc(k.n, sizeof *k.m);
    k.v = calloc(k.n, sizeof *k.v);
    bool ok = first && mean && inverse && k.w && k.grad && k.m && k.v;
    if (ok) {
        for (size_t i = 0, at = 0; i < f->n; at += f->rows[i].head.n_loss, i++)
            first[i] = at;
        statistics(&s, mean, inverse);
        train(&s, loss, base_loss, first, seed, mean, inverse, &k);
        for (int class = 0; class < 2; class++) {
            double shift = 0;
            for (size_t c = 0; c < width; c++) {
                double folded = (double)k.w[(size_t)class * width + c] * inverse[c];
                gate->w[(size_t)class * width + c] = (float)folded;
                shift += folded * mean[c];
            }
            gate->b[class] = (float)((double)k.w[2 * width + (size_t)class] - shift);
        }
    } else {
        snprintf(why, why_len, "out of memory for the gate");
    }
    free(first);
    free(mean);
    free(inverse);
    free(k.w);
    free(k.grad);
    free(k.m);
    free(k.v);
    reader_free(&s.r);
    if (general)
        reader_free(&s.r_general);
    return ok ? 0 : -1;
}

int spa_learn_gate_rate(const struct spa_features *f, const struct spa_gate *gate, float threshold, double *rate, char *why, size_t why_len)
{
    struct reader r;
    if (reader_init(&r, f, gate->width, why, why_len) != 0)
        return -1;
    float *g = malloc(gate->width * sizeof *g), bias;
    uint64_t fired = 0;
    if (g) {
        spa_gate_fold(gate->width, gate->w, gate->b, threshold, g, &bias);
        for (size_t i = 0; i < f->n; i++)
            for (uint32_t t = 0, n = read_row(&r, f, i); t < n; t++)
                fired += spa_gate_score(gate->width, g, bias, r.v + (size_t)t * gate->width) > 0;
        *rate = f->n_loss ? (double)fired / (double)f->n_loss : 0;
    } else {
        snprintf(why, why_len, "out of memory for the gate");
    }
    reader_free(&r);
    bool ok = g != NULL;
    free(g);
    return ok ? 0 : -1;
}

/* ---- what a threshold costs ---- */

const float spa_gate_thresholds[SPA_GATE_THRESHOLDS] = { 0.02f, 0.05f, 0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 0.95f,
                                                         0.98f, 0.99f };

/* Of one threshold over one set of rows. */
struct tally {
    float    bias;             /* the threshold, folded (gate.h) */
    uint64_t exact, same, fired, changed;
};

/* Adds one row to each of tally [n]. score [n_loss]: the gate's without its bias. */
static void tally_row(struct tally *tally, size_t n, const float *score, const int32_t *target, const int32_t *top,
                      const int32_t *base_top, uint32_t n_loss)
{
    for (size_t i = 0; i < n; i++) {
        struct tally *s = &tally[i];
        uint32_t right = 0, changed = 0;
        for (uint32_t t = 0; t < n_loss; t++) {
            bool fires = score[t] + s->bias > 0;
            right += (fires ? top[t] : base_top[t]) == target[t];
            changed += fires && top[t] != base_top[t];
            s->fired += fires;
        }
        s->exact += right == n_loss;
        s->same += changed == 0;
        s->changed += changed;
    }
}

/* Counts of all rows for each of tally [n], whose bias is set. */
static int tally_rows(const struct spa_learn_tops *tops, size_t width, const float *g, struct tally *tally, size_t n, char *why, size_t why_len)
{
    const struct spa_features *f = tops->f;
    struct reader r;
    if (reader_init(&r, f, width, why, why_len) != 0)
        return -1;
    float *score = malloc((f->max_loss + 1) * sizeof *score);
    const int32_t *top = tops->top, *base_top = tops->base_top;
    for (size_t i = 0; score && i < f->n; i++) {
        uint32_t n_loss = read_row(&r, f, i);
        for (uint32_t t = 0; t < n_loss; t++)
            score[t] = spa_gate_score(width, g, 0, r.v + (size_t)t * width);
        tally_row(tally, n, score, r.target, top, base_top, n_loss);
        top += n_loss;
        base_top += n_loss;
    }
    reader_free(&r);
    if (!score)
        snprintf(why, why_len, "out of memory for the gate");
    bool ok = score != NULL;
    free(score);
    return ok ? 0 : -1;
}

static double share(uint64_t part, uint64_t of) { return of ? (double)part / (double)of : NAN; }

int spa_learn_gate_trade(const struct spa_learn_tops *rows, const struct spa_learn_tops *general, const struct spa_gate *gate,
                         const float *thresholds, size_t n, struct spa_gate_trade *trade, char *why, size_t why_len)
{
    const size_t n_general = general ? general->f->n : 0;
    const uint64_t general_loss = general ? general->f->n_loss : 0;
    float *g = calloc(gate->width, sizeof *g);
    struct tally *own = calloc(n, sizeof *own), *others = calloc(n, sizeof *others);
    int rc = g && own && others ? 0 : -1;
    if (rc != 0)
        snprintf(why, why_len, "out of memory for the gate");
    for (size_t i = 0; rc == 0 && i < n; i++) {
        spa_gate_fold(gate->width, gate->w, gate->b, thresholds[i], g, &own[i].bias);
        others[i].bias = own[i].bias;
    }
    if (rc == 0)
        rc = tally_rows(rows, gate->width, g, own, n, why, why_len);
    if (rc == 0 && n_general > 0)
        rc = tally_rows(general, gate->width, g, others, n, why, why_len);
    for (size_t i = 0; rc == 0 && i < n; i++)
        trade[i] = (struct spa_gate_trade){
            .threshold = thresholds[i],
            .exact = rows->f->n ? share(own[i].exact, rows->f->n) : 0, .fires = rows->f->n_loss ? share(own[i].fired, rows->f->n_loss) : 0,
            .general_fires = share(others[i].fired, general_loss), .general_changed = share(others[i].changed, general_loss),
            .general_same = share(others[i].same, n_general),
        };
    free(g);
    free(own);
    free(others);
    return rc;
}

/* a before b? Unknown shares (NaN) are unknown in all lines alike, and tell nothing. */
static bool takes_less(const struct spa_gate_trade *a, const struct spa_gate_trade *b)
{
    if (a->general_changed < b->general_changed || a->general_changed > b->general_changed)
        return a->general_changed < b->general_changed;
    if (a->general_fires < b->general_fires || a->general_fires > b->general_fires)
        return a->general_fires < b->general_fires;
    if (a->fires < b->fires || a->fires > b->fires)
        return a->fires < b->fires;
    return a->threshold < b->threshold;
}

size_t spa_learn_gate_choose(const struct spa_gate_trade *trade, size_t n)
{
    const double near_enough = 0.01 + 1e-9;   /* one point; 0.99 is within one point of 1 although their difference rounds above it */
    double best = 0;
    for (size_t i = 0; i < n; i++)
        best = trade[i].exact > best ? trade[i].exact : best;
    size_t chosen = n;
    for (size_t i = 0; i < n; i++)
        if (trade[i].exact >= best - near_enough && (chosen == n || takes_less(&trade[i], &trade[chosen])))
            chosen = i;
    return chosen;
}
