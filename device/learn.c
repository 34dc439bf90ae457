/* learn.c - the training loop of the ladder, and measuring with it (learn.h). The gate's is in learn_gate.c.
 *
 * IMPLEMENTATION NOTES
 * A step's rows go through in groups that fit a fixed arena: unpack, ladder forward, head, ladder backward. The loss is a mean
 * over the whole step, whose token count is known before, so groups add up exactly and long rows cost time, not memory. A group
 * is also what the head sees at once: many tokens per dequantised tile make its cost small.
 * Anchors need no head and nothing of the rows: they go through in a thread of their own with a gradient of their own, which is
 * added at the end, so that the same bits come of it wherever the threads run. */
#include "learn.h"

#include "sample.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GROUP_LOSS   = 512,        /* loss tokens of a group */
    GROUP_FLOATS = 6 << 20,    /* floats of a group's arena; a single larger row gets what it needs */
    SMALL_LOSS   = 256,        /* both for a head in the cloud, since it is the choice of devices with little memory: */
    SMALL_FLOATS = 1 << 18,    /* enough for the pieces that are under way at once */
    DEFAULT_BATCH = 20, DEFAULT_WARMUP = 20, WANTED_STEPS = 96, LEAST_EPOCHS = 8, MOST_EPOCHS = 40,
    MANY_EPOCHS = 6,           /* beyond this rows are learned by heart without dropout */
};
static const float FEW_ROWS = 300, LEAST_ANCHORS = 0.3f;   /* up to so many rows anchors have weight 1; and never less than this */

/* Numbers of the generator's streams: order of rows, dropout, choice of anchors. */
enum { STREAM_ORDER = 1, STREAM_DROPOUT = 2, STREAM_ANCHORS = 3 };

void spa_learn_defaults(struct spa_learn_config *cfg, size_t n_rows)
{
    if (cfg->batch_rows == 0)
        cfg->batch_rows = DEFAULT_BATCH;
    if (cfg->epochs == 0) {
        size_t per_epoch = (n_rows + cfg->batch_rows - 1) / cfg->batch_rows;
        size_t epochs = per_epoch ? (WANTED_STEPS + per_epoch - 1) / per_epoch : LEAST_EPOCHS;
        cfg->epochs = epochs < LEAST_EPOCHS ? LEAST_EPOCHS : epochs > MOST_EPOCHS ? MOST_EPOCHS : (uint32_t)epochs;
        cfg->epochs = cfg->epochs < cfg->least_epochs ? cfg->least_epochs : cfg->epochs;
    }
    if (cfg->dropout < 0)
        cfg->dropout = cfg->epochs > MANY_EPOCHS ? 0.1f : 0;
    if (cfg->anchor_weight < 0) {
        const float weight = n_rows ? FEW_ROWS / (float)n_rows : 1;
        cfg->anchor_weight = weight > 1 ? 1 : weight < LEAST_ANCHORS ? LEAST_ANCHORS : weight;
    }
    uint64_t steps = spa_learn_steps(cfg, n_rows);
    if (cfg->warmup == 0)
        cfg->warmup = steps / 5 < DEFAULT_WARMUP ? (uint32_t)(steps / 5) : DEFAULT_WARMUP;
}

uint64_t spa_learn_steps(const struct spa_learn_config *cfg, size_t n_rows)
{
    return (uint64_t)cfg->epochs * ((n_rows + cfg->batch_rows - 1) / cfg->batch_rows);
}

/* Rows that go through together. */
struct group {
    const struct spa_shape    *shape;
    const struct spa_features *f;
    size_t   n_rows, rows_cap, floats_cap;
    uint32_t n_loss, loss_cap;
    size_t   floats;           /* of the arena in use */
    struct spa_row *rows;      /* [rows_cap] */
    float  **scratch;          /* [rows_cap] into the arena */
    uint64_t *dropout_key;     /* [rows_cap] */
    float   *arena;
    uint32_t *pos;             /* [loss_cap] of all rows, like those below */
    int32_t *target;
    float   *state;            /* [loss_cap, d] y_fin, then what goes into the head */
    float   *z;                /* [loss_cap, d] z, then its gradient */
    float   *loss;
    int32_t *top;
};

