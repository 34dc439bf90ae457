/* bench.c - `spa bench`: how fast a cloud answers this machine, without the plugin and with it, in one table.
 *
 * The same question again and again, the settings in turns, so that what else the machines do falls on all of them alike. */
#include "answer.h"
#include "commands.h"
#include "progress.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODES = 3, REPETITIONS_MAX = 100, TOKENS = 64 };

static const struct { const char *name; spa_GateMode gate; } modes[MODES] = {
    { "base alone", spa_GateMode_GATE_NEVER }, { "gate auto", spa_GateMode_GATE_AUTO }, { "gate always", spa_GateMode_GATE_ALWAYS },
};

/* Of one answer. */
enum figure { TOKENS_S, FIRST_MS, TOKEN_MS, ASKED, WAITS, DOWN, UP, LADDER_US, FIGURES };
static const char *const names[FIGURES] = { "tokens_per_second", "first_token_ms", "ms_per_token", "asked_share", "waits_per_token",
                                            "bytes_down_per_token", "bytes_up_per_token", "device_us_per_token" };

struct bench {
    struct spa_answer_options o;
    struct spa_answer answer;
    int32_t repetitions;
    double  figures[MODES][FIGURES][REPETITIONS_MAX];
    double  connect_ms;
};

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int32_t n, double q)
{
    return sorted[(int32_t)(q * (n - 1) + 0.5)];
}

/* The first token waits for the prompt: speed is of those behind it. */
static void note(const struct spa_talk_stats *s, double figures[FIGURES][REPETITIONS_MAX], int32_t run)
{
    const double n = s->tokens ? s->tokens : 1, behind = s->tokens > 1 ? s->tokens - 1 : 1;
    const double seconds = (double)(s->ended_us - s->first_token_us) / 1e6;
    const double of[FIGURES] = {
        [TOKENS_S] = seconds > 0 ? behind / seconds : 0, [FIRST_MS] = (double)(s->first_token_us - s->started_us) / 1e3,
        [TOKEN_MS] = 1e3 * seconds / behind, [ASKED] = s->gated / n, [WAITS] = s->waits / n,
        [DOWN] = (double)s->bytes_down / n, [UP] = (double)s->bytes_up / n, [LADDER_US] = (double)s->ladder_us / n,
    };
    for (int f = 0; f < FIGURES; f++)
        figures[f][run] = of[f];
}

/* Without a plugin only the first mode has a meaning; without a gate auto is always. */
static bool has_mode(const struct bench *b, int mode)
{
    return mode == 0 || (b->o.plugin_path && (mode == 2 || b->answer.plugin.gate_w));
}

static int measure(struct bench *b)
{
    const struct spa_part part = { .kind = SPA_PART_USER, .bytes = (const uint8_t *)b->o.prompt, .len = (uint32_t)strlen(b->o.prompt) };
    for (int32_t run = -1; run < b->repetitions; run++)   /* the first round only warms up */
        for (int m = 0; m < MODES; m++) {
            if (!has_mode(b, m))
                continue;
            b->answer.settings.gate = modes[m].gate;
            const int rc = spa_answer_run(&b->answer, &part, 1, false);
            if (rc != 0)
                return rc;
            if (b->answer.finish == spa_Finish_FINISH_CANCELLED)
                return SPA_EXIT_INTERRUPTED;
            if (run >= 0) {
                const struct spa_talk_stats s = spa_answer_stats(&b->answer);
                note(&s, b->figures[m], run);
            }
        }
    for (int m = 0; m < MODES; m++)
        for (int f = 0; f < FIGURES; f++)
            qsort(b->figures[m][f], (size_t)b->repetitions, sizeof(double), compare);
    return 0;
}

static double median(const struct bench *b, int mode, enum figure f)
{
    return quantile(b->figures[mode][f], b->repetitions, 0.5);
}

