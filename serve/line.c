/* line.c - the thread between jobs and the cloud (line.h). In: jobs. Out: their events; states of the ladder, through talk.h.
 *
 * Under the lock: the queue of new jobs, the state, the counts, and which links there are to wake. Talks, and jobs once they are
 * taken out of the queue, are the thread's own. */
#define _POSIX_C_SOURCE 200809L
#include "line.h"
#include "past.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    WHY_MAX = 1024,
    WAIT_MS = 1000,               /* how long a wait for the cloud may last */
    REFUSED_REST_MS = 30000,      /* before clouds that refused us are asked again */
    BUSY_REST_MS = 500,           /* before a cloud that is full is asked to go on with an answer */
    TURN_MS = 5,                  /* how long one connection may wait when there are two */
};

struct connection {
    struct spa_link *link;        /* set and cleared by the thread, under the lock: whoever holds it may wake it */
    struct spa_talk *talk;        /* the thread's, like the rest; NULL: there is none */
    struct spa_job *open;         /* asked */
};

struct spa_line {
    struct spa_line_config cfg;
    struct spa_plugin_file plugin;
    bool has_plugin;
    struct spa_drafts *drafts;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    /* under the lock */
    struct spa_job *queue, **queue_end;
    struct connection here;       /* where questions go */
    struct connection drained;    /* whose cloud takes none any more: what is under way there may end */
    enum spa_line_state state;
    struct spa_line *fallback;
    struct spa_line_counts counts;
    char why[WHY_MAX], base_name[128];
    bool retired, stop, ended;
    /* the thread's */
    struct spa_job *waiting, **waiting_end;   /* to be asked: the cloud takes so many at once */
    struct spa_past past;         /* of here */
    struct spa_clouds clouds;
    struct spa_retry retry;       /* when to connect next */
    uint64_t lost_ms, busy_until_ms;
    bool draining;                /* here's cloud has just said that it takes no more questions */
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void wake_others(struct spa_line *l)
{
    l->cfg.wake(l->cfg.wake_user);
}

/* retry_s: as in api_error.h. */
static void fail_job_for(struct spa_line *l, struct spa_job *j, int status, const char *code, unsigned retry_s, const char *sentence)
{
    struct spa_api_error e;
    spa_api_fail(&e, status, code, NULL, "%s", sentence);
    e.retry_s = retry_s;
    pthread_mutex_lock(&l->lock);
    l->counts.open--;
    pthread_mutex_unlock(&l->lock);
    spa_job_fail(j, &e);
    spa_job_let_go(j);
}

static void fail_job(struct spa_line *l, struct spa_job *j, int status, const char *code, const char *sentence)
{
    fail_job_for(l, j, status, code, 0, sentence);
}

static void fail_list(struct spa_line *l, struct spa_job *list, const char *sentence)
{
    for (struct spa_job *next; list; list = next) {
        next = list->next;
        fail_job(l, list, 503, "cloud_unavailable", sentence);
    }
}

/* ---- asking ---- */

static spa_GateMode gate_mode(const struct spa_line *l, const struct spa_job *j)
{
    if (!l->has_plugin || j->base)
        return spa_GateMode_GATE_NEVER;
    return l->plugin.gate_w ? spa_GateMode_GATE_AUTO : spa_GateMode_GATE_ALWAYS;
}

/* true: j is open, or has failed; false: the cloud takes no more now. */
static bool ask(struct spa_line *l, struct spa_job *j)
{
    char why[WHY_MAX];
    const struct spa_question *q = &j->question;
    struct spa_part *parts = malloc((q->n_parts + 1) * sizeof *parts);
    if (!parts) {
        fail_job(l, j, 503, "cloud_unavailable", "there is not enough memory for a question");
        return true;
    }
    memcpy(parts, q->parts, q->n_parts * sizeof *parts);
    struct spa_talk_request r = { .parts = parts, .n_parts = q->n_parts, .settings = q->settings };
    if (j->confirmed.n)
        parts[r.n_parts++] = spa_confirmed_part(&j->confirmed);
    r.settings.gate = gate_mode(l, j);
    r.settings.after = spa_past_find(&l->past, q);
    r.settings.logprobs = q->logprobs ? 1 + (uint32_t)q->n_top : 0;
    if (spa_parts_len(r.parts, r.n_parts) + SPA_HEAD_MAX > spa_link_session(l->here.link)->welcome.max_message) {
        free(parts);
        fail_job(l, j, 400, "context_length_exceeded", "the question is too long for the cloud");
        return true;
    }
    const int rc = spa_talk_ask(l->here.talk, &r, &j->request, why, sizeof why);
    free(parts);
    if (rc == 0 || rc == -1)   /* lost: the next wait says so */
        return false;
    if (rc < 0) {
        fail_job(l, j, 503, "cloud_unavailable", why);
        return true;
    }
    pthread_mutex_lock(&l->lock);
    l->counts.continued += r.settings.after != 0;
    l->counts.resumed += j->confirmed.breaks > 0;
    pthread_mutex_unlock(&l->lock);
    if (j->deadline_ms)
        j->left_ms = j->deadline_ms > now_ms() ? j->deadline_ms - now_ms() : 1;
    j->deadline_ms = 0;
    j->cancel_sent = false;
    j->next = l->here.open;
    l->here.open = j;
    return true;
}

static void take_queue(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    *l->waiting_end = l->queue;
    if (l->queue)
        l->waiting_end = l->queue_end;
    l->queue = NULL;
    l->queue_end = &l->queue;
    pthread_mutex_unlock(&l->lock);
}

static void ask_waiting(struct spa_line *l)
{
    while (l->waiting && now_ms() >= l->busy_until_ms) {
        struct spa_job *j = l->waiting, *next = j->next;
        if (atomic_load(&j->cancelled))
            fail_job(l, j, 503, NULL, "the request was cancelled");
        else if (!ask(l, j))
            break;
        l->waiting = next;
    }
    if (!l->waiting)
        l->waiting_end = &l->waiting;
}

/* Until j, which is lost, has to be under way again. Time for which it waited in a cloud's queue does not count, but a cloud that is lost again
 * and again under a request gets no more of it either, until there was a token. */
static uint64_t time_left(const struct spa_line *l, const struct spa_job *j)
{
    return j->left_ms ? j->left_ms : l->cfg.retry_ms;
}

/* c, where j is no longer open, is lost, or its cloud cannot go on with j now. */
static void put_back(struct spa_line *l, const struct connection *c, struct spa_job *j)
{
    spa_confirmed_broken(&j->confirmed, spa_talk_stats(c->talk, j->request));
    j->deadline_ms = now_ms() + time_left(l, j);
    j->next = l->waiting;
    if (!l->waiting)
        l->waiting_end = &j->next;
    l->waiting = j;
}

/* Those who cannot wait any longer for a connection, or whom nobody waits for. */
static void fail_expired(struct spa_line *l, bool all, const char *why)
{
    struct spa_job **at = &l->waiting;
    while (*at) {
        struct spa_job *j = *at;
        if (!j->deadline_ms)
            j->deadline_ms = l->lost_ms + l->cfg.retry_ms;
        const bool unwanted = atomic_load(&j->cancelled);
        if (!all && !unwanted && now_ms() < j->deadline_ms) {
            at = &j->next;
            continue;
        }
        *at = j->next;
        fail_job(l, j, 503, unwanted ? NULL : "cloud_unavailable", unwanted ? "the request was cancelled" : why);
    }
    l->waiting_end = at;
}

static void cancel_unwanted(const struct connection *c)
{
    for (struct spa_job *j = c->open; j; j = j->next)
        if (atomic_load(&j->cancelled) && !j->cancel_sent) {
            spa_talk_cancel(c->talk, j->request);
            j->cancel_sent = true;
        }
}

/* ---- what the cloud says ---- */

static void refuse(struct spa_line *l, struct spa_job *j, const struct spa_talk_event *ev)
{
    static const struct { spa_Code of; int status; const char *code; } known[] = {
        { spa_Code_CONTEXT_FULL, 400, "context_length_exceeded" }, { spa_Code_TOO_LARGE, 400, "context_length_exceeded" },
        { spa_Code_BAD_REQUEST, 400, NULL }, { spa_Code_BUSY, 429, "cloud_busy" }, { spa_Code_DRAINING, 503, "cloud_unavailable" },
        { spa_Code_LATE_ANSWER, 503, "state_late" },
    };
    int status = 502;
    const char *code = "cloud_failed";
    char sentence[WHY_MAX];
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].of == ev->code) {
            status = known[i].status;
            code = known[i].code;
        }
    snprintf(sentence, sizeof sentence, "%.*s", (int)(ev->text_len < 400 ? ev->text_len : 400), ev->text);
    fail_job_for(l, j, status, code, (ev->retry_ms + 999) / 1000, sentence[0] ? sentence : "the cloud could not answer, and does not say why");
}

