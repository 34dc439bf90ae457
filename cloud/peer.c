/* peer.c - in: bytes of one connection, through its host. out: turns and their ends. HELLO and blobs are peer_hello.c's, training rows peer_learn.c's. */
#include "engine_parts.h"
#include "secret.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum spa_err send_message(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    struct peer *p = user;
    const enum spa_err err = spa_mail_send(p->engine->cfg.mail, p->conn, a, a_len, b, b_len);
    p->unsendable |= err != SPA_OK;
    return err;
}

struct peer *peer_new(struct spa_engine *e, struct spa_conn *c)
{
    struct peer *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->engine = e;
    p->conn = c;
    p->number = ++e->next_number;
    p->busy_ms = spa_now_ms();
    p->account = spa_account_get(&e->accounts, spa_conn_who(c), p->busy_ms);
    p->rows_end = &p->rows;
    p->group = 1;
    ahead_hope(p);
    p->buf = malloc(e->cfg.max_message);   /* touched page by page as messages come: an idle connection costs little */
    p->z = malloc(e->model->info.d * sizeof *p->z);
    if (!p->buf || !p->z || !p->account) {
        spa_account_put(&e->accounts, p->account, p->busy_ms);
        free(p->buf);
        free(p->z);
        free(p);
        return NULL;
    }
    const struct spa_sink sink = { p, send_message };
    spa_host_init(&p->host, sink, &e->cfg.limits, p->buf, e->cfg.max_message, p->z, e->model->info.d, spa_now_ms());
    return p;
}

bool peer_broken(const struct peer *p)
{
    return p->host.state == SPA_HOST_CLOSED || p->host.error < 0 || p->unsendable;
}

/* ---- turns ---- */

/* keep: its sequence stays in the slot for a request that goes on from it. */
static void turn_leaves(struct peer *p, struct spa_turn *t, bool keep)
{
    struct spa_engine *e = p->engine;
    const bool queued = t->status == SPA_TURN_QUEUED;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i] == t)
            p->turns[i] = NULL;
    p->n_turns--;
    p->account->open--;
    p->busy_ms = spa_now_ms();
    if (queued) {
        e->n_queued--;
        p->n_queued--;
        p->account->queued--;
    } else {
        const double ms = (double)(p->busy_ms - t->entered_ms);
        e->turn_ms = e->turn_ms > 0 ? 0.9 * e->turn_ms + 0.1 * ms : ms;

        e->slots[t->slot] = NULL;
        e->slot_peer[t->slot] = NULL;
        if (keep) {
            kept_store(e, p, t);
            return;
        }
        e->model->seq_rm(e->model->self, t->slot, 0);
    }
    spa_turn_free(t);
}

static void send_said(struct peer *p, struct spa_turn *t)
{
    const size_t len = spa_turn_said_text(t);
    spa_host_tokens(&p->host, t->request, t->said_index, t->said, t->said_by, t->n_said, t->said_text, len);
    spa_turn_said(t, len);
}

void peer_said(struct peer *p, struct spa_turn *t, bool all)
{
    while (t->n_said || (t->said_len && (all || !t->pad)))
        send_said(p, t);
}

void peer_turn_end(struct peer *p, struct spa_turn *t, spa_Finish finish)
{
    peer_said(p, t, true);
    static const char *const words[] = { "stop", "length", "cancelled", "context" };
    if (t->status != SPA_TURN_QUEUED)
        ahead_end(p->engine, p, t);
    const struct spa_ahead *a = &t->ahead;
    spa_Done done = { .request = t->request, .finish = finish, .prompt_tokens = t->n_prompt, .completion_tokens = t->n_answer,
                      .steps = t->steps, .shared_steps = t->shared_steps, .cached_tokens = t->n_cached,
                      .guessed_base = a->guessed[SPA_GUESS_BASE], .right_base = a->right[SPA_GUESS_BASE],
                      .guessed_text = a->guessed[SPA_GUESS_TEXT], .right_text = a->right[SPA_GUESS_TEXT],
                      .guessed_draft = a->guessed[SPA_GUESS_DRAFT], .right_draft = a->right[SPA_GUESS_DRAFT],
                      .wasted_steps = a->wasted_steps, .waits = a->waits };
    spa_host_done(&p->host, &done);
    p->engine->metrics.ends[finish]++;
    engine_log(p->engine, "connection %u request %u ended: %s, %u prompt tokens, %u of them kept from before, %u answered, %u asked of the device, %u late, %u refused",
               p->number, t->request, words[finish], t->n_prompt, t->n_cached, t->n_answer, done.gated, done.late, done.refused);
    turn_leaves(p, t, true);
}

