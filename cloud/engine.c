/* engine.c - the decode thread's loop: letters, slots, head, decode, gate (engine.h). */
#include "engine_parts.h"
#include "secret.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    BACKLOG_MS  = 5,
    GATHER_PART = 8,     /* states that are due within one part in so many of a step are waited for, */
    GATHER_MS   = 20,    /* but never longer than this */
    TURNED_AWAY_MS = 5000,   /* before who found no room should come again */
    LETTERS_AT_ONCE = 4096,   /* of a round: who floods us does not keep others' tokens waiting */
    MARKUP_MAX  = 64,    /* bytes of a special token's name in a prompt, which has no text of its own */
};

/* Bytes of the longest text that could be as many tokens as a slot holds: longer ones are refused without a look at their words. */
static size_t longest_prompt(const struct spa_model *m)
{
    char piece[SPA_PIECE_MAX];
    int32_t longest = MARKUP_MAX;
    for (int32_t t = 0; t < m->info.n_vocab; t++) {
        const int32_t n = m->piece(m->self, t, piece, sizeof piece);
        longest = n > longest ? n : longest;
    }
    return (size_t)longest * m->info.n_ctx_slot;
}

struct spa_engine *spa_engine_new(const struct spa_engine_config *cfg)
{
    struct spa_engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    const struct spa_model_info *info = &cfg->model->info;
    e->cfg = *cfg;
    e->model = cfg->model;
    e->slots = calloc(info->n_slots, sizeof *e->slots);
    e->slot_peer = calloc(info->n_slots, sizeof *e->slot_peer);
    e->kept = calloc(info->n_slots, sizeof *e->kept);
    e->seq_taken = calloc(info->n_learn_seqs, sizeof *e->seq_taken);
    e->batch = calloc(info->n_batch + info->n_learn_batch, sizeof *e->batch);
    e->fed = calloc(info->n_batch + info->n_learn_batch, sizeof *e->fed);
    e->head_in = malloc((size_t)HEAD_MAX * info->d * sizeof *e->head_in);
    e->head_out = malloc((size_t)HEAD_MAX * (size_t)info->n_vocab * sizeof *e->head_out);
    e->candidates = malloc((size_t)info->n_vocab * sizeof *e->candidates);
    e->scratch = malloc(info->d * sizeof *e->scratch);
    if (!e->slots || !e->slot_peer || !e->kept || !e->seq_taken || !e->batch || !e->fed || !e->head_in || !e->head_out || !e->candidates ||
        !e->scratch || losses_init(e) != 0) {
        spa_engine_free(e);
        return NULL;
    }
    e->metrics.slots = info->n_slots;
    e->accounts.tokens_per_minute = cfg->tokens_per_minute;
    e->prompt_max = cfg->max_prompt ? cfg->max_prompt : longest_prompt(e->model);
    if (cfg->anchors)
        feed_seats(e);
    return e;
}

bool engine_fit_rows(struct spa_engine *e, const struct spa_shape *shape, enum spa_dtype t)
{
    const size_t x = (size_t)shape->n_taps * shape->k, packed = CTX_PIECE + spa_wire_row_bytes(shape, t);
    if (x > e->x_cap) {
        const size_t had = e->x_cap * sizeof(float);
        float *a = spa_secret_grow(e->x, had, x * sizeof *a), *b = a ? spa_secret_grow(e->x_ctx, had, x * sizeof *b) : NULL;
        e->x = a ? a : e->x;
        e->x_ctx = b ? b : e->x_ctx;
        if (!b)
            return false;
        e->x_cap = x;
    }
    if (packed > e->packed_cap) {
        uint8_t *more = spa_secret_grow(e->packed, e->packed_cap, packed);
        if (!more)
            return false;
        e->packed = more;
        e->packed_cap = packed;
    }
    return true;
}

static void log_args(struct spa_engine *e, enum spa_log_level level, const char *fmt, va_list args)
{
    char line[512];
    vsnprintf(line, sizeof line, fmt, args);
    if (e->cfg.log)
        e->cfg.log(e->cfg.log_user, level, line);
}