/* A cloud that goes down: the next connection. A full one: later, for an answer that began elsewhere. */
static bool waits_for_better(struct spa_line *l, const struct connection *c, struct spa_job *j, const struct spa_talk_event *ev)
{
    const bool drains = ev->code == spa_Code_DRAINING, full = ev->code == spa_Code_BUSY && j->confirmed.breaks;
    const uint64_t until = now_ms() + (full ? ev->retry_ms ? ev->retry_ms : BUSY_REST_MS : 0), at_last = now_ms() + time_left(l, j);
    l->draining |= drains && c == &l->here;
    if (l->cfg.retry_ms == 0 || (!drains && !full) || until >= at_last)   /* it is told how long, rather */
        return false;
    if (full && c == &l->here)
        l->busy_until_ms = until;
    put_back(l, c, j);
    return true;
}

static void on_event(struct spa_line *l, struct connection *c, struct spa_talk_event *ev)
{
    struct spa_job **at = &c->open;
    while (*at && (*at)->request != ev->request)
        at = &(*at)->next;
    struct spa_job *j = *at;
    if (!j)
        return;
    const int news = spa_confirmed_take(&j->confirmed, ev);
    if (news < 0) {
        *at = j->next;
        spa_talk_cancel(c->talk, j->request);
        fail_job(l, j, 503, NULL, "there is not enough memory for the answer");
        return;
    }
    if (news == 0)
        return;
    if (ev->type == SPA_TALK_TOKENS) {
        j->left_ms = ev->tokens->ids_count ? 0 : j->left_ms;
        spa_job_tokens(j, ev);
        return;
    }
    if (ev->type == SPA_TALK_LOGPROBS) {
        spa_job_logprobs(j, ev);
        return;
    }
    *at = j->next;
    if (ev->type == SPA_TALK_ERROR) {
        if (!waits_for_better(l, c, j, ev))
            refuse(l, j, ev);
        return;
    }
    if (ev->finish != spa_Finish_FINISH_CANCELLED && c == &l->here)
        spa_past_keep(&l->past, &j->question, j->request, j->text, j->text_len);
    struct spa_talk_stats stats = *spa_talk_stats(c->talk, j->request);
    spa_confirmed_stats(&j->confirmed, &stats);
    pthread_mutex_lock(&l->lock);
    l->counts.open--;
    l->counts.bytes_down += stats.bytes_down;
    l->counts.bytes_up += stats.bytes_up;
    l->counts.cancelled += ev->finish == spa_Finish_FINISH_CANCELLED;
    pthread_mutex_unlock(&l->lock);
    spa_job_done(j, ev->finish, &stats);
    spa_job_let_go(j);
}

