/* eval.c - `spa eval`: a plugin against the base model on rows. Answers go through the cloud as in a chat; losses and top tokens
 * are computed here from the cloud's states and the LM head. */
#define _POSIX_C_SOURCE 200809L

#include "answer.h"
#include "commands.h"
#include "connect.h"
#include "learn.h"
#include "options.h"
#include "progress.h"
#include "score.h"
#include "store.h"

#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct wishes {
    struct spa_connect cloud;
    const char *plugin, *cache_dir;
    int32_t head, gate, n_predict, limit, context_window, state_dtype;
    bool    json, pad;
};

struct results {
    uint64_t rows, loss_tokens;
    double   loss, base_loss, agreement, gate_rate;
    struct spa_score score, base;
    double   seconds;
};

struct run {
    const struct wishes *wishes;
    struct spa_progress progress;
    struct spa_rows rows;
    struct spa_plugin_file file;     /* without --plugin: what the base's own states need, and no more */
    bool   has_plugin;
    struct spa_lm_head head;
    struct spa_feature_file *store;  /* the states, in a file without a name */
    struct spa_features f;
    struct spa_left_out left;
    struct spa_link *link;
    struct spa_clouds clouds;
    struct spa_retry retry;
    struct results results;
    char   why[SPA_WHY_MAX];
};
#define WHY r->why, sizeof r->why

/* The features of the base alone still come through a plugin's announcement: one raw tap, no ladder behind it. */
static int announce_base(struct run *r)
{
    struct spa_link *l;
    if (spa_connect_open(&r->wishes->cloud, NULL, 0, SPA_MESSAGE_MIN, &l, WHY) != 0)
        return -1;
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    r->file.plugin.shape = (struct spa_shape){ .d = w->d, .n_layers = w->n_layers, .r = 1, .m = 1, .n_taps = 1,
        .taps = { w->n_layers }, .k = w->d, .normalise = SPA_NORM_RMS, .mode = SPA_ADD };
    r->file.plugin.tap_dtype = r->file.plugin.state_dtype = SPA_F16;
    spa_link_close(l);
    return 0;
}

static int open_link(void *run, char *why, size_t why_len)
{
    struct run *r = run;
    return spa_connect_again(&r->wishes->cloud, &r->clouds, &r->file, 0, SPA_MESSAGE_MAX, &r->link, why, why_len);
}

/* In place of a link that is lost, as rc says; WHY says why. */
static int open_link_again(struct run *r, int rc)
{
    if (rc == SPA_LINK_REFUSED)
        r->clouds.refused |= 1u << r->clouds.at;
    spa_link_close(r->link);
    r->link = NULL;
    return spa_connect_until(&r->retry, r->wishes->cloud.retry_s, open_link, r, NULL, WHY);
}

static int open_talk(struct run *r, struct spa_talk **t)
{
    const int rc = spa_talk_new(t, r->link, r->has_plugin ? &r->file : NULL, WHY);
    if (rc == 0) {
        spa_talk_window(*t, (uint32_t)r->wishes->context_window);
        spa_talk_pad(*t, r->wishes->pad);
    }
    return rc;
}

static int talk_again(void *run, int rc, bool fresh, struct spa_talk **t, char *why, size_t why_len)
{
    struct run *r = run;
    (void)why;       /* the run's own */
    (void)why_len;
    if (fresh)
        r->retry.begun = false;
    spa_talk_free(*t);
    *t = NULL;
    return open_link_again(r, rc) == 0 ? open_talk(r, t) : -1;
}

static int score(struct run *r, const char *phase, bool with_plugin, struct spa_score *out)
{
    static const spa_GateMode modes[] = { spa_GateMode_GATE_AUTO, spa_GateMode_GATE_ALWAYS, spa_GateMode_GATE_NEVER };
    /* One token more than the longest right answer tells a longer one from it. */
    int32_t n_predict = r->wishes->n_predict > 0 ? r->wishes->n_predict : (int32_t)r->f.max_loss + 1;
    struct spa_talk *t = NULL;
    spa_progress_begin(&r->progress, phase);
    const struct spa_score_again again = { talk_again, r };
    int rc = open_talk(r, &t);
    if (rc == 0)
        rc = spa_score_rows(&t, &again, &r->rows, with_plugin ? modes[r->wishes->gate] : spa_GateMode_GATE_NEVER, n_predict, out, NULL,
                            spa_progress_count32, &r->progress, WHY);
    spa_talk_free(t);
    if (rc == 0)
        spa_progress_end(&r->progress, "%u of %u answers exact", out->exact, out->rows);
    return rc;
}

