/* answer.c - one answer for the command line (answer.h). In: options, parts. Out: text on stdout as it comes, or one JSON object. */
#define _DEFAULT_SOURCE
#include "answer.h"
#include "secret.h"
#include "utf8.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    WHY_MAX       = 1024,
    MESSAGE_BYTES = 1024 * 1024,     /* the largest message that we take: context rows of a long prompt come in several */
    WAIT_MS       = 100,             /* how long Ctrl-C may go unnoticed */
    CANCEL_MS     = 3000,            /* for the cloud's last word on a cancelled answer */
};

/* ---- options ---- */

void spa_answer_options_init(struct spa_answer_options *o, const char *command, struct spa_option *rows)
{
    spa_Generate g;
    spa_talk_defaults(&g);
    *o = (struct spa_answer_options){
        .command = command, .gate_word = "auto", .ahead_word = "auto", .drafts_word = "auto", .n_predict = g.n_predict, .temp = g.temp, .top_k = g.top_k, .top_p = g.top_p,
        .retry_s = SPA_RETRY_DEFAULT_S, .min_p = g.min_p, .repeat_penalty = g.repeat_penalty, .seed = UINT64_MAX, .state_dtype = SPA_AS_TRAINED,
    };
    const struct spa_option own[SPA_ANSWER_OPTIONS - SPA_CONNECT_OPTIONS] = {
        { "prompt", "p", "TEXT", "the text to answer", SPA_OPT_STRING, &o->prompt, 0, 0 },
        { "plugin", NULL, "FILE", "your plugin; without it the base model answers", SPA_OPT_STRING, &o->plugin_path, 0, 0 },
        { "predict", "n", "N", "at most so many tokens (-1: until the model ends or the context is full)", SPA_OPT_INT,
          &o->n_predict, -1, 1 << 30 },
        { "temp", NULL, "T", "temperature; 0 is greedy (0.8)", SPA_OPT_FLOAT, &o->temp, 0, 100 },
        { "top-k", NULL, "K", "choose among the K likeliest; 0: all (40)", SPA_OPT_INT, &o->top_k, 0, 1 << 30 },
        { "top-p", NULL, "P", "choose among those that make up P together; 1: all (0.95)", SPA_OPT_FLOAT, &o->top_p, 0, 1 },
        { "min-p", NULL, "P", "drop what is less likely than P times the likeliest (0.05)", SPA_OPT_FLOAT, &o->min_p, 0, 1 },
        { "repeat-penalty", NULL, "F", "push down the last 64 tokens; 1: off (1)", SPA_OPT_FLOAT, &o->repeat_penalty, 0.01, 100 },
        { "seed", NULL, "N", "the same seed gives the same answer (random)", SPA_OPT_U64, &o->seed, 0, 0 },
        { "gate", NULL, "WHEN", "ask the plugin: auto, always, never, or the gate's threshold in 0..1 (auto)", SPA_OPT_STRING,
          &o->gate_word, 0, 0 },
        { "late", NULL, "wait|base|error", "what a token does whose state is late (wait)", SPA_OPT_CHOICE, &o->late, 0, 0 },
        { "answer-ms", NULL, "MS", "a state is late after so long; 0: the cloud's default (0)", SPA_OPT_INT, &o->answer_ms, 0,
          1 << 30 },
        { "run-ahead", NULL, "N|off", "tokens that the cloud may guess while it waits for a state; no answer changes (auto: as many as it likes)",
          SPA_OPT_STRING, &o->ahead_word, 0, 0 },
        { "drafts", NULL, "FILE|off", "help its guesses with your own answers: of FILE's training rows, and of this chat (PLUGIN.features)",
          SPA_OPT_STRING, &o->drafts_word, 0, 0 },
        { "context-window", NULL, "N", "the plugin looks back on at most N tokens (the cloud's context)", SPA_OPT_INT,
          &o->context_window, 1, 1 << 30 },
        { "stop", NULL, "STR", "end the answer before this text; may be given several times", SPA_OPT_STRING, &o->stop_shown, 0, 0 },
        { "ignore-eos", NULL, NULL, "go on where the model would end", SPA_OPT_FLAG, &o->ignore_eos, 0, 0 },
        { "json", NULL, NULL, "print one JSON object at the end, no stream", SPA_OPT_FLAG, &o->json, 0, 0 },
        SPA_STATE_DTYPE_OPTION(&o->state_dtype),
        SPA_PAD_OPTION(&o->pad),
        SPA_RETRY_OPTION(&o->retry_s),
    };
    memcpy(rows, own, sizeof own);
    spa_connect_options(&o->connect, rows + sizeof own / sizeof own[0]);
}