/* ---- the connection ---- */

static void set_state(struct spa_line *l, enum spa_line_state state, const char *why)
{
    pthread_mutex_lock(&l->lock);
    l->state = state;
    snprintf(l->why, sizeof l->why, "%s", why);
    pthread_mutex_unlock(&l->lock);
    wake_others(l);
}

static void disconnect(struct spa_line *l, struct connection *c)
{
    pthread_mutex_lock(&l->lock);
    struct spa_link *link = c->link;
    c->link = NULL;
    pthread_mutex_unlock(&l->lock);
    spa_talk_free(c->talk);
    spa_link_close(link);
    c->talk = NULL;
    if (c == &l->here)
        spa_past_forget(&l->past);
}

/* What is under way there goes on elsewhere. */
static void leave(struct spa_line *l, struct connection *c)
{
    for (struct spa_job *j = c->open, *next; j; j = next) {
        next = j->next;
        put_back(l, c, j);
    }
    c->open = NULL;
    disconnect(l, c);
}

static int open_connection(struct spa_line *l, char *why, size_t why_len)
{
    struct spa_link *link;
    const struct spa_plugin_file *plugin = l->has_plugin ? &l->plugin : NULL;
    int rc = l->cfg.connect(l->cfg.connect_user, &l->clouds, plugin, &link, why, why_len);
    if (rc != 0)
        return rc;
    rc = spa_talk_new(&l->here.talk, link, plugin, why, why_len);
    if (rc != 0) {
        spa_link_close(link);
        return rc;
    }
    spa_talk_drafts(l->here.talk, l->drafts);
    pthread_mutex_lock(&l->lock);
    l->here.link = link;
    l->state = SPA_LINE_OPEN;
    memcpy(l->base_name, spa_link_session(link)->welcome.model, sizeof l->base_name);
    l->base_name[sizeof l->base_name - 1] = 0;
    pthread_mutex_unlock(&l->lock);
    wake_others(l);
    return 0;
}

