/* train.h - what the files of `spa train` share: its options (train.c), the way to the states (train_states.c), the epochs, gate and
 * eval on them (train_fit.c). Every function returns 0, or -1 with a sentence in run->why. */
#ifndef SPA_TRAIN_H
#define SPA_TRAIN_H

#include "connect.h"
#include "learn.h"
#include "plugin_shape.h"
#include "report.h"
#include "progress.h"
#include "score.h"
#include "store.h"

#include <stdio.h>

struct spa_train_wishes {
    struct spa_connect cloud;
    const char *out, *eval, *csv, *cache_dir;
    const char *features;              /* NULL: beside out; "none" */
    const char *from, *report;
    bool    fresh, forget, resume, paper;
    struct spa_shape_wishes shape;
    int32_t head, checkpoint_s, epochs, members, batch, rank, inner, context_width, context_mix, mode, tap_dtype, state_dtype, general, last_answer_only;
    float lr, dropout, weight_decay, anchor_weight, replay;
    uint64_t seed;
};

/* The feature file, and what it is to hold for this run (train_states.c). */
struct spa_train_store {
    struct spa_feature_file *file;
    const char *shown;                 /* for sentences; NULL: without a name */
    spa_Welcome model;
    struct spa_clouds clouds;
    struct spa_retry retry;            /* begun: the cloud is lost, and no row has come since */
    bool    said_pace;                 /* how long the states take, where a key has so many tokens a minute */
    bool    complete;                  /* the file and the cached head serve: no cloud is asked */
    uint64_t there;                    /* records that were there before */
    struct spa_feature_key *rows, *held, *general;
    struct spa_feature_key *all;       /* [n_all] what is trained on: rows, then those of older runs that are replayed */
    size_t  n_general, n_all, replayed;
    struct spa_left_out left;
};

enum { ANCHOR_ROWS = 8, EXAMPLES_MAX = 24 };   /* general rows a step; questions shown in the report */

/* A run: what is made on the way. */
struct spa_train {
    const struct spa_train_wishes *wishes;
    struct spa_progress progress;
    struct spa_rows rows, held;
    struct spa_lm_head head;
    struct spa_plugin_file file;
    struct spa_train_store store;
    struct spa_features f, held_f;
    struct spa_features general_f;     /* of general prompts: where the plugin should keep quiet */
    struct spa_features general_train, general_test;   /* views into it: to train on, to see what a threshold costs */
    struct spa_plugin_file from;       /* --from: the plugin to go on from */
    struct spa_learn_config learn;
    FILE   *csv;
    double  epoch_loss; uint64_t epoch_steps, checkpoint_step;
    struct spa_gate_trade trade[SPA_GATE_THRESHOLDS];
    size_t  n_trade, chosen;
    char  **answers, **base_answers;   /* to the held-back questions; base_answers to the first EXAMPLES_MAX */
    struct spa_report report;
    double  held_loss, held_base_loss, gate_rate;
    struct spa_score score;
    double  seconds_head, seconds_states, seconds_epochs, seconds_gate, seconds_eval, started;
    uint64_t bytes_down, bytes_up;     /* of the links before eval */
    char    why[SPA_WHY_MAX];
};
#define WHY r->why, sizeof r->why

int spa_train_say(struct spa_train *r, const char *sentence);

/* train_states.c, in this order */
int spa_train_rows(struct spa_train *r, const char *const *paths, size_t n_paths);   /* reads rows, holds some back */
int spa_train_meet(struct spa_train *r);           /* the model's numbers, the plugin's shape, the LM head */
int spa_train_room(struct spa_train *r);           /* is there room on the disk for the plugin? */
int spa_train_states(struct spa_train *r);         /* basis and features of all rows; rows without features leave rows and held */
int spa_train_forget(struct spa_train *r);         /* with --forget the feature file goes; its mapping stays */
void spa_train_store_free(struct spa_train *r);

/* train_fit.c */
int  spa_train_check_from(struct spa_train *r);         /* --from: was it trained with so many members? Before anything is asked */
int  spa_train_ladder(struct spa_train *r);
int  spa_train_close_csv(struct spa_train *r);
void spa_train_drop_checkpoint(struct spa_train *r);    /* it has served */

/* train_gate.c, in this order */
int  spa_train_split_general(struct spa_train *r);      /* before the ladder */
int  spa_train_gate(struct spa_train *r);
int  spa_train_eval(struct spa_train *r);               /* asks the held-back questions through the cloud */
int  spa_train_report(struct spa_train *r, double seconds, double memory_mb);
void spa_train_answers_free(struct spa_train *r);

#endif
