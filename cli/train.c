/* train.c - `spa train`: rows in, a plugin file out. The cloud computes the frozen base's states once; everything after that runs
 * here. Phases: rows, link, head, basis, states, epochs, gate, file, eval. The file is written whole or not at all, and before
 * the eval, so that a cloud that goes away then costs nothing. */
#define _POSIX_C_SOURCE 200809L

#include "basis.h"
#include "commands.h"
#include "connect.h"
#include "learn.h"
#include "options.h"
#include "plugin_shape.h"
#include "progress.h"
#include "score.h"
#include "store.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

enum { FILE_HEAD_BYTES = 16384 };   /* keys and tensor table of a plugin file, roughly */

struct wishes {
    struct spa_connect cloud;
    const char *out, *eval, *csv, *cache_dir;
    struct spa_shape_wishes shape;
    int32_t epochs, batch, rank, inner, mode, tap_dtype, state_dtype, general;
    float lr, dropout, weight_decay;
    uint64_t seed;
};

/* A run: what is made on the way. */
struct run {
    const struct wishes *wishes;
    struct spa_progress progress;
    struct spa_rows rows, held;
    struct spa_lm_head head;
    struct spa_plugin_file file;
    struct spa_features f, held_f;
    struct spa_features general_f;     /* of general prompts: where the plugin should keep quiet */
    double  general_rate;              /* share of them on which the gate fires */
    struct spa_learn_config learn;
    FILE   *csv;
    float  *loss, *base_loss;          /* per loss token of the rows */
    double  epoch_loss; uint64_t epoch_steps;
    double  held_loss, held_base_loss, gate_rate;
    struct spa_score score;
    double  seconds_head, seconds_states, seconds_epochs, seconds_gate, seconds_eval, started;
    uint64_t bytes_down, bytes_up;     /* of the links before eval */
    char    why[SPA_WHY_MAX];
};
#define WHY r->why, sizeof r->why

static int say(struct run *r, const char *sentence)
{
    snprintf(WHY, "%s", sentence);
    return -1;
}

/* ---- rows ---- */

static int read_rows(struct run *r, const char *const *paths, size_t n_paths)
{
    const char *eval = r->wishes->eval;
    spa_progress_begin(&r->progress, "rows");
    if (spa_rows_read(paths, n_paths, &r->rows, WHY) != 0)
        return -1;
    if (eval) {
        char *end;
        float share = strtof(eval, &end);
        bool is_share = *end == '\0' && end != eval;
        if (is_share && !(share > 0 && share < 1)) {
            snprintf(WHY, "--eval %s: a share of the rows lies between 0 and 1; otherwise name a file", eval);
            return -1;
        }
        int rc = is_share ? spa_rows_hold_back(&r->rows, share, r->wishes->seed, &r->held, WHY)
                          : spa_rows_read(&eval, 1, &r->held, WHY);
        if (rc != 0)
            return -1;
    }
    if (r->rows.n == 0)
        return say(r, "there is no row to learn from");
    spa_progress_end(&r->progress, "%zu to learn from, %zu held back", r->rows.n, r->held.n);
    return 0;
}

/* ---- the links before training ---- */

static void count_bytes(struct run *r, const struct spa_link *l)
{
    struct spa_link_bytes b = spa_link_bytes(l);
    r->bytes_down += b.down;
    r->bytes_up += b.up;
}

/* The model's numbers decide the plugin's shape, so the first link announces none. */
static int meet_cloud(struct run *r)
{
    struct spa_link *l;
    struct spa_plugin *p = &r->file.plugin;
    spa_progress_begin(&r->progress, "head");
    if (spa_connect_open(&r->wishes->cloud, NULL, 0, SPA_MESSAGE_MIN, &l, WHY) != 0)
        return -1;
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    int rc = spa_shape_from_wishes(&r->wishes->shape, w->d, w->n_layers, &p->shape, WHY);
    if (rc == 0)
        rc = spa_lm_head_open(&r->head, l, r->wishes->cache_dir, spa_progress_count, &r->progress, WHY);
    snprintf(p->base_name, sizeof p->base_name, "%.*s", (int)sizeof p->base_name - 1, w->model);
    p->has_base_hash = w->model_hash.size == SPA_HASH_BYTES;
    memcpy(p->base_hash, w->model_hash.bytes, sizeof p->base_hash);
    count_bytes(r, l);
    spa_link_close(l);
    if (rc != 0)
        return -1;
    enum { AS_FITS = 3 };
    p->tap_dtype = r->wishes->tap_dtype < AS_FITS ? (enum spa_dtype)r->wishes->tap_dtype : p->shape.basis ? SPA_I8 : SPA_F16;
    p->state_dtype = (enum spa_dtype)r->wishes->state_dtype;
    r->file.generic = spa_shape_wants_generic(&r->wishes->shape);
    r->seconds_head = spa_progress_end(&r->progress, "%s: %u layers, d %u, %.1f MB of LM head", p->base_name, p->shape.n_layers,
                                       p->shape.d, (double)r->head.len / 1e6);
    return 0;
}