void engine_log(struct spa_engine *e, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    log_args(e, SPA_LOG_INFO, fmt, args);
    va_end(args);
}

void engine_log_at(struct spa_engine *e, enum spa_log_level level, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    log_args(e, level, fmt, args);
    va_end(args);
}

/* ---- 1. letters ---- */

static void remove_peer(struct spa_engine *e, struct peer *p)
{
    struct peer **at = &e->peers;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    e->n_peers--;
    if (e->next_learner == p)
        e->next_learner = p->next;
    if (e->learner == p) {
        e->learner = NULL;
        lead_drop(e);
    }
    if (e->next_losses == p)
        e->next_losses = NULL;
    struct spa_conn *c = p->conn;
    engine_log(e, "connection %u closed", p->number);
    *spa_conn_note(c) = NULL;
    peer_free(p);
    e->somebody_left = true;
    spa_mail_release(e->cfg.mail, c);
}

/* Says goodbye to a connection that broke the protocol or cannot be sent to. Its conversation ends here; the socket thread
 * closes the socket when what is queued is written. */
static void hang_up(struct spa_engine *e, struct peer *p)
{
    struct spa_conn *c = p->conn;
    spa_mail_hang_up(e->cfg.mail, c, cut_count(p));
    remove_peer(e, p);
}

struct stranger { struct spa_engine *engine; struct spa_conn *conn; };

static enum spa_err send_to_stranger(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    const struct stranger *s = user;
    return spa_mail_send(s->engine->cfg.mail, s->conn, a, a_len, b, b_len);
}

/* There is no conversation with it, and none begins. */
static void turn_away(struct spa_engine *e, struct spa_conn *c)
{
    static const char down[] = "the cloud is shutting down", full[] = "the cloud has no room for this connection now; try again in a moment";
    const char *why = e->draining ? down : full;
    struct stranger s = { e, c };
    const union spa_head head = { .error = { .code = e->draining ? spa_Code_DRAINING : spa_Code_BUSY, .retry_ms = e->draining ? 0 : TURNED_AWAY_MS } };
    e->metrics.refused_full += !e->draining;
    engine_log_at(e, SPA_LOG_WARN, "a connection is refused: %s", e->draining ? down : "there are as many as --max-connections allows");
    spa_wire_send(&(struct spa_sink){ &s, send_to_stranger }, SPA_MSG_ERROR, &head, (const uint8_t *)why, strlen(why));
    spa_mail_hang_up(e->cfg.mail, c, e->draining ? SPA_CLOSE_GOING_AWAY : SPA_CLOSE_LATER);
    spa_mail_release(e->cfg.mail, c);
}

static void open_peer(struct spa_engine *e, struct spa_conn *c)
{
    struct peer *p = e->n_peers < e->cfg.max_connections && !e->draining ? peer_new(e, c) : NULL;
    if (!p) {
        turn_away(e, c);
        return;
    }
    p->next = e->peers;
    e->peers = p;
    e->n_peers++;
    *spa_conn_note(c) = p;
}

static void on_letter(struct spa_engine *e, struct spa_letter *l)
{
    struct peer *p = l->conn ? *spa_conn_note(l->conn) : NULL;
    const uint64_t now = spa_now_ms();
    switch (l->kind) {
    case SPA_LETTER_OPEN:
        open_peer(e, l->conn);
        break;
    case SPA_LETTER_BYTES:
        if (p) {
            peer_bytes(p, l->bytes, l->len, l->at_ms);   /* a state that came in time is in time, however long we decoded */
            if (peer_broken(p))
                hang_up(e, p);
        }
        spa_secret_free(l->bytes, l->len);
        break;
    case SPA_LETTER_DENIED:
        if (p) {
            peer_cut(p, SPA_CUT_KEY, spa_Code_DENIED, "the key of this connection holds no longer; ask the cloud's owner for another");
            hang_up(e, p);
        }
        break;
    case SPA_LETTER_GONE:
        if (p)
            remove_peer(e, p);
        break;
    case SPA_LETTER_DRAIN:
        if (!e->draining)
            engine_log(e, "draining: no new requests, answers under way may end");
        e->draining = true;
        e->drain_deadline_ms = now + e->cfg.drain_ms;
        break;
    }
}