/* All that has come, after a wait of up to timeout_ms for the first of it. As spa_talk_wait. */
static int take_events(struct spa_line *l, struct connection *c, int timeout_ms, char *why, size_t why_len)
{
    struct spa_talk_event ev;
    cancel_unwanted(c);
    int rc = spa_talk_wait(c->talk, timeout_ms, &ev, why, why_len);
    for (; rc == 1; rc = spa_talk_wait(c->talk, 0, &ev, why, why_len))
        on_event(l, c, &ev);
    return rc;
}

static void serve_drained(struct spa_line *l, int timeout_ms)
{
    char why[WHY_MAX];
    if (take_events(l, &l->drained, timeout_ms, why, sizeof why) < 0 || !l->drained.open)
        leave(l, &l->drained);
}

/* With the lock held: there is something to do. */
static bool is_roused(const struct spa_line *l)
{
    return l->queue || l->stop || (l->retired && !l->waiting && !l->drained.open);
}

/* Sleeps until a job comes, the time is up or the line is to end. */
static void rest(struct spa_line *l, int ms)
{
    const uint64_t end = now_ms() + (uint64_t)ms;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&l->lock);
    while (l->drained.talk && !is_roused(l) && now_ms() < end) {
        pthread_mutex_unlock(&l->lock);
        serve_drained(l, (int)(end - now_ms()));
        pthread_mutex_lock(&l->lock);
    }
    while (!is_roused(l))
        if (pthread_cond_timedwait(&l->news, &l->lock, &until) != 0)
            break;
    pthread_mutex_unlock(&l->lock);
}

/* A line tries for ever; its jobs have their deadlines. */
static int next_pause(struct spa_line *l)
{
    spa_retry_begin(&l->retry, 0, UINT64_MAX, (uint64_t)(uintptr_t)l ^ l->lost_ms);
    return (int)spa_retry_next(&l->retry, now_ms());
}