static size_t row_floats(const struct spa_shape *shape, const spa_Features *row)
{
    return (size_t)row->n_ctx * shape->n_ctx_taps * shape->k + (size_t)row->n_loss * shape->n_taps * shape->k +
           spa_row_scratch_len(shape, row->n_ctx, row->n_loss);
}

static void group_free(struct group *g)
{
    free(g->rows);
    free(g->scratch);
    free(g->dropout_key);
    free(g->arena);
    free(g->pos);
    free(g->target);
    free(g->state);
    free(g->z);
    free(g->loss);
    free(g->top);
    *g = (struct group){ 0 };   /* one that could not be made is freed again with its learner */
}

/* Room for groups of at most n_rows of f's rows, as large as the limits and the rows themselves ask for. */
static int group_init(struct group *g, const struct spa_shape *shape, const struct spa_features *f, const struct spa_lm_head *h,
                      size_t n_rows, char *why, size_t why_len)
{
    size_t largest = 0, most_floats = h->cloud ? SMALL_FLOATS : GROUP_FLOATS;
    uint32_t most_loss = h->cloud ? SMALL_LOSS : GROUP_LOSS;
    for (size_t i = 0; i < f->n; i++) {
        size_t floats = row_floats(shape, &f->rows[i].head);
        largest = floats > largest ? floats : largest;
    }
    memset(g, 0, sizeof *g);
    g->shape = shape;
    g->f = f;
    g->rows_cap = n_rows;
    g->floats_cap = largest > most_floats ? largest : n_rows < most_floats / (largest + 1) ? n_rows * largest : most_floats;
    g->loss_cap = f->max_loss > most_loss ? f->max_loss : n_rows * f->max_loss < most_loss ? (uint32_t)n_rows * f->max_loss : most_loss;
    size_t states = (size_t)g->loss_cap * shape->d;
    g->rows = malloc(n_rows * sizeof *g->rows);
    g->scratch = malloc(n_rows * sizeof *g->scratch);
    g->dropout_key = malloc(n_rows * sizeof *g->dropout_key);
    g->arena = malloc(g->floats_cap * sizeof *g->arena);
    g->pos = malloc(g->loss_cap * sizeof *g->pos);
    g->target = malloc(g->loss_cap * sizeof *g->target);
    g->state = malloc(states * sizeof *g->state);
    g->z = malloc(states * sizeof *g->z);
    g->loss = malloc(g->loss_cap * sizeof *g->loss);
    g->top = malloc(g->loss_cap * sizeof *g->top);
    if (g->rows && g->scratch && g->dropout_key && g->arena && g->pos && g->target && g->state && g->z && g->loss && g->top)
        return 0;
    group_free(g);
    snprintf(why, why_len, "out of memory for the rows of one step");
    return -1;
}

static void group_clear(struct group *g)
{
    g->n_rows = 0;
    g->n_loss = 0;
    g->floats = 0;
}

/* Unpacks row `index` into the group; false when it has no room left. An empty group has room for any row. */
static bool group_add(struct group *g, size_t index, uint64_t dropout_key)
{
    const struct spa_shape *shape = g->shape;
    const spa_Features *head = &g->f->rows[index].head;
    size_t floats = row_floats(shape, head), at = g->n_loss;
    if (g->n_rows == g->rows_cap || head->n_loss > g->loss_cap - g->n_loss || floats > g->floats_cap - g->floats)
        return false;
    float *x_ctx = g->arena + g->floats;
    float *x = x_ctx + (size_t)head->n_ctx * shape->n_ctx_taps * shape->k;
    g->scratch[g->n_rows] = x + (size_t)head->n_loss * shape->n_taps * shape->k;
    spa_features_row(g->f, index, g->pos + at, g->target + at, x_ctx, x, g->state + at * shape->d);
    g->rows[g->n_rows] = (struct spa_row){ head->n_ctx, x_ctx, head->n_loss, g->pos + at, x };
    g->dropout_key[g->n_rows] = dropout_key;
    g->n_rows++;
    g->n_loss += head->n_loss;
    g->floats += floats;
    return true;
}

