/* talk.c - answers (talk.h). In: events of a link. Out: states to the cloud, text and statistics to the caller.
 *
 * The ladder's way, per TAPS message: context rows extend the request's cache, full rows extend it as well and are
 * answered with z before the next event is looked at. */
#define _POSIX_C_SOURCE 200809L
#include "talk.h"
#include "ladder.h"
#include "secret.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXT_FIRST_CAP = 256,   /* tokens; doubled when a sequence outgrows it */
    CACHES_KEPT       = 8,     /* of ended requests, before the oldest serves again */
    ANSWER_MAX        = 2048,  /* tokens of an answer that drafts are looked up for */
    DRAFT_LEFT        = 20,    /* a draft that holds, and has so much left, is not sent again */
};

struct draft {                       /* of an open request */
    int32_t  answer[ANSWER_MAX];     /* what was said so far */
    uint32_t n, first;               /* tokens of it; the first one's number, above 0 when the answer was resumed */
    int32_t  sent[SPA_DRAFT_MAX];    /* the newest that left, */
    uint32_t n_sent, sent_at;        /* and what n was then */
    struct spa_drafts_near near;     /* to what the question is near; looked up with the first state */
    bool     near_known;
};

struct place {                       /* of one request; kept with its cache for the next one */
    uint32_t request;                /* 0: never used */
    bool     open;
    struct spa_context context;
    struct spa_talk_stats stats;
    struct draft *draft;             /* NULL: none are wanted, or no memory for them */
};

struct spa_talk {
    struct spa_link *link;
    struct spa_session *session;
    const struct spa_plugin_file *plugin;
    const struct spa_shape *shape;   /* NULL without a plugin */
    float   *x, *x_ctx, *z;          /* one full row, one context row, one state */
    uint8_t *state_bytes;
    float   *scratch;
    uint32_t scratch_cap;            /* context tokens that scratch has room for */
    struct spa_drafts *drafts;       /* NULL: none */
    uint32_t window;                 /* tokens that the ladder looks back on; 0: all */
    bool     pad;
    struct place places[SPA_REQUESTS_MAX];
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int no_memory(char *why, size_t why_len)
{
    snprintf(why, why_len, "there is not enough memory for an answer");
    return SPA_LINK_REFUSED;
}

/* ---- memory ---- */

static int grow_scratch(struct spa_talk *t, uint32_t cap)
{
    if (t->scratch && cap <= t->scratch_cap)
        return 0;
    float *scratch = spa_secret_grow(t->scratch, t->scratch ? spa_ladder_scratch_len(t->shape, t->scratch_cap) * sizeof *scratch : 0,
                                     spa_ladder_scratch_len(t->shape, cap) * sizeof *scratch);
    if (!scratch)
        return -1;
    t->scratch = scratch;
    t->scratch_cap = cap;
    return 0;
}

static int grow_context(struct spa_talk *t, struct spa_context *c)
{
    uint32_t cap = c->cap ? 2 * c->cap : CONTEXT_FIRST_CAP, limit = t->session->welcome.n_ctx;
    if (c->window && spa_context_cap(c->window) < limit)
        limit = spa_context_cap(c->window);
    if (cap > limit)
        cap = limit;
    if (cap <= c->cap)   /* the session lets no sequence grow beyond n_ctx, and with a window nothing is ever full */
        return -1;
    float *kv = grow_scratch(t, cap) == 0
                    ? spa_secret_grow(c->kv, spa_context_floats(t->shape, c->cap) * sizeof *kv, spa_context_floats(t->shape, cap) * sizeof *kv) : NULL;
    if (!kv)
        return -1;
    c->kv = kv;
    c->cap = cap;
    return 0;
}

int spa_talk_new(struct spa_talk **out, struct spa_link *link, const struct spa_plugin_file *plugin, char *why, size_t why_len)
{
    *out = NULL;
    struct spa_talk *t = calloc(1, sizeof *t);
    if (!t)
        return no_memory(why, why_len);
    t->link = link;
    t->session = spa_link_session(link);
    if (plugin) {
        const struct spa_shape *s = &plugin->plugin.shape;
        t->plugin = plugin;
        t->shape = s;
        t->x = malloc((size_t)s->n_taps * s->k * sizeof(float));
        t->x_ctx = malloc(((size_t)s->n_ctx_taps * s->k + 1) * sizeof(float));
        t->z = malloc(s->d * sizeof(float));
        t->state_bytes = malloc(spa_wire_state_bytes(s, t->session->state_dtype));
        if (!t->x || !t->x_ctx || !t->z || !t->state_bytes || grow_scratch(t, CONTEXT_FIRST_CAP) != 0) {
            spa_talk_free(t);
            return no_memory(why, why_len);
        }
    }
    *out = t;
    return 0;
}

void spa_talk_window(struct spa_talk *t, uint32_t tokens)
{
    t->window = tokens < t->session->welcome.n_ctx ? tokens : 0;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        t->places[i].context.window = t->window;
}

void spa_talk_drafts(struct spa_talk *t, struct spa_drafts *d) { t->drafts = d; }

void spa_talk_pad(struct spa_talk *t, bool pad) { t->pad = pad; }

void spa_talk_free(struct spa_talk *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++) {
        struct place *p = &t->places[i];
        spa_secret_free(p->context.kv, p->context.kv ? spa_context_floats(t->shape, p->context.cap) * sizeof *p->context.kv : 0);
        spa_secret_free(p->draft, sizeof *p->draft);
    }
    const struct spa_shape *s = t->shape;
    spa_secret_free(t->x, s ? (size_t)s->n_taps * s->k * sizeof *t->x : 0);
    spa_secret_free(t->x_ctx, s ? (size_t)s->n_ctx_taps * s->k * sizeof *t->x_ctx : 0);
    spa_secret_free(t->z, s ? s->d * sizeof *t->z : 0);
    spa_secret_free(t->state_bytes, s ? spa_wire_state_bytes(s, t->session->state_dtype) : 0);
    spa_secret_free(t->scratch, t->scratch ? spa_ladder_scratch_len(s, t->scratch_cap) * sizeof *t->scratch : 0);
    free(t);
}

