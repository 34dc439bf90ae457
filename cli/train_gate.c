/* train_gate.c - in: features, the trained ladder. out: the gate, its threshold and what it costs, how well the plugin answers what was
 * held back, and the report of the run. */
#define _POSIX_C_SOURCE 200809L
#include "train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- general rows: most to train on, some to see what a threshold costs ---- */

enum { TEST_EVERY = 5 };

static void add_row(struct spa_features *f, const struct spa_feature_row *row)
{
    f->rows[f->n++] = *row;
    f->n_loss += row->head.n_loss;
    f->n_tokens += row->head.n_tokens;
}

/* Two views into general_f, whose rows they share. */
int spa_train_split_general(struct spa_train *r)
{
    struct spa_features *all = &r->general_f, *sets[2] = { &r->general_train, &r->general_test };
    for (int i = 0; i < 2; i++) {
        *sets[i] = *all;
        sets[i]->n = 0;
        sets[i]->n_loss = sets[i]->n_tokens = 0;
        sets[i]->rows = malloc((all->n + 1) * sizeof *all->rows);
        if (!sets[i]->rows)
            return spa_train_say(r, "out of memory for the general rows");
    }
    const bool enough = all->n >= 2 * TEST_EVERY;
    for (size_t i = 0; i < all->n; i++)
        add_row(sets[enough && i % TEST_EVERY == TEST_EVERY - 1], &all->rows[i]);
    return 0;
}

/* ---- losses ---- */

static double mean(const float *x, uint64_t n)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)x[i];
    return n ? sum / (double)n : 0;
}

/* Of some rows: losses and top tokens, with the plugin and without. */
struct measured {
    float   *loss, *base_loss;
    int32_t *top, *base_top;
};

static void measured_free(struct measured *m)
{
    free(m->loss);
    free(m->base_loss);
    free(m->top);
    free(m->base_top);
}

static int measure(struct spa_train *r, const struct spa_features *f, struct measured *m)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    const struct spa_shape *shape = &r->file.plugin.shape;
    const size_t n = f->n_loss + 1;
    *m = (struct measured){ malloc(n * sizeof *m->loss), malloc(n * sizeof *m->base_loss), malloc(n * sizeof *m->top), malloc(n * sizeof *m->base_top) };
    if (!m->loss || !m->base_loss || !m->top || !m->base_top)
        return spa_train_say(r, "out of memory for the losses");
    if (f->n == 0)
        return 0;
    if (spa_learn_measure(shape, f, &r->head, r->file.params, m->loss, m->top, progress, WHY) != 0)
        return -1;
    return spa_learn_measure(shape, f, &r->head, NULL, m->base_loss, m->base_top, progress, WHY);
}

/* ---- gate ---- */

enum { HELLO_GATE_MAX = 512 << 10 };   /* bytes; spa-cloud takes messages of 1 MiB */

static struct spa_gate gate_of(const struct spa_train *r)
{
    return (struct spa_gate){ spa_gate_width(&r->file.plugin), r->file.gate_w, r->file.gate_b };
}

/* It reads the taps as well as y_fin, which by itself says what comes next more than what it is about: bench/RESULTS.md. The paper's
 * reads y_fin, and so does one that would make HELLO longer than clouds take it (raw taps of a wide model). */
static int fit_gate(struct spa_train *r, const struct measured *m)
{
    struct spa_plugin *p = &r->file.plugin;
    p->gate_taps = !r->wishes->shape.paper && spa_wire_gate_bytes(&p->shape, true) <= HELLO_GATE_MAX;
    r->file.gate_w = malloc(2 * spa_gate_width(p) * sizeof *r->file.gate_w);
    r->file.gate_b = malloc(2 * sizeof *r->file.gate_b);
    if (!r->file.gate_w || !r->file.gate_b)
        return spa_train_say(r, "out of memory for the gate");
    p->has_gate = p->gate_has_bias = true;
    const struct spa_gate gate = gate_of(r);
    return spa_learn_gate(&r->f, m->loss, m->base_loss, r->general_train.n ? &r->general_train : NULL, r->wishes->seed, &gate, WHY);
}

/* On training rows' states, and on held-back rows where the right answer is given, a gate is surer than in a chat: it is to fire readily.
 * Up to 0.3 it answers other words a point worse than always asking does; 0.7, chosen on 300 held-back rows, lost 8 of them (bench/RESULTS.md). */
