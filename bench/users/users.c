/* users.c - in: a cloud, perhaps a plugin. out: one JSON object: what so many users' answers were and how quickly they came.
 *
 *   ninja -C build spa-users && build/spa-users --cloud ws://127.0.0.1:8080 --plugin p.gguf --different --users 32 --gate always
 *
 * Each user is a thread with a connection and a ladder of its own, by the same code as spa's. Speed is taken while all of them are at it:
 * from when the last one has its first token to when the first one has its last. For that time also the CPU time of the cloud
 * (--cloud-pid), of the devices and of the slow line (--delay), since in a benchmark all of them may share the same cores.
 *
 * --different: user u's weights are the file's, each number off by up to 1 % of itself, drawn from u: so many different plugins. */
#define _GNU_SOURCE
#include "connect.h"
#include "line.h"
#include "talk.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WHY_MAX = 1024, MESSAGE_BYTES = 1024 * 1024, USERS_MAX = 128, TOKENS_MAX = 4096, LINE_MAX_BYTES = 16384 };

static struct settings {
    struct spa_connect connect;
    const char *plugin, *prompts, *gate, *ahead;
    int32_t users, n, delay_ms, cloud_pid;
    float temp, top_p;
    uint64_t seed;
    bool different, alone, raw, drafts_off;
} o = { .gate = "always", .ahead = "auto", .users = 8, .n = 64, .temp = 0, .top_p = 1, .seed = 1 };

static struct user {
    struct spa_plugin_file plugin;
    struct spa_link *link;
    struct spa_talk *talk;
    struct spa_drafts *drafts;
    char prompt[LINE_MAX_BYTES];
    pthread_t thread;
    int32_t number, ids[TOKENS_MAX];
    uint32_t n;
    double cpu_s;
    struct spa_talk_stats stats;
    bool failed;
    char why[WHY_MAX];
} users[USERS_MAX];

static atomic_int n_begun, n_ended;
static atomic_long n_tokens;