/* ---- requests ---- */

static struct place *find(struct spa_talk *t, uint32_t request)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (t->places[i].open && t->places[i].request == request)
            return &t->places[i];
    return NULL;
}

/* The place of an ended request; NULL: it is taken. */
static struct place *ended_place(struct spa_talk *t, uint32_t request)
{
    for (size_t i = 0; request && i < SPA_REQUESTS_MAX; i++)
        if (!t->places[i].open && t->places[i].request == request)
            return &t->places[i];
    return NULL;
}

/* A closed place, the longest unused first, so that statistics stay readable and caches can be gone on from for a while;
 * NULL: none. */
static struct place *free_place(struct spa_talk *t)
{
    struct place *best = NULL;
    uint32_t caches = 0;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++) {
        struct place *p = &t->places[i];
        if (p->open || !p->context.kv)
            continue;
        caches++;
        if (!best || p->stats.ended_us < best->stats.ended_us)
            best = p;
    }
    if (caches >= CACHES_KEPT)   /* one that is there serves again before a new one is made */
        return best;
    best = NULL;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (!t->places[i].open && (!best || t->places[i].stats.ended_us < best->stats.ended_us))
            best = &t->places[i];
    return best;
}

/* What was confirmed is part of the answer. */
static void begin_draft(struct draft *d, const struct spa_part *parts, size_t n_parts)
{
    d->n = d->first = d->n_sent = 0;
    d->near = (struct spa_drafts_near){ 0 };
    d->near_known = false;
    for (size_t i = 0; i < n_parts; i++)
        if (parts[i].kind == SPA_PART_CONFIRMED) {
            const uint32_t n = parts[i].len / sizeof *d->answer;
            d->n = n < ANSWER_MAX ? n : ANSWER_MAX;
            memcpy(d->answer, parts[i].bytes, d->n * sizeof *d->answer);
        }
}