/* state becomes what the head takes. */
static void group_forward(struct group *g, const float *params, float dropout)
{
    const struct spa_shape *shape = g->shape;
    size_t at = 0, n = (size_t)g->n_loss * shape->d;
    for (size_t i = 0; i < g->n_rows; at += (size_t)g->rows[i].n_loss * shape->d, i++)
        spa_row_forward(shape, params, &g->rows[i], (struct spa_dropout){ dropout, g->dropout_key[i] }, g->scratch[i], g->z + at);
    if (shape->mode == SPA_REPLACE)
        memcpy(g->state, g->z, n * sizeof *g->state);
    else
        for (size_t i = 0; i < n; i++)
            g->state[i] += g->z[i];
}

/* Adds the gradient of the losses' sum divided by n_tokens to grad, and the losses' sum to *loss. -1 with a sentence in h->why. */
static int group_train(struct group *g, struct spa_lm_head *h, const float *params, float dropout, uint64_t n_tokens, float *grad,
                       double *loss)
{
    const struct spa_shape *shape = g->shape;
    group_forward(g, params, dropout);
    if (spa_lm_head_loss(h, g->state, g->target, g->n_loss, g->loss, g->z, NULL) != 0)
        return -1;
    float share = 1 / (float)n_tokens;
    for (size_t i = 0; i < (size_t)g->n_loss * shape->d; i++)
        g->z[i] *= share;
    for (uint32_t i = 0; i < g->n_loss; i++)
        *loss += (double)g->loss[i];
    size_t at = 0;
    for (size_t i = 0; i < g->n_rows; at += (size_t)g->rows[i].n_loss * shape->d, i++)
        spa_row_backward(shape, params, &g->rows[i], (struct spa_dropout){ dropout, g->dropout_key[i] }, g->scratch[i], g->z + at, grad);
    return 0;
}

static void shuffle(size_t *order, size_t n, uint64_t seed, uint32_t epoch)
{
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)(spa_noise64(spa_noise64(seed, STREAM_ORDER, epoch), 0, i) % i);
        size_t other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

/* The same for anchors: the penalty's sum is share * |z - z0|^2 / d, where z0 is the z that leaves the base as it is. No head is
 * needed. Adds the gradient to grad and the penalty to *loss. */
static void group_hold(struct group *g, const float *params, float share, float *grad, double *loss)
{
    const struct spa_shape *shape = g->shape;
    const float each = share / (float)shape->d;
    size_t at = 0, n = (size_t)g->n_loss * shape->d;
    for (size_t i = 0; i < g->n_rows; at += (size_t)g->rows[i].n_loss * shape->d, i++)
        spa_row_forward(shape, params, &g->rows[i], (struct spa_dropout){ 0, 0 }, g->scratch[i], g->z + at);
    for (size_t i = 0; i < n; i++) {
        const float off = g->z[i] - (shape->mode == SPA_REPLACE ? g->state[i] : 0);
        *loss += (double)(each * off * off);
        g->z[i] = 2 * each * off;
    }
    at = 0;
    for (size_t i = 0; i < g->n_rows; at += (size_t)g->rows[i].n_loss * shape->d, i++)
        spa_row_backward(shape, params, &g->rows[i], (struct spa_dropout){ 0, 0 }, g->scratch[i], g->z + at, grad);
}

struct spa_learner {
    const struct spa_shape *shape;
    struct spa_learn_config cfg;
    struct spa_lm_head *head;
    struct group rows, anchors;      /* anchors.f NULL: none */
    size_t n_params;
    float *params;                   /* the caller's */
    float *grad, *moments;           /* [n_params], [2 n_params] */
    float *anchors_grad;             /* [n_params] with anchors */
    double penalty;
    size_t *order;                   /* of the rows in this epoch */
    uint32_t order_epoch;            /* 0: not yet made */
    struct spa_learn_step step;      /* the last one */
};

