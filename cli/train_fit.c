/* train_fit.c - in: features and the LM head. out: the plugin's weights. Keeps a checkpoint beside the plugin's file while it lasts, from
 * which --resume goes on with the same bits. */
#define _POSIX_C_SOURCE 200809L
#include "train.h"
#include "checkpoint.h"
#include "members.h"
#include "sample.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FROM_EPOCHS = 16 };   /* at least, by default: with 8 old facts suffer from new ones (bench/RESULTS.md, More facts) */

/* Ladders that are trained one after another (members.h): one unless more are wished for. */
struct members {
    uint32_t n;
    struct spa_shape shape;    /* of one */
    size_t   n_params;         /* of one */
    uint64_t steps;            /* of one */
    float   *params;           /* [n][n_params] */
    uint32_t now;              /* the one that is being trained */
    double   saved;            /* when the last checkpoint was written */
};

/* The first one's is the run's own: a single ladder does not depend on whether it has company. */
static uint64_t seed_of(const struct spa_train *r, uint32_t member)
{
    return member == 0 ? r->wishes->seed : spa_noise64(r->wishes->seed, member, 0);
}

/* ---- what decides the course of a training: its checkpoint's key ---- */

static void put(uint8_t **at, const void *bytes, size_t len)
{
    memcpy(*at, bytes, len);
    *at += len;
}

static int course_key(const struct spa_train *r, const struct members *m, uint8_t key[SPA_SHA256_BYTES])
{
    const struct spa_plugin *p = &r->file.plugin;
    const struct spa_learn_config *c = &r->learn;
    const size_t params = m->n * m->n_params * sizeof(float), keys = r->store.n_all * sizeof *r->store.all;
    const size_t general = r->store.n_general * sizeof *r->store.general;
    const uint64_t numbers[] = {
        p->shape.d, p->shape.n_taps, p->shape.k, p->shape.r, p->shape.m, p->shape.e, p->shape.n_heads, p->shape.n_att, p->shape.n_ctx_taps,
        (uint64_t)p->shape.mode, (uint64_t)p->tap_dtype, c->epochs, c->batch_rows, c->warmup, c->anchor_rows, c->seed, r->store.n_all, r->f.n, r->general_f.n,
    };
    const float reals[] = { c->adamw.lr, c->adamw.beta1, c->adamw.beta2, c->adamw.eps, c->adamw.weight_decay, c->clip, c->dropout, c->anchor_weight };
    uint8_t *b = malloc(sizeof numbers + sizeof reals + sizeof p->shape.taps + 2 * SPA_SHA256_BYTES + params + keys + general), *at = b;
    if (!b)
        return -1;
    put(&at, numbers, sizeof numbers);
    put(&at, reals, sizeof reals);
    put(&at, p->shape.taps, p->shape.n_taps * sizeof *p->shape.taps);
    put(&at, p->base_hash, sizeof p->base_hash);
    put(&at, p->basis_hash, sizeof p->basis_hash);
    put(&at, m->params, params);
    put(&at, r->store.all, keys);
    put(&at, r->store.general, general);
    spa_sha256(b, (size_t)(at - b), key);
    free(b);
    return 0;
}

static int checkpoint_path(struct spa_train *r, char path[PATH_MAX])
{
    if ((size_t)snprintf(path, PATH_MAX, "%s.checkpoint", r->wishes->out) < PATH_MAX)
        return 0;
    return spa_train_say(r, "the plugin's name is too long for a checkpoint beside it; choose a shorter -o");
}

/* ---- the log ---- */

/* What an earlier run has written up to and with a step; later lines are steps that are taken again. */
static int keep_csv(const char *path, uint64_t step, char **text)
{
    FILE *f = fopen(path, "r");
    char line[256];
    size_t len = 0, cap = 0;
    *text = NULL;
    while (f && fgets(line, sizeof line, f)) {
        const size_t n = strlen(line);
        if (strtoull(line, NULL, 10) > step)
            break;
        if (len + n + 1 > cap) {
            char *more = realloc(*text, cap = 2 * (len + n + 1));
            if (!more) {
                fclose(f);
                return -1;
            }
            *text = more;
        }
        memcpy(*text + len, line, n + 1);
        len += n;
    }
    if (f)
        fclose(f);
    return 0;
}

static int open_csv(struct spa_train *r, uint64_t done)
{
    const char *path = r->wishes->csv;
    char *before = NULL;
    if (!path)
        return 0;
    if (done && keep_csv(path, done, &before) != 0)
        return spa_train_say(r, "out of memory for the log");
    r->csv = fopen(path, "w");
    if (!r->csv)
        snprintf(WHY, "%s: %s", path, strerror(errno));
    else
        fputs(before ? before : "step,epoch,lr,loss,penalty,grad_norm,seconds\n", r->csv);
    free(before);
    return r->csv ? 0 : -1;
}

int spa_train_close_csv(struct spa_train *r)
{
    if (!r->csv)
        return 0;
    bool bad = ferror(r->csv) != 0;
    bad = fclose(r->csv) != 0 || bad;
    r->csv = NULL;
    if (bad)
        snprintf(WHY, "%s: the log could not be written whole; the plugin is not affected", r->wishes->csv);
    return bad ? -1 : 0;
}

