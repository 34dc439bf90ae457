/* learn.h - training on the device: the ladder first, then the gate. In: features of all rows and the frozen LM head. Out:
 * weights. No wire, no files, no clock; the same rows, settings and seed give the same bits on the same machine.
 *
 *   state = y_fin + z (add) or z (replace),   loss = mean cross-entropy of head(state) over the loss tokens of a step's rows */
#ifndef SPA_DEVICE_LEARN_H
#define SPA_DEVICE_LEARN_H

#include "adamw.h"
#include "row_features.h"
#include "head.h"

struct spa_learn_config {
    uint32_t epochs, batch_rows;
    uint32_t least_epochs;      /* where epochs are chosen by spa_learn_defaults */
    uint32_t warmup;            /* steps */
    struct spa_adamw adamw;     /* lr is the schedule's peak */
    float    clip;              /* limit of the gradient's norm; 0: none */
    float    dropout;
    float    anchor_weight;
    uint32_t anchor_rows;       /* a step */
    uint64_t seed;              /* of weights, order, dropout and choice of anchors */
};

/* The recipe's settings for so many rows: what the command line does not say. epochs and batch_rows 0: chosen here;
 * dropout negative: 0.1 when there are many epochs; anchor_weight negative: 1 up to 300 rows, then less, 0.3 from 1,000 on, since many facts
 * need what holds a few back (bench/RESULTS.md, One hundred facts). */
void     spa_learn_defaults(struct spa_learn_config *cfg, size_t n_rows);
uint64_t spa_learn_steps(const struct spa_learn_config *cfg, size_t n_rows);

struct spa_learn_step {
    uint64_t step, steps;       /* from 1 */
    uint32_t epoch;             /* from 1 */
    float    lr, loss, grad_norm;
    float    penalty;           /* of the anchors, weight included */
};

/* Training of params (spa_ladder_init first, or older weights to go on from), step by step; all pointers are borrowed until free.
 * shape: the whole one; its taps, k, d, mode are those of f. anchors: rows on which the plugin should change nothing, NULL for none:
 * each step adds anchor_weight * mean |z - z0|^2 / d over the tokens of anchor_rows of them, z0 = 0 (add) or y_fin (replace). */
struct spa_learner;
int  spa_learner_new(struct spa_learner **out, const struct spa_shape *shape, const struct spa_features *f, const struct spa_features *anchors,
                     struct spa_lm_head *h, const struct spa_learn_config *cfg, float *params, char *why, size_t why_len);
void spa_learner_free(struct spa_learner *l);   /* takes NULL */
/* 1: a step was taken, *out tells of it; 0: there is none left; -1 with a sentence: a loss or gradient that is no number names its
 * step, and params are as they were before it. */
int  spa_learner_step(struct spa_learner *l, struct spa_learn_step *out, char *why, size_t why_len);
/* What a checkpoint needs beside params and the number of the last step: AdamW's moments, [2 params]. Going on from both gives the
 * bits that training would have given without a break. */
float *spa_learner_moments(struct spa_learner *l);
void   spa_learner_go_on(struct spa_learner *l, uint64_t step, const float *moments);

/* Loss and top token of every loss token (f->n_loss of them, in the rows' order), without dropout. params NULL: the base model,
 * head(y_fin). top may be NULL. */
int spa_learn_measure(const struct spa_shape *shape, const struct spa_features *f, struct spa_lm_head *h, const float *params,
                      float *loss, int32_t *top, struct spa_features_progress progress, char *why, size_t why_len);

/* A gate's weights, borrowed: of y_fin alone (width d), or of y_fin and the taps (d + n_taps k). */
struct spa_gate {
    size_t width;
    float *w, *b;              /* [2, width], [2] (gate.h) */
};

/* Gate: logistic regression on what it reads, class 1 where the plugin does no harm: its loss is no larger than the base's by SPA_GATE_MARGIN
 * nats or more. (Class 1 only where it helps asks the device less, but on unseen rows such a gate keeps quiet on tokens that count:
 * bench/RESULTS.md.) Every loss token of `general` (general.h; NULL: none) is class 0. Fills the gate. */
#define SPA_GATE_MARGIN 0.05f
int spa_learn_gate(const struct spa_features *f, const float *loss, const float *base_loss, const struct spa_features *general,
                   uint64_t seed, const struct spa_gate *gate, char *why, size_t why_len);

/* Share of the loss tokens on which a gate fires. */
int spa_learn_gate_rate(const struct spa_features *f, const struct spa_gate *gate, float threshold, double *rate, char *why, size_t why_len);

/* ---- what a threshold costs ---- */

/* Features and what plugin and base would say: top tokens of every loss token, in spa_learn_measure's order. Borrowed. */
struct spa_learn_tops {
    const struct spa_features *f;
    const int32_t *top, *base_top;     /* [f->n_loss] */
};

/* Shares from 0 to 1. A row is exact when every token that is said is its target: the plugin's top token where the gate fires, the
 * base's elsewhere. That is what greedy decoding gives, since it follows the targets until the first miss. */
struct spa_gate_trade {
    float  threshold;
    double exact;              /* of the rows */
    double fires;              /* of the rows' loss tokens */
    double general_fires;      /* of the general loss tokens; this and what follows NaN when there are none */
    double general_changed;    /* of the general loss tokens: fires, and the plugin says another token than the base */
    double general_same;       /* of the general answers: no token changed */
};

enum { SPA_GATE_THRESHOLDS = 14 };
extern const float spa_gate_thresholds[SPA_GATE_THRESHOLDS];   /* 0.02 to 0.99, rising: worth trying */

/* One line of trade [n] for each of thresholds [n], each in (0, 1). rows: personal ones, best such as training has not seen.
 * general: NULL for none. Reads the features once. 0, or -1 with a sentence. */
int spa_learn_gate_trade(const struct spa_learn_tops *rows, const struct spa_learn_tops *general, const struct spa_gate *gate,
                         const float *thresholds, size_t n, struct spa_gate_trade *trade, char *why, size_t why_len);

/* The line to take, an index into trade [n], n > 0: of those whose exact match is at most one point (0.01) below the best one, the
 * one that changes least in general answers; then that fires least there, then on the rows; then the lowest threshold. */
size_t spa_learn_gate_choose(const struct spa_gate_trade *trade, size_t n);

#endif
