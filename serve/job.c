/* job.c - events from one thread to another (job.h). */
#include "job.h"
#include "secret.h"
#include "utf8.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct inside {
    pthread_mutex_t lock;
    int holders;
    struct spa_job_event *first, **last;
    struct spa_job_event *end;         /* for the one event that has to get through without memory; NULL: it did */
    void (*wake)(void *user);
    void *user;
};

struct spa_job *spa_job_new(struct spa_question *q, bool base, void (*wake)(void *user), void *user)
{
    struct spa_job *j = calloc(1, sizeof *j);
    struct inside *in = calloc(1, sizeof *in);
    struct spa_job_event *end = malloc(sizeof *end);
    if (!j || !in || !end) {
        free(j);
        free(in);
        free(end);
        return NULL;
    }
    pthread_mutex_init(&in->lock, NULL);
    in->holders = 1;
    in->last = &in->first;
    in->end = end;
    in->wake = wake;
    in->user = user;
    j->inside = in;
    j->base = base;
    j->question = *q;
    *q = (struct spa_question){ 0 };
    return j;
}

void spa_job_event_free(struct spa_job_event *ev)
{
    spa_secret_free(ev, sizeof *ev + ev->text_len);
}

void spa_job_hold(struct spa_job *j)
{
    struct inside *in = j->inside;
    pthread_mutex_lock(&in->lock);
    in->holders++;
    pthread_mutex_unlock(&in->lock);
}

void spa_job_let_go(struct spa_job *j)
{
    if (!j)
        return;
    struct inside *in = j->inside;
    pthread_mutex_lock(&in->lock);
    const bool last = --in->holders == 0;
    pthread_mutex_unlock(&in->lock);
    if (!last)
        return;
    for (struct spa_job_event *ev = in->first, *next; ev; ev = next) {
        next = ev->next;
        spa_job_event_free(ev);
    }
    free(in->end);
    pthread_mutex_destroy(&in->lock);
    spa_question_free(&j->question);
    spa_secret_free(j->text, j->text_cap);
    spa_confirmed_free(&j->confirmed);
    free(in);
    free(j);
}

static void push(struct spa_job *j, struct spa_job_event *ev)
{
    struct inside *in = j->inside;
    pthread_mutex_lock(&in->lock);
    *in->last = ev;
    in->last = &ev->next;
    pthread_mutex_unlock(&in->lock);
    in->wake(in->user);
}

/* A model may say bytes that are no text: what JSON cannot hold becomes U+FFFD. */
void spa_job_tokens(struct spa_job *j, const struct spa_talk_event *t)
{
    const size_t room = spa_utf8_clean_room(t->text_len);
    struct spa_job_event *ev = calloc(1, sizeof *ev + room);
    const struct spa_api_error full = { .status = 503, .type = "server_error", .message = "there is not enough memory for the answer" };
    if (!ev) {
        spa_job_fail(j, &full);
        return;
    }
    ev->type = SPA_JOB_TOKENS;
    ev->text_len = spa_utf8_clean(t->text, t->text_len, ev->bytes);
    ev->n = t->tokens->ids_count;
    ev->plugin = ev->n && t->tokens->by[ev->n - 1] == spa_Speaker_PLUGIN;
    if (j->text_len + ev->text_len > j->text_cap) {
        const size_t cap = 2 * (j->text_len + ev->text_len) + 256;
        char *more = spa_secret_grow(j->text, j->text_cap, cap);
        if (more) {
            j->text = more;
            j->text_cap = cap;
        }
    }
    if (ev->text_len && j->text_len + ev->text_len <= j->text_cap) {
        memcpy(j->text + j->text_len, ev->bytes, ev->text_len);
        j->text_len += ev->text_len;
    }
    push(j, ev);
}

void spa_job_logprobs(struct spa_job *j, const struct spa_talk_event *t)
{
    struct spa_job_event *ev = calloc(1, sizeof *ev + t->text_len);
    if (!ev)   /* the answer goes on without this token's */
        return;
    ev->type = SPA_JOB_LOGPROBS;
    ev->text_len = t->text_len;
    memcpy(ev->bytes, t->text, t->text_len);
    push(j, ev);
}

static void push_end(struct spa_job *j, const struct spa_job_event *from)
{
    struct inside *in = j->inside;
    struct spa_job_event *ev = in->end;
    if (!ev)   /* it has ended before */
        return;
    in->end = NULL;
    *ev = *from;
    push(j, ev);
}

void spa_job_done(struct spa_job *j, spa_Finish finish, const struct spa_talk_stats *stats)
{
    push_end(j, &(struct spa_job_event){ .type = SPA_JOB_DONE, .finish = finish, .stats = *stats });
}

void spa_job_fail(struct spa_job *j, const struct spa_api_error *e)
{
    push_end(j, &(struct spa_job_event){ .type = SPA_JOB_FAILED, .error = *e });
}

struct spa_job_event *spa_job_next(struct spa_job *j)
{
    struct inside *in = j->inside;
    pthread_mutex_lock(&in->lock);
    struct spa_job_event *ev = in->first;
    if (ev) {
        in->first = ev->next;
        if (!in->first)
            in->last = &in->first;
    }
    pthread_mutex_unlock(&in->lock);
    return ev;
}