/* States of all rows; rows that the cloud refuses leave the run and are named. */
static int ask_states(struct run *r)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    const struct spa_plugin *p = &r->file.plugin;
    const char *tmp = getenv("TMPDIR");
    char left[SPA_WHY_MAX];
    spa_Plugin announced;
    spa_wire_plugin_from_shape(&p->shape, &announced);
    announced.tap_dtype = (spa_Dtype)p->tap_dtype;
    announced.basis_hash.size = p->shape.basis ? SPA_HASH_BYTES : 0;
    memcpy(announced.basis_hash.bytes, p->basis_hash, SPA_HASH_BYTES);
    struct spa_feature_key *keys = spa_features_keys(&r->rows);
    int rc = keys ? 0 : -1;
    if (rc != 0)
        snprintf(WHY, "out of memory for the rows' keys");
    if (rc == 0)
        rc = spa_feature_file_open(&r->store, NULL, tmp && tmp[0] ? tmp : "/tmp", WHY);
    if (rc == 0)
        rc = spa_feature_file_start(r->store, &spa_link_session(r->link)->welcome, &announced, r->file.basis, WHY);
    if (rc == 0)
        rc = spa_features_ask(r->store, r->link, SPA_FEATURE_ROW, &r->rows, keys, progress, WHY);
    while (rc == SPA_FEATURES_LOST && open_link_again(r, -1) == 0)   /* the rows that came are in the file */
        rc = spa_features_ask(r->store, r->link, SPA_FEATURE_ROW, &r->rows, keys, progress, WHY);
    if (rc == 0)
        rc = spa_feature_file_finish(r->store, WHY);
    if (rc == 0)
        rc = spa_features_bind(&r->f, r->store, SPA_FEATURE_ROW, keys, r->rows.n, &r->rows, &r->left, WHY);
    free(keys);
    r->retry.begun = false;
    if (rc != 0)
        return -1;
    spa_progress_end(&r->progress, "%llu tokens, %llu of them carry loss", (unsigned long long)r->f.n_tokens,
                     (unsigned long long)r->f.n_loss);
    spa_left_out_say(&r->left, left, sizeof left);
    if (left[0])
        spa_progress_say(&r->progress, "%s", left);
    return 0;
}

static int talk_to_cloud(struct run *r)
{
    spa_progress_begin(&r->progress, "states");
    if (spa_connect_head(&r->wishes->cloud, r->wishes->head, &r->head, r->link, r->wishes->cache_dir, spa_progress_count, &r->progress, WHY) != 0 || ask_states(r) != 0)
        return -1;
    if (score(r, "base", false, &r->results.base) != 0)
        return -1;
    return r->has_plugin ? score(r, "plugin", true, &r->results.score) : 0;
}

static double mean(const float *x, uint64_t n)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)x[i];
    return n ? sum / (double)n : 0;
}

/* Share of the expected answers' tokens, the end token among them, for which the device is asked. */
static int find_gate_rate(struct run *r)
{
    static float no_bias[2];
    const struct spa_plugin_file *f = &r->file;
    enum { AUTO, ALWAYS };
    r->results.gate_rate = r->wishes->gate == ALWAYS || (r->wishes->gate == AUTO && !f->gate_w) ? 1 : 0;   /* without a gate the device is always asked */
    if (r->wishes->gate != AUTO || !f->gate_w)
        return 0;
    const struct spa_gate gate = { spa_gate_width(&f->plugin), f->gate_w, f->gate_b ? f->gate_b : no_bias };
    return spa_learn_gate_rate(&r->f, &gate, f->plugin.gate_threshold, &r->results.gate_rate, WHY);
}