static int usage_error(const struct spa_answer_options *o, const char *sentence)
{
    spa_answer_complain(o->command, sentence);
    return SPA_EXIT_USAGE;
}

/* 0 for a word, the number for a threshold, -1 for neither. */
static float parse_threshold(const char *word)
{
    if (strcmp(word, "auto") == 0 || strcmp(word, "always") == 0 || strcmp(word, "never") == 0)
        return 0;
    char *end;
    float value = strtof(word, &end);
    return end != word && !*end && value > 0 && value < 1 ? value : -1;
}

/* Tokens, or -1 for a word that says nothing. */
static int32_t parse_ahead(const char *word)
{
    if (strcmp(word, "auto") == 0)
        return SPA_ASKED_MAX - 1;
    if (strcmp(word, "off") == 0)
        return 0;
    char *end;
    const long n = strtol(word, &end, 10);
    return end != word && !*end && n >= 0 && n < SPA_ASKED_MAX ? (int32_t)n : -1;
}

int spa_answer_parse(struct spa_answer_options *o, const struct spa_usage *usage, int argc, char **argv)
{
    /* The table keeps an option's last value; of --stop all count. The parser below sees them too and checks their form. */
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const char *value = strncmp(argv[i], "--stop=", 7) == 0 ? argv[i] + 7 : NULL;
        if (strcmp(argv[i], "--stop") == 0 && i + 1 < argc)
            value = argv[++i];
        if (!value)
            continue;
        if (o->n_stops == SPA_STOPS_MAX || !*value || strlen(value) > SPA_STOP_LEN_MAX)
            return usage_error(o, "--stop takes 1 to 256 bytes and may be given 16 times");
        o->stops[o->n_stops++] = value;
    }
    int n_positional, rc = spa_options_parse(usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    if (parse_threshold(o->gate_word) < 0)
        return usage_error(o, "--gate wants auto, always, never or a number between 0 and 1");
    if (parse_ahead(o->ahead_word) < 0)
        return usage_error(o, "--run-ahead wants off, auto or a number from 0 to 31");
    if (!o->plugin_path && strcmp(o->gate_word, "auto") != 0 && strcmp(o->gate_word, "never") != 0)
        return usage_error(o, "--gate says when to ask a plugin, but there is no --plugin");
    if (o->pad && (!o->plugin_path || strcmp(o->gate_word, "never") == 0))
        return usage_error(o, "--pad hides which tokens the plugin speaks, but it is asked for none; give --plugin, and no --gate never");
    if (o->pad && strcmp(o->ahead_word, "auto") != 0 && parse_ahead(o->ahead_word) != 0)
        return usage_error(o, "--pad waits for every token, and --run-ahead wants not to; leave one of them out");
    if (o->seed != UINT64_MAX && o->seed > INT64_MAX)
        return usage_error(o, "--seed wants a number below 2^63");
    return SPA_OPTIONS_GO;
}

/* ---- stderr, signals ---- */

void spa_answer_complain(const char *command, const char *sentence)
{
    fprintf(stderr, "%s: ", command);
    for (const char *s = sentence; *s; s++)   /* part of it may be the cloud's: nothing in it steers a terminal */
        fputc((unsigned char)*s < ' ' || *s == 127 ? '?' : *s, stderr);
    fputc('\n', stderr);
}

static volatile sig_atomic_t interrupt_flag;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupt_flag = 1;
}