/* All that have come, up to a bound. */
static void take_letters(struct spa_engine *e, struct spa_letter *first)
{
    struct spa_letter *l = first;
    uint32_t n = 0;
    do
        on_letter(e, l);
    while (++n < LETTERS_AT_ONCE && spa_mail_take(e->cfg.mail, 0, l));
}

/* ---- 3. head ---- */

/* Of no meaning but for differences: finer than spa_now_ms. */
static double clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void count_said(struct spa_engine *e, const struct peer *p, const struct spa_turn *t, bool shown)
{
    e->metrics.tokens[t->by] += shown;
    e->metrics.gated_tokens += shown && t->asked;
    spa_account_spend(&e->accounts, p->account, shown);
}

/* The token is true. With it those behind it that were guessed right and wait for nothing. */
static void say(struct spa_engine *e, struct peer *p, struct spa_turn *t, int32_t token)
{
    bool more = true;
    while (more) {
        const char *text;
        size_t text_len;
        bool shown;
        spa_Finish finish;
        const bool right = ahead_is_right(t, token), done = spa_turn_token(t, e->model, token, &text, &text_len, &shown, &finish);
        if (!spa_turn_say(t, token, shown, text, text_len)) {
            peer_said(p, t, true);
            spa_turn_say(t, token, shown, text, text_len);
        }
        count_said(e, p, t, shown);
        if (done)
            peer_turn_end(p, t, finish);
        more = !done && ahead_settle(e, p, t, right, &token);
    }
}

static void speak(struct spa_engine *e, struct peer *p, struct spa_turn *t, const float *logits)
{
    const int32_t token = spa_sample(&t->sampling, logits, e->model->info.n_vocab, t->tokens, t->n_tokens, t->n_tokens, e->candidates);
    if (t->logprobs)
        logprobs_send(e, p, t, token, logits);
    say(e, p, t, token);
}

/* What the slot's turn wants from the head: its state's token, or a guess (*guess). NULL: nothing. */
static const float *for_head(struct spa_engine *e, uint32_t slot, bool may_guess, bool *guess)
{
    struct spa_turn *t = e->slots[slot];
    if (t && t->status == SPA_TURN_STATE && t->refused != spa_Code_OK) {
        peer_no_state(e->slot_peer[slot], t, t->refused);
        return NULL;
    }
    *guess = t && may_guess && ahead_wants_guess(e, t);
    if (*guess)
        return ahead_guess_by_words(e, t) ? NULL : ahead_guess_state(e, t);
    return t && t->status == SPA_TURN_STATE ? t->state : NULL;
}

/* One look at every slot, HEAD_MAX states at a time. true: a token was said, and the one behind it may be ready by now. */
static bool head_round(struct spa_engine *e)
{
    const struct spa_model_info *info = &e->model->info;
    const bool may_guess = ahead_room(e) > 0;
    bool said = false;
    for (uint32_t slot = 0; slot < info->n_slots;) {
        uint32_t which[HEAD_MAX], n = 0;
        bool guess[HEAD_MAX];
        for (; slot < info->n_slots && n < HEAD_MAX; slot++) {
            const float *state = for_head(e, slot, may_guess, &guess[n]);
            if (!state)
                continue;
            memcpy(e->head_in + (size_t)n * info->d, state, info->d * sizeof *state);
            which[n++] = slot;
        }
        if (n == 0)
            break;
        const double start_ms = clock_ms();
        e->head_used = n > e->head_used ? n : e->head_used;
        e->model->head(e->model->self, e->head_in, n, e->head_out);
        e->metrics.head_seconds += (clock_ms() - start_ms) / 1e3;
        for (uint32_t i = 0; i < n; i++) {
            const float *logits = e->head_out + (size_t)i * (size_t)info->n_vocab;
            if (guess[i])
                ahead_guess_by_base(e, e->slots[which[i]], logits);
            else
                speak(e, e->slot_peer[which[i]], e->slots[which[i]], logits);
            said |= !guess[i];
        }
    }
    return said;
}