static size_t thresholds_to_choose_from(void)
{
    size_t n = SPA_GATE_THRESHOLDS;
    while (n > 1 && spa_gate_thresholds[n - 1] > 0.3f)
        n--;
    return n;
}

static int choose_threshold(struct spa_train *r, const struct measured *own, const struct measured *held, const struct measured *test)
{
    const struct spa_learn_tops rows = r->held.n ? (struct spa_learn_tops){ &r->held_f, held->top, held->base_top }
                                                 : (struct spa_learn_tops){ &r->f, own->top, own->base_top };
    const struct spa_learn_tops general = { &r->general_test, test->top, test->base_top };
    const struct spa_gate gate = gate_of(r);
    r->n_trade = SPA_GATE_THRESHOLDS;   /* all are shown: who wants the device asked less may take another */
    if (spa_learn_gate_trade(&rows, r->general_test.n ? &general : NULL, &gate, spa_gate_thresholds, r->n_trade, r->trade, WHY) != 0)
        return -1;
    r->chosen = spa_learn_gate_choose(r->trade, thresholds_to_choose_from());
    r->file.plugin.gate_threshold = r->trade[r->chosen].threshold;
    return 0;
}

static void note_training(struct spa_train *r, const struct measured *own, const struct measured *held)
{
    r->held_loss = mean(held->loss, r->held_f.n_loss);
    r->held_base_loss = mean(held->base_loss, r->held_f.n_loss);
    r->file.plugin.training = (struct spa_training){
        .rows = (uint32_t)r->f.n, .loss_tokens = (uint32_t)r->f.n_loss, .epochs = (uint32_t)r->wishes->members * r->learn.epochs,
        .steps = (uint64_t)r->wishes->members * spa_learn_steps(&r->learn, r->f.n), .seed = r->wishes->seed,
        .first_loss = (float)mean(own->base_loss, r->f.n_loss), .final_loss = (float)mean(own->loss, r->f.n_loss),
        .eval_exact_match = -1,
    };
}

int spa_train_gate(struct spa_train *r)
{
    struct measured own = { 0 }, held = { 0 }, test = { 0 };
    spa_progress_begin(&r->progress, "gate");
    int rc = measure(r, &r->f, &own) == 0 && measure(r, &r->held_f, &held) == 0 && measure(r, &r->general_test, &test) == 0 ? 0 : -1;
    if (rc == 0)
        rc = fit_gate(r, &own);
    if (rc == 0)
        rc = choose_threshold(r, &own, &held, &test);
    const struct spa_gate gate = gate_of(r);   /* no sooner: it was made just now */
    if (rc == 0)
        rc = spa_learn_gate_rate(&r->f, &gate, r->file.plugin.gate_threshold, &r->gate_rate, WHY);
    if (rc == 0)
        note_training(r, &own, &held);
    measured_free(&own);
    measured_free(&held);
    measured_free(&test);
    if (rc != 0)
        return -1;
    char general[64] = "";
    if (r->general_test.n)
        snprintf(general, sizeof general, ", %.0f %% of general ones", 100 * r->trade[r->chosen].general_fires);
    r->seconds_gate = spa_progress_end(&r->progress, "threshold %g: asks the device on %.0f %% of these tokens%s",
                                       (double)r->file.plugin.gate_threshold, 100 * r->gate_rate, general);
    return 0;
}

/* ---- eval: through the cloud, as a chat would go ---- */

static void answers_free(char **answers, size_t n)
{
    for (size_t i = 0; answers && i < n; i++)
        free(answers[i]);
    free(answers);
}

