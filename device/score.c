/* score.c - exact match over rows (score.h). In: rows with expected answers. Out: counts, and the answers if wanted. */
#include "score.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct answer {                      /* under way */
    uint32_t request;                /* 0: free */
    size_t   row;
    char    *text;
    size_t   len, cap;
};

struct scoring {
    struct spa_talk *talk;
    const struct spa_rows *rows;
    spa_Generate settings;
    struct spa_score *score;
    char **answers;
    struct answer open[SPA_REQUESTS_MAX];
    size_t n_open, next_row, n_asked;   /* n_asked: rows that have a question */
    uint32_t done;
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

/* Asks the next row, which has a question. As spa_talk_ask: 1, 0 when no more may be open, -1. */
static int ask_next(struct scoring *s, char *why, size_t why_len)
{
    const struct spa_example *row = &s->rows->rows[s->next_row];
    struct answer *a = find(s, 0);
    if (!a)
        return 0;
    size_t n = row->n_parts - 1;   /* all but the expected answer */
    struct spa_part *parts = calloc(n + 1, sizeof *parts);
    if (!parts)
        return no_memory(why, why_len);
    for (size_t i = 0; i < n; i++) {
        parts[i] = row->parts[i];
        parts[i].loss = false;   /* a mark of training rows */
    }
    struct spa_talk_request r = { .parts = parts, .n_parts = n, .settings = s->settings };
    int rc = spa_talk_ask(s->talk, &r, &a->request, why, why_len);
    free(parts);
    if (rc != 1) {
        a->request = 0;
        return rc;
    }
    a->row = s->next_row++;
    a->len = 0;
    s->n_open++;
    return 1;
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
    const struct spa_talk_stats *stats = spa_talk_stats(s->talk, a->request);
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
}

static int refuse_row(const struct scoring *s, const struct answer *a, const struct spa_talk_event *ev, char *why,
                      size_t why_len)
{
    const struct spa_example *row = &s->rows->rows[a->row];
    snprintf(why, why_len, "the cloud could not answer %s line %u: %.*s", row->file, row->line,
             (int)(ev->text_len < 300 ? ev->text_len : 300), ev->text);
    return -1;
}

static int take_event(struct scoring *s, const struct spa_talk_event *ev, char *why, size_t why_len)
{
    struct answer *a = find(s, ev->request);
    if (!a)
        return 0;
    if (ev->type == SPA_TALK_ERROR)
        return refuse_row(s, a, ev, why, why_len);
    /* A DONE appends nothing, but makes sure that there is a text to end. */
    if (append(a, ev->text ? ev->text : "", ev->text_len) != 0)
        return no_memory(why, why_len);
    if (ev->type == SPA_TALK_DONE)
        finish(s, a);
    return 0;
}

static int run(struct scoring *s, void (*progress)(void *user, uint32_t done, uint32_t of), void *user, char *why,
               size_t why_len)
{
    while (s->done < s->n_asked) {
        int rc = 1;
        while (rc == 1 && s->next_row < s->rows->n) {
            if (is_question(&s->rows->rows[s->next_row]))
                rc = ask_next(s, why, why_len);
            else
                s->next_row++;
        }
        if (rc < 0)
            return -1;
        if (s->n_open == 0) {
            snprintf(why, why_len, "the connection to the cloud is busy with other requests");
            return -1;
        }
        struct spa_talk_event ev;
        uint32_t before = s->done;
        if (spa_talk_wait(s->talk, -1, &ev, why, why_len) < 0 || take_event(s, &ev, why, why_len) != 0)
            return -1;
        if (progress && s->done > before)
            progress(user, s->done, (uint32_t)s->n_asked);
    }
    return 0;
}

int spa_score_rows(struct spa_talk *t, const struct spa_rows *rows, spa_GateMode gate, int32_t n_predict, struct spa_score *out,
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
            spa_talk_cancel(t, s->open[i].request);
        free(s->open[i].text);
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