void spa_answer_catch_interrupt(void)
{
    struct sigaction act = { .sa_handler = on_interrupt };
    sigemptyset(&act.sa_mask);
    sigaction(SIGINT, &act, NULL);   /* without SA_RESTART: a read of stdin comes back at once */
}

bool spa_answer_interrupted(void)
{
    bool was = interrupt_flag;
    interrupt_flag = 0;
    return was;
}

/* ---- opening ---- */

static int fail(const struct spa_answer *a, const char *why)
{
    spa_answer_complain(a->options->command, why);
    return SPA_EXIT_FAILED;
}

static void drop_link(struct spa_answer *a)
{
    spa_talk_free(a->talk);
    spa_link_close(a->link);
    a->talk = NULL;
    a->link = NULL;
    a->settings.after = 0;   /* requests of another connection mean nothing on the next */
}

static const struct spa_plugin_file *plugin_of(const struct spa_answer *a)
{
    return a->options->plugin_path ? &a->plugin : NULL;
}

/* The cloud has the basis once it is connected: of what a small device needs for chatting it would be a third. */
static void drop_basis(struct spa_answer *a)
{
    a->basis_dropped = a->plugin.basis != NULL;
    free(a->plugin.basis);
    a->plugin.basis = NULL;
#ifdef __GLIBC__
    malloc_trim(0);   /* of the file and the handshake, too */
#endif
}

/* One try. 0, or as spa_link_open, with a sentence. */
static int connect_once(void *answer, char *why, size_t why_len)
{
    struct spa_answer *a = answer;
    if (a->basis_dropped) {
        spa_plugin_file_free(&a->plugin);
        a->basis_dropped = false;
        if (spa_plugin_file_load(a->options->plugin_path, &a->plugin, why, why_len) != 0)
            return SPA_LINK_REFUSED;
        if (a->options->state_dtype != SPA_AS_TRAINED)
            a->plugin.plugin.state_dtype = (enum spa_dtype)a->options->state_dtype;
    }
    int rc = spa_connect_again(&a->options->connect, &a->clouds, plugin_of(a), a->threshold, MESSAGE_BYTES, &a->link, why, why_len);
    a->retry.later_ms = rc == -1 ? a->clouds.later_ms : 0;
    if (rc != 0)
        return rc;
    rc = spa_talk_new(&a->talk, a->link, plugin_of(a), why, why_len);
    if (rc != 0) {
        drop_link(a);
        return rc;
    }
    spa_talk_window(a->talk, (uint32_t)a->options->context_window);
    spa_talk_drafts(a->talk, a->drafts);
    spa_talk_pad(a->talk, a->options->pad);
    drop_basis(a);
    return 0;
}

static bool is_interrupted(void) { return interrupt_flag; }

/* The link is lost, or could not be made (rc and why say how): tries until there is one. As spa_connect_until. */
static int connect_again(struct spa_answer *a, int rc, char *why, size_t why_len)
{
    if (a->link && rc == SPA_LINK_REFUSED)
        a->clouds.refused |= 1u << a->clouds.at;
    drop_link(a);
    return spa_connect_until(&a->retry, a->options->retry_s, connect_once, a, is_interrupted, why, why_len);
}

int spa_answer_reconnect(struct spa_answer *a)
{
    char why[WHY_MAX];
    a->retry.begun = false;
    a->clouds.refused = 0;   /* its owner may have changed its mind */
    int rc = connect_once(a, why, sizeof why);
    if (rc == -1)
        rc = connect_again(a, rc, why, sizeof why);
    a->retry.begun = false;
    return rc == 0 ? 0 : fail(a, why);
}

/* With a plugin that has no gate there is nothing that could decide: auto asks for every token. */
static spa_GateMode gate_mode(const struct spa_answer *a)
{
    const char *word = a->options->gate_word;
    if (!a->options->plugin_path || strcmp(word, "never") == 0)
        return spa_GateMode_GATE_NEVER;
    if (strcmp(word, "always") == 0 || !a->plugin.gate_w)
        return spa_GateMode_GATE_ALWAYS;
    return spa_GateMode_GATE_AUTO;
}