/* Questions have nowhere to go. */
static void connection_lost(struct spa_line *l, const char *why)
{
    l->lost_ms = now_ms();
    l->retry.begun = l->draining = false;
    l->busy_until_ms = 0;
    set_state(l, SPA_LINE_LOST, why);
    fail_expired(l, l->cfg.retry_ms == 0, why);
    rest(l, next_pause(l));   /* others may have lost theirs with us */
}

/* Questions go to another cloud from now on. Where one from before still drains, its answers go on there, too. */
static void let_drain(struct spa_line *l)
{
    if (l->drained.talk)
        leave(l, &l->drained);
    pthread_mutex_lock(&l->lock);
    l->drained = l->here;
    l->here = (struct connection){ 0 };
    pthread_mutex_unlock(&l->lock);
    spa_past_forget(&l->past);
    if (!l->drained.open)
        disconnect(l, &l->drained);
    connection_lost(l, "the cloud is shutting down");
}

/* The line never opened and will not: its jobs go to the one before it, or fail. */
static void give_up(struct spa_line *l, const char *why)
{
    set_state(l, SPA_LINE_FAILED, why);   /* from here on nothing is submitted */
    take_queue(l);
    for (struct spa_job *j = l->waiting, *next; j; j = next) {
        next = j->next;
        if (l->fallback && spa_line_submit(l->fallback, j)) {
            pthread_mutex_lock(&l->lock);
            l->counts.open--;
            pthread_mutex_unlock(&l->lock);
            spa_job_let_go(j);
        } else {
            fail_job(l, j, 503, "cloud_unavailable", why);
        }
    }
    l->waiting = NULL;
    l->waiting_end = &l->waiting;
}

static bool is_over(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    const bool over = l->stop || (l->retired && !l->queue && !l->waiting && !l->here.open && !l->drained.open);
    pthread_mutex_unlock(&l->lock);
    return over;
}

/* One round with a connection. */
static void serve_here(struct spa_line *l)
{
    char why[WHY_MAX];
    take_queue(l);
    ask_waiting(l);
    const int rc = take_events(l, &l->here, l->drained.talk ? TURN_MS : WAIT_MS, why, sizeof why);
    if (rc == SPA_LINK_REFUSED)
        l->clouds.refused |= 1u << l->clouds.at;
    if (rc < 0) {
        leave(l, &l->here);
        connection_lost(l, why);
    } else if (l->draining) {
        let_drain(l);
    }
}

/* No connection came about. */
static void wait_for_cloud(struct spa_line *l, int rc, const char *why)
{
    set_state(l, SPA_LINE_LOST, why);
    take_queue(l);   /* those who came while nobody answered */
    fail_expired(l, rc == SPA_LINK_REFUSED, why);
    if (rc == SPA_LINK_REFUSED)
        l->clouds.refused = 0;
    rest(l, rc == SPA_LINK_REFUSED ? REFUSED_REST_MS : next_pause(l));
}

static void *run(void *arg)
{
    struct spa_line *l = arg;
    char why[WHY_MAX];
    bool was_open = false;
    while (!is_over(l)) {
        if (l->drained.talk)
            serve_drained(l, 0);
        if (l->here.talk) {
            serve_here(l);
            continue;
        }
        const int rc = open_connection(l, why, sizeof why);
        if (rc == 0) {
            if (was_open) {
                pthread_mutex_lock(&l->lock);
                l->counts.reconnects++;
                pthread_mutex_unlock(&l->lock);
            }
            was_open = true;
            continue;
        }
        if (!was_open) {
            give_up(l, why);
            break;
        }
        wait_for_cloud(l, rc, why);
    }
    take_queue(l);
    struct spa_job *here = l->here.open, *drained = l->drained.open, *waiting = l->waiting;
    l->here.open = l->drained.open = l->waiting = NULL;
    disconnect(l, &l->here);
    disconnect(l, &l->drained);
    fail_list(l, here, "spa serve is shutting down");
    fail_list(l, drained, "spa serve is shutting down");
    fail_list(l, waiting, "spa serve is shutting down");
    pthread_mutex_lock(&l->lock);
    l->ended = true;
    pthread_mutex_unlock(&l->lock);
    wake_others(l);
    return NULL;
}