/* Losses, and how often plugin and base would say the same after the same words. */
static int compare(struct run *r)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    const struct spa_shape *shape = &r->file.plugin.shape;
    uint64_t n = r->f.n_loss, same = 0;
    float *loss = malloc(n * sizeof *loss);
    int32_t *top = malloc(n * sizeof *top), *base_top = malloc(n * sizeof *base_top);
    int rc = loss && top && base_top ? 0 : -1;
    spa_progress_begin(&r->progress, "loss");
    if (rc != 0)
        snprintf(WHY, "out of memory for the losses");
    if (rc == 0)
        rc = spa_learn_measure(shape, &r->f, &r->head, NULL, loss, base_top, progress, WHY);
    if (rc == 0)
        r->results.base_loss = mean(loss, n);
    if (rc == 0 && r->has_plugin)
        rc = spa_learn_measure(shape, &r->f, &r->head, r->file.params, loss, top, progress, WHY);
    if (rc == 0 && r->has_plugin) {
        r->results.loss = mean(loss, n);
        for (uint64_t i = 0; i < n; i++)
            same += top[i] == base_top[i];
        r->results.agreement = (double)same / (double)n;
        rc = find_gate_rate(r);
    }
    if (rc == 0)
        spa_progress_end(&r->progress, "done");
    free(loss);
    free(top);
    free(base_top);
    return rc;
}

static double ratio(uint64_t a, uint64_t b) { return b ? (double)a / (double)b : 0; }

static json_t *real_or_null(bool known, double x) { return known ? json_real(x) : json_null(); }

static int print_json(const struct run *r)
{
    const struct results *s = &r->results;
    bool plugin = r->has_plugin, asked = s->score.gated > 0;
    json_t *o = json_object();
    json_object_set_new(o, "rows", json_integer((json_int_t)s->rows));
    json_object_set_new(o, "loss_tokens", json_integer((json_int_t)s->loss_tokens));
    json_object_set_new(o, "exact_match", real_or_null(plugin && s->score.rows, ratio(s->score.exact, s->score.rows)));
    json_object_set_new(o, "loss", real_or_null(plugin, s->loss));
    json_object_set_new(o, "base_exact_match", real_or_null(s->base.rows > 0, ratio(s->base.exact, s->base.rows)));
    json_object_set_new(o, "base_loss", json_real(s->base_loss));
    json_object_set_new(o, "gate_rate", real_or_null(plugin, s->gate_rate));
    json_object_set_new(o, "agreement", real_or_null(plugin, s->agreement));
    json_object_set_new(o, "bytes_down_per_gated", real_or_null(asked, ratio(s->score.bytes_down, s->score.gated)));
    json_object_set_new(o, "bytes_up_per_gated", real_or_null(asked, ratio(s->score.bytes_up, s->score.gated)));
    json_object_set_new(o, "seconds", json_real(s->seconds));
    int rc = o ? json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(o);
    return rc;
}

static void print_table(const struct run *r)
{
    const struct results *s = &r->results;
    printf("%-22s %llu, %llu tokens that carry loss\n", "rows", (unsigned long long)s->rows, (unsigned long long)s->loss_tokens);
    if (s->base.rows)   /* raw text has losses only */
        printf("%-22s %.1f %% (%u of %u)\n", "base: exact match", 100 * ratio(s->base.exact, s->base.rows), s->base.exact, s->base.rows);
    printf("%-22s %.4f\n", "base: loss", s->base_loss);
    if (r->has_plugin) {
        if (s->score.rows)
            printf("%-22s %.1f %% (%u of %u)\n", "plugin: exact match", 100 * ratio(s->score.exact, s->score.rows), s->score.exact,
                   s->score.rows);
        printf("%-22s %.4f\n", "plugin: loss", s->loss);
        printf("%-22s %.1f %% of the tokens\n", "gate", 100 * s->gate_rate);
        printf("%-22s %.1f %% of the tokens\n", "agreement with base", 100 * s->agreement);
        printf("%-22s %.0f down, %.0f up\n", "bytes per gated token", ratio(s->score.bytes_down, s->score.gated),
               ratio(s->score.bytes_up, s->score.gated));
    }
    printf("%-22s %.1f\n", "seconds", s->seconds);
}

