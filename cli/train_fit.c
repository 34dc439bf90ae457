/* train_fit.c - in: features and the LM head. out: the plugin's weights, its gate, and how well it answers what was held back. */
#include "train.h"

#include <stdlib.h>
#include <string.h>

static void on_step(void *user, const struct spa_learn_step *s)
{
    struct spa_train *r = user;
    double seconds = spa_seconds() - r->progress.started;
    uint64_t per_epoch = s->steps / r->learn.epochs;
    char note[96];
    if (r->csv)
        fprintf(r->csv, "%llu,%u,%.6g,%.6g,%.6g,%.3f\n", (unsigned long long)s->step, s->epoch, (double)s->lr, (double)s->loss,
                (double)s->grad_norm, seconds);
    r->epoch_loss += (double)s->loss;
    r->epoch_steps++;
    snprintf(note, sizeof note, "epoch %u/%u  loss %.4f  %.1f steps/s", s->epoch, r->learn.epochs, (double)s->loss,
             (double)s->step / (seconds + 1e-9));
    spa_progress_draw(&r->progress, s->step, s->steps, note);
    if (s->step % per_epoch == 0) {
        if (!r->progress.tty)
            spa_progress_say(&r->progress, "epoch %u/%u  loss %.4f  %.1f s", s->epoch, r->learn.epochs,
                             r->epoch_loss / (double)r->epoch_steps, seconds);
        r->epoch_loss = 0;
        r->epoch_steps = 0;
    }
}

int spa_train_ladder(struct spa_train *r)
{
    const struct spa_train_wishes *w = r->wishes;
    const struct spa_shape *shape = &r->file.plugin.shape;
    r->learn = (struct spa_learn_config){
        .epochs = (uint32_t)w->epochs, .batch_rows = (uint32_t)w->batch, .clip = 1, .dropout = w->dropout, .seed = w->seed,
        .adamw = { .lr = w->lr, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = w->weight_decay },
    };
    spa_learn_defaults(&r->learn, r->rows.n);
    r->file.params = malloc(spa_param_count(shape) * sizeof *r->file.params);
    if (!r->file.params)
        return spa_train_say(r, "out of memory for the plugin");
    spa_ladder_init(shape, w->seed, r->file.params);
    spa_progress_begin(&r->progress, "epochs");
    if (spa_learn_ladder(shape, &r->f, &r->head, &r->learn, r->file.params, on_step, r, WHY) != 0)
        return -1;
    r->seconds_epochs = spa_progress_end(&r->progress, "%u epochs, %llu steps, %zu parameters", r->learn.epochs,
                                         (unsigned long long)spa_learn_steps(&r->learn, r->rows.n), spa_param_count(shape));
    return 0;
}

static double mean(const float *x, uint64_t n)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)x[i];
    return n ? sum / (double)n : 0;
}

/* Losses of f's tokens with the plugin and without, into arrays that are the caller's to free. */
static int measure(struct spa_train *r, const struct spa_features *f, float **loss, float **base_loss)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    const struct spa_shape *shape = &r->file.plugin.shape;
    *loss = malloc((f->n_loss + 1) * sizeof **loss);
    *base_loss = malloc((f->n_loss + 1) * sizeof **base_loss);
    if (!*loss || !*base_loss)
        return spa_train_say(r, "out of memory for the losses");
    if (spa_learn_measure(shape, f, &r->head, r->file.params, *loss, NULL, progress, WHY) != 0)
        return -1;
    return spa_learn_measure(shape, f, &r->head, NULL, *base_loss, NULL, progress, WHY);
}

int spa_train_gate(struct spa_train *r)
{
    struct spa_plugin *p = &r->file.plugin;
    uint32_t d = p->shape.d;
    spa_progress_begin(&r->progress, "gate");
    if (measure(r, &r->f, &r->loss, &r->base_loss) != 0)
        return -1;
    r->file.gate_w = malloc(2 * (size_t)d * sizeof *r->file.gate_w);
    r->file.gate_b = malloc(2 * sizeof *r->file.gate_b);
    if (!r->file.gate_w || !r->file.gate_b)
        return spa_train_say(r, "out of memory for the gate");
    p->has_gate = p->gate_has_bias = true;
    p->gate_threshold = 0.5f;
    if (spa_learn_gate(&r->f, r->loss, r->base_loss, r->general_f.n ? &r->general_f : NULL, r->wishes->seed, r->file.gate_w, r->file.gate_b, WHY) != 0 ||
        spa_learn_gate_rate(&r->f, r->file.gate_w, r->file.gate_b, p->gate_threshold, &r->gate_rate, WHY) != 0 ||
        (r->general_f.n && spa_learn_gate_rate(&r->general_f, r->file.gate_w, r->file.gate_b, p->gate_threshold, &r->general_rate, WHY) != 0))
        return -1;
    if (r->held.n > 0) {
        float *loss = NULL, *base_loss = NULL;
        int rc = measure(r, &r->held_f, &loss, &base_loss);
        if (rc == 0) {
            r->held_loss = mean(loss, r->held_f.n_loss);
            r->held_base_loss = mean(base_loss, r->held_f.n_loss);
        }
        free(loss);
        free(base_loss);
        if (rc != 0)
            return -1;
    }
    p->training = (struct spa_training){
        .rows = (uint32_t)r->rows.n, .loss_tokens = (uint32_t)r->f.n_loss, .epochs = r->learn.epochs,
        .steps = spa_learn_steps(&r->learn, r->rows.n), .seed = r->wishes->seed,
        .first_loss = (float)mean(r->base_loss, r->f.n_loss), .final_loss = (float)mean(r->loss, r->f.n_loss),
        .eval_exact_match = -1,
    };
    r->seconds_gate = spa_progress_end(&r->progress, "asks the device on %.0f %% of these tokens, %.0f %% of general ones", 100 * r->gate_rate,
                                       100 * r->general_rate);
    return 0;
}

/* ---- eval ---- */

/* Through the cloud, as a chat would go. */
int spa_train_eval(struct spa_train *r)
{
    struct spa_link *l;
    struct spa_talk *t = NULL;
    if (r->held.n == 0)
        return 0;
    spa_progress_begin(&r->progress, "eval");
    if (spa_connect_open(&r->wishes->cloud, &r->file, 0, SPA_MESSAGE_MAX, &l, WHY) != 0)
        return -1;
    int rc = spa_talk_new(&t, l, &r->file, WHY);
    if (rc == 0)   /* one token more than the longest right answer tells a longer one from it */
        rc = spa_score_rows(t, &r->held, spa_GateMode_GATE_AUTO, (int32_t)r->held_f.max_loss + 1, &r->score, NULL,
                            spa_progress_count32, &r->progress, WHY);
    spa_talk_free(t);
    spa_link_close(l);
    if (rc != 0)
        return -1;
    r->file.plugin.training.eval_exact_match = r->score.rows ? (float)r->score.exact / (float)r->score.rows : 0;
    r->seconds_eval = spa_progress_end(&r->progress, "%u of %u answers exact", r->score.exact, r->score.rows);
    return 0;
}