/* ---- from outside ---- */

struct spa_line *spa_line_new(const struct spa_line_config *cfg, struct spa_plugin_file *plugin, char *why, size_t why_len)
{
    struct spa_line *l = calloc(1, sizeof *l);
    if (!l) {
        snprintf(why, why_len, "there is not enough memory for a connection");
        return NULL;
    }
    l->cfg = *cfg;
    l->queue_end = &l->queue;
    l->waiting_end = &l->waiting;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->news, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (plugin) {
        l->plugin = *plugin;
        l->has_plugin = true;
        if (cfg->drafts)
            l->drafts = spa_drafts_new(SPA_DRAFTS_TOKENS);   /* without memory there are none, and no answer changes */
        if (l->drafts && cfg->features)
            spa_drafts_add_features(l->drafts, cfg->features, &l->plugin.plugin);
    }
    if (pthread_create(&l->thread, NULL, run, l) != 0) {
        snprintf(why, why_len, "this machine gives no more threads");
        spa_drafts_free(l->drafts);
        pthread_cond_destroy(&l->news);
        pthread_mutex_destroy(&l->lock);
        free(l);
        return NULL;
    }
    return l;
}

void spa_line_fall_back(struct spa_line *l, struct spa_line *other)
{
    pthread_mutex_lock(&l->lock);
    l->fallback = other;
    pthread_mutex_unlock(&l->lock);
}

/* With the lock held. */
static void rouse(struct spa_line *l)
{
    pthread_cond_signal(&l->news);
    if (l->here.link)
        spa_link_wake(l->here.link);
    if (l->drained.link)
        spa_link_wake(l->drained.link);
}

bool spa_line_submit(struct spa_line *l, struct spa_job *j)
{
    pthread_mutex_lock(&l->lock);
    const bool takes = l->state != SPA_LINE_FAILED && !l->retired && !l->stop;
    if (takes) {
        spa_job_hold(j);
        j->next = NULL;
        *l->queue_end = j;
        l->queue_end = &j->next;
        l->counts.open++;
        rouse(l);
    }
    pthread_mutex_unlock(&l->lock);
    return takes;
}

void spa_line_look(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    rouse(l);
    pthread_mutex_unlock(&l->lock);
}

enum spa_line_state spa_line_state(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    const enum spa_line_state state = l->state;
    pthread_mutex_unlock(&l->lock);
    return state;
}

void spa_line_why(struct spa_line *l, char *why, size_t why_len)
{
    pthread_mutex_lock(&l->lock);
    snprintf(why, why_len, "%s", l->why);
    pthread_mutex_unlock(&l->lock);
}

void spa_line_base_name(struct spa_line *l, char *name, size_t len)
{
    pthread_mutex_lock(&l->lock);
    snprintf(name, len, "%s", l->base_name);
    pthread_mutex_unlock(&l->lock);
}

struct spa_line_counts spa_line_counts(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    const struct spa_line_counts counts = l->counts;
    pthread_mutex_unlock(&l->lock);
    return counts;
}

void spa_line_retire(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    l->retired = true;
    rouse(l);
    pthread_mutex_unlock(&l->lock);
}

bool spa_line_ended(struct spa_line *l)
{
    pthread_mutex_lock(&l->lock);
    const bool ended = l->ended;
    pthread_mutex_unlock(&l->lock);
    return ended;
}

void spa_line_free(struct spa_line *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    rouse(l);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    spa_drafts_free(l->drafts);
    if (l->has_plugin)
        spa_plugin_file_free(&l->plugin);
    pthread_cond_destroy(&l->news);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