int spa_talk_ask(struct spa_talk *t, const struct spa_talk_request *r, uint32_t *request, char *why, size_t why_len)
{
    struct place *before = ended_place(t, r->settings.after), *p = before ? before : free_place(t);
    if (!p)
        return 0;
    const size_t work_len = spa_parts_len(r->parts, r->n_parts) + 1;
    uint8_t *work = malloc(work_len);
    if (!work)
        return no_memory(why, why_len);
    spa_Generate g = r->settings;
    g.pad = t->pad;
    g.run_ahead = t->pad ? 0 : g.run_ahead;
    g.after_from = before ? spa_context_floor(&before->context) : 0;
    g.after_to = before ? before->context.len : 0;
    uint64_t up = spa_link_bytes(t->link).up;
    enum spa_err e = spa_session_generate(t->session, &g, r->parts, r->n_parts, work);
    spa_secret_free(work, work_len);
    switch (e) {
    case SPA_OK:
        break;
    case SPA_ERR_NOMEM:
        return 0;
    case SPA_ERR_LIMIT:
        snprintf(why, why_len, "the question is too long: the cloud takes messages of at most %u bytes",
                 t->session->welcome.max_message);
        return SPA_LINK_REFUSED;
    case SPA_ERR_VERSION:
        snprintf(why, why_len, "this cloud does not know --pad; leave it out, or ask the cloud's owner to upgrade");
        return SPA_LINK_REFUSED;
    default:
        snprintf(why, why_len, "the connection to the cloud is lost (%s)", spa_err_name(e));
        return -1;
    }
    p->request = *request = g.request;
    p->open = true;
    if (!before)
        spa_context_cut(&p->context, 0);
    if (t->drafts && g.run_ahead && !p->draft)
        p->draft = malloc(sizeof *p->draft);   /* without memory nothing is drafted */
    if (p->draft)
        begin_draft(p->draft, r->parts, r->n_parts);
    p->stats = (struct spa_talk_stats){ .started_us = now_us(), .bytes_up = spa_link_bytes(t->link).up - up };
    return 1;
}

void spa_talk_cancel(struct spa_talk *t, uint32_t request)
{
    struct place *p = find(t, request);
    uint64_t up = spa_link_bytes(t->link).up;
    if (p && spa_session_cancel(t->session, request) == SPA_OK)   /* a lost link is for the next wait to tell */
        p->stats.bytes_up += spa_link_bytes(t->link).up - up;
}

const struct spa_talk_stats *spa_talk_stats(const struct spa_talk *t, uint32_t request)
{
    const struct place *newest = NULL;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (t->places[i].request == request && (!newest || t->places[i].open))
            newest = &t->places[i];
    assert(newest);
    return &newest->stats;
}

/* ---- drafts ---- */

static void note_tokens(struct place *p, const spa_Tokens *tokens)
{
    struct draft *d = p->draft;
    if (!d)
        return;
    if (d->n == 0)
        d->first = tokens->index;
    for (pb_size_t i = 0; i < tokens->ids_count && d->n < ANSWER_MAX; i++)
        d->answer[d->n++] = tokens->ids[i];
}

/* Does what left before still say enough? */
static bool draft_holds(const struct draft *d)
{
    const uint32_t said = d->n - d->sent_at;
    for (uint32_t at = 0; at < d->n_sent; at++) {
        uint32_t len = 0;
        while (at + len < d->n_sent && d->sent[at + len] >= 0)
            len++;
        if (len >= said + DRAFT_LEFT && memcmp(d->sent + at, d->answer + d->sent_at, said * sizeof *d->sent) == 0)
            return true;
        at += len;
    }
    return false;
}