static void print_table(const struct bench *b)
{
    printf("connected in %.1f ms; %d answers of each kind, medians; bytes are of messages, the prompt's too, without WebSocket and TLS\n\n", b->connect_ms,
           b->repetitions);
    printf("%-12s %8s %17s %9s %9s %7s %7s %8s %8s %10s\n", "", "tokens/s", "from, to", "first ms", "ms/token", "asked", "waits", "B down",
           "B up", "device us");
    for (int m = 0; m < MODES; m++) {
        if (!has_mode(b, m))
            continue;
        const double *speed = b->figures[m][TOKENS_S];
        printf("%-12s %8.1f %8.1f %8.1f %9.1f %9.2f %6.0f%% %7.2f %8.0f %8.0f %10.1f\n", modes[m].name, median(b, m, TOKENS_S),
               quantile(speed, b->repetitions, 0), quantile(speed, b->repetitions, 1), median(b, m, FIRST_MS), median(b, m, TOKEN_MS), 100 * median(b, m, ASKED),
               median(b, m, WAITS), median(b, m, DOWN), median(b, m, UP), median(b, m, LADDER_US));
    }
}

static int print_json(const struct bench *b)
{
    json_t *o = json_pack("{s:f, s:i, s:o}", "connect_ms", b->connect_ms, "repetitions", b->repetitions, "modes", json_object());
    json_t *all = o ? json_object_get(o, "modes") : NULL;
    for (int m = 0; m < MODES; m++) {
        json_t *one = has_mode(b, m) ? json_object() : NULL;
        for (int f = 0; one && f < FIGURES; f++)
            json_object_set_new(one, names[f], json_pack("{s:f, s:f, s:f}", "median", median(b, m, (enum figure)f), "lowest",
                                                         quantile(b->figures[m][f], b->repetitions, 0), "highest", quantile(b->figures[m][f], b->repetitions, 1)));
        if (one)
            json_object_set_new(all, modes[m].name, one);
    }
    const int rc = o ? json_dumpf(o, stdout, JSON_REAL_PRECISION(6) | JSON_INDENT(2)) : -1;
    json_decref(o);
    return rc == 0 && putchar('\n') != EOF ? 0 : -1;
}

int spa_cmd_bench(int argc, char **argv)
{
    static struct bench b;   /* too large for a stack */
    struct spa_option rows[SPA_ANSWER_OPTIONS + 1];
    b.repetitions = 5;
    spa_answer_options_init(&b.o, "spa bench", rows);
    b.o.n_predict = TOKENS;
    b.o.temp = 0;
    b.o.seed = 1;
    b.o.ignore_eos = true;
    b.o.prompt = "Describe a small town by the sea, its people, and what they do on a rainy day.";
    bool json = false;
    static const struct { const char *name, *help; } own[] = {
        { "prompt", "the question (one that gets long answers)" }, { "predict", "tokens of an answer (64)" }, { "temp", "temperature; 0: the likeliest token (0)" },
        { "seed", "of the draws (1)" }, { "ignore-eos", "go on behind an end, too (it does so)" },
    };
    for (size_t i = 0; i < SPA_ANSWER_OPTIONS; i++)
        for (size_t k = 0; k < sizeof own / sizeof *own; k++)
            if (strcmp(rows[i].name, own[k].name) == 0)
                rows[i].help = own[k].help;
    for (size_t i = 0; i < SPA_ANSWER_OPTIONS; i++)
        if (strcmp(rows[i].name, "json") == 0)
            rows[i] = (struct spa_option){ "json", NULL, NULL, "print one JSON object instead of a table", SPA_OPT_FLAG, &json, 0, 0 };
    rows[SPA_ANSWER_OPTIONS] = (struct spa_option){ "repetitions", "r", "N", "answers of each kind (5)", SPA_OPT_INT, &b.repetitions, 1, REPETITIONS_MAX };
    const struct spa_usage usage = { "spa bench", "",
        "Measures a cloud from this machine: greedy answers of -n tokens (64) to one question, by the base alone and, with --plugin, with the gate\n"
        "on auto and on always, in turns.", rows, SPA_ANSWER_OPTIONS + 1, 0, 0 };
    int rc = spa_answer_parse(&b.o, &usage, argc, argv);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    b.o.json = true;   /* no stream */
    const double started = spa_seconds();
    rc = spa_answer_open(&b.answer, &b.o);
    b.connect_ms = 1e3 * (spa_seconds() - started);
    if (rc == 0) {
        spa_answer_catch_interrupt();
        rc = measure(&b);
    }
    if (rc == 0 && !json)
        print_table(&b);
    if (rc == 0 && ((json && print_json(&b) != 0) || fflush(stdout) != 0)) {
        spa_answer_complain(b.o.command, "standard output cannot be written");
        rc = SPA_EXIT_FAILED;
    }
    spa_answer_close(&b.answer);
    return rc;
}