/* ---- epochs ---- */

static int held_loss(struct spa_train *r, const struct spa_shape *shape, const float *params, float *mean)
{
    double sum = 0;
    float *loss = malloc((r->held_f.n_loss + 1) * sizeof *loss);
    if (!loss)
        return spa_train_say(r, "out of memory for the losses");
    const int rc = spa_learn_measure(shape, &r->held_f, &r->head, params, loss, NULL, (struct spa_features_progress){ 0 }, WHY);
    for (uint64_t i = 0; i < r->held_f.n_loss; i++)
        sum += (double)loss[i] / (double)r->held_f.n_loss;
    free(loss);
    *mean = (float)sum;
    return rc;
}

static int epoch_ends(struct spa_train *r, const struct members *m, const struct spa_learn_step *s)
{
    float held = 0;
    const bool measured = r->wishes->report && r->held_f.n > 0;
    if (measured && held_loss(r, &m->shape, m->params + m->now * m->n_params, &held) != 0)
        return -1;
    if (measured)
        spa_report_epoch(&r->report, s->epoch, held, NAN);
    char of_held[32] = "";
    if (measured)
        snprintf(of_held, sizeof of_held, "  held back %.4f", (double)held);
    if (!r->progress.tty)
        spa_progress_say(&r->progress, "epoch %u/%u  loss %.4f%s  %.1f s", s->epoch, m->n * r->learn.epochs, r->epoch_loss / (double)r->epoch_steps,
                         of_held, spa_seconds() - r->progress.started);
    r->epoch_loss = 0;
    r->epoch_steps = 0;
    return 0;
}

static int take_note(struct spa_train *r, const struct members *m, const struct spa_learn_step *s)
{
    char note[96];
    if (r->csv)
        fprintf(r->csv, "%llu,%u,%.6g,%.6g,%.6g,%.6g,%.3f\n", (unsigned long long)s->step, s->epoch, (double)s->lr, (double)s->loss,
                (double)s->penalty, (double)s->grad_norm, spa_seconds() - r->progress.started);
    spa_report_step(&r->report, s->step, s->epoch, s->loss, s->lr);
    r->epoch_loss += (double)s->loss;
    r->epoch_steps++;
    snprintf(note, sizeof note, "epoch %u/%u  loss %.4f", s->epoch, m->n * r->learn.epochs, (double)s->loss);
    spa_progress_draw(&r->progress, s->step, s->steps, note);
    return s->step % (m->steps / r->learn.epochs) == 0 ? epoch_ends(r, m, s) : 0;
}

/* Where an interrupted run of the same course was: c's step, params and moments; step 0: at the beginning. */
static int resume(struct spa_train *r, const char *path, struct spa_checkpoint *c)
{
    if (!r->wishes->resume)
        return 0;
    const int rc = spa_checkpoint_load(path, c, WHY);
    if (rc == 0)
        spa_progress_say(&r->progress, "resume       no checkpoint '%s': from the beginning", path);
    return rc < 0 ? -1 : 0;
}

/* Steps are counted over all members. */
static int run_epochs(struct spa_train *r, struct members *m, struct spa_learner *l, struct spa_checkpoint *c, const char *path)
{
    struct spa_learn_step s;
    int rc;
    while ((rc = spa_learner_step(l, &s, WHY)) == 1) {
        s.step += m->now * m->steps;
        s.steps = m->n * m->steps;
        s.epoch += m->now * r->learn.epochs;
        if (take_note(r, m, &s) != 0)
            return -1;
        c->step = s.step;
        if (s.step < s.steps && spa_seconds() - m->saved >= (double)r->wishes->checkpoint_s) {
            if (r->csv)
                fflush(r->csv);   /* the log reaches as far as the checkpoint */
            if (spa_checkpoint_save(path, c, WHY) != 0)
                return -1;
            m->saved = spa_seconds();
            r->checkpoint_step = s.step;
        }
    }
    if (rc < 0 && r->checkpoint_step) {
        char cause[SPA_WHY_MAX];
        snprintf(cause, sizeof cause, "%s", r->why);
        snprintf(WHY, "%.500s; step %llu is kept in '%.400s'", cause, (unsigned long long)r->checkpoint_step, path);
    }
    return rc;
}

/* moments: of the member that c's step is in. */
static int train_members(struct spa_train *r, struct members *m, struct spa_checkpoint *c, const char *path)
{
    const struct spa_features *anchors = r->learn.anchor_weight > 0 && r->general_train.n ? &r->general_train : NULL;
    const float *moments = c->moments;
    const uint64_t begin = c->step;
    for (m->now = (uint32_t)(begin / m->steps); m->now < m->n; m->now++) {
        struct spa_learn_config cfg = r->learn;
        struct spa_learner *l;
        cfg.seed = seed_of(r, m->now);
        if (spa_learner_new(&l, &m->shape, &r->f, anchors, &r->head, &cfg, m->params + m->now * m->n_params, WHY) != 0)
            return -1;
        if (begin > m->now * m->steps)
            spa_learner_go_on(l, begin - m->now * m->steps, moments);
        c->moments = spa_learner_moments(l);
        const int rc = run_epochs(r, m, l, c, path);
        spa_learner_free(l);
        if (rc != 0)
            return -1;
    }
    return 0;
}