/* A disk that is full in the end would cost the whole training; one that is full now costs nothing. */
static int check_room(struct run *r)
{
    const struct spa_shape *shape = &r->file.plugin.shape;
    const char *slash = strrchr(r->wishes->out, '/');
    char folder[PATH_MAX];
    struct statvfs disk;
    uint64_t needed = 4 * (uint64_t)(spa_param_count(shape) + spa_basis_floats(shape) + 2 * (size_t)shape->d) + FILE_HEAD_BYTES;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - r->wishes->out) + 1 : 1, slash ? r->wishes->out : ".");
    if (statvfs(folder, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= needed)
        return 0;   /* a file system that does not say has room until it has none */
    snprintf(WHY, "%.700s has no room for the plugin: it needs %.1f MB, %.1f MB are free", folder, (double)needed / 1e6,
             (double)disk.f_bavail * (double)disk.f_frsize / 1e6);
    return -1;
}

static int fit_basis(struct run *r, struct spa_link *l)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    uint8_t *basis;
    size_t len;
    if (!r->file.plugin.shape.basis)
        return 0;
    spa_progress_begin(&r->progress, "basis");
    if ((r->file.generic ? spa_features_generic(l, &basis, &len, r->file.plugin.basis_hash, WHY)
                         : spa_features_fit(l, &r->rows, &basis, &len, r->file.plugin.basis_hash, progress, WHY)) != 0)
        return -1;
    r->file.basis = (float *)(void *)basis;   /* from malloc, so aligned; plugin files and this code are little-endian */
    r->seconds_states += spa_progress_end(&r->progress, "%u taps, %u numbers each, %.0f kB", r->file.plugin.shape.n_taps,
                                          r->file.plugin.shape.k, (double)len / 1e3);
    return 0;
}

/* The base model's own answers to general prompts, for the gate: the cloud has them, with their states. */
static int ask_general(struct run *r, struct spa_link *l)
{
    if (r->wishes->general == 0)
        return 0;
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    spa_progress_begin(&r->progress, "general");
    if (spa_features_ask_anchors(&r->general_f, l, (size_t)r->wishes->general, progress, WHY) != 0)
        return -1;
    r->seconds_states += r->general_f.n ? spa_progress_end(&r->progress, "%zu general prompts and the base model's answers", r->general_f.n)
                                        : spa_progress_end(&r->progress, "the cloud has none: the gate learns from these rows alone");
    return 0;
}

static int ask_states(struct run *r)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    struct spa_link *l;
    if (spa_connect_open(&r->wishes->cloud, &r->file, 0, SPA_MESSAGE_MAX, &l, WHY) != 0)
        return -1;
    int rc = fit_basis(r, l);
    if (rc == 0) {
        spa_progress_begin(&r->progress, "states");
        rc = spa_features_ask(&r->f, l, &r->rows, progress, WHY);
        if (rc == 0 && r->held.n > 0)
            rc = spa_features_ask(&r->held_f, l, &r->held, progress, WHY);
    }
    if (rc == 0)
        r->seconds_states += spa_progress_end(&r->progress, "%llu tokens, %llu of them carry loss, %.1f MB",
                                              (unsigned long long)(r->f.n_tokens + r->held_f.n_tokens),
                                              (unsigned long long)(r->f.n_loss + r->held_f.n_loss),
                                              (double)(r->f.bytes + r->held_f.bytes) / 1e6);
    if (rc == 0)
        rc = ask_general(r, l);
    count_bytes(r, l);
    spa_link_close(l);
    return rc;
}

/* ---- training ---- */