/* What the base alone says to the first held-back questions, for the report. */
static int ask_base(struct spa_train *r, struct spa_talk *t, int32_t n_predict)
{
    struct spa_rows few = r->held;
    struct spa_score score;
    if (few.n > EXAMPLES_MAX)
        few.n = EXAMPLES_MAX;
    r->base_answers = calloc(few.n + 1, sizeof *r->base_answers);
    if (!r->base_answers)
        return spa_train_say(r, "out of memory for the answers");
    return spa_score_rows(&t, NULL, &few, spa_GateMode_GATE_NEVER, n_predict, &score, r->base_answers, NULL, NULL, WHY);
}

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
    const int32_t n_predict = (int32_t)r->held_f.max_loss + 1;   /* one token more than the longest right answer tells a longer one from it */
    r->answers = calloc(r->held.n, sizeof *r->answers);
    if (rc == 0 && !r->answers)
        rc = spa_train_say(r, "out of memory for the answers");
    if (rc == 0)
        rc = spa_score_rows(&t, NULL, &r->held, spa_GateMode_GATE_AUTO, n_predict, &r->score, r->answers, spa_progress_count32, &r->progress, WHY);
    if (rc == 0 && r->wishes->report)
        rc = ask_base(r, t, n_predict);
    spa_talk_free(t);
    spa_link_close(l);
    if (rc != 0)
        return -1;
    r->file.plugin.training.eval_exact_match = r->score.rows ? (float)r->score.exact / (float)r->score.rows : 0;
    r->seconds_eval = spa_progress_end(&r->progress, "%u of %u answers exact", r->score.exact, r->score.rows);
    return 0;
}

/* ---- report ---- */

static char *text_of(const struct spa_example *row, bool answer)
{
    for (size_t i = row->n_parts; i-- > 0;) {
        const struct spa_part *p = &row->parts[i];
        if (p->loss != answer)
            continue;
        char *text = malloc(p->len + (size_t)1);
        if (text) {
            memcpy(text, p->bytes, p->len);
            text[p->len] = '\0';
        }
        return text;
    }
    return NULL;
}

int spa_train_report(struct spa_train *r, double seconds, double memory_mb)
{
    struct spa_report *rep = &r->report;
    const struct spa_plugin *p = &r->file.plugin;
    struct spa_report_example examples[EXAMPLES_MAX] = { { 0 } };
    char *texts[2 * EXAMPLES_MAX] = { NULL };
    size_t n = 0;
    if (!r->wishes->report)
        return 0;
    rep->plugin = r->wishes->out;
    rep->base_model = p->base_name;
    rep->rows = r->f.n;
    rep->held_rows = r->held.n;
    rep->loss_tokens = r->f.n_loss;
    rep->parameters = spa_param_count(&p->shape);
    rep->epochs = r->file.plugin.training.epochs;
    rep->seed = r->wishes->seed;
    if (r->held.n) {
        rep->base_held_loss = r->held_base_loss;
        rep->held_loss = r->held_loss;
        rep->exact = r->score.rows ? (double)r->score.exact / r->score.rows : NAN;
    }
    rep->trade = r->trade;
    rep->n_trade = r->n_trade;
    rep->chosen = r->chosen;
    rep->trade_held_out = r->held.n > 0;
    for (size_t i = 0; r->answers && r->base_answers && i < r->held.n && n < EXAMPLES_MAX; i++, n++) {
        char *question = texts[2 * n] = text_of(&r->held.rows[i], false), *expected = texts[2 * n + 1] = text_of(&r->held.rows[i], true);
        const char *base = r->base_answers[i], *answer = r->answers[i];
        examples[n] = (struct spa_report_example){
            question, expected, base, answer,
            SPA_REPORT_HELD_OUT | (expected && base && spa_score_same(expected, base) ? SPA_REPORT_BASE_EXACT : 0) |
                (expected && answer && spa_score_same(expected, answer) ? SPA_REPORT_EXACT : 0)
        };
    }
    rep->examples = examples;
    rep->n_examples = n;
    spa_report_phase(rep, "states", r->seconds_states);
    spa_report_phase(rep, "LM head", r->seconds_head);
    spa_report_phase(rep, "epochs", r->seconds_epochs);
    spa_report_phase(rep, "gate", r->seconds_gate);
    spa_report_phase(rep, "eval", r->seconds_eval);
    spa_report_phase(rep, "all", seconds);
    spa_report_number(rep, "wire, down", "%.1f MB", (double)r->bytes_down / 1e6);
    spa_report_number(rep, "wire, up", "%.1f MB", (double)r->bytes_up / 1e6);
    spa_report_number(rep, "memory at most", "%.0f MB", memory_mb);
    const int rc = spa_report_write(rep, r->wishes->report, WHY);
    for (size_t i = 0; i < 2 * EXAMPLES_MAX; i++)
        free(texts[i]);
    return rc;
}

void spa_train_answers_free(struct spa_train *r)
{
    answers_free(r->answers, r->held.n);
    answers_free(r->base_answers, r->held.n < EXAMPLES_MAX ? r->held.n : EXAMPLES_MAX);
}