/* The user's own answers: of the rows that the plugin was trained on, where their states were kept, and of this chat. */
static int open_drafts(struct spa_answer *a)
{
    char why[WHY_MAX], path[PATH_MAX];
    const char *word = a->options->drafts_word;
    const bool by_itself = strcmp(word, "auto") == 0;
    if (strcmp(word, "off") == 0 || !a->options->plugin_path || parse_ahead(a->options->ahead_word) == 0 || a->options->pad)
        return 0;
    a->drafts = spa_drafts_new(SPA_DRAFTS_TOKENS);
    if (!a->drafts)
        return fail(a, "there is not enough memory for drafts; use --drafts off");
    const int len = snprintf(path, sizeof path, by_itself ? "%s.features" : "%s", by_itself ? a->options->plugin_path : word);
    if (spa_drafts_add_features(a->drafts, len > 0 && (size_t)len < sizeof path ? path : "", &a->plugin.plugin) == 0 && !by_itself) {
        snprintf(why, sizeof why, "--drafts %s: no answers can be read from it; give the feature file of a training run, or off", word);
        return fail(a, why);
    }
    return 0;
}

int spa_answer_open(struct spa_answer *a, const struct spa_answer_options *o)
{
    char why[WHY_MAX];
    *a = (struct spa_answer){ .options = o };
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);   /* set, it stays: what is large and only needed once goes back to the system */
#endif
    if (o->plugin_path && spa_plugin_file_load(o->plugin_path, &a->plugin, why, sizeof why) != 0)
        return fail(a, why);
    if (o->state_dtype != SPA_AS_TRAINED)
        a->plugin.plugin.state_dtype = (enum spa_dtype)o->state_dtype;
    a->threshold = parse_threshold(o->gate_word);
    if (a->threshold > 0 && !a->plugin.gate_w)
        return fail(a, "--gate gives a threshold, but the plugin has no gate; use auto, always or never");
    spa_Generate *g = &a->settings;
    spa_talk_defaults(g);
    g->n_predict = o->n_predict;
    g->temp = o->temp;
    g->top_k = o->top_k;
    g->top_p = o->top_p;
    g->min_p = o->min_p;
    g->repeat_penalty = o->repeat_penalty;
    g->ignore_eos = o->ignore_eos;
    g->late = (spa_Late)o->late;
    g->answer_ms = (uint32_t)o->answer_ms;
    g->gate = gate_mode(a);
    g->run_ahead = (uint32_t)parse_ahead(o->ahead_word);
    g->seed = o->seed;
    if (o->seed == UINT64_MAX) {
        if (getrandom(&g->seed, sizeof g->seed, 0) != sizeof g->seed)
            return fail(a, "this machine gives no random numbers; use --seed");
        g->seed >>= 11;   /* 53 bits: every JSON reader keeps them all */
    }
    int rc = open_drafts(a);
    if (rc != 0)
        return rc;
    rc = connect_once(a, why, sizeof why);
    if (rc == -1 && a->retry.later_ms)   /* it lives, and has only no room now */
        rc = connect_again(a, rc, why, sizeof why);
    a->retry.begun = false;
    return rc == 0 ? 0 : rc == 1 ? SPA_EXIT_INTERRUPTED : fail(a, why);
}

void spa_answer_close(struct spa_answer *a)
{
    drop_link(a);
    spa_drafts_free(a->drafts);
    spa_plugin_file_free(&a->plugin);
    spa_secret_free(a->text, a->text_cap);
    free(a->by);
    spa_confirmed_free(&a->confirmed);
    a->text = NULL;
    a->by = NULL;
}

/* ---- answering ---- */

static void *grown(void *p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return p;
    size_t more = 2 * need;
    void *bigger = spa_secret_grow(p, *cap * size, more * size);
    if (bigger)
        *cap = more;
    return bigger;
}