void peer_turn_fail(struct peer *p, struct spa_turn *t, spa_Code code, const char *sentence)
{
    peer_said(p, t, true);
    spa_host_error(&p->host, t->request, code, sentence);
    p->engine->metrics.ends[SPA_END_FAILED]++;
    engine_log_at(p->engine, SPA_LOG_WARN, "connection %u request %u failed: %s", p->number, t->request, sentence);
    turn_leaves(p, t, false);
}

void peer_turn_crowded_out(struct peer *p, struct spa_turn *t, uint32_t retry_ms)
{
    char why[128];
    snprintf(why, sizeof why, "the cloud's queue is full, and others have fewer places in it; try again in %u s", (retry_ms + 999) / 1000);
    spa_host_busy(&p->host, t->request, retry_ms, why);
    p->engine->metrics.ends[SPA_END_REFUSED]++;
    engine_log_at(p->engine, SPA_LOG_WARN, "connection %u request %u refused: %s", p->number, t->request, why);
    turn_leaves(p, t, false);
}

size_t peer_prompt_bytes(const struct spa_message *m)
{
    struct spa_part part;
    size_t bytes = 0;
    for (size_t at = 0; spa_part_next(m->bulk, m->bulk_len, &at, &part) == SPA_OK;)
        bytes += part.kind == SPA_PART_STOP || part.kind == SPA_PART_CONFIRMED ? 0 : part.len;
    return bytes;
}

static struct spa_turn *turn_of(const struct peer *p, uint32_t request)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i] && p->turns[i]->request == request)
            return p->turns[i];
    return NULL;
}

static void on_generate(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const spa_Generate *g = &m->head.generate;
    struct admission a;
    struct spa_turn *t = NULL;
    if (admit(p, m, p->came_ms, &a)) {
        t = spa_turn_new(e->model, g, m->bulk, m->bulk_len, &a.code, a.why, sizeof a.why);
        a.refusal = a.code == spa_Code_CONTEXT_FULL ? SPA_REFUSED_CONTEXT : SPA_REFUSED_CONTENTS;
    }
    size_t place = 0;
    while (place < SPA_REQUESTS_MAX && p->turns[place])
        place++;
    if (!t || place == SPA_REQUESTS_MAX) {
        spa_turn_free(t);
        if (a.retry_ms)
            spa_host_busy(&p->host, g->request, a.retry_ms, a.why);
        else
            spa_host_error(&p->host, g->request, a.code, a.why);
        e->metrics.ends[SPA_END_REFUSED]++;
        e->metrics.refused[a.refusal]++;
        engine_log_at(e, SPA_LOG_WARN, "connection %u request %u refused: %s", p->number, g->request, a.why);
        return;
    }
    admit_make_room(e, p);
    t->arrived = ++e->arrivals;
    if (t->pad)
        spa_mail_alone(e->cfg.mail, p->conn);
    ahead_begin(e, p, t);
    p->turns[place] = t;
    p->n_turns++;
    p->n_queued++;
    p->account->open++;
    p->account->queued++;
    e->n_queued++;
    e->metrics.resumed += t->n_confirmed > 0;
    if (t->over) {   /* only its DONE was lost */
        peer_turn_end(p, t, t->over_by);
        return;
    }
    engine_log_at(e, SPA_LOG_DEBUG, "connection %u request %u asks: %u prompt tokens, %u confirmed, %u wait for a slot", p->number, t->request, t->n_prompt, t->n_confirmed, e->n_queued);
}

/* For the token that the device was asked for. */
static void base_speaks(const struct peer *p, struct spa_turn *t)
{
    memcpy(t->state, t->y_fin, p->engine->model->info.d * sizeof *t->state);
    t->by = spa_Speaker_BASE;
    t->status = SPA_TURN_STATE;
}

static void on_state(struct peer *p, const struct spa_host_event *ev)
{
    struct spa_turn *t = turn_of(p, ev->request);
    if (!t)
        return;
    ahead_draft(t, &ev->msg->head.state);
    if (ev->pos >= t->n_tokens) {   /* behind the front */
        ahead_answer(p, t, ev->pos, ev->z, spa_Code_OK);
        return;
    }
    if (t->status != SPA_TURN_AWAITING)
        return;
    ahead_came(p, t->ahead.asked_ms);
    if (t->quiet) {
        base_speaks(p, t);
        return;
    }
    const bool add = p->host.shape.mode == SPA_ADD;
    for (uint32_t i = 0; i < p->engine->model->info.d; i++)
        t->state[i] = ev->z[i] + (add ? t->y_fin[i] : 0.0f);
    t->by = spa_Speaker_PLUGIN;
    t->status = SPA_TURN_STATE;
}