int spa_learner_new(struct spa_learner **out, const struct spa_shape *shape, const struct spa_features *f, const struct spa_features *anchors,
                    struct spa_lm_head *h, const struct spa_learn_config *cfg, float *params, char *why, size_t why_len)
{
    const size_t batch = cfg->batch_rows < f->n ? cfg->batch_rows : f->n;
    const bool has_anchors = anchors && anchors->n > 0 && cfg->anchor_rows > 0;
    struct spa_learner *l = *out = calloc(1, sizeof *l);
    if (l) {
        *l = (struct spa_learner){ .shape = shape, .cfg = *cfg, .head = h, .n_params = spa_param_count(shape), .params = params };
        l->step.steps = spa_learn_steps(cfg, f->n);
        l->order = malloc(f->n * sizeof *l->order);
        l->grad = malloc(l->n_params * sizeof *l->grad);
        l->moments = calloc(2 * l->n_params, sizeof *l->moments);
        l->anchors_grad = has_anchors ? malloc(l->n_params * sizeof *l->anchors_grad) : NULL;
    }
    if (!l || !l->order || !l->grad || !l->moments || (has_anchors && !l->anchors_grad))
        snprintf(why, why_len, "out of memory for the optimizer");
    else if (group_init(&l->rows, shape, f, h, batch, why, why_len) == 0 &&
             (!has_anchors ||
              group_init(&l->anchors, shape, anchors, h, cfg->anchor_rows < anchors->n ? cfg->anchor_rows : anchors->n, why, why_len) == 0))
        return 0;
    spa_learner_free(l);
    *out = NULL;
    return -1;
}

void spa_learner_free(struct spa_learner *l)
{
    if (!l)
        return;
    group_free(&l->rows);
    group_free(&l->anchors);
    free(l->order);
    free(l->grad);
    free(l->moments);
    free(l->anchors_grad);
    free(l);
}

float *spa_learner_moments(struct spa_learner *l) { return l->moments; }

void spa_learner_go_on(struct spa_learner *l, uint64_t step, const float *moments)
{
    l->step.step = step;
    memcpy(l->moments, moments, 2 * l->n_params * sizeof *moments);
}

/* The step's rows: order[0..n-1]. Their loss, and the gradient of its mean in grad. */
static int rows_gradient(struct spa_learner *l, const size_t *order, size_t n, double *loss)
{
    struct group *g = &l->rows;
    const uint64_t key = spa_noise64(l->cfg.seed, STREAM_DROPOUT, l->step.step);
    uint64_t n_tokens = 0;
    for (size_t i = 0; i < n; i++)
        n_tokens += g->f->rows[order[i]].head.n_loss;
    group_clear(g);
    for (size_t i = 0; i <= n; i++) {
        if (i < n && group_add(g, order[i], spa_noise64(key, 0, order[i])))
            continue;
        if (group_train(g, l->head, l->params, l->cfg.dropout, n_tokens, l->grad, loss) != 0)
            return -1;
        group_clear(g);
        if (i < n)
            group_add(g, order[i], spa_noise64(key, 0, order[i]));
    }
    *loss /= (double)n_tokens;
    return 0;
}

/* Some anchors each step, drawn anew: the penalty is a mean over their tokens. */
static void *anchors_gradient(void *learner)
{
    struct spa_learner *l = learner;
    struct group *g = &l->anchors;
    const uint64_t key = spa_noise64(l->cfg.seed, STREAM_ANCHORS, l->step.step);
    const size_t n = l->cfg.anchor_rows < g->f->n ? l->cfg.anchor_rows : g->f->n;
    uint64_t n_tokens = 0;
    for (size_t i = 0; i < n; i++)
        n_tokens += g->f->rows[spa_noise64(key, 0, i) % g->f->n].head.n_loss;
    const float share = l->cfg.anchor_weight / (float)n_tokens;
    memset(l->anchors_grad, 0, l->n_params * sizeof *l->anchors_grad);
    l->penalty = 0;
    group_clear(g);
    for (size_t i = 0; i <= n; i++) {
        if (i < n && group_add(g, (size_t)(spa_noise64(key, 0, i) % g->f->n), 0))
            continue;
        group_hold(g, l->params, share, l->anchors_grad, &l->penalty);
        group_clear(g);
        if (i < n)
            group_add(g, (size_t)(spa_noise64(key, 0, i) % g->f->n), 0);
    }
    return NULL;
}

