/* train.c - `spa train`: rows in, a plugin file out. The cloud computes the frozen base's states once; everything after that runs
 * here. Phases: rows, link, head, basis, states, epochs, gate, file, eval. The file is written whole or not at all, and before
 * the eval, so that a cloud that goes away then costs nothing. */
#define _POSIX_C_SOURCE 200809L

#include "train.h"
#include "answer.h"
#include "commands.h"
#include "options.h"
#include "store.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

int spa_train_say(struct spa_train *r, const char *sentence)
{
    snprintf(WHY, "%s", sentence);
    return -1;
}

/* ---- the whole ---- */

static void print_summary(const struct spa_train *r, double memory_mb)
{
    const struct spa_training *t = &r->file.plugin.training;
    struct stat st = {0};
    stat(r->wishes->out, &st);
    printf("rows          %u, %u tokens that carry loss, %u epochs, %llu steps\n", t->rows, t->loss_tokens, t->epochs,
           (unsigned long long)t->steps);
    if (r->store.replayed)
        printf("replayed      %zu rows of %s\n", r->store.replayed, r->wishes->from);
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
    spa_report_print_trade(stdout, r->trade, r->n_trade, r->chosen);
    if (r->bytes_down + r->bytes_up == 0)
        printf("wire          0 bytes: all states were in %s\n", r->store.shown);
    else
        printf("wire          %.1f MB down, %.1f MB up\n", (double)r->bytes_down / 1e6, (double)r->bytes_up / 1e6);
    char left[SPA_WHY_MAX];
    spa_left_out_say(&r->store.left, left, sizeof left);
    if (left[0])
        printf("%-13s %s\n", "left out", left + strlen("left out: "));
    printf("memory        %.0f MB at most\n", memory_mb);
    printf("plugin        %s, %lld bytes\n", r->wishes->out, (long long)st.st_size);
    if (r->wishes->report)
        printf("report        %s\n", r->wishes->report);
}

/* Before long work: can everything be written that comes of it? */
static int check_outputs(struct spa_train *r)
{
    const struct spa_train_wishes *w = r->wishes;
    const char *const paths[] = { w->out, w->csv, w->report };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (paths[i] && spa_store_check_writable(paths[i], WHY) != 0)
            return -1;
    return 0;
}

static int train(struct spa_train *r, const char *const *paths, size_t n_paths)
{
    struct rusage usage = {0};
    r->started = spa_seconds();
    spa_progress_init(&r->progress, false);
    spa_report_init(&r->report);
    if (check_outputs(r) != 0 || spa_train_rows(r, paths, n_paths) != 0 || spa_train_meet(r) != 0 || spa_train_room(r) != 0 ||
        spa_train_states(r) != 0 || spa_train_ladder(r) != 0 || spa_train_gate(r) != 0)
        return -1;
    if (spa_plugin_file_save(r->wishes->out, &r->file, WHY) != 0)
        return -1;
    spa_train_drop_checkpoint(r);
    if (spa_train_forget(r) != 0)
        return -1;
    spa_features_free(&r->f);   /* the eval needs none of it */
    r->bytes_down += spa_lm_head_wire(&r->head).down;
    r->bytes_up += spa_lm_head_wire(&r->head).up;
    spa_lm_head_close(&r->head);
    if (spa_train_eval(r) != 0) {
        char cause[SPA_WHY_MAX];
        snprintf(cause, sizeof cause, "%s", r->why);
        snprintf(WHY, "%.300s is trained and saved, but not evaluated: %.600s", r->wishes->out, cause);
        return -1;
    }
    if (r->held.n > 0 && spa_plugin_file_save(r->wishes->out, &r->file, WHY) != 0)
        return -1;
    getrusage(RUSAGE_SELF, &usage);
    const double memory_mb = (double)usage.ru_maxrss / 1e3;
    if (spa_train_report(r, spa_seconds() - r->started, memory_mb) != 0)
        return -1;
    print_summary(r, memory_mb);
    return spa_train_close_csv(r);
}

static void run_free(struct spa_train *r)
{
    if (r->csv)
        fclose(r->csv);
    spa_features_free(&r->f);
    spa_features_free(&r->held_f);
    spa_features_free(&r->general_f);
    spa_train_store_free(r);
    spa_lm_head_close(&r->head);
    spa_plugin_file_free(&r->file);
    spa_rows_free(&r->rows);
    spa_train_answers_free(r);
    spa_rows_free(&r->held);
    spa_plugin_file_free(&r->from);
    free(r->general_train.rows);
    free(r->general_test.rows);
}