static void on_step(void *user, const struct spa_learn_step *s)
{
    struct run *r = user;
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

static int train_ladder(struct run *r)
{
    const struct wishes *w = r->wishes;
    const struct spa_shape *shape = &r->file.plugin.shape;
    r->learn = (struct spa_learn_config){
        .epochs = (uint32_t)w->epochs, .batch_rows = (uint32_t)w->batch, .clip = 1, .dropout = w->dropout, .seed = w->seed,
        .adamw = { .lr = w->lr, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = w->weight_decay },
    };
    spa_learn_defaults(&r->learn, r->rows.n);
    r->file.params = malloc(spa_param_count(shape) * sizeof *r->file.params);
    if (!r->file.params)
        return say(r, "out of memory for the plugin");
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
static int measure(struct run *r, const struct spa_features *f, float **loss, float **base_loss)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    const struct spa_shape *shape = &r->file.plugin.shape;
    *loss = malloc((f->n_loss + 1) * sizeof **loss);
    *base_loss = malloc((f->n_loss + 1) * sizeof **base_loss);
    if (!*loss || !*base_loss)
        return say(r, "out of memory for the losses");
    if (spa_learn_measure(shape, f, &r->head, r->file.params, *loss, NULL, progress, WHY) != 0)
        return -1;
    return spa_learn_measure(shape, f, &r->head, NULL, *base_loss, NULL, progress, WHY);
}

static int train_gate(struct run *r)
{
    struct spa_plugin *p = &r->file.plugin;
    uint32_t d = p->shape.d;
    spa_progress_begin(&r->progress, "gate");
    if (measure(r, &r->f, &r->loss, &r->base_loss) != 0)
        return -1;
    r->file.gate_w = malloc(2 * (size_t)d * sizeof *r->file.gate_w);
    r->file.gate_b = malloc(2 * sizeof *r->file.gate_b);
    if (!r->file.gate_w || !r->file.gate_b)
        return say(r, "out of memory for the gate");
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
static int evaluate(struct run *r)
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

/* ---- the whole ---- */

static int open_csv(struct run *r)
{
    const char *path = r->wishes->csv;
    if (!path)
        return 0;
    r->csv = fopen(path, "w");
    if (!r->csv) {
        snprintf(WHY, "%s: %s", path, strerror(errno));
        return -1;
    }
    fputs("step,epoch,lr,loss,grad_norm,seconds\n", r->csv);
    return 0;
}

static int close_csv(struct run *r)
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

static void print_summary(const struct run *r)
{
    const struct spa_training *t = &r->file.plugin.training;
    struct stat st = {0};
    struct rusage usage = {0};
    stat(r->wishes->out, &st);
    getrusage(RUSAGE_SELF, &usage);
    printf("rows          %u, %u tokens that carry loss, %u epochs, %llu steps\n", t->rows, t->loss_tokens, t->epochs,
           (unsigned long long)t->steps);
    printf("seconds       %.1f: states %.1f, head %.1f, training %.1f, gate %.1f, eval %.1f\n", spa_seconds() - r->started,
           r->seconds_states, r->seconds_head, r->seconds_epochs, r->seconds_gate, r->seconds_eval);
    printf("loss          %.4f -> %.4f\n", (double)t->first_loss, (double)t->final_loss);
    if (r->held.n > 0)
        printf("held back     loss %.4f -> %.4f", r->held_base_loss, r->held_loss);
    if (r->held.n > 0 && r->score.rows > 0)
        printf(", exact match %.1f %% (%u of %u)", 100.0 * r->score.exact / r->score.rows, r->score.exact, r->score.rows);
    if (r->held.n > 0)
        putchar('\n');
    printf("gate          asks the device on %.0f %% of the tokens that carry loss\n", 100 * r->gate_rate);
    printf("wire          %.1f MB down, %.1f MB up\n", (double)r->bytes_down / 1e6, (double)r->bytes_up / 1e6);
    printf("memory        %.0f MB at most\n", (double)usage.ru_maxrss / 1e3);
    printf("plugin        %s, %lld bytes\n", r->wishes->out, (long long)st.st_size);
}

static int train(struct run *r, const char *const *paths, size_t n_paths)
{
    r->started = spa_seconds();
    spa_progress_init(&r->progress, false);
    if (spa_store_check_writable(r->wishes->out, WHY) != 0 ||
        (r->wishes->csv && spa_store_check_writable(r->wishes->csv, WHY) != 0) || read_rows(r, paths, n_paths) != 0 ||
        meet_cloud(r) != 0 || check_room(r) != 0 || ask_states(r) != 0 || open_csv(r) != 0 || train_ladder(r) != 0 || train_gate(r) != 0)
        return -1;
    if (spa_plugin_file_save(r->wishes->out, &r->file, WHY) != 0)
        return -1;
    spa_features_free(&r->f);   /* the eval needs none of it */
    spa_lm_head_close(&r->head);
    if (evaluate(r) != 0) {
        char cause[SPA_WHY_MAX];
        snprintf(cause, sizeof cause, "%s", r->why);
        snprintf(WHY, "%.300s is trained and saved, but not evaluated: %.600s", r->wishes->out, cause);
        return -1;
    }
    if (r->held.n > 0 && spa_plugin_file_save(r->wishes->out, &r->file, WHY) != 0)
        return -1;
    print_summary(r);
    return close_csv(r);
}

static void run_free(struct run *r)
{
    if (r->csv)
        fclose(r->csv);
    spa_features_free(&r->f);
    spa_features_free(&r->held_f);
    spa_features_free(&r->general_f);
    spa_lm_head_close(&r->head);
    spa_plugin_file_free(&r->file);
    spa_rows_free(&r->rows);
    spa_rows_free(&r->held);
    free(r->loss);
    free(r->base_loss);
}

int spa_cmd_train(int argc, char **argv)
{
    static struct wishes w = {
        .shape = { .taps = "auto", .basis = "task", .context = "all" },
        .rank = 32, .mode = SPA_ADD, .tap_dtype = 3, .state_dtype = SPA_F16, .lr = 3e-3f, .dropout = -1, .weight_decay = 0.1f, .seed = 1,
        .general = 64,
    };
    static struct run r;
    enum { OWN = 18 };
    struct spa_option options[OWN + SPA_CONNECT_OPTIONS] = {
        { "out", "o", "FILE", "the plugin file to write, replaced whole", SPA_OPT_STRING, &w.out, 0, 0 },
        { "epochs", NULL, "N", "times over all rows (default: 4, more for few rows)", SPA_OPT_INT, &w.epochs, 1, 10000 },
        { "lr", NULL, "X", "AdamW's learning rate at its peak (default 0.003)", SPA_OPT_FLOAT, &w.lr, 1e-8, 10 },
        { "rank", NULL, "N", "width of the ladder (default 32)", SPA_OPT_INT, &w.rank, 1, 4096 },
        { "inner", NULL, "N", "inner width between rungs (default: as rank)", SPA_OPT_INT, &w.inner, 1, 65536 },
        { "taps", NULL, "WHICH", "auto, all, a number of taps, or layers as in 0,8,16 (default auto)", SPA_OPT_STRING, &w.shape.taps, 0, 0 },
        { "basis", NULL, "WHICH", "task:K projects taps on K directions of the rows' own states, generic:K on the cloud's of its model, none sends them whole (default task:64)", SPA_OPT_STRING, &w.shape.basis, 0, 0 },
        { "context", NULL, "WHICH", "taps that every token sends for attention: all, none, or layers (default all)", SPA_OPT_STRING, &w.shape.context, 0, 0 },
        { "mode", NULL, "replace|add", "logits from the plugin's state alone, or added to the base's (default add)", SPA_OPT_CHOICE, &w.mode, 0, 0 },
        { "batch", NULL, "N", "rows a step (default 20)", SPA_OPT_INT, &w.batch, 1, 100000 },
        { "general", NULL, "N", "general prompts on which the gate learns to keep quiet; 0: none (default 64)", SPA_OPT_INT, &w.general, 0, 1000 },
        { "dropout", NULL, "P", "share of units left out (default 0.1 beyond 6 epochs, else 0)", SPA_OPT_FLOAT, &w.dropout, 0, 0.95 },
        { "weight-decay", NULL, "X", "AdamW's weight decay (default 0.1)", SPA_OPT_FLOAT, &w.weight_decay, 0, 10 },
        { "eval", NULL, "SHARE|FILE", "rows to ask afterwards: a share such as 0.1 held back, or a file", SPA_OPT_STRING, &w.eval, 0, 0 },
        { "seed", NULL, "N", "the same seed and rows give the same plugin (default 1)", SPA_OPT_U64, &w.seed, 0, 0 },
        { "csv", NULL, "FILE", "log of every step", SPA_OPT_STRING, &w.csv, 0, 0 },
        { "tap-dtype", NULL, "f32|f16|i8", "form of taps on the wire (default i8 with a basis, else f16)", SPA_OPT_CHOICE, &w.tap_dtype, 0, 0 },
        { "state-dtype", NULL, "f32|f16", "form of states on the wire (default f16)", SPA_OPT_CHOICE, &w.state_dtype, 0, 0 },
        { "cache-dir", NULL, "DIR", "where the model's LM head is kept (default ~/.cache/spa)", SPA_OPT_STRING, &w.cache_dir, 0, 0 },
    };
    const struct spa_usage usage = {
        "spa train", "ROWS...",
        "Trains a plugin on this machine from rows of questions and answers: JSONL or JSON, OpenAI messages or alpaca.\n"
        "The rows go to the cloud once, for the frozen model's states; the plugin's weights never leave this machine.",
        options, sizeof options / sizeof options[0], 1, 10000,
    };
    spa_connect_options(&w.cloud, options + OWN);
    int n_paths, rc = spa_options_parse(&usage, argc, argv, &n_paths);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    if (!w.out) {
        fprintf(stderr, "spa train: -o FILE is missing; 'spa train --help' lists all options\n");
        return SPA_EXIT_USAGE;
    }
    w.shape.rank = (uint32_t)w.rank;
    w.shape.inner = (uint32_t)w.inner;
    w.shape.mode = (enum spa_mode)w.mode;
    r.wishes = &w;
    rc = train(&r, (const char *const *)argv, (size_t)n_paths);
    if (rc != 0) {
        spa_progress_abort(&r.progress);
        fprintf(stderr, "spa train: %s\n", r.why);
    }
    run_free(&r);
    return rc == 0 ? 0 : 1;
}