static void run_head(struct spa_engine *e)
{
    while (head_round(e)) {
    }
    for (uint32_t i = 0; i < e->model->info.n_slots; i++)
        if (e->slots[i])
            peer_said(e->slot_peer[i], e->slots[i], false);
}

/* ---- 4. and 5. decode, gate ---- */

/* The call failed: nobody can go on whose tokens were in it. */
static void decode_failed(struct spa_engine *e)
{
    engine_log_at(e, SPA_LOG_ERROR, "the model could not decode a batch of %u tokens; everybody in it is told", e->n_batch);
    for (uint32_t i = 0; i < e->n_fed; i++) {
        struct fed *f = &e->fed[i];
        if (!f->peer)
            spa_anchors_decode_failed(e->cfg.anchors);
        else if (f->turn)
            peer_turn_fail(f->peer, f->turn, spa_Code_INTERNAL, "the model could not decode this step; try again");
        else
            spa_host_error(&f->peer->host, 0, spa_Code_INTERNAL, "the model could not decode this step; try again");
    }
}

/* start_ms: when the head before it began. */
static void decode_step(struct spa_engine *e, double start_ms)
{
    feed_collect(e);
    if (e->n_batch == 0)
        return;
    struct spa_states states;
    bool single = true;
    for (uint32_t i = 0; i < e->n_fed; i++)
        single = single && e->fed[i].turn && e->fed[i].n == 1;
    e->batch_used = e->n_batch > e->batch_used ? e->n_batch : e->batch_used;
    const double decode_ms = clock_ms();
    const int rc = e->model->decode(e->model->self, e->batch, e->n_batch, e->layers, e->n_layers, &states);
    e->metrics.decode_seconds += (clock_ms() - decode_ms) / 1e3;
    spa_metrics_batch(&e->metrics, e->n_batch);
    if (rc == 0)
        feed_deliver(e, &states, spa_now_ms());
    else
        decode_failed(e);
    if (single) {
        const double ms = clock_ms() - start_ms;
        ahead_step_took(e, (float)ms);
        spa_pace_took(&e->pace, e->n_batch, ms);
    }
}

/* ---- company ---- */

/* Decides how wide the next call is: what users wait for a state, on average over their tokens, and how many they are. */
static void look_at_users(struct spa_engine *e)
{
    double trips = 0, waits = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->model->info.n_slots; i++) {
        const struct spa_turn *t = e->slots[i];
        if (!t)
            continue;
        const double trip = e->slot_peer[i]->round_trip_known && feed_asks(e->slot_peer[i], t) ? (double)e->slot_peer[i]->round_trip_ms : 0;
        n++;
        trips += trip;
        waits += trip * (t->ahead.waits < t->n_answer ? (double)t->ahead.waits / t->n_answer : 1);
    }
    e->width = spa_pace_width(&e->pace, n, n ? waits / n : 0);
    e->full_house = spa_pace_full(&e->pace, n, n ? trips / n : 0);
}

/* Is its state on its way, and due by until_ms? One that is overdue may come or not: nobody waits for it. */
static bool is_due(const struct peer *p, const struct spa_turn *t, double now, double until_ms)
{
    if (t->status != SPA_TURN_AWAITING || !p->round_trip_known)
        return false;
    const double asked = (double)t->ahead.asked_ms, round_trip = (double)p->round_trip_ms;
    return asked + round_trip <= until_ms && now <= asked + 1.5 * round_trip + 2;
}

/* Do some tokens wait, fewer than a call should have, and is another state about to come? The states of many devices that were asked
 * together come one by one. */
static bool company_comes(const struct spa_engine *e, double until_ms)
{
    uint32_t ready = 0, due = 0;
    const double now = clock_ms();
    for (uint32_t i = 0; i < e->model->info.n_slots && now < until_ms; i++) {
        const struct spa_turn *t = e->slots[i];
        if (!t)
            continue;
        ready += t->status == SPA_TURN_STATE || (t->status == SPA_TURN_FEEDING && t->n_tokens - t->n_past == 1);
        due += is_due(e->slot_peer[i], t, now, until_ms);
    }
    return ready > 0 && ready < e->width && due > 0;
}