void peer_no_state(struct peer *p, struct spa_turn *t, spa_Code code)
{
    peer_turn_fail(p, t, code, code == spa_Code_LATE_ANSWER ? "the device did not answer in time; try again, or let the base speak (--late base)"
                   : "the device's state was unusable (wrong length, not finite, or absurdly large); the plugin is damaged or of another model");
}

/* The device did not answer, or not usably: the base speaks for this token, or the request ends, as it asked. */
static void on_no_state(struct peer *p, const struct spa_host_event *ev, spa_Code code)
{
    struct spa_turn *t = turn_of(p, ev->request);
    *(code == spa_Code_LATE_ANSWER ? &p->engine->metrics.late : &p->engine->metrics.unusable) += 1;
    const struct spa_host_request *r = spa_host_request(&p->host, ev->request);
    engine_log_at(p->engine, SPA_LOG_DEBUG, "connection %u request %u: the state of position %u is %s", p->number, ev->request, ev->pos,
                  code == spa_Code_LATE_ANSWER ? "late" : "unusable");
    if (!t || !r)
        return;
    if (ev->pos >= t->n_tokens) {   /* behind the front: perhaps it is not part of the answer */
        ahead_answer(p, t, ev->pos, NULL, r->late_policy == spa_Late_LATE_BASE ? spa_Code_OK : code);
        return;
    }
    if (t->status != SPA_TURN_AWAITING)
        return;
    if (r->late_policy == spa_Late_LATE_BASE)
        base_speaks(p, t);
    else   /* also where the gate is closed: who delays a padded request's states learns nothing */
        peer_no_state(p, t, code);
}

/* ---- the conversation ---- */

static void on_event(struct peer *p, const struct spa_host_event *ev)
{
    struct spa_turn *t;
    p->engine->metrics.stray += ev->type == SPA_HOST_STRAY;
    switch (ev->type) {
    case SPA_HOST_HELLO:     peer_hello(p, ev->msg); break;
    case SPA_HOST_BLOB:      peer_blob(p, ev->msg); break;
    case SPA_HOST_GENERATE:  on_generate(p, ev->msg); break;
    case SPA_HOST_CANCEL:
        if ((t = turn_of(p, ev->request)))
            peer_turn_end(p, t, spa_Finish_FINISH_CANCELLED);
        break;
    case SPA_HOST_STATE:     on_state(p, ev); break;
    case SPA_HOST_LATE:      on_no_state(p, ev, spa_Code_LATE_ANSWER); break;
    case SPA_HOST_BAD_STATE: on_no_state(p, ev, spa_Code_BAD_STATE); break;
    case SPA_HOST_LEARN:     peer_learn(p, ev->msg); break;
    case SPA_HOST_LOSS:      losses_take(p, ev->msg); break;
    case SPA_HOST_FETCH:     peer_fetch(p, ev->msg); break;
    case SPA_HOST_STRAY:     break;   /* counted by the host */
    }
}

void peer_bytes(struct peer *p, const uint8_t *bytes, size_t len, uint64_t now_ms)
{
    struct spa_host_event ev;
    size_t used;
    p->came_ms = now_ms;
    p->busy_ms = bytes ? now_ms : p->busy_ms;
    for (;;) {
        used = 0;
        const enum spa_err err = spa_host_feed(&p->host, bytes, len, &used, now_ms, &ev);
        bytes = bytes ? bytes + used : NULL;
        len -= used;
        p->buf_used = p->host.reader.len > p->buf_used ? p->host.reader.len : p->buf_used;
        if (err == SPA_OK)
            on_event(p, &ev);
        else
            break;
    }
    p->engine->metrics.refused[SPA_REFUSED_CONNECTION] += p->host.crowded - p->crowded;
    p->engine->metrics.ends[SPA_END_REFUSED] += p->host.crowded - p->crowded;
    p->crowded = p->host.crowded;
}

void peer_free(struct peer *p)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i]) {
            p->engine->metrics.ends[SPA_END_GONE]++;
            turn_leaves(p, p->turns[i], false);
        }
    kept_drop_of(p->engine, p);
    peer_rows_free(p);
    losses_free(p);
    spa_bases_put(p->basis);
    spa_account_put(&p->engine->accounts, p->account, spa_now_ms());
    spa_secret_free(p->buf, p->buf_used);
    spa_secret_free(p->z, p->engine->model->info.d * sizeof *p->z);
    spa_secret_free(p->gate, p->gate_bytes);
    spa_secret_free(p->upload, p->upload_len);
    spa_secret_free(p, sizeof *p);
}