int spa_learner_step(struct spa_learner *l, struct spa_learn_step *out, char *why, size_t why_len)
{
    struct spa_learn_step *step = &l->step;
    const size_t n_rows = l->rows.f->n, per_epoch = (n_rows + l->cfg.batch_rows - 1) / l->cfg.batch_rows;
    if (step->step == step->steps)
        return 0;
    step->epoch = (uint32_t)(step->step / per_epoch) + 1;
    if (l->order_epoch != step->epoch)
        shuffle(l->order, n_rows, l->cfg.seed, step->epoch);
    l->order_epoch = step->epoch;
    const size_t at = (size_t)(step->step % per_epoch) * l->cfg.batch_rows, left = n_rows - at;
    double loss = 0;
    pthread_t thread;
    step->step++;
    const bool beside = l->anchors.f && pthread_create(&thread, NULL, anchors_gradient, l) == 0;
    memset(l->grad, 0, l->n_params * sizeof *l->grad);
    const int rc = rows_gradient(l, l->order + at, left < l->cfg.batch_rows ? left : l->cfg.batch_rows, &loss);
    if (beside)
        pthread_join(thread, NULL);
    else if (l->anchors.f)
        anchors_gradient(l);
    if (rc != 0) {
        snprintf(why, why_len, "%s", l->head->why);
        return -1;
    }
    for (size_t i = 0; l->anchors.f && i < l->n_params; i++)
        l->grad[i] += l->anchors_grad[i];
    step->loss = (float)loss;
    step->penalty = (float)l->penalty;
    if (!isfinite(step->loss) || spa_clip_norm(l->grad, l->n_params, l->cfg.clip, &step->grad_norm) != SPA_OK) {
        snprintf(why, why_len, "training lost its footing at step %llu of %llu: %s is not a number; a smaller --lr may help",
                 (unsigned long long)step->step, (unsigned long long)step->steps, isfinite(step->loss) ? "the gradient" : "the loss");
        return -1;
    }
    struct spa_adamw adamw = l->cfg.adamw;
    adamw.lr = step->lr = l->cfg.adamw.lr * spa_cosine_schedule(step->step, l->cfg.warmup, step->steps + 1);   /* the last step counts too */
    spa_adamw_step(&adamw, step->step, l->n_params, l->params, l->grad, l->moments, l->moments + l->n_params);
    *out = *step;
    return 1;
}

/* The group's losses to their places. */
static int measure_group(struct group *g, struct spa_lm_head *h, const float *params, float **loss, int32_t **top)
{
    if (params)
        group_forward(g, params, 0);
    if (spa_lm_head_loss(h, g->state, g->target, g->n_loss, *loss, NULL, *top) != 0)
        return -1;
    *loss += g->n_loss;
    if (*top)
        *top += g->n_loss;
    group_clear(g);
    return 0;
}

int spa_learn_measure(const struct spa_shape *shape, const struct spa_features *f, struct spa_lm_head *h, const float *params,
                      float *loss, int32_t *top, struct spa_features_progress progress, char *why, size_t why_len)
{
    struct group g;
    size_t batch = f->n < GROUP_LOSS ? f->n : GROUP_LOSS;
    if (group_init(&g, shape, f, h, batch, why, why_len) != 0)
        return -1;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i <= f->n; i++) {
        if (i < f->n && group_add(&g, i, 0))
            continue;
        rc = measure_group(&g, h, params, &loss, &top);
        if (rc != 0)
            snprintf(why, why_len, "%s", h->why);
        else if (progress.done)
            progress.done(progress.user, i, f->n);
        if (rc == 0 && i < f->n)
            group_add(&g, i, 0);
    }
    group_free(&g);
    return rc;
}