static void gather(struct spa_engine *e)
{
    const double part = (double)e->step_ms / GATHER_PART, until_ms = clock_ms() + (part < GATHER_MS ? part : GATHER_MS);
    struct spa_letter letter;
    while (company_comes(e, until_ms))
        if (spa_mail_take(e->cfg.mail, spa_now_ms() + 1, &letter))
            take_letters(e, &letter);
}

/* ---- what is left behind ---- */

static void clear(void *p, size_t len)
{
    if (p)
        explicit_bzero(p, len);
}

/* Clears the buffers in which everybody's tokens and states are worked on. Between two steps nothing in them is needed. */
static void clear_work(struct spa_engine *e)
{
    const size_t d = e->model->info.d, n_vocab = (size_t)e->model->info.n_vocab;
    e->model->clear(e->model->self);
    clear(e->batch, e->batch_used * sizeof *e->batch);
    clear(e->head_in, e->head_used * d * sizeof *e->head_in);
    clear(e->head_out, e->head_used * n_vocab * sizeof *e->head_out);
    clear(e->candidates, e->head_used ? n_vocab * sizeof *e->candidates : 0);
    clear(e->scratch, d * sizeof *e->scratch);
    clear(e->x, e->x_cap * sizeof *e->x);
    clear(e->x_ctx, e->x_cap * sizeof *e->x_ctx);
    clear(e->packed, e->packed_cap);
    losses_clear(e);
    e->head_used = e->batch_used = 0;
}

/* Who leaves takes all with it, from what is shared as well. A connection that asked for nothing costs nothing. */
static void clear_behind(struct spa_engine *e)
{
    if (e->somebody_left && (e->batch_used || e->head_used || e->lm_head.work))
        clear_work(e);
    e->somebody_left = false;
}

/* ---- the loop ---- */

static bool runs_ahead(const struct spa_engine *e, const struct spa_turn *t)
{
    return (ahead_wants_guess(e, t) || ahead_wants_decode(e, t)) && ahead_room(e) > 0;
}

static bool work_waits(const struct spa_engine *e)
{
    for (uint32_t i = 0; i < e->model->info.n_slots; i++)
        if (e->slots[i] ? e->slots[i]->status != SPA_TURN_AWAITING || runs_ahead(e, e->slots[i]) : e->n_queued > 0)
            return true;
    for (const struct peer *p = e->peers; p; p = p->next)
        if (p->fit_running || peer_broken(p) || feed_may_learn(e, p) || losses_wait(e, p) || (p->n_anchor_ids && feed_may_send(e, p)))
            return true;
    return spa_anchors_busy(e->cfg.anchors);
}

/* Rows and losses wait for their key's tokens; a group that has begun does not. */
static uint64_t tokens_wait_ms(const struct spa_engine *e, const struct peer *p, uint64_t now_ms)
{
    const bool rows = p->groups_ready && !p->fit_running && e->learner != p;
    return rows || p->losses ? spa_account_wait_ms(&e->accounts, p->account, 0, now_ms) : 0;
}

/* When to look at what nobody sends a letter about: a slow reader's queue that has become shorter, a bucket that has tokens again. */
static uint64_t look_again_ms(const struct spa_engine *e, const struct peer *p, uint64_t now_ms)
{
    const uint64_t wait = p->n_anchor_ids || e->learner == p ? 0 : tokens_wait_ms(e, p, now_ms);
    if (!p->groups_ready && !p->losses && !p->n_anchor_ids)
        return UINT64_MAX;
    return now_ms + (wait > BACKLOG_MS ? wait : BACKLOG_MS);
}

