/* score.c - exact match over rows (score.h). In: rows with expected answers. Out: counts, and the answers if wanted. */
#define _POSIX_C_SOURCE 200809L
#include "score.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PATIENCE_MS = 120000 };   /* for a cloud that is full */

struct answer {                      /* under way */
    uint32_t request;                /* 0: free */
    size_t   row;
    char    *text;
    size_t   len, cap;
    struct spa_confirmed confirmed;
};

struct scoring {
    struct spa_talk **talk;
    const struct spa_score_again *again;   /* NULL: none */
    bool fresh;                      /* tokens have come since the connection was made */
    const struct spa_rows *rows;
    spa_Generate settings;
    struct spa_score *score;
    char **answers;
    struct answer open[SPA_REQUESTS_MAX];
    size_t n_open, next_row, n_asked;   /* n_asked: rows that have a question */
    uint32_t done;
    size_t back[SPA_REQUESTS_MAX], n_back;   /* rows that a full cloud has refused: to be asked again, */
    size_t at_most;                  /* so many at once from then on; 0: as many as go */
    uint32_t pause_ms, waited_ms;    /* before the next of them; in a row, without an answer */
};

static int no_memory(char *why, size_t why_len)
{
    snprintf(why, why_len, "there is not enough memory for the answers");
    return -1;
}

static struct answer *find(struct scoring *s, uint32_t request)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (s->open[i].request == request)
            return &s->open[i];
    return NULL;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

static void trim(const char **s, size_t *len)
{
    while (*len && is_space((*s)[*len - 1]))
        --*len;
    for (; *len && is_space(**s); ++*s)
        --*len;
}

static bool same(const char *a, size_t a_len, const char *b, size_t b_len)
{
    trim(&a, &a_len);
    trim(&b, &b_len);
    return a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0);
}

bool spa_score_same(const char *a, const char *b) { return same(a, strlen(a), b, strlen(b)); }

static bool is_exact(const struct answer *a, const struct spa_part *expected)
{
    return same(a->text, a->len, (const char *)expected->bytes, expected->len);
}

/* Raw text expects no answer. */
static bool is_question(const struct spa_example *row) { return row->parts[row->n_parts - 1].kind != SPA_PART_TEXT; }

/* As spa_talk_ask. */
static int ask(struct scoring *s, struct answer *a, char *why, size_t why_len)
{
    const struct spa_example *row = &s->rows->rows[a->row];
    size_t n = row->n_parts - 1;   /* all but the expected answer */
    struct spa_part *parts = calloc(n + 1, sizeof *parts);
    if (!parts)
        return no_memory(why, why_len);
    for (size_t i = 0; i < n; i++) {
        parts[i] = row->parts[i];
        parts[i].loss = false;   /* a mark of training rows */
    }
    if (a->confirmed.n)
        parts[n++] = spa_confirmed_part(&a->confirmed);
    struct spa_talk_request r = { .parts = parts, .n_parts = n, .settings = s->settings };
    int rc = spa_talk_ask(*s->talk, &r, &a->request, why, why_len);
    free(parts);
    return rc;
}

/* Asks the next row, which has a question. */
static int ask_next(struct scoring *s, char *why, size_t why_len)
{
    struct answer *a = find(s, 0);
    if (!a)
        return 0;
    a->row = s->n_back ? s->back[s->n_back - 1] : s->next_row;
    a->len = 0;
    spa_confirmed_begin(&a->confirmed);
    const int rc = ask(s, a, why, why_len);
    if (rc != 1) {
        a->request = 0;
        return rc;
    }
    if (s->n_back)
        s->n_back--;
    else
        s->next_row++;
    s->n_open++;
    return 1;
}

/* The connection is gone, as rc and why say: all that is open is asked again on another. 0 or -1. */
static int go_on(struct scoring *s, int rc, char *why, size_t why_len)
{
    bool open[SPA_REQUESTS_MAX];
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        open[i] = s->open[i].request != 0;
    while (rc < 0) {
        for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
            if (s->open[i].request)
                spa_confirmed_broken(&s->open[i].confirmed, spa_talk_stats(*s->talk, s->open[i].request));
        for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
            s->open[i].request = 0;
        if (!s->again || s->again->again(s->again->user, rc, s->fresh, s->talk, why, why_len) != 0)
            return -1;
        s->fresh = false;
        rc = 1;
        for (size_t i = 0; i < SPA_REQUESTS_MAX && rc == 1; i++)
            if (open[i])
                rc = ask(s, &s->open[i], why, why_len);
    }
    if (rc == 0)
        snprintf(why, why_len, "another connection to the cloud takes fewer questions at once");
    return rc == 1 ? 0 : -1;
}

static int append(struct answer *a, const char *text, size_t len)
{
    if (a->cap - a->len < len + 1) {
        size_t cap = 2 * (a->len + len + 1);
        char *grown = realloc(a->text, cap);
        if (!grown)
            return -1;
        a->text = grown;
        a->cap = cap;
    }
    memcpy(a->text + a->len, text, len);
    a->len += len;
    return 0;
}

/* Adds a finished answer to the score and hands its text on. */
static void finish(struct scoring *s, struct answer *a)
{
    const struct spa_example *row = &s->rows->rows[a->row];
    struct spa_talk_stats all = *spa_talk_stats(*s->talk, a->request), *stats = &all;
    spa_confirmed_stats(&a->confirmed, stats);
    s->score->rows++;
    s->score->exact += is_exact(a, &row->parts[row->n_parts - 1]);
    s->score->tokens += stats->tokens;
    s->score->gated += stats->gated;
    s->score->bytes_down += stats->bytes_down;
    s->score->bytes_up += stats->bytes_up;
    s->score->ladder_us += stats->ladder_us;
    s->score->steps += stats->steps;
    s->score->shared_steps += stats->shared_steps;
    if (s->answers) {
        a->text[a->len] = 0;
        s->answers[a->row] = a->text;
        a->text = NULL;
        a->cap = 0;
    }
    a->request = 0;
    s->n_open--;
    s->done++;
    s->waited_ms = 0;
}