static int eval(struct run *r, const char *const *paths, size_t n_paths)
{
    double started = spa_seconds();
    if (spa_rows_read(paths, n_paths, &r->rows, WHY) != 0)
        return -1;
    if (r->wishes->limit > 0 && (size_t)r->wishes->limit < r->rows.n)
        r->rows.n = (size_t)r->wishes->limit;
    r->has_plugin = r->wishes->plugin != NULL;
    int rc = r->has_plugin ? spa_plugin_file_load(r->wishes->plugin, &r->file, WHY) : announce_base(r);
    if (rc == 0 && r->wishes->state_dtype != SPA_AS_TRAINED)
        r->file.plugin.state_dtype = (enum spa_dtype)r->wishes->state_dtype;
    if (rc == 0)
        rc = open_link(r, WHY);
    if (rc == 0)
        rc = talk_to_cloud(r);
    spa_link_close(r->link);
    if (rc == 0)
        rc = compare(r);
    r->results.rows = r->rows.n;
    r->results.loss_tokens = r->f.n_loss;
    r->results.seconds = spa_seconds() - started;
    return rc;
}

static void run_free(struct run *r)
{
    spa_features_free(&r->f);
    spa_feature_file_close(r->store);
    spa_lm_head_close(&r->head);
    spa_plugin_file_free(&r->file);
    spa_rows_free(&r->rows);
}

int spa_cmd_eval(int argc, char **argv)
{
    static struct wishes w = { .state_dtype = SPA_AS_TRAINED, .cloud.retry_s = SPA_RETRY_DEFAULT_S };
    static struct run r;
    enum { OWN = 11 };
    struct spa_option options[OWN + SPA_CONNECT_OPTIONS] = {
        { "plugin", NULL, "FILE", "the plugin to measure; without it the base model alone", SPA_OPT_STRING, &w.plugin, 0, 0 },
        { "gate", NULL, "auto|always|never", "when the plugin is asked (default auto)", SPA_OPT_CHOICE, &w.gate, 0, 0 },
        { "n", "n", "MAX", "at most so many tokens an answer (default: one more than the longest right answer)", SPA_OPT_INT, &w.n_predict, 1, 1 << 20 },
        { "context-window", NULL, "N", "for its answers the plugin looks back on at most N tokens; losses are over whole rows (default: the cloud's context)",
          SPA_OPT_INT, &w.context_window, 1, 1 << 30 },
        { "limit", NULL, "N", "only the first N rows", SPA_OPT_INT, &w.limit, 1, 1 << 30 },
        { "json", NULL, NULL, "print one JSON object", SPA_OPT_FLAG, &w.json, 0, 0 },
        { "cache-dir", NULL, "DIR", "where the model's LM head is kept (default ~/.cache/spa)", SPA_OPT_STRING, &w.cache_dir, 0, 0 },
        SPA_HEAD_OPTION(&w.head),
        SPA_STATE_DTYPE_OPTION(&w.state_dtype),
        SPA_PAD_OPTION(&w.pad),
        SPA_RETRY_OPTION(&w.cloud.retry_s),
    };
    const struct spa_usage usage = {
        "spa eval", "ROWS...",
        "Asks every row's question, with the plugin and without, and compares with the expected answer, white space at both\n"
        "ends aside. Loss is the mean cross-entropy of the expected answers' tokens.",
        options, sizeof options / sizeof options[0], 1, 10000,
    };
    spa_connect_options(&w.cloud, options + OWN);
    int n_paths, rc = spa_options_parse(&usage, argc, argv, &n_paths);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    r.wishes = &w;
    spa_progress_init(&r.progress, w.json);
    rc = eval(&r, (const char *const *)argv, (size_t)n_paths);
    if (rc == 0) {
        if (w.json)
            rc = print_json(&r);
        else
            print_table(&r);
    } else {
        spa_progress_abort(&r.progress);
        spa_answer_complain("spa eval", r.why);
    }
    run_free(&r);
    return rc == 0 ? 0 : 1;
}