static void add_draft(struct spa_talk *t, struct place *p)
{
    struct draft *d = p->draft;
    spa_session_draft(t->session, 0, NULL, 0);
    if (!t->drafts || !d || d->n == ANSWER_MAX || d->first > 0 || (d->n_sent && (d->n == d->sent_at || draft_holds(d))))
        return;
    if (d->n == 0 && !d->near_known)
        d->near = spa_drafts_near(t->drafts, t->shape, t->x);
    d->near_known = true;
    int32_t ways[SPA_DRAFT_MAX];
    const uint32_t n = spa_drafts_look(t->drafts, &d->near, d->answer, d->n, ways, SPA_DRAFT_MAX);
    if (n == 0)
        return;
    memcpy(d->sent, ways, n * sizeof *ways);
    d->n_sent = n;
    d->sent_at = d->n;
    spa_session_draft(t->session, d->n, ways, n);
}

/* ---- the ladder's turn ---- */

static enum spa_err append_context(struct spa_talk *t, struct place *p)
{
    enum spa_err e = spa_ladder_context(t->shape, t->plugin->params, t->x_ctx, t->scratch, &p->context);
    if (e == SPA_ERR_NOMEM && grow_context(t, &p->context) == 0)
        e = spa_ladder_context(t->shape, t->plugin->params, t->x_ctx, t->scratch, &p->context);
    return e;
}

static enum spa_err take_taps(struct spa_talk *t, struct place *p, const struct spa_message *m)
{
    const spa_Taps *taps = &m->head.taps;
    bool with_context = t->shape && t->shape->n_ctx_taps > 0;
    if (!t->shape)
        return SPA_ERR_ORDER;
    /* Lower: the cloud has cut back its own tail (a higher epoch), or the request went on from another one's middle. */
    if (with_context && spa_context_cut(&p->context, taps->pos) != SPA_OK)
        return SPA_ERR_ORDER;
    /* Of several asked rows the cloud awaits the last one's state; those before it are tokens that it settled meanwhile. */
    uint32_t owed = taps->asked_count ? taps->asked[taps->asked_count - 1] : UINT32_MAX;
    for (uint32_t i = 0; i < taps->n_rows; i++) {
        bool asked = spa_taps_row_asked(m, i);
        enum spa_err e = spa_taps_row(t->session, m, i, asked ? t->x : t->x_ctx);
        if (e != SPA_OK)
            return e;
        if (asked && with_context)
            spa_ladder_context_of(t->shape, t->x, t->x_ctx);
        if (with_context && (e = append_context(t, p)) != SPA_OK)
            return e;
        if (i != owed)
            continue;
        spa_ladder_forward(t->shape, t->plugin->params, t->x, with_context ? &p->context : NULL, t->scratch, t->z);
        add_draft(t, p);
        e = spa_session_answer(t->session, taps->request, taps->epoch, taps->pos + i, t->z, t->state_bytes);
        if (e != SPA_OK)
            return e;
        p->stats.round_trips++;
    }
    return SPA_OK;
}

static int run_ladder(struct spa_talk *t, struct place *p, const struct spa_message *m, char *why, size_t why_len)
{
    uint64_t start = now_us(), up = spa_link_bytes(t->link).up;
    enum spa_err e = take_taps(t, p, m);
    p->stats.ladder_us += now_us() - start;
    p->stats.bytes_up += spa_link_bytes(t->link).up - up;
    if (e == SPA_OK || e == SPA_ERR_CLOSED)   /* CLOSED: the next wait says what happened to the link */
        return 0;
    if (e == SPA_ERR_NOMEM)
        return no_memory(why, why_len);
    snprintf(why, why_len, e == SPA_ERR_RANGE ? "the cloud sent states that are no finite numbers (%s)" :
             "the cloud sent states out of order (%s)", spa_err_name(e));
    return SPA_LINK_REFUSED;
}