static uint64_t next_deadline(const struct spa_engine *e)
{
    const uint64_t now = spa_now_ms();
    uint64_t first = e->draining ? e->drain_deadline_ms : UINT64_MAX;
    for (const struct peer *p = e->peers; p; p = p->next) {
        const uint64_t at = spa_host_deadline_ms(&p->host), idle = peer_idle_deadline_ms(p), again = look_again_ms(e, p, now);
        first = at < first ? at : first;
        first = idle < first ? idle : first;
        first = again < first ? again : first;
    }
    return first;
}

static bool drained(const struct spa_engine *e)
{
    if (!e->draining)
        return false;
    if (spa_now_ms() >= e->drain_deadline_ms)
        return true;
    for (uint32_t i = 0; i < e->model->info.n_slots; i++)
        if (e->slots[i])
            return false;
    return e->n_queued == 0;
}

static void each_peer(struct spa_engine *e)
{
    const uint64_t now = spa_now_ms();
    for (struct peer *p = e->peers, *next; p; p = next) {
        next = p->next;
        if (!peer_broken(p) && now >= spa_host_deadline_ms(&p->host))
            peer_bytes(p, NULL, 0, now);
        if (!peer_broken(p) && now >= peer_idle_deadline_ms(p))
            peer_cut(p, SPA_CUT_IDLE, spa_Code_BUSY, "nothing was asked for on this connection for a long time; connect again when there is something");
        if (!peer_broken(p) && p->fit_running)
            peer_fit_step(p);
        if (!peer_broken(p) && p->n_anchor_ids)
            peer_anchor_step(p);
        if (peer_broken(p))
            hang_up(e, p);
    }
}

/* What was counted can be read before the messages that it is about have left. */
static void flush(struct spa_engine *e)
{
    struct spa_metrics *m = &e->metrics;
    m->queue = e->n_queued;
    m->slots_busy = m->training_streams = m->training_waits = m->states_awaited = 0;
    for (uint32_t i = 0; i < m->slots; i++) {
        m->slots_busy += e->slots[i] != NULL;
        m->states_awaited += e->slots[i] ? ahead_awaited(e->slots[i]) : 0;
    }
    const uint64_t now = spa_now_ms();
    for (const struct peer *p = e->peers; p; p = p->next) {
        m->training_streams += p->rows || p->losses || p->n_anchor_ids;
        m->training_waits += tokens_wait_ms(e, p, now) > 0;
    }
    spa_mail_show(e->cfg.mail, m);
    spa_mail_flush(e->cfg.mail);
}

void spa_engine_run(struct spa_engine *e)
{
    struct spa_letter letter;
    spa_mail_decodes(e->cfg.mail, true);
    while (!drained(e)) {
        flush(e);
        if (spa_mail_take(e->cfg.mail, work_waits(e) ? 0 : next_deadline(e), &letter))
            take_letters(e, &letter);
        gather(e);
        each_peer(e);
        admit_fill_slots(e);
        look_at_users(e);
        const double start_ms = clock_ms();
        run_head(e);
        if (e->cfg.anchors) {
            spa_anchors_speak(e->cfg.anchors);
            spa_anchors_file_step(e->cfg.anchors);
        }
        flush(e);   /* tokens leave before the next decode */
        decode_step(e, start_ms);
        losses_step(e);
        clear_behind(e);
    }
    while (e->peers) {
        spa_host_error(&e->peers->host, 0, spa_Code_DRAINING, "the cloud is shutting down; connect to another one, or try again in a moment");
        hang_up(e, e->peers);
    }
    flush(e);
    spa_mail_decodes(e->cfg.mail, false);
}

void spa_engine_free(struct spa_engine *e)
{
    if (!e)
        return;
    while (e->peers)
        remove_peer(e, e->peers);
    spa_bases_free(&e->bases);
    spa_accounts_free(&e->accounts);
    clear_work(e);
    free(e->slots);
    free(e->slot_peer);
    free(e->kept);
    free(e->seq_taken);
    free(e->batch);
    free(e->fed);
    free(e->head_in);
    free(e->head_out);
    free(e->loss);
    free(e->loss_dstates);
    free(e->loss_top);
    free(e->candidates);
    free(e->x);
    free(e->x_ctx);
    free(e->scratch);
    free(e->packed);
    free(e);
}