static int keep(struct spa_answer *a, const struct spa_talk_event *ev)
{
    char *text = grown(a->text, &a->text_cap, a->text_len + ev->text_len + 1, 1);
    if (!text)
        return -1;
    a->text = text;
    memcpy(text + a->text_len, ev->text, ev->text_len);
    a->text_len += ev->text_len;
    const size_t n = a->confirmed.n, more = ev->tokens->ids_count;
    uint8_t *by = more ? grown(a->by, &a->by_cap, n, 1) : a->by;
    if (more && !by)
        return -1;
    a->by = by;
    for (size_t i = 0; i < more; i++)
        by[n - more + i] = (uint8_t)ev->tokens->by[i];
    return 0;
}

/* To a file or pipe as it is; to a terminal without the control characters that would steer it. */
static int stream(const char *text, size_t len)
{
    static int is_terminal = -1;
    if (is_terminal < 0)
        is_terminal = isatty(STDOUT_FILENO);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        bool steers = (c < ' ' && c != '\n' && c != '\t') || c == 127;
        if (putchar(is_terminal && steers ? '?' : c) == EOF)
            return -1;
    }
    return fflush(stdout) == 0 ? 0 : -1;
}

static int cannot_write(const struct spa_answer *a)
{
    char why[WHY_MAX];
    snprintf(why, sizeof why, "cannot write the answer: %s", strerror(errno));
    return fail(a, why);
}

struct asked { struct spa_answer *answer; const struct spa_part *parts; size_t n_parts; bool raw; };

/* Puts the caller's parts, the stop strings and what is confirmed together. 0, or -1 or SPA_LINK_REFUSED as spa_talk_ask, with a sentence. */
static int ask(struct spa_answer *a, const struct asked *q, char *why, size_t why_len)
{
    size_t n = q->n_parts;
    struct spa_part *all = calloc(n + a->options->n_stops + 1, sizeof *all);
    if (!all) {
        snprintf(why, why_len, "there is not enough memory for a question");
        return SPA_LINK_REFUSED;
    }
    memcpy(all, q->parts, n * sizeof *all);
    for (size_t i = 0; i < a->options->n_stops; i++) {
        const char *stop = a->options->stops[i];
        all[n++] = (struct spa_part){ .kind = SPA_PART_STOP, .bytes = (const uint8_t *)stop, .len = (uint32_t)strlen(stop) };
    }
    if (a->confirmed.n)
        all[n++] = spa_confirmed_part(&a->confirmed);
    struct spa_talk_request r = { .parts = all, .n_parts = n, .settings = a->settings };
    r.settings.raw = q->raw;
    int rc = SPA_LINK_REFUSED;
    a->request = 0;
    if (n > SPA_PARTS_MAX)
        snprintf(why, why_len, "the conversation has too many turns");
    else
        rc = spa_talk_ask(a->talk, &r, &a->request, why, why_len);
    free(all);
    if (rc == 0)
        snprintf(why, why_len, "the cloud allows no request on this connection now");
    return rc == 1 ? 0 : rc == 0 ? SPA_LINK_REFUSED : rc;
}

/* One event: 1 the answer has ended, 0 it goes on, SPA_LINK_REFUSED: it does not, -1: another connection may go on with it, FULL: so may this one,
 * later; all three with a sentence. */
enum { FULL = -3 };
static int take_event(struct spa_answer *a, struct spa_talk_event *ev, char *why, size_t why_len)
{
    if (ev->request != a->request)
        return 0;
    switch (ev->type) {
    case SPA_TALK_TOKENS:
        if (ev->tokens->ids_count)
            a->retry.begun = false;
        if (spa_confirmed_take(&a->confirmed, ev) < 0 || keep(a, ev) != 0) {
            snprintf(why, why_len, "there is not enough memory for the answer");
            return SPA_LINK_REFUSED;
        }
        if (!a->options->json && stream(ev->text, ev->text_len) != 0) {
            snprintf(why, why_len, "cannot write the answer: %s", strerror(errno));
            return SPA_LINK_REFUSED;
        }
        return 0;
    case SPA_TALK_DONE:
        a->finish = ev->finish;
        return 1;
    default:
        snprintf(why, why_len, "the cloud could not answer: %.*s", (int)(ev->text_len < 400 ? ev->text_len : 400), ev->text);
        a->retry.later_ms = ev->retry_ms;
        if (ev->code == spa_Code_BUSY && ev->retry_ms)
            return FULL;
        return ev->code == spa_Code_DRAINING || (ev->code == spa_Code_BUSY && a->confirmed.breaks) ? -1 : SPA_LINK_REFUSED;
    }
}