int spa_train_check_from(struct spa_train *r)
{
    const uint32_t n = (uint32_t)r->wishes->members;
    struct spa_shape shape;
    bool fits = spa_members_one(&r->from.plugin.shape, n, &shape) == SPA_OK;
    float *members = fits ? malloc(n * spa_param_count(&shape) * sizeof *members) : NULL;
    if (fits && !members)
        return spa_train_say(r, "out of memory for the plugin");
    fits = fits && spa_members_split(&shape, n, r->from.params, members);
    free(members);
    if (!fits)
        snprintf(WHY, "--from %.300s was not trained with --members %u; say the number that it was trained with, or leave it out to train it as one ladder",
                 r->wishes->from, n);
    return fits ? 0 : -1;
}

/* Fresh weights, or those to go on from. */
static void init_members(struct spa_train *r, struct members *m)
{
    for (uint32_t i = 0; !r->from.params && i < m->n; i++)
        spa_ladder_init(&m->shape, seed_of(r, i), m->params + i * m->n_params);
    if (r->from.params)
        spa_members_split(&m->shape, m->n, r->from.params, m->params);   /* spa_train_check_from has seen that it works */
}

/* The report's curve ends with the joined plugin. */
static int note_joined(struct spa_train *r, const struct members *m)
{
    float held;
    if (m->n == 1 || !r->wishes->report || r->held_f.n == 0)
        return 0;
    if (held_loss(r, &r->file.plugin.shape, r->file.params, &held) != 0)
        return -1;
    spa_report_epoch(&r->report, m->n * r->learn.epochs, held, NAN);
    return 0;
}

/* params: of all members, and moments: of one; both are freed by the caller. */
static int fit(struct spa_train *r, struct members *m, float *moments)
{
    char path[PATH_MAX];
    struct spa_checkpoint c = { .n_params = m->n * m->n_params, .n_moments = 2 * m->n_params, .params = m->params, .moments = moments };
    init_members(r, m);
    if (checkpoint_path(r, path) != 0)
        return -1;
    if (course_key(r, m, c.key) != 0)
        return spa_train_say(r, "out of memory for the rows' keys");
    spa_progress_begin(&r->progress, "epochs");
    if (resume(r, path, &c) != 0 || open_csv(r, c.step) != 0)
        return -1;
    r->checkpoint_step = c.step;
    m->saved = spa_seconds();
    char from[64] = "", members[32] = "";
    if (c.step)
        snprintf(from, sizeof from, ", from step %llu on", (unsigned long long)c.step);
    if (m->n > 1)
        snprintf(members, sizeof members, "%u members of ", m->n);
    spa_progress_measure(&r->progress, "steps", c.step);
    if (train_members(r, m, &c, path) != 0)
        return -1;
    spa_members_join(&m->shape, m->n, m->params, r->file.params);
    if (note_joined(r, m) != 0)
        return -1;
    r->seconds_epochs = spa_progress_end(&r->progress, "%s%u epochs, %llu steps%s, %zu parameters", members, r->learn.epochs,
                                         (unsigned long long)(m->n * m->steps), from, spa_param_count(&r->file.plugin.shape));
    return 0;
}

int spa_train_ladder(struct spa_train *r)
{
    const struct spa_train_wishes *w = r->wishes;
    struct members m = { .n = (uint32_t)w->members };
    r->learn = (struct spa_learn_config){
        .epochs = (uint32_t)w->epochs, .least_epochs = r->from.params ? FROM_EPOCHS : 0, .batch_rows = (uint32_t)w->batch, .clip = 1, .dropout = w->dropout, .seed = w->seed,
        .anchor_weight = w->anchor_weight, .anchor_rows = ANCHOR_ROWS,
        .adamw = { .lr = w->lr, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = w->weight_decay },
    };
    spa_learn_defaults(&r->learn, r->f.n);
    if (spa_members_one(&r->file.plugin.shape, m.n, &m.shape) != SPA_OK)
        return spa_train_say(r, "the plugin's shape is not that of its members");
    m.n_params = spa_param_count(&m.shape);
    m.steps = spa_learn_steps(&r->learn, r->f.n);
    m.params = malloc(m.n * m.n_params * sizeof *m.params);
    float *moments = malloc(2 * m.n_params * sizeof *moments);
    r->file.params = malloc(spa_param_count(&r->file.plugin.shape) * sizeof *r->file.params);
    const int rc = m.params && moments && r->file.params ? fit(r, &m, moments) : spa_train_say(r, "out of memory for the plugin");
    free(moments);
    free(m.params);
    return rc;
}

void spa_train_drop_checkpoint(struct spa_train *r)
{
    char path[PATH_MAX];
    if (checkpoint_path(r, path) == 0)
        unlink(path);
}