/* ---- events ---- */

static void note_end(struct place *p)
{
    p->stats.ended_us = now_us();
    p->open = false;
}

static void note_done(struct place *p, const spa_Done *d)
{
    p->stats.tokens = d->completion_tokens;
    p->stats.prompt_tokens = d->prompt_tokens;
    p->stats.cached_tokens = d->cached_tokens;
    p->stats.gated = d->gated;
    p->stats.late = d->late;
    p->stats.refused = d->refused;
    p->stats.steps = d->steps;
    p->stats.shared_steps = d->shared_steps;
    p->stats.guessed_base = d->guessed_base;
    p->stats.right_base = d->right_base;
    p->stats.guessed_text = d->guessed_text;
    p->stats.right_text = d->right_text;
    p->stats.guessed_draft = d->guessed_draft;
    p->stats.right_draft = d->right_draft;
    p->stats.wasted_steps = d->wasted_steps;
    p->stats.waits = d->waits;
    note_end(p);
}

/* 1: *ev is for the caller; 0: dealt with here; SPA_LINK_REFUSED: the link is of no use any more. */
static int take_event(struct spa_talk *t, const struct spa_session_event *in, struct spa_talk_event *ev, char *why,
                      size_t why_len)
{
    struct place *p = find(t, in->request);
    if (!p)
        return 0;
    const struct spa_message *m = in->msg;
    p->stats.bytes_down += t->session->reader.taken;   /* of the message behind this event, prefix and head included */
    memset(ev, 0, sizeof *ev);
    ev->request = in->request;
    switch (in->type) {
    case SPA_MSG_TAPS:
        return run_ladder(t, p, m, why, why_len);
    case SPA_MSG_TOKENS:
        if (!p->stats.first_token_us)
            p->stats.first_token_us = now_us();
        p->stats.tokens += m->head.tokens.ids_count;
        note_tokens(p, &m->head.tokens);
        ev->type = SPA_TALK_TOKENS;
        ev->tokens = &m->head.tokens;
        ev->text = (const char *)m->bulk;
        ev->text_len = m->bulk_len;
        return 1;
    case SPA_MSG_LOGPROBS:
        ev->type = SPA_TALK_LOGPROBS;
        ev->text = (const char *)m->bulk;
        ev->text_len = m->bulk_len;
        return 1;
    case SPA_MSG_DONE:
        note_done(p, &m->head.done);
        if (in->back_to < p->context.len && spa_context_cut(&p->context, in->back_to) != SPA_OK)
            spa_context_cut(&p->context, 0);
        if (t->drafts && p->draft && p->draft->first == 0)
            spa_drafts_add(t->drafts, p->draft->answer, p->draft->n);
        ev->type = SPA_TALK_DONE;
        ev->finish = m->head.done.finish;
        return 1;
    case SPA_MSG_ERROR:
        note_end(p);
        ev->type = SPA_TALK_ERROR;
        ev->code = m->head.error.code;
        ev->retry_ms = m->head.error.retry_ms;
        ev->text = (const char *)m->bulk;
        ev->text_len = m->bulk_len;
        return 1;
    default:
        return 0;
    }
}

int spa_talk_wait(struct spa_talk *t, int timeout_ms, struct spa_talk_event *ev, char *why, size_t why_len)
{
    uint64_t until = now_us() + (timeout_ms > 0 ? (uint64_t)timeout_ms * 1000 : 0);
    for (;;) {
        struct spa_session_event in;
        int rc = spa_link_wait(t->link, timeout_ms, &in, why, why_len);
        if (rc <= 0)
            return rc;
        rc = take_event(t, &in, ev, why, why_len);
        if (rc != 0)
            return rc;
        if (timeout_ms >= 0) {
            uint64_t now = now_us();
            if (now >= until)
                return 0;
            timeout_ms = (int)((until - now) / 1000) + 1;
        }
    }
}