/* After ask and wait said rc and why. 0: asked again; else the exit code, or -1: Ctrl-C. */
static int go_on(struct spa_answer *a, const struct asked *q, int rc, char *why, size_t why_len)
{
    while (rc != 0) {
        if (a->talk)
            spa_confirmed_broken(&a->confirmed, spa_talk_stats(a->talk, a->request));
        const int again = connect_again(a, rc, why, why_len);
        if (again > 0)
            return -1;
        if (again < 0) {
            if (a->text_len && !a->options->json)
                stream("\n", 1);   /* the sentence stands on a line of its own */
            drop_link(a);
            return fail(a, why);
        }
        rc = ask(a, q, why, why_len);
    }
    return 0;
}

static int ask_again(void *asked, char *why, size_t why_len)
{
    const struct asked *q = asked;
    const int rc = ask(q->answer, q, why, why_len);
    return rc == -1 ? 0 : rc;   /* the connection is lost: the next wait says so */
}

static int refused(struct spa_answer *a, const char *why)
{
    if (a->text_len && !a->options->json)
        stream("\n", 1);
    return fail(a, why);
}

int spa_answer_run(struct spa_answer *a, const struct spa_part *parts, size_t n_parts, bool raw)
{
    char why[WHY_MAX];
    struct asked q = { a, parts, n_parts, raw };
    a->text_len = 0;
    a->finish = spa_Finish_FINISH_CANCELLED;
    a->retry.begun = false;
    spa_confirmed_begin(&a->confirmed);
    int rc = ask(a, &q, why, sizeof why);
    if (rc == SPA_LINK_REFUSED)
        return fail(a, why);
    int patience_ms = CANCEL_MS;
    for (bool cancelled = false; patience_ms > 0;) {
        if (rc == 0 && !cancelled && spa_answer_interrupted()) {
            spa_talk_cancel(a->talk, a->request);
            cancelled = true;
        }
        struct spa_talk_event ev;
        int got = rc;
        if (rc == 0)
            got = spa_talk_wait(a->talk, WAIT_MS, &ev, why, sizeof why);
        bool lost = got < 0;
        if (got > 0) {
            got = take_event(a, &ev, why, sizeof why);
            if (got > 0)
                return 0;
            if (got == FULL) {
                got = spa_connect_until(&a->retry, a->options->retry_s, ask_again, &q, is_interrupted, why, sizeof why);
                if (got > 0) {
                    spa_answer_interrupted();
                    return 0;
                }
                if (got < 0)
                    return refused(a, why);
            }
            if (got == SPA_LINK_REFUSED)
                return refused(a, why);
            lost = got < 0;
        } else if (got == 0) {
            patience_ms -= cancelled ? WAIT_MS : 0;
        }
        if (lost && cancelled)
            break;
        if (lost && (rc = go_on(a, &q, got, why, sizeof why)) != 0) {
            spa_answer_interrupted();
            return rc < 0 ? 0 : rc;
        }
    }
    drop_link(a);   /* a cloud that does not even end a cancelled answer */
    return 0;
}

char *spa_answer_clean_text(const struct spa_answer *a, size_t *len)
{
    char *clean = malloc(spa_utf8_clean_room(a->text_len));
    *len = clean ? spa_utf8_clean(a->text, a->text_len, clean) : 0;
    return clean;
}

static json_t *json_text(const struct spa_answer *a)
{
    size_t len;
    char *clean = spa_answer_clean_text(a, &len);
    json_t *out = clean ? json_stringn(clean, len) : NULL;
    spa_secret_free(clean, len);
    return out;
}