static void refuse_row(const struct scoring *s, const struct answer *a, const struct spa_talk_event *ev, char *why,
                      size_t why_len)
{
    const struct spa_example *row = &s->rows->rows[a->row];
    snprintf(why, why_len, "the cloud could not answer %s line %u: %.*s", row->file, row->line,
             (int)(ev->text_len < 300 ? ev->text_len : 300), ev->text);
}

/* The cloud is full, or our share of it: fewer at once, and this one later. */
static void put_back(struct scoring *s, struct answer *a, uint32_t retry_ms)
{
    s->back[s->n_back++] = a->row;
    a->request = 0;
    s->n_open--;
    s->at_most = s->n_open ? s->n_open : 1;
    s->pause_ms = retry_ms;
}

static void rest(struct scoring *s)
{
    nanosleep(&(struct timespec){ s->pause_ms / 1000, (long)(s->pause_ms % 1000) * 1000000 }, NULL);
    s->waited_ms += s->pause_ms;
    s->pause_ms = 0;
}

/* 0; -1: the connection is of no more use; 1: a row was refused. Both with a sentence. */
static int take_event(struct scoring *s, struct spa_talk_event *ev, char *why, size_t why_len)
{
    struct answer *a = find(s, ev->request);
    if (!a)
        return 0;
    if (ev->type == SPA_TALK_ERROR) {
        refuse_row(s, a, ev, why, why_len);
        if (ev->code == spa_Code_BUSY && ev->retry_ms && s->again && s->waited_ms + ev->retry_ms <= PATIENCE_MS) {
            put_back(s, a, ev->retry_ms);
            return 0;
        }
        return ev->code == spa_Code_DRAINING || (ev->code == spa_Code_BUSY && a->confirmed.breaks) ? -1 : 1;
    }
    if (ev->type == SPA_TALK_TOKENS)
        s->fresh |= ev->tokens->ids_count > 0;
    if (spa_confirmed_take(&a->confirmed, ev) < 0) {
        no_memory(why, why_len);
        return 1;
    }
    /* A DONE appends nothing, but makes sure that there is a text to end. */
    if (append(a, ev->text ? ev->text : "", ev->text_len) != 0) {
        no_memory(why, why_len);
        return 1;
    }
    if (ev->type == SPA_TALK_DONE)
        finish(s, a);
    return 0;
}

static int run(struct scoring *s, void (*progress)(void *user, uint32_t done, uint32_t of), void *user, char *why,
               size_t why_len)
{
    while (s->done < s->n_asked) {
        int rc = 1;
        if (s->n_open == 0 && s->pause_ms)
            rest(s);
        while (rc == 1 && (s->n_back || s->next_row < s->rows->n) && !(s->at_most && s->n_open >= s->at_most)) {
            if (s->n_back || is_question(&s->rows->rows[s->next_row]))
                rc = ask_next(s, why, why_len);
            else
                s->next_row++;
        }
        if (rc == SPA_LINK_REFUSED || (rc < 0 && go_on(s, rc, why, why_len) != 0))
            return -1;
        if (rc < 0)
            continue;
        if (s->n_open == 0) {
            snprintf(why, why_len, "the connection to the cloud is busy with other requests");
            return -1;
        }
        struct spa_talk_event ev;
        uint32_t before = s->done;
        rc = spa_talk_wait(*s->talk, -1, &ev, why, why_len);
        if (rc > 0)
            rc = take_event(s, &ev, why, why_len);
        if (rc > 0 || (rc < 0 && go_on(s, rc, why, why_len) != 0))
            return -1;
        if (progress && s->done > before)
            progress(user, s->done, (uint32_t)s->n_asked);
    }
    return 0;
}

int spa_score_rows(struct spa_talk **t, const struct spa_score_again *again, const struct spa_rows *rows, spa_GateMode gate, int32_t n_predict, struct spa_score *out,
                   char **answers, void (*progress)(void *user, uint32_t done, uint32_t of), void *user, char *why, size_t why_len)
{
    *out = (struct spa_score){ 0 };
    if (answers)
        for (size_t i = 0; i < rows->n; i++)
            answers[i] = NULL;
    struct scoring *s = calloc(1, sizeof *s);
    if (!s)
        return no_memory(why, why_len);
    s->talk = t;
    s->again = again;
    s->rows = rows;
    s->score = out;
    s->answers = answers;
    for (size_t i = 0; i < rows->n; i++)
        s->n_asked += is_question(&rows->rows[i]);
    spa_talk_defaults(&s->settings);
    s->settings.temp = 0;
    s->settings.gate = gate;
    s->settings.n_predict = n_predict;
    s->settings.run_ahead = 0;   /* many questions are open at once: guesses would only add bytes */
    int rc = run(s, progress, user, why, why_len);
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++) {
        if (s->open[i].request)
            spa_talk_cancel(*t, s->open[i].request);
        free(s->open[i].text);
        spa_confirmed_free(&s->open[i].confirmed);
    }
    if (rc != 0 && answers) {
        for (size_t i = 0; i < rows->n; i++) {
            free(answers[i]);
            answers[i] = NULL;
        }
    }
    free(s);
    return rc;
}