/* The paper's own form: every layer's output as it is, an inner width of d, no attention, z alone into the head. */
static void take_paper_form(struct spa_train_wishes *w)
{
    w->shape.taps = "all";
    w->shape.basis = w->shape.context = "none";
    w->shape.paper = true;
    w->mode = SPA_REPLACE;
    w->lr = 2e-4f;
    w->dropout = 0.1f;
    w->weight_decay = w->anchor_weight = 0;
    w->epochs = w->epochs ? w->epochs : 1;
}

/* Files beside the plugin unless they are named or not wanted. */
static int name_outputs(struct spa_train_wishes *w)
{
    static char csv[PATH_MAX], report[PATH_MAX];
    if ((size_t)snprintf(csv, sizeof csv, "%s.csv", w->out) >= sizeof csv || (size_t)snprintf(report, sizeof report, "%s.html", w->out) >= sizeof report)
        return -1;
    w->csv = w->csv ? w->csv : csv;
    w->report = w->report ? w->report : report;
    w->csv = strcmp(w->csv, "none") != 0 ? w->csv : NULL;
    w->report = strcmp(w->report, "none") != 0 ? w->report : NULL;
    return 0;
}

int spa_cmd_train(int argc, char **argv)
{
    static struct spa_train_wishes w = {
        .cloud.retry_s = SPA_RETRY_DEFAULT_S,
        .shape = { .taps = "auto", .basis = "task", .context = "all" },
        .rank = 64, .members = 1, .mode = SPA_ADD, .tap_dtype = 3, .state_dtype = 3, .lr = 3e-3f, .dropout = -1, .weight_decay = 0.1f, .seed = 1,
        .general = 400, .checkpoint_s = 10, .anchor_weight = -1, .replay = 1,
    };
    static struct spa_train r;
    enum { OWN = 35 };
    struct spa_option options[OWN + SPA_CONNECT_OPTIONS] = {
        { "out", "o", "FILE", "the plugin file to write, replaced whole", SPA_OPT_STRING, &w.out, 0, 0 },
        { "epochs", NULL, "N", "times over all rows (default: 8, more for few rows, 16 with --from)", SPA_OPT_INT, &w.epochs, 1, 10000 },
        { "lr", NULL, "X", "AdamW's learning rate at its peak (default 0.003)", SPA_OPT_FLOAT, &w.lr, 1e-8, 10 },
        { "rank", NULL, "N", "width of the ladder (default 64)", SPA_OPT_INT, &w.rank, 1, 4096 },
        { "members", NULL, "N", "ladders that are trained one after another and answer with their mean: better, for N times the epochs' time and a larger file (default 1)", SPA_OPT_INT, &w.members, 1, 16 },
        { "inner", NULL, "N", "inner width between rungs (default: as rank)", SPA_OPT_INT, &w.inner, 1, 65536 },
        { "taps", NULL, "WHICH", "auto, all, a number of taps, or layers as in 0,8,16 (default auto)", SPA_OPT_STRING, &w.shape.taps, 0, 0 },
        { "basis", NULL, "WHICH", "task:K projects taps on K directions of the rows' own states, generic:K on the cloud's of its model, none sends them whole (default task:64)", SPA_OPT_STRING, &w.shape.basis, 0, 0 },
        { "context", NULL, "WHICH", "taps that every token sends for attention: all, none, or layers (default all)", SPA_OPT_STRING, &w.shape.context, 0, 0 },
        { "context-width", NULL, "N", "numbers that a token's context is kept in; multiples of 4 keep four heads (default: as rank)", SPA_OPT_INT, &w.context_width, 1, 65536 },
        { "context-mix", NULL, "off|on", "context tokens attend to those before them, before the ladder attends to them (default off)", SPA_OPT_CHOICE, &w.context_mix, 0, 0 },
        { "mode", NULL, "replace|add", "logits from the plugin's state alone, or added to the base's (default add)", SPA_OPT_CHOICE, &w.mode, 0, 0 },
        { "loss", NULL, "all|last", "which answers of a row of several turns are learned (default all)", SPA_OPT_CHOICE, &w.last_answer_only, 0, 0 },
        { "batch", NULL, "N", "rows a step (default 20)", SPA_OPT_INT, &w.batch, 1, 100000 },
        { "general", NULL, "N", "general prompts on which the plugin learns to change nothing and the gate to keep quiet; 0: none (default 400)", SPA_OPT_INT, &w.general, 0, 1000 },
        { "dropout", NULL, "P", "share of units left out (default 0.1 beyond 6 epochs, else 0)", SPA_OPT_FLOAT, &w.dropout, 0, 0.95 },
        { "weight-decay", NULL, "X", "AdamW's weight decay (default 0.1)", SPA_OPT_FLOAT, &w.weight_decay, 0, 10 },
        { "eval", NULL, "SHARE|FILE", "rows to ask afterwards: a share such as 0.1 held back, or a file", SPA_OPT_STRING, &w.eval, 0, 0 },
        { "seed", NULL, "N", "the same seed and rows give the same plugin (default 1)", SPA_OPT_U64, &w.seed, 0, 0 },
        { "csv", NULL, "FILE|none", "log of every step (default: OUT with .csv appended)", SPA_OPT_STRING, &w.csv, 0, 0 },
        { "report", NULL, "FILE|none", "a page to look at afterwards (default: OUT with .html appended)", SPA_OPT_STRING, &w.report, 0, 0 },
        { "from", NULL, "FILE", "go on from this plugin: its shape, basis and weights", SPA_OPT_STRING, &w.from, 0, 0 },
        { "replay", NULL, "SHARE", "with --from: share of the older rows that are learned again (default 1)", SPA_OPT_FLOAT, &w.replay, 0, 1 },
        { "checkpoint", NULL, "SECONDS", "between two checkpoints, OUT with .checkpoint appended; 0: every step (default 10)", SPA_OPT_INT, &w.checkpoint_s, 0, 1 << 20 },
        { "resume", NULL, NULL, "go on where the same command was cut off", SPA_OPT_FLAG, &w.resume, 0, 0 },
        { "anchors", NULL, "X", "how hard general prompts hold the plugin back; 0: not at all (default 1, less beyond 300 rows, 0.3 from 1,000 on)", SPA_OPT_FLOAT, &w.anchor_weight, 0, 1e6 },
        { "paper", NULL, NULL, "the paper's own form: all raw taps, m = d, replace, dropout 0.1, lr 2e-4, cosine", SPA_OPT_FLAG, &w.paper, 0, 0 },
        { "tap-dtype", NULL, "f32|f16|i8", "form of taps on the wire (default i8 with a basis, else f16)", SPA_OPT_CHOICE, &w.tap_dtype, 0, 0 },
        { "state-dtype", NULL, "f32|f16|i8", "form of states on the wire (default i8 with a basis, else f16)", SPA_OPT_CHOICE, &w.state_dtype, 0, 0 },
        { "features", NULL, "FILE|none", "states of the rows, kept for later runs (default: OUT with .features appended)", SPA_OPT_STRING, &w.features, 0, 0 },
        { "fresh", NULL, NULL, "delete the feature file first: ask for all states again, fit the basis anew", SPA_OPT_FLAG, &w.fresh, 0, 0 },
        { "forget", NULL, NULL, "delete the feature file when the plugin is saved", SPA_OPT_FLAG, &w.forget, 0, 0 },
        { "cache-dir", NULL, "DIR", "where the model's LM head is kept (default ~/.cache/spa)", SPA_OPT_STRING, &w.cache_dir, 0, 0 },
        { "retry", NULL, "S", "a cloud that is lost is tried again for so many seconds, and the training goes on; 0: not (30)", SPA_OPT_INT, &w.cloud.retry_s, 0, 86400 },
        SPA_HEAD_OPTION(&w.head),
    };
    const struct spa_usage usage = {
        "spa train", "ROWS...",
        "Trains a plugin on this machine from rows of questions and answers: JSONL or JSON: OpenAI\n"
        "messages, ShareGPT, alpaca, prompt and completion, raw text.\n"
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
    if (name_outputs(&w) != 0) {
        fprintf(stderr, "spa train: -o is too long a name\n");
        return SPA_EXIT_USAGE;
    }
    if (w.paper)
        take_paper_form(&w);
    w.shape.rank = (uint32_t)w.rank;
    w.shape.inner = (uint32_t)w.inner;
    w.shape.context_width = (uint32_t)w.context_width;
    w.shape.context_mix = w.context_mix == 1;
    w.shape.mode = (enum spa_mode)w.mode;
    r.wishes = &w;
    rc = train(&r, (const char *const *)argv, (size_t)n_paths);
    if (rc != 0) {
        spa_progress_abort(&r.progress);
        spa_answer_complain("spa train", r.why);
    }
    run_free(&r);
    return rc == 0 ? 0 : 1;
}