struct spa_talk_stats spa_answer_stats(const struct spa_answer *a)
{
    struct spa_talk_stats all = *spa_talk_stats(a->talk, a->request);
    spa_confirmed_stats(&a->confirmed, &all);
    return all;
}

static json_t *json_stats(const struct spa_answer *a)
{
    const struct spa_talk_stats all = spa_answer_stats(a), *s = &all;
    uint64_t first = s->first_token_us ? s->first_token_us - s->started_us : 0;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}",
                     "tokens", (json_int_t)s->tokens, "resumed", (json_int_t)a->confirmed.breaks, "prompt_tokens", (json_int_t)s->prompt_tokens,
                     "cached_tokens", (json_int_t)s->cached_tokens,
                     "gated", (json_int_t)s->gated, "round_trips", (json_int_t)s->round_trips,
                     "late", (json_int_t)s->late, "refused", (json_int_t)s->refused, "steps", (json_int_t)s->steps,
                     "shared_steps", (json_int_t)s->shared_steps, "wasted_steps", (json_int_t)s->wasted_steps, "waits", (json_int_t)s->waits,
                     "guessed_base", (json_int_t)s->guessed_base, "right_base", (json_int_t)s->right_base,
                     "guessed_text", (json_int_t)s->guessed_text, "right_text", (json_int_t)s->right_text,
                     "guessed_draft", (json_int_t)s->guessed_draft, "right_draft", (json_int_t)s->right_draft, "bytes_down", (json_int_t)s->bytes_down,
                     "bytes_up", (json_int_t)s->bytes_up, "seconds", (double)(s->ended_us - s->started_us) / 1e6,
                     "first_token_seconds", (double)first / 1e6,
                     "device_us_per_token", s->tokens ? (double)s->ladder_us / s->tokens : 0.0);
}

int spa_answer_print_json(const struct spa_answer *a)
{
    static const char *const finish[] = { "stop", "length", "cancelled", "length" };   /* a full context is a length too */
    if (!a->link)
        return fail(a, "the cloud did not end the cancelled answer");
    json_t *ids = json_array(), *by = json_array();
    for (size_t i = 0; i < a->confirmed.n; i++) {
        json_array_append_new(ids, json_integer(a->confirmed.ids[i]));
        json_array_append_new(by, json_string(a->by[i] == spa_Speaker_PLUGIN ? "plugin" : "base"));
    }
    json_t *o = json_pack("{s:o, s:o, s:o, s:s, s:I, s:o}", "text", json_text(a), "tokens", ids, "by", by,
                          "finish_reason", finish[a->finish], "seed", (json_int_t)a->settings.seed,
                          "stats", json_stats(a));
    if (!o)
        return fail(a, "there is not enough memory for the answer's JSON");
    int rc = json_dumpf(o, stdout, JSON_REAL_PRECISION(9));
    json_decref(o);
    if (rc != 0 || putchar('\n') == EOF || fflush(stdout) != 0)
        return cannot_write(a);
    return 0;
}

int spa_answer_once(struct spa_answer *a, const struct spa_part *parts, size_t n_parts, bool raw)
{
    int rc = spa_answer_run(a, parts, n_parts, raw);
    if (rc != 0)
        return rc;
    if (a->options->json)
        rc = spa_answer_print_json(a);
    else if ((a->text_len == 0 || a->text[a->text_len - 1] != '\n') && stream("\n", 1) != 0)
        rc = cannot_write(a);
    if (rc != 0)
        return rc;
    return a->finish == spa_Finish_FINISH_CANCELLED ? SPA_EXIT_INTERRUPTED : 0;
}

void spa_answer_idle(struct spa_answer *a)
{
    char why[WHY_MAX];
    struct spa_talk_event ev;
    int rc = 1;
    while (a->link && rc == 1)
        rc = spa_talk_wait(a->talk, 0, &ev, why, sizeof why);   /* the tail of a cancelled answer, if anything */
    if (rc < 0)
        drop_link(a);
}