static double seconds_of(clockid_t clock)
{
    struct timespec t = { 0 };
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int complain(const char *why)
{
    fprintf(stderr, "spa-users: %s\n", why);
    return 1;
}

/* ---- a user ---- */

static void make_different(struct user *u)
{
    float *p = u->plugin.params;
    const size_t n = spa_param_count(&u->plugin.plugin.shape);
    for (size_t i = 0; i < n; i++)
        p[i] *= 1.0f + 0.01f * (float)((double)(spa_noise64((uint64_t)u->number, i, 0) >> 11) * 0x1p-52 - 1.0);
}

/* 0, or -1 with u->why. */
static int come(struct user *u, const char *plugin)
{
    if (plugin && spa_plugin_file_load(plugin, &u->plugin, u->why, WHY_MAX) != 0)
        return -1;
    if (plugin && o.different)
        make_different(u);
    if (spa_connect_open(&o.connect, plugin ? &u->plugin : NULL, 0, MESSAGE_BYTES, &u->link, u->why, WHY_MAX) != 0 ||
        spa_talk_new(&u->talk, u->link, plugin ? &u->plugin : NULL, u->why, WHY_MAX) != 0)
        return -1;
    u->drafts = plugin && !o.drafts_off ? spa_drafts_new(SPA_DRAFTS_TOKENS) : NULL;
    char features[PATH_MAX];
    if (u->drafts && snprintf(features, sizeof features, "%s.features", plugin) < (int)sizeof features)
        spa_drafts_add_features(u->drafts, features, &u->plugin.plugin);   /* where there are some */
    spa_talk_drafts(u->talk, u->drafts);
    return 0;
}

static int ask(struct user *u, uint32_t *request)
{
    const struct spa_part part = { .kind = o.raw ? SPA_PART_TEXT : SPA_PART_USER, .bytes = (const uint8_t *)u->prompt, .len = (uint32_t)strlen(u->prompt) };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_Generate *g = &r.settings;
    spa_talk_defaults(g);
    g->raw = o.raw;
    g->n_predict = o.n;
    g->temp = o.temp;
    g->top_p = o.top_p;
    g->top_k = 0;
    g->min_p = 0;
    g->seed = o.seed + (uint64_t)u->number;
    g->ignore_eos = true;
    g->gate = !u->plugin.params || strcmp(o.gate, "never") == 0 ? spa_GateMode_GATE_NEVER
            : strcmp(o.gate, "always") == 0 ? spa_GateMode_GATE_ALWAYS : spa_GateMode_GATE_AUTO;
    if (strcmp(o.ahead, "off") == 0)
        g->run_ahead = 0;
    return spa_talk_ask(u->talk, &r, request, u->why, WHY_MAX) == 1 ? 0 : -1;
}

static void take_tokens(struct user *u, const spa_Tokens *t)
{
    if (u->n == 0 && t->ids_count)
        atomic_fetch_add(&n_begun, 1);
    for (pb_size_t i = 0; i < t->ids_count && u->n < TOKENS_MAX; i++)
        u->ids[u->n++] = t->ids[i];
    atomic_fetch_add(&n_tokens, t->ids_count);
    if (u->n >= (uint32_t)o.n)
        atomic_fetch_add(&n_ended, 1);
}

static void *live(void *arg)
{
    struct user *u = arg;
    uint32_t request = 0;
    bool done = ask(u, &request) != 0;
    u->failed = done;
    while (!done) {
        struct spa_talk_event ev;
        const int rc = spa_talk_wait(u->talk, -1, &ev, u->why, WHY_MAX);
        if (rc < 0) {
            u->failed = done = true;
        } else if (rc == 1 && ev.type == SPA_TALK_TOKENS) {
            take_tokens(u, ev.tokens);
        } else if (rc == 1) {
            u->failed = ev.type == SPA_TALK_ERROR;
            if (u->failed)
                snprintf(u->why, WHY_MAX, "the cloud says: %.*s", (int)(ev.text_len < 400 ? ev.text_len : 400), ev.text);
            done = true;
        }
    }
    if (!u->failed)
        u->stats = *spa_talk_stats(u->talk, request);
    if (u->n < (uint32_t)o.n)
        atomic_fetch_add(&n_ended, 1);   /* nobody waits for it */
    u->cpu_s = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}

/* ---- the time that counts ---- */

struct mark { double s, cloud_s, line_s, users_s; long tokens; };

static struct mark mark_now(const struct spa_line *line)
{
    clockid_t cloud;
    struct mark m = { .s = seconds_of(CLOCK_MONOTONIC), .tokens = atomic_load(&n_tokens), .line_s = spa_line_cpu_s(line) };
    m.users_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - m.line_s - seconds_of(CLOCK_THREAD_CPUTIME_ID);   /* this thread only looks on */
    if (o.cloud_pid && clock_getcpuclockid((pid_t)o.cloud_pid, &cloud) == 0)
        m.cloud_s = seconds_of(cloud);
    return m;
}

static void nap(void)
{
    const struct timespec t = { 0, 2000000 };
    nanosleep(&t, NULL);
}

static int start(struct user *u)
{
    if (pthread_create(&u->thread, NULL, live, u) == 0)
        return 0;
    snprintf(u->why, WHY_MAX, "no thread for a user");
    return -1;
}

static int together(const struct spa_line *line, struct mark *from, struct mark *to)
{
    for (int i = 0; i < o.users; i++)
        if (start(&users[i]) != 0)
            return complain(users[i].why);
    while (atomic_load(&n_begun) < o.users && atomic_load(&n_ended) == 0)
        nap();
    *from = mark_now(line);
    while (atomic_load(&n_ended) == 0)
        nap();
    *to = mark_now(line);
    for (int i = 0; i < o.users; i++)
        pthread_join(users[i].thread, NULL);
    return 0;
}

static int one_by_one(const struct spa_line *line, struct mark *from, struct mark *to)
{
    *from = mark_now(line);
    for (int i = 0; i < o.users; i++) {
        if (come(&users[i], o.plugin) != 0 || start(&users[i]) != 0)   /* only now: the cloud hangs up on who is silent for long */
            return complain(users[i].why);
        pthread_join(users[i].thread, NULL);
    }
    *to = mark_now(line);
    return 0;
}

/* ---- in and out ---- */

static int read_prompts(void)
{
    for (int i = 0; i < o.users; i++)
        snprintf(users[i].prompt, sizeof users[i].prompt, "Tell me a long story about the number %d.", i + 1);
    FILE *f = o.prompts ? fopen(o.prompts, "r") : NULL;
    for (int i = 0; f && i < o.users; i++) {
        if (!fgets(users[i].prompt, sizeof users[i].prompt, f)) {
            rewind(f);
            if (i == 0 || !fgets(users[i].prompt, sizeof users[i].prompt, f))
                break;
        }
        users[i].prompt[strcspn(users[i].prompt, "\n")] = 0;
    }
    const bool ok = !o.prompts || (f && !ferror(f));
    if (f)
        fclose(f);
    return ok ? 0 : complain("--prompts: the file cannot be read; give one prompt a line");
}

static int print(const struct mark *a, const struct mark *b)
{
    const double window = b->s - a->s;
    int rc = 0;
    printf("{\"window_s\": %.6f, \"tokens\": %ld, \"cloud_cpu_s\": %.6f, \"device_cpu_s\": %.6f, \"line_cpu_s\": %.6f, \"users\": [", window,
           b->tokens - a->tokens, b->cloud_s - a->cloud_s, b->users_s - a->users_s, b->line_s - a->line_s);
    for (int i = 0; i < o.users; i++) {
        const struct user *u = &users[i];
        const struct spa_talk_stats *s = &u->stats;
        if (u->failed)
            rc = complain(u->why);
        printf("%s{\"seconds\": %.6f, \"first_token_seconds\": %.6f, \"cpu_s\": %.6f, \"ladder_us\": %" PRIu64 ", \"gated\": %u, \"round_trips\": %u, \"waits\": %u, \"wasted_steps\": %u, "
               "\"guessed\": %u, \"right\": %u, \"steps\": %u, \"bytes_down\": %" PRIu64 ", \"bytes_up\": %" PRIu64 ", \"prompt_tokens\": %u, \"tokens\": [", i ? ", " : "", (double)(s->ended_us - s->started_us) / 1e6,
               (double)(s->first_token_us - s->started_us) / 1e6, u->cpu_s, s->ladder_us, s->gated, s->round_trips, s->waits, s->wasted_steps, s->guessed_base + s->guessed_text + s->guessed_draft,
               s->right_base + s->right_text + s->right_draft, s->steps, s->bytes_down, s->bytes_up, s->prompt_tokens);
        for (uint32_t t = 0; t < u->n; t++)
            printf("%s%" PRId32, t ? ", " : "", u->ids[t]);
        printf("]}");
    }
    printf("]}\n");
    return rc;
}

int main(int argc, char **argv)
{
    const struct spa_option rows[] = {
        { "cloud", NULL, "URL", "ws://HOST:PORT", SPA_OPT_STRING, &o.connect.cloud, 0, 0 },
        { "cloud-pid", NULL, "PID", "its process, whose CPU time is counted too", SPA_OPT_INT, &o.cloud_pid, 0, 0 },
        { "plugin", NULL, "FILE", "the users' plugin (the base model alone)", SPA_OPT_STRING, &o.plugin, 0, 0 },
        { "different", NULL, NULL, "every user has other weights", SPA_OPT_FLAG, &o.different, 0, 0 },
        { "users", NULL, "N", "how many (8)", SPA_OPT_INT, &o.users, 1, USERS_MAX },
        { "alone", NULL, NULL, "one after the other instead of all at once", SPA_OPT_FLAG, &o.alone, 0, 0 },
        { "prompts", NULL, "FILE", "one prompt a line, a line for each user, from the top again (a story about a number)", SPA_OPT_STRING, &o.prompts, 0, 0 },
        { "raw", NULL, NULL, "prompts are raw text, no chat", SPA_OPT_FLAG, &o.raw, 0, 0 },
        { "predict", "n", "N", "tokens of each answer, exactly (64)", SPA_OPT_INT, &o.n, 1, TOKENS_MAX },
        { "gate", NULL, "WHEN", "always, auto or never (always)", SPA_OPT_STRING, &o.gate, 0, 0 },
        { "run-ahead", NULL, "auto|off", "may the cloud guess? (auto)", SPA_OPT_STRING, &o.ahead, 0, 0 },
        { "no-drafts", NULL, NULL, "users do not help its guesses with their answers", SPA_OPT_FLAG, &o.drafts_off, 0, 0 },
        { "delay", NULL, "MS", "round trip: half of it each way, beside loopback's own (0: no slow line)", SPA_OPT_INT, &o.delay_ms, 0, 10000 },
        { "temp", NULL, "T", "temperature; 0 is greedy (0)", SPA_OPT_FLOAT, &o.temp, 0, 100 },
        { "top-p", NULL, "P", "choose among those that make up P together (1: all)", SPA_OPT_FLOAT, &o.top_p, 0, 1 },
        { "seed", NULL, "N", "of user 0; the next one has the next (1)", SPA_OPT_U64, &o.seed, 0, 0 },
    };
    const struct spa_usage usage = { "spa-users", "", "Many users at once, measured.", rows, sizeof rows / sizeof *rows, 0, 0 };
    int n_positional, rc = spa_options_parse(&usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    unsigned port = 0;
    if (!o.connect.cloud || sscanf(o.connect.cloud, "ws://127.0.0.1:%5u", &port) != 1 || port > UINT16_MAX)
        return complain("--cloud must be ws://127.0.0.1:PORT");
    struct spa_line *line = NULL;
    char url[64];
    uint16_t slow = 0;
    if (o.delay_ms && !(line = spa_line_open((uint16_t)port, (uint32_t)o.delay_ms * 500, &slow)))
        return complain("no port for the slow line");
    snprintf(url, sizeof url, "ws://127.0.0.1:%u", line ? slow : port);
    o.connect.cloud = url;
    if (read_prompts() != 0)
        return 1;
    rc = 0;
    for (int i = 0; i < o.users; i++)
        users[i].number = i;
    for (int i = 0; rc == 0 && !o.alone && i < o.users; i++)
        rc = come(&users[i], o.plugin) == 0 ? 0 : complain(users[i].why);
    struct mark from, to;
    if (rc == 0)
        rc = o.alone ? one_by_one(line, &from, &to) : together(line, &from, &to);
    if (rc == 0)
        rc = print(&from, &to);
    for (int i = 0; i < o.users; i++) {
        spa_talk_free(users[i].talk);
        spa_link_close(users[i].link);
        spa_drafts_free(users[i].drafts);
        spa_plugin_file_free(&users[i].plugin);
    }
    spa_line_close(line);
    return rc;
}
